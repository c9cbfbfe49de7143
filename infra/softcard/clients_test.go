//go:build linux

package softcard_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/softcard/pcscd"
	"github.com/pinward/pinward/infra/testserver"
)

// says runs a program that others wrote against a daemon, and fails the test unless it
// succeeds or not as wanted, and prints what it should.
func says(t *testing.T, d *pcscd.Daemon, succeeds bool, want, name string, args ...string) string {
	t.Helper()
	out, err := d.Command(name, args...).CombinedOutput()
	if got := string(out); (err == nil) != succeeds || !regexp.MustCompile(want).MatchString(got) {
		t.Fatalf("%s %s: %v\n got %s\nwant %s", name, strings.Join(args, " "), err, got, want)
	}
	return string(out)
}

func plug(t *testing.T, c softcard.Config) (*pcscd.Daemon, *softcard.Card) {
	t.Helper()
	for _, program := range []string{"yubico-piv-tool", "pkcs15-tool", "piv-tool", "gids-tool"} {
		if _, err := exec.LookPath(program); err != nil {
			testserver.Need(t, fmt.Errorf("%w: run infra/softcard/install.sh", err))
		}
	}
	d := pcscd.Start(t)
	c.Rand = rand.Reader
	card := newCard(t, c)
	d.Insert(0, card)
	d.Await(0, true)
	return d, card
}

// TestYubicoPIVTool goes the way on which pivapplet-both-blocked was recorded, and a
// little further.
func TestYubicoPIVTool(t *testing.T) {
	for _, profile := range []softcard.Profile{softcard.PivApplet, softcard.CanoKey} {
		t.Run(string(profile), func(t *testing.T) {
			t.Parallel()
			d, card := plug(t, softcard.Config{Profile: profile})
			tool := func(succeeds bool, want string, args ...string) string {
				t.Helper()
				return says(t, d, succeeds, want, "yubico-piv-tool", append([]string{"--reader", pcscd.Readers[0]}, args...)...)
			}
			most := card.Inspect().PINMost
			tool(true, fmt.Sprintf(`Version:\s+5\.\d\.0\n(.*\n)*CHUID:\s+3019(.*\n)*CCC:\s+f015(.*\n)*PIN tries left:\s+%d`, most), "-a", "status")
			tool(true, "Successfully verified PIN", "-a", "verify-pin", "-P", "123456")

			// A key and a certificate too long for one APDU.
			public, certificate := filepath.Join(t.TempDir(), "public.pem"), filepath.Join(t.TempDir(), "certificate.pem")
			tool(true, "Successfully generated", "-a", "generate", "-s", "9a", "-A", "ECCP256", "-o", public)
			certify(t, public, certificate)
			tool(true, "Successfully imported", "-a", "import-certificate", "-s", "9a", "-i", certificate)
			tool(true, "Subject DN:\\s+.*Test User", "-a", "status")
			signs := []string{"-a", "verify-pin", "-P", "123456", "-a", "test-signature", "-s", "9a", "-i", certificate}
			tool(true, "Successful ECDSA verification", signs...)

			// Wrong PINs until it is blocked, and then the PUK.
			for left := most - 1; left > 0; left-- {
				tool(false, fmt.Sprintf("%d tries left", left), "-a", "verify-pin", "-P", "000000")
			}
			tool(false, "Pin code blocked", "-a", "verify-pin", "-P", "000000")
			tool(false, "Pin code blocked", "-a", "verify-pin", "-P", "123456")
			tool(false, "2 tries left", "-a", "unblock-pin", "-P", "00000000", "-N", "654321")
			tool(true, "Successfully unblocked", "-a", "unblock-pin", "-P", "12345678", "-N", "654321")
			tool(true, "Successfully verified PIN", "-a", "verify-pin", "-P", "654321")
			tool(true, "Successfully changed the pin", "-a", "change-pin", "-P", "654321", "-N", "123456")
			tool(true, "Successfully changed the puk", "-a", "change-puk", "-P", "12345678", "-N", "87654321")
			if !card.PINIs("123456") || !card.PUKIs("87654321") {
				t.Error("PIN and PUK are not those that were set")
			}
			tool(true, "Successful ECDSA verification", signs...)

			// A new management key, of an algorithm that this version knows.
			const newKey = "1112131415161718212223242526272831323334353637FF"
			tool(true, "Successfully set new management key", "-a", "set-mgm-key", "-n", newKey)
			tool(false, "Failed authentication", "-a", "set-chuid")
			tool(true, "Successfully set new CHUID", "-k"+newKey, "-a", "set-chuid")

			// PIN and PUK blocked.
			for range most {
				tool(false, "", "-a", "verify-pin", "-P", "000000")
			}
			tool(false, "2 tries left", "-a", "unblock-pin", "-P", "00000000", "-N", "654321")
			tool(false, "1 tries left", "-a", "unblock-pin", "-P", "00000000", "-N", "654321")
			tool(false, "0 tries left|puk code is blocked", "-a", "unblock-pin", "-P", "00000000", "-N", "654321")
			tool(false, "puk code is blocked", "-a", "unblock-pin", "-P", "87654321", "-N", "654321")
			want := 1
			if profile == softcard.PivApplet {
				want = 0
			}
			if got := card.Inspect().Keys; got != want {
				t.Errorf("%d keys are left, want %d", got, want)
			}
			tool(true, "Successfully reset", "-a", "reset")
			tool(true, "Successfully verified PIN", "-a", "verify-pin", "-P", "123456")
		})
	}
}

// certify writes a certificate for a public key that yubico-piv-tool has written.
func certify(t *testing.T, public, certificate string) {
	t.Helper()
	b, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "Test User", Organization: []string{strings.Repeat("long ", 12)}, Locality: []string{strings.Repeat("long ", 20)}},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	if b, err = x509.CreateCertificate(rand.Reader, template, template, key, authority); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpenSC(t *testing.T) {
	guid := unhex("A0B1C2D3E4F5465789ABCDEF01234567")
	for _, profile := range []softcard.Profile{softcard.PivApplet, softcard.CanoKey} {
		t.Run(string(profile), func(t *testing.T) {
			t.Parallel()
			d, card := plug(t, softcard.Config{Profile: profile, ID: guid})
			atr := strings.TrimSuffix(regexp.MustCompile("..").ReplaceAllString(hex.EncodeToString(card.ATR()), "$0:"), ":")
			says(t, d, true, atr, "opensc-tool", "--atr")
			says(t, d, true, "Personal Identity Verification Card|CanoKey", "opensc-tool", "--name")
			// This version of OpenSC does not see that a FASC-N of zeros is none.
			serial := spaced(guid)
			if profile == softcard.PivApplet {
				serial = "00 00 00 00"
			}
			says(t, d, true, serial, "opensc-tool", "--serial")
			says(t, d, true, `SW1=0x90, SW2=0x00(.*\n)+.*61 `, "opensc-tool", "--send-apdu", "00A4040009A00000030800001000")
			says(t, d, true, "Reference +: 128", "pkcs15-tool", "--list-pins")
			says(t, d, true, "", "pkcs15-tool", "--verify-pin", "--pin", "123456")
			says(t, d, false, "PIN code or key incorrect|incorrect", "pkcs15-tool", "--verify-pin", "--pin", "000000")
			if got := card.Inspect(); got.PINTries != got.PINMost-1 {
				t.Errorf("%d tries left of %d", got.PINTries, got.PINMost)
			}
			says(t, d, true, "", "pkcs15-tool", "--change-pin", "--pin", "123456", "--new-pin", "222222")
			says(t, d, true, "", "pkcs15-tool", "--unblock-pin", "--puk", "12345678", "--new-pin", "333333")
			if !card.PINIs("333333") {
				t.Error("the PIN is not the new one")
			}
			// The management key, by witness: the other way, piv-tool stumbles over itself.
			key := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(key, []byte(strings.ReplaceAll(spaced(softcard.FactoryAdminKey), " ", ":")), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := d.Command("piv-tool", "--admin", "M:9B:03")
			cmd.Env = append(cmd.Env, "PIV_EXT_AUTH_KEY="+key)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("piv-tool --admin: %v: %s", err, out)
			}
		})
	}
}

func TestGIDSTool(t *testing.T) {
	t.Parallel()
	const factory, other = "010203040506070801020304050607080102030405060708", "1112131415161718212223242526272831323334353637FF"
	d, card := plug(t, softcard.Config{Profile: softcard.GIDS, Blank: true})
	says(t, d, true, "", "gids-tool", "--initialize", "--pin", "123456", "--admin-key", factory, "--serial-number", "0102030405060708090A0B0C0D0E0F10")
	if !card.PINIs("123456") || !card.AdminKeyIs(unhex(factory)) {
		t.Fatal("PIN and admin key are not those that were set")
	}
	says(t, d, true, "GIDS", "opensc-tool", "--name")
	says(t, d, true, "01 02 03 04 05 06 07 08 09 0A 0B 0C 0D 0E 0F 10", "opensc-tool", "--serial")
	says(t, d, true, "Tries left +: 3", "pkcs15-tool", "--list-pins")
	says(t, d, true, "", "pkcs15-tool", "--verify-pin", "--pin", "123456")
	for range 3 {
		says(t, d, false, "", "pkcs15-tool", "--verify-pin", "--pin", "000000")
	}
	says(t, d, false, "blocked", "pkcs15-tool", "--verify-pin", "--pin", "123456")
	says(t, d, false, "", "gids-tool", "--unblock", "--admin-key", other, "--pin", "654321")
	says(t, d, true, "Unblock PIN done successfully", "gids-tool", "--unblock", "--admin-key", factory, "--pin", "654321")
	says(t, d, true, "", "pkcs15-tool", "--verify-pin", "--pin", "654321")
	says(t, d, true, "", "pkcs15-tool", "--change-pin", "--pin", "654321", "--new-pin", "1111")
	says(t, d, true, "", "gids-tool", "--change-admin-key", "--admin-key", factory, "--new-admin-key", other)
	if !card.PINIs("1111") || !card.AdminKeyIs(unhex(other)) {
		t.Error("PIN and admin key are not the new ones")
	}
}

// TestPCSCD has cards pulled, an answer lost and the daemon killed.
func TestPCSCD(t *testing.T) {
	t.Parallel()
	d, card := plug(t, softcard.Config{Profile: softcard.PivApplet})
	unblock := []string{"--reader", pcscd.Readers[0], "-a", "unblock-pin", "-P", "12345678", "-N"}

	says(t, d, true, "", "yubico-piv-tool", append(unblock, "222222")...)
	before := card.Inspect().Commands
	says(t, d, true, "", "yubico-piv-tool", append(unblock, "333333")...)
	step := card.Inspect().Commands - before
	card.Inject(softcard.Fault{Step: step, Kind: softcard.Lose})
	says(t, d, false, "", "yubico-piv-tool", append(unblock, "444444")...)
	if !card.PINIs("444444") {
		t.Error("the unblock whose answer was lost had no effect")
	}
	d.Await(0, false)

	card.Inject(softcard.Fault{Step: step, Kind: softcard.Pull})
	d.Insert(0, card)
	d.Await(0, true)
	says(t, d, false, "", "yubico-piv-tool", append(unblock, "555555")...)
	if !card.PINIs("444444") {
		t.Error("the unblock before which the card was pulled had an effect")
	}
	d.Await(0, false)

	remove := d.Insert(0, card)
	d.Await(0, true)
	d.Kill()
	says(t, d, false, "", "yubico-piv-tool", append(unblock, "666666")...)
	d.Run()
	d.Await(0, true)
	says(t, d, true, "", "yubico-piv-tool", append(unblock, "777777")...)
	remove()
	d.Await(0, false)
}

func spaced(b []byte) string {
	return strings.TrimSpace(regexp.MustCompile("..").ReplaceAllString(strings.ToUpper(hex.EncodeToString(b)), "$0 "))
}
