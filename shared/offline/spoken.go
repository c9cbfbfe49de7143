package offline

import "strings"

// Language is that in which digits are said.
type Language string

// The languages.
const (
	English Language = "en"
	German  Language = "de"
)

// spokenDigits: German says zwo on the telephone, for zwei sounds like drei.
var spokenDigits = map[Language][10]string{
	English: {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"},
	German:  {"null", "eins", "zwo", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"},
}

// spokenLetters are the words of ICAO, annex 10, volume II, 5.2.1.3, for hex digits.
var spokenLetters = [6]string{"Alfa", "Bravo", "Charlie", "Delta", "Echo", "Foxtrot"}

// Spoken says a code, or hex, symbol by symbol: "zero seven two Charlie, zero three Echo ...",
// a comma between groups. In a language that is not known it is English.
func Spoken(l Language, code string) string {
	digits, ok := spokenDigits[l]
	if !ok {
		digits = spokenDigits[English]
	}
	var groups []string
	for _, group := range strings.Fields(code) {
		var words []string
		for _, r := range group {
			switch {
			case '0' <= r && r <= '9':
				words = append(words, digits[r-'0'])
			case 'A' <= r && r <= 'F':
				words = append(words, spokenLetters[r-'A'])
			default:
				words = append(words, string(r))
			}
		}
		groups = append(groups, strings.Join(words, " "))
	}
	return strings.Join(groups, ", ")
}
