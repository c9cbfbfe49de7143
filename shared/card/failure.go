package card

import (
	"encoding/hex"
	"fmt"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/problem"
)

// Reason says why an operation failed. The strings are stable.
type Reason string

// The reasons.
const (
	NotSupported    Reason = "notSupported"
	NoCardID        Reason = "noCardID"
	WrongCard       Reason = "wrongCard"
	CardRemoved     Reason = "cardRemoved"
	CardAnswered    Reason = "cardAnswered"
	ScriptRefused   Reason = "scriptRefused"
	PINRefused      Reason = "pinRefused"
	PUKWrong        Reason = "pukWrong"
	PUKBlocked      Reason = "pukBlocked"
	PUKUncertain    Reason = "pukUncertain"
	AdminKeyWrong   Reason = "adminKeyWrong"
	AdminKeyBlocked Reason = "adminKeyBlocked"
	StaleChallenge  Reason = "staleChallenge"
	OutcomeUnknown  Reason = "outcomeUnknown"
)

// sentences say what happened and what to do.
var sentences = map[Reason]string{
	NotSupported:    "The card does not support this.",
	NoCardID:        "The card has no id of its own, so it could not be told from another: give it one (PIV: a CHUID with a GUID) first.",
	WrongCard:       "This is another card: nothing was sent to it. Insert the right one.",
	CardRemoved:     "The card did not answer before anything was changed: insert it properly and try again.",
	CardAnswered:    "The card refused.",
	ScriptRefused:   "The bridge refused to send this to the card, and nothing was changed: see its log.",
	PINRefused:      "The card does not take this new PIN, though the policy does: choose another, or make the policy stricter.",
	PUKWrong:        "The card has another PUK than the one on record: somebody else has changed it. Nothing more is tried. Enter the right PUK, or reissue the card.",
	PUKBlocked:      "The card's PUK is blocked: the card must be reissued or reset.",
	PUKUncertain:    "Which of two PUKs the card has is unknown, and so few tries may be left that no guess is made. Find out with a tool of the card's maker how many tries the PUK has left and enter that, or reissue the card.",
	AdminKeyWrong:   "The card has another admin key than the one on record.",
	AdminKeyBlocked: "The card's admin key is blocked: the card must be reissued.",
	StaleChallenge:  "The card was reset or used by another program in between: try again.",
	OutcomeUnknown:  "Contact was lost at a moment that leaves open what the card has done: insert it again, and it will be found out.",
}

// Failure is a reason with what the card said. As an error it is problem.ErrState.
type Failure struct {
	Reason    Reason
	TriesLeft int     // with PUKWrong and PUKUncertain, at worst
	SW        apdu.SW // what the card answered, if that was it
}

// Sentence says to an operator what happened and what to do.
func (f Failure) Sentence() string {
	sentence := sentences[f.Reason]
	switch {
	case f.Reason == PUKWrong || f.Reason == PUKUncertain:
		sentence += fmt.Sprintf(" Tries left: %d.", f.TriesLeft)
	case f.SW != 0:
		sentence += fmt.Sprintf(" Its answer: %s.", f.SW)
	}
	return sentence
}

// Error implements error.
func (f Failure) Error() string { return string(f.Reason) + ": " + f.Sentence() }

func (f Failure) Unwrap() error { return problem.ErrState }

// why is the failure of a script that ended early, before it changed anything.
func why(r apdu.Result) Failure {
	switch r.End {
	case apdu.Mismatch:
		return Failure{Reason: WrongCard}
	case apdu.Unexpected:
		sw := r.Responses[r.Step].SW
		switch {
		case r.Step == 0, r.Step == guardStep && sw == apdu.SWNotFound: // no such application, no id
			return Failure{Reason: WrongCard, SW: sw}
		case sw == apdu.SWFunctionNotSupported, sw == apdu.SWIncorrectP1P2, sw == apdu.SWReferenceDataNotFound,
			sw == apdu.SWWrongP1P2, sw == apdu.SWInstructionNotSupported, sw == apdu.SWClassNotSupported:
			return Failure{Reason: NotSupported, SW: sw}
		}
		return Failure{Reason: CardAnswered, SW: sw}
	}
	return Failure{Reason: CardRemoved}
}

// unhex returns nil for what is not hex.
func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil
	}
	return b
}
