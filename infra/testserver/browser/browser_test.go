package browser

import (
	"errors"
	"fmt"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

const csp = "default-src 'none'; script-src 'self'; img-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'"

// serve serves pages, by their paths. /echo answers with what it was sent.
func serve(t *testing.T, pages map[string]string) string {
	t.Helper()
	mux := http.NewServeMux()
	for path, body := range pages {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			body := body
			w.Header().Set("Content-Security-Policy", csp)
			if strings.HasSuffix(path, ".js") {
				w.Header().Set("Content-Type", "text/javascript")
			} else if strings.HasSuffix(path, ".css") {
				w.Header().Set("Content-Type", "text/css")
			} else {
				w.Header().Set("Content-Type", "text/html; charset=utf-8")
				body = strings.Replace(body, "<title>", `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>`, 1)
			}
			_, _ = io.WriteString(w, body)
		})
	}
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseMultipartForm(1 << 20)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintln(w, "language", r.Header.Get("Accept-Language"), "cookie", r.Header.Get("Cookie"), "form", r.Form)
		if r.MultipartForm != nil && len(r.MultipartForm.File["csv"]) > 0 {
			_, _ = fmt.Fprintln(w, "file", r.MultipartForm.File["csv"][0].Filename)
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

const form = `<title>A form</title><main><h1>A form</h1><form method="post" action="/echo" enctype="multipart/form-data">
<label for="n">Name</label> <input id="n" name="name" value="what is there">
<label for="a">Name, again</label> <input id="a" name="again" value="to be emptied">
<label>PIN <input type="password" name="pin"></label>
<label>Notes <textarea name="notes"></textarea></label>
<label>Kind <select name="kind"><option value="1">the  first</option><option value="2">the second</option></select></label>
<label>Day <input type="date" name="day"></label>
<label>Time <input type="time" name="time"></label>
<label>How many <input type="number" name="many"></label>
<label><input type="checkbox" name="sure" value="yes"> I am sure</label>
<fieldset><legend>Colour</legend><label><input type="radio" name="colour" value="r"> Red</label> <label><input type="radio" name="colour" value="b"> Blue</label></fieldset>
<label>File <input type="file" name="csv"></label>
<details><summary>More</summary><label>Rare <input name="rare"></label></details>
<button name="do" value="save">Save</button> <button name="do" value="delete">Delete</button>
</form></main>`

func TestForm(t *testing.T) {
	url := serve(t, map[string]string{"/form": form})
	file := filepath.Join(t.TempDir(), "people.csv")
	if err := os.WriteFile(file, []byte("name"), 0o600); err != nil {
		t.Fatal(err)
	}
	fill := func(p *Page) {
		p.Open(url + "/form")
		p.Fill("Name", `Zoë "العربية" 名`)
		p.Fill("Name, again", "")
		p.Fill("PIN", "738264")
		p.Fill("Notes", "two\nlines")
		p.Fill("Kind", "the second")
		p.Fill("Day", "2026-11-28")
		p.Fill("Time", "14:05")
		p.Fill("How many", "12")
		p.Click("I am sure")
		p.Click("Blue")
		p.Upload("input[type=file]", file)
		p.Click("More")
		p.Fill("Rare", "seen")
	}
	const want = `form map[again:[] colour:[b] day:[2026-11-28] do:[save] kind:[2] many:[12] name:[Zoë "العربية" 名] notes:[two lines] pin:[738264] rare:[seen] sure:[yes] time:[14:05]] file people.csv`
	t.Run("with scripts", func(t *testing.T) {
		p := New(t)
		fill(p)
		if got := p.Value("Name"); got != `Zoë "العربية" 名` {
			t.Errorf("the name is %q", got)
		}
		if !strings.Contains(p.HTML(), `data-value-now="738264"`) {
			t.Error("HTML does not show what was typed")
		}
		p.Click("Save")
		if got := fold(p.Text()); !strings.Contains(got, want) {
			t.Errorf("sent %s", got)
		}
		p.Back()
		p.See("A form")
	})
	t.Run("without", func(t *testing.T) {
		p := New(t)
		p.DisableScript()
		fill(p)
		p.Click("Save")
		if got := fold(p.Text()); !strings.Contains(got, want) {
			t.Errorf("sent %s", got)
		}
	})
	t.Run("by keys", func(t *testing.T) {
		p := New(t)
		p.Open(url + "/form")
		p.Type(kb.Tab + "Ada" + kb.Tab + kb.Tab + "1234" + kb.Enter)
		p.See("name:[Ada]", "pin:[1234]", "do:[save]")
	})
}

// What comes later is waited for: a page after the one that is there, and what scripts do.
func TestWaiting(t *testing.T) {
	url := serve(t, map[string]string{
		"/": `<title>Slow</title><p>Wait.</p><button id="b" disabled>Go</button><script defer src="/late.js"></script>`,
		"/late.js": `setTimeout(() => { const b = document.getElementById("b"); b.disabled = false;
			b.onclick = () => setTimeout(() => { document.querySelector("p").textContent = "Done."; b.textContent = "On" }, 300) }, 300)`,
	})
	p := New(t)
	p.Open(url)
	p.Click("Go")
	p.See("Done.")
	p.Gone("Wait.")
	p.ClickOn("#b")
	p.Wait(`document.querySelector("p").textContent === "Done."`)
}

func TestWindows(t *testing.T) {
	url := serve(t, map[string]string{"/": `<title>Two</title><p>Two</p><script src="/set.js"></script>`, "/set.js": `document.cookie = "a=1"`})
	one, two := New(t), New(t)
	one.Open(url)
	one.Open(url + "/echo")
	one.See("cookie a=1", "language en-GB")
	two.Language("de")
	two.Open(url + "/echo")
	two.See("language de")
	if strings.Contains(two.Text(), "a=1") {
		t.Error("two windows share their cookies")
	}
	if one.URL() != url+"/echo" {
		t.Errorf("it is at %s", one.URL())
	}
}

func TestLooks(t *testing.T) {
	url := serve(t, map[string]string{
		"/":          `<title>Colours</title><link rel="stylesheet" href="/style.css"><h1>Colours</h1><p>x</p>`,
		"/style.css": `body { background: rgb(255, 255, 255); margin: 0 } p { height: 3000px } @media (prefers-color-scheme: dark) { body { background: rgb(0, 0, 0) } }`,
	})
	p := New(t)
	p.Open(url)
	for _, test := range []struct {
		width, height, least int
		dark                 bool
		colour               uint32
	}{
		{800, 600, 600, false, 0xffff},
		{375, 0, 3000, true, 0},
	} {
		file := filepath.Join(t.TempDir(), "shot.png")
		p.Screenshot(file, test.width, test.height, test.dark)
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		picture, err := png.Decode(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		size := picture.Bounds().Size()
		red, _, _, _ := picture.At(size.X-1, size.Y-1).RGBA()
		if size.X != test.width || size.Y < test.least || test.height > 0 && size.Y != test.height || red != test.colour {
			t.Errorf("the picture is %v, %#x in its corner; want %+v", size, red, test)
		}
	}
	var width int
	var dark bool
	p.Eval(`innerWidth`, &width)
	p.Eval(`matchMedia("(prefers-color-scheme: dark)").matches`, &dark)
	if width != 1280 || dark {
		t.Errorf("after a picture the window is %d wide, dark %t", width, dark)
	}
	p.Zoom200()
	p.Dark(true)
	p.Eval(`innerWidth * devicePixelRatio`, &width)
	p.Eval(`matchMedia("(prefers-color-scheme: dark)").matches`, &dark)
	if width != 1280 || !dark {
		t.Errorf("at 200 %% the window is %d pixels wide, dark %t", width, dark)
	}
}

// recorder is a test that notes how it fails.
type recorder struct {
	testing.TB
	failures []string
	cleanups []func()
}

var errFatal = errors.New("fatal")

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}
func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...); panic(errFatal) }

// failures runs a test and returns how it fails.
func failures(t *testing.T, test func(p *Page)) []string {
	t.Helper()
	r := &recorder{TB: t}
	func() {
		defer func() {
			if v := recover(); v != nil && v != errFatal {
				panic(v)
			}
		}()
		test(New(r))
	}()
	for _, f := range r.cleanups {
		f()
	}
	return r.failures
}

func TestFailures(t *testing.T) {
	url := serve(t, map[string]string{
		"/good":      `<title>Good</title><main><h1>Good</h1><button>Press</button><p>Text</p></main>`,
		"/csp":       `<title>Inline</title><h1>Inline</h1><p style="color: red">x</p>`,
		"/inline":    `<title>Inline</title><h1>Inline</h1><script>document.title = "ran"</script>`,
		"/throws":    `<title>Throws</title><h1>Throws</h1><script src="/throws.js"></script>`,
		"/throws.js": `console.error("oh", 1); Promise.reject(new Error("nobody waits")); throw new Error("thrown")`,
		"/missing":   `<title>Missing</title><h1>Missing</h1><script src="/nowhere.js"></script>`,
		"/wide":      `<title>Wide</title><main><h1>Wide</h1><pre>` + strings.Repeat("wide", 200) + `</pre></main>`,
		"/logo.png":  `not a picture`,
		"/nameless":  `<title>Nameless</title><main><h1>Nameless</h1><input><img src="/logo.png"></main>`,
	})
	for _, test := range []struct {
		name string
		do   func(p *Page)
		want []string
	}{
		{"nothing", func(p *Page) { p.Open(url + "/good"); p.Fits(); p.Axe(); p.Click("Press"); p.See("Text") }, nil},
		{"inline style", func(p *Page) { p.Open(url + "/csp") }, []string{"security: "}},
		{"inline script", func(p *Page) { p.Open(url + "/inline") }, []string{"security: "}},
		{"scripts", func(p *Page) { p.Open(url + "/throws") }, []string{"console: oh 1", "thrown", "nobody waits"}},
		{"expected", func(p *Page) {
			p.Expect("thrown")
			p.Expect("oh")
			p.Expect("nobody")
			p.Expect("something else")
			p.Open(url + "/throws")
		}, []string{`did not tell of "something else"`}},
		{"missing script", func(p *Page) { p.Open(url + "/missing") }, []string{"/nowhere.js: 404", "MIME type"}},
		{"wide", func(p *Page) { p.Open(url + "/wide"); p.Fits() }, []string{"<pre>", "<pre>"}},
		{"nameless", func(p *Page) { p.Open(url + "/nameless"); p.Axe() }, []string{"Images must have", "Form elements must have labels"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := failures(t, test.do)
			all := strings.Join(got, "\n")
			if len(got) != len(test.want) {
				t.Errorf("%d failures, want %d:\n%s", len(got), len(test.want), all)
			}
			for _, want := range test.want {
				if !strings.Contains(all, want) {
					t.Errorf("no failure says %q:\n%s", want, all)
				}
			}
		})
	}
}

// What cannot be done ends the test, and says what could be.
func TestNotThere(t *testing.T) {
	url := serve(t, map[string]string{"/": `<title>Here</title><h1>Here</h1><button>Save draft</button><button>Save all</button><button disabled>Send</button><label>Kind <select><option>one</option></select></label>`})
	for name, test := range map[string]struct {
		do   func(p *Page)
		want string
	}{
		"missing":   {func(p *Page) { p.Click("Delete") }, `button "Save draft"`},
		"ambiguous": {func(p *Page) { p.Click("Save") }, "there are several"},
		"disabled":  {func(p *Page) { p.Click("Send") }, "it is disabled"},
		"option":    {func(p *Page) { p.Fill("Kind", "two") }, "there are only one"},
		"text":      {func(p *Page) { p.See("There") }, `see "There"`},
		"selector":  {func(p *Page) { p.ClickOn("#there") }, "there is none"},
	} {
		t.Run(name, func(t *testing.T) {
			got := failures(t, func(p *Page) {
				p.Open(url)
				defer func(before time.Duration) { patience = before }(patience)
				patience = 100 * time.Millisecond
				test.do(p)
			})
			if len(got) != 1 || !strings.Contains(got[0], test.want) || !strings.Contains(got[0], "which shows\nHere") {
				t.Errorf("fails with %q, want %q", got, test.want)
			}
		})
	}
}
