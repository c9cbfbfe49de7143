package unblock

import (
	"context"
	"fmt"
	"slices"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/relay"
)

// What goes wrong while a script runs on a card. at counts the APDUs from 0.
const (
	noFault fault = iota
	unsent        // the bridge gives up before the APDU, and knows that it was not sent
	pulled        // the card is out before the APDU, but the bridge cannot tell whether it came
	lost          // the APDU takes effect, and its answer is lost
	odd           // the card does nothing and answers 6F00
	killed        // the bridge is killed when that many APDUs have taken effect
)

type fault uint8

type faultAt struct {
	fault fault
	at    int
}

func (f faultAt) String() string {
	switch f.fault {
	case noFault:
		return "it runs"
	case unsent:
		return fmt.Sprintf("the bridge gives up before APDU %d", f.at+1)
	case pulled:
		return fmt.Sprintf("the card is pulled before APDU %d", f.at+1)
	case lost:
		return fmt.Sprintf("APDU %d takes effect and its answer is lost", f.at+1)
	case odd:
		return fmt.Sprintf("APDU %d is answered 6F00", f.at+1)
	}
	return fmt.Sprintf("the bridge is killed after %d APDUs", f.at)
}

// script is a script as it was sent. Two that say the same are the same script.
type script struct {
	op  int
	run relay.Run
	pin string
	// shape and puks are what tells it from other scripts of its operation.
	shape string
	puks  []string
}

// confirms tells whether the last step changes a PUK into itself.
func (s *script) confirms() bool {
	n := len(s.puks)
	return n >= 2 && s.puks[n-1] == s.puks[n-2]
}

// ran is what comes of a script on a card.
type ran struct {
	fault  faultAt
	ways   int // how many faults come to the same
	card   int // afterwards
	apdus  int // how many the card got
	held   bool
	result relay.Result
	after  card.State // by the result, or by none if the bridge was killed
	wrong  int        // PUKs presented that were wrong
	set    bool       // the PIN of the script's operation was set
}

type runKey struct {
	card   int
	script *script
	state  card.State
}

// drawer has one of each card and script that come about, and remembers what scripts have
// done to cards: a card in the same state answers alike.
type drawer struct {
	silent  bool // the cards do not tell the tries of PIN and PUK
	trusted bool // the second step of a probe, and the one of a confirmation, are left out and taken for done
	cards   []*softcard.Card
	ids     map[softcard.Digest]int
	scripts map[string]*script
	runs    map[runKey][]ran
	keeps   []kept
	puks    map[string]bool // that were ever in a script
}

func newDrawer(silent bool) *drawer {
	return &drawer{silent: silent, ids: map[softcard.Digest]int{}, scripts: map[string]*script{}, puks: map[string]bool{firstPUK: true}, runs: map[runKey][]ran{}}
}

func (d *drawer) card(c *softcard.Card) int {
	digest := c.Digest()
	id, ok := d.ids[digest]
	if !ok {
		id = len(d.cards)
		d.ids[digest], d.cards = id, append(d.cards, c)
	}
	return id
}

// kept is what a PIV card has kept once it was reset, less its PIN, and what does not
// change.
type kept struct {
	puk     string
	tries   int
	blocked bool // the PIN is
}

func (d *drawer) kept(card int) kept {
	for len(d.keeps) <= card {
		c := d.cards[len(d.keeps)]
		state := c.Inspect()
		k := kept{tries: state.PUKTries, blocked: state.PINTries == 0}
		for puk := range d.puks {
			if c.PUKIs(puk) {
				k.puk = puk
			}
		}
		d.keeps = append(d.keeps, k)
	}
	return d.keeps[card]
}

func (d *drawer) reset(card int) int {
	c := d.cards[card].Clone()
	c.Reset()
	return d.card(c)
}

func (d *drawer) script(op int, run relay.Run, pin string) *script {
	key := fmt.Append(nil, op, run.Script.Part, run.Script.Fence, run.Hold, run.Continue, run.Policy != nil, " ")
	for _, s := range run.Script.Steps {
		key = append(append(key, s.Command.INS, s.Command.P2, byte(len(s.Command.Data))), s.Command.Data...)
	}
	s, ok := d.scripts[string(key)]
	if !ok {
		s = &script{op: op, run: run, pin: pin, shape: fmt.Sprint(run.Hold, run.Continue, run.Policy != nil)}
		for _, step := range run.Script.Steps {
			s.shape += fmt.Sprintf(" %02X", step.Command.INS)
			if step.Secret {
				s.puks = append(s.puks, string(step.Command.Data[:8]), string(step.Command.Data[8:]))
				d.puks[s.puks[len(s.puks)-2]], d.puks[s.puks[len(s.puks)-1]] = true, true
			}
		}
		d.scripts[string(key)] = s
	}
	return s
}

// outcomes are what may come of an operation's script on a card, first that without a
// fault. Faults that come to the same are one.
func (d *drawer) outcomes(from int, s *script, state card.State) []ran {
	key := runKey{from, s, state}
	all, ok := d.runs[key]
	if ok {
		return all
	}
	all = append(all, d.run(from, s, state, faultAt{}))
	add := func(f faultAt) {
		done := d.run(from, s, state, f)
		same := slices.IndexFunc(all[1:], func(r ran) bool {
			return r.card == done.card && r.held == done.held && r.after == done.after && r.wrong == done.wrong && r.set == done.set && (r.fault.fault == killed) == (f.fault == killed)
		})
		if same >= 0 {
			all[1+same].ways++
		} else {
			all = append(all, done)
		}
	}
	apdus := all[0].apdus
	for at := range apdus {
		for _, f := range []fault{unsent, pulled, lost, odd} {
			add(faultAt{f, at})
		}
	}
	for at := range apdus + 1 {
		add(faultAt{killed, at})
	}
	d.runs[key] = all
	return all
}

// run runs a script, as a bridge does that has begun it.
func (d *drawer) run(from int, s *script, state card.State, f faultAt) ran {
	card := d.cards[from].Clone()
	kinds := map[fault]softcard.Kind{pulled: softcard.Pull, lost: softcard.Lose, odd: softcard.WrongSW}
	if kind, ok := kinds[f.fault]; ok {
		card.Inject(softcard.Fault{Step: f.at + 1, Kind: kind, SW: 0x6F00})
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := ran{fault: f, ways: 1}
	stop := func() {
		if (f.fault == unsent || f.fault == killed) && done.apdus == f.at {
			cancel()
		}
	}
	stop()
	fill := func(apdu.Slot) ([]byte, error) { return []byte(s.pin), nil }
	steps := s.run.Script
	confirms := d.trusted && s.confirms()
	if confirms {
		steps.Steps = steps.Steps[:len(steps.Steps)-1]
	}
	result := apdu.Run(ctx, steps, fill, func(_ context.Context, command []byte) ([]byte, error) {
		before := card.Inspect().PUKTries
		answer, err := card.Transmit(command)
		if err == nil && d.silent && command[1] == 0xF7 { // GET METADATA, of Yubico
			answer = apdu.Response{SW: apdu.SWInstructionNotSupported}.Encode()
		}
		if card.Inspect().PUKTries < before {
			done.wrong++
		}
		done.apdus++
		stop()
		return answer, err
	})
	result.Err = nil
	if confirms && result.End == apdu.Done {
		result.Responses = append(result.Responses, apdu.Response{SW: apdu.SWOK})
		result.Step++
	}
	done.set = s.pin != "" && card.PINIs(s.pin)
	done.held = s.run.Hold && result.End == apdu.Done && f.fault != killed
	if !done.held {
		card.PowerOn()
	}
	done.card = d.card(card)
	done.result = relay.Result{Operation: s.run.Script.Operation, Part: s.run.Script.Part, Run: result}
	if done.after = state.NoResult(); f.fault != killed {
		done.after, _ = state.Next(result)
	}
	return done
}
