package intake

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// A secret in a file may be a JWE in compact form (RFC 7516, 7.1) to the tenant's import
// key, by these. A key agreement costs a tenth of what RSA does, and its texts are short.
const (
	keyAlgorithm = jose.ECDH_ES_A256KW // RFC 7518, 4.6
	encryption   = jose.A256GCM
)

// Key is a tenant's import key: the half that anybody may have.
type Key struct {
	ID  string
	JWK []byte // RFC 7517
}

type storedKey struct {
	ID     string `json:"id"`
	Sealed []byte `json:"sealed"` // PKCS #8
}

type keyRecord struct {
	tenant table.TenantID
	storedKey
}

// Validate implements table.Record.
func (keyRecord) Validate() error { return nil }

// Item implements table.Record.
func (r keyRecord) Item() (table.Item, error) {
	data, err := json.Marshal(r.storedKey)
	return table.Item{Key: table.ImportKeyKey(r.tenant), Data: data}, err
}

func keyPurpose(t table.TenantID, id string) string { return fmt.Sprintf("import/key|%s|%s", t, id) }

// Key returns the tenant's import key, which is made if there is none.
func (is *Imports) Key(ctx context.Context, core tenant.Core, by audit.Actor) (Key, error) {
	t := core.Tenant.ID
	for range tries {
		id, private, err := is.privateKey(ctx, core)
		if errors.Is(err, problem.ErrNotFound) {
			if err := is.makeKey(ctx, core, by); err != nil && !errors.Is(err, problem.ErrConflict) {
				return Key{}, err
			}
			continue
		} else if err != nil {
			return Key{}, err
		}
		public := jose.JSONWebKey{Key: private.Public(), KeyID: id, Algorithm: string(keyAlgorithm), Use: "enc"}
		text, err := public.MarshalJSON()
		if err != nil {
			return Key{}, fmt.Errorf("write import key of %s: %w", t, err)
		}
		return Key{id, text}, nil
	}
	return Key{}, errBusy
}

func (is *Imports) makeKey(ctx context.Context, core tenant.Core, by audit.Actor) error {
	t := core.Tenant.ID
	private, err := ecdsa.GenerateKey(elliptic.P256(), is.Rand)
	if err != nil {
		return fmt.Errorf("make import key: %w", err)
	}
	plain, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return fmt.Errorf("make import key: %w", err)
	}
	thumbprint, err := (&jose.JSONWebKey{Key: private.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		return fmt.Errorf("make import key: %w", err)
	}
	s := storedKey{ID: base64.RawURLEncoding.EncodeToString(thumbprint[:12])}
	if s.Sealed, err = core.Keys.Seal(keyPurpose(t, s.ID), plain); err != nil {
		return fmt.Errorf("seal import key: %w", err)
	}
	record := audit.Record{Actor: by, Action: "importKey.created", Subject: "importKey/" + s.ID, Outcome: audit.Done}
	if err := is.Table.Write(ctx, table.Put(keyRecord{t, s}, table.Absent()), is.Audit.Op(ctx, t, record)); err != nil {
		return fmt.Errorf("store import key: %w", err)
	}
	return nil
}

func (is *Imports) privateKey(ctx context.Context, core tenant.Core) (string, *ecdsa.PrivateKey, error) {
	t := core.Tenant.ID
	item, err := is.Table.Get(ctx, table.ImportKeyKey(t))
	if err != nil {
		return "", nil, fmt.Errorf("load import key: %w", err)
	}
	var s storedKey
	if err := item.Decode(&s); err != nil {
		return "", nil, err
	}
	plain, err := core.Keys.Open(keyPurpose(t, s.ID), s.Sealed)
	if err != nil {
		return "", nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(plain)
	if err != nil {
		return "", nil, fmt.Errorf("read import key of %s: %w", t, err)
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return "", nil, fmt.Errorf("import key of %s is a %T", t, key)
	}
	return s.ID, private, nil
}

// isJWE tells a JWE from a PUK and from hex: it has five parts (RFC 7516, 7.1).
func isJWE(value string) bool { return strings.Count(value, ".") == 4 && len(value) > 100 }

var errJWE = fmt.Errorf("is not a JWE to the tenant's import key by %s with %s", keyAlgorithm, encryption)

// openJWE returns what a JWE to the import key holds. key nil is none.
func openJWE(key *ecdsa.PrivateKey, value string) (secret.Text, error) {
	if key == nil {
		return secret.Text{}, errJWE
	}
	jwe, err := jose.ParseEncryptedCompact(value, []jose.KeyAlgorithm{keyAlgorithm}, []jose.ContentEncryption{encryption})
	if err != nil {
		return secret.Text{}, errJWE
	}
	plain, err := jwe.Decrypt(key)
	if err != nil {
		return secret.Text{}, errJWE
	}
	return secret.New(string(plain)), nil
}
