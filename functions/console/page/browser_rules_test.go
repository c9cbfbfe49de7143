package page_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pinward/pinward/infra/testserver/browser"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/tenant"
)

// The policy in a browser: reasons as one types, a number that is none, and somebody else who
// was faster.
func TestPolicyInABrowser(t *testing.T) {
	f := newFixture(t)
	b := browser.New(t)
	f.signInBrowser(b, f.signedIn(tenant.RoleAdmin))
	b.Open(f.url + "/console/policy")
	b.Fill("PIN to try", "1234")
	b.See("This PIN is refused", "must not go up or down by one")
	b.Fill("PIN to try", "748293")
	b.See("This PIN may be used")
	b.Fill("Shortest PIN", "8")
	b.See("must have at least 8 characters")
	b.Fill("Shortest PIN", "70") // the form itself refuses that
	b.See("cannot be used as they stand")
	b.Fill("Shortest PIN", "8")
	b.Fill("Reminders by mail", "soon")
	b.Click("Save the policy")
	b.See("Please mend this", "whole numbers with commas between")
	if v := b.Value("PIN to try"); v != "" || strings.Contains(b.HTML(), "748293") {
		t.Errorf("the PIN is on the page again")
	}
	f.signedIn(tenant.RoleAdmin).get("/console/policy").submit("/console/policy", "maxLength", "20").want(http.StatusOK)
	b.Fill("Reminders by mail", "")
	b.Click("Save the policy")
	b.See("Somebody else has changed the policy meanwhile", "Longest PIN")
	b.Axe()
	b.Click("Save what I entered all the same")
	b.See("The policy is saved")
	if got := f.core(acme).Policy; got.MinLength != 8 || got.MaxLength != 16 {
		t.Errorf("got %+v", got)
	}
}

// A mail is seen as it is written, and a variable that there is not is said.
func TestMailTemplateInABrowser(t *testing.T) {
	f := newFixture(t)
	b := browser.New(t)
	f.signInBrowser(b, f.signedIn(tenant.RoleAdmin))
	b.Open(f.url + "/console/messaging/templates/notice")
	b.Fill("Subject", "For {{username}}")
	b.See("For ada")
	b.Fill("Subject", "For {{user}}")
	b.See("cannot be made as it stands", "{{user}} is not a variable of this mail")
	b.Click("Save the template")
	b.See("Please mend this", "{{user}} is not a variable of this mail")
	b.Fill("Subject", "For {{username}}")
	b.Click("Save the template")
	b.See("The template is saved", "changed by you")
}

// A rule is put together and tried, without scripts too.
func TestRuleInABrowser(t *testing.T) {
	f := newFixture(t)
	for _, scriptless := range []bool{false, true} {
		b := browser.New(t)
		f.signInBrowser(b, f.signedIn(tenant.RoleAdmin))
		if scriptless {
			b.DisableScript()
		}
		b.Open(f.url + "/console/rules/new")
		b.Click("Add the condition") // the first of them: the first time
		b.See("it is the first time for this person")
		b.Fill("A further condition", "an attribute of the event")
		b.Click("Add the condition")
		b.Fill("Name", "Second floor")
		b.Fill("the attribute", "queue")
		b.Fill("Value", "second floor")
		b.Click("Do a dry run")
		b.See("It would not act", "0 events were looked at.")
		b.Fill("the attribute", "the queue")
		b.Click("Save the rule")
		b.See("Please mend this", "must be 1 to 64 letters")
		b.Fill("the attribute", "queue")
		b.Click("Save the rule")
		b.See("The rule is saved", "the attribute “queue” is “second floor”")
		b.Click("Turn on")
		b.See("The rule is on")
	}
	all, err := f.Rules.List(t.Context(), acme)
	must(t, err)
	on := 0
	for _, r := range all {
		if r.On && r.Event == event.PrintJobSubmitted && r.Conditions.First && len(r.Actions) == 1 && r.Actions[0].Kind == rule.GeneratePIN {
			on++
		}
	}
	if on != 2 {
		t.Errorf("%d rules are on", on)
	}
}
