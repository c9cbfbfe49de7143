package rest

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/messaging"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

func isNotFound(err error) bool { return errors.Is(err, problem.ErrNotFound) }

// store is the caller's tenant's messaging configurations and templates.
func (a *API) store(c tenant.Caller) mail.Store {
	return a.mails().Store(c.Core)
}

// mails are the operations on messaging configurations and mail templates.
func (a *API) mails() messaging.Messaging {
	return messaging.Messaging{Table: a.Table, Rules: a.Rules, Credentials: a.Credentials, Senders: a.Senders, Audit: a.Audit, Now: a.Now, Rand: a.Rand}
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

func (a *API) messagingOperations(api huma.API) {
	const tag = "Messaging configurations"

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
		c := caller(ctx)
		return messagingAnswer(a.mails().Create(ctx, c.Core, c.Actor, in.Body.configuration("", 0)))
	})

	register(a, api, operation{
		id: "get-messaging", summary: "Get a messaging configuration", method: http.MethodGet, path: "/v1/messaging/{messaging}",
		action: tenant.ReadMessaging, tag: tag,
	}, func(ctx context.Context, in *MessagingPath) (*Versioned[messagingBody], error) {
		return messagingAnswer(a.store(caller(ctx)).Configuration(ctx, in.Messaging))
	})

	register(a, api, operation{
		id: "put-messaging", summary: "Change a messaging configuration", method: http.MethodPut, path: "/v1/messaging/{messaging}",
		action: tenant.WriteMessaging, tag: tag,
	}, func(ctx context.Context, in *struct {
		MessagingPath
		IfMatch
		Body messagingInput
	}) (*Versioned[messagingBody], error) {
		c := caller(ctx)
		old, err := a.store(c).Configuration(ctx, in.Messaging)
		if err != nil {
			return nil, err
		}
		if err := in.check(old.Version); err != nil {
			return nil, err
		}
		return messagingAnswer(a.mails().Change(ctx, c.Core, c.Actor, in.Body.configuration(in.Messaging, old.Version)))
	})

	register(a, api, operation{
		id: "delete-messaging", summary: "Delete a messaging configuration", method: http.MethodDelete, path: "/v1/messaging/{messaging}",
		action: tenant.WriteMessaging, status: http.StatusNoContent, tag: tag, about: "Not while the settings, a card template or a trigger rule name it.",
	}, func(ctx context.Context, in *MessagingPath) (*struct{}, error) {
		c := caller(ctx)
		return nil, a.mails().Delete(ctx, c.Core, c.Actor, in.Messaging)
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
		r, err := a.mails().Test(ctx, c.Core, c.Actor, in.Messaging, in.Body.Template, in.Body.To)
		if err != nil {
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
		return templateAnswer(a.mails().CreateTemplate(ctx, c.Core, c.Actor,
			mail.Template{Kind: mail.TemplateKind(in.Body.Kind), Name: in.Body.Name, Subject: in.Body.Subject, Text: in.Body.Text, HTML: in.Body.HTML}))
	})

	register(a, api, operation{
		id: "get-template", summary: "Get a mail template", method: http.MethodGet, path: "/v1/mail-templates/{template}",
		action: tenant.ReadMessaging, tag: templates,
	}, func(ctx context.Context, in *TemplatePath) (*Versioned[templateBody], error) {
		c := caller(ctx)
		return templateAnswer(a.store(c).Template(ctx, in.Template, c.Core.Tenant.Settings.Language))
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
		old, err := a.store(c).Template(ctx, in.Template, c.Core.Tenant.Settings.Language)
		if err != nil {
			return nil, err
		}
		if err := in.check(old.Version); err != nil {
			return nil, err
		}
		return templateAnswer(a.mails().ChangeTemplate(ctx, c.Core, c.Actor,
			mail.Template{ID: old.ID, Kind: old.Kind, Name: in.Body.Name, Subject: in.Body.Subject, Text: in.Body.Text, HTML: in.Body.HTML, Version: old.Version}))
	})

	register(a, api, operation{
		id: "delete-template", summary: "Delete a mail template", method: http.MethodDelete, path: "/v1/mail-templates/{template}",
		action: tenant.WriteMessaging, status: http.StatusNoContent, tag: templates,
		about: "Not while the settings or a trigger rule name it. Deleting a predefined one returns it to how it came.",
	}, func(ctx context.Context, in *TemplatePath) (*struct{}, error) {
		c := caller(ctx)
		return nil, a.mails().DeleteTemplate(ctx, c.Core, c.Actor, in.Template)
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
		m, err := a.mails().Preview(ctx, caller(ctx).Core, in.Template)
		if err != nil {
			return nil, err
		}
		return answer(previewBody{m.Subject, m.Text, m.HTML}), nil
	})
}

func messagingAnswer(c mail.Configuration, err error) (*Versioned[messagingBody], error) {
	if err != nil {
		return nil, err
	}
	return versioned(messagingOut(c), c.Version), nil
}

func templateAnswer(t mail.Template, err error) (*Versioned[templateBody], error) {
	if err != nil {
		return nil, err
	}
	return versioned(templateOut(t), t.Version), nil
}
