package user

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// MailProblem is why nothing is mailed to a user's address any more; the zero MailProblem is
// none. It is gone with the address, or when it is cleared.
type MailProblem struct {
	Kind MailProblemKind
	At   time.Time
	Code string // coded: what the mail system said
}

// MailProblemKind is what happened to a mail.
type MailProblemKind string

// The kinds.
const (
	MailBounced    MailProblemKind = "bounce"    // it came back, for good
	MailComplaint  MailProblemKind = "complaint" // its receiver complained of it
	MailboxRefused MailProblemKind = "refused"   // there is no such mailbox
)

// Reasons of a mail that was not sent, or came back.
const (
	ReasonUndeliverable = "undeliverable" // the user has a MailProblem
	ReasonBounced       = "bounced"
)

// Unreachable returns why nothing can be mailed to the user: ReasonNoAddress or
// ReasonUndeliverable, or "" if it can.
func (u User) Unreachable() string {
	switch {
	case u.Profile.Mail == "":
		return ReasonNoAddress
	case u.MailProblem != MailProblem{}:
		return ReasonUndeliverable
	}
	return ""
}

// replan plans a reminder again that did not reach its user: now it may.
func (u *User) replan(now time.Time) {
	n := &u.PIN.Notice
	if (n.State == NoticeSkipped || n.State == NoticeFailed) && u.PIN.State(now) == IsSet {
		*n = Notice{Hours: n.Hours, State: NoticePlanned, At: now, Told: n.Told}
	}
}

// fresh forgets what is known of the address of a user who is about to be written, and
// returns what is to be written besides.
func (u *User) fresh(t table.TenantID, now time.Time) (ops []table.Op) {
	if u.MailProblem != (MailProblem{}) {
		ops = append(ops, table.Delete(table.UndeliverableKey(t, u.ID), table.Whatever()))
	}
	u.MailProblem, u.MailSince = MailProblem{}, now
	u.replan(now)
	return ops
}

// spoil notes that the address does not work of a user who is about to be written, and
// returns what is to be written besides: none if that is known.
func (us *Users) spoil(ctx context.Context, core tenant.Core, by audit.Actor, u *User, p MailProblem) []table.Op {
	if u.MailProblem != (MailProblem{}) {
		return nil
	}
	p.At = p.At.UTC().Truncate(time.Second)
	u.MailProblem = p
	if n := &u.PIN.Notice; n.State == NoticeSent && p.Kind == MailBounced {
		n.State, n.Reason = NoticeFailed, ReasonBounced // so that a new address has it sent again
	}
	t := core.Tenant.ID
	record := audit.Record{Actor: by, Action: "mail.undeliverable", Subject: Subject(u.ID), Outcome: audit.Failed, Reason: string(p.Kind), Details: map[string]string{"code": p.Code}}
	return append(event.Ops(ctx, core, us.Now(), event.Event{Type: event.MailBounced, User: u.ID, Attributes: map[string]string{"kind": string(p.Kind)}}, fmt.Sprintf("%s/%d", u.ID, u.Version+1)),
		table.Put(spoilt{table.UndeliverableKey(t, u.ID), u.ID, p.At}, table.Absent()), us.Audit.Op(ctx, t, record))
}

// spoilt points to a user whose address does not work.
type spoilt struct {
	key  table.Key
	user string
	at   time.Time
}

type storedSpoilt struct {
	User string    `json:"user"`
	At   time.Time `json:"at"`
}

// Validate implements table.Record.
func (s spoilt) Validate() error { return nil }

// Item implements table.Record.
func (s spoilt) Item() (table.Item, error) {
	data, err := json.Marshal(storedSpoilt{s.user, s.at})
	return table.Item{Key: s.key, Data: data}, err
}

// SpoiltSince counts the users whose address does not work, and those of whom that is known
// since a time, as far as one look reaches; then there may be more.
func (us *Users) SpoiltSince(ctx context.Context, t table.TenantID, since time.Time) (total, lately int, more bool, _ error) {
	page, next, err := table.Merge(ctx, us.Table, table.Undeliverables(t), table.MaxLimit, "")
	if err != nil {
		return 0, 0, false, fmt.Errorf("count users whose address does not work: %w", err)
	}
	for _, item := range page.Items {
		var s storedSpoilt
		if err := item.Decode(&s); err != nil {
			return 0, 0, false, err
		}
		if !s.At.Before(since) {
			lately++
		}
	}
	return len(page.Items), lately, next != "", nil
}

// MailFailed notes that a mail to an address, sent at a time, did not reach the user and that
// none will. It returns false if that is not of the address that the user has by now, or is
// known already.
func (us *Users) MailFailed(ctx context.Context, core tenant.Core, by audit.Actor, id, address string, sentAt time.Time, p MailProblem) (bool, error) {
	for range tries {
		u, err := us.Get(ctx, core.Tenant.ID, id)
		if err != nil {
			return false, err
		}
		if !sameAddress(u.Profile.Mail, address) || sentAt.Before(u.MailSince) {
			return false, nil
		}
		var w write
		if w.add(us.spoil(ctx, core, by, &u, p)...); len(w.ops) == 0 {
			return false, nil
		}
		u.UpdatedAt = us.Now().UTC().Truncate(time.Second)
		done, err := us.putDue(ctx, core.Tenant.ID, u, w)
		if done || err != nil {
			return done, wrapped("mark address", err)
		}
	}
	return false, errBusy
}

// sameAddress compares addresses as they are and as mail systems have them.
func sameAddress(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	plain := func(s string) string {
		if p, err := mail.ParseAddress(s); err == nil {
			s = p.Address
		}
		return foldMail(s)
	}
	return plain(a) == plain(b)
}

// ClearMailProblem lets mails be sent to the user's address again. That there is no problem
// is as good.
func (us *Users) ClearMailProblem(ctx context.Context, core tenant.Core, by audit.Actor, id string) (User, error) {
	t := core.Tenant.ID
	for range tries {
		u, err := us.Get(ctx, t, id)
		if err != nil || u.MailProblem == (MailProblem{}) {
			return u, err
		}
		now := us.Now().UTC().Truncate(time.Second)
		var w write
		w.add(us.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "mail.cleared", Subject: Subject(id), Outcome: audit.Done, Reason: string(u.MailProblem.Kind)}))
		w.add(u.fresh(t, now)...)
		u.UpdatedAt = now
		done, err := us.putDue(ctx, t, u, w)
		if err != nil {
			return User{}, wrapped("clear mail problem", err)
		}
		if done {
			u.Version++
			return u, nil
		}
	}
	return User{}, errBusy
}

// Undeliverable returns up to limit users whose address does not work, by id, beyond the
// place given ("" is the start), and the place to go on from, "" if there are no more.
func (us *Users) Undeliverable(ctx context.Context, t table.TenantID, beyond string, limit int) ([]User, string, error) {
	page, next, err := table.Merge(ctx, us.Table, table.Undeliverables(t), limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list users whose address does not work: %w", err)
	}
	found := make([]User, len(page.Items))
	var g errgroup.Group
	g.SetLimit(8)
	for i, item := range page.Items {
		g.Go(func() (err error) {
			if found[i], err = us.Get(ctx, t, item.Key.Sort()); errors.Is(err, problem.ErrNotFound) {
				return nil // deleted since
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, "", err
	}
	users := found[:0]
	for _, u := range found {
		if u.Unreachable() == ReasonUndeliverable {
			users = append(users, u)
		}
	}
	return users, next, nil
}

// Bounces takes in what SES tells of mails that came back or were complained of. All fields
// must be set.
type Bounces struct {
	Users   *Users
	Tenants *tenant.Tenants
	Log     *slog.Logger
}

// bouncer is who the audit log says did it.
var bouncer = audit.Actor{Kind: audit.System, ID: "bounces"}

// Handle takes in one notification of SES, in any of the shapes that mail.ParseBounces reads:
// it marks the address of the user whom the mail was for. A notification of a mail that is
// nobody's, of a former address, or that does not mean that mails will not arrive, changes
// nothing. The same notification again is as good as once. An error is to be tried again, but
// for a problem.InvalidError: that is no notification of SES.
func (b *Bounces) Handle(ctx context.Context, raw json.RawMessage) error {
	bounces, err := mail.ParseBounces(raw)
	if err != nil {
		return err
	}
	for _, one := range bounces {
		if err := b.one(ctx, one); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bounces) one(ctx context.Context, n mail.Bounce) error {
	kind := MailBounced
	if n.Complaint {
		kind = MailComplaint
	}
	log := func(what string) {
		b.Log.InfoContext(ctx, "mail came back", "outcome", what, "kind", kind, "code", n.Code)
	}
	if !n.Permanent {
		log("passing")
		return nil
	}
	if n.Tenant == "" || n.User == "" {
		log("nobody's") // not sent by Pinward, or told without its tags
		return nil
	}
	core, err := b.Tenants.Load(ctx, n.Tenant)
	if err == nil {
		var marked bool
		if marked, err = b.Users.MailFailed(ctx, core, bouncer, n.User, n.Address, n.SentAt, MailProblem{kind, n.At, n.Code}); marked {
			log("marked")
		} else if err == nil {
			log("known, or of a former address")
		}
	}
	if errors.Is(err, problem.ErrNotFound) {
		log("nobody's")
		return nil
	}
	return wrapped("take in a bounce", err)
}
