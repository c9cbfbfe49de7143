package card_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// The PIN that people choose here, and the PUKs by slot.
const newPIN = "738264"

var puks = []string{"", softcard.FactoryPUK, "40718259", "96185302", "27491836"}

// bench is a card in a reader, a bridge in front of it, and what the cloud stores.
type bench struct {
	t      testing.TB
	card   *softcard.Card
	reader *softcard.Reader
	family *card.Family
	policy pin.Policy

	noMetadata bool                              // the card does not tell its tries
	before     func(n int, command []byte)       // each command, from 1
	after      func(n int, answer []byte) []byte // each answer
	deaf       bool                              // results of scripts that change the card are never heard of

	conn     *softcard.Connection
	commands int
	scripts  int
	wrong    int // PUKs that were presented and wrong
}

func newBench(t testing.TB, profile softcard.Profile) *bench {
	t.Helper()
	c, err := softcard.New(softcard.Config{Profile: profile, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, card: c, reader: softcard.NewReader(), family: card.PIV}
	if profile == softcard.GIDS {
		b.family = card.GIDS
	}
	b.policy = b.family.Policy()
	b.reader.Insert(c)
	return b
}

func (b *bench) materials() card.Materials {
	return card.Materials{
		PUK: func(slot int) (secret.Text, error) {
			if slot < 1 || slot >= len(puks) {
				return secret.Text{}, problem.ErrNotFound
			}
			return secret.New(puks[slot]), nil
		},
		AdminKey: func() (secret.Text, error) { return secret.New(string(softcard.FactoryAdminKey)), nil },
		Policy:   b.policy,
	}
}

func (b *bench) send(_ context.Context, command []byte) ([]byte, error) {
	b.commands++
	if b.before != nil {
		b.before(b.commands, command)
	}
	if b.noMetadata && command[1] == 0xF7 {
		return []byte{0x6D, 0x00}, nil
	}
	ins := command[1]
	presentsPUK := b.family == card.PIV && (ins == 0x24 || ins == 0x2C)
	tries := b.card.Inspect().PUKTries
	answer, err := b.conn.Transmit(command)
	if presentsPUK && b.card.Inspect().PUKTries < tries {
		b.wrong++
	}
	if err == nil && b.after != nil {
		answer = b.after(b.commands, answer)
	}
	return answer, err
}

// exec runs a script as a bridge does.
func (b *bench) exec(s card.Script) apdu.Result {
	b.t.Helper()
	b.scripts++
	script := apdu.Script{Operation: "test", Part: b.scripts, Fence: 1, Deadline: time.Now(), Steps: s.Steps}
	encoded, err := apdu.EncodeScript(script)
	if err != nil {
		b.t.Fatal(err)
	}
	if script, err = apdu.DecodeScript(encoded); err != nil {
		b.t.Fatal(err)
	}
	if b.conn == nil {
		if b.conn, err = b.reader.Connect(); err != nil {
			return apdu.Result{End: apdu.Lost, Err: err}
		}
	}
	r := apdu.Run(context.Background(), script, func(apdu.Slot) ([]byte, error) { return []byte(newPIN), nil }, b.send)
	if !s.Hold || r.End != apdu.Done {
		b.conn = nil
	}
	if r.End == apdu.Refused {
		b.t.Fatalf("refused: %v", r.Err)
	}
	return r
}

// run takes an operation to its end. States go through JSON, as they are stored.
func (b *bench) run(s card.State) card.State {
	b.t.Helper()
	for !s.Finished() {
		text, err := json.Marshal(s)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, puk := range puks[1:] {
			if bytes.Contains(text, []byte(puk)) {
				b.t.Fatalf("a PUK is in the state: %s", text)
			}
		}
		var stored card.State
		if err := json.Unmarshal(text, &stored); err != nil || stored != s {
			b.t.Fatalf("state %+v is read back as %+v, %v", s, stored, err)
		}
		script, err := s.Script(b.materials())
		if err != nil {
			b.t.Fatal(err)
		}
		r := b.exec(script)
		if b.deaf && s.Changes() {
			return s.NoResult()
		}
		if s, err = s.Next(r); err != nil {
			b.t.Fatal(err)
		}
	}
	return s
}

func (b *bench) identify() card.Identity {
	b.t.Helper()
	s := b.run(card.Identify(true))
	if s.Leg != card.Done {
		b.t.Fatalf("not identified: %v", s.Failure)
	}
	b.commands, b.scripts = 0, 0
	return s.Identity
}

func (b *bench) must(s card.State, err error) card.State {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// reinsert ends whatever was wrong.
func (b *bench) reinsert() {
	b.before, b.after, b.deaf = nil, nil, false
	b.card.Inject()
	b.reader.Remove()
	b.reader.Insert(b.card)
	b.conn, b.commands, b.scripts = nil, 0, 0
}

var piv = []softcard.Profile{softcard.PivApplet, softcard.CanoKey}

// settled is the custody of a PUK that the card has taken already.
func settled(slot int) card.Custody {
	return card.Custody{Stage: card.Settled, Current: slot, Tries: 3, Most: 3}
}

func (b *bench) blockPIN() {
	b.t.Helper()
	conn, err := b.reader.Connect()
	if err != nil {
		b.t.Fatal(err)
	}
	name, wrong := "A00000030800001000", "000000\xFF\xFF"
	if b.family == card.GIDS {
		name, wrong = "A00000039742544659", "000000"
	}
	_, _ = conn.Transmit(unhex("00A4040009" + name + "00"))
	for range 5 {
		_, _ = conn.Transmit(append([]byte{0x00, 0x20, 0x00, 0x80, byte(len(wrong))}, wrong...))
	}
	if left := b.card.Inspect().PINTries; left != 0 {
		b.t.Fatalf("%d tries left", left)
	}
}

func TestUnblock(t *testing.T) {
	for _, profile := range softcard.Profiles {
		t.Run(string(profile), func(t *testing.T) {
			b := newBench(t, profile)
			b.blockPIN()
			id := b.identify()
			if !id.PIN.Known || id.PIN.TriesLeft != 0 {
				t.Errorf("blocked PIN told as %+v", id.PIN)
			}
			scripts, custody, next := 1, settled(1), 2
			if profile == softcard.GIDS {
				scripts, custody, next = 2, card.Custody{}, 0
			}
			s := b.run(b.must(b.family.Unblock(id.ID, custody, next)))
			state := b.card.Inspect()
			if s.Leg != card.Done || s.Failure != (card.Failure{}) || !b.card.PINIs(newPIN) || state.PINTries != state.PINMost {
				t.Errorf("unblock ended as %+v; card %+v", s, state)
			}
			if s.Outcome.PIN != card.Yes || !s.Outcome.PINTries.Known || s.Outcome.PINTries.TriesLeft != state.PINMost {
				t.Errorf("outcome %+v", s.Outcome)
			}
			if b.scripts != scripts {
				t.Errorf("%d scripts, want %d", b.scripts, scripts)
			}
			if state.PINVerified || state.AdminVerified {
				t.Error("not logged out")
			}
			if profile == softcard.GIDS {
				if s.Outcome.PUK != "" || s.Custody != (card.Custody{}) {
					t.Errorf("a card without a PUK has %+v, %+v", s.Outcome, s.Custody)
				}
				return
			}
			if s.Outcome.PUK != card.Yes || !b.card.PUKIs(puks[2]) || s.Custody != settled(2) {
				t.Errorf("PUK %s, custody %+v", s.Outcome.PUK, s.Custody)
			}
		})
	}
}

func TestTakeCustody(t *testing.T) {
	for _, profile := range piv {
		for _, firstPIN := range []bool{false, true} {
			b := newBench(t, profile)
			id := b.identify()
			begin := b.family.TakeCustody
			if firstPIN {
				begin = b.family.Unblock
			}
			s := b.run(b.must(begin(id.ID, card.Claim(1, id.PUK), 2)))
			if s.Leg != card.Done || s.Custody != settled(2) || !b.card.PUKIs(puks[2]) || b.card.PINIs(newPIN) != firstPIN {
				t.Errorf("%s: %+v", profile, s)
			}
		}
	}
}

// TestClaimedPUKIsWrong: what somebody says is presented once, and never with the last
// try.
func TestClaimedPUKIsWrong(t *testing.T) {
	for _, profile := range piv {
		b := newBench(t, profile)
		id := b.identify()
		s := b.run(b.must(b.family.Unblock(id.ID, card.Claim(3, id.PUK), 2)))
		want := card.Failure{Reason: card.PUKWrong, TriesLeft: 2, SW: 0x63C2}
		if s.Leg != card.Failed || s.Failure != want || s.Custody.Stage != card.Refused || s.Outcome.PIN != card.No || s.Outcome.PUK != card.No {
			t.Errorf("%s: %+v", profile, s)
		}
		if _, err := b.family.Unblock(id.ID, s.Custody, 4); !errors.Is(err, problem.ErrState) || !strings.Contains(err.Error(), "pukWrong") {
			t.Errorf("%s: a PUK that the card has refused: %v", profile, err)
		}
		if again := b.run(b.must(b.family.Reconcile(id.ID, s.Custody))); again.Failure.Reason != card.PUKWrong || b.wrong != 1 {
			t.Errorf("%s: reconciled as %+v after %d wrong", profile, again.Failure, b.wrong)
		}

		// An operator types another, which is wrong too, and then one more.
		claim := card.Claim(4, b.identify().PUK)
		if _, err := b.family.Unblock(id.ID, claim, 2); err == nil {
			t.Errorf("%s: unblock with a PUK that was never taken, of 2 tries", profile)
		}
		s = b.run(b.must(b.family.Reconcile(id.ID, claim)))
		if s.Failure.Reason != card.PUKWrong || s.Failure.TriesLeft != 1 || s.Custody.Stage != card.Refused {
			t.Errorf("%s: %+v", profile, s)
		}
		s = b.run(b.must(b.family.Reconcile(id.ID, card.Claim(2, b.identify().PUK))))
		if want := (card.Failure{Reason: card.PUKUncertain, TriesLeft: 1}); s.Failure != want || b.wrong != 2 {
			t.Errorf("%s: %+v after %d wrong", profile, s.Failure, b.wrong)
		}
	}
}

// TestClaimedAgain: after a typo the right PUK is found right, and fills the counter.
func TestClaimedAgain(t *testing.T) {
	b := newBench(t, softcard.CanoKey)
	id := b.identify()
	b.run(b.must(b.family.TakeCustody(id.ID, card.Claim(3, id.PUK), 2)))
	s := b.run(b.must(b.family.Reconcile(id.ID, card.Claim(1, b.identify().PUK))))
	if s.Leg != card.Done || s.Custody != settled(1) || b.card.Inspect().PUKTries != 3 {
		t.Errorf("%+v", s)
	}
	if s := b.run(b.must(b.family.Reconcile(id.ID, s.Custody))); s.Leg != card.Done || s.Custody != settled(1) {
		t.Errorf("nothing to reconcile, but %+v", s)
	}
}

func TestPUKBlocked(t *testing.T) {
	for _, profile := range piv {
		b := newBench(t, profile)
		id := b.identify()
		for range 3 {
			_ = b.run(b.must(b.family.TakeCustody(id.ID, settled(4), 2)))
		}
		if id := b.identify(); id.PUK != (card.RetryCounter{Known: true, Most: 3}) {
			t.Errorf("%s: blocked PUK told as %+v", profile, id.PUK)
		}
		s := b.run(b.must(b.family.Unblock(id.ID, settled(1), 2)))
		if s.Failure.Reason != card.PUKBlocked || s.Custody.Tries != 0 || s.Custody.Stage != card.Settled || s.Custody.Current != 1 {
			t.Errorf("%s: %+v", profile, s)
		}
		_, err := b.family.Unblock(id.ID, s.Custody, 2)
		var f card.Failure
		if !errors.As(err, &f) || f.Reason != card.PUKBlocked {
			t.Errorf("%s: %v", profile, err)
		}
		if s := b.run(b.must(b.family.Reconcile(id.ID, s.Custody))); s.Failure.Reason != card.PUKBlocked {
			t.Errorf("%s: reconciled as %+v", profile, s)
		}
	}
}

// TestWrongCard puts another card in at every command: it gets no secret byte.
func TestWrongCard(t *testing.T) {
	for _, profile := range softcard.Profiles {
		for at := 0; ; at++ {
			b := newBench(t, profile)
			id := b.identify()
			other := newBench(t, profile).card
			swap := func(n int, _ []byte) {
				if n == at {
					b.reader.Insert(other)
				}
			}
			if at == 0 {
				b.reader.Insert(other)
			}
			b.before = swap
			custody, next := settled(1), 2
			if profile == softcard.GIDS {
				custody, next = card.Custody{}, 0
			}
			s := b.run(b.must(b.family.Unblock(id.ID, custody, next)))
			if n := other.Inspect().SecretBytes; n != 0 || !other.PINIs(softcard.FactoryPIN) {
				t.Errorf("%s, swapped at command %d: the wrong card got %d secret bytes", profile, at, n)
			}
			if at == 0 && (s.Failure.Reason != card.WrongCard || s.Custody != custody) {
				t.Errorf("%s: the wrong card from the start ended as %+v", profile, s)
			}
			if at > 0 && b.commands < at {
				break
			}
		}
	}
}

// TestWrongCardBetweenScripts: a GIDS card that gave no challenge takes no PIN, even
// from a bridge that does not notice.
func TestWrongCardBetweenScripts(t *testing.T) {
	b := newBench(t, softcard.GIDS)
	s := b.must(b.family.Unblock(b.identify().ID, card.Custody{}, 0))
	script, err := s.Script(b.materials())
	if err != nil {
		t.Fatal(err)
	}
	if !script.Hold || script.Policy == nil {
		t.Errorf("the challenge's script is %+v", script)
	}
	if s, err = s.Next(b.exec(script)); err != nil {
		t.Fatal(err)
	}
	b.card = newBench(t, softcard.GIDS).card
	b.reinsert()
	s = b.run(s)
	if s.Failure.Reason != card.StaleChallenge || s.Outcome.PIN != card.No || b.card.Inspect().SecretBytes != 0 {
		t.Errorf("%+v; card %+v", s, b.card.Inspect())
	}
}

func TestGIDSFailures(t *testing.T) {
	for _, test := range []struct {
		step int
		sw   apdu.SW
		want card.Reason
		pin  card.Effect
	}{
		{1, 0x6A82, card.WrongCard, card.No},
		{3, 0x6984, card.CardAnswered, card.No},
		{4, 0x6A86, card.NotSupported, card.No},
		{4, 0x9000, card.CardAnswered, card.No}, // without a challenge
		{5, 0x6982, card.AdminKeyWrong, card.No},
		{5, 0x63C4, card.AdminKeyWrong, card.No},
		{5, 0x6983, card.AdminKeyBlocked, card.No},
		{5, 0x6985, card.StaleChallenge, card.No},
		{5, 0x6A80, card.CardAnswered, card.No},
		{6, 0x6700, card.PINRefused, card.No},
		{6, 0x6982, card.CardAnswered, card.No},
		{6, 0x6F00, card.OutcomeUnknown, card.Unknown},
		{7, 0x6F00, "", card.Yes},
		{8, 0x6F00, "", card.Yes},
	} {
		b := newBench(t, softcard.GIDS)
		id := b.identify()
		b.card.Inject(softcard.Fault{Step: test.step, Kind: softcard.WrongSW, SW: test.sw})
		s := b.run(b.must(b.family.Unblock(id.ID, card.Custody{}, 0)))
		if s.Failure.Reason != test.want || s.Outcome.PIN != test.pin {
			t.Errorf("%v at command %d: %+v", test.sw, test.step, s)
		}
		if s.Failure.Sentence() == "" && test.want != "" {
			t.Errorf("%s has no sentence", test.want)
		}
	}
}

func TestGIDSFaults(t *testing.T) {
	for _, kind := range []softcard.Kind{softcard.Pull, softcard.ResetCard, softcard.Empty, softcard.Lose} {
		for step := 1; step <= 8; step++ {
			b := newBench(t, softcard.GIDS)
			id := b.identify()
			b.card.Inject(softcard.Fault{Step: step, Kind: kind})
			s := b.run(b.must(b.family.Unblock(id.ID, card.Custody{}, 0)))
			checkPIN(t, b, s, fmt.Sprintf("fault %d at %d", kind, step))
			b.reinsert()
			if s = b.run(b.must(b.family.Unblock(id.ID, card.Custody{}, 0))); s.Leg != card.Done || !b.card.PINIs(newPIN) {
				t.Errorf("fault %d at %d: done again, %+v", kind, step, s)
			}
		}
	}
}

// checkPIN compares what is claimed of the PIN with the card.
func checkPIN(t *testing.T, b *bench, s card.State, where string) {
	t.Helper()
	set := b.card.PINIs(newPIN)
	if s.Outcome.PIN == card.Yes && !set || s.Outcome.PIN == card.No && set || (s.Leg == card.Done) != (s.Outcome.PIN == card.Yes) {
		t.Errorf("%s: PIN claimed %q at %s, set %v", where, s.Outcome.PIN, s.Leg, set)
	}
	if s.Leg == card.Failed && s.Failure.Sentence() == "" {
		t.Errorf("%s: no sentence for %q", where, s.Failure.Reason)
	}
}

func TestPolicy(t *testing.T) {
	for _, f := range card.Families() {
		if err := f.CheckPolicy(f.Policy()); err != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
	}
	for name, change := range map[string]func(*pin.Policy){
		"short":   func(p *pin.Policy) { p.MinLength = 5 },
		"long":    func(p *pin.Policy) { p.MaxLength = 9 },
		"letters": func(p *pin.Policy) { p.Alphabet = pin.Alphanumeric },
		"none":    func(p *pin.Policy) { *p = pin.Policy{} },
	} {
		b := newBench(t, softcard.CanoKey)
		s := b.must(b.family.Unblock(b.identify().ID, settled(1), 2))
		change(&b.policy)
		var invalid *problem.InvalidError
		if script, err := s.Script(b.materials()); !errors.As(err, &invalid) || script.Steps != nil {
			t.Errorf("%s: a script of %d steps, %v", name, len(script.Steps), err)
		}
	}
	b := newBench(t, softcard.CanoKey)
	s := b.must(b.family.Unblock(b.identify().ID, settled(1), 2))
	script, err := s.Script(b.materials())
	if err != nil || script.Policy == nil || script.Policy.MinLength != 6 || script.Policy.MaxLength != 8 {
		t.Errorf("the script carries %+v, %v", script.Policy, err)
	}
}

func TestMisuse(t *testing.T) {
	guid := strings.Repeat("01", 16)
	for name, err := range map[string]error{
		"family":        second(card.FamilyNamed("CAC")),
		"GIDS PUK":      second(card.GIDS.TakeCustody(guid, settled(1), 2)),
		"GIDS doubt":    second(card.GIDS.Reconcile(guid, settled(1))),
		"id":            second(card.PIV.Unblock("01", settled(1), 2)),
		"zero id":       second(card.PIV.Unblock(strings.Repeat("00", 16), settled(1), 2)),
		"id and more":   second(card.PIV.Unblock(guid+"zz", settled(1), 2)),
		"no custody":    second(card.PIV.Unblock(guid, card.Custody{}, 2)),
		"same slot":     second(card.PIV.TakeCustody(guid, settled(1), 1)),
		"in doubt":      second(card.PIV.TakeCustody(guid, card.Custody{Stage: card.Open, Current: 1, Proposed: 2, Tries: 3, Most: 3}, 3)),
		"other version": second(card.State{Version: 2, Leg: "find"}.Next(apdu.Result{})),
		"no such leg":   second(card.State{Version: 1, Family: "PIV", Leg: "x"}.Next(apdu.Result{})),
		"finished":      second(card.State{Version: 1, Family: "PIV", Leg: card.Done}.Script(card.Materials{})),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	s, err := card.PIV.Unblock(guid, settled(1), 2)
	if err != nil {
		t.Fatal(err)
	}
	lacking := card.Materials{Policy: card.PIV.Policy()}
	if _, err := s.Script(lacking); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("without PUKs: %v", err)
	}
	lacking.PUK = func(int) (secret.Text, error) { return secret.New("123456789"), nil }
	if _, err := s.Script(lacking); err == nil || strings.Contains(err.Error(), "123456789") {
		t.Errorf("a PUK of 9: %v", err)
	}
	if !s.Changes() || card.Identify(false).Changes() {
		t.Error("Changes is wrong")
	}
	if r, _ := s.Next(apdu.Result{End: apdu.Refused}); r.Custody != settled(1) || r.Failure.Reason != card.ScriptRefused || r.Outcome.PUK != card.No {
		t.Errorf("refused by the bridge: %+v", r)
	}
	if r, _ := s.Next(apdu.Result{End: apdu.Done, Step: 6}); r.Failure.Reason != card.OutcomeUnknown || r.Custody != s.Custody {
		t.Errorf("a result that does not fit: %+v", r)
	}
	if r := card.Identify(false).NoResult(); r.Failure.Reason != card.CardRemoved {
		t.Errorf("nothing was heard of an identify: %+v", r)
	}
}

func second[T any](_ T, err error) error { return err }

func TestNewPUK(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		puk, err := card.NewPUK(rand.Reader, secret.New(puks[1]))
		s := puk.Reveal()
		if err != nil || len(s) != 8 || strings.Trim(s, "0123456789") != "" || seen[s] || s == puks[1] {
			t.Fatalf("%q, %v", s, err)
		}
		seen[s] = true
	}
	// Randomness that always draws the same: never the current one, and no endless loop.
	same := func() *bytes.Reader {
		return bytes.NewReader(bytes.Repeat([]byte("\x04\x00\x07\x01\x08\x02\x05\x09"), 400))
	}
	puk, err := card.NewPUK(same(), secret.Text{})
	if err != nil || puk.Reveal() != "40718259" {
		t.Fatalf("%q, %v", puk.Reveal(), err)
	}
	if again, err := card.NewPUK(same(), puk); err == nil && again.Equal(puk) {
		t.Errorf("the current one again")
	}
	if _, err := card.NewPUK(strings.NewReader(""), secret.Text{}); err == nil {
		t.Error("a PUK without randomness")
	}
}

func TestAnswer(t *testing.T) {
	got, err := card.Answer(secret.New(string(softcard.FactoryAdminKey)), unhex("BF09E22DE55355F6"))
	if err != nil || !bytes.Equal(got, unhex("072C03EF17EDD87C")) {
		t.Errorf("%X, %v", got, err)
	}
	// FIPS 197, C.1.
	key := secret.New(string(unhex("000102030405060708090A0B0C0D0E0F")))
	got, err = card.Answer(key, unhex("00112233445566778899AABBCCDDEEFF"))
	if err != nil || !bytes.Equal(got, unhex("69C4E0D86A7B0430D8CDB78070B4C55A")) {
		t.Errorf("%X, %v", got, err)
	}
	for _, n := range []int{0, 7, 8, 24} {
		if got, err := card.Answer(key, make([]byte, n)); err == nil {
			t.Errorf("answer %X to %d bytes under a key of 16", got, n)
		}
	}
}
