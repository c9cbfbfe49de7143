package unblock

// Every schedule of operators at one card is visited here: the production steps of the
// cloud (mover) and the production journal of the bridge over a software card, in all orders
// in which they can come, with all that can go wrong between.
//
// An event is one step: of the cloud, stored in one write; a script that comes to the bridge,
// and is run as far as a fault lets it; a result that comes to the cloud. While a bridge runs
// a script it has the card alone, and the cloud's steps touch neither: in whatever order they
// fall between its APDUs, it is the same as if the script had been run at once when it began.
// So one event has the whole script. It is killed or cut off at every APDU, with and without
// that taking effect. Time is no order: every lease may be over at every moment. A step of
// the cloud whose write failed is no event, and one that was written and then crashed is one
// whose script is lost. A result that is lost or late is one that comes later, or after the
// time is over; one that comes twice was not acknowledged.
//
// The bounds are the unblocks begun, and how much fails in all, on one operation or on
// several. Nothing else is bounded: reconciles are begun whenever the card is in doubt. What
// the machine keeps of the past is in custody, which has few values: two PUKs, a stage, the
// tries. So few faults reach all of them, and each defect of TestScheduleMutations is found
// with at most three; -deep has one more. Unblocks are alike, so schedules that differ only
// in who is who are counted once.
//
// What Unblocks does around the steps is repeated here: load, store, script, unsent, Result,
// Seen and create.

import (
	"flag"
	"fmt"
	"hash/maphash"
	"math/big"
	"math/bits"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/card"
)

// count is a number of schedules.
type count struct{ high, low uint64 }

func (a count) plus(b count) count {
	low, carry := bits.Add64(a.low, b.low, 0)
	high, over := bits.Add64(a.high, b.high, carry)
	if over != 0 {
		panic("more than 2^128 schedules")
	}
	return count{high, low}
}

func (a count) times(n uint8) count {
	high, low := bits.Mul64(a.low, uint64(n))
	over, most := bits.Mul64(a.high, uint64(n))
	if over != 0 {
		panic("more than 2^128 schedules")
	}
	return count{most, 0}.plus(count{high, low})
}

func (a count) String() string {
	n := new(big.Int).SetUint64(a.high)
	n.Lsh(n, 64).Or(n, new(big.Int).SetUint64(a.low))
	return n.String()
}

// ends are how schedules end.
type ends struct {
	all, asks count // asks: an operator has to say what the PUK is
	longest   int   // in events
}

// tally is what was found of all worlds.
type tally struct {
	states, transitions int
	schedules           ends
	ends, asks          int // worlds in which nothing is to come
	fewestTries         int // of the PUK
}

type name [2]uint64

var seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

func (c *checker) name(w world, b []byte) (name, []byte) {
	b = c.key(w, b[:0])
	return name{maphash.Bytes(seeds[0], b), maphash.Bytes(seeds[1], b)}, b
}

// claimOf is what an operation says of whether it has set its PIN.
func claimOf(op Operation) card.Effect {
	switch {
	case op.Kind != Unblock:
	case op.State == Succeeded:
		return card.Yes
	case op.State == Reconciled:
		return op.Outcome.PIN
	case op.State == Failed && (op.Outcome.PIN == card.No || op.Outcome.PIN == "" && op.Reason != ReasonOvertaken):
		return card.No
	}
	return card.Unknown
}

// What must never be.
const (
	anything      = "anything"
	isLost        = "the card's PUK is lost"
	isBricked     = "the card is bricked: its PUK is blocked"
	isUncalledFor = "a wrong PUK was presented more often than anything had failed"
	isMiscounted  = "the PUK is said to have more tries left than it has"
)

// check returns what is wrong in a world; "" for nothing.
func (c *checker) check(w world) string {
	if what := c.checkPUK(w); what != "" {
		return what
	}
	for i, op := range w.ops[:c.unblocks] {
		if op == nil {
			continue
		}
		set := w.set&(1<<i) != 0
		switch claim := claimOf(*op); {
		case claim == card.Yes && !set:
			return op.ID + " says that it has set its PIN, and has not"
		case claim == card.No && set:
			return op.ID + " says that it has not set its PIN, and has"
		}
	}
	if by := w.cred.LastPINChange.Operation; by != "" && w.set&(1<<c.opOf(by)) == 0 {
		return "the last PIN change is said to be by " + by + ", which has set none"
	}
	return ""
}

func (c *checker) checkPUK(w world) string {
	if c.family != card.PIV {
		return ""
	}
	state, custody := c.kept(w.card), w.cred.Custody
	has := func(slot int) bool {
		puk, ok := w.cred.PUKs[slot]
		return ok && string(puk) == state.puk
	}
	switch {
	case state.tries == 0:
		return isBricked
	case !has(custody.Current) && !has(custody.Proposed):
		return isLost
	case w.slack < 0:
		return isUncalledFor
	case custody.Tries > state.tries:
		return isMiscounted
	case custody.Stage == card.Settled && !has(custody.Current), custody.Stage == card.Eliminated && !has(custody.Proposed), custody.Stage == card.Refused:
		return "what is said of the PUK is false"
	}
	return ""
}

// checkEnd returns what must not be when nothing more is to come.
func (c *checker) checkEnd(w world) string {
	for _, op := range w.ops {
		if op == nil || !op.State.Finished() {
			return "an operation hangs"
		}
	}
	switch {
	case w.cred.Lease.Operation != "":
		return "the lease is kept"
	case c.family == card.PIV && w.cred.Custody.InDoubt() && w.cred.Stuck == "":
		return "the PUK stays in doubt"
	case w.cred.Stuck != "" && w.cred.Stuck != string(card.PUKUncertain):
		return "stuck: " + w.cred.Stuck
	}
	return ""
}

// explore visits all worlds, depth first, and counts the schedules: the ways from the
// first world to an end.
func (c *checker) explore(t *testing.T, first world) (total tally) {
	visited := map[name]int{}
	known := make([]ends, 1) // by what visited has; 0 is not known yet
	var path []incident
	fail := func(what string) {
		t.Helper()
		t.Fatalf("%s:\n%s", what, c.tell(path))
	}
	c.violated = func(format string, args ...any) { fail(fmt.Sprintf(format, args...)) }
	total.fewestTries = c.kept(first.card).tries
	var key []byte
	var visit func(w world) ends
	visit = func(w world) ends {
		if what := c.check(w); what != "" {
			fail(what)
		}
		var at name
		at, key = c.name(w, key)
		if i, ok := visited[at]; ok {
			if i == 0 {
				fail("a schedule goes in circles")
			}
			return known[i]
		}
		visited[at] = 0
		total.fewestTries = min(total.fewestTries, c.kept(w.card).tries)
		var found ends
		more := false
		c.next(w, func(e incident, next world) {
			more = true
			ways := max(e.ways, 1)
			total.transitions += int(ways)
			path = append(path, e)
			then := visit(next)
			path = path[:len(path)-1]
			found.all, found.asks = found.all.plus(then.all.times(ways)), found.asks.plus(then.asks.times(ways))
			found.longest = max(found.longest, 1+then.longest)
		})
		if !more {
			if what := c.checkEnd(w); what != "" {
				fail(what)
			}
			total.ends++
			found.all.low = 1
			if w.cred.Stuck != "" {
				total.asks++
				found.asks.low = 1
			}
		}
		visited[at] = len(known)
		known = append(known, found)
		return found
	}
	total.schedules = visit(first)
	total.states = len(visited)
	return total
}

func (c *checker) tell(path []incident) string {
	var b strings.Builder
	for i, e := range path {
		fmt.Fprintf(&b, "%3d. %s\n", i+1, c.say(e))
	}
	return b.String()
}

// shortest visits worlds breadth first, until it finds one in which that is wrong, and
// returns the schedule that leads there; nil if there is none.
func (c *checker) shortest(first world, wrong string) (path []incident, what string, states int) {
	type step struct {
		from name
		incident
	}
	came := map[name]step{}
	var key []byte
	var start name
	start, key = c.name(first, key)
	came[start] = step{}
	worlds, names := []world{first}, []name{start}
	c.violated = func(string, ...any) {}
	for len(worlds) > 0 {
		var nextWorlds []world
		var nextNames []name
		for i, w := range worlds {
			if what := c.check(w); what != "" && (what == wrong || wrong == anything) {
				for at := names[i]; at != start; at = came[at].from {
					path = append(path, came[at].incident)
				}
				slices.Reverse(path)
				return path, what, len(came)
			}
			c.next(w, func(e incident, next world) {
				var at name
				at, key = c.name(next, key)
				if _, ok := came[at]; !ok {
					came[at] = step{names[i], e}
					nextWorlds, nextNames = append(nextWorlds, next), append(nextNames, at)
				}
			})
		}
		worlds, names = nextWorlds, nextNames
	}
	return nil, "", len(came)
}

// scenario is a card and what is known of it.
type scenario struct {
	name    string
	profile softcard.Profile
	silent  bool
	claimed bool
}

var (
	tells   = scenario{"tells its tries", softcard.CanoKey, false, false}
	silent  = scenario{"does not tell its tries", softcard.CanoKey, true, false}
	claimed = scenario{"PUK was claimed", softcard.CanoKey, false, true}
	both    = scenario{"PUK was claimed, and does not tell its tries", softcard.CanoKey, true, true}
	applet  = scenario{"PivApplet", softcard.PivApplet, false, false}
	gids    = scenario{"GIDS", softcard.GIDS, false, false}
)

var cardID = []byte{0x6A, 0x7E, 0x1F, 0x2B, 0xD9, 0xC8, 0x4D, 0x3C, 0x8F, 0x10, 0xA1, 0xB2, 0xC3, 0xD4, 0xE5, 0xF6}

func (s scenario) begin(t *testing.T, b bounds, m mutations) (*checker, world) {
	t.Helper()
	c := &checker{bounds: b, mutations: m, drawer: newDrawer(s.silent), family: card.PIV}
	c.trusted = m.noConfirm
	config := softcard.Config{Profile: s.profile, ID: cardID, PUK: firstPUK}
	if s.profile == softcard.GIDS {
		c.family, c.adminKey, config.PUK = card.GIDS, softcard.FactoryAdminKey, ""
	}
	first, err := c.begun(config, s.claimed)
	if err != nil {
		t.Fatal(err)
	}
	return c, first
}

var deep = flag.Bool("deep", false, "visit schedules with one more fault, for some minutes")

// TestSchedules visits every schedule within bounds, and finds that no PUK is lost, no card
// is bricked, and nothing is said of a card that is not so.
func TestSchedules(t *testing.T) {
	quick := testing.Short() || testserver.Raced
	faults := testserver.Rounds(2, 1) // at least
	for _, test := range []struct {
		scenario
		bounds
		skip bool
	}{
		{tells, bounds{unblocks: 2, faults: 4, bridges: 1}, !*deep},
		{tells, bounds{unblocks: 3, faults: 3, bridges: 1}, !*deep},
		{silent, bounds{unblocks: 3, faults: 3, bridges: 1}, !*deep},
		{tells, bounds{unblocks: 3, faults: 2, bridges: 1}, quick},
		{tells, bounds{unblocks: 2, faults: 3, bridges: 1}, quick},
		{tells, bounds{unblocks: 2, faults: faults, bridges: 1}, false},
		{silent, bounds{unblocks: 2, faults: faults, bridges: 1}, false},
		{silent, bounds{unblocks: 2, faults: 3, bridges: 1}, quick},
		{silent, bounds{unblocks: 3, faults: 2, bridges: 1}, quick},
		{claimed, bounds{unblocks: 2, faults: faults, bridges: 1}, false},
		{claimed, bounds{unblocks: 3, faults: 2, bridges: 1}, quick},
		{both, bounds{unblocks: 2, faults: faults, bridges: 1}, false},
		{both, bounds{unblocks: 3, faults: 2, bridges: 1}, quick},
		{applet, bounds{unblocks: 2, faults: faults, bridges: 1}, false},
		{tells, bounds{unblocks: 2, faults: faults, bridges: 2, moves: true}, false},
		{tells, bounds{unblocks: 3, faults: 2, bridges: 2, moves: true}, quick},
		{gids, bounds{unblocks: 2, faults: faults, bridges: 2, moves: true}, false},
		{gids, bounds{unblocks: 3, faults: 2, bridges: 1, moves: true}, quick},
		{gids, bounds{unblocks: 2, faults: 3, bridges: 1}, quick},
	} {
		t.Run(fmt.Sprintf("%s/%d operators, %d faults, %d bridges", test.name, test.unblocks, test.faults, test.bridges), func(t *testing.T) {
			if test.skip {
				t.Skip("takes too long here")
			}
			t.Parallel()
			began := time.Now()
			c, first := test.begin(t, test.bounds, mutations{})
			total := c.explore(t, first)
			t.Logf("%d states, %d transitions, %s schedules of at most %d events: 0 PUKs lost, 0 cards bricked, fewest tries %d",
				total.states, total.transitions, total.schedules.all, total.schedules.longest, total.fewestTries)
			t.Logf("%s schedules end in asking an operator (%d of %d last states); %d states of the card; %v",
				total.schedules.asks, total.asks, total.ends, len(c.cards), time.Since(began).Round(time.Millisecond))
		})
	}
}

// TestScheduleNames: worlds that differ in names only have the same futures. Told apart,
// they have as many schedules.
func TestScheduleNames(t *testing.T) {
	for _, s := range []scenario{tells, silent, claimed, gids} {
		b := bounds{unblocks: 2, faults: 1, bridges: 1, moves: true}
		c, first := s.begin(t, b, mutations{})
		short := c.explore(t, first)
		c, first = s.begin(t, b, mutations{})
		c.exact = true
		exact := c.explore(t, first)
		if short.schedules != exact.schedules || short.states >= exact.states {
			t.Errorf("%s: %+v, told apart %+v", s.name, short, exact)
		}
		t.Logf("%s: %s schedules by %d states, %s by %d", s.name, short.schedules.all, short.states, exact.schedules.all, exact.states)
	}
}

// TestScheduleMutations leaves out one of the things that protect a card, and wants the
// checker to find what comes of it, by the shortest schedule with the fewest faults. Not each
// alone costs a PUK or a card: without the lease the fence still protects both, but wrong PUKs
// are presented though nothing has failed; and without the confirmation the count of the
// tries is wrong, which no further fault within the bounds turns into a bricked card.
func TestScheduleMutations(t *testing.T) {
	for _, mutation := range []struct {
		name string
		mutations
		scenario
		wrong  string
		costly bool
	}{
		{"no fence", mutations{noFence: true}, tells, anything, false},
		{"no fence", mutations{noFence: true}, tells, isLost, true},
		{"no write-ahead", mutations{noWriteAhead: true}, tells, isLost, false},
		{"no mark", mutations{noMark: true}, silent, isMiscounted, false},
		{"no mark", mutations{noMark: true}, silent, isBricked, true},
		{"no confirmation", mutations{noConfirm: true}, silent, isMiscounted, false},
		{"no confirmation", mutations{noConfirm: true}, tells, isMiscounted, false},
		{"no replay", mutations{noReplay: true}, tells, anything, false},
		{"no replay", mutations{noReplay: true}, tells, isLost, false},
		{"no lease", mutations{noLease: true}, tells, isUncalledFor, false},
		{"no lease and no new fence", mutations{noLease: true, noNewFence: true}, tells, isLost, false},
		{"any insertion", mutations{anyInsertion: true}, tells, anything, false},
		{"any insertion", mutations{anyInsertion: true}, gids, anything, false},
		{"gone for sure", mutations{goneForSure: true}, tells, isLost, false},
		{"what was told before", mutations{seenSame: true}, gids, anything, false},
		{"what was told before", mutations{seenSame: true}, tells, anything, false},
	} {
		t.Run(fmt.Sprintf("%s/%s/%s", mutation.name, mutation.scenario.name, mutation.wrong), func(t *testing.T) {
			if mutation.costly && (testing.Short() || testserver.Raced) {
				t.Skip("takes too long here")
			}
			states := 0
			for faults := range 4 {
				c, first := mutation.begin(t, bounds{unblocks: 2, faults: faults, bridges: 1, moves: mutation.anyInsertion}, mutation.mutations)
				path, what, visited := c.shortest(first, mutation.wrong)
				states += visited
				if path != nil {
					t.Logf("after %d states, with %d faults: %s\n%s", states, faults, what, c.tell(path))
					return
				}
			}
			t.Errorf("nothing was found in %d states", states)
		})
	}
}
