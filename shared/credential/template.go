package credential

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Channel is a way to an unblock.
type Channel string

// The channels.
const (
	// SelfService: the person alone, at a bridge.
	SelfService Channel = "selfService"
	// Operator: somebody who has made sure who the person is.
	Operator Channel = "operator"
	// LogonScreen: the person at a locked screen or a login.
	LogonScreen Channel = "logonScreen"
	// SelfServiceOffline: the person at a bridge without a connection, by challenge and
	// response with a help desk.
	SelfServiceOffline Channel = "selfServiceOffline"
	// LogonScreenOffline: the same at a locked screen or a login.
	LogonScreenOffline Channel = "logonScreenOffline"
	// WindowsChallengeResponse: the same at Windows' own logon screen, without a bridge.
	WindowsChallengeResponse Channel = "windowsChallengeResponse"
)

// Channels lists them all.
func Channels() []Channel {
	return []Channel{SelfService, Operator, LogonScreen, SelfServiceOffline, LogonScreenOffline, WindowsChallengeResponse}
}

// Online tells whether the cloud speaks to the card.
func (c Channel) Online() bool { return c == SelfService || c == Operator || c == LogonScreen }

// Proof is how it is made sure who a person is.
type Proof string

// The proofs.
const (
	MailedCode   Proof = "mailedCode"   // the person, by a code mailed to the holder
	Statement    Proof = "statement"    // somebody says how they have identified the person
	TwoOperators Proof = "twoOperators" // the same, and a second one approves
)

// proofs are what each channel can be proven by; the first unless the template says
// otherwise.
var proofs = map[Channel][]Proof{
	SelfService:              {MailedCode},
	Operator:                 {Statement, TwoOperators},
	LogonScreen:              {MailedCode, Statement},
	SelfServiceOffline:       {Statement, TwoOperators},
	LogonScreenOffline:       {Statement, TwoOperators},
	WindowsChallengeResponse: {Statement, TwoOperators},
}

// ProofsFor lists what a channel can be proven by, the usual one first.
func ProofsFor(c Channel) []Proof { return slices.Clone(proofs[c]) }

// Template is what credentials of a kind have in common.
type Template struct {
	ID     string // ULID
	Name   string // for people, 1 to 100 characters
	Family string
	// Policy is what the PINs of these cards must meet.
	Policy pin.Policy
	// Channels are the ways to an unblock that are open.
	Channels []Channel
	// Proofs say for channels how it is made sure who the person is; see ProofFor.
	Proofs map[Channel]Proof
	// Limit is how often a card's PIN is reset.
	Limit Limit
	// Messaging is the messaging configuration for mails to holders; "" sends none, and
	// leaves no mailed codes.
	Messaging string
	// PINValidDays is the life of a card's PIN, which its PIN expiry flag is set by; 0
	// sets no flag: server-managed expiry is off.
	PINValidDays int
	// Reminders are the mails before a PIN expires.
	Reminders []Reminder
	// ExpiredTemplate is the mail template that tells of the expiry; "" is the predefined
	// one. OperatorMail is an address that is told too; "" for none.
	ExpiredTemplate string
	OperatorMail    string
	// MasterKey is the sealed key from which the admin keys of these cards are derived;
	// nil if each is escrowed. See DeriveAdminKey.
	MasterKey []byte
	Version   int64
}

// Reminder is a mail to the holder before the PIN expires.
type Reminder struct {
	DaysBefore   int
	MailTemplate string // of kind card-pin-expiry; "" is the predefined one
	Messaging    string // "" is the template's
}

// Limit is how many resets there may be within some days; the zero Limit is none.
type Limit struct{ Count, Days int }

// MaxReminders is how many reminders a template may have.
const MaxReminders = 10

const (
	maxLimit      = 50
	maxLimitDays  = 366
	maxPINValid   = 3650
	maxDaysBefore = 365
)

// Allows tells whether a channel is open.
func (t Template) Allows(c Channel) bool { return allows(t.Channels, c) }

// ProofFor returns how it is made sure on a channel who the person is.
func (t Template) ProofFor(c Channel) Proof {
	if p := t.Proofs[c]; p != "" {
		return p
	}
	if possible := proofs[c]; len(possible) > 0 {
		return possible[0]
	}
	return ""
}

// ManagesExpiry tells whether the PINs of these cards expire by the server's clock.
func (t Template) ManagesExpiry() bool { return t.PINValidDays > 0 }

// Mail returns the messaging configuration ("" for none) and the mail template of notices
// of a kind, of a NoticeReminder so many days before the expiry; and false if there is no
// such reminder.
func (t Template) Mail(kind NoticeKind, days int) (messaging, template string, ok bool) {
	if kind != NoticeReminder {
		return t.Messaging, cmp.Or(t.ExpiredTemplate, mail.CardPINExpiredID), true
	}
	i := slices.IndexFunc(t.Reminders, func(r Reminder) bool { return r.DaysBefore == days })
	if i < 0 {
		return "", "", false
	}
	r := t.Reminders[i]
	return cmp.Or(r.Messaging, t.Messaging), cmp.Or(r.MailTemplate, mail.CardPINExpiryID), true
}

// count returns the resets that a limit counts, with one more. Without a limit none are
// kept: one that is set later counts from then on.
func (t Template) count(resets []time.Time, at time.Time) []time.Time {
	if t.Limit == (Limit{}) {
		return nil
	}
	kept := append(t.within(resets, at), at)
	return kept[max(0, len(kept)-maxLimit):]
}

// within returns those resets that the limit counts at a time.
func (t Template) within(resets []time.Time, now time.Time) (kept []time.Time) {
	for _, at := range resets {
		if now.Before(at.AddDate(0, 0, t.Limit.Days)) {
			kept = append(kept, at)
		}
	}
	return kept
}

// CheckLimit returns a LimitError if a card's PIN has been reset as often as the limit
// allows.
func (t Template) CheckLimit(c Credential, now time.Time) error {
	if t.Limit == (Limit{}) {
		return nil
	}
	resets := t.within(c.Resets, now)
	if len(resets) < t.Limit.Count {
		return nil
	}
	return &problem.LimitError{Code: "tooManyUnblocks",
		Reason: fmt.Sprintf("the PIN of this card was reset %d times within %d days, which is as often as its template allows", len(resets), t.Limit.Days),
		Until:  resets[len(resets)-t.Limit.Count].AddDate(0, 0, t.Limit.Days)}
}

// Custody is how the secret that resets a card's PIN is kept.
type Custody string

// The custodies.
const (
	// PUKRotated: each card's PUK is escrowed, and changed whenever it was used.
	PUKRotated Custody = "pukEscrowedAndRotated"
	// AdminKeyEscrowed: each card's admin key is.
	AdminKeyEscrowed Custody = "adminKeyEscrowed"
	// AdminKeyDerived: it is derived from the master key, but where a card's own is escrowed.
	AdminKeyDerived Custody = "adminKeyDerived"
)

// Custody returns which it is: the family and whether there is a master key decide it.
func (t Template) Custody() Custody {
	switch {
	case hasPUK(t.Family):
		return PUKRotated
	case t.MasterKey != nil:
		return AdminKeyDerived
	}
	return AdminKeyEscrowed
}

// maxPolicy is how many bytes a policy may take: it travels in one message with a script.
const maxPolicy = 20_000

// Validate reports everything that is wrong with the template.
func (t Template) Validate() error {
	var vs problem.Violations
	if n := utf8.RuneCountInString(t.Name); n < 1 || n > 100 || !utf8.ValidString(t.Name) || strings.ContainsFunc(t.Name, unicode.IsControl) {
		vs.Add("name", "name", "must be 1 to 100 characters without control characters")
	}
	if f, err := card.FamilyNamed(t.Family); err != nil {
		vs.Add("unknown", "family", "must be %s", familyNames())
	} else {
		_ = vs.Merge(f.CheckPolicy(t.Policy))
	}
	if b, err := json.Marshal(t.Policy); err != nil || len(b) > maxPolicy {
		vs.Add("tooLarge", "policy.blocklistEntries", "make the policy larger than %d bytes, which is the most that a bridge takes", maxPolicy)
	}
	for i, c := range t.Channels {
		if !allows(Channels(), c) {
			vs.Add("unknown", fmt.Sprintf("channels.%d", i), "must be %s", list(Channels()))
		} else if allows(t.Channels[:i], c) {
			vs.Add("repeated", fmt.Sprintf("channels.%d", i), "is there already")
		}
		if t.Messaging == "" && t.ProofFor(c) == MailedCode && !slices.ContainsFunc(t.Channels[:i], func(o Channel) bool { return t.ProofFor(o) == MailedCode }) {
			vs.Add("missing", "messaging", "must name a messaging configuration, for %s is by a mailed code", c)
		}
	}
	for _, c := range slices.Sorted(maps.Keys(t.Proofs)) {
		if possible := proofs[c]; len(possible) == 0 {
			vs.Add("unknown", "proofs."+string(c), "is of no channel; there are %s", list(Channels()))
		} else if !slices.Contains(possible, t.Proofs[c]) {
			vs.Add("unknown", "proofs."+string(c), "must be %s", list(possible))
		}
	}
	if l := t.Limit; l != (Limit{}) && (l.Count < 1 || l.Count > maxLimit || l.Days < 1 || l.Days > maxLimitDays) {
		vs.Add("range", "limit", "must be 1 to %d resets within 1 to %d days", maxLimit, maxLimitDays)
	}
	if t.PINValidDays < 0 || t.PINValidDays > maxPINValid {
		vs.Add("range", "pinValidDays", "must be 0 to %d", maxPINValid)
	}
	if len(t.Reminders) > MaxReminders {
		vs.Add("count", "reminders", "are %d, at most %d are taken", len(t.Reminders), MaxReminders)
	}
	for i, r := range t.Reminders {
		field := fmt.Sprintf("reminders.%d.", i)
		if r.DaysBefore < 1 || r.DaysBefore > maxDaysBefore {
			vs.Add("range", field+"daysBefore", "must be 1 to %d", maxDaysBefore)
		} else if t.ManagesExpiry() && r.DaysBefore >= t.PINValidDays {
			vs.Add("range", field+"daysBefore", "must be less than pinValidDays, or the PIN's holder would be reminded when it is new")
		}
		if slices.ContainsFunc(t.Reminders[:i], func(o Reminder) bool { return o.DaysBefore == r.DaysBefore }) {
			vs.Add("repeated", field+"daysBefore", "is there already")
		}
		if r.Messaging == "" && t.Messaging == "" {
			vs.Add("missing", field+"messaging", "must name a messaging configuration, for the template has none")
		}
	}
	if t.OperatorMail != "" {
		if _, err := mail.ParseAddress(t.OperatorMail); err != nil || strings.ContainsAny(t.OperatorMail, "<> ") {
			vs.Add("form", "operatorMail", "is not an address alone, such as helpdesk@example.org")
		} else if t.Messaging == "" {
			vs.Add("missing", "messaging", "must name a messaging configuration, for mails to operatorMail")
		}
	}
	return vs.Err()
}

type storedTemplate struct {
	Name         string     `json:"name"`
	Family       string     `json:"family"`
	Policy       pin.Policy `json:"policy"`
	Channels     []Channel  `json:"channels,omitempty"`
	Messaging    string     `json:"messaging,omitempty"`
	PINValidDays int        `json:"pinValidDays,omitzero"`
	MasterKey    []byte     `json:"masterKey,omitempty"`

	Proofs          map[Channel]Proof `json:"proofs,omitempty"`
	Limit           Limit             `json:"limit,omitzero"`
	Reminders       []Reminder        `json:"reminders,omitempty"`
	ExpiredTemplate string            `json:"expiredTemplate,omitempty"`
	OperatorMail    string            `json:"operatorMail,omitempty"`
}

type templateRecord struct {
	tenant table.TenantID
	Template
}

// Item implements table.Record.
func (r templateRecord) Item() (table.Item, error) {
	t := r.Template
	data, err := json.Marshal(storedTemplate{t.Name, t.Family, t.Policy, t.Channels, t.Messaging, t.PINValidDays, t.MasterKey,
		t.Proofs, t.Limit, t.Reminders, t.ExpiredTemplate, t.OperatorMail})
	return table.Item{Key: table.CardTemplateKey(r.tenant, t.ID), Data: data}, err
}

func decodeTemplate(item table.Item) (Template, error) {
	var s storedTemplate
	if err := item.Decode(&s); err != nil {
		return Template{}, err
	}
	id := strings.TrimPrefix(item.Key.Sort(), "cards/")
	return Template{
		ID: id, Name: s.Name, Family: s.Family, Policy: s.Policy, Channels: s.Channels, Messaging: s.Messaging, PINValidDays: s.PINValidDays, MasterKey: s.MasterKey,
		Proofs: s.Proofs, Limit: s.Limit, Reminders: s.Reminders, ExpiredTemplate: s.ExpiredTemplate, OperatorMail: s.OperatorMail, Version: item.Version,
	}, nil
}

// Template returns a credential template by id.
func (cs *Credentials) Template(ctx context.Context, t table.TenantID, id string) (Template, error) {
	item, err := cs.Table.Get(ctx, table.CardTemplateKey(t, id))
	if errors.Is(err, problem.ErrNotFound) {
		return Template{}, fmt.Errorf("credential template %w", problem.ErrNotFound)
	} else if err != nil {
		return Template{}, fmt.Errorf("load credential template: %w", err)
	}
	return decodeTemplate(item)
}

// Templates returns all credential templates of a tenant, the oldest first.
func (cs *Credentials) Templates(ctx context.Context, t table.TenantID) ([]Template, error) {
	var all []Template
	for r, more := table.CardTemplates(t), true; more; {
		page, err := cs.Table.Query(ctx, r)
		if err != nil {
			return nil, fmt.Errorf("list credential templates: %w", err)
		}
		for _, item := range page.Items {
			tmpl, err := decodeTemplate(item)
			if err != nil {
				return nil, err
			}
			all = append(all, tmpl)
			r = r.Beyond(r.Place(item))
		}
		more = page.More
	}
	return all, nil
}

// maxTemplates is how many a tenant may have, so that the list stays short.
const maxTemplates = 100

// The length of a master key in bytes.
const (
	minMasterKey = 16
	maxMasterKey = 64
)

func masterKeyPurpose(t table.TenantID, template string) string {
	return fmt.Sprintf("cardTemplate/masterKey|%s|%s", t, template)
}

func templateSubject(id string) string { return "cardTemplate/" + id }

// CreateTemplate makes a credential template, whose id it chooses. masterKey, in hex, is
// the key from which the admin keys of the cards are derived; nil for none.
func (cs *Credentials) CreateTemplate(ctx context.Context, core tenant.Core, by audit.Actor, tmpl Template, masterKey *secret.Text) (Template, error) {
	all, err := cs.Templates(ctx, core.Tenant.ID)
	if err != nil {
		return Template{}, err
	}
	if len(all) >= maxTemplates {
		return Template{}, fmt.Errorf("%w: there are %d credential templates, which is the most a tenant can have", problem.ErrState, len(all))
	}
	id, err := ulid.New(ulid.Timestamp(cs.Now()), cs.Rand)
	if err != nil {
		return Template{}, fmt.Errorf("make a template id: %w", err)
	}
	tmpl.ID, tmpl.MasterKey, tmpl.Version = id.String(), nil, 0
	for range tries {
		ops, err := cs.putTemplate(ctx, core, by, &tmpl, masterKey, "cardTemplate.created", nil)
		if err != nil {
			return Template{}, err
		}
		if again, err := cs.write(ctx, ops); again {
			continue
		} else if err != nil {
			return Template{}, fmt.Errorf("create credential template: %w", err)
		}
		tmpl.Version = 1
		return tmpl, nil
	}
	return Template{}, errBusy
}

// UpdateTemplate changes a template by the given function, which leaves ID, Family and
// MasterKey, and its master key if one is given. If version is not 0, the template must
// have it. Cards there are go by the new template from now on; their PIN expiry flags
// stay. A master key there is cannot be replaced while there are cards: their admin keys
// would be lost.
func (cs *Credentials) UpdateTemplate(ctx context.Context, core tenant.Core, by audit.Actor, id string, version int64, edit func(*Template), masterKey *secret.Text) (Template, error) {
	t := core.Tenant.ID
	for range tries {
		old, err := cs.Template(ctx, t, id)
		if err != nil {
			return Template{}, err
		}
		if version != 0 && old.Version != version {
			return Template{}, changedSince("template", version, old.Version)
		}
		tmpl, vs := old.edited(edit)
		if masterKey == nil && len(vs) == 0 && reflect.DeepEqual(tmpl, old) {
			return old, nil
		}
		var unused []table.Op
		if masterKey != nil && old.MasterKey != nil {
			uses, shards, err := cs.uses(ctx, t, id)
			if err != nil {
				return Template{}, err
			}
			if uses > 0 {
				return Template{}, fmt.Errorf("%w: the admin keys of %d cards come from the master key there is; make another template for other cards", problem.ErrState, uses)
			}
			for key, version := range shards {
				unused = append(unused, table.Check(key, table.After(version)))
			}
		}
		ops, err := cs.putTemplate(ctx, core, by, &tmpl, masterKey, "cardTemplate.changed", vs)
		if err != nil {
			return Template{}, err
		}
		if again, err := cs.write(ctx, append(ops, unused...)); again {
			continue
		} else if err != nil {
			return Template{}, fmt.Errorf("change credential template: %w", err)
		}
		tmpl.Version++
		return tmpl, nil
	}
	return Template{}, errBusy
}

// edited returns the template changed by a function, and what that must not change.
func (t Template) edited(edit func(*Template)) (Template, problem.Violations) {
	is := t
	edit(&is)
	var vs problem.Violations
	if is.Family != t.Family {
		vs.Add("fixed", "family", "is %s and cannot change; make another template", t.Family)
	}
	is.ID, is.Family, is.MasterKey, is.Version = t.ID, t.Family, t.MasterKey, t.Version
	return is, vs
}

// putTemplate returns the ops that store a template with its master key, if one is given.
// Everything that is wrong with it is reported at once, after vs.
func (cs *Credentials) putTemplate(ctx context.Context, core tenant.Core, by audit.Actor, tmpl *Template, masterKey *secret.Text, action string, vs problem.Violations) ([]table.Op, error) {
	t := core.Tenant.ID
	if err := vs.Merge(tmpl.Validate()); err != nil {
		return nil, err
	}
	record := audit.Record{Actor: by, Action: action, Subject: templateSubject(tmpl.ID), Outcome: audit.Done}
	if masterKey != nil {
		key, isHex := unhexKey(*masterKey)
		switch n := len(key.Reveal()); {
		case hasPUK(tmpl.Family):
			vs.Add("inconsistent", "masterKey", "is for cards with admin keys; %s cards have a PUK each", tmpl.Family)
		case !isHex:
			vs.Add("malformed", "masterKey", "must be in hex")
		case n < minMasterKey || n > maxMasterKey:
			vs.Add("length", "masterKey", "must have %d to %d bytes: %d to %d digits of hex", minMasterKey, maxMasterKey, 2*minMasterKey, 2*maxMasterKey)
		default:
			sealed, err := core.Keys.Seal(masterKeyPurpose(t, tmpl.ID), []byte(key.Reveal()))
			if err != nil {
				return nil, fmt.Errorf("seal master key: %w", err)
			}
			tmpl.MasterKey = sealed
			record.Details = map[string]string{"masterKey": "set"}
		}
	}
	checks, err := cs.named(ctx, core, *tmpl, &vs)
	if err != nil {
		return nil, err
	}
	if err := vs.Err(); err != nil {
		return nil, err
	}
	return append([]table.Op{
		table.Put(templateRecord{t, *tmpl}, table.After(tmpl.Version)),
		cs.Audit.Op(ctx, t, record),
	}, checks...), nil
}

// named returns the conditions under which a template may name its messaging
// configurations and mail templates: that they are there.
func (cs *Credentials) named(ctx context.Context, core tenant.Core, tmpl Template, vs *problem.Violations) (checks []table.Op, _ error) {
	t := core.Tenant.ID
	seen := map[table.Key]bool{}
	there := func(field, what string, key table.Key) (item table.Item, ok bool, err error) {
		item, err = cs.Table.Get(ctx, key)
		if errors.Is(err, problem.ErrNotFound) {
			return item, false, nil
		} else if err != nil {
			return item, false, fmt.Errorf("load %s: %w", what, err)
		}
		if !seen[key] {
			seen[key], checks = true, append(checks, table.Check(key, table.IfVersion(item.Version)))
		}
		return item, true, nil
	}
	messaging := func(field, id string) error {
		if id == "" {
			return nil
		}
		_, ok, err := there(field, "messaging configuration", table.MessagingKey(t, id))
		if err == nil && !ok {
			vs.Add("unknown", field, "is not the id of a messaging configuration")
		}
		return err
	}
	text := func(field, id string, kind mail.TemplateKind) error {
		if id == "" || id == string(kind) {
			return nil // the predefined one is always there
		}
		_, ok, err := there(field, "mail template", table.TemplateKey(t, id))
		if err != nil {
			return err
		}
		if ok {
			stored, err := mail.Store{Table: cs.Table, Tenant: t, Keys: core.Keys}.Template(ctx, id, "")
			if err != nil {
				return err
			}
			ok = stored.Kind == kind
		}
		if !ok {
			vs.Add("unknown", field, "is not the id of a mail template of kind %s", kind)
		}
		return nil
	}
	err := errors.Join(messaging("messaging", tmpl.Messaging), text("expiredTemplate", tmpl.ExpiredTemplate, mail.CardPINExpired))
	for i, r := range tmpl.Reminders {
		field := fmt.Sprintf("reminders.%d.", i)
		err = errors.Join(err, messaging(field+"messaging", r.Messaging), text(field+"mailTemplate", r.MailTemplate, mail.CardPINExpiry))
	}
	return checks, err
}

// Change is one thing that a change of a template does.
type Change struct {
	Field    string
	From, To string
	Effect   string // a sentence, for people
}

// Preview is what a change of a template would do.
type Preview struct {
	Cards int // that have the template
	// WithoutFlag are those of them without a PIN expiry flag, counted up to a bound;
	// MoreWithoutFlag says that there are more.
	WithoutFlag     int
	MoreWithoutFlag bool
	Changes         []Change
}

// previewed bounds the cards without flag that a preview counts.
const previewed = 10_000

// Preview says what UpdateTemplate would do, and does nothing. What that would refuse for
// its input, this refuses too.
func (cs *Credentials) Preview(ctx context.Context, core tenant.Core, id string, edit func(*Template), masterKey *secret.Text) (Preview, error) {
	t := core.Tenant.ID
	old, err := cs.Template(ctx, t, id)
	if err != nil {
		return Preview{}, err
	}
	tmpl, vs := old.edited(edit)
	is := tmpl
	if _, err := cs.putTemplate(ctx, core, audit.Actor{Kind: audit.System}, &is, masterKey, "cardTemplate.changed", vs); err != nil {
		return Preview{}, err
	}
	var p Preview
	if p.Cards, err = cs.Uses(ctx, t, id); err != nil {
		return Preview{}, err
	}
	for _, r := range table.CredentialsUnflagged(t, id) {
		for more := true; more; {
			page, err := cs.Table.Query(ctx, r)
			if err != nil {
				return Preview{}, fmt.Errorf("count cards without flag: %w", err)
			}
			p.WithoutFlag += len(page.Items)
			if more = page.More; more {
				r = r.Beyond(r.Place(page.Items[len(page.Items)-1]))
			}
			if more && p.WithoutFlag >= previewed {
				p.MoreWithoutFlag, more = true, false
			}
		}
	}
	p.Changes = old.changes(tmpl, masterKey != nil)
	return p, nil
}

// changes says what becomes different.
func (t Template) changes(is Template, newKey bool) (all []Change) {
	add := func(field string, from, to any, effect string) {
		was, will := fmt.Sprint(from), fmt.Sprint(to)
		if was != will {
			all = append(all, Change{field, was, will, effect})
		}
	}
	add("name", t.Name, is.Name, "No card is affected.")
	if !reflect.DeepEqual(t.Policy, is.Policy) {
		all = append(all, Change{Field: "policy", Effect: "It holds for the next PIN of each card; PINs that the cards have stay."})
	}
	for _, c := range Channels() {
		if t.Allows(c) != is.Allows(c) {
			effect := "It is open for these cards at once."
			if t.Allows(c) {
				effect = "No unblock begins this way any more; those under way are finished."
			}
			add("channels."+string(c), t.Allows(c), is.Allows(c), effect)
		}
		add("proofs."+string(c), t.ProofFor(c), is.ProofFor(c), "It holds for unblocks that begin from now on.")
	}
	effect := "It holds from the next PIN of each card on; PIN expiry flags that are set stay, with the reminders planned for them."
	switch {
	case !t.ManagesExpiry() && is.ManagesExpiry():
		effect += " Cards without a flag get one with their next PIN, or by the sanity check."
	case t.ManagesExpiry() && !is.ManagesExpiry():
		effect += " A new PIN gets none."
	}
	add("pinValidDays", t.PINValidDays, is.PINValidDays, effect)
	add("reminders", t.Reminders, is.Reminders, "Reminders planned for PINs that the cards have stay, by days; one that is taken out is not sent. New ones come with the next PIN of each card.")
	add("expiredTemplate", t.ExpiredTemplate, is.ExpiredTemplate, "It holds for all that expire from now on.")
	add("operatorMail", t.OperatorMail, is.OperatorMail, "It holds for all that expire from now on.")
	limited := "Resets are counted from now on, where they were not before."
	add("limit", t.Limit, is.Limit, limited)
	add("messaging", t.Messaging, is.Messaging, "It holds for all mails from now on.")
	if newKey {
		all = append(all, Change{Field: "masterKey", Effect: "Admin keys of cards that have none of their own are derived from it."})
	}
	return all
}

// DeleteTemplate removes a template that no credential has; one that has them is
// problem.ErrState. If version is not 0, the template must have it.
func (cs *Credentials) DeleteTemplate(ctx context.Context, core tenant.Core, by audit.Actor, id string, version int64) error {
	t := core.Tenant.ID
	for range tries {
		tmpl, err := cs.Template(ctx, t, id)
		if err != nil {
			return err
		}
		if version != 0 && tmpl.Version != version {
			return changedSince("template", version, tmpl.Version)
		}
		uses, shards, err := cs.uses(ctx, t, id)
		if err != nil {
			return err
		}
		if uses > 0 {
			return fmt.Errorf("%w: %d credentials have this template; give them another one first", problem.ErrState, uses)
		}
		// A credential that comes meanwhile either finds the template gone, or its count
		// is found changed here.
		ops := []table.Op{
			table.Delete(table.CardTemplateKey(t, id), table.IfVersion(tmpl.Version)),
			cs.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "cardTemplate.deleted", Subject: templateSubject(id), Outcome: audit.Done}),
		}
		for key, version := range shards {
			if version == 0 {
				ops = append(ops, table.Check(key, table.Absent()))
			} else {
				ops = append(ops, table.Delete(key, table.IfVersion(version)))
			}
		}
		if again, err := cs.write(ctx, ops); again {
			continue
		} else if err != nil {
			return fmt.Errorf("delete credential template: %w", err)
		}
		return nil
	}
	return errBusy
}

// useCount is a shard of how many credentials have a template. It is changed in the Write
// that gives a credential the template or takes it away, and one shard is enough for a
// Write that does so for many: only the sum of the shards says something.
type useCount struct {
	key table.Key
	n   int
}

type storedUseCount struct {
	N int `json:"n"`
}

// Validate implements table.Record.
func (useCount) Validate() error { return nil }

// Item implements table.Record.
func (c useCount) Item() (table.Item, error) {
	data, err := json.Marshal(storedUseCount{c.n})
	return table.Item{Key: c.key, Data: data}, err
}

// useOp returns the op that counts delta credentials, of which one is named, as having a
// template.
func (cs *Credentials) useOp(ctx context.Context, t table.TenantID, template, credential string, delta int) (table.Op, error) {
	op, _, err := cs.useIn(ctx, t, template, table.Shard(credential, table.CountShards), delta)
	return op, err
}

// useIn is useOp for a shard. begun tells that it has been counted in before.
func (cs *Credentials) useIn(ctx context.Context, t table.TenantID, template string, shard, delta int) (op table.Op, begun bool, err error) {
	key := table.CardTemplateUseKey(t, template, shard)
	item, err := cs.Table.Get(ctx, key)
	var s storedUseCount
	if err == nil {
		err = item.Decode(&s)
	}
	if err != nil && !errors.Is(err, problem.ErrNotFound) {
		return table.Op{}, false, fmt.Errorf("count credentials: %w", err)
	}
	return table.Put(useCount{key, s.N + delta}, table.After(item.Version)), item.Version != 0, nil
}

// Uses returns how many credentials have a template.
func (cs *Credentials) Uses(ctx context.Context, t table.TenantID, template string) (int, error) {
	n, _, err := cs.uses(ctx, t, template)
	return n, err
}

// uses returns besides the version of each shard, 0 for those that are not there.
func (cs *Credentials) uses(ctx context.Context, t table.TenantID, template string) (n int, shards map[table.Key]int64, err error) {
	page, err := cs.Table.Query(ctx, table.CardTemplateUses(t, template))
	if err != nil {
		return 0, nil, fmt.Errorf("count credentials: %w", err)
	}
	shards = make(map[table.Key]int64, table.CountShards)
	for shard := range table.CountShards {
		shards[table.CardTemplateUseKey(t, template, shard)] = 0
	}
	for _, item := range page.Items {
		var s storedUseCount
		if err := item.Decode(&s); err != nil {
			return 0, nil, err
		}
		n += s.N
		shards[item.Key] = item.Version
	}
	return n, shards, nil
}
