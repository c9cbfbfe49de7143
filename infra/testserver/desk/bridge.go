package desk

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/bridge/journal"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

// Bridge is a program at the desk with one session. What is sent to it waits until Settle.
// It decides as the production bridge does, by the production journal.
type Bridge struct {
	*Desk
	ID       string
	Session  relay.Session
	Sealing  *ecdh.PrivateKey
	Journal  *journal.Journal
	memory   *journal.Map
	identity ed25519.PrivateKey

	Connection string // "" if it is not connected
	Gone       bool   // posts to it are answered so, though nobody has told
	sequence   int64
	readers    []Place
	typed      map[string]string // operation → PIN
	held       string            // the operation that a transaction is held for
	inbox      []relay.Message
	closed     bool // by the cloud

	// Copies says how often a message arrives; nil is once. Mine tells its direction.
	Copies func(mine bool, m relay.Message) int
	// Runs are the scripts that have arrived, and Resets how often a card took a new PIN,
	// by operation.
	Runs   []relay.Run
	Resets map[string]int
	// News are the operations, problems, goodbyes and acknowledgements that have arrived.
	News []relay.Message
}

// Place is a reader.
type Place struct {
	Name, Insertion string
	Card            *softcard.Card // nil: the card is silent
}

// NewBridge invites, enrols and connects a bridge.
func (d *Desk) NewBridge(session relay.Session) *Bridge {
	d.Helper()
	b := &Bridge{Desk: d, Session: session, memory: &journal.Map{}, typed: map[string]string{}, Resets: map[string]int{}}
	b.Journal = journal.New(b.memory)
	invited, code, err := d.Tenants.Invite(d.Context(), d.Core, Admin, fmt.Sprintf("desk %d", d.number()))
	d.Must(err)
	d.Secret("enrolment code", code.Reveal())
	b.ID = invited.ID
	public, private, err := ed25519.GenerateKey(rand.Reader)
	d.Must(err)
	b.identity = private
	b.Sealing, err = relay.NewSealingKey(rand.Reader)
	d.Must(err)
	_, _, _, err = d.Tenants.Enrol(d.Context(), relay.Enrolment{Code: relay.Code{Text: code}, Identity: public, Sealing: b.Sealing.PublicKey().Bytes(), Program: "1.0.0", System: "linux/amd64", Host: "pc"})
	d.Must(err)
	d.Must(b.Connect())
	return b
}

// Beside is another session of the same bridge, which shares its journal.
func (b *Bridge) Beside(session relay.Session) *Bridge {
	b.Helper()
	other := *b
	other.Session, other.Connection, other.readers, other.inbox, other.Resets = session, "", nil, nil, map[string]int{}
	other.typed = map[string]string{}
	b.Must(other.Connect())
	return &other
}

// Token is a new one.
func (b *Bridge) Token() string {
	b.Helper()
	token, err := relay.NewToken(b.identity, relay.Claims{Tenant: string(Acme), Bridge: b.ID, Relay: RelayURL, At: b.Clock.Now(),
		ID: ulid.MustNew(uint64(b.Clock.Now().UnixMilli())+uint64(b.number()), rand.Reader).String()})
	b.Must(err)
	b.Secret("token", token.Reveal())
	return token.Reveal()
}

// Connect connects anew, with what is in the readers and the results that were not
// acknowledged.
func (b *Bridge) Connect() error {
	b.Connection, b.Gone, b.closed, b.sequence, b.held, b.inbox = fmt.Sprintf("c%d", b.number()), false, false, 0, "", nil
	b.mu.Lock()
	b.lines[b.Connection] = b
	b.mu.Unlock()
	status := b.Line.Connect(context.Background(), b.Connection, http.Header{"Authorization": {"Bearer " + b.Token()}})
	if status != http.StatusOK {
		b.Connection = ""
		return fmt.Errorf("connect: the answer is %d", status)
	}
	if err := b.Say(relay.Message{Hello: &relay.Hello{Program: "1.0.0", System: "linux/amd64", Session: b.Session}}); err != nil {
		return err
	}
	if err := b.Report(); err != nil {
		return err
	}
	return b.Again()
}

// Again sends all results that were not acknowledged.
func (b *Bridge) Again() error {
	results, err := b.Journal.Waiting()
	b.Must(err)
	for _, r := range results {
		err = errors.Join(err, b.Say(relay.Message{Result: &r}))
	}
	return err
}

// Restart is a crash of the program: scripts that were begun are not known of.
func (b *Bridge) Restart() {
	b.Journal, b.held, b.typed = journal.New(b.memory), "", map[string]string{}
	for i := range b.readers {
		b.readers[i].Insertion = fmt.Sprintf("i-%d", b.number())
	}
}

// Inserted is the insertion of the card in the first reader.
func (b *Bridge) Inserted() string {
	b.Helper()
	if len(b.readers) == 0 {
		b.Fatal("there is no card")
	}
	return b.readers[0].Insertion
}

// Shuffle lets what waits for the bridge overtake each other.
func (b *Bridge) Shuffle(r *mathrand.Rand) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r.Shuffle(len(b.inbox), func(i, j int) { b.inbox[i], b.inbox[j] = b.inbox[j], b.inbox[i] })
}

// Interrupt is a crash of the program within the scripts whose results are not
// acknowledged.
func (b *Bridge) Interrupt() {
	var cards []string
	b.Must(b.memory.Each(func(r journal.Record) { cards = append(cards, r.Credential) }))
	for _, c := range cards {
		b.Must(b.memory.Update(c, func(r journal.Record) (journal.Record, bool) {
			r.Entries = slices.Clone(r.Entries)
			for i := range r.Entries {
				r.Entries[i].Result = nil
			}
			return r, true
		}))
	}
	b.Restart()
}

// Say sends a message to the cloud, through Copies.
func (b *Bridge) Say(m relay.Message) error {
	encoded, err := relay.Encode(m)
	if err != nil {
		return err
	}
	copies := 1
	if b.Copies != nil {
		copies = b.Copies(true, m)
	}
	for range copies {
		if b.Connection == "" {
			return errors.New("not connected")
		}
		err = errors.Join(err, b.Line.Message(context.Background(), b.Connection, encoded))
	}
	return err
}

// Report tells what is in the readers.
func (b *Bridge) Report() error {
	b.sequence++
	report := relay.Readers{Sequence: b.sequence, Readers: []relay.Reader{}}
	for _, p := range b.readers {
		r := relay.Reader{Name: p.Name}
		switch {
		case p.Card != nil:
			r.Card = &relay.Card{Insertion: p.Insertion, ATR: p.Card.ATR()}
		case p.Insertion != "":
			r.Card = &relay.Card{Insertion: p.Insertion, Silent: true}
		}
		report.Readers = append(report.Readers, r)
	}
	return b.Say(relay.Message{Readers: &report})
}

// Insert puts a card into a reader, a silent one if it is nil, and returns the insertion.
// The card is identified by the next Settle.
func (b *Bridge) Insert(piece *softcard.Card) string {
	b.Helper()
	b.Must(b.Put(piece))
	return b.readers[len(b.readers)-1].Insertion
}

// Put is Insert whose report may fail.
func (b *Bridge) Put(piece *softcard.Card) error {
	if piece != nil {
		piece.PowerOn()
	}
	b.readers = append(b.readers, Place{fmt.Sprintf("Reader %d", len(b.readers)), fmt.Sprintf("i-%d", b.number()), piece})
	return b.Report()
}

// Remove takes all cards out.
func (b *Bridge) Remove() {
	b.Helper()
	for _, p := range b.readers {
		if p.Card != nil {
			p.Card.PowerOff()
		}
	}
	b.readers, b.held = nil, ""
	b.Must(b.Report())
}

// Pull takes all cards out, without a word.
func (b *Bridge) Pull() { b.readers, b.held = nil, "" }

// Settle takes in what waits for the bridge, until nothing does. It returns the errors of
// what it has said, as the cloud's log would have them.
func (b *Bridge) Settle() error {
	var errs []error
	for range 1000 {
		b.mu.Lock()
		if len(b.inbox) == 0 {
			b.mu.Unlock()
			return errors.Join(errs...)
		}
		m := b.inbox[0]
		b.inbox = b.inbox[1:]
		b.mu.Unlock()
		errs = append(errs, b.take(m))
	}
	return errors.Join(append(errs, errors.New("it goes on for ever"))...)
}

func (b *Bridge) take(m relay.Message) error {
	switch {
	case m.Run != nil:
		b.Runs = append(b.Runs, *m.Run)
		if r, ok := b.perform(*m.Run); ok {
			return b.Say(relay.Message{Result: &r})
		}
	case m.Ack != nil:
		b.Must(b.Journal.Acknowledge(m.Ack.Operation, m.Ack.Part, b.Clock.Now()))
		b.News = append(b.News, m)
	default:
		b.News = append(b.News, m)
	}
	return nil
}

// perform is what bridge/agent does with a script.
func (b *Bridge) perform(run relay.Run) (relay.Result, bool) {
	s, now := run.Script, b.Clock.Now()
	refuse := func(why relay.Refusal, violations ...relay.Violation) (relay.Result, bool) {
		r := relay.Result{Operation: s.Operation, Part: s.Part, Refusal: why, Violations: violations}
		if s.Fence == 0 {
			return r, true
		}
		v, err := b.Journal.Refuse(run, r, now)
		b.Must(err)
		return v.Result, v.Action != journal.Wait
	}
	if s.Fence > 0 {
		if v, err := b.Journal.Look(run, now); err != nil || v.Action != journal.Run {
			b.Must(err)
			return v.Result, v.Action != journal.Wait
		}
	}
	held := b.held
	b.held = ""
	if s.CheckDeadline(now) != nil {
		return refuse(relay.RefusedDeadline)
	}
	var newPIN secret.Text
	if run.Policy != nil {
		if newPIN = secret.New(b.typed[s.Operation]); run.PIN != nil {
			var err error
			binding := relay.Binding{Tenant: string(Acme), Operation: s.Operation, Credential: run.Credential, Fence: s.Fence}
			if newPIN, err = relay.OpenPIN(b.Sealing, binding, *run.PIN); err != nil {
				return refuse(relay.RefusedNoPIN)
			}
		}
		if newPIN.Empty() {
			return refuse(relay.RefusedNoPIN)
		}
		var invalid *problem.InvalidError
		if errors.As(run.Policy.Check(newPIN, pin.Context{}).Err(), &invalid) {
			delete(b.typed, s.Operation)
			var violations []relay.Violation
			for _, v := range invalid.Violations {
				violations = append(violations, relay.Violation{Code: v.Code, Reason: v.Reason})
			}
			return refuse(relay.RefusedPIN, violations...)
		}
	}
	at := slices.IndexFunc(b.readers, func(p Place) bool { return p.Insertion == run.Insertion && p.Name == run.Reader && p.Card != nil })
	if at < 0 {
		return refuse(relay.RefusedCard)
	}
	piece := b.readers[at].Card
	switch {
	case run.Continue && held != s.Operation:
		return refuse(relay.RefusedHold)
	case !run.Continue:
		piece.Reset() // as the end of the transaction before
	}
	if s.Fence > 0 {
		if v, err := b.Journal.Begin(run, now); err != nil || v.Action != journal.Run {
			b.Must(err)
			return v.Result, v.Action != journal.Wait
		}
	}
	for _, step := range s.Steps {
		if step.Secret {
			for data := step.Command.Data; len(data) >= 8; data = data[8:] {
				if text := string(data[:8]); aPUK.MatchString(text) {
					b.Secret("PUK", text)
				}
			}
		}
	}
	result := relay.Result{Operation: s.Operation, Part: s.Part}
	result.Run = apdu.Run(context.Background(), s, func(apdu.Slot) ([]byte, error) { return []byte(newPIN.Reveal()), nil },
		func(_ context.Context, command []byte) ([]byte, error) {
			answer, err := piece.Transmit(command)
			if len(answer) >= 2 && command[1] == 0x2C && slices.Equal(answer[len(answer)-2:], []byte{0x90, 0}) || errors.Is(err, softcard.ErrLost) && command[1] == 0x2C {
				b.Resets[s.Operation]++
			}
			return answer, err
		})
	if s.Fence > 0 {
		b.Must(b.Journal.End(run.Credential, result, now))
	}
	if run.Hold && result.Run.End == apdu.Done {
		b.held = s.Operation
	}
	return result, true
}

var aPUK = regexp.MustCompile(`^[0-9A-Za-z]{8}$`)

// Last is the last message among the News that has what is asked for.
func Last[V any](b *Bridge, part func(relay.Message) *V) *V {
	b.Helper()
	for _, m := range slices.Backward(b.News) {
		if v := part(m); v != nil {
			return v
		}
	}
	b.Fatalf("it was told nothing of the kind: %d messages", len(b.News))
	return nil
}

// errNoAnswer: the line has lost it.
var errNoAnswer = errors.New("no answer")

// Try asks for something as the person at the bridge, lets it settle, and returns the
// answer, if it comes.
func (b *Bridge) Try(m relay.Message, ref string) (relay.Operation, *relay.Problem, error) {
	heard := len(b.News)
	err := b.Say(m)
	if err == nil {
		err = b.Settle()
	}
	for _, m := range b.News[heard:] {
		switch {
		case m.Operation != nil && m.Operation.Ref == ref:
			return *m.Operation, nil, nil
		case m.Problem != nil && m.Problem.Ref == ref:
			return relay.Operation{}, m.Problem, nil
		}
	}
	return relay.Operation{}, nil, errors.Join(errNoAnswer, err)
}

func (b *Bridge) ref() string { return fmt.Sprintf("r%d", b.number()) }

// Start asks for the unblock of an inserted card.
func (b *Bridge) Start(insertion string) (relay.Operation, *relay.Problem, error) {
	ref := b.ref()
	return b.Try(relay.Message{Start: &relay.Start{Ref: ref, Reader: "Reader 0", Insertion: insertion}}, ref)
}

// Prove gives a code.
func (b *Bridge) Prove(operation, code string) (relay.Operation, *relay.Problem, error) {
	ref := b.ref()
	return b.Try(relay.Message{Prove: &relay.Prove{Ref: ref, Operation: operation, Code: relay.Code{Text: secret.New(code)}}}, ref)
}

// Ready types a PIN and says so.
func (b *Bridge) Ready(operation, newPIN string) (relay.Operation, *relay.Problem, error) {
	b.typed[operation] = newPIN
	b.Secret("PIN", newPIN)
	ref := b.ref()
	return b.Try(relay.Message{Ready: &relay.Ready{Ref: ref, Operation: operation}}, ref)
}

// ReadyWithout says that a PIN was typed which the bridge does not have any more.
func (b *Bridge) ReadyWithout(operation string) (relay.Operation, *relay.Problem, error) {
	delete(b.typed, operation)
	ref := b.ref()
	return b.Try(relay.Message{Ready: &relay.Ready{Ref: ref, Operation: operation}}, ref)
}

// Cancel gives an operation up.
func (b *Bridge) Cancel(operation string) (relay.Operation, *relay.Problem, error) {
	ref := b.ref()
	return b.Try(relay.Message{Cancel: &relay.Cancel{Ref: ref, Operation: operation}}, ref)
}

// Look asks how an operation stands.
func (b *Bridge) Look(operation string) (relay.Operation, *relay.Problem, error) {
	ref := b.ref()
	return b.Try(relay.Message{Look: &relay.Look{Ref: ref, Operation: operation}}, ref)
}

// Seal seals a PIN for the bridge.
func (b *Bridge) Seal(operation, credential string, fence int64, newPIN string) relay.SealedPIN {
	b.Helper()
	b.Secret("PIN", newPIN)
	sealed, err := relay.SealPIN(b.Sealing.PublicKey().Bytes(), relay.Binding{Tenant: string(Acme), Operation: operation, Credential: credential, Fence: fence}, secret.New(newPIN))
	b.Must(err)
	return sealed
}

// connections is the way to the bridges.
type connections Desk

// Post implements gateway.Connections.
func (c *connections) Post(_ context.Context, connection string, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.lines[connection]
	if b == nil || b.Connection != connection || b.Gone || b.closed {
		return gateway.ErrGone
	}
	m, err := relay.Decode(data)
	if err != nil {
		return err
	}
	if m.Run == nil {
		_, _ = c.Heard.Write(append(slices.Clone(data), '\n'))
	}
	copies := 1
	if b.Copies != nil {
		copies = b.Copies(false, m)
	}
	for range copies {
		if again, err := relay.Decode(data); err == nil {
			b.inbox = append(b.inbox, again)
		}
	}
	return nil
}

// Close implements gateway.Connections.
func (c *connections) Close(_ context.Context, connection string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.lines[connection]; b != nil && b.Connection == connection {
		b.closed = true
	}
	return nil
}

// Closed tells whether the cloud has closed its connection.
func (b *Bridge) Closed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

// Within is how long a script may be on its way.
const Within = 20 * time.Second
