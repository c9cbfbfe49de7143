package page_test

import (
	"strings"
	"testing"

	"github.com/pinward/pinward/infra/testserver/browser"
	"github.com/pinward/pinward/shared/tenant"
)

// An administrator adds a person, with an address that another one has at first, and cannot
// take from themselves what nobody else has.
func TestPeopleInABrowser(t *testing.T) {
	browser.Need(t)
	f := newFixture(t)
	boss := f.person(acme, "Boss", tenant.RoleAdmin)
	b := browser.New(t)
	f.signInBrowser(b, f.signIn(acme, boss))
	b.Click("Settings")
	b.Click("People")
	b.Click("Add a person")
	b.Fill("Name", "Ada Lovelace")
	b.Fill("Mail address", boss.Mail)
	b.ClickOn("[name=roles][value=operator]")
	b.Click("Add the person")
	b.See("Please mend this", "is that of another person of the organisation already")
	if got := b.Value("Name"); got != "Ada Lovelace" {
		t.Errorf("the name is %q", got)
	}
	b.Fill("Mail address", "ada@acme.example")
	b.Click("Add the person")
	b.See("The person is added", "/console/sign-in?organisation=acme")
	b.Click("Make a sign-in link")
	b.See("Whoever opens it is signed in as this person")
	b.Axe()

	b.Click("Settings")
	b.Click("People")
	b.ClickOn("tr:last-child a")
	b.ClickOn("[name=roles][value=admin]")
	b.ClickOn("[name=roles][value=auditor]")
	b.Click("Save the person")
	b.See("This is the last administrator who can sign in")
	b.Axe()
}

// An auditor narrows the log down and takes what there is along; a day that is none is told.
func TestAuditInABrowser(t *testing.T) {
	browser.Need(t)
	f := newFixture(t)
	f.withPIN("ada", goodPIN, 24)
	b := browser.New(t)
	f.signInBrowser(b, f.signedIn(tenant.RoleAuditor))
	b.Click("Audit")
	b.See("User created", "Settings changed")
	b.Fill("About a", "user")
	b.Fill("Which one", "ada")
	b.Click("Show")
	b.See("User created")
	var file string
	b.Eval(`fetch([...document.querySelectorAll("a")].find(a => a.textContent.includes("as CSV")).href).then(r => r.text())`, &file)
	if want := "user.created"; !strings.Contains(file, want) || strings.Contains(file, "settings.changed") {
		t.Errorf("the file has %q", file)
	}
	b.Fill("Which one", "nobody at all")
	b.Click("Show")
	b.See("is not known here")
	b.Axe()
}
