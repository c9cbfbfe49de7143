package relay

import (
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// EnrolPath is where a bridge enrols, below the API's URL: POST of an Enrolment, answered
// by Enrolled.
const EnrolPath = "/enroll"

// EnrolCommand is what is pasted into a terminal on a machine that is to become a bridge. url
// is the API's.
func EnrolCommand(code secret.Text, url string) string {
	return "bridge enroll " + code.Reveal() + " " + url
}

// Enrolment makes a program a bridge of a tenant.
type Enrolment struct {
	Code     Code   `json:"code"`     // from an administrator
	Identity []byte `json:"identity"` // Ed25519 public key, 32 bytes
	Sealing  []byte `json:"sealing"`  // X25519 public key, 32 bytes
	Program  string `json:"program"`  // the bridge's version
	System   string `json:"system"`   // "linux/amd64"
	Host     string `json:"host"`     // the machine's name, at most 100 bytes
}

// Enrolled is what a bridge must know.
type Enrolled struct {
	Tenant       string `json:"tenant"`
	Bridge       string `json:"bridge"`
	Name         string `json:"name"` // that the administrator gave it
	Organisation string `json:"organisation"`
	Relay        string `json:"relay"` // the WebSocket's URL, wss://...
	// Offline is the tenant's offline public key of 32 bytes; see shared/offline.
	Offline Hex `json:"offline,omitempty"`
}

// TokenLife is how long a token is good for. It is used once, to connect.
const TokenLife = 2 * time.Minute

// Claims say who wants to connect where. A token is a JWS (RFC 7515) in compact form of
// a JWT (RFC 7519), signed with EdDSA (RFC 8037) by the bridge's identity key, and sent
// as "Authorization: Bearer <token>".
type Claims struct {
	Tenant, Bridge string
	Relay          string // the URL that it is for
	ID             string // 1 to 64 letters, digits, '-' and '_'; each is greater than those before
	At             time.Time
}

type claimsJSON struct {
	Tenant string `json:"tenant"`
	jwt.Claims
}

// NewToken signs claims.
func NewToken(key ed25519.PrivateKey, c Claims) (secret.Text, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, nil)
	if err != nil {
		return secret.Text{}, fmt.Errorf("make token: %w", err)
	}
	text, err := jwt.Signed(signer).Claims(claimsJSON{c.Tenant, jwt.Claims{
		Issuer: c.Bridge, Audience: jwt.Audience{c.Relay}, ID: c.ID,
		IssuedAt: jwt.NewNumericDate(c.At), Expiry: jwt.NewNumericDate(c.At.Add(TokenLife)),
	}}).Serialize()
	if err != nil {
		return secret.Text{}, fmt.Errorf("make token: %w", err)
	}
	return secret.New(text), nil
}

// errToken: it is not said which part is wrong; the bridge's owner compares the clocks,
// and enrols anew.
var errToken = fmt.Errorf("%w: the bridge's token is not valid", problem.ErrUnauthenticated)

// ClaimedBridge reads who a token says it is of, before the key is known that can tell
// whether that is true.
func ClaimedBridge(token secret.Text) (tenant, bridge string, err error) {
	parsed, err := jwt.ParseSigned(token.Reveal(), []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return "", "", errToken
	}
	var c claimsJSON
	if err := parsed.UnsafeClaimsWithoutVerification(&c); err != nil || c.Tenant == "" || !name.MatchString(c.Issuer) {
		return "", "", errToken
	}
	return c.Tenant, c.Issuer, nil
}

// CheckToken verifies a token with the bridge's identity key: for this relay, now. That
// its id was not used before is the caller's to see. Its errors are
// problem.ErrUnauthenticated.
func CheckToken(token secret.Text, key ed25519.PublicKey, relay string, now time.Time) (Claims, error) {
	parsed, err := jwt.ParseSigned(token.Reveal(), []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil || len(key) != ed25519.PublicKeySize {
		return Claims{}, errToken
	}
	var c claimsJSON
	if err := parsed.Claims(key, &c); err != nil {
		return Claims{}, errToken
	}
	if c.IssuedAt == nil || c.Expiry == nil || !name.MatchString(c.ID) || c.Expiry.Time().Sub(c.IssuedAt.Time()) > TokenLife {
		return Claims{}, errToken
	}
	expected := jwt.Expected{AnyAudience: jwt.Audience{relay}, Time: now}
	if err := c.ValidateWithLeeway(expected, TokenLife); err != nil {
		return Claims{}, fmt.Errorf("%w, or the bridge's clock is wrong", errToken)
	}
	return Claims{c.Tenant, c.Issuer, relay, c.ID, c.IssuedAt.Time()}, nil
}
