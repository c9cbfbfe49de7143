package softcard

import "sync"

// Reader is a reader with at most one card in it. It behaves to a program as a PC/SC
// reader does: what was connected to a card never reaches another. It is safe for
// concurrent use.
type Reader struct {
	mu      sync.Mutex
	card    *Card
	changed chan struct{}
	changes int // how often it has
}

// NewReader returns an empty reader.
func NewReader() *Reader { return &Reader{changed: make(chan struct{})} }

// Insert puts a card in and powers it. A card that was in the reader is removed first.
func (r *Reader) Insert(card *Card) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.card != nil {
		r.card.PowerOff()
	}
	card.PowerOn()
	r.put(card)
}

// Remove takes the card out and returns it; it is nil if there was none.
func (r *Reader) Remove() *Card {
	r.mu.Lock()
	defer r.mu.Unlock()
	card := r.card
	if card != nil {
		card.PowerOff()
		r.put(nil)
	}
	return card
}

// put is called with mu held.
func (r *Reader) put(card *Card) {
	r.card = card
	r.changes++
	close(r.changed)
	r.changed = make(chan struct{})
}

// Card returns the card that is in the reader, or nil, and a channel that is closed
// when another is put in or this one is out.
func (r *Reader) Card() (*Card, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.card, r.changed
}

// inside is Card, and a number that no other insertion has.
func (r *Reader) inside() (card *Card, changed <-chan struct{}, insertion int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.card, r.changed, r.changes
}

// Connect connects to the card that is in the reader, as it is: a reset is up to the
// caller. Without a card the error is ErrRemoved.
func (r *Reader) Connect() (*Connection, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.card == nil {
		return nil, ErrRemoved
	}
	return &Connection{reader: r, card: r.card, changed: r.changed, resets: r.card.resetCount()}, nil
}

// Connection is a connection to one card, from its insertion to its removal.
type Connection struct {
	reader  *Reader
	card    *Card
	changed <-chan struct{}

	mu     sync.Mutex
	resets int // of the card, that this connection knows of
}

// ATR returns the card's answer to reset.
func (c *Connection) ATR() []byte { return c.card.ATR() }

// Transmit gives the card a command APDU and returns the response APDU. ErrRemoved
// stays for ever. ErrReset stays until Connect or Reset: the card has forgotten what
// was selected and verified.
func (c *Connection) Transmit(command []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check(); err != nil {
		return nil, err
	}
	answer, err := c.card.Transmit(command)
	if err == ErrRemoved {
		c.out()
	}
	return answer, err
}

// Reset resets the card. Other connections to it get ErrReset.
func (c *Connection) Reset() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check(); err == ErrRemoved {
		return err
	}
	c.card.Reset()
	c.resets = c.card.resetCount()
	return nil
}

func (c *Connection) check() error {
	select {
	case <-c.changed:
		return ErrRemoved
	default:
	}
	if c.card.resetCount() != c.resets {
		return ErrReset
	}
	return nil
}

// out takes out a card that a fault has pulled.
func (c *Connection) out() {
	c.reader.mu.Lock()
	defer c.reader.mu.Unlock()
	select {
	case <-c.changed: // another is in already
	default:
		c.reader.put(nil)
	}
}
