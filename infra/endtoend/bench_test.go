//go:build linux && cgo && !nopcsc

package endtoend

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/ebfe/scard"
	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/functions/api/rest"
	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/softcard/pcscd"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

// BenchmarkScript compares the script of a PIV unblock that the cloud has a bridge run,
// from when it is posted until its result is received, with the same commands sent to a
// like card by scard, through the same pcscd. There is no TLS. A card in software answers
// at once; one with a chip does not. The metrics are medians:
//
//	ns/op         posted to received
//	direct-ns     connect, transaction, the commands, disconnect
//	x-direct      the ratio of the two: at most 2 is wanted
//	commands-ns   the commands alone, on a card that is held
//	api-ns        from the request with the PIN until the API tells the end
func BenchmarkScript(b *testing.B) {
	b.Run("at-once", func(b *testing.B) { benchmarkScript(b, 0) })
	b.Run("chip-of-"+chipTime.String(), func(b *testing.B) { benchmarkScript(b, chipTime) })
}

func benchmarkScript(b *testing.B, delay time.Duration) {
	in, watch := host(b)
	through, id := newCard(b, softcard.Config{Profile: softcard.CanoKey})
	var template struct{ ID string }
	in.into(&template, 201, "POST", "/v1/card-templates", object{"name": "Staff", "family": "PIV", "channels": []string{"operator"}})
	cred := in.register("PIV", id, template.ID, object{"puk": softcard.FactoryPUK})
	in.pcscd.Insert(0, through)
	in.seen(cred)
	direct := newDirect(b, in, template.ID)
	var sent [2]headers
	through.Tap(sent[0].see)
	direct.card.Tap(sent[1].see)

	var relayed, whole, connected, held []time.Duration
	for b.Loop() {
		sent[0].reset()
		sent[1].reset()
		slow(through, delay)
		slow(direct.card, delay)
		op, status, err := in.begin(cred)
		if err != nil || status != 201 {
			b.Fatalf("start: %d %v %s", status, err, op.Reason)
		}
		began := time.Now()
		if op, status, err = in.givePIN(op, "80316427"); err != nil || status != 200 {
			b.Fatalf("give PIN: %d %v %s", status, err, op.Reason)
		}
		op = in.ended(op)
		whole = append(whole, time.Since(began))
		if op.State != "succeeded" || op.Outcome.PUK != "yes" {
			b.Fatalf("%v", op)
		}
		relayed = append(relayed, watch.took(op.ID))
		c, h := direct.run()
		connected, held = append(connected, c), append(held, h)
		if !slices.Equal(sent[0].list(), sent[1].list()) {
			b.Fatalf("the commands were % X over the relay, % X directly", sent[0].list(), sent[1].list())
		}
	}
	b.ReportMetric(float64(median(relayed)), "ns/op")
	b.ReportMetric(float64(median(connected)), "direct-ns")
	b.ReportMetric(float64(median(held)), "commands-ns")
	b.ReportMetric(float64(median(relayed))/float64(median(connected)), "x-direct")
	b.ReportMetric(float64(median(whole)), "api-ns")
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// headers are those of the commands that a card was sent.
type headers struct {
	mu  sync.Mutex
	all []uint32
}

func (h *headers) see(command []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, uint32(command[0])<<24|uint32(command[1])<<16|uint32(command[2])<<8|uint32(command[3]))
}

func (h *headers) list() []uint32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.all)
}

func (h *headers) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = nil
}

// stopwatch is between the cloud and its WebSockets.
type stopwatch struct {
	gateway.Connections
	next gateway.SocketFunction

	mu       sync.Mutex
	posted   map[string]time.Time
	received map[string]time.Time
}

// Post implements gateway.Connections.
func (s *stopwatch) Post(ctx context.Context, connection string, data []byte) error {
	if m, err := relay.Decode(data); err == nil && m.Run != nil {
		s.mu.Lock()
		s.posted[m.Run.Script.Operation] = time.Now()
		s.mu.Unlock()
	}
	return s.Connections.Post(ctx, connection, data)
}

func (s *stopwatch) function(ctx context.Context, event events.APIGatewayWebsocketProxyRequest) (events.APIGatewayProxyResponse, error) {
	now := time.Now()
	if m, err := relay.Decode([]byte(event.Body)); err == nil && m.Result != nil {
		s.mu.Lock()
		s.received[m.Result.Operation] = now
		s.mu.Unlock()
	}
	return s.next(ctx, event)
}

func (s *stopwatch) took(operation string) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received[operation].Sub(s.posted[operation])
}

// host is install with the cloud in this process, so that its messages can be timed.
func host(b *testing.B) (*installation, *stopwatch) {
	b.Helper()
	dir := b.TempDir()
	in := &installation{TB: b, pcscd: pcscd.Start(b), dir: dir, data: dir, state: filepath.Join(dir, "bridge")}
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	table, err := bolt.Open(filepath.Join(dir, "pinward.db"))
	must(err)
	b.Cleanup(func() { _ = table.Close() })
	root, err := vault.LocalRoot(filepath.Join(dir, "root.key"))
	must(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	in.url = "http://" + listener.Addr().String()

	s := &stopwatch{posted: map[string]time.Time{}, received: map[string]time.Time{}}
	front := gateway.NewSocketFront(s.function, time.Now, rand.Reader)
	s.Connections = front
	system := wiring.New(wiring.Parts{
		Table: table, Root: root, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Rate: rest.Rate{PerSecond: 1e6, Burst: 1e6}, Connections: s, RelayURL: "ws" + in.url[len("http"):] + "/relay",
	})
	s.next = gateway.SocketHandler(system.Relay())
	_, key, err := system.Tenants.Create(context.Background(), audit.Actor{Kind: audit.System, ID: "benchmark"}, tenant.Tenant{ID: "demo",
		Settings: tenant.Settings{DisplayName: "Demo Ltd", TimeZone: "UTC", Language: "en"}})
	must(err)
	in.key = key.Reveal()
	mux := http.NewServeMux()
	mux.Handle("/relay", front)
	mux.Handle("/", gateway.Front(gateway.Handler(system.API()), time.Now, func() string { return ulid.Make().String() }))
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(listener) }()
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(front.Shutdown(ctx), server.Shutdown(ctx)); err != nil {
			b.Errorf("shut down: %v", err)
		}
	})
	in.enrol()
	in.startBridge()
	return in, s
}

// direct runs the script on a card of its own by scard.
type direct struct {
	testing.TB
	card *softcard.Card
	id   string
	puks [2]secret.Text // the one that the card has first
}

func newDirect(b *testing.B, in *installation, template string) *direct {
	b.Helper()
	// libpcsclite asks for the socket's path once in a process, so it must be one that
	// stays.
	socket := filepath.Join(os.TempDir(), fmt.Sprintf("pinward-endtoend-%d", os.Getpid()))
	_ = os.Remove(socket)
	if err := os.Symlink(in.pcscd.Socket(), socket); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.Remove(socket) })
	b.Setenv("PCSCLITE_CSOCK_NAME", socket)
	d := &direct{TB: b, puks: [2]secret.Text{secret.New(softcard.FactoryPUK), secret.New("73051948")}}
	var id []byte
	d.card, id = newCard(b, softcard.Config{Profile: softcard.CanoKey})
	d.id = hex.EncodeToString(id)
	cred := in.register("PIV", id, template, nil)
	in.pcscd.Insert(1, d.card)
	in.seen(cred) // the bridge is done with it
	return d
}

// run returns how long all took, and the commands alone.
func (d *direct) run() (connected, commands time.Duration) {
	d.Helper()
	state, err := card.PIV.Unblock(d.id, card.Claim(1, card.RetryCounter{}), 2)
	if err != nil {
		d.Fatal(err)
	}
	made, err := state.Script(card.Materials{PUK: func(slot int) (secret.Text, error) { return d.puks[slot-1], nil }, Policy: card.PIV.Policy()})
	if err != nil {
		d.Fatal(err)
	}
	script := apdu.Script{Operation: "direct", Part: 1, Fence: 1, Deadline: time.Now().Add(time.Minute), Steps: made.Steps}
	d.puks[0], d.puks[1] = d.puks[1], d.puks[0]

	began := time.Now()
	sc, err := scard.EstablishContext()
	if err != nil {
		d.Fatal(err)
	}
	c, err := sc.Connect(pcscd.Readers[1], scard.ShareShared, scard.ProtocolAny)
	if err == nil {
		err = c.BeginTransaction()
	}
	if err != nil {
		d.Fatal(err)
	}
	from := time.Now()
	result := apdu.Run(context.Background(), script, func(slot apdu.Slot) ([]byte, error) {
		if slot.Secret != card.NewPIN {
			return nil, errors.New("no such secret")
		}
		return []byte("80316427"), nil
	}, func(_ context.Context, command []byte) ([]byte, error) { return c.Transmit(command) })
	commands = time.Since(from)
	err = errors.Join(c.EndTransaction(scard.LeaveCard), c.Disconnect(scard.LeaveCard), sc.Release())
	connected = time.Since(began)
	if result.End != apdu.Done || err != nil {
		d.Fatalf("directly: %+v %v", result, err)
	}
	return connected, commands
}
