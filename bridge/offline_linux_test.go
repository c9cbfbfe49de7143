package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/functions/api/rest"
	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/softcard/pcscd"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
	"github.com/pinward/pinward/shared/vault"
)

// The secrets of the cards at the help desk, and the PINs that people choose.
const (
	testAdminKey = "010203040506070801020304050607080102030405060708"
	testPUK      = "47110815"
	firstPIN     = "739158"
	gidsPIN      = "Tk7Qx2wZ"
)

// helpdesk is a whole installation, by real time, with a tenant and its cards.
type helpdesk struct {
	t      testing.TB
	system *wiring.System
	core   tenant.Core
	url    string
	log    *testserver.Buffer
	outbox *mail.Outbox
	holder string
	keys   map[string]string // role → API key
	reader *softcard.Reader  // served at url/card
	table  string            // the file

	mu   sync.Mutex
	down bool // the relay cannot be reached
}

var by = audit.Actor{Kind: audit.System, ID: "test"}

func newHelpdesk(t testing.TB) *helpdesk {
	t.Helper()
	dir := t.TempDir()
	h := &helpdesk{t: t, log: new(testserver.Buffer), keys: map[string]string{}, reader: softcard.NewReader(), table: filepath.Join(dir, "table")}
	db, err := bolt.Open(h.table, bolt.NoSync())
	h.must(err)
	root, err := vault.LocalRoot(filepath.Join(dir, "root.key"))
	h.must(err)
	h.outbox, err = mail.OpenOutbox(filepath.Join(dir, "outbox"))
	h.must(err)
	_, hash, err := tenant.NewPlatformKey(rand.Reader)
	h.must(err)
	mux := http.NewServeMux()
	web := httptest.NewServer(mux)
	h.url = web.URL
	var relayed gateway.SocketFunction
	relays := gateway.NewSocketFront(func(ctx context.Context, e events.APIGatewayWebsocketProxyRequest) (events.APIGatewayProxyResponse, error) {
		return relayed(ctx, e)
	}, time.Now, rand.Reader)
	h.system = wiring.New(wiring.Parts{Table: db, Root: root, Senders: mail.Senders{Outbox: h.outbox, Now: time.Now}, Now: time.Now,
		Log: slog.New(slog.NewJSONHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})), PlatformKeyHash: hash,
		Rate: rest.Rate{PerSecond: 1e6, Burst: 1e6}, Connections: relays, RelayURL: "ws" + h.url[len("http"):] + "/relay"})
	relayed = gateway.SocketHandler(h.system.Relay())
	mux.HandleFunc("/relay", func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		down := h.down
		h.mu.Unlock()
		if down {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		relays.ServeHTTP(w, r)
	})
	handler := softcard.Handler(h.reader)
	mux.Handle("/card/", http.StripPrefix("/card", handler))
	mux.Handle("/card", http.StripPrefix("/card", handler))
	mux.Handle("/", gateway.Front(gateway.Handler(h.system.API()), time.Now, func() string { return ulid.Make().String() }))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = relays.Shutdown(ctx)
		web.CloseClientConnections()
		web.Close()
		_ = db.Close()
		_ = h.outbox.Close()
	})

	ctx := t.Context()
	var key secret.Text
	h.core, key, err = h.system.Tenants.Create(ctx, by, tenant.Tenant{ID: "acme", Settings: tenant.Settings{DisplayName: "Acme", TimeZone: "Europe/Berlin", Language: "en"}})
	h.must(err)
	h.keys["admin"] = key.Reveal()
	for _, name := range []string{"operator", "operator2", "helpdesk"} {
		h.keys[name] = h.call("admin", "POST", "/v1/keys", map[string]any{"name": name, "role": strings.TrimSuffix(name, "2")}, 201)["apiKey"].(string)
	}
	u, err := h.system.Users.Create(ctx, h.core, by, user.Profile{Username: "ada", Mail: "ada@acme.example"}, nil)
	h.must(err)
	h.holder = u.ID
	return h
}

func (h *helpdesk) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *helpdesk) connected(yes bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = !yes
}

// call makes a request of the API, and returns its answer.
func (h *helpdesk) call(key, method, path string, body any, want int) map[string]any {
	h.t.Helper()
	var sent []byte
	if body != nil {
		sent, _ = json.Marshal(body)
	}
	r, err := http.NewRequest(method, h.url+path, bytes.NewReader(sent))
	h.must(err)
	r.Header.Set("Authorization", "Bearer "+h.keys[key])
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(r)
	h.must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	h.must(err)
	if resp.StatusCode != want {
		h.t.Fatalf("%s %s: got %d %s, want %d", method, path, resp.StatusCode, text, want)
	}
	var answer map[string]any
	_ = json.Unmarshal(text, &answer)
	if answer["response"] != nil && resp.Header.Get("Cache-Control") != "no-store" {
		h.t.Errorf("a response may be kept: %v", resp.Header)
	}
	return answer
}

// refused is why a request is refused.
func (h *helpdesk) refused(key string, body map[string]any, want int) string {
	h.t.Helper()
	a := h.call(key, "POST", "/v1/offline-answers", body, want)
	text := fmt.Sprint(a["detail"])
	if errs, ok := a["errors"].([]any); ok {
		for _, e := range errs {
			text += " | " + fmt.Sprint(e.(map[string]any)["message"])
		}
	}
	return text
}

// template is a credential template that lets all channels, changed as given.
func (h *helpdesk) template(family string, change ...func(*credential.Template)) string {
	h.t.Helper()
	store := mail.Store{Table: h.system.Table, Tenant: h.core.Tenant.ID, Keys: h.core.Keys}
	op, err := store.PutConfiguration(h.t.Context(), mail.Configuration{ID: "outbox-" + ulid.Make().String(), Name: "Outbox", Kind: mail.KindOutbox, From: "it@acme.example"})
	h.must(err)
	h.must(h.system.Table.Write(h.t.Context(), op))
	all, err := store.Configurations(h.t.Context())
	h.must(err)
	f, err := card.FamilyNamed(family)
	h.must(err)
	tmpl := credential.Template{Name: family, Family: family, Policy: f.Policy(), Channels: credential.Channels(), Messaging: all[0].ID, PINValidDays: 90}
	for _, c := range change {
		c(&tmpl)
	}
	tmpl, err = h.system.Credentials.CreateTemplate(h.t.Context(), h.core, by, tmpl, nil)
	h.must(err)
	return tmpl.ID
}

// issue makes a blocked card, and registers it.
func (h *helpdesk) issue(profile softcard.Profile, template string) (*softcard.Card, string) {
	h.t.Helper()
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	c := softcard.Config{Profile: profile, ID: id, Blocked: true, Rand: rand.Reader}
	n := credential.New{Family: "PIV", CardID: hex.EncodeToString(id), Holder: h.holder, Label: "Ada's card", Template: template}
	if profile == softcard.GIDS {
		n.Family = "GIDS"
		c.AdminKey, _ = hex.DecodeString(testAdminKey)
		key := secret.New(testAdminKey)
		n.AdminKey = &key
	} else {
		c.PUK = testPUK
		puk := secret.New(testPUK)
		n.PUK = &puk
	}
	piece, err := softcard.New(c)
	h.must(err)
	cred, err := h.system.Credentials.Register(h.t.Context(), h.core, by, n)
	h.must(err)
	return piece, cred.ID
}

func (h *helpdesk) credential(id string) credential.Credential {
	h.t.Helper()
	c, err := h.system.Credentials.Get(h.t.Context(), h.core.Tenant.ID, id)
	h.must(err)
	return c
}

// actions are what was done to a credential, newest first.
func (h *helpdesk) actions(id string) (actions []string) {
	h.t.Helper()
	records, _, err := audit.Of(h.t.Context(), h.system.Table, h.core.Tenant.ID, credential.Subject(id), "", 200)
	h.must(err)
	for _, r := range records {
		action := r.Action
		if r.Outcome != audit.Done {
			action += " " + string(r.Outcome)
		}
		actions = append(actions, action)
	}
	return actions
}

// enrolled is the state folder of a bridge of this tenant.
func (h *helpdesk) enrolled() string {
	h.t.Helper()
	made := h.call("admin", "POST", "/v1/bridges", map[string]any{"name": "Field laptop"}, 201)
	dir := filepath.Join(h.t.TempDir(), "state")
	if out, err := exec.Command("bridge", "enroll", "-dir", dir, made["code"].(string), h.url).CombinedOutput(); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// talk is a session at a bridge, as it was read and typed.
type talk struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	seen  testserver.Buffer // with what was typed
	out   testserver.Buffer // without
	ended chan error
}

func startTalk(t testing.TB, cmd *exec.Cmd) *talk {
	t.Helper()
	s := &talk{t: t, cmd: cmd, ended: make(chan error, 1)}
	fmt.Fprintf(&s.seen, "$ %s\n", strings.Join(cmd.Args, " "))
	cmd.Stdout = io.MultiWriter(&s.out, &s.seen)
	cmd.Stderr = cmd.Stdout
	var err error
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return s
}

// sees waits until something is printed.
func (s *talk) sees(text string, times int) {
	s.t.Helper()
	for began := time.Now(); strings.Count(s.out.String(), text) < times; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			s.t.Fatalf("no %q in %v:\n%s", text, patience, s.seen.String())
		}
	}
}

func (s *talk) types(line string) {
	s.t.Helper()
	fmt.Fprintf(&s.seen, "‹%s›", line)
	if _, err := io.WriteString(s.stdin, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
}

// ends waits for the end, and returns the exit code.
func (s *talk) ends() int {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.t.Fatalf("no end:\n%s", s.seen.String())
	}
	s.t.Log("\n" + s.seen.String())
	return s.cmd.ProcessState.ExitCode()
}

var aCode = regexp.MustCompile(`(?m)^    ((?:\d{6} ?)+)$`)

// challenge is the last code that was shown.
func (s *talk) challenge(times int) string {
	s.t.Helper()
	s.sees("The response: ", times)
	all := aCode.FindAllStringSubmatch(s.out.String(), -1)
	if len(all) == 0 {
		s.t.Fatalf("there is no challenge:\n%s", s.seen.String())
	}
	return all[len(all)-1][1]
}

func ask(credential, channel, challenge string) map[string]any {
	return map[string]any{"credential": credential, "channel": channel, "challenge": challenge, "statement": "called back on the number on record"}
}

const byBridge, byWindows = "selfServiceOffline", "windowsChallengeResponse"

// spoil changes a digit of a group.
func spoil(code string, group int) string {
	groups := strings.Fields(code)
	d := groups[group][2]
	groups[group] = groups[group][:2] + string('0'+(d-'0'+1)%10) + groups[group][3:]
	return strings.Join(groups, " ")
}

// TestOfflinePIV unblocks a PIV card at a bridge that cannot reach the cloud, with the help
// desk's part played through the API; then the bridge is connected again.
func TestOfflinePIV(t *testing.T) {
	h := newHelpdesk(t)
	piece, id := h.issue(softcard.PivApplet, h.template("PIV"))
	h.reader.Insert(piece)
	dir := h.enrolled()
	h.connected(false)

	s := startTalk(t, exec.Command("bridge", "unblock", "--offline", "-dir", dir, "-soft", h.url+"/card"))
	challenge := s.challenge(1)
	if why := h.refused("helpdesk", ask(id, byBridge, spoil(challenge, 1)), 422); !strings.Contains(why, "group 2 was misheard") {
		t.Errorf("a misheard challenge: %s", why)
	}
	if why := h.refused("helpdesk", ask(id, byBridge, challenge[:len(challenge)-1]), 422); !strings.Contains(why, "has 17 digits, must have 18") {
		t.Errorf("a challenge with a missing digit: %s", why)
	}
	_, other := h.issue(softcard.PivApplet, h.credential(id).Template)
	if why := h.refused("helpdesk", ask(other, byBridge, challenge), 422); !strings.Contains(why, "another card or another bridge") {
		t.Errorf("a challenge of another card: %s", why)
	}
	given := h.call("helpdesk", "POST", "/v1/offline-answers", ask(id, byBridge, strings.ReplaceAll(challenge, " ", "-")), 201)
	response := given["response"].(string)
	t.Logf("help desk: %v reads out %s\n  %v", given["challenge"], response, given["spoken"].(map[string]any)["en"])
	if strings.Contains(response, testPUK[:6]) || given["challenge"] != challenge {
		t.Errorf("given %v", given)
	}
	if why := h.refused("helpdesk", ask(id, byBridge, challenge), 409); !strings.Contains(why, "answered already") {
		t.Errorf("asked twice: %s", why)
	}
	again := h.call("helpdesk", "POST", "/v1/offline-answers/"+given["id"].(string)+"/response", nil, 200)
	if again["response"] != response {
		t.Error("shown again it is another answer")
	}
	h.call("operator", "POST", "/v1/offline-answers/"+given["id"].(string)+"/response", nil, 403)
	if c := h.credential(id); !c.LastPINChange.Presumed || c.LastPINChange.How != credential.ResetOffline || c.PINExpiresAt.IsZero() || c.PUKDisclosedAt.IsZero() {
		t.Errorf("presumed: %+v", c.LastPINChange)
	}

	s.types(spoil(response, 2))
	s.sees("group 3 was misheard", 1)
	s.types(challenge)
	s.sees("the other side", 1)
	s.types(response)
	s.sees("New PIN: ", 1)
	s.types("123456")
	s.sees("New PIN: ", 2)
	s.types(firstPIN)
	s.sees("The same again: ", 1)
	s.types(firstPIN)
	if code := s.ends(); code != 0 || !piece.PINIs(firstPIN) || !piece.PUKIs(testPUK) {
		t.Fatalf("exit code %d; PIN set: %t", code, piece.PINIs(firstPIN))
	}
	if found := canary(dir, s.out.String()); found != "" || strings.Contains(s.out.String(), testPUK) {
		t.Errorf("%s", found)
	}

	// Connected again, it is reported and confirmed.
	h.connected(true)
	run := startTalk(t, exec.Command("bridge", "run", "-dir", dir, "-soft", h.url+"/card"))
	wait(t, "confirmation", func() bool { return !h.credential(id).LastPINChange.Presumed })
	got := h.call("helpdesk", "GET", "/v1/offline-answers/"+given["id"].(string), nil, 200)
	if got["state"] != "confirmed" || got["response"] != nil {
		t.Errorf("afterwards: %v", got)
	}
	wait(t, "acknowledgement", func() bool {
		files, _ := filepath.Glob(filepath.Join(dir, "journal-*", "*.offline"))
		b, _ := os.ReadFile(files[0])
		return !strings.Contains(string(b), `"done"`) && strings.Contains(string(b), `"known"`)
	})
	_ = run.cmd.Process.Signal(os.Interrupt)
	<-run.ended
	h.search(response)
	actions := strings.Join(h.actions(id), ", ")
	for _, want := range []string{"offline.answered", "puk.read", "offline.shownAgain", "offline.reported", "offline.notice"} {
		if !strings.Contains(actions, want) {
			t.Errorf("the audit log has no %s: %s", want, actions)
		}
	}
}

// search looks for secrets where they must not be.
func (h *helpdesk) search(more ...string) {
	h.t.Helper()
	file, err := os.ReadFile(h.table)
	h.must(err)
	for _, s := range append(more, testPUK, testAdminKey, firstPIN, gidsPIN) {
		for where, text := range map[string]string{"log": h.log.String(), "table": string(file)} {
			if regexp.MustCompile(`(^|[^0-9A-Za-z])` + regexp.QuoteMeta(s) + `($|[^0-9A-Za-z])`).MatchString(text) {
				h.t.Errorf("the %s shows %s", where, s)
			}
		}
	}
}

// TestOfflineWindows is a card at Windows' own screen: its challenge is read by another
// program, and plain commands do what the screen does.
func TestOfflineWindows(t *testing.T) {
	h := newHelpdesk(t)
	tmpl := h.template("GIDS")
	d := pcscd.Start(t)
	piece, id := h.issue(softcard.GIDS, tmpl)
	d.Insert(0, piece)
	d.Await(0, true)

	// opensc-tool keeps the card in one connection for all its commands.
	const selectGIDS, chooseKey, getChallenge = "00A404000BA00000039742544659020100", "002281A403830180", "00870000047C02810000"
	out, err := d.Command("opensc-tool", "--reader", "0", "-s", selectGIDS, "-s", chooseKey, "-s", getChallenge).CombinedOutput()
	if err != nil {
		t.Fatalf("opensc-tool: %v: %s", err, out)
	}
	dump := regexp.MustCompile(`(?m)^7C 0A 81 08((?: [0-9A-F]{2}){8})`).FindSubmatch(out)
	if dump == nil {
		t.Fatalf("opensc-tool shows no challenge: %s", out)
	}
	challenge := strings.ReplaceAll(strings.TrimSpace(string(dump[1])), " ", "")
	typed := strings.NewReplacer("0", "O", "1", "l").Replace(strings.ToLower(challenge))
	given := h.call("operator", "POST", "/v1/offline-answers", ask(id, byWindows, typed[:4]+" - "+typed[4:]), 201)
	response := given["response"].(string)
	t.Logf("read out %s, understood as %v (%v): response %s\n  %v\n  %v", typed, given["challenge"], given["replaced"], response,
		given["spoken"].(map[string]any)["en"], given["spoken"].(map[string]any)["de"])
	if strings.ReplaceAll(given["challenge"].(string), " ", "") != challenge || !regexp.MustCompile(`^([0-9A-F]{4} ){3}[0-9A-F]{4}$`).MatchString(response) {
		t.Errorf("given %v", given)
	}
	// The card was not touched in between, so it awaits the answer still.
	session := softcardSession{t, piece}
	session.send("008700000C7C0A8208" + strings.ReplaceAll(response, " ", ""))
	session.send(fmt.Sprintf("002C0280%02X%X", len(gidsPIN), gidsPIN))
	if !piece.PINIs(gidsPIN) {
		t.Error("the card does not have the PIN")
	}
	if c := h.credential(id); !c.LastPINChange.Presumed || !c.PUKDisclosedAt.IsZero() {
		t.Errorf("presumed: %+v, %v", c.LastPINChange, c.PUKDisclosedAt)
	}
	h.search(response)

	// The vector of the traces, and as the same text: the response is of this card's key.
	fixed := h.call("operator", "POST", "/v1/offline-answers", ask(id, byWindows, "bfo9-e22d-e553-55f6"), 201)
	if fixed["response"] != "072C 03EF 17ED D87C" || fmt.Sprint(fixed["replaced"]) != "[o in group 1, place 3 taken for 0]" {
		t.Errorf("vector: %v", fixed)
	}
	for typed, want := range map[string]string{
		"BF09E22DE55355F":   "has 15 hex digits, must have 16 or 32",
		"BF09 E22D E553 5S": "is no hex digit: ask whether it is 5, 8 or F",
		"":                  "has 0 hex digits",
	} {
		if why := h.refused("helpdesk", ask(id, byWindows, typed), 422); !strings.Contains(why, want) {
			t.Errorf("%q: %s", typed, why)
		}
	}
}

// softcardSession sends plain commands.
type softcardSession struct {
	t testing.TB
	c *softcard.Card
}

func (s softcardSession) send(command string) []byte {
	s.t.Helper()
	b, err := hex.DecodeString(command)
	if err != nil {
		s.t.Fatal(err)
	}
	answer, err := s.c.Transmit(b)
	if err != nil || !bytes.HasSuffix(answer, []byte{0x90, 0}) {
		s.t.Fatalf("%s: %X, %v", command, answer, err)
	}
	return answer
}

// gidsAtReader is a GIDS card in a real service, and a bridge that has it.
func gidsAtReader(t *testing.T, h *helpdesk) (d *pcscd.Daemon, piece *softcard.Card, id string, begin func() *talk) {
	d = pcscd.Start(t)
	piece, id = h.issue(softcard.GIDS, h.template("GIDS"))
	d.Insert(0, piece)
	d.Await(0, true)
	dir := h.enrolled()
	h.connected(false)
	return d, piece, id, func() *talk {
		return startTalk(t, d.Command("bridge", "unblock", "--offline", "-dir", dir))
	}
}

// TestOfflineGIDS unblocks a GIDS card: its challenge lasts for longer than a transaction
// may, while other programs try to get at the card.
func TestOfflineGIDS(t *testing.T) {
	h := newHelpdesk(t)
	d, piece, id, begin := gidsAtReader(t, h)
	s := begin()
	challenge := s.challenge(1)
	if out, err := d.Command("opensc-tool", "--reader", "0", "--serial").CombinedOutput(); err == nil {
		t.Errorf("another program has got at the card: %s", out)
	}
	time.Sleep(5500 * time.Millisecond) // a person reads it out
	given := h.call("helpdesk", "POST", "/v1/offline-answers", ask(id, byBridge, challenge), 201)
	s.types(given["response"].(string))
	s.sees("New PIN: ", 1)
	s.types(gidsPIN)
	s.sees("The same again: ", 1)
	s.types(gidsPIN)
	if code := s.ends(); code != 0 || !piece.PINIs(gidsPIN) {
		t.Fatalf("exit code %d; PIN set: %t", code, piece.PINIs(gidsPIN))
	}
	if state := piece.Inspect(); state.AdminVerified {
		t.Error("the card is left with the admin key's rights")
	}
	h.search(given["response"].(string))
}

// TestOfflineDisturbed: another program, which has the card open already, uses it while the
// person reads codes. The card has forgotten its challenge, and takes no PIN.
func TestOfflineDisturbed(t *testing.T) {
	h := newHelpdesk(t)
	_, piece, id, begin := gidsAtReader(t, h)
	s := begin()
	challenge := s.challenge(1)
	given := h.call("helpdesk", "POST", "/v1/offline-answers", ask(id, byBridge, challenge), 201)
	softcardSession{t, piece}.send("00A404000BA00000039742544659020100")
	s.types(given["response"].(string))
	s.sees("New PIN: ", 1)
	s.types(gidsPIN)
	s.sees("The same again: ", 1)
	s.types(gidsPIN)
	if code := s.ends(); code != 1 || piece.PINIs(gidsPIN) || !strings.Contains(s.out.String(), "used by another program, and has forgotten the challenge; begin anew") {
		t.Fatalf("exit code %d:\n%s", code, s.out.String())
	}
	h.search(given["response"].(string))
}

// TestOfflineLimits: what a bridge bounds by itself.
func TestOfflineLimits(t *testing.T) {
	h := newHelpdesk(t)
	piece, id := h.issue(softcard.PivApplet, h.template("PIV"))
	h.reader.Insert(piece)
	dir := h.enrolled()
	h.connected(false)
	begin := func() *talk {
		return startTalk(t, exec.Command("bridge", "unblock", "--offline", "-dir", dir, "-soft", h.url+"/card"))
	}
	s := begin()
	first := s.challenge(1)
	old := h.call("helpdesk", "POST", "/v1/offline-answers", ask(id, byBridge, first), 201)["response"].(string)
	_ = s.stdin.Close()
	if code := s.ends(); code != 1 {
		t.Errorf("the input has ended: exit code %d", code)
	}
	s = begin()
	s.challenge(1)
	for n := range 5 {
		s.types(old)
		s.sees("does not answer this challenge", n+1)
	}
	if code := s.ends(); code != 1 || !strings.Contains(s.out.String(), "too many wrong responses: begin anew") {
		t.Errorf("five responses to another challenge: exit code %d", code)
	}
	if state := piece.Inspect(); state.PUKTries != state.PUKMost || piece.PINIs(firstPIN) {
		t.Errorf("the card was spoken to: %+v", state)
	}
	for range 18 {
		s = begin()
		s.challenge(1)
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	s = begin()
	if code := s.ends(); code != 1 || !strings.Contains(s.out.String(), "20 attempts with this card within a day") {
		t.Errorf("challenge 21 of a day: exit code %d", code)
	}
}

// TestOfflineKnown: a bridge that was enrolled before there was an offline key learns it when
// it connects, and of each card that it sees what a new PIN must be, and whether it may be
// unblocked so.
func TestOfflineKnown(t *testing.T) {
	h := newHelpdesk(t)
	tmpl := h.template("PIV", func(t *credential.Template) { t.Policy.MinLength = 8 })
	piece, id := h.issue(softcard.PivApplet, tmpl)
	h.reader.Insert(piece)
	dir := h.enrolled()
	path := filepath.Join(dir, "enrolment.json")
	var file map[string]any
	b, err := os.ReadFile(path)
	h.must(err)
	h.must(json.Unmarshal(b, &file))
	key := file["offline"]
	delete(file, "offline")
	b, err = json.Marshal(file)
	h.must(err)
	h.must(os.WriteFile(path, b, 0o600))

	begin := func() *talk {
		return startTalk(t, exec.Command("bridge", "unblock", "--offline", "-dir", dir, "-soft", h.url+"/card"))
	}
	s := begin()
	if code := s.ends(); code != 1 || !strings.Contains(s.out.String(), "let it connect once") {
		t.Errorf("without the key: exit code %d", code)
	}
	connect := func(known string) {
		t.Helper()
		run := startTalk(t, exec.Command("bridge", "run", "-dir", dir, "-soft", h.url+"/card"))
		wait(t, "what is known of the card", func() bool {
			files, _ := filepath.Glob(filepath.Join(dir, "journal-*", "*.offline"))
			b := []byte{}
			if len(files) == 1 {
				b, _ = os.ReadFile(files[0])
			}
			return strings.Contains(string(b), `"known"`) && strings.Contains(string(b), `"offline":true`) == (known == "open")
		})
		_ = run.cmd.Process.Signal(os.Interrupt)
		<-run.ended
	}
	connect("open")
	b, err = os.ReadFile(path)
	h.must(err)
	h.must(json.Unmarshal(b, &file))
	if file["offline"] != key || key == nil {
		t.Errorf("the key is %v, want %v", file["offline"], key)
	}
	h.connected(false)
	s = begin()
	given := h.call("helpdesk", "POST", "/v1/offline-answers", ask(id, byBridge, s.challenge(1)), 201)
	s.types(given["response"].(string))
	s.sees("Choose a new PIN of 8 digits.", 1)
	_ = s.stdin.Close()
	if code := s.ends(); code != 1 || piece.PINIs(firstPIN) {
		t.Errorf("exit code %d", code)
	}

	h.connected(true)
	_, err = h.system.Credentials.UpdateTemplate(t.Context(), h.core, by, tmpl, 0, func(t *credential.Template) {
		t.Channels = []credential.Channel{credential.Operator}
	}, nil)
	h.must(err)
	connect("closed")
	h.connected(false)
	s = begin()
	if code := s.ends(); code != 1 || !strings.Contains(s.out.String(), "does not allow that this card is unblocked here without a connection") {
		t.Errorf("not allowed: exit code %d", code)
	}
}
