package gateway_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/gateway"
)

const (
	keyID  = "AKIDEXAMPLE"
	secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	token  = "session-token-that-nobody-logs"
)

func connections(t *testing.T, endpoint, secret string) gateway.Connections {
	t.Helper()
	c, err := gateway.NewConnections(endpoint, credentials.NewStaticCredentialsProvider(keyID, secret, token), "eu-central-1", http.DefaultClient)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// noted is what a management API did on its connections, of which "gone" is none.
type noted struct{ posts, closed []string }

func (n *noted) Post(_ context.Context, id string, data []byte) error {
	if id == "gone" {
		return gateway.ErrGone
	}
	n.posts = append(n.posts, id+" "+string(data))
	return nil
}

func (n *noted) Close(_ context.Context, id string) error {
	if id == "gone" {
		return gateway.ErrGone
	}
	n.closed = append(n.closed, id)
	return nil
}

// Signed by the SDK's signer, verified by one that has nothing of it.
func TestConnectionsAreSigned(t *testing.T) {
	n := &noted{}
	server := httptest.NewServer(testserver.Management(n, keyID, secret))
	defer server.Close()
	c := connections(t, server.URL+"/live/", secret)
	for _, id := range []string{"L0SM9cOFvHcCIhw=", "P-S_9e-7liACH9A=", "a+b/c=", "%3D", "a b?c#d", "é"} {
		if err := c.Post(t.Context(), id, []byte("löst")); err != nil {
			t.Errorf("post to %q: %v", id, err)
		}
		if err := c.Close(t.Context(), id); err != nil {
			t.Errorf("close %q: %v", id, err)
		}
		if len(n.posts) != 1 || n.posts[0] != id+" löst" || len(n.closed) != 1 || n.closed[0] != id {
			t.Errorf("%q: posted %q, closed %q", id, n.posts, n.closed)
		}
		*n = noted{}
	}
	if err := c.Post(t.Context(), "gone", nil); !errors.Is(err, gateway.ErrGone) {
		t.Errorf("post: %v, want ErrGone", err)
	}
	if err := c.Close(t.Context(), "gone"); err != nil {
		t.Errorf("close what is gone: %v", err)
	}
	if err := c.Post(t.Context(), "x", make([]byte, 128<<10+1)); err == nil || len(n.posts) > 0 {
		t.Errorf("128 KB and a byte: %v, and %d posts", err, len(n.posts))
	}
}

// API Gateway answers a wrong signature with all that was signed, the session token too.
func TestWrongSignature(t *testing.T) {
	n := &noted{}
	server := httptest.NewServer(testserver.Management(n, keyID, secret))
	defer server.Close()
	err := connections(t, server.URL+"/live", secret+"x").Post(t.Context(), "x", []byte("8306"))
	if err == nil || len(n.posts) > 0 {
		t.Fatalf("posted with a wrong key: %v", err)
	}
	for text, want := range map[string]bool{"403 Forbidden": true, "InvalidSignatureException": true, "does not match": true, "Canonical": false, token: false, "8306": false} {
		if strings.Contains(err.Error(), text) != want {
			t.Errorf("error %q: has %q should be %v", err, text, want)
		}
	}
}

// What the requests are by the letter, so that client and stub cannot err together.
func TestConnectionsRequests(t *testing.T) {
	var got []string
	var header http.Header
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		header = r.Header
		got = append(got, r.Method+" "+r.RequestURI+" "+string(body))
	}))
	defer server.Close()
	c := connections(t, server.URL+"/live", secret)
	if err := errors.Join(c.Post(t.Context(), "a+b/c-d_e=", []byte("x")), c.Close(t.Context(), "L0SM9cOFvHcCIhw=")); err != nil {
		t.Fatal(err)
	}
	if got[0] != "POST /live/@connections/a%2Bb%2Fc-d_e%3D x" || got[1] != "DELETE /live/@connections/L0SM9cOFvHcCIhw%3D " {
		t.Errorf("sent %q", got)
	}
	credential := "AWS4-HMAC-SHA256 Credential=" + keyID + "/" + header.Get("X-Amz-Date")[:8] + "/eu-central-1/execute-api/aws4_request, "
	if a := header.Get("Authorization"); !strings.HasPrefix(a, credential) || header.Get("X-Amz-Security-Token") != token {
		t.Errorf("Authorization: %s, want %s...", a, credential)
	}
}

// Post is not repeated if the message may have arrived.
func TestConnectionsRetries(t *testing.T) {
	tests := map[string]struct {
		answers     []int // 0: none, the connection breaks
		post, close int   // calls
		ok          bool
	}{
		"throttled":       {[]int{429, 200}, 2, 2, true},
		"throttled twice": {[]int{429, 429, 200}, 2, 2, false},
		"failed":          {[]int{500, 200}, 1, 2, true},
		"unavailable":     {[]int{503, 200}, 1, 2, true},
		"failed twice":    {[]int{500, 500, 200}, 1, 2, false},
		"forbidden":       {[]int{403, 200}, 1, 1, false},
		"broken":          {[]int{0, 200}, 1, 1, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for method, want := range map[string]int{http.MethodPost: tt.post, http.MethodDelete: tt.close} {
				var calls atomic.Int32
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.ReadAll(r.Body)
					status := tt.answers[calls.Add(1)-1]
					if status == 0 {
						panic(http.ErrAbortHandler)
					}
					w.WriteHeader(status)
				}))
				c := connections(t, server.URL, secret)
				ok := tt.ok
				var err error
				if method == http.MethodPost {
					ok = ok && tt.post == 2
					err = c.Post(t.Context(), "x", []byte("x"))
				} else {
					err = c.Close(t.Context(), "x")
				}
				server.Close()
				if (err == nil) != ok || errors.Is(err, gateway.ErrGone) || int(calls.Load()) != want {
					t.Errorf("%s: %d calls and %v, want %d, ok %v", method, calls.Load(), err, want, ok)
				}
			}
		})
	}
}

func TestConnectionsGiveUp(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := connections(t, server.URL, secret).Post(ctx, "x", []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("post: %v, want that the context ends it", err)
	}
}

func TestConnectionsEndpoint(t *testing.T) {
	for _, endpoint := range []string{"", "live", "wss://x.example/live", "https:///live", "https://x.example/live?a=b", "https://x.example/live#a", "https://x.example/%zz"} {
		if _, err := gateway.NewConnections(endpoint, credentials.NewStaticCredentialsProvider(keyID, secret, ""), "eu-central-1", http.DefaultClient); err == nil {
			t.Errorf("endpoint %q is taken", endpoint)
		}
	}
}

// The whole way: a client, the front, and a function that posts by the management API.
func TestPostThroughManagement(t *testing.T) {
	var c gateway.Connections
	r := serve(t, gateway.SocketHandler(&socket{message: func(ctx context.Context, id string, data []byte) error {
		if string(data) == "bye" {
			return c.Close(ctx, id)
		}
		return c.Post(ctx, id, data)
	}}), nil)
	server := httptest.NewServer(testserver.Management(r, keyID, secret))
	defer server.Close()
	c = connections(t, server.URL+"/live", secret)
	ws := dial(t, r, nil)
	sendText(t, ws, "x")
	if got := receiveText(t, ws); got != "x" {
		t.Errorf("received %q", got)
	}
	sendText(t, ws, "bye")
	wantClose(t, ws, 1000)
	wantDisconnect(t, r, 1000)
	if err := c.Post(t.Context(), r.connection(t), []byte("x")); !errors.Is(err, gateway.ErrGone) {
		t.Errorf("post to what is gone: %v, want ErrGone", err)
	}
}
