package unblock

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// Request asks for an unblock.
type Request struct {
	Credential string
	Bridge     string // where the card is, or is going to be
	Channel    credential.Channel
	Statement  string // where no code is mailed: how the person was identified
	// Unattended: who asks cannot tell who the person is, so that only a mailed code proves it.
	Unattended bool

	approval bool // an operator has to approve it, who says then how the person was identified
}

// codesPerHour bounds the codes mailed for a card: whoever has found it can make its
// holder no more trouble.
const codesPerHour = 5

// Create begins an unblock. By self-service a code is mailed to the holder; an operator has
// made sure who the person is, and says how.
func (us *Unblocks) Create(ctx context.Context, core tenant.Core, by audit.Actor, r Request) (Operation, error) {
	id, err := us.newID()
	if err != nil {
		return Operation{}, err
	}
	return us.createAs(ctx, core, by, id, r)
}

func (us *Unblocks) createAs(ctx context.Context, core tenant.Core, by audit.Actor, id string, r Request, with ...table.Op) (Operation, error) {
	for range tries {
		op, again, err := us.create(ctx, core, by, id, r, with)
		if !again {
			return op, err
		}
	}
	return Operation{}, errBusy
}

// RequestApproval asks operators to approve the unblock of a card that is in the reader of a
// bridge, for somebody who cannot make sure who the person is: a trigger rule. bridge is
// where; "" finds the one bridge that has the card. with returns further ops of the same
// Write, given the operation's id; if a condition of theirs does not hold that is the error.
func (us *Unblocks) RequestApproval(ctx context.Context, core tenant.Core, by audit.Actor, card, bridge string, with func(id string) []table.Op) (Operation, error) {
	if card == "" {
		return Operation{}, fmt.Errorf("%w: it is not about a card", problem.ErrState)
	}
	if bridge == "" {
		var err error
		if bridge, err = us.whereIs(ctx, core.Tenant.ID, card); err != nil {
			return Operation{}, err
		}
	}
	id, err := us.newID()
	if err != nil {
		return Operation{}, err
	}
	return us.createAs(ctx, core, by, id, Request{Credential: card, Bridge: bridge, Channel: credential.Operator, approval: true}, with(id)...)
}

// whereIs returns the bridge in whose reader a card is.
func (us *Unblocks) whereIs(ctx context.Context, t table.TenantID, card string) (string, error) {
	for place := ""; ; {
		bridges, next, err := us.Tenants.Bridges(ctx, t, place, 100)
		if err != nil {
			return "", err
		}
		for _, b := range bridges {
			for _, session := range b.Sessions {
				if slices.ContainsFunc(session.Readers, func(r tenant.Reader) bool { return r.Credential == card }) {
					return b.ID, nil
				}
			}
		}
		if place = next; place == "" {
			return "", fmt.Errorf("%w: the card is in no bridge's reader", problem.ErrState)
		}
	}
}

func (us *Unblocks) create(ctx context.Context, core tenant.Core, by audit.Actor, id string, r Request, with []table.Op) (_ Operation, again bool, _ error) {
	now := us.Now()
	op := Operation{ID: id, Kind: Unblock, Credential: r.Credential, Channel: r.Channel, By: by, Statement: strings.TrimSpace(r.Statement),
		Bridge: r.Bridge, CreatedAt: now.UTC().Truncate(time.Second)}
	v, l, err := us.load(ctx, core, op)
	if err != nil {
		return op, false, err
	}
	proof := l.template.ProofFor(r.Channel)
	switch {
	case l.bridge.Identity == nil || !l.bridge.RevokedAt.IsZero():
		return op, false, problem.Invalid("state", "bridge", "is not an enrolled bridge")
	case !l.template.Allows(r.Channel):
		return op, false, notAllowed(r.Channel)
	case !r.Channel.Online():
		return op, false, problem.Invalid("offline", "channel", "is for cards that no bridge brings here; %s is by challenge and response", r.Channel)
	case proof != credential.MailedCode && r.Unattended:
		return op, false, fmt.Errorf("%w: %s needs somebody who makes sure who the person is", problem.ErrForbidden, r.Channel)
	case r.approval && proof == credential.TwoOperators:
		return op, false, fmt.Errorf("%w: the card's template wants two operators, and a rule is none", problem.ErrState)
	case proof != credential.MailedCode && !r.approval && utf8.RuneCountInString(v.op.Statement) < 3:
		return op, false, problem.Invalid("missing", "statement", "must say how the person was identified, such as \"staff badge, known in person\"")
	case v.cred.Leased(now):
		return op, false, fmt.Errorf("%w: another unblock of this card (%s) is under way; wait until %s, or cancel it", problem.ErrState,
			v.cred.Lease.Operation, v.cred.Lease.Until.UTC().Format(time.RFC3339))
	}
	if _, reader, ok := place(l.bridge, v.op); ok {
		v.op.PINTries = reader.Identify.Identity.PIN
	}
	if err := v.cred.CheckUnblockable(); err != nil {
		return op, false, err
	}
	if err := l.template.CheckLimit(v.cred, now); err != nil {
		return op, false, err
	}
	before := v
	record := audit.Record{Action: "unblock.requested", Details: map[string]string{"channel": string(r.Channel), "bridge": r.Bridge}}
	var code mailed
	switch {
	case r.approval:
		v.op.State, v.op.Until = Requested, now.Add(approvalLife).UTC().Truncate(time.Second)
	case proof == credential.Statement:
		if v, err = us.mover(l, v.cred).take(v); err != nil {
			return op, false, err
		}
		v.op.Proof.At = now.UTC().Truncate(time.Second)
		record.Details["statement"] = v.op.Statement
	case proof == credential.TwoOperators:
		v.op.State, v.op.Until = Requested, now.Add(approvalLife).UTC().Truncate(time.Second)
		record.Details["statement"] = v.op.Statement
	default:
		if v, code, err = us.code(ctx, l, v); err != nil {
			return op, false, err
		}
	}
	after, err := us.store(ctx, l, by, before, v, []audit.Record{record}, with...)
	if _, conflict := table.FailedOp(err); conflict && !table.FailedIn(err, with) {
		return op, true, nil
	} else if err != nil {
		return op, false, err
	}
	if code.message.ID == "" {
		return after.op, false, nil
	}
	op, err = us.mail(ctx, l, after.op, code)
	return op, false, err
}

// mailed is a mail that is to be sent, and how.
type mailed struct {
	sender  mail.Sender
	message mail.Message
}

// code makes the one-time code of an operation and the mail that brings it to the holder.
func (us *Unblocks) code(ctx context.Context, l loaded, v matter) (matter, mailed, error) {
	now := us.Now()
	if c := &v.cred.Codes; now.Sub(c.Since) >= time.Hour {
		*c = credential.Codes{Sent: 1, Since: now.UTC().Truncate(time.Second)}
	} else if c.Sent++; c.Sent > codesPerHour {
		return v, mailed{}, &problem.LimitError{Code: "tooManyCodes", Reason: "too many codes were mailed for this card", Until: c.Since.Add(time.Hour)}
	}
	holder, err := us.reachable(ctx, l.core, v.cred)
	if err != nil {
		return v, mailed{}, err
	}
	n, err := rand.Int(us.Rand, big.NewInt(1_000_000))
	if err != nil {
		return v, mailed{}, fmt.Errorf("make a code: %w", err)
	}
	code := secret.New(fmt.Sprintf("%06d", n))
	v.op.State, v.op.Until = Requested, now.Add(codeLife).UTC().Truncate(time.Second)
	v.op.Proof = Proof{TriesLeft: CodeTries, SentTo: mail.Masked(holder.Profile.Mail)}
	if v.op.Proof.Code, err = hashCode(l.core, v.op, code); err != nil {
		return v, mailed{}, err
	}
	settings := l.core.Tenant.Settings
	m, err := us.mailTo(ctx, l, holder, mail.UnblockCodeID, "unblock-code."+v.op.ID, mail.UnblockCodeValues{
		Code: code, Username: holder.Profile.Username, CustomerName: settings.DisplayName, Card: v.cred.Name(),
		Expires: mail.FormatTime(v.op.Until, settings.Location(), settings.Language), Place: l.bridge.Name,
	})
	return v, m, err
}

func hashCode(core tenant.Core, op Operation, code secret.Text) (string, error) {
	return core.Keys.Fingerprint("unblock code", fmt.Appendf(nil, "%s %s", op.ID, code.Reveal()))
}

// holder returns who holds the card.
func (us *Unblocks) holder(ctx context.Context, core tenant.Core, c credential.Credential) (user.User, error) {
	if c.Holder == "" {
		return user.User{}, fmt.Errorf("%w: nobody is known to hold this card; an operator can help", problem.ErrState)
	}
	u, err := us.Users.Get(ctx, core.Tenant.ID, c.Holder)
	if errors.Is(err, problem.ErrNotFound) {
		return user.User{}, fmt.Errorf("%w: nobody is known to hold this card; an operator can help", problem.ErrState)
	}
	return u, err
}

// reachable returns who holds the card, if a code can be mailed to them.
func (us *Unblocks) reachable(ctx context.Context, core tenant.Core, c credential.Credential) (user.User, error) {
	holder, err := us.holder(ctx, core, c)
	switch {
	case err != nil:
		return holder, err
	case holder.Profile.Mail == "":
		return holder, fmt.Errorf("%w: no mail address is known that a code could be sent to; an operator can help", problem.ErrState)
	case holder.Unreachable() != "":
		return holder, fmt.Errorf("%w: mails to the address on record for the card's holder do not arrive (%s), so no code is sent there; have the address corrected, or ask an operator", problem.ErrState, holder.MailProblem.Kind)
	}
	return holder, nil
}

// mailTo makes a mail to a holder, by the template's messaging configuration.
func (us *Unblocks) mailTo(ctx context.Context, l loaded, to user.User, template, id string, values mail.Values) (mailed, error) {
	store := mail.Store{Table: us.Table, Tenant: l.core.Tenant.ID, Keys: l.core.Keys}
	conf, err := store.WithPassword(ctx, l.template.Messaging)
	if errors.Is(err, problem.ErrNotFound) {
		return mailed{}, fmt.Errorf("%w: no mail can be sent, for the messaging configuration is gone; an operator can help", problem.ErrState)
	} else if err != nil {
		return mailed{}, err
	}
	sender, err := us.Senders.For(conf)
	if err != nil {
		return mailed{}, err
	}
	text, err := store.Template(ctx, template, l.core.Tenant.Settings.Language)
	if err != nil {
		return mailed{}, err
	}
	m, err := mail.Render(text, values)
	if err != nil {
		return mailed{}, err
	}
	m.ID, m.To, m.Tenant, m.User = id, to.Profile.Mail, store.Tenant, to.ID
	return mailed{sender, m}, nil
}

// noMailbox marks the address of a holder if a mail was refused because there is none.
func (us *Unblocks) noMailbox(ctx context.Context, l loaded, m mail.Message, r mail.Result) {
	if !r.NoMailbox {
		return
	}
	_, err := us.Users.MailFailed(ctx, l.core, system, m.User, m.To, us.Now(), user.MailProblem{Kind: user.MailboxRefused, At: us.Now(), Code: r.Code})
	if err != nil { // the next mail finds it out again
		us.Log.WarnContext(ctx, "address of a holder not marked", "user", m.User, "cause", err)
	}
}

// mail sends the code. If it was certainly not taken the operation is over.
func (us *Unblocks) mail(ctx context.Context, l loaded, op Operation, m mailed) (Operation, error) {
	sending, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	result := m.sender.Send(sending, []mail.Message{m.message})[0]
	if result.Outcome == mail.Accepted || result.Outcome == mail.Unknown {
		return op, nil
	}
	us.noMailbox(ctx, l, m.message, result)
	us.Log.WarnContext(ctx, "code not mailed", "operation", op.ID, "code", result.Code)
	op, _, err := us.step(ctx, l.core, system, op.ID, func(_ loaded, m mover, v matter) (matter, []audit.Record, error) {
		return m.end(v, Failed, ReasonMail), nil, nil
	})
	return op, err
}

// Prove takes the code that was mailed. A wrong one costs a try, and the last one the
// operation. Whether a code is right is told only once that is stored: guesses made at
// the same time get no answer but one.
func (us *Unblocks) Prove(ctx context.Context, core tenant.Core, by audit.Actor, id string, code secret.Text) (Operation, error) {
	var verdict error
	op, _, err := us.step(ctx, core, by, id, func(l loaded, m mover, v matter) (matter, []audit.Record, error) {
		verdict = nil
		if v, over := m.conclude(v); over {
			return v, nil, nil
		}
		if v.op.State != Requested || v.op.Proof.Code == "" {
			return v, nil, fmt.Errorf("%w: no code is asked for", problem.ErrState)
		}
		got, err := hashCode(l.core, v.op, secret.New(digits(code.Reveal())))
		if err != nil {
			return v, nil, err
		}
		if subtle.ConstantTimeCompare([]byte(got), []byte(v.op.Proof.Code)) != 1 {
			v.op.Proof.TriesLeft--
			verdict = problem.Invalid("wrong", "code", "is not the one that was mailed; tries left: %d", v.op.Proof.TriesLeft)
			records := []audit.Record{{Action: "unblock.proof", Outcome: audit.Refused, Reason: "wrongCode"}}
			if v.op.Proof.TriesLeft <= 0 {
				return m.end(v, Failed, ReasonWrongCode), records, nil
			}
			return v, records, nil
		}
		holder := audit.Actor{Kind: audit.Self, ID: v.cred.Holder}
		taken, err := m.take(v)
		if limit := (*problem.LimitError)(nil); errors.Is(err, problem.ErrState) || errors.As(err, &limit) { // told once it is stored, as every answer to a code
			verdict = err
			reason := "leased"
			if limit != nil {
				reason = limit.Code
			} else if v.cred.CheckUnblockable() != nil {
				reason = string(v.cred.State)
			}
			return v, []audit.Record{{Action: "unblock.proof", Actor: holder, Outcome: audit.Refused, Reason: reason}}, nil
		}
		taken.op.Proof = Proof{SentTo: v.op.Proof.SentTo, At: m.now.UTC().Truncate(time.Second)}
		return taken, []audit.Record{{Action: "unblock.proof", Actor: holder}}, err
	})
	if err == nil {
		err = verdict
	}
	return op, err
}

// Approve is a second operator's word for an unblock that needs one, or an operator's for one
// that a rule has asked for, with a statement how the person was identified. Who has asked
// for it cannot give it.
func (us *Unblocks) Approve(ctx context.Context, core tenant.Core, by audit.Actor, id, statement string) (Operation, error) {
	statement = strings.TrimSpace(statement)
	op, _, err := us.step(ctx, core, by, id, func(_ loaded, m mover, v matter) (matter, []audit.Record, error) {
		if v, over := m.conclude(v); over {
			return v, nil, nil
		}
		switch {
		case v.op.State != Requested || v.op.Proof.Code != "":
			return v, nil, fmt.Errorf("%w: no approval is asked for", problem.ErrState)
		case by.Kind == v.op.By.Kind && by.ID == v.op.By.ID:
			return v, nil, fmt.Errorf("%w: who has asked for an unblock cannot approve it; another operator has to", problem.ErrForbidden)
		case v.op.By.Kind == audit.Rule && utf8.RuneCountInString(statement) < 3:
			return v, nil, problem.Invalid("missing", "statement", "must say how the person was identified, such as \"staff badge, known in person\"")
		case v.op.By.Kind != audit.Rule && statement != "":
			return v, nil, problem.Invalid("notTaken", "statement", "was made by who has asked for the unblock; a second one is not taken")
		}
		record := audit.Record{Action: "unblock.approved"}
		if statement != "" {
			v.op.Statement = statement
			record.Details = map[string]string{"statement": statement}
		}
		v, err := m.take(v)
		v.op.Proof.At = m.now.UTC().Truncate(time.Second)
		return v, []audit.Record{record}, err
	})
	return op, err
}

// AwaitsApproval tells whether another operator has to approve it, and still can.
func (op Operation) AwaitsApproval(now time.Time) bool {
	return op.State == Requested && op.Proof.Code == "" && now.Before(op.Until)
}

// approvalsRead bounds how many unblocks are read to find those that wait for an approval.
const approvalsRead = 500

// AwaitingApproval returns the unblocks that wait for an operator's approval, newest first:
// among those begun lately, for none waits longer than approvalLife.
func (us *Unblocks) AwaitingApproval(ctx context.Context, t table.TenantID) (waiting []Operation, _ error) {
	now, place := us.Now(), ""
	for read := 0; read < approvalsRead; {
		ops, next, err := us.List(ctx, t, "", place, 50)
		if err != nil {
			return nil, err
		}
		for _, op := range ops {
			if now.Sub(op.CreatedAt) > approvalLife {
				return waiting, nil
			}
			if op.AwaitsApproval(now) {
				waiting = append(waiting, op)
			}
		}
		if read, place = read+len(ops), next; place == "" {
			break
		}
	}
	return waiting, nil
}

// digits drops the spaces and dashes that people type within a code.
func digits(code string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' || r == '\u00A0' {
			return -1
		}
		return r
	}, code)
}

// GivePIN takes the new PIN, sealed for the bridge and this operation under its fence, and
// begins.
func (us *Unblocks) GivePIN(ctx context.Context, core tenant.Core, by audit.Actor, id string, pin relay.SealedPIN) (Operation, error) {
	if err := pin.Validate(); err != nil {
		return Operation{}, err
	}
	return us.begin(ctx, core, by, id, func(op *Operation) { op.PIN = &pin })
}

// Ready begins with the PIN that was typed at the bridge.
func (us *Unblocks) Ready(ctx context.Context, core tenant.Core, by audit.Actor, id string) (Operation, error) {
	return us.begin(ctx, core, by, id, func(op *Operation) { op.Typed = true })
}

func (us *Unblocks) begin(ctx context.Context, core tenant.Core, by audit.Actor, id string, give func(*Operation)) (Operation, error) {
	op, _, err := us.step(ctx, core, by, id, func(l loaded, m mover, v matter) (matter, []audit.Record, error) {
		if v, over := m.conclude(v); over {
			return v, nil, nil
		}
		if v.op.State != Proven {
			return v, nil, fmt.Errorf("%w: no new PIN is asked for", problem.ErrState)
		}
		give(&v.op)
		where, reader, ok := place(l.bridge, v.op)
		if !ok {
			return v, nil, fmt.Errorf("%w: the card is not in a reader of the bridge %q; put it in first", problem.ErrState, l.bridge.Name)
		}
		v.op.Place = where
		if tries := reader.Identify.Identity.PIN; tries.Known {
			v.op.PINTries = tries
		}
		v, err := m.begin(v)
		return v, []audit.Record{{Action: "unblock.begun"}}, err
	})
	return op, err
}

// Cancel gives up an operation that has not begun.
func (us *Unblocks) Cancel(ctx context.Context, core tenant.Core, by audit.Actor, id string) (Operation, error) {
	op, _, err := us.step(ctx, core, by, id, func(_ loaded, m mover, v matter) (matter, []audit.Record, error) {
		switch {
		case v.op.State.Finished():
			return v, nil, errNothing
		case v.op.State == Running:
			return v, nil, fmt.Errorf("%w: it has begun, and is over in a moment", problem.ErrState)
		}
		return m.end(v, Failed, ReasonCancelled), nil, nil
	})
	return us.over(ctx, core, id, op, err)
}
