package pin

import (
	"math/big"
	"strconv"
)

// Admissible returns the exact number of PINs of that many digits that a valid
// policy lets through, without context, history and the number of users; 0
// for a length that the policy does not allow, and for one that requires
// letters.
//
// The rules on runs and repeated blocks are counted (see regular). All other
// rules refuse few values, which are listed; of those each one is taken away
// that the counted rules have left.
func (p *Policy) Admissible(length int) *big.Int {
	if length < p.MinLength || length > p.MaxLength || p.required()&^digit != 0 {
		return new(big.Int)
	}
	n := p.regular(length)
	for s := range p.listed(length) {
		broken := p.broken(s, &Context{})
		if broken != 0 && broken&(repeated|runTooLong) == 0 {
			n.Sub(n, big.NewInt(1))
		}
	}
	return n
}

// listed returns all values of n digits that a rule other than those on runs
// and repeated blocks may refuse.
func (p *Policy) listed(n int) map[string]bool {
	values := make(map[string]bool)
	digits := make([]byte, n)
	for i := range 100 { // a first digit and a difference; these go up and down by one, too
		for j := range digits {
			digits[j] = byte('0' + (i/10+i%10*j)%10)
		}
		values[string(digits)] = true
	}
	add := func(s string) {
		if len(s) == n && classesOf(s) == digit {
			values[s] = true
		}
	}
	for s := range mostUsed {
		add(s)
	}
	for _, s := range p.BlocklistEntries {
		add(s)
	}
	for year := firstYear; year <= lastYear; year++ {
		add(strconv.Itoa(year))
	}
	var draw func(s string, most int)
	draw = func(s string, most int) {
		add(s)
		if most == 0 || len(s) > n {
			return
		}
		for _, lines := range keypadLines {
			for _, line := range lines {
				draw(s+line, most-1)
				if s != "" && s[len(s)-1] == line[0] {
					draw(s+line[1:], most-1)
				}
			}
		}
	}
	draw("", 3)
	return values
}

// regular returns how many strings of n digits the rules on runs and repeated
// blocks let through.
//
// A string that is no shorter block repeated is called primitive. Every string
// is a primitive block repeated a number of times, in one way, so by Möbius'
// inversion the primitive ones of length n are the sum over the blocks' lengths
// d that divide n of μ(n/d) times the number of blocks of length d which,
// repeated to length n, have no run that is too long.
func (p *Policy) regular(n int) *big.Int {
	if !p.DisallowSequential {
		return p.runFree(n)
	}
	sum := p.runFree(n) // d = n
	for d := 1; d < n; d++ {
		if n%d == 0 {
			blocks := p.runFreeBlocks(d, n)
			sum.Add(sum, blocks.Mul(blocks, big.NewInt(mobius(n/d))))
		}
	}
	return sum
}

// mobius returns 0 if a square divides n, or else 1 or -1 for an even or odd
// number of prime divisors.
func mobius(n int) int64 {
	mu := int64(1)
	for q := 2; n > 1; q++ {
		if n%q == 0 {
			n /= q
			mu = -mu
			if n%q == 0 {
				return 0
			}
		}
	}
	return mu
}

func pow10(n int) *big.Int {
	return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil)
}

// Runs depend only on the differences modulo 10 between neighbouring digits: a
// run of r digits is r-1 times the difference 0, 1 or 9. The other seven, 2 to
// 8, end a run.

// runFree returns how many strings of n digits have no run of more than MaxRun.
func (p *Policy) runFree(n int) *big.Int {
	if p.MaxRun == 0 {
		return pow10(n)
	}
	// ending[r] counts those whose last run has r digits.
	ending := make([]*big.Int, p.MaxRun+1)
	for r := range ending {
		ending[r] = new(big.Int)
	}
	ending[1].SetInt64(10)
	for range n - 1 {
		next := make([]*big.Int, len(ending))
		for r := range next {
			next[r] = new(big.Int)
		}
		for r := 1; r <= p.MaxRun; r++ {
			add := func(to int, ways int64) {
				next[to].Add(next[to], new(big.Int).Mul(ending[r], big.NewInt(ways)))
			}
			add(1, 7)
			if r == 1 {
				add(2, 3)
				continue
			}
			add(2, 2) // a run of another kind
			if r < p.MaxRun {
				add(r+1, 1)
			}
		}
		ending = next
	}
	sum := new(big.Int)
	for _, ways := range ending {
		sum.Add(sum, ways)
	}
	return sum
}

// runFreeBlocks returns how many blocks of d digits, repeated to n > d, have no
// run of more than MaxRun.
//
// The differences of the repeated block go round in a circle of d, and add up
// to 0 modulo 10. Unless the whole circle is one run, which is then as long as
// the PIN, each run of it shows in full.
func (p *Policy) runFreeBlocks(d, n int) *big.Int {
	if p.MaxRun == 0 {
		return pow10(d)
	}
	count := runFreeCircles(d, p.MaxRun-1)
	if n <= p.MaxRun {
		count.Add(count, big.NewInt(1)) // 0 all around: one digit repeated
		if d%10 == 0 {
			count.Add(count, big.NewInt(2)) // 1 or 9 all around: 0123456789 repeated
		}
	}
	return count.Mul(count, big.NewInt(10)) // first digits
}

// runFreeCircles returns how many circles of d differences, read from a fixed
// point, add up to 0 modulo 10 and have at most longest times 0, 1 or 9 in a
// row, without the circles that are one such row.
func runFreeCircles(d, longest int) *big.Int {
	// A circle is laid of pieces: a row of 0s, of 1s or of 9s, which does not
	// touch another of its kind, or one of the other differences.
	const single = -1
	type piece struct{ kind, length, sum int }
	var pieces []piece
	for delta := range 10 {
		if delta >= 2 && delta <= 8 {
			pieces = append(pieces, piece{single, 1, delta})
			continue
		}
		for r := 1; r <= min(longest, d); r++ {
			pieces = append(pieces, piece{delta, r, delta * r % 10})
		}
	}

	total := new(big.Int)
	for _, kind := range []int{single, 0, 1, 9} {
		// All circles whose fixed point is in a piece of this kind, which is
		// laid first: ways[position][last piece's kind][sum]. The fixed point
		// may be at each of its places.
		type state struct{ last, sum int }
		ways := make([]map[state]*big.Int, d+1)
		for i := range ways {
			ways[i] = make(map[state]*big.Int)
		}
		add := func(at int, s state, n *big.Int) {
			if at > d {
				return
			}
			if ways[at][s] == nil {
				ways[at][s] = new(big.Int)
			}
			ways[at][s].Add(ways[at][s], n)
		}
		for _, first := range pieces {
			if first.kind == kind {
				add(first.length, state{kind, first.sum}, big.NewInt(int64(first.length)))
			}
		}
		for at := 1; at < d; at++ {
			for s, n := range ways[at] {
				for _, next := range pieces {
					if next.kind != s.last || next.kind == single {
						add(at+next.length, state{next.kind, (s.sum + next.sum) % 10}, n)
					}
				}
			}
		}
		for s, n := range ways[d] {
			if s.sum == 0 && (s.last != kind || kind == single) {
				total.Add(total, n)
			}
		}
	}
	return total
}
