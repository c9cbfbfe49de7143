package rest_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/tenant"
)

// unblock is a request with which an unblock begins, of a card of its own.
func (f *fixture) unblock(key, channel string) object {
	f.Helper()
	const name = "Cards to unblock"
	var templates struct{ Items []struct{ ID, Name string } }
	f.call("GET", "/v1/card-templates", key, nil).want(200).decode(&templates)
	template := ""
	for _, t := range templates.Items {
		if t.Name == name {
			template = t.ID
		}
	}
	if template == "" {
		template = f.call("POST", "/v1/card-templates", key, object{"name": name, "family": "PIV", "channels": []string{"selfService", "operator"}, "messaging": f.outboxConfiguration(key)}).want(201).text("id")
	}
	card := f.call("POST", "/v1/credentials", key, object{"family": "PIV", "cardId": f.cardID(), "template": template, "holder": f.user(key, ""), "puk": f.puk()}).want(201).text("id")
	bridge, code := f.invite(key)
	f.call("POST", "/enroll", "", f.enrolment(code)).want(200)
	o := object{"credential": card, "bridge": bridge, "channel": channel}
	if channel == "operator" {
		o["statement"] = "staff badge, known in person"
	}
	return o
}

// started begins an unblock, and returns its id.
func (f *fixture) started(key, channel string) string {
	f.Helper()
	return f.call("POST", "/v1/unblocks", key, f.unblock(key, channel)).want(201).text("id")
}

var spacedCode = regexp.MustCompile(`\b\d{3} \d{3}\b`)

// mailedCode is the code that was mailed for an unblock.
func (f *fixture) mailedCode(unblock string) string {
	f.Helper()
	mails, err := f.outbox.List(500)
	f.must(err)
	for _, m := range mails {
		if m.ID == "unblock-code."+unblock {
			return spacedCode.FindString(m.Text)
		}
	}
	f.Fatal("no code was mailed")
	return ""
}

// front is a desk's API.
type front struct {
	*desk.Desk
	url string
}

func newFront(t *testing.T) *front {
	d := desk.New(t)
	server := httptest.NewServer(gateway.Front(gateway.Handler(d.API()), d.Clock.Now, func() string { return ulid.Make().String() }))
	t.Cleanup(server.Close)
	return &front{d, server.URL}
}

// shownUnblock is an unblock as the API answers it.
type shownUnblock struct {
	ID, State, Reason, Sentence, Channel, Statement, Notice, Credential, Kind string
	By                                                                        struct{ How, ID, Name string }
	Next                                                                      struct {
		Do, SentTo string
		Until      time.Time
		TriesLeft  int
		Policy     *struct{ MinLength, MaxLength int }
		Seal       *struct {
			PublicKey, Info, AssociatedData string
			Length                          int
		}
		Violations []struct{ Code, Message string }
	}
	Outcome *struct {
		PIN, PUK     string
		PINTriesLeft *int
	}
	Items  []shownUnblock
	Detail string
	Errors []struct{ Code, Location, Message string }
}

// call makes a request of the API and returns the answer, which it notes as heard.
func (f *front) call(method, path, key string, body any) (int, shownUnblock) {
	f.Helper()
	sent, err := json.Marshal(body)
	f.Must(err)
	r, err := http.NewRequest(method, f.url+path, bytes.NewReader(sent))
	f.Must(err)
	r.Header.Set("Authorization", "Bearer "+key)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(r)
	f.Must(err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	f.Must(err)
	_, _ = f.Heard.Write(answer)
	var shown shownUnblock
	f.Must(json.Unmarshal(answer, &shown))
	return resp.StatusCode, shown
}

// want is call that must have the status.
func (f *front) want(status int, method, path, key string, body any) shownUnblock {
	f.Helper()
	got, shown := f.call(method, path, key, body)
	if got != status {
		f.Fatalf("%s %s: got %d %+v, want %d", method, path, got, shown, status)
	}
	return shown
}

func (f *front) key(role tenant.Role) string {
	f.Helper()
	r, err := http.NewRequest("POST", f.url+"/v1/keys", strings.NewReader(fmt.Sprintf(`{"name":%q,"role":%q}`, role, role)))
	f.Must(err)
	r.Header.Set("Authorization", "Bearer "+f.AdminKey)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	f.Must(err)
	defer resp.Body.Close()
	var made struct{ APIKey string }
	f.Must(json.NewDecoder(resp.Body).Decode(&made))
	f.Secret("API key", made.APIKey)
	return made.APIKey
}

// seal is what a web page does with what the API tells it, by the standard's own names.
func (f *front) seal(s shownUnblock, pin string) object {
	f.Helper()
	f.Secret("PIN", pin)
	raw, err := hex.DecodeString(s.Next.Seal.PublicKey)
	f.Must(err)
	kem := hpke.DHKEM(ecdh.X25519())
	public, err := kem.NewPublicKey(raw)
	f.Must(err)
	enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.AES128GCM(), []byte(s.Next.Seal.Info))
	f.Must(err)
	plain := make([]byte, s.Next.Seal.Length)
	plain[0] = byte(len(pin))
	copy(plain[1:], pin)
	ciphertext, err := sender.Seal([]byte(s.Next.Seal.AssociatedData), plain)
	f.Must(err)
	return object{"encapsulated": hex.EncodeToString(enc), "ciphertext": hex.EncodeToString(ciphertext)}
}

func (f *front) request(cred credential.Credential, b *desk.Bridge, channel string) object {
	o := object{"credential": cred.ID, "bridge": b.ID, "channel": channel}
	if channel == "operator" {
		o["statement"] = "staff badge"
	}
	return o
}

func TestUnblockByOperator(t *testing.T) {
	for profile, pins := range map[softcard.Profile][2]string{
		softcard.PivApplet: {"1234", "73915826"}, softcard.CanoKey: {"abcdef", "739158"}, softcard.GIDS: {"q7x", "Tk7Qx2wZ"},
	} {
		t.Run(string(profile), func(t *testing.T) {
			f := newFront(t)
			operator := f.key(tenant.RoleOperator)
			piece, cred := f.Issue(profile)
			b := f.NewBridge(relay.Service)

			u := f.want(201, "POST", "/v1/unblocks", operator, f.request(cred, b, "operator"))
			path := "/v1/unblocks/" + u.ID
			if u.State != "proven" || u.Next.Do != "card" || u.Channel != "operator" || u.Statement != "staff badge" || u.By.Name != "operator" || u.Credential != cred.ID {
				t.Errorf("created: %+v", u)
			}
			if status, p := f.call("POST", path+"/pin", operator, f.seal(u, pins[1])); status != 409 || !strings.Contains(p.Detail, "put it in first") {
				t.Errorf("without the card: %d %+v", status, p)
			}
			b.Insert(piece)
			f.Must(b.Settle())
			u = f.want(200, "GET", path, operator, nil)
			if u.Next.Do != "pin" || u.Next.Policy == nil || !u.Next.Until.Equal(f.Clock.Now().Add(3*time.Minute)) || u.Next.Seal.PublicKey != hex.EncodeToString(b.Sealing.PublicKey().Bytes()) {
				t.Errorf("with the card: %+v", u)
			}

			f.want(200, "POST", path+"/pin", operator, f.seal(u, pins[0]))
			f.Must(b.Settle())
			u = f.want(200, "GET", path, operator, nil)
			if u.State != "proven" || u.Next.Do != "pin" || len(u.Next.Violations) == 0 || u.Next.Violations[0].Message == "" {
				t.Errorf("a bad PIN: %+v", u)
			}
			u = f.want(200, "POST", path+"/pin", operator, f.seal(u, pins[1]))
			if u.State != "running" || u.Next.Do != "wait" || u.Next.Seal != nil {
				t.Errorf("a good PIN: %+v", u)
			}
			if list := f.want(200, "GET", "/v1/unblocks?credential="+cred.ID, operator, nil); len(list.Items) != 1 || list.Items[0].ID != u.ID || list.Items[0].Next.Do != "wait" {
				t.Errorf("listed: %+v", list)
			}
			if status, p := f.call("POST", path+"/pin", operator, object{"encapsulated": strings.Repeat("00", 32), "ciphertext": strings.Repeat("00", 81)}); status != 409 {
				t.Errorf("another PIN meanwhile: %d %+v", status, p)
			}
			if status, p := f.call("POST", path+"/cancel", operator, nil); status != 409 || !strings.Contains(p.Detail, "begun") {
				t.Errorf("cancelled meanwhile: %d %+v", status, p)
			}
			f.want(200, "POST", path+"/resume", operator, nil) // the card gets it once all the same
			f.Must(b.Settle())
			u = f.want(200, "GET", path, operator, nil)
			if u.State != "succeeded" || u.Next.Do != "nothing" || u.Sentence == "" || u.Outcome.PIN != "yes" || u.Notice != "sent" || b.Resets[u.ID] != 1 || !piece.PINIs(pins[1]) {
				t.Errorf("in the end: %+v, %d resets", u, b.Resets[u.ID])
			}
			if (profile == softcard.GIDS) != (u.Outcome.PUK == "") || *u.Outcome.PINTriesLeft != piece.Inspect().PINMost {
				t.Errorf("outcome: %+v", u.Outcome)
			}
			if c := f.Desk.Credential(cred.ID); profile != softcard.GIDS && (!f.Knows(piece, c) || c.Custody.InDoubt()) || c.LastPINChange.How != credential.ResetByOperator || c.PINExpiresAt.IsZero() {
				t.Errorf("the credential: %+v", c)
			}
			if mails := f.Mails.Of("reset"); len(mails) != 1 || !strings.Contains(mails[0].Text, "operator") {
				t.Errorf("mails: %+v", mails)
			}
			requested := f.Audited(cred.ID)[1]
			if requested.Action != "unblock.requested" || requested.Details["statement"] != "staff badge" || requested.Details["channel"] != "operator" || requested.Actor.Name != "operator" || requested.RequestID == "" {
				t.Errorf("audited: %+v", requested)
			}
			f.want(200, "POST", path+"/cancel", operator, nil) // it stays as it is
			// What it was about may be deleted: it can still be looked at.
			f.Must(f.Credentials.Delete(t.Context(), f.Core, desk.Admin, cred.ID, 0, true))
			for _, look := range []struct{ method, path string }{{"GET", path}, {"POST", path + "/resume"}, {"POST", path + "/cancel"}} {
				if u := f.want(200, look.method, look.path, operator, nil); u.State != "succeeded" {
					t.Errorf("%s %s without the credential: %+v", look.method, look.path, u)
				}
			}
			f.Search()
		})
	}
}

func TestUnblockBySelfServiceAtAKiosk(t *testing.T) {
	f := newFront(t)
	kiosk := f.key(tenant.RoleKiosk)
	piece, cred := f.Issue(softcard.PivApplet)
	b := f.NewBridge(relay.Service)
	b.Insert(piece)
	f.Must(b.Settle())
	if status, p := f.call("POST", "/v1/unblocks", kiosk, f.request(cred, b, "operator")); status != 403 || len(f.Operations(cred.ID)) > 0 {
		t.Fatalf("a kiosk as operator: %d %+v", status, p)
	}
	u := f.want(201, "POST", "/v1/unblocks", kiosk, f.request(cred, b, "selfService"))
	path := "/v1/unblocks/" + u.ID
	if u.State != "requested" || u.Next.Do != "code" || u.Next.SentTo != "a…@acme.example" || u.Next.TriesLeft != 5 || u.Next.Seal != nil {
		t.Errorf("%+v", u)
	}
	code := f.Code()
	status, p := f.call("POST", path+"/proof", kiosk, object{"code": desk.Wrong(code)})
	if status != 422 || len(p.Errors) != 1 || p.Errors[0].Code != "wrong" || p.Errors[0].Location != "body.code" || !strings.Contains(p.Errors[0].Message, "tries left: 4") {
		t.Errorf("a wrong code: %d %+v", status, p)
	}
	u = f.want(200, "POST", path+"/proof", kiosk, object{"code": code[:3] + " " + code[3:]})
	if u.State != "proven" || u.Next.Do != "pin" {
		t.Errorf("%+v", u)
	}
	f.want(200, "POST", path+"/pin", kiosk, f.seal(u, "73915826"))
	f.Must(b.Settle())
	if u = f.want(200, "GET", path, kiosk, nil); u.State != "succeeded" || !piece.PINIs("73915826") {
		t.Errorf("%+v", u)
	}
	if status, _ := f.call("GET", "/v1/unblocks", kiosk, nil); status != 403 {
		t.Errorf("a kiosk lists: %d", status)
	}
	f.Search()
}

func TestUnblockProblems(t *testing.T) {
	f := newFront(t)
	_, cred := f.Issue(softcard.PivApplet)
	b := f.NewBridge(relay.Service)
	with := func(field, value string) object {
		o := f.request(cred, b, "operator")
		o[field] = value
		return o
	}
	for _, c := range []struct {
		name, path string
		body       object
		status     int
		location   string // or what the detail says
	}{
		{"unknown card", "/v1/unblocks", with("credential", "piv-00"), 404, ""},
		{"unknown bridge", "/v1/unblocks", with("bridge", "00000000"), 404, ""},
		{"odd bridge", "/v1/unblocks", with("bridge", "../x"), 404, ""},
		{"unknown channel", "/v1/unblocks", with("channel", "telepathy"), 422, "body.channel"},
		{"no statement", "/v1/unblocks", with("statement", " "), 422, "body.statement"},
		{"statement with a line break", "/v1/unblocks", with("statement", "known\nin person"), 422, "body.statement"},
		{"long statement", "/v1/unblocks", with("statement", strings.Repeat("x", 501)), 422, "body.statement"},
		{"unknown unblock", "/v1/unblocks/01J8ZC9Q6Y0V4T5W3X2R1N0M9K/cancel", nil, 404, ""},
	} {
		status, p := f.call("POST", c.path, f.AdminKey, c.body)
		if status != c.status || c.location != "" && (len(p.Errors) == 0 || p.Errors[0].Location != c.location) {
			t.Errorf("%s: got %d %+v, want %d at %s", c.name, status, p, c.status, c.location)
		}
	}
	u := f.want(201, "POST", "/v1/unblocks", f.AdminKey, f.request(cred, b, "operator"))
	for _, c := range []struct {
		body object
		want []string
	}{
		{object{"encapsulated": "zz", "ciphertext": "0"}, []string{"body.encapsulated", "body.ciphertext"}},
		{object{"encapsulated": "00", "ciphertext": "00"}, []string{"body.encapsulated", "body.ciphertext"}},
	} {
		status, p := f.call("POST", "/v1/unblocks/"+u.ID+"/pin", f.AdminKey, c.body)
		var got []string
		for _, e := range p.Errors {
			got = append(got, e.Location)
		}
		if diff := cmp.Diff(c.want, got); status != 422 || diff != "" {
			t.Errorf("%v: %d %s", c.body, status, diff)
		}
	}
	if status, p := f.call("POST", "/v1/unblocks/"+u.ID+"/proof", f.AdminKey, object{"code": "123456"}); status != 409 {
		t.Errorf("a code that nobody asks for: %d %+v", status, p)
	}
	if status, p := f.call("POST", "/v1/unblocks", f.AdminKey, f.request(cred, b, "operator")); status != 409 || !strings.Contains(p.Detail, u.ID) {
		t.Errorf("a second: %d %+v", status, p)
	}
	if u := f.want(200, "POST", "/v1/unblocks/"+u.ID+"/cancel", f.AdminKey, nil); u.State != "failed" || u.Reason != "cancelled" || u.Next.Do != "nothing" {
		t.Errorf("cancelled: %+v", u)
	}
	_, err := f.Tenants.Suspend(t.Context(), desk.Admin, desk.Acme, true)
	f.Must(err)
	if status, p := f.call("POST", "/v1/unblocks", f.AdminKey, f.request(cred, b, "operator")); status != 403 {
		t.Errorf("of a suspended tenant: %d %+v", status, p)
	}
}

// Fifty guess at the same time over the API: no more than five are answered.
func TestUnblockGuessesAtOnce(t *testing.T) {
	f := newFront(t)
	_, cred := f.Issue(softcard.PivApplet)
	u := f.want(201, "POST", "/v1/unblocks", f.AdminKey, f.request(cred, f.NewBridge(relay.Service), "selfService"))
	guess := desk.Wrong(f.Code())
	var mu sync.Mutex
	answers := map[int]int{}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			r, err := http.NewRequest("POST", f.url+"/v1/unblocks/"+u.ID+"/proof", strings.NewReader(`{"code":"`+guess+`"}`))
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Authorization", "Bearer "+f.AdminKey)
			r.Header.Set("Content-Type", "application/json")
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			mu.Lock()
			defer mu.Unlock()
			answers[resp.StatusCode]++
		})
	}
	wg.Wait()
	if answers[422] < 1 || answers[422] > 5 || answers[422]+answers[409]+answers[503] != 50 {
		t.Errorf("answered: %v", answers)
	}
}

// TestKioskAndOperatorsUnblock: a kiosk has nothing to do with what an operator has started,
// though it knows its id.
func TestKioskAndOperatorsUnblock(t *testing.T) {
	f := newFixture(t)
	kiosk := f.keyOf("kiosk")
	path := "/v1/unblocks/" + f.started(f.key, "operator")
	sealed := object{"encapsulated": strings.Repeat("00", 32), "ciphertext": strings.Repeat("00", 81)}
	f.call("GET", path, kiosk, nil).want(404)
	f.call("POST", path+"/pin", kiosk, sealed).want(404)
	f.call("POST", path+"/resume", kiosk, nil).want(404)
	f.call("POST", path+"/cancel", kiosk, nil).want(404)
	if state := f.call("GET", path, f.key, nil).want(200).text("state"); state != "proven" {
		t.Errorf("it is %s, want proven as before", state)
	}
	f.call("GET", "/v1/unblocks/"+f.started(f.key, "selfService"), kiosk, nil).want(200)
}
