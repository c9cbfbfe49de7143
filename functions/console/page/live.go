package page

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
)

// How pages live. A part that lives, such as a list, is asked for every few seconds, and
// put in place of itself if it is another: an element with an id keeps the focus. A page on
// which somebody is guided, step by step, is loaded anew if it is another, so that it is
// announced as one. What asks keeps no session alive: see route.asked.

// Live is what the template "live" shows: a part of a page that lives.
type Live struct {
	Path    string // that is asked, with what tells this part from others
	Every   string
	Content template.HTML
	seen    string
}

// live makes a part of a page from a template of the page's file, which must not say how
// long something takes, or it would always be another. It is asked for at path, which is to
// answer by stillLive.
func (v *view) live(name, block string, data any, every, path string) (Live, error) {
	set, err := pageSet(v.words.Language(), name)
	if err != nil {
		return Live{}, err
	}
	var b bytes.Buffer
	if err := set.ExecuteTemplate(&b, block, &Frame{v: v, D: data}); err != nil {
		return Live{}, fmt.Errorf("render %s: %w", name, err)
	}
	q := v.r.URL.Query()
	q.Del("done")
	q.Set("seen", seenAs(b.String()))
	return Live{path + "?" + q.Encode(), every, template.HTML(b.String()), q.Get("seen")}, nil // #nosec: a template has made it
}

// stillLive answers what a part has asked: nothing, or the part as it is now.
func (v *view) stillLive(name string, l Live) error {
	if l.seen == v.value("seen") {
		v.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return v.fragment(name, "live-anew", l)
}

// watch is where a page asks whether it is another.
func watch(path, seen string) string { return path + "?" + url.Values{"seen": {seen}}.Encode() }

// stillSo answers what a page has asked: nothing, or to be loaded anew.
func (v *view) stillSo(seen, path string) error {
	if seen == v.value("seen") {
		v.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return v.leadTo(path)
}

// leadTo has htmx load another page.
func (v *view) leadTo(path string) error {
	v.w.Header().Set("HX-Redirect", path)
	v.w.WriteHeader(http.StatusOK)
	return nil
}

// seenAs tells what a page shows from other things that it may show.
func seenAs(parts ...any) string {
	sum := sha256.Sum256(fmt.Append(nil, parts...))
	return hex.EncodeToString(sum[:8])
}
