package messaging

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// CreateTemplate stores a new mail template, whose id it chooses.
func (m Messaging) CreateTemplate(ctx context.Context, core tenant.Core, by audit.Actor, t mail.Template) (mail.Template, error) {
	all, err := m.Store(core).Templates(ctx, "")
	if err != nil {
		return mail.Template{}, err
	}
	if kept := len(all) - len(mail.TemplateKinds()); kept >= MaxKept {
		return mail.Template{}, fmt.Errorf("%w: there are %d mail templates, which is the most a tenant can have", problem.ErrState, kept)
	}
	if t.ID, err = m.newID(); err != nil {
		return mail.Template{}, err
	}
	t.Version = 0
	return m.putTemplate(ctx, core, by, t, "template.created")
}

// ChangeTemplate writes a template in place of the one of its ID and Version; a predefined one
// that is as it came has Version 0.
func (m Messaging) ChangeTemplate(ctx context.Context, core tenant.Core, by audit.Actor, t mail.Template) (mail.Template, error) {
	return m.putTemplate(ctx, core, by, t, "template.changed")
}

func (m Messaging) putTemplate(ctx context.Context, core tenant.Core, by audit.Actor, t mail.Template, action string) (mail.Template, error) {
	if err := m.write(ctx, core, by, m.Store(core).PutTemplate(t), action, TemplateSubject(t.ID)); err != nil {
		return mail.Template{}, err
	}
	t.Version++
	return t, nil
}

// DeleteTemplate removes a template, or returns a predefined one to how it came. While
// something names it that is a problem.ErrState.
func (m Messaging) DeleteTemplate(ctx context.Context, core tenant.Core, by audit.Actor, id string) error {
	store := m.Store(core)
	old, err := store.Template(ctx, id, "")
	if err != nil || old.Version == 0 {
		return err
	}
	var checks []table.Op
	if !IsPredefined(old.ID) {
		if core.Tenant.Settings.ExpiryMail.Template == old.ID {
			return fmt.Errorf("%w: the settings name it for expiry mails; choose another one there first", problem.ErrState)
		}
		unnamed, err := m.Rules.Unnamed(ctx, core.Tenant.ID, func(x rule.Action) bool { return x.Template == old.ID })
		if err != nil {
			return err
		}
		checks = append(checks, table.Check(table.TenantKey(core.Tenant.ID), table.IfVersion(core.Tenant.Version)), unnamed)
	}
	return m.write(ctx, core, by, store.DeleteTemplate(old.ID, old.Version), "template.deleted", TemplateSubject(old.ID), checks...)
}

// IsPredefined tells whether a template's id is that of one that comes with Pinward.
func IsPredefined(id string) bool {
	return slices.Contains(mail.TemplateKinds(), mail.TemplateKind(id))
}

// Preview fills in a template with examples; "" is the one that the settings name for expiry
// mails.
func (m Messaging) Preview(ctx context.Context, core tenant.Core, id string) (mail.Message, error) {
	if id == "" {
		id = core.Tenant.Settings.ExpiryMail.Template
	}
	if id == "" {
		id = mail.PINExpiryID
	}
	t, err := m.Store(core).Template(ctx, id, core.Tenant.Settings.Language)
	if err != nil {
		return mail.Message{}, err
	}
	return m.PreviewOf(core, t)
}

// PreviewOf fills in a template, stored or not, with examples. What is wrong with it is a
// *problem.InvalidError.
func (m Messaging) PreviewOf(core tenant.Core, t mail.Template) (mail.Message, error) {
	if err := t.Validate(); err != nil {
		return mail.Message{}, err
	}
	return mail.Render(t, m.Examples(core, t.Kind))
}

// Examples are values for mails of a kind, in the tenant's zone and language.
func (m Messaging) Examples(core tenant.Core, kind mail.TemplateKind) mail.Values {
	s := core.Tenant.Settings
	return mail.Examples(kind, s.DisplayName, s.Language, func(in time.Duration) string {
		return mail.FormatTime(m.Now().Add(in), s.Location(), s.Language)
	})
}
