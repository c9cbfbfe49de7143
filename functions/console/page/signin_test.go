package page_test

import (
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/tenant"
)

var codeInMail = regexp.MustCompile(`\b\d{4} \d{4}\b`)

// begin asks for a code and returns what the browser shows, and the code that was mailed.
func (c *client) begin(organisation, mail, to string) (*answer, string) {
	c.f.Helper()
	p := c.get("/console/sign-in?to="+url.QueryEscape(to)).submit("/console/sign-in", "organisation", organisation, "mail", mail).want(http.StatusOK)
	return p, codeInMail.FindString(c.f.lastMail(mail))
}

func TestSignInByCode(t *testing.T) {
	f := newFixture(t)
	admin := f.person(acme, "Ada Admin", tenant.RoleAdmin)
	c := f.client()
	c.get("/console/users?prefix=a").want(http.StatusOK).has("Sign in") // led to the sign-in page
	p, code := c.begin("acme", admin.Mail, "/console/users?prefix=a")
	if code == "" {
		t.Fatalf("no code in %q", f.lastMail(admin.Mail))
	}
	p.submit("/console/sign-in/code", "secret.code", "0000 0000").want(http.StatusUnprocessableEntity).has("Please mend this", "not the one that was mailed").
		submit("/console/sign-in/code", "secret.code", code).want(http.StatusOK).has("Users")
	if got := c.get("/console/users").want(http.StatusOK).header; !strings.Contains(got.Get("Content-Security-Policy"), "default-src 'none'") || got.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", got)
	}
	// The code was for one sign-in.
	f.client().post("/console/sign-in/code", url.Values{"secret.code": {code}}).want(http.StatusUnprocessableEntity)

	c.get("/console/users").submit("/console/sign-out").want(http.StatusOK).has("You are signed out")
	c.get("/console/users").has("Mail me a code")
}

// Whether an address, or an organisation, is known is told to nobody.
func TestSignInUnknown(t *testing.T) {
	f := newFixture(t)
	known := f.person(acme, "Ada Admin", tenant.RoleAdmin)
	gone := f.person(acme, "Gone", tenant.RoleOperator)
	_, err := f.People.Update(t.Context(), f.core(acme), platform, gone.ID, 0, func(p *person.Person) { p.Disabled = true })
	must(t, err)
	want, code := f.client().begin("acme", known.Mail, "")
	for _, who := range []struct{ organisation, mail string }{{"acme", "nobody@acme.example"}, {"nowhere", known.Mail}, {"other", known.Mail}, {"acme", gone.Mail}} {
		p, _ := f.client().begin(who.organisation, who.mail, "")
		if p.body != want.body || p.status != want.status || p.path != want.path {
			t.Errorf("%v: %s", who, p.text())
		}
		p.submit("/console/sign-in/code", "secret.code", code).want(http.StatusUnprocessableEntity).has("not the one that was mailed")
	}
	if m := f.lastMail(gone.Mail); m != "" {
		t.Errorf("mailed to who is disabled: %s", m)
	}
	// Too often is told, and alike.
	for _, mail := range []string{known.Mail, "nobody@acme.example"} {
		c := f.client()
		status := 0
		for range 8 {
			status = c.get("/console/sign-in").submit("/console/sign-in", "organisation", "acme", "mail", mail).status
		}
		if status != http.StatusTooManyRequests {
			t.Errorf("%s: %d after many", mail, status)
		}
	}
}

func TestSignInByLink(t *testing.T) {
	f := newFixture(t)
	p := f.person(acme, "Ada Admin", tenant.RoleAdmin)
	f.client().begin("acme", p.Mail, "")
	link := regexp.MustCompile(`https://console\.example\.org(/console/sign-in/link\?t=\S+)`).FindStringSubmatch(f.lastMail(p.Mail))
	if link == nil {
		t.Fatalf("no link in %q", f.lastMail(p.Mail))
	}
	c := f.client() // another browser than the one that asked
	c.get(link[1]).want(http.StatusOK)
	c.get(link[1]).want(http.StatusOK).submit("/console/sign-in/link").want(http.StatusOK)
	c.get("/console/users").want(http.StatusOK).has("Users")
	f.client().get(link[1]).want(http.StatusGone).has("has been used")
	f.client().post("/console/sign-in/link", url.Values{"secret.link": {"pwl_other_" + strings.Repeat("A", 60)}}).want(http.StatusGone)
	for _, where := range []string{f.log.String()} {
		if _, secret, _ := strings.Cut(link[1], "t="); strings.Contains(where, secret) {
			t.Error("the link is in the log")
		}
	}
}

// What was entered is there still when the session was not.
func TestSessionGoneInMidForm(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	f.clock.advance(13 * time.Hour)
	p := c.post("/console/users", url.Values{"username": {"Łucja <b>"}, "secret.pin": {"480263"}}).want(http.StatusUnauthorized)
	p.has("You are not signed in any more", "not kept").hasNot("480263", "<b>")
	form := p.form("/console/users")
	if got := form.Get("username"); got != "Łucja <b>" || form.Has("secret.pin") {
		t.Errorf("kept %v", form)
	}
	// A part of a page makes the whole of it ask.
	c.header.Set("HX-Request", "true")
	if got := c.get("/console/users").want(http.StatusUnauthorized).header.Get("HX-Refresh"); got != "true" {
		t.Errorf("HX-Refresh %q", got)
	}
}

func TestOnwardStaysHere(t *testing.T) {
	f := newFixture(t)
	for i, to := range []string{"https://evil.example/", "//evil.example/console", "/\\evil.example", "/v1/users", "/console/../v1", "/console/sign-in/link?t=x", "javascript:alert(1)"} {
		p := f.person(acme, "Ada "+strconv.Itoa(i), tenant.RoleAdmin)
		form, code := f.client().begin("acme", p.Mail, to)
		if got := form.submit("/console/sign-in/code", "secret.code", code); got.path != "/console" {
			t.Errorf("%s led to %s", to, got.path)
		}
	}
}

func TestOtherSitesFormsAreRefused(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	c.header.Set("Sec-Fetch-Site", "cross-site")
	c.post("/console/sign-out", url.Values{}).want(http.StatusForbidden).has("came from another site")
	c.header.Del("Sec-Fetch-Site")
	c.get("/console/users").want(http.StatusOK).has("Users")
}
