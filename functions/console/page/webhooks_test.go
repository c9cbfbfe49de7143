package page_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/tenant"
)

func TestWebhookPages(t *testing.T) {
	var status atomic.Int64
	status.Store(204)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(int(status.Load()))
	}))
	defer receiver.Close()
	f := newFixture(t, func(p *wiring.Parts) { p.WebhooksTo.Anywhere = true })
	c := f.signedIn(tenant.RoleAdmin)
	const list = "/console/rules/webhooks"
	c.get(list).want(http.StatusOK).has("There are no webhooks yet.", "New webhook")
	p := c.get(list+"/new").submit(list+"/new", "name", "Intranet "+nasty, "url", "ftp://x").want(http.StatusUnprocessableEntity).hasNot("<script>alert")
	p = p.submit(list+"/new", "url", receiver.URL+"/hooks").want(http.StatusOK).has("It is shown this once", "whsec_")
	if p.header.Get("Cache-Control") != "no-store" {
		t.Error("a secret may be kept by caches")
	}
	secret := find(p.root, byName("pre"))[0].FirstChild.Data
	all, err := f.Deliveries.Endpoints(t.Context(), acme)
	must(t, err)
	at := list + "/" + all[0].ID
	c.get(at).want(http.StatusOK).hasNot(secret, "<script>alert")

	c.get(at).submit(at + "/test").want(http.StatusOK).has("The address took the test.")
	status.Store(302)
	c.get(at).submit(at+"/test").want(http.StatusOK).has("The test was not taken.", "redirect")
	c.get(at).submit(at+"/rotate", "overlapHours", "24").want(http.StatusOK).has("A former secret signs too until", "whsec_").hasNot(secret)
	c.get(at).submit(at+"/rotate", "overlapHours", "5124095").want(http.StatusUnprocessableEntity).has("must be 0 to 168")

	before := c.get(at)
	c.get(at).submit(at, "name", "Theirs").want(http.StatusOK).has("The webhook is saved")
	before.submit(at, "name", "Mine").want(http.StatusConflict).has("NameTheirsMine").submit(at).want(http.StatusOK)
	if csv := c.get(list + "?format=csv").body; !strings.Contains(csv, "Mine,"+receiver.URL) || strings.Contains(csv, "whsec") {
		t.Errorf("got %q", csv)
	}

	// What a rule has sent in vain, sent again and given up.
	_, err = f.Rules.Create(t.Context(), f.core(acme), platform, rule.Rule{Name: "Tell", On: true, Event: event.PrintJobSubmitted, Actions: []rule.Action{{Kind: rule.CallWebhook, Endpoint: all[0].ID}}})
	must(t, err)
	status.Store(500)
	f.happens("p1", event.PrintJobSubmitted, "nobody")
	f.happens("p2", event.PrintJobSubmitted, "nobody")
	for range 8 {
		f.clock.advance(12 * time.Hour)
		_, err := f.Deliveries.Sweep(t.Context(), 100)
		must(t, err)
	}
	const deliveries = "/console/rules/deliveries"
	c = f.signedIn(tenant.RoleAdmin)
	c.get(deliveries+"?state=dead").want(http.StatusOK).has("given up", "The endpoint answered with the status 500.")
	dead, _, err := f.Deliveries.List(t.Context(), acme, true, "", 10)
	must(t, err)
	if len(dead) != 2 {
		t.Fatalf("%d are dead", len(dead))
	}
	status.Store(204)
	one, other := deliveries+"/"+dead[0].ID, deliveries+"/"+dead[1].ID
	c.get(one).want(http.StatusOK).has(`"type":"print-job.submitted"`).hasNot("<script>alert").submit(one + "/resend").want(http.StatusOK).has("delivered")
	c.post(one+"/drop", url.Values{}).want(http.StatusConflict).has("It is delivered")
	c.get(other).submit(other + "/drop").want(http.StatusOK).has("It is not sent any more")
	c.get(deliveries + "?state=dead").want(http.StatusOK).has("Nothing was given up.")
	if csv := c.get(deliveries + "?format=csv").body; !strings.Contains(csv, string(delivery.Dropped)) {
		t.Errorf("got %q", csv)
	}
	c.get(deliveries + "/none").want(http.StatusNotFound)

	c.get(at + "/delete").submit(at + "/delete").want(http.StatusConflict).has("names it")
	must(t, f.Rules.Delete(t.Context(), f.core(acme), platform, f.rule("Tell").ID))
	c.get(at + "/delete").submit(at + "/delete").want(http.StatusOK).has("The webhook is deleted")

	auditor := f.signedIn(tenant.RoleAuditor)
	auditor.get(deliveries).want(http.StatusOK)
	auditor.get(one).want(http.StatusOK).hasNot("Send it again")
}
