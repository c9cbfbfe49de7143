package enrolment_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pinward/pinward/bridge/enrolment"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func request(dir, url string) enrolment.Request {
	return enrolment.Request{Dir: dir, URL: url, Code: relay.Code{Text: secret.New("GOODCODE")}, Program: "1.0.0", System: "linux/amd64", Host: strings.Repeat("h", 200)}
}

func enrol(client *http.Client, r enrolment.Request) (*enrolment.Enrolment, error) {
	return enrolment.Enrol(context.Background(), client, rand.Reader, now, r)
}

// TestEnrol enrols over TLS with one pinned root, and reads what was stored.
func TestEnrol(t *testing.T) {
	var got relay.Enrolment
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/enroll" || r.Method != http.MethodPost {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(relay.Enrolled{Tenant: "acme", Bridge: "BR1", Name: "Kiosk", Organisation: "Acme", Relay: "wss://relay.example.com/v1"})
	}))
	web.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that fails
	web.StartTLS()
	t.Cleanup(web.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}))
	roots, err := enrolment.Roots(ca)
	if err != nil {
		t.Fatal(err)
	}
	pinned := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	dir := filepath.Join(t.TempDir(), "a", "state")

	if _, err := enrol(&http.Client{Transport: &http.Transport{}}, request(dir, web.URL+"/api/")); err == nil {
		t.Error("a server of another root is trusted")
	}
	r := request(dir, web.URL+"/api/")
	r.CA = ca
	e, err := enrol(pinned, r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Identity, e.Identity.Public().(ed25519.PublicKey)) {
		t.Error("another identity key was sent")
	}
	back, err := enrolment.Load(dir)
	if diff := cmp.Diff(e, back); err != nil || diff != "" {
		t.Errorf("read again: %v (-want +got):\n%s", err, diff)
	}
	want := relay.Enrolment{Code: relay.Code{Text: secret.New("GOODCODE")}, Program: "1.0.0", System: "linux/amd64", Host: strings.Repeat("h", 100), Sealing: e.Sealing.PublicKey().Bytes()}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(relay.Enrolment{}, "Identity"), cmp.Comparer(func(a, b secret.Text) bool { return a.Equal(b) })); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "new-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := enrol(pinned, r); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("enrolled over: %v", err)
	}
	r.Force = true
	again, err := enrol(pinned, r)
	if err != nil || again.Identity.Equal(e.Identity) || again.Sealing.Equal(e.Sealing) {
		t.Errorf("with force: %v, or the keys of before", err)
	}
}

// TestEnrolRefused: what the server says is passed on, and neither a redirect nor nonsense
// is followed. Without an enrolment nothing is stored.
func TestEnrolRefused(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the code went to another host") }))
	t.Cleanup(elsewhere.Close)
	for name, test := range map[string]struct {
		status      int
		contentType string
		body, want  string
	}{
		"problem":               {403, "application/problem+json", `{"title":"Forbidden","detail":"The code is wrong."}`, "The code is wrong."},
		"without detail":        {429, "application/problem+json", `{"title":"Too many"}`, "Too many"},
		"page":                  {502, "text/html", `<h1>Bad gateway</h1>`, "502 Bad Gateway"},
		"redirect":              {307, "", ``, "307"},
		"another service":       {200, "text/html", `<h1>Hello</h1>`, "is the URL right"},
		"no bridge":             {200, "application/json", `{"tenant":"acme","relay":"wss://x"}`, "which bridge"},
		"bridge ../..":          {200, "application/json", `{"tenant":"acme","bridge":"../..","relay":"wss://x"}`, "which bridge"},
		"relay without TLS":     {200, "application/json", `{"tenant":"acme","bridge":"B","relay":"ws://relay.example.com"}`, "wss://"},
		"relay with a password": {200, "application/json", `{"tenant":"acme","bridge":"B","relay":"wss://a:b@relay.example.com"}`, "must be a URL"},
	} {
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", test.contentType)
			w.Header().Set("Location", elsewhere.URL)
			w.WriteHeader(test.status)
			_, _ = w.Write([]byte(test.body))
		}))
		dir := filepath.Join(t.TempDir(), "state")
		_, err := enrol(web.Client(), request(dir, web.URL))
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "GOODCODE") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := enrolment.Load(dir); !errors.Is(err, enrolment.ErrNotEnrolled) {
			t.Errorf("%s: stored: %v", name, err)
		}
		web.Close()
	}
	for _, url := range []string{"http://example.com", "http://127.0.0.1.example.com", "ftp://127.0.0.1", "example.com", "https://", "https://a:b@example.com", "https://example.com?x=1", ""} {
		if _, err := enrol(http.DefaultClient, request(t.TempDir()+"/state", url)); !errors.As(err, new(*problem.InvalidError)) {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// TestLoadRefuses: damaged files, and those that others can read.
func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "enrolment.json")
	for _, content := range []string{"", "{}", `{"version":2}`, `{"version":1,"tenant":"acme","bridge":"B","relay":"wss://x","identity":"AAAA","sealing":"AAAA"}`, "SECRET"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := enrolment.Load(dir); err == nil || !strings.Contains(err.Error(), "damaged") || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%q: %v", content, err)
		}
	}
	if runtime.GOOS == "windows" {
		return
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o644} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := enrolment.Load(dir); err == nil || !strings.Contains(err.Error(), "read by others") {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}

func TestRoots(t *testing.T) {
	if pool, err := enrolment.Roots(""); pool != nil || err != nil {
		t.Errorf("the system's: %v, %v", pool, err)
	}
	if _, err := enrolment.Roots("nonsense"); !errors.As(err, new(*problem.InvalidError)) {
		t.Errorf("%v", err)
	}
}
