package pin_test

import (
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/pinward/pinward/shared/pin"
)

// The oracle says what Check should say, rule by rule, in the plainest way.
// It shares nothing with the code it judges but the list of most-used PINs.

// facts is what holds of a PIN whatever the policy.
type facts struct {
	sequential, repeated, constantDelta, common bool
	longestRun                                  int
}

func factsOf(s string) facts {
	return facts{
		sequential:    oracleSequential(s),
		repeated:      oracleRepeated(s),
		constantDelta: oracleConstantDelta(s),
		common:        oracleCommon(s),
		longestRun:    oracleLongestRun(s),
	}
}

// oracle returns the codes of all violations.
func oracle(p *pin.Policy, s string, ctx pin.Context) []string {
	if len(s) > 256 {
		return []string{pin.CodeTooLong}
	}
	codes := oracleShape(p, len([]rune(s)), s, ctx.Users)
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return codes
	}
	codes = append(codes, oracleContent(p, s, factsOf(s))...)
	if p.DisallowContext {
		for _, v := range []string{ctx.Username, ctx.Mail, ctx.Phone, ctx.StaffNumber} {
			if oracleInContext(s, v) {
				codes = append(codes, pin.CodeContext)
			}
		}
	}
	return codes
}

// oracleShape judges length and alphabet.
func oracleShape(p *pin.Policy, length int, s string, users int) (codes []string) {
	least := p.MinLength
	for _, step := range [][2]int{{1_000, 5}, {10_000, 6}, {100_000, 7}} {
		if p.MinLengthByUsers && users >= step[0] && least < step[1] {
			least = step[1]
		}
	}
	if length < least {
		codes = append(codes, pin.CodeTooShort)
	}
	if length > p.MaxLength {
		codes = append(codes, pin.CodeTooLong)
	}
	const digits, letters = "0123456789", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	alphabet := map[pin.Alphabet]string{
		pin.Digits:       digits,
		pin.Alphanumeric: digits + letters,
		pin.Printable:    digits + letters + "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
	}[p.Alphabet]
	if strings.Trim(s, alphabet) != "" {
		codes = append(codes, pin.CodeNotInAlphabet)
	}
	return codes
}

// oracleContent applies the policy to the facts.
func oracleContent(p *pin.Policy, s string, f facts) (codes []string) {
	missing := false
	for _, c := range p.RequireClasses {
		switch c {
		case pin.Digit:
			missing = missing || !strings.ContainsFunc(s, unicode.IsDigit)
		case pin.Lower:
			missing = missing || !strings.ContainsFunc(s, unicode.IsLower)
		case pin.Upper:
			missing = missing || !strings.ContainsFunc(s, unicode.IsUpper)
		case pin.Special:
			missing = missing || !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsDigit(r) && !unicode.IsLetter(r) })
		}
	}
	add := func(broken bool, code string) {
		if broken {
			codes = append(codes, code)
		}
	}
	add(missing, pin.CodeClassMissing)
	add(p.DisallowSequential && f.sequential, pin.CodeSequential)
	add(p.DisallowSequential && f.repeated, pin.CodeRepeated)
	add(p.MaxRun != 0 && f.longestRun > p.MaxRun, pin.CodeRunTooLong)
	add(p.DisallowConstantDelta && f.constantDelta, pin.CodeConstantDelta)
	add(p.Blocklist == pin.BlocklistCommon && f.common, pin.CodeCommon)
	own := false
	for _, e := range p.BlocklistEntries {
		own = own || strings.EqualFold(e, s) // of ASCII
	}
	add(own, pin.CodeBlocklisted)
	return codes
}

// rows are what a sequential PIN is cut from.
var rows = []string{
	strings.Repeat("0123456789", 27),
	strings.Repeat("9876543210", 27),
	"abcdefghijklmnopqrstuvwxyz",
	"zyxwvutsrqponmlkjihgfedcba",
	"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
	"ZYXWVUTSRQPONMLKJIHGFEDCBA",
}

func oracleSequential(s string) bool {
	if len(s) < 2 {
		return false
	}
	for _, row := range rows {
		if strings.Contains(row[:min(len(row), len(s)+26)], s) {
			return true
		}
	}
	return false
}

func oracleRepeated(s string) bool {
	for block := 1; block < len(s); block++ {
		if block*strings.Count(s, s[:block]) == len(s) {
			return true
		}
	}
	return false
}

func oracleLongestRun(s string) int {
	longest := 1
	sames, ups, downs := 1, 1, 1 // up to here
	for i := 1; i < len(s); i++ {
		sames, ups, downs = sames+1, ups+1, downs+1
		if s[i] != s[i-1] {
			sames = 1
		}
		if !isNext(s[i-1], s[i]) {
			ups = 1
		}
		if !isNext(s[i], s[i-1]) {
			downs = 1
		}
		longest = max(longest, sames, ups, downs)
	}
	return longest
}

func isNext(a, b byte) bool {
	if a == '9' {
		return b == '0'
	}
	return b == a+1 && (a >= '0' && a < '9' || a >= 'a' && a < 'z' || a >= 'A' && a < 'Z')
}

func oracleConstantDelta(s string) bool {
	if len(s) < 2 {
		return false
	}
	for i := range s {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
		// The i-th digit must be where i first steps lead.
		first, second := int(s[0]-'0'), int(s[1]-'0')
		if int(s[i]-'0') != (first+i*(second-first+10))%10 {
			return false
		}
	}
	return true
}

func oracleCommon(s string) bool { return pin.MostUsed[lowered(s)] || yearsAndKeypad[s] }

var yearsAndKeypad = func() map[string]bool {
	all := make(map[string]bool)
	for year := 1900; year <= 2049; year++ {
		all[strconv.Itoa(year)] = true
	}
	lines := strings.Fields("123 456 789 147 258 369 159 357 1470 2580 3690")
	for _, l := range slices.Clone(lines) {
		lines = append(lines, reversed(l))
	}
	longer := func(drawn []string) (more []string) {
		for _, a := range drawn {
			for _, b := range lines {
				more = append(more, a+b)
				if a[len(a)-1] == b[0] {
					more = append(more, a+b[1:])
				}
			}
		}
		return more
	}
	two := longer(lines)
	for _, s := range slices.Concat(lines, two, longer(two)) {
		all[s] = len(s) >= 4
	}
	return all
}()

func oracleInContext(s, value string) bool {
	if len(s) < 4 || value == "" {
		return false
	}
	s, value = lowered(s), lowered(value)
	texts := []string{value}
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == "" {
		var bare []byte
		for _, b := range []byte(value) {
			if b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 0x80 {
				bare = append(bare, b)
			}
		}
		texts = append(texts, string(bare))
	}
	for _, text := range texts {
		if strings.Contains(text, s) || strings.Contains(text, reversed(s)) {
			return true
		}
	}
	return len(value) >= 4 && strings.Contains(s, value)
}

// lowered puts A to Z in lower case and leaves all else.
func lowered(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}
