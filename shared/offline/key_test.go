package offline_test

import (
	"bytes"
	"crypto/ecdh"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// vectors were made from the package comment by another implementation, in another language.
type vectors struct {
	BridgePrivateKey, BridgePublicKey string
	TenantPrivateKey, TenantPublicKey string
	Tenant, Bridge, Credential        string
	Key                               string // what nobody sees
	PUK                               []struct {
		Unix                int64 // 0: the clock is lost
		Change              offline.Change
		Fence               int64
		Random, PUK         string
		Challenge, Response string
	}
	Card []struct {
		AdminKey, Challenge, Answer string
		ChallengeCode, AnswerCode   string
	}
}

func load(t testing.TB) vectors {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func private(t testing.TB, s string) *ecdh.PrivateKey {
	t.Helper()
	key, err := ecdh.X25519().NewPrivateKey(unhex(t, s))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// keys are those of the bridge and of the cloud for one card.
func keys(t testing.TB, edit ...func(*offline.Binding)) (bridge, cloud offline.Key) {
	t.Helper()
	v := load(t)
	b := offline.Binding{Tenant: v.Tenant, Bridge: v.Bridge, Credential: v.Credential}
	for _, e := range edit {
		e(&b)
	}
	bridge, err := offline.NewKey(private(t, v.BridgePrivateKey), unhex(t, v.TenantPublicKey), b)
	if err != nil {
		t.Fatal(err)
	}
	cloud, err = offline.NewKey(private(t, v.TenantPrivateKey), unhex(t, v.BridgePublicKey), b)
	if err != nil {
		t.Fatal(err)
	}
	return bridge, cloud
}

var now = time.Date(2026, 11, 21, 22, 4, 12, 0, time.UTC)

func ask(t testing.TB, k offline.Key, nonce uint64) offline.PUKChallenge {
	t.Helper()
	random := []byte(fmt.Sprintf("%016x", nonce))
	c, err := k.Challenge(bytes.NewReader(unhex(t, string(random))), now, offline.Report{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mask(t testing.TB, k offline.Key, c offline.PUKChallenge, puk string) string {
	t.Helper()
	response, err := k.Mask(c, secret.New(puk))
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func TestVectors(t *testing.T) {
	v := load(t)
	bridge, cloud := keys(t)
	for i, c := range v.PUK {
		var at time.Time
		if c.Unix != 0 {
			at = time.Unix(c.Unix, 0)
		}
		shown, err := bridge.Challenge(bytes.NewReader(unhex(t, c.Random)), at, offline.Report{Change: c.Change, Fence: c.Fence})
		if err != nil || shown.String() != c.Challenge {
			t.Errorf("%d: the challenge is %s, %v, want %s", i, shown, err, c.Challenge)
		}
		heard, err := cloud.Check(c.Challenge, at)
		var clock *offline.ClockError
		if at.IsZero() != errors.As(err, &clock) || clock == nil && err != nil || heard != shown {
			t.Errorf("%d: understood as %s, %v", i, heard, err)
		}
		if got, want := heard.Report(), (offline.Report{Change: c.Change, Fence: c.Fence % 10}); got != want {
			t.Errorf("%d: the report is %v, want %v", i, got, want)
		}
		puk := string(unhex(t, c.PUK))
		if got := mask(t, cloud, heard, puk); got != c.Response {
			t.Errorf("%d: the response is %s, want %s", i, got, c.Response)
		}
		if got, err := bridge.Unmask(shown, c.Response); err != nil || got.Reveal() != puk {
			t.Errorf("%d: the PUK is %q, %v, want %q", i, got.Reveal(), err, puk)
		}
	}
	for i, c := range v.Card {
		challenge := unhex(t, c.Challenge)
		if got, err := bridge.EncodeChallenge(challenge); err != nil || got != c.ChallengeCode {
			t.Errorf("%d: the challenge is %s, %v, want %s", i, got, err, c.ChallengeCode)
		}
		heard, err := cloud.DecodeChallenge(c.ChallengeCode)
		if err != nil || !bytes.Equal(heard, challenge) {
			t.Fatalf("%d: understood as %x, %v, want %x", i, heard, err, challenge)
		}
		answer, err := card.Answer(secret.New(string(unhex(t, c.AdminKey))), heard)
		if err != nil || hex.EncodeToString(answer) != c.Answer {
			t.Errorf("%d: answered by %x, %v, want %s", i, answer, err, c.Answer)
		}
		if got, err := cloud.EncodeAnswer(heard, answer); err != nil || got != c.AnswerCode {
			t.Errorf("%d: the answer is %s, %v, want %s", i, got, err, c.AnswerCode)
		}
		if got, err := bridge.DecodeAnswer(challenge, c.AnswerCode); err != nil || !bytes.Equal(got, answer) {
			t.Errorf("%d: the answer is understood as %x, %v", i, got, err)
		}
	}
	if len(v.PUK) < 6 || len(v.Card) < 5 {
		t.Error("vectors are missing")
	}
}

// TestLengths holds the package comment to the digits that people read.
func TestLengths(t *testing.T) {
	bridge, cloud := keys(t)
	c := ask(t, bridge, 5)
	var shown []string
	for _, n := range []int{8, 16} {
		challenge, err := bridge.EncodeChallenge(make([]byte, n))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := cloud.EncodeAnswer(make([]byte, n), make([]byte, n))
		if err != nil {
			t.Fatal(err)
		}
		shown = append(shown, challenge, answer)
	}
	for i, code := range append(shown, c.String(), mask(t, cloud, c, "73829164"), mask(t, cloud, c, "7382916A")) {
		if got, want := len(strings.ReplaceAll(code, " ", "")), []int{30, 30, 54, 54, 18, 18, 36}[i]; got != want {
			t.Errorf("%s has %d digits, want %d", code, got, want)
		}
	}
}

// TestMishearing changes every digit of every code in every way, and exchanges all
// neighbours, those of two groups too. The groups concerned are named, and no other.
func TestMishearing(t *testing.T) {
	bridge, cloud := keys(t)
	c := ask(t, bridge, 5)
	challenge := unhex(t, "bf09e22de55355f6")
	challengeCode, err := bridge.EncodeChallenge(challenge)
	if err != nil {
		t.Fatal(err)
	}
	answerCode, err := cloud.EncodeAnswer(challenge, challenge)
	if err != nil {
		t.Fatal(err)
	}
	unmask := func(s string) error { _, err := bridge.Unmask(c, s); return err }
	for _, of := range []struct {
		name, field, code string
		read              func(string) error
	}{
		{"PIV challenge", "challenge", c.String(), func(s string) error { _, err := cloud.Check(s, now); return err }},
		{"PIV response", "response", mask(t, cloud, c, "73829164"), unmask},
		{"long PIV response", "response", mask(t, cloud, c, "aB3$xY9!"), unmask},
		{"GIDS challenge", "challenge", challengeCode, func(s string) error { _, err := cloud.DecodeChallenge(s); return err }},
		{"GIDS answer", "response", answerCode, func(s string) error { _, err := bridge.DecodeAnswer(challenge, s); return err }},
	} {
		if err := of.read(of.code); err != nil {
			t.Fatalf("%s: %v", of.name, err)
		}
		right := strings.ReplaceAll(of.code, " ", "")
		want := func(groups ...int) string {
			var all []string
			for _, g := range groups {
				all = append(all, fmt.Sprintf("%s: group %d was misheard, or is not in its place", of.field, g))
			}
			return "invalid: " + strings.Join(all, "; ")
		}
		for i := range right {
			heard := []byte(right)
			for d := byte('0'); d <= '9'; d++ {
				if heard[i] = d; d == right[i] {
					continue
				}
				if err := of.read(string(heard)); err == nil || err.Error() != want(i/6+1) {
					t.Fatalf("%s, digit %d heard as %c: %v", of.name, i, d, err)
				}
			}
			if i == 0 || right[i-1] == right[i] {
				continue
			}
			heard[i-1], heard[i] = right[i], right[i-1]
			groups := []int{i/6 + 1}
			if i%6 == 0 {
				groups = []int{i / 6, i/6 + 1}
			}
			if err := of.read(string(heard)); err == nil || err.Error() != want(groups...) {
				t.Fatalf("%s, digits %d and %d exchanged: %v", of.name, i-1, i, err)
			}
		}
	}
}

// TestNothingWrongBecomesAPUK mishears two digits of a response in every way.
func TestNothingWrongBecomesAPUK(t *testing.T) {
	bridge, cloud := keys(t)
	c := ask(t, bridge, 5)
	right := strings.ReplaceAll(mask(t, cloud, c, "73829164"), " ", "")
	passed := 0 // the check digits
	for i := range right {
		for j := range i {
			heard := []byte(right)
			for a := byte('0'); a <= '9'; a++ {
				for b := byte('0'); b <= '9'; b++ {
					if heard[i], heard[j] = a, b; string(heard) == right {
						continue
					}
					puk, err := bridge.Unmask(c, string(heard))
					if err == nil || !puk.Empty() {
						t.Fatalf("%s is taken for %s", heard, right)
					}
					if errors.Is(err, offline.ErrResponse) {
						passed++
					}
				}
			}
		}
	}
	if passed == 0 {
		t.Error("the tag was never needed: the test shows nothing")
	}
}

// TestAResponseIsGoodHereAndNowOnly gives it to every other card, bridge, tenant and challenge.
func TestAResponseIsGoodHereAndNowOnly(t *testing.T) {
	bridge, cloud := keys(t)
	c := ask(t, bridge, 5)
	for _, puk := range []string{"73829164", "aB3$xY9!"} {
		response := mask(t, cloud, c, puk)
		if again := mask(t, cloud, c, puk); again != response {
			t.Errorf("asked twice, %s and %s", response, again)
		}
		for name, edit := range map[string]func(*offline.Binding){
			"card":    func(b *offline.Binding) { b.Credential = "piv-ff112233445566778899aabbccddeeff" },
			"bridge":  func(b *offline.Binding) { b.Bridge = "k3v9w2xb" },
			"tenant":  func(b *offline.Binding) { b.Tenant = "other" },
			"shifted": func(b *offline.Binding) { b.Tenant, b.Bridge = "acmek", "3v9w2xa" },
		} {
			otherBridge, otherCloud := keys(t, edit)
			if _, err := otherCloud.Check(c.String(), now); !errors.Is(err, offline.ErrForeign) {
				t.Errorf("another %s: the challenge is %v", name, err)
			}
			if got, err := otherCloud.Mask(c, secret.New(puk)); !errors.Is(err, offline.ErrForeign) || got != "" {
				t.Errorf("another %s: answered by %s, %v", name, got, err)
			}
			if got, err := otherBridge.Unmask(ask(t, otherBridge, 5), response); !errors.Is(err, offline.ErrResponse) || !got.Empty() {
				t.Errorf("another %s: unmasked, %v", name, err)
			}
			if got, err := otherBridge.Unmask(c, response); !errors.Is(err, offline.ErrResponse) || !got.Empty() {
				t.Errorf("another %s with this challenge: unmasked, %v", name, err)
			}
		}
		for nonce := range uint64(1000) { // the one before, and the one after
			if nonce == 5 {
				continue
			}
			if got, err := bridge.Unmask(ask(t, bridge, nonce), response); !errors.Is(err, offline.ErrResponse) || !got.Empty() {
				t.Fatalf("challenge %d: unmasked, %v", nonce, err)
			}
		}
		if got, err := bridge.Unmask(offline.PUKChallenge{}, response); !errors.Is(err, offline.ErrResponse) || !got.Empty() {
			t.Errorf("no challenge: unmasked, %v", err)
		}
	}
	v := load(t)
	stranger, err := offline.NewKey(private(t, strings.Repeat("55", 32)), unhex(t, v.TenantPublicKey), offline.Binding{Tenant: v.Tenant, Bridge: v.Bridge, Credential: v.Credential})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cloud.Check(ask(t, stranger, 5).String(), now); !errors.Is(err, offline.ErrForeign) {
		t.Errorf("of a stranger's key: %v", err)
	}
}

// TestTwoPUKsForOneChallengeShareNoPad: who hears both learns nothing of their difference.
func TestTwoPUKsForOneChallengeShareNoPad(t *testing.T) {
	bridge, cloud := keys(t)
	number := func(response string) (n int) {
		digits := strings.ReplaceAll(response, " ", "")
		if _, err := fmt.Sscanf(digits[:5]+digits[6:9], "%d", &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	same := 0
	for nonce := range uint64(100) {
		c := ask(t, bridge, nonce)
		a, b := number(mask(t, cloud, c, "00000000")), number(mask(t, cloud, c, "00000001"))
		if (b-a+1e8)%1e8 == 1 {
			same++
		}
	}
	if same > 0 {
		t.Errorf("%d of 100 share the pad", same)
	}
}

// TestMaskedPUKsAreEven counts the first digit of one PUK's responses: chi-square with 9
// degrees of freedom is above 27.9 once in 1,000.
func TestMaskedPUKsAreEven(t *testing.T) {
	bridge, cloud := keys(t)
	var count [10]int
	const n = 5000
	for nonce := range uint64(n) {
		count[mask(t, cloud, ask(t, bridge, nonce), "12345678")[0]-'0']++
	}
	var chi float64
	for _, c := range count {
		d := float64(c) - n/10
		chi += d * d / (n / 10)
	}
	if chi > 27.9 {
		t.Errorf("chi-square %.1f: %v", chi, count)
	}
}

func TestClock(t *testing.T) {
	bridge, cloud := keys(t)
	day := 24 * time.Hour
	for _, c := range []struct {
		name string
		at   time.Time
		want string // "" is fresh
	}{
		{"right", now, ""},
		{"14 hours ahead, of another zone", now.Add(14 * time.Hour), ""},
		{"12 hours behind", now.Add(-12 * time.Hour), ""},
		{"the day before", now.Add(-day), ""},
		{"two days ahead", now.Add(2 * day), "the challenge is 2 days ahead: the bridge's clock is fast"},
		{"two days old", now.Add(-2 * day), "the challenge is 2 days old, or the bridge's clock is slow"},
		{"a year old", now.Add(-365 * day), "the challenge is 365 days old, or the bridge's clock is slow"},
		{"499 days old", now.Add(-499 * day), "the challenge is 499 days old, or the bridge's clock is slow"},
		{"499 days ahead", now.Add(499 * day), "the challenge is 499 days ahead: the bridge's clock is fast"},
		{"lost", time.Time{}, "the bridge does not know the time, so nobody can tell when the challenge was made"},
		{"before 1970", time.Unix(-1, 0), "the challenge is 201 days ahead: the bridge's clock is fast"},
	} {
		shown, err := bridge.Challenge(bytes.NewReader(make([]byte, 8)), c.at, offline.Report{})
		if err != nil {
			t.Fatal(err)
		}
		heard, err := cloud.Check(shown.String(), now)
		var clock *offline.ClockError
		if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &clock) || err.Error() != c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		// An operator may have it answered all the same.
		if got, err := bridge.Unmask(shown, mask(t, cloud, heard, "73829164")); err != nil || got.Reveal() != "73829164" {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// The days go round at 999, in both directions the same at every date.
	for i := range 2 * 999 {
		at := now.Add(time.Duration(i) * day)
		for ahead := -2; ahead <= 2; ahead++ {
			shown, err := bridge.Challenge(bytes.NewReader(make([]byte, 8)), at.Add(time.Duration(ahead)*day), offline.Report{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = cloud.Check(shown.String(), at)
			var clock *offline.ClockError
			if fresh := ahead >= -1 && ahead <= 1; fresh != (err == nil) || !fresh && (!errors.As(err, &clock) || clock.Days != ahead) {
				t.Fatalf("%s, %d days ahead: %v", at, ahead, err)
			}
		}
	}
}

func TestCardAnswersForAnother(t *testing.T) {
	bridge, cloud := keys(t)
	otherBridge, otherCloud := keys(t, func(b *offline.Binding) { b.Credential = "gids-01" })
	for _, n := range []int{8, 16} {
		first, second := bytes.Repeat([]byte{1}, n), bytes.Repeat([]byte{2}, n)
		code, err := bridge.EncodeChallenge(first)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := otherCloud.DecodeChallenge(code); !errors.Is(err, offline.ErrForeign) || got != nil {
			t.Errorf("another card's challenge: %x, %v", got, err)
		}
		answer, err := cloud.EncodeAnswer(first, second)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := bridge.DecodeAnswer(second, answer); !errors.Is(err, offline.ErrResponse) || got != nil {
			t.Errorf("the answer to the challenge before: %x, %v", got, err)
		}
		if got, err := otherBridge.DecodeAnswer(first, answer); !errors.Is(err, offline.ErrResponse) || got != nil {
			t.Errorf("the answer for another card: %x, %v", got, err)
		}
		if got, err := bridge.DecodeAnswer(first, code); err == nil || got != nil || !strings.Contains(err.Error(), "other side") {
			t.Errorf("the challenge for the answer: %x, %v", got, err)
		}
	}
	if _, err := bridge.EncodeChallenge(make([]byte, 7)); err == nil {
		t.Error("7 bytes are encoded")
	}
	if _, err := cloud.EncodeAnswer(make([]byte, 8), make([]byte, 16)); err == nil {
		t.Error("an answer of 16 bytes to 8 is encoded")
	}
	if _, err := bridge.DecodeAnswer(make([]byte, 9), ""); err == nil {
		t.Error("9 bytes have an answer")
	}
}

func TestNewKeyRefuses(t *testing.T) {
	v := load(t)
	key, good := private(t, v.BridgePrivateKey), unhex(t, v.TenantPublicKey)
	p256, err := ecdh.P256().NewPrivateKey(unhex(t, v.BridgePrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	b := offline.Binding{Tenant: "a", Bridge: "b", Credential: "c"}
	for _, c := range []struct {
		name    string
		private *ecdh.PrivateKey
		public  []byte
		binding offline.Binding
		want    string
	}{
		{"no tenant, line in a credential", key, good, offline.Binding{Bridge: "b", Credential: "c\nd"}, "tenant credential"},
		{"no bridge", key, good, offline.Binding{Tenant: "a", Credential: "c"}, "bridge"},
		{"no keys", nil, nil, b, "privateKey publicKey"},
		{"of another curve", p256, good, b, "privateKey"},
		{"of low order", key, make([]byte, 32), b, "publicKey"},
		{"a short key", key, good[:31], b, "publicKey"},
	} {
		_, err := offline.NewKey(c.private, c.public, c.binding)
		var inv *problem.InvalidError
		if !errors.As(err, &inv) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var fields []string
		for _, v := range inv.Violations {
			fields = append(fields, v.Field)
		}
		if got := strings.Join(fields, " "); got != c.want {
			t.Errorf("%s: wrong are %s, want %s", c.name, got, c.want)
		}
	}
}

func TestChallengeAndMaskRefuse(t *testing.T) {
	bridge, cloud := keys(t)
	if _, err := bridge.Challenge(strings.NewReader("short"), now, offline.Report{}); err == nil {
		t.Error("a challenge without randomness")
	}
	for _, r := range []offline.Report{{Change: -1}, {Change: 4}, {Fence: -1}} {
		if _, err := bridge.Challenge(bytes.NewReader(make([]byte, 8)), now, r); err == nil {
			t.Errorf("%v is reported", r)
		}
	}
	c := ask(t, bridge, 1)
	for _, puk := range []string{"", "1234567", "123456789"} {
		if got, err := cloud.Mask(c, secret.New(puk)); err == nil || got != "" || puk != "" && strings.Contains(err.Error(), puk) {
			t.Errorf("%d bytes: %v", len(puk), err)
		}
	}
	if _, err := cloud.Mask(offline.PUKChallenge{}, secret.New("12345678")); !errors.Is(err, offline.ErrForeign) {
		t.Errorf("no challenge is answered: %v", err)
	}
	if got := (offline.PUKChallenge{}).Report(); got != (offline.Report{}) {
		t.Errorf("no challenge reports %v", got)
	}
}

func TestNothingPrintsAKey(t *testing.T) {
	bridge, cloud := keys(t)
	type holder struct {
		Key    offline.Key
		hidden offline.Key
	}
	h := holder{bridge, cloud}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+"\n", bridge)
		fmt.Fprintf(&out, verb+"\n", &bridge)
		fmt.Fprintf(&out, verb+"\n", h)
		fmt.Fprintf(&out, verb+"\n", []offline.Key{bridge})
	}
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("m", "key", bridge, "holder", h)
	}
	if err := json.NewEncoder(&out).Encode(h); err != nil {
		t.Fatal(err)
	}
	key := unhex(t, load(t).Key)
	for _, form := range []string{string(key), fmt.Sprintf("%x", key[:4]), fmt.Sprintf("%X", key[:4]), strings.Trim(fmt.Sprint(key[:4]), "[]"),
		strings.Trim(fmt.Sprintf("%#v", key[:4]), "[]byte{}"), string(key[:4])} {
		if strings.Contains(out.String(), form) {
			t.Errorf("output contains the key as %q", form)
		}
	}
}

// FuzzUnmask looks for a response that is taken although it is not the one.
func FuzzUnmask(f *testing.F) {
	bridge, cloud := keys(f)
	c := ask(f, bridge, 5)
	short, long := mask(f, cloud, c, "73829164"), mask(f, cloud, c, "aB3$xY9!")
	for _, s := range []string{short, long, c.String(), strings.Repeat("9", 36), "674029 187226 31O2l9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, typed string) {
		if puk, err := bridge.Unmask(c, typed); err == nil && puk.Reveal() != "73829164" && puk.Reveal() != "aB3$xY9!" {
			t.Errorf("%q is taken", typed)
		}
		if heard, err := cloud.Check(typed, now); err == nil && heard != c {
			t.Errorf("%q is taken for a challenge", typed)
		}
		if b, err := cloud.DecodeChallenge(typed); err == nil {
			if code, err := bridge.EncodeChallenge(b); err != nil || len(strings.ReplaceAll(code, " ", "")) > len(typed) {
				t.Errorf("%q is read as %x, %v", typed, b, err)
			}
		}
		_, _ = bridge.DecodeAnswer(make([]byte, 8), typed)
	})
}

// FuzzMask masks any 8 bytes.
func FuzzMask(f *testing.F) {
	bridge, cloud := keys(f)
	f.Add(uint64(0), []byte("12345678"))
	f.Add(uint64(1<<63), []byte("\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, nonce uint64, puk []byte) {
		c := ask(t, bridge, nonce)
		heard, err := cloud.Check(c.String(), now)
		if err != nil {
			t.Fatal(err)
		}
		response, err := cloud.Mask(heard, secret.New(string(puk)))
		if len(puk) != 8 {
			if err == nil {
				t.Errorf("%d bytes are masked", len(puk))
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := bridge.Unmask(c, response); err != nil || got.Reveal() != string(puk) {
			t.Errorf("%x is unmasked as %x, %v", puk, got.Reveal(), err)
		}
	})
}
