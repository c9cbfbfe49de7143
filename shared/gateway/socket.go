package gateway

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/aws/aws-lambda-go/events"
)

// Socket is what answers a WebSocket API. Messages of one connection may overtake each
// other, and each may come while Connect has only just returned, as with API Gateway.
type Socket interface {
	// Connect decides about a new connection by its HTTP status: 200 takes it, and any
	// other refuses. Nothing can be posted to it before Connect has returned. A request
	// with an Origin does not come here.
	Connect(ctx context.Context, connection string, header http.Header) int
	// Message is given what a client has sent. An error is logged; the client is not told.
	Message(ctx context.Context, connection string, data []byte) error
	// Disconnect tells that a connection is gone. It may not come at all, and messages
	// may still come after it.
	Disconnect(ctx context.Context, connection string) error
}

// Connections sends to WebSocket connections.
type Connections interface {
	// Post sends a text message. ErrGone: the connection is no more. After any other error
	// it may have been sent.
	Post(ctx context.Context, connection string, data []byte) error
	// Close ends a connection. One that is no more is closed already.
	Close(ctx context.Context, connection string) error
}

// HangUp says a last message to connections and closes them. They are all that is known of
// them by now, so one that cannot be reached is only logged; nor does it matter that who has
// asked for it waits no more.
func HangUp(ctx context.Context, c Connections, log *slog.Logger, last []byte, all ...string) {
	ctx = context.WithoutCancel(ctx)
	within := func(call func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return call(ctx)
	}
	for _, connection := range all {
		err := within(func(ctx context.Context) error { return c.Post(ctx, connection, last) })
		if errors.Is(err, ErrGone) {
			continue
		}
		err = errors.Join(err, within(func(ctx context.Context) error { return c.Close(ctx, connection) }))
		if err != nil {
			log.WarnContext(ctx, "a connection could not be ended properly", "connection", connection, "cause", err.Error())
		}
	}
}

// ErrGone: the connection is no more.
var ErrGone = errors.New("the connection is gone")

// SocketFunction is a Lambda function behind a WebSocket API.
type SocketFunction = func(context.Context, events.APIGatewayWebsocketProxyRequest) (events.APIGatewayProxyResponse, error)

// SocketHandler returns the function that serves s on the routes $connect, $disconnect
// and $default. Its error is always nil, since API Gateway would tell the client: an
// event that is none of a WebSocket API is answered 400, and what fails, which is
// logged, 500.
func SocketHandler(s Socket) SocketFunction {
	return func(ctx context.Context, event events.APIGatewayWebsocketProxyRequest) (res events.APIGatewayProxyResponse, _ error) {
		ctx = context.WithValue(ctx, requestIDKey{}, event.RequestContext.RequestID)
		defer func() {
			if p := recover(); p != nil {
				slog.ErrorContext(ctx, "socket panicked", "requestId", RequestID(ctx), "event", event.RequestContext.EventType,
					"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				res.StatusCode = http.StatusInternalServerError
			}
		}()
		res.StatusCode = dispatch(ctx, s, event)
		return res, nil
	}
}

// dispatch calls s and returns the HTTP status of the answer.
func dispatch(ctx context.Context, s Socket, event events.APIGatewayWebsocketProxyRequest) int {
	meta := event.RequestContext
	if meta.ConnectionID == "" {
		return http.StatusBadRequest
	}
	var err error
	switch meta.EventType + " " + meta.RouteKey {
	case "CONNECT $connect":
		header := headers(event)
		// Browsers send an Origin, and only they: a page of another site cannot connect
		// with what the browser would add (cross-site WebSocket hijacking).
		if _, browser := header["Origin"]; browser {
			return http.StatusForbidden
		}
		status := s.Connect(ctx, meta.ConnectionID, header)
		if status != http.StatusOK && status < 400 { // API Gateway would take any 2xx for yes
			err = fmt.Errorf("answer %d to a connection", status)
			break
		}
		return status
	case "MESSAGE $default":
		data := []byte(event.Body)
		if event.IsBase64Encoded {
			if data, err = base64.StdEncoding.DecodeString(event.Body); err != nil {
				return http.StatusBadRequest
			}
		}
		err = s.Message(ctx, meta.ConnectionID, data)
	case "DISCONNECT $disconnect":
		err = s.Disconnect(ctx, meta.ConnectionID)
	default:
		return http.StatusBadRequest
	}
	if err != nil {
		slog.ErrorContext(ctx, "socket failed", "requestId", RequestID(ctx), "event", meta.EventType, "err", err)
		return http.StatusInternalServerError
	}
	return http.StatusOK
}

// headers are those of a request to connect, Host among them. Their names come as the
// client spelt them.
func headers(event events.APIGatewayWebsocketProxyRequest) http.Header {
	header := http.Header{}
	for name, values := range event.MultiValueHeaders {
		name = http.CanonicalHeaderKey(name)
		header[name] = append(header[name], values...)
	}
	single := http.Header{}
	for name, value := range event.Headers { // the last value of each
		single.Add(name, value)
	}
	for name, values := range single {
		if len(header[name]) == 0 {
			header[name] = values
		}
	}
	return header
}
