package relay_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

func TestToken(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const address = "wss://relay.example.com/v1"
	claims := relay.Claims{Tenant: "acme", Bridge: "BR1", Relay: address, ID: "0001", At: at}
	token := func(key ed25519.PrivateKey, change func(*relay.Claims)) secret.Text {
		c := claims
		if change != nil {
			change(&c)
		}
		text, err := relay.NewToken(key, c)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	// signed is a token of any claims under any algorithm.
	signed := func(alg jose.SignatureAlgorithm, key any, claims map[string]any) secret.Text {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		jws, err := signer.Sign(b)
		if err != nil {
			t.Fatal(err)
		}
		text, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return secret.New(text)
	}
	good := func(change func(map[string]any)) map[string]any {
		c := map[string]any{"tenant": "acme", "iss": "BR1", "aud": address, "jti": "0001", "iat": at.Unix(), "exp": at.Add(relay.TokenLife).Unix()}
		if change != nil {
			change(c)
		}
		return c
	}
	unsigned := func(alg, signature string) secret.Text {
		b, _ := json.Marshal(good(nil))
		encode := base64.RawURLEncoding.EncodeToString
		return secret.New(encode([]byte(`{"alg":"`+alg+`"}`)) + "." + encode(b) + "." + signature)
	}
	valid := token(private, nil)
	parts := strings.Split(valid.Reveal(), ".")

	for _, test := range []struct {
		name  string
		token secret.Text
		now   time.Time
		ok    bool
	}{
		{"good", valid, at, true},
		{"good, made otherwise", signed(jose.EdDSA, private, good(nil)), at, true},
		{"at the end of its life", valid, at.Add(relay.TokenLife), true},
		{"clock wrong by two minutes, ahead", valid, at.Add(-2 * time.Minute), true},
		{"clock wrong by two minutes, behind", valid, at.Add(relay.TokenLife + 2*time.Minute), true},
		{"expired", valid, at.Add(relay.TokenLife + 2*time.Minute + time.Second), false},
		{"of the future", valid, at.Add(-2*time.Minute - time.Second), false},
		{"of another key", token(other, nil), at, false},
		{"for another relay", token(private, func(c *relay.Claims) { c.Relay = "wss://evil.example.com" }), at, false},
		{"without an id", token(private, func(c *relay.Claims) { c.ID = "" }), at, false},
		{"that lives too long", signed(jose.EdDSA, private, good(func(c map[string]any) { c["exp"] = at.Add(relay.TokenLife + time.Second).Unix() })), at, false},
		{"without an end", signed(jose.EdDSA, private, good(func(c map[string]any) { delete(c, "exp") })), at, false},
		{"without a beginning", signed(jose.EdDSA, private, good(func(c map[string]any) { delete(c, "iat") })), at, false},
		{"for nobody", signed(jose.EdDSA, private, good(func(c map[string]any) { delete(c, "aud") })), at, false},
		{"alg none", unsigned("none", ""), at, false},
		{"alg none with a signature", unsigned("none", parts[2]), at, false},
		{"HS256 under the public key", signed(jose.HS256, []byte(public), good(nil)), at, false},
		{"changed", secret.New(parts[0] + "." + strings.Replace(parts[1], parts[1][10:12], "AA", 1) + "." + parts[2]), at, false},
		{"without a signature", secret.New(parts[0] + "." + parts[1] + "."), at, false},
		{"cut off", secret.New(valid.Reveal()[:40]), at, false},
		{"nothing", secret.Text{}, at, false},
	} {
		got, err := relay.CheckToken(test.token, public, address, test.now)
		switch {
		case test.ok && (err != nil || !cmp.Equal(got, claims, cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }))):
			t.Errorf("%s: %+v, %v", test.name, got, err)
		case !test.ok && !errors.Is(err, problem.ErrUnauthenticated):
			t.Errorf("%s: taken (%v)", test.name, err)
		}
	}
	if _, err := relay.CheckToken(valid, public[:31], address, at); !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("a key of 31 bytes: %v", err)
	}

	if tenant, bridge, err := relay.ClaimedBridge(valid); tenant != "acme" || bridge != "BR1" || err != nil {
		t.Errorf("claimed: %s, %s, %v", tenant, bridge, err)
	}
	for name, text := range map[string]secret.Text{
		"no token":    secret.New("x"),
		"HS256":       signed(jose.HS256, []byte(public), good(nil)),
		"none":        unsigned("none", ""),
		"no tenant":   signed(jose.EdDSA, private, good(func(c map[string]any) { delete(c, "tenant") })),
		"bridge a/b":  signed(jose.EdDSA, private, good(func(c map[string]any) { c["iss"] = "a/b" })),
		"tenant of 7": signed(jose.EdDSA, private, good(func(c map[string]any) { c["tenant"] = 7 })),
	} {
		if tenant, bridge, err := relay.ClaimedBridge(text); !errors.Is(err, problem.ErrUnauthenticated) {
			t.Errorf("claimed by %s: %s, %s, %v", name, tenant, bridge, err)
		}
	}
}
