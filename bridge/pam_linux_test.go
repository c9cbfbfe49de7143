package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/softcard/pcscd"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/credential"
)

// login is a PAM service with the module, which anybody may pass.
func login(t *testing.T, args string) (service string) {
	t.Helper()
	for _, program := range []string{"pamtester", "gcc"} {
		if _, err := exec.LookPath(program); err != nil {
			testserver.Need(t, fmt.Errorf("%w: run infra/softcard/install.sh as root", err))
		}
	}
	module := filepath.Join(t.TempDir(), "pam_pinward.so")
	if out, err := exec.Command("gcc", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-o", module, "pam/pam_pinward.c", "-lpam").CombinedOutput(); err != nil {
		testserver.Need(t, fmt.Errorf("gcc: %w: %s", err, out))
	}
	service = fmt.Sprintf("pinward-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	path := "/etc/pam.d/" + service
	text := fmt.Sprintf("auth optional %s %s\nauth required pam_permit.so\n", module, args)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		testserver.Need(t, err)
	}
	t.Cleanup(func() { _ = os.Remove(path) })
	return service
}

func bridgePath(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("bridge")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

const passed = "successfully authenticated"

var sixDigits = regexp.MustCompile(`\b\d{3} \d{3}\b`)

// TestPAMOffline logs in with a blocked GIDS card behind a real service and without a
// connection: it is unblocked on the way, and the login passes.
func TestPAMOffline(t *testing.T) {
	h := newHelpdesk(t)
	d := pcscd.Start(t)
	piece, id := h.issue(softcard.GIDS, h.template("GIDS"))
	d.Insert(0, piece)
	d.Await(0, true)
	dir := h.enrolled()
	h.connected(false)
	service := login(t, fmt.Sprintf("bridge=%s dir=%s", bridgePath(t), dir))
	s := startTalk(t, exec.Command("stdbuf", "-oL", "pamtester", "-E", d.Env(), service, "root", "authenticate"))
	s.sees("or go on (Enter)? ", 1)
	s.types("2")
	challenge := s.challenge(1)
	request := ask(id, byBridge, challenge)
	request["channel"] = "logonScreenOffline"
	given := h.call("helpdesk", "POST", "/v1/offline-answers", request, 201)
	s.types(spoil(given["response"].(string), 0))
	s.sees("group 1 was misheard", 1)
	s.types(given["response"].(string))
	s.sees("New PIN: ", 1)
	s.types(gidsPIN)
	s.sees("The same again: ", 1)
	s.types(gidsPIN)
	if code := s.ends(); code != 0 || !piece.PINIs(gidsPIN) || !strings.Contains(s.out.String(), passed) {
		t.Errorf("exit code %d; PIN set: %t", code, piece.PINIs(gidsPIN))
	}
	if strings.Contains(s.out.String(), gidsPIN) {
		t.Error("the PIN is shown")
	}
	h.search(given["response"].(string))
}

// TestPAMOnline unblocks by a code that is mailed.
func TestPAMOnline(t *testing.T) {
	h := newHelpdesk(t)
	piece, id := h.issue(softcard.PivApplet, h.template("PIV", func(t *credential.Template) { t.Channels = []credential.Channel{credential.LogonScreen} }))
	h.reader.Insert(piece)
	dir := h.enrolled()
	service := login(t, fmt.Sprintf("bridge=%s dir=%s soft=%s/card", bridgePath(t), dir, h.url))
	s := startTalk(t, exec.Command("stdbuf", "-oL", "pamtester", service, "root", "authenticate"))
	s.sees("or go on (Enter)? ", 1)
	s.types("1")
	s.sees("Code: ", 1)
	mails, err := h.outbox.List(10)
	h.must(err)
	var code string
	for _, m := range mails {
		text, err := h.outbox.Open(m.Name)
		h.must(err)
		if found := sixDigits.FindString(fmt.Sprint(text)); found != "" {
			code = found
		}
	}
	s.types(code)
	s.sees("New PIN: ", 1)
	s.types(firstPIN)
	s.sees("The same again: ", 1)
	s.types(firstPIN)
	if exit := s.ends(); exit != 0 || !piece.PINIs(firstPIN) || !strings.Contains(s.out.String(), passed) {
		t.Errorf("exit code %d; PIN set: %t", exit, piece.PINIs(firstPIN))
	}
	if how := h.credential(id).LastPINChange.How; how != credential.ResetBySelfService {
		t.Errorf("reset %s", how)
	}
}

// TestPAMFailsSafe: whatever is wrong, a login passes as without the module, and soon.
func TestPAMFailsSafe(t *testing.T) {
	h := newHelpdesk(t)
	piece, _ := h.issue(softcard.PivApplet, h.template("PIV"))
	dir := h.enrolled()
	hang := filepath.Join(t.TempDir(), "hang")
	h.must(os.WriteFile(hang, []byte("#!/bin/sh\necho 'I hello'\nexec sleep 60\n"), 0o700))
	noise := filepath.Join(t.TempDir(), "noise")
	h.must(os.WriteFile(noise, []byte("#!/bin/sh\nhead -c 5000 /dev/urandom\n"), 0o700))
	soft := fmt.Sprintf("soft=%s/card", h.url)
	for _, c := range []struct {
		name, args string
		insert     bool
		within     time.Duration
	}{
		{"no bridge", "bridge=/nowhere/bridge", false, 20 * time.Second},
		{"not enrolled", fmt.Sprintf("bridge=%s dir=%s %s", bridgePath(t), t.TempDir(), soft), true, 20 * time.Second},
		{"no card", fmt.Sprintf("bridge=%s dir=%s %s", bridgePath(t), dir, soft), false, 20 * time.Second},
		{"nobody answers", fmt.Sprintf("bridge=%s dir=%s %s", bridgePath(t), dir, soft), true, 30 * time.Second},
		{"noise", "bridge=" + noise, false, 20 * time.Second},
		{"the bridge hangs", "bridge=" + hang, false, 45 * time.Second}, // of its 60
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.insert {
				h.reader.Insert(piece)
				defer h.reader.Remove()
			}
			cmd := exec.Command("pamtester", login(t, c.args), "root", "authenticate")
			cmd.Stdin = strings.NewReader("")
			began := time.Now()
			out, err := cmd.CombinedOutput()
			if took := time.Since(began); err != nil || !strings.Contains(string(out), passed) || took > c.within {
				t.Errorf("after %v: %v: %s", took, err, out)
			}
		})
	}
}
