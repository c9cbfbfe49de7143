package tenant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// Watch is what a tenant's trigger rules wait for. It is read with the tenant, so that what
// no rule waits for costs nothing to find out.
type Watch struct {
	Types []string // of events that a rule which is on acts on
	First []string // of those for which a rule, on or not, asks whether it is a user's first
	Rules int      // how many there are, on or not

	Version int64
}

// Waits tells whether a rule acts on events of a type.
func (w Watch) Waits(kind string) bool { return slices.Contains(w.Types, kind) }

// AsksFirst tells whether a rule asks whether an event of a type is a user's first.
func (w Watch) AsksFirst(kind string) bool { return slices.Contains(w.First, kind) }

// ReadWatch reads what rules wait for: the zero Watch if there never was a rule.
func ReadWatch(ctx context.Context, tab table.Table, t table.TenantID) (Watch, error) {
	item, err := tab.Get(ctx, table.WatchKey(t))
	if errors.Is(err, problem.ErrNotFound) {
		return Watch{}, nil
	} else if err != nil {
		return Watch{}, fmt.Errorf("read what trigger rules wait for: %w", err)
	}
	return decodeWatch(item)
}

// PutWatch returns the op that stores what rules wait for, in place of its version.
func PutWatch(t table.TenantID, w Watch) table.Op {
	return table.Put(watchRecord{t, w}, table.After(w.Version))
}

type watchRecord struct {
	tenant table.TenantID
	Watch
}

type storedWatch struct {
	Types []string `json:"types,omitempty"`
	First []string `json:"first,omitempty"`
	Rules int      `json:"rules"`
}

// Validate implements table.Record.
func (r watchRecord) Validate() error { return nil }

// Item implements table.Record.
func (r watchRecord) Item() (table.Item, error) {
	data, err := json.Marshal(storedWatch{r.Types, r.First, r.Rules})
	return table.Item{Key: table.WatchKey(r.tenant), Data: data}, err
}

func decodeWatch(item table.Item) (Watch, error) {
	var s storedWatch
	if err := item.Decode(&s); err != nil {
		return Watch{}, err
	}
	return Watch{s.Types, s.First, s.Rules, item.Version}, nil
}
