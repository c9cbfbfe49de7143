package rest

import (
	"context"
	"encoding/hex"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// BridgeFields are a bridge as it is shown.
type BridgeFields struct {
	ID            string        `json:"id"`
	Name          string        `json:"name"`
	State         string        `json:"state" enum:"invited,enrolled,revoked"`
	Online        bool          `json:"online" doc:"One of its sessions was heard of lately."`
	Program       string        `json:"program,omitempty" doc:"The bridge's version."`
	System        string        `json:"system,omitempty" example:"linux/amd64"`
	Host          string        `json:"host,omitempty" doc:"The machine's name."`
	CreatedAt     time.Time     `json:"createdAt"`
	EnrolledAt    time.Time     `json:"enrolledAt,omitzero"`
	RevokedAt     time.Time     `json:"revokedAt,omitzero"`
	CodeExpiresAt time.Time     `json:"codeExpiresAt,omitzero" doc:"There is a code, not used yet, that can be until then."`
	Sessions      []sessionBody `json:"sessions"`
}

type sessionBody struct {
	Session     string       `json:"session" enum:"service,terminal" doc:"service: in the background. terminal: with a person at the bridge."`
	Online      bool         `json:"online" doc:"It was heard of lately."`
	ConnectedAt time.Time    `json:"connectedAt"`
	SeenAt      time.Time    `json:"seenAt" doc:"When it was heard of last, to the minute."`
	Readers     []readerBody `json:"readers"`
}

type readerBody struct {
	Name string    `json:"name"`
	Card *cardBody `json:"card,omitempty" doc:"The card in it."`
}

type cardBody struct {
	ATR          string `json:"atr,omitempty" doc:"Its answer to reset, in hex."`
	Silent       bool   `json:"silent" doc:"It does not answer: it may be the wrong way round."`
	Family       string `json:"family,omitempty" doc:"PIV or GIDS, as soon as that is known."`
	ID           string `json:"id,omitempty" doc:"The card's id in hex, once it is identified."`
	Serial       string `json:"serial,omitempty" doc:"If the card tells."`
	PINTriesLeft *int   `json:"pinTriesLeft,omitempty" doc:"If the card tells; 0 is blocked."`
	PUKTriesLeft *int   `json:"pukTriesLeft,omitempty" doc:"If the card tells; 0 is blocked."`
	Credential   string `json:"credential,omitempty" doc:"The credential that it is, if there is one."`
	Problem      string `json:"problem,omitempty" doc:"Why it could not be identified, and what to do."`
}

func (a *API) bridgeOut(ctx context.Context, t table.TenantID, b tenant.Bridge) BridgeFields {
	now := a.Now()
	out := BridgeFields{
		ID: b.ID, Name: b.Name, State: "invited", Online: b.Online(now), Program: b.Program, System: b.System, Host: b.Host,
		CreatedAt: b.CreatedAt, EnrolledAt: b.EnrolledAt, RevokedAt: b.RevokedAt, CodeExpiresAt: b.CodeUntil(now), Sessions: []sessionBody{},
	}
	switch {
	case !b.RevokedAt.IsZero():
		out.State = "revoked"
	case b.Enrolled():
		out.State = "enrolled"
	}
	for _, session := range slices.Sorted(maps.Keys(b.Sessions)) {
		p := b.Sessions[session]
		s := sessionBody{string(session), p.Online(now), p.ConnectedAt, p.SeenAt, make([]readerBody, len(p.Readers))}
		for i, r := range p.Readers {
			s.Readers[i] = readerBody{Name: r.Name, Card: cardOut(r)}
			if c := s.Readers[i].Card; c != nil && c.ID != "" && c.Credential == "" { // registered since, perhaps
				c.Credential = a.registered(ctx, t, c.Family, c.ID)
			}
		}
		out.Sessions = append(out.Sessions, s)
	}
	return out
}

// registered returns the id of a card's credential, "" if there is none.
func (a *API) registered(ctx context.Context, t table.TenantID, family, cardID string) string {
	id, err := credential.IDOf(family, cardID)
	if err == nil {
		_, err = a.Credentials.Get(ctx, t, id)
	}
	if err != nil {
		return ""
	}
	return id
}

func cardOut(r tenant.Reader) *cardBody {
	if r.Insertion == "" {
		return nil
	}
	c := &cardBody{ATR: hex.EncodeToString(r.ATR), Silent: r.Silent, Family: r.Identify.Family, Credential: r.Credential}
	switch r.Identify.Leg {
	case card.Done:
		id := r.Identify.Identity
		c.Family, c.ID, c.Serial, c.PINTriesLeft, c.PUKTriesLeft = id.Family, id.ID, id.Serial, triesLeft(id.PIN), triesLeft(id.PUK)
	case card.Failed:
		c.Problem = r.Identify.Failure.Sentence()
	}
	return c
}

func triesLeft(c card.RetryCounter) *int {
	if !c.Known {
		return nil
	}
	return &c.TriesLeft
}

type invitedBody struct {
	BridgeFields
	Code    string `json:"code" doc:"Good once, for 10 minutes and 5 tries. It is shown this once."`
	Command string `json:"command" doc:"What to paste into a terminal on the machine."`
}

// BridgePath names a bridge in a path.
type BridgePath struct {
	Bridge string `path:"bridge" maxLength:"60"`
}

// Asked is the URL at which the API was called, for who is to call it next.
type Asked struct{ url string }

// Resolve implements huma.Resolver.
func (a *Asked) Resolve(ctx huma.Context) []error {
	a.url = "https://" + ctx.Host()
	if ctx.Header("X-Forwarded-Proto") == "http" {
		a.url = "http://" + ctx.Host()
	}
	return nil
}

// codeInput is a one-time code in a request.
type codeInput struct{ pinInput }

// Schema implements huma.SchemaProvider.
func (codeInput) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "password", WriteOnly: true, Description: "The code that an administrator was given. Upper and lower case are one, and spaces do not count."}
}

func (a *API) bridgeOperations(api huma.API) {
	const tag = "Bridges"
	register(a, api, operation{
		id: "list-bridges", summary: "List bridges", method: http.MethodGet, path: "/v1/bridges",
		action: tenant.ReadBridges, tag: tag, about: "With their readers and the cards in them, in the order of their ids. Those revoked in the last 90 days are included.",
	}, func(ctx context.Context, in *Paging) (*Body[List[BridgeFields]], error) {
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		t := caller(ctx).Core.Tenant.ID
		bridges, next, err := a.Tenants.Bridges(ctx, t, place, in.Limit)
		if err != nil {
			return nil, err
		}
		return page(bridges, next, func(b tenant.Bridge) BridgeFields { return a.bridgeOut(ctx, t, b) }), nil
	})

	register(a, api, operation{
		id: "invite-bridge", summary: "Invite a bridge", method: http.MethodPost, path: "/v1/bridges",
		action: tenant.ManageBridges, status: http.StatusCreated, tag: tag,
		about: "Makes a bridge and the one-time code with which a machine becomes it: run the command there within 10 minutes.",
	}, func(ctx context.Context, in *struct {
		Asked
		Body struct {
			Name string `json:"name" doc:"For people: where the machine stands." example:"service desk, Vienna"`
		}
	}) (*Secret[invitedBody], error) {
		c := caller(ctx)
		b, code, err := a.Tenants.Invite(ctx, c.Core, c.Actor, in.Body.Name)
		if err != nil {
			return nil, err
		}
		return secretAnswer(invitedBody{a.bridgeOut(ctx, c.Core.Tenant.ID, b), code.Reveal(), relay.EnrolCommand(code, in.url)}), nil
	})

	register(a, api, operation{
		id: "get-bridge", summary: "Get a bridge", method: http.MethodGet, path: "/v1/bridges/{bridge}",
		action: tenant.ReadBridges, tag: tag, about: "With its readers and the cards in them.",
	}, func(ctx context.Context, in *BridgePath) (*Body[BridgeFields], error) {
		t := caller(ctx).Core.Tenant.ID
		b, err := a.Tenants.Bridge(ctx, t, in.Bridge)
		if err != nil {
			return nil, err
		}
		return answer(a.bridgeOut(ctx, t, b)), nil
	})

	register(a, api, operation{
		id: "make-bridge-code", summary: "Make a new code for a bridge", method: http.MethodPost, path: "/v1/bridges/{bridge}/code",
		action: tenant.ManageBridges, tag: tag,
		about: "For a machine that was installed anew, or a code that was not used in time. Until the new code is used the bridge goes on as it is; an earlier code is good no more.",
	}, func(ctx context.Context, in *struct {
		BridgePath
		Asked
	}) (*Secret[invitedBody], error) {
		c := caller(ctx)
		b, code, err := a.Tenants.InviteAgain(ctx, c.Core, c.Actor, in.Bridge)
		if err != nil {
			return nil, err
		}
		return secretAnswer(invitedBody{a.bridgeOut(ctx, c.Core.Tenant.ID, b), code.Reveal(), relay.EnrolCommand(code, in.url)}), nil
	})

	register(a, api, operation{
		id: "revoke-bridge", summary: "Revoke a bridge", method: http.MethodDelete, path: "/v1/bridges/{bridge}",
		action: tenant.ManageBridges, status: http.StatusNoContent, tag: tag,
		about: "At once and for good: it is disconnected and its keys are worth nothing.",
	}, func(ctx context.Context, in *BridgePath) (*struct{}, error) {
		c := caller(ctx)
		connections, err := a.Tenants.Revoke(ctx, c.Core, c.Actor, in.Bridge)
		if err != nil {
			return nil, err
		}
		a.hangUp(ctx, connections, "the bridge was revoked by an administrator")
		return nil, nil
	})

	register(a, api, operation{
		id: "enroll-bridge", summary: "Enrol a bridge", method: http.MethodPost, path: relay.EnrolPath,
		open: true, tag: tag,
		about: "What `bridge enroll` does: the code makes the holder of the keys the bridge that it was made for. " +
			"A code that is wrong, used, expired or was tried too often is answered with 401, and which of these it is is not told.",
	}, func(ctx context.Context, in *struct {
		Body struct {
			Code     codeInput `json:"code"`
			Identity []byte    `json:"identity" doc:"Ed25519 public key of 32 bytes, with which the bridge's tokens are checked."`
			Sealing  []byte    `json:"sealing" doc:"X25519 public key of 32 bytes, to which new PINs are sealed."`
			Program  string    `json:"program" doc:"The bridge's version." example:"1.0.0"`
			System   string    `json:"system" example:"linux/amd64"`
			Host     string    `json:"host" doc:"The machine's name."`
		}
	}) (*Body[relay.Enrolled], error) {
		body := in.Body
		b, core, former, err := a.Tenants.Enrol(ctx, relay.Enrolment{Code: relay.Code{Text: body.Code.Text},
			Identity: body.Identity, Sealing: body.Sealing, Program: body.Program, System: body.System, Host: body.Host})
		if err != nil {
			return nil, err
		}
		observed(ctx).tenant = core.Tenant.ID
		a.hangUp(ctx, former, "the bridge was enrolled anew, with other keys")
		enrolled := relay.Enrolled{Tenant: string(core.Tenant.ID), Bridge: b.ID, Name: b.Name, Organisation: core.Tenant.Settings.DisplayName, Relay: a.RelayURL}
		// It is enrolled by now, whatever else: what is missing it is told at Welcome.
		if offline, err := a.Tenants.OfflineKey(ctx, core); err != nil {
			a.Log.WarnContext(ctx, "no offline key for a bridge yet", "bridge", b.ID, "cause", err.Error())
		} else {
			enrolled.Offline = offline.PublicKey().Bytes()
		}
		return answer(enrolled), nil
	})
}

// hangUp tells connections that their bridge is one no more, and closes them. The table does
// not know them any more, so nothing that comes from them is heard.
func (a *API) hangUp(ctx context.Context, connections []string, reason string) {
	goodbye, _ := relay.Encode(relay.Message{Goodbye: &relay.Goodbye{Code: relay.Revoked, Reason: reason}}) // is valid
	gateway.HangUp(ctx, a.Connections, a.Log.With("requestId", audit.RequestID(ctx)), goodbye, connections...)
}
