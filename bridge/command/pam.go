package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/relay"
)

// What bridge/pam/pam_pinward.c waits for.
const (
	aliveEvery = 5 * time.Second
	// pamFor is the longest that a conversation lasts.
	pamFor = 40 * time.Minute
	// cardFor is how long to look for a card: a login is not kept waiting for one.
	cardFor  = 1500 * time.Millisecond
	reachFor = 5 * time.Second
)

// lines writes a conversation as pam_pinward.c reads it.
type lines struct {
	mu  sync.Mutex
	out io.Writer
}

func (l *lines) write(kind, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, "%s %s\n", kind, strings.NewReplacer("\n", " ", "\x00", "").Replace(text))
}

// alive says so until ctx is done.
func (l *lines) alive(ctx context.Context) {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.write(".", "")
		case <-ctx.Done():
			return
		}
	}
}

// pam offers to unblock the card in a reader. It says nothing where there is nothing to
// offer: no enrolment, no reader, no card, or one whose PIN is not blocked.
func pam(ctx context.Context, p *program) error {
	ctx, cancel := context.WithTimeout(ctx, pamFor)
	defer cancel()
	p.Stderr = io.Discard
	w, err := p.prepare(relay.Terminal, slog.LevelError)
	if err != nil {
		return exitError(exitFailed)
	}
	defer w.close()
	w.LogonScreen = true
	l := &lines{out: p.Stdout}
	go l.alive(ctx)
	ask := &prompt{in: p.Stdin, out: io.Discard, fd: -1, lines: l}
	d := &offlineDialogue{prompt: ask, Config: w.Config, memory: w.memory, cards: map[string]int64{}, logon: true}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	d.events = d.Source.Watch(watching)
	release := func() {
		stop()
		for range d.events { // until the source is free for another Watch
		}
	}
	blocked, expired := d.look(ctx)
	if expired != nil {
		ask.say("The PIN of the smart card has expired on %s.", day(expired.PINExpiresAt))
		answer, err := ask.ask(ctx, "Change it now (1), or go on (Enter)? ", false)
		if err == nil && string(answer) == "1" {
			release()
			err = tell(ask, changeAtLogin(ctx, w, ask))
		}
		return err
	}
	if !blocked {
		return nil
	}
	conn, failed := reach(ctx, w.Config)
	switch {
	case failed == nil:
		_ = conn.Close() // without Hello it takes no session's place
		ask.say("The PIN of the smart card is blocked.")
		answer, err := ask.ask(ctx, "Unblock it with a mailed code (1), with your help desk (2), or go on (Enter)? ", false)
		switch {
		case err != nil:
			return err
		case string(answer) == "1":
			release()
			err = online(ctx, w, ask)
		case string(answer) == "2":
			err = d.unblock(ctx)
		}
		return tell(ask, err)
	case d.Enrolment.Offline != nil:
		ask.say("The PIN of the smart card is blocked, and there is no connection.")
		answer, err := ask.ask(ctx, "Unblock it with your help desk, by telephone (2), or go on (Enter)? ", false)
		if err == nil && string(answer) == "2" {
			err = tell(ask, d.unblock(ctx))
		}
		return err
	}
	return nil
}

func reach(ctx context.Context, c agent.Config) (io.Closer, error) {
	ctx, cancel := context.WithTimeout(ctx, reachFor)
	defer cancel()
	return agent.Dial(ctx, c)
}

// online is the same as `bridge unblock`.
func online(ctx context.Context, w *work, ask *prompt) error {
	return w.atWork(ctx, func(a *agent.Agent) error {
		return (&dialogue{prompt: ask, agent: a}).unblock(ctx, w.Enrolment.Organisation)
	})
}

// changeAtLogin is the same as `bridge change`.
func changeAtLogin(ctx context.Context, w *work, ask *prompt) error {
	return w.atWork(ctx, func(a *agent.Agent) error {
		reader, insertion, err := (&dialogue{prompt: ask, agent: a}).choose(ctx)
		if err != nil {
			return err
		}
		return (&changing{prompt: ask, memory: w.memory, agent: a}).change(ctx, reader, insertion)
	})
}

// tell says why it did not work; an exitError has been said already.
func tell(ask *prompt, err error) error {
	var said exitError
	if err != nil && !errors.As(err, &said) && !errors.Is(err, errNoAnswer) {
		ask.say("%v.", err)
	}
	return err
}

// look looks for a card whose PIN is blocked, or may be, or else has expired, which it
// returns. Where there are several cards it leaves the choice to a command line.
func (d *offlineDialogue) look(ctx context.Context) (blocked bool, expired *relay.Known) {
	for quiet := time.After(cardFor); ; {
		select {
		case e, ok := <-d.events:
			if !ok || e.Kind == reader.ServiceDown {
				return false, nil
			}
			if e.Kind != reader.CardSilent {
				d.see(e)
			}
			if len(d.cards) > 0 {
				quiet = time.After(settle)
			}
			continue
		case <-quiet:
		}
		break
	}
	if len(d.cards) != 1 {
		return false, nil
	}
	for name, number := range d.cards {
		session, err := d.Source.Open(ctx, name, number)
		if err != nil {
			break
		}
		defer session.Close()
		card, err := identify(ctx, session, d.Now())
		if err != nil {
			break
		}
		left, told, err := card.pinTries(ctx, session, d.Now())
		if err != nil {
			break
		}
		if !told || left == 0 {
			return true, nil
		}
		if o, err := d.Remembered(card.credential()); err == nil && o.Known != nil && o.Known.PINExpired(d.Now()) {
			return false, o.Known
		}
	}
	return false, nil
}

// pinTries asks how many tries the PIN has left, in ways that cost nothing: GET METADATA of
// Yubico, and a GIDS card's data object. There are cards that do not tell.
func (c unblockable) pinTries(ctx context.Context, s *reader.Session, now time.Time) (n int, told bool, err error) {
	question, path := getData(0x3FFF, 0x7F, 0x71), []apdu.Tag{0x7F71, 0x97}
	if c.hasPUK() {
		question, path = apdu.Step{Command: apdu.Command{INS: 0xF7, P2: 0x80, Le: le}}, []apdu.Tag{0x06}
	}
	question.Expect = anything
	r, err := ask(ctx, s, now, selectStep(c.application, ok), question)
	if err != nil {
		return 0, false, err
	}
	left, err := apdu.FindTLV(r[1].Data, path...)
	if err != nil || r[1].SW != apdu.SWOK || len(left) == 0 {
		return 0, false, nil
	}
	return int(left[len(left)-1]), true, nil // the metadata has most and left
}
