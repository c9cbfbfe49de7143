package tabletest

import (
	"context"
	"fmt"
	"sync"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// Calls is what was asked of a table.
type Calls struct {
	Gets, Queries, Writes int
	Queried               int // items that queries returned
	Ops                   int // ops of all writes
}

// Counting counts the calls to a table, failed ones too.
type Counting struct {
	table.Table
	mu    sync.Mutex
	calls Calls
}

// Count wraps a table.
func Count(t table.Table) *Counting { return &Counting{Table: t} }

// Take returns the calls since the last Take.
func (c *Counting) Take() Calls {
	c.mu.Lock()
	defer c.mu.Unlock()
	calls := c.calls
	c.calls = Calls{}
	return calls
}

func (c *Counting) add(f func(*Calls)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.calls)
}

// Get implements table.Table.
func (c *Counting) Get(ctx context.Context, key table.Key) (table.Item, error) {
	c.add(func(n *Calls) { n.Gets++ })
	return c.Table.Get(ctx, key)
}

// Query implements table.Table.
func (c *Counting) Query(ctx context.Context, r table.Range) (table.Page, error) {
	page, err := c.Table.Query(ctx, r)
	c.add(func(n *Calls) { n.Queries++; n.Queried += len(page.Items) })
	return page, err
}

// Write implements table.Table.
func (c *Counting) Write(ctx context.Context, ops ...table.Op) error {
	c.add(func(n *Calls) { n.Writes++; n.Ops += len(ops) })
	return c.Table.Write(ctx, ops...)
}

// ErrFault is what a Faulty table answers. Like a driver's own failures, it is
// a problem.ErrUnavailable and does not tell whether a Write took effect.
var ErrFault = fmt.Errorf("injected fault: %w", problem.ErrUnavailable)

// Faulty is a table one of whose calls fails.
type Faulty struct {
	table.Table
	mu    sync.Mutex
	fail  int
	after bool
	calls int
}

// Fail wraps a table so that its n-th call, from 1 and over all verbs, answers
// ErrFault: instead of being made, or, with after, although it was made and a
// Write took effect. With n 0 none fails. To try an operation at every call,
// run it with n rising until Calls is below n.
func Fail(t table.Table, n int, after bool) *Faulty { return &Faulty{Table: t, fail: n, after: after} }

// Calls returns how many calls there were.
func (f *Faulty) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// run makes a call, or not, and answers for it.
func (f *Faulty) run(call func() error) error {
	f.mu.Lock()
	f.calls++
	fails := f.calls == f.fail
	f.mu.Unlock()
	if fails && !f.after {
		return ErrFault
	}
	err := call()
	if fails {
		return ErrFault
	}
	return err
}

// Get implements table.Table.
func (f *Faulty) Get(ctx context.Context, key table.Key) (item table.Item, err error) {
	err = f.run(func() (err error) { item, err = f.Table.Get(ctx, key); return err })
	if err != nil {
		return table.Item{}, err
	}
	return item, nil
}

// Query implements table.Table.
func (f *Faulty) Query(ctx context.Context, r table.Range) (page table.Page, err error) {
	err = f.run(func() (err error) { page, err = f.Table.Query(ctx, r); return err })
	if err != nil {
		return table.Page{}, err
	}
	return page, nil
}

// Write implements table.Table.
func (f *Faulty) Write(ctx context.Context, ops ...table.Op) error {
	return f.run(func() error { return f.Table.Write(ctx, ops...) })
}

// Lagging is a table whose indexes show what was true some Writes ago, as
// DynamoDB's may: items that are gone, items as they were, and not yet the new.
type Lagging struct {
	table.Table
	stale  table.Table
	mu     sync.Mutex
	behind int
	queue  [][]table.Op
}

// Lag wraps an empty table. Its indexes are those of stale, a second empty
// table that is kept the given number of Writes behind.
func Lag(t, stale table.Table, behind int) *Lagging {
	return &Lagging{Table: t, stale: stale, behind: behind}
}

// CatchUp lets the indexes show everything.
func (l *Lagging) CatchUp(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.replay(ctx, 0)
}

func (l *Lagging) replay(ctx context.Context, behind int) error {
	for len(l.queue) > behind {
		if err := l.stale.Write(ctx, l.queue[0]...); err != nil {
			return fmt.Errorf("replay to the stale table: %w", err)
		}
		l.queue = l.queue[1:]
	}
	return nil
}

// Query implements table.Table.
func (l *Lagging) Query(ctx context.Context, r table.Range) (table.Page, error) {
	if r.Spec().Index == "" {
		return l.Table.Query(ctx, r)
	}
	return l.stale.Query(ctx, r)
}

// Write implements table.Table.
func (l *Lagging) Write(ctx context.Context, ops ...table.Op) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.Table.Write(ctx, ops...); err != nil {
		return err
	}
	l.queue = append(l.queue, ops)
	return l.replay(ctx, l.behind)
}
