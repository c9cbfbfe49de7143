package credential

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

func TestRegister(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	piv, gids := w.template("PIV", ""), w.template("GIDS", "")
	c := must(w.Register(ctx, w.core, admin, New{
		Family: "PIV", CardID: strings.ToLower(pivCard), Template: piv.ID, Holder: ada, Label: "Ada's card", PUK: given(pukA), PUKTriesLeft: number(5),
	}))(t)
	want := Credential{
		ID: "piv-" + strings.ToLower(pivCard), Family: "PIV", CardID: pivCard, Template: piv.ID, Holder: ada, Label: "Ada's card", State: Registered,
		Custody: card.Custody{Stage: card.Settled, Current: 1, Claimed: true, Tries: 5, Most: 5}, PUKs: c.PUKs,
		Lease: Lease{Fence: start.UnixMilli()}, CreatedAt: start, UpdatedAt: start, Version: 1,
	}
	if d := cmp.Diff(want, c); d != "" {
		t.Errorf("-want +registered:\n%s", d)
	}
	if d := cmp.Diff(c, w.reread(c)); d != "" {
		t.Errorf("-registered +stored:\n%s", d)
	}
	if d := cmp.Diff(map[int]string{1: pukA}, w.puks(c)); d != "" {
		t.Errorf("PUKs (-want +got):\n%s", d)
	}
	other := must(w.Register(ctx, w.core, admin, New{Family: "GIDS", CardID: gidsCard, Template: gids.ID, AdminKey: given(strings.ToUpper(keyHex))}))(t)
	if got := must(other.AdminKeyOf(w.core.Keys, acme, gids))(t); got.Reveal() != string(unhex(t, keyHex)) {
		t.Error("the admin key is not as given")
	}
	// Without a secret it can be registered too, and the secret set later.
	bare := must(w.Register(ctx, w.core, admin, New{Family: "PIV", CardID: pivCard2, Template: piv.ID}))(t)
	if bare.Custody != (card.Custody{}) || bare.AdminKey != nil {
		t.Errorf("custody of nothing: %+v", bare)
	}

	// A card is registered once in a tenant, whatever the case, and once in each.
	_, err := w.Register(ctx, w.core, admin, New{Family: "PIV", CardID: pivCard, Template: piv.ID, PUK: given(pukB)})
	if !errors.Is(err, problem.ErrConflict) || !strings.Contains(err.Error(), "registered already") {
		t.Errorf("once more: %v", err)
	}
	if d := cmp.Diff(map[int]string{1: pukA}, w.puks(w.reread(c))); d != "" {
		t.Errorf("after a second registration (-want +got):\n%s", d)
	}
	theirs := must(w.CreateTemplate(ctx, w.other, admin, aTemplate("PIV"), nil))(t)
	must(w.Register(ctx, w.other, admin, New{Family: "PIV", CardID: pivCard, Template: theirs.ID}))(t)

	all, next, err := w.List(ctx, acme, "", 10)
	if d := cmp.Diff([]Credential{other, c, bare}, all); d != "" || next != "" || err != nil {
		t.Errorf("listed, with %q, %v (-want +got):\n%s", next, err, d)
	}
	held, _, err := w.Held(ctx, acme, ada, "", 10)
	if d := cmp.Diff([]Credential{c}, held); d != "" || err != nil {
		t.Errorf("Ada's, with %v (-want +got):\n%s", err, d)
	}
	for _, nobody := range []string{bob, "01JNOBODY", strings.Repeat("x", 3000)} {
		if held, _, err := w.Held(ctx, acme, nobody, "", 10); len(held) != 0 || err != nil {
			t.Errorf("%.9s holds %d credentials, %v", nobody, len(held), err)
		}
	}
	for _, id := range []string{other.ID, "piv-00", strings.Repeat("x", 3000)} {
		if _, err := w.Get(ctx, globex, id); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("another tenant's %.9s: %v", id, err)
		}
	}
	r := w.audited(acme)[2]
	if r.Action != "credential.registered" || r.Subject != Subject(c.ID) || r.Actor != admin {
		t.Errorf("the record is %+v", r)
	}
	if d := cmp.Diff(map[string]string{"template": piv.ID, "holder": ada, "puk": "claimed"}, r.Details); d != "" {
		t.Errorf("details (-want +got):\n%s", d)
	}
	w.check()
}

func TestBadCards(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	piv, gids := w.template("PIV", ""), w.template("GIDS", "")
	theirs := must(w.CreateTemplate(ctx, w.other, admin, aTemplate("PIV"), nil))(t)
	w.put(table.UserKey(globex, "01JEVE"))
	before := len(w.audited(acme))
	for _, c := range []struct {
		name   string
		family string
		edit   func(*New)
		want   []string
	}{
		{"no card id", "PIV", func(n *New) { n.CardID = "" }, []string{"cardId:malformed"}},
		{"card id not in hex", "PIV", func(n *New) { n.CardID = "X" + pivCard[1:] }, []string{"cardId:malformed"}},
		{"half a byte of card id", "PIV", func(n *New) { n.CardID = pivCard[1:] }, []string{"cardId:malformed"}},
		{"short card id", "PIV", func(n *New) { n.CardID = pivCard[2:] }, []string{"cardId:malformed"}},
		{"card id without end", "PIV", func(n *New) { n.CardID = strings.Repeat("00", 1000) }, []string{"cardId:malformed"}},
		{"card id of zeros", "GIDS", func(n *New) { n.CardID = strings.Repeat("0", 32) }, []string{"cardId:malformed"}},
		{"card id of the other family", "GIDS", func(n *New) { n.CardID = strings.Repeat("AB", 25) }, []string{"cardId:malformed"}},
		{"unknown family", "PIV", func(n *New) { n.Family = "CAC" }, []string{"family:unknown", "template:inconsistent"}},
		{"family in another case", "PIV", func(n *New) { n.Family = "piv" }, []string{"family:unknown", "template:inconsistent"}},
		{"no template", "PIV", func(n *New) { n.Template = "" }, []string{"template:missing"}},
		{"unknown template", "PIV", func(n *New) { n.Template = "01JNOBODY" }, []string{"template:unknown"}},
		{"template without end", "PIV", func(n *New) { n.Template = strings.Repeat("x", 3000) }, []string{"template:unknown"}},
		{"another tenant's template", "PIV", func(n *New) { n.Template = theirs.ID }, []string{"template:unknown"}},
		{"template of the other family", "PIV", func(n *New) { n.Template = gids.ID }, []string{"template:inconsistent"}},
		{"unknown holder", "PIV", func(n *New) { n.Holder = "01JNOBODY" }, []string{"holder:unknown"}},
		{"another tenant's holder", "PIV", func(n *New) { n.Holder = "01JEVE" }, []string{"holder:unknown"}},
		{"long label", "PIV", func(n *New) { n.Label = strings.Repeat("x", 101) }, []string{"label:length"}},
		{"line break in label", "PIV", func(n *New) { n.Label = "a\nb" }, []string{"label:length"}},
		{"PUK of 7", "PIV", func(n *New) { n.PUK = given("7391584") }, []string{"puk:length"}},
		{"PUK of 9", "PIV", func(n *New) { n.PUK = given("739158467") }, []string{"puk:length"}},
		{"empty PUK", "PIV", func(n *New) { n.PUK = given("") }, []string{"puk:length"}},
		{"PUK with a space", "PIV", func(n *New) { n.PUK = given("7391584 ") }, []string{"puk:characters"}},
		{"PUK with a line break", "PIV", func(n *New) { n.PUK = given("7391584\n") }, []string{"puk:characters"}},
		{"PUK of more bytes than letters", "PIV", func(n *New) { n.PUK = given("739158é") }, []string{"puk:characters"}},
		{"tries of no PUK", "PIV", func(n *New) { n.PUKTriesLeft = number(3) }, []string{"pukTriesLeft:inconsistent"}},
		{"negative tries", "PIV", func(n *New) { n.PUK, n.PUKTriesLeft = given(pukA), number(-1) }, []string{"pukTriesLeft:range"}},
		{"tries without end", "PIV", func(n *New) { n.PUK, n.PUKTriesLeft = given(pukA), number(16) }, []string{"pukTriesLeft:range"}},
		{"admin key for PIV", "PIV", func(n *New) { n.AdminKey = given(keyHex) }, []string{"adminKey:inconsistent"}},
		{"PUK for GIDS", "GIDS", func(n *New) { n.PUK = given(pukA) }, []string{"puk:inconsistent"}},
		{"admin key not in hex", "GIDS", func(n *New) { n.AdminKey = given("x" + keyHex[1:]) }, []string{"adminKey:malformed"}},
		{"half a byte of admin key", "GIDS", func(n *New) { n.AdminKey = given(keyHex[1:]) }, []string{"adminKey:malformed"}},
		{"short admin key", "GIDS", func(n *New) { n.AdminKey = given(keyHex[:46]) }, []string{"adminKey:length"}},
		{"empty admin key", "GIDS", func(n *New) { n.AdminKey = given("") }, []string{"adminKey:length"}},
		{"everything at once", "PIV", func(n *New) {
			n.CardID, n.Template, n.Holder, n.PUK, n.AdminKey = "00", gids.ID, "01JEVE", given("1"), given("x")
		}, []string{"cardId:malformed", "puk:length", "adminKey:inconsistent", "template:inconsistent", "holder:unknown"}},
	} {
		n := New{Family: "PIV", CardID: pivCard, Template: piv.ID, Holder: ada}
		if c.family == "GIDS" {
			n = New{Family: "GIDS", CardID: gidsCard, Template: gids.ID}
		}
		c.edit(&n)
		_, err := w.Register(ctx, w.core, admin, n)
		if d := cmp.Diff(c.want, objections(err)); d != "" {
			t.Errorf("%s (-want +got): %v\n%s", c.name, err, d)
		}
		for _, s := range []string{"7391584", "739158467", keyHex[4:40]} {
			if err != nil && strings.Contains(err.Error(), s) {
				t.Errorf("%s: the error repeats the secret", c.name)
			}
		}
	}
	all, _, err := w.List(ctx, acme, "", 10)
	if len(all) != 0 || err != nil || len(w.audited(acme)) != before {
		t.Errorf("%d credentials were made, %v, and %d records", len(all), err, len(w.audited(acme))-before)
	}
	w.check()
}

func TestUpdate(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := w.piv()
	second, gids := w.template("PIV", ""), w.template("GIDS", "")
	update := func(version int64, decide func(*About)) (Credential, error) {
		return w.Update(ctx, w.core, admin, tenant.RoleAdmin, c.ID, version, decide)
	}
	got := must(update(1, func(a *About) { a.Template, a.Holder, a.Label = second.ID, bob, "Bob's" }))(t)
	want := c
	want.Template, want.Holder, want.Label, want.Version = second.ID, bob, "Bob's", 2
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if held, _, err := w.Held(ctx, acme, ada, "", 10); len(held) != 0 || err != nil {
		t.Errorf("Ada holds %d credentials still, %v", len(held), err)
	}
	if same := must(update(0, func(*About) {}))(t); same.Version != 2 {
		t.Errorf("a change of nothing made version %d", same.Version)
	}
	if _, err := update(1, func(a *About) { a.Label = "" }); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("a change of version 1: %v", err)
	}
	_, err := update(0, func(a *About) { a.Template, a.Holder, a.Label = gids.ID, "01JNOBODY", "a\nb" })
	if d := cmp.Diff([]string{"label:length", "template:inconsistent", "holder:unknown"}, objections(err)); d != "" {
		t.Errorf("all wrong (-want +got): %v\n%s", err, d)
	}
	if _, err := w.Update(ctx, w.other, admin, tenant.RoleAdmin, c.ID, 0, func(*About) {}); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("by another tenant: %v", err)
	}

	// During an unblock it is called something else, but not given to somebody else.
	leased := must(got.Take("op", w.Now(), time.Minute))(t)
	w.put(table.UserKey(acme, "01JCAROL"))
	w.store(leased)
	must(update(0, func(a *About) { a.Label = "During" }))(t)
	for name, decide := range map[string]func(*About){"holder": func(a *About) { a.Holder = ada }, "template": func(a *About) { a.Template = c.Template }} {
		if _, err := update(0, decide); !errors.Is(err, problem.ErrState) {
			t.Errorf("%s during an unblock: %v", name, err)
		}
	}
	w.pass(time.Minute)
	must(update(0, func(a *About) { a.Holder = "" }))(t)

	// A user who is gone is no reason to refuse what is not about them.
	must(update(0, func(a *About) { a.Holder = ada }))(t)
	if err := w.Table.Write(ctx, table.Delete(table.UserKey(acme, ada), table.Whatever())); err != nil {
		t.Fatal(err)
	}
	must(update(0, func(a *About) { a.Label = "Nobody's" }))(t)
	if held, _, err := w.Held(ctx, acme, ada, "", 10); len(held) != 1 || err != nil {
		t.Errorf("a user who is gone holds %d credentials, %v", len(held), err)
	}
}

func TestDelete(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := w.piv()
	if err := w.Delete(ctx, w.core, admin, c.ID, 0, false); !errors.Is(err, problem.ErrState) {
		t.Errorf("with a PUK, unconfirmed: %v", err)
	}
	if err := w.Delete(ctx, w.core, admin, c.ID, 7, true); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("of another version: %v", err)
	}
	if err := w.Delete(ctx, w.other, admin, c.ID, 0, true); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("by another tenant: %v", err)
	}
	leased := must(c.Take("op", w.Now(), time.Minute))(t)
	leased.Doubt = "op"
	leased = w.store(leased)
	if err := w.Delete(ctx, w.core, admin, c.ID, 0, true); !errors.Is(err, problem.ErrState) {
		t.Errorf("during an unblock: %v", err)
	}
	if d := cmp.Diff(map[int]string{1: pukA}, w.puks(w.reread(c))); d != "" {
		t.Errorf("after refusals (-want +got):\n%s", d)
	}
	w.pass(time.Minute)
	if err := w.Delete(ctx, w.core, admin, c.ID, 0, true); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Get(ctx, acme, c.ID); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("after its deletion: %v", err)
	}
	records := w.audited(acme)
	if r := records[len(records)-1]; r.Action != "credential.deleted" || r.Details["doubt"] != "op" {
		t.Errorf("the record is %+v", r)
	}

	// The card comes back: bridges that know it take its new fences.
	again := must(w.Register(ctx, w.core, admin, New{Family: "PIV", CardID: pivCard, Template: c.Template}))(t)
	if again.Lease.Fence <= leased.Lease.Fence {
		t.Errorf("it begins with fence %d, and had %d", again.Lease.Fence, leased.Lease.Fence)
	}
	if err := w.Delete(ctx, w.core, admin, c.ID, 0, false); err != nil {
		t.Errorf("without secrets, unconfirmed: %v", err)
	}
	w.check()
}

// Many are registered at once, with one template: each comes, and each is counted.
func TestRegisterTogether(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	tmpl := w.template("PIV", "")
	const cards = 40
	for i, err := range racing(2*cards, func(i int) error { // each twice
		_, err := w.Register(ctx, w.core, admin, New{Family: "PIV", CardID: fmt.Sprintf("%030X%02X", 1, i/2), Template: tmpl.ID, PUK: given(pukA)})
		if errors.Is(err, problem.ErrConflict) {
			return nil
		}
		return err
	}) {
		if err != nil {
			t.Errorf("card %d: %v", i, err)
		}
	}
	if n := must(w.Uses(ctx, acme, tmpl.ID))(t); n != cards {
		t.Errorf("%d credentials are counted, want %d", n, cards)
	}
	w.check()
}

// operations are all that credentials go through. In each one's world there are Ada's
// card with pukA, and a GIDS card with a derived admin key.
var operations = []struct {
	name string
	run  func(ctx context.Context, cs *Credentials, w *world, f fixed) error
	done func(w *world, f fixed) bool // after success the world is so
}{
	{"CreateTemplate", func(ctx context.Context, cs *Credentials, w *world, _ fixed) error {
		tmpl := aTemplate("GIDS")
		tmpl.Messaging = messaging
		_, err := cs.CreateTemplate(ctx, w.core, admin, tmpl, given(masterHex))
		return err
	}, func(w *world, f fixed) bool { return len(must(w.Templates(w.Context(), acme))(w)) > 3 }},
	{"UpdateTemplate", func(ctx context.Context, cs *Credentials, w *world, f fixed) error {
		_, err := cs.UpdateTemplate(ctx, w.core, admin, f.spare.ID, 0, func(x *Template) { x.Name = "Changed" }, given(masterHex))
		return err
	}, func(w *world, f fixed) bool {
		return must(w.Template(w.Context(), acme, f.spare.ID))(w).Name == "Changed"
	}},
	{"DeleteTemplate", func(ctx context.Context, cs *Credentials, w *world, f fixed) error {
		return cs.DeleteTemplate(ctx, w.core, admin, f.spare.ID, 0)
	}, func(w *world, f fixed) bool {
		_, err := w.Template(w.Context(), acme, f.spare.ID)
		return errors.Is(err, problem.ErrNotFound)
	}},
	{"Register", func(ctx context.Context, cs *Credentials, w *world, f fixed) error {
		_, err := cs.Register(ctx, w.core, admin, New{Family: "PIV", CardID: pivCard2, Template: f.piv.Template, Holder: bob, PUK: given(pukB)})
		return err
	}, func(w *world, f fixed) bool {
		c := must(w.Get(w.Context(), acme, "piv-"+strings.ToLower(pivCard2)))(w)
		return c.Holder == bob && maps.Equal(w.puks(c), map[int]string{1: pukB})
	}},
	{"Update", func(ctx context.Context, cs *Credentials, w *world, f fixed) error {
		_, err := cs.Update(ctx, w.core, admin, tenant.RoleAdmin, f.gids.ID, 0, func(a *About) { a.Template, a.Holder, a.Label = f.spare.ID, bob, "Bob's" })
		return err
	}, func(w *world, f fixed) bool {
		c := w.reread(f.gids)
		return c.Holder == bob && must(c.AdminKeyOf(w.core.Keys, acme, f.spare))(w).Equal(f.key(w))
	}},
	{"Delete", func(ctx context.Context, cs *Credentials, w *world, f fixed) error {
		return cs.Delete(ctx, w.core, admin, f.piv.ID, 0, true)
	}, func(w *world, f fixed) bool {
		_, err := w.Get(w.Context(), acme, f.piv.ID)
		return errors.Is(err, problem.ErrNotFound)
	}},
	{"Move", func(ctx context.Context, cs *Credentials, w *world, f fixed) error {
		_, err := cs.Update(ctx, w.core, admin, tenant.RoleOperator, f.piv.ID, 0, func(a *About) { a.State, a.Reason, a.Serial = Suspended, "lost", "SN-1" })
		return err
	}, func(w *world, f fixed) bool {
		return slices.Equal(w.found(Filter{State: Suspended}), []string{f.piv.ID}) && slices.Equal(w.found(Filter{Search: "sn-"}), []string{f.piv.ID})
	}},
	{"PINChangedByHolder", func(ctx context.Context, cs *Credentials, w *world, f fixed) error {
		_, err := cs.PINChangedByHolder(ctx, w.core, admin, f.piv.ID, start)
		return err
	}, func(w *world, f fixed) bool {
		return w.reread(f.piv).LastPINChange.How == ChangedByHolder && slices.Equal(w.found(Filter{ExpiringBefore: start.AddDate(0, 0, 91)}), []string{f.piv.ID})
	}},
	{"Saw", func(ctx context.Context, cs *Credentials, w *world, f fixed) error {
		_, err := cs.Update(ctx, w.core, admin, tenant.RoleOperator, f.piv.ID, 0, func(a *About) { a.State = Active })
		if err == nil {
			_, err = cs.Saw(ctx, w.core, admin, f.piv.ID, Sighting{ATR: []byte{0x3B, 0x80}, Serial: "42", PIN: card.RetryCounter{Known: true}})
		}
		return err
	}, func(w *world, f fixed) bool {
		return slices.Equal(w.found(Filter{Search: "42", State: Blocked}), []string{f.piv.ID})
	}},
	{"ClaimPUK", func(ctx context.Context, cs *Credentials, w *world, f fixed) error {
		_, err := cs.ClaimPUK(ctx, w.core, admin, f.piv.ID, Claim{PUK: given(pukB)})
		return err
	}, func(w *world, f fixed) bool {
		c := w.reread(f.piv)
		return w.puks(c)[c.Custody.Current] == pukB && slices.Contains(slices.Collect(maps.Values(w.puks(c))), pukA)
	}},
	{"ObserveTries", func(ctx context.Context, cs *Credentials, w *world, f fixed) error {
		_, err := cs.ObserveTries(ctx, w.core, admin, f.piv.ID, 2)
		return err
	}, func(w *world, f fixed) bool { return w.reread(f.piv).Custody.Tries == 2 }},
	{"SetAdminKey", func(ctx context.Context, cs *Credentials, w *world, f fixed) error {
		_, err := cs.SetAdminKey(ctx, w.core, admin, f.gids.ID, *given(key2Hex), true)
		return err
	}, func(w *world, f fixed) bool {
		return must(w.reread(f.gids).AdminKeyOf(w.core.Keys, acme, f.master))(w).Reveal() == string(unhex(w, key2Hex))
	}},
}

type fixed struct {
	piv, gids     Credential
	master, spare Template // of GIDS
}

func (f fixed) key(w *world) secret.Text {
	return must(f.gids.AdminKeyOf(w.core.Keys, acme, f.master))(w)
}

// Each operation is run with each of its table calls failing, before the call or after it
// took effect: the caller is told, nothing is half done, and the same again ends well or in
// an error that has a name.
func TestFaults(t *testing.T) {
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			calls := 0
			for _, after := range []bool{false, true} {
				for n := 1; ; n++ {
					w := newWorld(t)
					f := fixed{piv: w.piv(), master: w.template("GIDS", masterHex), spare: w.template("GIDS", "")}
					f.gids = must(w.Register(t.Context(), w.core, admin, New{Family: "GIDS", CardID: gidsCard, Template: f.master.ID, Holder: ada}))(t)
					faulty := tabletest.Fail(w.Table, n, after)
					cs := *w.Credentials
					cs.Table = faulty

					err := op.run(t.Context(), &cs, w, f)
					hit := faulty.Calls() >= n
					if hit != errors.Is(err, tabletest.ErrFault) || !hit && err != nil {
						t.Errorf("call %d of %d, after %v: %v", n, faulty.Calls(), after, err)
					}
					w.check()
					w.indexed()
					if hit {
						if err = op.run(t.Context(), w.Credentials, w, f); err != nil && !named(err) {
							t.Errorf("once more, after call %d, after %v: %v", n, after, err)
						}
						w.check()
					}
					if !op.done(w, f) {
						t.Errorf("in the end, after call %d, after %v: it is not done", n, after)
					}
					if !hit {
						calls = n - 1
						break
					}
				}
			}
			if calls < 2 {
				t.Error("it made no calls of the table")
			}
		})
	}
}

// named tells whether the edge has a name for the error.
func named(err error) bool {
	var invalid *problem.InvalidError
	for _, name := range []error{problem.ErrNotFound, problem.ErrConflict, problem.ErrState} {
		if errors.Is(err, name) {
			return true
		}
	}
	return errors.As(err, &invalid)
}

// Where others change the same all the time, an operation gives up with a conflict rather
// than go on for ever.
func TestAlwaysOvertaken(t *testing.T) {
	w := newWorld(t)
	c := w.piv()
	cs := *w.Credentials
	turns := 0
	cs.Table = overtaking{w.Table, func() {
		turns++
		must(w.Update(t.Context(), w.core, admin, tenant.RoleAdmin, c.ID, 0, func(a *About) { a.Label = fmt.Sprint("Turn ", turns) }))(t)
	}}
	for name, run := range map[string]func() error{
		"Update": func() error {
			_, err := cs.Update(t.Context(), w.core, admin, tenant.RoleAdmin, c.ID, 0, func(a *About) { a.Holder = bob })
			return err
		},
		"Delete": func() error { return cs.Delete(t.Context(), w.core, admin, c.ID, 0, true) },
		"ClaimPUK": func() error {
			_, err := cs.ClaimPUK(t.Context(), w.core, admin, c.ID, Claim{PUK: given(pukB)})
			return err
		},
	} {
		if err := run(); !errors.Is(err, problem.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if now := w.reread(c); now.Holder != ada || now.Custody != c.Custody {
		t.Errorf("it has become %+v", now)
	}
	w.check()
}

// overtaking is a table on which somebody else is always faster.
type overtaking struct {
	table.Table
	first func()
}

func (o overtaking) Write(ctx context.Context, ops ...table.Op) error {
	o.first()
	return o.Table.Write(ctx, ops...)
}

// What an operation has found to be there is there still when it writes.
func TestOvertakenOnce(t *testing.T) {
	for _, c := range []struct {
		name  string
		first func(w *world, f fixed) error // comes between
		run   func(cs *Credentials, w *world, f fixed) error
		want  string // of the objections; "" is problem.ErrState
	}{
		{"a template is deleted as a card comes", func(w *world, f fixed) error {
			_, err := w.Register(w.Context(), w.core, admin, New{Family: "GIDS", CardID: gidsCard, Template: f.spare.ID})
			return err
		}, func(cs *Credentials, w *world, f fixed) error {
			return cs.DeleteTemplate(w.Context(), w.core, admin, f.spare.ID, 0)
		}, ""},
		{"a master key is replaced as a card comes", func(w *world, f fixed) error {
			_, err := w.Register(w.Context(), w.core, admin, New{Family: "GIDS", CardID: gidsCard, Template: f.master.ID})
			return err
		}, func(cs *Credentials, w *world, f fixed) error {
			_, err := cs.UpdateTemplate(w.Context(), w.core, admin, f.master.ID, 0, func(*Template) {}, given(keyHex))
			return err
		}, ""},
		{"a card comes as its template goes", func(w *world, f fixed) error {
			return w.DeleteTemplate(w.Context(), w.core, admin, f.spare.ID, 0)
		}, func(cs *Credentials, w *world, f fixed) error {
			_, err := cs.Register(w.Context(), w.core, admin, New{Family: "GIDS", CardID: gidsCard, Template: f.spare.ID})
			return err
		}, "template:unknown"},
		{"a card comes as its holder goes", gone(table.UserKey(acme, bob)), func(cs *Credentials, w *world, f fixed) error {
			_, err := cs.Register(w.Context(), w.core, admin, New{Family: "GIDS", CardID: gidsCard, Template: f.spare.ID, Holder: bob})
			return err
		}, "holder:unknown"},
		{"a card is given to somebody who goes", gone(table.UserKey(acme, bob)), func(cs *Credentials, w *world, f fixed) error {
			_, err := cs.Update(w.Context(), w.core, admin, tenant.RoleAdmin, f.piv.ID, 0, func(a *About) { a.Holder = bob })
			return err
		}, "holder:unknown"},
		{"a template is made as its messaging goes", gone(table.MessagingKey(acme, messaging)), func(cs *Credentials, w *world, f fixed) error {
			_, err := cs.UpdateTemplate(w.Context(), w.core, admin, f.spare.ID, 0, func(x *Template) { x.Messaging = messaging }, nil)
			return err
		}, "messaging:unknown"},
		{"a card is deleted as an unblock begins", func(w *world, f fixed) error {
			leased := must(f.piv.Take("op", w.Now(), time.Minute))(w)
			w.store(leased)
			return nil
		}, func(cs *Credentials, w *world, f fixed) error {
			return cs.Delete(w.Context(), w.core, admin, f.piv.ID, 0, true)
		}, ""},
		{"a PUK is claimed as an unblock begins", func(w *world, f fixed) error {
			leased := must(f.piv.Take("op", w.Now(), time.Minute))(w)
			w.store(leased)
			return nil
		}, func(cs *Credentials, w *world, f fixed) error {
			_, err := cs.ClaimPUK(w.Context(), w.core, admin, f.piv.ID, Claim{PUK: given(pukB)})
			return err
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			f := fixed{piv: w.piv(), master: w.template("GIDS", masterHex), spare: w.template("GIDS", "")}
			for _, tmpl := range []Template{f.master, f.spare} { // they have had the card before
				came := must(w.Register(t.Context(), w.core, admin, New{Family: "GIDS", CardID: gidsCard, Template: tmpl.ID}))(t)
				if err := w.Delete(t.Context(), w.core, admin, came.ID, 0, true); err != nil {
					t.Fatal(err)
				}
			}
			cs := *w.Credentials
			turns := 0
			cs.Table = overtaking{w.Table, func() {
				if turns++; turns == 1 {
					if err := c.first(w, f); err != nil {
						t.Error(err)
					}
				}
			}}
			err := c.run(&cs, w, f)
			if got := objections(err); c.want == "" && !errors.Is(err, problem.ErrState) || c.want != "" && !slices.Equal(got, []string{c.want}) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func gone(key table.Key) func(*world, fixed) error {
	return func(w *world, _ fixed) error { return w.Table.Write(w.Context(), table.Delete(key, table.Whatever())) }
}
