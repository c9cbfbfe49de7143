package audit_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/tabletest"
)

const acme = table.TenantID("acme")

var (
	start = time.Date(2026, 11, 21, 23, 59, 55, 0, time.UTC)
	key   = audit.Actor{Kind: audit.API, ID: "k1", Name: "intranet"}
)

// journal is a table and a log whose clock stands at now.
type journal struct {
	*testing.T
	db  *bolt.DB
	log audit.Log
	now time.Time
}

func newJournal(t *testing.T) *journal {
	j := &journal{T: t, db: tabletest.New(t), now: start}
	j.log = audit.Log{Now: func() time.Time { return j.now }, Rand: rand.Reader}
	return j
}

// write records n things, one a second, about the subjects in turn.
func (j *journal) write(n int, subjects ...string) {
	j.Helper()
	for i := range n {
		r := audit.Record{Actor: key, Action: fmt.Sprintf("did.%d", i), Subject: subjects[i%len(subjects)], Outcome: audit.Done}
		if err := j.db.Write(j.Context(), j.log.Op(j.Context(), acme, r)); err != nil {
			j.Fatal(err)
		}
		j.now = j.now.Add(time.Second)
	}
}

// pages reads to the end, and returns the actions of each page.
func (j *journal) pages(read func(before string) ([]audit.Record, bool, error)) (pages [][]string) {
	j.Helper()
	for before, more := "", true; more; {
		var records []audit.Record
		var err error
		if records, more, err = read(before); err != nil {
			j.Fatal(err)
		}
		var page []string
		for _, r := range records {
			page, before = append(page, r.Action), r.ID
		}
		pages = append(pages, page)
	}
	return pages
}

func TestRecordIsReadAsItWasWritten(t *testing.T) {
	j := newJournal(t)
	j.now = start.Add(123456789 * time.Nanosecond).In(time.FixedZone("", 3600))
	want := audit.Record{
		Actor: key, Action: "pin.verify", Subject: "user/01J", Outcome: audit.Refused, Reason: "wrongPIN",
		Details: map[string]string{"lockedUntil": "then"},
	}
	ctx := audit.WithRequestID(t.Context(), "req-7")
	if err := j.db.Write(ctx, j.log.Op(ctx, acme, want)); err != nil {
		t.Fatal(err)
	}
	want.At, want.RequestID = start.Add(123*time.Millisecond), "req-7"

	for name, read := range map[string]func() ([]audit.Record, bool, error){
		"Day": func() ([]audit.Record, bool, error) { return audit.Day(t.Context(), j.db, acme, j.now, "", 10) },
		"Of":  func() ([]audit.Record, bool, error) { return audit.Of(t.Context(), j.db, acme, "user/01J", "", 10) },
	} {
		got, more, err := read()
		if d := cmp.Diff([]audit.Record{want}, got, cmpopts.IgnoreFields(audit.Record{}, "ID")); d != "" || more || err != nil {
			t.Errorf("%s: more %v, %v (-want +got):\n%s", name, more, err, d)
		}
	}
	if got, _, err := audit.Day(t.Context(), j.db, "other", j.now, "", 10); len(got) != 0 || err != nil {
		t.Errorf("another tenant reads %v, %v", got, err)
	}
}

// A record cannot say what request it was if there was none.
func TestRequestID(t *testing.T) {
	if got := audit.RequestID(t.Context()); got != "" {
		t.Errorf("without a request: %q", got)
	}
	if got := audit.RequestID(audit.WithRequestID(t.Context(), "a")); got != "a" {
		t.Errorf("got %q, want a", got)
	}
}

// Ten records in ten seconds around midnight, about two subjects in turn.
func TestNewestFirstInPages(t *testing.T) {
	j := newJournal(t)
	j.write(10, "user/a", "user/b")
	for _, c := range []struct {
		name string
		read func(before string) ([]audit.Record, bool, error)
		want [][]string
	}{
		{"the day before, whole", func(before string) ([]audit.Record, bool, error) {
			return audit.Day(t.Context(), j.db, acme, start, before, 5)
		}, [][]string{{"did.4", "did.3", "did.2", "did.1", "did.0"}}},
		{"the day after, in pages", func(before string) ([]audit.Record, bool, error) {
			return audit.Day(t.Context(), j.db, acme, start.Add(time.Minute), before, 2)
		}, [][]string{{"did.9", "did.8"}, {"did.7", "did.6"}, {"did.5"}}},
		{"a subject, across days", func(before string) ([]audit.Record, bool, error) {
			return audit.Of(t.Context(), j.db, acme, "user/b", before, 3)
		}, [][]string{{"did.9", "did.7", "did.5"}, {"did.3", "did.1"}}},
		{"a day without records", func(before string) ([]audit.Record, bool, error) {
			return audit.Day(t.Context(), j.db, acme, start.AddDate(0, 0, 5), before, 3)
		}, [][]string{nil}},
		{"a subject without records", func(before string) ([]audit.Record, bool, error) {
			return audit.Of(t.Context(), j.db, acme, "user", before, 3)
		}, [][]string{nil}},
	} {
		if d := cmp.Diff(c.want, j.pages(c.read)); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestDayIsInUTC(t *testing.T) {
	j := newJournal(t)
	j.write(1, "user/a")
	tokyo := time.FixedZone("JST", 9*3600)
	got, _, err := audit.Day(t.Context(), j.db, acme, start.In(tokyo), "", 10) // the 22nd there
	if len(got) != 1 || err != nil {
		t.Errorf("got %d records, %v, want the one of the 21st in UTC", len(got), err)
	}
}

// What is not a whole record fails the Write, and the change with it.
func TestIncompleteRecordStopsTheWrite(t *testing.T) {
	whole := audit.Record{Actor: key, Action: "a", Outcome: audit.Done}
	for name, c := range map[string]struct {
		edit func(*journal, *audit.Record)
		want []string
	}{
		"whole":                    {func(*journal, *audit.Record) {}, nil},
		"no actor":                 {func(_ *journal, r *audit.Record) { r.Actor = audit.Actor{} }, []string{"audit.actor.kind"}},
		"no action":                {func(_ *journal, r *audit.Record) { r.Action = "" }, []string{"audit.action"}},
		"no outcome":               {func(_ *journal, r *audit.Record) { r.Outcome = "" }, []string{"audit.outcome"}},
		"empty":                    {func(_ *journal, r *audit.Record) { *r = audit.Record{} }, []string{"audit.action", "audit.actor.kind", "audit.outcome"}},
		"no randomness for its id": {func(j *journal, _ *audit.Record) { j.log.Rand = noRand{} }, []string{"audit.id"}},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJournal(t)
			r := whole
			c.edit(j, &r)
			change := table.UserKey(acme, "u")
			err := j.db.Write(t.Context(), table.Put(tabletest.Text(change, "changed"), table.Absent()), j.log.Op(t.Context(), acme, r))
			var invalid *problem.InvalidError
			var fields []string
			if errors.As(err, &invalid) {
				for _, v := range invalid.Violations {
					fields = append(fields, v.Field)
				}
			}
			slices.Sort(fields)
			if d := cmp.Diff(c.want, fields); d != "" {
				t.Errorf("%v (-want +got):\n%s", err, d)
			}
			if _, err := j.db.Get(context.Background(), change); (err == nil) != (c.want == nil) {
				t.Errorf("the change beside it: %v", err)
			}
		})
	}
}

type noRand struct{}

func (noRand) Read([]byte) (int, error) { return 0, errors.New("no randomness") }
