package credential

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

// checks is a world whose tenants have support functions.
func checks(tb testing.TB, db table.Table) *world {
	tb.Helper()
	w := newWorldOn(tb, db)
	for _, core := range []*tenant.Core{&w.core, &w.other} {
		core.Tenant.Settings = tenant.Settings{DisplayName: "A", TimeZone: "Europe/Berlin", Language: "en", SupportFunctions: true}
	}
	return w
}

// valid makes a template with so many days of validity.
func (w *world) valid(days int) Template {
	w.Helper()
	tmpl := aTemplate("PIV")
	tmpl.Name, tmpl.PINValidDays = fmt.Sprintf("valid for %d", days), days
	return must(w.CreateTemplate(w.Context(), w.core, admin, tmpl, nil))(w)
}

// cards stores n cards of a template without a flag, numbered from a number on.
func (w *world) cards(tmpl Template, from, n int) (ids []string) {
	w.Helper()
	var ops []table.Op
	for i := range n {
		cardID := fmt.Sprintf("%032X", from+i)
		id, err := IDOf("PIV", cardID)
		if err != nil {
			w.Fatal(err)
		}
		now := w.Now().UTC().Truncate(time.Second)
		ids = append(ids, id)
		ops = append(ops, Put(acme, Credential{}, Credential{ID: id, Family: "PIV", CardID: cardID, Template: tmpl.ID, State: Active, CreatedAt: now, UpdatedAt: now})...)
		if len(ops) > table.MaxOps-6 || i == n-1 {
			if err := w.Table.Write(w.Context(), ops...); err != nil {
				w.Fatal(err)
			}
			ops = nil
		}
	}
	return ids
}

func (w *world) plan(o PlanOptions) SanityRun {
	w.Helper()
	return must(w.Plan(w.Context(), w.core, admin, o))(w)
}

// days are how many of the cards have a flag for each day.
func (w *world) days(ids []string) map[string]int {
	w.Helper()
	berlin, _ := time.LoadLocation("Europe/Berlin")
	days := map[string]int{}
	for _, id := range ids {
		c := must(w.Get(w.Context(), acme, id))(w)
		if !c.HasFlag() {
			days["none"]++
			continue
		}
		at := c.PINExpiresAt.In(berlin)
		if at.Hour() != 0 || at.Minute() != 0 {
			w.Errorf("the flag of %s is %s, not the beginning of a day", id, at)
		}
		days[at.Format(time.DateOnly)]++
	}
	return days
}

// shown is the plan's histogram.
func (w *world) shown(r SanityRun) map[string]int {
	w.Helper()
	list, _, err := w.Histogram(w.Context(), acme, r)
	if err != nil {
		w.Fatal(err)
	}
	days := map[string]int{}
	for _, d := range list {
		days[d.Date] = d.Cards
	}
	return days
}

func around(r Template, before, after int) PlanOptions {
	return PlanOptions{Templates: []string{r.ID}, Spread: Spread{Random: true, Before: before, After: after}}
}

// The example of the document: validity 100, 3 before and after, gives 97 to 103.
func TestRunDoesWhatThePlanShows(t *testing.T) {
	w := checks(t, tabletest.New(t))
	tmpl, other := w.valid(100), w.valid(200)
	ids, others := w.cards(tmpl, 0, 1500), w.cards(other, 5000, 30)
	before := w.audited(acme)

	r := w.plan(around(tmpl, 3, 3))
	if r.State != RunPlanned || r.Cards() != 1500 || r.Estimate() <= 0 {
		t.Fatalf("the plan is %+v", r)
	}
	shown := w.shown(r)
	var want []string
	for d := 97; d <= 103; d++ {
		want = append(want, time.Date(2026, 11, 21+d, 0, 0, 0, 0, time.UTC).Format(time.DateOnly))
	}
	for _, day := range want {
		if n := shown[day]; n < 150 || n > 280 {
			t.Errorf("%s gets %d of 1500 cards, want about 214", day, n)
		}
	}
	if len(shown) != 7 {
		t.Errorf("the plan shows %v, want %v", shown, want)
	}
	if got := w.days(ids); got["none"] != 1500 || len(w.audited(acme)) != len(before) {
		t.Errorf("a plan has changed something: %v", got)
	}

	r = must(w.Start(t.Context(), w.core, admin, r.ID))(t)
	if r.State != RunDone || r.Set != 1500 || r.LeftAlone+r.Later+r.Failed != 0 || !r.due.IsZero() {
		t.Errorf("the run is %+v", r)
	}
	if d := cmp.Diff(shown, w.days(ids)); d != "" {
		t.Errorf("what was shown is not what was run (-shown +run):\n%s", d)
	}
	if got := w.days(others); got["none"] != 30 {
		t.Errorf("cards of a template that was not chosen: %v", got)
	}
	c := must(w.Get(t.Context(), acme, ids[0]))(t)
	if want := (Flagged{FlagBySanityCheck, start, r.ID}); c.Flagged != want || c.State != Active || c.Notice.State != NoticePlanned {
		t.Errorf("flagged %+v with notice %+v, want %+v", c.Flagged, c.Notice, want)
	}

	// One run in the audit log, with its counts, and each card named once.
	named := map[string]int{}
	var actions []string
	for _, rec := range w.audited(acme)[len(before):] {
		if rec.Subject != RunSubject(r.ID) || rec.Actor != admin {
			t.Errorf("record %+v", rec)
		}
		if actions = append(actions, rec.Action); rec.Action == "sanityCheck.flagged" {
			for _, id := range strings.Fields(rec.Details["cards"]) {
				named[id]++
			}
		}
	}
	last := w.audited(acme)[len(before)+len(actions)-1]
	if actions[0] != "sanityCheck.started" || last.Action != "sanityCheck.done" || last.Details["set"] != "1500" || last.Details["cards"] != "1500" {
		t.Errorf("records %q, at last %v", actions, last.Details)
	}
	for _, id := range ids {
		if named[id] != 1 {
			t.Fatalf("%s is named %d times", id, named[id])
		}
	}

	// The seed gives the same days again, and another one others.
	must(w.Undo(t.Context(), w.core, admin, r.ID))(t)
	again := around(tmpl, 3, 3)
	again.Seed = r.Seed
	if d := cmp.Diff(shown, w.shown(w.plan(again))); d != "" {
		t.Errorf("the same seed (-first +second):\n%s", d)
	}
	if cmp.Equal(shown, w.shown(w.plan(around(tmpl, 3, 3)))) {
		t.Error("another seed gives the same days")
	}
}

func TestExactAndCapped(t *testing.T) {
	w := checks(t, tabletest.New(t))
	tmpl := w.valid(100)
	ids := w.cards(tmpl, 0, 140)
	exact := w.plan(PlanOptions{Templates: []string{tmpl.ID}})
	if got := w.shown(exact); !cmp.Equal(got, map[string]int{"2027-03-01": 140}) {
		t.Errorf("exact: %v", got)
	}
	for _, o := range []PlanOptions{{Templates: []string{tmpl.ID}, Spread: Spread{Cap: number(139)}}, {Templates: []string{tmpl.ID}, Spread: Spread{Random: true, Before: 3, After: 3, Cap: number(19)}}} {
		if _, err := w.Plan(t.Context(), w.core, admin, o); !slices.Equal(objections(err), []string{"dailyCap:tooLow"}) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	o := around(tmpl, 3, 3)
	o.Cap = number(20) // 7 days hold just 140
	r := w.plan(o)
	shown := w.shown(r)
	must(w.Start(t.Context(), w.core, admin, r.ID))(t)
	got := w.days(ids)
	for _, n := range got {
		if n != 20 || len(got) != 7 {
			t.Fatalf("got %v, want 20 on each of 7 days", got)
		}
	}
	if d := cmp.Diff(shown, got); d != "" {
		t.Errorf("(-shown +run):\n%s", d)
	}
}

func TestBadPlans(t *testing.T) {
	w := checks(t, tabletest.New(t))
	tmpl, none := w.valid(100), w.valid(0)
	w.cards(tmpl, 0, 3)
	w.cards(none, 10, 3)
	empty := w.valid(50)
	theirs := must(w.CreateTemplate(t.Context(), w.other, admin, aTemplate("PIV"), nil))(t)
	for name, c := range map[string]struct {
		o    PlanOptions
		want []string
	}{
		"no template":            {PlanOptions{}, []string{"templates:count"}},
		"too many templates":     {PlanOptions{Templates: make([]string, 51)}, []string{"templates:count"}},
		"twice the same":         {PlanOptions{Templates: []string{tmpl.ID, tmpl.ID}}, []string{"templates.1:repeated"}},
		"unknown template":       {PlanOptions{Templates: []string{"01JX"}}, []string{"templates.0:unknown"}},
		"no template at all":     {PlanOptions{Templates: []string{strings.Repeat("x", 5000), "\x00"}}, []string{"templates.0:unknown", "templates.1:unknown"}},
		"another tenant's":       {PlanOptions{Templates: []string{theirs.ID}}, []string{"templates.0:unknown"}},
		"no server-managed":      {PlanOptions{Templates: []string{none.ID}}, []string{"templates.0:inconsistent"}},
		"before is the validity": {around(tmpl, 100, 0), []string{"beforeDays:range"}},
		"before is more":         {around(tmpl, 101, 0), []string{"beforeDays:range"}},
		"before is just less":    {around(tmpl, 99, 0), nil},
		"no cards":               {PlanOptions{Templates: []string{empty.ID}}, []string{"templates:noCards"}},
		"all at once": {PlanOptions{Templates: []string{tmpl.ID, none.ID}, Seed: "x", Spread: Spread{Random: true, Before: 100, After: -1, Cap: number(0)}},
			[]string{"afterDays:range", "dailyCap:range", "seed:malformed", "beforeDays:range", "templates.1:inconsistent"}},
	} {
		_, err := w.Plan(t.Context(), w.core, admin, c.o)
		if d := cmp.Diff(c.want, objections(err)); d != "" || c.want == nil && err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, d)
		}
	}
}

func TestPlanIsForOneRunOfItsTenantWithinAnHour(t *testing.T) {
	w := checks(t, tabletest.New(t))
	tmpl := w.valid(100)
	ids := w.cards(tmpl, 0, 3)
	ctx := t.Context()
	r := w.plan(around(tmpl, 3, 3))
	imported := tabletest.Record{Key: table.JobKey(globex, "01JIMPORT"), Data: []byte(`{"format":"csv","template":"x","state":"open","createdAt":"2026-11-21T10:00:00Z","parts":3}`)}
	if err := w.Table.Write(ctx, table.Put(imported, table.Absent())); err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]string{"another tenant's": r.ID, "an import": "01JIMPORT", "none": "01JX", "the lock": sanityLock, "odd": "\x00", "empty": ""} {
		core := w.other
		for what, do := range map[string]func() error{
			"start":  func() error { _, err := w.Start(ctx, core, admin, id); return err },
			"cancel": func() error { _, err := w.Cancel(ctx, core, admin, id); return err },
			"undo":   func() error { _, err := w.Undo(ctx, core, admin, id); return err },
			"get":    func() error { _, err := w.Run(ctx, core.Tenant.ID, id); return err },
		} {
			if err := do(); !errors.Is(err, problem.ErrNotFound) && len(objections(err)) == 0 {
				t.Errorf("%s %s: %v", what, name, err)
			}
		}
	}
	if _, err := w.Undo(ctx, w.core, admin, r.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("undo of a plan: %v", err)
	}
	stale := w.plan(around(tmpl, 3, 3))
	must(w.Start(ctx, w.core, admin, r.ID))(t)
	if _, err := w.Start(ctx, w.core, admin, r.ID); !errors.Is(err, problem.ErrState) || !strings.Contains(err.Error(), "was used") {
		t.Errorf("the second start: %v", err)
	}
	if _, err := w.Cancel(ctx, w.core, admin, r.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("cancel of what has ended: %v", err)
	}
	w.pass(PlanLife - time.Second)
	if s := stale.StateAt(w.Now()); s != RunPlanned {
		t.Errorf("just before an hour the plan is %s", s)
	}
	w.pass(time.Second)
	if _, err := w.Start(ctx, w.core, admin, stale.ID); !errors.Is(err, problem.ErrState) || !strings.Contains(err.Error(), "older than an hour") {
		t.Errorf("after an hour: %v", err)
	}
	if got := w.days(ids); got["none"] != 0 {
		t.Errorf("got %v", got)
	}

	// A validity changed since would make the shown days wrong.
	more := w.cards(tmpl, 100, 3)
	r = w.plan(around(tmpl, 3, 3))
	must(w.UpdateTemplate(ctx, w.core, admin, tmpl.ID, 0, func(t *Template) { t.PINValidDays = 90 }, nil))(t)
	if _, err := w.Start(ctx, w.core, admin, r.ID); !errors.Is(err, problem.ErrState) || !strings.Contains(err.Error(), "another validity") {
		t.Errorf("another validity: %v", err)
	}
	if got := w.days(more); got["none"] != 3 {
		t.Errorf("got %v", got)
	}
	if r := must(w.Cancel(ctx, w.core, admin, r.ID))(t); r.State != RunCancelled {
		t.Errorf("a cancelled plan is %s", r.State)
	}
	if _, err := w.Start(ctx, w.core, admin, r.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("start of a cancelled plan: %v", err)
	}
}

func TestSupportFunctionsAreOff(t *testing.T) {
	w := checks(t, tabletest.New(t))
	tmpl := w.valid(100)
	w.cards(tmpl, 0, 1)
	r := w.plan(around(tmpl, 3, 3))
	core := w.core
	core.Tenant.Settings.SupportFunctions = false
	ctx := t.Context()
	for what, do := range map[string]func() error{
		"plan":   func() error { _, err := w.Plan(ctx, core, admin, around(tmpl, 3, 3)); return err },
		"start":  func() error { _, err := w.Start(ctx, core, admin, r.ID); return err },
		"cancel": func() error { _, err := w.Cancel(ctx, core, admin, r.ID); return err },
		"undo":   func() error { _, err := w.Undo(ctx, core, admin, r.ID); return err },
	} {
		if err := do(); !errors.Is(err, problem.ErrForbidden) || !strings.Contains(err.Error(), "supportFunctions") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// meddling does something just before the n-th write.
type meddling struct {
	table.Table
	n   int
	now func()
}

func (m *meddling) Write(ctx context.Context, ops ...table.Op) error {
	if m.n--; m.n == 0 && m.now != nil {
		now := m.now
		m.now = nil
		now()
	}
	return m.Table.Write(ctx, ops...)
}

// Between the plan's reading of a card and its writing, and between plan and run, others
// change cards: they are left alone.
func TestChangedMeanwhile(t *testing.T) {
	m := &meddling{Table: tabletest.New(t)}
	w := checks(t, m)
	ctx := t.Context()
	tmpl, other := w.valid(100), w.valid(200)
	ids := w.cards(tmpl, 0, 40)
	// Those of the first shard come first, for they are read at once.
	slices.SortStableFunc(ids, func(a, b string) int { return table.Shard(a, table.ListShards) - table.Shard(b, table.ListShards) })
	if table.Shard(ids[5], table.ListShards) != 0 {
		t.Fatal("the first shard has not 6 of 40 cards")
	}
	r := w.plan(around(tmpl, 3, 3))
	shown := w.shown(r)

	change := func(id string, do func(*Credential)) {
		c := must(w.Get(ctx, acme, id))(w)
		is := c
		do(&is)
		if err := m.Table.Write(ctx, Put(acme, c, is)...); err != nil {
			t.Fatal(err)
		}
	}
	set := func(c *Credential) {
		*c = c.PINChanged(PINChange{At: w.Now(), How: ChangedByHolder}, tmpl)
	}
	// Between plan and run.
	change(ids[0], set)
	w.pass(time.Second)
	late := w.cards(tmpl, 100, 5)
	// Between reading and writing: the second write of the start is the first batch.
	m.n, m.now = 2, func() {
		change(ids[1], set)
		change(ids[2], func(c *Credential) { c.Template = other.ID })
		change(ids[3], func(c *Credential) { c.State = Retired })
		c := must(w.Get(ctx, acme, ids[4]))(w)
		if err := m.Table.Write(ctx, Remove(acme, c)...); err != nil {
			t.Fatal(err)
		}
		change(ids[5], func(c *Credential) { c.Label = "renamed" }) // still without a flag
	}
	r = must(w.Start(ctx, w.core, admin, r.ID))(t)
	if m.now != nil {
		t.Fatal("nothing was changed between reading and writing")
	}
	if r.State != RunDone || r.Set != 35 || r.LeftAlone != 5 || r.Later != 5 || r.Failed != 0 {
		t.Errorf("the run is %+v, want 35 set, 5 left alone, 5 later", r)
	}
	for _, i := range []int{0, 1} {
		if c := must(w.Get(ctx, acme, ids[i]))(t); c.Flagged.How != FlagByChange {
			t.Errorf("the flag by the holder's change is %+v now", c.Flagged)
		}
	}
	for _, i := range []int{2, 3} {
		if c := must(w.Get(ctx, acme, ids[i]))(t); c.HasFlag() {
			t.Errorf("%s, of another template or retired, has a flag", c.ID)
		}
	}
	if c := must(w.Get(ctx, acme, ids[5]))(t); c.Flagged.Run != r.ID || c.Label != "renamed" {
		t.Errorf("the renamed card is %+v", c)
	}
	if got := w.days(late); got["none"] != 5 {
		t.Errorf("cards that came after the plan: %v", got)
	}
	for day, n := range w.days(ids[5:]) {
		if n > shown[day] {
			t.Errorf("%s has %d cards, and %d were shown", day, n, shown[day])
		}
	}
}

func TestUndo(t *testing.T) {
	m := &meddling{Table: tabletest.New(t)}
	w := checks(t, m)
	ctx := t.Context()
	tmpl := w.valid(100)
	ids := w.cards(tmpl, 0, 120)
	r := w.plan(around(tmpl, 3, 3))
	before := map[string]Credential{}
	for _, id := range ids {
		before[id] = must(w.Get(ctx, acme, id))(t)
	}
	r = must(w.Start(ctx, w.core, admin, r.ID))(t)

	renew := func(id string) {
		c := must(w.Get(ctx, acme, id))(w)
		if err := m.Table.Write(ctx, Put(acme, c, c.PINChanged(PINChange{At: w.Now(), How: ChangedByHolder}, tmpl))...); err != nil {
			t.Fatal(err)
		}
	}
	renew(ids[0])
	// Another run's, of the same day.
	c := must(w.Get(ctx, acme, ids[3]))(t)
	if err := m.Table.Write(ctx, Put(acme, c, c.Flag(c.PINExpiresAt, Flagged{FlagBySanityCheck, w.Now(), "01JOTHER"}, tmpl, w.Now()))...); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Hour)
	gone := must(w.Get(ctx, acme, ids[2]))(t)
	if err := m.Table.Write(ctx, Remove(acme, gone)...); err != nil {
		t.Fatal(err)
	}
	told := w.audited(acme)
	shown, p, err := w.PreviewUndo(ctx, w.core, r.ID, time.Minute)
	if err != nil || shown.ID != r.ID || p.Remove != 117 || p.Stay != 3 || p.AtLeast {
		t.Errorf("the preview is %+v, %v; want 117 removed and 3 left alone", p, err)
	}
	stays := map[string]FlagHow{}
	for _, s := range p.Stays {
		stays[s.ID] = s.Card.Flagged.How
	}
	if d := cmp.Diff(map[string]FlagHow{ids[0]: FlagByChange, ids[2]: "", ids[3]: FlagBySanityCheck}, stays); d != "" {
		t.Errorf("left alone (-want +got):\n%s", d)
	}
	if len(w.audited(acme)) != len(told) {
		t.Error("the preview has changed something")
	}
	if _, p, err := w.PreviewUndo(ctx, w.core, r.ID, 0); err != nil || !p.AtLeast {
		t.Errorf("without time the preview is %+v, %v", p, err)
	}
	if _, _, err := w.PreviewUndo(ctx, w.other, r.ID, time.Minute); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("another tenant's preview: %v", err)
	}
	m.n, m.now = 2, func() { renew(ids[1]) } // between its reading and its writing
	other := audit.Actor{Kind: audit.API, ID: "k2"}
	r = must(w.Undo(ctx, w.core, other, r.ID))(t)
	if r.State != RunUndone || r.Removed != 116 || r.Stayed != 4 || r.Set != 120 {
		t.Errorf("the run is %+v, want 116 removed and 4 stayed", r)
	}
	for _, id := range ids[:2] {
		if c := must(w.Get(ctx, acme, id))(t); c.Flagged.How != FlagByChange {
			t.Errorf("the renewed flag is %+v", c.Flagged)
		}
	}
	if c := must(w.Get(ctx, acme, ids[3]))(t); c.Flagged.Run != "01JOTHER" {
		t.Errorf("the other run's flag is %+v", c.Flagged)
	}
	for _, id := range ids[4:] {
		was, c := before[id], must(w.Get(ctx, acme, id))(t)
		was.Version, was.UpdatedAt = c.Version, c.UpdatedAt
		if d := cmp.Diff(was, c); d != "" {
			t.Fatalf("%s is not restored (-before +after):\n%s", id, d)
		}
	}
	if counts := must(w.CountWithoutFlag(ctx, acme, time.Minute))(t); len(counts) != 1 || counts[0].Cards != 116 || counts[0].AtLeast {
		t.Errorf("counted %+v", counts)
	}
	done := w.actions(RunSubject(r.ID))
	if _, _, err := w.PreviewUndo(ctx, w.core, r.ID, time.Minute); !errors.Is(err, problem.ErrState) {
		t.Errorf("the preview of what is undone: %v", err)
	}
	again := must(w.Undo(ctx, w.core, other, r.ID))(t)
	if d := cmp.Diff(r, again, cmp.AllowUnexported(SanityRun{}, runCursor{})); d != "" || !slices.Equal(done, w.actions(RunSubject(r.ID))) {
		t.Errorf("undone twice (-first +second):\n%s", d)
	}
	if last := done[len(done)-1]; last != "sanityCheck.undone" {
		t.Errorf("the last record is %s", last)
	}

	old := must(w.Start(ctx, w.core, admin, w.plan(around(tmpl, 3, 3)).ID))(t)
	w.pass(UndoLife)
	if _, err := w.Undo(ctx, w.core, admin, old.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("undo after a year: %v", err)
	}
}

// There are more cards than can be counted at once: it goes on where it was.
func TestCountingGoesOn(t *testing.T) {
	w := checks(t, tabletest.New(t))
	ctx := t.Context()
	first, second := w.valid(100), w.valid(50)
	w.cards(first, 0, 200)
	w.cards(second, 1000, 30)
	o := around(first, 3, 3)
	o.Templates, o.Cap = append(o.Templates, second.ID), number(40)
	whole := w.plan(o)

	seed := must(seedOf(whole.Seed, nil))(t)
	r := must(w.newRun(w.core, admin, o.Spread, seed, []Template{first, second}))(t)
	r.due = w.Now()
	if err := w.Table.Write(ctx, table.Put(runRecord{acme, r}, table.Absent())); err != nil {
		t.Fatal(err)
	}
	slices := 0
	for ; r.State == RunCounting || r.ID == ""; slices++ {
		r = must(w.Run(ctx, acme, r.ID))(t)
		stop, cancel := context.WithCancel(ctx)
		cs := *w.Credentials
		cs.Table = &stopping{w.Table, cancel}
		if err := (&runWork{Credentials: &cs, t: acme, run: r}).work(ctx, stop); err != nil {
			t.Fatal(err)
		}
		cancel()
		r = must(w.Run(ctx, acme, r.ID))(t)
		if _, err := w.Start(ctx, w.core, admin, r.ID); r.State == RunCounting && !errors.Is(err, problem.ErrState) {
			t.Fatalf("started while it is counting: %v", err)
		}
		if _, _, err := w.Histogram(ctx, acme, r); err != nil {
			t.Fatal(err)
		}
	}
	if slices < 8 {
		t.Errorf("it took %d slices, want one a shard", slices)
	}
	r = must(w.Run(ctx, acme, r.ID))(t)
	if d := cmp.Diff(w.shown(whole), w.shown(r)); d != "" || r.Cards() != 230 || r.State == RunCounting {
		t.Errorf("the run is %+v (-at once +in slices):\n%s", r, d)
	}

	counts := must(w.CountWithoutFlag(ctx, acme, 0))(t)
	if len(counts) != 2 || !counts[0].AtLeast || counts[0].Cards != 0 {
		t.Errorf("without time for it: %+v", counts)
	}
}

// stopping ends the time at each Query.
type stopping struct {
	table.Table
	stop func()
}

func (s *stopping) Query(ctx context.Context, r table.Range) (table.Page, error) {
	s.stop()
	return s.Table.Query(ctx, r)
}

// A run is cut off at each call of the table, before it or after it took effect; another
// goes on, and all is as if nothing had happened.
func TestRunCutOffAnywhere(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; ; n += testserver.Rounds(1, 5) {
			db := tabletest.New(t)
			w := checks(t, db)
			tmpl, second := w.valid(100), w.valid(50)
			ids := append(w.cards(tmpl, 0, 15), w.cards(second, 1000, 3)...)
			o := around(tmpl, 3, 3)
			o.Templates, o.Cap = append(o.Templates, second.ID), number(6)

			faulty := tabletest.Fail(db, n, after)
			w.Table = faulty
			started, undone := false, false
			var shown map[string]int
			r, err := w.Plan(t.Context(), w.core, admin, o)
			if err == nil {
				shown = w.shownIfAny(r)
				_, err = w.Start(t.Context(), w.core, admin, r.ID)
				started = true
			}
			if err == nil {
				_, err = w.Undo(t.Context(), w.core, admin, r.ID)
				undone = true
			}
			w.Table = db
			if err == nil && faulty.Calls() < n {
				if n < 20 {
					t.Errorf("only %d calls", n)
				}
				break
			}
			for range 3 { // minutes
				w.pass(runLease)
				if _, err := w.SweepRuns(t.Context(), 100); err != nil {
					t.Fatalf("call %d (after %v): %v", n, after, err)
				}
			}
			all, _, err := w.Runs(t.Context(), acme, "", 10)
			if err != nil || len(all) > 1 {
				t.Fatal(all, err)
			}
			if len(all) == 0 || all[0].State == RunPlanned {
				if got := w.days(ids); got["none"] != 18 {
					t.Errorf("call %d (after %v): without a run: %v", n, after, got)
				}
				continue
			}
			r = all[0]
			switch {
			case r.State == RunDone && started:
				if shown != nil && !cmp.Equal(shown, w.days(ids)) {
					t.Errorf("call %d (after %v): run %v, shown %v", n, after, w.days(ids), shown)
				}
				if r.Set != 18 || r.Failed+r.LeftAlone+r.Later != 0 {
					t.Errorf("call %d (after %v): %+v", n, after, r)
				}
			case r.State == RunUndone && undone:
				if got := w.days(ids); got["none"] != 18 || r.Removed != 18 || r.Stayed != 0 {
					t.Errorf("call %d (after %v): undone %v, %+v", n, after, got, r)
				}
			default:
				t.Errorf("call %d (after %v): the run is %s", n, after, r.State)
			}
			if lock := must(w.runLock(t.Context(), acme))(t); lock.Run != "" {
				t.Errorf("call %d (after %v): the lock is kept", n, after)
			}
			named := map[string]int{}
			for _, rec := range w.audited(acme) {
				if rec.Action == "sanityCheck.flagged" {
					for _, id := range strings.Fields(rec.Details["cards"]) {
						named[id]++
					}
				}
			}
			for _, id := range ids {
				if named[id] != 1 {
					t.Fatalf("call %d (after %v): %s is named %d times", n, after, id, named[id])
				}
			}
		}
	}
}

// shownIfAny is shown, where the table may fail.
func (w *world) shownIfAny(r SanityRun) map[string]int {
	list, _, err := w.Histogram(w.Context(), acme, r)
	if err != nil {
		return nil
	}
	days := map[string]int{}
	for _, d := range list {
		days[d.Date] = d.Cards
	}
	return days
}

// begun begins a run whose worker stops after so many batches, and keeps its lease.
func (w *world) begun(tmpl Template, batches int) SanityRun {
	w.Helper()
	r := w.plan(around(tmpl, 3, 3))
	r, _, err := w.begin(w.Context(), acme, r, admin)
	if err != nil {
		w.Fatal(err)
	}
	work := &runWork{Credentials: w.Credentials, t: acme, run: r}
	stop, cancel := context.WithCancel(w.Context())
	defer cancel()
	counted := &meddling{Table: w.Table, n: batches, now: cancel}
	cs := *w.Credentials
	cs.Table = counted
	work.Credentials = &cs
	if err := work.work(w.Context(), stop); err != nil {
		w.Fatal(err)
	}
	return must(w.Run(w.Context(), acme, r.ID))(w)
}

func TestSweepGoesOnWhenTheLeaseEnds(t *testing.T) {
	w := checks(t, tabletest.New(t))
	ctx := t.Context()
	tmpl := w.valid(100)
	ids := w.cards(tmpl, 0, 200)
	r := w.begun(tmpl, 2)
	done := r.Set
	if r.State != RunRunning || done == 0 || done >= 200 {
		t.Fatalf("the run is %+v", r)
	}
	if report, err := w.SweepRuns(ctx, 10); err != nil || report != (RunReport{}) {
		t.Errorf("somebody is at work on it, and the sweep did %+v, %v", report, err)
	}
	second := w.plan(around(tmpl, 3, 3))
	if second.Cards() != 200-done {
		t.Errorf("planned %d", second.Cards())
	}
	for what, do := range map[string]func() error{
		"a second run": func() error { _, err := w.Start(ctx, w.core, admin, second.ID); return err },
		"an undo":      func() error { _, err := w.Undo(ctx, w.core, admin, r.ID); return err },
	} {
		if err := do(); !errors.Is(err, problem.ErrState) {
			t.Errorf("%s beside it: %v", what, err)
		}
	}
	w.pass(runLease)
	if report, err := w.SweepRuns(ctx, 10); err != nil || report != (RunReport{Due: 1, Ended: 1}) {
		t.Errorf("the sweep did %+v, %v", report, err)
	}
	if r = must(w.Run(ctx, acme, r.ID))(t); r.State != RunDone || r.Set != 200 {
		t.Errorf("the run is %+v", r)
	}
	if report, err := w.SweepRuns(ctx, 10); err != nil || report != (RunReport{}) {
		t.Errorf("nothing is left, and the sweep did %+v, %v", report, err)
	}
	if got := w.days(ids); got["none"] != 0 {
		t.Errorf("got %v", got)
	}
	// What was planned for cards that have their flag by now sets none.
	second = must(w.Start(ctx, w.core, admin, second.ID))(t)
	if second.State != RunDone || second.Set != 0 || second.LeftAlone != 200-done {
		t.Errorf("the second run is %+v", second)
	}
}

func TestCancelWhileItRuns(t *testing.T) {
	w := checks(t, tabletest.New(t))
	ctx := t.Context()
	tmpl := w.valid(100)
	ids := w.cards(tmpl, 0, 200)
	r := w.begun(tmpl, 1)
	// Its worker goes on, and sees it with its next batch.
	asked := must(w.Cancel(ctx, w.core, admin, r.ID))(t)
	if asked.State != RunRunning {
		t.Errorf("while somebody is at work it is %s", asked.State)
	}
	work := &runWork{Credentials: w.Credentials, t: acme, run: r, lock: runLock{tenant: acme, Run: r.ID, version: 1}}
	if err := work.work(ctx, ctx); err != nil {
		t.Fatal(err)
	}
	r = must(w.Run(ctx, acme, r.ID))(t)
	if r.State != RunCancelled || r.Set != runBatch {
		t.Errorf("the run is %+v", r)
	}
	if got := w.days(ids); got["none"] != 200-runBatch {
		t.Errorf("got %v", got)
	}
	if again := must(w.Cancel(ctx, w.core, admin, r.ID))(t); again.Version != r.Version {
		t.Error("a second cancel has changed the run")
	}
	if r = must(w.Undo(ctx, w.core, admin, r.ID))(t); r.State != RunUndone || r.Removed != runBatch {
		t.Errorf("undone: %+v", r)
	}
	if got := w.days(ids); got["none"] != 200 {
		t.Errorf("got %v", got)
	}
	// Nobody is at work: cancel ends it itself.
	r = w.begun(tmpl, 1)
	w.pass(runLease)
	if r = must(w.Cancel(ctx, w.core, admin, r.ID))(t); r.State != RunCancelled {
		t.Errorf("the run is %+v", r)
	}
}

// Two workers take the same run: one of them writes each batch.
func TestTwoAtWork(t *testing.T) {
	w := checks(t, tabletest.New(t))
	tmpl := w.valid(100)
	ids := w.cards(tmpl, 0, 500)
	r := w.begun(tmpl, 1)
	w.pass(runLease)
	errs := racing(4, func(int) error { _, err := w.SweepRuns(t.Context(), 10); return err })
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	w.pass(runLease)
	if _, err := w.SweepRuns(t.Context(), 10); err != nil {
		t.Error(err)
	}
	if r = must(w.Run(t.Context(), acme, r.ID))(t); r.State != RunDone || r.Set != 500 {
		t.Errorf("the run is %+v", r)
	}
	for _, id := range ids {
		if c := must(w.Get(t.Context(), acme, id))(t); c.Version != 2 {
			t.Fatalf("%s was written %d times", id, c.Version-1)
		}
	}
}

// A card that cannot be read, or stored, does not stop the rest.
func TestBadCardDoesNotStopTheRun(t *testing.T) {
	w := checks(t, tabletest.New(t))
	ctx := t.Context()
	tmpl := w.valid(100)
	ids := w.cards(tmpl, 0, 60)
	for i, data := range []string{`{"family":"PIV","cardId":"zz"}`, `{"family":"PIV","cardId":"00","template":"` + tmpl.ID + `","state":"odd"}`} {
		id := fmt.Sprintf("piv-%02d", i)
		bad := tabletest.Record{Key: table.CredentialKey(acme, id), Indexes: []table.IndexKey{table.CredentialUnflagged(acme, tmpl.ID, id)}, Data: []byte(data)}
		if err := w.Table.Write(ctx, table.Put(bad, table.Absent())); err != nil {
			t.Fatal(err)
		}
	}
	r := w.plan(around(tmpl, 3, 3))
	r = must(w.Start(ctx, w.core, admin, r.ID))(t)
	if r.State != RunDone || r.Set != 60 || r.Failed != 2 || r.LeftAlone != 0 {
		t.Errorf("the run is %+v, want 60 set and 2 failed", r)
	}
	if got := w.days(ids); got["none"] != 0 {
		t.Errorf("got %v", got)
	}
	failed := ""
	for _, rec := range w.audited(acme) {
		failed += rec.Details["failed"]
	}
	if !strings.Contains(failed, "piv-00") || !strings.Contains(failed, "piv-01") {
		t.Errorf("the audit log names %q", failed)
	}
}

func TestAfterImport(t *testing.T) {
	w := checks(t, tabletest.New(t))
	ctx := t.Context()
	short, long, none := w.valid(3), w.valid(100), w.valid(0)
	ids := slices.Concat(w.cards(short, 0, 5), w.cards(long, 100, 50), w.cards(none, 200, 5))
	ended := func(check tenant.SanityCheck, support bool) []table.Op {
		core := w.core
		core.Tenant.Settings.AfterImport, core.Tenant.Settings.SupportFunctions = check, support
		return must(w.AfterImport(ctx, core))(t)
	}
	random := tenant.SanityCheck{On: true, Random: true, Before: 3, After: 3}
	if ops := append(ended(tenant.SanityCheck{}, true), ended(random, false)...); len(ops) != 0 {
		t.Errorf("off, %d ops", len(ops))
	}
	other := w.begun(long, 1) // another run is at work
	if err := w.Table.Write(ctx, ended(random, true)...); err != nil {
		t.Fatal(err)
	}
	if report, err := w.SweepRuns(ctx, 10); err != nil || report.Due != 1 || report.Ended != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	w.pass(runLease)
	for range 3 {
		if _, err := w.SweepRuns(ctx, 10); err != nil {
			t.Fatal(err)
		}
		w.pass(runLease)
	}
	runs, _, err := w.Runs(ctx, acme, "", 10)
	if err != nil || len(runs) != 2 {
		t.Fatal(runs, err)
	}
	for _, r := range runs {
		if r.State != RunDone {
			t.Errorf("the run is %+v", r)
		}
		if r.ID != other.ID && (!r.Auto || r.By != sweeper || len(r.Templates) != 1) {
			t.Errorf("the run is %+v", r)
		}
	}
	if got := w.days(ids[5:55]); got["none"] != 0 {
		t.Errorf("got %v", got)
	}
	if got := w.days(slices.Concat(ids[:5], ids[55:])); got["none"] != 10 {
		t.Errorf("a validity of 3 days, and none: %v", got)
	}
	// Nothing to do is no run to look at.
	if err := w.Table.Write(ctx, ended(tenant.SanityCheck{On: true}, true)...); err != nil {
		t.Fatal(err)
	}
	told := len(w.audited(acme))
	if report, err := w.SweepRuns(ctx, 10); err != nil || report.Errors != 0 || report.Ended != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	if got := w.days(ids[:5]); got["none"] != 0 || len(w.audited(acme)) == told {
		t.Errorf("exact: %v", got)
	}
}

// The index lags behind: what it shows has its flag already, and is left alone.
func TestIndexLags(t *testing.T) {
	db, stale := tabletest.New(t), tabletest.New(t)
	lag := tabletest.Lag(db, stale, 3)
	w := checks(t, lag)
	ctx := t.Context()
	tmpl := w.valid(100)
	ids := w.cards(tmpl, 0, 30)
	if err := lag.CatchUp(ctx); err != nil {
		t.Fatal(err)
	}
	r := w.plan(around(tmpl, 3, 3))
	c := must(w.Get(ctx, acme, ids[0]))(t)
	if err := w.Table.Write(ctx, Put(acme, c, c.PINChanged(PINChange{At: w.Now(), How: ChangedByHolder}, tmpl))...); err != nil {
		t.Fatal(err)
	}
	if r = must(w.Start(ctx, w.core, admin, r.ID))(t); r.State != RunDone || r.Set != 29 || r.LeftAlone != 1 {
		t.Errorf("the run is %+v", r)
	}
	if c := must(w.Get(ctx, acme, ids[0]))(t); c.Flagged.How != FlagByChange {
		t.Errorf("the flag is %+v", c.Flagged)
	}
}

// Pages full of cards that are left alone do not hold a run up.
func TestManyLaterCards(t *testing.T) {
	w := checks(t, tabletest.New(t))
	tmpl := w.valid(100)
	w.cards(tmpl, 0, 10)
	r := w.plan(around(tmpl, 3, 3))
	w.pass(time.Second)
	const later = table.ListShards * (runPage + 50)
	w.cards(tmpl, 1000, later)
	if r = must(w.Start(t.Context(), w.core, admin, r.ID))(t); r.State != RunDone || r.Set != 10 || r.Later != later || r.LeftAlone != 0 {
		t.Errorf("the run is %+v", r)
	}
}
