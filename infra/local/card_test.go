package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
)

// await waits until something is so.
func (p *process) await(what string, ready func() bool) {
	p.Helper()
	for began := time.Now(); !ready(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			p.Fatalf("%s: not in %v; pinward printed %s", what, patience, p.printed())
		}
	}
}

// bridges are those of the tenant demo, and the cards in their readers.
func (p *process) bridges(key string) []knownBridge {
	p.Helper()
	var list struct{ Items []knownBridge }
	p.into(&list, 200, "GET", "/v1/bridges", key, nil)
	return list.Items
}

type knownBridge struct {
	ID, Name string
	Online   bool
	Sessions []struct {
		Session string
		Readers []struct{ Card struct{ Credential string } }
	}
}

// sees waits until the only bridge reports the card in a reader, and returns the bridge and
// the card's credential.
func (p *process) sees(key string) (bridge, credential string) {
	p.Helper()
	p.await("the card at the bridge of this machine", func() bool {
		all := p.bridges(key)
		if len(all) > 1 || len(all) == 1 && all[0].Name != "this machine" {
			p.Fatalf("bridges %+v, want this machine", all)
		}
		for _, b := range all {
			for _, s := range b.Sessions {
				for _, r := range s.Readers {
					if s.Session == "service" && r.Card.Credential != "" {
						bridge, credential = b.ID, r.Card.Credential
					}
				}
			}
		}
		return credential != ""
	})
	return bridge, credential
}

var mailLink = regexp.MustCompile(`<td>([^<]*)</td><td><a href="(/_local/outbox/[^"]+)">([^<]*)</a>`)

// mails are the texts of the mails to somebody with a subject, newest first.
func (p *process) mails(to, subject string) (texts []string) {
	p.Helper()
	for _, m := range mailLink.FindAllStringSubmatch(string(p.call(200, "GET", "/_local/outbox", "", nil)), -1) {
		if m[1] == to && m[3] == subject {
			_, text, _ := strings.Cut(string(p.call(200, "GET", m[2], "", nil)), "<pre>")
			texts = append(texts, text)
		}
	}
	return texts
}

// code waits for the nth code that is mailed for the card.
func (p *process) code(n int) string {
	p.Helper()
	var codes []string
	p.await("mail with a code", func() bool {
		codes = p.mails("grace@example.org", "Your code to unblock your card for Demo Ltd")
		return len(codes) >= n
	})
	m := regexp.MustCompile(`(?m)^ +(\d{3}).?(\d{3})\b`).FindStringSubmatch(codes[0])
	if m == nil {
		p.Fatalf("no code in the mail %s", codes[0])
	}
	return m[1] + m[2]
}

// makes is what `make unblock` or `make change` runs, for this pinward and in the folder of
// its data.
func (p *process) makes(target string) string {
	p.Helper()
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		p.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + target + `:\n\tgo run \$\(TAGS\) \./(bridge .*) \$\(ARGS\)$`).FindSubmatch(makefile)
	if m == nil {
		p.Fatalf("the Makefile's %s is not what is expected", target)
	}
	return strings.ReplaceAll(string(m[1]), "http://127.0.0.1:8080", p.url)
}

// page is the card's page.
func (p *process) page() string {
	p.Helper()
	return string(p.call(200, "GET", "/_local/card", "", nil))
}

// press presses a button of the card's page, and returns the page that follows.
func (p *process) press(button string, form url.Values) string {
	p.Helper()
	resp, err := http.PostForm(p.url+"/_local/card/"+button, form)
	if err != nil {
		p.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || resp.Request.URL.Path != "/_local/card" {
		p.Fatalf("%s: %s at %s, %v", button, resp.Status, resp.Request.URL, err)
	}
	return string(b)
}

// wantPIN tries a PIN by the card's page.
func (p *process) wantPIN(pin string, right bool) {
	p.Helper()
	want := "That is not its PIN."
	if right {
		want = "That is its PIN."
	}
	if page := p.press("try", url.Values{"pin": {pin}}); !strings.Contains(page, want) || strings.Contains(page, pin) {
		p.Errorf("PIN %s tried: the page lacks %q, or shows the PIN: %s", pin, want, page)
	}
}

const (
	pageBlocked = `<strong class="bad">blocked</strong>`
	pageReset   = "The PIN of your card for Demo Ltd was reset"
)

// startCard runs pinward on a folder named data, as the README's commands have it.
func startCard(t testing.TB, args ...string) (p *process, data string) {
	data = filepath.Join(t.TempDir(), "data")
	return start(t, data, args...), data
}

// TestCard: a person gives the blocked card a new PIN at a terminal, with the code from the
// outbox, and everything tells of it.
func TestCard(t *testing.T) {
	p, data := startCard(t)
	key := p.key("KEY")
	_, credential := p.sees(key)
	if page := p.page(); !strings.Contains(page, pageBlocked) || !strings.Contains(page, "make unblock") || !strings.Contains(page, credential) {
		t.Errorf("the page of the blocked card: %s", page)
	}

	const pin = "739158"
	cmd := exec.Command("sh", "-c", p.makes("unblock"))
	cmd.Dir = filepath.Dir(data)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	code := p.code(1)
	wrong := "000000"
	if code == wrong {
		wrong = "000001"
	}
	fmt.Fprintf(in, "%s\n%s\n%s\n%s\n%s\n", wrong, code, "1234", pin, pin)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("make unblock: %v: %s", err, out.String())
	}
	for _, want := range []string{
		"A code was mailed to g…@example.org.", "The code is not the one that was mailed; tries left: 4.",
		"Choose a new PIN of 6 to 8 digits.", "The new PIN must have at least 6 digits.", "The new PIN must not go up or down by one", "The card has its new PIN.",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("make unblock lacks %q: %s", want, out.String())
		}
	}
	if strings.Contains(out.String(), pin) {
		t.Errorf("make unblock shows the PIN: %s", out.String())
	}

	if page := p.page(); strings.Contains(page, "blocked") || strings.Contains(page, "make unblock") || !strings.Contains(page, "3 of 3 tries left") || !strings.Contains(page, "by the holder") {
		t.Errorf("the page of the card with its new PIN: %s", page)
	}
	p.wantPIN(pin, true)
	p.wantPIN("739159", false)

	var credentials struct {
		Items []struct {
			ID            string
			PUK           struct{ State string }
			LastPINChange struct {
				At  time.Time
				How string
			}
			PINExpiresAt time.Time
		}
	}
	p.into(&credentials, 200, "GET", "/v1/credentials", key, nil)
	if len(credentials.Items) != 1 {
		t.Fatalf("credentials %+v", credentials)
	}
	if c := credentials.Items[0]; c.ID != credential || c.PUK.State != "settled" || c.LastPINChange.How != "resetBySelfService" || !c.PINExpiresAt.Equal(c.LastPINChange.At.AddDate(0, 0, 365)) {
		t.Errorf("credential %+v", c)
	}
	var log struct {
		Items []struct{ Action, Outcome string }
	}
	p.into(&log, 200, "GET", "/v1/audit?subject=credential/"+credential, key, nil)
	var told []string
	for _, r := range slices.Backward(log.Items) {
		told = append(told, r.Action+" "+r.Outcome)
	}
	if got, want := strings.Join(told, ", "), "credential.registered done, unblock.requested done, unblock.proof refused, unblock.proof done, unblock.begun done, puk.read done, "+
		"unblock.succeeded done, unblock.notice done"; got != want {
		t.Errorf("the audit log tells\n%s\nwant\n%s", got, want)
	}
	if reset := p.mails("grace@example.org", pageReset); len(reset) != 1 || !strings.Contains(reset[0], "staff card") || !strings.Contains(reset[0], "this machine") || strings.Contains(reset[0], pin) {
		t.Errorf("mails to the holder that the PIN was reset: %q", reset)
	}

	// The card's own file has its PIN, and the outbox the code; nothing else has either.
	err = filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "card.json" || filepath.Base(filepath.Dir(path)) == "outbox" {
			return err
		}
		b, err := os.ReadFile(path)
		for _, s := range []string{pin, softcard.FactoryPUK} {
			if bytes.Contains(b, []byte(s)) || bytes.Contains(b, []byte(hex.EncodeToString([]byte(s)))) {
				t.Errorf("%s has the PIN or the PUK", path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCardREADME runs the README's commands as they stand, in the order in which a newcomer
// comes upon them: the clock is two days ahead when the card is unblocked.
func TestCardREADME(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	// block returns the indented lines that begin with one.
	block := func(first string) string {
		at := strings.Index(string(readme), "\n    "+first)
		if at < 0 {
			t.Fatalf("the README has no %q", first)
		}
		var lines []string
		for line := range strings.Lines(string(readme[at+1:])) {
			if !strings.HasPrefix(line, "    ") && line != "\n" {
				break
			}
			lines = append(lines, line)
		}
		return strings.Join(lines, "")
	}
	p, data := startCard(t)
	key := p.key("KEY")
	p.sees(key)
	script := block("api() {") + block("bridge=$(") + block("api -X POST \"$url/_local/clock?advance=8784h\"")
	if !strings.Contains(script, "url=http://127.0.0.1:8080\n") || strings.Count(script, "make unblock\n") != 1 || strings.Count(script, "make change\n") != 1 {
		t.Fatalf("the README's commands are not what is expected: %s", script)
	}
	const pin, changed = "30729485", "59173628"
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-euc", "make() { if [ $1 = change ]; then "+p.makes("change")+"; else "+p.makes("unblock")+"; fi; }\n"+strings.Replace(script, "http://127.0.0.1:8080", p.url, 1))
	cmd.Dir = filepath.Dir(data)
	cmd.Env = append(os.Environ(), "KEY="+key)
	cmd.WaitDelay = time.Second // the bridge outlives the shell
	cmd.Stdin = strings.NewReader(strings.Join([]string{pin, pin, pin, changed, changed, ""}, "\n"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the README's commands: %v: %s", err, out)
	}
	for _, want := range []string{`"code":"sequential"`, `"verified":false`, `"verified":true`, `"outcome":"acted"`, `"outcome":"duplicate"`, `"statement":"staff badge"`, "The card has its new PIN.", " Its PIN has expired on ", "The card has its new PIN. It expires on "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the README's commands print no %s: %s", want, out)
		}
	}
	if strings.Contains(string(out), "Code: ") {
		t.Errorf("an unblock that an operator has started asks for a code: %s", out)
	}
	p.wantPIN(changed, true)
	if page := string(p.call(200, "GET", "/_local/outbox", "", nil)); !strings.Contains(page, "staff card for Demo Ltd has expired") {
		t.Errorf("the outbox lacks the mail that the PIN has expired: %s", page)
	}
	if page := p.page(); !strings.Contains(page, "<dt>PIN changed</dt>") || strings.Contains(page, "make change") || strings.Contains(page, ">expired<") {
		t.Errorf("the page of the card whose PIN was changed: %s", page)
	}
	if page := string(p.call(200, "GET", "/_local/outbox", "", nil)); strings.Count(page, ">Your PIN for Demo Ltd expires on ") != 1 {
		t.Errorf("the outbox lacks the mail to ada: %s", page)
	}
	if issued := p.mails("alan@example.org", "Your new PIN for Demo Ltd"); len(issued) != 1 {
		t.Errorf("mails with a PIN to alan, who has printed: %q", issued)
	}
	if reset := p.mails("grace@example.org", pageReset); len(reset) != 1 || !strings.Contains(reset[0], "first administrator") {
		t.Errorf("mails to the holder that the PIN was reset: %q", reset)
	}
}

// unblock gives the card a new PIN by the bridge of this machine alone, with a PIN that is
// sealed for it.
func (p *process) unblock(key, pin string) {
	p.Helper()
	bridge, credential := p.sees(key)
	var op struct {
		ID, State, Sentence string
		Next                struct {
			Seal struct{ PublicKey, AssociatedData string }
		}
	}
	p.into(&op, 201, "POST", "/v1/unblocks", key, object{"credential": credential, "bridge": bridge, "channel": "operator", "statement": "known in person"})
	to, err := hex.DecodeString(op.Next.Seal.PublicKey)
	if err != nil {
		p.Fatal(err)
	}
	b := relay.Binding{Tenant: "demo", Operation: op.ID, Credential: credential}
	bound := strings.Split(op.Next.Seal.AssociatedData, "\n")
	if _, err := fmt.Sscan(bound[len(bound)-1], &b.Fence); err != nil {
		p.Fatal(err)
	}
	sealed, err := relay.SealPIN(to, b, secret.New(pin))
	if err != nil {
		p.Fatal(err)
	}
	p.call(200, "POST", "/v1/unblocks/"+op.ID+"/pin", key, sealed)
	p.await("end of the unblock", func() bool {
		p.into(&op, 200, "GET", "/v1/unblocks/"+op.ID, key, nil)
		return op.State != "running"
	})
	if op.State != "succeeded" {
		p.Fatalf("unblock: %s: %s", op.State, op.Sentence)
	}
	p.wantPIN(pin, true)
}

// TestCardStays takes the card out and puts it in, puts the clock forward and starts pinward
// anew: the bridge of this machine goes on, and is the same one.
func TestCardStays(t *testing.T) {
	p, data := startCard(t)
	address := strings.TrimPrefix(p.url, "http://")
	key := p.key("KEY")
	bridge, credential := p.sees(key)
	p.unblock(key, "30729485")

	if page := p.press("remove", nil); !strings.Contains(page, "Put it in") || strings.Contains(page, "Take it out") {
		t.Errorf("the page without the card: %s", page)
	}
	p.await("a reader without the card", func() bool {
		return p.bridges(key)[0].Sessions[0].Readers[0].Card.Credential == ""
	})
	if page := p.press("insert", nil); !strings.Contains(page, "Take it out") {
		t.Errorf("the page with the card: %s", page)
	}
	p.sees(key)
	if page := p.press("block", nil); !strings.Contains(page, pageBlocked) {
		t.Errorf("the page of the card that was blocked: %s", page)
	}
	p.wantPIN("30729485", true) // which it has still, blocked

	p.call(200, "POST", "/_local/clock?advance=1h", "", nil)
	p.unblock(key, "30729486")
	p.call(200, "POST", "/_local/clock?advance=50h", "", nil)
	if b := p.bridges(key)[0]; !b.Online {
		t.Errorf("after the clock was put forward the bridge is not online: %+v", b)
	}
	p.press("block", nil)
	p.unblock(key, "30729487")
	p.stop()

	// The clock is right again, and so behind what it was.
	for range 2 {
		p = start(t, data, "-addr", address)
		if b, c := p.sees(key); b != bridge || c != credential {
			t.Errorf("after a restart bridge %s, card %s, want %s, %s", b, c, bridge, credential)
		}
		p.wantPIN("30729487", true)
		if page := p.page(); strings.Contains(page, "blocked") {
			t.Errorf("after a restart the page: %s", page)
		}
		p.stop()
	}

	// Another address, and a clock far ahead.
	p = start(t, data, "-now", "2031-12-31T23:30:00Z")
	p.press("block", nil)
	p.unblock(key, "30729488")
	if b, _ := p.sees(key); b != bridge {
		t.Errorf("at another address bridge %s, want %s", b, bridge)
	}
}

// TestStopWithBridges: pinward ends within seconds, whoever is connected or waits for news
// of the reader.
func TestStopWithBridges(t *testing.T) {
	p, _ := startCard(t)
	key := p.key("KEY")
	p.sees(key)
	var invited struct{ ID, Code string }
	p.into(&invited, 201, "POST", "/v1/bridges", key, object{"name": "another"})
	dir := filepath.Join(t.TempDir(), "bridge")
	if out, err := exec.Command("bridge", "enroll", "-dir", dir, invited.Code, p.url).CombinedOutput(); err != nil {
		t.Fatalf("enroll: %v: %s", err, out)
	}
	running := exec.Command("bridge", "run", "-dir", dir, "-soft", p.url+readerPath)
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- running.Wait() }()
	t.Cleanup(func() { _ = running.Process.Kill() })
	p.await("the card at another bridge", func() bool {
		at := slices.IndexFunc(p.bridges(key), func(b knownBridge) bool { return b.ID == invited.ID })
		if at < 0 {
			return false
		}
		sessions := p.bridges(key)[at].Sessions
		return len(sessions) == 1 && len(sessions[0].Readers) == 1 && sessions[0].Readers[0].Card.Credential != ""
	})

	began := time.Now()
	p.stop()
	if took := time.Since(began); took > patience {
		t.Errorf("pinward ended after %v", took)
	}
	if got := p.printed(); strings.Contains(got, "level=") {
		t.Errorf("pinward printed %s", got)
	}
	// And so does a bridge that has lost its cloud.
	if err := running.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("bridge run: %v", err)
		}
	case <-time.After(patience):
		t.Error("bridge run does not end")
	}
}

// TestReaderIsForPrograms: no page reaches the reader, of another site or of this one, nor
// does a name that was made to point here.
func TestReaderIsForPrograms(t *testing.T) {
	p, _ := startCard(t)
	p.sees(p.key("KEY"))
	var in struct{ Insertion string }
	p.into(&in, 200, "GET", readerPath, "", nil)
	if in.Insertion == "" {
		t.Fatal("programs do not see the card")
	}
	type header struct{ name, value string }
	for _, h := range []header{
		{"Host", "elsewhere.example"}, {"Origin", "https://elsewhere.example"}, {"Origin", p.url}, {"Origin", "null"},
		{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-origin"},
	} {
		for _, request := range []struct {
			method, path string
			body         any
		}{
			{"GET", readerPath, nil},
			{"GET", readerPath + "/?after=x", nil},
			{"POST", readerPath + "/sessions", object{"insertion": in.Insertion}},
			{"DELETE", readerPath + "/sessions/x", nil},
		} {
			b, err := json.Marshal(request.body)
			if err != nil {
				t.Fatal(err)
			}
			r, err := http.NewRequest(request.method, p.url+request.path, bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if r.Header.Set(h.name, h.value); h.name == "Host" {
				r.Host = h.value
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 403 || bytes.Contains(answer, []byte(in.Insertion)) || resp.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s %s with %v: %s %s, %v, want 403", request.method, request.path, h, resp.Status, answer, err)
			}
		}
	}
	for _, button := range []string{"remove", "insert", "block", "try"} {
		p.call(403, "POST", "/_local/card/"+button, "", nil, "Origin", "https://elsewhere.example")
	}
	if page := p.page(); !strings.Contains(page, "Take it out") {
		t.Errorf("another site took the card out: %s", page)
	}
}
