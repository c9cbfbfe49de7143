package rest

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
)

const offlinePath = "/v1/offline-answers"

// AnswerFields are an offline answer as it is shown.
type AnswerFields struct {
	ID         string     `json:"id"`
	Credential string     `json:"credential"`
	Channel    string     `json:"channel" enum:"selfServiceOffline,logonScreenOffline,windowsChallengeResponse"`
	Bridge     string     `json:"bridge,omitempty" doc:"Where the person is."`
	Challenge  string     `json:"challenge,omitempty" doc:"As it was understood, in groups: read it back."`
	Replaced   []string   `json:"replaced,omitempty" doc:"Characters that were taken for others that they look like."`
	State      string     `json:"state" enum:"requested,approved,given,confirmed,refuted" doc:"requested: another operator has to approve it. approved: give it now. given: the PIN is presumed to be reset. confirmed: it was. refuted: it was not."`
	Until      time.Time  `json:"until,omitzero" doc:"After that it is not approved, given or shown any more."`
	By         actorBody  `json:"by"`
	ApprovedBy *actorBody `json:"approvedBy,omitempty"`
	Statement  string     `json:"statement"`
	Reason     string     `json:"reason,omitempty"`
	Notice     string     `json:"notice,omitempty" enum:"planned,sent,failed,skipped" doc:"The mail that tells the holder."`
	CreatedAt  time.Time  `json:"createdAt"`
	GivenAt    time.Time  `json:"givenAt,omitzero"`
}

type givenBody struct {
	AnswerFields
	Response string      `json:"response,omitempty" doc:"What to read out, in groups. It is stored nowhere."`
	Spoken   *spokenBody `json:"spoken,omitempty" doc:"The same in words."`
	IsPUK    bool        `json:"isPuk,omitempty" doc:"The response is the card's PUK, in the hex that Windows' screen wants: it is changed when the card is next at a connected bridge."`
}

type spokenBody struct {
	English string `json:"en"`
	German  string `json:"de"`
}

// AnswerPath names an offline answer in a path.
type AnswerPath struct {
	Answer string `path:"answer" maxLength:"60"`
}

func answerOut(a unblock.Answer, g unblock.Given) AnswerFields {
	out := AnswerFields{ID: a.ID, Credential: a.Credential, Channel: string(a.Channel), Bridge: a.Bridge, Challenge: a.Challenge, State: string(a.State), Until: a.Until,
		By: actorOut(a.By), Statement: a.Statement, Reason: a.Reason, Notice: string(a.Notice.State), CreatedAt: a.CreatedAt, GivenAt: a.GivenAt}
	if a.Approved != (audit.Actor{}) {
		by := actorOut(a.Approved)
		out.ApprovedBy = &by
	}
	for _, r := range g.Replaced {
		out.Replaced = append(out.Replaced, r.String())
	}
	return out
}

func givenOut(a unblock.Answer, g unblock.Given) givenBody {
	b := givenBody{AnswerFields: answerOut(a, g), Response: g.Response.Reveal()}
	if b.Response != "" {
		b.Spoken = &spokenBody{offline.Spoken(offline.English, b.Response), offline.Spoken(offline.German, b.Response)}
		b.IsPUK = a.TellsPUK()
	}
	return b
}

type createdAnswer struct {
	Location     string `header:"Location"`
	CacheControl string `header:"Cache-Control"`
	Body         givenBody
}

func (a *API) offlineOperations(api huma.API) {
	const tag = "Offline answers"
	register(a, api, operation{
		id: "ask-offline-answer", summary: "Answer a challenge", method: http.MethodPost, path: offlinePath,
		action: tenant.AnswerOffline, status: http.StatusCreated, tag: tag,
		about: "For a person without a connection who reads a challenge out. By windowsChallengeResponse it is that of Windows' own unblock screen: 16 or 32 hex digits; a card with a PUK has none there, and is told its PUK. " +
			"By the other channels it is the code that `bridge unblock --offline` shows, whose check digits tell which group was misheard. " +
			"The response fits this challenge only. A challenge is answered once; have the answer shown again if it was lost. " +
			"Where the template wants two operators, and always for a PUK, another one has to approve first. " +
			"The holder is told by mail, the PIN is presumed to be reset, and a PUK in the answer is to be changed.",
	}, func(ctx context.Context, in *struct {
		Body struct {
			Credential string `json:"credential" maxLength:"100"`
			Channel    string `json:"channel" enum:"selfServiceOffline,logonScreenOffline,windowsChallengeResponse"`
			Bridge     string `json:"bridge,omitempty" maxLength:"60" doc:"Where the person is; needed only if the challenge does not tell."`
			Challenge  string `json:"challenge,omitempty" maxLength:"300" doc:"As it was read out: spaces, dashes and letters that look like digits do not matter." example:"BF09 E22D E553 55F6"`
			AnyDay     bool   `json:"anyDay,omitempty" doc:"Answer a challenge that by the bridge's clock is not of these days: the person has it on the screen now."`
			Statement  string `json:"statement" maxLength:"500" doc:"How the person was identified." example:"called back on the number on record"`
			Reason     string `json:"reason,omitempty" maxLength:"500" doc:"Why a PUK is told; needed for one."`
		}
	}) (*createdAnswer, error) {
		c := caller(ctx)
		got, given, err := a.Unblocks.Ask(ctx, c.Core, c.Actor, unblock.OfflineRequest{
			Credential: in.Body.Credential, Channel: credential.Channel(in.Body.Channel), Bridge: in.Body.Bridge, Challenge: in.Body.Challenge, AnyDay: in.Body.AnyDay,
			Statement: in.Body.Statement, Reason: in.Body.Reason, TellPUK: tenant.May(c.Role, tenant.TellPUK) == tenant.Yes,
		})
		if err != nil {
			return nil, err
		}
		return &createdAnswer{offlinePath + "/" + got.ID, "no-store", givenOut(got, given)}, nil
	})

	register(a, api, operation{
		id: "list-offline-answers", summary: "List a card's offline answers", method: http.MethodGet, path: offlinePath,
		action: tenant.AnswerOffline, tag: tag, about: "Newest first, without the responses.",
	}, func(ctx context.Context, in *struct {
		Paging
		Credential string `query:"credential" maxLength:"100" required:"true"`
	}) (*Body[List[AnswerFields]], error) {
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		all, next, err := a.Unblocks.Answers(ctx, caller(ctx).Core.Tenant.ID, in.Credential, place, in.Limit)
		if err != nil {
			return nil, err
		}
		return page(all, next, func(a unblock.Answer) AnswerFields { return answerOut(a, unblock.Given{}) }), nil
	})

	register(a, api, operation{
		id: "get-offline-answer", summary: "Get an offline answer", method: http.MethodGet, path: offlinePath + "/{answer}",
		action: tenant.AnswerOffline, tag: tag, about: "Without the response.",
	}, func(ctx context.Context, in *AnswerPath) (*Body[AnswerFields], error) {
		got, err := a.Unblocks.Answer(ctx, caller(ctx).Core.Tenant.ID, in.Answer)
		if err != nil {
			return nil, err
		}
		return answer(answerOut(got, unblock.Given{})), nil
	})

	register(a, api, operation{
		id: "approve-offline-answer", summary: "Approve an offline answer", method: http.MethodPost, path: offlinePath + "/{answer}/approval",
		action: tenant.AnswerOffline, tag: tag, about: "As the second operator, within 15 minutes; for a PUK a key of role helpdesk cannot. Then who has asked can have it given, within 15 more.",
	}, func(ctx context.Context, in *AnswerPath) (*Body[AnswerFields], error) {
		c := caller(ctx)
		got, err := a.Unblocks.Answer(ctx, c.Core.Tenant.ID, in.Answer)
		if err == nil && got.TellsPUK() && tenant.May(c.Role, tenant.TellPUK) != tenant.Yes {
			err = fmt.Errorf("%w: role %s cannot approve that a PUK is told", problem.ErrForbidden, c.Role)
		}
		if err == nil {
			got, err = a.Unblocks.ApproveAnswer(ctx, c.Core, c.Actor, in.Answer)
		}
		if err != nil {
			return nil, err
		}
		return answer(answerOut(got, unblock.Given{})), nil
	})

	register(a, api, operation{
		id: "give-offline-answer", summary: "Have an offline answer given, or shown again", method: http.MethodPost, path: offlinePath + "/{answer}/response",
		action: tenant.AnswerOffline, tag: tag, about: "To the key that has asked for it: once it is approved, and for 30 minutes after it was given. It is the same answer each time.",
	}, func(ctx context.Context, in *AnswerPath) (*Secret[givenBody], error) {
		c := caller(ctx)
		got, given, err := a.Unblocks.Give(ctx, c.Core, c.Actor, in.Answer)
		if err != nil {
			return nil, err
		}
		return secretAnswer(givenOut(got, given)), nil
	})
}
