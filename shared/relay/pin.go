package relay

import (
	"crypto/ecdh"
	"crypto/hpke"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// SealedPIN is a new PIN that only one bridge can read, and only for one operation: HPKE
// (RFC 9180) in base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-128-GCM,
// info "pinward new PIN", and the Binding as associated data. The plaintext is the PIN's
// length in one byte, the PIN, and zeros up to 65 bytes, so that nobody sees its length.
type SealedPIN struct {
	Encapsulated Hex `json:"encapsulated"` // 32 bytes
	Ciphertext   Hex `json:"ciphertext"`   // 81 bytes
}

// Binding is what a PIN is sealed for.
type Binding struct {
	Tenant     string
	Operation  string
	Credential string
	Fence      int64
}

// PINInfo is HPKE's info, and PINLength the plaintext's length in bytes.
const (
	PINInfo   = "pinward new PIN"
	PINLength = 1 + maxPIN
)

const (
	maxPIN    = 64
	encLength = 32 // RFC 9180, table 2
	tagLength = 16 // RFC 9180, table 5
	ctLength  = PINLength + tagLength
)

// AssociatedData is the binding as it is authenticated: its fields, a line each.
func (b Binding) AssociatedData() []byte {
	return []byte(strings.Join([]string{"pinward-pin-1", b.Tenant, b.Operation, b.Credential, strconv.FormatInt(b.Fence, 10)}, "\n"))
}

var (
	kem  = hpke.DHKEM(ecdh.X25519())
	kdf  = hpke.HKDFSHA256()
	aead = hpke.AES128GCM()
)

// SealPIN seals a new PIN to a bridge's public key of 32 bytes.
func SealPIN(publicKey []byte, b Binding, newPIN secret.Text) (SealedPIN, error) {
	key, err := kem.NewPublicKey(publicKey)
	if err != nil {
		return SealedPIN{}, problem.Invalid("malformed", "sealingKey", "must be an X25519 public key of 32 bytes")
	}
	text := newPIN.Reveal()
	if text == "" || len(text) > maxPIN {
		return SealedPIN{}, problem.Invalid("length", "pin", "must have 1 to %d bytes", maxPIN)
	}
	plain := make([]byte, PINLength)
	defer clear(plain)
	plain[0] = byte(len(text))
	copy(plain[1:], text)
	enc, sender, err := hpke.NewSender(key, kdf, aead, []byte(PINInfo))
	if err != nil {
		return SealedPIN{}, fmt.Errorf("seal PIN: %w", err)
	}
	ciphertext, err := sender.Seal(b.AssociatedData(), plain)
	if err != nil {
		return SealedPIN{}, fmt.Errorf("seal PIN: %w", err)
	}
	return SealedPIN{enc, ciphertext}, nil
}

// Validate checks the lengths: more cannot be seen without the key.
func (s SealedPIN) Validate() error {
	var vs problem.Violations
	if len(s.Encapsulated) != encLength {
		vs.Add("length", "encapsulated", "must have %d bytes, not %d", encLength, len(s.Encapsulated))
	}
	if len(s.Ciphertext) != ctLength {
		vs.Add("length", "ciphertext", "must have %d bytes, not %d", ctLength, len(s.Ciphertext))
	}
	return vs.Err()
}

// errSealed tells nothing of why: it would help only who has tampered with it.
var errSealed = errors.New("the PIN was not sealed for this bridge and this operation")

// OpenPIN unseals a new PIN with the bridge's private key.
func OpenPIN(key *ecdh.PrivateKey, b Binding, s SealedPIN) (secret.Text, error) {
	private, err := hpke.NewDHKEMPrivateKey(key)
	if err != nil {
		return secret.Text{}, fmt.Errorf("unseal PIN: %w", err)
	}
	recipient, err := hpke.NewRecipient(s.Encapsulated, private, kdf, aead, []byte(PINInfo))
	if err != nil {
		return secret.Text{}, errSealed
	}
	plain, err := recipient.Open(b.AssociatedData(), s.Ciphertext)
	defer clear(plain)
	if err != nil || len(plain) != PINLength || plain[0] == 0 || int(plain[0]) > maxPIN {
		return secret.Text{}, errSealed
	}
	n := 1 + int(plain[0])
	for _, b := range plain[n:] {
		if b != 0 {
			return secret.Text{}, errSealed
		}
	}
	return secret.New(string(plain[1:n])), nil
}

// NewSealingKey makes a bridge's key for sealed PINs.
func NewSealingKey(rand io.Reader) (*ecdh.PrivateKey, error) {
	key, err := ecdh.X25519().GenerateKey(rand)
	if err != nil {
		return nil, fmt.Errorf("make sealing key: %w", err)
	}
	return key, nil
}
