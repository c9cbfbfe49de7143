package gateway

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
	"github.com/gorilla/websocket"
)

// Limits of a WebSocket API, which cannot be raised ("Quotas for configuring and running
// a WebSocket API"). A client that exceeds one of the sizes is sent off with 1009.
const (
	maxFrame      = 32 << 10
	maxMessage    = 128 << 10
	maxSocketWait = 29 * time.Second // integration timeout
)

const (
	maxInFlight = 64          // messages of one connection that are worked on at once
	goodbyeTime = time.Second // for a client to take note that it is sent off
)

// SocketFront serves a function over WebSockets in the place of API Gateway: one stage,
// and the routes $connect, $disconnect and $default. Events and answers pass through
// JSON. As with API Gateway, each message is a call of its own, beside those under way;
// pings are answered, but only messages keep a connection from being idle; a client that
// sends binary is sent off with 1003; and one whose message made the function fail, but
// not answer 500, is told {"message": "Internal server error", ...}.
type SocketFront struct {
	Idle     time.Duration // without a message either way, a connection is closed with 1001
	Lifetime time.Duration // after which it is closed in any case, with 1001
	// Stall is how long a client may take to receive a message. One that takes longer is
	// disconnected.
	Stall time.Duration

	function SocketFunction
	now      func() time.Time

	running sync.WaitGroup // connections, and so calls of the function
	mu      sync.Mutex
	random  io.Reader
	down    bool
	open    map[string]*socketConn
}

var _ Connections = (*SocketFront)(nil)

// NewSocketFront serves f, with API Gateway's own times. Random makes ids; it is not read
// concurrently. A Socket that posts needs the front and is needed by it: f may be a
// closure over what is made afterwards.
func NewSocketFront(f SocketFunction, now func() time.Time, random io.Reader) *SocketFront {
	return &SocketFront{Idle: 10 * time.Minute, Lifetime: 2 * time.Hour, Stall: 10 * time.Second,
		function: f, now: now, random: random, open: map[string]*socketConn{}}
}

// newID returns an id of API Gateway's shape: 11 bytes in base64, which end with "=".
func (f *SocketFront) newID() string {
	var b [11]byte
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := io.ReadFull(f.random, b[:]); err != nil {
		panic(fmt.Sprintf("read random bytes: %v", err)) // crypto/rand never fails
	}
	return base64.URLEncoding.EncodeToString(b[:])
}

// ServeHTTP implements http.Handler: it is one connection, from $connect to $disconnect.
func (f *SocketFront) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !websocket.IsWebSocketUpgrade(r) {
		message(w, http.StatusUpgradeRequired)
		return
	}
	f.mu.Lock()
	if f.down {
		f.mu.Unlock()
		message(w, http.StatusServiceUnavailable)
		return
	}
	f.running.Add(1)
	f.mu.Unlock()
	defer f.running.Done()

	ctx := context.WithoutCancel(r.Context())
	c := &socketConn{front: f, id: f.newID(), at: f.now(), source: withoutPort(r.RemoteAddr), agent: r.UserAgent(),
		domain: withoutPort(r.Host), ready: make(chan struct{}), writing: make(chan struct{}, 1)}
	event := c.event("CONNECT", "$connect")
	setRequest(&event, r)
	switch res, err := f.call(ctx, event); {
	case errors.Is(err, context.DeadlineExceeded):
		message(w, http.StatusGatewayTimeout)
		return
	case err != nil:
		message(w, http.StatusBadGateway)
		return
	case res.StatusCode < 200 || res.StatusCode > 299:
		if res.StatusCode < 300 || res.StatusCode > 599 {
			res.StatusCode = http.StatusBadGateway
		}
		message(w, res.StatusCode)
		return
	}
	// The function has decided about the Origin; API Gateway itself lets any pass.
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }, HandshakeTimeout: f.Stall,
		ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10}
	f.mu.Lock()
	f.open[c.id] = c // before the client knows: it may be posted to at once
	down := f.down
	f.mu.Unlock()
	code, reason := websocket.CloseAbnormalClosure, "Connection Closed Abnormally"
	if ws, err := upgrader.Upgrade(&hijacker{w}, r, nil); err == nil {
		code, reason = c.serve(ctx, ws, down)
	} else {
		c.drop()
		close(c.ready)
	}
	event = c.event("DISCONNECT", "$disconnect")
	event.Headers = map[string]string{"Host": c.domain, "X-Forwarded-For": "", "x-api-key": "", "x-restapi": ""}
	event.MultiValueHeaders = multi(event.Headers)
	event.RequestContext.DisconnectStatusCode, event.RequestContext.DisconnectReason = int64(code), &reason
	_, _ = f.call(ctx, event) // what failed is logged
	c.calls.Wait()
}

// call invokes the function, for 29 s at most. Its error is logged.
func (f *SocketFront) call(ctx context.Context, event events.APIGatewayWebsocketProxyRequest) (events.APIGatewayProxyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, maxSocketWait)
	defer cancel()
	payload, err := json.Marshal(event)
	if err != nil {
		return events.APIGatewayProxyResponse{}, err
	}
	res, err := call(ctx, f.function, payload)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		slog.ErrorContext(ctx, "function failed", "requestId", event.RequestContext.RequestID, "err", err)
	}
	return res, err
}

// Post implements Connections. A message over 128 KB is refused.
func (f *SocketFront) Post(ctx context.Context, connection string, data []byte) error {
	if len(data) > maxMessage {
		return fmt.Errorf("post to a connection: %d bytes, at most %d are sent", len(data), maxMessage)
	}
	f.mu.Lock()
	c := f.open[connection]
	f.mu.Unlock()
	if c == nil {
		return ErrGone
	}
	return c.post(ctx, data)
}

// Close implements Connections. When it returns nothing is received any more.
func (f *SocketFront) Close(_ context.Context, connection string) error {
	f.mu.Lock()
	c := f.open[connection]
	f.mu.Unlock()
	if c != nil {
		c.close(websocket.CloseNormalClosure, "Connection Closed Normally")
	}
	return nil
}

// Shutdown takes no more connections, closes all with 1001 and waits until the function
// has been told of each, or the context is done.
func (f *SocketFront) Shutdown(ctx context.Context) error {
	f.mu.Lock()
	f.down = true
	var open []*socketConn
	for _, c := range f.open {
		open = append(open, c)
	}
	f.mu.Unlock()
	for _, c := range open {
		go c.close(websocket.CloseGoingAway, "Going away")
	}
	done := make(chan struct{})
	go func() { f.running.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close WebSocket connections: %w", ctx.Err())
	}
}

// socketConn is one connection.
type socketConn struct {
	front                     *SocketFront
	id, domain, source, agent string
	at                        time.Time
	ready                     chan struct{}   // closed when the handshake is over
	ws                        *websocket.Conn // nil: it failed
	idle                      *time.Timer
	calls                     sync.WaitGroup // of the function, with messages
	writing                   chan struct{}  // full while a message is sent

	mu     sync.Mutex
	code   int // why this side closes it; 0: it does not
	reason string
}

// serve is the connection from its opening to its end, which it returns.
func (c *socketConn) serve(ctx context.Context, ws *websocket.Conn, down bool) (code int, reason string) {
	c.ws = ws
	defer ws.Close()
	ws.SetReadLimit(maxMessage)
	c.idle = time.AfterFunc(c.front.Idle, func() { c.close(websocket.CloseGoingAway, "Going away") })
	defer c.idle.Stop()
	lifetime := time.AfterFunc(c.front.Lifetime, func() { c.close(websocket.CloseGoingAway, "Going away") })
	defer lifetime.Stop()

	close(c.ready)
	if down {
		c.close(websocket.CloseGoingAway, "Going away")
	}
	err := c.receive(ctx)
	c.drop()
	if c.closing() {
		// Until the client has answered: closing at once would reset the connection under one
		// that is still sending, and the reason would not reach it. Close limits the time.
		for err == nil {
			_, _, err = ws.NextReader()
		}
		if answered := (*websocket.CloseError)(nil); !errors.As(err, &answered) { // it cannot be read on
			_, _ = io.Copy(io.Discard, ws.NetConn().(*frames).Conn)
		}
		return c.code, c.reason // which do not change any more
	}
	if closed := (*websocket.CloseError)(nil); errors.As(err, &closed) {
		if closed.Code == websocket.CloseNoStatusReceived {
			closed.Text = "Client-side close frame status not set"
		}
		return closed.Code, closed.Text
	}
	return websocket.CloseAbnormalClosure, "Connection Closed Abnormally"
}

// receive hands what the client sends to the function, until the connection ends.
func (c *socketConn) receive(ctx context.Context) error {
	slots := make(chan struct{}, maxInFlight)
	for {
		kind, data, err := c.ws.ReadMessage()
		switch {
		case errors.Is(err, errFrame), errors.Is(err, websocket.ErrReadLimit):
			c.close(websocket.CloseMessageTooBig, "Message too big")
			return err
		case err != nil:
			return err
		case kind != websocket.TextMessage:
			c.close(websocket.CloseUnsupportedData, "Binary messages are not supported")
			return nil
		case !utf8.Valid(data): // RFC 6455, 8.1
			c.close(websocket.CloseInvalidFramePayloadData, "Invalid UTF-8")
			return nil
		case c.closing():
			return nil
		}
		c.idle.Reset(c.front.Idle)
		slots <- struct{}{}
		c.calls.Go(func() {
			defer func() { <-slots }()
			event := c.event("MESSAGE", "$default")
			event.RequestContext.MessageID = c.front.newID()
			event.Body = string(data)
			if _, err := c.front.call(ctx, event); err != nil {
				text := "Internal server error"
				if errors.Is(err, context.DeadlineExceeded) {
					text = "Endpoint request timed out"
				}
				_ = c.post(ctx, fmt.Appendf(nil, `{"message": %q, "connectionId":%q, "requestId":%q}`, text, c.id, event.RequestContext.RequestID))
			}
		})
	}
}

// post sends a message. A client that does not take it in time is disconnected, since
// part of it may have been sent.
func (c *socketConn) post(ctx context.Context, data []byte) error {
	<-c.ready
	if c.ws == nil {
		return ErrGone
	}
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return fmt.Errorf("post to a connection: %w", ctx.Err())
	}
	if c.closing() {
		return ErrGone
	}
	c.idle.Reset(c.front.Idle)
	_ = c.ws.SetWriteDeadline(time.Now().Add(c.front.Stall))
	err := c.ws.WriteMessage(websocket.TextMessage, data)
	switch {
	case errors.Is(err, websocket.ErrCloseSent):
		return ErrGone
	case err != nil:
		c.drop()
		_ = c.ws.Close()
		return fmt.Errorf("post to a connection: %w", err)
	}
	return nil
}

// close sends the client off. From now on nothing is received from it.
func (c *socketConn) close(code int, reason string) {
	<-c.ready
	if c.ws == nil {
		return
	}
	c.mu.Lock()
	first := c.code == 0
	if first {
		c.code, c.reason = code, reason
	}
	c.mu.Unlock()
	c.drop()
	if !first {
		return
	}
	end := time.Now().Add(goodbyeTime)
	_ = c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason), end)
	_ = c.ws.SetReadDeadline(end) // the client's answer, and what it was sending
}

func (c *socketConn) closing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.code != 0
}

// drop lets nobody post any more.
func (c *socketConn) drop() {
	c.front.mu.Lock()
	defer c.front.mu.Unlock()
	delete(c.front.open, c.id)
}

// event is what the events of a connection have in common.
func (c *socketConn) event(kind, route string) events.APIGatewayWebsocketProxyRequest {
	now, id := c.front.now(), c.front.newID()
	return events.APIGatewayWebsocketProxyRequest{RequestContext: events.APIGatewayWebsocketProxyRequestContext{
		RouteKey:          route,
		EventType:         kind,
		ExtendedRequestID: id,
		RequestTime:       now.UTC().Format(requestTime),
		MessageDirection:  "IN",
		Stage:             "local",
		ConnectedAt:       c.at.UnixMilli(),
		RequestTimeEpoch:  now.UnixMilli(),
		Identity:          events.APIGatewayRequestIdentity{SourceIP: c.source, UserAgent: c.agent},
		RequestID:         id,
		DomainName:        c.domain,
		ConnectionID:      c.id,
		APIID:             "local",
	}}
}

// setRequest adds what only the event of $connect has: headers and query.
func setRequest(event *events.APIGatewayWebsocketProxyRequest, r *http.Request) {
	header := r.Header.Clone()
	for _, name := range []string{"Connection", "Upgrade"} {
		header.Del(name)
	}
	proto, port := protoPort(r)
	header.Set("Host", r.Host)
	header.Set("X-Forwarded-Proto", proto)
	header.Set("X-Forwarded-Port", port)
	header.Set("X-Forwarded-For", strings.TrimPrefix(strings.Join(header.Values("X-Forwarded-For"), ", ")+", "+withoutPort(r.RemoteAddr), ", "))
	event.Headers, event.MultiValueHeaders = last(header), header
	if query := r.URL.Query(); len(query) > 0 {
		event.QueryStringParameters, event.MultiValueQueryStringParameters = last(query), query
	}
}

// last returns the last value of each name.
func last[M http.Header | url.Values](all M) map[string]string {
	one := map[string]string{}
	for name, values := range all {
		if len(values) > 0 {
			one[name] = values[len(values)-1]
		}
	}
	return one
}

// multi is each value as a list.
func multi(one map[string]string) map[string][]string {
	all := map[string][]string{}
	for name, value := range one {
		all[name] = []string{value}
	}
	return all
}

// hijacker hands out the connection with an eye on its frames.
type hijacker struct{ http.ResponseWriter }

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return &frames{Conn: conn}, rw, nil
}

// frames is a client's side of a WebSocket connection that ends with errFrame at the
// first frame over maxFrame. The WebSocket library joins frames and tells only the size
// of the whole.
type frames struct {
	net.Conn
	header []byte // of the frame that begins, as far as it has come
	left   uint64 // bytes to come of the frame's payload
	err    error
}

var errFrame = fmt.Errorf("a frame is over %d bytes", maxFrame)

// Read implements net.Conn.
func (f *frames) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	n, err := f.Conn.Read(p)
	for i := 0; i < n; {
		if f.left > 0 {
			skip := min(f.left, uint64(n-i))
			f.left -= skip
			i += int(skip)
			continue
		}
		f.header = append(f.header, p[i])
		i++
		payload, ok := payloadLength(f.header)
		switch {
		case payload > maxFrame:
			f.err = errFrame
			return i, nil
		case ok:
			f.header, f.left = f.header[:0], payload
		}
	}
	return n, err
}

// payloadLength reads the header of a frame (RFC 6455, 5.2), and is not ok if it is not
// whole: 2 bytes, the second of which is the length, or 126 or 127 for a length in the
// 2 or 8 bytes that follow; then 4 bytes of mask, if its first bit is set.
func payloadLength(header []byte) (length uint64, ok bool) {
	if len(header) < 2 {
		return 0, false
	}
	whole := 2
	switch short := header[1] & 0x7f; short {
	case 126:
		whole += 2
	case 127:
		whole += 8
	default:
		length = uint64(short)
	}
	if header[1]&0x80 != 0 {
		whole += 4
	}
	if len(header) < whole {
		return 0, false
	}
	switch header[1] & 0x7f {
	case 126:
		length = uint64(binary.BigEndian.Uint16(header[2:]))
	case 127:
		length = binary.BigEndian.Uint64(header[2:])
	}
	return length, true
}
