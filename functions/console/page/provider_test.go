package page_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/infra/testserver/browser"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/federation"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
)

const clientSecret = "the-client's-secret-7301"

// accounts are those at the provider.
var accounts = map[string]testserver.Account{
	"ada":     {"email": "ada.admin@acme.example", "email_verified": true, "name": "Ada Admin", "groups": []string{"staff", "it-admins"}},
	"newt":    {"email": "newt@acme.example", "email_verified": true, "name": "Newt New", "groups": []string{"desk"}},
	"guest":   {"email": "guest@acme.example", "email_verified": true, "name": "Guest", "groups": []string{"guests"}},
	"mallory": {"email": "ada.admin@acme.example", "email_verified": false, "name": "Mallory", "groups": []string{"it-admins"}},
	"twin":    {"email": "ada.admin@acme.example", "email_verified": true, "name": "Twin", "groups": []string{"it-admins"}},
}

// withProvider is an installation whose tenant acme has a provider, a process of its own. Its
// clock is right: the provider's is.
func withProvider(t *testing.T) (*fixture, federation.Provider) {
	t.Helper()
	f := newFixture(t, func(p *wiring.Parts) { p.ProvidersAnywhere = true })
	f.clock.advance(-time.Until(f.clock.Now()))
	f.Federation.BaseURL = f.url
	issuer, stop, err := testserver.Provider("pinward", clientSecret, f.Federation.RedirectURI(), accounts)
	testserver.Need(t, err)
	t.Cleanup(stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(f.log.String())
		}
	})
	p, err := f.Federation.Put(t.Context(), f.core(acme), platform, federation.Provider{Issuer: issuer, ClientID: "pinward", Secret: secret.New(clientSecret),
		Scopes: []string{"email", "profile", "groups"}, RoleClaim: "groups",
		Roles: map[tenant.Role][]string{tenant.RoleAdmin: {"it-admins"}, tenant.RoleHelpdesk: {"desk"}}, Create: true, On: true})
	must(t, err)
	return f, p
}

// records are the tenant's audit records of an action, the newest first.
func (f *fixture) records(action string) (all []audit.Record) {
	f.Helper()
	page, _, err := audit.Day(f.Context(), f.Table, acme, f.clock.Now(), "", 200)
	must(f, err)
	for _, r := range page {
		if r.Action == action {
			all = append(all, r)
		}
	}
	return all
}

func signInAtProvider(b *browser.Page, f *fixture, account string) {
	b.Open(f.url + "/console/sign-in?to=/console/users")
	b.Fill("Organisation", "acme")
	b.Click("Go to my organisation's sign-in")
	b.See("Sign in at the provider")
	b.Fill("Account", account)
	b.Click("Sign in")
}

// TestSignInAtProvider signs people in at a provider that we did not write, in a browser.
func TestSignInAtProvider(t *testing.T) {
	browser.Need(t)
	f, p := withProvider(t)
	ada := f.person(acme, "Ada Admin", tenant.RoleAdmin, tenant.RoleAuditor)
	f.person(acme, "Other Admin", tenant.RoleAdmin)

	b := browser.New(t)
	signInAtProvider(b, f, "ada")
	b.See("Users", "Ada Admin")
	now, err := f.People.Get(t.Context(), acme, ada.ID)
	must(t, err)
	if len(now.Roles) != 1 || now.Roles[0] != tenant.RoleAdmin {
		t.Errorf("her roles are %v, not those of the mapping", now.Roles)
	}

	for _, x := range []struct{ account, says string }{
		{"mallory", "does not vouch for a mail address"},
		{"twin", "signs in here with another account"},
		{"guest", "in none of the groups"},
	} {
		b := browser.New(t)
		signInAtProvider(b, f, x.account)
		b.See("You are not signed in", x.says)
	}

	b = browser.New(t)
	signInAtProvider(b, f, "newt")
	b.See("Users", "Newt New")
	newt, err := f.People.ByMail(t.Context(), acme, "newt@acme.example")
	must(t, err)
	if len(newt.Roles) != 1 || newt.Roles[0] != tenant.RoleHelpdesk {
		t.Errorf("Newt has %v", newt.Roles)
	}

	b = browser.New(t)
	b.Open(f.url + "/console/sign-in")
	b.Axe()
	b.Fill("Organisation", "acme")
	b.Click("Go to my organisation's sign-in")
	b.See("Sign in at the provider")
	b.Click("Cancel")
	b.See("cancelled or refused at your organisation")
	b.Axe()

	p.Create = false
	_, err = f.Federation.Put(t.Context(), f.core(acme), platform, p)
	must(t, err)
	must(t, f.People.Delete(t.Context(), f.core(acme), platform, newt.ID, 0))
	b = browser.New(t)
	signInAtProvider(b, f, "newt")
	b.See("Nobody with your mail address is known here")

	for _, told := range []string{clientSecret, "code=", "state="} {
		if strings.Contains(f.log.String(), told) {
			t.Errorf("%q is in the log", told)
		}
	}
}

// TestConfirmAtProvider: a sensitive act asks again, and the provider is one of the ways.
func TestConfirmAtProvider(t *testing.T) {
	browser.Need(t)
	f, _ := withProvider(t)
	f.person(acme, "Ada Admin", tenant.RoleAdmin)
	f.clock.advance(-person.FreshFor - time.Minute) // she signs in a while ago, by our clock
	b := browser.New(t)
	signInAtProvider(b, f, "ada")
	b.See("Users")
	f.clock.advance(person.FreshFor + time.Minute)
	again := func() {
		b.Open(f.url + "/console/settings/sign-in")
		b.Fill("Scopes", "email profile groups")
		b.Click("Save the sign-in")
	}
	b.Open(f.url + "/console/settings/sign-in")
	b.Axe()
	again()
	b.See("Show that it is you", "A code has been mailed")
	b.Axe()
	b.Click("I have done so: go on")
	b.See("Show that it is you") // she has not
	b.Eval(`document.querySelector("form[target]").target = ""`, nil)
	b.Click("Show it with my organisation's account")
	b.See("Sign in at the provider") // though she is signed in there
	b.Fill("Account", "newt")
	b.Click("Sign in")
	b.See("You signed in there as somebody else")
	again()
	b.See("Show that it is you")
	b.Eval(`document.querySelector("form[target]").target = ""`, nil)
	b.Click("Show it with my organisation's account")
	b.See("Sign in at the provider")
	b.Fill("Account", "ada")
	b.Click("Sign in")
	b.See("That was you")
	b.Axe()
	again()
	b.See("Saved")
}

func TestProviderSettings(t *testing.T) {
	f := newFixture(t, func(p *wiring.Parts) { p.ProvidersAnywhere = true })
	const at = "/console/settings/sign-in"
	c := f.signedIn(tenant.RoleAdmin)
	c.get(at).want(http.StatusOK).has("https://console.example.org/console/sign-in/oidc").
		submit(at, "issuer", "https://login.acme.example/?a=b", "clientId", "", "create", "on").want(http.StatusUnprocessableEntity).
		has("no query", "Client id: must be 1 to 255 bytes", "if the provider has given none", "who is created").
		submit(at, "issuer", `https://login.acme.example/"><x-hostile>`, "clientId", "pin", "secret.clientSecret", clientSecret, "roleClaim", "groups", "roles.admin", "it\n it2 \n", "on", "on").want(http.StatusOK).
		has("Saved").hasNot(clientSecret, "<x-hostile>")
	p, err := f.Federation.Get(t.Context(), acme)
	must(t, err)
	if !p.On || !p.SecretSet || !p.Create || strings.Join(p.Roles[tenant.RoleAdmin], ",") != "it,it2" || strings.Join(p.Scopes, " ") != "profile email" {
		t.Errorf("%+v", p)
	}
	// Two administrators change it: the second sees what the first has made of it.
	first, second := c.get(at), c.get(at)
	first.submit(at, "roles.operator", "desk").want(http.StatusOK).has("Saved")
	second.submit(at, "roles.auditor", "audit").want(http.StatusConflict).has("changed this meanwhile", "desk", "audit").
		submit(at).want(http.StatusOK).has("Saved")
	// The secret goes to nobody else.
	c.get(at).submit(at, "issuer", "https://evil.example").want(http.StatusUnprocessableEntity).has("must be given again")
	// A test says what is wrong.
	fields := c.get(at).form(at)
	fields.Set("issuer", "http://127.0.0.1:1")
	c.post(at+"/test", fields).want(http.StatusOK).has("cannot be reached")
	f.signedIn(tenant.RoleOperator).get(at).want(http.StatusNotFound)
	c.get(at + "/delete").want(http.StatusOK).has("Nobody will be able to sign in").submit(at + "/delete").want(http.StatusOK).has("any more")
	if got := f.records("signInProvider.changed"); len(got) != 3 {
		t.Errorf("audit %+v", got)
	}
}

// TestSignInNotSetUp: an organisation that has no provider is told from none that there is by
// nothing.
func TestSignInNotSetUp(t *testing.T) {
	f := newFixture(t)
	want := f.client().post("/console/sign-in/oidc", url.Values{"organisation": {"acme"}}).want(http.StatusForbidden).has("has not set that up")
	if got := f.client().post("/console/sign-in/oidc", url.Values{"organisation": {"nowhere"}}); got.body != want.body || got.status != want.status {
		t.Errorf("%d %s", got.status, got.text())
	}
	f.client().post("/console/sign-in/oidc", url.Values{"organisation": {"No Such!"}}).want(http.StatusUnprocessableEntity)
	f.client().post("/console/sign-in/oidc", url.Values{}).want(http.StatusUnprocessableEntity)
	f.client().get("/console/sign-in/oidc?code=x&state=y").want(http.StatusForbidden).has("begun in another browser")
}

// TestReturnIsOnesOwn: what a provider sends back counts once, in the browser that went there,
// and for the tenant it was for.
func TestReturnIsOnesOwn(t *testing.T) {
	f, p := withProvider(t)
	f.person(acme, "Ada Admin", tenant.RoleAdmin)
	p.Version, p.Secret, p.SecretSet = 0, secret.New(clientSecret), false
	_, err := f.Federation.Put(t.Context(), f.core(other), platform, p)
	must(t, err)
	state := func(c *client, organisation string) string {
		page := c.post("/console/sign-in/oidc", url.Values{"organisation": {organisation}}).want(http.StatusOK)
		links := find(page.root, func(n *html.Node) bool { return n.Data == "a" && strings.HasPrefix(attribute(n, "href"), p.Issuer) })
		u, err := url.Parse(attribute(links[0], "href"))
		must(t, err)
		q := u.Query()
		if q.Get("code_challenge_method") != "S256" || q.Get("nonce") == "" || q.Get("response_type") != "code" || strings.Contains(u.String(), clientSecret) {
			t.Errorf("asked for %v", q)
		}
		return q.Get("state")
	}
	mine, theirs := f.client(), f.client()
	s, s2 := state(mine, "acme"), state(theirs, "other")
	back := func(s string) string { return "/console/sign-in/oidc?error=access_denied&state=" + url.QueryEscape(s) }
	const refused, right = "begun in another browser", "cancelled or refused"
	theirs2 := &client{f: f, cookies: map[string]string{}, header: http.Header{}}
	for name, value := range mine.cookies {
		theirs2.cookies[name] = value
	}
	f.client().get(back(s)).want(http.StatusForbidden).has(refused)
	theirs.get(back(s)).want(http.StatusForbidden).has(refused) // and its own is dropped
	mine.get(back(s)).want(http.StatusForbidden).has(right)
	mine.get(back(s)).want(http.StatusForbidden).has(refused)
	theirs2.get(back(s)).want(http.StatusForbidden).has(refused) // the cookie, copied, is of no use
	late := f.client()
	s3 := state(late, "acme")
	f.clock.advance(federation.Life)
	late.get(back(s3)).want(http.StatusForbidden).has(refused)
	_ = s2
}
