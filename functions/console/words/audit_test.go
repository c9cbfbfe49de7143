package words_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pinward/pinward/functions/console/words"
)

// ends are what actions end in that are put together where the records are
// made, by what they begin with.
var ends = map[string][]string{
	"bulkPINs.":    {"started", "cancelAsked", "cancelled", "done", "failed"},
	"sanityCheck.": {"started", "cancelAsked", "cancelled", "done", "flagged", "unflagged", "undoStarted", "undone"},
	"import.":      {"finished", "cancelled", "secretsDiffer", "pinsTaken"},
	"offline.":     {"confirmed", "refuted"},
	"unblock.":     {"begun", "succeeded", "failed", "unknown", "reconciled"},
	"reconcile.":   {"begun", "succeeded", "failed", "unknown", "reconciled"},
	"rotate.":      {"begun", "succeeded", "failed", "unknown", "reconciled"},
	"delivery.":    {"delivered", "dead"},
	"puk.":         {"read"},
	"adminKey.":    {"read"},
}

// otherCodes are reasons of records that stand in no constant and no literal of
// a form that is read.
var otherCodes = []string{
	"leased", "suspended", "retired", // of a code that was right, unblock.proof
	"unblock", "reconcile", "rotate", // what a secret was read for
	"internal", "messaging", "template", // of a notice that was not sent
	"policy", "notFound", "notMailed", // user.RefusalCode, and a bulk's
	"unavailable",                                                                                                                   // user.ErrPINTaken
	"denied", "notSignedIn", "failing", "mailNotVouched", "notKnown", "noRole", "disabled", "otherOwner", "notLately", "notTheSame", // federation.NotLetIn
}

// recorded are the actions and the coded reasons of audit records, each with a
// file.
type recorded struct {
	actions, codes map[string]string
	wrong          []string
}

func records(t *testing.T) *recorded {
	t.Helper()
	r := &recorded{actions: map[string]string{}, codes: map[string]string{}}
	packages := map[string]map[string]*ast.File{}
	for _, dir := range []string{"shared", "functions"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(file string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && d.Name() == "testdata":
				return fs.SkipDir
			case !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go"):
				return nil
			}
			rel, err := filepath.Rel(root, file)
			if err != nil {
				return err
			}
			rel = filepath.ToSlash(rel)
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if packages[path.Dir(rel)] == nil {
				packages[path.Dir(rel)] = map[string]*ast.File{}
			}
			packages[path.Dir(rel)][rel] = parsed
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, files := range packages {
		takes := map[string]int{} // functions that take an action, and as which argument
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					note(takes, n.Name.Name, n.Type)
				case *ast.AssignStmt:
					for i, e := range n.Rhs {
						if l, ok := e.(*ast.FuncLit); ok {
							note(takes, nameOf(n.Lhs[i]), l.Type)
						}
					}
				}
				return true
			})
		}
		for file, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				r.node(n, file, takes)
				return true
			})
		}
	}
	for prefix, all := range ends {
		for _, end := range all {
			r.actions[prefix+end] = "ends"
		}
	}
	for _, code := range otherCodes {
		r.codes[code] = "otherCodes"
	}
	return r
}

// note remembers at which place a function takes an action.
func note(takes map[string]int, name string, f *ast.FuncType) {
	at := 0
	for _, field := range f.Params.List {
		for _, param := range field.Names {
			if param.Name == "action" {
				takes[name] = at
			}
			at++
		}
	}
}

func (r *recorded) node(n ast.Node, file string, takes map[string]int) {
	code := func(e ast.Expr) {
		if s, ok := literalOf(e); ok && s != "" {
			r.codes[s] = file
		}
	}
	action := func(e ast.Expr) {
		if s, ok := literalOf(e); ok {
			r.actions[s] = file
		} else if b, ok := e.(*ast.BinaryExpr); ok {
			if prefix, ok := literalOf(b.X); ok && ends[prefix] == nil {
				r.wrong = append(r.wrong, fmt.Sprintf("%s: an action begins with %q, and ends does not tell how it goes on", file, prefix))
			}
		}
	}
	switch n := n.(type) {
	case *ast.CallExpr:
		if at, ok := takes[nameOf(n.Fun)]; ok && at < len(n.Args) {
			action(n.Args[at])
		}
		if nameOf(n.Fun) == "undeliverable" {
			code(n.Args[0])
		}
	case *ast.AssignStmt:
		for i, e := range n.Lhs {
			if nameOf(e) == "action" && i < len(n.Rhs) {
				action(n.Rhs[i])
			}
		}
	case *ast.CompositeLit:
		name := nameOf(n.Type)
		for i, e := range n.Elts {
			kv, keyed := e.(*ast.KeyValueExpr)
			switch {
			case keyed && nameOf(kv.Key) == "Action" && name != "Effect":
				action(kv.Value)
			case keyed && name == "Record" && nameOf(kv.Key) == "Reason", keyed && (name == "LimitError" || name == "Result" && path.Dir(file) == "shared/mail") && nameOf(kv.Key) == "Code":
				code(kv.Value)
			case !keyed && i == 0 && (name == "Refusal" || name == "Undeliverable"):
				code(e)
			}
		}
	case *ast.ValueSpec:
		for i, name := range n.Names {
			switch t := nameOf(n.Type); {
			case i >= len(n.Values):
			case t == "Reason" && path.Dir(file) == "shared/card", t == "MailProblemKind", t == "" && strings.HasPrefix(file, "shared/") && len(name.Name) > 6 && strings.EqualFold(name.Name[:6], "reason"):
				code(n.Values[i])
			case path.Dir(file) == "shared/pin" && strings.HasPrefix(name.Name, "Code"):
				code(n.Values[i])
			case strings.HasSuffix(name.Name, "Action"):
				action(n.Values[i])
			case name.Name == "sentences" && path.Dir(file) == "shared/delivery":
				for _, e := range n.Values[i].(*ast.CompositeLit).Elts {
					code(e.(*ast.KeyValueExpr).Key)
				}
			}
		}
	case *ast.FuncDecl:
		if n.Name.Name == "Reasons" && path.Dir(file) == "shared/credential" {
			ast.Inspect(n.Body, func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok {
					code(l)
				}
				return true
			})
		}
	}
}

// TestAudit holds the names of actions and of reasons in audit records complete.
func TestAudit(t *testing.T) {
	r := records(t)
	for _, w := range r.wrong {
		t.Error(w)
	}
	for _, code := range []string{"rateLimited", "tooManySignIns"} { // are in no record: nothing was done
		delete(r.codes, code)
	}
	for _, group := range []struct {
		prefix string
		source map[string]string
	}{{"audit.action.", r.actions}, {"audit.reason.", r.codes}} {
		for _, code := range slices.Sorted(maps.Keys(group.source)) {
			if key := group.prefix + code; !(words.Words{}).Has(key) {
				t.Errorf("%s: audit.json has no %s", group.source[code], key)
			}
		}
	}
	entries, _ := catalogue(t, "audit.json")
	for key := range entries {
		action, isAction := strings.CutPrefix(key, "audit.action.")
		code, isReason := strings.CutPrefix(key, "audit.reason.")
		if strings.HasPrefix(key, "audit.answered.") {
			continue
		}
		if !isAction && !isReason || isAction && r.actions[action] == "" || isReason && r.codes[code] == "" {
			t.Errorf("audit.json: no record has %s", key)
		}
	}
	if got, want := words.In("de").Action("pin.set"), "PIN gesetzt"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for codes, want := range map[string]string{
		"": "", "wrongPIN": "falsche PIN", "http.410": "den Endpunkt gibt es nicht mehr", "http.503": "der Endpunkt hat 503 geantwortet",
		"tooShort common": "zu kurz, ist eine häufige PIN", "novelty": "novelty", "some.novelty": "some.novelty",
	} {
		if got := words.In("de").AuditReason(codes); got != want {
			t.Errorf("%s is %q, want %q", codes, got, want)
		}
	}
}
