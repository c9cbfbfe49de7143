//go:build !nopcsc && (windows || (cgo && (linux || darwin)))

package reader

import (
	"context"

	"github.com/ebfe/scard"
)

// WithoutPlugAndPlay makes p look for readers itself.
func (p *PCSC) WithoutPlugAndPlay() *PCSC {
	p.plugAndPlay = false
	return p
}

// OpenUnguarded is Open without the transaction, so that others can reset the card, as
// Windows does.
func (p *PCSC) OpenUnguarded(ctx context.Context, reader string, insertion int64) (*Session, error) {
	return p.slots.open(ctx, p.limits, reader, insertion, func(card any) (link, error) {
		l, err := p.dial(reader, card, scard.ShareShared)
		if err == nil {
			err = l.card.EndTransaction(scard.LeaveCard)
		}
		return l, err
	})
}

// CheckDirect is what Open makes of a connection without a protocol.
func (p *PCSC) CheckDirect(reader string) error {
	l := &pcscLink{}
	var err error
	if l.sc, err = scard.EstablishContext(); err != nil {
		return nil
	}
	defer l.sc.Release()
	if l.card, err = l.sc.Connect(reader, scard.ShareDirect, scard.ProtocolUndefined); err != nil {
		return nil
	}
	defer l.card.Disconnect(scard.LeaveCard)
	return l.check(reader, nil)
}

// TPDU is tpdu.
var TPDU = tpdu
