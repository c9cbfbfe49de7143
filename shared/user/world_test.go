package user

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

const acme = table.TenantID("acme")

var (
	start = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	admin = audit.Actor{Kind: audit.API, ID: "k1", Name: "intranet"}
	sweep = audit.Actor{Kind: audit.System, ID: "sweep"}
)

// Some PINs that the default policy takes.
const (
	pinA = "73915846"
	pinB = "28640597"
	pinC = "50281736"
	pinD = "94062751"
	pinE = "61834029"
)

// whole compares users with all that is kept of their PINs.
var whole = cmp.AllowUnexported(PIN{}, Pending{}, accepted{})

// world is a tenant with its users, a table and a clock that stands still.
type world struct {
	testing.TB
	*Users
	core tenant.Core
	past atomic.Int64 // time.Duration since start
	told atomic.Int64 // audit records
	post *post        // of newMailWorld
}

// newWorld opens a tenant with the default policy, edited.
func newWorld(tb testing.TB, edits ...func(*tenant.Core)) *world {
	tb.Helper()
	w := &world{TB: tb}
	now := func() time.Time { return start.Add(time.Duration(w.past.Load())) }
	// Records are a millisecond apart, so that their order is known.
	tick := func() time.Time { return now().Add(time.Duration(w.told.Add(1)) * time.Millisecond) }
	seeded := &lockedRand{of: rand.NewChaCha8([32]byte{})}
	w.Users = &Users{Table: tabletest.New(tb), Audit: audit.Log{Now: tick, Rand: seeded}, Now: now, Rand: seeded}
	w.core = w.newCore(acme)
	for _, edit := range edits {
		edit(&w.core)
	}
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
	return tenant.Core{Tenant: tenant.Tenant{ID: id}, Policy: tenant.Policy{Policy: pin.Default(), Version: 1}, Keys: keys}
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

func pinOnly(c *tenant.Core) { c.Tenant.Settings.PINOnlyLogin = true }

// expiring lets PINs live 48 hours and announces their end 24 hours before.
func expiring(c *tenant.Core) {
	c.Policy.ExpirationHours, c.Policy.NotifyHoursBefore = 48, pin.Hours{24}
}

func history(n int) func(*tenant.Core) { return func(c *tenant.Core) { c.Policy.History = n } }

func (w *world) pass(d time.Duration) { w.past.Add(int64(d)) }

func given(s string) *secret.Text { t := secret.New(s); return &t }

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

func profile(name string) Profile {
	return Profile{Username: name, Mail: name + "@acme.example", ExternalID: "ext-" + name}
}

// user creates a user, with a PIN unless it is "".
func (w *world) user(name, pin string) User {
	w.Helper()
	var with *secret.Text
	if pin != "" {
		with = given(pin)
	}
	return must(w.Create(w.Context(), w.core, admin, profile(name), with))(w)
}

func (w *world) set(u User, pin string) error {
	_, err := w.SetPIN(w.Context(), w.core, admin, u.ID, secret.New(pin))
	return err
}

func (w *world) verify(name, pin string) Result {
	w.Helper()
	return must(w.Verify(w.Context(), w.core, admin, Ref{Username: name}, secret.New(pin)))(w)
}

func (w *world) identify(terminal, pin string) Result {
	w.Helper()
	return must(w.Identify(w.Context(), w.core, admin, terminal, secret.New(pin)))(w)
}

func (w *world) reread(u User) User {
	w.Helper()
	return must(w.Get(w.Context(), w.core.Tenant.ID, u.ID))(w)
}

// audited returns all records of the tenant from start until now, oldest first.
func (w *world) audited() (all []audit.Record) {
	w.Helper()
	for day := start; !day.After(w.Now()); day = day.AddDate(0, 0, 1) {
		var records []audit.Record
		for before, more := "", true; more; {
			page, m, err := audit.Day(w.Context(), w.Table, w.core.Tenant.ID, day, before, table.MaxLimit)
			if err != nil {
				w.Fatal(err)
			}
			if more = m; more {
				before = page[len(page)-1].ID
			}
			records = append(records, page...)
		}
		slices.Reverse(records)
		all = append(all, records...)
	}
	return all
}

// reasons counts the records of an action by their reason, "" for those done.
func (w *world) reasons(action string) map[string]int {
	w.Helper()
	n := make(map[string]int)
	for _, r := range w.audited() {
		if r.Action == action {
			n[r.Reason]++
		}
	}
	return n
}

// actions are what was done to a user, oldest first.
func (w *world) actions(u User) (actions []string) {
	w.Helper()
	for _, r := range w.audited() {
		if r.Subject == Subject(u.ID) {
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

func (w *world) everybody() (all []User) {
	w.Helper()
	for place := ""; ; {
		page, next, err := w.List(w.Context(), acme, "", place, 100)
		if err != nil {
			w.Fatal(err)
		}
		all = append(all, page...)
		if next == "" {
			return all
		}
		place = next
	}
}

// check finds nothing half done: what is held for a user (names, PIN lookups,
// the count, the place in the due index, the audit) is what the user has, and
// of the names and PINs mentioned none is held for somebody who does not have
// it.
func (w *world) check(names, pins []string) {
	w.Helper()
	ctx := w.Context()
	users := w.everybody()
	if n, err := w.Count(ctx, acme); n != len(users) || err != nil {
		w.Errorf("%d users are counted, %v, and %d are there", n, err, len(users))
	}
	due := make(map[string]bool)
	for _, u := range users {
		if d := cmp.Diff(u, w.reread(u), whole); d != "" {
			w.Errorf("%s (-listed +stored):\n%s", u.Profile.Username, d)
		}
		w.holds(table.UsernameKey(acme, Fold(u.Profile.Username)), u, true)
		if u.Profile.ExternalID != "" {
			w.holds(table.ExternalKey(acme, u.Profile.ExternalID), u, true)
		}
		for _, tag := range u.tags() {
			w.holds(table.LookupKey(acme, tag), u, true)
		}
		if _, err := w.Table.Get(ctx, table.UndeliverableKey(acme, u.ID)); (err == nil) != (u.MailProblem != MailProblem{}) {
			w.Errorf("%s has the mail problem %+v, and a pointer: %v", u.Profile.Username, u.MailProblem, err)
		}
		if at, ok := u.dueAt(); ok {
			due[table.UserDue(acme, u.ID, at).Sort()] = true
		}
		// Each version of a user was put with its record, but for claims.
		changes, claims := 0, u.PIN.Notice.Attempts+u.Pending.Attempts
		for _, r := range w.audited() {
			if r.Subject != Subject(u.ID) {
				continue
			}
			with := r.Action == "pin.dropped" && slices.Contains([]string{"replaced", "deleted", "mailChanged"}, r.Reason) // told besides the change
			used := r.Details["oneTime"] != ""
			if !with && (used || !slices.Contains([]string{"pin.verify", "pin.identify", "pin.unlocked", "pin.choose"}, r.Action)) {
				changes++
			}
			if r.Action == "pin.dropped" || r.Action == "pin.activated" {
				n, _ := strconv.Atoi(r.Details["attempt"])
				claims += n
			}
		}
		if int64(changes+claims) != u.Version {
			w.Errorf("%s has version %d, with %d claims and %d records: %q", u.Profile.Username, u.Version, claims, changes, w.actions(u))
		}
	}
	for _, name := range names {
		u, err := w.ByUsername(ctx, acme, name)
		if err == nil && Fold(u.Profile.Username) != Fold(name) || err != nil && w.holds(table.UsernameKey(acme, Fold(name)), User{}, false) {
			w.Errorf("the name %s is held for %q, %v", name, u.Profile.Username, err)
		}
		u, err = w.ByExternalID(ctx, acme, "ext-"+name)
		if err == nil && u.Profile.ExternalID != "ext-"+name || err != nil && w.holds(table.ExternalKey(acme, "ext-"+name), User{}, false) {
			w.Errorf("the external id of %s is held for %q, %v", name, u.Profile.ExternalID, err)
		}
	}
	for _, pin := range pins {
		tag, err := w.core.Keys.Lookup(secret.New(pin))
		if err != nil {
			w.Fatal(err)
		}
		has := func(u User) bool { return slices.Contains(u.tags(), tag) }
		if held := w.holds(table.LookupKey(acme, tag), User{}, false); held != slices.ContainsFunc(users, has) {
			w.Errorf("the PIN %s is held: %v", pin, held)
		}
	}
	listed := make(map[string]bool)
	for shard := range table.DueShards {
		page, err := w.Table.Query(ctx, table.DueBefore(shard, start.AddDate(100, 0, 0)))
		if err != nil {
			w.Fatal(err)
		}
		for _, item := range page.Items {
			for _, k := range item.Indexes {
				if k.Index() == table.IndexDue {
					listed[k.Sort()] = true
				}
			}
		}
	}
	if d := cmp.Diff(due, listed); d != "" {
		w.Errorf("due (-by the users +by the index):\n%s", d)
	}
}

// holds tells whether something is held, and with want that it is for u.
func (w *world) holds(key table.Key, u User, want bool) bool {
	w.Helper()
	item, err := w.Table.Get(w.Context(), key)
	if err != nil && !errors.Is(err, problem.ErrNotFound) {
		w.Fatal(err)
	}
	if want && (err != nil || !strings.Contains(string(item.Data), u.ID)) {
		w.Errorf("%s of %s: %s, %v", key, u.Profile.Username, item.Data, err)
	}
	return err == nil
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

func numbered(name string, i int) string { return fmt.Sprintf("%s%03d", name, i) }
