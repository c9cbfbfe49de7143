package softcard

import (
	"slices"
	"time"

	"github.com/pinward/pinward/shared/apdu"
)

// Kind is a kind of fault.
type Kind int

// The kinds of faults.
const (
	Slow      Kind = iota // only the delay
	Pull                  // the card is out before the command: ErrRemoved, until PowerOn
	ResetCard             // the card is reset before the command, which it does not get: ErrReset
	WrongSW               // the card does nothing and answers SW
	Empty                 // the card gets nothing; 0 bytes come back, and no error
	Lose                  // the command takes effect; ErrLost comes back
)

// Fault is something that goes wrong once.
type Fault struct {
	Step  int // at which command: 1 is the next one
	Kind  Kind
	Delay time.Duration // before anything else happens
	SW    apdu.SW       // of WrongSW
}

// Inject makes these faults happen, and no others that were injected before. The
// steps count from here.
func (c *Card) Inject(faults ...Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults, c.step = slices.Clone(faults), 0
}
