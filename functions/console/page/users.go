package page

import (
	"errors"
	"iter"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

const pageSize = 50 // rows of a list on a page

func (c *Console) userRoutes() []route {
	const one = Root + "/users/{id}"
	return []route{
		{pattern: "GET " + Root + "/users", action: tenant.ListUsers, do: (*view).listUsers},
		{pattern: "GET " + Root + "/users/new", action: tenant.CreateUser, do: (*view).newUser},
		{pattern: "POST " + Root + "/users", action: tenant.CreateUser, do: (*view).createUser},
		{pattern: "GET " + one, action: tenant.ReadUser, do: (*view).showUser},
		{pattern: "GET " + one + "/edit", action: tenant.UpdateUser, do: (*view).editUser},
		{pattern: "POST " + one + "/edit", action: tenant.UpdateUser, do: (*view).updateUser},
		{pattern: "POST " + one + "/mail-again", action: tenant.ClearMail, do: (*view).mailAgain},
		{pattern: "GET " + one + "/issue", action: tenant.IssuePIN, do: (*view).issueForm},
		{pattern: "POST " + one + "/issue", action: tenant.IssuePIN, do: (*view).issuePIN},
		{pattern: "POST " + one + "/require-change", action: tenant.RequireChange, do: (*view).requireChange},
		{pattern: "POST " + one + "/unlock", action: tenant.UnlockPIN, do: (*view).unlockPIN},
		{pattern: "GET " + one + "/delete-pin", action: tenant.DeletePIN, do: (*view).deletePINPage},
		{pattern: "POST " + one + "/delete-pin", action: tenant.DeletePIN, do: (*view).deletePIN},
		{pattern: "GET " + one + "/delete", action: tenant.DeleteUser, do: (*view).deleteUserPage},
		{pattern: "POST " + one + "/delete", action: tenant.DeleteUser, do: (*view).deleteUser},
	}
}

// userFilter is which users a list has.
type userFilter string

const (
	everybody     userFilter = ""
	undeliverable userFilter = "undeliverable" // the mail address does not work
	expiring      userFilter = "expiring"      // the PIN expires within expiringDays
	expired       userFilter = "expired"       // the PIN has expired within expiredDays, and there is no new one
)

const (
	expiringDays = 30
	expiredDays  = 90
)

type userList struct {
	Prefix string
	Filter userFilter
	Users  List[user.User]
	Cut    bool // there are more, which are not listed
}

func (v *view) listUsers() error {
	l := userList{Prefix: v.value("prefix"), Filter: userFilter(v.value("filter"))}
	if len(user.Fold(l.Prefix)) > user.MaxFolded {
		return v.refused(problem.Invalid("tooLong", "prefix", "is too long: no username starts so"), "users", l)
	}
	from, err := v.place()
	if err != nil {
		return err
	}
	more := func(beyond string, limit int) ([]user.User, string, error) {
		return v.Users.List(v.ctx(), v.tenant(), l.Prefix, beyond, limit)
	}
	switch now := v.Now(); l.Filter {
	case undeliverable:
		l.Prefix = ""
		more = func(beyond string, limit int) ([]user.User, string, error) {
			return v.Users.Undeliverable(v.ctx(), v.tenant(), beyond, limit)
		}
	case expiring:
		l.Prefix = ""
		more = v.byExpiry(&l, now, now.AddDate(0, 0, expiringDays))
	case expired:
		l.Prefix = ""
		more = v.byExpiry(&l, now.AddDate(0, 0, -expiredDays), now)
	default:
		l.Filter = everybody
	}
	if v.value("format") == "csv" {
		var rows iter.Seq2[user.User, error] = rowsOf(from, func(beyond string) ([]user.User, string, error) { return more(beyond, 200) })
		header := []string{"id", "username", "displayName", "mail", "mailProblem", "phone", "staffNumber", "externalId", "groups", "pin", "pinSetAt", "pinExpiresAt"}
		return csvFile(v, "users", header, rows, func(u user.User) []string {
			p := u.Profile
			return []string{u.ID, p.Username, p.DisplayName, p.Mail, string(u.MailProblem.Kind), p.Phone, p.StaffNumber, p.ExternalID, strings.Join(p.Groups, ";"),
				string(u.PIN.State(v.Now())), csvTime(u.PIN.SetAt), csvTime(u.PIN.ExpiresAt)}
		})
	}
	users, next, err := more(from, pageSize)
	if err != nil {
		return err
	}
	l.Users = list(v, users, next)
	return v.show("users", l)
}

// byExpiry lists users by when their PIN expires, or has: as many as one look reaches.
func (v *view) byExpiry(l *userList, from, to time.Time) func(string, int) ([]user.User, string, error) {
	return func(string, int) ([]user.User, string, error) {
		users, total, more, err := v.Users.PINsExpiring(v.ctx(), v.tenant(), from, to, table.MaxLimit)
		l.Cut = more || total > len(users)
		return users, "", err
	}
}

// userForm is a user as somebody has them on a form.
type userForm struct {
	ID      string // "" if it is a new one
	Version int64
	Was     user.Profile // as it was when the form was made
	Profile user.Profile
	Changed []changedField // by somebody else since
}

// changedField is a field that somebody else has changed while it was on a form.
type changedField struct {
	Key           string // of the catalogue
	Theirs, Yours string
	Kept          bool // the form has theirs, for this person had not changed it
}

// profileField is a field of a profile as a form has it.
type profileField struct {
	name  string
	key   string
	value func(*user.Profile) string
	set   func(*user.Profile, string)
	own   bool // people change it themselves too
}

func textField(name, key string, own bool, of func(*user.Profile) *string) profileField {
	return profileField{name, key, func(p *user.Profile) string { return *of(p) }, func(p *user.Profile, s string) { *of(p) = s }, own}
}

// profileFields are all fields, in the order of forms.
var profileFields = []profileField{
	textField("username", words.Key("users.username"), false, func(p *user.Profile) *string { return &p.Username }),
	textField("displayName", words.Key("users.name"), true, func(p *user.Profile) *string { return &p.DisplayName }),
	textField("mail", words.Key("users.mail"), true, func(p *user.Profile) *string { return &p.Mail }),
	textField("phone", words.Key("users.phone"), true, func(p *user.Profile) *string { return &p.Phone }),
	textField("staffNumber", words.Key("users.staffNumber"), false, func(p *user.Profile) *string { return &p.StaffNumber }),
	textField("externalId", words.Key("users.externalId"), false, func(p *user.Profile) *string { return &p.ExternalID }),
	{"groups", words.Key("users.groups"), func(p *user.Profile) string { return strings.Join(p.Groups, "\n") }, func(p *user.Profile, s string) { p.Groups = lines(s) }, false},
}

// lines are the lines of a text area, without empty ones.
func lines(s string) (all []string) {
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, line)
		}
	}
	return all
}

// Groups are the names of the groups, one a line.
func (f userForm) Groups() string { return strings.Join(f.Profile.Groups, "\n") }

// WasField is one of the values that the form began with.
type WasField struct{ Name, Value string }

// WasFields are what the form began with, so that what others change meanwhile can be told.
func (f userForm) WasFields() (all []WasField) {
	for _, field := range profileFields {
		all = append(all, WasField{"was." + field.name, field.value(&f.Was)})
	}
	return all
}

func formOf(u user.User) userForm {
	return userForm{ID: u.ID, Version: u.Version, Was: u.Profile, Profile: u.Profile}
}

// userForm reads the form. own leaves the fields out that people do not change themselves.
func (v *view) userForm(id string, own bool) userForm {
	f := userForm{ID: id}
	f.Version, _ = strconv.ParseInt(v.value("version"), 10, 64)
	for _, field := range profileFields {
		was := v.value("was." + field.name)
		field.set(&f.Was, was)
		if own && !field.own {
			field.set(&f.Profile, was)
		} else {
			field.set(&f.Profile, v.value(field.name))
		}
	}
	return f
}

// meet puts what is there now into a form that was made before somebody changed it: what this
// person has left as it was becomes as it is now.
func (f *userForm) meet(now user.User) {
	f.Version, f.Changed = now.Version, nil
	for _, field := range profileFields {
		was, theirs, yours := field.value(&f.Was), field.value(&now.Profile), field.value(&f.Profile)
		if theirs == was || theirs == yours {
			continue
		}
		f.Changed = append(f.Changed, changedField{field.key, theirs, yours, yours == was})
		if yours == was {
			field.set(&f.Profile, theirs)
		}
	}
	f.Was = now.Profile
}

// save changes a user as a form has them, with a PIN if there is one. If somebody else has changed
// what the form had, it says so in the form and returns problem.ErrConflict.
func (v *view) save(f *userForm, own bool, newPIN *secret.Text) error {
	for range 3 {
		_, err := v.Users.Update(v.ctx(), v.core, v.actor(), f.ID, f.Version, func(p *user.Profile) {
			for _, field := range profileFields {
				if !own || field.own {
					field.set(p, field.value(&f.Profile))
				}
			}
		}, newPIN)
		if !errors.Is(err, problem.ErrConflict) {
			return err
		}
		now, getErr := v.Users.Get(v.ctx(), v.tenant(), f.ID)
		if getErr != nil {
			return getErr
		}
		if f.meet(now); len(f.Changed) > 0 {
			return err
		}
		// Something else has changed, such as the state of a reminder.
	}
	return problem.ErrConflict
}

// newPINOf returns the PIN of a form, nil if none was typed.
func (v *view) newPINOf() *secret.Text {
	s := v.secretValue("pin")
	if s.Reveal() == "" {
		return nil
	}
	return &s
}

func (v *view) newUser() error { return v.show("user-form", userForm{}) }

func (v *view) createUser() error {
	f := v.userForm("", false)
	u, err := v.Users.Create(v.ctx(), v.core, v.actor(), f.Profile, v.newPINOf())
	if err != nil {
		return v.refused(err, "user-form", f)
	}
	return v.done(join("/users/", u.ID), words.Key("done.userCreated"))
}

func (v *view) editUser() error {
	u, err := v.Users.Get(v.ctx(), v.tenant(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.show("user-form", formOf(u))
}

func (v *view) updateUser() error {
	f := v.userForm(v.r.PathValue("id"), false)
	if err := v.save(&f, false, v.newPINOf()); err != nil {
		return v.refused(err, "user-form", f)
	}
	return v.done(join("/users/", f.ID), words.Key("done.userSaved"))
}

// userPage is all of a user.
type userPage struct {
	User        user.User
	TriesLeft   int
	LockedUntil time.Time // zero if they may try
	Cards       []credential.Credential
	MoreCards   bool
	History     []audit.Record
	MoreHistory bool
}

const (
	cardsShown   = 20
	historyShown = 10
)

func (v *view) userPage(id string) (userPage, error) {
	u, err := v.Users.Get(v.ctx(), v.tenant(), id)
	if err != nil {
		return userPage{}, err
	}
	p := userPage{User: u}
	g, ctx := errgroup.WithContext(v.ctx())
	if v.may(tenant.ReadPIN) {
		g.Go(func() (err error) {
			p.TriesLeft, p.LockedUntil, err = v.Users.Attempts(ctx, v.core, id)
			return err
		})
	}
	if v.may(tenant.ReadCredentials) {
		g.Go(func() (err error) {
			var next string
			p.Cards, next, err = v.Credentials.Held(ctx, v.tenant(), id, "", cardsShown)
			p.MoreCards = next != ""
			return err
		})
	}
	if v.may(tenant.ReadAudit) {
		g.Go(func() (err error) {
			p.History, p.MoreHistory, err = audit.Of(ctx, v.Table, v.tenant(), user.Subject(id), "", historyShown)
			return err
		})
	}
	return p, g.Wait()
}

// Subject is what the audit log calls the user.
func (p userPage) Subject() string { return user.Subject(p.User.ID) }

func (v *view) showUser() error {
	p, err := v.userPage(v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.show("user", p)
}

// onUser does something to the user of the path, and goes back to their page; if it is refused,
// that page says why.
func (v *view) onUser(do func(id string) error, done string) error {
	id := v.r.PathValue("id")
	err := do(id)
	if err == nil {
		return v.done(join("/users/", id), done)
	}
	p, failed := v.userPage(id)
	if failed != nil {
		return failed
	}
	return v.refused(err, "user", p)
}

func (v *view) mailAgain() error {
	return v.onUser(func(id string) error {
		_, err := v.Users.ClearMailProblem(v.ctx(), v.core, v.actor(), id)
		return err
	}, words.Key("done.mailAgain"))
}

func (v *view) requireChange() error {
	return v.onUser(func(id string) error {
		_, err := v.Users.RequireChange(v.ctx(), v.core, v.actor(), id)
		return err
	}, words.Key("done.changeRequired"))
}

func (v *view) unlockPIN() error {
	return v.onUser(func(id string) error {
		return v.Users.Unlock(v.ctx(), v.core, v.actor(), id)
	}, words.Key("done.pinUnlocked"))
}

// issueFields are a PIN that is to be generated and mailed, as a form has it.
type issueFields struct{ Length, ValidHours, OneTime string }

func (v *view) issueFields() issueFields {
	return issueFields{v.value("length"), v.value("validHours"), v.value("oneTime")}
}

// number reads a whole number that may be left out; vs gets what is wrong with it.
func number(field, s string, vs *problem.Violations) int {
	if s == "" {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		vs.Add("number", field, "is not a whole number; leave it empty, or write digits only")
		return 0
	}
	return n
}

func (f issueFields) issue(vs *problem.Violations) user.Issue {
	return user.Issue{Options: pin.GenerateOptions{Length: number("length", f.Length, vs)}, ValidHours: number("validHours", f.ValidHours, vs), OneTime: user.OneTime(f.OneTime)}
}

type issuePage struct {
	User  user.User
	Issue issueFields
}

func (v *view) issueForm() error {
	u, err := v.Users.Get(v.ctx(), v.tenant(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.show("user-issue", issuePage{User: u})
}

func (v *view) issuePIN() error {
	id, f := v.r.PathValue("id"), v.issueFields()
	u, err := v.issue(id, f)
	if err != nil {
		p := issuePage{Issue: f}
		var failed error
		if p.User, failed = v.Users.Get(v.ctx(), v.tenant(), id); failed != nil {
			return failed
		}
		return v.refused(err, "user-issue", p)
	}
	return v.done(join("/users/", id), issued(u))
}

// issue generates a PIN and mails it.
func (v *view) issue(id string, f issueFields) (user.User, error) {
	var vs problem.Violations
	is := f.issue(&vs)
	if err := vs.Err(); err != nil {
		return user.User{}, err
	}
	u, late, err := v.Users.IssueAndSend(v.ctx(), v.core, v.Senders, v.actor(), id, is)
	if late != nil {
		observed(v.ctx()).cause = late // the mail is tried again
	}
	return u, err
}

// issued says what became of a PIN that was issued.
func issued(u user.User) string {
	if u.Pending.Waits() {
		return words.Key("done.pinPending")
	}
	return words.Key("done.pinMailed")
}

func (v *view) deletePINPage() error {
	u, err := v.Users.Get(v.ctx(), v.tenant(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.show("user-delete-pin", u)
}

func (v *view) deletePIN() error {
	return v.onUser(func(id string) error {
		_, err := v.Users.DeletePIN(v.ctx(), v.core, v.actor(), id)
		return err
	}, words.Key("done.pinDeleted"))
}

func (v *view) deleteUserPage() error {
	p, err := v.userPage(v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.show("user-delete", p)
}

func (v *view) deleteUser() error {
	err := v.Users.Delete(v.ctx(), v.core, v.actor(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.done(Root+"/users", words.Key("done.userDeleted"))
}

// pinFacts are what is known of a user's PIN, for the template of that name.
type pinFacts struct {
	*Frame
	User        user.User
	State       user.State
	TriesLeft   int
	LockedUntil time.Time
}

func newPINFacts(f *Frame, u user.User, left int, until time.Time) pinFacts {
	return pinFacts{f, u, u.PIN.State(f.v.Now()), left, until}
}
