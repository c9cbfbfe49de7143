package credential

import (
	"errors"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

const (
	acme   = table.TenantID("acme")
	globex = table.TenantID("globex")
)

var (
	start = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	admin = audit.Actor{Kind: audit.API, ID: "k1", Name: "intranet"}
)

// Cards, and what belongs to them.
const (
	pivCard   = "00112233445566778899AABBCCDDEEFF"
	pivCard2  = "0123456789ABCDEF0123456789ABCDEF"
	gidsCard  = "6A7E1F2BD9C84D3C8F10A1B2C3D4E5F6"
	ada, bob  = "01JADA", "01JBOB"
	messaging = "01JMAIL"
	pukA      = "73915846"
	pukB      = "28640597"
	pukC      = "50281736"
	keyHex    = "8f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978"
	key2Hex   = "aa1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978"
	masterHex = "d41d8cd98f00b204e9800998ecf8427ed41d8cd98f00b204e9800998ecf8427e"
)

// world are two tenants with people and a messaging configuration each, a table and a
// clock that stands still.
type world struct {
	testing.TB
	*Credentials
	core, other tenant.Core
	past        atomic.Int64 // time.Duration since start
	told        atomic.Int64 // audit records
}

func newWorld(tb testing.TB) *world { return newWorldOn(tb, tabletest.New(tb)) }

func newWorldOn(tb testing.TB, db table.Table) *world {
	tb.Helper()
	w := &world{TB: tb}
	now := func() time.Time { return start.Add(time.Duration(w.past.Load())) }
	// Records are a millisecond apart, so that their order is known.
	tick := func() time.Time { return now().Add(time.Duration(w.told.Add(1)) * time.Millisecond) }
	seeded := &lockedRand{of: rand.NewChaCha8([32]byte{})}
	w.Credentials = &Credentials{Table: db, Audit: audit.Log{Now: tick, Rand: seeded}, Now: now, Rand: seeded}
	w.core, w.other = w.newCore(acme), w.newCore(globex)
	return w
}

func (w *world) newCore(id table.TenantID) tenant.Core {
	w.Helper()
	root, err := vault.LocalRoot(filepath.Join(w.TempDir(), "root.key"))
	if err != nil {
		w.Fatal(err)
	}
	_, keys, err := vault.New(root).Create(w.Context(), id)
	if err != nil {
		w.Fatal(err)
	}
	w.put(table.UserKey(id, ada), table.UserKey(id, bob), table.MessagingKey(id, messaging))
	return tenant.Core{Tenant: tenant.Tenant{ID: id}, Policy: tenant.Policy{Policy: pin.Default(), Version: 1}, Keys: keys}
}

func (w *world) put(keys ...table.Key) {
	w.Helper()
	for _, key := range keys {
		if err := w.Table.Write(w.Context(), table.Put(tabletest.Text(key, "it"), table.Absent())); err != nil {
			w.Fatal(err)
		}
	}
}

// lockedRand is a generator for concurrent use.
type lockedRand struct {
	mu sync.Mutex
	of *rand.ChaCha8
}

func (r *lockedRand) Read(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of.Read(b)
}

func (w *world) pass(d time.Duration) { w.past.Add(int64(d)) }

func given(s string) *secret.Text { t := secret.New(s); return &t }

func number(n int) *int { return &n }

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

func aTemplate(family string) Template {
	f, _ := card.FamilyNamed(family)
	return Template{Name: family + " cards", Family: family, Policy: f.Policy(), Channels: []Channel{Operator}, PINValidDays: 90}
}

// template makes a template, with a master key unless it is "".
func (w *world) template(family, master string) Template {
	w.Helper()
	var key *secret.Text
	if master != "" {
		key = given(master)
	}
	return must(w.CreateTemplate(w.Context(), w.core, admin, aTemplate(family), key))(w)
}

// piv registers pivCard with pukA, for Ada.
func (w *world) piv() Credential {
	w.Helper()
	return must(w.Register(w.Context(), w.core, admin, New{Family: "PIV", CardID: pivCard, Template: w.template("PIV", "").ID, Holder: ada, PUK: given(pukA)}))(w)
}

func (w *world) reread(c Credential) Credential {
	w.Helper()
	return must(w.Get(w.Context(), acme, c.ID))(w)
}

// store stores a credential that a test has changed.
func (w *world) store(c Credential) Credential {
	w.Helper()
	was := w.reread(c)
	was.Version = c.Version
	if err := w.Table.Write(w.Context(), Put(acme, was, c)...); err != nil {
		w.Fatal(err)
	}
	return w.reread(c)
}

// puks are the PUKs that are kept for a credential, by slot.
func (w *world) puks(c Credential) map[int]string {
	w.Helper()
	puks := map[int]string{}
	for slot := range c.PUKs {
		puks[slot] = must(c.PUK(w.core.Keys, acme, slot))(w).Reveal()
	}
	return puks
}

// audited returns all records of the tenant, oldest first.
func (w *world) audited(t table.TenantID) []audit.Record {
	w.Helper()
	records, more, err := audit.Day(w.Context(), w.Table, t, start, "", table.MaxLimit)
	if err != nil || more {
		w.Fatal(more, err)
	}
	slices.Reverse(records)
	return records
}

// actions are what was done to a subject, oldest first.
func (w *world) actions(subject string) (actions []string) {
	w.Helper()
	for _, r := range w.audited(acme) {
		if r.Subject == subject {
			actions = append(actions, r.Action)
		}
	}
	return actions
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

// check finds nothing half done: each version of a credential and a template was put with
// its record, what is listed is what is there, templates are there, and as many
// credentials have each as are counted.
func (w *world) check() {
	w.Helper()
	ctx := w.Context()
	uses := map[string]int{}
	for place, more := "", true; more; more = place != "" {
		all, next, err := w.List(ctx, acme, place, 7)
		if err != nil {
			w.Fatal(err)
		}
		for _, c := range all {
			uses[c.Template]++
			changes := 0
			for _, action := range w.actions(Subject(c.ID)) {
				if changes++; action == "credential.deleted" {
					changes = 0
				}
			}
			if int64(changes) != c.Version {
				w.Errorf("%s has version %d, and %q", c.ID, c.Version, w.actions(Subject(c.ID)))
			}
		}
		place = next
	}
	templates := must(w.Templates(ctx, acme))(w)
	for id := range maps.Keys(uses) {
		if !slices.ContainsFunc(templates, func(t Template) bool { return t.ID == id }) {
			w.Errorf("%d credentials have a template that is gone", uses[id])
		}
	}
	for _, tmpl := range templates {
		if n := must(w.Uses(ctx, acme, tmpl.ID))(w); n != uses[tmpl.ID] {
			w.Errorf("%d credentials are counted with %s, and %d are there", n, tmpl.Name, uses[tmpl.ID])
		}
		if changes := len(w.actions(templateSubject(tmpl.ID))); int64(changes) != tmpl.Version {
			w.Errorf("template %s has version %d, and %d records", tmpl.Name, tmpl.Version, changes)
		}
	}
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
