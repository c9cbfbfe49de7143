package softcard_test

import (
	crand "crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/problem"
)

func openFile(t *testing.T, path string, c softcard.Config) *softcard.Card {
	t.Helper()
	c.Rand = crand.Reader
	card, err := softcard.OpenFile(path, c)
	if err != nil {
		t.Fatal(err)
	}
	return card
}

// TestFile: after every answer the file has what a card would have kept without power.
func TestFile(t *testing.T) {
	for _, profile := range softcard.Profiles {
		t.Run(string(profile), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "card.json")
			card := openFile(t, path, softcard.Config{Profile: profile, Blocked: profile == softcard.CanoKey})
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			sending(t, card, selects[profile])
			random := rand.New(rand.NewPCG(5, 6))
			changes, last := 0, softcard.Digest{}
			for range 150 {
				command := nearlyRight(random, profile)
				sending(t, card, command)
				kept := card.Clone()
				kept.PowerOn()
				loaded := openFile(t, path, softcard.Config{})
				if loaded.Digest() != kept.Digest() || loaded.Profile() != profile || string(loaded.ATR()) != string(card.ATR()) {
					t.Fatalf("%X: the file has %+v, the card %+v", command, loaded.Inspect(), kept.Inspect())
				}
				if now := loaded.Digest(); now != last {
					changes, last = changes+1, now
				}
			}
			if changes < 4 {
				t.Errorf("%d changes: too few to show anything", changes)
			}
			if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
				t.Errorf("%v, %v", files, err)
			}
		})
	}
}

// TestFileObjects: ids, objects, keys and the admin key are kept too.
func TestFileObjects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "card.json")
	card := openFile(t, path, softcard.Config{Profile: softcard.PivApplet, Algorithm: 3})
	proveAdmin(t, card)
	transmit(t, card, "0047009A05AC0380011100", apdu.SWOK)
	transmit(t, card, "00DB3FFF095C035FC1055302ABCD", apdu.SWOK)
	transmit(t, card, "00FFFFFF13089B10000102030405060708090A0B0C0D0E0F", apdu.SWOK)
	loaded := openFile(t, path, softcard.Config{Profile: softcard.GIDS})
	transmit(t, loaded, selectPIV, apdu.SWOK)
	for _, command := range []string{getCHUID, "00CB3FFF055C035FC10700", "00CB3FFF055C035FC10500", "00F8000000", "00F7009A00", "00F7009B00"} {
		if got, want := transmit(t, loaded, command, apdu.SWOK), transmit(t, card, command, apdu.SWOK); string(got) != string(want) {
			t.Errorf("%s: % X, want % X", command, got, want)
		}
	}
	transmit(t, loaded, verify, apdu.SWOK)
	transmit(t, loaded, "0087119A267C2482008120"+strings.Repeat("AB", 32)+"00", apdu.SWOK) // it signs
	if !loaded.AdminKeyIs(unhex("000102030405060708090A0B0C0D0E0F")) {
		t.Error("the management key is another")
	}

	// A blank GIDS card is initialized half, and then whole.
	path = filepath.Join(t.TempDir(), "card.json")
	card = openFile(t, path, softcard.Config{Profile: softcard.GIDS, Blank: true})
	sending(t, card, selects[softcard.GIDS])
	transmit(t, card, "00E000000E620C8201398302A0008C03031000", apdu.SWOK)
	transmit(t, card, "00DBA00005DF1F02ABCD", apdu.SWOK)
	transmit(t, card, "0024018006313131313131", apdu.SWOK)
	card = openFile(t, path, softcard.Config{})
	sending(t, card, selects[softcard.GIDS])
	transmit(t, card, "00DBA00005DF2002ABCD", apdu.SWOK)
	transmit(t, card, "00A40000023FFF00", apdu.SWOK)
	transmit(t, card, "00440000", apdu.SWOK)
	card = openFile(t, path, softcard.Config{})
	sending(t, card, selects[softcard.GIDS])
	if got := transmit(t, card, "00CBA000045C02DF2000", apdu.SWOK); string(got) != string(unhex("DF2002ABCD")) || !card.PINIs("111111") {
		t.Errorf("% X", got)
	}
	transmit(t, card, "00DBA00005DF2002ABCD", apdu.SWSecurityStatus)

	// The conditions of files, and which has the key.
	path = filepath.Join(t.TempDir(), "card.json")
	openFile(t, path, softcard.Config{Profile: softcard.GIDS})
	card = openFile(t, path, softcard.Config{})
	sending(t, card, selects[softcard.GIDS])
	transmit(t, card, "002281A403830180", apdu.SWOK)
	transmit(t, card, "00CBA013025C0000", apdu.SWSecurityStatus)
	transmit(t, card, "00DBA01205DF2002ABCD", apdu.SWSecurityStatus)
}

// TestFileCannotBeWritten: a change that is not kept is not made.
func TestFileCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "card.json")
	card := openFile(t, path, softcard.Config{Profile: softcard.CanoKey})
	transmit(t, card, selectPIV, apdu.SWOK)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	before := card.Digest()
	transmit(t, card, tries, 0x63C3) // nothing to write
	transmit(t, card, unblock, apdu.SWMemoryFailure)
	transmit(t, card, "0020008008303030303030FFFF", apdu.SWMemoryFailure)
	if card.Digest() != before || card.PINIs("654321") {
		t.Error("it had an effect")
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	transmit(t, card, unblock, apdu.SWOK)
	if !openFile(t, path, softcard.Config{}).PINIs("654321") {
		t.Error("it is not in the file")
	}
	if _, err := softcard.OpenFile(filepath.Join(dir, "none", "card.json"), softcard.Config{Profile: softcard.GIDS, Rand: zeros{}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such folder: %v", err)
	}
}

func TestFileMalformed(t *testing.T) {
	for _, profile := range softcard.Profiles {
		path := filepath.Join(t.TempDir(), "card.json")
		openFile(t, path, softcard.Config{Profile: profile, PIN: "738264"})
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func(map[string]any){
			"version":    func(m map[string]any) { m["version"] = 2 },
			"profile":    func(m map[string]any) { m["profile"] = "paper" },
			"tries":      func(m map[string]any) { m["pin"].(map[string]any)["triesLeft"] = 99 },
			"negative":   func(m map[string]any) { m["pin"].(map[string]any)["triesLeft"] = -1 },
			"PIN":        func(m map[string]any) { m["pin"].(map[string]any)["value"] = "738" },
			"PIN quoted": func(m map[string]any) { m["pin"].(map[string]any)["value"] = `738264\x` },
			"admin key":  func(m map[string]any) { m["adminKey"] = "0102" },
			"hex":        func(m map[string]any) { m["adminKey"] = "7382645" },
			"more":       func(m map[string]any) { m["more"] = 1 },
			"objects": func(m map[string]any) {
				m["objects"] = map[string]any{"xx": ""}
				m["files"] = map[string]any{"xx": nil}
			},
			"keys": func(m map[string]any) {
				m["keys"] = map[string]any{"9A": map[string]any{"private": "738264"}}
				m["pin"] = nil
			},
			"chunk": func(m map[string]any) { m["chunk"] = -1 },
		} {
			var m map[string]any
			if err := json.Unmarshal(good, &m); err != nil {
				t.Fatal(err)
			}
			change(m)
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = softcard.OpenFile(path, softcard.Config{Rand: zeros{}})
			if err == nil || strings.Contains(err.Error(), "738") || !strings.Contains(err.Error(), path) {
				t.Errorf("%s, %s: %v", profile, name, err)
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != string(b) {
				t.Errorf("%s, %s: the file is changed, %v", profile, name, err)
			}
		}
	}
	path := filepath.Join(t.TempDir(), "card.json")
	openFile(t, path, softcard.Config{Profile: softcard.PivApplet})
	b, _ := os.ReadFile(path)
	b = []byte(strings.ReplaceAll(strings.Replace(string(b), `"triesLeft": 5`, `"triesLeft": 6`, 1), `"triesLeft": 3`, `"triesLeft": 4`))
	_ = os.WriteFile(path, b, 0o600)
	var invalid *problem.InvalidError
	if _, err := softcard.OpenFile(path, softcard.Config{Rand: zeros{}}); !errors.As(err, &invalid) || len(invalid.Violations) != 2 {
		t.Errorf("not all at once: %v", err)
	}
}
