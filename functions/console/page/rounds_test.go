package page_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// round is how long each call to a distant table takes.
const round = time.Second

// distant is a table each of whose calls takes a round, so that what is asked one after the
// other is told from what is asked at the same time.
type distant struct{ table.Table }

func (d distant) Get(ctx context.Context, k table.Key) (table.Item, error) {
	time.Sleep(round)
	return d.Table.Get(ctx, k)
}

func (d distant) Query(ctx context.Context, r table.Range) (table.Page, error) {
	time.Sleep(round)
	return d.Table.Query(ctx, r)
}

// TestRoundTrips: a page takes at most one round trip to the table more than the call of the
// API that answers the same.
func TestRoundTrips(t *testing.T) {
	g := newGallery(t, ordinary)
	c := g.signedIn(tenant.RoleAdmin)
	user := g.call("GET", "/v1/users?username=user0", nil)["items"].([]any)[0].(map[string]any)["id"].(string)
	card := g.call("GET", "/v1/credentials", nil)["items"].([]any)[0].(map[string]any)["id"].(string)
	bridge := g.call("GET", "/v1/bridges", nil)["items"].([]any)[0].(map[string]any)["id"].(string)
	parts := g.Parts
	parts.Table = distant{parts.Table}
	system := wiring.New(parts)
	pages, api := system.Console(), system.API()

	for _, page := range []struct{ path, api string }{
		{"/console/me", "/v1/caller"},
		{"/console/users", "/v1/users"},
		{"/console/users/" + user, "/v1/users/" + user},
		{"/console/policy", "/v1/policy"},
		{"/console/messaging", "/v1/messaging"},
		{"/console/messaging/templates", "/v1/mail-templates"},
		{"/console/rules", "/v1/trigger-rules"},
		{"/console/rules/events", "/v1/events"},
		{"/console/cards", "/v1/credentials"},
		{"/console/cards/" + card, "/v1/credentials/" + card},
		{"/console/cards/templates", "/v1/card-templates"},
		{"/console/sanity-check", "/v1/sanity-check"},
		{"/console/bridges", "/v1/bridges"},
		{"/console/bridges/" + bridge, "/v1/bridges/" + bridge},
		{"/console/unblock", "/v1/unblocks"},
		{"/console/help-desk", "/v1/caller"},
		{"/console/audit", "/v1/audit"},
		{"/console/settings", "/v1/settings"},
		{"/console/settings/people", "/v1/people"},
		{"/console/settings/keys", "/v1/keys"},
	} {
		took := func(h http.Handler, path string, sign func(*http.Request)) (rounds time.Duration) {
			synctest.Test(t, func(t *testing.T) {
				r := httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
				sign(r)
				w, began := httptest.NewRecorder(), time.Now()
				h.ServeHTTP(w, r)
				rounds = time.Since(began) / round
				if w.Code != http.StatusOK {
					t.Errorf("%s: %d %s", path, w.Code, w.Body)
				}
			})
			return rounds
		}
		onPage := took(pages, page.path, func(r *http.Request) {
			for name, value := range c.cookies {
				r.AddCookie(&http.Cookie{Name: name, Value: value})
			}
		})
		byAPI := took(api, page.api, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+g.key) })
		if t.Logf("%-35s %d, %s %d", strings.ReplaceAll(page.path, user, "{id}"), onPage, page.api, byAPI); onPage > byAPI+1 {
			t.Errorf("%s takes %d round trips, %s %d", page.path, onPage, page.api, byAPI)
		}
	}
}
