package event

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Kept is how long an event is kept: as long, its id is not acted on again.
const Kept = 30 * 24 * time.Hour

// insidePrefix begins the ids of Pinward's own events, so that nobody can take them first.
const insidePrefix = "pinward:"

// Sealer seals secrets under a tenant's key.
type Sealer interface {
	Seal(purpose string, plaintext []byte) ([]byte, error)
	Open(purpose string, sealed []byte) ([]byte, error)
}

// Ops returns the op that stores an event of Pinward's own, for the Write of what it tells
// of: none if no rule waits for its type. unique tells it from others of its type: what it
// is about, and which change of that. The chain of rules that ctx carries becomes its own.
func Ops(ctx context.Context, core tenant.Core, now time.Time, e Event, unique string) []table.Op {
	if !core.Watch.Waits(string(e.Type)) {
		return nil
	}
	e.ID, e.Source, e.At = insidePrefix+string(e.Type)+"/"+unique, Inside, now.UTC().Truncate(time.Second)
	e.Ref.ID, e.Chain = e.User, Chain(ctx)
	e = e.Received(core.Tenant.ID, now)
	e.DueAt = e.ReceivedAt
	return []table.Op{Put(core.Tenant.ID, core.Keys, e)}
}

// Received returns the event as it comes in, with its place in the list. The same event that
// comes in at the same time has the same place.
func (e Event) Received(t table.TenantID, now time.Time) Event {
	e.ReceivedAt, e.State = now.UTC().Truncate(time.Second), Waiting
	id := ulid.ULID{}
	_ = id.SetTime(ulid.Timestamp(now)) // before the year 10889
	sum := sha256.Sum256([]byte(string(t) + "|" + e.ID))
	_ = id.SetEntropy(sum[:10])
	e.Place = id.String()
	return e
}

// AsInside returns the event as if Pinward had told it itself, to try a rule with.
func (e Event) AsInside() Event {
	e.ID, e.Source = insidePrefix+e.ID, Inside
	return e
}

type chainKey struct{}

// Within returns a context in which events are caused by a chain of rules.
func Within(ctx context.Context, chain []string) context.Context {
	return context.WithValue(ctx, chainKey{}, slices.Clone(chain))
}

// Chain returns the chain of rules that ctx carries.
func Chain(ctx context.Context) []string {
	chain, _ := ctx.Value(chainKey{}).([]string)
	return chain
}

// Put returns the op that stores an event: a new one if its Version is 0, else in place of
// that version.
func Put(t table.TenantID, keys Sealer, e Event) table.Op {
	return table.Put(record{t, keys, e}, table.After(e.Version))
}

// Get returns an event by its id, without its secrets.
func Get(ctx context.Context, tab table.Table, t table.TenantID, id string) (Event, error) {
	if !idForm.MatchString(id) {
		return Event{}, fmt.Errorf("event %w", problem.ErrNotFound)
	}
	item, err := tab.Get(ctx, table.EventKey(t, id))
	if err != nil {
		return Event{}, fmt.Errorf("event %w", err)
	}
	_, e, err := decode(item)
	return e, err
}

// WithSecrets returns an event with its secrets, for whoever acts on it.
func WithSecrets(ctx context.Context, tab table.Table, t table.TenantID, keys Sealer, id string) (Event, error) {
	item, err := tab.Get(ctx, table.EventKey(t, id))
	if err != nil {
		return Event{}, fmt.Errorf("event %w", err)
	}
	var s struct {
		Sealed []byte `json:"sealed"`
	}
	if err := item.Decode(&s); err != nil {
		return Event{}, err
	}
	_, e, err := decode(item)
	if err != nil || len(s.Sealed) == 0 {
		return e, err
	}
	plain, err := keys.Open(sealPurpose(id), s.Sealed)
	if err != nil {
		return Event{}, err
	}
	if err := json.Unmarshal(plain, &e.Secrets); err != nil {
		return Event{}, errors.New("the secrets of an event cannot be read")
	}
	return e, nil
}

// List returns up to limit events of a tenant, the newest first, that came before the place
// given ("" is the end), and the place to go on from, "" if there are no more.
func List(ctx context.Context, tab table.Table, t table.TenantID, beyond string, limit int) ([]Event, string, error) {
	ranges := table.Events(t)
	for i := range ranges {
		ranges[i] = ranges[i].Descending()
	}
	return list(ctx, tab, ranges, beyond, limit)
}

func list(ctx context.Context, tab table.Table, ranges []table.Range, beyond string, limit int) ([]Event, string, error) {
	page, next, err := table.Merge(ctx, tab, ranges, limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list events: %w", err)
	}
	events := make([]Event, len(page.Items))
	for i, item := range page.Items {
		if _, events[i], err = decode(item); err != nil {
			return nil, "", err
		}
	}
	return events, next, nil
}

// Since returns up to limit events of a tenant that came at a time or later, the oldest first,
// beyond the place given ("" is the start), and the place to go on from, "" if there are no
// more.
func Since(ctx context.Context, tab table.Table, t table.TenantID, at time.Time, beyond string, limit int) ([]Event, string, error) {
	first := ulid.ULID{}
	_ = first.SetTime(ulid.Timestamp(at))
	return list(ctx, tab, table.EventsSince(t, first.String()), beyond, limit)
}

// Due is an event that waits, as the sweep finds it.
type Due struct {
	Tenant     table.TenantID
	ID         string
	ReceivedAt time.Time
	Err        error // the item cannot be read; nothing else is set
}

// DueBefore returns up to limit events of a shard of the due index that wait, the oldest
// first, beyond the place given ("" is the start), and the place to go on from, "" if there
// are no more.
func DueBefore(ctx context.Context, tab table.Table, shard int, now time.Time, beyond string, limit int) (due []Due, next string, err error) {
	r := table.EventsDueBefore(shard, now)
	page, err := tab.Query(ctx, r.Beyond(beyond).Limit(limit))
	if err != nil {
		return nil, "", fmt.Errorf("read events that wait: %w", err)
	}
	for _, item := range page.Items {
		t, e, err := decode(item)
		if err != nil {
			due = append(due, Due{Err: err})
		} else {
			due = append(due, Due{Tenant: t, ID: e.ID, ReceivedAt: e.ReceivedAt})
		}
	}
	if page.More {
		next = r.Place(page.Items[len(page.Items)-1])
	}
	return due, next, nil
}

func sealPurpose(id string) string { return "event/" + id }

// record is an Event as stored.
type record struct {
	tenant table.TenantID
	keys   Sealer
	Event
}

type stored struct {
	Tenant     table.TenantID    `json:"tenant"`
	ID         string            `json:"id"`
	Type       Type              `json:"type"`
	At         time.Time         `json:"at"`
	Ref        storedRef         `json:"ref,omitzero"`
	User       string            `json:"user,omitempty"`
	Card       string            `json:"card,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Sealed     []byte            `json:"sealed,omitempty"`
	Chain      []string          `json:"chain,omitempty"`
	Source     Source            `json:"source"`
	ReceivedAt time.Time         `json:"receivedAt"`
	Place      string            `json:"place"`
	State      State             `json:"state"`
	DueAt      time.Time         `json:"dueAt,omitzero"`
	Runs       []storedRun       `json:"runs,omitempty"`
}

type storedRef struct {
	ID         string `json:"id,omitempty"`
	Username   string `json:"username,omitempty"`
	ExternalID string `json:"externalId,omitempty"`
	Mail       string `json:"mail,omitempty"`
}

type storedRun struct {
	Rule    string          `json:"rule"`
	Name    string          `json:"name,omitempty"`
	Outcome RunOutcome      `json:"outcome"`
	Reason  string          `json:"reason,omitempty"`
	Effects []storedEffect  `json:"effects,omitempty"`
	Rest    json.RawMessage `json:"rest,omitempty"`
}

type storedEffect struct {
	Action  string        `json:"action"`
	Outcome EffectOutcome `json:"outcome"`
	Reason  string        `json:"reason,omitempty"`
	About   string        `json:"about,omitempty"`
}

// Item implements table.Record. What waits is in the due index; what is done has no secrets.
func (r record) Item() (table.Item, error) {
	e := r.Event
	s := stored{r.tenant, e.ID, e.Type, e.At, storedRef(e.Ref), e.User, e.Card, e.Attributes, nil, e.Chain, e.Source, e.ReceivedAt, e.Place, e.State, e.DueAt, nil}
	item := table.Item{
		Key:       table.EventKey(r.tenant, e.ID),
		Indexes:   []table.IndexKey{table.EventListed(r.tenant, e.Place)},
		ExpiresAt: e.ReceivedAt.Add(Kept),
	}
	if e.State == Done {
		s.DueAt = time.Time{}
	} else {
		item.Indexes = append(item.Indexes, table.EventDue(r.tenant, e.Place, e.DueAt))
		if len(e.Secrets) > 0 {
			plain := make(map[string]string, len(e.Secrets))
			for name, value := range e.Secrets {
				plain[name] = value.Reveal()
			}
			b, err := json.Marshal(plain)
			if err != nil {
				return table.Item{}, errors.New("the secrets of an event cannot be written")
			}
			if s.Sealed, err = r.keys.Seal(sealPurpose(e.ID), b); err != nil {
				return table.Item{}, fmt.Errorf("seal the secrets of an event: %w", err)
			}
		}
	}
	for _, run := range e.Runs {
		out := storedRun{run.Rule, run.Name, run.Outcome, run.Reason, nil, run.Rest}
		for _, f := range run.Effects {
			out.Effects = append(out.Effects, storedEffect(f))
		}
		s.Runs = append(s.Runs, out)
	}
	var err error
	item.Data, err = json.Marshal(s)
	return item, err
}

func decode(item table.Item) (table.TenantID, Event, error) {
	var s stored
	if err := item.Decode(&s); err != nil {
		return "", Event{}, err
	}
	e := Event{ID: s.ID, Type: s.Type, At: s.At, Ref: Ref(s.Ref), User: s.User, Card: s.Card, Attributes: s.Attributes, Chain: s.Chain,
		Source: s.Source, ReceivedAt: s.ReceivedAt, Place: s.Place, State: s.State, DueAt: s.DueAt, Version: item.Version}
	for _, run := range s.Runs {
		in := Run{run.Rule, run.Name, run.Outcome, run.Reason, nil, run.Rest}
		for _, f := range run.Effects {
			in.Effects = append(in.Effects, Effect(f))
		}
		e.Runs = append(e.Runs, in)
	}
	return s.Tenant, e, nil
}
