package page_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

func byName(name string) func(*html.Node) bool {
	return func(n *html.Node) bool { return n.Data == name }
}

const (
	ruleList = "/console/rules"
	ruleForm = "/console/rules/form"
	saveRule = "/console/rules/save"
	tryRule  = "/console/rules/try"
)

// press sends the form of a rule by one of its buttons, which is on the page.
func (p *answer) press(action, do string, changes ...string) *answer {
	p.c.f.Helper()
	if do != "" && !strings.Contains(p.body, `value="`+do+`"`) {
		p.c.f.Fatalf("there is no button %s:\n%s", do, p.text())
	}
	fields := p.form(saveRule)
	fields.Set("do", do)
	for i := 0; i < len(changes); i += 2 {
		fields.Set(changes[i], changes[i+1])
	}
	return p.c.post(action, fields)
}

func (f *fixture) rule(name string) rule.Rule {
	f.Helper()
	all, err := f.Rules.List(f.Context(), acme)
	must(f, err)
	for _, r := range all {
		if r.Name == name {
			return r
		}
	}
	f.Fatalf("there is no rule %q", name)
	return rule.Rule{}
}

// happens is an event from outside about a user.
func (f *fixture) happens(id string, t event.Type, username string) event.Event {
	f.Helper()
	a, err := f.Engine.Receive(f.Context(), f.core(acme), event.Event{ID: id, Type: t, At: f.clock.Now(), Source: event.FromAPI,
		Ref: event.Ref{Username: username}, Attributes: map[string]string{"queue": nasty}}, nil)
	must(f, err)
	return a.Event
}

func TestRuleForm(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	p := c.get("/console/rules/new").want(http.StatusOK).has("The rule is on")
	p = p.press(saveRule, "").want(http.StatusUnprocessableEntity).has("Name: must be 1 to 100 characters")
	p = p.press(ruleForm, "add-condition", "name", "Doors "+nasty, "addCondition", "groups").want(http.StatusOK).hasNot("<script>alert")
	p = p.press(ruleForm, "add-condition", "conditions.groups", "Night shift\r\nGuards", "addCondition", "hasPin").want(http.StatusOK)
	p = p.press(ruleForm, "add-condition", "conditions.hasPin", "false", "addCondition", "attribute").want(http.StatusOK)
	p = p.press(ruleForm, "add-condition", "conditions.attributes[0].name", "no name", "conditions.attributes[0].how", "in", "conditions.attributes[0].equals", "north\nsouth", "addCondition", "window").want(http.StatusOK)
	p = p.press(ruleForm, "add-action", "conditions.window.days", "1", "conditions.window.from", "22:00", "conditions.window.to", "6", "addAction", "sendMail").want(http.StatusOK)
	p = p.press(ruleForm, "raise-action:1", "actions[1].message", "The door").want(http.StatusOK)
	p = p.press(ruleForm, "add-action", "addAction", "expirePIN").want(http.StatusOK)
	p = p.press(ruleForm, "drop-action:2").want(http.StatusOK)
	p = p.press(saveRule, "", "event", "custom", "custom", "custom.door", "actions[1].length", "99").want(http.StatusUnprocessableEntity)
	p.has("must be a time such as 08:30", "must be 1 to 64 letters", "must be at most 64")
	for _, id := range []string{"conditions.window.to", "conditions.attributes[0].name", "actions[1].length"} {
		link := find(p.root, func(n *html.Node) bool {
			to, _ := url.PathUnescape(attribute(n, "href"))
			return n.Data == "a" && to == "#"+id
		})
		input := find(p.root, func(n *html.Node) bool { return attribute(n, "id") == id })
		if len(link) != 1 || len(input) != 1 || attribute(input[0], "aria-invalid") != "true" {
			t.Errorf("%s: %d links, %d inputs", id, len(link), len(input))
		}
	}
	p = p.press(saveRule, "", "conditions.window.to", "06:00", "conditions.attributes[0].name", "door", "actions[1].length", "").want(http.StatusOK)
	p.has("The rule is saved", "When your event custom.door happens, and the person has no valid PIN, and the person is in one of these groups: Night shift, Guards, and the attribute “door” is one of: north, south, and it happens on: Monday, and it happens between 22:00 and 06:00, then mail the person a message (“The door”), and mail the person a new PIN.")
	p.hasNot("<script>alert")
	r, no := f.rule("Doors "+nasty), false
	want := rule.Rule{ID: r.ID, Name: r.Name, Order: 100, Event: "custom.door", CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt, Version: 1,
		Conditions: rule.Conditions{HasPIN: &no, Groups: []string{"Night shift", "Guards"}, Attributes: []rule.Test{{Name: "door", In: []string{"north", "south"}}}, Window: rule.Window{Days: r.Conditions.Window.Days, From: "22:00", To: "06:00"}},
		Actions:    []rule.Action{{Kind: rule.SendMail, Message: "The door"}, {Kind: rule.GeneratePIN}}}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	// The form of a saved rule says the same, and what is wrong with what it names.
	at := "/console/rules/rule/" + r.ID
	p = c.get(at + "/edit").want(http.StatusOK)
	p.press(saveRule, "", "actions[1].template", "notice").want(http.StatusUnprocessableEntity).has("generatePIN needs one of kind pin-issued")
	p.press(ruleForm, "drop-condition:0").want(http.StatusOK).press(saveRule, "", "on", "on").want(http.StatusOK)
	if got := f.rule(r.Name); !got.On || got.Conditions.HasPIN != nil || len(got.Conditions.Groups) != 2 || got.CreatedAt != r.CreatedAt {
		t.Errorf("got %+v", got)
	}

	// Two administrators.
	before := c.get(at + "/edit")
	c.get(at+"/edit").press(saveRule, "", "name", "Theirs").want(http.StatusOK)
	before.press(saveRule, "", "name", "Mine").want(http.StatusConflict).has("NameTheirsMine").press(saveRule, "").want(http.StatusOK)
	f.rule("Mine")

	c.get(at + "/delete").want(http.StatusOK).has("its history stays").submit(at + "/delete").want(http.StatusOK).has("The rule is deleted")
	c.get(at).want(http.StatusOK).has("A rule that was deleted", "Pat ")
	c.get(at + "/edit").want(http.StatusNotFound)
	c.get("/console/rules/rule/01JABCDEFGHJKMNPQRSTVWXYZ0").want(http.StatusNotFound)
}

func TestRuleList(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	at := "/console/rules/rule/" + rule.RenewExpired
	p := c.get(ruleList).want(http.StatusOK).has("ready-made", "When the person submits a print job, and it is the first time for this person")
	order := func(p *answer) (names []string) {
		for _, th := range find(p.root, func(n *html.Node) bool { return n.Data == "th" && attribute(n, "scope") == "row" }) {
			names = append(names, find(th, byName("a"))[0].FirstChild.Data)
		}
		return names
	}
	was := order(p)
	i := indexOf(was, "Expired PIN: mail a new one")
	fields := p.form(at + "/move")
	fields.Set("way", "up")
	if i == 0 {
		fields.Set("way", "down")
	}
	if got := order(c.post(at+"/move", fields).want(http.StatusOK).has("The order is changed")); indexOf(got, was[i]) == i || len(got) != len(was) {
		t.Errorf("got %q, was %q", got, was)
	}
	stale := c.get(ruleList)
	c.get(ruleList).submit(at+"/turn").want(http.StatusOK).has("The rule is on", "Turn off")
	stale.submit(at + "/turn").want(http.StatusConflict)
	if csv := c.get(ruleList + "?format=csv").body; !strings.Contains(csv, "Expired PIN: mail a new one,true,pin.expired") {
		t.Errorf("got %q", csv)
	}
	c.get(at + "/delete").submit(at + "/delete").want(http.StatusOK).has("as it came")
	c.get(at + "/delete").want(http.StatusNotFound)

	reader := f.signedIn(tenant.RoleOperator)
	reader.get(ruleList).want(http.StatusOK).hasNot("Turn on", "New rule", "Move up")
	reader.get(at).want(http.StatusOK).hasNot("Change the rule")
	reader.post(at+"/turn", url.Values{"on": {"true"}}).want(http.StatusNotFound)
	f.signedIn(tenant.RoleHelpdesk).get(ruleList).want(http.StatusNotFound)
}

func indexOf(list []string, s string) int {
	for i, x := range list {
		if x == s {
			return i
		}
	}
	return -1
}

// A dry run, over what has happened and over one event; and then what really happened, in the
// rule's history and in the list of events.
func TestRuleTrialAndHistory(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	for _, name := range []string{"ada", "grace"} {
		_, err := f.Users.Create(t.Context(), f.core(acme), platform, user.Profile{Username: name, Mail: name + "@acme.example"}, nil)
		must(t, err)
	}
	p := c.get("/console/rules/new").press(tryRule, "", "name", "x", "event", "user.signed-in").want(http.StatusOK)
	p.has("It would not act", "0 events were looked at.")
	p = p.press(ruleForm, "add-condition", "addCondition", "hasPin")
	p = p.press(tryRule, "", "conditions.hasPin", "false", "tryOver", "event", "tryUser", "ada", "tryAttributes", "queue=north").want(http.StatusOK)
	p.has("It would act 1 time", "mail the person a new PIN")
	p.press(tryRule, "", "tryUser", "nobody").want(http.StatusOK).has("It would not act", "nobody is known")
	p.press(tryRule, "", "tryAttributes", "north").want(http.StatusUnprocessableEntity).has("with = between")
	if mails := f.lastMail("ada@acme.example"); mails != "" {
		t.Errorf("a dry run has mailed %q", mails)
	}
	p.press(saveRule, "", "on", "on").want(http.StatusOK)
	r := f.rule("x")

	if e := f.happens("e/1", "user.signed-in", "ada"); len(e.Runs) != 1 || e.Runs[0].Outcome != event.Acted {
		t.Fatalf("got %+v", e)
	}
	f.happens("e/2", "user.signed-in", "ada")
	f.happens("e/3", "user.signed-in", "somebody")
	c.get("/console/rules/rule/"+r.ID).want(http.StatusOK).has("mail the person a new PIN", "done", "user.signed-in", "rule created")
	c.get("/console/rules/events").want(http.StatusOK).has("the person signs in somewhere", "acted", "did not act the user has a PIN", "nobody is known by that name").hasNot("<script>alert")
	c.get("/console/rules/event?id="+url.QueryEscape("e/1")).want(http.StatusOK).has("the API", nasty).hasNot("<script>alert")
	c.get("/console/rules/event?id=none").want(http.StatusNotFound)
	if csv := c.get("/console/rules/events?format=csv").body; !strings.Contains(csv, "x: acted, generatePIN done") || !strings.Contains(csv, "x: notMet hasPin") {
		t.Errorf("got %q", csv)
	}
	if csv := c.get("/console/rules/rule/" + r.ID + "?format=csv").body; !strings.Contains(csv, "rule.acted,generatePIN,done") {
		t.Errorf("got %q", csv)
	}
	c.get("/console/rules/rule/"+r.ID+"/edit").press(tryRule, "").want(http.StatusOK).has("3 events were looked at.", "the user has a PIN: 2")
	p = c.get("/console/rules/rule/" + r.ID + "/edit")
	p = p.press(ruleForm, "drop-condition:0").press(ruleForm, "drop-action:0").want(http.StatusOK).press(ruleForm, "add-action", "addAction", "requireChange")
	csv := p.press(tryRule, "", "format", "csv").want(http.StatusOK).body
	if strings.Count(csv, "requireChange done") != 2 {
		t.Errorf("got %q", csv)
	}
}

// A chain that was cut is seen.
func TestCutChain(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	_, err := f.Users.Create(t.Context(), f.core(acme), platform, user.Profile{Username: "ada", Mail: "ada@acme.example"}, nil)
	must(t, err)
	r, err := f.Rules.Create(t.Context(), f.core(acme), platform, rule.Rule{Name: "Round and round", On: true, Event: event.PINSet, Actions: []rule.Action{{Kind: rule.GeneratePIN}}})
	must(t, err)
	u, err := f.Users.ByUsername(t.Context(), acme, "ada")
	must(t, err)
	_, _, err = f.Users.GeneratePIN(t.Context(), f.core(acme), platform, u.ID, pin.GenerateOptions{})
	must(t, err)
	for range 3 {
		_, err = f.Engine.Sweep(t.Context())
		must(t, err)
		f.clock.advance(2 * 60e9)
	}
	c.get("/console/rules/events").want(http.StatusOK).has("caused by rules", "cut the rule itself led to the event")
	c.get("/console/rules/rule/" + r.ID).want(http.StatusOK).has("the rule itself led to the event")
}
