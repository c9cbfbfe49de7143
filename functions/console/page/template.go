package page

import (
	"embed"
	"fmt"
	"html/template"
	"io/fs"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/tenant"
)

//go:embed templates
var templateFiles embed.FS

// pageSets are the pages' templates by language and name. They are all made at the first
// use: a template that does not parse fails every page, and so the first test.
var pageSets = sync.OnceValues(func() (map[string]*template.Template, error) {
	files, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil {
		return nil, err
	}
	sets := make(map[string]*template.Template)
	for _, language := range []string{"en", "de"} {
		base, err := template.New("").Funcs(functions(words.In(language))).ParseFS(templateFiles, "templates/layout.html", "templates/elements*.html", "templates/seal.html")
		if err != nil {
			return nil, fmt.Errorf("parse templates: %w", err)
		}
		for _, file := range files {
			set, err := template.Must(base.Clone()).ParseFS(templateFiles, file)
			if err != nil {
				return nil, fmt.Errorf("parse templates: %w", err)
			}
			sets[language+"/"+strings.TrimSuffix(path.Base(file), ".html")] = set
		}
	}
	return sets, nil
})

func pageSet(language, name string) (*template.Template, error) {
	sets, err := pageSets()
	if err != nil {
		return nil, err
	}
	if set := sets[language+"/"+name]; set != nil {
		return set, nil
	}
	return nil, fmt.Errorf("there is no template %s for language %s", name, language)
}

// functions are what templates call.
func functions(w words.Words) template.FuncMap {
	return template.FuncMap{
		"t":         w.Say, // {{t "users.title"}}: a text of the catalogue
		"tf":        w.Of,  // {{tf "state." .State}}
		"lang":      w.Language,
		"asset":     assetURL,
		"input":     newInput,
		"pick":      newPick,
		"box":       newBox,
		"boxes":     newBoxes,
		"opt":       func(value any, label string) Option { return Option{text(value), label} },
		"opts":      func(o ...Option) []Option { return o },
		"path":      join, // {{path "/users/" .ID "/delete"}}: under Root, its parts escaped
		"languages": func() []Option { return []Option{{"en", "English"}, {"de", "Deutsch"}} },
		"span":      w.Span,
		"sentence":  w.Text,
		"zones":     zones,
		"number":    w.Number,
		"action":    w.Action,                                      // of an audit record
		"reason":    w.AuditReason,                                 // coded
		"label":     func(key string) string { return w.Say(key) }, // of words.Key
		"pinFacts":  newPINFacts,
		"tail":      tail,
	}
}

// tail is the end of an id, to tell it from others by where the whole is a link's.
func tail(id string) string {
	if len(id) > 6 {
		return "…" + id[len(id)-6:]
	}
	return id
}

// text is a value as it stands in a form.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case int:
		return strconv.Itoa(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case bool:
		return strconv.FormatBool(v)
	case fmt.Stringer:
		return v.String()
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.String {
		return r.String()
	}
	return fmt.Sprint(v)
}

// Input is what the template "input" shows: a label, a hint, an input, what is wrong with it.
type Input struct {
	Name, Label, Value string
	Kind               string // of the input, "text" if nothing is said; "area" is a textarea
	Hint               string
	Fault              []string
	Attributes         []template.HTMLAttr
	Options            []Option // of a choice
	Values             []string // of several boxes, those that are checked
	Checked            bool
}

// Option is one of the values of a choice.
type Option struct{ Value, Label string }

// newInput returns an input. more are "kind=email", "hint=<text>", and any attributes of the
// input, "required", "maxlength=100".
func newInput(f *Frame, name, label string, value any, more ...string) Input {
	in := Input{Name: name, Label: label, Value: text(value), Kind: "text"}
	if strings.HasPrefix(name, secretField) {
		in.Value, in.Kind = "", "password"
	}
	for _, m := range more {
		key, of, has := strings.Cut(m, "=")
		switch key {
		case "kind":
			in.Kind = of
		case "hint":
			in.Hint = of
		default:
			attribute := template.HTMLEscapeString(key)
			if has {
				attribute += `="` + template.HTMLEscapeString(of) + `"`
			}
			in.Attributes = append(in.Attributes, template.HTMLAttr(attribute)) // #nosec: only our own templates call it
		}
	}
	for _, x := range f.Faults {
		if x.Field == name || x.Field == strings.TrimPrefix(name, secretField) {
			in.Fault = append(in.Fault, x.Text)
		}
	}
	return in
}

// newPick returns a choice of one of several values.
func newPick(f *Frame, name, label string, value any, options []Option, more ...string) Input {
	in := newInput(f, name, label, value, more...)
	in.Options = options
	return in
}

// newBox returns a box to check.
func newBox(f *Frame, name, label string, checked bool, more ...string) Input {
	in := newInput(f, name, label, "", more...)
	in.Checked = checked
	if in.Kind == "text" {
		in.Value, in.Kind = "on", "checkbox"
	}
	return in
}

// ID is the input's: the name of the field that faults are told of.
func (in Input) ID() string { return strings.TrimPrefix(in.Name, secretField) }

// newBoxes returns a choice of any of several values.
func newBoxes(f *Frame, name, label string, values []string, options []Option, more ...string) Input {
	in := newPick(f, name, label, "", options, more...)
	in.Values = values
	return in
}

// Marked tells whether something is wrong with the input.
func (in Input) Marked() bool { return len(in.Fault) > 0 }

// Chosen tells whether an option is the value.
func (in Input) Chosen(o Option) bool { return o.Value == in.Value }

// Has tells whether the box of an option is checked.
func (in Input) Has(o Option) bool { return slices.Contains(in.Values, o.Value) }

// DescribedBy names what describes the input to a screen reader.
func (in Input) DescribedBy() string {
	var ids []string
	if in.Hint != "" {
		ids = append(ids, "hint-"+in.ID())
	}
	if in.Marked() {
		ids = append(ids, "fault-"+in.ID())
	}
	return strings.Join(ids, " ")
}

// With returns the frame with other data, for a template of a part of the page.
func (f *Frame) With(data any) *Frame { return &Frame{f.v, f.Faults, data} }

// Signed tells whether somebody has signed in.
func (f *Frame) Signed() bool { return f.v.session.ID != "" }

// Who is the name of who has signed in.
func (f *Frame) Who() string { return f.v.session.Name }

// Organisation is the name of their tenant.
func (f *Frame) Organisation() string { return f.v.core.Tenant.Settings.DisplayName }

// May tells whether they may do something.
func (f *Frame) May(action string) bool { return f.v.may(tenant.Action(action)) }

// Time is a time as they read it, in the tenant's zone; "" for none.
func (f *Frame) Time(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return f.v.words.Time(t, f.v.loc)
}

// Date is a day as they read it, in the tenant's zone; "" for none.
func (f *Frame) Date(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return f.v.words.Date(t, f.v.loc)
}

// Now is the time of the request.
func (f *Frame) Now() time.Time { return f.v.Now() }

// Done is what the page before has done, for people; "" if nothing.
func (f *Frame) Done() string {
	if key := words.Family("done.", f.v.r.URL.Query().Get("done")); f.v.words.Has(key) {
		return f.v.words.Say(key)
	}
	return ""
}

// URI is the page's path and query.
func (f *Frame) URI() string { return f.v.r.URL.RequestURI() }

// Path is the path of the page.
func (f *Frame) Path() string { return f.v.r.URL.Path }

// Link is an entry of the navigation.
type Link struct {
	Path, Key string
	Here      bool
}

// Navigation is where they may go.
func (f *Frame) Navigation() []Link {
	var links []Link
	if f.v.self != nil {
		return []Link{{Root + "/me", "me", true}}
	}
	for _, s := range sections {
		if s.action != "" && !f.v.may(s.action) || s.path == Root+"/sanity-check" && !f.v.core.Tenant.Settings.SupportFunctions {
			continue
		}
		at := f.v.r.URL.Path
		links = append(links, Link{s.path, s.key, at == s.path || s.path != Root && strings.HasPrefix(at, s.path+"/")})
	}
	return links
}

// FaultsOf are the faults that no input of the page shows; all are at its top.
func (f *Frame) FaultsOf(names ...string) []Fault {
	return slices.DeleteFunc(slices.Clone(f.Faults), func(x Fault) bool { return !slices.Contains(names, x.Field) })
}
