package user

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// BulkState is how far a bulk of generated PINs is.
type BulkState string

// The states: counting → planned → running → done | cancelled | failed. A plan that is not
// started within BulkPlanLife has expired.
const (
	BulkCounting  BulkState = "counting"
	BulkPlanned   BulkState = "planned"
	BulkExpired   BulkState = "expired"
	BulkRunning   BulkState = "running"
	BulkDone      BulkState = "done"
	BulkCancelled BulkState = "cancelled"
	BulkFailed    BulkState = "failed" // no PIN can be generated or mailed: the reason says why
)

// BulkPlanLife is how long a plan can be started.
const BulkPlanLife = time.Hour

const (
	bulkKind   = "pins"
	bulkKept   = 400 * 24 * time.Hour
	bulkBatch  = 50               // PINs at once: one bulk call of SES
	bulkAhead  = 2 * bulkBatch    // PINs whose mail failed for now; with more it waits
	bulkPage   = 500              // users read at once
	bulkLease  = time.Minute      // longer than a batch, or a page, takes
	bulkAtOnce = 5 * time.Second  // of the call that plans
	bulkSlice  = 45 * time.Second // of a sweep that has no deadline
	bulkPause  = 15 * time.Second // left before a sweep's deadline
)

// BulkSpec says who gets a PIN in a bulk, and what PIN. Those without one get it, or with an
// expired one; none do for whom one is on its way.
type BulkSpec struct {
	Group          string // only its members; "" for everybody
	OlderThanHours int    // also those whose PIN is older; 0 for only those without
	Issue          Issue  // its Order, Bulk and If are the bulk's own
}

// Validate reports everything that is wrong with it.
func (s BulkSpec) Validate() error {
	var vs problem.Violations
	if len(s.Group) > 64*4 {
		vs.Add("length", "group", "is longer than a group's name can be")
	}
	if s.OlderThanHours < 0 || s.OlderThanHours > maxValidHours {
		vs.Add("range", "olderThanHours", "must be from 0, for only those without a PIN, to %d", maxValidHours)
	}
	return errors.Join(vs.Merge(s.Issue.Validate()), vs.Err())
}

// wants tells whether a user gets a PIN.
func (s BulkSpec) wants(u User, now time.Time) bool {
	switch {
	case u.ID == "", s.Group != "" && !slices.Contains(u.Profile.Groups, s.Group), u.Pending.Waits():
		return false
	case u.PIN.State(now) != IsSet:
		return true
	}
	return s.OlderThanHours > 0 && !now.Before(u.PIN.SetAt.Add(time.Duration(s.OlderThanHours)*time.Hour))
}

// Bulk is a plan to generate and mail PINs, and what has become of it. Its invariants: whom it
// has given a PIN does not get a second one by it, whoever goes on with it, for each PIN is
// its order's and conditional on its user; it issues no more while bulkAhead mails have
// not gone out; and once it is cancelled it issues none.
type Bulk struct {
	ID    string // ULID
	State BulkState
	By    audit.Actor // who planned it and, later, who started it
	Spec  BulkSpec
	Rate  float64 // mails a second, when it was planned; 0 if not known

	CreatedAt, PlannedAt, StartedAt, EndedAt time.Time

	Users     int // of the plan: all that were looked at
	Matched   int // of the plan: those who are to get a PIN
	NoAddress int // of those: nobody can be mailed to

	Seen    int            // users that the run has looked at
	Issued  int            // PINs generated
	Mailed  int            // of those: their users' by now
	Refused map[string]int // users who got none, by the coded reason; and mails refused

	Cancelling bool      // whoever is at work ends it after the batch
	Reason     string    // coded: why it failed, or waits
	WaitsUntil time.Time // set if it waits
	Version    int64

	shard   int       // it is at
	beyond  string    // place in the shard
	waiting []string  // ids of users to whom a PIN is on its way
	worker  string    // who is at work, "" if nobody is
	due     time.Time // until then; zero if there is nothing to do
}

// Mails is how many mails are planned.
func (b Bulk) Mails() int { return b.Matched - b.NoAddress }

// Pending is how many PINs of it are on their way, their first mail having failed.
func (b Bulk) Pending() int { return len(b.waiting) }

// Estimate is about how long the mails take: the sweep works three quarters of the time. 0 is
// not known.
func (b Bulk) Estimate() time.Duration {
	if b.Rate == 0 {
		return 0
	}
	return time.Duration(float64(b.Mails()) / b.Rate * 4 / 3 * float64(time.Second)).Round(time.Second)
}

// StateAt returns the state at a time, for plans expire.
func (b Bulk) StateAt(now time.Time) BulkState {
	if b.State == BulkPlanned && !now.Before(b.PlannedAt.Add(BulkPlanLife)) {
		return BulkExpired
	}
	return b.State
}

// BulkSubject is the subject of audit records about a bulk.
func BulkSubject(id string) string { return "bulkPINs/" + id }

type bulkRecord struct {
	tenant table.TenantID
	Bulk
}

type storedBulk struct {
	Kind           string          `json:"kind"`
	Tenant         table.TenantID  `json:"tenant"`
	ID             string          `json:"id"`
	State          BulkState       `json:"state"`
	ByKind         audit.ActorKind `json:"byKind"`
	ByID           string          `json:"byId"`
	ByName         string          `json:"byName,omitempty"`
	Group          string          `json:"group,omitempty"`
	OlderThanHours int             `json:"olderThanHours,omitempty"`
	Length         int             `json:"length,omitempty"`
	Alphabet       pin.Alphabet    `json:"alphabet,omitempty"`
	ValidHours     int             `json:"validHours,omitempty"`
	OneTime        OneTime         `json:"oneTime,omitempty"`
	Messaging      string          `json:"messaging,omitempty"`
	Template       string          `json:"template,omitempty"`
	Rate           float64         `json:"rate,omitempty"`
	CreatedAt      time.Time       `json:"createdAt"`
	PlannedAt      time.Time       `json:"plannedAt,omitzero"`
	StartedAt      time.Time       `json:"startedAt,omitzero"`
	EndedAt        time.Time       `json:"endedAt,omitzero"`
	Users          int             `json:"users,omitempty"`
	Matched        int             `json:"matched,omitempty"`
	NoAddress      int             `json:"noAddress,omitempty"`
	Seen           int             `json:"seen,omitempty"`
	Issued         int             `json:"issued,omitempty"`
	Mailed         int             `json:"mailed,omitempty"`
	Refused        map[string]int  `json:"refused,omitempty"`
	Cancelling     bool            `json:"cancelling,omitempty"`
	Reason         string          `json:"reason,omitempty"`
	WaitsUntil     time.Time       `json:"waitsUntil,omitzero"`
	Shard          int             `json:"shard,omitempty"`
	Beyond         string          `json:"beyond,omitempty"`
	Waiting        []string        `json:"waiting,omitempty"`
	Worker         string          `json:"worker,omitempty"`
	Due            time.Time       `json:"due,omitzero"`
}

// Validate implements table.Record.
func (r bulkRecord) Validate() error { return r.Spec.Validate() }

// Item implements table.Record.
func (r bulkRecord) Item() (table.Item, error) {
	is := r.Spec.Issue
	data, err := json.Marshal(storedBulk{bulkKind, r.tenant, r.ID, r.State, r.By.Kind, r.By.ID, r.By.Name, r.Spec.Group, r.Spec.OlderThanHours,
		is.Options.Length, is.Options.Alphabet, is.ValidHours, is.OneTime, is.Messaging, is.Template, r.Rate,
		r.CreatedAt, r.PlannedAt, r.StartedAt, r.EndedAt, r.Users, r.Matched, r.NoAddress, r.Seen, r.Issued, r.Mailed, r.Refused,
		r.Cancelling, r.Reason, r.WaitsUntil, r.shard, r.beyond, r.waiting, r.worker, r.due})
	item := table.Item{Key: table.JobKey(r.tenant, r.ID), Indexes: []table.IndexKey{table.JobListed(r.tenant, bulkKind, r.ID)}, Data: data,
		ExpiresAt: r.CreatedAt.Add(bulkKept)}
	if !r.due.IsZero() {
		item.Indexes = append(item.Indexes, table.BulkDue(r.tenant, r.ID, r.due))
	}
	return item, err
}

// decodeBulk returns also whose bulk it is, and problem.ErrNotFound for another job.
func decodeBulk(item table.Item) (table.TenantID, Bulk, error) {
	var s storedBulk
	if err := item.Decode(&s); err != nil {
		return "", Bulk{}, err
	}
	if s.Kind != bulkKind {
		return "", Bulk{}, fmt.Errorf("bulk %w", problem.ErrNotFound)
	}
	return s.Tenant, Bulk{ID: s.ID, State: s.State, By: audit.Actor{Kind: s.ByKind, ID: s.ByID, Name: s.ByName},
		Spec: BulkSpec{s.Group, s.OlderThanHours, Issue{Options: pin.GenerateOptions{Length: s.Length, Alphabet: s.Alphabet},
			ValidHours: s.ValidHours, OneTime: s.OneTime, Messaging: s.Messaging, Template: s.Template}},
		Rate: s.Rate, CreatedAt: s.CreatedAt, PlannedAt: s.PlannedAt, StartedAt: s.StartedAt, EndedAt: s.EndedAt,
		Users: s.Users, Matched: s.Matched, NoAddress: s.NoAddress, Seen: s.Seen, Issued: s.Issued, Mailed: s.Mailed, Refused: s.Refused,
		Cancelling: s.Cancelling, Reason: s.Reason, WaitsUntil: s.WaitsUntil,
		shard: s.Shard, beyond: s.Beyond, waiting: s.Waiting, worker: s.Worker, due: s.Due, Version: item.Version}, nil
}

// Bulk returns a bulk by id.
func (us *Users) Bulk(ctx context.Context, t table.TenantID, id string) (Bulk, error) {
	if _, err := ulid.ParseStrict(id); err != nil {
		return Bulk{}, fmt.Errorf("bulk %w", problem.ErrNotFound)
	}
	item, err := us.Table.Get(ctx, table.JobKey(t, id))
	if err != nil {
		return Bulk{}, fmt.Errorf("bulk %w", err)
	}
	_, b, err := decodeBulk(item)
	return b, err
}

// Bulks returns up to limit bulks and plans, the newest first, beyond the place given, and the
// place to go on from.
func (us *Users) Bulks(ctx context.Context, t table.TenantID, beyond string, limit int) ([]Bulk, string, error) {
	ranges := table.Jobs(t, bulkKind)
	for i := range ranges {
		ranges[i] = ranges[i].Descending()
	}
	page, next, err := table.Merge(ctx, us.Table, ranges, limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list bulks: %w", err)
	}
	all := make([]Bulk, len(page.Items))
	for i, item := range page.Items {
		if _, all[i], err = decodeBulk(item); err != nil {
			return nil, "", err
		}
	}
	return all, next, nil
}

// PlanBulk counts who would get a PIN, and makes none. It is returned while it is counting if
// that takes longer than some seconds; the sweep goes on. rate is how many mails a second go
// out, 0 if that is not known. What is wrong with the spec, by the policy too, is an
// InvalidError; that there is nothing to mail with is a Refusal.
func (us *Users) PlanBulk(ctx context.Context, core tenant.Core, by audit.Actor, spec BulkSpec, rate float64) (Bulk, error) {
	if err := spec.Validate(); err != nil {
		return Bulk{}, err
	}
	is := spec.Issue.with(core)
	if _, _, err := us.letter(ctx, core, is.Messaging, is.Template); err != nil {
		return Bulk{}, err
	}
	users, err := us.countFor(ctx, core, new(write))
	if err != nil {
		return Bulk{}, err
	}
	is.Options.Context = pin.Context{Users: users}
	if _, err := core.Policy.Generate(us.Rand, is.Options); err != nil {
		return Bulk{}, err
	}
	now := us.Now()
	id, err := ulid.New(ulid.Timestamp(now), us.Rand)
	if err != nil {
		return Bulk{}, fmt.Errorf("make a bulk's id: %w", err)
	}
	b := Bulk{ID: id.String(), State: BulkCounting, By: by, Spec: spec, Rate: rate, CreatedAt: now.UTC().Truncate(time.Second),
		worker: id.String(), due: now.Add(bulkLease)}
	if err := us.Table.Write(ctx, table.Put(bulkRecord{core.Tenant.ID, b}, table.Absent())); err != nil {
		return Bulk{}, fmt.Errorf("store plan: %w", err)
	}
	b.Version = 1
	return us.advanceBulk(ctx, core, nil, b, time.Now().Add(bulkAtOnce))
}

// StartBulk starts a plan, once; the sweep does what is to be done.
func (us *Users) StartBulk(ctx context.Context, core tenant.Core, by audit.Actor, id string) (Bulk, error) {
	return us.changeBulk(ctx, core, by, id, func(b *Bulk) (string, error) {
		switch s := b.StateAt(us.Now()); {
		case s == BulkCounting:
			return "", fmt.Errorf("%w: the users are still being counted; look at the plan first", problem.ErrState)
		case s == BulkExpired:
			return "", fmt.Errorf("%w: the plan is older than an hour; make a new one", problem.ErrState)
		case s != BulkPlanned:
			return "", fmt.Errorf("%w: the plan was used: it is %s; make a new one", problem.ErrState, s)
		case b.Mails() == 0:
			return "", fmt.Errorf("%w: there is nobody to mail a PIN to", problem.ErrState)
		}
		b.State, b.By, b.StartedAt, b.due = BulkRunning, by, us.Now().UTC().Truncate(time.Second), us.Now().UTC()
		return "started", nil
	})
}

// CancelBulk ends a bulk, or a plan, as it is: PINs that were issued stay, or go on their way,
// and once it is cancelled no more are. If somebody is at work on it, it is returned as it is,
// and cancelled when they have done with the PINs that they are at. One that is cancelled stays
// so; what has ended is problem.ErrState.
func (us *Users) CancelBulk(ctx context.Context, core tenant.Core, by audit.Actor, id string) (Bulk, error) {
	return us.changeBulk(ctx, core, by, id, func(b *Bulk) (string, error) {
		switch b.State {
		case BulkCancelled:
			return "", errNothing
		case BulkDone, BulkFailed:
			return "", fmt.Errorf("%w: it is %s", problem.ErrState, b.State)
		}
		if b.worker != "" && us.Now().Before(b.due) {
			if b.Cancelling {
				return "", errNothing
			}
			b.Cancelling = true
			return "cancelAsked", nil
		}
		b.end(BulkCancelled, "", us.Now())
		return string(BulkCancelled), nil
	})
}

// changeBulk changes a bulk as somebody asks, and records it.
func (us *Users) changeBulk(ctx context.Context, core tenant.Core, by audit.Actor, id string, edit func(*Bulk) (what string, _ error)) (Bulk, error) {
	for range tries {
		b, err := us.Bulk(ctx, core.Tenant.ID, id)
		if err != nil {
			return Bulk{}, err
		}
		what, err := edit(&b)
		if errors.Is(err, errNothing) {
			return b, nil
		} else if err != nil {
			return Bulk{}, err
		}
		err = us.Table.Write(ctx, table.Put(bulkRecord{core.Tenant.ID, b}, table.IfVersion(b.Version)), us.toldBulk(ctx, core.Tenant.ID, by, b, what))
		if errors.Is(err, problem.ErrConflict) {
			continue
		} else if err != nil {
			return Bulk{}, fmt.Errorf("change a bulk: %w", err)
		}
		b.Version++
		return b, nil
	}
	return Bulk{}, fmt.Errorf("%w: others change the bulk at the same time", problem.ErrConflict)
}

// toldBulk is the audit record of what becomes of a bulk.
func (us *Users) toldBulk(ctx context.Context, t table.TenantID, by audit.Actor, b Bulk, what string) table.Op {
	d := map[string]string{"planned": fmt.Sprint(b.Mails()), "seen": fmt.Sprint(b.Seen), "issued": fmt.Sprint(b.Issued), "mailed": fmt.Sprint(b.Mailed)}
	for code, n := range b.Refused {
		d["refused."+code] = fmt.Sprint(n)
	}
	if n := b.Pending(); n > 0 {
		d["pending"] = fmt.Sprint(n)
	}
	r := audit.Record{Actor: by, Action: "bulkPINs." + what, Subject: BulkSubject(b.ID), Outcome: audit.Done, Details: d}
	if b.State == BulkFailed {
		r.Outcome, r.Reason = audit.Failed, b.Reason
	}
	return us.Audit.Op(ctx, t, r)
}

// end makes it one that has ended.
func (b *Bulk) end(state BulkState, reason string, now time.Time) {
	b.State, b.Reason, b.EndedAt = state, reason, now.UTC().Truncate(time.Second)
	b.Cancelling, b.WaitsUntil, b.worker, b.due = false, time.Time{}, "", time.Time{}
}

// wait lets it rest until a time.
func (b *Bulk) wait(until time.Time, reason string) {
	b.WaitsUntil, b.Reason = until.UTC().Truncate(time.Second), reason
}

// errBulkTaken: somebody else is at work on the bulk.
var errBulkTaken = errors.New("somebody else has taken up the bulk")

// putBulk writes a bulk that the caller is at work on, as change makes it, and returns it as it
// is then: somebody may have asked for its end meanwhile.
func (us *Users) putBulk(ctx context.Context, t table.TenantID, b Bulk, change func(*Bulk) (told string)) (Bulk, error) {
	for range tries {
		next := b
		next.Refused, next.waiting = maps.Clone(b.Refused), slices.Clone(b.waiting)
		next.due = us.Now().Add(bulkLease)
		told := change(&next)
		ops := []table.Op{table.Put(bulkRecord{t, next}, table.IfVersion(b.Version))}
		if told != "" {
			ops = append(ops, us.toldBulk(ctx, t, next.By, next, told))
		}
		err := us.Table.Write(ctx, ops...)
		if err == nil {
			next.Version = b.Version + 1
			return next, nil
		} else if !errors.Is(err, problem.ErrConflict) {
			return b, fmt.Errorf("store a bulk: %w", err)
		}
		now, err := us.Bulk(ctx, t, b.ID)
		if err != nil {
			return b, err
		}
		if now.worker != b.worker {
			return now, errBulkTaken
		}
		b = now
	}
	return b, errBusy
}

// advanceBulk does what is to be done of a bulk that the caller has taken up until its time is
// over, and lets go of it. It returns it as it is then.
func (us *Users) advanceBulk(ctx context.Context, core tenant.Core, senders Senders, b Bulk, until time.Time) (Bulk, error) {
	t := core.Tenant.ID
	var err error
	for err == nil && time.Now().Before(until) && !b.due.IsZero() && b.WaitsUntil.IsZero() {
		switch {
		case b.Cancelling:
			b, err = us.putBulk(ctx, t, b, func(b *Bulk) string {
				b.end(BulkCancelled, "", us.Now())
				return string(BulkCancelled)
			})
		case core.Tenant.Suspended:
			b.wait(us.Now().Add(waitForMail), "suspended")
		case b.State == BulkCounting:
			b, err = us.countBulk(ctx, t, b)
		case b.State == BulkRunning:
			b, err = us.runBulk(ctx, core, senders, b)
		default:
			return b, fmt.Errorf("bulk %s is %s and due", b.ID, b.State)
		}
	}
	if errors.Is(err, errBulkTaken) {
		return us.Bulk(ctx, t, b.ID)
	}
	if b.due.IsZero() {
		return b, err
	}
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	waits, why := b.WaitsUntil, b.Reason
	left, backErr := us.putBulk(back, t, b, func(b *Bulk) string {
		b.worker, b.due = "", us.Now().UTC()
		if !waits.IsZero() {
			b.wait(waits, why)
			b.due = b.WaitsUntil
		}
		return ""
	})
	return left, errors.Join(err, backErr)
}

// bulkUsers reads the next users of a bulk, in the order of their places, and whether there are
// more in their shard; false if there are none left. One that cannot be read is a zero User.
func (us *Users) bulkUsers(ctx context.Context, t table.TenantID, b Bulk) (users []User, places []string, more, _ bool, _ error) {
	ranges := table.Users(t, "")
	if b.shard == len(ranges) {
		return nil, nil, false, false, nil
	}
	r := ranges[b.shard]
	page, err := us.Table.Query(ctx, r.Beyond(b.beyond).Limit(bulkPage))
	if err != nil {
		return nil, nil, false, false, fmt.Errorf("read users: %w", err)
	}
	for _, item := range page.Items {
		u, err := decode(item)
		if err != nil {
			u = User{} // one that cannot be read does not stop the rest
		}
		users, places = append(users, u), append(places, r.Place(item))
	}
	return users, places, page.More, true, nil
}

// at puts a bulk behind a place of its shard, or at the start of the next one.
func (b *Bulk) at(place string, over bool) {
	if place != "" {
		b.beyond = place
	}
	if over {
		b.shard, b.beyond = b.shard+1, ""
	}
}

// countBulk counts a page of users.
func (us *Users) countBulk(ctx context.Context, t table.TenantID, b Bulk) (Bulk, error) {
	users, places, more, ok, err := us.bulkUsers(ctx, t, b)
	if err != nil {
		return b, err
	}
	return us.putBulk(ctx, t, b, func(b *Bulk) string {
		if !ok {
			b.State, b.PlannedAt = BulkPlanned, us.Now().UTC().Truncate(time.Second)
			b.shard, b.worker, b.due = 0, "", time.Time{}
			return ""
		}
		b.Users += len(users)
		for _, u := range users {
			if b.Spec.wants(u, us.Now()) {
				b.Matched++
				if mailable(u) != nil {
					b.NoAddress++
				}
			}
		}
		last := ""
		if len(places) > 0 {
			last = places[len(places)-1]
		}
		b.at(last, !more)
		return ""
	})
}

// runBulk issues and mails the PINs of the next users: of a page, at most a batch.
func (us *Users) runBulk(ctx context.Context, core tenant.Core, senders Senders, b Bulk) (Bulk, error) {
	t := core.Tenant.ID
	arrived, lost, waiting, err := us.awaited(ctx, t, b)
	if err != nil {
		return b, err
	}
	if len(waiting) != len(b.waiting) {
		b, err = us.putBulk(ctx, t, b, func(b *Bulk) string {
			b.Mailed += arrived
			b.refuse("notMailed", lost)
			b.waiting = waiting
			return ""
		})
		if err != nil {
			return b, err
		}
	}
	if len(b.waiting) >= bulkAhead {
		b.wait(us.Now().Add(time.Minute), "mail")
		return b, nil
	}
	users, places, more, ok, err := us.bulkUsers(ctx, t, b)
	switch {
	case err != nil:
		return b, err
	case !ok && len(b.waiting) > 0:
		b.wait(us.Now().Add(time.Minute), "mail")
		return b, nil
	case !ok:
		return us.putBulk(ctx, t, b, func(b *Bulk) string {
			b.end(BulkDone, "", us.Now())
			return string(BulkDone)
		})
	}

	// Those of its own are among them where it did not come to write what it has done.
	var batch []int
	seen := len(users)
	for i, u := range users {
		if b.Spec.wants(u, us.Now()) || u.Pending.order == b.ID || u.PIN.order == b.ID {
			if len(batch) == bulkBatch {
				seen = i
				break
			}
			batch = append(batch, i)
		}
	}
	results := make([]bulkResult, len(batch))
	var g errgroup.Group
	g.SetLimit(sendsAtOnce)
	for j, i := range batch {
		g.Go(func() error {
			results[j] = us.bulkOne(ctx, core, b, users[i].ID)
			return nil
		})
	}
	_ = g.Wait()

	// What comes after one that stops it is done again, and counted then.
	var stop bulkResult
	for j, r := range results {
		if r.stop {
			stop, seen, results = r, batch[j], results[:j]
			break
		}
	}
	us.bulkMail(ctx, core, senders, results)
	b, err = us.putBulk(context.WithoutCancel(ctx), t, b, func(b *Bulk) string {
		b.Seen += seen
		for _, r := range results {
			b.count(r)
		}
		last := ""
		if seen > 0 {
			last = places[seen-1]
		}
		b.at(last, seen == len(users) && !more)
		if stop.fatal {
			b.end(BulkFailed, stop.code, us.Now())
			return string(BulkFailed)
		}
		return ""
	})
	if err != nil {
		return b, err
	}
	if !stop.until.IsZero() {
		b.wait(stop.until, stop.code)
		return b, nil
	}
	return b, stop.err
}

// bulkResult is what came of one user of a bulk.
type bulkResult struct {
	user   User
	issued bool
	code   string // why not; "" if it is left alone
	sent   Stage  // "" if nothing was sent now

	stop  bool // the bulk cannot go on after it
	fatal bool // ever
	until time.Time
	err   error
}

// bulkOne issues the PIN of one user.
func (us *Users) bulkOne(ctx context.Context, core tenant.Core, b Bulk, id string) bulkResult {
	is := b.Spec.Issue
	is.Order, is.Bulk = b.ID, true
	is.If = func(u User) bool { return b.Spec.wants(u, us.Now()) }
	u, err := us.IssuePIN(ctx, core, b.By, id, is)
	if errors.Is(err, ErrIssued) {
		u, err = us.Get(ctx, core.Tenant.ID, id)
	}
	var limit *problem.LimitError
	switch code := RefusalCode(err); {
	case err == nil:
		return bulkResult{user: u, issued: true}
	case errors.Is(err, ErrNotWanted), errors.Is(err, ErrOnItsWay), errors.Is(err, ErrJustMailed), errors.Is(err, problem.ErrNotFound):
		return bulkResult{}
	case errors.Is(err, ErrNoMessaging), errors.Is(err, ErrNoTemplate):
		return bulkResult{code: code, stop: true, fatal: true}
	case errors.As(err, &limit):
		return bulkResult{code: code, stop: true, until: limit.Until}
	case errors.Is(err, problem.ErrConflict):
		return bulkResult{code: "conflict"}
	case code == "":
		return bulkResult{stop: true, err: err}
	default:
		return bulkResult{code: code}
	}
}

// bulkMail sends what is pending of the results, at once.
func (us *Users) bulkMail(ctx context.Context, core tenant.Core, senders Senders, results []bulkResult) {
	var users []User
	var of []int
	for j, r := range results {
		if r.issued && r.user.Pending.Waits() {
			users, of = append(users, r.user), append(of, j)
		}
	}
	for k, sent := range us.SendIssued(ctx, core, senders, users...) {
		r := &results[of[k]]
		r.sent, r.code = sent.Stage, sent.Reason
		if sent.Err != nil || sent.Stage == Overtaken {
			r.sent = Postponed // it is looked at again
		}
	}
}

// count adds what came of one user.
func (b *Bulk) count(r bulkResult) {
	if !r.issued {
		if r.code != "" {
			b.refuse(r.code, 1)
		}
		return
	}
	b.Issued++
	switch r.sent {
	case Postponed:
		b.waiting = append(b.waiting, r.user.ID)
	case Dropped:
		b.refuse(r.code, 1)
	default: // activated now, or before
		b.Mailed++
	}
}

func (b *Bulk) refuse(code string, n int) {
	if n == 0 {
		return
	}
	if b.Refused == nil {
		b.Refused = make(map[string]int)
	}
	b.Refused[code] += n
}

// awaited looks again at those to whom a PIN is on its way: how many have it by now, how many
// never will, and who waits still.
func (us *Users) awaited(ctx context.Context, t table.TenantID, b Bulk) (arrived, lost int, waiting []string, _ error) {
	for _, id := range b.waiting {
		u, err := us.Get(ctx, t, id)
		switch {
		case err != nil && !errors.Is(err, problem.ErrNotFound):
			return 0, 0, nil, err
		case err == nil && u.Pending.order == b.ID:
			waiting = append(waiting, id)
		case err == nil && u.PIN.order == b.ID:
			arrived++
		default:
			lost++
		}
	}
	return arrived, lost, waiting, nil
}

// BulkReport counts what a sweep did about bulks.
type BulkReport struct {
	Due        int  `json:"due"`        // bulks that nobody was at work on
	Ended      int  `json:"ended"`      // of those: there is nothing left to do
	Errors     int  `json:"errors"`     // of those: could not be gone on with
	Unfinished bool `json:"unfinished"` // there are more than were looked at
}

// SweepBulks goes on with the bulks of all tenants that nobody is at work on, at most limit of
// a shard, until its time is over. One that fails does not stop the rest.
//
// Its invariant: a bulk that has work left is in the due index, at the end of the lease of
// whoever is at work on it, or of its wait.
func (us *Users) SweepBulks(ctx context.Context, load func(context.Context, table.TenantID) (tenant.Core, error), senders Senders, limit int) (BulkReport, error) {
	until := time.Now().Add(bulkSlice)
	if deadline, ok := ctx.Deadline(); ok {
		until = deadline.Add(-bulkPause)
	}
	reports, errs := make([]BulkReport, table.JobDueShards), make([]error, table.JobDueShards)
	var g errgroup.Group
	for shard := range table.JobDueShards {
		g.Go(func() error {
			reports[shard], errs[shard] = us.sweepBulks(ctx, shard, load, senders, limit, until)
			return nil
		})
	}
	_ = g.Wait()
	var sum BulkReport
	for _, r := range reports {
		sum.Due += r.Due
		sum.Ended += r.Ended
		sum.Errors += r.Errors
		sum.Unfinished = sum.Unfinished || r.Unfinished
	}
	return sum, errors.Join(errs...)
}

func (us *Users) sweepBulks(ctx context.Context, shard int, load func(context.Context, table.TenantID) (tenant.Core, error), senders Senders, limit int, until time.Time) (report BulkReport, _ error) {
	page, err := us.Table.Query(ctx, table.BulksDueBefore(shard, us.Now()).Limit(limit))
	if err != nil {
		return BulkReport{Errors: 1}, fmt.Errorf("read which bulks are due: %w", err)
	}
	report.Unfinished = page.More
	var errs []error
	for i, item := range page.Items {
		left := time.Until(until)
		if left <= 0 {
			report.Unfinished = true
			break
		}
		report.Due++
		t, b, err := decodeBulk(item)
		var core tenant.Core
		if err == nil {
			core, err = load(ctx, t)
		}
		if err == nil { // each gets its share of the time that is left
			b, err = us.takeUpBulk(ctx, core, senders, b.ID, time.Now().Add(left/time.Duration(len(page.Items)-i)))
		}
		if err != nil {
			report.Errors++
			errs = append(errs, fmt.Errorf("go on with a bulk of %s, %s: %w", t, item.Key, err))
		} else if b.due.IsZero() {
			report.Ended++
		}
	}
	return report, errors.Join(errs...)
}

// takeUpBulk goes on with a bulk, if nobody else is at work on it.
func (us *Users) takeUpBulk(ctx context.Context, core tenant.Core, senders Senders, id string, until time.Time) (Bulk, error) {
	t := core.Tenant.ID
	b, err := us.Bulk(ctx, t, id)
	if err != nil || b.due.IsZero() || us.Now().Before(b.due) {
		return b, err
	}
	worker, err := ulid.New(ulid.Timestamp(us.Now()), us.Rand)
	if err != nil {
		return b, fmt.Errorf("take up a bulk: %w", err)
	}
	b.worker, b.due = worker.String(), us.Now().Add(bulkLease)
	b.WaitsUntil, b.Reason = time.Time{}, ""
	err = us.Table.Write(ctx, table.Put(bulkRecord{t, b}, table.IfVersion(b.Version)))
	if errors.Is(err, problem.ErrConflict) {
		return us.Bulk(ctx, t, id)
	} else if err != nil {
		return b, fmt.Errorf("take up a bulk: %w", err)
	}
	b.Version++
	return us.advanceBulk(ctx, core, senders, b, until)
}
