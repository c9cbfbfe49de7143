package page_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/tenant"
)

func TestMakeCardTemplate(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	const path = "/console/cards/templates/new"
	c.get("/console/cards/templates").want(http.StatusOK).has("There are no credential templates yet")
	c.get(path).want(http.StatusOK).has("Which kind of cards is it for?", "For PIV cards", "For GIDS cards")
	p := c.get(path+"?family=PIV").want(http.StatusOK).has("PIN of 6 to 8 digits", "The holder alone, at a computer with a bridge")
	p = p.submit(path, "name", "", "policy.minLength", "3", "channel.selfService", "on", "reminders.0.daysBefore", "14", "pinValidDays", "10", "operatorMail", "x", "limit.count", "3").want(http.StatusUnprocessableEntity)
	p.has("Name: must be 1 to 100 characters", "Messaging configuration: must name a messaging configuration", "Days before: must be less than pinValidDays", "Limit: must be", "Operators' mail address: is not an address alone")
	p = p.submit(path, "name", "Staff <b>", "policy.minLength", "6", "messaging", "outbox", "reminders.0.daysBefore", "14", "reminders.1.daysBefore", "3", "pinValidDays", "100", "operatorMail", "", "limit", "30", "proofs.operator", "twoOperators", "policy.disallowSequential", "on").want(http.StatusOK)
	p.has("The template is made.", "Staff <b>", "100 days", "14 days before", "3 days before", "3 unblocks within 30 days", "a second operator approves", "each card's PUK, kept sealed").hasNot("<b>")
	all, err := f.Credentials.Templates(t.Context(), acme)
	must(t, err)
	if len(all) != 1 || all[0].ProofFor(credential.Operator) != credential.TwoOperators || !all[0].Allows(credential.SelfService) || len(all[0].Reminders) != 2 || all[0].Reminders[0].MailTemplate != "" || all[0].ExpiredTemplate != "" {
		t.Errorf("made %+v", all)
	}
	c.get("/console/cards/templates").has("Staff <b>", "Self-service, With an operator")
	if got := c.get("/console/cards/templates?format=csv").body; !strings.Contains(got, ",Staff <b>,PIV,100,14 3,selfService operator,pukEscrowedAndRotated") {
		t.Errorf("the file is %s", got)
	}
	operator := f.signedIn(tenant.RoleOperator)
	operator.get("/console/cards/templates/of/"+all[0].ID).want(http.StatusOK).hasNot("/edit", "/delete")
	operator.get("/console/cards/templates/of/" + all[0].ID + "/edit").want(http.StatusNotFound)
}

// What a change does to the cards is said before it is made, of what is then saved.
func TestChangeCardTemplate(t *testing.T) {
	f := newFixture(t)
	tmpl := f.cardTemplate(acme, "Staff", 0)
	f.cards(tmpl, 3)
	c := f.signedIn(tenant.RoleAdmin)
	path := "/console/cards/templates/of/" + tmpl.ID
	days := func() int {
		now, err := f.Credentials.Template(t.Context(), acme, tmpl.ID)
		must(t, err)
		return now.PINValidDays
	}
	form := c.get(path + "/edit").want(http.StatusOK)
	p := form.submit(path+"/edit", "do", "save", "pinValidDays", "90", "channel.operator", "", "policy.maxLength", "7").want(http.StatusOK)
	p.has("What the change does", "3 cards have this template. 3 have no PIN expiry flag.", "PINs do not expire90 days", "by the PIN expiry check", "With an operatoropenclosed", "Longest PIN87", "Nothing is saved yet")
	if days() != 0 {
		t.Fatal("it was saved without a word")
	}
	p.submit(path+"/edit", "do", "preview").want(http.StatusOK).has("Nothing is saved yet")
	p.submit(path+"/edit", "do", "save", "pinValidDays", "91").want(http.StatusOK).has("Nothing is saved yet", "91 days")
	if days() != 0 {
		t.Fatal("another change than the one shown was saved")
	}
	p.submit(path+"/edit", "do", "save").want(http.StatusOK).has("The template is saved.", "90 days")
	if days() != 90 {
		t.Errorf("PINs are good for %d days", days())
	}
	// Somebody else has saved meanwhile.
	form.submit(path+"/edit", "pinValidDays", "60", "name", "Mine").want(http.StatusConflict).has("Somebody else has changed this meanwhile", "90 days60 days", "NameStaffMine").
		submit(path+"/edit", "pinValidDays", "60").want(http.StatusOK).has("90 days60 days", "Nothing is saved yet").submit(path+"/edit", "do", "save").want(http.StatusOK).has("60 days")
	c.get(path + "/edit").submit(path + "/edit").want(http.StatusOK).has("Nothing: the form says what the template says already")
	c.get(path+"/edit").submit(path+"/edit", "pinValidDays", "many").want(http.StatusUnprocessableEntity).has("must be a whole number")

	c.get(path + "/delete").want(http.StatusOK).has("3 cards have this template, so it cannot be deleted").hasNot("<button class=\"danger\">")
	c.post(path+"/delete", nil).want(http.StatusConflict).has("3 credentials have this template")
	unused := "/console/cards/templates/of/" + f.cardTemplate(acme, "Unused", 0).ID
	c.get(unused + "/delete").submit(unused + "/delete").want(http.StatusOK).has("The template is deleted.").hasNot("Unused")
	c.get(path + "/master-key").want(http.StatusNotFound) // PIV cards have none
}

func TestMasterKey(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	const key = "d41d8cd98f00b204e9800998ecf8427ed41d8cd98f00b204e9800998ecf8427e"
	p := c.get("/console/cards/templates/new?family=GIDS").submit("/console/cards/templates/new", "name", "Office", "secret.masterKey", "xyz").want(http.StatusUnprocessableEntity)
	p.has("Master key: must be in hex").hasNot("xyz").submit("/console/cards/templates/new").want(http.StatusOK).has("each card's admin key, kept sealed")
	all, err := f.Credentials.Templates(t.Context(), acme)
	must(t, err)
	path := "/console/cards/templates/of/" + all[0].ID + "/master-key"
	c.get(path).submit(path).want(http.StatusUnprocessableEntity).has("Master key: is missing")
	c.get(path).submit(path, "secret.masterKey", key).want(http.StatusOK).has("The master key is saved, sealed.", "derived from the template's master key").hasNot(key)
	_, err = f.Credentials.Register(t.Context(), f.core(acme), platform, credential.New{Family: "GIDS", CardID: aCard, Template: all[0].ID})
	must(t, err)
	c.get(path).want(http.StatusOK).has("the admin key of 1 card comes from it").hasNot("secret.masterKey")
	c.get("/console/cards/gids-"+strings.ToLower(aCard)).want(http.StatusOK).has("derived from the template's master key", "Set the card's admin key")
}
