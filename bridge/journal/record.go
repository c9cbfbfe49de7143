// Package journal is a bridge's memory: of each card the highest fence that was seen and
// the script that was answered last, and what the cloud has not yet acknowledged. Its
// invariant: a script (operation and part) of which anything may have reached a card, or
// which was refused, is never run again, whatever happens to the process or the machine;
// asked for again it has the same answer, or the answer that nothing is known.
//
// What is decided is in Record, which does no I/O: Verdict says what to do with a script,
// and Begun, Answered and Acknowledged make the record that must be stored before that is
// done. Journal does this over a Memory: Disk, which the processes of a bridge share, or
// Map, which is none.
package journal

import (
	"slices"
	"time"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/relay"
)

// Record is what is remembered of one card. The zero Record is that of a card that was
// never seen. Its methods return changed copies, and leave it as it is.
type Record struct {
	Credential string `json:"credential"`
	Fence      int64  `json:"fence"` // the highest that was seen
	// Operation is the one that was begun or refused last, and Part the highest part of it.
	Operation string    `json:"operation"`
	Part      int       `json:"part"`
	At        time.Time `json:"at"` // of the last change
	// Entries are the scripts whose result is not acknowledged.
	Entries []Entry `json:"entries,omitempty"`
}

// Entry is a script that was begun or refused.
type Entry struct {
	Operation string        `json:"operation"`
	Part      int           `json:"part"`
	Process   string        `json:"process"`          // that runs it, or did
	Result    *relay.Result `json:"result,omitempty"` // nil: begun, and not ended
	// PUKStep counts from 1 the last step that changes the card's PUK; 0 if none does.
	PUKStep int `json:"pukStep,omitempty"`
}

// Action is what to do with a script.
type Action int

// The actions.
const (
	Run    Action = iota // begin it: Begun is stored first
	Refuse               // it is too late for it: as Answer, but Begun and Answered are stored first
	Answer               // do not touch the card, and give this answer
	Wait                 // say nothing: a process is running it, or the cloud has too much to acknowledge
)

// Verdict is what to do with a script.
type Verdict struct {
	Action Action
	Result relay.Result // of Refuse and Answer
}

// Horizon is how far ahead a deadline may be. So nothing needs to be remembered of a card
// that has not been here for longer: whatever is still on its way comes too late.
const Horizon = 24 * time.Hour

// maxEntries is how many scripts for one card may wait for acknowledgement.
const maxEntries = 8

// Verdict says what to do with a script for this card that has a fence; now is by the
// cloud's clock. running tells whether the process that began an entry still runs it.
//
// A script that has begun comes before fence and deadline: that it must not be run is no
// reason to say that it was not. One that was acknowledged is answered with Interrupted,
// for its result is forgotten. A fence belongs to one operation. A script that is too late
// stays so, whatever becomes of the clock: the cloud relies on every refusal.
func (r Record) Verdict(run relay.Run, now time.Time, running func(Entry) bool) Verdict {
	s := run.Script
	answer := relay.Result{Operation: s.Operation, Part: s.Part}
	if i := r.find(s.Operation, s.Part); i >= 0 {
		e := r.Entries[i]
		switch {
		case e.Result != nil:
			return Verdict{Answer, *e.Result}
		case running(e):
			return Verdict{Action: Wait}
		}
		answer.Interrupted = true
		return Verdict{Answer, answer}
	}
	switch {
	case s.Operation == r.Operation && s.Part <= r.Part:
		answer.Interrupted = true
	case s.CheckFence(r.Fence) != nil, s.Fence == r.Fence && s.Operation != r.Operation:
		answer.Refusal = relay.RefusedFence
	case len(r.Entries) >= maxEntries:
		return Verdict{Action: Wait}
	case s.CheckDeadline(now) != nil, s.Deadline.Sub(now) > Horizon:
		answer.Refusal = relay.RefusedDeadline
		return Verdict{Refuse, answer}
	default:
		return Verdict{Action: Run}
	}
	return Verdict{Answer, answer}
}

// Begun is the record that must be stored before the script's first command, once Verdict
// has said Run.
func (r Record) Begun(run relay.Run, process string, now time.Time) Record {
	s := run.Script
	r.Credential, r.Fence, r.Operation, r.Part, r.At = run.Credential, max(r.Fence, s.Fence), s.Operation, s.Part, now
	r.Entries = append(slices.Clone(r.Entries), Entry{Operation: s.Operation, Part: s.Part, Process: process, PUKStep: pukStep(s)})
	return r
}

// Answered is the record with the answer to a script that was begun.
func (r Record) Answered(result relay.Result, now time.Time) Record {
	if i := r.find(result.Operation, result.Part); i >= 0 {
		r.Entries = slices.Clone(r.Entries)
		r.Entries[i].Result, r.At = &result, now
	}
	return r
}

// Acknowledged is the record without a script whose result the cloud has noted.
func (r Record) Acknowledged(operation string, part int, now time.Time) Record {
	if i := r.find(operation, part); i >= 0 {
		r.Entries, r.At = slices.Delete(slices.Clone(r.Entries), i, i+1), now
	}
	return r
}

// Waiting are the answers to all scripts that were begun and are not acknowledged, but
// those that are still running.
func (r Record) Waiting(running func(Entry) bool) []relay.Result {
	var results []relay.Result
	for _, e := range r.Entries {
		switch {
		case e.Result != nil:
			results = append(results, *e.Result)
		case !running(e):
			results = append(results, relay.Result{Operation: e.Operation, Part: e.Part, Interrupted: true})
		}
	}
	return results
}

func (r Record) find(operation string, part int) int {
	return slices.IndexFunc(r.Entries, func(e Entry) bool { return e.Operation == operation && e.Part == part })
}

// pukStep finds CHANGE REFERENCE DATA (SP 800-73, 3.2.2), which the allow-list lets through
// for the PUK only.
func pukStep(s apdu.Script) int {
	const insChangeReferenceData = 0x24
	for i := len(s.Steps); i > 0; i-- {
		if s.Steps[i-1].Command.INS == insChangeReferenceData {
			return i
		}
	}
	return 0
}

// Report tells what has become of the card's PUK by scripts that are not acknowledged.
func (r Record) Report() offline.Report {
	report := offline.Report{Fence: r.Fence}
	for _, e := range r.Entries {
		switch change := e.change(); {
		case change == offline.InDoubt, report.Change == offline.InDoubt:
			report.Change = offline.InDoubt
		case change == offline.Changed, report.Change == offline.Changed:
			report.Change = offline.Changed
		case change != offline.Acknowledged:
			report.Change = change
		}
	}
	return report
}

func (e Entry) change() offline.Change {
	if e.PUKStep == 0 {
		return offline.Acknowledged
	}
	if e.Result == nil || e.Result.Interrupted {
		return offline.InDoubt
	}
	step, run := e.PUKStep-1, e.Result.Run
	switch {
	case e.Result.Refusal != "":
		return offline.Unchanged
	case step < len(run.Responses):
		switch sw := run.Responses[step].SW; {
		case sw == apdu.SWOK:
			return offline.Changed
		case NotDone(sw):
			return offline.Unchanged
		}
		return offline.InDoubt
	case run.End == apdu.Lost && run.Step == step && run.Uncertain:
		return offline.InDoubt
	}
	return offline.Unchanged
}

// NotDone tells whether a card says that it has not carried out a command that presents a
// PIN or PUK (ISO 7816-4, tables 5 and 6). Other SWs, such as 65 and 6F, leave it open.
func NotDone(sw apdu.SW) bool {
	return slices.Contains([]apdu.SW{0x63, 0x64, 0x67, 0x68, 0x69, 0x6A, 0x6B, 0x6C, 0x6D, 0x6E}, sw>>8)
}
