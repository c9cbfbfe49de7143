package page

import (
	"errors"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/tenant"
)

const rules = Root + "/rules/rule"

func (c *Console) ruleRoutes() []route {
	return []route{
		{pattern: "GET " + Root + "/rules", action: tenant.ReadRules, do: (*view).listRules},
		{pattern: "GET " + Root + "/rules/new", action: tenant.WriteRules, do: (*view).newRule},
		{pattern: "POST " + Root + "/rules/form", action: tenant.WriteRules, do: (*view).changeRuleForm},
		{pattern: "POST " + Root + "/rules/save", action: tenant.WriteRules, do: (*view).saveRule},
		{pattern: "POST " + Root + "/rules/try", action: tenant.WriteRules, do: (*view).tryRule},
		{pattern: "GET " + rules + "/{id}", action: tenant.ReadRules, do: (*view).rulePage},
		{pattern: "GET " + rules + "/{id}/edit", action: tenant.WriteRules, do: (*view).editRule},
		{pattern: "POST " + rules + "/{id}/turn", action: tenant.WriteRules, do: (*view).turnRule},
		{pattern: "POST " + rules + "/{id}/move", action: tenant.WriteRules, do: (*view).moveRule},
		{pattern: "GET " + rules + "/{id}/delete", action: tenant.WriteRules, do: (*view).deleteRulePage},
		{pattern: "POST " + rules + "/{id}/delete", action: tenant.WriteRules, do: (*view).deleteRule},

		{pattern: "GET " + Root + "/rules/events", action: tenant.ReadEvents, do: (*view).listEvents},
		{pattern: "GET " + Root + "/rules/event", action: tenant.ReadEvents, do: (*view).eventPage},
	}
}

// ruleRow is a rule and what it says.
type ruleRow struct {
	rule.Rule
	Sentence
	Ready       bool // it is one of those that each tenant has from the first
	First, Last bool // in the order
}

// Sentence is what a rule says, in words: when the event, and the conditions, then the actions.
type Sentence struct {
	When      string
	And, Then []string
}

// Whole is the sentence as one text.
func (s Sentence) whole(w words.Words) string {
	var b strings.Builder
	b.WriteString(w.Say("rule.when") + " " + s.When)
	for _, c := range s.And {
		b.WriteString(", " + w.Say("rule.and") + " " + c)
	}
	for i, a := range s.Then {
		if i == 0 {
			b.WriteString(", " + w.Say("rule.then") + " ")
		} else {
			b.WriteString(", " + w.Say("rule.and") + " ")
		}
		b.WriteString(a)
	}
	return b.String() + "."
}

func (v *view) listRules() error {
	all, err := v.Rules.List(v.ctx(), v.tenant())
	if err != nil {
		return err
	}
	rows := make([]ruleRow, len(all))
	for i, r := range all {
		rows[i] = ruleRow{r, v.sentence(r), rule.IsPredefined(r.ID), i == 0, i == len(all)-1}
	}
	if v.value("format") == "csv" {
		return csvFile(v, "trigger-rules", []string{"name", "on", "event", "rule"}, rowsOf("", func(string) ([]ruleRow, string, error) { return rows, "", nil }),
			func(r ruleRow) []string { return []string{r.Name, text(r.On), string(r.Event), r.whole(v.words)} })
	}
	return v.show("rules", list(v, rows, ""))
}

// sentence puts a rule in words.
func (v *view) sentence(r rule.Rule) Sentence {
	w, c := v.words, r.Conditions
	s := Sentence{When: v.eventWords(r.Event)}
	and := func(key string, args ...any) { s.And = append(s.And, w.Say(key, args...)) }
	if c.First {
		and(words.Key("rule.is.first"))
	}
	for _, is := range []struct {
		what string
		want *bool
	}{{"hasPin", c.HasPIN}, {"hasMail", c.HasMail}, {"hasActiveCard", c.HasActiveCard}} {
		if is.want != nil {
			and(words.Family("rule.is.", is.what, *is.want))
		}
	}
	if len(c.Groups) > 0 {
		and(words.Key("rule.is.groups"), strings.Join(c.Groups, ", "))
	}
	if h := c.PINOlderThanHours; h > 0 {
		and(words.Key("rule.is.older"), w.Span(time.Duration(h)*time.Hour))
	}
	if h := c.PINExpiresWithinHours; h > 0 {
		and(words.Key("rule.is.expires"), w.Span(time.Duration(h)*time.Hour))
	}
	for _, t := range c.Attributes {
		switch {
		case t.Equals != nil:
			and(words.Key("rule.is.equals"), t.Name, *t.Equals)
		case len(t.In) > 0:
			and(words.Key("rule.is.in"), t.Name, strings.Join(t.In, ", "))
		default:
			and(words.Key("rule.is.matches"), t.Name, t.Matches)
		}
	}
	if len(c.Window.Days) > 0 {
		var days []string
		for _, d := range c.Window.Days {
			days = append(days, w.Say(words.Family("rule.day.", int(d))))
		}
		and(words.Key("rule.is.days"), strings.Join(days, ", "))
	}
	if c.Window.From != "" {
		and(words.Key("rule.is.window"), c.Window.From, c.Window.To)
	}
	for _, a := range r.Actions {
		s.Then = append(s.Then, v.actionWords(a))
	}
	return s
}

// eventWords says what has happened.
func (v *view) eventWords(t event.Type) string {
	if key := words.Family("rule.event.", t); v.words.Has(key) {
		return v.words.Say(key)
	}
	return v.words.Say("rule.customEvent", string(t))
}

func (v *view) actionWords(a rule.Action) string {
	w := v.words
	s := w.Say(words.Family("rule.does.", a.Kind))
	var more []string
	say := func(when bool, key string, args ...any) {
		if when {
			more = append(more, w.Say(key, args...))
		}
	}
	say(a.Length > 0, words.Key("rule.with.length"), a.Length)
	say(a.Alphabet != "", words.Family("rule.with.alphabet.", a.Alphabet))
	say(a.ValidHours > 0, words.Key("rule.with.valid"), w.Span(time.Duration(a.ValidHours)*time.Hour))
	say(a.OneTime != "", words.Family("rule.with.oneTime.", a.OneTime))
	say(a.Attribute != "", words.Key("rule.with.attribute"), a.Attribute)
	say(a.Message != "", words.Key("rule.with.message"), a.Message)
	if len(more) == 0 {
		return s
	}
	return s + " (" + strings.Join(more, ", ") + ")"
}

// ruleData is the page of a rule.
type ruleData struct {
	ruleRow
	Deleted  bool // only its history is left
	Warnings []string
	History  List[ruleRecord]
}

// ruleRecord is a line of a rule's history.
type ruleRecord struct {
	At             time.Time
	What           string // what was done, in words
	Reason         string // why it was not
	By             string // who has changed the rule
	Event, Type    string // that it acted on
	User, Card     string // ids
	Done           bool
	raw            audit.Record
	CanSeeTheEvent bool
}

func (v *view) ruleRecord(r audit.Record) ruleRecord {
	out := ruleRecord{At: r.At, Done: r.Outcome == audit.Done, Event: r.Details["event"], Type: r.Details["type"], User: r.Details["user"], Card: r.Details["credential"], raw: r, CanSeeTheEvent: v.may(tenant.ReadEvents)}
	if r.Reason != "" {
		out.Reason = v.words.AuditReason(r.Reason)
	}
	if action := r.Details["action"]; r.Action == "rule.acted" && action != "" {
		out.What = v.words.Say(words.Family("rule.does.", action))
	} else {
		out.What = v.words.Action(r.Action)
	}
	if r.Actor.Kind != audit.Rule {
		out.By = r.Actor.Name
	}
	return out
}

func (v *view) rulePage() error {
	id := v.r.PathValue("id")
	from, err := v.place()
	if err != nil {
		return err
	}
	more := func(before string, limit int) ([]ruleRecord, string, error) {
		records, more, err := audit.Of(v.ctx(), v.Table, v.tenant(), rule.Subject(id), before, limit)
		out := make([]ruleRecord, len(records))
		for i, r := range records {
			out[i] = v.ruleRecord(r)
		}
		next := ""
		if more && len(records) > 0 {
			next = records[len(records)-1].ID
		}
		return out, next, err
	}
	if v.value("format") == "csv" {
		var rows iter.Seq2[ruleRecord, error] = rowsOf(from, func(before string) ([]ruleRecord, string, error) { return more(before, 500) })
		return csvFile(v, "trigger-rule-history", []string{"time", "action", "does", "outcome", "reason", "event", "type", "user", "card", "by"}, rows, func(r ruleRecord) []string {
			return []string{csvTime(r.At), r.raw.Action, r.raw.Details["action"], string(r.raw.Outcome), r.raw.Reason, r.Event, r.Type, r.User, r.Card, r.By}
		})
	}
	history, next, err := more(from, pageSize)
	if err != nil {
		return err
	}
	r, err := v.Rules.Get(v.ctx(), v.tenant(), id)
	deleted := errors.Is(err, problem.ErrNotFound) && (len(history) > 0 || from != "")
	if err != nil && !deleted {
		return err
	}
	r.ID = id
	d := ruleData{ruleRow: ruleRow{Rule: r, Ready: rule.IsPredefined(id)}, Deleted: deleted, History: list(v, history, next)}
	if !deleted {
		d.Sentence, d.Warnings = v.sentence(r), v.warnings(r)
	}
	return v.show("rule", d)
}

func (v *view) warnings(r rule.Rule) (said []string) {
	for _, x := range r.Warnings() {
		said = append(said, v.words.Reason(x))
	}
	return said
}

// turnRule turns a rule on or off, as it is now.
func (v *view) turnRule() error {
	r, err := v.Rules.Get(v.ctx(), v.tenant(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	if v.value("version") != text(r.Version) {
		return fmt.Errorf("trigger rule: %w", problem.ErrConflict)
	}
	on := v.value("on") == "true"
	if r.On != on {
		r.On = on
		if _, err := v.Rules.Update(v.ctx(), v.core, v.actor(), r); err != nil {
			return err
		}
	}
	if on {
		return v.done(rules+"/"+url.PathEscape(r.ID), words.Key("done.ruleOn"))
	}
	return v.done(rules+"/"+url.PathEscape(r.ID), words.Key("done.ruleOff"))
}

func (v *view) moveRule() error {
	if err := v.Rules.Move(v.ctx(), v.core, v.actor(), v.r.PathValue("id"), v.value("way") == "up"); err != nil {
		return err
	}
	return v.done(Root+"/rules", words.Key("done.ruleMoved"))
}

func (v *view) deleteRulePage() error {
	r, err := v.Rules.Get(v.ctx(), v.tenant(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	if r.Version == 0 {
		return v.notFound() // it is as it came: there is nothing to delete
	}
	return v.show("rule-delete", ruleRow{Rule: r, Sentence: v.sentence(r), Ready: rule.IsPredefined(r.ID)})
}

func (v *view) deleteRule() error {
	id := v.r.PathValue("id")
	if err := v.Rules.Delete(v.ctx(), v.core, v.actor(), id); err != nil {
		return err
	}
	if rule.IsPredefined(id) {
		return v.done(Root+"/rules", words.Key("done.ruleReturned"))
	}
	return v.done(Root+"/rules", words.Key("done.ruleDeleted"))
}

// eventRow is an event, and what became of it, in words.
type eventRow struct {
	event.Event
	What string
	Runs []runRow
}

type runRow struct {
	event.Run
	Reason  string
	Effects []effectRow
}

type effectRow struct {
	event.Effect
	What, Reason string
}

// Done tells whether the action was done.
func (e effectRow) Done() bool { return e.Outcome == event.EffectDone }

func (v *view) runRow(r event.Run) runRow {
	out := runRow{Run: r, Reason: v.words.AuditReason(r.Reason)}
	for _, e := range r.Effects {
		out.Effects = append(out.Effects, effectRow{e, v.words.Say(words.Family("rule.does.", e.Action)), v.words.AuditReason(e.Reason)})
	}
	return out
}

func (v *view) eventRow(e event.Event) eventRow {
	row := eventRow{Event: e, What: v.eventWords(e.Type)}
	for _, r := range e.Runs {
		row.Runs = append(row.Runs, v.runRow(r))
	}
	return row
}

func (v *view) listEvents() error {
	from, err := v.place()
	if err != nil {
		return err
	}
	more := func(beyond string, limit int) ([]eventRow, string, error) {
		events, next, err := event.List(v.ctx(), v.Table, v.tenant(), beyond, limit)
		rows := make([]eventRow, len(events))
		for i, e := range events {
			rows[i] = v.eventRow(e)
		}
		return rows, next, err
	}
	if v.value("format") == "csv" {
		return csvFile(v, "events", []string{"receivedAt", "time", "type", "id", "source", "user", "card", "state", "chain", "caused"}, rowsOf(from, func(beyond string) ([]eventRow, string, error) { return more(beyond, 200) }),
			func(e eventRow) []string {
				return []string{csvTime(e.ReceivedAt), csvTime(e.At), string(e.Type), e.ID, string(e.Source), e.User, e.Card, string(e.State), strings.Join(e.Chain, " "), e.caused()}
			})
	}
	rows, next, err := more(from, pageSize)
	if err != nil {
		return err
	}
	return v.show("events", list(v, rows, next))
}

// caused is what became of it in codes, for a file.
func (e eventRow) caused() string {
	var parts []string
	for _, r := range e.Runs {
		part := r.Name + ": " + string(r.Outcome)
		if r.Run.Reason != "" {
			part += " " + r.Run.Reason
		}
		for _, f := range r.Effects {
			part += ", " + f.Action + " " + strings.TrimSpace(string(f.Outcome)+" "+f.Effect.Reason)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

// eventData is the page of an event.
type eventData struct {
	eventRow
	Named      []namedValue
	ChainNames []chainLink
}

type namedValue struct{ Name, Value string }

type chainLink struct{ ID, Name string }

func (v *view) eventPage() error {
	e, err := event.Get(v.ctx(), v.Table, v.tenant(), v.value("id"))
	if err != nil {
		return err
	}
	d := eventData{eventRow: v.eventRow(e)}
	for name, value := range e.Attributes {
		d.Named = append(d.Named, namedValue{name, value})
	}
	slices.SortFunc(d.Named, func(a, b namedValue) int { return strings.Compare(a.Name, b.Name) })
	if len(e.Chain) > 0 {
		all, err := v.Rules.List(v.ctx(), v.tenant())
		if err != nil {
			return err
		}
		for _, id := range e.Chain {
			link := chainLink{id, id}
			if i := slices.IndexFunc(all, func(r rule.Rule) bool { return r.ID == id }); i >= 0 {
				link.Name = all[i].Name
			}
			d.ChainNames = append(d.ChainNames, link)
		}
	}
	return v.show("event", d)
}
