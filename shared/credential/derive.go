package credential

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
)

// AdminKeySize is the length of a derived admin key in bytes: three keys of DES.
const AdminKeySize = 24

// DeriveAdminKey derives a card's admin key from a master key, both as bytes: the KDF in
// counter mode of NIST SP 800-108r1, 4.1, with HMAC-SHA-256, a counter of 32 bits before
// the fixed input, the label "pinward admin key" and, as context, the family's name, "|"
// and the card id's bytes. cardID is in hex.
func DeriveAdminKey(master secret.Text, family, cardID string) (secret.Text, error) {
	id, err := hex.DecodeString(cardID)
	if err != nil || len(id) == 0 {
		return secret.Text{}, problem.Invalid("malformed", "cardId", "must be the card's id in hex")
	}
	if n := len(master.Reveal()); n < minMasterKey || n > maxMasterKey {
		return secret.Text{}, problem.Invalid("length", "masterKey", "must have %d to %d bytes", minMasterKey, maxMasterKey)
	}
	fixed := append([]byte("pinward admin key\x00"+family+"|"), id...)
	fixed = binary.BigEndian.AppendUint32(fixed, 8*AdminKeySize)
	key := kdf([]byte(master.Reveal()), fixed, AdminKeySize)
	defer clear(key)
	return secret.New(string(key)), nil
}

// kdf is the KDF that DeriveAdminKey describes, for n bytes.
func kdf(key, fixed []byte, n int) []byte {
	prf := hmac.New(sha256.New, key)
	var out []byte
	for i := uint32(1); len(out) < n; i++ {
		prf.Reset()
		prf.Write(binary.BigEndian.AppendUint32(nil, i))
		prf.Write(fixed)
		out = prf.Sum(out)
	}
	return out[:n]
}

// AdminKeyOf opens the credential's admin key, as bytes: its own or, if it has none, the
// one derived from its template's master key. Without either it is problem.ErrState.
// Whoever calls it accounts for it in the audit log.
func (c Credential) AdminKeyOf(keys Sealer, t table.TenantID, template Template) (secret.Text, error) {
	switch {
	case c.AdminKey != nil:
		return open(keys, adminKeyPurpose(t, c.ID), c.AdminKey)
	case template.ID != c.Template:
		return secret.Text{}, fmt.Errorf("admin key of %s: template %s is not its own", c.ID, template.ID)
	case template.MasterKey == nil:
		return secret.Text{}, fmt.Errorf("%w: no admin key is on record for this card, and its template has no master key", problem.ErrState)
	}
	master, err := open(keys, masterKeyPurpose(t, template.ID), template.MasterKey)
	if err != nil {
		return secret.Text{}, err
	}
	return DeriveAdminKey(master, c.Family, c.CardID)
}

func open(keys Sealer, purpose string, sealed []byte) (secret.Text, error) {
	plain, err := keys.Open(purpose, sealed)
	if err != nil {
		return secret.Text{}, err
	}
	defer clear(plain)
	return secret.New(string(plain)), nil
}

// unhexKey returns the bytes of a key in hex.
func unhexKey(key secret.Text) (secret.Text, bool) {
	b, err := hex.DecodeString(key.Reveal())
	defer clear(b)
	return secret.New(string(b)), err == nil
}
