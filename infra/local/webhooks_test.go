package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// Webhooks reach this machine only if it was started so.
func TestWebhooksAnywhere(t *testing.T) {
	var got atomic.Int64
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); strings.Contains(string(body), `"type":"test"`) && r.Header.Get("Webhook-Signature") != "" {
			got.Add(1)
		}
	}))
	defer receiver.Close()
	hook := object{"name": "Here", "url": receiver.URL}
	data := t.TempDir()

	p := start(t, data, "-webhooks-anywhere")
	key := p.key("KEY")
	var made struct{ ID string }
	p.into(&made, 201, "POST", "/v1/webhooks", key, hook)
	test := func() (result struct {
		Delivered bool
		Code      string
	}) {
		p.into(&result, 200, "POST", "/v1/webhooks/"+made.ID+"/test", key, nil)
		return result
	}
	if r := test(); !r.Delivered || got.Load() != 1 {
		t.Errorf("got %+v, and %d arrived", r, got.Load())
	}
	p.stop()

	p = start(t, data)
	p.call(422, "POST", "/v1/webhooks", key, hook)
	p.call(422, "POST", "/v1/webhooks/"+made.ID+"/test", key, nil)
	if got.Load() != 1 {
		t.Errorf("%d arrived", got.Load())
	}
}
