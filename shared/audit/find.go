package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/table"
)

// Query says which records are looked for: those that are all that is given. Records are
// filed by day and by subject only; what else is asked for is looked for among those.
type Query struct {
	From, Until time.Time // at From or later and before Until; a zero From is of a Subject only
	Subject     string    // "" for any
	Kind        string    // what the subject begins with, before its id: "user"
	By          string    // an actor's id, or a part of their name, whatever the case
	Action      string
	Reason      string // one of the record's
	Outcome     Outcome
}

func (q Query) matches(r Record) bool {
	return !r.At.Before(q.From) && r.At.Before(q.Until) &&
		(q.Subject == "" || r.Subject == q.Subject) &&
		(q.Kind == "" || r.Subject == q.Kind || strings.HasPrefix(r.Subject, q.Kind+"/")) &&
		(q.By == "" || r.Actor.ID == q.By || strings.Contains(strings.ToLower(r.Actor.Name), strings.ToLower(q.By))) &&
		(q.Action == "" || r.Action == q.Action) &&
		(q.Reason == "" || slices.Contains(strings.Fields(r.Reason), q.Reason)) &&
		(q.Outcome == "" || r.Outcome == q.Outcome)
}

// What one Find reads at most, about: it ends with the query that comes to it.
const (
	findRecords = 2000
	findQueries = 100 // of days without records, or nearly
	findPage    = 100 // records a query
)

// Find returns up to limit records that match, newest first, older than the place given (""
// is from Until), and the place to go on from, "" if there are no more. It reads a bounded
// number of records and days: fewer than limit, or none, does not mean that there are no
// more. A place is a record's id, or one that could be, and tells its time (PlaceTime).
func Find(ctx context.Context, t table.Table, tenant table.TenantID, q Query, beyond string, limit int) (found []Record, next string, _ error) {
	if beyond == "" {
		beyond = placeOf(q.Until)
	}
	seen := 0
	for queries := 0; queries < findQueries && seen < findRecords; queries++ {
		at, ok := PlaceTime(beyond)
		if !ok || at.Before(q.From) || q.From.IsZero() && q.Subject == "" {
			return found, "", nil
		}
		var (
			records []Record
			more    bool
			err     error
			day     time.Time // whose records are read
		)
		if q.Subject != "" {
			records, more, err = Of(ctx, t, tenant, q.Subject, beyond, findPage)
		} else {
			// A place is older than nothing of its own millisecond: at the very beginning of a
			// day it is the day before that is looked at.
			day = at.UTC().Truncate(24 * time.Hour)
			if beyond == placeOf(day) {
				day = day.AddDate(0, 0, -1)
			}
			records, more, err = Day(ctx, t, tenant, day, beyond, findPage)
		}
		if err != nil {
			return nil, "", fmt.Errorf("find audit records: %w", err)
		}
		seen += len(records)
		for _, r := range records {
			if r.At.Before(q.From) {
				return found, "", nil
			}
			if beyond = r.ID; !q.matches(r) {
				continue
			}
			if found = append(found, r); len(found) == limit {
				return found, beyond, nil
			}
		}
		switch {
		case more:
		case q.Subject != "":
			return found, "", nil
		default:
			if beyond = placeOf(day); !day.After(q.From) {
				return found, "", nil
			}
		}
	}
	return found, beyond, nil
}

// PlaceTime returns the time up to which Find has looked when it has come to a place.
func PlaceTime(place string) (time.Time, bool) {
	id, err := ulid.ParseStrict(place)
	if err != nil {
		return time.Time{}, false
	}
	return ulid.Time(id.Time()).UTC(), true
}

// placeOf is older than all records at a time or later, and newer than those before.
func placeOf(at time.Time) string {
	var id ulid.ULID
	_ = id.SetTime(ulid.Timestamp(at)) // a time that people give is in range
	return id.String()
}
