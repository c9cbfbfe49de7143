package unblock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

func ignoreNothing(err error) error {
	if errors.Is(err, errNothing) {
		return nil
	}
	return err
}

// Result takes in what a bridge says came of a script, and returns the operation, the zero
// one if that is as it was. Once the error is nil the bridge may forget the result: it is
// stored, or tells nothing that was not known.
func (us *Unblocks) Result(ctx context.Context, core tenant.Core, bridge string, r relay.Result) (Operation, error) {
	result := func(then func(m mover, v matter) (matter, error)) (Operation, loaded, error) {
		return us.step(ctx, core, system, r.Operation, func(_ loaded, m mover, v matter) (matter, []audit.Record, error) {
			if v.op.Bridge != bridge {
				return v, nil, fmt.Errorf("%w: another bridge's", problem.ErrNotFound)
			}
			v, taken, err := m.result(v, r)
			if err == nil && !taken {
				err = errNothing
			}
			if err == nil {
				v, err = then(m, v)
			}
			return v, nil, err
		})
	}
	op, l, err := result(func(_ mover, v matter) (matter, error) { return v, nil })
	if invalid := (*problem.InvalidError)(nil); errors.As(err, &invalid) {
		// The next script cannot be made, as when the admin key is none for the card's
		// challenge: it is as if the bridge had refused it.
		op, l, err = result(func(m mover, v matter) (matter, error) {
			v, _, err := m.result(v, relay.Result{Operation: v.op.ID, Part: v.op.Part, Refusal: relay.RefusedScript})
			v.op.Reason = string(card.AdminKeyWrong)
			return v, err
		})
	}
	if errors.Is(err, problem.ErrNotFound) || errors.Is(err, errNothing) {
		return Operation{}, nil
	} else if err != nil {
		return Operation{}, err
	}
	us.tell(ctx, l, op)
	_, err = us.announce(ctx, l, op)
	return op, err
}

// tell shows how an operation stands to the person at the bridge, if there is one.
func (us *Unblocks) tell(ctx context.Context, l loaded, op Operation) {
	connection := l.bridge.Sessions[relay.Terminal].Connection
	if connection == "" || op.Kind != Unblock || op.State == Running {
		return
	}
	shown := us.show(l, op)
	if err := us.post(ctx, connection, relay.Message{Operation: &shown}); err != nil {
		us.Log.InfoContext(ctx, "person at the bridge not told", "operation", op.ID, "bridge", l.bridge.ID, "cause", err)
	}
}

// Show tells what a person has to do next in an operation.
func (us *Unblocks) Show(ctx context.Context, core tenant.Core, op Operation) (relay.Operation, error) {
	if op.State.Finished() {
		return us.show(loaded{core: core}, op), nil // its card and its bridge may be no more
	}
	_, l, err := us.load(ctx, core, op)
	if err != nil {
		return relay.Operation{}, err
	}
	return us.show(l, op), nil
}

func (us *Unblocks) show(l loaded, op Operation) relay.Operation {
	o := relay.Operation{ID: op.ID, Credential: op.Credential, Insertion: op.Place.Insertion, State: string(op.State), Next: relay.NextNothing, Reason: op.Reason, Sentence: op.Sentence()}
	switch op.State {
	case Requested:
		if op.Proof.Code == "" { // a second operator has to approve
			o.Next, o.Until = relay.NextWait, op.Until
			break
		}
		o.Next, o.SentTo, o.TriesLeft, o.Until = relay.NextCode, op.Proof.SentTo, op.Proof.TriesLeft, op.Until
	case Proven:
		o.Next, o.Policy, o.Fence, o.Until, o.Violations = relay.NextPIN, &l.template.Policy, op.Fence, op.Until, op.Violations
		if _, _, ok := place(l.bridge, op); !ok {
			o.Next = relay.NextCard
		}
	case Running:
		o.Next, o.Until = relay.NextWait, op.Until
	}
	return o
}

// AtBridge begins an unblock of the card in a reader by the person there, or returns the
// one that has the card's lease. Which card it is may still be on its way to be known; if
// it stays so, the error is ErrNotIdentified.
func (us *Unblocks) AtBridge(ctx context.Context, core tenant.Core, bridge, insertion string) (Operation, error) {
	id, err := us.inserted(ctx, core, bridge, insertion)
	if err != nil {
		return Operation{}, err
	}
	cred, err := us.Credentials.Get(ctx, core.Tenant.ID, id)
	if err != nil {
		return Operation{}, err
	}
	if cred.Leased(us.Now()) {
		op, err := us.Get(ctx, core.Tenant.ID, cred.Lease.Operation)
		if err == nil && op.Bridge == bridge && op.Kind == Unblock && !op.State.Finished() {
			return op, nil
		}
		if err == nil && op.Kind != Unblock && !op.State.Finished() {
			return Operation{}, errBusy // it is over in a moment, and the bridge asks again
		}
	}
	by := audit.Actor{Kind: audit.Bridge, ID: bridge}
	return us.Create(ctx, core, by, Request{Credential: id, Bridge: bridge, Channel: credential.SelfService})
}

// ErrNotIdentified: it is not known yet which card was inserted. It is problem.ErrState.
var ErrNotIdentified = fmt.Errorf("%w: it is not known yet which card this is; try again", problem.ErrState)

// identifiedWithin is how long it is waited until it is known which card was inserted.
const identifiedWithin = 5 * time.Second

// inserted returns the credential of a card that was inserted.
func (us *Unblocks) inserted(ctx context.Context, core tenant.Core, bridge, insertion string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, identifiedWithin)
	defer cancel()
	for {
		b, err := us.Tenants.Bridge(ctx, core.Tenant.ID, bridge)
		if err != nil && ctx.Err() != nil {
			return "", ErrNotIdentified
		} else if err != nil {
			return "", err
		}
		for _, session := range b.Sessions {
			for _, r := range session.Readers {
				switch {
				case r.Insertion != insertion:
				case r.Silent:
					return "", fmt.Errorf("%w: the card does not answer; put it in again, the right way round", problem.ErrState)
				case r.Credential != "":
					return r.Credential, nil
				case r.Identify.Leg == card.Failed:
					return "", r.Identify.Failure
				case r.Identify.Leg == card.Done:
					if id := CredentialOf(r); id != "" { // it may have been registered since
						if _, err := us.Credentials.Get(ctx, core.Tenant.ID, id); !errors.Is(err, problem.ErrNotFound) {
							return id, err
						}
					}
					return "", fmt.Errorf("%w: this card (%s %s) is not registered; an administrator can do that", problem.ErrState, r.Identify.Family, r.Identify.ID)
				}
			}
		}
		select {
		case <-ctx.Done():
			return "", ErrNotIdentified
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Look sends the script of an operation again, if one is under way and may have been lost
// on its way; a bridge that has run it answers with its result. It returns how the
// operation stands.
func (us *Unblocks) Look(ctx context.Context, core tenant.Core, id string) (Operation, error) {
	op, _, err := us.step(ctx, core, system, id, func(_ loaded, m mover, v matter) (matter, []audit.Record, error) {
		if v, over := m.conclude(v); over {
			return v, nil, nil
		}
		if v.op.State != Running {
			return v, nil, errNothing
		}
		v, err := m.again(v)
		return v, nil, err
	})
	return us.over(ctx, core, id, op, err)
}

// over returns how an operation stands if a step has found nothing to do, or if the
// operation has ended and what it was about is no more.
func (us *Unblocks) over(ctx context.Context, core tenant.Core, id string, op Operation, err error) (Operation, error) {
	if errors.Is(err, problem.ErrNotFound) {
		if ended, e := us.Get(ctx, core.Tenant.ID, id); e == nil && ended.State.Finished() {
			return ended, nil
		}
	}
	return op, ignoreNothing(err)
}

// Seen is told of a card that was identified in a reader, as all are when a bridge has
// connected anew. What is under way goes on; if it is in doubt what an operation has done
// to the card, that is found out.
func (us *Unblocks) Seen(ctx context.Context, core tenant.Core, b tenant.Bridge, session relay.Session, r tenant.Reader) error {
	cred, err := us.Credentials.Get(ctx, core.Tenant.ID, r.Credential)
	if errors.Is(err, problem.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	sighting := credential.Sighting{ATR: r.ATR, Serial: r.Identify.Identity.Serial}
	if cred.Touched != r.Insertion { // else it may be older than what a script has done
		sighting.PIN = r.Identify.Identity.PIN
	}
	if cred, err = us.Credentials.Saw(ctx, core, system, cred.ID, sighting); err != nil {
		return err
	}
	if cred.Lease.Operation != "" {
		// Perhaps an operation whose time is over; or one that goes on.
		op, err := us.Look(ctx, core, cred.Lease.Operation)
		if err != nil || !op.State.Finished() {
			return ignoreState(err)
		}
		if cred, err = us.Credentials.Get(ctx, core.Tenant.ID, r.Credential); err != nil {
			return err
		}
	}
	switch {
	case cred.Leased(us.Now()), cred.Stuck != "":
		return nil
	case !cred.Custody.None() && !cred.PUKDisclosedAt.IsZero():
		return us.maintain(ctx, core, Rotate, b.ID, Place{session, r.Name, r.Insertion}, cred)
	case cred.Custody.InDoubt():
		return us.maintain(ctx, core, Reconcile, b.ID, Place{session, r.Name, r.Insertion}, cred)
	case cred.Doubt != "":
		op, l, err := us.step(ctx, core, system, cred.Doubt, func(_ loaded, m mover, v matter) (matter, []audit.Record, error) {
			if v.op.Place.Insertion == r.Insertion {
				// What the card told may be from before: only a new insertion is surely later.
				return v, nil, errNothing
			}
			v.doubtful = &v.op
			next, learnt := m.seen(v, r.Identify.Identity.PIN)
			if !learnt {
				return v, nil, errNothing
			}
			next.op, next.doubtful = *next.doubtful, nil
			return next, nil, nil
		})
		if errors.Is(err, errNothing) || errors.Is(err, problem.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		_, err = us.announce(ctx, l, op)
		return err
	}
	return nil
}

func ignoreState(err error) error {
	if errors.Is(err, problem.ErrState) || errors.Is(err, problem.ErrNotFound) {
		return nil
	}
	return err
}

// maintain begins to find out which PUK a card has, or to change it.
func (us *Unblocks) maintain(ctx context.Context, core tenant.Core, kind Kind, bridge string, where Place, cred credential.Credential) error {
	id, err := us.newID()
	if err != nil {
		return err
	}
	op := Operation{ID: id, Kind: kind, Credential: cred.ID, By: system, Bridge: bridge, Place: where, CreatedAt: us.Now().UTC().Truncate(time.Second)}
	before, l, err := us.load(ctx, core, op)
	if err != nil {
		return err
	}
	m := us.mover(l, before.cred)
	v, err := m.take(before)
	if err == nil {
		v, err = m.begin(v)
	}
	if err != nil {
		return ignoreState(err)
	}
	after, err := us.store(ctx, l, system, before, v, []audit.Record{{Action: string(kind) + ".begun", Details: map[string]string{"bridge": bridge}}})
	if _, conflict := table.FailedOp(err); conflict {
		return nil // somebody else is at it
	} else if err != nil {
		return err
	}
	us.Log.InfoContext(ctx, "card is looked at", "kind", kind, "operation", after.op.ID, "bridge", bridge)
	return nil
}
