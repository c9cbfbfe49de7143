package words

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/problem"
)

// pattern is an English format of the domain, and how it is said in German.
type pattern struct {
	english *regexp.Regexp // with a group for each argument
	verbs   []byte         // of each argument
	literal int            // how many bytes of the format are its own
	german  text
}

// verb matches what stands for an argument in a format, or for a percent sign.
var verb = regexp.MustCompile(`%(?:%|([dsvq]))`)

// asTyped stands for %s between braces: a variable of a mail template. It is not
// translated, as what people call things is not, for which formats have %q.
const asTyped = 'r'

// arguments are what an argument of each verb looks like.
var arguments = map[byte]string{
	'd': `(-?\d+)`, 'q': `("(?:[^"\\]|\\.)*")`, 's': `(.+?)`, 'v': `(.+?)`, asTyped: `(.+?)`,
}

// reasons are the texts of the domain without arguments, and those with, the
// most definite first. They are read when somebody who reads German needs one.
var reasons = sync.OnceValues(func() (exact map[string]string, patterns []pattern) {
	var file map[string]text
	read(reasonsFile, &file)
	exact = map[string]string{}
	for english, german := range file {
		p, rest := pattern{german: german}, english
		var expression strings.Builder
		expression.WriteString("(?s)^")
		for m := verb.FindStringSubmatchIndex(rest); m != nil; m = verb.FindStringSubmatchIndex(rest) {
			expression.WriteString(regexp.QuoteMeta(rest[:m[0]]))
			p.literal += m[0]
			if m[2] < 0 {
				expression.WriteString("%")
			} else {
				v := rest[m[2]]
				if strings.HasSuffix(rest[:m[0]], "{{") {
					v = asTyped
				}
				p.verbs = append(p.verbs, v)
				expression.WriteString(arguments[v])
			}
			rest = rest[m[1]:]
		}
		if p.verbs == nil {
			exact[strings.ReplaceAll(english, "%%", "%")] = german.other
			continue
		}
		p.literal += len(rest)
		p.english = regexp.MustCompile(expression.String() + regexp.QuoteMeta(rest) + "$")
		patterns = append(patterns, p)
	}
	slices.SortFunc(patterns, func(a, b pattern) int {
		if a.literal != b.literal {
			return b.literal - a.literal
		}
		return strings.Compare(a.english.String(), b.english.String())
	})
	return exact, patterns
})

var instant = regexp.MustCompile(`\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)

// Text puts what a domain package says to people, in English, in w's language:
// a reason, also one that was stored or came from a bridge, a sentence about
// what has come of something, or the name of a state. It knows them by the
// formats that they are made with, and returns what it does not know as it is.
// Times in it are written as Time does.
func (w Words) Text(english string) string {
	if !w.german && !instant.MatchString(english) {
		return english
	}
	if exact, _ := reasons(); exact[english] != "" { // a time in it is an example
		if w.german {
			return exact[english]
		}
		return english
	}
	if w.german {
		english = translated(english)
	}
	return instant.ReplaceAllStringFunc(english, func(s string) string {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return s
		}
		return w.Time(t, w.zone)
	})
}

// In returns words that write the times in texts in a zone; without, they are
// in UTC, and say so.
func (w Words) In(zone *time.Location) Words {
	w.zone = zone
	return w
}

// translated returns English that nobody knows as it is.
func translated(english string) string {
	exact, patterns := reasons()
	if german, ok := exact[english]; ok {
		return german
	}
	for _, p := range patterns {
		if m := p.english.FindStringSubmatch(english); m != nil {
			return p.say(m[1:])
		}
	}
	return enumeration(english)
}

// say puts arguments, which are in English too, in the German format.
func (p pattern) say(found []string) string {
	args := make([]any, len(found))
	for i, s := range found {
		args[i] = s
		switch p.verbs[i] {
		case 'd':
			if n, err := strconv.ParseInt(s, 10, 64); err == nil {
				args[i] = n
			}
		case 'q':
			if unquoted, err := strconv.Unquote(s); err == nil {
				args[i] = unquoted
			}
		case 'v':
			if list, ok := strings.CutPrefix(s, "["); ok { // as fmt prints a slice
				s = strings.Join(strings.Fields(strings.TrimSuffix(list, "]")), ", ")
			}
			args[i] = translated(s)
		case 's':
			args[i] = translated(s)
		}
	}
	return german.print(p.german.form(args), args)
}

var german = Words{german: true}

var (
	separator = regexp.MustCompile(`, | and | or `)
	codeLike  = regexp.MustCompile(`^[\w./+{}-]+$`)
)

// enumeration translates "a, b and c", if each is a text of its own or one
// word, such as a code.
func enumeration(english string) string {
	items := separator.Split(english, -1)
	if len(items) == 1 {
		return english
	}
	separators := separator.FindAllString(english, -1)
	exact, _ := reasons()
	var b strings.Builder
	for i, item := range items {
		german, ok := exact[item]
		if !ok {
			if !codeLike.MatchString(item) {
				return english
			}
			german = item
		}
		b.WriteString(german)
		if i < len(separators) {
			b.WriteString(map[string]string{", ": ", ", " and ": " und ", " or ": " oder "}[separators[i]])
		}
	}
	return b.String()
}

// Reason says what is wrong with an input, and what would be right: what
// follows the name of the field, such as "must have at least 6 digits".
func (w Words) Reason(v problem.Violation) string { return w.Text(v.Reason) }

// Error says to people, in a sentence, why something cannot be done, and false
// for an error that says that by its violations, or is not for them.
func (w Words) Error(err error) (sentence string, ok bool) {
	var invalid *problem.InvalidError
	var limit *problem.LimitError
	switch {
	case errors.As(err, &invalid):
		return "", false
	case errors.As(err, &limit):
		return w.Say("error.limit", sentenceOf(w.Text(limit.Reason)), w.Time(limit.Until, w.zone)), true
	case errors.Is(err, problem.ErrUnauthenticated):
		return w.outermost(err, problem.ErrUnauthenticated, w.Say("error.unauthenticated")), true
	case errors.Is(err, problem.ErrForbidden):
		return w.outermost(err, problem.ErrForbidden, w.Say("error.forbidden")), true
	case errors.Is(err, problem.ErrNotFound):
		return w.Say("error.notFound"), true
	case errors.Is(err, problem.ErrState):
		return w.outermost(err, problem.ErrState, w.Say("error.state")), true
	case errors.Is(err, problem.ErrConflict):
		return w.Say("error.conflict"), true
	case errors.Is(err, problem.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return w.Say("error.unavailable"), true
	}
	return "", false
}

// outermost returns what an error says behind its sentinel, and otherwise a
// sentence for all errors of that kind: what stands before is for logs.
func (w Words) outermost(err, sentinel error, otherwise string) string {
	_, reason, ok := strings.Cut(err.Error(), sentinel.Error()+": ")
	if !ok {
		return otherwise
	}
	if w.german && translated(reason) == reason {
		return otherwise
	}
	return sentenceOf(w.Text(reason))
}

// sentenceOf begins with a capital and ends with a full stop.
func sentenceOf(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	s = string(unicode.ToUpper(r)) + s[n:]
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

// index is a place in a list, as in "actions[0]" and "channels.0".
var index = regexp.MustCompile(`\[\d+\]|\.\d+\b`)

// Field returns how pages call the field that a violation names, such as
// "Display name" for "settings.displayName", and false and the last part of
// the path if they have no name for it.
func (w Words) Field(path string) (label string, ok bool) {
	path = index.ReplaceAllString(path, "")
	last := path[strings.LastIndex(path, ".")+1:]
	for _, name := range []string{path, last} {
		if key := Family("field.", name); w.Has(key) {
			return w.Say(key), true
		}
	}
	return last, false
}

// Action says what an audit record is of, such as "PIN set" for "pin.set".
func (w Words) Action(action string) string {
	return w.member(Family("audit.action.", action), action)
}

// AuditReason says why, in an audit record: for one coded reason, or for
// several with spaces between, such as a PIN that a policy refuses has.
func (w Words) AuditReason(codes string) string {
	reasons := strings.Fields(codes)
	for i, code := range reasons {
		reasons[i] = w.member(Family("audit.reason.", code), code)
		if system, answer, _ := strings.Cut(code, "."); reasons[i] == code && w.Has(Family("audit.answered.", system)) {
			reasons[i] = w.Say(Family("audit.answered.", system), answer)
		}
	}
	return strings.Join(reasons, ", ")
}

func (w Words) member(key, otherwise string) string {
	if !w.Has(key) {
		return otherwise
	}
	return w.Say(key)
}
