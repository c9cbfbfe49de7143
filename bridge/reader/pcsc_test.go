//go:build linux && cgo && !nopcsc

package reader_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ebfe/scard"

	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/softcard/pcscd"
)

// TestPCSC runs everything over a real service. libpcsclite asks for the socket's path
// once in a process, so there is one service for all, at a path that stays.
func TestPCSC(t *testing.T) {
	d := pcscd.Start(t)
	socket := filepath.Join(os.TempDir(), fmt.Sprintf("pinward-reader-test-%d", os.Getpid()))
	_ = os.Remove(socket)
	if err := os.Symlink(d.Socket(), socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(socket) })
	t.Setenv("PCSCLITE_CSOCK_NAME", socket)

	tests := append(suite[:len(suite):len(suite)], cases{{"card in the hands of another", testRival}}...)
	t.Run("in both readers", func(t *testing.T) {
		for slot, name := range pcscd.Readers {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				for i, test := range tests {
					if i%len(pcscd.Readers) == slot {
						t.Run(test.name, func(t *testing.T) { test.test(t, pcscRig(t, d, slot)) })
					}
				}
			})
		}
	})
	for _, test := range []struct {
		name string
		test func(*testing.T, *pcscd.Daemon, rig)
	}{
		{"Watch again and again", func(t *testing.T, _ *pcscd.Daemon, r rig) { testWatchAgain(t, r) }},
		{"killed in idle", testKilledIdle},
		{"killed in a session", testKilledInSession},
		{"killed while a card is silent", testKilledSilent},
		{"no reader, no service", testNoReader},
		{"kept beside another program", testKept},
		{"kept alone", testKeptAlone},
		{"without plug and play", testPolling},
	} {
		t.Run(test.name, func(t *testing.T) { test.test(t, d, pcscRig(t, d, 0)) })
	}
}

func pcscRig(t *testing.T, d *pcscd.Daemon, slot int) rig {
	out := func() {}
	return rig{
		name:   pcscd.Readers[slot],
		source: func(l reader.Limits) reader.Source { return reader.NewPCSC(l) },
		other:  func(_ reader.Source, l reader.Limits) reader.Source { return reader.NewPCSC(l) },
		insert: func(c *softcard.Card) { out(); out = d.Insert(slot, c) },
		remove: func() {
			out()
			out = func() {}
			awaitEmpty(pcscd.Readers[slot])
		},
		rival: func() func() {
			sc, c := connect(t, pcscd.Readers[slot], scard.ShareShared)
			return func() {
				if err := c.Disconnect(scard.ResetCard); err != nil {
					t.Errorf("reset by another program: %v", err)
				}
				_ = sc.Release()
			}
		},
		unguarded: func(s reader.Source) func(context.Context, string, int64) (*reader.Session, error) {
			return s.(*reader.PCSC).OpenUnguarded
		},
	}
}

// awaitEmpty waits until the service, if there is one, has seen that the card is out: the
// next Watch would tell of it.
func awaitEmpty(name string) {
	sc, err := scard.EstablishContext()
	if err != nil {
		return
	}
	defer sc.Release()
	for range 100 {
		states := []scard.ReaderState{{Reader: name + "\x00test"}}
		if sc.GetStatusChange(states, 0) != nil || states[0].EventState&scard.StateEmpty != 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// connect connects another program to the card.
func connect(t *testing.T, name string, share scard.ShareMode) (*scard.Context, *scard.Card) {
	t.Helper()
	sc, err := scard.EstablishContext()
	if err != nil {
		t.Fatal(err)
	}
	c, err := sc.Connect(name, share, scard.ProtocolAny)
	if err != nil {
		t.Fatal(err)
	}
	return sc, c
}

func testKilledIdle(t *testing.T, d *pcscd.Daemon, r rig) {
	_, w, in := r.begin(t, newCard(t, softcard.PivApplet), reader.DefaultLimits)
	leaks := count()
	for range 2 {
		d.Kill()
		w.want(reader.CardRemoved, reader.ReaderRemoved)
		if e := w.want(reader.ServiceDown); !errors.Is(e.Err, reader.ErrNoService) {
			t.Errorf("down: %v", e.Err)
		}
		if e := w.next(300 * time.Millisecond); e.Kind != "" {
			t.Errorf("said more than once: %+v", e)
		}
		d.Run()
		w.want(reader.ServiceUp, reader.ReaderAdded)
		again := w.want(reader.CardInserted).Insertion
		if again == in {
			t.Errorf("insertion %d again", in)
		}
		in = again
	}
	leaks(t)
}

func testKilledInSession(t *testing.T, d *pcscd.Daemon, r rig) {
	s, w, in := r.begin(t, newCard(t, softcard.PivApplet), reader.DefaultLimits)
	session := open(t, s, r.name, in)
	transmit(t, session, selectPIV)
	d.Kill()
	wantErr(t, session, chuid, reader.ErrNoService)
	if _, err := s.Open(t.Context(), r.name, in); err == nil {
		t.Error("opened without a service")
	}
	session.Close()
	w.want(reader.CardRemoved, reader.ReaderRemoved, reader.ServiceDown)
	if _, err := s.Open(t.Context(), r.name, in); !errors.Is(err, reader.ErrRemoved) {
		t.Errorf("the card that was told as removed: %v", err)
	}
	d.Run()
	w.want(reader.ServiceUp, reader.ReaderAdded)
	transmit(t, open(t, s, r.name, w.want(reader.CardInserted).Insertion), selectPIV)
}

// testKilledSilent: a card that does not answer leaves a call hanging in the service; it
// goes when the service goes.
func testKilledSilent(t *testing.T, d *pcscd.Daemon, r rig) {
	leaks := count()
	c := newCard(t, softcard.PivApplet)
	s, w, in := r.begin(t, c, short)
	session := open(t, s, r.name, in)
	c.Inject(softcard.Fault{Step: 1, Delay: 2 * time.Second})
	wantErr(t, session, selectPIV, reader.ErrSilent)
	w.want(reader.CardSilent)
	d.Kill()
	w.want(reader.CardRemoved, reader.ReaderRemoved, reader.ServiceDown)
	d.Run()
	w.want(reader.ServiceUp, reader.ReaderAdded)
	w.stop()
	r.remove()
	leaks(t)
}

// testNoReader starts without the service, which then comes without a reader, and then
// with one. A reader that comes while the service runs is not to be had with vpcd.
func testNoReader(t *testing.T, d *pcscd.Daemon, r rig) {
	d.Kill()
	w := watch(t, r.source(reader.DefaultLimits), r.name)
	w.want(reader.ServiceDown)

	cmd := exec.Command("sh", "-c", `mount --bind "$1" /run/pcscd && mount --bind "$2" /etc/reader.conf.d && exec pcscd --foreground --error`, "sh", filepath.Dir(d.Socket()), t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	defer end()
	w.want(reader.ServiceUp)
	if e := w.next(200 * time.Millisecond); e.Kind != "" {
		t.Errorf("%+v without a reader", e)
	}
	end()
	w.want(reader.ServiceDown)
	d.Run()
	w.want(reader.ServiceUp, reader.ReaderAdded)
}

func testPolling(t *testing.T, d *pcscd.Daemon, r rig) {
	r.source = func(l reader.Limits) reader.Source { return reader.NewPCSC(l).WithoutPlugAndPlay() }
	s, w, in := r.begin(t, newCard(t, softcard.PivApplet), reader.DefaultLimits)
	transmit(t, open(t, s, r.name, in), selectPIV)
	d.Kill()
	w.want(reader.CardRemoved, reader.ReaderRemoved, reader.ServiceDown)
	d.Run()
	w.want(reader.ServiceUp, reader.ReaderAdded, reader.CardInserted)
}

// testRival: another program has the card alone, holds a transaction, and resets the
// card while Open waits and while a session lasts.
func testRival(t *testing.T, r rig) {
	c := newCard(t, softcard.PivApplet)
	s, _, in := r.begin(t, c, reader.DefaultLimits)
	sc, rival := connect(t, r.name, scard.ShareExclusive)
	defer sc.Release()
	if _, err := s.Open(t.Context(), r.name, in); !errors.Is(err, reader.ErrBusy) {
		t.Errorf("exclusive: %v", err)
	}
	_ = rival.Disconnect(scard.LeaveCard)

	sc, rival = connect(t, r.name, scard.ShareShared)
	defer sc.Release()
	if err := rival.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Open(ctx, r.name, in); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("in a transaction of another: %v", err)
	}
	// The call that was given up does not keep the card when it is through, and a reset
	// before the session begins is none of its business.
	time.AfterFunc(200*time.Millisecond, func() { _ = rival.EndTransaction(scard.ResetCard) })
	session := open(t, s, r.name, in)
	transmit(t, session, selectPIV)
	reset := make(chan error)
	go func() { reset <- rival.Disconnect(scard.ResetCard) }()
	time.Sleep(200 * time.Millisecond)
	if answer := transmit(t, session, chuid); len(answer) < 20 {
		t.Errorf("reset in the middle of a transaction: % X", answer)
	}
	session.Close()
	<-reset

	if err := reader.NewPCSC(reader.DefaultLimits).CheckDirect(r.name); err == nil || !strings.Contains(err.Error(), "T=0") {
		t.Errorf("a connection without a protocol: %v", err)
	}
}

func TestTPDU(t *testing.T) {
	for _, test := range []struct{ command, want string }{
		{"00 20 00 80", "00 20 00 80 00"},
		{"00 C0 00 00 10", "00 C0 00 00 10"},
		{"00 24 00 81 02 31 32", "00 24 00 81 02 31 32"},
		{"00 CB 3F FF 03 5C 01 7E 00", "00 CB 3F FF 03 5C 01 7E"},
	} {
		if got := reader.TPDU(unhex(test.command)); !bytes.Equal(got, unhex(test.want)) {
			t.Errorf("%s: % X, want %s", test.command, got, test.want)
		}
	}
}

// kept begins to keep a card, and pauses.
func kept(t *testing.T, r rig) *reader.Session {
	t.Helper()
	s, _, in := r.begin(t, newCard(t, softcard.PivApplet), reader.DefaultLimits)
	session, err := s.(reader.Keeper).Keep(t.Context(), r.name, in, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Close)
	exchange(t, session)
	session.Pause()
	return session
}

func exchange(t *testing.T, s *reader.Session) {
	t.Helper()
	if b, err := s.Transmit(t.Context(), []byte{0x00, 0xA4, 0x04, 0x00, 0x05, 0xA0, 0x00, 0x00, 0x03, 0x08}); err != nil || len(b) < 2 {
		t.Fatalf("%X, %v", b, err)
	}
}

// testKeptAlone keeps a card for longer than a transaction may last; nobody else gets it.
func testKeptAlone(t *testing.T, _ *pcscd.Daemon, r rig) {
	session := kept(t, r)
	sc, err := scard.EstablishContext()
	if err != nil {
		t.Fatal(err)
	}
	defer sc.Release()
	if c, err := sc.Connect(r.name, scard.ShareShared, scard.ProtocolAny); !errors.Is(err, scard.ErrSharingViolation) {
		_ = c.Disconnect(scard.LeaveCard)
		t.Errorf("another program: %v", err)
	}
	time.Sleep(reader.DefaultLimits.Idle + 500*time.Millisecond)
	exchange(t, session)
}

// testKept keeps a card that another program has open already, and resets while it is
// paused: that is told.
func testKept(t *testing.T, _ *pcscd.Daemon, r rig) {
	out := newCard(t, softcard.PivApplet)
	s, _, in := r.begin(t, out, reader.DefaultLimits)
	reset := r.rival()
	session, err := s.(reader.Keeper).Keep(t.Context(), r.name, in, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	exchange(t, session)
	session.Pause()
	reset()
	if _, err := session.Transmit(t.Context(), []byte{0x00, 0xA4, 0x04, 0x00, 0x00}); !errors.Is(err, reader.ErrReset) {
		t.Errorf("after another program's reset: %v", err)
	}
}
