package pin

import (
	"strconv"
	"strings"
)

// The blocklist "common" refuses a whole PIN, in any case of letters, that is
//
//   - one of mostUsed,
//   - a year from 1900 to 2049 (four digits), or
//   - one, two or three lines of the keypad after one another: 2580, 147258,
//     12369 (lines may share the key where they meet), 147258369.
//
// Sequences and repeated blocks of every length are DisallowSequential's: as
// values they would fill the list once for each length. Dates of day and month
// are left alone: they are 6 % of the PINs of four digits, and nobody can see
// from 1305 that it is one.

// mostUsed are PINs that leaks and studies have found most often, by length.
// All of the top twenty of 4 to 10 digits of an analysis of leaked passwords
// (DataGenetics, "PIN analysis", 2012) and the top fifty of 4 digits of a later
// one (ABC News, 2025, on 29 million) are common, here or by rule. The rest is
// drawn from studies of phone PINs (Amitay 2011; Markert et al., "This PIN Can
// Be Easily Guessed", 2020) and their like: walks around the keypad, pairs,
// counting in other steps; and, with letters, from lists of leaked passwords.
var mostUsed = setOf(`
	0000 0001 0007 0070 0101 0102 0123 0420 0911 1000 1001 1004 1010 1011 1100 1101 1111
	1112 1122 1123 1133 1200 1201 1210 1212 1213 1221 1222 1223 1224 1225 1230 1232 1233
	1234 1236 1245 1313 1324 1342 1379 1397 1414 1425 1428 1432 1478 1515 1616 1717 1793
	1818 2112 2121 2211 2222 2233 2323 2345 2424 2468 2486 2525 2684 3141 3179 3210 3232
	3333 3456 3971 4200 4268 4321 4444 4545 4567 4862 5050 5150 5252 5555 5656 5678 5683
	6248 6543 6666 6767 6789 6842 6969 7007 7139 7410 7654 7777 7788 7890 7913 7931 8008
	8246 8426 8520 8624 8765 8888 8989 9090 9119 9630 9713 9731 9876 9898 9999

	00000 00700 01234 09876 11111 12121 12321 12345 13579 22222 23456 24680 33333 38317
	42069 44444 54321 55555 66666 67890 77777 88888 90210 98765 99999

	000000 000007 007007 010101 010203 012345 020202 098765 100000 101010 101112 102030
	110110 111111 111222 112211 112233 112358 121212 121314 123000 123123 123234 123321
	123454 123455 123456 123457 123465 123654 123789 124578 131313 134679 135246 135790
	135791 141414 142536 147896 151515 159951 161616 171717 181818 192837 202020 212121
	221122 222222 223344 232323 242424 246810 246824 252525 258000 271828 292513 303030
	311311 314159 321123 323232 333333 333666 334455 345678 360360 420420 444444 445566
	454545 456456 456789 505050 520131 520520 543210 555555 555666 556677 565656 567890
	585858 616161 654123 654321 656565 666666 666999 676767 686868 696969 707070 717171
	741236 753159 767676 777777 777888 787878 789123 789789 808080 818181 828282 852456
	878787 888888 898989 900000 909090 911911 929292 963147 963963 969696 979797 987654
	989898 998877 999888 999999

	0000000 0123456 1010101 1080413 1111111 1122334 1212121 1212123 1231234 1234321 1234567
	1234568 1237890 1478963 1869510 2222222 2345678 2848048 3141592 3223326 3333333 4444444
	4830033 5201314 5555555 6666666 7005425 7654321 7777777 7895123 7896321 8675309 8888888
	9876543 9999999

	00000000 00000001 00001111 00112233 01010101 01020304 01234567 09876543 10041004
	10101010 10203040 11110000 11111111 11112222 11221122 11223344 12121212 12312312
	12340987 12341234 12344321 12345670 12345678 12345679 12348765 12369874 12457896
	12481632 13131313 13243546 13572468 13579246 14141414 14725836 14789632 15975346
	20002000 22222222 22446688 22552255 23232323 23456789 24681012 24681357 25252525
	25802580 27182818 31415926 33333333 36925814 43211234 44444444 55555555 56781234
	66666666 69696969 74108520 75315975 76543210 77777777 78963214 87654321 88888888
	89898989 96385274 98765432 98989898 99999999

	007007007 012345678 111111111 111222333 112233445 121212121 123123123 123454321
	123456780 123456789 123654789 123698745 135792468 222222222 314159265 321654987
	333333333 397029049 420420420 444444444 555555555 666666666 777777777 876543210
	888888888 987654321 999999999

	0000000000 0123456789 0987654321 1029384756 1111111111 1122334455 1212121212 1231231231
	1231231234 1234512345 1234554321 1234567890 1234567891 1357924680 1472583690 2222222222
	3141592653 3141592654 3333333333 5555555555 7777777777 7894561230 8888888888 9876543210
	9999999999

	12345678910 31415926535 012345678910 123456123456 123456654321 123456789012
	314159265358 1234567890123

	0000a 000a 111a 123456a 123456q 12345a 12345q 1234a 1234abcd 1234pass 123a 123abc
	123qwe 12qwaszx 1a2b 1a2b3c 1a2b3c4d 1q2w 1q2w3e 1q2w3e4r 1q2w3e4r5t 1qaz 1qaz2wsx
	1qazxsw2 a123 a1234 a12345 a123456 a1b2 a1b2c3 a1b2c3d4 aa11 aa1234 aaa111 aaaa aaaaa
	aaaaaa aaaaaaaa aabb aabbcc ab12 ab1234 abc1 abc12 abc123 abc1234 abc12345 abc123456
	abcd abcd1 abcd12 abcd123 abcd1234 abcde abcde12345 abcdef abcdefg abcdefgh access
	admin admin1 admin12 admin123 admin1234 administrator amanda andrea andrew angel angela
	anthony apple april asdasd asdf asdf1234 asdfg asdfgh asdfghj asdfghjk asdfghjkl ashley
	august austin autumn azerty azertyuiop babygirl bailey banana baseball basketball
	batman beer blue boss buster butterfly canon card changeit changeme changeme1 charlie
	cheese chelsea chocolate cocacola coffee computer cookie cool daniel david default
	default1 demo dragon eagle eagles ferrari flower football france freedom friday fuckyou
	gandalf ginger girl god1 golf google guest guest123 hallo hallo123 harley heart hello
	hello1 hello123 hockey home hunter iloveu iloveyou iloveyou1 internet jack james
	january jasmine jennifer jessica jesus john jordan jordan23 joseph joshua july june
	justin killer king kiosk kitty letmein letmein1 liverpool login login123 london love
	love123 lovely loveme maggie manager march marina mario martin master matrix matthew
	merlin michael michelle mickey monday money monkey monkey123 mother murphy mustang
	naruto nicole ninja nothing office orange p@ss p@ss123 p@ssw0rd p@ssw0rd1 p@ssword
	pa$$word pa55word paper pass pass1 pass12 pass123 pass1234 passpass passw0rd passwd
	password password! password1 password12 password123 password1234 peanut pepper phoenix
	pin1 pin123 pin1234 pincode pinpin pizza pokemon porsche princess print print1 print123
	printer printer1 purple q1w2 q1w2e3 q1w2e3r4 qaz123 qazwsx qazxsw qwe123 qwe123qwe
	qweasd qweasdzxc qweqwe qwer qwer1234 qwert qwert1 qwert123 qwerty qwerty1 qwerty12
	qwerty123 qwertyui qwertyuiop qwertz qwertz123 qwertzuiop rainbow robert root root123
	sample samsung scan scanner school secret secret1 secret123 secure security service
	sesame shadow silver snoopy soccer sophie spring starwars student summer summer1 sunday
	sunshine super superman support system taylor temp temp123 temp1234 test test1 test12
	test123 test1234 tester testing testtest thomas thunder tigger toor trustno1 user user1
	user123 user1234 welcome welcome1 welcome12 welcome123 whatever willow winner winter
	winter1 wizard work xxxx xxxxxx xyz123 yamaha yankees yellow zaq1 zaq12wsx zaq1zaq1
	zombie zxcv zxcvb zxcvbn zxcvbnm
`)

func setOf(words string) map[string]bool {
	m := make(map[string]bool)
	for _, w := range strings.Fields(words) {
		m[w] = true
	}
	return m
}

// commonKind says in words what makes s, of the given classes, common, or "".
func commonKind(s string, seen classes) string {
	switch {
	case len(s) < minLength || !commonPrefixes[prefixHash(s)]:
		return ""
	case isMostUsed(s):
		return "one of the most-used PINs"
	case seen == digit && isYear(s):
		return "a year"
	case seen == digit && isKeypadLines(s, 3):
		return "a line on the keypad"
	}
	return ""
}

// commonPrefixes has the hashes of the first four characters of all that is
// common. Asking it first spares most good PINs the rest, and with it half the
// time of a verdict.
var commonPrefixes = func() (t [1 << 13]bool) {
	for s := range mostUsed {
		t[prefixHash(s)] = true
	}
	for year := firstYear; year <= lastYear; year++ {
		t[prefixHash(strconv.Itoa(year))] = true
	}
	for _, lines := range keypadLines {
		for _, line := range lines {
			for next := '0'; next <= '9'; next++ {
				t[prefixHash(line+string(next))] = true
			}
		}
	}
	return t
}()

// prefixHash hashes the first four characters of s, alike in both cases.
func prefixHash(s string) uint32 {
	const lowerCase = 0x20202020
	first := uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
	return (first | lowerCase) * 2654435761 >> (32 - 13) // Knuth's multiplicative hash
}

func isMostUsed(s string) bool {
	var folded [maxBytes]byte
	for i := range len(s) {
		folded[i] = toLower(s[i])
	}
	return mostUsed[string(folded[:len(s)])]
}

const firstYear, lastYear = 1900, 2049

func isYear(s string) bool {
	return len(s) == 4 && (s[:2] == "19" || s[:2] == "20" && s[2] < '5')
}

// keypadLines are the rows, columns and diagonals of the keypad
//
//	1 2 3
//	4 5 6
//	7 8 9
//	  0
//
// by their first key, both ways, the columns without and with the 0 beneath.
var keypadLines = [10][]string{
	0: {"0741", "0852", "0963"},
	1: {"123", "147", "159", "1470"},
	2: {"258", "2580"},
	3: {"321", "369", "357", "3690"},
	4: {"456"},
	6: {"654"},
	7: {"789", "741", "753"},
	8: {"852"},
	9: {"987", "963", "951"},
}

// isKeypadLines tells whether the digits s are at most that many keypad lines,
// each beginning with the key that ended the one before, or with a key after it.
func isKeypadLines(s string, most int) bool {
	if most == 0 || s == "" {
		return false
	}
	for _, line := range keypadLines[s[0]-'0'] {
		if !strings.HasPrefix(s, line) {
			continue
		}
		if s == line || isKeypadLines(s[len(line):], most-1) || isKeypadLines(s[len(line)-1:], most-1) {
			return true
		}
	}
	return false
}
