package reader_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/secret"
)

// rig is a reader that a test can do things to, and the bridges that see it.
type rig struct {
	name   string
	source func(reader.Limits) reader.Source
	// other is another bridge on the same machine.
	other  func(reader.Source, reader.Limits) reader.Source
	insert func(*softcard.Card)
	remove func()
	// rival is another program that has connected to the card, and resets it when it is
	// told to.
	rival func() (reset func())
	// unguarded is Open where the rival is let in the middle of a session.
	unguarded func(reader.Source) func(context.Context, string, int64) (*reader.Session, error)
}

type cases []struct {
	name string
	test func(*testing.T, rig)
}

// suite is what every source must do.
var suite = cases{
	{"inserted, removed, swapped", testInsertions},
	{"PIV in one script", testPIV},
	{"GIDS in two legs", testGIDS},
	{"pulled at every command", testPulled},
	{"reset by another program", testReset},
	{"malformed commands", testMalformed},
	{"slow card", testSlow},
	{"silent card", testSilent},
	{"two bridges", testTwo},
	{"context of the session", testContext},
	{"context of the command", testCommandContext},
	{"held too long", testHeld},
	{"rights do not stay", testRights},
}

// short are limits that a test can wait for, on a busy machine too.
var short = reader.Limits{Idle: 800 * time.Millisecond, Answer: 800 * time.Millisecond, Turn: 2 * time.Second}

// patience is how long anything may take that has no limit of its own.
const patience = 30 * time.Second

// seen is a Watch of which a test wants to know one reader.
type seen struct {
	t      *testing.T
	reader string
	events <-chan reader.Event
	stop   func()
}

func watch(t *testing.T, s reader.Source, name string) *seen {
	ctx, cancel := context.WithCancel(context.Background())
	w := &seen{t: t, reader: name, events: s.Watch(ctx)}
	w.stop = func() {
		cancel()
		for range w.events {
		}
	}
	t.Cleanup(w.stop)
	return w
}

// want waits for events of these kinds, and no others, and returns the last.
func (w *seen) want(kinds ...reader.Kind) reader.Event {
	w.t.Helper()
	var e reader.Event
	for _, kind := range kinds {
		if e = w.next(patience); e.Kind != kind {
			w.t.Fatalf("event %q (%v), want %q of %q", e.Kind, e.Err, kind, kinds)
		}
	}
	return e
}

// next returns the next event, or one without a kind if there is none in that time.
func (w *seen) next(limit time.Duration) reader.Event {
	w.t.Helper()
	late := time.After(limit)
	for {
		select {
		case e, ok := <-w.events:
			if !ok {
				w.t.Fatal("the Watch has ended")
			}
			if e.Reader == "" || e.Reader == w.reader {
				return e
			}
		case <-late:
			return reader.Event{}
		}
	}
}

func newCard(t *testing.T, profile softcard.Profile) *softcard.Card {
	t.Helper()
	c, err := softcard.New(softcard.Config{Profile: profile, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// begin puts a card in and returns the source that has told of it.
func (r rig) begin(t *testing.T, c *softcard.Card, limits reader.Limits) (reader.Source, *seen, int64) {
	t.Helper()
	s := r.source(limits)
	w := watch(t, s, r.name)
	w.want(reader.ServiceUp, reader.ReaderAdded)
	r.insert(c)
	t.Cleanup(r.remove)
	return s, w, w.want(reader.CardInserted).Insertion
}

func open(t *testing.T, s reader.Source, name string, insertion int64) *reader.Session {
	t.Helper()
	session, err := s.Open(t.Context(), name, insertion)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Close)
	return session
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

var (
	selectPIV  = unhex("00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00")
	selectGIDS = unhex("00 A4 04 00 09 A0 00 00 03 97 42 54 46 59 00")
	chuid      = unhex("00 CB 3F FF 05 5C 03 5F C1 02 00")
)

func transmit(t *testing.T, s *reader.Session, command []byte) []byte {
	t.Helper()
	answer, err := s.Transmit(t.Context(), command)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func wantErr(t *testing.T, s *reader.Session, command []byte, want error) {
	t.Helper()
	if answer, err := s.Transmit(t.Context(), command); !errors.Is(err, want) {
		t.Fatalf("% X, %v; want %v", answer, err, want)
	}
}

func testInsertions(t *testing.T, r rig) {
	first, second := newCard(t, softcard.PivApplet), newCard(t, softcard.GIDS)
	s := r.source(reader.DefaultLimits)
	if _, err := s.Open(t.Context(), r.name, 1); !errors.Is(err, reader.ErrRemoved) {
		t.Errorf("before Watch: %v", err)
	}
	w := watch(t, s, r.name)
	w.want(reader.ServiceUp, reader.ReaderAdded)
	ids := map[int64]bool{0: true}
	for _, c := range []*softcard.Card{first, second, first} {
		r.insert(c)
		in := w.want(reader.CardInserted)
		if !bytes.Equal(in.ATR, c.ATR()) || ids[in.Insertion] {
			t.Errorf("inserted: ATR % X, want % X; insertion %d after %v", in.ATR, c.ATR(), in.Insertion, ids)
		}
		for old := range ids {
			if _, err := s.Open(t.Context(), r.name, old); !errors.Is(err, reader.ErrRemoved) {
				t.Errorf("insertion %d is opened as %d: %v", in.Insertion, old, err)
			}
		}
		ids[in.Insertion] = true
		open(t, s, r.name, in.Insertion).Close()
		r.remove()
		if out := w.want(reader.CardRemoved); out.Insertion != in.Insertion || out.ATR != nil {
			t.Errorf("removed: %+v, want insertion %d and no ATR", out, in.Insertion)
		}
	}
	r.insert(second)
	w.want(reader.CardInserted)
	w.stop()
	// A new Watch tells what is there.
	w = watch(t, s, r.name)
	in := w.want(reader.ServiceUp, reader.ReaderAdded, reader.CardInserted)
	if ids[in.Insertion] {
		t.Errorf("insertion %d was there before", in.Insertion)
	}
	open(t, s, r.name, in.Insertion).Close()
	r.remove()
	w.want(reader.CardRemoved)
}

const newPIN = "738264"

var puks = []string{"", softcard.FactoryPUK, "40718259"}

// operate takes an operation to its end: a session for a script, unless the script asks
// to hold it for the next.
func operate(t *testing.T, s reader.Source, name string, insertion int64, state card.State) (_ card.State, sessions int, result apdu.Result) {
	t.Helper()
	materials := card.Materials{
		PUK:      func(slot int) (secret.Text, error) { return secret.New(puks[slot]), nil },
		AdminKey: func() (secret.Text, error) { return secret.New(string(softcard.FactoryAdminKey)), nil },
	}
	if f, err := card.FamilyNamed(state.Family); err == nil {
		materials.Policy = f.Policy()
	}
	var session *reader.Session
	for part := 1; !state.Finished(); part++ {
		script, err := state.Script(materials)
		if err != nil {
			t.Fatal(err)
		}
		if session == nil {
			session = open(t, s, name, insertion)
			sessions++
		}
		result = apdu.Run(t.Context(), apdu.Script{Operation: "test", Part: part, Fence: 1, Deadline: time.Now(), Steps: script.Steps},
			func(apdu.Slot) ([]byte, error) { return []byte(newPIN), nil }, session.Transmit)
		if !script.Hold || result.End != apdu.Done {
			session.Close()
			session = nil
		}
		if state, err = state.Next(result); err != nil {
			t.Fatal(err)
		}
	}
	return state, sessions, result
}

func identify(t *testing.T, s reader.Source, name string, insertion int64) card.Identity {
	t.Helper()
	state, _, result := operate(t, s, name, insertion, card.Identify(false))
	if state.Leg != card.Done {
		t.Fatalf("not identified: %v, %v", state.Failure, result.Err)
	}
	return state.Identity
}

// unblock begins an unblock of a card whose PUK is the factory's.
func unblock(t *testing.T, id card.Identity) card.State {
	t.Helper()
	f, err := card.FamilyNamed(id.Family)
	if err != nil {
		t.Fatal(err)
	}
	var custody card.Custody
	if f == card.PIV {
		custody = card.Custody{Stage: card.Settled, Current: 1, Tries: 3, Most: 3}
	}
	state, err := f.Unblock(id.ID, custody, 2)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// block presents wrong PINs.
func block(t *testing.T, c *softcard.Card, session *reader.Session, application []byte, wrong string) {
	t.Helper()
	transmit(t, session, application)
	for range 5 {
		transmit(t, session, append([]byte{0x00, 0x20, 0x00, 0x80, byte(len(wrong))}, wrong...))
	}
	session.Close()
	if c.Inspect().PINTries != 0 {
		t.Fatal("the card is not blocked")
	}
}

func testPIV(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	s, _, in := r.begin(t, c, reader.DefaultLimits)
	id := identify(t, s, r.name, in)
	block(t, c, open(t, s, r.name, in), selectPIV, "000000\xFF\xFF")
	before, start := c.Inspect().Commands, time.Now()
	state, sessions, result := operate(t, s, r.name, in, unblock(t, id))
	t.Logf("%d commands in %v", c.Inspect().Commands-before, time.Since(start))
	if state.Leg != card.Done || sessions != 1 || !c.PINIs(newPIN) || !c.PUKIs(puks[2]) {
		t.Errorf("%s (%v, %v) in %d sessions; the PIN is new: %t, the PUK is new: %t",
			state.Leg, state.Failure, result.Err, sessions, c.PINIs(newPIN), c.PUKIs(puks[2]))
	}
}

func testGIDS(t *testing.T, r rig) {
	c := newCard(t, softcard.GIDS)
	s, _, in := r.begin(t, c, reader.DefaultLimits)
	id := identify(t, s, r.name, in)
	block(t, c, open(t, s, r.name, in), selectGIDS, "000000")
	state, sessions, result := operate(t, s, r.name, in, unblock(t, id))
	if state.Leg != card.Done || sessions != 1 || !c.PINIs(newPIN) || c.Inspect().AdminVerified {
		t.Errorf("%s (%v, %v) in %d sessions; the PIN is new: %t", state.Leg, state.Failure, result.Err, sessions, c.PINIs(newPIN))
	}
}

// testPulled pulls the card before every command of an unblock, and has the reader say
// so in both ways.
func testPulled(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	s, w, in := r.begin(t, c, reader.DefaultLimits)
	state := unblock(t, identify(t, s, r.name, in))
	before := c.Inspect().Commands
	if state, _, _ := operate(t, s, r.name, in, state); state.Leg != card.Done {
		t.Fatal(state.Failure)
	}
	commands := c.Inspect().Commands - before
	r.remove()
	w.want(reader.CardRemoved)
	for step := 1; step <= commands; step++ {
		c = newCard(t, softcard.PivApplet)
		r.insert(c)
		in := w.want(reader.CardInserted).Insertion
		state := unblock(t, identify(t, s, r.name, in))
		kind := softcard.Pull
		if step%2 == 0 {
			kind = softcard.Lose
		}
		c.Inject(softcard.Fault{Step: step, Kind: kind})
		_, _, result := operate(t, s, r.name, in, state)
		if result.End != apdu.Lost || !result.Uncertain || kind == softcard.Pull && !errors.Is(result.Err, reader.ErrRemoved) {
			t.Errorf("pulled at %d of %d: %s, %v", step, commands, result.End, result.Err)
		}
		r.remove()
		w.want(reader.CardRemoved)
	}
	r.insert(c)
	in = w.want(reader.CardInserted).Insertion
	session := open(t, s, r.name, in)
	transmit(t, session, selectPIV)
	r.remove()
	for range 3 {
		wantErr(t, session, chuid, reader.ErrRemoved)
	}
	w.want(reader.CardRemoved)
}

func testReset(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	s, _, in := r.begin(t, c, reader.DefaultLimits)
	reset := r.rival()
	session, err := r.unguarded(s)(t.Context(), r.name, in)
	if err != nil {
		t.Fatal(err)
	}
	transmit(t, session, selectPIV)
	reset()
	wantErr(t, session, chuid, reader.ErrReset)
	wantErr(t, session, chuid, reader.ErrReset)
	session.Close()
	// What another does between two sessions is its own affair.
	reset = r.rival()
	reset()
	session = open(t, s, r.name, in)
	if sw := transmit(t, session, chuid); len(sw) != 2 {
		t.Errorf("the card was not reset: % X", sw)
	}
	transmit(t, session, selectPIV)
}

func testMalformed(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	s, _, in := r.begin(t, c, reader.DefaultLimits)
	session := open(t, s, r.name, in)
	before := c.Inspect().Commands
	for _, short := range [][]byte{nil, {}, {0x00}, {0x00, 0xA4, 0x04}} {
		if _, err := session.Transmit(t.Context(), short); err == nil {
			t.Errorf("% X is taken", short)
		}
	}
	if got := c.Inspect().Commands; got != before {
		t.Errorf("the card got %d commands", got-before)
	}
	if answer := transmit(t, session, selectPIV); len(answer) < 3 {
		t.Errorf("the session goes on with % X", answer)
	}
}

func testSlow(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	s, _, in := r.begin(t, c, short)
	c.Inject(softcard.Fault{Step: 1, Delay: short.Answer * 3 / 5}, softcard.Fault{Step: 2, Delay: short.Answer * 3 / 5})
	session := open(t, s, r.name, in)
	transmit(t, session, selectPIV)
	if answer := transmit(t, session, chuid); len(answer) < 20 {
		t.Errorf("% X", answer)
	}
}

func testSilent(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	s, w, in := r.begin(t, c, short)
	c.Inject(softcard.Fault{Step: 2, Delay: 4 * short.Answer})
	session := open(t, s, r.name, in)
	transmit(t, session, selectPIV)
	start := time.Now()
	wantErr(t, session, chuid, reader.ErrSilent)
	session.Close()
	if took := time.Since(start); took >= 4*short.Answer {
		t.Errorf("it took %v to give the card up", took)
	}
	wantErr(t, session, chuid, reader.ErrSilent)
	w.want(reader.CardSilent)
	if _, err := s.Open(t.Context(), r.name, in); !errors.Is(err, reader.ErrSilent) {
		t.Errorf("opened again: %v", err)
	}
	again := w.want(reader.CardInserted)
	if again.Insertion == in || c.Inspect().Selected {
		t.Errorf("insertion %d again, selected %t", again.Insertion, c.Inspect().Selected)
	}
	transmit(t, open(t, s, r.name, again.Insertion), selectPIV)
}

func testTwo(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	limits := reader.Limits{Idle: 10 * time.Second, Answer: 10 * time.Second, Turn: 2 * time.Second}
	a, _, inA := r.begin(t, c, limits)
	b, inB := r.other(a, limits), inA
	if b != a {
		inB = watch(t, b, r.name).want(reader.ServiceUp, reader.ReaderAdded, reader.CardInserted).Insertion
	}
	first := open(t, a, r.name, inA)
	if _, err := b.Open(t.Context(), r.name, inB); !errors.Is(err, reader.ErrBusy) {
		t.Errorf("both hold the card: %v", err)
	}
	first.Close()

	// Each selects another application; who is not alone loses his.
	var failed []error
	done := make(chan error)
	for i, source := range []reader.Source{a, b} {
		go func() {
			done <- func() error {
				for n := range 10 {
					session, err := source.Open(context.Background(), r.name, []int64{inA, inB}[i])
					if err != nil {
						return fmt.Errorf("round %d: %w", n, err)
					}
					defer session.Close()
					for _, command := range [][]byte{[]([]byte){selectPIV, selectGIDS}[i], chuid, chuid} {
						answer, err := session.Transmit(context.Background(), command)
						if want := i == 0; err != nil || want != (len(answer) > 2) && bytes.Equal(command, selectPIV) {
							return fmt.Errorf("round %d: % X, %w", n, answer, err)
						}
					}
					session.Close()
				}
				return nil
			}()
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			failed = append(failed, err)
		}
	}
	if err := errors.Join(failed...); err != nil {
		t.Error(err)
	}
}

func testContext(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	s, _, in := r.begin(t, c, reader.DefaultLimits)
	ctx, cancel := context.WithCancel(t.Context())
	session, err := s.Open(ctx, r.name, in)
	if err != nil {
		t.Fatal(err)
	}
	transmit(t, session, selectPIV)
	cancel()
	again := open(t, s, r.name, in)
	wantErr(t, session, chuid, context.Canceled)
	if c.Inspect().Selected {
		t.Error("the card was let go as it was")
	}
	again.Close()
	if _, err := s.Open(ctx, r.name, in); !errors.Is(err, context.Canceled) {
		t.Errorf("opened with a context that is done: %v", err)
	}
}

func testCommandContext(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	s, _, in := r.begin(t, c, reader.DefaultLimits)
	session := open(t, s, r.name, in)
	c.Inject(softcard.Fault{Step: 1, Delay: 500 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	command := bytes.Clone(selectPIV)
	if _, err := session.Transmit(ctx, command); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the context's error", err)
	}
	clear(command) // which the card must not see
	wantErr(t, session, chuid, context.DeadlineExceeded)
	session.Close()
	transmit(t, open(t, s, r.name, in), selectPIV)
}

func testHeld(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	s, _, in := r.begin(t, c, short)
	session := open(t, s, r.name, in)
	for range 6 { // commands keep it
		time.Sleep(short.Idle / 4)
		transmit(t, session, selectPIV)
	}
	start := time.Now()
	open(t, s, r.name, in).Close()
	if took := time.Since(start); took < short.Idle/4 || took > patience {
		t.Errorf("the card was free after %v, want %v", took, short.Idle)
	}
	wantErr(t, session, chuid, reader.ErrHeld)
	if c.Inspect().Selected {
		t.Error("the card was let go as it was")
	}
}

func testRights(t *testing.T, r rig) {
	c := newCard(t, softcard.GIDS)
	s, _, in := r.begin(t, c, reader.DefaultLimits)
	session := open(t, s, r.name, in)
	transmit(t, session, selectGIDS)
	session.Close()
	if !c.Inspect().Selected {
		t.Error("a card that was only read is reset, which disturbs other programs")
	}
	session = open(t, s, r.name, in)
	transmit(t, session, selectGIDS)
	transmit(t, session, unhex("00 22 81 A4 03 83 01 80"))
	challenge := transmit(t, session, unhex("00 87 00 00 04 7C 02 81 00 00"))
	answer, err := card.Answer(secret.New(string(softcard.FactoryAdminKey)), challenge[4:12])
	if err != nil {
		t.Fatal(err)
	}
	transmit(t, session, append(unhex("00 87 00 00 0C 7C 0A 82 08"), answer...))
	if !c.Inspect().AdminVerified {
		t.Fatal("not authenticated")
	}
	session.Close()
	if c.Inspect().AdminVerified {
		t.Error("the next program is authenticated")
	}
}

func testWatchAgain(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	s, w, _ := r.begin(t, c, reader.DefaultLimits)
	w.stop()
	leaks := count()
	start := time.Now()
	for n := range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		events := s.Watch(ctx)
		for n%4 > 0 { // else before anything is told
			if e := <-events; e.Kind == reader.CardInserted {
				break // and the next wait begins
			}
		}
		time.Sleep(time.Duration(n%10) * 100 * time.Microsecond)
		cancel()
		for range events {
		}
		if took := time.Since(start); took > 2*patience {
			t.Fatalf("%d times took %v", n, took)
		}
	}
	t.Logf("300 times in %v", time.Since(start))
	leaks(t)
	w = watch(t, s, r.name)
	open(t, s, r.name, w.want(reader.ServiceUp, reader.ReaderAdded, reader.CardInserted).Insertion)
}

// count counts goroutines and open files; leaks fails the test if there are soon not as
// few again.
func count() (leaks func(*testing.T)) {
	now := func() [2]int {
		files, _ := os.ReadDir("/proc/self/fd") // none where there is no such folder
		return [2]int{runtime.NumGoroutine(), len(files)}
	}
	time.Sleep(50 * time.Millisecond) // until all that is to wait does
	before := now()
	return func(t *testing.T) {
		t.Helper()
		for range 1000 {
			if after := now(); after[0] <= before[0] && after[1] <= before[1] {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("goroutines and files: %d, before %d", now(), before)
	}
}
