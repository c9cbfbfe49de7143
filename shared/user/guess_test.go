package user

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
)

// Whoever may set PINs must not learn one by being refused it: former PINs are
// guesses, counted and audited, and are looked at only when nothing else speaks
// against the change.
func TestFormerPINsAreGuesses(t *testing.T) {
	w := newWorld(t, history(1))
	ada := w.user("ada", pinA)
	w.pass(sameCall)
	wrongMail := func(p *Profile) { p.Mail = "x" }
	for _, guess := range []string{pinA, pinB} {
		_, err := w.Update(t.Context(), w.core, admin, ada.ID, 0, wrongMail, given(guess))
		if d := cmp.Diff([]string{"mail:form"}, objections(err)); d != "" {
			t.Errorf("%s with a bad profile (-want +got):\n%s", guess, d)
		}
	}
	for i := range w.core.Policy.MaxAttempts {
		if d := cmp.Diff([]string{"pin:reused"}, objections(w.set(ada, pinA))); d != "" {
			t.Errorf("try %d (-want +got):\n%s", i, d)
		}
	}
	var limit *problem.LimitError
	if err := w.set(ada, pinB); !errors.As(err, &limit) {
		t.Errorf("after too many: %v", err)
	}
	if got := w.reasons("pin.choose")["reused"]; got != w.core.Policy.MaxAttempts {
		t.Errorf("%d refusals are audited, want %d", got, w.core.Policy.MaxAttempts)
	}
	if r := w.verify("ada", pinA); !r.Right {
		t.Errorf("she is locked out: %+v", r)
	}
	w.pass(time.Duration(w.core.Policy.LockMinutes) * time.Minute)
	if err := w.set(ada, pinB); err != nil {
		t.Errorf("after the lock: %v", err)
	}
}

// A call whose answer was lost may be made again.
func TestSettingTheSamePINAgainAtOnce(t *testing.T) {
	w := newWorld(t, history(3), expiring)
	ada := w.user("ada", "")
	if err := errors.Join(w.set(ada, pinA), w.set(ada, pinA)); err != nil {
		t.Errorf("again by the same caller: %v", err)
	}
	before := w.reread(ada)
	other := admin
	other.ID = "k2"
	if _, err := w.SetPIN(t.Context(), w.core, other, ada.ID, *given(pinA)); objections(err) == nil {
		t.Errorf("again by another: %v", err)
	}
	if d := cmp.Diff(before, w.reread(ada), whole); d != "" {
		t.Errorf("she changed:\n%s", d)
	}
}

// The caller names the terminal, so a key has a budget as a whole.
func TestAKeyHasABudgetWhateverTheTerminal(t *testing.T) {
	w := newWorld(t, pinOnly)
	w.user("ada", pinA)
	looked := 0
	for i := range 500 {
		r := w.identify(fmt.Sprint("printer ", i), pinB)
		if r.LockedUntil.IsZero() {
			looked++
		}
	}
	if want := w.core.Policy.MaxAttempts * terminalsAtOnce; looked != want {
		t.Errorf("%d guesses were looked at without a lock, want %d", looked, want)
	}
	if r := w.identify("another", pinA); r.Right {
		t.Error("a locked key identifies")
	}
}

// Right PINs between them do not keep wrong ones from being forgotten.
func TestABusyTerminalForgets(t *testing.T) {
	w := newWorld(t, pinOnly)
	w.user("ada", pinA)
	for range 10 {
		if r := w.identify("lobby", pinB); !r.LockedUntil.IsZero() {
			t.Fatalf("locked: %+v", r)
		}
		for range 12 {
			w.pass(5 * time.Minute)
			if r := w.identify("lobby", pinA); !r.Right {
				t.Fatalf("a right PIN: %+v", r)
			}
		}
	}
}

// A PIN close to what was known of the user before the same call is refused.
func TestContextCannotBeClearedOnTheWay(t *testing.T) {
	w := newWorld(t)
	p := profile("ada")
	p.Phone = "+49 170 8264917"
	ada := must(w.Create(t.Context(), w.core, admin, p, nil))(w)
	_, err := w.Update(t.Context(), w.core, audit.Actor{Kind: audit.Self, ID: ada.ID}, ada.ID, 0, func(p *Profile) { p.Phone = "" }, given("8264917"))
	if d := cmp.Diff([]string{"pin:context"}, objections(err)); d != "" {
		t.Errorf("phone cleared with the PIN set to it (-want +got):\n%s", d)
	}
}
