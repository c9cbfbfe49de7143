package apdu

import "fmt"

// SW is a status word, SW1 and SW2 (ISO 7816-4, 5.1.3).
type SW uint16

// Status words that cards are known to answer (ISO 7816-4, tables 5 and 6; the
// words of SP 800-73 part 1, "Status Words", where it has its own).
const (
	SWOK                      SW = 0x9000
	SWVerificationFailed      SW = 0x6300 // SP 800-73: no further tries are told
	SWMemoryFailure           SW = 0x6581
	SWWrongLength             SW = 0x6700
	SWChannelNotSupported     SW = 0x6881
	SWSMNotSupported          SW = 0x6882
	SWLastExpected            SW = 0x6883
	SWChainingNotSupported    SW = 0x6884
	SWSecurityStatus          SW = 0x6982
	SWBlocked                 SW = 0x6983
	SWReferenceDataNotUsable  SW = 0x6984
	SWConditionsNotSatisfied  SW = 0x6985
	SWCommandNotAllowed       SW = 0x6986
	SWWrongData               SW = 0x6A80
	SWFunctionNotSupported    SW = 0x6A81
	SWNotFound                SW = 0x6A82
	SWNotEnoughMemory         SW = 0x6A84
	SWIncorrectP1P2           SW = 0x6A86
	SWReferenceDataNotFound   SW = 0x6A88
	SWWrongP1P2               SW = 0x6B00
	SWInstructionNotSupported SW = 0x6D00
	SWClassNotSupported       SW = 0x6E00
	SWNoDiagnosis             SW = 0x6F00
)

var meanings = map[SW]string{
	SWOK:                      "successful",
	SWVerificationFailed:      "verification failed",
	SWMemoryFailure:           "memory failure",
	SWWrongLength:             "wrong length",
	SWChannelNotSupported:     "logical channel not supported",
	SWSMNotSupported:          "secure messaging not supported",
	SWLastExpected:            "last command of the chain expected",
	SWChainingNotSupported:    "command chaining not supported",
	SWSecurityStatus:          "security status not satisfied",
	SWBlocked:                 "authentication method blocked",
	SWReferenceDataNotUsable:  "reference data not usable",
	SWConditionsNotSatisfied:  "conditions of use not satisfied",
	SWCommandNotAllowed:       "command not allowed",
	SWWrongData:               "incorrect parameter in command data field",
	SWFunctionNotSupported:    "function not supported",
	SWNotFound:                "data object or application not found",
	SWNotEnoughMemory:         "not enough memory",
	SWIncorrectP1P2:           "incorrect parameter in P1 or P2",
	SWReferenceDataNotFound:   "reference data or key reference not found",
	SWWrongP1P2:               "wrong parameter in P1 or P2",
	SWInstructionNotSupported: "instruction not supported or invalid",
	SWClassNotSupported:       "class not supported",
	SWNoDiagnosis:             "no precise diagnosis",
}

// kinds are the meanings of SW1 alone.
var kinds = map[byte]string{
	0x62: "warning, state unchanged",
	0x63: "warning, state changed",
	0x64: "execution error, state unchanged",
	0x65: "execution error, state changed",
	0x66: "security issue",
	0x68: "function of the class not supported",
	0x69: "command not allowed",
	0x6A: "wrong parameters",
}

// Meaning says in a few words what the card said.
func (sw SW) Meaning() string {
	if m, ok := meanings[sw]; ok {
		return m
	}
	if n, ok := sw.More(); ok {
		return fmt.Sprintf("%d more bytes of data", n)
	}
	if n, ok := sw.RightLe(); ok {
		return fmt.Sprintf("wrong Le, %d would be right", n)
	}
	if n, ok := sw.TriesLeft(); ok {
		return fmt.Sprintf("%d tries left", n)
	}
	if m, ok := kinds[byte(sw>>8)]; ok {
		return m
	}
	return "unknown"
}

// String shows the SW in hex and its meaning.
func (sw SW) String() string { return fmt.Sprintf("%04X (%s)", uint16(sw), sw.Meaning()) }

// TriesLeft tells how many tries a PIN or PUK has left, if the SW says so: 63CX
// has X, and 6983, which some cards answer to the last wrong try and others once
// blocked, has none.
func (sw SW) TriesLeft() (n int, ok bool) {
	if sw == SWBlocked {
		return 0, true
	}
	return int(sw & 0xF), sw&0xFFF0 == 0x63C0
}

// More tells for 61xx how many bytes GET RESPONSE will return, 1 to 256; there
// may be more after them.
func (sw SW) More() (n int, ok bool) {
	return orMost(int(sw&0xFF), maxShortLe), sw>>8 == 0x61
}

// RightLe tells for 6Cxx which Le, 1 to 256, the command must have.
func (sw SW) RightLe() (le int, ok bool) {
	return orMost(int(sw&0xFF), maxShortLe), sw>>8 == 0x6C
}
