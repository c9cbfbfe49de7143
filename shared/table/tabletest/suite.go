// Package tabletest holds what tests of and on tables need: Run, the suite
// that every driver passes, so that what works on one works on all; New, a
// table to test on; and wrappers that count, fail and lag over any table.
package tabletest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
)

// New returns an empty table that ends with the test.
func New(tb testing.TB) *bolt.DB {
	tb.Helper()
	db, err := bolt.Open(filepath.Join(tb.TempDir(), "table"), bolt.NoSync())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

// Record is a table.Record made of what it stores. Its Version is ignored.
type Record table.Item

// Validate refuses a record without data.
func (r Record) Validate() error {
	if r.Data == nil {
		return problem.Invalid("empty", "data", "is missing")
	}
	return nil
}

// Item implements table.Record.
func (r Record) Item() (table.Item, error) { return table.Item(r), nil }

// Text returns a record that holds a string.
func Text(key table.Key, text string, indexes ...table.IndexKey) Record {
	data, err := json.Marshal(text)
	if err != nil {
		panic(err) // a string marshals
	}
	return Record{Key: key, Data: data, Indexes: indexes}
}

// Run holds a driver to the contract of table.Table. open returns an empty
// table for the test it is given. Reads of indexes must not lag, or open
// returns a table that waits for them.
func Run(t *testing.T, open func(t *testing.T) table.Table) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, s suite)
	}{
		{"Conditions", testConditions},
		{"AllOrNothing", testAllOrNothing},
		{"Refused", testRefused},
		{"ReadBack", testReadBack},
		{"Indexes", testIndexes},
		{"Ranges", testRanges},
		{"Paging", testPaging},
		{"OddKeys", testOddKeys},
		{"OverlongKeys", testOverlongKeys},
		{"Tenants", testTenants},
		{"Big", testBig},
		{"Concurrent", testConcurrent},
		{"Context", testContext},
		{"Merge", testMerge},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.run(t, suite{t: t, Table: open(t), ctx: t.Context()})
		})
	}
}

// suite is a table whose calls fail the test where they should not fail.
type suite struct {
	table.Table
	t   *testing.T
	ctx context.Context
}

const tenant = table.TenantID("acme")

func (s suite) write(ops ...table.Op) {
	s.t.Helper()
	if err := s.Write(s.ctx, ops...); err != nil {
		s.t.Fatal(err)
	}
}

// refused expects that the op at a place is named as the one that failed.
func (s suite) refused(want int, ops ...table.Op) {
	s.t.Helper()
	err := s.Write(s.ctx, ops...)
	if got, ok := table.FailedOp(err); !ok || got != want || !errors.Is(err, problem.ErrConflict) {
		s.t.Errorf("got %v, want a refusal of op %d", err, want)
	}
}

// is expects a text and a version at a key; version 0 is no item.
func (s suite) is(key table.Key, text string, version int64) {
	s.t.Helper()
	item, err := s.Get(s.ctx, key)
	if version == 0 {
		if !errors.Is(err, problem.ErrNotFound) {
			s.t.Errorf("%s: got %v %v, want not found", key, item, err)
		}
		return
	}
	if err != nil {
		s.t.Fatal(err)
	}
	var got string
	if err := item.Decode(&got); err != nil || got != text || item.Version != version {
		s.t.Errorf("%s: got %q version %d (%v), want %q version %d", key, got, item.Version, err, text, version)
	}
}

// texts returns what a range holds.
func (s suite) texts(r table.Range) (texts []string, more bool) {
	s.t.Helper()
	page, err := s.Query(s.ctx, r)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, item := range page.Items {
		var text string
		if err := item.Decode(&text); err != nil {
			s.t.Fatal(err)
		}
		texts = append(texts, text)
	}
	return texts, page.More
}

func (s suite) holds(r table.Range, want ...string) {
	s.t.Helper()
	got, more := s.texts(r)
	if diff := cmp.Diff(want, got); diff != "" || more {
		s.t.Errorf("range %+v (more %v), -want +got:\n%s", r.Spec(), more, diff)
	}
}

func user(id string) table.Key { return table.UserKey(tenant, id) }

func testConditions(t *testing.T, s suite) {
	a := user("a")
	s.is(a, "", 0)
	s.refused(0, table.Put(Text(a, "no"), table.IfVersion(1)))
	s.refused(0, table.Delete(a, table.IfVersion(1)))
	s.refused(0, table.Check(a, table.IfVersion(1)))
	s.write(table.Check(a, table.Absent()))
	s.write(table.Delete(a, table.Whatever()))
	s.write(table.Delete(a, table.Absent()))
	s.is(a, "", 0)

	s.write(table.Put(Text(a, "one"), table.Absent()))
	s.is(a, "one", 1)
	s.refused(0, table.Put(Text(a, "no"), table.Absent()))
	s.refused(0, table.Check(a, table.Absent()))
	s.refused(0, table.Delete(a, table.Absent()))
	s.refused(0, table.Put(Text(a, "no"), table.IfVersion(2)))
	s.refused(0, table.Delete(a, table.IfVersion(2)))
	s.is(a, "one", 1)
	s.write(table.Check(a, table.IfVersion(1)))

	s.write(table.Put(Text(a, "two"), table.IfVersion(1)))
	s.write(table.Put(Text(a, "three"), table.After(2)))
	s.is(a, "three", 3)
	s.refused(0, table.Put(Text(a, "no"), table.IfVersion(2)))
	s.write(table.Delete(a, table.IfVersion(3)))
	s.is(a, "", 0)
	s.write(table.Put(Text(a, "again"), table.After(0)))
	s.is(a, "again", 1)
	s.write(table.Delete(a, table.Whatever()))
	s.is(a, "", 0)
}

func testAllOrNothing(t *testing.T, s suite) {
	s.write(table.Put(Text(user("there"), "there"), table.Absent()))
	good := []table.Op{
		table.Put(Text(user("0"), "x", table.UserListed(tenant, "0", "0")), table.Absent()),
		table.Put(Text(user("there"), "changed"), table.IfVersion(1)),
		table.Delete(user("1"), table.Absent()),
		table.Check(user("2"), table.Absent()),
	}
	bad := map[string]table.Op{
		"put absent":     table.Put(Text(user("taken"), "no"), table.Absent()),
		"put version":    table.Put(Text(user("taken"), "no"), table.IfVersion(9)),
		"put missing":    table.Put(Text(user("none"), "no"), table.IfVersion(1)),
		"delete version": table.Delete(user("taken"), table.IfVersion(9)),
		"check absent":   table.Check(user("taken"), table.Absent()),
		"check version":  table.Check(user("taken"), table.IfVersion(9)),
		"check missing":  table.Check(user("none"), table.IfVersion(1)),
	}
	s.write(table.Put(Text(user("taken"), "taken"), table.Absent()))
	for name, op := range bad {
		for at := range len(good) + 1 {
			s.refused(at, slices.Insert(slices.Clone(good), at, op)...)
			s.is(user("0"), "", 0)
			s.is(user("there"), "there", 1)
			s.is(user("taken"), "taken", 1)
			if t.Failed() {
				t.Fatalf("%s at %d", name, at)
			}
		}
	}
	s.refused(1, good[0], bad["put absent"], good[2], bad["check missing"])

	s.write(good...)
	s.is(user("0"), "x", 1)
	s.is(user("there"), "changed", 2)

	// A move: one key goes, another comes, in the same index place.
	listed := table.UserListed(tenant, "0", "0")
	s.write(table.Delete(user("0"), table.IfVersion(1)), table.Put(Text(user("moved"), "moved", listed), table.Absent()))
	s.holds(table.Users(tenant, "0")[table.Shard("0", table.ListShards)], "moved")

	var many []table.Op
	for i := range table.MaxOps {
		many = append(many, table.Put(Text(user(fmt.Sprint("many", i)), "m"), table.Absent()))
	}
	s.write(many...)
	s.refused(table.MaxOps-1, append(checks(table.MaxOps-1), many[0])...)
}

func checks(n int) []table.Op {
	ops := make([]table.Op, n)
	for i := range ops {
		ops[i] = table.Check(user(fmt.Sprint("absent", i)), table.Absent())
	}
	return ops
}

func testRefused(t *testing.T, s suite) {
	fine := table.Put(Text(user("fine"), "x"), table.Absent())
	long := strings.Repeat("x", table.MaxPartition)
	for name, ops := range map[string][]table.Op{
		"no op":             nil,
		"too many":          checks(table.MaxOps + 1),
		"a key twice":       {fine, table.Check(user("fine"), table.Absent())},
		"no condition":      {fine, table.Put(Text(user("b"), "x"), table.Whatever())},
		"pointless check":   {fine, table.Check(user("b"), table.Whatever())},
		"invalid record":    {fine, table.Put(Record{Key: user("b")}, table.Absent())},
		"not JSON":          {fine, table.Put(Record{Key: user("b"), Data: []byte("{")}, table.Absent())},
		"no key":            {fine, table.Put(Record{Data: []byte("1")}, table.Absent())},
		"empty sort key":    {fine, table.Put(Text(table.AuditKey(tenant, time.Time{}, ""), "x"), table.Absent())},
		"long key":          {fine, table.Delete(user(long), table.Whatever())},
		"long index key":    {fine, table.Put(Text(user("b"), "x", table.AuditSubject(tenant, long, "1")), table.Absent())},
		"two of an index":   {fine, table.Put(Text(user("b"), "x", table.TenantListed("a"), table.TenantListed("b")), table.Absent())},
		"index not ours":    {fine, table.Put(Text(user("b"), "x", table.IndexKey{}), table.Absent())},
		"too large":         {fine, table.Put(Text(user("b"), strings.Repeat("x", table.MaxData)), table.Absent())},
		"too large in all":  append(bigPuts(12), fine),
		"key with a NUL":    {fine, table.Put(Text(table.AuditKey(tenant, time.Time{}, "a\x00b"), "x"), table.Absent())},
		"key not in UTF-8":  {fine, table.Put(Text(table.AuditKey(tenant, time.Time{}, "a\xff"), "x"), table.Absent())},
		"data not in UTF-8": {fine, table.Put(Record{Key: user("b"), Data: []byte("\"\xff\"")}, table.Absent())},
	} {
		if err := s.Write(s.ctx, ops...); err == nil {
			t.Errorf("%s: was written", name)
		}
		s.is(user("fine"), "", 0)
	}
	var invalid *problem.InvalidError
	err := s.Write(s.ctx, fine, table.Put(Text(user("b"), strings.Repeat("x", table.MaxData)), table.Absent()))
	if !errors.As(err, &invalid) {
		t.Errorf("too large: got %v, want an InvalidError", err)
	}
}

func bigPuts(n int) []table.Op {
	ops := make([]table.Op, n)
	for i := range ops {
		ops[i] = table.Put(Text(user(fmt.Sprint("big", i)), strings.Repeat("x", table.MaxData-2)), table.Absent())
	}
	return ops
}

func testReadBack(t *testing.T, s suite) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))
	put := Record{
		Key:       user("a"),
		Data:      []byte(`{"a": [1, 2.50, null], "b":"\u0000\"é\ud83d\ude00"}`),
		ExpiresAt: at,
		Indexes: []table.IndexKey{
			table.AuditSubject(tenant, "sub/ject", "01"),
			table.UserDue(tenant, "a", at),
			table.UserListed(tenant, "nämé%/", "a"),
		},
	}
	want := table.Item(put)
	want.Version = 1
	want.ExpiresAt = time.Date(2030, 1, 2, 2, 4, 6, 0, time.UTC)
	want.Indexes = []table.IndexKey{put.Indexes[1], put.Indexes[2], put.Indexes[0]}
	given := slices.Clone(put.Indexes)

	s.write(table.Put(put, table.Absent()))
	compare := cmp.AllowUnexported(table.Key{}, table.IndexKey{})
	if diff := cmp.Diff(given, put.Indexes, compare); diff != "" {
		t.Errorf("the record was changed:\n%s", diff)
	}
	got, err := s.Get(s.ctx, put.Key)
	if diff := cmp.Diff(want, got, compare); diff != "" || err != nil {
		t.Errorf("get (%v), -want +got:\n%s", err, diff)
	}
	for _, r := range []table.Range{
		table.DueBefore(table.Shard("a", table.DueShards), at.Add(time.Hour)),
		table.Users(tenant, "nämé%/")[table.Shard("a", table.ListShards)],
		table.AuditOf(tenant, "sub/ject"),
	} {
		page, err := s.Query(s.ctx, r)
		if diff := cmp.Diff(table.Page{Items: []table.Item{want}}, page, compare); diff != "" || err != nil {
			t.Errorf("query %+v (%v), -want +got:\n%s", r.Spec(), err, diff)
		}
	}
	plain := Record{Key: user("b"), Data: []byte("0")}
	s.write(table.Put(plain, table.Absent()))
	want = table.Item(plain)
	want.Version = 1
	got, err = s.Get(s.ctx, plain.Key)
	if diff := cmp.Diff(want, got, compare); diff != "" || err != nil {
		t.Errorf("plain (%v), -want +got:\n%s", err, diff)
	}
}

func testIndexes(t *testing.T, s suite) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	due := table.DueBefore(table.Shard("a", table.DueShards), at)
	list := table.Users(tenant, "")[table.Shard("a", table.ListShards)]
	put := func(text string, version int64, indexes ...table.IndexKey) {
		t.Helper()
		s.write(table.Put(Text(user("a"), text, indexes...), table.After(version)))
	}
	put("plain", 0)
	s.holds(due)
	put("due", 1, table.UserDue(tenant, "a", at))
	s.holds(due, "due")
	s.holds(list)
	put("both", 2, table.UserListed(tenant, "a", "a"), table.UserDue(tenant, "a", at.Add(-time.Hour)))
	s.holds(due, "both")
	s.holds(list, "both")
	put("later", 3, table.UserListed(tenant, "b", "a"), table.UserDue(tenant, "a", at.Add(time.Hour)))
	s.holds(due)
	s.holds(list, "later")
	put("none", 4)
	s.holds(list)
	put("back", 5, table.UserListed(tenant, "b", "a"))
	s.holds(list, "back")
	s.refused(0, table.Put(Text(user("a"), "no", table.UserDue(tenant, "a", at)), table.IfVersion(1)))
	s.holds(due)
	s.write(table.Delete(user("a"), table.IfVersion(6)))
	s.holds(list)
}

func testRanges(t *testing.T, s suite) {
	for _, id := range []string{"a", "b", "ba", "c", "d"} {
		s.write(table.Put(Text(table.APIKeyKey(tenant, id), id), table.Absent()))
	}
	s.write(
		table.Put(Text(table.TenantKey(tenant), "tenant"), table.Absent()),
		table.Put(Text(table.PolicyKey(tenant), "policy"), table.Absent()),
		table.Put(Text(table.MessagingKey(tenant, "m"), "messaging"), table.Absent()),
		table.Put(Text(table.PolicyVersionKey(tenant, 2), "v2"), table.Absent()),
		table.Put(Text(table.PolicyVersionKey(tenant, 10), "v10"), table.Absent()),
	)
	keys := table.APIKeys(tenant)
	s.holds(keys, "a", "b", "ba", "c", "d")
	s.holds(keys.Descending(), "d", "c", "ba", "b", "a")
	s.holds(table.TenantCore(tenant), "policy", "tenant")
	s.holds(table.PolicyVersions(tenant), "v2", "v10")
	s.holds(keys.Limit(5), "a", "b", "ba", "c", "d")
	for _, c := range []struct {
		r    table.Range
		want []string
		more bool
	}{
		{keys.Limit(1), []string{"a"}, true},
		{keys.Limit(4), []string{"a", "b", "ba", "c"}, true},
		{keys.Descending().Limit(4), []string{"d", "c", "ba", "b"}, true},
		{keys.Beyond("key/b"), []string{"ba", "c", "d"}, false},
		{keys.Beyond("key/b").Limit(1), []string{"ba"}, true},
		{keys.Beyond("key/b").Limit(3), []string{"ba", "c", "d"}, false},
		{keys.Beyond("key/bb"), []string{"c", "d"}, false},
		{keys.Beyond("key/d"), nil, false},
		{keys.Beyond("zzz"), nil, false},
		{keys.Beyond("a"), []string{"a", "b", "ba", "c", "d"}, false},
		{keys.Descending().Beyond("key/ba"), []string{"b", "a"}, false},
		{keys.Descending().Beyond("key/ba").Limit(1), []string{"b"}, true},
		{keys.Descending().Beyond("key/ba").Limit(2), []string{"b", "a"}, false},
		{keys.Descending().Beyond("key/bb").Limit(1), []string{"ba"}, true},
		{keys.Descending().Beyond("key/a"), nil, false},
		{keys.Descending().Beyond("a"), nil, false},
		{keys.Descending().Beyond("zzz").Limit(2), []string{"d", "c"}, true},
		{keys.Limit(3).Beyond("key/a").Beyond("key/c"), []string{"d"}, false},
	} {
		got, more := s.texts(c.r)
		if diff := cmp.Diff(c.want, got); diff != "" || more != c.more {
			t.Errorf("range %+v: more %v, want %v; -want +got:\n%s", c.r.Spec(), more, c.more, diff)
		}
	}
}

// pages reads a range to its end and returns what it holds. between is called
// after each page.
func (s suite) pages(r table.Range, size int, between func()) (texts []string) {
	s.t.Helper()
	place := ""
	for {
		page, err := s.Query(s.ctx, r.Limit(size).Beyond(place))
		if err != nil {
			s.t.Fatal(err)
		}
		if page.More && len(page.Items) != size || len(page.Items) > size {
			s.t.Fatalf("a page of %d items, want %d", len(page.Items), size)
		}
		for _, item := range page.Items {
			var text string
			if err := item.Decode(&text); err != nil {
				s.t.Fatal(err)
			}
			texts = append(texts, text)
			place = r.Place(item)
		}
		if !page.More {
			return texts
		}
		between()
	}
}

func testPaging(t *testing.T, s suite) {
	day := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var want []string
	add := func(id string) table.Op {
		return table.Put(Text(table.AuditKey(tenant, day, id), id, table.AuditSubject(tenant, "s", id)), table.Absent())
	}
	var ops []table.Op
	for i := range 260 {
		id := fmt.Sprintf("%03d", i)
		want = append(want, id)
		ops = append(ops, add(id))
	}
	// The neighbours must not show.
	ops = append(ops, table.Put(Text(table.AuditKey(tenant, day.AddDate(0, 0, 1), "0"), "no", table.AuditSubject(tenant, "s0", "0")), table.Absent()))
	for chunk := range slices.Chunk(ops, table.MaxOps) {
		s.write(chunk...)
	}
	backwards := slices.Clone(want)
	slices.Reverse(backwards)
	for _, r := range []table.Range{table.AuditDay(tenant, day), table.AuditOf(tenant, "s")} {
		for _, size := range []int{26, 130, 259, 260, 261, table.MaxLimit} {
			if diff := cmp.Diff(want, s.pages(r, size, func() {})); diff != "" {
				t.Errorf("pages of %d of %+v, -want +got:\n%s", size, r.Spec(), diff)
			}
			if diff := cmp.Diff(backwards, s.pages(r.Descending(), size, func() {})); diff != "" {
				t.Errorf("pages of %d of %+v, -want +got:\n%s", size, r.Spec(), diff)
			}
		}
	}
	// Items that come while pages are read neither hide nor repeat others, and
	// those that come after the place are read.
	n := 0
	got := s.pages(table.AuditDay(tenant, day), 20, func() {
		s.write(add(fmt.Sprintf("000+%02d", n)), add(fmt.Sprintf("259+%02d", n)))
		n++
	})
	for i := 1; i < len(got); i++ {
		if got[i-1] >= got[i] {
			t.Errorf("%s before %s", got[i-1], got[i])
		}
	}
	for _, id := range want {
		if !slices.Contains(got, id) {
			t.Errorf("%s is missing", id)
		}
	}
	if !slices.Contains(got, "259+00") || slices.Contains(got, "000+00") {
		t.Errorf("of those that came meanwhile, got %v", got)
	}
}

// odd are components of keys that somebody might choose. U+FFFF is not among
// them: dynalite compares the ends of a range as UTF-16, and after it come
// surrogates.
var odd = []string{
	"", " ", "a", "A", "%", "%2F", "/", "//", "a/b", "a%2Fb", "a%00", "a\x00", "a\x00b", "\x01", "a\x01", "\x7f", "~",
	"\u0080", "é", "e\u0301", "ê", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\ufffd", "😀", "\U0010FFFF",
	"\U0010FFFF\U0010FFFF", "a\U0010FFFF", "\xff", "\xfe", "a\xff", "\xc3", "\xff\xff",
}

func testOddKeys(t *testing.T, s suite) {
	for i, name := range odd {
		id := fmt.Sprint(i)
		s.write(
			table.Put(Text(table.UsernameKey(tenant, name), name), table.Absent()),
			table.Put(Text(user(id), id, table.UserListed(tenant, name, id)), table.Absent()),
		)
	}
	for _, name := range odd {
		want, _ := json.Marshal(name)
		item, err := s.Get(s.ctx, table.UsernameKey(tenant, name))
		if err != nil || string(item.Data) != string(want) {
			t.Errorf("username %q: got %s %v", name, item.Data, err)
		}
	}
	for _, prefix := range odd {
		if strings.Contains(prefix, "\xc3") && !strings.Contains(prefix, "é") {
			continue // half a rune is no prefix of the whole
		}
		var want []string
		for i, name := range odd {
			if strings.HasPrefix(name, prefix) {
				want = append(want, fmt.Sprint(i))
			}
		}
		page, _, err := table.Merge(s.ctx, s, table.Users(tenant, prefix), table.MaxLimit, "")
		var got []string
		for _, item := range page.Items {
			var id string
			_ = item.Decode(&id)
			got = append(got, id)
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("names that start with %q (%v), -want +got:\n%s", prefix, err, diff)
		}
	}
}

func testOverlongKeys(t *testing.T, s suite) {
	long := strings.Repeat("x", table.MaxPartition)
	if _, err := s.Get(s.ctx, table.UsernameKey(tenant, long)); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("get: got %v, want not found", err)
	}
	if _, err := s.Get(s.ctx, table.AuditKey(tenant, time.Time{}, "")); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("get without a sort key: got %v, want not found", err)
	}
	for _, r := range []table.Range{
		table.AuditOf(tenant, long),
		table.Users(tenant, long)[0],
		table.APIKeys(tenant).Beyond("key/" + long),
		table.APIKeys(tenant).Beyond("key/\xff"),
		table.APIKeys(tenant).Beyond("key/\x00"),
	} {
		var invalid *problem.InvalidError
		if _, err := s.Query(s.ctx, r); !errors.As(err, &invalid) {
			t.Errorf("query: got %v, want an InvalidError", err)
		}
	}
	// The longest there may be.
	ulid := strings.Repeat("x", table.MaxSort)
	s.write(table.Put(Text(table.AuditKey(tenant, time.Time{}, ulid), "long", table.AuditSubject(tenant, "s", ulid)), table.Absent()))
	s.holds(table.AuditDay(tenant, time.Time{}), "long")
	s.holds(table.AuditOf(tenant, "s").Beyond(ulid))
	s.holds(table.AuditOf(tenant, "s").Descending().Beyond(ulid))
}

func testTenants(t *testing.T, s suite) {
	// Names that would run into one another without escapes.
	tenants := []table.TenantID{"a", "a/user", "a%2Fuser", "aa", "a/", table.Platform}
	for _, id := range tenants {
		text := string(id)
		s.write(
			table.Put(Text(table.UserKey(id, "x"), text, table.UserListed(id, "x", "x")), table.Absent()),
			table.Put(Text(table.APIKeyKey(id, "x"), text), table.Absent()),
			table.Put(Text(table.AuditKey(id, time.Time{}, "x"), text, table.AuditSubject(id, "x", "x")), table.Absent()),
		)
	}
	for _, id := range tenants {
		s.is(table.UserKey(id, "x"), string(id), 1)
		for _, r := range []table.Range{table.Users(id, "")[table.Shard("x", table.ListShards)], table.APIKeys(id), table.AuditDay(id, time.Time{}), table.AuditOf(id, "x")} {
			s.holds(r, string(id))
		}
	}
}

func testBig(t *testing.T, s suite) {
	day := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	text := strings.Repeat("é", (table.MaxData-2)/2)
	var want []string
	for i := range 5 { // more than a megabyte
		want = append(want, text)
		s.write(table.Put(Text(table.AuditKey(tenant, day, fmt.Sprint(i)), text), table.Absent()))
	}
	got, more := s.texts(table.AuditDay(tenant, day))
	if !slices.Equal(want, got) || more {
		t.Errorf("got %d items, more %v", len(got), more)
	}
	got, more = s.texts(table.AuditDay(tenant, day).Limit(4).Descending())
	if !slices.Equal(want[1:], got) || !more {
		t.Errorf("got %d items, more %v", len(got), more)
	}
}

func testConcurrent(t *testing.T, s suite) {
	const workers, each = 8, 10
	counter := table.CountKey(tenant, "u")
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for done := 0; done < each; {
				item, err := s.Get(s.ctx, counter)
				n := 0
				if err == nil {
					err = item.Decode(&n)
				} else if errors.Is(err, problem.ErrNotFound) {
					err = nil
				}
				if err != nil {
					t.Error(err)
					return
				}
				data, _ := json.Marshal(n + 1)
				err = s.Write(s.ctx, table.Put(Record{Key: counter, Data: data}, table.After(item.Version)))
				if err == nil {
					done++
				} else if !errors.Is(err, problem.ErrConflict) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	item, err := s.Get(s.ctx, counter)
	if want := fmt.Sprint(workers * each); err != nil || string(item.Data) != want || fmt.Sprint(item.Version) != want {
		t.Errorf("got %s version %d (%v), want %s", item.Data, item.Version, err, want)
	}

	// Of two that create the same, one wins, alone and in company.
	for i := range 10 {
		results := make([]error, 2)
		for w := range results {
			wg.Go(func() {
				ops := []table.Op{table.Put(Text(user(fmt.Sprint("race", i)), fmt.Sprint(w)), table.Absent())}
				if i%2 == 1 {
					ops = append(ops, table.Put(Text(user(fmt.Sprint("with", i, w)), "x"), table.Absent()))
				}
				results[w] = s.Write(s.ctx, ops...)
			})
		}
		wg.Wait()
		winner := slices.Index(results, nil)
		if winner < 0 || !errors.Is(results[1-winner], problem.ErrConflict) {
			t.Fatalf("got %v, want one winner and one conflict", results)
		}
		s.is(user(fmt.Sprint("race", i)), fmt.Sprint(winner), 1)
		s.is(user(fmt.Sprint("with", i, 1-winner)), "", 0)
	}
}

func testContext(t *testing.T, s suite) {
	s.write(table.Put(Text(user("a"), "a"), table.Absent()))
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	_, getErr := s.Get(ctx, user("a"))
	_, queryErr := s.Query(ctx, table.APIKeys(tenant))
	for name, err := range map[string]error{
		"get":       getErr,
		"query":     queryErr,
		"write":     s.Write(ctx, table.Put(Text(user("b"), "b"), table.Absent())),
		"write two": s.Write(ctx, table.Put(Text(user("b"), "b"), table.Absent()), table.Delete(user("a"), table.Whatever())),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want context.Canceled", name, err)
		}
	}
	s.is(user("a"), "a", 1)
	s.is(user("b"), "", 0)
}

func testMerge(t *testing.T, s suite) {
	var want []string
	var ops []table.Op
	for i := range 40 {
		id := fmt.Sprintf("%02d", i)
		want = append(want, id)
		ops = append(ops, table.Put(Text(user(id), id, table.UserListed(tenant, "u"+id, id)), table.Absent()))
	}
	s.write(ops...)
	backwards := slices.Clone(want)
	slices.Reverse(backwards)
	for _, size := range []int{1, 7, 20, 39, 40, 41} {
		for _, descending := range []bool{false, true} {
			ranges, wanted := table.Users(tenant, "u"), want
			if descending {
				wanted = backwards
				for i, r := range ranges {
					ranges[i] = r.Descending()
				}
			}
			var got []string
			for place, n := "", 0; ; n++ {
				page, next, err := table.Merge(s.ctx, s, ranges, size, place)
				if err != nil || page.More != (next != "") || page.More && len(page.Items) != size || n > len(want) {
					t.Fatalf("page of %d: %d items, more %v, next %q: %v", size, len(page.Items), page.More, next, err)
				}
				for _, item := range page.Items {
					var text string
					_ = item.Decode(&text)
					got = append(got, text)
				}
				if place = next; place == "" {
					break
				}
			}
			if diff := cmp.Diff(wanted, got); diff != "" {
				t.Errorf("pages of %d, -want +got:\n%s", size, diff)
			}
		}
	}
	page, next, err := table.Merge(s.ctx, s, table.Users(tenant, "nobody"), 5, "")
	if len(page.Items) != 0 || page.More || next != "" || err != nil {
		t.Errorf("of nothing: got %v %q %v", page, next, err)
	}
}
