// Package federation lets people sign in with the accounts that they have at their tenant's
// own OpenID Connect provider: code flow with PKCE, state and nonce. Its invariants: an
// account is one person's, and a person has one account; who comes back from a provider is
// let in once, in the browser that went there; and what a provider says makes nobody an
// administrator, or no longer one, against the tenant's mapping and its last administrator.
package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Federation are the operations on providers, and sign-in with them. Rand must be safe for
// concurrent use.
type Federation struct {
	Table   table.Table
	Tenants *tenant.Tenants
	People  *person.People
	Audit   audit.Log
	Now     func() time.Time
	Rand    io.Reader
	BaseURL string // where the pages are; without it nobody can come back from a provider

	Anywhere bool                                                                 // providers may be in the installation's own network, and without TLS
	Dial     func(ctx context.Context, network, address string) (net.Conn, error) // to providers; nil is mail.PublicDial, or with Anywhere net.Dialer's
}

// Provider is where a tenant's people have their accounts.
type Provider struct {
	Issuer    string // its URL, exactly as it calls itself
	ClientID  string // that it knows Pinward by
	Public    bool   // it has given no secret
	Secret    secret.Text
	SecretSet bool     // there is one in the store, which decides it; Get does not return it
	Scopes    []string // that are asked for, without openid, which always is
	RoleClaim string   // whose values give roles, such as groups; "" leaves roles as people have them here
	Roles     map[tenant.Role][]string
	Create    bool // people who are not known are created when they first sign in
	On        bool
	Version   int64 // 0 if it is not stored yet
}

const (
	maxIssuer = 500
	maxClient = 255
	maxSecret = 1024
	maxScopes = 20
	maxValues = 100 // of a role
	maxValue  = 200 // characters; of a claim's name too
)

var (
	scopeForm = regexp.MustCompile(`^[\x21\x23-\x5b\x5d-\x7e]{1,100}$`) // RFC 6749, appendix A.4
	numeric   = regexp.MustCompile(`^([0-9]+|0[xX][0-9a-fA-F]*)$`)      // a last label that some resolvers read as an IPv4 address
)

// Subject is what audit records about the provider have as their subject.
const Subject = "sign-in-provider"

// RedirectURI is the address that the provider must know as Pinward's.
func (f *Federation) RedirectURI() string {
	return strings.TrimSuffix(f.BaseURL, "/") + "/console/sign-in/oidc"
}

// tidy puts what was given into the form that is kept, where that is clear.
func (p *Provider) tidy() {
	p.Scopes = slices.DeleteFunc(slices.Clone(p.Scopes), func(s string) bool { return s == "openid" })
	p.Roles = maps.Clone(p.Roles)
	maps.DeleteFunc(p.Roles, func(_ tenant.Role, values []string) bool { return len(values) == 0 })
}

// Validate reports everything that is wrong with the provider. Whether its issuer may be used
// in an installation is for checkURL.
func (p Provider) Validate() error {
	var vs problem.Violations
	u, err := url.Parse(p.Issuer)
	switch {
	case len(p.Issuer) > maxIssuer:
		vs.Add("tooLong", "issuer", "is %d bytes, at most %d are allowed", len(p.Issuer), maxIssuer)
	case err != nil || u.Hostname() == "" || u.Opaque != "" || strings.ContainsFunc(p.Issuer, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }) || !utf8.ValidString(p.Issuer):
		vs.Add("form", "issuer", "is not an issuer such as https://login.example.org")
	case u.User != nil || strings.ContainsAny(p.Issuer, "?#"):
		vs.Add("form", "issuer", "must have no user name, no query (?...) and no fragment (#...)")
	case strings.HasSuffix(u.Path, "/.well-known/openid-configuration"):
		vs.Add("form", "issuer", "is the address of the configuration; leave out /.well-known/openid-configuration")
	}
	if n := len(p.ClientID); n < 1 || n > maxClient || strings.ContainsFunc(p.ClientID, unicode.IsControl) || !utf8.ValidString(p.ClientID) {
		vs.Add("length", "clientId", "must be 1 to %d bytes without control characters", maxClient)
	}
	given := p.Secret.Reveal()
	if len(given) > maxSecret || strings.ContainsFunc(given, unicode.IsControl) || !utf8.ValidString(given) {
		vs.Add("length", "clientSecret", "must be at most %d bytes without control characters", maxSecret)
	}
	switch has := given != "" || p.SecretSet; {
	case p.Public && given != "":
		vs.Add("notApplicable", "clientSecret", "must be left out for a client without a secret")
	case !p.Public && !has:
		vs.Add("missing", "clientSecret", "is missing; if the provider has given none, say that the client has no secret")
	}
	if len(p.Scopes) > maxScopes {
		vs.Add("tooMany", "scopes", "has %d, at most %d are allowed", len(p.Scopes), maxScopes)
	}
	for i, s := range p.Scopes {
		switch {
		case !scopeForm.MatchString(s):
			vs.Add("form", "scopes", "%q is not a scope, such as email", s)
		case slices.Contains(p.Scopes[:i], s):
			vs.Add("repeated", "scopes", "has %s twice", s)
		}
	}
	if utf8.RuneCountInString(p.RoleClaim) > maxValue || strings.ContainsFunc(p.RoleClaim, unicode.IsControl) || !utf8.ValidString(p.RoleClaim) {
		vs.Add("length", "roleClaim", "must be at most %d characters without control characters", maxValue)
	}
	p.validateRoles(&vs)
	return vs.Err()
}

func (p Provider) validateRoles(vs *problem.Violations) {
	for _, role := range slices.Sorted(maps.Keys(p.Roles)) {
		field := "roles." + string(role)
		values := p.Roles[role]
		if !slices.Contains(tenant.PersonRoles(), role) {
			vs.Add("unknown", "roles", "%q is not a role that people have", string(role))
			continue
		}
		if len(values) > maxValues {
			vs.Add("tooMany", field, "has %d, at most %d are allowed", len(values), maxValues)
		}
		for i, v := range values {
			switch n := utf8.RuneCountInString(v); {
			case n < 1 || n > maxValue || strings.ContainsFunc(v, unicode.IsControl) || !utf8.ValidString(v):
				vs.Add("length", field, "has a value that is not 1 to %d characters without control characters", maxValue)
			case slices.Contains(values[:i], v):
				vs.Add("repeated", field, "has %s twice", v)
			}
		}
	}
	switch {
	case p.RoleClaim == "" && len(p.Roles) > 0:
		vs.Add("missing", "roleClaim", "is missing; it is the claim in which the values for the roles stand")
	case p.RoleClaim != "" && len(p.Roles) == 0:
		vs.Add("missing", "roles", "has no value for any role, so that nobody could sign in")
	case p.RoleClaim == "" && p.Create:
		vs.Add("missing", "roleClaim", "is missing; who is created when they first sign in has their roles from it")
	}
}

// checkURL refuses what a provider's URL must not be in this installation.
func (f *Federation) checkURL(text string) (code, reason string) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" {
		return "form", "is not a URL"
	}
	if u.Scheme != "https" && !(f.Anywhere && u.Scheme == "http") {
		return "scheme", "must begin with https://"
	}
	if f.Anywhere {
		return "", ""
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	ip, err := netip.ParseAddr(host)
	switch {
	case err == nil && !mail.Public(ip), host == "localhost", strings.HasSuffix(host, ".localhost"),
		err != nil && numeric.MatchString(host[strings.LastIndexByte(host, '.')+1:]):
		return "notPublic", "has an address that is not a public one"
	}
	return "", ""
}

// record is a Provider as stored.
type record struct {
	Provider
	tenant table.TenantID
	sealed []byte
}

type storedProvider struct {
	Issuer    string                   `json:"issuer"`
	ClientID  string                   `json:"clientId"`
	Public    bool                     `json:"public,omitempty"`
	Sealed    []byte                   `json:"sealedSecret,omitempty"`
	Scopes    []string                 `json:"scopes,omitempty"`
	RoleClaim string                   `json:"roleClaim,omitempty"`
	Roles     map[tenant.Role][]string `json:"roles,omitempty"`
	Create    bool                     `json:"create,omitempty"`
	On        bool                     `json:"on,omitempty"`
}

// Item implements table.Record.
func (r record) Item() (table.Item, error) {
	data, err := json.Marshal(storedProvider{r.Issuer, r.ClientID, r.Public, r.sealed, r.Scopes, r.RoleClaim, r.Roles, r.Create, r.On})
	return table.Item{Key: table.ProviderKey(r.tenant), Data: data}, err
}

func (f *Federation) load(ctx context.Context, t table.TenantID) (record, error) {
	item, err := f.Table.Get(ctx, table.ProviderKey(t))
	if errors.Is(err, problem.ErrNotFound) {
		return record{}, fmt.Errorf("sign-in provider %w", problem.ErrNotFound)
	} else if err != nil {
		return record{}, fmt.Errorf("load sign-in provider: %w", err)
	}
	var s storedProvider
	if err := item.Decode(&s); err != nil {
		return record{}, err
	}
	return record{Provider{Issuer: s.Issuer, ClientID: s.ClientID, Public: s.Public, SecretSet: len(s.Sealed) > 0, Scopes: s.Scopes,
		RoleClaim: s.RoleClaim, Roles: s.Roles, Create: s.Create, On: s.On, Version: item.Version}, t, s.Sealed}, nil
}

func secretPurpose(t table.TenantID) string { return "federation/client-secret/" + string(t) }

// open returns the client's secret.
func (r record) open(core tenant.Core) (secret.Text, error) {
	if len(r.sealed) == 0 {
		return secret.Text{}, nil
	}
	b, err := core.Keys.Open(secretPurpose(r.tenant), r.sealed)
	if err != nil {
		return secret.Text{}, fmt.Errorf("open secret of sign-in provider: %w", err)
	}
	return secret.New(string(b)), nil
}

// Get returns the tenant's provider without its secret, or problem.ErrNotFound.
func (f *Federation) Get(ctx context.Context, t table.TenantID) (Provider, error) {
	r, err := f.load(ctx, t)
	return r.Provider, err
}

// Put stores the provider: a new one (Version 0), or in place of that of its Version. Without
// a secret the old one stays while issuer and client id do: it must not be sent to somebody
// else. Errors are *problem.InvalidError and problem.ErrConflict.
func (f *Federation) Put(ctx context.Context, core tenant.Core, by audit.Actor, p Provider) (Provider, error) {
	t := core.Tenant.ID
	p.tidy()
	r := record{p, t, nil}
	r.SecretSet = false
	var vs problem.Violations
	old, err := f.load(ctx, t)
	switch {
	case errors.Is(err, problem.ErrNotFound) && p.Version == 0:
	case errors.Is(err, problem.ErrNotFound), err == nil && old.Version != p.Version:
		return Provider{}, fmt.Errorf("%w: somebody has changed the sign-in provider meanwhile", problem.ErrConflict)
	case err != nil:
		return Provider{}, err
	case !p.Public && p.Secret.Empty() && old.SecretSet:
		if p.Issuer != old.Issuer || p.ClientID != old.ClientID {
			vs.Add("required", "clientSecret", "must be given again when issuer or client id change")
		}
		r.SecretSet, r.sealed = true, old.sealed
	}
	var invalid *problem.InvalidError
	if err := r.Validate(); errors.As(err, &invalid) {
		vs = append(vs, invalid.Violations...)
	}
	if code, reason := f.checkURL(p.Issuer); code == "scheme" || code == "notPublic" {
		vs.Add(code, "issuer", "%s", reason)
	}
	if err := vs.Err(); err != nil {
		return Provider{}, err
	}
	if !p.Secret.Empty() {
		if r.sealed, err = core.Keys.Seal(secretPurpose(t), []byte(p.Secret.Reveal())); err != nil {
			return Provider{}, fmt.Errorf("seal secret of sign-in provider: %w", err)
		}
		r.Secret, r.SecretSet = secret.Text{}, true
	}
	details := map[string]string{"issuer": p.Issuer, "on": fmt.Sprint(p.On), "create": fmt.Sprint(p.Create), "newSecret": fmt.Sprint(!p.Secret.Empty())}
	if p.RoleClaim != "" {
		details["roleClaim"] = p.RoleClaim
	}
	err = f.Table.Write(ctx, table.Put(r, table.After(p.Version)),
		f.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "signInProvider.changed", Subject: Subject, Outcome: audit.Done, Details: details}))
	if err != nil {
		return Provider{}, fmt.Errorf("change sign-in provider: %w", err)
	}
	r.Version = p.Version + 1
	return r.Provider, nil
}

// Delete removes the provider of that version. Whose account is whose stays, for the case that
// it comes back.
func (f *Federation) Delete(ctx context.Context, core tenant.Core, by audit.Actor, version int64) error {
	err := f.Table.Write(ctx, table.Delete(table.ProviderKey(core.Tenant.ID), table.IfVersion(version)),
		f.Audit.Op(ctx, core.Tenant.ID, audit.Record{Actor: by, Action: "signInProvider.deleted", Subject: Subject, Outcome: audit.Done}))
	if err != nil {
		return fmt.Errorf("delete sign-in provider: %w", err)
	}
	return nil
}
