package page_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// user makes a user with an address.
func (f *fixture) user(name string, pin ...string) user.User {
	f.Helper()
	var chosen *secret.Text
	if len(pin) > 0 {
		s := secret.New(pin[0])
		chosen = &s
	}
	u, err := f.Users.Create(f.Context(), f.core(acme), platform, user.Profile{Username: name, DisplayName: "Name of " + name, Mail: name + "@example.org"}, chosen)
	must(f, err)
	return u
}

const goodPIN = "73914628"

func TestUserIsAddedChangedAndDeleted(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	c.get("/console/users").want(http.StatusOK).has("There are no users yet")
	p := c.get("/console/users/new").submit("/console/users", "username", "ada", "displayName", "Ada <b>Lovelace</b>", "mail", "not an address", "groups", "nurses\n\nnight", "secret.pin", "1234")
	p.want(http.StatusUnprocessableEntity).has("Please mend this", "Mail address", "PIN").hasNot("1234", "<b>Lovelace")
	for _, link := range []string{`href="#mail"`, `href="#pin"`, `id="mail"`, `id="pin"`} { // a fault leads to its field
		if !strings.Contains(p.body, link) {
			t.Errorf("%s is not on the page", link)
		}
	}
	if got := p.form("/console/users"); got.Get("displayName") != "Ada <b>Lovelace</b>" || got.Get("mail") != "not an address" || got.Get("groups") != "nurses\nnight" || got.Get("secret.pin") != "" {
		t.Errorf("the form has %v", got)
	}
	p = p.submit("/console/users", "mail", "ada@example.org", "secret.pin", goodPIN).want(http.StatusOK).has("The user is added", "ada@example.org", "nurses, night", "User created")
	u, err := f.Users.ByUsername(t.Context(), acme, "ADA")
	must(t, err)
	at := "/console/users/" + u.ID
	if p.path != at+"?done=userCreated" || u.PIN.State(f.clock.Now()) != user.IsSet || u.PIN.By != c.person.Actor() {
		t.Errorf("at %s with %+v", p.path, u.PIN)
	}

	p.c.get(at+"/edit").submit(at+"/edit", "phone", "+49 30 1234").want(http.StatusOK).has("Saved", "+49 30 1234")
	c.get("/console/users?prefix=AD").has("ada@example.org", "set")
	c.get("/console/users?prefix=b").has("No username begins like that")
	if csv := c.get("/console/users?format=csv").want(http.StatusOK); !strings.Contains(csv.body, u.ID+",ada,Ada <b>Lovelace</b>,ada@example.org,,'+49 30 1234,,,nurses;night,set,") {
		t.Errorf("file: %s", csv.body)
	}

	c.get(at+"/delete-pin").has("cannot be undone").submit(at+"/delete-pin").want(http.StatusOK).has("The PIN is deleted", "none")
	c.get(at+"/delete").has("ada").submit(at+"/delete").want(http.StatusOK).has("The user is deleted", "There are no users yet")
	c.get(at).want(http.StatusNotFound)
	c.get("/console/users/nobody/edit").want(http.StatusNotFound)
}

// Each of two who change a user at the same time sees what the other has done, and nothing
// that either entered is lost.
func TestUserIsChangedByTwo(t *testing.T) {
	f := newFixture(t)
	u := f.user("ada", goodPIN)
	at := "/console/users/" + u.ID
	mine, theirs := f.signedIn(tenant.RoleAdmin).get(at+"/edit"), f.signedIn(tenant.RoleOperator).get(at+"/edit")
	theirs.submit(at+"/edit", "phone", "111", "staffNumber", "S1").want(http.StatusOK)

	p := mine.submit(at+"/edit", "phone", "222", "displayName", "Countess").want(http.StatusConflict).
		has("Somebody else has changed this meanwhile", "Phone111222what you entered", "Staff numberS1what is there now")
	if got := p.form(at + "/edit"); got.Get("phone") != "222" || got.Get("staffNumber") != "S1" || got.Get("displayName") != "Countess" {
		t.Errorf("the form has %v", got)
	}
	p.submit(at+"/edit").want(http.StatusOK).has("Saved", "222", "S1", "Countess")

	// What is no field of the form is nobody's conflict: here, that the PIN is to be changed.
	mine = mine.c.get(at + "/edit")
	_, err := f.Users.RequireChange(t.Context(), f.core(acme), platform, u.ID)
	must(t, err)
	mine.submit(at+"/edit", "phone", "333").want(http.StatusOK).has("Saved", "333")
}

func TestPINIsMailed(t *testing.T) {
	f := newFixture(t)
	u := f.user("ada", goodPIN)
	at := "/console/users/" + u.ID
	c := f.signedIn(tenant.RoleHelpdesk)
	p := c.get(at+"/issue").submit(at+"/issue", "length", "many", "validHours", "5").want(http.StatusUnprocessableEntity).has("is not a whole number")
	if got := p.form(at + "/issue"); got.Get("length") != "many" || got.Get("validHours") != "5" {
		t.Errorf("the form has %v", got)
	}
	p.submit(at+"/issue", "length", "9", "oneTime", "change").want(http.StatusOK).has("generated and mailed", "to be changed at its next use")
	if text := f.lastMail("ada@example.org"); text == "" {
		t.Error("nothing was mailed")
	}
	c.get(at + "/issue").submit(at + "/issue").want(http.StatusConflict).has("a moment ago")

	// An address that does not work is told, and may be tried again.
	now, err := f.Users.Get(t.Context(), acme, u.ID)
	must(t, err)
	f.clock.advance(time.Hour)
	_, err = f.Users.MailFailed(t.Context(), f.core(acme), platform, u.ID, now.Profile.Mail, f.clock.Now(), user.MailProblem{Kind: user.MailBounced, At: f.clock.Now(), Code: "smtp.550"})
	must(t, err)
	admin := f.signedIn(tenant.RoleAdmin)
	admin.get("/console/users?filter=undeliverable").has("does not work")
	admin.get(at + "/issue").submit(at + "/issue").want(http.StatusConflict).has("is known not to work")
	admin.get(at).has("came back", "smtp.550").submit(at + "/mail-again").want(http.StatusOK).has("Mails go to this address again").hasNot("smtp.550")
	admin.get("/console/users?filter=undeliverable").has("All mail addresses work")
}

func TestPINIsUnlocked(t *testing.T) {
	f := newFixture(t)
	u := f.user("ada", goodPIN)
	at := "/console/users/" + u.ID
	c := f.signedIn(tenant.RoleOperator)
	c.get(at).hasNot("/unlock")
	for range 20 {
		if r, _ := f.Users.Verify(t.Context(), f.core(acme), platform, user.Ref{ID: u.ID}, secret.New("00000000")); !r.LockedUntil.IsZero() {
			break
		}
	}
	p := c.get(at).has("Too many wrong guesses").submit(at + "/unlock").want(http.StatusOK).has("can try again at once")
	p.hasNot("Too many wrong guesses")
	p.submit(at+"/require-change").want(http.StatusOK).has("asked to change the PIN", "to be changed at its next use")
}

func TestUsersByExpiry(t *testing.T) {
	f := newFixture(t)
	core := f.core(acme)
	core.Policy.ExpirationHours = 24 * 10
	f.user("never", goodPIN)
	s := secret.New("86420975")
	_, err := f.Users.Create(t.Context(), core, platform, user.Profile{Username: "soon"}, &s)
	must(t, err)
	c := f.signedIn(tenant.RoleAdmin)
	c.get("/console/users?filter=expiring").has("soon").hasNot("never")
	c.get("/console/users?filter=expired").has("No PIN has expired")
	f.clock.advance(11 * 24 * time.Hour)
	c = f.signedIn(tenant.RoleAdmin)
	c.get("/console/users?filter=expired").has("soon", "expired").hasNot("never")
	if csv := c.get("/console/users?filter=expired&format=csv").body; !strings.Contains(csv, "soon") || strings.Contains(csv, "never") {
		t.Errorf("file: %s", csv)
	}
}

// What a role may not do is not on the page.
func TestUserPageByRole(t *testing.T) {
	f := newFixture(t)
	u := f.user("ada", goodPIN)
	at := "/console/users/" + u.ID
	for _, test := range []struct {
		role       tenant.Role
		shown, not []string
	}{
		{tenant.RoleAuditor, []string{"Latest events", "Smart cards"}, []string{at + "/edit", at + "/issue", at + "/delete", "/console/users/new"}},
		{tenant.RoleHelpdesk, []string{"Generate a PIN and mail it"}, []string{at + "/edit", at + "/delete", "Latest events", "/console/users/pins"}},
		{tenant.RoleOperator, []string{"Type a new PIN", "Delete the PIN"}, []string{at + `/delete"`, "Latest events"}},
		{tenant.RoleAdmin, []string{"Type a new PIN", "Delete this user", "Latest events"}, nil},
	} {
		c := f.signedIn(test.role)
		c.get(at).want(http.StatusOK).has(test.shown...).hasNot(test.not...)
		c.get("/console/users").want(http.StatusOK).hasNot(test.not...)
	}
}

// A user of another tenant is as unknown as nobody.
func TestUserOfOthers(t *testing.T) {
	f := newFixture(t)
	theirs, err := f.Users.Create(t.Context(), f.core(other), platform, user.Profile{Username: "eve"}, nil)
	must(t, err)
	c := f.signedIn(tenant.RoleAdmin)
	for _, path := range []string{"", "/edit", "/issue", "/delete", "/delete-pin"} {
		got, want := c.get("/console/users/"+theirs.ID+path), c.get("/console/users/01JZZZZZZZZZZZZZZZZZZZZZZZ"+path)
		if got.status != http.StatusNotFound || got.text() != want.text() {
			t.Errorf("%s: %d %s", path, got.status, got.text())
		}
	}
	for _, path := range []string{"/edit", "/issue", "/delete", "/delete-pin", "/unlock", "/mail-again", "/require-change"} {
		c.post("/console/users/"+theirs.ID+path, url.Values{"username": {"mallory"}}).want(http.StatusNotFound)
	}
	records, _, err := audit.Of(t.Context(), f.Table, other, user.Subject(theirs.ID), "", 10)
	must(t, err)
	if len(records) != 1 {
		t.Errorf("%d records", len(records))
	}
}
