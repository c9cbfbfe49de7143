package intake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/user"
)

// userRow is what an entry holds of a row of a user.
type userRow struct {
	profile user.Profile
	pin     *secret.Text
	tag     string             // the claim of the PIN, where PINs identify
	draft   user.Draft         // who is made if nobody is there
	refused problem.Violations // what the policy has against the PIN; then there is no draft
}

// users takes rows of users.
type users struct {
	*settings
	count int // of the tenant's, if the policy asks for it
}

// What only one user can have.
func nameKey(username string) string       { return "username/" + user.Fold(username) }
func externalKey(externalID string) string { return "externalId/" + externalID }

// pinKey is "" where PINs do not identify.
func (us *users) pinKey(pin *secret.Text) (string, error) {
	if pin == nil || !us.core.Tenant.Settings.PINOnlyLogin {
		return "", nil
	}
	tag, err := us.core.Keys.Lookup(*pin)
	return "pin/" + tag, err
}

// round implements taker.
func (us *users) round(ctx context.Context, ahead int) (err error) {
	if us.core.Policy.MinLengthByUsers {
		us.count, err = us.is.Users.Count(ctx, us.core.Tenant.ID)
		us.count += ahead
	}
	return err
}

// prepare implements taker. What the policy has against the PIN matters only if the user is
// not there yet.
func (us *users) prepare(ctx context.Context, e *entry[userRow]) error {
	is := &e.is
	is.profile = user.Profile{
		Username: e.value(Username), DisplayName: e.value(DisplayName), Mail: e.value(Mail), Phone: e.value(Phone),
		StaffNumber: e.value(StaffNumber), ExternalID: e.value(ExternalID), Groups: groupsOf(e.row),
	}
	var err error
	if is.pin, err = us.secretOf(&e.row, PIN); err != nil {
		e.refuse(us.im.Column(PIN), "%v", err)
	}
	if is.profile.Validate() == nil {
		e.id = is.profile.Username
	}
	e.key = nameKey(is.profile.Username)
	if e.content, err = us.hash(e.key, is.says()); err != nil {
		return err
	}
	from := us.place(e.line, e.content).String()
	is.draft, err = us.is.Users.Draft(ctx, us.core, us.by, user.New{Profile: is.profile, PIN: is.pin, Import: from}, us.count)
	var vs problem.Violations
	if err := vs.Merge(err); err != nil {
		return err
	}
	if e.outcome == refused || slices.ContainsFunc(vs, func(v problem.Violation) bool { return v.Field != "pin" }) {
		us.refuse(e, vs)
		return nil
	}
	if is.profile.ExternalID != "" {
		e.claims = append(e.claims, externalKey(is.profile.ExternalID))
	}
	if is.refused = vs; len(vs) > 0 {
		e.doubtful = true
		return nil
	}
	e.lane = is.draft.Shard()
	if is.tag, err = us.pinKey(is.pin); is.tag != "" {
		e.claims = append(e.claims, is.tag)
	}
	return err
}

// groupsOf returns the groups that a row names, each once.
func groupsOf(r row) (groups []string) {
	named := r.groups
	if named == nil {
		named = strings.Split(r.values[Groups], ";")
	}
	for _, g := range named {
		if g = strings.TrimSpace(g); g != "" && !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	return groups
}

// refuse tells of violations by code, where an error would say them at once.
func (us *users) refuse(e *entry[userRow], vs problem.Violations) {
	for _, v := range vs {
		e.refuse(us.im.Column(Field(v.Field)), "%s: %s", v.Code, v.Reason)
	}
}

// says is what the row says of its user.
func (is userRow) says() string {
	pin := ""
	if is.pin != nil {
		pin = is.pin.Reveal()
	}
	p := is.profile
	return fmt.Sprintf("%q %q %q %q %q %q %q %q", p.Username, p.DisplayName, p.Mail, p.Phone, p.StaffNumber, p.ExternalID, p.Groups, pin)
}

// candidates implements taker.
func (us *users) candidates(r row) ([]string, error) {
	keys := []string{nameKey(r.value(Username)), externalKey(r.value(ExternalID))}
	pin, err := us.secretOf(&r, PIN)
	if err != nil {
		return keys, nil // the row will be refused for it
	}
	tag, err := us.pinKey(pin)
	return append(keys, tag), err
}

// suspicion implements taker: to be refused a PIN that somebody has is to learn it.
func (us *users) suspicion(keys []string) (string, map[string]string) {
	return "import.pinsTaken", map[string]string{"rows": fmt.Sprint(len(keys))}
}

// fit implements taker.
func (us *users) fit(es []*entry[userRow]) int {
	ops := 2 // the count and the audit record
	for i, e := range es {
		if ops += e.is.draft.Ops(); ops > table.MaxOps {
			return i
		}
	}
	return len(es)
}

// write implements taker.
func (us *users) write(ctx context.Context, _ int, es []*entry[userRow]) error {
	drafts := make([]user.Draft, len(es))
	for i, e := range es {
		drafts[i] = e.is.draft
	}
	return us.is.Users.CreateAll(ctx, us.core, us.by, Subject(us.im.ID), drafts)
}

// lookUp implements taker. What is one user's alone comes with the name, in one Write: if it
// is somebody's, and the name is free even then, it is somebody else's.
func (us *users) lookUp(ctx context.Context, e *entry[userRow]) error {
	for range tries {
		u, err := us.named(ctx, e)
		if err != nil || e.outcome != undecided {
			return err
		}
		named := u.ID != ""
		vs, err := us.claimed(ctx, e, &u)
		switch {
		case err != nil:
			return err
		case len(vs) == 0 && u.ID != "":
			return us.compare(ctx, e, u)
		case len(vs) == 0 && len(e.is.refused) == 0:
			return nil
		case len(vs) == 0:
			vs = e.is.refused
		}
		if !named {
			if u, err = us.named(ctx, e); err != nil || e.outcome != undecided {
				return err
			} else if u.ID != "" {
				continue // who came meanwhile
			}
		}
		us.refuse(e, vs)
		e.suspect = e.is.tag != "" && e.lost == e.is.tag
		return nil
	}
	return errBusy
}

// named returns the user of the row's name, or none. It decides the row if that came by this
// import.
func (us *users) named(ctx context.Context, e *entry[userRow]) (user.User, error) {
	u, err := us.is.Users.ByUsername(ctx, us.core.Tenant.ID, e.is.profile.Username)
	if errors.Is(err, problem.ErrNotFound) {
		return user.User{}, nil
	} else if err != nil {
		return user.User{}, err
	}
	if from, ok := us.ours(u.Import); ok && from == us.place(e.line, e.content) {
		e.decide(taken) // by this row, when the part was sent before
	} else if ok {
		twin(us.settings, e, from)
	}
	return u, nil
}

// claimed returns what of the row is somebody else's, which becomes e.lost. If u is nobody,
// u becomes whoever has the external id.
func (us *users) claimed(ctx context.Context, e *entry[userRow], u *user.User) (vs problem.Violations, _ error) {
	t, id := us.core.Tenant.ID, e.is.profile.ExternalID
	if id != "" && id != u.Profile.ExternalID {
		first, ours := us.memory.find(externalKey(id))
		v, err := us.is.Users.ByExternalID(ctx, t, id)
		if err != nil && !errors.Is(err, problem.ErrNotFound) {
			return nil, err
		}
		if from, ok := us.ours(v.Import); ok {
			first, ours = from, true
		}
		switch {
		case ours:
			vs.Add("taken", "externalId", "is that of the user of line %d of part %d", first.line, first.part)
		case err == nil && u.ID != "":
			vs.Add("taken", "externalId", "is another user's")
		case err == nil:
			*u = v
		}
		if len(vs) > 0 {
			e.lost = externalKey(id)
			return vs, nil
		}
	}
	if u.ID != "" {
		return nil, nil
	}
	_, had := us.memory.find(e.is.tag)
	if !had {
		var err error
		if had, err = us.is.Users.PINTaken(ctx, t, e.is.draft); err != nil {
			return nil, err
		}
	}
	if had {
		e.lost = e.is.tag
		_ = vs.Merge(user.ErrPINTaken)
	}
	return vs, nil
}

// compare decides a row of a user who is there. Of a PIN it never tells whether it is the
// user's, and it never changes one: also one that is gone, for a file that is imported every
// night would bring it back.
func (us *users) compare(ctx context.Context, e *entry[userRow], u user.User) error {
	is, was, pin := e.is.profile, u.Profile, e.is.pin
	if pin != nil && !u.PIN.SetAt.IsZero() {
		pin = nil
		e.tell(us.im.Column(PIN), "was not looked at: the user has, or had, a PIN, which an import neither compares nor changes")
	}
	var differs []Field
	for _, f := range []struct {
		field   Field
		says    bool
		differs bool
	}{
		{Username, true, user.Fold(is.Username) != user.Fold(was.Username)},
		{DisplayName, is.DisplayName != "", is.DisplayName != was.DisplayName},
		{Mail, is.Mail != "", is.Mail != was.Mail},
		{Phone, is.Phone != "", is.Phone != was.Phone},
		{StaffNumber, is.StaffNumber != "", is.StaffNumber != was.StaffNumber},
		{ExternalID, is.ExternalID != "", is.ExternalID != was.ExternalID},
		{Groups, len(is.Groups) > 0, !slices.Equal(is.Groups, was.Groups)},
		{PIN, pin != nil, true},
	} {
		if f.says && f.differs {
			differs = append(differs, f.field)
		}
	}
	another := was.ExternalID != "" && slices.Contains(differs, ExternalID)
	switch {
	case len(differs) == 0:
		e.decide(unchanged)
	case another:
		// Whoever got a name that somebody else had must not get that one's PIN with it.
		e.refuse(us.im.Column(ExternalID), "is not what is on record of the user of that name, who may be somebody else: rename or delete that user first")
	case us.im.Update:
		return us.update(ctx, e, u, differs, pin)
	default:
		for _, f := range differs {
			if f == PIN {
				e.refuse(us.im.Column(PIN), "is for a user who is there and never had a PIN; an import with update gives it")
			} else {
				e.refuse(us.im.Column(f), "is not what is on record of this user; an import with update changes it")
			}
		}
	}
	return nil
}

// update changes a user to what the row says.
func (us *users) update(ctx context.Context, e *entry[userRow], u user.User, differs []Field, pin *secret.Text) error {
	is := e.is.profile
	edit := func(p *user.Profile) {
		for _, f := range differs {
			switch f {
			case Username:
				p.Username = is.Username
			case DisplayName:
				p.DisplayName = is.DisplayName
			case Mail:
				p.Mail = is.Mail
			case Phone:
				p.Phone = is.Phone
			case StaffNumber:
				p.StaffNumber = is.StaffNumber
			case ExternalID:
				p.ExternalID = is.ExternalID
			case Groups:
				p.Groups = is.Groups
			}
		}
	}
	var err error
	if us.im.DryRun {
		_, err = us.is.Users.Try(ctx, us.core, us.by, u, edit, pin)
	} else {
		_, err = us.is.Users.Update(ctx, us.core, us.by, u.ID, u.Version, edit, pin)
	}
	var invalid *problem.InvalidError
	switch {
	case err == nil:
		e.decide(updated)
	case errors.As(err, &invalid):
		us.refuse(e, invalid.Violations)
		if errors.Is(err, user.ErrPINTaken) {
			e.suspect, e.lost = true, e.is.tag
		}
	case errors.Is(err, problem.ErrConflict), errors.Is(err, problem.ErrNotFound):
		e.refuse("", "is of a user whom somebody else changed at the same time; send the row again")
	default:
		return err
	}
	return nil
}
