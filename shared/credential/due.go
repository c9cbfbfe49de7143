package credential

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Reasons of a notice that was not sent.
const (
	ReasonNoHolder     = "noHolder"     // nobody is known to hold the card
	ReasonNoAddress    = "noAddress"    // the holder has no mail address
	ReasonNoMessaging  = "noMessaging"  // the template sends no such mail
	ReasonReminderGone = "reminderGone" // the template has no such reminder any more
	ReasonLate         = "late"         // the next one was due before it could be sent
	ReasonQuietHours   = "quietHours"   // the quiet hours do not end before the PIN expires
)

// Due is a credential whose PIN wants attention: a reminder is to be sent, or the PIN has
// expired.
type Due struct {
	Tenant     table.TenantID
	Credential Credential
	Err        error // the item cannot be read; nothing else is set
}

// PINsDueBefore returns up to limit credentials of a shard of the due index whose time has
// come, oldest first, beyond the given place ("" is the start), and the place to go on
// from, "" if there are no more. They are read from an index, which may lag; what is done
// about them is conditional.
func (cs *Credentials) PINsDueBefore(ctx context.Context, shard int, now time.Time, beyond string, limit int) (due []Due, next string, err error) {
	r := table.CredentialsDueBefore(shard, now)
	page, err := cs.Table.Query(ctx, r.Beyond(beyond).Limit(limit))
	if err != nil {
		return nil, "", fmt.Errorf("read what cards are due: %w", err)
	}
	for _, item := range page.Items {
		t, c, err := decodeOf(item)
		if err != nil {
			due = append(due, Due{Err: err})
			continue
		}
		if at, ok := c.dueAt(); ok && !now.Before(at) {
			due = append(due, Due{Tenant: t, Credential: c})
		}
	}
	if page.More {
		next = r.Place(page.Items[len(page.Items)-1])
	}
	return due, next, nil
}

// current brings a credential that is due to the notice that is to be sent now: what was
// due before it and could not be sent is left out, for its day has passed. It returns the
// audit records of that, and of the expiry if it is recorded by this.
func (c *Credential) current(now time.Time) (records []audit.Record) {
	late := func() {
		records = append(records, audit.Record{Action: "credential.notice", Outcome: audit.Failed, Reason: ReasonLate,
			Details: c.noticeDetails(NoticeSkipped)})
	}
	for n := c.Notice; n.Kind == NoticeReminder && len(n.Left) > 0 && !now.Before(c.remindAt(n.Left[0])); n = c.Notice {
		if n.open() {
			late()
		}
		c.Notice = Notice{Kind: NoticeReminder, Days: n.Left[0], State: NoticePlanned, At: c.remindAt(n.Left[0]), Left: n.Left[1:]}
	}
	if !c.Expired(now) {
		return records
	}
	if c.Notice.Kind == NoticeReminder {
		if c.Notice.open() {
			late()
		}
		c.Notice = Notice{Kind: NoticeExpired, State: NoticePlanned, At: c.PINExpiresAt}
	}
	if !c.ExpiryRecorded {
		c.ExpiryRecorded = true
		records = append(records, audit.Record{Action: "credential.expired", Outcome: audit.Done,
			Details: map[string]string{"expiresAt": c.PINExpiresAt.Format(time.RFC3339), "template": c.Template}})
	}
	return records
}

func (c Credential) noticeDetails(s NoticeState) map[string]string {
	n := c.Notice
	details := map[string]string{"state": string(s), "kind": string(n.Kind), "messageId": c.MessageID()}
	if n.Kind == NoticeReminder {
		details["days"] = strconv.Itoa(n.Days)
	}
	if n.Attempts > 0 {
		details["attempt"] = strconv.Itoa(n.Attempts)
	}
	if n.Repeated {
		details["possiblyRepeated"] = "true"
	}
	return details
}

// Current returns the credential with the notice that is to be sent at a time; what else
// is due has been left out.
func (c Credential) Current(now time.Time) Credential {
	_ = c.current(now)
	return c
}

// isDue tells whether a notice can be taken on.
func (c Credential) isDue(now time.Time) bool {
	at, ok := c.dueAt()
	return ok && !now.Before(at)
}

// ClaimNotice takes on the notice that is due: until the lease ends nobody else does. It
// records also, once, that the PIN has expired. It returns the claimed credential, and
// false if somebody else was first or it is not due any more.
//
// A claim whose lease ended without a result may have sent the mail, so the notice counts
// as possibly repeated from then on.
func (cs *Credentials) ClaimNotice(ctx context.Context, core tenant.Core, by audit.Actor, was Credential, lease time.Duration) (Credential, bool, error) {
	now := cs.Now()
	if !was.isDue(now) {
		return Credential{}, false, nil
	}
	c := was
	records := c.current(now)
	n := &c.Notice
	n.Repeated = n.Repeated || n.State == NoticeClaimed
	n.State, n.Reason = NoticeClaimed, ""
	n.At = now.Add(lease).UTC().Truncate(time.Second)
	n.Attempts++
	ops := cs.expiry(ctx, core, was, &c, true)
	done, err := cs.writeDue(ctx, core, by, was, c, records, ops)
	c.Version++
	return c, done, err
}

// PostponeNotice puts the notice that is due off, which cannot be sent now for a reason
// that has nothing to do with the card. It is recorded when the reason is new, and so is,
// once, that the PIN has expired. It returns false if the credential was changed meanwhile.
func (cs *Credentials) PostponeNotice(ctx context.Context, core tenant.Core, by audit.Actor, was Credential, at time.Time, reason string) (bool, error) {
	if !was.isDue(cs.Now()) {
		return false, nil
	}
	c := was
	records := c.current(cs.Now())
	n := &c.Notice
	n.Repeated = n.Repeated || n.State == NoticeClaimed // that claim may have sent it
	news := n.Reason != reason
	n.State, n.At, n.Reason = NoticePlanned, at.UTC().Truncate(time.Second), reason
	if news {
		records = append(records, audit.Record{Action: "credential.notice", Outcome: audit.Failed, Reason: reason, Details: c.noticeDetails(NoticePlanned)})
	}
	ops := cs.expiry(ctx, core, was, &c, true)
	return cs.writeDue(ctx, core, by, was, c, records, ops)
}

// HoldNotice lets the notice that is due wait until the quiet hours end. It records, once,
// that the PIN has expired. It returns false if the credential was changed meanwhile.
func (cs *Credentials) HoldNotice(ctx context.Context, core tenant.Core, by audit.Actor, was Credential, until time.Time) (bool, error) {
	if !was.isDue(cs.Now()) {
		return false, nil
	}
	c := was
	records := c.current(cs.Now())
	n := &c.Notice
	n.Repeated = n.Repeated || n.State == NoticeClaimed
	n.State, n.At = NoticePlanned, until.UTC().Truncate(time.Second)
	ops := cs.expiry(ctx, core, was, &c, false)
	return cs.writeDue(ctx, core, by, was, c, records, ops)
}

// SkipNotice lets the notice that is due go unsent, for good. It returns false if the
// credential was changed meanwhile.
func (cs *Credentials) SkipNotice(ctx context.Context, core tenant.Core, by audit.Actor, was Credential, tmpl Template, reason string) (bool, error) {
	if !was.isDue(cs.Now()) {
		return false, nil
	}
	c := was
	records := c.current(cs.Now())
	ops := append(cs.giveUp(core.Tenant.ID, c, NoticeSkipped, reason), cs.expiry(ctx, core, was, &c, true)...) // of the notice there is, before the next one is planned
	record := c.close(Delivery{State: NoticeSkipped, Reason: reason}, tmpl, cs.Now())
	return cs.writeDue(ctx, core, by, was, c, append(records, record), ops)
}

// Delivery is what came of a claimed notice.
type Delivery struct {
	State  NoticeState // sent, failed or skipped for good; planned to try again
	At     time.Time   // when to try again
	Reason string      // coded
	// Unknown: the mail system may have accepted the mail, its answer was lost.
	Unknown bool
}

// close notes what came of the notice there is, and plans the one that comes after it. It
// returns the record of it.
func (c *Credential) close(d Delivery, tmpl Template, now time.Time) audit.Record {
	n := &c.Notice
	n.Repeated = n.Repeated || d.Unknown
	n.State, n.Reason, n.At = d.State, d.Reason, d.At
	record := audit.Record{Action: "credential.notice", Outcome: audit.Failed, Reason: d.Reason, Details: c.noticeDetails(d.State)}
	if d.State == NoticeSent {
		record.Outcome = audit.Done
	}
	if d.State == NoticePlanned {
		return record
	}
	n.At = now.UTC().Truncate(time.Second)
	switch {
	case n.Kind == NoticeReminder:
		c.Notice = c.remind(now)
	case n.Kind == NoticeExpired && tmpl.OperatorMail != "":
		c.Notice = Notice{Kind: NoticeOperators, State: NoticePlanned, At: n.At}
	}
	return record
}

// giveUp records, for those who administer, that a notice reached nobody who was to have it.
func (cs *Credentials) giveUp(t table.TenantID, c Credential, state NoticeState, reason string) []table.Op {
	if state != NoticeFailed && (state != NoticeSkipped || reason != ReasonNoAddress && reason != ReasonQuietHours) {
		return nil
	}
	return []table.Op{mail.GiveUp(t, fmt.Sprintf("credential/%s/%d", c.ID, c.Version+1), mail.GivenUp{At: cs.Now().UTC().Truncate(time.Second), Name: c.Name(), Card: true, Reason: reason})}
}

// PINExpiries returns when the PINs of cards expire, or have expired, at from or later and
// before to, in that order, and whether there are more than were read. Cards retired are left
// out. Pointers tell it: no card is read.
func (cs *Credentials) PINExpiries(ctx context.Context, t table.TenantID, from, to time.Time, limit int) (at []time.Time, more bool, _ error) {
	page, next, err := table.Merge(ctx, cs.Table, table.CredentialsExpiring(t, from, to), limit, "")
	if err != nil {
		return nil, false, fmt.Errorf("list cards by their PINs' expiry: %w", err)
	}
	for _, item := range page.Items {
		if expiry, ok := table.CredentialExpiry(item.Key); ok {
			at = append(at, expiry)
		}
	}
	return at, next != "", nil
}

// PINsExpiring returns the credentials whose PIN expires, or has expired, at from or later
// and before to: up to limit of them, by that time, how many there are, and whether there are
// more than were counted. Those retired are left out.
func (cs *Credentials) PINsExpiring(ctx context.Context, t table.TenantID, from, to time.Time, limit int) (some []Credential, total int, more bool, _ error) {
	page, next, err := table.Merge(ctx, cs.Table, table.CredentialsExpiring(t, from, to), table.MaxLimit, "")
	if err != nil {
		return nil, 0, false, fmt.Errorf("list cards by their PINs' expiry: %w", err)
	}
	found := make([]Credential, min(len(page.Items), limit))
	var g errgroup.Group
	g.SetLimit(8)
	for i := range found {
		g.Go(func() (err error) {
			var p storedPointer
			if err := page.Items[i].Decode(&p); err != nil {
				return err
			}
			if found[i], err = cs.Get(ctx, t, p.ID); errors.Is(err, problem.ErrNotFound) {
				return nil // deleted since
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, 0, false, err
	}
	for _, c := range found {
		if c.ID != "" {
			some = append(some, c)
		}
	}
	return some, len(page.Items), next != "", nil
}

// MarkNotice records what came of a claimed notice, and plans the next one. If the PIN was
// changed meanwhile there is nothing to mark, and it returns false.
func (cs *Credentials) MarkNotice(ctx context.Context, core tenant.Core, by audit.Actor, claimed Credential, tmpl Template, d Delivery) (bool, error) {
	was := claimed
	for range tries {
		n, mine := was.Notice, claimed.Notice
		if n.State != NoticeClaimed || n.Kind != mine.Kind || n.Days != mine.Days || !n.At.Equal(mine.At) || !was.PINExpiresAt.Equal(claimed.PINExpiresAt) {
			return false, nil
		}
		c := was
		if was.Holder != claimed.Holder && n.Kind != NoticeOperators && (d.State == NoticeFailed || d.State == NoticeSkipped) {
			// It failed for somebody who does not hold the card any more.
			d.State, d.At = NoticePlanned, cs.Now().UTC().Truncate(time.Second)
		}
		given := cs.giveUp(core.Tenant.ID, c, d.State, d.Reason)
		record := c.close(d, tmpl, cs.Now())
		done, err := cs.writeDue(ctx, core, by, was, c, []audit.Record{record}, given)
		if done || err != nil {
			return done, err
		}
		if was, err = cs.Get(ctx, core.Tenant.ID, claimed.ID); errors.Is(err, problem.ErrNotFound) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return false, errBusy
}

// writeDue writes the credential with its audit records and what it tells rules, and returns
// false if somebody else changed it meanwhile.
func (cs *Credentials) writeDue(ctx context.Context, core tenant.Core, by audit.Actor, was, is Credential, records []audit.Record, ops []table.Op) (bool, error) {
	is.UpdatedAt = cs.Now().UTC().Truncate(time.Second)
	ops = slices.Concat(Put(core.Tenant.ID, was, is), ops)
	for _, r := range records {
		r.Actor, r.Subject = by, Subject(is.ID)
		ops = append(ops, cs.Audit.Op(ctx, core.Tenant.ID, r))
	}
	again, err := cs.write(ctx, ops)
	if err != nil && !again {
		return false, fmt.Errorf("write credential that is due: %w", err)
	}
	return !again, nil
}
