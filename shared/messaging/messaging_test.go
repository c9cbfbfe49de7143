package messaging_test

import (
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/messaging"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

var admin = audit.Actor{Kind: audit.API, ID: "k1"}

type world struct {
	testing.TB
	*wiring.System
	messaging.Messaging
	now time.Time
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	db, err := bolt.Open(filepath.Join(dir, "table"), bolt.NoSync())
	must(t, err)
	t.Cleanup(func() { _ = db.Close() })
	root, err := vault.LocalRoot(filepath.Join(dir, "root.key"))
	must(t, err)
	outbox, err := mail.OpenOutbox(filepath.Join(dir, "outbox"))
	must(t, err)
	t.Cleanup(func() { _ = outbox.Close() })
	w := &world{TB: t, now: time.Date(2030, 3, 4, 9, 0, 0, 0, time.UTC)}
	now := func() time.Time { return w.now }
	senders := mail.Senders{Outbox: outbox, Now: now}
	w.System = wiring.New(wiring.Parts{Table: db, Root: root, Senders: senders, Now: now, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), RelayURL: "wss://relay.example"})
	w.Messaging = messaging.Messaging{Table: db, Rules: w.System.Rules, Credentials: w.System.Credentials, Senders: senders, Audit: w.System.Audit, Now: now, Rand: w.System.Rules.Rand}
	_, _, err = w.Tenants.Create(t.Context(), admin, tenant.Tenant{ID: "acme", Settings: tenant.Settings{DisplayName: "Acme", TimeZone: "UTC", Language: "en"}})
	must(t, err)
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) core() tenant.Core {
	w.Helper()
	core, err := w.Tenants.Load(w.Context(), "acme")
	must(w, err)
	return core
}

func (w *world) conf() mail.Configuration {
	w.Helper()
	c, err := w.Messaging.Create(w.Context(), w.core(), admin, mail.Configuration{Name: "Outbox", Kind: mail.KindOutbox, From: "it@acme.example"})
	must(w, err)
	return c
}

// What settings and rules name stays, also if it is named while it is being deleted.
func TestNamedStays(t *testing.T) {
	w := newWorld(t)
	c := w.conf()
	_, err := w.System.Rules.Create(t.Context(), w.core(), admin, rule.Rule{Name: "x", Event: event.PINSet, Actions: []rule.Action{{Kind: rule.SendMail, Message: "x", Messaging: c.ID}}})
	must(t, err)
	if err := w.Messaging.Delete(t.Context(), w.core(), admin, c.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("named by a rule: %v", err)
	}
	d := w.conf()
	stale := w.core()
	settings := stale.Tenant.Settings
	settings.ExpiryMail.Messaging = d.ID
	var vs problem.Violations
	checks, err := w.Messaging.ExpiryMailChecks(t.Context(), stale, settings.ExpiryMail, &vs)
	must(t, errors.Join(err, vs.Err()))
	_, err = w.Tenants.ChangeSettings(t.Context(), admin, stale, settings, checks...)
	must(t, err)
	if err := w.Messaging.Delete(t.Context(), stale, admin, d.ID); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("named meanwhile: %v", err)
	}
	if err := w.Messaging.Delete(t.Context(), w.core(), admin, d.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("named by the settings: %v", err)
	}
	if _, err := w.Store(w.core()).Configuration(t.Context(), d.ID); err != nil {
		t.Errorf("it is gone: %v", err)
	}
	must(t, w.Messaging.Delete(t.Context(), w.core(), admin, w.conf().ID))
}

// Test mails are bounded by configuration and time, and each is in the audit log.
func TestTestsAreBounded(t *testing.T) {
	w := newWorld(t)
	c, other := w.conf(), w.conf()
	try := func(id string) error {
		_, err := w.Messaging.Test(t.Context(), w.core(), admin, id, "", "ada@acme.example")
		w.now = w.now.Add(time.Second)
		return err
	}
	for range 20 {
		must(t, try(c.ID))
	}
	var limit *problem.LimitError
	if err := try(c.ID); !errors.As(err, &limit) || !limit.Until.Equal(w.now.Add(-21*time.Second+10*time.Minute)) {
		t.Fatalf("got %v at %v", err, w.now)
	}
	must(t, try(other.ID))
	w.now = limit.Until
	must(t, try(c.ID))
	if err := try(c.ID); err != nil {
		t.Errorf("a second later there is room for one more: %v", err)
	}
	records, _, err := audit.Of(t.Context(), w.Messaging.Table, "acme", messaging.Subject(c.ID), "", table.MaxLimit)
	must(t, err)
	if len(records) != 23 { // and its creation
		t.Errorf("%d records", len(records))
	}
}
