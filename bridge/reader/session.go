package reader

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// link is a card that is held. Its calls may block for ever; only the goroutine of the
// session makes them.
type link interface {
	// transmit returns what the card answered; any error ends the session.
	transmit(command []byte) ([]byte, error)
	// close lets the card go, reset or as it is.
	close(reset bool)
}

// Session is one exclusive hold of one inserted card. It ends with Close, by the first
// error of Transmit but that of a malformed command, when the context of Open is done,
// and by itself when its limits are reached. A card that was to authenticate somebody,
// or whose session did not end with Close, is reset, so that nobody inherits any rights.
type Session struct {
	limits Limits
	silent func() // the card is to be told as silent until the session is gone

	commands chan []byte
	pauses   chan struct{}
	answers  chan answer
	over     chan struct{} // closed when nothing goes to the card any more
	gone     chan struct{} // closed when the card is let go

	once sync.Once
	err  error // why it is over
}

type answer struct {
	data []byte
	err  error
}

func newSession(limits Limits, silent func()) *Session {
	return &Session{
		limits: limits, silent: silent,
		commands: make(chan []byte), pauses: make(chan struct{}), answers: make(chan answer, 1),
		over: make(chan struct{}), gone: make(chan struct{}),
	}
}

// Transmit is an apdu.Transmitter; one command at a time. The errors are those of this
// package, the context's and, for a command without a whole header, one that leaves the
// session as it is. After any other the card may have carried out the command.
func (s *Session) Transmit(ctx context.Context, command []byte) ([]byte, error) {
	if len(command) < 4 {
		return nil, fmt.Errorf("command of %d bytes: a header has 4", len(command))
	}
	// The card may be given up before it is done with the command, which the caller
	// overwrites.
	own := slices.Clone(command)
	select {
	case s.commands <- own:
	case <-s.over:
		clear(own)
		return nil, s.err
	}
	late := time.NewTimer(s.limits.Answer)
	defer late.Stop()
	select {
	case a := <-s.answers:
		return a.data, a.err
	case <-s.over:
		select {
		case a := <-s.answers:
			return a.data, a.err
		default:
			return nil, s.err
		}
	case <-ctx.Done():
		s.end(ctx.Err())
		return nil, ctx.Err()
	case <-late.C:
		s.end(ErrSilent)
		s.silent()
		return nil, ErrSilent
	}
}

// Pause lets others speak to the card until the next command, in a session of Keep.
func (s *Session) Pause() {
	select {
	case s.pauses <- struct{}{}:
	case <-s.over:
	}
}

// pauser is a link of a session that can be paused.
type pauser interface{ pause() }

// Close ends the session and waits until the card is let go.
func (s *Session) Close() {
	s.end(ErrClosed)
	if s.err == ErrSilent {
		return
	}
	late := time.NewTimer(s.limits.Answer)
	defer late.Stop()
	select {
	case <-s.gone:
	case <-late.C:
		s.silent()
	}
}

// end ends it for the callers; only the first reason counts.
func (s *Session) end(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.over)
	})
}

// The commands that a bridge lets through which leave rights behind in a card: GENERAL
// AUTHENTICATE (ISO 7816-4, 7.5.5), and VERIFY with a PIN and CHANGE REFERENCE DATA of it
// (ISO 7816-4, 7.5.6 and 7.5.7).
func authenticates(command []byte) bool {
	const generalAuthenticate, verify, changeReferenceData, refPIN = 0x87, 0x20, 0x24, 0x80
	return command[1] == generalAuthenticate || command[3] == refPIN && (command[1] == verify || command[1] == changeReferenceData) && len(command) > 5
}

// serve passes on commands until the session is over, and lets the card go.
func (s *Session) serve(l link) {
	idle := time.NewTimer(s.limits.Idle)
	defer idle.Stop()
	authenticated := false
	for {
		select {
		case <-s.over:
			l.close(authenticated || s.err != ErrClosed)
			return
		case <-idle.C:
			s.end(ErrHeld)
		case <-s.pauses:
			if p, ok := l.(pauser); ok {
				p.pause()
			}
		case command := <-s.commands:
			select {
			case <-s.over: // at the same time
				clear(command)
				continue
			default:
			}
			authenticated = authenticated || authenticates(command)
			data, err := l.transmit(command)
			clear(command)
			if err == nil && len(data) < 2 {
				err = fmt.Errorf("%w: it answered with %d bytes", ErrRemoved, len(data))
			}
			if err != nil {
				data = nil
			}
			s.answers <- answer{data, err}
			if err != nil {
				s.end(err)
			}
			idle.Reset(s.limits.Idle)
		}
	}
}
