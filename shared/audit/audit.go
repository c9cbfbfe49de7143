// Package audit records who did what. A record is an op of the same Write as
// the change that it tells of, so there is no change without its record and no
// record without its change. Records hold ids and reasons, never a secret.
package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// ActorKind says in what quality somebody acted.
type ActorKind string

// The kinds of actor.
const (
	Platform ActorKind = "platform" // holds the platform key
	API      ActorKind = "api"      // a tenant's system, by an API key
	Self     ActorKind = "self"     // a person for themselves, by a token
	System   ActorKind = "system"   // Pinward itself: the sweep
	Rule     ActorKind = "rule"     // a trigger rule of the tenant's
	Bridge   ActorKind = "bridge"   // somebody at a bridge, who has not proven who they are
	Person   ActorKind = "person"   // somebody who has signed in to the pages
)

// Actor is who acts: an API key, a person, a rule, Pinward itself.
type Actor struct {
	Kind ActorKind
	ID   string // the key's, user's, person's, rule's or function's id
	Name string // the key's, person's or rule's name
}

// Record is one thing that happened.
type Record struct {
	ID        string // a ULID; carries the time
	At        time.Time
	Actor     Actor
	Action    string            // "pin.set", "policy.changed"
	Subject   string            // what it was done to: "user/01J...", "policy"
	Outcome   Outcome           // done, refused or failed
	Reason    string            // coded: "wrongPIN", "locked"
	RequestID string            // the API request's
	Details   map[string]string // ids, counts and codes, never a secret
}

// Outcome tells whether it happened.
type Outcome string

// The outcomes.
const (
	Done    Outcome = "done"
	Refused Outcome = "refused"
	Failed  Outcome = "failed"
)

// Log makes records for a process. Now and Rand are its clock and its source
// of ids; both must be safe for concurrent use. A Rand that is a
// ulid.MonotonicReader keeps records of one millisecond in order.
type Log struct {
	Now  func() time.Time
	Rand io.Reader
}

// Op returns the op that stores the record, with its id and time filled in.
func (l Log) Op(ctx context.Context, tenant table.TenantID, r Record) table.Op {
	r.At = l.Now().UTC().Truncate(time.Millisecond)
	r.RequestID = RequestID(ctx)
	id, err := ulid.New(ulid.Timestamp(r.At), l.Rand)
	if err == nil {
		r.ID = id.String()
	}
	return table.Put(record{tenant, r}, table.Absent())
}

// record is a Record as stored.
type record struct {
	tenant table.TenantID
	Record
}

type stored struct {
	At        time.Time         `json:"at"`
	Kind      ActorKind         `json:"kind"`
	Actor     string            `json:"actor,omitempty"`
	Name      string            `json:"name,omitempty"`
	Action    string            `json:"action"`
	Subject   string            `json:"subject,omitempty"`
	Outcome   Outcome           `json:"outcome"`
	Reason    string            `json:"reason,omitempty"`
	RequestID string            `json:"requestId,omitempty"`
	Details   map[string]string `json:"details,omitempty"`
}

func (r record) Validate() error {
	var vs problem.Violations
	for _, f := range []struct{ name, value string }{
		{"id", r.ID}, {"action", r.Action}, {"outcome", string(r.Outcome)}, {"actor.kind", string(r.Actor.Kind)},
	} {
		if f.value == "" {
			vs.Add("missing", "audit."+f.name, "is empty")
		}
	}
	return vs.Err()
}

func (r record) Item() (table.Item, error) {
	item := table.Item{Key: table.AuditKey(r.tenant, r.At, r.ID)}
	if r.Subject != "" {
		item.Indexes = []table.IndexKey{table.AuditSubject(r.tenant, r.Subject, r.ID)}
	}
	var err error
	item.Data, err = json.Marshal(stored{r.At, r.Actor.Kind, r.Actor.ID, r.Actor.Name, r.Action, r.Subject, r.Outcome, r.Reason, r.RequestID, r.Details})
	return item, err
}

func decode(item table.Item) (Record, error) {
	var s stored
	if err := item.Decode(&s); err != nil {
		return Record{}, err
	}
	return Record{item.Key.Sort(), s.At, Actor{s.Kind, s.Actor, s.Name}, s.Action, s.Subject, s.Outcome, s.Reason, s.RequestID, s.Details}, nil
}

// Day returns up to limit records of one day in UTC, newest first, that are
// older than the record named before ("" is from the day's end), and whether
// there are more.
func Day(ctx context.Context, t table.Table, tenant table.TenantID, day time.Time, before string, limit int) ([]Record, bool, error) {
	return read(ctx, t, table.AuditDay(tenant, day), before, limit)
}

// Of returns up to limit records about a subject, newest first, that are older
// than the record named before, and whether there are more.
func Of(ctx context.Context, t table.Table, tenant table.TenantID, subject, before string, limit int) ([]Record, bool, error) {
	return read(ctx, t, table.AuditOf(tenant, subject), before, limit)
}

func read(ctx context.Context, t table.Table, r table.Range, before string, limit int) ([]Record, bool, error) {
	page, err := t.Query(ctx, r.Descending().Beyond(before).Limit(limit))
	if err != nil {
		return nil, false, fmt.Errorf("read audit: %w", err)
	}
	records := make([]Record, len(page.Items))
	for i, item := range page.Items {
		if records[i], err = decode(item); err != nil {
			return nil, false, err
		}
	}
	return records, page.More, nil
}

type requestIDKey struct{}

// WithRequestID returns a context whose records carry the request's id.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

// RequestID returns the request's id, or "".
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}
