package line_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/unblock"
)

// connect makes a connection with a token, and returns the status.
func connect(d *desk.Desk, connection, authorization string) int {
	header := http.Header{}
	if authorization != "" {
		header.Set("Authorization", authorization)
	}
	return d.Line.Connect(d.Context(), connection, header)
}

func TestConnect(t *testing.T) {
	d := desk.New(t)
	b := d.NewBridge(relay.Service)
	token := b.Token()
	_, wrong, err := ed25519.GenerateKey(rand.Reader)
	d.Must(err)
	forge := func(change func(*relay.Claims)) string {
		claims := relay.Claims{Tenant: string(desk.Acme), Bridge: b.ID, Relay: desk.RelayURL, At: d.Clock.Now(), ID: ulid.Make().String()}
		change(&claims)
		text, err := relay.NewToken(wrong, claims)
		d.Must(err)
		return text.Reveal()
	}
	for _, c := range []struct {
		name, authorization string
		want                int
	}{
		{"nothing", "", 401},
		{"another scheme", "Basic " + token, 401},
		{"no token", "Bearer ", 401},
		{"no token at all", "Bearer x.y.z", 401},
		{"another key", "Bearer " + forge(func(*relay.Claims) {}), 401},
		{"another bridge", "Bearer " + forge(func(c *relay.Claims) { c.Bridge = "00000000" }), 401},
		{"another tenant", "Bearer " + forge(func(c *relay.Claims) { c.Tenant = "globex" }), 401},
		{"right", "bearer " + token, 200},
		{"used", "Bearer " + token, 401},
	} {
		if got := connect(d, "x-"+c.name, c.authorization); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
	late := b.Token()
	d.Clock.Pass(10 * time.Minute)
	if got := connect(d, "late", "Bearer "+late); got != 401 {
		t.Errorf("a token of ten minutes ago: %d", got)
	}

	if _, err := d.Tenants.Suspend(t.Context(), desk.Admin, desk.Acme, true); err != nil {
		t.Fatal(err)
	}
	if got := connect(d, "suspended", "Bearer "+b.Token()); got != 403 {
		t.Errorf("of a suspended tenant: %d", got)
	}
	if _, err := d.Tenants.Suspend(t.Context(), desk.Admin, desk.Acme, false); err != nil {
		t.Fatal(err)
	}
	_, err = d.Tenants.Revoke(t.Context(), d.Core, desk.Admin, b.ID)
	d.Must(err)
	if got := connect(d, "revoked", "Bearer "+b.Token()); got != 403 {
		t.Errorf("revoked: %d", got)
	}
}

func TestSessions(t *testing.T) {
	d := desk.New(t)
	b := d.NewBridge(relay.Service)
	d.Must(b.Settle())

	d.Must(b.Say(relay.Message{Ping: &relay.Ping{}}))
	d.Must(b.Settle())
	desk.Last(b, func(m relay.Message) *relay.Pong { return m.Pong })

	// A bridge may have both sessions; a second of a kind takes the place of the first.
	terminal := b.Beside(relay.Terminal)
	d.Must(terminal.Settle())
	if b.Closed() || terminal.Closed() {
		t.Error("two sessions of a bridge do not go together")
	}
	second := b.Beside(relay.Service)
	d.Must(second.Settle())
	d.Must(b.Settle())
	if goodbye := desk.Last(b, func(m relay.Message) *relay.Goodbye { return m.Goodbye }); goodbye.Code != relay.Replaced || !b.Closed() || second.Closed() {
		t.Errorf("the former one: %+v, closed %t", goodbye, b.Closed())
	}
	if err := b.Say(relay.Message{Ping: &relay.Ping{}}); err != nil || !b.Closed() {
		t.Errorf("a ping of a former session: %v", err)
	}
	d.Must(d.Line.Disconnect(t.Context(), b.Connection))
	d.Must(second.Say(relay.Message{Ping: &relay.Ping{}}))

	// Messages that are none, of another version, and too early.
	if err := d.Line.Message(t.Context(), second.Connection, []byte(`{"version":1,"run":"`+strings.Repeat("x", 20)+`"}`)); err == nil || strings.Contains(err.Error(), "xxxx") {
		t.Errorf("no message: %v", err)
	}
	if got := connect(d, "silent", "Bearer "+b.Token()); got != 200 {
		t.Fatal(got)
	}
	early, err := relay.Encode(relay.Message{Start: &relay.Start{Ref: "r", Reader: "R", Insertion: "i"}})
	d.Must(err)
	if err := d.Line.Message(t.Context(), "silent", early); err == nil {
		t.Error("a message before Hello is taken")
	}
	if err := second.Say(relay.Message{Ack: &relay.Ack{Operation: "o", Part: 1}}); err == nil {
		t.Error("what is for a bridge is taken from one")
	}
	d.Must(d.Line.Message(t.Context(), second.Connection, []byte(`{"version":99,"hello":{}}`)))
	d.Must(second.Settle())
	if goodbye := desk.Last(second, func(m relay.Message) *relay.Goodbye { return m.Goodbye }); goodbye.Code != relay.Update || !second.Closed() {
		t.Errorf("of another version: %+v", goodbye)
	}

	// Of a revoked bridge, and of a suspended tenant, nothing is taken any more.
	_, err = d.Tenants.Revoke(t.Context(), d.Core, desk.Admin, b.ID)
	d.Must(err)
	if err := terminal.Report(); err != nil || !terminal.Closed() {
		t.Errorf("of a revoked bridge: %v, closed %t", err, terminal.Closed())
	}
	other := d.NewBridge(relay.Terminal)
	_, err = d.Tenants.Suspend(t.Context(), desk.Admin, desk.Acme, true)
	d.Must(err)
	if err := other.Report(); err != nil || !other.Closed() {
		t.Errorf("of a suspended tenant: %v, closed %t", err, other.Closed())
	}
}

// known shows what a bridge is known to have in its readers.
func known(d *desk.Desk, b *desk.Bridge) (readers []string) {
	d.Helper()
	bridge, err := d.Tenants.Bridge(d.Context(), desk.Acme, b.ID)
	d.Must(err)
	for _, r := range bridge.Sessions[b.Session].Readers {
		what := r.Name + ":"
		switch {
		case r.Credential != "":
			what += r.Identify.Family + " registered"
		case r.Identify.Leg == card.Done:
			what += r.Identify.Family
		case r.Silent:
			what += "silent"
		case r.Insertion != "":
			what += string(r.Identify.Leg)
		}
		readers = append(readers, what)
	}
	return readers
}

func TestReaders(t *testing.T) {
	d := desk.New(t)
	b := d.NewBridge(relay.Service)
	piv, _ := d.Issue(softcard.PivApplet)
	gids, _ := d.Issue(softcard.GIDS)
	stray, err := softcard.New(softcard.Config{Profile: softcard.CanoKey, Rand: rand.Reader})
	d.Must(err)
	b.Insert(piv)
	b.Insert(gids)
	b.Insert(stray)
	b.Insert(nil)
	if diff := cmp.Diff([]string{"Reader 0:find", "Reader 1:find", "Reader 2:find", "Reader 3:silent"}, known(d, b)); diff != "" {
		t.Error(diff)
	}
	// Each is asked once, however often it is reported.
	d.Must(b.Report())
	d.Must(b.Settle())
	if len(b.Runs) != 6 {
		t.Errorf("%d scripts to identify three cards", len(b.Runs))
	}
	want := []string{"Reader 0:PIV registered", "Reader 1:GIDS registered", "Reader 2:PIV", "Reader 3:silent"}
	if diff := cmp.Diff(want, known(d, b)); diff != "" {
		t.Error(diff)
	}
	for _, run := range b.Runs {
		if run.Script.Fence != 0 || run.Policy != nil || run.PIN != nil {
			t.Errorf("to identify: %v", run)
		}
	}

	// An older report that was overtaken says nothing.
	message := relay.Message{Readers: &relay.Readers{Sequence: 1, Readers: []relay.Reader{}}}
	d.Must(b.Say(message))
	if diff := cmp.Diff(want, known(d, b)); diff != "" {
		t.Error(diff)
	}
	// Nor does a result to another insertion, or a second one.
	d.Must(b.Say(relay.Message{Result: &relay.Result{Operation: b.Runs[0].Script.Operation, Part: b.Runs[0].Script.Part, Interrupted: true}}))
	d.Must(b.Say(relay.Message{Result: &relay.Result{Operation: "identify-01J8ZC9Q6Y0V4T5W3X2R1N0M9K", Part: 1, Interrupted: true}}))
	if diff := cmp.Diff(want, known(d, b)); diff != "" {
		t.Error(diff)
	}
	b.Remove()
	if got := known(d, b); len(got) > 0 {
		t.Errorf("removed: %v", got)
	}
}

func TestStartOfCardsThatCannot(t *testing.T) {
	d := desk.New(t)
	b := d.NewBridge(relay.Terminal)
	want := func(insertion, code, reason string) {
		t.Helper()
		_, problem, err := b.Start(insertion)
		if err != nil || problem == nil || problem.Code != code || !strings.Contains(problem.Reason, reason) {
			t.Errorf("got %+v, %v, want %s: %s", problem, err, code, reason)
		}
	}
	want(b.Insert(nil), "state", "does not answer")

	stray, err := softcard.New(softcard.Config{Profile: softcard.CanoKey, Rand: rand.Reader})
	d.Must(err)
	insertion := b.Insert(stray)
	d.Must(b.Settle())
	want(insertion, "state", "is not registered")

	blank, err := softcard.New(softcard.Config{Profile: softcard.GIDS, Rand: rand.Reader, Blank: true})
	d.Must(err)
	insertion = b.Insert(blank)
	d.Must(b.Settle())
	want(insertion, string(card.NoCardID), "no id of its own")

	// It is not known yet what card it is: the bridge asks again for a while.
	b.Copies = func(mine bool, m relay.Message) int {
		if m.Run != nil {
			return 0
		}
		return 1
	}
	began := time.Now()
	want(b.Insert(stray), "notIdentified", "not known yet")
	if took := time.Since(began); took < 3*time.Second || took > 30*time.Second {
		t.Errorf("it was waited %v", took)
	}
}

func TestPINRefused(t *testing.T) {
	for _, profile := range profiles {
		t.Run(string(profile), func(t *testing.T) {
			d := desk.New(t)
			p := newPerson(d, profile)
			op := p.proven()
			before := p.piece.Inspect()
			p.must(p.Ready(op.ID, "123"))
			refused := p.news()
			if refused.Next != relay.NextPIN || refused.Fence != op.Fence || len(refused.Violations) == 0 || refused.Policy == nil {
				t.Fatalf("refused: %+v", refused)
			}
			if after := p.piece.Inspect(); after.SecretBytes != before.SecretBytes {
				t.Error("the card got something")
			}
			c := d.Credential(p.credential)
			if profile != softcard.GIDS && (c.Custody.Stage != card.Settled || c.Custody.Proposed != 0 || !d.Knows(p.piece, c) || len(c.PUKs) != 1) || c.Doubt != "" {
				t.Errorf("the credential: %+v", c)
			}
			p.must(p.Ready(op.ID, p.pin))
			if end := p.news(); end.State != "succeeded" || len(end.Violations) > 0 || !p.piece.PINIs(p.pin) {
				t.Errorf("then: %+v", end)
			}
			p.calm()
			p.honest(0)
			d.Search()
		})
	}
}

// The bridge has forgotten the PIN, as when it was started anew: it is asked for again.
func TestPINForgotten(t *testing.T) {
	d := desk.New(t)
	p := newPerson(d, softcard.GIDS)
	op := p.proven()
	p.must(p.ReadyWithout(op.ID))
	if again := p.news(); again.Next != relay.NextPIN {
		t.Fatalf("%+v", again)
	}
	p.must(p.Ready(op.ID, p.pin))
	if !p.piece.PINIs(p.pin) {
		t.Errorf("%+v", p.news())
	}
}

func TestCancel(t *testing.T) {
	for _, c := range []struct {
		name    string
		until   func(p *person) relay.Operation
		problem string // why it cannot be cancelled
		state   unblock.State
		reason  string
	}{
		{"requested", func(p *person) relay.Operation { return p.must(p.Start(p.insertion)) }, "", unblock.Failed, unblock.ReasonCancelled},
		{"proven", (*person).proven, "", unblock.Failed, unblock.ReasonCancelled},
		{"running", func(p *person) relay.Operation { p.Copies = p.results; return p.done() }, "it has begun", unblock.Running, ""},
		{"succeeded", func(p *person) relay.Operation { p.done(); return p.news() }, "", unblock.Succeeded, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := desk.New(t)
			p := newPerson(d, softcard.PivApplet)
			op := c.until(p)
			_, problem, err := p.Cancel(op.ID)
			if err != nil || (problem != nil) != (c.problem != "") || problem != nil && !strings.Contains(problem.Reason, c.problem) {
				t.Fatalf("got %+v, %v", problem, err)
			}
			stored := d.Operation(op.ID)
			if stored.State != c.state || stored.Reason != c.reason {
				t.Errorf("%v", stored)
			}
			if cred := d.Credential(p.credential); stored.State.Finished() && cred.Lease.Operation != "" {
				t.Errorf("it keeps the lease: %+v", cred.Lease)
			}
			if c.reason == unblock.ReasonCancelled { // and another can begin at once
				if p.done(); !p.piece.PINIs(p.pin) {
					t.Error("after it nothing goes")
				}
			}
		})
	}
}

// A second unblock of a card waits for the first; at the same bridge it is the first.
func TestSecond(t *testing.T) {
	d := desk.New(t)
	p := newPerson(d, softcard.PivApplet)
	first := p.proven()
	if again := p.must(p.Start(p.insertion)); again.ID != first.ID || again.Next != relay.NextPIN {
		t.Errorf("at the same bridge: %+v", again)
	}
	other := d.NewBridge(relay.Terminal)
	insertion := other.Insert(p.piece)
	d.Must(other.Settle())
	if _, problem, err := other.Start(insertion); err != nil || problem == nil || problem.Code != "state" || !strings.Contains(problem.Reason, first.ID) {
		t.Errorf("at another bridge: %+v, %v", problem, err)
	}
	for name, ask := range map[string]func() (relay.Operation, *relay.Problem, error){
		"prove":  func() (relay.Operation, *relay.Problem, error) { return other.Prove(first.ID, "123456") },
		"ready":  func() (relay.Operation, *relay.Problem, error) { return other.Ready(first.ID, "58203917") },
		"cancel": func() (relay.Operation, *relay.Problem, error) { return other.Cancel(first.ID) },
		"look":   func() (relay.Operation, *relay.Problem, error) { return other.Look(first.ID) },
	} {
		if _, problem, err := ask(); err != nil || problem == nil || problem.Code != "notFound" {
			t.Errorf("another bridge's %s: %+v, %v", name, problem, err)
		}
	}
	// Its time over, the other may begin; what the first does then has no effect.
	d.Clock.Pass(4 * time.Minute)
	second := (&person{Bridge: other, piece: p.piece, credential: p.credential, insertion: insertion, pin: "58203917"})
	second.done()
	if !p.piece.PINIs("58203917") {
		t.Error("the second has not reset the PIN")
	}
	late := p.must(p.Ready(first.ID, p.pin))
	if late.State != "failed" || late.Reason != unblock.ReasonExpired || p.piece.PINIs(p.pin) {
		t.Errorf("the first: %+v", late)
	}
}

// A person at the bridge goes on with what an operator has begun.
func TestOperatorBegins(t *testing.T) {
	d := desk.New(t)
	p := newPerson(d, softcard.CanoKey)
	op, err := d.Unblocks.Create(t.Context(), d.Core, desk.Admin, unblock.Request{Credential: p.credential, Bridge: p.ID, Channel: credential.Operator, Statement: "known in person"})
	d.Must(err)
	at := p.must(p.Start(p.insertion))
	if at.ID != op.ID || at.Next != relay.NextPIN {
		t.Fatalf("%+v", at)
	}
	p.must(p.Ready(at.ID, p.pin))
	stored, mails := d.Operation(op.ID), d.Mails.Of("reset")
	if stored.State != unblock.Succeeded || !p.piece.PINIs(p.pin) || d.Credential(p.credential).LastPINChange.How != credential.ResetByOperator {
		t.Errorf("%v", stored)
	}
	if len(mails) != 1 || !strings.Contains(mails[0].Text, desk.Admin.Name) || len(d.Mails.Of("code")) > 0 {
		t.Errorf("mails: %+v", mails)
	}
}

// The admin key on record is none for this card's challenge: that is said, and not asked
// for ever.
func TestAdminKeyOfAnotherKind(t *testing.T) {
	d := desk.New(t)
	p := newPerson(d, softcard.GIDS)
	d.SetAdminKey(p.credential, "000102030405060708090a0b0c0d0e0f")
	p.done()
	if end := p.news(); end.State != "failed" || end.Reason != string(card.AdminKeyWrong) {
		t.Errorf("%+v", end)
	}
	if waiting, _ := p.Journal.Waiting(); len(waiting) > 0 {
		t.Errorf("not acknowledged: %+v", waiting)
	}
	if c := d.Credential(p.credential); c.Doubt != "" || c.Lease.Operation != "" {
		t.Errorf("%+v", c)
	}
	d.SetAdminKey(p.credential, desk.AdminKey)
	if p.done(); !p.piece.PINIs(p.pin) {
		t.Errorf("with the right one: %+v", p.news())
	}
}
