package page_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/tenant"
)

const sanityPath = "/console/sanity-check"

// The example of the document: validity 100, 3 before and after, gives 97 to 103.
func TestSanityCheck(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	c.get(sanityPath).want(http.StatusOK).has("No credential template lets PINs expire")
	staff := f.cardTemplate(acme, "Staff", 100)
	c.get(sanityPath).want(http.StatusOK).has("No card lacks a PIN expiry flag", "There was no plan yet")
	cards := f.cards(staff, 40)
	f.cardTemplate(acme, "Guests", 0)
	p := c.get(sanityPath).want(http.StatusOK).has("40 cards have no flag", "Staff100 days40").hasNot("Guests")

	list := c.get(sanityPath+"/cards").want(http.StatusOK).has("Copy these 40 cards as text", "Card 40")
	if !strings.Contains(list.body, `data-copy="#list"`) || !strings.Contains(list.body, "cardId\tfamily\ttemplate") {
		t.Error("there is no text to copy")
	}
	if file := c.get(sanityPath + "/cards?format=csv").want(http.StatusOK); strings.Count(file.body, "\r\n") != 41 || !strings.Contains(file.body, cards[7].CardID+",PIV,"+staff.ID+",Staff,,Card 8,,registered") {
		t.Errorf("the file is %s", file.body)
	}

	// The two commonest mistakes, and what is kept.
	form := p.form(sanityPath + "/plan")
	form.Del("templates")
	c.post(sanityPath+"/plan", form).want(http.StatusUnprocessableEntity).has("Templates: must be at least one")
	p.submit(sanityPath+"/plan", "spread", "random", "beforeDays", "100", "afterDays", "x").want(http.StatusUnprocessableEntity).has("Days after: must be a whole number")
	p.submit(sanityPath+"/plan", "spread", "random", "beforeDays", "100").want(http.StatusUnprocessableEntity).has("must be less than the validity of \"Staff\", which is 100 days")
	p.submit(sanityPath+"/plan", "spread", "random", "beforeDays", "1", "dailyCap", "5").want(http.StatusUnprocessableEntity).has("Cards per day:", "20")

	plan := p.submit(sanityPath+"/plan", "spread", "random", "beforeDays", "3", "afterDays", "3", "dailyCap", "8").want(http.StatusOK)
	plan.has("Nothing is changed yet", "Set the flags of 40 cards", "at random, from 3 before to 3 after", "At most so many cards on a day8", "Staff100 days40")
	run, _, _ := strings.Cut(plan.path, "?")
	planned := map[string]bool{}
	for _, line := range strings.Split(c.get(run+"?format=csv").body, "\r\n")[1:] {
		if day, _, ok := strings.Cut(line, ","); ok {
			planned[day] = true
		}
	}
	for day := range planned {
		if day < "2030-06-09" || day > "2030-06-15" { // 4 March and 97 to 103 days
			t.Errorf("%s is planned", day)
		}
	}
	r, err := f.Credentials.Run(t.Context(), acme, strings.TrimPrefix(run, sanityPath+"/runs/"))
	must(t, err)
	plan.has(r.Seed)
	if !strings.Contains(plan.body, "<svg") || strings.Count(plan.body, "<rect") != len(planned) {
		t.Errorf("the picture does not show %d days", len(planned))
	}
	if got, _ := f.Credentials.Get(t.Context(), acme, cards[0].ID); got.HasFlag() {
		t.Fatal("the plan has changed a card")
	}

	// It asks again who they are, and goes on from there.
	f.clock.advance(16 * time.Minute)
	asked := plan.submit(run + "/start").want(http.StatusUnauthorized).has("Show that it is you")
	done := asked.submit(run+"/start", "secret.confirm", codeInMail.FindString(f.lastMail(c.person.Mail))).want(http.StatusOK)
	done.has("40cards got a flag", "The cards have their flags", "See what the undo would do")
	c.get(sanityPath).has("No card lacks a PIN expiry flag", "done4040")
	card := c.get("/console/cards/"+cards[0].ID).want(http.StatusOK).has("by the PIN expiry check", "run "+r.ID)
	if !strings.Contains(card.body, `href="`+run+`"`) {
		t.Error("there is no link to the run")
	}
	plan.submit(run + "/start").want(http.StatusConflict).has("The plan was used")

	// The undo leaves alone what has changed since.
	_, err = f.Credentials.PINChangedByHolder(t.Context(), f.core(acme), platform, cards[0].ID, f.clock.Now())
	must(t, err)
	must(t, f.Credentials.Delete(t.Context(), f.core(acme), platform, cards[1].ID, 0, false))
	undo := c.get(run+"/undo").want(http.StatusOK).has("38cards would have no flag again", "2cards would be left alone", "Card 1", "when its holder changed the PIN", "It was deleted", "Take the flags away from 38 cards")
	undo.submit(run+"/undo").want(http.StatusOK).has("38cards have no flag again", "2cards were left alone")
	c.get(sanityPath).has("38 cards have no flag", "undone4040")
	c.get(run + "/undo").want(http.StatusConflict)
	if got, _ := f.Credentials.Get(t.Context(), acme, cards[0].ID); got.Flagged.How != credential.FlagByChange {
		t.Errorf("the flag of the card that was renewed is %+v", got.Flagged)
	}
	if file := c.get(sanityPath + "?format=csv").body; !strings.Contains(file, r.Seed) {
		t.Errorf("the file of runs is %s", file)
	}

	// A plan that is too old.
	again := c.get(sanityPath).submit(sanityPath + "/plan").want(http.StatusOK)
	old, _, _ := strings.Cut(again.path, "?")
	f.clock.advance(time.Hour)
	c = f.signedIn(tenant.RoleAdmin)
	c.get(old).has("older than an hour").hasNot("/start\"")
	c.post(old+"/start", url.Values{}).want(http.StatusConflict).has("The plan is older than an hour")
	dropped := c.get(sanityPath).submit(sanityPath + "/plan")
	at, _, _ := strings.Cut(dropped.path, "?")
	dropped.submit(at+"/cancel").want(http.StatusOK).has("It is stopped.").hasNot("/start\"", "/undo\"")
}

// Where the support functions are off, there is none of it.
func TestSanityCheckIsOff(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	c.get("/console/cards").want(http.StatusOK)
	if !strings.Contains(c.get("/console/cards").body, `href="/console/sanity-check"`) {
		t.Error("it is not in the navigation")
	}
	core := f.core(acme)
	settings := core.Tenant.Settings
	settings.SupportFunctions = false
	_, err := f.Tenants.ChangeSettings(t.Context(), platform, core, settings)
	must(t, err)
	c.get("/console/cards").want(http.StatusOK).hasNot("sanity-check")
	for _, path := range []string{"", "/cards", "/runs/01JX", "/runs/01JX/undo"} {
		c.get(sanityPath + path).want(http.StatusNotFound)
	}
	for _, path := range []string{"/plan", "/runs/01JX/start", "/runs/01JX/cancel", "/runs/01JX/undo"} {
		c.post(sanityPath+path, url.Values{}).want(http.StatusNotFound)
	}
}
