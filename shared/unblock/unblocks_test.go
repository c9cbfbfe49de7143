package unblock_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

const newPIN = "73915826"

// asked is a card at a bridge.
type asked struct {
	*desk.Desk
	piece *softcard.Card
	cred  credential.Credential
	b     *desk.Bridge
}

func ask(t *testing.T, change ...func(*credential.Template)) *asked {
	t.Helper()
	d := desk.New(t)
	piece, cred := d.Issue(softcard.PivApplet, d.Template("PIV", change...))
	b := d.NewBridge(relay.Service)
	b.Insert(piece)
	d.Must(b.Settle())
	return &asked{d, piece, cred, b}
}

func (a *asked) request(c credential.Channel) unblock.Request {
	return unblock.Request{Credential: a.cred.ID, Bridge: a.b.ID, Channel: c, Statement: "known in person"}
}

func (a *asked) create(c credential.Channel) (unblock.Operation, error) {
	return a.Unblocks.Create(a.Context(), a.Core, desk.Admin, a.request(c))
}

func (a *asked) must(op unblock.Operation, err error) unblock.Operation {
	a.Helper()
	a.Must(err)
	return op
}

func (a *asked) prove(id, code string) (unblock.Operation, error) {
	return a.Unblocks.Prove(a.Context(), a.Core, desk.Admin, id, secret.New(code))
}

func (a *asked) give(op unblock.Operation, pin string) (unblock.Operation, error) {
	return a.Unblocks.GivePIN(a.Context(), a.Core, desk.Admin, op.ID, a.b.Seal(op.ID, op.Credential, op.Fence, pin))
}

func wrongCode(err error) bool {
	var invalid *problem.InvalidError
	return errors.As(err, &invalid) && invalid.Violations[0].Code == "wrong" && invalid.Violations[0].Field == "code"
}

func TestWrongCodes(t *testing.T) {
	a := ask(t)
	op := a.must(a.create(credential.SelfService))
	code := a.Code()
	for left := 4; left >= 0; left-- {
		got, err := a.prove(op.ID, desk.Wrong(code))
		if !wrongCode(err) || !strings.Contains(err.Error(), fmt.Sprintf("tries left: %d", left)) || strings.Contains(err.Error(), code) {
			t.Errorf("%d left: %v", left, err)
		}
		if got.Proof.TriesLeft != left {
			t.Errorf("%d tries are left, want %d", got.Proof.TriesLeft, left)
		}
	}
	if _, err := a.prove(op.ID, code); !errors.Is(err, problem.ErrState) {
		t.Errorf("the right one, after five that were wrong: %v", err)
	}
	stored := a.Operation(op.ID)
	if stored.State != unblock.Failed || stored.Reason != unblock.ReasonWrongCode || stored.Sentence() == "" {
		t.Errorf("%+v", stored)
	}
	want := []string{"credential.registered", "unblock.requested"}
	for range 5 {
		want = append(want, "unblock.proof refused wrongCode")
	}
	if diff := cmp.Diff(append(want, "unblock.failed failed wrongCode"), a.Actions(a.cred.ID)); diff != "" {
		t.Error(diff)
	}
	a.Search()
}

// Of any number of guesses at the same time at most as many are answered as there are tries,
// and no more than one that is right. That holds while another unblock has the card, too.
func TestGuessesAtOnce(t *testing.T) {
	for _, leased := range []bool{false, true} {
		for _, right := range []bool{false, true} {
			t.Run(fmt.Sprintf("leased %t, one right %t", leased, right), func(t *testing.T) {
				a := ask(t)
				op := a.must(a.create(credential.SelfService))
				code := a.Code()
				if leased {
					a.must(a.create(credential.Operator))
				}
				var mu sync.Mutex
				answered, taken := 0, 0
				ready := make(chan struct{})
				var wg sync.WaitGroup
				for i := range 50 {
					wg.Go(func() {
						guess := desk.Wrong(code)
						if right && i == 25 {
							guess = code
						}
						<-ready
						_, err := a.prove(op.ID, guess)
						mu.Lock()
						defer mu.Unlock()
						switch {
						case err == nil:
							taken++
						case wrongCode(err):
							answered++
						case strings.Contains(err.Error(), "another unblock"):
							taken++
						case !errors.Is(err, problem.ErrState) && !errors.Is(err, problem.ErrUnavailable):
							t.Errorf("guess: %v", err)
						}
					})
				}
				close(ready)
				wg.Wait()
				if answered > 5 || taken > 1 || answered == 0 && taken == 0 || !right && taken > 0 {
					t.Errorf("%d wrong ones and %d right ones were answered", answered, taken)
				}
				proofs := 0
				for _, action := range a.Actions(a.cred.ID) {
					if strings.HasPrefix(action, "unblock.proof") {
						proofs++
					}
				}
				if proofs != answered+taken {
					t.Errorf("%d are recorded, %d were answered", proofs, answered+taken)
				}
			})
		}
	}
}

// While another unblock has the card, the right code is told to be right only once that is
// stored, and it can be given again when the card is free.
func TestCodeWhileLeased(t *testing.T) {
	a := ask(t)
	op := a.must(a.create(credential.SelfService))
	code := a.Code()
	other := a.must(a.create(credential.Operator))
	version := a.Operation(op.ID).Version
	if _, err := a.prove(op.ID, code); !errors.Is(err, problem.ErrState) || !strings.Contains(err.Error(), "another unblock") {
		t.Errorf("while it is leased: %v", err)
	}
	actions := a.Actions(a.cred.ID)
	if last := actions[len(actions)-1]; last != "unblock.proof refused leased" || a.Operation(op.ID).Version != version+1 {
		t.Errorf("it is not stored: %s", last)
	}
	a.must(a.Unblocks.Cancel(t.Context(), a.Core, desk.Admin, other.ID))
	if op, err := a.prove(op.ID, code); err != nil || op.State != unblock.Proven {
		t.Errorf("then: %+v, %v", op, err)
	}
}

func TestCodeExpired(t *testing.T) {
	a := ask(t)
	op := a.must(a.create(credential.SelfService))
	code := a.Code()
	a.Clock.Pass(10 * time.Minute)
	got, err := a.prove(op.ID, code)
	if err != nil || got.State != unblock.Failed || got.Reason != unblock.ReasonExpired {
		t.Errorf("%+v, %v", got, err)
	}
	// And with nobody there, by the sweep.
	op = a.must(a.create(credential.SelfService))
	a.Clock.Pass(10*time.Minute - time.Second)
	if r := a.Sweep(); r.Due != 0 {
		t.Errorf("too early: %+v", r)
	}
	a.Clock.Pass(time.Second)
	if r := a.Sweep(); r != (unblock.Report{Due: 1, Concluded: 1}) || a.Operation(op.ID).Reason != unblock.ReasonExpired {
		t.Errorf("%+v, %+v", r, a.Operation(op.ID))
	}
}

func TestCodesPerHour(t *testing.T) {
	a := ask(t)
	for range 5 {
		a.must(a.create(credential.SelfService))
		a.Clock.Pass(10 * time.Minute)
	}
	_, err := a.create(credential.SelfService)
	var limit *problem.LimitError
	if !errors.As(err, &limit) || limit.Code != "tooManyCodes" || !limit.Until.Equal(a.Clock.Now().Add(10*time.Minute)) {
		t.Errorf("the sixth: %v", err)
	}
	if len(a.Mails.All()) != 5 {
		t.Errorf("%d mails", len(a.Mails.All()))
	}
	if op, err := a.create(credential.Operator); err != nil || op.State != unblock.Proven {
		t.Errorf("an operator cannot help: %v", err)
	}
	a.Clock.Pass(10 * time.Minute)
	a.must(a.create(credential.SelfService))
}

// Why an unblock cannot begin, and that then there is none.
func TestCannotBegin(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(*credential.Template)
		prepare func(a *asked)
		channel credential.Channel
		request func(*unblock.Request)
		want    error
		says    string
	}{
		{"channel", func(t *credential.Template) { t.Channels = []credential.Channel{credential.Operator} }, nil, credential.SelfService, nil, problem.ErrState, "does not allow an unblock by selfService"},
		{"channel of operators", func(t *credential.Template) { t.Channels = []credential.Channel{credential.SelfService} }, nil, credential.Operator, nil, problem.ErrState, "does not allow an unblock by operator"},
		{"no statement", nil, nil, credential.Operator, func(r *unblock.Request) { r.Statement = "  x " }, nil, "must say how the person was identified"},
		{"no such card", nil, nil, credential.Operator, func(r *unblock.Request) { r.Credential = "piv-00" }, problem.ErrNotFound, ""},
		{"no such bridge", nil, nil, credential.Operator, func(r *unblock.Request) { r.Bridge = "00000000" }, problem.ErrNotFound, ""},
		{"bridge revoked", nil, func(a *asked) {
			_, err := a.Tenants.Revoke(a.Context(), a.Core, desk.Admin, a.b.ID)
			a.Must(err)
		}, credential.Operator, nil, nil, "is not an enrolled bridge"},
		{"no holder", nil, func(a *asked) { a.about(func(about *credential.About) { about.Holder = "" }) }, credential.SelfService, nil, problem.ErrState, "nobody is known to hold"},
		{"holder gone", nil, func(a *asked) {
			a.Must(a.Users.Delete(a.Context(), a.Core, desk.Admin, a.Holder.ID))
		}, credential.SelfService, nil, problem.ErrState, "nobody is known to hold"},
		{"no mail address", nil, func(a *asked) {
			_, err := a.Users.Update(a.Context(), a.Core, desk.Admin, a.Holder.ID, 0, func(p *user.Profile) { p.Mail = "" }, nil)
			a.Must(err)
		}, credential.SelfService, nil, problem.ErrState, "no mail address"},
		{"messaging gone", nil, func(a *asked) { a.deleteMessaging() }, credential.SelfService, nil, problem.ErrState, "messaging configuration is gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var change []func(*credential.Template)
			if c.change != nil {
				change = append(change, c.change)
			}
			a := ask(t, change...)
			if c.prepare != nil {
				c.prepare(a)
			}
			r := a.request(c.channel)
			if c.request != nil {
				c.request(&r)
			}
			before := a.Credential(a.cred.ID)
			_, err := a.Unblocks.Create(t.Context(), a.Core, desk.Admin, r)
			var invalid *problem.InvalidError
			if err == nil || c.want != nil && !errors.Is(err, c.want) || c.want == nil && !errors.As(err, &invalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v: %s", err, c.want, c.says)
			}
			if ops := a.Operations(a.cred.ID); len(ops) > 0 || len(a.Mails.All()) > 0 {
				t.Errorf("it has begun: %v", ops)
			}
			if diff := cmp.Diff(before, a.Credential(a.cred.ID)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func (a *asked) about(change func(*credential.About)) {
	a.Helper()
	_, err := a.Credentials.Update(a.Context(), a.Core, desk.Admin, tenant.RoleAdmin, a.cred.ID, 0, change)
	a.Must(err)
}

func (a *asked) deleteMessaging() {
	a.Helper()
	store := mail.Store{Table: a.Wire, Tenant: desk.Acme, Keys: a.Core.Keys}
	c, err := store.Configuration(a.Context(), a.Messaging)
	a.Must(err)
	a.Must(a.Wire.Write(a.Context(), store.DeleteConfiguration(a.Messaging, c.Version)))
}

// A table that fails is not taken for a holder or a mail system that is not there.
func TestNoHolderIsNotNoAnswer(t *testing.T) {
	for n := 1; ; n++ {
		a := ask(t)
		faulty := tabletest.Fail(a.Wire.Table, n, false)
		a.Wire.Through(func(table.Table) table.Table { return faulty })
		_, err := a.create(credential.SelfService)
		if faulty.Calls() < n {
			if n < 8 {
				t.Errorf("only %d calls", n-1)
			}
			return
		}
		if !errors.Is(err, tabletest.ErrFault) || errors.Is(err, problem.ErrState) {
			t.Errorf("call %d: %v", n, err)
		}
	}
}

func TestCodeNotMailed(t *testing.T) {
	a := ask(t)
	a.Mails.Fail(1)
	op, err := a.create(credential.SelfService)
	if err != nil || op.State != unblock.Failed || op.Reason != unblock.ReasonMail || op.Sentence() == "" {
		t.Errorf("%+v, %v", op, err)
	}
	if _, err := a.prove(op.ID, "123456"); !errors.Is(err, problem.ErrState) {
		t.Errorf("a code: %v", err)
	}
	if op, err := a.create(credential.SelfService); err != nil || op.State != unblock.Requested {
		t.Errorf("then: %+v, %v", op, err)
	}
}

// The bridge is not there when the script goes out: nothing was changed, and the next
// begins as if nothing had been.
func TestBridgeGone(t *testing.T) {
	a := ask(t)
	op := a.must(a.create(credential.Operator))
	before := a.Credential(a.cred.ID)
	a.b.Gone = true
	op = a.must(a.give(op, newPIN))
	stored := a.Operation(op.ID)
	if op.State != unblock.Failed || op.Reason != unblock.ReasonBridgeGone || stored.State != op.State || stored.PIN != nil || stored.Outcome.PIN != "no" {
		t.Errorf("%+v", stored)
	}
	c := a.Credential(a.cred.ID)
	if diff := cmp.Diff(before.Custody, c.Custody); diff != "" || len(c.PUKs) != 1 || c.Lease.Operation != "" || c.Doubt != "" {
		t.Errorf("%+v", c)
	}
	if b, err := a.Tenants.Bridge(t.Context(), desk.Acme, a.b.ID); err != nil || b.Online(a.Clock.Now()) {
		t.Errorf("it is still taken for connected: %+v, %v", b.Sessions, err)
	}
	if _, err := a.create(credential.Operator); err != nil {
		t.Fatal(err)
	}
	a.Clock.Pass(5 * time.Minute)
	a.Sweep()

	a.Must(a.b.Connect())
	a.Must(a.b.Settle())
	op = a.must(a.create(credential.Operator))
	a.must(a.give(op, newPIN))
	a.Must(a.b.Settle())
	if !a.piece.PINIs(newPIN) || !a.Knows(a.piece, a.Credential(a.cred.ID)) {
		t.Errorf("%+v", a.Operation(op.ID))
	}
	if r := a.Sweep(); r != (unblock.Report{}) {
		t.Errorf("%+v", r)
	}
	a.Search()
}

// A PIN is given only with the card in the reader of a bridge that may connect.
func TestNoCard(t *testing.T) {
	a := ask(t)
	op := a.must(a.create(credential.Operator))
	a.b.Remove()
	if _, err := a.give(op, newPIN); !errors.Is(err, problem.ErrState) || !strings.Contains(err.Error(), "put it in first") {
		t.Errorf("without the card: %v", err)
	}
	if shown, err := a.Unblocks.Show(t.Context(), a.Core, a.Operation(op.ID)); err != nil || shown.Next != relay.NextCard || shown.Policy == nil {
		t.Errorf("%+v, %v", shown, err)
	}
	a.b.Insert(a.piece)
	a.Must(a.b.Settle())
	if shown, err := a.Unblocks.Show(t.Context(), a.Core, a.Operation(op.ID)); err != nil || shown.Next != relay.NextPIN {
		t.Errorf("%+v, %v", shown, err)
	}
	// Typed it must be at the terminal, where this card is not.
	if _, err := a.Unblocks.Ready(t.Context(), a.Core, desk.Admin, op.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("typed nowhere: %v", err)
	}
	_, err := a.Tenants.Revoke(t.Context(), a.Core, desk.Admin, a.b.ID)
	a.Must(err)
	if _, err := a.give(op, newPIN); !errors.Is(err, problem.ErrState) {
		t.Errorf("with the bridge revoked: %v", err)
	}
	if a.piece.PINIs(newPIN) || a.Operation(op.ID).State != unblock.Proven {
		t.Error("it was begun")
	}
}

// A PIN that was sealed for another operation, card, fence or bridge is no PIN.
func TestSealedForAnother(t *testing.T) {
	a := ask(t)
	op := a.must(a.create(credential.Operator))
	other := a.NewBridge(relay.Service)
	for name, sealed := range map[string]relay.SealedPIN{
		"operation": a.b.Seal("01J8ZC9Q6Y0V4T5W3X2R1N0M9K", op.Credential, op.Fence, newPIN),
		"card":      a.b.Seal(op.ID, "piv-00", op.Fence, newPIN),
		"fence":     a.b.Seal(op.ID, op.Credential, op.Fence+1, newPIN),
		"bridge":    other.Seal(op.ID, op.Credential, op.Fence, newPIN),
	} {
		_, err := a.Unblocks.GivePIN(t.Context(), a.Core, desk.Admin, op.ID, sealed)
		a.Must(err)
		a.Must(a.b.Settle())
		if stored := a.Operation(op.ID); stored.State != unblock.Proven || stored.PIN != nil || a.piece.PINIs(newPIN) {
			t.Errorf("for another %s: %+v", name, stored)
		}
	}
	_, err := a.Unblocks.GivePIN(t.Context(), a.Core, desk.Admin, op.ID, relay.SealedPIN{Encapsulated: []byte{1}})
	var invalid *problem.InvalidError
	if !errors.As(err, &invalid) || len(invalid.Violations) != 2 {
		t.Errorf("no sealed PIN: %v", err)
	}
	a.must(a.give(a.Operation(op.ID), newPIN))
	a.Must(a.b.Settle())
	if !a.piece.PINIs(newPIN) {
		t.Errorf("%+v", a.Operation(op.ID))
	}
}

// Another tenant's operations and cards are as unknown as those that there are not.
func TestTenants(t *testing.T) {
	a := ask(t)
	op := a.must(a.create(credential.SelfService))
	core, _, err := a.Tenants.Create(t.Context(), desk.Admin, tenant.Tenant{ID: "globex", Settings: tenant.Settings{DisplayName: "Globex", TimeZone: "UTC", Language: "en"}})
	a.Must(err)
	code := secret.New(a.Code())
	us, ctx, by := a.Unblocks, t.Context(), audit.Actor{Kind: audit.API, ID: "k2"}
	for name, call := range map[string]func() error{
		"get":    func() error { _, err := us.Get(ctx, core.Tenant.ID, op.ID); return err },
		"create": func() error { _, err := us.Create(ctx, core, by, a.request(credential.Operator)); return err },
		"prove":  func() error { _, err := us.Prove(ctx, core, by, op.ID, code); return err },
		"give": func() error {
			_, err := us.GivePIN(ctx, core, by, op.ID, a.b.Seal(op.ID, op.Credential, 1, newPIN))
			return err
		},
		"ready":     func() error { _, err := us.Ready(ctx, core, by, op.ID); return err },
		"look":      func() error { _, err := us.Look(ctx, core, op.ID); return err },
		"cancel":    func() error { _, err := us.Cancel(ctx, core, by, op.ID); return err },
		"at bridge": func() error { _, err := us.AtBridge(ctx, core, a.b.ID, "i-1"); return err },
	} {
		if err := call(); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if ops, _, err := us.List(ctx, core.Tenant.ID, "", "", 10); err != nil || len(ops) > 0 {
		t.Errorf("listed: %v, %v", ops, err)
	}
	if a.Operation(op.ID).State != unblock.Requested {
		t.Error("it was changed")
	}
}

// A suspended tenant's operations end in time; its holders are told once it is resumed, and
// do not keep others' from being told.
func TestSuspended(t *testing.T) {
	a := ask(t)
	op := a.must(a.create(credential.Operator))
	a.Mails.Fail(1)
	a.must(a.give(op, newPIN))
	a.Must(a.b.Settle())
	second := a.must(a.create(credential.SelfService))
	if a.Operation(op.ID).Notice.State != unblock.NoticePlanned {
		t.Fatalf("%+v", a.Operation(op.ID))
	}
	_, err := a.Tenants.Suspend(t.Context(), desk.Admin, desk.Acme, true)
	a.Must(err)
	mails := len(a.Mails.All())
	a.Clock.Pass(20 * time.Minute)
	if r := a.Sweep(); r.Due != 2 || r.Concluded != 1 || r.Told != 0 || a.Operation(second.ID).State != unblock.Failed {
		t.Errorf("%+v", r)
	}
	if r := a.Sweep(); r != (unblock.Report{}) {
		t.Errorf("it is in the way: %+v", r)
	}
	a.Clock.Pass(30 * time.Hour)
	a.Sweep()
	if len(a.Mails.All()) != mails {
		t.Error("a suspended tenant's holder was told")
	}
	_, err = a.Tenants.Suspend(t.Context(), desk.Admin, desk.Acme, false)
	a.Must(err)
	a.Clock.Pass(time.Hour)
	if r := a.Sweep(); r.Told != 1 || a.Operation(op.ID).Notice.State != unblock.NoticeSent {
		t.Errorf("%+v, %+v", r, a.Operation(op.ID).Notice)
	}
}

// The holder cannot be told: that is said, and nothing waits for it.
func TestNobodyToTell(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(a *asked)
		reason string
	}{
		{"no holder", func(a *asked) { a.about(func(about *credential.About) { about.Holder = "" }) }, "noHolder"},
		{"no address", func(a *asked) {
			_, err := a.Users.Update(a.Context(), a.Core, desk.Admin, a.Holder.ID, 0, func(p *user.Profile) { p.Mail = "" }, nil)
			a.Must(err)
		}, "noAddress"},
		{"an address that does not work", func(a *asked) { a.undeliverable() }, "undeliverable"},
		{"no messaging", func(a *asked) {
			_, err := a.Credentials.UpdateTemplate(a.Context(), a.Core, desk.Admin, a.cred.Template, 0, func(t *credential.Template) { t.Messaging, t.Channels = "", []credential.Channel{credential.Operator} }, nil)
			a.Must(err)
		}, "noMessaging"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := ask(t)
			c.change(a)
			op := a.must(a.create(credential.Operator))
			a.must(a.give(op, newPIN))
			a.Must(a.b.Settle())
			stored := a.Operation(op.ID)
			if stored.State != unblock.Succeeded || stored.Notice.State != unblock.NoticeSkipped || stored.Notice.Reason != c.reason {
				t.Errorf("%+v, %+v", stored, stored.Notice)
			}
			a.Clock.Pass(48 * time.Hour)
			if r := a.Sweep(); r != (unblock.Report{}) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// undeliverable lets it be known that the holder's address does not work.
func (a *asked) undeliverable() {
	a.Helper()
	a.Clock.Pass(time.Second)
	done, err := a.Users.MailFailed(a.Context(), a.Core, desk.Admin, a.Holder.ID, a.Holder.Profile.Mail, a.Clock.Now(), user.MailProblem{Kind: user.MailBounced, At: a.Clock.Now()})
	if a.Must(err); !done {
		a.Fatal("not marked")
	}
}

// No code is sent to an address that does not work, and whoever asks is told so, without the
// address.
func TestNoCodeToAnAddressThatDoesNotWork(t *testing.T) {
	a := ask(t)
	a.undeliverable()
	mails := len(a.Mails.All())
	_, err := a.create(credential.SelfService)
	if !errors.Is(err, problem.ErrState) || !strings.Contains(err.Error(), "do not arrive (bounce)") || strings.Contains(err.Error(), "@") {
		t.Errorf("%v", err)
	}
	if len(a.Mails.All()) != mails {
		t.Error("a mail was sent")
	}
}

// Operations are listed newest first, all and of one card.
func TestList(t *testing.T) {
	a := ask(t)
	var want []string
	for range 7 {
		op := a.must(a.create(credential.Operator))
		a.must(a.Unblocks.Cancel(t.Context(), a.Core, desk.Admin, op.ID))
		want = append([]string{op.ID}, want...)
		a.Clock.Pass(time.Second)
	}
	_, another := a.Issue(softcard.CanoKey)
	op := a.must(a.Unblocks.Create(t.Context(), a.Core, desk.Admin, unblock.Request{Credential: another.ID, Bridge: a.b.ID, Channel: credential.Operator, Statement: "badge"}))
	for of, want := range map[string][]string{"": append([]string{op.ID}, want...), a.cred.ID: want, another.ID: {op.ID}, "piv-00": nil} {
		var got []string
		for place, more := "", true; more; more = place != "" {
			ops, next, err := a.Unblocks.List(t.Context(), desk.Acme, of, place, 3)
			a.Must(err)
			for _, op := range ops {
				got = append(got, op.ID)
			}
			place = next
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("of %q: %s", of, diff)
		}
	}
}

// Two take the same card at the same time: one of them gets it.
func TestCreateAtOnce(t *testing.T) {
	a := ask(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := 0
	for range 10 {
		wg.Go(func() {
			_, err := a.create(credential.Operator)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				got++
			} else if !errors.Is(err, problem.ErrState) && !errors.Is(err, problem.ErrUnavailable) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if ops := a.Operations(a.cred.ID); got != 1 || len(ops) != 1 || a.Credential(a.cred.ID).Lease.Operation != ops[0].ID {
		t.Errorf("%d have got it: %v", got, ops)
	}
}
