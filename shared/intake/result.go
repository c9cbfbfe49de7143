package intake

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// maxKept is how many bytes of a part's result are kept; what is more is only counted.
const maxKept = 2_000_000

// told is a row of the result.
type told struct {
	Line    int      `json:"l"`
	ID      string   `json:"c,omitempty"` // a card's, or a username
	Outcome outcome  `json:"o"`
	Faults  []string `json:"f,omitempty"` // column, reason, column, reason, ...
}

// size is about what a row takes.
func (t told) size() int {
	n := 30 + len(t.ID)
	for _, f := range t.Faults {
		n += len(f) + 3
	}
	return n
}

// chunk is a piece of a part's result, or of what a dry run remembers of it.
type chunk struct {
	key    table.Key
	in     Import
	Rows   []told `json:"rows,omitempty"`
	Memory []byte `json:"memory,omitempty"`
}

// Validate implements table.Record.
func (chunk) Validate() error { return nil }

// Item implements table.Record.
func (c chunk) Item() (table.Item, error) {
	data, err := json.Marshal(c)
	return table.Item{Key: c.key, ExpiresAt: c.in.CreatedAt.Add(kept), Data: data}, err
}

// note counts decided rows, and keeps those that were not taken for the result.
func (r *run[T]) note(es []*entry[T]) {
	for _, e := range es {
		r.part.Rows++
		c := &r.part.Counts
		switch e.outcome {
		case taken:
			c.Taken++
			if e.unmanaged {
				c.Unmanaged++
			}
			continue
		case updated:
			c.Updated++
		case unchanged:
			c.Unchanged++
		case refused:
			c.Refused++
		}
		t := told{Line: e.line, ID: e.id, Outcome: e.outcome}
		for _, f := range e.faults {
			t.Faults = append(t.Faults, f.column, f.reason)
		}
		size := t.size()
		if r.part.kept+size > maxKept {
			r.part.Unkept++
			continue
		}
		r.part.kept += size
		r.kept, r.size = append(r.kept, t), r.size+size
	}
}

// save stores how far the part has come.
func (r *run[T]) save(ctx context.Context) error {
	t := r.core.Tenant.ID
	p := r.part
	var ops []table.Op
	put := func(c chunk) {
		p.chunks++
		c.key, c.in = table.JobChunkKey(t, r.im.ID, p.Number, p.chunks), r.im
		ops = append(ops, table.Put(c, table.Absent()))
	}
	rows, size := r.kept, 0
	for from, i := 0, 0; i < len(rows); i++ {
		if size += rows[i].size(); size > saveSize || i == len(rows)-1 {
			put(chunk{Rows: rows[from : i+1]})
			from, size = i+1, 0
		}
	}
	for _, piece := range r.memory.take() {
		put(chunk{Memory: piece})
	}
	if len(r.suspects) > 0 {
		action, details := r.taker.suspicion(r.suspects)
		ops = append(ops, r.is.Audit.Op(ctx, t, audit.Record{Actor: r.by, Action: action, Subject: Subject(r.im.ID), Outcome: audit.Refused, Details: details}))
	}
	ops = append(ops, table.Put(partRecord{t, r.im, p}, table.IfVersion(p.version)))
	err := r.is.Table.Write(ctx, ops...)
	if _, failed := table.FailedOp(err); failed {
		return fmt.Errorf("%w: the part is being worked on by another request", problem.ErrConflict)
	} else if err != nil {
		return fmt.Errorf("save part %d: %w", p.Number, err)
	}
	p.version++
	r.part, r.kept, r.size, r.suspects = p, nil, 0, nil
	return nil
}

// chunks reads the chunks of a part, one after the other.
func (is *Imports) chunks(ctx context.Context, t table.TenantID, id string, p Part, read func(chunk) error) error {
	for n := 1; n <= p.chunks; n++ {
		item, err := is.Table.Get(ctx, table.JobChunkKey(t, id, p.Number, n))
		if errors.Is(err, problem.ErrNotFound) {
			continue // expired
		} else if err != nil {
			return fmt.Errorf("read result: %w", err)
		}
		var c chunk
		if err := item.Decode(&c); err != nil {
			return err
		}
		if err := read(c); err != nil {
			return err
		}
	}
	return nil
}

// resultSize is how much CSV is written at once: at most that and a part's.
const resultSize = 2 << 20

// Outcome is what became of a row that was not simply taken, and one thing that is wrong with
// it, if anything is.
type Outcome struct {
	Part int
	Line int    // the file's once all parts before have been begun, until then the part's own; 0 if it is about several rows
	ID   string // of the card, or the username
	// Outcome is "updated", "unchanged" or "refused".
	Outcome        string
	Column, Reason string
}

// Outcomes returns up to limit outcomes, from the first part on, and whether there are more.
func (is *Imports) Outcomes(ctx context.Context, t table.TenantID, id string, limit int) (list []Outcome, more bool, _ error) {
	enough := errors.New("enough")
	_, err := is.outcomes(ctx, t, id, 1, func() bool { return false }, func(o Outcome) error {
		if len(list) == limit {
			return enough
		}
		list = append(list, o)
		return nil
	})
	if errors.Is(err, enough) {
		return list, true, nil
	}
	return list, false, err
}

// outcomes gives each outcome to each, from a part on, until it has an error or there is enough
// before a part; then it returns that part, else 0.
func (is *Imports) outcomes(ctx context.Context, t table.TenantID, id string, from int, enough func() bool, each func(Outcome) error) (next int, err error) {
	parts, err := is.PartsOf(ctx, t, id)
	if err != nil {
		return 0, err
	}
	before, whole := 0, true // lines of the parts before; that they are all there
	for i, p := range parts {
		whole = whole && p.Number == i+1
		if !whole {
			before = 0
		}
		if p.Number >= from {
			if enough() {
				return p.Number, nil
			}
			err := is.chunks(ctx, t, id, p, func(c chunk) error {
				for _, row := range c.Rows {
					if len(row.Faults) == 0 {
						row.Faults = []string{"", ""}
					}
					for f := 0; f+1 < len(row.Faults); f += 2 {
						if err := each(Outcome{p.Number, before + row.Line, row.ID, string(row.Outcome), row.Faults[f], row.Faults[f+1]}); err != nil {
							return err
						}
					}
				}
				return nil
			})
			if err != nil {
				return 0, err
			}
			if p.Unkept > 0 {
				reason := fmt.Sprintf("%d more rows of this part were not taken; mend what is told here, and send them again in another import to see why", p.Unkept)
				if err := each(Outcome{Part: p.Number, Reason: reason}); err != nil {
					return 0, err
				}
			}
		}
		before += p.Lines
	}
	return 0, nil
}

// Result writes what became of the rows that were not taken as CSV: part, line, card (or
// user: the name), outcome, column, reason, with a line for each thing that is wrong with a row. It begins
// with a part, and returns the part to go on from, 0 if there are no more. Lines are the
// file's once all parts before have been begun, and until then the part's own.
func (is *Imports) Result(ctx context.Context, t table.TenantID, id string, from int, to io.Writer) (next int, err error) {
	im, err := is.Get(ctx, t, id)
	if err != nil {
		return 0, err
	}
	counting := &counter{w: to}
	w := csv.NewWriter(counting)
	write := func(cells ...string) error {
		for i := range cells {
			cells[i] = harmless(cells[i])
		}
		return w.Write(cells)
	}
	if err := write("part", "line", im.Kind.Noun(), "outcome", "column", "reason"); err != nil {
		return 0, err
	}
	enough := func() bool {
		w.Flush()
		return counting.n > resultSize
	}
	next, err = is.outcomes(ctx, t, id, from, enough, func(o Outcome) error {
		line := ""
		if o.Line > 0 {
			line = fmt.Sprint(o.Line)
		}
		return write(fmt.Sprint(o.Part), line, o.ID, o.Outcome, o.Column, o.Reason)
	})
	if err != nil {
		return 0, err
	}
	w.Flush()
	return next, w.Error()
}

type counter struct {
	w io.Writer
	n int
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	return c.w.Write(p)
}

// harmless keeps a spreadsheet from taking a text for a formula (OWASP, "CSV Injection").
func harmless(cell string) string {
	if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) {
		return "'" + cell
	}
	return cell
}

// memory is what a dry run would have taken by now, by keys and claims: of the rows before,
// as far as it is in the part at hand. A nil one knows nothing.
type memory struct {
	known map[mark]place
	fresh []byte // not saved yet
}

// mark is a hash of a key or claim.
type mark [8]byte

func markOf(key string) mark {
	sum := sha256.Sum256([]byte(key))
	return mark(sum[:len(mark{})])
}

// memorySize is how much of it a chunk has.
const memorySize = 200_000

// recordSize is that of a key: mark, line, content.
const recordSize = len(mark{}) + 4 + hashSize

// recall reads what the parts before have left, one chunk after the other.
func (r *run[T]) recall(ctx context.Context, data []byte) error {
	mine := map[mark]bool{}
	for rows := r.im.rows(data, r.part.Number == 1); ; {
		row, err := rows.next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		keys, err := r.taker.candidates(row)
		if err != nil {
			return err
		}
		for _, k := range keys {
			mine[markOf(k)] = true
		}
	}
	parts, err := r.is.PartsOf(ctx, r.core.Tenant.ID, r.im.ID)
	if err != nil {
		return err
	}
	r.memory = &memory{known: map[mark]place{}}
	for _, p := range parts {
		if p.Number < r.part.Number {
			r.before += p.Counts.Taken
		}
		err := r.is.chunks(ctx, r.core.Tenant.ID, r.im.ID, p, func(c chunk) error {
			for b := c.Memory; len(b) >= recordSize; b = b[recordSize:] {
				if m := mark(b[:len(mark{})]); mine[m] {
					rest := b[len(m):recordSize]
					r.memory.known[m] = place{r.im.ID, p.Number, int(binary.BigEndian.Uint32(rest)), string(rest[4:])}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) find(key string) (place, bool) {
	if m == nil {
		return place{}, false
	}
	p, ok := m.known[markOf(key)]
	return p, ok
}

func (m *memory) add(key string, p place) {
	if m == nil {
		return
	}
	h := markOf(key)
	m.known[h] = p
	m.fresh = append(m.fresh, h[:]...)
	m.fresh = binary.BigEndian.AppendUint32(m.fresh, uint32(p.line))
	m.fresh = append(m.fresh, p.content...)
}

// take returns what is not saved yet, in pieces.
func (m *memory) take() (pieces [][]byte) {
	if m == nil {
		return nil
	}
	const most = memorySize / recordSize * recordSize
	for len(m.fresh) > 0 {
		n := min(most, len(m.fresh))
		pieces = append(pieces, m.fresh[:n])
		m.fresh = m.fresh[n:]
	}
	m.fresh = nil
	return pieces
}
