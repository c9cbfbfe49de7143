package words_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/functions/console/words"
)

// forms are the texts of an entry in one language, by form; "" is the form of a
// text that counts nothing.
type forms map[string]string

func (f *forms) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*f = forms{"": s}
		return nil
	}
	return json.Unmarshal(b, (*map[string]string)(f))
}

// catalogue reads one file, and returns what is wrong with it as JSON: a key
// that is there twice is lost to a map.
func catalogue(t *testing.T, file string) (map[string]map[string]forms, []string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string]forms{}
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return all, twice(b)
}

// twice returns the keys of the outermost object that are there twice.
func twice(b []byte) (wrong []string) {
	seen := map[string]bool{}
	d := json.NewDecoder(bytes.NewReader(b))
	for depth, name := 0, true; ; {
		tok, err := d.Token()
		if err != nil {
			return wrong
		}
		switch tok := tok.(type) {
		case json.Delim:
			if depth += map[json.Delim]int{'{': 1, '}': -1, '[': 1, ']': -1}[tok]; depth == 1 {
				name = true
			}
		case string:
			if depth == 1 && name {
				if seen[tok] {
					wrong = append(wrong, fmt.Sprintf("%q is there twice", tok))
				}
				seen[tok], name = true, false
			} else if depth == 1 {
				name = true
			}
		}
	}
}

var verb = regexp.MustCompile(`%([-+# 0]*)(\d+)?(\.\d+)?(?:\[(\d+)\])?(.)?`)

// verbs returns the verb of each argument that a format takes, by its number,
// and an error for a % that begins no verb that texts have.
func verbs(format string) (map[int]string, error) {
	all, next := map[int]string{}, 1
	for _, m := range verb.FindAllStringSubmatch(format, -1) {
		if m[0] == "%%" {
			continue
		}
		if m[5] == "" || !strings.Contains("sdvqcxXU", m[5]) {
			return nil, fmt.Errorf("%q has %q, which is no verb", format, m[0])
		}
		if m[4] != "" {
			next, _ = strconv.Atoi(m[4])
		}
		all[next] = m[5]
		next++
	}
	return all, nil
}

// faults returns what is wrong with an entry.
func faults(e map[string]forms) (wrong []string) {
	fail := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if got := slices.Sorted(maps.Keys(e)); !slices.Equal(got, []string{"de", "en"}) {
		fail("is in %q, not in de and en", got)
		return
	}
	if en, de := slices.Sorted(maps.Keys(e["en"])), slices.Sorted(maps.Keys(e["de"])); !slices.Equal(en, de) {
		fail("has the forms %q in English and %q in German", en, de)
	} else if !slices.Equal(en, []string{""}) && !slices.Equal(en, []string{"one", "other"}) {
		fail("has the forms %q", en)
	}
	var first map[int]string
	for _, language := range []string{"en", "de"} {
		for form, s := range e[language] {
			v, err := verbs(s)
			switch {
			case err != nil:
				fail("%v", err)
			case s == "" || s != strings.TrimSpace(s):
				fail("%q is empty, or has space around it", s)
			case form != "" && !slices.Contains(slices.Collect(maps.Values(v)), "d"):
				fail("%q counts, and has no %%d", s)
			case first == nil:
				first = v
			case !maps.Equal(first, v):
				fail("%q takes %v, and another of its texts %v", s, v, first)
			}
			for n := range v {
				if n > 1 && v[n-1] == "" {
					fail("%q leaves argument %d out", s, n-1)
				}
			}
		}
	}
	return wrong
}

// TestCatalogue holds the files to be one complete catalogue, of which
// everything is used and to which nothing is lacking.
func TestCatalogue(t *testing.T) {
	files, err := filepath.Glob("*.json")
	if err != nil {
		t.Fatal(err)
	}
	in := map[string]string{}
	for _, file := range files {
		if file == "reasons.json" {
			continue
		}
		entries, wrong := catalogue(t, file)
		for _, w := range wrong {
			t.Errorf("%s: %s", file, w)
		}
		for key, e := range entries {
			if in[key] != "" {
				t.Errorf("%s: %q is in %s too", file, key, in[key])
			}
			in[key] = file
			for _, w := range faults(e) {
				t.Errorf("%s: %q %s", file, key, w)
			}
			if !(words.Words{}).Has(key) {
				t.Errorf("%s: %q is not in the program", file, key)
			}
		}
	}
	u, err := used("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range u.check(slices.Sorted(maps.Keys(in))) {
		t.Error(w)
	}
}

// TestFaults shows that the catalogue's rules can fail.
func TestFaults(t *testing.T) {
	for _, test := range []struct{ entry, want string }{
		{`{"en": "Users"}`, "not in de and en"},
		{`{"en": "Users", "de": "Personen", "fr": "Personnes"}`, "not in de and en"},
		{`{"en": "Users", "de": ""}`, "empty"},
		{`{"en": "Users ", "de": "Personen"}`, "space around"},
		{`{"en": "%s is here", "de": "ist da"}`, "and another of its texts"},
		{`{"en": "%s is here", "de": "%d ist da"}`, "and another of its texts"},
		{`{"en": "%s has %d", "de": "%[2]s hat %[1]d"}`, "and another of its texts"},
		{`{"en": "100 %", "de": "100 %"}`, "no verb"},
		{`{"en": "100 % of them", "de": "100 % davon"}`, "no verb"},
		{`{"en": "%[2]s", "de": "%[2]s"}`, "leaves argument 1 out"},
		{`{"en": {"one": "%d user", "other": "%d users"}, "de": "%d Personen"}`, "has the forms"},
		{`{"en": {"other": "%d users"}, "de": {"other": "%d Personen"}}`, "has the forms"},
		{`{"en": {"one": "a user", "other": "users"}, "de": {"one": "eine Person", "other": "Personen"}}`, "no %d"},
	} {
		var e map[string]forms
		if err := json.Unmarshal([]byte(test.entry), &e); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(faults(e), "; "); !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want it to say %q", test.entry, got, test.want)
		}
	}
	for _, good := range []string{
		`{"en": "100 %% of %s", "de": "100 %% von %s"}`,
		`{"en": "%s has %d", "de": "%[2]d hat %[1]s"}`,
		`{"en": {"one": "%d user", "other": "%d users"}, "de": {"one": "%d Person", "other": "%d Personen"}}`,
	} {
		var e map[string]forms
		if err := json.Unmarshal([]byte(good), &e); err != nil {
			t.Fatal(err)
		}
		if got := faults(e); got != nil {
			t.Errorf("%s: %q", good, got)
		}
	}
	if got := twice([]byte(`{"a": "a", "b": {"a": "b"}, "a": "c", "c": "b"}`)); len(got) != 1 {
		t.Errorf("twice: %q", got)
	}
}

// TestUsed reads a small tree that uses keys in every way, right and wrong.
func TestUsed(t *testing.T) {
	u, err := used("testdata/page")
	if err != nil {
		t.Fatal(err)
	}
	got := u.check([]string{"users.title", "users.count", "users.save", "users.name", "users.label", "users.tip", "state.blocked", "state.ready.now", "role.admin", "users.forgotten"})
	for i := range got {
		got[i] = strings.ReplaceAll(got[i], filepath.FromSlash("testdata/page/"), "")
	}
	want := []string{
		"page.go:20: a key is put together: use words.Family",
		"page.go:21: a key is put together: use words.Family",
		"page.go:22: words.Family is not given a literal",
		`page.go:23: the prefix "role" of a family does not end in a dot`,
		"templates/users.html:7:2: a key is put together: use tf",
		"templates/users.html:8:2: tf is not given a literal prefix and a value",
		"templates/users.html:9:17: t is not given its key as first argument",
		`page.go:24: the catalogue has no key "users.lacking"`,
		`templates/users.html:10:2: the catalogue has no key "users.missing"`,
		`templates/users.html:11:2: the catalogue has no key of the family "nobody."`,
		`nothing uses the key "users.forgotten"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want - got +:\n%s", diff)
	}
}

func TestIn(t *testing.T) {
	for tag, want := range map[string]string{"": "en", "en": "en", "en-US": "en", "de": "de", "de-AT": "de", "de-CH": "de", "DE-de": "de", "fr": "en", "nl": "en", "x": "en", "not a tag": "en"} {
		if got := words.In(tag).Language(); got != want {
			t.Errorf("In(%q) speaks %s, want %s", tag, got, want)
		}
	}
}

func TestPreferred(t *testing.T) {
	for header, want := range map[string]string{
		"": "", "fr": "", "*": "", "\x00;;": "", "de": "de", "de-CH,de;q=0.9,en;q=0.8": "de", "en-US,en;q=0.5": "en",
		"fr-FR,fr;q=0.9,de;q=0.5,en;q=0.1": "de", "de;q=0.1,en;q=0.7": "en", "de;q=0,en;q=0.1": "en",
	} {
		if got, ok := words.Preferred(header); got != want || ok != (want != "") {
			t.Errorf("Preferred(%q) is %q, %v, want %q", header, got, ok, want)
		}
	}
}

func TestSay(t *testing.T) {
	en, de := words.In("en"), words.In("de-AT")
	for _, test := range []struct{ got, want string }{
		{en.Say("time.days", 1), "1 day"},
		{de.Say("time.days", 1), "1 Tag"},
		{en.Say("time.days", 0), "0 days"},
		{en.Say("time.days", uint8(1)), "1 day"},
		{en.Say("time.days", 12345), "12,345 days"},
		{de.Say("time.days", int64(12345)), "12.345 Tage"},
		{de.Say("no.such", "key"), "no.such"},
		{en.Say("no.%s.such"), "no.%s.such"},
		{en.Number(-1234567), "-1,234,567"},
		{de.Number(1234567), "1.234.567"},
		{words.Key("a.b"), "a.b"},
		{words.Family("day.", time.Monday, 2), "day.Monday.2"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
}

func TestTime(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	tehran, err := time.LoadLocation("Asia/Tehran")
	if err != nil {
		t.Fatal(err)
	}
	noon := time.Date(2026, 3, 1, 12, 0, 59, 0, time.UTC)
	for _, test := range []struct {
		t      time.Time
		zone   *time.Location
		en, de string
	}{
		{noon, berlin, "1 March 2026 at 13:00", "1. März 2026 um 13:00 Uhr"},
		{noon, nil, "1 March 2026 at 12:00 UTC", "1. März 2026 um 12:00 Uhr UTC"},
		{noon, tehran, "1 March 2026 at 15:30", "1. März 2026 um 15:30 Uhr"},
		{time.Date(2026, 12, 31, 23, 30, 0, 0, time.UTC), berlin, "1 January 2027 at 00:30", "1. Januar 2027 um 00:30 Uhr"},
		// summer time ends on 25 October: 02:30 is there twice
		{time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC), berlin, "25 October 2026 at 02:30 CEST", "25. Oktober 2026 um 02:30 Uhr MESZ"},
		{time.Date(2026, 10, 25, 1, 30, 0, 0, time.UTC), berlin, "25 October 2026 at 02:30 CET", "25. Oktober 2026 um 02:30 Uhr MEZ"},
		{time.Date(2026, 10, 25, 2, 0, 0, 0, time.UTC), berlin, "25 October 2026 at 03:00", "25. Oktober 2026 um 03:00 Uhr"},
	} {
		if got := words.In("en").Time(test.t, test.zone); got != test.en {
			t.Errorf("got %q, want %q", got, test.en)
		}
		if got := words.In("de").Time(test.t, test.zone); got != test.de {
			t.Errorf("got %q, want %q", got, test.de)
		}
	}
	if got, want := words.In("de").Date(noon, nil), "1. März 2026"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSpan(t *testing.T) {
	for _, test := range []struct {
		d                time.Duration
		span, ago, until string
	}{
		{0, "0 Sekunden", "gerade eben", "gerade eben"},
		{time.Second, "1 Sekunde", "gerade eben", "in weniger als einer Minute"},
		{59600 * time.Millisecond, "1 Minute", "vor 1 Minute", "in 1 Minute"},
		{90 * time.Minute, "2 Stunden", "vor 2 Stunden", "in 2 Stunden"},
		{47 * time.Hour, "47 Stunden", "vor 47 Stunden", "in 47 Stunden"},
		{48 * time.Hour, "2 Tage", "vor 2 Tagen", "in 2 Tagen"},
		{24000 * time.Hour, "1.000 Tage", "vor 1.000 Tagen", "in 1.000 Tagen"},
	} {
		de := words.In("de")
		if got := [3]string{de.Span(test.d), de.Ago(test.d), de.Ago(-test.d)}; got != [3]string{test.span, test.ago, test.until} {
			t.Errorf("%v: %q", test.d, got)
		}
	}
	if got, want := words.In("en").Ago(3*time.Hour), "3 hours ago"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
