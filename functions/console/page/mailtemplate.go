package page

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/messaging"
	"github.com/pinward/pinward/shared/problem"
)

type mailTemplateRow struct {
	mail.Template
	State string // "asItCame", "changed" or "own"
}

func stateOf(t mail.Template) string {
	switch {
	case !messaging.IsPredefined(t.ID):
		return "own"
	case t.Version == 0:
		return "asItCame"
	}
	return "changed"
}

func (v *view) listMailTemplates() error {
	all, err := v.messaging().Store(v.core).Templates(v.ctx(), v.core.Tenant.Settings.Language)
	if err != nil {
		return err
	}
	rows := make([]mailTemplateRow, len(all))
	for i, t := range all {
		rows[i] = mailTemplateRow{t, stateOf(t)}
	}
	slices.SortStableFunc(rows, func(a, b mailTemplateRow) int { // what somebody has worked on comes first
		if worked := a.State != "asItCame"; worked != (b.State != "asItCame") {
			return map[bool]int{true: -1, false: 1}[worked]
		}
		return 0
	})
	if v.value("format") == "csv" {
		return csvFile(v, "mail-templates", []string{"kind", "name", "subject", "state"}, rowsOf("", func(string) ([]mailTemplateRow, string, error) { return rows, "", nil }),
			func(r mailTemplateRow) []string { return []string{string(r.Kind), r.Name, r.Subject, r.State} })
	}
	return v.show("mail-templates", list(v, rows, ""))
}

// mailTemplateData is the page of a mail template.
type mailTemplateData struct {
	mail.Template
	State     string // see mailTemplateRow; "new" of one that is not stored
	Kinds     []Option
	Variables []mailVariable
	Filled    string // the language of the predefined text that the form was filled with
	Conflict  bool
	Differs   []Difference
	Preview   mailPreview
}

// Path is where the template is.
func (d mailTemplateData) Path() string {
	return mailTemplates + "/" + url.PathEscape(cmp.Or(d.ID, "new"))
}

type mailVariable struct{ Name, Example string }

// Braced is the variable as a template has it.
func (m mailVariable) Braced() string { return "{{" + m.Name + "}}" }

// mailPreview is a mail filled in with examples, or what keeps it from being made.
type mailPreview struct {
	mail.Message
	Faults []Fault
}

func (v *view) mailTemplateData(t mail.Template, state string) mailTemplateData {
	d := mailTemplateData{Template: t, State: state}
	for _, k := range mail.TemplateKinds() {
		d.Kinds = append(d.Kinds, Option{string(k), v.words.Say(words.Family("template.kind.", k))})
	}
	if t.Kind.Variables() != nil {
		examples := mail.Variables(v.messaging().Examples(v.core, t.Kind))
		for _, name := range t.Kind.Variables() {
			d.Variables = append(d.Variables, mailVariable{name, examples[name]})
		}
	}
	d.Preview = v.mailPreview(t)
	return d
}

func (v *view) mailPreview(t mail.Template) mailPreview {
	if t.ID == "" {
		t.ID = "new"
	}
	m, err := v.messaging().PreviewOf(v.core, t)
	if err != nil {
		_, faults := v.faults(err)
		return mailPreview{Faults: faults}
	}
	return mailPreview{Message: m}
}

// sentTemplate reads the form. Browsers send lines that end in CR LF.
func (v *view) sentTemplate() mail.Template {
	area := func(name string) string { return strings.ReplaceAll(v.r.PostForm.Get(name), "\r\n", "\n") }
	version, _ := strconv.ParseInt(v.value("version"), 10, 64) // none is 0, which conflicts with what is stored
	id := v.r.PathValue("id")
	if id == "new" {
		id = ""
	}
	return mail.Template{ID: id, Kind: mail.TemplateKind(v.value("kind")), Name: v.value("name"), Subject: v.value("subject"), Text: area("text"), HTML: strings.TrimSpace(area("html")), Version: version}
}

// newMailTemplate begins with the predefined text of the kind that was chosen.
func (v *view) newMailTemplate() error {
	kind := mail.TemplateKind(v.value("kind"))
	if kind.Variables() == nil {
		return v.show("mail-template", v.mailTemplateData(mail.Template{}, "new"))
	}
	language := cmp.Or(v.value("predefined"), v.core.Tenant.Settings.Language)
	t := mail.Predefined(kind, language)
	t.ID, t.Name = "", ""
	d := v.mailTemplateData(t, "new")
	return v.show("mail-template", d)
}

func (v *view) createMailTemplate() error {
	t := v.sentTemplate()
	made, err := v.messaging().CreateTemplate(v.ctx(), v.core, v.actor(), t)
	if err != nil {
		return v.refused(err, "mail-template", v.mailTemplateData(t, "new"))
	}
	return v.done(mailTemplates+"/"+made.ID, words.Key("done.templateCreated"))
}

func (v *view) mailTemplate() (mail.Template, error) {
	return v.messaging().Store(v.core).Template(v.ctx(), v.r.PathValue("id"), v.core.Tenant.Settings.Language)
}

func (v *view) mailTemplatePage() error {
	t, err := v.mailTemplate()
	if err != nil {
		return err
	}
	filled := v.value("predefined")
	if filled == "en" || filled == "de" {
		came := mail.Predefined(t.Kind, filled)
		t.Subject, t.Text, t.HTML = came.Subject, came.Text, came.HTML
	} else {
		filled = ""
	}
	d := v.mailTemplateData(t, stateOf(t))
	d.Filled = filled
	return v.show("mail-template", d)
}

func (v *view) saveMailTemplate() error {
	saved, err := v.mailTemplate()
	if err != nil {
		return err
	}
	t := v.sentTemplate()
	t.Kind = saved.Kind
	_, err = v.messaging().ChangeTemplate(v.ctx(), v.core, v.actor(), t)
	if errors.Is(err, problem.ErrConflict) {
		if saved, err = v.mailTemplate(); err != nil {
			return err
		}
		t.Version = saved.Version
		d := v.mailTemplateData(t, stateOf(saved))
		d.Conflict, d.Differs = true, differing(v.templateFacts(saved), v.templateFacts(t))
		return v.render(http.StatusConflict, "mail-template", "layout", Frame{v: v, D: d})
	} else if err != nil {
		return v.refused(err, "mail-template", v.mailTemplateData(t, stateOf(saved)))
	}
	return v.done(mailTemplates+"/"+url.PathEscape(t.ID), words.Key("done.templateSaved"))
}

func (v *view) templateFacts(t mail.Template) []Difference {
	w := v.words
	return []Difference{{w.Say("template.name"), t.Name, ""}, {w.Say("template.subject"), t.Subject, ""}, {w.Say("template.text"), t.Text, ""}, {w.Say("template.html"), t.HTML, ""}}
}

// previewMailTemplate shows the mail that the form says, as it stands.
func (v *view) previewMailTemplate() error {
	t := v.sentTemplate()
	if v.r.Header.Get("HX-Request") != "" {
		return v.fragment("mail-template", "preview", v.mailPreview(t))
	}
	if t.Kind.Variables() == nil {
		return fmt.Errorf("kind of mail template: %w", problem.ErrNotFound)
	}
	state := "new"
	if t.ID != "" {
		state = stateOf(t)
	}
	return v.show("mail-template", v.mailTemplateData(t, state))
}

func (v *view) deleteMailTemplatePage() error {
	t, err := v.mailTemplate()
	if err != nil {
		return err
	}
	if t.Version == 0 {
		return v.notFound()
	}
	return v.show("mail-template-delete", mailTemplateRow{t, stateOf(t)})
}

func (v *view) deleteMailTemplate() error {
	t, err := v.mailTemplate()
	if err != nil {
		return err
	}
	if err := v.messaging().DeleteTemplate(v.ctx(), v.core, v.actor(), t.ID); err != nil {
		return v.refused(err, "mail-template-delete", mailTemplateRow{t, stateOf(t)})
	}
	if messaging.IsPredefined(t.ID) {
		return v.done(mailTemplates, words.Key("done.templateReturned"))
	}
	return v.done(mailTemplates, words.Key("done.templateDeleted"))
}
