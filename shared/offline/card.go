package offline

import (
	"fmt"
	"math/big"

	"github.com/pinward/pinward/shared/problem"
)

// form is that of a card's challenge, or of the answer to it.
type form struct {
	bytes  int
	digits int // of the largest number of so many bytes
	tag    int
}

func (f form) groups() int { return (f.digits + f.tag) / dataLength }

// forms are those of GIDS cards with an admin key for 3DES, and for AES.
var forms = [...]form{{8, 20, 5}, {16, 39, 6}}

func formOf(field string, b []byte) (form, string, error) {
	for _, f := range forms {
		if f.bytes == len(b) {
			return f, fmt.Sprintf("%0*d", f.digits, new(big.Int).SetBytes(b)), nil
		}
	}
	return form{}, "", problem.Invalid("length", field, "must have %d or %d bytes, not %d", forms[0].bytes, forms[1].bytes, len(b))
}

// bytesOf returns the bytes of a number; not ok if they are more than the form has.
func (f form) bytesOf(digits string) (_ []byte, ok bool) {
	n, ok := new(big.Int).SetString(digits, 10)
	if !ok || n.BitLen() > 8*f.bytes {
		return nil, false
	}
	return n.FillBytes(make([]byte, f.bytes)), true
}

// EncodeChallenge returns a GIDS card's challenge of 8 or 16 bytes as a code to be read out.
// The card itself sees to it that it is fresh. The number is big-endian; the tag is of "card
// challenge" and the number's digits. It ties the challenge to a bridge of the tenant, and to
// the card that the operator has looked up.
func (k Key) EncodeChallenge(challenge []byte) (string, error) {
	f, digits, err := formOf("challenge", challenge)
	if err != nil {
		return "", err
	}
	return write(bridge, digits+k.digits(f.tag, "card challenge", digits)), nil
}

// DecodeChallenge reads a card's challenge as it was typed. It is an InvalidError that names
// the groups that were misheard, and ErrForeign if it is of another key.
func (k Key) DecodeChallenge(typed string) ([]byte, error) {
	data, err := read("challenge", bridge, typed, forms[0].groups(), forms[1].groups())
	if err != nil {
		return nil, err
	}
	for _, f := range forms {
		if len(data) != f.digits+f.tag {
			continue
		}
		digits, tag := data[:f.digits], data[f.digits:]
		if b, ok := f.bytesOf(digits); ok && same(tag, k.digits(f.tag, "card challenge", digits)) {
			return b, nil
		}
	}
	return nil, ErrForeign
}

// EncodeAnswer returns the answer to a card's challenge, which has as many bytes, as a code to
// be read out. The tag is of "card answer", the challenge's number and the answer's.
func (k Key) EncodeAnswer(challenge, answer []byte) (string, error) {
	_, asked, err := formOf("challenge", challenge)
	if err != nil {
		return "", err
	}
	if len(answer) != len(challenge) {
		return "", problem.Invalid("length", "answer", "must have %d bytes as the challenge, not %d", len(challenge), len(answer))
	}
	f, digits, err := formOf("answer", answer)
	if err != nil {
		return "", err
	}
	return write(desk, digits+k.digits(f.tag, "card answer", asked, digits)), nil
}

// DecodeAnswer reads the answer to a card's challenge as it was typed. It is an InvalidError
// that names the groups that were misheard, and ErrResponse if it answers another challenge
// or card: the bridge does not have the admin key, and would only learn so from the card,
// which then wants a new challenge, or counts.
func (k Key) DecodeAnswer(challenge []byte, typed string) ([]byte, error) {
	f, asked, err := formOf("challenge", challenge)
	if err != nil {
		return nil, err
	}
	data, err := read("response", desk, typed, f.groups())
	if err != nil {
		return nil, err
	}
	digits, tag := data[:f.digits], data[f.digits:]
	b, ok := f.bytesOf(digits)
	if !ok || !same(tag, k.digits(f.tag, "card answer", asked, digits)) {
		return nil, ErrResponse
	}
	return b, nil
}
