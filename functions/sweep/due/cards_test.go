package due

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

const day = 24 * time.Hour

// cards makes a credential template of acme: PINs that live 30 days, with reminders 14, 7
// and 1 before, to the outbox.
func (w *world) cards(edits ...func(*credential.Template)) credential.Template {
	w.Helper()
	t := credential.Template{
		Name: "Staff", Family: "PIV", Policy: card.PIV.Policy(), Channels: []credential.Channel{credential.Operator}, Messaging: "outbox",
		PINValidDays: 30, Reminders: []credential.Reminder{{DaysBefore: 1}, {DaysBefore: 14}, {DaysBefore: 7}},
	}
	for _, edit := range edits {
		edit(&t)
	}
	t, err := w.Credentials.CreateTemplate(w.Context(), w.core(acme), admin, t, nil)
	if err != nil {
		w.Fatal(err)
	}
	return t
}

// card makes a card whose PIN was issued now. Holders have names that are theirs alone.
func (w *world) card(t credential.Template, n int, holder string) credential.Credential {
	w.Helper()
	c, err := w.Credentials.Register(w.Context(), w.core(acme), admin, credential.New{
		Family: "PIV", CardID: fmt.Sprintf("%032X", n+1), Template: t.ID, Holder: holder, Label: fmt.Sprint("Card ", n), IssuedAt: w.Now(),
	})
	if err != nil {
		w.Fatal(err)
	}
	return c
}

func (w *world) holder(name, address string) user.User {
	w.Helper()
	u, err := w.Users.Create(w.Context(), w.core(acme), admin, user.Profile{Username: name, Mail: address}, nil)
	if err != nil {
		w.Fatal(err)
	}
	return u
}

func (w *world) rereadCard(c credential.Credential) credential.Credential {
	w.Helper()
	c, err := w.Credentials.Get(w.Context(), acme, c.ID)
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// sweeps sweeps the cards, and compares the report.
func (w *world) sweeps(want CardReport) {
	w.Helper()
	if d := cmp.Diff(want, w.Cards(w.Context())); d != "" {
		w.Errorf("%s after the start (-want +got):\n%s", time.Duration(w.past.Load()), d)
	}
}

// subjects are those of the mails to an address, oldest first.
func (w *world) subjects(address string) (subjects []string) {
	w.Helper()
	all, err := w.outbox.List(1000)
	if err != nil {
		w.Fatal(err)
	}
	for _, m := range slices.Backward(all) {
		if strings.Trim(m.To, "<>") == address {
			subjects = append(subjects, m.Subject)
		}
	}
	return subjects
}

// cardHistory is what the audit has on a card by the sweep, oldest first.
func (w *world) cardHistory(c credential.Credential) (all []string) {
	w.Helper()
	records, _, err := audit.Of(w.Context(), w.Table, acme, credential.Subject(c.ID), "", 100)
	if err != nil {
		w.Fatal(err)
	}
	for _, r := range slices.Backward(records) {
		if r.Actor.Kind == audit.System {
			all = append(all, strings.Join(strings.Fields(fmt.Sprint(r.Action, " ", r.Details["kind"], " ", r.Details["days"], " ", r.Details["state"], " ", r.Reason)), " "))
		}
	}
	return all
}

func (w *world) changed(c credential.Credential) credential.Credential {
	w.Helper()
	c, err := w.Credentials.PINChangedByHolder(w.Context(), w.core(acme), admin, c.ID, w.Now())
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// A card's holder is reminded as often as the template says, and told once that the PIN has
// expired, and so are the operators. The card and its PIN stay what they are.
func TestCardLife(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	ada := w.holder("ada", "ada@acme.example")
	c := w.card(w.cards(func(x *credential.Template) { x.OperatorMail = "desk@acme.example" }), 1, ada.ID)
	for d := range 40 {
		for _, at := range []time.Duration{0, 12 * time.Hour} {
			w.past.Store(int64(time.Duration(d)*day + at))
			w.Cards(t.Context())
		}
	}
	w.sweeps(CardReport{})
	german := "Die PIN Ihrer Karte für Ärztehaus & Co läuft am Montag, 21. Dezember 2026 um 11:00 Uhr MEZ ab"
	expired := "Die PIN der Karte Card 1 für Ärztehaus & Co ist abgelaufen"
	if d := cmp.Diff([]string{german, german, german, expired}, w.subjects("ada@acme.example")); d != "" {
		t.Errorf("Ada's mails (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{expired}, w.subjects("desk@acme.example")); d != "" {
		t.Errorf("the help desk's mails (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{
		"credential.notice reminder 14 sent", "credential.notice reminder 7 sent", "credential.notice reminder 1 sent",
		"credential.expired", "credential.notice expired sent", "credential.notice expiredOperators sent",
	}, w.cardHistory(c)); d != "" {
		t.Errorf("history (-want +got):\n%s", d)
	}
	now := w.rereadCard(c)
	if !now.Expired(w.Now()) || now.State != credential.Active || !now.PINExpiresAt.Equal(c.PINExpiresAt) {
		t.Errorf("it has become %+v", now)
	}

	// A new PIN begins anew, whoever has told of it.
	w.changed(c)
	for range 30 {
		w.pass(day)
		w.Cards(t.Context())
	}
	if n := len(w.subjects("ada@acme.example")); n != 8 {
		t.Errorf("%d mails after two lives of a PIN, want 8", n)
	}
}

// What could not be sent in time is not sent late: the next one says it better.
func TestCardsLate(t *testing.T) {
	for _, c := range []struct {
		name  string
		after time.Duration
		want  []string
		more  int // sweeps until nothing is due
	}{
		{"on time", 16 * day, []string{"credential.notice reminder 14 sent"}, 1},
		{"one missed", 23 * day, []string{"credential.notice reminder 14 skipped late", "credential.notice reminder 7 sent"}, 1},
		{"all but one missed", 29*day + time.Hour, []string{"credential.notice reminder 14 skipped late", "credential.notice reminder 7 skipped late", "credential.notice reminder 1 sent"}, 1},
		{"all missed", 30 * day, []string{"credential.notice reminder 14 skipped late", "credential.notice reminder 7 skipped late", "credential.notice reminder 1 skipped late",
			"credential.expired", "credential.notice expired sent"}, 1},
		{"expired long ago", 38 * day, []string{"credential.notice reminder 14 skipped late", "credential.notice reminder 7 skipped late", "credential.notice reminder 1 skipped late",
			"credential.expired", "credential.notice expired skipped late"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, tabletest.New(t))
			made := w.card(w.cards(), 1, w.holder("ada", "ada@acme.example").ID)
			w.pass(c.after)
			for range c.more {
				w.Cards(t.Context())
			}
			w.sweeps(CardReport{})
			if d := cmp.Diff(c.want, w.cardHistory(made)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// Nobody is told where nobody can be, and that is on record; the expiry is all the same.
func TestCardsOfNobody(t *testing.T) {
	must := func(w *world, err error) { must(w, err) }
	for _, c := range []struct {
		name   string
		edit   func(*credential.Template)
		holder func(w *world) string
		then   func(w *world, c credential.Credential)
		want   []string
		report CardReport
	}{
		{"no holder", nil, func(*world) string { return "" }, nil, []string{"credential.expired", "credential.notice expired skipped noHolder"}, CardReport{Due: 1, Expired: 1, Skipped: 1}},
		{"a holder who is gone", nil, func(w *world) string { return w.holder("ada", "ada@acme.example").ID }, func(w *world, c credential.Credential) {
			must(w, w.Users.Delete(w.Context(), w.core(acme), admin, c.Holder))
		}, []string{"credential.expired", "credential.notice expired skipped noHolder"}, CardReport{Due: 1, Expired: 1, Skipped: 1}},
		{"no address", nil, func(w *world) string { return w.holder("ada", "").ID }, nil, []string{"credential.expired", "credential.notice expired skipped noAddress"}, CardReport{Due: 1, Expired: 1, Skipped: 1}},
		{"no messaging", func(x *credential.Template) { x.Messaging = "" }, func(w *world) string { return w.holder("ada", "ada@acme.example").ID }, nil,
			[]string{"credential.expired", "credential.notice expired skipped noMessaging"}, CardReport{Due: 1, Expired: 1, Skipped: 1}},
		{"the tenant is suspended", nil, func(w *world) string { return w.holder("ada", "ada@acme.example").ID }, func(w *world, _ credential.Credential) {
			must(w, w.suspend(true))
		}, []string{"credential.expired", "credential.notice expired planned suspended"}, CardReport{Due: 1, Expired: 1, Postponed: 1}},
		{"the messaging configuration is gone", nil, func(w *world) string { return w.holder("ada", "ada@acme.example").ID }, func(w *world, _ credential.Credential) {
			must(w, w.Table.Write(w.Context(), table.Delete(table.MessagingKey(acme, "outbox"), table.Whatever())))
		}, []string{"credential.expired", "credential.notice expired planned messaging"}, CardReport{Due: 1, Expired: 1, Postponed: 1}},
		{"a reminder taken out", func(x *credential.Template) { x.Reminders = []credential.Reminder{{DaysBefore: 5}} }, func(w *world) string { return w.holder("ada", "ada@acme.example").ID },
			func(w *world, c credential.Credential) {
				_, err := w.Credentials.UpdateTemplate(w.Context(), w.core(acme), admin, c.Template, 0, func(x *credential.Template) { x.Reminders = nil }, nil)
				must(w, err)
				w.past.Store(int64(26 * day))
			}, []string{"credential.notice reminder 5 skipped reminderGone"}, CardReport{Due: 1, Skipped: 1}},
		{"suspended", nil, func(w *world) string { return w.holder("ada", "ada@acme.example").ID }, func(w *world, c credential.Credential) {
			_, err := w.Credentials.Update(w.Context(), w.core(acme), admin, tenant.RoleAdmin, c.ID, 0, func(a *credential.About) { a.State, a.Reason = credential.Suspended, "lost" })
			must(w, err)
		}, nil, CardReport{}},
		{"retired", nil, func(w *world) string { return w.holder("ada", "ada@acme.example").ID }, func(w *world, c credential.Credential) {
			_, err := w.Credentials.Update(w.Context(), w.core(acme), admin, tenant.RoleAdmin, c.ID, 0, func(a *credential.About) { a.State, a.Reason = credential.Retired, "replaced" })
			must(w, err)
		}, nil, CardReport{}},
		{"deleted", nil, func(w *world) string { return w.holder("ada", "ada@acme.example").ID }, func(w *world, c credential.Credential) {
			must(w, w.Credentials.Delete(w.Context(), w.core(acme), admin, c.ID, 0, true))
		}, nil, CardReport{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, tabletest.New(t))
			made := w.card(w.cards(func(x *credential.Template) {
				x.Reminders = nil
				if c.edit != nil {
					c.edit(x)
				}
			}), 1, c.holder(w))
			w.pass(30 * day)
			if c.then != nil {
				c.then(w, made)
			}
			w.sweeps(c.report)
			w.sweeps(CardReport{})
			if d := cmp.Diff(c.want, w.cardHistory(made)); d != "" || w.mails() != nil {
				t.Errorf("mails %q, history (-want +got):\n%s", w.mails(), d)
			}
		})
	}
}

// Once it can be sent, what was postponed is; a suspended card that is taken back is told of.
func TestCardsPostponed(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	c := w.card(w.cards(func(x *credential.Template) { x.Reminders = nil }), 1, w.holder("ada", "ada@acme.example").ID)
	w.pass(30 * day)
	must(w, w.suspend(true))
	w.sweeps(CardReport{Due: 1, Expired: 1, Postponed: 1})
	w.pass(wait)
	w.sweeps(CardReport{Due: 1, Postponed: 1})
	if d := cmp.Diff([]string{"credential.expired", "credential.notice expired planned suspended"}, w.cardHistory(c)); d != "" {
		t.Errorf("postponed twice (-want +got):\n%s", d)
	}
	must(w, w.suspend(false))
	move := func(to credential.State) {
		_, err := w.Credentials.Update(t.Context(), w.core(acme), admin, tenant.RoleAdmin, c.ID, 0, func(a *credential.About) { a.State, a.Reason = to, "lost" })
		must(w, err)
	}
	w.pass(wait)
	move(credential.Suspended)
	w.sweeps(CardReport{})
	move(credential.Active)
	w.sweeps(CardReport{Due: 1, Sent: 1})
	w.sweeps(CardReport{})
}

func TestCardChangedMeanwhile(t *testing.T) {
	made := func(t *testing.T) (*world, credential.Credential, *testserver.SMTPServer) {
		w, server := newWorld(t, tabletest.New(t)), smtpServer(t)
		w.smtp(server)
		c := w.card(w.cards(func(x *credential.Template) { x.Messaging = w.core(acme).Tenant.Settings.ExpiryMail.Messaging }), 1, w.holder("ada", "ada@acme.example").ID)
		w.pass(16 * day)
		return w, c, server
	}
	t.Run("after it was read, before it is claimed", func(t *testing.T) {
		w, c, server := made(t)
		r := w.over(&hooked{Table: w.Table, afterDue: func() { w.changed(c) }}).Cards(t.Context())
		if want := (CardReport{Due: 1, Overtaken: 1}); r != want || len(server.Mails()) != 0 {
			t.Errorf("%+v, %d mails", r, len(server.Mails()))
		}
	})
	t.Run("between claim and mark", func(t *testing.T) {
		w, c, server := made(t)
		w.Senders.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			w.changed(c)
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		w.sweeps(CardReport{Due: 1, Sent: 1, Overtaken: 1}) // the mail was under way
		now := w.rereadCard(c)
		if n := now.Notice; n.State != credential.NoticePlanned || n.Days != 14 || !n.At.Equal(w.Now().Add(16*day)) || n.Attempts != 0 {
			t.Errorf("the new PIN's notice: %+v", n)
		}
		w.Senders.Dial = nil
		w.pass(16 * day)
		w.sweeps(CardReport{Due: 1, Sent: 1})
		if got := received(t, server, "ada@acme.example"); len(got) != 2 || got[0] == got[1] {
			t.Errorf("mails of two PINs: %q", got)
		}
	})
	t.Run("between claim and mark, given to somebody else whose address is good", func(t *testing.T) {
		w, c, server := made(t)
		bob := w.holder("bob", "bob@acme.example")
		server.Fault("ada@acme.example", testserver.SMTPReject)
		w.Senders.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			w.Senders.Dial = nil
			_, err := w.Credentials.Update(ctx, w.core(acme), admin, tenant.RoleAdmin, c.ID, 0, func(a *credential.About) { a.Holder = bob.ID })
			must(w, err)
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		w.Cards(t.Context())
		w.Cards(t.Context())
		if got := received(t, server, "bob@acme.example"); len(got) != 1 {
			t.Errorf("Bob got %q", got)
		}
	})
}

// However many sweeps meet, each mail is sent once and each expiry recorded once.
func TestCardSweepsAtOnce(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	tmpl, ada := w.cards(), w.holder("ada", "ada@acme.example")
	const cards = 40
	for i := range cards {
		w.card(tmpl, i, ada.ID)
	}
	for _, at := range []time.Duration{16 * day, 30 * day} {
		w.past.Store(int64(at))
		var total CardReport
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				r := w.Cards(t.Context())
				mu.Lock()
				defer mu.Unlock()
				total.add(r)
			})
		}
		wg.Wait()
		if total.Sent != cards || total.Errors != 0 || total.Repeated != 0 || at == 30*day && total.Expired != cards {
			t.Errorf("%+v", total)
		}
	}
	if n := len(w.subjects("ada@acme.example")); n != 2*cards {
		t.Errorf("%d mails", n)
	}
}

// The process dies at any call of the table, before or after it took effect, or while it
// sends. Once the claim has ended the mail is there; if it is there twice, that is known.
func TestCardCrashes(t *testing.T) {
	server := smtpServer(t)
	for _, event := range []struct {
		name string
		at   time.Duration
		kind credential.NoticeKind
	}{{"reminder", 29 * day, credential.NoticeReminder}, {"expiry", 30 * day, credential.NoticeExpired}} {
		crashing := func(t *testing.T) (*world, credential.Credential, string) {
			w := newWorld(t, tabletest.New(t))
			w.smtp(server)
			address := fmt.Sprintf("ada%d@acme.example", len(server.Mails())+1000*server.Connections())
			c := w.card(w.cards(func(x *credential.Template) {
				x.Messaging, x.Reminders = w.core(acme).Tenant.Settings.ExpiryMail.Messaging, nil
				if event.kind == credential.NoticeReminder {
					x.Reminders = []credential.Reminder{{DaysBefore: 1}}
				}
			}), 1, w.holder("ada", address).ID)
			w.pass(event.at)
			return w, c, address
		}
		later := func(t *testing.T, what string, w *world, c credential.Credential, address string) (mails int) {
			t.Helper()
			w.pass(lease)
			if r := w.Cards(t.Context()); r.Errors != 0 {
				t.Errorf("%s: the next sweep: %+v", what, r)
			}
			w.sweeps(CardReport{})
			got := received(t, server, address)
			repeated := false
			records, _, err := audit.Of(t.Context(), w.Table, acme, credential.Subject(c.ID), "", 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range records {
				repeated = repeated || r.Details["possiblyRepeated"] == "true"
			}
			if len(got) < 1 || len(got) > 2 || len(got) == 2 && (!repeated || got[0] != got[1]) {
				t.Errorf("%s: Ada got %q, known as possibly repeated: %t", what, got, repeated)
			}
			want := map[credential.NoticeKind][]string{
				credential.NoticeReminder: {"credential.notice reminder 1 sent"}, credential.NoticeExpired: {"credential.expired", "credential.notice expired sent"},
			}[event.kind]
			if d := cmp.Diff(want, w.cardHistory(c)); d != "" {
				t.Errorf("%s: history (-want +got):\n%s", what, d)
			}
			return len(got)
		}
		for _, after := range []bool{false, true} {
			twice := 0
			for n := 1; ; n++ {
				w, c, address := crashing(t)
				dying := &mortal{Table: w.Table, n: n, after: after}
				w.over(dying).Cards(t.Context(), table.Shard(c.ID, table.DueShards))
				if !dying.died() {
					if n != 11 { // query; three reads of the tenant; both templates, configuration, holder; claim and mark
						t.Errorf("%s: %d calls", event.name, n-1)
					}
					break
				}
				if later(t, fmt.Sprintf("%s: call %d, after %v", event.name, n, after), w, c, address) == 2 {
					twice++
				}
			}
			if want := map[bool]int{false: 1, true: 0}[after]; twice != want {
				t.Errorf("%s, after %v: %d crashes led to two mails, want %d", event.name, after, twice, want)
			}
		}
		t.Run(event.name+": before the mail is sent", func(t *testing.T) {
			w, c, address := crashing(t)
			dying := &mortal{Table: w.Table}
			sweep := w.over(dying)
			sweep.Senders.Dial = func(context.Context, string, string) (net.Conn, error) {
				dying.kill()
				return nil, errors.New("the process is dead")
			}
			sweep.Cards(t.Context())
			if n := later(t, "before", w, c, address); n != 1 {
				t.Errorf("%d mails", n)
			}
		})
		t.Run(event.name+": after the mail was sent, before the answer", func(t *testing.T) {
			w, c, address := crashing(t)
			dying := &mortal{Table: w.Table}
			sweep := w.over(dying)
			server.Fault(address, testserver.SMTPCloseAfter)
			sweep.Senders.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				dying.kill()
				return new(net.Dialer).DialContext(ctx, network, address)
			}
			sweep.Cards(t.Context())
			server.Fault(address, 0)
			if n := later(t, "after", w, c, address); n != 2 {
				t.Errorf("%d mails", n)
			}
		})
	}
}

// One card's error does not stop the rest.
func TestBadCardDoesNotStopTheRest(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	tmpl, ada := w.cards(func(x *credential.Template) { x.Reminders = nil }), w.holder("ada", "ada@acme.example")
	for i := range 3 {
		w.card(tmpl, i, ada.ID)
	}
	bad := tabletest.Text(table.CredentialKey(acme, "piv-bad"), "bad", table.CredentialDue(acme, "piv-bad", start))
	must(w, w.Table.Write(t.Context(), table.Put(bad, table.Absent())))
	w.pass(30 * day)
	w.sweeps(CardReport{Due: 4, Expired: 3, Sent: 3, Errors: 1})
}

// What a sweep of cards costs follows what is due: of 2,000 cards that are not, none is read.
func TestCardCost(t *testing.T) {
	counting := tabletest.Count(tabletest.New(t))
	w := newWorld(t, counting)
	tmpl, ada := w.cards(func(x *credential.Template) { x.Reminders = []credential.Reminder{{DaysBefore: 7}} }), w.holder("ada", "ada@acme.example")
	later := w.cards(func(x *credential.Template) { x.PINValidDays = 3000 })
	next := 0
	for range testserver.Rounds(2_000, 300) {
		w.card(later, next, ada.ID)
		next++
	}
	const once = 6 // tenant, its own configuration and mail template, credential template, configuration, mail template
	for _, due := range []int{0, 1, testserver.Rounds(200, 50)} {
		for range due {
			w.card(tmpl, next, ada.ID)
			next++
		}
		for _, event := range []struct {
			name string
			pass time.Duration
			want CardReport
		}{{"to remind", 23 * day, CardReport{Due: due, Sent: due}}, {"to expire", 7 * day, CardReport{Due: due, Sent: due, Expired: due}}} {
			w.pass(event.pass)
			counting.Take()
			w.sweeps(event.want)
			got := counting.Take()
			t.Logf("%3d %s: %+v", due, event.name, got)
			if got.Writes != 2*due {
				t.Errorf("%d %s: %d writes, want 2 each", due, event.name, got.Writes)
			}
			if most := table.DueShards + due/25 + 2*once + due; got.Gets+got.Queries > most {
				t.Errorf("%d %s: %d reads, want at most %d", due, event.name, got.Gets+got.Queries, most)
			}
			if got.Queried > due+once {
				t.Errorf("%d %s: %d items read", due, event.name, got.Queried)
			}
		}
	}
}

// Handle sweeps the cards of the shards that it sweeps.
func TestHandleCards(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	c := w.card(w.cards(func(x *credential.Template) { x.Reminders = nil }), 1, "")
	w.pass(30 * day)
	mine := table.Shard(c.ID, table.DueShards)
	for _, shard := range []int{(mine + 1) % table.DueShards, mine} {
		r, err := w.Handle(t.Context(), fmt.Appendf(nil, `{"shards":[%d]}`, shard))
		if want := map[bool]int{true: 1}[shard == mine]; err != nil || r.Cards.Expired != want {
			t.Errorf("shard %d: %+v, %v", shard, r.Cards, err)
		}
	}
}

// The mail's own template and configuration are those of the reminder.
func TestReminderOfItsOwn(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	core := w.core(acme)
	store := mail.Store{Table: w.Table, Tenant: acme, Keys: core.Keys}
	must(w, w.Table.Write(t.Context(), store.PutTemplate(mail.Template{ID: "own", Kind: mail.CardPINExpiry, Name: "Own", Subject: "{{card}}: {{days}} days, {{username}}", Text: "t"})))
	w.card(w.cards(func(x *credential.Template) {
		x.Messaging, x.Reminders = "", []credential.Reminder{{DaysBefore: 9, MailTemplate: "own", Messaging: "outbox"}}
	}), 1, w.holder("ada", "ada@acme.example").ID)
	w.pass(21*day + 5*time.Hour)
	w.sweeps(CardReport{Due: 1, Sent: 1})
	if d := cmp.Diff([]string{"Card 1: 9 days, ada"}, w.subjects("ada@acme.example")); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
