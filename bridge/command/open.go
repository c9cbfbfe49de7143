package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/bridge/enrolment"
	"github.com/pinward/pinward/shared/relay"
)

// browser is a program that shows a page.
type browser struct {
	program string
	flags   []string // before the address
	// stays: it ends when its window is closed. One that hands the page to another does not.
	stays   bool
	ends    bool // with us
	renewed bool // before its page ends, for another is opened then
	profile bool // it has one of its own
}

const (
	openFor = 30 * time.Second // how long the cloud may take to answer
	// A browser that ends at once is not opened again at once.
	reopenAfter, reopenAtMost = time.Second, time.Minute
	endedAtOnce               = 10 * time.Second
	stopFor                   = 5 * time.Second  // how long a browser may take to end when it is told to
	renewBefore               = 30 * time.Minute // a page would end, another is opened
	wallEvery                 = time.Minute
)

func open(ctx context.Context, p *program) error {
	b, err := p.browser()
	if err != nil {
		return err
	}
	for pause := reopenAfter; ; {
		began := time.Now()
		err := p.openOnce(ctx, b)
		var goodbye *agent.GoodbyeError
		switch {
		case ctx.Err() != nil:
			return nil
		case !p.loop, errors.As(err, &goodbye), errors.Is(err, enrolment.ErrNotEnrolled):
			return err
		case err != nil:
			fmt.Fprintf(p.Stderr, "bridge: %v\n", err)
		}
		if time.Since(began) > endedAtOnce {
			pause = reopenAfter
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, reopenAtMost)
	}
}

// openOnce opens the page, and stays as long as the page needs it, or its browser runs.
func (p *program) openOnce(ctx context.Context, b *browser) error {
	w, err := p.prepare(relay.Terminal, slog.LevelWarn)
	if err != nil {
		return err
	}
	defer w.close()
	var shown *showing // with done never closed where no end can be seen
	served := false
	err = w.atWork(ctx, func(a *agent.Agent) error {
		asking, cancel := context.WithTimeout(ctx, openFor)
		defer cancel()
		opened, err := a.OpenPage(asking, p.kiosk)
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("the cloud has not answered in %v: is this machine connected to the network?", openFor)
		} else if err != nil {
			return err
		}
		address, err := enrolment.CheckURL("the page's address", opened.URL, "https", "http")
		if err != nil {
			return err
		}
		address += "?t=" + url.QueryEscape(opened.Token.Reveal())
		if b == nil {
			shown = &showing{}
			fmt.Fprintln(p.Stdout, address)
		} else if shown, err = b.show(address, time.Duration(opened.OpenSeconds)*time.Second-renewBefore); err != nil {
			return err
		}
		if served = opened.Served; served {
			return nil // `bridge run` serves the readers
		}
		fmt.Fprintln(p.Stderr, "`bridge run` is not at work here, so this serves the readers for the page. Leave it running; Ctrl-C ends it.")
		select {
		case <-shown.done:
		case <-a.Over(): // atWork says why
		case <-ctx.Done():
		}
		return nil
	})
	if shown == nil {
		return err
	}
	if err == nil && served && b != nil && b.stays {
		select {
		case <-shown.done:
		case <-ctx.Done():
		}
	}
	return errors.Join(err, shown.end())
}

// showing is a browser that shows a page.
type showing struct {
	done chan struct{} // closed when it has ended
	err  error         // why, then
	stop func()        // nil if it does not end with us
}

// end ends it if it is ours, and returns what is amiss if it has ended.
func (s *showing) end() error {
	if s.stop != nil {
		select {
		case <-s.done:
		default:
			s.stop()
			<-s.done
			return nil
		}
	}
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// show starts the browser. One that is opened again and again ends after a while, before its
// page does.
func (b *browser) show(address string, during time.Duration) (*showing, error) {
	args, profile := append([]string(nil), b.flags...), ""
	if b.profile {
		var err error
		if profile, err = os.MkdirTemp("", "pinward-browser-"); err != nil {
			return nil, fmt.Errorf("make a profile for the browser: %w", err)
		}
		args = append(args, "--user-data-dir="+profile)
	}
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, b.program, append(args, address)...)
	cmd.WaitDelay = stopFor
	if runtime.GOOS != "windows" {
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	}
	if err := cmd.Start(); err != nil {
		stop()
		return nil, errors.Join(fmt.Errorf("start the browser: %w", err), remove(profile))
	}
	s := &showing{done: make(chan struct{})}
	if b.ends {
		s.stop = stop
	}
	go func() {
		err := cmd.Wait()
		if ctx.Err() != nil {
			err = nil // it was told to
		}
		if err = errors.Join(err, remove(profile)); err != nil {
			s.err = fmt.Errorf("the browser %s has ended: %w", filepath.Base(b.program), err)
		}
		stop()
		close(s.done)
	}()
	if b.renewed && during > 0 {
		go s.endAt(time.Now().Round(0).Add(during))
	}
	if b.stays {
		return s, nil
	}
	select { // it hands the page on, or cannot
	case <-s.done:
		if s.err != nil {
			return nil, fmt.Errorf("%w: name another one with -browser, or have the address printed with -print", s.err)
		}
		return &showing{}, nil
	case <-time.After(endedAtOnce):
		return &showing{}, nil
	}
}

// endAt ends it at a time by the clock on the wall: the machine may sleep meanwhile.
func (s *showing) endAt(at time.Time) {
	tick := time.NewTicker(wallEvery)
	defer tick.Stop()
	for time.Now().Round(0).Before(at) {
		select {
		case <-tick.C:
		case <-s.done:
			return
		}
	}
	s.stop()
}

// remove deletes a browser's profile, if it has one.
func remove(profile string) error {
	if profile == "" {
		return nil
	}
	return os.RemoveAll(profile)
}

// chromiums are the browsers that a kiosk can run, by their names.
var chromiums = []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "msedge"}

// kioskFlags have Chromium and its like fill the screen and keep nothing.
var kioskFlags = []string{"--kiosk", "--incognito", "--no-first-run", "--no-default-browser-check", "--disable-pinch", "--overscroll-history-navigation=0",
	"--disable-session-crashed-bubble", "--disable-translate", "--disable-sync", "--disable-background-networking"}

// browser returns what the flags ask for; nil prints the address.
func (p *program) browser() (*browser, error) {
	switch {
	case p.print && (p.browserName != "" || p.loop):
		return nil, usageError{errors.New("open: -print opens no browser: it goes with neither -browser nor -loop")}
	case p.print:
		return nil, nil
	case p.kiosk:
		program, err := p.chromium()
		if err != nil {
			return nil, err
		}
		flags := kioskFlags
		if strings.Contains(strings.ToLower(filepath.Base(program)), "edge") {
			flags = append([]string{"--edge-kiosk-type=fullscreen", "--inprivate"}, kioskFlags...)
		}
		return &browser{program: program, flags: flags, stays: true, ends: true, renewed: p.loop, profile: true}, nil
	case p.browserName != "":
		return &browser{program: p.browserName, stays: true, ends: p.loop, renewed: p.loop}, nil
	case p.loop:
		return nil, usageError{errors.New("open: -loop needs -kiosk or -browser: of the usual browser it cannot be seen when it has ended")}
	}
	if runtime.GOOS == "windows" {
		return &browser{program: "rundll32", flags: []string{"url.dll,FileProtocolHandler"}}, nil
	}
	usual, _, _ := strings.Cut(p.Getenv("BROWSER"), ":")
	program, err := exec.LookPath(cmp.Or(usual, "xdg-open"))
	if err != nil {
		return nil, fmt.Errorf("no browser was found (%s): name one with -browser, or have the address printed with -print", cmp.Or(usual, "xdg-open"))
	}
	return &browser{program: program}, nil
}

// chromium finds a browser for a kiosk.
func (p *program) chromium() (string, error) {
	names := chromiums
	if p.browserName != "" {
		names = []string{p.browserName}
	} else if runtime.GOOS == "windows" {
		for _, folder := range []string{p.Getenv("ProgramFiles(x86)"), p.Getenv("ProgramFiles")} {
			names = append(names, filepath.Join(folder, `Microsoft\Edge\Application\msedge.exe`), filepath.Join(folder, `Google\Chrome\Application\chrome.exe`))
		}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("-kiosk needs Chromium, Chrome or Edge, and there is no %s: install one, or name it with -browser", strings.Join(names, ", "))
}
