package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go/encoding/httpbinding"
)

// retryAfter is how long a throttled message waits.
const retryAfter = 100 * time.Millisecond

// NewConnections sends to connections by API Gateway's management API. The endpoint is
// that of the WebSocket API's stage with https ("https://{api}.execute-api.{region}.
// amazonaws.com/{stage}") and the region is the API's. A message has at most 128 KB; time
// is limited by the context and the client.
//
// Post is repeated, once, only where it is certain that nothing was sent: after 429, by
// which API Gateway turns a call away. After 5xx, or without an answer, the message may
// have arrived, and whether it may arrive twice is for the caller to say. Close is
// repeated after 5xx as well: a connection ends only once.
func NewConnections(endpoint string, credentials aws.CredentialsProvider, region string, client *http.Client) (Connections, error) {
	u, err := url.Parse(strings.TrimSuffix(endpoint, "/"))
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("the endpoint of WebSocket connections must be an https URL")
	}
	return &connections{u, credentials, region, client, v4.NewSigner()}, nil
}

type connections struct {
	endpoint    *url.URL
	credentials aws.CredentialsProvider
	region      string
	client      *http.Client
	signer      *v4.Signer
}

// Post implements Connections.
func (c *connections) Post(ctx context.Context, connection string, data []byte) error {
	if len(data) > maxMessage {
		return fmt.Errorf("post to a connection: %d bytes, at most %d are sent", len(data), maxMessage)
	}
	status, err := c.do(ctx, http.MethodPost, connection, data)
	if status == http.StatusTooManyRequests && pause(ctx) {
		_, err = c.do(ctx, http.MethodPost, connection, data)
	}
	if err == nil || errors.Is(err, ErrGone) {
		return err
	}
	return fmt.Errorf("post to a connection: %w", err)
}

// Close implements Connections.
func (c *connections) Close(ctx context.Context, connection string) error {
	status, err := c.do(ctx, http.MethodDelete, connection, nil)
	if (status == http.StatusTooManyRequests || status >= 500) && pause(ctx) {
		_, err = c.do(ctx, http.MethodDelete, connection, nil)
	}
	if err == nil || errors.Is(err, ErrGone) {
		return nil
	}
	return fmt.Errorf("close a connection: %w", err)
}

func pause(ctx context.Context) bool {
	select {
	case <-time.After(retryAfter):
		return true
	case <-ctx.Done():
		return false
	}
}

// do makes a call. The status is 0 if there was no answer.
func (c *connections) do(ctx context.Context, method, connection string, data []byte) (status int, err error) {
	u := *c.endpoint
	u.Path += "/@connections/" + connection
	// An id is base64 and is sent escaped. What is signed is the path as it is sent, escaped
	// once more ("Create a signed AWS API request": all services but S3); the signer does so.
	u.RawPath = c.endpoint.EscapedPath() + "/@connections/" + httpbinding.EscapePath(connection, true)
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(data))
	if err != nil {
		return 0, err
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	credentials, err := c.credentials.Retrieve(ctx)
	if err != nil {
		return 0, fmt.Errorf("get credentials: %w", err)
	}
	hash := sha256.Sum256(data)
	if err := c.signer.SignHTTP(ctx, credentials, req, hex.EncodeToString(hash[:]), "execute-api", c.region, time.Now()); err != nil {
		return 0, fmt.Errorf("sign: %w", err)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	switch {
	case resp.StatusCode/100 == 2:
		return resp.StatusCode, nil
	case resp.StatusCode == http.StatusGone:
		return resp.StatusCode, ErrGone
	}
	return resp.StatusCode, fmt.Errorf("API Gateway answers %s: %s", resp.Status, reason(resp, body))
}

// reason is what an answer tells about an error: its type and the first line of its
// message. The lines that follow repeat the request, its session token included.
func reason(resp *http.Response, body []byte) string {
	kind, _, _ := strings.Cut(resp.Header.Get("X-Amzn-Errortype"), ":")
	var answer struct {
		Message string // or "message"
	}
	_ = json.Unmarshal(body, &answer)
	line, _, _ := strings.Cut(answer.Message, "\n")
	return strings.TrimSpace(kind + " " + line[:min(len(line), 300)])
}
