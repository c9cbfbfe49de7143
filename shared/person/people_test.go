package person

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

// check finds nothing half done: roster and pointers are those of the people, and each
// session is of somebody there, who may sign in, and says of them what is true.
func (w *world) check() {
	w.Helper()
	ctx, t := w.Context(), w.core.Tenant.ID
	people := must(w.List(ctx, t))(w)
	byID := map[string]Person{}
	want := roster{tenant: t, count: len(people)}
	for _, p := range people {
		byID[p.ID] = p
		if p.Administers() {
			want.admins = append(want.admins, p.ID)
		}
		if id, err := w.idByMail(ctx, t, p.Mail); id != p.ID {
			w.Errorf("the address of %s leads to %q, %v", p.Name, id, err)
		}
	}
	got := must(w.roster(ctx, t))(w)
	slices.Sort(got.admins)
	slices.Sort(want.admins)
	if got.count != want.count || !slices.Equal(got.admins, want.admins) {
		w.Errorf("the roster has %d people and the administrators %q; there are %d and %q", got.count, got.admins, want.count, want.admins)
	}
	for _, s := range must(w.sessions(ctx, t, table.Sessions(t)))(w) {
		p, ok := byID[s.PersonID]
		if !ok || p.Disabled || s.Name != p.Name || s.Mail != p.Mail || s.Language != p.Language || !slices.Equal(s.Roles, p.Roles) {
			w.Errorf("a session of %s (%s, %q), who is %+v", s.Name, s.Mail, s.Roles, p)
		}
	}
}

// free tells whether nobody signs in with an address.
func (w *world) free(address string) bool {
	w.Helper()
	_, err := w.idByMail(w.Context(), w.core.Tenant.ID, address)
	if err != nil && !errors.Is(err, problem.ErrNotFound) {
		w.Fatal(err)
	}
	return err != nil
}

func TestPeople(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	ada := must(w.Create(ctx, w.core, office, Person{ID: "mine", Name: " Ada ", Mail: " Ada@Acme.example ", Roles: []tenant.Role{tenant.RoleAuditor, tenant.RoleAdmin}, Language: "de-AT", Version: 7}))(t)
	want := Person{ID: ada.ID, Name: "Ada", Mail: "Ada@acme.example", Roles: []tenant.Role{tenant.RoleAdmin, tenant.RoleAuditor}, Language: "de-AT", CreatedAt: start, Version: 1, stored: 1}
	if d := cmp.Diff(want, ada, unexported); d != "" || len(ada.ID) != 26 {
		t.Errorf("created (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want, w.reread(ada), unexported); d != "" {
		t.Errorf("stored (-want +got):\n%s", d)
	}
	for _, address := range []string{"ada@acme.example", "ADA@ACME.EXAMPLE"} {
		if _, err := w.Create(ctx, w.core, office, Person{Name: "Eve", Mail: address, Roles: []tenant.Role{tenant.RoleAdmin}}); !errors.Is(err, ErrMailTaken) || !errors.Is(err, problem.ErrConflict) {
			t.Errorf("%s, which is taken: %v", address, err)
		}
		if p, err := w.ByMail(ctx, acme, address); p.ID != ada.ID {
			t.Errorf("by %s: %v, %v", address, p, err)
		}
	}
	bob := w.person("bob", tenant.RoleHelpdesk)
	if people := must(w.List(ctx, acme))(t); len(people) != 2 || people[0].ID != ada.ID || people[1].ID != bob.ID {
		t.Errorf("listed: %+v", people)
	}
	if _, err := w.Update(ctx, w.core, office, bob.ID, 0, func(p *Person) { p.Mail = "ADA@acme.example" }); !errors.Is(err, ErrMailTaken) {
		t.Errorf("a change to an address that is taken: %v", err)
	}
	// Only the case of one's own address is no other address.
	ada = must(w.Update(ctx, w.core, office, ada.ID, 1, func(p *Person) { p.Mail, p.ID, p.CreatedAt, p.Version = "ada@acme.example", "x", time.Time{}, 99 }))(t)
	want.Mail, want.Version, want.era, want.stored = "ada@acme.example", 2, 1, 2
	if d := cmp.Diff(want, w.reread(ada), unexported); d != "" {
		t.Errorf("updated (-want +got):\n%s", d)
	}
	w.enter(ada)
	if got := must(w.Update(ctx, w.core, office, ada.ID, 2, func(p *Person) { p.Name = "Ada King" }))(t); got.Version != 3 {
		t.Errorf("a sign-in is a change: version %d", got.Version)
	}
	if _, err := w.Update(ctx, w.core, office, ada.ID, 2, func(p *Person) { p.Name = "Ada Byron" }); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("a change of an older version: %v", err)
	}
	if err := w.Delete(ctx, w.core, office, ada.ID, 2); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("deletion of an older version: %v", err)
	}
	w.table.Take()
	if got := must(w.Update(ctx, w.core, office, ada.ID, 0, func(*Person) {}))(t); got.Version != 3 || w.table.Take().Writes != 0 {
		t.Errorf("no change: version %d, or something was written", got.Version)
	}
	must(w.Update(ctx, w.core, office, bob.ID, 0, func(p *Person) { p.Mail = "robert@acme.example" }))(t)
	if !w.free("bob@acme.example") || w.free("robert@acme.example") {
		t.Error("bob's old address is taken, or the new one is not")
	}
	w.check()
	if err := w.Delete(ctx, w.core, office, bob.ID, 0); err != nil {
		t.Error(err)
	}
	if _, err := w.Get(ctx, acme, bob.ID); !errors.Is(err, problem.ErrNotFound) || !w.free("robert@acme.example") {
		t.Errorf("after deletion: %v", err)
	}
	w.check()

	var got []string
	for _, r := range w.records(acme)[1:] {
		got = append(got, fmt.Sprint(r.Actor.Name, " ", r.Action, " ", r.Subject == Subject(ada.ID), " ", r.Details["changed"], " ", r.Details["sessionsEnded"]))
	}
	if d := cmp.Diff([]string{"intranet person.created true  ", "intranet person.created false  ", "intranet person.updated true mail 0", "Ada person.signedIn true  ",
		"intranet person.updated true name ", "intranet person.updated false mail 0", "intranet person.deleted false  0"}, got); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
}

func TestPersonValidate(t *testing.T) {
	valid := Person{Name: "Ada", Mail: "ada@acme.example", Roles: []tenant.Role{tenant.RoleAdmin}}
	for _, test := range []struct {
		name   string
		change func(*Person)
		want   []string
	}{
		{"valid", func(*Person) {}, nil},
		{"200 letters", func(p *Person) { p.Name = strings.Repeat("ü", 200) }, nil},
		{"right to left", func(p *Person) { p.Name = "עדה" }, nil},
		{"nothing", func(p *Person) { *p = Person{} }, []string{"name:length", "mail:address", "roles:missing"}},
		{"201 letters", func(p *Person) { p.Name = strings.Repeat("ü", 201) }, []string{"name:length"}},
		{"line break", func(p *Person) { p.Name = "A\nda" }, []string{"name:characters"}},
		{"not text", func(p *Person) { p.Name = "A\xff" }, []string{"name:characters"}},
		{"name in the address", func(p *Person) { p.Mail = "Ada <ada@acme.example>" }, []string{"mail:address"}},
		{"domain that is not ASCII", func(p *Person) { p.Mail = "ada@bücher.example" }, []string{"mail:address"}},
		{"role of a key", func(p *Person) { p.Roles = []tenant.Role{tenant.RoleKiosk, tenant.RolePlatform} }, []string{"roles:unknown", "roles:unknown"}},
		{"role twice", func(p *Person) { p.Roles = []tenant.Role{tenant.RoleAdmin, tenant.RoleAdmin} }, []string{"roles:repeated"}},
		{"no language", func(p *Person) { p.Language = "English!" }, []string{"language:unknown"}},
	} {
		p := valid
		test.change(&p)
		if d := cmp.Diff(test.want, objections(p.Validate())); d != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, d)
		}
	}
	// A domain is brought into the form that mail systems take.
	w := newWorld(t)
	p := must(w.Create(t.Context(), w.core, office, Person{Name: "Ada", Mail: "ada@bücher.example", Roles: valid.Roles}))(t)
	if p.Mail != "ada@xn--bcher-kva.example" {
		t.Errorf("kept as %s", p.Mail)
	}
}

// What takes the last administrator away is refused, whoever asks for it.
func TestLastAdministrator(t *testing.T) {
	takeAway := map[string]func(w *world, id string) error{
		"delete": func(w *world, id string) error { return w.Delete(w.Context(), w.core, office, id, 0) },
		"disable": func(w *world, id string) error {
			_, err := w.Update(w.Context(), w.core, office, id, 0, func(p *Person) { p.Disabled = true })
			return err
		},
		"demote": func(w *world, id string) error {
			_, err := w.Update(w.Context(), w.core, office, id, 0, func(p *Person) { p.Roles = []tenant.Role{tenant.RoleAuditor} })
			return err
		},
	}
	for name, take := range takeAway {
		w := newWorld(t)
		w.person("Helper", tenant.RoleHelpdesk)
		ada, bob := w.person("Ada", tenant.RoleAdmin, tenant.RoleOperator), w.person("Bob", tenant.RoleAdmin)
		if err := take(w, ada.ID); err != nil {
			t.Errorf("%s one of two: %v", name, err)
		}
		if err := take(w, bob.ID); !errors.Is(err, problem.ErrState) || !strings.Contains(fmt.Sprint(err), "last administrator") {
			t.Errorf("%s the last: %v", name, err)
		}
		w.check()

		// Two who do it to each other at the same time: one stays.
		w = newWorld(t)
		ada, bob = w.person("Ada", tenant.RoleAdmin), w.person("Bob", tenant.RoleAdmin)
		errs := racing(2, func(i int) error { return take(w, []string{ada.ID, bob.ID}[i]) })
		if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs...), problem.ErrState) {
			t.Errorf("%s each other: %v", name, errs)
		}
		w.check()
		if r := must(w.roster(t.Context(), acme))(t); len(r.admins) != 1 {
			t.Errorf("%s each other: administrators %q", name, r.admins)
		}
	}
	// Who comes back administers again.
	w := newWorld(t)
	ada, bob := w.person("Ada", tenant.RoleAdmin), w.person("Bob", tenant.RoleAdmin)
	for _, disabled := range []bool{true, false} {
		must(w.Update(t.Context(), w.core, office, ada.ID, 0, func(p *Person) { p.Disabled = disabled }))(t)
	}
	if err := w.Delete(t.Context(), w.core, office, bob.ID, 0); err != nil {
		t.Error(err)
	}
	w.check()
}

func TestMostPeople(t *testing.T) {
	w := newWorld(t)
	r := roster{tenant: acme, count: Most - 1}
	if err := w.Table.Write(t.Context(), r.op()); err != nil {
		t.Fatal(err)
	}
	errs := racing(3, func(i int) error {
		_, err := w.Create(t.Context(), w.core, office, Person{Name: "A", Mail: fmt.Sprintf("a%d@acme.example", i), Roles: []tenant.Role{tenant.RoleAuditor}})
		return err
	})
	refused := 0
	for _, err := range errs {
		if errors.Is(err, problem.ErrState) && strings.Contains(err.Error(), "1000 people") {
			refused++
		}
	}
	if refused != 2 {
		t.Errorf("with room for one: %v", errs)
	}
}

// What a person may do ends at once where it must, and goes on where it may.
func TestChangesReachSessions(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(w *world, id string) error
		stays  bool
	}{
		{"name", update(func(p *Person) { p.Name = "Ada King" }), true},
		{"language", update(func(p *Person) { p.Language = "de" }), true},
		{"nothing", update(func(*Person) {}), true},
		{"roles", update(func(p *Person) { p.Roles = []tenant.Role{tenant.RoleHelpdesk} }), false},
		{"more roles", update(func(p *Person) { p.Roles = append(p.Roles, tenant.RoleAuditor) }), false},
		{"mail", update(func(p *Person) { p.Mail = "ada@other.example" }), false},
		{"disabled", update(func(p *Person) { p.Disabled = true }), false},
		{"disabled and back", func(w *world, id string) error {
			return errors.Join(update(func(p *Person) { p.Disabled = true })(w, id), update(func(p *Person) { p.Disabled = false })(w, id))
		}, false},
		{"all ended", func(w *world, id string) error { return w.EndAll(w.Context(), w.core, office, id) }, false},
		{"deleted", func(w *world, id string) error { return w.Delete(w.Context(), w.core, office, id, 0) }, false},
	} {
		w := newWorld(t)
		w.person("Admin", tenant.RoleAdmin)
		ada, bob := w.person("Ada", tenant.RoleOperator), w.person("Bob", tenant.RoleOperator)
		_, first := w.enter(ada)
		_, second := w.enter(ada)
		_, others := w.enter(bob)
		begun := w.begin(ada.Mail)
		code, link := w.mailed(begun.ID)
		given, _, err := w.Link(t.Context(), w.core, office, ada.ID, MaxLinkLife)
		if err != nil {
			t.Fatal(err)
		}
		if err := test.change(w, ada.ID); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		w.check()
		var wantSession, wantSignIn error
		if !test.stays {
			wantSession, wantSignIn = ErrNoSession, ErrUnknownSignIn
		}
		for i, entered := range []struct {
			cookie secret.Text
			want   error
		}{{first, wantSession}, {second, wantSession}, {others, nil}} {
			s, _, err := w.Authenticate(t.Context(), entered.cookie)
			if !errors.Is(err, entered.want) {
				t.Errorf("%s: session %d: %v, want %v", test.name, i, err, entered.want)
			}
			if p := w.find(ada.ID); i < 2 && test.stays && (s.Name != p.Name || s.Language != p.Language) {
				t.Errorf("%s: session %d is of %q in %q", test.name, i, s.Name, s.Language)
			}
		}
		if _, _, err := w.ByLink(t.Context(), given, browser); !errors.Is(err, wantSignIn) {
			t.Errorf("%s: a link handed over before: %v, want %v", test.name, err, wantSignIn)
		}
		if _, _, err := w.ByCode(t.Context(), begun.Token, code, browser); !errors.Is(err, wantSignIn) {
			t.Errorf("%s: a code mailed before: %v, want %v", test.name, err, wantSignIn)
		}
		if _, _, err := w.ByLink(t.Context(), link, browser); err == nil {
			t.Errorf("%s: the link mailed before works", test.name)
		}
	}
}

// update is a change of a person.
func update(change func(*Person)) func(w *world, id string) error {
	return func(w *world, id string) error {
		_, err := w.Update(w.Context(), w.core, office, id, 0, change)
		return err
	}
}

// find returns a person, the zero one if there is none.
func (w *world) find(id string) Person {
	w.Helper()
	p, err := w.Get(w.Context(), w.core.Tenant.ID, id)
	if err != nil && !errors.Is(err, problem.ErrNotFound) {
		w.Fatal(err)
	}
	return p
}

// A sign-in and what takes it away at the same time: no session is left that must not be.
func TestSignInAgainstChange(t *testing.T) {
	for name, change := range map[string]func(w *world, id string) error{
		"disable": update(func(p *Person) { p.Disabled = true }),
		"demote":  update(func(p *Person) { p.Roles = []tenant.Role{tenant.RoleAuditor} }),
		"rename":  update(func(p *Person) { p.Name = "Ada King" }),
		"delete":  func(w *world, id string) error { return w.Delete(w.Context(), w.core, office, id, 0) },
	} {
		w := newWorld(t)
		w.person("Admin", tenant.RoleAdmin)
		ada := w.person("Ada", tenant.RoleOperator)
		errs := racing(4, func(i int) error {
			if i == 0 {
				return change(w, ada.ID)
			}
			_, _, err := w.SignIn(t.Context(), w.core, ada.ID, ByOIDC, browser)
			return err
		})
		if errs[0] != nil {
			t.Errorf("%s: %v", name, errs[0])
		}
		w.check()
	}
}

// Another tenant's things are as unknown as those that nobody has.
func TestWalls(t *testing.T) {
	w := newWorld(t)
	other := w.open("other")
	ctx := t.Context()
	ada := w.person("Ada", tenant.RoleAdmin)
	w.person("Bob", tenant.RoleAdmin)
	s, cookie := w.enter(ada)
	begun := w.begin(ada.Mail)
	code, link := w.mailed(begun.ID)
	must(w.Create(ctx, other, office, Person{Name: "Ada", Mail: ada.Mail, Roles: []tenant.Role{tenant.RoleAdmin}}))(t)
	before := w.audited(acme)

	for name, err := range map[string]error{
		"get":      second(w.Get(ctx, "other", ada.ID)),
		"update":   second(w.Update(ctx, other, office, ada.ID, 0, func(p *Person) { p.Name = "Eve" })),
		"delete":   w.Delete(ctx, other, office, ada.ID, 0),
		"end":      w.End(ctx, other, office, ada.ID, s.ID),
		"end all":  w.EndAll(ctx, other, office, ada.ID),
		"link":     third(w.Link(ctx, other, office, ada.ID, time.Hour)),
		"sign in":  third(w.SignIn(ctx, other, ada.ID, ByOIDC, browser)),
		"by mail":  second(w.ByMail(ctx, "none", ada.Mail)),
		"end none": w.End(ctx, w.core, office, ada.ID, "01J8ZC9Q6Y0V4T5W3X2R1N0M9K"),
	} {
		if !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if sessions := must(w.Sessions(ctx, "other"))(t); len(sessions) != 0 {
		t.Errorf("sessions of the other tenant: %+v", sessions)
	}
	move := func(text secret.Text) secret.Text {
		return secret.New(strings.Replace(text.Reveal(), "_acme_", "_other_", 1))
	}
	for name, err := range map[string]error{
		"cookie": third(w.Authenticate(ctx, move(cookie))),
		"code":   third(w.ByCode(ctx, move(begun.Token), code, browser)),
		"link":   third(w.ByLink(ctx, move(link), browser)),
		"peek":   second(w.Peek(ctx, move(link))),
	} {
		if want := map[bool]error{true: ErrNoSession, false: ErrUnknownSignIn}[name == "cookie"]; !errors.Is(err, want) {
			t.Errorf("%s of another tenant: %v", name, err)
		}
	}
	if d := cmp.Diff(before, w.audited(acme)); d != "" {
		t.Errorf("it shows with whom it was tried (-before +after):\n%s", d)
	}
	if _, _, err := w.ByCode(ctx, begun.Token, code, browser); err != nil {
		t.Errorf("the code afterwards: %v", err)
	}
	w.check()
}

func second[A any](_ A, err error) error        { return err }
func third[A, B any](_ A, _ B, err error) error { return err }

// Whatever call of an operation fails, and whether it took effect or not, nothing is left half
// done; and it can be repeated.
func TestFaults(t *testing.T) {
	type made struct {
		ada, bob    Person
		session     Session
		cookie      secret.Text
		token, code secret.Text
		link        secret.Text
	}
	for _, op := range []struct {
		name string
		run  func(w *world, ps *People, m *made) error
		// done tells what has come of it once it succeeded, here or by a call that failed but took effect.
		done func(w *world, m made) bool
	}{
		{"create", func(w *world, ps *People, m *made) error {
			_, err := ps.Create(w.Context(), w.core, office, Person{Name: "Eve", Mail: "eve@acme.example", Roles: []tenant.Role{tenant.RoleAdmin}})
			if errors.Is(err, ErrMailTaken) { // it was done before
				return nil
			}
			return err
		}, func(w *world, m made) bool { return !w.free("eve@acme.example") }},
		{"rename", func(w *world, ps *People, m *made) error {
			_, err := ps.Update(w.Context(), w.core, office, m.ada.ID, 0, func(p *Person) { p.Name = "Ada King" })
			return err
		}, func(w *world, m made) bool { return w.find(m.ada.ID).Name == "Ada King" }},
		{"demote and move", func(w *world, ps *People, m *made) error {
			_, err := ps.Update(w.Context(), w.core, office, m.ada.ID, 0, func(p *Person) { p.Roles, p.Mail = []tenant.Role{tenant.RoleHelpdesk}, "ada@other.example" })
			return err
		}, func(w *world, m made) bool { return w.find(m.ada.ID).Mail == "ada@other.example" && w.free(m.ada.Mail) }},
		{"delete", func(w *world, ps *People, m *made) error {
			err := ps.Delete(w.Context(), w.core, office, m.ada.ID, 0)
			if errors.Is(err, problem.ErrNotFound) {
				return nil
			}
			return err
		}, func(w *world, m made) bool { return w.find(m.ada.ID).ID == "" }},
		{"end all", func(w *world, ps *People, m *made) error {
			return ps.EndAll(w.Context(), w.core, office, m.ada.ID)
		}, func(w *world, m made) bool { return len(must(w.SessionsOf(w.Context(), acme, m.ada.ID))(w)) == 0 }},
		{"sign out", func(w *world, ps *People, m *made) error {
			return ps.SignOut(w.Context(), m.session)
		}, func(w *world, m made) bool {
			return errors.Is(third(w.Authenticate(w.Context(), m.cookie)), ErrNoSession)
		}},
		{"begin", func(w *world, ps *People, m *made) error {
			begun, err := ps.Begin(w.Context(), acme, m.bob.Mail, client)
			if err == nil {
				m.token = begun.Token
				m.code, m.link = w.mailed(begun.ID)
			}
			return err
		}, func(w *world, m made) bool { return third(w.ByLink(w.Context(), m.link, browser)) == nil }},
		{"by code", func(w *world, ps *People, m *made) error {
			s, cookie, err := ps.ByCode(w.Context(), m.token, m.code, browser)
			if errors.Is(err, ErrUsed) {
				return nil
			}
			m.session, m.cookie = s, cookie
			return err
		}, func(w *world, m made) bool {
			return errors.Is(second(w.Peek(w.Context(), m.link)), ErrUsed) && len(must(w.SessionsOf(w.Context(), acme, m.ada.ID))(w)) == 2
		}},
		{"wrong code", func(w *world, ps *People, m *made) error {
			var wrongCode *CodeError
			if err := third(ps.ByCode(w.Context(), m.token, wrong(m.code), browser)); !errors.As(err, &wrongCode) {
				return err
			}
			return nil
		}, func(w *world, m made) bool { return second(w.Peek(w.Context(), m.link)) == nil }},
		{"link", func(w *world, ps *People, m *made) error {
			link, _, err := ps.Link(w.Context(), w.core, office, m.bob.ID, time.Hour)
			m.link = link
			return err
		}, func(w *world, m made) bool { return third(w.ByLink(w.Context(), m.link, browser)) == nil }},
		{"authenticate", func(w *world, ps *People, m *made) error {
			w.pass(2 * time.Minute)
			return third(ps.Authenticate(w.Context(), m.cookie))
		}, func(w *world, m made) bool { return true }},
		{"begin to confirm", func(w *world, ps *People, m *made) error {
			return ps.BeginConfirm(w.Context(), w.core, m.session)
		}, func(w *world, m made) bool {
			code, _ := w.mailed("confirm-code")
			return second(w.ConfirmByCode(w.Context(), w.core, m.session, code)) == nil
		}},
	} {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			for _, after := range []bool{false, true} {
				for n := 1; ; n++ {
					w := newWorld(t)
					w.person("Admin", tenant.RoleAdmin)
					m := made{ada: w.person("Ada", tenant.RoleAdmin), bob: w.person("Bob", tenant.RoleAuditor)}
					m.session, m.cookie = w.enter(m.ada)
					begun := w.begin(m.ada.Mail)
					m.token = begun.Token
					m.code, m.link = w.mailed(begun.ID)
					faulty := tabletest.Fail(w.table, n, after)
					err := op.run(w, w.on(faulty), &m)
					over := faulty.Calls() < n
					if over && err != nil {
						t.Errorf("%s without a fault: %v", op.name, err)
					}
					if err != nil && !errors.Is(err, tabletest.ErrFault) {
						t.Errorf("%s, call %d (after %v): %v", op.name, n, after, err)
					}
					w.check()
					if err != nil {
						if err := op.run(w, w.People, &m); err != nil {
							t.Errorf("%s again after call %d (after %v) failed: %v", op.name, n, after, err)
						}
						w.check()
					}
					if !op.done(w, m) {
						t.Errorf("%s with call %d (after %v) failed: it has not come to what it should", op.name, n, after)
					}
					if over {
						break
					}
				}
			}
		})
	}
}
