package rule_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
	"github.com/pinward/pinward/shared/vault"
)

const acme = table.TenantID("acme")

var (
	start = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	admin = audit.Actor{Kind: audit.API, ID: "k1", Name: "intranet"}
)

// world is a whole installation with the tenant acme, which mails to an outbox, and a clock
// that stands still. The table can be made to fail.
type world struct {
	testing.TB
	*wiring.System
	table  table.Table // that never fails
	db     *bolt.DB    // the same, in the file at path
	path   string
	fails  *switched
	outbox *mail.Outbox
	log    *testserver.Buffer
	past   atomic.Int64 // time.Duration since start
	read   string       // the last mail that newMails returned
}

// switched is a table that can be exchanged.
type switched struct {
	mu sync.Mutex
	table.Table
}

func (s *switched) now() table.Table {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Table
}

func (s *switched) set(t table.Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Table = t
}

func (s *switched) Get(ctx context.Context, k table.Key) (table.Item, error) {
	return s.now().Get(ctx, k)
}

func (s *switched) Query(ctx context.Context, r table.Range) (table.Page, error) {
	return s.now().Query(ctx, r)
}

func (s *switched) Write(ctx context.Context, ops ...table.Op) error {
	return s.now().Write(ctx, ops...)
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	root, err := vault.LocalRoot(filepath.Join(tb.TempDir(), "root.key"))
	if err != nil {
		tb.Fatal(err)
	}
	outbox, err := mail.OpenOutbox(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = outbox.Close() })
	w := &world{TB: tb, outbox: outbox, log: new(testserver.Buffer), path: filepath.Join(tb.TempDir(), "table")}
	if w.db, err = bolt.Open(w.path, bolt.NoSync()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = w.db.Close() })
	w.table = w.db
	w.fails = &switched{Table: w.table}
	now := func() time.Time { return start.Add(time.Duration(w.past.Load())) }
	w.System = wiring.New(wiring.Parts{
		Table: w.fails, Root: root, Senders: mail.Senders{Outbox: outbox, Now: now}, Now: now,
		Log: slog.New(slog.NewJSONHandler(w.log, nil)), RelayURL: "wss://relay.example",
	})
	w.open(acme)
	return w
}

// open creates a tenant that has a mail system.
func (w *world) open(id table.TenantID) {
	w.Helper()
	settings := tenant.Settings{DisplayName: "Acme", TimeZone: "Europe/Berlin", Language: "en"}
	core, _, err := w.Tenants.Create(w.Context(), admin, tenant.Tenant{ID: id, Settings: settings})
	if err != nil {
		w.Fatal(err)
	}
	op, err := mail.Store{Table: w.table, Tenant: id, Keys: core.Keys}.PutConfiguration(w.Context(),
		mail.Configuration{ID: "outbox", Name: "Outbox", Kind: mail.KindOutbox, From: "PINs <pins@acme.example>"})
	if err != nil {
		w.Fatal(err)
	}
	if err := w.table.Write(w.Context(), op); err != nil {
		w.Fatal(err)
	}
	w.settings(id, func(s *tenant.Settings) { s.ExpiryMail.Messaging = "outbox" })
}

func (w *world) settings(id table.TenantID, edit func(*tenant.Settings)) {
	w.Helper()
	core := w.core(id)
	s := core.Tenant.Settings
	edit(&s)
	if _, err := w.Tenants.ChangeSettings(w.Context(), admin, core, s); err != nil {
		w.Fatal(err)
	}
}

func (w *world) core(id table.TenantID) tenant.Core {
	w.Helper()
	core, err := w.Tenants.Load(w.Context(), id)
	if err != nil {
		w.Fatal(err)
	}
	return core
}

func (w *world) pass(d time.Duration) { w.past.Add(int64(d)) }

// turnOn turns a predefined rule on.
func (w *world) turnOn(id string) {
	w.Helper()
	r, err := w.Rules.Get(w.Context(), acme, id)
	if err != nil {
		w.Fatal(err)
	}
	r.On = true
	if _, err := w.Rules.Update(w.Context(), w.core(acme), admin, r); err != nil {
		w.Fatal(err)
	}
}

// rule makes a rule that is on.
func (w *world) rule(on event.Type, c rule.Conditions, actions ...rule.Action) rule.Rule {
	w.Helper()
	r, err := w.Rules.Create(w.Context(), w.core(acme), admin, rule.Rule{Name: "a rule", On: true, Event: on, Conditions: c, Actions: actions})
	if err != nil {
		w.Fatal(err)
	}
	return r
}

// user makes a user of acme, with a PIN unless it is "".
func (w *world) user(name, pin string) user.User {
	w.Helper()
	var given *secret.Text
	if pin != "" {
		text := secret.New(pin)
		given = &text
	}
	u, err := w.Users.Create(w.Context(), w.core(acme), admin, user.Profile{Username: name, Mail: name + "@acme.example"}, given)
	if err != nil {
		w.Fatal(err)
	}
	return u
}

func (w *world) reread(u user.User) user.User {
	w.Helper()
	u, err := w.Users.Get(w.Context(), acme, u.ID)
	if err != nil {
		w.Fatal(err)
	}
	return u
}

func printJob(id, username string) event.Event {
	return event.Event{ID: id, Type: event.PrintJobSubmitted, At: start, Ref: event.Ref{Username: username}, Source: event.FromAPI}
}

func (w *world) receive(e event.Event) (rule.Answer, error) {
	return w.Engine.Receive(w.Context(), w.core(acme), e, nil)
}

func (w *world) mustReceive(e event.Event) rule.Answer {
	w.Helper()
	a, err := w.receive(e)
	if err != nil {
		w.Fatal(err)
	}
	return a
}

// sweep lets the clock fire until there is nothing more to do.
func (w *world) sweep() {
	w.Helper()
	for range 60 {
		w.pass(6 * time.Minute)
		report, err := w.Sweep().Handle(w.Context(), json.RawMessage(`{}`))
		if err != nil {
			w.Fatalf("sweep: %v %+v", err, report)
		}
		if report.Due == 0 && report.Events.Due == 0 && report.Deliveries.Due == 0 {
			return
		}
	}
	w.Fatal("the sweep does not come to an end")
}

// mails returns the mails to an address, the oldest first.
func (w *world) mails(to string) (found []mail.Mail) {
	w.Helper()
	all, err := w.outbox.List(100_000)
	if err != nil {
		w.Fatal(err)
	}
	for _, m := range all {
		if strings.Contains(m.To, to) {
			full, err := w.outbox.Open(m.Name)
			if err != nil {
				w.Fatal(err)
			}
			found = append(found, full)
		}
	}
	slices.SortFunc(found, func(a, b mail.Mail) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// newMails returns the mails since the last call.
func (w *world) newMails() (fresh []mail.Mail) {
	w.Helper()
	all, err := w.outbox.List(40)
	if err != nil {
		w.Fatal(err)
	}
	read := w.read
	for _, m := range all {
		if m.Name > read {
			full, err := w.outbox.Open(m.Name)
			if err != nil {
				w.Fatal(err)
			}
			fresh = append(fresh, full)
			w.read = max(w.read, m.Name)
		}
	}
	return fresh
}
