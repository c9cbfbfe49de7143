package intake_test

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/intake"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
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

const adminKey = "8f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978"

// world are two tenants with a template of each family and two people each, a table, and a
// clock that each look advances by step.
type world struct {
	testing.TB
	*intake.Imports
	core, other tenant.Core
	piv, gids   string // acme's templates, named "Staff" and "Tokens"
	people      map[string]string
	looks       atomic.Int64
	step        atomic.Int64
}

func newWorld(tb testing.TB) *world { return newWorldOn(tb, tabletest.New(tb)) }

func newWorldOn(tb testing.TB, db table.Table) *world {
	tb.Helper()
	w := &world{TB: tb, people: map[string]string{}}
	now := func() time.Time { return start.Add(time.Duration(w.looks.Add(1) * w.step.Load())) }
	seeded := &lockedRand{of: rand.NewChaCha8([32]byte{})}
	log := audit.Log{Now: now, Rand: seeded}
	w.Imports = &intake.Imports{
		Kind: intake.Cards, Table: db, Audit: log, Now: now, Rand: seeded,
		Credentials: &credential.Credentials{Table: db, Audit: log, Now: now, Rand: seeded},
		Users:       &user.Users{Table: db, Audit: log, Now: now, Rand: seeded},
	}
	w.core, w.other = w.newCore(acme), w.newCore(globex)
	w.piv, w.gids = w.template(w.core, "PIV", "Staff", 90), w.template(w.core, "GIDS", "Tokens", 0)
	for _, name := range []string{"ada", "bob"} {
		w.people[name] = w.user(w.core, name)
	}
	return w
}

func (w *world) newCore(id table.TenantID) tenant.Core {
	w.Helper()
	root, err := vault.LocalRoot(filepath.Join(w.TempDir(), "root.key"))
	w.must(err)
	_, keys, err := vault.New(root).Create(w.Context(), id)
	w.must(err)
	return tenant.Core{Tenant: tenant.Tenant{ID: id}, Policy: tenant.Policy{Policy: pin.Default(), Version: 1}, Keys: keys}
}

func (w *world) template(core tenant.Core, family, name string, days int) string {
	w.Helper()
	f, err := card.FamilyNamed(family)
	w.must(err)
	t, err := w.Credentials.CreateTemplate(w.Context(), core, admin, credential.Template{Name: name, Family: family, Policy: f.Policy(), PINValidDays: days}, nil)
	w.must(err)
	return t.ID
}

func (w *world) user(core tenant.Core, name string) string {
	w.Helper()
	u, err := w.Users.Create(w.Context(), core, admin, user.Profile{Username: name, ExternalID: "x-" + name}, nil)
	w.must(err)
	return u.ID
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
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

// create begins an import of CSV, of PIV cards or of users, or what change makes of it.
func (w *world) create(change ...func(*intake.Options)) intake.Import {
	w.Helper()
	o := intake.Options{Format: intake.CSV}
	if w.Kind == intake.Cards {
		o.Template = w.piv
	}
	for _, c := range change {
		c(&o)
	}
	im, err := w.Create(w.Context(), w.core, admin, o)
	w.must(err)
	return im
}

func dry(o *intake.Options)    { o.DryRun = true }
func update(o *intake.Options) { o.Update = true }
func byLine(o *intake.Options) { o.Format = intake.JSONLines }

func (w *world) part(im intake.Import, n int, text string) intake.Part {
	w.Helper()
	p, err := w.Part(w.Context(), w.core, admin, im.ID, n, []byte(text))
	w.must(err)
	return p
}

// bring imports files in one import, a part each, and returns what became of the rows.
func (w *world) bring(im intake.Import, parts ...string) intake.Counts {
	w.Helper()
	for i, text := range parts {
		if p := w.part(im, i+1, text); !p.Done {
			w.Fatalf("part %d is not done", i+1)
		}
	}
	_, err := w.Finish(w.Context(), w.core, admin, im.ID)
	w.must(err)
	return w.counts(im)
}

func (w *world) counts(im intake.Import) intake.Counts {
	w.Helper()
	parts, err := w.PartsOf(w.Context(), acme, im.ID)
	w.must(err)
	return intake.Total(parts)
}

// result is the result's CSV, without its header, cells joined by "|".
func (w *world) result(im intake.Import) (rows []string) {
	w.Helper()
	for from := 1; from > 0; {
		var b bytes.Buffer
		next, err := w.Result(w.Context(), acme, im.ID, from, &b)
		w.must(err)
		all, err := csv.NewReader(&b).ReadAll()
		w.must(err)
		for _, cells := range all[1:] {
			rows = append(rows, strings.Join(cells, "|"))
		}
		from = next
	}
	return rows
}

// cards are the tenant's credentials as people see them, by id.
func (w *world) cards() map[string]string {
	w.Helper()
	names := map[string]string{w.piv: "Staff", w.gids: "Tokens", w.people["ada"]: "ada", w.people["bob"]: "bob"}
	cards := map[string]string{}
	uses := map[string]int{}
	for place, more := "", true; more; more = place != "" {
		all, next, err := w.Credentials.List(w.Context(), acme, place, 1000)
		w.must(err)
		for _, c := range all {
			uses[c.Template]++
			text := names[c.Template]
			for _, s := range []string{names[c.Holder], c.Label, c.Serial, w.puk(c)} {
				text += "," + s
			}
			if c.HasFlag() {
				text += "," + c.PINExpiresAt.Format(time.RFC3339)
			}
			cards[c.ID] = text
		}
		place = next
	}
	for _, id := range []string{w.piv, w.gids} {
		n, err := w.Credentials.Uses(w.Context(), acme, id)
		w.must(err)
		if n != uses[id] {
			w.Errorf("%d cards are counted with template %s, and %d are there", n, names[id], uses[id])
		}
	}
	return cards
}

// puk is the PUK or admin key on record.
func (w *world) puk(c credential.Credential) string {
	w.Helper()
	if c.AdminKey != nil {
		key, err := c.AdminKeyOf(w.core.Keys, acme, credential.Template{})
		w.must(err)
		return fmt.Sprintf("%x", key.Reveal())
	}
	if c.Custody.Current == 0 {
		return ""
	}
	puk, err := c.PUK(w.core.Keys, acme, c.Custody.Current)
	w.must(err)
	return puk.Reveal()
}

// recorded are the audit records about a subject, oldest first.
func (w *world) recorded(subject string) (records []audit.Record) {
	w.Helper()
	records, more, err := audit.Of(w.Context(), w.Table, acme, subject, "", 1000)
	if err != nil || more {
		w.Fatal(more, err)
	}
	return records
}

func cardID(n int) string { return fmt.Sprintf("A0%030X", n) }

func pivID(n int) string { return "piv-" + strings.ToLower(cardID(n)) }

func puk(n int) string { return fmt.Sprintf("%08d", 71536294+n) }

func given(s string) *secret.Text { t := secret.New(s); return &t }
