// Package unblock carries out unblocks of cards: who may ask for one and proves who they
// are, the scripts that go to a bridge, and what is known afterwards. Its invariants: a
// card is spoken to in order to change it only under the credential's lease and fence;
// what a script may do is stored before it is sent; and a new PIN is never here but
// sealed for the bridge that will use it.
package unblock

import (
	"encoding/json"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"strings"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/table"
)

// Kind is what an operation is for.
type Kind string

// The kinds.
const (
	// Unblock resets a card's PIN, and changes its PUK.
	Unblock Kind = "unblock"
	// Reconcile finds out which PUK a card has, after an outcome was unknown. Pinward
	// begins it by itself when it sees the card.
	Reconcile Kind = "reconcile"
	// Rotate changes a PUK that was told to somebody. Pinward begins it by itself when it
	// sees the card.
	Rotate Kind = "rotate"
)

// State is how far an operation is.
type State string

// The states.
const (
	Requested State = "requested" // the person has to prove who they are
	Proven    State = "proven"    // it has the lease, and waits for the new PIN
	Running   State = "running"   // a script is under way
	Succeeded State = "succeeded"
	Failed    State = "failed"
	// Unknown: a script was sent, and what came of it is not known.
	Unknown State = "unknown"
	// Reconciled: it was unknown, and is known now: see Outcome.
	Reconciled State = "reconciled"
)

// Finished tells whether nothing more is to be done, but perhaps to find out.
func (s State) Finished() bool {
	return s == Succeeded || s == Failed || s == Unknown || s == Reconciled
}

// Reasons of an operation that failed, besides those of card.Reason. They are stable.
const (
	ReasonCancelled  = "cancelled"
	ReasonExpired    = "expired"    // nobody went on with it in time
	ReasonWrongCode  = "wrongCode"  // too many wrong codes
	ReasonMail       = "mail"       // the code could not be mailed
	ReasonOvertaken  = "overtaken"  // another operation took over
	ReasonNoPUK      = "noPUK"      // no PUK, or no admin key, is known for the card
	ReasonNoAnswer   = "noAnswer"   // the bridge did not answer; nothing was changed
	ReasonReaderBusy = "readerBusy" // another program holds the card, or it is silent; nothing was changed
	ReasonBridgeGone = "bridgeGone" // the bridge was not connected; nothing was changed
)

// Operation is one unblock of one card.
type Operation struct {
	ID         string // ULID
	Kind       Kind
	Credential string
	Channel    credential.Channel // of an Unblock
	By         audit.Actor        // who asked for it
	// Statement is how an operator has identified the person.
	Statement string
	// Bridge is where the card is to be, and Place where it was when the first script was
	// made.
	Bridge string
	Place  Place

	State State
	// Until is when the state is over if nobody goes on.
	Until time.Time
	Proof Proof
	// Fence is that of its lease, from Proven on.
	Fence int64
	// PIN is the new PIN, sealed for the bridge; Typed says that the bridge's terminal
	// has it instead.
	PIN   *relay.SealedPIN
	Typed bool
	// Violations say why the bridge did not take the PIN given last.
	Violations []relay.Violation

	// Card is the state whose script, the part Part, was stored last; Continue tells that
	// it goes on in the transaction of the part before.
	Card     card.State
	Part     int
	Continue bool
	// Awaits: that script's result has not come yet, and can be taken if nobody else has
	// had the lease since.
	Awaits bool
	// PINTries are those that the card told before, if it did.
	PINTries card.RetryCounter

	Outcome   card.Outcome
	Reason    string  // of Failed and Unknown; with Succeeded, why the PUK was not changed
	TriesLeft int     // of the PUK, with some reasons
	SW        apdu.SW // what the card answered, if that was it
	Notice    Notice  // to the holder, that the PIN was reset
	CreatedAt time.Time
	UpdatedAt time.Time
	Version   int64
}

// Place is a card in a reader.
type Place struct {
	Session   relay.Session
	Reader    string
	Insertion string
}

// Proof is how a person proves who they are, by a code that was mailed.
type Proof struct {
	Code      string // keyed hash of the code; "" with an operator
	SentTo    string // masked
	TriesLeft int
	At        time.Time // when it was proven
}

// Notice is the mail that tells the holder.
type Notice struct {
	State    NoticeState
	At       time.Time // planned: when to send; else when it came to this
	Attempts int
	Reason   string // coded
}

// NoticeState is how far a notice is.
type NoticeState string

// The states of a notice.
const (
	NoNotice      NoticeState = ""
	NoticePlanned NoticeState = "planned"
	NoticeSent    NoticeState = "sent"
	NoticeFailed  NoticeState = "failed"
	NoticeSkipped NoticeState = "skipped" // nobody can be told: no holder, address or messaging configuration
)

// mailed tells whether the person proves, or has proven, who they are by a mailed code.
func (op Operation) mailed() bool {
	return op.Channel == credential.SelfService || op.Proof.SentTo != ""
}

// due tells when the sweep has to look at it.
func (op Operation) due() (time.Time, bool) {
	switch {
	case !op.State.Finished():
		return op.Until, true
	case op.Notice.State == NoticePlanned:
		return op.Notice.At, true
	}
	return time.Time{}, false
}

// Validate reports everything that is wrong with the operation.
func (op Operation) Validate() error {
	var vs problem.Violations
	if n := utf8.RuneCountInString(op.Statement); n > 500 || !utf8.ValidString(op.Statement) || strings.ContainsFunc(op.Statement, unicode.IsControl) {
		vs.Add("length", "statement", "must be at most 500 characters, without control characters")
	}
	if op.Credential == "" || op.Bridge == "" || op.Kind == "" || op.State == "" {
		vs.Add("missing", "operation", "lacks its credential, bridge, kind or state")
	}
	if op.PIN != nil {
		vs.Under("pin", op.PIN.Validate())
	}
	return vs.Err()
}

// Subject names an operation in the audit log.
func Subject(id string) string { return "unblock/" + id }

type stored struct {
	Tenant     table.TenantID     `json:"tenant"`
	ID         string             `json:"id"`
	Kind       Kind               `json:"kind"`
	Credential string             `json:"credential"`
	Channel    credential.Channel `json:"channel,omitempty"`
	ByKind     audit.ActorKind    `json:"byKind"`
	ByID       string             `json:"byId,omitempty"`
	ByName     string             `json:"byName,omitempty"`
	Statement  string             `json:"statement,omitempty"`
	Bridge     string             `json:"bridge"`
	Place      Place              `json:"place,omitzero"`
	State      State              `json:"state"`
	Until      time.Time          `json:"until,omitzero"`
	Code       string             `json:"code,omitempty"`
	SentTo     string             `json:"sentTo,omitempty"`
	TriesLeft  int                `json:"codeTriesLeft,omitzero"`
	ProvenAt   time.Time          `json:"provenAt,omitzero"`
	Fence      int64              `json:"fence,omitzero"`
	PIN        *relay.SealedPIN   `json:"pin,omitempty"`
	Typed      bool               `json:"typed,omitzero"`
	Violations []relay.Violation  `json:"violations,omitempty"`
	Card       *card.State        `json:"card,omitempty"`
	Part       int                `json:"part,omitzero"`
	Continue   bool               `json:"continue,omitzero"`
	Awaits     bool               `json:"awaits,omitzero"`
	PINTries   card.RetryCounter  `json:"pinTries,omitzero"`
	Outcome    card.Outcome       `json:"outcome,omitzero"`
	Reason     string             `json:"reason,omitempty"`
	PUKTries   int                `json:"pukTries,omitzero"`
	SW         apdu.SW            `json:"sw,omitzero"`
	Notice     Notice             `json:"notice,omitzero"`
	CreatedAt  time.Time          `json:"createdAt"`
	UpdatedAt  time.Time          `json:"updatedAt"`
}

type record struct {
	tenant table.TenantID
	Operation
}

// keepFor is how long operations are kept once nothing is to be done about them.
const keepFor = 2 * 365 * 24 * time.Hour

// Item implements table.Record.
func (r record) Item() (table.Item, error) {
	op := r.Operation
	s := stored{r.tenant, op.ID, op.Kind, op.Credential, op.Channel, op.By.Kind, op.By.ID, op.By.Name, op.Statement, op.Bridge, op.Place, op.State, op.Until,
		op.Proof.Code, op.Proof.SentTo, op.Proof.TriesLeft, op.Proof.At, op.Fence, op.PIN, op.Typed, op.Violations, nil, op.Part,
		op.Continue, op.Awaits, op.PINTries, op.Outcome, op.Reason, op.TriesLeft, op.SW, op.Notice, op.CreatedAt, op.UpdatedAt}
	if op.Card != (card.State{}) {
		s.Card = &op.Card
	}
	data, err := json.Marshal(s)
	item := table.Item{
		Key:       table.UnblockKey(r.tenant, op.ID),
		Indexes:   []table.IndexKey{table.UnblockListed(r.tenant, op.ID), table.UnblockOf(r.tenant, op.Credential, op.ID)},
		ExpiresAt: op.CreatedAt.Add(keepFor),
		Data:      data,
	}
	if at, ok := op.due(); ok {
		item.Indexes = append(item.Indexes, table.UnblockDue(r.tenant, op.ID, at))
	}
	return item, err
}

// decode returns also whose operation it is, which the sweep learns only here.
func decode(item table.Item) (table.TenantID, Operation, error) {
	var s stored
	if err := item.Decode(&s); err != nil {
		return "", Operation{}, err
	}
	op := Operation{
		ID: s.ID, Kind: s.Kind, Credential: s.Credential, Channel: s.Channel, By: audit.Actor{Kind: s.ByKind, ID: s.ByID, Name: s.ByName},
		Statement: s.Statement, Bridge: s.Bridge, Place: s.Place, State: s.State, Until: s.Until,
		Proof: Proof{s.Code, s.SentTo, s.TriesLeft, s.ProvenAt}, Fence: s.Fence, PIN: s.PIN, Typed: s.Typed, Violations: s.Violations,
		Part: s.Part, Continue: s.Continue, Awaits: s.Awaits, PINTries: s.PINTries, Outcome: s.Outcome, Reason: s.Reason,
		TriesLeft: s.PUKTries, SW: s.SW, Notice: s.Notice, CreatedAt: s.CreatedAt, UpdatedAt: s.UpdatedAt, Version: item.Version,
	}
	if s.Card != nil {
		op.Card = *s.Card
	}
	return s.Tenant, op, nil
}

func put(t table.TenantID, op Operation) table.Op {
	return table.Put(record{t, op}, table.After(op.Version))
}

// Sentence says to people what came of an operation and what to do; "" while it is under
// way.
func (op Operation) Sentence() string {
	switch op.State {
	case Succeeded:
		switch {
		case op.Kind == Reconcile:
			return "It is known again which PUK the card has."
		case op.Kind == Rotate:
			return "The card has a new PUK, which nobody knows."
		case op.Outcome.PUK == card.No || op.Outcome.PUK == card.Unknown:
			return "The card has its new PIN. Its PUK was not changed: that is made good when the card is seen again."
		}
		return "The card has its new PIN."
	case Reconciled:
		switch op.Outcome.PIN {
		case card.Yes:
			return "The card has its new PIN after all."
		case card.No:
			return "The PIN was not reset. Begin anew."
		}
		return "Whether the card has its new PIN cannot be told: try it, and if it is refused, begin anew."
	case Unknown:
		if op.Kind == Rotate {
			return "The answer was lost: whether the card has its new PUK is found out when it is seen again."
		}
		return "The answer was lost: whether the card has its new PIN is not known. Put the card in again; then it is found out."
	case Failed:
		return op.failure()
	}
	return ""
}

func (op Operation) failure() string {
	switch op.Reason {
	case ReasonCancelled:
		return "It was cancelled. Nothing was changed."
	case ReasonExpired:
		return "It was not gone on with in time. Nothing was changed; begin anew."
	case ReasonWrongCode:
		return "Too many wrong codes were given. Begin anew, and a new code is mailed."
	case ReasonMail:
		return "The code could not be mailed. Try again later, or ask an operator."
	case ReasonOvertaken:
		return "Another unblock of this card has taken over."
	case ReasonNoPUK:
		return "Nothing is known that could reset this card's PIN: an operator has to enter its PUK or admin key first."
	case ReasonNoAnswer:
		return "The bridge did not answer. Nothing was changed; begin anew."
	case ReasonReaderBusy:
		return "Another program uses the card, or the card does not answer. Nothing was changed: put it in again, or try later."
	case ReasonBridgeGone:
		return "The bridge is not connected. Nothing was changed; begin anew when it is."
	}
	return card.Failure{Reason: card.Reason(op.Reason), TriesLeft: op.TriesLeft, SW: op.SW}.Sentence()
}

// String names it for logs.
func (op Operation) String() string {
	return fmt.Sprintf("%s %s of %s (%s)", op.Kind, op.ID, op.Credential, op.State)
}
