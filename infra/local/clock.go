package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/pinward/pinward/functions/sweep/due"
)

// clock is the machine's time, put forward for demonstrations. It never goes
// back.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func newClock(begin string) (*clock, error) {
	c := &clock{}
	if begin == "" {
		return c, nil
	}
	t, err := time.Parse(time.RFC3339, begin)
	if err != nil {
		return nil, fmt.Errorf("-now %q is not a time such as 2030-01-31T09:00:00Z", begin)
	}
	c.ahead = time.Until(t)
	return c, nil
}

// Now is safe for concurrent use.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// sweeper fires the sweep each minute, as the schedule does in the cloud, and
// each hour removes from the embedded table what has expired.
type sweeper struct {
	sweep   *due.Sweep
	clock   *clock
	store   store
	bridges *bridges

	mu sync.Mutex // one sweep at a time
}

// scheduled is what EventBridge Scheduler sends a target without input.
var scheduled = json.RawMessage(`{"source":"aws.scheduler","detail-type":"Scheduled Event","detail":"{}"}`)

func (s *sweeper) once(ctx context.Context) (due.Report, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return s.sweep.Handle(ctx, scheduled)
}

// advance puts the clock forward and sweeps.
func (s *sweeper) advance(ctx context.Context, d time.Duration) (due.Report, error) {
	s.clock.advance(d)
	if err := s.bridges.tellTime(ctx); err != nil {
		s.sweep.Log.WarnContext(ctx, "bridges not told the time", "cause", err)
	}
	return s.once(ctx)
}

func (s *sweeper) run(ctx context.Context) {
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	hour := time.NewTicker(time.Hour)
	defer hour.Stop()
	for {
		if _, err := s.once(ctx); err != nil && ctx.Err() == nil {
			s.sweep.Log.Error("sweep failed", "cause", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-minute.C:
		case <-hour.C:
			if _, err := s.store.collect(ctx, s.clock.Now()); err != nil {
				s.sweep.Log.Error("collecting what has expired failed", "cause", err)
			}
		}
	}
}
