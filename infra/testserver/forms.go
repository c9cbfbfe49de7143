package testserver

import (
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf16"
)

// Forms are the ways in which a secret could be written, by what they are called.
func Forms(s string) map[string][]byte {
	reversed := []byte(s)
	slices.Reverse(reversed)
	var little, big []byte
	for _, u := range utf16.Encode([]rune(s)) {
		little = append(little, byte(u), byte(u>>8))
		big = append(big, byte(u>>8), byte(u))
	}
	forms := map[string][]byte{
		"plain": []byte(s), "backwards": reversed, "in UTF-16LE": little, "in UTF-16BE": big,
		"in hex": []byte(hex.EncodeToString([]byte(s))), "in upper-case hex": []byte(strings.ToUpper(hex.EncodeToString([]byte(s)))),
	}
	// In base64, at each place within groups of three bytes: without the
	// letters that its neighbours have a part in.
	for before, from := range []int{0, 2, 3} {
		padded := append(make([]byte, before), s...)
		to := len(padded) / 3 * 4
		forms["in base64 after "+strings.Repeat("x", before)] = []byte(base64.StdEncoding.EncodeToString(padded)[from:to])
		forms["in URL base64 after "+strings.Repeat("x", before)] = []byte(base64.URLEncoding.EncodeToString(padded)[from:to])
	}
	return forms
}
