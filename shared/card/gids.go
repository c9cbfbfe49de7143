package card

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"fmt"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// GIDS is the family of GIDS cards (Generic Identity Device Specification 2.0). Its
// card id is the file cardid. A PIN is reset after the answer to a challenge under the
// admin key, in two scripts of one transaction. There is no PUK, and the admin key has
// no tries: whatever was lost, the reset may be done again.
var GIDS = &Family{
	Name:        apdu.GIDS.Name,
	application: &apdu.GIDS,
	minPIN:      4,
	maxPIN:      16,
	alphabets:   []pin.Alphabet{pin.Alphanumeric, pin.Digits, pin.Printable},
	guard:       gidsGuard,
	unblock:     legChallenge,
	legs: map[Leg]leg{
		legIdentify:  {steps: 3, script: gidsIdentify, next: gidsIdentified},
		legChallenge: {steps: 4, script: gidsChallenge, next: gidsChallenged, policy: true, hold: true},
		legAnswer:    {steps: 4, script: gidsAnswer, next: gidsAnswered, policy: true, changes: true},
	},
}

// The legs of GIDS.
const (
	legChallenge Leg = "challenge"
	legAnswer    Leg = "answer" // carries the answer to the challenge, and the new PIN
)

const (
	insManageSecurityEnvironment = 0x22 // ISO 7816-4, 7.5.11

	gidsIDLength = 16

	tagGIDSID       apdu.Tag = 0xDF20 // in EF A012
	tagPINInfo      apdu.Tag = 0x7F71
	tagTriesLeft    apdu.Tag = 0x97
	tagTriesMost    apdu.Tag = 0x93
	tagDynamic      apdu.Tag = 0x7C // dynamic authentication template (ISO 7816-4, 7.5.5)
	tagChallenge    apdu.Tag = 0x81
	tagResponse     apdu.Tag = 0x82
	tagKeyReference apdu.Tag = 0x83
)

// Answer returns the answer to a card's challenge: one block enciphered under its admin
// key, 8 bytes by 3DES and 24 bytes of key, or 16 bytes by AES. Windows' unblock screen
// takes the same, in hex.
func Answer(adminKey secret.Text, challenge []byte) ([]byte, error) {
	key := []byte(adminKey.Reveal())
	defer clear(key)
	var block cipher.Block
	var err error
	switch len(challenge) {
	case des.BlockSize:
		block, err = des.NewTripleDESCipher(key)
	case aes.BlockSize:
		block, err = aes.NewCipher(key)
	default:
		return nil, problem.Invalid("length", "challenge", "must have 8 or 16 bytes, not %d", len(challenge))
	}
	if err != nil {
		return nil, problem.Invalid("length", "adminKey", "must have 24 bytes for 3DES, or 16, 24 or 32 for AES, not %d", len(key))
	}
	answer := make([]byte, len(challenge))
	block.Encrypt(answer, challenge)
	return answer, nil
}

func gidsGuard(id []byte) (apdu.Guard, bool) {
	return apdu.Guard{Path: []apdu.Tag{tagGIDSID}, Value: id}, len(id) == gidsIDLength && !isZero(id)
}

// gidsObject is GET DATA of an object in a file (ISO 7816-4, 7.4.2).
func gidsObject(file uint16, object apdu.Tag, expect []apdu.Expect) apdu.Step {
	data := apdu.EncodeTLV(apdu.TLV{Tag: tagList, Value: []byte{byte(object >> 8), byte(object)}})
	return apdu.Step{
		Command: apdu.Command{INS: insGetData, P1: byte(file >> 8), P2: byte(file), Data: data, Le: le},
		Expect:  expect,
	}
}

func gidsID(expect []apdu.Expect) apdu.Step { return gidsObject(0xA012, tagGIDSID, expect) }
func gidsPINInfo() apdu.Step                { return gidsObject(0x3FFF, tagPINInfo, anything) }

func dynamic(tag apdu.Tag, v []byte) []byte {
	return apdu.EncodeTLV(apdu.TLV{Tag: tagDynamic, Value: apdu.EncodeTLV(apdu.TLV{Tag: tag, Value: v})})
}

func gidsIdentify(State, Materials) ([]apdu.Step, error) {
	return []apdu.Step{selectStep(&apdu.GIDS, ok), gidsID(anything), gidsPINInfo()}, nil
}

func gidsIdentified(s State, r apdu.Result) State {
	if r.End != apdu.Done {
		return s.fail(why(r))
	}
	id, _ := value(r, 1, tagGIDSID)
	if _, ok := gidsGuard(id); !ok {
		return s.fail(Failure{Reason: NoCardID})
	}
	s.ID = fmt.Sprintf("%X", id)
	s.Identity.ID = s.ID
	s.Identity.PIN = gidsTries(r, 2)
	return s.done()
}

func gidsTries(r apdu.Result, step int) RetryCounter {
	left, hasLeft := value(r, step, tagPINInfo, tagTriesLeft)
	most, hasMost := value(r, step, tagPINInfo, tagTriesMost)
	if !hasLeft || !hasMost || len(left) != 1 || len(most) != 1 || left[0] > most[0] {
		return RetryCounter{}
	}
	return RetryCounter{Known: true, TriesLeft: int(left[0]), Most: int(most[0])}
}

// gidsChallenge chooses the admin key for external authentication, which an unblock
// before has undone, and asks for a challenge.
func gidsChallenge(s State, _ Materials) ([]apdu.Step, error) {
	guard, err := guarded(gidsID(ok), s, gidsGuard)
	if err != nil {
		return nil, err
	}
	const adminKey = 0x80
	key := apdu.EncodeTLV(apdu.TLV{Tag: tagKeyReference, Value: []byte{adminKey}})
	return []apdu.Step{
		selectStep(&apdu.GIDS, ok),
		guard,
		{Command: apdu.Command{INS: insManageSecurityEnvironment, P1: 0x81, P2: 0xA4, Data: key}, Expect: ok},
		{Command: apdu.Command{INS: insGeneralAuthenticate, Data: dynamic(tagChallenge, nil), Le: le}, Expect: ok},
	}, nil
}

func gidsChallenged(s State, r apdu.Result) State {
	s.Outcome.PIN = No
	if r.End != apdu.Done {
		return s.fail(why(r))
	}
	challenge, _ := value(r, 3, tagDynamic, tagChallenge)
	if n := len(challenge); n != des.BlockSize && n != aes.BlockSize {
		return s.fail(Failure{Reason: CardAnswered, SW: apdu.SWOK})
	}
	s.Challenge = fmt.Sprintf("%X", challenge)
	s.Leg = legAnswer
	return s
}

// gidsAnswer has no guard, and does not select: either might end what the card awaits.
// Another card, or this one after a reset, awaits no answer, and takes no PIN.
func gidsAnswer(s State, m Materials) ([]apdu.Step, error) {
	if m.AdminKey == nil {
		return nil, fmt.Errorf("admin key: %w", problem.ErrNotFound)
	}
	key, err := m.AdminKey()
	if err != nil {
		return nil, fmt.Errorf("admin key: %w", err)
	}
	answer, err := Answer(key, unhex(s.Challenge))
	if err != nil {
		return nil, err
	}
	const logOutAll = 0x82
	return []apdu.Step{
		{Command: apdu.Command{INS: insGeneralAuthenticate, Data: dynamic(tagResponse, answer)}, Secret: true, Expect: ok},
		{
			Command: apdu.Command{INS: insResetRetryCounter, P1: 0x02, P2: refPIN}, // ISO 7816-4, 7.5.10: new PIN only
			Slots:   []apdu.Slot{{Secret: NewPIN, Encoding: apdu.ASCII}},
			Expect:  ok,
		},
		gidsPINInfo(),
		{Command: apdu.Command{INS: insVerify, P2: logOutAll}, Expect: anything},
	}, nil
}

func gidsAnswered(s State, r apdu.Result) State {
	const reset = 1
	s.Outcome.PIN = effect(r, reset)
	s.Outcome.PINTries = gidsTries(r, 2)
	switch s.Outcome.PIN {
	case Yes:
		return s.done()
	case Unknown:
		return s.fail(Failure{Reason: OutcomeUnknown})
	}
	if r.End != apdu.Unexpected {
		return s.fail(Failure{Reason: CardRemoved})
	}
	sw := r.Responses[r.Step].SW
	f := Failure{Reason: CardAnswered, SW: sw}
	switch {
	case r.Step == reset && (sw == apdu.SWWrongLength || sw == apdu.SWWrongData):
		f.Reason = PINRefused
	case r.Step == reset:
	case sw == apdu.SWSecurityStatus || sw>>8 == 0x63:
		f.Reason = AdminKeyWrong
	case sw == apdu.SWBlocked:
		f.Reason = AdminKeyBlocked
	case sw == apdu.SWConditionsNotSatisfied, sw == apdu.SWCommandNotAllowed, sw == apdu.SWNoDiagnosis:
		f.Reason = StaleChallenge
	}
	return s.fail(f)
}
