package rest

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// RuleFields are a trigger rule in requests and answers.
type RuleFields struct {
	Name       string           `json:"name" example:"First print job: give a PIN and mail it"`
	On         bool             `json:"on" required:"false" doc:"Left out, it is off."`
	Order      int              `json:"order" required:"false" doc:"Rules of a type act in this order, the lowest first."`
	Event      string           `json:"event" doc:"The type of events that it acts on." example:"print-job.submitted"`
	Conditions ConditionsFields `json:"conditions" required:"false" doc:"All must hold."`
	Actions    []ActionFields   `json:"actions" doc:"What is to be done, in this order: 1 to 5. One that is refused does not keep the rest from being done."`
}

// ConditionsFields are when a rule acts.
type ConditionsFields struct {
	First                 bool            `json:"first" required:"false" doc:"It is the user's first event of the type since there is a rule, on or off, that asks so."`
	HasPIN                *bool           `json:"hasPin,omitempty" doc:"The user has, or has not, a PIN that has not expired."`
	HasMail               *bool           `json:"hasMail,omitempty" doc:"The user has, or has not, a mail address."`
	HasActiveCard         *bool           `json:"hasActiveCard,omitempty"`
	Groups                []string        `json:"groups" required:"false" doc:"The user is in one of these groups."`
	PINOlderThanHours     int             `json:"pinOlderThanHours,omitempty"`
	PINExpiresWithinHours int             `json:"pinExpiresWithinHours,omitempty"`
	Attributes            []AttributeTest `json:"attributes" required:"false" doc:"What the event's attributes must be."`
	Window                *RuleWindow     `json:"window,omitempty" doc:"When the event happened, in the tenant's time zone."`
}

// AttributeTest is a condition on an attribute.
type AttributeTest struct {
	Name    string   `json:"name"`
	Equals  *string  `json:"equals,omitempty"`
	In      []string `json:"in,omitempty"`
	Matches string   `json:"matches,omitempty" doc:"A regular expression in RE2's syntax, of the whole value."`
}

// RuleWindow is a time window.
type RuleWindow struct {
	Days []string `json:"days,omitempty" example:"[\"monday\"]" doc:"On which it is; left out, each."`
	From string   `json:"from,omitempty" example:"08:00"`
	To   string   `json:"to,omitempty" doc:"Before from, it is on the next day." example:"18:00"`
}

// ActionFields are an action. Which of them it takes its kind tells.
type ActionFields struct {
	Kind       string `json:"kind" enum:"generatePIN,setPIN,expirePIN,requireChange,sendMail,callWebhook,requestUnblock" doc:"generatePIN: gives the user a PIN and mails it; it counts once the mail was taken. setPIN: gives the user the PIN in a secret attribute. expirePIN: lets the PIN expire now. requireChange: has the user change it. sendMail, callWebhook: tells the user, or another system. requestUnblock: asks operators to approve the unblock of the card that the event is about."`
	Length     int    `json:"length,omitempty" doc:"Of generatePIN; left out, the shortest that the policy allows."`
	Alphabet   string `json:"alphabet,omitempty" doc:"Of generatePIN: digits, alphanumeric or printable."`
	ValidHours int    `json:"validHours,omitempty" doc:"Of generatePIN: how long the PIN lives; left out, as the policy has it."`
	OneTime    string `json:"oneTime,omitempty" doc:"Of generatePIN: change, the PIN has to be changed at its first use; delete, it is gone then."`
	Attribute  string `json:"attribute,omitempty" doc:"Of setPIN: the name of the secret attribute."`
	Messaging  string `json:"messaging,omitempty" doc:"Of generatePIN and sendMail: the messaging configuration; left out, that for expiry mails."`
	Template   string `json:"template,omitempty" doc:"Of generatePIN and sendMail: the mail template; left out, the predefined one."`
	Message    string `json:"message,omitempty" doc:"Of sendMail: what the mail is to say."`
	Endpoint   string `json:"endpoint,omitempty" doc:"Of callWebhook: the id of the webhook."`
}

// apply replaces what a rule says. A day that is none is left for Validate, as -1.
func (in RuleFields) apply(r *rule.Rule) {
	c := in.Conditions
	r.Name, r.On, r.Order, r.Event = in.Name, in.On, in.Order, event.Type(in.Event)
	r.Conditions = rule.Conditions{First: c.First, HasPIN: c.HasPIN, HasMail: c.HasMail, HasActiveCard: c.HasActiveCard,
		Groups: c.Groups, PINOlderThanHours: c.PINOlderThanHours, PINExpiresWithinHours: c.PINExpiresWithinHours}
	for _, t := range c.Attributes {
		r.Conditions.Attributes = append(r.Conditions.Attributes, rule.Test(t))
	}
	if w := c.Window; w != nil {
		r.Conditions.Window = rule.Window{From: w.From, To: w.To}
		for _, d := range w.Days {
			day := time.Saturday
			for day >= time.Sunday && strings.ToLower(day.String()) != d {
				day--
			}
			r.Conditions.Window.Days = append(r.Conditions.Window.Days, day)
		}
	}
	r.Actions = nil
	for _, a := range in.Actions {
		r.Actions = append(r.Actions, rule.Action{Kind: rule.Kind(a.Kind), Length: a.Length, Alphabet: pin.Alphabet(a.Alphabet), ValidHours: a.ValidHours,
			OneTime: user.OneTime(a.OneTime), Attribute: a.Attribute, Messaging: a.Messaging, Template: a.Template, Message: a.Message, Endpoint: a.Endpoint})
	}
}

type ruleBody struct {
	ID string `json:"id"`
	RuleFields
	Ready     bool      `json:"ready" doc:"It is one of those that each tenant has from the first."`
	CreatedAt time.Time `json:"createdAt,omitzero"`
	UpdatedAt time.Time `json:"updatedAt,omitzero"`
	Warnings  []Detail  `json:"warnings" doc:"What can hardly be meant, such as conditions that never hold together."`
}

func ruleOut(r rule.Rule) ruleBody {
	c := r.Conditions
	b := ruleBody{ID: r.ID, Ready: rule.IsPredefined(r.ID), CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt, Warnings: []Detail{},
		RuleFields: RuleFields{Name: r.Name, On: r.On, Order: r.Order, Event: string(r.Event), Actions: []ActionFields{},
			Conditions: ConditionsFields{First: c.First, HasPIN: c.HasPIN, HasMail: c.HasMail, HasActiveCard: c.HasActiveCard, Groups: c.Groups,
				PINOlderThanHours: c.PINOlderThanHours, PINExpiresWithinHours: c.PINExpiresWithinHours, Attributes: []AttributeTest{}}}}
	if b.Conditions.Groups == nil {
		b.Conditions.Groups = []string{}
	}
	for _, t := range c.Attributes {
		b.Conditions.Attributes = append(b.Conditions.Attributes, AttributeTest(t))
	}
	if !c.Window.IsZero() {
		b.Conditions.Window = &RuleWindow{From: c.Window.From, To: c.Window.To}
		b.Conditions.Window.Days = tenant.WeekdayNames(c.Window.Days)
	}
	for _, x := range r.Actions {
		b.Actions = append(b.Actions, ActionFields{string(x.Kind), x.Length, string(x.Alphabet), x.ValidHours, string(x.OneTime), x.Attribute, x.Messaging, x.Template, x.Message, x.Endpoint})
	}
	for _, v := range r.Warnings() {
		b.Warnings = append(b.Warnings, Detail{v.Code, "body." + v.Field, v.Reason})
	}
	return b
}

// RulePath names a trigger rule in a path.
type RulePath struct {
	Rule string `path:"rule" maxLength:"60"`
}

type createdRule struct {
	Location string `header:"Location"`
	ETag     string `header:"ETag"`
	Body     ruleBody
}

func (a *API) ruleOperations(api huma.API) {
	const tag = "Trigger rules"
	register(a, api, operation{
		id: "list-trigger-rules", summary: "List trigger rules", method: http.MethodGet, path: "/v1/trigger-rules",
		action: tenant.ReadRules, tag: tag, about: "All of them, in the order in which they act. Some are there from the first, off.",
	}, func(ctx context.Context, _ *struct{}) (*Body[List[ruleBody]], error) {
		rules, err := a.Rules.List(ctx, caller(ctx).Core.Tenant.ID)
		if err != nil {
			return nil, err
		}
		return page(rules, "", ruleOut), nil
	})

	register(a, api, operation{
		id: "create-trigger-rule", summary: "Create a trigger rule", method: http.MethodPost, path: "/v1/trigger-rules",
		action: tenant.WriteRules, status: http.StatusCreated, tag: tag,
	}, func(ctx context.Context, in *struct{ Body RuleFields }) (*createdRule, error) {
		c := caller(ctx)
		var r rule.Rule
		in.Body.apply(&r)
		if err := r.Validate(); err != nil {
			return nil, err
		}
		checks, err := a.Engine.Checks(ctx, c.Core.Tenant.ID, r)
		if err != nil {
			return nil, err
		}
		if r, err = a.Rules.Create(ctx, c.Core, c.Actor, r, checks...); err != nil {
			return nil, err
		}
		out := versioned(ruleOut(r), r.Version)
		return &createdRule{"/v1/trigger-rules/" + r.ID, out.ETag, out.Body}, nil
	})

	register(a, api, operation{
		id: "get-trigger-rule", summary: "Get a trigger rule", method: http.MethodGet, path: "/v1/trigger-rules/{rule}",
		action: tenant.ReadRules, tag: tag,
	}, func(ctx context.Context, in *RulePath) (*Versioned[ruleBody], error) {
		r, err := a.Rules.Get(ctx, caller(ctx).Core.Tenant.ID, in.Rule)
		if err != nil {
			return nil, err
		}
		return versioned(ruleOut(r), r.Version), nil
	})

	register(a, api, operation{
		id: "put-trigger-rule", summary: "Change a trigger rule", method: http.MethodPut, path: "/v1/trigger-rules/{rule}",
		action: tenant.WriteRules, tag: tag, about: "What it has begun to do goes on as it was.",
	}, func(ctx context.Context, in *struct {
		RulePath
		IfMatch
		Body RuleFields
	}) (*Versioned[ruleBody], error) {
		c := caller(ctx)
		old, err := a.Rules.Get(ctx, c.Core.Tenant.ID, in.Rule)
		if err != nil {
			return nil, err
		}
		if err := in.check(old.Version); err != nil {
			return nil, err
		}
		r := old
		in.Body.apply(&r)
		if err := r.Validate(); err != nil {
			return nil, err
		}
		checks, err := a.Engine.Checks(ctx, c.Core.Tenant.ID, r)
		if err != nil {
			return nil, err
		}
		r, err = a.Rules.Update(ctx, c.Core, c.Actor, r, checks...)
		if op, failed := table.FailedOp(err); failed && op == 0 && in.IfMatch.IfMatch != "" {
			return nil, errPrecondition
		} else if err != nil {
			return nil, err
		}
		return versioned(ruleOut(r), r.Version), nil
	})

	register(a, api, operation{
		id: "delete-trigger-rule", summary: "Delete a trigger rule", method: http.MethodDelete, path: "/v1/trigger-rules/{rule}",
		action: tenant.WriteRules, status: http.StatusNoContent, tag: tag, about: "One that was there from the first becomes as it came: off.",
	}, func(ctx context.Context, in *RulePath) (*struct{}, error) {
		c := caller(ctx)
		return nil, a.Rules.Delete(ctx, c.Core, c.Actor, in.Rule)
	})

	register(a, api, operation{
		id: "list-trigger-rule-history", summary: "What a trigger rule has done", method: http.MethodGet, path: "/v1/trigger-rules/{rule}/history",
		action: tenant.ReadRules, tag: tag,
		about: "Newest first: each action, to whom, and if it was refused, why; chains that were cut; and who changed the rule. Events whose conditions did not hold are in the list of events.",
	}, func(ctx context.Context, in *struct {
		RulePath
		Paging
	}) (*Body[List[auditBody]], error) {
		t := caller(ctx).Core.Tenant.ID
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		records, more, err := audit.Of(ctx, a.Table, t, rule.Subject(in.Rule), place, in.Limit)
		if err != nil {
			return nil, err
		}
		if len(records) == 0 && place == "" {
			if _, err := a.Rules.Get(ctx, t, in.Rule); err != nil { // one that was deleted has its history still
				return nil, err
			}
		}
		next := ""
		if more {
			next = records[len(records)-1].ID
		}
		return page(records, next, auditOut), nil
	})
	a.trialOperation(api, tag)
}

type trialBody struct {
	Event EventFields `json:"event"`
	Run   RunFields   `json:"run"`
}

type trialsBody struct {
	Read     int            `json:"read" doc:"Events looked at, of any type."`
	Of       int            `json:"ofType" doc:"Of those, of the rule's type."`
	Acting   int            `json:"acting" doc:"Of those, the rule would act."`
	NotMet   map[string]int `json:"notMet" doc:"The others, by the condition that does not hold."`
	Refused  map[string]int `json:"refused" doc:"Actions that would be refused, by their reason."`
	From     time.Time      `json:"from,omitzero" doc:"When the first of the events came in."`
	More     bool           `json:"more,omitempty" doc:"There are more events than were looked at."`
	Trials   []trialBody    `json:"trials" doc:"Those in which it would act, at most 200."`
	Warnings []Detail       `json:"warnings"`
}

func (a *API) trialOperation(api huma.API, tag string) {
	register(a, api, operation{
		id: "try-trigger-rule", summary: "Say what a trigger rule would do", method: http.MethodPost, path: "/v1/trigger-rules/try",
		action: tenant.WriteRules, tag: tag, maxBody: maxEventsBody,
		about: "A dry run, of a rule that is saved or of one that is not, on or off: over one event or, without one, over the events of the last 30 days. Nothing is changed and nothing is sent. Users, PINs and cards are looked at as they are now.",
	}, func(ctx context.Context, in *struct {
		Body struct {
			RuleID string      `json:"ruleId,omitempty" maxLength:"60" doc:"A rule that is saved."`
			Rule   *RuleFields `json:"rule,omitempty" doc:"One that is not, in place of ruleId."`
			Event  *EventInput `json:"event,omitempty"`
		}
	}) (*Body[trialsBody], error) {
		core := caller(ctx).Core
		var r rule.Rule
		switch {
		case (in.Body.RuleID == "") == (in.Body.Rule == nil):
			return nil, problem.Invalid("inconsistent", "rule", "give either ruleId or rule")
		case in.Body.Rule != nil:
			in.Body.Rule.apply(&r)
			r.ID = "unsaved"
		default:
			var err error
			if r, err = a.Rules.Get(ctx, core.Tenant.ID, in.Body.RuleID); err != nil {
				return nil, err
			}
		}
		b := trialsBody{NotMet: map[string]int{}, Refused: map[string]int{}, Trials: []trialBody{}, Warnings: ruleOut(r).Warnings}
		for i, w := range b.Warnings {
			b.Warnings[i].Location = strings.Replace(w.Location, "body.", "body.rule.", 1)
		}
		if in.Body.Event == nil {
			ts, err := a.Engine.TryAll(ctx, core, r)
			if err != nil {
				return nil, err
			}
			b.Read, b.Of, b.Acting, b.NotMet, b.Refused, b.From, b.More = ts.Read, ts.Of, ts.Acting, ts.Unmet, ts.Refused, ts.From, ts.More
			for _, t := range ts.Shown {
				b.Trials = append(b.Trials, trialOut(t))
			}
			return answer(b), nil
		}
		e, _ := in.Body.Event.event(a.Now())
		if e.ID == "" {
			e.ID = "trial"
		}
		if e.Type.Inside() {
			e = e.AsInside()
		}
		t, err := a.Engine.Try(ctx, core, r, e)
		if err != nil {
			return nil, err
		}
		b.Read, b.Of = 1, 1
		b.Trials = []trialBody{trialOut(t)}
		if t.Acts() {
			b.Acting = 1
		} else {
			b.NotMet[t.Run.Reason] = 1
		}
		for _, f := range t.Run.Effects {
			if f.Reason != "" {
				b.Refused[f.Reason]++
			}
		}
		return answer(b), nil
	})
}

func trialOut(t rule.Trial) trialBody {
	return trialBody{eventOut(t.Event), runsOut([]event.Run{t.Run})[0]}
}
