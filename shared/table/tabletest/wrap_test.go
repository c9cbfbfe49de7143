package tabletest

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

func TestWrappersPassTheSuite(t *testing.T) {
	for name, wrap := range map[string]func(*testing.T) table.Table{
		"Counting": func(t *testing.T) table.Table { return Count(New(t)) },
		"Faulty":   func(t *testing.T) table.Table { return Fail(New(t), 0, false) },
		"Lagging":  func(t *testing.T) table.Table { return Lag(New(t), New(t), 0) },
	} {
		t.Run(name, func(t *testing.T) { Run(t, wrap) })
	}
}

func TestCount(t *testing.T) {
	c := Count(New(t))
	s := suite{t: t, Table: c, ctx: t.Context()}
	s.write(table.Put(Text(table.APIKeyKey(tenant, "a"), "a"), table.Absent()), table.Put(Text(table.APIKeyKey(tenant, "b"), "b"), table.Absent()))
	s.refused(0, table.Check(user("c"), table.IfVersion(1)))
	s.is(user("c"), "", 0)
	s.holds(table.APIKeys(tenant), "a", "b")
	if diff := cmp.Diff(Calls{Gets: 1, Queries: 1, Writes: 2, Queried: 2, Ops: 3}, c.Take()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Calls{}, c.Take()); diff != "" {
		t.Errorf("after Take: %s", diff)
	}
}

func TestFail(t *testing.T) {
	put := func(id string) table.Op { return table.Put(Text(user(id), id), table.Absent()) }
	for _, after := range []bool{false, true} {
		db := New(t)
		f := Fail(db, 2, after)
		if err := f.Write(t.Context(), put("a")); err != nil {
			t.Fatal(err)
		}
		if err := f.Write(t.Context(), put("b")); !errors.Is(err, ErrFault) || !errors.Is(err, problem.ErrUnavailable) {
			t.Errorf("after %v: got %v, want a fault", after, err)
		}
		if _, err := db.Get(t.Context(), user("b")); (err == nil) != after {
			t.Errorf("after %v: the item is there: %v", after, err == nil)
		}
		if err := f.Write(t.Context(), put("c")); err != nil || f.Calls() != 3 {
			t.Errorf("then: got %v after %d calls", err, f.Calls())
		}
		if _, err := Fail(db, 1, after).Get(t.Context(), user("a")); !errors.Is(err, ErrFault) {
			t.Errorf("get: got %v", err)
		}
		if page, err := Fail(db, 1, after).Query(t.Context(), table.APIKeys(tenant)); !errors.Is(err, ErrFault) || page.Items != nil {
			t.Errorf("query: got %v %v", page, err)
		}
	}
}

func TestLag(t *testing.T) {
	l := Lag(New(t), New(t), 1)
	s := suite{t: t, Table: l, ctx: t.Context()}
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	due := table.DueBefore(table.Shard("a", table.DueShards), at)
	s.write(table.Put(Text(user("a"), "old", table.UserDue(tenant, "a", at)), table.Absent()))
	s.holds(due)
	s.write(table.Put(Text(user("a"), "new"), table.IfVersion(1)))
	s.is(user("a"), "new", 2)
	s.holds(due, "old")
	if err := l.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.holds(due)
}
