// Package credential keeps smart cards: what they are, who holds them, what template
// rules them, and the secrets that reset their PINs, sealed. Its invariants: a card's
// custody names only PUKs that are kept, and whoever speaks to a card in order to change
// it holds the credential's lease, whose fence is higher than that of all before.
package credential

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
)

// Credential is a smart card as the tenant knows it.
type Credential struct {
	ID       string // IDOf the family and the card id: a card has one credential in a tenant
	Family   string // card.Family's name
	CardID   string // upper-case hex, as card.Identity has it
	Template string
	Holder   string // the user's id; "" for nobody's
	Label    string // for people
	Serial   string // printed on it, or told by it; for people
	State    State
	ATR      []byte // as a bridge has seen it last

	// Import is the row of an import that has brought it: "<import>/<part>/<line>/<hash>";
	// "" if it was registered by itself.
	Import string

	// Custody is what is known of the card's PUK, and PUKs are the sealed ones that it
	// names; both are empty where the card has no PUK, or none is known.
	Custody card.Custody
	PUKs    map[int][]byte
	// Former are the slots of PUKs that were in custody before the one was claimed that is
	// there now, the latest last. They are kept until the card has taken one.
	Former []int
	// AdminKey is the sealed admin key; nil if there is none or it is derived, see
	// Template.
	AdminKey []byte

	Lease Lease
	// Doubt is the operation of which it is not known what it has done; "" for none.
	Doubt string
	// Touched is the insertion in which a script that may set a PIN was sent last. What the
	// card has told of its PIN in that insertion may be older than the script.
	Touched string
	// Stuck is why Pinward does nothing more by itself to find out which PUK the card has:
	// a card.Reason; "" if it goes on. An operator has to say what the PUK is.
	Stuck string

	LastPINChange PINChange
	// PINExpiresAt is the PIN expiry flag: when the PIN expires by the template in force
	// when it was set; zero for never, or not known. The card goes on working. It is set by
	// Flag and by nothing else, as are Flagged, how that came, and Notice.
	PINExpiresAt time.Time
	Flagged      Flagged
	Notice       Notice
	// ExpiryRecorded: that the PIN has expired is in the audit log.
	ExpiryRecorded bool
	// Resets are when the PIN was reset lately, as far as the template's limit looks back.
	Resets []time.Time
	// PUKDisclosedAt is since when somebody knows the PUK that the card has; zero for nobody.
	PUKDisclosedAt time.Time

	// Codes count the one-time codes mailed for this card lately.
	Codes Codes

	CreatedAt time.Time
	UpdatedAt time.Time
	Version   int64
}

// Codes are how many one-time codes were mailed since a time.
type Codes struct {
	Sent  int
	Since time.Time
}

// Lease is who may speak to the card in order to change it. Fence rises with every lease
// and never falls; bridges refuse what has a lower one than they have seen.
type Lease struct {
	Operation string // "" for nobody
	Until     time.Time
	Fence     int64
}

// IDOf returns the id of the credential of a card, and an InvalidError for what is no
// card id of the family.
func IDOf(family, cardID string) (string, error) {
	raw, err := hex.DecodeString(cardID)
	if err != nil || len(raw) == 0 || len(raw) > 32 {
		return "", problem.Invalid("malformed", "cardId", "must be the card's id in hex")
	}
	if _, err := card.FamilyNamed(family); err != nil {
		return "", problem.Invalid("unknown", "family", "must be %s", familyNames())
	}
	return strings.ToLower(family) + "-" + hex.EncodeToString(raw), nil
}

func familyNames() string {
	var names []string
	for _, f := range card.Families() {
		names = append(names, f.Name)
	}
	return strings.Join(names, " or ")
}

// Take returns the credential with its lease taken by an operation for a while, under a
// new fence, which must be stored before anything is done under it. A lease that another
// operation has and that is not over is problem.ErrState. One that the operation has
// already is prolonged, under the same fence.
func (c Credential) Take(operation string, now time.Time, d time.Duration) (Credential, error) {
	switch {
	case c.Holds(operation, c.Lease.Fence):
	case c.Leased(now):
		return c, fmt.Errorf("%w: another unblock of this card is under way; wait until %s, or cancel it", problem.ErrState, c.Lease.Until.UTC().Format(time.RFC3339))
	default:
		if err := c.CheckUnblockable(); err != nil {
			return c, err
		}
		c.Lease.Operation = operation
		c.Lease.Fence++
	}
	c.Lease.Until = now.Add(d).UTC().Truncate(time.Millisecond)
	return c, nil
}

// Leased tells whether somebody has the lease.
func (c Credential) Leased(now time.Time) bool {
	return c.Lease.Operation != "" && now.Before(c.Lease.Until)
}

// Holds tells whether an operation has the lease still, under the fence that it was given.
// It has it past its time too, as long as nobody has taken it over.
func (c Credential) Holds(operation string, fence int64) bool {
	return operation != "" && c.Lease.Operation == operation && c.Lease.Fence == fence
}

// Release gives the lease back.
func (c Credential) Release() Credential {
	c.Lease.Operation, c.Lease.Until = "", time.Time{}
	return c
}

// Sealer seals the secrets of a tenant.
type Sealer interface {
	Seal(purpose string, plaintext []byte) ([]byte, error)
	Open(purpose string, sealed []byte) ([]byte, error)
}

// slotPurpose binds a sealed PUK to its place, so that it cannot be taken for another.
func slotPurpose(t table.TenantID, id string, slot int) string {
	return fmt.Sprintf("credential/puk|%s|%s|%d", t, id, slot)
}

func adminKeyPurpose(t table.TenantID, id string) string {
	return fmt.Sprintf("credential/adminKey|%s|%s", t, id)
}

// AddPUK seals a PUK into a new slot, whose number it returns. The slot is kept once
// Custody names it; see Kept.
func (c Credential) AddPUK(keys Sealer, t table.TenantID, puk secret.Text) (Credential, int, error) {
	slot := 1 + max(c.Custody.Current, c.Custody.Proposed)
	for n := range c.PUKs {
		slot = max(slot, n+1)
	}
	sealed, err := keys.Seal(slotPurpose(t, c.ID, slot), []byte(puk.Reveal()))
	if err != nil {
		return c, 0, fmt.Errorf("seal PUK: %w", err)
	}
	puks := make(map[int][]byte, len(c.PUKs)+1)
	for n, s := range c.PUKs {
		puks[n] = s
	}
	puks[slot] = sealed
	c.PUKs = puks
	return c, slot, nil
}

// PUK opens the PUK in a slot. Whoever calls it accounts for it in the audit log.
func (c Credential) PUK(keys Sealer, t table.TenantID, slot int) (secret.Text, error) {
	sealed, ok := c.PUKs[slot]
	if !ok {
		return secret.Text{}, fmt.Errorf("PUK in slot %d: %w", slot, problem.ErrNotFound)
	}
	return open(keys, slotPurpose(t, c.ID, slot), sealed)
}

// Kept returns the credential without the PUKs that are of no use any more: all that its
// custody does not name but, as long as the card has not taken one of those, the former.
func (c Credential) Kept() Credential {
	if c.Custody.Stage == card.Settled && !c.Custody.Claimed {
		c.Former = nil
	}
	puks := make(map[int][]byte, 2)
	for _, slot := range append([]int{c.Custody.Current, c.Custody.Proposed}, c.Former...) {
		if sealed, ok := c.PUKs[slot]; ok {
			puks[slot] = sealed
		}
	}
	c.PUKs = puks
	return c
}

// Validate reports everything that is wrong with the credential.
func (c Credential) Validate() error {
	var vs problem.Violations
	if id, err := IDOf(c.Family, c.CardID); vs.Merge(err) == nil && err == nil && id != c.ID {
		vs.Add("inconsistent", "id", "must be that of the card")
	}
	if c.CardID != strings.ToUpper(c.CardID) {
		vs.Add("malformed", "cardId", "must be in upper case")
	}
	if c.Template == "" {
		vs.Add("missing", "template", "is missing")
	}
	for field, text := range map[string]string{"label": c.Label, "serial": c.Serial} {
		if n := utf8.RuneCountInString(text); n > 100 || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			vs.Add("length", field, "must be at most 100 characters, without control characters")
		}
	}
	if !slices.Contains(States(), c.State) {
		vs.Add("unknown", "state", "must be %s", list(States()))
	}
	// The invariant: without it a card's PUK would be lost.
	for _, slot := range append([]int{c.Custody.Current, c.Custody.Proposed}, c.Former...) {
		if _, ok := c.PUKs[slot]; slot != 0 && !ok {
			vs.Add("inconsistent", "puks", "lack slot %d, which is in custody", slot)
		}
	}
	return vs.Err()
}

// stored is a Credential as stored.
type stored struct {
	Tenant         table.TenantID `json:"tenant"`
	Family         string         `json:"family"`
	CardID         string         `json:"cardId"`
	Template       string         `json:"template"`
	Holder         string         `json:"holder,omitempty"`
	Label          string         `json:"label,omitempty"`
	Serial         string         `json:"serial,omitempty"`
	State          State          `json:"state,omitempty"`
	ATR            []byte         `json:"atr,omitempty"`
	Import         string         `json:"import,omitempty"`
	Custody        storedCustody  `json:"custody,omitzero"`
	PUKs           map[int][]byte `json:"puks,omitempty"`
	Former         []int          `json:"former,omitempty"`
	AdminKey       []byte         `json:"adminKey,omitempty"`
	LeasedBy       string         `json:"leasedBy,omitempty"`
	LeasedUntil    time.Time      `json:"leasedUntil,omitzero"`
	Fence          int64          `json:"fence,omitzero"`
	Doubt          string         `json:"doubt,omitempty"`
	Touched        string         `json:"touched,omitempty"`
	Stuck          string         `json:"stuck,omitempty"`
	PINChangedAt   time.Time      `json:"pinChangedAt,omitzero"`
	PINChangedHow  How            `json:"pinChangedHow,omitempty"`
	PINChangedBy   string         `json:"pinChangedBy,omitempty"`
	PINPresumed    bool           `json:"pinPresumed,omitzero"`
	PINExpiresAt   time.Time      `json:"pinExpiresAt,omitzero"`
	FlaggedHow     FlagHow        `json:"flaggedHow,omitempty"`
	FlaggedAt      time.Time      `json:"flaggedAt,omitzero"`
	FlaggedRun     string         `json:"flaggedRun,omitempty"`
	Notice         storedNotice   `json:"notice,omitzero"`
	ExpiryRecorded bool           `json:"expiryRecorded,omitzero"`
	Resets         []time.Time    `json:"resets,omitempty"`
	PUKDisclosedAt time.Time      `json:"pukDisclosedAt,omitzero"`
	CodesSent      int            `json:"codesSent,omitzero"`
	CodesSince     time.Time      `json:"codesSince,omitzero"`
	CreatedAt      time.Time      `json:"createdAt"`
	UpdatedAt      time.Time      `json:"updatedAt"`
}

type storedNotice struct {
	Kind     NoticeKind  `json:"kind"`
	Days     int         `json:"days,omitzero"`
	State    NoticeState `json:"state"`
	At       time.Time   `json:"at"`
	Attempts int         `json:"attempts,omitzero"`
	Repeated bool        `json:"repeated,omitzero"`
	Reason   string      `json:"reason,omitempty"`
	Left     []int       `json:"left,omitempty"`
	Told     bool        `json:"told,omitzero"`
}

// IsZero keeps a notice that never was out of the stored item.
func (n storedNotice) IsZero() bool { return n.State == NoNotice }

type storedCustody struct {
	Stage    card.Stage `json:"stage"`
	Current  int        `json:"current,omitzero"`
	Proposed int        `json:"proposed,omitzero"`
	Claimed  bool       `json:"claimed,omitzero"`
	Probed   bool       `json:"probed,omitzero"`
	Tries    int        `json:"tries,omitzero"`
	Most     int        `json:"most,omitzero"`
}

// record is a Credential of a tenant, for the table.
type record struct {
	tenant table.TenantID
	Credential
}

// Put returns the ops that store a credential which was read as was, if it still has that
// version; with the zero Credential for was, if there is none. The first op is the
// credential's own; the others change the pointers by which it is found, see Find.
func Put(t table.TenantID, was, is Credential) []table.Op {
	is.Version = was.Version
	return append([]table.Op{table.Put(record{t, is}, table.After(was.Version))}, point(t, was, is)...)
}

// Remove returns the ops that remove a credential, if it still has the version of c.
func Remove(t table.TenantID, c Credential) []table.Op {
	return append([]table.Op{table.Delete(table.CredentialKey(t, c.ID), table.IfVersion(c.Version))}, point(t, c, Credential{})...)
}

// Item implements table.Record.
func (r record) Item() (table.Item, error) {
	c := r.Credential
	n := c.Notice
	data, err := json.Marshal(stored{r.tenant, c.Family, c.CardID, c.Template, c.Holder, c.Label, c.Serial, c.State, c.ATR, c.Import,
		storedCustody(c.Custody), c.PUKs, c.Former, c.AdminKey, c.Lease.Operation, c.Lease.Until, c.Lease.Fence, c.Doubt, c.Touched, c.Stuck,
		c.LastPINChange.At, c.LastPINChange.How, c.LastPINChange.Operation, c.LastPINChange.Presumed,
		c.PINExpiresAt, c.Flagged.How, c.Flagged.At, c.Flagged.Run, storedNotice(n), c.ExpiryRecorded,
		c.Resets, c.PUKDisclosedAt, c.Codes.Sent, c.Codes.Since, c.CreatedAt, c.UpdatedAt})
	item := table.Item{Key: table.CredentialKey(r.tenant, c.ID), Indexes: []table.IndexKey{table.CredentialListed(r.tenant, c.ID)}, Data: data}
	if c.Holder != "" {
		item.Indexes = append(item.Indexes, table.CredentialHeld(r.tenant, c.Holder, c.ID))
	}
	// The due index has either, so that both are right in every Write.
	if at, ok := c.dueAt(); ok {
		item.Indexes = append(item.Indexes, table.CredentialDue(r.tenant, c.ID, at))
	} else if !c.HasFlag() && c.State != Retired {
		item.Indexes = append(item.Indexes, table.CredentialUnflagged(r.tenant, c.Template, c.ID))
	}
	return item, err
}

func decode(item table.Item) (Credential, error) {
	_, c, err := decodeOf(item)
	return c, err
}

// decodeOf returns also whose credential it is, which the sweep learns only here.
func decodeOf(item table.Item) (table.TenantID, Credential, error) {
	var s stored
	if err := item.Decode(&s); err != nil {
		return "", Credential{}, err
	}
	id, err := IDOf(s.Family, s.CardID)
	if err != nil {
		return "", Credential{}, fmt.Errorf("decode %s: %w", item.Key, err)
	}
	if s.State == "" { // of before there were states
		s.State = Registered
		if !s.PINChangedAt.IsZero() {
			s.State = Active
		}
	}
	return s.Tenant, Credential{
		ID: id, Family: s.Family, CardID: s.CardID, Template: s.Template, Holder: s.Holder, Label: s.Label, Serial: s.Serial, State: s.State, ATR: s.ATR, Import: s.Import,
		Custody: card.Custody(s.Custody), PUKs: s.PUKs, Former: s.Former, AdminKey: s.AdminKey,
		Lease:         Lease{s.LeasedBy, s.LeasedUntil, s.Fence},
		Doubt:         s.Doubt,
		Touched:       s.Touched,
		Stuck:         s.Stuck,
		LastPINChange: PINChange{s.PINChangedAt, s.PINChangedHow, s.PINChangedBy, s.PINPresumed},
		PINExpiresAt:  s.PINExpiresAt, Flagged: Flagged{s.FlaggedHow, s.FlaggedAt, s.FlaggedRun},
		Notice: Notice(s.Notice), ExpiryRecorded: s.ExpiryRecorded, Resets: s.Resets, PUKDisclosedAt: s.PUKDisclosedAt,
		Codes:     Codes{s.CodesSent, s.CodesSince},
		CreatedAt: s.CreatedAt, UpdatedAt: s.UpdatedAt,
		Version: item.Version,
	}, nil
}

// Name is what people call the card.
func (c Credential) Name() string {
	if c.Label != "" {
		return c.Label
	}
	return c.Family + " …" + c.CardID[max(0, len(c.CardID)-4):]
}

// Subject names a credential in the audit log.
func Subject(id string) string { return "credential/" + id }

// allows tells whether a list has a channel.
func allows(channels []Channel, c Channel) bool { return slices.Contains(channels, c) }
