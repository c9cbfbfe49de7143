//go:build nopcsc || !(windows || (cgo && (linux || darwin)))

package reader

import "context"

// PCSC stands in for the readers of PC/SC in a build without it.
type PCSC struct{}

// NewPCSC returns a source without readers.
func NewPCSC(Limits) *PCSC { return &PCSC{} }

// Watch tells that the service is down: ErrNoPCSC.
func (*PCSC) Watch(ctx context.Context) <-chan Event {
	return newSlots().watch(ctx, func(tell func(...Event) bool) {
		if tell(Event{Kind: ServiceDown, Err: ErrNoPCSC}) {
			<-ctx.Done()
		}
	})
}

// Open returns ErrNoPCSC.
func (*PCSC) Open(context.Context, string, int64) (*Session, error) { return nil, ErrNoPCSC }
