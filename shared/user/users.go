package user

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Users are the operations on users. All fields must be set; Rand must be safe
// for concurrent use.
type Users struct {
	Table table.Table
	Audit audit.Log
	Now   func() time.Time
	Rand  io.Reader
}

// tries bounds how often an operation begins anew because somebody else
// changed the same items meanwhile. Those who create users at the same time
// meet at the shards of the count, where one at a time is let through.
const (
	tries       = 8
	createTries = 50
)

// write is a Write in the making. What a failed condition means is said where
// the op is added: the user's fault, or that somebody else was faster.
type write struct {
	ops     []table.Op
	refused map[int]error
	with    []table.Op // the caller's, whose failed condition is the caller's affair
	users   *int       // how many the tenant has, once they are counted
}

// add appends ops whose failed condition means that somebody else was faster.
func (w *write) add(ops ...table.Op) { w.ops = append(w.ops, ops...) }

// claim appends an op whose failed condition means err.
func (w *write) claim(op table.Op, err error) {
	if w.refused == nil {
		w.refused = make(map[int]error)
	}
	w.refused[len(w.ops)] = err
	w.add(op)
}

// do writes. If somebody else was faster the operation may begin anew.
func (w *write) do(ctx context.Context, t table.Table) (again bool, _ error) {
	err := t.Write(ctx, slices.Concat(w.ops, w.with)...)
	i, failed := table.FailedOp(err)
	if failed && i >= len(w.ops) {
		return false, err
	}
	if failed && w.refused[i] != nil {
		return false, w.refused[i]
	}
	return failed, err
}

// Create makes a user, with a PIN if one is given. If the policy refuses the
// PIN nothing is made. A taken username or external id is an InvalidError. with are
// further ops of the same Write; if a condition of theirs does not hold that is the error.
func (us *Users) Create(ctx context.Context, core tenant.Core, by audit.Actor, p Profile, pin *secret.Text, with ...table.Op) (User, error) {
	now := us.Now()
	id, err := us.newID(now)
	if err != nil {
		return User{}, err
	}
	for range createTries {
		u := User{ID: id, Profile: p, CreatedAt: now.UTC().Truncate(time.Second)}
		var w write
		if err := us.change(ctx, core, by, User{}, &u, pin, "user.created", &w); err != nil {
			return User{}, err
		}
		count, err := us.countOp(ctx, core.Tenant.ID, u.ID, 1)
		if err != nil {
			return User{}, err
		}
		w.add(count)
		w.add(event.Ops(ctx, core, now, event.Event{Type: event.UserCreated, User: u.ID}, u.ID)...)
		w.with = with
		if again, err := w.do(ctx, us.Table); again {
			continue
		} else if err != nil {
			return User{}, fmt.Errorf("create user: %w", err)
		}
		u.Version = 1
		return u, nil
	}
	return User{}, fmt.Errorf("create user: %w: many are created at once", problem.ErrUnavailable)
}

func (us *Users) newID(now time.Time) (string, error) {
	id, err := ulid.New(ulid.Timestamp(now), us.Rand)
	if err != nil {
		return "", fmt.Errorf("make a user id: %w", err)
	}
	return id.String(), nil
}

// Update changes a user's profile by the given function, and the PIN if one is
// given, both or neither. If version is not 0, the user must have it.
func (us *Users) Update(ctx context.Context, core tenant.Core, by audit.Actor, id string, version int64, edit func(*Profile), pin *secret.Text) (u User, err error) {
	if pin == nil {
		return us.update(ctx, core, by, id, version, edit, nil)
	}
	err = us.choose(ctx, core, by, id, func() error {
		u, err = us.update(ctx, core, by, id, version, edit, pin)
		return err
	})
	return u, err
}

func (us *Users) update(ctx context.Context, core tenant.Core, by audit.Actor, id string, version int64, edit func(*Profile), pin *secret.Text) (User, error) {
	for range tries {
		old, err := us.Get(ctx, core.Tenant.ID, id)
		if err != nil {
			return User{}, err
		}
		if version != 0 && old.Version != version {
			return User{}, fmt.Errorf("%w: the user has changed since version %d; it has version %d now", problem.ErrConflict, version, old.Version)
		}
		u := old
		u.Profile.Groups = slices.Clone(old.Profile.Groups)
		edit(&u.Profile)
		if pin == nil && reflect.DeepEqual(u.Profile, old.Profile) {
			return old, nil
		}
		var w write
		if err := us.change(ctx, core, by, old, &u, pin, "user.updated", &w); err != nil {
			return User{}, err
		}
		if again, err := w.do(ctx, us.Table); again {
			continue
		} else if err != nil {
			return User{}, fmt.Errorf("update user: %w", err)
		}
		u.Version = old.Version + 1
		return u, nil
	}
	return User{}, errBusy
}

var (
	errBusy       = fmt.Errorf("%w: others change the user at the same time", problem.ErrConflict)
	errUsername   = problem.Invalid("taken", "username", "is another user's")
	errExternalID = problem.Invalid("taken", "externalId", "is another user's")
	// ErrPINTaken: where PINs identify, somebody has this one. It must not tell who.
	ErrPINTaken = problem.Invalid("unavailable", "pin", "cannot be used here; choose another one")
)

// change adds to w what turns old into u, with the new PIN if there is one, and the record
// of that. Everything that is wrong with profile and PIN is reported at once.
func (us *Users) change(ctx context.Context, core tenant.Core, by audit.Actor, old User, u *User, pin *secret.Text, action string, w *write) error {
	if err := us.put(ctx, core, by, old, u, pin, w); err != nil {
		return err
	}
	record := audit.Record{Actor: by, Action: action, Subject: Subject(u.ID), Outcome: audit.Done}
	if pin != nil {
		record.Details = pinDetails(core)
	}
	w.add(us.Audit.Op(ctx, core.Tenant.ID, record))
	return nil
}

// put is change without the record.
func (us *Users) put(ctx context.Context, core tenant.Core, by audit.Actor, old User, u *User, pin *secret.Text, w *write) error {
	t := core.Tenant.ID
	var vs problem.Violations
	if err := vs.Merge(u.Profile.Validate()); err != nil {
		return err
	}
	if pin != nil {
		a, err := us.accept(ctx, core, by, *u, *pin, w, vs, old.Profile)
		switch {
		case err == nil:
			us.replace(ctx, core, by, u, a, us.end(core, 0), w)
		case !errors.Is(err, errNothing):
			return err
		}
		w.add(us.pinSet(ctx, core, *u, "chosen")...)
	} else if err := vs.Err(); err != nil {
		return err
	}
	now := us.Now().UTC().Truncate(time.Second)
	u.UpdatedAt = now
	if old.Version != 0 && old.Profile.Mail != u.Profile.Mail {
		w.add(u.fresh(t, now)...)
	}
	if u.Pending.Waits() && old.Profile.Mail != u.Profile.Mail {
		// It may have gone to the old address, which may be somebody else's.
		us.drop(ctx, core, by, u, "mailChanged", w)
	}
	w.retag(core, old, *u)
	w.add(table.Put(userRecord{t, *u}, table.After(old.Version)))
	if was, is := Fold(old.Profile.Username), Fold(u.Profile.Username); was != is || old.Version == 0 {
		w.claim(table.Put(holder{table.UsernameKey(t, is), u.ID}, table.Absent()), errUsername)
		if old.Version != 0 {
			w.add(table.Delete(table.UsernameKey(t, was), table.Whatever()))
		}
	}
	if was, is := foldMail(old.Profile.Mail), foldMail(u.Profile.Mail); was != is {
		if is != "" {
			w.add(table.Put(holder{table.MailKey(t, is, u.ID), u.ID}, table.Absent()))
		}
		if was != "" {
			w.add(table.Delete(table.MailKey(t, was, u.ID), table.Whatever()))
		}
	}
	if was, is := old.Profile.ExternalID, u.Profile.ExternalID; was != is {
		if is != "" {
			w.claim(table.Put(holder{table.ExternalKey(t, is), u.ID}, table.Absent()), errExternalID)
		}
		if was != "" {
			w.add(table.Delete(table.ExternalKey(t, was), table.Whatever()))
		}
	}
	return nil
}

// Get returns a user by id.
func (us *Users) Get(ctx context.Context, t table.TenantID, id string) (User, error) {
	if _, err := ulid.ParseStrict(id); err != nil {
		return User{}, fmt.Errorf("user %w", problem.ErrNotFound)
	}
	item, err := us.Table.Get(ctx, table.UserKey(t, id))
	if err != nil {
		return User{}, fmt.Errorf("user %w", err)
	}
	return decode(item)
}

// ByUsername returns a user by name, whatever its case.
func (us *Users) ByUsername(ctx context.Context, t table.TenantID, username string) (User, error) {
	return us.held(ctx, t, table.UsernameKey(t, Fold(username)))
}

// ByExternalID returns a user by the id in the tenant's own system.
func (us *Users) ByExternalID(ctx context.Context, t table.TenantID, id string) (User, error) {
	return us.held(ctx, t, table.ExternalKey(t, id))
}

// ByMail returns the one user who has a mail address, whatever its case. If several have
// it, it names none of them: that is problem.ErrState.
func (us *Users) ByMail(ctx context.Context, t table.TenantID, address string) (User, error) {
	r := table.UsersByMail(t, foldMail(address))
	if r.Spec().Validate() != nil { // longer than any address
		return User{}, fmt.Errorf("user %w", problem.ErrNotFound)
	}
	page, err := us.Table.Query(ctx, r.Limit(2))
	switch {
	case err != nil:
		return User{}, fmt.Errorf("user by mail: %w", err)
	case len(page.Items) == 0:
		return User{}, fmt.Errorf("user %w", problem.ErrNotFound)
	case len(page.Items) > 1:
		return User{}, fmt.Errorf("%w: several users have this mail address", problem.ErrState)
	}
	return us.Get(ctx, t, page.Items[0].Key.Sort())
}

// foldMail is the form in which addresses are compared.
func foldMail(address string) string { return Fold(address) }

func (us *Users) held(ctx context.Context, t table.TenantID, key table.Key) (User, error) {
	if key.Validate() != nil { // longer than any name
		return User{}, fmt.Errorf("user %w", problem.ErrNotFound)
	}
	item, err := us.Table.Get(ctx, key)
	if err != nil {
		return User{}, fmt.Errorf("user %w", err)
	}
	var h storedHolder
	if err := item.Decode(&h); err != nil {
		return User{}, err
	}
	return us.Get(ctx, t, h.User)
}

// List returns up to limit users by name, beyond the place given ("" is the
// start), whose names start with the prefix, and the place to go on from, ""
// if there are no more.
func (us *Users) List(ctx context.Context, t table.TenantID, prefix, beyond string, limit int) (users []User, next string, err error) {
	page, next, err := table.Merge(ctx, us.Table, table.Users(t, Fold(prefix)), limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list users: %w", err)
	}
	users = make([]User, len(page.Items))
	for i, item := range page.Items {
		if users[i], err = decode(item); err != nil {
			return nil, "", err
		}
	}
	return users, next, nil
}

// Delete removes a user with what is held for them, but for the audit. A token
// of theirs ends by itself; it reaches nothing of theirs any more.
func (us *Users) Delete(ctx context.Context, core tenant.Core, by audit.Actor, id string) error {
	t := core.Tenant.ID
	for range tries {
		u, err := us.Get(ctx, t, id)
		if err != nil {
			return err
		}
		count, err := us.countOp(ctx, t, id, -1)
		if err != nil {
			return err
		}
		var w write
		w.add(
			table.Delete(table.UserKey(t, id), table.IfVersion(u.Version)),
			us.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "user.deleted", Subject: Subject(id), Outcome: audit.Done}),
			count,
			table.Delete(table.UsernameKey(t, Fold(u.Profile.Username)), table.Whatever()),
			table.Delete(table.AttemptsKey(t, Subject(id)), table.Whatever()))
		if u.Profile.ExternalID != "" {
			w.add(table.Delete(table.ExternalKey(t, u.Profile.ExternalID), table.Whatever()))
		}
		if u.Profile.Mail != "" {
			w.add(table.Delete(table.MailKey(t, foldMail(u.Profile.Mail), id), table.Whatever()))
		}
		w.retag(core, u, User{})
		if u.MailProblem != (MailProblem{}) {
			w.add(table.Delete(table.UndeliverableKey(t, id), table.Whatever()))
		}
		if again, err := w.do(ctx, us.Table); again {
			continue
		} else if err != nil {
			return fmt.Errorf("delete user: %w", err)
		}
		return nil
	}
	return errBusy
}

// count is a shard of the number of a tenant's users.
type count struct {
	key table.Key
	n   int
}

type storedCount struct {
	N int `json:"n"`
}

// Validate implements table.Record.
func (c count) Validate() error {
	if c.n < 0 {
		return fmt.Errorf("user count of %s would fall below 0", c.key)
	}
	return nil
}

// Item implements table.Record.
func (c count) Item() (table.Item, error) {
	data, err := json.Marshal(storedCount{c.n})
	return table.Item{Key: c.key, Data: data}, err
}

// countOp counts in the shard of a user.
func (us *Users) countOp(ctx context.Context, t table.TenantID, userID string, delta int) (table.Op, error) {
	key := table.CountKey(t, userID)
	item, err := us.Table.Get(ctx, key)
	if err != nil && !errors.Is(err, problem.ErrNotFound) {
		return table.Op{}, fmt.Errorf("count users: %w", err)
	}
	var s storedCount
	if err == nil {
		if err := item.Decode(&s); err != nil {
			return table.Op{}, err
		}
	}
	return table.Put(count{key, s.N + delta}, table.After(item.Version)), nil
}

// Count returns how many users the tenant has.
func (us *Users) Count(ctx context.Context, t table.TenantID) (int, error) {
	page, err := us.Table.Query(ctx, table.Counts(t))
	if err != nil {
		return 0, fmt.Errorf("count users: %w", err)
	}
	n := 0
	for _, item := range page.Items {
		var s storedCount
		if err := item.Decode(&s); err != nil {
			return 0, err
		}
		n += s.N
	}
	return n, nil
}

// Census counts a tenant's users by the policy version that accepted their
// PINs.
type Census struct {
	Users       int
	WithoutPIN  int           // or with an expired one
	Identifying int           // PINs that find their user alone
	ByPolicy    map[int64]int // PINs in use by policy version
}

// Census reads all of a tenant's users, page by page.
func (us *Users) Census(ctx context.Context, t table.TenantID) (Census, error) {
	c := Census{ByPolicy: make(map[int64]int)}
	now := us.Now()
	for _, shard := range table.Users(t, "") {
		for more := true; more; {
			page, err := us.Table.Query(ctx, shard)
			if err != nil {
				return Census{}, fmt.Errorf("count PINs: %w", err)
			}
			for _, item := range page.Items {
				u, err := decode(item)
				if err != nil {
					return Census{}, err
				}
				c.add(u, now)
				shard = shard.Beyond(shard.Place(item))
			}
			more = page.More
		}
	}
	return c, nil
}

func (c *Census) add(u User, now time.Time) {
	c.Users++
	if u.PIN.State(now) != IsSet {
		c.WithoutPIN++
		return
	}
	c.ByPolicy[u.PIN.PolicyVersion]++
	if u.PIN.Identifies() {
		c.Identifying++
	}
}
