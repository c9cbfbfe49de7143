package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/gateway"
)

// hearing is connections that note what they get, and answer with errors.
type hearing struct {
	errs map[string]error // by what is asked and of which connection
	seen []string
}

func (h *hearing) do(ctx context.Context, what string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	h.seen = append(h.seen, what)
	return h.errs[what]
}

func (h *hearing) Post(ctx context.Context, connection string, data []byte) error {
	return h.do(ctx, "post "+connection+" "+string(data))
}

func (h *hearing) Close(ctx context.Context, connection string) error {
	return h.do(ctx, "close "+connection)
}

// TestHangUp: each connection is told and closed, whatever becomes of the others, and though
// nobody waits for it any more. One that is gone is closed already.
func TestHangUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h := &hearing{errs: map[string]error{"post gone bye": gateway.ErrGone, "post lost bye": errors.New("no answer"), "close stuck": errors.New("it holds on")}}
	var log bytes.Buffer
	gateway.HangUp(ctx, h, slog.New(slog.NewTextHandler(&log, nil)), []byte("bye"), "gone", "lost", "stuck", "last")
	want := []string{"post gone bye", "post lost bye", "close lost", "post stuck bye", "close stuck", "post last bye", "close last"}
	if diff := cmp.Diff(want, h.seen); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, text := range []string{"connection=lost", "no answer", "connection=stuck", "it holds on"} {
		if !strings.Contains(log.String(), text) {
			t.Errorf("the log does not tell of %q: %s", text, log.String())
		}
	}
	if strings.Contains(log.String(), "gone") {
		t.Errorf("one that is gone is nothing to tell: %s", log.String())
	}
}
