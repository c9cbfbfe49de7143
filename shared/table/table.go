// Package table is the waist of Pinward: everything is stored through three
// verbs on one table, and two drivers (table/bolt, table/dynamo) implement
// them alike. Keys are made by the constructors in keys.go and nowhere else,
// and each takes the tenant, so no caller can reach another tenant's items.
// Every put carries a condition, so no update can be lost.
package table

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/problem"
)

// Table is what drivers implement.
type Table interface {
	// Get returns the item, strongly consistent: it reflects every Write that
	// returned before. A missing item is problem.ErrNotFound.
	Get(ctx context.Context, key Key) (Item, error)

	// Query returns the first items of a range in its order, at most its limit.
	// It is strongly consistent on the table itself and, on an index, may lag
	// behind writes by seconds. Items whose ExpiresAt has passed may be returned.
	// A range with a part that is too long or not text is an InvalidError.
	Query(ctx context.Context, r Range) (Page, error)

	// Write applies all ops or none. Each op may name a key only once, and at
	// most MaxOps are taken. If a condition does not hold the error is a
	// *ConditionError that names the first such op. Ops that cannot be stored
	// are refused before anything is written, as an InvalidError where their
	// size or keys are at fault. Any other error leaves open whether the ops
	// took effect, unless it says otherwise.
	Write(ctx context.Context, ops ...Op) error
}

// MaxOps is how many ops a Write takes (TransactWriteItems' limit).
const MaxOps = 100

// MaxWriteData is how many bytes of Item.Data a Write takes in all
// (TransactWriteItems' limit is 4 MB with keys).
const MaxWriteData = 3_500_000

// MaxData is the size of the largest Item.Data in bytes. DynamoDB's items end
// at 400 KB with keys and all; ours are meant to be small.
const MaxData = 300_000

// Item is one stored thing.
type Item struct {
	Key       Key
	Version   int64      // 1 when first put, one more at each put since
	Indexes   []IndexKey // at most one entry an index; none keeps it out of it
	ExpiresAt time.Time  // zero, or the second from which the item may be collected as garbage; it may stay for days
	Data      []byte     // JSON, at most MaxData
}

// Decode unmarshals the item's data.
func (i Item) Decode(v any) error {
	if err := json.Unmarshal(i.Data, v); err != nil {
		return fmt.Errorf("decode item %s: %w", i.Key, err)
	}
	return nil
}

// Page is the answer to a Query.
type Page struct {
	Items []Item
	More  bool // there are items in the range after these
}

// Record is what a domain package puts: it knows whether it is valid and how
// it is stored. Put calls Validate, so nothing invalid is ever written.
type Record interface {
	Validate() error
	Item() (Item, error)
}

// Cond is the condition of an op. The zero Cond is refused by Put, so that an
// unconditional put cannot be written.
type Cond struct {
	kind    condKind
	version int64
}

type condKind byte

const (
	condNone condKind = iota
	condAbsent
	condVersion
)

// Absent holds if there is no item with the key.
func Absent() Cond { return Cond{kind: condAbsent} }

// IfVersion holds if the item exists and has the version n.
func IfVersion(n int64) Cond { return Cond{condVersion, n} }

// Whatever always holds; only Delete takes it.
func Whatever() Cond { return Cond{} }

// After returns the condition for replacing an item that was read: IfVersion,
// or Absent for version 0, which no stored item has.
func After(version int64) Cond {
	if version == 0 {
		return Absent()
	}
	return IfVersion(version)
}

// IsAbsent and Version tell drivers which condition it is.
func (c Cond) IsAbsent() bool { return c.kind == condAbsent }

// Version returns the version asked for, and false if none is.
func (c Cond) Version() (int64, bool) { return c.version, c.kind == condVersion }

// OpKind tells puts, deletes and checks apart.
type OpKind byte

// The kinds of Op.
const (
	OpPut OpKind = iota + 1
	OpDelete
	OpCheck
)

// Op is one part of a Write.
type Op struct {
	kind OpKind
	item Item
	cond Cond
	err  error
}

// Put stores the record. Its version becomes 1 under Absent and n+1 under
// IfVersion(n). An invalid record makes the Write fail before anything is
// written.
func Put(r Record, c Cond) Op {
	op := Op{kind: OpPut, cond: c}
	if c.kind == condNone {
		op.err = errors.New("table: a put needs a condition")
		return op
	}
	if op.err = r.Validate(); op.err != nil {
		return op
	}
	if op.item, op.err = r.Item(); op.err != nil {
		return op
	}
	op.item, op.err = storable(op.item)
	op.item.Version = c.version + 1
	return op
}

// storable returns the item as every driver gives it back: its indexes in
// their order, its expiry in whole seconds and UTC. It refuses what not every
// driver can store.
func storable(i Item) (Item, error) {
	if len(i.Data) > MaxData {
		return i, problem.Invalid("tooLarge", "item", "is %d bytes, at most %d are stored", len(i.Data), MaxData)
	}
	if !json.Valid(i.Data) || !utf8.Valid(i.Data) {
		return i, fmt.Errorf("table: the data of %s is not JSON", i.Key)
	}
	if !i.ExpiresAt.IsZero() {
		up := i.ExpiresAt.Add(time.Second - 1)
		i.ExpiresAt = time.Unix(max(up.Unix(), 1), 0).UTC()
	}
	var entries []IndexKey
	for _, index := range Indexes() {
		for _, k := range i.Indexes {
			if k.index == index {
				entries = append(entries, k)
			}
		}
	}
	for n, k := range entries {
		if n > 0 && k.index == entries[n-1].index {
			return i, fmt.Errorf("table: %s has two entries in index %s", i.Key, k.index)
		}
		if err := k.key.Validate(); err != nil {
			return i, fmt.Errorf("index %s: %w", k.index, err)
		}
	}
	if len(entries) != len(i.Indexes) {
		return i, fmt.Errorf("table: %s has an entry in an index that does not exist", i.Key)
	}
	i.Indexes = entries
	return i, nil
}

// Delete removes the item. Deleting what is not there succeeds under Whatever.
func Delete(key Key, c Cond) Op { return Op{kind: OpDelete, item: Item{Key: key}, cond: c} }

// Check only tests the condition, which cannot be Whatever.
func Check(key Key, c Cond) Op {
	op := Op{kind: OpCheck, item: Item{Key: key}, cond: c}
	if c.kind == condNone {
		op.err = errors.New("table: a check needs a condition")
	}
	return op
}

// Kind, Item and Cond are for drivers. For deletes and checks only the item's
// key is set.
func (o Op) Kind() OpKind { return o.kind }

// Item returns what is put, or for other ops an item with the key only.
func (o Op) Item() Item { return o.item }

// Cond returns the op's condition.
func (o Op) Cond() Cond { return o.cond }

// CheckOps returns what is wrong with the ops themselves; drivers call it
// before they touch anything.
func CheckOps(ops []Op) error {
	if len(ops) == 0 || len(ops) > MaxOps {
		return fmt.Errorf("table: a write of %d ops, want 1 to %d", len(ops), MaxOps)
	}
	size := 0
	seen := make(map[Key]bool, len(ops))
	for _, op := range ops {
		if op.err != nil {
			return op.err
		}
		if err := op.item.Key.Validate(); err != nil {
			return err
		}
		if size += len(op.item.Data); size > MaxWriteData {
			return problem.Invalid("tooLarge", "write", "is over %d bytes", MaxWriteData)
		}
		if seen[op.item.Key] {
			return fmt.Errorf("table: two ops on %s in one write", op.item.Key)
		}
		seen[op.item.Key] = true
	}
	return nil
}

// ConditionError says which op's condition did not hold. It is an ErrConflict.
type ConditionError struct {
	Op  int // its place in the Write's arguments, from 0
	Key Key
}

// Error implements error.
func (e *ConditionError) Error() string {
	return fmt.Sprintf("condition of op %d (%s) does not hold", e.Op, e.Key)
}

// Unwrap makes it a problem.ErrConflict.
func (e *ConditionError) Unwrap() error { return problem.ErrConflict }

// FailedOp returns the place of the op whose condition failed, and false if
// err is not a *ConditionError.
func FailedOp(err error) (int, bool) {
	var c *ConditionError
	if errors.As(err, &c) {
		return c.Op, true
	}
	return 0, false
}

// FailedIn tells whether err is a *ConditionError about one of the ops, such as those that a
// caller has added to somebody's Write.
func FailedIn(err error, ops []Op) bool {
	var c *ConditionError
	return errors.As(err, &c) && slices.ContainsFunc(ops, func(op Op) bool { return op.item.Key == c.Key })
}
