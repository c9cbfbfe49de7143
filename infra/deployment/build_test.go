package deployment

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/testserver"
)

// flags are the Makefile's for the functions.
var flags = []string{"-tags", "lambda.norpc", "-trimpath", "-ldflags", "-s -w"}

func TestMakefile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := parse(templateText(t))
	if err != nil {
		t.Fatal(err)
	}
	var functions []string
	for _, f := range (&template{doc: doc}).resources("AWS::Serverless::Function") {
		functions = append(functions, filepath.Base(list(f["CodeUri"])[0]))
	}
	slices.Sort(functions)
	for _, want := range []string{
		"FUNCTIONS := " + strings.Join(functions, " ") + "\n",
		"CGO_ENABLED=0 GOOS=linux GOARCH=arm64 go build -tags lambda.norpc -trimpath -ldflags \"-s -w\"\n",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the Makefile has no %q", want)
		}
	}
}

// build builds a package as the Makefile builds functions, and returns the
// binary and its size in bytes.
func build(tb testing.TB, arch, pkg string) (bootstrap string, size int64) {
	tb.Helper()
	bootstrap = filepath.Join(tb.TempDir(), "bootstrap")
	cmd := exec.Command("go", slices.Concat([]string{"build", "-o", bootstrap}, flags, []string{pkg})...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build %s for %s: %v\n%s", pkg, arch, err, out)
	}
	info, err := os.Stat(bootstrap)
	if err != nil {
		tb.Fatal(err)
	}
	return bootstrap, info.Size()
}

const (
	api           = root + "/functions/api"
	relayFunction = root + "/functions/relay"
	sweep         = root + "/functions/sweep"
	trigger       = root + "/functions/trigger"
	console       = root + "/functions/console"
	empty         = "./testdata/empty"
)

func TestArm64(t *testing.T) {
	for _, pkg := range []string{api, relayFunction, sweep, trigger, console} {
		bootstrap, size := build(t, "arm64", pkg)
		file, err := elf.Open(bootstrap)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if libraries, err := file.ImportedLibraries(); file.Machine != elf.EM_AARCH64 || len(libraries) > 0 || err != nil {
			t.Errorf("%s: for %v, needs %v, %v", pkg, file.Machine, libraries, err)
		}
		t.Logf("%s: %.1f MB", pkg, float64(size)/1e6)
	}
}

func needLinux(tb testing.TB) {
	if runtime.GOOS != "linux" {
		testserver.Need(tb, errors.New("the functions' binaries run on Linux only"))
	}
}

// BenchmarkStart starts the functions and one that does nothing in turn. The
// figures are medians from the start of the process until it asks for work, and
// megabytes (10^6 bytes) for arm64.
func BenchmarkStart(b *testing.B) {
	needLinux(b)
	env := environment("http://127.0.0.1:1", "http://127.0.0.1:1", "http://127.0.0.1:1", "http://127.0.0.1:1", // nothing is called
		"arn:aws:kms:eu-central-1:123456789012:key/1", "")
	packages := map[string]string{"empty": empty, "api": api, "relay": relayFunction, "sweep": sweep, "trigger": trigger, "console": console}
	bootstraps := map[string]string{}
	for name, pkg := range packages {
		bootstraps[name], _ = build(b, runtime.GOARCH, pkg)
		_, size := build(b, "arm64", pkg)
		b.ReportMetric(float64(size)/1e6, name+"-MB")
	}
	times := map[string][]time.Duration{}
	for b.Loop() {
		for name, bootstrap := range bootstraps {
			l, err := testserver.StartLambda(bootstrap, env)
			if err != nil {
				b.Fatal(err)
			}
			l.Stop()
			times[name] = append(times[name], l.Ready)
		}
	}
	median := map[string]float64{}
	for name, ds := range times {
		slices.Sort(ds)
		median[name] = ds[len(ds)/2].Seconds() * 1e3
		b.ReportMetric(median[name], name+"-ms")
	}
	for _, name := range []string{"api", "relay", "sweep", "trigger", "console"} {
		b.ReportMetric(median[name]/median["empty"], name+"/empty")
	}
	b.ReportMetric(0, "ns/op")
}
