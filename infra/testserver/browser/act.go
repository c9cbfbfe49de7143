package browser

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// Open goes to a URL and waits until its page is loaded.
func (p *Page) Open(url string) {
	p.tb.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		p.fatal("open %s: %v", url, err)
	}
	p.settle()
}

// Back presses the browser's back button.
func (p *Page) Back() {
	p.tb.Helper()
	history := call(p, page.GetNavigationHistory, cdp.Empty{})
	if history.CurrentIndex == 0 {
		p.fatal("there is no page to go back to")
	}
	before := history.Entries[history.CurrentIndex-1]
	call(p, page.NavigateToHistoryEntry, page.NavigateToHistoryEntryParams{EntryID: before.ID})
	// The page may come as it was left, without loading.
	p.until("go back to "+before.URL, func() error {
		if now, err := try(p, page.GetNavigationHistory, cdp.Empty{}); err != nil || now.CurrentIndex >= history.CurrentIndex {
			return fmt.Errorf("it has not gone back: %w", err)
		}
		return nil
	})
	p.settle()
}

// What can be clicked and what can be filled in, by role. Chromium has some roles of its
// own, for what WAI-ARIA has none.
var (
	clickable = []string{"button", "link", "checkbox", "radio", "switch", "tab", "menuitem", "option", "DisclosureTriangle", "DisclosureTriangleGrouped"}
	fillable  = []string{"textbox", "searchbox", "combobox", "listbox", "spinbutton", "slider", "Date", "DateTime", "InputTime", "ColorWell"}
)

// find waits for the one thing of some roles that has that name: exactly, or if nothing
// has, as a part of its name. It must not be disabled.
func (p *Page) find(roles []string, name string) (node cdp.BackendNodeID) {
	p.tb.Helper()
	p.until(fmt.Sprintf("find %q", name), func() (err error) {
		tree, err := try(p, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
		if err != nil {
			return err
		}
		var exact, part, other []*accessibility.Node
		for _, n := range tree.Nodes {
			if n.Ignored || !slices.Contains(roles, value(n.Role)) {
				continue
			}
			switch has := fold(value(n.Name)); {
			case has == fold(name):
				exact = append(exact, n)
			case strings.Contains(has, fold(name)):
				part = append(part, n)
			default:
				other = append(other, n)
			}
		}
		found := exact
		if len(found) == 0 {
			found = part
		}
		switch {
		case len(found) == 0:
			return fmt.Errorf("there are only %s", names(other))
		case len(found) > 1:
			return fmt.Errorf("there are several: %s", names(found))
		case disabled(found[0]):
			return errors.New("it is disabled")
		}
		node = found[0].BackendDOMNodeID
		return nil
	})
	return node
}

func value(v *accessibility.Value) (s string) {
	if v != nil {
		_ = json.Unmarshal(v.Value, &s)
	}
	return s
}

func fold(s string) string { return strings.Join(strings.Fields(s), " ") }

func names(nodes []*accessibility.Node) string {
	var all []string
	for _, n := range nodes {
		all = append(all, fmt.Sprintf("%s %q", value(n.Role), fold(value(n.Name))))
	}
	return strings.Join(all, ", ")
}

func disabled(n *accessibility.Node) bool {
	return slices.ContainsFunc(n.Properties, func(q *accessibility.Property) bool {
		return q.Name == accessibility.PropertyNameDisabled && string(q.Value.Value) == "true"
	})
}

// Click clicks the button, link, checkbox, radio button, tab or summary of that name, and
// waits until the page that comes of it, if any, is loaded.
func (p *Page) Click(name string) {
	p.tb.Helper()
	p.press(name, p.find(clickable, name))
}

// ClickOn clicks the first element of a CSS selector: for what has no name of its own.
func (p *Page) ClickOn(selector string) {
	p.tb.Helper()
	p.press(selector, p.selected(selector))
}

// selected waits for the first element of a selector.
func (p *Page) selected(selector string) (node cdp.BackendNodeID) {
	p.tb.Helper()
	quoted, _ := json.Marshal(selector)
	p.until("find "+selector, func() error {
		result, err := try(p, runtime.Evaluate, runtime.EvaluateParams{Expression: "document.querySelector(" + string(quoted) + ")"})
		if err != nil {
			return err
		}
		if result.ExceptionDetails != nil || result.Result.ObjectID == "" {
			return errors.New("there is none")
		}
		described, err := try(p, dom.DescribeNode, dom.DescribeNodeParams{ObjectID: result.Result.ObjectID})
		if err == nil {
			node = described.Node.BackendNodeID
		}
		return err
	})
	return node
}

// press clicks the middle of what is seen of a node.
func (p *Page) press(what string, node cdp.BackendNodeID) {
	p.tb.Helper()
	var x, y float64
	p.until("see "+what, func() error {
		if _, err := try(p, dom.ScrollIntoViewIfNeeded, dom.ScrollIntoViewIfNeededParams{BackendNodeID: node}); err != nil {
			return err
		}
		shape, err := try(p, dom.GetContentQuads, dom.GetContentQuadsParams{BackendNodeID: node})
		if err != nil {
			return err
		}
		if len(shape.Quads) == 0 {
			return errors.New("it has no size")
		}
		q := shape.Quads[0]
		x, y = (q[0]+q[2]+q[4]+q[6])/4, (q[1]+q[3]+q[5]+q[7])/4
		return nil
	})
	mouse := input.DispatchMouseEventParams{Type: input.DispatchMouseEventTypeMouseMoved, X: x, Y: y}
	call(p, input.DispatchMouseEvent, mouse)
	mouse.Type, mouse.Button, mouse.Buttons, mouse.ClickCount = input.DispatchMouseEventTypeMousePressed, input.MouseButtonLeft, 1, 1
	call(p, input.DispatchMouseEvent, mouse)
	mouse.Type, mouse.Buttons = input.DispatchMouseEventTypeMouseReleased, 0
	call(p, input.DispatchMouseEvent, mouse)
	p.settle()
}

// Fill puts a value into the field of that label, in place of what is there: types text,
// chooses the option of a select that reads so, or sets a date (2006-01-02) or time (15:04).
func (p *Page) Fill(label, value string) {
	p.tb.Helper()
	node := p.find(fillable, label)
	call(p, dom.Focus, dom.FocusParams{BackendNodeID: node})
	switch how := p.on(node, `function (value) {
		const fold = (s) => s.trim().replace(/\s+/g, " ");
		if (this.localName === "select") {
			const option = [...this.options].find((o) => fold(o.text) === fold(value));
			if (!option) return "there are only " + [...this.options].map((o) => fold(o.text)).join(", ");
			option.selected = true;
		} else if (["date", "time", "datetime-local", "month", "week", "color", "range"].includes(this.type)) {
			this.value = value;
			if (this.value !== value) return "it is " + this.type;
		} else if (this.select) {
			this.select();
			return "type";
		} else return "it is " + this.localName;
		this.dispatchEvent(new Event("input", { bubbles: true }));
		this.dispatchEvent(new Event("change", { bubbles: true }));
		return "";
	}`, value); how {
	case "":
	case "type":
		if value == "" {
			p.Type(kb.Delete)
		} else {
			call(p, input.InsertText, input.InsertTextParams{Text: value})
		}
	default:
		p.fatal("fill %q into %q: %s", value, label, how)
	}
}

// on calls a JavaScript function with a node as this and one argument, which returns text.
func (p *Page) on(node cdp.BackendNodeID, function, argument string) (said string) {
	p.tb.Helper()
	yes := true
	quoted, _ := json.Marshal(argument)
	object := call(p, dom.ResolveNode, dom.ResolveNodeParams{BackendNodeID: node}).Object
	result := call(p, runtime.CallFunctionOn, runtime.CallFunctionOnParams{FunctionDeclaration: function, ObjectID: object.ObjectID,
		Arguments: []*runtime.CallArgument{{Value: quoted}}, ReturnByValue: &yes})
	if result.ExceptionDetails != nil {
		p.fatal("%s", result.ExceptionDetails.Exception.Description)
	}
	if err := json.Unmarshal(result.Result.Value, &said); err != nil {
		p.fatal("%v", err)
	}
	return said
}

// Value returns what is in the field of that label.
func (p *Page) Value(label string) string {
	p.tb.Helper()
	return p.on(p.find(fillable, label), `function () { return this.value }`, "")
}

// Upload gives a file to the first input of that selector.
func (p *Page) Upload(selector, file string) {
	p.tb.Helper()
	call(p, dom.SetFileInputFiles, dom.SetFileInputFilesParams{Files: []string{file}, BackendNodeID: p.selected(selector)})
}

// Type presses keys, one by one, wherever the focus is: text, and keys such as kb.Tab and
// kb.Enter of chromedp.
func (p *Page) Type(keys string) {
	p.tb.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.KeyEvent(keys)); err != nil {
		p.fatal("press keys: %v", err)
	}
	p.settle()
}
