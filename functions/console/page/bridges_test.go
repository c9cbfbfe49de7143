package page_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
)

var enrolCommand = regexp.MustCompile(`bridge enroll (acme\.\S+) https://api\.example\.org`)

// enrol makes a machine the bridge that a code was made for.
func (f *fixture) enrol(code string) {
	f.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	must(f, err)
	sealing, err := relay.NewSealingKey(rand.Reader)
	must(f, err)
	_, _, _, err = f.Tenants.Enrol(f.Context(), relay.Enrolment{Code: relay.Code{Text: secret.New(code)}, Identity: public, Sealing: sealing.PublicKey().Bytes(), Program: "1.2.3", System: "linux/amd64", Host: "pc-17"})
	must(f, err)
}

func TestInviteABridge(t *testing.T) {
	f := newFixture(t)
	c := f.signedIn(tenant.RoleAdmin)
	c.get("/console/bridges").want(200).has("There is no bridge yet", "Add a bridge")
	form := c.get("/console/bridges/new").want(200)
	form.submit("/console/bridges/new", "name", " ").want(422).has("Name: is missing")
	form.submit("/console/bridges/new", "name", strings.Repeat("x", 81)).want(422).has("has 81 characters, want 1 to 80")
	const name = `Vienna <b>2</b> שלום`
	p := form.submit("/console/bridges/new", "name", name).want(200).has(name, "Linux", "Windows", "The code is good once", "Time left").hasNot("<b>2</b>")
	command := enrolCommand.FindStringSubmatch(p.text())
	if command == nil || !strings.Contains(p.text(), `.\`+command[0]) {
		t.Fatalf("the commands are not on the page: %s", p.text())
	}
	if strings.Contains(p.path, command[1]) || p.header.Get("Cache-Control") != "no-store" || !strings.Contains(p.body, "data-forget") {
		t.Errorf("the code is kept: %s %v", p.path, p.header)
	}
	list := c.get("/console/bridges").want(200).has(name, "waits for its machine", "The code is good until 4 March 2030 at 10:10").hasNot(command[1])
	if to := c.asks(p); to != "" {
		t.Errorf("nothing has happened, and it goes to %s", to)
	}
	f.enrol(command[1])
	to := c.asks(p)
	if !strings.HasSuffix(to, "?done=bridgeEnrolled") {
		t.Fatalf("the machine has used the code, and it goes to %q", to)
	}
	bridge := c.get(to).want(200).has("The machine has used the code", "not connected", "pc-17", "1.2.3", "Start it on its machine").hasNot(command[1])
	if anew := c.asks(list); !strings.Contains(anew, "not connected") {
		t.Errorf("the list becomes %q", anew)
	}
	path, _, _ := strings.Cut(bridge.path, "?")

	// A new code, which is not used.
	again := bridge.submit(path + "/code").want(200).has("The code is good once")
	if second := enrolCommand.FindStringSubmatch(again.text()); second == nil || second[1] == command[1] {
		t.Errorf("the second code is %v", second)
	}
	f.clock.advance(11 * time.Minute)
	if to := c.asks(again); to != path+"?done=bridgeCodeOver" {
		t.Errorf("the code's time is over, and it goes to %q", to)
	}
	if csv := c.get("/console/bridges?format=csv").want(200); !strings.Contains(csv.body, "pc-17") {
		t.Errorf("the file: %s", csv.body)
	}

	operator := f.signedIn(tenant.RoleOperator)
	operator.get("/console/bridges").want(200).has(name).hasNot("/console/bridges/new")
	operator.get(path).want(200).hasNot("revoke", path+"/code")
	operator.get("/console/bridges/new").want(404)
	operator.post(path+"/code", url.Values{}).want(404)
	operator.post(path+"/revoke", url.Values{}).want(404)
	for _, unknown := range []string{"/console/bridges/aaaaaaaa", "/console/bridges/aaaaaaaa/revoke", "/console/bridges?after=!"} {
		c.get(unknown).want(404)
	}
	stranger := f.signIn(other, f.person(other, "Olga", tenant.RoleAdmin))
	stranger.get(path).want(404)
	stranger.post(path+"/revoke", url.Values{}).want(404)
}

func TestRevokeABridge(t *testing.T) {
	n := newCounter(t, false)
	c := n.f.signedIn(tenant.RoleAdmin)
	path := "/console/bridges/" + n.b.ID
	list := c.get("/console/bridges").want(200).has("desk 2", "online", "since", "Reader 0: PIV", "Ada's card", "PIN blocked", "1.0.0")
	p := c.get(path).want(200).has("online", "linux/amd64", "Reader 0", "PIN blocked", "None lately", "To the card")
	if to := c.asks(p); to != "" {
		t.Errorf("nothing has changed, and it is %q", to)
	}
	n.unblock()
	n.b.Remove()
	if anew := c.asks(p); !strings.Contains(anew, "No card reader is plugged in there") {
		t.Errorf("the card was taken out: %q", anew)
	}
	if anew := c.asks(list); !strings.Contains(anew, "no reader") {
		t.Errorf("the card was taken out: %q", anew)
	}
	c.get(path).want(200).has("Last unblocks here", "PIV …", "succeeded")
	ask := c.get(path+"/revoke").want(200).has("Revoke the bridge desk 2?", "This is for good", "is disconnected at once", "0 readers")
	if n.b.Closed() {
		t.Fatal("it is closed before anybody has said so")
	}
	ask.submit(path+"/revoke").want(200).has("The bridge is revoked and disconnected.", "revoked").hasNot("Revoke the bridge …")
	n.Must(n.b.Settle())
	if g := desk.Last(n.b, func(m relay.Message) *relay.Goodbye { return m.Goodbye }); !n.b.Closed() || g.Code != relay.Revoked {
		t.Errorf("closed: %v, goodbye: %+v", n.b.Closed(), g)
	}
	if p := c.get(path + "/revoke").want(200); p.path != path {
		t.Errorf("revoked already, and it asks at %s", p.path)
	}
	c.post(path+"/code", url.Values{}).want(409).has("The bridge is revoked; make a new one.")
}
