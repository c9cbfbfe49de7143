package person

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

const (
	acme   = table.TenantID("acme")
	client = "192.0.2.7"
)

var (
	start   = time.Date(2026, 11, 21, 10, 30, 0, 0, time.UTC)
	office  = audit.Actor{Kind: audit.API, ID: "k1", Name: "intranet"}
	browser = Device{client, "Mozilla/5.0"}
)

// unexported lets people and sessions be compared with all that is kept of them.
var unexported = cmp.AllowUnexported(Person{}, Session{}, confirmation{})

// world is an installation with one tenant that can send mail, a table whose calls are
// counted, an outbox, and a clock that stands still.
type world struct {
	testing.TB
	*People
	table  *tabletest.Counting
	core   tenant.Core
	outbox *mail.Outbox
	log    *bytes.Buffer
	past   atomic.Int64 // time.Duration since start
	told   atomic.Int64 // audit records
}

// Log is the test's, not the people's.
func (w *world) Log(args ...any) { w.TB.Helper(); w.TB.Log(args...) }

// lockedRand is a generator for concurrent use.
type lockedRand struct {
	sync.Mutex
	*rand.ChaCha8
}

func (r *lockedRand) Read(b []byte) (int, error) {
	r.Lock()
	defer r.Unlock()
	return r.ChaCha8.Read(b)
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	root, err := vault.LocalRoot(filepath.Join(tb.TempDir(), "root.key"))
	if err != nil {
		tb.Fatal(err)
	}
	w := &world{TB: tb, table: tabletest.Count(tabletest.New(tb)), log: &bytes.Buffer{}}
	if w.outbox, err = mail.OpenOutbox(filepath.Join(tb.TempDir(), "outbox")); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = w.outbox.Close() })
	now := func() time.Time { return start.Add(time.Duration(w.past.Load())) }
	// Records are a millisecond apart, so that their order is known.
	tick := func() time.Time { return now().Add(time.Duration(w.told.Add(1)) * time.Millisecond) }
	seeded := &lockedRand{ChaCha8: rand.NewChaCha8([32]byte{})}
	log := audit.Log{Now: tick, Rand: seeded}
	ts := &tenant.Tenants{Table: w.table, Vault: vault.New(root), Audit: log, Now: now, Rand: seeded}
	w.People = &People{Table: w.table, Tenants: ts, Senders: mail.Senders{Outbox: w.outbox, Now: now}, Audit: log, Now: now, Rand: seeded,
		Log: slog.New(slog.NewTextHandler(w.log, nil)), BaseURL: "https://pin.example"}
	w.core = w.open(acme)
	w.messaging(w.core)
	return w
}

func (w *world) open(id table.TenantID) tenant.Core {
	w.Helper()
	core, _, err := w.Tenants.Create(w.Context(), office, tenant.Tenant{ID: id, Settings: tenant.Settings{DisplayName: "Acme", TimeZone: "Europe/Berlin", Language: "en"}})
	if err != nil {
		w.Fatal(err)
	}
	return core
}

// messaging lets a tenant send mail.
func (w *world) messaging(core tenant.Core) {
	w.Helper()
	op, err := mail.Store{Table: w.Table, Tenant: core.Tenant.ID, Keys: core.Keys}.PutConfiguration(w.Context(),
		mail.Configuration{ID: "outbox", Name: "Outbox", Kind: mail.KindOutbox, From: "pin@acme.example"})
	if err == nil {
		err = w.Table.Write(w.Context(), op)
	}
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) pass(d time.Duration) { w.past.Add(int64(d)) }

// on returns the same people over another table, such as one that fails.
func (w *world) on(t table.Table) *People {
	ps, ts := *w.People, *w.Tenants
	ts.Table = t
	ps.Table, ps.Tenants = t, &ts
	return &ps
}

// must returns what an operation that has to succeed returned.
func must[V any](v V, err error) func(testing.TB) V {
	return func(tb testing.TB) V {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return v
	}
}

// person adds somebody with the given roles, whose address is their name.
func (w *world) person(name string, roles ...tenant.Role) Person {
	w.Helper()
	return must(w.Create(w.Context(), w.core, office, Person{Name: name, Mail: strings.ToLower(name) + "@acme.example", Roles: roles}))(w)
}

func (w *world) reread(p Person) Person {
	w.Helper()
	return must(w.Get(w.Context(), w.core.Tenant.ID, p.ID))(w)
}

// enter signs somebody in.
func (w *world) enter(p Person) (Session, secret.Text) {
	w.Helper()
	s, cookie, err := w.SignIn(w.Context(), w.core, p.ID, ByOIDC, browser)
	if err != nil {
		w.Fatal(err)
	}
	return s, cookie
}

// begin begins a sign-in by mail.
func (w *world) begin(address string) Attempt {
	w.Helper()
	return must(w.Begin(w.Context(), acme, address, client))(w)
}

// mails are all that were sent, the oldest first.
func (w *world) mails() []mail.Mail {
	w.Helper()
	all := must(w.outbox.List(1000))(w)
	slices.Reverse(all)
	return all
}

var (
	codeInMail = regexp.MustCompile(`\b(\d{4} \d{4})\b`)
	linkInMail = regexp.MustCompile(`https://pin\.example/console/sign-in/link\?t=(\S+)`)
)

// mailed returns code and link of the last mail that has the given text in its id, such as an
// attempt's.
func (w *world) mailed(id string) (code, link secret.Text) {
	w.Helper()
	for _, m := range w.mails() {
		if !strings.Contains(m.ID, id) {
			continue
		}
		if found := codeInMail.FindStringSubmatch(m.Text); found != nil {
			code = secret.New(found[1])
		}
		if found := linkInMail.FindStringSubmatch(m.Text); found != nil {
			link = secret.New(found[1])
		}
	}
	if code.Empty() {
		w.Fatalf("no mail of %s has a code", id)
	}
	return code, link
}

// wrong is a code other than the given one.
func wrong(code secret.Text) secret.Text {
	s := code.Reveal()
	last := s[len(s)-1]
	return secret.New(s[:len(s)-1] + string('0'+(last-'0'+1)%10))
}

// audited returns all records of a tenant from start until now, oldest first, as "action
// outcome reason".
func (w *world) audited(t table.TenantID) (all []string) {
	w.Helper()
	for _, r := range w.records(t) {
		all = append(all, strings.TrimSpace(r.Action+" "+string(r.Outcome)+" "+r.Reason))
	}
	return all
}

func (w *world) records(t table.TenantID) (all []audit.Record) {
	w.Helper()
	for day := start; !day.After(w.Now()); day = day.AddDate(0, 0, 1) {
		records, more, err := audit.Day(w.Context(), w.Table, t, day, "", table.MaxLimit)
		if err != nil || more {
			w.Fatal(err, more)
		}
		slices.Reverse(records)
		all = append(all, records...)
	}
	return all
}

// objections are what an InvalidError objects to, as "field:code".
func objections(err error) (list []string) {
	var invalid *problem.InvalidError
	if errors.As(err, &invalid) {
		for _, v := range invalid.Violations {
			list = append(list, v.Field+":"+v.Code)
		}
	}
	return list
}

// racing runs n calls at the same time and returns their errors.
func racing(n int, call func(i int) error) []error {
	errs := make([]error, n)
	ready := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-ready
			errs[i] = call(i)
		})
	}
	close(ready)
	wg.Wait()
	return errs
}

// onWrite is a table before whose first Write something else happens.
type onWrite struct {
	table.Table
	before func()
}

// Write implements table.Table.
func (o *onWrite) Write(ctx context.Context, ops ...table.Op) error {
	if before := o.before; before != nil {
		o.before = nil
		before()
	}
	return o.Table.Write(ctx, ops...)
}
