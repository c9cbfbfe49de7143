package page_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/tenant"
)

func sameJSON(t testing.TB, want, got any) {
	t.Helper()
	a, err := json.Marshal(want)
	must(t, err)
	b, err := json.Marshal(got)
	must(t, err)
	if diff := cmp.Diff(string(a), string(b)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

const nasty = `<script>alert(1)</script>"'><b>`

func TestMessaging(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	store := mail.Store{Table: f.Table, Tenant: acme, Keys: f.core(acme).Keys}
	const made = "/console/messaging/configurations/new"
	p := c.get(made).want(http.StatusOK).hasNot("Amazon SES of this installation") // which it has not
	p = p.submit(made, "kind", "smtp", "name", "Company "+nasty, "from", "it@acme.example", "smtp.host", "smtp.acme.example", "smtp.username", "ada", "smtp.port", "x").
		want(http.StatusUnprocessableEntity).has("587 for starttls", "is required with a username").hasNot("<script>alert")
	p = p.submit(made, "smtp.port", "465", "smtp.security", "tls", "secret.smtp.password", "hunter-2-hunter").want(http.StatusOK).has("The configuration is saved", "One is stored")
	p.hasNot("hunter-2-hunter", "<script>alert")
	all, err := store.Configurations(t.Context())
	must(t, err)
	id := ""
	for _, one := range all {
		if one.Kind == mail.KindSMTP {
			id = one.ID
		}
	}
	at := "/console/messaging/configurations/" + id
	// The password stays while the server does.
	p.submit(at, "name", "Company").want(http.StatusOK)
	with, err := store.WithPassword(t.Context(), id)
	must(t, err)
	if with.SMTP.Password.Reveal() != "hunter-2-hunter" || with.Name != "Company" {
		t.Errorf("got %+v", with)
	}
	c.get(at).submit(at, "smtp.host", "evil.example").want(http.StatusUnprocessableEntity).has("must be given again")
	c.get("/console/messaging").want(http.StatusOK).has("Company", "reminders of the expiry of PINs").hasNot("hunter")
	if csv := c.get("/console/messaging?format=csv").body; !strings.Contains(csv, "smtp.acme.example,465") || strings.Contains(csv, "hunter") {
		t.Errorf("got %q", csv)
	}

	// Two administrators.
	before := c.get(at)
	c.get(at).submit(at, "replyTo", "help@acme.example").want(http.StatusOK)
	p = before.submit(at, "name", "Mine").want(http.StatusConflict).has("Somebody else has changed this", "Answers go tohelp@acme.example", "NameCompanyMine")
	p.submit(at).want(http.StatusOK)
	if got, _ := store.Configuration(t.Context(), id); got.Name != "Mine" || got.ReplyTo != "" {
		t.Errorf("got %+v", got)
	}

	// What is named cannot be deleted; another can.
	gone := "/console/messaging/configurations/outbox/delete"
	c.get(gone).want(http.StatusOK).submit(gone).want(http.StatusConflict).has("The settings name it")
	c.get(at + "/delete").want(http.StatusOK).submit(at + "/delete").want(http.StatusOK).has("The configuration is deleted")
	c.get(at).want(http.StatusNotFound)
	if log := f.log.String(); strings.Contains(log, "hunter") {
		t.Error("a password is in the log")
	}
}

func TestMessagingTest(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	const at, test = "/console/messaging/configurations/outbox", "/console/messaging/configurations/outbox/test"
	p := c.get(at).want(http.StatusOK).submit(test, "to", "grace@acme.example", "template", mail.PINIssuedID).want(http.StatusOK).has("took the test mail to grace@acme.example")
	if !strings.Contains(f.lastMail("grace@acme.example"), "739158") { // the example
		t.Error("nothing was mailed")
	}
	p.submit(test, "to", "nobody").want(http.StatusUnprocessableEntity)
	c.get(at).submit(test, "template", "none").want(http.StatusUnprocessableEntity).has("is not the id of a mail template")
	for range 19 {
		c.get(at).submit(test, "to", "grace@acme.example").want(http.StatusOK)
	}
	c.get(at).submit(test).want(http.StatusTooManyRequests).has("Too many test mails")
	f.clock.advance(11 * 60e9)
	c.get(at).submit(test).want(http.StatusOK)
}

func TestMailTemplates(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	const list, at = "/console/messaging/templates", "/console/messaging/templates/notice"
	c.get(list).want(http.StatusOK).has("A new PIN that was generated", "as it came")
	p := c.get(at).want(http.StatusOK).has("{{message}}", "Your first print job is waiting.")
	if n := len(find(p.root, byName("iframe"))); n != 1 {
		t.Fatalf("%d previews of the HTML part", n)
	}
	frame := find(p.root, byName("iframe"))[0]
	if !hasAttribute(frame, "sandbox") || attribute(frame, "sandbox") != "" || !strings.Contains(attribute(frame, "srcdoc"), "Your first print job is waiting.") {
		t.Error("the preview is not shut in")
	}
	p = p.submit(at, "subject", "{{nothing}}", "text", "Hello {{username}}\r\n", "html", "").want(http.StatusUnprocessableEntity).has("{{nothing}} is not a variable of this mail", "Subject")
	p = p.submit(at, "subject", "From {{customer-name}}").want(http.StatusOK).has("The template is saved", "changed by you", "From Acme", "text part only")
	core := f.core(acme)
	saved, err := mail.Store{Table: f.Table, Tenant: acme}.Template(t.Context(), mail.NoticeID, core.Tenant.Settings.Language)
	must(t, err)
	if saved.Text != "Hello {{username}}\n" || saved.HTML != "" {
		t.Errorf("got %q and %q", saved.Text, saved.HTML)
	}

	// The form as it stands is shown as a mail, with scripts and without.
	preview := at + "/preview"
	fields := p.form(at)
	fields.Set("text", "Dear {{username}} "+nasty)
	fields.Set("html", "<p>{{message}}</p><script>alert(2)</script>")
	c.post(preview, fields).want(http.StatusOK).has("Dear ada <script>").hasNot("<script>alert")
	c.header.Set("HX-Request", "true")
	c.post(preview, fields).want(http.StatusOK).has("Dear ada").hasNot("<h1", "<script>alert")
	fields.Set("text", "{{#section}}")
	c.post(preview, fields).want(http.StatusOK).has("cannot be made as it stands", "sections")
	c.header.Del("HX-Request")

	// Two administrators.
	before := c.get(at)
	c.get(at).submit(at, "name", "Theirs").want(http.StatusOK)
	before.submit(at, "name", "Mine").want(http.StatusConflict).has("NameTheirsMine").submit(at).want(http.StatusOK)

	// The predefined text, to fill in and to return to.
	p = c.get(at + "?kind=notice&predefined=de").want(http.StatusOK).has("filled with the predefined text")
	if got := p.form(at).Get("text"); !strings.Contains(got, "Guten Tag") {
		t.Errorf("got %q", got)
	}
	c.get(at + "/delete").want(http.StatusOK).submit(at + "/delete").want(http.StatusOK).has("The template is as it came")
	c.get(at + "/delete").want(http.StatusNotFound)

	// One of their own.
	const made = list + "/new"
	c.get(made).want(http.StatusOK).has("What is the mail about?")
	p = c.get(made+"?kind=pin-issued").want(http.StatusOK).submit(made, "name", "Printers", "subject", "{{pin}}").want(http.StatusUnprocessableEntity).has("lock screens")
	p = p.submit(made, "subject", "PIN").want(http.StatusOK).has("The template is saved", "your own")
	own := strings.TrimSuffix(p.path[:strings.Index(p.path, "?")], "/")
	c.get(own + "/delete").submit(own + "/delete").want(http.StatusOK).has("The template is deleted")
	c.get(own).want(http.StatusNotFound)
	if csv := c.get(list + "?format=csv").body; !strings.Contains(csv, "pin-issued,New PIN") {
		t.Errorf("got %q", csv)
	}

	auditor := f.signedIn(tenant.RoleAuditor)
	auditor.get(at).want(http.StatusOK).has("Preview").hasNot("<textarea", "Save the template")
	auditor.post(at, url.Values{}).want(http.StatusNotFound)
}
