package dynamo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
)

const tenant = table.TenantID("acme")

func user(id string) table.Key { return table.UserKey(tenant, id) }

func put(id, text string, c table.Cond) table.Op {
	return table.Put(tabletest.Text(user(id), text), c)
}

func TestSuite(t *testing.T) {
	tabletest.Run(t, func(t *testing.T) table.Table {
		client, name := newTable(t)
		return New(client, name)
	})
}

// A write whose answer is lost is tried again, and the answer to that is the
// answer to the write.
func TestLostAnswer(t *testing.T) {
	for _, c := range []struct {
		name      string
		before    []table.Op // one Write each
		op        []table.Op
		meanwhile []table.Op
		want      string // "", "refused", "unknown"
		text      string // of the user afterwards; "" is none
	}{
		{"create", nil, []table.Op{put("a", "mine", table.Absent())}, nil, "", "mine"},
		{"create, taken", []table.Op{put("a", "old", table.Absent())},
			[]table.Op{put("a", "mine", table.Absent())}, nil, "refused", "old"},
		{"create, changed since", nil, []table.Op{put("a", "mine", table.Absent())},
			[]table.Op{put("a", "theirs", table.IfVersion(1))}, "unknown", "theirs"},
		{"create, deleted since", nil, []table.Op{put("a", "mine", table.Absent())},
			[]table.Op{table.Delete(user("a"), table.IfVersion(1)), put("a", "theirs", table.Absent()), put("a", "theirs", table.IfVersion(1))}, "unknown", "theirs"},
		{"replace", []table.Op{put("a", "old", table.Absent())},
			[]table.Op{put("a", "mine", table.IfVersion(1))}, nil, "", "mine"},
		{"replace, was stale", []table.Op{put("a", "old", table.Absent()), put("a", "theirs", table.IfVersion(1))},
			[]table.Op{put("a", "mine", table.IfVersion(1))}, nil, "refused", "theirs"},
		{"replace, deleted since", []table.Op{put("a", "old", table.Absent())},
			[]table.Op{put("a", "mine", table.IfVersion(1))},
			[]table.Op{table.Delete(user("a"), table.IfVersion(2))}, "unknown", ""},
		{"delete", []table.Op{put("a", "old", table.Absent())},
			[]table.Op{table.Delete(user("a"), table.Whatever())}, nil, "", ""},
		{"delete version", []table.Op{put("a", "old", table.Absent())},
			[]table.Op{table.Delete(user("a"), table.IfVersion(1))}, nil, "unknown", ""},
		{"delete version, was stale", []table.Op{put("a", "old", table.Absent()), put("a", "theirs", table.IfVersion(1))},
			[]table.Op{table.Delete(user("a"), table.IfVersion(1))}, nil, "refused", "theirs"},
		{"transaction", []table.Op{put("a", "old", table.Absent())},
			[]table.Op{put("a", "mine", table.IfVersion(1)), put("b", "mine", table.Absent())}, nil, "", "mine"},
		{"transaction, deleting", []table.Op{put("a", "old", table.Absent())},
			[]table.Op{table.Delete(user("a"), table.IfVersion(1)), put("b", "mine", table.Absent())}, nil, "", ""},
		{"transaction, changed since", []table.Op{put("a", "old", table.Absent())},
			[]table.Op{put("a", "mine", table.IfVersion(1)), put("b", "mine", table.Absent())},
			[]table.Op{put("a", "theirs", table.IfVersion(2))}, "", "theirs"},
		{"transaction, was stale", []table.Op{put("a", "old", table.Absent())},
			[]table.Op{put("b", "mine", table.Absent()), put("a", "mine", table.IfVersion(2))}, nil, "refused", "old"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, name := newTable(t)
			others := New(client, name)
			write := func(ops []table.Op) {
				for _, op := range ops {
					if err := others.Write(t.Context(), op); err != nil {
						t.Fatal(err)
					}
				}
			}
			write(c.before)
			l := &lossy{Client: client, lose: 1, meanwhile: func() { write(c.meanwhile) }}
			err := New(l, name).Write(t.Context(), c.op...)
			got := fmt.Sprint(err)
			switch _, refused := table.FailedOp(err); {
			case err == nil:
				got = ""
			case refused:
				got = "refused"
			case errors.Is(err, problem.ErrUnavailable) && strings.Contains(err.Error(), "answer to the write was lost"):
				got = "unknown"
			}
			if got != c.want {
				t.Errorf("got %q (%v), want %q", got, err, c.want)
			}
			text := ""
			if item, err := others.Get(t.Context(), user("a")); err == nil {
				_ = item.Decode(&text)
			}
			if text != c.text {
				t.Errorf("the item holds %q, want %q", text, c.text)
			}
		})
	}
}

func TestStats(t *testing.T) {
	client, name := newTable(t)
	db := New(client, name)
	ctx := t.Context()
	var ops []table.Op
	for i := range 30 {
		ops = append(ops, table.Put(tabletest.Text(table.APIKeyKey(tenant, fmt.Sprintf("%02d", i)), strings.Repeat("x", 500)), table.Absent()))
	}
	if err := errors.Join(db.Write(ctx, ops[0]), db.Write(ctx, ops[1:]...)); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Get(ctx, table.APIKeyKey(tenant, "00")); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Query(ctx, table.APIKeys(tenant).Limit(25)); err != nil {
		t.Fatal(err)
	}
	got := db.Stats()
	want := Stats{Gets: 1, Queries: 1, Writes: 1, Transactions: 1, ReadUnits: 1 + 4, WriteUnits: 1}
	if diff := cmp.Diff(want, got); diff != "" { // a query of 26 items of 550 bytes reads 4 times 4 KB
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWrongTable(t *testing.T) {
	client, _ := newTable(t)
	db := New(client, "no-such-table")
	_, getErr := db.Get(t.Context(), user("a"))
	_, queryErr := db.Query(t.Context(), table.APIKeys(tenant))
	for _, err := range []error{getErr, queryErr, db.Write(t.Context(), put("a", "x", table.Absent()))} {
		if err == nil || errors.Is(err, problem.ErrNotFound) || !strings.Contains(err.Error(), `there is no table "no-such-table"`) {
			t.Errorf("got %v", err)
		}
	}
}

// A Get must not take long to say that nobody is there.
func TestNoServer(t *testing.T) {
	db := New(newClient("http://127.0.0.1:1"), "table")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := db.Get(ctx, user("a"))
	if !errors.Is(err, problem.ErrUnavailable) || !strings.Contains(err.Error(), "gave up after") || time.Since(start) > 10*time.Second {
		t.Errorf("got %v after %v", err, time.Since(start))
	}
}
