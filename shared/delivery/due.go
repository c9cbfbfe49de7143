package delivery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

const (
	parallel = 16               // receivers spoken to at once
	patience = 15 * time.Second // with one receiver, a sweep
	slow     = 3 * time.Second  // an attempt that fails after so long is not repeated with the next delivery
	reserve  = 20 * time.Second // what an attempt may need
)

// Report is what a sweep of the deliveries has done.
type Report struct {
	Due        int  `json:"due"`        // read from the index
	Sent       int  `json:"sent"`       // taken by their receivers
	Repeated   int  `json:"repeated"`   // of those: may have been sent before
	Again      int  `json:"again"`      // to be tried again later
	Dead       int  `json:"dead"`       // given up
	Waiting    int  `json:"waiting"`    // left for the next sweep: enough was sent to their receiver in this one
	Overtaken  int  `json:"overtaken"`  // somebody else did it, or it was not due any more
	Errors     int  `json:"errors"`     // left for the next sweep
	Unfinished bool `json:"unfinished"` // time ran out with more to do
}

// Sweep goes on with all deliveries that are due, which are read limit a shard at a time.
// One's error does not stop the rest, and no receiver holds up another: each, an endpoint or
// a messaging configuration, is sent to one delivery after the other and for a while only.
// If it is slow to fail, or asks to be left alone, what else is due for it counts as tried
// with that result, so that it waits as long as if it had been.
func (ds *Deliveries) Sweep(ctx context.Context, limit int) (Report, error) {
	s := sweep{Deliveries: ds, cores: make(map[table.TenantID]*core), lanes: make(map[laneID]*lane)}
	now, places := ds.Now(), make(map[int]string)
	for shard := range table.DeliveryDueShards {
		places[shard] = ""
	}
	for len(places) > 0 {
		due := make(map[*lane][]Delivery)
		for shard, place := range places {
			r := table.DeliveriesDueBefore(shard, now)
			page, err := ds.Table.Query(ctx, r.Beyond(place).Limit(limit))
			if err != nil {
				s.failed(fmt.Errorf("read what is due: %w", err))
			}
			if delete(places, shard); page.More {
				places[shard] = r.Place(page.Items[len(page.Items)-1])
			}
			for _, item := range page.Items {
				s.total.Due++
				if t, d, err := decode(item); err != nil {
					s.failed(err)
				} else {
					l := s.lane(t, d)
					due[l] = append(due[l], d)
				}
			}
		}
		var g errgroup.Group
		g.SetLimit(parallel)
		for l, deliveries := range due {
			g.Go(func() error {
				for _, d := range deliveries {
					s.next(ctx, l, d)
				}
				return nil
			})
		}
		_ = g.Wait()
		if s.total.Unfinished {
			break
		}
	}
	return s.total, errors.Join(s.errs...)
}

// sweep is one Sweep.
type sweep struct {
	*Deliveries
	mu    sync.Mutex
	total Report
	errs  []error
	cores map[table.TenantID]*core
	lanes map[laneID]*lane
}

// core is a tenant, loaded once a sweep.
type core struct {
	load sync.Once
	core tenant.Core
	err  error
}

// laneID names a receiver.
type laneID struct {
	tenant   table.TenantID
	kind     Kind
	receiver string
}

// lane is the way to one receiver. One goroutine at a time has it.
type lane struct {
	tenant  table.TenantID
	core    *core
	spent   time.Duration
	failing *outcome // what all that is sent there would come to
}

func (s *sweep) lane(t table.TenantID, d Delivery) *lane {
	id := laneID{t, d.Kind, d.Endpoint + d.Messaging} // it has one of them
	l := s.lanes[id]
	if l == nil {
		if s.cores[t] == nil {
			s.cores[t] = new(core)
		}
		l = &lane{tenant: t, core: s.cores[t]}
		s.lanes[id] = l
	}
	return l
}

func (s *sweep) count(f func(*Report)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.total)
}

func (s *sweep) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total.Errors++
	s.errs = append(s.errs, err)
}

// next goes on with the next delivery of a lane.
func (s *sweep) next(ctx context.Context, l *lane, d Delivery) {
	if deadline, ok := ctx.Deadline(); ctx.Err() != nil || ok && time.Until(deadline) < reserve {
		s.count(func(r *Report) { r.Unfinished = true })
		return
	}
	l.core.load.Do(func() { l.core.core, l.core.err = s.Tenants.Load(ctx, l.tenant) })
	if l.core.err != nil {
		s.failed(l.core.err)
		return
	}
	began := s.Now()
	var after Delivery
	var err error
	switch {
	case !d.due(began):
		err = problem.ErrConflict
	case l.failing != nil:
		after, err = s.mark(ctx, l.tenant, d.begun(), *l.failing)
	case l.spent >= patience:
		s.count(func(r *Report) { r.Waiting++ })
		return
	default:
		var o outcome
		after, o, err = s.attempt(ctx, l.core.core, d)
		took := s.Now().Sub(began)
		l.spent += took
		if o.state == Planned && (took >= slow || o.after > 0) {
			l.failing = &outcome{state: Planned, code: o.code, after: o.after}
		}
	}
	if errors.Is(err, problem.ErrConflict) {
		s.count(func(r *Report) { r.Overtaken++ })
		return
	} else if err != nil {
		s.failed(fmt.Errorf("deliver %s: %w", d.ID, err))
		return
	}
	s.count(func(r *Report) {
		switch after.State {
		case Delivered:
			r.Sent++
			if after.Repeated {
				r.Repeated++
			}
		case Dead:
			r.Dead++
		default:
			r.Again++
		}
	})
}
