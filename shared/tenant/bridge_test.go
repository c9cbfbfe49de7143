package tenant_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

const relayURL = "wss://relay.example.org"

var admin = audit.Actor{Kind: audit.API, ID: "01JADMIN", Name: "admin"}

// machine is what a bridge runs on.
type machine struct {
	*testing.T
	key     ed25519.PrivateKey
	sealing []byte
	tokens  uint64
}

func (o *office) machine() *machine {
	o.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		o.Fatal(err)
	}
	sealing, err := relay.NewSealingKey(rand.Reader)
	if err != nil {
		o.Fatal(err)
	}
	return &machine{T: o.T, key: key, sealing: sealing.PublicKey().Bytes()}
}

func (m *machine) identity() []byte { return m.key.Public().(ed25519.PublicKey) }

func (m *machine) enrolment(code string) relay.Enrolment {
	return relay.Enrolment{Code: relay.Code{Text: secret.New(code)}, Identity: m.identity(), Sealing: m.sealing,
		Program: "1.0.0", System: "linux/amd64", Host: "desk-7"}
}

// token makes a token of the machine, with a higher id than those before.
func (m *machine) token(t table.TenantID, bridge string, now time.Time) secret.Text {
	m.Helper()
	m.tokens++
	return m.sign(relay.Claims{Tenant: string(t), Bridge: bridge, Relay: relayURL, At: now,
		ID: ulid.MustNew(ulid.Timestamp(start)+m.tokens, bytes.NewReader(make([]byte, 10))).String()})
}

func (m *machine) sign(c relay.Claims) secret.Text {
	m.Helper()
	token, err := relay.NewToken(m.key, c)
	if err != nil {
		m.Fatal(err)
	}
	return token
}

// invite makes a bridge and returns it with its code.
func (o *office) invite(core tenant.Core) (tenant.Bridge, string) {
	o.Helper()
	b, code, err := o.Invite(o.Context(), core, admin, "service desk")
	if err != nil {
		o.Fatal(err)
	}
	return b, code.Reveal()
}

// enrolled makes a machine a bridge.
func (o *office) enrolled(core tenant.Core) (tenant.Bridge, *machine) {
	o.Helper()
	_, code := o.invite(core)
	m := o.machine()
	b, _, _, err := o.Enrol(o.Context(), m.enrolment(code))
	if err != nil {
		o.Fatal(err)
	}
	return b, m
}

// connected lets a connection of the machine in and makes it a session.
func (o *office) connected(m *machine, t table.TenantID, bridge, connection string, session relay.Session) tenant.Bridge {
	o.Helper()
	if _, _, err := o.Connect(o.Context(), m.token(t, bridge, o.now), relayURL, connection); err != nil {
		o.Fatal(err)
	}
	_, b, _, err := o.Greet(o.Context(), connection, relay.Hello{Program: "1.0.1", System: "linux/amd64", Session: session})
	if err != nil {
		o.Fatal(err)
	}
	return b
}

// bridge reads a bridge.
func (o *office) bridge(t table.TenantID, id string) tenant.Bridge {
	o.Helper()
	b, err := o.Bridge(o.Context(), t, id)
	if err != nil {
		o.Fatal(err)
	}
	return b
}

// known tells what a connection is known as.
func (o *office) known(connection string) string {
	o.Helper()
	t, bridge, session, err := o.Connection(o.Context(), connection)
	if errors.Is(err, problem.ErrNotFound) {
		return "unknown"
	} else if err != nil {
		o.Fatal(err)
	}
	return fmt.Sprintf("%s %s %s", t, bridge, session)
}

var ignoreInvitation = cmpopts.IgnoreUnexported(tenant.Bridge{})

const errCode = "not authenticated: the code is wrong, used or expired; ask for a new one"

func TestEnrol(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	invited, code := o.invite(core)
	if !regexp.MustCompile(`^acme\.[0-9a-hjkmnp-tv-z]{8}\.[0-9a-hjkmnp-tv-z]{10}$`).MatchString(code) || strings.Split(code, ".")[1] != invited.ID {
		t.Errorf("the code is %q for bridge %s", code, invited.ID)
	}
	want := tenant.Bridge{ID: invited.ID, Name: "service desk", CreatedAt: start, Version: 1}
	if d := cmp.Diff(want, o.bridge("acme", invited.ID), ignoreInvitation, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("invited (-want +got):\n%s", d)
	}
	if invited.Enrolled() || invited.CodeUntil(start) != start.Add(10*time.Minute) {
		t.Errorf("invited: enrolled %v, code until %s", invited.Enrolled(), invited.CodeUntil(start))
	}

	o.now = start.Add(9 * time.Minute)
	m := o.machine()
	b, of, former, err := o.Enrol(t.Context(), m.enrolment(code))
	if err != nil || of.Tenant.ID != "acme" || former != nil {
		t.Fatalf("enrolled at %q, former %q, %v", of.Tenant.ID, former, err)
	}
	want.Identity, want.Sealing = m.identity(), m.sealing
	want.Program, want.System, want.Host = "1.0.0", "linux/amd64", "desk-7"
	want.EnrolledAt, want.Version = o.now, 3 // one for the try
	if d := cmp.Diff(want, b, ignoreInvitation, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("enrolled (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want, o.bridge("acme", b.ID), ignoreInvitation, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("stored (-want +got):\n%s", d)
	}
	if !b.Enrolled() || !b.CodeUntil(o.now).IsZero() {
		t.Errorf("enrolled: %v, code until %s", b.Enrolled(), b.CodeUntil(o.now))
	}
	records, _, err := audit.Of(t.Context(), o.Table, "acme", "bridge/"+b.ID, "", 10)
	if err != nil || len(records) != 2 {
		t.Fatalf("audit: %v, %v, want two records", records, err)
	}
	for i, want := range []struct {
		action string
		actor  audit.Actor
	}{{"bridge.enrolled", audit.Actor{Kind: audit.System, ID: "bridge/" + b.ID, Name: "service desk"}}, {"bridge.invited", admin}} {
		if r := records[i]; r.Action != want.action || r.Actor != want.actor || r.Outcome != audit.Done {
			t.Errorf("audit %d: %+v, want %s by %v", i, r, want.action, want.actor)
		}
	}
}

func TestCodesAsTheyAreTyped(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("o1l-i0")
	for name, typed := range map[string]func(string) string{
		"as shown":       func(s string) string { return s },
		"in upper case":  strings.ToUpper,
		"with spaces":    func(s string) string { return "  " + strings.ReplaceAll(s, ".", " .\t") + "\n" },
		"in groups":      func(s string) string { return s[:len(s)-5] + " " + s[len(s)-5:] },
		"with a hyphen":  func(s string) string { return s[:len(s)-5] + "-" + s[len(s)-5:] },
		"O for 0":        func(s string) string { return "o1l-i0" + strings.ReplaceAll(s[6:], "0", "O") },
		"l for 1":        func(s string) string { return "o1l-i0" + strings.ReplaceAll(s[6:], "1", "l") },
		"I for 1, loud":  func(s string) string { return "O1L-I0" + strings.ReplaceAll(strings.ToUpper(s[6:]), "1", "I") },
		"a no-break gap": func(s string) string { return s[:len(s)-2] + "\u00a0" + s[len(s)-2:] },
	} {
		// Until a code has the digits that are confused.
		var code string
		for !strings.Contains(code, "0") || !strings.Contains(code, "1") {
			_, made := o.invite(core)
			code = made[6:]
		}
		if _, _, _, err := o.Enrol(t.Context(), o.machine().enrolment(typed("o1l-i0"+code))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// All codes that do not enrol get one answer, and cost a query, a read and a write each.
func TestCodesThatDoNotEnrol(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	other, _ := o.open("globex")
	m := o.machine()

	_, expired := o.invite(core)
	o.now = start.Add(10 * time.Minute)
	_, used := o.invite(core)
	if _, _, _, err := o.Enrol(t.Context(), m.enrolment(used)); err != nil {
		t.Fatal(err)
	}
	gone, revoked := o.invite(core)
	if _, err := o.Revoke(t.Context(), core, admin, gone.ID); err != nil {
		t.Fatal(err)
	}
	again, replaced := o.invite(core)
	if _, _, err := o.InviteAgain(t.Context(), core, admin, again.ID); err != nil {
		t.Fatal(err)
	}
	b, open := o.invite(core)
	_, theirs := o.invite(other)
	part := func(code string, n int) string { return strings.Split(code, ".")[n] }

	for _, c := range []struct {
		name, code string
		malformed  bool
	}{
		{"wrong", "acme." + b.ID + ".0123456789", false},
		{"used", used, false},
		{"revoked", revoked, false},
		{"replaced", replaced, false},
		{"expired", expired, false},
		{"an unknown bridge", "acme.00000000." + part(open, 2), false},
		{"an unknown tenant", "initech." + b.ID + "." + part(open, 2), false},
		{"another tenant", "globex." + b.ID + "." + part(open, 2), false},
		{"another tenant's code", "acme." + b.ID + "." + part(theirs, 2), false},
		{"empty", "", true},
		{"the secret alone", part(open, 2), true},
		{"cut short", open[:len(open)-1], true},
		{"a character more", open + "0", true},
		{"a part more", open + ".0", true},
		{"the platform as tenant", "platform." + b.ID + "." + part(open, 2), true},
		{"a path as tenant", "acme/bridge." + b.ID + "." + part(open, 2), true},
		{"a long bridge", "acme." + strings.Repeat("0", 5000) + "." + part(open, 2), true},
		{"spaces only", strings.Repeat(" ", 100_000), true},
		{"not text", "acme." + b.ID + ".\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", true},
	} {
		o.calls.Take()
		_, _, _, err := o.Enrol(t.Context(), m.enrolment(c.code))
		if err == nil || err.Error() != errCode || !errors.Is(err, problem.ErrUnauthenticated) {
			t.Errorf("%s: %v, want %s", c.name, err, errCode)
		}
		want := tabletest.Calls{Queries: 1, Gets: 1, Writes: 1}
		if c.malformed {
			want = tabletest.Calls{}
		}
		if got := o.calls.Take(); got.Queries != want.Queries || got.Gets != want.Gets || got.Writes != want.Writes {
			t.Errorf("%s: %+v, want %+v", c.name, got, want)
		}
	}
	if _, err := o.Table.Get(t.Context(), table.BridgeKey("initech", b.ID)); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("a guess has made something: %v", err)
	}
	if _, _, _, err := o.Enrol(t.Context(), m.enrolment(open)); err != nil {
		t.Errorf("the right code after fewer than 5 wrong ones: %v", err)
	}
}

func TestTries(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	for wrong, good := range map[int]bool{4: true, 5: false} {
		b, code := o.invite(core)
		for range wrong {
			if _, _, _, err := o.Enrol(t.Context(), o.machine().enrolment("acme."+b.ID+".0123456789")); err == nil {
				t.Fatal("a wrong code enrols")
			}
		}
		if _, _, _, err := o.Enrol(t.Context(), o.machine().enrolment(code)); (err == nil) != good {
			t.Errorf("the right code after %d wrong ones: %v", wrong, err)
		}
		if good {
			continue
		}
		if got := o.bridge("acme", b.ID); !got.CodeUntil(o.now).IsZero() {
			t.Errorf("a code without tries is open until %s", got.CodeUntil(o.now))
		}
		_, again, err := o.InviteAgain(t.Context(), core, admin, b.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := o.Enrol(t.Context(), o.machine().enrolment(again.Reveal())); err != nil {
			t.Errorf("a new code: %v", err)
		}
	}
}

// Every code that is compared has cost a try before: of 50 given at once, 5 do.
func TestParallelGuesses(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, code := o.invite(core)
	var wg sync.WaitGroup
	for i := range 50 {
		m := o.machine()
		wg.Go(func() {
			_, _, _, err := o.Enrol(t.Context(), m.enrolment(fmt.Sprintf("acme.%s.01234567%02d", b.ID, i)))
			if err == nil || err.Error() != errCode {
				t.Errorf("guess %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if tries := o.bridge("acme", b.ID).Version - 1; tries != 5 {
		t.Errorf("%d tries were taken, want 5", tries)
	}
	if _, _, _, err := o.Enrol(t.Context(), o.machine().enrolment(code)); err == nil {
		t.Error("the right code enrols after 50 wrong ones")
	}
}

// held is a table on which one of the Writes of one caller, the nth, waits.
type held struct {
	table.Table
	nth     int
	arrived chan struct{}
	release chan struct{}
}

type heldKey struct{}

func (h *held) Write(ctx context.Context, ops ...table.Op) error {
	if ctx.Value(heldKey{}) != nil {
		if h.nth--; h.nth == 0 {
			close(h.arrived)
			<-h.release
		}
	}
	return h.Table.Write(ctx, ops...)
}

// enrolLate enrols while something else happens just before the nth Write of it.
func (o *office) enrolLate(m *machine, code string, nth int, meanwhile func()) error {
	h := &held{o.Table, nth, make(chan struct{}), make(chan struct{})}
	o.Table = h
	defer func() { o.Table = h.Table }()
	done := make(chan error)
	go func() {
		_, _, _, err := o.Enrol(context.WithValue(o.Context(), heldKey{}, true), m.enrolment(code))
		done <- err
	}()
	<-h.arrived
	meanwhile()
	close(h.release)
	return <-done
}

// A guess that has read the invitation while there were tries, and comes late, is not
// compared any more: not even the right one.
func TestLateGuess(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, code := o.invite(core)
	m := o.machine()
	err := o.enrolLate(m, code, 1, func() {
		for range 5 {
			if _, _, _, err := o.Enrol(t.Context(), m.enrolment("acme."+b.ID+".0123456789")); err == nil {
				t.Error("a wrong code enrols")
			}
		}
	})
	if err == nil || err.Error() != errCode {
		t.Errorf("the sixth guess: %v, want %s", err, errCode)
	}
}

// A code that was found right is worth nothing any more when it was used, replaced or revoked
// before the enrolment is written.
func TestLateEnrolment(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	for name, meanwhile := range map[string]func(b tenant.Bridge, code string) error{
		"used": func(_ tenant.Bridge, code string) error {
			_, _, _, err := o.Enrol(t.Context(), o.machine().enrolment(code))
			return err
		},
		"replaced": func(b tenant.Bridge, _ string) error {
			_, _, err := o.InviteAgain(t.Context(), core, admin, b.ID)
			return err
		},
		"revoked": func(b tenant.Bridge, _ string) error { _, err := o.Revoke(t.Context(), core, admin, b.ID); return err },
	} {
		b, code := o.invite(core)
		m := o.machine()
		err := o.enrolLate(m, code, 2, func() {
			if err := meanwhile(b, code); err != nil {
				t.Error(err)
			}
		})
		if err == nil || err.Error() != errCode {
			t.Errorf("%s: %v, want %s", name, err, errCode)
		}
		if bytes.Equal(o.bridge("acme", b.ID).Identity, m.identity()) {
			t.Errorf("%s: it is the bridge all the same", name)
		}
	}
}

func TestOneCodeOneBridge(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	for range 10 {
		b, code := o.invite(core)
		var mu sync.Mutex
		var won [][]byte
		var wg sync.WaitGroup
		for range 4 {
			m := o.machine()
			wg.Go(func() {
				_, _, _, err := o.Enrol(t.Context(), m.enrolment(code))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won = append(won, m.identity())
				} else if err.Error() != errCode {
					t.Errorf("got %v, want %s", err, errCode)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 || !bytes.Equal(won[0], o.bridge("acme", b.ID).Identity) {
			t.Fatalf("%d have won, and the bridge is one of them: %v", len(won), len(won) > 0 && bytes.Equal(won[0], o.bridge("acme", b.ID).Identity))
		}
		if n := len(o.actions("acme", "bridge/"+b.ID)); n != 2 {
			t.Errorf("%d records, want an invitation and an enrolment", n)
		}
	}
}

func TestKeysThatCannotBe(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, code := o.invite(core)
	unhex := func(s string) []byte {
		raw, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for name, c := range map[string]struct {
		change func(*relay.Enrolment)
		want   []string
	}{
		"no identity":    {func(e *relay.Enrolment) { e.Identity = nil }, []string{"identity"}},
		"short identity": {func(e *relay.Enrolment) { e.Identity = e.Identity[:31] }, []string{"identity"}},
		"long identity":  {func(e *relay.Enrolment) { e.Identity = append(slices.Clone(e.Identity), 0) }, []string{"identity"}},
		"zero identity":  {func(e *relay.Enrolment) { e.Identity = make([]byte, 32) }, []string{"identity"}},
		"no sealing key": {func(e *relay.Enrolment) { e.Sealing = nil }, []string{"sealing"}},
		"short sealing":  {func(e *relay.Enrolment) { e.Sealing = e.Sealing[:31] }, []string{"sealing"}},
		// The points of low order, as in RFC 7748's security considerations.
		"order 4": {func(e *relay.Enrolment) { e.Sealing = make([]byte, 32) }, []string{"sealing"}},
		"order 1": {func(e *relay.Enrolment) { e.Sealing = append([]byte{1}, make([]byte, 31)...) }, []string{"sealing"}},
		"order 8": {func(e *relay.Enrolment) {
			e.Sealing = unhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")
		}, []string{"sealing"}},
		"order 8 too": {func(e *relay.Enrolment) {
			e.Sealing = unhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157")
		}, []string{"sealing"}},
		"p - 1":     {func(e *relay.Enrolment) { e.Sealing = unhex("ec" + strings.Repeat("ff", 30) + "7f") }, []string{"sealing"}},
		"long host": {func(e *relay.Enrolment) { e.Host = strings.Repeat("h", 101) }, []string{"host"}},
		"all of it": {func(e *relay.Enrolment) {
			*e = relay.Enrolment{Code: e.Code, Program: strings.Repeat("p", 41), System: "lin\nux", Host: "\xff"}
		}, []string{"identity", "sealing", "program", "system", "host"}},
	} {
		e := o.machine().enrolment(code)
		c.change(&e)
		if _, _, _, err := o.Enrol(t.Context(), e); !cmp.Equal(c.want, fields(err)) {
			t.Errorf("%s: %v, want it to object to %q", name, err, c.want)
		}
	}
	if got := o.bridge("acme", b.ID); got.Version != 1 {
		t.Errorf("it has cost %d tries", got.Version-1)
	}
	if _, _, _, err := o.Enrol(t.Context(), o.machine().enrolment(code)); err != nil {
		t.Errorf("the code with good keys: %v", err)
	}
}

func TestInviteNames(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	for name, good := range map[string]bool{
		"": false, " desk": false, "desk\n1": false, "\xff": false, strings.Repeat("ü", 81): false, strings.Repeat("ü", 80): true, "Schalter 1": true,
	} {
		_, code, err := o.Invite(t.Context(), core, admin, name)
		if good != (err == nil) || !good && (len(fields(err)) == 0 || fields(err)[0] != "name" || !code.Empty()) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestInviteAgain(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, before := o.enrolled(core)
	o.connected(before, "acme", b.ID, "old-service", relay.Service)
	o.connected(before, "acme", b.ID, "old-terminal", relay.Terminal)
	if _, _, err := o.Connect(t.Context(), before.token("acme", b.ID, o.now), relayURL, "old-silent"); err != nil {
		t.Fatal(err)
	}
	_, code, err := o.InviteAgain(t.Context(), core, admin, b.ID)
	if err != nil {
		t.Fatal(err)
	}
	o.connected(before, "acme", b.ID, "old-service-2", relay.Service) // still good

	after := o.machine()
	_, _, former, err := o.Enrol(t.Context(), after.enrolment(code.Reveal()))
	if d := cmp.Diff([]string{"old-service-2", "old-terminal"}, former); d != "" || err != nil {
		t.Errorf("%v: connections to close (-want +got):\n%s", err, d)
	}
	for _, connection := range []string{"old-service", "old-service-2", "old-terminal"} {
		if got := o.known(connection); got != "unknown" {
			t.Errorf("%s is %s", connection, got)
		}
	}
	// One that has not said Hello yet was let in by the old key.
	if _, _, _, err := o.Greet(t.Context(), "old-silent", relay.Hello{Session: relay.Service}); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("Hello of the old machine: %v", err)
	}
	if _, _, err := o.Connect(t.Context(), before.token("acme", b.ID, o.now), relayURL, "c"); !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("the old key: %v", err)
	}
	if len(o.bridge("acme", b.ID).Sessions) != 0 {
		t.Error("the old sessions are still there")
	}
	o.connected(after, "acme", b.ID, "new", relay.Service) // with lower ids than the old machine's
	if d := cmp.Diff([]string{"bridge.enrolled", "bridge.enrolled", "bridge.invited", "bridge.invited"}, slices.Sorted(slices.Values(o.actions("acme", "bridge/"+b.ID)))); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}

	if _, _, err := o.InviteAgain(t.Context(), core, admin, "00000000"); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("an unknown bridge: %v", err)
	}
	if _, err := o.Revoke(t.Context(), core, admin, b.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := o.InviteAgain(t.Context(), core, admin, b.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("a revoked bridge: %v", err)
	}
}

func TestSuspendedTenantsBridges(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, m := o.enrolled(core)
	if _, _, err := o.Connect(t.Context(), m.token("acme", b.ID, o.now), relayURL, "silent"); err != nil {
		t.Fatal(err)
	}
	invited, code := o.invite(core)
	if _, err := o.Suspend(t.Context(), platform, "acme", true); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := o.Enrol(t.Context(), o.machine().enrolment(code)); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("enrol: %v", err)
	}
	if _, _, _, err := o.Enrol(t.Context(), o.machine().enrolment("acme."+invited.ID+".0123456789")); err == nil || err.Error() != errCode {
		t.Errorf("enrol with a wrong code: %v", err)
	}
	if _, _, err := o.Connect(t.Context(), m.token("acme", b.ID, o.now), relayURL, "c"); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("connect: %v", err)
	}
	if _, _, err := o.Connect(t.Context(), o.machine().token("acme", b.ID, o.now), relayURL, "c"); !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("connect with a wrong key: %v", err)
	}
	if _, _, _, err := o.Greet(t.Context(), "silent", relay.Hello{Session: relay.Service}); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("Hello: %v", err)
	}
	if _, err := o.Suspend(t.Context(), platform, "acme", false); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := o.Enrol(t.Context(), o.machine().enrolment(code)); err != nil {
		t.Errorf("enrol once resumed: %v", err)
	}
}

func TestConnect(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	o.open("globex")
	b, m := o.enrolled(core)
	invited, _ := o.invite(core)
	revoked, gone := o.enrolled(core)
	if _, err := o.Revoke(t.Context(), core, admin, revoked.ID); err != nil {
		t.Fatal(err)
	}
	good := relay.Claims{Tenant: "acme", Bridge: b.ID, Relay: relayURL, ID: "01KAK5AZ0000000000000000A0", At: o.now}
	with := func(change func(*relay.Claims)) secret.Text {
		c := good
		change(&c)
		return m.sign(c)
	}
	const alike = "not authenticated: the bridge's token is not valid"
	for _, c := range []struct {
		name  string
		token secret.Text
		is    error
		says  string
	}{
		{"no token", secret.Text{}, problem.ErrUnauthenticated, alike},
		{"another key", o.machine().sign(good), problem.ErrUnauthenticated, alike},
		{"an unknown tenant", with(func(c *relay.Claims) { c.Tenant = "initech" }), problem.ErrUnauthenticated, alike},
		{"the platform", with(func(c *relay.Claims) { c.Tenant = "platform" }), problem.ErrUnauthenticated, alike},
		{"another tenant", with(func(c *relay.Claims) { c.Tenant = "globex" }), problem.ErrUnauthenticated, alike},
		{"an unknown bridge", with(func(c *relay.Claims) { c.Bridge = "00000000" }), problem.ErrUnauthenticated, alike},
		{"no bridge's id", with(func(c *relay.Claims) { c.Bridge = "x" }), problem.ErrUnauthenticated, alike},
		{"not enrolled", with(func(c *relay.Claims) { c.Bridge = invited.ID }), problem.ErrUnauthenticated, alike},
		{"revoked, another key", m.token("acme", revoked.ID, o.now), problem.ErrUnauthenticated, alike},
		{"another relay", with(func(c *relay.Claims) { c.Relay = "wss://elsewhere.example" }), problem.ErrUnauthenticated, alike + ", or the bridge's clock is wrong"},
		{"too old", with(func(c *relay.Claims) { c.At = o.now.Add(-time.Hour) }), problem.ErrUnauthenticated, alike + ", or the bridge's clock is wrong"},
		{"no id", with(func(c *relay.Claims) { c.ID = "" }), problem.ErrUnauthenticated, alike},
		{"an id that is no name", with(func(c *relay.Claims) { c.ID = "a/b" }), problem.ErrUnauthenticated, alike},
		{"revoked", gone.token("acme", revoked.ID, o.now), problem.ErrForbidden, "forbidden: the bridge is revoked"},
	} {
		_, _, err := o.Connect(t.Context(), c.token, relayURL, "c")
		if !errors.Is(err, c.is) || c.says != "" && err.Error() != c.says {
			t.Errorf("%s: %v, want %v %q", c.name, err, c.is, c.says)
		}
		if got := o.known("c"); got != "unknown" {
			t.Fatalf("%s: the connection is %s", c.name, got)
		}
	}
	if got := o.bridge("acme", b.ID); got.LastToken != "" {
		t.Errorf("a refused token is kept as the last one: %q", got.LastToken)
	}

	first, second := m.token("acme", b.ID, o.now), m.token("acme", b.ID, o.now)
	for _, c := range []struct {
		name  string
		token secret.Text
		good  bool
	}{{"the second", second, true}, {"the second again", second, false}, {"the first, late", first, false}, {"a third", m.token("acme", b.ID, o.now), true}} {
		core, got, err := o.Connect(t.Context(), c.token, relayURL, "connection of "+c.name)
		if c.good != (err == nil) || c.good && (core.Tenant.ID != "acme" || got.ID != b.ID) || !c.good && !errors.Is(err, problem.ErrUnauthenticated) {
			t.Errorf("%s: %s %s, %v", c.name, core.Tenant.ID, got.ID, err)
		}
		want := "unknown"
		if c.good {
			want = "acme " + b.ID + " " // no session yet
		}
		if got := o.known("connection of " + c.name); got != want {
			t.Errorf("%s: the connection is %q, want %q", c.name, got, want)
		}
	}
	if len(o.actions("acme", "bridge/"+b.ID)) != 2 {
		t.Error("connections are audited")
	}
}

// A token opens one connection, however many try at once.
func TestConnectAtOnce(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, m := o.enrolled(core)
	token := m.token("acme", b.ID, o.now)
	var mu sync.Mutex
	let := 0
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, _, err := o.Connect(t.Context(), token, relayURL, fmt.Sprint("c", i))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				let++
			} else if !errors.Is(err, problem.ErrUnauthenticated) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if let != 1 {
		t.Errorf("%d connections, want 1", let)
	}
}

func TestSessions(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, m := o.enrolled(core)
	if b.Online(o.now) {
		t.Error("online without a connection")
	}
	o.now = start.Add(90 * time.Second)
	b = o.connected(m, "acme", b.ID, "s1", relay.Service)
	want := map[relay.Session]tenant.Presence{relay.Service: {Connection: "s1", ConnectedAt: o.now, SeenAt: start.Add(time.Minute)}}
	if d := cmp.Diff(want, b.Sessions); d != "" || b.Program != "1.0.1" || !b.Online(o.now) {
		t.Errorf("program %s, online %v, sessions (-want +got):\n%s", b.Program, b.Online(o.now), d)
	}
	o.connected(m, "acme", b.ID, "t1", relay.Terminal)
	if got := o.known("t1"); got != "acme "+b.ID+" terminal" {
		t.Errorf("t1 is %q", got)
	}
	if _, _, _, err := o.Greet(t.Context(), "t1", relay.Hello{Session: relay.Service}); !errors.Is(err, problem.ErrState) {
		t.Errorf("a second Hello of another kind: %v", err)
	}
	if _, _, _, err := o.Greet(t.Context(), "nowhere", relay.Hello{Session: relay.Service}); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("Hello of an unknown connection: %v", err)
	}

	// A report, and Hello again: it stays the same session.
	report := func(b *tenant.Bridge) error {
		p := b.Sessions[relay.Service]
		p.Sequence, p.Readers = 7, []tenant.Reader{{Name: "reader 1"}}
		b.Sessions[relay.Service] = p
		return nil
	}
	if _, err := o.ChangeBridge(t.Context(), "acme", b.ID, report); err != nil {
		t.Fatal(err)
	}
	_, b, former, err := o.Greet(t.Context(), "s1", relay.Hello{Session: relay.Service})
	if p := b.Sessions[relay.Service]; err != nil || former != "" || p.Sequence != 7 || len(p.Readers) != 1 {
		t.Errorf("Hello again: %+v, former %q, %v", p, former, err)
	}

	// A new connection takes the place of the one before.
	if _, _, err := o.Connect(t.Context(), m.token("acme", b.ID, o.now), relayURL, "s2"); err != nil {
		t.Fatal(err)
	}
	if got := o.bridge("acme", b.ID).Sessions[relay.Service].Connection; got != "s1" {
		t.Errorf("before Hello the session is %q", got)
	}
	_, b, former, err = o.Greet(t.Context(), "s2", relay.Hello{Session: relay.Service})
	if p := b.Sessions[relay.Service]; err != nil || former != "s1" || p.Connection != "s2" || p.Sequence != 0 || p.Readers != nil {
		t.Errorf("the new one: %+v, former %q, %v", p, former, err)
	}
	if got := o.known("s1"); got != "unknown" {
		t.Errorf("the one before is %q", got)
	}
	if err := o.Seen(t.Context(), "s1"); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("ping of the one before: %v", err)
	}
	if err := o.Disconnect(t.Context(), "s1"); err != nil { // it comes late
		t.Error(err)
	}
	if got := o.bridge("acme", b.ID).Sessions[relay.Service].Connection; got != "s2" {
		t.Errorf("after the one before has gone, the session is %q", got)
	}
	for range 2 {
		if err := o.Disconnect(t.Context(), "s2"); err != nil {
			t.Error(err)
		}
	}
	if got := o.bridge("acme", b.ID).Sessions; len(got) != 1 || got[relay.Terminal].Connection != "t1" || o.known("s2") != "unknown" {
		t.Errorf("after it has gone: %+v, %s", got, o.known("s2"))
	}
	// One that was let in and has gone without a word.
	if _, _, err := o.Connect(t.Context(), m.token("acme", b.ID, o.now), relayURL, "s3"); err != nil {
		t.Fatal(err)
	}
	if err := o.Disconnect(t.Context(), "s3"); err != nil || o.known("s3") != "unknown" {
		t.Errorf("%v, %s", err, o.known("s3"))
	}
	if len(o.actions("acme", "bridge/"+b.ID)) != 2 {
		t.Error("sessions are audited")
	}
}

// A connection that is closed while its Hello is answered leaves no session behind, whichever
// is first.
func TestHelloAndGoodbyeAtOnce(t *testing.T) {
	for _, helloWaits := range []bool{true, false} {
		o := newOffice(t)
		core, _ := o.open("acme")
		b, m := o.enrolled(core)
		if _, _, err := o.Connect(t.Context(), m.token("acme", b.ID, o.now), relayURL, "c"); err != nil {
			t.Fatal(err)
		}
		hello := func() {
			_, _, _, err := o.Greet(t.Context(), "c", relay.Hello{Session: relay.Service})
			if helloWaits != errors.Is(err, problem.ErrNotFound) || !helloWaits && err != nil {
				t.Errorf("hello waits %v: %v", helloWaits, err)
			}
		}
		goodbye := func() {
			if err := o.Disconnect(t.Context(), "c"); err != nil {
				t.Errorf("hello waits %v: %v", helloWaits, err)
			}
		}
		first, second := goodbye, hello
		if !helloWaits {
			first, second = hello, goodbye
		}
		o.Table = &meanwhile{o.Table, first}
		second()
		if got := o.bridge("acme", b.ID).Sessions; len(got) != 0 || o.known("c") != "unknown" {
			t.Errorf("hello waits %v: sessions %+v, the connection is %s", helloWaits, got, o.known("c"))
		}
	}
}

func TestSeen(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, m := o.enrolled(core)
	o.connected(m, "acme", b.ID, "c", relay.Service)
	o.calls.Take()
	for _, c := range []struct {
		after  time.Duration
		writes int
		seen   string
	}{
		{0, 0, "10:30"}, {59 * time.Second, 0, "10:30"}, {60 * time.Second, 1, "10:31"}, {119 * time.Second, 0, "10:31"}, {7 * time.Minute, 1, "10:37"},
	} {
		o.now = start.Add(c.after)
		if err := o.Seen(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		if got := o.calls.Take(); got.Writes != c.writes || got.Gets != 2 {
			t.Errorf("after %s: %+v, want 2 gets and %d writes", c.after, got, c.writes)
		}
		if got := o.bridge("acme", b.ID).Sessions[relay.Service].SeenAt.Format("15:04"); got != c.seen {
			t.Errorf("after %s: seen at %s, want %s", c.after, got, c.seen)
		}
		o.calls.Take()
	}
	got := o.bridge("acme", b.ID)
	for after, online := range map[time.Duration]bool{10 * time.Minute: true, 12 * time.Minute: false} {
		if got.Online(o.now.Add(after)) != online {
			t.Errorf("%s after it was heard of, online is %v", after, !online)
		}
	}
	// A connection that has not said Hello is no session.
	if _, _, err := o.Connect(t.Context(), m.token("acme", b.ID, o.now), relayURL, "silent"); err != nil {
		t.Fatal(err)
	}
	if err := o.Seen(t.Context(), "silent"); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("before Hello: %v", err)
	}
}

func TestRevoke(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	other, _ := o.open("globex")
	b, m := o.enrolled(core)
	o.connected(m, "acme", b.ID, "s", relay.Service)
	o.connected(m, "acme", b.ID, "t", relay.Terminal)
	if _, _, err := o.Connect(t.Context(), m.token("acme", b.ID, o.now), relayURL, "silent"); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Revoke(t.Context(), other, admin, b.ID); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("by another tenant: %v", err)
	}
	o.now = start.Add(time.Hour)
	connections, err := o.Revoke(t.Context(), core, admin, b.ID)
	if d := cmp.Diff([]string{"s", "t"}, connections); d != "" || err != nil {
		t.Errorf("%v: connections to close (-want +got):\n%s", err, d)
	}
	got := o.bridge("acme", b.ID)
	if !got.RevokedAt.Equal(o.now) || got.Enrolled() || len(got.Sessions) != 0 || o.known("s") != "unknown" || o.known("t") != "unknown" {
		t.Errorf("revoked: %+v; s is %s, t is %s", got, o.known("s"), o.known("t"))
	}
	if _, _, err := o.Connect(t.Context(), m.token("acme", b.ID, o.now), relayURL, "c"); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("connect: %v", err)
	}
	if _, _, _, err := o.Greet(t.Context(), "silent", relay.Hello{Session: relay.Service}); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("Hello: %v", err)
	}
	if again, err := o.Revoke(t.Context(), core, admin, b.ID); again != nil || err != nil {
		t.Errorf("again: %q, %v", again, err)
	}
	if d := cmp.Diff([]string{"bridge.enrolled", "bridge.invited", "bridge.revoked"}, slices.Sorted(slices.Values(o.actions("acme", "bridge/"+b.ID)))); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
	item, err := o.Table.Get(t.Context(), table.BridgeKey("acme", b.ID))
	if err != nil || !item.ExpiresAt.Equal(o.now.Add(90*24*time.Hour)) {
		t.Errorf("it is kept until %s, %v", item.ExpiresAt, err)
	}
}

func TestBridges(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	other, _ := o.open("globex")
	o.invite(other)
	var want []string
	for range 25 {
		b, _ := o.invite(core)
		want = append(want, b.ID)
	}
	if _, err := o.Revoke(t.Context(), core, admin, want[3]); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	var got []string
	for beyond, more := "", true; more; more = beyond != "" {
		bridges, next, err := o.Bridges(t.Context(), "acme", beyond, 10)
		if err != nil || len(bridges) > 10 {
			t.Fatalf("%d bridges, %v", len(bridges), err)
		}
		for _, b := range bridges {
			got = append(got, b.ID)
			if b.Name != "service desk" || b.Version == 0 {
				t.Errorf("listed: %+v", b)
			}
		}
		beyond = next
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("listed (-want +got):\n%s", d)
	}
	for _, id := range []string{"", "00000000", "../bridge", strings.ToUpper(want[0]) + "x", strings.Repeat("0", 5000)} {
		if _, err := o.Bridge(t.Context(), "acme", id); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("bridge %.20q: %v", id, err)
		}
	}
	if _, err := o.Bridge(t.Context(), "globex", want[0]); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("another tenant's: %v", err)
	}
}

func TestChangeBridge(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, m := o.enrolled(core)
	b = o.connected(m, "acme", b.ID, "c", relay.Service)

	// Everything that a bridge is comes back as it was stored.
	reader := tenant.Reader{Name: "reader", Insertion: "i-1", ATR: []byte{0x3b, 0xf8}, Operation: "01J", Part: 2, Credential: "piv-00",
		Identify: card.State{Version: 1, Family: "PIV", ID: "00FF", Leg: card.Done, Identity: card.Identity{
			Family: "PIV", ID: "00FF", Serial: "42", PIN: card.RetryCounter{Known: true, TriesLeft: 0, Most: 3}}}}
	want := b
	p := tenant.Presence{Connection: "c", ConnectedAt: start, SeenAt: start, Sequence: 3, Readers: []tenant.Reader{reader, {Name: "empty"}, {Name: "odd", Insertion: "i-2", Silent: true}}}
	want.Sessions, want.Version = map[relay.Session]tenant.Presence{relay.Service: p}, b.Version+1
	got, err := o.ChangeBridge(t.Context(), "acme", b.ID, func(b *tenant.Bridge) error { b.Sessions[relay.Service] = p; return nil })
	if d := cmp.Diff(want, got, ignoreInvitation); d != "" || err != nil {
		t.Errorf("changed: %v (-want +got):\n%s", err, d)
	}
	if d := cmp.Diff(want, o.bridge("acme", b.ID), ignoreInvitation); d != "" {
		t.Errorf("stored (-want +got):\n%s", d)
	}

	// A change in between is not lost: the edit begins anew.
	rename := func(name string) func(*tenant.Bridge) error {
		return func(b *tenant.Bridge) error { b.Name = name; return nil }
	}
	inner := o.Table
	o.Table = &meanwhile{inner, func() {
		if _, err := o.ChangeBridge(t.Context(), "acme", b.ID, rename("between")); err != nil {
			t.Error(err)
		}
	}}
	var seen []string
	got, err = o.ChangeBridge(t.Context(), "acme", b.ID, func(b *tenant.Bridge) error { seen = append(seen, b.Name); b.Host = "desk-8"; return nil })
	if d := cmp.Diff([]string{"service desk", "between"}, seen); d != "" || err != nil || got.Name != "between" || got.Host != "desk-8" {
		t.Errorf("%v: %s at %s; the edit saw (-want +got):\n%s", err, got.Name, got.Host, d)
	}
	o.Table = inner

	version := o.bridge("acme", b.ID).Version
	unwritten := table.Put(tabletest.Text(table.UserKey("acme", "u"), "x"), table.Absent())
	for name, c := range map[string]struct {
		edit func(*tenant.Bridge) error
		more []table.Op
		is   error
	}{
		"unchanged":           {func(*tenant.Bridge) error { return tenant.ErrUnchanged }, []table.Op{unwritten}, nil},
		"refused":             {func(*tenant.Bridge) error { return problem.ErrState }, []table.Op{unwritten}, problem.ErrState},
		"condition elsewhere": {rename("x"), []table.Op{unwritten, table.Check(table.UserKey("acme", "v"), table.IfVersion(1))}, problem.ErrConflict},
	} {
		o.calls.Take()
		if _, err := o.ChangeBridge(t.Context(), "acme", b.ID, c.edit, c.more...); !errors.Is(err, c.is) || c.is == nil && err != nil {
			t.Errorf("%s: %v, want %v", name, err, c.is)
		}
		if calls := o.calls.Take(); calls.Gets != 1 {
			t.Errorf("%s: it was tried %d times", name, calls.Gets)
		}
	}
	if _, err := o.ChangeBridge(t.Context(), "acme", b.ID, rename("")); !cmp.Equal([]string{"name"}, fields(err)) {
		t.Errorf("an invalid bridge: %v", err)
	}
	if _, err := o.ChangeBridge(t.Context(), "acme", "00000000", rename("x")); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("an unknown bridge: %v", err)
	}
	if got := o.bridge("acme", b.ID); got.Version != version {
		t.Errorf("version %d, want %d", got.Version, version)
	}
	if _, err := o.Table.Get(t.Context(), table.UserKey("acme", "u")); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("what went with a change that was not made: %v", err)
	}
}

// Each operation is tried with a failure at every call of the table, with and without effect:
// nothing is left half done, a change has its record, and the same or the next step helps.
func TestBridgeFaults(t *testing.T) {
	type scene struct {
		*office
		core  tenant.Core
		b     tenant.Bridge
		m     *machine
		code  string // of an invitation that is open
		again *machine
	}
	session := func(s *scene) string { return s.bridge("acme", s.b.ID).Sessions[relay.Service].Connection }
	audited := func(s *scene, action string, did bool) {
		s.Helper()
		n := 0
		for _, a := range s.actions("acme", "bridge/"+s.b.ID) {
			if a == action {
				n++
			}
		}
		want := map[bool]int{true: 1}[did]
		if action != "bridge.revoked" {
			want++ // the one of the scene
		}
		if n != want {
			s.Errorf("%s is recorded %d times, want %d", action, n, want)
		}
	}
	for name, c := range map[string]struct {
		run   func(*scene) error
		check func(s *scene, err error)
	}{
		"InviteAgain": {
			func(s *scene) error { _, _, err := s.InviteAgain(s.Context(), s.core, admin, s.b.ID); return err },
			func(s *scene, err error) {
				_, _, _, old := s.Enrol(s.Context(), s.again.enrolment(s.code))
				if err == nil && old == nil {
					s.Error("the old code is still good")
				}
				_, code, err := s.InviteAgain(s.Context(), s.core, admin, s.b.ID)
				if err != nil {
					s.Fatal(err)
				}
				if _, _, _, err := s.Enrol(s.Context(), s.again.enrolment(code.Reveal())); err != nil {
					s.Errorf("the next code: %v", err)
				}
			}},
		"Enrol": {
			func(s *scene) error {
				_, _, former, err := s.Enrol(s.Context(), s.again.enrolment(s.code))
				if err == nil && !slices.Equal(former, []string{"c"}) {
					s.Errorf("former connections %q", former)
				}
				return err
			},
			func(s *scene, err error) {
				b := s.bridge("acme", s.b.ID)
				enrolled := bytes.Equal(b.Identity, s.again.identity())
				if !enrolled && (err == nil || !bytes.Equal(b.Identity, s.m.identity())) || enrolled != bytes.Equal(b.Sealing, s.again.sealing) {
					s.Errorf("%v: the bridge is neither as it was nor enrolled", err)
				}
				if enrolled != (s.known("c") == "unknown") || enrolled != (session(s) == "") {
					s.Errorf("enrolled %v, and the old connection is %s", enrolled, s.known("c"))
				}
				audited(s, "bridge.enrolled", enrolled)
				if _, _, _, err := s.Enrol(s.Context(), s.again.enrolment(s.code)); enrolled != (err != nil) {
					s.Errorf("enrolled %v, and the code again: %v", enrolled, err)
				}
				s.connected(s.again, "acme", s.b.ID, "new", relay.Service)
			}},
		"Revoke": {
			func(s *scene) error {
				connections, err := s.Revoke(s.Context(), s.core, admin, s.b.ID)
				if err == nil && !slices.Equal(connections, []string{"c"}) {
					s.Errorf("connections %q", connections)
				}
				return err
			},
			func(s *scene, err error) {
				revoked := !s.bridge("acme", s.b.ID).RevokedAt.IsZero()
				if err == nil && !revoked || revoked != (s.known("c") == "unknown") {
					s.Errorf("%v: revoked %v, and the connection is %s", err, revoked, s.known("c"))
				}
				audited(s, "bridge.revoked", revoked)
				if _, err := s.Revoke(s.Context(), s.core, admin, s.b.ID); err != nil {
					s.Errorf("again: %v", err)
				}
				audited(s, "bridge.revoked", true)
				if _, _, err := s.Connect(s.Context(), s.m.token("acme", s.b.ID, s.now), relayURL, "f"); !errors.Is(err, problem.ErrForbidden) {
					s.Errorf("connect: %v", err)
				}
			}},
		"Connect": {
			func(s *scene) error {
				_, _, err := s.Connect(s.Context(), s.m.token("acme", s.b.ID, s.now), relayURL, "f")
				return err
			},
			func(s *scene, err error) {
				if err == nil && s.known("f") == "unknown" {
					s.Error("let in, and not known")
				}
				s.connected(s.m, "acme", s.b.ID, "e", relay.Service)
			}},
		"Greet": {
			func(s *scene) error {
				_, _, former, err := s.Greet(s.Context(), "d", relay.Hello{Session: relay.Service})
				if err == nil && former != "c" {
					s.Errorf("former is %q", former)
				}
				return err
			},
			func(s *scene, err error) {
				if got := session(s); got != "c" && got != "d" || (got == "c") != (s.known("c") != "unknown") || err == nil && got != "d" {
					s.Errorf("%v: the session is %q, c is %s", err, got, s.known("c"))
				}
				s.connected(s.m, "acme", s.b.ID, "e", relay.Service)
				if got := session(s); got != "e" {
					s.Errorf("a new connection: the session is %q", got)
				}
			}},
		"Seen": {
			func(s *scene) error { s.now = start.Add(5 * time.Minute); return s.Seen(s.Context(), "c") },
			func(s *scene, _ error) {
				if err := s.Seen(s.Context(), "c"); err != nil || !s.bridge("acme", s.b.ID).Sessions[relay.Service].SeenAt.Equal(s.now) {
					s.Errorf("again: %v", err)
				}
			}},
		"Disconnect": {
			func(s *scene) error { return s.Disconnect(s.Context(), "c") },
			func(s *scene, err error) {
				if (session(s) == "") != (s.known("c") == "unknown") {
					s.Errorf("%v: the session is %q, and the connection %s", err, session(s), s.known("c"))
				}
				if err := s.Disconnect(s.Context(), "c"); err != nil || session(s) != "" {
					s.Errorf("again: %v, the session is %q", err, session(s))
				}
			}},
	} {
		for _, after := range []bool{false, true} {
			for n, more := 1, true; more; n++ {
				t.Run(fmt.Sprintf("%s/%d,%v", name, n, after), func(t *testing.T) {
					s := &scene{office: newOffice(t)}
					s.core, _ = s.open("acme")
					s.b, s.m = s.enrolled(s.core)
					s.connected(s.m, "acme", s.b.ID, "c", relay.Service)
					if _, _, err := s.Connect(t.Context(), s.m.token("acme", s.b.ID, s.now), relayURL, "d"); err != nil {
						t.Fatal(err)
					}
					_, code, err := s.InviteAgain(t.Context(), s.core, admin, s.b.ID)
					if err != nil {
						t.Fatal(err)
					}
					s.code, s.again = code.Reveal(), s.machine()
					inner := s.Table
					faulty := tabletest.Fail(inner, n, after)
					s.Table = faulty
					err = c.run(s)
					more = faulty.Calls() >= n
					if more != errors.Is(err, tabletest.ErrFault) || !more && err != nil {
						t.Fatalf("failed %v, and it says %v", more, err)
					}
					s.Table = inner
					c.check(s, err)
				})
			}
		}
	}
}

// recorder keeps all that is written.
type recorder struct {
	table.Table
	mu  sync.Mutex
	all []byte
}

func (r *recorder) Write(ctx context.Context, ops ...table.Op) error {
	r.mu.Lock()
	for _, op := range ops {
		r.all = fmt.Appendf(r.all, "%s %s %s\n", op.Item().Key.Partition(), op.Item().Key.Sort(), op.Item().Data)
	}
	r.mu.Unlock()
	return r.Table.Write(ctx, ops...)
}

// No code and no token is ever written, in whatever part of it and form, nor is in an error.
func TestNoCodeIsStored(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	r := &recorder{Table: o.Table}
	o.Table = r
	b, code := o.invite(core)
	_, code2, err := o.InviteAgain(t.Context(), core, admin, b.ID)
	if err != nil {
		t.Fatal(err)
	}
	m := o.machine()
	const guess = "7q3xwz8m5k"
	var said []string
	for _, c := range []string{"acme." + b.ID + "." + guess, code} {
		_, _, _, err := o.Enrol(t.Context(), m.enrolment(c))
		said = append(said, fmt.Sprint(err))
	}
	if _, _, _, err := o.Enrol(t.Context(), m.enrolment(code2.Reveal())); err != nil {
		t.Fatal(err)
	}
	token, older := m.token("acme", b.ID, o.now), m.token("acme", b.ID, o.now)
	for i, text := range []secret.Text{older, token, older} {
		_, _, err := o.Connect(t.Context(), text, relayURL, fmt.Sprint("c", i))
		said = append(said, fmt.Sprint(err))
	}
	if _, _, _, err := o.Greet(t.Context(), "c0", relay.Hello{Session: relay.Service}); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Revoke(t.Context(), core, admin, b.ID); err != nil {
		t.Fatal(err)
	}
	all := string(r.all) + strings.Join(said, "\n")
	for _, want := range []string{b.ID, "bridge.enrolled", `"lastToken"`, "not authenticated"} {
		if !strings.Contains(all, want) {
			t.Fatalf("%s was not seen written: the test sees nothing", want)
		}
	}
	secrets := map[string]string{"a guess": guess, "the code": strings.Split(code, ".")[2], "the second code": strings.Split(code2.Reveal(), ".")[2]}
	for i, text := range []secret.Text{token, older} {
		parts := strings.Split(text.Reveal(), ".")
		secrets[fmt.Sprint("the signature of token ", i)], secrets[fmt.Sprint("the claims of token ", i)] = parts[2], parts[1]
	}
	for what, s := range secrets {
		for _, form := range []string{s, strings.ToUpper(s), base64.StdEncoding.EncodeToString([]byte(s)), hex.EncodeToString([]byte(s))} {
			if strings.Contains(all, form) {
				t.Errorf("%s is shown", what)
			}
		}
	}
}
