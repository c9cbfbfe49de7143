package tenant

import (
	"context"
	"crypto/ecdh"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// offlineKeyRecord is a tenant's offline key as stored: the X25519 key (RFC 7748) with
// which the cloud has a secret in common with each bridge, sealed by the tenant's keys.
type offlineKeyRecord struct {
	tenant table.TenantID
	Sealed []byte `json:"sealed"` // 32 bytes
}

// Validate implements table.Record.
func (offlineKeyRecord) Validate() error { return nil }

// Item implements table.Record.
func (r offlineKeyRecord) Item() (table.Item, error) {
	data, err := json.Marshal(r)
	return table.Item{Key: table.OfflineKeyKey(r.tenant), Data: data}, err
}

func offlineKeyPurpose(t table.TenantID) string { return "offline/key|" + string(t) }

// OfflineKey returns the tenant's offline key, which is made if there is none. Bridges have
// its public half. It is never replaced: a bridge without a connection could not be told.
func (ts *Tenants) OfflineKey(ctx context.Context, core Core) (*ecdh.PrivateKey, error) {
	t := core.Tenant.ID
	item, err := ts.Table.Get(ctx, table.OfflineKeyKey(t))
	if errors.Is(err, problem.ErrNotFound) {
		if err = ts.makeOfflineKey(ctx, core); err == nil || errors.Is(err, problem.ErrConflict) { // another was first
			item, err = ts.Table.Get(ctx, table.OfflineKeyKey(t))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("load offline key of %s: %w", t, err)
	}
	var r offlineKeyRecord
	if err := item.Decode(&r); err != nil {
		return nil, err
	}
	plain, err := core.Keys.Open(offlineKeyPurpose(t), r.Sealed)
	if err != nil {
		return nil, fmt.Errorf("open offline key of %s: %w", t, err)
	}
	defer clear(plain)
	key, err := ecdh.X25519().NewPrivateKey(plain)
	if err != nil {
		return nil, fmt.Errorf("open offline key of %s: %w", t, err)
	}
	return key, nil
}

func (ts *Tenants) makeOfflineKey(ctx context.Context, core Core) error {
	t := core.Tenant.ID
	var plain [32]byte
	defer clear(plain[:])
	if _, err := io.ReadFull(ts.Rand, plain[:]); err != nil {
		return fmt.Errorf("make it: %w", err)
	}
	sealed, err := core.Keys.Seal(offlineKeyPurpose(t), plain[:])
	if err != nil {
		return fmt.Errorf("seal it: %w", err)
	}
	record := audit.Record{Actor: audit.Actor{Kind: audit.System, ID: "offline"}, Action: "offlineKey.created", Subject: "offlineKey", Outcome: audit.Done}
	return ts.Table.Write(ctx, table.Put(offlineKeyRecord{t, sealed}, table.Absent()), ts.Audit.Op(ctx, t, record))
}
