package intake

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// maxAhead is how far a PIN expiry flag may lie ahead: as far as a template can set it.
const maxAhead = 3650 * 24 * time.Hour

// cardRow is what an entry holds of a row of a card.
type cardRow struct {
	template credential.Template
	holder   holder
	new      credential.New
	is       credential.Credential // to be
	there    table.Op              // the condition that the holder is there
}

// holder is how a row names who has the card.
type holder struct {
	field Field // "" for nobody
	value string
}

// cards takes rows of cards.
type cards struct {
	*settings
	templates templates
	zone      *time.Location
}

func newCards(ctx context.Context, s *settings) (*cards, error) {
	all, err := s.is.Credentials.Templates(ctx, s.core.Tenant.ID)
	return &cards{s, index(all), s.core.Tenant.Settings.Location()}, err
}

// templates are the tenant's, by id and by name.
type templates struct {
	byID   map[string]credential.Template
	byName map[string][]string // ids
}

func index(all []credential.Template) templates {
	ts := templates{map[string]credential.Template{}, map[string][]string{}}
	for _, t := range all {
		ts.byID[t.ID] = t
		ts.byName[t.Name] = append(ts.byName[t.Name], t.ID)
	}
	return ts
}

// named returns the template with an id or a name.
func (ts templates) named(name string) (credential.Template, error) {
	if t, ok := ts.byID[name]; ok {
		return t, nil
	}
	switch ids := ts.byName[name]; len(ids) {
	case 0:
		return credential.Template{}, errors.New("is not the id or the name of a credential template")
	case 1:
		return ts.byID[ids[0]], nil
	}
	return credential.Template{}, errors.New("is the name of several credential templates; give the id")
}

func (c *cards) round(context.Context, int) error { return nil }

// prepare implements taker.
func (c *cards) prepare(ctx context.Context, e *entry[cardRow]) error {
	column, is := c.im.Column, &e.is
	if is.new.Template = e.value(Template); is.new.Template == "" {
		is.new.Template = c.im.Template
	}
	t, err := c.templates.named(is.new.Template)
	switch {
	case is.new.Template == "":
		e.refuse(column(Template), "is empty, and the import names no template for all rows")
	case err != nil:
		e.refuse(column(Template), "%v", err)
	case e.value(Family) != "" && e.value(Family) != t.Family:
		e.refuse(column(Family), "must be %s, for the template is for %s cards", t.Family, t.Family)
	}
	is.template, is.new.Template, is.new.Family, is.new.CardID = t, t.ID, t.Family, e.value(CardID)
	is.new.Label, is.new.Serial = e.value(Label), e.value(Serial)
	for _, f := range []Field{HolderID, HolderUsername, HolderExternalID} {
		if v := e.value(f); v != "" && is.holder.field != "" {
			e.refuse(column(f), "names the holder a second time")
		} else if v != "" {
			is.holder = holder{f, v}
		}
	}
	if is.new.PUK, err = c.secretOf(&e.row, PUK); err != nil {
		e.refuse(column(PUK), "%v", err)
	}
	if is.new.AdminKey, err = c.secretOf(&e.row, AdminKey); err != nil {
		e.refuse(column(AdminKey), "%v", err)
	}
	is.new.PINExpiresAt = c.expiryOf(e)
	if t.ID == "" { // nothing can be told of the card without its family
		return nil
	}
	if id, err := credential.IDOf(t.Family, is.new.CardID); err == nil {
		e.id, e.key = id, id
	}
	made, err := c.is.Credentials.Prepare(c.core, is.new, t)
	var vs problem.Violations
	if err := vs.Merge(err); err != nil {
		return err
	}
	for _, v := range vs {
		e.refuse(column(Field(v.Field)), "%s", v.Reason)
	}
	if e.outcome == refused {
		return nil
	}
	is.is, e.unmanaged = made, made.HasFlag() && !t.ManagesExpiry()
	if e.content, err = c.hash(e.key, is.says()); err != nil {
		return err
	}
	return c.findHolder(ctx, e)
}

// expiryOf returns a row's PIN expiry flag, zero if it has none. A date is its beginning
// in the tenant's time zone.
func (c *cards) expiryOf(e *entry[cardRow]) time.Time {
	v := e.value(PINExpiresAt)
	if v == "" {
		return time.Time{}
	}
	at, err := time.ParseInLocation(time.DateOnly, v, c.zone)
	if err != nil {
		at, err = time.Parse(time.RFC3339, v)
	}
	switch {
	case err != nil:
		e.refuse(c.im.Column(PINExpiresAt), "must be a date such as 2030-01-31 or a time such as 2030-01-31T08:00:00Z")
	case at.After(c.im.CreatedAt.Add(maxAhead)):
		e.refuse(c.im.Column(PINExpiresAt), "is more than 3650 days ahead")
	default:
		return at.UTC().Truncate(time.Second)
	}
	return time.Time{}
}

// says is what the row says of its card.
func (is cardRow) says() string {
	reveal := func(t *secret.Text) string {
		if t == nil {
			return ""
		}
		return t.Reveal()
	}
	n := is.new
	return fmt.Sprintf("%q %q %q %q %q %d %q %q", n.Template, is.holder.field, is.holder.value, n.Label, n.Serial,
		n.PINExpiresAt.Unix(), reveal(n.PUK), strings.ToUpper(reveal(n.AdminKey)))
}

// candidates implements taker: the card's id is that of one of the families.
func (c *cards) candidates(r row) (keys []string, _ error) {
	for _, f := range card.Families() {
		if id, err := credential.IDOf(f.Name, r.value(CardID)); err == nil {
			keys = append(keys, id)
		}
	}
	return keys, nil
}

// suspicion implements taker: a PUK or admin key that is not the card's may be a guess.
func (c *cards) suspicion(keys []string) (string, map[string]string) {
	return "import.secretsDiffer", map[string]string{"cards": fmt.Sprint(len(keys)), "credentials": strings.Join(keys[:min(len(keys), 50)], " ")}
}

// fit implements taker.
func (c *cards) fit(es []*entry[cardRow]) int {
	ops := 1 // the audit record
	templates := map[string]bool{}
	for i, e := range es {
		more := credential.RegisterOps(c.core, e.is.is)
		if e.is.holder.field != "" {
			more++
		}
		if !templates[e.is.template.ID] {
			more += 2 // its check and its count
		}
		if ops += more; ops > table.MaxOps {
			return i
		}
		templates[e.is.template.ID] = true
	}
	return len(es)
}

// write implements taker. When others were faster, it reads anew what the rows name.
func (c *cards) write(ctx context.Context, lane int, es []*entry[cardRow]) error {
	b := credential.Batch{Shard: lane, By: c.by, Subject: Subject(c.im.ID)}
	holders := map[string]bool{}
	for _, e := range es {
		is := e.is.is
		is.Import = c.place(e.line, e.content).String()
		b.Cards = append(b.Cards, is)
		b.Templates = append(b.Templates, e.is.template)
		if is.Holder != "" && !holders[is.Holder] {
			holders[is.Holder] = true
			b.Checks = append(b.Checks, e.is.there)
		}
	}
	err := c.is.Credentials.RegisterAll(ctx, c.core, b)
	if errors.Is(err, problem.ErrConflict) && !errors.Is(err, credential.ErrThere) {
		for _, e := range es {
			if err := c.refresh(ctx, e); err != nil {
				return err
			}
		}
	}
	return err
}

// refresh reads anew what a row names.
func (c *cards) refresh(ctx context.Context, e *entry[cardRow]) error {
	t, err := c.is.Credentials.Template(ctx, c.core.Tenant.ID, e.is.template.ID)
	if errors.Is(err, problem.ErrNotFound) {
		e.refuse(c.im.Column(Template), "is not the id or the name of a credential template")
		return nil
	} else if err != nil {
		return err
	}
	e.is.template, e.unmanaged = t, e.is.is.HasFlag() && !t.ManagesExpiry()
	return c.findHolder(ctx, e)
}

// findHolder finds the user that a row names.
func (c *cards) findHolder(ctx context.Context, e *entry[cardRow]) error {
	t := c.core.Tenant.ID
	var u user.User
	var err error
	switch e.is.holder.field {
	case HolderID:
		u, err = c.is.Users.Get(ctx, t, e.is.holder.value)
	case HolderUsername:
		u, err = c.is.Users.ByUsername(ctx, t, e.is.holder.value)
	case HolderExternalID:
		u, err = c.is.Users.ByExternalID(ctx, t, e.is.holder.value)
	default:
		return nil
	}
	if errors.Is(err, problem.ErrNotFound) {
		e.refuse(c.im.Column(e.is.holder.field), "names no user")
		return nil
	} else if err != nil {
		return fmt.Errorf("find holder: %w", err)
	}
	e.is.new.Holder, e.is.is.Holder = u.ID, u.ID
	e.is.there = table.Check(table.UserKey(t, u.ID), table.IfVersion(u.Version))
	return nil
}

// lookUp implements taker.
func (c *cards) lookUp(ctx context.Context, e *entry[cardRow]) error {
	there, err := c.is.Credentials.Get(ctx, c.core.Tenant.ID, e.key)
	if errors.Is(err, problem.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if p, ok := c.ours(there.Import); ok {
		if p == c.place(e.line, e.content) {
			e.decide(taken) // by this row, when the part was sent before
		} else {
			twin(c.settings, e, p)
		}
		return nil
	}
	differs, err := there.Differs(c.core, e.is.template, e.is.new)
	if err != nil {
		return err
	}
	about := true // label and holder only
	for _, field := range differs {
		about = about && (field == "label" || field == "holder")
		e.spoken = e.spoken || field == "puk" || field == "adminKey"
	}
	e.suspect = e.spoken
	switch {
	case len(differs) == 0:
		e.decide(unchanged)
	case c.im.Update && about:
		return c.update(ctx, e, there)
	default:
		for _, field := range differs {
			column := c.im.Column(Field(field))
			if field == "holder" {
				column = c.im.Column(e.is.holder.field)
			}
			e.refuse(column, "is not what is on record of this card, which an import does not overwrite")
		}
	}
	return nil
}

// update changes label and holder of a card to what a row says.
func (c *cards) update(ctx context.Context, e *entry[cardRow], there credential.Credential) error {
	if c.im.DryRun {
		e.decide(updated)
		return nil
	}
	_, err := c.is.Credentials.Update(ctx, c.core, c.by, tenant.RoleOperator, there.ID, there.Version, func(a *credential.About) {
		if e.is.new.Label != "" {
			a.Label = e.is.new.Label
		}
		if e.is.new.Holder != "" {
			a.Holder = e.is.new.Holder
		}
	})
	var invalid *problem.InvalidError
	switch {
	case err == nil:
		e.decide(updated)
	case errors.Is(err, problem.ErrState):
		e.refuse("", "is of a card that is being unblocked; send the row again later")
	case errors.Is(err, problem.ErrConflict), errors.Is(err, problem.ErrNotFound), errors.As(err, &invalid):
		e.refuse("", "is of a card that somebody else changed at the same time; send the row again")
	default:
		return err
	}
	return nil
}
