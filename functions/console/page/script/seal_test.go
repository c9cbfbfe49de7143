package script

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"math/bits"
	mrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/infra/testserver/browser"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

func TestMain(m *testing.M) { os.Exit(browser.Main(m)) }

// csp is the policy that pages have.
const csp = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// site serves pages and the scripts, and keeps what it is sent.
type site struct {
	url string

	mu   sync.Mutex
	sent []request
}

type request struct {
	method, uri, body string
	form              map[string][]string
}

// serve serves pages by their paths, and the assets under /assets. What is posted is kept,
// and answered with "Received."
func serve(t *testing.T, pages map[string]string) *site {
	t.Helper()
	s := &site{}
	mux := http.NewServeMux()
	mux.Handle("GET /assets/", http.StripPrefix("/assets/", http.FileServer(http.Dir("../assets"))))
	for path, body := range pages {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, body) })
	}
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "<!doctype html><title>Received</title><p>Received.</p>")
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		_ = r.ParseForm()
		s.mu.Lock()
		s.sent = append(s.sent, request{r.Method, r.RequestURI, string(body), r.PostForm})
		s.mu.Unlock()
		w.Header().Set("Content-Security-Policy", csp)
		if !strings.HasSuffix(r.URL.Path, ".js") {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// posts returns what was posted.
func (s *site) posts() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.sent), func(r request) bool { return r.method != "POST" })
}

const metas = `<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="htmx-config" content='{"allowEval":false,"includeIndicatorStyles":false,"historyCacheSize":0,"selfRequestsOnly":true}'>`

var sealedForm = template.Must(template.New("").Parse(`<form method="post" action="/pin" data-seal
	data-seal-public-key="{{.PublicKey}}" data-seal-info="{{.Info}}" data-seal-associated-data="{{.AssociatedData}}" data-seal-length="{{.Length}}"
	data-text-rules="The PIN does not meet these rules:" data-text-differ="The two PINs differ. Type both again."
	data-text-insecure="Not over TLS." data-text-outdated="This browser is too old." data-text-failed="It could not be sealed."
	data-text-met="met" data-text-open="not yet">
<noscript>JavaScript is needed for this step.</noscript>
<div data-seal-message role="alert" hidden></div>
<p><label for="new">New PIN</label> <input id="new" type="password" data-pin="new" autocomplete="off"></p>
<p><label for="again">New PIN again</label> <input id="again" type="password" data-pin="again" autocomplete="off"></p>
<ul>
<li data-rule="minLength" data-value="6">At least 6 characters</li>
<li data-rule="maxLength" data-value="8">At most 8 characters</li>
<li data-rule="alphabet" data-value="digits">Digits only</li>
<li data-rule="sequential">No sequence</li>
<li data-rule="repeated">No repetition</li>
<li data-rule="same">Twice the same</li>
</ul>
<p data-seal-live aria-live="polite"></p>
<input type="hidden" name="sealed"><input type="hidden" name="step" value="2">
<button disabled>Set the PIN</button>
</form>`))

// seals is what a page has of next.seal.
type seals struct {
	PublicKey, Info, AssociatedData string
	Length                          int
}

var binding = relay.Binding{Tenant: "acme", Operation: "01JDTX", Credential: "card <1> & \"2\"", Fence: 7}

func newKey(t *testing.T) (*ecdh.PrivateKey, seals) {
	t.Helper()
	key, err := relay.NewSealingKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key, seals{hex.EncodeToString(key.PublicKey().Bytes()), relay.PINInfo, string(binding.AssociatedData()), relay.PINLength}
}

func formFor(t *testing.T, s seals) string {
	t.Helper()
	var b strings.Builder
	if err := sealedForm.Execute(&b, s); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func document(scripts, body string) string {
	return `<!doctype html><html lang="en"><head>` + metas + `<title>New PIN</title>` + scripts + `</head><body><main><h1>New PIN</h1>` + body + `</main></body></html>`
}

const sealScript = `<script defer src="/assets/seal.js"></script>`

// opened returns the PIN that was sent.
func opened(t *testing.T, key *ecdh.PrivateKey, r request) string {
	t.Helper()
	var sealed relay.SealedPIN
	if err := json.Unmarshal([]byte(strings.Join(r.form["sealed"], "|")), &sealed); err != nil {
		t.Fatalf("sent %s: %v", r.body, err)
	}
	if err := sealed.Validate(); err != nil {
		t.Fatal(err)
	}
	text, err := relay.OpenPIN(key, binding, sealed)
	if err != nil {
		t.Fatal(err)
	}
	return text.Reveal()
}

// without fails if a PIN is in a text, in any form.
func without(t *testing.T, where, text, pin string) {
	t.Helper()
	for how, form := range testserver.Forms(pin) {
		if strings.Contains(text, string(form)) {
			t.Errorf("the PIN is in %s, %s", where, how)
		}
	}
}

func TestSealedForm(t *testing.T) {
	key, to := newKey(t)
	s := serve(t, map[string]string{"/": document(sealScript, formFor(t, to))})
	p := browser.New(t)
	p.Open(s.url)
	p.Wait(`!document.querySelector("button").disabled`)
	p.Axe()
	p.Fits()
	state := func() (met []string) {
		p.Eval(`[...document.querySelectorAll("[data-rule]")].filter((i) => i.dataset.met === "yes").map((i) => i.dataset.rule)`, &met)
		return met
	}

	// A rule that is not met: it is said, and nothing is sent; what was typed stays.
	p.Fill("New PIN", "7382")
	p.See("At least 6 characters not yet", "At most 8 characters met")
	p.Fill("New PIN again", "7382")
	if diff := cmp.Diff([]string{"maxLength", "alphabet", "sequential", "repeated", "same"}, state()); diff != "" {
		t.Errorf("met (-want +got):\n%s", diff)
	}
	p.Click("Set the PIN")
	p.See("The PIN does not meet these rules: At least 6 characters")
	var focus, said string
	p.Eval(`document.activeElement.id`, &focus)
	if focus != "new" || p.Value("New PIN") != "7382" {
		t.Errorf("the focus is on %q", focus)
	}
	p.Axe()

	// It is said what changes, to those who hear it.
	p.Fill("New PIN", "738264")
	p.Eval(`document.querySelector("[data-seal-live]").textContent`, &said)
	if said != "At least 6 characters: met. Twice the same: not yet" {
		t.Errorf("said %q", said)
	}

	// Two that differ: both go.
	p.Fill("New PIN again", "738265")
	p.Click("Set the PIN")
	p.See("The two PINs differ.")
	p.Eval(`document.activeElement.id`, &focus)
	if focus != "new" || p.Value("New PIN")+p.Value("New PIN again") != "" || len(state()) != 0 {
		t.Errorf("the focus is on %q, met %v", focus, state())
	}
	without(t, "the page", p.HTML(), "738264")
	if got := s.posts(); len(got) != 0 {
		t.Fatalf("sent %+v", got)
	}

	// The right way. The form is held where it is sent, to look at the page.
	p.Fill("New PIN", "738264")
	p.Fill("New PIN again", "738264")
	p.Eval(`(() => { const submit = HTMLFormElement.prototype.submit; HTMLFormElement.prototype.submit = function () { document.held = () => submit.call(this) } })()`, nil)
	p.Click("Set the PIN")
	p.Wait(`document.held`)
	without(t, "the page", p.HTML(), "738264")
	p.Eval(`document.held()`, nil)
	p.See("Received.")
	posts := s.posts()
	if len(posts) != 1 || opened(t, key, posts[0]) != "738264" || fmt.Sprint(posts[0].form["step"]) != "[2]" || len(posts[0].form) != 2 {
		t.Fatalf("sent %+v", posts)
	}
	for _, r := range s.sent {
		without(t, "a request", r.uri+" "+r.body, "738264")
	}

	// Back: the form is there, empty and ready.
	p.Back()
	p.Wait(`document.readyState === "complete" && !document.querySelector("button").disabled`)
	if got := p.Value("New PIN") + p.Value("New PIN again"); got != "" {
		t.Errorf("after going back there is %q", got)
	}
	without(t, "the page", p.HTML(), "738264")
}

// A form is sent by the enter key too, and as it is where nothing is held.
func TestSealedFormByEnter(t *testing.T) {
	key, to := newKey(t)
	s := serve(t, map[string]string{"/": document(sealScript, formFor(t, to))})
	p := browser.New(t)
	p.Open(s.url)
	p.Wait(`!document.querySelector("button").disabled`)
	p.Fill("New PIN", "738264")
	p.Fill("New PIN again", "")
	p.Type("738264\r")
	p.See("Received.")
	if posts := s.posts(); len(posts) != 1 || opened(t, key, posts[0]) != "738264" {
		t.Errorf("sent %+v", posts)
	}
}

// A form that htmx brings, into a page that htmx has taken over, is sealed all the same.
func TestSealedFormByHTMX(t *testing.T) {
	key, to := newKey(t)
	s := serve(t, map[string]string{
		"/":     document(`<script defer src="/assets/htmx.js"></script>`+sealScript, `<div hx-boost="true" id="here"><p>Not yet.</p><button type="button" hx-get="/form" hx-target="#here" hx-push-url="/later">Go on</button></div>`),
		"/form": formFor(t, to),
	})
	p := browser.New(t)
	p.Open(s.url)
	p.Click("Go on")
	p.Fill("New PIN", "738264")
	p.Fill("New PIN again", "738264")
	p.Click("Set the PIN")
	p.See("Received.")
	if posts := s.posts(); len(posts) != 1 || opened(t, key, posts[0]) != "738264" {
		t.Errorf("sent %+v", posts)
	}
	// htmx keeps no copy of a page for the back button.
	var kept string
	p.Eval(`JSON.stringify([{ ...localStorage }, { ...sessionStorage }])`, &kept)
	if strings.Contains(kept, "history-cache") {
		t.Errorf("htmx has kept %s", kept)
	}
}

func TestSealedFormWithoutScript(t *testing.T) {
	_, to := newKey(t)
	s := serve(t, map[string]string{"/": document(sealScript, formFor(t, to))})
	p := browser.New(t)
	p.DisableScript()
	p.Open(s.url)
	p.See("JavaScript is needed for this step.")
	p.Fill("New PIN", "738264")
	p.Fill("New PIN again", "738264")
	p.Type("\r")
	p.ClickOn("button")
	if posts := s.posts(); len(posts) != 0 {
		t.Errorf("sent %+v", posts)
	}
	// Even a form that is sent somehow has no PIN in it.
	p.Eval(`document.querySelector("form").submit()`, nil)
	p.See("Received.")
	for _, r := range s.sent {
		without(t, "a request", r.uri+" "+r.body, "738264")
	}
}

// Where a browser cannot seal, it says so before anybody has typed.
func TestCannotSeal(t *testing.T) {
	_, to := newKey(t)
	broken := to
	broken.PublicKey = strings.Repeat("00", 32) // of low order
	for name, test := range map[string]struct {
		before string
		to     seals
		want   string
	}{
		"outdated": {`SubtleCrypto.prototype.generateKey = () => Promise.reject(new DOMException("no", "NotSupportedError"))`, to, "This browser is too old."},
		"insecure": {`Object.defineProperty(crypto, "subtle", { value: undefined })`, to, "Not over TLS."},
		"key":      {``, broken, "It could not be sealed."},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, map[string]string{"/before.js": test.before, "/": document(`<script src="/before.js"></script>`+sealScript, formFor(t, test.to))})
			p := browser.New(t)
			p.Open(s.url)
			if name == "key" {
				p.Expect("the PIN could not be sealed")
				p.Fill("New PIN", "738264")
				p.Fill("New PIN again", "738264")
				p.Click("Set the PIN")
			}
			p.See(test.want)
			var disabled bool
			p.Eval(`document.querySelector("button").disabled`, &disabled)
			if disabled != (name != "key") {
				t.Errorf("the button is disabled: %t", disabled)
			}
			without(t, "the page", p.HTML(), "738264")
			if len(s.posts()) != 0 {
				t.Errorf("sent %+v", s.posts())
			}
		})
	}
}

// tools opens a page in which testdata/hpke.js has run.
func tools(t *testing.T) *browser.Page {
	t.Helper()
	script := string(bundle(t, filepath.Join("testdata", "hpke.js"), ""))
	p := browser.New(t)
	p.Open(serve(t, map[string]string{"/": document("", "")}).url)
	p.Eval(script+";0", nil)
	return p
}

func js(t *testing.T, v any) string {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// What the browser seals Go opens, and the other way round.
func TestHPKE(t *testing.T) {
	p := tools(t)
	key, to := newKey(t)
	for _, text := range []string{"1", "738264", "pässword", "名前🔑", strings.Repeat("9", 64)} {
		var out string
		p.Eval(fmt.Sprintf(`sealPIN(%s, %s, %d)`, js(t, text), js(t, map[string]string{
			"publicKey": to.PublicKey, "info": to.Info, "associatedData": to.AssociatedData}), to.Length), &out)
		if got := opened(t, key, request{form: map[string][]string{"sealed": {out}}}); got != text {
			t.Errorf("%q is opened as %q", text, got)
		}

		sealed, err := relay.SealPIN(key.PublicKey().Bytes(), binding, secret.New(text))
		if err != nil {
			t.Fatal(err)
		}
		open := map[string]string{"key": hex.EncodeToString(key.Bytes()), "encapsulated": hex.EncodeToString(sealed.Encapsulated),
			"info": hex.EncodeToString([]byte(relay.PINInfo)), "associatedData": hex.EncodeToString(binding.AssociatedData()),
			"ciphertext": hex.EncodeToString(sealed.Ciphertext)}
		p.Eval(`open(`+js(t, open)+`)`, &out)
		plain := append([]byte{byte(len(text))}, text...)
		if want := hex.EncodeToString(append(plain, make([]byte, relay.PINLength-len(plain))...)); out != want {
			t.Errorf("the browser opens %s, want %s", out, want)
		}
		open["associatedData"] += "00"
		p.Eval(`open(`+js(t, open)+`).catch((e) => "refused")`, &out)
		if out != "refused" {
			t.Errorf("the browser opens what was sealed for something else: %s", out)
		}
	}
	for _, text := range []string{"", strings.Repeat("9", 65), strings.Repeat("ä", 33)} {
		var fits bool
		p.Eval(fmt.Sprintf(`padded(%s, %d) !== null`, js(t, text), relay.PINLength), &fits)
		if fits {
			t.Errorf("%d bytes are sealed", len(text))
		}
	}
}

// RFC 9180, appendix A.1.1, both ways.
func TestVector(t *testing.T) {
	p := tools(t)
	vector := map[string]string{
		"key":                "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8", // skRm
		"publicKey":          "3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d", // pkRm
		"ephemeralKey":       "52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736", // skEm
		"ephemeralPublicKey": "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431", // pkEm
		"encapsulated":       "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
		"info":               "4f6465206f6e2061204772656369616e2055726e",
		"associatedData":     "436f756e742d30",
		"plaintext":          "4265617574792069732074727574682c20747275746820626561757479",
		"ciphertext":         "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a",
	}
	var got string
	p.Eval(`open(`+js(t, vector)+`)`, &got)
	if got != vector["plaintext"] {
		t.Errorf("opened %s", got)
	}
	p.Eval(`sealWith(`+js(t, vector)+`)`, &got)
	if got != vector["encapsulated"]+" "+vector["ciphertext"] {
		t.Errorf("sealed %s", got)
	}
}

// The rules that tick off while somebody types are those of shared/pin.
func TestRules(t *testing.T) {
	policy := pin.Default()
	policy.MinLength, policy.MaxLength, policy.Alphabet = 5, 8, pin.Alphanumeric
	policy.RequireClasses = []pin.Class{pin.Upper}
	policy.MaxRun, policy.DisallowConstantDelta = 3, true
	policy.Blocklist, policy.DisallowContext = pin.BlocklistNone, false
	asked := [][2]string{{"minLength", "5"}, {"maxLength", "8"}, {"alphabet", "alphanumeric"}, {"class", "upper"}, {"sequential", ""}, {"repeated", ""}, {"maxRun", "3"}, {"constantDelta", ""}}
	codes := map[string]string{pin.CodeTooShort: "minLength", pin.CodeTooLong: "maxLength", pin.CodeNotInAlphabet: "alphabet", pin.CodeClassMissing: "class",
		pin.CodeSequential: "sequential", pin.CodeRepeated: "repeated", pin.CodeRunTooLong: "maxRun", pin.CodeConstantDelta: "constantDelta"}

	// Few characters, near each other, so that rules are broken often.
	random := mrand.New(mrand.NewPCG(1, 2))
	pins := []string{"12345", "98765", "90123", "10987", "abcde", "ABCDE", "ZYXWV", "11111", "121212", "13579", "aB3$x", "a b", "ä1234", "🔑🔑🔑🔑🔑", "A", "1", "@ABC[", "/0129:"}
	for range 5000 {
		var b strings.Builder
		letters := []string{"0123456789", "0129", "abcABC", "12", "0123456789", "aB1$", "xyzXYZ89"}[random.IntN(7)]
		for range 1 + random.IntN(9) {
			b.WriteByte(letters[random.IntN(len(letters))])
		}
		pins = append(pins, b.String())
	}
	p := tools(t)
	var got [][]string
	p.Eval(`broken(`+js(t, pins)+`, `+js(t, asked)+`)`, &got)
	var seen uint
	for i, text := range pins {
		var want []string
		foreign := false
		for _, v := range policy.Check(secret.New(text), pin.Context{}) {
			want = append(want, codes[v.Code])
			foreign = foreign || v.Code == pin.CodeNotInAlphabet && strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
			seen |= 1 << slices.IndexFunc(asked, func(a [2]string) bool { return a[0] == codes[v.Code] })
		}
		have := got[i]
		if foreign { // the policy looks no further
			have = slices.DeleteFunc(have, func(rule string) bool { return !slices.Contains(asked[:3], [2]string{rule, valueOf(asked, rule)}) })
		}
		slices.Sort(want)
		slices.Sort(have)
		if !slices.Equal(want, have) {
			t.Errorf("%q breaks %v, in the browser %v", text, want, have)
		}
	}
	if bits.OnesCount(seen) != len(asked) {
		t.Errorf("only the rules %b were broken", seen)
	}
}

func valueOf(asked [][2]string, rule string) string {
	for _, a := range asked {
		if a[0] == rule {
			return a[1]
		}
	}
	return ""
}
