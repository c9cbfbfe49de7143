package rule

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Report counts what a sweep of events did.
type Report struct {
	Due    int `json:"due"`    // read from the index
	Done   int `json:"done"`   // acted on wholly
	Errors int `json:"errors"` // left for another sweep

	Unfinished bool `json:"unfinished"` // time ran out with more to do
}

func (r *Report) add(o Report) {
	r.Due, r.Done, r.Errors = r.Due+o.Due, r.Done+o.Done, r.Errors+o.Errors
	r.Unfinished = r.Unfinished || o.Unfinished
}

// pageSize is how many events of a shard are read at once.
const pageSize = 100

// Sweep goes on with the events that wait, Pinward's own and those whose sender's call was
// interrupted, until all are done with or the context ends. One that fails does not stop the
// rest; it is put off, for as long as it has waited, so that it does not hold up others.
//
// Its invariant: an event that is not done is in the due index.
func (en *Engine) Sweep(ctx context.Context) (Report, error) {
	now := en.Now()
	reports := make([]Report, table.EventDueShards)
	var g errgroup.Group
	for shard := range table.EventDueShards {
		g.Go(func() error {
			r, tenants := &reports[shard], map[table.TenantID]*office{}
			for place := ""; ; {
				due, next, err := event.DueBefore(ctx, en.Table, shard, now, place, pageSize)
				if err != nil {
					return err
				}
				for _, d := range due {
					if ctx.Err() != nil {
						r.Unfinished = true
						return nil
					}
					en.sweepOne(ctx, tenants, d, now, r)
				}
				if place = next; place == "" {
					return nil
				}
			}
		})
	}
	err := g.Wait()
	var total Report
	for _, r := range reports {
		total.add(r)
	}
	if err != nil {
		total.Errors++
	}
	return total, err
}

func (en *Engine) sweepOne(ctx context.Context, tenants map[table.TenantID]*office, d event.Due, now time.Time, r *Report) {
	r.Due++
	if d.Err == nil {
		d.Err = en.goOn(ctx, tenants, d, now)
	}
	if d.Err != nil {
		r.Errors++
		en.Log.ErrorContext(ctx, "sweep cannot act on an event", "tenant", d.Tenant, "cause", d.Err)
		return
	}
	r.Done++
}

// office is a tenant whose events are gone on with.
type office struct {
	core  tenant.Core
	hurry haste
}

func (en *Engine) goOn(ctx context.Context, tenants map[table.TenantID]*office, d event.Due, now time.Time) error {
	o := tenants[d.Tenant]
	if o == nil {
		core, err := en.Tenants.Load(ctx, d.Tenant)
		if err != nil {
			return err
		}
		o = &office{core: core}
		tenants[d.Tenant] = o
	}
	core := o.core
	if core.Tenant.Suspended {
		return en.putOff(ctx, core, d.ID, now.Add(time.Hour))
	}
	_, err := en.resume(ctx, core, d.ID, &o.hurry)
	if err == nil || errors.Is(err, problem.ErrNotFound) {
		return nil
	}
	waited := now.Sub(d.ReceivedAt)
	return errors.Join(err, en.putOff(ctx, core, d.ID, now.Add(min(max(waited, time.Minute), time.Hour))))
}

// putOff leaves an event alone for a while.
func (en *Engine) putOff(ctx context.Context, core tenant.Core, id string, until time.Time) error {
	e, err := event.WithSecrets(ctx, en.Table, core.Tenant.ID, core.Keys, id)
	if err != nil || e.State == event.Done {
		return err
	}
	e.DueAt = until.UTC().Truncate(time.Second)
	err = en.Table.Write(ctx, event.Put(core.Tenant.ID, core.Keys, e))
	if errors.Is(err, problem.ErrConflict) {
		return nil // somebody acts on it
	} else if err != nil {
		return fmt.Errorf("put an event off: %w", err)
	}
	return nil
}
