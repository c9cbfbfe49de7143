package offline

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// Challenge is what Windows' unblock screen shows, as it was understood.
type Challenge struct {
	bytes []byte
	// Replaced are the characters for which a hex digit was taken that they look like.
	Replaced []Replacement
}

// Replacement is a character that was taken for a hex digit. Group and Place count from 1.
type Replacement struct {
	Group, Place int
	Typed        rune
	Taken        byte
}

// String says it for people: "O in group 2, place 3 taken for 0".
func (r Replacement) String() string {
	return fmt.Sprintf("%c in group %d, place %d taken for %c", r.Typed, r.Group, r.Place, r.Taken)
}

const hexGroup = 4

// ParseChallenge reads a challenge of 16 or 32 hex digits as it was typed: in any case, with
// spaces, dashes and dots anywhere, O for 0, and I, l and | for 1. Its InvalidError names every
// character that is no hex digit by its place in groups of four, and how many there are.
//
// No other letter is forgiven, since none can only be one hex digit: S looks like 5 and sounds
// like F, Z looks like 2 and sounds like C, G looks like 6 and C and sounds like D, L sounds
// like F; and B for 8 or D for 0 cannot be seen at all. Nothing here would find a wrong guess
// but the card, which then wants a new challenge, or counts.
func ParseChallenge(typed string) (Challenge, error) {
	var c Challenge
	var n int
	digits, err := symbols("challenge", typed, hexGroup, func(r rune) (byte, string, bool) {
		symbol, hint, ok := hexDigit(r)
		if ok && isLookAlike(r) {
			c.Replaced = append(c.Replaced, Replacement{n/hexGroup + 1, n%hexGroup + 1, r, symbol})
		}
		n++
		return symbol, hint, ok
	})
	var vs problem.Violations
	if err := vs.Merge(err); err != nil {
		return Challenge{}, err
	}
	if n != 16 && n != 32 && len(typed) <= maxTyped {
		vs.Add("length", "challenge", "has %d hex digits, must have 16 or 32", n)
	}
	if err := vs.Err(); err != nil {
		return Challenge{}, err
	}
	c.bytes, err = hex.DecodeString(digits)
	return c, err
}

// Bytes returns the challenge itself, 8 or 16 bytes.
func (c Challenge) Bytes() []byte { return slices.Clone(c.bytes) }

// String returns the challenge in groups of four, to be read back.
func (c Challenge) String() string { return Hex(c.bytes) }

func isLookAlike(r rune) bool { return strings.ContainsRune("OoIil|", r) }

func hexDigit(r rune) (_ byte, hint string, ok bool) {
	switch {
	case r == 'O' || r == 'o':
		return '0', "", true
	case isLookAlike(r):
		return '1', "", true
	case '0' <= r && r <= '9', 'A' <= r && r <= 'F', 'a' <= r && r <= 'f':
		return byte(r), "", true
	}
	hint = "is no hex digit"
	switch r {
	case 'S', 's':
		hint += ": ask whether it is 5, 8 or F"
	case 'Z', 'z':
		hint += ": ask whether it is 2 or C"
	case 'G', 'g':
		hint += ": ask whether it is 6, C or D"
	case 'L':
		hint += ": ask whether it is 1 or F"
	}
	return 0, hint, false
}

// Hex returns bytes as Windows' unblock screen takes them, in upper-case hex, in groups of
// four for reading: "072C 03EF 17ED D87C".
func Hex(b []byte) string {
	var groups []string
	for g := range slices.Chunk(b, hexGroup/2) {
		groups = append(groups, fmt.Sprintf("%X", g))
	}
	return strings.Join(groups, " ")
}

// PUKHex returns a PUK of 8 characters in the form that Windows' unblock screen wants from the
// cards whose minidriver takes the PUK in place of a response: its ASCII, as Hex.
func PUKHex(puk secret.Text) (secret.Text, error) {
	text := puk.Reveal()
	var vs problem.Violations
	if len(text) != pukLength {
		vs.Add("length", "puk", "must have exactly %d characters", pukLength)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		vs.Add("characters", "puk", "must be digits, letters or signs of ASCII, without spaces")
	}
	if err := vs.Err(); err != nil {
		return secret.Text{}, err
	}
	return secret.New(Hex([]byte(text))), nil
}
