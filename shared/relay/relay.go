// Package relay is what a bridge and the cloud say to each other: messages in JSON over
// a WebSocket, a bridge's enrolment and its token, and a PIN sealed for a bridge. Its
// invariant: a PIN in the clear is in no message, and no message is larger than API
// Gateway's frames.
//
// A bridge connects with a Token, says Hello and is told Welcome, or Goodbye with the
// reason. Then it reports its readers and cards at every change. The cloud sends scripts
// (Run), the first of them to find out what card it is, and then what is Known of it; the
// bridge sends each Result until it is told Ack, and so what it has done by itself
// (Offline). With the session of a person at the bridge there are also Start, Prove, Ready,
// Cancel and Look, each of which is answered by an Operation or a Problem with its Ref, and
// Open, by Opened or a Problem.
package relay

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"time"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// Version is that of the messages, and MinVersion the oldest that is understood.
const (
	Version    = 1
	MinVersion = 1
)

// MaxMessage is the size of the largest message in bytes: API Gateway takes frames of
// 32 KB ("Amazon API Gateway quotas", WebSocket).
const MaxMessage = 32<<10 - 1

// Message is one message: exactly one field is set.
type Message struct {
	// From a bridge.
	Hello   *Hello   `json:"hello,omitempty"`
	Readers *Readers `json:"readers,omitempty"`
	Result  *Result  `json:"result,omitempty"`
	Offline *Offline `json:"offline,omitempty"`
	Ping    *Ping    `json:"ping,omitempty"`
	Start   *Start   `json:"start,omitempty"`
	Prove   *Prove   `json:"prove,omitempty"`
	Ready   *Ready   `json:"ready,omitempty"`
	Cancel  *Cancel  `json:"cancel,omitempty"`
	Look    *Look    `json:"look,omitempty"`
	Open    *Open    `json:"open,omitempty"`

	// To a bridge.
	Welcome   *Welcome   `json:"welcome,omitempty"`
	Goodbye   *Goodbye   `json:"goodbye,omitempty"`
	Pong      *Pong      `json:"pong,omitempty"`
	Run       *Run       `json:"run,omitempty"`
	Known     *Known     `json:"known,omitempty"`
	Ack       *Ack       `json:"ack,omitempty"`
	Operation *Operation `json:"operation,omitempty"`
	Opened    *Opened    `json:"opened,omitempty"`
	Problem   *Problem   `json:"problem,omitempty"`
}

// Hello is the first message on a connection.
type Hello struct {
	Program string  `json:"program"` // the bridge's version, "1.0.0"
	System  string  `json:"system"`  // "linux/amd64"
	Session Session `json:"session"`
}

// Session is what a bridge's connection is for. A bridge has at most one of each: a new
// one takes the place of the one before.
type Session string

// The sessions.
const (
	Service  Session = "service"  // in the background, without a person
	Terminal Session = "terminal" // with a person at the bridge
)

// Readers are all readers there are. The highest Sequence of a connection counts: the
// messages may overtake each other.
type Readers struct {
	Sequence int64    `json:"sequence"`
	Readers  []Reader `json:"readers"` // at most MaxReaders
}

// MaxReaders is how many readers a bridge reports.
const MaxReaders = 16

// Reader is a reader.
type Reader struct {
	Name string `json:"name"` // 1 to 200 bytes
	Card *Card  `json:"card,omitempty"`
}

// Card is a card in a reader.
type Card struct {
	// Insertion is another at every insertion, also after the bridge was started anew:
	// 1 to 64 letters, digits, '-' and '_'.
	Insertion string `json:"insertion"`
	ATR       Hex    `json:"atr,omitempty"`
	Silent    bool   `json:"silent,omitempty"` // it does not answer
}

// Hex is bytes, in JSON in hex.
type Hex []byte

// MarshalText implements encoding.TextMarshaler.
func (h Hex) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hex) UnmarshalText(b []byte) error {
	decoded, err := hex.DecodeString(string(b))
	if err != nil {
		return errors.New("is not hex")
	}
	*h = decoded
	return nil
}

// Ping keeps the connection open.
type Ping struct{}

// Pong answers a Ping.
type Pong struct{}

// Start asks for the unblock of a card at this bridge, by the person there. If one holds
// the card already, such as an operator's, it is that one; else a code is mailed.
type Start struct {
	Ref       string `json:"ref"` // names the request in its answer
	Reader    string `json:"reader"`
	Insertion string `json:"insertion"`
	// LogonScreen: the person is at a locked screen or a login.
	LogonScreen bool `json:"logonScreen,omitempty"`
}

// Prove gives the code that was mailed to the holder.
type Prove struct {
	Ref       string `json:"ref"`
	Operation string `json:"operation"`
	Code      Code   `json:"code"`
}

// Code is a one-time code. Unlike a secret.Text it can be written into a message; like
// one it prints nothing.
type Code struct{ secret.Text }

// MarshalJSON implements json.Marshaler: the code goes to the cloud, over TLS.
func (c Code) MarshalJSON() ([]byte, error) { return json.Marshal(c.Reveal()) }

// Ready says that the person has typed a new PIN, which the bridge keeps and the policy
// lets through: the operation may begin.
type Ready struct {
	Ref       string `json:"ref"`
	Operation string `json:"operation"`
}

// Cancel gives an operation up that has not begun.
type Cancel struct {
	Ref       string `json:"ref"`
	Operation string `json:"operation"`
}

// Look asks how an operation stands. If a script of it was lost on its way it is sent
// again.
type Look struct {
	Ref       string `json:"ref"`
	Operation string `json:"operation"`
}

// Open asks for a web page at which a person at this bridge helps themselves.
type Open struct {
	Ref   string `json:"ref"`
	Kiosk bool   `json:"kiosk,omitempty"` // for a screen that many people touch, and none of them owns
}

// Welcome answers Hello.
type Welcome struct {
	Time             time.Time `json:"time"` // now, in the cloud: deadlines are by this clock
	Organisation     string    `json:"organisation"`
	KeepAliveSeconds int       `json:"keepAliveSeconds"` // how often to Ping
	ReconnectSeconds int       `json:"reconnectSeconds"` // when to connect anew, between two scripts
	// Offline is the tenant's offline public key of 32 bytes; see shared/offline. A bridge
	// that was enrolled before there was one learns it here.
	Offline Hex `json:"offline,omitempty"`
}

// Goodbye says why the connection is about to be closed.
type Goodbye struct {
	Code   GoodbyeCode `json:"code"`
	Reason string      `json:"reason"` // for people
}

// GoodbyeCode tells a bridge what to do.
type GoodbyeCode string

// The codes.
const (
	Update   GoodbyeCode = "update"   // the bridge is too old: install a newer one
	Revoked  GoodbyeCode = "revoked"  // enrol anew
	Replaced GoodbyeCode = "replaced" // another session of this kind has connected
)

// Run is a script to be run on a card.
type Run struct {
	Reader    string
	Insertion string
	// Credential names the card whose fence this is; "" with fence 0, which identifies.
	Credential string
	Script     apdu.Script
	// Policy is what the new PIN must meet before the card is touched; nil if the
	// operation sets none.
	Policy *pin.Policy
	// Hold keeps the transaction for the operation's next part; Continue runs in the
	// transaction that the part before has kept, or not at all.
	Hold, Continue bool
	// PIN is the new PIN; nil is the one that was typed at the bridge for this operation.
	PIN *SealedPIN
}

type runJSON struct {
	Reader     string          `json:"reader"`
	Insertion  string          `json:"insertion"`
	Credential string          `json:"credential,omitempty"`
	Script     json.RawMessage `json:"script"`
	Policy     *pin.Policy     `json:"policy,omitempty"`
	Hold       bool            `json:"hold,omitempty"`
	Continue   bool            `json:"continue,omitempty"`
	PIN        *SealedPIN      `json:"pin,omitempty"`
}

// MarshalJSON implements json.Marshaler: PUKs in the clear, for the bridge and nobody else.
func (r Run) MarshalJSON() ([]byte, error) {
	script, err := apdu.EncodeScript(r.Script)
	if err != nil {
		return nil, err
	}
	return json.Marshal(runJSON{r.Reader, r.Insertion, r.Credential, script, r.Policy, r.Hold, r.Continue, r.PIN})
}

// UnmarshalJSON implements json.Unmarshaler. Its errors repeat no input.
func (r *Run) UnmarshalJSON(b []byte) error {
	var j runJSON
	if err := decode(b, &j, lenient); err != nil {
		return err
	}
	script, err := apdu.DecodeScript(j.Script)
	if err != nil {
		return err
	}
	*r = Run{j.Reader, j.Insertion, j.Credential, script, j.Policy, j.Hold, j.Continue, j.PIN}
	return nil
}

// String shows what is no secret.
func (r Run) String() string {
	s := fmt.Sprintf("%s/%d in %s", r.Script.Operation, r.Script.Part, r.Reader)
	if r.Credential != "" {
		s += " for " + r.Credential
	}
	return s
}

// Known tells what a bridge keeps of a card. It is sent whenever a card was identified
// that has a credential, and when the bridge has told of a new PIN.
type Known struct {
	Credential string `json:"credential"`
	// Insertion is the one that was identified; "" if it is sent for another reason.
	Insertion string `json:"insertion,omitempty"`
	// At is when it was so, by the cloud's clock: the messages may overtake each other.
	At time.Time `json:"at,omitzero"`
	// PINExpiresAt is the PIN expiry flag, in the past too: the card goes on working. Zero
	// is never, or not known.
	PINExpiresAt time.Time `json:"pinExpiresAt,omitzero"`
	// Policy is what a new PIN must meet.
	Policy *pin.Policy `json:"policy"`
	// Offline: the card may be unblocked here by challenge and response; LogonScreen: so
	// too at a locked screen or a login.
	Offline     bool `json:"offline,omitempty"`
	LogonScreen bool `json:"logonScreen,omitempty"`
}

// PINExpired tells whether the card's PIN has expired.
func (k Known) PINExpired(now time.Time) bool {
	return !k.PINExpiresAt.IsZero() && !now.Before(k.PINExpiresAt)
}

// Offline is what came of what a bridge has done by itself: an unblock with an answer that
// was read out to the person, or a change of the PIN by the person who knows it. It is sent
// until it is acknowledged, as part 1 of ID.
type Offline struct {
	ID         string    `json:"id"` // 1 to 64 letters, digits, '-' and '_'
	Credential string    `json:"credential"`
	At         time.Time `json:"at"`  // by the cloud's clock as the bridge knows it, else by its own
	PIN        Done      `json:"pin"` // is it new?
	// Change: the person has changed the PIN; else it was reset.
	Change bool `json:"change,omitempty"`
	// PUK: the card's PUK was presented.
	PUK bool `json:"puk,omitempty"`
	// TriesLeft are those of the PUK if that was wrong, or with Change those of the PIN.
	TriesLeft *int `json:"triesLeft,omitempty"`
}

// Done says whether something was done.
type Done string

// The answers.
const (
	Yes     Done = "yes"
	No      Done = "no"
	Unknown Done = "unknown" // it was begun, and how it ended is not known
)

// Ack says that a result has been noted: the bridge may forget it.
type Ack struct {
	Operation string `json:"operation"`
	Part      int    `json:"part"`
}

// Operation is how an unblock stands, for the person at the bridge.
type Operation struct {
	Ref        string `json:"ref,omitempty"` // of the request that this answers; "" if it is news
	ID         string `json:"id"`
	Credential string `json:"credential"`
	Insertion  string `json:"insertion,omitempty"`
	Next       Next   `json:"next"`
	// With NextCode: where the code was sent, "j…@example.com", and how often a wrong one
	// may still be given.
	SentTo    string `json:"sentTo,omitempty"`
	TriesLeft int    `json:"triesLeft,omitempty"`
	// With NextPIN: what the PIN must meet, the fence for sealing it, and until when.
	Policy *pin.Policy `json:"policy,omitempty"`
	Fence  int64       `json:"fence,omitempty"`
	Until  time.Time   `json:"until,omitzero"`
	// Violations say why the bridge did not take the PIN that was given.
	Violations []Violation `json:"violations,omitempty"`
	// With NextNothing: what came of it, in code and in words.
	State    string `json:"state"`
	Reason   string `json:"reason,omitempty"`
	Sentence string `json:"sentence,omitempty"`
}

// Next is what the person has to do.
type Next string

// The things to do.
const (
	NextCode    Next = "code" // give the code that was mailed
	NextPIN     Next = "pin"  // give the new PIN
	NextWait    Next = "wait" // until the card has been spoken to
	NextCard    Next = "card" // put the card in, and wait
	NextNothing Next = "nothing"
)

// Opened answers Open.
type Opened struct {
	Ref string `json:"ref"`
	// URL is the page's, and Token what is to be given there as its parameter "t": it is
	// good once, until Until.
	URL   string    `json:"url"`
	Token Code      `json:"token"`
	Until time.Time `json:"until"`
	// OpenSeconds is how long the page can be used once it is open.
	OpenSeconds int `json:"openSeconds"`
	// Served: the bridge's session in the background serves the readers, so that this one
	// need not last as long as the page.
	Served bool `json:"served,omitempty"`
}

// Problem answers a request that could not be met.
type Problem struct {
	Ref    string `json:"ref"`
	Code   string `json:"code"`
	Reason string `json:"reason"` // for people
}

// Violation is a problem.Violation in a message.
type Violation struct {
	Code   string `json:"code"`
	Reason string `json:"reason"`
}

// ErrMessage: what was received is no message. What it says is for the log of the side
// that has received it; it repeats nothing of what was received.
var ErrMessage = errors.New("not a message between bridge and cloud")

// VersionError: the message has a version that is not understood.
type VersionError struct{ Version int }

// Error implements error.
func (e *VersionError) Error() string {
	return fmt.Sprintf("message of version %d; versions %d to %d are understood", e.Version, MinVersion, Version)
}

// Encode writes a message.
func Encode(m Message) ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	b, err := json.Marshal(struct {
		Version int `json:"version"`
		Message
	}{Version, m})
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(b) > MaxMessage {
		return nil, problem.Invalid("tooLong", "message", "is %d bytes, at most %d are sent", len(b), MaxMessage)
	}
	return b, nil
}

// Decode reads a message from a bridge and checks its shape. A version that is not
// understood is a *VersionError, whatever else is in the message; all other errors are
// ErrMessage.
func Decode(b []byte) (Message, error) { return read(b, exact) }

// DecodeAtBridge is Decode of a message from the cloud, which may be newer than the bridge:
// what it has more in a message is ignored. Only a script must be understood as a whole, for
// it goes to a card.
func DecodeAtBridge(b []byte) (Message, error) { return read(b, lenient) }

func read(b []byte, unknown unknownFields) (Message, error) {
	if len(b) > MaxMessage {
		return Message{}, fmt.Errorf("%w: it is longer than %d bytes", ErrMessage, MaxMessage)
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return Message{}, fmt.Errorf("%w: it is not JSON, or has no version", ErrMessage)
	}
	if head.Version < MinVersion || head.Version > Version {
		return Message{}, &VersionError{head.Version}
	}
	var m struct {
		Version int `json:"version"`
		Message
	}
	if err := decode(b, &m, unknown); err != nil {
		return Message{}, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if err := m.Message.validate(); err != nil {
		return Message{}, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return m.Message, nil
}

// unknownFields says what becomes of fields that are not known.
type unknownFields bool

const (
	exact   unknownFields = false // they are an error
	lenient unknownFields = true  // they are ignored
)

// decode decodes JSON of this shape. Its errors repeat no input, which may hold a PUK or a
// code.
func decode(b []byte, into any, unknown unknownFields) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if unknown == exact {
		d.DisallowUnknownFields()
	}
	err := d.Decode(into)
	var invalid *problem.InvalidError
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &invalid):
		return invalid
	case errors.As(err, &wrongType):
		return fmt.Errorf("%s has the wrong type", wrongType.Field)
	case err != nil:
		return errors.New("its JSON is not of the shape of this version")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("it goes on after its end")
	}
	return nil
}

var name = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// validate checks that there is one payload, and those parts of it that are used as names.
func (m Message) validate() error {
	v := reflect.ValueOf(m)
	set := 0
	for i := range v.NumField() {
		if !v.Field(i).IsNil() {
			set++
		}
	}
	if set != 1 {
		return fmt.Errorf("it has %d payloads, not one", set)
	}
	var vs problem.Violations
	named := func(field, value string) {
		if !name.MatchString(value) {
			vs.Add("malformed", field, "must be 1 to 64 letters, digits, '-' and '_'")
		}
	}
	reader := func(field, value string) {
		if value == "" || len(value) > 200 {
			vs.Add("length", field, "must have 1 to 200 bytes")
		}
	}
	credential := func(field, value string) {
		if value == "" || len(value) > 100 {
			vs.Add("length", field, "must have 1 to 100 bytes")
		}
	}
	switch {
	case m.Hello != nil:
		if m.Hello.Session != Service && m.Hello.Session != Terminal {
			vs.Add("unknown", "hello.session", "must be %s or %s", Service, Terminal)
		}
		if len(m.Hello.Program) > 40 || len(m.Hello.System) > 40 {
			vs.Add("length", "hello", "must have a program and a system of at most 40 bytes")
		}
	case m.Readers != nil:
		if len(m.Readers.Readers) > MaxReaders {
			vs.Add("tooMany", "readers", "must be at most %d", MaxReaders)
		}
		seen := map[string]bool{}
		for _, r := range m.Readers.Readers {
			reader("readers.name", r.Name)
			if seen[r.Name] {
				vs.Add("repeated", "readers.name", "must be another for each reader")
			}
			seen[r.Name] = true
			if r.Card != nil {
				named("readers.card.insertion", r.Card.Insertion)
				if len(r.Card.ATR) > 33 { // ISO 7816-3, 8.2.1
					vs.Add("length", "readers.card.atr", "must have at most 33 bytes")
				}
			}
		}
	case m.Result != nil:
		named("result.operation", m.Result.Operation)
		vs.Under("result", m.Result.validate())
	case m.Start != nil:
		named("start.ref", m.Start.Ref)
		named("start.insertion", m.Start.Insertion)
		reader("start.reader", m.Start.Reader)
	case m.Prove != nil:
		named("prove.ref", m.Prove.Ref)
		named("prove.operation", m.Prove.Operation)
		if len(m.Prove.Code.Reveal()) > 40 {
			vs.Add("length", "prove.code", "must have at most 40 bytes")
		}
	case m.Ready != nil:
		named("ready.ref", m.Ready.Ref)
		named("ready.operation", m.Ready.Operation)
	case m.Cancel != nil:
		named("cancel.ref", m.Cancel.Ref)
		named("cancel.operation", m.Cancel.Operation)
	case m.Look != nil:
		named("look.ref", m.Look.Ref)
		named("look.operation", m.Look.Operation)
	case m.Open != nil:
		named("open.ref", m.Open.Ref)
	case m.Opened != nil:
		if m.Opened.URL == "" || m.Opened.Token.Empty() {
			vs.Add("missing", "opened", "must have a URL and a token")
		}
	case m.Run != nil:
		named("run.insertion", m.Run.Insertion)
		reader("run.reader", m.Run.Reader)
		if (m.Run.Script.Fence > 0) != (m.Run.Credential != "") {
			vs.Add("inconsistent", "run.credential", "must be given with a fence, and only then")
		}
		if m.Run.Policy != nil {
			vs.Under("run.policy", m.Run.Policy.Validate())
		}
	case m.Known != nil:
		if m.Known.Policy == nil {
			vs.Add("missing", "known.policy", "is missing")
		} else {
			vs.Under("known.policy", m.Known.Policy.Validate())
		}
		credential("known.credential", m.Known.Credential)
		if m.Known.Insertion != "" {
			named("known.insertion", m.Known.Insertion)
		}
	case m.Offline != nil:
		named("offline.id", m.Offline.ID)
		credential("offline.credential", m.Offline.Credential)
		if m.Offline.PIN != Yes && m.Offline.PIN != No && m.Offline.PIN != Unknown {
			vs.Add("unknown", "offline.pin", "must be %s, %s or %s", Yes, No, Unknown)
		}
		if m.Offline.Change && m.Offline.PUK {
			vs.Add("inconsistent", "offline.puk", "must not be set with change: it takes no PUK")
		}
		if n := m.Offline.TriesLeft; n != nil && (*n < 0 || *n > 15) {
			vs.Add("range", "offline.triesLeft", "must be 0 to 15")
		}
	case m.Ack != nil:
		named("ack.operation", m.Ack.Operation)
	}
	return vs.Err()
}
