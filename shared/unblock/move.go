package unblock

import (
	"errors"
	"fmt"
	"time"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
)

// How long things may take.
const (
	codeLife = 10 * time.Minute // of a one-time code
	// CodeTries is how many wrong codes may be given.
	CodeTries = 5
	// approvalLife is how long a second operator may take.
	approvalLife = 15 * time.Minute
	// pinWindow is how long a person may take for the new PIN. Meanwhile nobody else can
	// unblock the card.
	pinWindow = 3 * time.Minute
	// beginWithin is how long a script may be on its way, and runWindow how long until its
	// result is given up: the longest wait for a card's turn, a slow card, and time to
	// connect anew.
	beginWithin = 20 * time.Second
	runWindow   = 60 * time.Second
)

// matter is a credential and an operation on it, which are read and written as one: every
// step of an operation makes the next matter of one, which is stored on the condition that
// nothing of it was changed meanwhile. So whatever overlaps, steps come one after the other.
type matter struct {
	cred credential.Credential
	op   Operation
	// doubtful is the operation that cred.Doubt names, if it is another.
	doubtful *Operation
}

// mover makes steps. It is pure but for the randomness given.
type mover struct {
	tenant   table.TenantID
	keys     credential.Sealer
	newPUK   func(current secret.Text) (secret.Text, error)
	now      time.Time
	adminKey bool // there is an admin key for the card
	template credential.Template
}

// take gives the operation the lease, so that it may wait for the new PIN.
func (m mover) take(v matter) (matter, error) {
	if v.op.Kind == Unblock && !v.cred.Holds(v.op.ID, v.op.Fence) {
		if err := m.template.CheckLimit(v.cred, m.now); err != nil {
			return v, err
		}
	}
	cred, err := v.cred.Take(v.op.ID, m.now, pinWindow)
	if err != nil {
		return v, err
	}
	v.cred = cred
	v.op.State, v.op.Fence, v.op.Until = Proven, cred.Lease.Fence, cred.Lease.Until
	return v, nil
}

// begin makes the first script of an operation that has all it needs. An operation that
// cannot go on is ended; an error is a matter of the moment.
func (m mover) begin(v matter) (matter, error) {
	if !v.cred.Holds(v.op.ID, v.op.Fence) {
		return m.end(v, Failed, ReasonOvertaken), nil
	}
	v.op.State, v.op.Violations = Running, nil
	return m.plan(v)
}

// plan makes the state whose script comes next: to find out first which PUK the card has,
// if that is in doubt, and else to reset its PIN.
func (m mover) plan(v matter) (matter, error) {
	family, err := card.FamilyNamed(v.cred.Family)
	if err != nil {
		return v, err
	}
	switch {
	case v.cred.Custody.InDoubt():
		v.op.Card, err = family.Reconcile(v.cred.CardID, v.cred.Custody)
	case v.op.Kind == Reconcile:
		return m.end(v, Succeeded, ""), nil
	case !v.cred.Custody.None():
		var current, puk secret.Text
		var slot int
		if current, err = v.cred.PUK(m.keys, m.tenant, v.cred.Custody.Current); err != nil {
			return v, err
		}
		if puk, err = m.newPUK(current); err != nil {
			return v, err
		}
		if v.cred, slot, err = v.cred.AddPUK(m.keys, m.tenant, puk); err != nil {
			return v, err
		}
		if v.op.Kind == Rotate {
			v.op.Card, err = family.TakeCustody(v.cred.CardID, v.cred.Custody, slot)
		} else {
			v.op.Card, err = family.Unblock(v.cred.CardID, v.cred.Custody, slot)
		}
	default: // an admin key; a family with PUKs refuses
		v.op.Card, err = family.Unblock(v.cred.CardID, card.Custody{}, 0)
		if err == nil && !m.adminKey {
			return m.end(v, Failed, ReasonNoPUK), nil
		}
	}
	if err != nil {
		return m.cannot(v, err)
	}
	if !v.op.Card.Reconciles() {
		if v.cred.Doubt != "" && v.cred.Doubt != v.op.ID {
			v = m.learn(v, card.Unknown) // it will never be known now
		}
		v.cred.Doubt = ""
	}
	if v.op.Kind == Unblock && !v.op.Card.Reconciles() {
		v.cred.Doubt = v.op.ID
		if v.cred.Touched == v.op.Place.Insertion {
			v.op.PINTries = card.RetryCounter{} // they were told before what an earlier script may have done
		}
		v.cred.Touched = v.op.Place.Insertion
	}
	return m.send(v, false)
}

// cannot ends an operation for what its card's custody is.
func (m mover) cannot(v matter, err error) (matter, error) {
	var f card.Failure
	var invalid *problem.InvalidError
	switch {
	case errors.As(err, &f):
		v.op.TriesLeft, v.op.SW = f.TriesLeft, f.SW
		return m.end(v, Failed, string(f.Reason)), nil
	case errors.As(err, &invalid): // a family with PUKs, and none in custody
		return m.end(v, Failed, ReasonNoPUK), nil
	}
	return v, fmt.Errorf("begin script: %w", err)
}

// send makes ready for the script of v.op.Card: what it may do is in the credential's
// custody from now on.
func (m mover) send(v matter, held bool) (matter, error) {
	cred, err := v.cred.Take(v.op.ID, m.now, runWindow)
	if err != nil {
		return v, err
	}
	v.cred = cred
	v.keep(v.op.Card.Custody)
	v.op.Part++
	v.op.Awaits, v.op.Continue = true, held
	v.op.Until = v.cred.Lease.Until
	return v, nil
}

// keep makes a custody the credential's, if its card has a PUK at all, and forgets the
// PUKs that it does not name.
func (v *matter) keep(c card.Custody) {
	if !v.cred.Custody.None() {
		v.cred.Custody = c
		v.cred = v.cred.Kept()
	}
}

// again prolongs the wait for the result of a script that may have been lost on its way.
// It is the same part, which a bridge never runs twice.
func (m mover) again(v matter) (matter, error) {
	if v.op.State != Running || !v.op.Awaits || !v.cred.Holds(v.op.ID, v.op.Fence) {
		return v, fmt.Errorf("%w: no script is under way", problem.ErrState)
	}
	cred, err := v.cred.Take(v.op.ID, m.now, runWindow)
	if err != nil {
		return v, err
	}
	v.cred, v.op.Until = cred, cred.Lease.Until
	return v, nil
}

// result takes in what came of a script. It returns false if there is nothing to take in:
// the result is known already, or tells nothing any more.
func (m mover) result(v matter, r relay.Result) (matter, bool, error) {
	sent, late := v.op.Card, v.op.State != Running
	if !v.op.Awaits || r.Part != v.op.Part || late && !sent.Changes() {
		return v, false, nil
	}
	after := sent.NoResult()
	if answered, ok := r.Card(); ok {
		var err error
		if after, err = sent.Next(answered); err != nil {
			return v, false, err
		}
	}
	v.op.Awaits = false
	if v.cred.Lease.Fence != v.op.Fence {
		return m.overtaken(v, sent, after), true, nil
	}
	v.op.Card = after
	v.keep(after.Custody)
	var err error
	switch unanswered := r.Refusal == relay.RefusedPIN || r.Refusal == relay.RefusedNoPIN; {
	case unanswered && !late:
		// Nothing was sent, and the person may give another PIN.
		v.cred.Doubt = ""
		v.op.PIN, v.op.Typed, v.op.Violations = nil, false, r.Violations
		v, err = m.take(v)
	case !after.Finished():
		v, err = m.send(v, sent.Holds())
	case sent.Reconciles():
		v, err = m.found(v, r, late)
	default:
		v = m.concluded(v, r)
	}
	return v, true, err
}

// found goes on after it was found out which PUK the card has, or was not.
func (m mover) found(v matter, r relay.Result, late bool) (matter, error) {
	s := v.op.Card
	if s.Leg != card.Done {
		switch s.Failure.Reason {
		case card.PUKUncertain, card.PUKWrong, card.PUKBlocked, card.NotSupported:
			v.cred.Stuck = string(s.Failure.Reason)
		}
		v.op.TriesLeft, v.op.SW = s.Failure.TriesLeft, s.Failure.SW
		return m.end(v, Failed, reasonOf(s.Failure.Reason, r.Refusal)), nil
	}
	v.cred.Stuck = ""
	pin := s.Outcome.PUK
	if pin == card.No {
		pin = card.Unknown // it may have been stopped after the PIN's reset
	}
	v = m.learn(v, pin)
	v.cred.Doubt = ""
	if late {
		return m.end(v, Failed, ReasonNoAnswer), nil
	}
	return m.plan(v)
}

// concluded ends an operation by what its last script has done.
func (m mover) concluded(v matter, r relay.Result) matter {
	s := v.op.Card
	v.op.Outcome = s.Outcome
	v.op.TriesLeft, v.op.SW = s.Failure.TriesLeft, s.Failure.SW
	if v.op.Kind == Unblock && s.Outcome.PIN != card.Unknown && v.cred.Custody.Proposed == 0 {
		v.cred.Doubt = ""
	}
	switch s.Failure.Reason {
	case card.PUKWrong, card.PUKBlocked:
		v.cred.Stuck = string(s.Failure.Reason)
	}
	if s.Outcome.PUK == card.Yes {
		v.cred.PUKDisclosedAt = time.Time{} // what somebody knows is the card's no more
	}
	if v.op.Kind == Rotate {
		switch s.Outcome.PUK {
		case card.Yes:
			return m.end(v, Succeeded, "")
		case card.Unknown:
			return m.end(v, Unknown, string(card.OutcomeUnknown))
		}
		return m.end(v, Failed, reasonOf(s.Failure.Reason, r.Refusal))
	}
	switch s.Outcome.PIN {
	case card.Yes:
		v.cred = m.changed(v.cred, v.op)
		v.op = m.announce(v.op)
		return m.end(v, Succeeded, string(s.Failure.Reason))
	case card.Unknown:
		return m.end(v, Unknown, string(card.OutcomeUnknown))
	}
	return m.end(v, Failed, reasonOf(s.Failure.Reason, r.Refusal))
}

// overtaken notes what a script did whose operation has lost the lease. The custody is
// another's business by now.
func (m mover) overtaken(v matter, sent, after card.State) matter {
	v.op.Card = after
	if sent.Reconciles() || after.Outcome.PIN == card.Unknown {
		if !v.op.State.Finished() {
			return m.end(v, Failed, ReasonOvertaken)
		}
		return v
	}
	v.op.Outcome = after.Outcome
	if after.Outcome.PIN != card.Yes {
		return m.end(v, Failed, ReasonOvertaken)
	}
	if v.cred.LastPINChange.At.Before(v.op.UpdatedAt) {
		v.cred = m.changed(v.cred, v.op)
	}
	v.op = m.announce(v.op)
	return m.end(v, Succeeded, string(after.Failure.Reason))
}

// conclude ends an operation whose time is over. It returns false if that is not so.
func (m mover) conclude(v matter) (matter, bool) {
	if v.op.State.Finished() || m.now.Before(v.op.Until) {
		return v, false
	}
	awaits := v.op.Awaits
	switch {
	case v.op.State != Running:
		v = m.end(v, Failed, ReasonExpired)
	case !v.op.Card.Changes():
		v = m.end(v, Failed, ReasonNoAnswer)
	case v.op.Card.Reconciles():
		v = m.end(v, Failed, string(card.OutcomeUnknown))
	default:
		v.op.Outcome = v.op.Card.NoResult().Outcome
		v = m.end(v, Unknown, string(card.OutcomeUnknown))
	}
	v.op.Awaits = awaits // it may come all the same
	return v, true
}

// learn notes of the operation in doubt whether it has reset the PIN.
func (m mover) learn(v matter, pin card.Effect) matter {
	if v.doubtful == nil || v.doubtful.ID != v.cred.Doubt {
		return v
	}
	op := *v.doubtful
	if op.State == Running || op.State == Unknown {
		op.State, op.Reason, op.Outcome.PIN = Reconciled, "", pin
		op.PIN = nil
		if pin == card.Yes {
			v.cred = m.changed(v.cred, op)
			op = m.announce(op)
		}
	}
	v.doubtful = &op
	return v
}

// seen notes how many tries a card's PIN has, as it tells when it is identified, for an
// operation in doubt whose PUK is not. It returns false if nothing is learnt.
func (m mover) seen(v matter, tries card.RetryCounter) (matter, bool) {
	if v.doubtful == nil || v.cred.Custody.InDoubt() || v.cred.Leased(m.now) || !tries.Known {
		return v, false
	}
	pin := card.Unknown
	switch blocked := v.doubtful.PINTries; {
	case tries.TriesLeft == 0:
		pin = card.No
	case blocked.Known && blocked.TriesLeft == 0:
		pin = card.Yes
	}
	v = m.learn(v, pin)
	v.cred.Doubt = ""
	return v, true
}

// changed notes on the credential that an operation has set a new PIN.
func (m mover) changed(c credential.Credential, op Operation) credential.Credential {
	how := credential.ResetByOperator
	if op.mailed() {
		how = credential.ResetBySelfService
	}
	return c.PINChanged(credential.PINChange{At: m.now, How: how, Operation: op.ID}, m.template)
}

// announce plans the mail to the holder, once.
func (m mover) announce(op Operation) Operation {
	if op.Notice.State == NoNotice {
		op.Notice = Notice{State: NoticePlanned, At: m.now.UTC().Truncate(time.Second)}
	}
	return op
}

// end ends an operation and gives its lease back.
func (m mover) end(v matter, s State, reason string) matter {
	v.op.State, v.op.Reason = s, reason
	v.op.PIN, v.op.Typed, v.op.Awaits = nil, false, false
	if v.cred.Holds(v.op.ID, v.op.Fence) {
		v.cred = v.cred.Release()
	}
	return v
}

// reasonOf says why, in the bridge's words if it has refused.
func reasonOf(r card.Reason, refusal relay.Refusal) string {
	switch refusal {
	case relay.RefusedFence:
		return ReasonOvertaken
	case relay.RefusedDeadline:
		return ReasonNoAnswer
	case relay.RefusedCard:
		return string(card.CardRemoved)
	case relay.RefusedReader:
		return ReasonReaderBusy
	case relay.RefusedHold:
		return string(card.StaleChallenge)
	}
	return string(r)
}
