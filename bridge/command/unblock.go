package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

func unblock(ctx context.Context, p *program) error {
	w, err := p.prepare(relay.Terminal, slog.LevelWarn)
	if err != nil {
		return err
	}
	defer w.close()
	if p.offline {
		return unblockOffline(ctx, p, w)
	}
	return w.atWork(ctx, func(a *agent.Agent) error {
		ask := newPrompt(p.Stdin, p.Stdout)
		d := &dialogue{prompt: ask, agent: a, change: &changing{prompt: ask, memory: w.memory, agent: a}}
		return d.unblock(ctx, w.Enrolment.Organisation)
	})
}

// dialogue is with a person who wants a new PIN.
type dialogue struct {
	*prompt
	agent *agent.Agent
	op    relay.Operation // as it was heard of last
	told  string          // what was said of it last
	// change, if set, is offered for a card whose PIN has expired and is not blocked.
	change *changing
}

const (
	lookEvery  = 10 * time.Second // how often to ask after an operation that is under way
	startFor   = 20 * time.Second // how long the cloud may take to find out what card it is
	startEvery = time.Second
	cancelFor  = 5 * time.Second
)

func (d *dialogue) unblock(ctx context.Context, organisation string) error {
	if !d.isTerminal() && d.lines == nil {
		d.say("The input is no terminal: its lines are taken as answers.")
	}
	d.say("Unblock a card of %s. Ctrl-C cancels.", organisation)
	err := d.start(ctx)
	if errors.Is(err, errChanged) {
		return nil
	}
	for err == nil && d.op.Next != relay.NextNothing {
		if err = d.step(ctx); errors.Is(err, agent.ErrDisconnected) {
			d.say("The connection was lost: trying again.")
			d.op, err = d.agent.Look(ctx, d.op.ID)
		}
	}
	if d.op.ID != "" {
		defer d.agent.Forget(d.op.ID)
	}
	if err != nil && d.op.ID != "" && d.op.Next != relay.NextNothing {
		// Ctrl-C, the end of the input, or an error: nothing is left behind.
		cancelled, over := context.WithTimeout(context.WithoutCancel(ctx), cancelFor)
		defer over()
		op, refused := d.agent.Cancel(cancelled, d.op.ID)
		var problem *agent.ProblemError
		switch {
		case refused == nil && op.Next == relay.NextNothing:
			d.op = op
		case errors.As(refused, &problem):
			d.say("It cannot be cancelled any more: %s", problem.Reason)
			err = d.end(context.WithoutCancel(ctx))
		}
	}
	if errors.Is(err, context.Canceled) {
		d.say("Cancelled. %s", d.op.Sentence)
		return exitError(exitCancelled)
	}
	if err != nil {
		return err
	}
	d.say("%s", d.op.Sentence)
	if d.op.State != "succeeded" {
		return exitError(exitFailed)
	}
	return nil
}

// endFor is how long to wait for the end of an operation that cannot be cancelled.
const endFor = time.Minute

// end waits for it.
func (d *dialogue) end(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, endFor)
	defer cancel()
	for err = d.look(ctx); err == nil && (d.op.Next == relay.NextWait || d.op.Next == relay.NextCard); {
		err = d.wait(ctx)
	}
	return err
}

// start finds the card and asks for its unblock.
func (d *dialogue) start(ctx context.Context) error {
	for {
		reader, insertion, err := d.choose(ctx)
		if err != nil {
			return err
		}
		if d.change != nil {
			if err := d.change.instead(ctx, reader, insertion); err != nil {
				return err
			}
		}
		d.say("Asking for the unblock of the card in %s.", reader)
		for began := time.Now(); ; {
			d.op, err = d.agent.Start(ctx, reader, insertion)
			var problem *agent.ProblemError
			again := errors.As(err, &problem) && (problem.Code == "notIdentified" || problem.Code == "unavailable")
			if !again && !errors.Is(err, agent.ErrDisconnected) || time.Since(began) > startFor {
				break
			}
			select {
			case <-time.After(startEvery):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err == nil || d.inserted(insertion) {
			return err
		}
		d.say("The card was taken out.")
	}
}

func (d *dialogue) inserted(insertion string) bool {
	report, err := d.agent.Readers(context.Background(), 0)
	if err != nil {
		return true
	}
	for _, r := range report.Readers {
		if r.Card != nil && r.Card.Insertion == insertion {
			return true
		}
	}
	return false
}

// settle is how long readers may take to be told of one after the other.
const settle = 500 * time.Millisecond

// choose returns the reader with the card, and asks which if there are several.
func (d *dialogue) choose(ctx context.Context) (reader, insertion string, err error) {
	last, asked := int64(0), false
	for {
		report, err := d.agent.Readers(ctx, last)
		if err != nil {
			return "", "", err
		}
		last = report.Sequence
		// There may be more to come.
		more, cancel := context.WithTimeout(ctx, settle)
		_, err = d.agent.Readers(more, last)
		cancel()
		if err == nil {
			continue
		}
		var cards []relay.Reader
		for _, r := range report.Readers {
			if r.Card != nil && r.Card.Silent {
				d.say("The card in %s does not answer: put it in the other way round, or clean it.", r.Name)
			} else if r.Card != nil {
				cards = append(cards, r)
			}
		}
		switch {
		case len(cards) == 1:
			return cards[0].Name, cards[0].Card.Insertion, nil
		case len(cards) > 1:
			r, err := d.which(ctx, cards)
			return r.Name, r.Card.Insertion, err
		case !asked:
			asked = true
			d.say("Insert the card.")
		}
	}
}

func (d *dialogue) which(ctx context.Context, cards []relay.Reader) (relay.Reader, error) {
	d.say("There are cards in several readers:")
	for i, r := range cards {
		d.say("  %d  %s", i+1, r.Name)
	}
	for {
		text, err := d.ask(ctx, fmt.Sprintf("Which one (1 to %d)? ", len(cards)), false)
		if err != nil {
			return cards[0], err
		}
		if n, err := strconv.Atoi(string(text)); err == nil && 1 <= n && n <= len(cards) {
			return cards[n-1], nil
		}
	}
}

// step does what the operation asks for next.
func (d *dialogue) step(ctx context.Context) error {
	switch d.op.Next {
	case relay.NextCode:
		return d.prove(ctx)
	case relay.NextPIN:
		return d.givePIN(ctx)
	case relay.NextCard:
		d.tell("Put the card in, and leave it.")
	default:
		d.tell("The card is spoken to: leave it in.")
	}
	return d.wait(ctx)
}

// tell says something once.
func (d *dialogue) tell(text string) {
	if d.told != text {
		d.told = text
		d.say("%s", text)
	}
}

// wait waits until there is news.
func (d *dialogue) wait(ctx context.Context) (err error) {
	every := lookEvery
	if d.op.Next == relay.NextCard {
		every = startEvery
	}
	late := time.NewTimer(every)
	defer late.Stop()
	for {
		select {
		case op := <-d.agent.News():
			if op.ID == d.op.ID {
				d.op = op
				return nil
			}
		case <-late.C:
			return d.look(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *dialogue) look(ctx context.Context) error {
	op, err := d.agent.Look(ctx, d.op.ID)
	if err == nil {
		d.op = op
	}
	return err
}

// prove asks for the code that was mailed.
func (d *dialogue) prove(ctx context.Context) error {
	d.tell(fmt.Sprintf("A code was mailed to %s.", d.op.SentTo))
	code, err := d.ask(ctx, "Code: ", false)
	if err != nil || len(code) == 0 {
		return err
	}
	op, err := d.agent.Prove(ctx, d.op.ID, relay.Code{Text: secret.New(string(code))})
	var problem *agent.ProblemError
	if errors.As(err, &problem) {
		d.say("%s", problem.Reason)
		return d.look(ctx)
	}
	if err != nil {
		return err
	}
	d.op = op
	if op.Next == relay.NextCode {
		d.say("That is not the code. Tries left: %d.", op.TriesLeft)
	}
	return nil
}

// givePIN asks for the new PIN until the policy lets it through.
func (d *dialogue) givePIN(ctx context.Context) error {
	for _, v := range d.op.Violations {
		d.say("The new PIN %s.", v.Reason)
	}
	d.op.Violations = nil
	d.tell(rule(d.op.Policy))
	first, err := d.askPIN(ctx, d.op.Policy)
	defer clear(first)
	if err != nil || len(first) == 0 {
		return err
	}
	op, err := d.agent.Ready(ctx, d.op.ID, first)
	var problem *agent.ProblemError
	if errors.As(err, &problem) {
		d.agent.Forget(d.op.ID)
		d.say("%s", problem.Reason)
		return d.look(ctx)
	}
	if err == nil {
		d.op = op
	}
	return err
}

// askPIN asks for a new PIN twice. It returns none if it was not given, or was not right.
func (p *prompt) askPIN(ctx context.Context, policy *pin.Policy) ([]byte, error) {
	first, err := p.ask(ctx, "New PIN: ", true)
	if err != nil || len(first) == 0 {
		return nil, err
	}
	if policy != nil {
		if broken := policy.Check(secret.New(string(first)), pin.Context{}); len(broken) > 0 {
			clear(first)
			for _, v := range broken {
				p.say("The new PIN %s.", v.Reason)
			}
			return nil, nil
		}
	}
	second, err := p.ask(ctx, "The same again: ", true)
	defer clear(second)
	if err == nil && bytes.Equal(first, second) {
		return first, nil
	}
	clear(first)
	if err == nil {
		p.say("The two are not the same.")
	}
	return nil, err
}

// rule says what a new PIN may be.
func rule(p *pin.Policy) string {
	if p == nil {
		return "Choose a new PIN."
	}
	what := map[pin.Alphabet]string{pin.Digits: "digits", pin.Alphanumeric: "letters and digits", pin.Printable: "letters, digits and special characters"}[p.Alphabet]
	if p.MinLength == p.MaxLength {
		return fmt.Sprintf("Choose a new PIN of %d %s.", p.MinLength, what)
	}
	return fmt.Sprintf("Choose a new PIN of %d to %d %s.", p.MinLength, p.MaxLength, what)
}
