// Package due is the sweep: it announces PINs that are about to expire and
// deletes those that have. What it costs follows what is due, not what exists.
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
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// Sweep does what is due. All fields must be set.
type Sweep struct {
	Table   table.Table
	Tenants *tenant.Tenants
	Users   *user.Users
	Senders mail.Senders
	Now     func() time.Time
	Log     *slog.Logger
}

const (
	pageSize = 50              // users read at once: one bulk call of SES
	lease    = 5 * time.Minute // how long a claim holds: longer than an invocation may last
	reserve  = 15 * time.Second
	parallel = 8 // writes at once in a page
	shardsAt = 4 // shards at once
)

// Report counts what a sweep did.
type Report struct {
	Due        int  `json:"due"`        // read from the index
	Expired    int  `json:"expired"`    // PINs deleted
	Sent       int  `json:"sent"`       // mails accepted
	Repeated   int  `json:"repeated"`   // of those: may have been sent before
	NoAddress  int  `json:"noAddress"`  // users who could not be told: no mail address
	Refused    int  `json:"refused"`    // mails that the mail system will never take
	Postponed  int  `json:"postponed"`  // to be tried again later
	Overtaken  int  `json:"overtaken"`  // somebody else did it, or it was not due any more
	Errors     int  `json:"errors"`     // items left for the next sweep
	Unfinished bool `json:"unfinished"` // time ran out with more to do
}

// add adds another report's counts.
func (r *Report) add(o Report) {
	r.Due += o.Due
	r.Expired += o.Expired
	r.Sent += o.Sent
	r.Repeated += o.Repeated
	r.NoAddress += o.NoAddress
	r.Refused += o.Refused
	r.Postponed += o.Postponed
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
	report := s.Run(ctx, event.Shards...)
	if report.Errors > 0 || report.Unfinished {
		return report, fmt.Errorf("left for the next sweep: %d items that could not be handled, and more that there was no time for: %t", report.Errors, report.Unfinished)
	}
	return report, nil
}

// Run sweeps the shards, or all if none are named, until all is done or the
// context's deadline is near.
func (s *Sweep) Run(ctx context.Context, shards ...int) Report {
	if len(shards) == 0 {
		for i := range table.DueShards {
			shards = append(shards, i)
		}
	}
	run := &run{Sweep: s, tenants: make(map[table.TenantID]*office)}
	began := time.Now()
	var total Report
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(shardsAt)
	for _, shard := range shards {
		g.Go(func() error {
			r := run.shard(ctx, shard)
			mu.Lock()
			defer mu.Unlock()
			total.add(r)
			return nil
		})
	}
	_ = g.Wait()
	level := slog.LevelInfo
	if total.Errors > 0 || total.Unfinished {
		level = slog.LevelError
	}
	s.Log.Log(ctx, level, "sweep", "report", total, "shards", len(shards), "took", time.Since(began))
	return total
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
	template mail.Template
}

// shard does what is due in one shard, oldest first, in pages. Items that fail
// are passed over: they stay due, and the next sweep meets them again.
func (r *run) shard(ctx context.Context, shard int) (total Report) {
	now := r.Now()
	for place := ""; ; {
		if deadline, ok := ctx.Deadline(); ctx.Err() != nil || ok && time.Until(deadline) < reserve {
			total.Unfinished = true
			return total
		}
		due, next, err := r.Users.PINsDueBefore(ctx, shard, now, place, pageSize)
		if err != nil {
			r.Log.ErrorContext(ctx, "sweep cannot read a shard", "shard", shard, "cause", err)
			total.Errors++
			return total
		}
		total.add(r.page(ctx, now, due))
		if next == "" {
			return total
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
		g.Go(func() error {
			if d.Expired(now) {
				switch done, err := r.Users.ExpirePIN(ctx, o.core, actor, d.User); {
				case err != nil:
					failed(d, err)
				case done:
					count(func(t *Report) { t.Expired++ })
				default:
					count(func(t *Report) { t.Overtaken++ })
				}
				return nil
			}
			switch u, ok, err := r.Users.ClaimNotice(ctx, d.Tenant, d.User, lease); {
			case err != nil:
				failed(d, err)
			case ok:
				mu.Lock()
				defer mu.Unlock()
				claimed[d.Tenant] = append(claimed[d.Tenant], u)
			default:
				count(func(t *Report) { t.Overtaken++ })
			}
			return nil
		})
	}
	_ = g.Wait()

	// Tenants' mail systems are waited for side by side: one that hangs holds up
	// its own tenant only. What is sent by then is marked within the reserve.
	sending, cancel := beforeDeadline(ctx, reserve/2)
	defer cancel()
	for id, users := range claimed {
		g.Go(func() error {
			deliveries := r.send(sending, r.office(ctx, id), users)
			for i, u := range users {
				d := deliveries[i]
				marked, err := r.Users.MarkNotice(ctx, id, actor, u, d)
				if err != nil {
					failed(user.Due{Tenant: id, User: u}, err)
					continue
				}
				count(func(t *Report) { t.delivered(d, u, marked) })
			}
			return nil
		})
	}
	_ = g.Wait()
	return total
}

// delivered counts what came of one notice.
func (r *Report) delivered(d user.Delivery, claimed user.User, marked bool) {
	switch {
	case d.State == user.NoticeSent:
		r.Sent++
		if claimed.PIN.Notice.Repeated {
			r.Repeated++
		}
	case d.State == user.NoticeSkipped:
		r.NoAddress++
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
		wait := min(time.Minute<<min(u.PIN.Notice.Attempts-1, 10), time.Hour)
		return user.Delivery{State: user.NoticePlanned, At: r.Now().Add(wait).UTC().Truncate(time.Second), Reason: reason, Unknown: unknown}
	}
	var messages []mail.Message
	var of []int // whose message it is
	for i, u := range users {
		switch {
		case u.Profile.Mail == "":
			deliveries[i] = user.Delivery{State: user.NoticeSkipped, Reason: "noAddress"}
			continue
		case o.sender == nil:
			deliveries[i] = postpone(u, o.why, false)
			continue
		}
		settings := o.core.Tenant.Settings
		m, err := mail.Render(o.template, mail.Values{
			PINExpiration: mail.FormatTime(u.PIN.ExpiresAt, settings.Location(), settings.Language),
			Username:      u.Profile.Username,
			CustomerName:  settings.DisplayName,
		})
		if err != nil {
			r.Log.ErrorContext(ctx, "sweep cannot render a mail", "tenant", o.core.Tenant.ID, "template", o.template.ID, "cause", err)
			deliveries[i] = postpone(u, "template", false)
			continue
		}
		m.ID, m.To = u.MessageID(), u.Profile.Mail
		messages, of = append(messages, m), append(of, i)
	}
	if len(messages) == 0 {
		return deliveries
	}
	for j, result := range o.sender.Send(ctx, messages) {
		i := of[j]
		switch result.Outcome {
		case mail.Accepted:
			deliveries[i] = user.Delivery{State: user.NoticeSent}
		case mail.Refused:
			deliveries[i] = user.Delivery{State: user.NoticeFailed, Reason: result.Code}
		default:
			deliveries[i] = postpone(users[i], result.Code, result.Outcome == mail.Unknown)
		}
	}
	return deliveries
}

// office loads a tenant once a run.
func (r *run) office(ctx context.Context, id table.TenantID) *office {
	r.mu.Lock()
	o := r.tenants[id]
	if o == nil {
		o = &office{}
		r.tenants[id] = o
	}
	r.mu.Unlock()
	o.load.Do(func() { o.err = r.open(ctx, o, id) })
	return o
}

func (r *run) open(ctx context.Context, o *office, id table.TenantID) (err error) {
	if o.core, err = r.Tenants.Load(ctx, id); err != nil {
		return err
	}
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
