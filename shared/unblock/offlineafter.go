package unblock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Reported takes in what a bridge says it has done by itself. Once it returns nil the bridge
// may forget it. The answer that the card's last PIN change is presumed by is confirmed, or
// what was presumed taken back; that nothing is known leaves it. That the holder has changed
// the PIN sets its expiry anew, unless there was a later change.
func (us *Unblocks) Reported(ctx context.Context, core tenant.Core, bridge string, r relay.Offline) error {
	t := core.Tenant.ID
	for range tries {
		cred, err := us.Credentials.Get(ctx, t, r.Credential)
		if errors.Is(err, problem.ErrNotFound) {
			us.Log.InfoContext(ctx, "offline unblock of an unknown card reported", "bridge", bridge)
			return nil
		} else if err != nil {
			return err
		}
		lately, err := us.answersOf(ctx, t, "card/"+cred.ID)
		if err != nil {
			return err
		}
		report := bridge + "/" + r.ID
		if slices.Contains(lately.Reports, report) {
			return nil
		}
		lately.Reports = remember(lately.Reports, report)
		a, tmpl, err := us.presumption(ctx, t, cred)
		if err != nil {
			return err
		}
		now := us.Now().UTC().Truncate(time.Second)
		if r.Change {
			err = us.Table.Write(ctx, append(us.changed(ctx, core, bridge, r, cred, tmpl, now), lately.put())...)
			if errors.Is(err, problem.ErrConflict) {
				continue
			} else if err != nil {
				return fmt.Errorf("note a holder's change: %w", err)
			}
			return nil
		}
		record := audit.Record{Actor: audit.Actor{Kind: audit.Bridge, ID: bridge}, Action: "offline.reported", Subject: credential.Subject(cred.ID), Outcome: audit.Done,
			Details: map[string]string{"bridge": bridge, "at": r.At.UTC().Format(time.RFC3339), "pinChanged": string(r.PIN)}}
		if r.PIN == relay.No {
			record.Outcome = audit.Failed
		}
		was := cred
		ops := []table.Op{lately.put()}
		if a.Bridge == bridge && r.PIN != relay.Unknown {
			record.Details["answer"] = a.ID
			cred = a.known(cred, tmpl, r.PIN == relay.Yes, now)
			a.State = stateOf(r.PIN == relay.Yes)
			ops = append(ops, table.Put(answerRecord{t, a}, table.IfVersion(a.Version)))
		}
		if r.TriesLeft != nil && !cred.Custody.None() && !cred.Leased(now) {
			record.Details["pukTriesLeft"] = fmt.Sprint(*r.TriesLeft)
			// What is still on its way to the card is older than this.
			cred = cred.Release()
			cred.Lease.Fence++
			cred.Custody = cred.Custody.Observe(card.RetryCounter{Known: true, TriesLeft: *r.TriesLeft})
		}
		cred.UpdatedAt = now
		ops = append(append(ops, credential.Put(t, was, cred)...), us.Audit.Op(ctx, t, record))
		if err := us.Table.Write(ctx, ops...); errors.Is(err, problem.ErrConflict) {
			continue
		} else if err != nil {
			return fmt.Errorf("note an offline unblock: %w", err)
		}
		return nil
	}
	return errBusy
}

// changed notes that the holder has changed the card's PIN, has tried to, or may have. The
// bridge's clock is not trusted to be right: it may say no more than that it was before now.
func (us *Unblocks) changed(ctx context.Context, core tenant.Core, bridge string, r relay.Offline, cred credential.Credential, tmpl credential.Template, now time.Time) []table.Op {
	t, at := core.Tenant.ID, r.At.UTC().Truncate(time.Second)
	if at.After(now) {
		at = now
	}
	record := audit.Record{Actor: audit.Actor{Kind: audit.Bridge, ID: bridge}, Action: credential.PINChangedAction, Subject: credential.Subject(cred.ID), Outcome: audit.Failed,
		Details: map[string]string{"how": string(credential.ChangedByHolder), "bridge": bridge, "at": at.Format(time.RFC3339), "pinChanged": string(r.PIN)}}
	if r.TriesLeft != nil {
		record.Details["pinTriesLeft"] = fmt.Sprint(*r.TriesLeft)
	}
	if r.PIN != relay.Yes {
		record.Reason = map[relay.Done]string{relay.No: "notChanged", relay.Unknown: string(card.OutcomeUnknown)}[r.PIN]
		return []table.Op{us.Audit.Op(ctx, t, record)}
	}
	is, err := cred.ChangedByHolder(at, tmpl, now)
	if err != nil {
		record.Outcome, record.Reason = audit.Refused, "overtaken"
		if errors.Is(err, problem.ErrState) {
			record.Reason = string(cred.State)
		}
		return []table.Op{us.Audit.Op(ctx, t, record)}
	}
	record.Outcome = audit.Done
	if is.State != cred.State {
		record.Details["from"], record.Details["state"] = string(cred.State), string(is.State)
	}
	is.UpdatedAt = now
	check := table.Check(table.CardTemplateKey(t, tmpl.ID), table.IfVersion(tmpl.Version))
	return append(credential.Put(t, cred, is), check, us.Audit.Op(ctx, t, record))
}

func stateOf(reset bool) AnswerState {
	if reset {
		return AnswerConfirmed
	}
	return AnswerRefuted
}

// presumption returns the answer by which a card's last PIN change is presumed, with the
// card's template; the zero Answer if it is not.
func (us *Unblocks) presumption(ctx context.Context, t table.TenantID, c credential.Credential) (a Answer, tmpl credential.Template, err error) {
	if tmpl, err = us.Credentials.Template(ctx, t, c.Template); err != nil || !c.LastPINChange.Presumed {
		return a, tmpl, err
	}
	if a, err = us.Answer(ctx, t, c.LastPINChange.Operation); errors.Is(err, problem.ErrNotFound) {
		err = nil
	}
	return a, tmpl, err
}

// known is the credential once it is known whether the presumed reset was done.
func (a Answer) known(c credential.Credential, tmpl credential.Template, reset bool, now time.Time) credential.Credential {
	if reset {
		c.LastPINChange.Presumed = false
		return c
	}
	return a.refute(c, tmpl, now)
}

// SeenOffline is told of a card that was identified in a reader, before Seen. A presumed
// reset is confirmed if the card's PIN is not blocked. If it is, and the answer is good no
// more, the reset is taken back: whoever has used it has blocked the PIN again. A card that
// does not tell leaves it.
func (us *Unblocks) SeenOffline(ctx context.Context, core tenant.Core, r tenant.Reader) error {
	t, tried := core.Tenant.ID, r.Identify.Identity.PIN
	for range tries {
		cred, err := us.Credentials.Get(ctx, t, r.Credential)
		if errors.Is(err, problem.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		if !cred.LastPINChange.Presumed || !tried.Known {
			return nil
		}
		a, tmpl, err := us.presumption(ctx, t, cred)
		if err != nil || a.ID == "" {
			return err
		}
		reset, now := tried.TriesLeft > 0, us.Now().UTC().Truncate(time.Second)
		if !reset && now.Before(a.GivenAt.Add(shownFor)) {
			return nil // the person may be about to use it
		}
		was := cred
		cred = a.known(cred, tmpl, reset, now)
		cred.UpdatedAt = now
		a.State = stateOf(reset)
		record := audit.Record{Actor: system, Action: "offline." + string(a.State), Subject: credential.Subject(cred.ID), Outcome: audit.Done,
			Details: map[string]string{"answer": a.ID}}
		ops := append([]table.Op{table.Put(answerRecord{t, a}, table.IfVersion(a.Version)), us.Audit.Op(ctx, t, record)}, credential.Put(t, was, cred)...)
		if err := us.Table.Write(ctx, ops...); errors.Is(err, problem.ErrConflict) {
			continue
		} else if err != nil {
			return fmt.Errorf("note a card seen after an offline answer: %w", err)
		}
		return nil
	}
	return errBusy
}

// SweepAnswers mails what is still to be mailed about answers, up to limit a shard. One
// answer's error does not stop the rest.
func (us *Unblocks) SweepAnswers(ctx context.Context, limit int) (Report, error) {
	return us.sweep(ctx, limit, table.OfflineDueShards, table.OfflineAnswersDueBefore, func(ctx context.Context, s *sweeper, item table.Item) error {
		err := us.answerDue(ctx, s, item)
		if err == nil {
			s.total.Told++
		}
		return err
	})
}

// answerDue claims the notice of an answer and sends it.
func (us *Unblocks) answerDue(ctx context.Context, s *sweeper, item table.Item) error {
	t, found, err := decodeAnswer(item)
	if err != nil {
		return err
	}
	core, err := s.core(ctx, t)
	if err != nil {
		return err
	}
	now := us.Now()
	a, err := us.Answer(ctx, t, found.ID) // the index may lag
	if err != nil || a.Notice.State != NoticePlanned || now.Before(a.Notice.At) {
		return err
	}
	a.Notice.At = now.Add(noticeClaim).UTC().Truncate(time.Second)
	if core.Tenant.Suspended {
		a.Notice.At = now.Add(suspendedFor).UTC().Truncate(time.Second)
	}
	if err := us.Table.Write(ctx, table.Put(answerRecord{t, a}, table.IfVersion(a.Version))); errors.Is(err, problem.ErrConflict) {
		return nil // somebody else is at it
	} else if err != nil {
		return fmt.Errorf("claim the notice of an offline answer: %w", err)
	}
	a.Version++
	if core.Tenant.Suspended {
		return nil
	}
	return us.announceAnswer(ctx, core, a)
}

// announceAnswer mails the holder that an answer was given out, and notes what came of it.
func (us *Unblocks) announceAnswer(ctx context.Context, core tenant.Core, a Answer) error {
	state, reason := us.mailAnswer(ctx, core, a)
	for range tries {
		if a.Notice.State != NoticePlanned {
			return nil
		}
		record := audit.Record{Actor: system, Action: "offline.notice", Subject: credential.Subject(a.Credential), Outcome: a.Notice.tried(state, reason, us.Now()), Reason: reason,
			Details: map[string]string{"answer": a.ID, "state": string(state)}}
		err := us.Table.Write(ctx, table.Put(answerRecord{core.Tenant.ID, a}, table.IfVersion(a.Version)), us.Audit.Op(ctx, core.Tenant.ID, record))
		if err == nil {
			return nil
		} else if !errors.Is(err, problem.ErrConflict) {
			return fmt.Errorf("note the notice of an offline answer: %w", err)
		}
		if a, err = us.Answer(ctx, core.Tenant.ID, a.ID); err != nil {
			return err
		}
	}
	return errBusy
}

// mailAnswer mails the holder, and returns what came of it: planned is to be tried again.
func (us *Unblocks) mailAnswer(ctx context.Context, core tenant.Core, a Answer) (NoticeState, string) {
	l := loaded{core: core}
	cred, err := us.Credentials.Get(ctx, core.Tenant.ID, a.Credential)
	if err == nil {
		l.template, err = us.Credentials.Template(ctx, core.Tenant.ID, cred.Template)
	}
	if errors.Is(err, problem.ErrNotFound) {
		return NoticeSkipped, "noHolder"
	} else if err != nil {
		return NoticePlanned, "internal"
	}
	settings := core.Tenant.Settings
	return us.mailHolder(ctx, l, cred, mail.OfflineAnswerID, "offline-answer."+a.ID, func(username string) mail.Values {
		return mail.OfflineAnswerValues{
			Username: username, CustomerName: settings.DisplayName, Card: cred.Name(),
			Time: mail.FormatTime(a.GivenAt, settings.Location(), settings.Language), By: named(a.By),
		}
	})
}
