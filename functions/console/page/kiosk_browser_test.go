package page_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/infra/testserver/browser"
	"github.com/pinward/pinward/infra/testserver/desk"
)

// alive has the bridge at work beside the test. What the test does with it goes through do.
func (n *counter) alive(t *testing.T) (do func(func())) {
	t.Helper()
	jobs, stop, stopped := make(chan func()), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case job := <-jobs:
				job()
			case <-tick.C:
			case <-stop:
				return
			}
			if err := n.b.Settle(); err != nil {
				t.Errorf("bridge: %v", err)
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return func(job func()) {
		done := make(chan struct{})
		jobs <- func() { defer close(done); job() }
		<-done
	}
}

// picture takes pictures of a page as it is, if that is asked for.
func picture(t *testing.T, p *browser.Page, name string) {
	t.Helper()
	p.Axe()
	p.Fits()
	if *screenshots == "" || !strings.Contains("/console/kiosk", *onlyPages) {
		return
	}
	must(t, os.MkdirAll(*screenshots, 0o755))
	p.Screenshot(filepath.Join(*screenshots, "kiosk-"+name+".png"), 1280, 0, false)
	p.Screenshot(filepath.Join(*screenshots, "kiosk-"+name+"-dark.png"), 1280, 0, true)
	p.Screenshot(filepath.Join(*screenshots, "kiosk-"+name+"-phone.png"), 375, 0, false)
	p.Dark(false)
	p.Size(1280, 800)
}

// TestKioskInABrowser is the whole of self-service at a desk, with what most often goes wrong.
func TestKioskInABrowser(t *testing.T) {
	browser.Need(t)
	n := newCounter(t, false)
	link := n.link(false)
	do := n.alive(t)
	p := browser.New(t)
	p.Open(n.f.url + link)
	p.See("A new PIN for your card", "The PIN of this card is blocked.")
	if strings.Contains(p.URL(), "t=") {
		t.Errorf("the link is left in the address: %s", p.URL())
	}
	picture(t, p, "offer")
	p.Click("Get a new PIN")
	p.See("Type the code from your mail")
	picture(t, p, "code")
	code := n.Code()
	p.Fill("Code", desk.Wrong(code))
	p.Click("Check the code")
	p.See("That is not the code that was mailed. 4 tries are left.")
	p.Fill("Code", code)
	p.Click("Check the code")
	p.See("Choose your new PIN")
	n.Secret("PIN", newPIN)
	p.Fill("New PIN", newPIN)
	p.Fill("The same PIN again", "735913")
	picture(t, p, "pin")
	p.Click("Set this PIN")
	p.See("The two PINs differ.")

	// The card is pulled while it is typed: the page says so, and keeps nothing.
	p.Fill("New PIN", newPIN)
	do(n.b.Remove)
	p.See("The card was taken out", "Nothing that you have typed was kept.")
	p.Wait(`document.querySelectorAll("[data-pin]").length === 0`)
	picture(t, p, "put-in")
	do(func() { n.b.Insert(n.card) })
	p.See("Choose your new PIN")
	if v := p.Value("New PIN"); v != "" {
		t.Errorf("%q is still there", v)
	}

	p.Fill("New PIN", newPIN)
	p.Fill("The same PIN again", newPIN)
	p.Click("Set this PIN")
	p.See("The card has its new PIN.")
	picture(t, p, "end")
	if !n.card.PINIs(newPIN) {
		t.Error("the card has another PIN")
	}
	p.Back()
	p.See("The card has its new PIN.")
	do(func() {
		if len(n.b.Resets) != 1 {
			t.Errorf("the card took %v new PINs", n.b.Resets)
		}
	})
	p.Open(n.f.url + "/console/kiosk")
	for how, form := range testserver.Forms(newPIN) {
		if strings.Contains(p.HTML(), string(form)) {
			t.Errorf("the page has the PIN %s", how)
		}
	}
	p.Click("Done")
	p.See("A new PIN for your card", "set anew a moment ago")
	p.Open(n.f.url + link)
	p.See("This link has been used already")
	picture(t, p, "used")
	n.noPIN()
}

// TestKioskByTouch is the same at a kiosk, without a keyboard, in German; and then the next
// person does not come back.
func TestKioskByTouch(t *testing.T) {
	browser.Need(t)
	n := newCounter(t, true)
	n.b.Remove()
	link := n.link(true)
	do := n.alive(t)
	p := browser.New(t)
	p.Size(1280, 1024)
	p.Open(n.f.url + link)
	p.See("There is no card reader")
	picture(t, p, "touch-start")
	p.Click("Deutsch")
	p.See("Es gibt keinen Kartenleser")
	do(func() { n.b.Insert(n.card) })
	p.See("Eine neue PIN für Ihre Karte")
	p.Click("Neue PIN holen")
	p.See("Geben Sie den Code aus Ihrer E-Mail ein")
	touch := func(keys string) {
		t.Helper()
		for _, k := range keys {
			p.ClickOn(`[data-key="` + string(k) + `"]`)
		}
	}
	touch("9")
	p.ClickOn(`[data-key=back]`)
	touch(n.Code())
	picture(t, p, "touch-code")
	p.ClickOn(`[data-key=next]`)
	p.See("Wählen Sie Ihre neue PIN")
	n.Secret("PIN", newPIN)
	touch(newPIN)
	p.ClickOn(`[data-key=next]`)
	touch(newPIN)
	picture(t, p, "touch-pin")
	p.ClickOn(`[data-key=next]`)
	p.See("Die Karte hat ihre neue PIN.")
	do(n.b.Remove)
	p.See("There is no card reader", "The card has its new PIN.") // nothing is left of them, nor their language

	do(func() { n.b.Insert(n.card) })
	p.See("A new PIN for your card")
	p.Click("Get a new PIN")
	p.See("Type the code from your mail")
	touch("12")
	p.Eval(`document.body.dataset.idle = "1"`, nil) // and not 60
	touch("3")
	p.See("Nothing was touched for a while", "A new PIN for your card")
	n.noPIN()
}

// TestKioskWithoutScript: everything but the last step works, and that one says so.
func TestKioskWithoutScript(t *testing.T) {
	browser.Need(t)
	n := newCounter(t, false)
	link := n.link(false)
	n.alive(t)
	p := browser.New(t)
	p.DisableScript()
	p.Open(n.f.url + link)
	p.See("A new PIN for your card", "JavaScript is turned off in this browser")
	p.Click("Get a new PIN")
	p.See("Type the code from your mail")
	p.Fill("Code", n.Code())
	p.Click("Check the code")
	p.See("Choose your new PIN", "JavaScript is turned off in this browser")
	p.Click("Stop, and leave everything as it is")
	p.See("It was stopped. Nothing was changed.")
}
