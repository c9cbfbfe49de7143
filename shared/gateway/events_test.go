package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-lambda-go/events"
	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/gateway"
)

const eventsDir = "../../testdata/events"

// load reads a captured event. A field that the type does not know is a slip
// in the file.
func load(t *testing.T, name string, event any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(eventsDir, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(event); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// seen is what a handler can tell of a request.
type seen struct {
	Method, Proto, URI, Path, Escaped, Query, Host, Remote, Body string
	Length                                                       int64
	Header                                                       map[string]string // those that a test asks for
	Cookies                                                      []string
}

func look(r *http.Request, headers ...string) seen {
	body, _ := io.ReadAll(r.Body)
	s := seen{
		Method: r.Method, Proto: r.Proto, URI: r.RequestURI, Path: r.URL.Path, Escaped: r.URL.EscapedPath(), Query: r.URL.RawQuery,
		Host: r.Host, Remote: r.RemoteAddr, Body: string(body), Length: r.ContentLength, Header: map[string]string{},
	}
	for _, name := range headers {
		s.Header[name] = strings.Join(r.Header.Values(name), ",")
	}
	for _, c := range r.Cookies() {
		s.Cookies = append(s.Cookies, c.String())
	}
	return s
}

func TestCapturedEvents(t *testing.T) {
	const api = "a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com"
	const pin = `{"username":"jdoe","pin":"8306"}`
	tests := []struct {
		event string
		want  seen
	}{
		{"http-get", seen{Method: "GET", URI: "/v1/policy/profiles", Path: "/v1/policy/profiles", Escaped: "/v1/policy/profiles",
			Host: api, Remote: "203.0.113.17:0",
			Header: map[string]string{"Authorization": "Bearer pw_demo_EXAMPLE", "X-Forwarded-Proto": "https", "Host": ""}}},
		{"http-post-json", seen{Method: "POST", URI: "/v1/pins/verify", Path: "/v1/pins/verify", Escaped: "/v1/pins/verify",
			Host: api, Remote: "203.0.113.17:0", Body: pin, Length: 32,
			Header: map[string]string{"Content-Type": "application/json", "Content-Length": "32"}}},
		{"http-post-base64", seen{Method: "POST", URI: "/v1/pins/verify", Path: "/v1/pins/verify", Escaped: "/v1/pins/verify",
			Host: api, Remote: "203.0.113.17:0", Body: pin, Length: 32,
			Header: map[string]string{"Content-Type": "application/octet-stream", "Content-Length": "32"}}},
		{"http-decoded-path", seen{Method: "GET", URI: "/v1/users/jos%C3%A9%2050%25/a/b", Path: "/v1/users/josé 50%/a/b",
			Escaped: "/v1/users/jos%C3%A9%2050%25/a/b", Host: api, Remote: "203.0.113.17:0"}},
		{"http-encoded-slash", seen{Method: "GET", URI: "/v1/users/a%2Fb%20c", Path: "/v1/users/a/b c", Escaped: "/v1/users/a%2Fb%20c",
			Host: "abcdefghijklmnopqrstuvwxyz012345.lambda-url.eu-central-1.on.aws", Remote: "203.0.113.17:0"}},
		{"http-cookies-and-repeated-headers", seen{Method: "GET",
			URI:  "/v1/policy/profiles?repeat=one&repeat=two&to=https%3A%2F%2Fexample.com%2Fa&plus=a+b&encoded=a%2Bb&empty=",
			Path: "/v1/policy/profiles", Escaped: "/v1/policy/profiles",
			Query: "repeat=one&repeat=two&to=https%3A%2F%2Fexample.com%2Fa&plus=a+b&encoded=a%2Bb&empty=",
			Host:  api, Remote: "[2001:db8::17]:0", Cookies: []string{"session=abc123", "theme=dark"},
			Header: map[string]string{"X-Example": "first,second", "Cookie": "session=abc123; theme=dark"}}},
		{"http-custom-domain", seen{Method: "GET", URI: "/v1/policy/profiles", Path: "/v1/policy/profiles", Escaped: "/v1/policy/profiles",
			Host: "pins.example.com", Remote: "203.0.113.17:0"}},
	}
	for _, tt := range tests {
		t.Run(tt.event, func(t *testing.T) {
			var event events.APIGatewayV2HTTPRequest
			load(t, tt.event, &event)
			tt.want.Proto = "HTTP/1.1"
			if tt.want.Header == nil {
				tt.want.Header = map[string]string{}
			}
			var got seen
			var id string
			res, err := gateway.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				var names []string
				for name := range tt.want.Header {
					names = append(names, name)
				}
				got, id = look(r, names...), gateway.RequestID(r.Context())
			}))(t.Context(), event)
			if err != nil || res.StatusCode != 200 {
				t.Fatalf("status %d, error %v; want 200", res.StatusCode, err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("request seen (-want +got):\n%s", diff)
			}
			if id == "" || id != event.RequestContext.RequestID {
				t.Errorf("request id %q, want %q", id, event.RequestContext.RequestID)
			}
		})
	}
}

// Without an Input, EventBridge Scheduler sends this: detail is a string.
func TestScheduleEvent(t *testing.T) {
	var event events.EventBridgeEvent
	load(t, "eventbridge-schedule", &event)
	if event.Source != "aws.scheduler" || event.DetailType != "Scheduled Event" || string(event.Detail) != `"{}"` || event.Time.IsZero() {
		t.Errorf("got %+v", event)
	}
	data, _ := json.Marshal(event)
	var request events.APIGatewayV2HTTPRequest
	if err := json.Unmarshal(data, &request); err != nil {
		t.Fatal(err)
	}
	if got := status(t, request); got != 400 {
		t.Errorf("an event that is no request is answered %d, want 400", got)
	}
}

func TestBadEvents(t *testing.T) {
	tests := map[string]func(*events.APIGatewayV2HTTPRequest){
		"body is not base64": func(e *events.APIGatewayV2HTTPRequest) { e.Body, e.IsBase64Encoded = "a PIN", true },
		"no path":            func(e *events.APIGatewayV2HTTPRequest) { e.RawPath = "" },
		"path without slash": func(e *events.APIGatewayV2HTTPRequest) { e.RawPath = "v1/users" },
		"absolute URL":       func(e *events.APIGatewayV2HTTPRequest) { e.RawPath = "http://other.example/" },
		"control in query":   func(e *events.APIGatewayV2HTTPRequest) { e.RawQueryString = "a=\r\nb" },
		"method":             func(e *events.APIGatewayV2HTTPRequest) { e.RequestContext.HTTP.Method = "GE T" },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			var event events.APIGatewayV2HTTPRequest
			load(t, "http-get", &event)
			change(&event)
			if got := status(t, event); got != 400 {
				t.Errorf("status %d, want 400", got)
			}
		})
	}
}

// status is the answer to an event that must not reach the handler.
func status(t *testing.T, event events.APIGatewayV2HTTPRequest) int {
	t.Helper()
	res, err := gateway.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the handler was called")
	}))(t.Context(), event)
	if err != nil {
		t.Error(err)
	}
	return res.StatusCode
}

func TestStage(t *testing.T) {
	tests := []struct{ stage, path, want string }{
		{"$default", "/prod/v1", "/prod/v1"},
		{"prod", "/prod/v1", "/v1"},
		{"prod", "/prod", "/"},
		{"prod", "/prod/", "/"},
		{"prod", "/production/v1", "/production/v1"},
		{"prod", "/v1", "/v1"},
	}
	for _, tt := range tests {
		var event events.APIGatewayV2HTTPRequest
		load(t, "http-get", &event)
		event.RequestContext.Stage, event.RawPath = tt.stage, tt.path
		var got string
		_, _ = gateway.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.URL.Path }))(t.Context(), event)
		if got != tt.want {
			t.Errorf("stage %s, path %s: got %q, want %q", tt.stage, tt.path, got, tt.want)
		}
	}
}

// A function's answer to HEAD has no body to begin with.
func TestHead(t *testing.T) {
	var event events.APIGatewayV2HTTPRequest
	load(t, "http-get", &event)
	event.RequestContext.HTTP.Method = "HEAD"
	res, _ := gateway.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	}))(t.Context(), event)
	if res.Body != "" || res.Headers["Content-Length"] != "5" {
		t.Errorf("got body %q, header %v", res.Body, res.Headers)
	}
}

func TestPanic(t *testing.T) {
	var log bytes.Buffer
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.NewJSONHandler(&log, nil)))

	var event events.APIGatewayV2HTTPRequest
	load(t, "http-post-json", &event)
	res, err := gateway.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		_, _ = io.WriteString(w, "half an answer")
		panic("table on fire")
	}))(context.Background(), event)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"title":"Internal Server Error","status":500}`; res.StatusCode != 500 || res.Body != want {
		t.Errorf("got %d %s, want 500 %s", res.StatusCode, res.Body, want)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 1 {
		t.Fatalf("%d log lines, want 1", len(lines))
	}
	for _, want := range []string{"table on fire", event.RequestContext.RequestID, "events_test.go"} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("the log lacks %q: %s", want, lines[0])
		}
	}
	if strings.Contains(lines[0], "8306") {
		t.Errorf("the log has the request's body: %s", lines[0])
	}
}
