package rest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/functions/api/rest"
	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

// TestMain looks, after all tests, for what must not be in any log line or
// answer of theirs.
func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.NewJSONHandler(&canary.log, nil))) // the gateway's
	code := m.Run()
	if err := canary.err(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		code = 1
	}
	os.Exit(code)
}

// canary is what all tests together sent, logged and were answered.
var canary = &witness{secrets: map[string]string{}, people: map[string]string{}}

// shortest is the length from which a value is so unlike others that finding it
// means that it leaked.
const shortest = 8

type witness struct {
	log     testserver.Buffer
	answers testserver.Buffer // but those that show a secret once

	mu      sync.Mutex
	secrets map[string]string // value → what it is
	people  map[string]string
}

func (w *witness) secret(what, value string) { w.note(w.secrets, what, value) }

func (w *witness) note(values map[string]string, what, value string) {
	if len(value) >= shortest {
		w.mu.Lock()
		defer w.mu.Unlock()
		values[value] = what
	}
}

// look notes the secrets and personal data in a body, by the names they have
// there.
func (w *witness) look(body []byte) {
	var v any
	if json.Unmarshal(body, &v) == nil {
		w.walk("", v)
	}
}

func (w *witness) walk(name string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, v := range v {
			w.walk(name, v)
		}
	case []any:
		for _, v := range v {
			w.walk(name, v)
		}
	case string:
		switch name {
		case "pin", "password", "puk", "adminKey", "masterKey", "secret":
			w.secret(name, v)
		case "link":
			if _, token, ok := strings.Cut(v, "?t="); ok {
				w.secret(name, token)
			}
		case "apiKey", "token":
			if strings.HasPrefix(v, "pw") { // audit records have a token's id
				w.secret(name, v)
			}
		case "username", "mail", "to", "phone", "staffNumber", "externalId":
			w.note(w.people, name, v)
		}
	}
}

// err reports what was found where it must not be.
func (w *witness) err() error {
	log, answers := w.log.String(), w.answers.String()
	if len(w.secrets) == 0 || len(w.people) == 0 || !strings.Contains(log, `"requestId"`) || answers == "" {
		return nil // not a run of tests that send and log anything
	}
	for value, what := range w.secrets {
		if strings.Contains(log, value) {
			return fmt.Errorf("the log shows a value of %q: %s", what, around(log, value))
		}
		if w.people[value] == "" && strings.Contains(answers, value) { // some bad PINs are names
			return fmt.Errorf("an answer shows a value of %q: %s", what, around(answers, value))
		}
	}
	for value, what := range w.people {
		if strings.Contains(log, value) {
			return fmt.Errorf("the log shows a value of %q: %s", what, around(log, value))
		}
	}
	return nil
}

func around(text, value string) string {
	i := strings.Index(text, value)
	return text[max(0, i-200):min(len(text), i+len(value)+200)]
}

// clock is a clock that stands still.
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

// brittle is a table whose writes fail while fail says so.
type brittle struct {
	table.Table
	mu   sync.Mutex
	fail func([]table.Op) error
}

func (b *brittle) breakWith(fail func([]table.Op) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = fail
}

func (b *brittle) Write(ctx context.Context, ops ...table.Op) error {
	b.mu.Lock()
	fail := b.fail
	b.mu.Unlock()
	if fail != nil {
		if err := fail(ops); err != nil {
			return err
		}
	}
	return b.Table.Write(ctx, ops...)
}

const (
	relayURL   = "wss://relay.example.org"
	consoleURL = "https://pages.example.org"
)

// sockets are connections to bridges: they keep what was done to them.
type sockets struct {
	mu   sync.Mutex
	done []string // "post c1 {...}", "close c1"
	fail error    // of every call
}

func (s *sockets) Post(_ context.Context, connection string, data []byte) error {
	return s.note("post " + connection + " " + string(data))
}

func (s *sockets) Close(_ context.Context, connection string) error {
	return s.note("close " + connection)
}

func (s *sockets) note(what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = append(s.done, what)
	return s.fail
}

// failing makes every call from now on fail.
func (s *sockets) failing(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// take returns what was done, and forgets it.
func (s *sockets) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := s.done
	s.done = nil
	return done
}

// fixture is an installation behind an HTTP server: each request passes through
// an API Gateway event.
type fixture struct {
	testing.TB
	url      string
	clock    *clock
	table    *brittle
	file     string // of the table
	outbox   *mail.Outbox
	sockets  *sockets
	platform string // the platform key
	key      string // of role admin of the tenant acme
	system   *wiring.System
	receiver *receiver // of webhooks
	n        int

	cardTemplates map[string]string // of credential, by key and family
}

func newFixture(t testing.TB, change ...func(*wiring.Parts)) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{TB: t, clock: &clock{t: time.Date(2030, 1, 31, 9, 0, 0, 0, time.UTC)}, file: filepath.Join(dir, "pinward.db"), sockets: new(sockets)}
	db, err := bolt.Open(f.file, bolt.NoSync())
	f.must(err)
	root, err := vault.LocalRoot(filepath.Join(dir, "root.key"))
	f.must(err)
	f.outbox, err = mail.OpenOutbox(filepath.Join(dir, "outbox"))
	f.must(err)
	platform, hash, err := tenant.NewPlatformKey(rand.Reader)
	f.must(err)
	f.platform, f.table = platform.Reveal(), &brittle{Table: db}
	parts := wiring.Parts{
		Table: f.table, Root: root, Senders: mail.Senders{Outbox: f.outbox, Now: f.clock.Now}, Now: f.clock.Now,
		Log: slog.New(slog.NewJSONHandler(&canary.log, nil)), PlatformKeyHash: hash, Rate: rest.Rate{PerSecond: 1e6, Burst: 1e6},
		Connections: f.sockets, RelayURL: relayURL, ConsoleURL: consoleURL,
	}
	f.receiver = newReceiver(t)
	parts.WebhooksTo = wiring.WebhooksTo{Anywhere: true, RootCAs: f.receiver.roots}
	for _, c := range change {
		c(&parts)
	}
	f.system = wiring.New(parts)
	server := httptest.NewServer(gateway.Front(gateway.Handler(f.system.API()), f.clock.Now, func() string { return ulid.Make().String() }))
	f.url = server.URL
	t.Cleanup(func() {
		server.Close()
		f.must(db.Close())
		f.must(f.outbox.Close())
	})
	f.key = f.tenant("acme")
	return f
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// answer is what a call was answered.
type answer struct {
	testing.TB
	status int
	header http.Header
	body   []byte
}

// object is a JSON object.
type object map[string]any

// call makes a request. body is nil, a string sent as it is, or a value sent as
// JSON; headers are pairs of name and value. An answer that reports an error
// must be a problem.
func (f *fixture) call(method, path, key string, body any, headers ...string) answer {
	f.Helper()
	a, err := f.try(method, path, key, body, headers...)
	f.must(err)
	return a
}

// try is call for other goroutines.
func (f *fixture) try(method, path, key string, body any, headers ...string) (answer, error) {
	var sent []byte
	switch b := body.(type) {
	case nil:
	case string:
		sent = []byte(b)
	default:
		var err error
		if sent, err = json.Marshal(b); err != nil {
			return answer{}, err
		}
	}
	r, err := http.NewRequest(method, f.url+path, bytes.NewReader(sent))
	if err != nil {
		return answer{}, err
	}
	if len(sent) > 0 {
		r.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
		canary.secret("key", key)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{TB: f.TB, status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		return answer{}, err
	}
	canary.look(sent)
	canary.look(a.body)
	if a.header.Get("Cache-Control") != "no-store" {
		_, _ = canary.answers.Write(a.body)
	}
	if a.status >= 400 {
		if err := a.isProblem(); err != nil {
			return answer{}, fmt.Errorf("%s %s: %d %s: %w", method, path, a.status, a.body, err)
		}
	}
	return a, nil
}

type problemBody struct {
	Type, Title, Detail, RequestID string
	Status                         int
	Errors                         []struct{ Code, Location, Message string }
}

func (a answer) problem() (p problemBody) { a.decode(&p); return p }

// isProblem tells in what an error's answer is not as all of them are.
func (a answer) isProblem() error {
	var p problemBody
	if err := json.Unmarshal(a.body, &p); err != nil {
		return err
	}
	switch replayed := a.header.Get("Idempotency-Replayed") != ""; {
	case a.header.Get("Content-Type") != "application/problem+json":
		return fmt.Errorf("Content-Type is %q", a.header.Get("Content-Type"))
	case p.Status != a.status || p.Title != http.StatusText(a.status) || !strings.HasPrefix(p.Type, "urn:pinward:problem:") || p.Detail == "":
		return fmt.Errorf("not a whole problem")
	case p.RequestID == "" || p.RequestID != a.header.Get("X-Request-Id") && !replayed:
		return fmt.Errorf("requestId is %q, X-Request-Id is %q", p.RequestID, a.header.Get("X-Request-Id"))
	}
	for _, e := range p.Errors {
		if e.Code == "" || e.Location == "" || e.Message == "" {
			return fmt.Errorf("an error lacks code, location or message")
		}
		if strings.Contains(e.Message, "json:") || strings.Contains(e.Message, "Go ") {
			return fmt.Errorf("an error speaks of the program")
		}
	}
	return nil
}

func (a answer) decode(v any) {
	a.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		a.Fatalf("answer %d %s: %v", a.status, a.body, err)
	}
}

// want ends the test unless the answer has the status.
func (a answer) want(status int) answer {
	a.Helper()
	if a.status != status {
		a.Fatalf("got %d %s, want %d", a.status, a.body, status)
	}
	return a
}

// text returns a string in the body, by its path.
func (a answer) text(path ...string) string {
	a.Helper()
	var v any
	a.decode(&v)
	for _, name := range path {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	s, _ := v.(string)
	if s == "" {
		a.Fatalf("answer %d %s has no %s", a.status, a.body, strings.Join(path, "."))
	}
	return s
}

// comparable returns what of the answer may tell one case from another.
func (a answer) comparable() string {
	header := a.header.Clone()
	for _, name := range []string{"X-Request-Id", "Apigw-Requestid", "Date"} {
		header.Del(name)
	}
	id := a.header.Get("X-Request-Id")
	return fmt.Sprintf("%d %v %s", a.status, header, strings.ReplaceAll(string(a.body), id, "<id>"))
}

// tenant makes a tenant and returns its first key.
func (f *fixture) tenant(id string) string {
	f.Helper()
	return f.call("POST", "/v1/tenants", f.platform, object{"id": id, "displayName": "The " + id + " company", "timeZone": "Europe/Berlin", "language": "en"}).want(201).text("apiKey")
}

// keyOf makes a key of a role.
func (f *fixture) keyOf(role string) string {
	f.Helper()
	return f.call("POST", "/v1/keys", f.key, object{"name": role, "role": role}).want(201).text("apiKey")
}

// user makes a user, with a PIN unless it is "", and returns the id.
func (f *fixture) user(key, pin string) string {
	f.Helper()
	body := object{"username": f.unique("somebody"), "mail": f.unique("somebody") + "@example.org"}
	if pin != "" {
		body["pin"] = pin
	}
	return f.call("POST", "/v1/users", key, body).want(201).text("id")
}

// token returns a token for the user.
func (f *fixture) token(user string) string {
	f.Helper()
	return f.call("POST", "/v1/users/"+user+"/tokens", f.key, nil).want(201).text("token")
}

// unique returns a text that this fixture has not had.
func (f *fixture) unique(prefix string) string {
	f.n++
	return fmt.Sprintf("%s-%d", prefix, f.n)
}

// pin returns a PIN that the default policy allows and nobody had.
func (f *fixture) pin() string {
	f.n++
	return fmt.Sprintf("k7Q2wx%dZp", 10+f.n)
}

// cardID returns the id of a card that this fixture has not had.
func (f *fixture) cardID() string {
	f.n++
	return fmt.Sprintf("A0%030X", f.n)
}

// puk returns a PUK that nobody had.
func (f *fixture) puk() string {
	f.n++
	return fmt.Sprintf("pK%05dz", f.n)
}

const adminKey = "8f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978"

// cardTemplate makes a credential template.
func (f *fixture) cardTemplate(key, family string) string {
	f.Helper()
	return f.call("POST", "/v1/card-templates", key, object{"name": family + " cards", "family": family, "channels": []string{"operator"}}).want(201).text("id")
}

// credential registers a card, a PIV card with a PUK.
func (f *fixture) credential(key, family string) string {
	f.Helper()
	if f.cardTemplates[key+family] == "" { // a tenant can have a hundred
		if f.cardTemplates == nil {
			f.cardTemplates = map[string]string{}
		}
		f.cardTemplates[key+family] = f.cardTemplate(key, family)
	}
	body := object{"family": family, "cardId": f.cardID(), "template": f.cardTemplates[key+family]}
	if family == "PIV" {
		body["puk"] = f.puk()
	}
	return f.call("POST", "/v1/credentials", key, body).want(201).text("id")
}

// policy changes the PIN policy of acme.
func (f *fixture) policy(policy object) {
	f.Helper()
	f.call("PUT", "/v1/policy", f.key, policy).want(200)
}

// outboxConfiguration makes a messaging configuration of kind outbox.
func (f *fixture) outboxConfiguration(key string) string {
	f.Helper()
	return f.call("POST", "/v1/messaging", key, outboxConfiguration).want(201).text("id")
}

var outboxConfiguration = object{"name": "Outbox", "kind": "outbox", "from": "it@acme.example"}

var mailTemplate = object{"name": "Short", "subject": "Your PIN", "text": "{{username}}, it expires on {{pinExpiration}}."}
