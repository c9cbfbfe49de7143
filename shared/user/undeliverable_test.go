package user

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

// bounces lets a stored tenant's users' mails come back.
func bounces(w *world) (*Bounces, *bytes.Buffer) {
	w.Helper()
	root, err := vault.LocalRoot(filepath.Join(w.TempDir(), "root.key"))
	if err != nil {
		w.Fatal(err)
	}
	ts := &tenant.Tenants{Table: w.Table, Vault: vault.New(root), Audit: w.Audit, Now: w.Now, Rand: w.Rand}
	core, _, err := ts.Create(w.Context(), admin, tenant.Tenant{ID: acme, Settings: tenant.Settings{DisplayName: "Acme", TimeZone: "UTC", Language: "en"}})
	if err != nil {
		w.Fatal(err)
	}
	if err := w.Table.Write(w.Context(), tenant.PutWatch(acme, tenant.Watch{Types: []string{string(event.MailBounced)}})); err != nil {
		w.Fatal(err)
	}
	w.core.Keys = core.Keys
	var log bytes.Buffer
	return &Bounces{w.Users, ts, slog.New(slog.NewTextHandler(&log, nil))}, &log
}

// notification is one of testdata/events, of a user of a tenant, their address, and when the
// mail was sent.
func notification(tb testing.TB, file, tenant, user, address string, sent time.Time) json.RawMessage {
	tb.Helper()
	raw, err := os.ReadFile("../../testdata/events/" + file + ".json")
	if err != nil {
		tb.Fatal(err)
	}
	s := string(raw)
	for old, new := range map[string]string{
		"01M7YRRT80V63QXKKD6T5AR6KF": user, "ada@acme.example": address, "2026-11-22T10:00:00.123Z": sent.Format(time.RFC3339Nano),
	} {
		s = strings.ReplaceAll(s, old, new)
	}
	s = strings.ReplaceAll(s, `"pinward-tenant": [`+"\n"+`          "acme"`, `"pinward-tenant": [`+"\n"+`          "`+tenant+`"`)
	return json.RawMessage(s)
}

func TestBounces(t *testing.T) {
	for _, c := range []struct {
		file string
		want MailProblemKind // "" for none
		code string
	}{
		{"ses-eventbridge-bounce", MailBounced, "ses.Permanent.General"},
		{"ses-eventbridge-complaint", MailComplaint, "ses.complaint.abuse"},
		{"ses-sns-bounce", MailBounced, "ses.Permanent.General"},
		{"ses-sns-lambda-complaint", MailComplaint, "ses.complaint.abuse"},
		{"ses-sns-identity-bounce", "", ""},
		{"ses-eventbridge-transient", "", ""},
		{"ses-eventbridge-delivery", "", ""},
	} {
		w := newWorld(t, expiring)
		b, log := bounces(w)
		ada := w.user("ada", pinA)
		w.pass(24 * time.Hour)
		raw := notification(t, c.file, "acme", ada.ID, "ADA@acme.example", w.Now())
		for range 3 { // SNS delivers at least once
			if err := b.Handle(t.Context(), raw); err != nil {
				t.Fatalf("%s: %v", c.file, err)
			}
		}
		u := w.reread(ada)
		if u.MailProblem.Kind != c.want || u.MailProblem.Code != c.code || u.MailProblem.At.IsZero() != (c.want == "") {
			t.Errorf("%s: %+v", c.file, u.MailProblem)
		}
		var want []string
		if c.want != "" {
			want = []string{string(c.want)}
		}
		if d := cmp.Diff(want, w.toldOf(event.MailBounced, "kind")); d != "" {
			t.Errorf("%s: events (-want +got):\n%s", c.file, d)
		}
		if strings.Contains(strings.ToLower(log.String()), "acme.example") {
			t.Errorf("%s: an address is in the log: %s", c.file, log)
		}
		w.check([]string{"ada"}, nil)
	}
}

// A notification of a former address, of a mail from before the address was cleared, of nobody
// and of another tenant's user changes nothing, and says nothing.
func TestBouncesOfOthers(t *testing.T) {
	w := newWorld(t)
	b, _ := bounces(w)
	ada := w.user("ada", "")
	const file = "ses-eventbridge-bounce"
	unmarked := func(name string, raw json.RawMessage) {
		t.Helper()
		before := w.reread(ada)
		if err := b.Handle(t.Context(), raw); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if u := w.reread(ada); u.Version != before.Version || u.MailProblem != (MailProblem{}) {
			t.Errorf("%s: %+v", name, u.MailProblem)
		}
	}
	w.pass(time.Hour)
	unmarked("an address that was never hers", notification(t, file, "acme", ada.ID, "eve@acme.example", w.Now()))
	unmarked("an unknown tenant", notification(t, file, "globex", ada.ID, "ada@acme.example", w.Now()))
	unmarked("the installation", notification(t, file, "platform", ada.ID, "ada@acme.example", w.Now()))
	unmarked("a tenant that cannot be", notification(t, file, strings.Repeat("a", 250), ada.ID, "ada@acme.example", w.Now()))
	unmarked("an unknown user", notification(t, file, "acme", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "ada@acme.example", w.Now()))
	unmarked("a user that cannot be", notification(t, file, "acme", strings.Repeat("U", 250), "ada@acme.example", w.Now()))

	sent := w.Now()
	w.pass(time.Hour)
	for _, to := range []string{"ada@home.example", "ada@acme.example"} { // and back
		must(w.Update(t.Context(), w.core, admin, ada.ID, 0, func(p *Profile) { p.Mail = to }, nil))(t)
		unmarked("a mail from before "+to, notification(t, file, "acme", ada.ID, "ada@acme.example", sent))
	}
	w.pass(time.Hour)
	raw := notification(t, file, "acme", ada.ID, "ada@acme.example", w.Now())
	if err := b.Handle(t.Context(), raw); err != nil || w.reread(ada).Unreachable() != ReasonUndeliverable {
		t.Errorf("hers: %v", err)
	}
	w.pass(time.Hour)
	must(w.ClearMailProblem(t.Context(), w.core, admin, ada.ID))(t)
	unmarked("delivered once more after it was cleared", raw)

	if err := b.Handle(t.Context(), json.RawMessage(`{"hello":"world"}`)); err == nil {
		t.Error("no notification was taken for one")
	}
	w.check([]string{"ada"}, nil)
}

// The mark goes with the address, with an administrator's word, and with the user; what was
// not sent to an address that did not work is sent to one that does.
func TestMailProblemEnds(t *testing.T) {
	for name, end := range map[string]func(*world, User) error{
		"another address": func(w *world, u User) error {
			_, err := w.Update(w.Context(), w.core, admin, u.ID, 0, func(p *Profile) { p.Mail = "ada@home.example" }, nil)
			return err
		},
		"no address": func(w *world, u User) error {
			_, err := w.Update(w.Context(), w.core, admin, u.ID, 0, func(p *Profile) { p.Mail = "" }, nil)
			return err
		},
		"cleared": func(w *world, u User) error {
			_, err := w.ClearMailProblem(w.Context(), w.core, admin, u.ID)
			return err
		},
		"deleted": func(w *world, u User) error { return w.Delete(w.Context(), w.core, admin, u.ID) },
	} {
		w := newWorld(t, expiring)
		ada := w.user("ada", pinA)
		w.pass(24 * time.Hour)
		w.mark(claim(w, ada), Delivery{State: NoticeSent})
		if done, err := w.MailFailed(t.Context(), w.core, sweep, ada.ID, ada.Profile.Mail, w.Now(), MailProblem{Kind: MailBounced, At: w.Now(), Code: "x"}); !done || err != nil {
			t.Fatal(done, err)
		}
		if got, next, err := w.Undeliverable(t.Context(), acme, "", 10); len(got) != 1 || got[0].ID != ada.ID || next != "" || err != nil {
			t.Errorf("%s: listed %v, %q, %v", name, got, next, err)
		}
		w.pass(time.Hour)
		if err := end(w, ada); err != nil {
			t.Fatal(err)
		}
		if got, _, err := w.Undeliverable(t.Context(), acme, "", 10); len(got) != 0 || err != nil {
			t.Errorf("%s: still listed: %v, %v", name, got, err)
		}
		w.holds(table.UndeliverableKey(acme, ada.ID), User{}, false)
		if name != "deleted" {
			if u := w.reread(ada); u.MailProblem != (MailProblem{}) || len(w.due()) != 1 {
				t.Errorf("%s: %+v, due %v", name, u.MailProblem, w.due())
			}
		}
	}
}

// A mailbox that is not there is marked in the Write in which the notice fails.
func TestNoMailbox(t *testing.T) {
	counting := tabletest.Count(tabletest.New(t))
	w := newWorld(t, expiring, waiting(event.MailBounced))
	w.Table, w.Users.Table = counting, counting
	ada := w.user("ada", pinA)
	w.pass(24 * time.Hour)
	claimed := claim(w, ada)
	counting.Take()
	w.mark(claimed, Delivery{State: NoticeFailed, Reason: "smtp.550", NoMailbox: true})
	if got := counting.Take(); got.Writes != 1 || got.Gets != 0 {
		t.Errorf("%+v", got)
	}
	if u := w.reread(ada); u.MailProblem.Kind != MailboxRefused || u.MailProblem.Code != "smtp.550" || u.PIN.Notice.State != NoticeFailed {
		t.Errorf("%+v, %+v", u.MailProblem, u.PIN.Notice)
	}
	if d := cmp.Diff([]string{"refused"}, w.toldOf(event.MailBounced, "kind")); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}

	bob := w.user("bob", pinB) // whose address is another by now
	w.pass(24 * time.Hour)
	claimed = claim(w, bob)
	must(w.Update(t.Context(), w.core, admin, bob.ID, 0, func(p *Profile) { p.Mail = "bob@home.example" }, nil))(t)
	w.mark(claimed, Delivery{State: NoticeFailed, Reason: "smtp.550", NoMailbox: true})
	if u := w.reread(bob); u.MailProblem != (MailProblem{}) {
		t.Errorf("Bob: %+v", u.MailProblem)
	}
}

// What a bounce costs: the tenant, the user, one write; told again, no write.
func TestCostOfABounce(t *testing.T) {
	w := newWorld(t)
	b, _ := bounces(w)
	ada := w.user("ada", "")
	counting := tabletest.Count(w.Table)
	us, ts := *w.Users, *b.Tenants
	us.Table, ts.Table = counting, counting
	b.Users, b.Tenants = &us, &ts
	w.pass(time.Hour)
	for _, want := range []int{1, 0} {
		if err := b.Handle(t.Context(), notification(t, "ses-sns-bounce", "acme", ada.ID, "ada@acme.example", w.Now())); err == nil {
			got := counting.Take()
			t.Logf("a bounce: %+v", got)
			if got.Gets != 1 || got.Queries != 1 || got.Writes != want {
				t.Errorf("%+v, want 1 get, 1 query, %d writes", got, want)
			}
		}
	}
}

func TestUndeliverablePages(t *testing.T) {
	w := newWorld(t)
	want := map[string]bool{}
	for i := range 25 {
		u := w.user(numbered("u", i), "")
		if i%2 == 0 {
			want[u.ID] = true
			must(w.MailFailed(t.Context(), w.core, sweep, u.ID, u.Profile.Mail, w.Now(), MailProblem{Kind: MailComplaint, At: w.Now()}))(t)
		}
	}
	got := map[string]bool{}
	for place, n := "", 0; ; n++ {
		users, next, err := w.Undeliverable(t.Context(), acme, place, 4)
		if err != nil || n > 10 {
			t.Fatal(n, err)
		}
		for _, u := range users {
			got[u.ID] = true
		}
		if place = next; next == "" {
			break
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
