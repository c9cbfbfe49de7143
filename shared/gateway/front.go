package gateway

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
)

// Limits of Lambda and of an HTTP API, which cannot be raised. The HTTP API's
// own 10 MB for a body are never reached: the event has to fit too.
const (
	maxPayload = 6 << 20          // "Lambda quotas": invocation payload, synchronous, each way
	maxWait    = 30 * time.Second // "Quotas for configuring and running an HTTP API": integration timeout
)

// Front serves f over HTTP in the place of API Gateway: stage $default, one
// route. Events and answers pass through JSON. As with API Gateway, a client
// that goes away does not cancel f, and the answer {"message": "..."} means with
// 400 a path that cannot be decoded twice (see receivedPath), with 413 an event
// over 6 MB, with 503 that f takes over 30 s, and with 500 that it failed,
// which is logged. requestID makes the id of each request.
func Front(f Function, now func() time.Time, requestID func() string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := requestID()
		w.Header().Set("Apigw-Requestid", id)
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPayload))
		if err != nil {
			status := http.StatusBadRequest
			if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
				status = http.StatusRequestEntityTooLarge
			}
			message(w, status)
			return
		}
		event, err := newEvent(r, body, id, now())
		if err != nil {
			message(w, http.StatusBadRequest)
			return
		}
		payload, _ := json.Marshal(event) // strings and numbers: it cannot fail
		if len(payload) > maxPayload {
			message(w, http.StatusRequestEntityTooLarge)
			return
		}

		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), maxWait)
		defer cancel()
		type outcome struct {
			res events.APIGatewayV2HTTPResponse
			err error
		}
		done := make(chan outcome, 1)
		go func() {
			res, err := call(ctx, f, payload)
			done <- outcome{res, err}
		}()
		select {
		case <-ctx.Done():
			message(w, http.StatusServiceUnavailable)
		case o := <-done:
			if o.err == nil {
				o.err = write(w, r, o.res)
			}
			if o.err != nil {
				slog.ErrorContext(r.Context(), "function failed", "requestId", id, "err", o.err)
				message(w, http.StatusInternalServerError)
			}
		}
	})
}

const requestTime = "02/Jan/2006:15:04:05 -0700" // the layout in which events tell the time

// newEvent is the event that an HTTP API makes of r.
func newEvent(r *http.Request, body []byte, id string, now time.Time) (events.APIGatewayV2HTTPRequest, error) {
	path, err := receivedPath(r.URL.EscapedPath())
	if err != nil {
		return events.APIGatewayV2HTTPRequest{}, err
	}
	source, domain := withoutPort(r.RemoteAddr), withoutPort(r.Host)
	prefix, _, _ := strings.Cut(domain, ".")
	event := events.APIGatewayV2HTTPRequest{
		Version:        "2.0",
		RouteKey:       "$default",
		RawPath:        path,
		RawQueryString: r.URL.RawQuery,
		Headers:        map[string]string{},
		Body:           string(body),
		RequestContext: events.APIGatewayV2HTTPRequestContext{
			RouteKey:     "$default",
			AccountID:    "123456789012",
			Stage:        "$default",
			RequestID:    id,
			APIID:        "local",
			DomainName:   domain,
			DomainPrefix: prefix,
			Time:         now.UTC().Format(requestTime),
			TimeEpoch:    now.UnixMilli(),
			HTTP: events.APIGatewayV2HTTPRequestContextHTTPDescription{
				Method:    r.Method,
				Path:      path,
				Protocol:  r.Proto,
				SourceIP:  source,
				UserAgent: r.UserAgent(),
			},
		},
	}
	for name, values := range r.Header {
		switch name {
		case "Cookie":
			for c := range strings.SplitSeq(strings.Join(values, ";"), ";") {
				if c = strings.TrimSpace(c); c != "" {
					event.Cookies = append(event.Cookies, c)
				}
			}
		case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Upgrade": // RFC 9110, 7.6.1
		default:
			event.Headers[strings.ToLower(name)] = strings.Join(values, ",")
		}
	}
	event.Headers["host"] = r.Host
	event.Headers["content-length"] = strconv.Itoa(len(body))
	event.Headers["x-forwarded-proto"], event.Headers["x-forwarded-port"] = protoPort(r)
	event.Headers["x-forwarded-for"] = strings.TrimPrefix(event.Headers["x-forwarded-for"]+", "+source, ", ")

	for name, values := range r.URL.Query() {
		if event.QueryStringParameters == nil {
			event.QueryStringParameters = map[string]string{}
		}
		event.QueryStringParameters[name] = strings.Join(values, ",")
	}
	if len(body) > 0 && !(isText(r.Header.Get("Content-Type")) && utf8.Valid(body)) {
		event.Body, event.IsBase64Encoded = base64.StdEncoding.EncodeToString(body), true
	}
	return event, nil
}

// receivedPath is what an HTTP API makes of a path before a function sees it,
// in rawPath too: it decodes it twice and in between drops what follows a "?".
// So %2F arrives as a slash, and %25 not at all unless what it makes is again
// an escape. AWS does not document this; events captured in July 2026 and
// published by the project hotsock/voker (ingress-paths.json) show it.
func receivedPath(escaped string) (string, error) {
	once, err := url.PathUnescape(escaped)
	if err != nil {
		return "", err
	}
	once, _, _ = strings.Cut(once, "?")
	return url.PathUnescape(once)
}

// isText says whether an HTTP API hands over a body of this type as it is, and
// not in base64 (AWS Compute Blog, "Handling binary data using Amazon API
// Gateway HTTP APIs"). Forms are not among them.
func isText(contentType string) bool {
	t, _, _ := mime.ParseMediaType(contentType)
	switch t {
	case "application/json", "application/javascript", "application/xml":
		return true
	}
	return strings.HasPrefix(t, "text/")
}

// call invokes f as Lambda does: JSON in, JSON out, a panic is an error.
func call[Event, Response any](ctx context.Context, f func(context.Context, Event) (Response, error), payload []byte) (res Response, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("function panicked: %v", p)
		}
	}()
	var event Event
	if err := json.Unmarshal(payload, &event); err != nil {
		return res, fmt.Errorf("read the event: %w", err)
	}
	answer, err := f(ctx, event)
	if err != nil {
		return res, err
	}
	out, err := json.Marshal(answer)
	if err != nil {
		return res, fmt.Errorf("write the response: %w", err)
	}
	if len(out) > maxPayload {
		return res, fmt.Errorf("the response has %d bytes; Lambda allows %d", len(out), maxPayload)
	}
	return res, json.Unmarshal(out, &res)
}

// write sends res to the client, or an error before it has sent anything.
func write(w http.ResponseWriter, r *http.Request, res events.APIGatewayV2HTTPResponse) error {
	if res.StatusCode < 200 || res.StatusCode > 599 {
		return fmt.Errorf("the response has status %d", res.StatusCode)
	}
	body := []byte(res.Body)
	if res.IsBase64Encoded {
		var err error
		if body, err = base64.StdEncoding.DecodeString(res.Body); err != nil {
			return fmt.Errorf("the response's body: %w", err)
		}
	}
	for name, value := range res.Headers {
		w.Header().Set(name, value)
	}
	for _, cookie := range res.Cookies {
		w.Header().Add("Set-Cookie", cookie)
	}
	if r.Method != http.MethodHead {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(res.StatusCode)
	_, _ = w.Write(body) // the client may have gone
	return nil
}

// message answers in API Gateway's own words.
func message(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"message":%q}`, http.StatusText(status))
}

// protoPort is how and where a client has reached the server.
func protoPort(r *http.Request) (proto, port string) {
	proto, port = "http", "80"
	if r.TLS != nil {
		proto, port = "https", "443"
	}
	if _, p, err := net.SplitHostPort(r.Host); err == nil {
		port = p
	}
	return proto, port
}

func withoutPort(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}
