//go:build !race

package intake_test

import (
	"testing"

	"github.com/pinward/pinward/shared/intake"
)

// TestMemoryIsFlat: with ten times the rows, no more memory is held at any time that a part
// is saved. The parts are of one size; the table drops what they bring, for its own memory is
// not in question, and neither is the race detector's.
func TestMemoryIsFlat(t *testing.T) {
	t.Run("cards", func(t *testing.T) { memoryIsFlat(t, intake.Cards) })
	t.Run("users", func(t *testing.T) { memoryIsFlat(t, intake.Users) })
}

func memoryIsFlat(t *testing.T, kind intake.Kind) {
	w := newWorld(t)
	w.Kind = kind
	d := &drain{Table: w.Table}
	w.on(d)
	most := func(rows int) uint64 {
		d.held = 0
		w.feed(w.create(), rows, 64<<10)
		return d.held
	}
	most(2000) // what is made once
	few, many := most(2000), most(20_000)
	t.Logf("2,000 rows: %.2f MB, 20,000 rows: %.2f MB", float64(few)/1e6, float64(many)/1e6)
	// Of a row, no more than 25 bytes may stay: less than its card's id.
	if many > few+18_000*25 {
		t.Errorf("with 2,000 rows %d bytes are held, with 20,000 rows %d", few, many)
	}
}
