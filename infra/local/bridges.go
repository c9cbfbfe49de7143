package main

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/http"
	"sync"

	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/relay"
)

// bridges is the relay beside a clock that is put forward. It implements gateway.Socket.
type bridges struct {
	gateway.Socket
	// door lets bridges in by the machine's own time: a bridge in a process of its own knows
	// no other, and the ids of a bridge's tokens rise with it, also when the clock has been
	// set right.
	door gateway.Socket

	mu     sync.Mutex
	hellos map[string][]byte // by connection: as which session it has said hello
}

// Connect implements gateway.Socket.
func (b *bridges) Connect(ctx context.Context, connection string, header http.Header) int {
	return b.door.Connect(ctx, connection, header)
}

// Message implements gateway.Socket.
func (b *bridges) Message(ctx context.Context, connection string, data []byte) error {
	if m, err := relay.Decode(data); err == nil && m.Hello != nil {
		b.mu.Lock()
		b.hellos[connection] = bytes.Clone(data)
		b.mu.Unlock()
	}
	return b.Socket.Message(ctx, connection, data)
}

// Disconnect implements gateway.Socket.
func (b *bridges) Disconnect(ctx context.Context, connection string) error {
	b.mu.Lock()
	delete(b.hellos, connection)
	b.mu.Unlock()
	return b.Socket.Disconnect(ctx, connection)
}

// tellTime tells all bridges the clock's time, as if each had said hello just now: they
// refuse scripts whose deadlines are too far ahead.
func (b *bridges) tellTime(ctx context.Context) error {
	b.mu.Lock()
	hellos := maps.Clone(b.hellos)
	b.mu.Unlock()
	var errs []error
	for connection, hello := range hellos {
		errs = append(errs, b.Socket.Message(ctx, connection, hello))
	}
	return errors.Join(errs...)
}
