package rest_test

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

const events = "/v1/events"

// printJob is the event that a user has submitted one.
func printJob(id, user string) object {
	return object{"id": id, "type": "print-job.submitted", "user": object{"id": user}}
}

// outcome is what an event was answered.
type outcome struct {
	ID, Outcome string
	Runs        []struct {
		Rule, Name, Outcome, Reason string
		Effects                     []struct{ Action, Outcome, Reason, About string }
	}
	Errors []struct{ Code, Location, Message string }
}

// String tells it in a line, without what is made up anew each time.
func (o outcome) String() string {
	line := o.ID + " " + o.Outcome
	for _, r := range o.Runs {
		line += strings.TrimRight(fmt.Sprintf("; %s %s %s", r.Name, r.Outcome, r.Reason), " ")
		for _, e := range r.Effects {
			line += strings.TrimRight(fmt.Sprintf(", %s %s %s", e.Action, e.Outcome, e.Reason), " ")
		}
	}
	for _, e := range o.Errors {
		line += fmt.Sprintf("; %s %s", e.Location, e.Code)
	}
	return line
}

// send tells of events and returns what each was answered.
func (f *fixture) send(key string, body any) (lines []string) {
	f.Helper()
	for _, o := range f.sent(f.call("POST", events, key, body)) {
		lines = append(lines, o.String())
	}
	return lines
}

func (f *fixture) sent(a answer) []outcome {
	f.Helper()
	var b struct{ Results []outcome }
	a.want(200).decode(&b)
	return b.Results
}

// verified tells whether a PIN is the user's.
func (f *fixture) verified(user, pin string) bool {
	f.Helper()
	return strings.Contains(string(f.call("POST", "/v1/pins/verify", f.key, object{"userId": user, "pin": pin}).want(200).body), `"verified":true`)
}

// TestFirstPrintJob: a new employee prints, and has a PIN in the mail, that nobody else learns.
func TestFirstPrintJob(t *testing.T) {
	f := newFixture(t)
	f.mailing(f.key, nil)
	printer := f.keyOf("events")
	var ready object
	f.call("GET", rules+"/first-print-job", f.key, nil).want(200).decode(&ready)
	f.call("PUT", rules+"/first-print-job", f.key, object{"name": ready["name"], "on": true, "event": ready["event"], "conditions": ready["conditions"],
		"actions": []object{{"kind": "generatePIN", "length": 10}}}).want(200)
	const acted = "First print job: give a PIN and mail it acted, generatePIN done"
	id := f.user(f.key, "")

	if got := f.send(printer, printJob("job-1", id)); !slices.Equal(got, []string{"job-1 done; " + acted}) {
		t.Errorf("the first: %q", got)
	}
	pin := f.mailedPIN() // no answer shows it: that is looked at after all tests
	if !f.verified(id, pin) {
		t.Error("the PIN in the mail is not the user's")
	}
	f.clock.advance(time.Hour)
	if got := f.send(printer, printJob("job-1", id)); !slices.Equal(got, []string{"job-1 duplicate; " + acted}) {
		t.Errorf("the same again: %q", got)
	}
	if got := f.send(printer, printJob("job-2", id)); !slices.Equal(got, []string{"job-2 done; First print job: give a PIN and mail it notMet notFirst"}) {
		t.Errorf("the second: %q", got)
	}
	if !f.verified(id, pin) || f.mails() != 1 {
		t.Errorf("afterwards there are %d mails, or the PIN is another", f.mails())
	}
	if diff := cmp.Diff([]string{"rule.acted generatePIN to " + id + " for job-1 done", "rule.updated done"}, f.history("first-print-job")); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}

	// Who has no address gets no PIN, and the answer says so.
	f.clock.advance(time.Second)
	noMail := f.call("POST", "/v1/users", f.key, object{"username": "no-mail"}).want(201).text("id")
	if got := f.send(printer, printJob("job-3", noMail)); !slices.Equal(got, []string{"job-3 done; First print job: give a PIN and mail it notMet noMail"}) {
		t.Errorf("without an address: %q", got)
	}
	if got := f.call("GET", "/v1/users/"+noMail+"/pin", f.key, nil).want(200).text("state"); got != "none" {
		t.Errorf("without an address the PIN is %s", got)
	}

	// The sender may send, and see nothing.
	for _, path := range []string{events, "/v1/event?id=job-1", rules, "/v1/users", "/v1/users/" + id + "/pin"} {
		f.call("GET", path, printer, nil).want(403)
	}
	f.call("POST", rules+"/try", printer, object{"ruleId": "first-print-job"}).want(403)

	// What came of each is kept, for 30 days.
	var list struct {
		Items []struct {
			ID, Type, Source, User, State string
			Chain                         []string
			Attributes                    map[string]string
		}
		NextCursor string
	}
	f.call("GET", events+"?limit=2", f.key, nil).want(200).decode(&list)
	if len(list.Items) != 2 || list.NextCursor == "" || list.Items[0].ID != "job-3" || list.Items[1].ID != "job-2" {
		t.Errorf("the newest two: %+v", list)
	}
	f.call("GET", events+"?limit=2&cursor="+list.NextCursor, f.key, nil).want(200).decode(&list)
	if e := list.Items[0]; len(list.Items) != 1 || e.ID != "job-1" || e.Type != "print-job.submitted" || e.Source != "api" || e.User != id || e.State != "done" || e.Chain == nil || e.Attributes == nil {
		t.Errorf("the oldest: %+v", list)
	}
	f.call("GET", "/v1/event?id=job-9", f.key, nil).want(404)
	f.call("GET", "/v1/event?id=job%201", f.key, nil).want(404)
	f.call("GET", "/v1/event", f.key, nil).want(422)
}

// TestManyEvents: each of several has its own outcome, and one that is refused keeps no other.
func TestManyEvents(t *testing.T) {
	f := newFixture(t)
	f.mailing(f.key, nil)
	rule := f.rule(f.key, wish().but(object{"on": true, "actions": []object{{"kind": "requireChange"}}}))
	has, none := f.user(f.key, f.pin()), f.user(f.key, "")
	got := f.send(f.key, object{"events": []object{
		printJob("a", has), printJob("b", none), printJob("c", "nobody"),
		{"id": "d", "type": "nonsense"}, {"id": "e", "type": "user.signed-in", "user": object{"id": has}},
		printJob("f", has).but(object{"user": object{"id": has, "username": "x"}, "time": "2030-01-31T09:05:01Z"}),
		{"type": "user.signed-in"}, {"id": "h", "type": "pin.set"},
		printJob("i", has).but(object{"attributes": object{"line\nbreak": "x", "b": "x\ny"}, "secretAttributes": object{"b": "z"}}),
	}})
	want := []string{
		"a done; Print job acted, requireChange done", "b done; Print job acted, requireChange refused noPin", "c done; Print job notMet unknownUser",
		"d refused; body.events[3].type unknown", "e done",
		"f refused; body.events[5].user reference; body.events[5].time future",
		" refused; body.events[6].id form", "h refused; body.events[7].type reserved",
		"i refused; body.events[8].attributes form; body.events[8].attributes.b characters; body.events[8].secretAttributes.b repeated",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	got = f.send(f.key, object{"events": []object{printJob("a", has), printJob("d", none)}})
	if diff := cmp.Diff([]string{"a duplicate; Print job acted, requireChange done", "d done; Print job acted, requireChange refused noPin"}, got); diff != "" {
		t.Errorf("sent again (-want +got):\n%s", diff)
	}

	history := f.history(rule)
	slices.Sort(history) // they were acted on side by side
	wanted := []string{
		"rule.acted requireChange to " + has + " for a done", "rule.acted requireChange to " + none + " for b refused noPin",
		"rule.acted requireChange to " + none + " for d refused noPin", "rule.created done",
	}
	slices.Sort(wanted)
	if diff := cmp.Diff(wanted, history); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}

	many := func(n int) (all []object) {
		for i := range n {
			all = append(all, object{"id": fmt.Sprint("many-", i), "type": "user.signed-in"})
		}
		return all
	}
	if got := f.send(f.key, object{"events": many(100)}); len(got) != 100 || got[99] != "many-99 done" {
		t.Errorf("a hundred: %q", got)
	}
	for _, c := range []struct {
		name           string
		body           any
		location, says string
	}{
		{"101", object{"events": many(101)}, "body.events", "<= 100"},
		{"none", object{"events": []object{}}, "body.events", "1 to 100"},
		{"beside one", object{"user": object{"id": has}, "events": many(1)}, "body.events", "put it among them"},
	} {
		if p := f.call("POST", events, f.key, c.body).want(422).problem(); len(p.Errors) != 1 || p.Errors[0].Location != c.location || !strings.Contains(p.Errors[0].Message, c.says) {
			t.Errorf("%s: %+v", c.name, p.Errors)
		}
	}

	// One that was not stored is said to have failed, and may be sent again.
	f.table.breakWith(func([]table.Op) error { return problem.ErrUnavailable })
	failed := f.sent(f.call("POST", events, f.key, object{"events": []object{printJob("late", has)}}))
	f.table.breakWith(nil)
	if o := failed[0]; o.Outcome != "failed" || len(o.Errors) != 1 || o.Errors[0].Location != "body.events[0]" || !strings.Contains(o.Errors[0].Message, "try again") {
		t.Errorf("failed: %+v", failed)
	}
	if got := f.send(f.key, printJob("late", has)); got[0] != "late done; Print job acted, requireChange done" {
		t.Errorf("sent again: %q", got)
	}
}

// TestBadEvents: one that is refused is a problem, which says where and why.
func TestBadEvents(t *testing.T) {
	f := newFixture(t)
	id := f.user(f.key, "")
	job := func(more object) object { return printJob("job", id).but(more) }
	attributes := func(n int) object {
		all := object{}
		for i := range n {
			all[fmt.Sprint("a", i)] = ""
		}
		return all
	}
	for _, c := range []struct {
		name           string
		body           any
		location, says string
	}{
		{"no type", object{"id": "job"}, "body.type", "print-job.submitted"},
		{"no id", object{"type": "print-job.submitted"}, "body.id", "1 to 200"},
		{"space in the id", job(object{"id": "job 1"}), "body.id", "without space"},
		{"an id of our own", job(object{"id": "pinward:pin.set/1"}), "body.id", "must not begin"},
		{"unknown type", job(object{"type": "print-job"}), "body.type", "custom.door-opened"},
		{"a type of our own", job(object{"type": "pin.set"}), "body.type", "Pinward itself only"},
		{"five minutes ahead", job(object{"time": "2030-01-31T09:05:01Z"}), "body.time", "5m1s ahead of 2030-01-31T09:00:00Z"},
		{"far ahead", job(object{"time": "9999-12-31T23:59:59Z"}), "body.time", "ahead"},
		{"eight days ago", job(object{"time": "2030-01-24T08:59:59Z"}), "body.time", "more than 7 days ago"},
		{"two years ago", job(object{"time": "2028-01-31T09:00:00Z"}), "body.time", "more than 7 days ago"},
		{"no time", job(object{"time": "yesterday"}), "body.time", "date-time"},
		{"two references", job(object{"user": object{"id": id, "mail": "a@acme.example"}}), "body.user", "by one of"},
		{"21 attributes", job(object{"attributes": attributes(20), "secretAttributes": object{"pin": f.pin()}}), "body.attributes", "are 21"},
		{"thousands of attributes", job(object{"attributes": attributes(5_000)}), "body.attributes", "are 5000 with the secret ones, at most 20"},
		{"long attribute", job(object{"attributes": object{"a": strings.Repeat("x", 1001)}}), "body.attributes.a", "at most 1000"},
		{"long secret", job(object{"secretAttributes": object{"pin": strings.Repeat("k7Q2wx-secret", 80)}}), "body.secretAttributes.pin", "at most 1000"},
		{"number for an attribute", job(object{"attributes": object{"pages": 3}}), "body.attributes.pages", "expected string"},
		{"number for a secret", job(object{"secretAttributes": object{"pin": 73915873}}), "body.secretAttributes.pin", "expected string"},
	} {
		p := f.call("POST", events, f.key, c.body).want(422).problem()
		if len(p.Errors) != 1 || p.Errors[0].Location != c.location || !strings.Contains(p.Errors[0].Message, c.says) {
			t.Errorf("%s: %+v, want %s: ...%s...", c.name, p.Errors, c.location, c.says)
		}
	}
	if p := f.call("POST", events, f.key, job(object{"attributes": attributes(100_000)})).want(http.StatusRequestEntityTooLarge).problem(); !strings.Contains(p.Detail, "1048576 bytes") {
		t.Errorf("a hundred thousand attributes: %q", p.Detail)
	}
	// A million are more than API Gateway lets through.
	var million strings.Builder
	for i := range 1_000_000 {
		million.WriteString(`"a` + strconv.Itoa(i) + `":"",`)
	}
	resp, err := http.Post(f.url+events, "application/json", strings.NewReader(`{"id":"job","type":"print-job.submitted","attributes":{`+million.String()+`"a":""}}`))
	f.must(err)
	if resp.Body.Close(); resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a million attributes: %d", resp.StatusCode)
	}
	f.call("GET", "/v1/event?id=job", f.key, nil).want(404)

	// As old, and as far ahead, as they may be.
	for i, at := range []string{"2030-01-24T09:00:00Z", "2030-01-31T09:05:00Z", "2030-01-31T10:05:00+01:00"} {
		f.call("POST", events, f.key, job(object{"id": fmt.Sprint("job-", i), "time": at})).want(200)
	}
}

// TestEventUsers: whom an event is about, and who is created by it.
func TestEventUsers(t *testing.T) {
	f := newFixture(t)
	f.mailing(f.key, nil)
	theirs := f.user(f.tenant("other"), "")
	f.rule(f.key, wish().but(object{"on": true, "actions": []object{{"kind": "generatePIN", "length": 10}}}))
	const acted, unknown = " done; Print job acted, generatePIN done", " done; Print job notMet unknownUser"
	by := func(id string, ref object) object { return printJob(id, "").but(object{"user": ref}) }
	wantOutcome := func(body object, want string) {
		t.Helper()
		if got := f.send(f.key, body); len(got) != 1 || got[0] != body["id"].(string)+want {
			t.Errorf("%v: %q, want %q", body, got, want)
		}
	}
	for i, ref := range []object{{"username": "ADA"}, {"externalId": "e-ada"}, {"mail": "ada@acme.example"}} {
		id := f.call("POST", "/v1/users", f.key, object{"username": "Ada", "externalId": "e-ada", "mail": "ada@acme.example"}).want(201).text("id")
		wantOutcome(by(fmt.Sprint("known-", i), ref), acted)
		if !f.verified(id, f.mailedPIN()) {
			t.Errorf("%v: another's PIN", ref)
		}
		f.call("DELETE", "/v1/users/"+id, f.key, nil).want(204)
		f.clock.advance(time.Second)
	}
	// Another tenant's user is as unknown as nobody.
	wantOutcome(by("theirs", object{"id": theirs}), unknown)
	wantOutcome(by("nobody", object{"username": "grace"}), unknown)

	f.mailing(f.key, object{"createUsersFromEvents": true})
	wantOutcome(by("theirs-2", object{"id": theirs}), unknown)
	newUser := object{"username": "grace", "displayName": "Grace", "mail": "grace@acme.example", "groups": []string{"staff"}}
	wantOutcome(by("new-1", object{"username": "grace"}).but(object{"newUser": newUser}), acted)
	pin := f.mailedPIN()
	var list struct {
		Items []struct {
			ID, Username, DisplayName, Mail string
			Groups                          []string
		}
	}
	f.call("GET", "/v1/users?username=grace", f.key, nil).want(200).decode(&list)
	if len(list.Items) != 1 || list.Items[0].DisplayName != "Grace" || list.Items[0].Mail != "grace@acme.example" || !slices.Equal(list.Items[0].Groups, []string{"staff"}) || !f.verified(list.Items[0].ID, pin) {
		t.Errorf("the new user: %+v", list)
	}
	// By the address alone, which becomes the username.
	f.clock.advance(time.Second)
	wantOutcome(by("new-2", object{"mail": "alan@acme.example"}), acted)
	f.mailedPIN()
	f.call("GET", "/v1/users?username=alan@acme.example", f.key, nil).want(200).decode(&list)
	if len(list.Items) != 1 {
		t.Errorf("by the address: %+v", list)
	}
	// What is not a user's is refused by nobody's name, and the event is kept.
	wantOutcome(by("new-3", object{"username": " "}), unknown)
	if f.mails() != 5 {
		t.Errorf("%d mails, want 5", f.mails())
	}
}

// TestSetPINFromEvent: a PIN comes in a secret attribute, and is shown nowhere.
func TestSetPINFromEvent(t *testing.T) {
	f := newFixture(t)
	hook, _ := f.webhook(f.key)
	id := f.user(f.key, "")
	f.rule(f.key, wish().but(object{"on": true, "event": "custom.enrolled", "actions": []object{
		{"kind": "setPIN", "attribute": "chosen"}, {"kind": "callWebhook", "endpoint": hook}}}))
	tell := func(event, secret string) []string {
		t.Helper()
		canary.secret("secret attribute", secret)
		return f.send(f.key, object{"id": event, "type": "custom.enrolled", "user": object{"id": id}, "attributes": object{"desk": "7"}, "secretAttributes": object{"chosen": secret}})
	}
	pin := f.pin()
	if got := tell("one", pin); got[0] != "one done; Print job acted, setPIN done, callWebhook done" || !f.verified(id, pin) {
		t.Errorf("got %q", got)
	}
	for _, request := range f.receiver.take() {
		if strings.Contains(request.body, pin) || !strings.Contains(request.body, `"desk":"7"`) {
			t.Errorf("the webhook says %s", request.body)
		}
	}
	if got := tell("two", "12345678"); !strings.HasPrefix(got[0], "two done; Print job acted, setPIN refused ") || !strings.Contains(got[0], "sequential") || !f.verified(id, pin) {
		t.Errorf("a PIN that the policy refuses: %q", got)
	}
	f.call("GET", "/v1/event?id=one", f.key, nil).want(200)
	f.call("GET", events, f.key, nil).want(200)
	f.call("GET", "/v1/deliveries", f.key, nil).want(200)
	if strings.Contains(f.stored(), pin) {
		t.Error("the table has the PIN in the clear")
	}
}

// TestSameEventAtOnce: of many who tell of the same at the same time, one has an effect.
func TestSameEventAtOnce(t *testing.T) {
	f := newFixture(t)
	f.mailing(f.key, nil)
	f.rule(f.key, wish().but(object{"on": true, "actions": []object{{"kind": "generatePIN", "length": 10}}}))
	id := f.user(f.key, "")
	var mu sync.Mutex
	var wg sync.WaitGroup
	outcomes := map[string]int{}
	for range 20 {
		wg.Go(func() {
			a, err := f.try("POST", events, f.key, printJob("job", id))
			mu.Lock()
			defer mu.Unlock()
			if err != nil || a.status != 200 {
				t.Errorf("%d %s %v", a.status, a.body, err)
				return
			}
			outcomes[f.sent(a)[0].String()]++
		})
	}
	wg.Wait()
	want := map[string]int{"job done; Print job acted, generatePIN done": 1, "job duplicate; Print job acted, generatePIN done": 19}
	if diff := cmp.Diff(want, outcomes); diff != "" || f.mails() != 1 {
		t.Errorf("%d mails; -want +got:\n%s", f.mails(), diff)
	}
	f.mailedPIN()
}

func TestEventCatalogue(t *testing.T) {
	f := newFixture(t)
	var b struct {
		Version int
		Types   []struct {
			Type, About string
			Inside      bool
			Attributes  []string
		}
	}
	f.call("GET", "/v1/event-types", f.keyOf("events"), nil).want(200).decode(&b)
	outside := 0
	for _, e := range b.Types {
		if e.About == "" || e.Attributes == nil {
			t.Errorf("%+v", e)
		}
		if status := f.call("POST", events, f.key, object{"id": e.Type, "type": e.Type}).status; (status == 200) == e.Inside {
			t.Errorf("%s from outside: %d, inside is %v", e.Type, status, e.Inside)
		}
		if !e.Inside {
			outside++
		}
	}
	if b.Version != 1 || outside != 3 || len(b.Types) != 15 {
		t.Errorf("version %d, %d types, %d of them from outside", b.Version, len(b.Types), outside)
	}
}
