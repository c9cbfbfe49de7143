package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

const (
	replayFor = 24 * time.Hour  // how long an answer is given again
	takeOver  = 1 * time.Minute // after which an unfinished request counts as lost
)

// replay is what is kept of a request with an Idempotency-Key. Neither the
// request nor the answer is kept in the clear: they may show a PIN or a key.
type replay struct {
	key     table.Key
	Request string    `json:"request"` // keyed hash
	At      time.Time `json:"at"`
	Answer  []byte    `json:"answer,omitempty"` // sealed; none while it is carried out
	version int64
}

type storedAnswer struct {
	Status int         `json:"status"`
	Header http.Header `json:"header"`
	Body   []byte      `json:"body"`
}

// Validate implements table.Record.
func (r replay) Validate() error { return nil }

// Item implements table.Record.
func (r replay) Item() (table.Item, error) {
	data, err := json.Marshal(r)
	return table.Item{Key: r.key, ExpiresAt: r.At.Add(replayFor), Data: data}, err
}

// idempotent carries out a POST with an Idempotency-Key once: it claims the key
// before, and keeps the answer after. Guesses at a PIN are never answered from
// memory, and no answer that unblocks a card is kept.
func (a *API) idempotent(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.Header.Get("Idempotency-Key")
		c := caller(r.Context())
		if name == "" || r.Method != http.MethodPost || c.Role == "" || strings.HasPrefix(r.URL.Path, "/v1/pins/") || strings.HasPrefix(r.URL.Path, offlinePath) {
			next.ServeHTTP(w, r)
			return
		}
		if len(name) > 200 {
			writeProblem(w, r.Context(), newProblem(nil, http.StatusBadRequest, "the Idempotency-Key is longer than 200 characters"))
			return
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
		if err != nil {
			writeProblem(w, r.Context(), newProblem(nil, http.StatusBadRequest, "the body could not be read"))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if err := a.once(w, r, next, c, name, body); err != nil {
			writeProblem(w, r.Context(), err)
		}
	})
}

func (a *API) once(w http.ResponseWriter, r *http.Request, next http.Handler, c tenant.Caller, name string, body []byte) error {
	ctx := r.Context()
	tenantID, keys := c.Core.Tenant.ID, c.Core.Keys
	if c.Role == tenant.RolePlatform {
		tenantID = table.Platform
		var err error
		if keys, err = a.Tenants.EnsurePlatform(ctx); err != nil {
			return err
		}
	}
	id, err := keys.Fingerprint("idempotency key", fmt.Appendf(nil, "%q %q", c.Key.ID, name))
	if err != nil {
		return err
	}
	request, err := keys.Fingerprint("request", fmt.Appendf(nil, "%s %q %q", r.Method, r.URL.RequestURI(), body))
	if err != nil {
		return err
	}
	mine := replay{key: table.IdempotencyKey(tenantID, id), Request: request, At: a.Now().UTC()}
	before, err := a.replayOf(ctx, mine.key)
	if err != nil {
		return err
	}
	if before.version != 0 {
		switch age := a.Now().Sub(before.At); {
		case age >= replayFor:
		case before.Request != request:
			return newProblem(nil, http.StatusUnprocessableEntity, "this Idempotency-Key was used for another request; use a new one")
		case before.Answer != nil:
			return writeAnswer(w, keys, id, before.Answer)
		case age < takeOver:
			return newProblem(nil, http.StatusConflict, "the first request with this Idempotency-Key is still being carried out; repeat it in a moment")
		}
	}
	err = a.Table.Write(ctx, table.Put(mine, table.After(before.version)))
	if errors.Is(err, problem.ErrConflict) {
		return newProblem(nil, http.StatusConflict, "another request with this Idempotency-Key is being carried out; repeat it in a moment")
	} else if err != nil {
		return fmt.Errorf("claim idempotency key: %w", err)
	}
	mine.version = before.version + 1

	got := recorded{storedAnswer{Header: http.Header{}}}
	answered := false
	defer func() {
		if !answered { // it panicked
			_ = a.keep(context.WithoutCancel(ctx), keys, id, mine, storedAnswer{Status: http.StatusInternalServerError})
		}
	}()
	next.ServeHTTP(&got, r)
	answered = true
	got.write(w)
	if err := a.keep(context.WithoutCancel(ctx), keys, id, mine, got.storedAnswer); err != nil {
		observed(ctx).cause = fmt.Errorf("keep answer: %w", err)
	}
	return nil
}

// keep stores the answer, or frees the key so that the request can be repeated:
// after a failure on our side, after one that passes by itself, and where the
// caller had no business.
func (a *API) keep(ctx context.Context, keys *vault.Keys, id string, mine replay, got storedAnswer) error {
	switch {
	case got.Status >= 500, got.Status == http.StatusTooManyRequests, got.Status == http.StatusConflict,
		got.Status == http.StatusForbidden, got.Status == http.StatusNotFound, got.Status == http.StatusMethodNotAllowed:
		return a.Table.Write(ctx, table.Delete(mine.key, table.IfVersion(mine.version)))
	}
	text, err := json.Marshal(got)
	if err != nil {
		return err
	}
	if mine.Answer, err = keys.Seal("answer "+id, text); err != nil {
		return err
	}
	return a.Table.Write(ctx, table.Put(mine, table.IfVersion(mine.version)))
}

func (a *API) replayOf(ctx context.Context, key table.Key) (replay, error) {
	item, err := a.Table.Get(ctx, key)
	if errors.Is(err, problem.ErrNotFound) {
		return replay{}, nil
	} else if err != nil {
		return replay{}, fmt.Errorf("read idempotency key: %w", err)
	}
	before := replay{key: key, version: item.Version}
	return before, item.Decode(&before)
}

func writeAnswer(w http.ResponseWriter, keys *vault.Keys, id string, sealed []byte) error {
	text, err := keys.Open("answer "+id, sealed)
	if err != nil {
		return err
	}
	var s storedAnswer
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	w.Header().Set("Idempotency-Replayed", "true")
	s.write(w)
	return nil
}

func (s storedAnswer) write(w http.ResponseWriter) {
	maps.Copy(w.Header(), s.Header)
	w.WriteHeader(s.Status)
	_, _ = w.Write(s.Body)
}

// recorded is a ResponseWriter that keeps the answer.
type recorded struct{ storedAnswer }

func (r *recorded) Header() http.Header { return r.storedAnswer.Header }

func (r *recorded) WriteHeader(status int) { r.Status = status }

func (r *recorded) Write(b []byte) (int, error) {
	if r.Status == 0 {
		r.Status = http.StatusOK
	}
	r.Body = append(r.Body, b...)
	return len(b), nil
}
