package rule_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/rule"
)

// Wherever a rule is moved, the others keep their order, whatever Order they have.
func TestMove(t *testing.T) {
	w := newWorld(t)
	ids := func() (ids []string) {
		rules, err := w.Rules.List(t.Context(), acme)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			ids = append(ids, r.ID)
		}
		return ids
	}
	for _, order := range []int{9_999, 10_000, 10_000} { // beyond which there is no room
		if _, err := w.Rules.Create(t.Context(), w.core(acme), admin, rule.Rule{Name: "x", Order: order, Event: event.PINSet, Actions: []rule.Action{{Kind: rule.ExpirePIN}}}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 3 { // of six rules, three of which come with the same Order
		for i := range 6 {
			for _, up := range []bool{true, false} {
				want := ids()
				id := want[i]
				if j := i - 1; up && j >= 0 {
					want[i], want[j] = want[j], want[i]
				} else if j := i + 1; !up && j < len(want) {
					want[i], want[j] = want[j], want[i]
				}
				if err := w.Rules.Move(t.Context(), w.core(acme), admin, id, up); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, ids()); diff != "" {
					t.Fatalf("round %d, rule %d, up %v (-want +got):\n%s", round, i, up, diff)
				}
			}
		}
	}
	rules, _ := w.Rules.List(t.Context(), acme)
	if i := slices.IndexFunc(rules, func(r rule.Rule) bool { return r.On }); i >= 0 {
		t.Errorf("moving turned %s on", rules[i].Name)
	}
}
