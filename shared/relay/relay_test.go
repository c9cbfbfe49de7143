package relay_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

var update = flag.Bool("update", false, "write the golden files anew")

var at = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// script has a slot, a PUK, guards and masks.
func script() apdu.Script {
	return apdu.Script{
		Operation: "01JNABCDEFGHJKMNPQRSTVWXYZ", Part: 2, Fence: 7, Deadline: at.Add(20 * time.Second),
		Steps: []apdu.Step{
			{Command: apdu.Command{INS: 0xA4, P1: 4, Data: apdu.PIV.AID[:9], Le: 256}, Expect: apdu.Exactly(apdu.SWOK)},
			{Command: apdu.Command{INS: 0xCB, P1: 0x3F, P2: 0xFF, Data: []byte{0x5C, 3, 0x5F, 0xC1, 2}, Le: 256}, Expect: apdu.Exactly(apdu.SWOK),
				Guards: []apdu.Guard{{Path: []apdu.Tag{0x53, 0x34}, Value: bytes.Repeat([]byte{0x6C}, 16)}}},
			{Command: apdu.Command{INS: 0x2C, P2: 0x80, Data: append([]byte("12345678"), make([]byte, 8)...)}, Secret: true,
				Slots:  []apdu.Slot{{Secret: "newPIN", Offset: 8, Length: 8, Pad: 0xFF, Encoding: apdu.Digits}},
				Expect: []apdu.Expect{{SW: 0x9000, Mask: 0xFFFF}, {SW: 0x63C0, Mask: 0xFFF0}}},
		},
	}
}

func policy() *pin.Policy {
	p := pin.Default()
	p.MinLength, p.MaxLength, p.Alphabet = 6, 8, pin.Digits
	return &p
}

// messages are one of every kind, and results of every end, by the names of their files in
// testdata, which show how they look on the wire.
var messages = map[string]relay.Message{
	"hello": {Hello: &relay.Hello{Program: "1.0.0", System: "linux/amd64", Session: relay.Service}},
	"readers": {Readers: &relay.Readers{Sequence: 3, Readers: []relay.Reader{
		{Name: "ACS ACR39U 00 00", Card: &relay.Card{Insertion: "9f86d081884c7d65-4", ATR: relay.Hex{0x3B, 0x80, 0x01, 0x81}}},
		{Name: "Gemalto PC Twin 01 00"},
		{Name: "OMNIKEY 3x21 02 00", Card: &relay.Card{Insertion: "9f86d081884c7d65-silent", Silent: true}},
	}}},
	"readers-none": {Readers: &relay.Readers{Sequence: 4, Readers: []relay.Reader{}}},
	"result-done": {Result: &relay.Result{Operation: "op", Part: 1, Run: apdu.Result{End: apdu.Done, Step: 2,
		Responses: []apdu.Response{{Data: []byte{0x61, 0x02, 0x4F, 0x00}, SW: 0x9000}, {SW: 0x9000}}}}},
	"result-unexpected": {Result: &relay.Result{Operation: "op", Part: 1, Run: apdu.Result{End: apdu.Unexpected, Step: 0,
		Responses: []apdu.Response{{SW: 0x63C2}}, Err: errors.New("step 0, 00 2C 00 80 [16 bytes]: the card answered 63C2")}}},
	"result-mismatch": {Result: &relay.Result{Operation: "op", Part: 1, Run: apdu.Result{End: apdu.Mismatch, Step: 0,
		Responses: []apdu.Response{{Data: []byte{1}, SW: 0x9000}}, Err: errors.New("the answer is not that of the card meant")}}},
	"result-lost":    {Result: &relay.Result{Operation: "op", Part: 1, Run: apdu.Result{End: apdu.Lost, Step: 0, Uncertain: true, Err: errors.New("the card was removed")}}},
	"result-refused": {Result: &relay.Result{Operation: "op", Part: 1, Run: apdu.Result{End: apdu.Refused, Err: errors.New("command 00 20 00 01 is not on the allow-list")}}},
	"result-pin": {Result: &relay.Result{Operation: "op", Part: 1, Refusal: relay.RefusedPIN,
		Violations: []relay.Violation{{Code: "sequential", Reason: "must not go up or down by one from each character to the next"}}}},
	"result-interrupted": {Result: &relay.Result{Operation: "op", Part: 2, Interrupted: true}},
	"ping":               {Ping: &relay.Ping{}},
	"start":              {Start: &relay.Start{Ref: "r1", Reader: "ACS ACR39U 00 00", Insertion: "9f86d081884c7d65-4"}},
	"prove":              {Prove: &relay.Prove{Ref: "r2", Operation: "op", Code: relay.Code{Text: secret.New("402817")}}},
	"ready":              {Ready: &relay.Ready{Ref: "r3", Operation: "op"}},
	"cancel":             {Cancel: &relay.Cancel{Ref: "r4", Operation: "op"}},
	"look":               {Look: &relay.Look{Ref: "r5", Operation: "op"}},
	"welcome":            {Welcome: &relay.Welcome{Time: at, Organisation: "Acme", KeepAliveSeconds: 300, ReconnectSeconds: 6600}},
	"welcome-offline":    {Welcome: &relay.Welcome{Time: at, Organisation: "Acme", KeepAliveSeconds: 300, ReconnectSeconds: 6600, Offline: bytes.Repeat([]byte{9}, 32)}},
	"known":              {Known: &relay.Known{Credential: "piv-00", Policy: policy(), Offline: true}},
	"known-expires":      {Known: &relay.Known{Credential: "piv-00", Insertion: "9f86d081884c7d65-4", At: at, PINExpiresAt: at, Policy: policy()}},
	"offline":            {Offline: &relay.Offline{ID: "0a1b", Credential: "piv-00", At: at, PIN: relay.Yes, PUK: true}},
	"offline-wrong":      {Offline: &relay.Offline{ID: "0a1c", Credential: "piv-00", At: at, PIN: relay.No, PUK: true, TriesLeft: new(int)}},
	"offline-change":     {Offline: &relay.Offline{ID: "0a1d", Credential: "piv-00", At: at, PIN: relay.Yes, Change: true}},
	"goodbye":            {Goodbye: &relay.Goodbye{Code: relay.Update, Reason: "Version 1.0.0 is too old: install 1.1.0 or newer."}},
	"pong":               {Pong: &relay.Pong{}},
	"run-identify": {Run: &relay.Run{Reader: "ACS ACR39U 00 00", Insertion: "9f86d081884c7d65-4", Script: apdu.Script{
		Operation: "op", Part: 1, Deadline: at, Steps: script().Steps[:1]}}},
	"run-unblock": {Run: &relay.Run{Reader: "ACS ACR39U 00 00", Insertion: "9f86d081884c7d65-4", Credential: "C1", Script: script(), Policy: policy(),
		Hold: true, Continue: true, PIN: &relay.SealedPIN{Encapsulated: bytes.Repeat([]byte{0xE0}, 32), Ciphertext: bytes.Repeat([]byte{0xC0}, 81)}}},
	"ack": {Ack: &relay.Ack{Operation: "op", Part: 1}},
	"operation-code": {Operation: &relay.Operation{Ref: "r1", ID: "op", Credential: "C1", Insertion: "9f86d081884c7d65-4", Next: relay.NextCode,
		SentTo: "j…@example.com", TriesLeft: 5, State: "requested"}},
	"operation-pin": {Operation: &relay.Operation{ID: "op", Credential: "C1", Next: relay.NextPIN, Policy: policy(), Fence: 7, Until: at.Add(3 * time.Minute),
		Violations: []relay.Violation{{Code: "common", Reason: "must not be a year: such PINs are guessed first"}}, State: "proven"}},
	"operation-nothing": {Operation: &relay.Operation{ID: "op", Credential: "C1", Next: relay.NextNothing, State: "failed", Reason: "pukBlocked",
		Sentence: "The card's PUK is blocked: the card must be reissued or reset."}},
	"open":    {Open: &relay.Open{Ref: "r1", Kiosk: true}},
	"opened":  {Opened: &relay.Opened{Ref: "r1", URL: "https://pinward.example/console/kiosk/open", Token: relay.Code{Text: secret.New("acme.k7q2m4xd.x")}, Until: at.Add(2 * time.Minute), OpenSeconds: 43200, Served: true}},
	"problem": {Problem: &relay.Problem{Ref: "r1", Code: "notFound", Reason: "This card is not known here."}},
}

// compare compares messages: errors by their text, secrets by their content.
var compare = cmp.Options{
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b error) bool { return (a == nil) == (b == nil) && (a == nil || a.Error() == b.Error()) }),
	cmp.Comparer(func(a, b secret.Text) bool { return a.Equal(b) }),
	cmp.Comparer(func(a, b apdu.Command) bool { return reflect.DeepEqual(a, b) }),
}

// TestGolden holds every message against testdata, and reads it again.
func TestGolden(t *testing.T) {
	var kinds []string
	for name, m := range messages {
		got, err := relay.Encode(m)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, got, "", "  "); err != nil {
			t.Fatal(err)
		}
		pretty.WriteByte('\n')
		file := filepath.Join("testdata", name+".json")
		if *update {
			if err := os.WriteFile(file, pretty.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if diff := cmp.Diff(string(want), pretty.String()); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		back, err := relay.Decode(want)
		if diff := cmp.Diff(m, back, compare); err != nil || diff != "" {
			t.Errorf("%s read again: %v (-sent +received):\n%s", name, err, diff)
		}
		kind, _, _ := strings.Cut(name, "-")
		kinds = append(kinds, kind)
	}
	fields := reflect.TypeFor[relay.Message]()
	for i := range fields.NumField() {
		if name := strings.ToLower(fields.Field(i).Name); !slices.Contains(kinds, name) {
			t.Errorf("there is no %s", name)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	valid, err := relay.Encode(messages["run-unblock"])
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ why, in string }{
		{"empty", ``},
		{"not JSON", `hello`},
		{"no payload", `{"version":1}`},
		{"two payloads", `{"version":1,"ping":{},"pong":{}}`},
		{"unknown payload", `{"version":1,"ping":{},"extra":{}}`},
		{"unknown field", `{"version":1,"ack":{"operation":"op","part":1,"extra":1}}`},
		{"wrong type", `{"version":1,"ack":{"operation":7,"part":1}}`},
		{"more after the end", `{"version":1,"ping":{}} {}`},
		{"too long", `{"version":1,"ping":{}` + strings.Repeat(" ", relay.MaxMessage) + `}`},
		{"session", `{"version":1,"hello":{"program":"1","system":"x","session":"other"}}`},
		{"name with a space", `{"version":1,"ack":{"operation":"a b","part":1}}`},
		{"reader without a name", `{"version":1,"readers":{"sequence":1,"readers":[{"name":""}]}}`},
		{"reader twice", `{"version":1,"readers":{"sequence":1,"readers":[{"name":"a"},{"name":"a"}]}}`},
		{"ATR", `{"version":1,"readers":{"sequence":1,"readers":[{"name":"a","card":{"insertion":"i","atr":"zz"}}]}}`},
		{"ATR of 34 bytes", `{"version":1,"readers":{"sequence":1,"readers":[{"name":"a","card":{"insertion":"i","atr":"` + strings.Repeat("3B", 34) + `"}}]}}`},
		{"open without a name", `{"version":1,"open":{"ref":""}}`},
		{"opened without a token", `{"version":1,"opened":{"ref":"r","url":"https://pinward.example","token":"","until":"2030-01-31T09:00:00Z"}}`},
		{"result of part 0", `{"version":1,"result":{"operation":"op","part":0,"end":"done"}}`},
		{"result without an end", `{"version":1,"result":{"operation":"op","part":1}}`},
		{"result with an unknown end", `{"version":1,"result":{"operation":"op","part":1,"end":"other"}}`},
		{"unknown refusal", `{"version":1,"result":{"operation":"op","part":1,"refusal":"other"}}`},
		{"interrupted and refused", `{"version":1,"result":{"operation":"op","part":1,"refusal":"pin","interrupted":true}}`},
		{"SW", `{"version":1,"result":{"operation":"op","part":1,"end":"done","responses":[{"sw":"90"}]}}`},
		{"credential without a fence", strings.Replace(string(valid), `"fence":7,`, ``, 1)},
		{"fence without a credential", strings.Replace(string(valid), `"credential":"C1",`, ``, 1)},
		{"policy", strings.Replace(string(valid), `"minLength":6`, `"minLength":1`, 1)},
		{"change by a PUK", `{"version":1,"offline":{"id":"a","credential":"piv-00","at":"2030-01-31T09:00:00Z","pin":"yes","change":true,"puk":true}}`},
		{"insertion", `{"version":1,"known":{"credential":"piv-00","insertion":"a b","policy":{"minLength":6,"maxLength":8,"alphabet":"digits"}}}`},
		{"script", strings.Replace(string(valid), `"apdu":"00a4`, `"apdu":"00`, 1)},
		{"sealed PIN", strings.Replace(string(valid), `c0c0`, `c0zz`, 1)},
	} {
		_, err := relay.Decode([]byte(test.in))
		if !errors.Is(err, relay.ErrMessage) {
			t.Errorf("%s: %v", test.why, err)
		} else if strings.Contains(err.Error(), "3132333435363738") || strings.Contains(err.Error(), "zz") {
			t.Errorf("%s: the error repeats the input: %v", test.why, err)
		}
	}
}

// TestVersion: a newer message is known as one whatever it holds.
func TestVersion(t *testing.T) {
	if _, err := relay.Decode([]byte(`{"ping":{}}`)); !errors.As(err, new(*relay.VersionError)) {
		t.Errorf("without a version: %v", err)
	}
	for _, version := range []int{-1, 0, 2, 99} {
		_, err := relay.Decode(fmt.Appendf(nil, `{"version":%d,"novelty":{"x":[]}}`, version))
		var wrong *relay.VersionError
		if !errors.As(err, &wrong) || wrong.Version != version {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

// TestNewerCloud: a bridge reads what a newer cloud says, as far as it knows it; what goes to
// a card it knows as a whole, or not at all. The cloud takes nothing that it does not know.
func TestNewerCloud(t *testing.T) {
	for name, want := range messages {
		written, err := relay.Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{"at the top", "within"} {
			newer := bytes.Replace(written, []byte(`{"version":1,`), []byte(`{"version":1,"novelty":{"x":[1]},`), 1)
			if kind == "within" {
				at := bytes.IndexByte(written[1:], '{') + 2
				newer = slices.Concat(written[:at], []byte(`"novelty":{"x":[1]},`), written[at:])
				newer = bytes.Replace(newer, []byte(",}"), []byte("}"), 1)
			}
			got, err := relay.DecodeAtBridge(newer)
			if want.Result != nil && kind == "within" {
				continue // which is for the cloud, and read as strictly here
			}
			if diff := cmp.Diff(want, got, compare); err != nil || diff != "" {
				t.Errorf("%s, %s: %v (-want +got):\n%s", name, kind, err, diff)
			}
			if _, err := relay.Decode(newer); !errors.Is(err, relay.ErrMessage) && want.Run == nil {
				t.Errorf("%s, %s: the cloud takes what it does not know: %v", name, kind, err)
			}
		}
	}
	valid, err := relay.Encode(messages["run-unblock"])
	if err != nil {
		t.Fatal(err)
	}
	for why, in := range map[string]string{
		"a step of another kind":       strings.Replace(string(valid), `{"apdu":`, `{"novelty":true,"apdu":`, 1),
		"a message of a kind of later": `{"version":1,"novelty":{}}`,
		"a policy that is none":        strings.Replace(string(valid), `"minLength":6`, `"minLength":1`, 1),
	} {
		if _, err := relay.DecodeAtBridge([]byte(in)); !errors.Is(err, relay.ErrMessage) {
			t.Errorf("%s: %v", why, err)
		}
	}
	if _, err := relay.DecodeAtBridge([]byte(`{"version":2,"ping":{}}`)); !errors.As(err, new(*relay.VersionError)) {
		t.Errorf("version 2: %v", err)
	}
}

func TestEncodeErrors(t *testing.T) {
	invalid := script()
	invalid.Steps = nil
	for why, m := range map[string]relay.Message{
		"nothing":    {},
		"two":        {Ping: &relay.Ping{}, Pong: &relay.Pong{}},
		"bad script": {Run: &relay.Run{Reader: "a", Insertion: "i", Credential: "C1", Script: invalid}},
		"too many readers": {Readers: &relay.Readers{Readers: slices.Collect(func(yield func(relay.Reader) bool) {
			for i := range relay.MaxReaders + 1 {
				if !yield(relay.Reader{Name: fmt.Sprint(i)}) {
					return
				}
			}
		})}},
		"long code": {Prove: &relay.Prove{Ref: "r", Operation: "op", Code: relay.Code{Text: secret.New(strings.Repeat("1", 41))}}},
	} {
		if b, err := relay.Encode(m); err == nil {
			t.Errorf("%s: %s", why, b)
		}
	}
}

// TestSize: the largest script of a card family with a policy of 20 kB is one message, and
// what is too long is not sent.
func TestSize(t *testing.T) {
	p := policy()
	size := func() int {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	for i := 0; size() < 20_000; i++ {
		p.BlocklistEntries = append(p.BlocklistEntries, fmt.Sprintf("%020d", i))
	}
	// Twice as many steps as the longest script of shared/card has, and all are its longest.
	large := script()
	long := large.Steps[2]
	for len(large.Steps) < 14 {
		large.Steps = append(large.Steps, long)
	}
	run := relay.Run{Reader: strings.Repeat("r", 200), Insertion: strings.Repeat("i", 64), Credential: strings.Repeat("C", 64), Script: large,
		Policy: p, Hold: true, Continue: true, PIN: messages["run-unblock"].Run.PIN}
	b, err := relay.Encode(relay.Message{Run: &run})
	if err != nil {
		t.Fatalf("with a policy of %d bytes: %v", size(), err)
	}
	t.Logf("%d bytes of %d", len(b), relay.MaxMessage)
	for i := range p.BlocklistEntries {
		p.BlocklistEntries[i] = fmt.Sprintf("%064d", i)
	}
	var invalid *problem.InvalidError
	if _, err := relay.Encode(relay.Message{Run: &run}); !errors.As(err, &invalid) || invalid.Violations[0].Code != "tooLong" {
		t.Errorf("longer: %v", err)
	}
}

// TestCode: a code is in a message, and nowhere else.
func TestCode(t *testing.T) {
	m := messages["prove"]
	for _, s := range []string{fmt.Sprint(*m.Prove), fmt.Sprintf("%+v", *m.Prove), fmt.Sprintf("%#v", m.Prove.Code), m.Prove.Code.String()} {
		if strings.Contains(s, "402817") {
			t.Errorf("printed: %s", s)
		}
	}
	if s := fmt.Sprint(*messages["run-unblock"].Run); strings.Contains(s, "12345678") || strings.Contains(s, "49 50 51") {
		t.Errorf("a PUK is printed: %s", s)
	}
}

// TestResultCard: what the card's state machine is told.
func TestResultCard(t *testing.T) {
	for _, test := range []struct {
		name string
		end  apdu.End
		ok   bool
	}{
		{"result-done", apdu.Done, true},
		{"result-lost", apdu.Lost, true},
		{"result-pin", apdu.Refused, true},
		{"result-interrupted", "", false},
	} {
		got, ok := messages[test.name].Result.Card()
		if got.End != test.end || ok != test.ok {
			t.Errorf("%s: %+v, %t", test.name, got, ok)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range messages {
		b, err := relay.Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"version":1,"result":{"operation":"op","part":1,"refusal":"pin","end":"done","step":-1,"error":"é"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := relay.Decode(b)
		if err != nil {
			return
		}
		written, err := relay.Encode(m)
		var invalid *problem.InvalidError
		if errors.As(err, &invalid) && invalid.Violations[0].Code == "tooLong" {
			return // JSON can be written shorter than we do
		}
		if err != nil {
			t.Fatalf("%s: decoded, not encoded: %v", b, err)
		}
		back, err := relay.Decode(written)
		if diff := cmp.Diff(m, back, compare); err != nil || diff != "" {
			t.Errorf("%s: %v (-first +second):\n%s", written, err, diff)
		}
		again, err := relay.Encode(back)
		if err != nil || !bytes.Equal(written, again) {
			t.Errorf("written as %s, then as %s (%v)", written, again, err)
		}
		if m.Result != nil {
			_, _ = m.Result.Card()
		}
	})
}
