package page

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

func (c *Console) sanityRoutes() []route {
	const all = Root + "/sanity-check"
	const one = all + "/runs/{run}"
	routes := []route{
		{pattern: "GET " + all, do: (*view).sanityCheck},
		{pattern: "POST " + all + "/plan", do: (*view).planSanityRun},
		{pattern: "GET " + all + "/cards", do: (*view).sanityCards},
		{pattern: "GET " + one, do: (*view).showSanityRun},
		{pattern: "POST " + one + "/start", sensitive: true, do: (*view).startSanityRun},
		{pattern: "POST " + one + "/cancel", do: (*view).cancelSanityRun},
		{pattern: "GET " + one + "/undo", do: (*view).undoSanityPage},
		{pattern: "POST " + one + "/undo", sensitive: true, do: (*view).undoSanityRun},
	}
	for i, do := range routes {
		routes[i].action = tenant.RunSanityCheck
		routes[i].do = func(v *view) error { // there is none of it where the support functions are off
			if err := credential.CheckSupport(v.core); err != nil {
				return v.notFound()
			}
			return do.do(v)
		}
	}
	return routes
}

const (
	countFor    = 10 * time.Second // cards are counted at most so long for a page
	cardsToCopy = 200              // of the list without a flag, on a page
	runsOnPage  = 20
)

// sanityForm is a plan as it stands in the form.
type sanityForm struct {
	Templates                []string
	Spread                   string // "exact" or "random"
	Before, After, Cap, Seed string
}

type sanityPage struct {
	Form    sanityForm
	Counts  []credential.WithoutFlag
	Cards   int
	AtLeast bool // there was no time to count them all
	Runs    List[sanityRow]
	Working string // the run that is at work, among those of the page
}

// sanityRow is a run with the state that it has by now.
type sanityRow struct {
	credential.SanityRun
	Is credential.RunState
}

// Has tells whether a template is to be updated.
func (p sanityPage) Has(id string) bool { return slices.Contains(p.Form.Templates, id) }

func (v *view) sanityRows(runs []credential.SanityRun) []sanityRow {
	rows := make([]sanityRow, len(runs))
	for i, r := range runs {
		rows[i] = sanityRow{r, r.StateAt(v.Now())}
	}
	return rows
}

func (v *view) sanityPage(form sanityForm) (sanityPage, error) {
	d := sanityPage{Form: form}
	from, err := v.place()
	if err != nil {
		return d, err
	}
	var runs []credential.SanityRun
	var next string
	g, ctx := errgroup.WithContext(v.ctx())
	g.Go(func() (err error) {
		d.Counts, err = v.Credentials.CountWithoutFlag(ctx, v.tenant(), countFor)
		return err
	})
	g.Go(func() (err error) {
		runs, next, err = v.Credentials.Runs(ctx, v.tenant(), from, runsOnPage)
		return err
	})
	if err := g.Wait(); err != nil {
		return d, err
	}
	for _, c := range d.Counts {
		d.Cards += c.Cards
		d.AtLeast = d.AtLeast || c.AtLeast
	}
	d.Runs = list(v, v.sanityRows(runs), next)
	for _, r := range runs {
		if r.State == credential.RunRunning || r.State == credential.RunUndoing {
			d.Working = r.ID
		}
	}
	return d, nil
}

func (v *view) sanityCheck() error {
	if v.value("format") == "csv" {
		rows := rowsOf("", func(beyond string) ([]sanityRow, string, error) {
			runs, next, err := v.Credentials.Runs(v.ctx(), v.tenant(), beyond, 200)
			return v.sanityRows(runs), next, err
		})
		return csvFile(v, "pin-expiry-runs", []string{"id", "createdAt", "startedAt", "endedAt", "state", "by", "random", "beforeDays", "afterDays", "dailyCap", "seed", "today", "cards", "set", "leftAlone", "later", "failed", "removed", "stayed"}, rows, func(r sanityRow) []string {
			daily := ""
			if r.Cap != nil {
				daily = text(*r.Cap)
			}
			return []string{r.ID, csvTime(r.CreatedAt), csvTime(r.StartedAt), csvTime(r.EndedAt), string(r.Is), cmp.Or(r.By.Name, r.By.ID), strconv.FormatBool(r.Random), text(r.Before), text(r.After), daily,
				r.Seed, r.Today, text(r.Cards()), text(r.Set), text(r.LeftAlone), text(r.Later), text(r.Failed), text(r.Removed), text(r.Stayed)}
		})
	}
	d, err := v.sanityPage(sanityForm{Spread: "exact"})
	if err != nil {
		return err
	}
	for _, c := range d.Counts {
		if c.Cards > 0 {
			d.Form.Templates = append(d.Form.Templates, c.Template.ID)
		}
	}
	return v.show("sanity-check", d)
}

func (v *view) planSanityRun() error {
	form := sanityForm{v.values("templates"), v.value("spread"), v.value("beforeDays"), v.value("afterDays"), v.value("dailyCap"), v.value("seed")}
	r, err := v.plan(form)
	if err != nil {
		d, failed := v.sanityPage(form)
		if failed != nil {
			return failed
		}
		return v.refused(err, "sanity-check", d)
	}
	return v.goTo(join("/sanity-check/runs/", r.ID))
}

func (v *view) plan(form sanityForm) (credential.SanityRun, error) {
	var vs problem.Violations
	o := credential.PlanOptions{Templates: form.Templates, Seed: form.Seed, Spread: credential.Spread{Random: form.Spread == "random"}}
	if o.Random { // of exact days there is nothing around
		o.Before, o.After = wholeNumber(&vs, "beforeDays", cmp.Or(form.Before, "0")), wholeNumber(&vs, "afterDays", cmp.Or(form.After, "0"))
	}
	if form.Cap != "" {
		most := wholeNumber(&vs, "dailyCap", form.Cap)
		o.Cap = &most
	}
	if len(form.Templates) == 0 {
		vs.Add("count", "templates", "must be at least one; check those whose cards are to get a flag")
	}
	if err := vs.Err(); err != nil {
		return credential.SanityRun{}, err
	}
	return v.Credentials.Plan(v.ctx(), v.core, v.actor(), o)
}

type sanityCards struct {
	Template  string
	Templates []Option
	Names     map[string]string // of templates, by id
	Cards     List[credential.Credential]
	Text      string // the same cards, to paste
}

func (v *view) sanityCards() error {
	templates, err := v.Credentials.Templates(v.ctx(), v.tenant())
	if err != nil {
		return err
	}
	d := sanityCards{Template: v.value("template"), Templates: []Option{{"", v.words.Say("sanity.allTemplates")}}, Names: map[string]string{}}
	for _, t := range templates {
		d.Names[t.ID] = t.Name
		if t.ManagesExpiry() {
			d.Templates = append(d.Templates, Option{t.ID, t.Name})
		}
	}
	from, err := v.place()
	if err != nil {
		return err
	}
	filter := credential.Filter{WithoutFlag: true, Template: d.Template}
	more := func(beyond string, limit int) ([]credential.Credential, string, error) {
		return v.Credentials.Find(v.ctx(), v.tenant(), filter, beyond, limit)
	}
	if v.value("format") == "csv" {
		rows := rowsOf(from, func(beyond string) ([]credential.Credential, string, error) { return more(beyond, 500) })
		return csvFile(v, "cards-without-pin-expiry", credential.SanityColumns(), rows, func(c credential.Credential) []string { return credential.SanityRow(c, d.Names) })
	}
	cards, next, err := more(from, cardsToCopy)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := credential.WriteText(&b, cards, d.Names, from == ""); err != nil {
		return err
	}
	d.Cards, d.Text = list(v, cards, next), b.String()
	return v.show("sanity-cards", d)
}

// sanityRunPage is what is to be seen of a plan or a run.
type sanityRunPage struct {
	Run       credential.SanityRun
	Is        credential.RunState
	Days      []planDay
	Most      int // cards of a day
	Templates []credential.PlannedTemplate
	Until     time.Time // when a plan can be run no more
	Seconds   int       // about how long a plan takes
	Done      int       // cards that are done with by now, of To
	To        int
	CanUndo   bool
}

// planDay is a day of a plan and its bar in the picture.
type planDay struct {
	At     time.Time
	Cards  int
	X, Y   int // of the bar, in the picture's units
	Height int
}

// The picture of a plan, in its own units.
const (
	barWidth     = 10
	barGap       = 2
	planHeight   = 100
	maxBars      = 400 // more are no picture any more
	leastBarSeen = 1
)

// Width is that of the picture.
func (p sanityRunPage) Width() int { return max(1, len(p.Days)) * (barWidth + barGap) }

// Last is the last day of the plan.
func (p sanityRunPage) Last() planDay { return p.Days[len(p.Days)-1] }

// Pictured tells whether a picture says it.
func (p sanityRunPage) Pictured() bool { return len(p.Days) > 1 && len(p.Days) <= maxBars }

// Working tells whether something goes on, so that the page is to be looked at again.
func (p sanityRunPage) Working() bool {
	return p.Is == credential.RunCounting || p.Is == credential.RunRunning || p.Is == credential.RunUndoing
}

// Planned tells whether the plan can be run.
func (p sanityRunPage) Planned() bool { return p.Is == credential.RunPlanned && !p.Run.Auto }

func (v *view) sanityRun() (d sanityRunPage, _ error) {
	r, err := v.Credentials.Run(v.ctx(), v.tenant(), v.r.PathValue("run"))
	if err != nil {
		return d, err
	}
	return v.sanityRunPage(r)
}

func (v *view) sanityRunPage(r credential.SanityRun) (sanityRunPage, error) {
	d := sanityRunPage{Run: r, Is: r.StateAt(v.Now()), Until: r.PlannedAt.Add(credential.PlanLife), Seconds: int(math.Ceil(r.Estimate().Seconds())), CanUndo: r.CanUndo(v.Now())}
	d.Done, d.To = r.Set+r.Failed, r.Cards()
	if d.Is == credential.RunUndoing {
		d.Done, d.To = r.Removed+r.Stayed, r.Set
	}
	days, templates, err := v.Credentials.Histogram(v.ctx(), v.tenant(), r)
	if err != nil {
		return d, err
	}
	d.Templates = templates
	for _, day := range days {
		d.Most = max(d.Most, day.Cards)
	}
	for _, day := range days {
		at, err := time.ParseInLocation(time.DateOnly, day.Date, v.loc)
		if err != nil {
			return d, fmt.Errorf("read a day of run %s: %w", r.ID, err)
		}
		height := max(leastBarSeen, day.Cards*planHeight/d.Most)
		d.Days = append(d.Days, planDay{at.Add(12 * time.Hour), day.Cards, len(d.Days) * (barWidth + barGap), planHeight - height, height})
	}
	return d, nil
}

func (v *view) showSanityRun() error {
	d, err := v.sanityRun()
	if err != nil {
		return err
	}
	switch {
	case v.value("format") == "csv":
		return csvFile(v, "pin-expiry-plan", []string{"date", "cards"}, func(yield func(planDay, error) bool) {
			for _, day := range d.Days {
				if !yield(day, nil) {
					return
				}
			}
		}, func(day planDay) []string { return []string{day.At.Format(time.DateOnly), text(day.Cards)} })
	case v.r.Header.Get("HX-Request") != "":
		if !d.Working() { // the rest of the page is another too
			v.w.Header().Set("HX-Refresh", "true")
		}
		return v.fragment("sanity-run", "progress", d)
	}
	return v.show("sanity-run", d)
}

// changeSanityRun does something with a run, and goes to its page.
func (v *view) changeSanityRun(do func(id string) (credential.SanityRun, error), done string) error {
	id := v.r.PathValue("run")
	_, err := do(id)
	if err == nil {
		return v.done(join("/sanity-check/runs/", id), done)
	}
	d, failed := v.sanityRun()
	if failed != nil {
		return failed
	}
	return v.refused(err, "sanity-run", d)
}

func (v *view) startSanityRun() error {
	return v.changeSanityRun(func(id string) (credential.SanityRun, error) {
		return v.Credentials.Start(v.ctx(), v.core, v.actor(), id)
	}, words.Key("done.sanityStarted"))
}

func (v *view) cancelSanityRun() error {
	return v.changeSanityRun(func(id string) (credential.SanityRun, error) {
		return v.Credentials.Cancel(v.ctx(), v.core, v.actor(), id)
	}, words.Key("done.sanityCancelled"))
}

func (v *view) undoSanityRun() error {
	return v.changeSanityRun(func(id string) (credential.SanityRun, error) {
		return v.Credentials.Undo(v.ctx(), v.core, v.actor(), id)
	}, words.Key("done.sanityUndone"))
}

type sanityUndo struct {
	Run credential.SanityRun
	credential.UndoPreview
}

// undoSanityPage says what an undo does, before it is asked for.
func (v *view) undoSanityPage() error {
	r, p, err := v.Credentials.PreviewUndo(v.ctx(), v.core, v.r.PathValue("run"), countFor)
	if err != nil {
		return err
	}
	return v.show("sanity-undo", sanityUndo{r, p})
}
