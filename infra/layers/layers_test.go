// Package layers holds the test that the house keeps its order: imports point
// downward only, and each outside part is behind one package.
package layers

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pinward/pinward/"

// rooms lists the packages from the top of the house to the bottom. A package
// imports only what stands below its own line.
var rooms = [][]string{
	{"infra/local", "functions/api", "functions/relay", "functions/sweep", "functions/trigger", "functions/console", "infra/softcard/cmd/softcard", "bridge"},
	{"infra/softcard", "bridge/command"},
	{"bridge/agent"},
	{"bridge/enrolment", "bridge/journal", "bridge/reader"},
	{"functions/wiring"},
	{"functions/api/rest", "functions/relay/line", "functions/sweep/due", "functions/trigger/inbox", "functions/console/page"},
	{"functions/console/words"},
	{"shared/messaging"},
	{"shared/rule"},
	{"shared/unblock", "shared/intake", "shared/delivery", "shared/federation"},
	{"shared/credential", "shared/user"},
	{"shared/event", "shared/person"},
	{"shared/tenant"},
	{"shared/mail", "shared/vault", "shared/audit", "shared/gateway"},
	{"shared/relay", "shared/card", "shared/offline"},
	{"shared/table/tabletest"},
	{"shared/table/bolt", "shared/table/dynamo"},
	{"shared/table", "shared/pin", "shared/apdu"},
	{"shared/problem", "shared/secret", "shared/table/internal/driver"},
}

// wiring may be imported where parts are put together, besides the package
// that each is behind.
var wiring = []string{"functions/wiring", "infra/local"}

// behind tells which package each outside part is behind.
var behind = map[string][]string{
	"go.etcd.io/bbolt": {"shared/table/bolt"},
	"github.com/aws/aws-sdk-go-v2/service/dynamodb": {"shared/table/dynamo"},
	"github.com/aws/aws-sdk-go-v2/service/sesv2":    {"shared/mail"},
	"github.com/tink-crypto/":                       {"shared/vault"},
	"github.com/cbroglie/mustache":                  {"shared/mail"},
	"github.com/wneessen/go-mail":                   {"shared/mail"},
	"github.com/goodsign/monday":                    {"shared/mail", "functions/console/words"},
	"github.com/danielgtaylor/huma":                 {"functions/api/rest"},
	"github.com/ebfe/scard":                         {"bridge/reader"},
	"github.com/gorilla/websocket":                  {"shared/gateway", "bridge/agent"},
	"github.com/go-jose/":                           {"shared/relay", "shared/intake"},
	"github.com/coreos/go-oidc":                     {"shared/federation"},
	"golang.org/x/oauth2":                           {"shared/federation"},
	"golang.org/x/term":                             {"bridge/command"},
	"github.com/aws/aws-lambda-go":                  {"shared/gateway", "functions/api", "functions/relay", "functions/sweep", "functions/trigger", "functions/console"},
	"github.com/aws/":                               {"shared/table/dynamo", "shared/mail", "shared/gateway", "functions/api", "functions/relay", "functions/sweep", "functions/trigger", "functions/console"},
	"github.com/chromedp/":                          {"infra/testserver/browser"},
	"github.com/evanw/esbuild":                      {"functions/console/page/script"}, // its tests
}

// tests are for tests only: no product code imports them.
var tests = []string{"infra/testserver", "infra/deployment", "infra/endtoend", "infra/layers", "infra/softcard/pcscd"}

// pure packages do no I/O and take time and randomness as arguments.
var pure = []string{"shared/relay", "shared/card", "shared/offline", "shared/apdu", "shared/pin", "shared/problem", "shared/secret"}

var impure = []string{"net", "os", "crypto/rand", "math/rand", "database", "syscall"}

func floor(pkg string) int {
	return slices.IndexFunc(rooms, func(line []string) bool { return slices.Contains(line, pkg) })
}

// bridge is what the bridge may import of ours: it stays small, and trusts no
// cloud code.
var bridge = []string{"bridge/", "shared/apdu", "shared/offline", "shared/pin", "shared/problem", "shared/relay", "shared/secret"}

// broken returns what is wrong with one import.
func broken(from, to string) string {
	if own, ok := strings.CutPrefix(to, module); ok {
		switch {
		case slices.ContainsFunc(tests, func(t string) bool { return own == t || strings.HasPrefix(own, t+"/") }):
			return "is for tests"
		case floor(own) < 0:
			return "is in no line of rooms"
		case strings.HasPrefix(from+"/", "bridge/") && !slices.ContainsFunc(bridge, func(b string) bool { return strings.HasPrefix(own, b) }):
			return "is not for the bridge"
		case floor(own) <= floor(from):
			return "does not stand below it"
		}
		return ""
	}
	if slices.Contains(pure, from) && slices.ContainsFunc(impure, func(p string) bool { return to == p || strings.HasPrefix(to, p+"/") }) {
		return "does I/O or takes from the air, and the package is pure"
	}
	for part, packages := range behind {
		if strings.HasPrefix(to, part) && !slices.Contains(packages, from) && !slices.Contains(wiring, from) {
			return "is behind " + strings.Join(packages, ", ")
		}
	}
	return ""
}

// TestImports reads every file itself: the go command's answer would be cached
// while the rule is broken.
func TestImports(t *testing.T) {
	_, here, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(here), "..", "..")
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && (name == "node_modules" || name == "testdata" || name == "build" || strings.HasPrefix(name, ".") && file != root) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(rel))
		if slices.ContainsFunc(tests, func(t string) bool { return pkg == t || strings.HasPrefix(pkg, t+"/") }) {
			return nil
		}
		if floor(pkg) < 0 {
			t.Errorf("%s: package %s is in no line of rooms", rel, pkg)
			return nil
		}
		seen[pkg] = true
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range parsed.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := broken(pkg, to); why != "" {
				t.Errorf("%s imports %s, which %s", rel, to, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range rooms {
		for _, pkg := range line {
			if !seen[pkg] {
				t.Errorf("rooms lists %s, which is not there", pkg)
			}
		}
	}
}

// TestBroken shows that the rules can fail.
func TestBroken(t *testing.T) {
	for _, test := range []struct{ from, to string }{
		{"shared/tenant", module + "shared/user"},
		{"shared/mail", module + "shared/audit"},
		{"shared/user", module + "infra/testserver"},
		{"shared/user", module + "shared/unheardof"},
		{"shared/user", "go.etcd.io/bbolt"},
		{"shared/table/bolt", "github.com/aws/aws-sdk-go-v2/aws"},
		{"bridge/reader", module + "shared/gateway"},
		{"bridge", module + "infra/softcard"},
		{"bridge/reader", "github.com/aws/aws-sdk-go-v2/aws"},
		{"functions/api", "github.com/chromedp/chromedp"},
		{"shared/pin", "os"},
		{"shared/pin", "net/http"},
	} {
		if broken(test.from, test.to) == "" {
			t.Errorf("%s may import %s", test.from, test.to)
		}
	}
}
