package credential

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

// all are the tenant's credentials by id.
func (w *world) all() (all []Credential) {
	w.Helper()
	for place, more := "", true; more; more = place != "" {
		page, next, err := w.List(w.Context(), acme, place, 7)
		if err != nil {
			w.Fatal(err)
		}
		all, place = append(all, page...), next
	}
	return all
}

// found are the ids that a filter finds in pages of three, sorted.
func (w *world) found(f Filter) []string {
	w.Helper()
	ids := []string{}
	for place, more := "", true; more; more = place != "" {
		page, next, err := w.Find(w.Context(), acme, f, place, 3)
		if err != nil {
			w.Fatal(err)
		}
		for _, c := range page {
			ids = append(ids, c.ID)
		}
		if len(page) > 3 {
			w.Errorf("a page of %d", len(page))
		}
		place = next
	}
	slices.Sort(ids)
	return ids
}

// items counts what is in ranges.
func (w *world) items(rs ...table.Range) (n int) {
	w.Helper()
	for _, r := range rs {
		page, err := w.Table.Query(w.Context(), r)
		if err != nil || page.More {
			w.Fatal(page.More, err)
		}
		n += len(page.Items)
	}
	return n
}

// indexed finds every access path exact: it leads to all credentials that it should, to each
// once, and there is nothing in it besides.
func (w *world) indexed() {
	w.Helper()
	all := w.all()
	templates := must(w.Templates(w.Context(), acme))(w)
	ids := func(is func(Credential) bool) []string {
		ids := []string{}
		for _, c := range all {
			if is(c) {
				ids = append(ids, c.ID)
			}
		}
		return ids
	}
	managed := map[string]bool{}
	for _, tmpl := range templates {
		managed[tmpl.ID] = tmpl.ManagesExpiry()
	}
	now := w.Now()
	expect := func(name string, f Filter, is func(Credential) bool) {
		w.Helper()
		if d := cmp.Diff(ids(is), w.found(f)); d != "" {
			w.Errorf("%s (-want +found):\n%s", name, d)
		}
	}
	for _, s := range States() {
		expect(string(s), Filter{State: s}, func(c Credential) bool { return c.State == s })
	}
	for _, tmpl := range templates {
		expect("template", Filter{Template: tmpl.ID}, func(c Credential) bool { return c.Template == tmpl.ID })
		expect("template and state", Filter{Template: tmpl.ID, State: Active}, func(c Credential) bool { return c.Template == tmpl.ID && c.State == Active })
		expect("template, without flag", Filter{Template: tmpl.ID, WithoutFlag: true}, func(c Credential) bool { return c.Template == tmpl.ID && !c.HasFlag() && c.State != Retired })
		if want, got := len(ids(func(c Credential) bool { return c.Template == tmpl.ID && !c.HasFlag() && c.State != Retired })), w.items(table.CredentialsUnflagged(acme, tmpl.ID)...); got != want {
			w.Errorf("%d entries without flag, want %d", got, want)
		}
	}
	expect("without flag", Filter{WithoutFlag: true}, func(c Credential) bool { return managed[c.Template] && !c.HasFlag() && c.State != Retired })
	expect("expired", Filter{Expired: true}, func(c Credential) bool { return c.HasFlag() && !now.Before(c.PINExpiresAt) && c.State != Retired })
	soon := now.AddDate(0, 0, 20)
	expect("expiring", Filter{ExpiringBefore: soon}, func(c Credential) bool {
		return c.HasFlag() && now.Before(c.PINExpiresAt) && c.PINExpiresAt.Before(soon) && c.State != Retired
	})
	expect("disclosed", Filter{PUKDisclosed: true}, func(c Credential) bool { return !c.PUKDisclosedAt.IsZero() })
	expect("holder", Filter{Holder: ada}, func(c Credential) bool { return c.Holder == ada })
	expect("holder and state", Filter{Holder: ada, State: Active}, func(c Credential) bool { return c.Holder == ada && c.State == Active })
	expect("search", Filter{Search: "Ä"}, func(c Credential) bool {
		return strings.HasPrefix(strings.ToLower(c.Label), "ä") || strings.HasPrefix(strings.ToLower(c.Serial), "ä")
	})
	expect("card id", Filter{CardID: "a0"}, func(c Credential) bool { return strings.HasPrefix(c.CardID, "A0") })
	pointers := 0
	for _, c := range all {
		pointers += len(c.pointers(acme))
	}
	ranges := slices.Concat(table.CredentialsExpiring(acme, time.Time{}, now.AddDate(100, 0, 0)), table.CredentialsWithWord(acme, ""), table.CredentialsFiled(acme, disclosed, ""))
	for _, s := range States() {
		ranges = append(ranges, table.CredentialsFiled(acme, string(s), "")...)
	}
	if got := w.items(ranges...); got != pointers {
		w.Errorf("there are %d pointers, want %d", got, pointers)
	}
	due := 0
	for shard := range table.DueShards {
		due += w.items(table.CredentialsDueBefore(shard, now.AddDate(100, 0, 0)))
	}
	if want := len(ids(func(c Credential) bool { _, ok := c.dueAt(); return ok })); due != want {
		w.Errorf("%d credentials are due some time, want %d", due, want)
	}
}

// Whatever is done to credentials and templates, in whatever order, all that is said of them
// is found, and nothing else.
func TestIndexesAreExact(t *testing.T) {
	w := newWorld(t)
	random := rand.New(rand.NewPCG(4, 2))
	ctx := t.Context()
	var templates []Template
	for range 3 {
		tmpl := aTemplate("PIV")
		tmpl.PINValidDays = []int{0, 30, 90}[len(templates)]
		tmpl.Messaging, tmpl.OperatorMail, tmpl.Reminders = messaging, "desk@acme.example", []Reminder{{DaysBefore: 25}, {DaysBefore: 2}}
		templates = append(templates, must(w.CreateTemplate(ctx, w.core, admin, tmpl, nil))(t))
	}
	words := []string{"", "Ärmel", "ä 7", "Öde", "sn-1", strings.Repeat("ﷺ", 100)}
	pick := func(n int) string { return fmt.Sprintf("A%d%030X", n%2, n) }
	done := map[string]int{}
	for step := range testserver.Rounds(500, 150) {
		n := random.IntN(12)
		id := "piv-" + strings.ToLower(pick(n))
		var err error
		what := ""
		switch random.IntN(9) {
		case 0, 1:
			what = "register"
			c := New{Family: "PIV", CardID: pick(n), Template: templates[random.IntN(3)].ID, Holder: []string{"", ada, bob}[random.IntN(3)], Label: words[random.IntN(6)], Serial: words[random.IntN(6)]}
			switch random.IntN(3) {
			case 0:
				c.IssuedAt = w.Now()
			case 1:
				c.PINExpiresAt = w.Now().Add(time.Duration(1+random.IntN(40)) * 24 * time.Hour)
			}
			_, err = w.Register(ctx, w.core, admin, c)
		case 2:
			what = "move"
			_, err = w.Update(ctx, w.core, admin, tenant.RoleAdmin, id, 0, func(a *About) { a.State, a.Reason = States()[random.IntN(6)], "other" })
		case 3:
			what = "update"
			_, err = w.Update(ctx, w.core, admin, tenant.RoleAdmin, id, 0, func(a *About) {
				a.Template, a.Holder, a.Label, a.Serial = templates[random.IntN(3)].ID, []string{"", ada, bob}[random.IntN(3)], words[random.IntN(6)], words[random.IntN(6)]
			})
		case 4:
			what = "changed by the holder"
			_, err = w.PINChangedByHolder(ctx, w.core, admin, id, w.Now())
		case 5:
			what = "template"
			_, err = w.UpdateTemplate(ctx, w.core, admin, templates[random.IntN(3)].ID, 0, func(x *Template) { x.PINValidDays = random.IntN(2) * 30 }, nil)
		case 6:
			what = "delete"
			if random.IntN(3) == 0 {
				err = w.Delete(ctx, w.core, admin, id, 0, true)
			}
		case 7:
			what = "disclosed"
			var c Credential
			if c, err = w.Get(ctx, acme, id); err == nil {
				is := c
				is.PUKDisclosedAt = []time.Time{{}, w.Now()}[random.IntN(2)]
				err = w.Table.Write(ctx, Put(acme, c, is)...)
			}
		case 8:
			what = "notice"
			w.pass(time.Duration(random.IntN(72)) * time.Hour)
			var due []Due
			for shard := range table.DueShards {
				some, _, err := w.PINsDueBefore(ctx, shard, w.Now(), "", 3)
				if err != nil {
					t.Fatal(err)
				}
				due = append(due, some...)
			}
			for _, d := range due {
				claimed, ok, err := w.ClaimNotice(ctx, w.core, admin, d.Credential, time.Minute)
				if err != nil || !ok {
					t.Fatal(ok, err)
				}
				tmpl := must(w.Template(ctx, acme, claimed.Template))(t)
				if ok, err := w.MarkNotice(ctx, w.core, admin, claimed, tmpl, Delivery{State: NoticeSent}); err != nil || !ok {
					t.Fatal(ok, err)
				}
				done["notice sent"]++
			}
		}
		if err == nil {
			done[what]++
		} else if !named(err) && !errors.Is(err, problem.ErrForbidden) {
			t.Fatal(step, what, err)
		}
		if step%10 == 9 {
			w.indexed()
		}
		if t.Failed() {
			t.Fatalf("after step %d (%s)", step, what)
		}
	}
	for _, what := range []string{"register", "move", "update", "changed by the holder", "template", "delete", "disclosed", "notice sent"} {
		if done[what] < 3 {
			t.Errorf("%s was done %d times only: %v", what, done[what], done)
		}
	}
	t.Log(slices.Sorted(maps.Keys(done)), done)
}

// Those who change the same credential at the same time leave one that is found.
func TestIndexesTogether(t *testing.T) {
	w := newWorld(t)
	c := w.piv()
	for _, err := range racing(12, func(i int) (err error) {
		switch i % 3 {
		case 0:
			_, err = w.PINChangedByHolder(t.Context(), w.core, admin, c.ID, w.Now().Add(time.Duration(i)*time.Second))
		case 1:
			_, err = w.Update(t.Context(), w.core, admin, tenant.RoleOperator, c.ID, 0, func(a *About) { a.Label = fmt.Sprint("Card ", i) })
		default:
			_, err = w.Update(t.Context(), w.core, admin, tenant.RoleOperator, c.ID, 0, func(a *About) {
				a.Reason = "other"
				if a.State = Suspended; i > 6 {
					a.State = Retired
				}
			})
		}
		return err
	}) {
		if err != nil && !named(err) && !errors.Is(err, problem.ErrForbidden) {
			t.Error(err)
		}
	}
	w.indexed()
	w.check()
}

// What a search costs follows what is found: of 600 cards with flags, none is read for the
// 20 without, nor of the 20 that a filter gives any other.
func TestFindCost(t *testing.T) {
	counting := tabletest.Count(tabletest.New(t))
	w := newWorldOn(t, counting)
	tmpl, other := w.template("PIV", ""), w.template("PIV", "")
	for i := range 620 {
		n := New{Family: "PIV", CardID: fmt.Sprintf("%032X", i+1), Template: tmpl.ID, Label: fmt.Sprint("Card ", i), IssuedAt: w.Now()}
		if i%31 == 0 {
			n.IssuedAt, n.Template, n.Label = time.Time{}, other.ID, fmt.Sprint("Spare ", i)
		}
		must(w.Register(t.Context(), w.core, admin, n))(t)
	}
	for name, c := range map[string]struct {
		filter  Filter
		queries int // to shards, and the list of templates
		gets    int
	}{
		"without flag":              {Filter{WithoutFlag: true}, 9, 0},
		"without flag, of template": {Filter{WithoutFlag: true, Template: other.ID}, 4, 0},
		"template":                  {Filter{Template: other.ID}, 24, 20},
		"state":                     {Filter{State: Registered}, 4, 20},
		"state and template":        {Filter{State: Registered, Template: other.ID}, 4, 20},
		"label":                     {Filter{Search: "spare"}, 4, 20},
		"expired":                   {Filter{Expired: true}, 4, 0},
	} {
		counting.Take()
		all, next, err := w.Find(t.Context(), acme, c.filter, "", 50)
		got := counting.Take()
		t.Logf("%-26s %d found: %+v", name, len(all), got)
		if want := map[bool]int{true: 0, false: 20}[c.filter.Expired]; len(all) != want || next != "" || err != nil {
			t.Errorf("%s: %d, next %q, %v", name, len(all), next, err)
		}
		if got.Queries != c.queries || got.Gets != c.gets || got.Queried > 22 {
			t.Errorf("%s: %+v, want %d queries, %d gets, and no more read than is found", name, got, c.queries, c.gets)
		}
	}
	// To count reads no card.
	counting.Take()
	for _, c := range []struct {
		filter Filter
		limit  int
		n      int
		more   bool
	}{
		{Filter{State: Registered}, 50, 20, false}, {Filter{State: Registered}, 20, 20, false}, {Filter{State: Registered}, 19, 19, true},
		{Filter{WithoutFlag: true}, 50, 20, false}, {Filter{State: Blocked}, 50, 0, false}, {Filter{State: Active}, 200, 200, true},
	} {
		if n, more, err := w.Count(t.Context(), acme, c.filter, c.limit); n != c.n || more != c.more || err != nil {
			t.Errorf("%+v up to %d: %d, %t, %v", c.filter, c.limit, n, more, err)
		}
	}
	if n, _, err := w.Count(t.Context(), acme, Filter{State: Active, Template: tmpl.ID}, 50); err == nil {
		t.Errorf("a filter that cannot be counted: %d", n)
	}
	expiry := must(w.Get(t.Context(), acme, fmt.Sprintf("piv-%032x", 2)))(t).PINExpiresAt
	for _, c := range []struct {
		from, to time.Time
		n        int
		more     bool
	}{{time.Time{}, expiry, 0, false}, {expiry, expiry.Add(time.Second), 300, true}, {expiry.Add(time.Second), expiry.Add(time.Hour), 0, false}} {
		at, more, err := w.PINExpiries(t.Context(), acme, c.from, c.to, 300)
		if len(at) != c.n || more != c.more || err != nil || c.n > 0 && !at[0].Equal(expiry) {
			t.Errorf("%s to %s: %d, %t, %v", c.from, c.to, len(at), more, err)
		}
	}
	if got := counting.Take(); got.Gets != 1 {
		t.Errorf("counting: %+v", got)
	}

	// Two filters of which one is read: a page ends where too much was read, and goes on.
	pages, found := 0, 0
	for place, more := "", true; more; more = place != "" {
		all, next, err := w.Find(t.Context(), acme, Filter{State: Active, Template: "", CardID: "00", Search: "Card 61"}, place, 2)
		if err != nil {
			t.Fatal(err)
		}
		pages, found, place = pages+1, found+len(all), next
	}
	if found != 11 || pages < 5 {
		t.Errorf("%d found on %d pages", found, pages)
	}
	all, next, err := w.Find(t.Context(), acme, Filter{State: Active, CardID: "FF"}, "", 5)
	if len(all) != 0 || next != "" || err != nil {
		t.Errorf("nothing: %d, %q, %v", len(all), next, err)
	}
}

func TestBadFilters(t *testing.T) {
	w := newWorld(t)
	w.piv()
	for name, f := range map[string]Filter{
		"state:unknown":            {State: "lost"},
		"withoutFlag:inconsistent": {WithoutFlag: true, Expired: true},
		"expired:inconsistent":     {Expired: true, ExpiringBefore: start},
		"cardId:malformed":         {CardID: "0x"},
		"search:missing":           {Search: " "},
	} {
		_, _, err := w.Find(t.Context(), acme, f, "", 5)
		if d := cmp.Diff([]string{name}, objections(err)); d != "" {
			t.Errorf("%v\n%s", err, d)
		}
	}
	for _, f := range []Filter{{Holder: strings.Repeat("x", 3000)}, {Template: strings.Repeat("x", 3000)}, {WithoutFlag: true, Template: "a/b"}, {Search: strings.Repeat("x", 3000)}, {Search: "a/b\x00"}} {
		if all, next, err := w.Find(t.Context(), acme, f, "", 5); len(all) != 0 || next != "" || err != nil {
			t.Errorf("%.40v: %d, %q, %v", f, len(all), next, err)
		}
	}
	if all, _, err := w.Find(t.Context(), globex, Filter{State: Registered}, "", 5); len(all) != 0 || err != nil {
		t.Errorf("another tenant finds %d, %v", len(all), err)
	}
}
