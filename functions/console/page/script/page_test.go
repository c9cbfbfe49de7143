package script

import (
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/testserver/browser"
)

const keypad = `<div role="group" aria-label="Keypad">
<button type="button" data-key="1">1</button> <button type="button" data-key="2">2</button> <button type="button" data-key="3">3</button>
<button type="button" data-key="6">6</button> <button type="button" data-key="7">7</button> <button type="button" data-key="8">8</button>
<button type="button" data-key="4">4</button> <button type="button" data-key="back" aria-label="Delete">⌫</button> <button type="button" data-key="next">Next</button></div>`

func TestKeypad(t *testing.T) {
	key, to := newKey(t)
	s := serve(t, map[string]string{"/": document(sealScript+`<script defer src="/assets/keypad.js"></script>`, formFor(t, to)+keypad)})
	p := browser.New(t)
	p.Open(s.url)
	p.Wait(`!document.querySelector("form button").disabled`)
	p.Axe()
	press := func(keys ...string) {
		t.Helper()
		for _, k := range keys {
			p.Click(k)
		}
	}
	press("7", "3", "8", "1", "Delete", "2") // no input has been used: the first is meant
	if got := p.Value("New PIN"); got != "7382" {
		t.Fatalf("typed %q", got)
	}
	press("6", "4")
	p.See("At least 6 characters met") // rules tick
	press("Next", "7", "3", "8", "2", "6", "4")
	if got := p.Value("New PIN again"); got != "738264" {
		t.Fatalf("typed %q", got)
	}
	p.Eval(`document.activeElement.setSelectionRange(0, 3)`, nil) // what is selected is replaced
	press("8", "Delete", "7", "3", "8")
	press("Next")
	p.See("Received.")
	if posts := s.posts(); len(posts) != 1 || opened(t, key, posts[0]) != "738264" {
		t.Errorf("sent %+v", posts)
	}
}

func TestKeypadForCode(t *testing.T) {
	s := serve(t, map[string]string{"/": document(`<script defer src="/assets/keypad.js"></script>`,
		`<form method="post" action="/code"><label>Code <input name="code" data-code maxlength="3" inputmode="none" autocomplete="off"></label> <button>Go on</button></form>`+keypad)})
	p := browser.New(t)
	p.Open(s.url)
	for _, k := range []string{"1", "2", "3", "4", "Next"} {
		p.Click(k)
	}
	p.See("Received.")
	if posts := s.posts(); len(posts) != 1 || posts[0].body != "code=123" {
		t.Errorf("sent %+v", posts)
	}
}

// A kiosk that nobody touches forgets, and leaves nothing to go back to.
func TestIdle(t *testing.T) {
	page := document(`<script defer src="/assets/keypad.js"></script>`, `<form><label>Code <input data-code></label> <button>Go on</button></form>`)
	s := serve(t, map[string]string{
		"/":      document("", `<a href="/kiosk">Begin</a>`),
		"/kiosk": strings.Replace(page, "<body>", `<body data-idle="60" data-idle-to="/start">`, 1),
		"/start": document("", `<p>Insert your card.</p>`),
	})
	p := browser.New(t)
	p.Open(s.url)
	p.Click("Begin")
	p.Fill("Code", "738264")
	p.Eval(`(() => {
		document.body.dataset.idle = "0.5";
		let key;
		addEventListener("keydown", () => { key = performance.now() }, true);
		addEventListener("pagehide", () => {
			sessionStorage.left = document.querySelector("input").value || "nothing";
			sessionStorage.waited = performance.now() - key;
		});
	})()`, nil)
	p.Type("123") // each key begins the time anew
	p.See("Insert your card.")
	var left string
	var waited float64
	p.Eval(`sessionStorage.left`, &left)
	p.Eval(`Number(sessionStorage.waited)`, &waited)
	if left != "nothing" || waited < 498 {
		t.Errorf("left %q behind, %.1f ms after the last key", left, waited)
	}
	p.Back()
	p.Wait(`location.pathname === "/"`)
}

func TestCountdown(t *testing.T) {
	s := serve(t, map[string]string{"/": document(`<script defer src="/assets/page.js"></script>`,
		`<p>A: <time id="a" data-countdown="2020-01-01T10:03:00Z" data-now="2020-01-01T10:00:00Z">3:00</time></p>
		<p>B: <time id="b" data-countdown="2020-01-01T11:00:01.5+01:00" data-now="2020-01-01T10:00:00Z">0:01</time></p>
		<p>C: <time id="c" data-countdown="`+time.Now().Add(-time.Hour).Format(time.RFC3339)+`">0:01</time></p>`)})
	p := browser.New(t)
	p.Open(s.url)
	p.Eval(`addEventListener("over", (e) => document.over = (document.over ?? "") + e.target.id)`, nil)
	p.See("C: 0:00")
	p.See("B: 0:00")
	p.Wait(`document.over === "b"`)
	p.Wait(`/^2:[0-5][0-9]$/.test(document.getElementById("a").textContent)`)
}

func TestCopy(t *testing.T) {
	s := serve(t, map[string]string{"/": document(`<script defer src="/assets/page.js"></script>`,
		`<p id="answer">  483 920 </p><button type="button" data-copy="#answer" data-copied="Copied." data-uncopied="Copy it by hand: Ctrl+C.">Copy</button> <span role="status"></span>`)})
	p := browser.New(t)
	p.Open(s.url)
	p.Axe()
	p.Eval(`Object.defineProperty(navigator.clipboard, "writeText", { configurable: true, value: (text) => { document.copied = text; return Promise.resolve() } })`, nil)
	p.Click("Copy")
	p.See("Copied.")
	p.Wait(`document.copied === "483 920"`)
	p.Eval(`Object.defineProperty(navigator.clipboard, "writeText", { value: () => Promise.reject(new Error("no")) })`, nil)
	p.Click("Copy")
	p.See("Copy it by hand")
	p.Wait(`getSelection().toString().trim() === "483 920"`)
}
