//go:build linux

// Package pcscd starts a real PC/SC daemon with two virtual readers for tests, which
// software cards are put into. Every daemon has a network of its own, for the
// readers listen on all interfaces, and a socket of its own: daemons do not meet
// each other, nor one that runs on the machine.
package pcscd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver"
)

// Readers are the names of the virtual readers, by slot.
var Readers = []string{"Virtual PCD 00 00", "Virtual PCD 00 01"}

// firstPort is that of slot 0; the next slot has the next (vpcd's reader.conf.d).
const firstPort = 35963

// Daemon is a pcscd.
type Daemon struct {
	tb     testing.TB
	dir    string
	inside chan func()

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
	out    map[int]time.Time // when a card came out of a slot last
}

// Start starts a daemon, which ends with the test. Without root or the packages of
// install.sh the test is skipped, in CI it fails.
func Start(tb testing.TB) *Daemon {
	tb.Helper()
	testserver.Need(tb, missing())
	d := &Daemon{tb: tb, dir: tb.TempDir(), inside: make(chan func()), out: map[int]time.Time{}}
	unshared := make(chan error)
	go d.network(unshared)
	tb.Cleanup(func() {
		d.Kill()
		close(d.inside)
	})
	if err := <-unshared; err != nil {
		testserver.Need(tb, fmt.Errorf("a network of one's own: %w", err))
	}
	d.Run()
	return d
}

// missing tells what is not there.
func missing() error {
	const why = "run infra/softcard/install.sh as root"
	if os.Geteuid() != 0 {
		return errors.New("pcscd: must be root")
	}
	if _, err := os.Stat("/etc/reader.conf.d/vpcd"); err != nil {
		return fmt.Errorf("vpcd is not installed: %s", why)
	}
	for _, program := range []string{"pcscd", "ip", "mount", "opensc-tool"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed: %s", program, why)
		}
	}
	return nil
}

// network runs functions on a thread that is in a network of its own, and so are the
// processes and connections that they start. The thread is never given back. It is not the
// main one, whose network is shown in /proc as the whole process's.
func (d *Daemon) network(unshared chan<- error) {
	runtime.LockOSThread()
	if syscall.Gettid() == os.Getpid() {
		elsewhere := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(elsewhere)
			d.network(unshared)
		}()
		<-elsewhere
		runtime.UnlockOSThread()
		return
	}
	err := syscall.Unshare(syscall.CLONE_NEWNET)
	if err == nil {
		// vpcd sends length and payload in two writes: without quick ACK, Nagle's
		// algorithm and delayed ACK cost 40 ms a command.
		err = run("ip", "link", "set", "lo", "up")
	}
	if err == nil {
		err = run("ip", "route", "change", "table", "local", "local", "127.0.0.1", "dev", "lo", "proto", "kernel", "scope", "host", "src", "127.0.0.1", "quickack", "1")
	}
	unshared <- err
	for f := range d.inside {
		f()
	}
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func (d *Daemon) do(f func()) {
	done := make(chan struct{})
	d.inside <- func() {
		defer close(done)
		f()
	}
	<-done
}

// Socket is the path of the daemon's socket.
func (d *Daemon) Socket() string { return filepath.Join(d.dir, "pcscd.comm") }

// Env is the environment variable that leads libpcsclite to this daemon.
func (d *Daemon) Env() string { return "PCSCLITE_CSOCK_NAME=" + d.Socket() }

// Run starts the daemon again after Kill and waits until it is ready.
func (d *Daemon) Run() {
	d.tb.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	// The socket's path is built into pcscd, so the folder is put over its folder.
	cmd := exec.Command("sh", "-c", `mkdir -p /run/pcscd && mount --bind "$1" /run/pcscd && exec pcscd --foreground --error`, "sh", d.dir)
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var err error
	d.do(func() { err = cmd.Start() })
	if err != nil {
		d.tb.Fatalf("start pcscd: %v", err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	d.cmd, d.exited = cmd, exited
	d.await("readiness", func() bool {
		select {
		case <-exited:
			d.tb.Fatalf("pcscd ended at once: %s", out)
		default:
		}
		return strings.Contains(d.readers(), Readers[len(Readers)-1])
	})
}

func (d *Daemon) await(what string, ready func() bool) {
	d.tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ready(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.tb.Fatalf("pcscd: no %s in 10 s", what)
		}
	}
}

// Kill ends the daemon with SIGKILL. Cards that are in it fall out.
func (d *Daemon) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	<-d.exited
}

func (d *Daemon) dial(slot int) (conn net.Conn, err error) {
	d.do(func() {
		conn, err = net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(firstPort+slot)))
	})
	return conn, err
}

// poll is how often pcscd looks whether there is a card, and a little more. If one
// comes out during a command and another is in before pcscd looks, it takes neither
// for there from then on.
const poll = 500 * time.Millisecond

// Insert puts a card into a reader; remove takes it out. Programs see either up to 0.4 s
// later: Await. The card is put in again when the daemon was killed and runs again, but
// not when a fault took it out.
func (d *Daemon) Insert(slot int, card *softcard.Card) (remove func()) {
	d.tb.Helper()
	d.mu.Lock()
	wait := time.Until(d.out[slot].Add(poll))
	d.mu.Unlock()
	time.Sleep(wait)
	conn, err := d.dial(slot)
	if err != nil {
		d.tb.Fatalf("insert card: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan struct{})
	go func() {
		defer close(out)
		for {
			err := softcard.ServeConn(ctx, conn, card)
			d.mu.Lock()
			d.out[slot] = time.Now()
			d.mu.Unlock()
			if err == nil || errors.Is(err, softcard.ErrRemoved) || errors.Is(err, softcard.ErrLost) {
				return
			}
			for {
				if conn, err = d.dial(slot); err == nil {
					break
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
	}()
	var once sync.Once
	remove = func() { once.Do(func() { cancel(); <-out }) }
	d.tb.Cleanup(remove)
	return remove
}

// readers is a list of the readers, a line each, with "Yes" if there is a card in it.
func (d *Daemon) readers() string {
	out, err := d.Command("opensc-tool", "--list-readers").Output()
	if err != nil {
		return ""
	}
	return string(out)
}

// Await waits until programs see that there is a card in a reader, or that there is none.
func (d *Daemon) Await(slot int, present bool) {
	d.tb.Helper()
	d.await(fmt.Sprintf("card in slot %d: %t", slot, present), func() bool {
		for line := range strings.Lines(d.readers()) {
			if strings.HasSuffix(strings.TrimSpace(line), Readers[slot]) {
				return strings.Contains(line, "Yes") == present
			}
		}
		return false
	})
}

// Command prepares a program to run against this daemon.
func (d *Daemon) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), d.Env(), "LC_ALL=C")
	return cmd
}
