package user

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Reasons of a reminder that was not sent.
const (
	ReasonExpiredFirst = "expiredFirst" // the PIN expired before it was sent
	ReasonLate         = "late"         // the next one was due before it could be sent
	ReasonNoAddress    = "noAddress"    // the user has no mail address
	ReasonQuietHours   = "quietHours"   // the quiet hours do not end before the PIN expires
)

func (n Notice) open() bool { return n.State == NoticePlanned || n.State == NoticeClaimed }

// dueAt is when the sweep has to see to the PIN next, and false if never.
func (p PIN) dueAt() (time.Time, bool) {
	switch {
	case p.verifier == "" || p.ExpiresAt.IsZero():
		return time.Time{}, false
	case p.Notice.open() && p.Notice.At.Before(p.ExpiresAt):
		return p.Notice.At, true
	}
	return p.ExpiresAt, true
}

// FiledAt is the time by which users are found whose PIN expires, or has expired since; false
// for a PIN that does not, or was deleted.
func (p PIN) FiledAt() (time.Time, bool) {
	at := p.ExpiresAt
	switch {
	case p.verifier != "":
	case p.Deleted != string(Expired):
		return time.Time{}, false
	case at.IsZero() || p.DeletedAt.Before(at): // before its time
		at = p.DeletedAt
	}
	return at, !at.IsZero()
}

// remind plans the reminders of a new PIN whose expiry is fixed. Those whose time is past
// are left out.
func (p *PIN) remind(core tenant.Core, now time.Time) {
	p.Reminders = nil
	for _, h := range core.Policy.NotifyHoursBefore {
		if !p.due(h).Before(now) {
			p.Reminders = append(p.Reminders, h)
		}
	}
	slices.SortFunc(p.Reminders, func(a, b int) int { return b - a })
	p.next(core, now)
	p.NotifyAt = p.Notice.At
}

// due is when a reminder is due, quiet hours or not.
func (p PIN) due(hours int) time.Time { return p.ExpiresAt.Add(-time.Duration(hours) * time.Hour) }

func (p PIN) dues() []time.Time {
	dues := make([]time.Time, len(p.Reminders))
	for i, h := range p.Reminders {
		dues[i] = p.due(h)
	}
	return dues
}

// next plans the reminder that comes next. If none does, the last one stays as it is.
func (p *PIN) next(core tenant.Core, now time.Time) {
	n, at, ok := core.Tenant.Settings.NextReminder(p.dues(), p.ExpiresAt, now)
	if !ok {
		p.Reminders = nil
		return
	}
	p.Notice = Notice{Hours: p.Reminders[n], State: NoticePlanned, At: at}
	p.Reminders = slices.Clone(p.Reminders[n+1:])
}

// current brings the PIN to the reminder that is to be sent now: of several that have come
// due, because none could be sent, only the last one is. It returns the hours of those that
// are left out.
func (p *PIN) current(core tenant.Core, now time.Time) (late []string) {
	n := core.Tenant.Settings.Passed(p.dues(), p.ExpiresAt, now)
	if n == 0 {
		return nil
	}
	for _, h := range append([]int{p.Notice.Hours}, p.Reminders[:n-1]...) {
		late = append(late, strconv.Itoa(h))
	}
	p.Notice = Notice{Hours: p.Reminders[n-1], State: NoticePlanned, At: p.due(p.Reminders[n-1])}
	p.Reminders = slices.Clone(p.Reminders[n:])
	return late
}

// take begins a change of a user whose reminder is due: it returns the user with that, what
// is to be written besides for those that are left out, and false if none is due.
func (us *Users) take(ctx context.Context, core tenant.Core, by audit.Actor, u User) (User, write, bool) {
	now := us.Now()
	var w write
	if n := u.PIN.Notice; u.PIN.State(now) != IsSet || !n.open() || now.Before(n.At) {
		return u, w, false
	}
	if late := u.PIN.current(core, now); late != nil {
		w.add(us.Audit.Op(ctx, core.Tenant.ID, audit.Record{Actor: by, Action: "pin.notice", Subject: Subject(u.ID), Outcome: audit.Failed, Reason: ReasonLate,
			Details: map[string]string{"state": string(NoticeSkipped), "hours": strings.Join(late, ", ")}}))
	}
	return u, w, true
}

// tell tells rules, once, that the reminder is due, whether anybody can be mailed or not.
func (us *Users) tell(ctx context.Context, core tenant.Core, u *User, w *write) {
	if u.PIN.Notice.Told {
		return
	}
	u.PIN.Notice.Told = true
	w.add(event.Ops(ctx, core, us.Now(), event.Event{Type: event.PINExpiring, User: u.ID,
		Attributes: map[string]string{"hoursLeft": strconv.Itoa(u.PIN.Notice.Hours)}}, fmt.Sprintf("%s/%d", u.ID, u.Version+1))...)
}

// ClaimNotice takes it on to send the reminder that is due: until the lease ends nobody else
// does. It returns the claimed user, and false if somebody else was first or none is due any
// more.
//
// A claim whose lease ended without a result may have sent the mail, so the notice counts
// as possibly repeated from then on.
func (us *Users) ClaimNotice(ctx context.Context, core tenant.Core, by audit.Actor, u User, lease time.Duration) (User, bool, error) {
	u, w, ok := us.take(ctx, core, by, u)
	if !ok {
		return User{}, false, nil
	}
	n := &u.PIN.Notice
	n.Repeated = n.Repeated || n.State == NoticeClaimed
	n.State, n.Reason = NoticeClaimed, ""
	n.At = us.Now().Add(lease).UTC().Truncate(time.Second)
	n.Attempts++
	us.tell(ctx, core, &u, &w)
	done, err := us.putDue(ctx, core.Tenant.ID, u, w)
	if err != nil || !done {
		return User{}, false, wrapped("claim notice", err)
	}
	u.Version++
	return u, true, nil
}

// PostponeNotice puts the reminder that is due off, which cannot be sent now for a reason
// that has nothing to do with the user. It is recorded when the reason is new. It returns
// false if the user was changed meanwhile.
func (us *Users) PostponeNotice(ctx context.Context, core tenant.Core, by audit.Actor, u User, at time.Time, reason string) (bool, error) {
	u, w, ok := us.take(ctx, core, by, u)
	if !ok {
		return false, nil
	}
	n := &u.PIN.Notice
	n.Repeated = n.Repeated || n.State == NoticeClaimed // that claim may have sent it
	news := n.Reason != reason
	n.State, n.At, n.Reason = NoticePlanned, at.UTC().Truncate(time.Second), reason
	us.tell(ctx, core, &u, &w)
	if news {
		return us.recordDue(ctx, core.Tenant.ID, u, w, Delivery{Reason: reason}.notice(by, map[string]string{"state": string(NoticePlanned), "hours": strconv.Itoa(n.Hours)}))
	}
	done, err := us.putDue(ctx, core.Tenant.ID, u, w)
	return done, wrapped("postpone notice", err)
}

// HoldNotice lets the reminder that is due wait until the quiet hours end, and if the PIN
// has expired by then leaves it out. It returns false if the user was changed meanwhile.
func (us *Users) HoldNotice(ctx context.Context, core tenant.Core, by audit.Actor, u User, until time.Time) (held, done bool, _ error) {
	if !until.Before(u.PIN.ExpiresAt) {
		done, err := us.SkipNotice(ctx, core, by, u, ReasonQuietHours)
		return false, done, err
	}
	u, w, ok := us.take(ctx, core, by, u)
	if !ok {
		return true, false, nil
	}
	n := &u.PIN.Notice
	n.Repeated = n.Repeated || n.State == NoticeClaimed
	n.State, n.At = NoticePlanned, until.UTC().Truncate(time.Second)
	done, err := us.putDue(ctx, core.Tenant.ID, u, w)
	return true, done, wrapped("hold notice", err)
}

// SkipNotice lets the reminder that is due go unsent, for good, and plans the next one. It
// returns false if the user was changed meanwhile.
func (us *Users) SkipNotice(ctx context.Context, core tenant.Core, by audit.Actor, u User, reason string) (bool, error) {
	u, w, ok := us.take(ctx, core, by, u)
	if !ok {
		return false, nil
	}
	us.tell(ctx, core, &u, &w)
	d := Delivery{State: NoticeSkipped, Reason: reason}
	w.add(us.giveUp(core.Tenant.ID, u, d.State, reason)...)
	record := d.notice(by, us.close(core, &u, d))
	return us.recordDue(ctx, core.Tenant.ID, u, w, record)
}

// MessageID names the mail of the reminder: however often it is sent, it is the same mail to
// those who receive it.
func (u User) MessageID() string {
	return fmt.Sprintf("pin-expiry.%s.%d.%d", u.ID, u.PIN.SetAt.Unix(), u.PIN.Notice.Hours)
}

// Delivery is what came of a claimed notice.
type Delivery struct {
	State  NoticeState // sent, failed or skipped for good; planned to try again
	At     time.Time   // when to try again
	Reason string      // coded
	// Unknown: the mail system may have accepted the mail, its answer was lost.
	Unknown bool
	// NoMailbox: the mail system says that there is no mailbox of this address.
	NoMailbox bool
}

// close notes what came of the reminder, and plans the one that comes after it. It returns
// the details of its audit record.
func (us *Users) close(core tenant.Core, u *User, d Delivery) map[string]string {
	n, now := &u.PIN.Notice, us.Now().UTC().Truncate(time.Second)
	n.State, n.Reason, n.At = d.State, d.Reason, d.At
	n.Repeated = n.Repeated || d.Unknown
	details := map[string]string{"state": string(d.State), "hours": strconv.Itoa(n.Hours), "messageId": u.MessageID()}
	if n.Attempts > 0 {
		details["attempt"] = strconv.Itoa(n.Attempts)
	}
	if n.Repeated {
		details["possiblyRepeated"] = "true"
	}
	if d.State == NoticePlanned {
		return details
	}
	n.At = now
	if d.State == NoticeSent {
		u.PIN.NotifiedAt = now
	}
	u.PIN.next(core, now)
	return details
}

// giveUp records, for those who administer, that a reminder reached nobody. That the address
// does not work they are told of the address.
func (us *Users) giveUp(t table.TenantID, u User, state NoticeState, reason string) []table.Op {
	if state != NoticeFailed && (state != NoticeSkipped || reason == ReasonUndeliverable) {
		return nil
	}
	return []table.Op{mail.GiveUp(t, fmt.Sprintf("user/%s/%d", u.ID, u.Version+1), mail.GivenUp{At: us.Now().UTC().Truncate(time.Second), Name: u.Profile.Username, Reason: reason})}
}

// PINExpiries returns when the PINs of users expire, or have expired, at from or later and
// before to, in that order, and whether there are more than were read.
func (us *Users) PINExpiries(ctx context.Context, t table.TenantID, from, to time.Time, limit int) (at []time.Time, more bool, _ error) {
	page, next, err := table.Merge(ctx, us.Table, table.UserPINsExpiring(t, from, to), limit, "")
	if err != nil {
		return nil, false, fmt.Errorf("list PINs by expiry: %w", err)
	}
	for _, item := range page.Items {
		u, err := decode(item)
		if err != nil {
			return nil, false, err
		}
		expiry, _ := u.PIN.FiledAt()
		at = append(at, expiry)
	}
	return at, next != "", nil
}

// PINsExpiring returns the users whose PIN expires, or has expired, at from or later and
// before to: up to limit of them, by that time, how many there are, and whether there are
// more than were counted.
func (us *Users) PINsExpiring(ctx context.Context, t table.TenantID, from, to time.Time, limit int) (some []User, total int, more bool, _ error) {
	page, next, err := table.Merge(ctx, us.Table, table.UserPINsExpiring(t, from, to), table.MaxLimit, "")
	if err != nil {
		return nil, 0, false, fmt.Errorf("list PINs by expiry: %w", err)
	}
	for _, item := range page.Items[:min(len(page.Items), limit)] {
		u, err := decode(item)
		if err != nil {
			return nil, 0, false, err
		}
		some = append(some, u)
	}
	return some, len(page.Items), next != "", nil
}

// MarkNotice records what came of a claimed notice, and plans the next one. If the PIN was
// renewed meanwhile there is nothing to mark, and it returns false.
func (us *Users) MarkNotice(ctx context.Context, core tenant.Core, by audit.Actor, claimed User, d Delivery) (bool, error) {
	u, mine := claimed, claimed.PIN.Notice
	for range tries {
		if n := u.PIN.Notice; n.State != NoticeClaimed || n.Hours != mine.Hours || !n.At.Equal(mine.At) || !u.PIN.SetAt.Equal(claimed.PIN.SetAt) {
			return false, nil
		}
		if u.Profile.Mail != claimed.Profile.Mail && (d.State == NoticeFailed || d.State == NoticeSkipped) {
			// It failed at an address that is not theirs any more.
			d.State, d.At = NoticePlanned, us.Now().UTC().Truncate(time.Second)
		}
		var w write
		w.add(us.giveUp(core.Tenant.ID, u, d.State, d.Reason)...)
		record := d.notice(by, us.close(core, &u, d))
		if d.NoMailbox && u.Profile.Mail == claimed.Profile.Mail {
			w.add(us.spoil(ctx, core, by, &u, MailProblem{MailboxRefused, us.Now(), d.Reason})...)
		}
		done, err := us.recordDue(ctx, core.Tenant.ID, u, w, record)
		if done || err != nil {
			return done, err
		}
		if u, err = us.Get(ctx, core.Tenant.ID, claimed.ID); errors.Is(err, problem.ErrNotFound) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return false, errBusy
}

// notice is the audit record of what came of a reminder.
func (d Delivery) notice(by audit.Actor, details map[string]string) audit.Record {
	r := audit.Record{Actor: by, Action: "pin.notice", Outcome: audit.Failed, Reason: d.Reason, Details: details}
	if d.State == NoticeSent {
		r.Outcome = audit.Done
	}
	return r
}

func wrapped(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
