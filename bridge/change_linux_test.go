package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/softcard/pcscd"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/secret"
)

const wrongPIN = "926403"

// issueExpired makes a card whose PIN works and has expired ten days ago.
func (h *helpdesk) issueExpired(profile softcard.Profile) (*softcard.Card, string) {
	h.t.Helper()
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	family := "PIV"
	if profile == softcard.GIDS {
		family = "GIDS"
	}
	piece, err := softcard.New(softcard.Config{Profile: profile, ID: id, Rand: rand.Reader})
	h.must(err)
	n := credential.New{Family: family, CardID: hex.EncodeToString(id), Holder: h.holder, Label: "Ada's card", Template: h.template(family), IssuedAt: time.Now().AddDate(0, 0, -100)}
	if profile == softcard.GIDS {
		key := secret.New(hex.EncodeToString(softcard.FactoryAdminKey))
		n.AdminKey = &key
	}
	cred, err := h.system.Credentials.Register(h.t.Context(), h.core, by, n)
	h.must(err)
	if !cred.Expired(time.Now()) {
		h.t.Fatalf("the PIN expires on %s", cred.PINExpiresAt)
	}
	return piece, cred.ID
}

// renewed waits until the card's flag is set anew by the holder's change.
func (h *helpdesk) renewed(id string) {
	h.t.Helper()
	wait(h.t, "new flag", func() bool { return h.credential(id).LastPINChange.How == credential.ChangedByHolder })
	c := h.credential(id)
	if ago := time.Since(c.LastPINChange.At); ago < -time.Second || ago > time.Minute || !c.PINExpiresAt.Equal(c.LastPINChange.At.AddDate(0, 0, 90)) ||
		c.Flagged.How != credential.FlagByChange || c.Notice.State == credential.NoticeClaimed {
		h.t.Errorf("changed %s, expires %s, %+v, %+v", c.LastPINChange.At, c.PINExpiresAt, c.Flagged, c.Notice)
	}
}

// keeps fails the test if a PIN is where it must not be.
func (h *helpdesk) keeps(dir, printed string, pins ...string) {
	h.t.Helper()
	h.search(pins...)
	texts := map[string]string{"output": printed}
	h.must(filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			b, _ := os.ReadFile(path)
			texts[path] = string(b)
		}
		return err
	}))
	for where, text := range texts {
		for _, s := range pins {
			if strings.Contains(text, s) || strings.Contains(text, hex.EncodeToString([]byte(s))) {
				h.t.Errorf("%s shows a PIN", where)
			}
		}
	}
}

// knows has a bridge connected until it knows of the card that is in its reader.
func (h *helpdesk) knows(dir string) {
	h.t.Helper()
	run := startTalk(h.t, exec.Command("bridge", "run", "-dir", dir, "-soft", h.url+"/card"))
	run.sees("has expired on ", 1)
	_ = run.cmd.Process.Signal(os.Interrupt)
	<-run.ended
}

// gives answers the questions of a change.
func (s *talk) gives(times int, present, next string) {
	s.t.Helper()
	s.sees("Present PIN: ", times)
	s.types(present)
	if next != "" {
		s.sees("New PIN: ", 1)
		s.types(next)
		s.sees("The same again: ", 1)
		s.types(next)
	}
}

// TestChange: a card whose PIN has expired is put in, in a real service; its holder is told
// once, and changes the PIN. Tools of others are the judges.
func TestChange(t *testing.T) {
	for _, profile := range []softcard.Profile{softcard.PivApplet, softcard.CanoKey, softcard.GIDS} {
		t.Run(string(profile), func(t *testing.T) {
			t.Parallel()
			h := newHelpdesk(t)
			d := pcscd.Start(t)
			piece, id := h.issueExpired(profile)
			dir := h.enrolled()
			shown := filepath.Join(t.TempDir(), "shown")
			program := filepath.Join(t.TempDir(), "show")
			h.must(os.WriteFile(program, []byte("#!/bin/sh\necho \"$#:$1\" >> "+shown+"\n"), 0o700))
			run := startTalk(t, d.Command("bridge", "run", "-dir", dir, "-notify", program))
			run.sees("connected", 1)
			remove := d.Insert(0, piece)
			number := strings.ToUpper(id[len(id)-8:])
			sentence := fmt.Sprintf("The PIN of the smart card …%s has expired on %s: choose a new one with `bridge change`.", number, time.Now().AddDate(0, 0, -10).Format("2006-01-02"))
			notices := func() string {
				b, _ := os.ReadFile(shown)
				return string(b)
			}
			wait(t, "notice", func() bool { return notices() == "1:"+sentence+"\n" })
			run.sees(sentence, 1)

			next := "73825164"
			s := startTalk(t, d.Command("bridge", "change", "-dir", dir))
			s.sees("Present PIN: ", 1)
			s.sees("Its PIN has expired on ", 1)
			s.types("12")
			s.sees("The card was not asked", 1)
			s.sees("Present PIN: ", 2)
			s.types(wrongPIN)
			s.sees("New PIN: ", 1)
			asked := piece.Inspect().Commands
			s.types("123456")
			s.sees("The new PIN must not", 1)
			s.types(wrongPIN)
			s.sees("The same again: ", 1)
			s.types(wrongPIN)
			s.sees("must be another than the present one", 1)
			s.types(next)
			s.sees("The same again: ", 2)
			if now := piece.Inspect().Commands; now != asked {
				t.Errorf("%d commands reached the card before the new PIN would do", now-asked)
			}
			s.types(next)
			s.sees(fmt.Sprintf("That is not the present PIN. Tries left: %d.", piece.Inspect().PINMost-1), 1)
			s.sees("Present PIN: ", 3)
			if profile == softcard.GIDS { // whose command has no border between the two PINs
				s.types(softcard.FactoryPIN + "9")
				s.sees("Tries left: 1.", 1)
				s.sees("Go on (yes), or leave it (Enter)? ", 1)
				s.types("yes")
				s.sees("Present PIN: ", 4)
			}
			s.types(softcard.FactoryPIN)
			want := "The card has its new PIN. It expires on " + time.Now().AddDate(0, 0, 90).Format("2006-01-02")
			if code := s.ends(); code != 0 || !strings.Contains(s.out.String(), want) {
				t.Fatalf("exit code %d, want %q", code, want)
			}
			h.renewed(id)
			if actions := strings.Join(h.actions(id), ", "); !strings.HasPrefix(actions, "credential.pinChanged, credential.pinChanged failed, ") || strings.Contains(actions, "credential.pinChanged refused") {
				t.Errorf("audited %s", actions)
			}

			// The judges, before the card is put in once more.
			verify := func(pin string) error {
				cmd := d.Command("pkcs15-tool", "--verify-pin", "--pin", pin)
				if profile != softcard.GIDS {
					cmd = d.Command("yubico-piv-tool", "--reader", pcscd.Readers[0], "-a", "verify-pin", "-P", pin)
				}
				out, err := cmd.CombinedOutput()
				if err != nil {
					err = fmt.Errorf("%w: %s", err, out)
				}
				return err
			}
			if err := verify(next); err != nil {
				t.Errorf("the new PIN: %v", err)
			}
			if err := verify(softcard.FactoryPIN); err == nil {
				t.Error("the former PIN is taken")
			}
			remove()
			d.Await(0, false)
			d.Insert(0, piece)
			run.sees("script done", 4) // it is identified, in two scripts each time
			if text := notices(); strings.Count(text, "\n") != 1 {
				t.Errorf("told again: %s", text)
			}
			_ = run.cmd.Process.Signal(os.Interrupt)
			<-run.ended
			h.keeps(dir, s.out.String()+run.out.String(), next, wrongPIN)
		})
	}
}

// TestChangeOffline: without a connection, and without one ever; it is reported later.
func TestChangeOffline(t *testing.T) {
	h := newHelpdesk(t)
	piece, id := h.issueExpired(softcard.PivApplet)
	h.reader.Insert(piece)
	dir := h.enrolled()
	begin := func() *talk {
		return startTalk(t, exec.Command("bridge", "change", "-dir", dir, "-soft", h.url+"/card"))
	}
	h.connected(false)
	if s := begin(); s.ends() != 1 || !strings.Contains(s.out.String(), "was never connected while it was in a reader") {
		t.Error("a card that the bridge does not know")
	}
	h.connected(true)
	h.knows(dir)
	h.connected(false)
	s := begin()
	s.gives(1, softcard.FactoryPIN, firstPIN)
	if code := s.ends(); code != 0 || !piece.PINIs(firstPIN) || !strings.Contains(s.out.String(), "Acme is told when this bridge is next connected") {
		t.Errorf("exit code %d; PIN set: %t", code, piece.PINIs(firstPIN))
	}
	if c := h.credential(id); c.LastPINChange.How != credential.Issued {
		t.Errorf("%+v", c.LastPINChange)
	}
	h.connected(true)
	run := startTalk(t, exec.Command("bridge", "run", "-dir", dir, "-soft", h.url+"/card"))
	h.renewed(id)
	wait(t, "acknowledgement", func() bool {
		files, _ := filepath.Glob(filepath.Join(dir, "journal-*", "*.offline"))
		b, _ := os.ReadFile(files[0])
		return !strings.Contains(string(b), `"done"`)
	})
	_ = run.cmd.Process.Signal(os.Interrupt)
	<-run.ended
	h.keeps(dir, s.out.String(), firstPIN)
}

// TestChangeKilled: the bridge is killed once the card has its new PIN and before that is
// noted. It says that it does not know, and the flag stays.
func TestChangeKilled(t *testing.T) {
	h := newHelpdesk(t)
	piece, id := h.issueExpired(softcard.PivApplet)
	h.reader.Insert(piece)
	dir := h.enrolled()
	h.knows(dir)
	was := h.credential(id)
	var slow []softcard.Fault
	for step := 1; step <= 60; step++ {
		slow = append(slow, softcard.Fault{Step: step, Delay: 200 * time.Millisecond})
	}
	h.connected(false)
	s := startTalk(t, exec.Command("bridge", "change", "-dir", dir, "-soft", h.url+"/card"))
	s.sees("Present PIN: ", 1)
	piece.Inject(slow...)
	s.gives(1, softcard.FactoryPIN, firstPIN)
	wait(t, "new PIN", func() bool { return piece.PINIs(firstPIN) })
	_ = s.cmd.Process.Kill() // while the card is told to log out
	<-s.ended
	piece.Inject()
	h.connected(true)
	run := startTalk(t, exec.Command("bridge", "run", "-dir", dir, "-soft", h.url+"/card"))
	wait(t, "report", func() bool {
		return strings.Contains(strings.Join(h.actions(id), ", "), "credential.pinChanged failed")
	})
	_ = run.cmd.Process.Signal(os.Interrupt)
	<-run.ended
	if c := h.credential(id); c.LastPINChange != was.LastPINChange || !c.PINExpiresAt.Equal(was.PINExpiresAt) {
		t.Errorf("%+v, expires %s", c.LastPINChange, c.PINExpiresAt)
	}
	h.keeps(dir, s.out.String(), firstPIN)
}

// TestChangeLastTry: the last try is used only by who says so, and a blocked card is not
// tried.
func TestChangeLastTry(t *testing.T) {
	h := newHelpdesk(t)
	piece, _ := h.issueExpired(softcard.PivApplet)
	h.reader.Insert(piece)
	dir := h.enrolled()
	h.knows(dir)
	begin := func() *talk {
		return startTalk(t, exec.Command("bridge", "change", "-dir", dir, "-soft", h.url+"/card"))
	}
	s := begin()
	s.gives(1, wrongPIN, firstPIN)
	for n := 2; n < piece.Inspect().PINMost; n++ {
		s.gives(n, wrongPIN, "")
	}
	s.sees("Tries left: 1.", 1)
	s.sees("Go on (yes), or leave it (Enter)? ", 1)
	s.types("")
	if code := s.ends(); code != 1 || piece.Inspect().PINTries != 1 {
		t.Errorf("exit code %d, %d tries left", code, piece.Inspect().PINTries)
	}
	s = begin()
	s.sees("Go on (yes), or leave it (Enter)? ", 1)
	s.types("yes")
	s.gives(1, wrongPIN, firstPIN)
	if code := s.ends(); code != 1 || piece.Inspect().PINTries != 0 || !strings.Contains(s.out.String(), "Its PIN is blocked: `bridge unblock` gives it a new one.") {
		t.Errorf("exit code %d, %d tries left", code, piece.Inspect().PINTries)
	}
	before := piece.Inspect().Commands
	s = begin()
	if code := s.ends(); code != 1 || strings.Contains(s.out.String(), "Present PIN") || !strings.Contains(s.out.String(), "Its PIN is blocked") || piece.Inspect().Commands == before {
		t.Errorf("blocked: exit code %d", code)
	}
	h.keeps(dir, s.out.String(), wrongPIN, firstPIN)
}

// TestUnblockOffersChange: who asks for an unblock of a card whose PIN works and has expired
// is offered the change.
func TestUnblockOffersChange(t *testing.T) {
	h := newHelpdesk(t)
	piece, id := h.issueExpired(softcard.PivApplet)
	h.reader.Insert(piece)
	dir := h.enrolled()
	h.knows(dir)
	begin := func() *talk {
		s := startTalk(t, exec.Command("bridge", "unblock", "-dir", dir, "-soft", h.url+"/card"))
		s.sees("is not blocked, but has expired on ", 1)
		s.sees("or go on with the unblock (Enter)? ", 1)
		return s
	}
	s := begin()
	s.types("")
	s.sees("Asking for the unblock of the card", 1)
	_ = s.stdin.Close()
	s.ends()
	s = begin()
	s.types("1")
	s.gives(1, softcard.FactoryPIN, firstPIN)
	if code := s.ends(); code != 0 || !piece.PINIs(firstPIN) || strings.Contains(s.out.String(), "Asking for the unblock") {
		t.Errorf("exit code %d; PIN set: %t", code, piece.PINIs(firstPIN))
	}
	h.renewed(id)
	s = startTalk(t, exec.Command("bridge", "unblock", "-dir", dir, "-soft", h.url+"/card"))
	s.sees("Asking for the unblock of the card", 1)
	if strings.Contains(s.out.String(), "has expired") {
		t.Error("the change is offered though the PIN is new")
	}
}

// TestNotify: a program that is not there is refused at once, and one that hangs or fails
// holds up nothing.
func TestNotify(t *testing.T) {
	h := newHelpdesk(t)
	piece, _ := h.issueExpired(softcard.PivApplet)
	dir := h.enrolled()
	if out, err := exec.Command("bridge", "run", "-dir", dir, "-notify", "/nowhere/at-all").CombinedOutput(); err == nil || !strings.Contains(string(out), "-notify: ") {
		t.Errorf("%v: %s", err, out)
	}
	hang := filepath.Join(t.TempDir(), "hang")
	h.must(os.WriteFile(hang, []byte("#!/bin/sh\nsleep 60\n"), 0o700))
	run := startTalk(t, exec.Command("bridge", "run", "-dir", dir, "-soft", h.url+"/card", "-notify", hang))
	for n := 1; n <= 3; n++ {
		h.reader.Insert(piece)
		run.sees("has expired on ", n)
		h.reader.Remove()
		run.sees("cardRemoved", n)
	}
	began := time.Now()
	_ = run.cmd.Process.Signal(os.Interrupt)
	<-run.ended
	if took := time.Since(began); run.cmd.ProcessState.ExitCode() != 0 || took > 30*time.Second { // the program would go on for 60
		t.Errorf("ended after %v with %d:\n%s", took, run.cmd.ProcessState.ExitCode(), run.out.String())
	}
}

// TestPAMExpired changes an expired PIN on the way to a login, without a connection. A login
// whose card's PIN is good is not held up by a word.
func TestPAMExpired(t *testing.T) {
	h := newHelpdesk(t)
	piece, id := h.issueExpired(softcard.PivApplet)
	h.reader.Insert(piece)
	dir := h.enrolled()
	h.knows(dir)
	h.connected(false)
	service := login(t, fmt.Sprintf("bridge=%s dir=%s soft=%s/card", bridgePath(t), dir, h.url))
	begin := func() *talk {
		return startTalk(t, exec.Command("stdbuf", "-oL", "pamtester", service, "root", "authenticate"))
	}
	s := begin()
	s.sees("Change it now (1), or go on (Enter)? ", 1)
	s.types("")
	if code := s.ends(); code != 0 || !strings.Contains(s.out.String(), passed) || !piece.PINIs(softcard.FactoryPIN) {
		t.Errorf("gone on: exit code %d", code)
	}
	s = begin()
	s.sees("Change it now (1), or go on (Enter)? ", 1)
	s.types("1")
	s.gives(1, wrongPIN, firstPIN)
	s.gives(2, softcard.FactoryPIN, "")
	if code := s.ends(); code != 0 || !strings.Contains(s.out.String(), passed) || !piece.PINIs(firstPIN) {
		t.Errorf("changed: exit code %d; PIN set: %t", code, piece.PINIs(firstPIN))
	}
	h.keeps(dir, s.out.String(), wrongPIN, firstPIN)
	quiet := func(when string) {
		t.Helper()
		s := begin()
		if code := s.ends(); code != 0 || strings.Contains(s.out.String(), "smart card") {
			t.Errorf("%s: exit code %d", when, code)
		}
	}
	quiet("changed, and not told yet")
	h.connected(true)
	run := startTalk(t, exec.Command("bridge", "run", "-dir", dir, "-soft", h.url+"/card"))
	h.renewed(id)
	wait(t, "what is known anew", func() bool {
		files, _ := filepath.Glob(filepath.Join(dir, "journal-*", "*.offline"))
		b, _ := os.ReadFile(files[0])
		return strings.Contains(string(b), h.credential(id).PINExpiresAt.Format(time.RFC3339))
	})
	_ = run.cmd.Process.Signal(os.Interrupt)
	<-run.ended
	if strings.Contains(run.out.String(), "has expired") {
		t.Errorf("the holder is told of the former PIN's expiry:\n%s", run.out.String())
	}
	quiet("changed")
}
