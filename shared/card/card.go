// Package card knows families of smart cards: how a card is told from another,
// how its PIN is reset, and how its PUK is taken into custody, changed, and found
// again when it is in doubt. Each operation is a state machine: a State makes the
// next script for a bridge, and the script's result makes the next State, until it
// is done or failed. Nothing here does I/O, reads a clock or makes random bytes.
//
// Its invariant: a State that is stored before its script is sent, and again before
// anything else once the result is there, never loses a PUK (Custody names every
// slot that may hold it) and never claims what the card may not have done.
//
// Clauses of ISO 7816-4 are those of ISO/IEC 7816-4:2005, those of SP 800-73 of
// NIST SP 800-73-4 part 2 unless part 1 is named.
package card

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// Family is a kind of card. A new one is a file with a value like PIV, its place in
// families, and its apdu.Application.
type Family struct {
	Name string

	application    *apdu.Application
	minPIN, maxPIN int
	alphabets      []pin.Alphabet // that its PINs may have, the usual one first

	// guard is what the step that reads the card id must answer for this id.
	guard func(id []byte) (apdu.Guard, bool)
	// unblock, takeCustody and reconcile are where these operations begin; "" if the
	// family has no such operation.
	unblock, takeCustody, reconcile Leg
	legs                            map[Leg]leg
}

// families in the order in which a card is asked for them.
var families = []*Family{PIV, GIDS}

// Families returns all families, in the order in which a card is asked for them.
func Families() []*Family { return slices.Clone(families) }

// FamilyNamed returns the family of that name, or problem.ErrNotFound.
func FamilyNamed(name string) (*Family, error) {
	for _, f := range families {
		if f.Name == name {
			return f, nil
		}
	}
	return nil, fmt.Errorf("card family %q: %w", name, problem.ErrNotFound)
}

// HasPUK tells whether the PINs of such cards are reset by a PUK; those of others are by an
// admin key.
func (f *Family) HasPUK() bool { return f.takeCustody != "" }

// Alphabets returns what the PINs of such cards may consist of, the usual one first.
func (f *Family) Alphabets() []pin.Alphabet { return slices.Clone(f.alphabets) }

// Policy returns the usual policy for the PINs of such cards.
func (f *Family) Policy() pin.Policy {
	p := pin.Default()
	p.MinLength, p.MaxLength, p.Alphabet = f.minPIN, f.maxPIN, f.alphabets[0]
	p.DisallowContext, p.History, p.MinLengthByUsers, p.ExpirationHours, p.NotifyHoursBefore = false, 0, false, 0, nil
	return p
}

// CheckPolicy returns an InvalidError if the policy is not valid, or lets a PIN
// through that such a card must not get. There are cards that set it all the same:
// the policy's verdict is all that keeps a PIN of three digits off them. Rules that need
// to know more than the PIN are refused, for only a bridge sees it.
func (f *Family) CheckPolicy(p pin.Policy) error {
	var vs problem.Violations
	vs.Under("policy", p.Validate())
	if p.MinLength < f.minPIN || p.MaxLength > f.maxPIN {
		vs.Add("range", "policy.minLength", "must be at least %d, and maxLength at most %d, for %s cards", f.minPIN, f.maxPIN, f.Name)
	}
	if !slices.Contains(f.alphabets, p.Alphabet) {
		vs.Add("inconsistent", "policy.alphabet", "must be one of %v for %s cards", f.alphabets, f.Name)
	}
	for _, rule := range []struct {
		field string
		on    bool
	}{
		{"disallowContext", p.DisallowContext}, {"history", p.History > 0}, {"minLengthByUsers", p.MinLengthByUsers},
		{"expirationHours", p.ExpirationHours > 0}, {"notifyHoursBefore", len(p.NotifyHoursBefore) > 0},
	} {
		if rule.on {
			vs.Add("notForCards", "policy."+rule.field, "cannot be kept for the PINs of cards, which only a bridge sees; turn it off")
		}
	}
	return vs.Err()
}

// Unblock begins the reset of a card's PIN, and with a PUK its change from the one
// in custody to that in the slot next. With a custody just claimed it sets a card's
// first PIN and takes custody in one. A family without PUKs takes no custody: the
// zero Custody, and 0. An error that is a Failure says why it must not begin.
func (f *Family) Unblock(id string, c Custody, next int) (State, error) {
	s, err := f.begin(id, f.unblock, c)
	if err != nil || !f.HasPUK() {
		return s, err
	}
	s.Custody, err = c.propose(next)
	return s, err
}

// TakeCustody begins the change of a card's PUK from the one in custody, such as a
// factory's that was claimed, to that in the slot next.
func (f *Family) TakeCustody(id string, c Custody, next int) (State, error) {
	s, err := f.begin(id, f.takeCustody, c)
	if err != nil {
		return s, err
	}
	s.Custody, err = c.propose(next)
	return s, err
}

// Reconcile begins to find out which PUK a card has; see Custody. It is done when
// the card has taken a PUK, and Custody names its slot. All its scripts need a newer
// fence than the operation in doubt had, also the first, which holds no secret: once
// that is answered, no older script can change the card any more.
func (f *Family) Reconcile(id string, c Custody) (State, error) {
	return f.begin(id, f.reconcile, c)
}

func (f *Family) begin(id string, at Leg, c Custody) (State, error) {
	if at == "" {
		return State{}, Failure{Reason: NotSupported}
	}
	if _, ok := f.guard(unhex(id)); !ok {
		return State{}, problem.Invalid("malformed", "id", "must be a card id of the family %s", f.Name)
	}
	return State{Version: version, Family: f.Name, ID: id, Leg: at, Custody: c, Before: c}, nil
}

// Identify begins to find out what card it is. With askPIN a PIV card that tells its
// tries in no other way is asked by an empty VERIFY. That costs nothing by SP 800-73,
// 3.2.1, but there are cards that count it as a wrong PIN: it is not for every
// insertion of a card, only for one whose PIN is about to be reset.
func Identify(askPIN bool) State {
	return State{Version: version, Leg: legFind, AskPIN: askPIN}
}

// version is that of State.
const version = 1

// State is where an operation on a card stands between two scripts. It is plain
// data without secrets, to be stored as it is; two can be compared.
type State struct {
	Version int
	Family  string // "" until it is found
	ID      string // the card's, upper-case hex; "" to identify
	Leg     Leg
	AskPIN  bool // see Identify

	// Custody is the card's as it must be stored, with the credential, before this
	// state's script is sent: what the script may do is written ahead in it.
	Custody Custody
	// Before is what Custody becomes again if the script presents no PUK.
	Before Custody
	// Challenge, in hex, is what a GIDS card wants an answer to.
	Challenge string

	Identity Identity // of Identify, once done
	Outcome  Outcome
	// Failure is why it failed or, when an unblock is done, why the PUK was not
	// changed.
	Failure Failure
}

// Leg names a script of an operation, or its end.
type Leg string

// The ends. An Unblock is Done if the PIN is reset, whatever became of the PUK.
const (
	Done   Leg = "done"
	Failed Leg = "failed"
)

// legFind is the first of Identify: which family is it?
const legFind Leg = "find"

// Finished tells whether there is no further script.
func (s State) Finished() bool { return s.Leg == Done || s.Leg == Failed }

// Outcome is what an operation has done to the card, as far as is known.
type Outcome struct {
	PIN Effect // was it reset?
	// PUK: was it changed? Once Reconcile is Done: by the operation that was in doubt,
	// if one was; if that was an unblock, Yes says that its PIN was reset too.
	PUK Effect
	// PINTries are those after the reset.
	PINTries RetryCounter
}

// Effect says whether something was done; "" if it was not intended.
type Effect string

// The effects.
const (
	Yes     Effect = "yes"
	No      Effect = "no"
	Unknown Effect = "unknown"
)

// RetryCounter is how many tries a PIN or PUK has.
type RetryCounter struct {
	Known     bool
	TriesLeft int // 0: blocked
	Most      int // left after a right one; 0 if the card does not tell
}

// Identity is what a card tells of itself, in no secrecy.
type Identity struct {
	Family string
	ID     string // upper-case hex; see the families
	// The rest is "" or not Known where the card does not tell.
	CCC      string // PIV: the card identifier of the CCC, upper-case hex
	Label    string // of the application
	Serial   string // decimal
	Version  string // "5.4.0"
	PIN, PUK RetryCounter
}

// Materials are what scripts are made of besides the state. Each of the functions is
// called only for a secret that the script will hold, so that every read can be
// accounted for. Those that the operation has no use for may be nil.
type Materials struct {
	PUK      func(slot int) (secret.Text, error)
	AdminKey func() (secret.Text, error) // its bytes, not in hex
	Policy   pin.Policy                  // for the new PIN
}

// Script is what a bridge is to run, less what the caller numbers and dates.
type Script struct {
	Steps []apdu.Step
	// Policy is what the bridge holds the new PIN against before it touches the card;
	// nil if the operation sets none. In an operation of two scripts both have it, for
	// a person cannot be asked between them.
	Policy *pin.Policy
	// Hold asks the bridge to keep the transaction for the operation's next script:
	// with the transaction the card would forget this one.
	Hold bool
}

// NewPIN is the name of the slot for the new PIN.
const NewPIN = "newPIN"

// leg is a script of an operation.
type leg struct {
	steps  int
	script func(State, Materials) ([]apdu.Step, error)
	// next is given a result that has the shape of one from this script.
	next func(State, apdu.Result) State

	changes    bool // a PIN or PUK on the card
	policy     bool // is needed, now or in the next script, for a new PIN
	hold       bool
	reconciles bool
}

var find = leg{steps: len(families), script: findScript, next: found}

func (s State) leg() (leg, error) {
	if s.Version != version {
		return leg{}, fmt.Errorf("card state of version %d, not %d: %w", s.Version, version, problem.ErrState)
	}
	if s.Leg == legFind {
		return find, nil
	}
	f, err := FamilyNamed(s.Family)
	if err != nil {
		return leg{}, err
	}
	l, ok := f.legs[s.Leg]
	if !ok {
		return leg{}, fmt.Errorf("card state %q of %s has no script: %w", s.Leg, s.Family, problem.ErrState)
	}
	return l, nil
}

// Changes tells whether the next script may change a PIN or PUK on the card: the
// state, and its Custody with the credential, must be stored before it is sent.
func (s State) Changes() bool {
	l, err := s.leg()
	return err == nil && l.changes
}

// Reconciles tells whether the next script is one of Reconcile.
func (s State) Reconciles() bool {
	l, err := s.leg()
	return err == nil && l.reconciles
}

// Holds tells whether the next script is to hold the transaction for the one after it.
func (s State) Holds() bool {
	l, err := s.leg()
	return err == nil && l.hold
}

// Script makes the next script. If it Changes a card with a PUK, steps marked Secret
// hold PUKs: apdu.Script.Wipe when it is sent.
func (s State) Script(m Materials) (Script, error) {
	l, err := s.leg()
	if err != nil {
		return Script{}, err
	}
	script := Script{Hold: l.hold}
	if l.policy {
		f, err := FamilyNamed(s.Family)
		if err == nil {
			err = f.CheckPolicy(m.Policy)
		}
		if err != nil {
			return Script{}, err
		}
		script.Policy = &m.Policy
	}
	script.Steps, err = l.script(s, m)
	if err != nil {
		return Script{}, fmt.Errorf("make script %s of %s: %w", s.Leg, s.Family, err)
	}
	return script, nil
}

// Next makes the state after the result of this state's script. An error is only for
// a state that has no script.
func (s State) Next(r apdu.Result) (State, error) {
	l, err := s.leg()
	if err != nil {
		return s, err
	}
	switch {
	case !fits(r, l.steps):
		return s.NoResult(), nil
	case r.End == apdu.Refused: // nothing was sent
		s = s.effects(l, No).fail(Failure{Reason: ScriptRefused})
		s.Custody = s.Before
		return s, nil
	}
	return l.next(s, r), nil
}

// NoResult is the state when no result is to be expected any more. Should it come
// all the same, Next of the state before is right, if nobody has gone on from this.
func (s State) NoResult() State {
	if l, err := s.leg(); err == nil && l.changes {
		return s.effects(l, Unknown).fail(Failure{Reason: OutcomeUnknown})
	}
	return s.fail(Failure{Reason: CardRemoved})
}

// effects sets all that this leg intends. Those of a Reconcile are another operation's.
func (s State) effects(l leg, e Effect) State {
	if l.policy {
		s.Outcome.PIN = e
	}
	if s.Custody.Stage == Open && l.changes {
		s.Outcome.PUK = e
	}
	return s
}

// fits tells whether a result is one of a script with that many steps.
func fits(r apdu.Result, steps int) bool {
	answers := len(r.Responses)
	switch r.End {
	case apdu.Done:
		return r.Step == steps && answers == steps
	case apdu.Unexpected, apdu.Mismatch:
		return r.Step < steps && answers == r.Step+1
	case apdu.Lost:
		return r.Step < steps && answers == r.Step
	case apdu.Refused:
		return answers == 0
	}
	return false
}

func (s State) done() State {
	s.Leg = Done
	return s
}

func (s State) fail(f Failure) State {
	s.Leg, s.Failure = Failed, f
	return s
}

// answered returns the SW of a step, if it was answered.
func answered(r apdu.Result, step int) (apdu.SW, bool) {
	if step < len(r.Responses) {
		return r.Responses[step].SW, true
	}
	return 0, false
}

// sent tells whether the card may have seen a step's command.
func sent(r apdu.Result, step int) bool {
	return step < len(r.Responses) || r.End == apdu.Lost && r.Step == step && r.Uncertain
}

// effect tells whether the card has carried out a step.
func effect(r apdu.Result, step int) Effect {
	sw, ok := answered(r, step)
	switch {
	case !sent(r, step):
		return No
	case !ok:
		return Unknown
	case sw == apdu.SWOK:
		return Yes
	}
	switch sw >> 8 {
	// The command was not carried out (ISO 7816-4, tables 5 and 6); 63 is here a PIN or
	// PUK that was wrong. All others, such as 65 and 6F, leave it open.
	case 0x63, 0x64, 0x67, 0x68, 0x69, 0x6A, 0x6B, 0x6C, 0x6D, 0x6E:
		return No
	}
	return Unknown
}

// value returns the data object at a path in the answer to a step, if it is there.
func value(r apdu.Result, step int, path ...apdu.Tag) ([]byte, bool) {
	if sw, ok := answered(r, step); !ok || sw != apdu.SWOK {
		return nil, false
	}
	v, err := apdu.FindTLV(r.Responses[step].Data, path...)
	return v, err == nil
}

// Instructions of ISO 7816-4, 7 (SP 800-73, 3) that the families share.
const (
	insVerify              = 0x20
	insResetRetryCounter   = 0x2C
	insSelect              = 0xA4
	insGeneralAuthenticate = 0x87
	insGetData             = 0xCB

	refPIN = 0x80 // key reference (SP 800-73 part 1, table 4b)
	le     = 256  // any length
)

var (
	ok       = apdu.Exactly(apdu.SWOK)
	anything = []apdu.Expect{{}} // its answer is not needed
)

// selectStep is SELECT of an application in any version (ISO 7816-4, 7.1.1).
func selectStep(a *apdu.Application, expect []apdu.Expect) apdu.Step {
	return apdu.Step{
		Command: apdu.Command{INS: insSelect, P1: 0x04, Data: a.AID[:a.Shortest], Le: le},
		Expect:  expect,
	}
}

// findScript asks for every family, and nothing else: what one family takes for a
// harmless question may count as a wrong PIN with a card that is of none.
func findScript(State, Materials) ([]apdu.Step, error) {
	var steps []apdu.Step
	for _, f := range families {
		steps = append(steps, selectStep(f.application, anything))
	}
	return steps, nil
}

func found(s State, r apdu.Result) State {
	if r.End != apdu.Done {
		return s.fail(why(r))
	}
	for i, f := range families {
		if r.Responses[i].SW == apdu.SWOK {
			s.Family, s.Leg = f.Name, legIdentify
			s.Identity.Family = f.Name
			return s
		}
	}
	return s.fail(Failure{Reason: NotSupported})
}

// legIdentify is a leg of every family.
const legIdentify Leg = "identify"

// guarded returns the step with the guard that it is this card.
func guarded(step apdu.Step, s State, guard func([]byte) (apdu.Guard, bool)) (apdu.Step, error) {
	g, ok := guard(unhex(s.ID))
	if !ok {
		return step, problem.Invalid("malformed", "id", "must be a card id")
	}
	step.Guards = []apdu.Guard{g}
	return step, nil
}

// printable returns what of a label is printable ASCII.
func printable(b []byte) string {
	b = b[:min(len(b), 64)]
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(b))
}
