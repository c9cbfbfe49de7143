// Package rest is the HTTP API: operations over the domain packages, described
// by themselves in OpenAPI 3.1. Every operation names the action that it is,
// and who may do it is decided in one place, tenant.May, before the operation
// sees the request.
package rest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/federation"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

// Version is the API's version as its description gives it.
const Version = "1.0.0"

// API is what the operations work on. All fields must be set.
type API struct {
	Table      table.Table
	Tenants    *tenant.Tenants
	Users      *user.Users
	People     *person.People
	Federation *federation.Federation
	Senders    mail.Senders // for test mails
	Audit      audit.Log
	Now        func() time.Time
	Rand       io.Reader
	Log        *slog.Logger
	Rate       Rate // requests a key may make in this process

	Credentials *credential.Credentials
	Unblocks    *unblock.Unblocks
	Rules       *rule.Rules
	Engine      *rule.Engine
	Deliveries  *delivery.Deliveries
	Connections gateway.Connections // to bridges
	RelayURL    string              // that bridges connect to, "wss://..."
}

// MaxBody is the largest request body in bytes.
const MaxBody = 64 << 10

// Handler returns the API as an http.Handler.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	api := humago.New(mux, config())
	a.Describe(api)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/docs", http.StatusFound) })
	mux.HandleFunc("GET /docs", reference(api))
	mux.HandleFunc("/", unmatched(mux))
	limits := newLimiters(a.Rate, a.Now)
	return a.observe(a.authenticate(limits.limit(a.idempotent(mux))))
}

func config() huma.Config {
	c := huma.DefaultConfig("Pinward", Version)
	c.Info.Description = "PINs of an organisation's people: policy, generation, verification, expiry and its announcement.\n\n" +
		"Send the API key as `Authorization: Bearer <key>`. Errors are RFC 9457 problems. " +
		"A `POST` with an `Idempotency-Key` header that is repeated within 24 hours gets the first answer again, and is not carried out again " +
		"unless the first was lost or failed on our side (and but for `/v1/pins/...` and `/v1/offline-answers...`, whose answers are always new). Times are RFC 3339 in UTC."
	c.DocsPath, c.SchemasPath = "", ""
	c.CreateHooks = nil // no $schema links in bodies
	strict := huma.Format{Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: unmarshal}
	c.Formats = map[string]huma.Format{"application/json": strict, "json": strict}
	c.RejectUnknownQueryParameters = true
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"key": {Type: "http", Scheme: "bearer", Description: "An API key, a user's token, or the platform key."}}
	return c
}

var framework sync.Once

// Describe registers all operations with the API framework.
func (a *API) Describe(api huma.API) {
	framework.Do(func() { // its settings are the process's
		huma.ValidateStrictCasing = true
		huma.NewErrorWithContext = newProblem
		huma.NewError = func(status int, message string, errs ...error) huma.StatusError {
			return newProblem(nil, status, message, errs...)
		}
	})
	a.tenantOperations(api)
	a.settingsOperations(api)
	a.policyOperations(api)
	a.keyOperations(api)
	a.personOperations(api)
	a.providerOperations(api)
	a.userOperations(api)
	a.pinOperations(api)
	a.bulkOperations(api)
	a.messagingOperations(api)
	a.cardTemplateOperations(api)
	a.credentialOperations(api)
	a.importOperations(api)
	a.sanityOperations(api)
	a.auditOperations(api)
	a.bridgeOperations(api)
	a.unblockOperations(api)
	a.offlineOperations(api)
	a.eventOperations(api)
	a.ruleOperations(api)
	a.webhookOperations(api)
}

// operation is what each operation says of itself.
type operation struct {
	id, summary  string
	method, path string
	action       tenant.Action
	open         bool // to everybody, without a key and an action
	status       int  // of success; 0 is 200
	tag          string
	about        string // more than the summary says, in Markdown
	maxBody      int64  // bytes; 0 is MaxBody
}

const actionKey = "action"

// register adds an operation. What handle returns as an error becomes a problem.
func register[I, O any](a *API, api huma.API, op operation, handle func(context.Context, *I) (*O, error)) {
	about, security, guard := op.about+"\n\nRoles: "+roles(op.action)+".", []map[string][]string{{"key": {}}}, a.authorize(api)
	if op.open {
		about, security, guard = op.about+"\n\nNeeds no key.", []map[string][]string{}, unguarded
	}
	huma.Register(api, huma.Operation{
		OperationID:   op.id,
		Method:        op.method,
		Path:          op.path,
		Summary:       op.summary,
		Description:   strings.TrimSpace(about),
		Tags:          []string{op.tag},
		DefaultStatus: op.status,
		MaxBodyBytes:  cmp.Or(op.maxBody, MaxBody),
		Security:      security,
		Metadata:      map[string]any{actionKey: op.action},
		Middlewares:   huma.Middlewares{guard},
		Errors:        []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity, http.StatusTooManyRequests},
	}, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, problemOf(ctx, err)
		}
		return out, nil
	})
}

// roles tells which roles may do an action, for the description.
func roles(a tenant.Action) string {
	var words []string
	for _, r := range append([]tenant.Role{tenant.RolePlatform}, append(tenant.KeyRoles(), tenant.RoleSelf)...) {
		switch tenant.May(r, a) {
		case tenant.Yes:
			words = append(words, string(r))
		case tenant.Own:
			words = append(words, string(r)+" (own user)")
		}
	}
	return strings.Join(words, ", ")
}

// Body is an answer with a JSON body.
type Body[T any] struct{ Body T }

func answer[T any](v T) *Body[T] { return &Body[T]{v} }

// Secret is an answer that shows a secret once: nothing on the way may keep it.
type Secret[T any] struct {
	CacheControl string `header:"Cache-Control"`
	Body         T
}

func secretAnswer[T any](v T) *Secret[T] { return &Secret[T]{"no-store", v} }

// Versioned is an answer whose ETag takes part in optimistic locking.
type Versioned[T any] struct {
	ETag string `header:"ETag"`
	Body T
}

func versioned[T any](v T, version int64) *Versioned[T] {
	return &Versioned[T]{strconv.Quote(strconv.FormatInt(version, 10)), v}
}

// IfMatch is the precondition of a change.
type IfMatch struct {
	IfMatch string `header:"If-Match" doc:"The ETag that was read; the change is refused with 412 if it is not the present one any more. Without it the change is made in any case."`
}

// check returns a problem if the version is not the one asked for.
func (m IfMatch) check(present int64) error {
	if strings.TrimSpace(m.IfMatch) == "" {
		return nil
	}
	for want := range strings.SplitSeq(m.IfMatch, ",") {
		if want = strings.TrimSpace(want); want == "*" || want == strconv.Quote(strconv.FormatInt(present, 10)) {
			return nil
		}
	}
	return errPrecondition
}

// Paging is what a list takes.
type Paging struct {
	Limit  int    `query:"limit" default:"50" minimum:"1" maximum:"200" doc:"The most items to return."`
	Cursor string `query:"cursor" maxLength:"2000" doc:"The nextCursor of the page before."`
}

// List is one page of a list.
type List[T any] struct {
	Items      []T    `json:"items"`
	NextCursor string `json:"nextCursor,omitempty" doc:"Give it as cursor to get the next page. Absent on the last page."`
}

func (p Paging) place() (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(p.Cursor)
	if err != nil || !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 || len(b) > table.MaxSort {
		return "", wrongQuery("cursor", "is not a nextCursor that was given")
	}
	return string(b), nil
}

// wrongQuery is the problem of a parameter that the description cannot rule out.
func wrongQuery(name, reason string) error {
	p := newProblem(nil, http.StatusUnprocessableEntity, "validation failed").(*Problem)
	p.Errors = []Detail{{"form", "query." + name, reason}}
	return p
}

func page[T, U any](items []T, next string, body func(T) U) *Body[List[U]] {
	l := List[U]{Items: make([]U, len(items)), NextCursor: base64.RawURLEncoding.EncodeToString([]byte(next))}
	for i, item := range items {
		l.Items[i] = body(item)
	}
	return answer(l)
}

// unmatched answers requests for which there is no operation.
func unmatched(mux *http.ServeMux) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var allow []string
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			probe := &http.Request{Method: method, URL: r.URL, Host: r.Host}
			if _, pattern := mux.Handler(probe); pattern != "/" {
				allow = append(allow, method)
			}
		}
		if len(allow) > 0 {
			w.Header().Set("Allow", strings.Join(allow, ", "))
			writeProblem(w, r.Context(), newProblem(nil, http.StatusMethodNotAllowed, fmt.Sprintf("%s is not possible here, only %s", r.Method, strings.Join(allow, ", "))))
			return
		}
		writeProblem(w, r.Context(), newProblem(nil, http.StatusNotFound, "there is no such operation; /docs lists them all"))
	}
}

// observe gives every request its id and logs how it went.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := gateway.RequestID(r.Context())
		seen := &observation{began: a.Now()}
		ctx := context.WithValue(audit.WithRequestID(r.Context(), id), observationKey{}, seen)
		w.Header().Set("X-Request-Id", id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		status := &gateway.StatusWriter{ResponseWriter: w, Status: http.StatusOK}
		r = r.WithContext(ctx)
		next.ServeHTTP(status, r)

		level := slog.LevelInfo
		attrs := []slog.Attr{
			slog.String("requestId", id), slog.String("method", r.Method), slog.String("route", seen.route),
			slog.Int("status", status.Status), slog.Duration("took", a.Now().Sub(seen.began)),
			slog.String("tenant", string(seen.tenant)), slog.String("role", string(seen.role)), slog.String("key", seen.key),
		}
		if len(seen.refused) > 0 {
			attrs = append(attrs, slog.Any("refused", seen.refused))
		}
		if seen.cause != nil {
			level = slog.LevelError
			attrs = append(attrs, slog.String("cause", seen.cause.Error()))
		}
		a.Log.LogAttrs(ctx, level, "request", attrs...)
	})
}

// observation is what the log tells of a request besides its outcome.
type observation struct {
	began   time.Time
	route   string
	tenant  table.TenantID
	role    tenant.Role
	key     string
	refused []string // field:code of what was wrong with the input
	cause   error    // of an internal error
}

type observationKey struct{}

func observed(ctx context.Context) *observation {
	if o, ok := ctx.Value(observationKey{}).(*observation); ok {
		return o
	}
	return &observation{}
}
