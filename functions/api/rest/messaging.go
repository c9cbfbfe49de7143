package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

func isNotFound(err error) bool { return errors.Is(err, problem.ErrNotFound) }

// store is the caller's tenant's messaging configurations and templates.
func (a *API) store(c tenant.Caller) mail.Store {
	return mail.Store{Table: a.Table, Tenant: c.Core.Tenant.ID, Keys: c.Core.Keys}
}

// expiryMailChecks returns the conditions under which the settings may name the
// configuration and template: that they are there, and are for expiry mails.
func (a *API) expiryMailChecks(ctx context.Context, t table.TenantID, refs tenant.ExpiryMailRefs, vs *problem.Violations) ([]table.Op, error) {
	var checks []table.Op
	store := mail.Store{Table: a.Table, Tenant: t}
	if refs.Messaging != "" {
		conf, err := store.Configuration(ctx, refs.Messaging)
		if isNotFound(err) {
			vs.Add("unknown", "expiryMail.messaging", "is not the id of a messaging configuration")
		} else if err != nil {
			return nil, err
		} else {
			checks = append(checks, table.Check(table.MessagingKey(t, conf.ID), table.IfVersion(conf.Version)))
		}
	}
	if refs.Template != "" && refs.Template != mail.PINExpiryID { // which is always there
		tmpl, err := store.Template(ctx, refs.Template, "")
		if isNotFound(err) {
			vs.Add("unknown", "expiryMail.template", "is not the id of a mail template")
		} else if err != nil {
			return nil, err
		} else if tmpl.Kind != mail.PINExpiry {
			vs.Add("kind", "expiryMail.template", "is a mail template of kind %s; expiry mails need one of kind %s", tmpl.Kind, mail.PINExpiry)
		} else {
			checks = append(checks, table.Check(table.TemplateKey(t, tmpl.ID), table.IfVersion(tmpl.Version)))
		}
	}
	return checks, nil
}

type messagingInput struct {
	Name    string     `json:"name" example:"Company mail"`
	Kind    string     `json:"kind" enum:"ses,smtp,outbox" doc:"ses: Amazon SES of the installation's account. smtp: a mail server. outbox: files on a local installation."`
	From    string     `json:"from" example:"Acme IT <it@example.org>"`
	ReplyTo string     `json:"replyTo,omitempty"`
	SES     *sesBody   `json:"ses,omitempty"`
	SMTP    *smtpInput `json:"smtp,omitempty"`
}

type sesBody struct {
	ConfigurationSet string `json:"configurationSet,omitempty"`
}

// SMTPFields are a mail server.
type SMTPFields struct {
	Host     string `json:"host"`
	Port     int    `json:"port"`
	Security string `json:"security" enum:"starttls,tls"`
	Username string `json:"username,omitempty"`
}

type smtpInput struct {
	SMTPFields
	Password *passwordInput `json:"password,omitempty" doc:"Left out in a change, it stays as it is while host, port and username do."`
}

// passwordInput is a password in a request.
type passwordInput struct{ pinInput }

// Schema implements huma.SchemaProvider.
func (passwordInput) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "password", WriteOnly: true, Description: "The password. It is stored sealed and never shown."}
}

func (in messagingInput) configuration(id string, version int64) mail.Configuration {
	c := mail.Configuration{ID: id, Name: in.Name, Kind: mail.Kind(in.Kind), From: in.From, ReplyTo: in.ReplyTo, Version: version}
	if in.SES != nil {
		c.SES.ConfigurationSet = in.SES.ConfigurationSet
	}
	if s := in.SMTP; s != nil {
		c.SMTP = mail.SMTPSettings{Host: s.Host, Port: s.Port, Security: mail.Security(s.Security), Username: s.Username}
		if s.Password != nil {
			c.SMTP.Password = s.Password.Text
		}
	}
	return c
}

type messagingBody struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	Kind    string     `json:"kind"`
	From    string     `json:"from"`
	ReplyTo string     `json:"replyTo,omitempty"`
	SES     *sesBody   `json:"ses,omitempty"`
	SMTP    *smtpShown `json:"smtp,omitempty"`
}

type smtpShown struct {
	SMTPFields
	PasswordSet bool `json:"passwordSet"`
}

func messagingOut(c mail.Configuration) messagingBody {
	b := messagingBody{ID: c.ID, Name: c.Name, Kind: string(c.Kind), From: c.From, ReplyTo: c.ReplyTo}
	switch c.Kind {
	case mail.KindSES:
		b.SES = &sesBody{c.SES.ConfigurationSet}
	case mail.KindSMTP:
		s := c.SMTP
		b.SMTP = &smtpShown{SMTPFields{s.Host, s.Port, string(s.Security), s.Username}, s.PasswordSet}
	}
	return b
}

// TemplateFields are the text of a mail template.
type TemplateFields struct {
	Name    string `json:"name"`
	Subject string `json:"subject" doc:"May hold the variables, as text and html may."`
	Text    string `json:"text"`
	HTML    string `json:"html,omitempty" doc:"Left out, the mail is of text only. What variables stand for is escaped."`
}

type templateInput struct {
	Kind string `json:"kind,omitempty" enum:"pin-expiry,unblock-code,pin-reset,card-pin-expiry,card-pin-expired,offline-answer,notice,pin-issued" default:"pin-expiry" doc:"What the mails are about. It stays as it is made."`
	TemplateFields
}

type templateBody struct {
	ID         string   `json:"id"`
	Kind       string   `json:"kind" enum:"pin-expiry,unblock-code,pin-reset,card-pin-expiry,card-pin-expired,offline-answer,notice,pin-issued" doc:"pin-expiry: a PIN is about to expire. unblock-code: the one-time code for unblocking a card; text and html hold {{code}}, and the subject does not. pin-reset: a card has got a new PIN. card-pin-expiry, card-pin-expired: a card's PIN is about to expire, or has. offline-answer: a code that unblocks a card was given out. notice: what a trigger rule has to tell. pin-issued: a new PIN; text and html hold {{pin}}, and the subject does not."`
	Predefined bool     `json:"predefined" doc:"It is the predefined template as it comes. Change it to customise it; delete the change to return."`
	Variables  []string `json:"variables" doc:"What a template of the kind may name, such as {{username}}."`
	TemplateFields
}

// templateListed is a template in the list; its texts may be long.
type templateListed struct {
	ID         string   `json:"id"`
	Kind       string   `json:"kind"`
	Name       string   `json:"name"`
	Subject    string   `json:"subject"`
	Predefined bool     `json:"predefined"`
	Variables  []string `json:"variables"`
}

func templateOut(t mail.Template) templateBody {
	return templateBody{t.ID, string(t.Kind), t.Version == 0, t.Kind.Variables(), TemplateFields{t.Name, t.Subject, t.Text, t.HTML}}
}

// MessagingPath names a messaging configuration in a path.
type MessagingPath struct {
	Messaging string `path:"messaging" maxLength:"60"`
}

// TemplatePath names a mail template in a path.
type TemplatePath struct {
	Template string `path:"template" maxLength:"60"`
}

// limits on what a tenant keeps, so that lists stay short.
const maxKept = 100

func (a *API) messagingOperations(api huma.API) {
	const tag = "Messaging configurations"
	// usable refuses a kind of mail system that this installation does not have.
	usable := func(c mail.Configuration) error {
		if err := c.Validate(); err != nil {
			return nil // PutConfiguration tells what is wrong, knowing the stored password
		}
		if _, err := a.Senders.For(c); errors.Is(err, problem.ErrState) {
			return problem.Invalid("unavailable", "kind", "%s is not available in this installation", c.Kind)
		}
		return nil
	}
	// write carries out a change with its audit record.
	write := func(ctx context.Context, op table.Op, action, subject string, checks ...table.Op) error {
		c := caller(ctx)
		record := audit.Record{Actor: c.Actor, Action: action, Subject: subject, Outcome: audit.Done}
		err := a.Table.Write(ctx, append([]table.Op{op, a.Audit.Op(ctx, c.Core.Tenant.ID, record)}, checks...)...)
		if err != nil {
			return fmt.Errorf("%s: %w", action, err)
		}
		return nil
	}
	newID := func() (string, error) {
		id, err := ulid.New(ulid.Timestamp(a.Now()), a.Rand)
		return id.String(), err
	}

	register(a, api, operation{
		id: "list-messaging", summary: "List messaging configurations", method: http.MethodGet, path: "/v1/messaging",
		action: tenant.ReadMessaging, tag: tag,
	}, func(ctx context.Context, _ *struct{}) (*Body[List[messagingBody]], error) {
		all, err := a.store(caller(ctx)).Configurations(ctx)
		if err != nil {
			return nil, err
		}
		return page(all, "", messagingOut), nil
	})

	register(a, api, operation{
		id: "create-messaging", summary: "Create a messaging configuration", method: http.MethodPost, path: "/v1/messaging",
		action: tenant.WriteMessaging, status: http.StatusCreated, tag: tag,
	}, func(ctx context.Context, in *struct{ Body messagingInput }) (*Versioned[messagingBody], error) {
		store := a.store(caller(ctx))
		all, err := store.Configurations(ctx)
		if err != nil {
			return nil, err
		}
		if len(all) >= maxKept {
			return nil, fmt.Errorf("%w: there are %d messaging configurations, which is the most a tenant can have", problem.ErrState, len(all))
		}
		id, err := newID()
		if err != nil {
			return nil, err
		}
		conf := in.Body.configuration(id, 0)
		if err := usable(conf); err != nil {
			return nil, err
		}
		op, err := store.PutConfiguration(ctx, conf)
		if err != nil {
			return nil, err
		}
		if err := write(ctx, op, "messaging.created", subjectOf("messaging", id)); err != nil {
			return nil, err
		}
		return a.messaging(ctx, store, id)
	})

	register(a, api, operation{
		id: "get-messaging", summary: "Get a messaging configuration", method: http.MethodGet, path: "/v1/messaging/{messaging}",
		action: tenant.ReadMessaging, tag: tag,
	}, func(ctx context.Context, in *MessagingPath) (*Versioned[messagingBody], error) {
		return a.messaging(ctx, a.store(caller(ctx)), in.Messaging)
	})

	register(a, api, operation{
		id: "put-messaging", summary: "Change a messaging configuration", method: http.MethodPut, path: "/v1/messaging/{messaging}",
		action: tenant.WriteMessaging, tag: tag,
	}, func(ctx context.Context, in *struct {
		MessagingPath
		IfMatch
		Body messagingInput
	}) (*Versioned[messagingBody], error) {
		store := a.store(caller(ctx))
		old, err := store.Configuration(ctx, in.Messaging)
		if err != nil {
			return nil, err
		}
		if err := in.check(old.Version); err != nil {
			return nil, err
		}
		conf := in.Body.configuration(in.Messaging, old.Version)
		if err := usable(conf); err != nil {
			return nil, err
		}
		op, err := store.PutConfiguration(ctx, conf)
		if err != nil {
			return nil, err
		}
		if err := write(ctx, op, "messaging.changed", subjectOf("messaging", in.Messaging)); err != nil {
			return nil, err
		}
		return a.messaging(ctx, store, in.Messaging)
	})

	register(a, api, operation{
		id: "delete-messaging", summary: "Delete a messaging configuration", method: http.MethodDelete, path: "/v1/messaging/{messaging}",
		action: tenant.WriteMessaging, status: http.StatusNoContent, tag: tag, about: "Not while the settings, a card template or a trigger rule name it.",
	}, func(ctx context.Context, in *MessagingPath) (*struct{}, error) {
		c := caller(ctx)
		store := a.store(c)
		old, err := store.Configuration(ctx, in.Messaging)
		if err != nil {
			return nil, err
		}
		if c.Core.Tenant.Settings.ExpiryMail.Messaging == old.ID {
			return nil, fmt.Errorf("%w: the settings name it for expiry mails; choose another one there first", problem.ErrState)
		}
		templates, err := a.Credentials.Templates(ctx, c.Core.Tenant.ID)
		if err != nil {
			return nil, err
		}
		for _, t := range templates {
			if t.Messaging == old.ID {
				return nil, fmt.Errorf("%w: the card template %q names it; choose another one there first", problem.ErrState, t.Name)
			}
		}
		unnamed, err := a.Rules.Unnamed(ctx, c.Core.Tenant.ID, func(x rule.Action) bool { return x.Messaging == old.ID })
		if err != nil {
			return nil, err
		}
		return nil, write(ctx, store.DeleteConfiguration(old.ID, old.Version), "messaging.deleted", subjectOf("messaging", old.ID),
			table.Check(table.TenantKey(c.Core.Tenant.ID), table.IfVersion(c.Core.Tenant.Version)), unnamed)
	})

	type testBody struct {
		Accepted bool   `json:"accepted" doc:"The mail system took the mail."`
		Outcome  string `json:"outcome" enum:"accepted,refused,failed,unknown"`
		Code     string `json:"code,omitempty"`
		Reason   string `json:"reason,omitempty"`
	}
	register(a, api, operation{
		id: "test-messaging", summary: "Send a test mail", method: http.MethodPost, path: "/v1/messaging/{messaging}/test",
		action: tenant.WriteMessaging, tag: tag,
		about: "Sends the expiry mail, or that of another template, filled in with examples, and tells what the mail system said.",
	}, func(ctx context.Context, in *struct {
		MessagingPath
		Body struct {
			To       string `json:"to" example:"ada@example.org"`
			Template string `json:"template,omitempty" doc:"Left out, the one that the settings name."`
		}
	}) (*Body[testBody], error) {
		c := caller(ctx)
		store := a.store(c)
		conf, err := store.WithPassword(ctx, in.Messaging)
		if err != nil {
			return nil, err
		}
		message, err := a.preview(ctx, c, in.Body.Template)
		if err != nil {
			return nil, err
		}
		if _, err := mail.ParseAddress(in.Body.To); err != nil {
			return nil, problem.Invalid("address", "to", "%v", err)
		}
		id, err := newID()
		if err != nil {
			return nil, err
		}
		message.ID, message.To = "test."+id, in.Body.To
		sender, err := a.Senders.For(conf)
		if err != nil {
			return nil, err
		}
		r := sender.Send(ctx, []mail.Message{message})[0]
		record := audit.Record{Actor: c.Actor, Action: "messaging.tested", Subject: subjectOf("messaging", conf.ID), Outcome: audit.Done, Reason: r.Code}
		if r.Outcome != mail.Accepted {
			record.Outcome = audit.Failed
		}
		if err := a.Table.Write(ctx, a.Audit.Op(ctx, c.Core.Tenant.ID, record)); err != nil {
			return nil, err
		}
		return answer(testBody{r.Outcome == mail.Accepted, r.Outcome.String(), r.Code, r.Reason}), nil
	})

	const templates = "Mail templates"
	register(a, api, operation{
		id: "list-templates", summary: "List mail templates", method: http.MethodGet, path: "/v1/mail-templates",
		action: tenant.ReadMessaging, tag: templates, about: "The predefined ones first, one of each kind.",
	}, func(ctx context.Context, _ *struct{}) (*Body[List[templateListed]], error) {
		c := caller(ctx)
		all, err := a.store(c).Templates(ctx, c.Core.Tenant.Settings.Language)
		if err != nil {
			return nil, err
		}
		return page(all, "", func(t mail.Template) templateListed {
			return templateListed{t.ID, string(t.Kind), t.Name, t.Subject, t.Version == 0, t.Kind.Variables()}
		}), nil
	})

	register(a, api, operation{
		id: "create-template", summary: "Create a mail template", method: http.MethodPost, path: "/v1/mail-templates",
		action: tenant.WriteMessaging, status: http.StatusCreated, tag: templates,
	}, func(ctx context.Context, in *struct{ Body templateInput }) (*Versioned[templateBody], error) {
		c := caller(ctx)
		store := a.store(c)
		all, err := store.Templates(ctx, "")
		if err != nil {
			return nil, err
		}
		if kept := len(all) - len(mail.TemplateKinds()); kept >= maxKept {
			return nil, fmt.Errorf("%w: there are %d mail templates, which is the most a tenant can have", problem.ErrState, kept)
		}
		id, err := newID()
		if err != nil {
			return nil, err
		}
		t := mail.Template{ID: id, Kind: mail.TemplateKind(in.Body.Kind), Name: in.Body.Name, Subject: in.Body.Subject, Text: in.Body.Text, HTML: in.Body.HTML}
		if err := write(ctx, store.PutTemplate(t), "template.created", subjectOf("template", id)); err != nil {
			return nil, err
		}
		t.Version = 1
		return versioned(templateOut(t), t.Version), nil
	})

	register(a, api, operation{
		id: "get-template", summary: "Get a mail template", method: http.MethodGet, path: "/v1/mail-templates/{template}",
		action: tenant.ReadMessaging, tag: templates,
	}, func(ctx context.Context, in *TemplatePath) (*Versioned[templateBody], error) {
		c := caller(ctx)
		t, err := a.store(c).Template(ctx, in.Template, c.Core.Tenant.Settings.Language)
		if err != nil {
			return nil, err
		}
		return versioned(templateOut(t), t.Version), nil
	})

	register(a, api, operation{
		id: "put-template", summary: "Change a mail template", method: http.MethodPut, path: "/v1/mail-templates/{template}",
		action: tenant.WriteMessaging, tag: templates, about: "The id of a predefined template customises it.",
	}, func(ctx context.Context, in *struct {
		TemplatePath
		IfMatch
		Body TemplateFields
	}) (*Versioned[templateBody], error) {
		c := caller(ctx)
		store := a.store(c)
		old, err := store.Template(ctx, in.Template, c.Core.Tenant.Settings.Language)
		if err != nil {
			return nil, err
		}
		if err := in.check(old.Version); err != nil {
			return nil, err
		}
		t := mail.Template{ID: old.ID, Kind: old.Kind, Name: in.Body.Name, Subject: in.Body.Subject, Text: in.Body.Text, HTML: in.Body.HTML, Version: old.Version}
		if err := write(ctx, store.PutTemplate(t), "template.changed", subjectOf("template", t.ID)); err != nil {
			return nil, err
		}
		t.Version++
		return versioned(templateOut(t), t.Version), nil
	})

	register(a, api, operation{
		id: "delete-template", summary: "Delete a mail template", method: http.MethodDelete, path: "/v1/mail-templates/{template}",
		action: tenant.WriteMessaging, status: http.StatusNoContent, tag: templates,
		about: "Not while the settings or a trigger rule name it. Deleting a predefined one returns it to how it came.",
	}, func(ctx context.Context, in *TemplatePath) (*struct{}, error) {
		c := caller(ctx)
		store := a.store(c)
		old, err := store.Template(ctx, in.Template, "")
		if err != nil || old.Version == 0 {
			return nil, err
		}
		var checks []table.Op
		if !slices.Contains(mail.TemplateKinds(), mail.TemplateKind(old.ID)) {
			if c.Core.Tenant.Settings.ExpiryMail.Template == old.ID {
				return nil, fmt.Errorf("%w: the settings name it for expiry mails; choose another one there first", problem.ErrState)
			}
			unnamed, err := a.Rules.Unnamed(ctx, c.Core.Tenant.ID, func(x rule.Action) bool { return x.Template == old.ID })
			if err != nil {
				return nil, err
			}
			checks = append(checks, table.Check(table.TenantKey(c.Core.Tenant.ID), table.IfVersion(c.Core.Tenant.Version)), unnamed)
		}
		return nil, write(ctx, store.DeleteTemplate(old.ID, old.Version), "template.deleted", subjectOf("template", old.ID), checks...)
	})

	type previewBody struct {
		Subject string `json:"subject"`
		Text    string `json:"text"`
		HTML    string `json:"html,omitempty"`
	}
	register(a, api, operation{
		id: "preview-template", summary: "Preview a mail template", method: http.MethodPost, path: "/v1/mail-templates/{template}/preview",
		action: tenant.ReadMessaging, tag: templates, about: "Filled in with examples.",
	}, func(ctx context.Context, in *TemplatePath) (*Body[previewBody], error) {
		m, err := a.preview(ctx, caller(ctx), in.Template)
		if err != nil {
			return nil, err
		}
		return answer(previewBody{m.Subject, m.Text, m.HTML}), nil
	})
}

func (a *API) messaging(ctx context.Context, store mail.Store, id string) (*Versioned[messagingBody], error) {
	conf, err := store.Configuration(ctx, id)
	if err != nil {
		return nil, err
	}
	return versioned(messagingOut(conf), conf.Version), nil
}

// preview fills in a template with examples.
func (a *API) preview(ctx context.Context, c tenant.Caller, id string) (mail.Message, error) {
	settings := c.Core.Tenant.Settings
	if id == "" {
		id = settings.ExpiryMail.Template
	}
	if id == "" {
		id = mail.PINExpiryID
	}
	t, err := a.store(c).Template(ctx, id, settings.Language)
	if err != nil {
		return mail.Message{}, err
	}
	values := examples(t.Kind, settings, func(in time.Duration) string {
		return mail.FormatTime(a.Now().Add(in), settings.Location(), settings.Language)
	})
	return mail.Render(t, values)
}

// examples are values for mails of the kind; at writes the time that is so far away.
func examples(kind mail.TemplateKind, settings tenant.Settings, at func(time.Duration) string) mail.Values {
	const username, card, place = "ada", "PIV 4F2A", "Kiosk 1"
	switch kind {
	case mail.UnblockCode:
		return mail.UnblockCodeValues{Code: secret.New("123456"), Username: username, CustomerName: settings.DisplayName,
			Card: card, Expires: at(10 * time.Minute), Place: place}
	case mail.PINReset:
		return mail.PINResetValues{Username: username, CustomerName: settings.DisplayName,
			Card: card, Time: at(0), By: mail.ByYourself(settings.Language), Place: place}
	case mail.CardPINExpiry:
		return mail.CardPINExpiryValues{PINExpiration: at(7 * 24 * time.Hour), Days: 7, Username: username, CustomerName: settings.DisplayName, Card: card}
	case mail.CardPINExpired:
		return mail.CardPINExpiredValues{PINExpiration: at(0), Username: username, CustomerName: settings.DisplayName, Card: card}
	case mail.OfflineAnswer:
		return mail.OfflineAnswerValues{Username: username, CustomerName: settings.DisplayName, Card: card, Time: at(0), By: "Ada Operator"}
	case mail.Notice:
		return mail.NoticeValues{Username: username, CustomerName: settings.DisplayName, Event: "print-job.submitted", Time: at(0), Message: "Your first print job is waiting."}
	case mail.PINIssued:
		return mail.PINIssuedValues{PIN: secret.New("739158"), Username: username, CustomerName: settings.DisplayName,
			Validity: mail.ValidUntil(at(30*24*time.Hour), settings.Language), Use: mail.PINUse(false, true, settings.Language)}
	case mail.Digest:
		return mail.DigestValues{
			CustomerName: settings.DisplayName, Since: at(-24 * time.Hour), Language: settings.Language,
			Expiring:      mail.DigestList{Total: 314, Lines: []string{username + ", " + at(24*time.Hour), mail.OfCard(card, settings.Language) + ", " + at(48*time.Hour)}},
			Expired:       mail.DigestList{Total: 1, Lines: []string{username + ", " + at(-time.Hour)}},
			Undeliverable: mail.DigestList{},
			GivenUp:       mail.DigestList{Total: 1, Lines: []string{username + ", " + at(-time.Hour) + ": smtp.550"}},
		}
	default:
		return mail.PINExpiryValues{PINExpiration: at(24 * time.Hour), Username: username, CustomerName: settings.DisplayName}
	}
}
