// Package enrolment makes a program a bridge of a tenant and keeps what it is then: its
// keys, and where to connect. Its invariant: the private keys are made here, are in one
// file that only its owner can read, and never leave it.
package enrolment

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
)

// Enrolment is what a bridge is.
type Enrolment struct {
	Tenant, Bridge string
	Name           string // that the administrator gave it
	Organisation   string
	Relay          string // the WebSocket's URL
	API            string // the URL at which it was enrolled
	// CA is in PEM the only root that is trusted; "" for the system's.
	CA string
	At time.Time // when it was enrolled

	Identity ed25519.PrivateKey
	Sealing  *ecdh.PrivateKey
	// Offline is the tenant's offline public key of 32 bytes; nil if it was not told yet.
	Offline []byte
}

// ErrNotEnrolled: there is no enrolment in the folder.
var ErrNotEnrolled = errors.New("this bridge is not enrolled")

// Journal is the folder in the state folder where this bridge's record is. Another
// enrolment has another, for it has other operations.
func (e *Enrolment) Journal(dir string) string { return filepath.Join(dir, "journal-"+e.Bridge) }

// fileName is that of the file in the state folder.
const fileName = "enrolment.json"

type stored struct {
	Version      int       `json:"version"`
	Tenant       string    `json:"tenant"`
	Bridge       string    `json:"bridge"`
	Name         string    `json:"name"`
	Organisation string    `json:"organisation"`
	Relay        string    `json:"relay"`
	API          string    `json:"api"`
	CA           string    `json:"ca,omitempty"`
	At           time.Time `json:"enrolledAt"`
	Identity     []byte    `json:"identity"` // the seed of RFC 8032
	Sealing      []byte    `json:"sealing"`
	Offline      []byte    `json:"offline,omitempty"`
}

const version = 1

// Load reads the enrolment in a state folder. A file that others can read is refused: who
// has read it is this bridge as well.
func Load(dir string) (*Enrolment, error) {
	path := filepath.Join(dir, fileName)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no %s", ErrNotEnrolled, path)
	}
	if err != nil {
		return nil, fmt.Errorf("read enrolment: %w", err)
	}
	if err := checkPrivate(path, info); err != nil {
		return nil, fmt.Errorf("read enrolment: %w", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read enrolment: %w", err)
	}
	defer clear(b)
	e, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("read enrolment: %s is damaged: %w", path, err)
	}
	return e, nil
}

func decode(b []byte) (*Enrolment, error) {
	var s stored
	if json.Unmarshal(b, &s) != nil { // whose error may repeat a key
		return nil, errors.New("it is not JSON of the right shape")
	}
	if s.Version != version {
		return nil, fmt.Errorf("it has version %d, not %d", s.Version, version)
	}
	sealing, err := ecdh.X25519().NewPrivateKey(s.Sealing)
	if err != nil || len(s.Identity) != ed25519.SeedSize || s.Tenant == "" || !name.MatchString(s.Bridge) || s.Relay == "" {
		return nil, errors.New("it lacks a key, or who the bridge is")
	}
	return &Enrolment{s.Tenant, s.Bridge, s.Name, s.Organisation, s.Relay, s.API, s.CA, s.At, ed25519.NewKeyFromSeed(s.Identity), sealing, s.Offline}, nil
}

// Request is what to enrol with.
type Request struct {
	Dir     string // state folder; made if it is not there
	URL     string // of the API
	Code    relay.Code
	Program string
	System  string
	Host    string // the machine's name
	CA      string // see Enrolment
	Force   bool   // take the place of an enrolment that is there
}

// Enrol makes keys, has them registered, and stores the enrolment. What the server says
// against it is a *ProblemError.
func Enrol(ctx context.Context, client *http.Client, rand io.Reader, now time.Time, r Request) (*Enrolment, error) {
	api, err := CheckURL("url", strings.TrimRight(r.URL, "/"), "https", "http")
	if err != nil {
		return nil, err
	}
	if err := makeFolder(r.Dir); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	path := filepath.Join(r.Dir, fileName)
	if _, err := os.Stat(path); !r.Force && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is there; with -force another takes its place", problem.ErrConflict, path)
	}
	// A code is good once: what can fail without the server fails before it is asked.
	f, err := os.CreateTemp(r.Dir, "new-")
	if err != nil {
		return nil, fmt.Errorf("store enrolment: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()

	public, identity, err := ed25519.GenerateKey(rand)
	if err != nil {
		return nil, fmt.Errorf("make identity key: %w", err)
	}
	sealing, err := relay.NewSealingKey(rand)
	if err != nil {
		return nil, err
	}
	answer, err := post(ctx, client, api+relay.EnrolPath, relay.Enrolment{
		Code: r.Code, Identity: public, Sealing: sealing.PublicKey().Bytes(),
		Program: r.Program, System: r.System, Host: r.Host[:min(len(r.Host), 100)],
	})
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", api, err)
	}
	if _, err := CheckURL("relay", answer.Relay, "wss", "ws"); err != nil {
		return nil, fmt.Errorf("enrol at %s: its answer: %w", api, err)
	}
	if answer.Tenant == "" || !name.MatchString(answer.Bridge) {
		return nil, fmt.Errorf("enrol at %s: it does not say which bridge this is", api)
	}
	e := &Enrolment{answer.Tenant, answer.Bridge, answer.Name, answer.Organisation, answer.Relay, api, r.CA, now.UTC().Truncate(time.Second), identity, sealing, answer.Offline}
	if err := e.store(f, path); err != nil {
		return nil, fmt.Errorf("store enrolment: %w", err)
	}
	return e, nil
}

func (e *Enrolment) store(f *os.File, path string) error {
	b, err := json.MarshalIndent(stored{version, e.Tenant, e.Bridge, e.Name, e.Organisation, e.Relay, e.API, e.CA, e.At, e.Identity.Seed(), e.Sealing.Bytes(), e.Offline}, "", "  ")
	if err != nil {
		return err
	}
	defer clear(b)
	if _, err = f.Write(append(b, '\n')); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	return err
}

// KeepOffline keeps the tenant's offline public key, which a bridge that was enrolled before
// there was one learns later. One that is there is never replaced: whoever could do that
// would get to know the PUKs that are read out.
func (e *Enrolment) KeepOffline(dir string, key []byte) error {
	if e.Offline != nil {
		if !bytes.Equal(e.Offline, key) {
			return fmt.Errorf("%w: this bridge has another offline key of its organisation; enrol it anew, if that is right", problem.ErrConflict)
		}
		return nil
	}
	if _, err := ecdh.X25519().NewPublicKey(key); err != nil {
		return problem.Invalid("malformed", "offline", "must be an X25519 public key of 32 bytes")
	}
	f, err := os.CreateTemp(dir, "new-")
	if err == nil {
		defer os.Remove(f.Name())
		defer f.Close()
		with := *e
		with.Offline = key
		if err = with.store(f, filepath.Join(dir, fileName)); err == nil {
			e.Offline = key
		}
	}
	if err != nil {
		return fmt.Errorf("store enrolment: %w", err)
	}
	return nil
}

// name is what a bridge's id may be: it names a folder.
var name = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// CheckURL returns a URL if its scheme is the safe one, or the other and it is on this
// machine.
func CheckURL(field, text, safe, loopback string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", problem.Invalid("malformed", field, "must be a URL like %s://host/path", safe)
	case u.Scheme == safe, u.Scheme == loopback && isLoopback(u.Hostname()):
		return text, nil
	}
	return "", problem.Invalid("malformed", field, "must begin with %s:// (%s:// is for this machine only)", safe, loopback)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// ProblemError is what a server said against a request, in the words of RFC 9457.
type ProblemError struct {
	Status int
	Detail string
}

// Error implements error.
func (e *ProblemError) Error() string { return e.Detail }

// maxAnswer is the most bytes of an answer that are read.
const maxAnswer = 64 << 10

func post(ctx context.Context, client *http.Client, url string, body relay.Enrolment) (relay.Enrolled, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return relay.Enrolled{}, err
	}
	defer clear(b)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(b))
	if err != nil {
		return relay.Enrolled{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	// The code must not be sent on to another host.
	own := *client
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := own.Do(req)
	if err != nil {
		return relay.Enrolled{}, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return relay.Enrolled{}, fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return relay.Enrolled{}, problemOf(resp, answer)
	}
	var enrolled relay.Enrolled
	if err := json.Unmarshal(answer, &enrolled); err != nil {
		return relay.Enrolled{}, errors.New("the answer is not that of Pinward: is the URL right?")
	}
	return enrolled, nil
}

func problemOf(resp *http.Response, body []byte) error {
	said := resp.Status
	var p struct{ Title, Detail string }
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); strings.HasSuffix(t, "json") && json.Unmarshal(body, &p) == nil {
		if p.Detail != "" {
			said = p.Detail
		} else if p.Title != "" {
			said = p.Title
		}
	}
	return &ProblemError{resp.StatusCode, said}
}

// Roots returns what to trust: the roots in PEM if there are any, and then no others. nil
// are the system's.
func Roots(pem string) (*x509.CertPool, error) {
	if pem == "" {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(pem)) {
		return nil, problem.Invalid("malformed", "ca", "must be a certificate in PEM")
	}
	return pool, nil
}
