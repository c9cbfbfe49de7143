package page_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
)

// newDesk is a bridge with a blocked card in its reader, and an operator who has signed in.
func newDesk(t *testing.T, change func(*credential.Template)) (*counter, *client) {
	t.Helper()
	n := newCounterOf(t, false, change)
	return n, n.f.signedIn(tenant.RoleOperator)
}

// asks asks as a page does whether it is another by now: "" is no, and else where to go.
func (c *client) asks(p *answer) string {
	c.f.Helper()
	watched := find(p.root, isWatched)
	if len(watched) == 0 {
		c.f.Fatalf("%s is not watched", p.path)
	}
	c.header.Set("HX-Request", "true")
	defer c.header.Del("HX-Request")
	got := c.get(attribute(watched[0], "hx-get"))
	switch {
	case got.header.Get("HX-Redirect") != "":
		return got.header.Get("HX-Redirect")
	case got.header.Get("HX-Refresh") != "":
		return "anew"
	case got.status == http.StatusOK:
		return got.text()
	case got.status != http.StatusNoContent:
		c.f.Fatalf("the answer is %d: %s", got.status, got.body)
	}
	return ""
}

const statement = "staff badge shown, photo compared"

// chosen is the form that begins an unblock of the card that is seen.
func (n *counter) chosen(c *client) *answer {
	n.Helper()
	p := c.get("/console/unblock").want(200).has("ada", "PIN blocked")
	return p.c.get("/console/unblock/new?card=" + n.cred.ID + "&bridge=" + n.b.ID).want(200)
}

// begun begins an unblock by an operator.
func (n *counter) begun(c *client) *answer {
	n.Helper()
	return n.chosen(c).submit("/console/unblock/new", "statement", statement).want(200)
}

func TestUnblockAtADesk(t *testing.T) {
	n, c := newDesk(t, nil)
	form := n.chosen(c).has("ada", desk.Address, "PIN blocked", "Ada's card", "The card is at the bridge desk 2", "You make sure, and say how. Your word is enough.", "A code is mailed to the holder")
	form.submit("/console/unblock/new").want(422).has("How the person was identified: must say how the person was identified")
	pin := form.submit("/console/unblock/new", "statement", statement).want(200).has("The holder types the new PIN", "Hand the keyboard to the holder", "At least 6 characters", statement, "Time left")
	path := pin.path
	if again := form.submit("/console/unblock/new", "statement", statement).want(409); !strings.Contains(again.text(), "Go on with that one") || !strings.Contains(again.body, path) {
		t.Errorf("begun twice: %s", again.text())
	}
	if to := c.asks(pin); to != "" {
		t.Errorf("nothing has changed, and it goes to %s", to)
	}
	pin.submit(path + "/pin").want(422).has("was not sealed by this browser")

	n.b.Remove()
	if to := c.asks(pin); to != path {
		t.Errorf("the card was pulled, and it goes to %q", to)
	}
	c.get(path).want(200).has("Put the card in", "Nothing that was typed is kept").hasNot("data-seal")
	n.b.Insert(n.card)
	n.Must(n.b.Settle())
	pin = c.get(path).want(200).has("The holder types the new PIN")

	sealed := n.sealed(pin, newPIN)
	running := pin.submit(path+"/pin", "sealed", sealed).want(200).has("The card is being given its new PIN")
	if running.path != path {
		t.Errorf("it leads to %s", running.path)
	}
	c.post(path+"/cancel", url.Values{}).want(409).has("It has begun, and is over in a moment")
	n.Must(n.b.Settle())
	if to := c.asks(running); to != path {
		t.Errorf("it is done, and it goes to %q", to)
	}
	c.get(path).want(200).has("The card has its new PIN.", "succeeded", "Give the card back", statement)
	if !n.card.PINIs(newPIN) {
		t.Error("the card has another PIN")
	}
	pin.submit(path+"/pin", "sealed", sealed)
	if len(n.b.Resets) != 1 {
		t.Errorf("the card was reset %v times", n.b.Resets)
	}
	c.get("/console/unblock").want(200).has("PIN set anew a moment ago", "New PIN, by an operator", "succeeded")
	csv := c.get("/console/unblock?format=csv").want(200)
	if !strings.Contains(csv.body, statement) || !strings.Contains(csv.body, "succeeded") {
		t.Errorf("the file: %s", csv.body)
	}
	n.noPIN()
}

// The second operator approves on a page of their own; the first cannot.
func TestTwoOperators(t *testing.T) {
	n, c := newDesk(t, func(t *credential.Template) {
		t.Proofs = map[credential.Channel]credential.Proof{credential.Operator: credential.TwoOperators}
	})
	second := n.f.signedIn(tenant.RoleOperator)
	watching := second.get("/console/unblock").want(200)
	mine := n.begun(c).has("Waiting for an approval", "Another operator has to approve it", "An operator approves now").hasNot("Approve this unblock", "data-seal")
	path := mine.path
	c.post(path+"/approve", url.Values{}).want(404)
	if anew := second.asks(watching); !strings.Contains(anew, statement) {
		t.Errorf("the other operator sees %q", anew)
	}
	second.get("/console/unblock").want(200).has("Waiting for an approval", statement, c.person.Name)
	auditor := n.f.signedIn(tenant.RoleAuditor)
	auditor.get(path).want(200).has("Waiting for an approval").hasNot("Approve this unblock", "Cancel")
	auditor.post(path+"/approve", url.Values{}).want(404)
	theirs := second.get(path).want(200).has("Another operator has identified the person, and this card wants a second word", statement)
	theirs.submit(path + "/approve").want(200).has("The holder types the new PIN")
	if to := c.asks(mine); to != path {
		t.Errorf("it is approved, and the first operator goes to %q", to)
	}
	theirs.submit(path + "/approve").want(409).has("No approval is asked for")
	pin := c.get(path).want(200).has("Hand the keyboard")
	pin.submit(path+"/pin", "sealed", n.sealed(pin, newPIN)).want(200)
	n.Must(n.b.Settle())
	c.get(path).has("The card has its new PIN.")
	second.get("/console/unblock").want(200).hasNot("waiting-for")
}

// What a trigger rule asks for is approved by who says how the person was identified.
func TestApprovalForARule(t *testing.T) {
	n, c := newDesk(t, nil)
	rule := audit.Actor{Kind: audit.Rule, ID: "r1", Name: `Door <b>badge</b>`}
	op, err := n.Unblocks.RequestApproval(t.Context(), n.Core, rule, n.cred.ID, n.b.ID, func(string) []table.Op { return nil })
	n.Must(err)
	path := "/console/unblock/" + op.ID
	c.get("/console/unblock").want(200).has("Waiting for an approval", "Door <b>badge</b> (trigger rule)")
	p := c.get(path).want(200).has("A trigger rule has asked for this unblock")
	p.submit(path+"/approve", "statement", "x").want(422).has("must say how the person was identified").has("x")
	p.submit(path+"/approve", "statement", statement).want(200).has("Hand the keyboard", statement)
	n.Clock.Pass(16 * time.Minute)
	c.get("/console/unblock").want(200).hasNot("waiting-for")
	c.get(path).want(200).has("It was not gone on with in time. Nothing was changed", "Begin anew with this card")
}

// What came of it is not known: the page says what to do, and later what it was.
func TestUnknown(t *testing.T) {
	n, c := newDesk(t, nil)
	pin := n.begun(c)
	path := pin.path
	pin.submit(path+"/pin", "sealed", n.sealed(pin, newPIN)).want(200)
	n.b.Copies = func(mine bool, _ relay.Message) int {
		if mine {
			return 0 // what it answers is lost
		}
		return 1
	}
	n.Must(n.b.Settle())
	n.Clock.Pass(2 * time.Minute)
	unknown := c.get(path).want(200).has("The answer was lost", "Pinward finds it out by itself when the card is next in a reader", "Best put the card in again now", "unknown")
	if to := c.asks(unknown); to != "" {
		t.Errorf("nothing has changed, and it goes to %s", to)
	}
	n.b.Copies = nil
	n.Must(n.b.Connect())
	n.Must(n.b.Settle())
	if to := c.asks(unknown); to != path {
		t.Errorf("it is known, and it goes to %q", to)
	}
	c.get(path).want(200).has("The card has its new PIN").hasNot("Best put the card in again now")
}

func TestUnblockByMailedCode(t *testing.T) {
	n, c := newDesk(t, nil)
	p := n.chosen(c).submit("/console/unblock/new", "channel", "selfService", "statement", "").want(200).has("The code from the mail", "a…@acme.example")
	path := p.path
	mailed := n.Code()
	p.submit(path+"/code", "secret.code", "  ").want(422).has("is missing; it is in the mail")
	p.submit(path+"/code", "secret.code", desk.Wrong(mailed)).want(200).has("That is not the code that was mailed. 4 tries are left.")
	p.submit(path+"/code", "secret.code", mailed[:3]+" "+mailed[3:]).want(200).has("Hand the keyboard")
	c.get(path).submit(path + "/cancel").want(200).has("It was cancelled. Nothing was changed.")
	if op := n.Only(n.cred.ID); op.State != unblock.Failed || n.Credential(n.cred.ID).Leased(n.Clock.Now()) {
		t.Errorf("it is %v", op)
	}
}

// What stands in the way is said before anything is begun.
func TestUnblockImpossible(t *testing.T) {
	n, c := newDesk(t, func(t *credential.Template) { t.Channels = []credential.Channel{credential.Operator} })
	n.suspend()
	n.chosen(c).has("This card cannot be unblocked here now", "by an operator: ", "is suspended").hasNot("<form method=\"post\" action=\"/console/unblock/new\"")
	c.post("/console/unblock/new", url.Values{"card": {n.cred.ID}, "bridge": {n.b.ID}, "channel": {"operator"}, "statement": {statement}}).want(409).has("is suspended")
	c.get("/console/unblock/new?card=piv-00&bridge=" + n.b.ID).want(404)
	c.get("/console/unblock/01ARZ3NDEKTSV4RRFFQ69G5FAV").want(404)
	helpdesk := n.f.signedIn(tenant.RoleHelpdesk)
	helpdesk.get("/console/unblock").want(404)
	if p := c.get("/console/unblock"); strings.Contains(helpdesk.get("/console").body, `href="/console/unblock"`) || !strings.Contains(p.body, `href="/console/unblock"`) {
		t.Error("the navigation has what there is not, or has not what there is")
	}
}

// A page that asks by itself keeps nobody signed in.
func TestPagesThatAskKeepNobodySignedIn(t *testing.T) {
	n, c := newDesk(t, nil)
	p := c.get("/console/unblock").want(200)
	for range 7 {
		n.Clock.Pass(5 * time.Minute)
		if to := c.asks(p); to == "anew" {
			return
		}
	}
	t.Error("after 35 minutes in which nobody did anything they are signed in")
}
