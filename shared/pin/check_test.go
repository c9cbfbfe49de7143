package pin_test

import (
	"fmt"
	"math/big"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

func profile(t testing.TB, name string) pin.Policy {
	t.Helper()
	p, err := pin.ProfileNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	return p.Policy
}

// bare allows every PIN of 4 to 64 characters.
func bare() pin.Policy {
	p := pin.Default()
	p.MaxLength, p.Alphabet = 64, pin.Printable
	p.DisallowSequential, p.DisallowContext, p.Blocklist = false, false, pin.BlocklistNone
	return p
}

func with(p pin.Policy, change func(*pin.Policy)) pin.Policy {
	change(&p)
	return p
}

func codes(vs problem.Violations) (codes []string) {
	for _, v := range vs {
		codes = append(codes, v.Code)
	}
	return codes
}

func TestPolicyText(t *testing.T) {
	sequentialOnly := with(bare(), func(p *pin.Policy) { p.DisallowSequential = true })
	deltaOnly := with(bare(), func(p *pin.Policy) { p.DisallowConstantDelta = true })
	commonOnly := with(bare(), func(p *pin.Policy) { p.Blocklist = pin.BlocklistCommon })
	run3 := with(bare(), func(p *pin.Policy) { p.MaxRun = 3 })
	digitsOnly := with(bare(), func(p *pin.Policy) { p.Alphabet = pin.Digits })
	fourClasses := with(bare(), func(p *pin.Policy) {
		p.RequireClasses = []pin.Class{pin.Digit, pin.Lower, pin.Upper, pin.Special}
	})
	ownList := with(bare(), func(p *pin.Policy) { p.BlocklistEntries = []string{"4711", "Acme2024"} })
	for _, c := range []struct {
		rule   string
		policy pin.Policy
		pins   string
		want   string // codes
	}{
		{"up by one, 0 follows 9", sequentialOnly, "1234 7890 8901 90 abcd ABCD 34567890123", "sequential"},
		{"down by one", sequentialOnly, "4321 0987 1098 dcba ZYXW", "sequential"},
		{"the same throughout", sequentialOnly, "1111 AAAA !!!!! 000000", "repeated"},
		{"a shorter block repeated", sequentialOnly, "1212 123123 abab 12341234 a!a!", "repeated"},
		{"both", sequentialOnly, "01234567890123456789", "sequential repeated"},
		{"mixed case is no sequence", sequentialOnly, "AbCd aaAA", ""},
		{"nor is a part, a step of two, or an end", sequentialOnly, "1235 1357 12349 1231 12121 89ab xyza yzab zyxa", ""},
		{"sequences stay in their class", sequentialOnly, "89:; @ABC XYZ[ ./01 !\"#$ +,-.", ""},

		{"Windows Hello's refused", deltaOnly, "1111 1234 1357 9630 1593 7036 4321 8901", "constantDelta"},
		{"Windows Hello's allowed", deltaOnly, "1231 1872 1212", ""},
		{"constant delta is about digits", deltaOnly, "abcd AAAA ace1 1;EO", ""},
		{"Windows Hello's refused", profile(t, "windowsHello"), "1111 1234 1357 9630 1593 7036 4321 8901", "constantDelta"},
		{"Windows Hello's allowed", profile(t, "windowsHello"), "1231 1872 1212 1122 2580 1984", ""},

		{"no run longer than three", run3, "12349 91234 9876a5 7111178 abcd1 8901", "runTooLong"},
		{"runs of three", run3, "1239 987a 1117 123321123 890 111222333", ""},
		{"a run keeps its class and direction", run3, "12a34b 1221 1211 89ab", ""},

		{"most used", commonOnly, "1234 0000 1212 1004 2468 5683 696969 112233 8675309 password PassW0rd QWERTY abc123 1q2w3e4r p@ssw0rd", "common"},
		{"years", commonOnly, "1900 1984 1999 2000 2024 2049", "common"},
		{"no years", commonOnly, "1899 2050 19845 0198", ""},
		{"keypad lines", commonOnly, "2580 0852 1470 0741 3690 0963 147258 159357 357159 12369 14789 147258369 369258147 25801470", "common"},
		{"no keypad lines", commonOnly, "2589 1593 14725 1472583 25803 7392 739158", ""},

		{"the tenant's own, in any case of letters", ownList, "4711 acme2024 ACME2024", "blocklisted"},
		{"the tenant's own are whole PINs", ownList, "47110 acme20241", ""},

		{"required classes", fourClasses, "aB3$ $3Ba", ""},
		{"a required class is missing", fourClasses, "aB34 ab3$ AB3$ aBc$ 1234", "classMissing"},

		{"only digits", digitsOnly, "12a4 12-4 12é4 １２３４ ١٢٣٤ 12\u00a034 12\x0034", "notInAlphabet"},
		{"too short", bare(), "123 abc", "tooShort"},
		{"too long", digitsOnly, strings.Repeat("7", 65), "tooLong"},
		{"length counts characters", bare(), strings.Repeat("é", 64), "notInAlphabet"},

		{"everything at once", profile(t, "default"), "1234", "sequential common"},
		{"everything at once", with(fourClasses, func(p *pin.Policy) {
			p.MinLength, p.MaxRun, p.DisallowSequential, p.DisallowConstantDelta = 6, 2, true, true
			p.Blocklist, p.BlocklistEntries = pin.BlocklistCommon, []string{"1111"}
		}), "1111", "tooShort classMissing repeated runTooLong constantDelta common blocklisted"},
		{"FIPS 201", profile(t, "fips201"), "739158 73915846", ""},
		{"FIPS 201", profile(t, "fips201"), "000000 111111", "repeated common"},
		{"FIPS 201", profile(t, "fips201"), "7391 73915", "tooShort"},
		{"FIPS 201", profile(t, "fips201"), "739158462", "tooLong"},
		{"FIPS 201", profile(t, "fips201"), "abc739", "notInAlphabet"},
		{"SP 800-63B", profile(t, "nist80063b"), "739158 k7-Xr2 mule.canyon.tape", ""},
		{"SP 800-63B", profile(t, "nist80063b"), "password P@ssw0rd", "common"},
	} {
		if err := c.policy.Validate(); err != nil {
			t.Errorf("%s: invalid policy: %v", c.rule, err)
		}
		for _, s := range strings.Split(c.pins, " ") {
			want := strings.Fields(c.want)
			// Pieces shorter than four characters show a rule, not a PIN.
			if len(s) < 4 && c.want != "tooShort" {
				want = append([]string{"tooShort"}, want...)
			}
			got := codes(c.policy.Check(secret.New(s), pin.Context{}))
			if diff := cmp.Diff(want, got); diff != "" && len(want)+len(got) > 0 {
				t.Errorf("%s: Check(%q), -want +got:\n%s", c.rule, s, diff)
			}
		}
	}
}

// The most used PINs as published: ABC News 2025 (4 digits), DataGenetics 2012
// (5 to 10 digits).
func TestPublishedPINsAreCommon(t *testing.T) {
	p := with(bare(), func(p *pin.Policy) { p.Blocklist = pin.BlocklistCommon })
	for _, s := range strings.Fields(`
		1234 1111 0000 1342 1212 2222 4444 1122 1986 2020 7777 5555 1989 9999 6969 2004 1010 4321 6666 1984 1987 1985 8888
		2000 1980 1988 1982 2580 1313 1990 1991 1983 1978 1979 1995 1994 1977 1981 3333 1992 1975 2005 1993 1976 1996 2002
		1973 2468 1998 1974
		12345 11111 55555 00000 54321 13579 77777 22222 12321 99999 33333 00700 90210 88888 38317 09876 44444 98765 01234 42069
		123456 123123 111111 121212 123321 666666 000000 654321 696969 112233 159753 292513 131313 123654 222222 789456 999999
		101010 777777 007007
		1234567 7777777 1111111 8675309 1234321 0000000 4830033 7654321 5201314 0123456 2848048 7005425 1080413 7895123 1869510
		3223326 1212123 1478963 2222222 5555555
		12345678 11111111 88888888 87654321 00000000 12341234 69696969 12121212 11223344 12344321 77777777 99999999 22222222
		55555555 33333333 44444444 66666666 11112222 13131313 10041004
		123456789 987654321 123123123 789456123 999999999 147258369 741852963 111111111 123454321 123654789 147852369 111222333
		963852741 321654987 420420420 007007007 135792468 397029049 012345678 123698745
		1234567890 0123456789 0987654321 1111111111 1029384756 9876543210 0000000000 1357924680 1122334455 1234512345 1234554321
		5555555555 1212121212 9999999999 2222222222 7777777777 3141592654 3333333333 7894561230 1234567891`) {
		if got := codes(p.Check(secret.New(s), pin.Context{})); !slices.Equal(got, []string{pin.CodeCommon}) {
			t.Errorf("Check(%s) = %q", s, got)
		}
	}
}

func TestContext(t *testing.T) {
	person := pin.Context{
		Username:    "Anna.Kowalska",
		Mail:        "ak1987@example.com",
		Phone:       "+49 170 123-4567",
		StaffNumber: "20-4518",
	}
	for _, c := range []struct{ pin, field string }{
		{"kowalska", "username"},
		{"KOWAL", "username"},
		{"annakowalska", "username"},
		{"anna.kow", "username"},
		{"akslawok", "username"},
		{"ak1987", "mail address"},
		{"78919", ""},
		{"7891", "mail address"},
		{"example", "mail address"},
		{"1701234567", "phone number"},
		{"+49 1", ""}, // not in the alphabet, and no further
		{"0123", "phone number"},
		{"76543", "phone number"},
		{"204518", "staff number"},
		{"8154", "staff number"},
		{"x20-4518", "staff number"},
		{"x204518", ""},
		{"739158", ""},
	} {
		p := with(bare(), func(p *pin.Policy) { p.DisallowContext = true })
		var got []string
		for _, v := range p.Check(secret.New(c.pin), person) {
			if v.Code == pin.CodeContext {
				got = append(got, v.Reason)
			}
		}
		if c.field == "" && got != nil || c.field != "" && (len(got) != 1 || !strings.Contains(got[0], c.field)) {
			t.Errorf("%q: got %q, want %q", c.pin, got, c.field)
		}
		p.DisallowContext = false
		if slices.Contains(codes(p.Check(secret.New(c.pin), person)), pin.CodeContext) {
			t.Errorf("%q: refused though the rule is off", c.pin)
		}
	}

	// Short values are in too many PINs, and letters beyond ASCII are no
	// separators.
	p := pin.Default()
	for s, ctx := range map[string]pin.Context{
		"x451y": {StaffNumber: "451"},
		"jrgen": {Username: "jürgen"},
	} {
		if got := p.Check(secret.New(s), ctx); got != nil {
			t.Errorf("%q with %+v: %v", s, ctx, got)
		}
	}
}

func TestMinLengthByUsers(t *testing.T) {
	p := pin.Default()
	p.MinLengthByUsers = true
	for users, want := range map[int]int{0: 4, 999: 4, 1_000: 5, 9_999: 5, 10_000: 6, 99_999: 6, 100_000: 7, 5_000_000: 7} {
		if got := p.MinLengthFor(users); got != want {
			t.Errorf("MinLengthFor(%d) = %d, want %d", users, got, want)
		}
		short := secret.New("739158462"[:want-1])
		if got := codes(p.Check(short, pin.Context{Users: users})); !slices.Contains(got, pin.CodeTooShort) {
			t.Errorf("%d digits with %d users: %q", want-1, users, got)
		}
	}
	p.MinLengthByUsers = false
	if got := p.MinLengthFor(100_000); got != 4 {
		t.Errorf("switched off: %d", got)
	}
}

func TestReasonsSayWhatIsWrong(t *testing.T) {
	p := pin.Default()
	digits := with(p, func(p *pin.Policy) { p.Alphabet = pin.Digits })
	classes := with(p, func(p *pin.Policy) { p.RequireClasses = []pin.Class{pin.Digit, pin.Lower, pin.Upper} })
	for _, c := range []struct {
		policy     pin.Policy
		pin, words string
	}{
		{digits, "７３９１５８", "full-width digits"},
		{digits, "٧٣٩١٥٨", "digits of another script"},
		{digits, "73 91 58", "spaces"},
		{digits, "73915\n", "control characters"},
		{digits, "7391\u200b58", "invisible characters"},
		{digits, "7391\xff58", "bytes that are no characters"},
		{digits, "7391ab-é", "letters, special characters and letters other than A to Z, but only the digits 0 to 9"},
		{digits, "7391€", "other symbols"},
		{p, "73-91", "special characters, but only the letters"},
		{p, "739", "at least 4"},
		{p, strings.Repeat("73", 20) + "1", "at most 16"},
		{p, "1984", "a year"},
		{p, "147258", "keypad"},
		{p, "letmein", "most-used"},
		{p, "7777", "one character repeated"},
		{p, "7373", "a shorter part repeated"},
		{classes, "?739", "a lower-case letter and an upper-case letter"},
	} {
		got := fmt.Sprint(c.policy.Check(secret.New(c.pin), pin.Context{}).Err())
		if !strings.Contains(got, c.words) {
			t.Errorf("%q: %q does not say %q", c.pin, got, c.words)
		}
	}
}

func TestNothingLeaks(t *testing.T) {
	// Values that no reason would hold by itself.
	person := pin.Context{Username: "zqxjvk81", Mail: "zqxjvk81@wwvq.xx", Phone: "8142 8142 77", StaffNumber: "814277"}
	strict := with(pin.Default(), func(p *pin.Policy) {
		p.MinLength, p.MaxLength, p.MaxRun, p.DisallowConstantDelta = 5, 6, 2, true
		p.RequireClasses = []pin.Class{pin.Upper}
		p.BlocklistEntries = []string{"zqxjvk81", "8642"}
	})
	seen := map[string]bool{}
	for _, s := range []string{"zqxjvk81", "8142", "814277", "8642", "77777", "78787878", "45678", "1984", "25802580", "7é8é", "zq xj", strings.Repeat("8142", 1000)} {
		for _, v := range strict.Check(secret.New(s), person) {
			seen[v.Code] = true
			if v.Field != "pin" {
				t.Errorf("field %q", v.Field)
			}
			for _, value := range []string{s, person.Username, person.Mail, person.Phone, person.StaffNumber, "8142", "8642"} {
				if strings.Contains(strings.ToLower(v.Reason), value) {
					t.Errorf("%s: the reason %q holds %q", v.Code, v.Reason, value)
				}
			}
		}
	}
	if len(seen) != 11 {
		t.Errorf("saw %d of 11 codes: %v", len(seen), seen)
	}
}

func TestHugeInput(t *testing.T) {
	p := pin.Default()
	for _, s := range []string{
		strings.Repeat("7", 10<<20),
		strings.Repeat("\xff", 10<<20),
		strings.Repeat("７", 10<<20/3),
		strings.Repeat("12", 128) + "1",
	} {
		pin10MB := secret.New(s)
		start := time.Now()
		got := codes(p.Check(pin10MB, pin.Context{Username: s}))
		if took := time.Since(start); took > 100*time.Millisecond { // measured: below 1 µs
			t.Errorf("%d bytes took %v", len(s), took)
		}
		if !slices.Equal(got, []string{pin.CodeTooLong}) {
			t.Errorf("%d bytes: %q", len(s), got)
		}
	}
	if got := codes(p.Check(secret.Text{}, pin.Context{})); !slices.Equal(got, []string{pin.CodeTooShort}) {
		t.Errorf("empty PIN: %q", got)
	}
}

// TestEveryNumericPIN compares Check with the oracle, code by code, on every
// PIN of 4 to 8 digits, and Admissible with the number let through. The race
// detector, which would take ten minutes and has nothing to find here but in
// the test, gets 4 to 6 digits.
func TestEveryNumericPIN(t *testing.T) {
	policies := []struct {
		name   string
		policy pin.Policy
	}{
		{"default", pin.Default()},
		{"windowsHello", profile(t, "windowsHello")},
		{"fips201", profile(t, "fips201")},
		{"everything", with(pin.Default(), func(p *pin.Policy) {
			p.MaxRun, p.DisallowConstantDelta = 3, true
			p.RequireClasses = []pin.Class{pin.Digit}
			p.BlocklistEntries = []string{"4711", "1234", "47114711", "815815", "00700", "acme01", "7391584"}
		})},
		{"runs only", with(bare(), func(p *pin.Policy) { p.MaxRun = 2 })},
	}
	longest, total := 8, int64(111_110_000)
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		longest, total = 6, 1_110_000
		t.Log("with -race only 4 to 6 digits are compared")
	}
	start := time.Now()
	var compared atomic.Int64
	var constantDelta [9]atomic.Int64
	for n := 4; n <= longest; n++ {
		admitted := make([]atomic.Int64, len(policies))
		shape := make([][]string, len(policies)) // the same for all digits
		for i := range policies {
			shape[i] = oracleShape(&policies[i].policy, n, strings.Repeat("0", n), 0)
		}
		// A block of 10,000 PINs shares the leading digits.
		var next atomic.Int64
		blocks := int64(pow(10, n-4))
		var wg sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			wg.Go(func() {
				allowed := make([]int64, len(policies))
				for block := next.Add(1) - 1; block < blocks && !t.Failed(); block = next.Add(1) - 1 {
					deltas := int64(0)
					for last := range int64(10_000) {
						s := digitsOf(block*10_000+last, n)
						f := factsOf(s)
						if f.constantDelta {
							deltas++
						}
						for i := range policies {
							p := &policies[i].policy
							want := slices.Concat(shape[i], oracleContent(p, s, f))
							got := p.Check(secret.New(s), pin.Context{})
							if got == nil {
								allowed[i]++
							}
							if len(got)+len(want) > 0 && !slices.Equal(codes(got), want) {
								t.Errorf("%s: Check(%s) = %q, the oracle says %q", policies[i].name, s, codes(got), want)
								return
							}
						}
					}
					constantDelta[n].Add(deltas)
					compared.Add(10_000)
				}
				for i, a := range allowed {
					admitted[i].Add(a)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		for i := range policies {
			got, want := policies[i].policy.Admissible(n), admitted[i].Load()
			if got.Cmp(big.NewInt(want)) != 0 {
				t.Errorf("%s: Admissible(%d) = %v, but %d are let through", policies[i].name, n, got, want)
			}
			t.Logf("%s, %d digits: %d of %d let through", policies[i].name, n, want, pow(10, n))
		}
		if got := constantDelta[n].Load(); got != 100 {
			t.Errorf("%d PINs of %d digits have a constant delta, want 100", got, n)
		}
		hello := profile(t, "windowsHello")
		if got, want := hello.Admissible(n), int64(pow(10, n)-100); got.Int64() != want {
			t.Errorf("windowsHello lets %v PINs of %d digits through, want %d", got, n, want)
		}
	}
	if got := compared.Load(); got != total {
		t.Errorf("compared %d PINs, want %d", got, total)
	}
	t.Logf("compared %d PINs with %d policies in %v", compared.Load(), len(policies), time.Since(start).Round(time.Millisecond))
}

func pow(base, n int) int {
	p := 1
	for range n {
		p *= base
	}
	return p
}

// digitsOf writes v in n digits.
func digitsOf(v int64, n int) string {
	var b [20]byte
	for i := n - 1; i >= 0; i-- {
		b[i] = byte('0' + v%10)
		v /= 10
	}
	return string(b[:n])
}

func FuzzCheckAgainstOracle(f *testing.F) {
	for _, s := range []string{
		"", "1234", "4321", "1111", "1212", "739158", "AbCd", "aaAA", "abab", "1q2w3e4r", "PASSWORD", "2580", "1999", "147258369",
		"12 34", "１２３４", "12\x00", "\xff\xfe", "é", "🔑🔑🔑🔑", "!!!!", "a!a!a", "zzzzyyyy", "90909", "4711", "anna1", "76543210",
		strings.Repeat("12", 32), strings.Repeat("9", 65), strings.Repeat("é", 128), strings.Repeat("é", 129),
	} {
		for _, knobs := range []uint64{0, ^uint64(0), 0x5555_5555_5555, 0xaaaa_aaaa_aaaa, 0x1234_5678_9abc} {
			f.Add(s, "anna.k", "anna@example.com", "+49 170 123-4567", "4711", 12_345, knobs, "acme")
		}
	}
	f.Fuzz(func(t *testing.T, s, username, mail, phone, staff string, users int, knobs uint64, entry string) {
		p := policyFrom(knobs, entry)
		if err := p.Validate(); err != nil {
			t.Skip(err)
		}
		ctx := pin.Context{Username: username, Mail: mail, Phone: phone, StaffNumber: staff, Users: users}
		want, got := oracle(&p, s, ctx), codes(p.Check(secret.New(s), ctx))
		if len(want)+len(got) > 0 && !slices.Equal(want, got) {
			t.Errorf("Check(%q, %+v) under %+v = %q, the oracle says %q", s, ctx, p, got, want)
		}
	})
}

// policyFrom turns bits into a policy that is valid if the entry is.
func policyFrom(knobs uint64, entry string) pin.Policy {
	take := func(n uint64) int { // a number below n
		v := knobs % n
		knobs /= n
		return int(v)
	}
	p := pin.Default()
	p.MinLength = 4 + take(8)
	p.MaxLength = max(p.MinLength, 7) + take(54)
	alphabet := take(3)
	p.Alphabet = []pin.Alphabet{pin.Digits, pin.Alphanumeric, pin.Printable}[alphabet]
	for _, c := range []pin.Class{pin.Digit, pin.Lower, pin.Upper, pin.Special}[:1+alphabet+(alphabet+1)/2] {
		if take(2) == 1 {
			p.RequireClasses = append(p.RequireClasses, c)
		}
	}
	p.DisallowSequential = take(2) == 1
	if take(2) == 1 {
		p.MaxRun = 2 + take(5)
	}
	p.DisallowConstantDelta = take(2) == 1
	p.Blocklist = []pin.Blocklist{pin.BlocklistNone, pin.BlocklistCommon}[take(2)]
	if take(2) == 1 {
		p.BlocklistEntries = []string{"4711", entry}
	}
	p.DisallowContext = take(2) == 1
	p.MinLengthByUsers = take(2) == 1
	return p
}
