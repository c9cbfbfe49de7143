package journal

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/relay"
)

// Memory keeps a record for each card.
type Memory interface {
	// Update gives change the record of a credential, the zero Record if there is none, and
	// stores what it returns; with false nothing is stored. Nobody else changes the record
	// in between, and what was stored is there whatever happens after Update has returned.
	// After an error the record is the one or the other.
	Update(credential string, change func(Record) (Record, bool)) error
	// Each calls f with every record. An error, of a record that cannot be read, does not
	// keep f from the others.
	Each(f func(Record)) error
	// Process is the name under which this process begins scripts, another at each start,
	// and Alive tells whether the process of such a name may still be running.
	Process() string
	Alive(process string) bool
}

// Journal is a bridge's memory as one process uses it. It is safe for concurrent use.
type Journal struct {
	memory Memory

	mu      sync.Mutex
	running map[key]bool   // begun by this process, and not ended
	cards   map[key]string // the credential of what is not acknowledged
	// unnoted are scripts that were refused because nothing could be noted of them. They
	// stay refused as long as this process lasts, though the disk be repaired.
	unnoted map[key]relay.Result
}

type key struct {
	operation string
	part      int
}

// New returns a journal in a memory.
func New(m Memory) *Journal {
	return &Journal{memory: m, running: map[key]bool{}, cards: map[key]string{}, unnoted: map[key]relay.Result{}}
}

func (j *Journal) isRunning(e Entry) bool {
	if e.Process != j.memory.Process() {
		return j.memory.Alive(e.Process)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.running[key{e.Operation, e.Part}]
}

// Look says what to do with a script, and notes only if it is to Refuse it. It is asked
// first, for what was answered once is answered so again, whatever else is wrong by now.
// As with Begin and Refuse, an error is for the log: the verdict that comes with it is to
// refuse the script, because it cannot be remembered.
func (j *Journal) Look(run relay.Run, now time.Time) (Verdict, error) {
	return j.settle(run, now, func(r Record) (Record, bool) { return r, false })
}

// Begin says what to do with a script, and notes that it begins if that is to Run it: then
// the caller must call End.
func (j *Journal) Begin(run relay.Run, now time.Time) (Verdict, error) {
	k := key{run.Script.Operation, run.Script.Part}
	verdict, err := j.settle(run, now, func(r Record) (Record, bool) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.running[k], j.cards[k] = true, run.Credential
		return r.Begun(run, j.memory.Process(), now), true
	})
	if err != nil {
		j.ended(k)
	}
	return verdict, err
}

// Refuse notes that a script is not run, and why. It is never run then. It says what to
// answer, which is something else if the script was answered already.
func (j *Journal) Refuse(run relay.Run, refusal relay.Result, now time.Time) (Verdict, error) {
	verdict, err := j.settle(run, now, func(r Record) (Record, bool) {
		return j.refused(r, run, refusal, now), true
	})
	if err == nil && verdict.Action == Run {
		verdict = Verdict{Refuse, refusal}
	}
	return verdict, err
}

var errUnnoted = errors.New("the bridge cannot keep its record: see its log")

// settle asks for the verdict, and changes the record as it demands or, if the script may
// run, as begin does.
func (j *Journal) settle(run relay.Run, now time.Time, begin func(Record) (Record, bool)) (verdict Verdict, err error) {
	k := key{run.Script.Operation, run.Script.Part}
	j.mu.Lock()
	refusal, ok := j.unnoted[k]
	j.mu.Unlock()
	if ok {
		return Verdict{Answer, refusal}, nil
	}
	err = j.memory.Update(run.Credential, func(r Record) (Record, bool) {
		switch verdict = r.Verdict(run, now, j.isRunning); verdict.Action {
		case Run:
			return begin(r)
		case Refuse:
			return j.refused(r, run, verdict.Result, now), true
		}
		return r, false
	})
	if err != nil {
		err = fmt.Errorf("note what becomes of script %v: %w", run, err)
		refusal := relay.Result{Operation: k.operation, Part: k.part, Refusal: relay.RefusedScript, Run: apdu.Result{Err: errUnnoted}}
		j.mu.Lock()
		defer j.mu.Unlock()
		j.unnoted[k] = refusal
		return Verdict{Answer, refusal}, err
	}
	return verdict, nil
}

func (j *Journal) refused(r Record, run relay.Run, refusal relay.Result, now time.Time) Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.cards[key{refusal.Operation, refusal.Part}] = run.Credential
	return r.Begun(run, j.memory.Process(), now).Answered(refusal, now)
}

// End notes what came of a script that was begun. After an error the result may be sent all
// the same, but is not told again once the process has ended.
func (j *Journal) End(credential string, result relay.Result, now time.Time) error {
	defer j.ended(key{result.Operation, result.Part})
	err := j.memory.Update(credential, func(r Record) (Record, bool) { return r.Answered(result, now), true })
	if err != nil {
		return fmt.Errorf("note the script's result: %w", err)
	}
	return nil
}

func (j *Journal) ended(k key) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.running, k)
}

// Acknowledge forgets a result that the cloud has noted. One that is not known is ignored.
func (j *Journal) Acknowledge(operation string, part int, now time.Time) error {
	k := key{operation, part}
	j.mu.Lock()
	credential, ok := j.cards[k]
	delete(j.cards, k)
	j.mu.Unlock()
	if !ok {
		return nil
	}
	err := j.memory.Update(credential, func(r Record) (Record, bool) { return r.Acknowledged(operation, part, now), true })
	if err != nil {
		return fmt.Errorf("note the acknowledgement: %w", err)
	}
	return nil
}

// Waiting returns all results that are not acknowledged, of all processes, but those of
// scripts that are still running. An error does not mean that there are none.
func (j *Journal) Waiting() ([]relay.Result, error) {
	var results []relay.Result
	err := j.memory.Each(func(r Record) {
		found := r.Waiting(j.isRunning)
		results = append(results, found...)
		j.mu.Lock()
		defer j.mu.Unlock()
		for _, result := range found {
			j.cards[key{result.Operation, result.Part}] = r.Credential
		}
	})
	if err != nil {
		return results, fmt.Errorf("read the bridge's record: %w", err)
	}
	return results, nil
}

// Map is a Memory that is gone with the process, for tests.
type Map struct {
	mu      sync.Mutex
	records map[string]Record
}

// Update implements Memory.
func (m *Map) Update(credential string, change func(Record) (Record, bool)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := change(m.records[credential]); ok {
		if m.records == nil {
			m.records = map[string]Record{}
		}
		m.records[credential] = r
	}
	return nil
}

// Each implements Memory.
func (m *Map) Each(f func(Record)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.records {
		f(r)
	}
	return nil
}

// Process implements Memory.
func (*Map) Process() string { return "map" }

// Alive implements Memory.
func (*Map) Alive(string) bool { return false }
