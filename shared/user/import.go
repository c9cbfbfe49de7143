package user

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// New is a user to be.
type New struct {
	Profile Profile
	PIN     *secret.Text // nil for none
	Import  string       // see User
}

// Draft is a user whom Draft has made and CreateAll puts into the table.
type Draft struct {
	User User
	write
}

// Ops is how many ops of a Write the user takes. Batches take two besides.
func (d Draft) Ops() int { return len(d.ops) }

// Shard is where the user is counted, below table.CountShards.
func (d Draft) Shard() int { return table.Shard(d.User.ID, table.CountShards) }

// Draft returns the user that Create would make, who is not there until CreateAll. What is
// wrong is an InvalidError as with Create, but for what others have: that CreateAll tells.
// users is how many the tenant has, if the policy asks for that.
func (us *Users) Draft(ctx context.Context, core tenant.Core, by audit.Actor, n New, users int) (Draft, error) {
	now := us.Now()
	id, err := us.newID(now)
	if err != nil {
		return Draft{}, err
	}
	d := Draft{User: User{ID: id, Profile: n.Profile, Import: n.Import, CreatedAt: now.UTC().Truncate(time.Second)}, write: write{users: &users}}
	if err := us.put(ctx, core, by, User{}, &d.User, n.PIN, &d.write); err != nil {
		return Draft{}, err
	}
	from, _, _ := strings.Cut(n.Import, "/")
	d.add(event.Ops(ctx, core, now, event.Event{Type: event.UserImported, User: id, Attributes: map[string]string{"import": from}}, id)...)
	return d, nil
}

// ErrThere: somebody has a name, an external id or a PIN of a batch.
var ErrThere = fmt.Errorf("%w: somebody has what is a user's alone", problem.ErrConflict)

// CreateAll puts drafts of one shard, of which no two have anything that is a user's alone,
// into the table: all or none, with one audit record for all, filed under the subject. If
// somebody has what is a user's alone it is ErrThere.
func (us *Users) CreateAll(ctx context.Context, core tenant.Core, by audit.Actor, subject string, drafts []Draft) error {
	t := core.Tenant.ID
	var w write
	ids := make([]string, len(drafts))
	record := audit.Record{Actor: by, Action: "user.imported", Subject: subject, Outcome: audit.Done, Details: map[string]string{}}
	for i, d := range drafts {
		ids[i] = d.User.ID
		for n, op := range d.ops {
			if d.refused[n] != nil {
				w.claim(op, ErrThere)
			} else {
				w.add(op)
			}
		}
		if d.User.PIN.verifier != "" {
			record.Details = pinDetails(core)
		}
	}
	record.Details["users"] = strings.Join(ids, " ")
	w.add(us.Audit.Op(ctx, t, record))
	for range createTries {
		count, err := us.countOp(ctx, t, ids[0], len(drafts))
		if err != nil {
			return err
		}
		counted := w
		counted.ops = append(slices.Clip(w.ops), count)
		if again, err := counted.do(ctx, us.Table); !again {
			return err
		}
	}
	return fmt.Errorf("create users: %w: many are created at once", problem.ErrUnavailable)
}

// PINTaken tells whether somebody has a draft's PIN, where PINs identify.
func (us *Users) PINTaken(ctx context.Context, t table.TenantID, d Draft) (bool, error) {
	if d.User.PIN.lookup == "" {
		return false, nil
	}
	_, err := us.Table.Get(ctx, table.LookupKey(t, d.User.PIN.lookup))
	if errors.Is(err, problem.ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look up a PIN: %w", err)
	}
	return true, nil
}

// Try returns what Update would make of a user as read, or the error that it would return,
// and changes nothing. PINs are tried of users who never had one.
func (us *Users) Try(ctx context.Context, core tenant.Core, by audit.Actor, old User, edit func(*Profile), pin *secret.Text) (User, error) {
	u := old
	u.Profile.Groups = slices.Clone(old.Profile.Groups)
	edit(&u.Profile)
	var w write
	if err := us.put(ctx, core, by, old, &u, pin, &w); err != nil {
		return User{}, err
	}
	for n, op := range w.ops {
		if w.refused[n] == nil {
			continue
		}
		if _, err := us.Table.Get(ctx, op.Item().Key); err == nil {
			return User{}, w.refused[n]
		} else if !errors.Is(err, problem.ErrNotFound) {
			return User{}, fmt.Errorf("try to update a user: %w", err)
		}
	}
	return u, nil
}
