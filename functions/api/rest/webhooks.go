package rest

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/tenant"
)

// WebhookFields are what an administrator decides about a webhook's endpoint.
type WebhookFields struct {
	Name string `json:"name" example:"Intranet"`
	URL  string `json:"url" maxLength:"2000" example:"https://intranet.example.org/pinward" doc:"https, at a public address. Redirects are not followed."`
}

type webhookInput struct {
	WebhookFields
	On *bool `json:"on,omitempty" doc:"Left out, it is on."`
}

func (in webhookInput) endpoint() delivery.Endpoint {
	return delivery.Endpoint{Name: in.Name, URL: in.URL, On: in.On == nil || *in.On}
}

type webhookBody struct {
	ID string `json:"id"`
	WebhookFields
	On                bool      `json:"on"`
	Gone              bool      `json:"gone,omitempty" doc:"It was turned off because it answered 410."`
	SecretAt          time.Time `json:"secretAt" doc:"When its secret was made."`
	FormerSecretUntil time.Time `json:"formerSecretUntil,omitzero" doc:"Until then a former secret signs too."`
	CreatedAt         time.Time `json:"createdAt"`
}

func (a *API) webhookOut(e delivery.Endpoint) webhookBody {
	return webhookBody{e.ID, WebhookFields{e.Name, e.URL}, e.On, e.Gone, e.RotatedAt, e.FormerUntil(a.Now()), e.CreatedAt}
}

// newWebhookBody is an endpoint with its secret, shown once.
type newWebhookBody struct {
	webhookBody
	Secret string `json:"secret" doc:"What it verifies signatures with; it is not shown again."`
}

// DeliveryFields are a delivery as it is shown.
type DeliveryFields struct {
	ID        string    `json:"id" doc:"Of a webhook, also its webhook-id."`
	Kind      string    `json:"kind" enum:"webhook,mail"`
	Webhook   string    `json:"webhook,omitempty" doc:"The id of the endpoint."`
	User      string    `json:"user,omitempty"`
	Template  string    `json:"template,omitempty"`
	Messaging string    `json:"messaging,omitempty"`
	State     string    `json:"state" enum:"planned,claimed,delivered,dead,dropped" doc:"claimed: it is being sent. dead: it was given up."`
	NextAt    time.Time `json:"nextAt,omitzero" doc:"When it is tried again."`
	Attempts  int       `json:"attempts"`
	Code      string    `json:"code,omitempty" doc:"Why the last attempt failed. Stable, for programs, such as http.500, timeout or noAddress."`
	Sentence  string    `json:"sentence,omitempty" doc:"The same for people."`
	InDoubt   bool      `json:"inDoubt,omitempty" doc:"It may have arrived: an answer was lost."`
	Repeated  bool      `json:"repeated,omitempty" doc:"It may have been sent more than once."`
	CreatedAt time.Time `json:"createdAt"`
	EndedAt   time.Time `json:"endedAt,omitzero"`
}

type deliveryBody struct {
	DeliveryFields
	Body   json.RawMessage   `json:"body,omitempty" doc:"Of a webhook, as it is sent."`
	Values map[string]string `json:"values,omitempty" doc:"Of a mail, what its template's variables stand for."`
}

func deliveryOut(d delivery.Delivery) DeliveryFields {
	return DeliveryFields{d.ID, string(d.Kind), d.Endpoint, d.User, d.Template, d.Messaging, string(d.State), d.At, d.Attempts,
		d.Code, d.Sentence(), d.Doubt, d.Repeated, d.CreatedAt, d.EndedAt}
}

func showDelivery(d delivery.Delivery, err error) (*Body[deliveryBody], error) {
	if err != nil {
		return nil, err
	}
	return answer(deliveryBody{deliveryOut(d), d.Body, d.Values}), nil
}

// WebhookPath names a webhook endpoint in a path.
type WebhookPath struct {
	Webhook string `path:"webhook" maxLength:"60"`
}

// DeliveryPath names a delivery in a path.
type DeliveryPath struct {
	Delivery string `path:"delivery" maxLength:"100"`
}

func (a *API) webhookOperations(api huma.API) {
	const tag = "Webhooks"
	const signed = "Each request is signed as [Standard Webhooks](https://www.standardwebhooks.com) 1.0.0 has it: `webhook-id` stays the same however often it is sent, `webhook-timestamp` is the attempt's in Unix seconds, " +
		"and `webhook-signature` is, for each secret that is good, `v1,` and the base64 of the HMAC-SHA-256 of `<id>.<timestamp>.<body>`, separated by spaces. The key is what follows `whsec_` in the secret, in base64."

	register(a, api, operation{
		id: "list-webhooks", summary: "List webhook endpoints", method: http.MethodGet, path: "/v1/webhooks",
		action: tenant.ReadDeliveries, tag: tag,
	}, func(ctx context.Context, _ *struct{}) (*Body[List[webhookBody]], error) {
		all, err := a.Deliveries.Endpoints(ctx, caller(ctx).Core.Tenant.ID)
		if err != nil {
			return nil, err
		}
		return page(all, "", a.webhookOut), nil
	})

	register(a, api, operation{
		id: "create-webhook", summary: "Create a webhook endpoint", method: http.MethodPost, path: "/v1/webhooks",
		action: tenant.ManageDeliveries, status: http.StatusCreated, tag: tag,
		about: "The answer shows its secret, this once. " + signed + "\n\nAny 2xx within 10 seconds means that it was taken, and 410 turns the endpoint off. After anything else it is sent again: after about 10 s, 1 min, 5 min, 30 min, 2 h, 6 h and 12 h, or later if `Retry-After` says so. Then it is dead: see deliveries.",
	}, func(ctx context.Context, in *struct{ Body webhookInput }) (*Secret[newWebhookBody], error) {
		c := caller(ctx)
		e, text, err := a.Deliveries.CreateEndpoint(ctx, c.Core, c.Actor, in.Body.endpoint())
		if err != nil {
			return nil, err
		}
		return secretAnswer(newWebhookBody{a.webhookOut(e), text.Reveal()}), nil
	})

	register(a, api, operation{
		id: "get-webhook", summary: "Get a webhook endpoint", method: http.MethodGet, path: "/v1/webhooks/{webhook}",
		action: tenant.ReadDeliveries, tag: tag,
	}, func(ctx context.Context, in *WebhookPath) (*Versioned[webhookBody], error) {
		e, err := a.Deliveries.Endpoint(ctx, caller(ctx).Core.Tenant.ID, in.Webhook)
		if err != nil {
			return nil, err
		}
		return versioned(a.webhookOut(e), e.Version), nil
	})

	register(a, api, operation{
		id: "put-webhook", summary: "Change a webhook endpoint", method: http.MethodPut, path: "/v1/webhooks/{webhook}",
		action: tenant.ManageDeliveries, tag: tag, about: "Its secret stays. What is due while it is off is given up.",
	}, func(ctx context.Context, in *struct {
		WebhookPath
		IfMatch
		Body webhookInput
	}) (*Versioned[webhookBody], error) {
		c := caller(ctx)
		was, err := a.Deliveries.Endpoint(ctx, c.Core.Tenant.ID, in.Webhook)
		if err != nil {
			return nil, err
		}
		if err := in.check(was.Version); err != nil {
			return nil, err
		}
		e := in.Body.endpoint()
		e.ID, e.Version = was.ID, was.Version
		if e, err = a.Deliveries.ChangeEndpoint(ctx, c.Core, c.Actor, e); err != nil {
			return nil, err
		}
		return versioned(a.webhookOut(e), e.Version), nil
	})

	register(a, api, operation{
		id: "delete-webhook", summary: "Delete a webhook endpoint", method: http.MethodDelete, path: "/v1/webhooks/{webhook}",
		action: tenant.ManageDeliveries, status: http.StatusNoContent, tag: tag, about: "Not while a trigger rule names it. What is still to be sent to it is given up when it is due.",
	}, func(ctx context.Context, in *WebhookPath) (*struct{}, error) {
		c := caller(ctx)
		unnamed, err := a.Rules.Unnamed(ctx, c.Core.Tenant.ID, func(x rule.Action) bool { return x.Endpoint == in.Webhook })
		if err != nil {
			return nil, err
		}
		return nil, a.Deliveries.DeleteEndpoint(ctx, c.Core, c.Actor, in.Webhook, unnamed)
	})

	register(a, api, operation{
		id: "rotate-webhook-secret", summary: "Give a webhook endpoint a new secret", method: http.MethodPost, path: "/v1/webhooks/{webhook}/rotate-secret",
		action: tenant.ManageDeliveries, tag: tag,
		about: "The answer shows it, this once. For the time of the overlap the former secret signs too, so that the receiver can change when it likes.",
	}, func(ctx context.Context, in *struct {
		WebhookPath
		Body struct {
			OverlapHours *int `json:"overlapHours,omitempty" minimum:"0" maximum:"168" doc:"Left out, 24. 0 if somebody else may know the former secret."`
		}
	}) (*Secret[newWebhookBody], error) {
		c := caller(ctx)
		overlap := 24
		if in.Body.OverlapHours != nil {
			overlap = *in.Body.OverlapHours
		}
		e, text, err := a.Deliveries.RotateSecret(ctx, c.Core, c.Actor, in.Webhook, time.Duration(overlap)*time.Hour)
		if err != nil {
			return nil, err
		}
		return secretAnswer(newWebhookBody{a.webhookOut(e), text.Reveal()}), nil
	})

	type webhookTestBody struct {
		Delivered bool   `json:"delivered"`
		Code      string `json:"code,omitempty"`
		Sentence  string `json:"sentence,omitempty"`
	}
	register(a, api, operation{
		id: "test-webhook", summary: "Send a test to a webhook endpoint", method: http.MethodPost, path: "/v1/webhooks/{webhook}/test",
		action: tenant.ManageDeliveries, tag: tag,
		about: "Sends an event of type `test` once, also to an endpoint that is off, and tells what came of it.",
	}, func(ctx context.Context, in *WebhookPath) (*Body[webhookTestBody], error) {
		c := caller(ctx)
		d, err := a.Deliveries.Test(ctx, c.Core, c.Actor, in.Webhook)
		if err != nil {
			return nil, err
		}
		return answer(webhookTestBody{d.State == delivery.Delivered, d.Code, d.Sentence()}), nil
	})

	const deliveries = "Deliveries"
	register(a, api, operation{
		id: "list-deliveries", summary: "List deliveries", method: http.MethodGet, path: "/v1/deliveries",
		action: tenant.ReadDeliveries, tag: deliveries, about: "Webhooks and mails that trigger rules have sent or are to send, newest first. They are kept for 30 days after they have ended.",
	}, func(ctx context.Context, in *struct {
		Paging
		State string `query:"state" enum:"dead" doc:"Only those that were given up."`
	}) (*Body[List[DeliveryFields]], error) {
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		list, next, err := a.Deliveries.List(ctx, caller(ctx).Core.Tenant.ID, in.State == string(delivery.Dead), place, in.Limit)
		if err != nil {
			return nil, err
		}
		return page(list, next, deliveryOut), nil
	})

	register(a, api, operation{
		id: "get-delivery", summary: "Get a delivery", method: http.MethodGet, path: "/v1/deliveries/{delivery}",
		action: tenant.ReadDeliveries, tag: deliveries, about: "With what is sent.",
	}, func(ctx context.Context, in *DeliveryPath) (*Body[deliveryBody], error) {
		return showDelivery(a.Deliveries.Get(ctx, caller(ctx).Core.Tenant.ID, in.Delivery))
	})

	register(a, api, operation{
		id: "resend-delivery", summary: "Send a delivery again", method: http.MethodPost, path: "/v1/deliveries/{delivery}/resend",
		action: tenant.ManageDeliveries, tag: deliveries, about: "One that has ended is sent at once, under the same id, and tried as often as a new one.",
	}, func(ctx context.Context, in *DeliveryPath) (*Body[deliveryBody], error) {
		c := caller(ctx)
		return showDelivery(a.Deliveries.Resend(ctx, c.Core, c.Actor, in.Delivery))
	})

	register(a, api, operation{
		id: "drop-delivery", summary: "Give up a delivery", method: http.MethodPost, path: "/v1/deliveries/{delivery}/drop",
		action: tenant.ManageDeliveries, tag: deliveries, about: "It is not sent any more, and a dead one leaves the list of those.",
	}, func(ctx context.Context, in *DeliveryPath) (*Body[deliveryBody], error) {
		c := caller(ctx)
		return showDelivery(a.Deliveries.Drop(ctx, c.Core, c.Actor, in.Delivery))
	})
}
