package rest_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/functions/api/rest"
	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

// invite makes a bridge by a key and returns its id and code.
func (f *fixture) invite(key string) (id, code string) {
	f.Helper()
	a := f.call("POST", "/v1/bridges", key, object{"name": "service desk"}).want(201)
	canary.secret("code", a.text("code"))
	canary.secret("code", strings.Split(a.text("code"), ".")[2])
	return a.text("id"), a.text("code")
}

// enrolment is what a new machine sends.
func (f *fixture) enrolment(code string) relay.Enrolment {
	f.Helper()
	e, _ := f.machine(code)
	return e
}

func (f *fixture) machine(code string) (relay.Enrolment, ed25519.PrivateKey) {
	f.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	f.must(err)
	sealing, err := relay.NewSealingKey(rand.Reader)
	f.must(err)
	return relay.Enrolment{Code: relay.Code{Text: secret.New(code)}, Identity: public, Sealing: sealing.PublicKey().Bytes(),
		Program: "1.0.0", System: "linux/amd64", Host: "desk-7"}, key
}

// tenants are the operations that the relay uses, on the fixture's table.
func (f *fixture) tenants() *tenant.Tenants {
	f.Helper()
	root, err := vault.LocalRoot(filepath.Join(filepath.Dir(f.file), "root.key"))
	f.must(err)
	return &tenant.Tenants{Table: f.table, Vault: vault.New(root), Audit: audit.Log{Now: f.clock.Now, Rand: rand.Reader}, Now: f.clock.Now, Rand: rand.Reader}
}

// connect lets a machine in as the relay does. n numbers its tokens.
func (f *fixture) connect(bridge string, key ed25519.PrivateKey, n uint64, connection string, session relay.Session) error {
	f.Helper()
	now := f.clock.Now()
	token, err := relay.NewToken(key, relay.Claims{Tenant: "acme", Bridge: bridge, Relay: relayURL, At: now,
		ID: ulid.MustNew(ulid.Timestamp(now)+n, bytes.NewReader(make([]byte, 10))).String()})
	f.must(err)
	canary.secret("token", token.Reveal())
	if _, _, err := f.tenants().Connect(context.Background(), token, relayURL, connection); err != nil {
		return err
	}
	_, _, _, err = f.tenants().Greet(context.Background(), connection, relay.Hello{Program: "1.0.0", System: "linux/amd64", Session: session})
	return err
}

type bridgeShown struct {
	ID, Name, State, Program, System, Host, Code, Command string
	Online                                                bool
	CreatedAt, EnrolledAt, RevokedAt, CodeExpiresAt       time.Time
	Sessions                                              []sessionShown
}

type sessionShown struct {
	Session             string
	Online              bool
	ConnectedAt, SeenAt time.Time
	Readers             []struct {
		Name string
		Card map[string]any
	}
}

func TestBridgeLife(t *testing.T) {
	f := newFixture(t)
	a := f.call("POST", "/v1/bridges", f.key, object{"name": "service desk"}).want(201)
	var made bridgeShown
	a.decode(&made)
	canary.secret("code", made.Code)
	if got := a.header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("the code may be cached: %q", got)
	}
	if want := "bridge enroll " + made.Code + " " + f.url; made.Command != want || !strings.HasPrefix(made.Code, "acme."+made.ID+".") {
		t.Errorf("command %q with code %q, want %q", made.Command, made.Code, want)
	}
	path := "/v1/bridges/" + made.ID
	get := func() (b bridgeShown) { t.Helper(); f.call("GET", path, f.key, nil).want(200).decode(&b); return b }
	now := f.clock.Now()
	want := bridgeShown{ID: made.ID, Name: "service desk", State: "invited", CreatedAt: now, CodeExpiresAt: now.Add(10 * time.Minute), Sessions: []sessionShown{}}
	if d := cmp.Diff(want, get()); d != "" {
		t.Errorf("invited (-want +got):\n%s", d)
	}

	f.clock.advance(time.Minute)
	e, key := f.machine(strings.ToUpper(made.Code))
	var enrolled relay.Enrolled
	f.call("POST", relay.EnrolPath, "", e).want(200).decode(&enrolled)
	if len(enrolled.Offline) != 32 {
		t.Errorf("the bridge is told the offline key %X", enrolled.Offline)
	}
	enrolled.Offline = nil
	if d := cmp.Diff(relay.Enrolled{Tenant: "acme", Bridge: made.ID, Name: "service desk", Organisation: "The acme company", Relay: relayURL}, enrolled); d != "" {
		t.Errorf("the bridge is told (-want +got):\n%s", d)
	}
	want.State, want.Program, want.System, want.Host, want.EnrolledAt, want.CodeExpiresAt = "enrolled", "1.0.0", "linux/amd64", "desk-7", f.clock.Now(), time.Time{}
	if d := cmp.Diff(want, get()); d != "" {
		t.Errorf("enrolled (-want +got):\n%s", d)
	}
	if p := f.call("POST", relay.EnrolPath, "", e).want(401).problem(); p.Detail != "the code is wrong, used or expired; ask for a new one" {
		t.Errorf("the code once more: %q", p.Detail)
	}

	// It connects and reports what is in its readers.
	f.must(f.connect(made.ID, key, 1, "c1", relay.Service))
	f.must(f.connect(made.ID, key, 2, "c2", relay.Terminal))
	piv := card.Identity{Family: "PIV", ID: "A1B2", Serial: "4711", PIN: card.RetryCounter{Known: true, TriesLeft: 0, Most: 3}}
	_, err := f.tenants().ChangeBridge(t.Context(), "acme", made.ID, func(b *tenant.Bridge) error {
		p := b.Sessions[relay.Service]
		p.Readers = []tenant.Reader{
			{Name: "empty"},
			{Name: "silent", Insertion: "i1", Silent: true},
			{Name: "new", Insertion: "i2", ATR: []byte{0x3b, 0x80}, Identify: card.Identify(false)},
			{Name: "known", Insertion: "i3", ATR: []byte{0x3b, 0xf8}, Credential: "piv-a1b2", Identify: card.State{Family: "PIV", Leg: card.Done, Identity: piv}},
			{Name: "nameless", Insertion: "i4", Identify: card.State{Family: "PIV", Leg: card.Failed, Failure: card.Failure{Reason: card.NoCardID}}},
		}
		b.Sessions[relay.Service] = p
		return nil
	})
	f.must(err)
	got := get()
	if len(got.Sessions) != 2 || !got.Online || got.Sessions[0].Session != "service" || got.Sessions[1].Session != "terminal" || !got.Sessions[0].ConnectedAt.Equal(f.clock.Now()) {
		t.Fatalf("sessions: %+v, online %v", got.Sessions, got.Online)
	}
	shown := map[string]map[string]any{}
	for _, r := range got.Sessions[0].Readers {
		shown[r.Name] = r.Card
	}
	if d := cmp.Diff(map[string]map[string]any{
		"empty":    nil,
		"silent":   {"silent": true},
		"new":      {"silent": false, "atr": "3b80"},
		"known":    {"silent": false, "atr": "3bf8", "family": "PIV", "id": "A1B2", "serial": "4711", "pinTriesLeft": 0.0, "credential": "piv-a1b2"},
		"nameless": {"silent": false, "family": "PIV", "problem": card.Failure{Reason: card.NoCardID}.Sentence()},
	}, shown); d != "" {
		t.Errorf("cards (-want +got):\n%s", d)
	}
	var list struct{ Items []bridgeShown }
	f.call("GET", "/v1/bridges", f.key, nil).want(200).decode(&list)
	if d := cmp.Diff([]bridgeShown{got}, list.Items); d != "" {
		t.Errorf("listed (-want +got):\n%s", d)
	}
	f.clock.advance(12 * time.Minute)
	if got := get(); got.Online || got.Sessions[0].Online {
		t.Error("online, though it was not heard of for 12 minutes")
	}

	// A machine that was installed anew takes its place.
	again := f.call("POST", path+"/code", f.key, nil).want(200)
	canary.secret("code", again.text("code"))
	if again.header.Get("Cache-Control") != "no-store" || again.text("command") != "bridge enroll "+again.text("code")+" "+f.url {
		t.Errorf("a new code: %s", again.body)
	}
	if got := get(); got.State != "enrolled" || !got.CodeExpiresAt.Equal(f.clock.Now().Add(10*time.Minute)) {
		t.Errorf("with a new code: %+v", got)
	}
	e, newKey := f.machine(again.text("code"))
	f.call("POST", relay.EnrolPath, "", e).want(200)
	goodbye := func(connection, reason string) []string {
		return []string{"post " + connection + ` {"version":1,"goodbye":{"code":"revoked","reason":"` + reason + `"}}`, "close " + connection}
	}
	const anew = "the bridge was enrolled anew, with other keys"
	if d := cmp.Diff(append(goodbye("c1", anew), goodbye("c2", anew)...), f.sockets.take()); d != "" {
		t.Errorf("the former connections (-want +got):\n%s", d)
	}
	f.must(f.connect(made.ID, newKey, 1, "c3", relay.Service))

	// Revoked is disconnected at once.
	f.call("DELETE", path, f.key, nil).want(204)
	if d := cmp.Diff(goodbye("c3", "the bridge was revoked by an administrator"), f.sockets.take()); d != "" {
		t.Errorf("its connection (-want +got):\n%s", d)
	}
	if err := f.connect(made.ID, newKey, 2, "c4", relay.Service); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("it connects again: %v", err)
	}
	if got := get(); got.State != "revoked" || got.Online || len(got.Sessions) != 0 || !got.RevokedAt.Equal(f.clock.Now()) {
		t.Errorf("revoked: %+v", got)
	}
	f.call("DELETE", path, f.key, nil).want(204)
	if got := f.sockets.take(); got != nil {
		t.Errorf("revoked again: %q", got)
	}
	f.call("POST", path+"/code", f.key, nil).want(409)

	var records struct{ Items []struct{ Action string } }
	f.call("GET", "/v1/audit?subject=bridge/"+made.ID, f.key, nil).want(200).decode(&records)
	var actions []string
	for _, r := range records.Items {
		actions = append(actions, r.Action)
	}
	if d := cmp.Diff([]string{"bridge.revoked", "bridge.enrolled", "bridge.invited", "bridge.enrolled", "bridge.invited"}, actions); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
	f.notStored(made.Code, again.text("code"))
}

// notStored looks for codes in the table's file.
func (f *fixture) notStored(codes ...string) {
	f.Helper()
	file, err := os.ReadFile(f.file)
	f.must(err)
	if !bytes.Contains(file, []byte("bridge.enrolled")) {
		f.Fatal("the file does not tell of bridges: the test sees nothing")
	}
	for _, code := range codes {
		if secret := strings.Split(code, ".")[2]; contains(file, secret, 0) {
			f.Errorf("the code is in the table")
		}
	}
}

// A connection that cannot be reached does not keep its bridge from being revoked.
func TestRevokeUnreachable(t *testing.T) {
	for name, c := range map[string]struct {
		fail error
		want int // how often it is tried to reach it
		says bool
	}{
		"gone":  {gateway.ErrGone, 1, false},
		"fault": {errors.New("injected fault"), 2, true},
	} {
		f := newFixture(t)
		id, code := f.invite(f.key)
		e, key := f.machine(code)
		f.call("POST", relay.EnrolPath, "", e).want(200)
		f.must(f.connect(id, key, 1, "the-connection-of-"+name, relay.Service))
		f.sockets.failing(c.fail)
		f.call("DELETE", "/v1/bridges/"+id, f.key, nil).want(204)
		if got := f.sockets.take(); len(got) != c.want {
			t.Errorf("%s: it was tried %q", name, got)
		}
		if said := strings.Contains(canary.log.String(), "the-connection-of-"+name); said != c.says {
			t.Errorf("%s: the log tells %v, want %v", name, said, c.says)
		}
		if _, _, _, err := f.tenants().Connection(t.Context(), "the-connection-of-"+name); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("%s: the connection is still known: %v", name, err)
		}
	}
}

// TestEnrolRefused: without a right code nobody learns anything.
func TestEnrolRefused(t *testing.T) {
	f := newFixture(t)
	theirs := f.tenant("other")
	id, code := f.invite(f.key)
	_, expired := f.invite(f.key)
	other, _ := f.invite(theirs)
	parts := strings.Split(code, ".")
	f.clock.advance(9 * time.Minute)
	_, code = f.invite(f.key)
	f.clock.advance(time.Minute)
	want := f.call("POST", relay.EnrolPath, "", f.enrolment("garbage")).want(401)
	for name, code := range map[string]string{
		"expired":           expired,
		"wrong":             "acme." + id + ".0123456789",
		"another tenant's":  "other." + other + "." + parts[2],
		"an unknown tenant": "nowhere." + id + "." + parts[2],
		"an unknown bridge": "acme.00000000." + parts[2],
	} {
		if got := f.call("POST", relay.EnrolPath, "", f.enrolment(code)); got.comparable() != want.comparable() {
			t.Errorf("%s: got %s, want %s", name, got.comparable(), want.comparable())
		}
	}

	for name, c := range map[string]struct {
		change func(object)
		fields string
	}{
		"no code":        {func(o object) { delete(o, "code") }, "body"},
		"one thing more": {func(o object) { o["role"] = "admin" }, "body.role"},
		"short keys":     {func(o object) { o["identity"], o["sealing"] = "AAAA", "AAAA" }, "body.identity body.sealing"},
		"a weak key":     {func(o object) { o["sealing"] = make([]byte, 32) }, "body.sealing"},
		"a long host":    {func(o object) { o["host"] = strings.Repeat("h", 101) }, "body.host"},
	} {
		e := f.enrolment(code)
		body := object{"code": code, "identity": e.Identity, "sealing": e.Sealing, "program": "1", "system": "s", "host": "h"}
		c.change(body)
		var got []string
		for _, e := range f.call("POST", relay.EnrolPath, "", body).want(422).problem().Errors {
			got = append(got, e.Location)
		}
		if strings.Join(got, " ") != c.fields {
			t.Errorf("%s: it objects to %q, want %q", name, got, c.fields)
		}
	}
	f.call("GET", relay.EnrolPath, "", nil).want(405)

	// A key makes no difference, and an Idempotency-Key none either: no answer is kept.
	f.call("POST", relay.EnrolPath, "pw_acme_wrong", f.enrolment(code), "Idempotency-Key", "1").want(200)
	f.call("POST", relay.EnrolPath, "", f.enrolment(code), "Idempotency-Key", "1").want(401)
}

func TestEnrolSuspended(t *testing.T) {
	f := newFixture(t)
	_, code := f.invite(f.key)
	f.call("POST", "/v1/tenants/acme/suspend", f.platform, nil).want(200)
	if p := f.call("POST", relay.EnrolPath, "", f.enrolment(code)).want(403).problem(); !strings.Contains(p.Detail, "suspended") {
		t.Errorf("got %q", p.Detail)
	}
}

// TestEnrolRate: those without a key share one rate, and keys keep theirs.
func TestEnrolRate(t *testing.T) {
	f := newFixture(t, func(p *wiring.Parts) { p.Rate = rest.Rate{PerSecond: 1, Burst: 5} })
	for range 5 {
		f.call("POST", relay.EnrolPath, "", f.enrolment("x")).want(401)
	}
	if p := f.call("POST", relay.EnrolPath, "", f.enrolment("x")).want(429).problem(); p.Errors[0].Code != "rateLimited" {
		t.Errorf("got %+v", p)
	}
	f.call("GET", "/v1/caller", f.key, nil).want(200)
	f.clock.advance(time.Second)
	f.call("POST", relay.EnrolPath, "", f.enrolment("x")).want(401)
}

func TestListBridges(t *testing.T) {
	f := newFixture(t)
	theirs := f.tenant("other")
	f.invite(theirs)
	want := map[string]bool{}
	for range 7 {
		id, _ := f.invite(f.key)
		want[id] = true
	}
	got := map[string]bool{}
	for cursor, pages := "", 0; pages == 0 || cursor != ""; pages++ {
		var list struct {
			Items      []bridgeShown
			NextCursor string
		}
		f.call("GET", "/v1/bridges?limit=3&cursor="+cursor, f.key, nil).want(200).decode(&list)
		if len(list.Items) > 3 || pages > 5 {
			t.Fatalf("page %d has %d bridges", pages, len(list.Items))
		}
		for _, b := range list.Items {
			if got[b.ID] {
				t.Errorf("%s is listed twice", b.ID)
			}
			got[b.ID] = true
		}
		cursor = list.NextCursor
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("listed (-want +got):\n%s", d)
	}
	for _, name := range []string{"", " x", "a\nb", strings.Repeat("n", 81)} {
		if p := f.call("POST", "/v1/bridges", f.key, object{"name": name}).want(422).problem(); p.Errors[0].Location != "body.name" {
			t.Errorf("name %q: %+v", name, p.Errors)
		}
	}
}

// An invitation that is repeated with its Idempotency-Key makes no second bridge, and its
// answer is not kept in the clear.
func TestInviteOnce(t *testing.T) {
	f := newFixture(t)
	first := f.call("POST", "/v1/bridges", f.key, object{"name": "desk"}, "Idempotency-Key", "one").want(201)
	again := f.call("POST", "/v1/bridges", f.key, object{"name": "desk"}, "Idempotency-Key", "one").want(201)
	canary.secret("code", first.text("code"))
	if first.text("code") != again.text("code") {
		t.Error("there are two codes")
	}
	e, _ := f.machine(first.text("code"))
	f.call("POST", relay.EnrolPath, "", e).want(200)
	f.notStored(first.text("code"))
}

// A failure of the table leaves the code usable, or the bridge enrolled; it is never told as
// a wrong code.
func TestEnrolFault(t *testing.T) {
	f := newFixture(t)
	_, code := f.invite(f.key)
	f.table.breakWith(func([]table.Op) error { return fmt.Errorf("injected fault: %w", problem.ErrUnavailable) })
	f.call("POST", relay.EnrolPath, "", f.enrolment(code)).want(503)
	f.table.breakWith(nil)
	f.call("POST", relay.EnrolPath, "", f.enrolment(code)).want(200)
}
