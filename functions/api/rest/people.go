package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

// PersonPath names somebody who signs in in a path.
type PersonPath struct {
	Person string `path:"person" maxLength:"60" doc:"The person's id."`
}

type personBody struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Mail       string    `json:"mail"`
	Roles      []string  `json:"roles"`
	Language   string    `json:"language,omitempty" doc:"Of the pages and mails; absent it is the organisation's."`
	Disabled   bool      `json:"disabled" doc:"Cannot sign in."`
	CreatedAt  time.Time `json:"createdAt"`
	SignedInAt time.Time `json:"signedInAt,omitzero" doc:"The last time."`
}

func personOut(p person.Person) personBody {
	roles := make([]string, len(p.Roles))
	for i, r := range p.Roles {
		roles[i] = string(r)
	}
	return personBody{p.ID, p.Name, p.Mail, roles, p.Language, p.Disabled, p.CreatedAt, p.SignedInAt}
}

type personInput struct {
	Name     *string   `json:"name,omitempty" example:"Ada Lovelace"`
	Mail     *string   `json:"mail,omitempty" example:"ada@example.org" doc:"Who reads it can sign in. Unique within the tenant, whatever its case."`
	Roles    *[]string `json:"roles,omitempty" doc:"One or more of admin, operator, helpdesk and auditor; who has several may do what any of them may."`
	Language *string   `json:"language,omitempty" example:"de"`
	Disabled *bool     `json:"disabled,omitempty"`
}

func (in personInput) apply(p *person.Person) {
	overlay(&p.Name, in.Name)
	overlay(&p.Mail, in.Mail)
	overlay(&p.Language, in.Language)
	overlay(&p.Disabled, in.Disabled)
	if in.Roles != nil {
		p.Roles = make([]tenant.Role, len(*in.Roles))
		for i, r := range *in.Roles {
			p.Roles[i] = tenant.Role(r)
		}
	}
}

type createdPerson struct {
	Location string `header:"Location"`
	ETag     string `header:"ETag"`
	Body     personBody
}

type personSessionBody struct {
	ID        string    `json:"id"`
	Method    string    `json:"method" enum:"mail,link,oidc" doc:"How the person signed in: by a mailed code or link, by a link handed over, or by the organisation's provider."`
	Client    string    `json:"client,omitempty" doc:"The network address signed in from."`
	Agent     string    `json:"agent,omitempty" doc:"What the browser says it is."`
	CreatedAt time.Time `json:"createdAt"`
	SeenAt    time.Time `json:"seenAt" doc:"When it was last used, to the minute."`
}

func personSessionOut(s person.Session) personSessionBody {
	return personSessionBody{s.ID, string(s.Method), s.Device.Client, s.Device.Agent, s.CreatedAt, s.SeenAt}
}

type signInLinkBody struct {
	Link      string    `json:"link" doc:"Whoever opens it is signed in as the person, once. It is shown this once."`
	ExpiresAt time.Time `json:"expiresAt"`
}

// mailTaken tells that an address is another person's.
func mailTaken(err error) error {
	if !errors.Is(err, person.ErrMailTaken) {
		return err
	}
	const reason = "another person of the organisation signs in with this mail address"
	p := newProblem(nil, http.StatusConflict, reason).(*Problem)
	p.Errors = []Detail{{"taken", "body.mail", reason}}
	return p
}

func (a *API) personOperations(api huma.API) {
	const tag = "People"
	register(a, api, operation{
		id: "list-people", summary: "List the people who sign in", method: http.MethodGet, path: "/v1/people",
		action: tenant.ManagePeople, tag: tag, about: fmt.Sprintf("Those who sign in to the pages, by name: all of them, which are at most %d.", person.Most),
	}, func(ctx context.Context, _ *struct{}) (*Body[List[personBody]], error) {
		people, err := a.People.List(ctx, caller(ctx).Core.Tenant.ID)
		if err != nil {
			return nil, err
		}
		return page(people, "", personOut), nil
	})

	register(a, api, operation{
		id: "create-person", summary: "Add a person who signs in", method: http.MethodPost, path: "/v1/people",
		action: tenant.ManagePeople, status: http.StatusCreated, tag: tag,
		about: "They sign in by a mailed link or code. A new tenant's first administrator is made so; where no mail can be sent yet, a sign-in link lets them in.",
	}, func(ctx context.Context, in *struct{ Body personInput }) (*createdPerson, error) {
		c := caller(ctx)
		var p person.Person
		in.Body.apply(&p)
		p, err := a.People.Create(ctx, c.Core, c.Actor, p)
		if err != nil {
			return nil, mailTaken(err)
		}
		out := versioned(personOut(p), p.Version)
		return &createdPerson{"/v1/people/" + p.ID, out.ETag, out.Body}, nil
	})

	register(a, api, operation{
		id: "get-person", summary: "Get a person who signs in", method: http.MethodGet, path: "/v1/people/{person}",
		action: tenant.ManagePeople, tag: tag,
	}, func(ctx context.Context, in *PersonPath) (*Versioned[personBody], error) {
		p, err := a.People.Get(ctx, caller(ctx).Core.Tenant.ID, in.Person)
		if err != nil {
			return nil, err
		}
		return versioned(personOut(p), p.Version), nil
	})

	register(a, api, operation{
		id: "update-person", summary: "Change a person who signs in", method: http.MethodPatch, path: "/v1/people/{person}",
		action: tenant.ManagePeople, tag: tag,
		about: "Only the fields given are changed. Another address or other roles, and disabling, sign the person out everywhere. The last administrator who can sign in stays one.",
	}, func(ctx context.Context, in *struct {
		PersonPath
		IfMatch
		Body personInput
	}) (*Versioned[personBody], error) {
		c := caller(ctx)
		version, err := a.personVersion(ctx, c, in.Person, in.IfMatch)
		if err != nil {
			return nil, err
		}
		p, err := a.People.Update(ctx, c.Core, c.Actor, in.Person, version, in.Body.apply)
		if err != nil {
			return nil, changedMeanwhile(version, mailTaken(err))
		}
		return versioned(personOut(p), p.Version), nil
	})

	register(a, api, operation{
		id: "delete-person", summary: "Delete a person who signs in", method: http.MethodDelete, path: "/v1/people/{person}",
		action: tenant.ManagePeople, status: http.StatusNoContent, tag: tag,
		about: "And sign them out everywhere. The last administrator who can sign in cannot be deleted.",
	}, func(ctx context.Context, in *struct {
		PersonPath
		IfMatch
	}) (*struct{}, error) {
		c := caller(ctx)
		version, err := a.personVersion(ctx, c, in.Person, in.IfMatch)
		if err != nil {
			return nil, err
		}
		return nil, changedMeanwhile(version, a.People.Delete(ctx, c.Core, c.Actor, in.Person, version))
	})

	register(a, api, operation{
		id: "make-sign-in-link", summary: "Make a link by which a person signs in", method: http.MethodPost, path: "/v1/people/{person}/sign-in-link",
		action: tenant.ManagePeople, status: http.StatusCreated, tag: tag,
		about: "For whoever hands it to the person: no mail is sent. It works once, in any browser.",
	}, func(ctx context.Context, in *struct {
		PersonPath
		Body *struct {
			ValidMinutes int `json:"validMinutes" required:"false" default:"60" minimum:"10" maximum:"1440" doc:"How long the link is good."`
		}
	}) (*Secret[signInLinkBody], error) {
		c := caller(ctx)
		if a.People.BaseURL == "" {
			return nil, fmt.Errorf("%w: this installation has not been told where its pages are (CONSOLE_URL)", problem.ErrState)
		}
		valid := time.Hour
		if in.Body != nil {
			valid = time.Duration(in.Body.ValidMinutes) * time.Minute
		}
		link, until, err := a.People.Link(ctx, c.Core, c.Actor, in.Person, valid)
		if err != nil {
			return nil, err
		}
		return secretAnswer(signInLinkBody{a.People.LinkURL(link).Reveal(), until}), nil
	})

	register(a, api, operation{
		id: "list-person-sessions", summary: "List a person's sessions", method: http.MethodGet, path: "/v1/people/{person}/sessions",
		action: tenant.ManagePeople, tag: tag, about: "Where the person is signed in, the last begun first.",
	}, func(ctx context.Context, in *PersonPath) (*Body[List[personSessionBody]], error) {
		t := caller(ctx).Core.Tenant.ID
		if _, err := a.People.Get(ctx, t, in.Person); err != nil {
			return nil, err
		}
		sessions, err := a.People.SessionsOf(ctx, t, in.Person)
		if err != nil {
			return nil, err
		}
		return page(sessions, "", personSessionOut), nil
	})

	register(a, api, operation{
		id: "end-person-sessions", summary: "Sign a person out everywhere", method: http.MethodDelete, path: "/v1/people/{person}/sessions",
		action: tenant.ManagePeople, status: http.StatusNoContent, tag: tag, about: "Links and codes that have not been used end too.",
	}, func(ctx context.Context, in *PersonPath) (*struct{}, error) {
		c := caller(ctx)
		return nil, a.People.EndAll(ctx, c.Core, c.Actor, in.Person)
	})

	register(a, api, operation{
		id: "end-person-session", summary: "End a session of a person", method: http.MethodDelete, path: "/v1/people/{person}/sessions/{session}",
		action: tenant.ManagePeople, status: http.StatusNoContent, tag: tag,
	}, func(ctx context.Context, in *struct {
		PersonPath
		Session string `path:"session" maxLength:"60"`
	}) (*struct{}, error) {
		c := caller(ctx)
		return nil, a.People.End(ctx, c.Core, c.Actor, in.Person, in.Session)
	})
}

// personVersion returns the version that a change is for, 0 for any.
func (a *API) personVersion(ctx context.Context, c tenant.Caller, id string, m IfMatch) (int64, error) {
	if m.IfMatch == "" {
		return 0, nil
	}
	p, err := a.People.Get(ctx, c.Core.Tenant.ID, id)
	if err != nil {
		return 0, err
	}
	return p.Version, m.check(p.Version)
}

// changedMeanwhile is the error of a change that was for a version.
func changedMeanwhile(version int64, err error) error {
	if version != 0 && errors.Is(err, problem.ErrConflict) {
		return errPrecondition
	}
	return err
}
