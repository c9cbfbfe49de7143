package due

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

func TestAnnouncedOnceThenDeleted(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	ada := w.user("ada")
	w.user("bob", func(c *tenant.Core) { c.Policy.ExpirationHours, c.Policy.NotifyHoursBefore = 0, nil })
	for _, step := range []struct {
		at   time.Duration
		want Report
	}{
		{0, Report{}},
		{24*time.Hour - time.Second, Report{}},
		{24 * time.Hour, Report{Due: 1, Sent: 1}},
		{24 * time.Hour, Report{}},
		{36 * time.Hour, Report{}},
		{48*time.Hour - time.Second, Report{}},
		{48 * time.Hour, Report{Due: 1, Expired: 1}},
		{48 * time.Hour, Report{}},
		{1000 * time.Hour, Report{}},
	} {
		w.past.Store(int64(step.at))
		w.does(step.want)
	}
	if d := cmp.Diff([]string{"ada@acme.example"}, w.mails()); d != "" {
		t.Errorf("mails (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"pin.notice sent", "pin.expired"}, w.history(ada)); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
	if p := w.reread(ada).PIN; p.Deleted != "expired" || p.State(w.Now()) != user.NoPIN || p.Notice.Attempts != 1 || p.Notice.Repeated {
		t.Errorf("%+v", p)
	}
}

// Nobody has swept for days: what has expired is deleted, and not announced.
func TestTooLateToAnnounce(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	ada := w.user("ada")
	w.pass(72 * time.Hour)
	w.does(Report{Due: 1, Expired: 1, Unannounced: 1}) // which is counted, and told of her
	if n := w.reread(ada).PIN.Notice; n.State != user.NoticeFailed || n.Reason != user.ReasonExpiredFirst {
		t.Errorf("notice %+v, want failed, expiredFirst", n)
	}
	if got := w.mails(); got != nil {
		t.Errorf("mails: %q", got)
	}
}

func TestMail(t *testing.T) {
	for _, c := range []struct {
		name, zone, lang string
		template         string // its text, or "" for the predefined one
		subject          string
		text             []string
		html             string
	}{
		{name: "ada", zone: "Europe/Berlin", lang: "de",
			subject: "Ihre PIN für Ärztehaus & Co läuft am Montag, 23. November 2026 um 11:00 Uhr MEZ ab",
			text:    []string{"Guten Tag ada,", "    Montag, 23. November 2026 um 11:00 Uhr MEZ\n"}, html: "Ärztehaus &amp; Co"},
		{name: "<b>ada</b>", zone: "America/New_York", lang: "en-US",
			subject: "Your PIN for Ärztehaus & Co expires on Monday, November 23, 2026 at 5:00 AM EST",
			text:    []string{"Hello <b>ada</b>,"}, html: "&lt;b&gt;ada&lt;/b&gt;"},
		{name: "ada", zone: "Asia/Kolkata", lang: "cs", template: "{{username}} of {{customer-name}}: {{pinExpiration}}",
			subject: "s", text: []string{"ada of Ärztehaus & Co: Monday, 23 November 2026 at 15:30 IST"}},
	} {
		w := newWorld(t, tabletest.New(t))
		w.settings(acme, func(s *tenant.Settings) { s.TimeZone, s.Language = c.zone, c.lang })
		if c.template != "" {
			own := mail.Template{ID: "own", Kind: mail.PINExpiry, Name: "Own", Subject: "s", Text: c.template}
			if err := w.Table.Write(t.Context(), mail.Store{Table: w.Table, Tenant: acme}.PutTemplate(own)); err != nil {
				t.Fatal(err)
			}
			w.settings(acme, func(s *tenant.Settings) { s.ExpiryMail.Template = "own" })
		}
		ada := w.userOf(w.core(acme), c.name, "ada@acme.example")
		w.pass(24 * time.Hour)
		w.does(Report{Due: 1, Sent: 1})
		mails, err := w.outbox.List(10)
		if len(mails) != 1 || err != nil {
			t.Fatalf("%d mails, %v", len(mails), err)
		}
		m := mails[0]
		if m.Subject != c.subject || m.ID != ada.MessageID() || !m.Date.Equal(w.Now()) || !strings.Contains(m.From, "pins@acme.example") {
			t.Errorf("%s from %s at %s: %q, want %q", m.ID, m.From, m.Date, m.Subject, c.subject)
		}
		for _, part := range c.text {
			if !strings.Contains(strings.ReplaceAll(m.Text, "\r\n", "\n"), part) {
				t.Errorf("the text lacks %q:\n%s", part, m.Text)
			}
		}
		if !strings.Contains(m.HTML, c.html) || (c.html == "") != (m.HTML == "") {
			t.Errorf("the HTML lacks %q:\n%s", c.html, m.HTML)
		}
		if strings.Contains(m.Text+m.HTML+m.Subject, right) {
			t.Error("the PIN is in the mail")
		}
	}
}

// Who cannot be told is counted and recorded, and told as soon as there is an
// address.
func TestNoAddress(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	ada := w.userOf(w.core(acme), "ada", "")
	w.pass(24 * time.Hour)
	w.does(Report{Due: 1, NoAddress: 1})
	w.pass(time.Hour)
	w.does(Report{})
	if n := w.reread(ada).PIN.Notice; n.State != user.NoticeSkipped || n.Reason != "noAddress" {
		t.Errorf("%+v", n)
	}
	w.move(ada, "ada@acme.example")
	w.does(Report{Due: 1, Sent: 1})
	w.pass(23 * time.Hour)
	w.does(Report{Due: 1, Expired: 1})
	if d := cmp.Diff([]string{"pin.notice skipped noAddress", "pin.notice sent", "pin.expired"}, w.history(ada)); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
}

// What cannot be sent now is tried again, ever more seldom, up to hourly.
func TestPostponed(t *testing.T) {
	for reason, c := range map[string]struct{ stop, start func(*world) }{
		"noMessaging": {
			func(w *world) { w.settings(acme, func(s *tenant.Settings) { s.ExpiryMail.Messaging = "" }) },
			func(w *world) { w.settings(acme, func(s *tenant.Settings) { s.ExpiryMail.Messaging = "outbox" }) },
		},
		"suspended": {
			func(w *world) { must(w, w.suspend(true)) },
			func(w *world) { must(w, w.suspend(false)) },
		},
		"messaging": { // the installation has it no more
			func(w *world) { w.Senders.Outbox = nil },
			func(w *world) { w.Senders.Outbox = w.outbox },
		},
		"outbox.write": {
			func(w *world) { must(w, w.outbox.Close()) },
			func(w *world) {
				outbox, err := mail.OpenOutbox(w.TempDir())
				must(w, err)
				w.outbox, w.Senders.Outbox = outbox, outbox
			},
		},
	} {
		t.Run(reason, func(t *testing.T) {
			w := newWorld(t, tabletest.New(t))
			ada := w.user("ada")
			w.user("bob", silently)
			c.stop(w)
			w.pass(24 * time.Hour)
			w.does(Report{Due: 2, Postponed: 1, Expired: 1}) // PINs expire all the same
			waits := []int{60, 60, 60}                       // without a mail system there is no hurry
			if reason == "outbox.write" {
				waits = []int{1, 2, 4, 8, 16, 32, 60, 60}
			}
			for i, minutes := range waits {
				n := w.reread(ada).PIN.Notice
				if want := w.Now().Add(time.Duration(minutes) * time.Minute); n.State != user.NoticePlanned || n.Reason != reason || !n.At.Equal(want) || n.Repeated {
					t.Errorf("after %d tries: %+v, want it planned at %s", i+1, n, want)
				}
				w.past.Store(int64(n.At.Sub(start) - time.Second))
				w.does(Report{})
				w.pass(time.Second)
				w.does(Report{Due: 1, Postponed: 1})
			}
			c.start(w)
			w.pass(time.Hour)
			w.does(Report{Due: 1, Sent: 1})
			if d := cmp.Diff([]string{"ada@acme.example"}, w.mails()); d != "" {
				t.Errorf("mails (-want +got):\n%s", d)
			}
		})
	}
}

func must(w *world, err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) suspend(suspended bool) error {
	_, err := w.Tenants.Suspend(w.Context(), admin, acme, suspended)
	return err
}

// What a mail server does with Ada's address, and what comes of it. Bob's mail
// gets through in any case, soon.
func TestMailServers(t *testing.T) {
	server := smtpServer(t)
	for name, c := range map[string]struct {
		fault  testserver.SMTPFault
		state  user.NoticeState
		reason string
		kept   bool // the server took the mail
	}{
		"rejects the address":               {testserver.SMTPReject, user.NoticeFailed, "smtp.550", false},
		"rejects us":                        {testserver.SMTPRejectUs, user.NoticePlanned, "smtp.550", false},
		"defers":                            {testserver.SMTPDefer, user.NoticePlanned, "smtp.451", false},
		"rejects the mail":                  {testserver.SMTPRejectData, user.NoticeFailed, "smtp.554", false},
		"defers the mail":                   {testserver.SMTPDeferData, user.NoticePlanned, "smtp.452", false},
		"does not answer":                   {testserver.SMTPHang, user.NoticePlanned, "smtp.connection", false},
		"closes the connection":             {testserver.SMTPCloseEarly, user.NoticePlanned, "smtp.connection", false},
		"takes it, closes the connection":   {testserver.SMTPCloseAfter, user.NoticePlanned, "smtp.lost", true},
		"takes it, does not answer in time": {testserver.SMTPHangAfter, user.NoticePlanned, "smtp.lost", true},
	} {
		w := newWorld(t, tabletest.New(t))
		w.smtp(server)
		w.Senders.Timeout = 300 * time.Millisecond
		at := fmt.Sprintf("@fault%d.example", c.fault)
		ada := w.userOf(w.core(acme), "ada", "ada"+at)
		w.userOf(w.core(acme), "bob", "bob"+at)
		server.Fault("ada"+at, c.fault)
		w.pass(24 * time.Hour)
		first := w.Run(t.Context())
		refused := c.state == user.NoticeFailed
		if n := w.reread(ada).PIN.Notice; first.Due != 2 || first.Errors != 0 || (first.Refused == 1) != refused ||
			n.State != c.state || n.Repeated != c.kept || n.Reason != c.reason {
			t.Errorf("%s: %+v, %+v", name, first, n)
		}

		server.Fault("ada"+at, 0)
		w.pass(time.Minute)
		second := w.Run(t.Context())
		if refused { // not tried again until there is a new address
			if got := received(t, server, "ada"+at); got != nil {
				t.Errorf("%s: Ada got %q", name, got)
			}
			w.move(ada, "new"+at)
			w.does(Report{Due: 1, Sent: 1})
		}
		want := []string{"<" + ada.MessageID() + "@acme.example>"}
		if c.kept { // the same mail twice, and it is known
			want = append(want, want...)
			if second.Repeated != 1 {
				t.Errorf("%s: %+v does not count it as repeated", name, second)
			}
		}
		if d := cmp.Diff(want, append(received(t, server, "ada"+at), received(t, server, "new"+at)...)); d != "" {
			t.Errorf("%s: Ada got (-want +got):\n%s", name, d)
		}
		if got := received(t, server, "bob"+at); len(got) != 1 {
			t.Errorf("%s: Bob got %q", name, got)
		}
	}
}

// A PIN that is renewed while the sweep is at it is neither announced for its
// old end nor deleted.
func TestRenewedMeanwhile(t *testing.T) {
	t.Run("after it was read, before it is claimed", func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		ada := w.user("ada")
		w.pass(24 * time.Hour)
		r := w.over(&hooked{Table: w.Table, afterDue: func() { w.renew(ada) }}).Run(t.Context())
		if want := (Report{Due: 1, Overtaken: 1}); r != want || w.mails() != nil {
			t.Errorf("%+v, mails %q", r, w.mails())
		}
	})
	t.Run("after it was read, before it is deleted", func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		ada := w.user("ada", silently)
		w.pass(24 * time.Hour)
		r := w.over(&hooked{Table: w.Table, afterDue: func() { w.renew(ada) }}).Run(t.Context())
		if want := (Report{Due: 1, Overtaken: 1}); r != want || w.reread(ada).PIN.State(w.Now()) != user.IsSet {
			t.Errorf("%+v, %+v", r, w.reread(ada).PIN)
		}
	})
	t.Run("between claim and mark", func(t *testing.T) {
		w, server := newWorld(t, tabletest.New(t)), smtpServer(t)
		w.smtp(server)
		ada := w.user("ada")
		w.Senders.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			w.renew(ada)
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		w.pass(24 * time.Hour)
		w.does(Report{Due: 1, Sent: 1, Overtaken: 1}) // the mail was under way
		if n := w.reread(ada).PIN.Notice; n.State != user.NoticePlanned || !n.At.Equal(w.Now().Add(24*time.Hour)) {
			t.Errorf("the new PIN's notice: %+v", n)
		}
		w.pass(24*time.Hour - time.Second) // the old PIN's end
		w.does(Report{})
		w.pass(time.Second)
		w.Senders.Dial = nil
		w.does(Report{Due: 1, Sent: 1})
		if got := received(t, server, "ada@acme.example"); len(got) != 2 || got[0] == got[1] {
			t.Errorf("mails of two PINs: %q", got)
		}
	})
	t.Run("between claim and mark, deleted with its user", func(t *testing.T) {
		w, server := newWorld(t, tabletest.New(t)), smtpServer(t)
		w.smtp(server)
		ada := w.user("ada")
		w.Senders.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			must(w, w.Users.Delete(ctx, w.core(acme), admin, ada.ID))
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		w.pass(24 * time.Hour)
		w.does(Report{Due: 1, Sent: 1, Overtaken: 1})
	})
}

// However many sweeps meet, each mail is sent once and each PIN deleted once.
func TestSweepsAtOnce(t *testing.T) {
	w, server := newWorld(t, tabletest.New(t)), smtpServer(t)
	w.smtp(server)
	const users = 60
	for i := range users {
		w.user(fmt.Sprintf("told%d", i))
		w.user(fmt.Sprintf("gone%d", i), silently)
	}
	w.pass(24 * time.Hour)
	var total Report
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			r := w.Run(t.Context())
			mu.Lock()
			defer mu.Unlock()
			total.add(r)
		})
	}
	wg.Wait()
	if total.Sent != users || total.Expired != users || total.Errors != 0 || total.Repeated != 0 {
		t.Errorf("%+v", total)
	}
	for i := range users {
		if got := received(t, server, fmt.Sprintf("told%d@acme.example", i)); len(got) != 1 {
			t.Errorf("user %d got %d mails", i, len(got))
		}
	}
	w.does(Report{})
}

// An index that shows what was some writes ago costs a sweep some effort, and
// nobody a mail or a PIN.
func TestIndexLags(t *testing.T) {
	for _, behind := range []int{1, 3, 10, 40} {
		lagging := tabletest.Lag(tabletest.New(t), tabletest.New(t), behind)
		w, server := newWorld(t, lagging), smtpServer(t)
		w.smtp(server)
		var renewed []user.User
		for i := range 10 {
			w.user(fmt.Sprintf("told%d", i))
			w.user(fmt.Sprintf("gone%d", i), silently)
			renewed = append(renewed, w.user(fmt.Sprintf("renewed%d", i)))
		}
		w.pass(23 * time.Hour)
		for _, u := range renewed {
			w.renew(u)
		}
		w.pass(time.Hour)
		var total Report
		for range 3 { // within a minute, of which nothing is tried again
			total.add(w.Run(t.Context()))
		}
		must(w, lagging.CatchUp(t.Context()))
		total.add(w.Run(t.Context()))
		if total.Sent != 10 || total.Expired != 10 || total.Errors != 0 || total.Repeated != 0 {
			t.Errorf("%d behind: %+v", behind, total)
		}
		for i, u := range renewed {
			if got := received(t, server, fmt.Sprintf("told%d@acme.example", i)); len(got) != 1 {
				t.Errorf("%d behind: user %d got %d mails", behind, i, len(got))
			}
			if got := received(t, server, u.Profile.Mail); got != nil || w.reread(u).PIN.State(w.Now()) != user.IsSet {
				t.Errorf("%d behind: the renewed PIN %d was announced %q or deleted", behind, i, got)
			}
		}
		must(w, lagging.CatchUp(t.Context()))
		w.does(Report{})
	}
}

// The process dies at any call of the table, before or after it took effect,
// or while it sends. Once the claim has ended the mail is there; if it is there
// twice, that is known. The PIN that has expired is deleted and recorded once.
func TestCrashes(t *testing.T) {
	server := smtpServer(t)
	crashing := func(t *testing.T) (w *world, ada, bob user.User) {
		w = newWorld(t, tabletest.New(t))
		w.smtp(server)
		ada = w.userOf(w.core(acme), "ada", fmt.Sprintf("ada%d@acme.example", len(server.Mails())+1000*server.Connections()))
		for bob = w.user("bob", silently); shard(bob) == shard(ada); bob = w.user("bob", silently) {
			must(w, w.Users.Delete(t.Context(), w.core(acme), admin, bob.ID))
		}
		w.pass(24 * time.Hour)
		return w, ada, bob
	}
	// later is after the crash, when the claim has ended.
	later := func(t *testing.T, what string, w *world, ada, bob user.User) (mails int) {
		t.Helper()
		w.pass(lease)
		if r := w.Run(t.Context()); r.Errors != 0 {
			t.Errorf("%s: the next sweep: %+v", what, r)
		}
		w.does(Report{})
		got := received(t, server, ada.Profile.Mail)
		n := w.reread(ada).PIN.Notice
		if len(got) < 1 || len(got) > 2 || n.State != user.NoticeSent || len(got) == 2 && (!n.Repeated || got[0] != got[1]) {
			t.Errorf("%s: Ada got %q, and her notice is %+v", what, got, n)
		}
		if d := cmp.Diff([]string{"pin.expired"}, w.history(bob)); d != "" || w.reread(bob).PIN.Deleted != "expired" {
			t.Errorf("%s: Bob's PIN (-want +got):\n%s", what, d)
		}
		return len(got)
	}

	for _, after := range []bool{false, true} {
		twice := 0
		for n := 1; ; n++ {
			w, ada, bob := crashing(t)
			dying := &mortal{Table: w.Table, n: n, after: after}
			for _, u := range []user.User{ada, bob} { // in this order, so that each n is another call
				w.over(dying).Run(t.Context(), shard(u))
			}
			if !dying.died() {
				if n != 12 { // the query, three reads of the tenant, claim and mark; again the four, and the deletion
					t.Errorf("two shards made %d calls", n-1)
				}
				break
			}
			if later(t, fmt.Sprintf("call %d, after %v", n, after), w, ada, bob) == 2 {
				twice++
			}
		}
		// Sent, and dead before it was marked: only then it comes twice.
		if want := map[bool]int{false: 1, true: 0}[after]; twice != want {
			t.Errorf("after %v: %d crashes led to two mails, want %d", after, twice, want)
		}
	}

	t.Run("before the mail is sent", func(t *testing.T) {
		w, ada, bob := crashing(t)
		dying := &mortal{Table: w.Table}
		sweep := w.over(dying)
		sweep.Senders.Dial = func(context.Context, string, string) (net.Conn, error) {
			dying.kill()
			return nil, errors.New("the process is dead")
		}
		sweep.Run(t.Context())
		if n := later(t, "before", w, ada, bob); n != 1 {
			t.Errorf("%d mails", n)
		}
	})
	t.Run("after the mail was sent, before the answer", func(t *testing.T) {
		w, ada, bob := crashing(t)
		dying := &mortal{Table: w.Table}
		sweep := w.over(dying)
		server.Fault(ada.Profile.Mail, testserver.SMTPCloseAfter)
		sweep.Senders.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			dying.kill()
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		sweep.Run(t.Context())
		server.Fault(ada.Profile.Mail, 0)
		if n := later(t, "after", w, ada, bob); n != 2 {
			t.Errorf("%d mails", n)
		}
	})
}

// A user whose tenant cannot be loaded is reported and left; the others are
// served.
func TestBadTenantDoesNotStopTheRest(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	ghost := w.core(acme)
	ghost.Tenant.ID = "ghost" // it has users and no tenant
	for i := range 20 {
		w.userOf(ghost, fmt.Sprintf("ghost%d", i), "")
		w.user(fmt.Sprintf("told%d", i))
	}
	w.pass(24 * time.Hour)
	w.does(Report{Due: 40, Sent: 20, Errors: 20})
	w.does(Report{Due: 20, Errors: 20})
	if _, err := w.Handle(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "20 items") {
		t.Errorf("the handler: %v", err)
	}
}

// An item in the due index that is no user, first of its shard, is reported;
// the others of the shard are served.
func TestBadItemDoesNotStopTheRest(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	ada := w.user("ada")
	id := ada.ID
	for i := 0; id == ada.ID || table.Shard(id, table.DueShards) != shard(ada); i++ {
		id = fmt.Sprint("bad", i)
	}
	bad := tabletest.Text(table.UserKey(acme, id), "not a user", table.UserDue(acme, id, start))
	must(w, w.Table.Write(t.Context(), table.Put(bad, table.Absent())))
	w.pass(24 * time.Hour)
	if r := w.Run(t.Context()); r.Sent != 1 || r.Errors != 1 {
		t.Errorf("%+v", r)
	}
}

// A tenant whose mail cannot be sent, because its messaging configuration or
// template is gone, still has its PINs deleted.
func TestBadMessagingDoesNotStopExpiry(t *testing.T) {
	for name, refs := range map[string]tenant.ExpiryMailRefs{
		"messaging": {Messaging: "gone"},
		"template":  {Messaging: "outbox", Template: "gone"},
	} {
		w := newWorld(t, tabletest.New(t))
		w.settings(acme, func(s *tenant.Settings) { s.ExpiryMail = refs })
		w.user("ada")
		bob := w.user("bob", silently)
		w.pass(24 * time.Hour)
		r := w.Run(t.Context())
		if w.reread(bob).PIN.Deleted != "expired" {
			t.Errorf("without %s: %+v, and the expired PIN is there", name, r)
		}
	}
}

// A shard that cannot be read does not stop the others.
func TestUnreadableShard(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	for i := range 40 {
		w.user(fmt.Sprintf("told%d", i))
	}
	w.pass(24 * time.Hour)
	r := w.over(tabletest.Fail(w.Table, 1, false)).Run(t.Context())
	if r.Errors != 1 || r.Sent == 0 {
		t.Errorf("%+v", r)
	}
	w.does(Report{Due: 40 - r.Sent, Sent: 40 - r.Sent})
}

// Reading takes 10 seconds: after 30 there is no time to begin anything that
// might not be finished within 40.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		const users = 40
		for i := range users {
			w.user(fmt.Sprintf("told%d", i))
		}
		w.pass(24 * time.Hour)
		slow := w.over(&hooked{Table: w.Table, beforeDue: func() { time.Sleep(10 * time.Second) }})
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		first := slow.Run(ctx)
		if !first.Unfinished || first.Sent == 0 || first.Sent == users || first.Errors != 0 || first.Due != first.Sent {
			t.Errorf("%+v", first)
		}
		w.does(Report{Due: users - first.Sent, Sent: users - first.Sent})
		if n := len(w.mails()); n != users {
			t.Errorf("%d mails", n)
		}
		short, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if got := w.Run(short); got != (Report{Unfinished: true}) {
			t.Errorf("without time: %+v", got)
		}
	})
}

// One tenant's mail server hangs until the end: its notices are marked in time
// to be tried again, and other tenants' mails are sent.
func TestHangingMailServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		w.messaging(acme, mail.Configuration{ID: "smtp", Name: "SMTP", Kind: mail.KindSMTP, From: "pins@acme.example",
			SMTP: mail.SMTPSettings{Host: "mail.acme.example", Port: 465, Security: mail.SecurityTLS}})
		w.Senders.Timeout = time.Hour
		w.Senders.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		w.open("globex")
		w.userOf(w.core("globex"), "bob", "bob@globex.example")
		ada := w.user("ada")
		w.pass(24 * time.Hour)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if got, want := w.Run(ctx), (Report{Due: 2, Sent: 1, Postponed: 1}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		if took := time.Since(began); took >= time.Minute {
			t.Errorf("it took %s", took)
		}
		if n := w.reread(ada).PIN.Notice; n.State != user.NoticePlanned || n.Reason != "smtp.timeout" || n.Repeated {
			t.Errorf("%+v", n)
		}
	})
}

// A tenant with many notices and a mail system that never answers costs the
// others one wait, not their mails.
func TestHangingMailServerStarvesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		w.messaging(acme, mail.Configuration{ID: "smtp", Name: "SMTP", Kind: mail.KindSMTP, From: "pins@acme.example",
			SMTP: mail.SMTPSettings{Host: "mail.acme.example", Port: 465, Security: mail.SecurityTLS}})
		w.Senders.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		w.open("globex")
		many := testserver.Rounds(1200, 400)
		for i := range many {
			w.user(fmt.Sprint("many", i))
		}
		w.pass(time.Minute) // the others are due later
		globex := w.core("globex")
		over := globex
		over.Policy.ExpirationHours, over.Policy.NotifyHoursBefore = 24, nil
		for i := range 40 {
			w.userOf(globex, fmt.Sprint("bob", i), fmt.Sprintf("bob%d@globex.example", i))
			w.userOf(over, fmt.Sprint("eve", i), "")
		}
		w.pass(24 * time.Hour)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		got := w.Run(ctx)
		if got.Sent != 40 || got.Expired != 40 || got.Unfinished || got.Errors > 0 || got.Waiting+got.Postponed != many {
			t.Errorf("one sweep: %+v", got)
		}
		if took := time.Since(began); took > 2*patience {
			t.Errorf("it took %s", took)
		}
	})
}

// A tenant that cannot send is recorded once, not at every try.
func TestPostponingIsRecordedOnce(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	ada := w.user("ada")
	w.settings(acme, func(s *tenant.Settings) { s.ExpiryMail.Messaging = "" })
	w.pass(24 * time.Hour)
	for range 20 {
		w.does(Report{Due: 1, Postponed: 1})
		w.pass(time.Hour)
	}
	records, _, err := audit.Of(t.Context(), w.Table, acme, user.Subject(ada.ID), "", 100)
	notices := 0
	for _, r := range records {
		if r.Action == "pin.notice" {
			notices++
		}
	}
	if err != nil || notices != 1 {
		t.Errorf("%d records of postponing, want 1: %v", notices, err)
	}
}

func TestHandle(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	ada := w.user("ada")
	w.pass(24 * time.Hour)
	hers := shard(ada)
	for _, c := range []struct {
		event string
		want  Report
		fails bool
	}{
		{fmt.Sprintf(`{"shards":[%d]}`, (hers+1)%table.DueShards), Report{}, false},
		{`{"shards":[16]}`, Report{}, true},
		{`{"shards":[-1]}`, Report{}, true},
		{fmt.Sprintf(`{"shards":[%d]}`, hers), Report{Due: 1, Sent: 1}, false},
	} {
		got, err := w.Handle(t.Context(), json.RawMessage(c.event))
		if got != c.want || (err != nil) != c.fails {
			t.Errorf("%s: %+v, %v", c.event, got, err)
		}
	}
	for i, event := range []string{`{"source":"aws.scheduler","detail":"{}"}`, `{}`, `[]`, `"x"`, ``} { // all shards
		w.user(fmt.Sprint("u", i), silently)
		w.pass(24 * time.Hour)
		if got, err := w.Handle(t.Context(), json.RawMessage(event)); got.Expired == 0 || err != nil {
			t.Errorf("%s: %+v, %v", event, got, err)
		}
	}
}

// What a sweep costs follows what is due: of 5,000 PINs that are not, none is
// read.
func TestCost(t *testing.T) {
	counting := tabletest.Count(tabletest.New(t))
	w := newWorld(t, counting)
	core := w.core(acme)
	long := core
	long.Policy.ExpirationHours = 10_000
	for i := range testserver.Rounds(5_000, 300) {
		w.userOf(long, fmt.Sprint("not due ", i), "")
	}
	const tenantReads = 3 // tenant, messaging configuration, template
	for _, due := range []int{0, 25, testserver.Rounds(200, 50)} {
		for i := range due {
			w.userOf(core, fmt.Sprintf("due %d of %d", i, due), "due@acme.example")
		}
		w.pass(24 * time.Hour)
		counting.Take()
		w.does(Report{Due: due, Sent: due})
		got := counting.Take()
		t.Logf("%3d to announce: %+v", due, got)
		if got.Writes != 2*due {
			t.Errorf("%d to announce: %d writes, want 2 each", due, got.Writes)
		}
		if most := table.DueShards + due/25 + tenantReads; got.Gets+got.Queries > most {
			t.Errorf("%d to announce: %d reads, want at most %d", due, got.Gets+got.Queries, most)
		}
		if got.Queried > due+tenantReads {
			t.Errorf("%d to announce: %d items read", due, got.Queried)
		}
		w.pass(24 * time.Hour)
		counting.Take()
		w.does(Report{Due: due, Expired: due})
		got = counting.Take()
		t.Logf("%3d to delete:   %+v", due, got)
		if most := table.DueShards + due/25 + tenantReads; got.Writes != due || got.Gets+got.Queries > most || got.Queried > due+tenantReads {
			t.Errorf("%d to delete: %+v", due, got)
		}
	}
}

// What each operation calls the table for, as the README has it.
func TestCallsPerOperation(t *testing.T) {
	counting := tabletest.Count(tabletest.New(t))
	w := newWorld(t, counting)
	w.settings(acme, func(s *tenant.Settings) { s.PINOnlyLogin = true })
	core := w.core(acme)
	ctx := t.Context()
	ada := w.userOf(core, "ada", "ada@acme.example")
	verify := func(guess string) error {
		_, err := w.Users.Verify(ctx, core, admin, user.Ref{ID: ada.ID}, secret.New(guess))
		return err
	}
	identify := func(guess string) error {
		_, err := w.Users.Identify(ctx, core, admin, "lobby", secret.New(guess))
		return err
	}
	sweep := func(want Report) func() error {
		return func() error { w.does(want); return nil }
	}
	type cost struct{ Gets, Queries, Writes int }
	table := "\n"
	for _, op := range []struct {
		name string
		pass time.Duration
		run  func() error
		want cost
	}{
		{"verify, right", 0, func() error { return verify(right) }, cost{2, 0, 2}},
		{"verify, wrong", 0, func() error { return verify(other) }, cost{2, 0, 2}},
		{"identify, right", 0, func() error { return identify(right) }, cost{5, 0, 2}},
		{"identify, wrong", 0, func() error { return identify(other) }, cost{3, 0, 2}},
		{"set", 0, func() error {
			_, err := w.Users.SetPIN(ctx, core, admin, ada.ID, secret.New(other))
			return err
		}, cost{1, 0, 1}},
		{"generate", 0, func() error {
			_, _, err := w.Users.GeneratePIN(ctx, core, admin, ada.ID, pin.GenerateOptions{})
			return err
		}, cost{1, 1, 1}},
		{"issue", 0, func() error {
			_, err := w.Users.IssuePIN(ctx, core, admin, ada.ID, user.Issue{})
			return err
		}, cost{3, 1, 1}},
		{"send", 0, func() error {
			return w.Users.SendIssued(ctx, core, w.Senders, w.reread(ada))[0].Err
		}, cost{3, 0, 2}}, // of which one is this test's
		{"sweep, 0 due", 0, sweep(Report{}), cost{0, 16, 0}},
		{"sweep, 1 notified", 24 * time.Hour, sweep(Report{Due: 1, Sent: 1}), cost{2, 17, 2}}, // 2 gets and a query are the tenant's
		{"sweep, 1 expired", 24 * time.Hour, sweep(Report{Due: 1, Expired: 1}), cost{2, 17, 1}},
	} {
		w.pass(op.pass)
		counting.Take()
		must(w, op.run())
		got := counting.Take()
		table += fmt.Sprintf("%-18s gets %d, queries %2d, writes %d (ops %d)\n", op.name, got.Gets, got.Queries, got.Writes, got.Ops)
		if (cost{got.Gets, got.Queries, got.Writes}) != op.want {
			t.Errorf("%s: %+v, want %+v", op.name, got, op.want)
		}
	}
	t.Log(table)
}
