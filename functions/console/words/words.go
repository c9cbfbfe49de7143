// Package words is what Pinward's pages say, in English and in German: one
// catalogue, in JSON files by group of pages, that a test holds complete; how a
// date, a span of time and a number are written; and the reasons of the domain,
// which are written in English where they arise, in the reader's language.
package words

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/text/language"
	"golang.org/x/text/message"
	"golang.org/x/text/unicode/bidi"
)

//go:embed *.json
var files embed.FS

// languages are those that pages speak; the first is the fallback.
var languages = []language.Tag{language.English, language.German}

var matcher = language.NewMatcher(languages)

// Words says things in one language. The zero value speaks English. Words may
// be compared, and used by many at once.
type Words struct {
	german bool
	zone   *time.Location // that times within texts are in; nil is UTC
}

// In returns the words of the language that is nearest to a BCP 47 tag: German
// for de and its like, such as de-AT, and English for everything else.
func In(tag string) Words {
	_, i := language.MatchStrings(matcher, tag)
	return Words{german: i == 1}
}

// Preferred returns which language, as Language does, suits the Accept-Language
// header of a request best, and false if that names none that pages speak.
func Preferred(acceptLanguage string) (tag string, ok bool) {
	tags, _, err := language.ParseAcceptLanguage(acceptLanguage)
	if err != nil {
		return "", false
	}
	_, i, confidence := matcher.Match(tags...)
	if confidence == language.No {
		return "", false
	}
	return Words{german: i == 1}.Language(), true
}

// Language returns "en" or "de", as for the attribute lang.
func (w Words) Language() string { return w.tag().String() }

func (w Words) tag() language.Tag {
	if w.german {
		return language.German
	}
	return language.English
}

// text is an entry in one language: a format, and, if it counts something,
// another for one of it.
type text struct{ one, other string }

// UnmarshalJSON implements json.Unmarshaler: "text" or {"one": …, "other": …}.
func (t *text) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &t.other) == nil {
		return nil
	}
	var forms struct{ One, Other string }
	if err := json.Unmarshal(b, &forms); err != nil {
		return err
	}
	*t = text{forms.One, forms.Other}
	return nil
}

// entry is what the catalogue has under a key.
type entry struct{ En, De text }

// reasonsFile has another form than the rest: English format, German format.
const reasonsFile = "reasons.json"

// catalogue is all of it. That files are well formed and no key is in two of
// them is the test's; the files are part of the program.
var catalogue = func() map[string]entry {
	all := map[string]entry{}
	names, _ := fs.Glob(files, "*.json") // the pattern is good
	for _, name := range names {
		if name != reasonsFile {
			read(name, &all) // adds to what is there
		}
	}
	return all
}()

func read(name string, to any) {
	b, err := files.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(b, to)
	}
	if err != nil {
		panic(fmt.Sprintf("words: %s: %v", name, err))
	}
}

// Has says whether the catalogue has the key.
func (w Words) Has(key string) bool {
	_, ok := catalogue[key]
	return ok
}

// Say returns the text under a key with args put in as fmt.Sprintf does, but
// with numbers grouped as the language does ("1,000", "1.000"). If the text
// counts something, the first integer of args chooses the form. A key that the
// catalogue has not is returned as it is.
//
// The test that holds the catalogue complete reads key where it is a literal.
// Everywhere else it must come from Key or Family.
func (w Words) Say(key string, args ...any) string {
	e, ok := catalogue[key]
	if !ok {
		return key
	}
	t := e.En
	if w.german {
		t = e.De
	}
	return w.print(t.form(args), args)
}

// form returns the format for what args count.
func (t text) form(args []any) string {
	if n, ok := count(args); ok && n == 1 && t.one != "" {
		return t.one
	}
	return t.other
}

func (w Words) print(format string, args []any) string {
	isolated := make([]any, len(args))
	for i, a := range args {
		isolated[i] = a
		if s, ok := a.(string); ok {
			isolated[i] = isolate(s)
		}
	}
	return message.NewPrinter(w.tag()).Sprintf(format, isolated...)
}

// count returns the first integer of args. An integer with words of its own,
// such as a time.Duration or a time.Weekday, counts nothing.
func count(args []any) (n int64, ok bool) {
	for _, a := range args {
		if _, ok := a.(fmt.Stringer); ok {
			continue
		}
		switch v := reflect.ValueOf(a); {
		case v.CanInt():
			return v.Int(), true
		case v.CanUint():
			return int64(v.Uint()), true
		}
	}
	return 0, false
}

// isolate keeps a name that is written from right to left from rearranging the
// sentence around it: it goes between FIRST STRONG ISOLATE and POP DIRECTIONAL
// ISOLATE.
func isolate(s string) string {
	for _, r := range s {
		if p, _ := bidi.LookupRune(r); p.Class() == bidi.R || p.Class() == bidi.AL {
			return "\u2068" + s + "\u2069"
		}
	}
	return s
}

// Key returns key. It marks a literal as a key of the catalogue where that does
// not go to Say at once: {label: words.Key("users.name")}.
func Key(key string) string { return key }

// Family returns the key of a member of a family, such as "state.blocked" for
// Family("state.", c.State); more values follow with dots between. The prefix
// is a literal that ends in a dot, and the test demands that the catalogue has
// keys with it.
func Family(prefix string, values ...any) string {
	parts := make([]string, len(values))
	for i, v := range values {
		parts[i] = fmt.Sprint(v)
	}
	return prefix + strings.Join(parts, ".")
}

// Members returns the members of a family, without its prefix, in order.
func Members(prefix string) []string {
	var members []string
	for key := range catalogue {
		if m, ok := strings.CutPrefix(key, prefix); ok {
			members = append(members, m)
		}
	}
	slices.Sort(members)
	return members
}

// Of says the text of a member of a family, for templates: {{tf "state." .State}}. The test
// reads its prefix there.
func (w Words) Of(prefix string, value any) string {
	key := prefix + fmt.Sprint(value)
	return w.Say(key)
}
