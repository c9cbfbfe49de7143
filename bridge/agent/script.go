package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pinward/pinward/bridge/journal"
	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

// lane runs the scripts for one reader, one after the other.
type lane struct {
	queue []job
	busy  bool
	hold  *hold
}

type job struct {
	run  relay.Run
	link int64 // the connection that it came on
}

// maxQueue is how many scripts may wait for a reader.
const maxQueue = 4

// hold is a transaction that is kept for an operation's next part.
type hold struct {
	reader, insertion, operation, credential string

	session *reader.Session
	limit   *time.Timer
}

// holdFor is how long a transaction is kept for the next part: less than the reader's
// limit, so that a part that goes on in one is not cut off before its first command.
const holdFor = 3800 * time.Millisecond

// take queues a script.
func (a *Agent) take(run relay.Run, link int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.lanes[run.Reader]
	if l == nil {
		l = &lane{}
	}
	if a.closing || len(l.queue) >= maxQueue {
		a.Log.Warn("script dropped: too many wait, or the bridge is stopping", "script", run.String())
		run.Script.Wipe()
		return
	}
	a.lanes[run.Reader] = l
	l.queue = append(l.queue, job{run, link})
	a.working++
	if !l.busy {
		l.busy = true
		go a.work(run.Reader, l)
	}
}

func (a *Agent) work(name string, l *lane) {
	for {
		a.mu.Lock()
		if len(l.queue) == 0 {
			l.busy = false
			a.tidy(name, l)
			a.mu.Unlock()
			return
		}
		j := l.queue[0]
		l.queue = l.queue[1:]
		a.mu.Unlock()

		result, answered := a.perform(l, j.run)
		j.run.Script.Wipe()

		a.mu.Lock()
		switch {
		case answered && j.run.Script.Fence > 0:
			a.outbox[key{result.Operation, result.Part}] = &delivery{result: result}
		case answered && j.link == a.link:
			a.once = append(a.once, result)
		}
		a.working--
		a.mu.Unlock()
		a.wake()
	}
}

// tidy forgets a lane without work. It is called with mu held.
func (a *Agent) tidy(name string, l *lane) {
	if !l.busy && l.hold == nil && a.lanes[name] == l {
		delete(a.lanes, name)
	}
}

// perform runs a script, or does not, and returns what to answer; false is nothing.
func (a *Agent) perform(l *lane, run relay.Run) (relay.Result, bool) {
	fenced := run.Script.Fence > 0
	if fenced {
		if v, err := a.Journal.Look(run, a.cloudNow()); err != nil || v.Action != journal.Run {
			return a.settled(run, v, err)
		}
	}
	session, result := a.prepare(l, run)
	if session == nil {
		if fenced {
			v, err := a.Journal.Refuse(run, result, a.cloudNow())
			return a.settled(run, v, err)
		}
		a.tell(run, result)
		return result, true
	}
	if fenced {
		if v, err := a.Journal.Begin(run, a.cloudNow()); err != nil || v.Action != journal.Run {
			session.Close()
			return a.settled(run, v, err)
		}
	}
	result = a.runIn(session.Session, run, session.pin)
	a.mu.Lock()
	keep := run.Hold && result.Refusal == "" && result.Run.End == apdu.Done && !a.closing
	if keep {
		h := &hold{reader: run.Reader, insertion: run.Insertion, operation: run.Script.Operation, credential: run.Credential, session: session.Session}
		l.hold = h
		a.working++
		h.limit = time.AfterFunc(holdFor, func() { a.release(h) })
	}
	a.mu.Unlock()
	if !keep {
		session.Close()
	}
	return result, true
}

// settled says what the journal has decided.
func (a *Agent) settled(run relay.Run, v journal.Verdict, err error) (relay.Result, bool) {
	switch {
	case err != nil:
		a.Log.Error("script refused: the bridge cannot keep its record", "script", run.String(), "reason", err)
	case v.Action == journal.Wait:
		a.Log.Info("script is under way already, or too much waits for acknowledgement", "script", run.String())
		return relay.Result{}, false
	default:
		a.tell(run, v.Result)
	}
	return v.Result, true
}

// tell logs an answer.
func (a *Agent) tell(run relay.Run, r relay.Result) {
	switch {
	case r.Interrupted:
		a.Log.Warn("script was begun before, and how it ended is not known", "script", run.String())
	case r.Refusal != "":
		a.Log.Warn("script refused", "script", run.String(), "refusal", r.Refusal, "reason", r.Run.Err)
	case r.Run.Err != nil:
		a.Log.Warn("script ended early", "script", run.String(), "end", r.Run.End, "step", r.Run.Step, "reason", r.Run.Err)
	default:
		a.Log.Info("script done", "script", run.String(), "steps", r.Run.Step)
	}
}

// ready is what a script needs: the card, and the new PIN if it sets one.
type ready struct {
	*reader.Session
	pin secret.Text
}

// prepare gets what a script needs, or the answer with the refusal. The policy's verdict
// comes before anything is asked of the card.
func (a *Agent) prepare(l *lane, run relay.Run) (*ready, relay.Result) {
	refuse := func(why relay.Refusal, err error) (*ready, relay.Result) {
		return nil, relay.Result{Operation: run.Script.Operation, Part: run.Script.Part, Refusal: why, Run: apdu.Result{Err: err}}
	}
	held := a.unhold(l)
	kept := false
	defer func() {
		if held != nil && !kept {
			held.session.Close()
		}
	}()
	if err := run.Script.CheckDeadline(a.cloudNow()); err != nil {
		return refuse(relay.RefusedDeadline, err)
	}
	newPIN, refusal, err := a.newPIN(run)
	if refusal != "" {
		_, result := refuse(refusal, err)
		var invalid *problem.InvalidError
		if errors.As(err, &invalid) {
			result.Run.Err = nil
			for _, v := range invalid.Violations {
				result.Violations = append(result.Violations, relay.Violation{Code: v.Code, Reason: v.Reason})
			}
		}
		return nil, result
	}
	name, insertion, ok := a.cards.find(run.Reader, run.Insertion)
	if !ok {
		return refuse(relay.RefusedCard, reader.ErrRemoved)
	}
	if run.Continue {
		if held == nil || held.insertion != run.Insertion || held.operation != run.Script.Operation || held.credential != run.Credential {
			return refuse(relay.RefusedHold, errors.New("no transaction is held for it"))
		}
		kept = true
		return &ready{held.session, newPIN}, relay.Result{}
	}
	if held != nil { // the source would wait for it
		kept = true
		held.session.Close()
	}
	session, err := a.Source.Open(context.Background(), name, insertion)
	switch {
	case errors.Is(err, reader.ErrRemoved):
		return refuse(relay.RefusedCard, err)
	case err != nil:
		return refuse(relay.RefusedReader, err)
	}
	return &ready{session, newPIN}, relay.Result{}
}

// runIn runs a script in a session. The journal has noted that it begins, and notes how it
// ends.
func (a *Agent) runIn(session *reader.Session, run relay.Run, newPIN secret.Text) relay.Result {
	s := run.Script
	result := relay.Result{Operation: s.Operation, Part: s.Part}
	result.Run = apdu.Run(context.Background(), s, func(slot apdu.Slot) ([]byte, error) {
		if slot.Secret != newPINSlot || newPIN.Empty() {
			return nil, fmt.Errorf("no secret %s: %w", slot.Secret, problem.ErrNotFound)
		}
		return []byte(newPIN.Reveal()), nil
	}, session.Transmit)
	if errors.Is(result.Run.Err, reader.ErrHeld) && result.Run.Step == 0 {
		// The session was over before it was handed the first command.
		result.Refusal = relay.RefusedReader
		if run.Continue {
			result.Refusal = relay.RefusedHold
		}
		result.Run = apdu.Result{Err: reader.ErrHeld}
	}
	if takesPIN(s) {
		a.Forget(s.Operation)
	}
	a.tell(run, result)
	if s.Fence > 0 {
		if err := a.Journal.End(run.Credential, result, a.cloudNow()); err != nil {
			a.Log.Error("a result is told only as long as the bridge runs", "script", run.String(), "reason", err)
		}
	}
	return result
}

// unhold takes the transaction that a lane holds.
func (a *Agent) unhold(l *lane) *hold {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := l.hold
	if h == nil {
		return nil
	}
	l.hold = nil
	a.working--
	h.limit.Stop()
	return h
}

// release gives a transaction up if it is still held.
func (a *Agent) release(h *hold) {
	a.mu.Lock()
	l := a.lanes[h.reader]
	mine := l != nil && l.hold == h
	if mine {
		l.hold = nil
		h.limit.Stop()
		a.tidy(h.reader, l)
	}
	a.mu.Unlock()
	if !mine {
		return
	}
	h.session.Close()
	a.Log.Info("card let go: the next part did not come", "reader", h.reader, "operation", h.operation)
	a.mu.Lock()
	a.working--
	a.mu.Unlock()
	a.wake()
}

// newPINSlot is the name of the slot for the new PIN.
const newPINSlot = "newPIN"

func takesPIN(s apdu.Script) bool {
	return slices.ContainsFunc(s.Steps, func(step apdu.Step) bool {
		return slices.ContainsFunc(step.Slots, func(slot apdu.Slot) bool { return slot.Secret == newPINSlot })
	})
}

// newPIN returns the new PIN if the script, or one that it is held for, sets one, and why
// it cannot be used. What the policy says is an InvalidError.
func (a *Agent) newPIN(run relay.Run) (secret.Text, relay.Refusal, error) {
	s := run.Script
	if run.Policy == nil {
		if takesPIN(s) {
			return secret.Text{}, relay.RefusedScript, errors.New("it sets a PIN without a policy")
		}
		return secret.Text{}, "", nil
	}
	var newPIN secret.Text
	if run.PIN != nil {
		binding := relay.Binding{Tenant: a.Enrolment.Tenant, Operation: s.Operation, Credential: run.Credential, Fence: s.Fence}
		var err error
		if newPIN, err = relay.OpenPIN(a.Enrolment.Sealing, binding, *run.PIN); err != nil {
			return secret.Text{}, relay.RefusedNoPIN, err
		}
	} else if newPIN = a.typedPIN(s.Operation); newPIN.Empty() {
		return secret.Text{}, relay.RefusedNoPIN, errors.New("no PIN was typed here for this operation")
	}
	if err := run.Policy.Check(newPIN, pin.Context{}).Err(); err != nil {
		a.Forget(s.Operation)
		return secret.Text{}, relay.RefusedPIN, err
	}
	return newPIN, "", nil
}
