package mail

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cbroglie/mustache"
	"golang.org/x/net/html"

	"github.com/pinward/pinward/shared/problem"
)

// Template is the text of a kind of mail with variables such as {{username}}
// in it (mustache; variables only, no sections or partials).
type Template struct {
	ID      string // a ULID, or the id of a predefined one
	Kind    TemplateKind
	Name    string // for people, 1 to 100 characters
	Subject string // at most 200 bytes, one line
	Text    string // at most 20,000 bytes
	HTML    string // at most 100,000 bytes; "" for mails of text only
	Version int64  // 0 if it is not stored: new, or a predefined one as it came
}

// Validate returns everything that is wrong as a *problem.InvalidError.
func (t Template) Validate() error {
	var vs problem.Violations
	if !idPattern.MatchString(t.ID) {
		vs.Add("id", "id", "must be 1 to 100 letters, digits, dots, dashes or underscores")
	}
	if t.Kind.Variables() == nil {
		names := make([]string, len(kinds))
		for i, k := range kinds {
			names[i] = string(k.kind)
		}
		vs.Add("kind", "kind", "must be one of %s", strings.Join(names, ", "))
		return vs.Err() // without a kind, no variable is right
	}
	if of := TemplateKind(t.ID); of.Variables() != nil && of != t.Kind {
		vs.Add("kind", "kind", "must be %s, as the predefined template of this id has it", of)
	}
	validateName(&vs, t.Name)
	for _, part := range t.parts() {
		if part.required && strings.TrimSpace(part.source) == "" {
			vs.Add("required", part.field, "must not be empty")
		}
		if len(part.source) > part.limit {
			vs.Add("tooLong", part.field, "is %d bytes, at most %d are allowed", len(part.source), part.limit)
			continue
		}
		if !utf8.ValidString(part.source) {
			vs.Add("encoding", part.field, "is not valid UTF-8")
		}
		if strings.ContainsFunc(part.source, func(r rune) bool {
			return unicode.IsControl(r) && (part.field == "subject" || !strings.ContainsRune("\t\r\n", r))
		}) {
			vs.Add("control", part.field, "contains control characters or, in a subject, line breaks")
		}
		t.Kind.validateTags(&vs, part.field, part.source)
	}
	if !variablesInTextOnly(t.HTML) {
		vs.Add("place", "html", "variables may stand in running text only, not inside a tag, a comment, script or style, where escaping does not protect")
	}
	return vs.Err()
}

type part struct {
	field, source string
	limit         int
	required      bool
}

func (t Template) parts() []part {
	return []part{
		{"subject", t.Subject, 200, true},
		{"text", t.Text, 20_000, true},
		{"html", t.HTML, 100_000, false},
	}
}

// validateTags lets {{known}} pass and nothing else that mustache gives a
// meaning to, and has a code where it belongs.
func (k TemplateKind) validateTags(vs *problem.Violations, field, source string) {
	known := k.Variables()
	var used []string
	for rest := source; ; {
		_, after, found := strings.Cut(rest, "{{")
		if !found {
			break
		}
		tag, next, closed := strings.Cut(after, "}}")
		if !closed {
			vs.Add("syntax", field, "a {{ is not closed by }}")
			return
		}
		rest = next
		name := strings.TrimSpace(tag)
		shown := []rune(oneLine(name))
		shown = shown[:min(len(shown), 40)]
		switch {
		case slices.Contains(known, name):
			used = append(used, name)
		case strings.HasPrefix(name, "{"), strings.HasPrefix(name, "&"):
			vs.Add("unescaped", field, "{{%s}} would put a value into the mail unescaped; write it with two braces and no &", string(shown))
		case name != "" && strings.Contains("#^/>=!", name[:1]):
			vs.Add("unsupported", field, "{{%s}}: sections, partials, comments and other delimiters are not supported; the variables are %s", string(shown), inBraces(known))
		default:
			vs.Add("unknownVariable", field, "{{%s}} is not a variable of this mail; the variables are %s", string(shown), inBraces(known))
		}
	}
	for _, secret := range known {
		if !isSecret(secret) {
			continue
		}
		switch has := slices.Contains(used, secret); {
		case field == "subject" && has:
			vs.Add(secret+"InSubject", field, "must not contain {{%s}}: subjects are shown on lock screens and written to logs", secret)
		case field != "subject" && !has && source != "":
			vs.Add(secret+"Missing", field, "must contain {{%s}}, or the mail would not tell it", secret)
		}
	}
}

var (
	tagPattern = regexp.MustCompile(`\{\{[^{}]*\}\}`)
	// linkPattern is the one place in a tag where a variable is safe: it is a URL that
	// Pinward has made, and nothing else is in the quotes.
	linkPattern = regexp.MustCompile(`(<a [^<>{}]*href=")\{\{ *link *\}\}"`)
)

// variablesInTextOnly tells whether each variable stands where a browser reads
// text, or is the link that a link leads to. Elsewhere HTML escaping does not keep a value in its place.
func variablesInTextOnly(source string) bool {
	mark := "pinward-variable"
	for strings.Contains(source, mark) {
		mark += "-x"
	}
	source = linkPattern.ReplaceAllString(source, `$1"`)
	z := html.NewTokenizer(strings.NewReader(tagPattern.ReplaceAllString(source, mark)))
	inCode := false
	for {
		kind := z.Next()
		marked := bytes.Contains(z.Raw(), []byte(mark))
		if marked && (kind != html.TextToken || inCode) {
			return false
		}
		switch kind {
		case html.ErrorToken:
			return z.Err() == io.EOF
		case html.StartTagToken, html.SelfClosingTagToken:
			name, _ := z.TagName()
			inCode = string(name) == "script" || string(name) == "style"
		case html.EndTagToken:
			inCode = false
		}
	}
}

// Render returns the mail for a person, without ID and To. The template is a
// valid one, and values of another kind than its are an error, and so is a
// variable that it uses and that has no value. Values are put on one line,
// but for the lists of a digest, HTML-escaped in the HTML part only, and never
// read as mustache; a PIN stays as it is, to the character. A subject of
// more than 200 characters is cut.
func Render(t Template, values Values) (Message, error) {
	if t.Kind != values.kind() {
		return Message{}, fmt.Errorf("render template %s: it is of kind %q and the values are of kind %q", t.ID, t.Kind, values.kind())
	}
	variables := values.variables()
	for name, value := range variables {
		if t.Kind != Digest && !isSecret(name) { // the lines of a list are so already
			variables[name] = oneLine(value)
		}
	}
	var out [3]string
	for i, part := range t.parts() {
		var vs problem.Violations
		t.Kind.validateTags(&vs, part.field, part.source)
		if err := vs.Err(); err != nil {
			return Message{}, fmt.Errorf("render template %s: %w", t.ID, err)
		}
		parsed, err := mustache.ParseStringRaw(part.source, part.field != "html")
		if err != nil {
			return Message{}, fmt.Errorf("render template %s: %s: %w", t.ID, part.field, err)
		}
		for _, tag := range parsed.Tags() {
			if variables[tag.Name()] == "" {
				return Message{}, fmt.Errorf("render template %s: %s: variable %s has no value", t.ID, part.field, tag.Name())
			}
		}
		if out[i], err = parsed.Render(variables); err != nil {
			return Message{}, fmt.Errorf("render template %s: %s: %w", t.ID, part.field, err)
		}
	}
	subject := oneLine(out[0])
	if cut := []rune(subject); len(cut) > 200 {
		subject = string(cut[:199]) + "…"
	}
	return Message{Subject: subject, Text: out[1], HTML: out[2]}, nil
}
