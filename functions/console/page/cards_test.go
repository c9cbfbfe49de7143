package page_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

const aCard = "00112233445566778899AABBCCDDEEFF"

// cardTemplate makes a credential template for PIV cards whose PINs are good for so many days.
func (f *fixture) cardTemplate(t table.TenantID, name string, days int) credential.Template {
	f.Helper()
	tmpl, err := f.Credentials.CreateTemplate(f.Context(), f.core(t), platform, credential.Template{Name: name, Family: "PIV", Policy: card.PIV.Policy(),
		Channels: []credential.Channel{credential.Operator}, PINValidDays: days}, nil)
	must(f, err)
	return tmpl
}

// cards registers n cards of a template, without a PIN expiry flag.
func (f *fixture) cards(tmpl credential.Template, n int) (all []credential.Credential) {
	f.Helper()
	for i := range n {
		c, err := f.Credentials.Register(f.Context(), f.core(acme), platform, credential.New{Family: "PIV", CardID: fmt.Sprintf("%032X", i+1), Template: tmpl.ID, Label: fmt.Sprintf("Card %d", i+1)})
		must(f, err)
		all = append(all, c)
	}
	return all
}

func (f *fixture) holder(username, name string) user.User {
	f.Helper()
	u, err := f.Users.Create(f.Context(), f.core(acme), platform, user.Profile{Username: username, DisplayName: name}, nil)
	must(f, err)
	return u
}

func TestRegisterCard(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleOperator)
	c.get("/console/cards").want(http.StatusOK).has("There are no cards yet", "First there must be a credential template")
	c.get("/console/cards/new").want(http.StatusOK).has("First there must be a credential template").hasNot("<form method=\"post\" action=\"/console/cards/new\"")
	tmpl := f.cardTemplate(acme, "Staff", 100)
	ada := f.holder("ada", "Ada <b>Lovelace</b>")

	p := c.get("/console/cards/new").submit("/console/cards/new", "cardId", "12", "holder", "nobody", "label", "Ada's <i>card</i>", "secret.puk", "123", "issuedAt", "2030-02-30", "pukTriesLeft", "x").want(http.StatusUnprocessableEntity)
	p.has("Holder: is not the username of a user", "Issued: must be a day, such as 2030-01-31", "PUK tries left: must be a whole number").hasNot("<i>", `value="123"`)
	if form := p.form("/console/cards/new"); form.Get("label") != "Ada's <i>card</i>" || form.Get("cardId") != "12" || form.Get("secret.puk") != "" {
		t.Errorf("kept %v", form)
	}
	p = p.submit("/console/cards/new", "holder", "ada", "issuedAt", "", "pukTriesLeft", "", "secret.puk", "123").want(http.StatusUnprocessableEntity)
	p.has("Card id: is no card id that PIV cards have", "PUK: must have exactly 8 characters")
	p = p.submit("/console/cards/new", "cardId", "0011-2233-4455-6677-8899-aabb-ccdd-eeff", "secret.puk", "73915846", "issuedAt", "2030-03-01").want(http.StatusOK)
	p.has("The card is registered.", "Ada's <i>card</i>", "The card was given out with its PIN", "when the card was given out", "June 2030", "the card has not taken it yet", "Card registered", "Pat").hasNot("73915846", "<i>", "<b>")
	id := "piv-" + strings.ToLower(aCard)
	if p.path != "/console/cards/"+id+"?done=cardRegistered" {
		t.Errorf("registered at %s", p.path)
	}
	if !strings.Contains(p.body, `href="/console/users/`+ada.ID+`"`) {
		t.Error("there is no link to the holder")
	}
	c.get("/console/cards/new").submit("/console/cards/new", "cardId", aCard).want(http.StatusUnprocessableEntity).has("is that of a card that is registered already")
	c.get("/console/cards/piv-ffff").want(http.StatusNotFound)

	foreign := f.cardTemplate(other, "Foreign", 10)
	c.get("/console/cards/templates/of/" + foreign.ID).want(http.StatusNotFound)
	f.signIn(other, f.person(other, "Eve Else", tenant.RoleAdmin)).get("/console/cards/" + id).want(http.StatusNotFound)
	_ = tmpl
	if strings.Contains(f.log.String(), "73915846") {
		t.Error("the PUK is in the log")
	}
}

func TestListCards(t *testing.T) {
	f := newFixture(t)
	staff, guests := f.cardTemplate(acme, "Staff", 100), f.cardTemplate(acme, "Guests", 0)
	all := f.cards(staff, 3)
	ada := f.holder("ada", "Ada")
	core := f.core(acme)
	update := func(id string, edit func(*credential.About)) {
		_, err := f.Credentials.Update(t.Context(), core, platform, tenant.RoleAdmin, id, 0, edit)
		must(t, err)
	}
	update(all[0].ID, func(a *credential.About) { a.Holder, a.Serial = ada.ID, "S-1" })
	update(all[1].ID, func(a *credential.About) { a.State, a.Reason = credential.Retired, "lost" })
	update(all[2].ID, func(a *credential.About) { a.Template = guests.ID })
	_, err := f.Credentials.PINChangedByHolder(t.Context(), core, platform, all[0].ID, f.clock.Now())
	must(t, err)
	c := f.signedIn(tenant.RoleHelpdesk)
	for query, want := range map[string]string{
		"":                         "Card 1 Card 2 Card 3",
		"search=s-1":               "Card 1",
		"search=card+2":            "Card 2",
		"state=retired":            "Card 2",
		"template=" + guests.ID:    "Card 3",
		"holder=ADA":               "Card 1",
		"expiry=within&days=101":   "Card 1",
		"expiry=within&days=99":    "",
		"expiry=expired":           "",
		"expiry=withoutFlag":       "",
		"state=active&search=card": "Card 1",
	} {
		p := c.get("/console/cards?" + query).want(http.StatusOK)
		for i := 1; i <= 3; i++ {
			name := fmt.Sprintf("Card %d", i)
			if got := strings.Contains(p.text(), name); got != strings.Contains(want, name) {
				t.Errorf("%q: %s is there: %t", query, name, got)
			}
		}
		if want == "" {
			p.has("No card is like that")
		}
	}
	c.get("/console/cards?expiry=within&days=0").want(http.StatusUnprocessableEntity).has("Days: must be 1 to 3650")
	c.get("/console/cards?holder=nobody").want(http.StatusUnprocessableEntity).has("is not the username of a user")
	c.get("/console/cards?state=gone").want(http.StatusUnprocessableEntity)
	c.get("/console/cards?after=***").want(http.StatusNotFound)
	if got := c.get("/console/cards?format=csv&search=card+1").want(http.StatusOK); !strings.Contains(got.body, "Card 1,S-1,Staff,active,ada,2030-03-04T09:00:00Z,changedByHolder,2030-06-12T09:00:00Z,change") {
		t.Errorf("the file is %s", got.body)
	}
	c.get("/console/cards").hasNot("Register a card", "/edit", "/state?")
	p := c.get("/console/cards/"+all[0].ID).want(http.StatusOK).has("Told by", "Changed by its holder").hasNot("/edit", "/state?", "/delete", "/secret")
	if !strings.Contains(p.body, `<li aria-current="step"><span>active`) {
		t.Error("the picture does not show the state")
	}
	c.post("/console/cards/"+all[0].ID+"/state", url.Values{"to": {"retired"}, "reason": {"lost"}}).want(http.StatusNotFound)
}

// What somebody else has changed meanwhile is shown beside what was entered.
func TestEditCardConflict(t *testing.T) {
	f := newFixture(t)
	card := f.cards(f.cardTemplate(acme, "Staff", 100), 1)[0]
	f.holder("ada", "Ada")
	c := f.signedIn(tenant.RoleOperator)
	path := "/console/cards/" + card.ID
	form := c.get(path + "/edit").want(http.StatusOK)
	// A change of what nobody decides is none.
	_, err := f.Credentials.PINChangedByHolder(t.Context(), f.core(acme), platform, card.ID, f.clock.Now())
	must(t, err)
	form.submit(path+"/edit", "holder", "ada").want(http.StatusOK).has("The card is saved.", "Ada")

	form = c.get(path + "/edit")
	_, err = f.Credentials.Update(t.Context(), f.core(acme), platform, tenant.RoleAdmin, card.ID, 0, func(a *credential.About) { a.Label = "Theirs" })
	must(t, err)
	p := form.submit(path+"/edit", "label", "Mine", "serial", "S-9").want(http.StatusConflict)
	p.has("Somebody else has changed this meanwhile", "LabelTheirsMine", "Serial number–S-9")
	if got, _ := f.Credentials.Get(t.Context(), acme, card.ID); got.Label != "Theirs" {
		t.Errorf("the label is %q", got.Label)
	}
	p.submit(path+"/edit").want(http.StatusOK).has("The card is saved.", "Mine", "S-9")
	c.get(path+"/edit").submit(path+"/edit", "label", strings.Repeat("x", 101), "holder", "nobody").want(http.StatusUnprocessableEntity).has("Holder: is not the username of a user")
	c.get(path+"/edit").submit(path+"/edit", "label", strings.Repeat("x", 101)).want(http.StatusUnprocessableEntity).has("Label: must be at most 100 characters")
}

func TestMoveAndDeleteCard(t *testing.T) {
	f := newFixture(t)
	card := f.cards(f.cardTemplate(acme, "Staff", 100), 1)[0]
	c := f.signedIn(tenant.RoleOperator)
	path := "/console/cards/" + card.ID
	c.get(path).want(http.StatusOK).has("Suspend", "Retire", "Wait for a new PIN").hasNot("Mark as blocked")
	c.get(path + "/state?to=blocked").want(http.StatusNotFound)
	page := c.get(path + "/state?to=suspended").want(http.StatusOK).has("the card cannot be unblocked")
	page.submit(path + "/state").want(http.StatusUnprocessableEntity).has("Reason: must say why")
	retire := c.get(path + "/state?to=retired")
	page.submit(path+"/state", "reason", "lost").want(http.StatusOK).has("The card's state is changed.", "Card changed: suspendedlost")
	page.submit(path+"/state", "reason", "lost").want(http.StatusOK) // sent twice
	retire.submit(path+"/state", "reason", "lost").want(http.StatusUnprocessableEntity).has("Somebody else was faster: the card is suspended by now")
	c.get(path+"/state?to=retired").want(http.StatusOK).has("Only an administrator can take it back").submit(path+"/state", "reason", "stolen").want(http.StatusOK)
	c.get(path).has("The card is out of use for good").hasNot("/state?to=", "/pin-changed")
	f.signedIn(tenant.RoleAdmin).get(path).has("Suspend")
	c.get(path + "/pin-changed").submit(path + "/pin-changed").want(http.StatusConflict).has("The card is retired")

	// A card with a PUK is deleted only knowingly.
	secret := c.get(path + "/secret").want(http.StatusOK).has("none on record")
	secret.submit(path+"/secret", "secret.puk", "short").want(http.StatusUnprocessableEntity).has("PUK: must have exactly 8 characters").hasNot("short\"")
	secret.submit(path+"/secret", "what", "tries").want(http.StatusUnprocessableEntity).has("PUK tries left: is missing")
	secret.submit(path+"/secret", "secret.puk", "73915846", "pukTriesLeft", "2").want(http.StatusOK).has("the card has not taken it yet", "At least 2 tries left", "PUK of a card entered").hasNot("73915846")
	del := c.get(path+"/delete").want(http.StatusOK).has("One card's record is deleted", "PUK or admin key is lost")
	del.submit(path + "/delete").want(http.StatusUnprocessableEntity).has("must be checked")
	del.submit(path+"/delete", "confirm", "on").want(http.StatusOK).has("The card's record is deleted.", "There are no cards yet")
	c.get(path).want(http.StatusNotFound)
}

func TestPINChangeTold(t *testing.T) {
	f := newFixture(t)
	card := f.cards(f.cardTemplate(acme, "Staff", 100), 1)[0]
	c := f.signedIn(tenant.RoleOperator)
	path := "/console/cards/" + card.ID
	c.get(path).has("none on record", "There is no PIN expiry flag. The card gets one with its next PIN")
	form := c.get(path + "/pin-changed").want(http.StatusOK)
	form.submit(path+"/pin-changed", "at", "2031-01-01T10:00").want(http.StatusUnprocessableEntity).has("Time: must not be in the future")
	form.submit(path+"/pin-changed", "at", "yesterday").want(http.StatusUnprocessableEntity).has("must be a day and a time")
	// What is typed is the tenant's time: Berlin's.
	form.submit(path+"/pin-changed", "at", "2030-03-04T08:30").want(http.StatusOK).has("The PIN change is noted.", "Changed by its holder", "when its holder changed the PIN", "Told by")
	got, err := f.Credentials.Get(t.Context(), acme, card.ID)
	must(t, err)
	if want := time.Date(2030, 3, 4, 7, 30, 0, 0, time.UTC); !got.LastPINChange.At.Equal(want) {
		t.Errorf("changed at %s, want %s", got.LastPINChange.At, want)
	}
	form.submit(path+"/pin-changed", "at", "2030-03-01T08:30").want(http.StatusUnprocessableEntity).has("must not be before the last PIN change on record")
	for _, part := range []string{"/history", "/unblocks", "/answers"} {
		c.get(path + part).want(http.StatusOK)
		if got := c.get(path + part + "?format=csv").want(http.StatusOK).header.Get("Content-Type"); got != "text/csv; charset=utf-8" {
			t.Errorf("%s: a file of type %s", part, got)
		}
	}
	c.get(path+"/history").has("PIN of a card changed", "Card registered")
	c.get("/console/cards/piv-00/history").want(http.StatusNotFound)
}
