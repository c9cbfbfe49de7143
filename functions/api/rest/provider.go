package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/federation"
	"github.com/pinward/pinward/shared/tenant"
)

// SignInProviderFields are what an administrator decides about the organisation's provider.
type SignInProviderFields struct {
	Issuer    string              `json:"issuer" example:"https://login.example.org/realms/staff" doc:"Exactly as the provider writes it; https, at a public address."`
	ClientID  string              `json:"clientId" example:"pinward"`
	Public    bool                `json:"public,omitempty" doc:"The client has no secret."`
	Scopes    []string            `json:"scopes,omitempty" doc:"openid is always asked for; email is needed the first time somebody signs in."`
	RoleClaim string              `json:"roleClaim,omitempty" example:"groups" doc:"The claim whose values give roles, set anew at every sign-in. Without it roles are given by hand."`
	Roles     map[string][]string `json:"roles,omitempty" doc:"For each of admin, operator, helpdesk and auditor the values of the claim that give it."`
	Create    bool                `json:"create,omitempty" doc:"People who are not known are created when they first sign in; else they must have been added, with a mail address that the provider vouches for."`
	On        bool                `json:"on"`
}

type signInProviderInput struct {
	SignInProviderFields
	ClientSecret *passwordInput `json:"clientSecret,omitempty" doc:"Left out in a change, it stays as it is while issuer and client id do."`
}

func (in signInProviderInput) provider() federation.Provider {
	p := federation.Provider{Issuer: in.Issuer, ClientID: in.ClientID, Public: in.Public, Scopes: in.Scopes, RoleClaim: in.RoleClaim,
		Roles: map[tenant.Role][]string{}, Create: in.Create, On: in.On}
	for role, values := range in.Roles {
		p.Roles[tenant.Role(role)] = values
	}
	if in.ClientSecret != nil {
		p.Secret = in.ClientSecret.Text
	}
	return p
}

type signInProviderBody struct {
	SignInProviderFields
	ClientSecretSet bool   `json:"clientSecretSet"`
	RedirectURI     string `json:"redirectUri" doc:"That the provider must know."`
}

func (a *API) signInProviderOut(p federation.Provider) signInProviderBody {
	roles := map[string][]string{}
	for role, values := range p.Roles {
		roles[string(role)] = values
	}
	return signInProviderBody{SignInProviderFields{p.Issuer, p.ClientID, p.Public, p.Scopes, p.RoleClaim, roles, p.Create, p.On}, p.SecretSet, a.Federation.RedirectURI()}
}

func (a *API) providerOperations(api huma.API) {
	const tag, path = "People", "/v1/sign-in-provider"
	register(a, api, operation{
		id: "get-sign-in-provider", summary: "Get the organisation's sign-in provider", method: http.MethodGet, path: path,
		action: tenant.ManagePeople, tag: tag, about: "The OpenID Connect provider with whose accounts people can sign in to the pages. Its secret is not shown.",
	}, func(ctx context.Context, _ *struct{}) (*Versioned[signInProviderBody], error) {
		p, err := a.Federation.Get(ctx, caller(ctx).Core.Tenant.ID)
		if err != nil {
			return nil, err
		}
		return versioned(a.signInProviderOut(p), p.Version), nil
	})

	register(a, api, operation{
		id: "put-sign-in-provider", summary: "Set the organisation's sign-in provider", method: http.MethodPut, path: path,
		action: tenant.ManagePeople, tag: tag, about: "Signing in by a mailed link or code stays possible.",
	}, func(ctx context.Context, in *struct {
		IfMatch
		Body signInProviderInput
	}) (*Versioned[signInProviderBody], error) {
		c := caller(ctx)
		was, err := a.Federation.Get(ctx, c.Core.Tenant.ID)
		if err != nil && !isNotFound(err) {
			return nil, err
		}
		if err := in.check(was.Version); err != nil {
			return nil, err
		}
		p := in.Body.provider()
		p.Version = was.Version
		if p, err = a.Federation.Put(ctx, c.Core, c.Actor, p); err != nil {
			return nil, changedMeanwhile(was.Version, err)
		}
		return versioned(a.signInProviderOut(p), p.Version), nil
	})

	register(a, api, operation{
		id: "delete-sign-in-provider", summary: "Delete the organisation's sign-in provider", method: http.MethodDelete, path: path,
		action: tenant.ManagePeople, status: http.StatusNoContent, tag: tag, about: "People stay, and sign in by a mailed link or code. Who is signed in stays so.",
	}, func(ctx context.Context, in *IfMatch) (*struct{}, error) {
		c := caller(ctx)
		was, err := a.Federation.Get(ctx, c.Core.Tenant.ID)
		if err != nil {
			return nil, err
		}
		if err := in.check(was.Version); err != nil {
			return nil, err
		}
		return nil, a.Federation.Delete(ctx, c.Core, c.Actor, was.Version)
	})
}
