package rest_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/functions/api/rest"
	"github.com/pinward/pinward/functions/wiring"
)

// TestTenantRateLimit: many keys of one tenant do not add up without end.
func TestTenantRateLimit(t *testing.T) {
	f := newFixture(t, func(p *wiring.Parts) { p.Rate = rest.Rate{PerSecond: 1, Burst: 10} })
	allowed := 0
	for range 8 {
		key := f.keyOf("kiosk")
		for range 10 {
			if f.call("GET", "/v1/caller", key, nil).status == 200 {
				allowed++
			}
		}
		f.clock.advance(time.Second) // so that the next key can be made
	}
	if allowed > 60 {
		t.Errorf("%d of 80 requests of one tenant's keys were let through", allowed)
	}
}

// TestListsAreShort: what may be long is not in lists.
func TestListsAreShort(t *testing.T) {
	f := newFixture(t)
	long := strings.Repeat("a", 15_000)
	f.call("POST", "/v1/mail-templates", f.key, object{"name": "Own", "subject": "S", "text": long}).want(201)
	if a := f.call("GET", "/v1/mail-templates", f.key, nil).want(200); strings.Contains(string(a.body), long) || !strings.Contains(string(a.body), `"Own"`) {
		t.Errorf("the list of templates is %d bytes long", len(a.body))
	}
	f.policy(object{"blocklistEntries": []string{"Pinward7"}})
	if a := f.call("GET", "/v1/policy/report", f.key, nil).want(200); strings.Contains(string(a.body), "Pinward7") {
		t.Error("the report repeats the blocklist")
	}
}

// TestAuditAcrossMidnight: a list begun before midnight goes on after it.
func TestAuditAcrossMidnight(t *testing.T) {
	f := newFixture(t)
	for i := range 5 {
		f.call("POST", "/v1/users", f.key, object{"username": fmt.Sprint("user", i)}).want(201)
	}
	first := f.call("GET", "/v1/audit?limit=2", f.key, nil).want(200)
	f.clock.advance(24 * time.Hour)
	if a := f.call("GET", "/v1/audit?limit=2&cursor="+first.text("nextCursor"), f.key, nil).want(200); strings.Count(string(a.body), `"action"`) != 2 {
		t.Errorf("the next page after midnight: %s", a.body)
	}
}

// TestIfMatchList: any one of several ETags will do (RFC 9110 section 13.1.1).
func TestIfMatchList(t *testing.T) {
	f := newFixture(t)
	id := f.user(f.key, "")
	etag := f.call("GET", "/v1/users/"+id, f.key, nil).want(200).header.Get("ETag")
	f.call("PATCH", "/v1/users/"+id, f.key, object{"displayName": "A"}, "If-Match", `"77", `+etag).want(200)
	f.call("PATCH", "/v1/users/"+id, f.key, object{"displayName": "B"}, "If-Match", `"77", `+etag).want(412)
	after := f.call("GET", "/v1/users/"+id, f.key, nil).want(200).header.Get("ETag")
	if got := f.call("PATCH", "/v1/users/"+id, f.key, object{"displayName": "A"}).want(200).header.Get("ETag"); got != after {
		t.Errorf("a change of nothing made %s of %s", got, after)
	}
}

// TestIdempotencyKeepsNoRefusals: what passes by itself, or was not the
// caller's to do, is tried anew.
func TestIdempotencyKeepsNoRefusals(t *testing.T) {
	f := newFixture(t)
	events := f.keyOf("events")
	for range 2 {
		a := f.call("POST", "/v1/users", events, object{"username": "x"}, "Idempotency-Key", "k").want(403)
		if a.header.Get("Idempotency-Replayed") != "" {
			t.Error("a refusal was kept")
		}
	}
}

// TestKeyExpiryRange: times that are no times to come are refused, not taken for
// "never" nor answered with a failure.
func TestKeyExpiryRange(t *testing.T) {
	f := newFixture(t)
	for _, at := range []string{"0001-01-01T00:00:00Z", "1999-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00"} {
		a := f.call("POST", "/v1/keys", f.key, object{"name": "k", "role": "kiosk", "expiresAt": at}).want(422)
		if p := a.problem(); p.Errors[0].Location != "body.expiresAt" {
			t.Errorf("%s: %s", at, a.body)
		}
	}
}

// TestManyUsersAtOnce: nobody is turned away because others are being created.
func TestManyUsersAtOnce(t *testing.T) {
	f := newFixture(t)
	done := make(chan int)
	for i := range 200 {
		go func() {
			done <- f.call("POST", "/v1/users", f.key, object{"username": fmt.Sprint("many", i)}).status
		}()
	}
	for range 200 {
		if status := <-done; status != 201 {
			t.Errorf("got %d, want 201", status)
		}
	}
}
