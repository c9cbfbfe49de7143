package bolt_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/tabletest"
)

const benchItems = 10_000

var benchText = strings.Repeat("x", 300)

// benchmark times ours, and reports how many times as long it takes as what is
// called theirs: the same on plain bbolt, with keys and values of that size.
func benchmark(b *testing.B, db *bolt.DB, theirs func(plain *bbolt.Tx, i int) error, writable bool, ours func(i int) error) {
	b.Helper()
	run := db.Bolt().View
	if writable {
		run = db.Bolt().Update
	}
	start := time.Now()
	for i := range b.N {
		if err := run(func(tx *bbolt.Tx) error { return theirs(tx, i) }); err != nil {
			b.Fatal(err)
		}
	}
	plain := time.Since(start)
	b.ResetTimer()
	for i := range b.N {
		if err := ours(i); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed())/float64(plain), "x-bbolt")
}

// benchDB is a table of benchItems users, and a bucket "plain" with as many.
func benchDB(b *testing.B) *bolt.DB {
	db := open(b, filepath.Join(b.TempDir(), "table"))
	for i := 0; i < benchItems; i += 100 {
		var ops []table.Op
		for j := range 100 {
			id := fmt.Sprintf("%05d", i+j)
			ops = append(ops, put(id, benchText, table.Absent(), table.UserListed(tenant, id, id)))
		}
		if err := db.Write(b.Context(), ops...); err != nil {
			b.Fatal(err)
		}
	}
	err := db.Bolt().Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucket([]byte("plain"))
		for i := range benchItems {
			if err == nil {
				err = bucket.Put(plainKey(i), []byte(benchText))
			}
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return db
}

func plainKey(i int) []byte { return fmt.Appendf(nil, "t/acme/user/%05d user", i%benchItems) }

func plain(tx *bbolt.Tx) *bbolt.Bucket { return tx.Bucket([]byte("plain")) }

func BenchmarkGet(b *testing.B) {
	db := benchDB(b)
	benchmark(b, db, func(tx *bbolt.Tx, i int) error {
		_ = append([]byte(nil), plain(tx).Get(plainKey(i))...)
		return nil
	}, false, func(i int) error {
		_, err := db.Get(b.Context(), user(fmt.Sprintf("%05d", i%benchItems)))
		return err
	})
}

func BenchmarkQuery25(b *testing.B) {
	db := benchDB(b)
	list := table.Users(tenant, "")[0].Limit(25)
	benchmark(b, db, func(tx *bbolt.Tx, i int) error {
		c := plain(tx).Cursor()
		k, v := c.Seek(plainKey(i))
		for range 25 {
			_ = append([]byte(nil), v...)
			k, v = c.Next()
		}
		_ = k
		return nil
	}, false, func(i int) error {
		_, err := db.Query(b.Context(), list.Beyond(fmt.Sprintf("%05d", i%benchItems)))
		return err
	})
}

func BenchmarkWrite1(b *testing.B) {
	db := benchDB(b)
	benchmark(b, db, func(tx *bbolt.Tx, i int) error {
		return plain(tx).Put(plainKey(i), []byte(benchText))
	}, true, func(i int) error {
		return db.Write(b.Context(), put(fmt.Sprint("new", i), benchText, table.Absent()))
	})
}

func BenchmarkWrite3(b *testing.B) {
	db := benchDB(b)
	benchmark(b, db, func(tx *bbolt.Tx, i int) error {
		for n := range 3 {
			if err := plain(tx).Put(plainKey(i+n), []byte(benchText)); err != nil {
				return err
			}
		}
		return nil
	}, true, func(i int) error {
		id := fmt.Sprint("new", i)
		return db.Write(b.Context(),
			put(id, benchText, table.Absent(), table.UserListed(tenant, id, id)),
			table.Put(tabletest.Text(table.UsernameKey(tenant, id), id), table.Absent()),
			table.Put(tabletest.Text(table.AuditKey(tenant, time.Time{}, id), benchText, table.AuditSubject(tenant, id, id)), table.Absent()))
	})
}

// 1,000 goroutines write at once, with the table's shared commits and with a
// bbolt transaction each. An op is all thousand.
func BenchmarkWriters1000(b *testing.B) {
	const writers = 1000
	all := func(write func(w int) error) {
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				if err := write(w); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	db := benchDB(b)
	round := 0
	key := func(w int) []byte { return fmt.Appendf(nil, "new%d-%d", round, w) }
	for name, write := range map[string]func(w int) error{
		"table": func(w int) error {
			return db.Write(b.Context(), put(string(key(w)), benchText, table.Absent()))
		},
		"bboltUpdate": func(w int) error {
			return db.Bolt().Update(func(tx *bbolt.Tx) error { return plain(tx).Put(key(w), []byte(benchText)) })
		},
		"bboltBatch": func(w int) error {
			return db.Bolt().Batch(func(tx *bbolt.Tx) error { return plain(tx).Put(key(w), []byte(benchText)) })
		},
	} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				round++
				all(write)
			}
		})
	}
}

// Opening reads the whole file.
func BenchmarkOpen(b *testing.B) {
	db := benchDB(b)
	path := db.Bolt().Path()
	err := db.Bolt().Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("plain")) })
	if err != nil || db.Close() != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		db, err := bolt.Open(path)
		if err != nil || db.Close() != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchItems, "ns/item")
}
