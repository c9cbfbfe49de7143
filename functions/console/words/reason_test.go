package words_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/user"
)

const root = "../../.."

// silent are the packages of whose reasons no page tells anybody: what they
// refuse comes from machines, not from people.
var silent = []string{"shared/apdu", "shared/vault", "shared/relay", "shared/table/tabletest"}

// passedOn are the names, by file, that bring a reason from somewhere else,
// where it is read as a literal.
var passedOn = map[string][]string{
	"shared/pin/check.go":         {"reason"}, // say's
	"shared/problem/problem.go":   {"reason"}, // Invalid's
	"shared/unblock/offline.go":   {"reason"}, // errCardAnswers, errKeyAnswers
	"shared/intake/part.go":       {"reason"}, // refuse's
	"shared/mail/ses.go":          {"reason"}, // sesReasons
	"shared/delivery/delivery.go": {"reason"}, // undeliverable's
}

// spoken are functions, constants and variables, by file, of whose string
// literals each is said to people or stands in what is.
var spoken = map[string][]string{
	"shared/apdu/sw.go":           {"meanings", "kinds", "Meaning"},
	"shared/card/failure.go":      {"sentences", "Sentence"},
	"shared/delivery/delivery.go": {"sentences", "Sentence"},
	"shared/credential/state.go":  {"Reasons"},
	"shared/intake/cards.go":      {"named"},
	"shared/intake/key.go":        {"errJWE"},
	"shared/intake/intake.go":     {"Noun"},
	"shared/mail/mail.go":         {"ParseAddress"},
	"shared/mail/ses.go":          {"sesReasons", "sesResult"},
	"shared/offline/code.go":      {"read", "digit"},
	"shared/offline/hex.go":       {"hexDigit"},
	"shared/offline/puk.go":       {"Error"},
	"shared/pin/check.go":         {"words", "missing", "offending", "explain"},
	"shared/pin/common.go":        {"commonKind"},
	"shared/unblock/offline.go":   {"errCardAnswers", "errKeyAnswers"},
	"shared/unblock/operation.go": {"Sentence", "failure"},
}

// names are the types, by file, of whose constants each may stand in a reason.
var names = map[string][]string{
	"shared/credential/run.go":      {"RunState"},
	"shared/credential/state.go":    {"State"},
	"shared/credential/template.go": {"Channel", "Proof"},
	"shared/intake/intake.go":       {"State"},
	"shared/pin/policy.go":          {"Alphabet", "Class"},
	"shared/tenant/role.go":         {"Role"},
	"shared/person/limit.go":        {"which"},
	"shared/rule/rule.go":           {"Kind"},
	"shared/user/bulk.go":           {"BulkState"},
	"shared/user/undeliverable.go":  {"MailProblemKind"},
}

// composed are pieces that are put together to what is said; "" is for what is
// said to nobody.
var composed = map[string]string{
	" Its answer: %s.":                        "%s Its answer: %s.",
	" Tries left: %d.":                        "%s Tries left: %d.",
	"; look from group %d on":                 "has %d digits, must have %s; look from group %d on",
	": ask whether it is 1 or F":              "is no hex digit: ask whether it is 1 or F",
	": ask whether it is 2 or C":              "is no hex digit: ask whether it is 2 or C",
	": ask whether it is 5, 8 or F":           "is no hex digit: ask whether it is 5, 8 or F",
	": ask whether it is 6, C or D":           "is no hex digit: ask whether it is 6, C or D",
	"The endpoint answered with the status ":  "The endpoint answered with the status %s.",
	"The mail system did not take the mail (": "The mail system did not take the mail (%s).",
	"the recipient's address ":                "the recipient's address %s",
	"the mail server answered ":               "the mail server answered %s",
	"SES answered ":                           "SES answered %s",
	" or ":                                    "", // and such are enumeration\'s
	"ses.":                                    "",
}

// built are formats of which no literal is read.
var built = []string{
	"%s (%s)",      // an apdu.SW
	"card", "user", // an intake.Kind.Noun
	"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", // a time.Weekday
}

// said is what domain packages say to people in English, each with its place.
type said struct {
	texts map[string]string
	wrong []string
}

func sayings(t *testing.T) said {
	t.Helper()
	s := said{texts: map[string]string{}}
	for _, dir := range []string{"shared", "functions/console"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() && d.Name() != "testdata" || !d.IsDir() && (!strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go")) {
				return err
			} else if d.IsDir() {
				return fs.SkipDir
			}
			rel, err := filepath.Rel(root, file)
			if err != nil {
				return err
			}
			set := token.NewFileSet()
			parsed, err := parser.ParseFile(set, file, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			r := reading{&s, filepath.ToSlash(rel), set}
			ast.Inspect(parsed, r.node)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range built {
		s.texts[text] = "built"
	}
	return s
}

// reading is of one file.
type reading struct {
	*said
	file string
	set  *token.FileSet
}

func (r reading) place(n ast.Node) string {
	return fmt.Sprintf("%s:%d", r.file, r.set.Position(n.Pos()).Line)
}

func (r reading) take(text string, n ast.Node) {
	if whole, ok := composed[text]; ok {
		text = whole
	}
	if text != "" {
		r.texts[text] = r.place(n)
	}
}

// reason takes what is given as a reason.
func (r reading) reason(e ast.Expr) {
	switch x := e.(type) {
	case *ast.CallExpr:
		if nameOf(x.Fun) == "Sprintf" {
			e = x.Args[0]
		}
	case *ast.BinaryExpr:
		if _, whole := literalOf(x); !whole {
			e = x.X
		}
	}
	if text, ok := literalOf(e); ok {
		r.take(text, e)
	} else if !slices.Contains(passedOn[r.file], nameOf(e)) {
		r.wrong = append(r.wrong, r.place(e)+": a reason is not a literal")
	}
}

func (r reading) node(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.CallExpr:
		if !slices.Contains(silent, path.Dir(r.file)) {
			r.call(n)
		}
	case *ast.CompositeLit:
		for i, e := range n.Elts {
			kv, keyed := e.(*ast.KeyValueExpr)
			switch name := nameOf(n.Type); {
			case keyed && nameOf(kv.Key) == "Reason" && slices.Contains([]string{"Violation", "LimitError", "Refusal", "Undeliverable", "Result"}, name) && !slices.Contains(silent, path.Dir(r.file)):
				r.reason(kv.Value)
			case !keyed && i == 1 && (name == "Refusal" || name == "Undeliverable"):
				r.reason(e)
			}
		}
	case *ast.FuncDecl:
		if slices.Contains(spoken[r.file], n.Name.Name) {
			r.within(n.Body)
		}
	case *ast.ValueSpec:
		if slices.Contains(spoken[r.file], n.Names[0].Name) || slices.Contains(names[r.file], nameOf(n.Type)) {
			for _, v := range n.Values {
				r.within(v)
			}
		}
	}
	return true
}

// call takes the reasons in calls that make violations and errors.
func (r reading) call(n *ast.CallExpr) {
	name := nameOf(n.Fun)
	at := map[string]int{"Add": 2, "Invalid": 2, "say": 2, "broken": 1, "undeliverable": 1}[name]
	switch {
	case name == "broken" && path.Dir(r.file) != "shared/intake", name == "say" && path.Dir(r.file) != "shared/pin", len(n.Args) <= at:
	case at > 0:
		r.reason(n.Args[at])
	case (name == "refuse" || name == "tell") && path.Dir(r.file) == "shared/intake" && len(n.Args) > 1 && nameOf(n.Args[0]) != "e": // users.refuse is given violations
		r.reason(n.Args[1])
	case name == "Errorf" && len(n.Args) > 1 && slices.Contains([]string{"ErrState", "ErrForbidden", "ErrUnauthenticated"}, nameOf(n.Args[1])):
		format, _ := literalOf(n.Args[0])
		format, ok := strings.CutPrefix(format, "%w: ")
		if !ok {
			r.wrong = append(r.wrong, r.place(n)+`: an error that people are told must be "%w: ..."`)
		}
		r.take(format, n)
	}
}

var wordy = regexp.MustCompile(`[a-zA-Z]{2}`)

// within takes every literal that has words, but those that only look something
// up, and the codes and fields of violations.
func (r reading) within(n ast.Node) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.KeyValueExpr:
			r.within(n.Value)
			return false
		case *ast.CallExpr:
			switch nameOf(n.Fun) {
			case "Add", "Invalid", "say", "CutPrefix", "HasPrefix":
				return false
			}
		case *ast.IndexExpr:
			if _, ok := n.X.(*ast.Ident); ok {
				return false
			}
		case *ast.BasicLit:
			if text, ok := literalOf(n); ok && wordy.MatchString(text) {
				r.take(text, n)
			}
		}
		return true
	})
}

func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

func reasons(t *testing.T) map[string]forms {
	t.Helper()
	b, err := os.ReadFile("reasons.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]forms
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	for _, w := range twice(b) {
		t.Errorf("reasons.json: %s", w)
	}
	return all
}

// TestReasons holds the German of what domain packages say complete.
func TestReasons(t *testing.T) {
	german, said := reasons(t), sayings(t)
	for _, w := range said.wrong {
		t.Error(w)
	}
	for _, text := range slices.Sorted(maps.Keys(said.texts)) {
		if _, ok := german[text]; !ok && text != "%s" && text != "%v" {
			t.Errorf("%s: reasons.json has no German for %q", said.texts[text], text)
		}
	}
	for text, translations := range german {
		if said.texts[text] == "" {
			t.Errorf("reasons.json: nothing says %q", text)
		}
		for _, de := range translations {
			want, err := verbs(text)
			got, err2 := verbs(de)
			for _, v := range []map[int]string{want, got} {
				for n := range v {
					if v[n] != "d" {
						v[n] = "s"
					}
				}
			}
			if err := errors.Join(err, err2); err != nil || de == "" || !maps.Equal(got, want) {
				t.Errorf("reasons.json: %q takes %v, and its German %q %v (%v)", text, want, de, got, err)
			}
		}
	}
}

// TestTextPutsFormats finds each format again in what it makes, and puts the
// arguments where they belong.
func TestTextPutsFormats(t *testing.T) {
	for english, translations := range reasons(t) {
		v, err := verbs(english)
		if err != nil {
			t.Fatal(err)
		}
		var args, german []any
		for n := range len(v) {
			args, german = append(args, 1234+n), append(german, 1234+n)
			if v[n+1] != "d" {
				args[n] = fmt.Sprintf("x%dx", n)
				german[n] = args[n]
			}
		}
		form := translations[""]
		if form == "" {
			form = translations["other"]
		}
		want := message.NewPrinter(language.German).Sprintf(form, german...)
		if got := words.In("de").Text(fmt.Sprintf(english, args...)); got != want {
			t.Errorf("%q is %q, want %q", english, got, want)
		}
	}
}

// TestPINReasons reads the verdicts on PINs, which people see most.
func TestPINReasons(t *testing.T) {
	p := pin.Policy{MinLength: 6, MaxLength: 8, Alphabet: pin.Digits, MaxRun: 2, DisallowSequential: true, DisallowConstantDelta: true,
		Blocklist: pin.BlocklistCommon, BlocklistEntries: []string{"471147"}, DisallowContext: true, MaxAttempts: 5, LockMinutes: 15}
	own := p
	own.Alphabet, own.RequireClasses, own.MaxLength = pin.Printable, []pin.Class{pin.Digit, pin.Lower, pin.Upper, pin.Special}, 12
	about := pin.Context{Username: "lovelace", Phone: "+49 170 9182736", StaffNumber: "918273"}
	for _, test := range []struct {
		policy pin.Policy
		pin    string
		want   []string
	}{
		{p, "8305", []string{"muss mindestens 6 Ziffern haben"}},
		{p, "8305740513", []string{"darf höchstens 8 Ziffern haben"}},
		{p, "12a4 9é", []string{"darf keine Buchstaben, Leerzeichen und anderen Buchstaben als A bis Z enthalten, nur die Ziffern 0 bis 9"}},
		{p, "123456", []string{"darf nicht von Zeichen zu Zeichen um eins steigen oder fallen",
			"darf nicht mehr als 2 Zeichen hintereinander haben, die gleich sind oder um eins steigen oder fallen",
			"darf nicht von Ziffer zu Ziffer denselben Abstand haben",
			"darf nicht eine der meistbenutzten PINs sein: solche PINs werden zuerst erraten"}},
		{p, "830830", []string{"darf nicht nur die Wiederholung eines kürzeren Teils sein"}},
		{p, "147258", []string{"darf nicht eine Linie auf dem Tastenfeld sein: solche PINs werden zuerst erraten"}},
		{p, "471147", []string{"darf nicht auf der Sperrliste Ihrer Organisation stehen"}},
		{p, "918273", []string{"darf auch rückwärts weder in einer Angabe zur Person vorkommen noch sie enthalten: Telefonnummer",
			"darf auch rückwärts weder in einer Angabe zur Person vorkommen noch sie enthalten: Personalnummer"}},
		{own, "83057", []string{"muss mindestens 6 Zeichen haben", "muss auch einen Kleinbuchstaben, einen Großbuchstaben und ein Sonderzeichen enthalten"}},
		{own, "Lovelace 7", []string{"darf keine Leerzeichen enthalten, nur die Buchstaben A bis Z, die Ziffern 0 bis 9 und die Sonderzeichen einer US-Tastatur, ohne Leerzeichen"}},
		{own, "Lovelace7", []string{"muss auch ein Sonderzeichen enthalten", "darf auch rückwärts weder in einer Angabe zur Person vorkommen noch sie enthalten: Benutzername"}},
	} {
		var got []string
		for _, v := range test.policy.Check(secret.New(test.pin), about) {
			got = append(got, words.In("de").Reason(v))
			if en := words.In("en").Reason(v); en != v.Reason {
				t.Errorf("in English %q has become %q", v.Reason, en)
			}
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: want - got +:\n%s", test.pin, diff)
		}
	}
}

func TestText(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ text, en, de string }{
		// what nobody knows stays as it is
		{"", "", ""},
		{"is a novelty", "is a novelty", "is a novelty"},
		// as an import stores it
		{"tooShort: must have at least 6 digits", "tooShort: must have at least 6 digits", "tooShort: muss mindestens 6 Ziffern haben"},
		{`line 1234 has a quotation mark at byte 5 where none may be (RFC 4180, 2.5 to 2.7); nothing of the part was taken`, "",
			"Zeile 1.234 hat bei Byte 5 ein Anführungszeichen, wo keines stehen darf (RFC 4180, 2.5 bis 2.7); von diesem Teil wurde nichts übernommen"},
		{`has the column "Größe \"x\"" twice`, "", "hat die Spalte „Größe \"x\"“ doppelt"},
		// with a time
		{"an unblock of this card is under way; wait until 2026-07-01T10:00:00Z, or cancel it",
			"an unblock of this card is under way; wait until 1 July 2026 at 12:00, or cancel it",
			"diese Karte wird gerade entsperrt; warten Sie bis 1. Juli 2026 um 12:00 Uhr oder brechen Sie das ab"},
		// sentences with something put behind
		{card.Failure{Reason: card.PUKBlocked, SW: 0x6983}.Sentence(), "",
			"Die PUK der Karte ist blockiert: Die Karte muss neu ausgegeben oder zurückgesetzt werden. Antwort der Karte: 6983 (Authentisierung blockiert)."},
		{card.Failure{Reason: card.AdminKeyWrong, SW: 0x63C2}.Sentence(), "",
			"Die Karte hat einen anderen Admin-Schlüssel als den hinterlegten. Antwort der Karte: 63C2 (noch 2 Versuche)."},
		{(delivery.Delivery{Code: "http.503"}).Sentence(), "", "Der Endpunkt hat mit dem Status 503 geantwortet."},
		// what people call things, and what they typed
		{`the card is not in a reader of the bridge "card and user"; put it in first`, "", "die Karte steckt in keinem Leser der Bridge „card and user“; stecken Sie sie zuerst ein"},
		{"{{card}} is not a variable of this mail; the variables are {{username}}, {{pin}}", "", "{{card}} ist keine Variable dieser E-Mail; die Variablen sind {{username}}, {{pin}}"},
		// enumerations of codes and of names
		{"must be PIV or GIDS", "", "muss PIV oder GIDS sein"},
		{"must be one of [alphanumeric digits] for GIDS cards", "", "muss eins von diesen sein: Buchstaben und Ziffern, Ziffern, für GIDS-Karten"},
		{"must be registered, active or retired", "", "muss registriert, aktiv oder ausgemustert sein"},
		// a right-to-left name keeps to itself
		{"is the column of שם", "is the column of שם", "ist die Spalte von \u2068שם\u2069"},
	} {
		if test.en == "" {
			test.en = test.text
		}
		if got := words.In("en").In(berlin).Text(test.text); got != test.en {
			t.Errorf("got %q, want %q", got, test.en)
		}
		if got := words.In("de").In(berlin).Text(test.text); got != test.de {
			t.Errorf("got %q, want %q", got, test.de)
		}
	}
}

func TestError(t *testing.T) {
	until := time.Date(2026, 7, 1, 10, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		err    error
		en, de string
	}{
		{fmt.Errorf("delete key: %w", fmt.Errorf("%w: it is the last key of role admin; make another one first", problem.ErrState)),
			"It is the last key of role admin; make another one first.", "Das ist der letzte Schlüssel mit der Rolle Administrator; legen Sie zuerst einen anderen an."},
		{user.ErrNoPIN, "The user has no PIN.", "Die Person hat keine PIN."},
		{&problem.LimitError{Code: "locked", Reason: "too many former PINs were tried", Until: until},
			"Too many former PINs were tried. Try again after 1 July 2026 at 10:00 UTC.", "Es wurden zu viele frühere PINs versucht. Versuchen Sie es nach dem 1. Juli 2026 um 10:00 Uhr UTC noch einmal."},
		{fmt.Errorf("%w: role x may not do this (y)", problem.ErrForbidden), "Role x may not do this (y).", "Das dürfen Sie nicht."},
		{fmt.Errorf("script 7: %w", problem.ErrState), "This is not possible at present.", "Das ist zurzeit nicht möglich."},
		{problem.ErrUnauthenticated, "You are not signed in.", "Sie sind nicht angemeldet."},
		{fmt.Errorf("load user: %w", problem.ErrNotFound), "There is no such thing here.", "Das gibt es hier nicht."},
		{problem.ErrUnavailable, "A part that is needed does not answer. Try again soon.", "Ein Teil, der gebraucht wird, antwortet nicht. Versuchen Sie es bald noch einmal."},
		{problem.ErrConflict, "It exists already, or was changed at the same time. Look at it again and repeat.",
			"Es gibt das schon, oder es wurde gleichzeitig geändert. Sehen Sie es sich noch einmal an und wiederholen Sie."},
		{problem.Invalid("x", "pin", "is empty"), "", ""},
		{errors.New("disk full"), "", ""},
	} {
		for language, want := range map[string]string{"en": test.en, "de": test.de} {
			if got, ok := words.In(language).Error(test.err); got != want || ok != (want != "") {
				t.Errorf("%v is %q, %v, want %q", test.err, got, ok, want)
			}
		}
	}
}

func TestField(t *testing.T) {
	for path, want := range map[string]string{
		"displayName": "Anzeigename", "settings.quietHours.from": "Von", "quietHours.from": "Ruhezeit von", "policy.minLength": "Kürzeste PIN, in Zeichen",
		"actions[0]": "Aktionen", "channels.0": "Wege zum Entsperren", "reminders.1.daysBefore": "Tage vorher",
	} {
		if got, ok := words.In("de").Field(path); got != want || !ok {
			t.Errorf("%s is %q, %v, want %q", path, got, ok, want)
		}
	}
	if got, ok := words.In("de").Field("digest.novelty"); got != "novelty" || ok {
		t.Errorf("got %q, %v", got, ok)
	}
}
