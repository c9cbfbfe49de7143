package intake_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/intake"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/dynamo"
	"github.com/pinward/pinward/shared/table/tabletest"
)

// file is a file's header and its rows.
type file struct {
	header string
	row    func(b *bytes.Buffer, i int)
}

// files are those of each kind. Cards' ids are random: they come all over the table.
var files = map[intake.Kind]file{
	intake.Cards: {"cardId,label,serial,puk,pinExpiresAt\n", func(b *bytes.Buffer, i int) {
		fmt.Fprintf(b, "%016X%016X,Card %d,SN%08d,%08d,2027-%02d-15\n", uint64(i+1)*0x9E3779B97F4A7C15, uint64(i), i, i, (71536294+i)%100_000_000, 1+i%12)
	}},
	intake.Users: {"username,displayName,mail,externalId,groups,pin\n", func(b *bytes.Buffer, i int) {
		h := uint64(i+1) * 0x9E3779B97F4A7C15
		fmt.Fprintf(b, "u%x,Person %d,u%x@acme.example,HR-%08d,staff;floor %d,%08d\n", h, i, h, i, i%40, h%100_000_000)
	}},
}

// feed imports a file of n rows in parts of about size bytes, as `split -C` makes them, and
// returns how many parts it sent. The file is never all there.
func (w *world) feed(im intake.Import, n, size int) (parts int) {
	w.Helper()
	f := files[w.Kind]
	var b bytes.Buffer
	b.WriteString(f.header)
	send := func() {
		parts++
		for p := (intake.Part{}); !p.Done; {
			p = w.part(im, parts, b.String())
		}
		b.Reset()
	}
	for i := range n {
		f.row(&b, i)
		if b.Len() > size-160 {
			send()
		}
	}
	if b.Len() > 0 {
		send()
	}
	return parts
}

// sampled watches the memory in use until stop, which returns the most in bytes: of the
// heap's objects, as each collection leaves them or more, and of the process but for the
// table's file, which the system maps and may drop at will.
func sampled() (stop func() (heap, process uint64)) {
	var heap, process atomic.Uint64
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		for {
			metrics.Read(sample)
			heap.Store(max(heap.Load(), sample[0].Value.Uint64()))
			process.Store(max(process.Load(), anonymous()))
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() (uint64, uint64) {
		close(done)
		<-ended
		return heap.Load(), process.Load()
	}
}

// anonymous is the process's resident memory without files; 0 where that is not told.
func anonymous() (bytes uint64) {
	text, _ := os.ReadFile("/proc/self/status")
	if _, after, ok := strings.Cut(string(text), "RssAnon:"); ok {
		_, _ = fmt.Sscanf(after, "%d", &bytes)
	}
	return bytes << 10
}

// BenchmarkImport imports cards into a table file that is synced: rows with PUK, label,
// serial and flag; first only told, then done, then the same file again. An op is a row.
// Run it with -benchtime=100000x and -benchtime=1000000x: memory stays what it is.
func BenchmarkImport(b *testing.B) { benchmarkImport(b, intake.Cards) }

// BenchmarkImportUsers does so with users: with name, mail, external id, groups and a PIN
// that does not identify, of which the policy refuses one or two in a thousand.
func BenchmarkImportUsers(b *testing.B) { benchmarkImport(b, intake.Users) }

func benchmarkImport(b *testing.B, kind intake.Kind) {
	db, err := bolt.Open(filepath.Join(b.TempDir(), "table"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	counting := tabletest.Count(db)
	w := newWorldOn(b, counting)
	w.Kind = kind
	w.Now = time.Now // for the parts' patience
	var took intake.Counts
	b.ResetTimer()
	b.StopTimer()
	for _, name := range []string{"dry", "new", "again"} {
		im := w.create(func(o *intake.Options) { o.DryRun = name == "dry" })
		runtime.GC()
		debug.FreeOSMemory()
		counting.Take()
		stop := sampled()
		began := time.Now()
		if name == "new" {
			b.StartTimer()
		}
		parts := w.feed(im, b.N, 4<<20)
		elapsed := time.Since(began)
		b.StopTimer()
		heap, process := stop()
		calls := counting.Take()
		c := w.counts(im)
		if name == "dry" {
			took = c
		}
		if c.Rows() != b.N || c.Taken+c.Unchanged != took.Taken || took.Taken < b.N-b.N/100-1 || (name == "again") != (c.Unchanged > 0) {
			b.Fatalf("%s: %+v, %q", name, c, w.result(im))
		}
		b.ReportMetric(float64(b.N)/elapsed.Seconds(), name+"-rows/s")
		b.ReportMetric(float64(heap)/1e6, name+"-MB-heap")
		b.ReportMetric(float64(process)/1e6, name+"-MB-rss-anon")
		b.ReportMetric(float64(calls.Gets+calls.Queries+calls.Writes)/float64(b.N), name+"-calls/row")
		b.ReportMetric(float64(calls.Ops)/float64(b.N), name+"-ops/row")
		if parts > 1 {
			b.ReportMetric(float64(parts), "parts")
		}
	}
}

// BenchmarkImportAlone imports into a table that drops the cards: what is left is the
// import's own work and memory.
func BenchmarkImportAlone(b *testing.B) {
	w := newWorld(b)
	w.on(&drain{Table: w.Table, blind: true})
	w.Now = time.Now
	im := w.create()
	runtime.GC()
	debug.FreeOSMemory()
	stop := sampled()
	b.ResetTimer()
	w.feed(im, b.N, 4<<20)
	b.StopTimer()
	heap, process := stop()
	if c := w.counts(im); c.Taken != b.N {
		b.Fatalf("%+v", c)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(heap)/1e6, "MB-heap")
	b.ReportMetric(float64(process)/1e6, "MB-rss-anon")
}

// drain is a table that keeps what is of jobs and counts, and nothing of cards and users, and notes
// the most memory that is held when a part is saved.
type drain struct {
	table.Table
	held  uint64
	blind bool
}

func (d *drain) Write(ctx context.Context, ops ...table.Op) error {
	ops = slices.DeleteFunc(ops, func(op table.Op) bool {
		p := op.Item().Key.Partition()
		return !strings.Contains(p, "/job/") && !strings.Contains(p, "/uses/")
	})
	if len(ops) == 0 {
		return nil
	}
	if !d.blind && strings.HasPrefix(ops[len(ops)-1].Item().Key.Sort(), "part/") {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		d.held = max(d.held, m.HeapAlloc)
	}
	return d.Table.Write(ctx, ops...)
}

// BenchmarkImportDynamo imports into a DynamoDB that runs here. Transactions are carried
// out for it op by op, one after the other, so this tells of calls and not of what AWS does.
func BenchmarkImportDynamo(b *testing.B) { benchmarkImportDynamo(b, intake.Cards) }

// BenchmarkImportUsersDynamo does so with users.
func BenchmarkImportUsersDynamo(b *testing.B) { benchmarkImportDynamo(b, intake.Users) }

func benchmarkImportDynamo(b *testing.B, kind intake.Kind) {
	endpoint, stop, err := testserver.Dynalite()
	testserver.Need(b, err)
	defer stop()
	front, err := testserver.Transactions(endpoint)
	if err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(front)
	defer server.Close()
	client := dynamodb.New(dynamodb.Options{Region: "eu-central-1", BaseEndpoint: &server.URL, Credentials: credentials.NewStaticCredentialsProvider("id", "secret", "")})
	name := fmt.Sprintf("import-%s-%d", kind, b.N)
	if err := dynamo.Create(b.Context(), client, name); err != nil {
		b.Fatal(err)
	}
	db := dynamo.New(client, name)
	w := newWorldOn(b, db)
	w.Kind = kind
	w.Now = time.Now
	im := w.create()
	before := db.Stats()
	b.ResetTimer()
	w.feed(im, b.N, 4<<20)
	b.StopTimer()
	if c := w.counts(im); c.Taken < b.N-b.N/100-1 {
		b.Fatalf("%+v", c)
	}
	s := db.Stats()
	requests := s.Gets + s.Queries + s.Writes + s.Transactions - before.Gets - before.Queries - before.Writes - before.Transactions
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(requests)/float64(b.N), "requests/row")
	b.ReportMetric(float64(s.Retries-before.Retries), "retries")
}
