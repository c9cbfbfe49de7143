package rest_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/table"
)

// receiver takes webhooks, and answers with its status.
type receiver struct {
	*httptest.Server
	roots *x509.CertPool

	mu       sync.Mutex
	status   int
	requests []received
}

type received struct {
	http.Header
	body string
}

func newReceiver(t testing.TB) *receiver {
	r := &receiver{status: 204, roots: x509.NewCertPool()}
	r.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.requests = append(r.requests, received{request.Header, string(body)})
		w.WriteHeader(r.status)
	}))
	r.roots.AddCert(r.Certificate())
	t.Cleanup(r.Close)
	return r
}

// answers sets the status of the answers from now on.
func (r *receiver) answers(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = status
}

// take returns what came since the last take.
func (r *receiver) take() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	requests := r.requests
	r.requests = nil
	return requests
}

func (f *fixture) hook() object { return object{"name": "Intranet", "url": f.receiver.URL + "/hooks"} }

// webhook creates an endpoint and returns its id and secret.
func (f *fixture) webhook(key string) (id, secret string) {
	f.Helper()
	a := f.call("POST", "/v1/webhooks", key, f.hook()).want(201)
	return a.text("id"), a.text("secret")
}

// delivery plans a webhook as a trigger rule does.
func (f *fixture) delivery(t table.TenantID, key string) (id string) {
	f.Helper()
	endpoint, _ := f.webhook(key)
	return f.deliveryTo(t, endpoint)
}

func (f *fixture) deliveryTo(t table.TenantID, endpoint string) string {
	f.Helper()
	core, err := f.system.Tenants.Load(f.Context(), t)
	f.must(err)
	d, ops, err := f.system.Deliveries.Webhook(f.Context(), core, endpoint, delivery.Webhook{ID: f.unique("event_"), Body: []byte(`{"type":"print-job.submitted"}`)})
	f.must(err)
	f.must(f.table.Write(f.Context(), ops...))
	return d.ID
}

func TestWebhooks(t *testing.T) {
	f := newFixture(t)
	made := f.call("POST", "/v1/webhooks", f.key, f.hook()).want(201)
	id, secret := made.text("id"), made.text("secret")
	if made.header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(secret, "whsec_") {
		t.Errorf("the secret: %v, %d characters", made.header, len(secret))
	}
	got := f.call("GET", "/v1/webhooks/"+id, f.key, nil).want(200)
	want := fmt.Sprintf(`{"createdAt":"2030-01-31T09:00:00Z","id":%q,"name":"Intranet","on":true,"secretAt":"2030-01-31T09:00:00Z","url":"%s/hooks"}`, id, f.receiver.URL)
	var body object
	got.decode(&body)
	if diff := cmp.Diff(want, jsonOf(t, body)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	// A test call tells what came of it.
	a := f.call("POST", "/v1/webhooks/"+id+"/test", f.key, nil).want(200)
	requests := f.receiver.take()
	if !strings.Contains(string(a.body), `"delivered":true`) || len(requests) != 1 || !strings.Contains(requests[0].body, `"type":"test"`) {
		t.Fatalf("got %s and %+v", a.body, requests)
	}
	if r := requests[0]; r.Get("webhook-signature") != sign(t, secret, r) {
		t.Errorf("the test is signed %q", r.Get("webhook-signature"))
	}
	f.receiver.answers(302)
	if a := f.call("POST", "/v1/webhooks/"+id+"/test", f.key, nil).want(200); a.text("code") != "redirected" || !strings.Contains(a.text("sentence"), "redirect") {
		t.Errorf("got %s", a.body)
	}
	f.receiver.answers(410) // of a test, it turns nothing off
	f.call("POST", "/v1/webhooks/"+id+"/test", f.key, nil).want(200)
	f.receiver.answers(204)

	// Changes are made to what was read.
	etag := f.call("GET", "/v1/webhooks/"+id, f.key, nil).want(200).header.Get("ETag")
	off := f.hook()
	off["on"], off["name"] = false, "Other"
	f.call("PUT", "/v1/webhooks/"+id, f.key, off, "If-Match", etag).want(200)
	f.call("PUT", "/v1/webhooks/"+id, f.key, off, "If-Match", etag).want(412)
	f.call("POST", "/v1/webhooks/"+id+"/test", f.key, nil).want(200) // also when it is off

	// Both secrets sign until the overlap is over.
	a = f.call("POST", "/v1/webhooks/"+id+"/rotate-secret", f.key, object{}).want(200)
	if a.text("formerSecretUntil") != "2030-02-01T09:00:00Z" || a.text("secret") == secret {
		t.Errorf("got %s", a.body)
	}
	f.receiver.take()
	f.call("POST", "/v1/webhooks/"+id+"/test", f.key, nil).want(200)
	if r := f.receiver.take()[0]; r.Get("webhook-signature") != sign(t, a.text("secret"), r)+" "+sign(t, secret, r) {
		t.Errorf("signed %q", r.Get("webhook-signature"))
	}
	a = f.call("POST", "/v1/webhooks/"+id+"/rotate-secret", f.key, object{"overlapHours": 0}).want(200)
	f.call("POST", "/v1/webhooks/"+id+"/test", f.key, nil).want(200)
	if r := f.receiver.take()[0]; r.Get("webhook-signature") != sign(t, a.text("secret"), r) {
		t.Errorf("signed %q", r.Get("webhook-signature"))
	}
	for _, hours := range []int{-1, 169} {
		f.call("POST", "/v1/webhooks/"+id+"/rotate-secret", f.key, object{"overlapHours": hours}).want(422)
	}
	f.call("DELETE", "/v1/webhooks/"+id, f.key, nil).want(204)
	f.call("GET", "/v1/webhooks/"+id, f.key, nil).want(404)
	for _, action := range []string{"created", "tested", "changed", "secretRotated", "deleted"} {
		if a := f.call("GET", "/v1/audit?subject=webhook/"+id, f.key, nil).want(200); !strings.Contains(string(a.body), "webhook."+action) {
			t.Errorf("the audit log does not tell that it was %s", action)
		}
	}
}

// sign is what a receiver expects in webhook-signature.
func sign(t testing.TB, secret string, r received) string {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(r.Get("webhook-id") + "." + r.Get("webhook-timestamp") + "." + r.body))
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func TestDeliveries(t *testing.T) {
	f := newFixture(t)
	endpoint, _ := f.webhook(f.key)
	f.receiver.answers(500)
	id := f.deliveryTo("acme", endpoint)
	for range 8 { // until it is dead
		if _, err := f.system.Sweep().Handle(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		f.clock.advance(12 * time.Hour)
	}
	got := f.call("GET", "/v1/deliveries/"+id, f.key, nil).want(200)
	for _, part := range []string{`"state":"dead"`, `"attempts":8`, `"code":"http.500"`, `"body":{"type":"print-job.submitted"}`, `"sentence":"The endpoint answered with the status 500."`} {
		if !strings.Contains(string(got.body), part) {
			t.Errorf("%s does not have %s", got.body, part)
		}
	}
	other := f.deliveryTo("acme", endpoint)
	list := func(query string) (ids []string) {
		for cursor := ""; ; {
			var page struct {
				Items      []struct{ ID string }
				NextCursor string
			}
			f.call("GET", "/v1/deliveries?limit=1&cursor="+cursor+query, f.key, nil).want(200).decode(&page)
			for _, item := range page.Items {
				ids = append(ids, item.ID)
			}
			if cursor = page.NextCursor; cursor == "" {
				return ids
			}
		}
	}
	if diff := cmp.Diff([]string{other, id}, list("")); diff != "" {
		t.Errorf("all, newest first (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{id}, list("&state=dead")); diff != "" {
		t.Errorf("dead (-want +got):\n%s", diff)
	}
	f.call("GET", "/v1/deliveries?state=alive", f.key, nil).want(422)
	f.receiver.answers(200)
	if a := f.call("POST", "/v1/deliveries/"+id+"/resend", f.key, nil).want(200); a.text("state") != "delivered" {
		t.Errorf("sent again: %s", a.body)
	}
	f.call("POST", "/v1/deliveries/"+id+"/drop", f.key, nil).want(409)
	f.call("POST", "/v1/deliveries/"+other+"/resend", f.key, nil).want(409)
	if a := f.call("POST", "/v1/deliveries/"+other+"/drop", f.key, nil).want(200); a.text("state") != "dropped" {
		t.Errorf("dropped: %s", a.body)
	}
	if dead := list("&state=dead"); len(dead) != 0 {
		t.Errorf("still dead: %v", dead)
	}
}

// What webhooks may not reach is refused with a reason, and nothing is dialled.
func TestWebhookBadInput(t *testing.T) {
	f := newFixture(t, func(p *wiring.Parts) { p.WebhooksTo.Anywhere = false })
	for url, code := range map[string]string{
		"http://hooks.example.org/": "scheme", "https://127.0.0.1/": "notPublic", "https://169.254.169.254/latest": "notPublic",
		"https://localhost/": "notPublic", "https://[::1]/": "notPublic", "https://u:secret-word@hooks.example.org/": "userInfo", "nonsense": "form",
		"https://2130706433/": "host",
	} {
		p := f.call("POST", "/v1/webhooks", f.key, object{"name": "x", "url": url}).want(422).problem()
		if len(p.Errors) != 1 || p.Errors[0].Code != code || p.Errors[0].Location != "body.url" {
			t.Errorf("%s: %+v", url, p.Errors)
		}
	}
	f.call("POST", "/v1/webhooks", f.key, object{"name": "", "url": "https://hooks.example.org/"}).want(422)
	f.call("POST", "/v1/webhooks", f.key, object{"name": "x", "url": "https://hooks.example.org/" + strings.Repeat("x", 2000)}).want(422)
	f.call("POST", "/v1/webhooks", f.key, object{"name": "x", "url": "https://hooks.example.org/"}).want(201)
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
