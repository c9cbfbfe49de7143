// Package reader is what a bridge sees of readers and cards, over PC/SC or over a card
// in software. Its invariant: whoever talks to a card holds it alone, from Open to the
// end of the Session, and it is the very card whose insertion was told. A session that
// was disturbed (the card pulled or reset, no answer, held too long) is over for good
// and says why: nothing goes on silently on a card that may have forgotten.
package reader

import (
	"context"
	"errors"
	"time"
)

// Source is where readers and cards come from.
type Source interface {
	// Watch tells what is there and then what changes, until ctx is done; then the
	// channel is closed. The first event is ServiceUp or ServiceDown. It goes on
	// whatever happens to the service. One Watch at a time: the next waits for the
	// one before to end.
	Watch(ctx context.Context) <-chan Event
	// Open waits for its turn and takes hold of a card that Watch has told of, if it
	// has not been out since. The session is over when ctx is done.
	Open(ctx context.Context, reader string, insertion int64) (*Session, error)
}

// Keeper is a Source that can keep a card for as long as a person needs.
type Keeper interface {
	Source
	// Keep is Open of a session that may be idle for so long. While it is paused there is
	// no transaction: where the card can be had for this program alone, no other one gets
	// to it; else one may reset it, and then the session is over, or use it, and then the
	// card may have forgotten what it was told, and says so.
	Keep(ctx context.Context, reader string, insertion int64, idle time.Duration) (*Session, error)
}

// Kind is a kind of event.
type Kind string

// The kinds of events. A reader comes before its card, and its card goes before it;
// when the service goes, all readers have gone before.
const (
	ServiceUp     Kind = "serviceUp"
	ServiceDown   Kind = "serviceDown"
	ReaderAdded   Kind = "readerAdded"
	ReaderRemoved Kind = "readerRemoved"
	CardInserted  Kind = "cardInserted"
	CardRemoved   Kind = "cardRemoved"
	// CardSilent: a card is in the reader and does not answer. If it does again, it is
	// told as inserted, with a new insertion.
	CardSilent Kind = "cardSilent"
)

// Event is something that happened.
type Event struct {
	Kind   Kind
	Reader string // of readers and cards
	ATR    []byte // of CardInserted
	// Insertion, of CardInserted, is another at every insertion, and with CardRemoved it
	// is the same; there it is 0 if the card was silent.
	Insertion int64
	Err       error // of ServiceDown: why
}

// Why a session does not begin, or is over.
var (
	ErrRemoved   = errors.New("the card was removed, or lost contact")
	ErrReset     = errors.New("another program has reset the card")
	ErrSilent    = errors.New("the card does not answer")
	ErrBusy      = errors.New("another program holds the card, or its reader hangs")
	ErrHeld      = errors.New("the card was held too long without a command")
	ErrClosed    = errors.New("the session is closed")
	ErrNoService = errors.New("the smart card service is not available")
	ErrNoPCSC    = errors.New("this build has no PC/SC")
)

// Limits are how long things may take.
type Limits struct {
	// Idle is how long a session may last without a command. Windows resets a card
	// whose transaction idles for 5 s.
	Idle time.Duration
	// Answer is how long a card may take for one answer.
	Answer time.Duration
	// Turn is how long Open waits for others that hold the card.
	Turn time.Duration
}

// DefaultLimits are those of a bridge.
var DefaultLimits = Limits{Idle: 4 * time.Second, Answer: 10 * time.Second, Turn: 10 * time.Second}
