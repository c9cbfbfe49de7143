package delivery

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
	"github.com/pinward/pinward/shared/vault"
)

const acme = table.TenantID("acme")

var admin = audit.Actor{Kind: audit.API, ID: "k1", Name: "intranet"}

// world is an installation with the tenant acme, who has the user ada, mails to an outbox
// and an endpoint; and a clock that can be put forward.
type world struct {
	testing.TB
	*Deliveries
	core     tenant.Core
	ada      user.User
	outbox   *mail.Outbox
	receiver *receiver
	endpoint Endpoint
	secret   secret.Text
	log      *testserver.Buffer
	past     atomic.Int64 // time.Duration that the clock is ahead
	n        atomic.Int64
}

func newWorld(tb testing.TB, over table.Table) *world {
	tb.Helper()
	root, err := vault.LocalRoot(filepath.Join(tb.TempDir(), "root.key"))
	if err != nil {
		tb.Fatal(err)
	}
	w := &world{TB: tb, receiver: newReceiver(tb), log: new(testserver.Buffer)}
	if w.outbox, err = mail.OpenOutbox(tb.TempDir()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = w.outbox.Close() })
	now := func() time.Time { return time.Now().Add(time.Duration(w.past.Load())) }
	audits := audit.Log{Now: now, Rand: rand.Reader}
	w.Deliveries = &Deliveries{
		Table:   over,
		Tenants: &tenant.Tenants{Table: over, Vault: vault.New(root), Audit: audits, Now: now, Rand: rand.Reader},
		Users:   &user.Users{Table: over, Audit: audits, Now: now, Rand: rand.Reader},
		Senders: mail.Senders{Outbox: w.outbox, Now: now},
		Audit:   audits, Now: now, Rand: rand.Reader,
		Log:  slog.New(slog.NewJSONHandler(w.log, nil)),
		Dial: w.receiver.dial, RootCAs: w.receiver.roots,
	}
	w.core = w.open(acme)
	w.ada, err = w.Users.Create(tb.Context(), w.core, admin, user.Profile{Username: "ada", Mail: "ada@acme.example"}, nil)
	w.must(err)
	w.messaging(mail.Configuration{ID: "outbox", Name: "Outbox", Kind: mail.KindOutbox, From: "PINs <pins@acme.example>"})
	w.endpoint, w.secret = w.hook("https://example.com/hooks?token=URL-TOKEN")
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) open(id table.TenantID) tenant.Core {
	w.Helper()
	core, _, err := w.Tenants.Create(w.Context(), admin, tenant.Tenant{ID: id, Settings: tenant.Settings{DisplayName: "Acme & Co", TimeZone: "Europe/Berlin", Language: "en"}})
	w.must(err)
	return core
}

func (w *world) messaging(c mail.Configuration) {
	w.Helper()
	op, err := mail.Store{Table: w.Table, Tenant: acme, Keys: w.core.Keys}.PutConfiguration(w.Context(), c)
	w.must(err)
	w.must(w.Table.Write(w.Context(), op))
}

func (w *world) hook(url string) (Endpoint, secret.Text) {
	w.Helper()
	e, text, err := w.CreateEndpoint(w.Context(), w.core, admin, Endpoint{Name: "Intranet", URL: url, On: true})
	w.must(err)
	return e, text
}

func (w *world) pass(d time.Duration) { w.past.Add(int64(d)) }

func (w *world) unique() string { return fmt.Sprint("d_", w.n.Add(1)) }

var body = json.RawMessage(`{"id": "e1", "type":"print-job.submitted","user":"ada <&>"}`)

// webhook plans a webhook to an endpoint.
func (w *world) webhook(e Endpoint) Delivery {
	w.Helper()
	d, ops, err := w.Webhook(w.Context(), w.core, e.ID, Webhook{ID: w.unique(), Body: body})
	w.must(err)
	w.must(w.Table.Write(w.Context(), ops...))
	d.Version++
	return d
}

func (w *world) notice(messaging string) Delivery {
	w.Helper()
	d, ops, err := w.Mail(w.Context(), w.core, Mail{ID: w.unique(), User: w.ada.ID, Messaging: messaging,
		Values: map[string]string{"event": "first print job", "message": "Fetch it."}})
	w.must(err)
	w.must(w.Table.Write(w.Context(), ops...))
	d.Version++
	return d
}

func (w *world) attempt(d Delivery) Delivery {
	w.Helper()
	d, err := w.Attempt(w.Context(), w.core, d.ID)
	w.must(err)
	return d
}

func (w *world) reread(d Delivery) Delivery {
	w.Helper()
	d, err := w.Get(w.Context(), acme, d.ID)
	w.must(err)
	return d
}

func (w *world) sweep() Report {
	w.Helper()
	r, err := w.Sweep(w.Context(), 100)
	w.must(err)
	return r
}

// finish sweeps each time something is due, until the delivery has ended.
func (w *world) finish(d Delivery) Delivery {
	w.Helper()
	for range 20 {
		if d = w.reread(d); d.State.Ended() {
			return d
		}
		if wait := d.At.Sub(w.Now()); wait > 0 {
			w.pass(wait)
		}
		w.sweep()
	}
	w.Fatalf("%s does not end: %+v", d.ID, d)
	return d
}

// dead are the ids of the deliveries that are listed as dead, newest first.
func (w *world) dead() (ids []string) {
	w.Helper()
	list, _, err := w.List(w.Context(), acme, true, "", 100)
	w.must(err)
	for _, d := range list {
		ids = append(ids, d.ID)
	}
	return ids
}

// audited counts the tenant's audit records of today and tomorrow by action.
func (w *world) audited() map[string]int {
	w.Helper()
	n := map[string]int{}
	for _, day := range []time.Time{time.Now(), w.Now()} {
		records, _, err := audit.Day(w.Context(), w.Table, acme, day, "", table.MaxLimit)
		w.must(err)
		for _, r := range records {
			n[r.Action]++
		}
		if day.Format(time.DateOnly) == w.Now().Format(time.DateOnly) {
			break
		}
	}
	return n
}

// got is a request that a receiver got.
type got struct {
	http.Header
	path string
	body []byte
}

// receiver is an HTTPS server for example.com, in memory.
type receiver struct {
	listener *pipes
	roots    *x509.CertPool
	mu       sync.Mutex
	requests []got
	answer   http.HandlerFunc // nil is 204
}

func newReceiver(tb testing.TB) *receiver {
	r := &receiver{listener: &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		r.mu.Lock()
		r.requests = append(r.requests, got{request.Header, request.URL.Path, body})
		answer := r.answer
		r.mu.Unlock()
		if answer == nil {
			rw.WriteHeader(http.StatusNoContent)
			return
		}
		answer(rw, request)
	}))
	_ = server.Listener.Close()
	server.Listener, server.Config.ErrorLog = r.listener, log.New(io.Discard, "", 0)
	server.StartTLS()
	tb.Cleanup(server.Close)
	r.roots = x509.NewCertPool()
	r.roots.AddCert(server.Certificate())
	return r
}

func (r *receiver) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case r.listener.conns <- theirs:
		return ours, nil
	case <-r.listener.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// answers sets how requests are answered from now on.
func (r *receiver) answers(h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = h
}

// take returns the requests since the last take.
func (r *receiver) take() []got {
	r.mu.Lock()
	defer r.mu.Unlock()
	requests := r.requests
	r.requests = nil
	return requests
}

func status(code int, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, "ANSWER-TEXT")
	}
}

// hangUp reads the request and closes the connection.
func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// hang never answers.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// pipes is a net.Listener in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443} }

// mortal is a table that a process loses at its n-th call, made or not, for good.
type mortal struct {
	table.Table
	left  atomic.Int64
	after bool
}

func dying(t table.Table, n int, after bool) *mortal {
	m := &mortal{Table: t, after: after}
	m.left.Store(int64(n))
	return m
}

func (m *mortal) run(call func() error) error {
	switch left := m.left.Add(-1); {
	case left > 0:
		return call()
	case left == 0 && m.after:
		_ = call()
	}
	return fmt.Errorf("dead: %w", problem.ErrUnavailable)
}

func (m *mortal) Get(ctx context.Context, key table.Key) (item table.Item, err error) {
	err = m.run(func() (err error) { item, err = m.Table.Get(ctx, key); return err })
	return item, err
}

func (m *mortal) Query(ctx context.Context, r table.Range) (page table.Page, err error) {
	err = m.run(func() (err error) { page, err = m.Table.Query(ctx, r); return err })
	return page, err
}

func (m *mortal) Write(ctx context.Context, ops ...table.Op) error {
	return m.run(func() error { return m.Table.Write(ctx, ops...) })
}

func isState(err error) bool { return errors.Is(err, problem.ErrState) }

// contextFor is a context that ends after so long.
func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}
