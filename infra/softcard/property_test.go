package softcard_test

import (
	"bytes"
	crand "crypto/rand"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
)

// TestCountersRiseOnlyBySecrets sends commands of which many are nearly right, and holds
// every rise of a counter against what the card was shown.
func TestCountersRiseOnlyBySecrets(t *testing.T) {
	t.Parallel()
	for _, profile := range softcard.Profiles {
		t.Run(string(profile), func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			rises, blocked := 0, 0
			for range 300 {
				card := newCard(t, softcard.Config{Profile: profile, Rand: crand.Reader})
				sending(t, card, selects[profile])
				for range 200 {
					command := nearlyRight(random, profile)
					before := card.Inspect()
					legitimate := mayRaise(card, before, command)
					sw := sending(t, card, command)
					after := card.Inspect()
					rose := after.PINTries > before.PINTries || after.PUKTries > before.PUKTries
					if rose && !legitimate {
						t.Fatalf("%X answered %s: %+v, then %+v", command, sw, before, after)
					}
					if rose {
						rises++
					}
					if after.PINTries == 0 && before.PINTries > 0 {
						blocked++
					}
				}
			}
			if rises < 100 || blocked < 100 {
				t.Errorf("%d rises, %d blocked: too few to show anything", rises, blocked)
			}
		})
	}
}

var selects = map[softcard.Profile][]byte{
	softcard.PivApplet: unhex("00A4040009A00000030800001000"),
	softcard.CanoKey:   unhex("00A4040009A00000030800001000"),
	softcard.GIDS:      unhex("00A404000BA000000397425446590201"),
}

// mayRaise tells whether a command shows what a counter may rise for.
func mayRaise(card *softcard.Card, s softcard.State, command []byte) bool {
	if len(command) < 5 || int(command[4]) > len(command)-5 {
		return card.Profile() != softcard.GIDS && command[1] == 0xFB && s.PINTries == 0 && s.PUKTries == 0
	}
	data := command[5 : 5+int(command[4])]
	first := string(data[:min(8, len(data))])
	switch ins, p2 := command[1], command[3]; {
	case card.Profile() == softcard.GIDS:
		return ins == 0x20 && s.PINTries > 0 && card.PINIs(string(data)) ||
			ins == 0x24 && s.PINTries > 0 && (s.PINVerified || slices.ContainsFunc(prefixes(data), card.PINIs)) ||
			ins == 0x2C && s.AdminVerified
	case ins == 0x20, ins == 0x24 && p2 == 0x80:
		return s.PINTries > 0 && card.PINIs(first)
	case ins == 0x2C, ins == 0x24 && p2 == 0x81:
		return s.PUKTries > 0 && card.PUKIs(first)
	case ins == 0xFB:
		return s.PINTries == 0 && s.PUKTries == 0
	}
	return false
}

func prefixes(b []byte) (all []string) {
	for i := range len(b) + 1 {
		all = append(all, string(b[:i]))
	}
	return all
}

func nearlyRight(random *rand.Rand, profile softcard.Profile) []byte {
	pick := func(options ...string) []byte { return []byte(options[random.IntN(len(options))]) }
	pin := pick("123456\xFF\xFF", "123456\xFF\xFF", "654321\xFF\xFF", "000000\xFF\xFF", "abcdef\xFF\xFF", "123\xFF\xFF\xFF\xFF\xFF")
	other := pick("123456\xFF\xFF", "654321\xFF\xFF", "123\xFF\xFF\xFF\xFF\xFF", "12345678", "")
	puk := pick("12345678", "12345678", "00000000", "87654321")
	header := pick("\x00\x20\x00\x80", "\x00\x20\x00\x80", "\x00\x2C\x00\x80", "\x00\x24\x00\x80", "\x00\x24\x00\x81", "\x00\xFB\x00\x00", "\x00\x20\xFF\x80")
	if profile == softcard.GIDS {
		pin, other, puk = pick("123456", "123456", "000000", "654321"), pick("123456", "654321", "", "1"), nil
		header = pick("\x00\x20\x00\x80", "\x00\x20\x00\x80", "\x00\x24\x00\x80", "\x00\x24\x01\x80", "\x00\x2C\x02\x80", "\x00\x20\x00\x82", "\x00\x22\x81\xA4", "\x00\x87\x00\x00", "\x00\x44\x00\x00")
	}
	var data []byte
	switch header[1] {
	case 0x20:
		data = pin
	case 0x22:
		data = unhex("830180")
	case 0x87:
		data = pick("\x7C\x02\x81\x00", "\x7C\x0A\x82\x0812345678")
	case 0x24:
		if data = slices.Concat(pin, other); header[3] == 0x81 {
			data = slices.Concat(puk, other)
		}
	case 0x2C:
		data = slices.Concat(puk, other)
	}
	if random.IntN(8) == 0 {
		header[random.IntN(4)] = byte(random.Uint32())
	}
	if random.IntN(8) == 0 && len(data) > 0 {
		data[random.IntN(len(data))] ^= byte(1 << random.IntN(8))
	}
	if len(data) == 0 {
		return header
	}
	return slices.Concat(header, []byte{byte(len(data))}, data)
}

func sending(t testing.TB, card *softcard.Card, command []byte) apdu.SW {
	t.Helper()
	answer, err := card.Transmit(command)
	if err != nil {
		t.Fatalf("%X: %v", command, err)
	}
	r, err := apdu.ParseResponse(answer)
	if err != nil {
		t.Fatalf("%X: %v", command, err)
	}
	return r.SW
}

// FuzzTransmit: whatever comes, a card answers, does not fail, and raises no counter
// without saying 9000 or, of PivApplet, that only the new PIN was wrong.
func FuzzTransmit(f *testing.F) {
	for i, trace := range traces {
		var script []byte
		for _, e := range read(f, trace.name) {
			if n := len(e.command); n > 0 && n < 256 {
				script = append(append(script, byte(n)), e.command...)
			}
		}
		f.Add(byte(i), script)
	}
	f.Add(byte(0), []byte("\x05\x10\xDB\x3F\xFF\xFF\x04\x00\xC0\x00\x00"))
	f.Fuzz(func(t *testing.T, choice byte, script []byte) {
		card := newCard(t, softcard.Config{
			Profile: softcard.Profiles[int(choice)%len(softcard.Profiles)],
			Rand:    crand.Reader,
			Blank:   choice&0x10 != 0 && int(choice)%len(softcard.Profiles) == 2,
			Chunk:   int(choice >> 5),
			ExactLe: choice&0x08 != 0,
		})
		sending(t, card, selects[card.Profile()])
		for len(script) > 0 {
			n := min(int(script[0]), len(script)-1)
			command := script[1 : 1+n]
			script = script[1+n:]
			sent := bytes.Clone(command)
			before := card.Inspect()
			sw := sending(t, card, command)
			after := card.Inspect()
			rose := after.PINTries > before.PINTries || after.PUKTries > before.PUKTries
			if rose && sw != apdu.SWOK && sw != apdu.SWWrongData && sw != apdu.SWWrongLength {
				t.Errorf("%X answered %s: %+v, then %+v", command, sw, before, after)
			}
			if after.PINTries < 0 || after.PINTries > after.PINMost || after.PUKTries < 0 || after.PUKTries > after.PUKMost {
				t.Errorf("%+v", after)
			}
			if !bytes.Equal(sent, command) {
				t.Error("the card changed what it was sent")
			}
		}
	})
}
