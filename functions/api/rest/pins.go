package rest

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// PINFields are the state of a PIN.
type PINFields struct {
	State         string      `json:"state" enum:"none,set,expired"`
	SetAt         time.Time   `json:"setAt,omitzero"`
	SetBy         *actorBody  `json:"setBy,omitempty"`
	PolicyVersion int64       `json:"policyVersion,omitempty" doc:"Of the policy that accepted it."`
	Identifies    bool        `json:"identifies" doc:"It finds its user alone (PIN-only login)."`
	ExpiresAt     time.Time   `json:"expiresAt,omitzero"`
	NotifyAt      time.Time   `json:"notifyAt,omitzero" doc:"When the first mail about its expiry is due."`
	NotifiedAt    time.Time   `json:"notifiedAt,omitzero" doc:"When the last such mail was sent."`
	Notice        *noticeBody `json:"notice,omitempty"`
	DeletedAt     time.Time   `json:"deletedAt,omitzero"`
	Deleted       string      `json:"deleted,omitempty" doc:"Why it is gone: expired, deleted, or used (a PIN for one use)."`

	OneTime        string       `json:"oneTime,omitempty" enum:"change,delete" doc:"change: to be changed, and each right answer says so. delete: gone with its first right answer."`
	ChangeRequired bool         `json:"changeRequired" doc:"It is to be changed."`
	Mailed         bool         `json:"mailed" doc:"It was generated, and its user has it from a mail."`
	Pending        *pendingBody `json:"pending,omitempty" doc:"A generated PIN that is on its way to its user's mail. Until that was accepted, the PIN that was there stays."`
}

type pendingBody struct {
	IssuedAt         time.Time `json:"issuedAt"`
	IssuedBy         actorBody `json:"issuedBy"`
	OneTime          string    `json:"oneTime,omitempty" enum:"change,delete"`
	NextAt           time.Time `json:"nextAt" doc:"When its mail is sent, or, while that is being done, tried again if nothing comes of it."`
	Attempts         int       `json:"attempts"`
	PossiblyRepeated bool      `json:"possiblyRepeated" doc:"It may have been sent more than once: an answer of the mail system was lost."`
	Reason           string    `json:"reason,omitempty" doc:"Why the last try failed."`
}

type actorBody struct {
	How  string `json:"how" doc:"api (by an API key), self (by the person), bridge (by somebody at a bridge), system."`
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
}

func actorOut(a audit.Actor) actorBody { return actorBody{string(a.Kind), a.ID, a.Name} }

type noticeBody struct {
	HoursBefore      int       `json:"hoursBefore" doc:"Which of the mails before the expiry it is about: the next one, or the last."`
	State            string    `json:"state" enum:"planned,claimed,sent,failed,skipped"`
	At               time.Time `json:"at" doc:"planned: when it is to be sent; claimed: when that is tried again if nothing comes of it; else when it came to this."`
	Attempts         int       `json:"attempts"`
	PossiblyRepeated bool      `json:"possiblyRepeated" doc:"It may have been sent more than once: an answer of the mail system was lost."`
	Reason           string    `json:"reason,omitempty" doc:"Why it failed or was skipped."`
	Then             []int     `json:"then,omitempty" doc:"Hours before the expiry of the mails that come after it."`
}

func pinOut(u user.User, now time.Time) PINFields {
	p := u.PIN
	b := PINFields{OneTime: string(p.OneTime), ChangeRequired: p.OneTime == user.ChangeAtUse, Mailed: p.Mailed,
		State: string(p.State(now)), SetAt: p.SetAt, PolicyVersion: p.PolicyVersion, Identifies: p.Identifies(),
		ExpiresAt: p.ExpiresAt, NotifyAt: p.NotifyAt, NotifiedAt: p.NotifiedAt, DeletedAt: p.DeletedAt, Deleted: p.Deleted}
	if !p.SetAt.IsZero() {
		by := actorOut(p.By)
		b.SetBy = &by
	}
	if n := p.Notice; n.State != user.NoNotice {
		b.Notice = &noticeBody{n.Hours, string(n.State), n.At, n.Attempts, n.Repeated, n.Reason, p.Reminders}
	}
	if g := u.Pending; g.Waits() {
		b.Pending = &pendingBody{g.IssuedAt, actorOut(g.By), string(g.OneTime), g.At, g.Attempts, g.Repeated, g.Reason}
	}
	return b
}

type pinStateBody struct {
	PINFields
	TriesLeft   int       `json:"triesLeft" doc:"Wrong guesses left until verification is locked."`
	LockedUntil time.Time `json:"lockedUntil,omitzero"`
}

type resultBody struct {
	Verified       bool            `json:"verified"`
	ChangeRequired bool            `json:"changeRequired,omitempty" doc:"If verified: the person is to change the PIN now."`
	User           *identifiedBody `json:"user,omitempty" doc:"Only if verified."`
	TriesLeft      int             `json:"triesLeft"`
	LockedUntil    time.Time       `json:"lockedUntil,omitzero" doc:"Until then no guess is looked at."`
}

type identifiedBody struct {
	ID           string    `json:"id"`
	Username     string    `json:"username"`
	DisplayName  string    `json:"displayName,omitempty"`
	ExternalID   string    `json:"externalId,omitempty"`
	PINExpiresAt time.Time `json:"pinExpiresAt,omitzero"`
}

func resultOut(r user.Result) resultBody {
	b := resultBody{Verified: r.Right, ChangeRequired: r.ChangeRequired, TriesLeft: r.TriesLeft, LockedUntil: r.LockedUntil}
	if r.Right {
		p := r.User.Profile
		b.User = &identifiedBody{r.User.ID, p.Username, p.DisplayName, p.ExternalID, r.User.PIN.ExpiresAt}
	}
	return b
}

// GenerateFields say what PIN is to be generated.
type GenerateFields struct {
	Length   int    `json:"length,omitempty" minimum:"0" maximum:"64" doc:"Left out, the shortest that the policy allows."`
	Alphabet string `json:"alphabet,omitempty" enum:"digits,alphanumeric,printable" doc:"Left out, digits, unless the policy requires other classes."`
}

func (b GenerateFields) options() pin.GenerateOptions {
	return pin.GenerateOptions{Length: b.Length, Alphabet: pin.Alphabet(b.Alphabet)}
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
		return answer(pinStateBody{pinOut(u, a.Now()), left, until}), nil
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
		return answer(pinOut(u, a.Now())), nil
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
		Body *GenerateFields
	}) (*Secret[generatedBody], error) {
		c := caller(ctx)
		var opts pin.GenerateOptions
		if in.Body != nil {
			opts = in.Body.options()
		}
		u, made, err := a.Users.GeneratePIN(ctx, c.Core, c.Actor, in.ID, opts)
		if err != nil {
			return nil, err
		}
		return secretAnswer(generatedBody{made.Reveal(), pinOut(u, a.Now())}), nil
	})

	register(a, api, operation{
		id: "issue-pin", summary: "Generate a PIN and mail it to its user", method: http.MethodPost, path: "/v1/users/{id}/pin/issue",
		action: tenant.IssuePIN, tag: tag,
		about: "Nobody but the user's mail learns the PIN. It takes the place of the present one when the mail system has accepted the mail; until then it is pending, " +
			"and tried again for a day. Setting, generating or deleting a PIN, or another mail address, ends a pending one. While one is pending, or was mailed less than two minutes ago, another is refused.",
	}, func(ctx context.Context, in *struct {
		UserPath
		Body *IssueFields
	}) (*Body[PINFields], error) {
		c := caller(ctx)
		var is user.Issue
		if in.Body != nil {
			is = in.Body.issue()
		}
		u, late, err := a.Users.IssueAndSend(ctx, c.Core, a.Senders, c.Actor, in.ID, is)
		if err != nil {
			return nil, err
		}
		observed(ctx).cause = late // it is pending
		return answer(pinOut(u, a.Now())), nil
	})

	register(a, api, operation{
		id: "require-pin-change", summary: "Require that a user's PIN is changed", method: http.MethodPost, path: "/v1/users/{id}/pin/require-change",
		action: tenant.RequireChange, tag: tag, about: "The PIN goes on verifying, with changeRequired in each right answer, until there is a new one.",
	}, func(ctx context.Context, in *UserPath) (*Body[PINFields], error) {
		c := caller(ctx)
		u, err := a.Users.RequireChange(ctx, c.Core, c.Actor, in.ID)
		if err != nil {
			return nil, err
		}
		return answer(pinOut(u, a.Now())), nil
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
