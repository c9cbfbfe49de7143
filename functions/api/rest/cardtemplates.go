package rest

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

type cardTemplateInput struct {
	Name         string       `json:"name" example:"Staff"`
	Family       string       `json:"family" doc:"PIV or GIDS. It cannot be changed." example:"PIV"`
	Policy       *policyInput `json:"policy,omitempty" doc:"What the PINs of these cards must meet. The profile default is here what is usual for the family: PIV 6 to 8 digits, GIDS 4 to 16 letters and digits."`
	Channels     []string     `json:"channels,omitempty" doc:"The ways to an unblock that are open: selfService (the holder, at a bridge), operator (somebody who has made sure who the person is), logonScreen (the holder, at a locked screen or a login); and without a connection, by challenge and response with a help desk, selfServiceOffline, logonScreenOffline, and windowsChallengeResponse at Windows' own logon screen."`
	Messaging    string       `json:"messaging,omitempty" doc:"The messaging configuration for mails to holders. Left out, none are sent but reminders that name their own, and no channel can be by a mailed code."`
	PINValidDays int          `json:"pinValidDays,omitempty" doc:"Server-managed PIN expiry: the life of a card's PIN, from which its PIN expiry flag is set; 0 is off." example:"365"`

	Proofs          map[string]string `json:"proofs,omitempty" doc:"How it is made sure on a channel who the person is: mailedCode, statement (by whoever helps, of how they have identified the person), twoOperators (and a second one approves). Left out, mailedCode for selfService and logonScreen, else statement."`
	Limit           *limitBody        `json:"limit,omitempty" doc:"How often a card's PIN is reset. Left out, there is no limit."`
	Reminders       []reminderBody    `json:"reminders,omitempty" maxItems:"10" doc:"Mails to the holder before the PIN expires."`
	ExpiredTemplate string            `json:"expiredMailTemplate,omitempty" doc:"The mail template, of kind card-pin-expired, that tells that the PIN has expired; left out, the predefined one."`
	OperatorMail    string            `json:"operatorMail,omitempty" doc:"An address that is told too that a PIN has expired."`

	MasterKey *secretInput `json:"masterKey,omitempty" doc:"The key from which the cards' admin keys are derived (NIST SP 800-108), 16 to 64 bytes in hex. Left out in a change, it stays as it is; there is no other while there are cards. It is stored sealed and never shown."`
}

type limitBody struct {
	Count int `json:"count" doc:"Resets, 1 to 50,"`
	Days  int `json:"days" doc:"within so many days, 1 to 366."`
}

type reminderBody struct {
	DaysBefore   int    `json:"daysBefore" doc:"1 to 365, and less than pinValidDays." example:"14"`
	MailTemplate string `json:"mailTemplate,omitempty" doc:"Of kind card-pin-expiry; left out, the predefined one."`
	Messaging    string `json:"messaging,omitempty" doc:"A messaging configuration; left out, the credential template's."`
}

// apply replaces what a template says. What is wrong with the policy's profile is all that
// it finds; the rest is for Validate.
func (in cardTemplateInput) apply(t *credential.Template) error {
	t.Name, t.Family, t.Messaging, t.PINValidDays, t.Channels = in.Name, in.Family, in.Messaging, in.PINValidDays, nil
	for _, c := range in.Channels {
		t.Channels = append(t.Channels, credential.Channel(c))
	}
	t.Proofs, t.Reminders, t.Limit = nil, nil, credential.Limit{}
	t.ExpiredTemplate, t.OperatorMail = in.ExpiredTemplate, in.OperatorMail
	for c, p := range in.Proofs {
		if t.Proofs == nil {
			t.Proofs = map[credential.Channel]credential.Proof{}
		}
		t.Proofs[credential.Channel(c)] = credential.Proof(p)
	}
	for _, r := range in.Reminders {
		t.Reminders = append(t.Reminders, credential.Reminder(r))
	}
	if in.Limit != nil {
		t.Limit = credential.Limit(*in.Limit)
	}
	f, err := card.FamilyNamed(in.Family)
	if err != nil {
		return nil // Validate tells which there are
	}
	if t.Policy = f.Policy(); in.Policy == nil {
		return nil
	}
	var vs problem.Violations
	t.Policy, err = in.Policy.over(t.Policy)
	vs.Under("policy", err)
	return vs.Err()
}

type cardTemplateBody struct {
	ID           string       `json:"id"`
	Name         string       `json:"name"`
	Family       string       `json:"family"`
	Policy       PolicyFields `json:"policy"`
	Channels     []string     `json:"channels"`
	Messaging    string       `json:"messaging,omitempty"`
	PINValidDays int          `json:"pinValidDays"`
	MasterKeySet bool         `json:"masterKeySet"`
	Custody      string       `json:"custody" enum:"pukEscrowedAndRotated,adminKeyEscrowed,adminKeyDerived" doc:"How the secret that resets a card's PIN is kept: its PUK escrowed, and changed whenever it was used; or its admin key escrowed, or derived from the master key."`

	Proofs          map[string]string `json:"proofs" doc:"Of all channels, open or not."`
	Limit           *limitBody        `json:"limit,omitempty"`
	Reminders       []reminderBody    `json:"reminders"`
	ExpiredTemplate string            `json:"expiredMailTemplate,omitempty"`
	OperatorMail    string            `json:"operatorMail,omitempty"`

	Credentials *int `json:"credentials,omitempty" doc:"How many credentials have it; not in lists."`
}

func cardTemplateOut(t credential.Template) cardTemplateBody {
	b := cardTemplateBody{ID: t.ID, Name: t.Name, Family: t.Family, Policy: policyOut(t.Policy), Channels: []string{},
		Messaging: t.Messaging, PINValidDays: t.PINValidDays, MasterKeySet: t.MasterKey != nil}
	for _, c := range t.Channels {
		b.Channels = append(b.Channels, string(c))
	}
	b.Custody, b.ExpiredTemplate, b.OperatorMail = string(t.Custody()), t.ExpiredTemplate, t.OperatorMail
	b.Proofs, b.Reminders = map[string]string{}, []reminderBody{}
	for _, c := range credential.Channels() {
		b.Proofs[string(c)] = string(t.ProofFor(c))
	}
	for _, r := range t.Reminders {
		b.Reminders = append(b.Reminders, reminderBody(r))
	}
	if t.Limit != (credential.Limit{}) {
		b.Limit = (*limitBody)(&t.Limit)
	}
	return b
}

// CardTemplatePath names a credential template in a path.
type CardTemplatePath struct {
	CardTemplate string `path:"cardTemplate" maxLength:"60"`
}

type createdCardTemplate struct {
	Location string `header:"Location"`
	ETag     string `header:"ETag"`
	Body     cardTemplateBody
}

func (a *API) cardTemplateOperations(api huma.API) {
	const tag = "Credential templates"
	register(a, api, operation{
		id: "list-card-templates", summary: "List credential templates", method: http.MethodGet, path: "/v1/card-templates",
		action: tenant.ReadCardTemplates, tag: tag, about: "All of them, the oldest first.",
	}, func(ctx context.Context, _ *struct{}) (*Body[List[cardTemplateBody]], error) {
		all, err := a.Credentials.Templates(ctx, caller(ctx).Core.Tenant.ID)
		if err != nil {
			return nil, err
		}
		return page(all, "", func(t credential.Template) cardTemplateBody {
			b := cardTemplateOut(t)
			b.Policy.BlocklistEntries = []string{} // they may be many
			return b
		}), nil
	})

	register(a, api, operation{
		id: "create-card-template", summary: "Create a credential template", method: http.MethodPost, path: "/v1/card-templates",
		action: tenant.WriteCardTemplates, status: http.StatusCreated, tag: tag,
		about: "What smart cards of a kind have in common: the policy for their PINs, the ways to an unblock, the life of a PIN.",
	}, func(ctx context.Context, in *struct{ Body cardTemplateInput }) (*createdCardTemplate, error) {
		c := caller(ctx)
		var t credential.Template
		if err := in.Body.apply(&t); err != nil {
			return nil, err
		}
		t, err := a.Credentials.CreateTemplate(ctx, c.Core, c.Actor, t, in.Body.MasterKey.text())
		if err != nil {
			return nil, err
		}
		out := versioned(cardTemplateOut(t), t.Version)
		return &createdCardTemplate{"/v1/card-templates/" + t.ID, out.ETag, out.Body}, nil
	})

	register(a, api, operation{
		id: "get-card-template", summary: "Get a credential template", method: http.MethodGet, path: "/v1/card-templates/{cardTemplate}",
		action: tenant.ReadCardTemplates, tag: tag,
	}, func(ctx context.Context, in *CardTemplatePath) (*Versioned[cardTemplateBody], error) {
		id := caller(ctx).Core.Tenant.ID
		t, err := a.Credentials.Template(ctx, id, in.CardTemplate)
		if err != nil {
			return nil, err
		}
		uses, err := a.Credentials.Uses(ctx, id, t.ID)
		if err != nil {
			return nil, err
		}
		b := cardTemplateOut(t)
		b.Credentials = &uses
		return versioned(b, t.Version), nil
	})

	register(a, api, operation{
		id: "put-card-template", summary: "Change a credential template", method: http.MethodPut, path: "/v1/card-templates/{cardTemplate}",
		action: tenant.WriteCardTemplates, tag: tag,
		about: "It holds for the next unblock of every card that has it. PIN expiry flags that are set stay.",
	}, func(ctx context.Context, in *struct {
		CardTemplatePath
		IfMatch
		Body cardTemplateInput
	}) (*Versioned[cardTemplateBody], error) {
		c := caller(ctx)
		old, err := a.Credentials.Template(ctx, c.Core.Tenant.ID, in.CardTemplate)
		if err != nil {
			return nil, err
		}
		if err := in.check(old.Version); err != nil {
			return nil, err
		}
		if err := in.Body.apply(new(credential.Template)); err != nil {
			return nil, err
		}
		version := int64(0) // any
		if in.IfMatch.IfMatch != "" {
			version = old.Version
		}
		t, err := a.Credentials.UpdateTemplate(ctx, c.Core, c.Actor, old.ID, version, func(t *credential.Template) { _ = in.Body.apply(t) }, in.Body.MasterKey.text())
		if version != 0 && errors.Is(err, problem.ErrConflict) {
			return nil, errPrecondition
		} else if err != nil {
			return nil, err
		}
		return versioned(cardTemplateOut(t), t.Version), nil
	})

	type cardTemplateChange struct {
		Field  string `json:"field"`
		From   string `json:"from,omitempty"`
		To     string `json:"to,omitempty"`
		Effect string `json:"effect" doc:"What it does to the cards, for people."`
	}
	type cardTemplatePreview struct {
		Cards           int                  `json:"cards" doc:"How many credentials have the template."`
		WithoutFlag     int                  `json:"withoutFlag" doc:"Of those, how many have no PIN expiry flag, without retired ones."`
		MoreWithoutFlag bool                 `json:"moreWithoutFlag,omitempty" doc:"There are more than were counted."`
		Changes         []cardTemplateChange `json:"changes"`
	}
	register(a, api, operation{
		id: "preview-card-template", summary: "Say what a change of a credential template would do", method: http.MethodPost, path: "/v1/card-templates/{cardTemplate}/preview",
		action: tenant.WriteCardTemplates, tag: tag,
		about: "A dry run of the same PUT: what that would refuse is refused, and nothing is changed.",
	}, func(ctx context.Context, in *struct {
		CardTemplatePath
		Body cardTemplateInput
	}) (*Body[cardTemplatePreview], error) {
		if err := in.Body.apply(new(credential.Template)); err != nil {
			return nil, err
		}
		p, err := a.Credentials.Preview(ctx, caller(ctx).Core, in.CardTemplate, func(t *credential.Template) { _ = in.Body.apply(t) }, in.Body.MasterKey.text())
		if err != nil {
			return nil, err
		}
		b := cardTemplatePreview{Cards: p.Cards, WithoutFlag: p.WithoutFlag, MoreWithoutFlag: p.MoreWithoutFlag, Changes: []cardTemplateChange{}}
		for _, c := range p.Changes {
			b.Changes = append(b.Changes, cardTemplateChange(c))
		}
		return answer(b), nil
	})

	register(a, api, operation{
		id: "delete-card-template", summary: "Delete a credential template", method: http.MethodDelete, path: "/v1/card-templates/{cardTemplate}",
		action: tenant.WriteCardTemplates, status: http.StatusNoContent, tag: tag, about: "Not while credentials have it.",
	}, func(ctx context.Context, in *CardTemplatePath) (*struct{}, error) {
		c := caller(ctx)
		return nil, a.Credentials.DeleteTemplate(ctx, c.Core, c.Actor, in.CardTemplate, 0)
	})
}
