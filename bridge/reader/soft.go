package reader

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// SoftReader is a reader in software: infra/softcard's Reader is one.
type SoftReader[Card comparable, Connection SoftConnection] interface {
	// Card returns the card that is in the reader, or the zero value, and a channel that
	// is closed when that changes. Every insertion has a channel of its own.
	Card() (Card, <-chan struct{})
	// Connect connects to the card that is in the reader.
	Connect() (Connection, error)
}

// SoftConnection is a connection to one card, from its insertion to its removal.
type SoftConnection interface {
	ATR() []byte
	Transmit(command []byte) ([]byte, error)
	Reset() error
}

// Soft is a reader in software as a source.
type Soft struct {
	name    string
	limits  Limits
	slots   *slots
	card    func() (bool, <-chan struct{})
	connect func() (SoftConnection, error)
	reset   error
}

// NewSoft makes a reader a source. The error reset is what its connections return when
// the card was reset through another connection.
func NewSoft[Card comparable, Connection SoftConnection](name string, r SoftReader[Card, Connection], reset error, limits Limits) *Soft {
	return &Soft{
		name: name, limits: limits, slots: newSlots(), reset: reset,
		card: func() (bool, <-chan struct{}) {
			card, changed := r.Card()
			var none Card
			return card != none, changed
		},
		connect: func() (SoftConnection, error) { return r.Connect() },
	}
}

// Watch implements Source.
func (s *Soft) Watch(ctx context.Context) <-chan Event {
	return s.slots.watch(ctx, func(tell func(...Event) bool) {
		if !tell(Event{Kind: ServiceUp}, Event{Kind: ReaderAdded, Reader: s.name}) {
			return
		}
		for {
			present, changed := s.card()
			var card any
			var atr []byte
			if present {
				if c, err := s.connect(); err == nil {
					card, atr = changed, c.ATR()
				}
			}
			if !tell(s.slots.see(s.name, card, atr, false)...) {
				return
			}
			select {
			case <-changed:
			case <-s.slots.wake:
			case <-ctx.Done():
				return
			}
		}
	})
}

// Open implements Source.
func (s *Soft) Open(ctx context.Context, reader string, insertion int64) (*Session, error) {
	return s.open(ctx, s.limits, reader, insertion)
}

// Keep implements Keeper.
func (s *Soft) Keep(ctx context.Context, reader string, insertion int64, idle time.Duration) (*Session, error) {
	limits := s.limits
	limits.Idle = idle
	return s.open(ctx, limits, reader, insertion)
}

func (s *Soft) open(ctx context.Context, limits Limits, reader string, insertion int64) (*Session, error) {
	return s.slots.open(ctx, limits, reader, insertion, func(card any) (link, error) {
		c, err := s.connect()
		l := softLink{c, card.(<-chan struct{}), s.reset}
		if err != nil || l.removed() {
			return nil, ErrRemoved
		}
		return l, nil
	})
}

type softLink struct {
	SoftConnection
	changed <-chan struct{}
	reset   error
}

func (l softLink) removed() bool {
	select {
	case <-l.changed:
		return true
	default:
		return false
	}
}

func (l softLink) transmit(command []byte) ([]byte, error) {
	answer, err := l.Transmit(command)
	switch {
	case err == nil:
		return answer, nil
	case l.removed():
		return nil, ErrRemoved
	case errors.Is(err, l.reset):
		return nil, ErrReset
	}
	return nil, fmt.Errorf("transmit: %w", err)
}

func (l softLink) close(reset bool) {
	if reset {
		_ = l.Reset()
	}
}
