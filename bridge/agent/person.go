package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

// typed is a new PIN that a person has typed for an operation.
type typed struct {
	operation string
	pin       []byte
}

func (t *typed) wipe() {
	clear(t.pin)
	*t = typed{}
}

func (a *Agent) typedPIN(operation string) secret.Text {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.typed.operation != operation {
		return secret.Text{}
	}
	return secret.New(string(a.typed.pin))
}

// Forget wipes the PIN that was typed for an operation.
func (a *Agent) Forget(operation string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.typed.operation == operation {
		a.typed.wipe()
	}
}

// ErrDisconnected: the connection was lost before the answer came. Whether the request was
// met tells Look.
var ErrDisconnected = errors.New("the connection was lost")

// ProblemError is a request that the cloud could not meet.
type ProblemError struct{ relay.Problem }

// Error implements error.
func (e *ProblemError) Error() string { return e.Reason }

type request struct {
	ref     string
	message relay.Message
	answer  chan<- answer
}

type answer struct {
	operation relay.Operation
	opened    relay.Opened
	err       error
}

// Start asks for the unblock of the card in a reader; insertion is from Readers. Like the
// other requests it waits for a connection, and its errors are *ProblemError,
// ErrDisconnected, the context's, and why Run has ended.
func (a *Agent) Start(ctx context.Context, reader, insertion string) (relay.Operation, error) {
	return a.ask(ctx, func(ref string) relay.Message {
		return relay.Message{Start: &relay.Start{Ref: ref, Reader: reader, Insertion: insertion, LogonScreen: a.LogonScreen}}
	})
}

// Prove gives the code that was mailed.
func (a *Agent) Prove(ctx context.Context, operation string, code relay.Code) (relay.Operation, error) {
	return a.ask(ctx, func(ref string) relay.Message {
		return relay.Message{Prove: &relay.Prove{Ref: ref, Operation: operation, Code: code}}
	})
}

// Ready keeps the new PIN for the operation's scripts, and lets them begin. The PIN is
// copied; it stays until a script has used it, the policy has refused it, or Forget.
func (a *Agent) Ready(ctx context.Context, operation string, newPIN []byte) (relay.Operation, error) {
	a.mu.Lock()
	a.typed.wipe()
	a.typed = typed{operation, append([]byte(nil), newPIN...)}
	a.mu.Unlock()
	return a.ask(ctx, func(ref string) relay.Message {
		return relay.Message{Ready: &relay.Ready{Ref: ref, Operation: operation}}
	})
}

// Cancel gives up an operation that has not begun.
func (a *Agent) Cancel(ctx context.Context, operation string) (relay.Operation, error) {
	a.Forget(operation)
	return a.ask(ctx, func(ref string) relay.Message {
		return relay.Message{Cancel: &relay.Cancel{Ref: ref, Operation: operation}}
	})
}

// Look asks how an operation stands.
func (a *Agent) Look(ctx context.Context, operation string) (relay.Operation, error) {
	return a.ask(ctx, func(ref string) relay.Message {
		return relay.Message{Look: &relay.Look{Ref: ref, Operation: operation}}
	})
}

// OpenPage asks for a web page for who is at this bridge. Its errors are as Start's.
func (a *Agent) OpenPage(ctx context.Context, kiosk bool) (relay.Opened, error) {
	got, err := a.request(ctx, func(ref string) relay.Message {
		return relay.Message{Open: &relay.Open{Ref: ref, Kiosk: kiosk}}
	})
	return got.opened, err
}

// Over is closed when Run has ended.
func (a *Agent) Over() <-chan struct{} { return a.over }

// News are operations as they change, unasked. If nobody reads them the oldest are lost.
func (a *Agent) News() <-chan relay.Operation { return a.news }

func (a *Agent) ask(ctx context.Context, message func(ref string) relay.Message) (relay.Operation, error) {
	got, err := a.request(ctx, message)
	return got.operation, err
}

func (a *Agent) request(ctx context.Context, message func(ref string) relay.Message) (answer, error) {
	b := make([]byte, 8)
	if _, err := io.ReadFull(a.Rand, b); err != nil {
		return answer{}, fmt.Errorf("name a request: %w", err)
	}
	ref := hex.EncodeToString(b)
	answers := make(chan answer, 1)
	select {
	case a.requests <- request{ref, message(ref), answers}:
	case <-a.over:
		return answer{}, a.ended()
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
	select {
	case got := <-answers:
		return got, got.err
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
}

// ended is why Run has ended.
func (a *Agent) ended() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		return ErrDisconnected
	}
	return a.err
}

// answered passes on what the cloud says to a person.
func (a *Agent) answered(ref string, got answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if got.operation.Next == relay.NextNothing && a.typed.operation == got.operation.ID {
		a.typed.wipe()
	}
	if waiter, ok := a.waiters[ref]; ok {
		delete(a.waiters, ref)
		waiter <- got
		return
	}
	if a.Session != relay.Terminal || got.operation.ID == "" {
		return
	}
	for {
		select {
		case a.news <- got.operation:
			return
		default:
		}
		select {
		case <-a.news:
		default:
		}
	}
}
