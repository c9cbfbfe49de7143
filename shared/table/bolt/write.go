package bolt

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// write is a Write that waits to be committed.
type write struct {
	ops  []table.Op
	err  error
	done chan struct{} // closed when err is final
}

// maxGroup is how many Writes share a transaction.
const maxGroup = 1000

// Write implements table.Table. Writers that come while one commits wait, and
// the next transaction takes them all: a commit costs two disk syncs however
// many Writes are in it, and a lone writer does not wait. If the context ends
// while the Write waits, nothing was written.
func (d *DB) Write(ctx context.Context, ops ...table.Op) error {
	if err := table.CheckOps(ops); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	w := &write{ops: ops, done: make(chan struct{})}
	d.mu.Lock()
	d.queue = append(d.queue, w)
	d.mu.Unlock()
	for {
		select {
		case <-w.done:
			return w.err
		case d.turn <- struct{}{}:
			d.commit()
			<-d.turn
		case <-ctx.Done():
			if d.withdraw(w) {
				return fmt.Errorf("write: %w", ctx.Err())
			}
			<-w.done // it is being committed
			return w.err
		}
	}
}

// withdraw takes w out of the queue, or returns false if it has left it.
func (d *DB) withdraw(w *write) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, q := range d.queue {
		if q == w {
			d.queue = append(d.queue[:i], d.queue[i+1:]...)
			return true
		}
	}
	return false
}

// commit runs the Writes that wait in one transaction. Each tests all its
// conditions before it changes anything, so a refused one leaves no trace in
// the transaction; what else can go wrong fails the transaction and all in it,
// for a condition may have been refused over a change that is now undone.
func (d *DB) commit() {
	d.mu.Lock()
	n := min(len(d.queue), maxGroup)
	group := append([]*write(nil), d.queue[:n]...)
	d.queue = append(d.queue[:0], d.queue[n:]...)
	d.mu.Unlock()
	if n == 0 {
		return
	}
	err := d.update(func(tx *bbolt.Tx) error {
		changed := false
		for _, w := range group {
			err := verify(tx, w.ops)
			var refused *table.ConditionError
			if errors.As(err, &refused) {
				w.err = err
				continue
			}
			if err == nil {
				err = apply(tx, w.ops)
			}
			if err != nil {
				return err
			}
			changed = true
		}
		if !changed {
			return errUnchanged // saves the syncs
		}
		return nil
	})
	for _, w := range group {
		if err != nil && err != errUnchanged {
			w.err = failed(err)
		}
		close(w.done)
	}
}

var errUnchanged = errors.New("nothing to commit")

// verify tests the conditions of all ops.
func verify(tx *bbolt.Tx, ops []table.Op) error {
	for i, op := range ops {
		key := op.Item().Key
		old, err := load(tx, place(key.Partition(), key.Sort()))
		if err != nil && !errors.Is(err, problem.ErrNotFound) {
			return err
		}
		want, versioned := op.Cond().Version()
		if op.Cond().IsAbsent() && err == nil || versioned && (err != nil || old.Version != want) {
			return &table.ConditionError{Op: i, Key: key}
		}
	}
	return nil
}

// apply carries out the ops, whose conditions hold.
func apply(tx *bbolt.Tx, ops []table.Op) error {
	for _, op := range ops {
		item := op.Item()
		k := place(item.Key.Partition(), item.Key.Sort())
		if op.Kind() == table.OpCheck {
			continue
		}
		if err := remove(tx, k); err != nil {
			return err
		}
		if op.Kind() == table.OpDelete {
			continue
		}
		if err := tx.Bucket(bucketItems).Put(k, encode(k, item)); err != nil {
			return err
		}
		for _, e := range entries(k, item) {
			if err := tx.Bucket(e.bucket).Put(e.key, seal(e.key, nil)); err != nil {
				return err
			}
		}
	}
	return nil
}

// remove deletes the item at the place k, if there is one, and its entries.
func remove(tx *bbolt.Tx, k []byte) error {
	old, err := load(tx, k)
	if errors.Is(err, problem.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries(k, old) {
		if err := tx.Bucket(e.bucket).Delete(e.key); err != nil {
			return err
		}
	}
	return tx.Bucket(bucketItems).Delete(k)
}
