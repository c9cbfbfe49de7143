// Package agent is a bridge at work: it connects to the cloud, reports readers and cards,
// and runs the scripts that it is sent. Its invariants: nothing reaches a card but through
// apdu.Run, on the very insertion that was meant, once the journal has noted it; and a new
// PIN that the policy does not let through reaches none.
package agent

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/pinward/pinward/bridge/enrolment"
	"github.com/pinward/pinward/bridge/journal"
	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/shared/relay"
)

// Config is what an agent works with. All of it must be given but TLS, Offline, LogonScreen
// and Expired.
type Config struct {
	Session   relay.Session
	Enrolment *enrolment.Enrolment
	Source    reader.Source
	Journal   *journal.Journal
	Program   string // the bridge's version
	System    string // "linux/amd64"
	TLS       *tls.Config
	Log       *slog.Logger
	Now       func() time.Time
	Rand      io.Reader // cryptographic
	Offline   Offline
	// LogonScreen: the person of a Terminal is at a locked screen or a login.
	LogonScreen bool
	// Expired is told once an insertion if the card's PIN has expired. It must not block.
	Expired func(reader string, known relay.Known)
}

// Offline is what is kept for when there is no connection.
type Offline interface {
	// Key keeps the tenant's offline public key.
	Key(key []byte) error
	// Know keeps what the cloud tells of a card, and returns what holds by now: the cloud may
	// not have noted yet what was done here.
	Know(known relay.Known) (relay.Known, error)
	// Done is what was done without a connection and is not acknowledged, and Acknowledge
	// forgets it.
	Done() ([]relay.Offline, error)
	Acknowledge(id string) error
}

// Agent is a bridge at work, for one session.
type Agent struct {
	Config
	cards *cards

	// kick tells the connection that something is to be sent, or that nothing is under way
	// any more.
	kick     chan struct{}
	requests chan request
	news     chan relay.Operation
	over     chan struct{} // closed when Run has ended

	mu      sync.Mutex
	err     error // why Run has ended
	offset  clock
	link    int64 // numbers the connections
	lanes   map[string]*lane
	greeted bool // by the cloud, on this connection
	untold  bool // something was done offline, and is to be told at once
	working int  // scripts that are queued or run, and transactions that are held
	closing bool // no more scripts are taken
	outbox  map[key]*delivery
	once    []relay.Result // without a fence: to be sent once, on this connection
	waiters map[string]chan<- answer
	typed   typed
}

type key struct {
	operation string
	part      int
}

// delivery is a result that is not acknowledged.
type delivery struct {
	result relay.Result
	sentAt time.Time // zero: not on this connection
}

// New returns an agent that does nothing before Run.
func New(c Config) (*Agent, error) {
	prefix := make([]byte, 8)
	if _, err := io.ReadFull(c.Rand, prefix); err != nil {
		return nil, fmt.Errorf("name the insertions: %w", err)
	}
	return &Agent{
		Config: c, cards: newCards(hex.EncodeToString(prefix)),
		kick: make(chan struct{}, 1), requests: make(chan request), news: make(chan relay.Operation, 16), over: make(chan struct{}),
		lanes: map[string]*lane{}, outbox: map[key]*delivery{}, waiters: map[string]chan<- answer{},
	}, nil
}

// GoodbyeError: the cloud has told this bridge to go.
type GoodbyeError struct {
	Code   relay.GoodbyeCode
	Reason string // for people
}

// Error implements error.
func (e *GoodbyeError) Error() string { return e.Reason }

// How long things may take.
const (
	dialFor    = 20 * time.Second
	welcomeFor = 15 * time.Second
	writeFor   = 10 * time.Second
	// ackFor is how long an agent that ends waits for its last results to be acknowledged.
	ackFor = 2 * time.Second
	// finishFor is the longest that it lets a script go on.
	finishFor = 60 * time.Second
	// steady is how long a connection must last to count as good.
	steady = 30 * time.Second
)

// Run works until ctx is done: then it lets scripts finish that run, and returns nil. A
// *GoodbyeError says that it is no use to go on. It may be called once.
func (a *Agent) Run(ctx context.Context) error {
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() { a.watch(watching) })
	err := a.keepConnected(ctx)
	a.close()
	a.finish()
	stop()
	watch.Wait()

	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
	a.typed.wipe()
	close(a.over)
	return err
}

func (a *Agent) keepConnected(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		began := a.Now()
		err := a.connect(ctx)
		var goodbye *GoodbyeError
		var refused *refusedError
		switch {
		case errors.As(err, &goodbye):
			return err
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errPlanned):
			a.Log.InfoContext(ctx, err.Error())
			attempt = -1
			continue
		case a.Now().Sub(began) > steady:
			attempt = 0
		}
		pause := a.backoff(attempt)
		if errors.As(err, &refused) && attempt > 0 {
			pause = mostPause/2 + pause/2 // it will hardly be another answer
		}
		a.Log.WarnContext(ctx, "not connected", "reason", err, "retryIn", pause.Round(time.Millisecond).String())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

const firstPause, mostPause = time.Second, 60 * time.Second

// backoff is the pause before the next attempt: from none to the most, which doubles each
// time ("full jitter").
func (a *Agent) backoff(attempt int) time.Duration {
	most := min(firstPause<<min(attempt, 10), mostPause)
	var b [8]byte
	_, _ = io.ReadFull(a.Rand, b[:]) // without randomness there is no pause
	return time.Duration(binary.BigEndian.Uint64(b[:]) % uint64(most))
}

// close takes no more scripts, and lets go of cards that are held for one.
func (a *Agent) close() {
	a.mu.Lock()
	a.closing = true
	var holds []*hold
	for _, l := range a.lanes {
		if l.hold != nil {
			holds = append(holds, l.hold)
		}
	}
	a.mu.Unlock()
	for _, h := range holds {
		a.release(h)
	}
}

// finish waits until nothing is under way.
func (a *Agent) finish() {
	late := time.After(finishFor)
	for !a.idle() {
		select {
		case <-a.kick:
		case <-late:
			a.Log.Error("a script does not end")
			return
		}
	}
}

func (a *Agent) idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.working == 0
}

func (a *Agent) wake() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// clock is the cloud's, as it was told.
type clock struct{ cloud, here time.Time }

// Time is the time in the cloud, or this machine's until it was connected.
func (a *Agent) Time() time.Time { return a.cloudNow() }

// Connected tells whether it is connected, and was greeted.
func (a *Agent) Connected() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.greeted
}

// Tell has what was done offline told at once.
func (a *Agent) Tell() {
	a.mu.Lock()
	a.untold = true
	a.mu.Unlock()
	a.wake()
}

// Open takes hold of a card of Readers, which may be of use without a connection too.
func (a *Agent) Open(ctx context.Context, in, insertion string) (*reader.Session, error) {
	name, number, ok := a.cards.find(in, insertion)
	if !ok {
		return nil, reader.ErrRemoved
	}
	return a.Source.Open(ctx, name, number)
}

// cloudNow is the time in the cloud, or this machine's until that was told. Of the
// monotonic clock, which may stand still while the machine sleeps, and the wall's, which
// may be set, the one that has gone further counts: a script that is refused as too late
// does no harm.
func (a *Agent) cloudNow() time.Time {
	now := a.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.offset
	if o.cloud.IsZero() {
		return now
	}
	return o.cloud.Add(max(now.Sub(o.here), now.Round(0).Sub(o.here.Round(0))))
}
