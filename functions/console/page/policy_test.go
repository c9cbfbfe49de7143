package page_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/tenant"
)

func TestPolicy(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	byDefault := pin.Default()
	p := c.get("/console/policy").want(http.StatusOK).has("This is version 1", "4"+words.In("en").Number(int(byDefault.Admissible(4).Int64())))
	p = p.submit("/console/policy", "minLength", "6", "history", "3", "expirationHours", "720", "notifyHoursBefore", "24; 72", "requireClasses", "digit",
		"blocklistEntries", "112358\r\n\r\n 271828 ", "disallowContext", "").want(http.StatusOK)
	p.has("The policy is saved", "This is version 2")
	got := f.core(acme).Policy
	want := pin.Default()
	want.MinLength, want.History, want.ExpirationHours, want.NotifyHoursBefore = 6, 3, 720, pin.Hours{72, 24}
	want.RequireClasses, want.BlocklistEntries, want.DisallowContext = []pin.Class{pin.Digit}, []string{"112358", "271828"}, false
	sameJSON(t, want, got.Policy)
	if got.Version != 2 {
		t.Errorf("version %d", got.Version)
	}

	// Saved as it is, nothing is changed.
	c.get("/console/policy").submit("/console/policy").want(http.StatusOK).has("Nothing was changed", "This is version 2")

	// The versions there were, what each changed, and a comparison.
	p = c.get("/console/policy/versions?compare=1").want(http.StatusOK)
	p.has("Version 1 and today's", "Shortest PIN, in characters46", "the first version", "Reminders by mail, in hours before the expirynone72, 24")
	if csv := c.get("/console/policy/versions?format=csv").want(http.StatusOK).body; strings.Count(csv, "\r\n") != 3 || strings.Contains(csv, "112358") {
		t.Errorf("got %q", csv)
	}
	c.get("/console/policy/versions?compare=9").want(http.StatusNotFound)
	p = c.get("/console/policy?version=1").want(http.StatusOK).has("filled with the rules of version 1")
	if got := p.form("/console/policy"); got.Get("minLength") != "4" || got.Get("version") != "2" {
		t.Errorf("got %v", got)
	}
	c.get("/console/policy?version=7").want(http.StatusNotFound)

	// A profile fills the form in, and no more.
	p = c.get("/console/policy?profile=fips201").want(http.StatusOK).has("filled with the profile FIPS 201")
	if got := p.form("/console/policy"); got.Get("maxLength") != "8" || got.Get("alphabet") != "digits" {
		t.Errorf("got %v", got)
	}
	if f.core(acme).Policy.Version != 2 {
		t.Error("a profile was saved")
	}
	c.get("/console/policy?profile=none").want(http.StatusNotFound)
}

func TestPolicyRefused(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	p := c.get("/console/policy").submit("/console/policy", "minLength", "many", "maxLength", "3", "lockMinutes", "0", "notifyHoursBefore", "soon",
		"blocklistEntries", `<script>alert(1)</script>`+"\n12 34").want(http.StatusUnprocessableEntity)
	p.has("Please mend this", "Shortest PIN", "must be a whole number", "must be from 4 to 64", "number 2 is not", "with commas between").hasNot("<script>alert")
	for _, field := range []string{"minLength", "maxLength", "lockMinutes", "notifyHoursBefore", "blocklistEntries"} {
		if !strings.Contains(p.body, `href="#`+field+`"`) || !strings.Contains(p.body, `aria-invalid="true"`) {
			t.Errorf("no link to %s", field)
		}
	}
	if got := p.form("/console/policy"); got.Get("minLength") != "many" || !strings.Contains(got.Get("blocklistEntries"), "<script>") {
		t.Errorf("what was entered is lost: %v", got)
	}
	if n := strings.Count(p.text(), "must be a whole number"); n != 2 { // at the top, and at the field
		t.Errorf("it is said %d times of the shortest PIN:\n%s", n, p.text())
	}
	if f.core(acme).Policy.Version != 1 {
		t.Error("it was saved")
	}
}

// The second of two administrators sees what the first has changed, loses nothing, and may
// save knowingly.
func TestPolicyConflict(t *testing.T) {
	f := newFixture(t)
	first, second := f.signedIn(tenant.RoleAdmin), f.signedIn(tenant.RoleAdmin)
	form := second.get("/console/policy")
	first.get("/console/policy").submit("/console/policy", "minLength", "7", "blocklistEntries", "1123\n1124").want(http.StatusOK)
	p := form.submit("/console/policy", "minLength", "5", "blocklistEntries", "2718\n2719").want(http.StatusConflict)
	p.has("Somebody else has changed the policy meanwhile", "Shortest PIN, in characters475", "Save what I entered all the same")
	p.submit("/console/policy").want(http.StatusOK).has("The policy is saved")
	if got := f.core(acme).Policy; got.MinLength != 5 || got.Version != 3 {
		t.Errorf("got %+v", got)
	}
	// As many entries, but others.
	p = form.submit("/console/policy", "minLength", "5", "blocklistEntries", "3141\n3142").want(http.StatusConflict)
	p.has("another list")
	// A version that never was.
	second.get("/console/policy").submit("/console/policy", "version", "77").want(http.StatusNotFound)
}

// Changing the policy asks again, 15 minutes after the sign-in, and keeps what was entered.
func TestPolicyAsksAgain(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	form := c.get("/console/policy")
	f.clock.advance(16 * time.Minute)
	p := form.submit("/console/policy", "minLength", "6").want(http.StatusUnauthorized).has("Show that it is you")
	if got := p.form("/console/policy").Get("minLength"); got != "6" {
		t.Errorf("the form lost %q", got)
	}
	if f.core(acme).Policy.Version != 1 {
		t.Error("it was saved")
	}
}

// A PIN is tried by the form as it stands, and is neither shown again nor logged.
func TestTryPIN(t *testing.T) {
	f := newFixture(t)
	for _, role := range []tenant.Role{tenant.RoleAdmin, tenant.RoleHelpdesk} {
		c := f.signedIn(role)
		form := c.get("/console/policy").form("/console/policy")
		try := func(changes ...string) *answer {
			t.Helper()
			fields := url.Values{}
			for name, values := range form {
				fields[name] = values
			}
			for i := 0; i < len(changes); i += 2 {
				fields.Set(changes[i], changes[i+1])
			}
			return c.post("/console/policy/try", fields).want(http.StatusOK)
		}
		try("secret.pin", "12345").has("This PIN is refused", "must not go up or down by one").hasNot("12345")
		try("secret.pin", "748293").has("This PIN may be used").hasNot("748293")
		try("secret.pin", "748293", "tryPhone", "+49 7482 93").has("phone number").hasNot("748293")
		try("secret.pin", "748293", "minLength", "8").has("must have at least 8 characters")
		try().hasNot("This PIN")
		c.header.Set("HX-Request", "true")
		p := try("secret.pin", "748293", "minLength", "0").has("cannot be used as they stand", "must be from 4 to 64")
		p.hasNot("<h1", "748293")
		try("secret.pin", "", "alphabet", "digits", "minLength", "4", "maxLength", "4", "blocklist", "none", "disallowSequential", "").has("10,000")
		try("requireClasses", "upper").has("None consists of digits alone")
		c.header.Del("HX-Request")
	}
	if log := f.log.String(); strings.Contains(log, "748293") || strings.Contains(log, "12345") {
		t.Error("a PIN is in the log")
	}
	if f.core(acme).Policy.Version != 1 {
		t.Error("trying has saved")
	}
}

// Who may only read sees the policy in words, and no way to change it.
func TestPolicyReadOnly(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleHelpdesk)
	c.get("/console/policy").want(http.StatusOK).has("Letters and digits", "Length of the lock").hasNot("Save the policy", "versions", `name="expiryMail`)
	c.post("/console/policy", url.Values{"minLength": {"9"}}).want(http.StatusNotFound)
	c.get("/console/policy/versions").want(http.StatusNotFound)
}

func TestExpiryMailChoice(t *testing.T) {
	f := newFixture(t)
	c, d := f.signedIn(tenant.RoleAdmin), f.signedIn(tenant.RoleAdmin)
	const action = "/console/policy/expiry-mail"
	before := d.get("/console/policy")
	c.get("/console/policy").submit(action, "expiryMail.messaging", "").want(http.StatusOK).has("It is saved how reminders are sent")
	if got := f.core(acme).Tenant.Settings.ExpiryMail; got != (tenant.ExpiryMailRefs{Template: mail.PINExpiryID}) {
		t.Errorf("got %+v", got)
	}
	before.submit(action).want(http.StatusConflict).has("Somebody else has changed this meanwhile").submit(action).want(http.StatusOK)
	c.get("/console/policy").submit(action, "expiryMail.messaging", "no-such", "expiryMail.template", mail.NoticeID).want(http.StatusUnprocessableEntity).
		has("is not the id of a messaging configuration", "expiry mails need one of kind")
	if got := f.core(acme).Tenant.Settings; got.ExpiryMail.Messaging != "outbox" || !got.SupportFunctions {
		t.Errorf("got %+v", got)
	}
}
