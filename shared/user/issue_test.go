package user

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

// post is a mail system that answers as it is told to, and else accepts. What it has accepted,
// or says nothing of, is among the mails.
type post struct {
	mu      sync.Mutex
	answers []mail.Outcome // to the next messages
	calls   int
	mails   []mail.Message
	taken   func() // each time something was sent
}

func (p *post) For(mail.Configuration) (mail.Sender, error) { return p, nil }

func (p *post) Send(_ context.Context, messages []mail.Message) []mail.Result {
	p.mu.Lock()
	p.calls++
	results := make([]mail.Result, len(messages))
	for i, m := range messages {
		o := mail.Accepted
		if len(p.answers) > 0 {
			o, p.answers = p.answers[0], p.answers[1:]
		}
		results[i] = mail.Result{Outcome: o, Code: "smtp." + o.String()}
		if o == mail.Accepted || o == mail.Unknown {
			p.mails = append(p.mails, m)
		}
	}
	p.mu.Unlock()
	if p.taken != nil {
		p.taken()
	}
	return results
}

// pinIn is the PIN that a mail tells.
func pinIn(m mail.Message) string {
	for line := range strings.Lines(m.Text) {
		if pin, ok := strings.CutPrefix(line, "    "); ok {
			return strings.TrimSpace(pin)
		}
	}
	return ""
}

// mailing gives the tenant a messaging configuration, in German.
func mailing(c *tenant.Core) {
	c.Tenant.Settings.ExpiryMail.Messaging = "post"
	c.Tenant.Settings.DisplayName, c.Tenant.Settings.Language, c.Tenant.Settings.TimeZone = "Acme", "en", "UTC"
}

// newMailWorld is a world whose tenant can mail.
func newMailWorld(tb testing.TB, edits ...func(*tenant.Core)) (*world, *post) {
	w := newWorld(tb, append([]func(*tenant.Core){mailing}, edits...)...)
	op, err := mail.Store{Table: w.Table, Tenant: acme, Keys: w.core.Keys}.PutConfiguration(tb.Context(),
		mail.Configuration{ID: "post", Name: "Post", Kind: mail.KindOutbox, From: "pins@acme.example"})
	if err == nil {
		err = w.Table.Write(tb.Context(), op)
	}
	if err != nil {
		tb.Fatal(err)
	}
	w.post = &post{}
	return w, w.post
}

func (w *world) issue(u User, is Issue) User {
	w.Helper()
	return must(w.IssuePIN(w.Context(), w.core, admin, u.ID, is))(w)
}

func (w *world) send(p *post, u User) Sent {
	w.Helper()
	sent := w.SendIssued(w.Context(), w.core, p, u)[0]
	if sent.Err != nil {
		w.Fatal(sent.Err)
	}
	return sent
}

// deliver sends what is due until nothing is, as the sweep does, for at most so long.
func (w *world) deliver(p *post, atMost time.Duration) {
	w.Helper()
	for end := w.Now().Add(atMost); w.Now().Before(end); w.pass(time.Minute) {
		waits := false
		for _, u := range w.everybody() {
			if u.Pending.Waits() {
				waits = true
				w.send(p, u)
			}
		}
		if !waits {
			return
		}
	}
}

func TestIssuedPIN(t *testing.T) {
	w, p := newMailWorld(t, pinOnly, expiring, waiting(event.PINSet))
	ada := w.user("ada", pinA)
	ctx := event.Within(t.Context(), []string{"r1"})
	ada = must(w.IssuePIN(ctx, w.core, admin, ada.ID, Issue{Options: pin.GenerateOptions{Length: 8}, OneTime: ChangeAtUse, ValidHours: 30}))(t)
	if !ada.Pending.Waits() || !w.verify("ada", pinA).Right {
		t.Errorf("before its mail: pending %v, or the old PIN is gone", ada.Pending.Waits())
	}
	if d := cmp.Diff([]string{"ada"}, w.due()); d != "" {
		t.Errorf("the sweep would not send it (-want +got):\n%s", d)
	}
	w.pass(time.Minute)
	sent := w.send(p, ada)
	if sent.Stage != Activated || len(p.mails) != 1 {
		t.Fatalf("%+v, %d mails", sent, len(p.mails))
	}
	made := pinIn(p.mails[0])
	if len(made) != 8 || w.verify("ada", pinA).Right || w.identify("lobby", pinA).Right {
		t.Errorf("a PIN of %d characters was mailed, or the old one lets in", len(made))
	}
	if r := w.verify("ada", made); !r.Right || !r.ChangeRequired {
		t.Errorf("the mailed PIN: right %v, to be changed %v", r.Right, r.ChangeRequired)
	}
	if r := w.identify("lobby", made); !r.Right || !r.ChangeRequired {
		t.Errorf("the mailed PIN alone: right %v, to be changed %v", r.Right, r.ChangeRequired)
	}
	u := w.reread(ada)
	if u.Pending.Waits() || !u.PIN.Mailed || !u.PIN.SetAt.Equal(w.Now()) || !u.PIN.ExpiresAt.Equal(w.Now().Add(30*time.Hour)) || !u.PIN.NotifyAt.Equal(w.Now().Add(6*time.Hour)) || u.PIN.By != admin {
		t.Errorf("%+v", u)
	}
	m := p.mails[0]
	if m.To != "ada@acme.example" || !strings.Contains(m.Text, "until Sunday, 22 November 2026 at 16:01 UTC") || !strings.Contains(m.Text, "change it when you first use it") || strings.Contains(m.Subject, made) {
		t.Errorf("to %s, %q:\n%s", m.To, m.Subject, m.Text)
	}
	if d := cmp.Diff([]string{"user.created", "pin.issued", "pin.verify", "pin.activated"}, w.actions(ada)[:4]); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
	events, _, err := event.List(ctx, w.Table, acme, "", 10)
	if err != nil || len(events) != 2 { // ada's own first PIN is one
		t.Fatalf("%d events, %v", len(events), err)
	}
	if e := events[0]; e.Attributes["how"] != "generated" || !slices.Equal(e.Chain, []string{"r1"}) {
		t.Errorf("event %+v", e)
	}
	w.check([]string{"ada"}, []string{pinA, made})
}

// What cannot be mailed is not made: nothing is written, and the reason is told.
func TestIssueRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*tenant.Core)
		to   Profile
		is   Issue
		code string
	}{
		{"no address", nil, Profile{Username: "ada"}, Issue{}, "noAddress"},
		{"no messaging", func(c *tenant.Core) { c.Tenant.Settings.ExpiryMail.Messaging = "" }, profile("ada"), Issue{}, "noMessaging"},
		{"messaging that is not there", nil, profile("ada"), Issue{Messaging: "nope"}, "noMessaging"},
		{"template that is not there", nil, profile("ada"), Issue{Template: "nope"}, "noTemplate"},
		{"template of another kind", nil, profile("ada"), Issue{Template: mail.PINExpiryID}, "noTemplate"},
		{"too short for the policy", nil, profile("ada"), Issue{Options: pin.GenerateOptions{Length: 3}}, "policy"},
		{"too long for the policy", nil, profile("ada"), Issue{Options: pin.GenerateOptions{Length: 17}}, "policy"},
		{"alphabet", nil, profile("ada"), Issue{Options: pin.GenerateOptions{Alphabet: pin.Printable}}, "policy"},
		{"hours", nil, profile("ada"), Issue{ValidHours: -1}, "policy"},
		{"one-time", nil, profile("ada"), Issue{OneTime: "twice"}, "policy"},
		{"not wanted any more", nil, profile("ada"), Issue{If: func(u User) bool { return u.PIN.State(start) == NoPIN }}, "notWanted"},
		{"tenant's limit", func(c *tenant.Core) { c.Tenant.Settings.GeneratedPINsPerDay = -1 }, profile("ada"), Issue{}, "tenantDaily"},
	} {
		w, _ := newMailWorld(t)
		if c.edit != nil {
			c.edit(&w.core)
		}
		ada := must(w.Create(t.Context(), w.core, admin, c.to, given(pinA)))(t)
		_, err := w.IssuePIN(t.Context(), w.core, admin, ada.ID, c.is)
		if got := RefusalCode(err); got != c.code {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.code)
		}
		if d := cmp.Diff(ada, w.reread(ada), whole); d != "" {
			t.Errorf("%s: it changed something (-want +got):\n%s", c.name, d)
		}
		w.checkAll()
	}
	w, _ := newMailWorld(t)
	_, err := w.IssuePIN(t.Context(), w.core, admin, nobody, Issue{})
	if RefusalCode(err) != "notFound" || !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("unknown user: %v", err)
	}
	if RefusalCode(tabletest.ErrFault) != "" {
		t.Error("a fault is a refusal")
	}
}

// Whoever asks twice gets one PIN and one mail.
func TestIssueTwice(t *testing.T) {
	w, p := newMailWorld(t)
	ada := w.issue(w.user("ada", ""), Issue{})
	if _, err := w.IssuePIN(t.Context(), w.core, admin, ada.ID, Issue{}); !errors.Is(err, ErrOnItsWay) || !errors.Is(err, problem.ErrState) {
		t.Errorf("while it is pending: %v", err)
	}
	w.send(p, ada)
	if _, err := w.IssuePIN(t.Context(), w.core, admin, ada.ID, Issue{}); !errors.Is(err, ErrJustMailed) {
		t.Errorf("just mailed: %v", err)
	}
	w.pass(sameCall)
	w.send(p, w.issue(ada, Issue{}))
	if len(p.mails) != 2 || pinIn(p.mails[0]) == pinIn(p.mails[1]) || !w.verify("ada", pinIn(p.mails[1])).Right {
		t.Errorf("later: %d mails", len(p.mails))
	}
	must(w.DeletePIN(t.Context(), w.core, admin, ada.ID))(t)
	w.send(p, w.issue(ada, Issue{})) // at once
	w.check([]string{"ada"}, nil)
}

func TestManyIssueAtOnce(t *testing.T) {
	w, p := newMailWorld(t, pinOnly)
	ada := w.user("ada", pinA)
	errs := racing(50, func(int) error {
		u, err := w.IssuePIN(t.Context(), w.core, admin, ada.ID, Issue{})
		if err != nil {
			return err
		}
		return w.SendIssued(t.Context(), w.core, p, u)[0].Err
	})
	done := 0
	for _, err := range errs {
		switch {
		case err == nil:
			done++
		case !errors.Is(err, ErrOnItsWay) && !errors.Is(err, ErrJustMailed) && !errors.Is(err, problem.ErrConflict):
			t.Error(err)
		}
	}
	if done != 1 || len(p.mails) != 1 || !w.verify("ada", pinIn(p.mails[0])).Right {
		t.Errorf("%d of 50 were done, %d mails", done, len(p.mails))
	}
	w.check([]string{"ada"}, []string{pinA, pinIn(p.mails[0])})
}

// What the mail system answers, first and then.
func TestAnswersToIssued(t *testing.T) {
	F, R, U := mail.Failed, mail.Refused, mail.Unknown
	for _, c := range []struct {
		answers  []mail.Outcome
		mails    int
		active   bool
		repeated bool
		reason   string // of dropping
		within   time.Duration
	}{
		{nil, 1, true, false, "", time.Minute},
		{[]mail.Outcome{R}, 0, false, false, "smtp.refused", time.Minute},
		{[]mail.Outcome{F}, 1, true, false, "", 2 * time.Minute},
		{[]mail.Outcome{F, F, F, R}, 0, false, false, "smtp.refused", 10 * time.Minute},
		{[]mail.Outcome{U}, 2, true, true, "", 2 * time.Minute},
		{[]mail.Outcome{U, F, U, F}, 3, true, true, "", 20 * time.Minute},
		{slices.Repeat([]mail.Outcome{F}, 100), 0, false, false, "givenUp", 24*time.Hour + time.Minute},
	} {
		w, p := newMailWorld(t, pinOnly)
		p.answers = c.answers
		ada := w.issue(w.user("ada", pinA), Issue{})
		began := w.Now()
		w.deliver(p, 25*time.Hour)
		if took := w.Now().Sub(began); took > c.within {
			t.Errorf("%v: over after %v", c.answers, took)
		}
		if len(p.mails) != c.mails {
			t.Errorf("%v: %d mails, want %d", c.answers, len(p.mails), c.mails)
		}
		for _, m := range p.mails {
			if m.ID != p.mails[0].ID || pinIn(m) != pinIn(p.mails[0]) {
				t.Errorf("%v: the mails differ", c.answers)
			}
		}
		u, records := w.reread(ada), w.audited()
		last := records[len(records)-1]
		if u.Pending.Waits() || u.PIN.Mailed != c.active || w.verify("ada", pinA).Right == c.active || c.active && !w.verify("ada", pinIn(p.mails[0])).Right {
			t.Errorf("%v: %+v", c.answers, u)
		}
		want := "pin.activated"
		if !c.active {
			want = "pin.dropped"
		}
		if last.Action != want || last.Reason != c.reason || (last.Details["possiblyRepeated"] != "") != c.repeated {
			t.Errorf("%v: audit %+v", c.answers, last)
		}
		w.check([]string{"ada"}, []string{pinA})
	}
}

// What ends a pending PIN, and what does not.
func TestPendingOvertaken(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(w *world, ada User) error
		ends bool
	}{
		"set": {func(w *world, ada User) error { return w.set(ada, pinB) }, true},
		"generated": {func(w *world, ada User) error {
			_, _, err := w.GeneratePIN(w.Context(), w.core, admin, ada.ID, pin.GenerateOptions{})
			return err
		}, true},
		"deleted": {func(w *world, ada User) error { _, err := w.DeletePIN(w.Context(), w.core, admin, ada.ID); return err }, true},
		"expired": {func(w *world, ada User) error { _, err := w.EndPIN(w.Context(), w.core, admin, ada.ID); return err }, false},
		"mail": {func(w *world, ada User) error {
			_, err := w.Update(w.Context(), w.core, admin, ada.ID, 0, func(p *Profile) { p.Mail = "ada@new.example" }, nil)
			return err
		}, true},
		"mail and PIN": {func(w *world, ada User) error {
			_, err := w.Update(w.Context(), w.core, admin, ada.ID, 0, func(p *Profile) { p.Mail = "ada@new.example" }, given(pinB))
			return err
		}, true},
		"name": {func(w *world, ada User) error {
			_, err := w.Update(w.Context(), w.core, admin, ada.ID, 0, func(p *Profile) { p.DisplayName = "Ada" }, nil)
			return err
		}, false},
		"user deleted": {func(w *world, ada User) error { return w.Users.Delete(w.Context(), w.core, admin, ada.ID) }, true},
	} {
		for _, claimed := range []bool{false, true} { // it happens before it is sent, or while
			w, p := newMailWorld(t, pinOnly)
			ada := w.issue(w.user("ada", pinA), Issue{Options: pin.GenerateOptions{Length: 8}})
			tag := ada.Pending.lookup
			meanwhile := func() {
				if err := c.do(w, ada); err != nil {
					t.Fatal(name, err)
				}
			}
			if claimed {
				p.taken = meanwhile
			} else {
				meanwhile()
			}
			sent := w.SendIssued(t.Context(), w.core, p, ada)[0]
			if !c.ends && !claimed {
				sent = w.SendIssued(t.Context(), w.core, p, w.reread(ada))[0]
			}
			if want := map[bool]Stage{true: Overtaken, false: Activated}[c.ends]; sent.Err != nil || sent.Stage != want {
				t.Errorf("%s, while it was sent %v: %s, %v", name, claimed, sent.Stage, sent.Err)
			}
			if held := w.holds(table.LookupKey(acme, tag), User{}, false); held == c.ends {
				t.Errorf("%s, while it was sent %v: its tag is held: %v", name, claimed, held)
			}
			if c.ends && claimed && w.identify("lobby", pinIn(p.mails[0])).Right {
				t.Errorf("%s: the PIN of an overtaken mail lets in", name)
			}
			if name != "user deleted" {
				w.check([]string{"ada"}, []string{pinA, pinB})
			}
		}
	}
}

// Where PINs identify, nobody else may have a pending one, and it lets nobody in. Its owner may
// choose it, who may have it from a mail whose answer was lost.
func TestPendingTag(t *testing.T) {
	w, p := newMailWorld(t, pinOnly)
	p.answers = []mail.Outcome{mail.Unknown}
	ada := w.issue(w.user("ada", pinA), Issue{})
	bob := w.user("bob", pinB)
	w.send(p, ada)
	made := pinIn(p.mails[0])
	if err := w.set(bob, made); !errors.Is(err, ErrPINTaken) {
		t.Errorf("another one takes it: %v", err)
	}
	if w.identify("lobby", made).Right || w.verify("ada", made).Right || w.verify("bob", made).Right {
		t.Error("it lets in before it is anybody's")
	}
	if err := w.set(ada, made); err != nil {
		t.Errorf("its owner cannot choose it: %v", err)
	}
	if !w.identify("desk", made).Right || w.reread(ada).Pending.Waits() {
		t.Error("chosen, it does not let in, or is pending still")
	}
	w.check([]string{"ada", "bob"}, []string{pinA, pinB, made})
}

// dying is a table as a process sees it that dies: from the n-th call on nothing is answered.
// With after, the n-th call still takes effect.
type dying struct {
	table.Table
	mu       sync.Mutex
	n, calls int
	after    bool
}

func (d *dying) run(call func() error) error {
	d.mu.Lock()
	d.calls++
	dead, last := d.calls > d.n, d.calls == d.n
	d.mu.Unlock()
	if dead || last && !d.after {
		return tabletest.ErrFault
	}
	if err := call(); err != nil || !last {
		return err
	}
	return tabletest.ErrFault
}

func (d *dying) Get(ctx context.Context, key table.Key) (item table.Item, err error) {
	err = d.run(func() (err error) { item, err = d.Table.Get(ctx, key); return err })
	return item, err
}

func (d *dying) Query(ctx context.Context, r table.Range) (page table.Page, err error) {
	err = d.run(func() (err error) { page, err = d.Table.Query(ctx, r); return err })
	return page, err
}

func (d *dying) Write(ctx context.Context, ops ...table.Op) error {
	return d.run(func() error { return d.Table.Write(ctx, ops...) })
}

// A process that issues and sends dies before or after each call of the table, and so around
// the mail: the same order once more, and the sweep, leave one PIN, that of the mail; and a
// second mail, if there is one, is the same and is told of as possibly repeated.
func TestIssueCrashes(t *testing.T) {
	steps := 0
	for _, first := range []mail.Outcome{mail.Accepted, mail.Unknown, mail.Failed, mail.Refused} {
		for _, after := range []bool{false, true} {
			for n := 1; ; n++ {
				w, p := newMailWorld(t, pinOnly, expiring, waiting(event.PINSet))
				p.answers = []mail.Outcome{first}
				ada := w.user("ada", pinA)
				table := &dying{Table: w.Table, n: n, after: after}
				us := *w.Users
				us.Table = table
				if u, err := us.IssuePIN(t.Context(), w.core, admin, ada.ID, Issue{}); err == nil {
					us.SendIssued(t.Context(), w.core, p, u)
				}
				refused := first == mail.Refused
				w.checkAll()
				if p.calls == 0 { // redelivered
					if _, err := w.IssuePIN(t.Context(), w.core, admin, ada.ID, Issue{}); err != nil && !errors.Is(err, ErrOnItsWay) {
						t.Errorf("once more, after call %d: %v", n, err)
					}
				}
				w.deliver(p, time.Hour)

				what := fmt.Sprintf("first %s, call %d, after %v", first, n, after)
				u := w.reread(ada)
				records := w.audited()
				last := records[len(records)-1]
				switch {
				case u.Pending.Waits():
					t.Errorf("%s: it is pending still", what)
				case len(p.mails) == 0:
					if !refused || !w.verify("ada", pinA).Right {
						t.Errorf("%s: no mail, or the old PIN is gone", what)
					}
				case !w.verify("ada", pinIn(p.mails[len(p.mails)-1])).Right:
					t.Errorf("%s: the mailed PIN is not the user's", what)
				}
				for _, m := range p.mails {
					if m.ID != p.mails[0].ID || m.Text != p.mails[0].Text && pinIn(m) != pinIn(p.mails[0]) {
						t.Errorf("%s: the mails differ", what)
					}
				}
				if len(p.mails) > 2 || len(p.mails) == 2 && (last.Action != "pin.activated" || last.Details["possiblyRepeated"] == "") {
					t.Errorf("%s: %d mails, and the audit has %s %v", what, len(p.mails), last.Action, last.Details)
				}
				if n := w.reasons("pin.activated")[""]; n > 1 {
					t.Errorf("%s: %d became the PIN", what, n)
				}
				w.checkAll()
				if table.calls < n {
					break
				}
				steps++
			}
		}
	}
	t.Logf("%d crashes", steps)
}

// A PIN for one use lets one in, however many give it at the same time.
func TestOneTimePIN(t *testing.T) {
	for name, guess := range map[string]func(w *world, i int, pin string) (Result, error){
		"verify": func(w *world, _ int, pin string) (Result, error) {
			return w.Verify(w.Context(), w.core, admin, Ref{Username: "ada"}, secret.New(pin))
		},
		"identify": func(w *world, i int, pin string) (Result, error) {
			return w.Identify(w.Context(), w.core, admin, numbered("t", i), secret.New(pin))
		},
	} {
		w, p := newMailWorld(t, pinOnly, func(c *tenant.Core) { c.Policy.MaxAttempts = 100 })
		ada := w.issue(w.user("ada", ""), Issue{OneTime: DeletedByUse})
		w.send(p, ada)
		made := pinIn(p.mails[0])
		if !strings.Contains(p.mails[0].Text, "once only") {
			t.Errorf("the mail does not say so:\n%s", p.mails[0].Text)
		}
		results := make([]Result, 20)
		errs := racing(len(results), func(i int) (err error) {
			results[i], err = guess(w, i, made)
			return err
		})
		n := 0
		for _, r := range results {
			if r.Right {
				n++
			}
		}
		if n != 1 || errors.Join(errs...) != nil {
			t.Errorf("%s: %d of 20 were right, %v", name, n, errors.Join(errs...))
		}
		u := w.reread(ada)
		if u.PIN.State(w.Now()) != NoPIN || u.PIN.Deleted != "used" || w.verify("ada", made).Right {
			t.Errorf("%s: afterwards %+v", name, u.PIN)
		}
		w.check([]string{"ada"}, []string{made})
	}
}

func TestRequireChange(t *testing.T) {
	w := newWorld(t, pinOnly)
	ada := w.user("ada", "")
	if _, err := w.RequireChange(t.Context(), w.core, admin, ada.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("without a PIN: %v", err)
	}
	if err := w.set(ada, pinA); err != nil {
		t.Fatal(err)
	}
	if r := w.verify("ada", pinA); !r.Right || r.ChangeRequired {
		t.Errorf("before: %v, %v", r.Right, r.ChangeRequired)
	}
	for range 2 {
		must(w.RequireChange(t.Context(), w.core, admin, ada.ID))(t)
	}
	if n := w.reasons("pin.changeRequired")[""]; n != 1 {
		t.Errorf("%d records", n)
	}
	if r := w.verify("ada", pinA); !r.Right || !r.ChangeRequired {
		t.Errorf("after: %v, %v", r.Right, r.ChangeRequired)
	}
	if r := w.identify("lobby", pinA); !r.Right || !r.ChangeRequired {
		t.Errorf("after, alone: %v, %v", r.Right, r.ChangeRequired)
	}
	if r := w.verify("ada", pinB); r.Right || r.ChangeRequired {
		t.Errorf("a wrong one is told of: %v, %v", r.Right, r.ChangeRequired)
	}
	if err := w.set(ada, pinB); err != nil {
		t.Fatal(err)
	}
	if r := w.verify("ada", pinB); !r.Right || r.ChangeRequired {
		t.Errorf("changed: %v, %v", r.Right, r.ChangeRequired)
	}
	refused := table.Check(table.UserKey(acme, nobody), table.IfVersion(1))
	if _, err := w.RequireChange(t.Context(), w.core, admin, ada.ID, refused); !errors.Is(err, problem.ErrConflict) || w.reread(ada).PIN.OneTime != ManyTimes {
		t.Errorf("with an op whose condition does not hold: %v", err)
	}
	w.check([]string{"ada"}, []string{pinA, pinB})
}

// A person has ten PINs a day generated, an organisation as many as its settings say.
func TestGeneratedLimits(t *testing.T) {
	w, _ := newMailWorld(t)
	ada, bob := w.user("ada", ""), w.user("bob", "")
	generate := func(by audit.Actor, u User) error {
		_, _, err := w.GeneratePIN(t.Context(), w.core, by, u.ID, pin.GenerateOptions{})
		return err
	}
	self := audit.Actor{Kind: audit.Self, ID: ada.ID}
	refused := 0
	for _, err := range racing(30, func(int) error {
		for {
			if err := generate(self, ada); !errors.Is(err, problem.ErrConflict) {
				return err
			}
		}
	}) {
		var limit *problem.LimitError
		if errors.As(err, &limit) && limit.Code == "ownDaily" && limit.Until.Equal(start.Add(24*time.Hour)) {
			refused++
		} else if err != nil {
			t.Error(err)
		}
	}
	if n := w.reasons("pin.generated")[""]; n != OwnPerDay || refused != 20 {
		t.Errorf("%d were generated, %d refused", n, refused)
	}
	if _, err := w.IssuePIN(t.Context(), w.core, self, ada.ID, Issue{}); RefusalCode(err) != "ownDaily" {
		t.Errorf("mailed, for herself: %v", err)
	}
	if err := errors.Join(generate(admin, ada), generate(audit.Actor{Kind: audit.Self, ID: bob.ID}, bob)); err != nil {
		t.Errorf("others: %v", err)
	}
	w.pass(24 * time.Hour)
	if err := generate(self, ada); err != nil {
		t.Errorf("a day later: %v", err)
	}

	w.core.Tenant.Settings.GeneratedPINsPerDay = 5 // of which one was used today
	for range 4 {
		if err := generate(admin, bob); err != nil {
			t.Error(err)
		}
	}
	var limit *problem.LimitError
	if err := generate(admin, bob); !errors.As(err, &limit) || limit.Code != "tenantDaily" || !limit.Until.Equal(time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("beyond the organisation's limit: %v", err)
	}
	if err := w.set(bob, pinA); err != nil {
		t.Errorf("choosing a PIN: %v", err)
	}
	w.pass(14 * time.Hour)
	if err := generate(admin, bob); err != nil {
		t.Errorf("the next day: %v", err)
	}
}

// What one issued PIN costs, as the README has it.
func TestIssueCost(t *testing.T) {
	w, p := newMailWorld(t, pinOnly)
	ada := w.user("ada", pinA)
	counted := tabletest.Count(w.Table)
	w.Table = counted
	ada = w.issue(ada, Issue{})
	if d := cmp.Diff(tabletest.Calls{Gets: 3, Queries: 1, Writes: 1, Ops: 4}, counted.Take()); d != "" {
		t.Errorf("to issue (-want +got):\n%s", d)
	}
	w.send(p, ada)
	if d := cmp.Diff(tabletest.Calls{Gets: 2, Writes: 2, Ops: 5}, counted.Take()); d != "" {
		t.Errorf("to send (-want +got):\n%s", d)
	}
}
