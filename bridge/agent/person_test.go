package agent_test

import (
	"context"
	"errors"
	"testing"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

func atTerminal(c *agent.Config) { c.Session = relay.Terminal }

// request waits for a person's request and answers it.
func (c *connection) request(what string, ref func(relay.Message) (string, bool), answer func(ref string) relay.Message) relay.Message {
	c.t.Helper()
	var name string
	m := c.want(what, func(m relay.Message) (ok bool) { name, ok = ref(m); return ok })
	c.send(answer(name))
	return m
}

func operation(next relay.Next) func(ref string) relay.Message {
	return func(ref string) relay.Message {
		return relay.Message{Operation: &relay.Operation{Ref: ref, ID: "op", Credential: "C1", Next: next, State: "proven"}}
	}
}

func isReady(m relay.Message) (string, bool) {
	if m.Ready == nil {
		return "", false
	}
	return m.Ready.Ref, true
}

// TestTypedPIN: the PIN typed at the bridge is for one operation, is checked, and is gone
// once it was used, refused, or the operation is over.
func TestTypedPIN(t *testing.T) {
	w, conn, c, p := known(t, softcard.GIDS, atTerminal)
	ready := func(typed string) {
		t.Helper()
		answered := make(chan error, 1)
		go func() {
			op, err := w.Ready(context.Background(), "op", []byte(typed))
			if err == nil && op.Next != relay.NextWait {
				err = errors.New(string(op.Next))
			}
			answered <- err
		}()
		conn.request("ready", isReady, operation(relay.NextWait))
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
	}
	state := begun(t, p.identity)
	next := func(operation string, part int, fence int64) relay.Run {
		run := p.next(t, state, operation, part, fence)
		run.Continue = state.Leg != begun(t, p.identity).Leg
		return run
	}
	part := 0
	want := func(operation string, fence int64, refusal relay.Refusal) relay.Result {
		t.Helper()
		part++
		r := conn.run(next(operation, part, fence))
		conn.ack(r)
		if r.Refusal != refusal {
			t.Fatalf("part %d: %+v, want %q", part, r, refusal)
		}
		return r
	}
	want("op", 1, relay.RefusedNoPIN)
	ready("1234")
	want("op", 1, relay.RefusedPIN)
	want("op", 1, relay.RefusedNoPIN) // for it is forgotten
	ready(newPIN)
	want("other", 2, relay.RefusedNoPIN)
	state, _ = state.Next(want("op", 3, "").Run)
	if r := want("op", 3, ""); r.Run.End != apdu.Done || !c.PINIs(newPIN) {
		t.Errorf("%+v", r)
	}
	state = begun(t, p.identity)
	want("op", 3, relay.RefusedNoPIN) // for it is used
	ready(newPIN)
	conn.send(relay.Message{Operation: &relay.Operation{ID: "op", Next: relay.NextNothing, State: "failed"}})
	if op := <-w.News(); op.State != "failed" {
		t.Errorf("news: %+v", op)
	}
	want("op", 3, relay.RefusedNoPIN) // for it is over
	if state.Leg == card.Done {
		t.Error(state)
	}
}

func TestRequests(t *testing.T) {
	w := newWorld(t, atTerminal)
	conn := w.accept(welcome)
	type asked struct {
		op  relay.Operation
		err error
	}
	answers := make(chan asked, 1)
	ask := func(f func(context.Context) (relay.Operation, error)) {
		go func() {
			op, err := f(context.Background())
			answers <- asked{op, err}
		}()
	}
	ask(func(ctx context.Context) (relay.Operation, error) { return w.Start(ctx, "Soft", "i1") })
	m := conn.request("start", func(m relay.Message) (string, bool) {
		if m.Start == nil {
			return "", false
		}
		return m.Start.Ref, true
	}, operation(relay.NextCode))
	if got := <-answers; got.err != nil || got.op.ID != "op" || m.Start.Reader != "Soft" || m.Start.Insertion != "i1" {
		t.Errorf("%+v: %+v", m.Start, got)
	}
	ask(func(ctx context.Context) (relay.Operation, error) {
		return w.Prove(ctx, "op", relay.Code{Text: secret.New("402817")})
	})
	m = conn.request("prove", func(m relay.Message) (string, bool) {
		if m.Prove == nil {
			return "", false
		}
		return m.Prove.Ref, true
	}, func(ref string) relay.Message {
		return relay.Message{Problem: &relay.Problem{Ref: ref, Code: "wrong", Reason: "No."}}
	})
	var problem *agent.ProblemError
	if got := <-answers; !errors.As(got.err, &problem) || problem.Code != "wrong" || m.Prove.Code.Reveal() != "402817" {
		t.Errorf("%+v: %+v", m.Prove, got)
	}
	// The connection is lost before the answer; what is asked without one waits for it.
	ask(func(ctx context.Context) (relay.Operation, error) { return w.Cancel(ctx, "op") })
	conn.want("cancel", func(m relay.Message) bool { return m.Cancel != nil })
	conn.ws.Close()
	if got := <-answers; !errors.Is(got.err, agent.ErrDisconnected) {
		t.Errorf("%+v", got)
	}
	ask(func(ctx context.Context) (relay.Operation, error) { return w.Look(ctx, "op") })
	conn = w.accept(welcome)
	conn.request("look", func(m relay.Message) (string, bool) {
		if m.Look == nil {
			return "", false
		}
		return m.Look.Ref, true
	}, operation(relay.NextWait))
	if got := <-answers; got.err != nil || got.op.Next != relay.NextWait {
		t.Errorf("%+v", got)
	}
	// Told to go, it says so to who asks.
	ask(func(ctx context.Context) (relay.Operation, error) { return w.Look(ctx, "op") })
	conn.want("look", func(m relay.Message) bool { return m.Look != nil })
	conn.send(relay.Message{Goodbye: &relay.Goodbye{Code: relay.Replaced, Reason: "another"}})
	if got := <-answers; got.err == nil {
		t.Errorf("%+v", got)
	}
	_ = w.waitEnd()
	var goodbye *agent.GoodbyeError
	if _, err := w.Look(context.Background(), "op"); !errors.As(err, &goodbye) {
		t.Errorf("after the end: %v", err)
	}
}
