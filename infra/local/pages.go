package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	netmail "net/mail"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
)

//go:embed outbox.html
var outboxHTML string

var outboxPage = template.Must(template.New("outbox").Funcs(template.FuncMap{"person": readable}).Parse(outboxHTML))

// readable is an address header as people read it.
func readable(header string) string {
	a, err := netmail.ParseAddress(header)
	if err != nil {
		return header
	}
	if a.Name == "" {
		return a.Address
	}
	return fmt.Sprintf("%s (%s)", a.Name, a.Address)
}

// localPages serves what only a local installation has: its mails and its
// clock.
func localPages(outbox *mail.Outbox, sweeper *sweeper) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_local/outbox", func(w http.ResponseWriter, r *http.Request) {
		mails, err := outbox.List(200)
		if err != nil {
			fail(w, err)
			return
		}
		show(w, struct {
			Mails []mail.Mail
			Now   time.Time
		}{mails, sweeper.clock.Now().UTC()}, "list")
	})
	mux.HandleFunc("GET /_local/outbox/{name}", func(w http.ResponseWriter, r *http.Request) {
		m, err := outbox.Open(r.PathValue("name"))
		if err != nil {
			fail(w, err)
			return
		}
		show(w, m, "mail")
	})
	mux.HandleFunc("GET /_local/outbox/{name}/html", func(w http.ResponseWriter, r *http.Request) {
		m, err := outbox.Open(r.PathValue("name"))
		if err != nil {
			fail(w, err)
			return
		}
		// The tenant wrote it: it may show text and colours, and do nothing.
		headers(w, "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'self'")
		_, _ = w.Write([]byte(m.HTML))
	})
	mux.HandleFunc("GET /_local/clock", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusOK, map[string]any{"now": sweeper.clock.Now().UTC()})
	})
	mux.HandleFunc("POST /_local/clock", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.URL.Query().Get("advance"))
		if err != nil || d < 0 {
			answer(w, http.StatusBadRequest, map[string]any{"error": "say how far to put the clock forward, such as ?advance=23h or ?advance=90m; it does not go back"})
			return
		}
		report, err := sweeper.advance(r.Context(), d)
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, http.StatusOK, map[string]any{"now": sweeper.clock.Now().UTC(), "sweep": report})
	})
	return http.NewCrossOriginProtection().Handler(addressed(mux))
}

// addressed refuses requests to a name other than localhost: a page elsewhere
// whose name was made to point here must not read the mails.
func addressed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if host != "localhost" && net.ParseIP(strings.Trim(host, "[]")) == nil {
			answer(w, http.StatusForbidden, map[string]any{"error": "reach this page by the machine's address or as localhost"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func headers(w http.ResponseWriter, policy string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", policy)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Referrer-Policy", "no-referrer")
}

func show(w http.ResponseWriter, data any, name string) {
	headers(w, "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	if err := outboxPage.ExecuteTemplate(w, name, data); err != nil {
		fmt.Fprintln(w, "The page cannot be shown.")
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v)
}

func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if errors.Is(err, problem.ErrNotFound) {
		status = http.StatusNotFound
	}
	answer(w, status, map[string]any{"error": err.Error()})
}
