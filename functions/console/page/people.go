package page

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

const peoplePath = Root + "/settings/people"

func (c *Console) peopleRoutes() []route {
	const one = peoplePath + "/{person}"
	return []route{
		{pattern: "GET " + peoplePath, action: tenant.ManagePeople, do: (*view).listPeople},
		{pattern: "GET " + peoplePath + "/new", action: tenant.ManagePeople, do: (*view).newPerson},
		{pattern: "POST " + peoplePath, action: tenant.ManagePeople, sensitive: true, do: (*view).createPerson},
		{pattern: "GET " + peoplePath + "/sessions", action: tenant.ManagePeople, do: (*view).listSessions},
		{pattern: "GET " + one, action: tenant.ManagePeople, do: (*view).showPerson},
		{pattern: "POST " + one, action: tenant.ManagePeople, sensitive: true, do: (*view).savePerson},
		{pattern: "POST " + one + "/link", action: tenant.ManagePeople, sensitive: true, do: (*view).linkForPerson},
		{pattern: "POST " + one + "/end-sessions", action: tenant.ManagePeople, do: (*view).endSessions},
		{pattern: "POST " + one + "/sessions/{session}/end", action: tenant.ManagePeople, do: (*view).endSession},
		{pattern: "GET " + one + "/delete", action: tenant.ManagePeople, do: (*view).deletePersonPage},
		{pattern: "POST " + one + "/delete", action: tenant.ManagePeople, sensitive: true, do: (*view).deletePerson},
	}
}

// personInputs are the names of the inputs of the form of a person.
var personInputs = []string{"name", "mail", "roles", "language", "disabled"}

func personOf(p person.Person) Inputs {
	roles := make([]string, len(p.Roles))
	for i, r := range p.Roles {
		roles[i] = string(r)
	}
	return Inputs{"name": p.Name, "mail": p.Mail, "roles": strings.Join(roles, " "), "language": p.Language, "disabled": box(p.Disabled)}
}

// person writes what was entered into a person.
func (in Inputs) person(p *person.Person) {
	p.Name, p.Mail, p.Language, p.Disabled = in["name"], in["mail"], in["language"], in.On("disabled")
	p.Roles = nil
	for _, r := range strings.Fields(in["roles"]) {
		p.Roles = append(p.Roles, tenant.Role(r))
	}
}

type personRow struct {
	person.Person
	Sessions int
}

type peoplePage struct {
	People List[personRow]
	SignIn string // where they sign in
}

// signInURL is where the people of the tenant sign in.
func (v *view) signInURL() string {
	return strings.TrimSuffix(v.BaseURL, "/") + Root + "/sign-in?" + url.Values{"organisation": {string(v.tenant())}}.Encode()
}

// pageOf returns the items of one page of a list that is read whole, and the place of the next.
// from is the id of the last item of the page before; if it is gone the list begins anew.
func pageOf[T any](items []T, from string, id func(T) string) (some []T, next string) {
	items = items[slices.IndexFunc(items, func(x T) bool { return from != "" && id(x) == from })+1:]
	if len(items) > pageSize {
		return items[:pageSize], id(items[pageSize-1])
	}
	return items, ""
}

func (v *view) listPeople() error {
	from, err := v.place()
	if err != nil {
		return err
	}
	var (
		people   []person.Person
		sessions []person.Session
		g, ctx   = errgroup.WithContext(v.ctx())
	)
	g.Go(func() (err error) { people, err = v.People.List(ctx, v.tenant()); return err })
	g.Go(func() (err error) { sessions, err = v.People.Sessions(ctx, v.tenant()); return err })
	if err := g.Wait(); err != nil {
		return err
	}
	open := map[string]int{}
	for _, s := range sessions {
		open[s.PersonID]++
	}
	rows := make([]personRow, len(people))
	for i, p := range people {
		rows[i] = personRow{p, open[p.ID]}
	}
	if v.value("format") == "csv" {
		return csvFile(v, "people", []string{"name", "mail", "roles", "language", "signedInAt", "disabled", "sessions", "id"}, all(rows), func(p personRow) []string {
			in := personOf(p.Person)
			return []string{p.Name, p.Mail, in["roles"], p.Language, csvTime(p.SignedInAt), text(p.Disabled), text(p.Sessions), p.ID}
		})
	}
	some, next := pageOf(rows, from, func(p personRow) string { return p.ID })
	return v.show("people", peoplePage{list(v, some, next), v.signInURL()})
}

// all goes through a list that is read whole.
func all[T any](items []T) func(func(T, error) bool) {
	return func(yield func(T, error) bool) {
		for _, item := range items {
			if !yield(item, nil) {
				return
			}
		}
	}
}

type personPage struct {
	Edited
	Person   person.Person // none if new
	Roles    []tenant.Role
	Sessions []person.Session
	SignIn   string
	Myself   bool
	Link     string // that was made just now, to sign in with
	Until    time.Time
}

func (v *view) personPage(p person.Person, e Edited) personPage {
	return personPage{Edited: e, Person: p, Roles: tenant.PersonRoles(), SignIn: v.signInURL(), Myself: p.ID == v.session.PersonID}
}

// readPerson reads the person of the path, and their sessions.
func (v *view) readPerson() (d personPage, _ error) {
	var (
		id       = v.r.PathValue("person")
		p        person.Person
		sessions []person.Session
		g, ctx   = errgroup.WithContext(v.ctx())
	)
	g.Go(func() (err error) { p, err = v.People.Get(ctx, v.tenant(), id); return err })
	g.Go(func() (err error) { sessions, err = v.People.SessionsOf(ctx, v.tenant(), id); return err })
	if err := g.Wait(); err != nil {
		return d, err
	}
	d = v.personPage(p, edit(personOf(p), p.Version))
	d.Sessions = sessions
	return d, nil
}

func (v *view) newPerson() error {
	return v.show("person-new", v.personPage(person.Person{}, edit(Inputs{}, 0)))
}

// mailTaken says at its input that an address is another person's.
func mailTaken(err error) error {
	if errors.Is(err, person.ErrMailTaken) {
		return problem.Invalid("taken", "mail", "is that of another person of the organisation already; each signs in with an address of their own")
	}
	return err
}

func (v *view) createPerson() error {
	e := v.edited(personInputs...)
	var p person.Person
	e.In.person(&p)
	p, err := v.People.Create(v.ctx(), v.core, v.actor(), p)
	if err != nil {
		return v.refused(mailTaken(err), "person-new", v.personPage(person.Person{}, e))
	}
	return v.done(peoplePath+"/"+p.ID, words.Key("done.personAdded"))
}

func (v *view) showPerson() error {
	d, err := v.readPerson()
	if err != nil {
		return err
	}
	return v.show("person", d)
}

func (v *view) savePerson() error {
	e := v.edited(personInputs...)
	d, err := v.readPerson()
	if err != nil {
		return err
	}
	with := func(e Edited) personPage { d.Edited = e; return d }
	conflict := func() error {
		return v.metConflict(e, personOf(d.Person), d.Person.Version, personInputs, func(name string) string { return v.words.Say(words.Family("person.", name)) },
			"person", func(e Edited) any { return with(e) })
	}
	if e.Version != d.Person.Version {
		return conflict()
	}
	_, err = v.People.Update(v.ctx(), v.core, v.actor(), d.Person.ID, e.Version, e.In.person)
	switch taken := mailTaken(err); {
	case err == nil:
		return v.done(peoplePath+"/"+d.Person.ID, words.Key("done.personSaved"))
	case taken == err && errors.Is(err, problem.ErrConflict): // changed since it was read just now
		if d, err = v.readPerson(); err != nil {
			return err
		}
		return conflict()
	default:
		return v.refused(taken, "person", with(e))
	}
}

// linkLife is how long a link is good that an administrator hands over.
const linkLife = person.MaxLinkLife

// linkForPerson makes a link to sign in by, and shows it this once.
func (v *view) linkForPerson() error {
	d, err := v.readPerson()
	if err != nil {
		return err
	}
	link, until, err := v.People.Link(v.ctx(), v.core, v.actor(), d.Person.ID, linkLife)
	if err != nil {
		return v.refused(err, "person", d)
	}
	d.Link, d.Until = strings.TrimSuffix(v.BaseURL, "/")+Root+"/sign-in/link?"+url.Values{"t": {link.Reveal()}}.Encode(), until
	return v.show("person", d)
}

func (v *view) endSessions() error {
	id := v.r.PathValue("person")
	if err := v.People.EndAll(v.ctx(), v.core, v.actor(), id); err != nil {
		return err
	}
	return v.done(peoplePath+"/"+url.PathEscape(id), words.Key("done.sessionsEnded"))
}

// endSession ends one session; to is the page that asked for it.
func (v *view) endSession() error {
	id := v.r.PathValue("person")
	err := v.People.End(v.ctx(), v.core, v.actor(), id, v.r.PathValue("session"))
	if err != nil && !errors.Is(err, problem.ErrNotFound) { // it has ended by itself, which is as well
		return err
	}
	to := peoplePath + "/" + url.PathEscape(id)
	if v.value("to") == "sessions" {
		to = peoplePath + "/sessions"
	}
	return v.done(to, words.Key("done.oneSessionEnded"))
}

func (v *view) listSessions() error {
	from, err := v.place()
	if err != nil {
		return err
	}
	sessions, err := v.People.Sessions(v.ctx(), v.tenant())
	if err != nil {
		return err
	}
	if v.value("format") == "csv" {
		return csvFile(v, "sessions", []string{"name", "mail", "method", "address", "device", "createdAt", "seenAt", "id"}, all(sessions), func(s person.Session) []string {
			return []string{s.Name, s.Mail, string(s.Method), s.Device.Client, s.Device.Agent, csvTime(s.CreatedAt), csvTime(s.SeenAt), s.ID}
		})
	}
	some, next := pageOf(sessions, from, func(s person.Session) string { return s.ID })
	return v.show("sessions", sessionsPage{list(v, some, next), v.session.ID})
}

type sessionsPage struct {
	Sessions List[person.Session]
	Mine     string // the session that this page is seen in
}

// Here is the session that the page is seen in.
func (f *Frame) Here() string { return f.v.session.ID }

func (v *view) deletePersonPage() error {
	d, err := v.readPerson()
	if err != nil {
		return err
	}
	return v.show("person-delete", d)
}

func (v *view) deletePerson() error {
	d, err := v.readPerson()
	if err != nil {
		return err
	}
	if err := v.People.Delete(v.ctx(), v.core, v.actor(), d.Person.ID, 0); err != nil {
		return v.refused(err, "person-delete", d)
	}
	if d.Myself {
		v.dropCookie(sessionCookie)
		return v.goTo(Root + "/sign-in")
	}
	return v.done(peoplePath, words.Key("done.personDeleted"))
}
