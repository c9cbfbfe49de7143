package rest_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
)

// person adds somebody who signs in, and returns their id.
func (f *fixture) person(key string) string {
	f.Helper()
	return f.call("POST", "/v1/people", key, object{"name": "Grace", "mail": f.unique("grace") + "@acme.example", "roles": []string{"helpdesk"}}).want(201).text("id")
}

// session signs a person in, and returns the session's id.
func (f *fixture) session(t table.TenantID, id string) string {
	f.Helper()
	core, err := f.system.Tenants.Load(f.Context(), t)
	f.must(err)
	s, _, err := f.system.People.SignIn(f.Context(), core, id, person.ByOIDC, person.Device{Client: "192.0.2.7", Agent: "Mozilla"})
	f.must(err)
	return s.ID
}

func TestPeople(t *testing.T) {
	f := newFixture(t)
	made := f.call("POST", "/v1/people", f.key, object{"name": "Ada Lovelace", "mail": "Ada@acme.example", "roles": []string{"operator", "admin"}, "language": "de"}).want(201)
	id, etag := made.text("id"), made.header.Get("ETag")
	path := "/v1/people/" + id
	if made.header.Get("Location") != path || etag != `"1"` {
		t.Errorf("made at %q with ETag %s", made.header.Get("Location"), etag)
	}
	type body struct {
		ID, Name, Mail, Language string
		Roles                    []string
		Disabled                 bool
		CreatedAt                time.Time
		SignedInAt               time.Time
	}
	want := body{id, "Ada Lovelace", "Ada@acme.example", "de", []string{"admin", "operator"}, false, f.clock.Now(), time.Time{}}
	var got body
	made.decode(&got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("made (-want +got):\n%s", d)
	}

	// A mail address is one person's.
	taken := f.call("POST", "/v1/people", f.key, object{"name": "Eve", "mail": "ADA@ACME.example", "roles": []string{"auditor"}}).want(409).problem()
	if len(taken.Errors) != 1 || taken.Errors[0].Code != "taken" || taken.Errors[0].Location != "body.mail" {
		t.Errorf("an address that is taken: %+v", taken)
	}

	// By a link that is handed over, the person signs in, once.
	link := f.call("POST", path+"/sign-in-link", f.key, nil).want(201)
	if link.header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(link.text("link"), consoleURL+"/console/sign-in/link?t=pwl_acme_") || link.text("expiresAt") != "2030-01-31T10:00:00Z" {
		t.Errorf("the link: %v, until %s", link.header, link.text("expiresAt"))
	}
	_, token, _ := strings.Cut(link.text("link"), "?t=")
	session, cookie, err := f.system.People.ByLink(t.Context(), secret.New(token), person.Device{Client: "192.0.2.7", Agent: "Mozilla"})
	f.must(err)
	if _, _, err := f.system.People.ByLink(t.Context(), secret.New(token), person.Device{}); !errors.Is(err, person.ErrUsed) {
		t.Errorf("the link again: %v", err)
	}
	// A sign-in is no change that others must know of.
	f.call("PATCH", path, f.key, object{"name": "Ada King"}, "If-Match", etag).want(200)
	f.call("PATCH", path, f.key, object{"name": "Ada Byron"}, "If-Match", etag).want(http.StatusPreconditionFailed)
	f.call("DELETE", path, f.key, nil, "If-Match", etag).want(http.StatusPreconditionFailed)

	var sessions struct{ Items []map[string]any }
	f.call("GET", path+"/sessions", f.key, nil).want(200).decode(&sessions)
	if d := cmp.Diff([]map[string]any{{"id": session.ID, "method": "link", "client": "192.0.2.7", "agent": "Mozilla", "createdAt": "2030-01-31T09:00:00Z", "seenAt": "2030-01-31T09:00:00Z"}}, sessions.Items); d != "" {
		t.Errorf("sessions (-want +got):\n%s", d)
	}
	f.call("DELETE", path+"/sessions/"+session.ID, f.key, nil).want(204)
	f.call("DELETE", path+"/sessions/"+session.ID, f.key, nil).want(404)
	if _, _, err := f.system.People.Authenticate(t.Context(), cookie); !errors.Is(err, person.ErrNoSession) {
		t.Errorf("an ended session: %v", err)
	}
	f.session("acme", id)
	f.call("DELETE", path+"/sessions", f.key, nil).want(204)
	f.call("GET", path+"/sessions", f.key, nil).want(200).decode(&sessions)
	if len(sessions.Items) != 0 {
		t.Errorf("sessions after all were ended: %v", sessions.Items)
	}

	// The last administrator stays.
	for name, a := range map[string]answer{
		"deleted":  f.call("DELETE", path, f.key, nil),
		"disabled": f.call("PATCH", path, f.key, object{"disabled": true}),
		"demoted":  f.call("PATCH", path, f.key, object{"roles": []string{"auditor"}}),
	} {
		if p := a.want(409).problem(); !strings.Contains(p.Detail, "last administrator") {
			t.Errorf("%s: %s", name, p.Detail)
		}
	}
	f.call("POST", "/v1/people", f.key, object{"name": "Bob", "mail": "bob@acme.example", "roles": []string{"admin"}}).want(201)
	f.call("PATCH", path, f.key, object{"disabled": true}).want(200)
	if p := f.call("POST", path+"/sign-in-link", f.key, object{"validMinutes": 10}).want(409).problem(); !strings.Contains(p.Detail, "disabled") {
		t.Errorf("a link for somebody who is disabled: %s", p.Detail)
	}
	f.call("DELETE", path, f.key, nil).want(204)
	f.call("GET", path, f.key, nil).want(404)
	var people struct{ Items []body }
	f.call("GET", "/v1/people", f.key, nil).want(200).decode(&people)
	if len(people.Items) != 1 || people.Items[0].Name != "Bob" {
		t.Errorf("people: %+v", people.Items)
	}

	f.system.People.BaseURL = ""
	if p := f.call("POST", "/v1/people/"+people.Items[0].ID+"/sign-in-link", f.key, nil).want(409).problem(); !strings.Contains(p.Detail, "CONSOLE_URL") {
		t.Errorf("a link to nowhere: %s", p.Detail)
	}
}
