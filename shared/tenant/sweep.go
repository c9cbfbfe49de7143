package tenant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// LastSweep is when the sweep, which the clock begins once a minute for the whole
// installation, has last come to its end. One that dies on the way does not.
type LastSweep struct {
	At   time.Time // zero if there was none yet
	Left bool      // it left something undone: an error, or no time

	version int64
}

// SweepLate is how long ago the last sweep can have been before something is wrong.
const SweepLate = 10 * time.Minute

// Late tells whether the sweep should have run again by now.
func (s LastSweep) Late(now time.Time) bool { return now.Sub(s.At) >= SweepLate }

type storedSweep struct {
	At   time.Time `json:"at"`
	Left bool      `json:"left,omitempty"`
}

// Validate implements table.Record.
func (LastSweep) Validate() error { return nil }

// Item implements table.Record.
func (s LastSweep) Item() (table.Item, error) {
	data, err := json.Marshal(storedSweep{s.At, s.Left})
	return table.Item{Key: table.LastSweepKey(), Data: data}, err
}

// LastSweep reads when the sweep has last come to its end.
func (ts *Tenants) LastSweep(ctx context.Context) (LastSweep, error) {
	item, err := ts.Table.Get(ctx, table.LastSweepKey())
	if errors.Is(err, problem.ErrNotFound) {
		return LastSweep{}, nil
	} else if err != nil {
		return LastSweep{}, fmt.Errorf("read when the sweep was: %w", err)
	}
	var s storedSweep
	if err := item.Decode(&s); err != nil {
		return LastSweep{}, err
	}
	return LastSweep{s.At, s.Left, item.Version}, nil
}

// Swept notes that the sweep has come to its end. That another one was first is no error.
func (ts *Tenants) Swept(ctx context.Context, left bool) error {
	last, err := ts.LastSweep(ctx)
	if err != nil {
		return err
	}
	err = ts.Table.Write(ctx, table.Put(LastSweep{At: ts.Now().UTC().Truncate(time.Second), Left: left}, table.After(last.version)))
	if err != nil && !errors.Is(err, problem.ErrConflict) {
		return fmt.Errorf("note the sweep: %w", err)
	}
	return nil
}
