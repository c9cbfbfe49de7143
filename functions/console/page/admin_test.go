package page_test

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// withPIN makes a user whose PIN expires within a time.
func (f *fixture) withPIN(username, digits string, hours int) user.User {
	f.Helper()
	core := f.core(acme)
	policy := pin.Default()
	policy.ExpirationHours = hours
	core.Policy.Policy = policy
	given := secret.New(digits)
	u, err := f.Users.Create(f.Context(), core, platform, user.Profile{Username: username}, &given)
	must(f, err)
	return u
}

func TestOverview(t *testing.T) {
	var counting *tabletest.Counting
	f := newFixture(t, func(p *wiring.Parts) { counting = tabletest.Count(p.Table); p.Table = counting })
	admin, desk := f.signedIn(tenant.RoleAdmin), f.signedIn(tenant.RoleHelpdesk)
	admin.get("/console").want(http.StatusOK).has("First steps", "Done Say how mails are sent", "Decide what a PIN has to be like", "No PIN expires in the next 14 days.",
		"has never been at work", "0 of 0 online", "0 Users whose PIN expires within 7 days")
	desk.get("/console").want(http.StatusOK).has("0 Users whose PIN expires within 7 days").hasNot("First steps", "Reminders and expiry")

	f.withPIN("ada", "739164", 3*24)
	f.withPIN("bob", "846215", 3*24)
	f.withPIN("cy", "957326", 10*24)
	f.withPIN("dan", "168437", 1)
	f.clock.advance(90 * time.Minute)
	_, err := f.Sweep().Handle(t.Context(), nil)
	must(t, err)
	counting.Take()
	admin.get("/console")
	if got := counting.Take(); got.Gets > 4 || got.Queries > 50 {
		t.Errorf("the overview costs %+v", got)
	} else {
		t.Logf("the overview: %+v", got)
	}
	p := admin.get("/console").want(http.StatusOK).has("2 Users whose PIN expires within 7 days", "1 Users whose PIN has expired in the last 90 days", "at work just now", "Done Add users")
	bars := find(p.root, func(n *html.Node) bool { return n.Data == "rect" })
	if len(bars) != 2 || attribute(bars[0], "height") != "120" || attribute(bars[1], "height") != "60" {
		t.Errorf("%d bars, want one of 2 PINs and one of 1", len(bars))
	}
	p.has("7 March 203020", "14 March 203010") // the table tells the same
	if to := find(p.root, func(n *html.Node) bool { return attribute(n, "href") == "/console/users?filter=expiring" }); len(to) != 1 {
		t.Error("no link leads to those that expire")
	}
	f.clock.advance(tenant.SweepLate)
	admin.get("/console").has("has not been at work since 4 March 2030 at 11:30")
}

func TestAudit(t *testing.T) {
	f := newFixture(t)
	ada := f.withPIN("ada", "739164", 24)
	f.withPIN("bob", "846215", 24)
	_, err := f.Users.Verify(t.Context(), f.core(acme), platform, user.Ref{ID: ada.ID}, secret.New("111111"))
	must(t, err)
	_, err = f.People.Create(t.Context(), f.core(acme), platform, person.Person{Name: `Eve <b>"x"</b>`, Mail: "eve@acme.example", Roles: []tenant.Role{tenant.RoleAdmin}})
	must(t, err)
	auditor := f.signedIn(tenant.RoleAuditor)

	// records is what a person reads in the table of records.
	records := func(query string) string {
		t.Helper()
		p := auditor.get("/console/audit?" + query).want(http.StatusOK)
		var b strings.Builder
		for _, cell := range find(p.root, func(n *html.Node) bool { return n.Data == "th" || n.Data == "td" }) {
			for n := range cell.Descendants() {
				if n.Type == html.TextNode {
					b.WriteString(n.Data + " ")
				}
			}
			b.WriteString("| ")
		}
		if b.Len() == 0 {
			p.has("Nothing was found.")
		}
		return strings.Join(strings.Fields(b.String()), " ")
	}
	for _, c := range []struct {
		query    string
		has, not []string
	}{
		{"", []string{"User created", "PIN checked refused wrong PIN", "ada its history", "bob its history", "The installation's operators", "Settings changed", "the settings"}, nil},
		{"kind=user&about=ADA", []string{"User created", "PIN checked"}, []string{"bob", "Settings changed"}},
		{"kind=user&about=" + ada.ID, []string{"PIN checked"}, []string{"bob"}},
		{"subject=user%2F" + ada.ID, []string{"PIN checked"}, []string{"bob", "Settings changed"}},
		{"kind=user", []string{"ada", "bob"}, []string{"Settings changed"}},
		{"kind=settings", []string{"Settings changed"}, []string{"PIN checked"}},
		{"kind=person&about=EVE@acme.example", []string{`Eve <b>"x"</b>`, "Person who signs in added"}, []string{"Settings changed"}},
		{"reason=wrongPIN&outcome=refused", []string{"PIN checked refused wrong PIN"}, []string{"bob", "User created"}},
		{"action=person.created&by=platform", []string{"Person who signs in added", `Eve`}, []string{"ada", "Signed in |"}},
		{"by=" + auditor.person.Name, []string{"Signed in |"}, []string{"User created"}},
		{"by=nobody", nil, []string{"|"}},
		{"from=2030-01-01&to=2030-03-03", nil, []string{"|"}},
		{"from=2029-01-01&kind=user&about=ada", []string{"PIN checked"}, nil}, // about one thing, over any time
	} {
		got := records(strings.ReplaceAll(c.query, " ", "+"))
		for _, want := range c.has {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q is not among %s", c.query, want, got)
			}
		}
		for _, not := range c.not {
			if strings.Contains(got, not) {
				t.Errorf("%s: %q is among %s", c.query, not, got)
			}
		}
	}
	auditor.get("/console/audit").hasNot("<b>")

	for query, want := range map[string]string{
		"from=2030-13-01":               "is not a date such as 2030-01-31",
		"from=2030-03-05&to=2030-03-04": "is before the first day",
		"from=2029-01-01":               "is more than 92 days before the last one",
		"about=ada":                     "choose what it is that you look for",
		"kind=user&about=no+such":       "is not known here",
	} {
		p := auditor.get("/console/audit?" + query).want(http.StatusUnprocessableEntity).has(want)
		for name, values := range p.form("/console/audit") {
			if asked, _ := url.ParseQuery(query); asked.Get(name) != "" && asked.Get(name) != values[0] {
				t.Errorf("%s: %s is %q", query, name, values[0])
			}
		}
	}
	// The files have what the filter finds.
	file := auditor.get("/console/audit?kind=user&about=ada&format=csv")
	rows, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(file.body, "\ufeff"))).ReadAll()
	must(t, err)
	if len(rows) != 3 || rows[0][0] != "at" || rows[1][4] != "pin.verify" || rows[1][7] != "wrongPIN" || rows[1][5] != "user/"+ada.ID {
		t.Errorf("CSV: %q", rows)
	}
	file = auditor.get("/console/audit?kind=user&about=ada&format=json")
	var got struct {
		Records []struct{ Action, Subject, Reason string }
		More    bool
	}
	must(t, json.Unmarshal([]byte(file.body), &got))
	if len(got.Records) != 2 || got.More || got.Records[0].Reason != "wrongPIN" || got.Records[1].Action != "user.created" {
		t.Errorf("JSON: %+v", got)
	}
	if got := file.header.Get("Content-Disposition"); got != `attachment; filename="audit.json"` {
		t.Errorf("the JSON file is %q", got)
	}
}

// TestAuditGoesOn looks for what is rare among more records than are looked through at once.
func TestAuditGoesOn(t *testing.T) {
	f := newFixture(t)
	ada := f.withPIN("ada", "739164", 24*365)
	for i := range 2100 {
		must(t, f.Users.Unlock(t.Context(), f.core(acme), platform, ada.ID))
		if i%100 == 0 {
			f.clock.advance(time.Minute)
		}
	}
	auditor := f.signedIn(tenant.RoleAuditor)
	p := auditor.get("/console/audit?action=user.created").want(http.StatusOK).has("Nothing was found so far.", "This is what there is back to 4 March 2030")
	next := find(p.root, func(n *html.Node) bool { return attribute(n, "rel") == "next" })
	if len(next) != 1 {
		t.Fatal("there is no way to go on")
	}
	auditor.get("/console/audit"+attribute(next[0], "href")).want(http.StatusOK).has("User created", "ada").hasNot("Go on with")
	if file := auditor.get("/console/audit?action=user.created&format=csv"); strings.Count(file.body, "user.created") != 1 {
		t.Errorf("the file lacks it: %s", file.body)
	}
}

func TestSettings(t *testing.T) {
	f := newFixture(t)
	first, second := f.signedIn(tenant.RoleAdmin), f.signedIn(tenant.RoleAdmin)
	const path = "/console/settings"
	form := first.get(path).want(http.StatusOK)
	form.submit(path, "displayName", "Acme Ltd", "quietHours.from", "20:00", "quietHours.to", "07:15", "digest.recipients", "it@acme.example\r\nboss@acme.example", "digest.hour", "6").
		want(http.StatusOK).has("The settings are saved.")
	s := f.core(acme).Tenant.Settings
	if s.DisplayName != "Acme Ltd" || s.Quiet.From != 20*time.Hour || s.Quiet.To != 7*time.Hour+15*time.Minute || len(s.Digest.Recipients) != 2 || s.ExpiryMail.Messaging != "outbox" || s.GeneratedPINsPerDay != 0 {
		t.Errorf("stored: %+v", s)
	}

	// What is wrong is told, and what was entered is kept.
	p := first.get(path).submit(path, "timeZone", "Mars/Base", "displayName", " ", "quietHours.to", "", "generatedPINsPerDay", "many", "language", "de").
		want(http.StatusUnprocessableEntity)
	p.has("need from and to, or neither")
	p = first.get(path).submit(path, "timeZone", "Mars/Base", "displayName", "", "digest.recipients", "nobody").want(http.StatusUnprocessableEntity)
	p.has("is not an IANA time zone", "has 0 characters", "must be addresses alone")
	if got := p.form(path).Get("timeZone"); got != "Mars/Base" {
		t.Errorf("the zone entered is %q now", got)
	}

	// Two change something else: the second one sees it, and nothing is lost.
	mine, theirs := first.get(path), second.get(path)
	theirs.submit(path, "displayName", "Acme plc", "timeZone", "Europe/London").want(http.StatusOK)
	p = mine.submit(path, "displayName", "Acme GmbH", "digest.hour", "9").want(http.StatusConflict).
		has("somebody else has changed this meanwhile", "Name of the organisationAcme plcAcme GmbH", "Time zoneEurope/Londonnothing else")
	kept := p.form(path)
	if kept.Get("displayName") != "Acme GmbH" || kept.Get("digest.hour") != "9" || kept.Get("timeZone") != "Europe/London" {
		t.Errorf("the form has %v", kept)
	}
	p.submit(path).want(http.StatusOK).has("The settings are saved.")
	if s := f.core(acme).Tenant.Settings; s.DisplayName != "Acme GmbH" || s.Digest.Hour != 9 || s.TimeZone != "Europe/London" {
		t.Errorf("stored: %+v", s)
	}

	p = f.signedIn(tenant.RoleAuditor).get(path).want(http.StatusOK).has("Only administrators can change this.").hasNot("Save the settings", "/settings/people", "/settings/keys")
	if len(find(p.root, func(n *html.Node) bool { return n.Data == "fieldset" && hasAttribute(n, "disabled") })) != 1 {
		t.Error("an auditor can fill the form in")
	}
}

func TestPeople(t *testing.T) {
	f := newFixture(t)
	boss := f.person(acme, "Boss", tenant.RoleAdmin)
	c := f.signIn(acme, boss)
	const all, add = "/console/settings/people", "/console/settings/people/new"
	c.get(all).want(http.StatusOK).has("Boss", "boss@acme.example", "Administrator")

	// Somebody new, with the two commonest mistakes before.
	p := c.get(add).submit(all, "name", "Ada <i>L</i>", "mail", "BOSS@acme.example", "roles", "operator").want(http.StatusUnprocessableEntity).
		has("is that of another person of the organisation already")
	p = p.submit(all, "mail", "ada", "roles", "").want(http.StatusUnprocessableEntity).has("Mail address:", "has none; give one or more of")
	if got := p.form(all).Get("name"); got != "Ada <i>L</i>" {
		t.Errorf("the name entered is %q now", got)
	}
	form := p.form(all)
	form["mail"], form["roles"] = []string{"ada@acme.example"}, []string{"operator", "auditor"}
	p = c.post(all, form).want(http.StatusOK).has("The person is added.", "Ada <i>L</i>", "https://console.example.org/console/sign-in?organisation=acme").hasNot("<i>")
	ada, err := f.People.ByMail(t.Context(), acme, "ada@acme.example")
	must(t, err)
	one := all + "/" + ada.ID

	// A link to hand over, which is in nothing but the answer.
	p = p.submit(one + "/link").want(http.StatusOK)
	_, link, found := strings.Cut(p.text(), "https://console.example.org/console/sign-in/link?t=")
	link, _, _ = strings.Cut(link, " ")
	token, err := url.QueryUnescape(link)
	must(t, err)
	if !found || token == "" {
		t.Fatalf("no link: %s", p.text())
	}
	theirs := f.client()
	theirs.get("/console/sign-in/link?t=" + url.QueryEscape(token)).submit("/console/sign-in/link").want(http.StatusOK).has("Overview")
	c.get(one).hasNot(token)
	if strings.Contains(f.log.String(), token) {
		t.Error("the link is in the log")
	}

	// Their session is listed, and can be ended.
	p = c.get(one).has("by a link that was handed over")
	session, err := f.People.SessionsOf(t.Context(), acme, ada.ID)
	must(t, err)
	c.get(all+"/sessions").want(http.StatusOK).has("Ada <i>L</i>", "Boss", "this one")
	p.submit(one+"/sessions/"+session[0].ID+"/end").want(http.StatusOK).has("The session is ended.", "They are not signed in anywhere.")
	theirs.get("/console").has("Sign in")

	// Two change her: the second one sees it.
	mine, meanwhile := c.get(one), c.get(one)
	meanwhile.submit(one, "name", "Ada Lovelace", "language", "de").want(http.StatusOK).has("The person is saved.")
	p = mine.submit(one, "name", "Ada King").want(http.StatusConflict).has("NameAda LovelaceAda King", "Language of the pagesdenothing else")
	p.submit(one).want(http.StatusOK).has("Ada King")
	if ada, err = f.People.Get(t.Context(), acme, ada.ID); err != nil || ada.Name != "Ada King" || ada.Language != "de" || len(ada.Roles) != 2 {
		t.Errorf("stored: %+v, %v", ada, err)
	}

	// The last administrator stays.
	own := all + "/" + boss.ID
	c.get(own).submit(own, "roles", "auditor").want(http.StatusConflict).has("This is the last administrator who can sign in")
	c.get(own).submit(own, "disabled", "on").want(http.StatusConflict).has("This is the last administrator who can sign in")
	c.get(own + "/delete").has("you are signed out at once").submit(own + "/delete").want(http.StatusConflict).has("This is the last administrator who can sign in")

	// It is asked again who it is after a while, and what was entered is kept.
	f.clock.advance(person.FreshFor)
	p = c.get(one).submit(one, "name", "Ada Byron").want(http.StatusUnauthorized).has("Show that it is you")
	if got := p.form(one).Get("name"); got != "Ada Byron" {
		t.Errorf("the name entered is %q now", got)
	}
	p.submit(one, "secret.confirm", codeInMail.FindString(f.lastMail(boss.Mail))).want(http.StatusOK).has("Ada Byron", "The person is saved.")

	c.get(one+"/delete").want(http.StatusOK).has("Delete Ada Byron?", "0 sessions end at once.").submit(one + "/delete").want(http.StatusOK).has("The person is deleted.").hasNot("Ada Byron")
	c.get(one).want(http.StatusNotFound)
	if rows := c.get(all + "?format=csv"); !strings.Contains(rows.body, "Boss,boss@acme.example,admin") {
		t.Errorf("CSV: %s", rows.body)
	}
}

// TestPeoplePages: many people are on several pages.
func TestPeoplePages(t *testing.T) {
	f := newFixture(t)
	for i := range 60 {
		f.person(acme, fmt.Sprintf("P %02d", i), tenant.RoleAuditor)
	}
	c := f.signedIn(tenant.RoleAdmin)
	p := c.get("/console/settings/people").want(http.StatusOK).has("P 00", "P 49").hasNot("P 50")
	next := find(p.root, func(n *html.Node) bool { return attribute(n, "rel") == "next" })
	if len(next) != 1 {
		t.Fatal("there is no next page")
	}
	c.get("/console/settings/people"+attribute(next[0], "href")).want(http.StatusOK).has("P 50", "P 59").hasNot("P 49")
}

func TestKeys(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	const all = "/console/settings/keys"
	c.get(all+"/new").submit(all, "expiresAt", "tomorrow").want(http.StatusUnprocessableEntity).has("choose what the key may do", "is not a date")
	c.get(all+"/new").submit(all, "name", "", "role", "kiosk", "expiresAt", "2030-01-01").want(http.StatusUnprocessableEntity).has("has 0 characters", "is not a time to come")
	p := c.get(all+"/new").submit(all, "name", "Lobby <u>", "role", "kiosk", "expiresAt", "2030-03-04").want(http.StatusOK).has("The key is made", "Copy it now", "Lobby <u>").hasNot("<u>")
	pre := find(p.root, func(n *html.Node) bool { return n.Data == "pre" })
	key := pre[0].FirstChild.Data
	caller, err := f.Tenants.Authenticate(t.Context(), secret.New(key))
	if err != nil || caller.Role != tenant.RoleKiosk {
		t.Fatalf("the key shown is of %q, %v", caller.Role, err)
	}
	c.get(all).want(http.StatusOK).has("Lobby <u>", "first administrator", "5 March 2030 at 00:00").hasNot(key[len(key)-20:])
	if strings.Contains(f.log.String(), key[len(key)-20:]) {
		t.Error("the key is in the log")
	}

	revoke := all + "/" + caller.Key.ID + "/revoke"
	c.get(revoke).want(http.StatusOK).has("Revoke the key Lobby <u>?").submit(revoke).want(http.StatusOK).has("The key is revoked.", "revoked")
	if _, err := f.Tenants.Authenticate(t.Context(), secret.New(key)); err == nil {
		t.Error("the key lets in still")
	}
	c.get(revoke).has("The key is not good any more.")
	keys, err := f.Tenants.APIKeys(t.Context(), acme)
	must(t, err)
	at := slices.IndexFunc(keys, func(k tenant.APIKey) bool { return k.Role == tenant.RoleAdmin })
	last := all + "/" + keys[at].ID + "/revoke"
	c.get(last).submit(last).want(http.StatusConflict).has("It is the last key of role admin")
	c.get(all + "/01J8ZC9Q6Y0V4T5W3X2R1N0M9K/revoke").want(http.StatusNotFound)

	f.clock.advance(person.FreshFor)
	c.post(all, url.Values{"name": {"x"}, "role": {"admin"}}).want(http.StatusUnauthorized).has("Show that it is you")
}
