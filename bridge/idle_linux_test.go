package main

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/softcard/pcscd"
)

// BenchmarkIdle measures the stripped program as it is connected over TLS and has nothing
// to do: its size, its resident memory, and how often it wakes up. A bare client of
// gorilla/websocket and ebfe/scard has 5.5 MB, and 12.1 MB resident with the system's roots
// or 7.8 MB with one that is pinned.
func BenchmarkIdle(b *testing.B) {
	for _, bench := range []struct {
		name         string
		tags         string
		pinned, real bool
	}{
		{"card in software, system roots", "nopcsc", false, false},
		{"card in software, one root", "nopcsc", true, false},
		{"pcscd, system roots", "", false, true},
		{"pcscd, one root", "", true, true},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var env []string
			var flags []string
			w := newWorldAt(b)
			w.web.StartTLS()
			b.Cleanup(w.close)
			if bench.real {
				d := pcscd.Start(b)
				d.Insert(0, w.card)
				env = append(env, d.Env())
			} else {
				card := httptest.NewServer(softcard.Handler(w.reader))
				b.Cleanup(card.Close)
				b.Cleanup(card.CloseClientConnections)
				flags = []string{"-soft", card.URL}
			}
			program := filepath.Join(b.TempDir(), "bridge")
			build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-tags="+bench.tags, "-o", program, ".")
			build.Env = os.Environ()
			if bench.tags == "nopcsc" {
				build.Env = append(build.Env, "CGO_ENABLED=0")
			}
			if out, err := build.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			info, err := os.Stat(program)
			if err != nil {
				b.Fatal(err)
			}
			root := filepath.Join(b.TempDir(), "root.pem")
			certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.web.Certificate().Raw})
			if !bench.pinned {
				system, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
				if err != nil {
					b.Skip(err)
				}
				certificate = append(certificate, system...)
				env = append(env, "SSL_CERT_FILE="+root)
			}
			if err := os.WriteFile(root, certificate, 0o600); err != nil {
				b.Fatal(err)
			}
			dir := filepath.Join(b.TempDir(), "state")
			enroll := exec.Command(program, "enroll", "-dir", dir, "GOODCODE", w.web.URL)
			if bench.pinned {
				enroll.Args = append(enroll.Args, "-ca", root)
			}
			enroll.Env = append(os.Environ(), env...)
			if out, err := enroll.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			var out bytes.Buffer
			cmd := exec.Command(program, append([]string{"run", "-dir", dir}, flags...)...)
			cmd.Env, cmd.Stderr = append(os.Environ(), env...), &out
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			time.Sleep(5 * time.Second)
			const idle = 60 * time.Second
			before := wakeups(b, cmd.Process.Pid)
			for b.Loop() {
				time.Sleep(idle)
			}
			woken := wakeups(b, cmd.Process.Pid) - before
			b.ReportMetric(float64(woken)/float64(b.N), "wakeups/min")
			b.ReportMetric(float64(memory(b, cmd.Process.Pid))/1e6, "MB-resident")
			b.ReportMetric(float64(info.Size())/1e6, "MB-program")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// wakeups counts how often a process's threads have begun to wait.
func wakeups(b *testing.B, pid int) (n int) {
	b.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		b.Fatal("no such process", err)
	}
	for _, file := range files {
		n += field(b, file, "voluntary_ctxt_switches:")
	}
	return n
}

// memory is what of a process is resident, in bytes.
func memory(b *testing.B, pid int) int {
	return field(b, fmt.Sprintf("/proc/%d/status", pid), "VmRSS:") * 1024
}

func field(b *testing.B, file, name string) int {
	b.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("%s has no %s", file, name)
	return 0
}
