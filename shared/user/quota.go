package user

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// OwnPerDay is how many PINs a person may have generated for themselves within a day.
const OwnPerDay = 10

// tally counts PINs that were generated: a part of a tenant's on a day, or a person's own since
// a time.
type tally struct {
	key     table.Key
	n       int
	since   time.Time
	expires time.Time
}

type storedTally struct {
	N     int       `json:"n"`
	Since time.Time `json:"since"`
}

// Validate implements table.Record.
func (c tally) Validate() error { return nil }

// Item implements table.Record.
func (c tally) Item() (table.Item, error) {
	data, err := json.Marshal(storedTally{c.n, c.since})
	return table.Item{Key: c.key, ExpiresAt: c.expires, Data: data}, err
}

// countGenerated adds to w what counts a PIN that is generated, or says that it would be one
// too many. The tenant's count is in parts, of which a random one rises, so that PINs can be
// generated side by side; by as many as are generated in the same moment its limit may be
// exceeded. A person's own count is exact.
func (us *Users) countGenerated(ctx context.Context, core tenant.Core, by audit.Actor, id string, w *write) error {
	t, now := core.Tenant.ID, us.Now().UTC()
	if by.Kind == audit.Self {
		if err := us.countOwn(ctx, t, id, now, w); err != nil {
			return err
		}
	}

	day := now.Truncate(24 * time.Hour)
	page, err := us.Table.Query(ctx, table.Generated(t, day))
	if err != nil {
		return fmt.Errorf("count generated PINs: %w", err)
	}
	var random [1]byte
	if _, err := io.ReadFull(us.Rand, random[:]); err != nil {
		return fmt.Errorf("count generated PINs: %w", err)
	}
	part := tally{key: table.GeneratedKey(t, day, int(random[0])%table.GeneratedShards), since: day, expires: day.AddDate(0, 0, 2)}
	total, version := 0, int64(0)
	for _, item := range page.Items {
		var s storedTally
		if err := item.Decode(&s); err != nil {
			return err
		}
		if total += s.N; item.Key == part.key {
			part.n, version = s.N, item.Version
		}
	}
	if most := core.Tenant.Settings.GeneratedMost(); total >= most {
		return &problem.LimitError{Code: "tenantDaily", Until: day.AddDate(0, 0, 1),
			Reason: fmt.Sprintf("%d PINs were generated for the organisation today, which is as many as its settings allow (generatedPINsPerDay)", most)}
	}
	part.n++
	w.add(table.Put(part, table.After(version)))
	return nil
}

// countOwn counts a PIN that a person has generated. The day begins with the first one.
func (us *Users) countOwn(ctx context.Context, t table.TenantID, id string, now time.Time, w *write) error {
	own := tally{key: table.AttemptsKey(t, "generated/"+id), since: now.Truncate(time.Second)}
	item, err := us.Table.Get(ctx, own.key)
	if err != nil && !errors.Is(err, problem.ErrNotFound) {
		return fmt.Errorf("count generated PINs: %w", err)
	}
	if err == nil {
		var s storedTally
		if err := item.Decode(&s); err != nil {
			return err
		}
		if now.Sub(s.Since) < 24*time.Hour {
			own.n, own.since = s.N, s.Since
		}
	}
	until := own.since.Add(24 * time.Hour)
	if own.n >= OwnPerDay {
		return &problem.LimitError{Code: "ownDaily", Until: until,
			Reason: fmt.Sprintf("a person may have %d PINs generated a day; choose a PIN yourself, or ask your help desk", OwnPerDay)}
	}
	own.n++
	own.expires = until.Add(time.Hour)
	w.add(table.Put(own, table.After(item.Version)))
	return nil
}
