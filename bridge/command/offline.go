package command

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/bridge/enrolment"
	"github.com/pinward/pinward/bridge/journal"
	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

// memory is what a bridge keeps for when it has no connection.
type memory struct {
	*journal.Disk
	enrolment *enrolment.Enrolment
	dir       string
}

// Key implements agent.Offline.
func (m memory) Key(key []byte) error { return m.enrolment.KeepOffline(m.dir, key) }

// Know implements agent.Offline.
func (m memory) Know(known relay.Known) (relay.Known, error) {
	now := time.Now()
	o, err := m.UpdateOffline(known.Credential, now, func(o journal.Offline) (journal.Offline, bool) { return o.Knows(known, now) })
	if err != nil {
		return known, err
	}
	return *o.Known, nil
}

// offlinePrefix begins the ids of what was done without a connection.
const offlinePrefix = "offline-"

// Acknowledge implements agent.Offline.
func (m memory) Acknowledge(id string) error {
	if !strings.HasPrefix(id, offlinePrefix) {
		return nil
	}
	return m.AcknowledgeOffline(id)
}

// offlineDialogue is with a person who wants a new PIN and has no connection.
type offlineDialogue struct {
	*prompt
	agent.Config
	memory
	events <-chan reader.Event
	cards  map[string]int64 // reader → insertion

	card   unblockable
	key    offline.Key
	policy pin.Policy
	logon  bool // at a locked screen or a login
}

func unblockOffline(ctx context.Context, p *program, w *work) error {
	d := &offlineDialogue{prompt: newPrompt(p.Stdin, p.Stdout), Config: w.Config, memory: w.memory, cards: map[string]int64{}}
	if d.Enrolment.Offline == nil {
		return errors.New("this bridge does not have its organisation's offline key: let it connect once")
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	d.events = d.Source.Watch(watching)
	if !d.isTerminal() && d.lines == nil {
		d.say("The input is no terminal: its lines are taken as answers.")
	}
	d.say("Unblock a card of %s without a connection. Ctrl-C cancels.", d.Enrolment.Organisation)
	err := d.unblock(ctx)
	if errors.Is(err, context.Canceled) {
		d.say("Cancelled. Nothing was changed.")
		return exitError(exitCancelled)
	}
	return err
}

func (d *offlineDialogue) unblock(ctx context.Context) error {
	in, err := d.identified(ctx)
	if err != nil {
		return err
	}
	if d.key, err = offline.NewKey(d.Enrolment.Sealing, d.Enrolment.Offline, offline.Binding{Tenant: d.Enrolment.Tenant, Bridge: d.Enrolment.Bridge, Credential: d.card.credential()}); err != nil {
		return err
	}
	now := d.Now()
	var many bool
	o, err := d.UpdateOffline(d.card.credential(), now, func(o journal.Offline) (journal.Offline, bool) {
		o, ok := o.Challenged(now)
		many = !ok
		return o, ok
	})
	switch {
	case err != nil:
		return err
	case o.Known != nil && !o.Known.Offline && !d.logon, o.Known != nil && !o.Known.LogonScreen && d.logon:
		return errors.New("the organisation does not allow that this card is unblocked here without a connection")
	case many:
		return fmt.Errorf("there were %d attempts with this card within a day: ask your help desk, or try tomorrow", offline.Challenges)
	}
	if d.policy = d.card.usualPolicy(); o.Known != nil {
		d.policy = *o.Known.Policy
	}
	d.say("The card in %s is a %s card, number …%s.", in.reader, d.card.application.Name, d.card.number())
	d.say("This machine is the bridge %q (%s).", d.Enrolment.Name, d.Enrolment.Bridge)
	if d.card.hasPUK() {
		return d.byPUK(ctx, now, o)
	}
	return d.byAdminKey(ctx, in)
}

// inserted is a card in a reader.
type inserted struct {
	reader string
	number int64
}

// choose returns the card that is in a reader, and asks which if there are several.
func (d *offlineDialogue) choose(ctx context.Context) (inserted, error) {
	asked := false
	for quiet := time.After(settle); ; {
		select {
		case e, ok := <-d.events:
			if !ok {
				return inserted{}, ctx.Err()
			}
			d.see(e)
			quiet = time.After(settle)
			continue
		case <-ctx.Done():
			return inserted{}, ctx.Err()
		case <-quiet:
		}
		var all []relay.Reader
		for name := range d.cards {
			all = append(all, relay.Reader{Name: name})
		}
		switch {
		case len(all) == 1:
			return inserted{all[0].Name, d.cards[all[0].Name]}, nil
		case len(all) > 1:
			r, err := (&dialogue{prompt: d.prompt}).which(ctx, all)
			return inserted{r.Name, d.cards[r.Name]}, err
		case !asked:
			asked = true
			d.say("Insert the card.")
		}
		quiet = nil
	}
}

func (d *offlineDialogue) see(e reader.Event) {
	switch e.Kind {
	case reader.ServiceDown:
		d.say("There is no smart card service: %v", e.Err)
	case reader.CardInserted:
		d.cards[e.Reader] = e.Insertion
	case reader.CardSilent:
		delete(d.cards, e.Reader)
		d.say("The card in %s does not answer: put it in the other way round, or clean it.", e.Reader)
	case reader.CardRemoved, reader.ReaderRemoved:
		delete(d.cards, e.Reader)
	}
}

// catchUp takes in what has happened meanwhile.
func (d *offlineDialogue) catchUp() {
	for {
		select {
		case e, ok := <-d.events:
			if !ok {
				return
			}
			d.see(e)
		default:
			return
		}
	}
}

// identified finds the card and what card it is.
func (d *offlineDialogue) identified(ctx context.Context) (inserted, error) {
	for {
		in, err := d.choose(ctx)
		if err != nil {
			return in, err
		}
		session, err := d.Source.Open(ctx, in.reader, in.number)
		if err == nil {
			d.card, err = identify(ctx, session, d.Now())
			session.Close()
		}
		if !errors.Is(err, reader.ErrRemoved) {
			return in, err
		}
		d.say("The card was taken out.")
		delete(d.cards, in.reader)
	}
}

// again finds the same card once more.
func (d *offlineDialogue) again(ctx context.Context) (inserted, error) {
	want := d.card
	for {
		d.catchUp()
		in, err := d.identified(ctx)
		if err != nil || d.card.credential() == want.credential() {
			return in, err
		}
		d.card = want
		d.say("That is another card. Put the same one in again.")
		delete(d.cards, in.reader)
	}
}

// byPUK unblocks a card whose PUK the response brings.
func (d *offlineDialogue) byPUK(ctx context.Context, now time.Time, o journal.Offline) error {
	record, err := d.Card(d.card.credential())
	if err != nil {
		return err
	}
	day := now
	if now.Before(d.Enrolment.At) || now.Before(o.Latest.Add(-time.Minute)) || now.Before(record.At.Add(-24*time.Hour)) {
		day = time.Time{} // the clock is wrong
	}
	challenge, err := d.key.Challenge(d.Rand, day, record.Report())
	if err != nil {
		return err
	}
	var puk secret.Text
	if err := d.response(ctx, challenge.String(), func(typed string) (err error) {
		puk, err = d.key.Unmask(challenge, typed)
		return err
	}); err != nil {
		return err
	}
	newPIN, err := d.newPIN(ctx)
	if err != nil {
		return err
	}
	defer clear(newPIN)
	for {
		done, err := d.present(ctx, puk, newPIN, max(record.Fence, 1))
		if !errors.Is(err, reader.ErrRemoved) && !errors.Is(err, reader.ErrBusy) {
			return d.end(done, err)
		}
		d.say("%s. Nothing was changed: put the same card in again.", sentence(err))
	}
}

// present resets the PIN by the PUK.
func (d *offlineDialogue) present(ctx context.Context, puk secret.Text, newPIN []byte, fence int64) (done relay.Offline, err error) {
	in, err := d.again(ctx)
	if err != nil {
		return done, err
	}
	session, err := d.Source.Open(ctx, in.reader, in.number)
	if err != nil {
		return done, err
	}
	defer session.Close()
	return d.carryOut(session, relay.Offline{Credential: d.card.credential(), PUK: true}, d.card.byPUK(puk), fence, map[string][]byte{newPINSlot: newPIN})
}

// byAdminKey unblocks a card that wants an answer to a challenge of its own, which it
// forgets when it is reset, or another program uses it.
func (d *offlineDialogue) byAdminKey(ctx context.Context, in inserted) error {
	keeper, ok := d.Source.(reader.Keeper)
	if !ok {
		return errors.New("a card in software of a local installation forgets its challenge in a few seconds: use a reader")
	}
	session, err := keeper.Keep(ctx, in.reader, in.number, offline.Life)
	if err != nil {
		return err
	}
	defer session.Close()
	challenge, err := d.card.challenge(ctx, session, d.Now())
	if err != nil {
		return err
	}
	session.Pause()
	code, err := d.key.EncodeChallenge(challenge)
	if err != nil {
		return err
	}
	var answer []byte
	d.say("Leave the card in the reader until it has its new PIN.")
	if err := d.response(ctx, code, func(typed string) (err error) {
		answer, err = d.key.DecodeAnswer(challenge, typed)
		return err
	}); err != nil {
		return err
	}
	newPIN, err := d.newPIN(ctx)
	if err != nil {
		return err
	}
	defer clear(newPIN)
	return d.end(d.carryOut(session, relay.Offline{Credential: d.card.credential()}, d.card.byAnswer(answer), 1, map[string][]byte{newPINSlot: newPIN}))
}

// response shows a challenge and asks for the response, until it is taken.
func (d *offlineDialogue) response(ctx context.Context, challenge string, take func(typed string) error) error {
	began := d.Now()
	d.say("Call your help desk within %d minutes, say which card and bridge it is, and read this out:", int(offline.Life/time.Minute))
	d.say("")
	d.say("    %s", challenge)
	d.say("")
	for tries := offline.Tries; tries > 0; {
		typed, err := d.ask(ctx, "The response: ", false)
		switch {
		case err != nil:
			return err
		case d.Now().Sub(began) > offline.Life:
			return errors.New("the challenge is too old: begin anew")
		case len(typed) == 0:
			continue
		}
		err = take(string(typed))
		var invalid *problem.InvalidError
		switch {
		case err == nil:
			return nil
		case errors.Is(err, offline.ErrResponse):
			tries--
			d.say("The response %s. Tries left: %d.", offline.ErrResponse.(*problem.InvalidError).Violations[0].Reason, tries)
		case errors.As(err, &invalid):
			for _, v := range invalid.Violations {
				d.say("The response: %s.", v.Reason)
			}
		default:
			return err
		}
	}
	return errors.New("too many wrong responses: begin anew")
}

// newPIN asks for the new PIN until it is one.
func (d *offlineDialogue) newPIN(ctx context.Context) ([]byte, error) {
	d.say("%s", rule(&d.policy))
	for {
		newPIN, err := d.askPIN(ctx, &d.policy)
		if err != nil || len(newPIN) > 0 {
			return newPIN, err
		}
	}
}

// carryOut runs a script that sets the PIN, with the secrets for its slots. What is begun is
// noted before, so that the cloud is told whatever happens. An error that comes without an
// id says that no secret reached the card.
func (m memory) carryOut(session *reader.Session, done relay.Offline, r setter, fence int64, secrets map[string][]byte) (relay.Offline, error) {
	defer apdu.Script{Steps: r.steps}.Wipe()
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	now := time.Now()
	done.ID, done.At, done.PIN = offlinePrefix+hex.EncodeToString(id), now.UTC(), relay.Unknown
	note := func(change func(journal.Offline) journal.Offline) error {
		_, err := m.UpdateOffline(done.Credential, now, func(o journal.Offline) (journal.Offline, bool) { return change(o), true })
		return err
	}
	if err := note(func(o journal.Offline) journal.Offline { return o.Begun(done, m.Process()) }); err != nil {
		return relay.Offline{}, err
	}
	script := apdu.Script{Operation: done.ID, Part: 1, Fence: fence, Deadline: now.Add(time.Minute), Steps: r.steps}
	run := apdu.Run
	if done.Change {
		run = apdu.RunForHolder
	}
	result := run(context.Background(), script, func(s apdu.Slot) ([]byte, error) { return bytes.Clone(secrets[s.Secret]), nil }, session.Transmit)
	if sent := len(result.Responses) > r.secret || result.Step == r.secret && result.Uncertain; !sent {
		return relay.Offline{}, errors.Join(r.why(result), result.Err, note(func(o journal.Offline) journal.Offline { return o.Without(done.ID) }))
	}
	done.PIN = pinSet(result, r.at)
	if (done.PUK || done.Change) && result.End == apdu.Unexpected && result.Step == r.secret {
		if n, ok := result.Responses[r.secret].SW.TriesLeft(); ok {
			done.TriesLeft = &n
		}
	}
	err := result.Err
	if result.End == apdu.Done || done.PIN == relay.Yes {
		err = nil
	}
	return done, errors.Join(r.why(result), err, note(func(o journal.Offline) journal.Offline { return o.Ended(done) }))
}

// pinSet tells whether the step that sets the PIN was carried out.
func pinSet(r apdu.Result, at int) relay.Done {
	switch {
	case at < len(r.Responses) && r.Responses[at].SW == apdu.SWOK:
		return relay.Yes
	case at < len(r.Responses) && journal.NotDone(r.Responses[at].SW), at > len(r.Responses), at == len(r.Responses) && !r.Uncertain:
		return relay.No
	}
	return relay.Unknown
}

// end says what came of it.
func (d *offlineDialogue) end(done relay.Offline, err error) error {
	switch {
	case done.PIN == relay.Yes:
		d.say("The card has its new PIN. %s is told when this bridge is next connected.", d.Enrolment.Organisation)
		return nil
	case done.PIN == relay.Unknown:
		d.say("The card's answer was lost: try the new PIN, and if it is refused, begin anew.")
	case done.ID == "" && err != nil:
		d.say("Nothing was changed: %s.", lower(sentence(err)))
	case done.TriesLeft != nil && *done.TriesLeft > 0:
		d.say("The PIN was not reset: %s. Tries left: %d.", lower(sentence(err)), *done.TriesLeft)
	default:
		d.say("The PIN was not reset: %s.", lower(sentence(err)))
	}
	return exitError(exitFailed)
}

// sentence is what an error says to people, without what it is wrapped in.
func sentence(err error) string {
	for _, known := range []error{reader.ErrRemoved, reader.ErrReset, reader.ErrSilent, reader.ErrBusy, reader.ErrHeld, reader.ErrNoService, errUsed, errPUK, errPUKBlocked, errNewPIN, errAdminKey, errAnotherCard} {
		if errors.Is(err, known) {
			if known == reader.ErrReset || known == reader.ErrHeld {
				known = errUsed
			}
			text := known.Error()
			return strings.ToUpper(text[:1]) + text[1:]
		}
	}
	return fmt.Sprint(err)
}

func lower(s string) string { return strings.ToLower(s[:1]) + s[1:] }
