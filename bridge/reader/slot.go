package reader

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// slots are the readers as they were told, against which Open is held.
type slots struct {
	watching sync.Mutex    // held by a Watch
	wake     chan struct{} // a slot became silent, or is no longer: look again

	mu   sync.Mutex
	last int64 // insertion
	all  map[string]*slot
}

// slot is a reader. It stays when the reader has gone, for a session may be left in it.
type slot struct {
	turn chan struct{} // holds one element while there is a session
	// hung: the session waits for an answer that it has given up.
	hung bool

	// As told:
	card      any // nil for none; another value is another insertion
	quiet     bool
	insertion int64
}

func newSlots() *slots {
	return &slots{wake: make(chan struct{}, 1), all: map[string]*slot{}}
}

// of is called with mu held.
func (s *slots) of(reader string) *slot {
	if s.all[reader] == nil {
		s.all[reader] = &slot{turn: make(chan struct{}, 1)}
	}
	return s.all[reader]
}

// see takes note of what is in a reader and returns what there is to tell. card is nil
// for none, and quiet says that it does not answer.
func (s *slots) see(reader string, card any, atr []byte, quiet bool) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := s.of(reader)
	quiet = card != nil && (quiet || slot.hung)
	if slot.card == card && slot.quiet == quiet {
		return nil
	}
	var events []Event
	if slot.card != nil && slot.card != card {
		events = append(events, Event{Kind: CardRemoved, Reader: reader, Insertion: slot.insertion})
	}
	slot.card, slot.quiet, slot.insertion = card, quiet, 0
	if quiet {
		return append(events, Event{Kind: CardSilent, Reader: reader})
	}
	if card != nil {
		s.last++
		slot.insertion = s.last
		events = append(events, Event{Kind: CardInserted, Reader: reader, ATR: atr, Insertion: s.last})
	}
	return events
}

// find returns the slot and the card of an insertion that is still told.
func (s *slots) find(reader string, insertion int64) (*slot, any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := s.of(reader)
	switch {
	case slot.hung || slot.quiet:
		return nil, nil, ErrSilent
	case insertion == 0 || slot.insertion != insertion:
		return nil, nil, ErrRemoved
	}
	return slot, slot.card, nil
}

// open begins a session on a card. What dial takes hold of must be the card that it is
// given; it may block for ever, and is then given up: there is at most one such call
// for a reader.
func (s *slots) open(ctx context.Context, limits Limits, reader string, insertion int64, dial func(card any) (link, error)) (*Session, error) {
	slot, card, err := s.find(reader, insertion)
	if err != nil {
		return nil, fmt.Errorf("reader %s: %w", reader, err)
	}
	late := time.NewTimer(limits.Turn)
	defer late.Stop()
	select {
	case slot.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-late.C:
		return nil, fmt.Errorf("reader %s: %w", reader, ErrBusy)
	}

	session := newSession(limits, nil)
	session.silent = func() { s.hang(slot, session) }
	forget := context.AfterFunc(ctx, func() { session.end(ctx.Err()) })
	opened := make(chan error, 1)
	go func() {
		defer s.leave(slot, session)
		defer forget()
		l, err := dial(card)
		opened <- err
		if err == nil {
			session.serve(l)
		}
	}()
	select {
	case err = <-opened:
	case <-ctx.Done():
		err = ctx.Err()
	case <-late.C:
		err = ErrBusy
	}
	if err != nil {
		session.end(err)
		return nil, fmt.Errorf("reader %s: %w", reader, err)
	}
	return session, nil
}

// hang tells the card as silent, unless the session is gone by now.
func (s *slots) hang(slot *slot, session *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-session.gone:
		return
	default:
	}
	slot.hung = true
	s.look()
}

// leave ends a turn.
func (s *slots) leave(slot *slot, session *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slot.hung {
		slot.hung = false
		s.look()
	}
	<-slot.turn
	close(session.gone)
}

func (s *slots) look() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// watch runs a loop that tells events, and returns where they are told. tell returns
// false when ctx is done.
func (s *slots) watch(ctx context.Context, loop func(tell func(...Event) bool)) <-chan Event {
	events := make(chan Event)
	go func() {
		defer close(events)
		s.watching.Lock()
		defer s.watching.Unlock()
		// What an earlier Watch has told is told anew.
		s.mu.Lock()
		for _, slot := range s.all {
			slot.card, slot.quiet, slot.insertion = nil, false, 0
		}
		s.mu.Unlock()
		loop(func(told ...Event) bool {
			for _, e := range told {
				select {
				case events <- e:
				case <-ctx.Done():
					return false
				}
			}
			return ctx.Err() == nil
		})
	}()
	return events
}
