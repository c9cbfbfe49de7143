package unblock

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

const (
	// noticeTries is how often the mail to a holder is tried, within about a day.
	noticeTries = 12
	// noticeClaim is how long a notice is one caller's to send: longer than that takes.
	noticeClaim = 2 * time.Minute
	// suspendedFor is how long a suspended tenant's notices are put off, so that they are
	// not all there is in a shard.
	suspendedFor = time.Hour
)

// Report is what a sweep of the unblocks has done.
type Report struct {
	Due       int `json:"due"`       // read from the index
	Concluded int `json:"concluded"` // operations whose time was over
	Told      int `json:"told"`      // mails to holders
	Errors    int `json:"errors"`    // left for the next sweep
	// More: shards that had more than the limit.
	More int `json:"more"`
}

// Sweep concludes the operations whose time is over and mails what is still to be mailed,
// up to limit a shard. One operation's error does not stop the rest.
func (us *Unblocks) Sweep(ctx context.Context, limit int) (Report, error) {
	return us.sweep(ctx, limit, table.UnblockDueShards, table.UnblocksDueBefore, us.due)
}

// sweeper goes through what is due: it remembers the tenants it has loaded.
type sweeper struct {
	*Unblocks
	cores map[table.TenantID]tenant.Core
	total Report
}

func (us *Unblocks) sweep(ctx context.Context, limit, shards int, dueBefore func(shard int, at time.Time) table.Range,
	handle func(context.Context, *sweeper, table.Item) error) (Report, error) {
	s := sweeper{us, map[table.TenantID]tenant.Core{}, Report{}}
	var errs []error
	for shard := range shards {
		page, err := us.Table.Query(ctx, dueBefore(shard, us.Now()).Limit(limit))
		if err != nil {
			s.total.Errors++
			errs = append(errs, fmt.Errorf("read what is due: %w", err))
			continue
		}
		if page.More {
			s.total.More++
		}
		for _, item := range page.Items {
			if ctx.Err() != nil {
				return s.total, errors.Join(append(errs, ctx.Err())...)
			}
			s.total.Due++
			if err := handle(ctx, &s, item); err != nil {
				s.total.Errors++
				errs = append(errs, err)
			}
		}
	}
	return s.total, errors.Join(errs...)
}

func (s *sweeper) core(ctx context.Context, t table.TenantID) (tenant.Core, error) {
	core, ok := s.cores[t]
	if ok {
		return core, nil
	}
	core, err := s.Tenants.Load(ctx, t)
	if err == nil {
		s.cores[t] = core
	}
	return core, err
}

func (us *Unblocks) due(ctx context.Context, s *sweeper, item table.Item) error {
	t, found, err := decode(item)
	if err != nil {
		return err
	}
	id := found.ID
	core, err := s.core(ctx, t)
	if err != nil {
		return err
	}
	var concluded, claimed bool
	op, l, err := us.step(ctx, core, system, id, func(_ loaded, m mover, v matter) (matter, []audit.Record, error) {
		n := &v.op.Notice
		concluded, claimed = false, n.State == NoticePlanned && !m.now.Before(n.At)
		switch {
		case claimed && core.Tenant.Suspended:
			claimed = false
			n.At = m.now.Add(suspendedFor).UTC().Truncate(time.Second)
			return v, nil, nil
		case claimed:
			n.At = m.now.Add(noticeClaim).UTC().Truncate(time.Second)
			return v, nil, nil
		}
		if v, concluded = m.conclude(v); !concluded {
			return v, nil, errNothing
		}
		return v, nil, nil
	})
	switch {
	case errors.Is(err, problem.ErrNotFound):
		return us.orphan(ctx, core, found)
	case errors.Is(err, errNothing):
	case err != nil:
		return fmt.Errorf("conclude unblock %s: %w", id, err)
	}
	if concluded {
		s.total.Concluded++
		us.tell(ctx, l, op)
	}
	if !claimed {
		return nil
	}
	told, err := us.announce(ctx, l, op)
	if err != nil {
		return fmt.Errorf("announce unblock %s: %w", id, err)
	}
	if told {
		s.total.Told++
	}
	return nil
}

// orphan ends an operation whose credential, template or bridge is no more, or if it has
// ended, the attempt to tell the holder.
func (us *Unblocks) orphan(ctx context.Context, core tenant.Core, op Operation) error {
	t, was := core.Tenant.ID, op
	op.UpdatedAt = us.Now().UTC().Truncate(time.Millisecond)
	op.PIN, op.Awaits = nil, false
	record := audit.Record{Actor: system, Action: "unblock.notice", Subject: credential.Subject(op.Credential), Outcome: audit.Failed, Reason: "noHolder",
		Details: map[string]string{"operation": op.ID, "state": string(NoticeSkipped)}}
	if op.State.Finished() {
		op.Notice.State, op.Notice.Reason = NoticeSkipped, record.Reason
	} else {
		op.State, op.Reason = Failed, ReasonExpired
		record = ended(op)
	}
	ops := told(ctx, core, us.Now(), was, op, "")
	err := us.Table.Write(ctx, append(ops, put(t, op), us.Audit.Op(ctx, t, record))...)
	if errors.Is(err, problem.ErrConflict) {
		return nil
	}
	return err
}

// announce mails the holder that the PIN was reset, if that is planned. If it cannot be
// mailed now it stays planned, and the sweep tries again. A mail whose answer was lost is
// sent again under the same id. It returns whether the mail was taken.
func (us *Unblocks) announce(ctx context.Context, l loaded, op Operation) (bool, error) {
	if op.Notice.State != NoticePlanned {
		return false, nil
	}
	state, reason := us.send(ctx, l, op)
	_, _, err := us.step(ctx, l.core, system, op.ID, func(_ loaded, m mover, v matter) (matter, []audit.Record, error) {
		if v.op.Notice.State != NoticePlanned {
			return v, nil, errNothing
		}
		outcome := v.op.Notice.tried(state, reason, m.now)
		return v, []audit.Record{{Action: "unblock.notice", Outcome: outcome, Reason: reason, Details: map[string]string{"state": string(state)}}}, nil
	})
	return state == NoticeSent, ignoreNothing(err)
}

// tried notes what came of a try to mail it, and returns how the audit log has that.
func (n *Notice) tried(state NoticeState, reason string, now time.Time) audit.Outcome {
	n.State, n.Reason, n.At = state, reason, now.UTC().Truncate(time.Second)
	n.Attempts++
	switch {
	case state == NoticeSent:
		return audit.Done
	case state == NoticePlanned && n.Attempts >= noticeTries:
		n.State = NoticeFailed
	case state == NoticePlanned:
		n.At = n.At.Add(time.Minute << min(n.Attempts-1, 8))
	}
	return audit.Failed
}

// send mails the holder that the PIN was reset.
func (us *Unblocks) send(ctx context.Context, l loaded, op Operation) (NoticeState, string) {
	cred, err := us.Credentials.Get(ctx, l.core.Tenant.ID, op.Credential)
	if err != nil {
		return NoticePlanned, "internal"
	}
	settings := l.core.Tenant.Settings
	by := mail.ByYourself(settings.Language)
	if !op.mailed() {
		by = named(op.By)
	}
	return us.mailHolder(ctx, l, cred, mail.PINResetID, "pin-reset."+op.ID, func(username string) mail.Values {
		return mail.PINResetValues{
			Username: username, CustomerName: settings.DisplayName, Card: cred.Name(),
			Time: mail.FormatTime(cred.LastPINChange.At, settings.Location(), settings.Language), By: by, Place: l.bridge.Name,
		}
	})
}

// named is what people are told of who acted.
func named(a audit.Actor) string {
	if name := strings.TrimSpace(a.Name); name != "" {
		return name
	}
	return a.ID
}

// mailHolder mails who holds a card, and returns what came of it: planned is to be tried
// again.
func (us *Unblocks) mailHolder(ctx context.Context, l loaded, cred credential.Credential, template, id string, values func(username string) mail.Values) (NoticeState, string) {
	holder, err := us.holder(ctx, l.core, cred)
	switch {
	case errors.Is(err, problem.ErrState):
		return NoticeSkipped, "noHolder"
	case err != nil:
		return NoticePlanned, "internal"
	case holder.Unreachable() != "":
		return NoticeSkipped, holder.Unreachable()
	case l.template.Messaging == "":
		return NoticeSkipped, "noMessaging"
	}
	m, err := us.mailTo(ctx, l, holder, template, id, values(holder.Profile.Username))
	if err != nil {
		us.Log.WarnContext(ctx, "mail to a holder cannot be made", "mail", id, "cause", err)
		return NoticePlanned, "messaging"
	}
	sending, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	switch r := m.sender.Send(sending, []mail.Message{m.message})[0]; r.Outcome {
	case mail.Accepted:
		return NoticeSent, ""
	case mail.Refused:
		us.noMailbox(ctx, l, m.message, r)
		return NoticeFailed, r.Code
	default:
		return NoticePlanned, r.Code
	}
}
