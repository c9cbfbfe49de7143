package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pinward/pinward/bridge/command"
	"github.com/pinward/pinward/infra/testserver"
)

// TestMain makes this test binary the commands pinward and bridge too, so that tests run
// them as what they are: processes.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"pinward": main,
		"bridge": func() {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			defer stop()
			os.Exit(command.Main(ctx, command.Env{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}))
		},
	})
}

// TestScripts runs the starts that fail.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script"})
}

// process is a running pinward.
type process struct {
	testing.TB
	cmd    *exec.Cmd
	output string // a file
	url    string
	ended  chan struct{} // closed when it has
}

const patience = 30 * time.Second

// start runs pinward on a data folder and waits until it answers.
func start(t testing.TB, data string, args ...string) *process {
	t.Helper()
	p := begin(t, data, args...)
	running := regexp.MustCompile(`Pinward is running at (http://\S+)`)
	for began := time.Now(); time.Since(began) < patience; time.Sleep(5 * time.Millisecond) {
		if p.url == "" {
			if m := running.FindStringSubmatch(p.printed()); m != nil {
				p.url = m[1]
			}
		}
		if p.url != "" {
			if resp, err := http.Get(p.url + "/_local/clock"); err == nil {
				resp.Body.Close()
				return p
			}
		}
		select {
		case <-p.ended:
			t.Fatalf("pinward ended at once: %s", p.printed())
		default:
		}
	}
	t.Fatalf("pinward does not answer: %s", p.printed())
	return nil
}

// begin runs pinward.
func begin(t testing.TB, data string, args ...string) *process {
	t.Helper()
	output, err := os.CreateTemp(t.TempDir(), "output")
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	p := &process{TB: t, output: output.Name(), ended: make(chan struct{})}
	if !slices.Contains(args, "-addr") {
		args = append(args, "-addr", "127.0.0.1:0")
	}
	p.cmd = exec.Command("pinward", append(args, "-data", data)...)
	p.cmd.Stdout, p.cmd.Stderr = output, output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.ended })
	return p
}

func (p *process) printed() string {
	b, err := os.ReadFile(p.output)
	if err != nil {
		p.Fatal(err)
	}
	return string(b)
}

// key returns a key that was printed under the name, "" if none was.
func (p *process) key(name string) string {
	_, after, _ := strings.Cut(p.printed(), "export "+name+"=")
	key, _, _ := strings.Cut(after, "\n")
	return key
}

// wantExit waits for the end and its exit code.
func (p *process) wantExit(code int) {
	p.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.Fatalf("pinward does not end: %s", p.printed())
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.Fatalf("exit code %d, want %d: %s", got, code, p.printed())
	}
}

func (p *process) stop() {
	p.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.Fatal(err)
	}
	p.wantExit(0)
}

type object = map[string]any

// try makes a request and returns status and body.
func (p *process) try(method, path, key string, body any, headers ...string) (int, http.Header, []byte, error) {
	var sent io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, nil, err
		}
		sent = bytes.NewReader(b)
	}
	r, err := http.NewRequest(method, p.url+path, sent)
	if err != nil {
		return 0, nil, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, b, err
}

// call makes a request that must be answered with the status.
func (p *process) call(status int, method, path, key string, body any, headers ...string) []byte {
	p.Helper()
	got, _, answer, err := p.try(method, path, key, body, headers...)
	if err != nil {
		p.Fatal(err)
	}
	if got != status {
		p.Fatalf("%s %s: got %d %s, want %d", method, path, got, answer, status)
	}
	return answer
}

// into is call, and reads the answer into v.
func (p *process) into(v any, status int, method, path, key string, body any) {
	p.Helper()
	if b := p.call(status, method, path, key, body); json.Unmarshal(b, v) != nil {
		p.Fatalf("%s %s: %s is not what is expected", method, path, b)
	}
}

func (p *process) verified(key, username, pin string) bool {
	p.Helper()
	var v struct{ Verified bool }
	p.into(&v, 200, "POST", "/v1/pins/verify", key, object{"username": username, "pin": pin})
	return v.Verified
}

// signIn returns the link by which the demo's administrator signs in.
func (p *process) signIn() string {
	p.Helper()
	m := regexp.MustCompile(`\n  sign in +(\S+)\n`).FindStringSubmatch(p.printed())
	if m == nil || !strings.HasPrefix(m[1], p.url+"/console/sign-in/link?t=pwl_demo_") {
		p.Fatalf("no sign-in link is printed: %s", p.printed())
	}
	return m[1]
}

// TestKeysArePrintedOnce starts again and again on one folder. A link to sign in is printed
// each time, another one.
func TestKeysArePrintedOnce(t *testing.T) {
	data := filepath.Join(t.TempDir(), "deep", "data")
	first := start(t, data)
	key, platform := first.key("KEY"), first.key("PLATFORM_KEY")
	first.call(200, "GET", "/v1/users", key, nil)
	first.call(200, "GET", "/v1/tenants", platform, nil)
	var people struct {
		Items []struct {
			Name, Mail string
			Roles      []string
		}
	}
	first.into(&people, 200, "GET", "/v1/people", key, nil)
	if got := fmt.Sprint(people.Items); got != "[{Demo Administrator admin@demo.example [admin]}]" {
		t.Errorf("the people of the demo are %s", got)
	}
	link := first.signIn()
	first.stop()

	second := start(t, data)
	if got := second.printed(); strings.Contains(got, "export") {
		t.Errorf("the second start shows keys: %s", got)
	}
	second.call(200, "GET", "/v1/tenants", platform, nil)
	second.into(&people, 200, "GET", "/v1/people", key, nil)
	link2 := second.signIn()
	if link2 == link || len(people.Items) != 1 {
		t.Errorf("the second start shows the same link, or makes somebody again: %+v", people.Items)
	}
	second.stop()

	third := start(t, data, "-new-key")
	another := third.key("KEY")
	if another == key || third.key("PLATFORM_KEY") != "" {
		t.Errorf("-new-key printed %s", third.printed())
	}
	third.call(200, "GET", "/v1/users", another, nil)
	third.call(200, "GET", "/v1/users", key, nil)
	third.stop()

	err := filepath.WalkDir(data, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v, want it for its owner only", path, info.Mode())
		}
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, secret := range []string{key, another, platform, link, link2} {
			if bytes.Contains(b, []byte(secret)) || bytes.Contains(b, []byte(secret[strings.LastIndex(secret, "_")+1:])) {
				t.Errorf("%s holds a key", path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSecondProcess: one folder has one process.
func TestSecondProcess(t *testing.T) {
	data := t.TempDir()
	first := start(t, data)
	second := begin(t, data)
	second.wantExit(1)
	if got := second.printed(); !strings.HasPrefix(got, "pinward: ") || !strings.Contains(got, "another process has the table file open") {
		t.Errorf("the second process says %q", got)
	}
	first.call(200, "GET", "/v1/users", first.key("KEY"), nil)
}

// TestPortInUse: the keys of a first start that came to nothing are not lost.
func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	data := t.TempDir()
	p := begin(t, data, "-addr", l.Addr().String())
	p.wantExit(1)
	if got := p.printed(); !strings.Contains(got, "address already in use") {
		t.Errorf("pinward says %q, want that the address is in use", got)
	}
	key, platform := p.key("KEY"), p.key("PLATFORM_KEY")
	p = start(t, data)
	if key += p.key("KEY"); key == "" {
		t.Fatal("the key of the tenant demo was never shown")
	}
	if platform += p.key("PLATFORM_KEY"); platform == "" {
		t.Fatal("the platform key was never shown")
	}
	p.call(200, "GET", "/v1/users", key, nil)
}

// TestRootKeyLost: without its root key a table is of no use, and that is said.
func TestRootKeyLost(t *testing.T) {
	data := t.TempDir()
	start(t, data).stop()
	root := filepath.Join(data, "root.key")
	kept := root + ".kept"
	if err := os.Rename(root, kept); err != nil {
		t.Fatal(err)
	}
	p := begin(t, data)
	p.wantExit(1)
	if got := p.printed(); !strings.Contains(got, "root.key is missing") {
		t.Errorf("pinward says %q, want that root.key is missing", got)
	}
	if err := os.Rename(kept, root); err != nil {
		t.Fatal(err)
	}
	start(t, data)
}

func TestClock(t *testing.T) {
	p := start(t, t.TempDir(), "-now", "2031-12-31T23:30:00Z")
	now := func() time.Time {
		var clock struct{ Now time.Time }
		p.into(&clock, 200, "GET", "/_local/clock", "", nil)
		return clock.Now
	}
	begin := time.Date(2031, 12, 31, 23, 30, 0, 0, time.UTC)
	if got := now().Sub(begin); got < 0 || got > patience {
		t.Errorf("the clock is %v past -now", got)
	}
	p.call(200, "POST", "/_local/clock?advance=1h30m", "", nil)
	if got := now().Sub(begin); got < 90*time.Minute || got > 90*time.Minute+patience {
		t.Errorf("the clock is %v past -now, want 1h30m", got)
	}
	for _, bad := range []string{"", "?advance=", "?advance=tomorrow", "?advance=-1h", "?advance=24"} {
		if b := p.call(400, "POST", "/_local/clock"+bad, "", nil); !strings.Contains(string(b), "?advance=23h") {
			t.Errorf("%q is answered %s", bad, b)
		}
	}
	// A page of another site must not put the clock forward.
	p.call(403, "POST", "/_local/clock?advance=1h", "", nil, "Origin", "https://elsewhere.example")
	p.call(403, "POST", "/_local/clock?advance=1h", "", nil, "Sec-Fetch-Site", "cross-site")
	if got := now().Sub(begin); got > 90*time.Minute+patience {
		t.Errorf("the clock is %v past -now: somebody else put it forward", got)
	}
}

// session is what the README shows: policy, users, good and bad PINs, a kiosk, and
// the mail before a PIN expires.
func session(p *process) {
	key := p.key("KEY")
	p.call(200, "PUT", "/v1/policy", key, object{"minLength": 6, "expirationHours": 24, "notifyHoursBefore": 2})
	var user, kiosk struct{ ID, APIKey string }
	p.into(&user, 201, "POST", "/v1/users", key, object{"username": "ada", "mail": "ada@example.org", "pin": "739158"})
	p.call(422, "POST", "/v1/users", key, object{"username": "bob", "pin": "123456"})
	p.call(201, "POST", "/v1/users", key, object{"username": "no-address", "pin": "640271"})
	p.into(&kiosk, 201, "POST", "/v1/keys", key, object{"name": "kiosk", "role": "kiosk"})
	if !p.verified(kiosk.APIKey, "ADA", "739158") || p.verified(kiosk.APIKey, "ada", "739159") {
		p.Error("the kiosk does not tell the right PIN from a wrong one")
	}

	type report struct {
		Sweep struct{ Sent, NoAddress, Expired int }
	}
	advance := func(d string) (r report) {
		p.Helper()
		p.into(&r, 200, "POST", "/_local/clock?advance="+d, "", nil)
		return r
	}
	if r := advance("21h"); r != (report{}) {
		p.Errorf("three hours before: %+v, want nothing", r)
	}
	var want report
	want.Sweep.Sent, want.Sweep.NoAddress = 1, 1
	if r := advance("1h"); r != want {
		p.Errorf("two hours before: %+v, want %+v", r, want)
	}
	if r := advance("1h"); r != (report{}) {
		p.Errorf("one hour before: %+v, want nothing: there is one mail", r)
	}

	_, header, page, err := p.try("GET", "/_local/outbox", "", nil)
	if err != nil {
		p.Fatal(err)
	}
	link := regexp.MustCompile(`href="(/_local/outbox/[^"]+)">Your PIN for Demo Ltd expires on `).FindSubmatch(page)
	if link == nil {
		p.Fatalf("the outbox does not list the mail: %s", page)
	}
	if csp := header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "script-src") {
		p.Errorf("the outbox has CSP %q", csp)
	}
	shown := string(p.call(200, "GET", string(link[1]), "", nil))
	for _, want := range []string{"ada@example.org", `<iframe sandbox title=`, `src="` + string(link[1]) + `/html"`, "Demo Ltd"} {
		if !strings.Contains(shown, want) {
			p.Errorf("the mail's page lacks %q", want)
		}
	}
	status, header, html, err := p.try("GET", string(link[1])+"/html", "", nil)
	if err != nil || status != 200 || !bytes.Contains(html, []byte("ada")) {
		p.Errorf("the mail as a page: %d %v %s", status, err, html)
	}
	if csp := header.Get("Content-Security-Policy"); !strings.Contains(csp, "; sandbox;") || !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "allow-") {
		p.Errorf("the mail as a page has CSP %q, want sandbox", csp)
	}
	for _, name := range []string{"x", "..%2Froot.key", "%2e%2e%2froot", "20300131T090000.000Z-..%2F..%2Froot"} {
		p.call(404, "GET", "/_local/outbox/"+name, "", nil)
	}

	if !p.verified(kiosk.APIKey, "ada", "739158") {
		p.Error("the PIN ended early")
	}
	want = report{}
	want.Sweep.Expired = 2
	if r := advance("1h"); r != want {
		p.Errorf("at the end: %+v, want %+v", r, want)
	}
	if p.verified(kiosk.APIKey, "ada", "739158") {
		p.Error("an expired PIN lets in")
	}
	var pin struct {
		State, Deleted string
		NotifiedAt     time.Time
	}
	p.into(&pin, 200, "GET", "/v1/users/"+user.ID+"/pin", key, nil)
	if pin.State != "none" || pin.Deleted != "expired" || pin.NotifiedAt.IsZero() {
		p.Errorf("after the end the PIN is %+v, want it announced and deleted", pin)
	}
}

func TestDemo(t *testing.T) {
	data := t.TempDir()
	p := start(t, data)
	if got := p.call(200, "GET", "/_local/outbox", "", nil); !bytes.Contains(got, []byte("None yet")) {
		t.Errorf("the outbox begins with %s", got)
	}
	session(p)
	p.stop()
	for _, name := range []string{"log.jsonl", "pinward.db"} {
		b, err := os.ReadFile(filepath.Join(data, name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("739158")) || name == "log.jsonl" && bytes.Contains(b, []byte("ada@")) {
			t.Errorf("%s shows the PIN or the address", name)
		}
	}
}

// TestDynamoDB is the same on a DynamoDB, and across a restart.
func TestDynamoDB(t *testing.T) {
	endpoint, stop, err := testserver.Dynalite()
	testserver.Need(t, err)
	t.Cleanup(stop)
	transactions, err := testserver.Transactions(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(transactions)
	t.Cleanup(server.Close)
	for name, value := range map[string]string{
		"TABLE": "dynamodb", "ENDPOINT": server.URL, "AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
	} {
		t.Setenv(name, value)
	}
	data := t.TempDir()
	p := start(t, data)
	if got := p.printed(); !strings.Contains(got, "DynamoDB table pinward") {
		t.Errorf("pinward says %q, want the table's name", got)
	}
	session(p)
	key := p.key("KEY")
	p.stop()
	p = start(t, data)
	if got := p.call(200, "GET", "/v1/users", key, nil); !bytes.Contains(got, []byte(`"username":"ada"`)) {
		t.Errorf("after a restart the users are %s", got)
	}
}

// TestShutdown ends pinward while a request is under way: it is answered.
func TestShutdown(t *testing.T) {
	data := t.TempDir()
	p := start(t, data)
	key := p.key("KEY")
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := `{"username":"last","pin":"k7Q2wx55"}`
	fmt.Fprintf(conn, "POST /v1/users HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		key, len(body), body[:10])
	time.Sleep(50 * time.Millisecond) // the server reads
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); !strings.Contains(p.printed(), "Finishing what has begun"); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("pinward does not say that it ends: %s", p.printed())
		}
	}
	fmt.Fprint(conn, body[10:])
	answer, err := io.ReadAll(conn)
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 201 ")) {
		t.Errorf("the last request was answered %s, %v", answer, err)
	}
	p.wantExit(0)
	if p := start(t, data); !p.verified(key, "last", "k7Q2wx55") {
		t.Error("the last user is not there")
	}
}

// TestKill kills pinward again and again while users are made: whoever was
// confirmed is there with the PIN, and nobody is there by half.
func TestKill(t *testing.T) {
	const rounds, writers = 10, 4
	data := t.TempDir()
	p := start(t, data)
	key := p.key("KEY")
	pinOf := func(name string) string { return "k7Q2" + name[len(name)-5:] + "wx" }
	known := map[string]bool{}
	for round := range rounds {
		var mu sync.Mutex
		var wg sync.WaitGroup
		var confirmed []string
		var refused error
		for w := range writers {
			wg.Go(func() {
				for n := range 1000 {
					name := fmt.Sprintf("kill-%d%d%03d", round, w, n)
					status, _, b, err := p.try("POST", "/v1/users", key, object{"username": name, "externalId": "x-" + name, "pin": pinOf(name)})
					if err != nil {
						return // killed
					}
					mu.Lock()
					if confirmed = append(confirmed, name); status != 201 {
						refused = errors.Join(refused, fmt.Errorf("%s: %d %s", name, status, b))
					}
					mu.Unlock()
				}
			})
		}
		time.Sleep(time.Duration(10+rand.IntN(90)) * time.Millisecond)
		for began, some := time.Now(), false; !some && time.Since(began) < patience; time.Sleep(time.Millisecond) {
			mu.Lock()
			some = len(confirmed) > 0
			mu.Unlock()
		}
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-p.ended
		wg.Wait()
		if refused != nil {
			t.Fatal(refused)
		}

		p = start(t, data)
		var there []string
		for cursor := ""; ; {
			var page struct {
				Items []struct {
					Username, ExternalID string
					PIN                  struct{ State string }
				}
				NextCursor string
			}
			p.into(&page, 200, "GET", "/v1/users?limit=200&cursor="+cursor, key, nil)
			for _, u := range page.Items {
				if !strings.HasPrefix(u.Username, "kill-") { // the software card's holder
					continue
				}
				if u.PIN.State != "set" || u.ExternalID != "x-"+u.Username {
					t.Errorf("round %d: %+v is there by half", round, u)
				}
				there = append(there, u.Username)
			}
			if cursor = page.NextCursor; cursor == "" {
				break
			}
		}
		for _, name := range confirmed {
			if !slices.Contains(there, name) {
				t.Errorf("round %d: %s was confirmed and is gone", round, name)
			}
		}
		for name := range known {
			if !slices.Contains(there, name) {
				t.Errorf("round %d: %s of a former round is gone", round, name)
			}
		}
		var left sync.WaitGroup
		slots := make(chan struct{}, 8)
		for _, name := range there {
			if known[name] {
				continue
			}
			known[name] = true
			left.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				_, _, b, err := p.try("POST", "/v1/pins/verify", key, object{"externalId": "x-" + name, "pin": pinOf(name)})
				if err != nil || !bytes.Contains(b, []byte(`"verified":true`)) {
					t.Errorf("round %d: %s has another PIN: %s %v", round, name, b, err)
				}
			})
		}
		left.Wait()
	}
	if len(known) < rounds {
		t.Errorf("only %d users were made in %d rounds", len(known), rounds)
	}
}
