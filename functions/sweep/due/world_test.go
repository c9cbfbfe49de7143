package due

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	netmail "net/mail"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
	"github.com/pinward/pinward/shared/vault"
)

const (
	acme  = table.TenantID("acme")
	right = "73915846"
	other = "28640597"
)

var (
	start = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	admin = audit.Actor{Kind: audit.API, ID: "k1"}
)

// world is an installation with the tenant acme, whose PINs live 48 hours and
// are announced 24 hours before, in German, to an outbox; and a clock that
// stands still.
type world struct {
	testing.TB
	*Sweep
	outbox *mail.Outbox
	past   atomic.Int64 // time.Duration since start
	told   atomic.Int64 // audit records
}

func newWorld(tb testing.TB, over table.Table) *world {
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
	w := &world{TB: tb, outbox: outbox}
	now := func() time.Time { return start.Add(time.Duration(w.past.Load())) }
	// Records are a millisecond apart, so that their order is known.
	log := audit.Log{Rand: rand.Reader, Now: func() time.Time { return now().Add(time.Duration(w.told.Add(1)) * time.Millisecond) }}
	w.Sweep = &Sweep{
		Table:   over,
		Tenants: &tenant.Tenants{Table: over, Vault: vault.New(root), Audit: log, Now: now, Rand: rand.Reader},
		Users:   &user.Users{Table: over, Audit: log, Now: now, Rand: rand.Reader},
		Senders: mail.Senders{Outbox: outbox, Now: now},
		Now:     now,
		Log:     slog.New(slog.DiscardHandler),
	}
	w.Credentials = &credential.Credentials{Table: over, Audit: log, Now: now, Rand: rand.Reader}
	w.Unblocks = &unblock.Unblocks{Table: over, Tenants: w.Tenants, Users: w.Users, Senders: w.Senders, Audit: log, Now: now, Rand: rand.Reader, Log: w.Sweep.Log,
		Credentials: w.Credentials}
	w.Deliveries = &delivery.Deliveries{Table: over, Tenants: w.Tenants, Users: w.Users, Senders: w.Senders, Audit: log, Now: now, Rand: rand.Reader, Log: w.Sweep.Log}
	w.Engine = &rule.Engine{Table: over, Tenants: w.Tenants, Rules: &rule.Rules{Table: over, Audit: log, Now: now, Rand: rand.Reader}, Users: w.Users, Credentials: w.Credentials,
		Unblocks: w.Unblocks, Deliveries: w.Deliveries, Senders: w.Senders, Audit: log, Now: now, Log: w.Sweep.Log}
	w.open(acme)
	return w
}

// open creates a tenant.
func (w *world) open(id table.TenantID) {
	w.Helper()
	settings := tenant.Settings{DisplayName: "Ärztehaus & Co", TimeZone: "Europe/Berlin", Language: "de"}
	core, _, err := w.Tenants.Create(w.Context(), admin, tenant.Tenant{ID: id, Settings: settings})
	if err != nil {
		w.Fatal(err)
	}
	p := core.Policy.Policy
	p.ExpirationHours, p.NotifyHoursBefore = 48, pin.Hours{24}
	if _, err := w.Tenants.ChangePolicy(w.Context(), admin, core, p); err != nil {
		w.Fatal(err)
	}
	w.messaging(id, mail.Configuration{ID: "outbox", Name: "Outbox", Kind: mail.KindOutbox, From: "PINs <pins@acme.example>"})
}

// messaging lets a tenant announce expiry by a mail system.
func (w *world) messaging(id table.TenantID, c mail.Configuration) {
	w.Helper()
	core := w.core(id)
	op, err := mail.Store{Table: w.Table, Tenant: id, Keys: core.Keys}.PutConfiguration(w.Context(), c)
	if err != nil {
		w.Fatal(err)
	}
	if err := w.Table.Write(w.Context(), op); err != nil {
		w.Fatal(err)
	}
	w.settings(id, func(s *tenant.Settings) { s.ExpiryMail = tenant.ExpiryMailRefs{Messaging: c.ID} })
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

// smtp lets acme announce by a mail server.
func (w *world) smtp(server *testserver.SMTPServer) {
	w.Helper()
	w.Senders.RootCAs = server.RootCAs
	w.messaging(acme, mail.Configuration{ID: "smtp", Name: "SMTP", Kind: mail.KindSMTP, From: "pins@acme.example",
		SMTP: mail.SMTPSettings{Host: server.Host, Port: server.TLSPort, Security: mail.SecurityTLS,
			Username: server.Username, Password: secret.New(server.Password)}})
}

func smtpServer(tb testing.TB) *testserver.SMTPServer {
	tb.Helper()
	server, err := testserver.SMTP()
	testserver.Need(tb, err)
	tb.Cleanup(server.Close)
	return server
}

func (w *world) pass(d time.Duration) { w.past.Add(int64(d)) }

func (w *world) core(id table.TenantID) tenant.Core {
	w.Helper()
	core, err := w.Tenants.Load(w.Context(), id)
	if err != nil {
		w.Fatal(err)
	}
	return core
}

// user creates a user of acme with a PIN.
func (w *world) user(name string, edits ...func(*tenant.Core)) user.User {
	w.Helper()
	core := w.core(acme)
	for _, edit := range edits {
		edit(&core)
	}
	return w.userOf(core, name, name+"@acme.example")
}

func (w *world) userOf(core tenant.Core, name, address string) user.User {
	w.Helper()
	pin := secret.New(right)
	u, err := w.Users.Create(w.Context(), core, admin, user.Profile{Username: name, Mail: address}, &pin)
	if err != nil {
		w.Fatal(err)
	}
	return u
}

// silently lets PINs live a day and announces nothing.
func silently(c *tenant.Core) { c.Policy.ExpirationHours, c.Policy.NotifyHoursBefore = 24, nil }

func (w *world) reread(u user.User) user.User {
	w.Helper()
	u, err := w.Users.Get(w.Context(), acme, u.ID)
	if err != nil {
		w.Fatal(err)
	}
	return u
}

func shard(u user.User) int { return table.Shard(u.ID, table.DueShards) }

func (w *world) renew(u user.User) {
	w.Helper()
	if _, err := w.Users.SetPIN(w.Context(), w.core(acme), admin, u.ID, secret.New(other)); err != nil {
		w.Fatal(err)
	}
}

func (w *world) move(u user.User, address string) {
	w.Helper()
	if _, err := w.Users.Update(w.Context(), w.core(acme), admin, u.ID, 0, func(p *user.Profile) { p.Mail = address }, nil); err != nil {
		w.Fatal(err)
	}
}

// over returns the same sweep with another table.
func (w *world) over(t table.Table) *Sweep {
	s, tenants, users, credentials, unblocks := *w.Sweep, *w.Tenants, *w.Users, *w.Credentials, *w.Unblocks
	tenants.Table, users.Table, credentials.Table, unblocks.Table = t, t, t, t
	s.Table, s.Tenants, s.Users, s.Credentials, s.Unblocks = t, &tenants, &users, &credentials, &unblocks
	return &s
}

// does sweeps, and compares the report.
func (w *world) does(want Report) {
	w.Helper()
	if d := cmp.Diff(want, w.Run(w.Context())); d != "" {
		w.Errorf("%s after the start (-want +got):\n%s", time.Duration(w.past.Load()), d)
	}
}

// mails are the addresses in the outbox, sorted.
func (w *world) mails() (to []string) {
	w.Helper()
	all, err := w.outbox.List(1000)
	if err != nil {
		w.Fatal(err)
	}
	for _, m := range all {
		to = append(to, strings.Trim(m.To, "<>"))
	}
	slices.Sort(to)
	return to
}

// received returns the Message-IDs of the mails that a server kept for an
// address.
func received(tb testing.TB, server *testserver.SMTPServer, address string) (ids []string) {
	tb.Helper()
	for _, m := range server.Mails() {
		if m.To[0] != address {
			continue
		}
		parsed, err := netmail.ReadMessage(strings.NewReader(string(m.Data)))
		if err != nil {
			tb.Fatal(err)
		}
		ids = append(ids, parsed.Header.Get("Message-ID"))
	}
	return ids
}

// history is what the audit has on a user, oldest first, as "action reason",
// without what administrators did.
func (w *world) history(u user.User) (all []string) {
	w.Helper()
	records, _, err := audit.Of(w.Context(), w.Table, acme, user.Subject(u.ID), "", 100)
	if err != nil {
		w.Fatal(err)
	}
	for _, r := range slices.Backward(records) {
		if r.Actor.Kind == audit.System {
			all = append(all, strings.TrimSpace(fmt.Sprint(r.Action, " ", r.Details["state"], " ", r.Reason)))
		}
	}
	return all
}

// hooked is a table that lets something happen around reads of the due index.
type hooked struct {
	table.Table
	beforeDue func() // each
	afterDue  func() // the first that found something
}

func (h *hooked) Query(ctx context.Context, r table.Range) (table.Page, error) {
	due := r.Spec().Index == table.IndexDue
	if due && h.beforeDue != nil {
		h.beforeDue()
	}
	page, err := h.Table.Query(ctx, r)
	if due && len(page.Items) > 0 && h.afterDue != nil {
		do := h.afterDue
		h.afterDue = nil
		do()
	}
	return page, err
}

// mortal is the table as a process that dies sees it: from the n-th call on, or
// once it is killed, nothing is answered any more. With after, the n-th call
// still takes effect.
type mortal struct {
	table.Table
	n     int
	after bool

	mu    sync.Mutex
	calls int
	dead  bool
}

func (m *mortal) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
}

func (m *mortal) died() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

func (m *mortal) run(call func() error) error {
	m.mu.Lock()
	m.calls++
	was, last := m.dead, m.calls == m.n
	m.dead = was || last
	m.mu.Unlock()
	if was || last && !m.after {
		return tabletest.ErrFault
	}
	err := call()
	if m.died() {
		return tabletest.ErrFault
	}
	return err
}

func (m *mortal) Get(ctx context.Context, key table.Key) (item table.Item, err error) {
	err = m.run(func() (err error) { item, err = m.Table.Get(ctx, key); return err })
	return item, err
}

func (m *mortal) Query(ctx context.Context, r table.Range) (page table.Page, err error) {
	err = m.run(func() (err error) { page, err = m.Table.Query(ctx, r); return err })
	return page, err
}

func (m *mortal) Write(ctx context.Context, ops ...table.Op) error {
	return m.run(func() error { return m.Table.Write(ctx, ops...) })
}

// witness is a mail system that takes everything and notes whose it was.
type witness struct {
	whose    []string
	messages []mail.Message
}

func (s *witness) Send(_ context.Context, messages []mail.Message) []mail.Result {
	results := make([]mail.Result, len(messages))
	for i, m := range messages {
		s.whose = append(s.whose, string(m.Tenant)+"/"+m.User)
		s.messages = append(s.messages, m)
		results[i] = mail.Result{Outcome: mail.Accepted}
	}
	return results
}
