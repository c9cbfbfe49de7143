// Package softcard holds smart cards in software: two PIV cards that answer as
// differently as real ones do, and a GIDS card. What they answer was recorded from
// real card applications, and the tests replay the recordings. A card counts tries as
// a chip does: whatever it is sent, whatever fault is injected, no counter rises but
// by the right PIN, PUK or admin key, or when a PIV card with both blocked is made new.
//
// Clauses of ISO 7816-4 are those of ISO/IEC 7816-4:2005, those of SP 800-73 of
// NIST SP 800-73-4 part 2 unless part 1 is named.
package softcard

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/problem"
)

// Profile says which real card a card behaves like.
type Profile string

// The profiles.
const (
	PivApplet Profile = "pivapplet" // PIV; erases its keys once PIN and PUK are blocked
	CanoKey   Profile = "canokey"   // PIV; takes anything of 8 bytes for a PIN
	GIDS      Profile = "gids"      // GIDS, with a 3DES admin key and no PUK
)

// Profiles lists them all.
var Profiles = []Profile{PivApplet, CanoKey, GIDS}

// FactoryAdminKey is the admin key of a card that nobody has changed.
var FactoryAdminKey = bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7, 8}, 3)

// The PIN and the PUK of a card that nobody has changed.
const (
	FactoryPIN = "123456"
	FactoryPUK = "12345678"
)

// Config says how a card is made. Without a field it is as from the factory.
type Config struct {
	Profile Profile
	PIN     string // PIV: 6 to 8 bytes; GIDS: 4 to 16
	PUK     string // PIV: 8 bytes; GIDS: none
	// AdminKey is the management key 9B or the admin key, and Algorithm its reference
	// in SP 800-78-4, table 6-2: 03 3DES (if 0), 08, 0A and 0C AES. GIDS has 3DES only.
	AdminKey  []byte
	Algorithm byte
	ID        []byte // 16 bytes: PIV the GUID, GIDS the card id; random without
	FASCN     []byte // PIV: 25 bytes
	Blank     bool   // GIDS: not initialized, so that there is no PIN and no admin key
	Blocked   bool   // the PIN has no try left, at first
	// Chunk is the most data that an answer has before 61xx follows; 0 as the real
	// card does.
	Chunk int
	// ExactLe makes the card answer 6Cxx to any Le but the right one.
	ExactLe bool
	// Rand gives challenges and random ids, also to a card's clones: what always gives the
	// same makes equal cards answer alike.
	Rand io.Reader
}

// Validate returns every violation of the above at once.
func (c Config) Validate() error {
	var vs problem.Violations
	if !slices.Contains(Profiles, c.Profile) {
		vs.Add("unknown", "profile", "must be one of %v", Profiles)
	}
	pinMin, pinMax, pukLength := 6, 8, 8
	if c.Profile == GIDS {
		pinMin, pinMax, pukLength = gidsPINMin, gidsPINMax, 0
	}
	if n := len(c.PIN); n != 0 && (n < pinMin || n > pinMax) {
		vs.Add("length", "pin", "must have %d to %d bytes", pinMin, pinMax)
	}
	if n := len(c.PUK); n != 0 && n != pukLength {
		vs.Add("length", "puk", "must have %d bytes", pukLength)
	}
	if c.Profile == GIDS && c.Algorithm != 0 && c.Algorithm != tdes {
		vs.Add("unknown", "algorithm", "must be 03")
	} else if n := keyLength(c.algorithm()); n == 0 {
		vs.Add("unknown", "algorithm", "must be 03, 08, 0A or 0C")
	} else if len(c.adminKey()) != n {
		vs.Add("length", "adminKey", "must have %d bytes", n)
	}
	if n := len(c.ID); n != 0 && n != 16 {
		vs.Add("length", "id", "must have 16 bytes")
	}
	if n := len(c.FASCN); n != 0 && (n != 25 || c.Profile == GIDS) {
		vs.Add("length", "fascn", "must have 25 bytes, and be on a PIV card")
	}
	if c.Blocked && c.Blank {
		vs.Add("inconsistent", "blocked", "must be false, for a blank card has no PIN")
	}
	if c.Chunk < 0 || c.Chunk > 256 {
		vs.Add("range", "chunk", "must be 0 to 256")
	}
	if c.Rand == nil {
		vs.Add("missing", "rand", "must be given")
	}
	return vs.Err()
}

func (c Config) algorithm() byte  { return orElse(c.Algorithm, tdes) }
func (c Config) pin() string      { return orElse(c.PIN, FactoryPIN) }
func (c Config) puk() string      { return orElse(c.PUK, FactoryPUK) }
func (c Config) adminKey() []byte { return slices.Clone(orElseBytes(c.AdminKey, FactoryAdminKey)) }

func orElse[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

func orElseBytes(value, otherwise []byte) []byte {
	if len(value) == 0 {
		return otherwise
	}
	return value
}

// What a reader says when there is no answer.
var (
	ErrRemoved = errors.New("the card was removed")
	ErrReset   = errors.New("the card was reset")
	ErrLost    = errors.New("the answer was lost")
)

// application is what a card answers with. It is called by one goroutine at a time.
type application interface {
	// name is its full AID, and selected what SELECT by name answers. What the
	// application forgets when it is selected again, it forgets then.
	name() []byte
	selected(apdu.Command) apdu.Response
	// refuses returns the SW for a class that it does not take or a chain that it
	// does not build, and otherwise 0.
	refuses(apdu.Command) apdu.SW
	// perform carries out a command, all parts of a chain in one.
	perform(apdu.Command) apdu.Response
	// reset forgets what does not survive the loss of power.
	reset()
	inspect(*State)
	// clone returns an independent copy.
	clone() application
	// digest fills in what the application has to a Digest.
	digest(*Digest)
	save(*savedCard)
	load(savedCard) error
	// pinIs, pukIs and adminKeyIs compare and count nothing.
	pinIs(string) bool
	pukIs(string) bool
	adminKeyIs([]byte) bool
	// chunk is the most data that an answer has.
	chunk() int
}

// Card is a card. It is safe for concurrent use: commands are carried out one after
// the other.
type Card struct {
	wire sync.Mutex // held from a command to its answer
	mu   sync.Mutex // guards what follows
	body
	tap  func(command []byte)
	file *file
}

// body is all that a card is made of. What its slices and maps hold is replaced and
// never changed, and so it is with applications: a copy has them in common.
type body struct {
	profile Profile // this and the next three never change
	atr     []byte
	chunk   int
	exactLe bool

	app      application
	powered  bool
	resets   int // how often power or reset came, so that a slow command notices
	selected bool
	chain    apdu.Command // the parts so far, if building
	building bool
	rest     []byte        // what GET RESPONSE returns
	waiting  []byte        // a command that was answered 6Cxx, without its Le,
	answer   apdu.Response // and its answer

	faults      []Fault
	step        int
	commands    int
	secretBytes int
}

func (b body) copy() body {
	b.app = b.app.clone()
	return b
}

// New makes a card. It is powered, as if just inserted.
func New(c Config) (*Card, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	card := &Card{body: body{profile: c.Profile, exactLe: c.ExactLe, powered: true}}
	var err error
	if c.Profile == GIDS {
		card.atr = gidsATR
		card.app, err = newGIDS(c)
	} else {
		traits := pivTraits[c.Profile]
		card.atr = traits.atr
		card.app, err = newPIV(c, traits)
	}
	if err != nil {
		return nil, err
	}
	card.chunk = orElse(c.Chunk, card.app.chunk())
	return card, nil
}

// Clone returns an independent copy of the card as it is now: powered or not, with what
// is selected, verified and half read or sent, with its counts, and with the faults that
// are still to come. It is in no reader, in no file, and has no Tap. It takes less than
// a microsecond.
func (c *Card) Clone() *Card {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &Card{body: c.body.copy()}
}

// Tap has f called with every command that the card gets, whole or not, before it is
// carried out; f must not use the card. Those that a fault keeps from the card are not
// among them. nil ends it.
func (c *Card) Tap(f func(command []byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tap = f
}

// Profile tells which card it is like.
func (c *Card) Profile() Profile { return c.profile }

// ATR returns the answer to reset.
func (c *Card) ATR() []byte { return slices.Clone(c.atr) }

// PowerOn powers the card up, which resets it.
func (c *Card) PowerOn() { c.power(true) }

// PowerOff takes its power: what it was to forget, it forgets, and commands end in
// ErrRemoved.
func (c *Card) PowerOff() { c.power(false) }

// Reset resets the card if it is powered.
func (c *Card) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.powered {
		c.reset()
	}
}

func (c *Card) power(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.powered = on
	c.reset()
}

// reset is called with mu held.
func (c *Card) reset() {
	c.resets++
	c.selected, c.building = false, false
	c.rest, c.waiting = nil, nil
	c.app.reset()
}

func (c *Card) resetCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.resets
}

// State is what a test may know of a card.
type State struct {
	Selected          bool // its application
	PINVerified       bool
	AdminVerified     bool
	PINTries, PINMost int // left, and after a success; 0 left is blocked
	PUKTries, PUKMost int // GIDS: 0
	Keys              int // private keys that can be used
	Commands          int // received since it was made, whole or in part
	// SecretBytes counts what came in the data of commands that hold a PIN, a PUK or
	// a key, whatever the card made of them.
	SecretBytes int
}

// Inspect returns the card's state.
func (c *Card) Inspect() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := State{Selected: c.selected, Commands: c.commands, SecretBytes: c.secretBytes}
	c.app.inspect(&s)
	return s
}

// PINIs tells whether this is the PIN; it costs no try.
func (c *Card) PINIs(pin string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.app.pinIs(pin)
}

// PUKIs tells whether this is the PUK; it costs no try.
func (c *Card) PUKIs(puk string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.app.pukIs(puk)
}

// AdminKeyIs tells whether this is the admin key.
func (c *Card) AdminKeyIs(key []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.app.adminKeyIs(key)
}

// Transmit gives the card a command APDU and returns the response APDU. An error is
// ErrRemoved or a fault that was injected.
func (c *Card) Transmit(command []byte) ([]byte, error) {
	c.wire.Lock()
	defer c.wire.Unlock()
	faults, delay, before := c.next()
	if delay > 0 {
		time.Sleep(delay)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.powered:
		return nil, ErrRemoved
	case c.resets != before:
		return nil, ErrReset
	}
	lost := false
	for _, f := range faults {
		switch f.Kind {
		case Pull:
			c.powered = false
			c.reset()
			return nil, ErrRemoved
		case ResetCard:
			c.reset()
			return nil, ErrReset
		case WrongSW:
			c.count(command)
			return apdu.Response{SW: f.SW}.Encode(), nil
		case Empty:
			return nil, nil
		case Lose:
			lost = true
		}
	}
	c.count(command)
	answer := c.keep(command)
	if lost {
		return nil, ErrLost
	}
	return answer.Encode(), nil
}

// next returns the faults of this step and what all its delays add up to.
func (c *Card) next() (faults []Fault, delay time.Duration, resets int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.step++
	for _, f := range c.faults {
		if f.Step == c.step {
			faults = append(faults, f)
			delay += f.Delay
		}
	}
	return faults, delay, c.resets
}

// maxChain is the most data that a chain may have.
const maxChain = 4096

// Instructions that every application has (ISO 7816-4, 7.1.1 and 7.6.1).
const (
	insSelect      = 0xA4
	insGetResponse = 0xC0
)

// chained is the bit of CLA that says that more parts follow (ISO 7816-4, 5.1.1.1).
const chained = 0x10

// count counts a command that the card gets, whole or not, well formed or not.
func (c *Card) count(b []byte) {
	c.commands++
	if c.tap != nil {
		c.tap(slices.Clone(b))
	}
	if len(b) < 5 {
		return
	}
	switch b[1] {
	case insVerify, insChangeReferenceData, insResetRetryCounter, insSetManagementKey:
	case insPutData: // of an admin key, on GIDS
		if c.profile != GIDS || b[2] != 0x3F || b[3] != 0xFF {
			return
		}
	default:
		return
	}
	if command, err := apdu.ParseCommand(b); err == nil {
		c.secretBytes += len(command.Data)
	} else {
		c.secretBytes += len(b) - 5
	}
}

func (c *Card) receive(b []byte) apdu.Response {
	b = slices.Clone(b) // it is the sender's, and the card keeps parts of it
	command, err := apdu.ParseCommand(b)
	if err != nil {
		return status(apdu.SWWrongLength)
	}
	if command.INS == insGetResponse && !c.building {
		return c.chunked(command, apdu.Response{Data: c.rest, SW: apdu.SWOK}, apdu.SWConditionsNotSatisfied)
	}
	c.rest = nil
	if c.selected {
		if sw := c.app.refuses(command); sw != 0 {
			c.building = false
			return status(sw)
		}
	}
	if whole, sw := c.collect(command); sw != 0 {
		return status(sw)
	} else {
		command = whole
	}
	key := command
	key.Le = 0
	same, err := key.Encode()
	if err != nil {
		return status(apdu.SWWrongLength)
	}
	answer := c.answer
	if c.waiting == nil || !bytes.Equal(same, c.waiting) {
		answer = c.perform(command)
	}
	c.waiting = nil
	if n := len(answer.Data); c.exactLe && command.Le > 0 && command.Le != n && 0 < n && n <= 256 {
		c.waiting, c.answer = same, answer
		return status(0x6C00 | apdu.SW(n&0xFF))
	}
	return c.chunked(command, answer, answer.SW)
}

// collect puts a chain together. A command that is not the next part of a chain
// ends it. The SW is that of a part that was taken or refused, 0 if the command is
// whole.
func (c *Card) collect(command apdu.Command) (apdu.Command, apdu.SW) {
	more := command.CLA&chained != 0
	command.CLA &^= chained
	if c.building && (c.chain.CLA != command.CLA || c.chain.INS != command.INS || c.chain.P1 != command.P1 || c.chain.P2 != command.P2) {
		c.building = false
	}
	if c.building {
		command.Data = slices.Concat(c.chain.Data, command.Data)
	}
	if c.building = more; !more {
		return command, 0
	}
	if len(command.Data) > maxChain {
		c.building = false
		return command, apdu.SWNotEnoughMemory
	}
	c.chain = command
	return command, apdu.SWOK
}

func (c *Card) perform(command apdu.Command) apdu.Response {
	if command.INS == insSelect && command.P1 == 0x04 {
		// A name may be cut short, but not shorter than the RID (ISO 7816-4, 8.2.1.2).
		if len(command.Data) < 5 || !bytes.HasPrefix(c.app.name(), command.Data) {
			return status(apdu.SWNotFound)
		}
		c.selected = true
		return c.app.selected(command)
	}
	if !c.selected {
		return status(apdu.SWCommandNotAllowed)
	}
	return c.app.perform(command)
}

// chunked returns as much of an answer as goes at once; none is answered with empty.
func (c *Card) chunked(command apdu.Command, answer apdu.Response, empty apdu.SW) apdu.Response {
	if len(answer.Data) == 0 {
		return status(empty)
	}
	n := min(len(answer.Data), orElse(command.Le, 256), c.chunk)
	c.rest = answer.Data[n:]
	answer.Data = answer.Data[:n]
	if left := len(c.rest); left > 0 {
		answer.SW = 0x6100 | apdu.SW(min(left, c.chunk, 256)&0xFF)
	}
	return answer
}

func status(sw apdu.SW) apdu.Response { return apdu.Response{SW: sw} }

func data(b []byte) apdu.Response { return apdu.Response{Data: b, SW: apdu.SWOK} }

// reference is a PIN or PUK with its retry counter.
type reference struct {
	value      []byte
	left, most int
}

// check compares and counts. With no try left, or never set, nothing is right.
func (r *reference) check(candidate []byte) bool {
	if r.left == 0 || len(r.value) == 0 {
		return false
	}
	if !bytes.Equal(candidate, r.value) {
		r.left--
		return false
	}
	r.left = r.most
	return true
}

func (r *reference) set(value []byte) {
	r.value = slices.Clone(value)
	r.left = r.most
}

// triesLeft is the SW that says so (ISO 7816-4, table 6).
func (r *reference) triesLeft() apdu.SW { return 0x63C0 | apdu.SW(r.left) }

func draw(rand io.Reader, n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(rand, b)
	return b, err
}
