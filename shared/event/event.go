// Package event keeps what has happened, for trigger rules to act on: what tenants' systems
// tell, and what happens in Pinward itself. Its invariants: an id is stored once, so an event
// is acted on once; and an event of Pinward's own is stored in the Write of what it tells
// of, so neither is there without the other.
package event

import (
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// Version is that of the catalogue of types: it rises when a type changes its meaning.
const Version = 1

// Type is what kind of thing happened.
type Type string

// What tenants' systems tell. Types of their own begin with CustomPrefix.
const (
	PrintJobSubmitted Type = "print-job.submitted"
	UserSignedIn      Type = "user.signed-in"
	CardPresented     Type = "card.presented"
)

// What happens in Pinward itself.
const (
	UserCreated          Type = "user.created"
	UserImported         Type = "user.imported"
	PINSet               Type = "pin.set"
	PINExpiring          Type = "pin.expiring"
	PINExpired           Type = "pin.expired"
	PINLocked            Type = "pin.locked"
	CredentialRegistered Type = "credential.registered"
	CredentialExpiring   Type = "credential.expiring"
	CredentialBlocked    Type = "credential.blocked"
	UnblockSucceeded     Type = "unblock.succeeded"
	UnblockFailed        Type = "unblock.failed"
	MailBounced          Type = "mail.bounced"
)

// CustomPrefix begins the types that tenants name themselves.
const CustomPrefix = "custom."

// Entry is a type as the catalogue has it.
type Entry struct {
	Type   Type
	Inside bool     // it happens in Pinward; nobody else may tell it
	About  string   // what has happened, for people
	Adds   []string // the attributes it comes with, of those from inside
}

var catalogue = []Entry{
	{PrintJobSubmitted, false, "The user has submitted a print job.", nil},
	{UserSignedIn, false, "The user has signed in somewhere.", nil},
	{CardPresented, false, "The user has presented a card, such as at a reader of a printer.", nil},
	{UserCreated, true, "The user was created.", nil},
	{UserImported, true, "The user was created by an import.", []string{"import"}},
	{PINSet, true, "The user has a new PIN, chosen or generated.", []string{"how"}},
	{PINExpiring, true, "The user's PIN is about to expire: a reminder is due.", []string{"hoursLeft"}},
	{PINExpired, true, "The PIN of the user, or of the user's card, has expired.", []string{"of"}},
	{PINLocked, true, "The user's PIN is locked: too many wrong ones were given.", nil},
	{CredentialRegistered, true, "A card was registered.", []string{"family", "template"}},
	{CredentialExpiring, true, "The PIN of a card is about to expire: a reminder is due.", []string{"daysLeft"}},
	{CredentialBlocked, true, "A card was seen whose PIN is blocked.", []string{"family", "template"}},
	{UnblockSucceeded, true, "A card has a new PIN.", []string{"channel"}},
	{UnblockFailed, true, "An unblock of a card has failed.", []string{"channel", "reason"}},
	{MailBounced, true, "A mail to the user came back, or the user complained of it.", []string{"kind"}},
}

// Catalogue lists all types but custom ones.
func Catalogue() []Entry { return slices.Clone(catalogue) }

var customType = regexp.MustCompile(`^custom(\.[a-z][a-z0-9-]*)+$`)

// Validate reports what is no type; field is its name in the input.
func (t Type) Validate(field string) error {
	if slices.ContainsFunc(catalogue, func(e Entry) bool { return e.Type == t }) ||
		len(t) <= 64 && customType.MatchString(string(t)) {
		return nil
	}
	var names []string
	for _, e := range catalogue {
		names = append(names, string(e.Type))
	}
	return problem.Invalid("unknown", field, "must be one of %s, or a name of your own such as custom.door-opened", strings.Join(names, ", "))
}

// Inside tells whether only Pinward itself may tell events of the type.
func (t Type) Inside() bool {
	return slices.ContainsFunc(catalogue, func(e Entry) bool { return e.Type == t && e.Inside })
}

// Ref names the user whom an event is about, in one way. The zero Ref names nobody.
type Ref struct{ ID, Username, ExternalID, Mail string }

// Source is the way by which an event came.
type Source string

// The sources.
const (
	FromAPI   Source = "api"
	FromQueue Source = "queue"
	FromBus   Source = "bus"
	Inside    Source = "inside"
)

// Event is one thing that happened.
type Event struct {
	// ID is the sender's name for it: 1 to 200 printable characters of ASCII without space.
	// Those of Pinward's own events begin with insidePrefix.
	ID   string
	Type Type
	At   time.Time // when it happened

	Ref  Ref    // of what was sent
	User string // the user's id, once known
	Card string // the credential's id; "" if it is about none

	// Attributes say more. Secrets do so too; they are sealed in the table, shown nowhere, and
	// gone as soon as the event is done.
	Attributes map[string]string
	Secrets    map[string]secret.Text

	// Chain are the rules whose actions led to it, the first one first.
	Chain []string

	Source     Source
	ReceivedAt time.Time
	// Place is its place in the list of the tenant's events, a ULID.
	Place string

	State State
	DueAt time.Time // while waiting: when the sweep goes on with it
	// Runs are what became of it: one for each rule that waited for its type.
	Runs []Run

	Version int64
}

// State is how far an event is.
type State string

// The states.
const (
	Waiting State = "waiting" // rules have not, or not wholly, acted on it
	Done    State = "done"
)

// Run is what a rule made of an event.
type Run struct {
	Rule    string // its id
	Name    string // as it was
	Outcome RunOutcome
	Reason  string // coded: the condition that was not met, or why the chain was cut
	Effects []Effect
	// Rest are the actions that are still to be done, as shared/rule has written them.
	Rest []byte
}

// RunOutcome tells whether a rule acted.
type RunOutcome string

// The outcomes.
const (
	Acted  RunOutcome = "acted"
	NotMet RunOutcome = "notMet" // a condition did not hold
	Cut    RunOutcome = "cut"    // the rule is in the event's chain, or that is too long
)

// Effect is what came of one action.
type Effect struct {
	Action  string // its kind
	Outcome EffectOutcome
	Reason  string // coded, if it was not done
	About   string // what it made: a delivery's id
}

// EffectOutcome tells whether an action was done.
type EffectOutcome string

// The outcomes.
const (
	EffectDone    EffectOutcome = "done"
	EffectRefused EffectOutcome = "refused" // for good: the reason says why
)

// Limits of an event.
const (
	MaxAttributes     = 20
	MaxAttributeValue = 1000 // bytes
)

var (
	idForm        = regexp.MustCompile(`^[!-~]{1,200}$`)
	attributeForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`)
)

// Validate reports everything that is wrong with the event.
func (e Event) Validate() error {
	var vs problem.Violations
	if !idForm.MatchString(e.ID) {
		vs.Add("form", "id", "must be 1 to 200 printable characters of ASCII, without space")
	} else if strings.HasPrefix(e.ID, insidePrefix) != (e.Source == Inside) {
		vs.Add("reserved", "id", "must not begin with %q", insidePrefix)
	}
	if err := vs.Merge(e.Type.Validate("type")); err != nil {
		return err
	}
	if e.Type.Inside() != (e.Source == Inside) {
		vs.Add("reserved", "type", "is told by Pinward itself only")
	}
	if e.At.IsZero() {
		vs.Add("missing", "time", "is needed: when it happened")
	}
	named := 0
	for _, part := range []string{e.Ref.ID, e.Ref.Username, e.Ref.ExternalID, e.Ref.Mail} {
		if part != "" {
			named++
		}
	}
	if named > 1 {
		vs.Add("reference", "user", "name the user by one of id, username, externalId and mail, not by %d of them", named)
	}
	if n := len(e.Attributes) + len(e.Secrets); n > MaxAttributes {
		vs.Add("count", "attributes", "are %d with the secret ones, at most %d are taken", n, MaxAttributes)
		return vs.Err() // a line for each of a million would be no help
	}
	for name, value := range e.Attributes {
		checkAttribute(&vs, "attributes", name, value)
		if _, both := e.Secrets[name]; both {
			vs.Add("repeated", "secretAttributes."+name, "is among the attributes too")
		}
	}
	for name, value := range e.Secrets {
		checkAttribute(&vs, "secretAttributes", name, value.Reveal())
	}
	slices.SortFunc(vs, func(a, b problem.Violation) int { return strings.Compare(a.Field, b.Field) })
	return vs.Err()
}

// checkAttribute repeats no value, and no name that has not the form of one.
func checkAttribute(vs *problem.Violations, field, name, value string) {
	if !attributeForm.MatchString(name) {
		vs.Add("form", field, "has a name that is not 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter")
		return
	}
	switch {
	case len(value) > MaxAttributeValue:
		vs.Add("length", field+"."+name, "is %d bytes, at most %d are taken", len(value), MaxAttributeValue)
	case !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl):
		vs.Add("characters", field+"."+name, "has control characters, or is not UTF-8")
	}
}
