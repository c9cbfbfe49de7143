package user

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// OneTime says what the use of a PIN leads to.
type OneTime string

// What there is. A PIN that is to be changed goes on verifying, with the answer that it is to
// be changed, so that its owner can be led to do so. One that is for one use is gone in the
// Write of its first right answer.
const (
	ManyTimes    OneTime = ""
	ChangeAtUse  OneTime = "change"
	DeletedByUse OneTime = "delete"
)

// Issue says what PIN is to be generated and mailed.
type Issue struct {
	Options    pin.GenerateOptions // its Context is the user's own, whatever is given
	Messaging  string              // configuration; "" for the tenant's for expiry mails
	Template   string              // of kind mail.PINIssued; "" for the predefined one
	ValidHours int                 // 0 for as long as the policy says; never longer
	OneTime    OneTime
	Bulk       bool // it is one of many, whose mails let urgent ones go first

	// Order, if it is not "", names the order: the same for the same user again is ErrIssued,
	// as long as the PIN that it led to is there.
	Order string

	// If, unless it is nil, is asked of the user as read for the Write. If it is not so any
	// more, nothing is done: ErrNotWanted.
	If func(User) bool
}

// maxValidHours is ten years, as in policies.
const maxValidHours = 10 * 365 * 24

// Validate reports everything that is wrong with it, but for what the policy has against it.
func (is Issue) Validate() error {
	var vs problem.Violations
	if is.ValidHours < 0 || is.ValidHours > maxValidHours {
		vs.Add("range", "validHours", "must be from 0, for as long as the policy says, to %d", maxValidHours)
	}
	if !slices.Contains([]OneTime{ManyTimes, ChangeAtUse, DeletedByUse}, is.OneTime) {
		vs.Add("unknown", "oneTime", "must be %s, %s or left out", ChangeAtUse, DeletedByUse)
	}
	return vs.Err()
}

// with names what is used where nothing is named.
func (is Issue) with(core tenant.Core) Issue {
	if is.Messaging == "" {
		is.Messaging = core.Tenant.Settings.ExpiryMail.Messaging
	}
	if is.Template == "" {
		is.Template = mail.PINIssuedID
	}
	return is
}

// Refusal is why no PIN is generated and mailed, and nothing changed. It is a
// problem.ErrState.
type Refusal struct {
	Code   string // for programs and records
	Reason string // for people
}

// Error implements error.
func (r *Refusal) Error() string { return problem.ErrState.Error() + ": " + r.Reason }

// Unwrap makes it a problem.ErrState.
func (r *Refusal) Unwrap() error { return problem.ErrState }

// The refusals.
var (
	ErrNoPIN         = &Refusal{"noPin", "the user has no PIN"}
	ErrNoAddress     = &Refusal{"noAddress", "the user has no mail address, and nobody else may see the PIN"}
	ErrUndeliverable = &Refusal{"undeliverable", "the user's mail address is known not to work; change it, or clear its mark"}
	ErrNoMessaging   = &Refusal{"noMessaging", "there is no messaging configuration to mail the PIN with; name one, or select one for expiry mails in the settings"}
	ErrNoTemplate    = &Refusal{"noTemplate", "the mail template does not exist, or is not of kind pin-issued"}
	ErrOnItsWay      = &Refusal{"onItsWay", "a generated PIN is on its way to the user already; delete the PIN to stop it"}
	ErrIssued        = &Refusal{"issued", "the PIN of this order was issued already"}
	ErrJustMailed    = &Refusal{"justMailed", "a generated PIN was mailed to the user a moment ago"}
	ErrNotWanted     = &Refusal{"notWanted", "the user has changed meanwhile, so that no PIN is wanted any more"}
	ErrAllTaken      = &Refusal{"allTaken", "nearly all PINs of that length are taken; make the policy's PINs longer"}
)

// RefusalCode is the coded reason in an error of IssuePIN: a Refusal's, a limit's, "policy" if
// the policy has no such PIN, "notFound", or "" if it is none of these and may pass.
func RefusalCode(err error) string {
	var refusal *Refusal
	var limit *problem.LimitError
	var invalid *problem.InvalidError
	switch {
	case errors.As(err, &refusal):
		return refusal.Code
	case errors.As(err, &limit):
		return limit.Code
	case errors.As(err, &invalid):
		return "policy"
	case errors.Is(err, problem.ErrNotFound):
		return "notFound"
	}
	return ""
}

// Pending is a generated PIN that is not its user's yet: it becomes that when a mail system
// has accepted the mail that tells it. Until then a PIN that was there stays in force. It
// is for the mail address that the user has: a new address, or another PIN, ends it.
type Pending struct {
	ID       string // a ULID
	IssuedAt time.Time
	By       audit.Actor
	OneTime  OneTime

	Claimed   bool      // somebody is sending it
	At        time.Time // when to send; if claimed, when the claim ends
	ExpiresAt time.Time // of the PIN, as the last mail told it; zero is never
	Attempts  int       // sends begun
	Repeated  bool      // it may have been sent more than once
	Reason    string    // coded: why the last send failed

	accepted
	sealed              []byte
	order               string
	validHours          int
	bulk                bool
	messaging, template string
	chain               []string // of the rules that led to it
}

// Waits tells whether there is one.
func (p Pending) Waits() bool { return p.ID != "" }

func (p Pending) dueAt() (time.Time, bool) { return p.At, p.Waits() }

// MessageID names the mail, however often it is sent, for the user.
func (p Pending) messageID(user string) string { return "pin-issued." + user + "." + p.ID }

func sealPurpose(user, pending string) string { return "user/" + user + "/pending/" + pending }

// mailable refuses a user whom no mail reaches.
func mailable(u User) error {
	switch u.Unreachable() {
	case ReasonNoAddress:
		return ErrNoAddress
	case ReasonUndeliverable:
		return ErrUndeliverable
	}
	return nil
}

// IssuePIN generates a PIN that only its owner's mail tells. It is pending until SendIssued,
// which is to be called next, has mailed it; the sweep does so with what is left. The generated
// PIN is in no answer and no record, and in the table sealed until it is mailed.
//
// While one is pending another is refused (ErrOnItsWay), and so is one within two minutes
// of a mailed one (ErrJustMailed): whoever asks twice, or by two rules, gets one PIN and one
// mail. What else is refused without any change is a Refusal, an InvalidError of the policy,
// or a LimitError; RefusalCode tells which. with are further ops of the same Write; if a
// condition of theirs does not hold that is the error.
func (us *Users) IssuePIN(ctx context.Context, core tenant.Core, by audit.Actor, id string, is Issue, with ...table.Op) (User, error) {
	if err := is.Validate(); err != nil {
		return User{}, err
	}
	is = is.with(core)
	checked := false
	for range generateTries {
		u, err := us.changePIN(ctx, core, by, id, "pin.issued", func(u *User, w *write) error {
			switch {
			case is.Order != "" && (u.Pending.order == is.Order || u.PIN.verifier != "" && u.PIN.order == is.Order):
				return ErrIssued
			case is.If != nil && !is.If(*u):
				return ErrNotWanted
			case u.Pending.Waits():
				return ErrOnItsWay
			case u.PIN.Mailed && u.PIN.verifier != "" && us.Now().Sub(u.PIN.SetAt) < sameCall:
				return ErrJustMailed
			}
			if err := mailable(*u); err != nil {
				return err
			}
			if !checked {
				if _, _, err := us.letter(ctx, core, is.Messaging, is.Template); err != nil {
					return err
				}
				checked = true
			}
			made, a, err := us.generate(ctx, core, by, *u, is.Options, w)
			if err != nil {
				return err
			}
			if u.Pending, err = us.pending(ctx, core, by, u.ID, is, made, a); err != nil {
				return err
			}
			return nil
		}, with...)
		if errors.Is(err, ErrPINTaken) {
			continue
		}
		return u, err
	}
	return User{}, ErrAllTaken
}

func (us *Users) pending(ctx context.Context, core tenant.Core, by audit.Actor, user string, is Issue, made secret.Text, a accepted) (Pending, error) {
	now := us.Now()
	id, err := ulid.New(ulid.Timestamp(now), us.Rand)
	if err != nil {
		return Pending{}, fmt.Errorf("name a pending PIN: %w", err)
	}
	p := Pending{ID: id.String(), IssuedAt: now.UTC().Truncate(time.Second), By: by, OneTime: is.OneTime, accepted: a,
		order: is.Order, validHours: is.ValidHours, bulk: is.Bulk, messaging: is.Messaging, template: is.Template, chain: event.Chain(ctx)}
	p.At = p.IssuedAt
	if p.sealed, err = core.Keys.Seal(sealPurpose(user, p.ID), []byte(made.Reveal())); err != nil {
		return Pending{}, fmt.Errorf("seal a pending PIN: %w", err)
	}
	return p, nil
}

// letter loads what a PIN is mailed with.
func (us *Users) letter(ctx context.Context, core tenant.Core, messaging, template string) (mail.Configuration, mail.Template, error) {
	if messaging == "" {
		return mail.Configuration{}, mail.Template{}, ErrNoMessaging
	}
	store := mail.Store{Table: us.Table, Tenant: core.Tenant.ID, Keys: core.Keys}
	conf, err := store.WithPassword(ctx, messaging)
	if errors.Is(err, problem.ErrNotFound) {
		return mail.Configuration{}, mail.Template{}, ErrNoMessaging
	} else if err != nil {
		return mail.Configuration{}, mail.Template{}, err
	}
	t, err := store.Template(ctx, template, core.Tenant.Settings.Language)
	if errors.Is(err, problem.ErrNotFound) || err == nil && t.Kind != mail.PINIssued {
		return mail.Configuration{}, mail.Template{}, ErrNoTemplate
	}
	return conf, t, err
}

// drop ends the pending PIN of a user who is about to be written, and records why.
func (us *Users) drop(ctx context.Context, core tenant.Core, by audit.Actor, u *User, reason string, w *write) {
	w.add(us.Audit.Op(ctx, core.Tenant.ID, audit.Record{Actor: by, Action: "pin.dropped", Subject: Subject(u.ID),
		Outcome: audit.Failed, Reason: reason, Details: u.Pending.details(u.ID)}))
	u.Pending = Pending{}
}

// details are what records say of a pending PIN.
func (p Pending) details(user string) map[string]string {
	d := map[string]string{"policyVersion": fmt.Sprint(p.policyVersion), "attempt": fmt.Sprint(p.Attempts), "messageId": p.messageID(user)}
	if p.Repeated {
		d["possiblyRepeated"] = "true"
	}
	return d
}

// RequireChange marks the user's PIN as one that is to be changed: it goes on verifying,
// and each right answer says so until there is a new one. That there is none is
// problem.ErrState; that it is marked already, or gone with its use, changes nothing. with are
// further ops of the same Write; if a condition of theirs does not hold that is the error.
func (us *Users) RequireChange(ctx context.Context, core tenant.Core, by audit.Actor, id string, with ...table.Op) (User, error) {
	return us.changePIN(ctx, core, by, id, "pin.changeRequired", func(u *User, w *write) error {
		if u.PIN.verifier == "" {
			return ErrNoPIN
		}
		if u.PIN.OneTime != ManyTimes {
			return errNothing
		}
		u.PIN.OneTime = ChangeAtUse
		return nil
	}, with...)
}

// CheckIssue returns why IssuePIN would be refused, as far as that can be told without doing
// it. It changes nothing.
func (us *Users) CheckIssue(ctx context.Context, core tenant.Core, u User, is Issue) error {
	if err := is.Validate(); err != nil {
		return err
	}
	if u.Pending.Waits() {
		return ErrOnItsWay
	}
	if err := mailable(u); err != nil {
		return err
	}
	if _, _, err := us.letter(ctx, core, cmp.Or(is.Messaging, core.Tenant.Settings.ExpiryMail.Messaging), cmp.Or(is.Template, mail.PINIssuedID)); err != nil {
		return err
	}
	users, err := us.countFor(ctx, core, new(write))
	if err != nil {
		return err
	}
	is.Options.Context = aboutUser(u.Profile, users)
	_, err = core.Policy.Generate(us.Rand, is.Options)
	return err
}

type storedPending struct {
	ID            string          `json:"id"`
	IssuedAt      time.Time       `json:"issuedAt"`
	ByKind        audit.ActorKind `json:"byKind,omitempty"`
	ByID          string          `json:"byId,omitempty"`
	ByName        string          `json:"byName,omitempty"`
	OneTime       OneTime         `json:"oneTime,omitempty"`
	Claimed       bool            `json:"claimed,omitempty"`
	At            time.Time       `json:"at"`
	ExpiresAt     time.Time       `json:"expiresAt,omitzero"`
	Attempts      int             `json:"attempts,omitempty"`
	Repeated      bool            `json:"repeated,omitempty"`
	Reason        string          `json:"reason,omitempty"`
	Verifier      string          `json:"verifier"`
	Lookup        string          `json:"lookup,omitempty"`
	PolicyVersion int64           `json:"policyVersion"`
	Sealed        []byte          `json:"sealed"`
	Order         string          `json:"order,omitempty"`
	ValidHours    int             `json:"validHours,omitempty"`
	Bulk          bool            `json:"bulk,omitempty"`
	Messaging     string          `json:"messaging"`
	Template      string          `json:"template"`
	Chain         []string        `json:"chain,omitempty"`
}

func (p Pending) stored() *storedPending {
	if !p.Waits() {
		return nil
	}
	return &storedPending{p.ID, p.IssuedAt, p.By.Kind, p.By.ID, p.By.Name, p.OneTime, p.Claimed, p.At, p.ExpiresAt, p.Attempts, p.Repeated, p.Reason,
		p.verifier, p.lookup, p.policyVersion, p.sealed, p.order, p.validHours, p.bulk, p.messaging, p.template, p.chain}
}

func (s *storedPending) pending() Pending {
	if s == nil {
		return Pending{}
	}
	return Pending{s.ID, s.IssuedAt, audit.Actor{Kind: s.ByKind, ID: s.ByID, Name: s.ByName}, s.OneTime, s.Claimed, s.At, s.ExpiresAt, s.Attempts, s.Repeated, s.Reason,
		accepted{s.Verifier, s.Lookup, s.PolicyVersion}, s.Sealed, s.Order, s.ValidHours, s.Bulk, s.Messaging, s.Template, s.Chain}
}
