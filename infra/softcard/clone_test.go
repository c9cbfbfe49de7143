package softcard_test

import (
	"bytes"
	crand "crypto/rand"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
)

// zeros is randomness that makes cards and challenges alike.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// TestCloneIsIndependent sends a card commands, and its clone others, and finds that the
// card answers like one that was never cloned.
func TestCloneIsIndependent(t *testing.T) {
	for _, profile := range softcard.Profiles {
		random := rand.New(rand.NewPCG(3, 4))
		config := softcard.Config{Profile: profile, ID: unhex("000102030405060708090A0B0C0D0E0F"), Rand: zeros{}}
		for range 50 {
			card, alone := newCard(t, config), newCard(t, config)
			sending(t, card, selects[profile])
			sending(t, alone, selects[profile])
			var clones []*softcard.Card
			var digests []softcard.Digest
			for range 60 {
				clone := card.Clone()
				if clone.Digest() != card.Digest() || clone.Inspect() != card.Inspect() || clone.Profile() != profile {
					t.Fatalf("%s: the clone differs", profile)
				}
				for range 5 {
					sending(t, clone, nearlyRight(random, profile))
				}
				clones, digests = append(clones, clone), append(digests, clone.Digest())
				command := nearlyRight(random, profile)
				if got, want := sending(t, card, command), sending(t, alone, command); got != want {
					t.Fatalf("%s: %X answered %s, and %s by a card without clones", profile, command, got, want)
				}
				if card.Digest() != alone.Digest() {
					t.Fatalf("%s: %X made them differ", profile, command)
				}
			}
			for i, clone := range clones {
				if clone.Digest() != digests[i] {
					t.Fatalf("%s: a clone has changed by itself", profile)
				}
			}
		}
	}
}

// TestCloneOfObjects: what is written to either stays there.
func TestCloneOfObjects(t *testing.T) {
	card := newCard(t, softcard.Config{Profile: softcard.PivApplet, Rand: crand.Reader})
	proveAdmin(t, card)
	transmit(t, card, "0047009A05AC0380011100", apdu.SWOK)
	clone := card.Clone()
	transmit(t, clone, "00DB3FFF095C035FC1055302ABCD", apdu.SWOK)
	transmit(t, clone, "0047009C05AC0380011100", apdu.SWOK)
	transmit(t, card, "00CB3FFF055C035FC10500", apdu.SWNotFound)
	if card.Inspect().Keys != 1 || clone.Inspect().Keys != 2 {
		t.Error("a key is in both")
	}
	for range 8 { // PIN and PUK blocked erases keys
		sending(t, clone, unhex("0020008008303030303030FFFF"))
		sending(t, clone, unhex("002C0080103030303030303030363534333231FFFF"))
	}
	if card.Inspect().Keys != 1 || clone.Inspect().Keys != 0 {
		t.Errorf("%+v, clone %+v", card.Inspect(), clone.Inspect())
	}

	blank := newCard(t, softcard.Config{Profile: softcard.GIDS, Blank: true, Rand: crand.Reader})
	sending(t, blank, selects[softcard.GIDS])
	clone = blank.Clone()
	transmit(t, clone, "00E000000E620C8201398302A0008C03030000", apdu.SWOK)
	again := clone.Clone()
	transmit(t, again, "00DBA00005DF1F02ABCD", apdu.SWOK)
	const get = "00CBA000045C02DF1F00"
	transmit(t, again, get, apdu.SWOK)
	transmit(t, clone, get, apdu.SWReferenceDataNotFound)
	transmit(t, blank, get, apdu.SWNotFound)
	transmit(t, again.Clone(), "00DBA00005DF1F021234", apdu.SWOK)
	if got := transmit(t, again, get, apdu.SWOK); !bytes.Equal(got, unhex("DF1F02ABCD")) {
		t.Errorf("the clone's object is in the card: % X", got)
	}
}

func TestCloneHasFaultsToCome(t *testing.T) {
	card := piv(t)
	card.Inject(softcard.Fault{Step: 2, Kind: softcard.Pull})
	transmit(t, card, selectPIV, apdu.SWOK)
	clone := card.Clone()
	card.Inject()
	transmit(t, card, verify, apdu.SWOK)
	if _, err := clone.Transmit(unhex(verify)); !errors.Is(err, softcard.ErrRemoved) {
		t.Errorf("the clone: %v", err)
	}
}

// TestDigest: what a bridge can make differ, differs.
func TestDigest(t *testing.T) {
	seen := map[softcard.Digest]string{}
	note := func(what string, card *softcard.Card) {
		t.Helper()
		d := card.Digest()
		if other, ok := seen[d]; ok {
			t.Errorf("%s is as %s", what, other)
		}
		seen[d] = what
	}
	card := newCard(t, softcard.Config{Profile: softcard.PivApplet, Rand: zeros{}})
	note("new", card)
	for _, command := range []string{
		selectPIV, verify, "0020008008303030303030FFFF",
		unblock, "002C0080103030303030303030363534333231FFFF", "00240081103132333435363738" + "3837363534333231",
		"0087039B047C02800000", "0087039B047C02810000", "10DB3FFF025C03", "10DB3FFF025C04",
	} {
		sending(t, card, unhex(command))
		note(command, card)
	}
	sending(t, card, unhex("00DB3FFF025C03"))
	before := card.Digest()
	sending(t, card, unhex(getCHUID))
	if card.Digest() != before {
		t.Error("reading makes it differ")
	}
	sending(t, card, unhex("00CB3FFF055C035FC10205"))
	note("half read", card)
	card.PowerOff()
	note("off", card)
	card = newCard(t, softcard.Config{Profile: softcard.GIDS, Rand: crand.Reader})
	note("GIDS", card)
	for _, command := range []string{
		"00A4040009A0000003974254465900", "002281A403830180", "00870000047C02810000", "00870000047C02810000",
		"00CBA012045C02DF2000", "0020008006313233343536", "0020008006303030303030",
	} {
		sending(t, card, unhex(command))
		note("GIDS "+command, card)
	}
}

func TestTap(t *testing.T) {
	card := piv(t)
	var got []string
	card.Tap(func(command []byte) { got = append(got, string(command)) })
	card.Inject(softcard.Fault{Step: 2, Kind: softcard.ResetCard}, softcard.Fault{Step: 3, Kind: softcard.Empty}, softcard.Fault{Step: 4, Kind: softcard.Lose})
	for _, command := range []string{selectPIV, verify, tries, unblock, "0020"} {
		_, _ = card.Transmit(unhex(command))
	}
	want := []string{selectPIV, unblock, "0020"}
	if len(got) != len(want) {
		t.Fatalf("%X", got)
	}
	for i := range want {
		if got[i] != string(unhex(want[i])) {
			t.Errorf("%X, want %s", got[i], want[i])
		}
	}
	transmit(t, card.Clone(), selectPIV, apdu.SWOK)
	card.Tap(nil)
	transmit(t, card, selectPIV, apdu.SWOK)
	if len(got) != len(want) {
		t.Error("it goes on")
	}
}

func BenchmarkClone(b *testing.B) {
	for _, profile := range softcard.Profiles {
		b.Run(string(profile), func(b *testing.B) {
			card := newCard(b, softcard.Config{Profile: profile, Rand: zeros{}})
			b.ReportAllocs()
			for b.Loop() {
				card = card.Clone()
			}
		})
	}
}

func BenchmarkDigest(b *testing.B) {
	for _, profile := range softcard.Profiles {
		b.Run(string(profile), func(b *testing.B) {
			card := newCard(b, softcard.Config{Profile: profile, Rand: zeros{}})
			var d softcard.Digest
			b.ReportAllocs()
			for b.Loop() {
				d = card.Digest()
			}
			_ = d
		})
	}
}
