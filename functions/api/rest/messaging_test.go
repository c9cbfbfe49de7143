package rest_test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// TestSMTP makes a configuration and sends test mails with it.
func TestSMTP(t *testing.T) {
	server, err := testserver.SMTP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	canary.secret("the mail server's password", server.Password)
	f := newFixture(t, func(p *wiring.Parts) {
		p.Senders.RootCAs, p.Senders.Timeout = server.RootCAs, 500*time.Millisecond
	})
	configuration := func(password string) object {
		smtp := object{"host": server.Host, "port": server.StartTLSPort, "security": "starttls", "username": server.Username}
		if password != "" {
			smtp["password"] = password
		}
		return object{"name": "Company mail", "kind": "smtp", "from": "Acme IT <it@acme.example>", "smtp": smtp}
	}
	made := f.call("POST", "/v1/messaging", f.key, configuration(server.Password)).want(201)
	path := "/v1/messaging/" + made.text("id")
	if !strings.Contains(string(made.body), `"passwordSet":true`) {
		t.Errorf("got %s, want that there is a password", made.body)
	}

	type outcome struct {
		Accepted              bool
		Outcome, Code, Reason string
	}
	send := func(to string) (o outcome) {
		t.Helper()
		f.call("POST", path+"/test", f.key, object{"to": to}).want(200).decode(&o)
		return o
	}
	server.Fault("refused.person@acme.example", testserver.SMTPReject)
	server.Fault("deferred.person@acme.example", testserver.SMTPDefer)
	server.Fault("lost.person@acme.example", testserver.SMTPCloseAfter)
	server.Fault("hanging.person@acme.example", testserver.SMTPHang)
	for _, c := range []struct {
		to   string
		want outcome
	}{
		{"accepted.person@acme.example", outcome{true, "accepted", "", ""}},
		{"refused.person@acme.example", outcome{false, "refused", "smtp.550", "the mail server answered 550 5.1.1: it does not accept this recipient"}},
		{"deferred.person@acme.example", outcome{false, "failed", "smtp.451", "the mail server answered 451 4.3.0"}},
		{"lost.person@acme.example", outcome{false, "unknown", "smtp.lost", "the connection ended before the mail server confirmed the message"}},
		{"hanging.person@acme.example", outcome{false, "failed", "smtp.connection", "the mail server closed the connection or did not answer in time"}},
	} {
		if diff := cmp.Diff(c.want, send(c.to)); diff != "" {
			t.Errorf("to %s (-want +got):\n%s", c.to, diff)
		}
	}
	mail := string(server.Mails()[0].Data)
	for _, want := range []string{"Subject: Your PIN for The acme company expires on ", "From: \"Acme IT\" <it@acme.example>", "To: <accepted.person@acme.example>", "ada"} {
		if !strings.Contains(mail, want) {
			t.Errorf("the mail lacks %q:\n%s", want, mail)
		}
	}

	// The server of testserver repeats a wrong password in its refusal.
	f.call("PUT", path, f.key, configuration("not-the-password")).want(200)
	if got := send("accepted.person@acme.example"); got.Code != "smtp.auth" || got.Accepted {
		t.Errorf("with a wrong password: got %+v, want smtp.auth", got)
	}
	f.call("PUT", path, f.key, configuration(server.Password)).want(200)
	f.call("PUT", path, f.key, configuration("")).want(200) // keeps it
	if got := send("accepted.person@acme.example"); !got.Accepted {
		t.Errorf("with the password kept: got %+v, want accepted", got)
	}
	elsewhere := configuration("")
	elsewhere["smtp"].(object)["host"] = "mail.elsewhere.example"
	if p := f.call("PUT", path, f.key, elsewhere).want(422).problem(); p.Errors[0].Location != "body.smtp.password" {
		t.Errorf("a password was to go to another host: %+v", p)
	}

	audit := f.call("GET", "/v1/audit?subject="+strings.TrimPrefix(path, "/v1/"), f.key, nil).want(200)
	if n := strings.Count(string(audit.body), `"messaging.tested"`); n != 7 {
		t.Errorf("the audit log tells of %d test mails, want 7", n)
	}
	if strings.Contains(string(audit.body), "person@") {
		t.Errorf("the audit log has addresses: %s", audit.body)
	}
}

// TestTemplates customises the predefined template and returns to it, and
// previews what a mail will say.
func TestTemplates(t *testing.T) {
	f := newFixture(t)
	settings := func(name, zone, language string) {
		f.call("PUT", "/v1/settings", f.key, object{"displayName": name, "timeZone": zone, "language": language, "pinOnlyLogin": false, "expiryMail": object{}}).want(200)
	}
	preview := func(id string) (m struct{ Subject, Text, HTML string }) {
		f.call("POST", "/v1/mail-templates/"+id+"/preview", f.key, nil).want(200).decode(&m)
		return m
	}
	settings("Müller & <Söhne>", "Europe/Berlin", "de")
	came := preview("pin-expiry")
	if want := "Ihre PIN für Müller & <Söhne> läuft am "; !strings.HasPrefix(came.Subject, want) {
		t.Errorf("subject %q, want %q first", came.Subject, want)
	}
	if !strings.Contains(came.HTML, "Müller &amp; &lt;Söhne&gt;") || strings.Contains(came.HTML, "<Söhne>") {
		t.Errorf("the name is not escaped in HTML: %s", came.HTML)
	}
	if !strings.Contains(came.Text, "10:00") { // 09:00 UTC tomorrow
		t.Errorf("the text does not tell the time in Berlin: %s", came.Text)
	}

	f.call("PUT", "/v1/mail-templates/pin-expiry", f.key, object{"name": "Ours", "subject": "PIN: {{ username }}", "text": "{{customer-name}}: {{pinExpiration}}"}).want(200)
	if got := preview("pin-expiry"); got.Subject != "PIN: ada" || !strings.HasPrefix(got.Text, "Müller & <Söhne>: ") || got.HTML != "" {
		t.Errorf("the customised template shows %+v", got)
	}
	var list struct {
		Items []struct {
			ID         string
			Predefined bool
		}
	}
	f.call("GET", "/v1/mail-templates", f.key, nil).want(200).decode(&list)
	if len(list.Items) != len(mail.TemplateKinds()) || list.Items[0].Predefined || !list.Items[1].Predefined || !list.Items[2].Predefined {
		t.Errorf("templates are %+v, want the customised one and the others as they came", list.Items)
	}
	f.call("DELETE", "/v1/mail-templates/pin-expiry", f.key, nil).want(204)
	if diff := cmp.Diff(came, preview("pin-expiry")); diff != "" {
		t.Errorf("after the change was deleted (-as it came +now):\n%s", diff)
	}
	f.call("DELETE", "/v1/mail-templates/pin-expiry", f.key, nil).want(204) // nothing to delete is as good
}

// TestTemplateKinds: mails of each kind have a template, with variables of their own, and
// a code is in the mail but not in its subject.
func TestTemplateKinds(t *testing.T) {
	f := newFixture(t)
	type template struct {
		ID, Kind, Name string
		Predefined     bool
		Variables      []string
	}
	expiry := []string{"pinExpiration", "username", "customer-name"}
	code := []string{"code", "username", "customer-name", "card", "expires", "place"}
	var list struct{ Items []template }
	f.call("GET", "/v1/mail-templates", f.key, nil).want(200).decode(&list)
	want := []template{
		{"pin-expiry", "pin-expiry", "PIN expiry", true, expiry},
		{"unblock-code", "unblock-code", "Unblock code", true, code},
		{"pin-reset", "pin-reset", "PIN reset", true, []string{"username", "customer-name", "card", "time", "by", "place"}},
		{"card-pin-expiry", "card-pin-expiry", "Card PIN expiry", true, []string{"pinExpiration", "days", "username", "customer-name", "card"}},
		{"card-pin-expired", "card-pin-expired", "Card PIN expired", true, []string{"pinExpiration", "username", "customer-name", "card"}},
		{"offline-answer", "offline-answer", "Offline unblock code", true, []string{"username", "customer-name", "card", "time", "by"}},
		{"notice", "notice", "Notice", true, []string{"username", "customer-name", "event", "time", "message"}},
		{"pin-issued", "pin-issued", "New PIN", true, []string{"pin", "username", "customer-name", "validity", "use"}},
		{"sign-in", "sign-in", "Sign-in", true, []string{"link", "code", "minutes", "name", "customer-name"}},
		{"confirm-code", "confirm-code", "Confirmation code", true, []string{"code", "minutes", "name", "customer-name"}},
		{"digest", "digest", "Digest for administrators", true, []string{"customer-name", "since", "expiring-count", "expiring", "expired-count", "expired", "undeliverable-count", "undeliverable", "given-up-count", "given-up"}},
	}
	if diff := cmp.Diff(want, list.Items); diff != "" {
		t.Errorf("templates (-want +got):\n%s", diff)
	}
	for _, w := range want {
		var got template
		f.call("GET", "/v1/mail-templates/"+w.ID, f.key, nil).want(200).decode(&got)
		if diff := cmp.Diff(w, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", w.ID, diff)
		}
	}

	create := func(body object) (got template) {
		t.Helper()
		f.call("POST", "/v1/mail-templates", f.key, body).want(201).decode(&got)
		return got
	}
	if got := create(mailTemplate); got.Kind != "pin-expiry" || !cmp.Equal(got.Variables, expiry) {
		t.Errorf("without a kind: got %+v, want one for expiry mails", got)
	}
	own := create(object{"kind": "unblock-code", "name": "Own", "subject": "Hello {{username}}", "text": "{{code}} until {{expires}}"})
	if own.Kind != "unblock-code" || !cmp.Equal(own.Variables, code) {
		t.Errorf("got %+v, want one for unblock codes", own)
	}

	for _, id := range []string{"unblock-code", own.ID} {
		path := "/v1/mail-templates/" + id
		for _, c := range []struct{ subject, text, html, location, reason string }{
			{"{{code}}", "{{code}}", "", "body.subject", "lock screens"},
			{"s", "no code", "", "body.text", "must contain {{code}}"},
			{"s", "{{code}}", "<p>no code</p>", "body.html", "must contain {{code}}"},
			{"s", "{{code}} {{pinExpiration}}", "", "body.text", "{{pinExpiration}} is not a variable of this mail"},
		} {
			p := f.call("PUT", path, f.key, object{"name": "Own", "subject": c.subject, "text": c.text, "html": c.html}).want(422).problem()
			if len(p.Errors) != 1 || p.Errors[0].Location != c.location || !strings.Contains(p.Errors[0].Message, c.reason) {
				t.Errorf("%s: %+v; want %s: ...%s...", id, p.Errors, c.location, c.reason)
			}
		}
		f.call("PUT", path, f.key, object{"name": "Own", "kind": "pin-reset", "subject": "s", "text": "{{code}}"}).want(422) // it stays as it is
		f.call("PUT", path, f.key, object{"name": "Changed", "subject": "s", "text": "{{code}} {{card}}"}).want(200)
		var changed struct{ Kind, Name string }
		f.call("GET", path, f.key, nil).want(200).decode(&changed)
		if changed.Kind != "unblock-code" || changed.Name != "Changed" {
			t.Errorf("%s after a change is %+v", id, changed)
		}

		settings := object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{"template": id}}
		p := f.call("PUT", "/v1/settings", f.key, settings).want(422).problem()
		if len(p.Errors) != 1 || p.Errors[0].Location != "body.expiryMail.template" || !strings.Contains(p.Errors[0].Message, "kind unblock-code") {
			t.Errorf("expiry mails with template %s: %+v", id, p.Errors)
		}
	}
	f.call("DELETE", "/v1/mail-templates/unblock-code", f.key, nil).want(204)

	// Each can be seen, and sent to try it.
	outbox := f.outboxConfiguration(f.key)
	for id, says := range map[string]string{"unblock-code": "123 456", "pin-reset": "you yourself", "pin-expiry": "expires on", own.ID: "123 456"} {
		var preview struct{ Text string }
		f.call("POST", "/v1/mail-templates/"+id+"/preview", f.key, nil).want(200).decode(&preview)
		f.call("POST", "/v1/messaging/"+outbox+"/test", f.key, object{"to": "ada@acme.example", "template": id}).want(200)
		mails, err := f.outbox.List(1)
		f.must(err)
		if sent := strings.ReplaceAll(mails[0].Text, "\r\n", "\n"); !strings.Contains(preview.Text, says) || sent != preview.Text {
			t.Errorf("%s: preview %q, sent %q; want both to say %q", id, preview.Text, sent, says)
		}
		f.clock.advance(time.Second)
	}
}

// TestInUse: what the settings name cannot be deleted.
func TestInUse(t *testing.T) {
	f := newFixture(t)
	messaging, spare := f.outboxConfiguration(f.key), f.outboxConfiguration(f.key)
	template := f.call("POST", "/v1/mail-templates", f.key, mailTemplate).want(201).text("id")
	settings := func(messaging, template string) object {
		return object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{"messaging": messaging, "template": template}}
	}
	f.call("PUT", "/v1/settings", f.key, settings(messaging, template)).want(200)
	for _, path := range []string{"/v1/messaging/" + messaging, "/v1/mail-templates/" + template} {
		if p := f.call("DELETE", path, f.key, nil).want(409).problem(); !strings.Contains(p.Detail, "settings") {
			t.Errorf("%s: got %q, want that the settings name it", path, p.Detail)
		}
		f.call("GET", path, f.key, nil).want(200)
	}
	// A customised predefined template can always return to how it came.
	f.call("PUT", "/v1/settings", f.key, settings(messaging, "pin-expiry")).want(200)
	f.call("PUT", "/v1/mail-templates/pin-expiry", f.key, mailTemplate).want(200)
	f.call("DELETE", "/v1/mail-templates/pin-expiry", f.key, nil).want(204)
	f.call("DELETE", "/v1/mail-templates/"+template, f.key, nil).want(204)
	f.call("PUT", "/v1/settings", f.key, settings(spare, "")).want(200)
	f.call("DELETE", "/v1/messaging/"+messaging, f.key, nil).want(204)
	f.call("GET", "/v1/messaging/"+messaging, f.key, nil).want(404)

	// Test mails of kind outbox are files.
	for i := range 2 {
		f.call("POST", "/v1/messaging/"+spare+"/test", f.key, object{"to": fmt.Sprintf("ada%d@acme.example", i)}).want(200)
	}
	mails, err := f.outbox.List(10)
	f.must(err)
	if len(mails) != 2 {
		t.Errorf("there are %d mails in the outbox, want 2", len(mails))
	}
}

// TestLimits: a tenant keeps so many configurations and templates, and no more.
func TestLimits(t *testing.T) {
	f := newFixture(t)
	for path, body := range map[string]object{"/v1/messaging": outboxConfiguration, "/v1/mail-templates": mailTemplate} {
		for range 100 {
			f.call("POST", path, f.key, body).want(201)
		}
		if p := f.call("POST", path, f.key, body).want(409).problem(); !strings.Contains(p.Detail, "the most a tenant can have") {
			t.Errorf("%s: got %q", path, p.Detail)
		}
	}
}

// TestReminderSettings shows that one reminder may be given as a number, as it was when there
// was only one, and is told as a list; and that quiet hours are told as they were given.
func TestReminderSettings(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct{ given, want string }{{`24`, `[24]`}, {`[24,168,72]`, `[168,72,24]`}, {`0`, `[]`}, {`[]`, `[]`}} {
		f.call("PUT", "/v1/policy", f.key, `{"expirationHours": 240, "notifyHoursBefore": `+c.given+`}`).want(200)
		var got struct{ NotifyHoursBefore json.RawMessage }
		f.call("GET", "/v1/policy", f.key, nil).want(200).decode(&got)
		if string(got.NotifyHoursBefore) != c.want {
			t.Errorf("%s is told as %s, want %s", c.given, got.NotifyHoursBefore, c.want)
		}
	}
	type quiet struct {
		From, To string
		DaysOff  []string
	}
	for _, want := range []quiet{{"20:00", "07:15", []string{"saturday", "sunday"}}, {DaysOff: []string{"friday"}}, {}} {
		body := object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{},
			"quietHours": object{"from": want.From, "to": want.To, "daysOff": want.DaysOff}}
		f.call("PUT", "/v1/settings", f.key, body).want(200)
		var got struct{ QuietHours quiet }
		f.call("GET", "/v1/settings", f.key, nil).want(200).decode(&got)
		if diff := cmp.Diff(want, got.QuietHours); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

// TestDigestSettings shows that a digest is told as it was given, in the settings only.
func TestDigestSettings(t *testing.T) {
	f := newFixture(t)
	type digest struct {
		Recipients []string
		Hour       int
		Days       []string
	}
	for _, want := range []digest{{[]string{"it@acme.example", "desk@acme.example"}, 7, []string{"monday", "friday"}}, {Recipients: []string{"it@acme.example"}}, {}} {
		f.call("PUT", "/v1/settings", f.key, object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{},
			"digest": object{"recipients": want.Recipients, "hour": want.Hour, "days": want.Days}}).want(200)
		var got struct{ Digest digest }
		f.call("GET", "/v1/settings", f.key, nil).want(200).decode(&got)
		if diff := cmp.Diff(want, got.Digest); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

// TestMailProblem shows that an address that does not work is told of its user, who is listed
// for it until it is cleared.
func TestMailProblem(t *testing.T) {
	f := newFixture(t)
	id, other := f.user(f.key, ""), f.user(f.key, "")
	type body struct {
		ID          string
		Mail        string
		MailProblem *struct{ Kind, Code string }
	}
	var u body
	f.call("PATCH", "/v1/users/"+id, f.key, object{"mail": "ada@acme.example"}).want(200).decode(&u)
	now := f.clock.Now()
	users := user.Users{Table: f.table, Audit: audit.Log{Now: f.clock.Now, Rand: rand.Reader}, Now: f.clock.Now, Rand: rand.Reader}
	failed := user.MailProblem{Kind: user.MailComplaint, At: now, Code: "ses.complaint.abuse"}
	core := tenant.Core{Tenant: tenant.Tenant{ID: "acme"}}
	if done, err := users.MailFailed(t.Context(), core, audit.Actor{Kind: audit.System}, id, "ada@acme.example", now.Add(time.Second), failed); !done || err != nil {
		t.Fatal(done, err)
	}
	listed := func() (ids []string) {
		var list struct{ Items []body }
		f.call("GET", "/v1/users?undeliverable=true", f.key, nil).want(200).decode(&list)
		for _, u := range list.Items {
			ids = append(ids, u.ID)
		}
		return ids
	}
	f.call("GET", "/v1/users/"+id, f.key, nil).want(200).decode(&u)
	if u.MailProblem == nil || u.MailProblem.Kind != "complaint" || u.MailProblem.Code != "ses.complaint.abuse" {
		t.Errorf("%+v", u.MailProblem)
	}
	if diff := cmp.Diff([]string{id}, listed()); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
	f.call("GET", "/v1/users?undeliverable=true&prefix=a", f.key, nil).want(422)
	f.call("DELETE", "/v1/users/"+other+"/mail-problem", f.key, nil).want(200)
	f.call("DELETE", "/v1/users/01ARZ3NDEKTSV4RRFFQ69G5FAV/mail-problem", f.key, nil).want(404)
	for range 2 {
		u.MailProblem = nil
		f.call("DELETE", "/v1/users/"+id+"/mail-problem", f.key, nil).want(200).decode(&u)
		if u.MailProblem != nil || len(listed()) != 0 {
			t.Errorf("cleared: %+v, listed %q", u.MailProblem, listed())
		}
	}
}
