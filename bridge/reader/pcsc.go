//go:build !nopcsc && (windows || (cgo && (linux || darwin)))

package reader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"time"

	"github.com/ebfe/scard"
)

// PCSC are the readers of PC/SC.
type PCSC struct {
	limits Limits
	slots  *slots
	// plugAndPlay: ask the service to tell of readers that come, if it can.
	plugAndPlay bool
}

// NewPCSC returns the readers of PC/SC. Nothing is asked of the service before Watch.
func NewPCSC(limits Limits) *PCSC {
	return &PCSC{limits: limits, slots: newSlots(), plugAndPlay: true}
}

const (
	// lookAnyway is how often a Watch wakes up if nothing happens, because a Cancel or a
	// reader that came between two waits may be lost.
	lookAnyway = 30 * time.Second
	// lookForReaders is how often it does without plug and play.
	lookForReaders = 2 * time.Second
	// Without the service it is tried again after firstPause, doubled up to lastPause; a
	// service that lasts no longer than that is as good as none.
	firstPause, lastPause = 100 * time.Millisecond, 5 * time.Second
	// cancelAgain is how soon a Cancel that did nothing is repeated.
	cancelAgain = 10 * time.Millisecond
)

// notification is the name of no reader, but of their number (SCardGetStatusChange).
const notification = `\\?PnP?\Notification`

// Watch implements Source.
func (p *PCSC) Watch(ctx context.Context) <-chan Event {
	return p.slots.watch(ctx, func(tell func(...Event) bool) {
		w := watch{PCSC: p, tell: tell, readers: map[string]scard.StateFlag{}}
		pause := firstPause
		for {
			start := time.Now()
			err := w.follow(ctx)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				continue
			}
			if time.Since(start) > lastPause {
				pause = firstPause
			}
			if !w.keep(nil) || !w.service(Event{Kind: ServiceDown, Err: fmt.Errorf("%w (%w)", ErrNoService, err)}) {
				return
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			pause = min(2*pause, lastPause)
		}
	})
}

// watch is the loop of a Watch.
type watch struct {
	*PCSC
	tell    func(...Event) bool
	last    Kind                       // of the service's events
	readers map[string]scard.StateFlag // as last seen
}

// service tells of the service once.
func (w *watch) service(e Event) bool {
	if w.last == e.Kind {
		return true
	}
	w.last = e.Kind
	return w.tell(e)
}

// follow tells what happens until ctx is done, the service is gone, or, with nil, a new
// context is needed.
func (w *watch) follow(ctx context.Context) error {
	// GetStatusChange blocks all other calls on its context: it has one of its own.
	sc, err := scard.EstablishContext()
	if err != nil {
		return err
	}
	defer sc.Release()
	pnp := w.plugAndPlay && w.hasPlugAndPlay(sc)
	readers := scard.StateUnaware // their number, as the service has it
	for surprises := 0; ; {
		names, err := listReaders(sc)
		if err != nil {
			return err
		}
		if !w.service(Event{Kind: ServiceUp}) || !w.keep(names) {
			return nil
		}
		// States are made anew each time: an error leaves the old ones as they were, and an
		// old ATR would stay in a reader without a card.
		var states []scard.ReaderState
		limit := lookForReaders
		if pnp {
			limit = lookAnyway
			states = append(states, scard.ReaderState{Reader: lasting(notification, w.slots), CurrentState: readers})
		}
		for _, name := range names {
			states = append(states, scard.ReaderState{Reader: lasting(name, w.slots), CurrentState: w.readers[name]})
		}
		switch err := w.wait(ctx, sc, states, limit); {
		case err == nil:
			if pnp {
				readers = states[0].EventState &^ scard.StateChanged
			}
			for i, name := range names {
				if !w.see(name, states[len(states)-len(names)+i]) {
					return nil
				}
			}
			surprises = 0
		case errors.Is(err, scard.ErrTimeout):
		case errors.Is(err, errWoken):
			// What was given up, or is answered again, is looked at as if for the first time.
			for name := range w.readers {
				w.readers[name] = scard.StateUnaware
			}
			return nil
		case errors.Is(err, scard.ErrUnknownReader) && surprises < 3: // one has just gone
			surprises++
		default:
			return err
		}
	}
}

var errWoken = errors.New("woken")

// wait is GetStatusChange that ends with errWoken when ctx is done or the slots have
// changed. Cancel is lost if it comes just before the wait, so it is repeated until the
// wait is over; and the context is not to be used after it, for it may also come late.
func (w *watch) wait(ctx context.Context, sc *scard.Context, states []scard.ReaderState, limit time.Duration) error {
	if len(states) == 0 { // GetStatusChange panics
		select {
		case <-time.After(limit):
			return scard.ErrTimeout
		case <-ctx.Done():
		case <-w.slots.wake:
		}
		return errWoken
	}
	over, woken := make(chan struct{}), make(chan bool)
	go func() {
		select {
		case <-over:
			woken <- false
			return
		case <-ctx.Done():
		case <-w.slots.wake:
		}
		for {
			_ = sc.Cancel()
			select {
			case <-over:
				woken <- true
				return
			case <-time.After(cancelAgain):
			}
		}
	}()
	err := sc.GetStatusChange(states, limit)
	close(over)
	if <-woken {
		return errWoken
	}
	return err
}

// keep tells which readers have come, and which have gone.
func (w *watch) keep(names []string) bool {
	for _, name := range slices.Sorted(maps.Keys(w.readers)) {
		if slices.Contains(names, name) {
			continue
		}
		delete(w.readers, name)
		if !w.tell(append(w.slots.see(name, nil, nil, false), Event{Kind: ReaderRemoved, Reader: name})...) {
			return false
		}
	}
	for _, name := range names {
		if _, ok := w.readers[name]; ok {
			continue
		}
		w.readers[name] = scard.StateUnaware
		if !w.tell(Event{Kind: ReaderAdded, Reader: name}) {
			return false
		}
	}
	return true
}

// see tells what has become of the card in a reader.
func (w *watch) see(name string, state scard.ReaderState) bool {
	w.readers[name] = state.EventState &^ scard.StateChanged
	var card any
	if c, ok := inserted(state); ok {
		card = c
	}
	return w.tell(w.slots.see(name, card, state.Atr, state.EventState&scard.StateMute != 0)...)
}

// insertion tells an inserted card from all others while the service runs.
type insertion struct {
	events uint16 // how often cards came and went (upper half of dwEventState)
	atr    string
}

func inserted(state scard.ReaderState) (insertion, bool) {
	if state.EventState&scard.StatePresent == 0 {
		return insertion{}, false
	}
	return insertion{uint16(state.EventState >> 16), string(state.Atr)}, true
}

// lasting returns a name for GetStatusChange. The binding keeps the C string of a name
// alive only until the next one of the same name is made, which may be while a wait on
// another goroutine still reads the first: what comes behind a NUL tells the names of
// users apart for the binding and not for the service. On Windows no name may have a NUL, and none
// is kept alive.
func lasting(name string, user any) string {
	if runtime.GOOS == "windows" {
		return name
	}
	return fmt.Sprintf("%s\x00%p", name, user)
}

// listReaders returns an empty list where the service has an error.
func listReaders(sc *scard.Context) ([]string, error) {
	names, err := sc.ListReaders()
	if errors.Is(err, scard.ErrNoReadersAvailable) {
		return nil, nil
	}
	return names, err
}

// hasPlugAndPlay tells whether the service takes notification for a reader. macOS does not.
func (p *PCSC) hasPlugAndPlay(sc *scard.Context) bool {
	states := []scard.ReaderState{{Reader: lasting(notification, p.slots)}}
	err := sc.GetStatusChange(states, 0)
	return errors.Is(err, scard.ErrTimeout) || err == nil && states[0].EventState&scard.StateUnknown == 0
}

// Open implements Source.
func (p *PCSC) Open(ctx context.Context, reader string, insertion int64) (*Session, error) {
	return p.slots.open(ctx, p.limits, reader, insertion, func(card any) (link, error) {
		l, err := p.dial(reader, card, scard.ShareShared)
		if err != nil {
			return nil, translate(err)
		}
		return l, nil
	})
}

// Keep implements Keeper. A program that has connected to the card, as desktops have them,
// keeps it from being had alone.
func (p *PCSC) Keep(ctx context.Context, reader string, insertion int64, idle time.Duration) (*Session, error) {
	limits := p.limits
	limits.Idle = idle
	return p.slots.open(ctx, limits, reader, insertion, func(card any) (link, error) {
		l, err := p.dial(reader, card, scard.ShareExclusive)
		if errors.Is(err, scard.ErrSharingViolation) {
			l, err = p.dial(reader, card, scard.ShareShared)
		}
		if err != nil {
			return nil, translate(err)
		}
		return &keptLink{pcscLink: l}, nil
	})
}

// keptLink is a connection whose transaction can be paused.
type keptLink struct {
	*pcscLink
	paused bool
}

func (l *keptLink) pause() {
	if !l.paused {
		_ = l.card.EndTransaction(scard.LeaveCard)
		l.paused = true
	}
}

func (l *keptLink) transmit(command []byte) ([]byte, error) {
	if l.paused {
		if err := l.card.BeginTransaction(); err != nil {
			return nil, translate(err)
		}
		l.paused = false
	}
	return l.pcscLink.transmit(command)
}

func (l *keptLink) close(reset bool) {
	if l.paused && reset {
		_ = l.card.Disconnect(scard.ResetCard)
	}
	l.pcscLink.close(reset)
}

// pcscLink is a connection with its transaction.
type pcscLink struct {
	sc   *scard.Context
	card *scard.Card
}

// dial begins a transaction on a card if it is the one told.
func (p *PCSC) dial(reader string, told any, share scard.ShareMode) (l *pcscLink, err error) {
	l = &pcscLink{}
	if l.sc, err = scard.EstablishContext(); err != nil {
		return nil, err
	}
	if l.card, err = l.sc.Connect(reader, share, scard.ProtocolAny); err != nil {
		_ = l.sc.Release()
		return nil, err
	}
	err = l.card.BeginTransaction()
	for range 3 {
		if !errors.Is(err, scard.ErrResetCard) {
			break
		}
		// Another program did that since Connect. Nothing is lost yet.
		if err = l.card.Reconnect(share, scard.ProtocolAny, scard.LeaveCard); err == nil {
			err = l.card.BeginTransaction()
		}
	}
	if err == nil {
		err = l.check(lasting(reader, p), told)
	}
	if err != nil {
		l.close(false)
		return nil, err
	}
	return l, nil
}

// check returns nil if it is the card that was told, and can be talked to.
func (l *pcscLink) check(name string, told any) error {
	if p := l.card.ActiveProtocol(); p != scard.ProtocolT0 && p != scard.ProtocolT1 { // Transmit panics
		return fmt.Errorf("protocol %d is neither T=0 nor T=1", p)
	}
	states := []scard.ReaderState{{Reader: name}}
	if err := l.sc.GetStatusChange(states, 0); err != nil {
		return err
	}
	if c, ok := inserted(states[0]); !ok || c != told {
		return ErrRemoved
	}
	return nil
}

func (l *pcscLink) transmit(command []byte) ([]byte, error) {
	if l.card.ActiveProtocol() == scard.ProtocolT0 {
		command = tpdu(command)
		defer clear(command)
	}
	answer, err := l.card.Transmit(command)
	return answer, translate(err)
}

// tpdu returns a short command as T=0 has it (ISO 7816-3:2006, 12.2): P3 is always there,
// and Le is not where there is data; the card answers 61xx then.
func tpdu(command []byte) []byte {
	n := len(command)
	switch {
	case n == 4:
		n = 5
	case n > 5 && n == 5+int(command[4])+1:
		n--
	}
	out := make([]byte, n)
	copy(out, command)
	return out
}

func (l *pcscLink) close(reset bool) {
	disposition := scard.LeaveCard
	if reset {
		disposition = scard.ResetCard
	}
	_ = l.card.EndTransaction(disposition)
	_ = l.card.Disconnect(scard.LeaveCard)
	_ = l.sc.Release()
}

// translate says in this package's words what PC/SC says.
func translate(err error) error {
	var code scard.Error
	if !errors.As(err, &code) {
		return err
	}
	word := err
	switch code {
	case scard.ErrRemovedCard, scard.ErrNoSmartcard, scard.ErrUnknownReader, scard.ErrReaderUnavailable, scard.ErrNotTransacted:
		word = ErrRemoved
	case scard.ErrResetCard:
		word = ErrReset
	case scard.ErrUnresponsiveCard, scard.ErrUnpoweredCard:
		word = ErrSilent
	case scard.ErrSharingViolation:
		word = ErrBusy
	case scard.ErrNoService, scard.ErrServiceStopped, scard.ErrCommError, scard.ErrInvalidHandle:
		word = ErrNoService
	default:
		return err
	}
	return fmt.Errorf("%w (%w)", word, err)
}
