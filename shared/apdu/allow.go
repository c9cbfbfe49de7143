package apdu

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/pinward/pinward/shared/problem"
)

// Application is a card application that a bridge talks to, and all that it may
// say. A new one is a value here and its name in applications: what a bridge lets
// through is decided by the bridge's own code, never by what it is sent.
type Application struct {
	Name string
	// AID is the full one, and Shortest how many bytes of it are enough to select
	// the application (ISO 7816-4, 7.1.1 and 8.2.1.2).
	AID      []byte
	Shortest int

	rules []rule
	// holder is what the bridge may say in addition in a script of its own making, with
	// what the person at it has typed: never in one that it was sent.
	holder []rule
}

// rule allows the commands of class 00 with this header whose data is right. An
// Le must be 256, written 00, and only be there with le.
type rule struct {
	ins, p1, p2 byte
	data        func([]byte) bool
	le          bool
}

// PIV is the PIV card application of SP 800-73, with the read-only extensions of
// Yubico that other cards have taken over.
var PIV = Application{
	Name:     "PIV",
	AID:      unhex("A000000308000010000100"), // SP 800-73 part 1, 2.2
	Shortest: 9,                               // without the version
	rules: []rule{
		// GET DATA (SP 800-73, 3.1.2) of CHUID, CCC and discovery object.
		{0xCB, 0x3F, 0xFF, exactly("5C035FC102", "5C035FC107", "5C017E"), true},
		// VERIFY without data (SP 800-73, 3.2.1): tries left of PIN and PUK; P1=FF logs out.
		{insVerify, 0x00, 0x80, none, true},
		{insVerify, 0x00, 0x81, none, true},
		{insVerify, 0xFF, 0x80, none, true},
		// RESET RETRY COUNTER (SP 800-73, 3.2.3): PUK, new PIN.
		{insResetRetryCounter, 0x00, 0x80, func(b []byte) bool { return len(b) == 16 && isPIVPIN(b[8:]) }, false},
		// CHANGE REFERENCE DATA (SP 800-73, 3.2.2), of the PUK only: old, new.
		{insChangeReferenceData, 0x00, 0x81, func(b []byte) bool { return len(b) == 16 && isPIVPUK(b[8:]) }, false},
		// GENERAL AUTHENTICATE (SP 800-73, 3.2.4) with the management key 9B only, under
		// 3DES and AES (SP 800-78-4, table 6-2): the card's challenge, the answer to it.
		{0x87, 0x03, 0x9B, exactly("7C028100"), true},
		{0x87, 0x08, 0x9B, exactly("7C028100"), true},
		{0x87, 0x0A, 0x9B, exactly("7C028100"), true},
		{0x87, 0x0C, 0x9B, exactly("7C028100"), true},
		{0x87, 0x03, 0x9B, answer(8), true},
		{0x87, 0x08, 0x9B, answer(16), true},
		{0x87, 0x0A, 0x9B, answer(16), true},
		{0x87, 0x0C, 0x9B, answer(16), true},
		// Yubico: GET VERSION, GET SERIAL, GET METADATA of PIN, PUK and management key.
		{0xFD, 0x00, 0x00, none, true},
		{0xF8, 0x00, 0x00, none, true},
		{0xF7, 0x00, 0x80, none, true},
		{0xF7, 0x00, 0x81, none, true},
		{0xF7, 0x00, 0x9B, none, true},
	},
	holder: []rule{
		// CHANGE REFERENCE DATA (SP 800-73, 3.2.2), of the PIN: present, new.
		{insChangeReferenceData, 0x00, 0x80, func(b []byte) bool { return len(b) == 16 && isPIVPIN(b[:8]) && isPIVPIN(b[8:]) }, false},
	},
}

// GIDS is the application of Microsoft's Generic Identity Device Specification 2.0.
var GIDS = Application{
	Name:     "GIDS",
	AID:      unhex("A000000397425446590201"),
	Shortest: 9, // without the version
	rules: []rule{
		// GET DATA (ISO 7816-4, 7.4.2): the card id in EF A012; tries left of PIN and PUK.
		{0xCB, 0xA0, 0x12, exactly("5C02DF20"), true},
		{0xCB, 0x3F, 0xFF, exactly("5C027F71", "5C027F73"), true},
		// VERIFY without data (ISO 7816-4, 7.5.6): tries left; P2=82 logs out.
		{insVerify, 0x00, 0x80, none, true},
		{insVerify, 0x00, 0x82, none, true},
		// MANAGE SECURITY ENVIRONMENT (ISO 7816-4, 7.5.11): the admin key, for EXTERNAL
		// AUTHENTICATE.
		{0x22, 0x81, 0xA4, exactly("830180"), false},
		// GENERAL AUTHENTICATE (ISO 7816-4, 7.5.5) with the key chosen: the card's
		// challenge, the answer to it, under 3DES or AES.
		{0x87, 0x00, 0x00, exactly("7C028100"), true},
		{0x87, 0x00, 0x00, answer(8), true},
		{0x87, 0x00, 0x00, answer(16), true},
		// RESET RETRY COUNTER (ISO 7816-4, 7.5.10), P1=02: new PIN, after the admin key.
		{insResetRetryCounter, 0x02, 0x80, isGIDSPIN, false},
	},
	holder: []rule{
		// VERIFY (ISO 7816-4, 7.5.6), and CHANGE REFERENCE DATA (ISO 7816-4, 7.5.7):
		// present and new, with nothing between them.
		{insVerify, 0x00, 0x80, isGIDSPIN, false},
		{insChangeReferenceData, 0x00, 0x80, func(b []byte) bool { return 8 <= len(b) && len(b) <= 32 && ASCII.holds(b) }, false},
	},
}

var applications = []*Application{&PIV, &GIDS}

// Allowed returns nil if a bridge may send the command to a card, and otherwise
// an error that is problem.ErrForbidden. The command is as the card will get it,
// its slots filled. Secure messaging, other logical channels, chaining and
// extended lengths are never allowed.
func Allowed(c Command) error { return allowed(c, false) }

func allowed(c Command, holder bool) error {
	if c.CLA != 0 || c.Extended {
		return refused{c.CLA, c.INS, c.P1, c.P2}
	}
	if c.INS == insGetResponse && c.P1 == 0 && c.P2 == 0 && len(c.Data) == 0 && 0 < c.Le && c.Le <= maxShortLe {
		return nil
	}
	for _, a := range applications {
		if a.allows(c) || holder && matches(a.holder, c) {
			return nil
		}
	}
	return refused{c.CLA, c.INS, c.P1, c.P2}
}

func (a *Application) allows(c Command) bool {
	if c.Le != 0 && c.Le != maxShortLe {
		return false
	}
	// SELECT by name, first occurrence, with the FCI (ISO 7816-4, 7.1.1).
	if c.INS == 0xA4 && c.P1 == 0x04 && c.P2 == 0x00 {
		return len(c.Data) >= a.Shortest && bytes.HasPrefix(a.AID, c.Data)
	}
	return matches(a.rules, c)
}

func matches(rules []rule, c Command) bool {
	return slices.ContainsFunc(rules, func(r rule) bool {
		return r.ins == c.INS && r.p1 == c.P1 && r.p2 == c.P2 && (c.Le == 0 || r.le) && r.data(c.Data)
	})
}

// refused is the header of a command that is not allowed.
type refused [4]byte

func (r refused) Error() string {
	return fmt.Sprintf("command % X is not on the allow-list: %v", r[:], problem.ErrForbidden)
}

func (refused) Unwrap() error { return problem.ErrForbidden }

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func none(b []byte) bool { return len(b) == 0 }

func exactly(hexes ...string) func([]byte) bool {
	var values [][]byte
	for _, h := range hexes {
		values = append(values, unhex(h))
	}
	return func(b []byte) bool {
		return slices.ContainsFunc(values, func(v []byte) bool { return bytes.Equal(v, b) })
	}
}

// answer is a dynamic authentication template (SP 800-73, 3.2.4) with nothing
// but a response of n bytes.
func answer(n byte) func([]byte) bool {
	head := []byte{0x7C, n + 2, 0x82, n}
	return func(b []byte) bool { return len(b) == len(head)+int(n) && bytes.HasPrefix(b, head) }
}

// isPIVPIN: 6 to 8 digits, padded with FF (SP 800-73, 2.4.3). There are cards that
// would set anything else too.
func isPIVPIN(b []byte) bool {
	pin := bytes.TrimRight(b, "\xFF")
	return len(pin) >= 6 && Digits.holds(pin)
}

// isGIDSPIN: 4 to 16 characters of a keyboard, not padded.
func isGIDSPIN(b []byte) bool { return 4 <= len(b) && len(b) <= 16 && ASCII.holds(b) }

// isPIVPUK: 8 bytes, none of them padding (SP 800-73, 2.4.3).
func isPIVPUK(b []byte) bool { return !bytes.Contains(b, []byte{0xFF}) }
