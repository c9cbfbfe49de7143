package unblock_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
)

// drawer is a card at a bridge, by a template of its own.
type drawer struct {
	*desk.Desk
	piece *softcard.Card
	cred  credential.Credential
	b     *desk.Bridge
	pins  int
}

func newDrawer(t *testing.T, change func(*credential.Template)) *drawer {
	t.Helper()
	d := desk.New(t)
	piece, cred := d.Issue(softcard.PivApplet, d.Template("PIV", change))
	b := d.NewBridge(relay.Service)
	b.Insert(piece)
	d.Must(b.Settle())
	return &drawer{Desk: d, piece: piece, cred: cred, b: b}
}

func (d *drawer) create(c credential.Channel) (unblock.Operation, error) {
	return d.Unblocks.Create(d.Context(), d.Core, desk.Admin, unblock.Request{Credential: d.cred.ID, Bridge: d.b.ID, Channel: c, Statement: "known in person"})
}

// finish gives an operation that waits for it a new PIN.
func (d *drawer) finish(op unblock.Operation) unblock.Operation {
	d.Helper()
	d.pins++
	pin := []string{"73915826", "26480597", "60281735", "91357240"}[d.pins%4]
	_, err := d.Unblocks.GivePIN(d.Context(), d.Core, desk.Admin, op.ID, d.b.Seal(op.ID, op.Credential, op.Fence, pin))
	d.Must(err)
	d.Must(d.b.Settle())
	op = d.Operation(op.ID)
	if op.State != unblock.Succeeded {
		d.Errorf("it is %s: %s", op.State, op.Reason)
	}
	return op
}

func (d *drawer) move(to credential.State) {
	d.Helper()
	_, err := d.Credentials.Update(d.Context(), d.Core, desk.Admin, tenant.RoleAdmin, d.cred.ID, 0, func(a *credential.About) { a.State, a.Reason = to, "lost" })
	d.Must(err)
}

// An unblock makes a card active, and renews its flag with the reminders of its template.
func TestUnblockRenewsFlag(t *testing.T) {
	d := newDrawer(t, func(x *credential.Template) { x.Reminders = []credential.Reminder{{DaysBefore: 14}, {DaysBefore: 3}} })
	seen := d.Credential(d.cred.ID)
	if seen.State != credential.Registered || len(seen.ATR) == 0 || seen.HasFlag() {
		t.Errorf("seen, it is %s with ATR %X", seen.State, seen.ATR)
	}
	op, err := d.create(credential.Operator)
	d.Must(err)
	d.finish(op)
	c := d.Credential(d.cred.ID)
	at := c.LastPINChange.At
	want := credential.Notice{Kind: credential.NoticeReminder, Days: 14, State: credential.NoticePlanned, At: at.AddDate(0, 0, 76), Left: []int{3}}
	if diff := cmp.Diff(want, c.Notice); diff != "" || c.State != credential.Active || c.Flagged.How != credential.FlagByReset || !c.PINExpiresAt.Equal(at.AddDate(0, 0, 90)) || c.LastPINChange.How != credential.ResetByOperator {
		t.Errorf("%s, %+v, expires %s (-want +got):\n%s", c.State, c.Flagged, c.PINExpiresAt, diff)
	}
	found, _, err := d.Credentials.Find(t.Context(), desk.Acme, credential.Filter{State: credential.Active, ExpiringBefore: at.AddDate(0, 0, 91)}, "", 5)
	if err != nil || len(found) != 1 {
		t.Errorf("%d found, %v", len(found), err)
	}
	d.Search()
}

// A card that is suspended or retired is not unblocked, whatever was begun before.
func TestUnblockOfSuspended(t *testing.T) {
	for _, state := range []credential.State{credential.Suspended, credential.Retired} {
		d := newDrawer(t, func(*credential.Template) {})
		op, err := d.create(credential.SelfService)
		d.Must(err)
		code := d.Code()
		d.move(state)
		if _, err := d.create(credential.Operator); !errors.Is(err, problem.ErrState) || !strings.Contains(err.Error(), string(state)) {
			t.Errorf("%s: %v", state, err)
		}
		if _, err := d.Unblocks.Prove(t.Context(), d.Core, desk.Admin, op.ID, secret.New(code)); !errors.Is(err, problem.ErrState) {
			t.Errorf("%s, begun before: %v", state, err)
		}
		if actions := d.Actions(d.cred.ID); actions[len(actions)-1] != "unblock.proof refused "+string(state) {
			t.Errorf("%s: %q", state, actions)
		}
	}
}

// Resets are as many as the template says within its days; one begun before the last of them
// is refused too.
func TestUnblockLimit(t *testing.T) {
	d := newDrawer(t, func(x *credential.Template) { x.Limit = credential.Limit{Count: 2, Days: 7} })
	limited := func(what string, err error) {
		t.Helper()
		var limit *problem.LimitError
		if !errors.As(err, &limit) || limit.Code != "tooManyUnblocks" {
			t.Errorf("%s: %v", what, err)
		}
	}
	for range 2 {
		op, err := d.create(credential.Operator)
		d.Must(err)
		mailed, err := d.create(credential.SelfService)
		if err == nil {
			t.Errorf("%s was begun beside another", mailed.ID)
		}
		d.finish(op)
		d.Clock.Pass(time.Hour)
	}
	_, err := d.create(credential.Operator)
	limited("the third", err)
	d.Clock.Pass(7*24*time.Hour - 2*time.Hour)
	begun, err := d.create(credential.SelfService)
	d.Must(err)
	code := d.Code()
	op, err := d.create(credential.Operator)
	d.Must(err)
	d.finish(op)
	_, err = d.Unblocks.Prove(t.Context(), d.Core, desk.Admin, begun.ID, secret.New(code))
	limited("one begun before", err)
	if actions := d.Actions(d.cred.ID); actions[len(actions)-1] != "unblock.proof refused tooManyUnblocks" {
		t.Errorf("%q", actions)
	}
}

// Each channel has the proof that the template says, and is open only if it says so.
func TestChannelProofs(t *testing.T) {
	d := newDrawer(t, func(x *credential.Template) {
		x.Channels = []credential.Channel{credential.Operator, credential.LogonScreen, credential.SelfServiceOffline}
		x.Proofs = map[credential.Channel]credential.Proof{credential.Operator: credential.TwoOperators}
	})
	if _, err := d.create(credential.SelfService); !errors.Is(err, problem.ErrState) {
		t.Errorf("a channel that is closed: %v", err)
	}
	if _, err := d.create(credential.SelfServiceOffline); !strings.Contains(err.Error(), "challenge and response") {
		t.Errorf("a channel that is offline: %v", err)
	}
	op, err := d.create(credential.LogonScreen)
	d.Must(err)
	if op, err = d.Unblocks.Prove(t.Context(), d.Core, desk.Admin, op.ID, secret.New(d.Code())); err != nil || op.State != unblock.Proven {
		t.Errorf("at the logon screen, by a mailed code: %s, %v", op.State, err)
	}
	d.finish(op)
	if how := d.Credential(d.cred.ID).LastPINChange.How; how != credential.ResetBySelfService {
		t.Errorf("it was %s", how)
	}

	// Two operators.
	op, err = d.create(credential.Operator)
	d.Must(err)
	shown, err := d.Unblocks.Show(t.Context(), d.Core, op)
	if err != nil || op.State != unblock.Requested || shown.Next != relay.NextWait {
		t.Errorf("it is %s, next %s, %v", op.State, shown.Next, err)
	}
	if _, err := d.Unblocks.Prove(t.Context(), d.Core, desk.Admin, op.ID, secret.New("123456")); !errors.Is(err, problem.ErrState) {
		t.Errorf("a code that nobody was sent: %v", err)
	}
	approve := func(by audit.Actor, id string) error {
		_, err := d.Unblocks.Approve(t.Context(), d.Core, by, id, "")
		return err
	}
	if err := approve(desk.Admin, op.ID); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("approved by who has asked: %v", err)
	}
	other := audit.Actor{Kind: audit.API, ID: "second"}
	d.Must(approve(other, op.ID))
	if err := approve(other, op.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("approved twice: %v", err)
	}
	d.finish(d.Operation(op.ID))

	late, err := d.create(credential.Operator)
	d.Must(err)
	d.Clock.Pass(15 * time.Minute)
	if err := approve(other, late.ID); err != nil {
		t.Error(err)
	}
	if op := d.Operation(late.ID); op.State != unblock.Failed || op.Reason != unblock.ReasonExpired {
		t.Errorf("approved too late, it is %s %s", op.State, op.Reason)
	}
	request := unblock.Request{Credential: d.cred.ID, Bridge: d.b.ID, Channel: credential.Operator, Statement: "known in person", Unattended: true}
	if _, err := d.Unblocks.Create(t.Context(), d.Core, desk.Admin, request); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("by a kiosk: %v", err)
	}
}

// TestRequestApproval shows what a trigger rule may ask operators for.
func TestRequestApproval(t *testing.T) {
	d := newDrawer(t, func(x *credential.Template) { x.Channels = []credential.Channel{credential.Operator} })
	byRule := audit.Actor{Kind: audit.Rule, ID: "r1", Name: "blocked card"}
	ask := func(card, bridge string, with ...table.Op) (unblock.Operation, error) {
		return d.Unblocks.RequestApproval(t.Context(), d.Core, byRule, card, bridge, func(string) []table.Op { return with })
	}
	for name, err := range map[string]error{
		"no card":        second(ask("", "")),
		"unknown card":   second(ask("piv-00", d.b.ID)),
		"unknown bridge": second(ask(d.cred.ID, "00000000")),
		"in no reader":   second(ask("piv-00", "")),
	} {
		if !errors.Is(err, problem.ErrState) && !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused := table.Check(table.UserKey(desk.Acme, "nobody"), table.IfVersion(1))
	if _, err := ask(d.cred.ID, "", refused); !table.FailedIn(err, []table.Op{refused}) {
		t.Errorf("with an op whose condition does not hold: %v", err)
	}
	op, err := ask(d.cred.ID, "")
	if err != nil || op.State != unblock.Requested || op.Bridge != d.b.ID {
		t.Fatalf("it is %s at %s, %v", op.State, op.Bridge, err)
	}
	operator := audit.Actor{Kind: audit.API, ID: "operator"}
	if _, err := d.Unblocks.Approve(t.Context(), d.Core, operator, op.ID, " "); err == nil || !strings.Contains(err.Error(), "how the person was identified") {
		t.Errorf("approved without a word: %v", err)
	}
	op, err = d.Unblocks.Approve(t.Context(), d.Core, operator, op.ID, "staff badge")
	if err != nil || op.State != unblock.Proven || op.Statement != "staff badge" {
		t.Errorf("approved, it is %s, said %q, %v", op.State, op.Statement, err)
	}
	d.finish(op)

	two := newDrawer(t, func(x *credential.Template) {
		x.Channels = []credential.Channel{credential.Operator}
		x.Proofs = map[credential.Channel]credential.Proof{credential.Operator: credential.TwoOperators}
	})
	if _, err := two.Unblocks.RequestApproval(t.Context(), two.Core, byRule, two.cred.ID, "", func(string) []table.Op { return nil }); !errors.Is(err, problem.ErrState) {
		t.Errorf("where two operators are wanted: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }
