package bolt_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/tabletest"
)

const tenant = table.TenantID("acme")

func user(id string) table.Key { return table.UserKey(tenant, id) }

func put(id, text string, c table.Cond, indexes ...table.IndexKey) table.Op {
	return table.Put(tabletest.Text(user(id), text, indexes...), c)
}

func open(tb testing.TB, path string, opts ...bolt.Option) *bolt.DB {
	tb.Helper()
	db, err := bolt.Open(path, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

func TestSuite(t *testing.T) {
	tabletest.Run(t, func(t *testing.T) table.Table { return open(t, filepath.Join(t.TempDir(), "table")) })
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "table")
	db := open(t, path)
	if err := db.Write(t.Context(), put("a", "a", table.Absent())); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("got %v, want the table file only", files)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Write(t.Context(), put("b", "b", table.Absent())); err == nil {
		t.Error("a write after Close succeeded")
	}
	if _, err := db.Get(t.Context(), user("a")); err == nil || errors.Is(err, problem.ErrNotFound) {
		t.Errorf("a get after Close: got %v", err)
	}
	if _, err := open(t, path).Get(t.Context(), user("a")); err != nil {
		t.Errorf("after opening again: %v", err)
	}
	if _, err := bolt.Open(filepath.Join(dir, "none", "table")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in a folder that is not there: got %v", err)
	}
}

func TestCollect(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "table"))
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var ops []table.Op
	for i := range 1300 {
		id := fmt.Sprint(i)
		r := tabletest.Text(user(id), id, table.UserListed(tenant, id, id), table.UserDue(tenant, id, now))
		switch {
		case i < 1200:
			r.ExpiresAt = now.Add(-time.Duration(i) * time.Minute)
		case i < 1250:
			r.ExpiresAt = now.Add(time.Nanosecond)
		}
		ops = append(ops, table.Put(r, table.Absent()))
	}
	for len(ops) > 0 {
		if err := db.Write(t.Context(), ops[:100]...); err != nil {
			t.Fatal(err)
		}
		ops = ops[100:]
	}
	// An item whose expiry was moved or lifted is not collected by the old one.
	if err := db.Write(t.Context(), put("0", "stays", table.IfVersion(1))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		at   time.Time
		want int
	}{{now.AddDate(-1, 0, 0), 0}, {now, 1199}, {now, 0}, {now.Add(time.Second), 50}, {now.AddDate(9, 0, 0), 0}} {
		if n, err := db.Collect(t.Context(), c.at); n != c.want || err != nil {
			t.Errorf("collect at %v: got %d %v, want %d", c.at, n, err, c.want)
		}
	}
	dump, err := db.Dump()
	if err != nil {
		t.Error(err)
	}
	if len(dump) != 51+2*50 { // 51 items, two entries for each but the one without
		t.Errorf("%d items and entries are left, want 151", len(dump))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := db.Collect(ctx, now); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

// Writers that share a transaction get their own results.
func TestManyWriters(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "table"))
	const writers = 1000
	results := make([]error, writers)
	release := db.Hold()
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			id, text := fmt.Sprint(i/2), fmt.Sprint(i)
			results[i] = db.Write(t.Context(), put(id, text, table.Absent(), table.UserListed(tenant, text, id)),
				table.Check(user("none"), table.Absent()))
		})
	}
	time.Sleep(50 * time.Millisecond)
	release()
	wg.Wait()
	for i := 0; i < writers; i += 2 {
		winner := i
		if results[i] != nil {
			winner = i + 1
		}
		at, refused := table.FailedOp(results[2*i+1-winner])
		if results[winner] != nil || !refused || at != 0 {
			t.Fatalf("got %v and %v, want a winner and a refusal of op 0", results[i], results[i+1])
		}
		item, err := db.Get(t.Context(), user(fmt.Sprint(i/2)))
		if want := fmt.Sprintf("%q", fmt.Sprint(winner)); err != nil || string(item.Data) != want {
			t.Fatalf("got %s %v, want %s", item.Data, err, want)
		}
	}
	if _, err := db.Dump(); err != nil {
		t.Error(err)
	}
}

func TestContextWhileWaiting(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "table"))
	release := db.Hold()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := db.Write(ctx, put("a", "a", table.Absent())); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	release()
	if err := db.Write(t.Context(), put("b", "b", table.Absent())); err != nil {
		t.Error(err)
	}
	if _, err := db.Get(t.Context(), user("a")); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("the write that was given up: got %v, want not found", err)
	}
}

// filled returns a table file that has used and freed pages of all kinds.
func filled(t *testing.T) (path string) {
	path = filepath.Join(t.TempDir(), "table")
	db := open(t, path)
	for i := range 40 {
		var ops []table.Op
		for j := range 20 {
			id := fmt.Sprint(i, "-", j)
			ops = append(ops, put(id, strings.Repeat("x", 10*i), table.Absent(), table.UserListed(tenant, id, id)))
		}
		if i == 20 {
			ops = append(ops, put("big", strings.Repeat("big", 5000), table.Absent()))
		}
		if err := db.Write(t.Context(), ops...); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Write(t.Context(), table.Delete(user("big"), table.IfVersion(1)), table.Delete(user("7-7"), table.IfVersion(1))); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}
