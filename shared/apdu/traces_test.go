package apdu_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/apdu"
)

// exchange is a command and its answer, recorded with a real card.
type exchange struct{ command, answer []byte }

// unhex reads hex with spaces anywhere.
func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// trace reads what was recorded with one card: ">> command", "<< data [SW]".
func trace(t testing.TB, name string) (exchanges []exchange) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "traces", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if command, ok := strings.CutPrefix(line, ">>"); ok {
			exchanges = append(exchanges, exchange{command: unhex(command)})
		} else if answer, ok := strings.CutPrefix(line, "<<"); ok {
			exchanges[len(exchanges)-1].answer = unhex(strings.NewReplacer("[", "", "]", "").Replace(answer))
		}
	}
	return exchanges
}

// traces are all that were recorded.
func traces(t testing.TB) map[string][]exchange {
	t.Helper()
	files, err := filepath.Glob("testdata/traces/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no traces: %v", err)
	}
	all := map[string][]exchange{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		all[name] = trace(t, name)
	}
	return all
}

// TestTraces reads all that real cards and their clients said, and writes it
// again.
func TestTraces(t *testing.T) {
	commands, objects := 0, 0
	for name, exchanges := range traces(t) {
		for i, x := range exchanges {
			where := fmt.Sprintf("%s, exchange %d, % X", name, i, x.command)
			c, err := apdu.ParseCommand(x.command)
			if err != nil {
				t.Errorf("%s: %v", where, err)
				continue
			}
			if got, err := c.Encode(); err != nil || !bytes.Equal(got, x.command) {
				t.Errorf("%s: written as % X, %v", where, got, err)
			}
			r, err := apdu.ParseResponse(x.answer)
			if err != nil {
				t.Errorf("%s: %v", where, err)
				continue
			}
			if got := r.Encode(); !bytes.Equal(got, x.answer) {
				t.Errorf("%s: answer % X written as % X", where, x.answer, got)
			}
			if m := r.SW.Meaning(); m == "unknown" {
				t.Errorf("%s: no meaning for %v", where, r.SW)
			}
			commands++
			if ins := c.INS; len(r.Data) == 0 || ins == 0xFD || ins == 0xF8 {
				continue // no data, or not BER-TLV
			}
			items, err := apdu.ParseTLV(r.Data)
			if err != nil {
				t.Errorf("%s: % X: %v", where, r.Data, err)
				continue
			}
			if got := apdu.EncodeTLV(items...); !bytes.Equal(got, r.Data) && !bytes.HasPrefix(r.Data, unhex("61 81 79")) {
				t.Errorf("%s: data % X written as % X", where, r.Data, got)
			}
			objects++
		}
	}
	if commands < 280 || objects < 90 {
		t.Errorf("%d exchanges with %d data objects: traces are missing", commands, objects)
	}
}

// answerTo is the first answer in a trace to a command.
func answerTo(t *testing.T, name, command string) apdu.Response {
	t.Helper()
	for _, x := range trace(t, name) {
		if bytes.Equal(x.command, unhex(command)) {
			r, err := apdu.ParseResponse(x.answer)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
	}
	t.Fatalf("%s has no %s", name, command)
	return apdu.Response{}
}

func TestFindTLVInTraces(t *testing.T) {
	const (
		selectPIV  = "00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00"
		selectGIDS = "00 A4 04 00 0B A0 00 00 03 97 42 54 46 59 02 01 00"
		chuid      = "00 CB 3F FF 05 5C 03 5F C1 02 00"
		ccc        = "00 CB 3F FF 05 5C 03 5F C1 07 00"
		discovery  = "00 CB 3F FF 03 5C 01 7E 00"
		pukTries   = "00 F7 00 81 00"
	)
	for _, test := range []struct {
		trace, command string
		path           []apdu.Tag
		want           string
	}{
		{"pivapplet-piv", chuid, []apdu.Tag{0x53, 0x34}, "6C 55 44 79 7A 91 11 5D C3 33 0E BD 00 38 51 D2"},
		{"pivapplet-piv", chuid, []apdu.Tag{0x53, 0x30}, strings.Repeat("00", 25)},
		{"canokey-piv", chuid, []apdu.Tag{0x53, 0x34}, "29 99 D2 48 74 10 28 CD 43 01 5A 39 C6 B5 0C 22"},
		{"canokey-piv", chuid, []apdu.Tag{0x53, 0x3E}, ""},
		{"pivapplet-piv", ccc, []apdu.Tag{0x53, 0xF0}, "A0 00 00 01 16 FF 02 2A A2 AB 70 03 9C 55 10 DD F0 64 20 EC EB"},
		{"pivapplet-piv", discovery, []apdu.Tag{0x7E, 0x5F2F}, "40 00"},
		{"canokey-piv", discovery, []apdu.Tag{0x7E, 0x5F2F}, "40 10"},
		// The length of the outer object is 81 79, one byte more than needed.
		{"pivapplet-piv", selectPIV, []apdu.Tag{0x61, 0x79, 0x4F}, "A0 00 00 03 08"},
		{"canokey-piv", selectPIV, []apdu.Tag{0x61, 0x4F}, "00 00 10 00 01 00"},
		{"pivapplet-yubico-ext", pukTries, []apdu.Tag{0x06}, "03 03"},
		{"canokey-yubico-ext", pukTries, []apdu.Tag{0x06}, "03 03"},
		{"pivapplet-both-blocked", pukTries, []apdu.Tag{0x06}, "03 00"},
		{"gids", selectGIDS, []apdu.Tag{0x61, 0x73, 0x40}, "C0"},
		{"gids", "00 CB A0 12 04 5C 02 DF 20 00", []apdu.Tag{0xDF20}, "01 02 03 04 05 06 07 08 09 0A 0B 0C 0D 0E 0F 10"},
		{"gids", "00 CB 3F FF 04 5C 02 7F 71 00", []apdu.Tag{0x7F71, 0x97}, "03"},
		{"gids", "00 87 00 00 04 7C 02 81 00 00", []apdu.Tag{0x7C, 0x81}, "BF 09 E2 2D E5 53 55 F6"},
	} {
		got, err := apdu.FindTLV(answerTo(t, test.trace, test.command).Data, test.path...)
		if err != nil || !bytes.Equal(got, unhex(test.want)) {
			t.Errorf("%s, %s, %v: % X, %v; want %s", test.trace, test.command, test.path, got, err, test.want)
		}
	}
}

// TestTriesLeftInTraces has both columns of how cards differ.
func TestTriesLeftInTraces(t *testing.T) {
	const wrongPIN = "00 20 00 80 08 30 30 30 30 30 30 FF FF"
	for name, want := range map[string][]int{
		"pivapplet-piv": {4, 3, 2, 1, 0, 0},
		"canokey-piv":   {2, 1, 0, 0},
	} {
		var got []int
		for _, x := range trace(t, name) {
			if !bytes.Equal(x.command, unhex(wrongPIN)) {
				continue
			}
			r, _ := apdu.ParseResponse(x.answer)
			n, ok := r.SW.TriesLeft()
			if !ok {
				t.Errorf("%s: %v has no tries left", name, r.SW)
			}
			got = append(got, n)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: tries left (-want +got):\n%s", name, diff)
		}
	}
}
