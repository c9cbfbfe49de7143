package softcard_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
)

// The traces in testdata were recorded with real card applications. A line with >
// is a command, with < its answer: data and SW, or * for data that the recording does
// not show. Nothing is masked: what was random is given to the card as its randomness.
//
// Of the recordings these lines are left out:
//   - remarks about what the client computed, which are not APDUs;
//   - in gids, twelve wrong answers to the admin key's challenge of which only the SW
//     was noted: TestGIDSAdminKeyHasNoCounter does the like;
//   - in pivapplet-both-blocked, what yubico-piv-tool printed (TestYubicoPIVTool goes the
//     same way), and the metadata of an RSA key: the card here makes P-256 keys only.
var traces = []struct {
	name   string
	config softcard.Config
	rand   string   // what was random when the card was made, in the order it is drawn
	before []string // what had been sent before the recording began
}{
	{
		name:   "pivapplet-piv",
		config: softcard.Config{Profile: softcard.PivApplet, ID: unhex("6C5544797A91115DC3330EBD003851D2")},
		rand:   "2AA2AB70039C5510DDF06420ECEB" + "00000000", // CCC, serial
	},
	{
		name:   "pivapplet-aes",
		config: softcard.Config{Profile: softcard.PivApplet, ID: make([]byte, 16)},
		rand:   strings.Repeat("00", 18),
	},
	{
		name:   "pivapplet-yubico-ext",
		config: softcard.Config{Profile: softcard.PivApplet, ID: make([]byte, 16)},
		rand:   strings.Repeat("00", 14) + "D1373E8B",
		before: []string{ // PIN and PUK had been changed, and back
			"00A4040009A00000030800001000",
			"0024008010313233343536FFFF313233343536FFFF",
			"002400811031323334353637383132333435363738",
		},
	},
	{
		name:   "pivapplet-both-blocked",
		config: softcard.Config{Profile: softcard.PivApplet, ID: make([]byte, 16)},
		rand:   strings.Repeat("00", 18),
		before: slices.Concat([]string{"00A4040009A00000030800001000"},
			slices.Repeat([]string{"0020008008303030303030FFFF"}, 5),
			slices.Repeat([]string{"002C0080103030303030303030313233343536FFFF"}, 3)),
	},
	{
		name:   "canokey-piv",
		config: softcard.Config{Profile: softcard.CanoKey, ID: unhex("2999D248741028CD43015A39C6B50C22")},
		rand:   "3B5AA2295E0A64D925EED22540C9A4749FAB3C7872",
	},
	{
		name:   "canokey-yubico-ext",
		config: softcard.Config{Profile: softcard.CanoKey, ID: make([]byte, 16)},
		rand:   strings.Repeat("00", 21),
	},
	{
		name:   "gids",
		config: softcard.Config{Profile: softcard.GIDS, ID: unhex("0102030405060708090A0B0C0D0E0F10")},
	},
	{
		name:   "gids-tool-initialize",
		config: softcard.Config{Profile: softcard.GIDS, Blank: true},
	},
	{
		name:   "gids-tool-unblock",
		config: softcard.Config{Profile: softcard.GIDS, ID: make([]byte, 16)},
		before: []string{"00A404000BA000000397425446590201"}, // still selected
	},
}

func TestReplay(t *testing.T) {
	for _, trace := range traces {
		t.Run(trace.name, func(t *testing.T) {
			var random bytes.Buffer
			random.Write(unhex(trace.rand))
			config := trace.config
			config.Rand = &random
			card := newCard(t, config)
			for _, command := range trace.before {
				if _, err := card.Transmit(unhex(command)); err != nil {
					t.Fatal(err)
				}
			}
			key, algorithm := softcard.FactoryAdminKey, byte(3)
			compared := 0
			for i, exchange := range read(t, trace.name) {
				if exchange.atr != "" {
					if got := fmt.Sprintf("%X", card.ATR()); got != exchange.atr {
						t.Errorf("ATR %s, recorded %s", got, exchange.atr)
					}
					continue
				}
				random.Write(wasRandom(exchange, algorithm, key))
				answer, err := card.Transmit(exchange.command)
				if err != nil {
					t.Fatal(err)
				}
				got := fmt.Sprintf("%X", answer)
				if exchange.hidden {
					got = got[len(got)-4:]
				}
				if got != exchange.answer {
					t.Fatalf("%d: %X\n     got %s\nrecorded %s", i, exchange.command, got, exchange.answer)
				}
				if c := exchange.command; c[1] == 0xFF { // SET MANAGEMENT KEY
					algorithm, key = c[5], c[8:]
				}
				compared++
			}
			if random.Len() > 0 {
				t.Errorf("%d random bytes were not drawn", random.Len())
			}
			t.Logf("%d commands", compared)
		})
	}
}

// wasRandom works out what the card drew for a recorded answer.
func wasRandom(e exchange, algorithm byte, key []byte) []byte {
	answer := unhex(e.answer)
	value := func(tag byte) []byte {
		if len(answer) < 6 || answer[0] != 0x7C || answer[2] != tag {
			return nil
		}
		return answer[4 : len(answer)-2]
	}
	if challenge := value(0x81); challenge != nil {
		return challenge
	}
	if witness := value(0x80); witness != nil {
		return decipher(algorithm, key, witness)
	}
	if both := value(0x82); len(both) == 40 { // GIDS, mutual: 7 bytes near the end
		return decipher(algorithm, key, both)[32:39]
	}
	return nil
}

// decipher is CBC with an initial value of zero.
func decipher(algorithm byte, key, b []byte) []byte {
	var block cipher.Block
	var err error
	if algorithm == 3 {
		block, err = des.NewTripleDESCipher(key)
	} else {
		block, err = aes.NewCipher(key)
	}
	if err != nil {
		panic(err)
	}
	out := make([]byte, len(b))
	cipher.NewCBCDecrypter(block, make([]byte, block.BlockSize())).CryptBlocks(out, b)
	return out
}

type exchange struct {
	atr     string
	command []byte
	answer  string // in hex
	hidden  bool   // answer is the SW only
}

func read(t testing.TB, name string) []exchange {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".trace"))
	if err != nil {
		t.Fatal(err)
	}
	var all []exchange
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if atr, ok := strings.CutPrefix(line, "# ATR "); ok {
			all = append(all, exchange{atr: atr})
		} else if command, ok := strings.CutPrefix(line, "> "); ok {
			all = append(all, exchange{command: unhex(command)})
		} else if answer, ok := strings.CutPrefix(line, "< "); ok {
			last := &all[len(all)-1]
			answer, last.hidden = strings.CutPrefix(answer, "* ")
			last.answer = strings.ReplaceAll(answer, " ", "")
		}
	}
	return all
}

// TestGIDSAdminKeyHasNoCounter: after twelve wrong answers the right one is taken.
func TestGIDSAdminKeyHasNoCounter(t *testing.T) {
	const zeros, right = "0000000000000000", "072C03EF17EDD87C" // to the challenge below
	random := bytes.NewBuffer(bytes.Repeat(unhex("BF09E22DE55355F6"), 13))
	card := newCard(t, softcard.Config{Profile: softcard.GIDS, ID: make([]byte, 16), Rand: random})
	transmit(t, card, "00A404000BA000000397425446590201", apdu.SWOK)
	transmit(t, card, "002281A403830180", apdu.SWOK)
	for range 12 {
		transmit(t, card, "00870000047C02810000", apdu.SWOK)
		transmit(t, card, "008700000C7C0A8208"+zeros, apdu.SWSecurityStatus)
		transmit(t, card, "008700000C7C0A8208"+right, apdu.SWConditionsNotSatisfied)
	}
	transmit(t, card, "00870000047C02810000", apdu.SWOK)
	transmit(t, card, "008700000C7C0A8208"+right, apdu.SWOK)
	transmit(t, card, "002C028006363534333231", apdu.SWOK)
	if !card.PINIs("654321") {
		t.Error("the PIN is not the new one")
	}
}

func newCard(t testing.TB, c softcard.Config) *softcard.Card {
	t.Helper()
	card, err := softcard.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return card
}

// transmit fails the test unless the card answers with that SW, and returns the data.
func transmit(t testing.TB, card *softcard.Card, command string, want apdu.SW) []byte {
	t.Helper()
	answer, err := card.Transmit(unhex(command))
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	r, err := apdu.ParseResponse(answer)
	if err != nil {
		t.Fatal(err)
	}
	if r.SW != want {
		t.Fatalf("%s: got %s, want %s", command, r.SW, want)
	}
	return r.Data
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}
