package card_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// recorded answers as real cards did when they were recorded: the first answer to a
// command in these traces, and 6A82 or 6D00 to what is not in them.
func recorded(t testing.TB, names ...string) map[string][]byte {
	t.Helper()
	answers := map[string][]byte{}
	command := ""
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join("..", "apdu", "testdata", "traces", name+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if c, ok := strings.CutPrefix(line, ">>"); ok {
				command = string(unhex(strings.TrimSpace(c)))
			} else if a, ok := strings.CutPrefix(line, "<<"); ok && answers[command] == nil {
				answers[command] = unhex(strings.TrimSpace(strings.NewReplacer("[", "", "]", "").Replace(a)))
			}
		}
	}
	return answers
}

// identified identifies a card that gives these answers.
func identified(t testing.TB, answers map[string][]byte, askPIN bool) card.State {
	t.Helper()
	send := func(_ context.Context, command []byte) ([]byte, error) {
		if a, ok := answers[string(command)]; ok {
			return bytes.Clone(a), nil
		}
		if command[1] == 0xA4 {
			return []byte{0x6A, 0x82}, nil
		}
		return []byte{0x6D, 0x00}, nil
	}
	s := card.Identify(askPIN)
	for part := 1; !s.Finished(); part++ {
		script, err := s.Script(card.Materials{})
		if err != nil {
			t.Fatal(err)
		}
		run := apdu.Script{Operation: "identify", Part: part, Steps: script.Steps}
		run.Deadline = run.Deadline.AddDate(1, 0, 0)
		if s, err = s.Next(apdu.Run(context.Background(), run, nil, send)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func counter(left, most int) card.RetryCounter {
	return card.RetryCounter{Known: true, TriesLeft: left, Most: most}
}

// TestIdentifyRecorded replays what real cards answered.
func TestIdentifyRecorded(t *testing.T) {
	gids := recorded(t, "gids")
	gids[string(unhex("00A4040009A0000003974254465900"))] = gids[string(unhex("00A404000BA00000039742544659020100"))]
	blocked := recorded(t, "gids")
	blocked[string(unhex("00A4040009A0000003974254465900"))] = unhex("9000")
	blocked[string(unhex("00CB3FFF045C027F7100"))] = unhex("7F71069701009301039000")
	for _, test := range []struct {
		name    string
		answers map[string][]byte
		want    card.Identity
	}{
		{"PivApplet", recorded(t, "pivapplet-piv", "pivapplet-yubico-ext"), card.Identity{
			Family: "PIV", ID: "6C5544797A91115DC3330EBD003851D2", CCC: "A000000116FF022AA2AB70039C5510DDF06420ECEB",
			Label: "PivApplet v0.9.0/REeAxaD", Serial: "3510058635", Version: "5.4.0", PIN: counter(5, 5), PUK: counter(3, 3),
		}},
		{"CanoKey", recorded(t, "canokey-piv", "canokey-yubico-ext"), card.Identity{
			Family: "PIV", ID: "2999D248741028CD43015A39C6B50C22", CCC: "3B5AA2295E0A64D925EED22540C9A4749FAB3C7872",
			Version: "5.7.0", PIN: counter(3, 3), PUK: counter(3, 3),
		}},
		{"PIV alone", recorded(t, "canokey-piv"), card.Identity{
			Family: "PIV", ID: "2999D248741028CD43015A39C6B50C22", CCC: "3B5AA2295E0A64D925EED22540C9A4749FAB3C7872",
			PIN: counter(3, 0),
		}},
		{"GIDS", gids, card.Identity{Family: "GIDS", ID: "0102030405060708090A0B0C0D0E0F10", PIN: counter(3, 3)}},
		{"GIDS blocked", blocked, card.Identity{Family: "GIDS", ID: "0102030405060708090A0B0C0D0E0F10", PIN: counter(0, 3)}},
	} {
		s := identified(t, test.answers, true)
		if diff := cmp.Diff(test.want, s.Identity); s.Leg != card.Done || diff != "" {
			t.Errorf("%s: %s %v (-want +got):\n%s", test.name, s.Leg, s.Failure, diff)
		}
	}
	if s := identified(t, recorded(t, "canokey-piv"), false); s.Identity.PIN.Known {
		t.Error("asked by an empty VERIFY, though not to")
	}
	if s := identified(t, nil, false); s.Failure.Reason != card.NotSupported {
		t.Errorf("a card of no family: %+v", s)
	}
}

// TestEmptyVerify has both columns of what a blocked card answers, and those that do
// not tell.
func TestEmptyVerify(t *testing.T) {
	for sw, want := range map[string]card.RetryCounter{
		"6983": counter(0, 0), "63C0": counter(0, 0), "63C2": counter(2, 0), "9000": {}, "6D00": {}, "6300": {},
	} {
		answers := recorded(t, "canokey-piv")
		answers[string(unhex("00200080"))] = unhex(sw)
		if s := identified(t, answers, true); s.Leg != card.Done || s.Identity.PIN != want {
			t.Errorf("%s: %+v, want %+v", sw, s.Identity.PIN, want)
		}
	}
}

// TestPIVID has OpenSC's rule.
func TestPIVID(t *testing.T) {
	const (
		guid   = "000102030405060708090A0B0C0D0E0F"
		agency = "D4321058210C2CC1A5A1E1685A1085A9A1085A9A1085A9A3F6"
		nobody = "D4E739DA739CED39CE739D836858210842108421C84210C3EB"
	)
	zero16, zero25 := strings.Repeat("00", 16), strings.Repeat("00", 25)
	tlv := func(tag, v string) string {
		if v == "" {
			return ""
		}
		return tag + hex.EncodeToString([]byte{byte(len(v) / 2)}) + v
	}
	for _, test := range []struct{ fascn, guid, want string }{
		{"", guid, guid},
		{zero25, guid, guid},
		{nobody, guid, guid},
		{agency, guid, agency},
		{agency, zero16, agency},
		{nobody, zero16, nobody},
		{agency, "", agency},
		{"D432", guid, guid},
		{zero25, zero16, ""},
		{"", zero16, ""},
		{"", "0102", ""},
	} {
		answers := recorded(t, "canokey-piv")
		body := tlv("30", test.fascn) + tlv("34", test.guid)
		answers[string(unhex("00CB3FFF055C035FC10200"))] = unhex(tlv("53", body) + "9000")
		s := identified(t, answers, false)
		if s.ID != test.want || (s.Failure.Reason == card.NoCardID) != (test.want == "") {
			t.Errorf("FASC-N %q, GUID %q: %q, %v; want %q", test.fascn, test.guid, s.ID, s.Failure, test.want)
		}
		if test.want == "" {
			continue
		}
		unblock, err := card.PIV.Reconcile(s.ID, settled(1))
		if err != nil {
			t.Fatal(err)
		}
		script, err := unblock.Script(card.Materials{})
		if err != nil || hex.EncodeToString(script.Steps[1].Guards[0].Value) != strings.ToLower(test.want) {
			t.Errorf("%s is guarded by %+v, %v", test.want, script.Steps[1].Guards, err)
		}
	}
}

// TestIdentifyFaults: whatever goes wrong, nothing is claimed and nothing is spent.
func TestIdentifyFaults(t *testing.T) {
	for _, profile := range softcard.Profiles {
		for _, kind := range []softcard.Kind{softcard.Pull, softcard.ResetCard, softcard.Empty, softcard.Lose, softcard.WrongSW} {
			for step := 1; step <= 9; step++ {
				b := newBench(t, profile)
				b.card.Inject(softcard.Fault{Step: step, Kind: kind, SW: apdu.SWNoDiagnosis})
				s := b.run(card.Identify(true))
				state := b.card.Inspect()
				if s.Leg == card.Done && s.Identity.ID == "" || s.Leg == card.Failed && s.Failure.Sentence() == "" || state.PINTries != state.PINMost {
					t.Errorf("%s, fault %d at %d: %+v", profile, kind, step, s)
				}
			}
		}
	}
	for _, chuid := range []string{"6A82", "6982", "53009000", "FF9000"} {
		answers := recorded(t, "canokey-piv")
		answers[string(unhex("00CB3FFF055C035FC10200"))] = unhex(chuid)
		if s := identified(t, answers, false); s.Leg != card.Failed {
			t.Errorf("CHUID %s: %+v", chuid, s)
		}
	}
	b := newBench(t, softcard.GIDS)
	b.after = func(n int, answer []byte) []byte {
		if n == 4 { // the card id
			return unhex("9000")
		}
		return answer
	}
	if s := b.run(card.Identify(false)); s.Failure.Reason != card.NoCardID {
		t.Errorf("GIDS without cardid: %+v", s)
	}
}

// FuzzNext gives every leg answers that no card would give.
func FuzzNext(f *testing.F) {
	legs := []card.Leg{"find", "identify", "askPIN", "unblock", "take", "read", "probe", "confirm", "challenge", "answer", "done"}
	f.Add(uint8(1), uint8(0), uint8(7), false, unhex("533B3019D4E739DA739CED39CE739D836858210842108421C84210C3EB34102999D248741028CD43015A39C6B50C22"), uint16(0x9000))
	f.Add(uint8(8), uint8(0), uint8(4), false, unhex("7C0A8108BF09E22DE55355F6"), uint16(0x9000))
	f.Add(uint8(6), uint8(4), uint8(2), true, []byte{}, uint16(0x63C2))
	ends := []apdu.End{apdu.Done, apdu.Refused, apdu.Unexpected, apdu.Mismatch, apdu.Lost, "?"}
	f.Fuzz(func(t *testing.T, leg, end, step uint8, uncertain bool, data []byte, sw uint16) {
		before := card.Custody{Stage: card.Open, Current: 1, Proposed: 2, Tries: 3, Most: 3}
		s := card.State{Version: 1, Family: "PIV", Leg: legs[int(leg)%len(legs)], Custody: before, Before: before}
		if leg&0x80 != 0 {
			s.Family = "GIDS"
		}
		r := apdu.Result{End: ends[int(end)%len(ends)], Step: int(step), Uncertain: uncertain}
		for range step % 9 {
			r.Responses = append(r.Responses, apdu.Response{Data: data, SW: apdu.SWOK})
		}
		if n := len(r.Responses); n > 0 {
			r.Responses[n-1].SW = apdu.SW(sw)
		}
		next, err := s.Next(r)
		if err != nil {
			return
		}
		if next.Leg == s.Leg && !next.Finished() {
			t.Fatalf("%s is followed by itself", s.Leg)
		}
		if next.Leg == card.Failed && next.Failure.Sentence() == "" {
			t.Fatalf("%s failed without a reason", s.Leg)
		}
		if c := next.Custody; c.Tries < 0 || c.Tries > c.Most || c.Current == 0 {
			t.Fatalf("custody %+v", c)
		}
	})
}
