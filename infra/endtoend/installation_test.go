//go:build linux && cgo && !nopcsc

// Package endtoend runs the real programs as processes against each other and against a
// real pcscd: the cloud, a bridge, and the tools of others that judge what became of the
// card. Software stands for nothing but the cards.
package endtoend

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/softcard/pcscd"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"

	// What the programs are made of, so that a cached result is not older than they are.
	_ "github.com/pinward/pinward/bridge/command"
	_ "github.com/pinward/pinward/functions/wiring"
)

// programs is the folder of the binaries pinward and bridge.
var programs string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "pinward-endtoend"); err == nil {
			defer os.RemoveAll(programs)
			err = build()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

func build() error {
	for name, folder := range map[string]string{"pinward": "../local", "bridge": "../../bridge"} {
		// Reading the folder makes a cached result depend on it too.
		if _, err := os.ReadDir(folder); err != nil {
			return err
		}
		if out, err := exec.Command("go", "build", "-o", filepath.Join(programs, name), folder).CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return nil
}

// patience is how long anything may take.
const patience = 30 * time.Second

// installation is a cloud and a bridge with a pcscd of its own.
type installation struct {
	testing.TB
	pcscd   *pcscd.Daemon
	dir     string // has a file with the output of each program
	data    string // the cloud's folder
	state   string // the bridge's folder
	address string // the cloud's: it stays when the cloud is started again
	url     string
	key     string // of role admin
	id      string // the bridge's

	cloud, bridge *process
}

// install starts everything. The bridge is enrolled by a code that the API made.
func install(tb testing.TB) *installation {
	tb.Helper()
	for _, program := range []string{"yubico-piv-tool", "opensc-tool", "pkcs15-tool"} {
		if _, err := exec.LookPath(program); err != nil {
			testserver.Need(tb, fmt.Errorf("%w: run infra/softcard/install.sh", err))
		}
	}
	// On an address of its own in 127.0.0.0/8 no connection of another program can
	// take the port while the cloud is down.
	dir := tb.TempDir()
	in := &installation{TB: tb, pcscd: pcscd.Start(tb), dir: dir, data: filepath.Join(dir, "cloud"), state: filepath.Join(dir, "bridge"),
		address: fmt.Sprintf("127.%d.%d.%d:0", 1+mathrand.IntN(250), mathrand.IntN(250), 1+mathrand.IntN(250))}
	in.startCloud()
	in.key = in.cloud.find(`export KEY=(\S+)`)
	in.enrol()
	in.startBridge()
	return in
}

func (in *installation) startCloud() {
	in.Helper()
	in.cloud = in.start("pinward", "-addr", in.address, "-data", in.data)
	if url := in.cloud.find(`Pinward is running at (http://\S+)`); in.url == "" {
		in.url, in.address = url, strings.TrimPrefix(url, "http://")
	}
	in.await("an answer of the cloud", func() bool {
		_, _, err := in.try("GET", "/_local/clock", nil)
		return err == nil
	})
}

func (in *installation) enrol() {
	in.Helper()
	var invited struct{ ID, Code string }
	in.into(&invited, 201, "POST", "/v1/bridges", object{"name": "service desk"})
	in.id = invited.ID
	if out, err := in.command("enroll", invited.Code, in.url).CombinedOutput(); err != nil {
		in.Fatalf("enroll: %v: %s", err, out)
	}
}

func (in *installation) startBridge() {
	in.Helper()
	in.bridge = in.start("bridge", "run", "-dir", in.state)
}

// command prepares a command of the bridge that ends by itself.
func (in *installation) command(name string, args ...string) *exec.Cmd {
	return in.pcscd.Command(filepath.Join(programs, "bridge"), append([]string{name, "-dir", in.state}, args...)...)
}

// process is a program that runs.
type process struct {
	*installation
	cmd    *exec.Cmd
	output string // a file: what it has written, and those before it of its name
	from   int    // where in it this one begins
	ended  chan struct{}
}

func (in *installation) outputOf(program string) string { return filepath.Join(in.dir, program+".out") }

// start starts a program. It ends with the test, and also if the test is killed.
func (in *installation) start(program string, args ...string) *process {
	in.Helper()
	p := &process{installation: in, output: in.outputOf(program), ended: make(chan struct{})}
	output, err := os.OpenFile(p.output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		in.Fatal(err)
	}
	if info, err := output.Stat(); err == nil {
		p.from = int(info.Size())
	}
	p.cmd = in.pcscd.Command(filepath.Join(programs, program), args...)
	p.cmd.Stdout, p.cmd.Stderr = output, output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // with which the process would end
		defer close(p.ended)
		defer output.Close()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		in.Fatal(err)
	}
	in.Cleanup(p.kill)
	return p
}

// kill ends it by SIGKILL.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func (p *process) printed() string {
	b, err := os.ReadFile(p.output)
	if err != nil {
		p.Fatal(err)
	}
	return string(b[p.from:])
}

// find waits until it prints a line with what is sought, and returns the group of that.
func (p *process) find(pattern string) (found string) {
	p.Helper()
	what := regexp.MustCompile(pattern + `[^\n]*\n`)
	p.await(pattern, func() bool {
		m := what.FindStringSubmatch(p.printed())
		if m != nil {
			found = m[1]
		} else if !p.alive() {
			p.Fatalf("it has ended: %s", p.printed())
		}
		return m != nil
	})
	return found
}

func (in *installation) await(what string, ready func() bool) {
	in.Helper()
	for deadline := time.Now().Add(patience); !ready(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			in.Fatalf("no %s in %v; the bridge:\n%s", what, patience, in.logOf("bridge"))
		}
	}
}

// logOf returns the end of what a program has written.
func (in *installation) logOf(program string) string {
	b, _ := os.ReadFile(in.outputOf(program))
	return string(b[max(0, len(b)-4000):])
}

type object = map[string]any

var client = &http.Client{Timeout: patience}

// try makes a request of the API. An error says that no answer came.
func (in *installation) try(method, path string, body any) (status int, answer []byte, err error) {
	b, err := json.Marshal(body)
	if err != nil {
		return 0, nil, err
	}
	r, err := http.NewRequest(method, in.url+path, bytes.NewReader(b))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+in.key)
	r.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// into makes a request that must be answered with the status, and reads the answer into v.
func (in *installation) into(v any, status int, method, path string, body any) {
	in.Helper()
	got, answer, err := in.try(method, path, body)
	if err != nil || got != status {
		in.Fatalf("%s %s: got %d %s %v, want %d", method, path, got, answer, err, status)
	}
	if v != nil && json.Unmarshal(answer, v) != nil {
		in.Fatalf("%s %s: %s is not what is expected", method, path, answer)
	}
}

// template makes a credential template with both channels open.
func (in *installation) template(family, masterKey string) (id string) {
	in.Helper()
	var made struct{ ID string }
	body := object{"name": "Staff " + family + " " + rand.Text(), "family": family, "channels": []string{"operator", "selfService"}, "messaging": "outbox", "pinValidDays": 365}
	if masterKey != "" {
		body["masterKey"] = masterKey
	}
	in.into(&made, 201, "POST", "/v1/card-templates", body)
	return made.ID
}

// holder makes a user with a mail address.
func (in *installation) holder() (id string) {
	in.Helper()
	var made struct{ ID string }
	name := "ada-" + strings.ToLower(rand.Text())
	in.into(&made, 201, "POST", "/v1/users", object{"username": name, "mail": name + "@example.org"})
	return made.ID
}

// register registers a card with what else the API is to be told of it.
func (in *installation) register(family string, cardID []byte, template string, more object) (credential string) {
	in.Helper()
	var made struct{ ID string }
	body := object{"family": family, "cardId": hex.EncodeToString(cardID), "template": template, "holder": in.holder(), "label": "Ada's card"}
	for k, v := range more {
		body[k] = v
	}
	in.into(&made, 201, "POST", "/v1/credentials", body)
	return made.ID
}

// newCard makes a card with an id of its own.
func newCard(tb testing.TB, c softcard.Config) (*softcard.Card, []byte) {
	tb.Helper()
	c.ID, c.Rand = make([]byte, 16), rand.Reader
	_, _ = rand.Read(c.ID) // never fails
	card, err := softcard.New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return card, c.ID
}

// block gives a card that has power wrong PINs until none is taken any more.
func block(tb testing.TB, card *softcard.Card) {
	tb.Helper()
	name, verify := []byte{0xA0, 0, 0, 3, 8}, append([]byte{0, 0x20, 0, 0x80, 8}, "00000000"...)
	if card.Profile() == softcard.GIDS {
		name = []byte{0xA0, 0, 0, 3, 0x97, 0x42, 0x54, 0x46, 0x59}
	}
	_, _ = card.Transmit(append([]byte{0, 0xA4, 4, 0, byte(len(name))}, name...))
	for range card.Inspect().PINMost {
		_, _ = card.Transmit(verify)
	}
	if left := card.Inspect().PINTries; left != 0 {
		tb.Fatalf("the PIN has %d tries left", left)
	}
}

// chipTime is about what a command takes a chip, at least.
const chipTime = 10 * time.Millisecond

// slow makes a card take so long for each of the next commands, and forget other faults.
func slow(card *softcard.Card, delay time.Duration) {
	var faults []softcard.Fault
	for step := range 200 {
		faults = append(faults, softcard.Fault{Step: 1 + step, Kind: softcard.Slow, Delay: delay})
	}
	card.Inject(faults...)
}

// seen waits until the cloud knows that a card is in a reader of the bridge.
func (in *installation) seen(credential string) {
	in.Helper()
	in.await("card "+credential+" at the cloud", func() bool { return in.sees(credential) })
}

func (in *installation) sees(credential string) bool {
	return in.shows(func(c shownCard) bool { return c.Credential == credential })
}

// identified waits until the cloud knows which card is in a reader, whoever's it is.
func (in *installation) identified(cardID []byte) {
	in.Helper()
	in.await("card's id at the cloud", func() bool {
		return in.shows(func(c shownCard) bool { return strings.EqualFold(c.ID, hex.EncodeToString(cardID)) })
	})
}

type shownCard struct{ ID, Credential string }

func (in *installation) shows(right func(shownCard) bool) bool {
	var b struct {
		Sessions []struct {
			Readers []struct{ Card shownCard }
		}
	}
	status, answer, err := in.try("GET", "/v1/bridges/"+in.id, nil)
	if err != nil || status != 200 || json.Unmarshal(answer, &b) != nil {
		return false
	}
	for _, s := range b.Sessions {
		for _, r := range s.Readers {
			if right(r.Card) {
				return true
			}
		}
	}
	return false
}

// operation is an unblock as the API shows it.
type operation struct {
	ID, Kind, State, Reason, Sentence string
	Next                              struct {
		Do   string
		Seal struct{ PublicKey, AssociatedData string }
	}
	Outcome struct {
		PIN, PUK     string
		PINTriesLeft *int
	}
}

func (op operation) finished() bool {
	switch op.State {
	case "succeeded", "failed", "unknown", "reconciled":
		return true
	}
	return false
}

func (op operation) String() string {
	return fmt.Sprintf("%s %s: %s %s, PIN %q, PUK %q", op.Kind, op.ID, op.State, op.Reason, op.Outcome.PIN, op.Outcome.PUK)
}

// begin starts an unblock by an operator.
func (in *installation) begin(credential string) (op operation, status int, err error) {
	return in.ask("POST", "/v1/unblocks", object{"credential": credential, "bridge": in.id, "channel": "operator", "statement": "known in person"})
}

// givePIN seals a new PIN for an operation as a web page would, by what next.seal says.
func (in *installation) givePIN(op operation, newPIN string) (operation, int, error) {
	in.Helper()
	key, err := hex.DecodeString(op.Next.Seal.PublicKey)
	bound := strings.Split(op.Next.Seal.AssociatedData, "\n")
	if err != nil || len(bound) != 5 {
		in.Fatalf("seal: %+v", op.Next.Seal)
	}
	fence, _ := strconv.ParseInt(bound[4], 10, 64)
	sealed, err := relay.SealPIN(key, relay.Binding{Tenant: bound[1], Operation: bound[2], Credential: bound[3], Fence: fence}, secret.New(newPIN))
	if err != nil {
		in.Fatal(err)
	}
	return in.ask("POST", "/v1/unblocks/"+op.ID+"/pin", sealed)
}

// look returns how an operation stands.
func (in *installation) look(id string) (operation, int, error) {
	return in.ask("GET", "/v1/unblocks/"+id, nil)
}

func (in *installation) ask(method, path string, body any) (op operation, status int, err error) {
	status, answer, err := in.try(method, path, body)
	if err == nil && status < 300 {
		err = json.Unmarshal(answer, &op)
	} else if err == nil {
		op.Reason = string(answer)
	}
	return op, status, err
}

// unblock gives a card in a reader a new PIN, by an operator, and returns what came of it.
func (in *installation) unblock(credential, newPIN string) operation {
	in.Helper()
	op, status, err := in.begin(credential)
	for began := time.Now(); status == 409 && time.Since(began) < patience; op, status, err = in.begin(credential) {
		time.Sleep(20 * time.Millisecond) // Pinward may be looking at the card
	}
	if err != nil || status != 201 {
		in.Fatalf("start: %d %v %s", status, err, op.Reason)
	}
	if op, status, err = in.givePIN(op, newPIN); err != nil || status != 200 {
		in.Fatalf("give PIN: %d %v %s", status, err, op.Reason)
	}
	return in.ended(op)
}

// ended waits for the end of an operation.
func (in *installation) ended(op operation) operation {
	in.Helper()
	in.await("end of operation "+op.ID, func() bool {
		now, status, err := in.look(op.ID)
		if err != nil || status != 200 {
			in.Fatalf("look: %d %v", status, err)
		}
		op = now
		return op.finished()
	})
	return op
}

// succeeds is an unblock that must reset the PIN and, if the card has one, change the PUK.
func (in *installation) succeeds(credential, newPIN string, hasPUK bool) {
	in.Helper()
	op := in.unblock(credential, newPIN)
	puk := ""
	if hasPUK {
		puk = "yes"
	}
	if op.State != "succeeded" || op.Reason != "" || op.Outcome.PIN != "yes" || op.Outcome.PUK != puk {
		in.Fatalf("unblock: %v: %s\nthe bridge:\n%s", op, op.Sentence, in.logOf("bridge"))
	}
}

var mailedCode = regexp.MustCompile(`\b(\d{3}) ?(\d{3})\b`)

// code waits for the mail with the one-time code that was sent last, after count others,
// and reads it.
func (in *installation) code(count int) (code string) {
	in.Helper()
	link := regexp.MustCompile(`href="(/_local/outbox/[^"]+)">([^<]*)</a>`)
	in.await("mail with a code", func() bool {
		_, page, err := in.try("GET", "/_local/outbox", nil)
		if err != nil {
			in.Fatal(err)
		}
		var found []string
		for _, m := range link.FindAllStringSubmatch(string(page), -1) {
			if strings.Contains(strings.ToLower(m[2]), "code") {
				found = append(found, m[1])
			}
		}
		if len(found) <= count {
			return false
		}
		_, page, err = in.try("GET", found[0], nil)
		_, text, _ := strings.Cut(string(page), "<pre>")
		m := mailedCode.FindStringSubmatch(text)
		if err != nil || m == nil {
			in.Fatalf("the mail has no code: %v %s", err, page)
		}
		code = m[1] + m[2]
		return true
	})
	return code
}

// selfService gives the card in the reader a new PIN at the bridge's terminal, with the
// code from the mail, and returns the code.
func (in *installation) selfService(newPIN string, codesBefore int) (code string) {
	in.Helper()
	cmd := in.command("unblock")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		in.Fatal(err)
	}
	output, err := os.Create(in.outputOf("terminal"))
	if err != nil {
		in.Fatal(err)
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		in.Fatal(err)
	}
	in.Cleanup(func() { _ = cmd.Process.Kill() })
	code = in.code(codesBefore)
	fmt.Fprintf(stdin, "%s\n%s\n%s\n", code, newPIN, newPIN)
	err = cmd.Wait()
	if text := in.logOf("terminal"); err != nil || !strings.Contains(text, "The card has its new PIN.") {
		in.Fatalf("bridge unblock: %v: %s\nthe bridge:\n%s", err, text, in.logOf("bridge"))
	}
	return code
}

// says runs a program that others wrote, and fails the test unless it succeeds or not as
// wanted, and prints what it should.
func (in *installation) says(succeeds bool, want, name string, args ...string) {
	in.Helper()
	out, err := in.pcscd.Command(name, args...).CombinedOutput()
	if (err == nil) != succeeds || !regexp.MustCompile(want).Match(out) {
		in.Fatalf("%s %s: %v\n got %s\nwant %s", name, strings.Join(args, " "), err, out, want)
	}
}
