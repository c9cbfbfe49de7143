// Package browser drives Chromium, for tests of pages. It finds things as people do who
// see or hear a page: by their labels, as the accessibility tree has them. Whatever it does
// waits until it can be done. A test fails, too, when its pages write an error to the
// console, break their Content-Security-Policy, or load something that is not there.
package browser

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/pinward/pinward/infra/testserver"
)

// limit is how long one command to the browser may take, and patience how long a page may
// to become what is waited for, on a slow machine that does much else.
const limit = time.Minute

var patience = time.Minute

// process is the one browser of a test binary, from the first New on.
var process struct {
	sync.Mutex
	started bool
	ctx     context.Context
	end     context.CancelFunc
	err     error
}

// Main runs a package's tests, and then ends the browser that they have used:
//
//	func TestMain(m *testing.M) { os.Exit(browser.Main(m)) }
func Main(m *testing.M) int {
	defer func() {
		if process.end != nil {
			process.end()
		}
	}()
	return m.Run()
}

// Need skips the test, or fails it in CI, if no Chromium is installed. With the race detector
// it skips: what the browser does is another process's, `make test` runs the same test, and
// what the pages do at the same time is tested without it.
func Need(tb testing.TB) {
	tb.Helper()
	if testserver.Raced {
		tb.Skip("left to the run without the race detector")
	}
	_, err := executable()
	testserver.Need(tb, err)
}

func executable() (string, error) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("chromium is not installed: infra/testserver/browser/install.sh installs it, as root")
}

// start starts the browser, with an empty profile, if it does not run.
func start() (context.Context, error) {
	process.Lock()
	defer process.Unlock()
	if process.started {
		return process.ctx, process.err
	}
	process.started = true
	path, err := executable()
	if err != nil {
		process.err = err
		return nil, err
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path),
		chromedp.NoSandbox, // CI is root
		chromedp.Flag("disable-gpu", true),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
	)
	allocator, _ := chromedp.NewExecAllocator(context.Background(), options...)
	process.ctx, process.end = chromedp.NewContext(allocator)
	process.err = chromedp.Do(process.ctx)
	return process.ctx, process.err
}

// Page is a window of a browser that nobody has used: without cookies and history, 1280 by
// 800 pixels, light, in British English. A method that cannot do what it is told ends the
// test, and says what the page was.
type Page struct {
	tb  testing.TB
	ctx context.Context

	mu       sync.Mutex
	loading  bool
	leave    func() // called when loading begins
	faults   []string
	expected []string

	width, height int
	scale         float64
	dark          bool
	scriptless    bool
}

// New opens a window, which is closed when the test ends.
func New(tb testing.TB) *Page {
	tb.Helper()
	Need(tb)
	root, err := start()
	if err != nil {
		tb.Fatalf("start chromium: %v", err)
	}
	p := &Page{tb: tb, leave: func() {}, width: 1280, height: 800, scale: 1}
	ctx, cancel := chromedp.NewContext(root, chromedp.WithNewBrowserContext(), chromedp.WithListener(p.hear))
	p.ctx = ctx
	tb.Cleanup(func() {
		tb.Helper()
		cancel()
		p.report()
	})
	if err := chromedp.Do(ctx); err != nil {
		tb.Fatalf("open a window: %v", err)
	}
	// Nobody else's window takes the focus.
	call(p, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	p.Language("en-GB")
	p.emulate()
	return p
}

// call sends one command to the browser, and ends the test if it fails.
func call[P, R any](p *Page, command cdp.Command[P, R], params P) R {
	p.tb.Helper()
	result, err := try(p, command, params)
	if err != nil {
		p.tb.Fatalf("%s: %v", command.Method, err)
	}
	return result
}

func try[P, R any](p *Page, command cdp.Command[P, R], params P) (R, error) {
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	return within(ctx, command, params)
}

func within[P, R any](ctx context.Context, command cdp.Command[P, R], params P) (R, error) {
	return chromedp.Run(ctx, func(ctx context.Context, t *chromedp.Target) (R, error) {
		return cdp.Call(ctx, t, command, params)
	})
}

// hear takes in what the browser tells. It must not call the browser.
func (p *Page) hear(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fault := func(format string, args ...any) { p.faults = append(p.faults, fmt.Sprintf(format, args...)) }
	switch e := event.(type) {
	case *page.EventFrameStartedLoading:
		p.loading = true
		p.leave()
	case *page.EventFrameStoppedLoading:
		p.loading = false
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if thrown := e.ExceptionDetails.Exception; thrown != nil {
			text += " " + thrown.Description + string(thrown.Value)
		}
		fault("script: %s", text)
	case *runtime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "assert" {
			var words []string
			for _, a := range e.Args {
				words = append(words, cmp.Or(strings.Trim(string(a.Value), `"`), a.Description))
			}
			fault("console: %s", strings.Join(words, " "))
		}
	case *log.EventEntryAdded:
		// What was answered is told by EventResponseReceived.
		if e.Entry.Level == "error" && e.Entry.Source != "network" {
			fault("%s: %s", e.Entry.Source, e.Entry.Text)
		}
	case *network.EventResponseReceived:
		// A page that says what is wrong with a form may well be a 422, but not a script.
		part := e.Type != network.ResourceTypeDocument && e.Type != network.ResourceTypeXHR && e.Type != network.ResourceTypeFetch
		icon := strings.HasSuffix(e.Response.URL, "/favicon.ico") // asked for, whatever the page says
		if status := e.Response.Status; status >= 500 || status >= 400 && part && !icon {
			fault("%s: %d", e.Response.URL, status)
		}
	}
}

// Expect says that the pages will write an error that contains that text, which then is no
// fault; but it is one if they do not.
func (p *Page) Expect(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expected = append(p.expected, text)
}

func (p *Page) report() {
	p.tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, want := range p.expected {
		if !slices.ContainsFunc(p.faults, func(f string) bool { return strings.Contains(f, want) }) {
			p.tb.Errorf("the browser did not tell of %q", want)
		}
	}
	for _, f := range p.faults {
		if !slices.ContainsFunc(p.expected, func(want string) bool { return strings.Contains(f, want) }) {
			p.tb.Errorf("the browser tells of %s", f)
		}
	}
}

// until waits for something: ok returns nil once it is so, and else what is amiss.
func (p *Page) until(what string, ok func() error) {
	p.tb.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		if p.ctx.Err() != nil || time.Now().After(deadline) {
			p.fatal("%s: %v", what, err)
		}
		<-tick.C
	}
}

// fatal ends the test and says where it was.
func (p *Page) fatal(format string, args ...any) {
	p.tb.Helper()
	at := "nowhere"
	var shown struct{ URL, Text string }
	if p.eval(`({URL: location.href, Text: document.body?.innerText ?? ""})`, &shown) == nil {
		at = shown.URL + ", which shows\n" + shown.Text
	}
	p.tb.Fatalf("%s\nat %s", fmt.Sprintf(format, args...), at)
}

// eval evaluates JavaScript, even where a policy or DisableScript lets no page do so, waits
// for a promise, and stores its value in into, if that is not nil.
func (p *Page) eval(script string, into any) error {
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	return evaluate(ctx, script, into)
}

func evaluate(ctx context.Context, script string, into any) error {
	yes := true
	result, err := within(ctx, runtime.Evaluate, runtime.EvaluateParams{Expression: script, ReturnByValue: &yes, AwaitPromise: &yes})
	if err != nil {
		return err
	}
	if e := result.ExceptionDetails; e != nil {
		text := e.Text
		if e.Exception != nil {
			text += " " + e.Exception.Description
		}
		return fmt.Errorf("%s", text)
	}
	if into == nil || len(result.Result.Value) == 0 {
		return nil
	}
	return json.Unmarshal(result.Result.Value, into)
}

// Eval evaluates JavaScript in the page, waits for it if it is a promise, and stores its
// value, which goes through JSON, in into, if that is not nil.
func (p *Page) Eval(script string, into any) {
	p.tb.Helper()
	if err := p.eval(script, into); err != nil {
		p.fatal("evaluate %.80q: %v", script, err)
	}
}

// settle waits until a page is there again, if one is on its way.
func (p *Page) settle() {
	p.tb.Helper()
	// What a click has set off is done before the page answers to this. A page that is left
	// may never answer, and one without scripts cannot.
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	p.mu.Lock()
	p.leave = cancel
	if p.loading {
		cancel()
	}
	p.mu.Unlock()
	if p.scriptless {
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond): // then nothing has been set off
		}
	} else {
		_ = evaluate(ctx, `new Promise((done) => { const c = new MessageChannel(); c.port1.onmessage = () => done(); c.port2.postMessage(0) })`, nil)
	}
	cancel()
	p.until("load the page", func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.loading {
			return fmt.Errorf("it is still loading")
		}
		return nil
	})
}
