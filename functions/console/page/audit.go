package page

import (
	"cmp"
	"encoding/json"
	"iter"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

func (c *Console) auditRoutes() []route {
	return []route{{pattern: "GET " + Root + "/audit", action: tenant.ReadAudit, do: (*view).audit}}
}

const (
	auditDays     = 7  // shown if no days are asked for
	maxAuditDays  = 92 // looked through at once, unless about one thing
	maxAuditFinds = 25 // times that a file looks for more; each is 2,000 records at most
)

// auditKinds are what records are about that people look for.
var auditKinds = []string{"user", "credential", "person", "unblock", "bridge", "cardTemplate", "rule", "webhook", "import", "bulkPINs", "sanityCheck", "key", "settings", "policy"}

// alone are those of which there is one.
var alone = []string{"settings", "policy"}

// auditForm is what is looked for.
type auditForm struct {
	From, To                    string // days, in the tenant's zone
	Kind, About                 string
	By, Action, Reason, Outcome string

	Kinds, Actions, Reasons, Outcomes []Option
}

type auditPage struct {
	Form    auditForm
	Records List[audit.Record]
	Names   map[string]string // of their subjects
	Looked  time.Time         // up to here it was looked, if there is more
	JSON    string            // the query of all as a JSON file
	Bad     bool              // nothing was looked for: something is wrong with the form
}

// auditQuery reads what is looked for.
func (v *view) auditQuery() (f auditForm, q audit.Query, _ error) {
	f = auditForm{v.value("from"), v.value("to"), v.value("kind"), v.value("about"), v.value("by"), v.value("action"), v.value("reason"), v.value("outcome"),
		v.options("", auditKinds, func(k string) string { return v.words.Say(words.Family("log.kind.", k)) }),
		v.options("", words.Members("audit.action."), v.words.Action),
		v.options("", words.Members("audit.reason."), v.words.AuditReason),
		[]Option{{"", v.words.Say("log.any")}, {"done", v.words.Say("log.outcome.done")}, {"refused", v.words.Say("log.outcome.refused")}, {"failed", v.words.Say("log.outcome.failed")}}}
	if subject := v.value("subject"); subject != "" { // as other pages link here
		f.Kind, f.About, _ = strings.Cut(subject, "/")
	}
	q = audit.Query{By: f.By, Action: f.Action, Reason: f.Reason, Outcome: audit.Outcome(f.Outcome)}
	var vs problem.Violations
	switch {
	case f.Kind == "" && f.About != "":
		vs.Add("missing", "kind", "is missing: choose what it is that you look for")
	case f.Kind == "":
	case slices.Contains(alone, f.Kind):
		q.Subject, f.About = f.Kind, ""
	case f.About == "":
		q.Kind = f.Kind
	case v.value("subject") != "":
		q.Subject = v.value("subject")
	default:
		subject, err := v.subjectOf(f.Kind, f.About)
		if err := vs.Merge(err); err != nil {
			return f, q, err
		}
		q.Subject = subject
	}
	day := func(field, s string) time.Time {
		at, err := time.ParseInLocation(time.DateOnly, s, v.loc)
		if err != nil || at.Year() < 2000 || at.Year() > 2999 {
			vs.Add("form", field, "is not a date such as 2030-01-31")
		}
		return at
	}
	last := v.midnight(0)
	if f.To != "" {
		last = day("to", f.To)
	}
	switch {
	case f.From != "":
		q.From = day("from", f.From)
	case q.Subject == "":
		q.From = last.AddDate(0, 0, 1-auditDays)
		f.From = q.From.Format(time.DateOnly)
	}
	if f.To == "" {
		f.To = last.Format(time.DateOnly)
	}
	q.Until = last.AddDate(0, 0, 1)
	switch {
	case vs.Err() != nil:
	case last.Before(q.From):
		vs.Add("range", "to", "is before the first day")
	case q.Subject == "" && last.AddDate(0, 0, -maxAuditDays).After(q.From):
		vs.Add("range", "from", "is more than %d days before the last one; only what is about one thing is found over any time", maxAuditDays)
	}
	return f, q, vs.Err()
}

// options are a choice of values, in the order of what people read.
func (v *view) options(any string, values []string, label func(string) string) []Option {
	options := make([]Option, len(values))
	for i, value := range values {
		options[i] = Option{value, label(value)}
	}
	slices.SortFunc(options, func(a, b Option) int {
		return cmp.Or(cmp.Compare(strings.ToLower(a.Label), strings.ToLower(b.Label)), cmp.Compare(a.Value, b.Value))
	})
	return append([]Option{{any, v.words.Say("log.any")}}, options...)
}

func (v *view) audit() error {
	form, q, err := v.auditQuery()
	if err != nil {
		return v.refused(err, "audit", auditPage{Form: form, Bad: true})
	}
	from, err := v.place()
	if err != nil {
		return err
	}
	if format := v.value("format"); format != "" {
		return v.auditFile(format, q, from)
	}
	records, next, err := audit.Find(v.ctx(), v.Table, v.tenant(), q, from, pageSize)
	if err != nil {
		return err
	}
	d := auditPage{Form: form, Records: list(v, records, next)}
	if next != "" {
		d.Looked, _ = audit.PlaceTime(next)
	}
	query, _ := url.ParseQuery(strings.TrimPrefix(d.Records.CSV, "?")) // list has made it
	query.Set("format", "json")
	d.JSON = "?" + query.Encode()
	subjects := make([]string, len(records))
	for i, r := range records {
		subjects[i] = r.Subject
	}
	if d.Names, err = v.namesOf(v.ctx(), subjects); err != nil {
		return err
	}
	return v.show("audit", d)
}

// fileRecord is an audit record in a JSON file, as the API has it.
type fileRecord struct {
	ID        string            `json:"id"`
	At        time.Time         `json:"at"`
	By        fileActor         `json:"by"`
	Action    string            `json:"action"`
	Subject   string            `json:"subject,omitempty"`
	Outcome   string            `json:"outcome"`
	Reason    string            `json:"reason,omitempty"`
	RequestID string            `json:"requestId,omitempty"`
	Details   map[string]string `json:"details,omitempty"`
}

type fileActor struct {
	Kind string `json:"kind"`
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
}

// auditFile answers with all records that are looked for as a file, or as many as can be
// looked through and put into one; then its end says so.
func (v *view) auditFile(format string, q audit.Query, from string) error {
	// rows ends with a nil record if there is more.
	var rows iter.Seq2[*audit.Record, error] = func(yield func(*audit.Record, error) bool) {
		place := from
		for range maxAuditFinds {
			records, next, err := audit.Find(v.ctx(), v.Table, v.tenant(), q, place, 1000)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range records {
				if !yield(&records[i], nil) {
					return
				}
			}
			if place = next; place == "" {
				return
			}
		}
		yield(nil, nil)
	}
	if format != "json" {
		return csvFile(v, "audit", []string{"at", "byKind", "byId", "byName", "action", "subject", "outcome", "reason", "requestId", "details", "id"}, rows, func(r *audit.Record) []string {
			if r == nil {
				return []string{v.words.Say("layout.csvCut")}
			}
			var details []string
			for _, key := range slices.Sorted(maps.Keys(r.Details)) {
				details = append(details, key+"="+r.Details[key])
			}
			return []string{r.At.UTC().Format("2006-01-02T15:04:05.000Z"), string(r.Actor.Kind), r.Actor.ID, r.Actor.Name, r.Action, r.Subject, string(r.Outcome), r.Reason, r.RequestID, strings.Join(details, "; "), r.ID}
		})
	}
	file := struct {
		Records []fileRecord `json:"records"`
		More    bool         `json:"more"` // there are more, which one file cannot hold
	}{Records: []fileRecord{}}
	size := 0
	for r, err := range rows {
		if err != nil {
			return err
		}
		if file.More = r == nil || size > maxCSV; file.More {
			break
		}
		f := fileRecord{r.ID, r.At, fileActor{string(r.Actor.Kind), r.Actor.ID, r.Actor.Name}, r.Action, r.Subject, string(r.Outcome), r.Reason, r.RequestID, r.Details}
		b, err := json.Marshal(f)
		if err != nil {
			return err
		}
		size += len(b)
		file.Records = append(file.Records, f)
	}
	b, err := json.Marshal(file)
	if err != nil {
		return err
	}
	v.w.Header().Set("Content-Type", "application/json")
	v.w.Header().Set("Content-Disposition", `attachment; filename="audit.json"`)
	_, _ = v.w.Write(b)
	return nil
}
