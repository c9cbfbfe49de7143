// Package bolt is the table in one file on one machine. Each Write is in the
// file, synced, before it returns, or not at all, and the index entries of an
// item change in the same transaction as the item. A crash at any moment
// leaves the file as after some last Write; a file that is damaged otherwise
// is refused when it is opened, or when the damage is met, and not changed.
package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

var (
	// ErrLocked: another process has the table file open.
	ErrLocked = errors.New("another process has the table file open")
	// ErrDamaged: the file is not a table file, or no longer whole.
	ErrDamaged = errors.New("the table file is damaged or not a table file; restore it from a backup")
)

// DB is an open table file.
type DB struct {
	bolt   *bbolt.DB
	broken atomic.Bool // a write met damage and may hold bbolt's locks for ever

	turn  chan struct{} // held by the writer that commits for all who wait
	mu    sync.Mutex    // guards queue
	queue []*write
}

var _ table.Table = (*DB)(nil)

// Option changes how a file is opened.
type Option func(*bbolt.Options)

// NoSync makes writes return before they are on the disk, for tests: they
// survive the process but not the machine.
func NoSync() Option { return func(o *bbolt.Options) { o.NoSync = true } }

// lockWait is how long Open waits for another process to close the file.
const lockWait = 500 * time.Millisecond

// Open opens the table file, which is created with mode 0600 if there is none;
// its folder must exist. It reads the whole file once to see that it is sound.
// Errors are ErrLocked, ErrDamaged or the system's.
func Open(path string, opts ...Option) (*DB, error) {
	options := &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType}
	for _, o := range opts {
		o(options)
	}
	fail := func(err error) (*DB, error) {
		if errors.Is(err, berrors.ErrTimeout) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("open table %s: %w", path, err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(path, options); err != nil {
			return fail(err)
		}
	}
	if err := check(path); err != nil {
		return fail(err)
	}
	b, err := bbolt.Open(path, 0o600, options)
	if err != nil {
		return fail(err)
	}
	return &DB{bolt: b, turn: make(chan struct{}, 1)}, nil
}

// create makes an empty table file. It appears under its name only when it is
// whole, and never in place of another.
func create(path string, options *bbolt.Options) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := f.Close(); err != nil {
		return err
	}
	b, err := bbolt.Open(f.Name(), 0o600, options)
	if err != nil {
		return err
	}
	err = b.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets() {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, b.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Close waits for running calls and closes the file. After a Write has met
// damage the file stays open, and locked, until the process ends.
func (d *DB) Close() error {
	if d.broken.Load() {
		return ErrDamaged
	}
	return d.bolt.Close()
}

// Get implements table.Table.
func (d *DB) Get(ctx context.Context, key table.Key) (item table.Item, err error) {
	if err := ctx.Err(); err != nil {
		return item, fmt.Errorf("get %s: %w", key, err)
	}
	if key.Validate() != nil { // nothing can be stored there
		return item, fmt.Errorf("get %s: %w", key, problem.ErrNotFound)
	}
	err = d.view(func(tx *bbolt.Tx) error {
		item, err = load(tx, place(key.Partition(), key.Sort()))
		return err
	})
	if err != nil {
		return table.Item{}, fmt.Errorf("get %s: %w", key, err)
	}
	return item, nil
}

// Query implements table.Table. More is exact.
func (d *DB) Query(ctx context.Context, r table.Range) (table.Page, error) {
	var page table.Page
	spec := r.Spec()
	if err := spec.Validate(); err != nil {
		return page, err
	}
	from := rangePlace(spec.Partition, spec.From)
	to := rangePlace(spec.Partition, spec.To)
	if spec.To == "" {
		to = append([]byte(spec.Partition), 1) // above all of the partition
	}
	err := d.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucket(spec.Index)).Cursor()
		k, v := c.Seek(from)
		next := c.Next
		if spec.Descending {
			if k, _ = c.Seek(to); k == nil {
				k, v = c.Last()
			} else {
				k, v = c.Prev()
			}
			next = c.Prev
		}
		for ; bytes.Compare(k, from) >= 0 && bytes.Compare(k, to) < 0; k, v = next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			if len(page.Items) == spec.Limit {
				page.More = true
				return nil
			}
			item, err := entry(tx, spec.Index, k, v)
			if err != nil {
				return err
			}
			page.Items = append(page.Items, item)
		}
		return ctx.Err()
	})
	if err != nil {
		return table.Page{}, fmt.Errorf("query %s: %w", spec.Partition, err)
	}
	return page, nil
}

func (d *DB) view(fn func(*bbolt.Tx) error) error {
	_, err := d.guard(func() error { return d.bolt.View(fn) })
	return err
}

func (d *DB) update(fn func(*bbolt.Tx) error) error {
	panicked, err := d.guard(func() error { return d.bolt.Update(fn) })
	if panicked {
		d.broken.Store(true)
	}
	return err
}

// guard makes an ErrDamaged of a panic, which is how bbolt meets damage done
// while the file is open, and of a fault in the file's memory.
func (d *DB) guard(fn func() error) (panicked bool, err error) {
	if d.broken.Load() {
		return false, ErrDamaged
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			panicked, err = true, fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return false, fn()
}

// entry returns the item that a place in the items or in an index stands for.
func entry(tx *bbolt.Tx, index table.Index, k, v []byte) (table.Item, error) {
	if index == "" {
		return decode(k, v)
	}
	if _, err := unseal(k, v); err != nil {
		return table.Item{}, err
	}
	item, err := load(tx, primary(k))
	if errors.Is(err, problem.ErrNotFound) {
		err = ErrDamaged // an entry goes with its item
	}
	return item, err
}

// collectBatch is how many items a transaction of Collect deletes.
const collectBatch = 500

// Collect deletes the items that expired at now or before, and returns how
// many. It reads nothing but those, and lets other writers in between.
func (d *DB) Collect(ctx context.Context, now time.Time) (n int, err error) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case d.turn <- struct{}{}:
		}
		batch := 0
		err := d.update(func(tx *bbolt.Tx) (err error) {
			batch, err = collect(tx, now)
			return err
		})
		<-d.turn
		if err != nil {
			return n, fmt.Errorf("collect: %w", failed(err))
		}
		n += batch
		if batch < collectBatch {
			return n, nil
		}
	}
	return n, fmt.Errorf("collect: %w", ctx.Err())
}

func collect(tx *bbolt.Tx, now time.Time) (n int, err error) {
	var expired [][]byte
	c := tx.Bucket(bucketExpiry).Cursor()
	for k, v := c.First(); k != nil && expiry(k) <= now.Unix() && len(expired) < collectBatch; k, v = c.Next() {
		if _, err := unseal(k, v); err != nil {
			return 0, err
		}
		expired = append(expired, bytes.Clone(k[8:]))
	}
	for _, k := range expired {
		if err := remove(tx, k); err != nil {
			return 0, err
		}
	}
	return len(expired), nil
}

// failed makes a failed transaction an ErrUnavailable: the disk may be full.
func failed(err error) error {
	if errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("write the table file: %w (%w)", err, problem.ErrUnavailable)
}
