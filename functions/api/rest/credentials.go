package rest

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
)

// secretInput is a PUK or key in a request.
type secretInput struct{ secret.Text }

// Schema implements huma.SchemaProvider. What is right is said where it is used.
func (secretInput) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "password", WriteOnly: true}
}

func (in *secretInput) text() *secret.Text {
	if in == nil {
		return nil
	}
	return &in.Text
}

// CredentialPath names a credential in a path.
type CredentialPath struct {
	Credential string `path:"credential" maxLength:"100" doc:"The credential's id: the card's family and id, such as piv-00112233445566778899aabbccddeeff."`
}

type credentialBody struct {
	ID       string `json:"id"`
	Family   string `json:"family"`
	CardID   string `json:"cardId" doc:"In hex. PIV: the GUID, or where there is none the FASC-N; GIDS: the card id."`
	Template string `json:"template"`
	Holder   string `json:"holder,omitempty" doc:"The user's id. The user may have been deleted since."`
	Label    string `json:"label,omitempty"`

	PUK              pukBody `json:"puk"`
	AdminKeyEscrowed bool    `json:"adminKeyEscrowed" doc:"There is an admin key of the card's own. Else it is derived, if the template has a master key."`

	LastPINChange *pinChangeBody `json:"lastPinChange,omitempty"`
	PINExpiresAt  time.Time      `json:"pinExpiresAt,omitzero" doc:"The PIN expiry flag. The card goes on working."`
	Doubt         string         `json:"doubt,omitempty" doc:"The unblock that has left open which PUK the card has."`
	LeasedBy      string         `json:"leasedBy,omitempty" doc:"The unblock under way."`
	LeasedUntil   time.Time      `json:"leasedUntil,omitzero"`

	CreatedAt time.Time `json:"createdAt"`
	UpdatedAt time.Time `json:"updatedAt"`
}

type pukBody struct {
	State     string `json:"state" enum:"none,claimed,settled,inDoubt,refused" doc:"none: no PUK is on record. claimed: one that somebody has said the card has. settled: one that the card has taken. inDoubt: it will be found out at the next contact with the card. refused: the card has another; somebody has to say which."`
	TriesLeft *int   `json:"triesLeft,omitempty" doc:"At least so many."`
	Former    int    `json:"former,omitempty" doc:"PUKs kept that were on record before the one claimed, until the card has taken one."`
}

type pinChangeBody struct {
	At      time.Time `json:"at"`
	How     string    `json:"how"`
	Unblock string    `json:"unblock,omitempty"`
}

func pukOut(c credential.Credential) pukBody {
	custody := c.Custody
	if custody.Current == 0 {
		return pukBody{State: "none"}
	}
	b := pukBody{State: "settled", TriesLeft: &custody.Tries, Former: len(c.Former)}
	switch {
	case custody.Stage == card.Refused:
		b.State = "refused"
	case custody.Stage == card.Settled && custody.Claimed:
		b.State = "claimed"
	case custody.InDoubt():
		b.State = "inDoubt"
	}
	return b
}

func (a *API) credentialOut(c credential.Credential) credentialBody {
	b := credentialBody{
		ID: c.ID, Family: c.Family, CardID: c.CardID, Template: c.Template, Holder: c.Holder, Label: c.Label,
		PUK: pukOut(c), AdminKeyEscrowed: c.AdminKey != nil,
		PINExpiresAt: c.PINExpiresAt, Doubt: c.Doubt, CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt,
	}
	if p := c.LastPINChange; !p.At.IsZero() {
		b.LastPINChange = &pinChangeBody{p.At, string(p.How), p.Operation}
	}
	if c.Leased(a.Now()) {
		b.LeasedBy, b.LeasedUntil = c.Lease.Operation, c.Lease.Until
	}
	return b
}

type createdCredential struct {
	Location string `header:"Location"`
	ETag     string `header:"ETag"`
	Body     credentialBody
}

func (a *API) credentialOperations(api huma.API) {
	const tag = "Credentials"
	register(a, api, operation{
		id: "create-credential", summary: "Register a card", method: http.MethodPost, path: "/v1/credentials",
		action: tenant.WriteCredentials, status: http.StatusCreated, tag: tag,
		about: "With the PUK (PIV) or admin key (GIDS) that it has by now, or without, to be set later. A card has one credential.",
	}, func(ctx context.Context, in *struct {
		Body struct {
			Family       string       `json:"family" doc:"PIV or GIDS." example:"PIV"`
			CardID       string       `json:"cardId" doc:"In hex. PIV: the GUID, 16 bytes, or where there is none the FASC-N, 25 bytes; GIDS: the card id, 16 bytes." example:"00112233445566778899AABBCCDDEEFF"`
			Template     string       `json:"template" doc:"The credential template, of the same family."`
			Holder       string       `json:"holder,omitempty" doc:"The user's id."`
			Label        string       `json:"label,omitempty" doc:"For people." example:"Ada's card"`
			PUK          *secretInput `json:"puk,omitempty" doc:"The PUK that the card has by now: exactly 8 characters, as PIV has it. It is stored sealed and never shown; the first unblock changes it."`
			PUKTriesLeft *int         `json:"pukTriesLeft,omitempty" doc:"How many tries the PUK has left, if that is known."`
			AdminKey     *secretInput `json:"adminKey,omitempty" doc:"The admin key that the card has by now, in hex: 24 bytes for 3DES; 16, 24 or 32 for AES. It is stored sealed and never shown."`
		}
	}) (*createdCredential, error) {
		c, b := caller(ctx), in.Body
		made, err := a.Credentials.Register(ctx, c.Core, c.Actor, credential.New{
			Family: b.Family, CardID: b.CardID, Template: b.Template, Holder: b.Holder, Label: b.Label,
			PUK: b.PUK.text(), PUKTriesLeft: b.PUKTriesLeft, AdminKey: b.AdminKey.text(),
		})
		if errors.Is(err, problem.ErrConflict) {
			return nil, newProblem(nil, http.StatusConflict, "this card is registered already")
		} else if err != nil {
			return nil, err
		}
		out := versioned(a.credentialOut(made), made.Version)
		return &createdCredential{"/v1/credentials/" + made.ID, out.ETag, out.Body}, nil
	})

	register(a, api, operation{
		id: "list-credentials", summary: "List credentials", method: http.MethodGet, path: "/v1/credentials",
		action: tenant.ReadCredentials, tag: tag, about: "By id; all, or those that a user holds.",
	}, func(ctx context.Context, in *struct {
		Paging
		Holder string `query:"holder" maxLength:"60" doc:"Only the credentials that this user holds."`
	}) (*Body[List[credentialBody]], error) {
		id := caller(ctx).Core.Tenant.ID
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		var all []credential.Credential
		var next string
		if in.Holder != "" {
			all, next, err = a.Credentials.Held(ctx, id, in.Holder, place, in.Limit)
		} else {
			all, next, err = a.Credentials.List(ctx, id, place, in.Limit)
		}
		if err != nil {
			return nil, err
		}
		return page(all, next, a.credentialOut), nil
	})

	register(a, api, operation{
		id: "get-credential", summary: "Get a credential", method: http.MethodGet, path: "/v1/credentials/{credential}",
		action: tenant.ReadCredentials, tag: tag,
	}, func(ctx context.Context, in *CredentialPath) (*Versioned[credentialBody], error) {
		c, err := a.Credentials.Get(ctx, caller(ctx).Core.Tenant.ID, in.Credential)
		if err != nil {
			return nil, err
		}
		return versioned(a.credentialOut(c), c.Version), nil
	})

	register(a, api, operation{
		id: "update-credential", summary: "Change a credential", method: http.MethodPatch, path: "/v1/credentials/{credential}",
		action: tenant.WriteCredentials, tag: tag,
		about: "Only the fields given are changed; an empty holder or label is cleared. Template and holder stay during an unblock.",
	}, func(ctx context.Context, in *struct {
		CredentialPath
		IfMatch
		Body struct {
			Template *string `json:"template,omitempty" doc:"Another one of the same family."`
			Holder   *string `json:"holder,omitempty"`
			Label    *string `json:"label,omitempty"`
		}
	}) (*Versioned[credentialBody], error) {
		c := caller(ctx)
		version := int64(0) // any
		if in.IfMatch.IfMatch != "" {
			old, err := a.Credentials.Get(ctx, c.Core.Tenant.ID, in.Credential)
			if err != nil {
				return nil, err
			}
			if err := in.check(old.Version); err != nil {
				return nil, err
			}
			version = old.Version
		}
		changed, err := a.Credentials.Update(ctx, c.Core, c.Actor, in.Credential, version, func(about *credential.About) {
			overlay(&about.Template, in.Body.Template)
			overlay(&about.Holder, in.Body.Holder)
			overlay(&about.Label, in.Body.Label)
		})
		if version != 0 && errors.Is(err, problem.ErrConflict) {
			return nil, errPrecondition
		} else if err != nil {
			return nil, err
		}
		return versioned(a.credentialOut(changed), changed.Version), nil
	})

	register(a, api, operation{
		id: "delete-credential", summary: "Delete a credential", method: http.MethodDelete, path: "/v1/credentials/{credential}",
		action: tenant.WriteCredentials, status: http.StatusNoContent, tag: tag,
		about: "With its PUK or admin key, of which there may be no other record: without them nobody can reset the card's PIN. Not during an unblock.",
	}, func(ctx context.Context, in *struct {
		CredentialPath
		Confirm bool `query:"confirm" doc:"Needed where a PUK or admin key is lost with it."`
	}) (*struct{}, error) {
		c := caller(ctx)
		return nil, a.Credentials.Delete(ctx, c.Core, c.Actor, in.Credential, 0, in.Confirm)
	})

	register(a, api, operation{
		id: "claim-puk", summary: "Say which PUK a card has", method: http.MethodPut, path: "/v1/credentials/{credential}/puk",
		action: tenant.WriteCredentials, tag: tag,
		about: "For a card that has another PUK than the one on record, or whose PUK is in doubt. " +
			"The PUKs on record are kept until the card has taken one. Not during an unblock.",
	}, func(ctx context.Context, in *struct {
		CredentialPath
		Body struct {
			PUK          *secretInput `json:"puk,omitempty" doc:"The PUK that the card has by now: exactly 8 characters, as PIV has it. It is stored sealed and never shown; the first unblock changes it."`
			Former       bool         `json:"former,omitempty" doc:"Instead of a PUK: the card has the one that was on record before the last claim. Repeated, it goes through all that are kept."`
			PUKTriesLeft *int         `json:"pukTriesLeft,omitempty" doc:"How many tries the PUK has left, if that is known."`
			Replace      bool         `json:"replace,omitempty" doc:"Needed where the card has taken the PUK on record."`
		}
	}) (*Versioned[credentialBody], error) {
		if (in.Body.PUK != nil) == in.Body.Former {
			return nil, problem.Invalid("missing", "puk", "must be given, or former be true, and not both")
		}
		c := caller(ctx)
		changed, err := a.Credentials.ClaimPUK(ctx, c.Core, c.Actor, in.Credential, credential.Claim{PUK: in.Body.PUK.text(), TriesLeft: in.Body.PUKTriesLeft, Replace: in.Body.Replace})
		if err != nil {
			return nil, err
		}
		return versioned(a.credentialOut(changed), changed.Version), nil
	})

	register(a, api, operation{
		id: "observe-puk-tries", summary: "Say how many tries a card's PUK has left", method: http.MethodPut, path: "/v1/credentials/{credential}/puk/tries",
		action: tenant.WriteCredentials, tag: tag,
		about: "As found out with a tool of the card's maker, after the last attempt to unblock the card. Not during an unblock.",
	}, func(ctx context.Context, in *struct {
		CredentialPath
		Body struct {
			PUKTriesLeft int `json:"pukTriesLeft"`
		}
	}) (*Versioned[credentialBody], error) {
		c := caller(ctx)
		changed, err := a.Credentials.ObserveTries(ctx, c.Core, c.Actor, in.Credential, in.Body.PUKTriesLeft)
		if err != nil {
			return nil, err
		}
		return versioned(a.credentialOut(changed), changed.Version), nil
	})

	register(a, api, operation{
		id: "put-admin-key", summary: "Set a card's admin key", method: http.MethodPut, path: "/v1/credentials/{credential}/admin-key",
		action: tenant.WriteCredentials, tag: tag, about: "It comes before the one derived from the template's master key. Not during an unblock.",
	}, func(ctx context.Context, in *struct {
		CredentialPath
		Body struct {
			AdminKey secretInput `json:"adminKey" doc:"The admin key that the card has by now, in hex: 24 bytes for 3DES; 16, 24 or 32 for AES. It is stored sealed and never shown."`
			Replace  bool        `json:"replace,omitempty" doc:"Needed where there is one on record, which is lost."`
		}
	}) (*Versioned[credentialBody], error) {
		c := caller(ctx)
		changed, err := a.Credentials.SetAdminKey(ctx, c.Core, c.Actor, in.Credential, in.Body.AdminKey.Text, in.Body.Replace)
		if err != nil {
			return nil, err
		}
		return versioned(a.credentialOut(changed), changed.Version), nil
	})
}
