package credential

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/event"
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
	Serial   string
	State    State // "" is Registered, or Active if IssuedAt is set

	// IssuedAt is when the holder got the card with its PIN, zero if that is not known; and
	// PINExpiresAt the PIN expiry flag that it has by now, zero for the one that follows
	// from IssuedAt and the template, or none.
	IssuedAt     time.Time
	PINExpiresAt time.Time

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
	Serial   string
	State    State
	Reason   Reason // why State is another, where moves needs one
}

// Register makes a card's credential. A card that the tenant has registered already is
// problem.ErrConflict, everything that is wrong with the input one InvalidError.
func (cs *Credentials) Register(ctx context.Context, core tenant.Core, by audit.Actor, n New) (Credential, error) {
	t, now := core.Tenant.ID, cs.Now()
	c, details, shape, err := draft(core, n, now)
	if err != nil {
		return Credential{}, err
	}
	for range registerTries {
		vs := append(problem.Violations(nil), shape...)
		tmpl, checks, err := cs.references(ctx, t, c, Credential{}, &vs)
		if err != nil {
			return Credential{}, err
		}
		if err := vs.Err(); err != nil {
			return Credential{}, err
		}
		c := c.issued(n, tmpl, now)
		use, err := cs.useOp(ctx, t, c.Template, c.ID, 1)
		if err != nil {
			return Credential{}, err
		}
		record := audit.Record{Actor: by, Action: "credential.registered", Subject: Subject(c.ID), Outcome: audit.Done, Details: details}
		err = cs.Table.Write(ctx, slices.Concat(Put(t, Credential{}, c), []table.Op{cs.Audit.Op(ctx, t, record), use}, checks, c.registered(ctx, core, now))...)
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

// draft returns the credential of a new card as far as that can be told without the table,
// the details of its audit record, and what is wrong with the input.
func draft(core tenant.Core, n New, now time.Time) (c Credential, details map[string]string, shape problem.Violations, _ error) {
	fail := func(err error) (Credential, map[string]string, problem.Violations, error) {
		return Credential{}, nil, nil, err
	}
	c = Credential{
		Family: n.Family, CardID: strings.ToUpper(n.CardID), Template: n.Template, Holder: n.Holder, Label: n.Label, Serial: n.Serial, State: n.State,
		CreatedAt: now.UTC().Truncate(time.Second), UpdatedAt: now.UTC().Truncate(time.Second),
		// Bridges remember the card's fences though its credential may have been deleted.
		Lease: Lease{Fence: now.UnixMilli()},
	}
	details = map[string]string{"template": n.Template}
	if n.Holder != "" {
		details["holder"] = n.Holder
	}
	switch {
	case c.State == "" && n.IssuedAt.IsZero():
		c.State = Registered
	case c.State == "":
		c.State = Active
	}
	if n.IssuedAt.After(now.Add(skew)) {
		shape.Add("future", "issuedAt", "must not be in the future")
	}
	if !n.PINExpiresAt.IsZero() && !n.PINExpiresAt.After(now) {
		shape.Add("past", "pinExpiresAt", "must be in the future")
	}
	id, err := IDOf(c.Family, c.CardID)
	if err := shape.Merge(err); err != nil {
		return fail(err)
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
			return fail(err)
		}
		if n.AdminKey != nil {
			details["adminKey"] = "escrowed"
			if err := shape.Merge(c.escrow(core, *n.AdminKey)); err != nil {
				return fail(err)
			}
		}
		if err := shape.Merge(c.Validate()); err != nil {
			return fail(err)
		}
	}
	return c, details, shape, nil
}

// issued returns a new credential with what is known of its PIN.
func (c Credential) issued(n New, tmpl Template, now time.Time) Credential {
	if !n.IssuedAt.IsZero() {
		state := c.State
		c = c.PINChanged(PINChange{At: n.IssuedAt, How: Issued}, tmpl)
		c.State = state
	}
	if !n.PINExpiresAt.IsZero() {
		return c.Flag(n.PINExpiresAt, Flagged{How: FlagByImport, At: now}, tmpl, now)
	}
	return c.Flag(c.PINExpiresAt, c.Flagged, tmpl, now) // reminders are of days to come
}

// skew is how far other systems' clocks may be ahead.
const skew = 5 * time.Minute

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
	return err == nil && f.HasPUK()
}

// references returns the conditions under which c, which was old, may name its template
// and holder: that they are there, and the template is for such cards. It returns the
// template if it is another.
func (cs *Credentials) references(ctx context.Context, t table.TenantID, c, old Credential, vs *problem.Violations) (tmpl Template, checks []table.Op, err error) {
	if c.Template != "" && c.Template != old.Template {
		tmpl, err = cs.Template(ctx, t, c.Template)
		switch {
		case errors.Is(err, problem.ErrNotFound):
			vs.Add("unknown", "template", "is not the id of a credential template")
		case err != nil:
			return Template{}, nil, err
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
			return Template{}, nil, fmt.Errorf("load holder: %w", err)
		} else {
			checks = append(checks, table.Check(key, table.IfVersion(item.Version)))
		}
	}
	return tmpl, checks, nil
}

// change is what an edit of a credential has to say besides.
type change struct {
	details map[string]string // of the audit record
	reason  string            // its
	ops     []table.Op        // of the same Write
	nothing bool              // is to be written
	silent  bool              // no audit record: nobody has done anything
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
		was := c
		ch, err := do(&c)
		if err != nil {
			return Credential{}, err
		}
		if ch.nothing {
			return c, nil
		}
		c.UpdatedAt = cs.Now().UTC().Truncate(time.Second)
		record := audit.Record{Actor: by, Action: action, Subject: Subject(id), Outcome: audit.Done, Reason: ch.reason, Details: ch.details}
		ops := append(Put(t, was, c), ch.ops...)
		if !ch.silent {
			ops = append(ops, cs.Audit.Op(ctx, t, record))
		}
		if again, err := cs.write(ctx, ops); again {
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

// Update changes what people decide of a credential, by the given function; as is the role
// of who does, for moves to another state. If version is not 0, the credential must have
// it. Another template must be of the same family; the PIN expiry flag stays; an admin key
// that the former template's master key gave is from then on the credential's own, for it
// is still the card's. Template, holder and state stay during an unblock.
func (cs *Credentials) Update(ctx context.Context, core tenant.Core, by audit.Actor, as tenant.Role, id string, version int64, decide func(*About)) (Credential, error) {
	t := core.Tenant.ID
	return cs.edit(ctx, core, by, id, version, "credential.updated", func(c *Credential) (change, error) {
		old := *c
		was := About{Template: c.Template, Holder: c.Holder, Label: c.Label, Serial: c.Serial, State: c.State}
		is := was
		decide(&is)
		why := is.Reason
		if is.Reason = ""; is == was {
			return change{nothing: true}, nil
		}
		c.Template, c.Holder, c.Label, c.Serial, c.State = is.Template, is.Holder, is.Label, is.Serial, is.State
		var vs problem.Violations
		if err := vs.Merge(c.Validate()); err != nil {
			return change{}, err
		}
		if is.State != was.State && len(vs) == 0 {
			if err := vs.Merge(checkMove(was.State, is.State, as, why)); err != nil {
				return change{}, err
			}
		}
		_, checks, err := cs.references(ctx, t, *c, old, &vs)
		if err != nil {
			return change{}, err
		}
		if err := vs.Err(); err != nil {
			return change{}, err
		}
		ch := change{details: map[string]string{}, ops: checks}
		if is.Holder != was.Holder || is.Template != was.Template || is.State != was.State {
			if err := cs.free(old); err != nil {
				return change{}, err
			}
		}
		if is.Holder != was.Holder {
			ch.details["holder"] = is.Holder
		}
		if is.State != was.State {
			ch.details["from"], ch.details["state"], ch.reason = string(was.State), string(is.State), string(why)
			if c.CheckUnblockable() != nil {
				c.takeOver()
			}
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

// PINChangedByHolder notes that a card's holder has changed its PIN, at a time that is not
// before the last change on record; the PIN expiry flag is set anew. A retired card's is
// problem.ErrState.
func (cs *Credentials) PINChangedByHolder(ctx context.Context, core tenant.Core, by audit.Actor, id string, at time.Time) (Credential, error) {
	return cs.edit(ctx, core, by, id, 0, PINChangedAction, func(c *Credential) (change, error) {
		at := at.UTC().Truncate(time.Second)
		if at.Equal(c.LastPINChange.At) && c.LastPINChange.How == ChangedByHolder {
			return change{nothing: true}, nil // told twice
		}
		tmpl, err := cs.Template(ctx, core.Tenant.ID, c.Template)
		if err != nil {
			return change{}, err
		}
		was := c.State
		if *c, err = c.ChangedByHolder(at, tmpl, cs.Now()); err != nil {
			return change{}, err
		}
		details := map[string]string{"how": string(ChangedByHolder)}
		if c.State != was {
			details["from"], details["state"] = string(was), string(c.State)
		}
		check := table.Check(table.CardTemplateKey(core.Tenant.ID, tmpl.ID), table.IfVersion(tmpl.Version))
		return change{details: details, ops: []table.Op{check}}, nil
	})
}

// Sighting is what a card has told of itself in a reader.
type Sighting struct {
	ATR    []byte
	Serial string            // "" if it does not tell
	PIN    card.RetryCounter // of its PIN
}

// Saw notes what a card has told of itself: its ATR, its serial if none is on record, and
// whether its PIN is blocked, unless an unblock is under way. What is on record already is
// not written again; only another state is in the audit log.
func (cs *Credentials) Saw(ctx context.Context, core tenant.Core, by audit.Actor, id string, s Sighting) (Credential, error) {
	return cs.edit(ctx, core, by, id, 0, "credential.seen", func(c *Credential) (change, error) {
		was := *c
		if len(s.ATR) > 0 {
			c.ATR = bytes.Clone(s.ATR)
		}
		c.Serial = cmp.Or(c.Serial, s.Serial)
		to := Active
		if s.PIN.TriesLeft == 0 {
			to = Blocked
		}
		if m, ok := moveOf(c.State, to); ok && m.seen && s.PIN.Known && !c.Leased(cs.Now()) {
			c.State = to
			ch := change{details: map[string]string{"from": string(was.State), "state": string(to)}}
			if to == Blocked {
				ch.ops = c.happened(ctx, core, cs.Now(), was.Version+1, event.CredentialBlocked, c.kind())
			}
			return ch, nil
		}
		return change{silent: true, nothing: bytes.Equal(c.ATR, was.ATR) && c.Serial == was.Serial}, nil
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
		again, err := cs.write(ctx, append(Remove(t, c),
			cs.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "credential.deleted", Subject: Subject(id), Outcome: audit.Done, Details: details}),
			use,
		))
		if again {
			continue
		} else if err != nil {
			return fmt.Errorf("delete credential: %w", err)
		}
		return nil
	}
	return errBusy
}
