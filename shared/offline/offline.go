// Package offline is what two people read to each other over the telephone so that a card's
// PIN can be reset at a bridge without a connection, or at Windows' own unblock screen: codes
// that show what was misheard, and the cryptography behind them. Its invariant: what is not
// the response to the open challenge, on this card and at this bridge, never becomes a PUK or
// an answer, so that nothing wrong is presented to the card; and who hears every code, the
// help desk included, learns no PUK.
//
// Windows' screen has hex: ParseChallenge and Hex. Bridge and help desk have a Key each, and
// codes of decimal digits, in groups of six: five, and a check digit. Digits are said without
// a spelling alphabet and typed on every keyboard layout and keypad, and take no longer to
// say than base32, two thirds of whose symbols are words.
//
//	                            digits before the check digits          groups  digits read
//	PIV, challenge              day 3, change 1, fence 1, nonce 6, tag 4     3           18
//	PIV, response               masked PUK 8, tag 7                          3           18
//	  for a PUK not of digits   masked PUK 20, tag 10                        6           36
//	GIDS, challenge and answer  number 20, tag 5                             5           30
//	  of 16 bytes               number 39, tag 6                             9           54
package offline

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"strings"
	"unicode"

	"github.com/pinward/pinward/shared/problem"
)

// Binding is the card and bridge that a Key is for.
type Binding struct {
	Tenant     string
	Bridge     string
	Credential string
}

// Key is what only one bridge and the cloud have, for one card: 32 bytes. It prints nothing.
// A number of n digits under it is the first 8 bytes, big-endian, modulo 10^n, of HMAC-SHA256
// of some parts, joined by newlines.
type Key struct {
	// hmac is a function, since of that fmt shows an address at most: in an unexported field
	// it does not come by Format, and shows bytes, even behind a pointer.
	hmac func() hash.Hash
}

// NewKey makes the Key from one side's private X25519 key and the other's public key of 32
// bytes: at the bridge from its sealing key and the tenant's offline public key, in the cloud
// from the tenant's offline key and the bridge's sealing public key. From what they share
// (RFC 7748) it is derived by HKDF-SHA256 (RFC 5869) with salt "pinward offline 1" and as info
// the binding's tenant, bridge and credential, joined by newlines.
func NewKey(private *ecdh.PrivateKey, public []byte, b Binding) (Key, error) {
	var vs problem.Violations
	for _, f := range []struct{ name, value string }{{"tenant", b.Tenant}, {"bridge", b.Bridge}, {"credential", b.Credential}} {
		if f.value == "" || strings.ContainsFunc(f.value, unicode.IsControl) {
			vs.Add("malformed", f.name, "must be an id: not empty, without control characters")
		}
	}
	if private == nil || private.Curve() != ecdh.X25519() {
		vs.Add("malformed", "privateKey", "must be an X25519 key")
	}
	other, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		vs.Add("malformed", "publicKey", "must be an X25519 public key of 32 bytes")
	}
	if err := vs.Err(); err != nil {
		return Key{}, err
	}
	shared, err := private.ECDH(other)
	if err != nil { // RFC 7748, 6.1
		return Key{}, problem.Invalid("malformed", "publicKey", "is of low order: everybody would know the secret")
	}
	defer clear(shared)
	info := strings.Join([]string{b.Tenant, b.Bridge, b.Credential}, "\n")
	derived, err := hkdf.Key(sha256.New, shared, []byte("pinward offline 1"), info, sha256.Size)
	if err != nil {
		return Key{}, fmt.Errorf("derive offline key: %w", err)
	}
	return Key{func() hash.Hash { return hmac.New(sha256.New, derived) }}, nil
}

// Format implements fmt.Formatter: no verb shows the key.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// LogValue implements slog.LogValuer.
func (Key) LogValue() slog.Value { return slog.StringValue("[secret]") }

func (k Key) mac(parts ...string) []byte {
	h := k.hmac()
	io.WriteString(h, strings.Join(parts, "\n"))
	return h.Sum(nil)
}

func (k Key) digits(n int, parts ...string) string {
	return fmt.Sprintf("%0*d", n, k.number(n, parts...))
}

func (k Key) number(n int, parts ...string) uint64 {
	sum := k.mac(parts...)
	defer clear(sum)
	return binary.BigEndian.Uint64(sum) % power(n)
}

func power(n int) uint64 {
	p := uint64(1)
	for range n {
		p *= 10
	}
	return p
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// The errors of a code whose check digits are right but whose tag is not. They are
// InvalidErrors.
var (
	// ErrForeign: the challenge is of another card or bridge than the key.
	ErrForeign = problem.Invalid("foreign", "challenge", "is of another card or another bridge, or was misheard in more than one place")
	// ErrResponse: the response is not to the challenge that is open.
	ErrResponse = problem.Invalid("foreign", "response", "does not answer this challenge on this card, or was misheard in more than one place")
)
