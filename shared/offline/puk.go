package offline

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// PUKChallenge is what a bridge shows that needs a card's PUK. It is made by Key.Challenge,
// and by Key.Check of what was typed.
//
// A bridge keeps one open, in memory only, and keeps the limits below. A response to another
// challenge, also to the one before, passes with a probability of 1 in 10^7; who has the card
// could waste the PUK's tries without any of this. To use again a response that was
// overheard, while the card still has that PUK, the same challenge must come up again: 1 in
// 10^6 for each on the same day, and not on another for 999 days; where the bridge has lost
// its clock, every day is the same. The tag guards no secret, for what answers a forged
// challenge is masked with a key that the forger has not: it tells the operator at once that
// it is another card or bridge, and finds the bridge among the few that it may be.
//
// There is no forward secrecy: with the bridge's private key or the tenant's, and the codes as
// they were read, a PUK is found. It has to be changed as soon as the bridge is online.
type PUKChallenge struct{ digits string }

// The limits that a bridge keeps for a PUKChallenge.
const (
	Life       = 30 * time.Minute // how long one is open, by the monotonic clock
	Tries      = 5                // how many responses whose check digits are right may be wrong
	Challenges = 20               // how many it makes for a card in a day
)

// Report is what the bridge tells of the card besides: with it the cloud knows which PUK the
// card has when the result of the last script was lost with the connection.
type Report struct {
	Change Change
	// Fence is the highest that the bridge has seen for the card. In a challenge it has its
	// last digit only, enough to tell whether Change is of the cloud's open intent.
	Fence int64
}

// Change is what has become of the PUK by scripts whose result the cloud has not acknowledged.
type Change int

// The changes.
const (
	Acknowledged Change = iota // there are none
	Changed                    // the card has taken the proposed PUK
	Unchanged                  // the card has the PUK that it had
	InDoubt                    // it may have taken the proposed PUK
	changes
)

const (
	pukLength       = 8 // SP 800-73, 2.4.3
	dayDigits       = 3
	days            = 999 // of which the day is counted modulo
	noDay           = "999"
	nonceDigits     = 6
	challengeTag    = 4
	challengeLength = dayDigits + 1 + 1 + nonceDigits + challengeTag

	shortTag    = 7
	longMasked  = 20
	longTag     = 10
	shortGroups = (pukLength + shortTag) / dataLength
	longGroups  = (longMasked + longTag) / dataLength
)

// dayOf counts days since 1970 in UTC, modulo days. In UTC a zone that is set wrongly does not
// matter; a clock that was set to local time is off by a day at most.
func dayOf(t time.Time) int {
	const day = 24 * 60 * 60
	n := int(t.Unix()/day) % days
	return (n + days) % days
}

// Challenge makes a challenge, whose tag is of "puk challenge" and the digits before it. A bridge that does not know the time, because its clock shows
// one before something that it remembers, gives the zero time.
func (k Key) Challenge(rand io.Reader, now time.Time, r Report) (PUKChallenge, error) {
	if r.Change < 0 || r.Change >= changes || r.Fence < 0 {
		return PUKChallenge{}, problem.Invalid("unknown", "report", "is of a change or fence that there is not")
	}
	var b [8]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return PUKChallenge{}, fmt.Errorf("make a challenge: %w", err)
	}
	nonce := binary.BigEndian.Uint64(b[:]) % power(nonceDigits)
	day := noDay
	if !now.IsZero() {
		day = fmt.Sprintf("%0*d", dayDigits, dayOf(now))
	}
	body := fmt.Sprintf("%s%d%d%0*d", day, r.Change, r.Fence%10, nonceDigits, nonce)
	return PUKChallenge{body + k.digits(challengeTag, "puk challenge", body)}, nil
}

// String returns the challenge as a code, to be read out.
func (c PUKChallenge) String() string { return write(bridge, c.digits) }

// Report returns what the bridge tells of the card, with the fence's last digit.
func (c PUKChallenge) Report() Report {
	if c.digits == "" {
		return Report{}
	}
	return Report{Change(c.digits[dayDigits] - '0'), int64(c.digits[dayDigits+1] - '0')}
}

// ClockError: the challenge is of this card and bridge, but by the bridge's clock it is not
// of these days. An operator who knows that the person has it on the screen now may have it
// answered all the same.
type ClockError struct {
	Unknown bool // the bridge knows that its clock is wrong
	Days    int  // that it is ahead of the cloud's, modulo 999: -499 to 499
}

// Error implements error.
func (e *ClockError) Error() string {
	switch {
	case e.Unknown:
		return "the bridge does not know the time, so nobody can tell when the challenge was made"
	case e.Days < 0:
		return fmt.Sprintf("the challenge is %d days old, or the bridge's clock is slow", -e.Days)
	}
	return fmt.Sprintf("the challenge is %d days ahead: the bridge's clock is fast", e.Days)
}

// Check reads a challenge as it was typed. It is an InvalidError that names the groups that
// were misheard, ErrForeign if it is of another key, and a ClockError, with the challenge, if
// it is of neither today nor the day before or after.
func (k Key) Check(typed string, now time.Time) (PUKChallenge, error) {
	digits, err := read("challenge", bridge, typed, challengeLength/dataLength)
	if err != nil {
		return PUKChallenge{}, err
	}
	c := PUKChallenge{digits}
	if !k.made(c) {
		return PUKChallenge{}, ErrForeign
	}
	if digits[:dayDigits] == noDay {
		return c, &ClockError{Unknown: true}
	}
	day, err := strconv.Atoi(digits[:dayDigits])
	if err != nil {
		return PUKChallenge{}, fmt.Errorf("read the day: %w", err)
	}
	ahead := (day-dayOf(now)+days+days/2)%days - days/2
	if ahead < -1 || ahead > 1 {
		return c, &ClockError{Days: ahead}
	}
	return c, nil
}

// made tells whether a challenge was made with this key.
func (k Key) made(c PUKChallenge) bool {
	if len(c.digits) != challengeLength || c.Report().Change >= changes {
		return false
	}
	body, tag := c.digits[:challengeLength-challengeTag], c.digits[challengeLength-challengeTag:]
	return same(tag, k.digits(challengeTag, "puk challenge", body))
}

// Mask returns the response to a challenge, a code to be read out: the PUK, of 8 bytes, for
// the bridge that made the challenge. For the same PUK it is the same again. A challenge of
// another key is ErrForeign.
//
// The tag is of "puk response", the challenge's digits without check digits, and the PUK. To a
// PUK of digits a number of "puk digits", those digits and the tag is added modulo 10^8. The
// bytes of another, big-endian in decimal, are first XORed with the first 8 of the HMAC of "puk
// bytes", those digits and the tag. As in SIV (RFC 5297) the mask depends on the tag, and so on
// the PUK: two PUKs for one challenge do not share it.
func (k Key) Mask(c PUKChallenge, puk secret.Text) (string, error) {
	if !k.made(c) {
		return "", ErrForeign
	}
	text := puk.Reveal()
	if len(text) != pukLength {
		return "", problem.Invalid("length", "puk", "must have exactly %d bytes", pukLength)
	}
	if n, ok := number(text); ok {
		tag := k.digits(shortTag, "puk response", c.digits, text)
		masked := (n + k.number(pukLength, "puk digits", c.digits, tag)) % power(pukLength)
		return write(desk, fmt.Sprintf("%0*d%s", pukLength, masked, tag)), nil
	}
	tag := k.digits(longTag, "puk response", c.digits, text)
	masked := k.xor(c, tag, []byte(text))
	return write(desk, fmt.Sprintf("%0*d%s", longMasked, binary.BigEndian.Uint64(masked), tag)), nil
}

// Unmask returns the PUK of a response to a challenge of this key. It is an InvalidError that
// names the groups that were misheard, and ErrResponse if it is a response to another
// challenge: what it holds is then no PUK.
func (k Key) Unmask(c PUKChallenge, typed string) (secret.Text, error) {
	digits, err := read("response", desk, typed, shortGroups, longGroups)
	if err != nil {
		return secret.Text{}, err
	}
	var text, tag string
	if len(digits) == pukLength+shortTag {
		tag = digits[pukLength:]
		masked, _ := number(digits[:pukLength])
		pad := k.number(pukLength, "puk digits", c.digits, tag)
		text = fmt.Sprintf("%0*d", pukLength, (masked+power(pukLength)-pad)%power(pukLength))
	} else {
		tag = digits[longMasked:]
		masked, err := strconv.ParseUint(digits[:longMasked], 10, 64)
		if err != nil { // 20 digits can be more than 8 bytes
			return secret.Text{}, ErrResponse
		}
		text = string(k.xor(c, tag, binary.BigEndian.AppendUint64(nil, masked)))
	}
	if !same(tag, k.digits(len(tag), "puk response", c.digits, text)) {
		return secret.Text{}, ErrResponse
	}
	return secret.New(text), nil
}

func (k Key) xor(c PUKChallenge, tag string, b []byte) []byte {
	pad := k.mac("puk bytes", c.digits, tag)
	defer clear(pad)
	subtle.XORBytes(b, b, pad[:pukLength])
	return b
}

func number(digits string) (uint64, bool) {
	if strings.ContainsFunc(digits, func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil
}
