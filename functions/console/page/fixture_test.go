package page_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/net/html"

	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/infra/testserver/browser"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

const acme, other table.TenantID = "acme", "other"

var platform = audit.Actor{Kind: audit.Platform, ID: "platform"}

// fixture is an installation on an embedded table, with the tenants acme and other, whose
// mails lie in an outbox. Its clock stands still.
type fixture struct {
	testing.TB
	*wiring.System
	clock  *clock
	outbox *mail.Outbox
	log    *lockedBuffer
	url    string // of the pages
}

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// noBridges is where no bridge is connected.
type noBridges struct{}

func (noBridges) Post(context.Context, string, []byte) error { return gateway.ErrGone }
func (noBridges) Close(context.Context, string) error        { return nil }

func TestMain(m *testing.M) { os.Exit(browser.Main(m)) }

func newFixture(tb testing.TB, change ...func(*wiring.Parts)) *fixture {
	tb.Helper()
	dir := tb.TempDir()
	db, err := bolt.Open(filepath.Join(dir, "table"), bolt.NoSync())
	must(tb, err)
	tb.Cleanup(func() { _ = db.Close() })
	root, err := vault.LocalRoot(filepath.Join(dir, "root.key"))
	must(tb, err)
	f := &fixture{TB: tb, clock: &clock{t: time.Date(2030, 3, 4, 9, 0, 0, 0, time.UTC)}, log: &lockedBuffer{}}
	f.outbox, err = mail.OpenOutbox(filepath.Join(dir, "outbox"))
	must(tb, err)
	tb.Cleanup(func() { _ = f.outbox.Close() })
	parts := wiring.Parts{Table: db, Root: root, Senders: mail.Senders{Outbox: f.outbox, Now: f.clock.Now}, Now: f.clock.Now,
		Log: slog.New(slog.NewJSONHandler(f.log, nil)), Connections: noBridges{}, RelayURL: "wss://relay.example.org", ConsoleURL: "https://console.example.org", APIURL: "https://api.example.org"}
	for _, c := range change {
		c(&parts)
	}
	f.System = wiring.New(parts)
	for _, id := range []table.TenantID{acme, other} {
		core, _, err := f.Tenants.Create(tb.Context(), platform, tenant.Tenant{ID: id, Settings: tenant.Settings{
			DisplayName: strings.ToUpper(string(id[:1])) + string(id[1:]), TimeZone: "Europe/Berlin", Language: "en", SupportFunctions: true}})
		must(tb, err)
		op, err := mail.Store{Table: db, Tenant: id, Keys: core.Keys}.PutConfiguration(tb.Context(), mail.Configuration{
			ID: "outbox", Name: "Outbox", Kind: mail.KindOutbox, From: "Pinward <pinward@example.org>"})
		must(tb, err)
		settings := core.Tenant.Settings
		settings.ExpiryMail = tenant.ExpiryMailRefs{Messaging: "outbox", Template: mail.PINExpiryID}
		_, err = f.Tenants.ChangeSettings(tb.Context(), platform, core, settings, op)
		must(tb, err)
	}
	server := httptest.NewServer(f.front())
	tb.Cleanup(server.Close)
	f.url = server.URL
	return f
}

// front is what people reach: the pages behind what makes API Gateway's events.
func (f *fixture) front() http.Handler {
	return gateway.Front(gateway.Handler(f.Console()), f.clock.Now, func() string { return ulid.Make().String() })
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// core is the tenant as it is now.
func (f *fixture) core(t table.TenantID) tenant.Core {
	f.Helper()
	core, err := f.Tenants.Load(f.Context(), t)
	must(f, err)
	return core
}

// person makes somebody who may sign in.
func (f *fixture) person(t table.TenantID, name string, roles ...tenant.Role) person.Person {
	f.Helper()
	p, err := f.People.Create(f.Context(), f.core(t), platform, person.Person{Name: name, Mail: strings.ToLower(strings.ReplaceAll(name, " ", ".")) + "@" + string(t) + ".example", Roles: roles})
	must(f, err)
	return p
}

// signedIn is the browser of somebody new who has the roles in acme, and is signed in.
func (f *fixture) signedIn(roles ...tenant.Role) *client {
	f.Helper()
	return f.signIn(acme, f.person(acme, "Pat "+rand.Text()[:8], roles...))
}

// signIn is the browser of a person who has signed in by a link.
func (f *fixture) signIn(t table.TenantID, p person.Person) *client {
	f.Helper()
	link, _, err := f.People.Link(f.Context(), f.core(t), platform, p.ID, time.Hour)
	must(f, err)
	c := f.client()
	c.person = p
	c.get("/console/sign-in/link?t=" + url.QueryEscape(link.Reveal())).submit("/console/sign-in/link").want(http.StatusOK)
	return c
}

// client is a browser without scripts: it keeps cookies, follows answers and fills in forms.
type client struct {
	f       *fixture
	person  person.Person
	cookies map[string]string
	header  http.Header
}

func (f *fixture) client() *client {
	return &client{f: f, cookies: map[string]string{}, header: http.Header{}}
}

// answer is what a client was answered.
type answer struct {
	c      *client
	path   string
	status int
	header http.Header
	body   string
	root   *html.Node
}

func (c *client) get(path string) *answer { c.f.Helper(); return c.do("GET", path, nil) }

func (c *client) post(path string, form url.Values) *answer {
	c.f.Helper()
	return c.do("POST", path, form)
}

// do sends a request and follows where the answer leads.
func (c *client) do(method, path string, form url.Values) *answer {
	c.f.Helper()
	for range 10 {
		var body io.Reader
		if form != nil {
			body = strings.NewReader(form.Encode())
		}
		r, err := http.NewRequestWithContext(c.f.Context(), method, c.f.url+path, body)
		must(c.f, err)
		if form != nil {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		p := c.send(r)
		to := p.header.Get("Location")
		if to == "" {
			return p
		}
		next, err := r.URL.Parse(to)
		must(c.f, err)
		method, path, form = "GET", next.RequestURI(), nil
	}
	c.f.Fatalf("%s: led round and round", path)
	return nil
}

// send sends a request with the client's cookies and keeps those of the answer.
func (c *client) send(r *http.Request) *answer {
	c.f.Helper()
	for name, values := range c.header {
		r.Header[name] = values
	}
	for name, value := range c.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	must(c.f, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(c.f, err)
	for _, cookie := range resp.Cookies() {
		if !strings.HasPrefix(cookie.Name, "__Host-") || !cookie.Secure || !cookie.HttpOnly || cookie.Path != "/" || cookie.Domain != "" || cookie.SameSite == 0 {
			c.f.Errorf("cookie %s is not guarded: %v", cookie.Name, cookie)
		}
		if cookie.MaxAge < 0 {
			delete(c.cookies, cookie.Name)
		} else {
			c.cookies[cookie.Name] = cookie.Value
		}
	}
	p := &answer{c: c, path: r.URL.RequestURI(), status: resp.StatusCode, header: resp.Header, body: string(b)}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
		p.root, err = html.Parse(bytes.NewReader(b))
		must(c.f, err)
	}
	return p
}

func (p *answer) want(status int) *answer {
	p.c.f.Helper()
	if p.status != status {
		p.c.f.Fatalf("%s: %d, want %d:\n%s", p.path, p.status, status, p.text())
	}
	return p
}

// has demands that a person reads the texts on the page.
func (p *answer) has(texts ...string) *answer {
	p.c.f.Helper()
	read := p.text()
	for _, text := range texts {
		if !strings.Contains(read, text) {
			p.c.f.Errorf("%s: %q is not on the page:\n%s", p.path, text, read)
		}
	}
	return p
}

// hasNot demands that the texts are nowhere in the answer.
func (p *answer) hasNot(texts ...string) *answer {
	p.c.f.Helper()
	for _, text := range texts {
		if strings.Contains(p.body, text) {
			p.c.f.Errorf("%s: %q is on the page", p.path, text)
		}
	}
	return p
}

// text is what a person reads of the main part, or of all that there is.
func (p *answer) text() string {
	if p.root == nil {
		return p.body
	}
	from := p.root
	if main := find(p.root, func(n *html.Node) bool { return n.Data == "main" }); len(main) > 0 {
		from = main[0]
	}
	var b strings.Builder
	for n := range from.Descendants() {
		if n.Type == html.TextNode && n.Parent.Data != "style" && n.Parent.Data != "script" {
			b.WriteString(n.Data)
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

func find(from *html.Node, is func(*html.Node) bool) []*html.Node {
	var all []*html.Node
	for n := range from.Descendants() {
		if n.Type == html.ElementNode && is(n) {
			all = append(all, n)
		}
	}
	return all
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func hasAttribute(n *html.Node, name string) bool {
	return slices.ContainsFunc(n.Attr, func(a html.Attribute) bool { return a.Key == name })
}

// form returns the fields of the page's form to that path, as a browser would send them.
func (p *answer) form(action string) url.Values {
	p.c.f.Helper()
	if p.root == nil {
		p.c.f.Fatalf("%s: no page, but %s", p.path, p.body)
	}
	forms := find(p.root, func(n *html.Node) bool { return n.Data == "form" && attribute(n, "action") == action })
	if len(forms) == 0 {
		p.c.f.Fatalf("%s: there is no form to %s:\n%s", p.path, action, p.body)
	}
	fields := url.Values{}
	for _, n := range find(forms[0], func(n *html.Node) bool { return attribute(n, "name") != "" && !hasAttribute(n, "disabled") }) {
		name, value := attribute(n, "name"), attribute(n, "value")
		switch kind := attribute(n, "type"); {
		case n.Data == "select":
			for i, o := range find(n, func(n *html.Node) bool { return n.Data == "option" }) {
				if i == 0 || hasAttribute(o, "selected") {
					fields.Set(name, attribute(o, "value"))
				}
			}
		case n.Data == "textarea":
			if n.FirstChild != nil {
				fields.Add(name, n.FirstChild.Data)
			}
		case n.Data == "button", kind == "submit", kind == "file":
		case (kind == "checkbox" || kind == "radio") && !hasAttribute(n, "checked"):
		default:
			fields.Add(name, value)
		}
	}
	return fields
}

// submit sends the page's form to that path, with fields given other values: name, value,
// and so on. A value of "" takes a box's check away.
func (p *answer) submit(action string, changes ...string) *answer {
	p.c.f.Helper()
	fields := p.form(action)
	for i := 0; i+1 < len(changes); i += 2 {
		fields.Set(changes[i], changes[i+1])
	}
	return p.c.post(action, fields)
}

// lastMail is the newest mail to an address, as text.
func (f *fixture) lastMail(to string) string {
	f.Helper()
	mails, err := f.outbox.List(100)
	must(f, err)
	for _, m := range mails {
		if strings.Contains(m.To, to) {
			return m.Text
		}
	}
	return ""
}
