package rule

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

// Engine acts on events. All fields must be set.
type Engine struct {
	Table       table.Table
	Tenants     *tenant.Tenants
	Rules       *Rules
	Users       *user.Users
	Credentials *credential.Credentials
	Unblocks    *unblock.Unblocks
	Deliveries  *delivery.Deliveries
	Senders     user.Senders
	Audit       audit.Log
	Now         func() time.Time
	Log         *slog.Logger
}

// How old an event may be, and how far ahead of this clock: senders' clocks are not exact.
// One that is older could come again after its id was forgotten.
const (
	MaxAge  = 7 * 24 * time.Hour
	MaxSkew = 5 * time.Minute
)

// Answer says what an event has caused.
type Answer struct {
	Event event.Event
	// Duplicate: it had come before. What it has caused then is in Event.
	Duplicate bool
}

// Receive takes an event from outside and acts on it. fresh is the profile of the user to
// create if the event names nobody who is known and the tenant wants that; nil creates one
// with what the event names.
//
// Everything that is wrong with the event is an InvalidError, and nothing was stored then.
// After any other error it may have been stored: it is done with by the sweep, and may be sent
// again.
func (en *Engine) Receive(ctx context.Context, core tenant.Core, e event.Event, fresh *user.Profile) (Answer, error) {
	now := en.Now()
	var vs problem.Violations
	if err := vs.Merge(e.Validate()); err != nil {
		return Answer{}, err
	}
	if fresh != nil {
		vs.Under("newUser", newcomer(e.Ref, fresh).Validate())
	}
	switch age := now.Sub(e.At); {
	case e.At.IsZero():
	case age < -MaxSkew:
		vs.Add("future", "time", "is %s ahead of %s, the time here; check the clock that it comes from", -age.Truncate(time.Second), now.UTC().Format(time.RFC3339))
	case age > MaxAge:
		vs.Add("past", "time", "is more than %d days ago: what happened then is not acted on any more", MaxAge/(24*time.Hour))
	}
	if err := vs.Err(); err != nil {
		return Answer{}, err
	}
	e.Version = 0
	return en.handle(ctx, core, e.Received(core.Tenant.ID, now), fresh, new(haste))
}

// Resume goes on with an event that is stored.
func (en *Engine) Resume(ctx context.Context, core tenant.Core, id string) (Answer, error) {
	return en.resume(ctx, core, id, new(haste))
}

func (en *Engine) resume(ctx context.Context, core tenant.Core, id string, hurry *haste) (Answer, error) {
	e, err := event.WithSecrets(ctx, en.Table, core.Tenant.ID, core.Keys, id)
	if err != nil || e.State == event.Done {
		return Answer{Event: e, Duplicate: true}, err
	}
	return en.handle(ctx, core, e, nil, hurry)
}

// haste tells whether mails and webhooks are to be sent at once, before the sweep does: not
// any more once one was not taken, so that whoever waits does not wait for all.
type haste struct{ over bool }

// handling is one event that is being acted on. Its event and user are as stored, but for
// Runs that are still to be: they are written with the next action, or at the end.
type handling struct {
	*Engine
	core  tenant.Core
	fresh *user.Profile
	hurry *haste
	e     event.Event
	user  *user.User // nil if not known, or to be read anew
	rules []Rule     // of its type, that are on, in order

	askFirst bool
	first    bool
	begin    []table.Op // the first Write's: that this was the user's first event
	notes    []table.Op // the next Write's: audit records of what came to nothing
}

// handleTries bounds how often others who act on the same event are made way for.
const handleTries = 50

// handle acts on an event until it is done. Whoever acts on the same event at the same time
// meets it at its version: each step is done by one of them.
func (en *Engine) handle(ctx context.Context, core tenant.Core, e event.Event, fresh *user.Profile, hurry *haste) (Answer, error) {
	duplicate := e.Version != 0
	for range handleTries {
		h := &handling{Engine: en, core: core, fresh: fresh, e: e, hurry: hurry}
		err := h.run(ctx)
		if err == nil {
			return Answer{h.e, duplicate}, nil
		}
		var met *table.ConditionError
		if !errors.As(err, &met) || met.Key != table.EventKey(core.Tenant.ID, e.ID) && met.Key != h.firstKey() {
			return Answer{}, fmt.Errorf("act on event %s: %w", e.Type, err)
		}
		switch stored, err := event.WithSecrets(ctx, en.Table, core.Tenant.ID, core.Keys, e.ID); {
		case err == nil && stored.State == event.Done:
			return Answer{stored, true}, nil
		case err == nil:
			e, duplicate = stored, true
		case !errors.Is(err, problem.ErrNotFound): // else another event was the user's first
			return Answer{}, err
		}
	}
	return Answer{}, fmt.Errorf("act on event %s: %w: others act on it at the same time", e.Type, problem.ErrUnavailable)
}

func (h *handling) firstKey() table.Key {
	if h.e.User == "" {
		return table.Key{}
	}
	return table.FirstEventKey(h.core.Tenant.ID, h.e.User, string(h.e.Type))
}

func (h *handling) run(ctx context.Context) error {
	kind := string(h.e.Type)
	h.askFirst = h.core.Watch.AsksFirst(kind)
	if h.core.Watch.Waits(kind) {
		rules, err := h.Rules.List(ctx, h.core.Tenant.ID)
		if err != nil {
			return err
		}
		h.rules = slices.DeleteFunc(rules, func(r Rule) bool { return !r.On || r.Event != h.e.Type })
	}
	if len(h.rules) > 0 || h.askFirst {
		if err := h.know(ctx); err != nil {
			return err
		}
	}
	for h.e.State != event.Done {
		if err := h.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// know finds out whom the event is about, and whether it is their first.
func (h *handling) know(ctx context.Context) error {
	u, err := h.find(ctx)
	if errors.Is(err, problem.ErrNotFound) && h.e.User == "" && h.core.Tenant.Settings.CreateUsers {
		u, err = h.create(ctx)
	}
	switch {
	case errors.Is(err, problem.ErrNotFound), errors.Is(err, problem.ErrState):
		return nil // nobody, or several by one mail address
	case err != nil:
		return err
	}
	h.e.User, h.user = u.ID, &u
	if !h.askFirst {
		return nil
	}
	item, err := h.Table.Get(ctx, h.firstKey())
	switch {
	case errors.Is(err, problem.ErrNotFound):
		h.first = true
		h.begin = []table.Op{table.Put(firstRecord{h.firstKey(), h.e.ID, h.e.At}, table.Absent())}
		return nil
	case err != nil:
		return fmt.Errorf("read a user's first event: %w", err)
	}
	var was storedFirst
	if err := item.Decode(&was); err != nil {
		return err
	}
	h.first = was.Event == h.e.ID
	return nil
}

func (h *handling) find(ctx context.Context) (user.User, error) {
	t, ref := h.core.Tenant.ID, h.e.Ref
	switch {
	case h.e.User != "":
		return h.Users.Get(ctx, t, h.e.User)
	case ref.ID != "":
		return h.Users.Get(ctx, t, ref.ID)
	case ref.Username != "":
		return h.Users.ByUsername(ctx, t, ref.Username)
	case ref.ExternalID != "":
		return h.Users.ByExternalID(ctx, t, ref.ExternalID)
	case ref.Mail != "":
		return h.Users.ByMail(ctx, t, ref.Mail)
	}
	return user.User{}, problem.ErrNotFound
}

// creator is who the audit log says created the user of an event.
var creator = audit.Actor{Kind: audit.System, ID: "trigger"}

// create makes the user whom an event names first. If the event is interrupted after that and
// comes again, they are known.
func (h *handling) create(ctx context.Context) (user.User, error) {
	p := newcomer(h.e.Ref, h.fresh)
	if p.Username == "" || h.e.Ref.ID != "" {
		return user.User{}, fmt.Errorf("user %w", problem.ErrNotFound)
	}
	u, err := h.Users.Create(ctx, h.core, creator, p, nil)
	var invalid *problem.InvalidError
	if errors.As(err, &invalid) {
		if again, err := h.find(ctx); err == nil { // another event was first
			return again, nil
		}
		return user.User{}, fmt.Errorf("user %w", problem.ErrNotFound)
	}
	return u, err
}

// newcomer is the profile of somebody whom an event names first. What they are named by they
// have, or the next event would not find them.
func newcomer(ref event.Ref, fresh *user.Profile) user.Profile {
	var p user.Profile
	if fresh != nil {
		p = *fresh
	}
	p.Username = cmp.Or(ref.Username, p.Username, ref.Mail)
	p.ExternalID, p.Mail = cmp.Or(ref.ExternalID, p.ExternalID), cmp.Or(ref.Mail, p.Mail)
	return p
}

// step does the next action, or considers the next rule, or notes that all is done.
func (h *handling) step(ctx context.Context) error {
	at := slices.IndexFunc(h.e.Runs, func(r event.Run) bool { return len(r.Rest) > 0 })
	if at >= 0 {
		return h.act(ctx, at)
	}
	if r, ok := h.unseen(); ok {
		run, err := h.consider(ctx, r)
		if err != nil {
			return err
		}
		h.e.Runs = append(slices.Clip(h.e.Runs), run)
		if len(h.notes) < maxNotes {
			return nil
		}
		return h.write(ctx, h.e)
	}
	done := h.e
	done.State = event.Done
	return h.write(ctx, done)
}

// maxNotes is how many audit records wait for the next Write; there is room for more ops.
const maxNotes = 50

func (h *handling) unseen() (Rule, bool) {
	for _, r := range h.rules {
		if !slices.ContainsFunc(h.e.Runs, func(run event.Run) bool { return run.Rule == r.ID }) {
			return r, true
		}
	}
	return Rule{}, false
}

// lease is how long the sweep leaves an event to whoever acts on it.
const lease = time.Minute

// with returns the ops that note on the event that something was done, for the Write of that.
func (h *handling) with(e event.Event) []table.Op {
	e.DueAt = h.Now().Add(lease).UTC().Truncate(time.Second)
	return slices.Concat([]table.Op{event.Put(h.core.Tenant.ID, h.core.Keys, e)}, h.begin, h.notes)
}

// written takes note that the event was stored.
func (h *handling) written(e event.Event) {
	e.Version++
	h.e, h.begin, h.notes = e, nil, nil
}

func (h *handling) write(ctx context.Context, e event.Event) error {
	if err := h.Table.Write(ctx, h.with(e)...); err != nil {
		return err
	}
	h.written(e)
	return nil
}

// facts are those that a rule asks for.
func (h *handling) facts(ctx context.Context, r Rule) (Facts, error) {
	f := Facts{First: h.first, Zone: h.core.Tenant.Settings.Location(), Now: h.Now()}
	if h.e.User == "" {
		return f, nil
	}
	if h.user == nil {
		u, err := h.Users.Get(ctx, h.core.Tenant.ID, h.e.User)
		if errors.Is(err, problem.ErrNotFound) {
			return f, nil
		} else if err != nil {
			return f, err
		}
		h.user = &u
	}
	f.User = h.user
	if r.Conditions.HasActiveCard == nil {
		return f, nil
	}
	for place := ""; ; {
		held, next, err := h.Credentials.Held(ctx, h.core.Tenant.ID, h.e.User, place, 50)
		if err != nil {
			return f, err
		}
		f.ActiveCard = slices.ContainsFunc(held, func(c credential.Credential) bool { return c.State == credential.Active })
		if place = next; f.ActiveCard || place == "" {
			return f, nil
		}
	}
}

// consider says whether a rule acts on the event.
func (h *handling) consider(ctx context.Context, r Rule) (event.Run, error) {
	run := event.Run{Rule: r.ID, Name: r.Name}
	f, err := h.facts(ctx, r)
	if err != nil {
		return run, err
	}
	if run.Reason = r.Unmet(h.e, f); run.Reason != "" {
		run.Outcome = event.NotMet
		return run, nil
	}
	if run.Reason = r.cut(h.e); run.Reason != "" {
		run.Outcome = event.Cut
		h.Log.WarnContext(ctx, "a chain of trigger rules was cut", "tenant", h.core.Tenant.ID, "rule", r.ID, "reason", run.Reason)
		h.note(ctx, run, "rule.cut", "", audit.Refused, run.Reason)
		return run, nil
	}
	run.Outcome = event.Acted
	run.Rest, err = json.Marshal(storeActions(r.Actions))
	return run, err
}

// note adds an audit record about a rule to the next Write.
func (h *handling) note(ctx context.Context, run event.Run, action string, kind Kind, outcome audit.Outcome, reason string) {
	details := map[string]string{"event": h.e.ID, "type": string(h.e.Type)}
	if h.e.User != "" {
		details["user"] = h.e.User
	}
	if h.e.Card != "" {
		details["credential"] = h.e.Card
	}
	if kind != "" {
		details["action"] = string(kind)
	}
	h.notes = append(h.notes, h.Audit.Op(ctx, h.core.Tenant.ID, audit.Record{
		Actor: actor(run), Action: action, Subject: Subject(run.Rule), Outcome: outcome, Reason: reason, Details: details}))
}

func actor(run event.Run) audit.Actor {
	return audit.Actor{Kind: audit.Rule, ID: run.Rule, Name: run.Name}
}

// act does the next action of a rule and notes it, both in one Write. An action that cannot
// be done is noted as refused, and what comes after it is done all the same.
func (h *handling) act(ctx context.Context, at int) error {
	var rest []storedAction
	if err := json.Unmarshal(h.e.Runs[at].Rest, &rest); err != nil {
		return fmt.Errorf("read the actions of rule %s: %w", h.e.Runs[at].Rule, err)
	}
	a := Action(rest[0])
	next := h.e
	next.Runs = slices.Clone(h.e.Runs)
	run := &next.Runs[at]
	run.Effects = append(slices.Clip(run.Effects), event.Effect{Action: string(a.Kind), Outcome: event.EffectDone})
	effect := &run.Effects[len(run.Effects)-1]
	if run.Rest = nil; len(rest) > 1 {
		var err error
		if run.Rest, err = json.Marshal(rest[1:]); err != nil {
			return err
		}
	}

	before := h.notes
	h.note(ctx, *run, "rule.acted", a.Kind, audit.Done, "")
	chain := event.Within(ctx, append(slices.Clip(h.e.Chain), run.Rule))
	d := deed{h, a, *run, fmt.Sprintf("%s-%d-%d", next.Place, at, len(run.Effects)), h.still(*run)}
	about, after, err := d.do(chain, func(about string) []table.Op {
		effect.About = about
		if _, more := h.unseen(); !more && run.Rest == nil {
			next.State = event.Done // the last Write, too
		}
		return h.with(next)
	})
	if err == nil {
		effect.About = about
		h.written(next)
		h.user = nil
		if after != nil {
			h.soon(chain, a.Kind, after)
		}
		return nil
	}
	reason, final := refusal(err)
	if !final {
		return err
	}
	h.notes = before
	next.State = event.Waiting
	effect.Outcome, effect.Reason, effect.About = event.EffectRefused, reason, ""
	h.note(ctx, *run, "rule.acted", a.Kind, audit.Refused, reason)
	h.e, h.user = next, nil
	return nil
}

// still returns what tells whether a rule's conditions hold for the user whom its first action
// is about to change: somebody may have been faster. What comes after goes by that action.
func (h *handling) still(run event.Run) func(user.User) bool {
	i := slices.IndexFunc(h.rules, func(r Rule) bool { return r.ID == run.Rule })
	if i < 0 || len(run.Effects) > 1 {
		return nil
	}
	c := h.rules[i].Conditions
	c.First, c.HasActiveCard = false, nil // which the user's item does not tell
	return func(u user.User) bool { return c.unmetByUser(u, Facts{Now: h.Now()}) == "" }
}

// soon does at once what the sweep would do within a minute. What is stored is done in any
// case, so that an error here changes nothing but the time.
func (h *handling) soon(ctx context.Context, k Kind, after func(context.Context) error) {
	if deadline, ok := ctx.Deadline(); h.hurry.over || ok && time.Until(deadline) < patience {
		return
	}
	if err := after(ctx); err != nil {
		h.hurry.over = true
		h.Log.WarnContext(ctx, "an action of a trigger rule waits for the sweep", "tenant", h.core.Tenant.ID, "action", k, "cause", err)
	}
}

// patience is how long an event's sender may have to wait for a mail or a webhook, and what is
// to be written after it.
const patience = 17 * time.Second

// refusal returns the coded reason of an action that cannot be done, and false if it may
// succeed another time.
func refusal(err error) (string, bool) {
	var coded *codedError
	var issue *user.Refusal
	var undeliverable *delivery.Undeliverable
	var invalid *problem.InvalidError
	var limit *problem.LimitError
	var met *table.ConditionError
	switch {
	case errors.As(err, &met):
		return "", false
	case errors.As(err, &coded):
		return coded.code, true
	case errors.As(err, &issue):
		return issue.Code, true
	case errors.As(err, &undeliverable):
		return undeliverable.Code, true
	case errors.As(err, &invalid):
		var codes []string
		for _, v := range invalid.Violations {
			if !slices.Contains(codes, v.Code) {
				codes = append(codes, v.Code)
			}
		}
		return strings.Join(codes, " "), true
	case errors.As(err, &limit):
		return limit.Code, true
	case errors.Is(err, problem.ErrNotFound):
		return "notFound", true
	case errors.Is(err, problem.ErrState):
		return "state", true
	case errors.Is(err, problem.ErrForbidden):
		return "forbidden", true
	}
	return "", false
}

// codedError is a reason why an action cannot be done.
type codedError struct{ code string }

// Error implements error.
func (e *codedError) Error() string { return e.code }

// firstRecord tells which was a user's first event of a type.
type firstRecord struct {
	key   table.Key
	event string
	at    time.Time
}

type storedFirst struct {
	Event string    `json:"event"`
	At    time.Time `json:"at"`
}

// Validate implements table.Record.
func (firstRecord) Validate() error { return nil }

// Item implements table.Record.
func (r firstRecord) Item() (table.Item, error) {
	data, err := json.Marshal(storedFirst{r.event, r.at})
	return table.Item{Key: r.key, Data: data}, err
}
