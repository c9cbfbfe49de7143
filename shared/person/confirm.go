package person

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Fresh tells whether it was made sure within the last FreshFor that the session is still the
// person's: they signed in, or confirmed. What is sensitive asks for it.
func (ps *People) Fresh(s Session) bool { return ps.Now().Before(s.ConfirmedAt.Add(FreshFor)) }

// BeginConfirm mails a code to the session's person, which takes the place of an earlier one.
// Errors are *problem.LimitError; problem.ErrState if the tenant has no way to send mail;
// problem.ErrUnavailable if the mail could not be sent.
func (ps *People) BeginConfirm(ctx context.Context, core tenant.Core, s Session) error {
	configurations, err := mail.Store{Table: ps.Table, Tenant: s.Tenant}.Configurations(ctx)
	if err != nil {
		return err
	}
	letter, err := ps.post(ctx, core, configurations, mail.ConfirmCodeID)
	if errors.Is(err, problem.ErrNotFound) {
		return fmt.Errorf("%w: no code can be mailed, for the organisation has no messaging configuration", problem.ErrState)
	} else if err != nil {
		return err
	}
	id, err := ps.newID()
	if err != nil {
		return err
	}
	code, err := ps.newCode()
	if err != nil {
		return err
	}
	print, err := fingerprint(core, s.ID, code)
	if err != nil {
		return err
	}
	limits := budgets(s.Tenant, s.Mail, "")
	for range tries {
		counts, err := ps.reserve(ctx, limits)
		if err != nil {
			return err
		}
		if s, err = ps.reread(ctx, s); err != nil {
			return err
		}
		s.confirm = confirmation{print, codeTries, ps.Now().Add(MailLife).UTC().Truncate(time.Second)}
		session := []table.Op{table.Put(sessionRecord{s}, table.IfVersion(s.stored))}
		err = ps.counted(ctx, limits, counts, session...)
		if err == nil {
			err = ps.send(ctx, letter, s.Language, "confirm-code."+id, s.Mail, mail.ConfirmCodeValues{
				Code: code, Minutes: int(MailLife / time.Minute), Name: s.Name, CustomerName: core.Tenant.Settings.DisplayName})
			if err != nil {
				ps.Log.WarnContext(ctx, "code not mailed", "tenant", s.Tenant, "person", s.Owner(), "cause", err)
				return fmt.Errorf("%w: the code could not be mailed; ask for another in a moment", problem.ErrUnavailable)
			}
			return nil
		} else if !table.FailedIn(err, session) {
			return fmt.Errorf("begin to confirm: %w", err)
		}
	}
	return errBusy
}

// reread loads a session as it is now; one that has ended is ErrNoSession.
func (ps *People) reread(ctx context.Context, s Session) (Session, error) {
	now, err := ps.session(ctx, s.Tenant, s.Owner(), s.ID)
	if errors.Is(err, problem.ErrNotFound) {
		return Session{}, ErrNoSession
	}
	return now, err
}

// ConfirmByCode takes the code that was mailed, after which the session is Fresh. A wrong one
// costs a try (*problem.InvalidError) and the last one the code; whether it is right is told
// only once that is stored. Without a code that is still good it is problem.ErrState.
func (ps *People) ConfirmByCode(ctx context.Context, core tenant.Core, s Session, code secret.Text) (Session, error) {
	code, err := readCode(code)
	if err != nil {
		return Session{}, err
	}
	print, err := fingerprint(core, s.ID, code)
	if err != nil {
		return Session{}, err
	}
	for range tries {
		if s, err = ps.reread(ctx, s); err != nil {
			return Session{}, err
		}
		now := ps.Now().UTC().Truncate(time.Second)
		if s.confirm.TriesLeft <= 0 || !now.Before(s.confirm.Until) {
			return Session{}, fmt.Errorf("%w: no code is waited for, or it is too old, or was wrong too often; have another one mailed", problem.ErrState)
		}
		var verdict error
		record := audit.Record{Actor: s.Actor(), Action: "session.confirmed", Subject: subjectOf(s.Owner()), Outcome: audit.Done, Details: map[string]string{"session": s.ID}}
		if subtle.ConstantTimeCompare([]byte(print), []byte(s.confirm.Code)) == 1 {
			s.ConfirmedAt, s.confirm = now, confirmation{}
		} else {
			s.confirm.TriesLeft--
			record.Outcome, record.Reason = audit.Refused, "wrongCode"
			verdict = problem.Invalid("wrong", "code", "is not the one that was mailed; tries left: %d", s.confirm.TriesLeft)
		}
		err := ps.Table.Write(ctx, table.Put(sessionRecord{s}, table.IfVersion(s.stored)), ps.Audit.Op(ctx, s.Tenant, record))
		if err == nil {
			s.stored++
			return s, verdict
		} else if !errors.Is(err, problem.ErrConflict) {
			return Session{}, fmt.Errorf("confirm: %w", err)
		}
	}
	return Session{}, errBusy
}

// Confirm makes a session Fresh. The caller has made sure that it is still the person's, by
// the method; with are further ops of the same Write. A session that has ended is ErrNoSession.
func (ps *People) Confirm(ctx context.Context, s Session, method Method, with ...table.Op) (Session, error) {
	var err error
	for range tries {
		if s, err = ps.reread(ctx, s); err != nil {
			return Session{}, err
		}
		s.ConfirmedAt, s.confirm = ps.Now().UTC().Truncate(time.Second), confirmation{}
		err := ps.Table.Write(ctx, append([]table.Op{table.Put(sessionRecord{s}, table.IfVersion(s.stored)),
			ps.Audit.Op(ctx, s.Tenant, audit.Record{Actor: s.Actor(), Action: "session.confirmed", Subject: Subject(s.PersonID), Outcome: audit.Done,
				Details: map[string]string{"session": s.ID, "method": string(method)}})}, with...)...)
		switch {
		case err == nil:
			s.stored++
			return s, nil
		case table.FailedIn(err, with) || !errors.Is(err, problem.ErrConflict):
			return Session{}, fmt.Errorf("confirm: %w", err)
		}
	}
	return Session{}, errBusy
}
