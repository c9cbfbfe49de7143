package due

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

const (
	digestsAt   = 50                 // digests a shard and sweep
	digestLines = 50                 // of each list; the rest is counted
	digestAhead = 7 * 24 * time.Hour // within which a PIN expires soon
)

// DigestReport counts what a sweep did about digests for administrators.
type DigestReport struct {
	Due       int  `json:"due"`       // read from the index
	Sent      int  `json:"sent"`      // to all who were to have them
	Nothing   int  `json:"nothing"`   // there was nothing to tell
	Refused   int  `json:"refused"`   // by the mail system, for all who were to have them
	Postponed int  `json:"postponed"` // to be tried again, or with the next one
	Overtaken int  `json:"overtaken"` // somebody else did it
	Errors    int  `json:"errors"`
	More      bool `json:"more"` // there are more due
}

// Digests tells administrators what has become of their tenants' PINs. Its invariant is that
// of the package; and what it costs is bounded, however many PINs a tenant has.
func (s *Sweep) Digests(ctx context.Context) DigestReport {
	r := &run{Sweep: s, tenants: make(map[table.TenantID]*office)}
	var total DigestReport
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(shardsAt)
	for shard := range table.DigestDueShards {
		g.Go(func() error {
			due, more, err := s.Tenants.DigestsDueBefore(ctx, shard, s.Now(), digestsAt)
			if err != nil {
				s.Log.ErrorContext(ctx, "sweep cannot read digests", "shard", shard, "cause", err)
			}
			mu.Lock()
			total.Due, total.More = total.Due+len(due), total.More || more
			if err != nil {
				total.Errors++
			}
			mu.Unlock()
			for _, d := range due {
				count, err := r.digest(ctx, d)
				if err != nil {
					s.Log.ErrorContext(ctx, "sweep cannot make a digest", "tenant", d.Tenant, "cause", err)
					count = func(t *DigestReport) { t.Errors++ }
				}
				mu.Lock()
				count(&total)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = g.Wait()
	return total
}

func overtaken(t *DigestReport) { t.Overtaken++ }
func postponed(t *DigestReport) { t.Postponed++ }

// digest makes and sends one digest, and returns how it is counted.
func (r *run) digest(ctx context.Context, d tenant.Digest) (func(*DigestReport), error) {
	if d.Err != nil {
		return nil, d.Err
	}
	o := r.office(ctx, d.Tenant)
	if o.err != nil {
		return nil, o.err
	}
	settings := o.core.Tenant.Settings
	if o.sender == nil {
		return counted(postponed)(r.Tenants.PostponeDigest(ctx, settings, d, r.Now().Add(wait)))
	}
	d, claimed, err := r.Tenants.ClaimDigest(ctx, d, lease)
	if err != nil || !claimed {
		return overtaken, err
	}
	m, news, err := r.makeDigest(ctx, o.core, d)
	if err != nil {
		r.Log.ErrorContext(ctx, "digest cannot be made", "tenant", d.Tenant, "cause", err)
		return counted(postponed)(r.Tenants.PostponeDigest(ctx, settings, d, r.again(d.Attempts)))
	}
	if !news {
		return counted(func(t *DigestReport) { t.Nothing++ })(r.Tenants.MarkDigest(ctx, actor, settings, d, tenant.DigestNothing))
	}
	var messages []mail.Message
	for i, to := range settings.Digest.Recipients {
		if slices.Contains(d.Reached, to) {
			continue
		}
		m.ID, m.To = fmt.Sprintf("digest.%s.%d.%d", d.Tenant, d.For.Unix(), i), to
		messages = append(messages, m)
	}
	sending, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	sent, again := d.Sent, false
	for i, result := range post(sending, o.sender, &o.down, messages) {
		switch result.Outcome {
		case mail.Accepted:
			sent, d.Sent = true, true
			d.Reached = append(d.Reached, messages[i].To)
		case mail.Refused:
			r.Log.WarnContext(ctx, "a recipient of digests is refused", "tenant", d.Tenant, "code", result.Code)
			d.Reached = append(d.Reached, messages[i].To)
		default:
			again = true
			d.Repeated = d.Repeated || result.Outcome == mail.Unknown
		}
	}
	switch {
	case again:
		return counted(postponed)(r.Tenants.PostponeDigest(ctx, settings, d, r.again(d.Attempts)))
	case !sent:
		return counted(func(t *DigestReport) { t.Refused++ })(r.Tenants.MarkDigest(ctx, actor, settings, d, tenant.DigestRefused))
	}
	return counted(func(t *DigestReport) { t.Sent++ })(r.Tenants.MarkDigest(ctx, actor, settings, d, tenant.DigestSent))
}

// counted returns how a write is counted that somebody else may have been faster with.
func counted(as func(*DigestReport)) func(done bool, err error) (func(*DigestReport), error) {
	return func(done bool, err error) (func(*DigestReport), error) {
		if !done {
			return overtaken, err
		}
		return as, err
	}
}

// makeDigest returns the mail, and whether there is anything to tell.
func (r *run) makeDigest(ctx context.Context, core tenant.Core, d tenant.Digest) (m mail.Message, news bool, _ error) {
	values, news, err := r.collect(ctx, core, d)
	if err != nil || !news {
		return m, false, err
	}
	text, err := mail.Store{Table: r.Table, Tenant: d.Tenant, Keys: core.Keys}.Template(ctx, mail.DigestID, core.Tenant.Settings.Language)
	if err != nil {
		return m, false, err
	}
	m, err = mail.Render(text, values)
	return m, err == nil, err
}

// collect reads what a digest tells, and whether there is anything in it that the one before
// did not tell: that addresses still do not work is no news.
func (r *run) collect(ctx context.Context, core tenant.Core, d tenant.Digest) (v mail.DigestValues, news bool, err error) {
	t, settings := core.Tenant.ID, core.Tenant.Settings
	when := func(at time.Time) string { return mail.FormatTime(at, settings.Location(), settings.Language) }
	v = mail.DigestValues{CustomerName: settings.DisplayName, Since: when(d.Since), Language: settings.Language}
	if v.Expiring, err = r.expiries(ctx, core, d.Until, d.Until.Add(digestAhead), when); err != nil {
		return v, false, err
	}
	if v.Expired, err = r.expiries(ctx, core, d.Since, d.Until, when); err != nil {
		return v, false, err
	}
	given, total, more, err := mail.ListGivenUp(ctx, r.Table, t, d.Since, d.Until, digestLines)
	if err != nil {
		return v, false, err
	}
	v.GivenUp = mail.DigestList{Total: total, AtLeast: more}
	for _, g := range given {
		name := g.Name
		if g.Card {
			name = mail.OfCard(name, settings.Language)
		}
		v.GivenUp.Lines = append(v.GivenUp.Lines, name+", "+when(g.At)+": "+g.Reason)
	}
	spoilt, lately, more, err := r.Users.SpoiltSince(ctx, t, d.Since)
	if err != nil {
		return v, false, err
	}
	v.Undeliverable = mail.DigestList{Total: spoilt, AtLeast: more}
	if spoilt > 0 {
		users, _, err := r.Users.Undeliverable(ctx, t, "", digestLines)
		if err != nil {
			return v, false, err
		}
		for _, u := range users {
			v.Undeliverable.Lines = append(v.Undeliverable.Lines, fmt.Sprintf("%s, %s: %s", u.Profile.Username, when(u.MailProblem.At), u.MailProblem.Kind))
		}
	}
	return v, v.Expiring.Total+v.Expired.Total+total+lately > 0, nil
}

// expiries lists the PINs of users and of cards that expire, or have expired, from a time to
// another, by that time.
func (r *run) expiries(ctx context.Context, core tenant.Core, from, to time.Time, when func(time.Time) string) (list mail.DigestList, _ error) {
	type line struct {
		at   time.Time
		text string
	}
	var lines []line
	users, total, more, err := r.Users.PINsExpiring(ctx, core.Tenant.ID, from, to, digestLines)
	if err != nil {
		return list, err
	}
	list.Total, list.AtLeast = total, more
	for _, u := range users {
		at, _ := u.PIN.FiledAt()
		lines = append(lines, line{at, u.Profile.Username + ", " + when(at)})
	}
	cards, total, more, err := r.Credentials.PINsExpiring(ctx, core.Tenant.ID, from, to, digestLines)
	if err != nil {
		return list, err
	}
	list.Total, list.AtLeast = list.Total+total, list.AtLeast || more
	for _, c := range cards {
		lines = append(lines, line{c.PINExpiresAt, mail.OfCard(c.Name(), core.Tenant.Settings.Language) + ", " + when(c.PINExpiresAt)})
	}
	slices.SortStableFunc(lines, func(a, b line) int { return a.at.Compare(b.at) })
	for _, l := range lines[:min(len(lines), digestLines)] {
		list.Lines = append(list.Lines, l.text)
	}
	return list, nil
}
