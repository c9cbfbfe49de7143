package pin

import (
	"fmt"
	"io"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// GenerateOptions say what PIN to make. The zero value is the usual one: the
// shortest that the policy allows, of digits.
type GenerateOptions struct {
	Length   int      // in characters; 0 for MinLengthFor the context's users
	Alphabet Alphabet // "" for digits, or the policy's if it requires other classes
	Context  Context  // of the user who will have the PIN
}

// maxTries bounds the PINs drawn for one. The least part of the PINs that a
// valid policy lets through is about 1 in 15 (four characters, one of each
// class), so all tries fail by chance once in 10^29 times.
const maxTries = 1_000

// Generate returns a new PIN, each that a valid policy lets through for the
// options being equally likely. rand is crypto/rand.Reader but in tests; its
// errors are returned. Options that no PIN can meet are an InvalidError. What
// else a PIN must not be (a former one, or taken) is the caller's to see, who
// then calls again; that leaves the others equally likely.
func (p *Policy) Generate(rand io.Reader, o GenerateOptions) (secret.Text, error) {
	least := p.MinLengthFor(o.Context.Users)
	if o.Length == 0 {
		o.Length = least
	}
	if o.Alphabet == "" {
		o.Alphabet = Digits
		if p.required()&^digit != 0 {
			o.Alphabet = p.Alphabet
		}
	}

	var vs problem.Violations
	if o.Length < least || o.Length > p.MaxLength {
		vs.Add("range", "length", "must be from %d to %d", least, p.MaxLength)
	}
	allowed, _ := alphabetClasses(p.Alphabet)
	drawn, ok := alphabetClasses(o.Alphabet)
	switch {
	case !ok:
		vs.Add("unknown", "alphabet", "must be %s, %s or %s", Digits, Alphanumeric, Printable)
	case drawn&^allowed != 0:
		vs.Add("inconsistent", "alphabet", "must be within the policy's, %s", p.Alphabet)
	case p.required()&^drawn != 0:
		vs.Add("inconsistent", "alphabet", "must have the classes that the policy requires")
	}
	if err := vs.Err(); err != nil {
		return secret.Text{}, err
	}

	var alphabet []byte
	for c, class := range classOf {
		if class&drawn != 0 {
			alphabet = append(alphabet, byte(c))
		}
	}
	draw := drawer{rand: rand, alphabet: alphabet}
	for range maxTries {
		s, err := draw.text(o.Length)
		if err != nil {
			return secret.Text{}, fmt.Errorf("generate PIN: %w", err)
		}
		if p.broken(s, &o.Context) == 0 {
			return secret.New(s), nil
		}
	}
	return secret.Text{}, problem.Invalid("inconsistent", "length", "hardly any PIN of this length may be used; ask for a longer one")
}

// drawer draws characters of an alphabet, each equally likely.
type drawer struct {
	rand     io.Reader
	alphabet []byte
	buf      [32]byte
	unused   []byte // of buf
}

func (d *drawer) text(n int) (string, error) {
	// A byte beyond the last whole multiple of the alphabet would favour its
	// first characters: it is thrown away.
	whole := 256 / len(d.alphabet) * len(d.alphabet)
	s := make([]byte, 0, maxLength)
	for len(s) < n {
		if len(d.unused) == 0 {
			if _, err := io.ReadFull(d.rand, d.buf[:]); err != nil {
				return "", err
			}
			d.unused = d.buf[:]
		}
		b := int(d.unused[0])
		d.unused = d.unused[1:]
		if b < whole {
			s = append(s, d.alphabet[b%len(d.alphabet)])
		}
	}
	return string(s), nil
}
