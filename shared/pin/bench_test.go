package pin_test

import (
	crand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/trustelem/zxcvbn"
	validator "github.com/wagslane/go-password-validator"

	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/secret"
)

// Verdicts on PINs without violations, beside two password checkers. Theirs
// measure strength and know nothing of a policy; they are here for the scale.
func BenchmarkCheck(b *testing.B) {
	strict := pin.Default()
	strict.MaxRun = 3
	strict.DisallowConstantDelta = true
	strict.RequireClasses = []pin.Class{pin.Digit}
	strict.BlocklistEntries = []string{"471100", "815000", "247365", "acme01"}
	person := pin.Context{
		Username:    "anna.kowalska",
		Mail:        "anna.kowalska@example.com",
		Phone:       "+49 170 123-4567",
		StaffNumber: "K-204518",
	}
	for _, c := range []struct {
		name   string
		policy pin.Policy
		pin    string
		ctx    pin.Context
	}{
		{"digits4", pin.Default(), "7392", pin.Context{}},
		{"digits6", pin.Default(), "739158", pin.Context{}},
		{"digits8", pin.Default(), "73915846", pin.Context{}},
		{"alphanumeric6", pin.Default(), "k7Xr2b", pin.Context{}},
		{"alphanumeric12", pin.Default(), "k7Xr2bQ9vt4M", pin.Context{}},
		{"digits6strict", strict, "739158", pin.Context{}},
		{"digits6context", pin.Default(), "739158", person},
		{"alphanumeric6context", pin.Default(), "k7Xr2b", person},
	} {
		s := secret.New(c.pin)
		b.Run("pinward/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if c.policy.Check(s, c.ctx) != nil {
					b.Fatal("refused")
				}
			}
		})
	}
	b.Run("pinward/digits6mixed", func(b *testing.B) { // 1,024 PINs in turn: branches are not foreseen
		b.ReportAllocs()
		p := pin.Default()
		var pins []secret.Text
		seeded := rand.NewChaCha8([32]byte{})
		for range 1024 {
			s, err := p.Generate(seeded, pin.GenerateOptions{Length: 6})
			if err != nil {
				b.Fatal(err)
			}
			pins = append(pins, s)
		}
		for i := 0; b.Loop(); i++ {
			if p.Check(pins[i%len(pins)], pin.Context{}) != nil {
				b.Fatal("refused")
			}
		}
	})
	refused := secret.New("123456")
	b.Run("pinward/digits6refused", func(b *testing.B) {
		b.ReportAllocs()
		p := pin.Default()
		for b.Loop() {
			if p.Check(refused, pin.Context{}) == nil {
				b.Fatal("allowed")
			}
		}
	})
	for _, s := range []string{"739158", "k7Xr2b"} {
		b.Run("wagslane/"+s, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = validator.Validate(s, 10)
			}
		})
		b.Run("zxcvbn/"+s, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				zxcvbn.PasswordStrength(s, nil)
			}
		})
	}
}

func BenchmarkGenerate(b *testing.B) {
	for _, length := range []int{4, 6, 8} {
		b.Run(fmt.Sprint(length), func(b *testing.B) {
			b.ReportAllocs()
			p := pin.Default()
			for b.Loop() {
				if _, err := p.Generate(crand.Reader, pin.GenerateOptions{Length: length}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAdmissible(b *testing.B) {
	runs := pin.Default()
	runs.MaxLength, runs.MaxRun = 64, 20
	for _, length := range []int{4, 6, 8, 9, 12, 16, 64} {
		b.Run(fmt.Sprint(length), func(b *testing.B) {
			p := pin.Default()
			p.MaxLength = 64
			for b.Loop() {
				p.Admissible(length)
			}
		})
		b.Run(fmt.Sprintf("%d/maxRun", length), func(b *testing.B) {
			for b.Loop() {
				runs.Admissible(length)
			}
		})
	}
}
