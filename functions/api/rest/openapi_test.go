package rest_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/functions/api/rest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// described is an operation as /openapi.json describes it.
type described struct {
	method, path string
	OperationID  string                     `json:"operationId"`
	Summary      string                     `json:"summary"`
	Description  string                     `json:"description"`
	Tags         []string                   `json:"tags"`
	Security     []map[string][]string      `json:"security"`
	Responses    map[string]json.RawMessage `json:"responses"`
}

// operations returns all operations that the API describes, by path.
func (f *fixture) operations() []described {
	f.Helper()
	var doc struct {
		Paths map[string]map[string]described `json:"paths"`
	}
	f.call("GET", "/openapi.json", "", nil).want(200).decode(&doc)
	var ops []described
	for path, methods := range doc.Paths {
		for method, op := range methods {
			op.method, op.path = strings.ToUpper(method), path
			ops = append(ops, op)
		}
	}
	slices.SortFunc(ops, func(a, b described) int { return strings.Compare(a.path+" "+a.method, b.path+" "+b.method) })
	return ops
}

func TestDescription(t *testing.T) {
	f := newFixture(t)
	a := f.call("GET", "/openapi.json", "", nil).want(200)
	var doc map[string]any
	a.decode(&doc)
	if v, _ := doc["openapi"].(string); !strings.HasPrefix(v, "3.1.") {
		t.Errorf("openapi is %q, want 3.1.x", v)
	}
	info, _ := doc["info"].(map[string]any)
	if info["version"] != rest.Version {
		t.Errorf("version is %v, want %s", info["version"], rest.Version)
	}
	for _, ref := range regexp.MustCompile(`"\$ref":\s*"([^"]*)"`).FindAllSubmatch(a.body, -1) {
		var at any = doc
		for name := range strings.SplitSeq(strings.TrimPrefix(string(ref[1]), "#/"), "/") {
			m, _ := at.(map[string]any)
			at = m[name]
		}
		if at == nil {
			t.Errorf("$ref %s leads nowhere", ref[1])
		}
	}

	ids := map[string]bool{}
	for _, op := range f.operations() {
		where := op.method + " " + op.path
		if op.OperationID == "" || ids[op.OperationID] {
			t.Errorf("%s: operationId %q is missing or not the only one", where, op.OperationID)
		}
		ids[op.OperationID] = true
		roles, security := "Roles: ", []map[string][]string{{"key": {}}}
		if where == "POST /enroll" { // all that is done without a key
			roles, security = "Needs no key.", []map[string][]string{}
		}
		if op.Summary == "" || len(op.Tags) != 1 || !strings.Contains(op.Description, roles) {
			t.Errorf("%s: it lacks a summary, its one tag, or its roles", where)
		}
		if diff := cmp.Diff(security, op.Security); diff != "" {
			t.Errorf("%s: security (-want +got):\n%s", where, diff)
		}
		success := 0
		for status := range op.Responses {
			if status[0] == '2' {
				success++
			}
		}
		if success != 1 {
			t.Errorf("%s: %d successful answers described, want 1", where, success)
		}
		for _, status := range []string{"400", "401", "403", "404", "409", "422", "429"} {
			if !strings.Contains(string(op.Responses[status]), "application/problem+json") {
				t.Errorf("%s: %s is not described as a problem", where, status)
			}
		}
	}
}

// TestSurface pins which operations there are and as what action each is
// authorized, so that a change is seen in review.
func TestSurface(t *testing.T) {
	api := humago.New(http.NewServeMux(), huma.DefaultConfig("", ""))
	new(rest.API).Describe(api)
	var lines []string
	for path, item := range api.OpenAPI().Paths {
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
			if op != nil {
				lines = append(lines, strings.TrimRight(fmt.Sprintf("%-38s %-6s %-20s %s", path, op.Method, op.OperationID, op.Metadata["action"]), " ")+"\n")
			}
		}
	}
	slices.Sort(lines)
	golden(t, "operations.txt", strings.Join(lines, ""))
}

// golden compares with a file, or with -update writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s has changed; run with -update if that is meant (-want +got):\n%s", path, diff)
	}
}

func TestReferencePage(t *testing.T) {
	f := newFixture(t)
	if a := f.call("GET", "/", "", nil).want(302); a.header.Get("Location") != "/docs" {
		t.Errorf("/ leads to %q, want /docs", a.header.Get("Location"))
	}
	a := f.call("GET", "/docs", "", nil).want(200)
	page := string(a.body)
	for _, op := range f.operations() {
		if !strings.Contains(page, `<details id="`+op.OperationID+`">`) || !strings.Contains(page, op.path) {
			t.Errorf("%s is not on the page", op.OperationID)
		}
	}
	if bad := regexp.MustCompile(`(?i)<script|<iframe|<link|\son\w+=|javascript:|(src|href)="(https?:)?//|url\(`).FindString(page); bad != "" {
		t.Errorf("the page holds %q", bad)
	}
	for _, m := range regexp.MustCompile(`href="#([^"]*)"`).FindAllStringSubmatch(page, -1) {
		id := strings.ReplaceAll(m[1], "%20", " ")
		if !strings.Contains(page, `id="`+id+`"`) {
			t.Errorf("the link to #%s leads nowhere", m[1])
		}
	}
	policy := a.header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("CSP %q lacks %s", policy, want)
		}
	}
	if strings.Contains(policy, "script-src") || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers %v, want no scripts and nosniff", a.header)
	}
}
