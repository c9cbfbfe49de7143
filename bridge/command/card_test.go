package command

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/secret"
)

var theID = bytes.Repeat([]byte{0xA1}, 16)

// TestScripts holds what a bridge makes against what the cloud does.
func TestScripts(t *testing.T) {
	same := func(what string, got []apdu.Step, want []apdu.Step) {
		t.Helper()
		if len(got) != len(want) {
			t.Fatalf("%s: %d steps, want %d", what, len(got), len(want))
		}
		for i := range got {
			if !reflect.DeepEqual(got[i], want[i]) {
				t.Errorf("%s, step %d: %+v, want %+v", what, i, got[i], want[i])
			}
		}
	}
	theirs := func(s card.State) []apdu.Step {
		t.Helper()
		script, err := s.Script(card.Materials{
			PUK: func(slot int) (secret.Text, error) {
				return secret.New([]string{"", "47110815", "12345678"}[slot]), nil
			},
			AdminKey: func() (secret.Text, error) { return secret.New("0123456789abcdef01234567"), nil },
			Policy:   map[string]*card.Family{"PIV": card.PIV, "GIDS": card.GIDS}[s.Family].Policy(),
		})
		if err != nil {
			t.Fatal(err)
		}
		return script.Steps
	}
	guarded := func(step apdu.Step, path ...apdu.Tag) apdu.Step {
		step.Guards = []apdu.Guard{{Path: path, Value: theID}}
		return step
	}

	piv := unblockable{&apdu.PIV, theID, guarded(getData(0x3FFF, 0x5F, 0xC1, 0x02), 0x53, 0x34)}
	s, err := card.PIV.Unblock(hex.EncodeToString(theID), card.Claim(1, card.RetryCounter{}), 2)
	if err != nil {
		t.Fatal(err)
	}
	want := theirs(s)
	same("by PUK", piv.byPUK(secret.New("47110815")).steps, []apdu.Step{want[0], want[1], want[2], want[4]})

	gids := unblockable{&apdu.GIDS, theID, guarded(getData(0xA012, 0xDF, 0x20), 0xDF20)}
	if s, err = card.GIDS.Unblock(hex.EncodeToString(theID), card.Custody{}, 0); err != nil {
		t.Fatal(err)
	}
	if want := theirs(s); !reflect.DeepEqual(gids.guard, want[1]) {
		t.Errorf("guard: %+v, want %+v", gids.guard, want[1])
	}
	s, err = s.Next(apdu.Result{End: apdu.Done, Step: 4, Responses: []apdu.Response{{SW: 0x9000}, {SW: 0x9000}, {SW: 0x9000}, {Data: []byte{0x7C, 0x0A, 0x81, 8, 1, 2, 3, 4, 5, 6, 7, 8}, SW: 0x9000}}})
	if err != nil {
		t.Fatal(err)
	}
	want = theirs(s)
	answer, err := card.Answer(secret.New("0123456789abcdef01234567"), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	if err != nil {
		t.Fatal(err)
	}
	same("by answer", gids.byAnswer(answer).steps, []apdu.Step{want[0], want[1], want[3]})

	for f, c := range map[*card.Family]unblockable{card.PIV: piv, card.GIDS: gids} {
		if diff := cmp.Diff(f.Policy(), c.usualPolicy()); diff != "" {
			t.Errorf("policy of %s (-want +got):\n%s", f.Name, diff)
		}
	}
}

// TestPIVID: the rule by which a card has its GUID or its FASC-N for an id.
func TestPIVID(t *testing.T) {
	fascn, nobodys := bytes.Repeat([]byte{0xD0}, 25), append([]byte{0xD4, 0xE7, 0x39, 0xDA}, make([]byte, 21)...)
	chuid := func(fascn, guid []byte) []byte {
		var v []byte
		if fascn != nil {
			v = apdu.EncodeTLV(apdu.TLV{Tag: 0x30, Value: fascn})
		}
		return apdu.EncodeTLV(apdu.TLV{Tag: 0x53, Value: append(v, apdu.EncodeTLV(apdu.TLV{Tag: 0x34, Value: guid})...)})
	}
	for name, c := range map[string]struct{ fascn, guid, want []byte }{
		"both":               {fascn, theID, fascn},
		"no FASC-N":          {nil, theID, theID},
		"FASC-N of nobody":   {nobodys, theID, theID},
		"FASC-N of zeros":    {make([]byte, 25), theID, theID},
		"GUID of zeros":      {fascn, make([]byte, 16), fascn},
		"neither":            {make([]byte, 25), make([]byte, 16), nil},
		"GUID of 15 bytes":   {nil, theID[:15], nil},
		"FASC-N of 24 bytes": {fascn[:24], theID, theID},
	} {
		got, _ := pivID(chuid(c.fascn, c.guid))
		if !bytes.Equal(got, c.want) {
			t.Errorf("%s: %X, want %X", name, got, c.want)
		}
	}
}
