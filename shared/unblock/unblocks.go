package unblock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"strconv"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// Unblocks are the operations on unblocks. All fields must be set; Rand must be safe for
// concurrent use.
type Unblocks struct {
	Table       table.Table
	Tenants     *tenant.Tenants
	Users       *user.Users
	Credentials *credential.Credentials
	Senders     mail.Senders
	Connections gateway.Connections
	Audit       audit.Log
	Now         func() time.Time
	Rand        io.Reader
	Log         *slog.Logger
}

// tries bounds how often a step begins anew because somebody else changed the same items
// meanwhile.
const tries = 8

var errBusy = fmt.Errorf("%w: the card is being worked on", problem.ErrUnavailable)

// Get returns an operation by id.
func (us *Unblocks) Get(ctx context.Context, t table.TenantID, id string) (Operation, error) {
	item, err := us.Table.Get(ctx, table.UnblockKey(t, id))
	if errors.Is(err, problem.ErrNotFound) {
		return Operation{}, fmt.Errorf("unblock %w", problem.ErrNotFound)
	} else if err != nil {
		return Operation{}, fmt.Errorf("load unblock: %w", err)
	}
	_, op, err := decode(item)
	return op, err
}

// List returns up to limit operations, newest first, beyond the given place ("" is the
// start), of one credential if one is given, and the place to go on from, "" if there
// are no more.
func (us *Unblocks) List(ctx context.Context, t table.TenantID, credential, beyond string, limit int) (ops []Operation, next string, err error) {
	shards := table.Unblocks(t)
	if credential != "" {
		shards = []table.Range{table.UnblocksOf(t, credential)}
	}
	for i := range shards {
		shards[i] = shards[i].Descending()
	}
	page, next, err := table.Merge(ctx, us.Table, shards, limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list unblocks: %w", err)
	}
	ops = make([]Operation, len(page.Items))
	for i, item := range page.Items {
		if _, ops[i], err = decode(item); err != nil {
			return nil, "", err
		}
	}
	return ops, next, nil
}

// loaded is what a step needs besides the matter.
type loaded struct {
	core     tenant.Core
	template credential.Template
	bridge   tenant.Bridge
}

// step does one step of an operation: it reads, lets move make the next matter, stores it
// with its audit records on the condition that nothing was changed meanwhile, and sends
// the script that it has made ready, if any. The records are of the credential. If move
// returns an error nothing is done.
func (us *Unblocks) step(ctx context.Context, core tenant.Core, by audit.Actor, id string,
	move func(l loaded, m mover, v matter) (matter, []audit.Record, error)) (Operation, loaded, error) {
	for range tries {
		op, err := us.Get(ctx, core.Tenant.ID, id)
		if err != nil {
			return Operation{}, loaded{}, err
		}
		before, l, err := us.load(ctx, core, op)
		if err != nil {
			return Operation{}, l, err
		}
		after, records, err := move(l, us.mover(l, before.cred), before)
		if err != nil {
			return op, l, err
		}
		after, err = us.store(ctx, l, by, before, after, records)
		if errors.Is(err, problem.ErrConflict) {
			continue
		} else if err != nil {
			return op, l, err
		}
		return after.op, l, nil
	}
	return Operation{}, loaded{}, errBusy
}

// load reads what belongs to an operation.
func (us *Unblocks) load(ctx context.Context, core tenant.Core, op Operation) (matter, loaded, error) {
	l, t := loaded{core: core}, core.Tenant.ID
	v := matter{op: op}
	var err error
	if v.cred, err = us.Credentials.Get(ctx, t, op.Credential); err != nil {
		return v, l, err
	}
	if l.template, err = us.Credentials.Template(ctx, t, v.cred.Template); err != nil {
		return v, l, err
	}
	if l.bridge, err = us.Tenants.Bridge(ctx, t, op.Bridge); err != nil {
		return v, l, err
	}
	if v.cred.Doubt != "" && v.cred.Doubt != op.ID {
		doubtful, err := us.Get(ctx, t, v.cred.Doubt)
		if err != nil && !errors.Is(err, problem.ErrNotFound) {
			return v, l, err
		} else if err == nil {
			v.doubtful = &doubtful
		}
	}
	return v, l, nil
}

func (us *Unblocks) mover(l loaded, c credential.Credential) mover {
	return mover{
		tenant: l.core.Tenant.ID, keys: l.core.Keys, now: us.Now(),
		newPUK:   func(current secret.Text) (secret.Text, error) { return card.NewPUK(us.Rand, current) },
		adminKey: c.AdminKey != nil || l.template.MasterKey != nil,
		template: l.template,
	}
}

// store writes a step, and sends its script. A script is made before it is known whether
// the step is stored, for each secret in it is accounted for in the same Write. with are
// further ops of that.
func (us *Unblocks) store(ctx context.Context, l loaded, by audit.Actor, before, after matter, records []audit.Record, with ...table.Op) (matter, error) {
	t := l.core.Tenant.ID
	now := us.Now().UTC().Truncate(time.Millisecond)
	after.op.UpdatedAt = now
	again := before.op.Awaits && after.op.Part == before.op.Part
	var script *relay.Run
	// One that is over may still await a result, but its script is not sent any more.
	if after.op.State == Running && after.op.Awaits {
		run, reads, err := us.script(l, after)
		if err != nil {
			return before, err
		}
		script = &run
		defer run.Script.Wipe()
		records = append(records, reads...)
	}
	if n := &after.op.Notice; n.State == NoticePlanned && before.op.Notice.State != NoticePlanned {
		n.At = now.Add(noticeClaim).Truncate(time.Second) // whoever stores this sends it
	}
	ops := []table.Op{put(t, after.op)}
	if !reflect.DeepEqual(before.cred, after.cred) {
		after.cred.UpdatedAt = now.Truncate(time.Second)
		ops = append(ops, credential.Put(t, before.cred, after.cred)...)
	} else {
		ops = append(ops, table.Check(table.CredentialKey(t, after.cred.ID), table.IfVersion(after.cred.Version)))
	}
	if d := after.doubtful; d != nil && !reflect.DeepEqual(d, before.doubtful) {
		d.UpdatedAt = now
		ops = append(ops, put(t, *d))
		records = append(records, ended(*d))
		if before.doubtful != nil {
			ops = append(ops, told(ctx, l.core, now, *before.doubtful, *d, after.cred.Holder)...)
		}
	}
	if after.op.State.Finished() && after.op.State != before.op.State {
		records = append(records, ended(after.op))
		ops = append(ops, told(ctx, l.core, now, before.op, after.op, after.cred.Holder)...)
	}
	for _, r := range records {
		if r.Actor == (audit.Actor{}) {
			r.Actor = by
		}
		if r.Subject == "" {
			r.Subject = credential.Subject(after.cred.ID)
		}
		if r.Outcome == "" {
			r.Outcome = audit.Done
		}
		if r.Details == nil {
			r.Details = map[string]string{}
		}
		if r.Details["operation"] == "" {
			r.Details["operation"] = after.op.ID
		}
		ops = append(ops, us.Audit.Op(ctx, t, r))
	}
	if err := us.Table.Write(ctx, append(ops, with...)...); err != nil {
		return before, fmt.Errorf("store unblock: %w", err)
	}
	after.op.Version++
	if script == nil {
		return after, nil
	}
	connection := l.bridge.Sessions[after.op.Place.Session].Connection
	err := us.post(ctx, connection, relay.Message{Run: script})
	if errors.Is(err, gateway.ErrGone) && connection != "" {
		if err := us.Tenants.Disconnect(ctx, connection); err != nil {
			us.Log.WarnContext(ctx, "connection that is gone not forgotten", "bridge", l.bridge.ID, "cause", err)
		}
	}
	if errors.Is(err, gateway.ErrGone) && !again {
		return us.unsent(ctx, l, after)
	} else if err != nil {
		// It may have arrived; if it has not, the bridge asks, or the time runs out.
		us.Log.WarnContext(ctx, "script may not have reached its bridge", "operation", after.op.ID, "part", after.op.Part, "bridge", l.bridge.ID, "cause", err)
	}
	return after, nil
}

// unsent ends an operation whose bridge was certainly not there to get the script.
func (us *Unblocks) unsent(ctx context.Context, l loaded, v matter) (matter, error) {
	op, _, err := us.step(ctx, l.core, system, v.op.ID, func(_ loaded, m mover, now matter) (matter, []audit.Record, error) {
		if now.op.Version != v.op.Version { // it may have been sent again since
			return now, nil, errNothing
		}
		next, taken, err := m.result(now, relay.Result{Operation: v.op.ID, Part: v.op.Part, Refusal: relay.RefusedCard})
		if err == nil && !taken {
			err = errNothing
		}
		next.op.Reason = ReasonBridgeGone
		return next, nil, err
	})
	if errors.Is(err, errNothing) {
		err = nil
	}
	v.op = op
	return v, err
}

// errNothing: a step has nothing to do.
var errNothing = errors.New("nothing to do")

// system is who concludes operations.
var system = audit.Actor{Kind: audit.System, ID: "unblock"}

// ended is the audit record of an operation's end.
func ended(op Operation) audit.Record {
	r := audit.Record{Actor: system, Action: string(op.Kind) + "." + string(op.State), Subject: credential.Subject(op.Credential), Outcome: audit.Done, Reason: op.Reason,
		Details: map[string]string{"operation": op.ID, "bridge": op.Bridge}}
	if op.State == Failed || op.State == Unknown {
		r.Outcome = audit.Failed
	}
	if op.Channel != "" {
		r.Details["channel"] = string(op.Channel)
	}
	for what, effect := range map[string]card.Effect{"pin": op.Outcome.PIN, "puk": op.Outcome.PUK} {
		if effect != "" {
			r.Details[what+"Changed"] = string(effect)
		}
	}
	return r
}

// told tells rules what came of an unblock, once it is known: a card has a new PIN, or it has
// not. A result that comes late may tell of success after failure, and nothing else twice.
func told(ctx context.Context, core tenant.Core, now time.Time, was, is Operation, holder string) []table.Op {
	kind := is.told()
	if is.Kind != Unblock || kind == "" || kind == was.told() {
		return nil
	}
	attributes := map[string]string{"channel": string(is.Channel)}
	if kind == event.UnblockFailed {
		attributes["reason"] = cmp.Or(is.Reason, string(card.OutcomeUnknown))
		if is.Outcome.PIN == card.No && is.State == Reconciled {
			attributes["reason"] = ReasonNoAnswer
		}
	}
	return event.Ops(ctx, core, now, event.Event{Type: kind, User: holder, Card: is.Credential, Attributes: attributes}, fmt.Sprintf("%s/%d", is.ID, is.Version+1))
}

// told is the event that tells of the operation as it is; "" if it is not known what came of it.
func (op Operation) told() event.Type {
	switch {
	case op.State == Succeeded, op.State == Reconciled && op.Outcome.PIN == card.Yes:
		return event.UnblockSucceeded
	case op.State == Failed, op.State == Reconciled:
		return event.UnblockFailed
	}
	return ""
}

// script makes the script of v.op.Card for the place where the card is, with an audit
// record for each secret that it holds.
func (us *Unblocks) script(l loaded, v matter) (relay.Run, []audit.Record, error) {
	t := l.core.Tenant.ID
	var reads []audit.Record
	read := func(what, slot string) {
		if n := len(reads); n > 0 && reads[n-1].Action == what+".read" {
			reads[n-1].Details["slots"] += ", " + slot
			return
		}
		r := audit.Record{Action: what + ".read", Reason: string(v.op.Kind), Details: map[string]string{"leg": string(v.op.Card.Leg), "part": strconv.Itoa(v.op.Part)}}
		if slot != "" {
			r.Details["slots"] = slot
		}
		reads = append(reads, r)
	}
	made, err := v.op.Card.Script(card.Materials{
		PUK: func(slot int) (secret.Text, error) {
			read("puk", strconv.Itoa(slot))
			return v.cred.PUK(l.core.Keys, t, slot)
		},
		AdminKey: func() (secret.Text, error) {
			read("adminKey", "")
			return v.cred.AdminKeyOf(l.core.Keys, t, l.template)
		},
		Policy: l.template.Policy,
	})
	if err != nil {
		return relay.Run{}, nil, err
	}
	run := relay.Run{
		Reader: v.op.Place.Reader, Insertion: v.op.Place.Insertion, Credential: v.cred.ID,
		Script: apdu.Script{Operation: v.op.ID, Part: v.op.Part, Fence: v.op.Fence, Deadline: us.Now().Add(beginWithin), Steps: made.Steps},
		Policy: made.Policy, Hold: made.Hold, Continue: v.op.Continue,
	}
	if made.Policy != nil {
		run.PIN = v.op.PIN
	}
	return run, reads, nil
}

func (us *Unblocks) post(ctx context.Context, connection string, m relay.Message) error {
	if connection == "" {
		return gateway.ErrGone
	}
	b, err := relay.Encode(m)
	if err != nil {
		return err
	}
	defer clear(b)
	return us.Connections.Post(ctx, connection, b)
}

func (us *Unblocks) newID() (string, error) {
	id, err := ulid.New(ulid.Timestamp(us.Now()), us.Rand)
	if err != nil {
		return "", fmt.Errorf("make an operation's id: %w", err)
	}
	return id.String(), nil
}

// place finds the card of an operation in its bridge's readers: where a person has typed
// the PIN, or else wherever it is.
func place(b tenant.Bridge, op Operation) (Place, tenant.Reader, bool) {
	sessions := []relay.Session{relay.Service, relay.Terminal}
	if op.Typed {
		sessions = []relay.Session{relay.Terminal}
	}
	for _, session := range sessions {
		for _, r := range b.Sessions[session].Readers {
			if r.Insertion != "" && CredentialOf(r) == op.Credential {
				return Place{session, r.Name, r.Insertion}, r, true
			}
		}
	}
	return Place{}, tenant.Reader{}, false
}

// CredentialOf is the id of the credential that a card in a reader has, or would have: it
// may have been registered after it was identified. "" if it is not identified.
func CredentialOf(r tenant.Reader) string {
	if r.Credential != "" || r.Identify.Leg != card.Done {
		return r.Credential
	}
	id, _ := credential.IDOf(r.Identify.Identity.Family, r.Identify.Identity.ID) // "" with an error
	return id
}
