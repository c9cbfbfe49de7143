package user

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
)

const wrong = "99887744"

func TestVerifyByAnyName(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada", pinA)
	for _, ref := range []Ref{{ID: ada.ID}, {Username: "ADA"}, {ExternalID: "ext-ada"}} {
		got := must(w.Verify(t.Context(), w.core, admin, ref, secret.New(pinA)))(t)
		if want := (Result{Right: true, User: ada, TriesLeft: 5}); !cmp.Equal(want, got, whole) {
			t.Errorf("%+v: %+v", ref, got)
		}
	}
	for i, ref := range []Ref{{ID: ada.ID}, {Username: "ADA"}, {ExternalID: "ext-ada"}} { // one budget
		got := must(w.Verify(t.Context(), w.core, admin, ref, secret.New(wrong)))(t)
		if want := (Result{TriesLeft: 4 - i}); got.Right || got.TriesLeft != want.TriesLeft {
			t.Errorf("%+v: %+v", ref, got)
		}
	}
	for ref, good := range map[Ref]bool{
		{ID: "a"}: true, {Username: "a"}: true, {ExternalID: "a"}: true,
		{}: false, {ID: "a", Username: "a"}: false, {Username: "a", ExternalID: "a"}: false, {ID: "a", Username: "a", ExternalID: "a"}: false,
	} {
		if err := ref.Validate(); (err == nil) != good {
			t.Errorf("%+v: %v", ref, err)
		}
	}
}

// Whether the user is unknown, has no PIN, another one or an expired one: six
// guesses get the same six answers. The audit tells them apart.
func TestAnswersDoNotTell(t *testing.T) {
	var first []Result
	for _, c := range []struct {
		name, reason string
		guess        func(*world) string
	}{
		{"another PIN", "wrongPIN", func(w *world) string { w.user("ada", pinA); return wrong }},
		{"an empty guess", "wrongPIN", func(w *world) string { w.user("ada", pinA); return "" }},
		{"a 10 MB guess", "wrongPIN", func(w *world) string { w.user("ada", pinA); return strings.Repeat("7", 10<<20) }},
		{"another user's PIN", "wrongPIN", func(w *world) string { w.user("ada", pinA); w.user("bob", pinB); return pinB }},
		{"unknown user", "unknownUser", func(*world) string { return pinA }},
		{"no PIN", "noPIN", func(w *world) string { w.user("ada", ""); return pinA }},
		{"a deleted PIN", "noPIN", func(w *world) string {
			must(w.DeletePIN(w.Context(), w.core, admin, w.user("ada", pinA).ID))(w)
			return pinA
		}},
		{"an expired PIN, right", "expired", func(w *world) string { w.user("ada", pinA); return pinA }},
		{"an expired PIN, wrong", "expired", func(w *world) string { w.user("ada", pinA); return wrong }},
	} {
		w := newWorld(t)
		if c.reason == "expired" {
			expiring(&w.core)
		}
		guess := c.guess(w)
		w.pass(48 * time.Hour)
		var answers []Result
		for range 6 {
			answers = append(answers, w.verify("ada", guess))
		}
		if first == nil {
			first = answers
		}
		if d := cmp.Diff(first, answers, whole); d != "" {
			t.Errorf("%s: the answers tell:\n%s", c.name, d)
		}
		if d := cmp.Diff(map[string]int{c.reason: 5, "locked": 1}, w.reasons("pin.verify")); d != "" {
			t.Errorf("%s: audit (-want +got):\n%s", c.name, d)
		}
	}
	locked := start.Add(48*time.Hour + 15*time.Minute)
	want := []Result{{TriesLeft: 4}, {TriesLeft: 3}, {TriesLeft: 2}, {TriesLeft: 1}, {LockedUntil: locked}, {LockedUntil: locked}}
	if d := cmp.Diff(want, first, whole); d != "" {
		t.Errorf("the answers (-want +got):\n%s", d)
	}
}

// However many guess at the same time, no more are compared than allowed.
func TestParallelGuesses(t *testing.T) {
	for name, reason := range map[string]string{"ada": "wrongPIN", "nobody": "unknownUser"} {
		w := newWorld(t)
		w.user("ada", pinA)
		left := make([]Result, 1000)
		for _, err := range racing(len(left), func(i int) (err error) {
			left[i], err = w.Verify(t.Context(), w.core, admin, Ref{Username: name}, secret.New(wrong))
			return err
		}) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if d := cmp.Diff(map[string]int{reason: 5, "locked": 995}, w.reasons("pin.verify")); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		tries := make(map[int]int)
		for _, r := range left {
			tries[r.TriesLeft]++
		}
		if d := cmp.Diff(map[int]int{4: 1, 3: 1, 2: 1, 1: 1, 0: 996}, tries); d != "" {
			t.Errorf("%s: tries left (-want +got):\n%s", name, d)
		}
	}
}

// The right PIN among many wrong ones at the same time: found at most once for
// each budget, and never when locked.
func TestParallelGuessesWithOneRight(t *testing.T) {
	w := newWorld(t)
	w.user("ada", pinA)
	right := make([]bool, 300)
	for _, err := range racing(len(right), func(i int) error {
		guess := wrong
		if i == 150 {
			guess = pinA
		}
		r, err := w.Verify(t.Context(), w.core, admin, Ref{Username: "ada"}, secret.New(guess))
		right[i] = r.Right
		return err
	}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := w.reasons("pin.verify")
	budgets := 1
	if right[150] {
		budgets = 2 // it was reset once
	}
	if got["wrongPIN"] > budgets*5 || got[""] != budgets-1 || slices.Contains(append(right[:150:150], right[151:]...), true) {
		t.Errorf("%v, right: %v", got, right[150])
	}
}

func TestLock(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada", pinA)
	until := start.Add(15 * time.Minute)
	tries := func(want ...int) {
		t.Helper()
		for _, n := range want {
			if got := w.verify("ada", wrong); got.Right || got.TriesLeft != n || got.LockedUntil.IsZero() != (n > 0) {
				t.Fatalf("%+v, want %d tries left", got, n)
			}
		}
	}
	tries(4, 3, 2, 1, 0)
	left, lockedUntil, err := w.Attempts(t.Context(), w.core, ada.ID)
	if left != 0 || !lockedUntil.Equal(until) || err != nil {
		t.Errorf("shown: %d tries, until %s, %v", left, lockedUntil, err)
	}
	w.pass(15*time.Minute - time.Second)
	if got := w.verify("ada", pinA); got.Right || !got.LockedUntil.Equal(until) {
		t.Errorf("the right PIN under lock: %+v", got)
	}
	w.pass(time.Second)
	tries(4, 3) // a whole new budget

	if !w.verify("ada", pinA).Right {
		t.Error("the right PIN")
	}
	tries(4, 3) // and again

	w.pass(15 * time.Minute) // wrong ones are forgotten
	tries(4, 3, 2, 1, 0)

	if err := w.Unlock(t.Context(), w.core, admin, ada.ID); err != nil {
		t.Fatal(err)
	}
	tries(4, 3, 2, 1, 0)
	if err := w.set(ada, pinB); err != nil { // a new PIN begins anew
		t.Fatal(err)
	}
	tries(4)
	if left, lockedUntil, err := w.Attempts(t.Context(), w.core, ada.ID); left != 4 || !lockedUntil.IsZero() || err != nil {
		t.Errorf("shown: %d tries, until %s, %v", left, lockedUntil, err)
	}
	w.core.Policy.MaxAttempts = 2 // a stricter policy holds for guesses made before
	tries(0)

	if err := w.Unlock(t.Context(), w.core, admin, "01ARZ3NDEKTSV4RRFFQ69G5FAV"); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("unlock nobody: %v", err)
	}
	if n := w.reasons("pin.unlocked")[""]; n != 1 {
		t.Errorf("%d records of unlocking", n)
	}
}

// Who comes when the lock ends, as it was told, has all tries again.
func TestLockEndsWhenItSays(t *testing.T) {
	w := newWorld(t)
	w.pass(900 * time.Millisecond)
	w.user("ada", pinA)
	var last Result
	for range 5 {
		last = w.verify("ada", wrong)
	}
	w.past.Store(int64(last.LockedUntil.Sub(start)))
	if got := w.verify("ada", wrong); got.TriesLeft != 4 || !got.LockedUntil.IsZero() {
		t.Errorf("a wrong PIN at %s: %d tries left, locked until %s", w.Now(), got.TriesLeft, got.LockedUntil)
	}
}

func TestIdentify(t *testing.T) {
	w := newWorld(t, pinOnly)
	ada := w.user("ada", pinA)
	got := w.identify("lobby", pinA)
	if want := (Result{Right: true, User: ada, TriesLeft: 5}); !cmp.Equal(want, got, whole) {
		t.Errorf("%+v", got)
	}
	w.core.Tenant.Settings.PINOnlyLogin = false
	if _, err := w.Identify(t.Context(), w.core, admin, "lobby", secret.New(pinA)); !errors.Is(err, problem.ErrState) {
		t.Errorf("without PIN-only login: %v", err)
	}
	pinOnly(&w.core)
	bob := w.user("bob", "")
	core := w.core
	core.Tenant.Settings.PINOnlyLogin = false
	must(w.SetPIN(t.Context(), core, admin, bob.ID, secret.New(pinB)))(t)
	if got := w.identify("lobby", pinB); got.Right {
		t.Error("a PIN made without PIN-only login identifies")
	}
}

// A right PIN gives a terminal its own try back and no more, or who knows one
// PIN could guess the others.
func TestTerminalsHaveABudgetEach(t *testing.T) {
	w := newWorld(t, pinOnly)
	w.user("ada", pinA)
	other := audit.Actor{Kind: audit.API, ID: "k2"}
	steps := []struct {
		by       audit.Actor
		terminal string
		pin      string
		right    bool
		tries    int
	}{
		{admin, "lobby", wrong, false, 4},
		{admin, "lobby", wrong, false, 3},
		{admin, "lobby", pinA, true, 5},
		{admin, "lobby", wrong, false, 2},
		{admin, "lobby", wrong, false, 1},
		{admin, "desk", wrong, false, 4},
		{admin, "lobby", pinA, true, 5}, // the last try, right
		{admin, "lobby", wrong, false, 0},
		{admin, "lobby", pinA, false, 0}, // locked
		{admin, "desk", pinA, true, 5},
		{other, "lobby", pinA, true, 5},
		{admin, "", pinA, true, 5},
	}
	for i, s := range steps {
		got := must(w.Identify(t.Context(), w.core, s.by, s.terminal, secret.New(s.pin)))(t)
		if got.Right != s.right || got.TriesLeft != s.tries || got.LockedUntil.IsZero() != (s.tries > 0) {
			t.Errorf("step %d: %+v, want right %v, %d tries", i, got, s.right, s.tries)
		}
	}
	if d := cmp.Diff(map[string]int{"": 5, "wrongPIN": 6, "locked": 1}, w.reasons("pin.identify")); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
	w.pass(15 * time.Minute)
	if got := w.identify("lobby", wrong); got.TriesLeft != 4 {
		t.Errorf("after the lock: %+v", got)
	}
}

func TestParallelIdentify(t *testing.T) {
	w := newWorld(t, pinOnly)
	w.user("ada", pinA)
	for _, err := range racing(300, func(int) error {
		_, err := w.Identify(t.Context(), w.core, admin, "lobby", secret.New(wrong))
		return err
	}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(map[string]int{"wrongPIN": 5, "locked": 295}, w.reasons("pin.identify")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Right ones at the same time as wrong ones give back what they took.
func TestParallelIdentifyGivesBack(t *testing.T) {
	w := newWorld(t, pinOnly, func(c *tenant.Core) { c.Policy.MaxAttempts = 100 })
	w.user("ada", pinA)
	for _, err := range racing(40, func(i int) error {
		_, err := w.Identify(t.Context(), w.core, admin, "lobby", secret.New([]string{pinA, wrong}[i%2]))
		return err
	}) {
		if err != nil && !errors.Is(err, problem.ErrUnavailable) { // more than it tries
			t.Fatal(err)
		}
	}
	got := w.identify("lobby", wrong)
	if most := 100 - 20 - 1; got.TriesLeft > most || got.TriesLeft < most-20 {
		t.Errorf("%d tries left after 21 wrong ones of 100", got.TriesLeft)
	}
}

// Who does not identify, and what the audit says of it. The answer is that to
// a wrong PIN.
func TestWhoDoesNotIdentify(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*world)
		reason  string
		subject bool // the audit names the user
	}{
		"nobody's PIN": {func(*world) {}, "wrongPIN", false},
		"locked": {func(w *world) {
			w.user("ada", pinA)
			for range 5 {
				w.verify("ada", wrong)
			}
		}, "locked", true},
		"expired": {func(w *world) {
			expiring(&w.core)
			w.user("ada", pinA)
			w.pass(48 * time.Hour)
		}, "expired", true},
		"another tenant's": {func(w *world) {
			core := w.newCore("globex")
			pinOnly(&core)
			must(w.Create(w.Context(), core, admin, profile("ada"), given(pinA)))(w)
			r, err := w.Identify(w.Context(), core, admin, "lobby", secret.New(pinA))
			if !r.Right || err != nil {
				w.Errorf("in its own tenant: %+v, %v", r, err)
			}
		}, "wrongPIN", false},
	} {
		w := newWorld(t, pinOnly)
		c.prepare(w)
		got := w.identify("lobby", pinA)
		if want := (Result{TriesLeft: 4}); !cmp.Equal(want, got, whole) {
			t.Errorf("%s: %+v", name, got)
		}
		if d := cmp.Diff(map[string]int{c.reason: 1}, w.reasons("pin.identify")); d != "" {
			t.Errorf("%s: audit (-want +got):\n%s", name, d)
		}
		records := w.audited()
		if last := records[len(records)-1]; (last.Subject != "") != c.subject || !maps.Equal(last.Details, map[string]string{"terminal": "lobby"}) {
			t.Errorf("%s: audit has subject %q, details %v", name, last.Subject, fmt.Sprint(last.Details))
		}
	}
}
