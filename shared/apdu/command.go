// Package apdu speaks to smart cards in their own words: commands and answers,
// status words, BER-TLV, and scripts of commands that are run as one. It does no
// I/O and reads no clock: whoever runs a script brings the function that sends
// bytes. Whatever a script asks, only what Allowed permits reaches a card, and
// nothing here prints the data of a command.
//
// Clauses of ISO 7816-4 are those of ISO/IEC 7816-4:2005, those of SP 800-73 of
// NIST SP 800-73-4 part 2 unless part 1 is named.
package apdu

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
)

// The lengths of ISO 7816-4, 5.1: a field in short form has one byte, in
// extended form two.
const (
	maxShortLc    = 255
	maxShortLe    = 256 // written 00
	maxExtendedLc = 65535
	maxExtendedLe = 65536 // written 0000
)

// chained is the bit of CLA that says that more parts of the command follow
// (ISO 7816-4, 5.1.1.1).
const chained = 0x10

// insGetResponse is GET RESPONSE (ISO 7816-4, 7.6.1).
const insGetResponse = 0xC0

// Command is a command APDU (ISO 7816-4, 5.1). However it is printed, its data
// is not shown, for it may hold a PIN, a PUK or the answer to a challenge.
type Command struct {
	CLA, INS, P1, P2 byte

	// Data is the data field, at most 65,535 bytes. Without any there is no Lc.
	Data []byte
	// Le is the most bytes that the answer's data may have, at most 65,536; 0
	// means that there is no Le. A lone Le of 256 is written 00.
	Le int
	// Extended makes the lengths be written in extended form even if the short
	// form would do.
	Extended bool
}

// ParseCommand reads a command APDU: cases 1 to 4 of ISO 7816-4, 5.1, in short
// or extended form, and nothing before or after. The command's data is not a
// copy.
func ParseCommand(b []byte) (Command, error) {
	if len(b) < 4 {
		return Command{}, fmt.Errorf("command of %d bytes: a header has 4", len(b))
	}
	c := Command{CLA: b[0], INS: b[1], P1: b[2], P2: b[3]}
	rest := b[4:]
	if len(rest) >= 2 && rest[0] == 0 { // 00 and more: extended
		if len(rest) == 2 {
			return Command{}, errors.New("command of 6 bytes: its fifth says that lengths are extended, and those have 2 bytes")
		}
		c.Extended = true
		length := int(binary.BigEndian.Uint16(rest[1:]))
		if len(rest) == 3 { // case 2
			c.Le = orMost(length, maxExtendedLe)
			return c, nil
		}
		if length == 0 {
			return Command{}, errors.New("command with an extended Lc of 0")
		}
		switch rest = rest[3:]; len(rest) {
		case length: // case 3
		case length + 2: // case 4
			c.Le = orMost(int(binary.BigEndian.Uint16(rest[length:])), maxExtendedLe)
		default:
			return Command{}, fmt.Errorf("command with Lc %d and %d bytes after it", length, len(rest))
		}
		c.Data = rest[:length]
		return c, nil
	}
	switch len(rest) {
	case 0: // case 1
		return c, nil
	case 1: // case 2
		c.Le = orMost(int(rest[0]), maxShortLe)
		return c, nil
	}
	length := int(rest[0])
	switch rest = rest[1:]; len(rest) {
	case length: // case 3
	case length + 1: // case 4
		c.Le = orMost(int(rest[length]), maxShortLe)
	default:
		return Command{}, fmt.Errorf("command with Lc %d and %d bytes after it", length, len(rest))
	}
	c.Data = rest[:length]
	return c, nil
}

// orMost reads the value of an Le field or of the second byte of 61xx and 6Cxx,
// in which 0 means the most.
func orMost(n, most int) int {
	if n == 0 {
		return most
	}
	return n
}

// Encode writes the command APDU, in short form where that is possible and not
// ruled out by Extended.
func (c Command) Encode() ([]byte, error) {
	if len(c.Data) > maxExtendedLc {
		return nil, fmt.Errorf("command %s: at most %d bytes of data can be sent", c, maxExtendedLc)
	}
	if c.Le < 0 || c.Le > maxExtendedLe {
		return nil, fmt.Errorf("command %s: Le %d is not between 0 and %d", c, c.Le, maxExtendedLe)
	}
	b := make([]byte, 0, 4+3+len(c.Data)+2)
	b = append(b, c.CLA, c.INS, c.P1, c.P2)
	if len(c.Data) == 0 && c.Le == 0 {
		return b, nil
	}
	if !c.Extended && len(c.Data) <= maxShortLc && c.Le <= maxShortLe {
		if len(c.Data) > 0 {
			b = append(append(b, byte(len(c.Data))), c.Data...)
		}
		if c.Le > 0 {
			b = append(b, byte(c.Le)) // 256 becomes 00
		}
		return b, nil
	}
	b = append(b, 0)
	if len(c.Data) > 0 {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(c.Data))), c.Data...)
	}
	if c.Le > 0 {
		b = binary.BigEndian.AppendUint16(b, uint16(c.Le)) // 65536 becomes 0000
	}
	return b, nil
}

// Chain splits a command into parts of at most 255 bytes of data (ISO 7816-4,
// 5.1.1.1), which are in short form if its Le is. A command that is not longer,
// or that is marked Extended, is its own only part. The parts share the
// command's data.
func (c Command) Chain() []Command {
	if c.Extended {
		return []Command{c}
	}
	var parts []Command
	for len(c.Data) > maxShortLc {
		part := c
		part.CLA |= chained
		part.Data, part.Le = c.Data[:maxShortLc], 0
		parts = append(parts, part)
		c.Data = c.Data[maxShortLc:]
	}
	return append(parts, c)
}

// String shows the header and the length of the data.
func (c Command) String() string {
	header := fmt.Sprintf("%02X %02X %02X %02X", c.CLA, c.INS, c.P1, c.P2)
	if len(c.Data) == 0 {
		return header
	}
	return fmt.Sprintf("%s [%d bytes]", header, len(c.Data))
}

// Format implements fmt.Formatter, so that no verb shows the data.
func (c Command) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// LogValue implements slog.LogValuer.
func (c Command) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON implements json.Marshaler: it writes what String shows. A command
// travels in EncodeScript or as what Encode returns.
func (c Command) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }

// Response is a response APDU (ISO 7816-4, 5.1).
type Response struct {
	Data []byte
	SW   SW
}

// ErrNoAnswer: what came back is shorter than an SW. A reader whose card was
// just pulled may return nothing and no error.
var ErrNoAnswer = errors.New("the card did not answer")

// ParseResponse reads a response APDU. The response's data is not a copy.
func ParseResponse(b []byte) (Response, error) {
	n := len(b) - 2
	if n < 0 {
		return Response{}, fmt.Errorf("answer of %d bytes: %w", len(b), ErrNoAnswer)
	}
	if n > maxExtendedLe {
		return Response{}, fmt.Errorf("answer with %d bytes of data, more than %d", n, maxExtendedLe)
	}
	return Response{Data: b[:n:n], SW: SW(binary.BigEndian.Uint16(b[n:]))}, nil
}

// Encode writes the response APDU.
func (r Response) Encode() []byte {
	b := append(make([]byte, 0, len(r.Data)+2), r.Data...)
	return binary.BigEndian.AppendUint16(b, uint16(r.SW))
}

// Transmitter sends a card one command APDU and returns the response APDU. The
// command is overwritten once it returns, so it must not be kept.
type Transmitter func(ctx context.Context, command []byte) ([]byte, error)

// maxFollowing is how many GET RESPONSE one command may take.
const maxFollowing = maxExtendedLe / maxShortLe

// Transmit performs one command as the card wants it: data of more than 255
// bytes is chained (unless the command is marked Extended), 61xx is followed by
// GET RESPONSE, and a command with a wrong Le is sent once more with the one that
// 6Cxx asks for. A command without Le is never sent twice, so that no PUK is
// presented twice. The response has the data of all answers and the last SW. If
// a part of a chain is refused, that is the response.
func Transmit(ctx context.Context, send Transmitter, c Command) (Response, error) {
	r, _, err := transmit(ctx, send, c)
	return r, err
}

// transmit tells in addition whether the whole command was handed over, so that
// it may have taken effect whatever the error.
func transmit(ctx context.Context, send Transmitter, c Command) (r Response, sent bool, err error) {
	parts := c.Chain()
	last := len(parts) - 1
	for _, part := range parts[:last] {
		if r, _, err = exchange(ctx, send, part); err != nil || r.SW != SWOK {
			return r, false, err
		}
	}
	c = parts[last]
	if r, sent, err = exchange(ctx, send, c); err != nil {
		return Response{}, sent, err
	}
	var data []byte
	corrected := false
	for following := 0; ; {
		more, isMore := r.SW.More()
		le, isWrong := r.SW.RightLe()
		if isWrong && c.Le > 0 && !corrected {
			c.Le, corrected = le, true
		} else if data = append(data, r.Data...); len(data) > maxExtendedLe {
			return Response{}, true, fmt.Errorf("command %s: more than %d bytes of answer", c, maxExtendedLe)
		} else if isMore {
			if following++; following > maxFollowing {
				return Response{}, true, fmt.Errorf("command %s: more than %d GET RESPONSE", c, maxFollowing)
			}
			// The class keeps its logical channel only (ISO 7816-4, 5.1.1).
			c = Command{CLA: c.CLA & 0x03, INS: insGetResponse, Le: more}
			corrected = false
		} else {
			return Response{Data: data, SW: r.SW}, true, nil
		}
		if r, _, err = exchange(ctx, send, c); err != nil {
			return Response{}, true, err
		}
	}
}

func exchange(ctx context.Context, send Transmitter, c Command) (r Response, sent bool, err error) {
	if err := ctx.Err(); err != nil {
		return Response{}, false, err
	}
	command, err := c.Encode()
	if err != nil {
		return Response{}, false, err
	}
	defer clear(command)
	answer, err := send(ctx, command)
	if err != nil {
		return Response{}, true, err
	}
	r, err = ParseResponse(answer)
	return r, true, err
}
