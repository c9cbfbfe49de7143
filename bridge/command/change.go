package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/relay"
)

func change(ctx context.Context, p *program) error {
	w, err := p.prepare(relay.Terminal, slog.LevelError) // without a connection it goes as well
	if err != nil {
		return err
	}
	defer w.close()
	return w.atWork(ctx, func(a *agent.Agent) error {
		d := &changing{prompt: newPrompt(p.Stdin, p.Stdout), memory: w.memory, agent: a}
		if !d.isTerminal() {
			d.say("The input is no terminal: its lines are taken as answers.")
		}
		d.say("Change the PIN of a card of %s. Ctrl-C cancels.", d.enrolment.Organisation)
		reader, insertion, err := (&dialogue{prompt: d.prompt, agent: a}).choose(ctx)
		if err == nil {
			err = d.change(ctx, reader, insertion)
		}
		if errors.Is(err, context.Canceled) {
			d.say("Cancelled.")
			return exitError(exitCancelled)
		}
		return err
	})
}

// changing is with a person who knows the PIN of a card, and gives it another one.
type changing struct {
	*prompt
	memory
	agent *agent.Agent

	reader, insertion string
	card              unblockable
}

const (
	knowFor = 5 * time.Second // how long the cloud may take to tell what it knows of a card
	tellFor = 5 * time.Second // and to note what was done
	often   = 50 * time.Millisecond
)

// change gives the card in a reader the PIN that the person chooses.
func (d *changing) change(ctx context.Context, in, insertion string) error {
	d.reader, d.insertion = in, insertion
	left, told := 0, false
	err := d.hold(ctx, func(s *reader.Session) (err error) {
		if d.card, err = identify(ctx, s, time.Now()); err == nil {
			left, told, err = d.card.pinTries(ctx, s, time.Now())
		}
		return err
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("nothing was changed: %s", lower(sentence(err)))
	}
	known, err := d.known(ctx)
	if err != nil {
		return err
	}
	d.say("The card in %s is a %s card, number …%s.%s", in, d.card.application.Name, d.card.number(), expiry(known, d.agent.Time()))
	var present, newPIN []byte
	defer func() { clear(present); clear(newPIN) }()
	for {
		if told && left == 0 {
			d.say("Its PIN is blocked: `bridge unblock` gives it a new one.")
			return exitError(exitFailed)
		}
		if told && left == 1 {
			d.say("One try is left: if the present PIN is wrong once more, it is blocked.")
			answer, err := d.ask(ctx, "Go on (yes), or leave it (Enter)? ", false)
			if err != nil || !strings.EqualFold(string(answer), "yes") {
				d.say("Nothing was changed.")
				return errors.Join(err, exitError(exitFailed))
			}
		}
		if present, err = d.present(ctx); err != nil {
			return err
		}
		if newPIN == nil {
			d.say("%s", rule(known.Policy))
		}
		for newPIN == nil || bytes.Equal(newPIN, present) {
			if newPIN != nil {
				d.say("The new PIN must be another than the present one.")
				clear(newPIN)
			}
			if newPIN, err = d.askPIN(ctx, known.Policy); err != nil {
				return err
			}
		}
		var done relay.Offline
		err = d.hold(ctx, func(s *reader.Session) (err error) {
			done, err = d.carryOut(s, relay.Offline{Credential: d.card.credential(), Change: true}, d.card.change(), 1,
				map[string][]byte{presentPINSlot: present, newPINSlot: newPIN})
			return err
		})
		clear(present)
		if !errors.Is(err, errPresentPIN) {
			return d.end(ctx, done, err)
		}
		d.agent.Tell()
		if left, told = 0, done.TriesLeft != nil; told {
			left = *done.TriesLeft
			d.say("That is not the present PIN. Tries left: %d.", left)
		} else {
			d.say("That is not the present PIN.")
		}
	}
}

// errChanged: the PIN was changed instead of reset.
var errChanged = errors.New("the PIN was changed")

// instead offers the change of a PIN that is to be reset and is not blocked, but expired.
// Where it is not known that there is one, or the person goes on, it returns nil.
func (d *changing) instead(ctx context.Context, in, insertion string) error {
	d.reader, d.insertion = in, insertion
	expired := false
	var known relay.Known
	_ = d.hold(ctx, func(s *reader.Session) (err error) {
		known, expired, err = d.memory.expired(ctx, s, d.agent.Time())
		return err
	})
	if !expired {
		return nil
	}
	d.say("The PIN of the card in %s is not blocked, but has expired on %s.", in, day(known.PINExpiresAt))
	answer, err := d.ask(ctx, "Change it with the present PIN (1), or go on with the unblock (Enter)? ", false)
	if err == nil && string(answer) == "1" {
		err = errChanged
		if failed := d.change(ctx, in, insertion); failed != nil {
			err = failed
		}
	}
	return err
}

// expired tells whether a card's PIN has expired and is surely not blocked.
func (m memory) expired(ctx context.Context, s *reader.Session, now time.Time) (relay.Known, bool, error) {
	card, err := identify(ctx, s, time.Now())
	if err != nil {
		return relay.Known{}, false, err
	}
	o, err := m.Remembered(card.credential())
	if err != nil || o.Known == nil || !o.Known.PINExpired(now) {
		return relay.Known{}, false, err
	}
	left, told, err := card.pinTries(ctx, s, time.Now())
	return *o.Known, told && left > 0, err
}

// hold does something with the card in one transaction, which is not cut off in the middle.
func (d *changing) hold(ctx context.Context, do func(*reader.Session) error) error {
	s, err := d.agent.Open(context.WithoutCancel(ctx), d.reader, d.insertion)
	if err != nil {
		return err
	}
	defer s.Close()
	return do(s)
}

// known waits until it is known what a new PIN of the card must meet.
func (d *changing) known(ctx context.Context) (relay.Known, error) {
	for late := time.After(knowFor); ; {
		o, err := d.Remembered(d.card.credential())
		switch {
		case err != nil:
			return relay.Known{}, err
		case o.Known != nil:
			return *o.Known, nil
		}
		select {
		case <-time.After(often):
		case <-ctx.Done():
			return relay.Known{}, ctx.Err()
		case <-late:
			return relay.Known{}, fmt.Errorf("%s does not know this card, or this bridge was never connected while it was in a reader: nothing was changed", d.enrolment.Organisation)
		}
	}
}

// present asks for the present PIN, until it may be that of such a card: what cannot be is
// not worth a try.
func (d *changing) present(ctx context.Context) ([]byte, error) {
	usual := d.card.usualPolicy()
	may := pin.Policy{MinLength: usual.MinLength, MaxLength: usual.MaxLength, Alphabet: pin.Printable}
	if d.card.hasPUK() {
		may.Alphabet = pin.Digits
	}
	for {
		typed, err := d.ask(ctx, "Present PIN: ", true)
		if err != nil {
			return nil, err
		}
		if len(typed) >= may.MinLength && len(typed) <= may.MaxLength && !bytes.ContainsFunc(typed, func(r rune) bool {
			return r <= ' ' || r > '~' || may.Alphabet == pin.Digits && (r < '0' || r > '9')
		}) {
			return typed, nil
		}
		clear(typed)
		d.say("That cannot be its PIN, which has %d to %d %s. The card was not asked.", may.MinLength, may.MaxLength, map[pin.Alphabet]string{pin.Digits: "digits", pin.Printable: "characters"}[may.Alphabet])
	}
}

// end says what came of it, once the cloud has noted it or is not to be had.
func (d *changing) end(ctx context.Context, done relay.Offline, err error) error {
	switch {
	case done.PIN == relay.Yes:
		if !d.noted(ctx, done.ID) {
			d.say("The card has its new PIN. %s is told when this bridge is next connected.", d.enrolment.Organisation)
			return nil
		}
		o, err := d.Remembered(done.Credential)
		if err != nil || o.Known == nil || o.Known.PINExpiresAt.IsZero() || o.Known.PINExpired(d.agent.Time()) {
			d.say("The card has its new PIN.")
			return nil
		}
		d.say("The card has its new PIN. It expires on %s.", day(o.Known.PINExpiresAt))
		return nil
	case done.PIN == relay.Unknown:
		d.say("The card's answer was lost: try the new PIN, and if it is refused, the present one.")
	default:
		d.say("The PIN was not changed: %s.", lower(sentence(err)))
	}
	if done.ID != "" {
		d.noted(ctx, done.ID)
	}
	return exitError(exitFailed)
}

// noted has the cloud told what was done, and tells whether it has noted it.
func (d *changing) noted(ctx context.Context, id string) bool {
	if !d.agent.Connected() {
		return false
	}
	d.agent.Tell()
	for began := time.Now(); time.Since(began) < tellFor && ctx.Err() == nil; time.Sleep(often) {
		done, err := d.Done()
		if err != nil {
			return false
		}
		found := false
		for _, o := range done {
			found = found || o.ID == id
		}
		if !found {
			return true
		}
	}
	return false
}

// expiry says when a PIN expires, "" if it does not.
func expiry(k relay.Known, now time.Time) string {
	switch {
	case k.PINExpiresAt.IsZero():
		return ""
	case k.PINExpired(now):
		return fmt.Sprintf(" Its PIN has expired on %s.", day(k.PINExpiresAt))
	}
	return fmt.Sprintf(" Its PIN expires on %s.", day(k.PINExpiresAt))
}

// day is a day here, for people.
func day(t time.Time) string { return t.Local().Format("2006-01-02") }
