package user

import (
	"context"
	"fmt"
	"time"

	"github.com/pinward/pinward/shared/audit"
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
	if n := &u.PIN.Notice; n.open() {
		n.State, n.At, n.Reason = NoticeFailed, us.Now().UTC().Truncate(time.Second), ReasonExpiredFirst
		details = map[string]string{"unannounced": "true"}
		w.add(us.giveUp(core.Tenant.ID, u, n.State, n.Reason)...)
	}
	us.takeAway(core, &u, "expired")
	w.retag(core, old, u)
	w.add(us.pinExpired(ctx, core, u)...)
	return us.recordDue(ctx, core.Tenant.ID, u, w, audit.Record{Actor: by, Action: "pin.expired", Outcome: audit.Done, Details: details})
}

// Unannounced tells whether the PIN is about to be deleted, or was, without its
// expiry having been announced as planned.
func (d Due) Unannounced() bool { return d.User.PIN.Notice.open() }

// putDue writes the user, and returns false if somebody else changed the user meanwhile.
func (us *Users) putDue(ctx context.Context, t table.TenantID, u User, w write) (bool, error) {
	w.add(table.Put(userRecord{t, u}, table.IfVersion(u.Version)))
	again, err := w.do(ctx, us.Table)
	if again {
		return false, nil
	}
	return err == nil, err
}

// recordDue is putDue with an audit record.
func (us *Users) recordDue(ctx context.Context, t table.TenantID, u User, w write, r audit.Record) (bool, error) {
	u.UpdatedAt = us.Now().UTC().Truncate(time.Second)
	r.Subject = Subject(u.ID)
	w.add(us.Audit.Op(ctx, t, r))
	done, err := us.putDue(ctx, t, u, w)
	if err != nil {
		return false, fmt.Errorf("%s: %w", r.Action, err)
	}
	return done, nil
}
