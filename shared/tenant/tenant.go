// Package tenant keeps tenants: their settings, PIN policy, API keys and
// roles. Every call of the product begins with Authenticate, which yields the
// caller's tenant and nothing of any other.
package tenant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/language"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/vault"
)

// Tenants are the operations on tenants. All fields must be set; Rand must be
// safe for concurrent use.
type Tenants struct {
	Table           table.Table
	Vault           *vault.Vault
	Audit           audit.Log
	Now             func() time.Time
	Rand            io.Reader
	PlatformKeyHash string // SHA-256 of the platform key in hex; "" is no platform key
}

// Tenant is an organisation that uses the installation.
type Tenant struct {
	ID        table.TenantID
	Suspended bool
	CreatedAt time.Time
	Settings  Settings
	Version   int64
}

// Settings are what a tenant's administrators decide.
type Settings struct {
	DisplayName  string         // what mails call the organisation
	TimeZone     string         // IANA name, in which people read times
	Language     string         // BCP 47 tag
	PINOnlyLogin bool           // PINs are unique within the tenant, and identify
	ExpiryMail   ExpiryMailRefs // how a PIN's expiry is announced
	Quiet        QuietHours     // when it is not
	Digest       DigestSettings

	// GeneratedPINsPerDay is how many PINs may be generated on a day in UTC; 0 is
	// DefaultGeneratedPINs.
	GeneratedPINsPerDay int

	SupportFunctions bool        // what repairs many things at once is open to administrators
	AfterImport      SanityCheck // of what an import brought

	CreateUsers bool // an event about a user who is not known creates them
}

// DefaultGeneratedPINs and MaxGeneratedPINs are limits of PINs generated on a day.
const (
	DefaultGeneratedPINs = 100_000
	MaxGeneratedPINs     = 10_000_000
)

// GeneratedMost is how many PINs may be generated on a day.
func (s Settings) GeneratedMost() int {
	if s.GeneratedPINsPerDay == 0 {
		return DefaultGeneratedPINs
	}
	return s.GeneratedPINsPerDay
}

// SanityCheck says whether the cards without a PIN expiry flag get one by themselves, and
// which: by the template's validity or, at random, any of the days around that.
type SanityCheck struct {
	On, Random    bool
	Before, After int // days
}

const maxSanityDays = 365

// ExpiryMailRefs names a messaging configuration and a mail template. Without
// a messaging configuration no expiry mail is sent.
type ExpiryMailRefs struct{ Messaging, Template string }

// Core is what most calls need of a tenant, read at once.
type Core struct {
	Tenant Tenant
	Policy Policy
	Keys   *vault.Keys
	Watch  Watch
}

var idForm = regexp.MustCompile(`^[a-z][a-z0-9-]{1,39}$`)

// CheckID reports what is wrong with the form of a tenant's id.
func CheckID(id table.TenantID) error {
	var vs problem.Violations
	switch {
	case !idForm.MatchString(string(id)):
		vs.Add("form", "id", "is not 2 to 40 of a-z, 0-9 and -, starting with a letter")
	case id == table.Platform:
		vs.Add("reserved", "id", "is reserved")
	}
	return vs.Err()
}

// Validate reports everything that is wrong with the tenant.
func (t Tenant) Validate() error {
	var vs problem.Violations
	return errors.Join(vs.Merge(CheckID(t.ID)), vs.Merge(t.Settings.Validate()), vs.Err())
}

// Validate reports everything that is wrong with the settings.
func (s Settings) Validate() error {
	var vs problem.Violations
	if n := utf8.RuneCountInString(s.DisplayName); n < 1 || n > 100 || strings.TrimSpace(s.DisplayName) != s.DisplayName {
		vs.Add("length", "displayName", "has %d characters, want 1 to 100 without space around them", n)
	}
	if strings.ContainsFunc(s.DisplayName, unicode.IsControl) || !utf8.ValidString(s.DisplayName) {
		vs.Add("characters", "displayName", "has control characters")
	}
	if _, err := time.LoadLocation(s.TimeZone); err != nil || s.TimeZone == "" || s.TimeZone == "Local" {
		vs.Add("unknown", "timeZone", "is not an IANA time zone such as Europe/Berlin or UTC")
	}
	if _, err := language.Parse(s.Language); err != nil || len(s.Language) > 35 {
		vs.Add("unknown", "language", "is not a BCP 47 language tag such as en or de-AT")
	}
	if n := s.GeneratedPINsPerDay; n < 0 || n > MaxGeneratedPINs {
		vs.Add("range", "generatedPINsPerDay", "must be 1 to %d, or 0 for %d", MaxGeneratedPINs, DefaultGeneratedPINs)
	}
	s.Quiet.validate(&vs)
	s.Digest.validate(&vs)
	c := s.AfterImport
	if c.On && !s.SupportFunctions {
		vs.Add("inconsistent", "sanityCheckAfterImport", "is a support function; turn on supportFunctions too")
	}
	for _, f := range []struct {
		name string
		days int
	}{{"beforeDays", c.Before}, {"afterDays", c.After}} {
		if f.days < 0 || f.days > maxSanityDays {
			vs.Add("range", "sanityCheckAfterImport."+f.name, "must be 0 to %d", maxSanityDays)
		} else if f.days != 0 && !c.Random {
			vs.Add("inconsistent", "sanityCheckAfterImport."+f.name, "is for dates at random")
		}
	}
	return vs.Err()
}

// Location returns the tenant's time zone.
func (s Settings) Location() *time.Location {
	loc, err := time.LoadLocation(s.TimeZone)
	if err != nil {
		return time.UTC // Validate has let no such zone in
	}
	return loc
}

type storedTenant struct {
	ID           table.TenantID `json:"id"`
	Suspended    bool           `json:"suspended,omitempty"`
	CreatedAt    time.Time      `json:"createdAt"`
	DisplayName  string         `json:"displayName"`
	TimeZone     string         `json:"timeZone"`
	Language     string         `json:"language"`
	PINOnlyLogin bool           `json:"pinOnlyLogin,omitempty"`
	Messaging    string         `json:"messaging,omitempty"`
	Template     string         `json:"template,omitempty"`

	GeneratedPINsPerDay int `json:"generatedPINsPerDay,omitempty"`

	SupportFunctions bool              `json:"supportFunctions,omitempty"`
	AfterImport      storedSanityCheck `json:"sanityCheckAfterImport,omitzero"`
	CreateUsers      bool              `json:"createUsers,omitempty"`

	Quiet  storedQuietHours      `json:"quietHours,omitzero"`
	Digest *storedDigestSettings `json:"digest,omitempty"`
}

type storedDigestSettings struct {
	Recipients []string       `json:"recipients,omitempty"`
	Hour       int            `json:"hour"`
	Days       []time.Weekday `json:"days,omitempty"`
}

// storedQuietHours has times in minutes since midnight.
type storedQuietHours struct {
	From    int            `json:"from,omitempty"`
	To      int            `json:"to,omitempty"`
	DaysOff []time.Weekday `json:"daysOff,omitempty"`
}

// IsZero keeps quiet hours that are none out of the stored item.
func (q storedQuietHours) IsZero() bool { return q.From == q.To && len(q.DaysOff) == 0 }

type storedSanityCheck struct {
	On     bool `json:"on"`
	Random bool `json:"random,omitempty"`
	Before int  `json:"before,omitzero"`
	After  int  `json:"after,omitzero"`
}

// Item implements table.Record.
func (t Tenant) Item() (table.Item, error) {
	s := t.Settings
	var digest *storedDigestSettings
	if s.Digest.on() || s.Digest.Hour != 0 || len(s.Digest.Days) > 0 {
		d := storedDigestSettings(s.Digest)
		digest = &d
	}
	data, err := json.Marshal(storedTenant{t.ID, t.Suspended, t.CreatedAt, s.DisplayName, s.TimeZone, s.Language, s.PINOnlyLogin, s.ExpiryMail.Messaging, s.ExpiryMail.Template,
		s.GeneratedPINsPerDay,
		s.SupportFunctions, storedSanityCheck(s.AfterImport), s.CreateUsers,
		storedQuietHours{int(s.Quiet.From / time.Minute), int(s.Quiet.To / time.Minute), s.Quiet.DaysOff}, digest})
	return table.Item{Key: table.TenantKey(t.ID), Indexes: []table.IndexKey{table.TenantListed(t.ID)}, Data: data}, err
}

func decodeTenant(item table.Item) (Tenant, error) {
	var s storedTenant
	if err := item.Decode(&s); err != nil {
		return Tenant{}, err
	}
	var digest DigestSettings
	if s.Digest != nil {
		digest = DigestSettings(*s.Digest)
	}
	return Tenant{ID: s.ID, Suspended: s.Suspended, CreatedAt: s.CreatedAt, Version: item.Version, Settings: Settings{
		DisplayName: s.DisplayName, TimeZone: s.TimeZone, Language: s.Language, PINOnlyLogin: s.PINOnlyLogin,
		ExpiryMail:          ExpiryMailRefs{s.Messaging, s.Template},
		Quiet:               QuietHours{time.Duration(s.Quiet.From) * time.Minute, time.Duration(s.Quiet.To) * time.Minute, s.Quiet.DaysOff},
		Digest:              digest,
		GeneratedPINsPerDay: s.GeneratedPINsPerDay,
		SupportFunctions:    s.SupportFunctions, AfterImport: SanityCheck(s.AfterImport), CreateUsers: s.CreateUsers,
	}}, nil
}

// Load returns a tenant with its policy and keys, in one read.
func (ts *Tenants) Load(ctx context.Context, id table.TenantID) (Core, error) {
	page, err := ts.Table.Query(ctx, table.TenantCore(id))
	if err != nil {
		return Core{}, fmt.Errorf("load tenant %s: %w", id, err)
	}
	var core Core
	for _, item := range page.Items {
		switch item.Key {
		case table.TenantKey(id):
			core.Tenant, err = decodeTenant(item)
		case table.PolicyKey(id):
			core.Policy, err = decodePolicy(item)
		case table.KeysetsKey(id):
			core.Keys, err = ts.Vault.Open(ctx, id, item)
		case table.WatchKey(id):
			core.Watch, err = decodeWatch(item)
		}
		if err != nil {
			return Core{}, fmt.Errorf("load tenant %s: %w", id, err)
		}
	}
	if core.Tenant.Version == 0 {
		return Core{}, fmt.Errorf("tenant %w", problem.ErrNotFound)
	}
	if core.Keys == nil || core.Policy.Version == 0 {
		return Core{}, fmt.Errorf("load tenant %s: its policy or keysets are missing", id)
	}
	return core, nil
}

// Create makes a tenant with the default policy, keys of its own and one API
// key of role admin, whose text is returned. A taken id is problem.ErrConflict.
func (ts *Tenants) Create(ctx context.Context, by audit.Actor, t Tenant) (Core, secret.Text, error) {
	if err := t.Validate(); err != nil {
		return Core{}, secret.Text{}, err
	}
	now := ts.Now()
	t.CreatedAt, t.Version = now.UTC().Truncate(time.Second), 1
	policy := Policy{pin.Default(), 1}
	keysets, keys, err := ts.Vault.Create(ctx, t.ID)
	if err != nil {
		return Core{}, secret.Text{}, err
	}
	admin := APIKey{Name: "first administrator", Role: RoleAdmin, Version: 1}
	text, err := newKey(&admin, t.ID, now, ts.Rand)
	if err != nil {
		return Core{}, secret.Text{}, err
	}
	record := audit.Record{Actor: by, Action: "tenant.created", Subject: "tenant/" + string(t.ID), Outcome: audit.Done}
	err = ts.Table.Write(ctx,
		table.Put(t, table.Absent()),
		table.Put(&policyRecord{t.ID, policy}, table.Absent()),
		table.Put(&policyVersionRecord{t.ID, policy, t.CreatedAt}, table.Absent()),
		keysets,
		table.Put(keyRecord{t.ID, admin}, table.Absent()),
		ts.Audit.Op(ctx, t.ID, record),
		ts.Audit.Op(ctx, table.Platform, record))
	if i, failed := table.FailedOp(err); failed && i == 0 {
		return Core{}, secret.Text{}, fmt.Errorf("%w: there is a tenant %s already", problem.ErrConflict, t.ID)
	} else if err != nil {
		return Core{}, secret.Text{}, fmt.Errorf("create tenant %s: %w", t.ID, err)
	}
	return Core{t, policy, keys, Watch{}}, text, nil
}

// EnsurePlatform makes the keys of the installation itself, once.
func (ts *Tenants) EnsurePlatform(ctx context.Context) (*vault.Keys, error) {
	item, err := ts.Table.Get(ctx, table.KeysetsKey(table.Platform))
	if errors.Is(err, problem.ErrNotFound) {
		op, keys, err := ts.Vault.Create(ctx, table.Platform)
		if err != nil {
			return nil, err
		}
		if err = ts.Table.Write(ctx, op); err == nil {
			return keys, nil
		} else if !errors.Is(err, problem.ErrConflict) {
			return nil, fmt.Errorf("store platform keysets: %w", err)
		}
		item, err = ts.Table.Get(ctx, table.KeysetsKey(table.Platform)) // another process was first
		if err != nil {
			return nil, fmt.Errorf("load platform keysets: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("load platform keysets: %w", err)
	}
	return ts.Vault.Open(ctx, table.Platform, item)
}

// List returns up to limit tenants by id beyond the given place ("" is the
// start), and the place to go on from, "" if there are no more.
func (ts *Tenants) List(ctx context.Context, beyond string, limit int) (tenants []Tenant, next string, err error) {
	page, next, err := table.Merge(ctx, ts.Table, table.Tenants(), limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list tenants: %w", err)
	}
	tenants = make([]Tenant, len(page.Items))
	for i, item := range page.Items {
		if tenants[i], err = decodeTenant(item); err != nil {
			return nil, "", err
		}
	}
	return tenants, next, nil
}

// Suspend stops or resumes a tenant: while it is suspended none of its keys
// lets in and no mail is sent. PINs expire all the same.
func (ts *Tenants) Suspend(ctx context.Context, by audit.Actor, id table.TenantID, suspended bool) (Tenant, error) {
	core, err := ts.Load(ctx, id)
	if err != nil {
		return Tenant{}, err
	}
	t := core.Tenant
	if t.Suspended == suspended {
		return t, nil
	}
	t.Suspended = suspended
	action := "tenant.resumed"
	if suspended {
		action = "tenant.suspended"
	}
	record := audit.Record{Actor: by, Action: action, Subject: "tenant/" + string(id), Outcome: audit.Done}
	err = ts.Table.Write(ctx, table.Put(t, table.IfVersion(t.Version)),
		ts.Audit.Op(ctx, id, record), ts.Audit.Op(ctx, table.Platform, record))
	if err != nil {
		return Tenant{}, fmt.Errorf("%s: %w", action, err)
	}
	t.Version++
	return t, nil
}

// ChangeSettings replaces a tenant's settings if it still has the version
// that core was read at. checks are further conditions of the write, such as
// that a messaging configuration exists.
func (ts *Tenants) ChangeSettings(ctx context.Context, by audit.Actor, core Core, s Settings, checks ...table.Op) (Tenant, error) {
	t := core.Tenant
	t.Settings = s
	if err := s.Validate(); err != nil {
		return Tenant{}, err
	}
	digest, err := ts.digestOps(ctx, t.ID, core.Tenant.Settings, s)
	if err != nil {
		return Tenant{}, err
	}
	ops := append([]table.Op{
		table.Put(t, table.IfVersion(t.Version)),
		ts.Audit.Op(ctx, t.ID, audit.Record{Actor: by, Action: "settings.changed", Subject: "settings", Outcome: audit.Done}),
	}, append(digest, checks...)...)
	if err := ts.Table.Write(ctx, ops...); err != nil {
		return Tenant{}, fmt.Errorf("change settings: %w", err)
	}
	t.Version++
	return t, nil
}

func list[T ~string](words []T) string {
	s := make([]string, len(words))
	for i, w := range words {
		s[i] = string(w)
	}
	return strings.Join(s, ", ")
}
