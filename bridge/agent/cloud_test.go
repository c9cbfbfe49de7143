package agent_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/bridge/enrolment"
	"github.com/pinward/pinward/bridge/journal"
	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

const patience = 30 * time.Second

// cloud is the other side of the relay.
type cloud struct {
	t         testing.TB
	server    *httptest.Server
	enrolment *enrolment.Enrolment
	conns     chan *connection

	mu     sync.Mutex
	status int // that connections are refused with, if not 0
	date   time.Time
	dials  int
}

func newCloud(t testing.TB) *cloud {
	t.Helper()
	c := &cloud{t: t, conns: make(chan *connection, 10)}
	c.server = httptest.NewServer(c)
	t.Cleanup(c.server.Close)
	_, identity, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sealing, err := relay.NewSealingKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.enrolment = &enrolment.Enrolment{Tenant: "acme", Bridge: "BR1", Name: "Kiosk", Organisation: "Acme", API: c.server.URL,
		Relay: strings.Replace(c.server.URL, "http", "ws", 1) + "/relay", Identity: identity, Sealing: sealing}
	return c
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.dials++
	status, date := c.status, c.date
	c.mu.Unlock()
	if !date.IsZero() {
		w.Header().Set("Date", date.UTC().Format(http.TimeFormat))
	}
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	if r.Header["Origin"] != nil {
		c.t.Errorf("Origin: %v", r.Header["Origin"])
	}
	token := secret.New(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	claims, err := relay.CheckToken(token, c.enrolment.Identity.Public().(ed25519.PublicKey), c.enrolment.Relay, time.Now())
	if err != nil || claims.Tenant != "acme" || claims.Bridge != "BR1" {
		c.t.Errorf("token: %+v, %v", claims, err)
	}
	upgrader := websocket.Upgrader{}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	conn := &connection{t: c.t, ws: ws, in: make(chan relay.Message, 100), token: claims.ID}
	go conn.read()
	c.conns <- conn
}

func (c *cloud) refuse(status int, date time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status, c.date = status, date
}

func (c *cloud) dialled() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dials
}

// connection is one of a bridge.
type connection struct {
	t     testing.TB
	ws    *websocket.Conn
	in    chan relay.Message // closed when it is lost
	token string
}

func (c *connection) read() {
	defer close(c.in)
	for {
		_, b, err := c.ws.ReadMessage()
		if err != nil {
			return
		}
		m, err := relay.Decode(b)
		if err != nil {
			c.t.Errorf("the bridge sends %s: %v", b, err)
			return
		}
		c.in <- m
	}
}

var welcome = relay.Welcome{Organisation: "Acme", KeepAliveSeconds: 300, ReconnectSeconds: 6600}

// accept waits for a connection and greets it. With a time in w that is the cloud's.
func (c *cloud) accept(w relay.Welcome) *connection {
	c.t.Helper()
	select {
	case conn := <-c.conns:
		hello := conn.want("hello", func(m relay.Message) bool { return m.Hello != nil }).Hello
		if hello.Program != "1.2.3" || hello.System != "test/none" {
			c.t.Errorf("%+v", hello)
		}
		if w.Time.IsZero() {
			w.Time = time.Now()
		}
		c.t.Cleanup(func() { conn.ws.Close() }) // so that the agent does not wait for acknowledgements
		conn.send(relay.Message{Welcome: &w})
		return conn
	case <-time.After(patience):
		c.t.Fatal("the bridge does not connect")
		return nil
	}
}

func (c *connection) send(m relay.Message) {
	c.t.Helper()
	b, err := relay.Encode(m)
	if err != nil {
		c.t.Fatal(err)
	}
	_ = c.ws.WriteMessage(websocket.TextMessage, b)
}

// want waits for a message and passes over others.
func (c *connection) want(what string, is func(relay.Message) bool) relay.Message {
	c.t.Helper()
	late := time.After(patience)
	for {
		select {
		case m, ok := <-c.in:
			if !ok {
				c.t.Fatalf("no %s: the connection was closed", what)
			}
			if is(m) {
				return m
			}
		case <-late:
			c.t.Fatalf("no %s in %v", what, patience)
		}
	}
}

// inserted waits until the bridge reports a card, and returns it.
func (c *connection) inserted() (readerName, insertion string) {
	c.t.Helper()
	c.want("report of a card", func(m relay.Message) bool {
		if m.Readers != nil {
			for _, r := range m.Readers.Readers {
				if r.Card != nil {
					readerName, insertion = r.Name, r.Card.Insertion
					return true
				}
			}
		}
		return false
	})
	return readerName, insertion
}

func (c *connection) result(operation string, part int) relay.Result {
	c.t.Helper()
	return *c.want(fmt.Sprintf("result of %s/%d", operation, part), func(m relay.Message) bool {
		return m.Result != nil && m.Result.Operation == operation && m.Result.Part == part
	}).Result
}

// silence fails the test if a result comes.
func (c *connection) silence(limit time.Duration) {
	c.t.Helper()
	late := time.After(limit)
	for {
		select {
		case m, ok := <-c.in:
			if !ok {
				return
			}
			if m.Result != nil {
				c.t.Fatalf("unexpected: %+v", *m.Result)
			}
		case <-late:
			return
		}
	}
}

func (c *connection) run(r relay.Run) relay.Result {
	c.t.Helper()
	c.send(relay.Message{Run: &r})
	return c.result(r.Script.Operation, r.Script.Part)
}

func (c *connection) ack(r relay.Result) {
	c.send(relay.Message{Ack: &relay.Ack{Operation: r.Operation, Part: r.Part}})
}

// closed waits until the connection is lost.
func (c *connection) closed() {
	c.t.Helper()
	late := time.After(patience)
	for {
		select {
		case _, ok := <-c.in:
			if !ok {
				return
			}
		case <-late:
			c.t.Fatal("the connection stays")
		}
	}
}

// logs is what the agent has logged.
type logs struct{ testserver.Buffer }

func (l *logs) wait(t testing.TB, text string) {
	t.Helper()
	for began := time.Now(); !strings.Contains(l.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("%q is not logged:\n%s", text, l)
		}
	}
}

// world is an agent with a reader in software and its cloud.
type world struct {
	testing.TB
	*cloud
	*agent.Agent
	config agent.Config
	reader *softcard.Reader
	memory journal.Memory
	logs   *logs
	stop   func()
	ended  chan error // what Run returned
}

func newWorld(t testing.TB, change ...func(*agent.Config)) *world {
	t.Helper()
	w := &world{TB: t, cloud: newCloud(t), reader: softcard.NewReader(), memory: &journal.Map{}, logs: &logs{}}
	w.config = agent.Config{
		Session: relay.Service, Enrolment: w.enrolment, Source: reader.NewSoft("Soft", w.reader, softcard.ErrReset, reader.DefaultLimits),
		Journal: journal.New(w.memory), Program: "1.2.3", System: "test/none", Now: time.Now, Rand: rand.Reader,
		Log: slog.New(slog.NewTextHandler(w.logs, nil)),
	}
	for _, c := range change {
		c(&w.config)
	}
	w.begin()
	return w
}

// begin starts an agent, which ends with the test.
func (w *world) begin() {
	w.Helper()
	a, err := agent.New(w.config)
	if err != nil {
		w.Fatal(err)
	}
	w.Agent = a
	ctx, cancel := context.WithCancel(context.Background())
	w.stop, w.ended = cancel, make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.ended <- a.Run(ctx)
	}()
	w.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			w.Error("the agent does not end")
		}
	})
}

func (w *world) waitEnd() error {
	w.Helper()
	select {
	case err := <-w.ended:
		return err
	case <-time.After(patience):
		w.Fatal("the agent does not end")
		return nil
	}
}

func newCard(t testing.TB, profile softcard.Profile) *softcard.Card {
	t.Helper()
	c, err := softcard.New(softcard.Config{Profile: profile, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// block presents wrong PINs.
func block(t testing.TB, c *softcard.Card) {
	t.Helper()
	selection, wrong := append([]byte{0, 0xA4, 4, 0, 9}, apdu.PIV.AID[:9]...), "000000\xFF\xFF"
	if c.Profile() == softcard.GIDS {
		selection, wrong = append([]byte{0, 0xA4, 4, 0, 9}, apdu.GIDS.AID[:9]...), "000000"
	}
	for _, command := range append([][]byte{selection}, repeat(append([]byte{0, 0x20, 0, 0x80, byte(len(wrong))}, wrong...), 5)...) {
		if _, err := c.Transmit(command); err != nil {
			t.Fatal(err)
		}
	}
	if c.Inspect().PINTries != 0 {
		t.Fatal("the card is not blocked")
	}
}

func repeat(b []byte, n int) [][]byte {
	var all [][]byte
	for range n {
		all = append(all, b)
	}
	return all
}

const (
	newPIN = "738264"
	newPUK = "40718259"
)

// materials are what the cloud knows of a card from the factory, and the PUK that it will
// have.
func materials(family string) card.Materials {
	f, err := card.FamilyNamed(family)
	if err != nil {
		panic(err)
	}
	return card.Materials{
		PUK: func(slot int) (secret.Text, error) {
			return secret.New([]string{"", softcard.FactoryPUK, newPUK}[slot]), nil
		},
		AdminKey: func() (secret.Text, error) { return secret.New(string(softcard.FactoryAdminKey)), nil },
		Policy:   f.Policy(),
	}
}

// begun is an unblock of a card that is known.
func begun(t testing.TB, id card.Identity) card.State {
	t.Helper()
	f, err := card.FamilyNamed(id.Family)
	if err != nil {
		t.Fatal(err)
	}
	var custody card.Custody
	if f == card.PIV {
		custody = card.Custody{Stage: card.Settled, Current: 1, Tries: 3, Most: 3}
	}
	state, err := f.Unblock(id.ID, custody, 2)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// place is a card in the reader, as the cloud knows it.
type place struct {
	reader, insertion string
	identity          card.Identity
}

// identify finds out what card there is.
func (c *connection) identify(operation string) place {
	c.t.Helper()
	name, insertion := c.inserted()
	state := card.Identify(false)
	for part := 1; !state.Finished(); part++ {
		script, err := state.Script(card.Materials{})
		if err != nil {
			c.t.Fatal(err)
		}
		result := c.run(relay.Run{Reader: name, Insertion: insertion, Script: apdu.Script{
			Operation: operation, Part: part, Deadline: time.Now().Add(time.Minute), Steps: script.Steps}})
		answered, ok := result.Card()
		if !ok {
			c.t.Fatalf("%+v", result)
		}
		if state, err = state.Next(answered); err != nil {
			c.t.Fatal(err)
		}
	}
	if state.Leg != card.Done {
		c.t.Fatalf("not identified: %v", state.Failure)
	}
	return place{name, insertion, state.Identity}
}

// next is the run of an operation's next script.
func (p place) next(t testing.TB, state card.State, operation string, part int, fence int64) relay.Run {
	t.Helper()
	script, err := state.Script(materials(p.identity.Family))
	if err != nil {
		t.Fatal(err)
	}
	return relay.Run{Reader: p.reader, Insertion: p.insertion, Credential: "C1", Policy: script.Policy, Hold: script.Hold, Continue: part > 1,
		Script: apdu.Script{Operation: operation, Part: part, Fence: fence, Deadline: time.Now().Add(time.Minute), Steps: script.Steps}}
}

// seal seals a PIN for a run.
func (c *cloud) seal(r relay.Run, newPIN string) *relay.SealedPIN {
	c.t.Helper()
	sealed, err := relay.SealPIN(c.enrolment.Sealing.PublicKey().Bytes(),
		relay.Binding{Tenant: "acme", Operation: r.Script.Operation, Credential: r.Credential, Fence: r.Script.Fence}, secret.New(newPIN))
	if err != nil {
		c.t.Fatal(err)
	}
	return &sealed
}

// unblock takes an unblock to its end.
func (w *world) unblock(c *connection, p place, operation string, fence int64) card.State {
	w.Helper()
	state := begun(w, p.identity)
	for part := 1; !state.Finished(); part++ {
		run := p.next(w, state, operation, part, fence)
		run.PIN = w.seal(run, newPIN)
		result := c.run(run)
		c.ack(result)
		answered, ok := result.Card()
		if !ok {
			return state.NoResult()
		}
		var err error
		if state, err = state.Next(answered); err != nil {
			w.Fatal(err)
		}
	}
	return state
}
