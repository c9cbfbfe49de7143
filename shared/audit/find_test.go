package audit_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/audit"
)

// all finds everything that a query gives, page by page, and returns the actions and how
// often it was asked.
func (j *journal) all(q audit.Query, limit int) (actions []string, times int) {
	j.Helper()
	for place, more := "", true; more; times++ {
		records, next, err := audit.Find(j.Context(), j.db, acme, q, place, limit)
		if err != nil {
			j.Fatal(err)
		}
		if at, ok := audit.PlaceTime(next); next != "" && (!ok || at.Before(q.From) || at.After(q.Until)) {
			j.Fatalf("place %s: %s, %t", next, at, ok)
		}
		for _, r := range records {
			actions = append(actions, r.Action)
		}
		place, more = next, next != ""
	}
	return actions, times
}

func TestFind(t *testing.T) {
	j := newJournal(t)
	j.write(10, "user/1", "user/2", "policy") // seconds -5 to 4 about midnight
	other := audit.Record{Actor: audit.Actor{Kind: audit.Person, ID: "p1", Name: "Ada Lovelace"}, Action: "other", Subject: "user/1", Outcome: audit.Refused, Reason: "tooShort common"}
	if err := j.db.Write(t.Context(), j.log.Op(t.Context(), acme, other)); err != nil {
		t.Fatal(err)
	}
	midnight := start.Add(5 * time.Second)
	const always = 50 * 24 * time.Hour
	did := func(n ...int) (actions []string) {
		for _, i := range n {
			actions = append(actions, fmt.Sprintf("did.%d", i))
		}
		return actions
	}
	for name, c := range map[string]struct {
		query audit.Query
		want  []string
	}{
		"all":                  {audit.Query{From: start, Until: midnight.Add(always)}, append([]string{"other"}, did(9, 8, 7, 6, 5, 4, 3, 2, 1, 0)...)},
		"the first day":        {audit.Query{From: midnight.Add(-24 * time.Hour), Until: midnight}, did(4, 3, 2, 1, 0)},
		"the second day":       {audit.Query{From: midnight, Until: midnight.Add(24 * time.Hour)}, append([]string{"other"}, did(9, 8, 7, 6, 5)...)},
		"from here to there":   {audit.Query{From: midnight.Add(-2 * time.Second), Until: midnight.Add(2 * time.Second)}, did(6, 5, 4, 3)},
		"a subject":            {audit.Query{Subject: "user/1", Until: midnight.Add(always)}, append([]string{"other"}, did(9, 6, 3, 0)...)},
		"a subject, in a time": {audit.Query{Subject: "user/1", From: midnight.Add(-3 * time.Second), Until: midnight.Add(3 * time.Second)}, did(6, 3)},
		"a kind":               {audit.Query{Kind: "user", From: midnight, Until: midnight.Add(3 * time.Second)}, did(7, 6)},
		"a kind that is alone": {audit.Query{Kind: "policy", From: start, Until: midnight}, did(2)},
		"by id":                {audit.Query{By: "p1", From: start, Until: midnight.Add(always)}, []string{"other"}},
		"by a part of a name":  {audit.Query{By: "LOVE", From: start, Until: midnight.Add(always)}, []string{"other"}},
		"one of two reasons":   {audit.Query{Reason: "common", From: start, Until: midnight.Add(always)}, []string{"other"}},
		"a part of a reason":   {audit.Query{Reason: "comm", From: start, Until: midnight.Add(always)}, nil},
		"an outcome":           {audit.Query{Outcome: audit.Refused, From: start, Until: midnight.Add(always)}, []string{"other"}},
		"an action":            {audit.Query{Action: "did.5", From: start, Until: midnight.Add(always)}, did(5)},
		"before all":           {audit.Query{From: start.Add(-always), Until: start}, nil},
		"a part of a kind":     {audit.Query{Kind: "use", From: start, Until: midnight.Add(always)}, nil},
	} {
		for _, limit := range []int{1, 3, 100} {
			if got, _ := j.all(c.query, limit); !slices.Equal(got, c.want) {
				t.Errorf("%s, %d a page: -want +got\n%s", name, limit, cmp.Diff(c.want, got))
			}
		}
	}
	if records, next, err := audit.Find(t.Context(), j.db, "other", audit.Query{From: start, Until: midnight.Add(always)}, "", 10); len(records) != 0 || next != "" || err != nil {
		t.Errorf("of another tenant: %v, %q, %v", records, next, err)
	}
	if records, next, err := audit.Find(t.Context(), j.db, acme, audit.Query{From: start, Until: midnight}, "no place", 10); len(records) != 0 || next != "" || err != nil {
		t.Errorf("from a place that is none: %v, %q, %v", records, next, err)
	}
}

// One Find looks through a bounded number of records, and of days without any.
func TestFindIsBounded(t *testing.T) {
	j := newJournal(t)
	j.write(1, "user/1")
	first := j.now
	for range 2200 {
		j.now = j.now.Add(-time.Second) // write goes on a second each time
		j.write(1, "user/2")
		j.now = j.now.Add(time.Millisecond)
	}
	q := audit.Query{Outcome: audit.Failed, From: start.Add(-time.Hour), Until: first.Add(time.Hour)}
	if got, times := j.all(q, 10); len(got) != 0 || times != 2 {
		t.Errorf("2,201 records: found %v, asked %d times, want 2", got, times)
	}
	q = audit.Query{Action: "did.0", From: start.AddDate(0, 0, -150), Until: start}
	if got, times := j.all(q, 10); len(got) != 0 || times != 2 {
		t.Errorf("150 days: found %v, asked %d times, want 2", got, times)
	}
}
