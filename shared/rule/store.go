package rule

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// Rules are the operations on trigger rules. All fields must be set; Rand must be safe for
// concurrent use.
type Rules struct {
	Table table.Table
	Audit audit.Log
	Now   func() time.Time
	Rand  io.Reader
}

// Subject names a rule in the audit log, where its history is.
func Subject(id string) string { return "rule/" + id }

// Get returns a rule by id. Predefined ones are always found: as stored, or as they come,
// with Version 0.
func (rs *Rules) Get(ctx context.Context, t table.TenantID, id string) (Rule, error) {
	asItComes, there := predefined(id)
	if _, err := ulid.ParseStrict(id); err != nil && !there {
		return Rule{}, fmt.Errorf("trigger rule %w", problem.ErrNotFound)
	}
	item, err := rs.Table.Get(ctx, table.RuleKey(t, id))
	if there && errors.Is(err, problem.ErrNotFound) {
		return asItComes, nil
	}
	if err != nil {
		return Rule{}, fmt.Errorf("trigger rule %w", err)
	}
	return decode(item)
}

// List returns all rules of a tenant in the order in which they act, predefined ones
// included.
func (rs *Rules) List(ctx context.Context, t table.TenantID) ([]Rule, error) {
	rules, err := rs.stored(ctx, t)
	if err != nil {
		return nil, err
	}
	for _, r := range Predefined() {
		if !slices.ContainsFunc(rules, func(s Rule) bool { return s.ID == r.ID }) {
			rules = append(rules, r)
		}
	}
	inOrder(rules)
	return rules, nil
}

func inOrder(rules []Rule) {
	slices.SortFunc(rules, func(a, b Rule) int {
		return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.ID, b.ID))
	})
}

func (rs *Rules) stored(ctx context.Context, t table.TenantID) ([]Rule, error) {
	page, err := rs.Table.Query(ctx, table.Rules(t)) // fewer than table.MaxLimit
	if err != nil {
		return nil, fmt.Errorf("list trigger rules: %w", err)
	}
	rules := make([]Rule, len(page.Items))
	for i, item := range page.Items {
		if rules[i], err = decode(item); err != nil {
			return nil, err
		}
	}
	return rules, nil
}

// Create makes a rule, whose id it chooses. checks are further conditions of the write, such
// as that a mail template exists. More than MaxRules are problem.ErrState.
func (rs *Rules) Create(ctx context.Context, core tenant.Core, by audit.Actor, r Rule, checks ...table.Op) (Rule, error) {
	now := rs.Now()
	id, err := ulid.New(ulid.Timestamp(now), rs.Rand)
	if err != nil {
		return Rule{}, fmt.Errorf("make a rule id: %w", err)
	}
	r.ID, r.Version = id.String(), 0
	r.CreatedAt = now.UTC().Truncate(time.Second)
	return rs.change(ctx, core, by, Rule{}, r, "rule.created", checks)
}

// Update writes a rule in place of the one of its id and version, which Get or List returned;
// if that was changed meanwhile it is a problem.ErrConflict, in which op 0 failed.
func (rs *Rules) Update(ctx context.Context, core tenant.Core, by audit.Actor, r Rule, checks ...table.Op) (Rule, error) {
	return rs.change(ctx, core, by, r, r, "rule.updated", checks)
}

// Move lets a rule act before the one that it now follows in List, or after the one that it
// precedes. The Order of as few rules as possible is changed, each by a Write of its own: a
// failure between them leaves another order, and Move may be called again.
func (rs *Rules) Move(ctx context.Context, core tenant.Core, by audit.Actor, id string, up bool) error {
	rules, err := rs.List(ctx, core.Tenant.ID)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(rules, func(r Rule) bool { return r.ID == id })
	if i < 0 {
		return fmt.Errorf("trigger rule %w", problem.ErrNotFound)
	}
	j := i + 1
	if up {
		j = i - 1
	}
	if j < 0 || j >= len(rules) {
		return nil // it is the first, or the last
	}
	rules[i], rules[j] = rules[j], rules[i]
	for _, r := range reordered(rules) {
		if _, err := rs.Update(ctx, core, by, r); err != nil {
			return err
		}
	}
	return nil
}

// reordered returns the rules whose Order must change so that all act in the order given, with
// the Order that they need.
func reordered(rules []Rule) []Rule {
	next := slices.Clone(rules)
	for i := 1; i < len(next); i++ {
		if before := next[i-1]; before.Order > next[i].Order || before.Order == next[i].Order && before.ID > next[i].ID {
			next[i].Order = before.Order + 1
		}
	}
	if last := len(next) - 1; last >= 0 && next[last].Order > maxOrder {
		for i := range next {
			next[i].Order = 10 * (i + 1)
		}
	}
	var changed []Rule
	for i, r := range next {
		if r.Order != rules[i].Order {
			changed = append(changed, r)
		}
	}
	return changed
}

// Delete removes a rule, or makes a predefined one as it came. Its history stays.
func (rs *Rules) Delete(ctx context.Context, core tenant.Core, by audit.Actor, id string) error {
	old, err := rs.Get(ctx, core.Tenant.ID, id)
	if err != nil {
		return err
	}
	if old.Version == 0 {
		return fmt.Errorf("%w: this rule is as it came, and cannot be deleted; it does nothing while it is off", problem.ErrState)
	}
	_, err = rs.change(ctx, core, by, old, Rule{}, "rule.deleted", nil)
	return err
}

// Unnamed returns the condition under which something may be deleted that actions may name:
// that no rule has changed since it was seen here that none names it. A rule that does is a
// problem.ErrState.
func (rs *Rules) Unnamed(ctx context.Context, t table.TenantID, names func(Action) bool) (table.Op, error) {
	watch, err := tenant.ReadWatch(ctx, rs.Table, t) // before the rules: each change of one raises its version
	if err != nil {
		return table.Op{}, err
	}
	rules, err := rs.stored(ctx, t)
	if err != nil {
		return table.Op{}, err
	}
	for _, r := range rules {
		if slices.ContainsFunc(r.Actions, names) {
			return table.Op{}, fmt.Errorf("%w: the trigger rule %q names it; change it there first", problem.ErrState, r.Name)
		}
	}
	return table.Check(table.WatchKey(t), table.After(watch.Version)), nil
}

const tries = 8

// change writes a rule in place of another, and what rules wait for. A zero Rule is none.
func (rs *Rules) change(ctx context.Context, core tenant.Core, by audit.Actor, old, r Rule, action string, checks []table.Op) (Rule, error) {
	t := core.Tenant.ID
	r.UpdatedAt = rs.Now().UTC().Truncate(time.Second)
	for range tries {
		watch, err := tenant.ReadWatch(ctx, rs.Table, t)
		if err != nil {
			return Rule{}, err
		}
		rules, err := rs.stored(ctx, t)
		if err != nil {
			return Rule{}, err
		}
		rules = slices.DeleteFunc(rules, func(x Rule) bool { return x.ID == old.ID })
		var op table.Op
		if r.ID == "" {
			op = table.Delete(table.RuleKey(t, old.ID), table.IfVersion(old.Version))
		} else {
			if len(rules) >= MaxRules {
				return Rule{}, fmt.Errorf("%w: a tenant has at most %d trigger rules; delete one first", problem.ErrState, MaxRules)
			}
			rules = append(rules, r)
			op = table.Put(record{t, r}, table.After(old.Version))
		}
		ops := append([]table.Op{
			op,
			tenant.PutWatch(t, watchOf(rules, watch.Version)),
			rs.Audit.Op(ctx, t, audit.Record{Actor: by, Action: action, Subject: Subject(cmp.Or(r.ID, old.ID)), Outcome: audit.Done}),
		}, checks...)
		err = rs.Table.Write(ctx, ops...)
		if i, failed := table.FailedOp(err); failed && i == 1 {
			continue // another rule was changed at the same time
		} else if err != nil {
			return Rule{}, fmt.Errorf("%s: %w", action, err)
		}
		r.Version = old.Version + 1
		return r, nil
	}
	return Rule{}, fmt.Errorf("%w: others change trigger rules at the same time", problem.ErrConflict)
}

// watchOf is what rules wait for.
func watchOf(rules []Rule, version int64) tenant.Watch {
	w := tenant.Watch{Rules: len(rules), Version: version}
	add := func(to *[]string, t event.Type) {
		if !slices.Contains(*to, string(t)) {
			*to = append(*to, string(t))
		}
	}
	for _, r := range rules {
		if r.On {
			add(&w.Types, r.Event)
		}
		if r.Conditions.First {
			add(&w.First, r.Event)
		}
	}
	slices.Sort(w.Types)
	slices.Sort(w.First)
	return w
}

// record is a Rule as stored.
type record struct {
	tenant table.TenantID
	Rule
}

type stored struct {
	ID         string           `json:"id"`
	Name       string           `json:"name"`
	On         bool             `json:"on"`
	Order      int              `json:"order,omitzero"`
	Event      event.Type       `json:"event"`
	Conditions storedConditions `json:"conditions,omitzero"`
	Actions    []storedAction   `json:"actions"`
	CreatedAt  time.Time        `json:"createdAt"`
	UpdatedAt  time.Time        `json:"updatedAt"`
}

type storedConditions struct {
	First         bool           `json:"first,omitempty"`
	HasPIN        *bool          `json:"hasPin,omitempty"`
	HasMail       *bool          `json:"hasMail,omitempty"`
	HasActiveCard *bool          `json:"hasActiveCard,omitempty"`
	Groups        []string       `json:"groups,omitempty"`
	OlderThan     int            `json:"pinOlderThanHours,omitzero"`
	ExpiresWithin int            `json:"pinExpiresWithinHours,omitzero"`
	Attributes    []storedTest   `json:"attributes,omitempty"`
	Days          []time.Weekday `json:"days,omitempty"`
	From          string         `json:"from,omitempty"`
	To            string         `json:"to,omitempty"`
}

type storedTest struct {
	Name    string   `json:"name"`
	Equals  *string  `json:"equals,omitempty"`
	In      []string `json:"in,omitempty"`
	Matches string   `json:"matches,omitempty"`
}

type storedAction struct {
	Kind       Kind         `json:"kind"`
	Length     int          `json:"length,omitzero"`
	Alphabet   pin.Alphabet `json:"alphabet,omitempty"`
	ValidHours int          `json:"validHours,omitzero"`
	OneTime    user.OneTime `json:"oneTime,omitempty"`
	Attribute  string       `json:"attribute,omitempty"`
	Messaging  string       `json:"messaging,omitempty"`
	Template   string       `json:"template,omitempty"`
	Message    string       `json:"message,omitempty"`
	Endpoint   string       `json:"endpoint,omitempty"`
}

// Item implements table.Record.
func (r record) Item() (table.Item, error) {
	c := r.Conditions
	s := stored{r.ID, r.Name, r.On, r.Order, r.Event,
		storedConditions{c.First, c.HasPIN, c.HasMail, c.HasActiveCard, c.Groups, c.PINOlderThanHours, c.PINExpiresWithinHours, nil, c.Window.Days, c.Window.From, c.Window.To},
		storeActions(r.Actions), r.CreatedAt, r.UpdatedAt}
	for _, t := range c.Attributes {
		s.Conditions.Attributes = append(s.Conditions.Attributes, storedTest(t))
	}
	data, err := json.Marshal(s)
	return table.Item{Key: table.RuleKey(r.tenant, r.ID), Data: data}, err
}

func decode(item table.Item) (Rule, error) {
	var s stored
	if err := item.Decode(&s); err != nil {
		return Rule{}, err
	}
	c := s.Conditions
	r := Rule{s.ID, s.Name, s.On, s.Order, s.Event,
		Conditions{c.First, c.HasPIN, c.HasMail, c.HasActiveCard, c.Groups, c.OlderThan, c.ExpiresWithin, nil, Window{c.Days, c.From, c.To}},
		readActions(s.Actions), s.CreatedAt, s.UpdatedAt, item.Version}
	for _, t := range c.Attributes {
		r.Conditions.Attributes = append(r.Conditions.Attributes, Test(t))
	}
	return r, nil
}

func storeActions(actions []Action) []storedAction {
	out := make([]storedAction, len(actions))
	for i, a := range actions {
		out[i] = storedAction(a)
	}
	return out
}

func readActions(actions []storedAction) []Action {
	out := make([]Action, len(actions))
	for i, a := range actions {
		out[i] = Action(a)
	}
	return out
}
