package intake

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

const (
	// lanes write at the same time. Each counts in a shard of its own, so that they do not
	// meet there.
	lanes     = table.CountShards
	roundSize = lanes * 64 // rows in work

	patience  = 20 * time.Second // of a call, all it does: an HTTP API waits 30 s
	saveEvery = 2 * time.Second
	saveSize  = 250_000 // bytes of the result
	// laneTries bounds how often a Write begins anew because somebody else was faster, and
	// nothing comes of it.
	laneTries = 50
)

// Part takes a part of the file: whole rows, the first part of CSV with the header. It
// returns how far it has come: a part that is not Done, and one whose answer was lost or an
// error, is sent again and goes on where it was. One that is done changes nothing any more.
// With CSV part 1 comes first, and in a dry run each after the one before; else their
// order does not matter, and several may be sent at the same time.
//
// What is wrong with a row is in the Result; what is wrong with the part as a whole is an
// InvalidError, and nothing of it is taken.
func (is *Imports) Part(ctx context.Context, core tenant.Core, by audit.Actor, id string, number int, data []byte) (Part, error) {
	begun := is.Now()
	if number < 1 || number > MaxParts {
		return Part{}, problem.Invalid("range", "part", "must be numbered 1 to %d", MaxParts)
	}
	if len(data) > MaxPart {
		return Part{}, problem.Invalid("tooLarge", "part", "has %d bytes; send at most %d at once", len(data), MaxPart)
	}
	data, err := text(data)
	if err != nil {
		return Part{}, err
	}
	content, err := core.Keys.Fingerprint("import part", data)
	if err != nil {
		return Part{}, err
	}
	for range tries {
		im, p, err := is.begin(ctx, core.Tenant.ID, id, number, content, data)
		if errors.Is(err, errAgain) {
			continue
		} else if err != nil || p.Done {
			return p, err
		}
		s := &settings{is: is, core: core, by: by, im: im, number: number, begun: begun}
		if _, s.key, err = is.privateKey(ctx, core); err != nil && !errors.Is(err, problem.ErrNotFound) {
			return Part{}, err
		}
		if im.Kind == Users {
			return take(ctx, s, &users{settings: s}, p, data)
		}
		cards, err := newCards(ctx, s)
		if err != nil {
			return Part{}, err
		}
		return take(ctx, s, cards, p, data)
	}
	return Part{}, errBusy
}

var errAgain = errors.New("others were faster")

// begin makes sure that the part may be worked on, and claims it: whoever worked on it
// before can save nothing more.
func (is *Imports) begin(ctx context.Context, t table.TenantID, id string, number int, content string, data []byte) (Import, Part, error) {
	fail := func(err error) (Import, Part, error) { return Import{}, Part{}, err }
	im, err := is.Get(ctx, t, id)
	if err != nil {
		return fail(err)
	}
	p, err := is.part(ctx, t, id, number)
	if err != nil {
		return fail(err)
	}
	if p.version != 0 && p.content != content {
		return fail(fmt.Errorf("%w: part %d was sent before with other content; what is on record of it counts", problem.ErrState, number))
	}
	if p.Done {
		return im, p, nil
	}
	if err := im.open(); err != nil {
		return fail(err)
	}
	switch {
	case im.Format == CSV && number == 1:
		if im.fields, err = im.columns(data); err != nil {
			return fail(err)
		}
	case im.Format == CSV && im.fields == nil:
		return fail(fmt.Errorf("%w: send part 1 first: it has the header", problem.ErrState))
	case len(data) == 0:
		return fail(problem.Invalid("empty", "part", "is empty"))
	}
	if im.DryRun && number > 1 {
		before, err := is.part(ctx, t, id, number-1)
		if err != nil {
			return fail(err)
		}
		if !before.Done {
			return fail(fmt.Errorf("%w: in a dry run part %d comes after part %d is done", problem.ErrState, number, number-1))
		}
	}
	if err := im.readable(data, number == 1); err != nil {
		return fail(err)
	}
	p.Number, p.content, p.Lines = number, content, lines(data)
	ops := []table.Op{table.Put(partRecord{t, im, p}, table.After(p.version))}
	if p.version == 0 {
		im.Parts = max(im.Parts, number)
		ops = append(ops, table.Put(importRecord{t, im}, table.IfVersion(im.Version)))
	}
	err = is.Table.Write(ctx, ops...)
	if _, failed := table.FailedOp(err); failed {
		return fail(errAgain)
	} else if err != nil {
		return fail(fmt.Errorf("begin part %d: %w", number, err))
	}
	p.version++
	return im, p, nil
}

// readable reports that not all of a part's text is rows.
func (im Import) readable(data []byte, header bool) error {
	for rows := im.rows(data, header); ; {
		if _, err := rows.next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Check reports what Create and Part would have against options, and against a file, or the
// first part of one, as a whole. It stores nothing.
func (is *Imports) Check(ctx context.Context, core tenant.Core, o Options, data []byte) error {
	o.Kind = is.Kind
	if err := is.check(ctx, core, o); err != nil {
		return err
	}
	if len(data) > MaxPart {
		return problem.Invalid("tooLarge", "part", "has %d bytes; send at most %d at once", len(data), MaxPart)
	}
	data, err := text(data)
	if err != nil {
		return err
	}
	im := Import{Options: o}
	if o.Format == CSV {
		if im.fields, err = im.columns(data); err != nil {
			return err
		}
	} else if len(data) == 0 {
		return problem.Invalid("empty", "part", "is empty")
	}
	return im.readable(data, true)
}

// Same tells whether a part of an import that has been begun had this text.
func (is *Imports) Same(ctx context.Context, core tenant.Core, id string, number int, data []byte) (bool, error) {
	p, err := is.part(ctx, core.Tenant.ID, id, number)
	if err != nil {
		return false, err
	}
	if data, err = text(data); err != nil {
		return false, err
	}
	content, err := core.Keys.Fingerprint("import part", data)
	return p.version != 0 && p.content == content, err
}

func (is *Imports) part(ctx context.Context, t table.TenantID, id string, number int) (Part, error) {
	item, err := is.Table.Get(ctx, table.JobPartKey(t, id, number))
	if errors.Is(err, problem.ErrNotFound) {
		return Part{}, nil
	} else if err != nil {
		return Part{}, fmt.Errorf("load part %d: %w", number, err)
	}
	return decodePart(item)
}

// settings are what all rows of a part are read by.
type settings struct {
	is     *Imports
	core   tenant.Core
	by     audit.Actor
	im     Import
	number int               // the part's
	key    *ecdsa.PrivateKey // the import key; nil if there is none
	begun  time.Time         // the call
	memory *memory           // of a dry run
}

// taker takes rows of one kind, of which an entry holds a T. Its methods are called for
// different entries at the same time.
type taker[T any] interface {
	// round reads what the next rows are judged by. ahead is how many rows a dry run would
	// have taken by now.
	round(ctx context.Context, ahead int) error
	// prepare reads a row, decides those that are wrong by themselves, and sets what others
	// are known by.
	prepare(ctx context.Context, e *entry[T]) error
	// lookUp decides a row of what is there already, or of what somebody else has.
	lookUp(ctx context.Context, e *entry[T]) error
	// fit returns how many of the rows, in their order, one Write takes.
	fit(es []*entry[T]) int
	// write brings what all rows are about, or nothing of it. That is problem.ErrConflict if
	// something is there, or others were faster.
	write(ctx context.Context, lane int, es []*entry[T]) error
	// candidates returns what of the keys and claims a row may have can be told from itself.
	candidates(r row) ([]string, error)
	// suspicion returns the audit record of entries that are suspect, by their keys.
	suspicion(keys []string) (action string, details map[string]string)
}

// entry is a row on its way into the table.
type entry[T any] struct {
	row
	id      string   // what the result calls the card or user; "" if that cannot be told
	key     string   // of what the row is about; rows with the same are about the same
	claims  []string // what else only one can have
	content string   // keyed hash of what the row says
	lane    int
	is      T

	outcome   outcome
	doubtful  bool   // it is looked up before it is written
	lost      string // the claim that somebody else has
	spoken    bool   // its secrets were found to be others than the card's
	suspect   bool   // it may come from somebody who guesses
	unmanaged bool   // see Counts
}

// outcome is what became of a row.
type outcome string

const (
	undecided outcome = ""
	taken     outcome = "taken"
	updated   outcome = "updated"
	unchanged outcome = "unchanged"
	refused   outcome = "refused"
)

func (e *entry[T]) decide(o outcome) { e.outcome = o }

func (e *entry[T]) refuse(column, reason string, args ...any) {
	e.tell(column, reason, args...)
	e.outcome = refused
}

// twin decides a row about what an earlier row of the import has brought.
func twin[T any](s *settings, e *entry[T], first place) {
	if e.content == first.content {
		e.decide(unchanged)
		return
	}
	e.refuse("", "has the %s of line %d of part %d, with other content", s.im.Kind.Noun(), first.line, first.part)
}

// hashSize is how much is kept of a row's hash: enough that two rows of a file about the
// same do not have it by chance.
const hashSize = 11 // in base64, 66 bits

// hash returns a keyed hash of what a row says. It differs for different keys, so that it
// does not show who has the same PIN.
func (s *settings) hash(key, says string) (string, error) {
	hash, err := s.core.Keys.Fingerprint("import row", fmt.Appendf(nil, "%q %s", key, says))
	if err != nil {
		return "", err
	}
	_, hash, _ = strings.Cut(hash, ".")
	return hash[:hashSize], nil
}

// secretOf returns a row's secret in the clear, in which it goes no further than into its
// seal or keyed value; nil if the row has none.
func (s *settings) secretOf(r *row, f Field) (*secret.Text, error) {
	v := r.value(f)
	if v == "" {
		return nil, nil
	}
	if !isJWE(v) {
		t := secret.New(v)
		return &t, nil
	}
	t, err := openJWE(s.key, v)
	if err != nil {
		return nil, err
	}
	return &t, nil
}

// place is where a card or user comes from, as it has it: which row of which import, and
// what the row said.
type place struct {
	im         string
	part, line int
	content    string
}

func (p place) String() string { return fmt.Sprintf("%s/%d/%d/%s", p.im, p.part, p.line, p.content) }

func parsePlace(s string) (p place, ok bool) {
	parts := strings.Split(s, "/")
	if len(parts) != 4 {
		return place{}, false
	}
	p.im, p.content = parts[0], parts[3]
	_, err := fmt.Sscanf(parts[1]+" "+parts[2], "%d %d", &p.part, &p.line)
	return p, err == nil
}

// Origin returns which import has brought a card or user, by which line of which part, from
// the Import that it has; false if none has.
func Origin(from string) (id string, part, line int, ok bool) {
	p, ok := parsePlace(from)
	return p.im, p.part, p.line, ok
}

// place is that of a row of this part.
func (s *settings) place(line int, content string) place {
	return place{s.im.ID, s.number, line, content}
}

// ours returns the row of this import from which something comes; false if it does not.
func (s *settings) ours(from string) (place, bool) {
	p, ok := parsePlace(from)
	return p, ok && p.im == s.im.ID
}

// run is the work on a part.
type run[T any] struct {
	*settings
	taker taker[T]
	part  Part

	// careful: much is there already, so each row is looked up before the Write.
	careful bool
	// spoken are the lines that told a card's secrets wrong. Nobody guesses twice.
	spoken   map[string]int
	suspects []string // keys, as far as it is not recorded yet
	kept     []told   // of the result, not saved yet
	size     int      // of kept
	before   int      // how many rows a dry run would have taken in the parts before
	saved    time.Time
}

// take works on a part.
func take[T any](ctx context.Context, s *settings, t taker[T], p Part, data []byte) (Part, error) {
	r := &run[T]{settings: s, taker: t, part: p, spoken: map[string]int{}}
	if r.im.DryRun {
		if err := r.recall(ctx, data); err != nil {
			return Part{}, err
		}
	}
	r.saved = r.is.Now()
	rows := r.im.rows(data, r.part.Number == 1)
	for range r.part.Rows { // done before
		if _, err := rows.next(); err != nil {
			return Part{}, err
		}
	}
	for {
		var round []*entry[T]
		for len(round) < roundSize {
			row, err := rows.next()
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return Part{}, err
			}
			round = append(round, &entry[T]{row: row})
		}
		if len(round) == 0 {
			r.part.Done = true
			return r.part, r.save(ctx)
		}
		if err := r.round(ctx, round); err != nil {
			return Part{}, err
		}
		r.note(round)
		now := r.is.Now()
		late := now.Sub(r.begun) >= patience
		if late || now.Sub(r.saved) >= saveEvery || r.size >= saveSize {
			if err := r.save(ctx); err != nil {
				return Part{}, err
			}
			r.saved = now
			if im, err := r.is.Get(ctx, r.core.Tenant.ID, r.im.ID); err != nil {
				return Part{}, err
			} else if err := im.open(); err != nil {
				return Part{}, err
			}
		}
		if late {
			return r.part, nil
		}
	}
}

// round decides rows, of which several may be about the same, or claim the same: as if they
// came one after the other.
func (r *run[T]) round(ctx context.Context, all []*entry[T]) error {
	ahead := 0
	if r.im.DryRun {
		ahead = r.before + r.part.Counts.Taken
	}
	if err := r.taker.round(ctx, ahead); err != nil {
		return err
	}
	each := (len(all) + lanes - 1) / lanes
	for i, e := range all {
		e.lane = i / each
	}
	err := spread(all, func(_ int, es []*entry[T]) error {
		for _, e := range es {
			if e.faults != nil {
				e.outcome = refused
			} else if err := r.taker.prepare(ctx, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	there := false
	lost := map[string]bool{} // claims that no row can have any more
	for pending := undecidedOf(all); len(pending) > 0; {
		first := make(map[string]*entry[T], len(pending))
		var leaders, others []*entry[T]
		for _, e := range pending {
			if line, ok := r.spoken[e.key]; ok {
				e.refuse("", "has the card of line %d of this part, which tells its secrets wrong", line)
				continue
			}
			if p, ok := r.memory.find(e.key); ok {
				twin(r.settings, e, p)
				continue
			}
			alone := true
			for _, k := range append([]string{e.key}, e.claims...) {
				if lost[k] {
					e.doubtful = true
				} else if first[k] == nil {
					first[k] = e
				} else {
					alone = false
				}
			}
			if alone {
				leaders = append(leaders, e)
			} else {
				others = append(others, e)
			}
		}
		if err := spread(leaders, func(lane int, es []*entry[T]) error { return r.lane(ctx, lane, es) }); err != nil {
			return err
		}
		for _, e := range leaders {
			if e.spoken {
				r.spoken[e.key] = e.line
			}
			if e.suspect {
				r.suspects = append(r.suspects, e.key)
			}
			if e.outcome == taken {
				p := r.place(e.line, e.content)
				r.memory.add(e.key, p)
				for _, k := range e.claims {
					r.memory.add(k, p)
					lost[k] = true
				}
			}
			if e.lost != "" {
				lost[e.lost] = true
			}
			there = there || e.outcome == unchanged || e.outcome == updated || e.spoken
		}
		for _, e := range others {
			if l := first[e.key]; l.outcome == taken {
				twin(r.settings, e, r.place(l.line, l.content))
			}
		}
		pending = undecidedOf(others)
	}
	r.careful = there
	return nil
}

func undecidedOf[T any](es []*entry[T]) (rest []*entry[T]) {
	for _, e := range es {
		if e.outcome == undecided {
			rest = append(rest, e)
		}
	}
	return rest
}

// spread lets each lane work on its rows, at the same time.
func spread[T any](es []*entry[T], work func(lane int, es []*entry[T]) error) error {
	var by [lanes][]*entry[T]
	for _, e := range es {
		by[e.lane] = append(by[e.lane], e)
	}
	var g errgroup.Group
	for lane, mine := range by {
		if len(mine) > 0 {
			g.Go(func() error { return work(lane, mine) })
		}
	}
	return g.Wait()
}

// lane decides rows of which no two are about the same, or claim the same.
func (r *run[T]) lane(ctx context.Context, lane int, es []*entry[T]) error {
	careful, attempts := r.careful || r.im.DryRun, 0
	for todo := undecidedOf(es); len(todo) > 0; todo = undecidedOf(todo) {
		batch := todo[:r.taker.fit(todo)]
		for _, e := range batch {
			if careful || e.doubtful {
				if err := r.taker.lookUp(ctx, e); err != nil {
					return err
				}
			}
		}
		if batch = undecidedOf(batch); len(batch) == 0 {
			continue
		}
		var err error
		if !r.im.DryRun {
			err = r.taker.write(ctx, lane, batch)
		}
		if errors.Is(err, problem.ErrConflict) {
			careful = true
			if attempts++; attempts > laneTries {
				return fmt.Errorf("import %s: %w: others are faster", r.im.Kind, problem.ErrUnavailable)
			}
			continue
		} else if err != nil {
			return fmt.Errorf("import %s: %w", r.im.Kind, err)
		}
		attempts = 0
		for _, e := range batch {
			e.decide(taken)
		}
	}
	return nil
}
