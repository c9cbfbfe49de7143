package rest

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed reference.html
var referenceHTML string

var referencePage = template.Must(template.New("reference").Funcs(template.FuncMap{"split": split}).Parse(referenceHTML))

// piece is a part of a text with Markdown's `code` in it.
type piece struct {
	Text string
	Code bool
}

func split(text string) []piece {
	var pieces []piece
	for i, part := range strings.Split(text, "`") {
		pieces = append(pieces, piece{part, i%2 == 1})
	}
	return pieces
}

// entry is an operation on the reference page.
type entry struct {
	*huma.Operation
	Request, Response string // example schemas as indented JSON
	Success           string
}

// Paragraphs returns the description's paragraphs.
func (e entry) Paragraphs() []string { return strings.Split(e.Description, "\n\n") }

// reference serves a page with all operations, made from the description once.
// It needs no script and nothing from other hosts.
func reference(api huma.API) http.HandlerFunc {
	render := sync.OnceValues(func() ([]byte, error) { return renderReference(api.OpenAPI()) })
	return func(w http.ResponseWriter, r *http.Request) {
		text, err := render()
		if err != nil {
			writeProblem(w, r.Context(), err)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		_, _ = w.Write(text)
	}
}

func renderReference(description *huma.OpenAPI) ([]byte, error) {
	type section struct {
		Name    string
		Entries []entry
	}
	var sections []section
	for _, item := range description.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
			if op == nil {
				continue
			}
			e := entry{Operation: op}
			if op.RequestBody != nil {
				if media := op.RequestBody.Content["application/json"]; media != nil {
					e.Request = outline(description.Components.Schemas, media.Schema)
				}
			}
			for status, response := range op.Responses {
				if strings.HasPrefix(status, "2") {
					e.Success = status
					if media := response.Content["application/json"]; media != nil {
						e.Response = outline(description.Components.Schemas, media.Schema)
					}
				}
			}
			i := slices.IndexFunc(sections, func(s section) bool { return s.Name == op.Tags[0] })
			if i < 0 {
				sections, i = append(sections, section{Name: op.Tags[0]}), len(sections)
			}
			sections[i].Entries = append(sections[i].Entries, e)
		}
	}
	order := []string{"PIN policy", "Users", "PINs", "Settings", "API keys", "Messaging configurations", "Mail templates", "Credential templates", "Credentials", "Imports", "PIN expiry sanity check", "Bridges", "Offline answers", "Audit", "Tenants"}
	slices.SortFunc(sections, func(a, b section) int { return slices.Index(order, a.Name) - slices.Index(order, b.Name) })
	methods := []string{"GET", "POST", "PUT", "PATCH", "DELETE"}
	for _, s := range sections {
		slices.SortFunc(s.Entries, func(a, b entry) int {
			if c := strings.Compare(a.Path, b.Path); c != 0 {
				return c
			}
			return slices.Index(methods, a.Method) - slices.Index(methods, b.Method)
		})
	}
	var b bytes.Buffer
	err := referencePage.Execute(&b, struct {
		Title, Version string
		About          []string
		Sections       []section
	}{description.Info.Title, description.Info.Version, strings.Split(description.Info.Description, "\n\n"), sections})
	return b.Bytes(), err
}

// outline writes a schema as JSON whose values are types.
func outline(registry huma.Registry, s *huma.Schema) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // the template escapes
	enc.SetIndent("", "  ")
	if err := enc.Encode(shape(registry, s, 0)); err != nil {
		return ""
	}
	return b.String()
}

func shape(registry huma.Registry, s *huma.Schema, depth int) any {
	if s == nil || depth > 6 {
		return "…"
	}
	if s.Ref != "" {
		s = registry.SchemaFromRef(s.Ref)
	}
	switch s.Type {
	case huma.TypeObject:
		fields := make(map[string]any, len(s.Properties))
		for name, property := range s.Properties {
			if !slices.Contains(s.Required, name) {
				name += "?"
			}
			fields[name] = shape(registry, property, depth+1)
		}
		return fields
	case huma.TypeArray:
		return []any{shape(registry, s.Items, depth+1)}
	}
	words := s.Type
	if s.Format != "" {
		words += " (" + s.Format + ")"
	}
	if len(s.Enum) > 0 {
		var values []string
		for _, v := range s.Enum {
			if text, ok := v.(string); ok {
				values = append(values, text)
			}
		}
		words = strings.Join(values, " | ")
	}
	if s.Description != "" {
		words += ". " + s.Description
	}
	return words
}
