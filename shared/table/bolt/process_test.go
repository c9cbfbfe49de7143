//go:build unix

package bolt_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/tabletest"
)

// The test binary starts itself again as another process with a table file.
const (
	childRole = "BOLT_TEST_CHILD"
	childPath = "BOLT_TEST_PATH"
)

func TestMain(m *testing.M) {
	role, ok := map[string]func(path string) error{"hold": holdFile, "write": writeOn, "full": fillDisk}[os.Getenv(childRole)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := role(os.Getenv(childPath)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child(t *testing.T, role, path string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childRole+"="+role, childPath+"="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

func holdFile(path string) error {
	db, err := bolt.Open(path)
	if err != nil {
		return err
	}
	fmt.Println("open")
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, db.Close())
}

func TestSecondProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table")
	cmd := child(t, "hold", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, err := bolt.Open(path); !errors.Is(err, bolt.ErrLocked) || !strings.Contains(err.Error(), path+": another process has the table file open") {
		t.Errorf("got %v, want ErrLocked", err)
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

const (
	crashWriters = 4
	keptLookups  = 3
)

var crashDay = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// writeOn goes on where an earlier process was killed. Each transaction of a
// writer replaces its user, which moves in two indexes, adds an audit record
// and a lookup, and deletes an old lookup; then it is reported.
func writeOn(path string) error {
	db, err := bolt.Open(path)
	if err != nil {
		return err
	}
	ctx := context.Background() // until killed
	var wg sync.WaitGroup
	errs := make([]error, crashWriters)
	for w := range crashWriters {
		wg.Go(func() {
			id := fmt.Sprint(w)
			for {
				item, err := db.Get(ctx, user(id))
				if err != nil && !errors.Is(err, problem.ErrNotFound) {
					errs[w] = err
					return
				}
				n := item.Version + 1
				name := fmt.Sprintf("%s-%06d", id, n)
				lookup := tabletest.Text(table.LookupKey(tenant, name), name)
				lookup.ExpiresAt = crashDay.Add(time.Duration(n) * time.Second)
				err = db.Write(ctx,
					put(id, name, table.After(n-1), table.UserListed(tenant, name, id), table.UserDue(tenant, id, crashDay.Add(time.Duration(n)*time.Second))),
					table.Put(tabletest.Text(table.AuditKey(tenant, crashDay, name), name, table.AuditSubject(tenant, id, name)), table.Absent()),
					table.Put(lookup, table.Absent()),
					table.Delete(table.LookupKey(tenant, fmt.Sprintf("%s-%06d", id, n-keptLookups)), table.Whatever()),
				)
				if err != nil {
					errs[w] = err
					return
				}
				fmt.Printf("%d %d\n", w, n)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// However a process ends, the file holds what was acknowledged, each Write
// whole or not at all, and the indexes agree with the items.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table")
	acknowledged := make([]int64, crashWriters)
	const rounds = 30
	for range rounds {
		cmd := child(t, "write", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(rand.N(100*time.Millisecond), func() { _ = cmd.Process.Kill() })
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var w int
			var n int64
			if _, err := fmt.Sscanf(lines.Text(), "%d %d", &w, &n); err != nil {
				continue // cut off
			}
			acknowledged[w] = n
		}
		_ = cmd.Wait()
		db := open(t, path)
		checkKilled(t, db, acknowledged)
		if err := db.Close(); err != nil || t.Failed() {
			t.Fatal(err)
		}
	}
	t.Logf("acknowledged: %v in %d rounds", acknowledged, rounds)
}

func checkKilled(t *testing.T, db *bolt.DB, acknowledged []int64) {
	t.Helper()
	ctx := t.Context()
	dump, err := db.Dump()
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for w, least := range acknowledged {
		id := fmt.Sprint(w)
		item, err := db.Get(ctx, user(id))
		if err != nil && !errors.Is(err, problem.ErrNotFound) {
			t.Fatal(err)
		}
		n := item.Version
		if n < least || n > least+1 { // the last may not have been reported
			t.Errorf("writer %d is at %d, acknowledged %d", w, n, least)
		}
		for i := int64(1); i <= n; i++ {
			name := fmt.Sprintf("%s-%06d", id, i)
			if _, err := db.Get(ctx, table.AuditKey(tenant, crashDay, name)); err != nil {
				t.Errorf("half a write: %v", err)
			}
			if _, err := db.Get(ctx, table.LookupKey(tenant, name)); (err == nil) != (i > n-keptLookups) {
				t.Errorf("half a write: lookup %s of %d: %v", name, n, err)
			}
		}
		if n > 0 {
			lookups := int(min(n, keptLookups))
			total += 3 + 2*int(n) + 2*lookups // each with its entries
		}
		acknowledged[w] = n
	}
	if len(dump) != total {
		t.Errorf("%d items and entries, want %d", len(dump), total)
	}
}

// fillDisk writes until the file may not grow, goes on reading and, once there
// is room again, writing.
func fillDisk(path string) error {
	ctx := context.Background()
	signal.Ignore(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	setLimit := func(n uint64) error {
		return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: limit.Max})
	}
	db, err := bolt.Open(path)
	if err != nil {
		return err
	}
	written := 0
	text := strings.Repeat("x", 50_000)
	write := func() error {
		id := fmt.Sprint(written)
		return db.Write(ctx, put(id, text, table.Absent(), table.UserListed(tenant, id, id)), put("last", id, table.After(int64(written))))
	}
	// First the file cannot grow, then what there is of it cannot be written.
	for _, room := range []uint64{1 << 20, 64 << 10, 8 << 10, 4 << 10} {
		if err := setLimit(room); err != nil {
			return err
		}
		for err = nil; err == nil && written < 1000; {
			if err = write(); err == nil {
				written++
			}
		}
		if !errors.Is(err, problem.ErrUnavailable) || !strings.Contains(err.Error(), "file too large") {
			return fmt.Errorf("room %d: got %w, want an ErrUnavailable that says why", room, err)
		}
		for range 3 { // other free pages may be found to do
			if err := write(); err == nil {
				written++
			} else if !errors.Is(err, problem.ErrUnavailable) {
				return fmt.Errorf("room %d, again: got %w", room, err)
			}
		}
		item, err := db.Get(ctx, user("last"))
		if err != nil || item.Version != int64(written) {
			return fmt.Errorf("room %d: the last of %d writes is %d: %w", room, written, item.Version, err)
		}
		if dump, err := db.Dump(); err != nil || len(dump) != 2*written+1 {
			return fmt.Errorf("room %d: %d items and entries after %d writes: %w", room, len(dump), written, err)
		}
		if err := setLimit(limit.Cur); err != nil {
			return err
		}
		if err := write(); err != nil {
			return fmt.Errorf("room %d, with room again: %w", room, err)
		}
		written++
		if err := db.Close(); err != nil {
			return err
		}
		if db, err = bolt.Open(path); err != nil {
			return err
		}
	}
	fmt.Println(written, "writes")
	return db.Close()
}

func TestFullDisk(t *testing.T) {
	cmd := child(t, "full", filepath.Join(t.TempDir(), "table"))
	if out, err := cmd.Output(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
