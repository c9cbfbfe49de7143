package rest

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/tenant"
)

// KeyFields are an API key without the key itself.
type KeyFields struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Role       string    `json:"role"`
	CreatedAt  time.Time `json:"createdAt"`
	ExpiresAt  time.Time `json:"expiresAt,omitzero"`
	LastUsedAt time.Time `json:"lastUsedAt,omitzero" doc:"To the hour."`
	RevokedAt  time.Time `json:"revokedAt,omitzero"`
}

func keyOut(k tenant.APIKey) KeyFields {
	return KeyFields{k.ID, k.Name, string(k.Role), k.CreatedAt, k.ExpiresAt, k.LastUsedAt, k.RevokedAt}
}

type newKeyBody struct {
	KeyFields
	APIKey string `json:"apiKey" doc:"The key itself. It is shown this once; only its hash is kept."`
}

func (a *API) keyOperations(api huma.API) {
	const tag = "API keys"
	register(a, api, operation{
		id: "list-keys", summary: "List API keys", method: http.MethodGet, path: "/v1/keys",
		action: tenant.ManageKeys, tag: tag, about: "All of them, revoked ones included, oldest first.",
	}, func(ctx context.Context, _ *struct{}) (*Body[List[KeyFields]], error) {
		keys, err := a.Tenants.APIKeys(ctx, caller(ctx).Core.Tenant.ID)
		if err != nil {
			return nil, err
		}
		return page(keys, "", keyOut), nil
	})

	register(a, api, operation{
		id: "make-key", summary: "Make an API key", method: http.MethodPost, path: "/v1/keys",
		action: tenant.ManageKeys, status: http.StatusCreated, tag: tag,
	}, func(ctx context.Context, in *struct {
		Body struct {
			Name      string     `json:"name" doc:"For people: who or what uses the key." example:"printers, ground floor"`
			Role      string     `json:"role" enum:"admin,operator,helpdesk,kiosk,events"`
			ExpiresAt *time.Time `json:"expiresAt,omitempty" doc:"When it ends; left out it does not."`
		}
	}) (*Secret[newKeyBody], error) {
		c := caller(ctx)
		made := tenant.APIKey{Name: in.Body.Name, Role: tenant.Role(in.Body.Role)}
		if in.Body.ExpiresAt != nil {
			if made.ExpiresAt = in.Body.ExpiresAt.UTC(); made.ExpiresAt.IsZero() {
				made.ExpiresAt = made.ExpiresAt.Add(1) // a time, though long past: not "never"
			}
		}
		key, text, err := a.Tenants.MakeKey(ctx, c.Core.Tenant.ID, c.Actor, made)
		if err != nil {
			return nil, err
		}
		return secretAnswer(newKeyBody{keyOut(key), text.Reveal()}), nil
	})

	register(a, api, operation{
		id: "revoke-key", summary: "Revoke an API key", method: http.MethodDelete, path: "/v1/keys/{key}",
		action: tenant.ManageKeys, status: http.StatusNoContent, tag: tag,
		about: "At once and for good. The last usable key of role admin cannot be revoked.",
	}, func(ctx context.Context, in *struct {
		Key string `path:"key" maxLength:"60"`
	}) (*struct{}, error) {
		c := caller(ctx)
		return nil, a.Tenants.RevokeKey(ctx, c.Core.Tenant.ID, c.Actor, in.Key)
	})

	register(a, api, operation{
		id: "mint-token", summary: "Mint a user's token", method: http.MethodPost, path: "/v1/users/{id}/tokens",
		action: tenant.MintTokens, status: http.StatusCreated, tag: tag,
		about: "With it, one person acts for themselves: own profile and own PIN, nothing else. Mint it after your system has made sure who the person is.",
	}, func(ctx context.Context, in *struct {
		UserPath
		Body *struct {
			Minutes int `json:"minutes" required:"false" default:"15" minimum:"1" maximum:"1440" doc:"How long it lives."`
		}
	}) (*Secret[tokenBody], error) {
		c := caller(ctx)
		u, err := a.Users.Get(ctx, c.Core.Tenant.ID, in.ID)
		if err != nil {
			return nil, err
		}
		minutes := 15
		if in.Body != nil {
			minutes = in.Body.Minutes
		}
		key, text, err := a.Tenants.MintToken(ctx, c.Core.Tenant.ID, c.Actor, u.ID, time.Duration(minutes)*time.Minute)
		if err != nil {
			return nil, err
		}
		return secretAnswer(tokenBody{text.Reveal(), key.ExpiresAt}), nil
	})
}

type tokenBody struct {
	Token     string    `json:"token" doc:"Send it as the API key is sent. It is shown this once."`
	ExpiresAt time.Time `json:"expiresAt"`
}
