// Package user keeps a tenant's users and their PINs: set, generate, verify,
// identify, expire, announce. A PIN itself is never stored, only keyed values
// of it, and there is one function, accept, through which every new PIN goes.
package user

import (
	"encoding/json"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// User is a person of a tenant.
type User struct {
	ID      string // ULID
	Profile Profile
	PIN     PIN
	Pending Pending // a PIN that is to be mailed

	MailProblem MailProblem // why nothing is mailed to Profile.Mail
	MailSince   time.Time   // when that was set, or its problem cleared

	// Import is the row of an import that the user comes from, as shared/intake names it;
	// it begins with the import's id and a slash. "" if none.
	Import string

	CreatedAt time.Time
	UpdatedAt time.Time // of profile or PIN
	Version   int64
}

// Profile is what is known of a user. Only Username is needed; it and
// ExternalID are unique within the tenant, Username whatever its case.
type Profile struct {
	Username    string
	DisplayName string
	Mail        string
	Phone       string
	StaffNumber string
	ExternalID  string // the id in the tenant's own system
	Groups      []string
}

// PIN is what is known of a user's PIN: all but the PIN.
type PIN struct {
	SetAt         time.Time   // zero if there never was one
	By            audit.Actor // who made it
	PolicyVersion int64       // of the policy that accepted it
	ExpiresAt     time.Time   // zero is never
	NotifyAt      time.Time   // when its expiry is to be announced first; zero is not at all
	Notice        Notice      // the reminder that comes next, or came last
	Reminders     []int       // hours before the expiry of those after it, the most first
	NotifiedAt    time.Time   // when the last one was sent; zero if none was
	DeletedAt     time.Time   // set if it is gone
	Deleted       string      // why it is gone: "expired", "deleted" or "used"
	OneTime       OneTime     // what its use leads to
	Mailed        bool        // its owner has it from a mail

	verifier string   // "" if there is no PIN
	lookup   string   // "" unless the PIN identifies
	history  []string // verifiers of former PINs, newest first
	order    string   // of Issue, that it came from
}

// State is whether there is a PIN.
type State string

// The states of a PIN. An expired PIN lets nobody in; the sweep deletes it
// soon after.
const (
	NoPIN   State = "none"
	IsSet   State = "set"
	Expired State = "expired"
)

// State returns the PIN's state at a time.
func (p PIN) State(now time.Time) State {
	switch {
	case p.verifier == "":
		return NoPIN
	case !p.ExpiresAt.IsZero() && !now.Before(p.ExpiresAt):
		return Expired
	}
	return IsSet
}

// Identifies tells whether the PIN alone finds its user.
func (p PIN) Identifies() bool { return p.lookup != "" }

// Notice is what has become of a mail that announces a PIN's expiry.
type Notice struct {
	Hours    int // before the expiry: which of the reminders it is
	State    NoticeState
	At       time.Time // planned: when to send; claimed: when the claim ends; else when it came to this
	Attempts int       // sends begun
	Repeated bool      // it may have been sent more than once
	Reason   string    // coded: why it failed or was skipped
	Told     bool      // event.PINExpiring has told of it
}

// NoticeState is a stage of announcing.
type NoticeState string

// The stages: planned → claimed → sent | failed | skipped; a claim that ends
// without result, or a send that may be tried again, is planned once more.
const (
	NoNotice      NoticeState = ""
	NoticePlanned NoticeState = "planned"
	NoticeClaimed NoticeState = "claimed"
	NoticeSent    NoticeState = "sent"
	NoticeFailed  NoticeState = "failed"
	NoticeSkipped NoticeState = "skipped"
)

// dueAt is when the sweep has to look at the user next, and false if never.
func (u User) dueAt() (at time.Time, ok bool) {
	for _, part := range []func() (time.Time, bool){u.PIN.dueAt, u.Pending.dueAt} {
		if t, due := part(); due && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	return at, ok
}

// Fold returns the form in which usernames are compared: compatibility forms
// and case make no difference.
func Fold(username string) string { return cases.Fold().String(norm.NFKC.String(username)) }

// MaxFolded is the longest folded username in bytes: room for 128 letters of any
// script. A few characters fold to many.
const MaxFolded = 512

// Subject names a user in the audit log.
func Subject(id string) string { return "user/" + id }

// Validate reports everything that is wrong with the profile.
func (p Profile) Validate() error {
	var vs problem.Violations
	text := func(field, value string, most int) {
		switch n := utf8.RuneCountInString(value); {
		case !utf8.ValidString(value):
			vs.Add("characters", field, "is not valid UTF-8")
		case n > most:
			vs.Add("length", field, "has %d characters, at most %d are taken", n, most)
		case strings.ContainsFunc(value, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }):
			vs.Add("characters", field, "has control characters or line breaks")
		case strings.TrimSpace(value) != value:
			vs.Add("space", field, "has space around it")
		}
	}
	text("username", p.Username, 128)
	text("displayName", p.DisplayName, 200)
	text("mail", p.Mail, 254)
	text("phone", p.Phone, 40)
	text("staffNumber", p.StaffNumber, 40)
	text("externalId", p.ExternalID, 200)
	if p.Username == "" {
		vs.Add("missing", "username", "is needed")
	}
	if len(Fold(p.Username)) > MaxFolded {
		vs.Add("length", "username", "is too long in the form in which names are compared")
	}
	if p.Mail != "" {
		if _, err := mail.ParseAddress(p.Mail); err != nil || strings.ContainsAny(p.Mail, "<> ") {
			vs.Add("form", "mail", "is not an address alone, such as ada@example.org")
		}
	}
	if strings.ContainsFunc(p.Phone, func(r rune) bool { return !strings.ContainsRune("0123456789+-()/. ", r) }) {
		vs.Add("characters", "phone", "has other characters than digits, spaces and + - ( ) / .")
	}
	if len(p.Groups) > 50 {
		vs.Add("count", "groups", "are %d, at most 50 are taken", len(p.Groups))
	}
	for _, g := range p.Groups {
		if g == "" {
			vs.Add("missing", "groups", "has an empty name")
		}
		text("groups", g, 64)
	}
	return vs.Err()
}

// userRecord is a User as stored.
type userRecord struct {
	tenant table.TenantID
	User
}

// Validate implements table.Record.
func (r userRecord) Validate() error { return r.User.Profile.Validate() }

type stored struct {
	Tenant      table.TenantID `json:"tenant"`
	ID          string         `json:"id"`
	Username    string         `json:"username"`
	DisplayName string         `json:"displayName,omitempty"`
	Mail        string         `json:"mail,omitempty"`
	Phone       string         `json:"phone,omitempty"`
	StaffNumber string         `json:"staffNumber,omitempty"`
	ExternalID  string         `json:"externalId,omitempty"`
	Groups      []string       `json:"groups,omitempty"`
	CreatedAt   time.Time      `json:"createdAt"`
	UpdatedAt   time.Time      `json:"updatedAt"`
	Import      string         `json:"import,omitempty"`
	PIN         storedPIN      `json:"pin,omitzero"`
	Pending     *storedPending `json:"pending,omitempty"`

	MailProblem storedMailProblem `json:"mailProblem,omitzero"`
	MailSince   time.Time         `json:"mailSince,omitzero"`
}

type storedMailProblem struct {
	Kind MailProblemKind `json:"kind"`
	At   time.Time       `json:"at"`
	Code string          `json:"code,omitempty"`
}

type storedPIN struct {
	SetAt         time.Time       `json:"setAt,omitzero"`
	ByKind        audit.ActorKind `json:"byKind,omitempty"`
	ByID          string          `json:"byId,omitempty"`
	ByName        string          `json:"byName,omitempty"`
	PolicyVersion int64           `json:"policyVersion,omitempty"`
	ExpiresAt     time.Time       `json:"expiresAt,omitzero"`
	NotifyAt      time.Time       `json:"notifyAt,omitzero"`
	Notice        storedNotice    `json:"notice,omitzero"`
	Reminders     []int           `json:"reminders,omitempty"`
	NotifiedAt    time.Time       `json:"notifiedAt,omitzero"`
	DeletedAt     time.Time       `json:"deletedAt,omitzero"`
	Deleted       string          `json:"deleted,omitempty"`
	Verifier      string          `json:"verifier,omitempty"`
	Lookup        string          `json:"lookup,omitempty"`
	History       []string        `json:"history,omitempty"`
	OneTime       OneTime         `json:"oneTime,omitempty"`
	Mailed        bool            `json:"mailed,omitempty"`
	Order         string          `json:"order,omitempty"`
}

// upgraded is the form of today: one from when there was one reminder tells neither which it
// is nor, apart from it, when it was sent.
func (p storedPIN) upgraded() storedPIN {
	if n := &p.Notice; n.State != NoNotice && n.Hours == 0 {
		n.Hours = int(p.ExpiresAt.Sub(p.NotifyAt) / time.Hour)
		if n.State == NoticeSent {
			p.NotifiedAt = n.At
		}
	}
	return p
}

// IsZero keeps a PIN that never was out of the stored item.
func (p storedPIN) IsZero() bool { return p.SetAt.IsZero() }

type storedNotice struct {
	Hours    int         `json:"hours,omitempty"`
	State    NoticeState `json:"state,omitempty"`
	At       time.Time   `json:"at,omitzero"`
	Attempts int         `json:"attempts,omitempty"`
	Repeated bool        `json:"repeated,omitempty"`
	Reason   string      `json:"reason,omitempty"`
	Told     bool        `json:"told,omitempty"`
}

// Item implements table.Record.
func (r userRecord) Item() (table.Item, error) {
	u, p := r.User, r.User.PIN
	item := table.Item{
		Key:     table.UserKey(r.tenant, u.ID),
		Indexes: []table.IndexKey{table.UserListed(r.tenant, Fold(u.Profile.Username), u.ID)},
	}
	if at, ok := u.dueAt(); ok {
		item.Indexes = append(item.Indexes, table.UserDue(r.tenant, u.ID, at))
	}
	if at, ok := p.FiledAt(); ok {
		item.Indexes = append(item.Indexes, table.UserPINExpiry(r.tenant, u.ID, at))
	}
	var err error
	item.Data, err = json.Marshal(stored{
		r.tenant, u.ID,
		u.Profile.Username, u.Profile.DisplayName, u.Profile.Mail, u.Profile.Phone, u.Profile.StaffNumber, u.Profile.ExternalID, u.Profile.Groups,
		u.CreatedAt, u.UpdatedAt, u.Import,
		storedPIN{p.SetAt, p.By.Kind, p.By.ID, p.By.Name, p.PolicyVersion, p.ExpiresAt, p.NotifyAt, storedNotice(p.Notice),
			p.Reminders, p.NotifiedAt, p.DeletedAt, p.Deleted, p.verifier, p.lookup, p.history, p.OneTime, p.Mailed, p.order},
		u.Pending.stored(),
		storedMailProblem(u.MailProblem), u.MailSince,
	})
	return item, err
}

func decode(item table.Item) (User, error) {
	_, u, err := decodeDue(item)
	return u, err
}

// decodeDue returns also whose user it is, which the sweep learns only here.
func decodeDue(item table.Item) (table.TenantID, User, error) {
	var s stored
	if err := item.Decode(&s); err != nil {
		return "", User{}, err
	}
	p := s.PIN.upgraded()
	return s.Tenant, User{
		ID:      s.ID,
		Profile: Profile{s.Username, s.DisplayName, s.Mail, s.Phone, s.StaffNumber, s.ExternalID, s.Groups},
		PIN: PIN{p.SetAt, audit.Actor{Kind: p.ByKind, ID: p.ByID, Name: p.ByName}, p.PolicyVersion, p.ExpiresAt, p.NotifyAt, Notice(p.Notice),
			p.Reminders, p.NotifiedAt, p.DeletedAt, p.Deleted, p.OneTime, p.Mailed, p.Verifier, p.Lookup, p.History, p.Order},
		Pending:     s.Pending.pending(),
		MailProblem: MailProblem(s.MailProblem), MailSince: s.MailSince,
		Import: s.Import, CreatedAt: s.CreatedAt, UpdatedAt: s.UpdatedAt, Version: item.Version,
	}, nil
}

// holder is an item that says which user something belongs to: a username, an
// external id, a PIN that identifies.
type holder struct {
	key  table.Key
	user string
}

type storedHolder struct {
	User string `json:"user"`
}

// Validate implements table.Record.
func (h holder) Validate() error { return nil }

// Item implements table.Record.
func (h holder) Item() (table.Item, error) {
	data, err := json.Marshal(storedHolder{h.user})
	return table.Item{Key: h.key, Data: data}, err
}
