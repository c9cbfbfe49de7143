package credential

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

// Who may move a credential to what: a is an administrator, o an operator too, ! with a
// reason only; p is by a new PIN, s by what the card tells.
const allowedMoves = `
              registered  pinToBeSet  active  blocked  suspended  retired
registered    -           o           op      -        o!         o!
pinToBeSet    -           -           op      -        o!         o!
active        -           o           -       os       o!         o!
blocked       -           o           ops     -        o!         o!
suspended     o!          o!          o!      o!       -          o!
retired       -           -           -       -        a!         -
`

func TestMoves(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(allowedMoves), "\n")
	to := strings.Fields(lines[0])
	for _, line := range lines[1:] {
		cells := strings.Fields(line)
		from := State(cells[0])
		for i, cell := range cells[1:] {
			to := State(to[i])
			for _, role := range append(tenant.KeyRoles(), tenant.RolePlatform, tenant.RoleSelf, "") {
				may := role == tenant.RoleAdmin && strings.ContainsAny(cell, "ao") || role == tenant.RoleOperator && strings.Contains(cell, "o")
				if err := checkMove(from, to, role, "other"); (err == nil) != may {
					t.Errorf("%s to %s as %s: %v, want allowed: %t", from, to, role, err, may)
				}
				if err := checkMove(from, to, role, ""); (err == nil) != (may && !strings.Contains(cell, "!")) {
					t.Errorf("%s to %s as %s without a reason: %v", from, to, role, err)
				}
			}
			for _, roles := range [][]tenant.Role{{tenant.RoleOperator}, {tenant.RoleHelpdesk, tenant.RoleAdmin}, {tenant.RoleHelpdesk}} {
				i := slices.IndexFunc(Moves(from, roles), func(m Move) bool { return m.To == to })
				as := roles[len(roles)-1]
				if may := checkMove(from, to, as, "other") == nil; may != (i >= 0) {
					t.Errorf("%s to %s is open to %s: %t, want %t", from, to, roles, i >= 0, may)
				} else if may && Moves(from, roles)[i] != (Move{to, as, strings.Contains(cell, "!")}) {
					t.Errorf("%s to %s is open to %s as %+v", from, to, roles, Moves(from, roles)[i])
				}
			}
			m, _ := moveOf(from, to)
			if m.pin != strings.Contains(cell, "p") || m.seen != strings.Contains(cell, "s") {
				t.Errorf("%s to %s: by a new PIN %t, by the card %t", from, to, m.pin, m.seen)
			}
		}
	}
	if err := checkMove(Retired, Active, tenant.RoleAdmin, "mistake"); !errors.Is(err, problem.ErrState) || !strings.Contains(err.Error(), "only suspended") {
		t.Errorf("the answer does not say what is possible: %v", err)
	}
}

// A suspended card is not unblocked, and what was under way is overtaken; its state waits
// for an unblock that goes on.
func TestSuspend(t *testing.T) {
	w := newWorld(t)
	c := w.piv()
	move := func(to State) (Credential, error) {
		return w.Update(t.Context(), w.core, admin, tenant.RoleOperator, c.ID, 0, func(a *About) { a.State, a.Reason = to, "stolen" })
	}
	leased := w.store(must(c.Take("op", w.Now(), time.Minute))(t))
	if _, err := move(Suspended); !errors.Is(err, problem.ErrState) || !strings.Contains(err.Error(), "cancel it") {
		t.Errorf("during an unblock: %v", err)
	}
	w.pass(time.Minute)
	suspended := must(move(Suspended))(t)
	if suspended.Holds("op", leased.Lease.Fence) {
		t.Error("what was under way goes on")
	}
	if _, err := suspended.Take("another", w.Now(), time.Minute); !errors.Is(err, problem.ErrState) {
		t.Errorf("an unblock of a suspended card: %v", err)
	}
	records := w.audited(acme)
	if r := records[len(records)-1]; r.Reason != "stolen" || r.Details["from"] != "registered" || r.Details["state"] != "suspended" {
		t.Errorf("the record is %+v", r)
	}
	back := must(move(Active))(t)
	if _, err := back.Take("another", w.Now(), time.Minute); err != nil {
		t.Errorf("after it was taken back: %v", err)
	}
	if _, err := w.Update(t.Context(), w.other, admin, tenant.RoleAdmin, c.ID, 0, func(a *About) { a.State = Blocked }); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("by another tenant: %v", err)
	}
	w.indexed()
}

// What a card tells of itself is noted once.
func TestSaw(t *testing.T) {
	w := newWorld(t)
	c := w.piv()
	bridge := audit.Actor{Kind: audit.System, ID: "unblock"}
	saw := func(s Sighting) Credential {
		t.Helper()
		return must(w.Saw(t.Context(), w.core, bridge, c.ID, s))(t)
	}
	told := Sighting{ATR: []byte{0x3B, 0x80}, Serial: "12345", PIN: card.RetryCounter{Known: true, TriesLeft: 3}}
	if got := saw(told); got.Version != 2 || got.Serial != "12345" || !slices.Equal(got.ATR, told.ATR) || got.State != Registered {
		t.Errorf("first seen: %+v", got)
	}
	if got := saw(told); got.Version != 2 {
		t.Errorf("seen again, it was written: version %d", got.Version)
	}
	must(w.Update(t.Context(), w.core, admin, tenant.RoleAdmin, c.ID, 0, func(a *About) { a.State, a.Serial = Active, "mine" }))(t)
	blocked := told
	blocked.PIN.TriesLeft = 0
	if got := saw(blocked); got.State != Blocked || got.Serial != "mine" {
		t.Errorf("blocked: %s, serial %s", got.State, got.Serial)
	}
	unknown := told
	unknown.PIN = card.RetryCounter{}
	if got := saw(unknown); got.State != Blocked {
		t.Errorf("a card that does not tell: %s", got.State)
	}
	if got := saw(told); got.State != Active {
		t.Errorf("three tries left: %s", got.State)
	}
	leased := w.store(must(w.reread(c).Take("op", w.Now(), time.Minute))(t))
	if got := saw(blocked); got.State != Active || got.Version != leased.Version {
		t.Errorf("during an unblock: %s", got.State)
	}
	w.pass(time.Minute)
	must(w.Update(t.Context(), w.core, admin, tenant.RoleAdmin, c.ID, 0, func(a *About) { a.State, a.Reason = Suspended, "lost" }))(t)
	if got := saw(blocked); got.State != Suspended {
		t.Errorf("a suspended card: %s", got.State)
	}
	if d := cmp.Diff([]string{"credential.registered", "credential.updated", "credential.seen", "credential.seen", "credential.updated"},
		slices.DeleteFunc(w.actions(Subject(c.ID)), func(a string) bool { return a == "" })); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	w.indexed()
}
