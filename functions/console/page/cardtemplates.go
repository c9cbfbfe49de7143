package page

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

func (c *Console) cardTemplateRoutes() []route {
	const all = Root + "/cards/templates"
	const one = all + "/of/{template}"
	return []route{
		{pattern: "GET " + all, action: tenant.ReadCardTemplates, do: (*view).listCardTemplates},
		{pattern: "GET " + all + "/new", action: tenant.WriteCardTemplates, do: (*view).newCardTemplate},
		{pattern: "POST " + all + "/new", action: tenant.WriteCardTemplates, do: (*view).createCardTemplate},
		{pattern: "GET " + one, action: tenant.ReadCardTemplates, do: (*view).showCardTemplate},
		{pattern: "GET " + one + "/edit", action: tenant.WriteCardTemplates, do: (*view).editCardTemplate},
		{pattern: "POST " + one + "/edit", action: tenant.WriteCardTemplates, do: (*view).saveCardTemplate},
		{pattern: "GET " + one + "/master-key", action: tenant.WriteCardTemplates, do: (*view).masterKeyPage},
		{pattern: "POST " + one + "/master-key", action: tenant.WriteCardTemplates, sensitive: true, do: (*view).saveMasterKey},
		{pattern: "GET " + one + "/delete", action: tenant.WriteCardTemplates, do: (*view).deleteCardTemplatePage},
		{pattern: "POST " + one + "/delete", action: tenant.WriteCardTemplates, do: (*view).deleteCardTemplate},
	}
}

// channelForm is a way to an unblock as it stands in the form.
type channelForm struct {
	Channel credential.Channel
	On      bool
	Proof   string
	Proofs  []Option
}

// reminderForm is a reminder as it stands in the form. One without days is none.
type reminderForm struct{ DaysBefore, MailTemplate, Messaging string }

// cardTemplateForm is a credential template as it stands in the form. The names of the inputs
// are the fields of credential.Template.Validate.
type cardTemplateForm struct {
	Name, Family                          string
	MinLength, MaxLength, MaxRun          string
	Alphabet, Blocklist, BlocklistEntries string
	Classes                               []string
	DisallowSequential, ConstantDelta     bool
	Messaging, PINValidDays               string
	Reminders                             []reminderForm
	ExpiredTemplate, OperatorMail         string
	LimitCount, LimitDays                 string
	Channels                              []channelForm
}

func (v *view) cardTemplateFormOf(t credential.Template) cardTemplateForm {
	off := func(n int) string {
		if n == 0 {
			return ""
		}
		return text(n)
	}
	f := cardTemplateForm{
		Name: t.Name, Family: t.Family, MinLength: text(t.Policy.MinLength), MaxLength: text(t.Policy.MaxLength), MaxRun: off(t.Policy.MaxRun),
		Alphabet: string(t.Policy.Alphabet), Blocklist: string(t.Policy.Blocklist), BlocklistEntries: strings.Join(t.Policy.BlocklistEntries, "\n"),
		DisallowSequential: t.Policy.DisallowSequential, ConstantDelta: t.Policy.DisallowConstantDelta,
		Messaging: t.Messaging, PINValidDays: off(t.PINValidDays), ExpiredTemplate: cmp.Or(t.ExpiredTemplate, mail.CardPINExpiredID), OperatorMail: t.OperatorMail,
		LimitCount: off(t.Limit.Count), LimitDays: off(t.Limit.Days),
	}
	for _, c := range t.Policy.RequireClasses {
		f.Classes = append(f.Classes, string(c))
	}
	for _, r := range t.Reminders {
		f.Reminders = append(f.Reminders, reminderForm{text(r.DaysBefore), cmp.Or(r.MailTemplate, mail.CardPINExpiryID), r.Messaging})
	}
	f.Reminders = append(f.Reminders, moreReminders(len(f.Reminders))...)
	for _, c := range credential.Channels() {
		f.Channels = append(f.Channels, channelForm{c, t.Allows(c), string(t.ProofFor(c)), v.proofOptions(c)})
	}
	return f
}

// moreReminders are empty rows for reminders to be added.
func moreReminders(there int) (rows []reminderForm) {
	for range min(2, credential.MaxReminders-there) {
		rows = append(rows, reminderForm{MailTemplate: mail.CardPINExpiryID})
	}
	return rows
}

func (v *view) proofOptions(c credential.Channel) (all []Option) {
	for _, p := range credential.ProofsFor(c) {
		all = append(all, Option{string(p), v.words.Say(words.Family("cardTemplates.proof.", p))})
	}
	return all
}

// cardTemplateForm reads the form that was sent.
func (v *view) cardTemplateForm() cardTemplateForm {
	on := func(name string) bool { return v.value(name) != "" }
	f := cardTemplateForm{
		Name: v.value("name"), Family: v.value("family"), MinLength: v.value("policy.minLength"), MaxLength: v.value("policy.maxLength"), MaxRun: v.value("policy.maxRun"),
		Alphabet: v.value("policy.alphabet"), Blocklist: v.value("policy.blocklist"), BlocklistEntries: v.value("policy.blocklistEntries"), Classes: v.values("policy.requireClasses"),
		DisallowSequential: on("policy.disallowSequential"), ConstantDelta: on("policy.disallowConstantDelta"),
		Messaging: v.value("messaging"), PINValidDays: v.value("pinValidDays"), ExpiredTemplate: v.value("expiredTemplate"), OperatorMail: v.value("operatorMail"),
		LimitCount: v.value("limit.count"), LimitDays: v.value("limit"),
	}
	for i := range credential.MaxReminders {
		at := fmt.Sprintf("reminders.%d.", i)
		if days := v.value(at + "daysBefore"); days != "" {
			f.Reminders = append(f.Reminders, reminderForm{days, v.value(at + "mailTemplate"), v.value(at + "messaging")})
		}
	}
	f.Reminders = append(f.Reminders, moreReminders(len(f.Reminders))...)
	for _, c := range credential.Channels() {
		f.Channels = append(f.Channels, channelForm{c, on("channel." + string(c)), v.value("proofs." + string(c)), v.proofOptions(c)})
	}
	return f
}

// apply changes a template to what the form says, all but its family; what is no number is
// a violation.
func (f cardTemplateForm) apply(t *credential.Template) error {
	var vs problem.Violations
	whole := func(field, s string) int { return wholeNumber(&vs, field, cmp.Or(s, "0")) }
	t.Name, t.Messaging, t.PINValidDays, t.OperatorMail = f.Name, f.Messaging, whole("pinValidDays", f.PINValidDays), f.OperatorMail
	t.ExpiredTemplate = unless(mail.CardPINExpiredID, f.ExpiredTemplate)
	p := t.Policy
	p.MinLength, p.MaxLength, p.MaxRun = wholeNumber(&vs, "policy.minLength", f.MinLength), wholeNumber(&vs, "policy.maxLength", f.MaxLength), whole("policy.maxRun", f.MaxRun)
	p.Alphabet, p.Blocklist, p.DisallowSequential, p.DisallowConstantDelta = pin.Alphabet(f.Alphabet), pin.Blocklist(f.Blocklist), f.DisallowSequential, f.ConstantDelta
	p.RequireClasses, p.BlocklistEntries = nil, nil
	for _, c := range f.Classes {
		p.RequireClasses = append(p.RequireClasses, pin.Class(c))
	}
	for line := range strings.Lines(f.BlocklistEntries) {
		if entry := strings.TrimSpace(line); entry != "" {
			p.BlocklistEntries = append(p.BlocklistEntries, entry)
		}
	}
	t.Policy = p
	t.Reminders = nil
	for i, r := range f.Reminders {
		if r.DaysBefore != "" {
			t.Reminders = append(t.Reminders, credential.Reminder{DaysBefore: wholeNumber(&vs, fmt.Sprintf("reminders.%d.daysBefore", i), r.DaysBefore),
				MailTemplate: unless(mail.CardPINExpiryID, r.MailTemplate), Messaging: r.Messaging})
		}
	}
	t.Limit = credential.Limit{Count: whole("limit.count", f.LimitCount), Days: whole("limit", f.LimitDays)}
	t.Channels, t.Proofs = nil, nil
	for _, c := range f.Channels {
		if c.On {
			t.Channels = append(t.Channels, c.Channel)
		}
		if c.Proof != "" && c.Proof != string(credential.Template{}.ProofFor(c.Channel)) {
			if t.Proofs == nil {
				t.Proofs = map[credential.Channel]credential.Proof{}
			}
			t.Proofs[c.Channel] = credential.Proof(c.Proof)
		}
	}
	return vs.Err()
}

// unless returns a value, "" for the one that stands for itself.
func unless(usual, value string) string {
	if value == usual {
		return ""
	}
	return value
}

// mailChoices are what templates may name of messaging.
type mailChoices struct{ Messaging, Expiry, Expired []Option }

func (v *view) mailChoices() (c mailChoices, _ error) {
	store := mail.Store{Table: v.Table, Tenant: v.tenant(), Keys: v.core.Keys}
	var configurations []mail.Configuration
	var templates []mail.Template
	g, ctx := errgroup.WithContext(v.ctx())
	g.Go(func() (err error) {
		configurations, err = store.Configurations(ctx)
		return err
	})
	g.Go(func() (err error) {
		templates, err = store.Templates(ctx, v.words.Language())
		return err
	})
	if err := g.Wait(); err != nil {
		return c, err
	}
	for _, m := range configurations {
		c.Messaging = append(c.Messaging, Option{m.ID, m.Name})
	}
	for _, t := range templates {
		switch t.Kind {
		case mail.CardPINExpiry:
			c.Expiry = append(c.Expiry, Option{t.ID, t.Name})
		case mail.CardPINExpired:
			c.Expired = append(c.Expired, Option{t.ID, t.Name})
		}
	}
	return c, nil
}

// fact is one thing that a template says, in words.
type fact struct{ Field, Label, Value string }

// named is the name of an option, or its value if there is none such.
func named(options []Option, value string) string {
	if i := slices.IndexFunc(options, func(o Option) bool { return o.Value == value }); i >= 0 {
		return options[i].Label
	}
	return value
}

// facts says a template in words. All templates have the same facts in the same order.
func (v *view) facts(t credential.Template, m mailChoices) []fact {
	w := v.words
	yes := func(on bool) string { return w.Say(words.Family("cardTemplates.is.", on)) }
	none := w.Say("cardTemplates.none")
	or := func(s string) string { return cmp.Or(s, none) }
	var classes, reminders []string
	for _, c := range t.Policy.RequireClasses {
		classes = append(classes, w.Say(words.Family("cardTemplates.class.", c)))
	}
	for _, r := range t.Reminders {
		s := w.Say("cardTemplates.reminder", r.DaysBefore, named(m.Expiry, cmp.Or(r.MailTemplate, mail.CardPINExpiryID)))
		if r.Messaging != "" {
			s += ", " + named(m.Messaging, r.Messaging)
		}
		reminders = append(reminders, s)
	}
	days := w.Say("cardTemplates.neverExpires")
	if t.ManagesExpiry() {
		days = w.Say("cardTemplates.days", t.PINValidDays)
	}
	limit := w.Say("cardTemplates.noLimit")
	if t.Limit != (credential.Limit{}) {
		limit = w.Say("cardTemplates.limitIs", t.Limit.Count, t.Limit.Days)
	}
	run := none
	if t.Policy.MaxRun > 0 {
		run = w.Number(t.Policy.MaxRun)
	}
	all := []fact{
		{"name", w.Say("cardTemplates.name"), t.Name}, {"family", w.Say("cardTemplates.family"), t.Family},
		{"custody", w.Say("cardTemplates.custody"), w.Say(words.Family("cardTemplates.custody.", t.Custody()))},
		{"policy.minLength", w.Say("cardTemplates.minLength"), w.Number(t.Policy.MinLength)}, {"policy.maxLength", w.Say("cardTemplates.maxLength"), w.Number(t.Policy.MaxLength)},
		{"policy.alphabet", w.Say("cardTemplates.alphabet"), w.Say(words.Family("cardTemplates.alphabet.", t.Policy.Alphabet))},
		{"policy.requireClasses", w.Say("cardTemplates.classes"), or(strings.Join(classes, ", "))},
		{"policy.disallowSequential", w.Say("cardTemplates.sequential"), yes(t.Policy.DisallowSequential)}, {"policy.maxRun", w.Say("cardTemplates.maxRun"), run},
		{"policy.disallowConstantDelta", w.Say("cardTemplates.constantDelta"), yes(t.Policy.DisallowConstantDelta)},
		{"policy.blocklist", w.Say("cardTemplates.blocklist"), yes(t.Policy.Blocklist == pin.BlocklistCommon)},
		{"policy.blocklistEntries", w.Say("cardTemplates.entries"), or(strings.Join(t.Policy.BlocklistEntries, ", "))},
		{"pinValidDays", w.Say("cardTemplates.validDays"), days}, {"reminders", w.Say("cardTemplates.reminders"), or(strings.Join(reminders, "; "))},
		{"messaging", w.Say("cardTemplates.messaging"), or(named(m.Messaging, t.Messaging))},
		{"expiredTemplate", w.Say("cardTemplates.expiredTemplate"), named(m.Expired, cmp.Or(t.ExpiredTemplate, mail.CardPINExpiredID))},
		{"operatorMail", w.Say("cardTemplates.operatorMail"), or(t.OperatorMail)}, {"limit", w.Say("cardTemplates.limit"), limit},
	}
	for _, c := range credential.Channels() {
		name := w.Say(words.Family("cardTemplates.channel.", c))
		all = append(all, fact{"channels." + string(c), name, w.Say(words.Family("cardTemplates.open.", t.Allows(c)))},
			fact{"proofs." + string(c), w.Say("cardTemplates.proofOf", name), w.Say(words.Family("cardTemplates.proof.", t.ProofFor(c)))})
	}
	return all
}

type cardTemplateList struct{ Templates List[credential.Template] }

func (v *view) listCardTemplates() error {
	all, err := v.Credentials.Templates(v.ctx(), v.tenant())
	if err != nil {
		return err
	}
	if v.value("format") == "csv" {
		return csvFile(v, "credential-templates", []string{"id", "name", "family", "pinValidDays", "reminderDays", "channels", "custody"}, func(yield func(credential.Template, error) bool) {
			for _, t := range all {
				if !yield(t, nil) {
					return
				}
			}
		}, func(t credential.Template) []string {
			var days, channels []string
			for _, r := range t.Reminders {
				days = append(days, text(r.DaysBefore))
			}
			for _, c := range t.Channels {
				channels = append(channels, string(c))
			}
			return []string{t.ID, t.Name, t.Family, text(t.PINValidDays), strings.Join(days, " "), strings.Join(channels, " "), string(t.Custody())}
		})
	}
	return v.show("card-templates", cardTemplateList{list(v, all, "")})
}

type cardTemplatePage struct {
	Template credential.Template
	Facts    []fact
	Cards    int
	HasPUK   bool
}

func (v *view) cardTemplate() (credential.Template, error) {
	return v.Credentials.Template(v.ctx(), v.tenant(), v.r.PathValue("template"))
}

func (v *view) cardTemplatePage() (d cardTemplatePage, _ error) {
	var choices mailChoices
	g, ctx := errgroup.WithContext(v.ctx())
	g.Go(func() (err error) {
		d.Template, err = v.cardTemplate()
		return err
	})
	g.Go(func() (err error) {
		d.Cards, err = v.Credentials.Uses(ctx, v.tenant(), v.r.PathValue("template"))
		return err
	})
	g.Go(func() (err error) {
		choices, err = v.mailChoices()
		return err
	})
	if err := g.Wait(); err != nil {
		return d, err
	}
	d.HasPUK = d.Template.Custody() == credential.PUKRotated
	d.Facts = v.facts(d.Template, choices)
	return d, nil
}

func (v *view) showCardTemplate() error {
	d, err := v.cardTemplatePage()
	if err != nil {
		return err
	}
	return v.show("card-template", d)
}

// cardTemplateEdit is the form of a template, new or not.
type cardTemplateEdit struct {
	ID          string // "" of a new one
	Version     string // that the form began with
	Form        cardTemplateForm
	Mail        mailChoices
	Families    []Option
	Alphabets   []Option // that PINs of such cards may have
	Least, Most int      // length of their PINs
	Conflict    []difference
	Preview     *templatePreview
	Seen        string // what the preview is of
}

// templatePreview is what a change does.
type templatePreview struct {
	credential.Preview
	Changes []templateChange
}

type templateChange struct{ Label, From, To, Effect string }

func (v *view) cardTemplateEdit(t credential.Template, form cardTemplateForm) (d cardTemplateEdit, err error) {
	d = cardTemplateEdit{ID: t.ID, Version: text(t.Version), Form: form}
	for _, f := range card.Families() {
		d.Families = append(d.Families, Option{f.Name, f.Name})
	}
	if f, err := card.FamilyNamed(form.Family); err == nil {
		d.Least, d.Most = f.Policy().MinLength, f.Policy().MaxLength
		for _, a := range f.Alphabets() {
			d.Alphabets = append(d.Alphabets, Option{string(a), v.words.Say(words.Family("cardTemplates.alphabet.", a))})
		}
	}
	d.Mail, err = v.mailChoices()
	return d, err
}

// HasPUK tells whether the PINs of such cards are reset by a PUK, not by an admin key.
func (d cardTemplateEdit) HasPUK() bool {
	return credential.Template{Family: d.Form.Family}.Custody() == credential.PUKRotated
}

// Number is what people call the row of a reminder.
func (cardTemplateEdit) Number(i int) int { return i + 1 }

// OwnMessaging are the messaging configurations that a reminder may have, the template's
// own first.
func (d cardTemplateEdit) OwnMessaging(own string) []Option {
	return append([]Option{{"", own}}, d.Mail.Messaging...)
}

// newCardTemplate begins with the family: what is usual for it fills the form.
func (v *view) newCardTemplate() error {
	t := credential.Template{Family: v.value("family"), Channels: []credential.Channel{credential.Operator}}
	if f, err := card.FamilyNamed(t.Family); err == nil {
		t.Policy = f.Policy()
	} else {
		t.Family = ""
	}
	d, err := v.cardTemplateEdit(t, v.cardTemplateFormOf(t))
	if err != nil {
		return err
	}
	return v.show("card-template-edit", d)
}

func (v *view) createCardTemplate() error {
	masterKey := v.secretValue("masterKey")
	form := v.cardTemplateForm()
	t := credential.Template{Family: form.Family}
	if f, err := card.FamilyNamed(form.Family); err == nil {
		t.Policy = f.Policy()
	}
	d, err := v.cardTemplateEdit(t, form)
	if err != nil {
		return err
	}
	if err := form.apply(&t); err != nil {
		return v.refused(err, "card-template-edit", d)
	}
	t, err = v.Credentials.CreateTemplate(v.ctx(), v.core, v.actor(), t, given(masterKey))
	if err != nil {
		return v.refused(err, "card-template-edit", d)
	}
	return v.done(join("/cards/templates/of/", t.ID), words.Key("done.cardTemplateMade"))
}

func (v *view) editCardTemplate() error {
	t, err := v.cardTemplate()
	if err != nil {
		return err
	}
	d, err := v.cardTemplateEdit(t, v.cardTemplateFormOf(t))
	if err != nil {
		return err
	}
	return v.show("card-template-edit", d)
}

// digest names what a form says, so that what is saved is what was previewed.
func (f cardTemplateForm) digest(version string) string {
	f.Reminders = slices.DeleteFunc(slices.Clone(f.Reminders), func(r reminderForm) bool { return r.DaysBefore == "" })
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %#v", version, f))
	return hex.EncodeToString(sum[:16])
}

// saveCardTemplate says first what a change does to the cards, and makes it when the form
// comes again as it was then.
func (v *view) saveCardTemplate() error {
	form := v.cardTemplateForm()
	old, err := v.cardTemplate()
	if err != nil {
		return err
	}
	form.Family = old.Family
	d, err := v.cardTemplateEdit(old, form)
	if err != nil {
		return err
	}
	entered := old
	if err := form.apply(&entered); err != nil {
		return v.refused(err, "card-template-edit", d)
	}
	if v.value("version") != text(old.Version) {
		return v.cardTemplateConflict(d, old, entered)
	}
	change := func(t *credential.Template) { _ = form.apply(t) }
	if v.value("do") != "save" || v.value("seen") != form.digest(d.Version) {
		p, err := v.Credentials.Preview(v.ctx(), v.core, old.ID, change, nil)
		if err != nil {
			return v.refused(err, "card-template-edit", d)
		}
		d.Preview, d.Seen = &templatePreview{p, v.templateChanges(p, old, entered, d.Mail)}, form.digest(d.Version)
		return v.show("card-template-edit", d)
	}
	_, err = v.Credentials.UpdateTemplate(v.ctx(), v.core, v.actor(), old.ID, old.Version, change, nil)
	if errors.Is(err, problem.ErrConflict) {
		if old, err = v.cardTemplate(); err != nil {
			return err
		}
		d.Version = text(old.Version)
		return v.cardTemplateConflict(d, old, entered)
	} else if err != nil {
		return v.refused(err, "card-template-edit", d)
	}
	return v.done(join("/cards/templates/of/", old.ID), words.Key("done.cardTemplateSaved"))
}

func (v *view) cardTemplateConflict(d cardTemplateEdit, now, entered credential.Template) error {
	a, b := v.facts(now, d.Mail), v.facts(entered, d.Mail)
	for i := range a {
		if a[i] != b[i] {
			d.Conflict = append(d.Conflict, difference{a[i].Label, a[i].Value, b[i].Value})
		}
	}
	return v.render(http.StatusConflict, "card-template-edit", "layout", Frame{v: v, D: d})
}

// templateChanges says what becomes different, and what that does.
func (v *view) templateChanges(p credential.Preview, old, is credential.Template, m mailChoices) (all []templateChange) {
	was, will := v.facts(old, m), v.facts(is, m)
	for _, c := range p.Changes {
		effect, _, _ := strings.Cut(c.Field, ".")
		switch {
		case effect == "channels" && is.Allows(credential.Channel(strings.TrimPrefix(c.Field, "channels."))):
			effect = "channelOpen"
		case effect == "channels":
			effect = "channelClosed"
		case effect == "pinValidDays" && !old.ManagesExpiry():
			effect = "expiryOn"
		case effect == "pinValidDays" && !is.ManagesExpiry():
			effect = "expiryOff"
		}
		for i := range was {
			if f := was[i]; (f.Field == c.Field || strings.HasPrefix(f.Field, c.Field+".")) && f != will[i] {
				all = append(all, templateChange{f.Label, f.Value, will[i].Value, v.words.Say(words.Family("cardTemplates.effect.", effect))})
			}
		}
	}
	return all
}

func (v *view) masterKeyPage() error {
	d, err := v.cardTemplatePage()
	if err != nil {
		return err
	}
	if d.HasPUK {
		return v.notFound()
	}
	return v.show("card-template-key", d)
}

func (v *view) saveMasterKey() error {
	masterKey := v.secretValue("masterKey")
	d, err := v.cardTemplatePage()
	if err != nil {
		return err
	}
	if masterKey.Empty() {
		return v.refused(problem.Invalid("missing", "masterKey", "is missing"), "card-template-key", d)
	}
	if _, err := v.Credentials.UpdateTemplate(v.ctx(), v.core, v.actor(), d.Template.ID, 0, func(*credential.Template) {}, &masterKey); err != nil {
		return v.refused(err, "card-template-key", d)
	}
	return v.done(join("/cards/templates/of/", d.Template.ID), words.Key("done.masterKey"))
}

func (v *view) deleteCardTemplatePage() error {
	d, err := v.cardTemplatePage()
	if err != nil {
		return err
	}
	return v.show("card-template-delete", d)
}

func (v *view) deleteCardTemplate() error {
	d, err := v.cardTemplatePage()
	if err != nil {
		return err
	}
	if err := v.Credentials.DeleteTemplate(v.ctx(), v.core, v.actor(), d.Template.ID, 0); err != nil {
		return v.refused(err, "card-template-delete", d)
	}
	return v.done(Root+"/cards/templates", words.Key("done.cardTemplateDeleted"))
}
