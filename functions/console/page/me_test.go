package page_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// signedInUser is the browser of a user who has signed in by a mailed code.
func (f *fixture) signedInUser(u user.User) *client {
	f.Helper()
	c := f.client()
	p, code := c.begin(string(acme), u.Profile.Mail, "")
	p.submit("/console/sign-in/code", "secret.code", code).want(http.StatusOK).has("My own page")
	return c
}

func (f *fixture) pinOf(u user.User) user.PIN {
	f.Helper()
	now, err := f.Users.Get(f.Context(), acme, u.ID)
	must(f, err)
	return now.PIN
}

func (f *fixture) verifies(u user.User, pin string) bool {
	f.Helper()
	r, err := f.Users.Verify(f.Context(), f.core(acme), platform, user.Ref{ID: u.ID}, secret.New(pin))
	must(f, err)
	return r.Right
}

// A user sees to their own PIN, and to nothing else.
func TestUserForThemselves(t *testing.T) {
	f := newFixture(t)
	u := f.user("ada", goodPIN)
	c := f.signedInUser(u)
	p := c.get("/console").want(http.StatusOK)
	if p.path != "/console/me" {
		t.Fatalf("landed at %s", p.path)
	}
	p.submit("/console/me/pin", "secret.pin", "1234", "secret.again", "1234").want(http.StatusUnprocessableEntity).has("Please mend this", "PIN").hasNot(`"1234"`)
	p.submit("/console/me/pin", "secret.pin", "86420975", "secret.again", "86420974").want(http.StatusUnprocessableEntity).has("is not the same as the new PIN")
	if !f.verifies(u, goodPIN) {
		t.Error("the PIN has changed")
	}
	p.submit("/console/me/pin", "secret.pin", "86420975", "secret.again", "86420975").want(http.StatusOK).has("Your new PIN is good from now on")
	if by := f.pinOf(u).By; !f.verifies(u, "86420975") || by != (audit.Actor{Kind: audit.Self, ID: u.ID}) {
		t.Errorf("set by %v", by)
	}
	p.submit("/console/me/issue").want(http.StatusOK).has("generated and mailed")
	p.submit("/console/me/user", "displayName", "Countess", "phone", "123", "username", "root", "groups", "admins").want(http.StatusOK).has("Saved")
	now, err := f.Users.Get(t.Context(), acme, u.ID)
	must(t, err)
	if got := now.Profile; got.DisplayName != "Countess" || got.Phone != "123" || got.Username != "ada" || got.Groups != nil {
		t.Errorf("profile %+v", got)
	}
	for _, path := range []string{"/console/users", "/console/users/" + u.ID, "/console/audit", "/console/users/import"} {
		c.get(path).want(http.StatusNotFound)
	}
	c.post("/console/me/person", nil).want(http.StatusNotFound)
	if strings.Contains(f.log.String(), "ada@example.org") || strings.Contains(f.log.String(), "86420975") {
		t.Error("the log tells of the user")
	}
}

// The session of a user ends with what lets them in.
func TestUserIsSignedOut(t *testing.T) {
	for name, end := range map[string]func(f *fixture, u user.User){
		"idle": func(f *fixture, _ user.User) { f.clock.advance(31 * time.Minute) },
		"deleted": func(f *fixture, u user.User) {
			must(f, f.Users.Delete(f.Context(), f.core(acme), platform, u.ID))
		},
		"another address": func(f *fixture, u user.User) {
			_, err := f.Users.Update(f.Context(), f.core(acme), platform, u.ID, 0, func(p *user.Profile) { p.Mail = "new@example.org" }, nil)
			must(f, err)
		},
		"sign out everywhere": func(f *fixture, u user.User) {
			f.clock.advance(time.Second) // its mail is the newer one
			f.signedInUser(u).get("/console/me").submit("/console/me/sign-out-everywhere").has("signed out everywhere")
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			u := f.user("ada", goodPIN)
			c := f.signedInUser(u)
			c.get("/console/me").want(http.StatusOK).has("My PIN")
			end(f, u)
			c.get("/console/me").has("Mail me a code").hasNot("My PIN")
		})
	}
}

// Nobody learns whether an address is a user's, and one that is not one user's lets nobody in.
func TestUserSignInTellsNothing(t *testing.T) {
	f := newFixture(t)
	u := f.user("ada")
	twin := f.user("twin")
	for _, name := range []string{"twin2"} {
		_, err := f.Users.Create(t.Context(), f.core(acme), platform, user.Profile{Username: name, Mail: twin.Profile.Mail}, nil)
		must(t, err)
	}
	want, code := f.client().begin("acme", u.Profile.Mail, "")
	if code == "" {
		t.Fatal("no code was mailed")
	}
	for _, mail := range []string{twin.Profile.Mail, "nobody@example.org"} {
		p, got := f.client().begin("acme", mail, "")
		if p.body != want.body || got != "" {
			t.Errorf("%s: %q, %s", mail, got, p.text())
		}
	}
}

// A change of the address, as of the PIN, asks again after a while, and ends the session.
func TestUserChangesTheirAddress(t *testing.T) {
	f := newFixture(t)
	u := f.user("ada")
	c := f.signedInUser(u)
	f.clock.advance(20 * time.Minute)
	p := c.get("/console/me").submit("/console/me/user", "mail", "countess@example.org").want(http.StatusUnauthorized).has("Show that it is you")
	p.submit("/console/me/user", "secret.confirm", codeInMail.FindString(f.lastMail("ada@example.org"))).want(http.StatusOK).has("Your address is changed")
	c.get("/console/me").has("Mail me a code")
	if _, code := f.client().begin("acme", "countess@example.org", ""); code == "" {
		t.Error("the new address is not known")
	}
}

func TestPersonForThemselves(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleHelpdesk)
	c.header.Set("User-Agent", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0")
	elsewhere := f.signIn(acme, c.person)
	p := c.get("/console/me").want(http.StatusOK).has("Where I am signed in", "this one").hasNot("My PIN")
	p.submit("/console/me/person", "name", "").want(http.StatusUnprocessableEntity).has("Please mend this")
	p.submit("/console/me/person", "name", "Pat Neu", "language", "de").want(http.StatusOK).has("Gespeichert", "Meine Seite")
	if now, err := f.People.Get(t.Context(), acme, c.person.ID); err != nil || now.Name != "Pat Neu" || now.Language != "de" {
		t.Errorf("%+v, %v", now, err)
	}

	sessions, err := f.People.SessionsOf(t.Context(), acme, c.person.ID)
	must(t, err)
	if len(sessions) != 2 {
		t.Fatalf("%d sessions", len(sessions))
	}
	for _, s := range sessions {
		if p := c.get("/console/me"); p.path == "/console/me" {
			p.submit("/console/me/sessions/" + s.ID + "/end").want(http.StatusOK)
		} else {
			elsewhere.get("/console/me").submit("/console/me/sessions/" + s.ID + "/end").want(http.StatusOK)
		}
	}
	c.get("/console/me").hasNot("Meine Seite")
	elsewhere.get("/console/me").hasNot("Meine Seite")
	c.post("/console/me/pin", nil).hasNot("My PIN")
}
