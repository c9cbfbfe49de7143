package user

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// sweepBulksOver goes on with bulks once, as the sweep does, over a table.
func (w *world) sweepBulksOver(p *post, over table.Table) (BulkReport, error) {
	w.Helper()
	us := *w.Users
	us.Table = over
	return us.SweepBulks(w.Context(), func(context.Context, table.TenantID) (tenant.Core, error) { return w.core, nil }, p, 20)
}

// sweepAll sweeps minute by minute until the bulk has ended, and returns it.
func (w *world) sweepAll(p *post, b Bulk) Bulk {
	w.Helper()
	for range 2000 {
		if _, err := w.sweepBulksOver(p, w.Table); err != nil {
			w.Fatal(err)
		}
		if b = must(w.Bulk(w.Context(), acme, b.ID))(w); b.due.IsZero() {
			return b
		}
		w.pass(time.Minute)
		for _, u := range w.everybody() {
			if u.Pending.Waits() && u.Pending.Attempts > 0 {
				w.send(p, u)
			}
		}
	}
	w.Fatal("the bulk does not end")
	return b
}

func (w *world) plan(spec BulkSpec) Bulk {
	w.Helper()
	return must(w.PlanBulk(w.Context(), w.core, admin, spec, 10))(w)
}

func (w *world) start(b Bulk) Bulk {
	w.Helper()
	return must(w.StartBulk(w.Context(), w.core, admin, b.ID))(w)
}

// mailsTo counts the mails to each address.
func (p *post) mailsTo() map[string]int {
	n := map[string]int{}
	for _, m := range p.mails {
		n[m.To]++
	}
	return n
}

func TestBulk(t *testing.T) {
	w, p := newMailWorld(t, pinOnly, expiring)
	in := func(name, group, pin string) User {
		pr := profile(name)
		pr.Groups = []string{group}
		var with *secret.Text
		if pin != "" {
			with = given(pin)
		}
		return must(w.Create(t.Context(), w.core, admin, pr, with))(w)
	}
	old := in("old", "staff", pinA)
	w.pass(10 * time.Hour)
	in("young", "staff", pinB)
	none, guest := in("none", "staff", ""), in("guest", "guests", "")
	lost := must(w.Create(t.Context(), w.core, admin, Profile{Username: "lost", Groups: []string{"staff"}}, nil))(t)
	w.issue(in("pending", "staff", ""), Issue{}) // by somebody else

	for name, c := range map[string]struct {
		spec BulkSpec
		want [3]int // matched, without address, mails
	}{
		"everybody without":    {BulkSpec{}, [3]int{3, 1, 2}},
		"staff without":        {BulkSpec{Group: "staff"}, [3]int{2, 1, 1}},
		"staff, older than 10": {BulkSpec{Group: "staff", OlderThanHours: 10}, [3]int{3, 1, 2}},
		"staff, older than 11": {BulkSpec{Group: "staff", OlderThanHours: 11}, [3]int{2, 1, 1}},
		"nobody":               {BulkSpec{Group: "nobody"}, [3]int{}},
	} {
		b := w.plan(c.spec)
		if got := [3]int{b.Matched, b.NoAddress, b.Mails()}; got != c.want || b.State != BulkPlanned || b.Users != 6 {
			t.Errorf("%s: %s of %d users: %v, want %v", name, b.State, b.Users, got, c.want)
		}
	}
	if len(p.mails) != 0 || w.reread(none).Pending.Waits() {
		t.Error("a plan has issued PINs")
	}

	b := w.plan(BulkSpec{Group: "staff", OlderThanHours: 10, Issue: Issue{Options: pin.GenerateOptions{Length: 6}, OneTime: ChangeAtUse}})
	if d := (Bulk{Matched: 700, NoAddress: 100, Rate: 10}).Estimate(); d != 80*time.Second {
		t.Errorf("600 mails at ten a second, three quarters of the time, take %v", d)
	}
	b = w.sweepAll(p, w.start(b))
	if b.State != BulkDone || b.Issued != 2 || b.Mailed != 2 || b.Pending() != 0 || b.Seen != 6 {
		t.Errorf("%+v", b)
	}
	if d := cmp.Diff(map[string]int{"noAddress": 1}, b.Refused); d != "" {
		t.Errorf("refused (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]int{"old@acme.example": 1, "none@acme.example": 1}, p.mailsTo()); d != "" {
		t.Errorf("mails (-want +got):\n%s", d)
	}
	for _, m := range p.mails {
		if !m.Bulk || len(pinIn(m)) != 6 {
			t.Errorf("bulk %v, a PIN of %d", m.Bulk, len(pinIn(m)))
		}
	}
	for _, u := range []User{old, none} {
		if got := w.reread(u); !got.PIN.Mailed || got.PIN.OneTime != ChangeAtUse {
			t.Errorf("%s: %+v", u.Profile.Username, got.PIN)
		}
	}
	if !w.verify("young", pinB).Right || w.reread(guest).PIN.State(w.Now()) != NoPIN || w.reread(lost).PIN.State(w.Now()) != NoPIN {
		t.Error("somebody else got a PIN")
	}
	for action, want := range map[string]int{"bulkPINs.started": 1, "bulkPINs.done": 1} {
		if n := w.reasons(action)[""]; n != want {
			t.Errorf("%d records of %s", n, action)
		}
	}
	if list, _, err := w.Bulks(t.Context(), acme, "", 10); err != nil || len(list) != 6 || list[0].ID != b.ID && list[0].State == BulkDone {
		t.Errorf("%d in the list, %v", len(list), err)
	}
	w.check(nil, []string{pinA, pinB})
}

func TestBulkRefused(t *testing.T) {
	w, p := newMailWorld(t)
	for name, spec := range map[string]BulkSpec{
		"too short":  {Issue: Issue{Options: pin.GenerateOptions{Length: 3}}},
		"hours":      {OlderThanHours: -1},
		"messaging":  {Issue: Issue{Messaging: "nope"}},
		"template":   {Issue: Issue{Template: mail.PINExpiryID}},
		"one-time":   {Issue: Issue{OneTime: "twice"}},
		"long group": {Group: string(make([]byte, 300))},
	} {
		if _, err := w.PlanBulk(t.Context(), w.core, admin, spec, 0); RefusalCode(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	empty := w.plan(BulkSpec{})
	state := func(name string, err error) {
		t.Helper()
		if !errors.Is(err, problem.ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	start := func(b Bulk) error { _, err := w.StartBulk(t.Context(), w.core, admin, b.ID); return err }
	state("nobody", start(empty))
	w.user("ada", "")
	late, used := w.plan(BulkSpec{}), w.plan(BulkSpec{})
	w.sweepAll(p, w.start(used))
	state("used", start(used))
	_, err := w.CancelBulk(t.Context(), w.core, admin, used.ID)
	state("cancel what has ended", err)
	w.pass(BulkPlanLife)
	state("late", start(late))
	if err := start(Bulk{ID: nobody}); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	other := *w.Users
	if _, err := other.Bulk(t.Context(), "other", used.ID); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("another tenant's: %v", err)
	}
	// A limit lets it wait until the next day; what there was to mail with and is gone ends it.
	w.user("bob", "")
	w.user("carol", "")
	w.core.Tenant.Settings.GeneratedPINsPerDay = 2 // of which one is used
	b := w.start(w.plan(BulkSpec{}))
	if _, err := w.sweepBulksOver(p, w.Table); err != nil {
		t.Fatal(err)
	}
	b = must(w.Bulk(t.Context(), acme, b.ID))(t)
	if b.Issued != 1 && b.Issued != 2 || b.Reason != "tenantDaily" || !b.WaitsUntil.Equal(time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("at the limit: %+v", b)
	}
	if b = w.sweepAll(p, b); b.State != BulkDone || b.Issued != 2 || b.Mailed != 2 {
		t.Errorf("a day later: %+v", b)
	}
	w.user("dave", "")
	b = w.start(w.plan(BulkSpec{}))
	w.core.Tenant.Settings.ExpiryMail.Messaging = ""
	if b = w.sweepAll(p, b); b.State != BulkFailed || b.Reason != "noMessaging" || b.Issued != 0 {
		t.Errorf("without messaging: %+v", b)
	}
	w.pass(12 * time.Hour)
	w.checkAll()
}

// Somebody who has got a PIN meanwhile, or is to have none any more, is left alone.
func TestBulkMeanwhile(t *testing.T) {
	w, p := newMailWorld(t, pinOnly)
	ada := w.user("ada", "")
	bob := w.user("bob", "")
	w.user("carol", "")
	b := w.plan(BulkSpec{})
	if err := w.set(ada, pinA); err != nil {
		t.Fatal(err)
	}
	if err := w.Users.Delete(t.Context(), w.core, admin, bob.ID); err != nil {
		t.Fatal(err)
	}
	b = w.sweepAll(p, w.start(b))
	if b.Issued != 1 || !w.verify("ada", pinA).Right {
		t.Errorf("%+v", b)
	}
	w.checkAll()
}

// While mails do not go out no more than some are pending; when they do, all are, once each.
func TestBulkWhileMailIsDown(t *testing.T) {
	w, p := newMailWorld(t)
	for i := range 230 {
		w.user(numbered("u", i), "")
	}
	down := true
	failing := &failingPost{post: p, down: &down}
	b := w.start(w.plan(BulkSpec{}))
	sweepOnce := func() Bulk {
		_, err := w.Users.SweepBulks(t.Context(), func(context.Context, table.TenantID) (tenant.Core, error) { return w.core, nil }, failing, 20)
		if err != nil {
			t.Fatal(err)
		}
		return must(w.Bulk(t.Context(), acme, b.ID))(t)
	}
	for range 10 {
		b = sweepOnce()
		w.pass(time.Minute)
	}
	if b.Issued < bulkAhead || b.Issued >= bulkAhead+bulkBatch || b.Pending() != b.Issued || p.calls != 0 || b.Reason != "mail" || b.State != BulkRunning {
		t.Errorf("while it is down: %+v", b)
	}
	down = false
	if b = w.sweepAll(p, b); b.State != BulkDone || b.Issued != 230 || b.Mailed != 230 || len(b.Refused) != 0 {
		t.Errorf("in the end: %+v", b)
	}
	for to, n := range p.mailsTo() {
		if n != 1 {
			t.Errorf("%d mails to %s", n, to)
		}
	}
	if len(p.mails) != 230 {
		t.Errorf("%d mails", len(p.mails))
	}
}

// failingPost is a post that may be down.
type failingPost struct {
	*post
	down *bool
}

func (f *failingPost) For(mail.Configuration) (mail.Sender, error) { return f, nil }

func (f *failingPost) Send(ctx context.Context, messages []mail.Message) []mail.Result {
	if !*f.down {
		return f.post.Send(ctx, messages)
	}
	results := make([]mail.Result, len(messages))
	for i := range results {
		results[i] = mail.Result{Outcome: mail.Failed, Code: "smtp.451"}
	}
	return results
}

// Once it is cancelled no PIN is issued, those that were stay; and whoever is at work ends it.
func TestBulkCancelled(t *testing.T) {
	w, p := newMailWorld(t)
	for i := range 120 {
		w.user(numbered("u", i), "")
	}
	plan := w.plan(BulkSpec{})
	if b := must(w.CancelBulk(t.Context(), w.core, admin, plan.ID))(t); b.State != BulkCancelled {
		t.Errorf("a plan: %+v", b)
	}
	b := w.start(w.plan(BulkSpec{}))
	p.taken = func() { // the first batch is just mailed
		if p.calls == 1 {
			got := must(w.CancelBulk(t.Context(), w.core, admin, b.ID))(t)
			if got.State != BulkRunning || !got.Cancelling {
				t.Errorf("while a batch is under way: %+v", got)
			}
			must(w.CancelBulk(t.Context(), w.core, admin, b.ID))(t) // once more
		}
	}
	got := w.sweepAll(p, b)
	if got.State != BulkCancelled || got.Issued > bulkBatch || got.Issued != len(p.mails) || got.Mailed != got.Issued || got.Issued == 0 {
		t.Errorf("%+v, %d mails", got, len(p.mails))
	}
	issued := 0
	for _, u := range w.everybody() {
		if u.PIN.State(w.Now()) == IsSet {
			issued++
		}
	}
	if issued != got.Issued {
		t.Errorf("%d have a PIN, it says %d", issued, got.Issued)
	}
	must(w.CancelBulk(t.Context(), w.core, admin, b.ID))(t)
	if n := w.reasons("bulkPINs.cancelAsked")[""]; n != 1 {
		t.Errorf("%d records of the wish", n)
	}
}

// A process that dies at any call of a bulk is followed by another: everybody ends with one PIN
// and one mail, or the same mail once more, and the counts are right.
func TestBulkCrashes(t *testing.T) {
	crashes := 0
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			w, p := newMailWorld(t, pinOnly)
			for i := range 3 {
				w.user(numbered("u", i), "")
			}
			b := w.start(w.plan(BulkSpec{}))
			dies := &dying{Table: w.Table, n: n, after: after}
			_, err := w.sweepBulksOver(p, dies)
			w.pass(sendLease)
			b = w.sweepAll(p, b)
			what := fmt.Sprintf("call %d, after %v", n, after)
			if b.State != BulkDone || b.Issued != 3 || b.Mailed != 3 || b.Pending() != 0 || len(b.Refused) != 0 {
				t.Errorf("%s: %+v", what, b)
			}
			last := map[string]string{}
			for _, m := range p.mails {
				if was := last[m.To]; was != "" && was != m.ID+pinIn(m) {
					t.Errorf("%s: two mails to %s differ", what, m.To)
				}
				last[m.To] = m.ID + pinIn(m)
			}
			for i := range 3 {
				name := numbered("u", i)
				mails := 0
				var tells string
				for _, m := range p.mails {
					if m.To == name+"@acme.example" {
						mails, tells = mails+1, pinIn(m)
					}
				}
				if mails < 1 || mails > 2 || !w.verify(name, tells).Right {
					t.Errorf("%s: %s has %d mails, or another PIN", what, name, mails)
				}
			}
			w.check([]string{"u000", "u001", "u002"}, nil)
			if dies.calls < n {
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				break
			}
			crashes++
		}
	}
	t.Logf("%d crashes", crashes)
}

// Several sweeps at once: one is at work.
func TestBulkSweepsAtOnce(t *testing.T) {
	w, p := newMailWorld(t)
	for i := range 60 {
		w.user(numbered("u", i), "")
	}
	b := w.start(w.plan(BulkSpec{}))
	for _, err := range racing(8, func(int) error { _, err := w.sweepBulksOver(p, w.Table); return err }) {
		if err != nil {
			t.Error(err)
		}
	}
	b = w.sweepAll(p, b)
	if b.Issued != 60 || b.Mailed != 60 || len(p.mails) != 60 {
		t.Errorf("%+v, %d mails", b, len(p.mails))
	}
}
