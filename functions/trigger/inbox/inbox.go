// Package inbox takes in events that AWS delivers: from an EventBridge bus, from an SQS queue,
// and what SES tells of mails that came back. Its invariant: what could not be taken in, for
// whatever reason, is reported as failed, so that it is delivered again or put where somebody
// finds it.
package inbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// Inbox takes events in. All fields must be set.
//
// Whoever may put into the bus or the queue speaks for every tenant: they are the
// installation's own. Tenants' systems that do not share its trust use the API.
type Inbox struct {
	Tenants *tenant.Tenants
	Engine  *rule.Engine
	Bounces Bounces
	Log     *slog.Logger
}

// Bounces takes in what SES tells of a mail, from an EventBridge event or as the message of an
// SNS notification.
type Bounces interface {
	Handle(ctx context.Context, raw json.RawMessage) error
}

// message is an event in a queue or, without type and time, as the detail on a bus.
type message struct {
	Tenant           table.TenantID         `json:"tenant"`
	ID               string                 `json:"id"`
	Type             event.Type             `json:"type"`
	Time             time.Time              `json:"time"`
	User             *reference             `json:"user"`
	Credential       string                 `json:"credential"`
	Attributes       map[string]string      `json:"attributes"`
	SecretAttributes map[string]secret.Text `json:"secretAttributes"`
	NewUser          *profile               `json:"newUser"`
}

type reference struct {
	ID         string `json:"id"`
	Username   string `json:"username"`
	ExternalID string `json:"externalId"`
	Mail       string `json:"mail"`
}

type profile struct {
	Username    string   `json:"username"`
	DisplayName string   `json:"displayName"`
	Mail        string   `json:"mail"`
	Phone       string   `json:"phone"`
	StaffNumber string   `json:"staffNumber"`
	ExternalID  string   `json:"externalId"`
	Groups      []string `json:"groups"`
}

// delivery is what Lambda is invoked with: each source has its own fields.
type delivery struct {
	Records []record `json:"Records"`

	// EventBridge ("Events structure in Amazon EventBridge").
	ID         string          `json:"id"`
	DetailType event.Type      `json:"detail-type"`
	Source     string          `json:"source"`
	Time       time.Time       `json:"time"`
	Detail     json.RawMessage `json:"detail"`
}

type record struct {
	// SQS ("Using Lambda with Amazon SQS").
	MessageID   string `json:"messageId"`
	EventSource string `json:"eventSource"`
	Body        string `json:"body"`
	// SNS ("Using Lambda with Amazon SNS"), whose fields begin with capitals.
	SNS *struct {
		Message string `json:"Message"`
	} `json:"Sns"`
}

// Failures is the answer to a batch from a queue: the messages that are to be delivered again
// ("Reporting batch item failures").
type Failures struct {
	BatchItemFailures []Failure `json:"batchItemFailures"`
}

// Failure names a message.
type Failure struct {
	ItemIdentifier string `json:"itemIdentifier"`
}

// Handle is the Lambda handler. The answer is for a queue; other sources go by the error.
func (in *Inbox) Handle(ctx context.Context, raw json.RawMessage) (Failures, error) {
	failures := Failures{BatchItemFailures: []Failure{}}
	var d delivery
	if err := json.Unmarshal(raw, &d); err != nil {
		return failures, fmt.Errorf("what was delivered is no JSON of a source that is known")
	}
	switch {
	case d.Source == "aws.ses":
		return failures, in.Bounces.Handle(ctx, raw)
	case d.DetailType != "" && d.Source != "":
		return failures, in.logged(ctx, in.fromBus(ctx, d))
	case len(d.Records) > 0 && d.Records[0].SNS != nil:
		var errs []error
		for _, r := range d.Records {
			if r.SNS == nil {
				errs = append(errs, errors.New("a record that is not of SNS among those that are"))
				continue
			}
			errs = append(errs, in.Bounces.Handle(ctx, json.RawMessage(r.SNS.Message)))
		}
		return failures, errors.Join(errs...)
	case len(d.Records) > 0 && d.Records[0].EventSource == "aws:sqs":
		for _, r := range d.Records {
			if err := in.logged(ctx, in.fromQueue(ctx, r)); err != nil {
				failures.BatchItemFailures = append(failures.BatchItemFailures, Failure{r.MessageID})
			}
		}
		return failures, nil
	}
	return failures, errors.New("what was delivered is of no source that is known: EventBridge, SQS or SNS")
}

// logged logs an error once, without anything of the event's own.
func (in *Inbox) logged(ctx context.Context, err error) error {
	var invalid *problem.InvalidError
	switch {
	case errors.As(err, &invalid):
		var refused []string
		for _, v := range invalid.Violations {
			refused = append(refused, v.Field+":"+v.Code)
		}
		in.Log.WarnContext(ctx, "event refused", "refused", refused)
	case err != nil:
		in.Log.ErrorContext(ctx, "event not taken in", "cause", err)
	}
	return err
}

func (in *Inbox) fromBus(ctx context.Context, d delivery) error {
	m, err := read(d.Detail)
	if err != nil {
		return err
	}
	var vs problem.Violations
	if m.Type != "" && m.Type != d.DetailType {
		vs.Add("inconsistent", "detail.type", "is not the detail-type; leave it out")
	}
	if err := vs.Err(); err != nil {
		return err
	}
	m.Type = d.DetailType
	if m.ID == "" {
		m.ID = d.ID
	}
	if m.Time.IsZero() {
		m.Time = d.Time
	}
	return in.take(ctx, m, event.FromBus)
}

func (in *Inbox) fromQueue(ctx context.Context, r record) error {
	m, err := read([]byte(r.Body))
	if err != nil {
		return err
	}
	if m.ID == "" { // without one, what comes twice cannot be told from what happened twice
		return problem.Invalid("missing", "id", "is needed: the sender's own name for the event")
	}
	return in.take(ctx, m, event.FromQueue)
}

// read repeats nothing of what it reads.
func read(raw []byte) (message, error) {
	var m message
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, problem.Invalid("form", "event", "is not JSON of an event's form: tenant, id, type, time, user, credential, attributes, secretAttributes, newUser")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return m, problem.Invalid("form", "event", "goes on after its end")
	}
	return m, nil
}

func (in *Inbox) take(ctx context.Context, m message, from event.Source) error {
	core, err := in.Tenants.Load(ctx, m.Tenant)
	if err != nil {
		return err
	}
	if core.Tenant.Suspended {
		return fmt.Errorf("%w: tenant %s is suspended", problem.ErrState, m.Tenant)
	}
	e := event.Event{ID: m.ID, Type: m.Type, At: m.Time, Card: m.Credential, Attributes: m.Attributes, Secrets: m.SecretAttributes, Source: from}
	if m.User != nil {
		e.Ref = event.Ref(*m.User)
	}
	var fresh *user.Profile
	if m.NewUser != nil {
		p := user.Profile(*m.NewUser)
		fresh = &p
	}
	_, err = in.Engine.Receive(ctx, core, e, fresh)
	return err
}
