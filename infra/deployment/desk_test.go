package deployment

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

// socketEvents are the captured events of a WebSocket API, by what happens.
func socketEvents(t *testing.T) map[string]map[string]any {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(root, "testdata/events/websocket-*.json"))
	events := map[string]map[string]any{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var event map[string]any
		if err := json.Unmarshal(text, &event); err != nil {
			t.Fatal(err)
		}
		events[strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "websocket-"), ".json")] = event
	}
	if len(events) != 3 || events["connect"] == nil || events["message"] == nil || events["disconnect"] == nil {
		t.Fatalf("captured events %v", files)
	}
	return events
}

// captives feeds the relay's function the captured events, which are of a bridge that is
// unknown, and those of other functions.
func (s *session) captives(function *testserver.Lambda) {
	s.t.Helper()
	for name, want := range map[string]int{"websocket-connect": http.StatusUnauthorized, "websocket-message": http.StatusOK, "websocket-disconnect": http.StatusOK,
		"http-get": http.StatusBadRequest, "eventbridge-schedule": http.StatusBadRequest} {
		text, err := os.ReadFile(filepath.Join(root, "testdata/events", name+".json"))
		if err != nil {
			s.t.Fatal(err)
		}
		s.socket(function, name, json.RawMessage(text), want)
	}
}

// socket invokes a function behind a WebSocket API.
func (s *session) socket(function *testserver.Lambda, name string, event any, want int) {
	s.t.Helper()
	payload, err := json.Marshal(event)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	out, err := function.Invoke(ctx, payload)
	var got struct{ StatusCode int }
	if err = errors.Join(err, json.Unmarshal(out, &got)); err != nil || got.StatusCode != want {
		s.t.Errorf("%s: %d, %v, want %d", name, got.StatusCode, err, want)
	}
}

// desk is a bridge, as the relay's function sees it, and a card in its reader.
type desk struct {
	*session
	bridges  *bridges
	relay    *testserver.Lambda
	tenant   string
	id       string
	identity ed25519.PrivateKey
	sealing  *ecdh.PrivateKey

	connection string
	events     map[string]map[string]any // of the connection

	card       *softcard.Card
	reader     *softcard.Reader
	credential string
}

// enrol makes a bridge.
func (s *session) enrol(c *cloud, function *testserver.Lambda, name string) *desk {
	s.t.Helper()
	d := &desk{session: s, bridges: c.bridges, relay: function, events: socketEvents(s.t)}
	invited := s.do("POST", "/v1/bridges", `{"name": "`+name+`"}`, http.StatusCreated)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	if d.sealing, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
		s.t.Fatal(err)
	}
	enrolment, err := json.Marshal(map[string]any{"code": invited["code"], "identity": public, "sealing": d.sealing.PublicKey().Bytes(),
		"program": "1.0.0", "system": "linux/amd64", "host": "desk-1"})
	if err != nil {
		s.t.Fatal(err)
	}
	enrolled := s.do("POST", relay.EnrolPath, string(enrolment), http.StatusOK)
	if enrolled["relay"] != relayURL {
		s.t.Errorf("the bridge is to connect to %v, want %s", enrolled["relay"], relayURL)
	}
	d.identity, d.id, d.tenant = private, enrolled["bridge"].(string), enrolled["tenant"].(string)
	return d
}

// connect tells the relay of a connection of the bridge, and says hello on it.
func (d *desk) connect(connection string, session relay.Session) {
	d.t.Helper()
	token, err := relay.NewToken(d.identity, relay.Claims{Tenant: d.tenant, Bridge: d.id, Relay: relayURL, ID: ulid.Make().String(), At: time.Now()})
	if err != nil {
		d.t.Fatal(err)
	}
	d.connection = connection
	for _, event := range d.events {
		event["requestContext"].(map[string]any)["connectionId"] = connection
	}
	d.events["connect"]["multiValueHeaders"].(map[string]any)["Authorization"] = []string{"Bearer " + token.Reveal()}
	d.socket(d.relay, "connect", d.events["connect"], http.StatusOK)
	d.bridges.connect(connection)
	if m := d.asks(relay.Message{Hello: &relay.Hello{Program: "1.0.0", System: "linux/amd64", Session: session}}); m.Welcome == nil {
		d.t.Fatalf("hello is answered %+v", m)
	}
}

func (d *desk) disconnect() {
	d.t.Helper()
	d.socket(d.relay, "disconnect", d.events["disconnect"], http.StatusOK)
}

// says sends a message and returns what the bridge is sent meanwhile.
func (d *desk) says(m relay.Message) []relay.Message {
	d.t.Helper()
	body, err := relay.Encode(m)
	if err != nil {
		d.t.Fatal(err)
	}
	d.events["message"]["body"] = string(body)
	d.socket(d.relay, "message", d.events["message"], http.StatusOK)
	return d.bridges.take(d.connection)
}

// asks is says where there is one answer.
func (d *desk) asks(m relay.Message) relay.Message {
	d.t.Helper()
	answers := d.says(m)
	if len(answers) != 1 {
		d.t.Fatalf("%+v is answered %+v, want one message", m, answers)
	}
	return answers[0]
}

// runs runs a script on the card, with the new PIN that was typed or that is sealed in it.
func (d *desk) runs(run relay.Run, typed string) relay.Result {
	d.t.Helper()
	s := run.Script
	if run.PIN != nil {
		pin, err := relay.OpenPIN(d.sealing, relay.Binding{Tenant: d.tenant, Operation: s.Operation, Credential: run.Credential, Fence: s.Fence}, *run.PIN)
		if err != nil {
			d.t.Fatal(err)
		}
		typed = pin.Reveal()
	}
	connection, err := d.reader.Connect()
	if err != nil {
		d.t.Fatal(err)
	}
	return relay.Result{Operation: s.Operation, Part: s.Part, Run: apdu.Run(d.t.Context(), s,
		func(apdu.Slot) ([]byte, error) { return []byte(typed), nil },
		func(_ context.Context, command []byte) ([]byte, error) { return connection.Transmit(command) })}
}

// obeys runs the scripts among what the bridge was sent, and those that follow, until
// there are none, and returns the rest of what it was sent.
func (d *desk) obeys(sent []relay.Message, typed string) (rest []relay.Message) {
	d.t.Helper()
	for len(sent) > 0 {
		m := sent[0]
		sent = sent[1:]
		if m.Run == nil {
			rest = append(rest, m)
			continue
		}
		result := d.runs(*m.Run, typed)
		answers := d.says(relay.Message{Result: &result})
		if last := len(answers) - 1; last < 0 || answers[last].Ack == nil || *answers[last].Ack != (relay.Ack{Operation: result.Operation, Part: result.Part}) {
			d.t.Fatalf("the result of %s/%d is answered %+v, want at last that it may be forgotten", result.Operation, result.Part, answers)
		} else {
			sent = append(sent, answers[:last]...)
		}
	}
	return rest
}

// bridge is a bridge's life with the relay's function: it enrols, connects, goes, comes
// again, reports a card and is revoked.
func (s *session) bridge(c *cloud, function *testserver.Lambda) {
	s.t.Helper()
	d := s.enrol(c, function, "service desk")
	d.connect("L0SM9cOFvHcCIhw=", relay.Service)
	d.disconnect()

	d.connect("P-S_9e-7liACH9A=", relay.Service)
	if m := d.asks(relay.Message{Ping: &relay.Ping{}}); m.Pong == nil {
		s.t.Errorf("ping is answered %+v", m)
	}
	report := relay.Readers{Sequence: 1, Readers: []relay.Reader{{Name: "Reader 0", Card: &relay.Card{Insertion: "1"}}}}
	if m := d.asks(relay.Message{Readers: &report}); m.Run == nil {
		s.t.Errorf("a card is answered %+v, want a script that finds out what it is", m)
	}
	s.do("DELETE", "/v1/bridges/"+d.id, "", http.StatusNoContent)
	if told := c.bridges.take(d.connection); len(told) != 1 || told[0].Goodbye == nil || c.bridges.connected(d.connection) {
		s.t.Errorf("a revoked bridge is told %+v, connected %v", told, c.bridges.connected(d.connection))
	}
	d.disconnect()
}

var mailedCode = regexp.MustCompile(`(?m)^ +(\d{3}) ?(\d{3})$`)

// unblocks are those of a card in software: by its holder at the bridge's terminal, with
// the code from the mail, and by an operator with a sealed PIN. The bridge stays connected.
func (s *session) unblocks(c *cloud, function *testserver.Lambda, messaging string) *desk {
	s.t.Helper()
	d := s.enrol(c, function, "reception")
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	var err error
	if d.card, err = softcard.New(softcard.Config{Profile: softcard.PivApplet, ID: id, Blocked: true, Rand: rand.Reader}); err != nil {
		s.t.Fatal(err)
	}
	d.reader = softcard.NewReader()
	d.reader.Insert(d.card)
	template := s.do("POST", "/v1/card-templates", `{"name": "Staff", "family": "PIV", "channels": ["selfService", "operator"], "messaging": "`+messaging+`", "pinValidDays": 365}`,
		http.StatusCreated)["id"].(string)
	holder := s.do("POST", "/v1/users", `{"username": "grace", "mail": "grace@example.org"}`, http.StatusCreated)["id"].(string)
	d.credential = s.do("POST", "/v1/credentials", `{"family": "PIV", "cardId": "`+hex.EncodeToString(id)+`", "template": "`+template+`", "holder": "`+holder+`", "puk": "`+softcard.FactoryPUK+`"}`,
		http.StatusCreated)["id"].(string)

	d.connect("Q2x4bd9vliACJkQ=", relay.Terminal)
	report := relay.Readers{Sequence: 1, Readers: []relay.Reader{{Name: "Reader 0", Card: &relay.Card{Insertion: "7-1", ATR: d.card.ATR()}}}}
	if rest := d.obeys(d.says(relay.Message{Readers: &report}), ""); len(rest) != 1 || rest[0].Known == nil {
		s.t.Errorf("a card that is identified is answered %+v, want what is known of it", rest)
	}

	// By herself.
	asked := d.asks(relay.Message{Start: &relay.Start{Ref: "1", Reader: "Reader 0", Insertion: "7-1"}}).Operation
	if asked == nil || asked.Next != relay.NextCode || asked.Credential != d.credential {
		s.t.Fatalf("a person who asks for an unblock is answered %+v, want a code asked for", asked)
	}
	mails, err := testserver.SESMails(c.ses)
	if err != nil {
		s.t.Fatal(err)
	}
	found := mailedCode.FindStringSubmatch(mails[len(mails)-1].Body.Text)
	if found == nil {
		s.t.Fatalf("no code in the mail %+v", mails[len(mails)-1])
	}
	code := found[1] + found[2]
	wrong := "000000"
	if code == wrong {
		wrong = "000001"
	}
	prove := func(code string) relay.Message {
		return d.asks(relay.Message{Prove: &relay.Prove{Ref: "2", Operation: asked.ID, Code: relay.Code{Text: secret.New(code)}}})
	}
	if m := prove(wrong); m.Problem == nil || m.Problem.Code != "wrong" {
		s.t.Errorf("a wrong code is answered %+v", m)
	}
	if m := prove(code); m.Operation == nil || m.Operation.Next != relay.NextPIN || m.Operation.Policy == nil {
		s.t.Fatalf("the code is answered %+v, want the new PIN asked for", m)
	}
	const typed = "39185207"
	sent := d.says(relay.Message{Ready: &relay.Ready{Ref: "3", Operation: asked.ID}})
	d.succeeds(d.obeys(sent, typed), asked.ID, typed)

	// By an operator.
	const sealedPIN = "71530264"
	op := s.do("POST", "/v1/unblocks", `{"credential": "`+d.credential+`", "bridge": "`+d.id+`", "channel": "operator", "statement": "staff badge"}`, http.StatusCreated)
	unblock := op["id"].(string)
	shown := d.asks(relay.Message{Look: &relay.Look{Ref: "4", Operation: unblock}})
	if shown.Operation == nil || shown.Operation.Next != relay.NextPIN {
		s.t.Fatalf("the person at the bridge is shown %+v, want the new PIN asked for", shown)
	}
	seal := op["next"].(map[string]any)["seal"].(map[string]any)
	binding := relay.Binding{Tenant: d.tenant, Operation: unblock, Credential: d.credential, Fence: shown.Operation.Fence}
	if seal["publicKey"] != hex.EncodeToString(d.sealing.PublicKey().Bytes()) || seal["associatedData"] != string(binding.AssociatedData()) {
		s.t.Errorf("the PIN is to be sealed %v", seal)
	}
	sealed, err := relay.SealPIN(d.sealing.PublicKey().Bytes(), binding, secret.New(sealedPIN))
	if err != nil {
		s.t.Fatal(err)
	}
	body, err := json.Marshal(sealed)
	if err != nil {
		s.t.Fatal(err)
	}
	s.do("POST", "/v1/unblocks/"+unblock+"/pin", string(body), http.StatusOK)
	d.succeeds(d.obeys(c.bridges.take(d.connection), ""), unblock, sealedPIN)
	return d
}

// succeeds checks that an unblock has succeeded, and that the person at the bridge was told.
func (d *desk) succeeds(told []relay.Message, unblock, pin string) {
	d.t.Helper()
	told = slices.DeleteFunc(told, func(m relay.Message) bool { return m.Known != nil })
	if last := len(told) - 1; last < 0 || told[last].Operation == nil || told[last].Operation.ID != unblock || told[last].Operation.State != "succeeded" {
		d.t.Errorf("the person at the bridge is told %+v, want of a success", told)
	}
	op := d.do("GET", "/v1/unblocks/"+unblock, "", http.StatusOK)
	if outcome, _ := op["outcome"].(map[string]any); op["state"] != "succeeded" || op["notice"] != "sent" || outcome["pin"] != "yes" || outcome["puk"] != "yes" {
		d.t.Errorf("unblock %v", op)
	}
	if !d.card.PINIs(pin) || d.card.PUKIs(softcard.FactoryPUK) {
		d.t.Error("the card has another PIN than was given, or its PUK is the one it came with")
	}
}

// bridges are the other ends of WebSocket connections.
type bridges struct {
	mu    sync.Mutex
	open  map[string]bool
	posts map[string][]relay.Message // by connection
}

func (b *bridges) Post(_ context.Context, id string, data []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open[id] {
		return gateway.ErrGone
	}
	m, err := relay.Decode(data)
	if err != nil {
		return err
	}
	b.posts[id] = append(b.posts[id], m)
	return nil
}

func (b *bridges) Close(_ context.Context, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.open, id)
	return nil
}

func (b *bridges) connect(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open[id] = true
}

func (b *bridges) connected(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open[id]
}

// take returns what was posted to a connection since it was last asked.
func (b *bridges) take(id string) []relay.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	posts := b.posts[id]
	delete(b.posts, id)
	return posts
}
