package apdu

import (
	"errors"
	"fmt"

	"github.com/pinward/pinward/shared/problem"
)

// Tag is a BER-TLV tag of one to three bytes, as they are written: 0x53, 0x7F71,
// 0x5FC102 (ISO 7816-4, 5.2.2.1).
type Tag uint32

// TLV is a BER-TLV data object. Whether the value holds further data objects is
// not told by the tag: PIV puts them under 53, which is primitive, and bytes
// under 30, which is constructed.
type TLV struct {
	Tag   Tag
	Value []byte
}

// ParseTLV reads the data objects that b consists of, to its last byte. Only
// definite lengths are taken, of one to five bytes and not always as short as
// possible: PivApplet writes 81 79. Padding between objects is not taken. The
// values are not copies, and nothing inside them is looked at: there is no
// nesting that could be too deep.
func ParseTLV(b []byte) ([]TLV, error) {
	var items []TLV
	for at := 0; at < len(b); {
		tag, n, err := parseTag(b[at:])
		if err != nil {
			return nil, fmt.Errorf("tag at %d: %w", at, err)
		}
		at += n
		length, n, err := parseLength(b[at:])
		if err != nil {
			return nil, fmt.Errorf("length of %s at %d: %w", tag, at, err)
		}
		at += n
		if length > uint64(len(b)-at) {
			return nil, fmt.Errorf("value of %s at %d: %d bytes of %d", tag, at, len(b)-at, length)
		}
		end := at + int(length)
		items = append(items, TLV{tag, b[at:end:end]})
		at = end
	}
	return items, nil
}

var errTruncated = errors.New("truncated")

func parseTag(b []byte) (tag Tag, n int, err error) {
	for n < len(b) && n < 3 {
		tag = tag<<8 | Tag(b[n])
		n++
		if n == 1 && b[0]&0x1F != 0x1F || n > 1 && b[n-1]&0x80 == 0 {
			if !tag.Valid() {
				return 0, 0, fmt.Errorf("%s is not a tag", tag)
			}
			return tag, n, nil
		}
	}
	if n == 3 {
		return 0, 0, errors.New("longer than 3 bytes")
	}
	return 0, 0, errTruncated
}

// parseLength reads a length field (ISO 7816-4, 5.2.2.2).
func parseLength(b []byte) (length uint64, n int, err error) {
	if len(b) == 0 {
		return 0, 0, errTruncated
	}
	if b[0] < 0x80 {
		return uint64(b[0]), 1, nil
	}
	n = 1 + int(b[0]&0x7F)
	switch {
	case n == 1:
		return 0, 0, errors.New("indefinite")
	case n > 5:
		return 0, 0, errors.New("longer than 5 bytes")
	case n > len(b):
		return 0, 0, errTruncated
	}
	for _, x := range b[1:n] {
		length = length<<8 | uint64(x)
	}
	return length, n, nil
}

// FindTLV returns the value of the first data object with the last tag of the
// path, inside the first with the tag before it, and so on: FindTLV(chuid, 0x53,
// 0x34). An empty path is b itself. If b, or a value on the way, is not BER-TLV,
// that is an error; without such an object the error is problem.ErrNotFound.
func FindTLV(b []byte, path ...Tag) ([]byte, error) {
next:
	for _, tag := range path {
		items, err := ParseTLV(b)
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			if item.Tag == tag {
				b = item.Value
				continue next
			}
		}
		return nil, fmt.Errorf("data object %s: %w", tag, problem.ErrNotFound)
	}
	return b, nil
}

// EncodeTLV writes data objects, with lengths as short as possible. Their tags
// must be valid.
func EncodeTLV(items ...TLV) []byte {
	var b []byte
	for _, item := range items {
		b = append(item.Tag.append(b), lengthOf(item.Value)...)
		b = append(b, item.Value...)
	}
	return b
}

func lengthOf(value []byte) []byte {
	switch n := len(value); {
	case n < 1<<7:
		return []byte{byte(n)}
	case n < 1<<8:
		return []byte{0x81, byte(n)}
	case n < 1<<16:
		return []byte{0x82, byte(n >> 8), byte(n)}
	default:
		return []byte{0x84, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	}
}

func (t Tag) append(b []byte) []byte {
	switch {
	case t > 0xFFFF:
		return append(b, byte(t>>16), byte(t>>8), byte(t))
	case t > 0xFF:
		return append(b, byte(t>>8), byte(t))
	default:
		return append(b, byte(t))
	}
}

// Valid tells whether the tag is one of ISO 7816-4, 5.2.2.1: not 00, its length
// as its bytes say, and a number of more than one byte not below 31.
func (t Tag) Valid() bool {
	const numberFollows, moreFollows = 0x1F, 0x80
	switch {
	case t <= 0xFF:
		return t != 0 && t&numberFollows != numberFollows
	case t <= 0xFFFF:
		return t>>8&numberFollows == numberFollows && t&moreFollows == 0 && t&0xFF >= 0x1F
	case t <= 0xFFFFFF:
		return t>>16&numberFollows == numberFollows && t>>8&moreFollows != 0 && t>>8&0x7F != 0 && t&moreFollows == 0
	default:
		return false
	}
}

// String shows the tag in hex.
func (t Tag) String() string { return fmt.Sprintf("%X", t.append(nil)) }
