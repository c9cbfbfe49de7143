package offline_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/secret"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWindows is the telephone call: from what is heard to what is said.
func TestWindows(t *testing.T) {
	adminKey := secret.New(strings.Repeat("\x01\x02\x03\x04\x05\x06\x07\x08", 3))
	for _, typed := range []string{"BF09E22DE55355F6", "bf09 e22d e553 55f6", "BFO9-E22D-E553-55F6", "bf.o9.e2.2d.e5.53.55.f6\n"} {
		c, err := offline.ParseChallenge(typed)
		if err != nil {
			t.Fatalf("%q: %v", typed, err)
		}
		if c.String() != "BF09 E22D E553 55F6" {
			t.Errorf("%q is shown back as %s", typed, c)
		}
		answer, err := card.Answer(adminKey, c.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if got := offline.Hex(answer); got != "072C 03EF 17ED D87C" {
			t.Errorf("%q is answered by %s", typed, got)
		}
		want := map[offline.Language]string{
			offline.English: "zero seven two Charlie, zero three Echo Foxtrot, one seven Echo Delta, Delta eight seven Charlie",
			offline.German:  "null sieben zwo Charlie, null drei Echo Foxtrot, eins sieben Echo Delta, Delta acht sieben Charlie",
			"fr":            "zero seven two Charlie, zero three Echo Foxtrot, one seven Echo Delta, Delta eight seven Charlie",
		}
		for l, words := range want {
			if diff := cmp.Diff(words, offline.Spoken(l, offline.Hex(answer))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", l, diff)
			}
		}
	}
}

func TestSpokenHasAWordForEverySymbol(t *testing.T) {
	for l, want := range map[offline.Language]string{
		offline.English: "zero one two three four five six seven eight nine Alfa Bravo Charlie Delta Echo Foxtrot",
		offline.German:  "null eins zwo drei vier fünf sechs sieben acht neun Alfa Bravo Charlie Delta Echo Foxtrot",
	} {
		if got := offline.Spoken(l, "0123456789ABCDEF"); got != want {
			t.Errorf("%s: %s", l, got)
		}
	}
}

func TestParseChallengeShowsWhatItReplaced(t *testing.T) {
	c, err := offline.ParseChallenge("OOil-I|22 o0011122 33445566778899AA")
	if err != nil {
		t.Fatal(err)
	}
	if c.String() != "0011 1122 0001 1122 3344 5566 7788 99AA" {
		t.Errorf("shown back as %s", c)
	}
	var got []string
	for _, r := range c.Replaced {
		got = append(got, r.String())
	}
	want := []string{
		"O in group 1, place 1 taken for 0", "O in group 1, place 2 taken for 0", "i in group 1, place 3 taken for 1", "l in group 1, place 4 taken for 1",
		"I in group 2, place 1 taken for 1", "| in group 2, place 2 taken for 1", "o in group 3, place 1 taken for 0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseChallengeSaysWhatIsWrong(t *testing.T) {
	for typed, want := range map[string]string{
		"":                    "invalid: challenge: has 0 hex digits, must have 16 or 32",
		"BF09E22DE55355F":     "invalid: challenge: has 15 hex digits, must have 16 or 32",
		"BF09E22DE55355F61":   "invalid: challenge: has 17 hex digits, must have 16 or 32",
		"BF09 E22D E5G3 55F6": "invalid: challenge: 'G' at place 3 of group 3 is no hex digit: ask whether it is 6, C or D",
		"SF09 E22Z E553 55L6": "invalid: challenge: 'S' at place 1 of group 1 is no hex digit: ask whether it is 5, 8 or F; " +
			"challenge: 'Z' at place 4 of group 2 is no hex digit: ask whether it is 2 or C; challenge: 'L' at place 3 of group 4 is no hex digit: ask whether it is 1 or F",
		"BF09 X22D E553 55F":                 "invalid: challenge: 'X' at place 1 of group 2 is no hex digit; challenge: has 15 hex digits, must have 16 or 32",
		"ВF09 E22D E553 55F6":                "invalid: challenge: 'В' (U+0412) at place 1 of group 1 is no hex digit", // Cyrillic
		"BF09E22DE55355F6BF09E22DE55355":     "invalid: challenge: has 30 hex digits, must have 16 or 32",
		strings.Repeat("0", 33):              "invalid: challenge: has 33 hex digits, must have 16 or 32",
		strings.Repeat("BF09E22DE5535 ", 90): "invalid: challenge: is longer than any code",
	} {
		c, err := offline.ParseChallenge(typed)
		if err == nil || err.Error() != want {
			t.Errorf("%q:\ngot  %v\nwant %s", typed, err, want)
		}
		if len(c.Bytes()) != 0 || len(c.Replaced) != 0 {
			t.Errorf("%q: a challenge with an error", typed)
		}
	}
}

// TestOnlyTheseLettersAreForgiven goes through ASCII.
func TestOnlyTheseLettersAreForgiven(t *testing.T) {
	var forgiven, skipped string
	for r := rune(0); r < 128; r++ {
		if strings.ContainsRune("0123456789abcdefABCDEF", r) {
			continue
		}
		if c, err := offline.ParseChallenge("2222222222" + string(r) + "55555"); err == nil {
			forgiven += string(r) + c.String()[12:13] + " "
		} else if _, err := offline.ParseChallenge("2222222222" + string(r) + "555555"); err == nil {
			skipped += string(r)
		}
	}
	if forgiven != "I1 O0 i1 l1 o0 |1 " {
		t.Errorf("forgiven: %s", forgiven)
	}
	if skipped != "\t\n\v\f\r ,-./:;_" {
		t.Errorf("skipped: %q", skipped)
	}
}

func TestPUKHex(t *testing.T) {
	got, err := offline.PUKHex(secret.New("12345678"))
	if err != nil || got.Reveal() != "3132 3334 3536 3738" {
		t.Errorf("%s, %v", got.Reveal(), err)
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v %s", got, got, got, got), "3132") {
		t.Error("it is printed")
	}
	for puk, want := range map[string]string{
		"1234567":     "invalid: puk: must have exactly 8 characters",
		"123456789":   "invalid: puk: must have exactly 8 characters",
		"1234 678":    "invalid: puk: must be digits, letters or signs of ASCII, without spaces",
		"1234567\xff": "invalid: puk: must be digits, letters or signs of ASCII, without spaces",
		"":            "invalid: puk: must have exactly 8 characters",
	} {
		if got, err := offline.PUKHex(secret.New(puk)); err == nil || err.Error() != want || !got.Empty() {
			t.Errorf("%q: %v", puk, err)
		}
	}
}

func FuzzParseChallenge(f *testing.F) {
	for _, s := range []string{"BF09 E22D E553 55F6", "bfO9e22de55355f6bf09e22de5535|Il", "B-F-0\u00A09", "\xffO"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, typed string) {
		c, err := offline.ParseChallenge(typed)
		if err != nil {
			return
		}
		if n := len(c.Bytes()); n != 8 && n != 16 {
			t.Fatalf("%q: %d bytes", typed, n)
		}
		again, err := offline.ParseChallenge(c.String())
		if err != nil || again.String() != c.String() || len(again.Replaced) != 0 {
			t.Errorf("%q is shown back as %s, which is %s, %v", typed, c, again, err)
		}
	})
}
