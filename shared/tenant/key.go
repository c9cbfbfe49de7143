package tenant

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
)

// APIKey is what lets a caller in: a tenant's API key, or a user's token. The
// key's text is shown once, when it is made; only its hash is kept. The text
// has 256 random bits, so the hash need not be slow.
type APIKey struct {
	ID         string
	Name       string
	Role       Role
	UserID     string // for RoleSelf, whose
	CreatedAt  time.Time
	ExpiresAt  time.Time // zero is never
	LastUsedAt time.Time // to the hour
	RevokedAt  time.Time
	Version    int64

	hash []byte
}

// Usable tells whether the key lets anybody in at the given time.
func (k APIKey) Usable(now time.Time) bool {
	return k.RevokedAt.IsZero() && (k.ExpiresAt.IsZero() || now.Before(k.ExpiresAt))
}

// Validate reports everything that is wrong with the key.
func (k APIKey) Validate() error {
	var vs problem.Violations
	if n := utf8.RuneCountInString(k.Name); n < 1 || n > 80 {
		vs.Add("length", "name", "has %d characters, want 1 to 80", n)
	}
	switch {
	case k.Role == RoleSelf && (k.UserID == "" || k.ExpiresAt.IsZero()):
		vs.Add("missing", "role", "a token belongs to a user and expires")
	case k.Role != RoleSelf && !slices.Contains(KeyRoles(), k.Role):
		vs.Add("unknown", "role", "%q is not one of %s", k.Role, list(KeyRoles()))
	}
	if !k.ExpiresAt.IsZero() && (!k.ExpiresAt.After(k.CreatedAt) || k.ExpiresAt.Year() > 2999) {
		vs.Add("range", "expiresAt", "is not a time to come, before the year 3000; give one, or none")
	}
	return vs.Err()
}

// A key's text is "<kind>_<tenant>_<id>_<secret>"; the platform's has neither
// tenant nor id. It is one word to a double click.
const (
	keyKind      = "pw"
	tokenKind    = "pwt"
	platformKind = "pwp"
)

func newSecret(rand io.Reader) (string, error) {
	b := make([]byte, 32)
	if _, err := io.ReadFull(rand, b); err != nil {
		return "", fmt.Errorf("make a key: %w", err)
	}
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b), nil
}

func hashOf(s string) []byte { h := sha256.Sum256([]byte(s)); return h[:] }

// NewPlatformKey returns a new platform key and its hash in the form that
// PlatformKeyHash of Tenants takes.
func NewPlatformKey(rand io.Reader) (secret.Text, string, error) {
	s, err := newSecret(rand)
	if err != nil {
		return secret.Text{}, "", err
	}
	text := platformKind + "_" + s
	return secret.New(text), fmt.Sprintf("%x", hashOf(text)), nil
}

// newKey fills in the key's id and hash and returns its text.
func newKey(k *APIKey, tenant table.TenantID, now time.Time, rand io.Reader) (secret.Text, error) {
	id, err := ulid.New(ulid.Timestamp(now), rand)
	if err != nil {
		return secret.Text{}, fmt.Errorf("make a key: %w", err)
	}
	s, err := newSecret(rand)
	if err != nil {
		return secret.Text{}, err
	}
	kind := keyKind
	if k.Role == RoleSelf {
		kind = tokenKind
	}
	k.ID, k.CreatedAt, k.hash = id.String(), now.UTC(), hashOf(s)
	return secret.New(strings.Join([]string{kind, string(tenant), k.ID, s}, "_")), nil
}

// keyRecord is an APIKey as stored.
type keyRecord struct {
	tenant table.TenantID
	APIKey
}

type storedKey struct {
	Name       string    `json:"name"`
	Role       Role      `json:"role"`
	UserID     string    `json:"userId,omitempty"`
	Hash       []byte    `json:"hash"`
	CreatedAt  time.Time `json:"createdAt"`
	ExpiresAt  time.Time `json:"expiresAt,omitzero"`
	LastUsedAt time.Time `json:"lastUsedAt,omitzero"`
	RevokedAt  time.Time `json:"revokedAt,omitzero"`
}

func (r keyRecord) Item() (table.Item, error) {
	k := r.APIKey
	item := table.Item{Key: keyKey(r.tenant, k.Role, k.ID)}
	switch {
	case k.Role == RoleSelf:
		item.ExpiresAt = k.ExpiresAt
	case !k.RevokedAt.IsZero():
		item.ExpiresAt = k.RevokedAt.Add(keepKey)
	case !k.ExpiresAt.IsZero():
		item.ExpiresAt = k.ExpiresAt.Add(keepKey)
	}
	var err error
	item.Data, err = json.Marshal(storedKey{k.Name, k.Role, k.UserID, k.hash, k.CreatedAt, k.ExpiresAt, k.LastUsedAt, k.RevokedAt})
	return item, err
}

func keyKey(tenant table.TenantID, r Role, id string) table.Key {
	if r == RoleSelf {
		return table.TokenKey(tenant, id)
	}
	return table.APIKeyKey(tenant, id)
}

func decodeKey(item table.Item, id string) (APIKey, error) {
	var s storedKey
	if err := item.Decode(&s); err != nil {
		return APIKey{}, err
	}
	return APIKey{id, s.Name, s.Role, s.UserID, s.CreatedAt, s.ExpiresAt, s.LastUsedAt, s.RevokedAt, item.Version, s.Hash}, nil
}

// Caller is who makes a request, once the key has been checked.
type Caller struct {
	Role  Role
	Key   APIKey // none for the platform
	Actor audit.Actor
	Core  Core // the caller's tenant; none for the platform
}

// errKey is the one answer to every key that does not let in, so that it does
// not tell which tenants and keys exist.
var errKey = fmt.Errorf("%w: the key is not known here", problem.ErrUnauthenticated)

// Authenticate finds out who holds the key. A key that is wrong, of another
// installation or revoked is problem.ErrUnauthenticated, all alike; one that is
// right but expired says so; a suspended tenant is problem.ErrForbidden.
func (ts *Tenants) Authenticate(ctx context.Context, text secret.Text) (Caller, error) {
	kind, rest, _ := strings.Cut(text.Reveal(), "_")
	if kind == platformKind {
		if subtle.ConstantTimeCompare([]byte(fmt.Sprintf("%x", hashOf(text.Reveal()))), []byte(ts.PlatformKeyHash)) != 1 {
			return Caller{}, errKey
		}
		return Caller{Role: RolePlatform, Actor: audit.Actor{Kind: audit.Platform, ID: "platform"}}, nil
	}
	parts := strings.SplitN(rest, "_", 3)
	if len(parts) != 3 || (kind != keyKind && kind != tokenKind) {
		return Caller{}, errKey
	}
	tenant, id := table.TenantID(parts[0]), parts[1]
	if _, err := ulid.ParseStrict(id); err != nil || CheckID(tenant) != nil {
		return Caller{}, errKey
	}
	role := RoleAdmin
	if kind == tokenKind {
		role = RoleSelf
	}
	item, err := ts.Table.Get(ctx, keyKey(tenant, role, id))
	if errors.Is(err, problem.ErrNotFound) {
		return Caller{}, errKey
	} else if err != nil {
		return Caller{}, fmt.Errorf("authenticate: %w", err)
	}
	key, err := decodeKey(item, id)
	if err != nil {
		return Caller{}, err
	}
	now := ts.Now()
	switch {
	case subtle.ConstantTimeCompare(hashOf(parts[2]), key.hash) != 1, !key.RevokedAt.IsZero():
		return Caller{}, errKey
	case !key.Usable(now):
		return Caller{}, fmt.Errorf("%w: the key expired at %s", problem.ErrUnauthenticated, key.ExpiresAt.UTC().Format(time.RFC3339))
	}
	core, err := ts.Load(ctx, tenant)
	if err != nil {
		return Caller{}, err
	}
	if core.Tenant.Suspended {
		return Caller{}, fmt.Errorf("%w: the tenant is suspended", problem.ErrForbidden)
	}
	caller := Caller{Role: key.Role, Key: key, Core: core, Actor: audit.Actor{Kind: audit.API, ID: key.ID, Name: key.Name}}
	if key.Role == RoleSelf {
		caller.Actor = audit.Actor{Kind: audit.Self, ID: key.UserID}
		return caller, nil
	}
	if now.Sub(key.LastUsedAt) >= time.Hour {
		key.LastUsedAt = now.UTC().Truncate(time.Hour)
		err := ts.Table.Write(ctx, table.Put(keyRecord{tenant, key}, table.IfVersion(key.Version)))
		if err != nil && !errors.Is(err, problem.ErrConflict) { // another request was first
			return Caller{}, fmt.Errorf("record the key's use: %w", err)
		}
	}
	return caller, nil
}

// MakeKey stores a new API key and returns its text, which cannot be had again.
func (ts *Tenants) MakeKey(ctx context.Context, tenant table.TenantID, by audit.Actor, k APIKey) (APIKey, secret.Text, error) {
	if k.Role == RoleSelf {
		return APIKey{}, secret.Text{}, problem.Invalid("unknown", "role", "%q is not one of %s", k.Role, list(KeyRoles()))
	}
	keys, err := ts.APIKeys(ctx, tenant)
	if err != nil {
		return APIKey{}, secret.Text{}, err
	}
	usable := 0
	for _, key := range keys {
		if key.Usable(ts.Now()) {
			usable++
		}
	}
	if usable >= maxKeys && by.Kind != audit.Platform { // which helps those who have lost theirs
		return APIKey{}, secret.Text{}, fmt.Errorf("%w: there are %d API keys in use, which is the most a tenant can have; revoke some", problem.ErrState, usable)
	}
	text, err := newKey(&k, tenant, ts.Now(), ts.Rand)
	if err != nil {
		return APIKey{}, secret.Text{}, err
	}
	k.Version = 1
	err = ts.Table.Write(ctx, table.Put(keyRecord{tenant, k}, table.Absent()),
		ts.Audit.Op(ctx, tenant, audit.Record{Actor: by, Action: "key.made", Subject: "key/" + k.ID, Outcome: audit.Done,
			Details: map[string]string{"role": string(k.Role)}}))
	if err != nil {
		return APIKey{}, secret.Text{}, fmt.Errorf("make API key: %w", err)
	}
	return k, text, nil
}

// MintToken makes a token with which the user acts for themselves for the given
// time. The caller checks that the user exists.
func (ts *Tenants) MintToken(ctx context.Context, tenant table.TenantID, by audit.Actor, userID string, life time.Duration) (APIKey, secret.Text, error) {
	if life < time.Minute || life > 24*time.Hour {
		return APIKey{}, secret.Text{}, problem.Invalid("range", "minutes", "a token lives 1 to 1440 minutes")
	}
	now := ts.Now()
	k := APIKey{Name: "token", Role: RoleSelf, UserID: userID, ExpiresAt: now.Add(life).UTC().Truncate(time.Second)}
	text, err := newKey(&k, tenant, now, ts.Rand)
	if err != nil {
		return APIKey{}, secret.Text{}, err
	}
	k.Version = 1
	err = ts.Table.Write(ctx, table.Put(keyRecord{tenant, k}, table.Absent()),
		ts.Audit.Op(ctx, tenant, audit.Record{Actor: by, Action: "token.minted", Subject: "user/" + userID, Outcome: audit.Done,
			Details: map[string]string{"token": k.ID}}))
	if err != nil {
		return APIKey{}, secret.Text{}, fmt.Errorf("mint token: %w", err)
	}
	return k, text, nil
}

const (
	maxKeys = 500                 // that a tenant may have in use
	keepKey = 90 * 24 * time.Hour // how long a key that is over is still listed
)

// APIKeys returns the tenant's API keys, oldest first, with those that were
// revoked or expired in the last 90 days.
func (ts *Tenants) APIKeys(ctx context.Context, tenant table.TenantID) ([]APIKey, error) {
	var keys []APIKey
	for r, more := table.APIKeys(tenant), true; more; {
		page, err := ts.Table.Query(ctx, r)
		if err != nil {
			return nil, fmt.Errorf("list API keys: %w", err)
		}
		for _, item := range page.Items {
			key, err := decodeKey(item, strings.TrimPrefix(item.Key.Sort(), "key/"))
			if err != nil {
				return nil, err
			}
			keys = append(keys, key)
			r = r.Beyond(r.Place(item))
		}
		more = page.More
	}
	return keys, nil
}

// RevokeKey ends an API key at once and for good. The last usable key of role
// admin cannot be revoked: nobody could make another.
func (ts *Tenants) RevokeKey(ctx context.Context, tenant table.TenantID, by audit.Actor, id string) error {
	for range revokeTries {
		keys, err := ts.APIKeys(ctx, tenant)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(keys, func(k APIKey) bool { return k.ID == id })
		if at < 0 {
			return fmt.Errorf("API key %w", problem.ErrNotFound)
		}
		key, now := keys[at], ts.Now()
		if !key.RevokedAt.IsZero() {
			return nil
		}
		wasUsable := key.Usable(now)
		key.RevokedAt = now.UTC()
		ops := []table.Op{
			table.Put(keyRecord{tenant, key}, table.IfVersion(key.Version)),
			ts.Audit.Op(ctx, tenant, audit.Record{Actor: by, Action: "key.revoked", Subject: "key/" + id, Outcome: audit.Done}),
		}
		if key.Role == RoleAdmin && wasUsable {
			// The other one must still be there when this one goes: two
			// administrators may revoke each other's at the same time.
			other := slices.IndexFunc(keys, func(k APIKey) bool { return k.ID != id && k.Role == RoleAdmin && k.Usable(now) })
			if other < 0 {
				return fmt.Errorf("%w: it is the last key of role admin; make another one first", problem.ErrState)
			}
			ops = append(ops, table.Check(table.APIKeyKey(tenant, keys[other].ID), table.IfVersion(keys[other].Version)))
		}
		if err = ts.Table.Write(ctx, ops...); err == nil {
			return nil
		} else if !errors.Is(err, problem.ErrConflict) { // a key was used or revoked meanwhile
			return fmt.Errorf("revoke API key: %w", err)
		}
	}
	return fmt.Errorf("revoke API key: %w", problem.ErrUnavailable)
}

// revokeTries bounds how often a revocation begins anew because keys changed.
const revokeTries = 8
