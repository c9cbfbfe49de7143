//go:build linux && cgo && !nopcsc

package endtoend

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/softcard/pcscd"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/secret"
)

// TestPIV: a card whose PIN somebody has blocked gets a new one by an operator, and when
// that is blocked too, by its holder. yubico-piv-tool is the judge.
func TestPIV(t *testing.T) {
	for _, profile := range []softcard.Profile{softcard.PivApplet, softcard.CanoKey} {
		t.Run(string(profile), func(t *testing.T) {
			t.Parallel()
			in := install(t)
			tool := func(succeeds bool, want string, args ...string) {
				t.Helper()
				in.says(succeeds, want, "yubico-piv-tool", append([]string{"--reader", pcscd.Readers[0]}, args...)...)
			}
			card, id := newCard(t, softcard.Config{Profile: profile})
			w := watch(card, softcard.FactoryPUK)
			cred := in.register("PIV", id, in.template("PIV", ""), object{"puk": softcard.FactoryPUK})
			in.pcscd.Insert(0, card)
			in.seen(cred)
			block := func(pin string) {
				t.Helper()
				tool(true, "Successfully verified PIN", "-a", "verify-pin", "-P", pin)
				for left := card.Inspect().PINMost - 1; left > 0; left-- {
					tool(false, fmt.Sprintf("%d tries left", left), "-a", "verify-pin", "-P", "000000")
				}
				tool(false, "Pin code blocked", "-a", "verify-pin", "-P", "000000")
				tool(false, "Pin code blocked", "-a", "verify-pin", "-P", pin)
			}

			block(softcard.FactoryPIN)
			const byOperator, byHolder = "80316427", "59173628"
			in.succeeds(cred, byOperator, true)
			tool(true, "Successfully verified PIN", "-a", "verify-pin", "-P", byOperator)
			tool(false, "2 tries left", "-a", "unblock-pin", "-P", softcard.FactoryPUK, "-N", "654321")

			block(byOperator)
			code := in.selfService(byHolder, 0)
			tool(true, "Successfully verified PIN", "-a", "verify-pin", "-P", byHolder)

			if left := card.Inspect(); left.PUKTries != left.PUKMost {
				t.Errorf("the PUK has %d tries of %d", left.PUKTries, left.PUKMost)
			}
			if wrong, _ := w.counts(); wrong != 1 {
				t.Errorf("%d wrong PUKs were presented, want the one of this test", wrong)
			}
			puks, _ := w.known()
			if len(puks) != 3 {
				t.Errorf("%d PUKs, want the factory's and two more", len(puks))
			}
			in.listensNowhere()
			in.keepsSecret(append(puks, byOperator, byHolder, code)...)
		})
	}
}

// TestGIDS is the same with an admin key; OpenSC is the judge.
func TestGIDS(t *testing.T) {
	adminKey, master := make([]byte, 24), make([]byte, 32)
	_, _ = rand.Read(adminKey) // never fails
	_, _ = rand.Read(master)
	for _, test := range []struct {
		name      string
		key       func(id []byte) []byte
		masterKey string
		register  object
	}{
		{"escrowed", func([]byte) []byte { return adminKey }, "", object{"adminKey": hex.EncodeToString(adminKey)}},
		{"derived", func(id []byte) []byte {
			key, err := credential.DeriveAdminKey(secret.New(string(master)), "GIDS", hex.EncodeToString(id))
			if err != nil {
				t.Fatal(err)
			}
			return []byte(key.Reveal())
		}, hex.EncodeToString(master), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			in := install(t)
			id := make([]byte, 16)
			_, _ = rand.Read(id)
			key := test.key(id)
			card, err := softcard.New(softcard.Config{Profile: softcard.GIDS, ID: id, AdminKey: key, Rand: rand.Reader})
			if err != nil {
				t.Fatal(err)
			}
			template := in.template("GIDS", test.masterKey)
			in.pcscd.Insert(0, card)
			in.identified(id) // before it is registered
			cred := in.register("GIDS", id, template, test.register)
			in.seen(cred)
			in.says(true, "GIDS", "opensc-tool", "--name")
			in.says(true, "Tries left +: 3", "pkcs15-tool", "--list-pins")
			block := func(pin string) {
				t.Helper()
				in.says(true, "", "pkcs15-tool", "--verify-pin", "--pin", pin)
				for _, sw := range []string{"SW1=0x63, SW2=0xC2", "SW1=0x63, SW2=0xC1", "SW1=0x63, SW2=0xC0"} {
					in.says(true, sw, "opensc-tool", "--send-apdu", "00A4040009A00000039742544659", "--send-apdu", "0020008006303030303030")
				}
				in.says(false, "blocked", "pkcs15-tool", "--verify-pin", "--pin", pin)
			}

			block(softcard.FactoryPIN)
			const byOperator, byHolder = "kV7mQ2xw9", "80316427tQ"
			in.succeeds(cred, byOperator, false)
			in.says(true, "", "pkcs15-tool", "--verify-pin", "--pin", byOperator)
			in.says(true, "Tries left +: 3", "pkcs15-tool", "--list-pins")

			block(byOperator)
			code := in.selfService(byHolder, 0)
			in.says(true, "", "pkcs15-tool", "--verify-pin", "--pin", byHolder)
			in.says(true, "Unblock PIN done successfully", "gids-tool", "--unblock", "--admin-key", hex.EncodeToString(key), "--pin", "654321")

			in.listensNowhere()
			in.keepsSecret(byOperator, byHolder, code, string(key), hex.EncodeToString(key), string(master))
		})
	}
}
