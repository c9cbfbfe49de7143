package relay_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

func sealingKey(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	key, err := relay.NewSealingKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var binding = relay.Binding{Tenant: "acme", Operation: "op", Credential: "C1", Fence: 7}

func TestSealPIN(t *testing.T) {
	key := sealingKey(t)
	sizes := map[int]bool{}
	for _, text := range []string{"1", "1234", "738264", "pässword", strings.Repeat("9", 64)} {
		sealed, err := relay.SealPIN(key.PublicKey().Bytes(), binding, secret.New(text))
		if err != nil {
			t.Fatalf("%d bytes: %v", len(text), err)
		}
		if err := sealed.Validate(); err != nil {
			t.Error(err)
		}
		sizes[len(sealed.Ciphertext)] = true
		if got, err := relay.OpenPIN(key, binding, sealed); err != nil || got.Reveal() != text {
			t.Errorf("%q opened as %q, %v", text, got.Reveal(), err)
		}
	}
	if len(sizes) != 1 {
		t.Errorf("the lengths of sealed PINs tell those of the PINs: %v", sizes)
	}
	for _, text := range []string{"", strings.Repeat("9", 65)} {
		if _, err := relay.SealPIN(key.PublicKey().Bytes(), binding, secret.New(text)); err == nil {
			t.Errorf("%d bytes are sealed", len(text))
		}
	}
	for _, public := range [][]byte{nil, make([]byte, 31), make([]byte, 32)} { // the last of low order
		if _, err := relay.SealPIN(public, binding, secret.New("1234")); err == nil {
			t.Errorf("sealed to %x", public)
		}
	}
}

func TestOpenPINRefuses(t *testing.T) {
	key := sealingKey(t)
	sealed, err := relay.SealPIN(key.PublicKey().Bytes(), binding, secret.New("738264"))
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(why string, key *ecdh.PrivateKey, b relay.Binding, s relay.SealedPIN) {
		t.Helper()
		if got, err := relay.OpenPIN(key, b, s); err == nil || !got.Empty() {
			t.Errorf("%s: opened", why)
		}
	}
	for why, b := range map[string]relay.Binding{
		"tenant":     {Tenant: "other", Operation: "op", Credential: "C1", Fence: 7},
		"operation":  {Tenant: "acme", Operation: "op2", Credential: "C1", Fence: 7},
		"credential": {Tenant: "acme", Operation: "op", Credential: "C2", Fence: 7},
		"fence":      {Tenant: "acme", Operation: "op", Credential: "C1", Fence: 8},
		"shifted":    {Tenant: "acme\nop", Operation: "C1", Credential: "7", Fence: 7},
	} {
		refuse(why, key, b, sealed)
	}
	refuse("another bridge", sealingKey(t), binding, sealed)
	for i := range sealed.Ciphertext {
		changed := relay.SealedPIN{Encapsulated: sealed.Encapsulated, Ciphertext: bytes.Clone(sealed.Ciphertext)}
		changed.Ciphertext[i] ^= 1
		refuse("ciphertext changed", key, binding, changed)
	}
	for i := range sealed.Encapsulated {
		changed := relay.SealedPIN{Encapsulated: bytes.Clone(sealed.Encapsulated), Ciphertext: sealed.Ciphertext}
		changed.Encapsulated[i] ^= 1
		refuse("encapsulated key changed", key, binding, changed)
	}
	refuse("nothing", key, binding, relay.SealedPIN{})
	refuse("low order", key, binding, relay.SealedPIN{Encapsulated: make([]byte, 32), Ciphertext: sealed.Ciphertext})

	// What another sealer may put inside.
	for why, plain := range map[string][]byte{
		"short":          append([]byte{6}, "738264"...),
		"of length 0":    make([]byte, 65),
		"of length 65":   append([]byte{65}, bytes.Repeat([]byte("9"), 64)...),
		"padded with 01": append(append([]byte{6}, "738264"...), bytes.Repeat([]byte{1}, 58)...),
	} {
		refuse(why, key, binding, seal(t, key, plain))
	}
	if got, err := relay.OpenPIN(key, binding, seal(t, key, append(append([]byte{6}, "738264"...), make([]byte, 58)...))); err != nil || got.Reveal() != "738264" {
		t.Errorf("made otherwise: %v", err)
	}
}

// seal seals any plaintext as SealedPIN says.
func seal(t *testing.T, key *ecdh.PrivateKey, plain []byte) relay.SealedPIN {
	t.Helper()
	public, err := hpke.NewDHKEMPublicKey(key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.AES128GCM(), []byte("pinward new PIN"))
	if err != nil {
		t.Fatal(err)
	}
	ciphertext, err := sender.Seal([]byte("pinward-pin-1\nacme\nop\nC1\n7"), plain)
	if err != nil {
		t.Fatal(err)
	}
	return relay.SealedPIN{Encapsulated: enc, Ciphertext: ciphertext}
}

// TestSuite opens RFC 9180's vector of appendix A.1.1, which has the same KEM, KDF and
// AEAD, with the library that SealPIN and OpenPIN use; seal above shows that they use
// these three.
func TestSuite(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	key, err := ecdh.X25519().NewPrivateKey(unhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")) // skRm
	if err != nil {
		t.Fatal(err)
	}
	private, err := hpke.NewDHKEMPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	enc := unhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431")
	recipient, err := hpke.NewRecipient(enc, private, hpke.HKDFSHA256(), hpke.AES128GCM(), unhex("4f6465206f6e2061204772656369616e2055726e"))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := recipient.Open(unhex("436f756e742d30"), unhex("f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"))
	if err != nil || string(plain) != "Beauty is truth, truth beauty" {
		t.Errorf("%q, %v", plain, err)
	}
}

func FuzzOpenPIN(f *testing.F) {
	key := sealingKey(f)
	sealed, err := relay.SealPIN(key.PublicKey().Bytes(), binding, secret.New("738264"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(sealed.Encapsulated), []byte(sealed.Ciphertext))
	f.Fuzz(func(t *testing.T, enc, ciphertext []byte) {
		got, err := relay.OpenPIN(key, binding, relay.SealedPIN{Encapsulated: enc, Ciphertext: ciphertext})
		if err == nil && got.Reveal() != "738264" {
			t.Errorf("opened as %q", got.Reveal())
		}
	})
}
