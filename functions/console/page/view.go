package page

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/csv"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// view is one request, and who makes it.
type view struct {
	*Console
	w       http.ResponseWriter
	r       *http.Request
	session person.Session // of who has signed in; zero on an open page
	self    *user.User     // who has signed in, if it is a user
	core    tenant.Core    // of their tenant
	words   words.Words
	loc     *time.Location
}

func (v *view) ctx() context.Context { return v.r.Context() }

// tenant is whose things the request reaches: nobody else's.
func (v *view) tenant() table.TenantID { return v.core.Tenant.ID }

// actor is who the audit log says it was.
func (v *view) actor() audit.Actor { return v.session.Actor() }

// may says whether the person may do something on a page that they may see.
func (v *view) may(a tenant.Action) bool {
	return tenant.MayAny(v.session.Roles, a) == tenant.Yes
}

// value returns a field of the form, or of the query of a GET, without space around it.
func (v *view) value(name string) string {
	if v.r.Method == http.MethodPost {
		return strings.TrimSpace(v.r.PostForm.Get(name))
	}
	return strings.TrimSpace(v.r.URL.Query().Get(name))
}

// values returns all values of a field of that name, such as the boxes that are checked.
func (v *view) values(name string) []string {
	if v.r.Method == http.MethodPost {
		return v.r.PostForm[name]
	}
	return v.r.URL.Query()[name]
}

// secretField begins the name of each field that holds a secret: it is never written into a
// page again, and not kept when a form waits for its sender to sign in.
const secretField = "secret."

// secretValue takes a secret from the form, and out of it.
func (v *view) secretValue(name string) secret.Text {
	s := v.r.PostForm.Get(secretField + name)
	v.r.PostForm.Del(secretField + name)
	return secret.New(s)
}

// Frame is what every template gets.
type Frame struct {
	v      *view
	Faults []Fault // what is wrong with what was sent, for the top of the page
	D      any     // the page's own
}

// Fault is one thing that is wrong with what was sent.
type Fault struct {
	Field string // id of the input, "" if it is none's
	Label string // what the page calls the input
	Text  string
}

// show answers with a page: templates/<name>.html in the layout.
func (v *view) show(name string, data any) error {
	return v.render(http.StatusOK, name, "layout", Frame{v: v, D: data})
}

// fragment answers with a template of a page's file, for what lives on it.
func (v *view) fragment(name, block string, data any) error {
	return v.render(http.StatusOK, name, block, Frame{v: v, D: data})
}

// refused shows the form again, with what was wrong with it at its top, if err is something
// that the sender can mend; else it returns err.
func (v *view) refused(err error, name string, data any) error {
	status, faults := v.faults(err)
	if len(faults) == 0 {
		return err
	}
	return v.render(status, name, "layout", Frame{v: v, Faults: faults, D: data})
}

// faults returns what is wrong, in the reader's language; none, if it is nothing that they
// can mend.
func (v *view) faults(err error) (int, []Fault) {
	var invalid *problem.InvalidError
	if errors.As(err, &invalid) {
		faults := make([]Fault, len(invalid.Violations))
		for i, x := range invalid.Violations {
			label, ok := v.words.Field(x.Field)
			if !ok {
				label = ""
			}
			faults[i] = Fault{x.Field, label, v.words.Reason(x)}
		}
		return http.StatusUnprocessableEntity, faults
	}
	text, known := v.words.Error(err)
	var limit *problem.LimitError
	switch {
	case !known, errors.Is(err, problem.ErrNotFound), errors.Is(err, problem.ErrForbidden), errors.Is(err, problem.ErrUnauthenticated), errors.Is(err, problem.ErrUnavailable):
		return 0, nil // for fail, or for who asks to sign in
	case errors.As(err, &limit):
		return http.StatusTooManyRequests, []Fault{{Text: text}}
	}
	return http.StatusConflict, []Fault{{Text: text}}
}

func (v *view) render(status int, name, block string, f Frame) error {
	set, err := pageSet(v.words.Language(), name)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := set.ExecuteTemplate(&b, block, &f); err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	v.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	v.w.WriteHeader(status)
	_, _ = v.w.Write(b.Bytes())
	return nil
}

// done goes to a page after something was done there. What it says of that is the key of the
// catalogue, "done.<what>". A reload does not do it again.
func (v *view) done(path, key string) error {
	to, err := url.Parse(path)
	if err != nil {
		return fmt.Errorf("go on to a page: %w", err)
	}
	q := to.Query()
	q.Set("done", strings.TrimPrefix(key, "done."))
	to.RawQuery = q.Encode()
	return v.goTo(to.String())
}

// goTo goes to another page, by GET.
func (v *view) goTo(path string) error {
	http.Redirect(v.w, v.r, path, http.StatusSeeOther)
	return nil
}

func (v *view) notFound() error { return v.problem(http.StatusNotFound, words.Key("problem.notFound")) }

// problem answers with a page that says what has gone wrong, by its name in the catalogue.
func (v *view) problem(status int, key string, args ...any) error {
	return v.render(status, "problem", "layout", Frame{v: v, D: problemData{v.words.Say("problem.title"), v.words.Say(key, args...), v.w.Header().Get("X-Request-Id"), status >= 500}})
}

type problemData struct {
	Title, Text, RequestID string
	Ours                   bool // the fault is ours
}

// unreadable is a form that cannot be read.
type unreadable struct{ err error }

func (u *unreadable) Error() string { return "read form: " + u.err.Error() }
func (u *unreadable) Unwrap() error { return u.err }

// fail maps errors to pages; there is no other place that does. What it does not know is an
// internal error: its cause goes to the log, not out.
func (v *view) fail(err error) {
	var tooLong *http.MaxBytesError
	var bad *unreadable
	status, faults := v.faults(err)
	switch {
	case errors.As(err, &tooLong):
		err = v.problem(http.StatusRequestEntityTooLarge, words.Key("problem.tooLarge"), tooLong.Limit>>10)
	case errors.As(err, &bad):
		err = v.problem(http.StatusBadRequest, words.Key("problem.form"))
	case errors.Is(err, problem.ErrNotFound), errors.Is(err, problem.ErrForbidden):
		err = v.notFound()
	case len(faults) > 0:
		err = v.render(status, "problem", "layout", Frame{v: v, Faults: faults, D: problemData{Title: v.words.Say("problem.refused"), Text: v.words.Say("problem.nothingChanged")}})
	case errors.Is(err, problem.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		observed(v.ctx()).cause = err
		err = v.problem(http.StatusServiceUnavailable, words.Key("problem.unavailable"))
	default:
		observed(v.ctx()).cause = err
		err = v.problem(http.StatusInternalServerError, words.Key("problem.internal"))
	}
	if err != nil { // not even that page can be shown
		observed(v.ctx()).cause = errors.Join(observed(v.ctx()).cause, err)
		http.Error(v.w, v.w.Header().Get("X-Request-Id"), http.StatusInternalServerError)
	}
}

// List is one page of a list.
type List[T any] struct {
	Items []T
	Next  string // the query that the next page has, "" on the last
	CSV   string // the query of the whole list as a file
}

// place is where in a list the request's page begins.
func (v *view) place() (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(v.value("after"))
	if err != nil || !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 || len(b) > table.MaxSort {
		return "", fmt.Errorf("page of a list %w", problem.ErrNotFound)
	}
	return string(b), nil
}

// list returns one page of a list, whose links keep the filters of this request.
func list[T any](v *view, items []T, next string) List[T] {
	q := url.Values{}
	for name, values := range v.r.URL.Query() {
		if name != "after" && name != "done" && name != "format" && name != "seen" {
			q[name] = values
		}
	}
	l := List[T]{Items: items}
	if next != "" {
		q.Set("after", base64.RawURLEncoding.EncodeToString([]byte(next)))
		l.Next = "?" + q.Encode()
		q.Del("after")
	}
	q.Set("format", "csv")
	l.CSV = "?" + q.Encode()
	return l
}

// rowsOf goes through all pages of a list, from where it is asked for.
func rowsOf[T any](from string, more func(beyond string) (items []T, next string, err error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for place, first := from, true; place != "" || first; first = false {
			items, next, err := more(place)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			place = next
		}
	}
}

// maxCSV bounds a file: what a function can answer is 6 MB.
const maxCSV = 5 << 20

// csv answers with a list as a file of RFC 4180 in UTF-8, the first line its header. Cells
// that a spreadsheet would take for a formula get an apostrophe. A list too long for one
// answer ends with a line that says so.
func csvFile[T any](v *view, name string, header []string, rows iter.Seq2[T, error], cells func(T) []string) error {
	var b bytes.Buffer
	b.WriteString("\ufeff") // without it spreadsheets take UTF-8 for something else
	w := csv.NewWriter(&b)
	w.UseCRLF = true
	_ = w.Write(header)
	for row, err := range rows {
		if err != nil {
			return err
		}
		record := slices.Clone(cells(row))
		for i, c := range record {
			if c != "" && strings.ContainsRune("=+-@\t\r", rune(c[0])) {
				record[i] = "'" + c
			}
		}
		_ = w.Write(record)
		w.Flush()
		if b.Len() > maxCSV {
			_ = w.Write([]string{v.words.Say("layout.csvCut")})
			break
		}
	}
	w.Flush()
	v.w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	v.w.Header().Set("Content-Disposition", `attachment; filename="`+name+`.csv"`)
	_, _ = v.w.Write(b.Bytes())
	return nil
}

// csvTime is a time in a file: RFC 3339 in UTC, "" for none.
func csvTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// wholeNumber reads a whole number of a form; what is none is a violation.
func wholeNumber(vs *problem.Violations, field, s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		vs.Add("type", field, "must be a whole number")
	}
	return n
}
