package person

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// People are the operations on those who sign in. Rand must be safe for concurrent use.
type People struct {
	Table   table.Table
	Tenants *tenant.Tenants
	Senders mail.Senders
	Audit   audit.Log
	Now     func() time.Time
	Rand    io.Reader
	Log     *slog.Logger

	// Holder finds who signs in to see to their own PIN: the one user of a tenant who has an
	// address and can be mailed to, or problem.ErrNotFound. It must make the same calls to
	// the table either way. Without it users do not sign in.
	Holder func(ctx context.Context, t table.TenantID, address string) (Holder, error)

	// BaseURL is where the pages are, such as https://pin.example; without it no link can
	// be made, and so no sign-in be mailed.
	BaseURL string

	// Pad begins to measure a fixed time and returns what waits for its end. Begin answers
	// only then: just where there is somebody to mail does it wait for a mail system, and
	// how long it takes must not tell that. Nil is no waiting.
	Pad func() (wait func(ctx context.Context))
}

// PadTo returns a Pad of the time d, for People.
func PadTo(d time.Duration) func() func(context.Context) {
	return func() func(context.Context) {
		timer := time.NewTimer(d)
		return func(ctx context.Context) {
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
	}
}

// tries bounds how often a Write begins anew because something changed meanwhile.
const tries = 8

var errBusy = fmt.Errorf("%w: too many changes at the same time; try again", problem.ErrUnavailable)

func (ps *People) newID() (string, error) {
	id, err := ulid.New(ulid.Timestamp(ps.Now()), ps.Rand)
	if err != nil {
		return "", fmt.Errorf("make an id: %w", err)
	}
	return id.String(), nil
}

// Get returns a person, or problem.ErrNotFound.
func (ps *People) Get(ctx context.Context, t table.TenantID, id string) (Person, error) {
	item, err := ps.Table.Get(ctx, table.PersonKey(t, id))
	if errors.Is(err, problem.ErrNotFound) {
		return Person{}, fmt.Errorf("person %w", problem.ErrNotFound)
	} else if err != nil {
		return Person{}, fmt.Errorf("load person: %w", err)
	}
	return decodePerson(item)
}

// ByMail returns the person who signs in with an address, or problem.ErrNotFound.
func (ps *People) ByMail(ctx context.Context, t table.TenantID, address string) (Person, error) {
	id, err := ps.idByMail(ctx, t, address)
	if err != nil {
		return Person{}, err
	}
	return ps.Get(ctx, t, id)
}

func (ps *People) idByMail(ctx context.Context, t table.TenantID, address string) (string, error) {
	item, err := ps.Table.Get(ctx, table.PersonMailKey(t, fold(address)))
	if errors.Is(err, problem.ErrNotFound) {
		return "", fmt.Errorf("person %w", problem.ErrNotFound)
	} else if err != nil {
		return "", fmt.Errorf("find person by mail: %w", err)
	}
	var s storedPointer
	err = item.Decode(&s)
	return s.ID, err
}

// List returns all people of a tenant, at most Most, by name.
func (ps *People) List(ctx context.Context, t table.TenantID) ([]Person, error) {
	page, err := ps.Table.Query(ctx, table.People(t).Limit(Most))
	if err != nil {
		return nil, fmt.Errorf("list people: %w", err)
	}
	people := make([]Person, len(page.Items))
	for i, item := range page.Items {
		if people[i], err = decodePerson(item); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(people, func(a, b Person) int { return strings.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)) })
	return people, nil
}

func (ps *People) roster(ctx context.Context, t table.TenantID) (roster, error) {
	r := roster{tenant: t}
	item, err := ps.Table.Get(ctx, table.RosterKey(t))
	if errors.Is(err, problem.ErrNotFound) {
		return r, nil
	} else if err != nil {
		return r, fmt.Errorf("load roster: %w", err)
	}
	var s storedRoster
	if err := item.Decode(&s); err != nil {
		return r, err
	}
	r.count, r.admins, r.stored = s.Count, s.Admins, item.Version
	return r, nil
}

// Administrators returns how many people administer the tenant.
func (ps *People) Administrators(ctx context.Context, t table.TenantID) (int, error) {
	r, err := ps.roster(ctx, t)
	return len(r.admins), err
}

// with returns the roster after a person has changed; one who is new or gone has no Version.
// It refuses what would leave nobody to administer the tenant.
func (r roster) with(old, p Person) (roster, error) {
	switch {
	case old.Version == 0:
		if r.count++; r.count > Most {
			return r, fmt.Errorf("%w: the organisation has %d people who sign in, which is the most it can have; delete some", problem.ErrState, Most)
		}
	case p.Version == 0:
		r.count--
	}
	was, is := old.Version != 0 && old.Administers(), p.Version != 0 && p.Administers()
	switch {
	case is && !was:
		r.admins = append(slices.Clone(r.admins), p.ID)
	case was && !is:
		r.admins = slices.DeleteFunc(slices.Clone(r.admins), func(id string) bool { return id == old.ID })
		if len(r.admins) == 0 {
			return r, fmt.Errorf("%w: this is the last administrator who can sign in; make somebody else an administrator first", problem.ErrState)
		}
	}
	return r, nil
}

// ErrMailTaken: another person has the address. It is a problem.ErrConflict.
var ErrMailTaken = fmt.Errorf("%w: another person of the organisation signs in with this mail address", problem.ErrConflict)

// Create adds a person. What counts of p is name, mail, roles, language and disabled. An
// address that another person has is ErrMailTaken, a person too many problem.ErrState.
func (ps *People) Create(ctx context.Context, core tenant.Core, by audit.Actor, p Person) (Person, error) {
	t := core.Tenant.ID
	p.tidy()
	if err := p.Validate(); err != nil {
		return Person{}, err
	}
	id, err := ps.newID()
	if err != nil {
		return Person{}, err
	}
	p = Person{ID: id, Name: p.Name, Mail: p.Mail, Roles: p.Roles, Language: p.Language, Disabled: p.Disabled,
		CreatedAt: ps.Now().UTC().Truncate(time.Second), Version: 1, stored: 1}
	for range tries {
		r, err := ps.roster(ctx, t)
		if err != nil {
			return Person{}, err
		}
		if r, err = r.with(Person{}, p); err != nil {
			return Person{}, err
		}
		mailed := table.Put(pointer{t, fold(p.Mail), p.ID}, table.Absent())
		err = ps.Table.Write(ctx,
			table.Put(personRecord{t, p}, table.Absent()),
			mailed,
			r.op(),
			ps.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "person.created", Subject: Subject(id), Outcome: audit.Done,
				Details: map[string]string{"roles": roleWords(p.Roles)}}))
		switch {
		case err == nil:
			return p, nil
		case table.FailedIn(err, []table.Op{mailed}):
			return Person{}, ErrMailTaken
		case !errors.Is(err, problem.ErrConflict):
			return Person{}, fmt.Errorf("create person: %w", err)
		}
	}
	return Person{}, errBusy
}

func roleWords(roles []tenant.Role) string {
	words := make([]string, len(roles))
	for i, r := range roles {
		words[i] = string(r)
	}
	return strings.Join(words, " ")
}

// Update changes a person's name, mail, roles, language and whether they are disabled;
// change may be called several times. If version is not 0 and not the person's that is
// problem.ErrConflict. A change of roles or mail ends all that lets the person in: sessions,
// and sign-ins that have begun. So does disabling. Sessions that stay have the new name and
// language at once. The last administrator stays one, or it is problem.ErrState.
func (ps *People) Update(ctx context.Context, core tenant.Core, by audit.Actor, id string, version int64, change func(*Person)) (Person, error) {
	t := core.Tenant.ID
	return ps.edit(ctx, t, id, func(old Person, sessions []Session) (Person, []table.Op, error) {
		if version != 0 && version != old.Version {
			return Person{}, nil, fmt.Errorf("%w: somebody has changed the person meanwhile", problem.ErrConflict)
		}
		p := old
		p.Roles = slices.Clone(old.Roles)
		change(&p)
		p.tidy()
		// What a caller does not decide stays.
		p.ID, p.CreatedAt, p.SignedInAt, p.era, p.stored = old.ID, old.CreatedAt, old.SignedInAt, old.era, old.stored
		p.Version = old.Version + 1
		if err := p.Validate(); err != nil {
			return Person{}, nil, err
		}
		changed := differences(old, p)
		if len(changed) == 0 {
			return old, nil, nil
		}
		details := map[string]string{"changed": strings.Join(changed, " ")}
		if slices.Contains(changed, "roles") {
			details["roles"], details["rolesBefore"] = roleWords(p.Roles), roleWords(old.Roles)
		}
		if slices.Contains(changed, "disabled") {
			details["disabled"] = strconv.FormatBool(p.Disabled)
		}
		var ops []table.Op
		if slices.ContainsFunc(changed, func(what string) bool { return what == "roles" || what == "mail" || what == "disabled" }) {
			p.era++
			ops = end(t, sessions)
			details["sessionsEnded"] = strconv.Itoa(len(sessions))
		} else {
			for _, s := range sessions {
				s.copy(p)
				ops = append(ops, table.Put(sessionRecord{s}, table.IfVersion(s.stored)))
			}
		}
		return p, append(ops, ps.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "person.updated", Subject: Subject(id), Outcome: audit.Done, Details: details})), nil
	})
}

func differences(old, p Person) (changed []string) {
	for _, f := range []struct {
		name string
		same bool
	}{
		{"name", old.Name == p.Name}, {"mail", old.Mail == p.Mail}, {"roles", slices.Equal(old.Roles, p.Roles)},
		{"language", old.Language == p.Language}, {"disabled", old.Disabled == p.Disabled},
	} {
		if !f.same {
			changed = append(changed, f.name)
		}
	}
	return changed
}

// Delete removes a person and all that lets them in. The last administrator stays
// (problem.ErrState). If version is not 0 and not the person's that is problem.ErrConflict.
func (ps *People) Delete(ctx context.Context, core tenant.Core, by audit.Actor, id string, version int64) error {
	t := core.Tenant.ID
	_, err := ps.edit(ctx, t, id, func(old Person, sessions []Session) (Person, []table.Op, error) {
		if version != 0 && version != old.Version {
			return Person{}, nil, fmt.Errorf("%w: somebody has changed the person meanwhile", problem.ErrConflict)
		}
		return Person{}, append(end(t, sessions), ps.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "person.deleted", Subject: Subject(id), Outcome: audit.Done,
			Details: map[string]string{"sessionsEnded": strconv.Itoa(len(sessions))}})), nil
	})
	return err
}

// EndAll ends everything that lets an owner of sessions in: of a person also sign-ins that have
// begun.
func (ps *People) EndAll(ctx context.Context, core tenant.Core, by audit.Actor, owner string) error {
	t, id := core.Tenant.ID, owner
	if strings.HasPrefix(owner, ofUser) {
		return ps.endAllOfUser(ctx, t, by, owner)
	}
	_, err := ps.edit(ctx, t, id, func(p Person, sessions []Session) (Person, []table.Op, error) {
		p.era++
		return p, append(end(t, sessions), ps.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "person.sessionsEnded", Subject: Subject(id), Outcome: audit.Done,
			Details: map[string]string{"sessionsEnded": strconv.Itoa(len(sessions))}})), nil
	})
	return err
}

// edit writes what becomes of a person: as returned, or gone if that has no Version. Without
// ops nothing is written. It begins anew if the person, their sessions or the roster changed
// meanwhile.
//
// The person is read before the sessions, and each sign-in writes the person: a session that
// is not in the list is refused by the person's version.
func (ps *People) edit(ctx context.Context, t table.TenantID, id string, edit func(Person, []Session) (Person, []table.Op, error)) (Person, error) {
	for range tries {
		old, err := ps.Get(ctx, t, id)
		if err != nil {
			return Person{}, err
		}
		sessions, err := ps.sessions(ctx, t, table.SessionsOf(t, id))
		if err != nil {
			return Person{}, err
		}
		p, ops, err := edit(old, sessions)
		if err != nil || len(ops) == 0 {
			return p, err
		}
		gone := p.Version == 0
		var person, mailed []table.Op
		if gone {
			person = []table.Op{table.Delete(table.PersonKey(t, id), table.IfVersion(old.stored))}
		} else {
			person = []table.Op{table.Put(personRecord{t, p}, table.IfVersion(old.stored))}
		}
		if gone || fold(p.Mail) != fold(old.Mail) {
			person = append(person, table.Delete(table.PersonMailKey(t, fold(old.Mail)), table.Whatever()))
			if !gone {
				mailed = []table.Op{table.Put(pointer{t, fold(p.Mail), id}, table.Absent())}
			}
		}
		if gone || p.Administers() != old.Administers() {
			r, err := ps.roster(ctx, t)
			if err != nil {
				return Person{}, err
			}
			if r, err = r.with(old, p); err != nil {
				return Person{}, err
			}
			person = append(person, r.op())
		}
		err = ps.Table.Write(ctx, slices.Concat(person, mailed, ops)...)
		switch {
		case err == nil:
			p.stored = old.stored + 1
			return p, nil
		case table.FailedIn(err, mailed):
			return Person{}, ErrMailTaken
		case !errors.Is(err, problem.ErrConflict):
			return Person{}, fmt.Errorf("change person: %w", err)
		}
	}
	return Person{}, errBusy
}
