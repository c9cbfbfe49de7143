package page

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/user"
)

// ruleForm is a rule as it stands in the form, where a number may be none. The names of its
// inputs are the fields of rule.Rule.Validate.
type ruleForm struct {
	ID, Version string // "" of a new one
	Name        string
	On          bool
	Order       int
	Event       string // customEvent has its name in Custom
	Custom      string
	Conditions  []conditionForm
	Actions     []actionForm
	Try         tryForm
}

const customEvent = "custom"

// conditionForm is one condition. Which of its fields it has its kind tells.
type conditionForm struct {
	Kind  string
	Field string // what violations call it
	Is    string // of hasPin, hasMail and hasActiveCard: "true" or "false"
	Value string // of groups, pinOlderThanHours and pinExpiresWithinHours
	Name  string // of an attribute
	How   string // of an attribute: "equals", "in" or "matches"
	Days  []string
	From  string
	To    string
}

// actionForm is one action.
type actionForm struct {
	Kind, Field                            string
	Length, Alphabet, ValidHours, OneTime  string
	Attribute, Messaging, Template, Advice string // Advice is the message of a mail
	Endpoint                               string
}

// tryForm is over what a dry run goes.
type tryForm struct {
	Over           string // "stored" or "event"
	By, User, Card string // By is "username", "mail", "externalId" or "id"
	Attributes     string // "name=value" on each line
}

// The kinds of condition, in the order in which the form has them. All but attributes are
// there once.
const (
	isFirst   = "first"
	isHasPIN  = "hasPin"
	isHasMail = "hasMail"
	isHasCard = "hasActiveCard"
	isGroups  = "groups"
	isOlder   = "pinOlderThanHours"
	isExpires = "pinExpiresWithinHours"
	isAttrib  = "attribute"
	isWindow  = "window"
)

var conditionKinds = []string{isFirst, isHasPIN, isHasMail, isHasCard, isGroups, isOlder, isExpires, isAttrib, isWindow}

func ruleFormFrom(r rule.Rule) ruleForm {
	f := ruleForm{ID: r.ID, Version: text(r.Version), Name: r.Name, On: r.On, Order: r.Order, Event: string(r.Event)}
	if strings.HasPrefix(f.Event, event.CustomPrefix) {
		f.Event, f.Custom = customEvent, f.Event
	}
	add := func(c conditionForm) { f.Conditions = append(f.Conditions, c) }
	c := r.Conditions
	if c.First {
		add(conditionForm{Kind: isFirst})
	}
	for _, is := range []struct {
		kind string
		want *bool
	}{{isHasPIN, c.HasPIN}, {isHasMail, c.HasMail}, {isHasCard, c.HasActiveCard}} {
		if is.want != nil {
			add(conditionForm{Kind: is.kind, Is: text(*is.want)})
		}
	}
	if len(c.Groups) > 0 {
		add(conditionForm{Kind: isGroups, Value: strings.Join(c.Groups, "\n")})
	}
	if c.PINOlderThanHours > 0 {
		add(conditionForm{Kind: isOlder, Value: text(c.PINOlderThanHours)})
	}
	if c.PINExpiresWithinHours > 0 {
		add(conditionForm{Kind: isExpires, Value: text(c.PINExpiresWithinHours)})
	}
	for _, t := range c.Attributes {
		is := conditionForm{Kind: isAttrib, Name: t.Name, How: "matches", Value: t.Matches}
		if t.Equals != nil {
			is.How, is.Value = "equals", *t.Equals
		} else if len(t.In) > 0 {
			is.How, is.Value = "in", strings.Join(t.In, "\n")
		}
		add(is)
	}
	if w := c.Window; !w.IsZero() {
		is := conditionForm{Kind: isWindow, From: w.From, To: w.To}
		for _, d := range w.Days {
			is.Days = append(is.Days, text(int(d)))
		}
		add(is)
	}
	for _, a := range r.Actions {
		x := actionForm{Kind: string(a.Kind), Alphabet: string(a.Alphabet), OneTime: string(a.OneTime), Attribute: a.Attribute,
			Messaging: a.Messaging, Template: a.Template, Advice: a.Message, Endpoint: a.Endpoint}
		if a.Length != 0 {
			x.Length = text(a.Length)
		}
		if a.ValidHours != 0 {
			x.ValidHours = text(a.ValidHours)
		}
		f.Actions = append(f.Actions, x)
	}
	return f.numbered()
}

// numbered gives each condition and action the field that violations call it by.
func (f ruleForm) numbered() ruleForm {
	attributes := 0
	for i := range f.Conditions {
		c := &f.Conditions[i]
		c.Field = "conditions." + c.Kind
		if c.Kind == isAttrib {
			c.Field = fmt.Sprintf("conditions.attributes[%d]", attributes)
			attributes++
		}
	}
	for i := range f.Actions {
		f.Actions[i].Field = fmt.Sprintf("actions[%d]", i)
	}
	return f
}

// ruleForm reads the form that was sent.
func (v *view) ruleForm() ruleForm {
	order, _ := strconv.Atoi(v.value("order"))
	f := ruleForm{ID: v.value("id"), Version: v.value("version"), Name: v.value("name"), On: v.value("on") != "", Order: order,
		Event: v.value("event"), Custom: v.value("custom"),
		Try: tryForm{v.value("tryOver"), v.value("tryBy"), v.value("tryUser"), v.value("tryCard"), v.value("tryAttributes")}}
	for _, kind := range v.values("condition") {
		if slices.Contains(conditionKinds, kind) {
			f.Conditions = append(f.Conditions, conditionForm{Kind: kind})
		}
	}
	for _, kind := range v.values("action") {
		f.Actions = append(f.Actions, actionForm{Kind: kind})
	}
	f = f.numbered()
	for i := range f.Conditions {
		c := &f.Conditions[i]
		switch of := c.Field; c.Kind {
		case isHasPIN, isHasMail, isHasCard:
			c.Is = v.value(of)
		case isGroups, isOlder, isExpires:
			c.Value = v.value(of)
		case isAttrib:
			c.Name, c.How, c.Value = v.value(of+".name"), v.value(of+".how"), v.value(of+".equals")
		case isWindow:
			c.Days, c.From, c.To = v.values(of+".days"), v.value(of+".from"), v.value(of+".to")
		}
	}
	for i := range f.Actions {
		of := f.Actions[i].Field + "."
		f.Actions[i] = actionForm{f.Actions[i].Kind, f.Actions[i].Field, v.value(of + "length"), v.value(of + "alphabet"), v.value(of + "validHours"), v.value(of + "oneTime"),
			v.value(of + "attribute"), v.value(of + "messaging"), v.value(of + "template"), v.value(of + "message"), v.value(of + "endpoint")}
	}
	return f
}

// eachLine returns the values that a person has written on lines of their own.
func eachLine(s string) (values []string) {
	for _, line := range strings.Split(s, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			values = append(values, line)
		}
	}
	return values
}

// rule returns the rule that the form says, or everything that is wrong with it.
func (f ruleForm) rule() (rule.Rule, error) {
	var vs problem.Violations
	number := func(field, s string) int {
		n, err := strconv.Atoi(cmp.Or(s, "0"))
		if err != nil {
			vs.Add("type", field, "must be a whole number")
		}
		return n
	}
	r := rule.Rule{ID: f.ID, Name: f.Name, On: f.On, Order: f.Order, Event: event.Type(f.Event)}
	if f.Event == customEvent {
		r.Event = event.Type(f.Custom)
	}
	c := &r.Conditions
	for _, is := range f.Conditions {
		yes := is.Is != "false"
		switch is.Kind {
		case isFirst:
			c.First = true
		case isHasPIN:
			c.HasPIN = &yes
		case isHasMail:
			c.HasMail = &yes
		case isHasCard:
			c.HasActiveCard = &yes
		case isGroups:
			if c.Groups = eachLine(is.Value); len(c.Groups) == 0 {
				vs.Add("missing", is.Field, "are needed: at least one, each on a line of its own")
			}
		case isOlder, isExpires:
			h := number(is.Field, is.Value)
			if h == 0 {
				vs.Add("range", is.Field, "must be at least 1 hour")
			}
			if is.Kind == isOlder {
				c.PINOlderThanHours = h
			} else {
				c.PINExpiresWithinHours = h
			}
		case isAttrib:
			t := rule.Test{Name: is.Name}
			switch is.How {
			case "in":
				t.In = eachLine(is.Value)
			case "matches":
				t.Matches = is.Value
			default:
				value := is.Value
				t.Equals = &value
			}
			c.Attributes = append(c.Attributes, t)
		case isWindow:
			c.Window = rule.Window{From: is.From, To: is.To}
			for _, d := range is.Days {
				day, err := strconv.Atoi(d)
				if err != nil {
					day = -1 // which Validate refuses
				}
				c.Window.Days = append(c.Window.Days, time.Weekday(day))
			}
			if c.Window.IsZero() {
				vs.Add("missing", is.Field+".days", "are needed, or times of day: without them it is always")
			}
		}
	}
	for _, a := range f.Actions {
		x := rule.Action{Kind: rule.Kind(a.Kind)}
		switch x.Kind { // what another kind has is not looked at
		case rule.GeneratePIN:
			x.Length, x.Alphabet, x.ValidHours, x.OneTime = number(a.Field+".length", a.Length), pin.Alphabet(a.Alphabet), number(a.Field+".validHours", a.ValidHours), user.OneTime(a.OneTime)
			x.Messaging, x.Template = a.Messaging, a.Template
		case rule.SendMail:
			x.Messaging, x.Template, x.Message = a.Messaging, a.Template, strings.ReplaceAll(a.Advice, "\r\n", "\n")
		case rule.SetPIN:
			x.Attribute = a.Attribute
		case rule.CallWebhook:
			x.Endpoint = a.Endpoint
		}
		r.Actions = append(r.Actions, x)
	}
	version, err := strconv.ParseInt(cmp.Or(f.Version, "0"), 10, 64)
	if err != nil {
		return r, fmt.Errorf("version of a trigger rule: %w", problem.ErrConflict)
	}
	r.Version = version
	if err := vs.Merge(r.Validate()); err != nil {
		return r, err
	}
	return r, vs.Err()
}

// ruleFormData is the page of the form of a rule.
type ruleFormData struct {
	Form       ruleForm
	Ready      bool
	Events     []Option
	Addable    []Option // conditions
	Kinds      []Option // of actions
	Messaging  []Option
	PINMails   []Option // templates for GeneratePIN
	Notices    []Option // templates for SendMail
	Endpoints  []Option
	Days       []Option
	Conflict   bool
	Differs    []Difference
	Sentence   *Sentence // what the rule says, if nothing is wrong with it
	Warnings   []string
	Trial      *trialData
	MayAdd     bool // an action
	HasWebhook bool
}

// trialData is what a dry run has said.
type trialData struct {
	rule.Trials
	One     bool // it was over one event
	Unmet   []counted
	Refused []counted
	Shown   []trialRow
}

type counted struct {
	Reason string
	Count  int
}

type trialRow struct {
	Event eventRow
	Run   runRow
}

func (v *view) ruleFormData(f ruleForm) (ruleFormData, error) {
	w := v.words
	f.Try.Over = cmp.Or(f.Try.Over, "stored")
	d := ruleFormData{Form: f, Ready: rule.IsPredefined(f.ID), MayAdd: len(f.Actions) < rule.MaxActions}
	for _, e := range event.Catalogue() {
		d.Events = append(d.Events, Option{string(e.Type), v.eventWords(e.Type)})
	}
	d.Events = append(d.Events, Option{customEvent, w.Say("rule.otherEvent")})
	for _, kind := range conditionKinds {
		if kind == isAttrib || !slices.ContainsFunc(f.Conditions, func(c conditionForm) bool { return c.Kind == kind }) {
			d.Addable = append(d.Addable, Option{kind, w.Say(words.Family("rule.condition.", kind))})
		}
	}
	for _, k := range rule.Kinds() {
		d.Kinds = append(d.Kinds, Option{string(k), w.Say(words.Family("rule.does.", k))})
	}
	for _, day := range []int{1, 2, 3, 4, 5, 6, 0} {
		d.Days = append(d.Days, Option{text(day), w.Say(words.Family("rule.day.", day))})
	}
	if r, err := f.rule(); err == nil {
		s := v.sentence(r)
		d.Sentence, d.Warnings = &s, v.warnings(r)
	}
	return d, v.ruleChoices(&d)
}

// ruleChoices reads what the actions of the form may name, all at once.
func (v *view) ruleChoices(d *ruleFormData) error {
	mails, hooks := false, false
	for _, a := range d.Form.Actions {
		mails = mails || a.Kind == string(rule.GeneratePIN) || a.Kind == string(rule.SendMail)
		hooks = hooks || a.Kind == string(rule.CallWebhook)
	}
	store := v.messaging().Store(v.core)
	var configurations []mail.Configuration
	var templates []mail.Template
	var endpoints []delivery.Endpoint
	g, ctx := errgroup.WithContext(v.ctx())
	if mails {
		g.Go(func() (err error) { configurations, err = store.Configurations(ctx); return err })
		g.Go(func() (err error) { templates, err = store.Templates(ctx, v.words.Language()); return err })
	}
	if hooks {
		g.Go(func() (err error) { endpoints, err = v.Deliveries.Endpoints(ctx, v.tenant()); return err })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	d.Messaging = []Option{{"", v.words.Say("rule.usualMessaging")}}
	for _, c := range configurations {
		d.Messaging = append(d.Messaging, Option{c.ID, c.Name})
	}
	usual := Option{"", v.words.Say("rule.usualTemplate")}
	d.PINMails, d.Notices = []Option{usual}, []Option{usual}
	for _, t := range templates {
		switch t.Kind {
		case mail.PINIssued:
			d.PINMails = append(d.PINMails, Option{t.ID, t.Name})
		case mail.Notice:
			d.Notices = append(d.Notices, Option{t.ID, t.Name})
		}
	}
	for _, e := range endpoints {
		d.Endpoints = append(d.Endpoints, Option{e.ID, e.Name})
	}
	d.HasWebhook = len(endpoints) > 0
	return nil
}

func (v *view) showRuleForm(f ruleForm) error {
	d, err := v.ruleFormData(f)
	if err != nil {
		return err
	}
	return v.show("rule-form", d)
}

func (v *view) ruleRefused(refusal error, f ruleForm) error {
	d, err := v.ruleFormData(f)
	if err != nil {
		return err
	}
	return v.refused(f.inputs(refusal), "rule-form", d)
}

// inputs gives violations the names of the inputs, where several fields have one.
func (f ruleForm) inputs(err error) error {
	var invalid *problem.InvalidError
	if !errors.As(err, &invalid) {
		return err
	}
	vs := problem.Violations(slices.Clone(invalid.Violations))
	for i, x := range vs {
		field := strings.TrimPrefix(x.Field, "rule.")
		switch {
		case field == "event" && f.Event == customEvent:
			field = "custom"
		case strings.HasPrefix(field, "event.attributes"):
			field = "tryAttributes"
		case strings.HasPrefix(field, "event."):
			field = "tryUser"
		case strings.HasPrefix(field, "conditions.attributes["):
			field = strings.TrimSuffix(strings.TrimSuffix(field, ".in"), ".matches")
			if strings.HasSuffix(field, "]") {
				field += ".equals"
			}
		}
		vs[i].Field = field
	}
	return vs.Err()
}

func (v *view) newRule() error {
	f := ruleForm{Order: 100, Event: string(event.PrintJobSubmitted), Actions: []actionForm{{Kind: string(rule.GeneratePIN)}}}
	return v.showRuleForm(f.numbered())
}

func (v *view) editRule() error {
	r, err := v.Rules.Get(v.ctx(), v.tenant(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.showRuleForm(ruleFormFrom(r))
}

// changeRuleForm adds or takes away a condition or an action, and shows the form again.
// Nothing is saved.
func (v *view) changeRuleForm() error {
	f := v.ruleForm()
	what, which, _ := strings.Cut(v.value("do"), ":")
	at, _ := strconv.Atoi(which)
	switch {
	case what == "add-condition" && slices.Contains(conditionKinds, v.value("addCondition")):
		kind := v.value("addCondition")
		if kind == isAttrib || !slices.ContainsFunc(f.Conditions, func(c conditionForm) bool { return c.Kind == kind }) {
			f.Conditions = append(f.Conditions, conditionForm{Kind: kind, Is: "true", How: "equals"})
		}
	case what == "add-action" && slices.Contains(rule.Kinds(), rule.Kind(v.value("addAction"))) && len(f.Actions) < rule.MaxActions:
		f.Actions = append(f.Actions, actionForm{Kind: v.value("addAction")})
	case what == "drop-condition" && at >= 0 && at < len(f.Conditions):
		f.Conditions = slices.Delete(f.Conditions, at, at+1)
	case what == "drop-action" && at >= 0 && at < len(f.Actions):
		f.Actions = slices.Delete(f.Actions, at, at+1)
	case what == "raise-action" && at > 0 && at < len(f.Actions):
		f.Actions[at-1], f.Actions[at] = f.Actions[at], f.Actions[at-1]
	}
	return v.showRuleForm(f.numbered())
}

func (v *view) saveRule() error {
	f := v.ruleForm()
	r, err := f.rule()
	if err != nil {
		return v.ruleRefused(err, f)
	}
	checks, err := v.Engine.Checks(v.ctx(), v.tenant(), r)
	if err != nil {
		return v.ruleRefused(err, f)
	}
	if f.ID == "" {
		if r, err = v.Rules.Create(v.ctx(), v.core, v.actor(), r, checks...); err != nil {
			return v.ruleRefused(err, f)
		}
		return v.done(rules+"/"+r.ID, words.Key("done.ruleCreated"))
	}
	saved, err := v.Rules.Get(v.ctx(), v.tenant(), f.ID)
	if err != nil {
		return err
	}
	r.CreatedAt = saved.CreatedAt
	if saved.Version == r.Version {
		_, err = v.Rules.Update(v.ctx(), v.core, v.actor(), r, checks...)
	} else {
		err = fmt.Errorf("trigger rule: %w", problem.ErrConflict)
	}
	if errors.Is(err, problem.ErrConflict) {
		return v.ruleConflict(f, r)
	} else if err != nil {
		return v.ruleRefused(err, f)
	}
	return v.done(rules+"/"+url.PathEscape(f.ID), words.Key("done.ruleSaved"))
}

func (v *view) ruleConflict(f ruleForm, entered rule.Rule) error {
	saved, err := v.Rules.Get(v.ctx(), v.tenant(), f.ID)
	if err != nil {
		return err
	}
	f.Version = text(saved.Version)
	d, err := v.ruleFormData(f)
	if err != nil {
		return err
	}
	d.Conflict, d.Differs = true, differing(v.ruleFacts(saved), v.ruleFacts(entered))
	return v.render(http.StatusConflict, "rule-form", "layout", Frame{v: v, D: d})
}

func (v *view) ruleFacts(r rule.Rule) []Difference {
	w, s := v.words, v.sentence(r)
	return []Difference{{w.Say("rule.name"), r.Name, ""}, {w.Say("rule.state"), w.Say(words.Family("rule.on.", r.On)), ""},
		{w.Say("rule.event"), s.When, ""}, {w.Say("rule.conditions"), strings.Join(s.And, "\n"), ""}, {w.Say("rule.actions"), strings.Join(s.Then, "\n"), ""}}
}

// event returns the event that a dry run is to go over.
func (f tryForm) event(t event.Type, now time.Time) (event.Event, error) {
	e := event.Event{ID: "trial", Type: t, At: now, Card: f.Card, Source: event.FromAPI, Attributes: map[string]string{}}
	switch f.By {
	case "id":
		e.Ref.ID = f.User
	case "mail":
		e.Ref.Mail = f.User
	case "externalId":
		e.Ref.ExternalID = f.User
	default:
		e.Ref.Username = f.User
	}
	for _, line := range eachLine(f.Attributes) {
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			return e, problem.Invalid("form", "tryAttributes", "must be a name and a value on each line, with = between, such as queue=second-floor")
		}
		e.Attributes[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	if t.Inside() {
		e = e.AsInside()
	}
	return e, nil
}

// tryRule says what the rule would do as it stands in the form.
func (v *view) tryRule() error {
	f := v.ruleForm()
	r, err := f.rule()
	if err != nil {
		return v.ruleRefused(err, f)
	}
	r.ID = cmp.Or(r.ID, "unsaved")
	var ts rule.Trials
	one := f.Try.Over == "event"
	if one {
		var e event.Event
		if e, err = f.Try.event(r.Event, v.Now()); err == nil {
			ts, err = v.tryOne(r, e)
		}
	} else {
		ts, err = v.Engine.TryAll(v.ctx(), v.core, r)
	}
	if err != nil {
		return v.ruleRefused(err, f)
	}
	if v.value("format") == "csv" {
		return csvFile(v, "dry-run", []string{"time", "event", "user", "card", "would"}, rowsOf("", func(string) ([]rule.Trial, string, error) { return ts.Shown, "", nil }),
			func(t rule.Trial) []string {
				row := eventRow{Runs: []runRow{v.runRow(t.Run)}}
				return []string{csvTime(t.Event.At), t.Event.ID, t.Event.User, t.Event.Card, row.caused()}
			})
	}
	d, err := v.ruleFormData(f)
	if err != nil {
		return err
	}
	d.Trial = &trialData{Trials: ts, One: one, Unmet: v.counted(ts.Unmet), Refused: v.counted(ts.Refused)}
	for _, t := range ts.Shown {
		d.Trial.Shown = append(d.Trial.Shown, trialRow{v.eventRow(t.Event), v.runRow(t.Run)})
	}
	return v.show("rule-form", d)
}

// tryOne is a trial over one event, told as one over many.
func (v *view) tryOne(r rule.Rule, e event.Event) (rule.Trials, error) {
	t, err := v.Engine.Try(v.ctx(), v.core, r, e)
	if err != nil {
		return rule.Trials{}, err
	}
	ts := rule.Trials{Read: 1, Of: 1, Unmet: map[string]int{}, Refused: map[string]int{}, Shown: []rule.Trial{t}}
	if t.Acts() {
		ts.Acting = 1
	} else {
		ts.Unmet[t.Run.Reason] = 1
	}
	for _, f := range t.Run.Effects {
		if f.Reason != "" {
			ts.Refused[f.Reason]++
		}
	}
	return ts, nil
}

// counted puts reasons in words, the most frequent first.
func (v *view) counted(by map[string]int) (out []counted) {
	for _, code := range slices.Sorted(maps.Keys(by)) {
		out = append(out, counted{v.words.AuditReason(code), by[code]})
	}
	slices.SortStableFunc(out, func(a, b counted) int { return cmp.Compare(b.Count, a.Count) })
	return out
}
