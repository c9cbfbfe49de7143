package line_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
)

var (
	ann = audit.Actor{Kind: audit.API, ID: "k-ann", Name: "Ann, help desk"}
	bob = audit.Actor{Kind: audit.API, ID: "k-bob", Name: "Bob, help desk"}
)

const statement = "called back on the number on record"

// telephone is a help desk, and a card whose bridge was enrolled.
type telephone struct {
	*desk.Desk
	bridge *desk.Bridge
	piece  *softcard.Card
	id     string
	key    offline.Key
}

func newTelephone(t *testing.T, profile softcard.Profile, change ...func(*credential.Template)) *telephone {
	t.Helper()
	d := desk.New(t)
	family := "PIV"
	if profile == softcard.GIDS {
		family = "GIDS"
	}
	piece, cred := d.Issue(profile, d.Template(family, change...))
	p := &telephone{Desk: d, bridge: d.NewBridge(relay.Service), piece: piece, id: cred.ID}
	d.Must(p.bridge.Settle())
	var welcome *relay.Welcome
	for _, m := range p.bridge.News {
		if m.Welcome != nil {
			welcome = m.Welcome
		}
	}
	if welcome == nil || len(welcome.Offline) != 32 {
		t.Fatalf("welcome: %+v", welcome)
	}
	var err error
	p.key, err = offline.NewKey(p.bridge.Sealing, welcome.Offline, offline.Binding{Tenant: string(desk.Acme), Bridge: p.bridge.ID, Credential: cred.ID})
	d.Must(err)
	return p
}

// challenge is one that the bridge makes.
func (p *telephone) challenge(r offline.Report) offline.PUKChallenge {
	p.Helper()
	c, err := p.key.Challenge(rnd, p.Clock.Now(), r)
	p.Must(err)
	return c
}

// rnd counts, so that no two challenges are the same.
var rnd = &counter{}

type counter struct{ n byte }

func (c *counter) Read(p []byte) (int, error) {
	for i := range p {
		c.n++
		p[i] = c.n * 37
	}
	return len(p), nil
}

func (p *telephone) request(challenge string) unblock.OfflineRequest {
	return unblock.OfflineRequest{Credential: p.id, Channel: credential.SelfServiceOffline, Challenge: challenge, Statement: statement, TellPUK: true}
}

func (p *telephone) ask(r unblock.OfflineRequest) (unblock.Answer, unblock.Given, error) {
	return p.Unblocks.Ask(p.Context(), p.Core, ann, r)
}

// given is an answer that must be given.
func (p *telephone) given(r unblock.OfflineRequest) (unblock.Answer, string) {
	p.Helper()
	a, given, err := p.ask(r)
	if err != nil || a.State != unblock.AnswerGiven || given.Response.Empty() {
		p.Fatalf("ask: %+v, %v", a, err)
	}
	p.Secret("response", given.Response.Reveal())
	return a, given.Response.Reveal()
}

// refuses has a request refused for a reason.
func (p *telephone) refuses(r unblock.OfflineRequest, is error, says string) {
	p.Helper()
	_, given, err := p.ask(r)
	var invalid *problem.InvalidError
	if err == nil || !given.Response.Empty() || is != nil && !errors.Is(err, is) || is == nil && !errors.As(err, &invalid) || !strings.Contains(err.Error(), says) {
		p.Errorf("got %v, want %v that says %q", err, is, says)
	}
}

func (p *telephone) report(id string, pin relay.Done, tries *int) {
	p.Helper()
	p.Must(p.bridge.Say(relay.Message{Offline: &relay.Offline{ID: id, Credential: p.id, At: p.Clock.Now(), PIN: pin, PUK: true, TriesLeft: tries}}))
}

// TestAnswerPIV: the response is the PUK, masked; the reset is presumed until the bridge
// reports, once.
func TestAnswerPIV(t *testing.T) {
	p := newTelephone(t, softcard.PivApplet)
	c := p.challenge(offline.Report{})
	a, response := p.given(p.request(c.String()))
	puk, err := p.key.Unmask(c, response)
	if err != nil || puk.Reveal() != desk.FirstPUK || a.Bridge != p.bridge.ID {
		t.Fatalf("unmasked %v of bridge %s, %v", puk.Reveal() == desk.FirstPUK, a.Bridge, err)
	}
	now := p.Clock.Now()
	cred := p.Credential(p.id)
	if !cred.LastPINChange.Presumed || !cred.PINExpiresAt.Equal(now.AddDate(0, 0, 90)) || !cred.PUKDisclosedAt.Equal(now) {
		t.Errorf("presumed: %+v, %v, %v", cred.LastPINChange, cred.PINExpiresAt, cred.PUKDisclosedAt)
	}
	mails := p.Mails.Of("unblock code")
	if len(mails) != 1 || mails[0].To != desk.Address || !strings.Contains(mails[0].Text, "Ann, help desk") || strings.Contains(mails[0].Text, response) {
		t.Errorf("mails: %+v", mails)
	}
	for range 2 { // its acknowledgement may be lost
		p.report("offline-1", relay.Yes, nil)
	}
	if cred := p.Credential(p.id); cred.LastPINChange.Presumed || cred.PUKDisclosedAt.IsZero() {
		t.Errorf("confirmed: %+v", cred)
	}
	if got, err := p.Unblocks.Answer(t.Context(), desk.Acme, a.ID); err != nil || got.State != unblock.AnswerConfirmed {
		t.Errorf("answer: %+v, %v", got, err)
	}
	want := "credential.registered, puk.read, offline.answered, offline.notice, offline.reported"
	if got := strings.Join(p.Actions(p.id), ", "); got != want {
		t.Errorf("audited %s, want %s", got, want)
	}
	p.Search()
}

// TestAnswerClaimed: a PUK that somebody has said the card has is a guess, and never worth
// the last try.
func TestAnswerClaimed(t *testing.T) {
	p := newTelephone(t, softcard.PivApplet) // whose PUK has 3 tries
	for range 2 {
		p.given(p.request(p.challenge(offline.Report{}).String()))
	}
	p.refuses(p.request(p.challenge(offline.Report{}).String()), problem.ErrState, "may have one try left")
}

// TestAnswerRefuted: a bridge reports that the PIN was not reset, and what was presumed is
// taken back; a wrong PUK is in doubt from then on.
func TestAnswerRefuted(t *testing.T) {
	p := newTelephone(t, softcard.PivApplet)
	was := p.Credential(p.id)
	a, _ := p.given(p.request(p.challenge(offline.Report{}).String()))
	tries := 2
	p.report("offline-1", relay.No, &tries)
	is := p.Credential(p.id)
	if is.LastPINChange != was.LastPINChange || !is.PINExpiresAt.Equal(was.PINExpiresAt) || is.State != was.State || len(is.Resets) != len(was.Resets) {
		t.Errorf("not taken back: %+v", is)
	}
	if !is.Custody.InDoubt() || is.Custody.Tries != 2 || is.Lease.Fence <= was.Lease.Fence || is.PUKDisclosedAt.IsZero() {
		t.Errorf("custody: %+v", is.Custody)
	}
	if got, _ := p.Unblocks.Answer(t.Context(), desk.Acme, a.ID); got.State != unblock.AnswerRefuted {
		t.Errorf("answer: %+v", got)
	}
	p.report("offline-2", relay.Unknown, nil) // which says nothing
	if again := p.Credential(p.id); again.LastPINChange != was.LastPINChange {
		t.Errorf("%+v", again.LastPINChange)
	}
}

// TestAnswerSeen: a card that was answered for at Windows' screen shows at its next contact
// whether its PIN is blocked still.
func TestAnswerSeen(t *testing.T) {
	for _, reset := range []bool{true, false} {
		t.Run(fmt.Sprint(reset), func(t *testing.T) {
			p := newTelephone(t, softcard.GIDS)
			send := func(command string) []byte {
				t.Helper()
				b, err := hex.DecodeString(command)
				p.Must(err)
				answer, err := p.piece.Transmit(b)
				if err != nil || !bytes.HasSuffix(answer, []byte{0x90, 0}) {
					t.Fatalf("%s: %X, %v", command, answer, err)
				}
				return answer
			}
			p.piece.PowerOn()
			send("00A404000BA00000039742544659020100")
			send("002281A403830180")
			r := p.request(fmt.Sprintf("%X", send("00870000047C02810000")[4:12]))
			r.Channel = credential.WindowsChallengeResponse
			a, response := p.given(r)
			want, state := unblock.AnswerRefuted, credential.Blocked
			if reset {
				want, state = unblock.AnswerConfirmed, credential.Active
				send("008700000C7C0A8208" + strings.ReplaceAll(response, " ", ""))
				send(fmt.Sprintf("002C0280%02X%X", 8, goodPIN[softcard.GIDS]))
			} else {
				p.bridge.Insert(p.piece)
				p.Must(p.bridge.Settle())
				p.bridge.Remove()
				if c := p.Credential(p.id); !c.LastPINChange.Presumed {
					t.Error("taken back while the person may be about to use the answer")
				}
			}
			p.piece.PowerOff()
			p.Clock.Pass(offline.Life + time.Minute)
			p.bridge.Insert(p.piece)
			p.Must(p.bridge.Settle())
			got, err := p.Unblocks.Answer(t.Context(), desk.Acme, a.ID)
			if c := p.Credential(p.id); err != nil || got.State != want || c.LastPINChange.Presumed || c.HasFlag() != reset || c.State != state {
				t.Errorf("%s, %v: %+v, %s", got.State, err, c.LastPINChange, c.State)
			}
		})
	}
}

// TestTellPUK: a PUK is told by two operators only, with a reason, and not to a help desk.
func TestTellPUK(t *testing.T) {
	p := newTelephone(t, softcard.CanoKey)
	r := p.request("")
	r.Channel = credential.WindowsChallengeResponse
	p.refuses(r, nil, "must say why the PUK is told")
	r.Reason = "laptop abroad, no network"
	r.TellPUK = false
	p.refuses(r, problem.ErrForbidden, "told by an operator only")
	r.TellPUK = true
	r.Challenge = "BF09E22DE55355F6"
	p.refuses(r, nil, "takes the PUK itself")
	r.Challenge = ""
	a, given, err := p.ask(r)
	if err != nil || a.State != unblock.AnswerRequested || !given.Response.Empty() {
		t.Fatalf("ask: %+v, %v", a, err)
	}
	if c := p.Credential(p.id); !c.PUKDisclosedAt.IsZero() || c.LastPINChange.Presumed {
		t.Error("nothing was told yet")
	}
	give := func(by audit.Actor) (unblock.Answer, unblock.Given, error) {
		return p.Unblocks.Give(t.Context(), p.Core, by, a.ID)
	}
	if _, _, err := give(ann); !errors.Is(err, problem.ErrState) {
		t.Errorf("without approval: %v", err)
	}
	if _, err := p.Unblocks.ApproveAnswer(t.Context(), p.Core, ann, a.ID); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("approved by who has asked: %v", err)
	}
	if _, err := p.Unblocks.ApproveAnswer(t.Context(), p.Core, bob, a.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := give(bob); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("given to who has approved: %v", err)
	}
	for range 2 { // the first may be lost on its way
		_, given, err = give(ann)
		if want := "3437 3131 3038 3135"; err != nil || given.Response.Reveal() != want {
			t.Fatalf("given %q, %v, want %q", given.Response.Reveal(), err, want)
		}
	}
	p.Secret("PUK in hex", "3437 3131 3038 3135")
	if c := p.Credential(p.id); c.PUKDisclosedAt.IsZero() || !c.LastPINChange.Presumed || !c.Custody.InDoubt() || p.PUKs(c)[0] != desk.FirstPUK {
		t.Errorf("told: %+v, %+v", c.LastPINChange, c.Custody)
	}
	found, _, err := p.Credentials.Find(t.Context(), desk.Acme, credential.Filter{PUKDisclosed: true}, "", 10)
	if err != nil || len(found) != 1 || found[0].ID != p.id {
		t.Errorf("cards whose rotation is due: %+v, %v", found, err)
	}
	p.Clock.Pass(offline.Life)
	if _, _, err := give(ann); !errors.Is(err, problem.ErrState) {
		t.Errorf("shown after half an hour: %v", err)
	}
	p.Search()
}

// TestAnswerLimits: an answer for each challenge, some in an hour, and what else must not be.
func TestAnswerLimits(t *testing.T) {
	p := newTelephone(t, softcard.GIDS)
	challengeOf := func(k offline.Key) string {
		b := make([]byte, 8)
		_, _ = rnd.Read(b)
		code, err := k.EncodeChallenge(b)
		p.Must(err)
		return code
	}
	fresh := func() string { return challengeOf(p.key) }
	for range 5 {
		p.given(p.request(fresh()))
	}
	_, _, err := p.ask(p.request(fresh()))
	var limit *problem.LimitError
	if !errors.As(err, &limit) || limit.Code != "tooManyAnswers" || !limit.Until.Equal(p.Clock.Now().Add(time.Hour)) {
		t.Fatalf("answer 6 in an hour: %v", err)
	}
	p.Clock.Pass(time.Hour)
	c := fresh()
	p.given(p.request(c))
	p.refuses(p.request(c), problem.ErrState, "answered already")

	// Challenges of no bridge are counted too.
	for range 29 {
		p.refuses(p.request("000000 000000 000000 000000 000000"), nil, "")
	}
	foreign := func() string {
		other, err := offline.NewKey(p.bridge.Sealing, p.bridge.Sealing.PublicKey().Bytes(), offline.Binding{Tenant: "x", Bridge: "y", Credential: "z"})
		p.Must(err)
		return challengeOf(other)
	}
	for n := range 40 {
		_, _, err = p.ask(p.request(foreign()))
		if errors.As(err, &limit) {
			if n < 25 {
				t.Errorf("after %d challenges of no bridge: %v", n, err)
			}
			return
		}
		if !errors.Is(err, offline.ErrForeign) {
			t.Fatalf("challenge %d of no bridge: %v", n, err)
		}
	}
	t.Error("challenges of no bridge are not limited")
}

func TestAnswerRefusals(t *testing.T) {
	p := newTelephone(t, softcard.PivApplet, func(t *credential.Template) {
		t.Channels = []credential.Channel{credential.SelfServiceOffline}
		t.Limit = credential.Limit{Count: 1, Days: 30}
	})
	code := p.challenge(offline.Report{}).String()
	for name, c := range map[string]struct {
		change func(*unblock.OfflineRequest)
		is     error
		says   string
	}{
		"no statement":         {func(r *unblock.OfflineRequest) { r.Statement = " x " }, nil, "how the person was identified"},
		"channel not open":     {func(r *unblock.OfflineRequest) { r.Channel = credential.WindowsChallengeResponse }, problem.ErrState, "does not allow"},
		"channel online":       {func(r *unblock.OfflineRequest) { r.Channel = credential.Operator }, nil, "must be selfServiceOffline"},
		"unknown channel":      {func(r *unblock.OfflineRequest) { r.Channel = "x" }, nil, "must be selfServiceOffline"},
		"unknown card":         {func(r *unblock.OfflineRequest) { r.Credential = "piv-00" }, problem.ErrNotFound, "credential"},
		"unknown bridge":       {func(r *unblock.OfflineRequest) { r.Bridge = "00000000" }, problem.ErrNotFound, "bridge"},
		"no challenge":         {func(r *unblock.OfflineRequest) { r.Challenge = "" }, nil, "has 0 digits"},
		"a digit missing":      {func(r *unblock.OfflineRequest) { r.Challenge = code[:10] + code[11:] }, nil, "has 17 digits, must have 18"},
		"letters":              {func(r *unblock.OfflineRequest) { r.Challenge = "X" + code[1:] }, nil, "'X' at place 1 of group 1 is no digit"},
		"longer than any code": {func(r *unblock.OfflineRequest) { r.Challenge = strings.Repeat("1", 301) }, nil, "longer than any code"},
	} {
		t.Run(name, func(t *testing.T) {
			r := p.request(code)
			c.change(&r)
			p.refuses(r, c.is, c.says)
		})
	}
	// A card of another tenant is as unknown as one that nobody has.
	other, _, err := p.Tenants.Create(t.Context(), desk.Admin, testTenant("other"))
	p.Must(err)
	_, _, err = p.Unblocks.Ask(t.Context(), other, ann, p.request(code))
	if !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("another tenant's card: %v", err)
	}

	old := p.challenge(offline.Report{})
	p.Clock.Pass(3 * 24 * time.Hour)
	p.refuses(p.request(old.String()), nil, "3 days old, or the bridge's clock is slow")
	r := p.request(old.String())
	r.AnyDay = true
	if _, response := p.given(r); response == "" {
		t.Error("no response though the operator knows better")
	}
	var limit *problem.LimitError
	if _, _, err := p.ask(p.request(p.challenge(offline.Report{}).String())); !errors.As(err, &limit) || limit.Code != "tooManyUnblocks" {
		t.Errorf("beyond the template's limit: %v", err)
	}
}

// TestAnswerInDoubt: which PUK the card has is not known in the cloud, but the bridge may.
func TestAnswerInDoubt(t *testing.T) {
	for _, c := range []struct {
		change offline.Change
		fence  int64 // that the bridge has seen, from the cloud's on
		want   int   // the slot; 0 is none
	}{
		{offline.Changed, 0, 2}, {offline.Unchanged, 0, 1}, {offline.InDoubt, 0, 0}, {offline.Acknowledged, 0, 0}, {offline.Changed, -1, 0},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			p := newTelephone(t, softcard.PivApplet)
			p.bridge.Insert(p.piece)
			p.Must(p.bridge.Settle())
			op, err := p.Unblocks.Create(t.Context(), p.Core, ann, unblock.Request{Credential: p.id, Bridge: p.bridge.ID, Channel: credential.Operator, Statement: statement})
			p.Must(err)
			binding := relay.Binding{Tenant: string(desk.Acme), Operation: op.ID, Credential: p.id, Fence: op.Fence}
			sealed, err := relay.SealPIN(p.bridge.Sealing.PublicKey().Bytes(), binding, newSecret("73915826"))
			p.Must(err)
			_, err = p.Unblocks.GivePIN(t.Context(), p.Core, ann, op.ID, sealed)
			p.Must(err) // its script is never run, and the answer to it never comes
			p.refuses(p.request(p.challenge(offline.Report{}).String()), problem.ErrState, "under way")
			p.Clock.Pass(2 * time.Minute)
			p.Sweep()

			cred := p.Credential(p.id)
			puks := p.PUKs(cred)
			challenge := p.challenge(offline.Report{Change: c.change, Fence: cred.Lease.Fence + c.fence})
			if c.want == 0 {
				p.refuses(p.request(challenge.String()), problem.ErrState, "in doubt which PUK")
				return
			}
			a, response := p.given(p.request(challenge.String()))
			puk, err := p.key.Unmask(challenge, response)
			if err != nil || a.Slot != c.want || puk.Reveal() != puks[c.want-1] {
				t.Errorf("slot %d, %v", a.Slot, err)
			}
		})
	}
}

// TestAnswerMail: the holder is told though the mail system was down, once.
func TestAnswerMail(t *testing.T) {
	p := newTelephone(t, softcard.PivApplet)
	p.Mails.Fail(1)
	a, _ := p.given(p.request(p.challenge(offline.Report{}).String()))
	if n := len(p.Mails.Of("unblock code")); n != 0 {
		t.Fatalf("%d mails", n)
	}
	for range 3 {
		p.Clock.Pass(2 * time.Minute)
		if _, err := p.Unblocks.SweepAnswers(t.Context(), 100); err != nil {
			t.Error(err)
		}
	}
	got, err := p.Unblocks.Answer(t.Context(), desk.Acme, a.ID)
	if n := len(p.Mails.Of("unblock code")); err != nil || n != 1 || got.Notice.State != unblock.NoticeSent {
		t.Errorf("%d mails, %+v, %v", n, got.Notice, err)
	}
	page, err := p.Wire.Query(t.Context(), table.OfflineAnswersOf(desk.Acme, p.id))
	if err != nil || len(page.Items) != 1 {
		t.Errorf("%d answers, %v", len(page.Items), err)
	}
}

func newSecret(s string) secret.Text { return secret.New(s) }

func testTenant(id table.TenantID) tenant.Tenant {
	return tenant.Tenant{ID: id, Settings: tenant.Settings{DisplayName: "Other", TimeZone: "UTC", Language: "en"}}
}
