package page

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/messaging"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

const (
	configurations = Root + "/messaging/configurations"
	mailTemplates  = Root + "/messaging/templates"
)

func (c *Console) messagingRoutes() []route {
	return []route{
		{pattern: "GET " + Root + "/messaging", action: tenant.ReadMessaging, do: (*view).listMessaging},
		{pattern: "GET " + configurations + "/new", action: tenant.WriteMessaging, do: (*view).newMessaging},
		{pattern: "POST " + configurations + "/new", action: tenant.WriteMessaging, do: (*view).createMessaging},
		{pattern: "GET " + configurations + "/{id}", action: tenant.WriteMessaging, do: (*view).messagingPage},
		{pattern: "POST " + configurations + "/{id}", action: tenant.WriteMessaging, do: (*view).saveMessaging},
		{pattern: "POST " + configurations + "/{id}/test", action: tenant.WriteMessaging, do: (*view).testMessaging},
		{pattern: "GET " + configurations + "/{id}/delete", action: tenant.WriteMessaging, do: (*view).deleteMessagingPage},
		{pattern: "POST " + configurations + "/{id}/delete", action: tenant.WriteMessaging, do: (*view).deleteMessaging},

		{pattern: "GET " + mailTemplates, action: tenant.ReadMessaging, do: (*view).listMailTemplates},
		{pattern: "GET " + mailTemplates + "/new", action: tenant.WriteMessaging, do: (*view).newMailTemplate},
		{pattern: "POST " + mailTemplates + "/new", action: tenant.WriteMessaging, do: (*view).createMailTemplate},
		{pattern: "GET " + mailTemplates + "/{id}", action: tenant.ReadMessaging, do: (*view).mailTemplatePage},
		{pattern: "POST " + mailTemplates + "/{id}", action: tenant.WriteMessaging, do: (*view).saveMailTemplate},
		{pattern: "POST " + mailTemplates + "/{id}/preview", action: tenant.ReadMessaging, do: (*view).previewMailTemplate},
		{pattern: "GET " + mailTemplates + "/{id}/delete", action: tenant.WriteMessaging, do: (*view).deleteMailTemplatePage},
		{pattern: "POST " + mailTemplates + "/{id}/delete", action: tenant.WriteMessaging, do: (*view).deleteMailTemplate},
	}
}

// messaging are the operations on messaging configurations and mail templates.
func (c *Console) messaging() messaging.Messaging {
	return messaging.Messaging{Table: c.Table, Rules: c.Rules, Credentials: c.Credentials, Senders: c.Senders, Audit: c.Audit, Now: c.Now, Rand: c.Rand}
}

// Difference is a field that somebody else has changed meanwhile, or that was entered
// otherwise than it is saved.
type Difference struct{ Label, Saved, Entered string }

// differing returns what is not the same. Both have the same fields in the same order.
func differing(saved, entered []Difference) []Difference {
	var out []Difference
	for i, s := range saved {
		if s.Saved != entered[i].Saved {
			out = append(out, Difference{s.Label, s.Saved, entered[i].Saved})
		}
	}
	return out
}

type messagingRow struct {
	mail.Configuration
	ForExpiry bool // the settings name it for the expiry of PINs
}

func (v *view) listMessaging() error {
	all, err := v.messaging().Store(v.core).Configurations(v.ctx())
	if err != nil {
		return err
	}
	rows := make([]messagingRow, len(all))
	for i, c := range all {
		rows[i] = messagingRow{c, c.ID == v.core.Tenant.Settings.ExpiryMail.Messaging}
	}
	if v.value("format") == "csv" {
		return csvFile(v, "messaging", []string{"name", "kind", "from", "replyTo", "host", "port"}, rowsOf("", func(string) ([]messagingRow, string, error) { return rows, "", nil }),
			func(r messagingRow) []string {
				port := ""
				if r.SMTP.Port != 0 {
					port = text(r.SMTP.Port)
				}
				return []string{r.Name, string(r.Kind), r.From, r.ReplyTo, r.SMTP.Host, port}
			})
	}
	return v.show("messaging", list(v, rows, ""))
}

// messagingForm is a configuration as it stands in the form, where a port may be none.
type messagingForm struct {
	ID               string // "" of a new one
	Name, Kind       string
	From, ReplyTo    string
	ConfigurationSet string
	Host, Port       string
	Security         string
	Username         string
	PasswordSet      bool
	Version          string
}

// messagingData is the page of a configuration.
type messagingData struct {
	Form      messagingForm
	Kinds     []Option
	Conflict  bool
	Differs   []Difference
	To        string // of a test
	Template  string
	Templates []Option
	Tested    *mail.Result
}

func messagingFormFrom(c mail.Configuration) messagingForm {
	f := messagingForm{ID: c.ID, Name: c.Name, Kind: string(c.Kind), From: c.From, ReplyTo: c.ReplyTo, ConfigurationSet: c.SES.ConfigurationSet,
		Host: c.SMTP.Host, Security: string(c.SMTP.Security), Username: c.SMTP.Username, PasswordSet: c.SMTP.PasswordSet, Version: text(c.Version)}
	if c.SMTP.Port != 0 {
		f.Port = text(c.SMTP.Port)
	}
	return f.usual()
}

// usual fills in what a mail server usually has.
func (f messagingForm) usual() messagingForm {
	f.Security = cmp.Or(f.Security, string(mail.SecuritySTARTTLS))
	f.Port = cmp.Or(f.Port, "587")
	return f
}

func (v *view) messagingForm() messagingForm {
	return messagingForm{ID: v.r.PathValue("id"), Name: v.value("name"), Kind: v.value("kind"), From: v.value("from"), ReplyTo: v.value("replyTo"),
		ConfigurationSet: v.value("ses.configurationSet"), Host: v.value("smtp.host"), Port: v.value("smtp.port"), Security: v.value("smtp.security"),
		Username: v.value("smtp.username"), Version: v.value("version")}
}

// configuration returns what the form says. What is for another kind is not looked at.
func (f messagingForm) configuration() (mail.Configuration, error) {
	c := mail.Configuration{ID: f.ID, Name: f.Name, Kind: mail.Kind(f.Kind), From: f.From, ReplyTo: f.ReplyTo}
	switch c.Kind {
	case mail.KindSES:
		c.SES.ConfigurationSet = f.ConfigurationSet
	case mail.KindSMTP:
		port, err := strconv.Atoi(f.Port)
		if err != nil {
			port = 0 // which Validate refuses with the ports that are usual
		}
		c.SMTP = mail.SMTPSettings{Host: f.Host, Port: port, Security: mail.Security(f.Security), Username: f.Username}
	}
	version, err := strconv.ParseInt(cmp.Or(f.Version, "0"), 10, 64)
	c.Version = version
	if err != nil {
		return c, fmt.Errorf("version of a messaging configuration: %w", problem.ErrConflict)
	}
	return c, nil
}

// mailKinds are the kinds of mail system that this installation has.
func (v *view) mailKinds() (kinds []Option) {
	for _, k := range []mail.Kind{mail.KindSMTP, mail.KindSES, mail.KindOutbox} {
		if k == mail.KindSES && v.Senders.SES == nil || k == mail.KindOutbox && v.Senders.Outbox == nil {
			continue
		}
		kinds = append(kinds, Option{string(k), v.words.Say(words.Family("messaging.kind.", k))})
	}
	return kinds
}

func (v *view) messagingData(f messagingForm) (messagingData, error) {
	d := messagingData{Form: f, Kinds: v.mailKinds(), To: v.session.Mail, Template: cmp.Or(v.core.Tenant.Settings.ExpiryMail.Template, mail.PINExpiryID)}
	if f.ID == "" {
		return d, nil
	}
	templates, err := v.messaging().Store(v.core).Templates(v.ctx(), v.words.Language())
	for _, t := range templates {
		d.Templates = append(d.Templates, Option{t.ID, t.Name})
	}
	return d, err
}

func (v *view) showMessaging(f messagingForm) error {
	d, err := v.messagingData(f)
	if err != nil {
		return err
	}
	return v.show("messaging-form", d)
}

func (v *view) messagingRefused(refusal error, f messagingForm) error {
	d, err := v.messagingData(f)
	if err != nil {
		return err
	}
	return v.refused(refusal, "messaging-form", d)
}

func (v *view) newMessaging() error {
	f := messagingForm{}.usual()
	f.Kind = v.mailKinds()[0].Value
	return v.showMessaging(f)
}

func (v *view) createMessaging() error {
	f := v.messagingForm()
	c, err := f.configuration()
	if err != nil {
		return err
	}
	if c.Kind == mail.KindSMTP {
		c.SMTP.Password = v.secretValue("smtp.password")
	}
	c, err = v.messaging().Create(v.ctx(), v.core, v.actor(), c)
	if err != nil {
		return v.messagingRefused(err, f)
	}
	return v.done(configurations+"/"+c.ID, words.Key("done.messagingCreated"))
}

func (v *view) messagingPage() error {
	c, err := v.messaging().Store(v.core).Configuration(v.ctx(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.showMessaging(messagingFormFrom(c))
}

func (v *view) saveMessaging() error {
	f := v.messagingForm()
	was, err := v.messaging().Store(v.core).Configuration(v.ctx(), f.ID)
	if err != nil {
		return err
	}
	f.PasswordSet = was.SMTP.PasswordSet
	c, err := f.configuration()
	if err == nil {
		if c.Kind == mail.KindSMTP {
			c.SMTP.Password = v.secretValue("smtp.password")
		}
		_, err = v.messaging().Change(v.ctx(), v.core, v.actor(), c)
	}
	if errors.Is(err, problem.ErrConflict) {
		if was, err = v.messaging().Store(v.core).Configuration(v.ctx(), f.ID); err != nil {
			return err
		}
		f.Version = text(was.Version)
		d, err := v.messagingData(f)
		if err != nil {
			return err
		}
		d.Conflict, d.Differs = true, differing(v.messagingFacts(messagingFormFrom(was)), v.messagingFacts(f))
		return v.render(http.StatusConflict, "messaging-form", "layout", Frame{v: v, D: d})
	} else if err != nil {
		return v.messagingRefused(err, f)
	}
	return v.done(configurations+"/"+f.ID, words.Key("done.messagingSaved"))
}

func (v *view) messagingFacts(f messagingForm) []Difference {
	w := v.words
	facts := []Difference{{w.Say("messaging.name"), f.Name, ""}, {w.Say("messaging.kind"), w.Say(words.Family("messaging.kind.", f.Kind)), ""},
		{w.Say("messaging.from"), f.From, ""}, {w.Say("messaging.replyTo"), f.ReplyTo, ""}, {w.Say("messaging.set"), f.ConfigurationSet, ""}}
	smtp := messagingForm{}
	if f.Kind == string(mail.KindSMTP) {
		smtp = f
	}
	return append(facts, Difference{w.Say("messaging.host"), smtp.Host, ""}, Difference{w.Say("messaging.port"), smtp.Port, ""},
		Difference{w.Say("messaging.security"), smtp.Security, ""}, Difference{w.Say("messaging.username"), smtp.Username, ""})
}

func (v *view) testMessaging() error {
	c, err := v.messaging().Store(v.core).Configuration(v.ctx(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	d, err := v.messagingData(messagingFormFrom(c))
	if err != nil {
		return err
	}
	d.To, d.Template = v.value("to"), v.value("template")
	r, err := v.messaging().Test(v.ctx(), v.core, v.actor(), c.ID, d.Template, d.To)
	if errors.Is(err, problem.ErrNotFound) {
		err = problem.Invalid("unknown", "template", "is not the id of a mail template")
	}
	if err != nil {
		return v.refused(err, "messaging-form", d)
	}
	d.Tested = &r
	return v.show("messaging-form", d)
}

// Accepted tells whether the mail system took a test.
func (d messagingData) Accepted() bool { return d.Tested != nil && d.Tested.Outcome == mail.Accepted }

func (v *view) deleteMessagingPage() error {
	c, err := v.messaging().Store(v.core).Configuration(v.ctx(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.show("messaging-delete", c)
}

func (v *view) deleteMessaging() error {
	c, err := v.messaging().Store(v.core).Configuration(v.ctx(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := v.messaging().Delete(v.ctx(), v.core, v.actor(), c.ID); err != nil {
		return v.refused(err, "messaging-delete", c)
	}
	return v.done(Root+"/messaging", words.Key("done.messagingDeleted"))
}
