package offline

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/pinward/pinward/shared/problem"
)

// The check digits are in the system of Damm ("Total anti-symmetrische Quasigruppen", Marburg
// 2004), started at the group's place in the code. So every wrong digit is found, and every
// two neighbours exchanged (German says 23 as "three and twenty"), in which group it is, and
// every group that is in another's place.

// side is who reads a code out: the place at which its groups begin to be counted.
type side int

const (
	bridge side = 0
	desk   side = 5
)

func (s side) other() side { return bridge + desk - s }

const (
	groupLength = 6
	dataLength  = groupLength - 1
	places      = 10 // a code of more groups could not tell them all apart
	maxTyped    = 300
)

// damm is the totally anti-symmetric quasigroup of order 10 that the thesis gives.
var damm = [10][10]uint8{
	{0, 3, 1, 7, 5, 9, 8, 6, 4, 2},
	{7, 0, 9, 2, 1, 5, 4, 8, 6, 3},
	{4, 2, 0, 6, 8, 7, 1, 3, 5, 9},
	{1, 7, 5, 0, 9, 8, 3, 4, 2, 6},
	{6, 1, 2, 3, 0, 4, 5, 9, 7, 8},
	{3, 6, 7, 4, 2, 0, 9, 5, 8, 1},
	{5, 8, 6, 9, 7, 2, 0, 1, 3, 4},
	{8, 9, 4, 5, 3, 6, 2, 0, 1, 7},
	{9, 4, 3, 8, 6, 1, 7, 2, 0, 5},
	{2, 5, 8, 1, 4, 3, 6, 7, 9, 0},
}

// checkDigit is the digit that fits after digits in a group at a place. After the group with
// its check digit it is 0: the quasigroup's diagonal.
func checkDigit(place int, digits string) byte {
	state := uint8(place % places)
	for _, d := range []byte(digits) {
		state = damm[state][d-'0']
	}
	return '0' + state
}

// write makes a code of digits, whose number is a multiple of dataLength.
func write(s side, digits string) string {
	var groups []string
	for data := range slices.Chunk([]byte(digits), dataLength) {
		place := int(s) + len(groups)
		groups = append(groups, string(data)+string(checkDigit(place, string(data))))
	}
	return strings.Join(groups, " ")
}

// fit tells of each whole group whether it fits at its place.
func fit(s side, digits string) []bool {
	var fits []bool
	for place := int(s); len(digits) >= groupLength; place++ {
		fits = append(fits, checkDigit(place, digits[:groupLength]) == '0')
		digits = digits[groupLength:]
	}
	return fits
}

// read returns the digits of a code that was typed, without the check digits. The code has
// one of the numbers of groups.
func read(field string, s side, typed string, groups ...int) (string, error) {
	digits, err := symbols(field, typed, groupLength, digit)
	if err != nil {
		return "", err
	}
	fits := fit(s, digits)
	if len(digits)%groupLength != 0 || !slices.Contains(groups, len(digits)/groupLength) {
		var want []string
		for _, n := range groups {
			want = append(want, fmt.Sprint(n*groupLength))
		}
		reason := fmt.Sprintf("has %d digits, must have %s", len(digits), strings.Join(want, " or "))
		if from := slices.Index(fits, false); from >= 0 {
			reason += fmt.Sprintf("; look from group %d on", from+1)
		}
		return "", problem.Invalid("length", field, "%s", reason)
	}
	if !slices.Contains(fits, true) && !slices.Contains(fit(s.other(), digits), false) {
		return "", problem.Invalid("otherCode", field, "is the code that the other side is to be told")
	}
	var vs problem.Violations
	var data strings.Builder
	for i, ok := range fits {
		if !ok {
			vs.Add("checkDigit", field, "group %d was misheard, or is not in its place", i+1)
		}
		data.WriteString(digits[i*groupLength:][:dataLength])
	}
	return data.String(), vs.Err()
}

// Group is a group of a bridge's code as it was understood, and whether its check digit fits
// at its place.
type Group struct {
	Digits string
	Fits   bool
}

// Heard returns the groups of a challenge that a bridge has made, as it was typed, to be
// read back: also where not all of them fit, and the last if it is not whole. It is nil if
// there is a character that is none of a code's.
func Heard(typed string) (groups []Group) {
	digits, err := symbols("challenge", typed, groupLength, digit)
	if err != nil {
		return nil
	}
	fits := fit(bridge, digits)
	for i := 0; len(digits) > 0; i++ {
		n := min(groupLength, len(digits))
		groups = append(groups, Group{digits[:n], i < len(fits) && fits[i]})
		digits = digits[n:]
	}
	return groups
}

// digit understands a digit, or a letter that looks like one: no letter can be meant, and the
// check digit finds a wrong guess.
func digit(r rune) (_ byte, hint string, ok bool) {
	switch r {
	case 'O', 'o':
		return '0', "", true
	case 'I', 'i', 'L', 'l', '|':
		return '1', "", true
	case 'Z', 'z':
		return '2', "", true
	case 'S', 's':
		return '5', "", true
	case 'G':
		return '6', "", true
	case 'B':
		return '8', "", true
	}
	return byte(r), "is no digit", '0' <= r && r <= '9'
}

// symbols reads what was typed as symbols, in groups of the given length or in any: between
// them spaces and punctuation are nothing. It reports all that is no symbol.
func symbols(field, typed string, group int, understand func(rune) (symbol byte, hint string, ok bool)) (string, error) {
	if len(typed) > maxTyped {
		return "", problem.Invalid("length", field, "is longer than any code")
	}
	var vs problem.Violations
	var read []byte
	for _, r := range typed {
		if separates(r) {
			continue
		}
		symbol, hint, ok := understand(r)
		if !ok {
			shown := fmt.Sprintf("%q", r)
			if r > unicode.MaxASCII { // it may look like a symbol: Cyrillic С
				shown = fmt.Sprintf("%q (%U)", r, r)
			}
			vs.Add("characters", field, "%s at place %d of group %d %s", shown, len(read)%group+1, len(read)/group+1, hint)
		}
		read = append(read, symbol)
	}
	return string(read), vs.Err()
}

// separates tells whether a character only keeps groups apart. '|' may be a 1.
func separates(r rune) bool {
	return unicode.IsSpace(r) || unicode.Is(unicode.Pd, r) || strings.ContainsRune(".,:;/_\u00AD\u2212\u200B\uFEFF", r)
}
