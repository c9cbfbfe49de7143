package softcard_test

import (
	"bytes"
	"context"
	"crypto/des"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/problem"
)

const (
	selectPIV  = "00A4040009A00000030800001000"
	verify     = "0020008008313233343536FFFF"
	tries      = "00200080"
	unblock    = "002C0080103132333435363738363534333231FFFF"
	getCHUID   = "00CB3FFF055C035FC10200"
	wrongClass = "80CB3FFF055C035FC10200"
)

func piv(t testing.TB) *softcard.Card {
	t.Helper()
	return newCard(t, softcard.Config{Profile: softcard.PivApplet, Rand: rand.Reader})
}

func TestFaults(t *testing.T) {
	for _, test := range []struct {
		fault   softcard.Fault
		answer  string // to the unblock, in hex
		err     error
		effect  bool
		then    string // to asking for tries left
		thenErr error
		secrets int
	}{
		{softcard.Fault{Kind: softcard.Slow, Delay: time.Second}, "9000", nil, true, "63C5", nil, 16},
		{softcard.Fault{Kind: softcard.Pull}, "", softcard.ErrRemoved, false, "", softcard.ErrRemoved, 0},
		{softcard.Fault{Kind: softcard.ResetCard}, "", softcard.ErrReset, false, "6986", nil, 0},
		{softcard.Fault{Kind: softcard.WrongSW, SW: apdu.SWMemoryFailure}, "6581", nil, false, "63C5", nil, 16},
		{softcard.Fault{Kind: softcard.Empty}, "", nil, false, "63C5", nil, 0},
		{softcard.Fault{Kind: softcard.Lose}, "", softcard.ErrLost, true, "63C5", nil, 16},
	} {
		t.Run(fmt.Sprint(test.fault.Kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				card := piv(t)
				transmit(t, card, selectPIV, apdu.SWOK)
				test.fault.Step = 2
				card.Inject(test.fault)
				transmit(t, card, tries, 0x63C5)
				start := time.Now()
				answer, err := card.Transmit(unhex(unblock))
				if got := fmt.Sprintf("%X", answer); got != test.answer || !errors.Is(err, test.err) {
					t.Errorf("got %s, %v; want %s, %v", got, err, test.answer, test.err)
				}
				if took := time.Since(start); took != test.fault.Delay {
					t.Errorf("took %s, want %s", took, test.fault.Delay)
				}
				if got := card.PINIs("654321"); got != test.effect {
					t.Errorf("took effect: %t, want %t", got, test.effect)
				}
				if got := card.Inspect().SecretBytes; got != test.secrets {
					t.Errorf("%d secret bytes, want %d", got, test.secrets)
				}
				answer, err = card.Transmit(unhex(tries))
				if got := fmt.Sprintf("%X", answer); got != test.then || !errors.Is(err, test.thenErr) {
					t.Errorf("then got %s, %v; want %s, %v", got, err, test.then, test.thenErr)
				}
				card.PowerOn()
				transmit(t, card, selectPIV, apdu.SWOK)
			})
		})
	}
}

// TestRemovedWhileSlow: a command that waits ends when the card goes.
func TestRemovedWhileSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card := piv(t)
		transmit(t, card, selectPIV, apdu.SWOK)
		card.Inject(softcard.Fault{Step: 1, Delay: time.Second}, softcard.Fault{Step: 2, Delay: time.Second})
		go func() { time.Sleep(time.Second / 2); card.PowerOff() }()
		if _, err := card.Transmit(unhex(verify)); !errors.Is(err, softcard.ErrRemoved) {
			t.Errorf("powered off: %v", err)
		}
		card.PowerOn()
		go func() { time.Sleep(time.Second / 2); card.Reset() }()
		if _, err := card.Transmit(unhex(verify)); !errors.Is(err, softcard.ErrReset) {
			t.Errorf("reset: %v", err)
		}
		if got := card.Inspect().SecretBytes; got != 0 {
			t.Errorf("%d secret bytes", got)
		}
	})
}

func TestReader(t *testing.T) {
	reader, first, second := softcard.NewReader(), piv(t), piv(t)
	if _, err := reader.Connect(); !errors.Is(err, softcard.ErrRemoved) {
		t.Errorf("connect to nothing: %v", err)
	}
	_, changed := reader.Card()
	reader.Insert(first)
	<-changed
	connect := func() *softcard.Connection {
		t.Helper()
		c, err := reader.Connect()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	send := func(c *softcard.Connection, command, want string, wantErr error) {
		t.Helper()
		answer, err := c.Transmit(unhex(command))
		if got := fmt.Sprintf("%X", answer); !strings.HasSuffix(got, want) || !errors.Is(err, wantErr) {
			t.Errorf("%s: got %s, %v; want %s, %v", command, got, err, want, wantErr)
		}
	}
	one, two := connect(), connect()
	send(one, selectPIV, "9000", nil)
	send(two, verify, "9000", nil) // both are in one room
	if err := two.Reset(); err != nil {
		t.Fatal(err)
	}
	send(one, verify, "", softcard.ErrReset)
	send(one, verify, "", softcard.ErrReset)
	send(two, verify, "6986", nil)
	send(connect(), selectPIV, "9000", nil)

	_, changed = reader.Card()
	reader.Insert(second)
	<-changed
	send(two, verify, "", softcard.ErrRemoved)
	if _, err := first.Transmit(unhex(verify)); !errors.Is(err, softcard.ErrRemoved) {
		t.Errorf("the card removed has power: %v", err)
	}
	if err := two.Reset(); !errors.Is(err, softcard.ErrRemoved) {
		t.Errorf("reset of the card removed: %v", err)
	}
	if got := second.Inspect().Commands; got != 0 {
		t.Errorf("the card put in got %d commands that were for the other", got)
	}
	three := connect()
	_, changed = reader.Card()
	second.Inject(softcard.Fault{Step: 1, Kind: softcard.Pull})
	send(three, verify, "", softcard.ErrRemoved)
	<-changed
	if card, _ := reader.Card(); card != nil || reader.Remove() != nil {
		t.Error("the card that was pulled is still in")
	}
	reader.Insert(second)
	send(three, verify, "", softcard.ErrRemoved)
	if reader.Remove() != second {
		t.Error("another card was in the reader")
	}
}

// TestConcurrency is for the race detector.
func TestConcurrency(t *testing.T) {
	reader, cards := softcard.NewReader(), []*softcard.Card{piv(t), piv(t)}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 200 {
				reader.Insert(cards[i%2])
				if c, err := reader.Connect(); err == nil {
					_, _ = c.Transmit(unhex(selectPIV))
					_, _ = c.Transmit(unhex(getCHUID))
					_ = c.Reset()
				}
				cards[i%2].Inspect()
			}
		})
	}
	wg.Wait()
}

// TestChunks reads a long object in the three ways in which cards give it out.
func TestChunks(t *testing.T) {
	for _, config := range []softcard.Config{
		{Profile: softcard.PivApplet},
		{Profile: softcard.CanoKey, Chunk: 7},
		{Profile: softcard.CanoKey, ExactLe: true},
	} {
		config.Rand = rand.Reader
		card := newCard(t, config)
		var seen []string
		send := func(_ context.Context, command []byte) ([]byte, error) {
			answer, err := card.Transmit(command)
			seen = append(seen, fmt.Sprintf("%X", answer[len(answer)-2:]))
			return answer, err
		}
		object := apdu.EncodeTLV(apdu.TLV{Tag: 0x53, Value: make([]byte, 600)})
		proveAdmin(t, card)
		put := apdu.Command{INS: 0xDB, P1: 0x3F, P2: 0xFF, Data: append(unhex("5C035FC105"), object...)}
		if r, err := apdu.Transmit(t.Context(), send, put); err != nil || r.SW != apdu.SWOK {
			t.Fatalf("%s: %v, %v", put, r.SW, err)
		}
		seen = nil
		r, err := apdu.Transmit(t.Context(), send, apdu.Command{INS: 0xCB, P1: 0x3F, P2: 0xFF, Data: unhex("5C035FC105"), Le: 256})
		if err != nil || r.SW != apdu.SWOK || cmp.Diff(object, r.Data) != "" {
			t.Errorf("%s: got %d bytes, %s, %v", config.Profile, len(r.Data), r.SW, err)
		}
		want := []string{"61FF", "615E", "9000"}
		switch {
		case config.Chunk > 0:
			if want = []string{"6107"}; len(seen) == 87 {
				seen = seen[:1]
			}
		case config.ExactLe:
			want = []string{"6100", "615C", "9000"} // 6Cxx cannot say 604
		}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("%s: %s", config.Profile, diff)
		}
	}
}

// proveAdmin selects PIV and shows the management key by a witness.
func proveAdmin(t *testing.T, card *softcard.Card) {
	t.Helper()
	send := func(_ context.Context, command []byte) ([]byte, error) { return card.Transmit(command) }
	c := apdu.Command{INS: 0x87, P1: 0x03, P2: 0x9B, Data: unhex("7C028000"), Le: 256}
	sending(t, card, unhex(selectPIV))
	r, err := apdu.Transmit(t.Context(), send, c)
	if err != nil {
		t.Fatal(err)
	}
	witness, err := apdu.FindTLV(r.Data, 0x7C, 0x80)
	if err != nil {
		t.Fatal(err)
	}
	c.Data = apdu.EncodeTLV(apdu.TLV{Tag: 0x7C, Value: apdu.EncodeTLV(
		apdu.TLV{Tag: 0x80, Value: decipher(3, softcard.FactoryAdminKey, witness)}, apdu.TLV{Tag: 0x81, Value: make([]byte, 8)})})
	if r, err := apdu.Transmit(t.Context(), send, c); err != nil || r.SW != apdu.SWOK || !card.Inspect().AdminVerified {
		t.Fatalf("%s: %v, %v", c, r.SW, err)
	}
}

// TestPIVReplay: an answer to a challenge, right or not, is the only one.
func TestPIVReplay(t *testing.T) {
	random := bytes.NewBuffer(unhex(strings.Repeat("00", 21) + "0001020304050607" + "0001020304050607"))
	card := newCard(t, softcard.Config{Profile: softcard.CanoKey, ID: make([]byte, 16), Rand: random})
	transmit(t, card, selectPIV, apdu.SWOK)
	right := "0087039B0C7C0A8208" + fmt.Sprintf("%X", encipher(unhex("0001020304050607")))
	transmit(t, card, right, apdu.SWSecurityStatus)
	transmit(t, card, "0087039B047C02810000", apdu.SWOK)
	transmit(t, card, right, apdu.SWOK)
	transmit(t, card, right, apdu.SWSecurityStatus)
	transmit(t, card, "0087039B047C02810000", apdu.SWOK)
	transmit(t, card, "0087039B0C7C0A82080000000000000000", apdu.SWSecurityStatus)
	transmit(t, card, right, apdu.SWSecurityStatus)
}

// encipher is 3DES of a block under the factory's key.
func encipher(b []byte) []byte {
	block, err := des.NewTripleDESCipher(softcard.FactoryAdminKey)
	if err != nil {
		panic(err)
	}
	out := make([]byte, len(b))
	block.Encrypt(out, b)
	return out
}

func TestSelectKeepsThePINOnly(t *testing.T) {
	card := piv(t)
	proveAdmin(t, card)
	transmit(t, card, verify, apdu.SWOK)
	transmit(t, card, selectPIV, apdu.SWOK)
	if got := card.Inspect(); !got.PINVerified || got.AdminVerified {
		t.Errorf("%+v", got)
	}
}

// TestBothBlocked: one card then erases its keys, the other keeps them; both can be
// made new.
func TestBothBlocked(t *testing.T) {
	for profile, left := range map[softcard.Profile]int{softcard.PivApplet: 0, softcard.CanoKey: 1} {
		card := newCard(t, softcard.Config{Profile: profile, Rand: rand.Reader})
		proveAdmin(t, card)
		transmit(t, card, "0047009A05AC0380011100", apdu.SWOK)
		for i := range 5 {
			if got := card.Inspect().Keys; got != 1 {
				t.Fatalf("%d keys after %d wrong PINs", got, i)
			}
			sending(t, card, unhex("0020008008303030303030FFFF"))
		}
		for range 3 {
			sending(t, card, unhex("002C0080103030303030303030363534333231FFFF"))
		}
		if got := card.Inspect(); got.Keys != left || got.PINTries != 0 || got.PUKTries != 0 {
			t.Errorf("%s: %+v", profile, got)
		}
		transmit(t, card, unblock, apdu.SWBlocked)
		transmit(t, card, "00FB0000", apdu.SWOK)
		transmit(t, card, verify, apdu.SWOK)
		transmit(t, card, unblock, apdu.SWOK)
	}
}

// TestExactLe: the command answered 6Cxx is carried out once.
func TestExactLe(t *testing.T) {
	card := newCard(t, softcard.Config{Profile: softcard.CanoKey, ExactLe: true, Rand: rand.Reader})
	transmit(t, card, selectPIV, apdu.SWOK)
	transmit(t, card, "0087039B047C02810000", 0x6C0C)
	challenge := transmit(t, card, "0087039B047C0281000C", apdu.SWOK)
	if len(challenge) != 12 {
		t.Errorf("%d bytes", len(challenge))
	}
	transmit(t, card, "0087039B047C02810000", 0x6C0C)
	transmit(t, card, "00FD000003", apdu.SWOK)
	if again := transmit(t, card, "0087039B047C0281000C", apdu.SWOK); bytes.Equal(challenge, again) {
		t.Error("the answer that was kept is given twice")
	}
	transmit(t, card, getCHUID, 0x6C3D)
	transmit(t, card, "00CB3FFF055C035FC1073D", 0x6C35) // another object: not the answer kept
}

func TestNotInTheTraces(t *testing.T) {
	card := piv(t)
	for _, test := range []struct {
		command string
		want    apdu.SW
	}{
		{getCHUID, apdu.SWCommandNotAllowed}, // nothing is selected
		{"00A4040004A0000003", apdu.SWNotFound},
		{"00A404000BA000000397425446590201", apdu.SWNotFound},
		{selectPIV, apdu.SWOK},
		{wrongClass, apdu.SWClassNotSupported},
		{"00000000", apdu.SWInstructionNotSupported},
		{"0020", apdu.SWWrongLength},
		{"00CB3FFF095C035FC102", apdu.SWWrongLength},
		{"00CB3FFF055C035FC10500", apdu.SWNotFound},
		{"00CB0000055C035FC10200", apdu.SWIncorrectP1P2},
		{"00C0000000", apdu.SWConditionsNotSatisfied},
		{"00200081083132333435363738", apdu.SWReferenceDataNotFound},
		{"0020008006313233343536", apdu.SWWrongData},
		{"00FB0000", apdu.SWSecurityStatus},
	} {
		transmit(t, card, test.command, test.want)
	}
	if got := card.Inspect(); got.PINTries != 5 || got.PUKTries != 3 {
		t.Errorf("%+v", got)
	}
}

func TestConfig(t *testing.T) {
	_, err := softcard.New(softcard.Config{Profile: "paper", PIN: "1", PUK: "1", AdminKey: []byte{1}, ID: []byte{1}, FASCN: []byte{1}, Chunk: 999})
	var invalid *problem.InvalidError
	if !errors.As(err, &invalid) || len(invalid.Violations) != 8 {
		t.Errorf("got %v", err)
	}
	if _, err := softcard.New(softcard.Config{Profile: softcard.GIDS, Blank: true, Blocked: true, Rand: zeros{}}); !errors.As(err, &invalid) {
		t.Errorf("blank and blocked: %v", err)
	}
	for _, profile := range softcard.Profiles {
		card := newCard(t, softcard.Config{Profile: profile, Blocked: true, Rand: zeros{}, ID: make([]byte, 16)})
		sending(t, card, selects[profile])
		right := verify
		if profile == softcard.GIDS {
			right = "0020008006313233343536"
		}
		if got := card.Inspect(); got.PINTries != 0 || got.PINMost == 0 || sending(t, card, unhex(right)) != apdu.SWBlocked {
			t.Errorf("%s, blocked: %+v", profile, got)
		}
	}
	card := newCard(t, softcard.Config{Profile: softcard.CanoKey, PIN: "87654321", PUK: "11111111", Algorithm: 8, AdminKey: make([]byte, 16), Rand: rand.Reader})
	if !card.PINIs("87654321") || !card.PUKIs("11111111") || !card.AdminKeyIs(make([]byte, 16)) || card.PINIs("123456") || card.PUKIs("12345678") {
		t.Error("the card is not as it was configured")
	}
}

// TestServe plays vpcd: what it sends when a card is inserted, commands, a reset, and
// the removal by either side.
func TestServe(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	card := piv(t)
	served := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	insert := func() net.Conn {
		t.Helper()
		go func() { served <- softcard.Serve(ctx, listener.Addr().String(), card) }()
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		return conn
	}
	send := func(conn net.Conn, frame string) {
		t.Helper()
		b := unhex(frame)
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(conn net.Conn, frame, want string) {
		t.Helper()
		send(conn, frame)
		length := make([]byte, 2)
		if _, err := io.ReadFull(conn, length); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, binary.BigEndian.Uint16(length))
		if _, err := io.ReadFull(conn, answer); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%X", answer); !strings.HasSuffix(got, want) {
			t.Errorf("%s: got %s, want %s", frame, got, want)
		}
	}
	conn := insert()
	ask(conn, "04", "3B80800101")
	ask(conn, "04", "3B80800101")
	send(conn, "01")
	ask(conn, "04", "3B80800101")
	ask(conn, selectPIV, "9000")
	ask(conn, verify, "9000")
	send(conn, "02")
	ask(conn, verify, "6986")
	send(conn, "00")
	send(conn, "01")
	ask(conn, selectPIV, "9000")
	card.Inject(softcard.Fault{Step: 1, Kind: softcard.ResetCard}, softcard.Fault{Step: 3, Kind: softcard.Empty})
	ask(conn, verify, "6986")
	ask(conn, verify, "")
	_ = conn.Close()
	if err := <-served; err == nil || errors.Is(err, softcard.ErrRemoved) {
		t.Errorf("the reader went: %v", err)
	}

	conn = insert()
	send(conn, "01")
	ask(conn, selectPIV, "9000")
	card.Inject(softcard.Fault{Step: 1, Kind: softcard.Lose})
	send(conn, unblock)
	if err := <-served; !errors.Is(err, softcard.ErrLost) || !card.PINIs("654321") {
		t.Errorf("answer lost: %v, took effect: %t", err, card.PINIs("654321"))
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the card is still in: %v", err)
	}

	insert()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("removed: %v", err)
	}
}
