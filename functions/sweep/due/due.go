// Package due is the sweep: it announces PINs that are about to expire and
// deletes those that have, and mails generated ones that were not mailed at once; those of cards it only announces. What it costs follows what is due, not what exists.
//
// Its invariant: a notice is claimed before its mail is sent and marked after,
// each in a conditional write, so a crash at any step loses no mail, and a mail
// can be sent twice only if what became of the first was lost, which is
// recorded. A PIN is deleted only once it has expired, whoever looks.
package due

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

// Sweep does what is due. All fields must be set.
type Sweep struct {
	Table       table.Table
	Tenants     *tenant.Tenants
	Users       *user.Users
	Credentials *credential.Credentials
	Unblocks    *unblock.Unblocks
	Deliveries  *delivery.Deliveries
	Engine      *rule.Engine
	Senders     mail.Senders
	Now         func() time.Time
	Log         *slog.Logger
}

const (
	pageSize = 50              // users read at once: one bulk call of SES
	lease    = 5 * time.Minute // how long a claim holds: longer than an invocation may last
	reserve  = 15 * time.Second
	patience = 10 * time.Second // with one tenant's mail system, a page
	wait     = time.Hour        // until a tenant that cannot send is tried again
	parallel = 8                // writes at once in a page
	shardsAt = 4                // shards at once

	unblocksAt = 200 // unblocks a shard and sweep
	runsAt     = 20  // runs of the sanity check a shard and sweep
	bulksAt    = 20  // bulks of generated PINs a shard and sweep

	deliveriesAt = 200 // deliveries a shard read at once
)

// Report counts what a sweep did.
type Report struct {
	Due         int  `json:"due"`         // read from the index
	Expired     int  `json:"expired"`     // PINs deleted
	Sent        int  `json:"sent"`        // mails accepted
	Repeated    int  `json:"repeated"`    // of those: may have been sent before
	NoAddress   int  `json:"noAddress"`   // users who could not be told: no mail address
	Refused     int  `json:"refused"`     // mails that the mail system will never take
	Held        int  `json:"held"`        // to be sent when their tenant's quiet hours end
	Skipped     int  `json:"skipped"`     // left out: the address is known not to work, or the quiet hours do not end before the PIN does
	Waiting     int  `json:"waiting"`     // left for the next sweep: their tenant's mail system does not answer
	Mailed      int  `json:"mailed"`      // generated PINs that their users have by mail now
	Dropped     int  `json:"dropped"`     // generated PINs that cannot be mailed
	Postponed   int  `json:"postponed"`   // to be tried again later
	Unannounced int  `json:"unannounced"` // of those expired: their users were not told as planned
	Overtaken   int  `json:"overtaken"`   // somebody else did it, or it was not due any more
	Errors      int  `json:"errors"`      // items left for the next sweep
	Unfinished  bool `json:"unfinished"`  // time ran out with more to do

	Unblocks unblock.Report `json:"unblocks,omitzero"` // of Handle
	Cards    CardReport     `json:"cards,omitzero"`    // of Handle

	SanityRuns credential.RunReport `json:"sanityRuns,omitzero"` // of Handle
	Digests    DigestReport         `json:"digests,omitzero"`    // of Handle
	Deliveries delivery.Report      `json:"deliveries,omitzero"` // of Handle
	Events     rule.Report          `json:"events,omitzero"`     // of Handle
	Bulks      user.BulkReport      `json:"bulks,omitzero"`      // of Handle
}

// add adds another report's counts.
func (r *Report) add(o Report) {
	r.Due += o.Due
	r.Expired += o.Expired
	r.Sent += o.Sent
	r.Repeated += o.Repeated
	r.NoAddress += o.NoAddress
	r.Refused += o.Refused
	r.Held += o.Held
	r.Skipped += o.Skipped
	r.Waiting += o.Waiting
	r.Mailed += o.Mailed
	r.Dropped += o.Dropped
	r.Postponed += o.Postponed
	r.Unannounced += o.Unannounced
	r.Overtaken += o.Overtaken
	r.Errors += o.Errors
	r.Unfinished = r.Unfinished || o.Unfinished
}

// Event is the input of a scheduled invocation. Without shards it is all.
type Event struct {
	Shards []int `json:"shards"`
}

// Handle is the Lambda handler. Events of any other shape sweep everything. It
// fails if anything was left undone, so that the function's errors show it.
func (s *Sweep) Handle(ctx context.Context, raw json.RawMessage) (Report, error) {
	var event Event
	if err := json.Unmarshal(raw, &event); err != nil {
		event = Event{} // EventBridge's own shape; there is nothing in it to heed
	}
	for _, shard := range event.Shards {
		if shard < 0 || shard >= table.DueShards {
			return Report{}, fmt.Errorf("there is no shard %d, only 0 to %d", shard, table.DueShards-1)
		}
	}
	var unblocks unblock.Report
	var g errgroup.Group
	if len(event.Shards) == 0 || slices.Contains(event.Shards, 0) { // theirs are few, and go with the first
		g.Go(func() (err error) {
			ctx, cancel := beforeDeadline(ctx, reserve)
			defer cancel()
			if unblocks, err = s.Unblocks.Sweep(ctx, unblocksAt); err != nil {
				s.Log.ErrorContext(ctx, "sweep cannot handle unblocks", "cause", err)
			}
			answers, err := s.Unblocks.SweepAnswers(ctx, unblocksAt)
			if err != nil {
				s.Log.ErrorContext(ctx, "sweep cannot handle offline answers", "cause", err)
			}
			unblocks.Due, unblocks.Told = unblocks.Due+answers.Due, unblocks.Told+answers.Told
			unblocks.Errors, unblocks.More = unblocks.Errors+answers.Errors, unblocks.More+answers.More
			return nil
		})
	}
	var runs credential.RunReport
	if len(event.Shards) == 0 || slices.Contains(event.Shards, 0) { // and so do runs of the sanity check
		g.Go(func() (err error) {
			if runs, err = s.Credentials.SweepRuns(ctx, runsAt); err != nil {
				s.Log.ErrorContext(ctx, "sweep cannot go on with runs of the sanity check", "cause", err)
			}
			return nil
		})
	}
	var deliveries delivery.Report
	if len(event.Shards) == 0 || slices.Contains(event.Shards, 0) { // and what rules send out
		g.Go(func() (err error) {
			if deliveries, err = s.Deliveries.Sweep(ctx, deliveriesAt); err != nil {
				s.Log.ErrorContext(ctx, "sweep cannot go on with deliveries", "cause", err)
			}
			return nil
		})
	}
	var bulks user.BulkReport
	if len(event.Shards) == 0 || slices.Contains(event.Shards, 0) { // and bulks of generated PINs
		g.Go(func() (err error) {
			if bulks, err = s.Users.SweepBulks(ctx, s.Tenants.Load, s.Senders, bulksAt); err != nil {
				s.Log.ErrorContext(ctx, "sweep cannot go on with bulks of generated PINs", "cause", err)
			}
			return nil
		})
	}
	var events rule.Report
	if len(event.Shards) == 0 || slices.Contains(event.Shards, 0) { // and events that rules wait for
		g.Go(func() (err error) {
			ctx, cancel := beforeDeadline(ctx, reserve)
			defer cancel()
			if events, err = s.Engine.Sweep(ctx); err != nil {
				s.Log.ErrorContext(ctx, "sweep cannot act on events", "cause", err)
			}
			return nil
		})
	}
	var digests DigestReport
	if len(event.Shards) == 0 || slices.Contains(event.Shards, 0) { // and digests
		g.Go(func() error {
			ctx, cancel := beforeDeadline(ctx, reserve/2)
			defer cancel()
			digests = s.Digests(ctx)
			return nil
		})
	}
	var cards CardReport
	g.Go(func() error {
		cards = s.Cards(ctx, event.Shards...)
		return nil
	})
	report := s.Run(ctx, event.Shards...)
	_ = g.Wait()
	report.Unblocks, report.Cards = unblocks, cards
	report.SanityRuns, report.Digests, report.Deliveries, report.Events, report.Bulks = runs, digests, deliveries, events, bulks
	report.Errors += unblocks.Errors + cards.Errors + runs.Errors + digests.Errors + deliveries.Errors + events.Errors + bulks.Errors
	report.Unfinished = report.Unfinished || cards.Unfinished || deliveries.Unfinished || events.Unfinished
	left := report.Errors > 0 || report.Unfinished
	if len(event.Shards) == 0 || slices.Contains(event.Shards, 0) { // pages tell by it that the sweep is alive
		if err := s.Tenants.Swept(ctx, left); err != nil {
			s.Log.ErrorContext(ctx, "sweep cannot note that it was", "cause", err)
		}
	}
	if left {
		return report, fmt.Errorf("left for the next sweep: %d items that could not be handled, and more that there was no time for: %t", report.Errors, report.Unfinished)
	}
	return report, nil
}

// Run sweeps the shards, or all if none are named, until all is done or the
// context's deadline is near.
func (s *Sweep) Run(ctx context.Context, shards ...int) Report {
	run := &run{Sweep: s, tenants: make(map[table.TenantID]*office)}
	began := time.Now()
	var total Report
	swept := s.everyShard(shards, &run.mu, func(shard int) func() {
		r := run.shard(ctx, shard)
		return func() { total.add(r) }
	})
	level := slog.LevelInfo
	if total.Errors > 0 || total.Unannounced > 0 || total.Unfinished {
		level = slog.LevelError
	}
	s.Log.Log(ctx, level, "sweep", "report", total, "shards", swept, "took", time.Since(began))
	return total
}

// everyShard does the shards named, or all if none are, a few at once, and returns how many
// they were. What do returns is called with mu held.
func (s *Sweep) everyShard(shards []int, mu *sync.Mutex, do func(shard int) func()) int {
	if len(shards) == 0 {
		for i := range table.DueShards {
			shards = append(shards, i)
		}
	}
	// Where the last sweep ran out of time this one does not begin.
	first := int(s.Now().Unix()/60) % len(shards)
	var g errgroup.Group
	g.SetLimit(shardsAt)
	for _, shard := range slices.Concat(shards[first:], shards[:first]) {
		g.Go(func() error {
			add := do(shard)
			mu.Lock()
			defer mu.Unlock()
			add()
			return nil
		})
	}
	_ = g.Wait()
	return len(shards)
}

// run is one Run: it remembers the tenants it has loaded.
type run struct {
	*Sweep
	mu      sync.Mutex
	tenants map[table.TenantID]*office
}

// office is what is needed to act for a tenant.
type office struct {
	load     sync.Once
	err      error
	core     tenant.Core
	sender   mail.Sender // nil if no mail can be sent now
	why      string      // then: why not
	down     atomic.Bool // the mail system took nothing in this run
	template mail.Template
	noPost   atomic.Bool // what generated PINs are mailed with took nothing in this run

	quiet      bool // it is in the tenant's quiet hours, until:
	quietUntil time.Time
}

// shard does what is due in one shard, oldest first, in pages. Items that fail
// are passed over: they stay due, and the next sweep meets them again.
func (r *run) shard(ctx context.Context, shard int) (total Report) {
	now := r.Now()
	unfinished, err := pages(ctx, func(place string) ([]user.Due, string, error) {
		return r.Users.PINsDueBefore(ctx, shard, now, place, pageSize)
	}, func(due []user.Due) { total.add(r.page(ctx, now, due)) })
	total.Unfinished = total.Unfinished || unfinished
	if err != nil {
		r.Log.ErrorContext(ctx, "sweep cannot read a shard", "shard", shard, "cause", err)
		total.Errors++
	}
	return total
}

// pages reads what is due and does it, page by page, until all is done or the context's
// deadline is near: then there may be more, and it returns true.
func pages[D any](ctx context.Context, read func(place string) ([]D, string, error), do func([]D)) (unfinished bool, _ error) {
	for place := ""; ; {
		if deadline, ok := ctx.Deadline(); ctx.Err() != nil || ok && time.Until(deadline) < reserve {
			return true, nil
		}
		due, next, err := read(place)
		if err != nil {
			return false, err
		}
		do(due)
		if next == "" {
			return false, nil
		}
		place = next
	}
}

func (r *run) page(ctx context.Context, now time.Time, due []user.Due) Report {
	total := Report{Due: len(due)}
	var mu sync.Mutex
	count := func(f func(*Report)) {
		mu.Lock()
		defer mu.Unlock()
		f(&total)
	}
	failed := func(d user.Due, err error) {
		r.Log.ErrorContext(ctx, "sweep cannot handle a user", "tenant", d.Tenant, "user", d.User.ID, "cause", err)
		count(func(t *Report) { t.Errors++ })
	}

	var g errgroup.Group
	g.SetLimit(parallel)
	claimed := make(map[table.TenantID][]user.User)
	issued := make(map[table.TenantID][]user.User)
	for _, d := range due {
		if d.Err != nil {
			failed(d, d.Err)
			continue
		}
		o := r.office(ctx, d.Tenant)
		if o.err != nil {
			failed(d, o.err)
			continue
		}
		if d.ToMail(now) {
			issued[d.Tenant] = append(issued[d.Tenant], d.User)
			continue
		}
		g.Go(func() error {
			var done bool
			var err error
			switch {
			case d.Expired(now):
				if done, err = r.Users.ExpirePIN(ctx, o.core, actor, d.User); done {
					count(func(t *Report) {
						t.Expired++
						if d.Unannounced() {
							t.Unannounced++
						}
					})
				}
			case d.User.Unreachable() != "":
				if done, err = r.Users.SkipNotice(ctx, o.core, actor, d.User, d.User.Unreachable()); done {
					count(func(t *Report) {
						if d.User.Profile.Mail == "" {
							t.NoAddress++
						} else {
							t.Skipped++
						}
					})
				}
			case o.quiet:
				var held bool
				if held, done, err = r.Users.HoldNotice(ctx, o.core, actor, d.User, o.quietUntil); done {
					count(func(t *Report) {
						if held {
							t.Held++
						} else {
							t.Skipped++
						}
					})
				}
			case o.sender == nil:
				if done, err = r.Users.PostponeNotice(ctx, o.core, actor, d.User, now.Add(wait), o.why); done {
					count(func(t *Report) { t.Postponed++ })
				}
			case o.down.Load(): // it stays due, and the next sweep tries again
				done = true
				count(func(t *Report) { t.Waiting++ })
			default:
				var u user.User
				if u, done, err = r.Users.ClaimNotice(ctx, o.core, actor, d.User, lease); done {
					mu.Lock()
					defer mu.Unlock()
					claimed[d.Tenant] = append(claimed[d.Tenant], u)
				}
			}
			if err != nil {
				failed(d, err)
			} else if !done {
				count(func(t *Report) { t.Overtaken++ })
			}
			return nil
		})
	}
	_ = g.Wait()

	// Tenants' mail systems are waited for side by side, and not for long; one
	// that does not answer is left alone for the rest of the run, so that it
	// holds up its own tenant only. What is sent by then is marked within the
	// reserve.
	sending, cancel := beforeDeadline(ctx, reserve/2)
	defer cancel()
	sending, cancelPage := context.WithTimeout(sending, patience)
	defer cancelPage()
	for id, users := range claimed {
		g.Go(func() error {
			o := r.office(ctx, id)
			deliveries := r.send(sending, o, users)
			for i, u := range users {
				d := deliveries[i]
				marked, err := r.Users.MarkNotice(ctx, o.core, actor, u, d)
				if err != nil {
					failed(user.Due{Tenant: id, User: u}, err)
					continue
				}
				count(func(t *Report) { t.delivered(d, u, marked) })
			}
			return nil
		})
	}
	for id, users := range issued {
		o := r.office(ctx, id)
		if o.noPost.Load() {
			count(func(t *Report) { t.Waiting += len(users) })
			continue
		}
		g.Go(func() error {
			answered := false
			for i, sent := range r.Users.SendIssued(ctx, o.core, r.Senders, users...) {
				if sent.Err != nil {
					failed(user.Due{Tenant: id, User: users[i]}, sent.Err)
				}
				answered = answered || sent.Stage != user.Postponed
				count(func(t *Report) { t.issued(sent, users[i]) })
			}
			o.noPost.Store(!answered)
			return nil
		})
	}
	_ = g.Wait()
	return total
}

// issued counts what came of one generated PIN.
func (r *Report) issued(s user.Sent, read user.User) {
	switch s.Stage {
	case user.Activated:
		r.Mailed++
		if read.Pending.Repeated || read.Pending.Claimed {
			r.Repeated++
		}
	case user.Dropped:
		r.Dropped++
	case user.Postponed:
		r.Postponed++
	case user.Overtaken:
		r.Overtaken++
	}
}

// delivered counts what came of one notice.
func (r *Report) delivered(d user.Delivery, claimed user.User, marked bool) {
	switch {
	case d.State == user.NoticeSent:
		r.Sent++
		if claimed.PIN.Notice.Repeated {
			r.Repeated++
		}
	case d.State == user.NoticeFailed:
		r.Refused++
	default:
		r.Postponed++
	}
	if !marked { // the PIN was renewed or deleted meanwhile
		r.Overtaken++
	}
}

// beforeDeadline returns a context that ends so long before the given one.
func beforeDeadline(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithDeadline(ctx, deadline.Add(-d))
	}
	return context.WithCancel(ctx)
}

// actor is who the audit log says did it.
var actor = audit.Actor{Kind: audit.System, ID: "sweep"}

// send mails the claimed users and says for each what came of it.
func (r *run) send(ctx context.Context, o *office, users []user.User) []user.Delivery {
	deliveries := make([]user.Delivery, len(users))
	postpone := func(u user.User, reason string, unknown bool) user.Delivery {
		return user.Delivery{State: user.NoticePlanned, At: r.again(u.PIN.Notice.Attempts), Reason: reason, Unknown: unknown}
	}
	var messages []mail.Message
	var of []int // whose message it is
	for i, u := range users {
		settings := o.core.Tenant.Settings
		m, err := mail.Render(o.template, mail.PINExpiryValues{
			PINExpiration: mail.FormatTime(u.PIN.ExpiresAt, settings.Location(), settings.Language),
			Username:      u.Profile.Username,
			CustomerName:  settings.DisplayName,
		})
		if err != nil {
			r.Log.ErrorContext(ctx, "sweep cannot render a mail", "tenant", o.core.Tenant.ID, "template", o.template.ID, "cause", err)
			deliveries[i] = postpone(u, "template", false)
			continue
		}
		m.ID, m.To, m.Bulk, m.Tenant, m.User = u.MessageID(), u.Profile.Mail, true, o.core.Tenant.ID, u.ID
		messages, of = append(messages, m), append(of, i)
	}
	for j, result := range post(ctx, o.sender, &o.down, messages) {
		i := of[j]
		switch result.Outcome {
		case mail.Accepted:
			deliveries[i] = user.Delivery{State: user.NoticeSent}
		case mail.Refused:
			deliveries[i] = user.Delivery{State: user.NoticeFailed, Reason: result.Code, NoMailbox: result.NoMailbox}
		default:
			deliveries[i] = postpone(users[i], result.Code, result.Outcome == mail.Unknown)
		}
	}
	return deliveries
}

// again is when to try once more, after so many attempts.
func (s *Sweep) again(attempts int) time.Time {
	wait := min(time.Minute<<min(attempts-1, 10), time.Hour)
	return s.Now().Add(wait).UTC().Truncate(time.Second)
}

// post mails messages, if there are any, and returns what came of each. It notes a mail
// system that is down: it has said nothing of any.
func post(ctx context.Context, sender mail.Sender, down *atomic.Bool, messages []mail.Message) []mail.Result {
	if len(messages) == 0 {
		return nil
	}
	results := sender.Send(ctx, messages)
	if !slices.ContainsFunc(results, answers) {
		down.Store(true)
	}
	return results
}

// answers tells whether a mail system has said something of a message.
func answers(r mail.Result) bool { return r.Outcome == mail.Accepted || r.Outcome == mail.Refused }

// entry returns what a map has under the key, first a zero value. What is loaded into that,
// once, is not loaded under the lock.
func entry[K comparable, V any](mu *sync.Mutex, m map[K]*V, key K) *V {
	mu.Lock()
	defer mu.Unlock()
	v := m[key]
	if v == nil {
		v = new(V)
		m[key] = v
	}
	return v
}

// office loads a tenant once a run.
func (r *run) office(ctx context.Context, id table.TenantID) *office {
	o := entry(&r.mu, r.tenants, id)
	o.load.Do(func() { o.err = r.open(ctx, o, id) })
	return o
}

func (r *run) open(ctx context.Context, o *office, id table.TenantID) (err error) {
	if o.core, err = r.Tenants.Load(ctx, id); err != nil {
		return err
	}
	o.quietUntil, o.quiet = o.core.Tenant.Settings.QuietUntil(r.Now())
	refs := o.core.Tenant.Settings.ExpiryMail
	switch {
	case o.core.Tenant.Suspended:
		o.why = "suspended"
		return nil
	case refs.Messaging == "":
		o.why = "noMessaging"
		return nil
	}
	store := mail.Store{Table: r.Table, Tenant: id, Keys: o.core.Keys}
	name := refs.Template
	if name == "" {
		name = mail.PINExpiryID
	}
	conf, err := store.WithPassword(ctx, refs.Messaging)
	if err == nil {
		o.template, err = store.Template(ctx, name, o.core.Tenant.Settings.Language)
	}
	if err == nil {
		o.sender, err = r.Senders.For(conf)
	}
	if err != nil { // PINs expire all the same; mails wait
		o.sender, o.why = nil, "messaging"
		r.Log.ErrorContext(ctx, "sweep cannot send for a tenant", "tenant", id, "messaging", refs.Messaging, "cause", err)
	}
	return nil
}
