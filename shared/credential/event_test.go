package credential

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/tenant"
)

// A card is told of when it is registered, each time anew, alone or by an import, and when it
// is seen blocked, not when somebody says so.
func TestEventsOfCards(t *testing.T) {
	w := newWorld(t)
	w.core.Watch.Types = []string{string(event.CredentialRegistered), string(event.CredentialBlocked)}
	told := func(want ...string) {
		t.Helper()
		events, _, err := event.List(t.Context(), w.Table, acme, "", 100)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range slices.Backward(events) {
			got = append(got, string(e.Type)+" "+e.Card+" "+e.Attributes["family"])
		}
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
	}
	c := w.piv()
	registered := "credential.registered " + c.ID + " PIV"
	told(registered)
	state := func(s State) {
		t.Helper()
		must(w.Update(t.Context(), w.core, admin, tenant.RoleAdmin, c.ID, 0, func(a *About) { a.State = s }))(t)
	}
	state(Active)
	state(Blocked)
	state(Active)
	told(registered)
	for range 2 {
		must(w.Saw(t.Context(), w.core, admin, c.ID, Sighting{PIN: card.RetryCounter{Known: true}}))(t)
	}
	blocked := "credential.blocked " + c.ID + " PIV"
	told(blocked, registered)

	if err := w.Delete(t.Context(), w.core, admin, c.ID, 0, true); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Second)
	w.piv()
	told(blocked, registered, registered)

	if err := w.Delete(t.Context(), w.core, admin, c.ID, 0, true); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Second)
	tmpl := must(w.Template(t.Context(), acme, c.Template))(t)
	again := must(w.Prepare(w.core, New{Family: c.Family, CardID: c.CardID, Template: c.Template}, tmpl))(t)
	if err := w.RegisterAll(t.Context(), w.core, Batch{Cards: []Credential{again}, Templates: []Template{tmpl}, By: admin, Subject: "import/1"}); err != nil {
		t.Fatal(err)
	}
	told(blocked, registered, registered, registered)
}
