package gateway_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"

	"github.com/pinward/pinward/shared/gateway"
)

// patience is how long anything may take that has no limit of its own.
const patience = 30 * time.Second

type socketEvent = events.APIGatewayWebsocketProxyRequest

// relay is a front at work before a function, and what the function was called with.
type relay struct {
	*gateway.SocketFront
	url string

	mu     sync.Mutex
	events []socketEvent
}

// serve starts a front. When the test ends it is shut down, and nothing of it may be left.
func serve(t *testing.T, f gateway.SocketFunction, change func(*gateway.SocketFront)) *relay {
	t.Helper()
	r := &relay{}
	r.SocketFront = gateway.NewSocketFront(func(ctx context.Context, e socketEvent) (events.APIGatewayProxyResponse, error) {
		r.mu.Lock()
		r.events = append(r.events, e)
		r.mu.Unlock()
		return f(ctx, e)
	}, func() time.Time { return noon }, rand.Reader)
	if change != nil {
		change(r.SocketFront)
	}
	server := httptest.NewServer(r)
	r.url = "ws" + strings.TrimPrefix(server.URL, "http") + "/relay"
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := r.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		server.Close()
		eventually(t, "no goroutine is left", func() bool { return !strings.Contains(stacks(), "gateway.(*") })
	})
	return r
}

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// of returns the events of a type.
func (r *relay) of(kind string) (all []socketEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.RequestContext.EventType == kind {
			all = append(all, e)
		}
	}
	return all
}

// connection is the id of the only connection.
func (r *relay) connection(t *testing.T) string {
	t.Helper()
	all := r.of("CONNECT")
	if len(all) != 1 {
		t.Fatalf("%d connections", len(all))
	}
	return all[0].RequestContext.ConnectionID
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s\n%s", patience, what, stacks())
		}
	}
}

// dial connects a client, which has some time for all that follows.
func dial(t *testing.T, r *relay, header http.Header) *websocket.Conn {
	t.Helper()
	ws, _, err := websocket.DefaultDialer.Dial(r.url, header)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	_ = ws.SetReadDeadline(time.Now().Add(2 * patience))
	return ws
}

func sendText(t *testing.T, ws *websocket.Conn, text string) {
	t.Helper()
	if err := ws.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func receiveText(t *testing.T, ws *websocket.Conn) string {
	t.Helper()
	kind, data, err := ws.ReadMessage()
	if err != nil || kind != websocket.TextMessage {
		t.Fatalf("received %d %q, %v", kind, data, err)
	}
	return string(data)
}

// wantClose reads until the other side closes, with this code.
func wantClose(t *testing.T, ws *websocket.Conn, code int) {
	t.Helper()
	for {
		_, _, err := ws.ReadMessage()
		if err == nil {
			continue
		}
		if !websocket.IsCloseError(err, code) {
			t.Errorf("the connection ended with %v, want %d", err, code)
		}
		return
	}
}

// wantDisconnect waits for the one event of a connection's end.
func wantDisconnect(t *testing.T, r *relay, code int64) {
	t.Helper()
	eventually(t, "the function is told of the end", func() bool { return len(r.of("DISCONNECT")) > 0 })
	all := r.of("DISCONNECT")
	if got := all[0].RequestContext.DisconnectStatusCode; len(all) != 1 || got != code {
		t.Errorf("%d events of the end, the first with %d, want one with %d", len(all), got, code)
	}
}

var connectionID = regexp.MustCompile(`^[A-Za-z0-9_-]{15}=$`)

func TestSocketFront(t *testing.T) {
	var r *relay
	s := &socket{}
	s.message = func(ctx context.Context, connection string, data []byte) error {
		return r.Post(ctx, connection, append([]byte("echo "), data...))
	}
	r = serve(t, gateway.SocketHandler(s), nil)
	ws := dial(t, r, http.Header{"Authorization": {"Bearer x"}, "User-Agent": {"bridge/1"}, "X-Twice": {"a", "b"}})
	sendText(t, ws, "löst 8306")
	if got := receiveText(t, ws); got != "echo löst 8306" {
		t.Errorf("received %q", got)
	}
	_ = ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(4000, "bye"))
	wantClose(t, ws, 4000)
	wantDisconnect(t, r, 4000)

	id := r.connection(t)
	if !connectionID.MatchString(id) {
		t.Errorf("connection id %q is not of API Gateway's shape", id)
	}
	if diff := cmp.Diff([]string{"connect " + id, "message " + id + " löst 8306", "disconnect " + id}, s.seen()); diff != "" {
		t.Errorf("the socket saw (-want +got):\n%s", diff)
	}
	connect := r.of("CONNECT")[0]
	host := strings.Split(strings.TrimPrefix(r.url, "ws://"), "/")[0]
	_, port, _ := net.SplitHostPort(host)
	for name, want := range map[string][]string{
		"Authorization": {"Bearer x"}, "User-Agent": {"bridge/1"}, "X-Twice": {"a", "b"}, "Host": {host}, "Sec-Websocket-Version": {"13"},
		"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Port": {port}, "X-Forwarded-Proto": {"http"}, "Connection": nil, "Upgrade": nil,
	} {
		if got := connect.MultiValueHeaders[name]; !slices.Equal(got, want) {
			t.Errorf("header %s: %q, want %q", name, got, want)
		}
	}
	if got := connect.Headers["X-Twice"]; got != "b" {
		t.Errorf("single header %q, want the last value", got)
	}
}

// The front's events have the fields of those that were captured, no more and no fewer.
func TestSocketFrontEventsAreOfTheirShape(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), nil)
	ws := dial(t, r, http.Header{"User-Agent": {"bridge/1"}})
	sendText(t, ws, "x")
	eventually(t, "the message arrives", func() bool { return len(r.of("MESSAGE")) == 1 })
	ws.Close()
	wantDisconnect(t, r, websocket.CloseAbnormalClosure)
	for name, event := range map[string]socketEvent{"connect": r.of("CONNECT")[0], "message": r.of("MESSAGE")[0], "disconnect": r.of("DISCONNECT")[0]} {
		captured, err := os.ReadFile(filepath.Join(eventsDir, "websocket-"+name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		made, _ := json.Marshal(event)
		if diff := cmp.Diff(fields(t, captured), fields(t, made)); diff != "" {
			t.Errorf("%s (-captured +made):\n%s", name, diff)
		}
	}
}

// fields names all of an event's fields but the headers that only AWS or a client adds.
func fields(t *testing.T, event []byte) []string {
	t.Helper()
	var names []string
	var visit func(path string, v any)
	visit = func(path string, v any) {
		if o, ok := v.(map[string]any); ok {
			for name, v := range o {
				visit(path+"."+strings.ToLower(name), v)
			}
			return
		}
		if !strings.HasSuffix(path, ".x-amzn-trace-id") && !strings.HasSuffix(path, ".authorization") {
			names = append(names, fmt.Sprintf("%s %T", path, v))
		}
	}
	var v any
	if err := json.Unmarshal(event, &v); err != nil {
		t.Fatal(err)
	}
	visit("", v)
	slices.Sort(names)
	return names
}

func TestRefusedConnections(t *testing.T) {
	answers := func(status int) gateway.SocketFunction {
		return gateway.SocketHandler(&socket{connect: func(context.Context, string, http.Header) int { return status }})
	}
	tests := map[string]struct {
		function gateway.SocketFunction
		header   http.Header
		want     int
	}{
		"by the socket": {answers(401), nil, 401},
		"overloaded":    {answers(503), nil, 503},
		"origin":        {answers(200), http.Header{"Origin": {"https://evil.example"}}, 403},
		"function panics": {func(context.Context, socketEvent) (res events.APIGatewayProxyResponse, err error) {
			panic("table on fire")
		}, nil, 502},
		"function fails": {func(context.Context, socketEvent) (res events.APIGatewayProxyResponse, err error) {
			return res, errors.New("table on fire")
		}, nil, 502},
		"no status": {func(context.Context, socketEvent) (res events.APIGatewayProxyResponse, err error) {
			return res, nil
		}, nil, 502},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			captureLog(t)
			r := serve(t, tt.function, nil)
			_, resp, err := websocket.DefaultDialer.Dial(r.url, tt.header)
			if err == nil || resp == nil || resp.StatusCode != tt.want {
				t.Fatalf("got %v, %v, want status %d", resp, err, tt.want)
			}
			if ends := r.of("DISCONNECT"); len(ends) > 0 {
				t.Errorf("a connection that was refused has ended: %+v", ends)
			}
		})
	}
}

func TestPlainRequestToSocketFront(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), nil)
	resp, err := http.Get("http" + strings.TrimPrefix(r.url, "ws"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUpgradeRequired || len(r.of("CONNECT")) > 0 {
		t.Errorf("status %d and %d calls, want 426 and none", resp.StatusCode, len(r.of("CONNECT")))
	}
}

// A handshake that fails after $connect took it is a connection that ends.
func TestFailedHandshake(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), nil)
	req, _ := http.NewRequest("GET", "http"+strings.TrimPrefix(r.url, "ws"), nil)
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}} // no key
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("status %d, want 400", resp.StatusCode)
	}
	wantDisconnect(t, r, websocket.CloseAbnormalClosure)
}

func TestMessagesAreHandledAtOnce(t *testing.T) {
	const n = 20
	var all sync.WaitGroup
	all.Add(n)
	r := serve(t, gateway.SocketHandler(&socket{message: func(ctx context.Context, _ string, _ []byte) error {
		all.Done()
		all.Wait() // each waits for all others
		return nil
	}}), nil)
	ws := dial(t, r, nil)
	for range n {
		sendText(t, ws, "x")
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("one message waits for another")
	}
}

func TestPostsAreInOrderAndWhole(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), nil)
	ws := dial(t, r, nil)
	id := r.connection(t)
	const writers, each = 8, 50
	errs := make(chan error, writers)
	for w := range writers {
		go func() {
			var err error
			for i := range each {
				err = errors.Join(err, r.Post(t.Context(), id, fmt.Appendf(nil, "%d %d %s", w, i, strings.Repeat("x", 1000*w))))
			}
			errs <- err
		}()
	}
	next := make([]int, writers)
	for range writers * each {
		var w, i int
		var rest string
		text := receiveText(t, ws)
		_, _ = fmt.Sscan(text, &w, &i, &rest)
		if i != next[w] || len(rest) != 1000*w {
			t.Fatalf("received %.20q with %d bytes, want number %d of %d", text, len(rest), next[w], w)
		}
		next[w]++
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// The limits of API Gateway, to the byte.
func TestSizes(t *testing.T) {
	tests := map[string]struct {
		frame, message int
		want           int // code; 0: it arrives
	}{
		"frame":             {32 << 10, 32 << 10, 0},
		"longer frame":      {32<<10 + 1, 32<<10 + 1, websocket.CloseMessageTooBig},
		"much longer frame": {8 << 20, 8 << 20, websocket.CloseMessageTooBig}, // more than the network holds
		"short frames":      {100, 10_000, 0},
		"message":           {16 << 10, 128 << 10, 0},
		"longer message":    {16 << 10, 128<<10 + 1, websocket.CloseMessageTooBig},
		"second is longer":  {32<<10 + 1, 40 << 10, websocket.CloseMessageTooBig},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := serve(t, gateway.SocketHandler(&socket{}), nil)
			ws, _, err := (&websocket.Dialer{WriteBufferSize: tt.frame}).Dial(r.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer ws.Close()
			_ = ws.SetReadDeadline(time.Now().Add(2 * patience))
			w, err := ws.NextWriter(websocket.TextMessage)
			if err != nil {
				t.Fatal(err)
			}
			text := bytes.Repeat([]byte("x"), tt.message)
			for len(text) > 0 && err == nil { // a write of more than the buffer would be one frame
				n := min(len(text), tt.frame)
				_, err = w.Write(text[:n])
				text = text[n:]
			}
			if err = errors.Join(err, w.Close()); err != nil {
				t.Fatal(err)
			}
			if tt.want != 0 {
				wantClose(t, ws, tt.want)
				wantDisconnect(t, r, int64(tt.want))
				if got := r.of("MESSAGE"); len(got) > 0 {
					t.Errorf("the function got %d bytes", len(got[0].Body))
				}
				return
			}
			eventually(t, "the message arrives", func() bool { return len(r.of("MESSAGE")) == 1 })
			if got := len(r.of("MESSAGE")[0].Body); got != tt.message {
				t.Errorf("the function got %d bytes, want %d", got, tt.message)
			}
		})
	}
}

func TestPostSizes(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), nil)
	ws := dial(t, r, nil)
	id := r.connection(t)
	if err := r.Post(t.Context(), id, make([]byte, 128<<10+1)); err == nil || errors.Is(err, gateway.ErrGone) {
		t.Errorf("128 KB and a byte: %v, want an error", err)
	}
	if err := r.Post(t.Context(), id, bytes.Repeat([]byte("x"), 128<<10)); err != nil {
		t.Errorf("128 KB: %v", err)
	}
	if got := len(receiveText(t, ws)); got != 128<<10 {
		t.Errorf("received %d bytes", got)
	}
}

func TestUnsupportedMessages(t *testing.T) {
	for _, tt := range []struct {
		kind int
		data string
		want int
	}{
		{websocket.BinaryMessage, "x", websocket.CloseUnsupportedData},
		{websocket.TextMessage, "\xff", websocket.CloseInvalidFramePayloadData},
	} {
		r := serve(t, gateway.SocketHandler(&socket{}), nil)
		ws := dial(t, r, nil)
		if err := ws.WriteMessage(tt.kind, []byte(tt.data)); err != nil {
			t.Fatal(err)
		}
		wantClose(t, ws, tt.want)
		wantDisconnect(t, r, int64(tt.want))
		if len(r.of("MESSAGE")) > 0 {
			t.Error("the function got it")
		}
	}
}

func TestPingIsAnswered(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), nil)
	ws := dial(t, r, nil)
	pong := make(chan string, 1)
	ws.SetPongHandler(func(data string) error { pong <- data; return nil })
	go func() { _, _, _ = ws.ReadMessage() }()
	if err := ws.WriteControl(websocket.PingMessage, []byte("still there?"), time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-pong:
		if got != "still there?" {
			t.Errorf("pong %q", got)
		}
	case <-time.After(patience):
		t.Error("no pong")
	}
}

// Messages either way keep a connection; pings do not.
func TestIdle(t *testing.T) {
	const idle = 2 * time.Second
	for name, tt := range map[string]struct {
		do    func(*relay, *websocket.Conn, string) error
		keeps bool
	}{
		"nothing": {func(*relay, *websocket.Conn, string) error { return nil }, false},
		"pings": {func(_ *relay, ws *websocket.Conn, _ string) error {
			return ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second))
		}, false},
		"messages": {func(_ *relay, ws *websocket.Conn, _ string) error {
			return ws.WriteMessage(websocket.TextMessage, []byte("x"))
		}, true},
		"posts": {func(r *relay, _ *websocket.Conn, id string) error {
			return r.Post(context.Background(), id, []byte("x"))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, gateway.SocketHandler(&socket{}), func(f *gateway.SocketFront) { f.Idle = idle })
			ws := dial(t, r, nil)
			id := r.connection(t)
			closed := make(chan error, 1)
			go func() {
				for {
					if _, _, err := ws.ReadMessage(); err != nil {
						closed <- err
						return
					}
				}
			}()
			for start := time.Now(); ; time.Sleep(idle / 10) {
				_ = tt.do(r, ws, id)
				select {
				case err := <-closed:
					if tt.keeps || !websocket.IsCloseError(err, websocket.CloseGoingAway) {
						t.Errorf("closed with %v, want that it is kept: %v", err, tt.keeps)
					}
					wantDisconnect(t, r, websocket.CloseGoingAway)
					return
				default:
				}
				if took := time.Since(start); tt.keeps && took > 2*idle {
					return
				} else if took > patience {
					t.Fatal("it is kept")
				}
			}
		})
	}
}

func TestLifetime(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), func(f *gateway.SocketFront) { f.Lifetime = 50 * time.Millisecond })
	ws := dial(t, r, nil)
	wantClose(t, ws, websocket.CloseGoingAway)
	wantDisconnect(t, r, websocket.CloseGoingAway)
}

func TestCloseEndsAConnection(t *testing.T) {
	s := &socket{}
	r := serve(t, gateway.SocketHandler(s), nil)
	ws := dial(t, r, nil)
	id := r.connection(t)
	if err := r.Close(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	sendText(t, ws, "too late") // before the client has read that it is closed
	if err := r.Post(t.Context(), id, []byte("x")); !errors.Is(err, gateway.ErrGone) {
		t.Errorf("post after close: %v, want ErrGone", err)
	}
	if err := r.Close(t.Context(), id); err != nil {
		t.Errorf("second close: %v", err)
	}
	wantClose(t, ws, websocket.CloseNormalClosure)
	wantDisconnect(t, r, websocket.CloseNormalClosure)
	if diff := cmp.Diff([]string{"connect " + id, "disconnect " + id}, s.seen()); diff != "" {
		t.Errorf("the socket saw (-want +got):\n%s", diff)
	}
}

func TestUnknownConnection(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), nil)
	for _, id := range []string{"L0SM9cOFvHcCIhw=", "", "../x"} {
		if err := r.Post(t.Context(), id, []byte("x")); !errors.Is(err, gateway.ErrGone) {
			t.Errorf("post to %q: %v, want ErrGone", id, err)
		}
		if err := r.Close(t.Context(), id); err != nil {
			t.Errorf("close %q: %v", id, err)
		}
	}
}

func TestNothingIsPostedBeforeConnectHasReturned(t *testing.T) {
	var r *relay
	var early error
	r = serve(t, gateway.SocketHandler(&socket{connect: func(ctx context.Context, id string, _ http.Header) int {
		early = r.Post(ctx, id, []byte("early"))
		return 200
	}}), nil)
	ws := dial(t, r, nil)
	if !errors.Is(early, gateway.ErrGone) {
		t.Errorf("post before the connection: %v, want ErrGone", early)
	}
	if err := r.Post(t.Context(), r.connection(t), []byte("later")); err != nil {
		t.Errorf("post as soon as the client is connected: %v", err)
	}
	if got := receiveText(t, ws); got != "later" {
		t.Errorf("received %q", got)
	}
}

// A client that vanishes without a word.
func TestClientVanishes(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), nil)
	ws := dial(t, r, nil)
	id := r.connection(t)
	ws.NetConn().Close()
	wantDisconnect(t, r, websocket.CloseAbnormalClosure)
	if err := r.Post(t.Context(), id, []byte("x")); !errors.Is(err, gateway.ErrGone) {
		t.Errorf("post: %v, want ErrGone", err)
	}
}

func TestClientClosesWithoutStatus(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), nil)
	ws := dial(t, r, nil)
	if err := ws.WriteMessage(websocket.CloseMessage, nil); err != nil {
		t.Fatal(err)
	}
	wantDisconnect(t, r, 1005)
	if reason := r.of("DISCONNECT")[0].RequestContext.DisconnectReason; reason == nil || *reason != "Client-side close frame status not set" {
		t.Errorf("reason %v", reason)
	}
}

// A client that receives nothing is disconnected, and holds up no other and no Close.
func TestStalledClient(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), func(f *gateway.SocketFront) { f.Stall = 3 * time.Second })
	dial(t, r, nil) // and never reads
	stalled := r.connection(t)
	other := dial(t, r, nil)
	var id string
	for _, e := range r.of("CONNECT") {
		if e.RequestContext.ConnectionID != stalled {
			id = e.RequestContext.ConnectionID
		}
	}
	failed := make(chan error, 1)
	go func() {
		for {
			if err := r.Post(context.Background(), stalled, bytes.Repeat([]byte("x"), 128<<10)); err != nil {
				failed <- err
				return
			}
		}
	}()
	for range 50 {
		start := time.Now()
		if err := r.Post(t.Context(), id, []byte("x")); err != nil || time.Since(start) > 2500*time.Millisecond {
			t.Fatalf("post to another client: %v after %v", err, time.Since(start))
		}
		_ = receiveText(t, other)
		time.Sleep(5 * time.Millisecond)
	}
	select {
	case err := <-failed:
		if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("post: %v, want a timeout", err)
		}
	case <-time.After(patience):
		t.Fatal("it is waited for a client that does not receive")
	}
	if err := r.Post(t.Context(), stalled, []byte("x")); !errors.Is(err, gateway.ErrGone) {
		t.Errorf("post: %v, want ErrGone", err)
	}
	wantDisconnect(t, r, websocket.CloseAbnormalClosure)
}

// Waiting for one's turn ends with the context.
func TestPostGivesUpWithItsContext(t *testing.T) {
	r := serve(t, gateway.SocketHandler(&socket{}), func(f *gateway.SocketFront) { f.Stall = 2 * time.Second })
	dial(t, r, nil)
	id := r.connection(t)
	full := make(chan struct{})
	go func() {
		defer close(full)
		for r.Post(context.Background(), id, bytes.Repeat([]byte("x"), 128<<10)) == nil {
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	var err error
	for err == nil {
		err = r.Post(ctx, id, []byte("x"))
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("post: %v, want that the context ends it", err)
	}
	if err := r.Close(t.Context(), id); err != nil {
		t.Error(err)
	}
	<-full
}

func TestShutdown(t *testing.T) {
	s := &socket{}
	r := serve(t, gateway.SocketHandler(s), nil)
	var clients sync.WaitGroup
	for range 2 {
		ws := dial(t, r, nil)
		clients.Go(func() { wantClose(t, ws, websocket.CloseGoingAway) })
	}
	start := time.Now()
	if err := r.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 900*time.Millisecond {
		t.Errorf("it took %v, though the clients answered", took)
	}
	if got := len(r.of("DISCONNECT")); got != 2 {
		t.Errorf("%d of 2 ends were told when it was shut down", got)
	}
	clients.Wait()
	if _, resp, err := websocket.DefaultDialer.Dial(r.url, nil); err == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a new connection: %v, %v, want 503", resp, err)
	}
}

// A connection that is being made when it is shut down is closed too.
func TestShutdownWhileConnecting(t *testing.T) {
	connecting, goOn := make(chan struct{}), make(chan struct{})
	r := serve(t, gateway.SocketHandler(&socket{connect: func(context.Context, string, http.Header) int {
		close(connecting)
		<-goOn
		return 200
	}}), nil)
	closed := make(chan error, 1)
	go func() {
		ws, _, err := websocket.DefaultDialer.Dial(r.url, nil)
		if err == nil {
			defer ws.Close()
			_, _, err = ws.ReadMessage()
		}
		closed <- err
	}()
	<-connecting
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.Shutdown(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v, want that the context ends it", err)
	}
	close(goOn)
	if err := <-closed; !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the client got %v, want 1001", err)
	}
}

// What the function answers is not for the client, but that it failed is.
func TestFailedMessage(t *testing.T) {
	log := captureLog(t)
	handler := gateway.SocketHandler(&socket{message: func(context.Context, string, []byte) error { return errors.New("table on fire") }})
	r := serve(t, func(ctx context.Context, e socketEvent) (events.APIGatewayProxyResponse, error) {
		if e.Body == "crash 8306" {
			panic("out of memory")
		}
		return handler(ctx, e)
	}, nil)
	ws := dial(t, r, nil)
	sendText(t, ws, "fail 8306")
	eventually(t, "the failure is logged", func() bool { return len(r.of("MESSAGE")) == 1 })
	sendText(t, ws, "crash 8306")
	var told map[string]string
	if err := json.Unmarshal([]byte(receiveText(t, ws)), &told); err != nil {
		t.Fatal(err)
	}
	crash := r.of("MESSAGE")[1].RequestContext
	want := map[string]string{"message": "Internal server error", "connectionId": crash.ConnectionID, "requestId": crash.RequestID}
	if !maps.Equal(told, want) {
		t.Errorf("the client is told %v, want %v", told, want)
	}
	ws.Close()
	wantDisconnect(t, r, websocket.CloseAbnormalClosure)
	if strings.Contains(log.String(), "8306") || !strings.Contains(log.String(), "table on fire") || !strings.Contains(log.String(), "out of memory") {
		t.Errorf("logged %s, want both errors and not what was sent", log)
	}
}
