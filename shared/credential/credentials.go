package credential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Credentials are the operations on credentials and their templates. All fields must be
// set; Rand must be safe for concurrent use.
type Credentials struct {
	Table table.Table
	Audit audit.Log
	Now   func() time.Time
	Rand  io.Reader
}

// tries bounds how often an operation begins anew because somebody else changed the same
// items meanwhile. Those who register cards at the same time meet at the shards of the
// template's count, where one at a time is let through.
const (
	tries         = 8
	registerTries = 50
)

var errBusy = fmt.Errorf("%w: others change the same at the same time", problem.ErrConflict)

func changedSince(what string, version, now int64) error {
	return fmt.Errorf("%w: the %s has changed since version %d; it has version %d now", problem.ErrConflict, what, version, now)
}

// write writes. If somebody else was faster the operation may begin anew.
func (cs *Credentials) write(ctx context.Context, ops []table.Op) (again bool, _ error) {
	err := cs.Table.Write(ctx, ops...)
	_, failed := table.FailedOp(err)
	return failed, err
}

// Get returns a credential by id.
func (cs *Credentials) Get(ctx context.Context, t table.TenantID, id string) (Credential, error) {
	item, err := cs.Table.Get(ctx, table.CredentialKey(t, id))
	if errors.Is(err, problem.ErrNotFound) {
		return Credential{}, fmt.Errorf("credential %w", problem.ErrNotFound)
	} else if err != nil {
		return Credential{}, fmt.Errorf("load credential: %w", err)
	}
	return decode(item)
}

// List returns up to limit credentials by id, beyond the place given ("" is the start),
// and the place to go on from, "" if there are no more.
func (cs *Credentials) List(ctx context.Context, t table.TenantID, beyond string, limit int) ([]Credential, string, error) {
	page, next, err := table.Merge(ctx, cs.Table, table.Credentials(t), limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list credentials: %w", err)
	}
	all, err := decodeAll(page.Items)
	return all, next, err
}

// Held is List for the credentials of one user.
func (cs *Credentials) Held(ctx context.Context, t table.TenantID, user, beyond string, limit int) ([]Credential, string, error) {
	r := table.CredentialsHeld(t, user)
	if r.Spec().Validate() != nil { // longer than any id
		return nil, "", nil
	}
	page, next, err := table.Merge(ctx, cs.Table, []table.Range{r}, limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list credentials of a user: %w", err)
	}
	all, err := decodeAll(page.Items)
	return all, next, err
}

func decodeAll(items []table.Item) ([]Credential, error) {
	all := make([]Credential, len(items))
	for i, item := range items {
		var err error
		if all[i], err = decode(item); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// New is a card to be registered.
type New struct {
	Family   string
	CardID   string // hex
	Template string
	Holder   string // the user's id; "" for nobody's
	Label    string

	// PUK is the one that the card has by now: its factory's, or one from a list. It is
	// Claimed until the card has taken it. PUKTriesLeft are its tries, if they are known.
	PUK          *secret.Text
	PUKTriesLeft *int
	// AdminKey, in hex, is the one that the card has by now. Without it, it is derived if
	// the template has a master key.
	AdminKey *secret.Text
}

// About is what people decide of a credential.
type About struct {
	Template string
	Holder   string // the user's id; "" for nobody's
	Label    string
}

// Register makes a card's credential. A card that the tenant has registered already is
// problem.ErrConflict, everything that is wrong with the input one InvalidError.
func (cs *Credentials) Register(ctx context.Context, core tenant.Core, by audit.Actor, n New) (Credential, error) {
	t, now := core.Tenant.ID, cs.Now()
	c := Credential{
		Family: n.Family, CardID: strings.ToUpper(n.CardID), Template: n.Template, Holder: n.Holder, Label: n.Label,
		CreatedAt: now.UTC().Truncate(time.Second), UpdatedAt: now.UTC().Truncate(time.Second),
		// Bridges remember the card's fences though its credential may have been deleted.
		Lease: Lease{Fence: now.UnixMilli()},
	}
	details := map[string]string{"template": n.Template}
	if n.Holder != "" {
		details["holder"] = n.Holder
	}
	var shape problem.Violations
	id, err := IDOf(c.Family, c.CardID)
	if err := shape.Merge(err); err != nil {
		return Credential{}, err
	}
	if c.ID = id; err == nil {
		if !isCardID(c.Family, c.CardID) {
			shape.Add("malformed", "cardId", "is no card id that %s cards have", c.Family)
		}
		if n.PUK != nil {
			details["puk"] = "claimed"
			err = c.claim(core, *n.PUK, n.PUKTriesLeft)
		} else if n.PUKTriesLeft != nil {
			err = problem.Invalid("inconsistent", "pukTriesLeft", "is of a PUK, and none is given")
		}
		if err := shape.Merge(err); err != nil {
			return Credential{}, err
		}
		if n.AdminKey != nil {
			details["adminKey"] = "escrowed"
			if err := shape.Merge(c.escrow(core, *n.AdminKey)); err != nil {
				return Credential{}, err
			}
		}
		if err := shape.Merge(c.Validate()); err != nil {
			return Credential{}, err
		}
	}
	for range registerTries {
		vs := append(problem.Violations(nil), shape...)
		checks, err := cs.references(ctx, t, c, Credential{}, &vs)
		if err != nil {
			return Credential{}, err
		}
		if err := vs.Err(); err != nil {
			return Credential{}, err
		}
		use, err := cs.useOp(ctx, t, c.Template, c.ID, 1)
		if err != nil {
			return Credential{}, err
		}
		record := audit.Record{Actor: by, Action: "credential.registered", Subject: Subject(c.ID), Outcome: audit.Done, Details: details}
		err = cs.Table.Write(ctx, append([]table.Op{Put(t, c), cs.Audit.Op(ctx, t, record), use}, checks...)...)
		if i, failed := table.FailedOp(err); failed && i == 0 {
			return Credential{}, fmt.Errorf("%w: the card is registered already", problem.ErrConflict)
		} else if failed {
			continue
		} else if err != nil {
			return Credential{}, fmt.Errorf("register credential: %w", err)
		}
		c.Version = 1
		return c, nil
	}
	return Credential{}, fmt.Errorf("register credential: %w: many are registered at once", problem.ErrUnavailable)
}

// isCardID tells whether a card of the family can have the id: whether an operation on it
// could begin.
func isCardID(family, cardID string) bool {
	f, err := card.FamilyNamed(family)
	if err == nil {
		_, err = f.Unblock(cardID, card.Claim(1, card.RetryCounter{}), 2)
	}
	return err == nil
}

// hasPUK tells whether the family's PINs are reset by a PUK: there are those, and those
// with an admin key.
func hasPUK(family string) bool {
	f, err := card.FamilyNamed(family)
	if err != nil {
		return false
	}
	_, err = f.TakeCustody("", card.Custody{}, 0)
	var failure card.Failure
	return !errors.As(err, &failure) || failure.Reason != card.NotSupported
}

// references returns the conditions under which c, which was old, may name its template
// and holder: that they are there, and the template is for such cards.
func (cs *Credentials) references(ctx context.Context, t table.TenantID, c, old Credential, vs *problem.Violations) ([]table.Op, error) {
	var checks []table.Op
	if c.Template != "" && c.Template != old.Template {
		tmpl, err := cs.Template(ctx, t, c.Template)
		switch {
		case errors.Is(err, problem.ErrNotFound):
			vs.Add("unknown", "template", "is not the id of a credential template")
		case err != nil:
			return nil, err
		case tmpl.Family != c.Family:
			vs.Add("inconsistent", "template", "is for %s cards", tmpl.Family)
		default:
			checks = append(checks, table.Check(table.CardTemplateKey(t, tmpl.ID), table.IfVersion(tmpl.Version)))
		}
	}
	if c.Holder != "" && c.Holder != old.Holder {
		key := table.UserKey(t, c.Holder)
		item, err := cs.Table.Get(ctx, key)
		if errors.Is(err, problem.ErrNotFound) {
			vs.Add("unknown", "holder", "is not the id of a user")
		} else if err != nil {
			return nil, fmt.Errorf("load holder: %w", err)
		} else {
			checks = append(checks, table.Check(key, table.IfVersion(item.Version)))
		}
	}
	return checks, nil
}

// change is what an edit of a credential has to say besides.
type change struct {
	details map[string]string // of the audit record
	ops     []table.Op        // of the same Write
	nothing bool              // is to be written
}

// edit reads a credential, lets do change it, and writes it with its audit record. If
// version is not 0, the credential must have it.
func (cs *Credentials) edit(ctx context.Context, core tenant.Core, by audit.Actor, id string, version int64, action string, do func(*Credential) (change, error)) (Credential, error) {
	t := core.Tenant.ID
	for range tries {
		c, err := cs.Get(ctx, t, id)
		if err != nil {
			return Credential{}, err
		}
		if version != 0 && c.Version != version {
			return Credential{}, changedSince("credential", version, c.Version)
		}
		ch, err := do(&c)
		if err != nil {
			return Credential{}, err
		}
		if ch.nothing {
			return c, nil
		}
		c.UpdatedAt = cs.Now().UTC().Truncate(time.Second)
		record := audit.Record{Actor: by, Action: action, Subject: Subject(id), Outcome: audit.Done, Details: ch.details}
		if again, err := cs.write(ctx, append([]table.Op{Put(t, c), cs.Audit.Op(ctx, t, record)}, ch.ops...)); again {
			continue
		} else if err != nil {
			return Credential{}, fmt.Errorf("%s: %w", action, err)
		}
		c.Version++
		return c, nil
	}
	return Credential{}, errBusy
}

// free refuses what must not be done while an operation speaks to the card.
func (cs *Credentials) free(c Credential) error {
	if c.Leased(cs.Now()) {
		return fmt.Errorf("%w: an unblock of this card is under way; wait until %s, or cancel it", problem.ErrState, c.Lease.Until.UTC().Format(time.RFC3339))
	}
	return nil
}

// Update changes what people decide of a credential, by the given function. If version is
// not 0, the credential must have it. Another template must be of the same family; an
// admin key that the former template's master key gave is from then on the credential's
// own, for it is still the card's. Template and holder stay during an unblock.
func (cs *Credentials) Update(ctx context.Context, core tenant.Core, by audit.Actor, id string, version int64, decide func(*About)) (Credential, error) {
	t := core.Tenant.ID
	return cs.edit(ctx, core, by, id, version, "credential.updated", func(c *Credential) (change, error) {
		old := *c
		was := About{c.Template, c.Holder, c.Label}
		is := was
		if decide(&is); is == was {
			return change{nothing: true}, nil
		}
		c.Template, c.Holder, c.Label = is.Template, is.Holder, is.Label
		var vs problem.Violations
		if err := vs.Merge(c.Validate()); err != nil {
			return change{}, err
		}
		checks, err := cs.references(ctx, t, *c, old, &vs)
		if err != nil {
			return change{}, err
		}
		if err := vs.Err(); err != nil {
			return change{}, err
		}
		ch := change{details: map[string]string{}, ops: checks}
		if is.Holder != was.Holder || is.Template != was.Template {
			if err := cs.free(old); err != nil {
				return change{}, err
			}
		}
		if is.Holder != was.Holder {
			ch.details["holder"] = is.Holder
		}
		if is.Template == was.Template {
			return ch, nil
		}
		ch.details["template"] = is.Template
		if err := cs.move(ctx, core, c, old, &ch); err != nil {
			return change{}, err
		}
		return ch, nil
	})
}

// move counts c with its new template, and no more with its old one, and escrows the admin
// key that came from that.
func (cs *Credentials) move(ctx context.Context, core tenant.Core, c *Credential, old Credential, ch *change) error {
	t := core.Tenant.ID
	for template, delta := range map[string]int{old.Template: -1, c.Template: 1} {
		op, err := cs.useOp(ctx, t, template, c.ID, delta)
		if err != nil {
			return err
		}
		ch.ops = append(ch.ops, op)
	}
	if c.AdminKey != nil || hasPUK(c.Family) {
		return nil
	}
	from, err := cs.Template(ctx, t, old.Template)
	if err != nil {
		return err
	}
	ch.ops = append(ch.ops, table.Check(table.CardTemplateKey(t, from.ID), table.IfVersion(from.Version)))
	if from.MasterKey == nil {
		return nil
	}
	key, err := old.AdminKeyOf(core.Keys, t, from)
	if err != nil {
		return err
	}
	if c.AdminKey, err = core.Keys.Seal(adminKeyPurpose(t, c.ID), []byte(key.Reveal())); err != nil {
		return fmt.Errorf("seal admin key: %w", err)
	}
	ch.details["adminKey"] = "escrowed"
	return nil
}

// Delete removes a credential with its secrets. If version is not 0, the credential must
// have it. One with a PUK or an admin key of its own is deleted only if that is confirmed:
// there may be no other record of them, and without them nobody can reset the card's PIN.
// During an unblock it is problem.ErrState.
func (cs *Credentials) Delete(ctx context.Context, core tenant.Core, by audit.Actor, id string, version int64, confirm bool) error {
	t := core.Tenant.ID
	for range tries {
		c, err := cs.Get(ctx, t, id)
		if err != nil {
			return err
		}
		if version != 0 && c.Version != version {
			return changedSince("credential", version, c.Version)
		}
		if err := cs.free(c); err != nil {
			return err
		}
		if !confirm && (len(c.PUKs) > 0 || c.AdminKey != nil) {
			return fmt.Errorf("%w: the card's PUK or admin key would be lost for ever with it, and its PIN could not be reset any more; confirm that this is meant", problem.ErrState)
		}
		use, err := cs.useOp(ctx, t, c.Template, id, -1)
		if err != nil {
			return err
		}
		details := map[string]string{"template": c.Template}
		if c.Doubt != "" {
			details["doubt"] = c.Doubt
		}
		again, err := cs.write(ctx, []table.Op{
			table.Delete(table.CredentialKey(t, id), table.IfVersion(c.Version)),
			cs.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "credential.deleted", Subject: Subject(id), Outcome: audit.Done, Details: details}),
			use,
		})
		if again {
			continue
		} else if err != nil {
			return fmt.Errorf("delete credential: %w", err)
		}
		return nil
	}
	return errBusy
}
