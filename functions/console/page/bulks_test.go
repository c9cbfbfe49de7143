package page_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

func TestBulkIsPlannedStartedAndFoundAgain(t *testing.T) {
	f := newFixture(t)
	f.user("ada")
	f.user("bob")
	f.user("has", goodPIN)
	_, err := f.Users.Create(t.Context(), f.core(acme), platform, user.Profile{Username: "nomail"}, nil)
	must(t, err)
	c := f.signedIn(tenant.RoleAdmin)
	c.get("/console/users/pins").want(http.StatusOK).has("No PINs were made for many users yet")
	p := c.get("/console/users/pins/new").submit("/console/users/pins/new", "olderThanDays", "99999", "length", "-1", "group", "<i>x</i>").
		want(http.StatusUnprocessableEntity).has("must be at most 3650", "is not a whole number").hasNot("<i>x")
	if got := p.form("/console/users/pins/new"); got.Get("olderThanDays") != "99999" || got.Get("group") != "<i>x</i>" {
		t.Errorf("the form has %v", got)
	}
	p = p.submit("/console/users/pins/new", "olderThanDays", "", "length", "8", "group", "").want(http.StatusOK).
		has("planned", "4users looked at", "3are to get a PIN", "1of them have no working mail address", "2mails", "Generate and mail 2 PINs", "2 people get a new PIN")
	at, _, _ := strings.Cut(p.path, "?")
	p = p.submit(at+"/start").want(http.StatusOK).has("It has begun", "0 of 2 PINs are mailed")
	if !strings.Contains(p.body, `hx-get="`+at+`/progress"`) || !strings.Contains(p.body, `http-equiv="refresh"`) {
		t.Error("the page does not live")
	}
	// Somebody who started it in another tab is told.
	p.c.post(at+"/start", nil).want(http.StatusConflict).has("is running")
	f.clock.advance(time.Minute)
	c = f.signIn(acme, c.person)
	for range 2 {
		_, err := f.Sweep().Handle(t.Context(), nil)
		must(t, err)
		f.clock.advance(time.Minute)
	}
	if p := c.get(at + "/progress").want(http.StatusOK); p.header.Get("HX-Refresh") != "true" {
		t.Errorf("after the end: %s", p.body)
	}
	c.get(at).want(http.StatusOK).has("done", "2PINs mailed").hasNot("hx-get", "/cancel")
	c.get("/console/users/pins").want(http.StatusOK).has("done", "everybody: without a PIN")
	if csv := c.get("/console/users/pins?format=csv").body; !strings.Contains(csv, "done") {
		t.Errorf("file: %s", csv)
	}
}

func TestBulkIsDiscarded(t *testing.T) {
	f := newFixture(t)
	f.user("ada")
	c := f.signedIn(tenant.RoleAdmin)
	p := c.get("/console/users/pins/new").submit("/console/users/pins/new").want(http.StatusOK)
	at, _, _ := strings.Cut(p.path, "?")
	p.submit(at + "/cancel").want(http.StatusOK).has("It is cancelled").hasNot("/start")
	p.c.post(at+"/start", nil).want(http.StatusConflict).has("make a new one")
	f.signedIn(tenant.RoleOperator).get(at).want(http.StatusNotFound)
}
