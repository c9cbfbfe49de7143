// Package pin holds a tenant's PIN policy: what a PIN may be (Policy), whether
// one is (Check), how many are (Admissible), and a new one that is (Generate).
// It is pure: no I/O, no clock, randomness is given. Its invariant: Generate
// never returns a PIN that Check refuses, and Admissible counts what Check
// lets through.
package pin

import (
	"slices"
	"strings"

	"github.com/pinward/pinward/shared/problem"
)

// Alphabet names the characters that a PIN may consist of.
type Alphabet string

// The alphabets. A space is in none of them: it is not seen, and typing fields
// trim it.
const (
	Digits       Alphabet = "digits"       // 0 to 9
	Alphanumeric Alphabet = "alphanumeric" // and A to Z, a to z
	Printable    Alphabet = "printable"    // and the special characters: ASCII 0x21 to 0x7E
)

// Class names a kind of character that a policy may require.
type Class string

// The classes. Special is every printable ASCII character that is none of the
// others.
const (
	Digit   Class = "digit"
	Lower   Class = "lower"
	Upper   Class = "upper"
	Special Class = "special"
)

// Blocklist names the values that are refused because everybody uses them.
type Blocklist string

// The blocklists.
const (
	BlocklistNone   Blocklist = "none"
	BlocklistCommon Blocklist = "common" // see common.go
)

// Policy says what a tenant's PINs may be, how long they live and how often
// they may be guessed. Start from Default or a Profile: the zero Policy is not
// valid. Lengths are in characters.
type Policy struct {
	MinLength int      // 4 to MaxLength
	MaxLength int      // at most 64
	Alphabet  Alphabet // what characters there may be
	// RequireClasses lists classes of which a PIN needs at least one character each.
	RequireClasses []Class
	// DisallowSequential refuses a PIN that goes up or down by one throughout,
	// within digits (0 follows 9), lower-case or upper-case letters, or that is
	// a shorter block repeated.
	DisallowSequential bool
	// MaxRun is the longest part of a PIN that may go up by one, go down by one
	// or stay the same: 2 or more, 0 for any.
	MaxRun int
	// DisallowConstantDelta refuses a PIN of digits with one difference modulo
	// 10 throughout: Windows Hello's rule, 100 PINs at every length.
	DisallowConstantDelta bool
	Blocklist             Blocklist
	// BlocklistEntries are the tenant's own refused PINs, whole, in any case of
	// letters: at most 1,000, of 4 to 64 printable ASCII characters.
	BlocklistEntries []string
	// DisallowContext refuses a PIN that is close to what is known of its user;
	// see Context.
	DisallowContext bool
	History         int // former PINs that may not come back: 0 to 24
	// MinLengthByUsers raises MinLength with the tenant's users, so that a
	// guessed PIN seldom fits somebody: to 5 from 1,000, 6 from 10,000 and 7
	// from 100,000.
	MinLengthByUsers  bool
	ExpirationHours   int   // a new PIN's life: 0 for ever, at most 10 years
	NotifyHoursBefore Hours // mails before the end, in any order, at most 10; none without expiration
	MaxAttempts       int   // wrong PINs before a lock: 1 to 100
	LockMinutes       int   // length of a lock: 1 to 1,440
}

// Default returns the policy of a new tenant.
func Default() Policy {
	return Policy{
		MinLength:          4,
		MaxLength:          16,
		Alphabet:           Alphanumeric,
		DisallowSequential: true,
		Blocklist:          BlocklistCommon,
		DisallowContext:    true,
		MaxAttempts:        5,
		LockMinutes:        15,
	}
}

// Profile is a policy to start from.
type Profile struct {
	Name        string // "default", "windowsHello", "fips201", "nist80063b"
	Description string // one line, for people
	Policy      Policy
}

// Profiles returns all profiles, the default first.
func Profiles() []Profile {
	hello := Default()
	hello.MaxLength = maxLength // Windows allows 127
	hello.Alphabet = Digits
	hello.DisallowSequential = false
	hello.DisallowConstantDelta = true
	hello.Blocklist = BlocklistNone
	hello.DisallowContext = false

	fips := Default()
	fips.MinLength, fips.MaxLength, fips.Alphabet = 6, 8, Digits

	nist := Default()
	nist.MinLength, nist.MaxLength, nist.Alphabet = 6, maxLength, Printable
	nist.MaxAttempts = 10

	return []Profile{
		{"default", "4 to 16 letters and digits; no sequences, repeated blocks, common PINs or personal data.", Default()},
		{"windowsHello", "4 digits or more; refuses what Windows Hello for Business refuses: one difference from each digit to the next.", hello},
		{"fips201", "FIPS 201-3: 6 to 8 digits; no sequences, repeated blocks, common PINs or personal data.", fips},
		{"nist80063b", "NIST SP 800-63B-4: 6 characters or more of any kind, no required classes, no expiry; blocklist and personal data; 10 attempts.", nist},
	}
}

// ProfileNamed returns the profile of that name, or an InvalidError that lists
// the names.
func ProfileNamed(name string) (Profile, error) {
	var names []string
	for _, p := range Profiles() {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Profile{}, problem.Invalid("unknown", "profile", "must be one of %s", strings.Join(names, ", "))
}

// MinLengthFor returns the least length of a new PIN in a tenant with that
// many users.
func (p *Policy) MinLengthFor(users int) int {
	n := p.MinLength
	if p.MinLengthByUsers {
		// A tenth of the PINs taken at most: 10^(n-1) users need n+1 digits.
		switch {
		case users >= 100_000:
			n = max(n, longestByUsers)
		case users >= 10_000:
			n = max(n, 6)
		case users >= 1_000:
			n = max(n, 5)
		}
	}
	return n
}

const (
	minLength      = 4 // no policy may go below
	maxLength      = 64
	longestByUsers = 7
	maxEntries     = 1_000
	maxHistory     = 24
	maxHours       = 10 * 365 * 24
	maxReminders   = 10
	maxAttempts    = 100
	maxLock        = 24 * 60 // minutes
)

// Validate returns an InvalidError with everything that is wrong, in the
// fields' JSON names, or nil. A valid policy lets some PIN through at every
// length it allows: no rule but the tenant's own list takes more than a part
// of the PINs of four digits, and that list is bounded.
func (p *Policy) Validate() error {
	var vs problem.Violations
	between := func(field string, value, least, most int) {
		if value < least || value > most {
			vs.Add("range", field, "must be from %d to %d", least, most)
		}
	}

	between("minLength", p.MinLength, minLength, maxLength)
	between("maxLength", p.MaxLength, minLength, maxLength)
	if p.MinLength > p.MaxLength {
		vs.Add("inconsistent", "maxLength", "must not be less than minLength")
	}
	if p.MinLengthByUsers && p.MaxLength < longestByUsers {
		vs.Add("inconsistent", "maxLength", "must be at least %d with minLengthByUsers, which may ask for as many", longestByUsers)
	}

	allowed, ok := alphabetClasses(p.Alphabet)
	if !ok {
		vs.Add("unknown", "alphabet", "must be %s, %s or %s", Digits, Alphanumeric, Printable)
	}
	for i, name := range p.RequireClasses {
		c := classNamed(name)
		switch {
		case c == 0:
			vs.Add("unknown", "requireClasses", "must be of %s, %s, %s and %s", Digit, Lower, Upper, Special)
		case slices.Contains(p.RequireClasses[:i], name):
			vs.Add("duplicate", "requireClasses", "must name %s once", name)
		case ok && c&allowed == 0:
			vs.Add("inconsistent", "requireClasses", "must not ask for %s, which the alphabet %s lacks", name, p.Alphabet)
		}
	}

	if p.MaxRun != 0 && (p.MaxRun < 2 || p.MaxRun > maxLength) {
		vs.Add("range", "maxRun", "must be 0 (off) or from 2 to %d: two neighbours are a run of 2 already", maxLength)
	}
	if p.Blocklist != BlocklistNone && p.Blocklist != BlocklistCommon {
		vs.Add("unknown", "blocklist", "must be %s or %s", BlocklistNone, BlocklistCommon)
	}
	if n := len(p.BlocklistEntries); n > maxEntries {
		vs.Add("range", "blocklistEntries", "must be at most %d, not %d", maxEntries, n)
	} else if bad := slices.IndexFunc(p.BlocklistEntries, badEntry); bad >= 0 {
		vs.Add("invalid", "blocklistEntries", "must be whole PINs of %d to %d letters, digits and special characters, without spaces; number %d is not", minLength, maxLength, bad+1)
	}

	between("history", p.History, 0, maxHistory)
	between("expirationHours", p.ExpirationHours, 0, maxHours)
	p.validateNotify(&vs)
	between("maxAttempts", p.MaxAttempts, 1, maxAttempts)
	between("lockMinutes", p.LockMinutes, 1, maxLock)
	return vs.Err()
}

// validateNotify says each thing that is wrong once, however many hours it is wrong of.
func (p *Policy) validateNotify(vs *problem.Violations) {
	hours := p.NotifyHoursBefore
	if len(hours) > maxReminders {
		vs.Add("range", "notifyHoursBefore", "must be at most %d, not %d", maxReminders, len(hours))
		return
	}
	if slices.ContainsFunc(hours, func(h int) bool { return h < 1 || h > maxHours }) {
		vs.Add("range", "notifyHoursBefore", "must be from 1 to %d, or 0 alone for no mail", maxHours)
	}
	for i, h := range hours {
		if slices.Contains(hours[:i], h) {
			vs.Add("duplicate", "notifyHoursBefore", "must have %d once", h)
			break
		}
	}
	if len(hours) > 0 && p.ExpirationHours > 0 && slices.Max(hours) >= p.ExpirationHours {
		vs.Add("inconsistent", "notifyHoursBefore", "must be less than expirationHours")
	}
}

func badEntry(e string) bool {
	return len(e) < minLength || len(e) > maxLength || classesOf(e)&foreign != 0
}

// classes is a set of character classes.
type classes uint8

const (
	digit classes = 1 << iota
	lower
	upper
	special
	foreign // in no alphabet: bytes that are not printable ASCII, and the space
)

var classOf = func() (t [256]classes) {
	for i := range t {
		switch c := byte(i); {
		case c >= '0' && c <= '9':
			t[i] = digit
		case c >= 'a' && c <= 'z':
			t[i] = lower
		case c >= 'A' && c <= 'Z':
			t[i] = upper
		case c > ' ' && c <= '~':
			t[i] = special
		default:
			t[i] = foreign
		}
	}
	return t
}()

// classesOf returns the classes of the bytes of s.
func classesOf(s string) (seen classes) {
	for i := range len(s) {
		seen |= classOf[s[i]]
	}
	return seen
}

func alphabetClasses(a Alphabet) (classes, bool) {
	switch a {
	case Digits:
		return digit, true
	case Alphanumeric:
		return digit | lower | upper, true
	case Printable:
		return digit | lower | upper | special, true
	}
	return 0, false
}

func classNamed(c Class) classes {
	switch c {
	case Digit:
		return digit
	case Lower:
		return lower
	case Upper:
		return upper
	case Special:
		return special
	}
	return 0
}

// required returns the classes that a PIN must have.
func (p *Policy) required() (need classes) {
	for _, c := range p.RequireClasses {
		need |= classNamed(c)
	}
	return need
}
