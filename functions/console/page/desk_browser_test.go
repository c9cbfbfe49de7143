package page_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/infra/testserver/browser"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/tenant"
)

// deskPicture takes pictures of a page as it is, if that is asked for.
func deskPicture(t *testing.T, p *browser.Page, name string) {
	t.Helper()
	if *screenshots == "" {
		return
	}
	must(t, os.MkdirAll(*screenshots, 0o755))
	p.Screenshot(filepath.Join(*screenshots, "desk-"+name+".png"), 1280, 0, false)
	p.Screenshot(filepath.Join(*screenshots, "desk-"+name+"-dark.png"), 1280, 0, true)
	p.Screenshot(filepath.Join(*screenshots, "desk-"+name+"-phone.png"), 375, 0, false)
	p.Dark(false)
	p.Size(1280, 800)
}

// TestUnblockAtADeskInABrowser: the operator sees the card come, says who the person is, and
// the holder types the new PIN, not the same twice at first. The card is pulled while it is
// typed.
func TestUnblockAtADeskInABrowser(t *testing.T) {
	browser.Need(t)
	n, c := newDesk(t, nil)
	n.b.Remove()
	do := n.alive(t)
	p := browser.New(t)
	n.f.signInBrowser(p, c)
	p.Open(n.f.url + "/console/unblock")
	p.See("1 bridge is online, and there is no card in its readers.")
	deskPicture(t, p, "no-card")
	p.Axe()
	p.Fits()
	do(func() { n.b.Insert(n.card) })
	p.See("PIN blocked")
	p.Click("Unblock this card")
	p.See("The card is at the bridge")
	deskPicture(t, p, "new")
	p.Click("Begin the unblock")
	p.See("must say how the person was identified")
	deskPicture(t, p, "refused")
	p.Fill("How the person was identified", statement)
	p.Click("Begin the unblock")
	p.See("Hand the keyboard to the holder")
	n.Secret("PIN", newPIN)
	p.Fill("New PIN", newPIN)
	p.Fill("The same PIN again", "735913")
	deskPicture(t, p, "pin")
	p.Axe()
	p.Fits()
	p.Click("Set this PIN")
	p.See("The two PINs differ.")
	p.Fill("New PIN", newPIN)
	do(n.b.Remove)
	p.See("Nothing that was typed is kept")
	p.Wait(`document.querySelectorAll("[data-pin]").length === 0`)
	deskPicture(t, p, "put-in")
	do(func() { n.b.Insert(n.card) })
	p.See("Hand the keyboard to the holder")
	p.Fill("New PIN", newPIN)
	p.Fill("The same PIN again", newPIN)
	p.Click("Set this PIN")
	p.See("The card has its new PIN.")
	deskPicture(t, p, "end")
	p.Axe()
	p.Fits()
	if !n.card.PINIs(newPIN) {
		t.Error("the card has another PIN")
	}
	p.Back()
	p.See("The card has its new PIN.")
	for how, form := range testserver.Forms(newPIN) {
		if strings.Contains(p.HTML(), string(form)) {
			t.Errorf("the page has the PIN %s", how)
		}
	}
	do(n.noPIN)
}

// TestHelpDeskInABrowser: a challenge is misheard, then understood; the answer is shown, and
// gone when the page is left.
func TestHelpDeskInABrowser(t *testing.T) {
	browser.Need(t)
	n := newCounter(t, false)
	read := strings.Fields(n.read(n.Clock.Now()))
	p := browser.New(t)
	n.f.signInBrowser(p, n.f.signedIn(tenant.RoleHelpdesk))
	p.Open(n.f.url + "/console/help-desk")
	p.Fill("Find the card", "ada")
	p.Click("Find")
	p.See("1 card was found")
	deskPicture(t, p, "help-found")
	p.Click("Help with this card")
	p.Fill("Challenge", strings.Join(read[:len(read)-1], " "))
	p.Fill("How the person was identified", statement)
	p.Click("Check the challenge")
	p.See("digits, must have")
	misheard := []byte(read[1])
	misheard[4] = '0' + (misheard[4]-'0'+1)%10
	p.Fill("Challenge", strings.Join(append([]string{read[0], string(misheard)}, read[2:]...), " "))
	p.Click("Check the challenge")
	p.See("group 2 was misheard", "does not fit")
	deskPicture(t, p, "help-misheard")
	p.Axe()
	p.Fits()
	p.Fill("Challenge", strings.ToLower(strings.ReplaceAll(strings.Join(read, "-"), "0", "O")))
	p.Click("Check the challenge")
	p.See("Read it back to the person", read[0])
	deskPicture(t, p, "help-back")
	p.Click("Show the answer")
	p.See("Read this answer out", "In German")
	deskPicture(t, p, "help-response")
	p.Axe()
	p.Fits()
	var response string
	p.Eval(`[...document.querySelectorAll(".response .large")].map((e) => e.textContent).join(" ")`, &response)
	if len(response) < 12 || strings.Contains(p.URL(), response[:6]) {
		t.Fatalf("the answer is %q at %s", response, p.URL())
	}
	n.Secret("response", response)
	p.Click("Leave, and forget the answer")
	p.See("The answer was given", "found out by itself")
	deskPicture(t, p, "help-given")
	p.Click("Show the answer again")
	p.See("Read this answer out", offline.Spoken(offline.English, response[:6]))
	// What is over is emptied, and the page of the answer is shown.
	p.Eval(`{
		const time = document.querySelector("[data-countdown]");
		time.dataset.countdown = time.dataset.now;
	}`, nil)
	p.See("The answer was given")
	if strings.Contains(p.HTML(), response[:6]) {
		t.Error("the answer is still in the page")
	}
	n.Search()
}

// TestBridgesInABrowser: a bridge is added, and its page goes on by itself when the machine
// has used the code; the code does not come back.
func TestBridgesInABrowser(t *testing.T) {
	browser.Need(t)
	n := newCounter(t, false)
	do := n.alive(t)
	p := browser.New(t)
	n.f.signInBrowser(p, n.f.signedIn(tenant.RoleAdmin))
	p.Open(n.f.url + "/console/bridges")
	p.See("PIN blocked")
	deskPicture(t, p, "bridges")
	do(n.b.Remove)
	p.See("no reader")
	p.Click("Add a bridge")
	p.Fill("Name", "Service desk, Vienna")
	p.Click("Make the code")
	p.See("The code is good once")
	deskPicture(t, p, "bridge-code")
	p.Axe()
	p.Fits()
	p.Click("Copy the command for Linux")
	p.See("opied")
	var command string
	p.Eval(`document.querySelector("#command-linux").textContent`, &command)
	n.f.enrol(strings.Fields(command)[2])
	p.See("The machine has used the code: the bridge is set up.", "Service desk, Vienna")
	p.Back()
	if strings.Contains(p.HTML(), strings.Fields(command)[2]) {
		t.Error("the code comes back")
	}
}
