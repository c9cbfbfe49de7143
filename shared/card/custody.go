package card

import (
	"fmt"
	"io"

	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// Custody is what is known of a card's PUK. The PUKs themselves are in slots that
// the caller numbers from 1; the slots that a Custody names must be kept, all others
// may be forgotten. It changes only in State, and Observe; two can be compared.
//
// While an intent is open the card has one of two PUKs. The probe that settles it is
// one script of two steps: CHANGE REFERENCE DATA from current to proposed, then from
// proposed to proposed. Whichever the card had, it has the proposed one afterwards,
// has said so, and its retry counter is full: a card that had the current one takes
// both steps, and one that had the proposed one refuses the first, for one try, and
// takes the second. The second step is left out if the first did not leave two tries.
//
// The first step is a guess. It is made only when more than two tries are left, as
// the card told or, if it does not tell, as is certain at worst; and it is written
// ahead, as the stage Probing with one try less. If then its answer is lost, a card
// that tells its tries settles it by elimination: one that lacks exactly that try has
// refused the current PUK. One that lacks none has not, and may be asked again.
// Nothing else is presented but what the card has taken before, what elimination has
// left, and a PUK that was claimed, which is counted ahead like a guess. A value that
// the card has not taken is never worth the last try.
//
// What is not counted is a right PUK whose presentation was cut off between the
// card's counting it and its comparing it: a card that tells its tries shows that.
type Custody struct {
	Stage Stage
	// Current is the slot of the PUK that the card has or, while Open, had; 0 if there
	// is no custody.
	Current int
	// Proposed is the slot of the PUK that an intent sets; 0 if there is none.
	Proposed int
	// Claimed: somebody has said that it is Current; the card has not taken it yet.
	Claimed bool
	// Probed: a probe, too, may have set Proposed.
	Probed bool
	// Tries are the least that the PUK has left, and Most after a right one.
	Tries, Most int
}

// Stage is how much is known.
type Stage string

// The stages.
const (
	Settled    Stage = "settled"    // the PUK is Current
	Open       Stage = "open"       // an intent was written: the PUK is Current or Proposed
	Probing    Stage = "probing"    // Open, and a probe was written whose result is not known
	Eliminated Stage = "eliminated" // the PUK is Proposed, for the card has refused Current
	Refused    Stage = "refused"    // the card has refused all there are
)

const (
	// assumedTries is what a PUK has at least, as long as a card has not said: 3 is what
	// all known ones are made with.
	assumedTries = 3
	// fewTries are too few for a guess.
	fewTries = 2
)

// Claim returns the custody of a PUK that somebody says the card has: a factory's, one
// from a list, one typed by an operator. The counter is the PUK's, if known.
func Claim(slot int, counter RetryCounter) Custody {
	c := Custody{Stage: Settled, Current: slot, Claimed: true, Tries: assumedTries, Most: assumedTries}
	return c.Observe(counter)
}

// None tells that there is no custody: the card has no PUK, or none is known.
func (c Custody) None() bool { return c == Custody{} }

// InDoubt tells whether Reconcile must be done before a PUK can be changed.
func (c Custody) InDoubt() bool { return !c.None() && (c.Stage != Settled || c.Tries < c.Most) }

// Observe takes note of how many tries the PUK has left, as read from the card or said
// by an operator. Both must be later than any script that may still run on the card:
// with a bridge, read under a newer fence.
func (c Custody) Observe(counter RetryCounter) Custody {
	if !counter.Known {
		return c
	}
	if counter.Most > 0 {
		c.Most = counter.Most
	}
	c.Most = max(c.Most, counter.TriesLeft)
	if c.Stage == Probing {
		if c.Stage = Open; counter.TriesLeft == c.Tries {
			c.Stage, c.Claimed = Eliminated, false
		}
	}
	c.Tries = counter.TriesLeft
	return c
}

// propose writes the intent to change the PUK to that in another slot.
func (c Custody) propose(slot int) (Custody, error) {
	switch {
	case c.Current <= 0 || slot <= 0 || slot == c.Current || slot == c.Proposed:
		return c, problem.Invalid("malformed", "slot", "must be another than those in custody, and there must be one")
	case c.Stage == Refused:
		return c, Failure{Reason: PUKWrong, TriesLeft: c.Tries}
	case c.Tries == 0:
		return c, Failure{Reason: PUKBlocked}
	case c.InDoubt():
		return c, Failure{Reason: OutcomeUnknown}
	}
	c.Stage, c.Proposed, c.Probed = Open, slot, false
	if c.Claimed {
		c.Tries--
	}
	return c, nil
}

// taken: the card has taken the PUK in this slot.
func (c Custody) taken(slot int) Custody {
	return Custody{Stage: Settled, Current: slot, Tries: c.Most, Most: c.Most}
}

// back: the intent has come to nothing.
func (c Custody) back() Custody {
	c.Stage, c.Proposed = Settled, 0
	return c
}

// left takes note of the tries that the card says are left after a wrong PUK.
func (c Custody) left(tries int) Custody {
	c.Tries, c.Most = tries, max(c.Most, tries+1)
	return c
}

// settle says what comes next, from what is known. It writes ahead what that may cost.
func (s State) settle() State {
	s.Before = s.Custody
	c := &s.Custody
	switch {
	case c.Stage == Refused:
		return s.fail(Failure{Reason: PUKWrong, TriesLeft: c.Tries})
	case c.Tries == 0:
		return s.fail(Failure{Reason: PUKBlocked})
	case c.Stage == Open || c.Stage == Probing:
		if c.Tries <= fewTries {
			return s.fail(Failure{Reason: PUKUncertain, TriesLeft: c.Tries})
		}
		c.Stage, c.Probed = Probing, true
		c.Tries--
		s.Leg = legProbe
	case c.Claimed || c.Stage == Eliminated:
		if c.Tries == 1 {
			return s.fail(Failure{Reason: PUKUncertain, TriesLeft: 1})
		}
		if c.Claimed {
			c.Tries--
		}
		s.Leg = legConfirm
	case c.InDoubt():
		s.Leg = legConfirm
	default:
		return s.done()
	}
	return s
}

// NewPUK returns a PUK of 8 digits that is not weak and not the current one, which may
// be empty. rand is crypto/rand.Reader but in tests; its errors are returned.
func NewPUK(rand io.Reader, current secret.Text) (secret.Text, error) {
	p := pin.Default()
	p.MinLength, p.MaxLength, p.Alphabet = pukLength, pukLength, pin.Digits
	p.DisallowConstantDelta, p.MaxRun = true, 4
	for range 10 { // the current one comes up once in 10^8 times
		puk, err := p.Generate(rand, pin.GenerateOptions{})
		if err != nil {
			return secret.Text{}, fmt.Errorf("new PUK: %w", err)
		}
		if !puk.Equal(current) {
			return puk, nil
		}
	}
	return secret.Text{}, fmt.Errorf("new PUK: the randomness given repeats itself: %w", problem.ErrUnavailable)
}
