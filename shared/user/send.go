package user

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

const (
	sendLease    = 5 * time.Minute  // how long a claim holds: longer than an invocation may last
	sendPatience = 10 * time.Second // with a mail system
	sendReserve  = 5 * time.Second  // of a deadline, for writing what came of it
	sendsAtOnce  = 8                // writes at once
	giveUpAfter  = 24 * time.Hour
	waitForMail  = time.Hour // until it is tried again if no mail can be sent at all
)

// Senders makes what sends with a messaging configuration: mail.Senders.
type Senders interface {
	For(c mail.Configuration) (mail.Sender, error)
}

// Stage is how far a pending PIN has come.
type Stage string

// The stages.
const (
	Activated Stage = "activated" // mailed: it is the user's PIN
	Dropped   Stage = "dropped"   // it never will be
	Postponed Stage = "postponed" // it is tried again
	Overtaken Stage = "overtaken" // somebody else sends it, or it is gone
)

// Sent is what came of sending a pending PIN.
type Sent struct {
	User   User // as it is now; as given if it was overtaken
	Stage  Stage
	Reason string // coded, unless it was activated
	Err    error  // why it could not be sent, or what came of it not be written
}

// IssueAndSend is IssuePIN and then SendIssued. It returns the user as they are after that. If
// the mail system takes no mail for the user that is a Refusal, and the PIN is as it was. late
// is why the PIN is still pending, where that is an error: the sweep goes on with it.
func (us *Users) IssueAndSend(ctx context.Context, core tenant.Core, senders Senders, by audit.Actor, id string, is Issue) (u User, late, err error) {
	if u, err = us.IssuePIN(ctx, core, by, id, is); err != nil {
		return User{}, nil, err
	}
	sent := us.SendIssued(ctx, core, senders, u)[0]
	switch {
	case sent.Err != nil:
	case sent.Stage == Dropped:
		return User{}, nil, &Refusal{Code: "refused", Reason: fmt.Sprintf("the mail system does not take a mail for this user (%s); the PIN is as it was", sent.Reason)}
	case sent.Stage != Overtaken:
		return sent.User, nil, nil
	}
	u, err = us.Get(ctx, core.Tenant.ID, id)
	return u, sent.Err, err
}

// SendIssued mails pending PINs of users of one tenant, as read, and returns what came of each, in order. Each
// is claimed first. A mail that was accepted makes the PIN its user's, in one Write with what
// that leads to; a refused one ends it, and what was there before stays. All else is tried
// again by the sweep, the same mail with the same PIN, for a day. Those with the same messaging
// configuration and template go to the mail system at once.
func (us *Users) SendIssued(ctx context.Context, core tenant.Core, senders Senders, users ...User) []Sent {
	sent := make([]Sent, len(users))
	type stationery struct{ messaging, template string }
	batches := make(map[stationery][]int)
	for i, u := range users {
		now, p := us.Now(), u.Pending
		sent[i] = Sent{User: u, Stage: Overtaken}
		switch {
		case !p.Waits() || now.Before(p.At):
		case !now.Before(p.IssuedAt.Add(giveUpAfter)):
			sent[i] = us.settle(ctx, core, u, func(u *User, w *write) Sent {
				us.drop(ctx, core, p.By, u, "givenUp", w)
				return Sent{Stage: Dropped, Reason: "givenUp"}
			})
		default:
			at := stationery{p.messaging, p.template}
			batches[at] = append(batches[at], i)
		}
	}
	var g errgroup.Group
	g.SetLimit(sendsAtOnce)
	for at, of := range batches {
		g.Go(func() error {
			us.sendBatch(ctx, core, senders, at.messaging, at.template, sent, of)
			return nil
		})
	}
	_ = g.Wait()
	return sent
}

// sendBatch sends the pending PINs of some of the users in sent, and puts what came of it there.
func (us *Users) sendBatch(ctx context.Context, core tenant.Core, senders Senders, messaging, template string, sent []Sent, of []int) {
	each := func(do func(i int)) {
		var g errgroup.Group
		g.SetLimit(sendsAtOnce)
		for _, i := range of {
			g.Go(func() error { do(i); return nil })
		}
		_ = g.Wait()
	}

	sender, letter, why, err := us.post(ctx, core, senders, messaging, template)
	if err != nil {
		each(func(i int) { sent[i] = Sent{Err: err} })
		return
	}
	if why != "" {
		each(func(i int) {
			sent[i] = us.settle(ctx, core, sent[i].User, func(u *User, w *write) Sent {
				return us.postpone(ctx, core, u, us.Now().Add(waitForMail), why, w)
			})
		})
		return
	}

	each(func(i int) { sent[i] = us.claim(ctx, core, sent[i].User) })
	var messages []mail.Message
	var whose []int
	for _, i := range of {
		if sent[i].Err != nil || sent[i].Stage == Overtaken {
			continue
		}
		m, err := us.compose(core, letter, sent[i].User)
		if err != nil {
			sent[i] = us.settle(ctx, core, sent[i].User, func(u *User, w *write) Sent {
				return us.postpone(ctx, core, u, us.Now().Add(waitForMail), "template", w)
			})
			sent[i].Err = cmp.Or(sent[i].Err, err)
			continue
		}
		messages, whose = append(messages, m), append(whose, i)
	}
	if len(messages) == 0 {
		return
	}
	patience := sendPatience
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(deadline)-sendReserve)
	}
	sending, cancel := context.WithTimeout(ctx, patience)
	results := sender.Send(sending, messages)
	cancel()

	// Whoever waited for it may have gone; what came of the mail is written all the same.
	ctx = context.WithoutCancel(ctx)
	result := make(map[int]mail.Result)
	for j, i := range whose {
		result[i] = results[j]
	}
	of = whose
	each(func(i int) {
		sent[i] = us.settle(ctx, core, sent[i].User, func(u *User, w *write) Sent { return us.mailed(ctx, core, u, result[i], w) })
	})
}

// post returns what pending PINs are sent with, or a coded reason why nothing can be sent now.
func (us *Users) post(ctx context.Context, core tenant.Core, senders Senders, messaging, template string) (mail.Sender, mail.Template, string, error) {
	if core.Tenant.Suspended {
		return nil, mail.Template{}, "suspended", nil
	}
	conf, letter, err := us.letter(ctx, core, messaging, template)
	if refusal := (*Refusal)(nil); errors.As(err, &refusal) {
		return nil, letter, refusal.Code, nil
	} else if err != nil {
		return nil, letter, "", err
	}
	sender, err := senders.For(conf)
	if err != nil { // this installation does not have it
		return nil, letter, "messaging", nil
	}
	return sender, letter, "", nil
}

// claim takes it on to send a user's pending PIN: until the lease ends nobody else does. A claim
// that has ended without a result may have sent it.
func (us *Users) claim(ctx context.Context, core tenant.Core, u User) Sent {
	now := us.Now()
	p := &u.Pending
	p.Repeated = p.Repeated || p.Claimed
	p.Claimed, p.At = true, now.Add(sendLease).UTC().Truncate(time.Second)
	p.Attempts++
	p.ExpiresAt = us.end(core, p.validHours)
	err := us.Table.Write(ctx, table.Put(userRecord{core.Tenant.ID, u}, table.IfVersion(u.Version)))
	if errors.Is(err, problem.ErrConflict) {
		return Sent{User: u, Stage: Overtaken}
	} else if err != nil {
		return Sent{Err: fmt.Errorf("claim a pending PIN: %w", err)}
	}
	u.Version++
	return Sent{User: u, Stage: Postponed}
}

// compose writes the mail that tells a claimed PIN.
func (us *Users) compose(core tenant.Core, letter mail.Template, u User) (mail.Message, error) {
	p, settings := u.Pending, core.Tenant.Settings
	plain, err := core.Keys.Open(sealPurpose(u.ID, p.ID), p.sealed)
	if err != nil {
		return mail.Message{}, err
	}
	until := ""
	if !p.ExpiresAt.IsZero() {
		until = mail.FormatTime(p.ExpiresAt, settings.Location(), settings.Language)
	}
	m, err := mail.Render(letter, mail.PINIssuedValues{
		PIN:          secret.New(string(plain)),
		Username:     u.Profile.Username,
		CustomerName: settings.DisplayName,
		Validity:     mail.ValidUntil(until, settings.Language),
		Use:          mail.PINUse(p.OneTime == DeletedByUse, p.OneTime == ChangeAtUse, settings.Language),
	})
	m.ID, m.To, m.Bulk = p.messageID(u.ID), u.Profile.Mail, p.bulk
	return m, err
}

// mailed does what the answer of the mail system means.
func (us *Users) mailed(ctx context.Context, core tenant.Core, u *User, r mail.Result, w *write) Sent {
	p := u.Pending
	switch r.Outcome {
	case mail.Accepted:
		u.Pending = Pending{}
		us.replace(ctx, core, p.By, u, p.accepted, p.ExpiresAt, w)
		u.PIN.OneTime, u.PIN.Mailed, u.PIN.order = p.OneTime, true, p.order
		w.add(us.pinSet(event.Within(ctx, p.chain), core, *u, "generated")...)
		w.add(us.Audit.Op(ctx, core.Tenant.ID, audit.Record{Actor: p.By, Action: "pin.activated", Subject: Subject(u.ID),
			Outcome: audit.Done, Details: p.details(u.ID)}))
		return Sent{Stage: Activated}
	case mail.Refused:
		us.drop(ctx, core, p.By, u, r.Code, w)
		return Sent{Stage: Dropped, Reason: r.Code}
	}
	u.Pending.Repeated = p.Repeated || r.Outcome == mail.Unknown
	return us.postpone(ctx, core, u, us.Now().Add(min(time.Minute<<min(p.Attempts-1, 10), time.Hour)), r.Code, w)
}

// postpone has a pending PIN tried again, at the latest when it is given up.
func (us *Users) postpone(ctx context.Context, core tenant.Core, u *User, at time.Time, reason string, w *write) Sent {
	p := &u.Pending
	if last := p.IssuedAt.Add(giveUpAfter); at.After(last) {
		at = last
	}
	p.Claimed, p.At, p.Reason = false, at.UTC().Truncate(time.Second), reason
	w.add(us.Audit.Op(ctx, core.Tenant.ID, audit.Record{Actor: p.By, Action: "pin.mail", Subject: Subject(u.ID),
		Outcome: audit.Failed, Reason: reason, Details: p.details(u.ID)}))
	return Sent{Stage: Postponed, Reason: reason}
}

// settle writes what becomes of the pending PIN of a user as read. If somebody else has changed
// the user meanwhile, but not the pending PIN, it begins anew.
func (us *Users) settle(ctx context.Context, core tenant.Core, read User, edit func(*User, *write) Sent) Sent {
	u := read
	for range tries {
		old := u
		var w write
		sent := edit(&u, &w)
		w.retag(core, old, u)
		u.UpdatedAt = us.Now().UTC().Truncate(time.Second)
		w.add(table.Put(userRecord{core.Tenant.ID, u}, table.IfVersion(u.Version)))
		again, err := w.do(ctx, us.Table)
		if err == nil {
			u.Version++
			sent.User = u
			return sent
		} else if !again {
			return Sent{Err: fmt.Errorf("record what came of a pending PIN: %w", err)}
		}
		if u, err = us.Get(ctx, core.Tenant.ID, read.ID); errors.Is(err, problem.ErrNotFound) {
			return Sent{User: read, Stage: Overtaken}
		} else if err != nil {
			return Sent{Err: err}
		}
		if p := u.Pending; p.ID != read.Pending.ID || p.Attempts != read.Pending.Attempts || p.Claimed != read.Pending.Claimed {
			return Sent{User: read, Stage: Overtaken}
		}
	}
	return Sent{Err: errBusy}
}
