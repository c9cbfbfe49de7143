package rest

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
)

// UnblockFields are an unblock as it is shown.
type UnblockFields struct {
	ID         string       `json:"id"`
	Kind       string       `json:"kind" enum:"unblock,reconcile,rotate" doc:"reconcile: Pinward itself finds out what an unblock has done whose answer was lost. rotate: it changes a PUK that was told to somebody."`
	Credential string       `json:"credential"`
	Bridge     string       `json:"bridge"`
	Channel    string       `json:"channel,omitempty" enum:"selfService,operator"`
	By         actorBody    `json:"by"`
	Statement  string       `json:"statement,omitempty"`
	State      string       `json:"state" enum:"requested,proven,running,succeeded,failed,unknown,reconciled"`
	Next       nextBody     `json:"next"`
	Reason     string       `json:"reason,omitempty" doc:"Why it failed or is unknown; if it succeeded, why the PUK was not changed. Stable, for programs."`
	Sentence   string       `json:"sentence,omitempty" doc:"What came of it and what to do, for people."`
	Outcome    *outcomeBody `json:"outcome,omitempty"`
	Notice     string       `json:"notice,omitempty" enum:"planned,sent,failed,skipped" doc:"The mail that tells the holder."`
	CreatedAt  time.Time    `json:"createdAt"`
	UpdatedAt  time.Time    `json:"updatedAt"`
}

type nextBody struct {
	Do         string          `json:"do" enum:"code,pin,card,wait,nothing" doc:"code: give the mailed code (proof). pin: give the sealed new PIN. card: put the card into the bridge's reader. wait: look again soon."`
	Until      time.Time       `json:"until,omitzero" doc:"After that it is over."`
	SentTo     string          `json:"sentTo,omitempty" doc:"Where the code was mailed to, masked."`
	TriesLeft  int             `json:"triesLeft,omitempty" doc:"How often a wrong code may still be given."`
	Policy     *PolicyFields   `json:"policy,omitempty" doc:"What the new PIN must meet; the bridge checks it."`
	Seal       *sealBody       `json:"seal,omitempty"`
	Violations []violationBody `json:"violations,omitempty" doc:"Why the bridge did not take the PIN that was given last."`
}

type sealBody struct {
	PublicKey      string `json:"publicKey" doc:"The bridge's X25519 key, in hex."`
	Info           string `json:"info"`
	AssociatedData string `json:"associatedData"`
	Length         int    `json:"length" doc:"Of the plaintext in bytes: one that is the PIN's length, the PIN, and zeros."`
}

type outcomeBody struct {
	PIN          string `json:"pin,omitempty" enum:"yes,no,unknown" doc:"Was it reset?"`
	PUK          string `json:"puk,omitempty" enum:"yes,no,unknown" doc:"Was it changed?"`
	PINTriesLeft *int   `json:"pinTriesLeft,omitempty"`
}

func (a *API) unblockOut(op unblock.Operation, shown relay.Operation, b tenant.Bridge, t tenant.Tenant) UnblockFields {
	out := UnblockFields{
		ID: op.ID, Kind: string(op.Kind), Credential: op.Credential, Bridge: op.Bridge, Channel: string(op.Channel),
		By: actorOut(op.By), Statement: op.Statement, State: string(op.State),
		Next:   nextBody{Do: string(shown.Next), Until: shown.Until, SentTo: shown.SentTo, TriesLeft: shown.TriesLeft},
		Reason: op.Reason, Sentence: op.Sentence(), Notice: string(op.Notice.State), CreatedAt: op.CreatedAt, UpdatedAt: op.UpdatedAt,
	}
	if shown.Policy != nil {
		policy := policyOut(*shown.Policy)
		out.Next.Policy = &policy
		binding := relay.Binding{Tenant: string(t.ID), Operation: op.ID, Credential: op.Credential, Fence: op.Fence}
		out.Next.Seal = &sealBody{hex.EncodeToString(b.Sealing), relay.PINInfo, string(binding.AssociatedData()), relay.PINLength}
	}
	for _, v := range shown.Violations {
		out.Next.Violations = append(out.Next.Violations, violationBody{v.Code, v.Reason})
	}
	if o := op.Outcome; o.PIN != "" || o.PUK != "" {
		out.Outcome = &outcomeBody{string(o.PIN), string(o.PUK), triesLeft(o.PINTries)}
	}
	return out
}

// showUnblock answers with an operation and what is to be done next.
func (a *API) showUnblock(ctx context.Context, op unblock.Operation, err error) (*Body[UnblockFields], error) {
	if err != nil {
		return nil, err
	}
	core := caller(ctx).Core
	shown, err := a.Unblocks.Show(ctx, core, op)
	if err != nil {
		return nil, err
	}
	var b tenant.Bridge
	if shown.Policy != nil { // its key is needed
		if b, err = a.Tenants.Bridge(ctx, core.Tenant.ID, op.Bridge); err != nil {
			return nil, err
		}
	}
	return answer(a.unblockOut(op, shown, b, core.Tenant)), nil
}

// unblockFor returns an operation to a caller who may have to do with it: a kiosk, where
// nobody tells who stands there, only with those that a mailed code proves.
func (a *API) unblockFor(ctx context.Context, id string) (unblock.Operation, error) {
	c := caller(ctx)
	op, err := a.Unblocks.Get(ctx, c.Core.Tenant.ID, id)
	if err == nil && c.Role == tenant.RoleKiosk && op.Proof.SentTo == "" {
		return unblock.Operation{}, fmt.Errorf("unblock %w", problem.ErrNotFound)
	}
	return op, err
}

// UnblockPath names an unblock in a path.
type UnblockPath struct {
	Unblock string `path:"unblock" maxLength:"60"`
}

func (a *API) unblockOperations(api huma.API) {
	const tag = "Unblocks"
	register(a, api, operation{
		id: "start-unblock", summary: "Start the unblock of a card", method: http.MethodPost, path: "/v1/unblocks",
		action: tenant.StartUnblock, status: http.StatusCreated, tag: tag,
		about: "By selfService a one-time code is mailed to the card's holder, which proves who they are. By operator, whoever holds the key has made sure who the person is, and the statement says how; a key of role kiosk cannot. " +
			"Then the card is held for this unblock for 3 minutes, in which the new PIN must be given: at the bridge's terminal, or sealed for the bridge.",
	}, func(ctx context.Context, in *struct {
		Body struct {
			Credential string `json:"credential" maxLength:"100"`
			Bridge     string `json:"bridge" maxLength:"60" doc:"Where the card is, or is going to be."`
			Channel    string `json:"channel" enum:"selfService,operator,logonScreen"`
			Statement  string `json:"statement,omitempty" maxLength:"500" doc:"With operator: how the person was identified." example:"staff badge, known in person"`
		}
	}) (*createdUnblock, error) {
		c := caller(ctx)
		if in.Body.Channel == string(credential.Operator) && c.Role == tenant.RoleKiosk {
			return nil, fmt.Errorf("%w: role kiosk starts unblocks by selfService only", problem.ErrForbidden)
		}
		op, err := a.Unblocks.Create(ctx, c.Core, c.Actor, unblock.Request{Credential: in.Body.Credential, Bridge: in.Body.Bridge,
			Channel: credential.Channel(in.Body.Channel), Statement: in.Body.Statement, Unattended: c.Role == tenant.RoleKiosk})
		shown, err := a.showUnblock(ctx, op, err)
		if err != nil {
			return nil, err
		}
		return &createdUnblock{"/v1/unblocks/" + op.ID, shown.Body}, nil
	})

	register(a, api, operation{
		id: "list-unblocks", summary: "List unblocks", method: http.MethodGet, path: "/v1/unblocks",
		action: tenant.ListUnblocks, tag: tag, about: "Newest first. What is to be done next is shown for a single one only.",
	}, func(ctx context.Context, in *struct {
		Paging
		Credential string `query:"credential" maxLength:"100" doc:"Only those of this card."`
	}) (*Body[List[UnblockFields]], error) {
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		t := caller(ctx).Core.Tenant
		ops, next, err := a.Unblocks.List(ctx, t.ID, in.Credential, place, in.Limit)
		if err != nil {
			return nil, err
		}
		return page(ops, next, func(op unblock.Operation) UnblockFields {
			out := a.unblockOut(op, relay.Operation{}, tenant.Bridge{}, t)
			out.Next = nextBody{Do: "nothing"}
			if !op.State.Finished() {
				out.Next = nextBody{Do: "wait", Until: op.Until}
			}
			return out
		}), nil
	})

	register(a, api, operation{
		id: "get-unblock", summary: "Get an unblock", method: http.MethodGet, path: "/v1/unblocks/{unblock}",
		action: tenant.ReadUnblock, tag: tag, about: "With what is to be done next.",
	}, func(ctx context.Context, in *UnblockPath) (*Body[UnblockFields], error) {
		op, err := a.unblockFor(ctx, in.Unblock)
		return a.showUnblock(ctx, op, err)
	})

	register(a, api, operation{
		id: "prove-unblock", summary: "Give the mailed code", method: http.MethodPost, path: "/v1/unblocks/{unblock}/proof",
		action: tenant.StartUnblock, tag: tag,
		about: "Five wrong codes end the unblock. The code is good for 10 minutes.",
	}, func(ctx context.Context, in *struct {
		UnblockPath
		Body struct {
			Code mailedCodeInput `json:"code"`
		}
	}) (*Body[UnblockFields], error) {
		c := caller(ctx)
		op, err := a.unblockFor(ctx, in.Unblock)
		if err == nil {
			op, err = a.Unblocks.Prove(ctx, c.Core, c.Actor, in.Unblock, in.Body.Code.Text)
		}
		return a.showUnblock(ctx, op, err)
	})

	register(a, api, operation{
		id: "approve-unblock", summary: "Approve an unblock", method: http.MethodPost, path: "/v1/unblocks/{unblock}/approve",
		action: tenant.WriteCredentials, tag: tag,
		about: "As the second operator, where the card's template wants two, within 15 minutes: who has started it cannot. Or as the one who has identified the person, where a trigger rule has asked for it.",
	}, func(ctx context.Context, in *struct {
		UnblockPath
		Body *struct {
			Statement string `json:"statement,omitempty" maxLength:"500" doc:"How the person was identified; needed where a trigger rule has asked, and else said by who has started it."`
		}
	}) (*Body[UnblockFields], error) {
		c := caller(ctx)
		statement := ""
		if in.Body != nil {
			statement = in.Body.Statement
		}
		op, err := a.Unblocks.Approve(ctx, c.Core, c.Actor, in.Unblock, statement)
		return a.showUnblock(ctx, op, err)
	})

	register(a, api, operation{
		id: "give-unblock-pin", summary: "Give the new PIN, sealed", method: http.MethodPost, path: "/v1/unblocks/{unblock}/pin",
		action: tenant.StartUnblock, tag: tag,
		about: "Sealed by HPKE (RFC 9180, base mode, X25519, HKDF-SHA256, AES-128-GCM) to the key, with the info and the associated data that next.seal has: only that bridge can read it, and only for this unblock. Then the card is spoken to; look at the unblock to see what comes of it.",
	}, func(ctx context.Context, in *struct {
		UnblockPath
		Body struct {
			Encapsulated string `json:"encapsulated" doc:"The encapsulated key, 32 bytes in hex."`
			Ciphertext   string `json:"ciphertext" doc:"81 bytes in hex."`
		}
	}) (*Body[UnblockFields], error) {
		c := caller(ctx)
		var vs problem.Violations
		var sealed relay.SealedPIN
		if err := sealed.Encapsulated.UnmarshalText([]byte(in.Body.Encapsulated)); err != nil {
			vs.Add("malformed", "encapsulated", "must be in hex")
		}
		if err := sealed.Ciphertext.UnmarshalText([]byte(in.Body.Ciphertext)); err != nil {
			vs.Add("malformed", "ciphertext", "must be in hex")
		}
		if err := vs.Err(); err != nil {
			return nil, err
		}
		op, err := a.unblockFor(ctx, in.Unblock)
		if err == nil {
			op, err = a.Unblocks.GivePIN(ctx, c.Core, c.Actor, in.Unblock, sealed)
		}
		return a.showUnblock(ctx, op, err)
	})

	register(a, api, operation{
		id: "resume-unblock", summary: "Resume an unblock that waits", method: http.MethodPost, path: "/v1/unblocks/{unblock}/resume",
		action: tenant.StartUnblock, tag: tag,
		about: "Sends the bridge again what may have been lost on its way; the card is never given it twice. Needed only if an unblock stays running for more than a few seconds.",
	}, func(ctx context.Context, in *UnblockPath) (*Body[UnblockFields], error) {
		op, err := a.unblockFor(ctx, in.Unblock)
		if err == nil {
			op, err = a.Unblocks.Look(ctx, caller(ctx).Core, in.Unblock)
		}
		return a.showUnblock(ctx, op, err)
	})

	register(a, api, operation{
		id: "cancel-unblock", summary: "Cancel an unblock", method: http.MethodPost, path: "/v1/unblocks/{unblock}/cancel",
		action: tenant.CancelUnblock, tag: tag,
		about: "As long as the card is not being spoken to. One that is over stays as it is.",
	}, func(ctx context.Context, in *UnblockPath) (*Body[UnblockFields], error) {
		c := caller(ctx)
		op, err := a.unblockFor(ctx, in.Unblock)
		if err == nil {
			op, err = a.Unblocks.Cancel(ctx, c.Core, c.Actor, in.Unblock)
		}
		return a.showUnblock(ctx, op, err)
	})
}

type createdUnblock struct {
	Location string `header:"Location"`
	Body     UnblockFields
}

// mailedCodeInput is a mailed code in a request.
type mailedCodeInput struct{ pinInput }

// Schema implements huma.SchemaProvider.
func (mailedCodeInput) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "password", WriteOnly: true, Description: "The code that was mailed: 6 digits. Spaces do not count.", Examples: []any{"123 456"}}
}
