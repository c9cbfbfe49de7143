package page_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/net/html"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

// counter is a bridge at a desk, with a blocked card in its reader, and a window that it has
// opened in a browser without scripts.
type counter struct {
	*desk.Desk
	b    *desk.Bridge
	card *softcard.Card
	cred credential.Credential
	f    *fixture
	c    *client
	sent *received
}

// received is all that a server was sent.
type received struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *received) front(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		r.mu.Lock()
		r.text.WriteString(q.Method + " " + q.URL.String() + "\n")
		_ = q.Header.Write(&r.text)
		r.text.Write(body)
		r.text.WriteString("\n")
		r.mu.Unlock()
		q.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, q)
	})
}

func (r *received) all() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.text.Bytes())
}

func newCounter(t *testing.T, kiosk bool) *counter { t.Helper(); return newCounterOf(t, kiosk, nil) }

// newCounterOf is a counter whose card is of another template than the usual one.
func newCounterOf(t *testing.T, kiosk bool, change func(*credential.Template)) *counter {
	t.Helper()
	d := desk.New(t)
	var template []credential.Template
	if change != nil {
		template = append(template, d.Template("PIV", change))
	}
	n := &counter{Desk: d, f: &fixture{TB: t, System: d.System, log: &lockedBuffer{}}, sent: &received{}}
	n.card, n.cred = d.Issue(softcard.PivApplet, template...)
	n.b = d.NewBridge(relay.Service)
	n.b.Insert(n.card)
	d.Must(n.b.Settle())
	server := httptest.NewServer(n.sent.front(gateway.Front(gateway.Handler(n.f.Console()), d.Clock.Now, func() string { return ulid.Make().String() })))
	t.Cleanup(server.Close)
	n.f.url, n.c = server.URL, n.f.client()
	n.c.get(n.link(kiosk)).want(200)
	return n
}

// link is where a window opens, as the bridge is told it.
func (n *counter) link(kiosk bool) string {
	n.Helper()
	n.Must(n.b.Say(relay.Message{Open: &relay.Open{Ref: "page", Kiosk: kiosk}}))
	n.Must(n.b.Settle())
	o := desk.Last(n.b, func(m relay.Message) *relay.Opened { return m.Opened })
	return strings.TrimPrefix(o.URL, desk.Console) + "?t=" + url.QueryEscape(o.Token.Reveal())
}

func (n *counter) look() *answer { n.Helper(); return n.c.get("/console/kiosk").want(200) }

const newPIN = "735912"

// toCode begins an unblock.
func (n *counter) toCode() *answer {
	n.Helper()
	return n.look().submit("/console/kiosk/start").want(200).has("Type the code from your mail", "a…@acme.example")
}

// toPIN gives the code too.
func (n *counter) toPIN() *answer {
	n.Helper()
	return n.toCode().submit("/console/kiosk/code", "secret.code", n.Code()).want(200).has("Choose your new PIN")
}

// sealed is what the script sends for a PIN.
func (n *counter) sealed(p *answer, newPIN string) string {
	n.Helper()
	n.Secret("PIN", newPIN)
	form := find(p.root, isSealed)[0]
	key, err := hex.DecodeString(attribute(form, "data-seal-public-key"))
	n.Must(err)
	lines := strings.Split(attribute(form, "data-seal-associated-data"), "\n")
	op := n.Operation(lines[2])
	binding := relay.Binding{Tenant: lines[1], Operation: lines[2], Credential: lines[3], Fence: op.Fence}
	if string(binding.AssociatedData()) != attribute(form, "data-seal-associated-data") {
		n.Errorf("it is to be sealed for %q", lines)
	}
	s, err := relay.SealPIN(key, binding, secret.New(newPIN))
	n.Must(err)
	b, err := json.Marshal(s)
	n.Must(err)
	return string(b)
}

// poll asks as the page does whether it is another by now: "" is no, and else where to go.
func (n *counter) poll(p *answer) string {
	n.Helper()
	watched := find(p.root, isWatched)
	if len(watched) == 0 {
		n.Fatalf("%s is not watched", p.path)
	}
	n.c.header.Set("HX-Request", "true")
	defer n.c.header.Del("HX-Request")
	got := n.c.get(attribute(watched[0], "hx-get"))
	if to := got.header.Get("HX-Redirect"); to != "" || got.status == http.StatusNoContent {
		return to
	}
	n.Fatalf("the answer is %d: %s", got.status, got.body)
	return ""
}

func TestKioskUnblock(t *testing.T) {
	n := newCounter(t, false)
	start := n.look().has("A new PIN for your card", "The PIN of this card is blocked.", "PIV …"+n.cred.CardID[len(n.cred.CardID)-8:])
	start.hasNot("Ada", desk.Address) // others may look
	if to := n.poll(start); to != "" {
		t.Errorf("nothing has changed, and it goes to %s", to)
	}
	code, mailed := n.toCode(), n.Code()
	if to := n.poll(start); to != "/console/kiosk" {
		t.Errorf("a page from before goes to %q", to)
	}
	wrong := code.submit("/console/kiosk/code", "secret.code", desk.Wrong(n.Code())).want(200).has("That is not the code that was mailed. 4 tries are left.")
	wrong.submit("/console/kiosk/code", "secret.code", " ").want(422).has("is missing; it is in the mail")
	pin := wrong.submit("/console/kiosk/code", "secret.code", mailed[:3]+" "+mailed[3:]).want(200).has("Choose your new PIN", "At least 6 characters", "JavaScript is turned off")
	if to := n.poll(pin); to != "" {
		t.Errorf("while it is typed it goes to %s", to)
	}
	pin.submit("/console/kiosk/pin").want(422).has("was not sealed by this browser")
	wait := pin.submit("/console/kiosk/pin", "sealed", n.sealed(pin, newPIN)).want(200).has("Your PIN is being set", "Leave your card in")
	if to := n.poll(wait); to != "" {
		t.Errorf("nothing was heard of the card, and it goes to %s", to)
	}
	n.Must(n.b.Settle())
	if to := n.poll(wait); to != "/console/kiosk" {
		t.Errorf("it is done, and it goes to %q", to)
	}
	end := n.look().has("The card has its new PIN.")
	if !n.card.PINIs(newPIN) {
		t.Error("the card has another PIN")
	}

	// What was sent before is sent again, as by a back button: nothing is done twice.
	for action, old := range map[string]*answer{"/console/kiosk/start": start, "/console/kiosk/code": code, "/console/kiosk/pin": pin} {
		form := old.form(action)
		form.Set("secret.code", mailed)
		form.Set("sealed", n.sealed(pin, newPIN))
		if again := n.c.post(action, form); !strings.Contains(again.text(), "The card has its new PIN.") {
			t.Errorf("%s once more: %s", action, again.text())
		}
	}
	if n.Only(n.cred.ID).Fence != 1 && len(n.b.Resets) != 1 || len(n.Mails.Of("code")) != 1 {
		t.Errorf("the card was reset %v times, after %d codes", n.b.Resets, len(n.Mails.Of("code")))
	}
	end.submit("/console/kiosk/stop").want(200).has("The PIN of this card was set anew a moment ago.")
	n.noPIN()
}

// noPIN demands that the PIN is nowhere in what was received, stored, logged or said.
func (n *counter) noPIN() {
	n.Helper()
	n.Search()
	sent := n.sent.all()
	if !bytes.Contains(sent, []byte("sealed=")) {
		n.Fatal("no form with a sealed PIN was seen")
	}
	for how, form := range testserver.Forms(newPIN) {
		if bytes.Contains(sent, form) {
			n.Errorf("what was received has the PIN %s", how)
		}
	}
}

func isSealed(n *html.Node) bool  { return hasAttribute(n, "data-seal") }
func isWatched(n *html.Node) bool { return hasAttribute(n, "hx-get") }

// A link opens one window, for its bridge, and says so in plain words where it does not.
func TestKioskLinks(t *testing.T) {
	n := newCounter(t, false)
	link := n.link(false)
	if p := n.f.client().get(link).want(200); p.path != "/console/kiosk" {
		t.Errorf("the link is left in the address: %s", p.path)
	}
	for name, path := range map[string]string{"used": link, "none": "/console/kiosk/open", "garbled": "/console/kiosk/open?t=%00..%ff", "of another tenant": strings.Replace(n.link(false), "acme.", "other.", 1)} {
		c := n.f.client()
		if c.get(path).want(http.StatusGone).has("This link has been used already, or its two minutes are over."); len(c.cookies) > 0 {
			t.Errorf("%s: it has opened something", name)
		}
	}
	r, err := http.NewRequest("HEAD", n.f.url+n.link(false), nil)
	n.Must(err)
	if p := n.f.client().send(r); len(p.header["Set-Cookie"]) > 0 {
		t.Error("a HEAD uses a link up")
	}
	late := n.link(false)
	n.Clock.Pass(2 * time.Minute)
	n.f.client().get(late).want(http.StatusGone)
}

// Without a window there is nothing, and a window ends with its bridge.
func TestKioskClosed(t *testing.T) {
	n := newCounter(t, false)
	code := n.toCode()
	nobody := n.f.client()
	for _, c := range []*client{nobody, n.c} {
		if c == n.c {
			_, err := n.Tenants.Revoke(t.Context(), n.Core, desk.Admin, n.b.ID)
			n.Must(err)
		}
		c.get("/console/kiosk").want(http.StatusUnauthorized).has("This page is not open any more", "bridge open")
		for _, path := range []string{"start", "code", "pin", "stop", "language"} {
			c.post("/console/kiosk/"+path, code.form("/console/kiosk/code")).want(http.StatusUnauthorized).hasNot("acme", "desk 1")
		}
		c.get("/console/kiosk/forget").want(http.StatusUnauthorized)
	}
	if to := n.poll(code); to != "/console/kiosk" {
		t.Errorf("a page whose bridge was revoked goes to %q", to)
	}
	if op := n.Only(n.cred.ID); op.State != unblock.Requested {
		t.Errorf("the unblock is %s", op.State)
	}
}

// A window reaches what is at its own bridge, and no unblock but its own.
func TestKioskOfAnotherBridge(t *testing.T) {
	n := newCounter(t, false)
	code := n.toCode()
	elsewhere := *n
	elsewhere.b, elsewhere.c = n.NewBridge(relay.Service), n.f.client()
	start := elsewhere.c.get(elsewhere.link(false)).want(200).has("There is no card reader")
	form := code.form("/console/kiosk/code")
	form.Set("secret.code", n.Code())
	for _, action := range []string{"/console/kiosk/code", "/console/kiosk/pin", "/console/kiosk/stop"} {
		elsewhere.c.post(action, form).want(200).has("There is no card reader")
	}
	elsewhere.c.post("/console/kiosk/start", url.Values{"insertion": {n.b.Inserted()}}).want(200).has("There is no card reader").hasNot(n.cred.CardID[24:])
	if op := n.Only(n.cred.ID); op.State != unblock.Requested || op.Proof.TriesLeft != unblock.CodeTries {
		t.Errorf("the unblock is %s, with %d tries", op.State, op.Proof.TriesLeft)
	}
	_ = start
}

func TestKioskScreens(t *testing.T) {
	for name, c := range map[string]struct {
		template func(*credential.Template)
		change   func(n *counter)
		want     []string
		not      string
	}{
		"no reader":            {nil, func(n *counter) { n.b.Remove() }, []string{"There is no card reader", "Plug a card reader"}, "data-idle"},
		"the bridge was lost":  {nil, func(n *counter) { n.Clock.Pass(time.Hour) }, []string{"One moment", "goes on by itself"}, "start\""},
		"silent":               {nil, func(n *counter) { n.b.Remove(); n.b.Insert(nil) }, []string{"The card does not answer", "turn it round"}, "start\""},
		"being read":           {nil, func(n *counter) { n.b.Remove(); n.b.Insert(n.card) }, []string{"Your card is being read"}, "start\""},
		"two cards":            {nil, func(n *counter) { n.b.Insert(nil) }, []string{"Which card is it about?", "The card in Reader 0", "The card in Reader 1"}, "start\""},
		"not ours":             {nil, func(n *counter) { n.stranger() }, []string{"is not registered with this organisation", "What to tell your operator", "desk 2"}, "start\""},
		"suspended":            {nil, func(n *counter) { n.suspend() }, []string{"This card needs an operator", "is suspended; its PIN is not reset", "What to tell your operator", "desk 2"}, "start\""},
		"channel is closed":    {func(t *credential.Template) { t.Channels = []credential.Channel{credential.Operator} }, nil, []string{"This card needs an operator", "does not allow an unblock by selfService"}, "start\""},
		"unblocked too often":  {func(t *credential.Template) { t.Limit = credential.Limit{Count: 1, Days: 30} }, func(n *counter) { n.unblock() }, []string{"This card needs an operator", "as often as its template allows"}, "start\""},
		"no address":           {nil, func(n *counter) { n.noMail() }, []string{"This card needs an operator", "No mail address is known", "What to tell your operator"}, "start\""},
		"PIN was set just now": {nil, func(n *counter) { n.unblock() }, []string{"was set anew a moment ago"}, "blocked"},
		"expired":              {nil, func(n *counter) { n.unblock(); n.b.Remove(); n.Clock.Pass(91 * 24 * time.Hour); n.anew() }, []string{"not blocked: 5 tries are left", "The PIN has expired on", "bridge change"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := newCounterOf(t, false, c.template)
			if c.change != nil {
				c.change(n)
			}
			p := n.look().has(c.want...)
			if c.not != "" {
				p.hasNot(c.not)
			}
			if to := n.poll(p); to != "" {
				t.Errorf("nothing has changed, and it goes to %s", to)
			}
		})
	}
}

// unblock gives the card a new PIN, and leaves.
func (n *counter) unblock() {
	n.Helper()
	pin := n.toPIN()
	pin.submit("/console/kiosk/pin", "sealed", n.sealed(pin, newPIN)).want(200)
	n.Must(n.b.Settle())
	n.look().has("The card has its new PIN.").submit("/console/kiosk/stop").want(200)
}

// anew is the next start of the bridge, with a window.
func (n *counter) anew() {
	n.Helper()
	n.Must(n.b.Connect())
	n.b.Insert(n.card)
	n.Must(n.b.Settle())
	n.c = n.f.client()
	n.c.get(n.link(false)).want(200)
}

// stranger is a card in the reader that is not registered.
func (n *counter) stranger() {
	n.Helper()
	c, err := softcard.New(softcard.Config{Profile: softcard.CanoKey, Rand: rand.Reader})
	n.Must(err)
	n.b.Remove()
	n.b.Insert(c)
	n.Must(n.b.Settle())
}

func (n *counter) suspend() {
	n.Helper()
	_, err := n.Credentials.Update(n.Context(), n.Core, desk.Admin, tenant.RoleAdmin, n.cred.ID, 0, func(a *credential.About) {
		a.State, a.Reason = credential.Suspended, credential.Reasons()[0]
	})
	n.Must(err)
}

func (n *counter) noMail() {
	n.Helper()
	_, err := n.Users.Update(n.Context(), n.Core, desk.Admin, n.Holder.ID, 0, func(p *user.Profile) { p.Mail = "" }, nil)
	n.Must(err)
}

// The card is pulled while somebody types: the page says so, and goes on with the same card.
func TestKioskCardPulled(t *testing.T) {
	n := newCounter(t, false)
	pin := n.toPIN()
	n.b.Remove()
	if to := n.poll(pin); to != "/console/kiosk" {
		t.Errorf("it goes to %q", to)
	}
	n.look().has("The card was taken out", "Nothing that you have typed was kept")
	late := pin.submit("/console/kiosk/pin", "sealed", n.sealed(pin, newPIN)).want(409).has("is not in a reader of the bridge")
	n.b.Insert(n.card)
	n.Must(n.b.Settle())
	if to := n.poll(late); to != "/console/kiosk" {
		t.Errorf("with the card again it goes to %q", to)
	}
	pin = n.look().has("Choose your new PIN")
	pin.submit("/console/kiosk/pin", "sealed", n.sealed(pin, newPIN)).want(200)
	n.Must(n.b.Settle())
	n.look().has("The card has its new PIN.")
	n.noPIN()
}

// A kiosk forgets when the card is taken out, wherever it was.
func TestKioskForgetsWithoutItsCard(t *testing.T) {
	for name, c := range map[string]struct {
		to   func(n *counter) *answer
		want []string
		was  unblock.State
	}{
		"code": {(*counter).toCode, []string{"There is no card reader", "The card was taken out. Nothing was changed"}, unblock.Failed},
		"PIN":  {(*counter).toPIN, []string{"There is no card reader", "The card was taken out. Nothing was changed"}, unblock.Failed},
		"end": {func(n *counter) *answer {
			pin := n.toPIN()
			pin.submit("/console/kiosk/pin", "sealed", n.sealed(pin, newPIN))
			n.Must(n.b.Settle())
			return n.look()
		}, []string{"There is no card reader", "The card has its new PIN."}, unblock.Succeeded},
	} {
		t.Run(name, func(t *testing.T) {
			n := newCounter(t, true)
			p := c.to(n)
			n.c.post("/console/kiosk/language", url.Values{"language": {"de"}}).want(200)
			n.b.Remove()
			to := n.poll(p)
			if to != "/console/kiosk/forget?why=cardOut" {
				t.Fatalf("it goes to %q", to)
			}
			n.c.get(to).want(200).has(c.want...)
			if op := n.Only(n.cred.ID); op.State != c.was {
				t.Errorf("the unblock is %s", op.State)
			}
			if _, kept := n.c.cookies["__Host-pinward-kiosk-language"]; kept {
				t.Error("the next person has this one's language")
			}
			n.b.Insert(n.card)
			n.Must(n.b.Settle())
			n.look().has("A new PIN for your card")
		})
	}
}

// 60 seconds without a touch, and all is as it was; but what the card is told stays so.
func TestKioskIdle(t *testing.T) {
	n := newCounter(t, true)
	pin := n.toPIN()
	pin.hasNot("refresh\" content=\"5")
	if body := find(pin.root, func(n *html.Node) bool { return n.Data == "body" })[0]; attribute(body, "data-idle") != "60" || attribute(body, "data-idle-to") != "/console/kiosk/forget" {
		t.Error("the kiosk does not forget by itself")
	}
	n.c.get("/console/kiosk/forget").want(200).has("Nothing was touched for a while", "A new PIN for your card")
	if op := n.Only(n.cred.ID); op.State != unblock.Failed || op.Reason != unblock.ReasonCancelled {
		t.Errorf("the unblock is %s %s", op.State, op.Reason)
	}
	n.c.get("/console/kiosk/forget").want(200) // nothing is there to forget
	pin = n.toPIN()
	pin.submit("/console/kiosk/pin", "sealed", n.sealed(pin, newPIN)).want(200).has("Your PIN is being set")
	n.c.post("/console/kiosk/stop", pin.form("/console/kiosk/stop")).want(200).has("It cannot be stopped any more", "Your PIN is being set")
	n.c.get("/console/kiosk/forget").want(200).has("It is not known yet whether the card has its new PIN")
	n.Must(n.b.Settle())
	if !n.card.PINIs(newPIN) {
		t.Error("the card has not its new PIN")
	}
}

// The bridge is lost at the last step: it is told that the outcome is unknown, and what it
// was, once that is known.
func TestKioskBridgeLost(t *testing.T) {
	n := newCounter(t, false)
	pin := n.toPIN()
	n.b.Copies = func(mine bool, m relay.Message) int {
		if mine && m.Result != nil {
			return 0 // lost
		}
		return 1
	}
	wait := pin.submit("/console/kiosk/pin", "sealed", n.sealed(pin, newPIN)).want(200).has("Your PIN is being set")
	n.Must(n.b.Settle())
	for range 20 {
		n.Clock.Pass(4 * time.Second)
		if n.poll(wait) != "" {
			break
		}
		n.b.Pull()
	}
	n.Clock.Pass(2 * time.Minute)
	lost := n.look().has("What came of it", "whether the card has its new PIN is not known")
	n.b.Copies = nil
	n.Must(n.b.Connect())
	n.Must(n.b.Settle())
	n.b.Insert(n.card)
	n.Must(n.b.Settle())
	if to := n.poll(lost); to != "/console/kiosk" {
		t.Errorf("it is known now, and it goes to %q", to)
	}
	n.look().has("The card has its new PIN")
}

// Five wrong codes end it; the bridge's verdict on a PIN is shown; and an operator's unblock
// is gone on with, without a code.
func TestKioskRefusals(t *testing.T) {
	n := newCounter(t, false)
	p := n.toCode()
	for range 5 {
		p = p.submit("/console/kiosk/code", "secret.code", desk.Wrong(n.Code())).want(200)
	}
	p.has("What came of it", "Too many wrong codes were given.").submit("/console/kiosk/stop").want(200)
	pin := n.toPIN()
	pin.submit("/console/kiosk/pin", "sealed", n.sealed(pin, "111111")).want(200)
	n.Must(n.b.Settle())
	pin = n.look().has("This PIN was not accepted. Choose another", "The PIN ")
	pin.submit("/console/kiosk/stop").want(200).has("It was stopped. Nothing was changed.")

	_, err := n.Unblocks.Create(t.Context(), n.Core, desk.Admin, unblock.Request{Credential: n.cred.ID, Bridge: n.b.ID, Channel: credential.Operator, Statement: "staff badge"})
	n.Must(err)
	n.look().submit("/console/kiosk/start").want(200).has("Choose your new PIN")
	for range 6 { // codes are limited
		n.look().submit("/console/kiosk/stop").want(200)
		if p = n.look().submit("/console/kiosk/start"); p.status != 200 {
			break
		}
	}
	p.want(http.StatusTooManyRequests).has("Too many codes were mailed for this card", "A new PIN for your card")
}

func TestKioskSpeaksTheirLanguage(t *testing.T) {
	n := newCounter(t, true)
	n.c.post("/console/kiosk/language", url.Values{"language": {"de"}}).want(200).has("Eine neue PIN für Ihre Karte", "Die PIN dieser Karte ist gesperrt.")
	n.suspend()
	n.look().has("Für diese Karte brauchen Sie Hilfe").hasNot("suspended; its PIN", "The ")
	n.c.get("/console/kiosk/forget").want(200).has("This card needs an operator")
}

// Texts that others have put in do nothing.
func TestKioskEscapes(t *testing.T) {
	n := newCounter(t, false)
	settings := n.Core.Tenant.Settings
	settings.DisplayName = hostile("organisation")
	core, err := n.Tenants.ChangeSettings(t.Context(), desk.Admin, n.Core, settings)
	n.Must(err)
	_ = core
	_, err = n.Tenants.ChangeBridge(t.Context(), desk.Acme, n.b.ID, func(b *tenant.Bridge) error { b.Name = hostile("bridge"); return nil })
	n.Must(err)
	n.suspend()
	n.look().has(hostile("bridge"), "What to tell your operator").hasNot("<x-hostile", "<script>alert")
}

// Whatever fails, whether or not it was stored, the person is told something, and gets on by
// looking again: to a new PIN, by one reset.
func TestKioskFaults(t *testing.T) {
	for step, c := range map[string]struct {
		to     func(n *counter) *answer
		fields func(n *counter, p *answer) []string
	}{
		"start": {(*counter).look, nil},
		"pin":   {(*counter).toPIN, func(n *counter, p *answer) []string { return []string{"sealed", n.sealed(p, newPIN)} }},
	} {
		for _, after := range []bool{false, true} {
			for nth, more := 1, true; more; nth++ {
				n := newCounter(t, false)
				p := c.to(n)
				var fields []string
				if c.fields != nil {
					fields = c.fields(n, p)
				}
				var faulty *tabletest.Faulty
				n.Wire.Through(func(whole table.Table) table.Table { faulty = tabletest.Fail(whole, nth, after); return faulty })
				got := p.submit("/console/kiosk/"+step, fields...)
				if more = faulty.Calls() >= nth; !more && got.status != http.StatusOK {
					t.Errorf("%s: %d: %s", step, got.status, got.text())
				}
				if h1 := find(got.root, func(n *html.Node) bool { return n.Data == "h1" }); len(h1) != 1 {
					t.Errorf("%s %d,%v: it says %q", step, nth, after, got.text())
				}
				n.Wire.Whole()
				n.finish()
			}
		}
	}
}

// finish does what people do until the card has its new PIN.
func (n *counter) finish() {
	n.Helper()
	for range 12 {
		n.Must(n.b.Settle())
		p := n.look()
		switch said := p.text(); {
		case strings.Contains(said, "The card has its new PIN."):
			if !n.card.PINIs(newPIN) || len(n.b.Resets) != 1 {
				n.Errorf("the card was reset %v times", n.b.Resets)
			}
			return
		case strings.Contains(said, "A new PIN for your card"):
			p.submit("/console/kiosk/start")
		case strings.Contains(said, "Type the code"):
			p.submit("/console/kiosk/code", "secret.code", n.Code())
		case strings.Contains(said, "Choose your new PIN"):
			p.submit("/console/kiosk/pin", "sealed", n.sealed(p, newPIN))
		case strings.Contains(said, "What came of it"):
			p.submit("/console/kiosk/stop")
		case strings.Contains(said, "Your PIN is being set"):
			n.Clock.Pass(12 * time.Second) // the script was lost: it is asked after
		}
	}
	n.Errorf("it comes to no end: %s", n.look().text())
}
