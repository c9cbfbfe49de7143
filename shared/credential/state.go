package credential

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

// State is where a credential is in its life.
type State string

// The states.
const (
	Registered State = "registered" // known, and its PIN not set through Pinward yet
	PINToBeSet State = "pinToBeSet" // issued without a PIN that its holder knows
	Active     State = "active"
	Blocked    State = "blocked"   // its PIN is blocked
	Suspended  State = "suspended" // for a while: not unblocked, and not reminded
	Retired    State = "retired"   // for good
)

// States lists them all, in the order of a credential's life.
func States() []State { return []State{Registered, PINToBeSet, Active, Blocked, Suspended, Retired} }

// move is a change of state that is allowed.
type move struct {
	from, to State
	roles    []tenant.Role // who may say so
	// pin: a new PIN does it. seen: what the card tells of its PIN does it.
	pin, seen bool
	// why: it needs a reason.
	why bool
}

var (
	admins = []tenant.Role{tenant.RoleAdmin}
	people = []tenant.Role{tenant.RoleAdmin, tenant.RoleOperator}
)

// moves is the one table of what may become of a credential. What is not in it is refused.
//
// A credential that is suspended or retired is not unblocked, and what was under way is
// overtaken. A new PIN leaves it what it is.
var moves = []move{
	{from: Registered, to: PINToBeSet, roles: people},
	{from: Registered, to: Active, roles: people, pin: true},
	{from: Registered, to: Suspended, roles: people, why: true},
	{from: Registered, to: Retired, roles: people, why: true},

	{from: PINToBeSet, to: Active, roles: people, pin: true},
	{from: PINToBeSet, to: Suspended, roles: people, why: true},
	{from: PINToBeSet, to: Retired, roles: people, why: true},

	{from: Active, to: PINToBeSet, roles: people},
	{from: Active, to: Blocked, roles: people, seen: true},
	{from: Active, to: Suspended, roles: people, why: true},
	{from: Active, to: Retired, roles: people, why: true},

	{from: Blocked, to: Active, roles: people, pin: true, seen: true},
	{from: Blocked, to: PINToBeSet, roles: people},
	{from: Blocked, to: Suspended, roles: people, why: true},
	{from: Blocked, to: Retired, roles: people, why: true},

	{from: Suspended, to: Registered, roles: people, why: true},
	{from: Suspended, to: PINToBeSet, roles: people, why: true},
	{from: Suspended, to: Active, roles: people, why: true},
	{from: Suspended, to: Blocked, roles: people, why: true},
	{from: Suspended, to: Retired, roles: people, why: true},

	{from: Retired, to: Suspended, roles: admins, why: true}, // it was a mistake
}

func moveOf(from, to State) (move, bool) {
	i := slices.IndexFunc(moves, func(m move) bool { return m.from == from && m.to == to })
	if i < 0 {
		return move{}, false
	}
	return moves[i], true
}

// Reason is why people moved a credential to another state.
type Reason string

// Reasons lists them all.
func Reasons() []Reason {
	return []Reason{"lost", "stolen", "damaged", "holderLeft", "holderAway", "found", "returned", "replaced", "mistake", "other"}
}

// checkMove returns why somebody may not move a credential, if so.
func checkMove(from, to State, as tenant.Role, why Reason) error {
	if why != "" && !slices.Contains(Reasons(), why) {
		return problem.Invalid("unknown", "reason", "must be %s", list(Reasons()))
	}
	m, ok := moveOf(from, to)
	switch {
	case !slices.Contains(States(), to):
		return problem.Invalid("unknown", "state", "must be %s", list(States()))
	case !ok:
		return fmt.Errorf("%w: a credential that is %s cannot become %s, only %s", problem.ErrState, from, to, list(next(from)))
	case !slices.Contains(m.roles, as):
		return fmt.Errorf("%w: the role %s may not make a credential that is %s %s", problem.ErrForbidden, as, from, to)
	case m.why && why == "":
		return problem.Invalid("missing", "reason", "must say why: %s", list(Reasons()))
	}
	return nil
}

// Move is a change of state that somebody may make.
type Move struct {
	To  State
	As  tenant.Role // of their roles, one that may
	Why bool        // it needs a reason
}

// Moves returns what somebody with the roles may make of a credential.
func Moves(from State, roles []tenant.Role) (open []Move) {
	for _, m := range moves {
		if i := slices.IndexFunc(roles, func(r tenant.Role) bool { return slices.Contains(m.roles, r) }); m.from == from && i >= 0 {
			open = append(open, Move{m.to, roles[i], m.why})
		}
	}
	return open
}

// next are the states that a credential may be moved to.
func next(from State) (to []State) {
	for _, m := range moves {
		if m.from == from {
			to = append(to, m.to)
		}
	}
	return to
}

// list writes words as people read them: "a, b or c".
func list[S ~string](words []S) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(w))
	}
	return b.String()
}

// CheckUnblockable returns problem.ErrState if the card's PIN must not be reset.
func (c Credential) CheckUnblockable() error {
	if c.State == Suspended || c.State == Retired {
		return fmt.Errorf("%w: the card is %s; its PIN is not reset", problem.ErrState, c.State)
	}
	return nil
}
