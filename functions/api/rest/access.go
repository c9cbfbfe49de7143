package rest

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/time/rate"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
)

type callerKey struct{}

// caller returns who makes the request; authenticate has put it there.
func caller(ctx context.Context) tenant.Caller {
	c, _ := ctx.Value(callerKey{}).(tenant.Caller)
	return c
}

// authenticate lets only holders of a key into /v1.
func (a *API) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/v1/") {
			next.ServeHTTP(w, r)
			return
		}
		scheme, text, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") || text == "" {
			writeProblem(w, r.Context(), fmt.Errorf("%w: send the API key as \"Authorization: Bearer <key>\"", problem.ErrUnauthenticated))
			return
		}
		c, err := a.Tenants.Authenticate(r.Context(), secret.New(strings.TrimSpace(text)))
		if err != nil {
			writeProblem(w, r.Context(), err)
			return
		}
		seen := observed(r.Context())
		seen.tenant, seen.role, seen.key = c.Core.Tenant.ID, c.Role, c.Key.ID
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

// authorize lets a caller do only what tenant.May allows. A person with a
// token reaches the operations on {id} for their own id; any other id is as
// unknown to them as one that does not exist.
func (a *API) authorize(api huma.API) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		op := ctx.Operation()
		observed(ctx.Context()).route = op.Path
		action, _ := op.Metadata[actionKey].(tenant.Action)
		c := caller(ctx.Context())
		err := fmt.Errorf("%w: role %s may not do this (%s)", problem.ErrForbidden, c.Role, action)
		switch tenant.May(c.Role, action) {
		case tenant.Yes:
			err = nil
		case tenant.Own:
			if err = nil; ctx.Param("id") != c.Key.UserID {
				err = fmt.Errorf("user %w", problem.ErrNotFound)
			}
		}
		if err != nil {
			p := problemOf(ctx.Context(), err)
			_ = huma.WriteErr(api, ctx, p.Status, p.Detail, p)
			return
		}
		next(ctx)
	}
}

// unguarded lets everybody do an operation.
func unguarded(ctx huma.Context, next func(huma.Context)) {
	observed(ctx.Context()).route = ctx.Operation().Path
	next(ctx)
}

// Rate is how many requests a key may make in a process: so many a second in
// the long run, so many at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

// limiters keep the rate of each key and of each tenant. They bound what one key does to one
// process; what all do to the service is bounded in front of it.
type limiters struct {
	rate Rate
	now  func() time.Time

	mu     sync.Mutex
	byName map[string]*rate.Limiter
}

const (
	maxLimiters = 10_000 // keys and tenants remembered
	keysAtOnce  = 4      // how many keys' worth a tenant may do
)

func newLimiters(r Rate, now func() time.Time) *limiters {
	return &limiters{rate: r, now: now, byName: make(map[string]*rate.Limiter)}
}

// of returns the limiter of that name, for so many times a key's rate.
func (l *limiters) of(name string, times int) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim := l.byName[name]
	if lim == nil {
		if len(l.byName) >= maxLimiters {
			clear(l.byName)
		}
		lim = rate.NewLimiter(rate.Limit(l.rate.PerSecond*float64(times)), l.rate.Burst*times)
		l.byName[name] = lim
	}
	return lim
}

func (l *limiters) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := caller(r.Context())
		now := l.now()
		if c.Role == "" {
			// Who enrols has no key yet: all of them together may do what one key may.
			if r.URL.Path == relay.EnrolPath && !l.of("enroll", 1).AllowN(now, 1) {
				writeProblem(w, r.Context(), &problem.LimitError{Code: "rateLimited", Reason: "too many bridges enrol at the same time", Until: now.Add(time.Second)})
				return
			}
			next.ServeHTTP(w, r)
			return
		}
		// The tenant's keys and tokens together may do more than one, but not
		// as much as all of them one by one.
		if !l.of("key/"+c.Key.ID, 1).AllowN(now, 1) || !l.of("tenant/"+string(c.Core.Tenant.ID), keysAtOnce).AllowN(now, 1) {
			writeProblem(w, r.Context(), &problem.LimitError{Code: "rateLimited", Reason: "the key makes too many requests", Until: now.Add(time.Second)})
			return
		}
		next.ServeHTTP(w, r)
	})
}
