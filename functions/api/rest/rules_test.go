package rest_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/table"
)

// wish is a rule, off, that gives a PIN at a print job; what follows are names and values of
// its action.
func wish(action ...string) object {
	a := object{"kind": "generatePIN"}
	for i := 0; i < len(action); i += 2 {
		a[action[i]] = action[i+1]
	}
	return object{"name": "Print job", "event": "print-job.submitted", "actions": []object{a}}
}

// but returns an object with other values.
func (o object) but(more object) object {
	changed := object{}
	for _, from := range []object{o, more} {
		for name, value := range from {
			changed[name] = value
		}
	}
	return changed
}

// rule makes a rule and returns its id.
func (f *fixture) rule(key string, body object) string {
	f.Helper()
	return f.call("POST", "/v1/trigger-rules", key, body).want(201).text("id")
}

// mailing makes a tenant mail by the outbox, and returns its configuration.
func (f *fixture) mailing(key string, more object) string {
	f.Helper()
	messaging := f.outboxConfiguration(key)
	f.call("PUT", "/v1/settings", key, object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false,
		"expiryMail": object{"messaging": messaging}}.but(more)).want(200)
	return messaging
}

// mails is how many were sent.
func (f *fixture) mails() int {
	f.Helper()
	mails, err := f.outbox.List(1000)
	f.must(err)
	return len(mails)
}

const rules = "/v1/trigger-rules"

// TestRules: what is said of a rule is what is read back, and each change has its history.
func TestRules(t *testing.T) {
	f := newFixture(t)
	messaging, webhook := f.mailing(f.key, nil), ""
	webhook, _ = f.webhook(f.key)
	template := f.call("POST", "/v1/mail-templates", f.key, object{"kind": "notice", "name": "Own", "subject": "News", "text": "{{message}}"}).want(201).text("id")
	whole := object{
		"name": "Everything", "on": true, "order": 7.0, "event": "custom.door-opened",
		"conditions": object{
			"first": true, "hasPin": true, "hasMail": true, "hasActiveCard": false, "groups": []any{"staff", "lab"},
			"pinOlderThanHours": 24.0, "pinExpiresWithinHours": 48.0,
			"attributes": []any{
				object{"name": "door", "equals": ""},
				object{"name": "floor", "in": []any{"1", "2"}},
				object{"name": "printer", "matches": "hp-[0-9]+"},
			},
			"window": object{"days": []any{"monday", "sunday"}, "from": "22:00", "to": "06:00"},
		},
		"actions": []any{
			object{"kind": "generatePIN", "length": 8.0, "alphabet": "digits", "validHours": 48.0, "oneTime": "change", "messaging": messaging},
			object{"kind": "requireChange"},
			object{"kind": "sendMail", "messaging": messaging, "template": template, "message": "Mind the door."},
			object{"kind": "callWebhook", "endpoint": webhook},
			object{"kind": "requestUnblock"},
		},
	}
	made := f.call("POST", rules, f.key, whole).want(201)
	id := made.text("id")
	if made.header.Get("Location") != rules+"/"+id || made.header.Get("ETag") != `"1"` {
		t.Errorf("created: %v", made.header)
	}
	read := f.call("GET", rules+"/"+id, f.key, nil).want(200)
	var got object
	read.decode(&got)
	want := whole.but(object{"id": id, "ready": false, "createdAt": "2030-01-31T09:00:00Z", "updatedAt": "2030-01-31T09:00:00Z", "warnings": []any{}})
	if diff := cmp.Diff(jsonOf(t, want), jsonOf(t, got)); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}

	// Only what was left out has a default.
	f.clock.advance(time.Minute)
	least := f.call("PUT", rules+"/"+id, f.key, wish(), "If-Match", read.header.Get("ETag")).want(200)
	least.decode(&got)
	want = object{"id": id, "ready": false, "createdAt": "2030-01-31T09:00:00Z", "updatedAt": "2030-01-31T09:01:00Z", "warnings": []any{},
		"name": "Print job", "on": false, "order": 0.0, "event": "print-job.submitted",
		"conditions": object{"first": false, "groups": []any{}, "attributes": []any{}}, "actions": []any{object{"kind": "generatePIN"}}}
	got = object{}
	least.decode(&got)
	if diff := cmp.Diff(jsonOf(t, want), jsonOf(t, got)); diff != "" {
		t.Errorf("the least rule (-want +got):\n%s", diff)
	}
	f.call("PUT", rules+"/"+id, f.key, wish(), "If-Match", read.header.Get("ETag")).want(412)

	f.clock.advance(time.Minute)
	f.call("DELETE", rules+"/"+id, f.key, nil).want(204)
	f.call("GET", rules+"/"+id, f.key, nil).want(404)
	f.call("DELETE", rules+"/"+id, f.key, nil).want(404)
	f.call("PUT", rules+"/"+id, f.key, wish()).want(404)
	history := f.history(id)
	if diff := cmp.Diff([]string{"rule.deleted done", "rule.updated done", "rule.created done"}, history); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
	f.call("GET", rules+"/01J8ZC9Q6Y0V4T5W3X2R1N0M9K/history", f.key, nil).want(404)
}

// TestRuleInREADME: the rule that the README shows is one.
func TestRuleInREADME(t *testing.T) {
	f := newFixture(t)
	readme, err := os.ReadFile("../../../README.md")
	f.must(err)
	_, text, found := strings.Cut(string(readme), "\n    {\"name\": \"New at the lab\"")
	text, _, ends := strings.Cut(text, "\n\n")
	if !found || !ends {
		t.Fatal("the README shows no rule")
	}
	webhook, _ := f.webhook(f.key)
	a := f.call("POST", rules, f.key, `{"name": "New at the lab"`+strings.Replace(text, "01J8...", webhook, 1)).want(201)
	if !strings.Contains(string(a.body), `"warnings":[]`) {
		t.Errorf("the rule that the README shows: %s", a.body)
	}
}

// history returns what a rule's history says, the newest first.
func (f *fixture) history(rule string) (lines []string) {
	f.Helper()
	for cursor := ""; ; {
		var page struct {
			Items []struct {
				Action, Outcome, Reason string
				Details                 map[string]string
			}
			NextCursor string
		}
		f.call("GET", rules+"/"+rule+"/history?limit=2&cursor="+cursor, f.key, nil).want(200).decode(&page)
		for _, r := range page.Items {
			line := r.Action
			if a := r.Details["action"]; a != "" {
				line += " " + a + " to " + r.Details["user"] + " for " + r.Details["event"]
			}
			lines = append(lines, strings.TrimSpace(line+" "+r.Outcome+" "+r.Reason))
		}
		if cursor = page.NextCursor; cursor == "" {
			return lines
		}
	}
}

// TestReadyRules: they are there from the first, off, and become so again when deleted.
func TestReadyRules(t *testing.T) {
	f := newFixture(t)
	var list struct {
		Items []struct {
			ID, Event string
			On, Ready bool
		}
	}
	f.call("GET", rules, f.key, nil).want(200).decode(&list)
	var got []string
	for _, r := range list.Items {
		got = append(got, fmt.Sprint(r.ID, " ", r.Event, " ", r.On, " ", r.Ready))
	}
	if diff := cmp.Diff([]string{"first-print-job print-job.submitted false true", "new-user user.created false true", "renew-expired pin.expired false true"}, got); diff != "" {
		t.Errorf("ready rules (-want +got):\n%s", diff)
	}
	path := rules + "/new-user"
	asItCame := f.call("GET", path, f.key, nil).want(200)
	if p := f.call("DELETE", path, f.key, nil).want(409).problem(); !strings.Contains(p.Detail, "as it came") {
		t.Errorf("deleting one as it came: %q", p.Detail)
	}
	on := object{"name": "Newcomers", "on": true, "event": "user.created", "actions": []object{{"kind": "generatePIN"}}}
	etag := asItCame.header.Get("ETag")
	if a := f.call("PUT", path, f.key, on, "If-Match", etag).want(200); !strings.Contains(string(a.body), `"ready":true`) || !strings.Contains(string(a.body), `"on":true`) {
		t.Errorf("turned on: %s", a.body)
	}
	f.call("PUT", path, f.key, on, "If-Match", etag).want(412)
	f.call("DELETE", path, f.key, nil).want(204)
	if again := f.call("GET", path, f.key, nil).want(200); string(again.body) != string(asItCame.body) || again.header.Get("ETag") != etag {
		t.Errorf("deleted, it is %s, was %s", again.body, asItCame.body)
	}
	if got := f.history("new-user"); !slices.Equal(got, []string{"rule.deleted done", "rule.updated done"}) {
		t.Errorf("history: %q", got)
	}
}

// TestBadRules: each answer tells where a rule is wrong, and what would be right.
func TestBadRules(t *testing.T) {
	f := newFixture(t)
	const unknown = "01J8ZC9Q6Y0V4T5W3X2R1N0M9K"
	expiry := f.call("POST", "/v1/mail-templates", f.key, mailTemplate).want(201).text("id")
	conditions := func(c object) object { return wish().but(object{"conditions": c}) }
	test := func(o object) object {
		return conditions(object{"attributes": []object{{"name": "ok", "equals": "x"}, o.but(object{"name": "door"})}})
	}
	webhook := func(endpoint string) object { return wish("kind", "callWebhook", "endpoint", endpoint) }
	for _, c := range []struct {
		name           string
		body           any
		location, says string
	}{
		{"no action", wish().but(object{"actions": []object{}}), "body.actions", "must do something"},
		{"actions left out", `{"name":"x","event":"print-job.submitted"}`, "body", "required property actions"},
		{"six actions", wish().but(object{"actions": slices.Repeat([]object{{"kind": "expirePIN"}}, 6)}), "body.actions", "at most 5"},
		{"unknown action", wish("kind", "explode"), "body.actions[0].kind", "generatePIN"},
		{"no name", wish().but(object{"name": ""}), "body.name", "1 to 100"},
		{"unknown event", wish().but(object{"event": "printjob"}), "body.event", "print-job.submitted"},
		{"custom event in capitals", wish().but(object{"event": "custom.Door"}), "body.event", "custom.door-opened"},
		{"unknown field", wish().but(object{"script": "rm"}), "body.script", "unexpected property"},
		{"order", wish().but(object{"order": -1}), "body.order", "0 to 10000"},
		{"unknown template", wish("template", unknown), "body.actions[0].template", "not the id of a mail template"},
		{"template of another kind", wish("template", expiry), "body.actions[0].template", "generatePIN needs one of kind pin-issued"},
		{"predefined template of another kind", wish("template", "notice"), "body.actions[0].template", "of kind notice"},
		{"unknown messaging", wish("messaging", unknown), "body.actions[0].messaging", "not the id of a messaging"},
		{"unknown webhook", webhook(unknown), "body.actions[0].endpoint", "not the id of a webhook"},
		{"no webhook", webhook(""), "body.actions[0].endpoint", "is needed"},
		{"mail that says nothing", wish("kind", "sendMail"), "body.actions[0].message", "is needed"},
		{"what the kind does not take", wish("endpoint", "x"), "body.actions[0].endpoint", "nothing that generatePIN takes"},
		{"no attribute", wish("kind", "setPIN"), "body.actions[0].attribute", "secret attribute"},
		{"alphabet", wish("alphabet", "runes"), "body.actions[0].alphabet", "alphanumeric"},
		{"one time", wish("oneTime", "twice"), "body.actions[0].oneTime", "delete"},
		{"back-reference", test(object{"matches": `(a)\1`}), "body.conditions.attributes[1].matches", "RE2"},
		{"look-ahead", test(object{"matches": `(?=a)`}), "body.conditions.attributes[1].matches", "RE2"},
		{"repeated repeats", test(object{"matches": `((a{500}){500}){500}`}), "body.conditions.attributes[1].matches", "RE2"},
		{"parenthesis that closes ours", test(object{"matches": `a)|(?:b`}), "body.conditions.attributes[1].matches", "RE2"},
		{"long pattern", test(object{"matches": strings.Repeat("a", 201)}), "body.conditions.attributes[1].matches", "at most 200"},
		{"two tests in one", test(object{"matches": "a", "equals": "a"}), "body.conditions.attributes[1].equals", "one of"},
		{"no test", test(object{}), "body.conditions.attributes[1].equals", "one of"},
		{"day", conditions(object{"window": object{"days": []string{"Funday"}}}), "body.conditions.window.days", "days of the week"},
		{"time of day", conditions(object{"window": object{"from": "8", "to": "09:00"}}), "body.conditions.window.from", "08:30"},
		{"window that is never", conditions(object{"window": object{"from": "09:00", "to": "09:00"}}), "body.conditions.window.to", "never"},
		{"hours", conditions(object{"pinOlderThanHours": -1}), "body.conditions.pinOlderThanHours", "must be 0 to"},
		{"groups", conditions(object{"groups": []string{""}}), "body.conditions.groups", "1 to 64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for method, path := range map[string]string{"POST": rules, "PUT": rules + "/first-print-job"} {
				p := f.call(method, path, f.key, c.body).want(422).problem()
				found := false
				for _, e := range p.Errors {
					found = found || e.Location == c.location && strings.Contains(e.Message, c.says)
				}
				if !found {
					t.Errorf("%s: %+v, want %s: ...%s...", method, p.Errors, c.location, c.says)
				}
			}
		})
	}
	if a := f.call("GET", rules+"/first-print-job", f.key, nil).want(200); a.header.Get("ETag") != `"0"` {
		t.Errorf("a refused change was made: %s", a.body)
	}

	// A pattern is slow in no engine but one that goes back: this one does not.
	began := time.Now()
	f.rule(f.key, test(object{"matches": "(a+)+b"}).but(object{"on": true}))
	f.call("POST", "/v1/events", f.key, object{"id": "slow", "type": "print-job.submitted", "attributes": object{"door": strings.Repeat("a", 1000)}}).want(200)
	if took := time.Since(began); took > 20*time.Second { // one that goes back would not end
		t.Errorf("a pattern took %v", took)
	}

	// What contradicts itself is taken, with a warning.
	contradiction := conditions(object{"hasPin": false, "pinOlderThanHours": 1})
	a := f.call("POST", rules, f.key, contradiction).want(201)
	var b struct {
		Warnings []struct{ Code, Location string }
	}
	a.decode(&b)
	if len(b.Warnings) != 1 || b.Warnings[0].Code != "contradiction" || b.Warnings[0].Location != "body.conditions.hasPin" {
		t.Errorf("warnings: %s", a.body)
	}
}

// TestRulesAreFew: the 101st is refused, and so is a ready one then, until another is deleted.
func TestRulesAreFew(t *testing.T) {
	f := newFixture(t)
	id := ""
	for range 100 {
		id = f.rule(f.key, wish())
	}
	for _, c := range []struct{ method, path string }{{"POST", rules}, {"PUT", rules + "/new-user"}} {
		if p := f.call(c.method, c.path, f.key, wish()).want(409).problem(); !strings.Contains(p.Detail, "at most 100 trigger rules") {
			t.Errorf("%s %s: %q", c.method, c.path, p.Detail)
		}
	}
	f.call("PUT", rules+"/"+id, f.key, wish()).want(200)
	f.call("DELETE", rules+"/"+id, f.key, nil).want(204)
	f.rule(f.key, wish())
}

// named are the things that a rule may name: how each is made, and the rule that names it.
func (f *fixture) named(kind string) (path string, body object) {
	f.Helper()
	switch kind {
	case "messaging":
		id := f.outboxConfiguration(f.key)
		return "/v1/messaging/" + id, wish("messaging", id)
	case "template":
		id := f.call("POST", "/v1/mail-templates", f.key, mailTemplate.but(object{"kind": "notice", "text": "{{message}}"})).want(201).text("id")
		return "/v1/mail-templates/" + id, wish("kind", "sendMail", "template", id)
	}
	id, _ := f.webhook(f.key)
	return "/v1/webhooks/" + id, wish("kind", "callWebhook", "endpoint", id)
}

// TestNamedByRules: what a rule names, on or off, is not deleted; nor does a rule name what is
// deleted in the same moment.
func TestNamedByRules(t *testing.T) {
	for _, kind := range []string{"messaging", "template", "webhook"} {
		t.Run(kind, func(t *testing.T) {
			f := newFixture(t)
			path, body := f.named(kind)
			id := f.rule(f.key, body)
			if p := f.call("DELETE", path, f.key, nil).want(409).problem(); p.Detail != `the trigger rule "Print job" names it; change it there first` {
				t.Errorf("named: %q", p.Detail)
			}
			f.call("GET", path, f.key, nil).want(200)
			f.call("PUT", rules+"/"+id, f.key, wish()).want(200)
			f.call("DELETE", path, f.key, nil).want(204)

			// Somebody does the one just before the other is written.
			path, body = f.named(kind)
			between := func(method, path string, body any) {
				f.table.breakWith(func([]table.Op) error {
					f.table.breakWith(nil)
					f.call(method, path, f.key, body)
					return nil
				})
			}
			between("POST", rules, body)
			f.call("DELETE", path, f.key, nil).want(409)
			f.call("GET", path, f.key, nil).want(200)

			path, body = f.named(kind)
			between("DELETE", path, nil)
			f.call("POST", rules, f.key, body).want(409)
			f.call("GET", path, f.key, nil).want(404)
			path, body = f.named(kind)
			between("DELETE", path, nil)
			f.call("PUT", rules+"/new-user", f.key, body, "If-Match", `"0"`).want(409)
			f.call("GET", path, f.key, nil).want(404)
		})
	}
}

// TestRuleChangedMeanwhile: of two who change the same rule that they have read, one is told.
func TestRuleChangedMeanwhile(t *testing.T) {
	f := newFixture(t)
	for _, id := range []string{"first-print-job", f.rule(f.key, wish())} {
		etag := f.call("GET", rules+"/"+id, f.key, nil).want(200).header.Get("ETag")
		f.table.breakWith(func([]table.Op) error {
			f.table.breakWith(nil)
			f.call("PUT", rules+"/"+id, f.key, wish().but(object{"name": "Mine"}), "If-Match", etag).want(200)
			return nil
		})
		f.call("PUT", rules+"/"+id, f.key, wish().but(object{"name": "Theirs"}), "If-Match", etag).want(412)
		if got := f.call("GET", rules+"/"+id, f.key, nil).want(200).text("name"); got != "Mine" {
			t.Errorf("%s is named %q", id, got)
		}
	}
}

// TestTry: a dry run tells what a rule would do, and changes nothing.
func TestTry(t *testing.T) {
	f := newFixture(t)
	f.mailing(f.key, object{"createUsersFromEvents": true}) // not by a dry run
	none, has := f.user(f.key, ""), f.user(f.key, f.pin())
	noMail := f.call("POST", "/v1/users", f.key, object{"username": "no-mail"}).want(201).text("id")
	saved := f.rule(f.key, wish().but(object{"conditions": object{"hasPin": false}}))
	for i, id := range []string{none, has, noMail, none} {
		f.clock.advance(time.Second)
		f.call("POST", "/v1/events", f.key, printJob(fmt.Sprint("job-", i), id)).want(200)
	}
	f.call("POST", "/v1/events", f.key, object{"id": "other", "type": "user.signed-in"}).want(200)
	before, mails := f.stored(), f.mails()

	type trials struct {
		Read, OfType, Acting int
		NotMet, Refused      map[string]int
		Trials               []struct {
			Event struct{ ID, User string }
			Run   struct {
				Outcome, Reason string
				Effects         []struct{ Action, Outcome, Reason string }
			}
		}
		Warnings []struct{ Location string }
	}
	try := func(body object) (got trials) {
		t.Helper()
		f.call("POST", rules+"/try", f.key, body).want(200).decode(&got)
		return got
	}

	// Over what is stored, saved and not: who has no address is told by name.
	unsaved := wish().but(object{"conditions": object{"hasPin": false}})
	for _, body := range []object{{"ruleId": saved}, {"rule": unsaved}} {
		got := try(body)
		if got.Read != 5 || got.OfType != 4 || got.Acting != 3 || got.NotMet["hasPin"] != 1 || got.Refused["noAddress"] != 1 || len(got.Trials) != 3 || got.Trials[0].Event.ID != "job-0" || got.Trials[0].Event.User != none {
			t.Errorf("%v over what is stored: %+v", body, got)
		}
	}
	first := try(object{"rule": wish().but(object{"conditions": object{"first": true}})})
	if first.Acting != 3 || first.NotMet["notFirst"] != 1 {
		t.Errorf("the first of each: %+v", first)
	}

	// Over an event that was not sent, from outside or inside.
	for _, c := range []struct {
		name                            string
		body                            object
		acting                          int
		outcome, reason, effect, refuse string
	}{
		{"would act", object{"ruleId": saved, "event": printJob("new", none)}, 1, "acted", "", "done", ""},
		{"without an id", object{"ruleId": saved, "event": object{"type": "print-job.submitted", "user": object{"id": none}}}, 1, "acted", "", "done", ""},
		{"has a PIN", object{"ruleId": saved, "event": printJob("new", has)}, 0, "notMet", "hasPin", "", ""},
		{"no address", object{"ruleId": saved, "event": printJob("new", noMail)}, 1, "acted", "", "refused", "noAddress"},
		{"unknown user", object{"ruleId": saved, "event": printJob("new", "nobody")}, 0, "notMet", "unknownUser", "", ""},
		{"somebody new", object{"ruleId": saved, "event": object{"type": "print-job.submitted", "user": object{"username": "newcomer"}}}, 0, "notMet", "unknownUser", "", ""},
		{"a ready one that is off", object{"ruleId": "new-user", "event": object{"type": "user.created", "user": object{"id": none}}}, 1, "acted", "", "done", ""},
		{"a PIN that the policy refuses", object{"rule": wish("kind", "setPIN", "attribute", "code"), "event": printJob("new", none).but(object{"secretAttributes": object{"code": "1234"}})}, 1, "acted", "", "refused", "sequential"},
		{"no PIN to set", object{"rule": wish("kind", "setPIN", "attribute", "code"), "event": printJob("new", none)}, 1, "acted", "", "refused", "attribute"},
		{"no PIN to expire", object{"rule": wish("kind", "expirePIN"), "event": printJob("new", none)}, 1, "acted", "", "refused", "noPin"},
		{"no card", object{"rule": wish("kind", "requestUnblock"), "event": printJob("new", none)}, 1, "acted", "", "refused", "noCard"},
	} {
		got := try(c.body)
		run := got.Trials[0].Run
		if got.Read != 1 || got.Acting != c.acting || run.Outcome != c.outcome || run.Reason != c.reason || len(run.Effects) != c.acting ||
			c.acting == 1 && (run.Effects[0].Outcome != c.effect || !strings.Contains(run.Effects[0].Reason, c.refuse)) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	if got := try(object{"rule": wish().but(object{"conditions": object{"hasMail": false}})}); len(got.Warnings) != 1 || got.Warnings[0].Location != "body.rule.conditions.hasMail" {
		t.Errorf("warnings: %+v", got.Warnings)
	}

	if stored, sent := f.stored() != before, f.mails()-mails; stored || sent > 0 {
		t.Errorf("a dry run has written something: %v; it has sent %d mails", stored, sent)
	}

	for _, c := range []struct {
		body           object
		status         int
		location, says string
	}{
		{object{}, 422, "body.rule", "either ruleId or rule"},
		{object{"ruleId": saved, "rule": unsaved}, 422, "body.rule", "either"},
		{object{"ruleId": "nothing"}, 404, "", ""},
		{object{"rule": wish().but(object{"actions": []object{}})}, 422, "body.rule.actions", "must do something"},
		{object{"rule": wish().but(object{"name": ""}), "event": printJob("new", none)}, 422, "body.rule.name", "1 to 100"},
		{object{"ruleId": saved, "event": object{"type": "user.signed-in"}}, 422, "body.event.type", "print-job.submitted"},
		{object{"ruleId": saved, "event": object{"type": "nonsense"}}, 422, "body.event.type", "must be one of"},
	} {
		p := f.call("POST", rules+"/try", f.key, c.body).want(c.status).problem()
		if c.location != "" && (len(p.Errors) != 1 || p.Errors[0].Location != c.location || !strings.Contains(p.Errors[0].Message, c.says)) {
			t.Errorf("%v: %+v", c.body, p.Errors)
		}
	}
}

// stored is the table's file, which changes with every write.
func (f *fixture) stored() string {
	f.Helper()
	b, err := os.ReadFile(f.file)
	f.must(err)
	return string(b)
}
