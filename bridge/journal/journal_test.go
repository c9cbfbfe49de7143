package journal_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/bridge/journal"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/relay"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func script(operation string, part int, fence int64) relay.Run {
	return relay.Run{Credential: "C1", Script: apdu.Script{Operation: operation, Part: part, Fence: fence, Deadline: now.Add(time.Minute)}}
}

func done(r relay.Run) relay.Result {
	return relay.Result{Operation: r.Script.Operation, Part: r.Script.Part, Run: apdu.Result{End: apdu.Done, Step: 1, Responses: []apdu.Response{{SW: 0x9000}}}}
}

func notRunning(journal.Entry) bool { return false }

// say is a verdict in a word.
func say(v journal.Verdict) string {
	switch {
	case v.Action == journal.Run:
		return "run"
	case v.Action == journal.Wait:
		return "wait"
	case v.Result.Interrupted:
		return "interrupted"
	case v.Action == journal.Refuse:
		return "refuse " + string(v.Result.Refusal)
	case v.Result.Refusal != "":
		return string(v.Result.Refusal)
	}
	return string(v.Result.Run.End)
}

func TestVerdict(t *testing.T) {
	unknown := journal.Record{}
	begun := unknown.Begun(script("op", 2, 5), "p1", now)
	answered := begun.Answered(done(script("op", 2, 5)), now)
	acknowledged := answered.Acknowledged("op", 2, now)
	for _, test := range []struct {
		name    string
		record  journal.Record
		run     relay.Run
		now     time.Time
		running bool
		want    string
	}{
		{name: "first contact", record: unknown, run: script("op", 1, 1), want: "run"},
		{name: "begun, and running", record: begun, run: script("op", 2, 5), running: true, want: "wait"},
		{name: "begun, and the process killed", record: begun, run: script("op", 2, 5), want: "interrupted"},
		{name: "answered", record: answered, run: script("op", 2, 5), want: "done"},
		{name: "answered, and past its deadline", record: answered, run: script("op", 2, 5), now: now.Add(time.Hour), want: "done"},
		{name: "answered, with an old fence", record: answered.Begun(script("op3", 1, 9), "p1", now), run: script("op", 2, 5), want: "done"},
		{name: "acknowledged", record: acknowledged, run: script("op", 2, 5), want: "interrupted"},
		{name: "an earlier part", record: acknowledged, run: script("op", 1, 5), want: "interrupted"},
		{name: "an earlier part with a newer fence", record: acknowledged, run: script("op", 1, 6), want: "interrupted"},
		{name: "the next part", record: acknowledged, run: script("op", 3, 5), want: "run"},
		{name: "the next part, its fence older", record: acknowledged, run: script("op", 3, 4), want: "fence"},
		{name: "another operation, its fence older", record: acknowledged, run: script("op2", 1, 4), want: "fence"},
		{name: "another operation, the same fence", record: acknowledged, run: script("op2", 1, 5), want: "fence"},
		{name: "another operation, its fence newer", record: acknowledged, run: script("op2", 1, 6), want: "run"},
		{name: "at its deadline", record: unknown, run: script("op", 1, 1), now: now.Add(time.Minute), want: "refuse deadline"},
		{name: "just before", record: unknown, run: script("op", 1, 1), now: now.Add(time.Minute - 1), want: "run"},
		{name: "a deadline too far away", record: unknown, run: script("op", 1, 1), now: now.Add(time.Minute - journal.Horizon - 1), want: "refuse deadline"},
	} {
		at := test.now
		if at.IsZero() {
			at = now
		}
		before := fmt.Sprintf("%+v", test.record)
		if got := say(test.record.Verdict(test.run, at, func(journal.Entry) bool { return test.running })); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
		if after := fmt.Sprintf("%+v", test.record); after != before {
			t.Errorf("%s: the record was changed", test.name)
		}
	}
}

// TestRecordsAreCopies: a former record stays as it was.
func TestRecordsAreCopies(t *testing.T) {
	begun := journal.Record{}.Begun(script("op", 1, 1), "p1", now)
	_ = begun.Answered(done(script("op", 1, 1)), now)
	_ = begun.Acknowledged("op", 1, now)
	if got := say(begun.Verdict(script("op", 1, 1), now, notRunning)); got != "interrupted" {
		t.Errorf("%s", got)
	}
}

// TestFull: no more than a few results of a card wait, and what was not begun is not
// answered.
func TestFull(t *testing.T) {
	r := journal.Record{}
	n := 0
	for ; n < 100; n++ {
		run := script(fmt.Sprint("op", n), 1, int64(n+1))
		if v := r.Verdict(run, now, notRunning); v.Action != journal.Run {
			if v.Action != journal.Wait {
				t.Errorf("%s", say(v))
			}
			break
		}
		r = r.Begun(run, "p1", now).Answered(done(run), now)
	}
	if n != 8 || len(r.Waiting(notRunning)) != n {
		t.Errorf("%d scripts, %d results", n, len(r.Waiting(notRunning)))
	}
}

func create(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "journal")
	if err := journal.Create(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, dir, process string) *journal.Disk {
	t.Helper()
	d, err := journal.Open(dir, process, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func begin(t *testing.T, j *journal.Journal, run relay.Run, want string) {
	t.Helper()
	if v, err := j.Begin(run, now); err != nil || say(v) != want {
		t.Errorf("%v: %s, %v; want %s", run, say(v), err, want)
	}
}

// TestDisk: two processes of a bridge have one memory, which lasts.
func TestDisk(t *testing.T) {
	dir := create(t)
	a, b := open(t, dir, "a"), open(t, dir, "b")
	ja, jb := journal.New(a), journal.New(b)
	run := script("op", 1, 5)
	begin(t, ja, run, "run")
	begin(t, ja, run, "wait")
	begin(t, jb, run, "wait")
	begin(t, jb, script("old", 1, 4), "fence")
	if results, err := jb.Waiting(); len(results) != 0 || err != nil {
		t.Errorf("a running script is told as %v, %v", results, err)
	}
	if err := ja.End("C1", done(run), now); err != nil {
		t.Fatal(err)
	}
	begin(t, jb, run, "done")
	a.Close()
	b.Close()

	j := journal.New(open(t, dir, "c"))
	results, err := j.Waiting()
	want := []relay.Result{done(run)}
	if diff := cmp.Diff(want, results); err != nil || diff != "" {
		t.Errorf("after a restart: %v (-want +got):\n%s", err, diff)
	}
	begin(t, j, script("old", 1, 4), "fence")
	if err := j.Acknowledge("op", 1, now); err != nil {
		t.Error(err)
	}
	if results, err := j.Waiting(); len(results) != 0 || err != nil {
		t.Errorf("acknowledged, and told again: %v, %v", results, err)
	}
	begin(t, j, run, "interrupted")
	if err := j.Acknowledge("unknown", 1, now); err != nil {
		t.Error(err)
	}
}

// TestRefuse: a refusal lasts, and gives way to an answer that was given before.
func TestRefuse(t *testing.T) {
	dir := create(t)
	d := open(t, dir, "a")
	j := journal.New(d)
	refusal := relay.Result{Operation: "op", Part: 1, Refusal: relay.RefusedPIN, Violations: []relay.Violation{{Code: "common", Reason: "must not be a year"}}}
	if v, err := j.Refuse(script("op", 1, 1), refusal, now); err != nil || say(v) != "refuse pin" {
		t.Errorf("%s, %v", say(v), err)
	}
	other := refusal
	other.Refusal = relay.RefusedCard
	if v, err := j.Refuse(script("op", 1, 1), other, now); err != nil || say(v) != "pin" {
		t.Errorf("refused for something else: %s, %v", say(v), err)
	}
	late := script("op", 2, 1)
	if v, err := j.Look(late, now.Add(time.Hour)); err != nil || say(v) != "refuse deadline" {
		t.Errorf("%s, %v", say(v), err)
	}
	d.Close()
	j = journal.New(open(t, dir, "b"))
	begin(t, j, script("op", 1, 1), "pin")
	begin(t, j, late, "deadline") // though the clock was set back
	if results, err := j.Waiting(); len(results) != 2 || err != nil {
		t.Errorf("%v, %v", results, err)
	}
}

// TestConcurrent: of many that begin the same script in two processes, one does.
func TestConcurrent(t *testing.T) {
	dir := create(t)
	journals := []*journal.Journal{journal.New(open(t, dir, "a")), journal.New(open(t, dir, "b"))}
	for n := range 10 {
		var wait sync.WaitGroup
		var mu sync.Mutex
		count := map[string]int{}
		for i := range 8 {
			wait.Go(func() {
				v, err := journals[i%2].Begin(script(fmt.Sprint("op", n), 1, int64(n+1)), now)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				count[say(v)]++
			})
		}
		wait.Wait()
		if count["run"] != 1 || count["wait"] != 7 {
			t.Fatalf("round %d: %v", n, count)
		}
		for _, j := range journals {
			_ = j.End("C1", done(script(fmt.Sprint("op", n), 1, 1)), now)
			_, _ = j.Waiting()
			_ = j.Acknowledge(fmt.Sprint("op", n), 1, now)
		}
	}
}

// TestDamaged: without memory of a card nothing is run on it; other cards are as ever.
func TestDamaged(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, file string) error{
		"cut off": func(_ *testing.T, file string) error { return os.Truncate(file, 20) },
		"empty":   func(_ *testing.T, file string) error { return os.Truncate(file, 0) },
		"zeros":   func(_ *testing.T, file string) error { return os.WriteFile(file, make([]byte, 200), 0o600) },
		"another card's": func(t *testing.T, file string) error {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			return os.WriteFile(file, []byte(strings.Replace(string(b), `"C1"`, `"C3"`, 1)), 0o600)
		},
		"a folder": func(_ *testing.T, file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := create(t)
			j := journal.New(open(t, dir, "a"))
			begin(t, j, script("op", 1, 1), "run")
			files, err := filepath.Glob(filepath.Join(dir, "*.json"))
			if err != nil || len(files) != 1 {
				t.Fatal(files, err)
			}
			if err := damage(t, files[0]); err != nil {
				t.Fatal(err)
			}
			if v, err := j.Begin(script("op2", 1, 2), now); err == nil || say(v) != "script" {
				t.Errorf("begun: %s, %v", say(v), err)
			}
			other := script("op3", 1, 1)
			other.Credential = "C2"
			begin(t, j, other, "run")
			if err := j.End("C2", done(other), now); err != nil {
				t.Error(err)
			}
			results, err := j.Waiting()
			if name != "another card's" && (err == nil || len(results) != 1) {
				t.Errorf("%v, %v", results, err)
			}
		})
	}
}

// TestGone: a folder that has gone is not begun anew.
func TestGone(t *testing.T) {
	if _, err := journal.Open(filepath.Join(t.TempDir(), "none"), "a", now); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opened: %v", err)
	}
	dir := create(t)
	j := journal.New(open(t, dir, "a"))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if v, err := j.Begin(script("op", 1, 1), now); err == nil || say(v) != "script" {
		t.Errorf("begun: %s, %v", say(v), err)
	}
}

// TestClean: what is old and settled is forgotten, and nothing else.
func TestClean(t *testing.T) {
	dir := create(t)
	d := open(t, dir, "a")
	j := journal.New(d)
	settled, waiting := script("op", 1, 5), script("op", 1, 5)
	waiting.Credential = "C2"
	begin(t, j, settled, "run")
	for _, err := range []error{j.End("C1", done(settled), now), j.Acknowledge("op", 1, now)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	waiting.Script.Operation = "op2"
	begin(t, j, waiting, "run")
	d.Close()
	for _, test := range []struct {
		after time.Duration
		want  string
	}{{89 * 24 * time.Hour, "fence"}, {91 * 24 * time.Hour, "run"}} {
		d, err := journal.Open(dir, "b", now.Add(test.after))
		if err != nil {
			t.Fatal(err)
		}
		old := script("old", 1, 4)
		if v, err := journal.New(d).Look(old, now); err != nil || say(v) != test.want {
			t.Errorf("after %v: %s, %v; want %s", test.after, say(v), err, test.want)
		}
		old.Credential = "C2"
		if v, err := journal.New(d).Look(old, now); err != nil || say(v) != "fence" {
			t.Errorf("with an entry, after %v: %s, %v", test.after, say(v), err)
		}
		d.Close()
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "process-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestKilled kills a process between the beginning of a script and its end.
func TestKilled(t *testing.T) {
	dir := create(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestBeginAndHang$")
	cmd.Env = append(os.Environ(), "JOURNAL="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "begun\n" {
		t.Fatalf("%q, %v", line, err)
	}
	j := journal.New(open(t, dir, "other"))
	begin(t, j, script("op", 1, 5), "wait") // as long as that process lives
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	begin(t, j, script("op", 1, 5), "interrupted")
	begin(t, j, script("old", 1, 4), "fence")
	if results, err := j.Waiting(); err != nil || len(results) != 1 || !results[0].Interrupted {
		t.Errorf("%+v, %v", results, err)
	}
}

// TestBeginAndHang is the process that TestKilled kills.
func TestBeginAndHang(t *testing.T) {
	dir := os.Getenv("JOURNAL")
	if dir == "" {
		t.Skip("is run by TestKilled")
	}
	begin(t, journal.New(open(t, dir, "killed")), script("op", 1, 5), "run")
	fmt.Println("begun")
	time.Sleep(time.Minute)
}
