package rest

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/audit"
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
	ID       string      `json:"id"`
	Family   string      `json:"family"`
	CardID   string      `json:"cardId" doc:"In hex. PIV: the GUID, or where there is none the FASC-N; GIDS: the card id."`
	Template string      `json:"template"`
	Holder   string      `json:"holder,omitempty" doc:"The user's id. The user may have been deleted since."`
	Label    string      `json:"label,omitempty"`
	Serial   string      `json:"serial,omitempty" doc:"Printed on the card, or told by it."`
	State    string      `json:"state" enum:"registered,pinToBeSet,active,blocked,suspended,retired" doc:"registered: its PIN was not set through Pinward yet. pinToBeSet: issued without a PIN that its holder knows. blocked: its PIN is. suspended, retired: its PIN is not reset, and nobody is reminded."`
	ATR      string      `json:"atr,omitempty" doc:"As a bridge has seen it last, in hex."`
	Import   *originBody `json:"import,omitempty" doc:"The import that brought it. That record is in the import's part of the audit log, of subject import/<id>."`

	PUK              pukBody `json:"puk"`
	AdminKeyEscrowed bool    `json:"adminKeyEscrowed" doc:"There is an admin key of the card's own. Else it is derived, if the template has a master key."`

	LastPINChange *pinChangeBody `json:"lastPinChange,omitempty"`
	PINExpiresAt  time.Time      `json:"pinExpiresAt,omitzero" doc:"The PIN expiry flag; left out if there is none. The card goes on working."`
	PINExpiry     *pinExpiryBody `json:"pinExpiry,omitempty" doc:"About the flag."`
	PUKDisclosed  time.Time      `json:"pukDisclosedAt,omitzero" doc:"Since when somebody knows the PUK that the card has."`
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
	At       time.Time `json:"at"`
	How      string    `json:"how" enum:"issued,changedByHolder,resetBySelfService,resetByOperator,resetOffline"`
	Unblock  string    `json:"unblock,omitempty"`
	Presumed bool      `json:"presumed,omitempty" doc:"An offline answer was given that sets it, and the card has not shown yet that it did."`
}

type pinExpiryBody struct {
	Expired bool            `json:"expired"`
	SetBy   string          `json:"setBy" enum:"issue,change,reset,import,sanityCheck" doc:"What has set the flag."`
	SetAt   time.Time       `json:"setAt"`
	Run     string          `json:"run,omitempty" doc:"The sanity check's run."`
	Notice  *cardNoticeBody `json:"notice,omitempty" doc:"The mail about it that comes next, or came last."`
}

type cardNoticeBody struct {
	Kind       string    `json:"kind" enum:"reminder,expired,expiredOperators"`
	DaysBefore int       `json:"daysBefore,omitempty" doc:"Of a reminder."`
	State      string    `json:"state" enum:"planned,claimed,sent,failed,skipped"`
	At         time.Time `json:"at"`
	Attempts   int       `json:"attempts,omitempty"`
	Repeated   bool      `json:"possiblyRepeated,omitempty"`
	Reason     string    `json:"reason,omitempty"`
}

func (a *API) pinExpiryOut(c credential.Credential) *pinExpiryBody {
	if !c.HasFlag() {
		return nil
	}
	b := &pinExpiryBody{Expired: c.Expired(a.Now()), SetBy: string(c.Flagged.How), SetAt: c.Flagged.At, Run: c.Flagged.Run}
	if n := c.Notice; n.State != credential.NoNotice {
		b.Notice = &cardNoticeBody{string(n.Kind), n.Days, string(n.State), n.At, n.Attempts, n.Repeated, n.Reason}
	}
	return b
}

func pukOut(c credential.Credential) pukBody {
	b := pukBody{State: string(c.PUKState())}
	if c.Custody.Current != 0 {
		b.TriesLeft, b.Former = &c.Custody.Tries, len(c.Former)
	}
	return b
}

// changedCredential answers with a credential as it is after a change.
func (a *API) changedCredential(c credential.Credential, err error) (*Versioned[credentialBody], error) {
	if err != nil {
		return nil, err
	}
	return versioned(a.credentialOut(c), c.Version), nil
}

func (a *API) credentialOut(c credential.Credential) credentialBody {
	b := credentialBody{
		ID: c.ID, Family: c.Family, CardID: c.CardID, Template: c.Template, Holder: c.Holder, Label: c.Label,
		Serial: c.Serial, State: string(c.State), ATR: hex.EncodeToString(c.ATR),
		Import: originOut(c.Import), PUK: pukOut(c), AdminKeyEscrowed: c.AdminKey != nil,
		PINExpiresAt: c.PINExpiresAt, PINExpiry: a.pinExpiryOut(c), PUKDisclosed: c.PUKDisclosedAt, Doubt: c.Doubt, CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt,
	}
	if p := c.LastPINChange; !p.At.IsZero() {
		b.LastPINChange = &pinChangeBody{p.At, string(p.How), p.Operation, p.Presumed}
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

// at returns the time that was given, or the zero time.
func at(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
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
			Serial       string       `json:"serial,omitempty" doc:"Printed on the card; for people."`
			State        string       `json:"state,omitempty" doc:"Left out, active with issuedAt and else registered." example:"active"`
			IssuedAt     *time.Time   `json:"issuedAt,omitempty" doc:"When its holder got it with its PIN. From then its PIN expiry flag is set, by the template."`
			PINExpiresAt *time.Time   `json:"pinExpiresAt,omitempty" doc:"The PIN expiry flag that it has by now, instead."`
			PUK          *secretInput `json:"puk,omitempty" doc:"The PUK that the card has by now: exactly 8 characters, as PIV has it. It is stored sealed and never shown; the first unblock changes it."`
			PUKTriesLeft *int         `json:"pukTriesLeft,omitempty" doc:"How many tries the PUK has left, if that is known."`
			AdminKey     *secretInput `json:"adminKey,omitempty" doc:"The admin key that the card has by now, in hex: 24 bytes for 3DES; 16, 24 or 32 for AES. It is stored sealed and never shown."`
		}
	}) (*createdCredential, error) {
		c, b := caller(ctx), in.Body
		made, err := a.Credentials.Register(ctx, c.Core, c.Actor, credential.New{
			Family: b.Family, CardID: b.CardID, Template: b.Template, Holder: b.Holder, Label: b.Label,
			Serial: b.Serial, State: credential.State(b.State), IssuedAt: at(b.IssuedAt), PINExpiresAt: at(b.PINExpiresAt),
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
		action: tenant.ReadCredentials, tag: tag,
		about: "All, or those that are all that is asked for. Each filter alone is read from an index, so that only what matches is read. Of several, one is read from its index, the first given of holder, search, cardId, pukDisclosed, withoutFlag, expired, expiringWithinDays, state, template (state and template together from one), and what does not match the others is left out: " +
			"a page then reads at most ten times its limit, and may be short or empty with more to come after it. By id, or where the filter has another order, by that: expiry, or label and serial.",
	}, func(ctx context.Context, in *struct {
		Paging
		Holder       string `query:"holder" maxLength:"60" doc:"Only the credentials that this user holds."`
		Template     string `query:"template" maxLength:"60" doc:"Only those with this credential template."`
		State        string `query:"state" enum:"registered,pinToBeSet,active,blocked,suspended,retired" doc:"Only those in this state."`
		Expired      bool   `query:"expired" doc:"Only those whose PIN has expired; without retired ones."`
		Within       int    `query:"expiringWithinDays" minimum:"0" maximum:"3650" doc:"Only those whose PIN expires within so many days, and has not yet; without retired ones."`
		WithoutFlag  bool   `query:"withoutFlag" doc:"Only those without a PIN expiry flag whose template manages PIN expiry or, with template, of that; without retired ones."`
		PUKDisclosed bool   `query:"pukDisclosed" doc:"Only those whose PUK somebody knows."`
		Search       string `query:"search" maxLength:"100" doc:"Only those whose label or serial starts with this, whatever the case."`
		CardID       string `query:"cardId" maxLength:"64" doc:"Only those whose card id starts with this, in hex."`
	}) (*Body[List[credentialBody]], error) {
		id := caller(ctx).Core.Tenant.ID
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		f := credential.Filter{Template: in.Template, Holder: in.Holder, State: credential.State(in.State), Expired: in.Expired,
			WithoutFlag: in.WithoutFlag, PUKDisclosed: in.PUKDisclosed, Search: in.Search, CardID: in.CardID}
		if in.Within > 0 {
			f.ExpiringBefore = a.Now().AddDate(0, 0, in.Within)
		}
		all, next, err := a.Credentials.Find(ctx, id, f, place, in.Limit)
		if inv := (*problem.InvalidError)(nil); errors.As(err, &inv) {
			return nil, wrongQuery(inv.Violations[0].Field, inv.Violations[0].Reason)
		} else if err != nil {
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
		about: "Only the fields given are changed; an empty holder, label or serial is cleared. Template, holder and state stay during an unblock: cancel it first. " +
			"Another template leaves the PIN expiry flag as it is. A state is moved to only from certain others, and suspended and retired, and back, need a reason; back from retired is for administrators.",
	}, func(ctx context.Context, in *struct {
		CredentialPath
		IfMatch
		Body struct {
			Template *string `json:"template,omitempty" doc:"Another one of the same family."`
			Holder   *string `json:"holder,omitempty"`
			Label    *string `json:"label,omitempty"`
			Serial   *string `json:"serial,omitempty"`
			State    *string `json:"state,omitempty" doc:"registered, pinToBeSet, active, blocked, suspended or retired." example:"suspended"`
			Reason   *string `json:"reason,omitempty" doc:"Why the state is another: lost, stolen, damaged, holderLeft, holderAway, found, returned, replaced, mistake or other." example:"lost"`
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
		changed, err := a.Credentials.Update(ctx, c.Core, c.Actor, c.Role, in.Credential, version, func(about *credential.About) {
			overlay(&about.Template, in.Body.Template)
			overlay(&about.Holder, in.Body.Holder)
			overlay(&about.Label, in.Body.Label)
			overlay(&about.Serial, in.Body.Serial)
			overlay((*string)(&about.State), in.Body.State)
			overlay((*string)(&about.Reason), in.Body.Reason)
		})
		if version != 0 && errors.Is(err, problem.ErrConflict) {
			err = errPrecondition
		}
		return a.changedCredential(changed, err)
	})

	register(a, api, operation{
		id: "pin-changed", summary: "Say that a card's holder has changed its PIN", method: http.MethodPost, path: "/v1/credentials/{credential}/pin-changed",
		action: tenant.WriteCredentials, tag: tag,
		about: "As another system has seen it. The PIN expiry flag is set anew by the template, and reminders of the former PIN are not sent any more. Told twice, it changes nothing.",
	}, func(ctx context.Context, in *struct {
		CredentialPath
		Body struct {
			At *time.Time `json:"at,omitempty" doc:"When; left out, now. Not before the last PIN change on record."`
		}
	}) (*Versioned[credentialBody], error) {
		c := caller(ctx)
		when := at(in.Body.At)
		if when.IsZero() {
			when = a.Now()
		}
		return a.changedCredential(a.Credentials.PINChangedByHolder(ctx, c.Core, c.Actor, in.Credential, when))
	})

	register(a, api, operation{
		id: "list-credential-history", summary: "Read a credential's history", method: http.MethodGet, path: "/v1/credentials/{credential}/history",
		action: tenant.ReadCredentials, tag: tag, about: "What was done with it, newest first, by whom and why: its part of the audit log.",
	}, func(ctx context.Context, in *struct {
		CredentialPath
		Paging
	}) (*Body[List[auditBody]], error) {
		t := caller(ctx).Core.Tenant.ID
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		if _, err := a.Credentials.Get(ctx, t, in.Credential); err != nil {
			return nil, err
		}
		records, more, err := audit.Of(ctx, a.Table, t, credential.Subject(in.Credential), place, in.Limit)
		if err != nil {
			return nil, err
		}
		next := ""
		if more {
			next = records[len(records)-1].ID
		}
		return page(records, next, auditOut), nil
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
		return a.changedCredential(a.Credentials.ClaimPUK(ctx, c.Core, c.Actor, in.Credential, credential.Claim{PUK: in.Body.PUK.text(), TriesLeft: in.Body.PUKTriesLeft, Replace: in.Body.Replace}))
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
		return a.changedCredential(a.Credentials.ObserveTries(ctx, c.Core, c.Actor, in.Credential, in.Body.PUKTriesLeft))
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
		return a.changedCredential(a.Credentials.SetAdminKey(ctx, c.Core, c.Actor, in.Credential, in.Body.AdminKey.Text, in.Body.Replace))
	})
}
