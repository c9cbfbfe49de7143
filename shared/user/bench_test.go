package user

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/tabletest"
)

// What operations cost on one machine, disk and all, as multiples of the least
// that anything recorded can cost: a Write of one op to the same file, made in
// turn with them.
func BenchmarkUsers(b *testing.B) {
	for _, op := range []struct {
		name string
		run  func(w *world, ada User, i int) bool
	}{
		{"Verify", func(w *world, _ User, _ int) bool { return w.verify("ada", pinA).Right }},
		{"Identify", func(w *world, _ User, _ int) bool { return w.identify("lobby", pinA).Right }},
		{"SetPIN", func(w *world, ada User, i int) bool { return w.set(ada, []string{pinB, pinA}[i%2]) == nil }},
	} {
		b.Run(op.name, func(b *testing.B) {
			db, err := bolt.Open(filepath.Join(b.TempDir(), "table"))
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			w := newWorld(b, pinOnly)
			w.Table = db
			ada := w.user("ada", pinA)
			var ours, bare time.Duration
			i := 0
			for ; b.Loop(); i++ {
				began := time.Now()
				if !op.run(w, ada, i) {
					b.Fatal("it failed")
				}
				ours += time.Since(began)
				began = time.Now()
				key := table.UserKey("bare", numbered("", i))
				if err := db.Write(b.Context(), table.Put(tabletest.Text(key, "bare"), table.Absent())); err != nil {
					b.Fatal(err)
				}
				bare += time.Since(began)
			}
			b.ReportMetric(float64(ours.Nanoseconds())/float64(i), "ns/op")
			b.ReportMetric(float64(bare.Nanoseconds())/float64(i), "ns/write")
			b.ReportMetric(float64(ours)/float64(bare), "writes")
		})
	}
}
