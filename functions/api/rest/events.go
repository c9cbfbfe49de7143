package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

const (
	maxEvents      = 100
	maxEventsBody  = 1 << 20
	eventsParallel = 8
)

// EventInput is an event as it is told.
type EventInput struct {
	ID   string    `json:"id,omitempty" doc:"Your name for the event: 1 to 200 printable characters without space. An event is acted on once, however often it is sent." example:"print-job-4711"`
	Type string    `json:"type,omitempty" doc:"See the catalogue; names of your own begin with custom." example:"print-job.submitted"`
	Time time.Time `json:"time,omitzero" doc:"When it happened: at most 7 days ago, and no more than 5 minutes ahead. Left out, now."`

	User       *userRefBody `json:"user,omitempty" doc:"The user whom it is about."`
	Credential string       `json:"credential,omitempty" maxLength:"100" doc:"The id of the card that it is about."`

	Attributes       map[string]string      `json:"attributes,omitempty" doc:"What else is to be known, for rules to ask for: at most 20 with the secret ones, of at most 1000 bytes each."`
	SecretAttributes map[string]secretInput `json:"secretAttributes,omitempty" doc:"Attributes that are secrets, such as a PIN that a rule is to set. They are kept sealed until the event is done, and never shown."`

	NewUser *newUserBody `json:"newUser,omitempty" doc:"Whom to create if the user is not known and the tenant's settings want that. Left out, a user with what the reference names."`
}

type userRefBody struct {
	ID         string `json:"id,omitempty" maxLength:"60"`
	Username   string `json:"username,omitempty" maxLength:"128"`
	ExternalID string `json:"externalId,omitempty" maxLength:"200"`
	Mail       string `json:"mail,omitempty" maxLength:"254" doc:"If several users have the address it names none of them."`
}

type newUserBody struct {
	Username    string   `json:"username"`
	DisplayName string   `json:"displayName,omitempty"`
	Mail        string   `json:"mail,omitempty"`
	Phone       string   `json:"phone,omitempty"`
	StaffNumber string   `json:"staffNumber,omitempty"`
	ExternalID  string   `json:"externalId,omitempty"`
	Groups      []string `json:"groups,omitempty"`
}

func (in EventInput) event(now time.Time) (event.Event, *user.Profile) {
	e := event.Event{ID: in.ID, Type: event.Type(in.Type), At: in.Time, Card: in.Credential, Attributes: in.Attributes, Source: event.FromAPI}
	if e.At.IsZero() {
		e.At = now
	}
	if in.User != nil {
		e.Ref = event.Ref(*in.User)
	}
	if len(in.SecretAttributes) > 0 {
		e.Secrets = make(map[string]secret.Text, len(in.SecretAttributes))
		for name, value := range in.SecretAttributes {
			e.Secrets[name] = value.Text
		}
	}
	if in.NewUser == nil {
		return e, nil
	}
	p := user.Profile(*in.NewUser)
	return e, &p
}

// EventFields are an event as it is shown.
type EventFields struct {
	ID         string            `json:"id"`
	Type       string            `json:"type"`
	Time       time.Time         `json:"time"`
	ReceivedAt time.Time         `json:"receivedAt"`
	Source     string            `json:"source" enum:"api,queue,bus,inside"`
	User       string            `json:"user,omitempty" doc:"The id of the user whom it is about, where a rule waited for it."`
	Credential string            `json:"credential,omitempty"`
	Attributes map[string]string `json:"attributes"`
	Chain      []string          `json:"chain" doc:"The rules whose actions led to it."`
	State      string            `json:"state" enum:"waiting,done"`
	Runs       []RunFields       `json:"runs" doc:"What each rule that waits for the type made of it."`
}

// RunFields are what a rule made of an event.
type RunFields struct {
	Rule    string         `json:"rule"`
	Name    string         `json:"name"`
	Outcome string         `json:"outcome" enum:"acted,notMet,cut" doc:"notMet: a condition did not hold. cut: rules would go round in circles."`
	Reason  string         `json:"reason,omitempty" doc:"The condition that did not hold, or why it was cut."`
	Effects []EffectFields `json:"effects"`
}

// EffectFields are what came of an action.
type EffectFields struct {
	Action  string `json:"action"`
	Outcome string `json:"outcome" enum:"done,refused"`
	Reason  string `json:"reason,omitempty"`
	About   string `json:"about,omitempty" doc:"The id of what it made: a delivery, an unblock."`
}

func runsOut(runs []event.Run) []RunFields {
	out := []RunFields{}
	for _, r := range runs {
		f := RunFields{r.Rule, r.Name, string(r.Outcome), r.Reason, []EffectFields{}}
		for _, e := range r.Effects {
			f.Effects = append(f.Effects, EffectFields{e.Action, string(e.Outcome), e.Reason, e.About})
		}
		out = append(out, f)
	}
	return out
}

func eventOut(e event.Event) EventFields {
	f := EventFields{e.ID, string(e.Type), e.At, e.ReceivedAt, string(e.Source), e.User, e.Card, e.Attributes, e.Chain, string(e.State), runsOut(e.Runs)}
	if f.Attributes == nil {
		f.Attributes = map[string]string{}
	}
	if f.Chain == nil {
		f.Chain = []string{}
	}
	return f
}

type eventResult struct {
	ID      string      `json:"id"`
	Outcome string      `json:"outcome" enum:"done,duplicate,refused,failed" doc:"duplicate: it had come before; runs are what it caused then. refused: errors tell why, and nothing was stored. failed: on our side; send it again."`
	Runs    []RunFields `json:"runs"`
	Errors  []Detail    `json:"errors,omitempty"`
}

func (a *API) eventOperations(api huma.API) {
	const tag = "Events"
	type eventsInput struct {
		EventInput
		Events []EventInput `json:"events,omitempty" maxItems:"100" doc:"Up to 100 events, in place of one. They are acted on side by side, in no certain order."`
	}
	type eventsBody struct {
		Results []eventResult `json:"results" doc:"One for each event, in their order."`
	}
	register(a, api, operation{
		id: "send-events", summary: "Tell what has happened", method: http.MethodPost, path: "/v1/events",
		action: tenant.SendEvents, tag: tag, maxBody: maxEventsBody,
		about: "One event, or up to 100. Trigger rules act on them at once; each is answered with what it caused. One event that is refused is a problem; of several, each has its own outcome. PINs that rules make are in no answer: they reach their owners by mail.",
	}, func(ctx context.Context, in *struct{ Body eventsInput }) (*Body[eventsBody], error) {
		one := in.Body.EventInput
		single := in.Body.Events == nil
		if !single && !reflect.ValueOf(one).IsZero() {
			return nil, problem.Invalid("inconsistent", "events", "are given beside an event; put it among them")
		}
		all := in.Body.Events
		if single {
			all = []EventInput{one}
		} else if len(all) == 0 {
			return nil, problem.Invalid("count", "events", "are none, want 1 to %d", maxEvents)
		}
		results := make([]eventResult, len(all))
		errs := make([]error, len(all))
		var g errgroup.Group
		g.SetLimit(eventsParallel)
		for i, given := range all {
			g.Go(func() error {
				results[i], errs[i] = a.receive(ctx, given)
				return nil
			})
		}
		_ = g.Wait()
		if single && errs[0] != nil {
			return nil, errs[0]
		}
		for i, err := range errs {
			if err == nil {
				continue
			}
			p, where := problemOf(ctx, err), fmt.Sprintf("body.events[%d]", i)
			var invalid *problem.InvalidError
			if !errors.As(err, &invalid) {
				results[i].Outcome, results[i].Errors = "failed", []Detail{{"failed", where, p.Detail}}
				continue
			}
			results[i].Outcome = "refused"
			for _, d := range p.Errors {
				d.Location = where + strings.TrimPrefix(d.Location, "body")
				results[i].Errors = append(results[i].Errors, d)
			}
		}
		return answer(eventsBody{results}), nil
	})

	register(a, api, operation{
		id: "list-events", summary: "List events", method: http.MethodGet, path: "/v1/events",
		action: tenant.ReadEvents, tag: tag, about: "Newest first. They are kept for 30 days.",
	}, func(ctx context.Context, in *struct{ Paging }) (*Body[List[EventFields]], error) {
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		events, next, err := event.List(ctx, a.Table, caller(ctx).Core.Tenant.ID, place, in.Limit)
		if err != nil {
			return nil, err
		}
		return page(events, next, eventOut), nil
	})

	register(a, api, operation{
		id: "get-event", summary: "Get an event", method: http.MethodGet, path: "/v1/event",
		action: tenant.ReadEvents, tag: tag, about: "By its id, which may have characters that a path cannot: what came of it, rule by rule.",
	}, func(ctx context.Context, in *struct {
		ID string `query:"id" required:"true" maxLength:"200"`
	}) (*Body[EventFields], error) {
		e, err := event.Get(ctx, a.Table, caller(ctx).Core.Tenant.ID, in.ID)
		if err != nil {
			return nil, err
		}
		return answer(eventOut(e)), nil
	})

	type entryBody struct {
		Type       string   `json:"type"`
		Inside     bool     `json:"inside" doc:"It happens in Pinward; nobody else may tell it."`
		About      string   `json:"about"`
		Attributes []string `json:"attributes" doc:"Those it comes with, of events from inside."`
	}
	type catalogueBody struct {
		Version int         `json:"version"`
		Types   []entryBody `json:"types"`
	}
	register(a, api, operation{
		id: "get-event-catalogue", summary: "What events there are", method: http.MethodGet, path: "/v1/event-types",
		action: tenant.ReadCaller, tag: tag, about: "Besides, names of your own that begin with custom, such as custom.door-opened.",
	}, func(context.Context, *struct{}) (*Body[catalogueBody], error) {
		b := catalogueBody{Version: event.Version, Types: []entryBody{}}
		for _, e := range event.Catalogue() {
			attributes := e.Adds
			if attributes == nil {
				attributes = []string{}
			}
			b.Types = append(b.Types, entryBody{string(e.Type), e.Inside, e.About, attributes})
		}
		return answer(b), nil
	})
}

func (a *API) receive(ctx context.Context, in EventInput) (eventResult, error) {
	e, fresh := in.event(a.Now())
	got, err := a.Engine.Receive(ctx, caller(ctx).Core, e, fresh)
	if err != nil {
		return eventResult{ID: in.ID, Runs: []RunFields{}}, err
	}
	outcome := "done"
	if got.Duplicate {
		outcome = "duplicate"
	}
	return eventResult{ID: in.ID, Outcome: outcome, Runs: runsOut(got.Event.Runs)}, nil
}
