package apdu

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// End says how a run of a script ended.
type End string

// The ends.
const (
	// Done: every step was answered as expected.
	Done End = "done"
	// Refused: nothing was sent, for the script is not valid, a secret is missing or
	// does not fit, or a command is not allowed.
	Refused End = "refused"
	// Unexpected: the card answered the last step in Responses with an SW that it
	// does not expect.
	Unexpected End = "unexpected"
	// Mismatch: a guard of the last step in Responses does not hold.
	Mismatch End = "mismatch"
	// Lost: the step after those in Responses got no answer.
	Lost End = "lost"
)

// Result is what came of running a script.
type Result struct {
	End End
	// Step is the index of the step that the run ended at; with Done, how many
	// steps there are.
	Step int
	// Uncertain, with Lost, says that the card may have carried out the step all the
	// same. Otherwise its command was not handed over, or not all of it.
	Uncertain bool
	// Responses are the answers so far, one a step. Those to steps with a slot or
	// marked Secret have no data.
	Responses []Response
	// Err is why, if not Done. It has no secrets.
	Err error
}

// maxReported is the most bytes of data that a result reports, so that it fits a
// message as well as the script did.
const maxReported = 8 << 10

// Run runs a script on a card. All slots are filled and all commands held against
// Allowed before the first goes out; a fill that fails leaves the card alone. What
// fill returns is Run's own, which wipes it. The caller has checked deadline and
// fence, and holds the card.
func Run(ctx context.Context, s Script, fill func(Slot) ([]byte, error), send Transmitter) Result {
	return runAllowed(ctx, s, Allowed, fill, send)
}

// RunForHolder is Run of a script that the bridge has made itself for the person at it,
// who has typed the card's present PIN: it may present that PIN and change it.
func RunForHolder(ctx context.Context, s Script, fill func(Slot) ([]byte, error), send Transmitter) Result {
	return runAllowed(ctx, s, func(c Command) error { return allowed(c, true) }, fill, send)
}

func runAllowed(ctx context.Context, s Script, allow func(Command) error, fill func(Slot) ([]byte, error), send Transmitter) Result {
	if err := s.Validate(); err != nil {
		return Result{End: Refused, Err: err}
	}
	commands := make([]Command, len(s.Steps))
	defer func() {
		for i, step := range s.Steps {
			if len(step.Slots) > 0 { // else the data is the script's own
				clear(commands[i].Data)
			}
		}
	}()
	for i, step := range s.Steps {
		command, err := step.filled(fill)
		commands[i] = command
		if err == nil {
			err = allow(command)
		}
		if err != nil {
			return Result{End: Refused, Step: i, Err: fmt.Errorf("step %d: %w", i, err)}
		}
	}
	return run(ctx, s.Steps, commands, send)
}

// filled returns the command with a copy of its data, the secrets in their slots;
// without slots it is the command as it is.
func (s Step) filled(fill func(Slot) ([]byte, error)) (Command, error) {
	c := s.Command
	if len(s.Slots) == 0 {
		return c, nil
	}
	from := c.Data
	c.Data = nil
	secrets := make([][]byte, len(s.Slots))
	defer func() {
		for _, secret := range secrets {
			clear(secret)
		}
	}()
	size := len(from)
	for i, slot := range s.Slots {
		secret, err := fill(slot)
		secrets[i] = secret
		switch {
		case err != nil:
			return c, fmt.Errorf("slot %s: %w", slot.Secret, err)
		case len(secret) == 0:
			return c, fmt.Errorf("slot %s: there is no such secret", slot.Secret)
		case slot.Length > 0 && len(secret) > slot.Length:
			return c, fmt.Errorf("slot %s: the secret is longer than %d bytes", slot.Secret, slot.Length)
		case !slot.Encoding.holds(secret):
			return c, fmt.Errorf("slot %s: the secret has a byte that is not %s", slot.Secret, slot.Encoding)
		}
		size += len(secret)
	}
	data := make([]byte, 0, size) // never grown, so that no copy of a secret stays behind
	at := 0
	for i, slot := range s.Slots {
		data = append(append(data, from[at:slot.Offset]...), secrets[i]...)
		for range slot.Length - len(secrets[i]) {
			data = append(data, slot.Pad)
		}
		at = slot.Offset + slot.Length
	}
	c.Data = append(data, from[at:]...)
	return c, nil
}

func run(ctx context.Context, steps []Step, commands []Command, send Transmitter) Result {
	var result Result
	reported := 0
	for i, step := range steps {
		stop := func(end End, err error) Result {
			result.End, result.Step = end, i
			result.Err = fmt.Errorf("step %d, %s: %w", i, commands[i], err)
			return result
		}
		r, sent, err := transmit(ctx, send, commands[i])
		if err != nil {
			result.Uncertain = sent
			return stop(Lost, err)
		}
		data := r.Data
		if step.sealed() {
			r.Data = nil
		}
		if reported += len(r.Data); reported > maxReported {
			r.Data = nil
			result.Responses = append(result.Responses, r)
			return stop(Unexpected, fmt.Errorf("more than %d bytes of answers", maxReported))
		}
		result.Responses = append(result.Responses, r)
		if !slices.ContainsFunc(step.Expect, func(e Expect) bool { return r.SW&e.Mask == e.SW }) {
			return stop(Unexpected, fmt.Errorf("the card answered %s", r.SW))
		}
		if slices.ContainsFunc(step.Guards, func(g Guard) bool { return !g.holds(data) }) {
			return stop(Mismatch, errors.New("the answer is not that of the card meant"))
		}
	}
	result.End, result.Step = Done, len(steps)
	return result
}
