package credential

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Prepare returns the credential that Register would make of a new card with the template,
// but for the holder, of whom the caller makes sure. Everything that is wrong with the
// input is one InvalidError.
func (cs *Credentials) Prepare(core tenant.Core, n New, tmpl Template) (Credential, error) {
	now := cs.Now()
	c, _, vs, err := draft(core, n, now)
	if err != nil {
		return Credential{}, err
	}
	if err := vs.Err(); err != nil {
		return Credential{}, err
	}
	return c.issued(n, tmpl, now), nil
}

// Batch is what RegisterAll registers in one Write.
type Batch struct {
	Cards     []Credential // prepared, of different cards
	Templates []Template   // of each
	Checks    []table.Op   // on which it depends besides: that holders are there
	// Shard is where the cards are counted, below table.CountShards. Those who register at
	// the same time should take different ones.
	Shard   int
	By      audit.Actor
	Subject string // of the audit record, which lists the cards
}

// ErrThere: a card of a batch is registered already.
var ErrThere = fmt.Errorf("%w: a card is registered already", problem.ErrConflict)

// RegisterOps returns how many ops of a Write a card takes. Batches take besides one, and
// two for each template.
func RegisterOps(core tenant.Core, c Credential) int {
	n := 1 + len(c.pointers(core.Tenant.ID))
	if core.Watch.Waits(string(event.CredentialRegistered)) {
		n++
	}
	return n
}

// RegisterAll registers all cards of a batch or none, with one audit record for all: a
// record each would fill the partition of a day's records a hundred times as fast. If one
// is there already it is ErrThere; other problem.ErrConflict may be gone when templates and
// holders are read anew.
func (cs *Credentials) RegisterAll(ctx context.Context, core tenant.Core, b Batch) error {
	t, now := core.Tenant.ID, cs.Now()
	var ops []table.Op
	first := map[int]bool{} // the cards' own ops
	uses := map[string]int{}
	templates := map[string]Template{}
	ids := make([]string, len(b.Cards))
	for i, c := range b.Cards {
		ids[i] = c.ID
		uses[c.Template]++
		templates[c.Template] = b.Templates[i]
		first[len(ops)] = true
		ops = append(ops, Put(t, Credential{}, c)...)
		ops = append(ops, c.registered(ctx, core, now)...)
	}
	ops = append(ops, cs.Audit.Op(ctx, t, audit.Record{Actor: b.By, Action: "credential.registered", Subject: b.Subject, Outcome: audit.Done,
		Details: map[string]string{"credentials": strings.Join(ids, " ")}}))
	ops = append(ops, b.Checks...)
	var err error
	for range registerTries {
		counted := slices.Clip(ops)
		for id, n := range uses {
			use, begun, err := cs.useIn(ctx, t, id, b.Shard, n)
			if err != nil {
				return err
			}
			counted = append(counted, use)
			// A template is deleted with its counts, so a count that goes on shows that it
			// is there. To check the template itself each time would let only one Write
			// after the other through on DynamoDB.
			if !begun {
				counted = append(counted, table.Check(table.CardTemplateKey(t, id), table.IfVersion(templates[id].Version)))
			}
		}
		err = cs.Table.Write(ctx, counted...)
		i, failed := table.FailedOp(err)
		switch {
		case failed && first[i]:
			return ErrThere
		case failed && i >= len(ops) && counted[i].Kind() == table.OpPut:
			continue // others count in the same shard
		}
		break
	}
	return err
}

// Differs returns in what a new card is other than the one that is there: "template",
// "holder", "label", "serial", "pinExpiresAt", "puk", "adminKey". What it does not say is
// not compared, and the secrets are only where all else but label and holder is the same.
func (c Credential) Differs(core tenant.Core, tmpl Template, n New) (fields []string, _ error) {
	differ := func(field string, is bool) {
		if is {
			fields = append(fields, field)
		}
	}
	differ("template", c.Template != tmpl.ID)
	differ("serial", n.Serial != "" && n.Serial != c.Serial)
	differ("pinExpiresAt", !n.PINExpiresAt.IsZero() && !n.PINExpiresAt.Equal(c.PINExpiresAt))
	other := len(fields) > 0
	differ("holder", n.Holder != "" && n.Holder != c.Holder)
	differ("label", n.Label != "" && n.Label != c.Label)
	if other {
		return fields, nil
	}
	if n.PUK != nil {
		puk, err := c.PUK(core.Keys, core.Tenant.ID, c.Custody.Current)
		if err != nil && !errors.Is(err, problem.ErrNotFound) {
			return nil, err
		}
		differ("puk", err != nil || !puk.Equal(*n.PUK))
	}
	if n.AdminKey != nil {
		key, err := c.AdminKeyOf(core.Keys, core.Tenant.ID, tmpl)
		if err != nil && !errors.Is(err, problem.ErrNotFound) && !errors.Is(err, problem.ErrState) {
			return nil, err
		}
		given, _ := unhexKey(*n.AdminKey)
		differ("adminKey", err != nil || !key.Equal(given))
	}
	return fields, nil
}
