// Package person keeps the people of a tenant who sign in to its pages: who they are, how
// they sign in, and their sessions. Its invariants: a tenant whose people administer it
// never loses the last of them; a session or a sign-in that has begun ends in the same Write
// that takes a person's roles, address or access away; and whoever asks to sign in learns
// nothing of who is known here.
package person

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/language"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Most is how many people a tenant can have who sign in.
const Most = 1000

const (
	maxName     = 200 // characters
	maxLanguage = 35
)

// Person is somebody who signs in to a tenant's pages.
type Person struct {
	ID         string        // a ULID
	Name       string        // 1 to 200 characters
	Mail       string        // an address without a name; unique within the tenant, in whatever case
	Roles      []tenant.Role // of tenant.PersonRoles, one or more, in their order
	Language   string        // BCP 47; "" is the tenant's
	CreatedAt  time.Time
	SignedInAt time.Time // last
	Disabled   bool      // cannot sign in
	Version    int64     // rises with each change, not with a sign-in

	era    int   // rises when all that lets the person in has ended
	stored int64 // the item's version
}

// Administers tells whether the person can administer the tenant.
func (p Person) Administers() bool {
	return !p.Disabled && slices.Contains(p.Roles, tenant.RoleAdmin)
}

// Actor is the person in audit records.
func (p Person) Actor() audit.Actor {
	return audit.Actor{Kind: audit.Person, ID: p.ID, Name: p.Name}
}

// Subject is what audit records about a person have as their subject.
func Subject(id string) string { return "person/" + id }

// fold is an address as it is looked up.
func fold(address string) string { return strings.ToLower(address) }

// Validate reports everything that is wrong with the person.
func (p Person) Validate() error {
	var vs problem.Violations
	if n := utf8.RuneCountInString(p.Name); n < 1 || n > maxName || strings.TrimSpace(p.Name) != p.Name {
		vs.Add("length", "name", "has %d characters, want 1 to %d without space around them", n, maxName)
	}
	if strings.ContainsFunc(p.Name, unicode.IsControl) || !utf8.ValidString(p.Name) {
		vs.Add("characters", "name", "has control characters")
	}
	switch a, err := mail.ParseAddress(p.Mail); {
	case err != nil:
		vs.Add("address", "mail", "%v", err)
	case a.Address != p.Mail:
		vs.Add("address", "mail", "must be an address alone, such as name@example.com")
	}
	if len(p.Roles) == 0 {
		vs.Add("missing", "roles", "has none; give one or more of %s", roleList())
	}
	for i, r := range p.Roles {
		switch {
		case !slices.Contains(tenant.PersonRoles(), r):
			vs.Add("unknown", "roles", "%q is not one of %s", r, roleList())
		case slices.Contains(p.Roles[:i], r):
			vs.Add("repeated", "roles", "has %s twice", r)
		}
	}
	if p.Language != "" {
		if _, err := language.Parse(p.Language); err != nil || len(p.Language) > maxLanguage {
			vs.Add("unknown", "language", "is not a BCP 47 language tag such as en or de-AT; leave it out for the organisation's")
		}
	}
	return vs.Err()
}

// tidy puts what was given into the form that is kept, where that is clear.
func (p *Person) tidy() {
	p.Name = strings.TrimSpace(p.Name)
	if a, err := mail.ParseAddress(p.Mail); err == nil && a.Name == "" {
		p.Mail = a.Address
	}
	order := tenant.PersonRoles()
	p.Roles = slices.Clone(p.Roles)
	slices.SortStableFunc(p.Roles, func(a, b tenant.Role) int { return slices.Index(order, a) - slices.Index(order, b) })
}

func roleList() string {
	var words []string
	for _, r := range tenant.PersonRoles() {
		words = append(words, string(r))
	}
	return strings.Join(words, ", ")
}

// personRecord is a Person as stored.
type personRecord struct {
	tenant table.TenantID
	Person
}

type storedPerson struct {
	Name       string        `json:"name"`
	Mail       string        `json:"mail"`
	Roles      []tenant.Role `json:"roles"`
	Language   string        `json:"language,omitempty"`
	CreatedAt  time.Time     `json:"createdAt"`
	SignedInAt time.Time     `json:"signedInAt,omitzero"`
	Disabled   bool          `json:"disabled,omitempty"`
	Version    int64         `json:"version"`
	Era        int           `json:"era,omitempty"`
}

// Item implements table.Record.
func (r personRecord) Item() (table.Item, error) {
	p := r.Person
	data, err := json.Marshal(storedPerson{p.Name, p.Mail, p.Roles, p.Language, p.CreatedAt, p.SignedInAt, p.Disabled, p.Version, p.era})
	return table.Item{Key: table.PersonKey(r.tenant, p.ID), Data: data}, err
}

func decodePerson(item table.Item) (Person, error) {
	var s storedPerson
	if err := item.Decode(&s); err != nil {
		return Person{}, err
	}
	return Person{strings.TrimPrefix(item.Key.Sort(), "person/"), s.Name, s.Mail, s.Roles, s.Language, s.CreatedAt, s.SignedInAt, s.Disabled, s.Version, s.Era, item.Version}, nil
}

// pointer leads from a folded address to the person who signs in with it.
type pointer struct {
	tenant  table.TenantID
	address string
	id      string
}

type storedPointer struct {
	ID string `json:"id"`
}

// Validate implements table.Record.
func (r pointer) Validate() error { return nil }

// Item implements table.Record.
func (r pointer) Item() (table.Item, error) {
	data, err := json.Marshal(storedPointer{r.id})
	return table.Item{Key: table.PersonMailKey(r.tenant, r.address), Data: data}, err
}

// roster is what must be decided over all people of a tenant at once: each Write that adds
// or removes one, or changes who administers, has it as a condition.
type roster struct {
	tenant table.TenantID
	count  int
	admins []string // ids of those who administer
	stored int64
}

type storedRoster struct {
	Count  int      `json:"count"`
	Admins []string `json:"admins"`
}

// Validate implements table.Record.
func (r roster) Validate() error { return nil }

// Item implements table.Record.
func (r roster) Item() (table.Item, error) {
	data, err := json.Marshal(storedRoster{r.count, r.admins})
	return table.Item{Key: table.RosterKey(r.tenant), Data: data}, err
}

func (r roster) op() table.Op { return table.Put(r, table.After(r.stored)) }
