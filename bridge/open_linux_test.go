package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start runs a command of the bridge until the test interrupts it, which must end it well.
func (w *world) start(t *testing.T, shown string, args ...string) (stderr *bufio.Scanner, interrupt func()) {
	t.Helper()
	cmd := exec.Command("bridge", args...)
	cmd.Env = append(os.Environ(), "SHOWN="+shown)
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(os.Interrupt)
		late := time.AfterFunc(15*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("interrupted: %v", err)
		}
	}
	t.Cleanup(end)
	return bufio.NewScanner(pipe), end
}

// TestOpenServes: where nothing else serves the readers, the command does until it is told
// to stop.
func TestOpenServes(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(w.close)
	dir := w.enrolled(t)
	stderr, interrupt := w.start(t, "", "open", "-print", "-dir", dir, "-soft", w.web.URL+"/card")
	if !stderr.Scan() || !strings.Contains(stderr.Text(), "this serves the readers for the page") {
		t.Errorf("it says %q", stderr.Text())
	}
	time.Sleep(100 * time.Millisecond)
	interrupt() // it would fail if it had ended
}

// TestOpenLoop: a kiosk's page is opened anew, by another link, whenever its browser ends,
// and whatever else fails.
func TestOpenLoop(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(w.close)
	w.is(func() { w.served, w.refusing = true, true })
	dir, shown := w.enrolled(t), filepath.Join(t.TempDir(), "shown")
	stderr, _ := w.start(t, shown, "open", "-kiosk", "-loop", "-dir", dir, "-soft", w.web.URL+"/card")
	if !stderr.Scan() || !strings.Contains(stderr.Text(), "That did not work just now") {
		t.Errorf("it says %q", stderr.Text())
	}
	w.is(func() { w.refusing = false })
	wait(t, "second page", func() bool {
		b, _ := os.ReadFile(shown)
		return strings.Count(string(b), "\n") >= 2
	})
	b, _ := os.ReadFile(shown)
	lines := strings.Split(string(b), "\n")
	if !strings.HasSuffix(lines[0], "link2%26") || !strings.HasSuffix(lines[1], "link3%26") {
		t.Errorf("it has opened %q", lines)
	}
}

// TestOpenEndsItsBrowser: a kiosk's browser ends with the command, and leaves no profile.
func TestOpenEndsItsBrowser(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(w.close)
	w.is(func() { w.served = true })
	dir, temp := w.enrolled(t), t.TempDir()
	stays := filepath.Join(temp, "stays")
	if err := os.WriteFile(stays, []byte("#!/bin/sh\necho $$ > \"$SHOWN\"\nexec sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", temp)
	shown := filepath.Join(temp, "pid")
	_, interrupt := w.start(t, shown, "open", "-kiosk", "-browser", stays, "-dir", dir, "-soft", w.web.URL+"/card")
	pid := 0
	wait(t, "browser", func() bool {
		b, _ := os.ReadFile(shown)
		pid = 0
		for _, c := range strings.TrimSpace(string(b)) {
			pid = pid*10 + int(c-'0')
		}
		return strings.HasSuffix(string(b), "\n")
	})
	interrupt()
	if err := syscall.Kill(pid, 0); err == nil {
		t.Error("the browser goes on")
	}
	if left, _ := filepath.Glob(filepath.Join(temp, "pinward-browser-*")); len(left) > 0 {
		t.Errorf("it leaves %q", left)
	}
}
