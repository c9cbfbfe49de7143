package page_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pinward/pinward/shared/intake"
	"github.com/pinward/pinward/shared/tenant"
)

// upload submits the page's form to that path with a file; "" is none.
func (p *answer) upload(action, file string, changes ...string) *answer {
	p.c.f.Helper()
	fields := p.form(action)
	for i := 0; i+1 < len(changes); i += 2 {
		fields.Set(changes[i], changes[i+1])
	}
	return p.c.upload(action, file, fields)
}

func (c *client) upload(action, file string, fields url.Values) *answer {
	c.f.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for name, values := range fields {
		for _, v := range values {
			must(c.f, w.WriteField(name, v))
		}
	}
	part, err := w.CreateFormFile("part", map[bool]string{true: "", false: "list.csv"}[file == ""])
	must(c.f, err)
	_, err = part.Write([]byte(file))
	must(c.f, err)
	must(c.f, w.Close())
	r, err := http.NewRequestWithContext(c.f.Context(), "POST", c.f.url+action, &b)
	must(c.f, err)
	r.Header.Set("Content-Type", w.FormDataContentType())
	p := c.send(r)
	if to := p.header.Get("Location"); to != "" {
		return c.get(to)
	}
	return p
}

const people = "Login;Name;PIN\r\nada;Ada <b>L</b>;73914628\r\nbob;Bob;1234\r\n=cmd();C;\r\n"

func TestImportOfUsers(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	c.get("/console/users/import").want(http.StatusOK).has("Nothing has been imported")
	form := c.get("/console/users/import/new").want(http.StatusOK).has("$API/v1/user-imports/")
	const action = "/console/users/import/new"
	p := form.upload(action, people).want(http.StatusUnprocessableEntity).has("Please mend this", "File")
	if !strings.Contains(p.body, `href="#part"`) {
		t.Error("the fault does not lead to the file")
	}
	c.get("/console/users/import").has("Nothing has been imported") // what cannot be read is no import
	names := []string{"delimiter", "semicolon", "columns.username", "Login", "columns.displayName", "Name", "columns.pin", "PIN"}
	form.upload(action, "", names...).want(http.StatusUnprocessableEntity).has("is missing; choose the file")
	form.upload(action, strings.Repeat("x", 4<<20+1), names...).want(http.StatusUnprocessableEntity).has("is larger than 4 MiB")
	p = p.upload(action, people, names...).want(http.StatusOK).
		has("Check of a file of users", "Nothing has been changed", "2would be new", "1would be refused", "3bobrefusedPIN", "Import 2 rows").hasNot("1234", "<b>L")
	if _, err := f.Users.ByUsername(t.Context(), acme, "ada"); err == nil {
		t.Error("the check has imported")
	}
	at, _, _ := strings.Cut(p.path, "?")
	p.upload(at+"/run", people+"eve;E;\r\n").want(http.StatusUnprocessableEntity).has("is not the file that was checked")
	done := p.upload(at+"/run", people).want(http.StatusOK).has("Import of users", "finished", "2are new", "1were refused").hasNot("/cancel", "/run")
	u, err := f.Users.ByUsername(t.Context(), acme, "ada")
	must(t, err)
	if !f.verifies(u, "73914628") || u.Profile.DisplayName != "Ada <b>L</b>" {
		t.Errorf("imported %+v", u.Profile)
	}
	result := c.get(strings.TrimSuffix(done.path, "?") + "/result").want(http.StatusOK)
	if !strings.Contains(result.body, "1,3,bob,refused,PIN,") || strings.Contains(result.body, "1234") || result.header.Get("Content-Disposition") == "" {
		t.Errorf("result: %s", result.body)
	}
	c.get("/console/users/import").want(http.StatusOK).has("Check only", "Import", "finished")
	if strings.Contains(f.log.String(), "73914628") {
		t.Error("the log has a PIN")
	}
	f.signedIn(tenant.RoleAuditor).get(done.path).want(http.StatusOK).hasNot("<form method=\"post\" action=\"/console/users")
	c.get(strings.Replace(at, "/users/", "/cards/", 1)).want(http.StatusNotFound) // it is of users
}

// A script sends the file again from the page on which it was chosen, and is given what comes
// next.
func TestImportByScript(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	const action = "/console/users/import/new"
	form := c.get(action).form(action)
	c.header.Set("HX-Request", "true")
	c.upload(action, "nothing known\n", form).want(http.StatusOK).has("Please mend this").hasNot("<html")
	file := "username\nada\n"
	working := c.upload(action, file, form).want(http.StatusOK).has("is being checked").hasNot("<html")
	next := func(p *answer) string {
		t.Helper()
		for _, n := range find(p.root, func(n *html.Node) bool { return hasAttribute(n, "hx-post") }) {
			if attribute(n, "hx-include") == "#import" {
				return attribute(n, "hx-post")
			}
		}
		t.Fatalf("nothing is to be sent next: %s", p.body)
		return ""
	}
	at := strings.TrimSuffix(next(working), "/part")
	c.get(at + "/progress").want(http.StatusOK).has("is being sent").hasNot("<html")
	checked := c.upload(at+"/part", file, form).want(http.StatusOK).has("What would happen", "1would be new").hasNot("<html")
	if _, err := f.Users.ByUsername(t.Context(), acme, "ada"); err == nil {
		t.Error("the check has imported")
	}
	c.upload(next(checked), file+"bob\n", form).want(http.StatusOK).has("is not the file that was checked").hasNot("<html")
	running := c.upload(next(checked), file, form).want(http.StatusOK).has("is being imported")
	done := c.upload(next(running), file, form).want(http.StatusOK)
	to := done.header.Get("HX-Redirect")
	if _, err := f.Users.ByUsername(t.Context(), acme, "ada"); err != nil || to != strings.TrimSuffix(next(running), "/part") {
		t.Errorf("led to %q; %v", to, err)
	}
	c.header.Del("HX-Request")
	c.get(to).want(http.StatusOK).has("finished", "1are new")
}

// A file of several parts is imported part after part, and one that is given up stays so.
func TestImportInParts(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	const action = "/console/users/import/new"
	p := c.get(action).upload(action, "username\nada\n", "more", "on").want(http.StatusOK).has("1would be new", "Part 2")
	at, _, _ := strings.Cut(p.path, "?")
	p = p.upload(at+"/part", "bob\nada\n", "more", "").want(http.StatusOK).has("2would be new", "finished")
	p = p.upload(at+"/run", "username\nada\n").want(http.StatusOK).has("1are new", "Part 2", "open")
	at, _, _ = strings.Cut(p.path, "?")
	p = p.upload(at+"/part", "\"bob\n").want(http.StatusUnprocessableEntity).has("Please mend this", "nothing of the part was taken")
	p.upload(at+"/part", "bob\n").want(http.StatusOK).has("2are new", "open").
		submit(at+"/finish").want(http.StatusOK).has("The import is finished", "finished")
	p.c.upload(at+"/part", "cleo\n", url.Values{}).want(http.StatusConflict)

	p = c.get(action).upload(action, "username\nada\n", "more", "on")
	at, _, _ = strings.Cut(p.path, "?")
	p.submit(at+"/cancel").want(http.StatusOK).has("cancelled").hasNot("/run", "/part")
}

func TestImportOfCards(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleOperator)
	const action = "/console/cards/import/new"
	c.get(action).want(http.StatusOK).has("Import cards from a file").upload(action, "cardId,family\n0011,PIV\n").
		want(http.StatusUnprocessableEntity).has("Template")
	f.signedIn(tenant.RoleHelpdesk).get(action).want(http.StatusNotFound)
}

// A part that takes longer than one call says so, and goes on with the same file.
func TestImportGoesOn(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	core := f.core(acme)
	is := &intake.Imports{Kind: intake.Users, Table: f.Table, Credentials: f.Credentials, Users: f.Users, Audit: f.Audit, Now: f.clock.Now, Rand: rand.Reader}
	im, err := is.Create(t.Context(), core, platform, intake.Options{Format: intake.CSV})
	must(t, err)
	var file strings.Builder
	file.WriteString("username\n")
	for i := range 1500 {
		fmt.Fprintf(&file, "u%04d\n", i)
	}
	var calls atomic.Int64
	is.Now = func() time.Time { return f.clock.Now().Add(time.Duration(calls.Add(1)) * time.Minute) }
	p, err := is.Part(t.Context(), core, platform, im.ID, 1, []byte(file.String()))
	must(t, err)
	if p.Done || p.Rows == 0 {
		t.Fatalf("part %+v", p)
	}
	at := "/console/users/import/of/" + im.ID
	p2 := c.get(at).want(http.StatusOK).has("Not done yet", "choose the same file of part 1 again")
	p2.upload(at+"/part", "username\nother\n").want(http.StatusConflict)
	p2.upload(at+"/part", file.String()).want(http.StatusOK).has("1,500are new", "finished")
}
