// Package messaging changes how a tenant's mail is sent and what it says. Its invariants: a
// change and its audit record are one Write, and what something names cannot be deleted.
package messaging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Messaging are the operations on messaging configurations and mail templates. All fields
// must be set; Rand must be safe for concurrent use.
type Messaging struct {
	Table       table.Table
	Rules       *rule.Rules
	Credentials *credential.Credentials
	Senders     mail.Senders
	Audit       audit.Log
	Now         func() time.Time
	Rand        io.Reader
}

// Limits.
const (
	MaxKept = 100 // configurations of a tenant, and templates of its own

	maxTests  = 20 // test mails through a configuration in testsTime
	testsTime = 10 * time.Minute
)

// Subject and TemplateSubject name a configuration and a template in the audit log.
func Subject(id string) string         { return "messaging/" + id }
func TemplateSubject(id string) string { return "template/" + id }

// Store is what is kept of a tenant.
func (m Messaging) Store(core tenant.Core) mail.Store {
	return mail.Store{Table: m.Table, Tenant: core.Tenant.ID, Keys: core.Keys}
}

// write carries out a change with its audit record.
func (m Messaging) write(ctx context.Context, core tenant.Core, by audit.Actor, op table.Op, action, subject string, checks ...table.Op) error {
	record := audit.Record{Actor: by, Action: action, Subject: subject, Outcome: audit.Done}
	err := m.Table.Write(ctx, append([]table.Op{op, m.Audit.Op(ctx, core.Tenant.ID, record)}, checks...)...)
	if err != nil {
		return fmt.Errorf("%s: %w", action, err)
	}
	return nil
}

func (m Messaging) newID() (string, error) {
	id, err := ulid.New(ulid.Timestamp(m.Now()), m.Rand)
	if err != nil {
		return "", fmt.Errorf("make an id: %w", err)
	}
	return id.String(), nil
}

// usable refuses a kind of mail system that this installation does not have.
func (m Messaging) usable(c mail.Configuration) error {
	if err := c.Validate(); err != nil {
		return nil // PutConfiguration tells what is wrong, knowing the stored password
	}
	if _, err := m.Senders.For(c); errors.Is(err, problem.ErrState) {
		return problem.Invalid("unavailable", "kind", "%s is not available in this installation", c.Kind)
	}
	return nil
}

// Create stores a new configuration, whose id it chooses, and returns it without its password.
func (m Messaging) Create(ctx context.Context, core tenant.Core, by audit.Actor, c mail.Configuration) (mail.Configuration, error) {
	all, err := m.Store(core).Configurations(ctx)
	if err != nil {
		return mail.Configuration{}, err
	}
	if len(all) >= MaxKept {
		return mail.Configuration{}, fmt.Errorf("%w: there are %d messaging configurations, which is the most a tenant can have", problem.ErrState, len(all))
	}
	if c.ID, err = m.newID(); err != nil {
		return mail.Configuration{}, err
	}
	c.Version = 0
	return m.put(ctx, core, by, c, "messaging.created")
}

// Change writes a configuration in place of the one of its ID and Version. Without a password
// it keeps the stored one, see mail.Store.
func (m Messaging) Change(ctx context.Context, core tenant.Core, by audit.Actor, c mail.Configuration) (mail.Configuration, error) {
	return m.put(ctx, core, by, c, "messaging.changed")
}

func (m Messaging) put(ctx context.Context, core tenant.Core, by audit.Actor, c mail.Configuration, action string) (mail.Configuration, error) {
	if err := m.usable(c); err != nil {
		return mail.Configuration{}, err
	}
	store := m.Store(core)
	op, err := store.PutConfiguration(ctx, c)
	if err != nil {
		return mail.Configuration{}, err
	}
	if err := m.write(ctx, core, by, op, action, Subject(c.ID)); err != nil {
		return mail.Configuration{}, err
	}
	return store.Configuration(ctx, c.ID)
}

// Delete removes a configuration. While something names it that is a problem.ErrState.
func (m Messaging) Delete(ctx context.Context, core tenant.Core, by audit.Actor, id string) error {
	store := m.Store(core)
	old, err := store.Configuration(ctx, id)
	if err != nil {
		return err
	}
	if core.Tenant.Settings.ExpiryMail.Messaging == old.ID {
		return fmt.Errorf("%w: the settings name it for expiry mails; choose another one there first", problem.ErrState)
	}
	templates, err := m.Credentials.Templates(ctx, core.Tenant.ID)
	if err != nil {
		return err
	}
	for _, t := range templates {
		if t.Messaging == old.ID {
			return fmt.Errorf("%w: the card template %q names it; choose another one there first", problem.ErrState, t.Name)
		}
	}
	unnamed, err := m.Rules.Unnamed(ctx, core.Tenant.ID, func(x rule.Action) bool { return x.Messaging == old.ID })
	if err != nil {
		return err
	}
	return m.write(ctx, core, by, store.DeleteConfiguration(old.ID, old.Version), "messaging.deleted", Subject(old.ID),
		table.Check(table.TenantKey(core.Tenant.ID), table.IfVersion(core.Tenant.Version)), unnamed)
}

// Test sends a template, filled in with examples, through a configuration, and tells what the
// mail system said. template may be "", which is the one that the settings name. Too many
// within a short time are a problem.LimitError: each is a mail to an address that somebody
// typed.
func (m Messaging) Test(ctx context.Context, core tenant.Core, by audit.Actor, id, template, to string) (mail.Result, error) {
	conf, err := m.Store(core).WithPassword(ctx, id)
	if err != nil {
		return mail.Result{}, err
	}
	message, err := m.Preview(ctx, core, template)
	if err != nil {
		return mail.Result{}, err
	}
	if _, err := mail.ParseAddress(to); err != nil {
		return mail.Result{}, problem.Invalid("address", "to", "%v", err)
	}
	if err := m.mayTest(ctx, core, conf.ID); err != nil {
		return mail.Result{}, err
	}
	messageID, err := m.newID()
	if err != nil {
		return mail.Result{}, err
	}
	message.ID, message.To = "test."+messageID, to
	sender, err := m.Senders.For(conf)
	if err != nil {
		return mail.Result{}, err
	}
	r := sender.Send(ctx, []mail.Message{message})[0]
	record := audit.Record{Actor: by, Action: testedAction, Subject: Subject(conf.ID), Outcome: audit.Done, Reason: r.Code}
	if r.Outcome != mail.Accepted {
		record.Outcome = audit.Failed
	}
	return r, m.Table.Write(ctx, m.Audit.Op(ctx, core.Tenant.ID, record))
}

const testedAction = "messaging.tested"

// mayTest counts by the audit log, where each test is.
func (m Messaging) mayTest(ctx context.Context, core tenant.Core, id string) error {
	records, _, err := audit.Of(ctx, m.Table, core.Tenant.ID, Subject(id), "", 2*maxTests)
	if err != nil {
		return err
	}
	since := m.Now().Add(-testsTime)
	records = slices.DeleteFunc(records, func(r audit.Record) bool { return r.Action != testedAction || !r.At.After(since) })
	if len(records) < maxTests {
		return nil
	}
	return &problem.LimitError{Code: "rateLimited", Reason: "too many test mails were sent", Until: records[maxTests-1].At.Add(testsTime)}
}

// ExpiryMailChecks returns the conditions under which the settings may name the configuration
// and template: that they are there, and are for expiry mails.
func (m Messaging) ExpiryMailChecks(ctx context.Context, core tenant.Core, refs tenant.ExpiryMailRefs, vs *problem.Violations) ([]table.Op, error) {
	var checks []table.Op
	t, store := core.Tenant.ID, m.Store(core)
	if refs.Messaging != "" {
		conf, err := store.Configuration(ctx, refs.Messaging)
		if errors.Is(err, problem.ErrNotFound) {
			vs.Add("unknown", "expiryMail.messaging", "is not the id of a messaging configuration")
		} else if err != nil {
			return nil, err
		} else {
			checks = append(checks, table.Check(table.MessagingKey(t, conf.ID), table.IfVersion(conf.Version)))
		}
	}
	if refs.Template != "" && refs.Template != mail.PINExpiryID { // which is always there
		tmpl, err := store.Template(ctx, refs.Template, "")
		if errors.Is(err, problem.ErrNotFound) {
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
