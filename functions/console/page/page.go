// Package page is what people see: pages that are made on the server, work as
// plain forms, and do their work in the domain packages. A route names the
// action that it is; who may do it is decided by tenant.May before the page
// sees the request, and what somebody may not do is not there for them.
package page

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/functions/console/words"
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

// Console is what the pages work on. All fields must be set; Rand must be safe
// for concurrent use.
type Console struct {
	Table       table.Table
	Tenants     *tenant.Tenants
	People      *person.People
	Federation  *federation.Federation
	Users       *user.Users
	Credentials *credential.Credentials
	Unblocks    *unblock.Unblocks
	Rules       *rule.Rules
	Engine      *rule.Engine
	Deliveries  *delivery.Deliveries
	Senders     mail.Senders
	Connections gateway.Connections // to bridges
	RelayURL    string              // that bridges connect to, "wss://..."
	BaseURL     string              // where the pages are, "https://host"
	APIURL      string              // where the API is, at which bridges enrol
	Audit       audit.Log
	Now         func() time.Time
	Rand        io.Reader
	Log         *slog.Logger
}

// Root is the path that all pages are under.
const Root = "/console"

// MaxForm is the largest form in bytes, but of those that take files.
const MaxForm = 256 << 10

// route is one page, or one thing that a page does.
type route struct {
	pattern   string        // method and path, as http.ServeMux has them
	action    tenant.Action // "" is open to whoever has signed in
	sensitive bool          // wants that they have shown lately who they are
	open      bool          // to everybody
	own       bool          // is there for users too, for themselves; with an action only for them
	asked     bool          // by a page itself, again and again: that keeps no session alive
	maxBody   int64         // bytes; 0 is MaxForm
	do        func(*view) error
}

// routes are all pages.
func (c *Console) routes() []route {
	return slices.Concat(
		c.signInRoutes(),
		c.meRoutes(),
		c.providerRoutes(),
		c.overviewRoutes(),
		c.userRoutes(),
		c.cardRoutes(),
		c.cardTemplateRoutes(),
		c.sanityRoutes(),
		c.auditRoutes(),
		c.settingsRoutes(),
		c.peopleRoutes(),
		c.keyRoutes(),
		c.bulkRoutes(),
		c.importRoutes(),
		c.kioskRoutes(),
		c.policyRoutes(),
		c.messagingRoutes(),
		c.ruleRoutes(),
		c.webhookRoutes(),
		c.bridgeRoutes(),
		c.unblockRoutes(),
		c.helpDeskRoutes(),
	)
}

// section is an entry of the navigation: shown to who may do its action.
type section struct {
	path   string
	key    string // "nav."+key is its name in the catalogue
	action tenant.Action
}

// sections are the navigation, in its order.
var sections = []section{
	{Root, "overview", ""},
	{Root + "/users", "users", tenant.ListUsers},
	{Root + "/policy", "policy", tenant.ReadPolicy},
	{Root + "/messaging", "messaging", tenant.ReadMessaging},
	{Root + "/rules", "rules", tenant.ReadRules},
	{Root + "/cards", "cards", tenant.ReadCredentials},
	{Root + "/sanity-check", "sanity", tenant.RunSanityCheck},
	{Root + "/bridges", "bridges", tenant.ReadBridges},
	{Root + "/unblock", "unblock", tenant.StartUnblock},
	{Root + "/help-desk", "helpdesk", tenant.AnswerOffline},
	{Root + "/audit", "audit", tenant.ReadAudit},
	{Root + "/settings", "settings", tenant.ReadSettings},
}

// Handler returns the pages as an http.Handler for everything under Root.
func (c *Console) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range c.routes() {
		mux.Handle(r.pattern, c.serve(r))
	}
	mux.HandleFunc("GET "+assetRoot+"{hash}/{name}", serveAsset)
	mux.Handle("/", c.serve(route{open: true, do: func(v *view) error { return v.notFound() }}))
	crossOrigin := http.NewCrossOriginProtection()
	crossOrigin.SetDenyHandler(c.serve(route{open: true, do: func(v *view) error {
		return v.problem(http.StatusForbidden, words.Key("problem.crossOrigin"))
	}}))
	return c.observe(crossOrigin.Handler(mux))
}

// policy is what a page may load and do: our own files, forms to us, nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// observe sets what every answer has, and logs how it went. It never logs a URL: what
// people search for is in there.
func (c *Console) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := gateway.RequestID(r.Context())
		seen := &observation{}
		began := c.Now()
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Set("Strict-Transport-Security", "max-age=31536000")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Request-Id", id)
		status := &gateway.StatusWriter{ResponseWriter: w, Status: http.StatusOK}
		next.ServeHTTP(status, r.WithContext(context.WithValue(audit.WithRequestID(r.Context(), id), observationKey{}, seen)))

		level := slog.LevelInfo
		attrs := []slog.Attr{
			slog.String("requestId", id), slog.String("method", r.Method), slog.String("page", seen.route), slog.Int("status", status.Status),
			slog.Duration("took", c.Now().Sub(began)), slog.String("tenant", string(seen.tenant)), slog.String("person", seen.person),
		}
		if seen.cause != nil {
			level = slog.LevelError
			attrs = append(attrs, slog.String("cause", seen.cause.Error()))
		}
		c.Log.LogAttrs(r.Context(), level, "page", attrs...)
	})
}

// observation is what the log tells of a request besides its outcome.
type observation struct {
	route  string
	tenant table.TenantID
	person string // id
	cause  error  // of an internal error
}

type observationKey struct{}

func observed(ctx context.Context) *observation {
	if o, ok := ctx.Value(observationKey{}).(*observation); ok {
		return o
	}
	return &observation{}
}

// serve returns the handler of a route.
func (c *Console) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen := observed(r.Context())
		seen.route = rt.pattern
		v := &view{Console: c, w: w, r: r, words: words.In(c.language(r)), loc: time.UTC}
		limit := rt.maxBody
		if limit == 0 {
			limit = MaxForm
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		if err := v.serve(rt); err != nil {
			v.fail(err)
		}
	})
}

// language is the one that somebody wants of whom nothing else is known.
func (c *Console) language(r *http.Request) string {
	if cookie, err := r.Cookie(languageCookie); err == nil {
		return cookie.Value
	}
	tag, _ := words.Preferred(r.Header.Get("Accept-Language"))
	return tag
}

func (v *view) serve(rt route) error {
	if err := v.readForm(); err != nil {
		return err
	}
	if rt.open {
		return rt.do(v)
	}
	if err := v.authenticate(rt.asked); err != nil {
		return v.signedOut(err)
	}
	if v.self != nil && v.r.Method == http.MethodGet && v.r.URL.Path == Root {
		return v.goTo(Root + "/me") // where they land after they have signed in
	}
	if !v.allowed(rt) {
		return v.notFound()
	}
	if rt.sensitive {
		if confirmed, err := v.confirmed(); err != nil || !confirmed {
			return err // the answer asks who they are
		}
	}
	return rt.do(v)
}

// allowed decides who may use a route. Users reach only routes of their own, whose handlers
// touch nobody but them.
func (v *view) allowed(rt route) bool {
	if v.self != nil {
		return rt.own && (rt.action == "" || v.session.May(rt.action) == tenant.Own)
	}
	return rt.action == "" || !rt.own && v.session.May(rt.action) == tenant.Yes
}

// readForm reads the form that was sent, so that handlers have it at r.PostForm, or in
// r.MultipartForm if it has files.
func (v *view) readForm() error {
	if v.r.Method != http.MethodPost {
		return nil
	}
	var err error
	if strings.HasPrefix(v.r.Header.Get("Content-Type"), "multipart/form-data") {
		err = v.r.ParseMultipartForm(8 << 20)
	} else {
		err = v.r.ParseForm()
	}
	if err != nil {
		return &unreadable{err}
	}
	return nil
}
