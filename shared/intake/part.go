package intake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

const (
	// lanes write at the same time. Each counts cards in a shard of its own, so that they do
	// not meet there.
	lanes     = table.CountShards
	roundSize = lanes * 64 // rows in work

	patience  = 20 * time.Second // of a call: an HTTP API waits 30 s
	saveEvery = 2 * time.Second
	saveSize  = 250_000 // bytes of the result
	// laneTries bounds how often a Write begins anew because somebody else was faster.
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
		r := &run{is: is, by: by, settings: settings{core: core, im: im, zone: core.Tenant.Settings.Location()}, part: p, spoken: map[string]int{}}
		return r.do(ctx, data)
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
	rows := im.rows(data, number == 1)
	for err == nil {
		_, err = rows.next()
	}
	if !errors.Is(err, io.EOF) {
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

func (is *Imports) part(ctx context.Context, t table.TenantID, id string, number int) (Part, error) {
	item, err := is.Table.Get(ctx, table.JobPartKey(t, id, number))
	if errors.Is(err, problem.ErrNotFound) {
		return Part{}, nil
	} else if err != nil {
		return Part{}, fmt.Errorf("load part %d: %w", number, err)
	}
	return decodePart(item)
}

// run is the work on a part.
type run struct {
	is *Imports
	by audit.Actor
	settings
	part Part

	// careful: many cards are there already, so each is looked up before the Write.
	careful bool
	// spoken are the lines that told a card's secrets wrong. Nobody guesses twice.
	spoken map[string]int
	wrong  []string // those cards, as far as it is not recorded yet
	kept   []told   // of the result, not saved yet
	size   int      // of kept
	memory *memory  // of a dry run
	begun  time.Time
	saved  time.Time
}

func (r *run) do(ctx context.Context, data []byte) (Part, error) {
	all, err := r.is.Credentials.Templates(ctx, r.core.Tenant.ID)
	if err != nil {
		return Part{}, err
	}
	r.templates = index(all)
	if _, r.key, err = r.is.privateKey(ctx, r.core); err != nil && !errors.Is(err, problem.ErrNotFound) {
		return Part{}, err
	}
	if r.im.DryRun {
		if r.memory, err = r.recall(ctx, data); err != nil {
			return Part{}, err
		}
	}
	r.begun = r.is.Now()
	r.saved = r.begun
	rows := r.im.rows(data, r.part.Number == 1)
	for range r.part.Rows { // done before
		if _, err := rows.next(); err != nil {
			return Part{}, err
		}
	}
	for {
		var round []*entry
		for len(round) < roundSize {
			row, err := rows.next()
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return Part{}, err
			}
			round = append(round, &entry{row: row})
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

func (r *run) place(e *entry) place { return place{r.im.ID, r.part.Number, e.line, e.content} }

// round decides rows, of which several may have the same card: as if they came one after
// the other.
func (r *run) round(ctx context.Context, all []*entry) error {
	err := spread(all, func(_ int, es []*entry) error {
		for _, e := range es {
			if e.faults != nil {
				e.outcome = refused
			} else if err := r.prepare(r.is.Credentials, e); err != nil {
				return err
			} else if e.outcome == undecided {
				if err := r.findHolder(ctx, e); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	there := false
	for pending := undecidedOf(all); len(pending) > 0; {
		first := make(map[string]*entry, len(pending))
		var leaders, others []*entry
		for _, e := range pending {
			if line, ok := r.spoken[e.card]; ok {
				e.refuse("", "has the card of line %d of this part, which tells its secrets wrong", line)
			} else if p, ok := r.memory.find(e); ok {
				e.twin(p)
			} else if first[e.card] == nil {
				first[e.card] = e
				leaders = append(leaders, e)
			} else {
				others = append(others, e)
			}
		}
		if err := spread(leaders, func(lane int, es []*entry) error { return r.lane(ctx, lane, es) }); err != nil {
			return err
		}
		for _, e := range leaders {
			if e.spoken {
				r.spoken[e.card] = e.line
				r.wrong = append(r.wrong, e.card)
			}
			if e.outcome == taken {
				r.memory.add(e, r.place(e))
			}
			there = there || e.outcome == unchanged || e.outcome == updated || e.spoken
		}
		for _, e := range others {
			if l := first[e.card]; l.outcome == taken {
				e.twin(r.place(l))
			}
		}
		pending = undecidedOf(others)
	}
	r.careful = there
	return nil
}

func undecidedOf(es []*entry) (rest []*entry) {
	for _, e := range es {
		if e.outcome == undecided {
			rest = append(rest, e)
		}
	}
	return rest
}

// spread lets lanes work on slices of the rows at the same time.
func spread(es []*entry, work func(lane int, es []*entry) error) error {
	var g errgroup.Group
	each := (len(es) + lanes - 1) / lanes
	for lane := 0; len(es) > 0; lane++ {
		n := min(each, len(es))
		mine := es[:n]
		g.Go(func() error { return work(lane, mine) })
		es = es[n:]
	}
	return g.Wait()
}

// lane decides rows of different cards.
func (r *run) lane(ctx context.Context, lane int, es []*entry) error {
	t := r.core.Tenant.ID
	careful, attempts := r.careful || r.im.DryRun, 0
	for todo := undecidedOf(es); len(todo) > 0; todo = undecidedOf(todo) {
		batch := r.fit(todo)
		if careful {
			for _, e := range batch {
				if err := r.lookUp(ctx, e); err != nil {
					return err
				}
			}
			if batch = undecidedOf(batch); len(batch) == 0 {
				continue
			}
		}
		if r.im.DryRun {
			for _, e := range batch {
				e.decide(taken)
			}
			continue
		}
		err := r.is.Credentials.RegisterAll(ctx, t, r.batch(batch, lane))
		switch {
		case err == nil:
			for _, e := range batch {
				e.decide(taken)
			}
		case errors.Is(err, credential.ErrThere):
			careful = true
		case errors.Is(err, problem.ErrConflict):
			if attempts++; attempts > laneTries {
				return fmt.Errorf("import cards: %w: many are registered at once", problem.ErrUnavailable)
			}
			for _, e := range batch {
				if err := r.refresh(ctx, e); err != nil {
					return err
				}
			}
		default:
			return fmt.Errorf("import cards: %w", err)
		}
	}
	return nil
}

// fit returns as many of the rows as one Write takes.
func (r *run) fit(es []*entry) []*entry {
	ops := 1 // the audit record
	templates := map[string]bool{}
	for i, e := range es {
		more := credential.RegisterOps(r.core.Tenant.ID, e.is)
		if e.holder.field != "" {
			more++
		}
		if !templates[e.template.ID] {
			more += 2 // its check and its count
		}
		if ops += more; ops > table.MaxOps {
			return es[:i]
		}
		templates[e.template.ID] = true
	}
	return es
}

func (r *run) batch(es []*entry, lane int) credential.Batch {
	b := credential.Batch{Shard: lane, By: r.by, Subject: Subject(r.im.ID)}
	holders := map[string]bool{}
	for _, e := range es {
		is := e.is
		is.Import = r.place(e).String()
		b.Cards = append(b.Cards, is)
		b.Templates = append(b.Templates, e.template)
		if is.Holder != "" && !holders[is.Holder] {
			holders[is.Holder] = true
			b.Checks = append(b.Checks, e.there)
		}
	}
	return b
}

// refresh reads anew what a row names.
func (r *run) refresh(ctx context.Context, e *entry) error {
	t, err := r.is.Credentials.Template(ctx, r.core.Tenant.ID, e.template.ID)
	if errors.Is(err, problem.ErrNotFound) {
		e.refuse(r.im.Column(Template), "is not the id or the name of a credential template")
		return nil
	} else if err != nil {
		return err
	}
	e.template = t
	return r.findHolder(ctx, e)
}

// findHolder finds the user that a row names.
func (r *run) findHolder(ctx context.Context, e *entry) error {
	t := r.core.Tenant.ID
	var u user.User
	var err error
	switch e.holder.field {
	case HolderID:
		u, err = r.is.Users.Get(ctx, t, e.holder.value)
	case HolderUsername:
		u, err = r.is.Users.ByUsername(ctx, t, e.holder.value)
	case HolderExternalID:
		u, err = r.is.Users.ByExternalID(ctx, t, e.holder.value)
	default:
		return nil
	}
	if errors.Is(err, problem.ErrNotFound) {
		e.refuse(r.im.Column(e.holder.field), "names no user")
		return nil
	} else if err != nil {
		return fmt.Errorf("find holder: %w", err)
	}
	e.new.Holder, e.is.Holder = u.ID, u.ID
	e.there = table.Check(table.UserKey(t, u.ID), table.IfVersion(u.Version))
	return nil
}

// lookUp decides a row whose card is there already.
func (r *run) lookUp(ctx context.Context, e *entry) error {
	c, err := r.is.Credentials.Get(ctx, r.core.Tenant.ID, e.card)
	if errors.Is(err, problem.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if p, ok := parsePlace(c.Import); ok && p.im == r.im.ID {
		if p == r.place(e) {
			e.decide(taken) // by this row, when the part was sent before
		} else {
			e.twin(p)
		}
		return nil
	}
	differs, err := c.Differs(r.core, e.template, e.new)
	if err != nil {
		return err
	}
	about := true // label and holder only
	for _, field := range differs {
		about = about && (field == "label" || field == "holder")
		e.spoken = e.spoken || field == "puk" || field == "adminKey"
	}
	switch {
	case len(differs) == 0:
		e.decide(unchanged)
	case r.im.Update && about:
		return r.update(ctx, e, c)
	default:
		for _, field := range differs {
			column := r.im.Column(Field(field))
			if field == "holder" {
				column = r.im.Column(e.holder.field)
			}
			e.refuse(column, "is not what is on record of this card, which an import does not overwrite")
		}
	}
	return nil
}

// update changes label and holder of a card to what a row says.
func (r *run) update(ctx context.Context, e *entry, c credential.Credential) error {
	if r.im.DryRun {
		e.decide(updated)
		return nil
	}
	_, err := r.is.Credentials.Update(ctx, r.core, r.by, tenant.RoleOperator, c.ID, c.Version, func(a *credential.About) {
		if e.new.Label != "" {
			a.Label = e.new.Label
		}
		if e.new.Holder != "" {
			a.Holder = e.new.Holder
		}
	})
	var invalid *problem.InvalidError
	switch {
	case err == nil:
		e.decide(updated)
	case errors.Is(err, problem.ErrState):
		e.refuse("", "is of a card that is being unblocked; send the row again later")
	case errors.Is(err, problem.ErrConflict), errors.Is(err, problem.ErrNotFound), errors.As(err, &invalid):
		e.refuse("", "is of a card that somebody else changed at the same time; send the row again")
	default:
		return err
	}
	return nil
}
