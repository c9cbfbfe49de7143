package command

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/secret"
)

// The scripts that a bridge makes by itself, without a connection. Those that the cloud
// sends are made in shared/card, which a bridge does not have; a test holds these against
// those.

// unblockable is a card whose PIN can be reset.
type unblockable struct {
	application *apdu.Application
	id          []byte
	guard       apdu.Step // that it is this card
}

// credential is the id of its credential.
func (c unblockable) credential() string {
	return strings.ToLower(c.application.Name) + "-" + hex.EncodeToString(c.id)
}

// number is the end of its id, for people.
func (c unblockable) number() string { return numberOf(c.credential()) }

func numberOf(credential string) string {
	return strings.ToUpper(credential[max(0, len(credential)-8):])
}

func (c unblockable) hasPUK() bool { return c.application.Name == apdu.PIV.Name }

// usualPolicy is that for the PINs of such cards of which the cloud has told none.
func (c unblockable) usualPolicy() pin.Policy {
	p := pin.Default()
	p.MinLength, p.MaxLength, p.Alphabet = 4, 16, pin.Alphanumeric
	if c.hasPUK() {
		p.MinLength, p.MaxLength, p.Alphabet = 6, 8, pin.Digits // SP 800-73, 2.4.3
	}
	p.DisallowContext, p.History, p.MinLengthByUsers, p.ExpirationHours, p.NotifyHoursBefore = false, 0, false, 0, nil
	return p
}

var (
	ok       = apdu.Exactly(apdu.SWOK)
	anything = []apdu.Expect{{}}
)

const le = 256

func selectStep(a *apdu.Application, expect []apdu.Expect) apdu.Step {
	return apdu.Step{Command: apdu.Command{INS: 0xA4, P1: 0x04, Data: a.AID[:a.Shortest], Le: le}, Expect: expect}
}

func getData(file uint16, tag ...byte) apdu.Step {
	data := apdu.EncodeTLV(apdu.TLV{Tag: 0x5C, Value: tag})
	return apdu.Step{Command: apdu.Command{INS: 0xCB, P1: byte(file >> 8), P2: byte(file), Data: data, Le: le}, Expect: ok}
}

// identify finds out what card it is: which application it has, and then its id.
func identify(ctx context.Context, s *reader.Session, now time.Time) (unblockable, error) {
	found, err := ask(ctx, s, now, selectStep(&apdu.PIV, anything), selectStep(&apdu.GIDS, anything))
	if err != nil {
		return unblockable{}, err
	}
	var c unblockable
	var path []apdu.Tag
	switch {
	case found[0].SW == apdu.SWOK:
		c.application, c.guard = &apdu.PIV, getData(0x3FFF, 0x5F, 0xC1, 0x02)
		if found, err = ask(ctx, s, now, selectStep(c.application, ok), c.guard); err == nil {
			c.id, path = pivID(found[1].Data)
		}
	case found[1].SW == apdu.SWOK:
		c.application, c.guard, path = &apdu.GIDS, getData(0xA012, 0xDF, 0x20), []apdu.Tag{0xDF20}
		if found, err = ask(ctx, s, now, selectStep(c.application, ok), c.guard); err == nil {
			c.id, _ = apdu.FindTLV(found[1].Data, path...)
		}
	default:
		return c, errors.New("this card is of no kind whose PIN can be reset here")
	}
	if err != nil {
		return c, err
	}
	if isZero(c.id) || c.application == &apdu.GIDS && len(c.id) != 16 {
		return c, errors.New("this card has no number by which it could be told from others")
	}
	c.id = bytes.Clone(c.id)
	c.guard.Guards = []apdu.Guard{{Path: path, Value: c.id}}
	return c, nil
}

// pivID is the id in a CHUID, and where it is: by OpenSC's rule (piv_get_serial_nr_from_CHUI)
// the GUID if it is not zero and the FASC-N is absent, all zero, or of agency 9999, which is
// of nobody; else the FASC-N.
func pivID(chuid []byte) (id []byte, path []apdu.Tag) {
	guid, _ := apdu.FindTLV(chuid, 0x53, 0x34)
	fascn, _ := apdu.FindTLV(chuid, 0x53, 0x30)
	fascnOK := len(fascn) == 25 && !isZero(fascn)
	nobodys := bytes.HasPrefix(fascn, []byte{0xD4, 0xE7, 0x39}) && fascn[3]&0x80 != 0
	switch {
	case len(guid) == 16 && !isZero(guid) && (!fascnOK || nobodys):
		return guid, []apdu.Tag{0x53, 0x34}
	case fascnOK:
		return fascn, []apdu.Tag{0x53, 0x30}
	}
	return nil, nil
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// ask runs a script without secrets.
func ask(ctx context.Context, s *reader.Session, now time.Time, steps ...apdu.Step) ([]apdu.Response, error) {
	r := apdu.Run(ctx, apdu.Script{Operation: "offline", Part: 1, Deadline: now.Add(time.Minute), Steps: steps}, nil, s.Transmit)
	if r.End == apdu.Mismatch {
		return nil, errAnotherCard
	}
	return r.Responses, r.Err
}

// challenge asks a GIDS card for one, with the admin key chosen (ISO 7816-4, 7.5.11 and
// 7.5.5).
func (c unblockable) challenge(ctx context.Context, s *reader.Session, now time.Time) ([]byte, error) {
	r, err := ask(ctx, s, now, selectStep(c.application, ok), c.guard,
		apdu.Step{Command: apdu.Command{INS: 0x22, P1: 0x81, P2: 0xA4, Data: []byte{0x83, 0x01, 0x80}}, Expect: ok},
		apdu.Step{Command: apdu.Command{INS: 0x87, Data: []byte{0x7C, 0x02, 0x81, 0x00}, Le: le}, Expect: ok})
	if err != nil {
		return nil, err
	}
	challenge, err := apdu.FindTLV(r[3].Data, 0x7C, 0x81)
	if err != nil || len(challenge) != 8 && len(challenge) != 16 {
		return nil, errors.New("the card gives no challenge")
	}
	return bytes.Clone(challenge), nil
}

// setter is a script that sets a PIN.
type setter struct {
	steps []apdu.Step
	// secret is the first step with a secret, and at that which sets the PIN.
	secret, at int
	why        func(apdu.Result) error // in words, why it was not set; nil if that is not known
}

// The names of the slots.
const newPINSlot, presentPINSlot = "newPIN", "presentPIN"

// What a card has against it.
var (
	errPUK         = errors.New("the card has another PUK; tell your help desk")
	errPUKBlocked  = errors.New("the card's PUK is blocked; the card must be reissued or reset")
	errUsed        = errors.New("the card was used by another program, and has forgotten the challenge; begin anew")
	errAdminKey    = errors.New("the card does not take the answer; your help desk has another admin key for it")
	errAnotherCard = errors.New("it is another card")
	errPresentPIN  = errors.New("that is not the present PIN")
	errNewPIN      = errors.New("the card does not take this new PIN")
)

// pivLength is that of PUK and PIN (SP 800-73, 2.4.3).
const pivLength = 8

func pivSlot(secret string, offset int) apdu.Slot {
	return apdu.Slot{Secret: secret, Offset: offset, Length: pivLength, Pad: 0xFF, Encoding: apdu.Digits}
}

// VERIFY without data that logs out (SP 800-73, 3.2.1; GIDS).
var (
	pivLogOut  = apdu.Step{Command: apdu.Command{INS: 0x20, P1: 0xFF, P2: 0x80}, Expect: anything}
	gidsLogOut = apdu.Step{Command: apdu.Command{INS: 0x20, P2: 0x82}, Expect: anything}
)

// change is CHANGE REFERENCE DATA with the present PIN and the new one (SP 800-73, 3.2.2;
// ISO 7816-4, 7.5.7). With GIDS nothing stands between the two, so that a present PIN that
// was typed too long or too short would be taken for another new PIN: it is verified first.
func (c unblockable) change() setter {
	const ins = 0x24
	s := setter{steps: []apdu.Step{selectStep(c.application, ok), c.guard}, secret: 2, at: 2}
	if c.hasPUK() {
		s.steps = append(s.steps, apdu.Step{Command: apdu.Command{INS: ins, P2: 0x80, Data: make([]byte, 2*pivLength)}, Expect: ok,
			Slots: []apdu.Slot{pivSlot(presentPINSlot, 0), pivSlot(newPINSlot, pivLength)}}, pivLogOut)
	} else {
		present, next := apdu.Slot{Secret: presentPINSlot, Encoding: apdu.ASCII}, apdu.Slot{Secret: newPINSlot, Encoding: apdu.ASCII}
		s.at = 3
		s.steps = append(s.steps,
			apdu.Step{Command: apdu.Command{INS: 0x20, P2: 0x80}, Expect: ok, Slots: []apdu.Slot{present}},
			apdu.Step{Command: apdu.Command{INS: ins, P2: 0x80}, Expect: ok, Slots: []apdu.Slot{present, next}}, gidsLogOut)
	}
	s.why = func(r apdu.Result) error {
		switch {
		case r.End == apdu.Mismatch:
			return errAnotherCard
		case r.End != apdu.Unexpected || r.Step < s.secret || r.Step > s.at:
			return nil
		}
		switch sw := r.Responses[r.Step].SW; {
		case r.Step == s.secret && (sw>>8 == 0x63 || sw == apdu.SWBlocked):
			return errPresentPIN
		case r.Step == s.at && (sw == apdu.SWWrongData || sw == apdu.SWWrongLength):
			return errNewPIN
		}
		return nil
	}
	return s
}

// byPUK is RESET RETRY COUNTER with the PUK (SP 800-73, 3.2.3).
func (c unblockable) byPUK(puk secret.Text) setter {
	data := slices.Concat([]byte(puk.Reveal()), make([]byte, pivLength))
	return setter{
		steps: []apdu.Step{
			selectStep(c.application, ok), c.guard,
			{
				Command: apdu.Command{INS: 0x2C, P2: 0x80, Data: data}, Secret: true, Expect: ok,
				Slots: []apdu.Slot{pivSlot(newPINSlot, len(data)-pivLength)},
			},
			pivLogOut,
		},
		secret: 2, at: 2,
		why: func(r apdu.Result) error {
			if r.End == apdu.Mismatch {
				return errAnotherCard
			}
			if r.End != apdu.Unexpected || r.Step != 2 {
				return nil
			}
			switch tries, known := r.Responses[2].SW.TriesLeft(); {
			case known && tries == 0:
				return errPUKBlocked
			case known:
				return errPUK
			}
			return nil
		},
	}
}

// byAnswer is RESET RETRY COUNTER after the answer to the card's challenge (ISO 7816-4,
// 7.5.10). It does not select, nor read the id: either might end what the card awaits.
// Another card awaits no answer.
func (c unblockable) byAnswer(answer []byte) setter {
	response := apdu.EncodeTLV(apdu.TLV{Tag: 0x7C, Value: apdu.EncodeTLV(apdu.TLV{Tag: 0x82, Value: answer})})
	return setter{
		steps: []apdu.Step{
			{Command: apdu.Command{INS: 0x87, Data: response}, Secret: true, Expect: ok},
			{Command: apdu.Command{INS: 0x2C, P1: 0x02, P2: 0x80}, Expect: ok, Slots: []apdu.Slot{{Secret: newPINSlot, Encoding: apdu.ASCII}}},
			gidsLogOut,
		},
		secret: 0, at: 1,
		why: func(r apdu.Result) error {
			if r.End != apdu.Unexpected || r.Step != 0 {
				return nil
			}
			if sw := r.Responses[0].SW; sw == apdu.SWSecurityStatus || sw>>8 == 0x63 {
				return errAdminKey
			}
			return errUsed
		},
	}
}
