package page_test

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/tenant"
)

var update = flag.Bool("update", false, "write testdata/access.txt anew")

var wildcard = regexp.MustCompile(`\{[^}]*\}`)

// TestAccess asks for every page, and does everything that pages do, in every role. What a
// role may not do is not there for it. testdata/access.txt shows the table, so that a change
// of it is seen.
func TestAccess(t *testing.T) {
	f := newFixture(t)
	console := f.Pages()
	probe := httptest.NewServer(console.Probe())
	defer probe.Close()
	type browser struct {
		role   tenant.Role
		client *client
	}
	browsers := []browser{{"", f.client()}}
	for _, role := range tenant.PersonRoles() {
		browsers = append(browsers, browser{role, f.signedIn(role)})
	}
	browsers = append(browsers, browser{tenant.RoleSelf, f.signedInUser(f.user("self"))})
	f.url = probe.URL
	var lines []string
	for _, r := range console.Routes() {
		method, path, _ := strings.Cut(r.Pattern, " ")
		if r.Sensitive && method != http.MethodPost {
			t.Errorf("%s is sensitive, but only forms can ask again who sends them", r.Pattern)
		}
		path = wildcard.ReplaceAllStringFunc(path, func(w string) string { return strings.TrimPrefix(strings.Trim(w, "{}$."), "$") })
		var who []string
		for _, b := range browsers {
			req, err := http.NewRequest(method, f.url+path, strings.NewReader(url.Values{}.Encode()))
			must(t, err)
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			got := b.client.send(req).status
			want := http.StatusNotFound
			switch {
			case b.role == tenant.RoleSelf && !r.Open:
				switch {
				case r.Own && (r.Action == "" || tenant.May(b.role, r.Action) == tenant.Own):
					want = http.StatusNoContent
					who = append(who, string(b.role))
				case method == http.MethodGet && path == "/console":
					want = http.StatusSeeOther // to their own page
				}
			case b.role != "" && r.Own && r.Action != "": // is a user's own
			case r.Open, b.role != "" && (r.Action == "" || tenant.May(b.role, r.Action) == tenant.Yes):
				want = http.StatusNoContent
				who = append(who, string(b.role))
			case b.role == "" && method == http.MethodPost:
				want = http.StatusUnauthorized
			case b.role == "":
				want = http.StatusSeeOther // to the sign-in page
			}
			if got != want {
				t.Errorf("%s as %q: %d, want %d", r.Pattern, b.role, got, want)
			}
		}
		line := fmt.Sprintf("%-70s %-22s %s", r.Pattern, r.Action, strings.Join(slices.DeleteFunc(who, func(s string) bool { return s == "" }), " "))
		if r.Open {
			line = fmt.Sprintf("%-70s %-22s everybody", r.Pattern, "")
		}
		if r.Sensitive {
			line += ", asked again"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	text := strings.Join(lines, "\n") + "\n"
	if *update {
		must(t, os.WriteFile("testdata/access.txt", []byte(text), 0o644))
	}
	golden, err := os.ReadFile("testdata/access.txt")
	must(t, err)
	if diff := cmp.Diff(string(golden), text); diff != "" {
		t.Errorf("who may do what has changed; -update writes it anew (-was +is):\n%s", diff)
	}
}
