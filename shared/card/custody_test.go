package card_test

import (
	"fmt"
	"testing"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
)

// fault is one thing that goes wrong in an operation.
type fault struct {
	softcard.Fault
	deaf bool // and nothing is heard of it
}

func (f fault) String() string {
	return fmt.Sprintf("{kind %d at command %d, SW %04X, deaf %v}", f.Kind, f.Step, uint16(f.SW), f.deaf)
}

// faults are all at the first n commands, or of these kinds only.
func faults(n int, kinds ...softcard.Fault) []fault {
	if kinds == nil {
		kinds = []softcard.Fault{
			{Kind: softcard.Pull}, {Kind: softcard.ResetCard}, {Kind: softcard.Empty}, {Kind: softcard.Lose},
			{Kind: softcard.WrongSW, SW: 0x6F00}, {Kind: softcard.WrongSW, SW: 0x6581}, {Kind: softcard.WrongSW, SW: 0x6982},
			{Kind: softcard.WrongSW, SW: 0x6A80}, {Kind: softcard.WrongSW, SW: 0x6D00},
		}
	}
	all := []fault{{deaf: true}}
	for step := 1; step <= n; step++ {
		for _, f := range kinds {
			f.Step = step
			all = append(all, fault{Fault: f}, fault{Fault: f, deaf: true})
		}
	}
	return all
}

// pivBenches calls test for cards that tell their tries and cards that do not, set up
// by the fault in an unblock or a change of the PUK. The custody is what is stored.
func pivBenches(t *testing.T, all []fault, test func(where string, b *bench, id string, s card.State)) {
	for _, profile := range piv {
		for _, noMetadata := range []bool{false, true} {
			for _, take := range []bool{false, true} {
				for _, f := range all {
					b := newBench(t, profile)
					id := b.identify().ID
					b.noMetadata = noMetadata
					begin := b.family.Unblock
					if take {
						begin = b.family.TakeCustody
					}
					b.failing(f)
					s := b.run(b.must(begin(id, settled(1), 2)))
					b.reinsert()
					test(fmt.Sprintf("%s, no metadata %v, take %v, %v", profile, noMetadata, take, f), b, id, s)
				}
			}
		}
	}
}

func (b *bench) failing(f fault) {
	b.deaf = f.deaf
	b.card.Inject(f.Fault)
}

// holds tells whether the card's PUK is in a slot that must be kept.
func (b *bench) holds(c card.Custody) bool {
	return b.card.PUKIs(puks[c.Current]) || c.Proposed > 0 && b.card.PUKIs(puks[c.Proposed])
}

// TestOneFault: after any fault in any step nothing false is claimed, and at the next
// contact the PUK is known again for at most one wrong presentation.
func TestOneFault(t *testing.T) {
	pivBenches(t, faults(6), func(where string, b *bench, id string, s card.State) {
		if s.Outcome.PIN != "" {
			checkPIN(t, b, s, where)
		}
		if rotated := b.card.PUKIs(puks[2]); s.Outcome.PUK == card.Yes && !rotated || s.Outcome.PUK == card.No && rotated {
			t.Errorf("%s: PUK claimed %q, changed %v", where, s.Outcome.PUK, rotated)
		}
		if (s.Custody.Stage == card.Open) != (s.Outcome.PUK == card.Unknown) {
			t.Errorf("%s: custody %+v with PUK %q", where, s.Custody, s.Outcome.PUK)
		}
		if !b.holds(s.Custody) {
			t.Fatalf("%s: PUK lost: %+v", where, s.Custody)
		}
		custody := s.Custody
		if custody.InDoubt() {
			rotated, set := b.card.PUKIs(puks[2]), b.card.PINIs(newPIN)
			r := b.run(b.must(b.family.Reconcile(id, custody)))
			if r.Leg != card.Done || r.Custody.InDoubt() || b.scripts > 2 {
				t.Fatalf("%s: reconciled in %d scripts as %+v", where, b.scripts, r)
			}
			if (r.Outcome.PUK == card.Yes) != rotated || s.Outcome.PIN != "" && rotated && !set {
				t.Errorf("%s: reconciled with PUK %q, but changed %v and PIN set %v", where, r.Outcome.PUK, rotated, set)
			}
			custody = r.Custody
		}
		if b.wrong > 1 || !b.card.PUKIs(puks[custody.Current]) {
			t.Errorf("%s: %d wrong presentations, custody %+v", where, b.wrong, custody)
		}
		if s := b.run(b.must(b.family.Unblock(id, custody, 3))); s.Leg != card.Done || s.Custody != settled(3) || !b.card.PUKIs(puks[3]) || !b.card.PINIs(newPIN) {
			t.Errorf("%s: then unblocked as %+v", where, s)
		}
	})
}

// TestMoreFaults: what interrupts the reconciling, once and again, loses and bricks
// nothing either. A card that tells its tries is always known again; with one that does
// not, the guesses end in time.
func TestMoreFaults(t *testing.T) {
	some := []softcard.Fault{{Kind: softcard.Pull}, {Kind: softcard.Lose}, {Kind: softcard.WrongSW, SW: 0x6F00}}
	again := faults(7, some...)
	type start struct {
		profile    softcard.Profile
		noMetadata bool
		custody    card.Custody
		changed    bool
	}
	seen := map[start]bool{}
	pairs, uncertain := 0, 0
	pivBenches(t, faults(4, some...), func(where string, b *bench, id string, s card.State) {
		from := start{b.card.Profile(), b.noMetadata, s.Custody, b.card.PUKIs(puks[2])}
		if !s.Custody.InDoubt() || seen[from] {
			return
		}
		seen[from] = true
		for _, second := range again {
			for _, third := range []fault{{}, {deaf: true}, {Fault: softcard.Fault{Kind: softcard.Lose, Step: 6}}} {
				pairs++
				where := fmt.Sprintf("%s, then %v, then %v", where, second, third)
				// The same card again, with what the first fault had made of it.
				b := b.like(s.Custody)
				custody := s.Custody
				for _, f := range []fault{second, third, {}, {}} {
					if !custody.InDoubt() {
						break
					}
					b.failing(f)
					r := b.run(b.must(b.family.Reconcile(id, custody)))
					b.reinsert()
					custody = r.Custody
					if !b.holds(custody) || b.card.Inspect().PUKTries == 0 {
						t.Fatalf("%s: lost or blocked: %+v", where, custody)
					}
					if b.card.Inspect().PUKTries < custody.Tries {
						t.Fatalf("%s: %d tries left, but at least %d by count", where, b.card.Inspect().PUKTries, custody.Tries)
					}
					if custody.Stage == card.Refused {
						t.Fatalf("%s: %+v", where, custody)
					}
				}
				if custody.InDoubt() {
					uncertain++
					if !b.noMetadata {
						t.Fatalf("%s: still in doubt: %+v", where, custody)
					}
					// An operator has found out how many tries are left.
					counter := card.RetryCounter{Known: true, TriesLeft: b.card.Inspect().PUKTries, Most: 3}
					r := b.run(b.must(b.family.Reconcile(id, custody.Observe(counter))))
					custody = r.Custody
				}
				if custody.InDoubt() || !b.card.PUKIs(puks[custody.Current]) {
					t.Fatalf("%s: in the end %+v", where, custody)
				}
			}
		}
	})
	if t.Logf("%d combinations, of which %d stopped to ask", pairs, uncertain); pairs < 500 || uncertain == 0 {
		t.Error("some are missing")
	}
}

// like returns a bench with a card like this one, whose PUK is in one of two slots.
func (b *bench) like(c card.Custody) *bench {
	puk := puks[c.Current]
	if !b.card.PUKIs(puk) {
		puk = puks[c.Proposed]
	}
	soft, err := softcard.New(softcard.Config{Profile: b.card.Profile(), PUK: puk, ID: b.id(), Rand: rng{}})
	if err != nil {
		b.t.Fatal(err)
	}
	n := &bench{t: b.t, card: soft, reader: softcard.NewReader(), family: b.family, policy: b.policy, noMetadata: b.noMetadata}
	n.reader.Insert(soft)
	return n
}

func (b *bench) id() []byte {
	b.t.Helper()
	s := b.run(card.Identify(false))
	b.scripts, b.commands = 0, 0
	return unhex(s.ID)
}

// rng is all the randomness that a card needs that makes no keys.
type rng struct{}

func (rng) Read(p []byte) (int, error) { return len(p), nil }

// TestProbeNeverGuessesLow: with 2 tries left no guess is made, whether the card says
// so or it is certain at worst.
func TestProbeNeverGuessesLow(t *testing.T) {
	for _, noMetadata := range []bool{false, true} {
		b := newBench(t, softcard.PivApplet)
		id := b.identify().ID
		b.noMetadata = noMetadata
		b.run(b.must(b.family.TakeCustody(id, settled(4), 2))) // somebody's wrong PUK
		custody := card.Custody{Stage: card.Open, Current: 1, Proposed: 2, Tries: 2, Most: 3}
		if !noMetadata {
			custody.Tries = 3
		}
		s := b.run(b.must(b.family.Reconcile(id, custody)))
		want := card.Failure{Reason: card.PUKUncertain, TriesLeft: 2}
		if s.Failure != want || b.wrong != 1 || b.scripts != 2 {
			t.Errorf("no metadata %v: %+v, %d wrong", noMetadata, s, b.wrong)
		}
	}
}

// TestProbeStopsAtOneTry: if fewer tries were left than counted, the second step of a
// probe does not spend the last.
func TestProbeStopsAtOneTry(t *testing.T) {
	for _, profile := range piv {
		b := newBench(t, profile)
		id := b.identify().ID
		b.noMetadata = true
		b.run(b.must(b.family.TakeCustody(id, settled(4), 2))) // somebody's wrong PUK
		s := b.run(b.must(b.family.Reconcile(id, card.Custody{Stage: card.Open, Current: 3, Proposed: 2, Tries: 3, Most: 3})))
		want := card.Failure{Reason: card.PUKUncertain, TriesLeft: 1}
		if s.Failure != want || b.card.Inspect().PUKTries != 1 || s.Custody.Tries != 1 {
			t.Errorf("%s: %+v, %d tries left", profile, s, b.card.Inspect().PUKTries)
		}
	}
}

// TestClaimedIsCountedAhead: as long as the card has not taken a PUK it may be wrong,
// so one that was presented without an answer may have cost a try.
func TestClaimedIsCountedAhead(t *testing.T) {
	b := newBench(t, softcard.CanoKey)
	id := b.identify().ID
	b.noMetadata = true
	claim := card.Claim(3, card.RetryCounter{})
	b.failing(fault{deaf: true})
	s := b.run(b.must(b.family.TakeCustody(id, claim, 2)))
	b.reinsert()
	if s.Custody.Tries != 2 || s.Custody.Stage != card.Open {
		t.Errorf("nothing heard, and custody %+v", s.Custody)
	}
	if s = b.run(b.must(b.family.Reconcile(id, s.Custody))); s.Failure.Reason != card.PUKUncertain || b.wrong != 1 {
		t.Errorf("%+v after %d wrong", s, b.wrong)
	}
	b = newBench(t, softcard.CanoKey)
	id = b.identify().ID
	b.failing(fault{Fault: softcard.Fault{Kind: softcard.Lose, Step: 2}}) // the guard
	s = b.run(b.must(b.family.TakeCustody(id, claim, 2)))
	if s.Custody != claim || s.Failure.Reason != card.CardRemoved {
		t.Errorf("nothing presented, and %+v", s)
	}
}

// TestPUKAnswers has what cards answer to a PUK, and what becomes of the custody.
func TestPUKAnswers(t *testing.T) {
	open := card.Custody{Stage: card.Open, Current: 1, Proposed: 2, Tries: 3, Most: 3}
	probing := card.Custody{Stage: card.Probing, Current: 1, Proposed: 2, Probed: true, Tries: 2, Most: 3}
	eliminated := card.Custody{Stage: card.Eliminated, Current: 1, Proposed: 2, Probed: true, Tries: 2, Most: 3}
	with := func(c card.Custody, stage card.Stage, tries int) card.Custody {
		c.Stage, c.Tries = stage, tries
		return c
	}
	claimed := open
	claimed.Claimed, claimed.Tries = true, 2
	lost := apdu.SW(0)
	for _, test := range []struct {
		leg     card.Leg
		custody card.Custody
		sws     []apdu.SW // after the guard; 0 is lost with the outcome open
		want    card.Custody
		end     card.Leg
		reason  card.Reason
		puk     card.Effect
	}{
		{"unblock", open, []apdu.SW{0x9000, 0x9000, lost}, settled(2), card.Done, "", card.Yes},
		{"unblock", open, []apdu.SW{0x9000, lost}, open, card.Done, card.OutcomeUnknown, card.Unknown},
		{"unblock", open, []apdu.SW{0x9000, 0x6581}, open, card.Done, card.OutcomeUnknown, card.Unknown},
		{"unblock", open, []apdu.SW{0x9000, 0x6A81}, settled(1), card.Done, card.NotSupported, card.No},
		{"unblock", open, []apdu.SW{0x9000, 0x63C1}, with(settled(1), card.Settled, 1), card.Done, card.PUKWrong, card.No},
		{"unblock", claimed, []apdu.SW{0x9000, lost}, open, card.Done, card.OutcomeUnknown, card.Unknown},
		{"unblock", open, []apdu.SW{lost}, settled(1), card.Failed, card.OutcomeUnknown, card.No},
		{"unblock", open, []apdu.SW{0x6A80}, settled(1), card.Failed, card.PINRefused, card.No},
		{"unblock", open, []apdu.SW{0x6982}, settled(1), card.Failed, card.CardAnswered, card.No},
		{"unblock", open, []apdu.SW{0x63C2}, with(settled(1), card.Refused, 2), card.Failed, card.PUKWrong, card.No},
		{"unblock", open, []apdu.SW{0x6300}, with(settled(1), card.Refused, 2), card.Failed, card.PUKWrong, card.No},
		{"unblock", open, []apdu.SW{0x63C0}, with(settled(1), card.Refused, 0), card.Failed, card.PUKBlocked, card.No},
		{"unblock", open, []apdu.SW{0x6983}, with(settled(1), card.Settled, 0), card.Failed, card.PUKBlocked, card.No},
		{"take", open, []apdu.SW{0x6983}, with(settled(1), card.Settled, 0), card.Failed, card.PUKBlocked, card.No},
		{"take", open, []apdu.SW{0x6F00}, open, card.Failed, card.OutcomeUnknown, card.Unknown},

		{"probe", probing, []apdu.SW{0x9000, 0x9000}, settled(2), card.Done, "", card.No},
		{"probe", probing, []apdu.SW{0x63C2, 0x9000}, settled(2), card.Done, "", card.Yes},
		{"probe", probing, []apdu.SW{0x9000, lost}, settled(2), card.Done, "", card.No},
		{"probe", probing, []apdu.SW{0x9000, 0x6F00}, settled(2), card.Done, "", card.No},
		{"probe", probing, []apdu.SW{0x9000, 0x63C2}, with(probing, card.Refused, 2), card.Failed, card.PUKWrong, ""},
		{"probe", probing, []apdu.SW{0x63C2, 0x63C1}, with(probing, card.Refused, 1), card.Failed, card.PUKWrong, ""},
		{"probe", probing, []apdu.SW{0x63C2, lost}, eliminated, card.Failed, card.OutcomeUnknown, ""},
		{"probe", probing, []apdu.SW{0x63C2, 0x6A80}, eliminated, card.Failed, card.CardAnswered, ""},
		{"probe", probing, []apdu.SW{lost}, probing, card.Failed, card.OutcomeUnknown, ""},
		{"probe", probing, []apdu.SW{0x6A82}, probing, card.Failed, card.CardAnswered, ""},
		{"probe", probing, []apdu.SW{0x6300}, probing, card.Failed, card.PUKUncertain, ""},
		{"probe", probing, []apdu.SW{0x63C1}, with(probing, card.Probing, 1), card.Failed, card.PUKUncertain, ""},
		{"probe", probing, []apdu.SW{0x6983}, with(probing, card.Probing, 0), card.Failed, card.PUKBlocked, ""},

		{"confirm", eliminated, []apdu.SW{0x9000}, settled(2), card.Done, "", card.Unknown},
		{"confirm", eliminated, []apdu.SW{lost}, eliminated, card.Failed, card.OutcomeUnknown, ""},
		{"confirm", eliminated, []apdu.SW{0x63C1}, with(eliminated, card.Refused, 1), card.Failed, card.PUKWrong, ""},
		{"confirm", with(settled(1), card.Settled, 1), []apdu.SW{0x9000}, settled(1), card.Done, "", ""},
	} {
		s := card.State{Version: 1, Family: "PIV", ID: "01", Leg: test.leg, Custody: test.custody, Before: open}
		r := apdu.Result{Responses: []apdu.Response{{SW: apdu.SWOK}, {SW: apdu.SWOK}}}
		steps := map[card.Leg]int{"unblock": 6, "take": 3, "probe": 4, "confirm": 3}[test.leg]
		r.End, r.Step = apdu.Done, steps
		for i, sw := range test.sws {
			if sw == lost {
				r.End, r.Step, r.Uncertain = apdu.Lost, 2+i, true
				break
			}
			r.Responses = append(r.Responses, apdu.Response{SW: sw})
			if last := i == len(test.sws)-1; last && len(r.Responses) < steps || last && sw != apdu.SWOK {
				r.End, r.Step = apdu.Unexpected, 2+i
			}
		}
		got, err := s.Next(r)
		if err != nil {
			t.Fatal(err)
		}
		if got.Custody != test.want || got.Leg != test.end || got.Failure.Reason != test.reason || got.Outcome.PUK != test.puk {
			t.Errorf("%s answered %v:\ngot  %+v\nwant %+v, %s, %q, PUK %q", test.leg, test.sws, got, test.want, test.end, test.reason, test.puk)
		}
	}
}

// TestProbedAgain: the second probe cannot tell whether the first or the operation in
// doubt has changed the PUK.
func TestProbedAgain(t *testing.T) {
	before := card.Custody{Stage: card.Open, Current: 1, Proposed: 2, Probed: true, Tries: 3, Most: 3}
	s := card.State{Version: 1, Family: "PIV", Leg: "probe", Custody: before, Before: before}
	ok := apdu.Response{SW: apdu.SWOK}
	s, err := s.Next(apdu.Result{End: apdu.Done, Step: 4, Responses: []apdu.Response{ok, ok, {SW: 0x63C2}, ok}})
	if err != nil || s.Custody != settled(2) || s.Outcome.PUK != card.Unknown {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestObserve(t *testing.T) {
	custody := func(stage card.Stage, tries, most int) card.Custody {
		return card.Custody{Stage: stage, Current: 1, Proposed: 2, Tries: tries, Most: most}
	}
	for _, test := range []struct {
		before  card.Custody
		counter card.RetryCounter
		want    card.Custody
	}{
		{custody(card.Probing, 2, 3), card.RetryCounter{}, custody(card.Probing, 2, 3)},
		{custody(card.Probing, 2, 3), card.RetryCounter{Known: true, TriesLeft: 2, Most: 3}, custody(card.Eliminated, 2, 3)},
		{custody(card.Probing, 2, 3), card.RetryCounter{Known: true, TriesLeft: 3, Most: 3}, custody(card.Open, 3, 3)},
		{custody(card.Probing, 2, 3), card.RetryCounter{Known: true, TriesLeft: 1, Most: 3}, custody(card.Open, 1, 3)},
		{custody(card.Open, 3, 3), card.RetryCounter{Known: true, TriesLeft: 2, Most: 3}, custody(card.Open, 2, 3)},
		{custody(card.Open, 3, 3), card.RetryCounter{Known: true, TriesLeft: 8}, custody(card.Open, 8, 8)},
		{custody(card.Probing, 2, 3), card.RetryCounter{Known: true, TriesLeft: 5, Most: 5}, custody(card.Open, 5, 5)},
	} {
		if got := test.before.Observe(test.counter); got != test.want {
			t.Errorf("%+v, %+v: %+v, want %+v", test.before, test.counter, got, test.want)
		}
	}
}
