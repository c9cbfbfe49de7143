package apdu_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/problem"
)

var deadline = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// step is a step with this command, which the card answers with 9000.
func step(command string) apdu.Step {
	c, err := apdu.ParseCommand(unhex(command))
	if err != nil {
		panic(err)
	}
	return apdu.Step{Command: c, Expect: apdu.Exactly(apdu.SWOK)}
}

func script(steps ...apdu.Step) apdu.Script {
	return apdu.Script{Operation: "01JD-unblock_7", Part: 1, Fence: 7, Deadline: deadline, Steps: steps}
}

const oldPUK, newPUK, newPIN = "12345678", "87654321", "654321"

// pivUnblock checks that it is that card, sets the PIN and changes the PUK.
func pivUnblock() apdu.Script {
	chuid := step("00 CB 3F FF 05 5C 03 5F C1 02 00")
	chuid.Guards = []apdu.Guard{{Path: []apdu.Tag{0x53, 0x34}, Value: unhex("6C 55 44 79 7A 91 11 5D C3 33 0E BD 00 38 51 D2")}}
	reset := step("00 2C 00 80 10" + fmt.Sprintf("%X", oldPUK) + "00 00 00 00 00 00 00 00")
	reset.Secret = true
	reset.Slots = []apdu.Slot{{Secret: "newPIN", Offset: 8, Length: 8, Pad: 0xFF, Encoding: apdu.Digits}}
	change := step("00 24 00 81 10" + fmt.Sprintf("%X%X", oldPUK, newPUK))
	change.Secret = true
	return script(step("00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00"), chuid, reset, change)
}

// gidsUnblock is its second part: the answer to the challenge, and the new PIN.
func gidsUnblock() apdu.Script {
	reset := step("00 2C 02 80")
	reset.Slots = []apdu.Slot{{Secret: "newPIN", Encoding: apdu.Raw}}
	s := script(step("00 87 00 00 0C 7C 0A 82 08 07 2C 03 EF 17 ED D8 7C"), reset, step("00 20 00 82"))
	s.Part = 2
	return s
}

// pivIdentify reads what tells one card from another, and its tries left.
func pivIdentify() apdu.Script {
	anything := []apdu.Expect{{}}
	var steps []apdu.Step
	for _, command := range []string{
		"00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00",
		"00 CB 3F FF 05 5C 03 5F C1 02 00", "00 CB 3F FF 05 5C 03 5F C1 07 00", "00 CB 3F FF 03 5C 01 7E 00",
		"00 FD 00 00 00", "00 F8 00 00 00", "00 F7 00 81 00", "00 20 00 80",
	} {
		s := step(command)
		s.Expect = anything
		steps = append(steps, s)
	}
	steps[0].Expect = apdu.Exactly(apdu.SWOK)
	steps[7].Expect = append(apdu.Exactly(apdu.SWOK, apdu.SWBlocked), apdu.Expect{SW: 0x63C0, Mask: 0xFFF0})
	s := script(steps...)
	s.Fence = 0
	return s
}

// pin fills slots with a PIN, and keeps what it gave to see whether it is wiped.
func pin(text string, gave *[][]byte) func(apdu.Slot) ([]byte, error) {
	return func(apdu.Slot) ([]byte, error) {
		b := []byte(text)
		if gave != nil {
			*gave = append(*gave, b)
		}
		return b, nil
	}
}

// replay is a card that answers as the one in the traces did, the same commands
// in the same order.
func replay(t *testing.T, names ...string) apdu.Transmitter {
	var exchanges []exchange
	for _, name := range names {
		exchanges = append(exchanges, trace(t, name)...)
	}
	return func(_ context.Context, command []byte) ([]byte, error) {
		i := slices.IndexFunc(exchanges, func(x exchange) bool { return bytes.Equal(x.command, command) })
		if i < 0 {
			return nil, fmt.Errorf("no card was ever sent % X", command)
		}
		answer := exchanges[i].answer
		exchanges = slices.Delete(exchanges, i, i+1)
		return answer, nil
	}
}

func sws(r apdu.Result) (sws []apdu.SW) {
	for _, response := range r.Responses {
		sws = append(sws, response.SW)
	}
	return sws
}

func TestRunOnTraces(t *testing.T) {
	for _, test := range []struct {
		name   string
		script apdu.Script
		traces []string
		want   []apdu.SW
	}{
		{"PIV identify, PivApplet", pivIdentify(), []string{"pivapplet-piv", "pivapplet-yubico-ext"},
			[]apdu.SW{0x9000, 0x9000, 0x9000, 0x9000, 0x9000, 0x9000, 0x9000, 0x63C5}},
		{"PIV identify, CanoKey", pivIdentify(), []string{"canokey-piv", "canokey-yubico-ext"},
			[]apdu.SW{0x9000, 0x9000, 0x9000, 0x9000, 0x9000, 0x9000, 0x9000, 0x63C3}},
		{"PIV unblock", pivUnblock(), []string{"pivapplet-piv"}, []apdu.SW{0x9000, 0x9000, 0x9000, 0x9000}},
		{"GIDS challenge", script(step("00 22 81 A4 03 83 01 80"), step("00 87 00 00 04 7C 02 81 00 00")),
			[]string{"gids"}, []apdu.SW{0x9000, 0x9000}},
	} {
		r := apdu.Run(t.Context(), test.script, pin(newPIN, nil), replay(t, test.traces...))
		if diff := cmp.Diff(test.want, sws(r)); r.End != apdu.Done || r.Err != nil || r.Step != len(test.script.Steps) || diff != "" {
			t.Errorf("%s: %s at step %d, %v\n%s", test.name, r.End, r.Step, r.Err, diff)
		}
	}
	r := apdu.Run(t.Context(), pivUnblock(), pin(newPIN, nil), replay(t, "canokey-piv"))
	if r.End != apdu.Mismatch || r.Step != 1 {
		t.Errorf("on another card: %s at step %d, %v", r.End, r.Step, r.Err)
	}
}

func TestRunFillsSlots(t *testing.T) {
	two := step("00 24 00 81 0A 31 00 00 00 00 00 00 00 31 32")
	two.Slots = []apdu.Slot{
		{Secret: "oldPUK", Offset: 0, Length: 8, Pad: 0xFF, Encoding: apdu.ASCII},
		{Secret: "newPUK", Offset: 8, Encoding: apdu.Digits},
	}
	for _, test := range []struct {
		name   string
		script apdu.Script
		secret string
		want   string // the filled command
	}{
		{"padded", pivUnblock(), newPIN, "00 2C 00 80 10 31 32 33 34 35 36 37 38 36 35 34 33 32 31 FF FF"},
		{"whole field", pivUnblock(), "12345678", "00 2C 00 80 10 31 32 33 34 35 36 37 38 31 32 33 34 35 36 37 38"},
		{"as long as it is", gidsUnblock(), newPIN, "00 2C 02 80 06 36 35 34 33 32 31"},
		{"a field, and one inserted before more", script(two), newPIN, "00 24 00 81 10 36 35 34 33 32 31 FF FF 36 35 34 33 32 31 31 32"},
	} {
		var gave [][]byte
		c := &card{answers: []string{"90 00", "53 12 34 10 6C 55 44 79 7A 91 11 5D C3 33 0E BD 00 38 51 D2 90 00", "AA BB 90 00", "CC 90 00"}}
		if len(test.script.Steps) < 4 {
			c.answers = []string{"90 00", "AA BB 90 00", "90 00"}
		}
		r := apdu.Run(t.Context(), test.script, pin(test.secret, &gave), c.send)
		if r.End != apdu.Done || !slices.Contains(c.sent, test.want) {
			t.Errorf("%s: %s, %v; sent %q, want %s", test.name, r.End, r.Err, c.sent, test.want)
		}
		for i, response := range r.Responses {
			if s := test.script.Steps[i]; (s.Secret || len(s.Slots) > 0) && response.Data != nil {
				t.Errorf("%s: the answer to secret step %d is reported with its data", test.name, i)
			}
		}
		for _, secret := range append(gave, c.raw...) {
			if !bytes.Equal(secret, make([]byte, len(secret))) {
				t.Errorf("%s: %q is not wiped", test.name, secret)
			}
		}
	}
}

// TestRunRefuses: nothing is sent, and no error says a secret.
func TestRunRefuses(t *testing.T) {
	errNoPIN := errors.New("the person went away")
	put := step("00 DB 3F FF 03 5C 01 7E")
	tooShort := gidsUnblock()
	tooShort.Steps[1].Slots[0].Encoding = apdu.Digits
	for _, test := range []struct {
		name   string
		script apdu.Script
		fill   func(apdu.Slot) ([]byte, error)
		step   int
		want   error
	}{
		{"no steps", script(), pin(newPIN, nil), 0, nil},
		{"fill fails", pivUnblock(), func(apdu.Slot) ([]byte, error) { return nil, errNoPIN }, 2, errNoPIN},
		{"fill fails, having begun", pivUnblock(), func(apdu.Slot) ([]byte, error) { return []byte(newPIN), errNoPIN }, 2, errNoPIN},
		{"no secret", pivUnblock(), func(apdu.Slot) ([]byte, error) { return nil, nil }, 2, nil},
		{"no room", pivUnblock(), pin("123456789", nil), 2, nil},
		{"not digits", pivUnblock(), pin("abcdef", nil), 2, nil},
		{"PIV PIN of 3 digits", pivUnblock(), pin("739", nil), 2, problem.ErrForbidden},
		{"GIDS PIN of 1 digit", tooShort, pin("7", nil), 1, problem.ErrForbidden},
		{"GIDS PIN of 17 digits", tooShort, pin(strings.Repeat("7", 17), nil), 1, problem.ErrForbidden},
		{"PUT DATA at the end", script(append(pivUnblock().Steps, put)...), pin(newPIN, nil), 4, problem.ErrForbidden},
	} {
		c := &card{}
		r := apdu.Run(t.Context(), test.script, test.fill, c.send)
		if r.End != apdu.Refused || r.Step != test.step || r.Err == nil || test.want != nil && !errors.Is(r.Err, test.want) {
			t.Errorf("%s: %s at step %d, %v", test.name, r.End, r.Step, r.Err)
		}
		if len(c.sent) > 0 || len(r.Responses) > 0 {
			t.Errorf("%s: sent %q", test.name, c.sent)
		}
		for _, secret := range []string{"abcdef", "123456789", "739158", oldPUK} {
			if form := shows(printed(t, r), secret); form != "" {
				t.Errorf("%s: shows a secret as %s", test.name, form)
			}
		}
	}
}

func TestRunStops(t *testing.T) {
	const chuid = "53 12 34 10 6C 55 44 79 7A 91 11 5D C3 33 0E BD 00 38 51 D2 90 00"
	for _, test := range []struct {
		name      string
		answers   []string
		end       apdu.End
		step      int
		uncertain bool
		want      []apdu.SW
	}{
		{"not a PIV card", []string{"6A 82"}, apdu.Unexpected, 0, false, []apdu.SW{0x6A82}},
		{"another card", []string{"90 00", "53 03 34 01 6C 90 00"}, apdu.Mismatch, 1, false, []apdu.SW{0x9000, 0x9000}},
		{"not BER-TLV", []string{"90 00", "53 90 00"}, apdu.Mismatch, 1, false, []apdu.SW{0x9000, 0x9000}},
		{"wrong PUK", []string{"90 00", chuid, "63 C2"}, apdu.Unexpected, 2, false, []apdu.SW{0x9000, 0x9000, 0x63C2}},
		{"rotation fails", []string{"90 00", chuid, "90 00", "6F 00"}, apdu.Unexpected, 3, false, []apdu.SW{0x9000, 0x9000, 0x9000, 0x6F00}},
		{"pulled at once", nil, apdu.Lost, 0, true, nil},
		{"pulled while it sets the PIN", []string{"90 00", chuid}, apdu.Lost, 2, true, []apdu.SW{0x9000, 0x9000}},
		{"pulled, and no error", []string{"90 00", chuid, "90 00", ""}, apdu.Lost, 3, true, []apdu.SW{0x9000, 0x9000, 0x9000}},
		{"carried out, answer lost on the way", []string{"90 00", chuid, "61 02"}, apdu.Lost, 2, true, []apdu.SW{0x9000, 0x9000}},
	} {
		c := &card{answers: test.answers}
		r := apdu.Run(t.Context(), pivUnblock(), pin(newPIN, nil), c.send)
		if diff := cmp.Diff(test.want, sws(r)); r.End != test.end || r.Step != test.step || r.Uncertain != test.uncertain || r.Err == nil || diff != "" {
			t.Errorf("%s: %s at step %d, uncertain %v, %v\n%s", test.name, r.End, r.Step, r.Uncertain, r.Err, diff)
		}
		for _, secret := range []string{newPIN, oldPUK, newPUK} {
			if form := shows(printed(t, r), secret); form != "" {
				t.Errorf("%s: shows a secret as %s", test.name, form)
			}
		}
	}
}

func TestRunCancelledBetweenSteps(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := &card{answers: []string{"90 00", "90 00"}}
	r := apdu.Run(ctx, gidsUnblock(), pin(newPIN, nil), func(ctx context.Context, command []byte) ([]byte, error) {
		cancel()
		return c.send(ctx, command)
	})
	if r.End != apdu.Lost || r.Step != 1 || r.Uncertain || len(c.sent) != 1 {
		t.Errorf("%s at step %d, uncertain %v, after %q", r.End, r.Step, r.Uncertain, c.sent)
	}
}

func TestRunReportsLittle(t *testing.T) {
	s := script(slices.Repeat([]apdu.Step{step("00 CB 3F FF 05 5C 03 5F C1 02 00")}, 3)...)
	r := apdu.Run(t.Context(), s, nil, func(context.Context, []byte) ([]byte, error) {
		return append(make([]byte, 4000), 0x90, 0x00), nil
	})
	if r.End != apdu.Unexpected || r.Step != 2 || len(r.Responses) != 3 || r.Responses[2].Data != nil {
		t.Errorf("%s at step %d, %v", r.End, r.Step, r.Err)
	}
}

func TestExpectAndGuard(t *testing.T) {
	for _, test := range []struct {
		name   string
		expect []apdu.Expect
		guards []apdu.Guard
		answer string
		want   apdu.End
	}{
		{"tries left", []apdu.Expect{{SW: 0x63C0, Mask: 0xFFF0}}, nil, "63 C5", apdu.Done},
		{"another warning", []apdu.Expect{{SW: 0x63C0, Mask: 0xFFF0}}, nil, "63 D5", apdu.Unexpected},
		{"anything", []apdu.Expect{{}}, nil, "6D 00", apdu.Done},
		{"one of two", apdu.Exactly(apdu.SWOK, apdu.SWBlocked), nil, "69 83", apdu.Done},
		{"whole", apdu.Exactly(apdu.SWOK), []apdu.Guard{{Value: unhex("01 02")}}, "01 02 90 00", apdu.Done},
		{"more than whole", apdu.Exactly(apdu.SWOK), []apdu.Guard{{Value: unhex("01 02")}}, "01 02 03 90 00", apdu.Mismatch},
		{"part", apdu.Exactly(apdu.SWOK), []apdu.Guard{{Value: unhex("02"), Part: true, Offset: 1}}, "01 02 03 90 00", apdu.Done},
		{"part beyond the end", apdu.Exactly(apdu.SWOK), []apdu.Guard{{Value: unhex("02"), Part: true, Offset: 3}}, "01 02 90 00", apdu.Mismatch},
		{"part of an object", apdu.Exactly(apdu.SWOK), []apdu.Guard{{Path: []apdu.Tag{0x7E, 0x4F}, Value: unhex("A0"), Part: true}}, "7E 04 4F 02 A0 00 90 00", apdu.Done},
		{"one of two fails", apdu.Exactly(apdu.SWOK), []apdu.Guard{{Value: unhex("01")}, {Value: unhex("02")}}, "01 90 00", apdu.Mismatch},
	} {
		s := step("00 CB 3F FF 05 5C 03 5F C1 02 00")
		s.Expect, s.Guards = test.expect, test.guards
		r := apdu.Run(t.Context(), script(s), nil, (&card{answers: []string{test.answer}}).send)
		if r.End != test.want {
			t.Errorf("%s: %s, %v; want %s", test.name, r.End, r.Err, test.want)
		}
	}
}

func TestCheckDeadlineAndFence(t *testing.T) {
	s := pivUnblock()
	if err := s.CheckDeadline(deadline.Add(-1)); err != nil {
		t.Error(err)
	}
	if err := s.CheckDeadline(deadline); !errors.Is(err, problem.ErrState) {
		t.Errorf("at the deadline: %v", err)
	}
	for highest, want := range map[int64]error{0: nil, 7: nil, 8: problem.ErrConflict} {
		if err := s.CheckFence(highest); !errors.Is(err, want) {
			t.Errorf("fence 7 after %d: %v, want %v", highest, err, want)
		}
	}
}

func TestWipe(t *testing.T) {
	s := pivUnblock()
	s.Wipe()
	for i, want := range []string{"A0 00 00 03 08 00 00 10 00", "5C 03 5F C1 02", strings.Repeat("00", 16), strings.Repeat("00", 16)} {
		if got := s.Steps[i].Command.Data; !bytes.Equal(got, unhex(want)) {
			t.Errorf("step %d: % X, want %s", i, got, want)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*apdu.Script)
		want   []string // fields
	}{
		{"as it is", func(*apdu.Script) {}, nil},
		{"empty", func(s *apdu.Script) { *s = apdu.Script{} }, []string{"operation", "part", "deadline", "steps"}},
		{"operation", func(s *apdu.Script) { s.Operation = "a b" }, []string{"operation"}},
		{"operation too long", func(s *apdu.Script) { s.Operation = strings.Repeat("a", 65) }, []string{"operation"}},
		{"secrets without a fence", func(s *apdu.Script) { s.Fence = 0 }, []string{"fence"}},
		{"fence below 0", func(s *apdu.Script) { s.Fence = -1 }, []string{"fence"}},
		{"too many steps", func(s *apdu.Script) { s.Steps = slices.Repeat(s.Steps, 9) }, []string{"steps"}},
		{"PUK not marked", func(s *apdu.Script) { s.Steps[3].Secret = false }, []string{"steps.3.secret"}},
		{"extended", func(s *apdu.Script) { s.Steps[0].Command.Extended = true }, []string{"steps.0.apdu"}},
		{"long", func(s *apdu.Script) { s.Steps[0].Command.Data = make([]byte, 256) }, []string{"steps.0.apdu"}},
		{"slot", func(s *apdu.Script) { s.Steps[2].Slots[0] = apdu.Slot{Offset: 17} },
			[]string{"steps.2.slots.0.secret", "steps.2.slots.0.encoding", "steps.2.slots.0"}},
		{"slot longer than data", func(s *apdu.Script) { s.Steps[2].Slots[0].Length = 9 }, []string{"steps.2.slots.0"}},
		{"slots in the wrong order", func(s *apdu.Script) {
			slot := s.Steps[2].Slots[0]
			slot.Offset = 7
			s.Steps[2].Slots = append(s.Steps[2].Slots, slot)
		}, []string{"steps.2.slots.1"}},
		{"many slots", func(s *apdu.Script) {
			s.Steps[2].Slots = slices.Repeat([]apdu.Slot{{Secret: "newPIN", Encoding: apdu.Raw}}, 5)
		}, []string{"steps.2.slots"}},
		{"expects nothing", func(s *apdu.Script) { s.Steps[0].Expect = nil }, []string{"steps.0.expect"}},
		{"expects the impossible", func(s *apdu.Script) { s.Steps[0].Expect[0].Mask = 0 }, []string{"steps.0.expect.0"}},
		{"guards", func(s *apdu.Script) {
			s.Steps[1].Guards[0] = apdu.Guard{Path: []apdu.Tag{0}, Offset: 1}
		}, []string{"steps.1.guards.0.path", "steps.1.guards.0.value", "steps.1.guards.0.offset"}},
		{"many guards", func(s *apdu.Script) { s.Steps[1].Guards = slices.Repeat(s.Steps[1].Guards, 5) }, []string{"steps.1.guards"}},
	} {
		s := pivUnblock()
		test.change(&s)
		var inv *problem.InvalidError
		var got []string
		if err := s.Validate(); errors.As(err, &inv) {
			for _, v := range inv.Violations {
				got = append(got, v.Field)
			}
		} else if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: fields (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestScriptJSON(t *testing.T) {
	for _, s := range []apdu.Script{pivUnblock(), gidsUnblock(), pivIdentify()} {
		b, err := apdu.EncodeScript(s)
		if err != nil {
			t.Fatal(err)
		}
		got, err := apdu.DecodeScript(b)
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if diff := cmp.Diff(s, got, sameCommand); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	// The form is an agreement with bridges that were installed long ago.
	const want = `{"version":1,"operation":"01JD-unblock_7","part":2,"fence":7,"deadline":"2026-11-21T12:00:00Z","steps":[` +
		`{"apdu":"00870000047c02810000","expect":["9000","63C0/FFF0"],"guards":[{"path":["7C","81"],"value":"bf","part":true}]},` +
		`{"apdu":"002c0080103132333435363738ffffffffffffffff","slots":[{"secret":"newPIN","offset":8,"length":8,"pad":255,"encoding":"digits"}],"secret":true,"expect":["9000"]}]}`
	s, err := apdu.DecodeScript([]byte(want))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := apdu.EncodeScript(s); err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
}

func TestEncodeScriptErrors(t *testing.T) {
	if _, err := apdu.EncodeScript(apdu.Script{}); err == nil {
		t.Error("an empty script is written")
	}
	distant := pivIdentify()
	distant.Deadline = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := apdu.EncodeScript(distant); err == nil {
		t.Error("a deadline that JSON cannot hold is written")
	}
	big := step("00 CB 3F FF FF" + strings.Repeat("AB", 255))
	big.Guards = slices.Repeat([]apdu.Guard{{Value: make([]byte, 255)}}, 4)
	if b, err := apdu.EncodeScript(script(slices.Repeat([]apdu.Step{big}, 32)...)); err == nil {
		t.Errorf("a script of %d bytes is written", len(b))
	}
}

func TestDecodeScriptErrors(t *testing.T) {
	good, err := apdu.EncodeScript(pivUnblock())
	if err != nil {
		t.Fatal(err)
	}
	const pukHex = "3132333435363738"
	for _, test := range []struct{ name, from, to, want string }{
		{"newer", `"version":1`, `"version":2,"more":true`, "must be 1; this is 2"},
		{"no version", `"version":1,`, ``, "must be 1; this is 0"},
		{"unknown field", `"part":1`, `"part":1,"also":"` + pukHex + `"`, "unknown field"},
		{"unknown field in a step", `"secret":true`, `"secret":true,"optional":true`, "unknown field"},
		{"wrong type", `"apdu":"002c`, `"apdu":` + pukHex + `,"apdu":"002c`, `wrong type at "steps`},
		{"not hex", pukHex, pukHex + "PUK", "steps.2.apdu"},
		{"half an APDU", pukHex, "31", "steps.2.apdu"},
		{"SW", `"9000"`, `"900"`, "steps.0.expect.0"},
		{"mask", `"9000"`, `"9000/F"`, "steps.0.expect.0"},
		{"guard", `"value":"6c`, `"value":"xx`, "steps.1.guards.0.value"},
		{"path", `"path":["53"`, `"path":["xx"`, "steps.1.guards.0.path"},
		{"time", "2026-11-21T", "tomorrow", "is not a script"},
		{"not JSON", `"part":1`, `"part":`, "not JSON at byte"},
		{"not valid", `"fence":7,`, ``, "fence: must be at least 1"},
		{"two", `"expect":["9000"]}]}`, `"expect":["9000"]}]}{}`, "goes on"},
	} {
		in := strings.Replace(string(good), test.from, test.to, 1)
		_, err := apdu.DecodeScript([]byte(in))
		var inv *problem.InvalidError
		if !errors.As(err, &inv) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want it to say %q", test.name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), pukHex[:8]) {
			t.Errorf("%s: the error repeats a PUK: %v", test.name, err)
		}
	}
	if _, err := apdu.DecodeScript(append(good, bytes.Repeat([]byte(" "), 32<<10)...)); err == nil {
		t.Error("more than 32 KB are read")
	}
}

func TestScriptPrintsNoSecrets(t *testing.T) {
	s := pivUnblock()
	for _, v := range []any{s, &s, s.Steps, s.Steps[2], &s.Steps[3], struct{ S apdu.Script }{s}} {
		for _, secret := range []string{oldPUK, newPUK} {
			if form := shows(printed(t, v), secret); form != "" {
				t.Errorf("%T shows a PUK as %s:\n%s", v, form, printed(t, v))
			}
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apdu.DecodeScript(b); err == nil {
		t.Error("what is for the log is read as a script")
	}
}

func FuzzScriptJSON(f *testing.F) {
	for _, s := range []apdu.Script{pivUnblock(), gidsUnblock(), pivIdentify()} {
		b, err := apdu.EncodeScript(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := apdu.DecodeScript(b)
		if err != nil {
			var inv *problem.InvalidError
			if !errors.As(err, &inv) {
				t.Errorf("%v is not an InvalidError", err)
			}
			return
		}
		written, err := apdu.EncodeScript(s)
		if err != nil {
			t.Fatalf("%s cannot be written: %v", b, err)
		}
		back, err := apdu.DecodeScript(written)
		if diff := cmp.Diff(s, back, sameCommand); err != nil || diff != "" {
			t.Errorf("%s read again: %v\n%s", written, err, diff)
		}
	})
}
