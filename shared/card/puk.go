package card

import (
	"bytes"
	"fmt"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// puk returns the PUK in a slot as cards want it (SP 800-73, 2.4.3).
func (m Materials) puk(slot int) ([]byte, error) {
	if m.PUK == nil {
		return nil, fmt.Errorf("PUK %d: %w", slot, problem.ErrNotFound)
	}
	text, err := m.PUK(slot)
	if err != nil {
		return nil, fmt.Errorf("PUK %d: %w", slot, err)
	}
	return pad(text)
}

func pad(puk secret.Text) ([]byte, error) {
	n := len(puk.Reveal())
	if n == 0 || n > pukLength {
		return nil, problem.Invalid("length", "puk", "must have 1 to %d bytes", pukLength)
	}
	b := bytes.Repeat([]byte{0xFF}, pukLength)
	copy(b, puk.Reveal())
	return b, nil
}

// pivChange is CHANGE REFERENCE DATA of the PUK (SP 800-73, 3.2.2).
func pivChange(from, to []byte, expect []apdu.Expect) apdu.Step {
	return apdu.Step{
		Command: apdu.Command{INS: insChangeReferenceData, P2: refPUK, Data: append(bytes.Clone(from), to...)},
		Secret:  true,
		Expect:  expect,
	}
}

// pivPUKs returns both PUKs of an open intent.
func pivPUKs(s State, m Materials) (current, proposed []byte, err error) {
	if current, err = m.puk(s.Custody.Current); err == nil {
		proposed, err = m.puk(s.Custody.Proposed)
	}
	return current, proposed, err
}

// pivUnblock resets the PIN (SP 800-73, 3.2.3), changes the PUK, logs out, and reads
// the PIN's tries: a card that counts the empty VERIFY has just had them all.
func pivUnblock(s State, m Materials) ([]apdu.Step, error) {
	current, proposed, err := pivPUKs(s, m)
	if err != nil {
		return nil, err
	}
	const pinLength = 8 // SP 800-73, 2.4.3
	reset := apdu.Step{
		Command: apdu.Command{INS: insResetRetryCounter, P2: refPIN, Data: append(bytes.Clone(current), make([]byte, pinLength)...)},
		Slots:   []apdu.Slot{{Secret: NewPIN, Offset: pukLength, Length: pinLength, Pad: 0xFF, Encoding: apdu.Digits}},
		Secret:  true,
		Expect:  ok,
	}
	return pivGuarded(s, reset, pivChange(current, proposed, ok), pivVerify(logOut), pivVerify(askTries))
}

func pivUnblocked(s State, r apdu.Result) State {
	s.Outcome.PIN = effect(r, first)
	s = s.changed(r, second)
	s.Outcome.PINTries = pinTries(r, triesStep)
	sw, _ := answered(r, first)
	switch {
	case s.Outcome.PIN == Yes:
		s.Leg = Done
	case sw == apdu.SWWrongData || sw == apdu.SWWrongLength:
		s.Failure = Failure{Reason: PINRefused, SW: sw}
	}
	return s
}

func pivTake(s State, m Materials) ([]apdu.Step, error) {
	current, proposed, err := pivPUKs(s, m)
	if err != nil {
		return nil, err
	}
	return pivGuarded(s, pivChange(current, proposed, ok))
}

func pivTaken(s State, r apdu.Result) State { return s.changed(r, first) }

// changed concludes an intent, whose CHANGE REFERENCE DATA is the step change: the
// first to present a PUK, or the one after RESET RETRY COUNTER has.
func (s State) changed(r apdu.Result, change int) State {
	s.Outcome.PUK = effect(r, change)
	c := s.Custody
	proven := change > first && effect(r, first) == Yes
	if proven {
		c.Claimed, c.Tries = false, c.Most
	}
	wrong, tries := s.wrongPUK(r)
	s.Failure = s.whyChanged(r)
	switch {
	case s.Outcome.PUK == Yes:
		s.Custody, s.Failure = c.taken(c.Proposed), Failure{}
		return s.done()
	case !sent(r, first):
		s.Custody = s.Before
	case s.Outcome.PUK == Unknown:
		s.Custody = c
	case wrong && proven: // odd, but it has just been right
		s.Custody = c.back().left(tries)
	case wrong && tries == 0 && s.Failure.SW == apdu.SWBlocked: // it may be right
		s.Custody = c.back().left(0)
	case wrong:
		c = c.back().left(tries)
		c.Stage = Refused
		s.Custody = c
	default:
		s.Custody = c.back()
	}
	s.Leg = Failed
	return s
}

// whyChanged is the failure of a script that presents PUKs.
func (s State) whyChanged(r apdu.Result) Failure {
	wrong, tries := s.wrongPUK(r)
	switch {
	case wrong && tries == 0:
		return Failure{Reason: PUKBlocked, SW: r.Responses[r.Step].SW}
	case wrong:
		return Failure{Reason: PUKWrong, TriesLeft: tries, SW: r.Responses[r.Step].SW}
	case r.End != apdu.Done && r.Step >= first && effect(r, r.Step) == Unknown:
		return Failure{Reason: OutcomeUnknown}
	}
	return why(r)
}

// wrongPUK tells whether the script ended at a PUK that the card did not take, and how
// many tries are left at least.
func (s State) wrongPUK(r apdu.Result) (wrong bool, tries int) {
	if r.End != apdu.Unexpected || r.Step < first {
		return false, 0
	}
	sw := r.Responses[r.Step].SW
	if tries, ok := sw.TriesLeft(); ok {
		return true, tries
	}
	return sw>>8 == 0x63, max(s.Before.Tries-1, 0)
}

func pivRead(s State, _ Materials) ([]apdu.Step, error) {
	return pivGuarded(s, pivAsk(insGetMetadata, refPUK))
}

func pivReadResult(s State, r apdu.Result) State {
	if r.End != apdu.Done {
		return s.fail(why(r))
	}
	s.Custody = s.Custody.Observe(pivTries(r, first))
	return s.settle()
}

// wrongWithTwoLeft are the answers to a wrong PUK after which another may be tried.
var wrongWithTwoLeft = func() []apdu.Expect {
	expect := apdu.Exactly(apdu.SWOK)
	for left := apdu.SW(2); left <= 0xF; left++ {
		expect = append(expect, apdu.Exactly(0x63C0|left)...)
	}
	return expect
}()

// pivProbe is the probe that Custody describes.
func pivProbe(s State, m Materials) ([]apdu.Step, error) {
	current, proposed, err := pivPUKs(s, m)
	if err != nil {
		return nil, err
	}
	return pivGuarded(s, pivChange(current, proposed, wrongWithTwoLeft), pivChange(proposed, proposed, ok))
}

func pivProbed(s State, r apdu.Result) State {
	c := s.Custody
	probe, _ := answered(r, first)
	left, told := probe.TriesLeft()
	refused, tries := s.wrongPUK(r)
	switch {
	case !sent(r, first):
		s.Custody = s.Before
	case refused && r.Step == second:
		s.Custody = c.left(tries)
		s.Custody.Stage = Refused
	case probe == apdu.SWOK: // whatever came of the second
		s.Custody, s.Outcome.PUK = c.taken(c.Proposed), No
		return s.done()
	case effect(r, second) == Yes:
		if s.Outcome.PUK = Yes; s.Before.Probed {
			s.Outcome.PUK = Unknown
		}
		s.Custody = c.left(left).taken(c.Proposed)
		return s.done()
	case told && left >= 2:
		s.Custody = c.left(left)
		s.Custody.Stage, s.Custody.Claimed = Eliminated, false
	case refused:
		s.Custody = c.left(tries)
		if tries > 0 {
			return s.fail(Failure{Reason: PUKUncertain, TriesLeft: tries})
		}
	}
	return s.fail(s.whyChanged(r))
}

// pivConfirm presents the PUK that it must be, and leaves it.
func pivConfirm(s State, m Materials) ([]apdu.Step, error) {
	puk, err := m.puk(s.Custody.believed())
	if err != nil {
		return nil, err
	}
	return pivGuarded(s, pivChange(puk, puk, ok))
}

// believed is the slot of the PUK that is not in doubt.
func (c Custody) believed() int {
	if c.Stage == Eliminated {
		return c.Proposed
	}
	return c.Current
}

func pivConfirmed(s State, r apdu.Result) State {
	c := s.Custody
	wrong, tries := s.wrongPUK(r)
	switch {
	case effect(r, first) == Yes:
		if s.Custody = c.taken(c.believed()); c.Stage == Eliminated {
			s.Outcome.PUK = Unknown // a probe may have done it
		}
		return s.done()
	case !sent(r, first):
		s.Custody = s.Before
	case wrong:
		s.Custody = c.left(tries)
		s.Custody.Stage = Refused
	}
	return s.fail(s.whyChanged(r))
}
