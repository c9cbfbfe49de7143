package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

// TestMain makes this test binary the command bridge too.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"bridge": main, "chromium": showPage, "closed": func() { os.Exit(7) }})
}

// showPage is a browser whose window is closed at once: it notes how it was called in the
// file that SHOWN names.
func showPage() {
	f, err := os.OpenFile(os.Getenv("SHOWN"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, strings.Join(os.Args[1:], " "))
	}
	if err != nil {
		panic(err)
	}
}

// TestScripts runs the command line, each script with a cloud and a blocked card in
// software of its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			w := newWorld(t)
			e.Defer(w.close)
			e.Setenv("URL", w.web.URL)
			e.Setenv("CARD", w.web.URL+"/card")
			e.Values["world"] = w
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// pin says that the card has this PIN.
			"pin": func(ts *testscript.TestScript, not bool, args []string) {
				if w := ts.Value("world").(*world); w.card.PINIs(args[0]) == not {
					ts.Fatalf("the card's PIN is %s: %t", args[0], not)
				}
			},
			// cloud makes the cloud be as told.
			"cloud": func(ts *testscript.TestScript, _ bool, args []string) {
				w := ts.Value("world").(*world)
				w.mu.Lock()
				defer w.mu.Unlock()
				switch args[0] {
				case "revoked":
					w.status = http.StatusForbidden
				case "update":
					w.goodbye = &relay.Goodbye{Code: relay.Update, Reason: "Version 1.0.0 is too old."}
				case "replaced":
					w.goodbye = &relay.Goodbye{Code: relay.Replaced, Reason: "Another has connected."}
				case "proven":
					w.proven = true
				case "evil":
					w.relayURL = "ws://example.com/relay"
				case "served":
					w.served = true
				case "page":
					w.page = args[1]
				case "refusing":
					w.refusing = true
				}
			},
			// canary searches the files of a folder and the last output for secrets.
			"canary": func(ts *testscript.TestScript, _ bool, args []string) {
				if found := canary(ts.MkAbs(args[0]), ts.ReadFile("stdout")+ts.ReadFile("stderr")); found != "" {
					ts.Fatalf("%s", found)
				}
			},
		},
	})
}

const (
	code   = "402817"
	newPIN = "738264"
	newPUK = "40718259"
)

// canary tells where a PIN or PUK is, in a folder or in what was printed, in the clear, in
// hex or in base64.
func canary(dir, printed string) string {
	texts := map[string]string{"output": strings.ToLower(printed)}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			b, _ := os.ReadFile(path)
			texts[path] = strings.ToLower(string(b))
		}
		return nil
	})
	for _, s := range []string{newPIN, newPUK, softcard.FactoryPUK, code, newPIN + "\xFF\xFF"} {
		for _, form := range []string{s, hex.EncodeToString([]byte(s)), base64.StdEncoding.EncodeToString([]byte(s)), base64.StdEncoding.EncodeToString([]byte("x" + s))[4:]} {
			for where, text := range texts {
				if len(form) > 3 && strings.Contains(text, strings.ToLower(form)) {
					return fmt.Sprintf("%s has the secret %s", where, form)
				}
			}
		}
	}
	return ""
}

// world is a cloud with one bridge and one credential, and a blocked card.
type world struct {
	t      testing.TB
	web    *httptest.Server
	reader *softcard.Reader
	card   *softcard.Card

	mu       sync.Mutex
	identity ed25519.PublicKey
	status   int
	goodbye  *relay.Goodbye
	proven   bool
	relayURL string
	conns    []*websocket.Conn
	results  []relay.Result
	cancels  int
	served   bool   // a session in the background serves the readers
	page     string // the address of pages
	refusing bool   // no page is given
	opens    int
}

func newWorld(t testing.TB) *world {
	w := newWorldAt(t)
	w.web.Start()
	return w
}

// newWorldAt is a world whose server is not started yet.
func newWorldAt(t testing.TB) *world {
	c, err := softcard.New(softcard.Config{Profile: softcard.PivApplet, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, reader: softcard.NewReader(), card: c}
	handler := softcard.Handler(w.reader)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /enroll", w.enrol)
	mux.HandleFunc("/relay", w.relay)
	mux.Handle("/card/", http.StripPrefix("/card", handler))
	mux.Handle("/card", http.StripPrefix("/card", handler))
	w.web = httptest.NewUnstartedServer(mux)
	w.reader.Insert(c)
	for _, command := range []string{"00A4040009A00000030800001000", "0020008008303030303030FFFF", "0020008008303030303030FFFF",
		"0020008008303030303030FFFF", "0020008008303030303030FFFF", "0020008008303030303030FFFF"} {
		b, _ := hex.DecodeString(command)
		if _, err := c.Transmit(b); err != nil {
			t.Fatal(err)
		}
	}
	if c.Inspect().PINTries != 0 {
		t.Fatal("the card is not blocked")
	}
	return w
}

// is changes how the world is, also while it is asked.
func (w *world) is(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *world) close() {
	w.mu.Lock()
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	w.web.CloseClientConnections()
	w.web.Close()
}

func (w *world) enrol(rw http.ResponseWriter, r *http.Request) {
	var in relay.Enrolment
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(in.Identity) != 32 || len(in.Sealing) != 32 || in.Program != "1.0.0" {
		w.t.Errorf("enrolment: %+v, %v", in, err)
	}
	if in.Code.Reveal() != "GOODCODE" {
		rw.Header().Set("Content-Type", "application/problem+json")
		rw.WriteHeader(http.StatusForbidden)
		fmt.Fprint(rw, `{"title":"Forbidden","status":403,"detail":"The code is wrong, or not good any more. Tries left: 4."}`)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.identity = in.Identity
	address := w.relayURL
	if address == "" {
		address = strings.Replace(w.web.URL, "http", "ws", 1) + "/relay"
	}
	_ = json.NewEncoder(rw).Encode(relay.Enrolled{Tenant: "acme", Bridge: "BR1", Name: "Kiosk", Organisation: "Acme", Relay: address})
}

func (w *world) relay(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	identity, status, goodbye, proven := w.identity, w.status, w.goodbye, w.proven
	w.mu.Unlock()
	token := secret.New(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	if _, err := relay.CheckToken(token, identity, strings.Replace(w.web.URL, "http", "ws", 1)+"/relay", time.Now()); err != nil {
		rw.WriteHeader(http.StatusUnauthorized)
		return
	}
	if status != 0 {
		rw.WriteHeader(status)
		return
	}
	upgrader := websocket.Upgrader{}
	ws, err := upgrader.Upgrade(rw, r, nil)
	if err != nil {
		return
	}
	w.mu.Lock()
	w.conns = append(w.conns, ws)
	w.mu.Unlock()
	s := &session{world: w, ws: ws, op: relay.Operation{ID: "op", Credential: "C1", State: "requested", Next: relay.NextCode, SentTo: "j…@example.com", TriesLeft: 5}}
	if proven {
		s.op.State, s.op.Next = "proven", relay.NextPIN
	}
	for {
		_, b, err := ws.ReadMessage()
		if err != nil {
			return
		}
		m, err := relay.Decode(b)
		if err != nil {
			w.t.Errorf("%s: %v", b, err)
			return
		}
		if m.Hello != nil && goodbye != nil {
			s.send(relay.Message{Goodbye: goodbye})
			continue
		}
		s.receive(m)
	}
}

// session is a connection to the cloud, which is here a little machine.
type session struct {
	*world
	ws     *websocket.Conn
	op     relay.Operation
	state  card.State
	part   int
	reader string
}

func (s *session) send(m relay.Message) {
	b, err := relay.Encode(m)
	if err != nil {
		s.t.Error(err)
	}
	_ = s.ws.WriteMessage(websocket.TextMessage, b)
}

func (s *session) tell(ref string) {
	op := s.op
	op.Ref = ref
	if op.Next == relay.NextPIN {
		p := card.PIV.Policy()
		op.Policy, op.Fence = &p, 1
	}
	s.send(relay.Message{Operation: &op})
}

func (s *session) receive(m relay.Message) {
	s.mu.Lock()
	if m.Result != nil {
		s.results = append(s.results, *m.Result)
	}
	if m.Cancel != nil {
		s.cancels++
	}
	s.mu.Unlock()
	switch {
	case m.Hello != nil:
		s.send(relay.Message{Welcome: &relay.Welcome{Time: time.Now(), Organisation: "Acme", KeepAliveSeconds: 300, ReconnectSeconds: 6600}})
	case m.Start != nil:
		s.op.Insertion, s.reader = m.Start.Insertion, m.Start.Reader
		s.tell(m.Start.Ref)
	case m.Prove != nil:
		if m.Prove.Code.Reveal() != code {
			s.op.TriesLeft--
			s.send(relay.Message{Problem: &relay.Problem{Ref: m.Prove.Ref, Code: "wrong", Reason: "The code is not the one that was mailed."}})
			return
		}
		s.op.State, s.op.Next = "proven", relay.NextPIN
		s.tell(m.Prove.Ref)
	case m.Look != nil:
		s.tell(m.Look.Ref)
	case m.Open != nil:
		s.mu.Lock()
		s.opens++
		o := relay.Opened{Ref: m.Open.Ref, URL: s.page, Token: relay.Code{Text: secret.New(fmt.Sprintf("acme.BR1.link%d&", s.opens))}, Until: time.Now().Add(time.Minute), OpenSeconds: 43200, Served: s.served}
		refusing := s.refusing
		s.mu.Unlock()
		if o.URL == "" {
			o.URL = s.web.URL + "/console/kiosk/open"
		}
		if refusing {
			s.send(relay.Message{Problem: &relay.Problem{Ref: m.Open.Ref, Code: "unavailable", Reason: "That did not work just now; try again."}})
			return
		}
		s.send(relay.Message{Opened: &o})
	case m.Cancel != nil:
		s.op.State, s.op.Next, s.op.Sentence = "failed", relay.NextNothing, "It was cancelled. Nothing was changed."
		s.tell(m.Cancel.Ref)
	case m.Ready != nil:
		s.op.State, s.op.Next = "running", relay.NextWait
		s.tell(m.Ready.Ref)
		s.state = card.Identify(false)
		s.run()
	case m.Result != nil && m.Result.Part == s.part:
		s.send(relay.Message{Ack: &relay.Ack{Operation: m.Result.Operation, Part: m.Result.Part}})
		result, ok := m.Result.Card()
		if !ok {
			s.t.Errorf("%+v", *m.Result)
			return
		}
		s.state, _ = s.state.Next(result)
		switch {
		case s.state.Leg == card.Failed:
			s.op.State, s.op.Next, s.op.Sentence = "failed", relay.NextNothing, s.state.Failure.Sentence()
			s.tell("")
		case s.state.Leg == card.Done && s.state.Outcome.PIN == card.Yes:
			s.op.State, s.op.Next, s.op.Sentence = "succeeded", relay.NextNothing, "The card has its new PIN."
			s.tell("")
		case s.state.Leg == card.Done: // identified
			s.state, _ = card.PIV.Unblock(s.state.Identity.ID, card.Custody{Stage: card.Settled, Current: 1, Tries: 3, Most: 3}, 2)
			s.run()
		default:
			s.run()
		}
	}
}

func (s *session) run() {
	script, err := s.state.Script(card.Materials{Policy: card.PIV.Policy(), PUK: func(slot int) (secret.Text, error) {
		return secret.New([]string{"", softcard.FactoryPUK, newPUK}[slot]), nil
	}})
	if err != nil {
		s.t.Error(err)
		return
	}
	s.part++
	r := relay.Run{Reader: s.reader, Insertion: s.op.Insertion, Policy: script.Policy, Script: apdu.Script{
		Operation: "op", Part: s.part, Deadline: time.Now().Add(time.Minute), Steps: script.Steps}}
	if s.state.Changes() {
		r.Credential, r.Script.Fence = "C1", 1
	}
	s.send(relay.Message{Run: &r})
}

// enrolled is a state folder.
func (w *world) enrolled(t testing.TB, flags ...string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "state")
	args := append([]string{"enroll", "-dir", dir, "GOODCODE", w.web.URL}, flags...)
	if out, err := exec.Command("bridge", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// patience is how long anything may take.
const patience = time.Minute

func wait(t testing.TB, what string, is func() bool) {
	t.Helper()
	for began := time.Now(); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("no %s in %v", what, patience)
		}
	}
}

// setProven makes every operation one that an operator has started.
func (w *world) setProven() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.proven = true
}

// TestKilled: a bridge that is killed within a script says after its next start that it
// does not know how that ended, and keeps no secret.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(w.close)
	w.setProven()
	dir := w.enrolled(t)
	var slow []softcard.Fault // so that the script is not over when it is seen to have begun
	for step := 1; step <= 40; step++ {
		slow = append(slow, softcard.Fault{Step: step, Delay: 200 * time.Millisecond})
	}
	w.card.Inject(slow...)
	cmd := exec.Command("bridge", "unblock", "-dir", dir, "-soft", w.web.URL+"/card")
	cmd.Stdin = strings.NewReader(newPIN + "\n" + newPIN + "\n")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "script that has begun", func() bool {
		files, _ := filepath.Glob(filepath.Join(dir, "journal-BR1", "*.json"))
		return len(files) == 1
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if found := canary(dir, ""); found != "" {
		t.Error(found)
	}

	w.mu.Lock()
	w.results = nil
	w.mu.Unlock()
	cmd = exec.Command("bridge", "run", "-dir", dir, "-soft", w.web.URL+"/card")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	wait(t, "result", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.results) > 0
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.results[0]; !r.Interrupted || r.Operation != "op" || r.Refusal != "" {
		t.Errorf("%+v", r)
	}
}

// TestNoSockets: a bridge that runs listens to nothing, neither TCP, UDP nor a Unix socket.
func TestNoSockets(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	w := newWorld(t)
	t.Cleanup(w.close)
	dir := w.enrolled(t)
	cmd := exec.Command("bridge", "run", "-dir", dir, "-soft", w.web.URL+"/card")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var printed bytes.Buffer
	lines := bufio.NewScanner(stderr)
	connected, inserted := false, false
	for !(connected && inserted) && lines.Scan() {
		printed.Write(lines.Bytes())
		connected = connected || strings.Contains(lines.Text(), "msg=connected")
		inserted = inserted || strings.Contains(lines.Text(), "card inserted")
	}
	if !connected {
		t.Fatalf("%s", printed.Bytes())
	}
	found := sockets(t, cmd.Process.Pid)
	if found["connected"] < 2 { // to the relay and to the card
		t.Errorf("the test does not see the bridge's own connections: %v", found)
	}
	for kind, n := range found {
		if kind != "connected" {
			t.Errorf("%d sockets: %s", n, kind)
		}
	}
	go func() {
		for lines.Scan() {
		}
	}()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended: %v", err)
	}
	if found := canary(dir, printed.String()); found != "" {
		t.Error(found)
	}
}

// sockets counts a process's sockets by what they are.
func sockets(t *testing.T, pid int) map[string]int {
	t.Helper()
	inodes := map[string]bool{}
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	files, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if target, _ := os.Readlink(filepath.Join(folder, f.Name())); strings.HasPrefix(target, "socket:[") {
			inodes[strings.Trim(target[7:], "[]")] = true
		}
	}
	found := map[string]int{}
	for table, inode := range map[string]int{"tcp": 9, "tcp6": 9, "udp": 9, "udp6": 9, "unix": 6} { // the column
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		for line := range strings.Lines(string(b)) {
			fields := strings.Fields(line)
			if len(fields) <= inode || !inodes[fields[inode]] {
				continue
			}
			delete(inodes, fields[inode])
			const established, listening, accepts = "01", "0A", "00010000"
			switch {
			case strings.HasPrefix(table, "tcp") && fields[3] != listening, table == "unix" && fields[3] != accepts:
				found["connected"]++
			case strings.HasPrefix(table, "udp") && fields[3] == established:
				found["connected"]++ // a question to a name server
			default:
				found[table+" "+strings.Join(fields, " ")]++
			}
		}
	}
	for inode := range inodes {
		found["unknown "+inode]++
	}
	return found
}

// TestSocketsSeesListeners shows that TestNoSockets can fail.
func TestSocketsSeesListeners(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	web := httptest.NewServer(nil)
	defer web.Close()
	for kind := range sockets(t, os.Getpid()) {
		if strings.HasPrefix(kind, "tcp") {
			return
		}
	}
	t.Error("a listening socket is not seen")
}
