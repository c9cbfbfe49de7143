package mail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
)

// Sealer seals secrets under a tenant's key. What was sealed for one purpose
// does not open for another.
type Sealer interface {
	Seal(purpose string, plaintext []byte) ([]byte, error)
	Open(purpose string, sealed []byte) ([]byte, error)
}

// Store keeps one tenant's configurations and templates. It reads the table;
// its changes are ops, for the caller to Write together with their audit
// record. An SMTP password is stored sealed, bound to its configuration.
//
// Whether a configuration or template is still selected somewhere is for the
// caller to check before deleting it.
type Store struct {
	Table  table.Table
	Tenant table.TenantID
	Keys   Sealer // needed for passwords only
}

// Configuration returns a configuration without its password, or
// problem.ErrNotFound.
func (s Store) Configuration(ctx context.Context, id string) (Configuration, error) {
	r, err := s.configuration(ctx, id)
	return r.Configuration, err
}

// WithPassword returns a configuration with its password, for Senders.For.
func (s Store) WithPassword(ctx context.Context, id string) (Configuration, error) {
	r, err := s.configuration(ctx, id)
	if err != nil || len(r.sealed) == 0 {
		return r.Configuration, err
	}
	password, err := s.Keys.Open(passwordPurpose(id), r.sealed)
	if err != nil {
		return Configuration{}, fmt.Errorf("open password of messaging configuration %s: %w", id, err)
	}
	r.SMTP.Password = secret.New(string(password))
	return r.Configuration, nil
}

// BulkRate is how many bulk messages a second go out with the configuration of an id, 0 if that
// is not known, or there is none.
func (s Store) BulkRate(ctx context.Context, senders Senders, id string) (float64, error) {
	if id == "" {
		return 0, nil
	}
	c, err := s.Configuration(ctx, id)
	if errors.Is(err, problem.ErrNotFound) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	return senders.BulkRate(ctx, c), nil
}

// Configurations returns all configurations, without passwords, by id.
func (s Store) Configurations(ctx context.Context) ([]Configuration, error) {
	items, err := s.all(ctx, table.Messagings(s.Tenant))
	if err != nil {
		return nil, fmt.Errorf("list messaging configurations: %w", err)
	}
	cs := make([]Configuration, len(items))
	for i, item := range items {
		r, err := s.readConfiguration(item)
		if err != nil {
			return nil, err
		}
		cs[i] = r.Configuration
	}
	return cs, nil
}

// PutConfiguration returns the op that creates a configuration (Version 0) or
// replaces the one of its Version. A replacement without a password keeps the
// old one while username, host and port stay: a changed host must not be sent
// a password that was given for another. Errors are *problem.InvalidError,
// problem.ErrNotFound and problem.ErrConflict.
func (s Store) PutConfiguration(ctx context.Context, c Configuration) (table.Op, error) {
	r := configurationRecord{Configuration: c, tenant: s.Tenant}
	r.SMTP.PasswordSet = false
	if c.Version != 0 {
		old, err := s.configuration(ctx, c.ID)
		if err != nil {
			return table.Op{}, err
		}
		if old.Version != c.Version {
			return table.Op{}, fmt.Errorf("messaging configuration %s: %w", c.ID, problem.ErrConflict)
		}
		if c.SMTP.Password.Empty() && c.SMTP.Username != "" && len(old.sealed) > 0 {
			if c.SMTP.Username != old.SMTP.Username || c.SMTP.Host != old.SMTP.Host || c.SMTP.Port != old.SMTP.Port {
				return table.Op{}, problem.Invalid("required", "smtp.password", "must be given again when host, port or username change")
			}
			r.sealed, r.SMTP.PasswordSet = old.sealed, true
		}
	}
	if err := r.Validate(); err != nil {
		return table.Op{}, err
	}
	if !c.SMTP.Password.Empty() {
		sealed, err := s.Keys.Seal(passwordPurpose(c.ID), []byte(c.SMTP.Password.Reveal()))
		if err != nil {
			return table.Op{}, fmt.Errorf("seal password of messaging configuration %s: %w", c.ID, err)
		}
		r.sealed = sealed
	}
	return table.Put(r, table.After(c.Version)), nil
}

// DeleteConfiguration returns the op that deletes the configuration of that
// version.
func (s Store) DeleteConfiguration(id string, version int64) table.Op {
	return table.Delete(table.MessagingKey(s.Tenant, id), table.IfVersion(version))
}

// Template returns a template, or problem.ErrNotFound. Predefined ones are
// always found: as stored, or as they came, in the language of the tag.
func (s Store) Template(ctx context.Context, id, language string) (Template, error) {
	item, err := s.Table.Get(ctx, table.TemplateKey(s.Tenant, id))
	if kind := TemplateKind(id); errors.Is(err, problem.ErrNotFound) && kind.Variables() != nil {
		return Predefined(kind, language), nil
	}
	if err != nil {
		return Template{}, fmt.Errorf("load mail template %s: %w", id, err)
	}
	return readTemplate(item)
}

// Templates returns the predefined templates, customised or not, by kind, and
// then all others by id.
func (s Store) Templates(ctx context.Context, language string) ([]Template, error) {
	items, err := s.all(ctx, table.Templates(s.Tenant))
	if err != nil {
		return nil, fmt.Errorf("list mail templates: %w", err)
	}
	var ts []Template
	for _, kind := range TemplateKinds() {
		ts = append(ts, Predefined(kind, language))
	}
	for _, item := range items {
		t, err := readTemplate(item)
		if err != nil {
			return nil, err
		}
		if i := slices.Index(TemplateKinds(), TemplateKind(t.ID)); i >= 0 {
			ts[i] = t
		} else {
			ts = append(ts, t)
		}
	}
	return ts, nil
}

// PutTemplate returns the op that creates a template or customises a
// predefined one (Version 0), or replaces the one of its Version. Writing an
// invalid one fails with *problem.InvalidError.
func (s Store) PutTemplate(t Template) table.Op {
	return table.Put(templateRecord{t, s.Tenant}, table.After(t.Version))
}

// DeleteTemplate returns the op that deletes the template of that version, or
// returns a customised predefined one to how it came.
func (s Store) DeleteTemplate(id string, version int64) table.Op {
	return table.Delete(table.TemplateKey(s.Tenant, id), table.IfVersion(version))
}

func (s Store) all(ctx context.Context, r table.Range) ([]table.Item, error) {
	var items []table.Item
	for {
		page, err := s.Table.Query(ctx, r)
		if err != nil {
			return nil, err
		}
		items = append(items, page.Items...)
		if !page.More || len(page.Items) == 0 {
			return items, nil
		}
		r = r.Beyond(r.Place(page.Items[len(page.Items)-1]))
	}
}

func passwordPurpose(id string) string { return "mail/smtp-password/" + id }

// configurationRecord is a Configuration with its password as it is stored.
type configurationRecord struct {
	Configuration
	tenant table.TenantID
	sealed []byte
}

type storedConfiguration struct {
	ID               string   `json:"id"`
	Name             string   `json:"name"`
	Kind             Kind     `json:"kind"`
	From             string   `json:"from"`
	ReplyTo          string   `json:"replyTo,omitempty"`
	ConfigurationSet string   `json:"configurationSet,omitempty"`
	Host             string   `json:"host,omitempty"`
	Port             int      `json:"port,omitempty"`
	Security         Security `json:"security,omitempty"`
	Username         string   `json:"username,omitempty"`
	SealedPassword   []byte   `json:"sealedPassword,omitempty"`
}

// Item implements table.Record.
func (r configurationRecord) Item() (table.Item, error) {
	data, err := json.Marshal(storedConfiguration{
		r.ID, r.Name, r.Kind, r.From, r.ReplyTo, r.SES.ConfigurationSet,
		r.SMTP.Host, r.SMTP.Port, r.SMTP.Security, r.SMTP.Username, r.sealed,
	})
	return table.Item{Key: table.MessagingKey(r.tenant, r.ID), Data: data}, err
}

func (s Store) configuration(ctx context.Context, id string) (configurationRecord, error) {
	item, err := s.Table.Get(ctx, table.MessagingKey(s.Tenant, id))
	if err != nil {
		return configurationRecord{}, fmt.Errorf("load messaging configuration %s: %w", id, err)
	}
	return s.readConfiguration(item)
}

func (s Store) readConfiguration(item table.Item) (configurationRecord, error) {
	var d storedConfiguration
	if err := item.Decode(&d); err != nil {
		return configurationRecord{}, err
	}
	return configurationRecord{
		Configuration{
			ID: d.ID, Name: d.Name, Kind: d.Kind, From: d.From, ReplyTo: d.ReplyTo,
			SES: SESSettings{d.ConfigurationSet},
			SMTP: SMTPSettings{
				Host: d.Host, Port: d.Port, Security: d.Security,
				Username: d.Username, PasswordSet: len(d.SealedPassword) > 0,
			},
			Version: item.Version,
		}, s.Tenant, d.SealedPassword,
	}, nil
}

type templateRecord struct {
	Template
	tenant table.TenantID
}

type storedTemplate struct {
	ID      string       `json:"id"`
	Kind    TemplateKind `json:"kind,omitempty"`
	Name    string       `json:"name"`
	Subject string       `json:"subject"`
	Text    string       `json:"text"`
	HTML    string       `json:"html,omitempty"`
}

// Item implements table.Record.
func (r templateRecord) Item() (table.Item, error) {
	data, err := json.Marshal(storedTemplate{r.ID, r.Kind, r.Name, r.Subject, r.Text, r.HTML})
	return table.Item{Key: table.TemplateKey(r.tenant, r.ID), Data: data}, err
}

func readTemplate(item table.Item) (Template, error) {
	var d storedTemplate
	if err := item.Decode(&d); err != nil {
		return Template{}, err
	}
	if d.Kind == "" { // stored before there were kinds
		d.Kind = PINExpiry
	}
	return Template{d.ID, d.Kind, d.Name, d.Subject, d.Text, d.HTML, item.Version}, nil
}
