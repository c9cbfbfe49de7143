package deployment

import (
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/pinward/pinward/infra/testserver"
)

// browser is somebody with a browser, who signs in to the pages of a function.
type browser struct {
	*session
	cookies map[string]string
}

// send sends a form, or gets a page if it is nil, and returns the answer's text and where it
// leads.
func (b *browser) send(path string, form url.Values, want int) (text, to string) {
	b.t.Helper()
	method := http.MethodGet
	if form != nil {
		method = http.MethodPost
	}
	r, err := http.NewRequestWithContext(b.t.Context(), method, b.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	for name, value := range b.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		b.t.Fatalf("%s %s: %s, want %d: %s", method, path, resp.Status, want, body)
	}
	for _, c := range resp.Cookies() {
		b.cookies[c.Name] = c.Value
	}
	return string(body), resp.Header.Get("Location")
}

var signInCode = regexp.MustCompile(`\b\d{4} \d{4}\b`)

// pages is what the first administrator of the tenant demo does on the pages: signs in by
// the code in a mail, looks around, plans PINs in bulk, makes a messaging configuration and
// deletes it, and revokes the bridge.
func (d *desk) pages(c *cloud, function *testserver.Lambda) {
	d.t.Helper()
	messaging := d.do("GET", "/v1/messaging", "", http.StatusOK)["items"].([]any)[0].(map[string]any)["id"].(string)
	d.do("PUT", "/v1/settings", `{"displayName": "Demo", "timeZone": "UTC", "language": "en", "pinOnlyLogin": true, "supportFunctions": true, "expiryMail": {"messaging": "`+messaging+`"}}`, http.StatusOK)
	d.do("POST", "/v1/people", `{"name": "Ada", "mail": "ada@demo.example", "roles": ["admin"]}`, http.StatusCreated)
	b := &browser{newSession(d.t, function), map[string]string{}}
	b.send("/console/sign-in", url.Values{"organisation": {"demo"}, "mail": {"ada@demo.example"}}, http.StatusSeeOther)
	mails, err := testserver.SESMails(c.ses)
	if err != nil {
		d.t.Fatal(err)
	}
	code := ""
	for _, m := range mails {
		if strings.Contains(strings.Join(m.Destination.To, " "), "ada@demo.example") {
			code = signInCode.FindString(m.Body.Text)
			if link := "https://" + consoleDomain + "/console/sign-in/link?t="; !strings.Contains(m.Body.Text, link) {
				d.t.Errorf("no link to %s in %s", link, m.Body.Text)
			}
		}
	}
	b.send("/console/sign-in/code", url.Values{"secret.code": {code}}, http.StatusSeeOther)
	for path, text := range map[string]string{"": "What needs attention", "/users": "new@example.org", "/cards": "PIV", "/audit": "Signed in", "/bridges": "online", "/sanity-check": "without a PIN expiry flag", "/unblock": ""} {
		if page, _ := b.send("/console"+path, nil, http.StatusOK); !strings.Contains(page, text) {
			d.t.Errorf("%s does not say %q:\n%s", path, text, page)
		}
	}
	b.send("/console/users/pins/new", url.Values{}, http.StatusSeeOther)
	_, made := b.send("/console/messaging/configurations/new", url.Values{"kind": {"ses"}, "name": {"Second"}, "from": {"it@example.org"}}, http.StatusSeeOther)
	made, _, _ = strings.Cut(made, "?")
	b.send(made+"/delete", url.Values{}, http.StatusSeeOther)
	b.send("/console/bridges/"+d.id+"/revoke", url.Values{}, http.StatusSeeOther)
	b.send("/console/sign-out", url.Values{}, http.StatusSeeOther)
	b.send("/console/users", nil, http.StatusSeeOther)
}
