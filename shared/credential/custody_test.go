package credential

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/tenant"
)

// with stores the card with pukA and pukB in slots 1 and 2, as far as custody names them.
func (w *world) with(custody card.Custody) Credential {
	w.Helper()
	c := w.piv()
	c, _, err := c.AddPUK(w.core.Keys, acme, secret.New(pukB))
	if err != nil {
		w.Fatal(err)
	}
	c.Custody, c.Doubt = custody, "op"
	if custody.Current == 0 {
		c.PUKs = nil
	}
	return w.store(c.Kept())
}

// Whatever is known of a card's PUK, a claim of another leaves none behind that the card
// may have, and nothing that is known of its tries is forgotten.
func TestClaimPUK(t *testing.T) {
	for _, c := range []struct {
		name    string
		was     card.Custody
		replace bool // is needed
		tries   *int
		want    card.Custody
		former  []string // the latest last
	}{
		{"nothing", card.Custody{}, false, nil,
			card.Custody{Current: 1, Tries: 3, Most: 3}, nil},
		{"nothing, tries told", card.Custody{}, false, number(10),
			card.Custody{Current: 1, Tries: 10, Most: 10}, nil},
		{"settled", card.Custody{Stage: card.Settled, Current: 1, Tries: 3, Most: 3}, true, nil,
			card.Custody{Current: 2, Tries: 3, Most: 3}, []string{pukA}},
		{"settled, few tries", card.Custody{Stage: card.Settled, Current: 1, Tries: 2, Most: 5}, true, nil,
			card.Custody{Current: 2, Tries: 2, Most: 5}, []string{pukA}},
		{"claimed", card.Custody{Stage: card.Settled, Current: 1, Claimed: true, Tries: 1, Most: 3}, false, number(3),
			card.Custody{Current: 2, Tries: 3, Most: 3}, []string{pukA}},
		{"claimed, blocked", card.Custody{Stage: card.Settled, Current: 1, Claimed: true, Tries: 1, Most: 3}, false, number(0),
			card.Custody{Current: 2, Tries: 0, Most: 3}, []string{pukA}},
		{"open", card.Custody{Stage: card.Open, Current: 1, Proposed: 2, Tries: 3, Most: 3}, false, nil,
			card.Custody{Current: 3, Tries: 3, Most: 3}, []string{pukB, pukA}},
		{"probing", card.Custody{Stage: card.Probing, Current: 1, Proposed: 2, Probed: true, Tries: 2, Most: 3}, false, nil,
			card.Custody{Current: 3, Tries: 2, Most: 3}, []string{pukB, pukA}},
		{"eliminated", card.Custody{Stage: card.Eliminated, Current: 1, Proposed: 2, Tries: 2, Most: 3}, false, nil,
			card.Custody{Current: 3, Tries: 2, Most: 3}, []string{pukB}},
		{"refused", card.Custody{Stage: card.Refused, Current: 1, Proposed: 2, Tries: 1, Most: 3}, false, nil,
			card.Custody{Current: 3, Tries: 1, Most: 3}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			ctx := t.Context()
			before := w.with(c.was)
			if c.replace {
				if _, err := w.ClaimPUK(ctx, w.core, admin, before.ID, Claim{PUK: given(pukC), TriesLeft: c.tries}); !errors.Is(err, problem.ErrState) {
					t.Fatalf("without replace: %v", err)
				}
			}
			got := must(w.ClaimPUK(ctx, w.core, admin, before.ID, Claim{PUK: given(pukC), TriesLeft: c.tries, Replace: c.replace}))(t)
			c.want.Stage, c.want.Claimed = card.Settled, true
			if d := cmp.Diff(c.want, got.Custody); d != "" {
				t.Errorf("custody (-want +got):\n%s", d)
			}
			puks := w.puks(w.reread(got))
			if puks[got.Custody.Current] != pukC {
				t.Errorf("the PUK in custody is not the one claimed: %v of %v", got.Custody.Current, puks)
			}
			var former []string
			for _, slot := range got.Former {
				former = append(former, puks[slot])
			}
			if d := cmp.Diff(c.former, former); d != "" || len(puks) != 1+len(former) {
				t.Errorf("former of %v (-want +got):\n%s", puks, d)
			}
			if got.Doubt != "" || got.Lease.Fence <= before.Lease.Fence {
				t.Errorf("doubt is %q, the fence %d after %d", got.Doubt, got.Lease.Fence, before.Lease.Fence)
			}
			w.lastRecord(got, "credential.pukClaimed", map[string]string{"puk": "claimed", "doubt": "op"}, c.tries)
		})
	}
}

// check2 finds the last record about a credential.
func (w *world) lastRecord(c Credential, action string, details map[string]string, tries *int) {
	w.Helper()
	records := w.audited(acme)
	last := records[len(records)-1]
	if tries != nil {
		details["triesLeft"] = fmt.Sprint(*tries)
	}
	if d := cmp.Diff(details, last.Details); d != "" || last.Action != action || last.Subject != Subject(c.ID) {
		w.Errorf("the record is %+v (-want +got):\n%s", last, d)
	}
}

// A PUK claimed by mistake is taken back: one after the other, all former PUKs come up
// again, until the card takes one.
func TestFormerPUKs(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := w.with(card.Custody{Stage: card.Open, Current: 1, Proposed: 2, Tries: 3, Most: 3})
	c = must(w.ClaimPUK(ctx, w.core, admin, c.ID, Claim{PUK: given(pukC)}))(t)
	var order []string
	for range 4 {
		c = must(w.ClaimPUK(ctx, w.core, admin, c.ID, Claim{}))(t)
		if !c.Custody.Claimed || len(c.PUKs) != 3 {
			t.Errorf("custody %+v of %v", c.Custody, w.puks(c))
		}
		order = append(order, w.puks(c)[c.Custody.Current])
	}
	if d := cmp.Diff([]string{pukA, pukB, pukC, pukA}, order); d != "" {
		t.Errorf("in custody one after the other (-want +got):\n%s", d)
	}
	// An operation that fails keeps them, one that succeeds does not.
	c, slot, err := c.AddPUK(w.core.Keys, acme, secret.New("94062751"))
	if err != nil {
		t.Fatal(err)
	}
	c.Custody.Stage, c.Custody.Proposed = card.Open, slot
	if got := c.Kept(); len(got.PUKs) != 4 || got.Validate() != nil {
		t.Errorf("during an operation there are the PUKs %v: %v", slices.Collect(maps.Keys(got.PUKs)), got.Validate())
	}
	c.Custody = card.Custody{Stage: card.Settled, Current: slot, Tries: 3, Most: 3}
	c = w.store(c.Kept())
	if d := cmp.Diff(map[int]string{slot: "94062751"}, w.puks(c)); d != "" || c.Former != nil {
		t.Errorf("once the card has taken one (-want +got):\n%s", d)
	}
	if _, err := w.ClaimPUK(ctx, w.core, admin, c.ID, Claim{Replace: true}); !errors.Is(err, problem.ErrState) {
		t.Errorf("without a former one: %v", err)
	}
	// Not without end.
	c = must(w.ClaimPUK(ctx, w.core, admin, c.ID, Claim{PUK: given(pukA), Replace: true}))(t)
	for range maxFormer - 1 {
		c = must(w.ClaimPUK(ctx, w.core, admin, c.ID, Claim{PUK: given(pukB)}))(t)
	}
	if _, err := w.ClaimPUK(ctx, w.core, admin, c.ID, Claim{PUK: given(pukC)}); !errors.Is(err, problem.ErrState) {
		t.Errorf("one more: %v", err)
	}
	if puks := slices.Collect(maps.Values(w.puks(w.reread(c)))); !slices.Contains(puks, "94062751") {
		t.Errorf("the PUK that the card had is not among %v", puks)
	}
}

func TestBadClaims(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := w.piv()
	gids := must(w.Register(ctx, w.core, admin, New{Family: "GIDS", CardID: gidsCard, Template: w.template("GIDS", "").ID, AdminKey: given(keyHex)}))(t)
	claim := func(id string, claim Claim) error {
		_, err := w.ClaimPUK(ctx, w.core, admin, id, claim)
		return err
	}
	setKey := func(id, key string, replace bool) error {
		_, err := w.SetAdminKey(ctx, w.core, admin, id, secret.New(key), replace)
		return err
	}
	observe := func(id string, tries int) error {
		_, err := w.ObserveTries(ctx, w.core, admin, id, tries)
		return err
	}
	for _, x := range []struct {
		name string
		err  error
		want string
	}{
		{"PUK of 7", claim(c.ID, Claim{PUK: given("7391584")}), "puk:length"},
		{"empty PUK", claim(c.ID, Claim{PUK: given("")}), "puk:length"},
		{"PUK of a GIDS card", claim(gids.ID, Claim{PUK: given(pukA)}), "puk:inconsistent"},
		{"tries below 0", claim(c.ID, Claim{PUK: given(pukB), TriesLeft: number(-1)}), "pukTriesLeft:range"},
		{"tries without end", observe(c.ID, 16), "pukTriesLeft:range"},
		{"admin key of a PIV card", setKey(c.ID, keyHex, false), "adminKey:inconsistent"},
		{"admin key not in hex", setKey(gids.ID, "x"+keyHex[1:], true), "adminKey:malformed"},
		{"long admin key", setKey(gids.ID, keyHex+keyHex, true), "adminKey:length"},
	} {
		if d := cmp.Diff([]string{x.want}, objections(x.err)); d != "" {
			t.Errorf("%s (-want +got): %v\n%s", x.name, x.err, d)
		}
	}
	for name, err := range map[string]error{
		"claim the former of none": claim(c.ID, Claim{}), "tries of no PUK": observe(gids.ID, 3), "replace an admin key unasked": setKey(gids.ID, key2Hex, false),
	} {
		if !errors.Is(err, problem.ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, a := w.ClaimPUK(ctx, w.other, admin, c.ID, Claim{PUK: given(pukB)})
	_, b := w.SetAdminKey(ctx, w.other, admin, gids.ID, secret.New(keyHex), true)
	_, d := w.ObserveTries(ctx, w.other, admin, c.ID, 1)
	for _, err := range []error{a, b, d} {
		if !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("by another tenant: %v", err)
		}
	}
	// None of them during an unblock.
	for _, id := range []string{c.ID, gids.ID} {
		leased := must(must(w.Get(ctx, acme, id))(t).Take("op", w.Now(), time.Minute))(t)
		w.store(leased)
	}
	during := map[string]func() error{
		"claim":   func() error { return claim(c.ID, Claim{PUK: given(pukB)}) },
		"observe": func() error { return observe(c.ID, 2) },
		"set key": func() error { return setKey(gids.ID, key2Hex, true) },
	}
	for name, do := range during {
		if err := do(); !errors.Is(err, problem.ErrState) {
			t.Errorf("%s during an unblock: %v", name, err)
		}
	}
	if now := w.reread(c); now.Custody != c.Custody || w.puks(now)[1] != pukA {
		t.Errorf("custody has become %+v", now.Custody)
	}
	w.pass(time.Minute)
	held := w.reread(c)
	for name, do := range during {
		if err := do(); err != nil {
			t.Errorf("%s after it: %v", name, err)
		}
	}
	if now := w.reread(c); now.Holds("op", held.Lease.Fence) {
		t.Error("the operation before has the lease still, and its results count")
	} else if again := must(now.Take("op", w.Now(), time.Minute))(t); again.Lease.Fence <= now.Lease.Fence {
		t.Error("it goes on under a fence that it has had")
	}
}

// Where the tries are known, a doubt may be settled: that is card.Custody's business.
func TestObserveTries(t *testing.T) {
	w := newWorld(t)
	c := w.with(card.Custody{Stage: card.Probing, Current: 1, Proposed: 2, Probed: true, Tries: 2, Most: 3})
	got := must(w.ObserveTries(t.Context(), w.core, admin, c.ID, 2))(t)
	want := card.Custody{Stage: card.Eliminated, Current: 1, Proposed: 2, Probed: true, Tries: 2, Most: 3}
	if d := cmp.Diff(want, got.Custody); d != "" || got.Doubt != "op" || len(w.puks(w.reread(got))) != 2 {
		t.Errorf("doubt %q, custody (-want +got):\n%s", got.Doubt, d)
	}
	w.lastRecord(got, "credential.pukTriesObserved", map[string]string{}, number(2))
}

// Whoever has the table file has no PUK and no key.
func TestNoSecretIsStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table")
	db, err := bolt.Open(path, bolt.NoSync())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldOn(t, db)
	ctx := t.Context()
	c := w.piv()
	must(w.ClaimPUK(ctx, w.core, admin, c.ID, Claim{PUK: given(pukB)}))(t)
	master := w.template("GIDS", masterHex)
	gids := must(w.Register(ctx, w.core, admin, New{Family: "GIDS", CardID: gidsCard, Template: master.ID}))(t)
	derived := must(gids.AdminKeyOf(w.core.Keys, acme, master))(t)
	must(w.Update(ctx, w.core, admin, tenant.RoleAdmin, gids.ID, 0, func(a *About) { a.Template = w.template("GIDS", "").ID }))(t)
	must(w.SetAdminKey(ctx, w.core, admin, gids.ID, secret.New(keyHex), true))(t)
	for _, bad := range []string{"5028173", "502817369"} {
		if _, err := w.ClaimPUK(ctx, w.core, admin, c.ID, Claim{PUK: given(bad)}); err == nil {
			t.Errorf("%s was not refused", bad)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(file, []byte(pivCard)) {
		t.Fatal("the file is not what is looked for")
	}
	for _, s := range []string{pukA, pukB, "5028173", string(unhex(t, masterHex)), string(unhex(t, keyHex)), derived.Reveal()} {
		inHex := hex.EncodeToString([]byte(s))
		forms := map[string]string{"plain": s, "in hex": inHex, "in upper-case hex": strings.ToUpper(inHex)}
		for before, from := range []int{0, 2, 3} { // base64 at each place within groups of three bytes
			padded := append(make([]byte, before), s...)
			forms["in base64 after "+strings.Repeat("x", before)] = base64.StdEncoding.EncodeToString(padded)[from : len(padded)/3*4]
		}
		for name, form := range forms {
			if bytes.Contains(file, []byte(form)) {
				t.Errorf("the file has %x, %s", s, name)
			}
		}
	}
}
