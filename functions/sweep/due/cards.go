package due

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/user"
)

// CardReport counts what a sweep did for the PINs of cards.
type CardReport struct {
	Due        int  `json:"due"`        // read from the index
	Expired    int  `json:"expired"`    // PINs whose expiry was recorded
	Sent       int  `json:"sent"`       // mails accepted
	Repeated   int  `json:"repeated"`   // of those: may have been sent before
	Skipped    int  `json:"skipped"`    // mails that nobody is to be sent: no holder, no address, none wanted
	Refused    int  `json:"refused"`    // mails that the mail system will never take
	Held       int  `json:"held"`       // to be sent when their tenant's quiet hours end
	Waiting    int  `json:"waiting"`    // left for the next sweep: their mail system does not answer
	Postponed  int  `json:"postponed"`  // to be tried again later
	Overtaken  int  `json:"overtaken"`  // somebody else did it, or it was not due any more
	Errors     int  `json:"errors"`     // cards left for the next sweep
	Unfinished bool `json:"unfinished"` // time ran out with more to do
}

func (r *CardReport) add(o CardReport) {
	r.Due += o.Due
	r.Expired += o.Expired
	r.Sent += o.Sent
	r.Repeated += o.Repeated
	r.Skipped += o.Skipped
	r.Refused += o.Refused
	r.Held += o.Held
	r.Waiting += o.Waiting
	r.Postponed += o.Postponed
	r.Overtaken += o.Overtaken
	r.Errors += o.Errors
	r.Unfinished = r.Unfinished || o.Unfinished
}

// tooLate is how long after a card's PIN has expired it is still told.
const tooLate = 7 * 24 * time.Hour

// Cards sends the reminders of cards' PINs that are about to expire, and records and tells
// those that have, in the shards named or in all. Its invariant is that of the package: a
// notice is claimed before its mail is sent, and marked after.
func (s *Sweep) Cards(ctx context.Context, shards ...int) CardReport {
	run := &cardRun{run: run{Sweep: s, tenants: make(map[table.TenantID]*office)}, systems: make(map[systemID]*system), counters: make(map[counterID]*counter)}
	began := time.Now()
	var total CardReport
	swept := s.everyShard(shards, &run.mu, func(shard int) func() {
		r := run.shard(ctx, shard)
		return func() { total.add(r) }
	})
	level := slog.LevelInfo
	if total.Errors > 0 || total.Unfinished {
		level = slog.LevelError
	}
	s.Log.Log(ctx, level, "sweep of cards", "report", total, "shards", swept, "took", time.Since(began))
	return total
}

// cardRun is one Cards: it remembers what it has loaded.
type cardRun struct {
	run
	systems  map[systemID]*system
	counters map[counterID]*counter
}

// system is a mail system: a messaging configuration of a tenant.
type system struct {
	load   sync.Once
	sender mail.Sender // nil if no mail can be sent now
	why    string      // then: why not
	down   atomic.Bool // the mail system took nothing in this run
}

type systemID struct {
	tenant    table.TenantID
	messaging string
}

// counter is where the notices of a kind of a credential template are made out.
type counter struct {
	load     sync.Once
	err      error
	office   *office
	template credential.Template
	skip     string // why none is to be sent, for good
	why      string // why none can be sent now
	system   *system
	text     mail.Template
}

type counterID struct {
	tenant   table.TenantID
	template string
	kind     credential.NoticeKind
	days     int
}

func (r *cardRun) shard(ctx context.Context, shard int) (total CardReport) {
	now := r.Now()
	unfinished, err := pages(ctx, func(place string) ([]credential.Due, string, error) {
		return r.Credentials.PINsDueBefore(ctx, shard, now, place, pageSize)
	}, func(due []credential.Due) { total.add(r.page(ctx, now, due)) })
	total.Unfinished = total.Unfinished || unfinished
	if err != nil {
		r.Log.ErrorContext(ctx, "sweep cannot read a shard of cards", "shard", shard, "cause", err)
		total.Errors++
	}
	return total
}

// claim is a claimed notice, and who is told.
type claim struct {
	credential credential.Credential
	counter    *counter
	holder     user.User // zero for nobody
	to         string
}

func (r *cardRun) page(ctx context.Context, now time.Time, due []credential.Due) CardReport {
	total := CardReport{Due: len(due)}
	var mu sync.Mutex
	count := func(f func(*CardReport)) {
		mu.Lock()
		defer mu.Unlock()
		f(&total)
	}
	failed := func(t table.TenantID, id string, err error) {
		r.Log.ErrorContext(ctx, "sweep cannot handle a card", "tenant", t, "credential", id, "cause", err)
		count(func(t *CardReport) { t.Errors++ })
	}
	var g errgroup.Group
	g.SetLimit(parallel)
	claimed := make(map[*system][]claim)
	for _, d := range due {
		if d.Err != nil {
			failed("", "", d.Err)
			continue
		}
		g.Go(func() error {
			k, done, err := r.take(ctx, now, d, count)
			switch {
			case err != nil:
				failed(d.Tenant, d.Credential.ID, err)
			case !done:
				count(func(t *CardReport) { t.Overtaken++ })
			case d.Credential.Expired(now) && !d.Credential.ExpiryRecorded:
				count(func(t *CardReport) { t.Expired++ })
			}
			if k != nil {
				mu.Lock()
				defer mu.Unlock()
				claimed[k.counter.system] = append(claimed[k.counter.system], *k)
			}
			return nil
		})
	}
	_ = g.Wait()

	sending, cancel := beforeDeadline(ctx, reserve/2)
	defer cancel()
	sending, cancelPage := context.WithTimeout(sending, patience)
	defer cancelPage()
	for p, claims := range claimed {
		g.Go(func() error {
			deliveries := r.send(sending, p, claims)
			for i, k := range claims {
				t := k.counter.office.core.Tenant.ID
				marked, err := r.Credentials.MarkNotice(ctx, k.counter.office.core, actor, k.credential, k.counter.template, deliveries[i])
				if err != nil {
					failed(t, k.credential.ID, err)
					continue
				}
				count(func(t *CardReport) { t.delivered(deliveries[i], k.credential, marked) })
			}
			return nil
		})
	}
	_ = g.Wait()
	return total
}

func (r *CardReport) delivered(d credential.Delivery, claimed credential.Credential, marked bool) {
	switch d.State {
	case credential.NoticeSent:
		r.Sent++
		if claimed.Notice.Repeated {
			r.Repeated++
		}
	case credential.NoticeFailed:
		r.Refused++
	default:
		r.Postponed++
	}
	if !marked { // the PIN was changed meanwhile
		r.Overtaken++
	}
}

// take decides what becomes of a notice that is due. It returns the claim if a mail is to
// be sent, and false if somebody else was faster.
func (r *cardRun) take(ctx context.Context, now time.Time, d credential.Due, count func(func(*CardReport))) (*claim, bool, error) {
	c, t := d.Credential.Current(now), d.Tenant
	k := claim{counter: r.counter(ctx, counterID{t, c.Template, c.Notice.Kind, c.Notice.Days})}
	if k.counter.err != nil {
		return nil, false, k.counter.err
	}
	core := k.counter.office.core
	skip := func(reason string) (*claim, bool, error) {
		done, err := r.Credentials.SkipNotice(ctx, core, actor, d.Credential, k.counter.template, reason)
		if done {
			count(func(t *CardReport) { t.Skipped++ })
		}
		return nil, done, err
	}
	if k.counter.skip != "" {
		return skip(k.counter.skip)
	}
	if c.Notice.Kind != credential.NoticeReminder && now.After(c.PINExpiresAt.Add(tooLate)) {
		return skip(credential.ReasonLate)
	}
	var err error
	if c.Holder != "" {
		if k.holder, err = r.Users.Get(ctx, t, c.Holder); err != nil && !errors.Is(err, problem.ErrNotFound) {
			return nil, false, err
		}
	}
	if k.to = k.holder.Profile.Mail; c.Notice.Kind == credential.NoticeOperators {
		k.to = k.counter.template.OperatorMail
	}
	switch {
	case k.to == "" && k.holder.ID == "":
		return skip(credential.ReasonNoHolder)
	case k.to == "":
		return skip(credential.ReasonNoAddress)
	case c.Notice.Kind != credential.NoticeOperators && k.holder.Unreachable() != "":
		return skip(k.holder.Unreachable())
	case k.counter.office.quiet && c.Notice.Kind == credential.NoticeReminder && !k.counter.office.quietUntil.Before(c.PINExpiresAt):
		return skip(credential.ReasonQuietHours) // the mail that it has expired comes after
	case k.counter.office.quiet:
		done, err := r.Credentials.HoldNotice(ctx, core, actor, d.Credential, k.counter.office.quietUntil)
		if done {
			count(func(t *CardReport) { t.Held++ })
		}
		return nil, done, err
	case k.counter.why != "":
		done, err := r.Credentials.PostponeNotice(ctx, core, actor, d.Credential, now.Add(wait), k.counter.why)
		if done {
			count(func(t *CardReport) { t.Postponed++ })
		}
		return nil, done, err
	case k.counter.system.down.Load() && (!c.Expired(now) || d.Credential.ExpiryRecorded): // it stays due
		count(func(t *CardReport) { t.Waiting++ })
		return nil, true, nil
	}
	var done bool
	if k.credential, done, err = r.Credentials.ClaimNotice(ctx, core, actor, d.Credential, lease); err != nil || !done {
		return nil, done, err
	}
	return &k, true, nil
}

// send mails the claimed notices by one mail system and says for each what came of it.
func (r *cardRun) send(ctx context.Context, p *system, claims []claim) []credential.Delivery {
	deliveries := make([]credential.Delivery, len(claims))
	postpone := func(k claim, reason string, unknown bool) credential.Delivery {
		return credential.Delivery{State: credential.NoticePlanned, At: r.again(k.credential.Notice.Attempts), Reason: reason, Unknown: unknown}
	}
	var messages []mail.Message
	var of []int // whose message it is
	for i, k := range claims {
		m, err := mail.Render(k.counter.text, r.values(k))
		if err != nil {
			r.Log.ErrorContext(ctx, "sweep cannot render a mail", "tenant", k.counter.office.core.Tenant.ID, "template", k.counter.text.ID, "cause", err)
			deliveries[i] = postpone(k, "template", false)
			continue
		}
		m.ID, m.To, m.Bulk = k.credential.MessageID(), k.to, true
		if k.to == k.holder.Profile.Mail {
			m.Tenant, m.User = k.counter.office.core.Tenant.ID, k.holder.ID
		}
		messages, of = append(messages, m), append(of, i)
	}
	for j, result := range post(ctx, p.sender, &p.down, messages) {
		i := of[j]
		switch result.Outcome {
		case mail.Accepted:
			deliveries[i] = credential.Delivery{State: credential.NoticeSent}
		case mail.Refused:
			deliveries[i] = credential.Delivery{State: credential.NoticeFailed, Reason: result.Code}
			if m := messages[j]; result.NoMailbox && m.User != "" {
				_, err := r.Users.MailFailed(ctx, claims[i].counter.office.core, actor, m.User, m.To, r.Now(), user.MailProblem{Kind: user.MailboxRefused, At: r.Now(), Code: result.Code})
				if err != nil { // the next mail finds it out again
					r.Log.WarnContext(ctx, "sweep cannot mark an address", "tenant", m.Tenant, "user", m.User, "cause", err)
				}
			}
		default:
			deliveries[i] = postpone(claims[i], result.Code, result.Outcome == mail.Unknown)
		}
	}
	return deliveries
}

func (r *cardRun) values(k claim) mail.Values {
	c, settings := k.credential, k.counter.office.core.Tenant.Settings
	expires := mail.FormatTime(c.PINExpiresAt, settings.Location(), settings.Language)
	if c.Notice.Kind == credential.NoticeReminder {
		days := int((c.PINExpiresAt.Sub(r.Now()) + 24*time.Hour - 1) / (24 * time.Hour))
		return mail.CardPINExpiryValues{PINExpiration: expires, Days: days, Username: k.holder.Profile.Username, CustomerName: settings.DisplayName, Card: c.Name()}
	}
	name := k.holder.Profile.Username
	if name == "" {
		name = "–"
	}
	return mail.CardPINExpiredValues{PINExpiration: expires, Username: name, CustomerName: settings.DisplayName, Card: c.Name()}
}

// counter loads what the notices of a kind need, once a run.
func (r *cardRun) counter(ctx context.Context, id counterID) *counter {
	k := entry(&r.mu, r.counters, id)
	k.load.Do(func() { k.err = r.open(ctx, k, id) })
	return k
}

func (r *cardRun) open(ctx context.Context, k *counter, id counterID) (err error) {
	if k.office = r.office(ctx, id.tenant); k.office.err != nil {
		return k.office.err
	}
	if k.template, err = r.Credentials.Template(ctx, id.tenant, id.template); err != nil {
		return err
	}
	messaging, text, ok := k.template.Mail(id.kind, id.days)
	switch {
	case !ok:
		k.skip = credential.ReasonReminderGone
		return nil
	case messaging == "":
		k.skip = credential.ReasonNoMessaging
		return nil
	}
	core := k.office.core
	if core.Tenant.Suspended {
		k.why = "suspended"
		return nil
	}
	store := mail.Store{Table: r.Table, Tenant: id.tenant, Keys: core.Keys}
	if k.text, err = store.Template(ctx, text, core.Tenant.Settings.Language); err != nil {
		k.why = "template"
		r.Log.ErrorContext(ctx, "sweep cannot read a mail template", "tenant", id.tenant, "template", text, "cause", err)
		return nil
	}
	if k.system = r.system(ctx, store, messaging); k.system.sender == nil {
		k.why = k.system.why
	}
	return nil
}

func (r *cardRun) system(ctx context.Context, store mail.Store, messaging string) *system {
	p := entry(&r.mu, r.systems, systemID{store.Tenant, messaging})
	p.load.Do(func() {
		conf, err := store.WithPassword(ctx, messaging)
		if err == nil {
			p.sender, err = r.Senders.For(conf)
		}
		if err != nil {
			p.sender, p.why = nil, "messaging"
			r.Log.ErrorContext(ctx, "sweep cannot send for a credential template", "tenant", store.Tenant, "messaging", messaging, "cause", err)
		}
	})
	return p
}
