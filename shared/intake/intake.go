// Package intake imports cards and users from files: CSV or JSON Lines, sent in parts. Its
// invariants: a row is taken or refused, never half; what is there already is never
// overwritten unasked, and a secret never; and a part may be sent again at any time, for
// what a row has brought says which row that was.
//
// What the two kinds of rows have in common is in part.go, what is particular to each in
// cards.go and users.go, behind taker.
package intake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// Imports are the operations on imports of one kind; those of the other are not found. All
// fields must be set; Rand must be safe for concurrent use.
type Imports struct {
	Kind        Kind
	Table       table.Table
	Credentials *credential.Credentials
	Users       *user.Users
	Audit       audit.Log
	Now         func() time.Time
	Rand        io.Reader
}

// Limits of an import.
const (
	MaxPart  = 6 << 20 // bytes of a part: what a function can be sent
	MaxParts = 2000
	kept     = 90 * 24 * time.Hour // how long an import and its result are kept
)

// Format is how rows are written.
type Format string

// The formats.
const (
	CSV       Format = "csv"       // RFC 4180, in UTF-8, with a header
	JSONLines Format = "jsonLines" // an object of strings a line
)

// Formats lists them all.
func Formats() []Format { return []Format{CSV, JSONLines} }

// Kind is what an import brings.
type Kind string

// The kinds.
const (
	Cards Kind = "cards"
	Users Kind = "users"
)

// Noun is what one of it is called.
func (k Kind) Noun() string { return strings.TrimSuffix(string(k), "s") }

// job is what its imports are among the tenant's jobs.
func (k Kind) job() string {
	if k == Users {
		return "userImport"
	}
	return "import"
}

// Field is what a column can hold.
type Field string

// The fields of cards. Of those for the holder a row may have one.
const (
	CardID           Field = "cardId" // hex
	Family           Field = "family" // must be the template's
	Template         Field = "template"
	HolderID         Field = "holderId"
	HolderUsername   Field = "holderUsername"
	HolderExternalID Field = "holderExternalId"
	Label            Field = "label"
	Serial           Field = "serial"
	PUK              Field = "puk"          // as it is, or as JWE
	AdminKey         Field = "adminKey"     // hex, or that as JWE
	PINExpiresAt     Field = "pinExpiresAt" // a date, or an RFC 3339 time
)

// The fields of users.
const (
	Username    Field = "username" // whatever its case
	DisplayName Field = "displayName"
	Mail        Field = "mail"
	Phone       Field = "phone"
	StaffNumber Field = "staffNumber"
	ExternalID  Field = "externalId"
	Groups      Field = "groups" // separated by semicolons; in JSON Lines a list too
	PIN         Field = "pin"    // as it is, or as JWE
)

// Fields lists all of a kind, the first of which says what the row is about and is needed.
func (k Kind) Fields() []Field {
	if k == Users {
		return []Field{Username, DisplayName, Mail, Phone, StaffNumber, ExternalID, Groups, PIN}
	}
	return []Field{CardID, Family, Template, HolderID, HolderUsername, HolderExternalID, Label, Serial, PUK, AdminKey, PINExpiresAt}
}

// key is the field that says what a row is about.
func (k Kind) key() Field { return k.Fields()[0] }

// Options are how an import is to be done.
type Options struct {
	Kind      Kind // that of the Imports, whatever is given
	Format    Format
	Delimiter string // of CSV: "," (also ""), ";" or a tab
	// Columns are the names that the file's columns have, by what they hold; without any,
	// they have the fields' names.
	Columns map[Field]string
	// IgnoreOthers lets columns be that Columns does not name.
	IgnoreOthers bool
	// Template is for rows of cards that name none: an id.
	Template string
	// DryRun only tells what would happen; with Update, of what is there and in the file more
	// than once, as if each row were the only one.
	DryRun bool
	// Update lets rows of what is there already change it, which are else refused: label and
	// holder of a card; of a user all that the row says, and a PIN is given to who never had
	// one.
	Update bool
}

func (o Options) comma() rune {
	if o.Delimiter == "" {
		return ','
	}
	return rune(o.Delimiter[0])
}

// Column returns the name of a field's column; "" if it has none.
func (o Options) Column(f Field) string {
	if len(o.Columns) == 0 {
		return string(f)
	}
	return o.Columns[f]
}

// names returns the fields by the names of their columns.
func (o Options) names() map[string]Field {
	names := make(map[string]Field, len(o.Kind.Fields()))
	for _, f := range o.Kind.Fields() {
		if name := o.Column(f); name != "" {
			names[name] = f
		}
	}
	return names
}

// Validate reports everything that is wrong with the options.
func (o Options) Validate() error {
	var vs problem.Violations
	if !slices.Contains(Formats(), o.Format) {
		vs.Add("unknown", "format", "must be %s or %s", CSV, JSONLines)
	}
	if !slices.Contains([]string{"", ",", ";", "\t"}, o.Delimiter) {
		vs.Add("unknown", "delimiter", "must be a comma, a semicolon or a tab")
	} else if o.Delimiter != "" && o.Format == JSONLines {
		vs.Add("inconsistent", "delimiter", "is for CSV")
	}
	by := map[string]Field{}
	for _, f := range slices.Sorted(maps.Keys(o.Columns)) {
		name := o.Columns[f]
		switch {
		case !slices.Contains(o.Kind.Fields(), f):
			vs.Add("unknown", "columns", "has what is none of %s", o.Kind.fieldNames())
		case name == "" || len(name) > 100 || strings.TrimSpace(name) != name:
			vs.Add("length", "columns."+string(f), "must be the column's name: 1 to 100 bytes, without space around them")
		case by[name] != "":
			vs.Add("repeated", "columns."+string(f), "is the column of %s", by[name])
		}
		by[name] = f
	}
	if key := o.Kind.key(); o.Column(key) == "" {
		vs.Add("missing", "columns."+string(key), "is needed")
	}
	if o.Kind == Cards && o.Template == "" && o.Column(Template) == "" {
		vs.Add("missing", "template", "must be given for all rows, or by a column")
	} else if o.Kind != Cards && o.Template != "" {
		vs.Add("inconsistent", "template", "is for cards")
	}
	return vs.Err()
}

func (k Kind) fieldNames() string {
	var names []string
	for _, f := range k.Fields() {
		names = append(names, string(f))
	}
	return strings.Join(names, ", ")
}

// State is how far an import is.
type State string

// The states. Parts are taken by an open import only.
const (
	Open      State = "open"
	Finished  State = "finished"
	Cancelled State = "cancelled"
)

// Counts are how many rows had which outcome.
type Counts struct {
	Taken     int `json:"taken,omitzero"`
	Updated   int `json:"updated,omitzero"`
	Unchanged int `json:"unchanged,omitzero"`
	Refused   int `json:"refused,omitzero"`
	// Unmanaged are those of Taken that are cards and have a PIN expiry flag and a template without
	// server-managed expiry.
	Unmanaged int `json:"unmanaged,omitzero"`
}

// Rows are all of them.
func (c Counts) Rows() int { return c.Taken + c.Updated + c.Unchanged + c.Refused }

// Add adds others.
func (c *Counts) Add(d Counts) {
	c.Taken += d.Taken
	c.Updated += d.Updated
	c.Unchanged += d.Unchanged
	c.Refused += d.Refused
	c.Unmanaged += d.Unmanaged
}

// Import is a file's way into the tenant.
type Import struct {
	ID string // ULID
	Options
	State     State
	CreatedAt time.Time
	EndedAt   time.Time // zero while it is open
	// Parts are those that have been begun: at most, for there may be gaps.
	Parts   int
	Version int64

	// fields are what CSV's columns hold, in their order, "" for what is ignored. They
	// come with part 1, which has the header.
	fields []Field
}

// Part is a part of an import.
type Part struct {
	Number int // from 1
	Done   bool
	Rows   int // done by now
	Lines  int // of the text
	Counts Counts
	// Unkept are the rows not taken that the result only counts.
	Unkept int

	kept    int    // bytes of the result
	chunks  int    // of the result, and of what a dry run remembers
	content string // keyed hash
	version int64
}

// Validate implements table.Record.
func (im Import) Validate() error { return im.Options.Validate() }

type storedImport struct {
	Kind         Kind             `json:"kind,omitempty"`
	Format       Format           `json:"format"`
	Delimiter    string           `json:"delimiter,omitempty"`
	Columns      map[Field]string `json:"columns,omitempty"`
	IgnoreOthers bool             `json:"ignoreOthers,omitempty"`
	Template     string           `json:"template,omitempty"`
	DryRun       bool             `json:"dryRun,omitempty"`
	Update       bool             `json:"update,omitempty"`
	State        State            `json:"state"`
	CreatedAt    time.Time        `json:"createdAt"`
	EndedAt      time.Time        `json:"endedAt,omitzero"`
	Parts        int              `json:"parts,omitzero"`
	Fields       []Field          `json:"fields,omitempty"`
}

type importRecord struct {
	tenant table.TenantID
	Import
}

// Item implements table.Record.
func (r importRecord) Item() (table.Item, error) {
	im := r.Import
	data, err := json.Marshal(storedImport{im.Kind, im.Format, im.Delimiter, im.Columns, im.IgnoreOthers, im.Template, im.DryRun, im.Update,
		im.State, im.CreatedAt, im.EndedAt, im.Parts, im.fields})
	return table.Item{
		Key:     table.JobKey(r.tenant, im.ID),
		Indexes: []table.IndexKey{table.JobListed(r.tenant, im.Kind.job(), im.ID)}, ExpiresAt: im.CreatedAt.Add(kept), Data: data,
	}, err
}

func decodeImport(id string, item table.Item) (Import, error) {
	var s storedImport
	if err := item.Decode(&s); err != nil {
		return Import{}, err
	}
	if s.Kind == "" && s.Format != "" { // of before there were users among them
		s.Kind = Cards
	}
	return Import{
		ID: id, Options: Options{s.Kind, s.Format, s.Delimiter, s.Columns, s.IgnoreOthers, s.Template, s.DryRun, s.Update},
		State: s.State, CreatedAt: s.CreatedAt, EndedAt: s.EndedAt, Parts: s.Parts, fields: s.Fields, Version: item.Version,
	}, nil
}

type storedPart struct {
	Done    bool   `json:"done,omitempty"`
	Rows    int    `json:"rows,omitzero"`
	Lines   int    `json:"lines,omitzero"`
	Counts  Counts `json:"counts,omitzero"`
	Unkept  int    `json:"unkept,omitzero"`
	Kept    int    `json:"kept,omitzero"`
	Chunks  int    `json:"chunks,omitzero"`
	Content string `json:"content"`
}

type partRecord struct {
	tenant table.TenantID
	in     Import
	Part
}

// Validate implements table.Record.
func (partRecord) Validate() error { return nil }

// Item implements table.Record.
func (r partRecord) Item() (table.Item, error) {
	p := r.Part
	data, err := json.Marshal(storedPart{p.Done, p.Rows, p.Lines, p.Counts, p.Unkept, p.kept, p.chunks, p.content})
	return table.Item{Key: table.JobPartKey(r.tenant, r.in.ID, p.Number), ExpiresAt: r.in.CreatedAt.Add(kept), Data: data}, err
}

func decodePart(item table.Item) (Part, error) {
	var s storedPart
	if err := item.Decode(&s); err != nil {
		return Part{}, err
	}
	n := 0
	if _, err := fmt.Sscanf(item.Key.Sort(), "part/%d", &n); err != nil {
		return Part{}, fmt.Errorf("decode %s: %w", item.Key, err)
	}
	return Part{n, s.Done, s.Rows, s.Lines, s.Counts, s.Unkept, s.Kept, s.Chunks, s.Content, item.Version}, nil
}

// Subject names an import in the audit log.
func Subject(id string) string { return "import/" + id }

// tries bounds how often an operation begins anew because somebody else changed the same
// items meanwhile.
const tries = 20

var errBusy = fmt.Errorf("%w: others change the import at the same time", problem.ErrConflict)

// Create begins an import.
func (is *Imports) Create(ctx context.Context, core tenant.Core, by audit.Actor, o Options) (Import, error) {
	t, now := core.Tenant.ID, is.Now()
	o.Kind = is.Kind
	if err := is.check(ctx, core, o); err != nil {
		return Import{}, err
	}
	id, err := ulid.New(ulid.Timestamp(now), is.Rand)
	if err != nil {
		return Import{}, fmt.Errorf("make an import id: %w", err)
	}
	im := Import{ID: id.String(), Options: o, State: Open, CreatedAt: now.UTC().Truncate(time.Second)}
	details := map[string]string{"kind": string(o.Kind), "format": string(o.Format)}
	for name, on := range map[string]bool{"dryRun": o.DryRun, "update": o.Update} {
		if on {
			details[name] = "true"
		}
	}
	record := audit.Record{Actor: by, Action: "import.created", Subject: Subject(im.ID), Outcome: audit.Done, Details: details}
	if err := is.Table.Write(ctx, table.Put(importRecord{t, im}, table.Absent()), is.Audit.Op(ctx, t, record)); err != nil {
		return Import{}, fmt.Errorf("create import: %w", err)
	}
	im.Version = 1
	return im, nil
}

// check reports everything that is wrong with options.
func (is *Imports) check(ctx context.Context, core tenant.Core, o Options) error {
	var vs problem.Violations
	if err := vs.Merge(o.Validate()); err != nil {
		return err
	}
	if o.Template != "" {
		if _, err := is.Credentials.Template(ctx, core.Tenant.ID, o.Template); errors.Is(err, problem.ErrNotFound) {
			vs.Add("unknown", "template", "is not the id of a credential template")
		} else if err != nil {
			return err
		}
	}
	return vs.Err()
}

// Get returns an import by id.
func (is *Imports) Get(ctx context.Context, t table.TenantID, id string) (Import, error) {
	item, err := is.Table.Get(ctx, table.JobKey(t, id))
	if errors.Is(err, problem.ErrNotFound) {
		return Import{}, fmt.Errorf("import %w", problem.ErrNotFound)
	} else if err != nil {
		return Import{}, fmt.Errorf("load import: %w", err)
	}
	im, err := decodeImport(id, item)
	if err == nil && im.Kind != is.Kind { // or another job, which has none
		return Import{}, fmt.Errorf("import %w", problem.ErrNotFound)
	}
	return im, err
}

// List returns up to limit imports, the newest first, that come after the id beyond, and
// the id to go on from, "" if there are no more.
func (is *Imports) List(ctx context.Context, t table.TenantID, beyond string, limit int) ([]Import, string, error) {
	shards := table.Jobs(t, is.Kind.job())
	for i := range shards {
		shards[i] = shards[i].Descending()
	}
	page, next, err := table.Merge(ctx, is.Table, shards, limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list imports: %w", err)
	}
	all := make([]Import, len(page.Items))
	for i, item := range page.Items {
		if all[i], err = decodeImport(shards[0].Place(item), item); err != nil {
			return nil, "", err
		}
	}
	return all, next, nil
}

// PartsOf returns the parts of an import that have been begun, by number.
func (is *Imports) PartsOf(ctx context.Context, t table.TenantID, id string) (parts []Part, err error) {
	for r, more := table.JobParts(t, id), true; more; {
		page, err := is.Table.Query(ctx, r)
		if err != nil {
			return nil, fmt.Errorf("list parts of an import: %w", err)
		}
		for _, item := range page.Items {
			p, err := decodePart(item)
			if err != nil {
				return nil, err
			}
			parts, r = append(parts, p), r.Beyond(r.Place(item))
		}
		more = page.More
	}
	return parts, nil
}

// Total adds up the counts of parts.
func Total(parts []Part) (sum Counts) {
	for _, p := range parts {
		sum.Add(p.Counts)
	}
	return sum
}

// Warnings are what should be seen to, though it keeps nothing out.
func Warnings(c Counts) (list []string) {
	if c.Unmanaged > 0 {
		list = append(list, fmt.Sprintf("%d cards have a PIN expiry flag, and a template without server-managed PIN expiry: nobody is reminded, and no flag is set anew, until the template has it", c.Unmanaged))
	}
	return list
}

// Finish ends an import whose parts have all been sent, from 1 without a gap; else it is
// problem.ErrState. To finish a finished one changes nothing.
func (is *Imports) Finish(ctx context.Context, core tenant.Core, by audit.Actor, id string) (Import, error) {
	return is.end(ctx, core, by, id, Finished, func(im Import, parts []Part) error {
		var missing []string
		done := map[int]bool{}
		for _, p := range parts {
			done[p.Number] = p.Done
		}
		for n := 1; n <= max(im.Parts, 1) && len(missing) < 10; n++ {
			if !done[n] {
				missing = append(missing, fmt.Sprint(n))
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("%w: not all parts are done; send again: %s", problem.ErrState, strings.Join(missing, ", "))
		}
		return nil
	})
}

// Cancel ends an import as it is. What it has brought stays.
func (is *Imports) Cancel(ctx context.Context, core tenant.Core, by audit.Actor, id string) (Import, error) {
	return is.end(ctx, core, by, id, Cancelled, func(Import, []Part) error { return nil })
}

func (is *Imports) end(ctx context.Context, core tenant.Core, by audit.Actor, id string, state State, may func(Import, []Part) error) (Import, error) {
	t := core.Tenant.ID
	for range tries {
		im, err := is.Get(ctx, t, id)
		if err != nil {
			return Import{}, err
		}
		if im.State == state {
			return im, nil
		}
		if err := im.open(); err != nil {
			return Import{}, err
		}
		parts, err := is.PartsOf(ctx, t, id)
		if err != nil {
			return Import{}, err
		}
		if err := may(im, parts); err != nil {
			return Import{}, err
		}
		im.State, im.EndedAt = state, is.Now().UTC().Truncate(time.Second)
		c := Total(parts)
		record := audit.Record{Actor: by, Action: "import." + string(state), Subject: Subject(id), Outcome: audit.Done, Details: map[string]string{
			"taken": fmt.Sprint(c.Taken), "updated": fmt.Sprint(c.Updated), "unchanged": fmt.Sprint(c.Unchanged), "refused": fmt.Sprint(c.Refused),
		}}
		if im.DryRun {
			record.Details["dryRun"] = "true"
		}
		ops := []table.Op{table.Put(importRecord{t, im}, table.IfVersion(im.Version)), is.Audit.Op(ctx, t, record)}
		if im.Kind == Cards && state == Finished && !im.DryRun {
			after, err := is.Credentials.AfterImport(ctx, core)
			if err != nil {
				return Import{}, err
			}
			ops = append(ops, after...)
		}
		err = is.Table.Write(ctx, ops...)
		if _, failed := table.FailedOp(err); failed {
			continue
		} else if err != nil {
			return Import{}, fmt.Errorf("end import: %w", err)
		}
		im.Version++
		return im, nil
	}
	return Import{}, errBusy
}

func (im Import) open() error {
	if im.State != Open {
		return fmt.Errorf("%w: the import is %s", problem.ErrState, im.State)
	}
	return nil
}
