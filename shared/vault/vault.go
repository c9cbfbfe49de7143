// Package vault keeps a tenant's keys and does everything that needs them:
// keyed values of PINs, sealing of secrets, fingerprints. Each tenant has keys
// of its own, stored sealed under the installation's root key, which lives in
// KMS or in a local file and never in the table: a stolen table gives nothing.
package vault

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/prf"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
)

// Vault makes and opens tenants' keys.
type Vault struct {
	root tink.AEADWithContext

	mu     sync.Mutex
	opened map[cacheKey]*Keys
}

type cacheKey struct {
	tenant  table.TenantID
	version int64
}

// cacheSize bounds the tenants whose opened keys are kept, so that a process
// asks the root key once for each tenant it serves.
const cacheSize = 1000

// New returns a vault under the given root key.
func New(root tink.AEADWithContext) *Vault {
	return &Vault{root: root, opened: make(map[cacheKey]*Keys)}
}

// Keys are one tenant's keys, opened.
type Keys struct {
	verifier, lookup, fingerprint *prf.Set
	seal                          tink.AEAD
}

// templates are a tenant's keysets by their stored names.
var templates = map[string]func() *tinkpb.KeyTemplate{
	"verifier":    prf.HMACSHA256PRFKeyTemplate,
	"lookup":      prf.HMACSHA256PRFKeyTemplate,
	"fingerprint": prf.HMACSHA256PRFKeyTemplate,
	"seal":        aead.AES256GCMKeyTemplate,
}

// record is a tenant's keysets as stored: one sealed blob.
type record struct {
	tenant table.TenantID
	sealed []byte
}

type stored struct {
	Sealed []byte `json:"sealed"`
}

func (r record) Validate() error {
	if len(r.sealed) == 0 {
		return problem.Invalid("missing", "keysets", "are not sealed")
	}
	return nil
}

func (r record) Item() (table.Item, error) {
	data, err := json.Marshal(stored{r.sealed})
	return table.Item{Key: table.KeysetsKey(r.tenant), Data: data}, err
}

// Create makes a new tenant's keys and returns them with the op that stores
// them, to be written with the tenant.
func (v *Vault) Create(ctx context.Context, tenant table.TenantID) (table.Op, *Keys, error) {
	plain := make(map[string][]byte, len(templates))
	for name, template := range templates {
		handle, err := keyset.NewHandle(template())
		if err != nil {
			return table.Op{}, nil, fmt.Errorf("make %s keyset: %w", name, err)
		}
		var b bytes.Buffer
		if err := insecurecleartextkeyset.Write(handle, keyset.NewBinaryWriter(&b)); err != nil {
			return table.Op{}, nil, fmt.Errorf("write %s keyset: %w", name, err)
		}
		plain[name] = b.Bytes()
	}
	keys, err := open(plain)
	if err != nil {
		return table.Op{}, nil, err
	}
	text, err := json.Marshal(plain)
	if err != nil {
		return table.Op{}, nil, err
	}
	sealed, err := v.root.EncryptWithContext(ctx, text, associated(tenant))
	if err != nil {
		return table.Op{}, nil, fmt.Errorf("seal keysets of %s: %w: %w", tenant, problem.ErrUnavailable, err)
	}
	return table.Put(record{tenant, sealed}, table.Absent()), keys, nil
}

// Open returns a tenant's keys from their stored item.
func (v *Vault) Open(ctx context.Context, tenant table.TenantID, item table.Item) (*Keys, error) {
	if item.Key != table.KeysetsKey(tenant) {
		return nil, fmt.Errorf("open keysets of %s: item is %s", tenant, item.Key)
	}
	at := cacheKey{tenant, item.Version}
	v.mu.Lock()
	keys := v.opened[at]
	v.mu.Unlock()
	if keys != nil {
		return keys, nil
	}

	var s stored
	if err := item.Decode(&s); err != nil {
		return nil, err
	}
	text, err := v.root.DecryptWithContext(ctx, s.Sealed, associated(tenant))
	if err != nil {
		return nil, fmt.Errorf("open keysets of %s: is it the root key they were sealed with? %w: %w", tenant, problem.ErrUnavailable, err)
	}
	var plain map[string][]byte
	if err := json.Unmarshal(text, &plain); err != nil {
		return nil, fmt.Errorf("open keysets of %s: not a set of keysets", tenant)
	}
	if keys, err = open(plain); err != nil {
		return nil, fmt.Errorf("open keysets of %s: %w", tenant, err)
	}

	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.opened) >= cacheSize {
		clear(v.opened)
	}
	v.opened[at] = keys
	return keys, nil
}

// associated binds sealed keysets to their tenant.
func associated(tenant table.TenantID) []byte { return []byte("pinward|keysets|" + string(tenant)) }

func open(plain map[string][]byte) (*Keys, error) {
	var keys Keys
	for name, into := range map[string]**prf.Set{"verifier": &keys.verifier, "lookup": &keys.lookup, "fingerprint": &keys.fingerprint} {
		handle, err := insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(plain[name])))
		if err != nil {
			return nil, fmt.Errorf("read %s keyset: %w", name, err)
		}
		if *into, err = prf.NewPRFSet(handle); err != nil {
			return nil, fmt.Errorf("use %s keyset: %w", name, err)
		}
	}
	handle, err := insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(plain["seal"])))
	if err != nil {
		return nil, fmt.Errorf("read seal keyset: %w", err)
	}
	if keys.seal, err = aead.New(handle); err != nil {
		return nil, fmt.Errorf("use seal keyset: %w", err)
	}
	return &keys, nil
}

// tagSize is the length of keyed values in bytes.
const tagSize = 32

// Verifier returns the keyed value by which a user's PIN is recognised. It is
// bound to the user: the same PIN of two users gives two values.
func (k *Keys) Verifier(user string, pin secret.Text) (string, error) {
	return primary(k.verifier, user, pin.Reveal())
}

// Matches tells whether the PIN is the one the verifier was made from, in time
// that does not depend on where they differ.
func (k *Keys) Matches(verifier, user string, pin secret.Text) bool {
	id, want, err := parse(verifier)
	if err != nil {
		// Compute all the same: a user without a PIN takes as long as one with.
		id, want = k.verifier.PrimaryID, make([]byte, tagSize+1)
	}
	one, ok := k.verifier.PRFs[id]
	if !ok {
		return false
	}
	got, err := one.ComputePRF(message(user, pin.Reveal()), tagSize)
	return err == nil && hmac.Equal(got, want)
}

// Lookup returns the keyed value by which a PIN alone finds its user: the same
// PIN gives the same value throughout the tenant.
func (k *Keys) Lookup(pin secret.Text) (string, error) { return primary(k.lookup, pin.Reveal()) }

// Fingerprint returns a keyed hash of data that may hold secrets: equal for
// equal data, and worthless for guessing without the key.
func (k *Keys) Fingerprint(purpose string, data []byte) (string, error) {
	return primary(k.fingerprint, purpose, string(data))
}

// Seal encrypts. What was sealed for one purpose opens for that purpose only.
func (k *Keys) Seal(purpose string, plaintext []byte) ([]byte, error) {
	return k.seal.Encrypt(plaintext, []byte(purpose))
}

// Open decrypts what Seal returned.
func (k *Keys) Open(purpose string, sealed []byte) ([]byte, error) {
	plain, err := k.seal.Decrypt(sealed, []byte(purpose))
	if err != nil {
		return nil, fmt.Errorf("open sealed %s: %w", purpose, err)
	}
	return plain, nil
}

// primary computes a value with the set's newest key, spelt "<key id>.<value>".
func primary(set *prf.Set, parts ...string) (string, error) {
	value, err := set.ComputePrimaryPRF(message(parts...), tagSize)
	if err != nil {
		return "", fmt.Errorf("compute keyed value: %w", err)
	}
	return fmt.Sprintf("%d.%s", set.PrimaryID, base64.RawURLEncoding.EncodeToString(value)), nil
}

func parse(tag string) (id uint32, value []byte, err error) {
	key, text, ok := strings.Cut(tag, ".")
	n, err := strconv.ParseUint(key, 10, 32)
	if !ok || err != nil {
		return 0, nil, fmt.Errorf("not a keyed value")
	}
	value, err = base64.RawURLEncoding.DecodeString(text)
	return uint32(n), value, err
}

// message joins parts so that no two lists of parts give the same bytes.
func message(parts ...string) []byte {
	var b []byte
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}
