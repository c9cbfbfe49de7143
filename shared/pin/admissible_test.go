package pin_test

import (
	"math/big"
	"strings"
	"testing"

	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/secret"
)

// That Admissible equals the number of PINs let through, for all lengths from
// 4 to 8 and five policies, is in TestEveryNumericPIN.

func TestAdmissibleBounds(t *testing.T) {
	p := pin.Default()
	letters := with(p, func(p *pin.Policy) { p.RequireClasses = []pin.Class{pin.Lower} })
	for _, c := range []struct {
		policy pin.Policy
		length int
		want   string
	}{
		{p, -1, "0"}, {p, 0, "0"}, {p, 3, "0"}, {p, 17, "0"}, {letters, 6, "0"},
		{bare(), 4, "10000"},
		{bare(), 64, "1" + strings.Repeat("0", 64)},
		{profile(t, "windowsHello"), 64, strings.Repeat("9", 62) + "00"},
	} {
		if got := c.policy.Admissible(c.length).String(); got != c.want {
			t.Errorf("Admissible(%d) = %s, want %s", c.length, got, c.want)
		}
	}
}

// A valid policy lets some PIN through at each of its lengths, also with the
// strictest rules and an own list as long as may be.
func TestNoValidPolicyRefusesAll(t *testing.T) {
	for _, maxRun := range []int{0, 2, 3} {
		p := with(pin.Default(), func(p *pin.Policy) {
			p.Alphabet, p.MaxLength, p.MaxRun, p.DisallowConstantDelta = pin.Digits, 64, maxRun, true
		})
		for v := int64(0); len(p.BlocklistEntries) < 1000; v++ { // all of them good ones
			if s := digitsOf(v, 4); p.Check(secret.New(s), pin.Context{}) == nil {
				p.BlocklistEntries = append(p.BlocklistEntries, s)
			}
		}
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		for n := 4; n <= 64; n++ {
			least := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil)
			least.Div(least, big.NewInt(100))
			if got := p.Admissible(n); got.Cmp(least) < 0 {
				t.Errorf("maxRun %d: only %v PINs of %d digits", maxRun, got, n)
			}
		}
	}
}

// Longer PINs are too many to try. Here their number is found in another way:
// the strings without long runs by steps from digit to digit, the repeated ones
// among them by trying every block, the listed ones by the oracle.
func TestAdmissibleLonger(t *testing.T) {
	p := with(pin.Default(), func(p *pin.Policy) {
		p.MaxLength, p.MaxRun, p.DisallowConstantDelta = 64, 3, true
		p.BlocklistEntries = []string{"815815815", "0246802468", "470011123", "470011223", "1234567890123456789012345"}
	})
	anyRun := with(p, func(p *pin.Policy) { p.MaxRun = 0 })
	for _, n := range []int{9, 10, 11, 12, 13, 15, 25} {
		for _, p := range []pin.Policy{p, anyRun} {
			listed := map[string]bool{}
			for first := range 10 {
				for delta := range 10 {
					b := make([]byte, n)
					for i := range b {
						b[i] = byte('0' + (first+i*delta)%10)
					}
					listed[string(b)] = true
				}
			}
			for _, values := range []map[string]bool{pin.MostUsed, yearsAndKeypad} {
				for s := range values {
					listed[s] = true
				}
			}
			for _, s := range p.BlocklistEntries {
				listed[s] = true
			}

			want := newWalks(p.MaxRun, n).strings(n)
			for s := range listed {
				if f := factsOf(s); len(s) == n && strings.Trim(s, "0123456789") == "" && (p.MaxRun == 0 || f.longestRun <= p.MaxRun) && !f.repeated {
					want.Sub(want, big.NewInt(1))
				}
			}
			for d := 1; d < n; d++ {
				if n%d != 0 {
					continue
				}
				for v := range pow(10, d) {
					block := digitsOf(int64(v), d)
					if !oracleRepeated(block) && (p.MaxRun == 0 || oracleLongestRun(strings.Repeat(block, n/d)) <= p.MaxRun) {
						want.Sub(want, big.NewInt(1))
					}
				}
			}
			if got := p.Admissible(n); got.Cmp(want) != 0 {
				t.Errorf("maxRun %d: Admissible(%d) = %v, want %v", p.MaxRun, n, got, want)
			}
		}
	}
}

// For every length up to 64, the blocks too are counted in another way: as
// closed walks of the automaton that reads digit after digit.
func TestAdmissibleAllLengths(t *testing.T) {
	for _, c := range []struct{ maxRun, most int }{{0, 64}, {2, 64}, {3, 64}, {5, 64}, {11, 22}, {21, 20}} {
		p := with(bare(), func(p *pin.Policy) { p.DisallowSequential, p.MaxRun = true, c.maxRun })
		walks := newWalks(c.maxRun, c.most)
		for n := 4; n <= c.most; n++ {
			// Of all strings, those go that repeat a block, and the 20 that go
			// up or down by one unless they repeat 0123456789.
			want := walks.strings(n)
			primitive := map[int]*big.Int{} // blocks that are no shorter block repeated
			for d := 1; d < n; d++ {
				if n%d != 0 {
					continue
				}
				primitive[d] = walks.blocks(d, n)
				for e := 1; e < d; e++ {
					if d%e == 0 {
						primitive[d].Sub(primitive[d], primitive[e])
					}
				}
				want.Sub(want, primitive[d])
			}
			if (c.maxRun == 0 || n <= c.maxRun) && n%10 != 0 || n == 10 && (c.maxRun == 0 || c.maxRun >= 10) {
				want.Sub(want, big.NewInt(20))
			}
			if got := p.Admissible(n); got.Cmp(want) != 0 {
				t.Errorf("maxRun %d: Admissible(%d) = %v, want %v", c.maxRun, n, got, want)
			}
		}
	}
}

// walks counts walks through the automaton that reads digits and stops at a run
// of more than maxRun. A state is the last digit, the step that led to it
// (the difference, where it is part of a run) and the length of the run.
type walks struct {
	maxRun int
	closed []*big.Int // by length: walks that end where they began
	open   []*big.Int // by length: walks that begin with the first digit
}

func newWalks(maxRun, longest int) walks {
	w := walks{maxRun: maxRun}
	if maxRun == 0 {
		return w
	}
	type state struct{ digit, delta, run int }
	var states []state
	number := map[state]int{}
	for digit := range 10 {
		add := func(s state) {
			number[s] = len(states)
			states = append(states, s)
		}
		add(state{digit, -1, 1})
		for _, delta := range []int{0, 1, 9} {
			for run := 2; run <= maxRun; run++ {
				add(state{digit, delta, run})
			}
		}
	}
	edges := make([][]int, len(states))
	for i, s := range states {
		for delta := range 10 {
			next := state{(s.digit + delta) % 10, -1, 1}
			if delta <= 1 || delta == 9 {
				next.delta, next.run = delta, 2
				if delta == s.delta {
					next.run = s.run + 1
				}
			}
			if to, ok := number[next]; ok {
				edges[i] = append(edges[i], to)
			}
		}
	}
	w.closed = make([]*big.Int, longest+1)
	w.open = make([]*big.Int, longest+1)
	for n := range w.closed {
		w.closed[n], w.open[n] = new(big.Int), new(big.Int)
	}
	for start := range states {
		at := make([]*big.Int, len(states))
		for i := range at {
			at[i] = new(big.Int)
		}
		at[start].SetInt64(1)
		for n := 0; n <= longest; n++ {
			w.closed[n].Add(w.closed[n], at[start])
			if states[start].run == 1 && n < longest { // the first digit is read
				for _, ways := range at {
					w.open[n+1].Add(w.open[n+1], ways)
				}
			}
			if n > longest/2 && states[start].run > 1 {
				break // blocks are at most half as long
			}
			next := make([]*big.Int, len(states))
			for i := range next {
				next[i] = new(big.Int)
			}
			for i, ways := range at {
				if ways.Sign() != 0 {
					for _, to := range edges[i] {
						next[to].Add(next[to], ways)
					}
				}
			}
			at = next
		}
	}
	return w
}

// strings returns how many strings of n digits have no long run.
func (w walks) strings(n int) *big.Int {
	if w.maxRun == 0 {
		return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil)
	}
	return new(big.Int).Set(w.open[n])
}

// blocks returns how many blocks of d digits repeated to n have no long run:
// those that lead the automaton back to where it was, and those that are one
// run without end, cut off in time.
func (w walks) blocks(d, n int) *big.Int {
	if w.maxRun == 0 {
		return w.strings(d)
	}
	count := new(big.Int).Set(w.closed[d])
	if n <= w.maxRun {
		for _, delta := range []int{0, 1, 9} {
			if delta*d%10 == 0 {
				count.Add(count, big.NewInt(10))
			}
		}
	}
	return count
}
