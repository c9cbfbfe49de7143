package rule_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

func ptr[T any](v T) *T { return &v }

// outcomes are what rules made of an event, in short.
func outcomes(a rule.Answer) (all []string) {
	for _, r := range a.Event.Runs {
		s := string(r.Outcome)
		if r.Reason != "" {
			s += " " + r.Reason
		}
		for _, f := range r.Effects {
			s += fmt.Sprintf(", %s %s", f.Action, f.Outcome)
			if f.Reason != "" {
				s += " " + f.Reason
			}
		}
		all = append(all, s)
	}
	return all
}

func (w *world) wantOutcomes(what string, a rule.Answer, want ...string) {
	w.Helper()
	if diff := cmp.Diff(want, outcomes(a)); diff != "" {
		w.Errorf("%s: -want +got:\n%s", what, diff)
	}
}

// TestFirstPrintJob is the rule that the product is known for, as it comes.
func TestFirstPrintJob(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada", "")
	if a := w.mustReceive(printJob("job-0", "ada")); len(a.Event.Runs) != 0 || a.Event.State != event.Done {
		t.Errorf("while the rule is off: %+v", a)
	}
	w.turnOn(rule.FirstPrintJob)

	first := w.mustReceive(printJob("job-1", "ada"))
	w.wantOutcomes("first job", first, "acted, generatePIN done")
	mails := w.mails("ada@acme.example")
	if len(mails) != 1 {
		t.Fatalf("%d mails", len(mails))
	}
	if got := w.reread(ada).PIN; got.State(w.Now()) != user.IsSet || got.By.Kind != audit.Rule || got.By.ID != rule.FirstPrintJob {
		t.Errorf("PIN is %s, by %+v", got.State(w.Now()), got.By)
	}
	if !w.knows(ada, mails[0].Text) {
		t.Error("the PIN that was mailed does not let in")
	}

	again := w.mustReceive(printJob("job-1", "ada"))
	if !again.Duplicate {
		t.Error("the same event again is no duplicate")
	}
	w.wantOutcomes("the same event again", again, "acted, generatePIN done")
	w.wantOutcomes("second job", w.mustReceive(printJob("job-2", "ada")), "notMet notFirst")
	w.wantOutcomes("job of nobody", w.mustReceive(printJob("job-3", "nobody")), "notMet unknownUser")

	bob, err := w.Users.Create(t.Context(), w.core(acme), admin, user.Profile{Username: "bob"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.wantOutcomes("without an address", w.mustReceive(printJob("job-4", "BOB")), "notMet noMail")
	if w.reread(bob).PIN.State(w.Now()) != user.NoPIN {
		t.Error("a PIN that nobody can read was made")
	}
	if len(w.mails("")) != 1 {
		t.Errorf("%d mails in all, want 1", len(w.mails("")))
	}
	records, _, err := audit.Of(t.Context(), w.table, acme, rule.Subject(rule.FirstPrintJob), "", 10)
	if err != nil || len(records) != 2 || records[0].Action != "rule.acted" || records[0].Details["user"] != ada.ID || records[0].Details["event"] != "job-1" {
		t.Errorf("history: %+v, %v", records, err)
	}
}

// knows tells whether a mail has a PIN that lets the user in.
func (w *world) knows(u user.User, text string) bool {
	w.Helper()
	for _, word := range strings.Fields(text) {
		word = strings.Trim(word, ".,:;()")
		if len(word) < 4 || strings.Trim(word, "0123456789") != "" {
			continue
		}
		r, err := w.Users.Verify(w.Context(), w.core(acme), admin, user.Ref{ID: u.ID}, secret.New(word))
		if err != nil {
			w.Fatal(err)
		}
		if r.Right {
			return true
		}
	}
	return false
}

// TestPolicyBinds shows that a rule cannot make a PIN that the policy refuses, and says why.
func TestPolicyBinds(t *testing.T) {
	w := newWorld(t)
	core := w.core(acme)
	p := core.Policy.Policy
	p.MinLength, p.ExpirationHours = 8, 48
	if _, err := w.Tenants.ChangePolicy(t.Context(), admin, core, p); err != nil {
		t.Fatal(err)
	}
	ada := w.user("ada", "73915846")
	w.rule("custom.set", rule.Conditions{}, rule.Action{Kind: rule.SetPIN, Attribute: "pin"})
	w.rule("custom.short", rule.Conditions{}, rule.Action{Kind: rule.GeneratePIN, Length: 4})
	w.rule("custom.long", rule.Conditions{}, rule.Action{Kind: rule.GeneratePIN, ValidHours: 1000})
	told := func(id string, kind event.Type, pin string) rule.Answer {
		e := event.Event{ID: id, Type: kind, At: w.Now(), Ref: event.Ref{ID: ada.ID}, Source: event.FromAPI}
		if pin != "" {
			e.Secrets = map[string]secret.Text{"pin": secret.New(pin)}
		}
		return w.mustReceive(e)
	}
	w.wantOutcomes("bad PIN", told("1", "custom.set", "1234"), "acted, setPIN refused tooShort sequential common")
	w.wantOutcomes("no PIN", told("2", "custom.set", ""), "acted, setPIN refused attribute")
	w.wantOutcomes("short PIN", told("3", "custom.short", ""), "acted, generatePIN refused range")
	if !w.right(ada, "73915846") {
		t.Error("a refused PIN has taken the place of the one there was")
	}
	w.wantOutcomes("good PIN", told("4", "custom.set", "28640597"), "acted, setPIN done")
	if !w.right(ada, "28640597") {
		t.Error("the PIN was not set")
	}
	w.wantOutcomes("the PIN there is, set again", told("5", "custom.set", "28640597"), "acted, setPIN done")
	told("6", "custom.long", "")
	if until := w.reread(ada).PIN.ExpiresAt; until.After(w.Now().Add(48 * time.Hour)) {
		t.Errorf("a rule's PIN lives until %v, longer than the policy has it", until)
	}
}

func (w *world) right(u user.User, pin string) bool {
	w.Helper()
	r, err := w.Users.Verify(w.Context(), w.core(acme), admin, user.Ref{ID: u.ID}, secret.New(pin))
	if err != nil {
		w.Fatal(err)
	}
	return r.Right
}

// TestReferences shows the ways in which an event names its user, and that another tenant's
// user is as unknown as one that there is not.
func TestReferences(t *testing.T) {
	w := newWorld(t)
	w.open("other")
	theirs, err := w.Users.Create(t.Context(), w.core("other"), admin, user.Profile{Username: "eve", Mail: "eve@other.example", ExternalID: "x-1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ada, err := w.Users.Create(t.Context(), w.core(acme), admin, user.Profile{Username: "ada", Mail: "ada@acme.example", ExternalID: "x-7"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.rule("custom.x", rule.Conditions{HasPIN: ptr(true)}, rule.Action{Kind: rule.ExpirePIN})
	for i, test := range []struct {
		ref  event.Ref
		want string
	}{
		{event.Ref{ID: ada.ID}, ada.ID},
		{event.Ref{Username: "ADA"}, ada.ID},
		{event.Ref{ExternalID: "x-7"}, ada.ID},
		{event.Ref{Mail: "Ada@acme.example"}, ada.ID},
		{event.Ref{}, ""},
		{event.Ref{ID: theirs.ID}, ""},
		{event.Ref{Username: "eve"}, ""},
		{event.Ref{ExternalID: "x-1"}, ""},
		{event.Ref{Mail: "eve@other.example"}, ""},
		{event.Ref{ID: "nonsense"}, ""},
	} {
		a := w.mustReceive(event.Event{ID: fmt.Sprint(i), Type: "custom.x", At: w.Now(), Ref: test.ref, Source: event.FromAPI})
		want := "notMet noPin"
		if test.want == "" {
			want = "notMet unknownUser"
		}
		if a.Event.User != test.want || outcomes(a)[0] != want {
			t.Errorf("%+v is %q, %v; want %q, %s", test.ref, a.Event.User, outcomes(a), test.want, want)
		}
	}
}

// TestNewEmployee shows that an event can create its user, once, where the tenant wants that.
func TestNewEmployee(t *testing.T) {
	w := newWorld(t)
	w.turnOn(rule.FirstPrintJob)
	w.turnOn(rule.NewUser) // which the same user meets
	fresh := &user.Profile{Username: "grace", Mail: "grace@acme.example"}
	if a, err := w.Engine.Receive(t.Context(), w.core(acme), printJob("job-0", "grace"), fresh); err != nil || outcomes(a)[0] != "notMet unknownUser" {
		t.Errorf("where the tenant does not want it: %v, %v", outcomes(a), err)
	}
	w.settings(acme, func(s *tenant.Settings) { s.CreateUsers = true })
	var g errgroup.Group
	for i := range 20 {
		g.Go(func() error {
			_, err := w.Engine.Receive(t.Context(), w.core(acme), printJob(fmt.Sprint("job-", i%5+1), "grace"), fresh)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	w.sweep()
	if n := len(w.mails("grace@acme.example")); n != 1 {
		t.Errorf("%d mails", n)
	}
	grace, err := w.Users.ByUsername(t.Context(), acme, "grace")
	if err != nil || grace.PIN.State(w.Now()) != user.IsSet {
		t.Errorf("she has %s, %v", grace.PIN.State(w.Now()), err)
	}
	other := &user.Profile{Username: "somebody else", Mail: "hopper@acme.example", ExternalID: "x-9"}
	if a, err := w.Engine.Receive(t.Context(), w.core(acme), printJob("job-8", "hopper"), other); err != nil || outcomes(a)[0] != "acted, generatePIN done" {
		t.Errorf("whose profile has another name: %v, %v", outcomes(a), err)
	}
	if u, err := w.Users.ByUsername(t.Context(), acme, "hopper"); err != nil || u.Profile.ExternalID != "x-9" {
		t.Errorf("they are %+v, %v", u.Profile, err)
	}
	if _, err := w.Engine.Receive(t.Context(), w.core(acme), printJob("job-11", "bad"), &user.Profile{Username: "bad", Mail: "no address"}); err == nil || !strings.Contains(err.Error(), "newUser.mail") {
		t.Errorf("a profile that cannot be: %v", err)
	}
	// A name alone is enough where an address is not wanted.
	a := w.mustReceive(event.Event{ID: "job-9", Type: event.PrintJobSubmitted, At: w.Now(), Ref: event.Ref{Mail: "new@acme.example"}, Source: event.FromAPI})
	w.wantOutcomes("named by mail", a, "acted, generatePIN done")
	if a := w.mustReceive(event.Event{ID: "job-10", Type: event.PrintJobSubmitted, At: w.Now(), Ref: event.Ref{ID: "01ARZ3NDEKTSV4RRFFQ69G5FAV"}, Source: event.FromAPI}); a.Event.User != "" {
		t.Error("a user was made for an id of nobody's")
	}
}

// TestTimes shows that what happened too long ago, or has not happened yet, is refused.
func TestTimes(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		ago  time.Duration
		want string
	}{
		{-4 * time.Minute, ""}, {-6 * time.Minute, "future"}, {0, ""}, {6 * 24 * time.Hour, ""},
		{8 * 24 * time.Hour, "past"}, {2 * 365 * 24 * time.Hour, "past"},
	} {
		e := printJob(fmt.Sprint("job", test.ago), "ada")
		e.At = w.Now().Add(-test.ago)
		_, err := w.receive(e)
		var invalid *problem.InvalidError
		got := ""
		if errors.As(err, &invalid) {
			got = invalid.Violations[0].Code
		} else if err != nil {
			t.Fatal(err)
		}
		if got != test.want {
			t.Errorf("%v ago: %q, want %q", test.ago, got, test.want)
		}
		_, err = event.Get(t.Context(), w.table, acme, e.ID)
		if stored := err == nil; stored != (test.want == "") {
			t.Errorf("%v ago: stored %t", test.ago, stored)
		}
	}
}

// TestActions tries each action that acts on a PIN or tells somebody.
func TestActions(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada", "73915846")
	at := func(id string, kind event.Type) rule.Answer {
		return w.mustReceive(event.Event{ID: id, Type: kind, At: w.Now(), Ref: event.Ref{ID: ada.ID}, Attributes: map[string]string{"door": "north"}, Source: event.FromAPI})
	}
	w.rule("custom.change", rule.Conditions{}, rule.Action{Kind: rule.RequireChange})
	w.rule("custom.mail", rule.Conditions{}, rule.Action{Kind: rule.SendMail, Message: "The north door was opened."})
	w.rule("custom.expire", rule.Conditions{}, rule.Action{Kind: rule.ExpirePIN})
	w.rule("custom.lost", rule.Conditions{}, rule.Action{Kind: rule.SendMail, Messaging: "gone", Message: "x"}, rule.Action{Kind: rule.ExpirePIN})
	w.rule("custom.unblock", rule.Conditions{}, rule.Action{Kind: rule.RequestUnblock})

	w.wantOutcomes("require change", at("1", "custom.change"), "acted, requireChange done")
	w.wantOutcomes("require change once more", at("2", "custom.change"), "acted, requireChange done")
	r, err := w.Users.Verify(t.Context(), w.core(acme), admin, user.Ref{ID: ada.ID}, secret.New("73915846"))
	if err != nil || !r.Right || !r.ChangeRequired {
		t.Errorf("after that a right PIN is answered %+v, %v", r, err)
	}
	w.wantOutcomes("send mail", at("3", "custom.mail"), "acted, sendMail done")
	if mails := w.mails("ada@acme.example"); len(mails) != 1 || !strings.Contains(mails[0].Text, "The north door was opened.") {
		t.Errorf("mails: %+v", mails)
	}
	w.wantOutcomes("a messaging configuration that is gone", at("4", "custom.lost"), "acted, sendMail refused noMessaging, expirePIN done")
	if w.right(ada, "73915846") {
		t.Error("the PIN lets in still")
	}
	w.wantOutcomes("expire no PIN", at("5", "custom.expire"), "acted, expirePIN refused noPin")
	w.wantOutcomes("unblock of no card", at("6", "custom.unblock"), "acted, requestUnblock refused noCard")
}

// TestExactlyOnce interrupts each action at every call to the table, before and after it took
// effect, lets the event come again at once and the sweep do the rest: the effect is there
// once.
func TestExactlyOnce(t *testing.T) {
	for _, test := range []struct {
		name    string
		actions []rule.Action
		want    [2]int // mails, new PINs
	}{
		{"generate", []rule.Action{{Kind: rule.GeneratePIN}}, [2]int{1, 1}},
		{"set", []rule.Action{{Kind: rule.SetPIN, Attribute: "pin"}}, [2]int{0, 1}},
		{"mail", []rule.Action{{Kind: rule.SendMail, Message: "x"}}, [2]int{1, 0}},
		{"all", []rule.Action{{Kind: rule.SetPIN, Attribute: "pin"}, {Kind: rule.SendMail, Message: "x"}, {Kind: rule.RequireChange}, {Kind: rule.ExpirePIN}, {Kind: rule.GeneratePIN}}, [2]int{2, 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, after := range []bool{false, true} {
				for n := 1; ; n++ {
					w := newWorld(t)
					ada := w.user("ada", "")
					w.rule(event.PrintJobSubmitted, rule.Conditions{First: true}, test.actions...)
					core := w.core(acme)
					e := printJob("job-1", "ada")
					e.Secrets = map[string]secret.Text{"pin": secret.New("73915846")}
					faulty := tabletest.Fail(w.table, n, after)
					w.fails.set(faulty)
					_, err := w.Engine.Receive(t.Context(), core, e, nil)
					w.fails.set(w.table)
					if err != nil && !errors.Is(err, tabletest.ErrFault) {
						t.Fatalf("call %d: %v", n, err)
					}
					w.mustReceive(e)
					w.sweep()
					w.mustReceive(e)
					stored, err := event.Get(t.Context(), w.table, acme, "job-1")
					if err != nil || stored.State != event.Done || len(stored.Runs) != 1 || len(stored.Runs[0].Effects) != len(test.actions) {
						t.Errorf("call %d, after %t: the event is %+v, %v", n, after, stored, err)
					}
					mails := len(w.mails("ada@acme.example"))
					pins := 0
					records, _, err := audit.Of(t.Context(), w.table, acme, user.Subject(ada.ID), "", 100)
					if err != nil {
						t.Fatal(err)
					}
					for _, r := range records {
						if r.Action == "pin.set" || r.Action == "pin.activated" {
							pins++
						}
					}
					if got := [2]int{mails, pins}; got != test.want {
						t.Errorf("call %d, after %t: %d mails and %d PINs, want %v", n, after, got[0], got[1], test.want)
					}
					for _, f := range stored.Runs[0].Effects {
						if f.Outcome != event.EffectDone {
							t.Errorf("call %d, after %t: %+v", n, after, f)
						}
					}
					if faulty.Calls() < n {
						break
					}
				}
			}
		})
	}
}

// post is a mail system that answers the first mail with an outcome, whatever it did with it.
type post struct {
	mail.Senders
	takes   bool
	outcome mail.Outcome
	said    bool
}

// For implements user.Senders.
func (p *post) For(c mail.Configuration) (mail.Sender, error) {
	s, err := p.Senders.For(c)
	return sender{s, p}, err
}

type sender struct {
	mail.Sender
	*post
}

// Send implements mail.Sender.
func (s sender) Send(ctx context.Context, messages []mail.Message) []mail.Result {
	if s.said {
		return s.Sender.Send(ctx, messages)
	}
	s.said = true
	if s.takes {
		s.Sender.Send(ctx, messages)
	}
	return []mail.Result{{Outcome: s.outcome, Code: "test"}}
}

// TestMailFaults shows that the user ends with one PIN and one mail that tells it, whatever
// the mail system answers at first; or, if it will never take the mail, with what there was.
func TestMailFaults(t *testing.T) {
	for _, test := range []struct {
		name     string
		takes    bool
		outcome  mail.Outcome
		mails    int
		repeated bool
	}{
		{"accepted", true, mail.Accepted, 1, false},
		{"failed", false, mail.Failed, 1, false},
		{"taken, and the answer lost", true, mail.Unknown, 1, true}, // the outbox drops what it has under the same Message-ID
		{"lost on its way", false, mail.Unknown, 1, true},
		{"refused", false, mail.Refused, 0, false},
	} {
		w := newWorld(t)
		w.Engine.Senders = &post{Senders: w.Senders, takes: test.takes, outcome: test.outcome}
		ada := w.user("ada", "73915846")
		w.rule(event.PrintJobSubmitted, rule.Conditions{}, rule.Action{Kind: rule.GeneratePIN})
		w.wantOutcomes(test.name, w.mustReceive(printJob("job-1", "ada")), "acted, generatePIN done")
		w.mustReceive(printJob("job-1", "ada"))
		w.sweep()
		mails := w.mails("ada@acme.example")
		if len(mails) != test.mails {
			t.Errorf("%s: %d mails, want %d", test.name, len(mails), test.mails)
		}
		if old := w.right(ada, "73915846"); old != (test.mails == 0) {
			t.Errorf("%s: the PIN that there was lets in: %t", test.name, old)
		}
		if test.mails == 1 && !w.knows(ada, mails[0].Text) {
			t.Errorf("%s: the mail does not tell the PIN", test.name)
		}
		records, _, err := audit.Of(t.Context(), w.table, acme, user.Subject(ada.ID), "", 100)
		if err != nil {
			t.Fatal(err)
		}
		repeated := slices.ContainsFunc(records, func(r audit.Record) bool {
			return r.Action == "pin.activated" && r.Details["possiblyRepeated"] == "true"
		})
		if repeated != test.repeated {
			t.Errorf("%s: on record as possibly repeated: %t", test.name, repeated)
		}
	}
}

// TestWebhookExactlyOnce interrupts a webhook at every call to the table: the endpoint is told
// once, or the delivery is on record as repeated.
func TestWebhookExactlyOnce(t *testing.T) {
	var mu sync.Mutex
	got := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got[r.Header.Get("webhook-id")]++
	}))
	defer server.Close()
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			w := newWorld(t)
			w.Deliveries.Anywhere = true
			endpoint, _, err := w.Deliveries.CreateEndpoint(t.Context(), w.core(acme), admin, delivery.Endpoint{Name: "hook", URL: server.URL, On: true})
			if err != nil {
				t.Fatal(err)
			}
			w.rule("custom.x", rule.Conditions{}, rule.Action{Kind: rule.CallWebhook, Endpoint: endpoint.ID})
			e := event.Event{ID: "x-1", Type: "custom.x", At: start, Source: event.FromAPI}
			core := w.core(acme)
			clear(got)
			faulty := tabletest.Fail(w.table, n, after)
			w.fails.set(faulty)
			_, err = w.Engine.Receive(t.Context(), core, e, nil)
			w.fails.set(w.table)
			if err != nil && !errors.Is(err, tabletest.ErrFault) {
				t.Fatal(err)
			}
			w.mustReceive(e)
			w.sweep()
			made, _, err := w.Deliveries.List(t.Context(), acme, false, "", 10)
			if err != nil || len(made) != 1 || made[0].State != delivery.Delivered {
				t.Fatalf("call %d, after %t: %+v, %v", n, after, made, err)
			}
			if told := got[made[0].ID]; len(got) != 1 || told < 1 || told > 1 && !made[0].Repeated {
				t.Errorf("call %d, after %t: told %d times, repeated %t", n, after, told, made[0].Repeated)
			}
			if faulty.Calls() < n {
				break
			}
		}
	}
}

// TestTryAll shows a rule over what is stored, which changes nothing.
func TestTryAll(t *testing.T) {
	w := newWorld(t)
	w.user("ada", "")
	w.user("bob", "73915846")
	for i, name := range []string{"ada", "bob", "ada", "nobody"} {
		w.mustReceive(printJob(fmt.Sprint("job-", i), name))
		w.pass(time.Second)
	}
	w.mustReceive(event.Event{ID: "other", Type: "custom.x", At: start, Source: event.FromAPI})
	before := w.dump()
	r, err := w.Rules.Get(t.Context(), acme, rule.FirstPrintJob)
	if err != nil {
		t.Fatal(err)
	}
	trials, err := w.Engine.TryAll(t.Context(), w.core(acme), r)
	if err != nil {
		t.Fatal(err)
	}
	if trials.Read != 5 || trials.Of != 4 || trials.Acting != 1 || len(trials.Shown) != 1 || trials.Shown[0].Event.ID != "job-0" {
		t.Errorf("it would have acted so: %+v", trials)
	}
	if diff := cmp.Diff(map[string]int{rule.ReasonHasPIN: 1, rule.ReasonNotFirst: 1, rule.ReasonUnknownUser: 1}, trials.Unmet); diff != "" {
		t.Errorf("and else not: -want +got:\n%s", diff)
	}
	if !bytes.Equal(before, w.dump()) || len(w.mails("")) != 0 {
		t.Error("the trial has changed something")
	}
	trial, err := w.Engine.Try(t.Context(), w.core(acme), rule.Rule{Name: "x", Event: "custom.x", Actions: []rule.Action{{Kind: rule.SetPIN, Attribute: "pin"}}},
		event.Event{ID: "trial", Type: "custom.x", At: start, Ref: event.Ref{Username: "ada"}, Secrets: map[string]secret.Text{"pin": secret.New("1234")}, Source: event.FromAPI})
	if err != nil || len(trial.Run.Effects) != 1 || !strings.Contains(trial.Run.Effects[0].Reason, "sequential") {
		t.Errorf("a PIN that the policy refuses: %+v, %v", trial, err)
	}
}

// dump is what the table holds.
func (w *world) dump() []byte {
	w.Helper()
	b, err := os.ReadFile(w.path)
	if err != nil {
		w.Fatal(err)
	}
	return b
}

// TestConcurrentDeliveries delivers 50 events 20 times each at the same time: each has its
// effect once.
func TestConcurrentDeliveries(t *testing.T) {
	w := newWorld(t)
	w.turnOn(rule.FirstPrintJob)
	core := w.core(acme)
	for i := range 50 {
		w.user(fmt.Sprint("user", i), "")
	}
	var g errgroup.Group
	g.SetLimit(64)
	for i := range 1000 {
		g.Go(func() error {
			_, err := w.Engine.Receive(t.Context(), core, printJob(fmt.Sprint("job-", i%50), fmt.Sprint("user", i%50)), nil)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	w.sweep()
	for i := range 50 {
		if n := len(w.mails(fmt.Sprintf("user%d@", i))); n != 1 {
			t.Errorf("user%d has %d mails", i, n)
		}
	}
	records, _, err := audit.Of(t.Context(), w.table, acme, rule.Subject(rule.FirstPrintJob), "", 200)
	if err != nil || len(records) != 51 { // and that it was turned on
		t.Errorf("%d records of what the rule did, %v", len(records), err)
	}
}

// TestLoops shows that rules that wake each other come to an end, and that an administrator
// sees it.
func TestLoops(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada", "73915846")
	// Each new PIN is made to expire, and each expired one is replaced: for ever, if nothing
	// cut it.
	expire := w.rule(event.PINSet, rule.Conditions{}, rule.Action{Kind: rule.ExpirePIN})
	renew := w.rule(event.PINExpired, rule.Conditions{}, rule.Action{Kind: rule.GeneratePIN})
	if _, err := w.Users.SetPIN(t.Context(), w.core(acme), admin, ada.ID, secret.New("28640597")); err != nil {
		t.Fatal(err)
	}
	w.sweep()
	if n := len(w.mails("ada@acme.example")); n != 1 {
		t.Errorf("%d mails with new PINs", n)
	}
	cut := 0
	for _, id := range []string{expire.ID, renew.ID} {
		records, _, err := audit.Of(t.Context(), w.table, acme, rule.Subject(id), "", 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if r.Action == "rule.cut" && r.Reason == rule.ReasonInChain {
				cut++
			}
		}
	}
	if cut != 1 {
		t.Errorf("%d chains were cut, as the rules' histories have it, want 1", cut)
	}
	if got := w.reread(ada).PIN.State(w.Now()); got != user.IsSet {
		t.Errorf("in the end the PIN is %s", got)
	}
}

// TestLongChain shows that different rules, each waking the next, are cut after MaxChain.
func TestLongChain(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada", "73915846")
	for range 8 { // of each event all eight act, which wakes them all again
		w.rule(event.PINSet, rule.Conditions{}, rule.Action{Kind: rule.ExpirePIN})
		w.rule(event.PINExpired, rule.Conditions{}, rule.Action{Kind: rule.GeneratePIN})
	}
	if _, err := w.Users.EndPIN(t.Context(), w.core(acme), admin, ada.ID); err != nil {
		t.Fatal(err)
	}
	w.sweep()
	longest, cut := 0, 0
	for place := ""; ; {
		events, next, err := event.List(t.Context(), w.table, acme, place, 200)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			longest = max(longest, len(e.Chain))
			seen := map[string]bool{}
			for _, id := range e.Chain {
				if seen[id] {
					t.Errorf("event %s has rule %s twice in its chain", e.ID, id)
				}
				seen[id] = true
			}
			for _, r := range e.Runs {
				if r.Outcome == event.Cut && r.Reason == rule.ReasonChainLong {
					cut++
				}
				if r.Outcome == event.Acted && len(e.Chain) >= rule.MaxChain {
					t.Errorf("a rule acted at the end of a chain of %d", len(e.Chain))
				}
			}
		}
		if place = next; place == "" {
			break
		}
	}
	if longest != rule.MaxChain || cut == 0 {
		t.Errorf("the longest chain is %d, %d were cut for their length", longest, cut)
	}
}

// TestCost counts the calls to the table for an event, besides those that each request makes
// for its key and tenant.
func TestCost(t *testing.T) {
	w := newWorld(t)
	counted := tabletest.Count(w.table)
	w.fails.set(counted)
	w.user("ada", "")
	calls := func(e event.Event) tabletest.Calls {
		t.Helper()
		core := w.core(acme)
		counted.Take()
		if _, err := w.Engine.Receive(t.Context(), core, e, nil); err != nil {
			t.Fatal(err)
		}
		return counted.Take()
	}
	check := func(what string, got, want tabletest.Calls) {
		t.Helper()
		got.Queried, got.Ops = 0, 0
		if got != want {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	check("no rule of the type", calls(printJob("1", "ada")), tabletest.Calls{Writes: 1})
	w.turnOn(rule.FirstPrintJob)
	check("first job, which gives a PIN and mails it", calls(printJob("2", "ada")), tabletest.Calls{Gets: 8, Queries: 2, Writes: 3})
	check("second job, which a rule leaves alone", calls(printJob("3", "ada")), tabletest.Calls{Gets: 3, Queries: 1, Writes: 1})
	check("the same again", calls(printJob("3", "ada")), tabletest.Calls{Gets: 4, Queries: 1, Writes: 1})
	check("a job of nobody", calls(printJob("4", "nobody")), tabletest.Calls{Gets: 1, Queries: 1, Writes: 1})
}

// TestRandomRules lets random rules meet random events: no chain is too long, no PIN is made
// that the policy refuses, nothing happens to another tenant, and it comes to an end.
func TestRandomRules(t *testing.T) {
	rounds := testserver.Rounds(1000, 100)
	w := newWorld(t)
	w.open("other")
	theirs, err := w.Users.Create(t.Context(), w.core("other"), admin, user.Profile{Username: "ada", Mail: "ada@other.example"}, ptr(secret.New("73915846")))
	if err != nil {
		t.Fatal(err)
	}
	for seed := range rounds {
		w.randomRound(uint64(seed))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	after, err := w.Users.Get(t.Context(), "other", theirs.ID)
	if err != nil || !reflect.DeepEqual(theirs, after) {
		t.Errorf("another tenant's user has changed: %v", err)
	}
	if n := len(w.mails("@other.example")); n != 0 {
		t.Errorf("%d mails to another tenant's user", n)
	}
}

// randomRound makes a rule set and a stream of events of a seed, and looks at what came of it.
func (w *world) randomRound(seed uint64) {
	w.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	pick := func(types ...event.Type) event.Type { return types[random.IntN(len(types))] }
	maybe := func() *bool {
		switch random.IntN(4) {
		case 0:
			return ptr(true)
		case 1:
			return ptr(false)
		}
		return nil
	}
	core := w.core(acme)
	var rules []rule.Rule
	for range 1 + random.IntN(6) {
		r := rule.Rule{Name: "random", On: random.IntN(5) > 0, Order: random.IntN(3),
			Event:      pick("custom.a", "custom.b", event.PINSet, event.PINSet, event.PINExpired, event.PINExpired),
			Conditions: rule.Conditions{First: random.IntN(8) == 0, HasPIN: maybe(), HasMail: maybe()}}
		for range 1 + random.IntN(3) {
			r.Actions = append(r.Actions, []rule.Action{
				{Kind: rule.GeneratePIN, Length: random.IntN(12)}, {Kind: rule.SetPIN, Attribute: "pin"}, {Kind: rule.ExpirePIN},
				{Kind: rule.RequireChange}, {Kind: rule.SendMail, Message: "x"},
			}[random.IntN(5)])
		}
		r, err := w.Rules.Create(w.Context(), core, admin, r)
		if err != nil {
			w.Fatal(err)
		}
		rules = append(rules, r)
	}
	core = w.core(acme)
	name := fmt.Sprint("user", seed)
	u := w.user(name, "")
	for i := range 1 + random.IntN(4) {
		e := event.Event{ID: fmt.Sprintf("%d.%d", seed, random.IntN(i+1)), Type: pick("custom.a", "custom.b"), At: w.Now(), Ref: event.Ref{Username: name}, Source: event.FromAPI,
			Secrets: map[string]secret.Text{"pin": secret.New([]string{"1234", "73915846", "28640597", "11111111"}[random.IntN(4)])}}
		if random.IntN(6) == 0 {
			e.Ref = event.Ref{Username: "ada"} // of the other tenant
		}
		if _, err := w.Engine.Receive(w.Context(), core, e, nil); err != nil {
			w.Fatal(err)
		}
	}
	for rounds := 0; ; rounds++ {
		w.pass(time.Minute)
		report, err := w.Engine.Sweep(w.Context())
		if err != nil || report.Errors > 0 {
			w.Fatalf("sweep: %+v, %v", report, err)
		}
		if report.Due == 0 {
			break
		} else if rounds > 2*rule.MaxChain {
			w.Errorf("rules go on and on: %+v", report)
			return
		}
	}
	events, _, err := event.List(w.Context(), w.table, acme, "", 50)
	if err != nil {
		w.Fatal(err)
	}
	for _, e := range events {
		distinct := map[string]bool{}
		for _, id := range e.Chain {
			distinct[id] = true
		}
		if len(e.Chain) > rule.MaxChain || len(distinct) != len(e.Chain) {
			w.Errorf("a chain of %v", e.Chain)
		}
		if e.State != event.Done {
			w.Errorf("event %s was not done with", e.ID)
		}
	}
	for _, m := range w.newMails() {
		if !strings.HasPrefix(m.ID, "pin-issued.") {
			continue
		}
		if !slices.ContainsFunc(strings.Fields(m.Text), func(word string) bool {
			return len(core.Policy.Check(secret.New(word), pin.Context{Username: u.Profile.Username, Mail: u.Profile.Mail})) == 0
		}) {
			w.Errorf("a mail without a PIN that the policy lets through: %q", m.Text)
		}
	}
	if pin := w.reread(u).PIN; pin.State(w.Now()) == user.IsSet && (w.right(u, "1234") || w.right(u, "11111111")) {
		w.Error("a PIN that the policy refuses lets in")
	}
	for _, r := range rules {
		if err := w.Rules.Delete(w.Context(), core, admin, r.ID); err != nil {
			w.Fatal(err)
		}
	}
}
