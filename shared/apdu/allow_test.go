package apdu_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/problem"
)

// allowed is the whole allow-list, written a second time: a command of every
// kind. A bridge that lets through more has lost its wall.
var allowed = []string{
	// PIV
	"00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00",
	"00 CB 3F FF 05 5C 03 5F C1 02 00",
	"00 CB 3F FF 05 5C 03 5F C1 07 00",
	"00 CB 3F FF 03 5C 01 7E 00",
	"00 20 00 80",
	"00 20 00 81",
	"00 20 FF 80",
	"00 2C 00 80 10 31 32 33 34 35 36 37 38 36 35 34 33 32 31 FF FF",
	"00 24 00 81 10 31 32 33 34 35 36 37 38 38 37 36 35 34 33 32 31",
	"00 87 03 9B 04 7C 02 81 00 00",
	"00 87 08 9B 04 7C 02 81 00 00",
	"00 87 0A 9B 04 7C 02 81 00 00",
	"00 87 0C 9B 04 7C 02 81 00 00",
	"00 87 03 9B 0C 7C 0A 82 08 D3 CF 09 11 5D AB 4F B6",
	"00 87 08 9B 14 7C 12 82 10 5E F4 D6 88 4E C2 E3 31 0B EE 19 06 E3 CA B5 DA",
	"00 87 0A 9B 14 7C 12 82 10 5E F4 D6 88 4E C2 E3 31 0B EE 19 06 E3 CA B5 DA",
	"00 87 0C 9B 14 7C 12 82 10 5E F4 D6 88 4E C2 E3 31 0B EE 19 06 E3 CA B5 DA",
	"00 FD 00 00 00",
	"00 F8 00 00 00",
	"00 F7 00 80 00",
	"00 F7 00 81 00",
	"00 F7 00 9B 00",
	// GIDS
	"00 A4 04 00 0B A0 00 00 03 97 42 54 46 59 02 01 00",
	"00 CB A0 12 04 5C 02 DF 20 00",
	"00 CB 3F FF 04 5C 02 7F 71 00",
	"00 CB 3F FF 04 5C 02 7F 73 00",
	"00 20 00 82",
	"00 22 81 A4 03 83 01 80",
	"00 87 00 00 04 7C 02 81 00 00",
	"00 87 00 00 0C 7C 0A 82 08 07 2C 03 EF 17 ED D8 7C",
	"00 87 00 00 14 7C 12 82 10 5E F4 D6 88 4E C2 E3 31 0B EE 19 06 E3 CA B5 DA",
	"00 2C 02 80 06 36 35 34 33 32 31",
	// both
	"00 C0 00 00 00",
}

func command(t testing.TB, s string) apdu.Command {
	t.Helper()
	c, err := apdu.ParseCommand(unhex(s))
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return c
}

// TestAllowedIsTheList asks for all classes and instructions with the rest of
// every allowed command, and for all parameters of every allowed instruction.
func TestAllowedIsTheList(t *testing.T) {
	var commands []apdu.Command
	for _, s := range allowed {
		c := command(t, s)
		if err := apdu.Allowed(c); err != nil {
			t.Errorf("%s: %v", s, err)
		}
		commands = append(commands, c)
	}
	got := map[string]bool{}
	ask := func(c apdu.Command) {
		if err := apdu.Allowed(c); err == nil {
			b, _ := c.Encode()
			got[fmt.Sprintf("% X", b)] = true
		} else if !errors.Is(err, problem.ErrForbidden) {
			t.Fatalf("%v: %v", c, err)
		}
	}
	for class := range 0x100 {
		for ins := range 0x100 {
			for _, c := range commands {
				c.CLA, c.INS = byte(class), byte(ins)
				ask(c)
			}
		}
	}
	for _, c := range commands {
		for p := range 0x10000 {
			c.P1, c.P2 = byte(p>>8), byte(p)
			ask(c)
		}
	}
	want := append([]string{
		// Commands of the list with another's Le, or another's answer.
		"00 20 00 80 00",
		"00 20 00 81 00",
		"00 F7 00 80",
		"00 F7 00 81",
		"00 87 00 00 0C 7C 0A 82 08 D3 CF 09 11 5D AB 4F B6",
		"00 87 03 9B 0C 7C 0A 82 08 07 2C 03 EF 17 ED D8 7C",
	}, allowed...)
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("allowed (-want +got):\n%s", diff)
	}
}

// TestHolder: what a script of the bridge's own making may say with what the person at it
// has typed, and that no script that it was sent may.
func TestHolder(t *testing.T) {
	const old, digits = "36 35 34 33 32 31 FF FF", "37 33 38 32 36 34 FF FF"
	for _, test := range []struct {
		why, command string
		allowed      bool
	}{
		{"PIV PIN changed", "00 24 00 80 10 " + old + digits, true},
		{"GIDS PIN verified", "00 20 00 80 04 31 39 33 37", true},
		{"GIDS PIN changed", "00 24 00 80 08 31 39 33 37 37 33 38 32", true},
		{"PIV PIN verified", "00 20 00 80 08" + old, false},
		{"present PIN of letters", "00 24 00 80 10 61 62 63 64 65 66 FF FF" + digits, false},
		{"new PIN of letters", "00 24 00 80 10" + old + "61 62 63 64 65 66 FF FF", false},
		{"new PIN of 5 digits", "00 24 00 80 10" + old + "37 33 38 32 36 FF FF FF", false},
		{"new PIN only", "00 24 01 80 08" + digits, false},
		{"another reference", "00 24 00 82 10" + old + digits, false},
		{"with an Le", "00 24 00 80 10" + old + digits + "00", false},
		{"GIDS PINs of 7 characters", "00 24 00 80 07 31 39 33 37 37 33 38", false},
		{"GIDS PIN of 3 characters", "00 20 00 80 03 31 39 33", false},
		{"GIDS PINs that are not text", "00 24 00 80 08 31 39 33 37 37 33 38 00", false},
		{"set PIN of the management key", "00 FF FF FF 01 00", false},
		{"a part of a chain", "10 24 00 80 10" + old + digits, false},
	} {
		sent := 0
		run := func(how func(context.Context, apdu.Script, func(apdu.Slot) ([]byte, error), apdu.Transmitter) apdu.Result) apdu.Result {
			s := apdu.Step{Command: command(t, test.command), Secret: true, Expect: []apdu.Expect{{}}}
			return how(t.Context(), script(s), nil, func(context.Context, []byte) ([]byte, error) {
				sent++
				return []byte{0x90, 0}, nil
			})
		}
		if r := run(apdu.Run); r.End != apdu.Refused || !errors.Is(r.Err, problem.ErrForbidden) || sent > 0 {
			t.Errorf("%s, in a script that was sent: %+v", test.why, r)
		}
		if r := run(apdu.RunForHolder); (r.End == apdu.Done) != test.allowed || (sent > 0) != test.allowed {
			t.Errorf("%s: %+v, want allowed %t", test.why, r, test.allowed)
		}
	}
}

func TestAllowedRefuses(t *testing.T) {
	for _, test := range []struct{ why, command string }{
		{"VERIFY with a PIN", "00 20 00 80 08 31 32 33 34 35 36 FF FF"},
		{"VERIFY that a card may take for one with a PIN", "00 20 00 80 08"},
		{"VERIFY of a PIN that is not ours", "00 20 00 01"},
		{"PIN changed by the old one", "00 24 00 80 10 36 35 34 33 32 31 FF FF 31 32 33 34 35 36 FF FF"},
		{"PUK to part of one", "00 24 00 81 10 31 32 33 34 35 36 37 38 38 37 36 35 34 33 32 FF"},
		{"PUK and more", "00 24 00 81 11 31 32 33 34 35 36 37 38 38 37 36 35 34 33 32 31 00"},
		{"PIN of 3 digits", "00 2C 00 80 10 31 32 33 34 35 36 37 38 31 32 33 FF FF FF FF FF"},
		{"PIN of letters", "00 2C 00 80 10 31 32 33 34 35 36 37 38 61 62 63 64 65 66 FF FF"},
		{"PIN with padding inside", "00 2C 00 80 10 31 32 33 34 35 36 37 38 31 32 33 FF 34 35 36 37"},
		{"PIN without the PUK", "00 2C 00 80 08 36 35 34 33 32 31 FF FF"},
		{"PIN with an Le", "00 2C 02 80 06 36 35 34 33 32 31 00"},
		{"GIDS PIN of 3 digits", "00 2C 02 80 03 31 32 33"},
		{"GIDS PIN padded", "00 2C 02 80 08 36 35 34 33 32 31 FF FF"},
		{"GIDS PIN of 17 digits", "00 2C 02 80 11" + strings.Repeat("31", 17)},
		{"PUT DATA", "00 DB A0 10 03 DF 23 00"},
		{"GET DATA of a certificate", "00 CB 3F FF 05 5C 03 5F C1 05 00"},
		{"GET DATA of fingerprints", "00 CB 3F FF 05 5C 03 5F C1 03 00"},
		{"GET DATA of two objects", "00 CB 3F FF 0A 5C 03 5F C1 02 5C 03 5F C1 03 00"},
		{"GET DATA with a limit", "00 CB 3F FF 03 5C 01 7E 08"},
		{"SELECT of another application", "00 A4 04 00 06 A0 00 00 00 01 01"},
		{"SELECT of whoever has the RID", "00 A4 04 00 05 A0 00 00 03 08 00"},
		{"SELECT of one with a longer AID", "00 A4 04 00 0C A0 00 00 03 97 42 54 46 59 02 01 00"},
		{"SELECT of a file", "00 A4 00 0C 02 3F FF"},
		{"signature with 9A", "00 87 07 9A 06 7C 04 82 00 81 00 00"},
		{"witness", "00 87 03 9B 04 7C 02 80 00 00"},
		{"challenge of ours with 9B", "00 87 03 9B 0C 7C 0A 81 08 01 02 03 04 05 06 07 08 00"},
		{"mutual authentication", "00 22 C1 A4 03 83 01 80"},
		{"MSE for another key", "00 22 81 A4 03 83 01 81"},
		{"metadata of a key", "00 F7 00 9A 00"},
		{"attestation", "00 F9 9A 00 00"},
		{"set management key", "00 FF FF FF 1B 03 9B 18 01 02 03 04 05 06 07 08 01 02 03 04 05 06 07 08 01 02 03 04 05 06 07 08"},
		{"reset of the application", "00 FB 00 00"},
		{"set tries", "00 FA 05 05"},
		{"a part of a chain", "10 2C 00 80 10 31 32 33 34 35 36 37 38 36 35 34 33 32 31 FF FF"},
		{"another channel", "01 20 00 80"},
		{"secure messaging", "0C 20 00 80"},
		{"a class of a vendor", "80 20 00 80"},
		{"extended", "00 CB 3F FF 00 00 03 5C 01 7E 00 00"},
		{"extended VERIFY", "00 20 00 80 00 01 00"},
		{"GET RESPONSE with data", "00 C0 00 00 01 31 00"},
		{"GET RESPONSE without Le", "00 C0 00 00"},
	} {
		if err := apdu.Allowed(command(t, test.command)); !errors.Is(err, problem.ErrForbidden) {
			t.Errorf("%s: %v", test.why, err)
		}
	}
}

// TestAllowedBytes changes every byte of every allowed command, cuts it short and
// lengthens it: only where a secret or an answer stands may it stay allowed.
func TestAllowedBytes(t *testing.T) {
	free := map[string]int{ // how many bytes, by the beginning of the command
		"00 2C 00 80":    8, // the PUK, not the PIN's digits
		"00 24 00 81":    16,
		"00 87 03 9B 0C": 8,
		"00 87 08 9B 14": 16,
		"00 87 0A 9B 14": 16,
		"00 87 0C 9B 14": 16,
		"00 87 00 00 0C": 8,
		"00 87 00 00 14": 16,
	}
	for _, s := range allowed {
		c := command(t, s)
		changeable := 0
		for i := range c.Data {
			changed := c
			changed.Data = bytes.Clone(c.Data)
			changed.Data[i] ^= 0x80 // no character stays one, nor becomes FF
			if apdu.Allowed(changed) == nil {
				changeable++
			}
		}
		want := 0
		for prefix, n := range free {
			if strings.HasPrefix(s, prefix) {
				want = n
			}
		}
		if changeable != want {
			t.Errorf("%s: %d bytes of data may be changed, want %d", s, changeable, want)
		}
		variableLength := c.INS == 0x2C && c.P1 == 0x02
		longer := c
		longer.Data = append(bytes.Clone(c.Data), '0')
		if apdu.Allowed(longer) == nil && !variableLength {
			t.Errorf("%s: may be longer", s)
		}
		if len(c.Data) == 0 {
			continue
		}
		shorter := c
		shorter.Data = c.Data[:len(c.Data)-1]
		truncatedAID := c.INS == 0xA4 && len(c.Data) > 9
		if apdu.Allowed(shorter) == nil && !variableLength && !truncatedAID {
			t.Errorf("%s: may be shorter", s)
		}
	}
}

// TestAllowedInTraces: what the families need was recorded, and nothing recorded
// that writes gets through.
func TestAllowedInTraces(t *testing.T) {
	for name, exchanges := range traces(t) {
		for _, x := range exchanges {
			c := command(t, fmt.Sprintf("%X", x.command))
			switch err := apdu.Allowed(c); {
			case err == nil && slices.Contains([]byte{0xDB, 0xE0, 0x44, 0xFF, 0x84}, c.INS):
				t.Errorf("%s: % X is allowed", name, x.command)
			case err == nil && c.INS == 0x20 && len(c.Data) > 0:
				t.Errorf("%s: a PIN is verified: % X", name, x.command)
			}
		}
	}
	for _, aid := range [][]byte{apdu.PIV.AID, apdu.PIV.AID[:9], apdu.GIDS.AID, apdu.GIDS.AID[:10], apdu.GIDS.AID[:9]} {
		if err := apdu.Allowed(apdu.Command{INS: 0xA4, P1: 0x04, Data: aid, Le: 256}); err != nil {
			t.Errorf("SELECT % X: %v", aid, err)
		}
	}
}

// FuzzAllowed runs scripts made of anything, their slots filled with anything, and
// looks at what arrives at the card.
func FuzzAllowed(f *testing.F) {
	for _, s := range allowed {
		f.Add(unhex(s), []byte(newPIN), unhex("90 00"), 0, 0, false)
	}
	f.Add(unhex("00 2C 00 80 10 31 32 33 34 35 36 37 38 00 00 00 00 00 00 00 00"), []byte(newPIN), unhex("61 10"), 8, 8, true)
	f.Add(unhex("00 2C 02 80"), []byte(newPIN), unhex("6C 10"), 0, 0, true)
	f.Add(unhex("00 20 00 80"), []byte(newPIN), unhex("63 C2"), 0, 0, true)
	f.Add(unhex("10 2C 02 80"), []byte(newPIN), unhex("90 00"), 0, 0, true)
	headers := map[string]bool{}
	for _, s := range allowed {
		headers[s[:len("00 20 00 80")]] = true
	}
	f.Fuzz(func(t *testing.T, b, secret, answer []byte, offset, length int, slot bool) {
		c, err := apdu.ParseCommand(b)
		if err != nil {
			return
		}
		s := apdu.Step{Command: c, Secret: true, Expect: []apdu.Expect{{}}}
		if slot {
			s.Slots = []apdu.Slot{{Secret: "newPIN", Offset: offset, Length: length, Pad: 0xFF, Encoding: apdu.Raw}}
		}
		fill := func(apdu.Slot) ([]byte, error) { return bytes.Clone(secret), nil }
		sent := 0
		r := apdu.Run(t.Context(), script(s, s), fill, func(_ context.Context, command []byte) ([]byte, error) {
			sent++
			got, err := apdu.ParseCommand(command)
			if header := fmt.Sprintf("% X", command[:4]); err != nil || !headers[header] {
				t.Errorf("% X reaches the card, %v", command, err)
			}
			if got.INS == 0x20 && len(got.Data) > 0 {
				t.Errorf("% X verifies a PIN", command)
			}
			if got.INS != c.INS && got.INS != 0xC0 {
				t.Errorf("% X became % X", b, command)
			}
			return answer, nil
		})
		if r.End == apdu.Refused && sent > 0 {
			t.Errorf("%v, after %d commands", r.Err, sent)
		}
		for _, response := range r.Responses {
			if response.Data != nil {
				t.Errorf("data of a secret step is reported: % X", response.Data)
			}
		}
	})
}
