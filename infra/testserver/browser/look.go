package browser

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"

	"github.com/pinward/pinward/infra/testserver"
)

// URL returns where the page is.
func (p *Page) URL() (url string) {
	p.tb.Helper()
	p.Eval(`location.href`, &url)
	return url
}

// Text returns what is seen of the page, as text.
func (p *Page) Text() (text string) {
	p.tb.Helper()
	p.Eval(`document.body.innerText`, &text)
	return text
}

// HTML returns the page as it is now. What was typed is in it as values of attributes:
// nothing that a script could find in the page is left out.
func (p *Page) HTML() (html string) {
	p.tb.Helper()
	p.Eval(`(() => {
		const copy = document.documentElement.cloneNode(true);
		const fields = (root) => [...root.querySelectorAll("input, textarea, select")];
		const copies = fields(copy);
		fields(document).forEach((field, i) => copies[i].setAttribute("data-value-now", field.value));
		return copy.outerHTML;
	})()`, &html)
	return html
}

// See waits until each of these texts is seen in the page.
func (p *Page) See(texts ...string) {
	p.tb.Helper()
	for _, text := range texts {
		p.until(fmt.Sprintf("see %q", text), func() error { return p.seen(text, true) })
	}
}

// Gone waits until none of these texts is seen in the page any more.
func (p *Page) Gone(texts ...string) {
	p.tb.Helper()
	for _, text := range texts {
		p.until(fmt.Sprintf("see %q no more", text), func() error { return p.seen(text, false) })
	}
}

func (p *Page) seen(text string, want bool) error {
	var shown string
	if err := p.eval(`document.body?.innerText ?? ""`, &shown); err != nil {
		return err
	}
	if strings.Contains(fold(shown), fold(text)) != want {
		return fmt.Errorf("it is seen: %t", !want)
	}
	return nil
}

// Wait waits until a JavaScript expression, or what it promises, is true.
func (p *Page) Wait(condition string) {
	p.tb.Helper()
	p.until("wait for "+condition, func() error {
		var is bool
		err := p.eval(`Promise.resolve(`+condition+`).then(Boolean)`, &is)
		if err == nil && !is {
			err = fmt.Errorf("it is not so")
		}
		return err
	})
}

// Size sets the window's size in CSS pixels.
func (p *Page) Size(width, height int) {
	p.tb.Helper()
	p.width, p.height, p.scale = width, height, 1
	p.emulate()
}

// Phone makes the window as large as a small phone's.
func (p *Page) Phone() {
	p.tb.Helper()
	p.Size(375, 667)
}

// Zoom200 shows a window of 1280 by 800 pixels at 200 %.
func (p *Page) Zoom200() {
	p.tb.Helper()
	p.width, p.height, p.scale = 640, 400, 2
	p.emulate()
}

// Dark turns dark mode on or off.
func (p *Page) Dark(dark bool) {
	p.tb.Helper()
	p.dark = dark
	p.emulate()
}

func (p *Page) emulate() {
	p.tb.Helper()
	call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: int64(p.width), Height: int64(p.height), DeviceScaleFactor: p.scale})
	scheme := "light"
	if p.dark {
		scheme = "dark"
	}
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}})
}

// Language sets the languages that the browser asks for, such as "de" or "fr, en".
func (p *Page) Language(accept string) {
	p.tb.Helper()
	agent := call(p, browser.GetVersion, cdp.Empty{}).UserAgent
	call(p, emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{UserAgent: agent, AcceptLanguage: accept})
}

// DisableScript turns JavaScript off, for pages that are opened from now on. Axe and Wait
// need it on.
func (p *Page) DisableScript() {
	p.tb.Helper()
	p.scriptless = true
	call(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
}

// Screenshot writes a PNG of the page as it is in a window of that size; with height 0, of
// the whole page.
func (p *Page) Screenshot(file string, width, height int, dark bool) {
	p.tb.Helper()
	before := struct {
		width, height int
		scale         float64
		dark          bool
	}{p.width, p.height, p.scale, p.dark}
	p.width, p.height, p.scale, p.dark = width, max(height, 1), 1, dark
	p.emulate()
	if height == 0 {
		p.Eval(`document.documentElement.scrollHeight`, &p.height)
		p.emulate()
	}
	image := call(p, page.CaptureScreenshot, page.CaptureScreenshotParams{Format: page.CaptureScreenshotFormatPng})
	if err := os.WriteFile(file, image.Data, 0o644); err != nil {
		p.tb.Fatal(err)
	}
	p.width, p.height, p.scale, p.dark = before.width, before.height, before.scale, before.dark
	p.emulate()
}

// Fits reports what is wider than the window, on a phone and at 200 %, so that one would
// have to scroll sideways to read it.
func (p *Page) Fits() {
	p.tb.Helper()
	width, height, scale := p.width, p.height, p.scale
	for where, set := range map[string]func(){"on a phone": p.Phone, "at 200 %": p.Zoom200} {
		set()
		var wide []string
		p.Eval(`(() => {
			const root = document.documentElement;
			if (root.scrollWidth <= root.clientWidth) return [];
			const scrolls = (e) => e && e !== document.body && (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement));
			const reaches = (e) => Math.max(e.getBoundingClientRect().right, getComputedStyle(e).overflowX === "visible" ? e.getBoundingClientRect().left + e.scrollWidth : 0);
			const all = [...document.body.querySelectorAll("*")].filter((e) => reaches(e) > root.clientWidth + 1 && !scrolls(e.parentElement));
			const wide = all.filter((e) => !all.some((other) => other !== e && e.contains(other)));
			return ["the page: " + root.scrollWidth + " of " + root.clientWidth + " px", ...wide.slice(0, 5).map((e) => e.outerHTML.slice(0, 120))];
		})()`, &wide)
		if len(wide) > 0 {
			p.tb.Errorf("%s: too wide %s: %s", p.URL(), where, strings.Join(wide, "\n  "))
		}
	}
	p.width, p.height, p.scale = width, height, scale
	p.emulate()
}

// Axe reports what axe-core finds in the page as it is now that is serious or critical.
func (p *Page) Axe() {
	p.tb.Helper()
	dir, err := testserver.Module("axe-core")
	testserver.Need(p.tb, err)
	source, err := os.ReadFile(filepath.Join(dir, "axe.min.js"))
	if err != nil {
		p.tb.Fatal(err)
	}
	p.Eval(string(source)+"\n;0", nil)
	var found []struct {
		ID, Impact, Help, HelpURL string
		Nodes                     []struct {
			HTML           string
			Target         json.RawMessage
			FailureSummary string
		}
	}
	p.Eval(`axe.run(document, { resultTypes: ["violations"] }).then((r) => r.violations.filter((v) => v.impact === "serious" || v.impact === "critical"))`, &found)
	for _, v := range found {
		var where []string
		for _, n := range v.Nodes {
			where = append(where, fmt.Sprintf("  %s %s\n    %s", n.Target, n.HTML, strings.ReplaceAll(n.FailureSummary, "\n", "\n    ")))
		}
		p.tb.Errorf("%s: %s (%s, %s, %s)\n%s", p.URL(), v.Help, v.ID, v.Impact, v.HelpURL, strings.Join(where, "\n"))
	}
}
