package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/pin"
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
}

// PINFields are the state of a PIN.
type PINFields struct {
	State         string      `json:"state" enum:"none,set,expired"`
	SetAt         time.Time   `json:"setAt,omitzero"`
	SetBy         *actorBody  `json:"setBy,omitempty"`
	PolicyVersion int64       `json:"policyVersion,omitempty" doc:"Of the policy that accepted it."`
	Identifies    bool        `json:"identifies" doc:"It finds its user alone (PIN-only login)."`
	ExpiresAt     time.Time   `json:"expiresAt,omitzero"`
	NotifyAt      time.Time   `json:"notifyAt,omitzero" doc:"When the mail about its expiry is due."`
	NotifiedAt    time.Time   `json:"notifiedAt,omitzero" doc:"When that mail was sent."`
	Notice        *noticeBody `json:"notice,omitempty"`
	DeletedAt     time.Time   `json:"deletedAt,omitzero"`
	Deleted       string      `json:"deleted,omitempty" doc:"Why it is gone: expired or deleted."`
}

type actorBody struct {
	How  string `json:"how" doc:"api (by an API key), self (by the person), system."`
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
}

func actorOut(a audit.Actor) actorBody { return actorBody{string(a.Kind), a.ID, a.Name} }

type noticeBody struct {
	State            string    `json:"state" enum:"planned,claimed,sent,failed,skipped"`
	At               time.Time `json:"at" doc:"planned: when it is to be sent; claimed: when that is tried again if nothing comes of it; else when it came to this."`
	Attempts         int       `json:"attempts"`
	PossiblyRepeated bool      `json:"possiblyRepeated" doc:"It may have been sent more than once: an answer of the mail system was lost."`
	Reason           string    `json:"reason,omitempty" doc:"Why it failed or was skipped."`
}

func pinOut(p user.PIN, now time.Time) PINFields {
	b := PINFields{State: string(p.State(now)), SetAt: p.SetAt, PolicyVersion: p.PolicyVersion, Identifies: p.Identifies(),
		ExpiresAt: p.ExpiresAt, NotifyAt: p.NotifyAt, DeletedAt: p.DeletedAt, Deleted: p.Deleted}
	if !p.SetAt.IsZero() {
		by := actorOut(p.By)
		b.SetBy = &by
	}
	if n := p.Notice; n.State != user.NoNotice {
		b.Notice = &noticeBody{string(n.State), n.At, n.Attempts, n.Repeated, n.Reason}
		if n.State == user.NoticeSent {
			b.NotifiedAt = n.At
		}
	}
	return b
}

func (a *API) userOut(u user.User) userBody {
	p := u.Profile
	groups := p.Groups
	if groups == nil {
		groups = []string{}
	}
	return userBody{u.ID, p.Username, p.DisplayName, p.Mail, p.Phone, p.StaffNumber, p.ExternalID, groups, u.CreatedAt, u.UpdatedAt, pinOut(u.PIN, a.Now())}
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
		action: tenant.ListUsers, tag: tag, about: "By username. With username or externalId, the one user who has it, or none.",
	}, func(ctx context.Context, in *struct {
		Paging
		Prefix     string `query:"prefix" maxLength:"128" doc:"Only users whose username starts so, whatever the case."`
		Username   string `query:"username" maxLength:"128" doc:"Only the user of that name, whatever the case."`
		ExternalID string `query:"externalId" maxLength:"200" doc:"Only the user with that id in your own system."`
	}) (*Body[List[userBody]], error) {
		id := caller(ctx).Core.Tenant.ID
		var one user.User
		var err error
		switch {
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

type pinStateBody struct {
	PINFields
	TriesLeft   int       `json:"triesLeft" doc:"Wrong guesses left until verification is locked."`
	LockedUntil time.Time `json:"lockedUntil,omitzero"`
}

type resultBody struct {
	Verified    bool            `json:"verified"`
	User        *identifiedBody `json:"user,omitempty" doc:"Only if verified."`
	TriesLeft   int             `json:"triesLeft"`
	LockedUntil time.Time       `json:"lockedUntil,omitzero" doc:"Until then no guess is looked at."`
}

type identifiedBody struct {
	ID           string    `json:"id"`
	Username     string    `json:"username"`
	DisplayName  string    `json:"displayName,omitempty"`
	ExternalID   string    `json:"externalId,omitempty"`
	PINExpiresAt time.Time `json:"pinExpiresAt,omitzero"`
}

func resultOut(r user.Result) resultBody {
	b := resultBody{Verified: r.Right, TriesLeft: r.TriesLeft, LockedUntil: r.LockedUntil}
	if r.Right {
		p := r.User.Profile
		b.User = &identifiedBody{r.User.ID, p.Username, p.DisplayName, p.ExternalID, r.User.PIN.ExpiresAt}
	}
	return b
}

func (a *API) pinOperations(api huma.API) {
	const tag = "PINs"
	register(a, api, operation{
		id: "get-pin", summary: "Get the state of a user's PIN", method: http.MethodGet, path: "/v1/users/{id}/pin",
		action: tenant.ReadPIN, tag: tag, about: "All that is known of it. The PIN itself is known to its user only.",
	}, func(ctx context.Context, in *UserPath) (*Body[pinStateBody], error) {
		core := caller(ctx).Core
		u, err := a.Users.Get(ctx, core.Tenant.ID, in.ID)
		if err != nil {
			return nil, err
		}
		left, until, err := a.Users.Attempts(ctx, core, u.ID)
		if err != nil {
			return nil, err
		}
		return answer(pinStateBody{pinOut(u.PIN, a.Now()), left, until}), nil
	})

	register(a, api, operation{
		id: "set-pin", summary: "Set a user's PIN", method: http.MethodPut, path: "/v1/users/{id}/pin",
		action: tenant.SetPIN, tag: tag, about: "A PIN that the policy refuses is answered with every reason, and the old one stays.",
	}, func(ctx context.Context, in *struct {
		UserPath
		Body struct {
			PIN pinInput `json:"pin"`
		}
	}) (*Body[PINFields], error) {
		c := caller(ctx)
		u, err := a.Users.SetPIN(ctx, c.Core, c.Actor, in.ID, in.Body.PIN.Text)
		if err != nil {
			return nil, err
		}
		return answer(pinOut(u.PIN, a.Now())), nil
	})

	type generatedBody struct {
		PIN   string    `json:"pin" doc:"The new PIN. It is shown this once and cannot be had again."`
		State PINFields `json:"state"`
	}
	register(a, api, operation{
		id: "generate-pin", summary: "Generate a user's PIN", method: http.MethodPost, path: "/v1/users/{id}/pin/generate",
		action: tenant.GeneratePIN, status: http.StatusCreated, tag: tag,
		about: "Each PIN that the policy allows is equally likely. The answer shows it once, and must reach nobody but the user.",
	}, func(ctx context.Context, in *struct {
		UserPath
		Body *struct {
			Length   int    `json:"length,omitempty" minimum:"0" maximum:"64" doc:"Left out, the shortest that the policy allows."`
			Alphabet string `json:"alphabet,omitempty" enum:"digits,alphanumeric,printable" doc:"Left out, digits, unless the policy requires other classes."`
		}
	}) (*Secret[generatedBody], error) {
		c := caller(ctx)
		var opts pin.GenerateOptions
		if in.Body != nil {
			opts.Length, opts.Alphabet = in.Body.Length, pin.Alphabet(in.Body.Alphabet)
		}
		u, made, err := a.Users.GeneratePIN(ctx, c.Core, c.Actor, in.ID, opts)
		if err != nil {
			return nil, err
		}
		return secretAnswer(generatedBody{made.Reveal(), pinOut(u.PIN, a.Now())}), nil
	})

	register(a, api, operation{
		id: "delete-pin", summary: "Delete a user's PIN", method: http.MethodDelete, path: "/v1/users/{id}/pin",
		action: tenant.DeletePIN, status: http.StatusNoContent, tag: tag,
	}, func(ctx context.Context, in *UserPath) (*struct{}, error) {
		c := caller(ctx)
		_, err := a.Users.DeletePIN(ctx, c.Core, c.Actor, in.ID)
		return nil, err
	})

	register(a, api, operation{
		id: "unlock-pin", summary: "Unlock a user's PIN", method: http.MethodPost, path: "/v1/users/{id}/unlock",
		action: tenant.UnlockPIN, status: http.StatusNoContent, tag: tag, about: "Forgets the wrong guesses, so that the user can try again at once.",
	}, func(ctx context.Context, in *UserPath) (*struct{}, error) {
		c := caller(ctx)
		return nil, a.Users.Unlock(ctx, c.Core, c.Actor, in.ID)
	})

	register(a, api, operation{
		id: "verify-pin", summary: "Verify a known user's PIN", method: http.MethodPost, path: "/v1/pins/verify",
		action: tenant.VerifyPIN, tag: tag,
		about: "Name the user in one of three ways. The answer is the same for a wrong PIN, no PIN, an expired one and an unknown user.",
	}, func(ctx context.Context, in *struct {
		Body struct {
			UserID     string   `json:"userId,omitempty" maxLength:"60"`
			Username   string   `json:"username,omitempty" maxLength:"128"`
			ExternalID string   `json:"externalId,omitempty" maxLength:"200"`
			PIN        pinInput `json:"pin"`
		}
	}) (*Body[resultBody], error) {
		ref := user.Ref{ID: in.Body.UserID, Username: in.Body.Username, ExternalID: in.Body.ExternalID}
		if err := ref.Validate(); err != nil {
			return nil, err
		}
		c := caller(ctx)
		r, err := a.Users.Verify(ctx, c.Core, c.Actor, ref, in.Body.PIN.Text)
		if err != nil {
			return nil, err
		}
		return answer(resultOut(r)), nil
	})

	register(a, api, operation{
		id: "identify-pin", summary: "Find a user by PIN alone", method: http.MethodPost, path: "/v1/pins/identify",
		action: tenant.IdentifyPIN, tag: tag,
		about: "Needs PIN-only login in the tenant's settings. Wrong guesses are counted for each terminal of a key, and a right one does not wipe them out.",
	}, func(ctx context.Context, in *struct {
		Body struct {
			PIN      pinInput `json:"pin"`
			Terminal string   `json:"terminal,omitempty" maxLength:"64" pattern:"^[A-Za-z0-9 ._:/-]*$" doc:"Which of the devices that share the key."`
		}
	}) (*Body[resultBody], error) {
		c := caller(ctx)
		r, err := a.Users.Identify(ctx, c.Core, c.Actor, in.Body.Terminal, in.Body.PIN.Text)
		if err != nil {
			return nil, err
		}
		return answer(resultOut(r)), nil
	})
}

func (a *API) auditOperations(api huma.API) {
	type recordBody struct {
		ID        string            `json:"id"`
		At        time.Time         `json:"at"`
		By        actorBody         `json:"by"`
		Action    string            `json:"action"`
		Subject   string            `json:"subject,omitempty"`
		Outcome   string            `json:"outcome" enum:"done,refused,failed"`
		Reason    string            `json:"reason,omitempty"`
		RequestID string            `json:"requestId,omitempty"`
		Details   map[string]string `json:"details,omitempty"`
	}
	register(a, api, operation{
		id: "list-audit", summary: "Read the audit log", method: http.MethodGet, path: "/v1/audit",
		action: tenant.ReadAudit, tag: "Audit",
		about: "Newest first: the records of one day, or those about one subject.",
	}, func(ctx context.Context, in *struct {
		Paging
		Day     string `query:"day" format:"date" doc:"A day in UTC; left out, today." example:"2030-01-31"`
		Subject string `query:"subject" maxLength:"100" doc:"Such as user/<id>. Goes back as far as there are records." example:"user/01J8ZC9Q6Y0V4T5W3X2R1N0M9K"`
	}) (*Body[List[recordBody]], error) {
		t := caller(ctx).Core.Tenant.ID
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		var records []audit.Record
		var more bool
		if in.Subject != "" {
			records, more, err = audit.Of(ctx, a.Table, t, in.Subject, place, in.Limit)
		} else {
			day := a.Now()
			if id, err := ulid.ParseStrict(place); err == nil {
				day = ulid.Time(id.Time()) // the day that the page before was of
			}
			if in.Day != "" {
				if day, err = time.Parse(time.DateOnly, in.Day); err != nil {
					return nil, wrongQuery("day", "is not a date such as 2030-01-31")
				}
			}
			records, more, err = audit.Day(ctx, a.Table, t, day, place, in.Limit)
		}
		if err != nil {
			return nil, err
		}
		next := ""
		if more {
			next = records[len(records)-1].ID
		}
		return page(records, next, func(r audit.Record) recordBody {
			return recordBody{r.ID, r.At, actorOut(r.Actor), r.Action, r.Subject, string(r.Outcome), r.Reason, r.RequestID, r.Details}
		}), nil
	})
}

// subjectOf names what an audit record is about.
func subjectOf(kind, id string) string { return fmt.Sprintf("%s/%s", kind, id) }
