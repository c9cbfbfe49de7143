package credential

import (
	"encoding/hex"
	"errors"
	"testing"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	return must(hex.DecodeString(s))(tb)
}

// Vectors of the NIST CAVP, KDFCTR_gen.rsp of CAVS 14.4, [PRF=HMAC_SHA256]
// [CTRLOCATION=BEFORE_FIXED] [RLEN=32_BITS], COUNT 0 and 30: one block, and two.
func TestKDF(t *testing.T) {
	for _, v := range []struct{ key, fixed, want string }{
		{"dd1d91b7d90b2bd3138533ce92b272fbf8a369316aefe242e659cc0ae238afe0",
			"01322b96b30acd197979444e468e1c5c6859bf1b1cf951b7e725303e237e46b864a145fab25e517b08f8683d0315bb2911d80a0e8aba17f3b413faac",
			"10621342bfb0fd40046c0e29f2cfdbf0"},
		{"c4bedbddb66493e7c7259a3bbbc25f8c7e0ca7fe284d92d431d9cd99a0d214ac",
			"1c69c54766791e315c2cc5c47ecd3ffab87d0d273dd920e70955814c220eacace6a5946542da3dfe24ff626b4897898cafb7db83bdff3c14fa46fd4b",
			"1da47638d6c9c4d04d74d4640bbd42ab814d9e8cc22f4326695239f96b0693f12d0dd1152cf44430"},
	} {
		if got := hex.EncodeToString(kdf(unhex(t, v.key), unhex(t, v.fixed), len(v.want)/2)); got != v.want {
			t.Errorf("got %s, want %s", got, v.want)
		}
	}
}

// The keys are those that OpenSSL 3 derives, with label in hexsalt and context in hexinfo:
//
//	openssl kdf -keylen 24 -kdfopt mac:HMAC -kdfopt digest:SHA256 -kdfopt hexkey:<master> \
//	  -kdfopt hexsalt:70696e776172642061646d696e206b6579 -kdfopt hexinfo:474944537c<card id> KBKDF
func TestDeriveAdminKey(t *testing.T) {
	const long = "ffeeddccbbaa99887766554433221100"
	for _, v := range []struct{ master, card, want string }{
		{"000102030405060708090a0b0c0d0e0f", gidsCard, "76cdc5be297f6c7b9fa1638db404420a7c626fde25a13e7b"},
		{long + long + long + long, gidsCard, "e8cac4fecb6be338dd1a105b7c25918f135db6c11f28c8d4"},
	} {
		master := secret.New(string(unhex(t, v.master)))
		if got := must(DeriveAdminKey(master, "GIDS", v.card))(t); hex.EncodeToString([]byte(got.Reveal())) != v.want {
			t.Errorf("got %x, want %s", got.Reveal(), v.want)
		}
		other := must(DeriveAdminKey(master, "GIDS", pivCard))(t)
		family := must(DeriveAdminKey(master, "PIV", v.card))(t)
		if hex.EncodeToString([]byte(other.Reveal())) == v.want || hex.EncodeToString([]byte(family.Reveal())) == v.want {
			t.Error("another card has the same key")
		}
	}
	for _, v := range []struct{ master, card, want string }{
		{"0001020304050607", gidsCard, "masterKey:length"},
		{long + long + long + long + "00", gidsCard, "masterKey:length"},
		{long, "xyz", "cardId:malformed"},
		{long, "", "cardId:malformed"},
	} {
		_, err := DeriveAdminKey(secret.New(string(unhex(t, v.master))), "GIDS", v.card)
		if got := objections(err); len(got) != 1 || got[0] != v.want {
			t.Errorf("%s of %s: got %v, want %s", v.card, v.master, err, v.want)
		}
	}
}

// A card's own admin key comes before the one that its template gives.
func TestAdminKeyOf(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	tmpl := w.template("GIDS", masterHex)
	derived := must(DeriveAdminKey(secret.New(string(unhex(t, masterHex))), "GIDS", gidsCard))(t)
	c := must(w.Register(ctx, w.core, admin, New{Family: "GIDS", CardID: gidsCard, Template: tmpl.ID}))(t)
	if got := must(c.AdminKeyOf(w.core.Keys, acme, tmpl))(t); !got.Equal(derived) {
		t.Error("it is not the derived key")
	}
	if _, err := c.AdminKeyOf(w.core.Keys, globex, tmpl); err == nil {
		t.Error("the master key opens for another tenant")
	}
	if _, err := c.AdminKeyOf(w.core.Keys, acme, w.template("GIDS", masterHex)); err == nil {
		t.Error("the master key of another template was used")
	}
	c = must(w.SetAdminKey(ctx, w.core, admin, c.ID, secret.New(keyHex), false))(t)
	if got := must(c.AdminKeyOf(w.core.Keys, acme, tmpl))(t); got.Reveal() != string(unhex(t, keyHex)) {
		t.Error("it is not the card's own key")
	}
	bare := w.template("GIDS", "")
	none := must(w.Register(ctx, w.core, admin, New{Family: "GIDS", CardID: pivCard, Template: bare.ID}))(t)
	if _, err := none.AdminKeyOf(w.core.Keys, acme, bare); !errors.Is(err, problem.ErrState) {
		t.Errorf("without a key: %v", err)
	}
}
