// Package command is the bridge's command line. Its invariant: a PIN or a code that is
// typed is never printed, logged or stored.
package command

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/bridge/enrolment"
	"github.com/pinward/pinward/bridge/journal"
	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

// Version is this bridge's. The cloud compares it with the oldest that it works with.
const Version = "1.0.0"

// Exit codes.
const (
	exitOK        = 0
	exitFailed    = 1
	exitUsage     = 2
	exitEnrol     = 3
	exitUpdate    = 4
	exitReplaced  = 5
	exitCancelled = 130 // 128 and SIGINT, as shells have it
)

const exitCodes = `
Exit codes:
  0    done
  1    it failed: what is printed says why
  2    wrong usage
  3    not enrolled, or revoked: enrol anew
  4    this bridge is too old: install a newer one
  5    another session of this bridge has taken its place
  130  cancelled by Ctrl-C
`

// Env is what the program is run with.
type Env struct {
	Args           []string
	Stdin          io.Reader // an *os.File that is a terminal is asked as one
	Stdout, Stderr io.Writer
	Getenv         func(string) string
}

// command is one of the bridge's commands.
type command struct {
	name, args, summary, about string

	flags func(*flag.FlagSet, *options)
	run   func(context.Context, *program) error
}

var commands = []command{
	{"enroll", "CODE URL", "make this machine a bridge", `Makes this machine a bridge of an organisation. An administrator gives you the CODE, which
is good once and for 10 minutes, and the URL of Pinward. Keys are made here; their public
halves are sent, and the private ones stay in the state folder.`,
		func(fs *flag.FlagSet, o *options) {
			fs.BoolVar(&o.force, "force", false, "take the place of an enrolment that is there")
		}, enroll},
	{"run", "", "connect to the cloud and serve the readers", `Connects to the cloud, reports readers and cards, and runs what is asked for on them, until
it is told to stop. SIGTERM and Ctrl-C let a script finish that runs. When a card is inserted
whose PIN has expired, that is logged and, on Windows, shown to the person at the machine;
elsewhere -notify shows it.`,
		func(fs *flag.FlagSet, o *options) {
			fs.StringVar(&o.notify, "notify", "", "run this `program` with one sentence as its argument, such as notify-send, when a card is inserted whose PIN has expired")
		}, run},
	{"unblock", "", "give the card in a reader a new PIN, at this terminal", `Gives a blocked card a new PIN: asks for the code that is mailed to you, or goes on with an
unblock that an operator has started, and asks for the new PIN, which leaves this machine
only for the card. Ctrl-C cancels it. Where the input is no terminal its lines are the
answers: the reader's number if it is asked for, the code, the new PIN twice.

With -offline it needs no connection: it shows a challenge that you read out to your help
desk, and takes the response that they read out to you in place of the code.`,
		func(fs *flag.FlagSet, o *options) {
			fs.BoolVar(&o.offline, "offline", false, "without a connection, by challenge and response with the help desk")
		}, unblock},
	{"open", "", "open the web page on which the holder of a card here helps themselves", `Opens a page in a browser, on which a person at this machine gives the card in its reader a
new PIN, with a code that is mailed to them. The link to it is good once, for two minutes and
for this bridge; the page then for 12 hours. It needs a ` + "`bridge run`" + ` here, or does its work
as long as it runs itself.

With -kiosk the page is for a screen that many people touch: it fills the screen, with large
keys, and forgets everything when the card is taken out, when all is done and after 60
seconds. The browser is Chromium, Chrome or Edge, with a profile of its own that is deleted
when it ends. For a kiosk that starts with the machine and opens its page anew in time:

  bridge open -kiosk -loop`,
		func(fs *flag.FlagSet, o *options) {
			fs.StringVar(&o.browserName, "browser", "", "open the page with this `program`; else with $BROWSER, or the usual one")
			fs.BoolVar(&o.kiosk, "kiosk", false, "for a screen that many people touch")
			fs.BoolVar(&o.loop, "loop", false, "open it anew whenever its browser has ended; with -kiosk or -browser")
			fs.BoolVar(&o.print, "print", false, "print the address, and open nothing")
		}, open},
	{"change", "", "change the PIN of the card in a reader, at this terminal", `Changes the PIN of a card by its holder, who knows the present one: asks for it and for the
new PIN, twice. Both leave this machine only for the card. It goes with and without a
connection, once this bridge has seen the card with one. Where the input is no terminal its
lines are the answers.`, nil, change},
	{"pam", "", "offer an unblock at a locked screen or a login (for pam_pinward.so)", `Speaks with pam_pinward.so: where a card is in a reader whose PIN is blocked, it offers to
unblock it, with a mailed code or with the help desk, and where a card's PIN has expired, to
change it. It says nothing where there is nothing to offer.`, nil, pam},
	{"status", "", "say how things are", `Says what this bridge is, whether it can connect (without disturbing one that runs), whether
the clock is right, what readers and cards there are, and how many results wait for the
cloud.`, nil, status},
	{"version", "", "say what version this is", `Says what version this is.`, nil, version},
}

// options are what flags set.
type options struct {
	dir, ca, soft, notify, browserName string
	force, offline, kiosk, loop, print bool
}

// program is a command that runs.
type program struct {
	Env
	options
	args []string
}

// usageError is the caller's fault.
type usageError struct{ error }

// exitError ends the program with a code, after all was said.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// Main runs the program until it is done, or until ctx is and it has finished, and returns
// the exit code.
func Main(ctx context.Context, env Env) int {
	err := dispatch(ctx, env)
	var goodbye *agent.GoodbyeError
	var exit exitError
	var usage usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.As(err, &exit):
		return int(exit)
	}
	fmt.Fprintf(env.Stderr, "bridge: %v\n", err)
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &goodbye):
		switch goodbye.Code {
		case relay.Revoked:
			return exitEnrol
		case relay.Update:
			return exitUpdate
		case relay.Replaced:
			return exitReplaced
		}
	case errors.Is(err, enrolment.ErrNotEnrolled):
		return exitEnrol
	case errors.Is(err, context.Canceled):
		return exitCancelled
	}
	return exitFailed
}

func dispatch(ctx context.Context, env Env) error {
	if len(env.Args) == 0 || env.Args[0] == "-h" || env.Args[0] == "-help" || env.Args[0] == "--help" || env.Args[0] == "help" {
		usage(env.Stdout)
		if len(env.Args) == 0 {
			return usageError{errors.New("say what to do")}
		}
		return nil
	}
	for _, c := range commands {
		if c.name == env.Args[0] {
			p := &program{Env: env}
			if err := p.parse(c, env.Args[1:]); err != nil {
				return err
			}
			return c.run(ctx, p)
		}
	}
	return usageError{fmt.Errorf("there is no command %q: see bridge -h", env.Args[0])}
}

func usage(w io.Writer) {
	fmt.Fprint(w, "Pinward's bridge between smart card readers and the cloud.\n\n")
	for _, c := range commands {
		fmt.Fprintf(w, "  bridge %-18s %s\n", c.name+" "+c.args, c.summary)
	}
	fmt.Fprint(w, "\n`bridge COMMAND -h` says more.\n", exitCodes)
}

// parse takes flags before and after the arguments.
func (p *program) parse(c command, args []string) error {
	fs := flag.NewFlagSet(c.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	if c.name != "version" {
		fs.StringVar(&p.dir, "dir", stateFolder(p.Getenv), "the `folder` where this bridge keeps its keys and its record")
		fs.StringVar(&p.ca, "ca", "", "trust only the root certificate in this PEM `file`; from enrolment on")
	}
	if c.name != "version" && c.name != "enroll" {
		fs.StringVar(&p.soft, "soft", "", "use the card in software that a local installation serves at this `URL`, and no readers")
	}
	if c.flags != nil {
		c.flags(fs, &p.options)
	}
	for {
		err := fs.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(p.Stdout, "bridge %s [flags] %s\n\n%s\n\nFlags:\n", c.name, c.args, c.about)
			fs.SetOutput(p.Stdout)
			fs.PrintDefaults()
			fmt.Fprint(p.Stdout, exitCodes)
			return err
		}
		if err != nil {
			return usageError{fmt.Errorf("%s: %w: see bridge %s -h", c.name, err, c.name)}
		}
		if args = fs.Args(); len(args) == 0 {
			break
		}
		p.args, args = append(p.args, args[0]), args[1:]
	}
	want := 0
	if c.name == "enroll" {
		want = 2
	}
	if len(p.args) != want {
		return usageError{fmt.Errorf("usage: bridge %s [flags] %s", c.name, c.args)}
	}
	return nil
}

// stateFolder is where a bridge keeps its state unless told otherwise.
func stateFolder(getenv func(string) string) string {
	switch {
	case runtime.GOOS == "windows":
		return filepath.Join(getenv("ProgramData"), "Pinward", "Bridge")
	case os.Geteuid() == 0:
		return "/var/lib/pinward-bridge"
	case getenv("XDG_STATE_HOME") != "":
		return filepath.Join(getenv("XDG_STATE_HOME"), "pinward-bridge")
	}
	return filepath.Join(getenv("HOME"), ".local", "state", "pinward-bridge")
}

// system is what this program runs on.
const system = runtime.GOOS + "/" + runtime.GOARCH

func version(_ context.Context, p *program) error {
	_, err := fmt.Fprintf(p.Stdout, "bridge %s %s %s\n", Version, system, runtime.Version())
	return err
}

// roots returns the certificate in the file of -ca in PEM, or what was used to enrol.
func (p *program) roots(enrolled string) (string, error) {
	if p.ca == "" {
		return enrolled, nil
	}
	b, err := os.ReadFile(p.ca)
	if err != nil {
		return "", fmt.Errorf("-ca: %w", err)
	}
	if len(b) == 0 {
		return "", problem.Invalid("malformed", "-ca", "must not be empty")
	}
	return string(b), nil
}

func tlsConfig(pem string) (*tls.Config, error) {
	pool, err := enrolment.Roots(pem)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

func httpClient(c *tls.Config) *http.Client {
	return &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: c},
	}
}

func enroll(ctx context.Context, p *program) error {
	pem, err := p.roots("")
	if err != nil {
		return err
	}
	c, err := tlsConfig(pem)
	if err != nil {
		return err
	}
	host, _ := os.Hostname() // for people only
	e, err := enrolment.Enrol(ctx, httpClient(c), rand.Reader, time.Now(), enrolment.Request{
		Dir: p.dir, Code: relay.Code{Text: secret.New(p.args[0])}, URL: p.args[1],
		Program: Version, System: system, Host: host, CA: pem, Force: p.force,
	})
	if err != nil {
		return err
	}
	if err := journal.Create(e.Journal(p.dir)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.Stdout, "This machine is now the bridge %q (%s) of %s.\nStart it with: bridge run\n", e.Name, e.Bridge, e.Organisation)
	return err
}

// work is what the commands need that work with cards.
type work struct {
	agent.Config
	memory memory
}

// prepare reads the state folder. The caller must call close.
func (p *program) prepare(session relay.Session, level slog.Level) (*work, error) {
	e, err := enrolment.Load(p.dir)
	if err != nil {
		return nil, err
	}
	pem, err := p.roots(e.CA)
	if err != nil {
		return nil, err
	}
	c, err := tlsConfig(pem)
	if err != nil {
		return nil, err
	}
	source, err := p.source()
	if err != nil {
		return nil, err
	}
	process := make([]byte, 8)
	if _, err := rand.Read(process); err != nil {
		return nil, err
	}
	disk, err := journal.Open(e.Journal(p.dir), hex.EncodeToString(process), time.Now())
	if err != nil {
		return nil, err
	}
	kept := memory{disk, e, p.dir}
	return &work{agent.Config{
		Session: session, Enrolment: e, Source: source, Journal: journal.New(disk), Program: Version, System: system, TLS: c,
		Log: slog.New(slog.NewTextHandler(p.Stderr, &slog.HandlerOptions{Level: level})), Now: time.Now, Rand: rand.Reader,
		Offline: kept,
	}, kept}, nil
}

func (w *work) close() { w.memory.Close() }

// atWork does something while an agent works beside it.
func (w *work) atWork(ctx context.Context, do func(*agent.Agent) error) error {
	a, err := agent.New(w.Config)
	if err != nil {
		return err
	}
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- a.Run(working) }()
	err = do(a)
	stop()
	if goodbye := <-ended; goodbye != nil {
		return said(goodbye)
	}
	return err
}

func (p *program) source() (reader.Source, error) {
	if p.soft == "" {
		return reader.NewPCSC(reader.DefaultLimits), nil
	}
	address, err := enrolment.CheckURL("-soft", strings.TrimRight(p.soft, "/"), "https", "http")
	if err != nil {
		return nil, err
	}
	return reader.NewRemote(address, &http.Client{}, reader.DefaultLimits), nil
}

func run(ctx context.Context, p *program) error {
	w, err := p.prepare(relay.Service, slog.LevelInfo)
	if err != nil {
		return err
	}
	defer w.close()
	notices, err := newNotices(p.notify, w.Log)
	if err != nil {
		return err
	}
	defer notices.close()
	w.Expired = notices.expired
	a, err := agent.New(w.Config)
	if err != nil {
		return err
	}
	w.Log.Info("bridge "+Version, "bridge", w.Enrolment.Name, "organisation", w.Enrolment.Organisation, "state", p.dir)
	if err := a.Run(ctx); err != nil {
		return said(err)
	}
	w.Log.Info("stopped")
	return nil
}

// said adds to what the cloud says what it means here.
func said(err error) error {
	var goodbye *agent.GoodbyeError
	if !errors.As(err, &goodbye) {
		return err
	}
	switch goodbye.Code {
	case relay.Update:
		return fmt.Errorf("this bridge (%s) is too old, install a newer one: %w", Version, err)
	case relay.Revoked:
		return fmt.Errorf("revoked, use `bridge enroll -force` with a new code: %w", err)
	case relay.Replaced:
		return fmt.Errorf("another session of this bridge has taken its place: %w", err)
	}
	return err
}
