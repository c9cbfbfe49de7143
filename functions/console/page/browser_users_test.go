package page_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pinward/pinward/infra/testserver/browser"
	"github.com/pinward/pinward/shared/tenant"
)

// Somebody adds a user with a PIN that the policy refuses, mends that, and changes the user
// while a colleague does.
func TestUsersInABrowser(t *testing.T) {
	browser.Need(t)
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	b := browser.New(t)
	f.signInBrowser(b, c)
	b.Click("Users")
	b.Click("Add a user")
	b.Fill("Username", "ada")
	b.Fill("Name", "Ada Lovelace")
	b.Fill("New PIN", "1234")
	b.Click("Add the user")
	b.See("Please mend this")
	if got := b.Value("Name"); got != "Ada Lovelace" {
		t.Errorf("the name is %q", got)
	}
	if got := b.Value("New PIN"); got != "" {
		t.Errorf("the PIN is there: %q", got)
	}
	b.Fill("New PIN", goodPIN)
	b.Click("Add the user")
	b.See("The user is added")
	u, err := f.Users.ByUsername(t.Context(), acme, "ada")
	must(t, err)
	if !f.verifies(u, goodPIN) {
		t.Error("the PIN is another one")
	}

	b.Click("Change")
	at := "/console/users/" + u.ID + "/edit"
	f.signedIn(tenant.RoleOperator).get(at).submit(at, "phone", "111")
	b.Fill("Phone", "222")
	b.Click("Save the user")
	b.See("Somebody else has changed this meanwhile")
	b.Click("Save the user")
	b.See("222")
}

// Somebody imports a file, having said wrongly how it is written, and without choosing it twice.
func TestImportInABrowser(t *testing.T) {
	browser.Need(t)
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	b := browser.New(t)
	f.signInBrowser(b, c)
	file := filepath.Join(t.TempDir(), "people.csv")
	must(t, os.WriteFile(file, []byte("username;displayName;pin\nada;Ada;"+goodPIN+"\nbob;Bob;1234\n"), 0o600))
	b.Click("Users")
	b.Click("Import a file")
	b.Upload("#part", file)
	b.Click("Check the file")
	b.See("Please mend this")
	b.Fill("Between the columns of CSV stands", "a semicolon")
	b.Click("Check the file")
	b.See("would be refused")
	b.Click("Import 1 row")
	b.See("were refused")
	b.See("finished")
	u, err := f.Users.ByUsername(t.Context(), acme, "ada")
	must(t, err)
	if !f.verifies(u, goodPIN) {
		t.Error("the PIN is another one")
	}
}

// A user changes their own PIN.
func TestOwnPINInABrowser(t *testing.T) {
	browser.Need(t)
	f := newFixture(t)
	u := f.user("ada", goodPIN)
	b := browser.New(t)
	b.Open(f.url + "/console")
	b.Fill("Organisation", "acme")
	b.Fill("Mail address", "ada@example.org")
	b.Click("Mail me a code")
	b.See("Look at your mail")
	b.Fill("Code", codeInMail.FindString(f.lastMail("ada@example.org")))
	b.Click("Sign in")
	b.See("My PIN")
	b.Axe()
	b.Fits()
	b.Fill("New PIN", "111111")
	b.Fill("The new PIN once more", "111111")
	b.Click("Change my PIN")
	b.See("Please mend this")
	b.Fill("New PIN", "86420975")
	b.Fill("The new PIN once more", "86420975")
	b.Click("Change my PIN")
	b.See("Your new PIN is good from now on")
	if !f.verifies(u, "86420975") {
		t.Error("the PIN is another one")
	}
}
