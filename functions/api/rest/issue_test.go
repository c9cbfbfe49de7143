package rest_test

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

var pinLine = regexp.MustCompile(`(?m)^    (\S+)\r?$`)

// mailedPIN is the PIN in the last mail to a user; no log and no answer may show it.
func (f *fixture) mailedPIN() string {
	f.Helper()
	mails, err := f.outbox.List(1)
	f.must(err)
	if len(mails) != 1 || !strings.HasPrefix(mails[0].ID, "pin-issued.") {
		f.Fatalf("%d mails", len(mails))
	}
	pin := pinLine.FindStringSubmatch(mails[0].Text)
	if len(pin) != 2 {
		f.Fatalf("no PIN in\n%s", mails[0].Text)
	}
	canary.secret("issued PIN", pin[1])
	return pin[1]
}

// TestIssue: a help desk lets a person have a PIN that it does not learn.
func TestIssue(t *testing.T) {
	f := newFixture(t)
	desk := f.keyOf("helpdesk")
	id := f.user(f.key, "")
	path := "/v1/users/" + id + "/pin"
	if p := f.call("POST", path+"/issue", desk, nil).want(http.StatusConflict).problem(); !strings.Contains(p.Detail, "messaging configuration") {
		t.Errorf("without messaging: %q", p.Detail)
	}
	messaging := f.outboxConfiguration(f.key)
	a := f.call("POST", path+"/issue", desk, object{"messaging": messaging, "length": 10, "validHours": 24, "oneTime": "change"}).want(http.StatusOK)
	pin := f.mailedPIN()
	if len(pin) != 10 || strings.Contains(string(a.body), pin) || a.text("state") != "set" || a.text("oneTime") != "change" || a.text("expiresAt") != "2030-02-01T09:00:00Z" {
		t.Errorf("a PIN of %d characters, answer %s", len(pin), a.body)
	}
	verify := func(pin string) string {
		return string(f.call("POST", "/v1/pins/verify", f.key, object{"userId": id, "pin": pin}).want(http.StatusOK).body)
	}
	if got := verify(pin); !strings.Contains(got, `"verified":true`) || !strings.Contains(got, `"changeRequired":true`) {
		t.Errorf("the mailed PIN: %s", got)
	}
	if p := f.call("POST", path+"/issue", desk, object{"messaging": messaging}).want(http.StatusConflict).problem(); !strings.Contains(p.Detail, "a moment ago") {
		t.Errorf("at once again: %q", p.Detail)
	}
	own := f.pin()
	f.call("PUT", path, f.token(id), object{"pin": own}).want(http.StatusOK)
	if got := verify(own); !strings.Contains(got, `"verified":true`) || strings.Contains(got, "changeRequired") {
		t.Errorf("after the change: %s", got)
	}
	if a := f.call("POST", path+"/require-change", f.key, nil).want(http.StatusOK); !strings.Contains(string(a.body), `"changeRequired":true`) {
		t.Errorf("change required: %s", a.body)
	}

	// For one use.
	f.clock.advance(2 * time.Minute)
	f.call("POST", path+"/issue", desk, object{"messaging": messaging, "length": 10, "oneTime": "delete"}).want(http.StatusOK)
	pin = f.mailedPIN()
	if first, second := verify(pin), verify(pin); !strings.Contains(first, `"verified":true`) || !strings.Contains(second, `"verified":false`) {
		t.Errorf("for one use: %s, then %s", first, second)
	}
	if a := f.call("GET", path, desk, nil).want(http.StatusOK); a.text("deleted") != "used" {
		t.Errorf("afterwards: %s", a.body)
	}

	nobody := f.call("POST", "/v1/users", f.key, object{"username": "no-mail"}).want(201).text("id")
	if p := f.call("POST", "/v1/users/"+nobody+"/pin/issue", desk, object{"messaging": messaging}).want(http.StatusConflict).problem(); !strings.Contains(p.Detail, "no mail address") {
		t.Errorf("without an address: %q", p.Detail)
	}
	for _, body := range []object{{"length": 3}, {"length": 64}, {"alphabet": "printable"}, {"oneTime": "twice"}, {"validHours": -1}} {
		body["messaging"] = messaging
		f.call("POST", path+"/issue", desk, body).want(http.StatusUnprocessableEntity)
	}
}

// TestOwnGenerated: a person has ten PINs a day generated, and is told until when.
func TestOwnGenerated(t *testing.T) {
	f := newFixture(t)
	id := f.user(f.key, "")
	token := f.token(id)
	for range 10 {
		f.call("POST", "/v1/users/"+id+"/pin/generate", token, nil).want(http.StatusCreated)
	}
	a := f.call("POST", "/v1/users/"+id+"/pin/generate", token, nil).want(http.StatusTooManyRequests)
	if p := a.problem(); !strings.Contains(p.Detail, "10 PINs") || a.header.Get("Retry-After") != "86400" {
		t.Errorf("%q, Retry-After %s", p.Detail, a.header.Get("Retry-After"))
	}
	f.call("POST", "/v1/users/"+id+"/pin/generate", f.key, nil).want(http.StatusCreated)

	settings := object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "generatedPINsPerDay": 11}
	f.call("PUT", "/v1/settings", f.key, settings).want(http.StatusOK)
	if p := f.call("POST", "/v1/users/"+id+"/pin/generate", f.key, nil).want(http.StatusTooManyRequests).problem(); !strings.Contains(p.Detail, "11 PINs") {
		t.Errorf("%q", p.Detail)
	}
}

// TestBulkPINs: an administrator looks at a plan, starts and cancels it.
func TestBulkPINs(t *testing.T) {
	f := newFixture(t)
	messaging := f.outboxConfiguration(f.key)
	for range 3 {
		f.user(f.key, "")
	}
	f.user(f.key, f.pin())
	f.call("POST", "/v1/users", f.key, object{"username": "no-mail"}).want(201)
	var b struct {
		ID, State                             string
		Users, Matched, WithoutAddress, Mails int
		Issued, Mailed                        int
		Cancelling                            bool
	}
	f.call("POST", "/v1/bulk-pins", f.key, object{"messaging": messaging, "length": 8, "oneTime": "change"}).want(http.StatusCreated).decode(&b)
	if b.State != "planned" || b.Users != 5 || b.Matched != 4 || b.WithoutAddress != 1 || b.Mails != 3 {
		t.Errorf("plan: %+v", b)
	}
	f.call("POST", "/v1/bulk-pins/"+b.ID+"/start", f.key, nil).want(http.StatusOK).decode(&b)
	if b.State != "running" {
		t.Errorf("started: %+v", b)
	}
	f.call("POST", "/v1/bulk-pins/"+b.ID+"/start", f.key, nil).want(http.StatusConflict)
	f.call("POST", "/v1/bulk-pins/"+b.ID+"/cancel", f.key, nil).want(http.StatusOK).decode(&b)
	if b.State != "cancelled" || b.Issued != 0 {
		t.Errorf("cancelled: %+v", b)
	}
	f.call("POST", "/v1/bulk-pins", f.key, nil).want(http.StatusBadRequest)
	f.call("POST", "/v1/bulk-pins", f.key, object{}).want(http.StatusConflict) // nothing to mail with
	f.call("POST", "/v1/bulk-pins", f.key, object{"messaging": messaging, "length": 3}).want(http.StatusUnprocessableEntity)
	f.clock.advance(time.Second)
	late := f.call("POST", "/v1/bulk-pins", f.key, object{"messaging": messaging}).want(http.StatusCreated).text("id")
	f.clock.advance(time.Hour)
	if got := f.call("GET", "/v1/bulk-pins/"+late, f.key, nil).want(http.StatusOK).text("state"); got != "expired" {
		t.Errorf("after an hour: %s", got)
	}
	var list struct{ Items []struct{ ID string } }
	f.call("GET", "/v1/bulk-pins", f.key, nil).want(http.StatusOK).decode(&list)
	if len(list.Items) != 2 || list.Items[0].ID != late {
		t.Errorf("list: %+v", list.Items)
	}
}
