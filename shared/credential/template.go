package credential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
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
	// SelfService: the person alone, who proves themselves by a code that is mailed.
	SelfService Channel = "selfService"
	// Operator: somebody who has made sure who the person is.
	Operator Channel = "operator"
)

// Channels lists them all.
func Channels() []Channel { return []Channel{SelfService, Operator} }

// Template is what credentials of a kind have in common.
type Template struct {
	ID     string // ULID
	Name   string // for people, 1 to 100 characters
	Family string
	// Policy is what the PINs of these cards must meet.
	Policy pin.Policy
	// Channels are the ways to an unblock that are open.
	Channels []Channel
	// Messaging is the messaging configuration for mails to holders; "" sends none, and
	// leaves no self-service.
	Messaging string
	// PINValidDays is the life of a card's PIN, which its PIN expiry flag is set by; 0
	// sets no flag.
	PINValidDays int
	// MasterKey is the sealed key from which the admin keys of these cards are derived;
	// nil if each is escrowed. See DeriveAdminKey.
	MasterKey []byte
	Version   int64
}

// Allows tells whether a channel is open.
func (t Template) Allows(c Channel) bool { return allows(t.Channels, c) }

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
		if c != SelfService && c != Operator {
			vs.Add("unknown", fmt.Sprintf("channels.%d", i), "must be %s or %s", SelfService, Operator)
		} else if allows(t.Channels[:i], c) {
			vs.Add("repeated", fmt.Sprintf("channels.%d", i), "is there already")
		}
	}
	if t.Allows(SelfService) && t.Messaging == "" {
		vs.Add("missing", "messaging", "must name a messaging configuration, for self-service is by a mailed code")
	}
	if t.PINValidDays < 0 || t.PINValidDays > 3650 {
		vs.Add("range", "pinValidDays", "must be 0 to 3650")
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
}

type templateRecord struct {
	tenant table.TenantID
	Template
}

// Item implements table.Record.
func (r templateRecord) Item() (table.Item, error) {
	t := r.Template
	data, err := json.Marshal(storedTemplate{t.Name, t.Family, t.Policy, t.Channels, t.Messaging, t.PINValidDays, t.MasterKey})
	return table.Item{Key: table.CardTemplateKey(r.tenant, t.ID), Data: data}, err
}

func decodeTemplate(item table.Item) (Template, error) {
	var s storedTemplate
	if err := item.Decode(&s); err != nil {
		return Template{}, err
	}
	id := strings.TrimPrefix(item.Key.Sort(), "cards/")
	return Template{id, s.Name, s.Family, s.Policy, s.Channels, s.Messaging, s.PINValidDays, s.MasterKey, item.Version}, nil
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
		tmpl := old
		edit(&tmpl)
		var vs problem.Violations
		if tmpl.Family != old.Family {
			vs.Add("fixed", "family", "is %s and cannot change; make another template", old.Family)
		}
		tmpl.ID, tmpl.Family, tmpl.MasterKey, tmpl.Version = old.ID, old.Family, old.MasterKey, old.Version
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
	var checks []table.Op
	if tmpl.Messaging != "" {
		key := table.MessagingKey(t, tmpl.Messaging)
		item, err := cs.Table.Get(ctx, key)
		if errors.Is(err, problem.ErrNotFound) {
			vs.Add("unknown", "messaging", "is not the id of a messaging configuration")
		} else if err != nil {
			return nil, fmt.Errorf("load messaging configuration: %w", err)
		} else {
			checks = append(checks, table.Check(key, table.IfVersion(item.Version)))
		}
	}
	if err := vs.Err(); err != nil {
		return nil, err
	}
	return append([]table.Op{
		table.Put(templateRecord{t, *tmpl}, table.After(tmpl.Version)),
		cs.Audit.Op(ctx, t, record),
	}, checks...), nil
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
	key := table.CardTemplateUseKey(t, template, table.Shard(credential, table.CountShards))
	item, err := cs.Table.Get(ctx, key)
	var s storedUseCount
	if err == nil {
		err = item.Decode(&s)
	}
	if err != nil && !errors.Is(err, problem.ErrNotFound) {
		return table.Op{}, fmt.Errorf("count credentials: %w", err)
	}
	return table.Put(useCount{key, s.N + delta}, table.After(item.Version)), nil
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
