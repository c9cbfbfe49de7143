package card_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/secret"
)

// desk is a reader, a bridge that holds its card by sessions, and somebody who does
// something to the card in the middle of an operation.
type desk struct {
	t         testing.TB
	reader    *softcard.Reader
	source    reader.Source
	events    <-chan reader.Event
	insertion int64
	stop      func()
	// follow: a script that needs a session of its own goes to whatever card is in by
	// then, as if nobody had bound the operation to an insertion.
	follow     bool
	raw        bool // no sessions: each command goes to whatever card is in
	noMetadata bool // the card does not tell its tries

	// strike comes once, after that many commands of the operation: at once, or when the
	// next one is about to be sent.
	strike func()
	after  int
	late   bool

	commands, scripts int
	legs              map[card.Leg]bool
	answers           [][]byte // to challenges, that were to be sent
}

const deskReader = "desk"

// newDesk returns a desk with this card in its reader. The caller stops it.
func newDesk(t testing.TB, c *softcard.Card) *desk {
	t.Helper()
	d := &desk{t: t, reader: softcard.NewReader(), after: -1, legs: map[card.Leg]bool{}}
	d.source = reader.NewSoft(deskReader, d.reader, softcard.ErrReset, reader.DefaultLimits)
	d.reader.Insert(c)
	ctx, stop := context.WithCancel(context.Background())
	d.events, d.stop = d.source.Watch(ctx), stop
	d.inserted()
	return d
}

// inserted takes the newest insertion for the one that is meant.
func (d *desk) inserted() {
	d.t.Helper()
	for e := range d.events {
		if e.Kind == reader.CardInserted {
			d.insertion = e.Insertion
			return
		}
	}
}

// replace takes the card out and puts this one in.
func (d *desk) replace(c *softcard.Card) {
	d.reader.Insert(c)
	if d.follow {
		d.inserted()
	}
}

func (d *desk) strikes(late bool) {
	if d.strike != nil && d.late == late && d.commands == d.after {
		strike := d.strike
		d.strike = nil
		strike()
	}
}

// guarded sends a command through the transmitter, and has the strike come.
func (d *desk) guarded(send apdu.Transmitter) apdu.Transmitter {
	return func(ctx context.Context, command []byte) ([]byte, error) {
		d.strikes(true)
		d.commands++
		var answer []byte
		var err error
		if d.noMetadata && command[1] == 0xF7 {
			answer = []byte{0x6D, 0x00}
		} else {
			answer, err = send(ctx, command)
		}
		d.strikes(false)
		return answer, err
	}
}

// reconnecting is what a bridge must not be: it sends on to whatever card is in.
func (d *desk) reconnecting(_ context.Context, command []byte) ([]byte, error) {
	conn, err := d.reader.Connect()
	if err != nil {
		return nil, err
	}
	return conn.Transmit(command)
}

func (d *desk) open() (apdu.Transmitter, func(), error) {
	if d.raw {
		return d.reconnecting, func() {}, nil
	}
	session, err := d.source.Open(context.Background(), deskReader, d.insertion)
	if err != nil {
		return nil, nil, err
	}
	return session.Transmit, session.Close, nil
}

func deskMaterials(s card.State) card.Materials {
	m := card.Materials{
		PUK:      func(slot int) (secret.Text, error) { return secret.New(puks[slot]), nil },
		AdminKey: func() (secret.Text, error) { return secret.New(string(softcard.FactoryAdminKey)), nil },
	}
	if f, err := card.FamilyNamed(s.Family); err == nil {
		m.Policy = f.Policy()
	}
	return m
}

// operate takes an operation to its end, each script in a session unless it is the one
// that the script before has asked to hold.
func (d *desk) operate(s card.State) card.State {
	d.t.Helper()
	d.strikes(false)
	var send apdu.Transmitter
	release := func() {}
	for !s.Finished() {
		d.legs[s.Leg] = true
		script, err := s.Script(deskMaterials(s))
		if err != nil {
			d.t.Fatal(err)
		}
		if s.Challenge != "" {
			answer, err := card.Answer(secret.New(string(softcard.FactoryAdminKey)), unhex(s.Challenge))
			if err != nil {
				d.t.Fatal(err)
			}
			d.answers = append(d.answers, answer)
		}
		d.scripts++
		if send == nil {
			send, release, err = d.open()
		}
		r := apdu.Result{End: apdu.Lost, Err: err}
		if err == nil {
			r = apdu.Run(context.Background(), apdu.Script{Operation: "swap", Part: d.scripts, Fence: 1, Deadline: time.Now(), Steps: script.Steps},
				func(apdu.Slot) ([]byte, error) { return []byte(newPIN), nil }, d.guarded(send))
			if !script.Hold || r.End != apdu.Done {
				release()
				send = nil
			}
		}
		if r.End == apdu.Refused {
			d.t.Fatalf("refused: %v", r.Err)
		}
		if s, err = s.Next(r); err != nil {
			d.t.Fatal(err)
		}
	}
	return s
}

// operation is one that a card may be in the middle of.
type operation struct {
	name       string
	profile    softcard.Profile
	card       *softcard.Card // to be cloned
	id         string
	noMetadata bool
	begin      func(id string) (card.State, error)
	secrets    bool // it has some
	rotated    bool // the card has the PUK in slot 2 already
}

// operations are all there are, from every stage of a custody.
func operations(t testing.TB) []operation {
	t.Helper()
	var all []operation
	custody := func(stage card.Stage, tries int) card.Custody {
		return card.Custody{Stage: stage, Current: 1, Proposed: 2, Probed: stage != card.Open, Tries: tries, Most: 3}
	}
	reconcile := func(c card.Custody) func(string) (card.State, error) {
		return func(id string) (card.State, error) { return card.PIV.Reconcile(id, c) }
	}
	for _, profile := range piv {
		for _, o := range []struct {
			name       string
			puk        int // the slot of the one that the card has
			lacking    int // so many tries
			noMetadata bool
			secrets    bool
			begin      func(string) (card.State, error)
		}{
			{"identify", 1, 0, false, false, func(string) (card.State, error) { return card.Identify(false), nil }},
			{"identify and ask", 1, 0, true, false, func(string) (card.State, error) { return card.Identify(true), nil }},
			{"unblock", 1, 0, false, true, func(id string) (card.State, error) { return card.PIV.Unblock(id, settled(1), 2) }},
			{"unblock, claimed", 1, 0, true, true, func(id string) (card.State, error) {
				return card.PIV.Unblock(id, card.Claim(1, card.RetryCounter{}), 2)
			}},
			{"take", 1, 0, false, true, func(id string) (card.State, error) { return card.PIV.TakeCustody(id, settled(1), 2) }},
			{"take, claimed", 1, 0, false, true, func(id string) (card.State, error) {
				return card.PIV.TakeCustody(id, card.Claim(1, card.RetryCounter{}), 2)
			}},
			{"open, not changed", 1, 0, false, true, reconcile(custody(card.Open, 3))},
			{"open, changed", 2, 0, false, true, reconcile(custody(card.Open, 3))},
			{"open, changed, not told", 2, 0, true, true, reconcile(custody(card.Open, 3))},
			{"probing, not seen", 1, 0, false, true, reconcile(custody(card.Probing, 2))},
			{"probing, refused", 2, 1, false, true, reconcile(custody(card.Probing, 2))},
			{"eliminated", 2, 1, true, true, reconcile(custody(card.Eliminated, 2))},
			{"claimed", 1, 0, false, true, reconcile(card.Claim(1, card.RetryCounter{}))},
			{"settled, a try lacking", 1, 1, false, true, reconcile(card.Custody{Stage: card.Settled, Current: 1, Tries: 2, Most: 3})},
		} {
			c := deskCard(t, profile, puks[o.puk])
			for range o.lacking {
				choose(t, c)
				if answer, err := c.Transmit(unhex("0024008110" + "3939393939393939" + "3939393939393939")); err != nil || answer[0] != 0x63 {
					t.Fatalf("% X, %v", answer, err)
				}
			}
			all = append(all, operation{o.name, profile, c, cardID(t, c), o.noMetadata, o.begin, o.secrets, o.puk == 2})
		}
	}
	c := deskCard(t, softcard.GIDS, "")
	return append(all,
		operation{"identify", softcard.GIDS, c, cardID(t, c), false, func(string) (card.State, error) { return card.Identify(true), nil }, false, false},
		operation{"unblock", softcard.GIDS, c, cardID(t, c), false, func(id string) (card.State, error) {
			return card.GIDS.Unblock(id, card.Custody{}, 0)
		}, true, false})
}

// deskCard returns a card with its PIN blocked.
func deskCard(t testing.TB, profile softcard.Profile, puk string) *softcard.Card {
	t.Helper()
	if profile == softcard.GIDS {
		puk = ""
	}
	c, err := softcard.New(softcard.Config{Profile: profile, PUK: puk, Blocked: true, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// choose selects a card's application, as any other program may.
func choose(t testing.TB, c *softcard.Card) {
	t.Helper()
	name := "A00000030800001000"
	if c.Profile() == softcard.GIDS {
		name = "A00000039742544659"
	}
	if answer, err := c.Transmit(unhex("00A4040009" + name + "00")); err != nil || len(answer) < 3 {
		t.Fatalf("% X, %v", answer, err)
	}
}

func cardID(t testing.TB, c *softcard.Card) string {
	t.Helper()
	d := newDesk(t, c.Clone())
	defer d.stop()
	s := d.operate(card.Identify(false))
	if s.Leg != card.Done {
		t.Fatal(s.Failure)
	}
	return s.ID
}

// strike is something that is done to the card.
type strike struct {
	name string
	// card makes the one that is put in instead; without, it is the same, reset.
	card   func() *softcard.Card
	remove bool // and out before
}

func strikes(t testing.TB) []strike {
	t.Helper()
	all := []strike{
		{"the same card, out and in", nil, true},
		{"the same card, reset by another program", nil, false},
	}
	for _, profile := range softcard.Profiles {
		// With the same PUK and admin key: if it gets them, it takes them.
		other := deskCard(t, profile, puks[1])
		all = append(all, strike{"another card, " + string(profile), other.Clone, false})
	}
	return all
}

// tapped are the commands that a card got.
type tapped [][]byte

func tap(c *softcard.Card) *tapped {
	var got tapped
	c.Tap(func(command []byte) { got = append(got, command) })
	return &got
}

// leaks names the secrets that are in commands.
func (got tapped) leaks(d *desk) (found []string) {
	secrets := map[string][]byte{"new PIN": []byte(newPIN), "admin key": softcard.FactoryAdminKey}
	for slot, puk := range puks[1:] {
		secrets[fmt.Sprintf("PUK %d", slot+1)] = []byte(puk)
	}
	for i, answer := range d.answers {
		secrets[fmt.Sprintf("answer %d", i+1)] = answer
	}
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		if slices.ContainsFunc(got, func(command []byte) bool { return bytes.Contains(command, secrets[name]) }) {
			found = append(found, name)
		}
	}
	return found
}

// lies says what a state claims that is not so of the card that was meant.
func (o operation) lies(c *softcard.Card, s card.State) (found []string) {
	lie := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	set, changed := c.PINIs(newPIN), c.PUKIs(puks[2])
	if s.Outcome.PIN == card.Yes && !set || s.Outcome.PIN == card.No && set {
		lie("PIN %q, set %t", s.Outcome.PIN, set)
	}
	if s.Before.Stage == "" { // no PUK
		if s.Leg == card.Done && s.ID != o.id {
			lie("id %s, not %s", s.ID, o.id)
		}
		return found
	}
	before, err := o.begin(o.id)
	reconciles := err == nil && before.Leg == "read"
	if reconciles {
		changed = o.rotated
	}
	if s.Outcome.PUK == card.Yes && !changed || s.Outcome.PUK == card.No && changed {
		lie("PUK %q, changed %t", s.Outcome.PUK, changed)
	}
	k := s.Custody
	has := func(slot int) bool { return slot > 0 && c.PUKIs(puks[slot]) }
	switch {
	case !has(k.Current) && !has(k.Proposed):
		lie("the PUK is in no slot")
	case k.Stage == card.Settled && !has(k.Current), k.Stage == card.Eliminated && !has(k.Proposed), k.Stage == card.Refused:
		lie("stage %s", k.Stage)
	case k.Tries > c.Inspect().PUKTries:
		lie("%d tries at least, but %d", k.Tries, c.Inspect().PUKTries)
	}
	return found
}

// swap runs an operation that is struck, and tells what the wrong card got that it must
// not, and what is claimed that is not so.
func (o operation) swap(t testing.TB, st strike, prepare func(*desk)) (d *desk, leaks, lies []string) {
	t.Helper()
	c := o.card.Clone()
	d = newDesk(t, c)
	defer d.stop()
	d.noMetadata = o.noMetadata
	prepare(d)
	other := c
	if st.card != nil {
		other = st.card()
	}
	got := &tapped{}
	struck := false
	d.strike = func() {
		struck = true
		switch {
		case st.card != nil:
			d.replace(other)
			choose(t, other)
			got = tap(other)
		case st.remove:
			d.reader.Remove()
			d.replace(c)
		default:
			rival, err := d.reader.Connect()
			if err != nil {
				t.Fatal(err)
			}
			if err := rival.Reset(); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := other.Inspect()
	began, err := o.begin(o.id)
	if err != nil {
		t.Fatal(err)
	}
	s := d.operate(began)
	lies = o.lies(c, s)
	if s.Leg == card.Failed && s.Failure.Sentence() == "" {
		lies = append(lies, "no sentence for "+string(s.Failure.Reason))
	}
	if isOther := struck && st.card != nil; s.Failure.Reason == card.WrongCard && !isOther {
		lies = append(lies, "another card")
	}
	if st.card != nil {
		after := other.Inspect()
		if leaks = got.leaks(d); after.SecretBytes > 0 {
			leaks = append(leaks, "data of a command for secrets")
		}
		if after.PINTries != before.PINTries || after.PUKTries != before.PUKTries || after.AdminVerified {
			lies = append(lies, fmt.Sprintf("the wrong card: %+v", after))
		}
		other.Tap(nil)
	}
	if !d.raw {
		lies = append(lies, o.recovers(t, c, s)...)
	}
	return d, leaks, lies
}

// recovers puts the card that was meant back in, and finishes.
func (o operation) recovers(t testing.TB, c *softcard.Card, s card.State) (lies []string) {
	t.Helper()
	if s.Before.Stage == "" {
		return nil
	}
	custody := s.Custody
	for range 2 {
		if !custody.InDoubt() && !custody.Claimed {
			break
		}
		d := newDesk(t, c)
		began, err := card.PIV.Reconcile(o.id, custody)
		if err != nil {
			t.Fatal(err)
		}
		custody = d.operate(began).Custody
		d.stop()
	}
	if custody.InDoubt() || !c.PUKIs(puks[custody.Current]) {
		return []string{fmt.Sprintf("in the end, custody %+v", custody)}
	}
	began, err := card.PIV.Unblock(o.id, custody, 3)
	if err != nil {
		return []string{err.Error()}
	}
	d := newDesk(t, c)
	defer d.stop()
	if s := d.operate(began); s.Leg != card.Done || !c.PINIs(newPIN) || !c.PUKIs(puks[3]) {
		return []string{fmt.Sprintf("in the end, %v", s.Failure)}
	}
	return nil
}

// boundaries calls f for every place between two commands of an operation, before the
// first and after the last.
func (o operation) boundaries(t testing.TB, f func(after int, late bool)) int {
	t.Helper()
	d := newDesk(t, o.card.Clone())
	defer d.stop()
	d.noMetadata = o.noMetadata
	began, err := o.begin(o.id)
	if err != nil {
		t.Fatal(err)
	}
	if s := d.operate(began); s.Leg != card.Done {
		t.Fatalf("%s, undisturbed: %v", o.name, s.Failure)
	}
	for after := range d.commands + 1 {
		f(after, false)
		if after < d.commands {
			f(after, true)
		}
	}
	return d.commands + 1
}

// TestSwappedCard puts another card in, or has the same one forget, at every boundary
// between the APDUs of every script: no secret reaches the wrong card, nothing false is
// claimed of the right one, and its PUK is known in the end.
func TestSwappedCard(t *testing.T) {
	boundaries, runs := 0, 0
	legs := map[card.Leg]bool{}
	all := strikes(t)
	for _, o := range operations(t) {
		n := 0
		for _, st := range all {
			n = o.boundaries(t, func(after int, late bool) {
				for _, follow := range []bool{false, true} {
					if follow && !o.secrets {
						continue // whatever card is in, is identified
					}
					runs++
					d, leaks, lies := o.swap(t, st, func(d *desk) { d.after, d.late, d.follow = after, late, follow })
					maps.Copy(legs, d.legs)
					if len(leaks) > 0 || len(lies) > 0 {
						t.Errorf("%s, %s, %s after command %d (late %t, follow %t): leaks %q, lies %q",
							o.profile, o.name, st.name, after, late, follow, leaks, lies)
					}
				}
			})
		}
		boundaries += n
	}
	t.Logf("%d boundaries in the scripts of %d operations, %d strikes, %d runs", boundaries, len(operations(t)), len(all), runs)
	want := []card.Leg{"answer", "askPIN", "challenge", "confirm", "find", "identify", "probe", "read", "take", "unblock"}
	if got := slices.Sorted(maps.Keys(legs)); !slices.Equal(got, want) {
		t.Errorf("scripts %v, want %v", got, want)
	}
}

// TestSwappedCardIsSeen: without sessions, every operation that has secrets gives them to
// the wrong card, and the checks above see it, and see what is claimed wrongly.
func TestSwappedCardIsSeen(t *testing.T) {
	all := strikes(t)
	for _, o := range operations(t) {
		seen, claimed := map[string]int{}, 0
		for _, st := range all {
			o.boundaries(t, func(after int, late bool) {
				_, leaks, lies := o.swap(t, st, func(d *desk) { d.after, d.late, d.raw = after, late, true })
				for _, leak := range leaks {
					seen[leak]++
				}
				claimed += len(lies)
			})
		}
		t.Logf("%s, %s: leaks %v, %d lies", o.profile, o.name, seen, claimed)
		if (len(seen) > 0) != o.secrets {
			t.Errorf("%s, %s: leaks %v", o.profile, o.name, seen)
		}
		if o.name == "unblock" && (seen["new PIN"] == 0 || claimed == 0) {
			t.Errorf("%s: leaks %v, %d lies", o.profile, seen, claimed)
		}
	}
}
