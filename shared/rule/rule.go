// Package rule keeps a tenant's trigger rules and acts on events by them. Its invariants: what
// a rule does to an event and the note that it was done are one Write, so each action is done
// once however often an event is delivered; a rule acts at most once in a chain of events, and
// a chain has at most MaxChain rules; and a PIN that a rule makes reaches its owner's mail and
// nothing else.
package rule

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/user"
)

// Limits of rules.
const (
	MaxRules   = 100 // a tenant
	MaxActions = 5   // a rule
	MaxChain   = 4   // rules that led to an event

	maxTests   = 10
	maxValues  = 50
	maxPattern = 200
	maxHours   = 10 * 366 * 24
	maxOrder   = 10_000
)

// Rule says what is to be done when something has happened.
type Rule struct {
	ID         string // ULID
	Name       string // for people, 1 to 100 characters
	On         bool
	Order      int // rules of a type act in this order, and then by id
	Event      event.Type
	Conditions Conditions
	Actions    []Action

	CreatedAt time.Time
	UpdatedAt time.Time
	Version   int64
}

// Conditions must all hold. The zero Conditions always do.
type Conditions struct {
	First                 bool  // it is the user's first event of the type
	HasPIN                *bool // the user has a PIN that has not expired
	HasMail               *bool // the user has a mail address
	HasActiveCard         *bool
	Groups                []string // the user is in one of them
	PINOlderThanHours     int      // 0 is any
	PINExpiresWithinHours int      // 0 is any
	Attributes            []Test
	Window                Window
}

// Test is a condition on an attribute: exactly one of Equals, In and Matches is given. What
// is asked of an attribute that an event has not does not hold.
type Test struct {
	Name    string
	Equals  *string
	In      []string
	Matches string // a regular expression (RE2) that the whole value matches
}

// Window is when events count, by the tenant's time zone. The zero Window is always. From
// and To are "15:04"; one that ends before it begins goes on over midnight, and belongs to
// the day that it begins on. Days without From and To are whole.
type Window struct {
	Days     []time.Weekday // none is each
	From, To string
}

// IsZero tells whether it is always.
func (w Window) IsZero() bool { return len(w.Days) == 0 && w.From == "" && w.To == "" }

// Kind is what an action does.
type Kind string

// The kinds of action.
const (
	GeneratePIN    Kind = "generatePIN"    // gives the user a PIN, and mails it
	SetPIN         Kind = "setPIN"         // gives the user the PIN in a secret attribute
	ExpirePIN      Kind = "expirePIN"      // lets the user's PIN expire now
	RequireChange  Kind = "requireChange"  // has the user change the PIN
	SendMail       Kind = "sendMail"       // mails the user
	CallWebhook    Kind = "callWebhook"    // tells another system
	RequestUnblock Kind = "requestUnblock" // asks operators to approve the unblock of the card
)

// Kinds lists them all.
func Kinds() []Kind {
	return []Kind{GeneratePIN, SetPIN, ExpirePIN, RequireChange, SendMail, CallWebhook, RequestUnblock}
}

// Action is one thing to do. What each kind takes of it says takes.
type Action struct {
	Kind Kind

	Length     int          // of GeneratePIN; 0 is the policy's least
	Alphabet   pin.Alphabet // of GeneratePIN; "" is the policy's own
	ValidHours int          // of GeneratePIN; 0 is the policy's
	OneTime    user.OneTime // of GeneratePIN

	Attribute string // of SetPIN: the secret attribute's name
	Messaging string // of GeneratePIN and SendMail: a messaging configuration; "" is that for expiry mails
	Template  string // of GeneratePIN and SendMail: a mail template; "" is the predefined one
	Message   string // of SendMail: what the mail is to say; at most 500 characters
	Endpoint  string // of CallWebhook
}

// takes lists what a kind takes besides its name.
var takes = map[Kind][]string{
	GeneratePIN:    {"length", "alphabet", "validHours", "oneTime", "messaging", "template"},
	SetPIN:         {"attribute"},
	SendMail:       {"messaging", "template", "message"},
	CallWebhook:    {"endpoint"},
	ExpirePIN:      nil,
	RequireChange:  nil,
	RequestUnblock: nil,
}

// OfUser tells whether the action is done to a user.
func (a Action) OfUser() bool { return a.Kind != CallWebhook && a.Kind != RequestUnblock }

// TemplateKind is what the action's mail template must be for; "" if it mails nothing.
func (a Action) TemplateKind() mail.TemplateKind {
	switch a.Kind {
	case GeneratePIN:
		return mail.PINIssued
	case SendMail:
		return mail.Notice
	}
	return ""
}

// Validate reports everything that is wrong with the rule.
func (r Rule) Validate() error {
	var vs problem.Violations
	if n := utf8.RuneCountInString(r.Name); n < 1 || n > 100 || strings.TrimSpace(r.Name) != r.Name || !plain(r.Name) {
		vs.Add("length", "name", "must be 1 to 100 characters, without space around them and control characters")
	}
	if r.Order < 0 || r.Order > maxOrder {
		vs.Add("range", "order", "must be 0 to 10000")
	}
	if err := vs.Merge(r.Event.Validate("event")); err != nil {
		return err
	}
	vs.Under("conditions", r.Conditions.validate())
	switch n := len(r.Actions); {
	case n == 0:
		vs.Add("missing", "actions", "are needed: a rule must do something")
	case n > MaxActions:
		vs.Add("count", "actions", "are %d, a rule has at most %d", n, MaxActions)
	default:
		for i, a := range r.Actions {
			vs.Under(fmt.Sprintf("actions[%d]", i), a.validate())
		}
	}
	return vs.Err()
}

func plain(s string) bool { return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl) }

func (c Conditions) validate() error {
	var vs problem.Violations
	for _, h := range []struct {
		field string
		hours int
	}{{"pinOlderThanHours", c.PINOlderThanHours}, {"pinExpiresWithinHours", c.PINExpiresWithinHours}} {
		if h.hours < 0 || h.hours > maxHours {
			vs.Add("range", h.field, "must be 0 to %d", maxHours)
		}
	}
	if len(c.Groups) > maxValues {
		vs.Add("count", "groups", "are %d, at most %d are taken", len(c.Groups), maxValues)
	}
	for _, g := range c.Groups {
		if g == "" || utf8.RuneCountInString(g) > 64 || !plain(g) {
			vs.Add("length", "groups", "must be names of 1 to 64 characters")
			break
		}
	}
	if len(c.Attributes) > maxTests {
		vs.Add("count", "attributes", "are %d, at most %d are taken", len(c.Attributes), maxTests)
	} else {
		for i, t := range c.Attributes {
			vs.Under(fmt.Sprintf("attributes[%d]", i), t.validate())
		}
	}
	vs.Under("window", c.Window.validate())
	return vs.Err()
}

var attributeName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`)

func (t Test) validate() error {
	var vs problem.Violations
	if !attributeName.MatchString(t.Name) {
		vs.Add("form", "name", "must be 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter")
	}
	given := 0
	for _, is := range []bool{t.Equals != nil, len(t.In) > 0, t.Matches != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		vs.Add("inconsistent", "equals", "give one of equals, in and matches, not %d of them", given)
	}
	if len(t.In) > maxValues {
		vs.Add("count", "in", "has %d values, at most %d are taken", len(t.In), maxValues)
	}
	for _, value := range append(slices.Clone(t.In), deref(t.Equals)) {
		if len(value) > event.MaxAttributeValue {
			vs.Add("length", "in", "has a value of more than %d bytes", event.MaxAttributeValue)
			break
		}
	}
	if len(t.Matches) > maxPattern {
		vs.Add("length", "matches", "is %d bytes, at most %d are taken", len(t.Matches), maxPattern)
	} else if _, err := t.pattern(); err != nil {
		vs.Add("form", "matches", "is no regular expression in RE2's syntax (without look-around and back-references)")
	}
	return vs.Err()
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// pattern is matched in time that grows with the value only, of which there are no more than
// event.MaxAttributeValue bytes.
func (t Test) pattern() (*regexp.Regexp, error) {
	if _, err := regexp.Compile(t.Matches); err != nil { // it could close the parenthesis that is put around it
		return nil, err
	}
	return regexp.Compile(`\A(?:` + t.Matches + `)\z`)
}

func (t Test) holds(attributes map[string]string) bool {
	value, there := attributes[t.Name]
	switch {
	case !there:
		return false
	case t.Equals != nil:
		return value == *t.Equals
	case len(t.In) > 0:
		return slices.Contains(t.In, value)
	}
	p, err := t.pattern()
	return err == nil && p.MatchString(value)
}

func (w Window) validate() error {
	var vs problem.Violations
	for _, d := range w.Days {
		if d < time.Sunday || d > time.Saturday {
			vs.Add("unknown", "days", "must be days of the week")
			break
		}
	}
	if (w.From == "") != (w.To == "") {
		vs.Add("inconsistent", "from", "and to are given both, or neither")
	} else if w.From != "" {
		for _, at := range []struct{ field, clock string }{{"from", w.From}, {"to", w.To}} {
			if _, err := clock(at.clock); err != nil {
				vs.Add("form", at.field, "must be a time such as 08:30, from 00:00 to 24:00")
			}
		}
		if w.From == w.To {
			vs.Add("inconsistent", "to", "must not be the same as from: it would be never")
		}
	}
	return vs.Err()
}

// clock returns how long after midnight a time of day is.
func clock(s string) (time.Duration, error) {
	if s == "24:00" {
		return 24 * time.Hour, nil
	}
	t, err := time.Parse("15:04", s)
	if err != nil || len(s) != 5 {
		return 0, fmt.Errorf("not a time of day")
	}
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, nil
}

// holds goes by what clocks on the wall show, so that a day on which they are put forward or
// back has no other window.
func (w Window) holds(at time.Time, zone *time.Location) bool {
	local := at.In(zone)
	day := func(d time.Weekday) bool { return len(w.Days) == 0 || slices.Contains(w.Days, d) }
	if w.From == "" {
		return day(local.Weekday())
	}
	from, _ := clock(w.From)
	to, _ := clock(w.To)
	now := time.Duration(local.Hour())*time.Hour + time.Duration(local.Minute())*time.Minute + time.Duration(local.Second())*time.Second
	if from < to {
		return day(local.Weekday()) && from <= now && now < to
	}
	return day(local.Weekday()) && from <= now || day((local.Weekday()+6)%7) && now < to
}

func (a Action) validate() error {
	var vs problem.Violations
	allowed, known := takes[a.Kind]
	if !known {
		vs.Add("unknown", "kind", "must be %s", kindNames())
		return vs.Err()
	}
	for _, f := range []struct {
		name  string
		given bool
	}{
		{"length", a.Length != 0}, {"alphabet", a.Alphabet != ""}, {"validHours", a.ValidHours != 0}, {"oneTime", a.OneTime != ""},
		{"attribute", a.Attribute != ""}, {"messaging", a.Messaging != ""}, {"template", a.Template != ""}, {"message", a.Message != ""}, {"endpoint", a.Endpoint != ""},
	} {
		if f.given && !slices.Contains(allowed, f.name) {
			vs.Add("inconsistent", f.name, "is nothing that %s takes", a.Kind)
		}
	}
	if a.Length < 0 || a.Length > 64 {
		vs.Add("range", "length", "must be at most 64")
	}
	if a.ValidHours < 0 || a.ValidHours > maxHours {
		vs.Add("range", "validHours", "must be 0 to %d", maxHours)
	}
	if a.Alphabet != "" && !slices.Contains([]pin.Alphabet{pin.Digits, pin.Alphanumeric, pin.Printable}, a.Alphabet) {
		vs.Add("unknown", "alphabet", "must be %s, %s or %s", pin.Digits, pin.Alphanumeric, pin.Printable)
	}
	if a.OneTime != "" && !slices.Contains([]user.OneTime{user.ChangeAtUse, user.DeletedByUse}, a.OneTime) {
		vs.Add("unknown", "oneTime", "must be %s or %s", user.ChangeAtUse, user.DeletedByUse)
	}
	switch a.Kind {
	case SetPIN:
		if !attributeName.MatchString(a.Attribute) {
			vs.Add("form", "attribute", "must be the name of the secret attribute that has the PIN")
		}
	case CallWebhook:
		if a.Endpoint == "" {
			vs.Add("missing", "endpoint", "is needed: the id of a webhook")
		}
	case SendMail:
		if a.Message == "" && a.Template == "" {
			vs.Add("missing", "message", "is needed: the predefined mail says what it is")
		}
		if utf8.RuneCountInString(a.Message) > 500 || !utf8.ValidString(a.Message) {
			vs.Add("length", "message", "must be at most 500 characters")
		}
	}
	return vs.Err()
}

func kindNames() string {
	var names []string
	for _, k := range Kinds() {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

// Warnings tell what of a valid rule cannot be meant: conditions that never hold together,
// and actions that their conditions make impossible.
func (r Rule) Warnings() []problem.Violation {
	var vs problem.Violations
	c := r.Conditions
	is := func(b *bool, want bool) bool { return b != nil && *b == want }
	if is(c.HasPIN, false) && (c.PINOlderThanHours > 0 || c.PINExpiresWithinHours > 0) {
		vs.Add("contradiction", "conditions.hasPin", "a user without a PIN has none that is old or about to expire: the rule never acts")
	}
	if r.Event == event.PINExpired && is(c.HasPIN, true) {
		vs.Add("contradiction", "conditions.hasPin", "whose PIN has expired has none: the rule acts only if another was set meanwhile, or for a card's PIN")
	}
	if is(c.HasMail, false) && slices.ContainsFunc(r.Actions, func(a Action) bool { return a.Kind == GeneratePIN || a.Kind == SendMail }) {
		vs.Add("contradiction", "conditions.hasMail", "a user without a mail address can be mailed nothing")
	}
	if is(c.HasPIN, false) && len(r.Actions) > 0 && (r.Actions[0].Kind == ExpirePIN || r.Actions[0].Kind == RequireChange) {
		vs.Add("contradiction", "actions[0]", "a user without a PIN has none to expire or to change")
	}
	for i, t := range c.Attributes {
		for j, u := range c.Attributes[:i] {
			if t.Name == u.Name && !t.compatible(u) {
				vs.Add("contradiction", fmt.Sprintf("conditions.attributes[%d]", i), "and attributes[%d] never hold together: the rule never acts", j)
			}
		}
	}
	makes := 0
	for i, a := range r.Actions {
		if a.Kind == GeneratePIN || a.Kind == SetPIN {
			makes++
			if makes > 1 {
				vs.Add("contradiction", fmt.Sprintf("actions[%d]", i), "gives a PIN in place of the one that an action before has given")
			}
		}
	}
	return vs
}

// compatible tells whether a value may pass both tests, as far as values are named.
func (t Test) compatible(u Test) bool {
	values := func(t Test) []string {
		if t.Equals != nil {
			return []string{*t.Equals}
		}
		return t.In
	}
	candidates := values(t)
	if candidates == nil {
		candidates = values(u)
	}
	if candidates == nil {
		return true // two patterns
	}
	return slices.ContainsFunc(candidates, func(v string) bool {
		at := map[string]string{t.Name: v}
		return t.holds(at) && u.holds(at)
	})
}
