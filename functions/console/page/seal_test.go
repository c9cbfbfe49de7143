package page

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"html"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
)

// sealForm is the form for a PIN as a browser gets it.
func sealForm(t *testing.T, p pin.Policy, change func(*Seal)) string {
	t.Helper()
	v := &view{words: words.In("en"), core: tenant.Core{Tenant: tenant.Tenant{ID: "acme"}}}
	s := v.seal("/console/kiosk/pin", unblock.Operation{ID: "01OP", Credential: "piv-ab"},
		relay.Operation{Policy: &p, Fence: 7, Violations: []relay.Violation{{Code: "blocklisted", Reason: "is <b>common</b>"}}}, tenant.Bridge{Sealing: []byte{0xAB, 0xCD}})
	if change != nil {
		change(&s)
	}
	set, err := pageSet("en", "seal")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := set.ExecuteTemplate(&b, "seal", s); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

var strictest = pin.Policy{MinLength: 6, MaxLength: 8, Alphabet: pin.Printable, RequireClasses: []pin.Class{pin.Digit, pin.Lower, pin.Upper, pin.Special},
	DisallowSequential: true, MaxRun: 3, DisallowConstantDelta: true, Blocklist: pin.BlocklistCommon}

func TestSealHasWhatTheScriptNeeds(t *testing.T) {
	form := sealForm(t, strictest, nil)
	attributes := map[string]string{}
	for _, m := range regexp.MustCompile(`(data-(?:seal|text)-[a-z-]+)="([^"]*)"`).FindAllStringSubmatch(form, -1) {
		attributes[m[1]] = html.UnescapeString(m[2])
	}
	for name, want := range map[string]string{
		"data-seal-public-key": "abcd", "data-seal-info": "pinward new PIN", "data-seal-length": "65",
		"data-seal-associated-data": "pinward-pin-1\nacme\n01OP\npiv-ab\n7",
	} {
		if attributes[name] != want {
			t.Errorf("%s is %q, want %q", name, attributes[name], want)
		}
	}
	for _, name := range []string{"rules", "differ", "insecure", "outdated", "failed", "met", "open"} {
		if attributes["data-text-"+name] == "" {
			t.Errorf("there is no text data-text-%s", name)
		}
	}
	var rules []string
	for _, m := range regexp.MustCompile(`<li data-rule="(\w+)"(?: data-value="(\w+)")?>`).FindAllStringSubmatch(form, -1) {
		rules = append(rules, strings.TrimSpace(m[1]+" "+m[2]))
	}
	want := []string{"minLength 6", "maxLength 8", "alphabet printable", "class digit", "class lower", "class upper", "class special", "sequential", "repeated", "maxRun 3", "constantDelta", "same"}
	if diff := cmp.Diff(want, rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	if !strings.Contains(form, "is &lt;b&gt;common&lt;/b&gt;") {
		t.Error("why the PIN was refused is not shown, or not escaped")
	}
}

// What is typed must not be sent by anything but the script.
func TestSealSendsNoPIN(t *testing.T) {
	form := sealForm(t, strictest, func(s *Seal) { s.Keypad = pinKeypad(strictest) })
	for _, input := range regexp.MustCompile(`<(?:input|button)[^>]*>`).FindAllString(form, -1) {
		typed := strings.Contains(input, "data-pin=") || strings.Contains(input, "data-key=")
		if typed && (strings.Contains(input, " name=") || strings.Contains(input, " value=")) {
			t.Errorf("%s would be sent", input)
		}
	}
	if !strings.Contains(form, "<button disabled>") {
		t.Error("without the script the form can be sent")
	}
	if strings.Count(form, `data-key="0"`) != 1 {
		t.Error("there is not one key 0")
	}
	if got := strings.Count(form, `inputmode="none"`); got != 2 {
		t.Errorf("with a keypad %d inputs keep the system's keyboard away, want 2", got)
	}
}

func TestKeypadCanTypeWhatIsRequired(t *testing.T) {
	for name, p := range map[string]pin.Policy{
		"digits": {MinLength: 6, MaxLength: 8, Alphabet: pin.Digits}, "letters": {MinLength: 6, MaxLength: 8, Alphabet: pin.Alphanumeric}, "everything": strictest,
	} {
		keys := "0" // is in the template
		for _, row := range pinKeypad(p).Rows {
			keys += strings.Join(row, "")
		}
		for class, some := range map[pin.Class]string{pin.Digit: "0123456789", pin.Lower: "a", pin.Upper: "Z", pin.Special: "!"} {
			needed := class == pin.Digit
			for _, c := range p.RequireClasses {
				needed = needed || c == class
			}
			for _, c := range some {
				if needed && !strings.ContainsRune(keys, c) {
					t.Errorf("%s: there is no key %c", name, c)
				}
			}
		}
		if p.Alphabet == pin.Digits && strings.Trim(keys, "0123456789") != "" {
			t.Errorf("%s: keys type what is refused: %s", name, keys)
		}
	}
}

func TestSealedPINOfAForm(t *testing.T) {
	key, err := relay.NewSealingKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := relay.SealPIN(key.PublicKey().Bytes(), relay.Binding{}, secret.New("735912"))
	if err != nil {
		t.Fatal(err)
	}
	good := `{"encapsulated":"` + hex.EncodeToString(sealed.Encapsulated) + `","ciphertext":"` + hex.EncodeToString(sealed.Ciphertext) + `"}`
	for name, test := range map[string]struct{ sent, code string }{
		"sealed":          {good, ""},
		"nothing":         {"", "missing"},
		"no JSON":         {"735912", "malformed"},
		"no hex":          {`{"encapsulated":"xx","ciphertext":"yy"}`, "malformed"},
		"of wrong length": {`{"encapsulated":"ab","ciphertext":"cd"}`, "malformed"},
	} {
		r := httptest.NewRequest("POST", "/console/kiosk/pin", strings.NewReader(url.Values{"sealed": {test.sent}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		v := &view{r: r}
		if err := v.readForm(); err != nil {
			t.Fatal(err)
		}
		got, err := v.sealedPIN()
		code := ""
		if invalid, ok := err.(*problem.InvalidError); ok {
			code = invalid.Violations[0].Code
			if strings.Contains(err.Error(), "735912") {
				t.Errorf("%s: the error repeats what was sent", name)
			}
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if code != test.code {
			t.Errorf("%s: the error is %q, want %q", name, code, test.code)
		}
		if test.code == "" {
			if diff := cmp.Diff(sealed, got); diff != "" {
				t.Errorf("sealed PIN (-want +got):\n%s", diff)
			}
		}
	}
}
