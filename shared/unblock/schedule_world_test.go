package unblock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pinward/pinward/bridge/journal"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
)

// inTime is the time of a step for which nothing is over yet, and tooLate of one for which
// all is. Any step may be either: time is no order here, and every lease may be taken over
// at every moment.
var (
	inTime  = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	tooLate = inTime.Add(time.Hour)
	// asked is when scripts are made, so that they are equal.
	asked = inTime.Add(beginWithin)
)

// plainly seals nothing, so that states compare.
type plainly struct{}

func (plainly) Seal(_ string, b []byte) ([]byte, error) { return bytes.Clone(b), nil }
func (plainly) Open(_ string, b []byte) ([]byte, error) { return bytes.Clone(b), nil }

// world is all there is: what the cloud has stored, what is under way, what the bridges
// remember, and the card. It is never changed: an event makes another of it.
type world struct {
	cred credential.Credential
	ops  []*Operation // the unblocks, and after them the reconciles
	// stamps order the writes of operations, and changed the last PIN change, which the
	// stored times stand for.
	stamps  []uint8
	changed uint8

	sent      []sent
	answers   []relay.Result // which their bridge does not keep
	memory    [2]journal.Record
	at        int // the bridge that the card is in
	insertion int
	told      card.RetryCounter // of the PIN, when it was identified in this insertion
	held      int               // 1 + the operation that the card is held for
	card      int               // of drawer.cards

	faults int
	resent uint16 // operations whose script was sent again

	// The truth, which nobody knows.
	set   uint16 // unblocks whose PIN the card got
	slack int    // crashes, losses and time-outs, less wrong PUKs

	stash []map[int][]byte // with noWriteAhead: PUKs that an operation knows, and nobody else
}

// sent is a script under way to its bridge.
type sent struct {
	*script
	insertion int
	again     bool // not the first
}

// insertions are the names of them.
var insertions = [...]string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}

// kind is what happens in an event.
type kind uint8

const (
	takes kind = iota
	begins
	timeOut
	sendsAgain
	delivered
	answered
	tardy
	pinRefused
	scriptLost
	bridgeGone
	resultCame
	resultCameUnacknowledged
	answerCame
	answerLost
	reconciles
	holdOver
	isSeen
	isMoved
)

// incident is a step that somebody takes.
type incident struct {
	kind  kind
	op    int
	part  int
	fault faultAt
	ways  uint8 // how many such events come to the same; 0 is 1
}

func (c *checker) say(e incident) string {
	op := "?"
	if e.op >= 0 {
		op = c.opID(e.op)
	}
	switch e.kind {
	case takes:
		return op + " takes the lease"
	case begins:
		return op + " is given its PIN and begins"
	case timeOut:
		return op + "'s time is over"
	case sendsAgain:
		return op + " sends its script again"
	case delivered:
		return fmt.Sprintf("script %s/%d comes: %s", op, e.part, e.fault)
	case answered:
		return fmt.Sprintf("script %s/%d comes: it is not run", op, e.part)
	case tardy:
		return fmt.Sprintf("script %s/%d comes too late", op, e.part)
	case pinRefused:
		return fmt.Sprintf("script %s/%d comes: its PIN is refused", op, e.part)
	case scriptLost:
		return fmt.Sprintf("script %s/%d is lost, or was never sent", op, e.part)
	case bridgeGone:
		return fmt.Sprintf("script %s/%d cannot be sent, for the bridge is gone", op, e.part)
	case resultCame:
		return fmt.Sprintf("result %s/%d comes", op, e.part)
	case resultCameUnacknowledged:
		return fmt.Sprintf("result %s/%d comes, and the bridge is not told so", op, e.part)
	case answerCame:
		return fmt.Sprintf("answer %s/%d comes", op, e.part)
	case answerLost:
		return fmt.Sprintf("answer %s/%d is lost", op, e.part)
	case reconciles:
		return op + " begins, for the card is seen"
	case holdOver:
		return "the card is let go"
	case isSeen:
		return "the card is put in anew, and seen"
	}
	return "the card is put in anew"
}

// mutations are defects that a checker is to find.
type mutations struct {
	noFence      bool // the bridge forgets the highest fence
	noWriteAhead bool // custody is stored with the result
	noMark       bool // a probe is not written ahead
	noConfirm    bool // what a probe has found is not confirmed
	noReplay     bool // the bridge forgets what it has begun
	noLease      bool // a lease is taken from whoever has it
	noNewFence   bool // and its fence does not rise
	anyInsertion bool // the bridge runs a script on any card in the reader
	goneForSure  bool // a bridge that is gone ends an operation though its script was sent again
	seenSame     bool // what a card told of its PIN before an operation is taken for what it tells after
}

// bounds are those of the schedules.
type bounds struct {
	unblocks int
	// faults is how much goes wrong, in all: a message or an answer is lost, comes late or
	// twice, something crashes, a time-out while something is under way, a card put in anew.
	faults  int
	bridges int
	moves   bool // the card may be put in anew at any time
}

// checker visits all worlds that can come about.
type checker struct {
	bounds
	mutations
	*drawer
	family   *card.Family
	adminKey []byte
	exact    bool // worlds that differ in names only are told apart
	violated func(format string, args ...any)
}

func (c *checker) opID(i int) string {
	if i < c.unblocks {
		return "u" + string(rune('1'+i))
	}
	return "r" + string(rune('1'+i-c.unblocks))
}

func (c *checker) opOf(id string) int {
	i := int(id[1] - '1')
	if id[0] == 'r' {
		i += c.unblocks
	}
	return i
}

// newPIN is the PIN that an unblock sets.
func newPIN(op int) string { return "91837" + string(rune('1'+op)) }

// newPUK is the PUK that a part of an unblock sets.
func newPUK(op, part int) string { return fmt.Sprintf("5%d%d91837", op+1, part%10) }

const firstPUK = "73915846"

// begun is the first world.
func (c *checker) begun(config softcard.Config, claimed bool) (world, error) {
	config.Rand, config.Blocked = zeros{}, true
	made, err := softcard.New(config)
	if err != nil {
		return world{}, err
	}
	n := c.unblocks
	w := world{card: c.drawer.card(made), ops: make([]*Operation, n), stamps: make([]uint8, n), stash: make([]map[int][]byte, n)}
	id := fmt.Sprintf("%X", config.ID)
	w.cred = credential.Credential{ID: c.family.Name + "-1", Family: c.family.Name, CardID: id}
	if c.family == card.PIV {
		w.cred.PUKs = map[int][]byte{1: []byte(firstPUK)}
		w.cred.Custody = card.Claim(1, card.RetryCounter{})
		w.cred.Custody.Claimed = claimed
	}
	w.told = c.tells(w)
	return w, nil
}

// tells is what the card tells of its PIN's tries.
func (c *checker) tells(w world) card.RetryCounter {
	if c.silent {
		return card.RetryCounter{}
	}
	s := c.cards[w.card].Inspect()
	return card.RetryCounter{Known: true, TriesLeft: s.PINTries, Most: s.PINMost}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// mover is the production one at a time.
func (c *checker) mover(w *world, op int, late bool) mover {
	m := mover{tenant: table.TenantID("acme"), keys: plainly{}, now: inTime.Add(time.Duration(w.clock()) * time.Second), adminKey: c.adminKey != nil}
	if late {
		m.now = tooLate
	}
	m.newPUK = func(secret.Text) (secret.Text, error) {
		return secret.New(newPUK(op, w.ops[op].Part+1)), nil
	}
	return m
}

// clock is later than all that was stored.
func (w *world) clock() uint8 {
	last := w.changed
	for _, s := range w.stamps {
		last = max(last, s)
	}
	return last + 1
}

func stamped(stamp uint8) time.Time {
	if stamp == 0 {
		return time.Time{}
	}
	return inTime.Add(time.Duration(stamp) * time.Second)
}

// load is Unblocks.load.
func (c *checker) load(w *world, op int) matter {
	v := matter{cred: w.cred, op: *w.ops[op]}
	v.cred.LastPINChange.At = stamped(w.changed)
	v.op.UpdatedAt = stamped(w.stamps[op])
	if d := w.cred.Doubt; d != "" && d != v.op.ID {
		doubtful := *w.ops[c.opOf(d)]
		v.doubtful = &doubtful
	}
	if c.noWriteAhead && w.stash[op] != nil && v.cred.Holds(v.op.ID, v.op.Fence) {
		v.cred.PUKs = w.stash[op]
	}
	return v
}

// store is Unblocks.store, without the sending: it returns the script that is to be sent,
// if any. What the write orders is noted.
func (c *checker) store(w world, op int, before, after matter) (world, *script) {
	sends := after.op.State == Running && after.op.Awaits
	again := sends && before.op.Awaits && after.op.Part == before.op.Part
	var made *script
	if sends && (again || after.op.Part != before.op.Part) {
		made = c.made(&w, op, after)
	}
	now := w.clock()
	w.ops, w.stamps = slices.Clone(w.ops), slices.Clone(w.stamps)
	if !after.cred.LastPINChange.At.Equal(before.cred.LastPINChange.At) {
		w.changed = now
	}
	if c.noWriteAhead {
		w.stash = slices.Clone(w.stash)
		w.stash[op] = nil
		if after.op.Awaits {
			w.stash[op] = after.cred.PUKs
			after.cred.Custody, after.cred.PUKs = w.cred.Custody, w.cred.PUKs
		}
	}
	if c.noMark && sends && after.cred.Custody.Stage == card.Probing {
		after.op.Card.Custody = after.op.Card.Before
		after.cred.Custody = after.op.Card.Before
	}
	w.cred = after.cred
	w.cred.LastPINChange.At = time.Time{}
	if w.cred.Lease.Operation != "" {
		w.cred.Lease.Until = inTime.Add(30 * time.Minute)
	}
	stored := after.op
	stored.UpdatedAt, stored.Until, stored.Notice.At = time.Time{}, inTime.Add(30*time.Minute), time.Time{}
	w.ops[op], w.stamps[op] = &stored, now
	if d := after.doubtful; d != nil {
		i := c.opOf(d.ID)
		if was := w.ops[i]; was.State != d.State {
			d.Notice.At = time.Time{}
			w.ops[i], w.stamps[i] = d, now
		}
	}
	return w, made
}

// made is Unblocks.script.
func (c *checker) made(w *world, op int, v matter) *script {
	s, err := v.op.Card.Script(card.Materials{
		PUK:      func(slot int) (secret.Text, error) { return v.cred.PUK(plainly{}, "acme", slot) },
		AdminKey: func() (secret.Text, error) { return secret.New(string(c.adminKey)), nil },
		Policy:   c.family.Policy(),
	})
	if err != nil {
		c.violated("no script can be made for %s/%d: %v", v.op.ID, v.op.Part, err)
		return nil
	}
	run := relay.Run{
		Reader: "reader", Insertion: v.op.Place.Insertion, Credential: v.cred.ID,
		Script: apdu.Script{Operation: v.op.ID, Part: v.op.Part, Fence: v.op.Fence, Deadline: asked, Steps: s.Steps},
		Policy: s.Policy, Hold: s.Hold, Continue: v.op.Continue,
	}
	pin := ""
	if s.Policy != nil {
		pin = newPIN(op)
	}
	return c.drawer.script(op, run, pin)
}

// send puts a script on its way.
func (w *world) send(s *script, again bool) {
	if s == nil {
		return
	}
	w.sent = append(slices.Clone(w.sent), sent{s, slices.Index(insertions[:], w.ops[s.op].Place.Insertion), again})
	slices.SortStableFunc(w.sent, func(a, b sent) int {
		switch {
		case a.op != b.op:
			return a.op - b.op
		case a.run.Script.Part != b.run.Script.Part:
			return a.run.Script.Part - b.run.Script.Part
		case a.again == b.again:
			return 0
		case b.again:
			return -1
		}
		return 1
	})
}

// take makes a script arrive, or vanish.
func (w *world) take(i int) {
	w.sent = slices.Delete(slices.Clone(w.sent), i, i+1)
}

// fails is a world in which something fails, and false if no more may. harms says that a
// wrong PUK may come of it.
func (c *checker) fails(w world, harms bool) (world, bool) {
	w.faults++
	if harms {
		w.slack++
	}
	return w, w.faults <= c.faults
}

// next calls f with all events that can come about in a world, and what it is afterwards.
func (c *checker) next(w world, tell func(incident, world)) {
	f := func(e incident, after world) {
		c.forget(&after)
		tell(e, after)
	}
	c.cloudNext(w, f)
	for i, s := range w.sent {
		if i > 0 && w.sent[i-1] == s {
			continue // the same again
		}
		c.sentNext(w, i, s, f)
	}
	for b := range c.bridges {
		for _, r := range c.journal(&w.memory[b]).waiting() {
			c.resultNext(w, b, r, f)
		}
	}
	for i, r := range w.answers {
		op := c.opOf(r.Operation)
		gone := w
		gone.answers = slices.Delete(slices.Clone(w.answers), i, i+1)
		if after, ok := c.took(gone, op, r); ok {
			f(incident{kind: answerCame, op: op, part: r.Part}, after)
		}
		if after, ok := c.fails(gone, true); ok {
			f(incident{kind: answerLost, op: op, part: r.Part}, after)
		}
	}
	if w.held != 0 {
		after := w
		after.held, after.card = 0, c.reset(w.card)
		f(incident{kind: holdOver, op: -1}, after)
	}
}

// cloudNext are the events that the cloud takes part in, less results.
func (c *checker) cloudNext(w world, f func(incident, world)) {
	// The unblocks are alike, so that they are told by who takes the lease first.
	if i := slices.Index(w.ops[:c.unblocks], nil); i >= 0 {
		c.takeNext(w, i, f)
	}
	for i, op := range w.ops {
		if op == nil || op.State.Finished() {
			continue
		}
		if op.State == Proven && w.at == c.bridgeOf(i) {
			after := w
			v := c.load(&w, i)
			before := v
			v.op.Typed, v.op.Place = true, Place{relay.Terminal, "reader", insertions[w.insertion]}
			if w.told.Known {
				v.op.PINTries = w.told
			}
			v, err := c.mover(&w, i, false).begin(v)
			if err != nil {
				c.violated("%s cannot begin: %v", op.ID, err)
				continue
			}
			after, made := c.store(after, i, before, v)
			after.send(made, false)
			f(incident{kind: begins, op: i}, after)
		}
		v := c.load(&w, i)
		if concluded, over := c.mover(&w, i, true).conclude(v); over {
			after, ok := w, true
			if c.underWay(w, i) {
				after, ok = c.fails(w, true)
			}
			if ok {
				after, _ = c.store(after, i, v, concluded)
				f(incident{kind: timeOut, op: i}, after)
			}
		}
		if v, err := c.mover(&w, i, false).again(v); err == nil {
			if after, ok := c.fails(w, false); ok {
				after, made := c.store(after, i, c.load(&w, i), v)
				after.resent |= 1 << i
				after.send(made, true)
				f(incident{kind: sendsAgain, op: i}, after)
			}
		}
	}
	if w.cred.Lease.Operation == "" {
		c.seenNext(w, f)
	}
	if after, ok := c.fails(w, false); ok && c.moves {
		f(incident{kind: isMoved, op: -1}, c.inserted(after))
	}
}

// inserted is a world in which the card is put in anew, at another bridge if there is one.
func (c *checker) inserted(w world) world {
	w.insertion++
	w.at = (w.at + 1) % c.bridges
	w.held, w.card = 0, c.reset(w.card)
	w.told = c.tells(w)
	return w
}

// bridgeOf is where an operation wants its card.
func (c *checker) bridgeOf(op int) int { return op % c.bridges }

// takeNext is Unblocks.create for an operator.
func (c *checker) takeNext(w world, i int, f func(incident, world)) {
	holder, late := w.cred.Lease.Operation, false
	after, ok := w, true
	if holder != "" && !c.noLease {
		late = true
		if h := c.opOf(holder); c.underWay(w, h) {
			after, ok = c.fails(w, true)
		}
	}
	if !ok {
		return
	}
	c.add(&after, i, Operation{ID: c.opID(i), Kind: Unblock, Credential: w.cred.ID, Channel: credential.Operator, Bridge: insertions[c.bridgeOf(i)], PINTries: w.told})
	before := c.load(&after, i)
	v := before
	if c.noLease {
		v.cred = v.cred.Release()
		if c.noNewFence && holder != "" {
			v.cred.Lease.Fence--
		}
	}
	v, err := c.mover(&after, i, late).take(v)
	if err != nil {
		c.violated("%s cannot take the lease: %v", c.opID(i), err)
		return
	}
	after, _ = c.store(after, i, before, v)
	f(incident{kind: takes, op: i}, after)
}

// add adds an operation.
func (c *checker) add(w *world, i int, op Operation) {
	w.ops, w.stamps, w.stash = slices.Clone(w.ops), slices.Clone(w.stamps), slices.Clone(w.stash)
	if i == len(w.ops) {
		w.ops, w.stamps, w.stash = append(w.ops, nil), append(w.stamps, 0), append(w.stash, nil)
	}
	op.State = Requested
	w.ops[i], w.stamps[i], w.stash[i] = &op, 0, nil
	w.resent &^= 1 << i
}

// underWay tells whether something is to come for an operation, so that its time being over
// is something that fails.
func (c *checker) underWay(w world, i int) bool {
	op := w.ops[i]
	under := slices.ContainsFunc(w.sent, func(s sent) bool { return s.op == i })
	under = under || slices.ContainsFunc(w.answers, func(r relay.Result) bool { return r.Operation == op.ID })
	for _, m := range w.memory {
		under = under || slices.ContainsFunc(m.Entries, func(e journal.Entry) bool { return e.Operation == op.ID })
	}
	return op.Awaits && under
}

// idle is an index for a reconcile: that of one of which nobody will ever hear, or a new one.
func (c *checker) idle(w world) int {
	for i := c.unblocks; i < len(w.ops); i++ {
		op := w.ops[i]
		used := !op.State.Finished() || op.Awaits
		used = used || slices.ContainsFunc(w.sent, func(s sent) bool { return s.op == i })
		used = used || slices.ContainsFunc(w.answers, func(r relay.Result) bool { return r.Operation == op.ID })
		for _, m := range w.memory {
			used = used || m.Operation == op.ID || slices.ContainsFunc(m.Entries, func(e journal.Entry) bool { return e.Operation == op.ID })
		}
		if !used {
			return i
		}
	}
	return len(w.ops)
}

// seenNext is Unblocks.Seen, for a card whose credential nobody has leased.
func (c *checker) seenNext(w world, f func(incident, world)) {
	if w.cred.Stuck == "" && w.cred.Custody != (card.Custody{}) && w.cred.Custody.InDoubt() {
		after, i := w, c.idle(w)
		c.add(&after, i, Operation{ID: c.opID(i), Kind: Reconcile, Credential: w.cred.ID, Bridge: insertions[w.at], Place: Place{relay.Service, "reader", insertions[w.insertion]}})
		before := c.load(&after, i)
		m := c.mover(&after, i, false)
		v, err := m.take(before)
		if err == nil {
			v, err = m.begin(v)
		}
		if err != nil {
			c.violated("%s cannot begin: %v", c.opID(i), err)
			return
		}
		after, made := c.store(after, i, before, v)
		after.send(made, false)
		f(incident{kind: reconciles, op: i}, after)
	}
	if w.cred.Doubt == "" || w.cred.Stuck != "" || w.cred.Custody != (card.Custody{}) && w.cred.Custody.InDoubt() {
		return
	}
	i, told := c.opOf(w.cred.Doubt), w.told
	after := w
	switch op := w.ops[i]; {
	case c.seenSame:
	case op.Place.Insertion == insertions[w.insertion]:
		after = c.inserted(w)
		told = after.told
	}
	v := c.load(&after, i)
	before := v
	doubtful := v.op
	v.doubtful = &doubtful
	if v, learnt := c.mover(&after, i, false).seen(v, told); learnt {
		v.op, v.doubtful = *v.doubtful, nil
		after, _ = c.store(after, i, before, v)
		f(incident{kind: isSeen, op: -1}, after)
	}
}

// sentNext are the events of a script under way.
func (c *checker) sentNext(w world, i int, s sent, f func(incident, world)) {
	e := incident{op: s.op, part: s.run.Script.Part}
	b := int(w.ops[s.op].Bridge[0] - '0')
	arrived := w
	arrived.take(i)
	tell := func(k kind, w world) {
		e.kind = k
		f(e, w)
	}

	if after, ok := c.fails(arrived, true); ok {
		tell(scriptLost, after)
		// Unblocks.unsent
		if !s.again {
			v := c.load(&after, s.op)
			done, taken, err := v, false, error(nil)
			if v.op.Part == e.part && (c.goneForSure || after.resent&(1<<s.op) == 0) {
				done, taken, err = c.mover(&after, s.op, false).result(v, relay.Result{Operation: v.op.ID, Part: e.part, Refusal: relay.RefusedCard})
			}
			if err != nil {
				c.violated("%s: %v", v.op.ID, err)
			} else if taken {
				done.op.Reason = ReasonBridgeGone
				gone, made := c.store(after, s.op, v, done)
				gone.send(made, false)
				tell(bridgeGone, gone)
			}
		}
	}
	if w.held != 0 && !(s.run.Continue && w.held == s.op+1) {
		return // until the card is let go
	}

	j := c.journal(&arrived.memory[b])
	verdict, _ := j.Look(s.run, inTime)
	if verdict.Action != journal.Run {
		if verdict.Action == journal.Answer && !j.keeps(verdict.Result) {
			arrived.answer(verdict.Result)
		}
		tell(answered, arrived)
		return
	}
	refuse := func(w world, why relay.Refusal, now time.Time) world {
		result := relay.Result{Operation: s.run.Script.Operation, Part: e.part, Refusal: why}
		_, _ = c.journal(&w.memory[b]).Refuse(s.run, result, now)
		return w
	}
	if after, ok := c.fails(arrived, false); ok {
		_, _ = c.journal(&after.memory[b]).Look(s.run, tooLate)
		tell(tardy, after)
	}
	switch {
	case !c.anyInsertion && (s.insertion != w.insertion || w.at != b):
		tell(answered, refuse(arrived, relay.RefusedCard, inTime))
		return
	case s.run.Continue && w.held != s.op+1:
		tell(answered, refuse(arrived, relay.RefusedHold, inTime))
		return
	}
	if s.run.Policy != nil && !s.run.Continue {
		if after, ok := c.fails(arrived, false); ok {
			tell(pinRefused, refuse(after, relay.RefusedPIN, inTime))
		}
	}

	for _, done := range c.outcomes(w.card, s.script, w.ops[s.op].Card) {
		after, ok := arrived, true
		if done.fault.fault != noFault {
			if after, ok = c.fails(arrived, true); !ok {
				return
			}
		}
		j := c.journal(&after.memory[b])
		if verdict, _ := j.Begin(s.run, inTime); verdict.Action != journal.Run {
			c.violated("a script that may run may not begin")
		}
		if after.held = 0; done.held {
			after.held = s.op + 1
		}
		after.card = done.card
		after.slack -= done.wrong
		if done.set {
			after.set |= 1 << s.op
		}
		if done.fault.fault != killed {
			_ = j.End(s.run.Credential, done.result, inTime)
		}
		e.fault, e.ways = done.fault, uint8(done.ways)
		tell(delivered, after)
	}
}

// answer puts an answer on its way that the bridge does not keep. One is enough.
func (w *world) answer(r relay.Result) {
	if !slices.ContainsFunc(w.answers, func(a relay.Result) bool {
		return a.Operation == r.Operation && a.Part == r.Part && a.Refusal == r.Refusal
	}) {
		w.answers = append(slices.Clone(w.answers), r)
		slices.SortFunc(w.answers, func(a, b relay.Result) int {
			return bytes.Compare(fmt.Append(nil, a.Operation, a.Part, a.Refusal), fmt.Append(nil, b.Operation, b.Part, b.Refusal))
		})
	}
}

// resultNext are the events of a result that a bridge keeps, and sends until it is told
// that it need not.
func (c *checker) resultNext(w world, b int, r relay.Result, f func(incident, world)) {
	op := c.opOf(r.Operation)
	after, ok := c.took(w, op, r)
	if !ok {
		return
	}
	if again, ok := c.fails(after, false); ok {
		f(incident{kind: resultCameUnacknowledged, op: op, part: r.Part}, again)
	}
	j := c.journal(&after.memory[b])
	j.waiting()
	_ = j.Acknowledge(r.Operation, r.Part, inTime)
	f(incident{kind: resultCame, op: op, part: r.Part}, after)
}

// took is Unblocks.Result.
func (c *checker) took(w world, op int, r relay.Result) (world, bool) {
	v := c.load(&w, op)
	if v.op.ID != r.Operation {
		return w, true
	}
	after, taken, err := c.mover(&w, op, false).result(v, r)
	switch {
	case err != nil && !errors.Is(err, problem.ErrState):
		c.violated("result %s/%d: %v", r.Operation, r.Part, err)
		return w, false
	case err != nil || !taken:
		return w, true
	}
	w, made := c.store(w, op, v, after)
	w.send(made, false)
	return w, true
}

// keeping is one bridge's memory, and the production journal over it as of a process that
// has just started.
type keeping struct {
	*journal.Journal
	c      *checker
	record *journal.Record
}

func (c *checker) journal(r *journal.Record) keeping {
	k := keeping{c: c, record: r}
	k.Journal = journal.New(k)
	return k
}

func (k keeping) waiting() []relay.Result {
	results, _ := k.Waiting()
	return results
}

// keeps tells whether an answer is sent until it is acknowledged.
func (k keeping) keeps(r relay.Result) bool {
	return slices.ContainsFunc(k.record.Entries, func(e journal.Entry) bool { return e.Operation == r.Operation && e.Part == r.Part })
}

// Update implements journal.Memory.
func (k keeping) Update(_ string, change func(journal.Record) (journal.Record, bool)) error {
	r := *k.record
	if k.c.noFence {
		r.Fence = 0
	}
	if k.c.noReplay {
		r.Part = 0
		r.Entries = slices.DeleteFunc(slices.Clone(r.Entries), func(e journal.Entry) bool { return e.Result == nil || e.Result.Refusal == "" })
	}
	if r, ok := change(r); ok {
		r.At = time.Time{}
		*k.record = r
	}
	return nil
}

// Each implements journal.Memory.
func (k keeping) Each(f func(journal.Record)) error {
	f(*k.record)
	return nil
}

// Process implements journal.Memory.
func (keeping) Process() string { return "bridge" }

// Alive implements journal.Memory.
func (keeping) Alive(string) bool { return false }

// expects tells whether an operation could still take in the result of a part.
func expects(op *Operation, part int) bool {
	return op.Awaits && op.Part == part && (op.State == Running || op.Card.Changes())
}

// forget lets all messages vanish that can never again change anything: results that tell
// nothing, and scripts that their bridge will not run, whose answer tells nothing.
func (c *checker) forget(w *world) {
	if m := c.mutations; m.noFence || m.noReplay || m.noNewFence || m.anyInsertion {
		return // then a bridge may change its mind
	}
	nothing := func(r relay.Result) bool { return !expects(w.ops[c.opOf(r.Operation)], r.Part) }
	if slices.ContainsFunc(w.answers, nothing) {
		w.answers = slices.DeleteFunc(slices.Clone(w.answers), nothing)
	}
	for b := range w.memory {
		nothing := func(e journal.Entry) bool { return !expects(w.ops[c.opOf(e.Operation)], e.Part) }
		if entries := w.memory[b].Entries; slices.ContainsFunc(entries, nothing) {
			w.memory[b].Entries = slices.DeleteFunc(slices.Clone(entries), nothing)
		}
	}
	never := func(s sent) bool {
		op := w.ops[s.op]
		if expects(op, s.run.Script.Part) {
			return false
		}
		verdict := w.memory[op.Bridge[0]-'0'].Verdict(s.run, inTime, func(journal.Entry) bool { return false })
		return verdict.Action != journal.Run
	}
	if slices.ContainsFunc(w.sent, never) {
		w.sent = slices.DeleteFunc(slices.Clone(w.sent), never)
	}
}

// key names a world by all that matters for what may come. Operations, PUKs, slots, fences
// and parts are named by their order, for their names do not matter: worlds that differ in
// them only have the same futures.
func (c *checker) key(w world, b []byte) []byte {
	n := func(xs ...int) {
		for _, x := range xs {
			b = append(b, byte(x))
		}
	}
	text := func(s string) { n(len(s)); b = append(b, s...) }
	flag := func(fs ...bool) {
		for _, f := range fs {
			if f {
				n(1)
			} else {
				n(0)
			}
		}
	}
	if c.exact {
		type plain Operation // without its String
		b = fmt.Appendf(b, "%+v %d %d %+v %d %d %+v %d %d %d %b %b %d", w.cred, w.stamps, w.changed, w.answers, w.at, w.insertion,
			w.told, w.held, w.card, w.faults, w.resent, w.set, w.slack)
		for _, op := range w.ops {
			b = fmt.Appendf(b, " %+v", (*plain)(op))
		}
		for _, s := range w.sent {
			b = fmt.Appendf(b, " %d %d %d %d %t %s %q", s.op, s.run.Script.Part, s.run.Script.Fence, s.insertion, s.again, s.shape, s.puks)
		}
		for _, m := range w.memory {
			b = fmt.Append(b, m.Fence, m.Operation, m.Part)
			for _, e := range m.Entries {
				b = fmt.Appendf(b, " %s %d %+v", e.Operation, e.Part, e.Result)
			}
		}
		return b
	}
	// Operations of which nothing can be heard any more are in no world's name.
	var alive [16]int
	count := 0
	for i, op := range w.ops {
		alive[i] = -1
		if op == nil {
			continue
		}
		if !op.State.Finished() || expects(op, op.Part) || op.ID == w.cred.Doubt ||
			slices.ContainsFunc(w.sent, func(s sent) bool { return s.op == i }) ||
			slices.ContainsFunc(w.memory[0].Entries, func(e journal.Entry) bool { return e.Operation == op.ID }) ||
			slices.ContainsFunc(w.memory[1].Entries, func(e journal.Entry) bool { return e.Operation == op.ID }) ||
			slices.ContainsFunc(w.answers, func(r relay.Result) bool { return r.Operation == op.ID }) {
			alive[i] = 0
			count++
		}
	}
	order := make([]int, 0, 16)
	for i := range w.ops {
		if alive[i] == 0 {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(i, j int) int { return int(w.ops[i].Fence - w.ops[j].Fence) })
	for at, i := range order {
		alive[i] = at
	}
	opAt := func(id string) int {
		if id == "" {
			return 0xF0
		}
		if at := alive[c.opOf(id)]; at >= 0 {
			return at
		}
		return 0xF1
	}
	fences := make([]int64, 0, 16)
	for _, i := range order {
		fences = append(fences, w.ops[i].Fence)
	}
	fences = append(fences, w.cred.Lease.Fence, w.memory[0].Fence, w.memory[1].Fence)
	slices.Sort(fences)
	fences = slices.Compact(fences)
	fence := func(f int64) { n(slices.Index(fences, f)) }
	puks := make([]string, 0, 16)
	puk := func(p string) {
		at := slices.Index(puks, p)
		if at < 0 {
			at = len(puks)
			puks = append(puks, p)
		}
		n(at)
	}
	slot := func(s int) {
		switch s {
		case 0:
			n(0)
		case w.cred.Custody.Current:
			n(1)
		case w.cred.Custody.Proposed:
			n(2)
		default:
			n(3)
		}
	}
	custody := func(x card.Custody) {
		text(string(x.Stage))
		slot(x.Current)
		slot(x.Proposed)
		n(x.Tries, x.Most)
		flag(x.Claimed, x.Probed)
	}
	tries := func(r card.RetryCounter) { flag(r.Known, r.Known && r.TriesLeft == 0) }
	state := func(s card.State) {
		text(string(s.Leg))
		custody(s.Custody)
		custody(s.Before)
		text(s.Challenge)
		text(string(s.Outcome.PIN))
		text(string(s.Outcome.PUK))
		text(string(s.Failure.Reason))
	}
	result := func(r relay.Result) {
		op := w.ops[c.opOf(r.Operation)]
		n(opAt(r.Operation), r.Part-op.Part)
		flag(r.Interrupted, r.Refusal == relay.RefusedPIN)
		if expects(op, r.Part) {
			after := op.Card.NoResult()
			if answered, ok := r.Card(); ok {
				after, _ = op.Card.Next(answered)
			}
			state(after)
		}
	}

	custody(w.cred.Custody)
	puk(string(w.cred.PUKs[w.cred.Custody.Current]))
	puk(string(w.cred.PUKs[w.cred.Custody.Proposed]))
	n(opAt(w.cred.Lease.Operation), opAt(w.cred.Doubt))
	fence(w.cred.Lease.Fence)
	text(w.cred.Stuck)
	flag(w.cred.Touched == insertions[w.insertion])
	unstarted := 0
	for _, op := range w.ops[:c.unblocks] {
		if op == nil {
			unstarted++
		}
	}
	n(unstarted)
	for _, i := range order {
		op := w.ops[i]
		text(string(op.State))
		text(string(claimOf(*op)))
		flag(op.Kind == Unblock, expects(op, op.Part), op.Continue, w.set&(1<<i) != 0, w.resent&(1<<i) != 0,
			op.Place.Insertion == insertions[w.insertion], w.changed < w.stamps[i])
		tries(op.PINTries)
		text(op.Bridge)
		fence(op.Fence)
		if op.State == Running || expects(op, op.Part) {
			text(string(op.Card.Leg))
			if w.cred.Holds(op.ID, op.Fence) {
				state(op.Card)
			}
		}
		for s := range 16 {
			if p, ok := w.stash[i][s]; ok {
				n(s)
				puk(string(p))
			}
		}
		n(0xFF)
	}
	for _, s := range w.sent {
		n(0xFE, alive[s.op], s.run.Script.Part-w.ops[s.op].Part)
		flag(s.again, s.insertion == w.insertion)
		text(s.shape)
		for _, p := range s.puks {
			puk(p)
		}
	}
	for _, r := range w.answers {
		n(0xFD)
		result(r)
	}
	for _, m := range w.memory[:c.bridges] {
		n(0xFC, opAt(m.Operation))
		fence(m.Fence)
		if m.Operation != "" {
			n(m.Part - w.ops[c.opOf(m.Operation)].Part)
		}
		for _, e := range m.Entries {
			if e.Result != nil {
				result(*e.Result)
			} else {
				result(relay.Result{Operation: e.Operation, Part: e.Part, Interrupted: true})
			}
		}
	}
	tries(w.told)
	n(0xFB, w.at, w.faults, w.slack)
	if w.held == 0 {
		n(0xF0)
	} else {
		n(alive[w.held-1])
	}
	if c.family != card.PIV {
		return binary.BigEndian.AppendUint16(b, uint16(w.card))
	}
	kept := c.kept(w.card)
	puk(kept.puk)
	n(kept.tries)
	flag(kept.blocked)
	return b
}
