package delivery

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

const (
	postFor   = 10 * time.Second // for all of a request
	drainFor  = time.Second      // for the body of its answer, which is thrown away
	maxAnswer = 4 << 10          // bytes of that
	maxHeader = 16 << 10         // bytes of its header
)

// open returns an endpoint that can be sent to, or an *Undeliverable.
func (ds *Deliveries) open(ctx context.Context, core tenant.Core, id string) (Endpoint, error) {
	e, err := ds.Endpoint(ctx, core.Tenant.ID, id)
	switch {
	case errors.Is(err, problem.ErrNotFound):
		return e, &Undeliverable{"endpointGone", "there is no such webhook endpoint", problem.ErrNotFound}
	case err != nil:
		return e, err
	case !e.On:
		return e, undeliverable("endpointOff", "the webhook endpoint is turned off")
	case ds.checkURL(e.URL) != nil: // the installation's rules may have changed
		return e, undeliverable("url", "the webhook endpoint's URL is not one that may be used here")
	}
	return e, nil
}

// signingKeys opens the secrets that an endpoint's webhooks are signed with at a time.
func signingKeys(core tenant.Core, e Endpoint, now time.Time) ([][]byte, error) {
	var keys [][]byte
	for _, s := range e.usable(now) {
		key, err := core.Keys.Open(secretPurpose(core.Tenant.ID, e.ID), s.Sealed)
		if err != nil {
			return nil, fmt.Errorf("open secret of webhook endpoint %s: %w", e.ID, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// signatures signs a webhook as Standard Webhooks 1.0.0 has it, once with each key.
func signatures(keys [][]byte, id, timestamp string, body []byte) string {
	var all []string
	for _, key := range keys {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", id, timestamp, body)
		all = append(all, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(all, " ")
}

// post sends a webhook once, to the endpoint itself and nowhere that it points to, and
// keeps nothing of the answer but its status.
func (ds *Deliveries) post(ctx context.Context, e Endpoint, keys [][]byte, id string, body []byte) outcome {
	ctx, cancel := context.WithTimeout(ctx, postFor)
	defer cancel()
	// A connection is made and used for this request only: nothing is sent twice by itself.
	var securing, connected bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		TLSHandshakeStart: func() { securing = true },
		GotConn:           func(httptrace.GotConnInfo) { connected = true },
	})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL, bytes.NewReader(body))
	if err != nil {
		return outcome{state: Dead, code: "url"}
	}
	timestamp := strconv.FormatInt(ds.Now().Unix(), 10)
	for name, value := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "Pinward",
		"Webhook-Id": id, "Webhook-Timestamp": timestamp, "Webhook-Signature": signatures(keys, id, timestamp, body),
	} {
		request.Header.Set(name, value)
	}
	dial := ds.dial()
	transport := &http.Transport{ // which has no proxy, follows nothing and keeps no cookies
		// net/http goes on dialling, and with the handshake, when a request has ended.
		DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err == nil {
				context.AfterFunc(ctx, func() { _ = conn.Close() })
			}
			return conn, err
		},
		TLSClientConfig:        &tls.Config{RootCAs: ds.RootCAs, MinVersion: tls.VersionTLS12},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		o := outcome{state: Planned, code: "connection", doubt: connected}
		var timeout net.Error
		switch {
		case errors.Is(err, mail.ErrNotPublic):
			o.code = "notPublic"
		case ctx.Err() != nil, errors.As(err, &timeout) && timeout.Timeout():
			o.code = "timeout"
		case connected:
			o.code = "noAnswer"
		case securing:
			o.code = "tls"
		}
		return o
	}
	defer response.Body.Close()
	defer time.AfterFunc(drainFor, cancel).Stop()
	_, _ = io.CopyN(io.Discard, response.Body, maxAnswer) // so that it need not see its answer cut off
	return answered(response, e.URL, ds.Now())
}

// dial is how endpoints are connected to.
func (ds *Deliveries) dial() func(ctx context.Context, network, address string) (net.Conn, error) {
	switch {
	case ds.Dial != nil:
		return ds.Dial
	case ds.Anywhere:
		return new(net.Dialer).DialContext
	}
	return mail.PublicDial
}

// answered reads the status of an endpoint's answer. Without 2xx the endpoint says that it
// has not taken the webhook.
func answered(r *http.Response, url string, now time.Time) outcome {
	switch status := r.StatusCode; {
	case status/100 == 2:
		return outcome{state: Delivered}
	case status == http.StatusGone:
		return outcome{state: Dead, code: "http.410", gone: url}
	case status/100 == 3:
		return outcome{state: Planned, code: "redirected"}
	default:
		return outcome{state: Planned, code: fmt.Sprintf("http.%d", status), after: retryAfter(r.Header.Get("Retry-After"), now)}
	}
}

// retryAfter reads a Retry-After header (RFC 9110 section 10.2.3); 0 if it says nothing.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return time.Duration(min(max(seconds, 0), int(maxWait/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// Test sends a webhook of type "test" to an endpoint, on or off, and returns what came of it
// as a delivery, which is not kept: an endpoint is not turned off by it, nor tried again.
func (ds *Deliveries) Test(ctx context.Context, core tenant.Core, by audit.Actor, id string) (Delivery, error) {
	t := core.Tenant.ID
	e, err := ds.Endpoint(ctx, t, id)
	if err != nil {
		return Delivery{}, err
	}
	if err := ds.checkURL(e.URL); err != nil {
		return Delivery{}, err
	}
	delivery, err := ds.newID()
	if err != nil {
		return Delivery{}, err
	}
	now := ds.Now()
	keys, err := signingKeys(core, e, now)
	if err != nil {
		return Delivery{}, err
	}
	d := Delivery{ID: "test_" + delivery, Kind: KindWebhook, Endpoint: id, Attempts: 1, CreatedAt: second(now)}
	if d.Body, err = json.Marshal(map[string]any{"id": d.ID, "type": "test", "timestamp": d.CreatedAt}); err != nil {
		return Delivery{}, err
	}
	o := ds.post(ctx, e, keys, d.ID, d.Body)
	d.State, d.Code, d.Doubt, d.EndedAt = Dead, o.code, o.doubt, second(ds.Now())
	if o.state == Delivered {
		d.State = Delivered
	}
	record := d.record(by, "webhook.tested")
	if err := ds.Table.Write(ctx, ds.Audit.Op(ctx, t, record)); err != nil {
		return Delivery{}, fmt.Errorf("test webhook endpoint: %w", err)
	}
	return d, nil
}
