package words_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	template "text/template/parse"
)

// usage is which keys and families Go files and templates use, each with a
// place that does, and what they do that cannot be read.
type usage struct {
	keys, families map[string]string
	wrong          []string
}

// used reads all Go files but tests, and all templates, below a folder.
func used(dir string) (usage, error) {
	u := usage{keys: map[string]string{}, families: map[string]string{}}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == "node_modules") && file != dir:
			return fs.SkipDir
		case strings.HasSuffix(file, "_test.go"):
			return nil
		case strings.HasSuffix(file, ".go"):
			return u.readGo(file)
		case strings.HasSuffix(file, ".html"):
			return u.readTemplate(file)
		}
		return nil
	})
	return u, err
}

func (u *usage) fail(place, format string, args ...any) {
	u.wrong = append(u.wrong, place+": "+fmt.Sprintf(format, args...))
}

func (u *usage) family(prefix, place string) {
	if !strings.HasSuffix(prefix, ".") {
		u.fail(place, "the prefix %q of a family does not end in a dot", prefix)
	}
	u.families[prefix] = place
}

// readGo finds the calls of Say, Key and Family. Say takes a literal, or what a
// variable or a call gives, which then had it from Key or Family; it takes
// nothing put together on the spot.
func (u *usage) readGo(file string) error {
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, file, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	inWords := parsed.Name.Name == "words"
	ast.Inspect(parsed, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		name, of := "", ""
		switch f := call.Fun.(type) {
		case *ast.Ident:
			if name = f.Name; inWords {
				of = "words"
			}
		case *ast.SelectorExpr:
			name = f.Sel.Name
			if x, ok := f.X.(*ast.Ident); ok {
				of = x.Name
			}
		}
		place := fmt.Sprintf("%s:%d", file, set.Position(call.Pos()).Line)
		key, literal := literalOf(call.Args[0])
		switch {
		case name == "Say" && literal:
			u.keys[key] = place
		case name == "Say":
			switch x := call.Args[0].(type) {
			case *ast.BinaryExpr:
				u.fail(place, "a key is put together: use words.Family")
			case *ast.CallExpr:
				if s, ok := x.Fun.(*ast.SelectorExpr); ok && (s.Sel.Name == "Sprintf" || s.Sel.Name == "Sprint") {
					u.fail(place, "a key is put together: use words.Family")
				}
			}
		case of == "words" && name == "Key" && literal:
			u.keys[key] = place
		case of == "words" && name == "Family" && literal:
			u.family(key, place)
		case of == "words" && (name == "Key" || name == "Family"):
			u.fail(place, "words.%s is not given a literal", name)
		}
		return true
	})
	return nil
}

func literalOf(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return literalOf(e.X)
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			s, err := strconv.Unquote(e.Value)
			return s, err == nil
		}
	case *ast.BinaryExpr: // a long format over two lines
		x, xOK := literalOf(e.X)
		y, yOK := literalOf(e.Y)
		return x + y, xOK && yOK && e.Op == token.ADD
	}
	return "", false
}

// readTemplate finds {{t "key"}}, {{.T "key"}}, {{.W.Say "key"}} and
// {{tf "prefix." .Value}}, anywhere that a call may stand.
func (u *usage) readTemplate(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	top := template.New(file)
	top.Mode = template.SkipFuncCheck
	trees := map[string]*template.Tree{}
	if _, err := top.Parse(string(b), "", "", trees); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(trees)) {
		u.walk(file, trees[name], trees[name].Root)
	}
	return nil
}

func (u *usage) walk(file string, tree *template.Tree, n template.Node) {
	list := func(l *template.ListNode) {
		if l != nil {
			for _, n := range l.Nodes {
				u.walk(file, tree, n)
			}
		}
	}
	pipe := func(p *template.PipeNode) {
		if p != nil {
			for _, c := range p.Cmds {
				u.command(file, tree, c)
			}
		}
	}
	branch := func(b template.BranchNode) { pipe(b.Pipe); list(b.List); list(b.ElseList) }
	switch n := n.(type) {
	case *template.ListNode:
		list(n)
	case *template.ActionNode:
		pipe(n.Pipe)
	case *template.TemplateNode:
		pipe(n.Pipe)
	case *template.PipeNode:
		pipe(n)
	case *template.IfNode:
		branch(n.BranchNode)
	case *template.RangeNode:
		branch(n.BranchNode)
	case *template.WithNode:
		branch(n.BranchNode)
	}
}

func (u *usage) command(file string, tree *template.Tree, c *template.CommandNode) {
	for _, a := range c.Args {
		u.walk(file, tree, a) // what is in parentheses
	}
	name := ""
	switch f := c.Args[0].(type) {
	case *template.IdentifierNode:
		name = f.Ident
	case *template.FieldNode:
		name = f.Ident[len(f.Ident)-1]
	case *template.VariableNode:
		name = f.Ident[len(f.Ident)-1]
	case *template.ChainNode:
		name = f.Field[len(f.Field)-1]
	}
	place, _ := tree.ErrorContext(c)
	switch name {
	case "t", "T", "Say":
		if len(c.Args) < 2 {
			u.fail(place, "%s is not given its key as first argument", name)
			return
		}
		switch key := c.Args[1].(type) {
		case *template.StringNode:
			u.keys[key.Text] = place
		case *template.PipeNode:
			u.fail(place, "a key is put together: use tf")
		}
	case "tf", "Family":
		var prefix *template.StringNode
		if len(c.Args) > 2 {
			prefix, _ = c.Args[1].(*template.StringNode)
		}
		if prefix == nil {
			u.fail(place, "%s is not given a literal prefix and a value", name)
			return
		}
		u.family(prefix.Text, place)
	}
}

// check returns what is wrong between a catalogue's keys and what uses them.
func (u usage) check(keys []string) (wrong []string) {
	wrong = append(wrong, u.wrong...)
	for _, key := range slices.Sorted(maps.Keys(u.keys)) {
		if !slices.Contains(keys, key) {
			wrong = append(wrong, fmt.Sprintf("%s: the catalogue has no key %q", u.keys[key], key))
		}
	}
	for _, prefix := range slices.Sorted(maps.Keys(u.families)) {
		if !slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(k, prefix) }) {
			wrong = append(wrong, fmt.Sprintf("%s: the catalogue has no key of the family %q", u.families[prefix], prefix))
		}
	}
	for _, key := range keys {
		member := func(prefix string) bool { return strings.HasPrefix(key, prefix) }
		if u.keys[key] == "" && !slices.ContainsFunc(slices.Collect(maps.Keys(u.families)), member) {
			wrong = append(wrong, fmt.Sprintf("nothing uses the key %q", key))
		}
	}
	return wrong
}
