package softcard

import "hash/maphash"

// Digest is the state of a card, to be compared: PIN and PUK with their tries, what is
// selected, verified and authenticated, and what is half read or sent. Of the clones of
// one card, those with equal Digests answer alike to all that a bridge lets through.
// What is not in it, and must be the same: objects, files and keys, which no bridge
// writes, the faults to come, and the counts of State.
type Digest struct {
	pin, puk               referenceDigest
	pinChanged, pukChanged bool
	powered, selected      bool
	verified, admin        bool
	chosen, building       bool
	awaits                 byte
	keys                   uint8
	current                uint16
	pending                uint64 // 0 if nothing is
}

type referenceDigest struct {
	value        [16]byte
	length, left uint8
}

// Digest returns it. It takes well under a microsecond.
func (c *Card) Digest() Digest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var s State
	c.app.inspect(&s)
	d := Digest{
		powered: c.powered, selected: c.selected, building: c.building,
		verified: s.PINVerified, admin: s.AdminVerified, keys: uint8(s.Keys),
	}
	c.app.digest(&d)
	d.add(c.rest)
	if c.building {
		d.add([]byte{c.chain.CLA, c.chain.INS, c.chain.P1, c.chain.P2})
		d.add(c.chain.Data)
	}
	if c.waiting != nil {
		d.add(c.waiting)
		d.add(c.answer.Encode())
	}
	return d
}

var digestSeed = maphash.MakeSeed()

// add takes in what has no room of its own.
func (d *Digest) add(b []byte) {
	d.pending *= 0x9E3779B97F4A7C15 // so that the order counts
	if len(b) > 0 {
		d.pending += maphash.Bytes(digestSeed, b)
	}
}

// digest: what can be set has at most 16 bytes.
func (r *reference) digest() referenceDigest {
	d := referenceDigest{length: uint8(len(r.value)), left: uint8(r.left)}
	copy(d.value[:], r.value)
	return d
}
