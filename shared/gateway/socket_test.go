package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-lambda-go/events"
	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/gateway"
)

// socket is a gateway.Socket that notes what comes. Fields that are nil agree to all.
type socket struct {
	connect    func(ctx context.Context, connection string, header http.Header) int
	message    func(ctx context.Context, connection string, data []byte) error
	disconnect func(ctx context.Context, connection string) error

	mu  sync.Mutex
	log []string
}

func (s *socket) note(parts ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, strings.Join(parts, " "))
}

func (s *socket) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

func (s *socket) Connect(ctx context.Context, connection string, header http.Header) int {
	s.note("connect", connection)
	if s.connect == nil {
		return http.StatusOK
	}
	return s.connect(ctx, connection, header)
}

func (s *socket) Message(ctx context.Context, connection string, data []byte) error {
	s.note("message", connection, string(data))
	if s.message == nil {
		return nil
	}
	return s.message(ctx, connection, data)
}

func (s *socket) Disconnect(ctx context.Context, connection string) error {
	s.note("disconnect", connection)
	if s.disconnect == nil {
		return nil
	}
	return s.disconnect(ctx, connection)
}

// captureLog returns what is logged during the test.
func captureLog(t *testing.T) *bytes.Buffer {
	t.Helper()
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	log := &bytes.Buffer{}
	slog.SetDefault(slog.New(slog.NewJSONHandler(log, nil)))
	return log
}

func TestCapturedSocketEvents(t *testing.T) {
	var header http.Header
	var ids []string
	s := &socket{
		connect: func(ctx context.Context, _ string, h http.Header) int {
			header, ids = h, append(ids, gateway.RequestID(ctx))
			return http.StatusOK
		},
		message: func(ctx context.Context, _ string, _ []byte) error {
			ids = append(ids, gateway.RequestID(ctx))
			return nil
		},
		disconnect: func(ctx context.Context, _ string) error { ids = append(ids, gateway.RequestID(ctx)); return nil },
	}
	for _, name := range []string{"connect", "message", "disconnect"} {
		var event events.APIGatewayWebsocketProxyRequest
		load(t, "websocket-"+name, &event)
		res, err := gateway.SocketHandler(s)(t.Context(), event)
		if err != nil || res.StatusCode != http.StatusOK || res.Body != "" {
			t.Errorf("%s: %+v, %v, want 200", name, res, err)
		}
	}
	want := []string{"connect ATfSmcOFvHcCIhw=", `message ATfSmcOFvHcCIhw= {"version":1,"ping":{}}`, "disconnect ATfSmcOFvHcCIhw="}
	if diff := cmp.Diff(want, s.seen()); diff != "" {
		t.Errorf("the socket saw (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"ATfSmGJ7FiAFsLg=", "ATfSqG9AFiAFjaA=", "ATfVfH8vFiAFkQw="}, ids); diff != "" {
		t.Errorf("request ids (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{"Authorization": "Bearer EXAMPLE", "Host": "f6g7h8i9j0.execute-api.eu-central-1.amazonaws.com"} {
		if got := header.Values(name); !slices.Equal(got, []string{want}) {
			t.Errorf("header %s: %q, want %q", name, got, want)
		}
	}
}

func TestSocketHeaders(t *testing.T) {
	tests := map[string]struct {
		single map[string]string
		multi  map[string][]string
		want   []string // values of Authorization
	}{
		"lower case":             {map[string]string{"authorization": "a"}, map[string][]string{"authorization": {"a"}}, []string{"a"}},
		"other case":             {map[string]string{"AUTHORIZATION": "a"}, map[string][]string{"AUTHORIZATION": {"a"}}, []string{"a"}},
		"given twice":            {map[string]string{"Authorization": "b"}, map[string][]string{"Authorization": {"a", "b"}}, []string{"a", "b"}},
		"without multiple ones":  {map[string]string{"authorization": "a"}, nil, []string{"a"}},
		"only as a multiple one": {nil, map[string][]string{"Authorization": {"a"}}, []string{"a"}},
		"none":                   {nil, nil, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var event events.APIGatewayWebsocketProxyRequest
			load(t, "websocket-connect", &event)
			event.Headers, event.MultiValueHeaders = tt.single, tt.multi
			var got []string
			s := &socket{connect: func(_ context.Context, _ string, h http.Header) int { got = h.Values("authorization"); return 200 }}
			if status := socketStatus(t, s, event); status != 200 || !slices.Equal(got, tt.want) {
				t.Errorf("status %d, values %q, want %q", status, got, tt.want)
			}
		})
	}
}

func socketStatus(t *testing.T, s gateway.Socket, event events.APIGatewayWebsocketProxyRequest) int {
	t.Helper()
	res, err := gateway.SocketHandler(s)(t.Context(), event)
	if err != nil {
		t.Fatalf("%v: API Gateway would tell the client", err)
	}
	return res.StatusCode
}

func TestOriginIsRefused(t *testing.T) {
	for name, change := range map[string]func(*events.APIGatewayWebsocketProxyRequest){
		"another site": func(e *events.APIGatewayWebsocketProxyRequest) {
			e.MultiValueHeaders["Origin"] = []string{"https://evil.example"}
		},
		"own site": func(e *events.APIGatewayWebsocketProxyRequest) {
			e.MultiValueHeaders["Origin"] = []string{"https://" + e.RequestContext.DomainName}
		},
		"lower case":     func(e *events.APIGatewayWebsocketProxyRequest) { e.MultiValueHeaders["origin"] = []string{"null"} },
		"empty":          func(e *events.APIGatewayWebsocketProxyRequest) { e.MultiValueHeaders["Origin"] = []string{""} },
		"no value":       func(e *events.APIGatewayWebsocketProxyRequest) { e.MultiValueHeaders["Origin"] = nil },
		"not a multiple": func(e *events.APIGatewayWebsocketProxyRequest) { e.Headers["ORIGIN"] = "https://evil.example" },
	} {
		t.Run(name, func(t *testing.T) {
			var event events.APIGatewayWebsocketProxyRequest
			load(t, "websocket-connect", &event)
			change(&event)
			s := &socket{}
			if status := socketStatus(t, s, event); status != http.StatusForbidden || len(s.seen()) > 0 {
				t.Errorf("status %d, and the socket saw %q, want 403 and nothing", status, s.seen())
			}
		})
	}
}

func TestSocketAnswers(t *testing.T) {
	type event = events.APIGatewayWebsocketProxyRequest
	panics := &socket{
		connect:    func(context.Context, string, http.Header) int { panic("table on fire") },
		message:    func(context.Context, string, []byte) error { panic("table on fire") },
		disconnect: func(context.Context, string) error { panic("table on fire") },
	}
	fails := &socket{
		message:    func(context.Context, string, []byte) error { return errors.New("table on fire") },
		disconnect: func(context.Context, string) error { return errors.New("table on fire") },
	}
	says := func(status int) *socket {
		return &socket{connect: func(context.Context, string, http.Header) int { return status }}
	}
	tests := []struct {
		name   string
		socket *socket
		event  string
		change func(*event)
		status int
		logged bool
	}{
		{"refused", says(401), "connect", nil, 401, false},
		{"overloaded", says(503), "connect", nil, 503, false},
		{"a yes that is none", says(204), "connect", nil, 500, true},
		{"a redirect", says(302), "connect", nil, 500, true},
		{"no status", says(0), "connect", nil, 500, true},
		{"connect panics", panics, "connect", nil, 500, true},
		{"message panics", panics, "message", nil, 500, true},
		{"disconnect panics", panics, "disconnect", nil, 500, true},
		{"message fails", fails, "message", nil, 500, true},
		{"disconnect fails", fails, "disconnect", nil, 500, true},
		{"binary body", &socket{}, "message", func(e *event) { e.Body, e.IsBase64Encoded = "ODMwNg==", true }, 200, false},
		{"body is not base64", &socket{}, "message", func(e *event) { e.Body, e.IsBase64Encoded = "a PIN", true }, 400, false},
		{"no connection", &socket{}, "message", func(e *event) { e.RequestContext.ConnectionID = "" }, 400, false},
		{"another route", &socket{}, "message", func(e *event) { e.RequestContext.RouteKey = "sendMessage" }, 400, false},
		{"route of another event", &socket{}, "message", func(e *event) { e.RequestContext.RouteKey = "$connect" }, 400, false},
		{"another event", &socket{}, "message", func(e *event) { e.RequestContext.EventType = "PING" }, 400, false},
		{"nothing", &socket{}, "message", func(e *event) { *e = event{} }, 400, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			log := captureLog(t)
			var e event
			load(t, "websocket-"+tt.event, &e)
			e.Headers = map[string]string{"Authorization": "Bearer 8306"}
			if e.Body != "" {
				e.Body = `{"pin":"8306"}`
			}
			if tt.change != nil {
				tt.change(&e)
			}
			if status := socketStatus(t, tt.socket, e); status != tt.status {
				t.Errorf("status %d, want %d", status, tt.status)
			}
			if tt.status == 400 && len(tt.socket.seen()) > 0 {
				t.Errorf("the socket saw %q", tt.socket.seen())
			}
			lines := strings.Count(log.String(), "\n")
			if tt.logged != (lines == 1) || tt.logged && !strings.Contains(log.String(), e.RequestContext.RequestID) || strings.Contains(log.String(), "8306") {
				t.Errorf("logged %s, want %v, with the request's id and without what was sent", log, tt.logged)
			}
			if tt.name == "binary body" && !slices.Contains(tt.socket.seen(), "message "+e.RequestContext.ConnectionID+" 8306") {
				t.Errorf("the socket saw %q", tt.socket.seen())
			}
		})
	}
}

// An event of another trigger is no event of a WebSocket API.
func TestOtherEventsAreNoSocketEvents(t *testing.T) {
	for _, name := range []string{"http-get", "http-post-json", "eventbridge-schedule"} {
		var anything map[string]any
		load(t, name, &anything)
		data, _ := json.Marshal(anything)
		var event events.APIGatewayWebsocketProxyRequest
		if err := json.Unmarshal(data, &event); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s := &socket{}
		if status := socketStatus(t, s, event); status != 400 || len(s.seen()) > 0 {
			t.Errorf("%s: status %d, want 400", name, status)
		}
	}
}
