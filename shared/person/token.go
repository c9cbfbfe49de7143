package person

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"fmt"
	"io"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// A token's text is "<kind>_<tenant>_<id>_<secret>"; a session's has the person's or user's id before
// its own. It is one word to a double click, and only the secret's hash is kept: with 256
// random bits it need not be slow.
const (
	sessionKind = "pws" // a cookie
	holderKind  = "pwh" // a cookie, of a user
	attemptKind = "pwa" // a cookie, of a sign-in that has begun
	linkKind    = "pwl"
)

// token is one that was given: what it names and what proves it.
type token struct {
	tenant table.TenantID
	ids    []string
	secret string
}

// parse takes a text of a kind apart, and returns false if it is none.
func parse(kind string, ids int, text secret.Text) (token, bool) {
	parts := strings.Split(text.Reveal(), "_")
	if len(parts) != ids+3 || parts[0] != kind || tenant.CheckID(table.TenantID(parts[1])) != nil {
		return token{}, false
	}
	for _, id := range parts[2 : 2+ids] {
		if _, err := ulid.ParseStrict(id); err != nil {
			return token{}, false
		}
	}
	return token{table.TenantID(parts[1]), parts[2 : 2+ids], parts[2+ids]}, true
}

// matches compares with a hash that is kept; nothing matches one that is empty.
func (t token) matches(hash []byte) bool {
	return len(hash) > 0 && subtle.ConstantTimeCompare(hashOf(t.secret), hash) == 1
}

func hashOf(s string) []byte { h := sha256.Sum256([]byte(s)); return h[:] }

// newToken makes a token and the hash that is kept of it.
func newToken(rand io.Reader, kind string, t table.TenantID, ids ...string) (secret.Text, []byte, error) {
	b := make([]byte, 32)
	if _, err := io.ReadFull(rand, b); err != nil {
		return secret.Text{}, nil, fmt.Errorf("make a token: %w", err)
	}
	s := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b)
	parts := append([]string{kind, string(t)}, ids...)
	return secret.New(strings.Join(append(parts, s), "_")), hashOf(s), nil
}
