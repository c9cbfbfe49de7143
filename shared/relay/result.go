package relay

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/problem"
)

// Result is what came of a Run.
type Result struct {
	Operation string
	Part      int
	// Refusal says why the bridge did not run the script; "" if it did, or began to.
	// Then nothing was sent to the card.
	Refusal Refusal
	// Violations, with RefusedPIN, are the policy's verdict.
	Violations []Violation
	// Interrupted: the bridge began, and was stopped before it could note how it ended.
	// Nothing is known, and Run is empty.
	Interrupted bool
	// Run is what came of it otherwise. Its error crosses the wire as text.
	Run apdu.Result
}

// Refusal is why a script was not run. The strings are stable.
type Refusal string

// The refusals.
const (
	RefusedFence    Refusal = "fence"    // a newer operation has been here
	RefusedDeadline Refusal = "deadline" // it came too late
	RefusedCard     Refusal = "card"     // the card is not in the reader any more
	RefusedReader   Refusal = "reader"   // the card could not be had: silent, or held by another program
	RefusedHold     Refusal = "hold"     // the transaction that it was to go on in is gone
	RefusedPIN      Refusal = "pin"      // the policy refuses the new PIN
	RefusedNoPIN    Refusal = "noPIN"    // no new PIN is at the bridge, or it cannot be unsealed
	RefusedScript   Refusal = "script"   // a command is not allowed, or the bridge cannot keep its record
)

var refusals = []Refusal{RefusedFence, RefusedDeadline, RefusedCard, RefusedReader, RefusedHold, RefusedPIN, RefusedNoPIN, RefusedScript}

// Card returns the result for card.State.Next, and false if there is none: then it is for
// card.State.NoResult.
func (r Result) Card() (apdu.Result, bool) {
	switch {
	case r.Interrupted:
		return apdu.Result{}, false
	case r.Refusal != "":
		return apdu.Result{End: apdu.Refused, Err: fmt.Errorf("the bridge refused: %s", r.Refusal)}, true
	}
	return r.Run, true
}

func (r Result) validate() error {
	var vs problem.Violations
	if r.Part < 1 {
		vs.Add("range", "part", "must be at least 1")
	}
	known := r.Refusal == ""
	for _, k := range refusals {
		known = known || r.Refusal == k
	}
	if !known {
		vs.Add("unknown", "refusal", "must be one of %v", refusals)
	}
	if r.Interrupted && r.Refusal != "" {
		vs.Add("inconsistent", "interrupted", "cannot be with a refusal")
	}
	if len(r.Run.Responses) > apdu.MaxSteps {
		vs.Add("tooMany", "responses", "must be at most %d", apdu.MaxSteps)
	}
	switch r.Run.End {
	case apdu.Done, apdu.Refused, apdu.Unexpected, apdu.Mismatch, apdu.Lost:
	case "":
		if !r.Interrupted && r.Refusal == "" {
			vs.Add("missing", "end", "is missing")
		}
	default:
		vs.Add("unknown", "end", "is not known")
	}
	return vs.Err()
}

type resultJSON struct {
	Operation   string         `json:"operation"`
	Part        int            `json:"part"`
	Refusal     Refusal        `json:"refusal,omitempty"`
	Violations  []Violation    `json:"violations,omitempty"`
	Interrupted bool           `json:"interrupted,omitempty"`
	End         apdu.End       `json:"end,omitempty"`
	Step        int            `json:"step,omitempty"`
	Uncertain   bool           `json:"uncertain,omitempty"`
	Responses   []responseJSON `json:"responses,omitempty"`
	Error       string         `json:"error,omitempty"`
}

type responseJSON struct {
	Data Hex    `json:"data,omitempty"`
	SW   string `json:"sw"`
}

// cut returns as much of an error's text as crosses the wire.
func cut(text string) string { return strings.ToValidUTF8(text[:min(len(text), 500)], "") }

// MarshalJSON implements json.Marshaler.
func (r Result) MarshalJSON() ([]byte, error) {
	j := resultJSON{Operation: r.Operation, Part: r.Part, Refusal: r.Refusal, Violations: r.Violations, Interrupted: r.Interrupted,
		End: r.Run.End, Step: r.Run.Step, Uncertain: r.Run.Uncertain}
	if r.Run.Err != nil {
		j.Error = cut(r.Run.Err.Error())
	}
	for _, response := range r.Run.Responses {
		j.Responses = append(j.Responses, responseJSON{response.Data, fmt.Sprintf("%04X", uint16(response.SW))})
	}
	return json.Marshal(j)
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *Result) UnmarshalJSON(b []byte) error {
	var j resultJSON
	if err := decode(b, &j, exact); err != nil {
		return err
	}
	*r = Result{Operation: j.Operation, Part: j.Part, Refusal: j.Refusal, Violations: j.Violations, Interrupted: j.Interrupted,
		Run: apdu.Result{End: j.End, Step: j.Step, Uncertain: j.Uncertain}}
	if j.Error != "" {
		r.Run.Err = errors.New(cut(j.Error))
	}
	for _, response := range j.Responses {
		sw, err := apdu.ParseSW(response.SW)
		if err != nil {
			return err
		}
		r.Run.Responses = append(r.Run.Responses, apdu.Response{Data: response.Data, SW: sw})
	}
	return nil
}
