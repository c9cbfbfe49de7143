package journal_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/pinward/pinward/bridge/journal"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/relay"
)

// TestReport: what has become of a card's PUK by scripts that are not acknowledged. The
// script of three steps changes it in the last.
func TestReport(t *testing.T) {
	now := time.Date(2030, 1, 31, 9, 0, 0, 0, time.UTC)
	step := func(ins byte) apdu.Step { return apdu.Step{Command: apdu.Command{INS: ins}} }
	run := relay.Run{Credential: "c", Script: apdu.Script{Operation: "op", Part: 1, Fence: 17, Steps: []apdu.Step{step(0xA4), step(0xCB), step(0x24)}}}
	answered := func(sws ...apdu.SW) (r apdu.Result) {
		for _, sw := range sws {
			r.Responses = append(r.Responses, apdu.Response{SW: sw})
		}
		return r
	}
	lost := func(uncertain bool) apdu.Result {
		r := answered(0x9000, 0x9000)
		r.End, r.Step, r.Uncertain = apdu.Lost, 2, uncertain
		return r
	}
	for name, c := range map[string]struct {
		result *relay.Result
		want   offline.Change
	}{
		"not ended":             {nil, offline.InDoubt},
		"interrupted":           {&relay.Result{Interrupted: true}, offline.InDoubt},
		"refused":               {&relay.Result{Refusal: relay.RefusedCard}, offline.Unchanged},
		"changed":               {&relay.Result{Run: answered(0x9000, 0x9000, 0x9000)}, offline.Changed},
		"wrong PUK":             {&relay.Result{Run: answered(0x9000, 0x9000, 0x63C2)}, offline.Unchanged},
		"odd answer":            {&relay.Result{Run: answered(0x9000, 0x9000, 0x6F00)}, offline.InDoubt},
		"stopped before":        {&relay.Result{Run: answered(0x9000)}, offline.Unchanged},
		"lost, handed over":     {&relay.Result{Run: lost(true)}, offline.InDoubt},
		"lost, not handed over": {&relay.Result{Run: lost(false)}, offline.Unchanged},
	} {
		record := journal.Record{}.Begun(run, "p", now)
		if c.result != nil {
			c.result.Operation, c.result.Part = "op", 1
			record = record.Answered(*c.result, now)
		}
		if got := record.Report(); got.Change != c.want || got.Fence != 17 {
			t.Errorf("%s: %+v, want %v", name, got, c.want)
		}
		if got := record.Acknowledged("op", 1, now).Report(); c.result != nil && got.Change != offline.Acknowledged {
			t.Errorf("%s, acknowledged: %+v", name, got)
		}
	}
	harmless := run
	harmless.Script.Steps = run.Script.Steps[:2]
	if got := (journal.Record{}).Begun(harmless, "p", now).Report(); got.Change != offline.Acknowledged {
		t.Errorf("a script that changes nothing: %+v", got)
	}
}

// TestKnows: what is known of a card is what was so last, whatever overtakes what.
func TestKnows(t *testing.T) {
	now := time.Date(2030, 1, 31, 9, 0, 0, 0, time.UTC)
	passed, later := now.AddDate(0, 0, -1), now.AddDate(0, 0, 89)
	knows := func(o journal.Offline, at, expires, want time.Time, taken bool) journal.Offline {
		t.Helper()
		o, ok := o.Knows(relay.Known{Credential: "c", At: at, PINExpiresAt: expires}, now)
		if ok != taken || !o.Known.PINExpiresAt.Equal(want) {
			t.Errorf("%t, expires %s, want %t, %s", ok, o.Known.PINExpiresAt, taken, want)
		}
		return o
	}
	o := knows(journal.Offline{Credential: "c"}, now, passed, passed, true)
	deed := relay.Offline{ID: "offline-1", Credential: "c", PIN: relay.Unknown, Change: true}
	o = o.Begun(deed, "p")
	knows(o, now, passed, passed, true)
	deed.PIN = relay.Yes
	o = o.Ended(deed)
	if !o.Known.PINExpiresAt.IsZero() {
		t.Errorf("the new PIN expires %s", o.Known.PINExpiresAt)
	}
	o = knows(o, now.Add(time.Second), passed, time.Time{}, true) // before the cloud has noted it
	o = knows(o, now.Add(3*time.Second), later, later, true)
	o = knows(o.Without(deed.ID), now.Add(2*time.Second), passed, later, false)
	knows(o, now.Add(-time.Hour), passed, passed, true) // the clock was set right
}

// TestOfflineRecord: what is remembered outlasts the process, and a clock that is set back
// begins no new day.
func TestOfflineRecord(t *testing.T) {
	dir, now := filepath.Join(t.TempDir(), "journal"), time.Date(2030, 1, 31, 9, 0, 0, 0, time.UTC)
	open := func(process string) *journal.Disk {
		t.Helper()
		d, err := journal.Open(dir, process, now)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if err := journal.Create(dir); err != nil {
		t.Fatal(err)
	}
	d := open("a")
	for n := range offline.Challenges + 1 {
		var ok bool
		_, err := d.UpdateOffline("c", now.Add(-time.Duration(n)*time.Hour), func(o journal.Offline) (journal.Offline, bool) {
			o, ok = o.Challenged(now.Add(-time.Duration(n) * time.Hour))
			return o, ok
		})
		if err != nil || ok != (n < offline.Challenges) {
			t.Errorf("challenge %d: %t, %v", n+1, ok, err)
		}
	}
	for n := range 2 {
		_, err := d.UpdateOffline("c", now, func(o journal.Offline) (journal.Offline, bool) {
			return o.Begun(relay.Offline{ID: fmt.Sprint("offline-", n), Credential: "c", PIN: relay.Unknown}, "a").Ended(relay.Offline{ID: fmt.Sprint("offline-", n), Credential: "c", PIN: relay.Yes}), true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	d.Close()
	d = open("b")
	defer func() { d.Close() }()
	if done, err := d.Done(); err != nil || len(done) != 2 || done[0].PIN != relay.Yes {
		t.Errorf("done: %+v, %v", done, err)
	}
	for range 2 {
		if err := d.AcknowledgeOffline("offline-0"); err != nil {
			t.Fatal(err)
		}
	}
	if done, err := d.Done(); err != nil || len(done) != 1 || done[0].ID != "offline-1" {
		t.Errorf("acknowledged: %+v, %v", done, err)
	}
	doing := relay.Offline{ID: "offline-2", Credential: "c", PIN: relay.Unknown}
	if _, err := d.UpdateOffline("c", now, func(o journal.Offline) (journal.Offline, bool) { return o.Begun(doing, "b"), true }); err != nil {
		t.Fatal(err)
	}
	if done, err := d.Done(); err != nil || len(done) != 1 {
		t.Errorf("told while it is done: %+v, %v", done, err)
	}
	d.Close()
	d = open("c")
	if done, err := d.Done(); err != nil || len(done) != 2 || done[1] != doing {
		t.Errorf("its process has ended within it: %+v, %v", done, err)
	}
	o, ok := journal.Offline{Challenges: offline.Challenges, Since: now}.Challenged(now.Add(24 * time.Hour))
	if !ok || o.Challenges != 1 {
		t.Errorf("a day later: %+v", o)
	}
}
