package rule

import (
	"context"
	"errors"
	"fmt"

	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// Checks returns the conditions under which a rule may name what it names: that it is
// there, and of the right kind.
func (en *Engine) Checks(ctx context.Context, t table.TenantID, r Rule) ([]table.Op, error) {
	var vs problem.Violations
	checks := map[table.Key]table.Op{}
	store := mail.Store{Table: en.Table, Tenant: t}
	for i, x := range r.Actions {
		field := func(name string) string { return fmt.Sprintf("actions[%d].%s", i, name) }
		if x.Messaging != "" {
			conf, err := store.Configuration(ctx, x.Messaging)
			if errors.Is(err, problem.ErrNotFound) {
				vs.Add("unknown", field("messaging"), "is not the id of a messaging configuration")
			} else if err != nil {
				return nil, err
			} else {
				key := table.MessagingKey(t, conf.ID)
				checks[key] = table.Check(key, table.IfVersion(conf.Version))
			}
		}
		if x.Template != "" {
			want := x.TemplateKind()
			tmpl, err := store.Template(ctx, x.Template, "")
			switch {
			case errors.Is(err, problem.ErrNotFound):
				vs.Add("unknown", field("template"), "is not the id of a mail template")
			case err != nil:
				return nil, err
			case tmpl.Kind != want:
				vs.Add("kind", field("template"), "is a mail template of kind %s; %s needs one of kind %s", tmpl.Kind, x.Kind, want)
			case tmpl.Version != 0:
				key := table.TemplateKey(t, tmpl.ID)
				checks[key] = table.Check(key, table.IfVersion(tmpl.Version))
			}
		}
		if x.Endpoint != "" {
			e, err := en.Deliveries.Endpoint(ctx, t, x.Endpoint)
			if errors.Is(err, problem.ErrNotFound) {
				vs.Add("unknown", field("endpoint"), "is not the id of a webhook")
			} else if err != nil {
				return nil, err
			} else {
				key := table.EndpointKey(t, e.ID)
				checks[key] = table.Check(key, table.IfVersion(e.Version))
			}
		}
	}
	if err := vs.Err(); err != nil {
		return nil, err
	}
	var ops []table.Op
	for _, op := range checks {
		ops = append(ops, op)
	}
	return ops, nil
}
