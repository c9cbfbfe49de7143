package due

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

var pinLine = regexp.MustCompile(`(?m)^    (\S+)\r?$`)

// issue makes a user for whom a PIN is pending, and nobody sends it.
func (w *world) issue(name string) user.User {
	w.Helper()
	core := w.core(acme)
	u, err := w.Users.Create(w.Context(), core, admin, user.Profile{Username: name, Mail: name + "@acme.example"}, nil)
	if err == nil {
		u, err = w.Users.IssuePIN(w.Context(), core, admin, u.ID, user.Issue{})
	}
	if err != nil {
		w.Fatal(err)
	}
	return u
}

func (w *world) verifies(u user.User, pin string) bool {
	w.Helper()
	r, err := w.Users.Verify(w.Context(), w.core(acme), admin, user.Ref{ID: u.ID}, secret.New(pin))
	if err != nil {
		w.Fatal(err)
	}
	return r.Right
}

// What was issued and not sent goes out with the sweep: several by one sweep, once each.
func TestIssuedAreMailed(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	var users []user.User
	for i := range 20 {
		users = append(users, w.issue(fmt.Sprint("u", i)))
	}
	w.does(Report{Due: 20, Mailed: 20})
	w.does(Report{})
	mails, err := w.outbox.List(100)
	if err != nil || len(mails) != 20 {
		t.Fatalf("%d mails, %v", len(mails), err)
	}
	for _, u := range users {
		found := 0
		for _, m := range mails {
			if strings.Contains(m.To, u.Profile.Mail) {
				found++
				if pin := pinLine.FindStringSubmatch(m.Text); len(pin) != 2 || !w.verifies(u, pin[1]) {
					t.Errorf("the PIN of the mail to %s is not theirs:\n%s", u.Profile.Username, m.Text)
				}
			}
		}
		if found != 1 {
			t.Errorf("%s has %d mails", u.Profile.Username, found)
		}
	}
}

// A real mail server that refuses, defers, or takes a PIN's mail and says nothing of it.
func TestIssuedAndMailServers(t *testing.T) {
	server := smtpServer(t)
	w := newWorld(t, tabletest.New(t))
	w.smtp(server)
	w.Senders.Timeout = time.Second
	for name, fault := range map[string]testserver.SMTPFault{"reject": testserver.SMTPReject, "defer": testserver.SMTPDefer, "lost": testserver.SMTPCloseAfter} {
		server.Fault(name+"@acme.example", fault)
	}
	// One a sweep: a sweep leaves a mail server alone that has answered nothing in a shard.
	rejected := w.issue("reject")
	w.does(Report{Due: 1, Dropped: 1})
	deferred := w.issue("defer")
	w.does(Report{Due: 1, Postponed: 1})
	lost := w.issue("lost")
	w.does(Report{Due: 1, Postponed: 1})
	w.issue("fine")
	w.does(Report{Due: 1, Mailed: 1})
	server.Fault("defer@acme.example", 0)
	server.Fault("lost@acme.example", 0)
	w.pass(time.Minute)
	w.does(Report{Due: 2, Mailed: 2, Repeated: 1})
	for _, c := range []struct {
		u     user.User
		mails int
	}{{rejected, 0}, {deferred, 1}, {lost, 2}} {
		ids := received(t, server, c.u.Profile.Mail)
		if len(ids) != c.mails {
			t.Errorf("%s has %d mails, want %d", c.u.Profile.Username, len(ids), c.mails)
		}
		if c.mails == 2 && ids[0] != ids[1] {
			t.Errorf("the second copy has another Message-ID: %q", ids)
		}
		if u := w.reread(c.u); u.Pending.Waits() || (u.PIN.State(w.Now()) == user.IsSet) != (c.mails > 0) {
			t.Errorf("%s: %+v", c.u.Profile.Username, u)
		}
	}
}

// A user whose PIN expires while another is pending has both seen to; and a suspended tenant's
// mails wait, for a day.
func TestIssuedAndExpired(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	ada := w.user("ada", silently)
	w.pass(24*time.Hour - time.Second)
	if _, err := w.Users.IssuePIN(t.Context(), w.core(acme), admin, ada.ID, user.Issue{}); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Second)
	w.does(Report{Due: 1, Expired: 1})
	w.does(Report{Due: 1, Mailed: 1})
	if u := w.reread(ada); u.PIN.State(w.Now()) != user.IsSet || !u.PIN.Mailed {
		t.Errorf("%+v", u.PIN)
	}

	bob := w.issue("bob")
	suspend := func(on bool) {
		if _, err := w.Tenants.Suspend(t.Context(), admin, acme, on); err != nil {
			t.Fatal(err)
		}
	}
	suspend(true)
	w.does(Report{Due: 1, Postponed: 1})
	if d := cmp.Diff("suspended", w.reread(bob).Pending.Reason); d != "" {
		t.Error(d)
	}
	w.pass(24 * time.Hour)
	suspend(false)
	w.settings(acme, func(s *tenant.Settings) { s.ExpiryMail = tenant.ExpiryMailRefs{} })
	w.pass(time.Second)
	for i := range w.Run(t.Context()).Due {
		if i == 0 && w.reread(bob).Pending.Waits() {
			t.Error("it is not given up after a day")
		}
	}
	if len(w.mails()) != 1 {
		t.Errorf("mails to %q", w.mails())
	}
}

// The scheduled sweep goes on with a bulk; what that has issued and could not mail goes out with
// the next ones.
func TestBulkBySweep(t *testing.T) {
	server := smtpServer(t)
	w := newWorld(t, tabletest.New(t))
	w.smtp(server)
	w.Senders.Timeout = time.Second
	core := w.core(acme)
	for i := range 10 {
		if _, err := w.Users.Create(t.Context(), core, admin, user.Profile{Username: fmt.Sprint("u", i), Mail: fmt.Sprintf("u%d@acme.example", i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	server.Fault("u3@acme.example", testserver.SMTPDefer)
	server.Fault("u4@acme.example", testserver.SMTPReject)
	b, err := w.Users.PlanBulk(t.Context(), core, admin, user.BulkSpec{}, w.Senders.BulkRate(t.Context(), mail.Configuration{Kind: mail.KindSMTP}))
	if err == nil {
		b, err = w.Users.StartBulk(t.Context(), core, admin, b.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := w.Handle(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if b, err = w.Users.Bulk(t.Context(), acme, b.ID); err != nil {
			t.Fatal(err)
		}
		if i == 0 && (b.State != user.BulkRunning || b.Issued != 10 || b.Mailed != 8 || b.Pending() != 1 || b.Refused["smtp.550"] != 1) {
			t.Errorf("while a mail is deferred: %+v", b)
		}
		server.Fault("u3@acme.example", 0)
		w.pass(time.Minute)
	}
	if b.State != user.BulkDone || b.Mailed != 9 || b.Pending() != 0 || len(server.Mails()) != 9 {
		t.Errorf("in the end: %+v, %d mails", b, len(server.Mails()))
	}
}
