package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinward/pinward/infra/testserver"
)

// terminal is what a person sees and types at.
type terminal struct {
	*os.File
	mu   sync.Mutex
	seen strings.Builder
}

// open starts a program at a terminal.
func openTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	testserver.Need(t, err)
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = master.Close() })
	term := &terminal{File: master}
	go func() {
		b := make([]byte, 1000)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			term.mu.Lock()
			term.seen.Write(b[:n])
			term.mu.Unlock()
		}
	}()
	return term
}

func (term *terminal) text() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.seen.String()
}

// expect waits until something is seen that many times, and types.
func (term *terminal) expect(t *testing.T, text string, times int, typed string) {
	t.Helper()
	wait(t, fmt.Sprintf("%q at the terminal", text), func() bool { return strings.Count(term.text(), text) >= times })
	time.Sleep(100 * time.Millisecond) // until it is asked without an echo
	_, _ = term.WriteString(typed)
}

func TestTerminal(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(w.close)
	cmd := exec.Command("bridge", "unblock", "-dir", w.enrolled(t), "-soft", w.web.URL+"/card")
	term := openTerminal(t, cmd)
	term.expect(t, "Code: ", 1, code+"\n")
	term.expect(t, "New PIN: ", 1, newPIN+"\n")
	term.expect(t, "The same again: ", 1, newPIN+"\n")
	if err := cmd.Wait(); err != nil || !w.card.PINIs(newPIN) {
		t.Errorf("%v; the PIN is new: %t\n%s", err, w.card.PINIs(newPIN), term.text())
	}
	wait(t, "the end", func() bool { return strings.Contains(term.text(), "The card has its new PIN.") })
	if text := term.text(); strings.Contains(text, newPIN) || strings.Contains(text, "no terminal") {
		t.Errorf("the PIN is shown:\n%s", text)
	}
}

// TestInterrupted types Ctrl-C where the PIN is asked for: the operation is cancelled, and
// the terminal shows again what is typed.
func TestInterrupted(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(w.close)
	w.setProven()
	cmd := exec.Command("bridge", "unblock", "-dir", w.enrolled(t), "-soft", w.web.URL+"/card")
	term := openTerminal(t, cmd)
	term.expect(t, "New PIN: ", 1, "73\x03")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("%v\n%s", err, term.text())
	}
	wait(t, "sentence", func() bool {
		return strings.Contains(term.text(), "Cancelled. It was cancelled. Nothing was changed.")
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancels != 1 {
		t.Errorf("cancelled %d times", w.cancels)
	}
	settings, err := unix.IoctlGetTermios(int(term.Fd()), unix.TCGETS)
	if err != nil || settings.Lflag&unix.ECHO == 0 {
		t.Errorf("the terminal does not echo any more: %v", err)
	}
}
