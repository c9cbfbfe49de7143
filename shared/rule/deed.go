package rule

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/user"
)

// deed is one action that is to be done.
type deed struct {
	*handling
	Action
	run   event.Run
	id    string               // of what it makes: the same whenever the action is begun again
	still func(user.User) bool // whether the rule's conditions still hold; nil if that is not asked
}

// do does the action in one Write together with what with returns, which is told what the
// action makes. It returns that, and what is to be done at once after the Write, if anything.
func (d deed) do(ctx context.Context, with func(about string) []table.Op) (about string, after func(context.Context) error, err error) {
	by, core := actor(d.run), d.core
	if d.OfUser() && d.e.User == "" { // the user was deleted since
		return "", nil, &codedError{ReasonUnknownUser}
	}
	switch d.Kind {
	case GeneratePIN:
		is := d.issue()
		is.If = d.still
		u, err := d.Users.IssuePIN(ctx, core, by, d.e.User, is, with("")...)
		return "", func(ctx context.Context) error {
			sent := d.Users.SendIssued(ctx, core, d.Senders, u)[0]
			if sent.Err == nil && sent.Stage == user.Postponed {
				return fmt.Errorf("%w: the mail was not taken: %s", problem.ErrUnavailable, sent.Reason)
			}
			return sent.Err
		}, err
	case SetPIN:
		given, there := d.e.Secrets[d.Attribute]
		if !there {
			return "", nil, &codedError{ReasonAttribute}
		}
		_, err := d.Users.SetPIN(ctx, core, by, d.e.User, given, with("")...)
		return "", nil, err
	case ExpirePIN:
		_, err := d.Users.EndPIN(ctx, core, by, d.e.User, with("")...)
		return "", nil, err
	case RequireChange:
		_, err := d.Users.RequireChange(ctx, core, by, d.e.User, with("")...)
		return "", nil, err
	case RequestUnblock:
		if d.e.Card == "" {
			return "", nil, &codedError{ReasonNoCard}
		}
		op, err := d.Unblocks.RequestApproval(ctx, core, by, d.e.Card, d.e.Attributes["bridge"], with)
		return op.ID, nil, err
	}
	made, ops, err := d.send(ctx)
	if err != nil {
		return "", nil, err
	}
	// The event's own op comes first: if it was acted on meanwhile, that is what the error says.
	if err := d.Table.Write(ctx, append(with(made.ID), ops...)...); err != nil {
		return "", nil, fmt.Errorf("plan a delivery: %w", err)
	}
	return made.ID, func(ctx context.Context) error {
		tried, err := d.Deliveries.Attempt(ctx, core, made.ID)
		if err == nil && tried.State != delivery.Delivered {
			return fmt.Errorf("%w: a delivery was not taken: %s", problem.ErrUnavailable, tried.Code)
		}
		return err
	}, nil
}

// issue is what GeneratePIN asks for.
func (a Action) issue() user.Issue {
	return user.Issue{
		Options:   pin.GenerateOptions{Length: a.Length, Alphabet: a.Alphabet},
		Messaging: a.Messaging, Template: a.Template, ValidHours: a.ValidHours, OneTime: a.OneTime,
	}
}

// send plans a mail or a webhook.
func (d deed) send(ctx context.Context) (delivery.Delivery, []table.Op, error) {
	if d.Kind == CallWebhook {
		body, err := json.Marshal(webhookOf(d.e, d.run, d.id))
		if err != nil {
			return delivery.Delivery{}, nil, err
		}
		return d.Deliveries.Webhook(ctx, d.core, d.Endpoint, delivery.Webhook{ID: d.id, Body: body})
	}
	settings := d.core.Tenant.Settings
	messaging := d.Messaging
	if messaging == "" {
		messaging = settings.ExpiryMail.Messaging
	}
	return d.Deliveries.Mail(ctx, d.core, delivery.Mail{ID: d.id, User: d.e.User, Template: d.Template, Messaging: messaging, Values: map[string]string{
		"event": string(d.e.Type), "message": d.Message, "time": mail.FormatTime(d.e.At, settings.Location(), settings.Language),
	}})
}

// webhookBody is what a webhook tells: what is known of the event but its secrets.
type webhookBody struct {
	ID      string       `json:"id"` // of the delivery
	Version int          `json:"version"`
	Rule    webhookRule  `json:"rule"`
	Event   webhookEvent `json:"event"`
}

type webhookRule struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

type webhookEvent struct {
	ID         string            `json:"id"`
	Type       event.Type        `json:"type"`
	Time       time.Time         `json:"time"`
	User       string            `json:"user,omitempty"`
	Credential string            `json:"credential,omitempty"`
	Attributes map[string]string `json:"attributes"`
}

func webhookOf(e event.Event, run event.Run, id string) webhookBody {
	attributes := e.Attributes
	if attributes == nil {
		attributes = map[string]string{}
	}
	return webhookBody{id, event.Version, webhookRule{run.Rule, run.Name}, webhookEvent{e.ID, e.Type, e.At.UTC(), e.User, e.Card, attributes}}
}
