package pin

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// The codes of violations. They are stable.
const (
	CodeTooShort      = "tooShort"      // fewer characters than MinLengthFor the users
	CodeTooLong       = "tooLong"       // more characters than MaxLength
	CodeNotInAlphabet = "notInAlphabet" // a character that the alphabet lacks
	CodeClassMissing  = "classMissing"  // no character of a required class
	CodeSequential    = "sequential"    // up or down by one throughout
	CodeRepeated      = "repeated"      // one character, or a shorter block, repeated
	CodeRunTooLong    = "runTooLong"    // a run of more than MaxRun
	CodeConstantDelta = "constantDelta" // one difference modulo 10 throughout
	CodeCommon        = "common"        // on the list everybody guesses first
	CodeBlocklisted   = "blocklisted"   // one of the tenant's own entries
	CodeContext       = "context"       // close to what is known of the user
)

// Context is what is known of the user whose PIN is checked, all of it
// optional. With DisallowContext, a PIN of at least four characters is refused
// if it, as typed or backwards, is in one of the values (for a PIN of letters
// and digits, whatever else is between theirs does not count: 1701234567 is in
// "+49 170 123-4567"), or if a value of at least four characters is in the
// PIN. The case of letters does not count.
type Context struct {
	Username, Mail, Phone, StaffNumber string

	Users int // how many the tenant has, for MinLengthByUsers
}

// maxBytes: text of more bytes has more than maxLength characters, whatever they are.
const maxBytes = maxLength * utf8.UTFMax

// Check returns everything for which a valid policy refuses the PIN, at most
// one violation a code (but one a value for CodeContext), or nil if it may be
// used. The violations' field is "pin"; their reasons contain neither the PIN
// nor the context. Two kinds of input are not looked at any further: of more
// than 256 bytes only CodeTooLong is said; and of text with spaces or anything
// else that is in no alphabet only its length and CodeNotInAlphabet. History is
// the caller's.
func (p *Policy) Check(pin secret.Text, ctx Context) problem.Violations {
	s := pin.Reveal()
	broken := p.broken(s, &ctx)
	if broken == 0 {
		return nil
	}
	return p.explain(s, &ctx, broken)
}

// rules is a set of broken rules.
type rules uint16

const (
	tooShort rules = 1 << iota
	tooLong
	notInAlphabet
	classMissing
	sequential
	repeated
	runTooLong
	constantDelta
	common
	blocklisted
	inContext
)

func (p *Policy) broken(s string, ctx *Context) (broken rules) {
	if len(s) > maxBytes {
		return tooLong
	}
	seen := classesOf(s)
	n := len(s)
	if seen&foreign != 0 {
		n = utf8.RuneCountInString(s)
	}
	if n < p.MinLengthFor(ctx.Users) {
		broken |= tooShort
	}
	if n > p.MaxLength {
		broken |= tooLong
	}
	if allowed, _ := alphabetClasses(p.Alphabet); seen&^allowed != 0 {
		broken |= notInAlphabet
	}
	if seen&foreign != 0 {
		return broken
	}

	if p.required()&^seen != 0 {
		broken |= classMissing
	}
	if p.DisallowSequential {
		if isSequential(s) {
			broken |= sequential
		}
		if isRepeated(s) {
			broken |= repeated
		}
	}
	if p.MaxRun > 0 && longestRun(s) > p.MaxRun {
		broken |= runTooLong
	}
	if p.DisallowConstantDelta && seen == digit && hasConstantDelta(s) {
		broken |= constantDelta
	}
	if p.Blocklist == BlocklistCommon && commonKind(s, seen) != "" {
		broken |= common
	}
	for _, e := range p.BlocklistEntries {
		if len(e) == len(s) && strings.EqualFold(e, s) {
			broken |= blocklisted
		}
	}
	if p.DisallowContext && (resembles(s, seen, ctx.Username) || resembles(s, seen, ctx.Mail) ||
		resembles(s, seen, ctx.Phone) || resembles(s, seen, ctx.StaffNumber)) {
		broken |= inContext
	}
	return broken
}

// step tells how b follows a.
type step int8

const (
	other step = iota // in none of the ways below
	same
	up   // the next of its class; 0 follows 9
	down // the one before
)

func stepBetween(a, b byte) step {
	switch {
	case a == b:
		return same
	case classOf[a] == special || classOf[a] != classOf[b]:
		return other
	case b == a+1 || a == '9' && b == '0':
		return up
	case a == b+1 || a == '0' && b == '9':
		return down
	}
	return other
}

// isSequential tells whether s goes up or down by one throughout.
func isSequential(s string) bool {
	if len(s) < 2 {
		return false
	}
	first := stepBetween(s[0], s[1])
	if first != up && first != down {
		return false
	}
	for i := 2; i < len(s); i++ {
		if stepBetween(s[i-1], s[i]) != first {
			return false
		}
	}
	return true
}

// isRepeated tells whether s is two or more times a shorter block.
func isRepeated(s string) bool {
	for block := 1; block <= len(s)/2; block++ {
		if s[block] == s[0] && len(s)%block == 0 && s[block:] == s[:len(s)-block] {
			return true
		}
	}
	return false
}

// longestRun returns the length in characters of the longest part of s with
// one step, but no other, between neighbours.
func longestRun(s string) int {
	longest, run, last := 1, 1, other
	for i := 1; i < len(s); i++ {
		next := stepBetween(s[i-1], s[i])
		switch {
		case next == other:
			run = 1
		case next == last:
			run++
		default:
			run = 2
		}
		last = next
		longest = max(longest, run)
	}
	return longest
}

// hasConstantDelta tells whether the digits s have one difference modulo 10.
// Microsoft, "Windows Hello for Business FAQ".
func hasConstantDelta(s string) bool {
	for i := 2; i < len(s); i++ {
		if (s[i]-s[i-1]+10)%10 != (s[1]-s[0]+10)%10 {
			return false
		}
	}
	return len(s) >= 2
}

// resembles tells whether a PIN is in a value, forwards or backwards, or the
// value is in the PIN; see Context.
func resembles(pin string, seen classes, value string) bool {
	return value != "" && len(pin) >= minLength && resemblesValue(pin, seen, value)
}

func resemblesValue(pin string, seen classes, value string) bool {
	squeeze := seen&special == 0
	first, last := toLower(pin[0]), toLower(pin[len(pin)-1])
	for i := range len(value) {
		c := toLower(value[i])
		if c == first && startsWith(value[i:], pin, squeeze, false) || c == last && startsWith(value[i:], pin, squeeze, true) {
			return true
		}
	}
	if len(value) < minLength {
		return false
	}
	for i := range max(0, len(pin)-len(value)+1) {
		if startsWith(pin[i:], value, false, false) {
			return true
		}
	}
	return false
}

// startsWith tells whether text starts with part, read backwards on demand, in
// any case of letters. With squeeze, special characters and spaces of the text
// do not count.
func startsWith(text, part string, squeeze, backwards bool) bool {
	n := 0 // characters of part found
	for i := 0; i < len(text) && n < len(part); i++ {
		c := text[i]
		if squeeze && c < utf8.RuneSelf && classOf[c]&(special|foreign) != 0 {
			continue
		}
		want := part[n]
		if backwards {
			want = part[len(part)-1-n]
		}
		if toLower(c) != toLower(want) {
			return false
		}
		n++
	}
	return n == len(part)
}

func toLower(c byte) byte {
	if classOf[c] == upper {
		c += 'a' - 'A'
	}
	return c
}

// explain puts the broken rules in words.
func (p *Policy) explain(s string, ctx *Context, broken rules) (vs problem.Violations) {
	say := func(rule rules, code, reason string, args ...any) {
		if broken&rule != 0 {
			vs.Add(code, "pin", reason, args...)
		}
	}
	if p.Alphabet == Digits {
		say(tooShort, CodeTooShort, "must have at least %d digits", p.MinLengthFor(ctx.Users))
		say(tooLong, CodeTooLong, "must have at most %d digits", p.MaxLength)
	} else {
		say(tooShort, CodeTooShort, "must have at least %d characters", p.MinLengthFor(ctx.Users))
		say(tooLong, CodeTooLong, "must have at most %d characters", p.MaxLength)
	}
	if broken&notInAlphabet != 0 {
		vs.Add(CodeNotInAlphabet, "pin", "must not contain %s, but only %s", p.offending(s), p.Alphabet.words())
	}
	if broken&classMissing != 0 {
		vs.Add(CodeClassMissing, "pin", "must also contain %s", p.missing(s))
	}
	say(sequential, CodeSequential, "must not go up or down by one from each character to the next")
	if broken&repeated != 0 {
		part := "a shorter part"
		if s[1:] == s[:len(s)-1] {
			part = "one character"
		}
		vs.Add(CodeRepeated, "pin", "must not be %s repeated", part)
	}
	say(runTooLong, CodeRunTooLong, "must not have more than %d characters in a row that are the same or go up or down by one", p.MaxRun)
	say(constantDelta, CodeConstantDelta, "must not have the same difference from each digit to the next")
	if broken&common != 0 {
		vs.Add(CodeCommon, "pin", "must not be %s: such PINs are guessed first", commonKind(s, classesOf(s)))
	}
	say(blocklisted, CodeBlocklisted, "must not be on your organization's list of refused PINs")
	for _, v := range []struct{ name, value string }{
		{"username", ctx.Username},
		{"mail address", ctx.Mail},
		{"phone number", ctx.Phone},
		{"staff number", ctx.StaffNumber},
	} {
		if broken&inContext != 0 && resembles(s, classesOf(s), v.value) {
			vs.Add(CodeContext, "pin", "must not be part of the user's %s, forwards or backwards, nor contain it", v.name)
		}
	}
	return vs
}

func (a Alphabet) words() string {
	switch a {
	case Digits:
		return "the digits 0 to 9"
	case Alphanumeric:
		return "the letters A to Z and a to z and the digits 0 to 9"
	}
	return "letters A to Z, digits 0 to 9 and the special characters of a US keyboard, without spaces"
}

func (p *Policy) missing(s string) string {
	var names []string
	seen := classesOf(s)
	for _, c := range p.RequireClasses {
		if classNamed(c)&seen == 0 {
			names = append(names, map[Class]string{
				Digit:   "a digit",
				Lower:   "a lower-case letter",
				Upper:   "an upper-case letter",
				Special: "a special character",
			}[c])
		}
	}
	return list(names)
}

// offending says what kinds of characters the alphabet lacks.
func (p *Policy) offending(s string) string {
	allowed, _ := alphabetClasses(p.Alphabet)
	var kinds []string
	for i, r := range s {
		kind := ""
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			kind = "bytes that are no characters"
		case r < utf8.RuneSelf && classOf[r]&allowed != 0:
			continue
		case r < utf8.RuneSelf && classOf[r]&(lower|upper) != 0:
			kind = "letters"
		case r < utf8.RuneSelf && classOf[r] == special:
			kind = "special characters"
		case unicode.Is(unicode.Zs, r):
			kind = "spaces"
		case unicode.IsControl(r):
			kind = "control characters"
		case unicode.Is(unicode.Cf, r):
			kind = "invisible characters"
		case r >= '０' && r <= '９':
			kind = "full-width digits"
		case unicode.IsDigit(r):
			kind = "digits of another script"
		case unicode.IsLetter(r):
			kind = "letters other than A to Z"
		default:
			kind = "other symbols"
		}
		if !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	return list(kinds)
}

// list joins words: "a", "a and b", "a, b and c".
func list(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " and " + words[last]
}
