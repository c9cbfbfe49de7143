// Package delivery sends what trigger rules send out: webhooks to a tenant's endpoints,
// and mails to its users. Its invariant: a delivery is stored in the Write that causes it,
// claimed before it is sent and marked after, each conditionally, so that a crash at any
// step loses none, and one is sent twice only if what became of the first was lost, which
// is flagged. Bodies and values are no place for secrets.
package delivery

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/user"
)

// Kind is how something is delivered.
type Kind string

// The kinds.
const (
	KindWebhook Kind = "webhook"
	KindMail    Kind = "mail"
)

// State is how far a delivery is.
type State string

// The states.
const (
	Planned   State = "planned"   // to be tried, from At on
	Claimed   State = "claimed"   // being tried; whoever does so has until At
	Delivered State = "delivered" // taken by the endpoint or the mail system
	Dead      State = "dead"      // given up; Code tells why
	Dropped   State = "dropped"   // an administrator does not want it sent
)

// Ended tells whether nothing more happens by itself.
func (s State) Ended() bool { return s == Delivered || s == Dead || s == Dropped }

// Delivery is one thing to be sent once: a Webhook or a Mail.
type Delivery struct {
	ID   string // see idPattern
	Kind Kind

	Endpoint string          // of a webhook: the endpoint's id
	Body     json.RawMessage // of a webhook: as it is sent

	User      string            // of a mail: to whom
	Template  string            // of a mail: its template's id
	Messaging string            // of a mail: its messaging configuration's id
	Values    map[string]string // of a mail: see Mail

	State    State
	At       time.Time // of Planned and Claimed
	Attempts int       // since it was planned, or resent; one that was forgone counts, see Sweep
	Code     string    // what came of the last one, for programs: "http.500", "timeout", "smtp.550"; "" if it was taken
	// Doubt: an attempt's answer was lost, so that it may have arrived. Repeated: it was
	// tried again after that.
	Doubt, Repeated bool

	CreatedAt time.Time
	EndedAt   time.Time // zero until then
	Version   int64
}

const (
	// keepFor is how long deliveries are kept once they have ended.
	keepFor = 30 * 24 * time.Hour
	// lease is how long a claim holds: longer than sending and marking take.
	lease = 2 * time.Minute

	maxBody  = 64 << 10 // bytes
	maxValue = 1000     // characters
)

// backoff is how long after each attempt the next one follows. After the one that has
// none, the delivery is dead.
var backoff = []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 6 * time.Hour, 12 * time.Hour}

// maxWait bounds what an endpoint can ask for by Retry-After.
const maxWait = 12 * time.Hour

// idPattern has no dot: Standard Webhooks separates by dots what it signs.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,100}$`)

// Validate reports everything that is wrong with the delivery.
func (d Delivery) Validate() error {
	var vs problem.Violations
	if !idPattern.MatchString(d.ID) {
		vs.Add("form", "id", "must be 1 to 100 letters, digits, dashes or underscores")
	}
	switch d.Kind {
	case KindWebhook:
		if d.Endpoint == "" {
			vs.Add("missing", "endpoint", "is empty")
		}
		if len(d.Body) > maxBody {
			vs.Add("tooLarge", "body", "is %d bytes, at most %d are sent", len(d.Body), maxBody)
		} else if len(d.Body) == 0 || d.Body[0] != '{' || !json.Valid(d.Body) || !utf8.Valid(d.Body) {
			vs.Add("form", "body", "is not a JSON object")
		}
	case KindMail:
		if d.User == "" {
			vs.Add("missing", "user", "is empty")
		}
		for name, value := range d.Values {
			if !slices.Contains(valueNames, name) {
				vs.Add("unknown", "values", "has a name that is not event, time or message")
			} else if utf8.RuneCountInString(value) > maxValue || !utf8.ValidString(value) {
				vs.Add("tooLong", "values."+name, "must be at most %d characters", maxValue)
			}
		}
	default:
		vs.Add("unknown", "kind", "must be webhook or mail")
	}
	return vs.Err()
}

// due tells whether an attempt may begin.
func (d Delivery) due(now time.Time) bool { return !d.State.Ended() && !now.Before(d.At) }

// begun is the delivery at the beginning of an attempt. A claim that nobody marked may
// have been sent.
func (d Delivery) begun() Delivery {
	d.Doubt = d.Doubt || d.State == Claimed
	d.Attempts++
	return d
}

// claimed is the delivery while it is sent.
func (d Delivery) claimed(now time.Time) Delivery {
	d = d.begun()
	d.Repeated = d.Repeated || d.Doubt
	d.State, d.At = Claimed, second(now.Add(lease))
	return d
}

// outcome is what came of an attempt.
type outcome struct {
	state State // Delivered, Dead, or Planned to try again
	code  string
	doubt bool          // it may have arrived
	after time.Duration // of Planned: not before that, if the receiver has said so
	gone  string        // the URL of an endpoint that wants no more, or ""
}

// marked is the delivery after an attempt.
func (d Delivery) marked(o outcome, now time.Time) Delivery {
	d.State, d.Code, d.At = o.state, o.code, time.Time{}
	d.Doubt = (d.Doubt || o.doubt) && d.State != Delivered
	if d.State == Planned && d.Attempts > len(backoff) {
		d.State = Dead
	}
	if d.State == Planned {
		d.At = second(now.Add(max(backoff[max(d.Attempts, 1)-1], min(o.after, maxWait))))
	} else {
		d.EndedAt = second(now)
	}
	return d
}

func second(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// subject is what the audit log files it under.
func (d Delivery) subject() string {
	if d.Kind == KindMail {
		return user.Subject(d.User)
	}
	return Subject(d.Endpoint)
}

// record is the audit record of what has become of it.
func (d Delivery) record(by audit.Actor, action string) audit.Record {
	r := audit.Record{Actor: by, Action: action, Subject: d.subject(), Outcome: audit.Done, Reason: d.Code,
		Details: map[string]string{"delivery": d.ID, "kind": string(d.Kind)}}
	if d.State == Dead {
		r.Outcome = audit.Failed
	}
	if d.Repeated {
		r.Details["possiblyRepeated"] = "true"
	}
	return r
}

// deliveryRecord is a Delivery as stored.
type deliveryRecord struct {
	tenant table.TenantID
	Delivery
}

type stored struct {
	Tenant    table.TenantID    `json:"tenant"`
	ID        string            `json:"id"`
	Kind      Kind              `json:"kind"`
	Endpoint  string            `json:"endpoint,omitempty"`
	Body      json.RawMessage   `json:"body,omitempty"`
	User      string            `json:"user,omitempty"`
	Template  string            `json:"template,omitempty"`
	Messaging string            `json:"messaging,omitempty"`
	Values    map[string]string `json:"values,omitempty"`
	State     State             `json:"state"`
	At        time.Time         `json:"at,omitzero"`
	Attempts  int               `json:"attempts,omitempty"`
	Code      string            `json:"code,omitempty"`
	Doubt     bool              `json:"doubt,omitempty"`
	Repeated  bool              `json:"repeated,omitempty"`
	CreatedAt time.Time         `json:"createdAt"`
	EndedAt   time.Time         `json:"endedAt,omitzero"`
}

// Item implements table.Record.
func (r deliveryRecord) Item() (table.Item, error) {
	d := r.Delivery
	data, err := json.Marshal(stored{r.tenant, d.ID, d.Kind, d.Endpoint, d.Body, d.User, d.Template, d.Messaging, d.Values,
		d.State, d.At, d.Attempts, d.Code, d.Doubt, d.Repeated, d.CreatedAt, d.EndedAt})
	item := table.Item{Key: table.DeliveryKey(r.tenant, d.ID), Data: data, Indexes: []table.IndexKey{table.DeliveryListed(r.tenant, d.ID, d.CreatedAt)}}
	switch {
	case d.State == Dead:
		item.Indexes = append(item.Indexes, table.DeliveryDead(r.tenant, d.ID, d.CreatedAt))
	case !d.State.Ended():
		item.Indexes = append(item.Indexes, table.DeliveryDue(r.tenant, d.ID, d.At))
	}
	if d.State.Ended() {
		item.ExpiresAt = d.EndedAt.Add(keepFor)
	}
	return item, err
}

func put(t table.TenantID, d Delivery) table.Op {
	return table.Put(deliveryRecord{t, d}, table.After(d.Version))
}

func decode(item table.Item) (table.TenantID, Delivery, error) {
	var s stored
	if err := item.Decode(&s); err != nil {
		return "", Delivery{}, err
	}
	return s.Tenant, Delivery{s.ID, s.Kind, s.Endpoint, s.Body, s.User, s.Template, s.Messaging, s.Values,
		s.State, s.At, s.Attempts, s.Code, s.Doubt, s.Repeated, s.CreatedAt, s.EndedAt, item.Version}, nil
}

// Undeliverable says why something cannot be sent. Its Code is one that Delivery.Code may
// have too.
type Undeliverable struct {
	Code   string // "noAddress", "noUser", "noMessaging", "noTemplate", "template", "endpointGone", "endpointOff", "url"
	Reason string // for people
	is     error  // problem.ErrNotFound or ErrState
}

// Error implements error.
func (e *Undeliverable) Error() string { return e.is.Error() + ": " + e.Reason }

// Unwrap makes it a problem.ErrNotFound if there is no such endpoint, and else a
// problem.ErrState.
func (e *Undeliverable) Unwrap() error { return e.is }

func undeliverable(code, reason string) error {
	return &Undeliverable{code, reason, problem.ErrState}
}

// Sentence says to people what came of an attempt; "" for what needs no words.
func (d Delivery) Sentence() string {
	if s, ok := sentences[d.Code]; ok {
		return s
	}
	if status, ok := strings.CutPrefix(d.Code, "http."); ok {
		return "The endpoint answered with the status " + status + "."
	} else if d.Code == "" {
		return ""
	}
	return "The mail system did not take the mail (" + d.Code + ")."
}

var sentences = map[string]string{
	"redirected":   "The endpoint answered with a redirect, which is not followed. Give the URL that it leads to.",
	"timeout":      "The endpoint did not answer within 10 seconds.",
	"notPublic":    "The endpoint's name leads to an address that is not a public one.",
	"tls":          "No secure connection to the endpoint: its certificate is not valid for its name, or it does not speak TLS 1.2 or later.",
	"connection":   "There is no connection to the endpoint: its name or its port is not known, or it refuses.",
	"noAnswer":     "The connection ended without an answer that could be read.",
	"http.410":     "The endpoint answered that it is gone for good (410), and was turned off.",
	"endpointGone": "The endpoint was deleted.",
	"endpointOff":  "The endpoint is turned off.",
	"url":          "The endpoint's URL is not one that may be used here.",
	"noUser":       "The user was deleted.",
	"noAddress":    "The user has no mail address.",
	"noMessaging":  "The messaging configuration is not there.",
	"noTemplate":   "The mail template is not there.",
	"template":     "The mail cannot be made from this template: it is of another kind, or names what has no value.",
	"messaging":    "The messaging configuration cannot be used in this installation.",
}

// valueNames are what a Mail may give; the mail's other variables are the user's and the
// tenant's.
var valueNames = slices.DeleteFunc(slices.Clone(mail.Notice.Variables()), func(name string) bool { return name == "username" || name == "customer-name" })
