package pin_test

import (
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

func seeded() io.Reader { return rand.NewChaCha8([32]byte{1}) }

// Every PIN that the policy and the user allow must come equally often.
func TestGenerateIsUniform(t *testing.T) {
	ctx := pin.Context{Phone: "+49 170 1234567", StaffNumber: "739158"}
	for _, c := range []struct {
		name   string
		policy pin.Policy
	}{
		{"default", pin.Default()},
		{"strict", with(pin.Default(), func(p *pin.Policy) { p.MaxRun, p.DisallowConstantDelta = 2, true })},
	} {
		allowed := map[string]int{}
		for v := range int64(10_000) {
			if s := digitsOf(v, 4); c.policy.Check(secret.New(s), ctx) == nil {
				allowed[s] = 0
			}
		}
		const draws = 400_000
		random := seeded()
		for range draws {
			s, err := c.policy.Generate(random, pin.GenerateOptions{Context: ctx})
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := allowed[s.Reveal()]; !ok {
				t.Fatalf("%s: a PIN that the policy refuses", c.name)
			}
			allowed[s.Reveal()]++
		}
		expected := float64(draws) / float64(len(allowed))
		chi2 := 0.0
		for _, n := range allowed {
			chi2 += (float64(n) - expected) * (float64(n) - expected) / expected
		}
		// Chi-squared with k degrees of freedom is about normal: k ± √(2k).
		k := float64(len(allowed) - 1)
		if z := (chi2 - k) / math.Sqrt(2*k); math.Abs(z) > 4 {
			t.Errorf("%s: chi-squared %.0f for %.0f degrees of freedom, z = %.1f", c.name, chi2, k, z)
		} else {
			t.Logf("%s: %d PINs, chi-squared z = %.2f", c.name, len(allowed), z)
		}
	}
}

// Characters of larger alphabets are equally likely, too.
func TestGenerateAlphabets(t *testing.T) {
	for alphabet, size := range map[pin.Alphabet]int{pin.Digits: 10, pin.Alphanumeric: 62, pin.Printable: 94} {
		p := bare()
		random := seeded()
		count := map[rune]int{}
		const draws = 20_000
		for range draws {
			s, err := p.Generate(random, pin.GenerateOptions{Length: 10, Alphabet: alphabet})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range s.Reveal() {
				count[r]++
			}
		}
		chi2, expected := 0.0, float64(10*draws)/float64(size)
		for _, n := range count {
			chi2 += (float64(n) - expected) * (float64(n) - expected) / expected
		}
		k := float64(size - 1)
		if z := (chi2 - k) / math.Sqrt(2*k); len(count) != size || z > 4 {
			t.Errorf("%s: %d characters, chi-squared z = %.1f", alphabet, len(count), z)
		}
	}
}

func TestGenerateKeepsToItsPolicy(t *testing.T) {
	knobs := rand.New(rand.NewPCG(1, 2))
	random := seeded()
	ctx := pin.Context{Username: "12345678", Mail: "abcdefgh@12345.example", Phone: "0123 456-789", StaffNumber: "9876"}
	for range 20_000 {
		p := policyFrom(knobs.Uint64(), "815815")
		ctx.Users = knobs.IntN(200_000)
		o := pin.GenerateOptions{Context: ctx}
		if knobs.IntN(2) == 1 {
			o.Length = p.MinLengthFor(ctx.Users) + knobs.IntN(p.MaxLength-p.MinLengthFor(ctx.Users)+1)
		}
		s, err := p.Generate(random, o)
		if err != nil {
			t.Fatalf("%+v: %v", p, err)
		}
		if want := max(o.Length, p.MinLengthFor(ctx.Users)); len(s.Reveal()) != want {
			t.Errorf("%d characters, want %d", len(s.Reveal()), want)
		}
		if vs := p.Check(s, ctx); vs != nil {
			t.Errorf("a PIN that its policy %+v refuses: %v", p, vs)
		}
		lettersNeeded := slices.ContainsFunc(p.RequireClasses, func(c pin.Class) bool { return c != pin.Digit })
		if digits := strings.Trim(s.Reveal(), "0123456789") == ""; digits == lettersNeeded {
			t.Errorf("digits only: %v, with required classes %v", digits, p.RequireClasses)
		}
	}
}

func TestGenerateRefuses(t *testing.T) {
	p := with(pin.Default(), func(p *pin.Policy) { p.MinLengthByUsers = true })
	lower := with(p, func(p *pin.Policy) { p.RequireClasses = []pin.Class{pin.Lower} })
	var phone strings.Builder // every four digits are in it
	for v := range int64(10_000) {
		phone.WriteString(digitsOf(v, 4))
	}
	for _, c := range []struct {
		name   string
		policy pin.Policy
		rand   io.Reader
		o      pin.GenerateOptions
		field  string
	}{
		{"too short", p, seeded(), pin.GenerateOptions{Length: 3}, "length"},
		{"negative", p, seeded(), pin.GenerateOptions{Length: -1}, "length"},
		{"too short for the users", p, seeded(), pin.GenerateOptions{Length: 6, Context: pin.Context{Users: 100_000}}, "length"},
		{"too long", p, seeded(), pin.GenerateOptions{Length: 17}, "length"},
		{"unknown alphabet", p, seeded(), pin.GenerateOptions{Alphabet: "runes"}, "alphabet"},
		{"alphabet beyond the policy's", p, seeded(), pin.GenerateOptions{Alphabet: pin.Printable}, "alphabet"},
		{"alphabet without a required class", lower, seeded(), pin.GenerateOptions{Alphabet: pin.Digits}, "alphabet"},
		{"every PIN is in the context", p, seeded(), pin.GenerateOptions{Context: pin.Context{Phone: phone.String()}}, "length"},
		{"a random source that is stuck", p, stuck{}, pin.GenerateOptions{}, "length"},
	} {
		s, err := c.policy.Generate(c.rand, c.o)
		var inv *problem.InvalidError
		if !errors.As(err, &inv) || inv.Violations[0].Field != c.field || !s.Empty() {
			t.Errorf("%s: %v, want a violation of %s", c.name, err, c.field)
		}
	}
	broken := errors.New("no entropy")
	if s, err := p.Generate(io.MultiReader(strings.NewReader("few"), failing{broken}), pin.GenerateOptions{}); !errors.Is(err, broken) || !s.Empty() {
		t.Errorf("failing random source: %v", err)
	}
}

// The strictest policies still take few tries for a PIN.
func TestGenerateTries(t *testing.T) {
	for _, c := range []struct {
		policy pin.Policy
		most   float64 // bytes read for a PIN
	}{
		{pin.Default(), 32},
		{with(pin.Default(), func(p *pin.Policy) { p.MaxRun, p.DisallowConstantDelta = 2, true }), 32},
		{with(bare(), func(p *pin.Policy) {
			p.RequireClasses = []pin.Class{pin.Digit, pin.Lower, pin.Upper, pin.Special}
		}), 120}, // 1 in 15, times 4 bytes, times 256/188
	} {
		random := &counting{Reader: seeded()}
		const draws = 10_000
		for range draws {
			if _, err := c.policy.Generate(random, pin.GenerateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if got := float64(random.n) / draws; got > c.most {
			t.Errorf("%.1f bytes of randomness a PIN, want at most %.0f", got, c.most)
		}
	}
}

type stuck struct{}

func (stuck) Read(b []byte) (int, error) { clear(b); return len(b), nil }

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

type counting struct {
	io.Reader
	n int
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += n
	return n, err
}
