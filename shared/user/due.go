package user

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Due is a user whose PIN wants attention: its expiry is to be announced, it has
// expired, or one that was generated is to be mailed.
type Due struct {
	Tenant table.TenantID
	User   User
	Err    error // the item cannot be read; nothing else is set
}

// PINsDueBefore returns up to limit users of a shard of the due index whose
// time has come, oldest first, beyond the given place ("" is the start), and
// the place to go on from, "" if there are no more. They are read from an
// index, which may lag; what is done about them is conditional.
func (us *Users) PINsDueBefore(ctx context.Context, shard int, now time.Time, beyond string, limit int) (due []Due, next string, err error) {
	r := table.DueBefore(shard, now)
	page, err := us.Table.Query(ctx, r.Beyond(beyond).Limit(limit))
	if err != nil {
		return nil, "", fmt.Errorf("read what is due: %w", err)
	}
	for _, item := range page.Items {
		t, u, err := decodeDue(item)
		if err != nil {
			due = append(due, Due{Err: err})
			continue
		}
		if at, ok := u.dueAt(); ok && !now.Before(at) {
			due = append(due, Due{Tenant: t, User: u})
		}
	}
	if page.More {
		next = r.Place(page.Items[len(page.Items)-1])
	}
	return due, next, nil
}

// Expired tells whether the PIN has expired, rather than being about to.
func (d Due) Expired(now time.Time) bool { return d.User.PIN.State(now) == Expired }

// ToMail tells whether a generated PIN is to be mailed now. If something else is due too, that
// comes first, and this when the user is read again.
func (d Due) ToMail(now time.Time) bool {
	at, ok := d.User.Pending.dueAt()
	other, both := d.User.PIN.dueAt()
	return ok && !now.Before(at) && !(both && !now.Before(other))
}

// ExpirePIN deletes a PIN that has expired. It returns false if it is not so
// any more: somebody renewed or deleted it meanwhile.
func (us *Users) ExpirePIN(ctx context.Context, core tenant.Core, by audit.Actor, u User) (bool, error) {
	if u.PIN.State(us.Now()) != Expired {
		return false, nil
	}
	var w write
	old := u
	var details map[string]string
	if n := &u.PIN.Notice; n.State == NoticePlanned || n.State == NoticeClaimed {
		*n = Notice{State: NoticeFailed, At: us.Now().UTC().Truncate(time.Second), Attempts: n.Attempts, Repeated: n.Repeated, Reason: ReasonExpiredFirst}
		details = map[string]string{"unannounced": "true"}
	}
	us.takeAway(core, &u, "expired")
	w.retag(core, old, u)
	w.add(us.pinExpired(ctx, core, u)...)
	return us.writeDue(ctx, core.Tenant.ID, by, u, "pin.expired", details, w)
}

// ReasonExpiredFirst is why a notice failed whose PIN expired before it was sent.
const ReasonExpiredFirst = "expiredFirst"

// Unannounced tells whether the PIN is about to be deleted, or was, without its
// expiry having been announced as planned.
func (d Due) Unannounced() bool {
	s := d.User.PIN.Notice.State
	return s == NoticePlanned || s == NoticeClaimed
}

// PostponeNotice puts a notice off that cannot be sent now for a reason that
// has nothing to do with the user. It is recorded when the reason is new. It
// returns false if the user was changed meanwhile.
func (us *Users) PostponeNotice(ctx context.Context, t table.TenantID, by audit.Actor, u User, at time.Time, reason string) (bool, error) {
	n := &u.PIN.Notice
	n.Repeated = n.Repeated || n.State == NoticeClaimed // that claim may have sent it
	news := n.Reason != reason
	n.State, n.At, n.Reason = NoticePlanned, at.UTC().Truncate(time.Second), reason
	if news {
		return us.writeDue(ctx, t, by, u, "pin.notice", map[string]string{"state": string(NoticePlanned)}, write{})
	}
	err := us.Table.Write(ctx, table.Put(userRecord{t, u}, table.IfVersion(u.Version)))
	if errors.Is(err, problem.ErrConflict) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("postpone notice: %w", err)
	}
	return true, nil
}

// ClaimNotice takes it on to announce a PIN's expiry: until the lease ends
// nobody else does. It returns the claimed user, and false if somebody else
// was first or it is not due any more.
//
// A claim whose lease ended without a result may have sent the mail, so the
// notice counts as possibly repeated from then on.
func (us *Users) ClaimNotice(ctx context.Context, t table.TenantID, u User, lease time.Duration) (User, bool, error) {
	now := us.Now()
	n := &u.PIN.Notice
	open := n.State == NoticePlanned || n.State == NoticeClaimed
	if u.PIN.State(now) != IsSet || !open || now.Before(n.At) {
		return User{}, false, nil
	}
	if n.State == NoticeClaimed {
		n.Repeated = true
	}
	n.State, n.Reason = NoticeClaimed, ""
	n.At = now.Add(lease).UTC().Truncate(time.Second)
	n.Attempts++
	err := us.Table.Write(ctx, table.Put(userRecord{t, u}, table.IfVersion(u.Version)))
	if errors.Is(err, problem.ErrConflict) {
		return User{}, false, nil
	} else if err != nil {
		return User{}, false, fmt.Errorf("claim notice: %w", err)
	}
	u.Version++
	return u, true, nil
}

// MessageID names the mail that announces this PIN's expiry: however often it
// is sent, it is the same mail to those who receive it.
func (u User) MessageID() string {
	return fmt.Sprintf("pin-expiry.%s.%d", u.ID, u.PIN.SetAt.Unix())
}

// Delivery is what came of a claimed notice.
type Delivery struct {
	State  NoticeState // sent, failed or skipped for good; planned to try again
	At     time.Time   // when to try again
	Reason string      // coded
	// Unknown: the mail system may have accepted the mail, its answer was lost.
	Unknown bool
}

// MarkNotice records what came of a claimed notice. If the PIN was renewed
// meanwhile there is nothing to mark, and it returns false.
func (us *Users) MarkNotice(ctx context.Context, t table.TenantID, by audit.Actor, claimed User, d Delivery) (bool, error) {
	u := claimed
	for range tries {
		n := &u.PIN.Notice
		if n.State != NoticeClaimed || !n.At.Equal(claimed.PIN.Notice.At) || !u.PIN.SetAt.Equal(claimed.PIN.SetAt) {
			return false, nil
		}
		if u.Profile.Mail != claimed.Profile.Mail && (d.State == NoticeFailed || d.State == NoticeSkipped) {
			// It failed at an address that is not theirs any more.
			d.State, d.At = NoticePlanned, us.Now().UTC().Truncate(time.Second)
		}
		n.State, n.Reason = d.State, d.Reason
		n.Repeated = n.Repeated || d.Unknown
		n.At = d.At
		if d.State != NoticePlanned {
			n.At = us.Now().UTC().Truncate(time.Second)
		}
		details := map[string]string{"state": string(d.State), "attempt": strconv.Itoa(n.Attempts), "messageId": u.MessageID()}
		if n.Repeated {
			details["possiblyRepeated"] = "true"
		}
		done, err := us.writeDue(ctx, t, by, u, "pin.notice", details, write{})
		if done || err != nil {
			return done, err
		}
		if u, err = us.Get(ctx, t, claimed.ID); errors.Is(err, problem.ErrNotFound) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return false, errBusy
}

// writeDue writes the user with an audit record, and returns false if somebody
// else changed the user meanwhile.
func (us *Users) writeDue(ctx context.Context, t table.TenantID, by audit.Actor, u User, action string, details map[string]string, w write) (bool, error) {
	u.UpdatedAt = us.Now().UTC().Truncate(time.Second)
	record := audit.Record{Actor: by, Action: action, Subject: Subject(u.ID), Outcome: audit.Done, Details: details}
	if n := u.PIN.Notice; action == "pin.notice" {
		record.Reason = n.Reason
		if n.State != NoticeSent {
			record.Outcome = audit.Failed
		}
	}
	w.add(table.Put(userRecord{t, u}, table.IfVersion(u.Version)), us.Audit.Op(ctx, t, record))
	again, err := w.do(ctx, us.Table)
	if err != nil && !again {
		return false, fmt.Errorf("%s: %w", action, err)
	}
	return !again, nil
}
