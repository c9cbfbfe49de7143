// Package gateway lets net/http handlers serve an API Gateway HTTP API (payload
// format 2.0), and a Socket a WebSocket API. Handler and SocketHandler turn
// events into calls and the answers back; Front and SocketFront stand where API
// Gateway would stand and make such events from real requests and messages. A
// handler sees the same, and its client the same answer, behind either: what API
// Gateway changes on the way, the fronts change too.
package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"

	"github.com/aws/aws-lambda-go/events"
)

// Function is a Lambda function behind an HTTP API.
type Function = func(context.Context, events.APIGatewayV2HTTPRequest) (events.APIGatewayV2HTTPResponse, error)

// Handler returns the function that serves h. Its error is always nil: an event
// that makes no request is answered 400, and a panic of h, which is logged,
// 500; both as RFC 9457 problems.
func Handler(h http.Handler) Function {
	return func(ctx context.Context, event events.APIGatewayV2HTTPRequest) (res events.APIGatewayV2HTTPResponse, _ error) {
		ctx = context.WithValue(ctx, requestIDKey{}, event.RequestContext.RequestID)
		r, err := newRequest(ctx, event)
		if err != nil {
			return problem(http.StatusBadRequest, err.Error()), nil
		}
		defer func() {
			if p := recover(); p != nil {
				slog.ErrorContext(ctx, "handler panicked", "requestId", RequestID(ctx),
					"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				res = problem(http.StatusInternalServerError, "")
			}
		}()
		w := &recorder{header: http.Header{}}
		h.ServeHTTP(w, r)
		return w.response(r.Method), nil
	}
}

type requestIDKey struct{}

// RequestID returns API Gateway's id of the request being served, which its
// caller gets in the header Apigw-Requestid; "" outside of one.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// newRequest makes the request that net/http's server would have made. Header
// lines that API Gateway joined by commas stay joined (RFC 9110, 5.3: the same
// thing). The port of RemoteAddr is 0; TLS is nil, X-Forwarded-Proto tells.
func newRequest(ctx context.Context, event events.APIGatewayV2HTTPRequest) (*http.Request, error) {
	body := []byte(event.Body)
	if event.IsBase64Encoded {
		var err error
		if body, err = base64.StdEncoding.DecodeString(event.Body); err != nil {
			return nil, errors.New("the body is not valid base64")
		}
	}
	meta := event.RequestContext
	r, err := http.NewRequestWithContext(ctx, meta.HTTP.Method, "/", bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the method is not valid")
	}
	r.RequestURI = escapePath(trimStage(event.RawPath, meta.Stage))
	if event.RawQueryString != "" {
		r.RequestURI += "?" + event.RawQueryString
	}
	if r.URL, err = url.ParseRequestURI(r.RequestURI); err != nil || !strings.HasPrefix(r.RequestURI, "/") {
		return nil, errors.New("the path or the query is not valid")
	}
	for name, value := range event.Headers {
		r.Header.Set(name, value)
	}
	if len(event.Cookies) > 0 {
		r.Header.Set("Cookie", strings.Join(event.Cookies, "; "))
	}
	r.Host = r.Header.Get("Host")
	r.Header.Del("Host")
	if major, minor, ok := http.ParseHTTPVersion(meta.HTTP.Protocol); ok {
		r.Proto, r.ProtoMajor, r.ProtoMinor = meta.HTTP.Protocol, major, minor
	}
	r.RemoteAddr = net.JoinHostPort(meta.HTTP.SourceIP, "0")
	return r, nil
}

// trimStage removes the stage's name, with which every path begins unless the
// stage is $default, behind a custom domain as well.
func trimStage(path, stage string) string {
	if stage == "" || stage == "$default" {
		return path
	}
	rest, ok := strings.CutPrefix(path, "/"+stage)
	switch {
	case ok && rest == "":
		return "/"
	case ok && rest[0] == '/':
		return rest
	}
	return path
}

// escapePath returns an event's rawPath as it may stand in a request line. An
// HTTP API hands over a decoded path and a function URL the encoded one, and
// no field tells which: escapes that are there stay (%2F does not become a
// separator), and each byte that cannot stand in a path is escaped.
func escapePath(path string) string {
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@[]/"
	var b strings.Builder
	for i := range len(path) {
		c := path[i]
		if strings.IndexByte(allowed, c) >= 0 || c == '%' && i+2 < len(path) && isHex(path[i+1]) && isHex(path[i+2]) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// problem is an RFC 9457 answer for what fails before or around the handler.
func problem(status int, detail string) events.APIGatewayV2HTTPResponse {
	body, _ := json.Marshal(struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail,omitempty"`
	}{http.StatusText(status), status, detail})
	return events.APIGatewayV2HTTPResponse{
		StatusCode: status,
		Headers:    map[string]string{"Content-Type": "application/problem+json"},
		Body:       string(body),
	}
}
