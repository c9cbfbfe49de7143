package softcard

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// The control bytes of vpcd, the virtual reader of vsmartcard: a frame with one of
// them alone is not a command. Only the last is answered.
const (
	vpcdPowerOff = 0x00
	vpcdPowerOn  = 0x01
	vpcdReset    = 0x02
	vpcdATR      = 0x04
)

// Serve inserts a card into the virtual reader that listens on a TCP address, as
// "127.0.0.1:35963", and returns when it is out again, as ServeConn does.
func Serve(ctx context.Context, address string, card *Card) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil && ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("insert card: %w", err)
	}
	return ServeConn(ctx, conn, card)
}

// ServeConn speaks vpcd's protocol for a card, in frames of a 2-byte length and as
// many bytes: to connect was to insert the card, to close conn is to remove it. It
// returns nil once ctx is done, the error of a fault that took the card out, and
// otherwise why the reader is gone. A card that a fault resets goes on, for that
// reader cannot be told.
func ServeConn(ctx context.Context, conn net.Conn, card *Card) error {
	defer card.PowerOff()
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	err := serve(conn, card)
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, ErrRemoved), errors.Is(err, ErrLost):
		return err
	}
	return fmt.Errorf("the virtual reader is gone: %w", err)
}

func serve(conn net.Conn, card *Card) error {
	frames := bufio.NewReader(conn)
	for {
		var length [2]byte
		if _, err := io.ReadFull(frames, length[:]); err != nil {
			return err
		}
		frame := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(frames, frame); err != nil {
			return err
		}
		answer, answered, err := card.handle(frame)
		if err != nil {
			return err
		}
		if !answered {
			continue
		}
		// In one write, so that Nagle's algorithm has nothing to wait for.
		out := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(answer)), uint16(len(answer)))
		if _, err := conn.Write(append(out, answer...)); err != nil {
			return err
		}
	}
}

func (c *Card) handle(frame []byte) (answer []byte, answered bool, err error) {
	if len(frame) > 1 {
		answer, err = c.Transmit(frame)
		if errors.Is(err, ErrReset) {
			answer, err = c.Transmit(frame)
		}
		return answer, true, err
	}
	if len(frame) == 1 {
		switch frame[0] {
		case vpcdPowerOff:
			c.PowerOff()
		case vpcdPowerOn:
			c.PowerOn()
		case vpcdReset:
			c.Reset()
		case vpcdATR:
			return c.atr, true, nil
		}
	}
	return nil, false, nil
}
