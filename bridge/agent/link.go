package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gorilla/websocket"

	"github.com/pinward/pinward/shared/relay"
)

// errPlanned: the connection was given up for a new one, before the cloud does that.
var errPlanned = errors.New("connecting anew, as planned")

// refusedError: the cloud does not take the token.
type refusedError struct {
	ahead time.Duration // of this machine's clock, if it is wrong
}

func (e *refusedError) Error() string {
	direction := "ahead"
	if e.ahead < 0 {
		direction = "behind"
	}
	if e.ahead != 0 {
		return fmt.Sprintf("the cloud refuses this bridge's token: this machine's clock is %v %s; set it right", e.ahead.Abs(), direction)
	}
	return "the cloud refuses this bridge's token"
}

// tolerance is how wrong the clock may be.
const tolerance = time.Minute

// Dial connects to the relay, without a word. If the bridge was revoked, the error is a
// *GoodbyeError.
func Dial(ctx context.Context, c Config) (*websocket.Conn, error) {
	var random [4]byte
	if _, err := io.ReadFull(c.Rand, random[:]); err != nil {
		return nil, fmt.Errorf("make token: %w", err)
	}
	now := c.Now()
	e := c.Enrolment
	token, err := relay.NewToken(e.Identity, relay.Claims{
		Tenant: e.Tenant, Bridge: e.Bridge, Relay: e.Relay, At: now,
		ID: fmt.Sprintf("%016x%08x", now.UnixNano(), binary.BigEndian.Uint32(random[:])),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	dialer := websocket.Dialer{Proxy: http.ProxyFromEnvironment, TLSClientConfig: c.TLS, HandshakeTimeout: dialFor, ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10}
	conn, resp, err := dialer.DialContext(ctx, e.Relay, http.Header{"Authorization": {"Bearer " + token.Reveal()}})
	if err == nil {
		conn.SetReadLimit(relay.MaxMessage)
		return conn, nil
	}
	if resp == nil || !errors.Is(err, websocket.ErrBadHandshake) {
		return nil, fmt.Errorf("connect to %s: %w", e.Relay, err)
	}
	switch resp.StatusCode {
	case http.StatusForbidden:
		return nil, &GoodbyeError{relay.Revoked, "this bridge was revoked: enrol it anew"}
	case http.StatusUnauthorized:
		return nil, &refusedError{wrongBy(resp, c.Now())}
	}
	return nil, fmt.Errorf("connect to %s: the answer is %s", e.Relay, resp.Status)
}

// wrongBy is how far this machine's clock is ahead, 0 if it is right or that is not known.
func wrongBy(resp *http.Response, now time.Time) time.Duration {
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil || now.Sub(date).Abs() < tolerance {
		return 0
	}
	return now.Sub(date).Round(time.Second)
}

// link is one connection.
type link struct {
	*Agent
	conn    *websocket.Conn
	number  int64
	welcome chan relay.Welcome
	ended   chan error    // one, when nothing more is read
	patient time.Duration // how long nothing may be heard; 0 before Welcome
	toldAt  time.Time     // when it was told last what was done offline
}

// connect makes a connection and serves it until it is lost.
func (a *Agent) connect(ctx context.Context) error {
	conn, err := Dial(ctx, a.Config)
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.link++
	l := &link{Agent: a, conn: conn, number: a.link, welcome: make(chan relay.Welcome, 1), ended: make(chan error, 1)}
	a.once = nil
	a.mu.Unlock()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		l.ended <- l.read()
	}()
	defer func() {
		_ = conn.Close()
		<-stopped
		a.disconnected()
	}()
	if err := l.send(relay.Message{Hello: &relay.Hello{Program: a.Program, System: a.System, Session: a.Session}}); err != nil {
		return err
	}
	select {
	case w := <-l.welcome:
		return l.serve(ctx, w)
	case err := <-l.ended:
		return err
	case <-time.After(welcomeFor):
		return errors.New("the cloud does not answer")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// disconnected lets all that wait for an answer know, and all results be sent again.
func (a *Agent) disconnected() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.greeted = false
	for ref, waiter := range a.waiters {
		waiter <- answer{err: ErrDisconnected}
		delete(a.waiters, ref)
	}
	for _, d := range a.outbox {
		d.sentAt = time.Time{}
	}
}

// read takes in messages until the connection is lost.
func (l *link) read() error {
	_ = l.conn.SetReadDeadline(time.Now().Add(welcomeFor))
	for {
		_, b, err := l.conn.ReadMessage()
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		m, err := relay.DecodeAtBridge(b)
		clear(b)
		if err != nil {
			l.Log.Error("a message was not understood", "reason", err)
			continue
		}
		switch {
		case m.Welcome != nil:
			now := l.Now()
			l.mu.Lock()
			l.offset, l.greeted = clock{m.Welcome.Time, now}, true
			l.mu.Unlock()
			l.patient = 2*keepAlive(*m.Welcome) + 10*time.Second
			if l.Offline != nil && m.Welcome.Offline != nil {
				if err := l.Offline.Key(m.Welcome.Offline); err != nil {
					l.Log.Error("the organisation's offline key is not kept", "reason", err)
				}
			}
			select {
			case l.welcome <- *m.Welcome:
			default:
			}
		case m.Goodbye != nil:
			return &GoodbyeError{m.Goodbye.Code, m.Goodbye.Reason}
		case m.Run != nil && l.patient > 0: // before Welcome its deadline cannot be checked
			l.take(*m.Run, l.number)
		case m.Known != nil:
			l.know(*m.Known)
		case m.Ack != nil:
			l.acknowledged(*m.Ack)
		case m.Operation != nil:
			l.answered(m.Operation.Ref, answer{operation: *m.Operation})
		case m.Opened != nil:
			l.answered(m.Opened.Ref, answer{opened: *m.Opened})
		case m.Problem != nil:
			l.answered(m.Problem.Ref, answer{err: &ProblemError{*m.Problem}})
		}
		if l.patient > 0 {
			_ = l.conn.SetReadDeadline(time.Now().Add(l.patient))
		}
	}
}

// know takes in what the cloud tells of a card.
func (l *link) know(k relay.Known) {
	if l.Offline != nil {
		holds, err := l.Offline.Know(k)
		if err != nil {
			l.Log.Error("what is known of a card is not kept", "reason", err)
		}
		holds.Insertion = k.Insertion
		k = holds
	}
	if l.Expired == nil || !k.PINExpired(l.cloudNow()) {
		return
	}
	if reader, first := l.cards.tell(k.Insertion); first {
		l.Expired(reader, k)
	}
}

func (l *link) acknowledged(ack relay.Ack) {
	l.mu.Lock()
	delete(l.outbox, key{ack.Operation, ack.Part})
	l.mu.Unlock()
	if err := l.Journal.Acknowledge(ack.Operation, ack.Part, l.cloudNow()); err != nil {
		l.Log.Error("a result will be told again", "reason", err)
	}
	if l.Offline != nil {
		if err := l.Offline.Acknowledge(ack.Operation); err != nil {
			l.Log.Error("what was done offline will be told again", "reason", err)
		}
	}
	l.wake()
}

func keepAlive(w relay.Welcome) time.Duration {
	return time.Duration(min(max(w.KeepAliveSeconds, 1), 540)) * time.Second // API Gateway: 10 minutes
}

// serve sends what there is to be sent.
func (l *link) serve(ctx context.Context, w relay.Welcome) error {
	l.Log.InfoContext(ctx, "connected", "organisation", w.Organisation, "relay", l.Enrolment.Relay)
	l.fill()
	ping := time.NewTicker(keepAlive(w))
	defer ping.Stop()
	var anew <-chan time.Time
	if w.ReconnectSeconds > 0 {
		timer := time.NewTimer(time.Duration(w.ReconnectSeconds) * time.Second)
		defer timer.Stop()
		anew = timer.C
	}
	done := ctx.Done()
	var stop, due bool
	var late <-chan time.Time
	reported := int64(0)
	for {
		report, changed := l.cards.report()
		if report.Sequence > reported {
			reported = report.Sequence
			if err := l.send(relay.Message{Readers: &report}); err != nil {
				return err
			}
		}
		if err := l.deliver(keepAlive(w)); err != nil {
			return err
		}
		switch idle := l.idle(); {
		case stop && idle && l.delivered():
			return l.leave(nil)
		case stop && idle && late == nil:
			late = time.After(ackFor)
		case due && idle && !stop:
			return l.leave(errPlanned)
		}
		select {
		case <-done:
			l.Log.Info("stopping", "scripts", map[bool]string{true: "none", false: "under way"}[l.idle()])
			done, stop = nil, true
			l.close()
		case <-late:
			return l.leave(nil)
		case <-anew:
			due = true
		case err := <-l.ended:
			return err
		case <-changed:
		case <-l.kick:
		case r := <-l.requests:
			l.mu.Lock()
			l.waiters[r.ref] = r.answer
			l.mu.Unlock()
			if err := l.send(r.message); err != nil {
				return err
			}
		case <-ping.C:
			if err := l.send(relay.Message{Ping: &relay.Ping{}}); err != nil {
				return err
			}
		}
	}
}

// fill puts all results into the outbox that the journal has, also of processes that have
// ended.
func (l *link) fill() {
	results, err := l.Journal.Waiting()
	if err != nil {
		l.Log.Error("results of former scripts are missing", "reason", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range results {
		k := key{r.Operation, r.Part}
		if l.outbox[k] == nil {
			l.outbox[k] = &delivery{result: r}
		}
	}
}

// deliver sends the results that were not sent, or long ago.
func (l *link) deliver(again time.Duration) error {
	now := l.Now()
	l.mu.Lock()
	results := l.once
	l.once = nil
	for _, d := range l.outbox {
		if d.sentAt.IsZero() || now.Sub(d.sentAt) >= again {
			d.sentAt = now
			results = append(results, d.result)
		}
	}
	l.mu.Unlock()
	for _, r := range results {
		if err := l.send(relay.Message{Result: &r}); err != nil {
			return err
		}
	}
	l.mu.Lock()
	atOnce := l.untold
	l.untold = false
	l.mu.Unlock()
	if l.Offline == nil || !atOnce && !l.toldAt.IsZero() && now.Sub(l.toldAt) < again {
		return nil
	}
	l.toldAt = now
	done, err := l.Offline.Done()
	if err != nil {
		l.Log.Error("what was done offline is missing", "reason", err)
	}
	ahead := l.cloudNow().Sub(now) // what is noted is by this machine's clock
	for _, d := range done {
		d.At = d.At.Add(ahead)
		if err := l.send(relay.Message{Offline: &d}); err != nil {
			return err
		}
	}
	return nil
}

// delivered tells whether all results are acknowledged.
func (l *link) delivered() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.outbox) == 0 && len(l.once) == 0
}

func (l *link) send(m relay.Message) error {
	b, err := relay.Encode(m)
	if err != nil {
		// It would not be any better the next time.
		l.Log.Error("a message cannot be sent", "reason", err)
		return nil
	}
	defer clear(b)
	_ = l.conn.SetWriteDeadline(time.Now().Add(writeFor))
	if err := l.conn.WriteMessage(websocket.TextMessage, b); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// leave ends the connection in good order: what the cloud has sent until then is taken in.
func (l *link) leave(why error) error {
	_ = l.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	select {
	case err := <-l.ended:
		var goodbye *GoodbyeError
		if errors.As(err, &goodbye) && why != nil {
			return goodbye
		}
	case <-time.After(2 * time.Second):
	}
	return why
}
