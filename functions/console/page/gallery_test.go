package page_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/functions/console/page"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/infra/testserver/browser"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/intake"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/tenant"
)

// gallery is an installation in which there is something to see on every page.
type gallery struct {
	*fixture
	api  string // URL
	key  string
	text func(what string) string // a text that people have put in
}

// ordinary texts are such as people put in.
func ordinary(what string) string {
	if s, ok := map[string]string{
		"person": "Ada Lovelace", "person2": "אדה לאבלייס", "person3": "Maximiliane Freifrau von und zu Hohenstein-Niederwald-Oberkirchen", "group": "Sales", "rule": "First print job: give a PIN and mail it",
		"template": "Staff badge", "bridge": "Service desk 2", "label": "Badge of Ada", "key": "Intranet", "hook": "Door system", "messaging": "Mail relay", "statement": "Staff badge shown, photo compared",
		"organisation": "Acme Ltd", "subject": "Your PIN expires",
	}[what]; ok {
		return s
	}
	return strings.ToUpper(what[:1]) + what[1:]
}

// hostile texts would run as a script on a page that does not escape them.
func hostile(what string) string {
	text := what + `"'><x-hostile onload=x>`
	if slices.Contains([]string{"person", "rule", "organisation", "label"}, what) { // there is room
		text += `</textarea></title><script>alert(1)</script>{{.}}`
	}
	return text
}

func newGallery(t *testing.T, text func(string) string) *gallery {
	t.Helper()
	d := desk.New(t)
	f := &fixture{TB: t, System: d.System, log: &lockedBuffer{}}
	pages := httptest.NewServer(gateway.Front(gateway.Handler(f.Console()), d.Clock.Now, func() string { return ulid.Make().String() }))
	t.Cleanup(pages.Close)
	f.url = pages.URL
	api := httptest.NewServer(gateway.Front(gateway.Handler(f.API()), d.Clock.Now, func() string { return ulid.Make().String() }))
	t.Cleanup(api.Close)
	g := &gallery{f, api.URL, d.AdminKey, text}

	type o = map[string]any
	g.call("PUT", "/v1/settings", o{"displayName": text("organisation"), "timeZone": "Europe/Berlin", "language": "en", "supportFunctions": true, "pinOnlyLogin": false,
		"expiryMail": o{"messaging": d.Messaging}})
	g.call("POST", "/v1/messaging", o{"name": text("messaging"), "kind": "smtp", "from": "it@acme.example", "smtp": o{"host": "mail.acme.example", "port": 587, "security": "starttls", "username": "pinward", "password": "hunter2hunter2"}})
	g.call("POST", "/v1/mail-templates", o{"name": text("letter"), "kind": "notice", "subject": "News", "text": "{{message}}"})
	var users []string
	for i, who := range []string{"person", "person2", "person3", "visitor", "temp"} {
		users = append(users, g.call("POST", "/v1/users", o{"username": fmt.Sprintf("user%d", i), "displayName": text(who), "mail": fmt.Sprintf("user%d@acme.example", i), "phone": "+49 30 1234",
			"staffNumber": text("no"), "externalId": text(fmt.Sprint("ext", i)), "groups": []string{text("group")}, "pin": fmt.Sprintf("73%d1%d4", i+2, i)})["id"].(string))
	}
	g.call("PUT", "/v1/policy", o{"minLength": 6, "expirationHours": 24 * 30, "notifyHoursBefore": []int{168, 24}})
	g.call("PUT", "/v1/users/"+users[0]+"/pin", o{"pin": "739164"})
	g.call("POST", "/v1/users/"+users[1]+"/pin/issue", o{})
	g.call("POST", "/v1/keys", o{"name": text("key"), "role": "operator"})
	hook := g.call("POST", "/v1/webhooks", o{"name": text("hook"), "url": "https://door.acme.example/hook", "on": true})["id"].(string)
	g.call("POST", "/v1/trigger-rules", o{"name": text("rule"), "on": true, "event": "print-job.submitted", "conditions": o{"hasPin": false, "attributes": []o{{"name": "site", "in": []string{text("site")}}}},
		"actions": []o{{"kind": "generatePIN"}, {"kind": "callWebhook", "endpoint": hook}}})
	g.call("POST", "/v1/trigger-rules", o{"name": text("second rule"), "on": true, "event": "user.signed-in", "conditions": o{}, "actions": []o{{"kind": "sendMail", "message": text("message")}}})
	g.call("POST", "/v1/events", o{"events": []o{{"id": "e-0", "type": "user.signed-in", "time": d.Clock.Now().Format(time.RFC3339), "user": o{"id": users[0]}}}})
	g.call("POST", "/v1/events", o{"events": []o{{"id": "e-1", "type": "print-job.submitted", "time": d.Clock.Now().Format(time.RFC3339), "user": o{"id": users[2]}, "attributes": o{"site": text("site")}}}})

	g.call("POST", "/v1/bulk-pins", o{"group": text("group")})
	g.imported(intake.Users, "username,displayName,pin\nnew0,"+csvCell(text("person"))+",73914628\n"+csvCell(text("new"))+",x,1\n")
	g.imported(intake.Cards, "cardId,template,label\n00112233445566778899AABBCCDDEEFF,"+csvCell(text("template"))+","+csvCell(text("label"))+"\n")
	g.call("PUT", "/v1/sign-in-provider", o{"on": true, "issuer": "https://login.acme.example", "clientId": text("client"), "public": true, "roleClaim": text("claim"), "roles": o{"admin": []string{text("value")}}})

	b := d.NewBridge(relay.Service)
	c, blocked := d.Issue(softcard.PivApplet)
	_ = blocked
	b.Insert(c)
	g.settle(b)
	g.call("POST", "/v1/bridges", o{"name": text("bridge")})
	op := g.call("POST", "/v1/unblocks", o{"credential": blocked.ID, "bridge": b.ID, "channel": "operator", "statement": text("statement")})
	_ = op
	g.settle(b)
	_, token := d.Issue(softcard.GIDS)
	g.call("POST", "/v1/offline-answers", o{"credential": token.ID, "channel": "windowsChallengeResponse", "challenge": "BF09 E22D E553 55F6", "statement": text("statement")})
	g.fillCards()
	return g
}

// imported is a dry run of a file.
func (g *gallery) imported(kind intake.Kind, file string) {
	g.Helper()
	is := &intake.Imports{Kind: kind, Table: g.Table, Credentials: g.Credentials, Users: g.Users, Audit: g.Audit, Now: g.Pages().Now, Rand: rand.Reader}
	im, err := is.Create(g.Context(), g.core(acme), platform, intake.Options{Format: intake.CSV, DryRun: true})
	must(g, err)
	_, err = is.Part(g.Context(), g.core(acme), platform, im.ID, 1, []byte(file))
	must(g, err)
}

func csvCell(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func (g *gallery) settle(b *desk.Bridge) {
	g.Helper()
	must(g, b.Settle())
}

// call does something by the API.
func (g *gallery) call(method, path string, body any) map[string]any {
	g.Helper()
	sent, err := json.Marshal(body)
	must(g, err)
	r, err := http.NewRequestWithContext(g.Context(), method, g.api+path, bytes.NewReader(sent))
	must(g, err)
	r.Header.Set("Authorization", "Bearer "+g.key)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	must(g, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(g, err)
	if resp.StatusCode >= 300 {
		g.Fatalf("%s %s %s: %d %s", method, path, sent, resp.StatusCode, b)
	}
	var answer map[string]any
	if len(b) > 0 {
		must(g, json.Unmarshal(b, &answer))
	}
	return answer
}

// crawl reads every page that links lead to from the overview, two of each kind at most, and
// returns them by their route.
func (g *gallery) crawl(c *client, console *page.Console) map[string][]*answer {
	g.Helper()
	mux := http.NewServeMux()
	for _, r := range console.Routes() {
		mux.HandleFunc(r.Pattern, func(http.ResponseWriter, *http.Request) {})
	}
	seen := map[string][]*answer{}
	asked := map[string]bool{}
	next := []string{page.Root, page.Root + "/", page.Root + "/help-desk?search=ada"}
	for len(next) > 0 {
		path := next[0]
		next = next[1:]
		if asked[path] || strings.HasPrefix(path, page.Root+"/assets/") {
			continue
		}
		asked[path] = true
		r, err := http.NewRequest("GET", path, nil)
		must(g, err)
		_, pattern := mux.Handler(r)
		if len(seen[pattern]) >= 3 {
			continue
		}
		p := c.get(path)
		if p.status != http.StatusOK && p.status != http.StatusNoContent && p.status != 286 { // nothing new; no more news, in htmx's way
			g.Errorf("a link leads to %s: %d: %s", path, p.status, p.text())
			continue
		}
		seen[pattern] = append(seen[pattern], p)
		if p.root == nil {
			continue
		}
		for _, a := range find(p.root, func(n *html.Node) bool { return n.Data == "a" || attribute(n, "hx-get") != "" }) {
			to, err := r.URL.Parse(attribute(a, "href") + attribute(a, "hx-get"))
			must(g, err)
			if to.Host == "" && strings.HasPrefix(to.Path, page.Root) && to.Path != page.Root+"/sign-in" {
				to.Fragment = ""
				next = append(next, to.RequestURI())
			}
		}
	}
	return seen
}

// elsewhere are the pages that no link leads to from the overview: of who has not signed in, of
// bridges, and what is there only while something is under way.
var elsewhere = []string{"GET /console/sign-in", "GET /console/kiosk",
	"GET /console/users/pins/of/{bulk}/progress", "GET /console/users/import/of/{import}/progress", "GET /console/cards/import/of/{import}/progress"}

// TestEveryPageIsReached: links lead to every page, and every link to a page that there is.
func TestEveryPageIsReached(t *testing.T) {
	g := newGallery(t, ordinary)
	console := g.Pages()
	seen := g.crawl(g.signedIn(tenant.RoleAdmin), console)
	for _, r := range console.Routes() {
		if strings.HasPrefix(r.Pattern, "GET ") && !r.Asked && seen[r.Pattern] == nil && !slices.ContainsFunc(elsewhere, func(p string) bool { return strings.HasPrefix(r.Pattern, p) }) {
			t.Errorf("no link leads to %s", r.Pattern)
		}
	}
}

// TestFirstLoad: a page with all that it loads is at most 100 KB over the wire, for a browser
// that has been nowhere yet.
func TestFirstLoad(t *testing.T) {
	g := newGallery(t, ordinary)
	c := g.signedIn(tenant.RoleAdmin)
	most, at := 0, ""
	for _, pages := range g.crawl(c, g.Pages()) {
		for _, p := range pages {
			if p.root == nil {
				continue
			}
			size := len(p.body)
			for _, n := range find(p.root, func(n *html.Node) bool { return n.Data == "script" || n.Data == "link" }) {
				r, err := http.NewRequestWithContext(t.Context(), "GET", g.url+attribute(n, "src")+attribute(n, "href"), nil)
				must(t, err)
				r.Header.Set("Accept-Encoding", "gzip")
				file := c.send(r).want(http.StatusOK)
				if file.header.Get("Content-Encoding") != "gzip" || !strings.Contains(file.header.Get("Cache-Control"), "immutable") {
					t.Errorf("%s: %v", file.path, file.header)
				}
				size += len(file.body)
			}
			if size > most {
				most, at = size, p.path
			}
		}
	}
	if t.Logf("%s: %.1f KB", at, float64(most)/1e3); most > 100_000 {
		t.Errorf("%s is %d bytes", at, most)
	}
}

// TestManyRows: 10,000 users are shown page by page, and are whole in a file.
func TestManyRows(t *testing.T) {
	rows := testserver.Rounds(10_000, 500)
	g := newGallery(t, ordinary)
	var file strings.Builder
	file.WriteString("username,displayName\n")
	for i := range rows {
		fmt.Fprintf(&file, "many%05d,%s\n", i, strings.Repeat("n", 200))
	}
	id := g.call("POST", "/v1/user-imports", map[string]any{"format": "csv"})["id"].(string)
	for done := false; !done; { // a part that takes longer than a call is sent again
		r, err := http.NewRequestWithContext(t.Context(), "PUT", g.api+"/v1/user-imports/"+id+"/parts/1", strings.NewReader(file.String()))
		must(t, err)
		r.Header.Set("Authorization", "Bearer "+g.key)
		r.Header.Set("Content-Type", "application/octet-stream")
		resp, err := http.DefaultClient.Do(r)
		must(t, err)
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if done = resp.StatusCode == http.StatusOK; !done && resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatal(resp.Status)
		}
	}
	c := g.signedIn(tenant.RoleAuditor)
	p := c.get("/console/users?prefix=many").want(http.StatusOK).has("many00000")
	if len(p.body) > 100_000 {
		t.Errorf("a page of %d bytes", len(p.body))
	}
	var next string
	for _, a := range find(p.root, func(n *html.Node) bool { return attribute(n, "rel") == "next" }) {
		next = attribute(a, "href")
	}
	c.get("/console/users" + next).want(http.StatusOK).has("many00050").hasNot("many00000")
	if got := strings.Count(c.get("/console/users?prefix=many&format=csv").want(http.StatusOK).body, ",many"); got != rows {
		t.Errorf("%d rows in the file, want %d", got, rows)
	}
}

// TestNoKeys: what is said has a text in both languages, also where its key is put together.
func TestNoKeys(t *testing.T) {
	files, err := filepath.Glob("../words/*.json")
	must(t, err)
	prefixes := map[string]bool{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		must(t, err)
		var keys map[string]json.RawMessage
		must(t, json.Unmarshal(b, &keys))
		for key := range keys {
			if i := strings.LastIndexByte(key, '.'); i > 0 && !strings.ContainsRune(key, ' ') && !strings.HasPrefix(key, "audit.") {
				prefixes[key[:i+1]] = true
			}
		}
	}
	g := newGallery(t, ordinary)
	for _, language := range []string{"en", "de"} {
		c := g.signedIn(tenant.RoleAdmin)
		_, err := g.People.Update(t.Context(), g.core(acme), platform, c.person.ID, 0, func(p *person.Person) { p.Language = language })
		must(t, err)
		for pattern, pages := range g.crawl(c, g.Pages()) {
			for _, p := range pages {
				if p.root == nil {
					continue
				}
				for _, word := range strings.Fields(p.text()) {
					word = strings.Trim(word, "():,;\"„“”")
					if i := strings.LastIndexByte(word, '.'); i > 0 && i < len(word)-1 && prefixes[word[:i+1]] && !slices.Contains(said, word) {
						t.Errorf("%s, %s: %q is a key", pattern, language, word)
					}
				}
			}
		}
	}
}

// said are names of the product's that look like keys of the catalogue.
var said = []string{"cards.csv", "users.csv"}

// TestHostileTexts: whatever people put in is text on every page.
func TestHostileTexts(t *testing.T) {
	g := newGallery(t, hostile)
	shown := 0
	for pattern, pages := range g.crawl(g.signedIn(tenant.RoleAdmin), g.Pages()) {
		for _, p := range pages {
			if p.root == nil {
				continue
			}
			for n := range p.root.Descendants() {
				if n.Type != html.ElementNode {
					continue
				}
				if n.Data == "x-hostile" || n.Data == "script" && (n.FirstChild != nil || !strings.HasPrefix(attribute(n, "src"), page.Root+"/assets/")) {
					t.Errorf("%s: <%s> is on the page", pattern, n.Data)
				}
				for _, a := range n.Attr {
					if strings.HasPrefix(a.Key, "on") || a.Key == "style" || strings.HasPrefix(strings.ToLower(strings.TrimSpace(a.Val)), "javascript:") {
						t.Errorf("%s: <%s %s=%q>", pattern, n.Data, a.Key, a.Val)
					}
				}
			}
			if strings.Contains(p.text(), "<x-hostile onload=x>") {
				shown++
			}
		}
	}
	if shown < 5 {
		t.Errorf("hostile texts were to be seen on %d pages only", shown)
	}
}

var (
	screenshots = flag.String("screenshots", "", "`folder` to write pictures of every page to")
	onlyPages   = flag.String("only", "", "of pages whose path has this `part`")
)

// TestEveryPageInABrowser: axe finds nothing serious on any page, and each fits a phone and
// 200 %. With -screenshots it takes pictures.
func TestEveryPageInABrowser(t *testing.T) {
	browser.Need(t)
	g := newGallery(t, ordinary)
	c := g.signIn(acme, g.person(acme, "Grace Hopper", tenant.RoleAdmin))
	seen := g.crawl(c, g.Pages())
	b := browser.New(t)
	g.signInBrowser(b, c)
	for _, pattern := range slices.Sorted(maps.Keys(seen)) {
		p := seen[pattern][0]
		if p.root == nil || !strings.Contains(p.path, *onlyPages) {
			continue
		}
		b.Size(1280, 800)
		b.Open(g.url + p.path)
		if *screenshots != "" {
			name := strings.Trim(strings.NewReplacer("GET ", "", "/", "-", "{", "", "}", "", "$", "").Replace(pattern), "-")
			must(t, os.MkdirAll(*screenshots, 0o755))
			b.Screenshot(filepath.Join(*screenshots, name+".png"), 1280, 0, false)
			b.Screenshot(filepath.Join(*screenshots, name+"-dark.png"), 1280, 0, true)
			b.Screenshot(filepath.Join(*screenshots, name+"-phone.png"), 375, 0, false)
			b.Dark(false)
			b.Size(1280, 800)
		}
		b.Axe()
		b.Fits()
	}
}

// signInBrowser signs the person of a client in, in a real browser.
func (f *fixture) signInBrowser(b *browser.Page, c *client) {
	f.Helper()
	link, _, err := f.People.Link(f.Context(), f.core(acme), platform, c.person.ID, time.Hour)
	must(f, err)
	b.Open(f.url + "/console/sign-in/link?t=" + url.QueryEscape(link.Reveal()))
	b.Click("Sign in")
	b.See("Overview")
}
