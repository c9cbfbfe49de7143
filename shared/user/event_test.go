package user

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// waiting lets rules wait for events of types.
func waiting(types ...event.Type) func(*tenant.Core) {
	return func(c *tenant.Core) {
		for _, t := range types {
			c.Watch.Types = append(c.Watch.Types, string(t))
		}
	}
}

// TestEvents shows that each change tells its event, in the Write of the change, where a rule
// waits for it, and else none.
func TestEvents(t *testing.T) {
	all := []event.Type{event.UserCreated, event.PINSet, event.PINExpired, event.PINLocked}
	want := map[string]string{}
	life := func(w *world) {
		ada := w.user("ada", "")
		if err := w.set(ada, pinA); err != nil {
			t.Fatal(err)
		}
		want["user.created"], want["pin.set"] = "", "chosen"
		for range w.core.Policy.MaxAttempts + 3 { // locked once
			w.verify("ada", pinC)
			w.verify("nobody", pinC)
		}
		want["pin.locked"] = ""
		w.pass(48 * time.Hour)
		if done, err := w.ExpirePIN(t.Context(), w.core, sweep, w.reread(ada)); err != nil || !done {
			t.Fatal(done, err)
		}
		want["pin.expired"] = ""
	}
	w := newWorld(t, expiring, waiting(all...))
	life(w)
	events, _, err := event.List(t.Context(), w.Table, acme, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range events {
		got[string(e.Type)] = e.Attributes["how"]
	}
	if diff := cmp.Diff(want, got); diff != "" || len(events) != len(all) {
		t.Errorf("%d events, want %d; -want +got:\n%s", len(events), len(all), diff)
	}

	w = newWorld(t, expiring)
	life(w)
	if events, _, err := event.List(t.Context(), w.Table, acme, "", 100); err != nil || len(events) != 0 {
		t.Errorf("without rules there are %d events, %v", len(events), err)
	}
}

// TestEndPIN shows that a PIN can be made to expire at once.
func TestEndPIN(t *testing.T) {
	w := newWorld(t, pinOnly)
	ada := w.user("ada", pinA)
	refused := table.Check(table.UserKey(acme, "01ARZ3NDEKTSV4RRFFQ69G5FAV"), table.IfVersion(1))
	if _, err := w.EndPIN(t.Context(), w.core, admin, ada.ID, refused); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("with an op whose condition does not hold: %v", err)
	}
	if !w.verify("ada", pinA).Right {
		t.Error("the PIN is gone though the caller's op was refused")
	}
	if _, err := w.EndPIN(t.Context(), w.core, admin, ada.ID); err != nil {
		t.Fatal(err)
	}
	if u := w.reread(ada); u.PIN.State(w.Now()) != NoPIN || u.PIN.Deleted != "expired" {
		t.Errorf("PIN is %s, deleted %q", u.PIN.State(w.Now()), u.PIN.Deleted)
	}
	if w.verify("ada", pinA).Right || w.identify("lobby", pinA).Right {
		t.Error("the PIN lets in still")
	}
	if _, err := w.EndPIN(t.Context(), w.core, admin, ada.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("once more: %v", err)
	}
}

func TestByMail(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada", "")
	find := func(address, want string, wantErr error) {
		t.Helper()
		u, err := w.ByMail(t.Context(), acme, address)
		if u.ID != want || !errors.Is(err, wantErr) {
			t.Errorf("%s is %q, %v; want %q, %v", address, u.ID, err, want, wantErr)
		}
	}
	find("ADA@acme.example", ada.ID, nil)
	find("bob@acme.example", "", problem.ErrNotFound)
	if _, err := w.Update(t.Context(), w.core, admin, ada.ID, 0, func(p *Profile) { p.Mail = "ada@home.example" }, nil); err != nil {
		t.Fatal(err)
	}
	find("ada@acme.example", "", problem.ErrNotFound)
	find("ada@home.example", ada.ID, nil)
	bob := must(w.Create(t.Context(), w.core, admin, Profile{Username: "bob", Mail: "Ada@home.example"}, nil))(t)
	find("ada@home.example", "", problem.ErrState) // several
	if err := w.Delete(t.Context(), w.core, admin, ada.ID); err != nil {
		t.Fatal(err)
	}
	find("ada@home.example", bob.ID, nil)
	find(string(make([]byte, 3000)), "", problem.ErrNotFound)
}
