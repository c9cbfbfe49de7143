package intake

import (
	"crypto"
	"crypto/ecdsa"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

const thumbprintHash = crypto.SHA256

func encodeHash(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// maxAhead is how far a PIN expiry flag may lie ahead: as far as a template can set it.
const maxAhead = 3650 * 24 * time.Hour

// entry is a row on its way into the table.
type entry struct {
	row
	card     string // the credential's id, "" if that cannot be told
	template credential.Template
	holder   holder
	new      credential.New
	is       credential.Credential // to be
	content  string                // keyed hash of what the row says, without its card

	there   table.Op // the condition that the holder is there
	outcome outcome
	spoken  bool // its secrets were found to be others than the card's
}

// holder is how a row names who has the card.
type holder struct {
	field Field // "" for nobody
	value string
}

// outcome is what became of a row.
type outcome string

const (
	undecided outcome = ""
	taken     outcome = "taken"
	updated   outcome = "updated"
	unchanged outcome = "unchanged"
	refused   outcome = "refused"
)

func (e *entry) decide(o outcome) { e.outcome = o }

func (e *entry) refuse(column, reason string, args ...any) {
	e.row.refuse(column, reason, args...)
	e.outcome = refused
}

// settings are what all rows of a part are read by.
type settings struct {
	core      tenant.Core
	im        Import
	templates templates
	key       *ecdsa.PrivateKey // the import key; nil if there is none
	zone      *time.Location
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

// prepare reads a row, as far as that needs no table. It decides those that are wrong by
// themselves.
func (s settings) prepare(cs *credential.Credentials, e *entry) error {
	value := func(f Field) string { return strings.TrimSpace(e.values[f]) }
	column := s.im.Column
	if e.new.Template = value(Template); e.new.Template == "" {
		e.new.Template = s.im.Template
	}
	t, err := s.templates.named(e.new.Template)
	switch {
	case e.new.Template == "":
		e.refuse(column(Template), "is empty, and the import names no template for all rows")
	case err != nil:
		e.refuse(column(Template), "%v", err)
	case value(Family) != "" && value(Family) != t.Family:
		e.refuse(column(Family), "must be %s, for the template is for %s cards", t.Family, t.Family)
	}
	e.template, e.new.Template, e.new.Family, e.new.CardID = t, t.ID, t.Family, value(CardID)
	e.new.Label, e.new.Serial = value(Label), value(Serial)
	for _, f := range []Field{HolderID, HolderUsername, HolderExternalID} {
		if v := value(f); v != "" && e.holder.field != "" {
			e.refuse(column(f), "names the holder a second time")
		} else if v != "" {
			e.holder = holder{f, v}
		}
	}
	e.new.PUK, e.new.AdminKey = s.secretOf(e, PUK), s.secretOf(e, AdminKey)
	e.new.PINExpiresAt = s.expiryOf(e)
	if t.ID == "" { // nothing can be told of the card without its family
		return nil
	}
	if id, err := credential.IDOf(t.Family, e.new.CardID); err == nil {
		e.card = id
	}
	is, err := cs.Prepare(s.core, e.new, t)
	var vs problem.Violations
	if err := vs.Merge(err); err != nil {
		return err
	}
	for _, v := range vs {
		e.refuse(column(Field(v.Field)), "%s", v.Reason)
	}
	if len(e.faults) > 0 {
		e.outcome = refused
		return nil
	}
	e.is = is
	return s.hash(e)
}

// secretOf returns a row's secret in the clear, in which it goes no further than into its
// seal; nil if the row has none.
func (s settings) secretOf(e *entry, f Field) *secret.Text {
	v := strings.TrimSpace(e.values[f])
	if v == "" {
		return nil
	}
	if !isJWE(v) {
		t := secret.New(v)
		return &t
	}
	t, err := openJWE(s.key, v)
	if err != nil {
		e.refuse(s.im.Column(f), "%v", err)
		return nil
	}
	return &t
}

// expiryOf returns a row's PIN expiry flag, zero if it has none. A date is its beginning
// in the tenant's time zone.
func (s settings) expiryOf(e *entry) time.Time {
	v := strings.TrimSpace(e.values[PINExpiresAt])
	if v == "" {
		return time.Time{}
	}
	at, err := time.ParseInLocation(time.DateOnly, v, s.zone)
	if err != nil {
		at, err = time.Parse(time.RFC3339, v)
	}
	switch {
	case err != nil:
		e.refuse(s.im.Column(PINExpiresAt), "must be a date such as 2030-01-31 or a time such as 2030-01-31T08:00:00Z")
	case at.After(s.im.CreatedAt.Add(maxAhead)):
		e.refuse(s.im.Column(PINExpiresAt), "is more than 3650 days ahead")
	default:
		return at.UTC().Truncate(time.Second)
	}
	return time.Time{}
}

// hashSize is how much is kept of a row's hash: enough that two rows of a file with the
// same card do not have it by chance.
const hashSize = 11 // in base64, 66 bits

func (s settings) hash(e *entry) error {
	n := e.new
	reveal := func(t *secret.Text) string {
		if t == nil {
			return ""
		}
		return t.Reveal()
	}
	hash, err := s.core.Keys.Fingerprint("import row", fmt.Appendf(nil, "%q %q %q %q %q %d %q %q",
		n.Template, e.holder.field, e.holder.value, n.Label, n.Serial, n.PINExpiresAt.Unix(), reveal(n.PUK), strings.ToUpper(reveal(n.AdminKey))))
	if err != nil {
		return err
	}
	_, hash, _ = strings.Cut(hash, ".")
	e.content = hash[:hashSize]
	return nil
}

// place is where a card comes from, as the credential has it: which row of which import,
// and what the row said.
type place struct {
	im         string
	part, line int
	content    string
}

func (p place) String() string { return fmt.Sprintf("%s/%d/%d/%s", p.im, p.part, p.line, p.content) }

func parsePlace(s string) (p place, ok bool) {
	parts := strings.Split(s, "/")
	if len(parts) != 4 {
		return place{}, false
	}
	p.im, p.content = parts[0], parts[3]
	_, err := fmt.Sscanf(parts[1]+" "+parts[2], "%d %d", &p.part, &p.line)
	return p, err == nil
}

// Origin returns which import has brought a credential, by which line of which part; false
// if none has.
func Origin(c credential.Credential) (id string, part, line int, ok bool) {
	p, ok := parsePlace(c.Import)
	return p.im, p.part, p.line, ok
}

// twin decides a row whose card an earlier row of the import has brought.
func (e *entry) twin(first place) {
	if e.content == first.content {
		e.decide(unchanged)
		return
	}
	e.refuse("", "has the card of line %d of part %d, with other content", first.line, first.part)
}
