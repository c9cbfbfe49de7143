package credential

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// RunState is how far a run of the sanity check is.
type RunState string

// The states: counting → planned → running → done | cancelled → undoing → undone. A plan
// for which there are no cards, or too many, is refused; one that is not run within
// PlanLife has expired.
const (
	RunCounting  RunState = "counting"
	RunRefused   RunState = "refused"
	RunPlanned   RunState = "planned"
	RunExpired   RunState = "expired"
	RunRunning   RunState = "running"
	RunDone      RunState = "done"
	RunCancelled RunState = "cancelled"
	RunUndoing   RunState = "undoing"
	RunUndone    RunState = "undone"
)

// How long a plan can be run, and a run be undone.
const (
	PlanLife = time.Hour
	UndoLife = 365 * 24 * time.Hour
)

const (
	runKept   = 400 * 24 * time.Hour // how long a run can be read: longer than it can be undone
	planKept  = 7 * 24 * time.Hour   // and a plan that was not run
	runLease  = time.Minute          // longer than a batch, or counting without a pause, takes
	runBatch  = 48                   // cards a Write: each is two ops, and up to four are the run's own
	runPage   = 10 * runBatch        // cards read at once
	runSlice  = 45 * time.Second     // of a sweep that has no deadline
	runAtOnce = 5 * time.Second      // of the call that begins something
	runPause  = 15 * time.Second     // left before a sweep's deadline

	// perBatch is what a batch takes on DynamoDB, for the estimate.
	perBatch = 50 * time.Millisecond
)

// SanityRun is a plan of the sanity check and what has become of it. Its invariant: it is
// put with each batch of cards that it changes, so its counts and its cursor are always
// right, and whoever goes on with it at the same time fails at its version.
type SanityRun struct {
	ID    string // ULID
	State RunState
	By    audit.Actor // who planned it and, later, who did what came last
	Auto  bool        // it runs by itself once it is planned
	Spread
	Seed      string // hex; gives the same cards the same days again
	Zone      string // IANA; the tenant's when it was planned
	Today     string // the day from which days are counted, there
	Templates []RunTemplate
	Refusal   problem.Violation // of refused

	CreatedAt time.Time
	PlannedAt time.Time
	StartedAt time.Time
	EndedAt   time.Time

	Set       int // cards that got a flag by it
	Later     int // cards found that were not there when it was planned: left alone
	Failed    int // cards that could not be stored
	LeftAlone int // once it has ended: planned cards that had got a flag, another template, or were gone
	Removed   int // by undo: cards without a flag again
	Stayed    int // at undo: cards whose flag is another by now, or that are gone
	Version   int64

	cursor runCursor
	due    time.Time // until then somebody is at work on it; zero if there is nothing to do
}

// RunTemplate is a template of a run.
type RunTemplate struct {
	ID    string
	Valid int // days, when it was planned
	Cards int // without a flag then
}

// runCursor is where a run is.
type runCursor struct {
	Template int    `json:"template,omitzero"` // index of Templates
	Shard    int    `json:"shard,omitzero"`
	Beyond   string `json:"beyond,omitempty"` // credential
	Part     int    `json:"part,omitzero"`    // the next one; undo: the one it is at
	Within   int    `json:"within,omitzero"`  // undo: cards of the part that are done
	Parts    int    `json:"parts,omitzero"`   // there are
	Days     []int  `json:"days,omitempty"`   // of the template: counted by now, or left to give; nil before it has begun
}

// Cards is how many cards are planned.
func (r SanityRun) Cards() (n int) {
	for _, t := range r.Templates {
		n += t.Cards
	}
	return n
}

// Estimate is about how long the cards take, once the run has begun.
func (r SanityRun) Estimate() time.Duration {
	d := time.Duration(r.Cards()/runBatch+1) * perBatch
	if d > runAtOnce { // the rest is done by the sweep, which works three quarters of the time
		d = runAtOnce + time.Minute + (d-runAtOnce)*4/3
	}
	return d
}

// StateAt returns the state at a time, for plans expire.
func (r SanityRun) StateAt(now time.Time) RunState {
	if r.State == RunPlanned && !r.Auto && !now.Before(r.PlannedAt.Add(PlanLife)) {
		return RunExpired
	}
	return r.State
}

// today returns noon of the day from which days are counted.
func (r SanityRun) today() time.Time {
	loc, err := time.LoadLocation(r.Zone)
	if err != nil {
		loc = time.UTC // the settings let no such zone in
	}
	day, _ := time.ParseInLocation(time.DateOnly+" 15", r.Today+" 12", loc)
	return day
}

// RunSubject is the subject of audit records about a run.
func RunSubject(id string) string { return "sanityCheck/" + id }

const (
	sanityKind = "sanity"
	// sanityLock is the id of the job that only says which run is at work: one at a time.
	sanityLock = "sanity"
	firstBatch = 1000 // the number of the first part that is a batch; before are the plan's
)

type storedRun struct {
	Kind      string             `json:"kind"`
	Tenant    table.TenantID     `json:"tenant"`
	ID        string             `json:"id"`
	State     RunState           `json:"state"`
	ByKind    audit.ActorKind    `json:"byKind"`
	ByID      string             `json:"byId"`
	ByName    string             `json:"byName,omitempty"`
	Auto      bool               `json:"auto,omitempty"`
	Random    bool               `json:"random,omitempty"`
	Before    int                `json:"before,omitzero"`
	After     int                `json:"after,omitzero"`
	Cap       *int               `json:"cap,omitempty"`
	Seed      string             `json:"seed"`
	Zone      string             `json:"zone"`
	Today     string             `json:"today"`
	Templates []RunTemplate      `json:"templates"`
	Refusal   *problem.Violation `json:"refusal,omitempty"`
	CreatedAt time.Time          `json:"createdAt"`
	PlannedAt time.Time          `json:"plannedAt,omitzero"`
	StartedAt time.Time          `json:"startedAt,omitzero"`
	EndedAt   time.Time          `json:"endedAt,omitzero"`
	Set       int                `json:"set,omitzero"`
	Later     int                `json:"later,omitzero"`
	Failed    int                `json:"failed,omitzero"`
	LeftAlone int                `json:"leftAlone,omitzero"`
	Removed   int                `json:"removed,omitzero"`
	Stayed    int                `json:"stayed,omitzero"`
	Cursor    runCursor          `json:"cursor,omitzero"`
	Due       time.Time          `json:"due,omitzero"`
}

type runRecord struct {
	tenant table.TenantID
	SanityRun
}

// Validate implements table.Record; what people can get wrong was checked before.
func (r runRecord) Validate() error { return r.Spread.Validate() }

// Item implements table.Record.
func (r runRecord) Item() (table.Item, error) {
	s := storedRun{sanityKind, r.tenant, r.ID, r.State, r.By.Kind, r.By.ID, r.By.Name, r.Auto, r.Random, r.Before, r.After, r.Cap, r.Seed, r.Zone, r.Today,
		r.Templates, nil, r.CreatedAt, r.PlannedAt, r.StartedAt, r.EndedAt, r.Set, r.Later, r.Failed, r.LeftAlone, r.Removed, r.Stayed, r.cursor, r.due}
	if r.State == RunRefused {
		s.Refusal = &r.Refusal
	}
	data, err := json.Marshal(s)
	item := table.Item{Key: table.JobKey(r.tenant, r.ID), Indexes: []table.IndexKey{table.JobListed(r.tenant, sanityKind, r.ID)}, Data: data,
		ExpiresAt: r.CreatedAt.Add(runKept)}
	if r.StartedAt.IsZero() && !r.Auto {
		item.ExpiresAt = r.CreatedAt.Add(planKept)
	}
	if !r.due.IsZero() {
		item.Indexes = append(item.Indexes, table.JobDue(r.tenant, r.ID, r.due))
	}
	return item, err
}

// decodeRun returns also whose run it is, and problem.ErrNotFound for another job.
func decodeRun(item table.Item) (table.TenantID, SanityRun, error) {
	var s storedRun
	if err := item.Decode(&s); err != nil {
		return "", SanityRun{}, err
	}
	if s.Kind != sanityKind || s.ID == "" {
		return "", SanityRun{}, fmt.Errorf("run %w", problem.ErrNotFound)
	}
	r := SanityRun{ID: s.ID, State: s.State, By: audit.Actor{Kind: s.ByKind, ID: s.ByID, Name: s.ByName}, Auto: s.Auto,
		Spread: Spread{s.Random, s.Before, s.After, s.Cap}, Seed: s.Seed, Zone: s.Zone, Today: s.Today, Templates: s.Templates,
		CreatedAt: s.CreatedAt, PlannedAt: s.PlannedAt, StartedAt: s.StartedAt, EndedAt: s.EndedAt,
		Set: s.Set, Later: s.Later, Failed: s.Failed, LeftAlone: s.LeftAlone, Removed: s.Removed, Stayed: s.Stayed,
		cursor: s.Cursor, due: s.Due, Version: item.Version}
	if s.Refusal != nil {
		r.Refusal = *s.Refusal
	}
	return s.Tenant, r, nil
}

// runPart is a part of a run: of the plan, how many cards of a template get which day; of
// what it has done, the cards of a batch.
type runPart struct {
	key   table.Key
	until time.Time

	Name  string   `json:"name,omitempty"` // the template's
	First int      `json:"first,omitzero"`
	Days  []int    `json:"days,omitempty"`
	Cards []string `json:"cards,omitempty"`
}

// Validate implements table.Record.
func (runPart) Validate() error { return nil }

// Item implements table.Record.
func (p runPart) Item() (table.Item, error) {
	data, err := json.Marshal(p)
	return table.Item{Key: p.key, Data: data, ExpiresAt: p.until}, err
}

// runLock says which run is at work. Each batch checks its version, so to ask for the end
// of a run is to put it.
type runLock struct {
	tenant table.TenantID
	Run    string `json:"run,omitempty"` // "" for none
	Cancel bool   `json:"cancel,omitempty"`

	version int64
}

// Validate implements table.Record.
func (runLock) Validate() error { return nil }

// Item implements table.Record.
func (l runLock) Item() (table.Item, error) {
	data, err := json.Marshal(l)
	return table.Item{Key: table.JobKey(l.tenant, sanityLock), Data: data}, err
}

func (l runLock) put(run string, cancel bool) table.Op {
	return table.Put(runLock{tenant: l.tenant, Run: run, Cancel: cancel}, table.After(l.version))
}

func (cs *Credentials) runLock(ctx context.Context, t table.TenantID) (runLock, error) {
	l := runLock{tenant: t}
	item, err := cs.Table.Get(ctx, table.JobKey(t, sanityLock))
	if errors.Is(err, problem.ErrNotFound) {
		return l, nil
	} else if err != nil {
		return l, fmt.Errorf("see whether a run is under way: %w", err)
	}
	err = item.Decode(&l)
	l.version = item.Version
	return l, err
}

// free returns problem.ErrState if a run is at work.
func (l runLock) free() error {
	if l.Run != "" {
		return fmt.Errorf("%w: run %s is under way; wait for its end, or cancel it", problem.ErrState, l.Run)
	}
	return nil
}

// Run returns a run by id.
func (cs *Credentials) Run(ctx context.Context, t table.TenantID, id string) (SanityRun, error) {
	item, err := cs.Table.Get(ctx, table.JobKey(t, id))
	if errors.Is(err, problem.ErrNotFound) {
		return SanityRun{}, fmt.Errorf("run %w", problem.ErrNotFound)
	} else if err != nil {
		return SanityRun{}, fmt.Errorf("load run: %w", err)
	}
	_, r, err := decodeRun(item)
	return r, err
}

// Runs returns up to limit runs and plans, the newest first, beyond the place given, and
// the place to go on from.
func (cs *Credentials) Runs(ctx context.Context, t table.TenantID, beyond string, limit int) ([]SanityRun, string, error) {
	ranges := table.Jobs(t, sanityKind)
	for i := range ranges {
		ranges[i] = ranges[i].Descending()
	}
	page, next, err := table.Merge(ctx, cs.Table, ranges, limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list runs: %w", err)
	}
	all := make([]SanityRun, len(page.Items))
	for i, item := range page.Items {
		if _, all[i], err = decodeRun(item); err != nil {
			return nil, "", err
		}
	}
	return all, next, nil
}

// Day is a day and how many cards get it.
type Day struct {
	Date  string // 2030-01-31
	Cards int
}

// PlannedTemplate is a template of a plan as people read it.
type PlannedTemplate struct {
	RunTemplate
	Name     string
	From, To string // the first and the last day that its cards can get
}

// Histogram returns what a plan is going to do: how many cards get which day, in order,
// without the days that none gets, and its templates.
func (cs *Credentials) Histogram(ctx context.Context, t table.TenantID, r SanityRun) ([]Day, []PlannedTemplate, error) {
	quotas, names, err := cs.quotas(ctx, t, r)
	if err != nil {
		return nil, nil, err
	}
	today := r.today()
	date := func(day int) string { return today.AddDate(0, 0, day).Format(time.DateOnly) }
	total := map[int]int{}
	templates := make([]PlannedTemplate, len(quotas))
	for i, q := range quotas {
		templates[i] = PlannedTemplate{r.Templates[i], names[i], date(q.first), date(q.first + len(q.cards) - 1)}
		for d, n := range q.cards {
			total[q.first+d] += n
		}
	}
	var days []Day
	for d, n := range total {
		if n > 0 {
			days = append(days, Day{date(d), n})
		}
	}
	slices.SortFunc(days, func(a, b Day) int { return cmp.Compare(a.Date, b.Date) })
	return days, templates, nil
}

// quotas reads the plan of a run: fewer than its templates while it is counting.
func (cs *Credentials) quotas(ctx context.Context, t table.TenantID, r SanityRun) (quotas []quota, names []string, err error) {
	if len(r.Templates) == 0 {
		return nil, nil, nil
	}
	page, err := cs.Table.Query(ctx, table.JobParts(t, r.ID).Limit(len(r.Templates)))
	if err != nil {
		return nil, nil, fmt.Errorf("read plan: %w", err)
	}
	for _, item := range page.Items {
		var p runPart
		if err := item.Decode(&p); err != nil {
			return nil, nil, err
		}
		quotas, names = append(quotas, quota{p.First, p.Days}), append(names, p.Name)
	}
	return quotas, names, nil
}

// PlanOptions are what somebody wants of a run.
type PlanOptions struct {
	Templates []string // ids
	Spread
	Seed string // of a run that is to be repeated; "" for a new one
}

// Plan makes a plan: it gives each card of the templates that has no flag a day, and
// changes none. It is returned while it is counting if there are so many that this takes
// longer than some seconds; the sweep goes on. Options that are wrong, no cards, and a cap
// under which not all find a day are an InvalidError.
func (cs *Credentials) Plan(ctx context.Context, core tenant.Core, by audit.Actor, o PlanOptions) (SanityRun, error) {
	if err := CheckSupport(core); err != nil {
		return SanityRun{}, err
	}
	var vs problem.Violations
	_ = vs.Merge(o.Spread.Validate())
	seed, err := seedOf(o.Seed, cs.Rand)
	if err := vs.Merge(err); err != nil {
		return SanityRun{}, err
	}
	templates, err := cs.chosen(ctx, core.Tenant.ID, o.Templates, o.Spread, &vs)
	if err != nil {
		return SanityRun{}, err
	}
	if err := vs.Err(); err != nil {
		return SanityRun{}, err
	}
	r, err := cs.newRun(core, by, o.Spread, seed, templates)
	if err != nil {
		return SanityRun{}, err
	}
	t := core.Tenant.ID
	r.due = cs.Now().Add(runLease)
	if err := cs.Table.Write(ctx, table.Put(runRecord{t, r}, table.Absent())); err != nil {
		return SanityRun{}, fmt.Errorf("store plan: %w", err)
	}
	r.Version = 1
	if r, err = cs.advance(ctx, t, r, runAtOnce); err != nil {
		return SanityRun{}, err
	}
	if r.State == RunRefused {
		return SanityRun{}, &problem.InvalidError{Violations: []problem.Violation{r.Refusal}}
	}
	return r, nil
}

func (cs *Credentials) newRun(core tenant.Core, by audit.Actor, s Spread, seed string, templates []Template) (SanityRun, error) {
	now := cs.Now()
	id, err := ulid.New(ulid.Timestamp(now), cs.Rand)
	if err != nil {
		return SanityRun{}, fmt.Errorf("make a run's id: %w", err)
	}
	zone := core.Tenant.Settings.Location()
	r := SanityRun{ID: id.String(), State: RunCounting, By: by, Spread: s, Seed: seed, Zone: zone.String(), Today: now.In(zone).Format(time.DateOnly),
		CreatedAt: now.UTC().Truncate(time.Second)}
	for _, tmpl := range templates {
		r.Templates = append(r.Templates, RunTemplate{ID: tmpl.ID, Valid: tmpl.PINValidDays})
	}
	return r, nil
}

// sweeper is who acts where nobody has asked for it.
var sweeper = audit.Actor{Kind: audit.System, ID: "sweep"}

// AfterImport returns the ops that go into the Write that ends an import: none or, if the
// tenant wants that, a run for all cards without a flag, which the sweep begins. Templates
// whose validity is no more than the days before are left out.
func (cs *Credentials) AfterImport(ctx context.Context, core tenant.Core) ([]table.Op, error) {
	check := core.Tenant.Settings.AfterImport
	if !check.On || CheckSupport(core) != nil {
		return nil, nil
	}
	all, err := cs.Templates(ctx, core.Tenant.ID)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(t Template) bool { return !t.ManagesExpiry() || t.PINValidDays <= check.Before })
	if len(all) == 0 {
		return nil, nil
	}
	seed, err := seedOf("", cs.Rand)
	if err != nil {
		return nil, err
	}
	r, err := cs.newRun(core, sweeper, Spread{Random: check.Random, Before: check.Before, After: check.After}, seed, all)
	if err != nil {
		return nil, err
	}
	r.Auto, r.due = true, cs.Now()
	return []table.Op{table.Put(runRecord{core.Tenant.ID, r}, table.Absent())}, nil
}

// Start runs a plan, and returns after some seconds; the sweep goes on with what is left.
// A plan that was used, has expired, or that another run keeps waiting is problem.ErrState,
// and so is one whose templates have another validity by now.
func (cs *Credentials) Start(ctx context.Context, core tenant.Core, by audit.Actor, id string) (SanityRun, error) {
	if err := CheckSupport(core); err != nil {
		return SanityRun{}, err
	}
	t := core.Tenant.ID
	for range tries {
		r, err := cs.Run(ctx, t, id)
		if err != nil {
			return SanityRun{}, err
		}
		switch s := r.StateAt(cs.Now()); s {
		case RunPlanned:
		case RunCounting:
			return SanityRun{}, fmt.Errorf("%w: the cards are still being counted; look at the plan first", problem.ErrState)
		case RunExpired:
			return SanityRun{}, fmt.Errorf("%w: the plan is older than an hour; make a new one", problem.ErrState)
		default:
			return SanityRun{}, fmt.Errorf("%w: the plan was used: it is %s; make a new one", problem.ErrState, s)
		}
		r, again, err := cs.begin(ctx, t, r, by)
		if again {
			continue
		} else if err != nil {
			return SanityRun{}, err
		}
		return cs.advance(ctx, t, r, runAtOnce)
	}
	return SanityRun{}, errBusy
}

// begin makes a plan a run.
func (cs *Credentials) begin(ctx context.Context, t table.TenantID, r SanityRun, by audit.Actor) (_ SanityRun, again bool, _ error) {
	for _, rt := range r.Templates {
		tmpl, err := cs.Template(ctx, t, rt.ID)
		if err != nil && !errors.Is(err, problem.ErrNotFound) {
			return r, false, err
		}
		if tmpl.PINValidDays != rt.Valid {
			return r, false, fmt.Errorf("%w: a template of the plan has another validity by now; make a new plan", problem.ErrState)
		}
	}
	lock, err := cs.runLock(ctx, t)
	if err == nil {
		err = lock.free()
	}
	if err != nil {
		return r, false, err
	}
	now := cs.Now()
	r.State, r.By, r.StartedAt, r.due = RunRunning, by, now.UTC().Truncate(time.Second), now.Add(runLease)
	r.cursor = runCursor{Part: firstBatch}
	details := map[string]string{"cards": fmt.Sprint(r.Cards()), "seed": r.Seed, "today": r.Today, "zone": r.Zone}
	var ids []string
	for _, rt := range r.Templates {
		ids = append(ids, rt.ID)
	}
	details["templates"] = strings.Join(ids, " ")
	if r.Random {
		details["before"], details["after"] = fmt.Sprint(r.Before), fmt.Sprint(r.After)
	}
	if r.Cap != nil {
		details["cap"] = fmt.Sprint(*r.Cap)
	}
	again, err = cs.write(ctx, []table.Op{table.Put(runRecord{t, r}, table.IfVersion(r.Version)), lock.put(r.ID, false), cs.told(ctx, t, r, "started", details)})
	if err != nil {
		return r, again, fmt.Errorf("start run: %w", err)
	}
	r.Version++
	return r, false, nil
}

// told returns the audit record of what a run has done.
func (cs *Credentials) told(ctx context.Context, t table.TenantID, r SanityRun, what string, details map[string]string) table.Op {
	return cs.Audit.Op(ctx, t, audit.Record{Actor: r.By, Action: "sanityCheck." + what, Subject: RunSubject(r.ID), Outcome: audit.Done, Details: details})
}

// Cancel ends a run, or a plan, as it is; cards that have their flag keep it. One that is
// cancelled stays so; what has ended, and an undo, is problem.ErrState. The run may be
// returned as running still, if whoever is at work on it has not seen it yet.
func (cs *Credentials) Cancel(ctx context.Context, core tenant.Core, by audit.Actor, id string) (SanityRun, error) {
	if err := CheckSupport(core); err != nil {
		return SanityRun{}, err
	}
	t := core.Tenant.ID
	for range tries {
		r, err := cs.Run(ctx, t, id)
		if err != nil {
			return SanityRun{}, err
		}
		switch r.State {
		case RunCancelled:
			return r, nil
		case RunCounting, RunPlanned:
			r.State, r.By, r.EndedAt, r.due = RunCancelled, by, cs.Now().UTC().Truncate(time.Second), time.Time{}
			again, err := cs.write(ctx, []table.Op{table.Put(runRecord{t, r}, table.IfVersion(r.Version)), cs.told(ctx, t, r, "cancelled", nil)})
			if again {
				continue
			} else if err != nil {
				return SanityRun{}, fmt.Errorf("cancel plan: %w", err)
			}
			r.Version++
			return r, nil
		case RunRunning:
			lock, err := cs.runLock(ctx, t)
			if err != nil {
				return SanityRun{}, err
			}
			if lock.Run != id { // it has ended meanwhile
				continue
			}
			if !lock.Cancel {
				asked := r
				asked.By = by
				again, err := cs.write(ctx, []table.Op{lock.put(id, true), cs.told(ctx, t, asked, "cancelAsked", nil)})
				if again {
					continue
				} else if err != nil {
					return SanityRun{}, fmt.Errorf("cancel run: %w", err)
				}
			}
			return cs.resume(ctx, t, id, runAtOnce)
		}
		return SanityRun{}, fmt.Errorf("%w: the run is %s", problem.ErrState, r.State)
	}
	return SanityRun{}, errBusy
}

// Undo takes the flags of a run that has ended away again, but from cards whose flag is
// another by now, and returns after some seconds; the sweep goes on with what is left. A
// run that is undone stays so; one older than UndoLife is problem.ErrState.
func (cs *Credentials) Undo(ctx context.Context, core tenant.Core, by audit.Actor, id string) (SanityRun, error) {
	if err := CheckSupport(core); err != nil {
		return SanityRun{}, err
	}
	t := core.Tenant.ID
	for range tries {
		r, err := cs.Run(ctx, t, id)
		if err != nil {
			return SanityRun{}, err
		}
		if r.State == RunUndoing || r.State == RunUndone {
			return r, nil
		}
		if err := r.checkUndo(cs.Now()); err != nil {
			return SanityRun{}, err
		}
		lock, err := cs.runLock(ctx, t)
		if err == nil {
			err = lock.free()
		}
		if err != nil {
			return SanityRun{}, err
		}
		r.State, r.By, r.due, r.EndedAt = RunUndoing, by, cs.Now().Add(runLease), time.Time{}
		r.cursor = runCursor{Part: firstBatch, Parts: r.cursor.Parts}
		again, err := cs.write(ctx, []table.Op{table.Put(runRecord{t, r}, table.IfVersion(r.Version)), lock.put(id, false),
			cs.told(ctx, t, r, "undoStarted", map[string]string{"set": fmt.Sprint(r.Set)})})
		if again {
			continue
		} else if err != nil {
			return SanityRun{}, fmt.Errorf("undo run: %w", err)
		}
		r.Version++
		return cs.advance(ctx, t, r, runAtOnce)
	}
	return SanityRun{}, errBusy
}

// checkUndo returns problem.ErrState if the run cannot be undone.
func (r SanityRun) checkUndo(now time.Time) error {
	switch s := r.StateAt(now); {
	case s != RunDone && s != RunCancelled || r.StartedAt.IsZero():
		return fmt.Errorf("%w: the run is %s; only one that has begun and ended can be undone", problem.ErrState, s)
	case !now.Before(r.StartedAt.Add(UndoLife)):
		return fmt.Errorf("%w: the run is older than a year", problem.ErrState)
	}
	return nil
}

// CanUndo tells whether the run can be undone.
func (r SanityRun) CanUndo(now time.Time) bool { return r.checkUndo(now) == nil }

// UndoPreview is what an undo would do.
type UndoPreview struct {
	Remove  int      // cards that would have no flag any more
	Stay    int      // cards that would be left alone
	Stays   []Stayed // the first of those
	AtLeast bool     // there are more: there was no time to look at all
}

// Stayed is a card that an undo leaves alone: gone, or with another flag, or none, by now.
type Stayed struct {
	ID   string
	Card Credential // the zero Credential if it is gone
}

// maxStays bounds the cards that a preview names.
const maxStays = 100

// PreviewUndo says what Undo would do now, for as long as it may look, and does nothing. A
// run that cannot be undone is problem.ErrState.
func (cs *Credentials) PreviewUndo(ctx context.Context, core tenant.Core, id string, most time.Duration) (SanityRun, UndoPreview, error) {
	if err := CheckSupport(core); err != nil {
		return SanityRun{}, UndoPreview{}, err
	}
	t := core.Tenant.ID
	r, err := cs.Run(ctx, t, id)
	if err == nil {
		err = r.checkUndo(cs.Now())
	}
	if err != nil {
		return SanityRun{}, UndoPreview{}, err
	}
	enough, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	var p UndoPreview
	for part := range r.cursor.Parts {
		if enough.Err() != nil {
			p.AtLeast = true
			break
		}
		cards, err := cs.flaggedIn(ctx, t, id, firstBatch+part)
		if err != nil {
			return SanityRun{}, UndoPreview{}, err
		}
		for _, c := range cards {
			switch {
			case c.err == nil && c.flaggedBy(id):
				p.Remove++
				continue
			case len(p.Stays) < maxStays:
				p.Stays = append(p.Stays, Stayed{c.id, c.Credential})
			}
			p.Stay++
		}
	}
	return r, p, nil
}

// RunReport counts what a sweep did about runs.
type RunReport struct {
	Due    int `json:"due"`    // runs that nobody was at work on
	Ended  int `json:"ended"`  // of those: there is nothing left to do
	Errors int `json:"errors"` // of those: could not be gone on with

	Unfinished bool `json:"unfinished"` // there are more than were looked at
}

// SweepRuns goes on with the runs of all tenants that nobody is at work on, at most limit
// of a shard, until its time is over. One that fails does not stop the rest.
//
// Its invariant: a run that has work left is in the due index, at the end of the lease of
// whoever is at work on it.
func (cs *Credentials) SweepRuns(ctx context.Context, limit int) (RunReport, error) {
	until := time.Now().Add(runSlice)
	if deadline, ok := ctx.Deadline(); ok {
		until = deadline.Add(-runPause)
	}
	reports, errs := make([]RunReport, table.JobDueShards), make([]error, table.JobDueShards)
	var g errgroup.Group
	for shard := range table.JobDueShards {
		g.Go(func() error {
			reports[shard], errs[shard] = cs.sweepRuns(ctx, shard, limit, until)
			return nil
		})
	}
	_ = g.Wait()
	var sum RunReport
	for _, r := range reports {
		sum.Due += r.Due
		sum.Ended += r.Ended
		sum.Errors += r.Errors
		sum.Unfinished = sum.Unfinished || r.Unfinished
	}
	return sum, errors.Join(errs...)
}

func (cs *Credentials) sweepRuns(ctx context.Context, shard, limit int, until time.Time) (report RunReport, _ error) {
	page, err := cs.Table.Query(ctx, table.JobsDueBefore(shard, cs.Now()).Limit(limit))
	if err != nil {
		return RunReport{Errors: 1}, fmt.Errorf("read which runs are due: %w", err)
	}
	report.Unfinished = page.More
	var errs []error
	for i, item := range page.Items {
		if !time.Now().Before(until) {
			report.Unfinished = true
			break
		}
		t, r, err := decodeRun(item)
		if errors.Is(err, problem.ErrNotFound) { // a job of another kind
			continue
		}
		report.Due++
		if err == nil {
			// Each gets its share of the time that is left.
			r, err = cs.resume(ctx, t, r.ID, time.Until(until)/time.Duration(len(page.Items)-i))
		}
		if err != nil {
			report.Errors++
			errs = append(errs, fmt.Errorf("go on with run %s of %s: %w", item.Key, t, err))
		} else if r.due.IsZero() {
			report.Ended++
		}
	}
	return report, errors.Join(errs...)
}

// resume goes on with a run for a while, if nobody else is at work on it.
func (cs *Credentials) resume(ctx context.Context, t table.TenantID, id string, d time.Duration) (SanityRun, error) {
	r, err := cs.Run(ctx, t, id)
	if err != nil || r.due.IsZero() || cs.Now().Before(r.due) {
		return r, err
	}
	r.due = cs.Now().Add(runLease)
	again, err := cs.write(ctx, []table.Op{table.Put(runRecord{t, r}, table.IfVersion(r.Version))})
	if again {
		return cs.Run(ctx, t, id) // somebody else does
	} else if err != nil {
		return r, fmt.Errorf("take up run: %w", err)
	}
	r.Version++
	return cs.advance(ctx, t, r, d)
}

// errOvertaken: somebody else has changed the run.
var errOvertaken = errors.New("the run was changed meanwhile")

// advance does what is to be done of a run for a while, whose lease the caller has taken,
// and gives that back. It returns the run as it is then.
func (cs *Credentials) advance(ctx context.Context, t table.TenantID, r SanityRun, d time.Duration) (SanityRun, error) {
	w := &runWork{Credentials: cs, t: t, run: r}
	enough, cancel := context.WithTimeout(ctx, min(d, runSlice)) // less than the lease
	defer cancel()
	err := w.work(ctx, enough)
	if errors.Is(err, errOvertaken) {
		return cs.Run(ctx, t, r.ID)
	}
	if !w.run.due.IsZero() {
		// The rest is for the next sweep, which may be at work by now.
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		w.run.due = cs.Now().UTC()
		if w.waits {
			w.run.due = w.run.due.Add(runLease)
		}
		again, backErr := cs.write(back, []table.Op{table.Put(runRecord{t, w.run}, table.IfVersion(w.run.Version))})
		switch {
		case again: // what failed was stored after all
			r, readErr := cs.Run(back, t, r.ID)
			return r, errors.Join(err, readErr)
		case backErr == nil:
			w.run.Version++
		}
		err = errors.Join(err, backErr)
	}
	return w.run, err
}

// runWork is somebody at work on a run.
type runWork struct {
	*Credentials
	t     table.TenantID
	run   SanityRun
	lock  runLock
	waits bool // for another run
	tmpl  Template
	dice  dice
	today time.Time // noon of the plan's day
}

func (w *runWork) work(ctx, enough context.Context) (err error) {
	seed, err := hex.DecodeString(w.run.Seed)
	if err != nil {
		return fmt.Errorf("run %s has no seed: %w", w.run.ID, err)
	}
	w.dice, w.today = newDice(seed), w.run.today()
	for enough.Err() == nil && !w.run.due.IsZero() && !w.waits {
		switch w.run.State {
		case RunCounting:
			err = w.count(ctx, enough)
		case RunPlanned: // Auto, or it would not be due
			err = w.begin(ctx)
		case RunRunning:
			err = w.flag(ctx, enough)
		case RunUndoing:
			err = w.unflag(ctx, enough)
		default:
			return fmt.Errorf("run %s is %s and due", w.run.ID, w.run.State)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// put writes the run as it is to be, with other ops.
func (w *runWork) put(ctx context.Context, next SanityRun, ops ...table.Op) error {
	again, err := w.write(ctx, append([]table.Op{table.Put(runRecord{w.t, next}, table.IfVersion(w.run.Version))}, ops...))
	if again {
		return errOvertaken
	} else if err != nil {
		return fmt.Errorf("store run: %w", err)
	}
	next.Version = w.run.Version + 1
	w.run = next
	return nil
}

// count counts the cards of a template by the days that the dice give them. Only ids are
// looked at. What was counted of a template is kept when the time is over, or the template
// is done.
func (w *runWork) count(ctx, enough context.Context) error {
	next := w.run
	c := &next.cursor
	if c.Template == len(next.Templates) {
		return w.planned(ctx)
	}
	rt := next.Templates[c.Template]
	first, last := next.window(rt.Valid)
	if c.Days = slices.Clone(c.Days); c.Days == nil {
		c.Days = make([]int, last-first+1)
	}
	ranges := table.CredentialsUnflagged(w.t, rt.ID)
	for c.Shard < len(ranges) && enough.Err() == nil {
		page, err := w.Table.Query(ctx, ranges[c.Shard].Beyond(c.Beyond))
		if err != nil {
			return fmt.Errorf("count cards without a flag: %w", err)
		}
		for _, item := range page.Items {
			c.Beyond = ranges[c.Shard].Place(item)
			c.Days[w.dice.roll(c.Beyond, len(c.Days))]++
		}
		if !page.More {
			c.Shard, c.Beyond = c.Shard+1, ""
		}
	}
	next.due = w.Now().Add(runLease)
	if c.Shard < len(ranges) {
		return w.put(ctx, next)
	}
	tmpl, err := w.Template(ctx, w.t, rt.ID)
	if err != nil && !errors.Is(err, problem.ErrNotFound) {
		return err
	}
	part := w.planPart(c.Template, tmpl.Name, quota{first, c.Days})
	next.Templates = slices.Clone(next.Templates)
	next.Templates[c.Template].Cards = quota{first, c.Days}.sum()
	next.cursor = runCursor{Template: c.Template + 1}
	return w.put(ctx, next, table.Put(part, table.Absent()))
}

func (w *runWork) planPart(i int, name string, q quota) runPart {
	return runPart{key: table.JobPartKey(w.t, w.run.ID, i), until: w.run.CreatedAt.Add(runKept), Name: name, First: q.first, Days: q.cards}
}

// planned ends the count: levels the days by the cap, or refuses the plan.
func (w *runWork) planned(ctx context.Context) error {
	next := w.run
	next.cursor, next.due = runCursor{}, time.Time{}
	now := w.Now().UTC().Truncate(time.Second)
	refuse := func(v problem.Violation) error {
		next.State, next.Refusal, next.EndedAt = RunRefused, v, now
		return w.put(ctx, next)
	}
	switch {
	case w.run.Cards() > 0:
	case w.run.Auto:
		next.State, next.EndedAt = RunDone, now
		return w.put(ctx, next)
	default:
		return refuse(problem.Violation{Code: "noCards", Field: "templates", Reason: "have no card without a PIN expiry flag"})
	}
	next.State, next.PlannedAt = RunPlanned, now
	if next.Auto {
		next.due = w.run.due
	}
	if next.Cap == nil {
		return w.put(ctx, next)
	}
	quotas, names, err := w.quotas(ctx, w.t, w.run)
	if err != nil {
		return err
	}
	if err := fit(quotas, *next.Cap); err != nil {
		var invalid *problem.InvalidError
		if errors.As(err, &invalid) {
			return refuse(invalid.Violations[0])
		}
		return err
	}
	var ops []table.Op
	for i, q := range quotas {
		// Parts are put once, and a second time here.
		ops = append(ops, table.Put(w.planPart(i, names[i], q), table.IfVersion(1)))
	}
	return w.put(ctx, next, ops...)
}

// begin starts a run that starts by itself, or lets it wait for the one that is at work.
func (w *runWork) begin(ctx context.Context) error {
	r, again, err := w.Credentials.begin(ctx, w.t, w.run, w.run.By)
	switch {
	case again:
		return errOvertaken
	case errors.Is(err, problem.ErrState):
		if lock, lockErr := w.runLock(ctx, w.t); lockErr != nil {
			return lockErr
		} else if w.waits = lock.free() != nil; w.waits {
			return nil
		}
		next := w.run // a template was changed since
		next.State, next.EndedAt, next.due = RunCancelled, w.Now().UTC().Truncate(time.Second), time.Time{}
		return w.put(ctx, next, w.told(ctx, w.t, next, "cancelled", map[string]string{"reason": "templateChanged"}))
	case err == nil:
		w.run = r
	}
	return err
}

// hold reads the lock once. False: the run is to be cancelled.
func (w *runWork) hold(ctx context.Context) (bool, error) {
	if w.lock.version == 0 {
		lock, err := w.runLock(ctx, w.t)
		if err != nil {
			return false, err
		}
		if lock.Run != w.run.ID {
			return false, errOvertaken
		}
		w.lock = lock
	}
	return !w.lock.Cancel, nil
}

// end ends a run, or its undo.
func (w *runWork) end(ctx context.Context, state RunState) error {
	next := w.run
	next.State, next.EndedAt, next.due = state, w.Now().UTC().Truncate(time.Second), time.Time{}
	details := map[string]string{"removed": fmt.Sprint(next.Removed), "stayed": fmt.Sprint(next.Stayed)}
	if state != RunUndone {
		if state == RunDone {
			next.LeftAlone = max(0, next.Cards()-next.Set-next.Failed)
		}
		next.cursor = runCursor{Parts: next.cursor.Part - firstBatch}
		details = map[string]string{"cards": fmt.Sprint(next.Cards()), "set": fmt.Sprint(next.Set), "leftAlone": fmt.Sprint(next.LeftAlone),
			"later": fmt.Sprint(next.Later), "failed": fmt.Sprint(next.Failed)}
	}
	err := w.put(ctx, next, w.lock.put("", false), w.told(ctx, w.t, next, string(state), details))
	if errors.Is(err, errOvertaken) {
		return w.overtaken(ctx)
	}
	return err
}

// overtaken tells a lock that was changed, which is read anew, from a run that was.
func (w *runWork) overtaken(ctx context.Context) error {
	w.lock = runLock{}
	r, err := w.Run(ctx, w.t, w.run.ID)
	if err == nil && r.Version != w.run.Version {
		return errOvertaken
	}
	return err
}

// flag gives the next page of cards their flags.
func (w *runWork) flag(ctx, enough context.Context) error {
	if on, err := w.hold(ctx); err != nil {
		return err
	} else if !on {
		return w.end(ctx, RunCancelled)
	}
	c := &w.run.cursor
	ranges := []table.Range(nil)
	if c.Template < len(w.run.Templates) {
		ranges = table.CredentialsUnflagged(w.t, w.run.Templates[c.Template].ID)
	}
	switch {
	case ranges == nil:
		return w.end(ctx, RunDone)
	case c.Shard == len(ranges):
		*c = runCursor{Template: c.Template + 1, Part: c.Part} // kept by the next batch, or found again
		return nil
	case c.Days == nil:
		if err := w.enter(ctx); err != nil {
			return err
		}
	case w.tmpl.ID != w.run.Templates[c.Template].ID:
		if err := w.load(ctx); err != nil {
			return err
		}
	}
	if w.tmpl.PINValidDays != w.run.Templates[c.Template].Valid { // changed since: its cards are left alone
		*c = runCursor{Template: c.Template + 1, Part: c.Part}
		return nil
	}
	r := ranges[c.Shard]
	page, err := w.Table.Query(ctx, r.Beyond(c.Beyond).Limit(runPage))
	if err != nil {
		return fmt.Errorf("read cards without a flag: %w", err)
	}
	cards := make([]candidate, len(page.Items))
	for i, item := range page.Items {
		cards[i].id = r.Place(item)
		cards[i].Credential, cards[i].err = decode(item)
	}
	for len(cards) > 0 && enough.Err() == nil {
		n, err := w.batch(ctx, cards, w.give)
		if err != nil || n == 0 { // or the lock was changed
			return err
		}
		cards = cards[n:]
	}
	if len(cards) == 0 && !page.More {
		w.run.cursor.Shard, w.run.cursor.Beyond = w.run.cursor.Shard+1, ""
	}
	return nil
}

// load reads the template that the run is at.
func (w *runWork) load(ctx context.Context) (err error) {
	id := w.run.Templates[w.run.cursor.Template].ID
	if w.tmpl, err = w.Template(ctx, w.t, id); errors.Is(err, problem.ErrNotFound) {
		w.tmpl, err = Template{ID: id}, nil
	}
	return err
}

// enter begins with a template: reads what its cards get.
func (w *runWork) enter(ctx context.Context) error {
	item, err := w.Table.Get(ctx, table.JobPartKey(w.t, w.run.ID, w.run.cursor.Template))
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	var p runPart
	if err := item.Decode(&p); err != nil {
		return err
	}
	w.run.cursor.Days = p.Days
	return w.load(ctx)
}

// candidate is a card that a run is at.
type candidate struct {
	id string
	Credential
	err    error // it cannot be used
	gone   bool
	reread int // so often
}

// give decides about a card, and returns what it is to be; false if it is left alone.
func (w *runWork) give(next *SanityRun, c candidate) (Credential, bool) {
	rt := next.Templates[next.cursor.Template]
	next.cursor.Beyond = c.id
	switch {
	case c.gone, c.HasFlag(), c.Template != rt.ID, c.State == Retired:
		return Credential{}, false
	case c.CreatedAt.After(next.PlannedAt):
		next.Later++
		return Credential{}, false
	}
	first, _ := next.window(rt.Valid)
	q := quota{first, next.cursor.Days}
	day, ok := q.take(first + w.dice.roll(c.id, len(q.cards)))
	if !ok {
		next.Later++
		return Credential{}, false
	}
	next.Set++
	now := w.Now()
	is := c.Flag(beginning(w.today, day), Flagged{How: FlagBySanityCheck, At: now, Run: next.ID}, w.tmpl, now)
	is.UpdatedAt = now.UTC().Truncate(time.Second)
	return is, true
}

// batch decides about the first of the cards, as many as a Write takes, and writes what
// they are to be with the run. It returns how many were decided about; 0 if the lock was
// changed. A card that somebody has changed meanwhile is read and decided about anew.
func (w *runWork) batch(ctx context.Context, cards []candidate, decide func(*SanityRun, candidate) (Credential, bool)) (int, error) {
	undo := w.run.State == RunUndoing
	for {
		next, n := w.run, 0
		next.cursor.Days = slices.Clone(w.run.cursor.Days)
		next.due = w.Now().Add(runLease)
		var ops []table.Op
		var of []int // whose op it is
		var ids, failed []string
		size := 0
		for i, c := range cards {
			if len(ids) == runBatch {
				break
			}
			before := next
			before.cursor.Days = slices.Clone(next.cursor.Days)
			is, change := decide(&next, c)
			if c.err == nil && change {
				c.err = record{w.t, is}.Validate()
			}
			if c.err != nil {
				cursor := next.cursor // passed over all the same
				next = before
				next.cursor.Beyond, next.cursor.Within = cursor.Beyond, cursor.Within
				next.Failed++
				failed = append(failed, c.id)
			} else if change {
				put := Put(w.t, c.Credential, is)
				size += len(put[0].Item().Data)
				if len(ops)+len(put) > table.MaxOps-4 || size > table.MaxWriteData/2 && len(ops) > 0 {
					next = before
					break
				}
				for range put {
					of = append(of, i)
				}
				ops, ids = append(ops, put...), append(ids, c.id)
			}
			n++
		}
		if len(ids) == 0 && len(failed) == 0 {
			// Nothing to tell: the cursor is kept by the next batch.
			w.run.cursor, w.run.Later, w.run.Stayed = next.cursor, next.Later, next.Stayed
			return n, nil
		}
		details := map[string]string{"cards": strings.Join(ids, " ")}
		if len(failed) > 0 {
			details["failed"] = strings.Join(failed, " ")
		}
		what := "flagged"
		head := []table.Op{{}, table.Check(table.JobKey(w.t, sanityLock), table.IfVersion(w.lock.version)), {}}
		if undo {
			what = "unflagged"
		} else {
			details["part"] = fmt.Sprint(next.cursor.Part - firstBatch + 1)
			part := runPart{key: table.JobPartKey(w.t, w.run.ID, next.cursor.Part), until: w.run.CreatedAt.Add(runKept), Cards: ids}
			head = append(head, table.Put(part, table.Absent()))
			next.cursor.Part++
		}
		head[0] = table.Put(runRecord{w.t, next}, table.IfVersion(w.run.Version))
		head[2] = w.told(ctx, w.t, next, what, details)
		err := w.Table.Write(ctx, append(head, ops...)...)
		i, refused := table.FailedOp(err)
		switch {
		case err == nil:
			next.Version = w.run.Version + 1
			w.run = next
			return n, nil
		case !refused:
			return 0, fmt.Errorf("store cards: %w", err)
		case i < len(head):
			return 0, w.overtaken(ctx)
		}
		c := &cards[of[i-len(head)]]
		if c.reread++; c.reread > tries {
			c.err = errBusy
			continue
		}
		was, err := w.Get(ctx, w.t, c.id)
		if c.gone = errors.Is(err, problem.ErrNotFound); err != nil && !c.gone {
			return 0, err
		}
		c.Credential = was
	}
}

// unflag takes the flags of the next part away.
func (w *runWork) unflag(ctx, enough context.Context) error {
	if _, err := w.hold(ctx); err != nil {
		return err
	}
	cur := &w.run.cursor
	if cur.Part == firstBatch+cur.Parts {
		return w.end(ctx, RunUndone)
	}
	cards, err := w.flaggedIn(ctx, w.t, w.run.ID, cur.Part)
	if err != nil {
		return err
	}
	for cards = cards[min(cur.Within, len(cards)):]; len(cards) > 0 && enough.Err() == nil; {
		n, err := w.batch(ctx, cards, w.remove)
		if err != nil || n == 0 {
			return err
		}
		cards = cards[n:]
	}
	if len(cards) == 0 {
		w.run.cursor.Part, w.run.cursor.Within = w.run.cursor.Part+1, 0
	}
	return nil
}

// flaggedIn reads the cards that a run has given flags in one of its parts.
func (cs *Credentials) flaggedIn(ctx context.Context, t table.TenantID, run string, part int) ([]candidate, error) {
	item, err := cs.Table.Get(ctx, table.JobPartKey(t, run, part))
	if err != nil {
		return nil, fmt.Errorf("read what the run has done: %w", err)
	}
	var p runPart
	if err := item.Decode(&p); err != nil {
		return nil, err
	}
	cards := make([]candidate, len(p.Cards))
	var g errgroup.Group
	g.SetLimit(16)
	for i, id := range p.Cards {
		g.Go(func() error {
			c := &cards[i]
			c.id = id
			item, err := cs.Table.Get(ctx, table.CredentialKey(t, id))
			if c.gone = errors.Is(err, problem.ErrNotFound); c.gone {
				return nil
			} else if err != nil {
				return fmt.Errorf("read cards: %w", err)
			}
			c.Credential, c.err = decode(item)
			return nil
		})
	}
	return cards, g.Wait()
}

// flaggedBy tells whether a card's flag is that of a run still.
func (c candidate) flaggedBy(run string) bool {
	return !c.gone && c.HasFlag() && c.Flagged.How == FlagBySanityCheck && c.Flagged.Run == run
}

// remove decides about a card that the run has given a flag.
func (w *runWork) remove(next *SanityRun, c candidate) (Credential, bool) {
	next.cursor.Within++
	if !c.flaggedBy(next.ID) {
		next.Stayed++
		return Credential{}, false
	}
	next.Removed++
	is := c.Flag(time.Time{}, Flagged{}, Template{}, w.Now())
	is.UpdatedAt = w.Now().UTC().Truncate(time.Second)
	return is, true
}
