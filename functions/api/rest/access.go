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

// Rate is how many requests a key may make in a process: so many a second in
// the long run, so many at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

// limiters keep the rate of each key. They bound what one key does to one
// process; what all do to the service is bounded in front of it.
type limiters struct {
	rate Rate
	now  func() time.Time

	mu    sync.Mutex
	byKey map[string]*rate.Limiter
}

// maxLimiters bounds the keys remembered.
const maxLimiters = 10_000

func newLimiters(r Rate, now func() time.Time) *limiters {
	return &limiters{rate: r, now: now, byKey: make(map[string]*rate.Limiter)}
}

func (l *limiters) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := caller(r.Context())
		if c.Role == "" {
			next.ServeHTTP(w, r)
			return
		}
		now := l.now()
		l.mu.Lock()
		lim := l.byKey[c.Key.ID]
		if lim == nil {
			if len(l.byKey) >= maxLimiters {
				clear(l.byKey)
			}
			lim = rate.NewLimiter(rate.Limit(l.rate.PerSecond), l.rate.Burst)
			l.byKey[c.Key.ID] = lim
		}
		l.mu.Unlock()
		if !lim.AllowN(now, 1) {
			writeProblem(w, r.Context(), &problem.LimitError{Code: "rateLimited", Reason: "the key makes too many requests", Until: now.Add(time.Second)})
			return
		}
		next.ServeHTTP(w, r)
	})
}
