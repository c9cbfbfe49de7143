package card

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/pin"
)

// PIV is the family of PIV cards (SP 800-73). Its card id is the GUID of the CHUID, or
// the FASC-N: see pivID. A PIN is reset by the PUK.
var PIV = &Family{
	Name:        apdu.PIV.Name,
	application: &apdu.PIV,
	minPIN:      6, // SP 800-73, 2.4.3
	maxPIN:      8,
	alphabets:   []pin.Alphabet{pin.Digits},
	guard:       pivGuard,
	unblock:     legUnblock,
	takeCustody: legTake,
	reconcile:   legRead,
	legs: map[Leg]leg{
		legIdentify: {steps: 7, script: pivIdentify, next: pivIdentified},
		legAskPIN:   {steps: 3, script: pivAskPIN, next: pivToldPIN},
		legUnblock:  {steps: 6, script: pivUnblock, next: pivUnblocked, changes: true, policy: true},
		legTake:     {steps: 3, script: pivTake, next: pivTaken, changes: true},
		legRead:     {steps: 3, script: pivRead, next: pivReadResult, reconciles: true},
		legProbe:    {steps: 4, script: pivProbe, next: pivProbed, changes: true, reconciles: true},
		legConfirm:  {steps: 3, script: pivConfirm, next: pivConfirmed, changes: true, reconciles: true},
	},
}

// The legs of PIV after it is identified. All begin with SELECT and the guard.
const (
	legAskPIN  Leg = "askPIN"  // empty VERIFY
	legUnblock Leg = "unblock" // carries the PUKs Current and Proposed, and the new PIN
	legTake    Leg = "take"    // carries the PUKs Current and Proposed
	legRead    Leg = "read"    // the PUK's tries
	legProbe   Leg = "probe"   // carries the PUKs Current and Proposed
	legConfirm Leg = "confirm" // carries one PUK: that which it must be
)

// The steps of those legs. One that presents PUKs does so at first, and then at second.
const (
	guardStep = 1
	first     = 2
	second    = 3
	triesStep = 5 // of legUnblock
)

const (
	insChangeReferenceData = 0x24 // SP 800-73, 3.2.2
	insGetMetadata         = 0xF7 // Yubico
	insGetSerial           = 0xF8 // Yubico
	insGetVersion          = 0xFD // Yubico

	refPUK    = 0x81 // SP 800-73 part 1, table 4b
	pukLength = 8    // SP 800-73, 2.4.3
)

// The data objects and their parts (SP 800-73 part 1, tables 3, 8 and 9).
var chuid, ccc = []byte{0x5F, 0xC1, 0x02}, []byte{0x5F, 0xC1, 0x07}

const (
	tagList  apdu.Tag = 0x5C
	tagData  apdu.Tag = 0x53
	tagFASCN apdu.Tag = 0x30
	tagGUID  apdu.Tag = 0x34
	tagCCCID apdu.Tag = 0xF0

	guidLength, fascnLength = 16, 25

	tagTemplate apdu.Tag = 0x61 // of the answer to SELECT (SP 800-73, table 3)
	tagLabel    apdu.Tag = 0x50

	tagTries apdu.Tag = 0x06 // Yubico metadata: in all, left
)

// pivID returns the card id in the answer to GET DATA of the CHUID, by OpenSC's rule
// (piv_get_serial_nr_from_CHUI): the GUID if it is not zero and the FASC-N is absent,
// all zero, or of agency 9999, which is of nobody; else the FASC-N.
func pivID(r apdu.Result, step int) []byte {
	guid, _ := value(r, step, tagData, tagGUID)
	fascn, _ := value(r, step, tagData, tagFASCN)
	guidOK := len(guid) == guidLength && !isZero(guid)
	fascnOK := len(fascn) == fascnLength && !isZero(fascn)
	switch {
	case guidOK && (!fascnOK || isAgency9999(fascn)):
		return guid
	case fascnOK:
		return fascn
	}
	return nil
}

// isAgency9999: ";9999" in the code of 4 bits and parity (SP 800-73 part 1, 3.1.2).
func isAgency9999(fascn []byte) bool {
	return bytes.HasPrefix(fascn, []byte{0xD4, 0xE7, 0x39}) && fascn[3]&0x80 != 0
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func pivGuard(id []byte) (apdu.Guard, bool) {
	switch {
	case isZero(id):
		return apdu.Guard{}, false
	case len(id) == guidLength:
		return apdu.Guard{Path: []apdu.Tag{tagData, tagGUID}, Value: id}, true
	case len(id) == fascnLength:
		return apdu.Guard{Path: []apdu.Tag{tagData, tagFASCN}, Value: id}, true
	}
	return apdu.Guard{}, false
}

func pivObject(tag []byte, expect []apdu.Expect) apdu.Step {
	data := apdu.EncodeTLV(apdu.TLV{Tag: tagList, Value: tag})
	return apdu.Step{Command: apdu.Command{INS: insGetData, P1: 0x3F, P2: 0xFF, Data: data, Le: le}, Expect: expect}
}

// pivAsk is one of Yubico's commands, which not every card knows.
func pivAsk(ins, p2 byte) apdu.Step {
	return apdu.Step{Command: apdu.Command{INS: ins, P2: p2, Le: le}, Expect: anything}
}

// VERIFY without data (SP 800-73, 3.2.1) asks for the PIN's tries, or logs out.
const askTries, logOut = 0x00, 0xFF

func pivVerify(p1 byte) apdu.Step {
	return apdu.Step{Command: apdu.Command{INS: insVerify, P1: p1, P2: refPIN}, Expect: anything}
}

// pivGuarded begins a script on the card meant, and on no other.
func pivGuarded(s State, steps ...apdu.Step) ([]apdu.Step, error) {
	guard, err := guarded(pivObject(chuid, ok), s, pivGuard)
	if err != nil {
		return nil, err
	}
	return append([]apdu.Step{selectStep(&apdu.PIV, ok), guard}, steps...), nil
}

// pivIdentify asks for the tries by Yubico's metadata, which costs nothing.
func pivIdentify(State, Materials) ([]apdu.Step, error) {
	return []apdu.Step{
		selectStep(&apdu.PIV, ok),
		pivObject(chuid, ok),
		pivObject(ccc, anything),
		pivAsk(insGetVersion, 0),
		pivAsk(insGetSerial, 0),
		pivAsk(insGetMetadata, refPIN),
		pivAsk(insGetMetadata, refPUK),
	}, nil
}

func pivIdentified(s State, r apdu.Result) State {
	id := pivID(r, 1)
	switch sw, _ := answered(r, 1); {
	case sw == apdu.SWNotFound, r.End == apdu.Done && id == nil:
		return s.fail(Failure{Reason: NoCardID})
	case r.End != apdu.Done:
		return s.fail(why(r))
	}
	s.ID = fmt.Sprintf("%X", id)
	s.Identity.ID = s.ID
	if label, ok := value(r, 0, tagTemplate, tagLabel); ok {
		s.Identity.Label = printable(label)
	}
	if id, ok := value(r, 2, tagData, tagCCCID); ok {
		s.Identity.CCC = fmt.Sprintf("%X", id)
	}
	if v, ok := value(r, 3); ok && len(v) == 3 {
		s.Identity.Version = fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2])
	}
	if n, ok := value(r, 4); ok && len(n) == 4 && !isZero(n) {
		s.Identity.Serial = strconv.FormatUint(uint64(binary.BigEndian.Uint32(n)), 10)
	}
	s.Identity.PIN, s.Identity.PUK = pivTries(r, 5), pivTries(r, 6)
	if s.AskPIN && !s.Identity.PIN.Known {
		s.Leg = legAskPIN
		return s
	}
	return s.done()
}

// pivTries reads metadata.
func pivTries(r apdu.Result, step int) RetryCounter {
	v, ok := value(r, step, tagTries)
	if !ok || len(v) != 2 || v[1] > v[0] {
		return RetryCounter{}
	}
	return RetryCounter{Known: true, TriesLeft: int(v[1]), Most: int(v[0])}
}

func pivAskPIN(s State, _ Materials) ([]apdu.Step, error) { return pivGuarded(s, pivVerify(askTries)) }

func pivToldPIN(s State, r apdu.Result) State {
	if r.End != apdu.Done {
		return s.fail(why(r))
	}
	s.Identity.PIN = pinTries(r, first)
	return s.done()
}

// pinTries reads the answer to an empty VERIFY: 63CX, or 6983 as some cards have it
// when blocked. 9000, verified, does not tell.
func pinTries(r apdu.Result, step int) RetryCounter {
	sw, _ := answered(r, step)
	left, ok := sw.TriesLeft()
	return RetryCounter{Known: ok, TriesLeft: left}
}
