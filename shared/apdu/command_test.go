package apdu_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/apdu"
)

// sameCommand compares commands by what they are, which they do not print.
var sameCommand = cmp.Comparer(func(a, b apdu.Command) bool {
	return a.CLA == b.CLA && a.INS == b.INS && a.P1 == b.P1 && a.P2 == b.P2 &&
		a.Le == b.Le && a.Extended == b.Extended && bytes.Equal(a.Data, b.Data)
})

func TestParseCommand(t *testing.T) {
	long := strings.Repeat("AB", 300)
	for _, test := range []struct {
		name, in string
		want     apdu.Command
	}{
		{"case 1", "00 20 00 80", apdu.Command{INS: 0x20, P2: 0x80}},
		{"case 2", "00 CA DF 30 05", apdu.Command{INS: 0xCA, P1: 0xDF, P2: 0x30, Le: 5}},
		{"case 2, all", "00 20 00 80 00", apdu.Command{INS: 0x20, P2: 0x80, Le: 256}},
		{"case 3", "10 22 81 A4 03 83 01 80", apdu.Command{CLA: 0x10, INS: 0x22, P1: 0x81, P2: 0xA4, Data: unhex("83 01 80")}},
		{"case 4", "00 CB 2F 01 02 5C 00 00", apdu.Command{INS: 0xCB, P1: 0x2F, P2: 0x01, Data: unhex("5C 00"), Le: 256}},
		{"case 2, extended", "00 CB 3F FF 00 01 00", apdu.Command{INS: 0xCB, P1: 0x3F, P2: 0xFF, Le: 256, Extended: true}},
		{"case 2, extended, all", "00 CB 3F FF 00 00 00", apdu.Command{INS: 0xCB, P1: 0x3F, P2: 0xFF, Le: 65536, Extended: true}},
		{"case 3, extended", "00 DB 3F FF 00 01 2C" + long, apdu.Command{INS: 0xDB, P1: 0x3F, P2: 0xFF, Data: unhex(long), Extended: true}},
		{"case 4, extended", "00 CB 3F FF 00 00 03 5C 01 7E 00 00", apdu.Command{INS: 0xCB, P1: 0x3F, P2: 0xFF, Data: unhex("5C 01 7E"), Le: 65536, Extended: true}},
	} {
		got, err := apdu.ParseCommand(unhex(test.in))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if !cmp.Equal(got, test.want, sameCommand) {
			t.Errorf("%s: %v with Le %d, extended %v", test.name, got, got.Le, got.Extended)
		}
		if back, err := got.Encode(); err != nil || !bytes.Equal(back, unhex(test.in)) {
			t.Errorf("%s: written as % X, %v", test.name, back, err)
		}
	}
}

func TestParseCommandErrors(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"", "a header has 4"},
		{"00 20 00", "a header has 4"},
		{"00 20 00 80 02 31", "Lc 2 and 1 bytes"},
		{"00 20 00 80 02 31 32 33 34", "Lc 2 and 4 bytes"},
		{"00 20 00 80 00 00", "lengths are extended"},
		{"00 20 00 80 00 00 00 31", "extended Lc of 0"},
		{"00 20 00 80 00 00 02 31", "Lc 2 and 1 bytes"},
		{"00 20 00 80 00 00 02 31 32 00", "Lc 2 and 3 bytes"},
		{"00 20 00 80 00 00 02 31 32 00 00 00", "Lc 2 and 5 bytes"},
	} {
		if _, err := apdu.ParseCommand(unhex(test.in)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v; want it to say %q", test.in, err, test.want)
		}
	}
}

func TestEncodeChoosesTheForm(t *testing.T) {
	for _, test := range []struct {
		in   apdu.Command
		want string // the beginning; empty means an error
	}{
		{apdu.Command{INS: 0xDB, Data: make([]byte, 255), Le: 256}, "00 DB 00 00 FF 00"},
		{apdu.Command{INS: 0xDB, Data: make([]byte, 256)}, "00 DB 00 00 00 01 00"},
		{apdu.Command{INS: 0xCB, Data: unhex("5C 00"), Le: 257}, "00 CB 00 00 00 00 02 5C 00 01 01"},
		{apdu.Command{INS: 0xDB, Data: make([]byte, 65535)}, "00 DB 00 00 00 FF FF"},
		{apdu.Command{INS: 0xDB, Data: make([]byte, 65536)}, ""},
		{apdu.Command{Le: 65537}, ""},
		{apdu.Command{Le: -1}, ""},
	} {
		got, err := test.in.Encode()
		if (err != nil) != (test.want == "") || !bytes.HasPrefix(got, unhex(test.want)) {
			t.Errorf("%v, Le %d: % .12X, %v; want %q", test.in, test.in.Le, got, err, test.want)
		}
	}
}

func TestChain(t *testing.T) {
	data := make([]byte, 600)
	for i := range data {
		data[i] = byte(i)
	}
	parts := apdu.Command{INS: 0xDB, P1: 0x3F, P2: 0xFF, Data: data, Le: 256}.Chain()
	want := []apdu.Command{
		{CLA: 0x10, INS: 0xDB, P1: 0x3F, P2: 0xFF, Data: data[:255]},
		{CLA: 0x10, INS: 0xDB, P1: 0x3F, P2: 0xFF, Data: data[255:510]},
		{INS: 0xDB, P1: 0x3F, P2: 0xFF, Data: data[510:], Le: 256},
	}
	if !cmp.Equal(parts, want, sameCommand) {
		t.Errorf("parts %v", parts)
	}
	for _, whole := range []apdu.Command{{INS: 0x20}, {INS: 0xDB, Data: data[:255]}, {INS: 0xDB, Data: data, Extended: true}} {
		if got := whole.Chain(); len(got) != 1 || !cmp.Equal(got[0], whole, sameCommand) {
			t.Errorf("%v in parts: %v", whole, got)
		}
	}
}

func TestParseResponse(t *testing.T) {
	r, err := apdu.ParseResponse(unhex("7C 02 90 00"))
	if err != nil || r.SW != apdu.SWOK || !bytes.Equal(r.Data, unhex("7C 02")) {
		t.Errorf("%v, %v", r, err)
	}
	for _, short := range [][]byte{nil, {0x90}} {
		if _, err := apdu.ParseResponse(short); !errors.Is(err, apdu.ErrNoAnswer) {
			t.Errorf("% X: %v; want ErrNoAnswer", short, err)
		}
	}
	if _, err := apdu.ParseResponse(make([]byte, 65539)); err == nil {
		t.Error("an answer with 65,537 bytes of data is taken")
	}
}

func TestSW(t *testing.T) {
	for _, test := range []struct {
		sw   apdu.SW
		want string
	}{
		{0x9000, "9000 (successful)"},
		{0x63C2, "63C2 (2 tries left)"},
		{0x63C0, "63C0 (0 tries left)"},
		{0x6983, "6983 (authentication method blocked)"},
		{0x6A80, "6A80 (incorrect parameter in command data field)"},
		{0x6110, "6110 (16 more bytes of data)"},
		{0x6C00, "6C00 (wrong Le, 256 would be right)"},
		{0x6300, "6300 (verification failed)"},
		{0x63D0, "63D0 (warning, state changed)"},
		{0x69F0, "69F0 (command not allowed)"},
		{0x1234, "1234 (unknown)"},
	} {
		if got := test.sw.String(); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
	for sw := range 0x10000 {
		n, ok := apdu.SW(sw).TriesLeft()
		if want := sw == 0x6983 || sw>>4 == 0x63C; ok != want || ok && sw != 0x6983 && n != sw&0xF || sw == 0x6983 && n != 0 {
			t.Fatalf("%04X: tries left %d, %v", sw, n, ok)
		}
	}
}

// card answers in turn what it was told to, and keeps what it was sent.
type card struct {
	answers []string // empty: no bytes and no error
	sent    []string
	raw     [][]byte // as given, to see whether it is wiped
}

var errPulled = errors.New("card was removed")

func (c *card) send(_ context.Context, command []byte) ([]byte, error) {
	c.sent = append(c.sent, fmt.Sprintf("% X", command))
	c.raw = append(c.raw, command)
	if len(c.answers) == 0 {
		return nil, errPulled
	}
	answer := c.answers[0]
	c.answers = c.answers[1:]
	return unhex(answer), nil
}

func TestTransmit(t *testing.T) {
	chuid := apdu.Command{INS: 0xCB, P1: 0x3F, P2: 0xFF, Data: unhex("5C 01 7E"), Le: 256}
	for _, test := range []struct {
		name    string
		command apdu.Command
		answers []string
		sent    []string
		want    string // data and SW, or
		err     error
	}{
		{"plain", chuid, []string{"7E 00 90 00"}, []string{"00 CB 3F FF 03 5C 01 7E 00"}, "7E 00 90 00", nil},
		{"more data, twice", chuid, []string{"AA 61 02", "BB BB 61 00", "CC 90 00"},
			[]string{"00 CB 3F FF 03 5C 01 7E 00", "00 C0 00 00 02", "00 C0 00 00 00"}, "AA BB BB CC 90 00", nil},
		{"more data on its channel", apdu.Command{CLA: 0x12, INS: 0xCB}, []string{"61 01", "AA 90 00"},
			[]string{"12 CB 00 00", "02 C0 00 00 01"}, "AA 90 00", nil},
		{"wrong Le", chuid, []string{"6C 02", "7E 00 90 00"},
			[]string{"00 CB 3F FF 03 5C 01 7E 00", "00 CB 3F FF 03 5C 01 7E 02"}, "7E 00 90 00", nil},
		{"wrong Le of GET RESPONSE", chuid, []string{"61 00", "6C 01", "AA 90 00"},
			[]string{"00 CB 3F FF 03 5C 01 7E 00", "00 C0 00 00 00", "00 C0 00 00 01"}, "AA 90 00", nil},
		{"wrong Le of both", chuid, []string{"6C 02", "61 00", "6C 01", "AA 90 00"},
			[]string{"00 CB 3F FF 03 5C 01 7E 00", "00 CB 3F FF 03 5C 01 7E 02", "00 C0 00 00 00", "00 C0 00 00 01"}, "AA 90 00", nil},
		{"wrong Le twice", chuid, []string{"6C 02", "6C 03"},
			[]string{"00 CB 3F FF 03 5C 01 7E 00", "00 CB 3F FF 03 5C 01 7E 02"}, "6C 03", nil},
		{"a PUK is not presented twice", apdu.Command{INS: 0x2C, P2: 0x80, Data: unhex("31 32")}, []string{"6C 02"},
			[]string{"00 2C 00 80 02 31 32"}, "6C 02", nil},
		{"refused", chuid, []string{"6A 82"}, []string{"00 CB 3F FF 03 5C 01 7E 00"}, "6A 82", nil},
		{"pulled, and no error", chuid, []string{""}, []string{"00 CB 3F FF 03 5C 01 7E 00"}, "", apdu.ErrNoAnswer},
		{"pulled", chuid, nil, []string{"00 CB 3F FF 03 5C 01 7E 00"}, "", errPulled},
		{"pulled before the rest", chuid, []string{"AA 61 02"}, []string{"00 CB 3F FF 03 5C 01 7E 00", "00 C0 00 00 02"}, "", errPulled},
	} {
		c := &card{answers: test.answers}
		got, err := apdu.Transmit(t.Context(), c.send, test.command)
		if !errors.Is(err, test.err) {
			t.Errorf("%s: error %v, want %v", test.name, err, test.err)
		} else if err == nil && !bytes.Equal(got.Encode(), unhex(test.want)) {
			t.Errorf("%s: got % X %v, want %s", test.name, got.Data, got.SW, test.want)
		}
		if diff := cmp.Diff(test.sent, c.sent); diff != "" {
			t.Errorf("%s: sent (-want +got):\n%s", test.name, diff)
		}
		for _, raw := range c.raw {
			if !bytes.Equal(raw, make([]byte, len(raw))) {
				t.Errorf("%s: % X was not wiped", test.name, raw)
			}
		}
	}
}

func TestTransmitChains(t *testing.T) {
	long := apdu.Command{INS: 0xDB, P1: 0x3F, P2: 0xFF, Data: make([]byte, 300), Le: 256}
	c := &card{answers: []string{"90 00", "AA 90 00"}}
	r, err := apdu.Transmit(t.Context(), c.send, long)
	if err != nil || !bytes.Equal(r.Encode(), unhex("AA 90 00")) {
		t.Errorf("%v, %v", r, err)
	}
	if len(c.sent) != 2 || !strings.HasPrefix(c.sent[0], "10 DB 3F FF FF 00") || !strings.HasPrefix(c.sent[1], "00 DB 3F FF 2D 00") {
		t.Errorf("sent %q", c.sent)
	}
	c = &card{answers: []string{"68 84"}}
	if r, err := apdu.Transmit(t.Context(), c.send, long); err != nil || r.SW != apdu.SWChainingNotSupported || len(c.sent) != 1 {
		t.Errorf("refused at its first part: %v, %v after %d commands", r, err, len(c.sent))
	}
}

// TestTransmitEnds shows that a card that never ends does not hold the bridge.
func TestTransmitEnds(t *testing.T) {
	for _, answer := range [][]byte{unhex("61 00"), append(make([]byte, 60000), 0x61, 0x00)} {
		sent := 0
		_, err := apdu.Transmit(t.Context(), func(context.Context, []byte) ([]byte, error) {
			sent++
			return answer, nil
		}, apdu.Command{INS: 0xCB, Le: 256})
		if err == nil || sent > 300 {
			t.Errorf("after %d commands: %v", sent, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := &card{answers: []string{"90 00"}}
	if _, err := apdu.Transmit(ctx, c.send, apdu.Command{INS: 0xCB}); !errors.Is(err, context.Canceled) || len(c.sent) != 0 {
		t.Errorf("cancelled: %v after %q", err, c.sent)
	}
	if _, err := apdu.Transmit(t.Context(), c.send, apdu.Command{INS: 0xCB, Le: -1}); err == nil || len(c.sent) != 0 {
		t.Errorf("not a command: %v after %q", err, c.sent)
	}
}

// printed is all that v prints as.
func printed(t *testing.T, v any) string {
	t.Helper()
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+"\n", v)
	}
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("m", "v", v, "in", struct{ V any }{v})
	}
	if err := json.NewEncoder(&out).Encode(v); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// shows tells in which form a text shows the secret, if it does.
func shows(text, secret string) string {
	decimal := strings.Trim(fmt.Sprint([]byte(secret)), "[]")
	for _, form := range []string{
		secret, fmt.Sprintf("%x", secret), fmt.Sprintf("% X", secret), fmt.Sprintf("%X", secret), decimal,
		strings.ReplaceAll(decimal, " ", ","), strings.TrimSuffix(fmt.Sprintf("%#v", []byte(secret))[len("[]byte{"):], "}"),
	} {
		if strings.Contains(text, form) {
			return form
		}
	}
	b64, _ := json.Marshal([]byte(secret))
	if strings.Contains(text, strings.Trim(string(b64), `"=`)) {
		return string(b64)
	}
	return ""
}

func TestCommandPrintsNoData(t *testing.T) {
	const puk = "739158246"
	c := apdu.Command{INS: 0x2C, P2: 0x80, Data: []byte(puk)}
	for _, v := range []any{c, &c, []apdu.Command{c}, struct{ C apdu.Command }{c}} {
		if form := shows(printed(t, v), puk); form != "" {
			t.Errorf("%T shows its data as %s", v, form)
		}
	}
	if got, want := fmt.Sprint(c), "00 2C 00 80 [9 bytes]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzCommand(f *testing.F) {
	for _, exchanges := range traces(f) {
		for _, x := range exchanges {
			f.Add(x.command)
		}
	}
	f.Add(unhex("00 CB 3F FF 00 00 03 5C 01 7E 00 00"))
	f.Add(unhex("00 CB 3F FF 00 00 00"))
	f.Add(append(unhex("10 DB 3F FF 00 01 00"), make([]byte, 256)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := apdu.ParseCommand(b)
		if err != nil {
			return
		}
		if got, err := c.Encode(); err != nil || !bytes.Equal(got, b) {
			t.Errorf("% X written as % X, %v", b, got, err)
		}
		var joined []byte
		parts := c.Chain()
		for i, part := range parts {
			if last := i == len(parts)-1; !last && (part.CLA&0x10 == 0 || part.Le != 0) || last && part.Le != c.Le {
				t.Errorf("part %d of %d: %v, Le %d", i, len(parts), part, part.Le)
			}
			joined = append(joined, part.Data...)
		}
		if !bytes.Equal(joined, c.Data) {
			t.Error("the parts are not the whole")
		}
	})
}
