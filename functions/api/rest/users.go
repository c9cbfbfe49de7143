package rest

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// UserPath names a user in a path.
type UserPath struct {
	ID string `path:"id" maxLength:"60" doc:"The user's id."`
}

type userBody struct {
	ID          string    `json:"id"`
	Username    string    `json:"username"`
	DisplayName string    `json:"displayName,omitempty"`
	Mail        string    `json:"mail,omitempty"`
	Phone       string    `json:"phone,omitempty"`
	StaffNumber string    `json:"staffNumber,omitempty"`
	ExternalID  string    `json:"externalId,omitempty"`
	Groups      []string  `json:"groups"`
	CreatedAt   time.Time `json:"createdAt"`
	UpdatedAt   time.Time `json:"updatedAt"`
	PIN         PINFields `json:"pin"`

	Import      *originBody      `json:"import,omitempty" doc:"The row of an import that the user comes from."`
	MailProblem *mailProblemBody `json:"mailProblem,omitempty" doc:"Why nothing is mailed to the address any more. It is gone when the address is changed, or cleared."`
}

type mailProblemBody struct {
	Kind string    `json:"kind" enum:"bounce,complaint,refused" doc:"bounce: a mail came back, for good; complaint: its receiver complained of it; refused: the mail server says that there is no such mailbox."`
	At   time.Time `json:"at"`
	Code string    `json:"code,omitempty" doc:"What the mail system said, such as ses.Permanent.General or smtp.550."`
}

func (a *API) userOut(u user.User) userBody {
	p := u.Profile
	groups := p.Groups
	if groups == nil {
		groups = []string{}
	}
	b := userBody{u.ID, p.Username, p.DisplayName, p.Mail, p.Phone, p.StaffNumber, p.ExternalID, groups, u.CreatedAt, u.UpdatedAt, pinOut(u, a.Now()), originOut(u.Import), nil}
	if m := u.MailProblem; m != (user.MailProblem{}) {
		b.MailProblem = &mailProblemBody{string(m.Kind), m.At, m.Code}
	}
	return b
}

type profileInput struct {
	Username    *string   `json:"username,omitempty" example:"ada" doc:"Unique within the tenant, whatever its case."`
	DisplayName *string   `json:"displayName,omitempty" example:"Ada Lovelace"`
	Mail        *string   `json:"mail,omitempty" example:"ada@example.org"`
	Phone       *string   `json:"phone,omitempty"`
	StaffNumber *string   `json:"staffNumber,omitempty"`
	ExternalID  *string   `json:"externalId,omitempty" doc:"The id in your own system; unique within the tenant."`
	Groups      *[]string `json:"groups,omitempty"`
	PIN         *pinInput `json:"pin,omitempty" doc:"If the policy refuses it, the whole call is refused and nothing changes."`
}

func (in profileInput) apply(p *user.Profile) {
	overlay(&p.Username, in.Username)
	overlay(&p.DisplayName, in.DisplayName)
	overlay(&p.Mail, in.Mail)
	overlay(&p.Phone, in.Phone)
	overlay(&p.StaffNumber, in.StaffNumber)
	overlay(&p.ExternalID, in.ExternalID)
	overlay(&p.Groups, in.Groups)
}

// ownFields refuses what a person may not change about themselves: what others
// know them by.
func (in profileInput) ownFields() error {
	var vs problem.Violations
	for _, f := range []struct {
		name  string
		given bool
	}{{"username", in.Username != nil}, {"staffNumber", in.StaffNumber != nil}, {"externalId", in.ExternalID != nil}, {"groups", in.Groups != nil}} {
		if f.given {
			vs.Add("notYours", f.name, "is changed by an administrator")
		}
	}
	return vs.Err()
}

func (a *API) userOperations(api huma.API) {
	const tag = "Users"
	register(a, api, operation{
		id: "create-user", summary: "Create a user", method: http.MethodPost, path: "/v1/users",
		action: tenant.CreateUser, status: http.StatusCreated, tag: tag,
	}, func(ctx context.Context, in *struct{ Body profileInput }) (*createdUser, error) {
		c := caller(ctx)
		var p user.Profile
		in.Body.apply(&p)
		u, err := a.Users.Create(ctx, c.Core, c.Actor, p, in.Body.PIN.text())
		if err != nil {
			return nil, err
		}
		out := versioned(a.userOut(u), u.Version)
		return &createdUser{"/v1/users/" + u.ID, out.ETag, out.Body}, nil
	})

	register(a, api, operation{
		id: "list-users", summary: "List or find users", method: http.MethodGet, path: "/v1/users",
		action: tenant.ListUsers, tag: tag, about: "By username. With username or externalId, the one user who has it, or none. With undeliverable, those whose mail address does not work, by id.",
	}, func(ctx context.Context, in *struct {
		Paging
		Prefix     string `query:"prefix" maxLength:"128" doc:"Only users whose username starts so, whatever the case."`
		Username   string `query:"username" maxLength:"128" doc:"Only the user of that name, whatever the case."`
		ExternalID string `query:"externalId" maxLength:"200" doc:"Only the user with that id in your own system."`

		Undeliverable bool `query:"undeliverable" doc:"Only users whose mail address does not work. It goes with no other filter."`
	}) (*Body[List[userBody]], error) {
		id := caller(ctx).Core.Tenant.ID
		var one user.User
		var err error
		switch {
		case in.Undeliverable && in.Username+in.ExternalID+in.Prefix != "":
			return nil, wrongQuery("undeliverable", "goes with no other filter")
		case in.Undeliverable:
			place, err := in.place()
			if err != nil {
				return nil, err
			}
			users, next, err := a.Users.Undeliverable(ctx, id, place, in.Limit)
			if err != nil {
				return nil, err
			}
			return page(users, next, a.userOut), nil
		case in.Username != "":
			one, err = a.Users.ByUsername(ctx, id, in.Username)
		case in.ExternalID != "":
			one, err = a.Users.ByExternalID(ctx, id, in.ExternalID)
		default:
			place, err := in.place()
			if err != nil {
				return nil, err
			}
			if len(user.Fold(in.Prefix)) > user.MaxFolded {
				return nil, wrongQuery("prefix", "is too long: no username starts so")
			}
			users, next, err := a.Users.List(ctx, id, in.Prefix, place, in.Limit)
			if err != nil {
				return nil, err
			}
			return page(users, next, a.userOut), nil
		}
		if isNotFound(err) {
			return page([]user.User{}, "", a.userOut), nil
		} else if err != nil {
			return nil, err
		}
		return page([]user.User{one}, "", a.userOut), nil
	})

	register(a, api, operation{
		id: "get-user", summary: "Get a user", method: http.MethodGet, path: "/v1/users/{id}",
		action: tenant.ReadUser, tag: tag,
	}, func(ctx context.Context, in *UserPath) (*Versioned[userBody], error) {
		u, err := a.Users.Get(ctx, caller(ctx).Core.Tenant.ID, in.ID)
		if err != nil {
			return nil, err
		}
		return versioned(a.userOut(u), u.Version), nil
	})

	register(a, api, operation{
		id: "update-user", summary: "Change a user", method: http.MethodPatch, path: "/v1/users/{id}",
		action: tenant.UpdateUser, tag: tag,
		about: "Only the fields given are changed; an empty one is cleared. A person with a token changes displayName, mail, phone and pin.",
	}, func(ctx context.Context, in *struct {
		UserPath
		IfMatch
		Body profileInput
	}) (*Versioned[userBody], error) {
		c := caller(ctx)
		version := int64(0) // any
		if in.IfMatch.IfMatch != "" {
			u, err := a.Users.Get(ctx, c.Core.Tenant.ID, in.ID)
			if err != nil {
				return nil, err
			}
			if err := in.check(u.Version); err != nil {
				return nil, err
			}
			version = u.Version
		}
		if c.Role == tenant.RoleSelf {
			if err := in.Body.ownFields(); err != nil {
				return nil, err
			}
		}
		u, err := a.Users.Update(ctx, c.Core, c.Actor, in.ID, version, in.Body.apply, in.Body.PIN.text())
		if version != 0 && errors.Is(err, problem.ErrConflict) {
			return nil, errPrecondition
		} else if err != nil {
			return nil, err
		}
		return versioned(a.userOut(u), u.Version), nil
	})

	register(a, api, operation{
		id: "clear-mail-problem", summary: "Let mails go to a user's address again", method: http.MethodDelete, path: "/v1/users/{id}/mail-problem",
		action: tenant.ClearMail, tag: tag, about: "For an address that works again, or whose owner wants mails after all. That there is no problem is as good.",
	}, func(ctx context.Context, in *UserPath) (*Versioned[userBody], error) {
		c := caller(ctx)
		u, err := a.Users.ClearMailProblem(ctx, c.Core, c.Actor, in.ID)
		if err != nil {
			return nil, err
		}
		return versioned(a.userOut(u), u.Version), nil
	})

	register(a, api, operation{
		id: "delete-user", summary: "Delete a user", method: http.MethodDelete, path: "/v1/users/{id}",
		action: tenant.DeleteUser, status: http.StatusNoContent, tag: tag, about: "With the PIN and all that is held but the audit records.",
	}, func(ctx context.Context, in *UserPath) (*struct{}, error) {
		c := caller(ctx)
		return nil, a.Users.Delete(ctx, c.Core, c.Actor, in.ID)
	})
}

type createdUser struct {
	Location string `header:"Location"`
	ETag     string `header:"ETag"`
	Body     userBody
}
