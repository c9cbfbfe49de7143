package federation

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"

	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/secret"
)

const (
	answerFor = 10 * time.Second // for all of what is asked of a provider at a time
	maxAnswer = 256 << 10        // bytes of each answer
	maxHeader = 32 << 10
)

// Trouble is what is wrong with a provider, for who administers it.
type Trouble struct {
	Code   string // unreachable, notPublic, timeout, tls, redirected, status, notProvider, wrongIssuer, insecure, noPKCE, noCode, noKeys, client, code, token
	Detail string // what was found, if that helps; no secret
	cause  error
}

// Error implements error.
func (t *Trouble) Error() string {
	s := "sign-in provider: " + t.Code
	if t.Detail != "" {
		s += " (" + t.Detail + ")"
	}
	if t.cause != nil {
		s += ": " + t.cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (t *Trouble) Unwrap() error { return t.cause }

// bounded keeps a provider's answers short, and where they were asked for.
type bounded struct {
	next   http.RoundTripper
	strict bool // anything but 200 is Trouble
}

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	status := response.StatusCode
	if status/100 == 3 || b.strict && status != http.StatusOK {
		_ = response.Body.Close()
		if status/100 == 3 {
			return nil, &Trouble{Code: "redirected"}
		}
		return nil, &Trouble{Code: "status", Detail: http.StatusText(status)}
	}
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(response.Body, maxAnswer), response.Body}
	return response, nil
}

// client asks providers: with no proxy, no cookies, no redirects.
func (f *Federation) client(strict bool) *http.Client {
	dial := mail.PublicDial
	switch {
	case f.Dial != nil:
		dial = f.Dial
	case f.Anywhere:
		dial = new(net.Dialer).DialContext
	}
	return &http.Client{Timeout: answerFor, Transport: bounded{&http.Transport{
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxHeader,
	}, strict}}
}

// metadata is what a provider says of itself (OpenID Connect Discovery 1.0, section 3).
type metadata struct {
	AuthURL       string   `json:"authorization_endpoint"`
	TokenURL      string   `json:"token_endpoint"`
	KeysURL       string   `json:"jwks_uri"`
	UserInfoURL   string   `json:"userinfo_endpoint"`
	ResponseTypes []string `json:"response_types_supported"`
	Challenges    []string `json:"code_challenge_methods_supported"`
	Scopes        []string `json:"scopes_supported"`
	Claims        []string `json:"claims_supported"`
	TokenAuth     []string `json:"token_endpoint_auth_methods_supported"`
}

// discover reads what the provider says of itself, or returns a *Trouble.
func (f *Federation) discover(ctx context.Context, issuer string) (*oidc.Provider, metadata, error) {
	var m metadata
	ctx, cancel := context.WithTimeout(ctx, answerFor)
	defer cancel()
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, f.client(true)), issuer)
	if err == nil {
		err = found.Claims(&m)
	}
	if err != nil {
		return nil, m, trouble(err)
	}
	for name, endpoint := range map[string]string{"authorization_endpoint": m.AuthURL, "token_endpoint": m.TokenURL, "jwks_uri": m.KeysURL, "userinfo_endpoint": m.UserInfoURL} {
		if endpoint == "" && name != "userinfo_endpoint" {
			return nil, m, &Trouble{Code: "notProvider", Detail: name}
		}
		if code, _ := f.checkURL(endpoint); code != "" && endpoint != "" {
			return nil, m, &Trouble{Code: "insecure", Detail: name}
		}
	}
	if !slices.Contains(m.ResponseTypes, "code") {
		return nil, m, &Trouble{Code: "noCode"}
	}
	if m.Challenges != nil && !slices.Contains(m.Challenges, "S256") { // some that take it do not say so
		return nil, m, &Trouble{Code: "noPKCE"}
	}
	return found, m, nil
}

// trouble says what an error of a provider means.
func trouble(err error) error {
	var (
		already  *Trouble
		mismatch *oidc.IssuerMismatchError
		refused  *oauth2.RetrieveError
		bad      *tls.CertificateVerificationError
		record   tls.RecordHeaderError
		network  net.Error
	)
	switch {
	case errors.As(err, &already):
		return already
	case errors.As(err, &mismatch):
		return &Trouble{Code: "wrongIssuer", Detail: cut(mismatch.Discovered)}
	case errors.As(err, &refused):
		// The answer's text is left out: it may repeat what it was sent.
		if refused.ErrorCode == "invalid_client" || refused.ErrorCode == "unauthorized_client" {
			return &Trouble{Code: "client", Detail: refused.ErrorCode}
		}
		return &Trouble{Code: "code", Detail: code(refused.ErrorCode)}
	case errors.Is(err, mail.ErrNotPublic):
		return &Trouble{Code: "notPublic"}
	case errors.As(err, &bad), errors.As(err, &record):
		return &Trouble{Code: "tls", cause: err}
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return &Trouble{Code: "timeout"}
	case network != nil:
		return &Trouble{Code: "unreachable", cause: err}
	}
	return &Trouble{Code: "notProvider"}
}

func cut(s string) string { return s[:min(len(s), 200)] }

// Found is what a provider says of itself.
type Found struct {
	AuthURL  string // where people go to sign in
	PKCE     bool   // it says that it takes PKCE with S256; else it does not say
	UserInfo bool
	Missing  []string // scopes that are asked for, and that it does not say it has
	NoClaim  bool     // it says which claims it has, and the one for roles is not among them
}

// Check asks the provider for what it says of itself and for its keys, or returns a *Trouble.
// Whether it takes the client's id, secret and redirect URI shows at the first sign-in only.
func (f *Federation) Check(ctx context.Context, p Provider) (Found, error) {
	_, m, err := f.discover(ctx, p.Issuer)
	if err != nil {
		return Found{}, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, m.KeysURL, nil)
	if err != nil {
		return Found{}, &Trouble{Code: "noKeys"}
	}
	response, err := f.client(true).Do(r)
	if err != nil {
		return Found{}, trouble(err)
	}
	defer response.Body.Close()
	var keys struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.NewDecoder(response.Body).Decode(&keys); err != nil || len(keys.Keys) == 0 {
		return Found{}, &Trouble{Code: "noKeys"}
	}
	found := Found{AuthURL: m.AuthURL, PKCE: slices.Contains(m.Challenges, "S256"), UserInfo: m.UserInfoURL != "",
		NoClaim: p.RoleClaim != "" && len(m.Claims) > 0 && !slices.Contains(m.Claims, p.RoleClaim)}
	for _, s := range p.Scopes {
		if len(m.Scopes) > 0 && !slices.Contains(m.Scopes, s) {
			found.Missing = append(found.Missing, s)
		}
	}
	return found, nil
}

// oauth is how Pinward speaks to the provider as its client.
func (f *Federation) oauth(p Provider, m metadata, given secret.Text) oauth2.Config {
	style := oauth2.AuthStyleInHeader // what holds where nothing is said (Discovery 1.0, section 3)
	if p.Public || len(m.TokenAuth) > 0 && !slices.Contains(m.TokenAuth, "client_secret_basic") {
		style = oauth2.AuthStyleInParams
	}
	return oauth2.Config{ClientID: p.ClientID, ClientSecret: given.Reveal(), RedirectURL: f.RedirectURI(),
		Endpoint: oauth2.Endpoint{AuthURL: m.AuthURL, TokenURL: m.TokenURL, AuthStyle: style},
		Scopes:   append([]string{oidc.ScopeOpenID}, p.Scopes...)}
}

// identity is what a provider says of who has signed in there.
type identity struct {
	issuer, subject string
	mail            string // "" unless it is verified
	unverified      bool   // there is one, which is not
	name            string
	values          []string // of the claim for roles
	authenticatedAt time.Time
}

// identify exchanges a code for tokens and returns what they say, or a *Trouble. nonce and
// verifier are those of the request.
func (f *Federation) identify(ctx context.Context, r record, given secret.Text, code, verifier, nonce string) (identity, error) {
	found, m, err := f.discover(ctx, r.Issuer)
	if err != nil {
		return identity{}, err
	}
	client := f.client(false)
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, client), answerFor)
	defer cancel()
	config := f.oauth(r.Provider, m, given)
	tokens, err := config.Exchange(ctx, code, oauth2.VerifierOption(verifier))
	if err != nil {
		return identity{}, trouble(err)
	}
	raw, _ := tokens.Extra("id_token").(string)
	token, err := found.VerifierContext(ctx, &oidc.Config{ClientID: r.ClientID, Now: f.Now}).Verify(ctx, raw)
	if err != nil {
		return identity{}, &Trouble{Code: "token", cause: err}
	}
	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		return identity{}, &Trouble{Code: "token"}
	}
	party, _ := claims["azp"].(string)
	switch {
	case token.Nonce != nonce:
		return identity{}, &Trouble{Code: "token", Detail: "nonce"}
	case party != "" && party != r.ClientID, len(token.Audience) > 1 && party == "":
		return identity{}, &Trouble{Code: "token", Detail: "azp"}
	case token.Subject == "" || len(token.Subject) > 255:
		return identity{}, &Trouble{Code: "token", Detail: "sub"}
	}
	if m.UserInfoURL != "" && (claims["email"] == nil || claims["email_verified"] == nil || r.RoleClaim != "" && claim(claims, r.RoleClaim) == nil) {
		info, err := f.userInfo(ctx, found, tokens)
		if err != nil {
			return identity{}, err
		}
		if info["sub"] != token.Subject { // OpenID Connect Core 1.0, section 5.3.4
			return identity{}, &Trouble{Code: "token", Detail: "userinfo"}
		}
		if claims["email"] == nil || claims["email_verified"] == nil {
			delete(claims, "email") // the pair stays together
			delete(claims, "email_verified")
		}
		for name, value := range claims {
			info[name] = value
		}
		claims = info
	}
	id := identity{issuer: r.Issuer, subject: token.Subject, values: texts(claim(claims, r.RoleClaim))}
	id.name, _ = claims["name"].(string)
	id.mail, _ = claims["email"].(string)
	if verified := claims["email_verified"]; verified != true && verified != "true" { // as a text: Amazon Cognito
		id.mail, id.unverified = "", id.mail != ""
	}
	if at, ok := claims["auth_time"].(float64); ok {
		id.authenticatedAt = time.Unix(int64(at), 0)
	}
	return id, nil
}

func (f *Federation) userInfo(ctx context.Context, found *oidc.Provider, tokens *oauth2.Token) (map[string]any, error) {
	info, err := found.UserInfo(ctx, oauth2.StaticTokenSource(tokens))
	if err != nil {
		var already *Trouble
		if errors.As(err, &already) {
			return nil, already
		}
		return nil, &Trouble{Code: "userInfo"} // the error may hold the answer's text
	}
	claims := map[string]any{}
	if err := info.Claims(&claims); err != nil {
		return nil, &Trouble{Code: "userInfo", cause: errors.New("not an object")}
	}
	return claims, nil
}

// claim returns a claim by its name, or, where there is none, by a path with dots, such as
// realm_access.roles.
func claim(claims map[string]any, name string) any {
	if value, ok := claims[name]; ok || name == "" {
		return value
	}
	var at any = claims
	for part := range strings.SplitSeq(name, ".") {
		inner, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = inner[part]
	}
	return at
}

// texts are the texts of a claim that is one, or a list of them.
func texts(value any) (all []string) {
	switch value := value.(type) {
	case string:
		return []string{value}
	case []any:
		for _, v := range value {
			if s, ok := v.(string); ok {
				all = append(all, s)
			}
		}
	}
	return all
}
