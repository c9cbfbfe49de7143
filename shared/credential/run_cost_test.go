package credential

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/tabletest"
)

// many stores cards of a template as fast as the table takes them, with a flag but for
// every nth, which has none. Pointers, which no run looks at, are left out.
func (w *world) many(tmpl Template, cards, nth int) {
	w.Helper()
	now := w.Now().UTC().Truncate(time.Second)
	ops := make([]table.Op, 0, table.MaxOps)
	for i := range cards {
		cardID := fmt.Sprintf("%032X", i)
		c := Credential{ID: "piv-" + strings.ToLower(cardID), Family: "PIV", CardID: cardID, Template: tmpl.ID, State: Active, CreatedAt: now, UpdatedAt: now}
		if i%nth != 0 {
			c = c.Flag(now.AddDate(0, 0, 50), Flagged{How: FlagByImport, At: now}, tmpl, now)
		}
		if ops = append(ops, table.Put(record{acme, c}, table.Absent())); len(ops) == table.MaxOps || i == cards-1 {
			if err := w.Table.Write(w.Context(), ops...); err != nil {
				w.Fatal(err)
			}
			ops = ops[:0]
		}
	}
}

// whole does all of a run: report, plan, run and undo.
func (w *world) whole(tmpl Template, cards int) (plan, run, undo time.Duration) {
	w.Helper()
	ctx := w.Context()
	finish := func(r SanityRun) SanityRun {
		for !r.due.IsZero() {
			if _, err := w.SweepRuns(ctx, 10); err != nil {
				w.Fatal(err)
			}
			r = must(w.Run(ctx, acme, r.ID))(w)
		}
		return r
	}
	from := time.Now()
	r := finish(w.plan(around(tmpl, 3, 3)))
	plan, from = time.Since(from), time.Now()
	if r.State != RunPlanned || r.Cards() != cards {
		w.Fatalf("the plan is %+v, want %d cards", r, cards)
	}
	r = finish(must(w.Start(ctx, w.core, admin, r.ID))(w))
	run, from = time.Since(from), time.Now()
	if r.State != RunDone || r.Set != cards {
		w.Fatalf("the run is %+v, want %d cards", r, cards)
	}
	r = finish(must(w.Undo(ctx, w.core, admin, r.ID))(w))
	if r.State != RunUndone || r.Removed != cards {
		w.Fatalf("the run is %+v, want %d cards", r, cards)
	}
	return plan, run, time.Since(from)
}

// What a run costs follows the cards without a flag: 1,000 of 50,000 cost what 1,000 of
// 1,000 do. BenchmarkFewOfMany does the same with 1,000 of 1,000,000.
func TestCostFollowsCardsWithoutFlag(t *testing.T) {
	many := testserver.Rounds(50_000, 5_000)
	calls := map[int]int{}
	for _, all := range []int{1000, many} {
		db := tabletest.New(t)
		w := checks(t, db)
		tmpl := w.valid(100)
		w.many(tmpl, all, all/1000)
		calls[all] = w.counted(t.Logf, tmpl, 1000)
	}
	if d := calls[many] - calls[1000]; d > 20 || d < -20 {
		t.Errorf("1,000 cards without a flag cost %d calls among %d and %d alone", calls[many], many, calls[1000])
	}
	// Plan: a Query a shard. Run: a Write for 48 cards, each shard's last is not full, and a
	// Query for 480. Undo: a Get a card, and a Get and a Write for 48. The rest is the run's own.
	if calls[1000] > 1000+3*(1000/runBatch+table.ListShards)+80 {
		t.Errorf("%d calls for 1,000 cards", calls[1000])
	}
}

// counted does a whole run over a table that counts, and prints its cost.
func (w *world) counted(logf func(string, ...any), tmpl Template, cards int) (total int) {
	w.Helper()
	counting := tabletest.Count(w.Table)
	defer func(t table.Table) { w.Table = t }(w.Table)
	w.Table = counting
	ctx := w.Context()
	step := func(what string, do func()) {
		do()
		n := counting.Take()
		all := n.Gets + n.Queries + n.Writes
		total += all
		logf("%-6s of %d cards without a flag: %4d Gets, %3d Queries, %3d Writes: %.3f calls a card", what, cards, n.Gets, n.Queries, n.Writes, float64(all)/float64(cards))
	}
	var r SanityRun
	step("report", func() {
		if counts := must(w.CountWithoutFlag(ctx, acme, time.Minute))(w); counts[0].Cards != cards {
			w.Errorf("counted %+v, want %d", counts, cards)
		}
	})
	step("plan", func() { r = w.plan(around(tmpl, 3, 3)) })
	step("run", func() { r = must(w.Start(ctx, w.core, admin, r.ID))(w) })
	if r.State != RunDone || r.Set != cards {
		w.Errorf("the run is %+v, want %d cards", r, cards)
	}
	step("undo", func() { r = must(w.Undo(ctx, w.core, admin, r.ID))(w) })
	if r.State != RunUndone || r.Removed != cards {
		w.Errorf("the run is %+v, want %d cards", r, cards)
	}
	return total
}

// onDisk is a table that is synced at each commit.
func onDisk(b *testing.B) *bolt.DB {
	db, err := bolt.Open(filepath.Join(b.TempDir(), "table"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	return db
}

// BenchmarkFewOfMany is a run for 1,000 cards of 1,000,000. Run it with -benchtime=1x.
func BenchmarkFewOfMany(b *testing.B) {
	w := checks(b, tabletest.New(b))
	tmpl := w.valid(100)
	from := time.Now()
	w.many(tmpl, 1_000_000, 1000)
	b.Logf("1,000,000 cards stored in %s", time.Since(from).Round(time.Second))
	for b.Loop() {
		b.ReportMetric(float64(w.counted(b.Logf, tmpl, 1000))/1000, "calls/card")
	}
}

// BenchmarkSanityRun is a run for cards of which none has a flag, on a table that is synced,
// and its undo: cards a second, and the most memory by then, anonymous only, for the table
// is mapped. Run it with -benchtime=1x.
func BenchmarkSanityRun(b *testing.B) {
	for _, cards := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(cards), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				db := onDisk(b)
				w := checks(b, db)
				tmpl := w.valid(100)
				w.many(tmpl, cards, 1)
				debug.FreeOSMemory()
				stop, peak := make(chan struct{}), make(chan int)
				go watchMemory(stop, peak)
				b.StartTimer()
				plan, run, undo := w.whole(tmpl, cards)
				b.StopTimer()
				close(stop)
				b.ReportMetric(float64(cards)/plan.Seconds(), "planned/s")
				b.ReportMetric(float64(cards)/run.Seconds(), "set/s")
				b.ReportMetric(float64(cards)/undo.Seconds(), "undone/s")
				b.ReportMetric(float64(<-peak)/1024, "peak-MiB")
				b.StartTimer()
			}
		})
	}
}

// watchMemory finds the most anonymous memory of the process in KiB.
func watchMemory(stop <-chan struct{}, peak chan<- int) {
	most := 0
	for {
		status, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
				n, _ := strconv.Atoi(f[1])
				most = max(most, n)
			}
		}
		select {
		case <-stop:
			peak <- most
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}
