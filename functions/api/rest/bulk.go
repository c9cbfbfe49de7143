package rest

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// BulkPath names a bulk of PINs in a path.
type BulkPath struct {
	ID string `path:"bulk" maxLength:"60"`
}

// IssueFields say what PIN is to be generated and mailed.
type IssueFields struct {
	GenerateFields
	ValidHours int    `json:"validHours,omitempty" minimum:"0" maximum:"87600" doc:"How long it lives. Left out, as long as the policy says; never longer."`
	OneTime    string `json:"oneTime,omitempty" enum:"change,delete" doc:"change: to be changed at its first use. delete: for one use only."`
	Messaging  string `json:"messaging,omitempty" maxLength:"100" doc:"Id of the messaging configuration. Left out, that of the settings' expiryMail."`
	Template   string `json:"template,omitempty" maxLength:"100" doc:"Id of a mail template of kind pin-issued. Left out, the predefined one."`
}

func (b IssueFields) issue() user.Issue {
	return user.Issue{Options: b.options(), Messaging: b.Messaging, Template: b.Template, ValidHours: b.ValidHours, OneTime: user.OneTime(b.OneTime)}
}

// BulkFields say who gets a PIN in a bulk, and what PIN.
type BulkFields struct {
	Group          string `json:"group,omitempty" maxLength:"64" doc:"Only members of this group. Left out, everybody."`
	OlderThanHours int    `json:"olderThanHours,omitempty" minimum:"0" maximum:"87600" doc:"Also those whose PIN is older. Left out, only those without a PIN."`
	IssueFields
}

type bulkBody struct {
	ID    string     `json:"id"`
	State string     `json:"state" enum:"counting,planned,expired,running,done,cancelled,failed"`
	By    actorBody  `json:"by" doc:"Who planned it or, later, who started it."`
	Spec  BulkFields `json:"spec"`

	CreatedAt time.Time `json:"createdAt"`
	PlannedAt time.Time `json:"plannedAt,omitzero" doc:"From then on the plan can be started, for an hour."`
	StartedAt time.Time `json:"startedAt,omitzero"`
	EndedAt   time.Time `json:"endedAt,omitzero"`

	Users            int `json:"users" doc:"Of the plan: users looked at."`
	Matched          int `json:"matched" doc:"Of the plan: users who are to get a PIN."`
	WithoutAddress   int `json:"withoutAddress" doc:"Of those matched: they have no mail address, and get none."`
	Mails            int `json:"mails" doc:"Of the plan: mails that will be sent."`
	EstimatedSeconds int `json:"estimatedSeconds,omitempty" doc:"About how long that takes, once it has begun, at the rate of SES. Absent if that is not known."`

	Seen    int         `json:"seen" doc:"Users that the run has looked at."`
	Issued  int         `json:"issued" doc:"PINs generated."`
	Mailed  int         `json:"mailed" doc:"Of those issued: their users have them."`
	Pending int         `json:"pending" doc:"Of those issued: their first mail failed, and is tried again."`
	Refused []countBody `json:"refused" doc:"Users who got no PIN, or no mail, by why."`

	Cancelling bool      `json:"cancelling,omitempty" doc:"It is cancelled when the PINs that are being issued are done."`
	Reason     string    `json:"reason,omitempty" doc:"Why it failed, or waits."`
	WaitsUntil time.Time `json:"waitsUntil,omitzero"`
}

type countBody struct {
	Code  string `json:"code"`
	Count int    `json:"count"`
}

func (a *API) bulkOut(b user.Bulk) bulkBody {
	is := b.Spec.Issue
	body := bulkBody{
		ID: b.ID, State: string(b.StateAt(a.Now())), By: actorOut(b.By),
		Spec: BulkFields{b.Spec.Group, b.Spec.OlderThanHours, IssueFields{GenerateFields{is.Options.Length, string(is.Options.Alphabet)},
			is.ValidHours, string(is.OneTime), is.Messaging, is.Template}},
		CreatedAt: b.CreatedAt, PlannedAt: b.PlannedAt, StartedAt: b.StartedAt, EndedAt: b.EndedAt,
		Users: b.Users, Matched: b.Matched, WithoutAddress: b.NoAddress, Mails: b.Mails(), EstimatedSeconds: int(b.Estimate() / time.Second),
		Seen: b.Seen, Issued: b.Issued, Mailed: b.Mailed, Pending: b.Pending(), Refused: []countBody{},
		Cancelling: b.Cancelling, Reason: b.Reason, WaitsUntil: b.WaitsUntil,
	}
	for _, code := range slices.Sorted(maps.Keys(b.Refused)) {
		body.Refused = append(body.Refused, countBody{code, b.Refused[code]})
	}
	return body
}

func (a *API) bulkOperations(api huma.API) {
	const tag = "PINs in bulk"
	register(a, api, operation{
		id: "plan-bulk-pins", summary: "Plan to generate PINs for many users", method: http.MethodPost, path: "/v1/bulk-pins",
		action: tenant.BulkPINs, status: http.StatusCreated, tag: tag,
		about: "Counts who would get a PIN by mail, and makes none: those without one, or with an expired one, and if olderThanHours is given those with an older one. " +
			"With very many users it is still counting; read it again.",
	}, func(ctx context.Context, in *struct{ Body BulkFields }) (*Body[bulkBody], error) {
		c := caller(ctx)
		spec := user.BulkSpec{Group: in.Body.Group, OlderThanHours: in.Body.OlderThanHours, Issue: in.Body.issue()}
		rate, err := a.store(c).BulkRate(ctx, a.Senders, cmp.Or(spec.Issue.Messaging, c.Core.Tenant.Settings.ExpiryMail.Messaging))
		if err != nil {
			return nil, err
		}
		b, err := a.Users.PlanBulk(ctx, c.Core, c.Actor, spec, rate)
		if err != nil {
			return nil, err
		}
		return answer(a.bulkOut(b)), nil
	})

	register(a, api, operation{
		id: "list-bulk-pins", summary: "List plans and runs", method: http.MethodGet, path: "/v1/bulk-pins",
		action: tenant.BulkPINs, tag: tag, about: "The newest first.",
	}, func(ctx context.Context, in *Paging) (*Body[List[bulkBody]], error) {
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		all, next, err := a.Users.Bulks(ctx, caller(ctx).Core.Tenant.ID, place, in.Limit)
		if err != nil {
			return nil, err
		}
		return page(all, next, a.bulkOut), nil
	})

	register(a, api, operation{
		id: "get-bulk-pins", summary: "Get a plan or run", method: http.MethodGet, path: "/v1/bulk-pins/{bulk}",
		action: tenant.BulkPINs, tag: tag,
	}, func(ctx context.Context, in *BulkPath) (*Body[bulkBody], error) {
		b, err := a.Users.Bulk(ctx, caller(ctx).Core.Tenant.ID, in.ID)
		if err != nil {
			return nil, err
		}
		return answer(a.bulkOut(b)), nil
	})

	for _, op := range []struct {
		id, what, about string
		do              func(context.Context, tenant.Core, audit.Actor, string) (user.Bulk, error)
	}{
		{"start", "Start a plan", "It goes on in the background. Whoever has got a PIN meanwhile is left alone; urgent mails go first.", a.Users.StartBulk},
		{"cancel", "Cancel a plan or run", "PINs that were issued stay, and no more are. While some are being issued, it is cancelled after those: cancelling is true.", a.Users.CancelBulk},
	} {
		register(a, api, operation{
			id: op.id + "-bulk-pins", summary: op.what, method: http.MethodPost, path: "/v1/bulk-pins/{bulk}/" + op.id,
			action: tenant.BulkPINs, tag: tag, about: op.about,
		}, func(ctx context.Context, in *BulkPath) (*Body[bulkBody], error) {
			c := caller(ctx)
			b, err := op.do(ctx, c.Core, c.Actor, in.ID)
			if err != nil {
				return nil, err
			}
			return answer(a.bulkOut(b)), nil
		})
	}
}
