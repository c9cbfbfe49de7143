package user

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
)

// What is shown of a PIN: who made it, when, by which policy; never the PIN.
func TestSetPIN(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada", "")
	w.pass(time.Hour)
	w.core.Policy.Version = 7
	got, err := w.SetPIN(t.Context(), w.core, admin, ada.ID, secret.New(pinA))
	want := PIN{SetAt: start.Add(time.Hour), By: admin, PolicyVersion: 7, verifier: got.PIN.verifier}
	if d := cmp.Diff(want, got.PIN, whole); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if d := cmp.Diff(got, w.reread(ada), whole); d != "" || got.Version != 2 {
		t.Errorf("version %d (-returned +stored):\n%s", got.Version, d)
	}
	if !w.verify("ada", pinA).Right {
		t.Error("it does not verify")
	}
	if _, err := w.SetPIN(t.Context(), w.core, admin, "01ARZ3NDEKTSV4RRFFQ69G5FAV", secret.New(pinA)); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("nobody's: %v", err)
	}
	if d := cmp.Diff([]string{"user.created", "pin.set", "pin.verify"}, w.actions(ada)); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
}

func TestDeletePIN(t *testing.T) {
	w := newWorld(t, pinOnly)
	ada := w.user("ada", pinA)
	for range 2 { // the second time there is nothing to delete
		got := must(w.DeletePIN(t.Context(), w.core, admin, ada.ID))(t)
		want := PIN{SetAt: start, By: admin, PolicyVersion: 1, DeletedAt: start, Deleted: "deleted"}
		if d := cmp.Diff(want, got.PIN, whole, cmpopts.EquateEmpty()); d != "" || got.Version != 2 {
			t.Errorf("version %d (-want +got):\n%s", got.Version, d)
		}
	}
	if w.verify("ada", pinA).Right || w.identify("lobby", pinA).Right {
		t.Error("the PIN still lets in")
	}
	w.check([]string{"ada"}, []string{pinA})
}

// Each PIN that is generated is one that its policy accepts, for its user.
func TestGeneratedPINsObeyThePolicy(t *testing.T) {
	classes := func(c *tenant.Core) {
		c.Policy.Alphabet, c.Policy.RequireClasses = pin.Printable, []pin.Class{pin.Digit, pin.Lower, pin.Upper, pin.Special}
	}
	strict := func(c *tenant.Core) { c.Policy.MaxRun, c.Policy.DisallowConstantDelta = 2, true }
	for _, c := range []struct {
		name string
		edit []func(*tenant.Core)
		opts pin.GenerateOptions
		form string // of the characters
		size int
	}{
		{"the usual", nil, pin.GenerateOptions{}, "0123456789", 4},
		{"long", nil, pin.GenerateOptions{Length: 12}, "0123456789", 12},
		{"strict", []func(*tenant.Core){strict}, pin.GenerateOptions{}, "0123456789", 4},
		{"all classes", []func(*tenant.Core){classes}, pin.GenerateOptions{Length: 6}, "", 6},
		{"identifying, not used before", []func(*tenant.Core){pinOnly, history(24)}, pin.GenerateOptions{}, "0123456789", 4},
	} {
		w, p := newMailWorld(t, c.edit...)
		// Most four-digit parts of her data would be PINs.
		pr := Profile{Username: "ada73915846", Mail: "a2864.0597@acme.example", Phone: "+49 170 5028-1736", StaffNumber: "94062751"}
		ada := must(w.Create(t.Context(), w.core, admin, pr, nil))(t)
		about := pin.Context{Username: pr.Username, Mail: pr.Mail, Phone: pr.Phone, StaffNumber: pr.StaffNumber}
		for range 100 {
			u, made, err := w.GeneratePIN(t.Context(), w.core, admin, ada.ID, c.opts)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if vs := w.core.Policy.Check(made, about); vs != nil {
				t.Errorf("%s: made %s: %v", c.name, made.Reveal(), vs)
			}
			if n := len(made.Reveal()); n != c.size || c.form != "" && strings.Trim(made.Reveal(), c.form) != "" {
				t.Errorf("%s: made %s", c.name, made.Reveal())
			}
			if !w.core.Keys.Matches(u.PIN.verifier, u.ID, made) {
				t.Errorf("%s: the PIN set is another one", c.name)
			}
		}
		for range 30 { // mailed ones too
			was := w.reread(ada).PIN
			w.pass(sameCall)
			w.send(p, w.issue(ada, Issue{Options: c.opts}))
			made := secret.New(pinIn(p.mails[len(p.mails)-1]))
			if vs := w.core.Policy.Check(made, about); vs != nil || used(w.core, User{ID: ada.ID, PIN: was}, made) {
				t.Errorf("%s: mailed %s: %v, or had before", c.name, made.Reveal(), vs)
			}
			if n := len(made.Reveal()); n != c.size || !w.core.Keys.Matches(w.reread(ada).PIN.verifier, ada.ID, made) {
				t.Errorf("%s: mailed %s, or the PIN set is another one", c.name, made.Reveal())
			}
		}
		if n := w.reasons("pin.generated")[""]; n != 100 {
			t.Errorf("%s: %d records of 100", c.name, n)
		}
	}
}

func TestGenerateWhatCannotBe(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada", pinA)
	for _, c := range []struct {
		opts pin.GenerateOptions
		want string
	}{
		{pin.GenerateOptions{Length: 3}, "length:range"},
		{pin.GenerateOptions{Length: 17}, "length:range"},
		{pin.GenerateOptions{Alphabet: pin.Printable}, "alphabet:inconsistent"},
	} {
		_, made, err := w.GeneratePIN(t.Context(), w.core, admin, ada.ID, c.opts)
		if d := cmp.Diff([]string{c.want}, objections(err)); d != "" || !made.Empty() {
			t.Errorf("%+v: %v (-want +got):\n%s", c.opts, err, d)
		}
	}
	if !w.verify("ada", pinA).Right {
		t.Error("the old PIN is gone")
	}
}

// draws makes Generate draw the given PINs of digits one after the other, the
// last for ever.
type draws []string

func (d *draws) Read(b []byte) (int, error) {
	s := (*d)[0]
	if len(*d) > 1 {
		*d = (*d)[1:]
	}
	for i := range b {
		b[i] = s[i%len(s)] - '0'
	}
	return len(b), nil
}

func TestGeneratePassesOverFormerPINs(t *testing.T) {
	w := newWorld(t, history(2))
	ada := w.user("ada", "7392")
	w.Rand = &draws{"7392", "2864"}
	_, made, err := w.GeneratePIN(t.Context(), w.core, admin, ada.ID, pin.GenerateOptions{})
	if err != nil || made.Reveal() != "2864" {
		t.Errorf("made %q, %v", made.Reveal(), err)
	}
	_, _, err = w.GeneratePIN(t.Context(), w.core, admin, ada.ID, pin.GenerateOptions{}) // nothing but 2864 is drawn
	if d := cmp.Diff([]string{"pin:reused"}, objections(err)); d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

func TestGeneratePassesOverTakenPINs(t *testing.T) {
	w := newWorld(t, pinOnly)
	w.user("ada", "7392")
	bob := w.user("bob", "")
	w.Rand = &draws{"7392", "7392", "2864"}
	_, made, err := w.GeneratePIN(t.Context(), w.core, admin, bob.ID, pin.GenerateOptions{})
	if err != nil || made.Reveal() != "2864" {
		t.Errorf("made %q, %v", made.Reveal(), err)
	}
	w.Rand = &draws{"7392"}
	_, made, err = w.GeneratePIN(t.Context(), w.core, admin, bob.ID, pin.GenerateOptions{})
	if !errors.Is(err, problem.ErrState) || !made.Empty() {
		t.Errorf("when all are taken: made %q, %v", made.Reveal(), err)
	}
}

func TestGenerateWithoutRandomness(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada", pinA)
	w.Rand = bytes.NewReader(nil)
	if _, made, err := w.GeneratePIN(t.Context(), w.core, admin, ada.ID, pin.GenerateOptions{}); !errors.Is(err, io.EOF) || !made.Empty() {
		t.Errorf("made %q, %v", made.Reveal(), err)
	}
}

// With history n, a PIN comes back only after n others.
func TestHistory(t *testing.T) {
	had := []string{pinA, pinB, pinC, pinD} // in this order
	for n, again := range map[int]map[string]bool{
		0: {pinA: true, pinB: true, pinC: true, pinD: true},
		1: {pinA: true, pinB: true, pinC: true, pinD: false},
		3: {pinA: true, pinB: false, pinC: false, pinD: false},
	} {
		for candidate, good := range again {
			for _, deleted := range []bool{false, true} {
				w := newWorld(t, history(n))
				ada := w.user("ada", "")
				for _, pin := range had {
					if err := w.set(ada, pin); err != nil {
						t.Fatal(err)
					}
				}
				if deleted {
					must(w.DeletePIN(t.Context(), w.core, admin, ada.ID))(t)
				}
				w.pass(sameCall)
				err := w.set(ada, candidate)
				if want := []string{"pin:reused"}; good != (err == nil) || !good && !cmp.Equal(want, objections(err)) {
					t.Errorf("history %d, the last one deleted %v: %s again: %v", n, deleted, candidate, err)
				}
			}
		}
	}
}

// A PIN keeps the end it was given: a later policy is for later PINs.
func TestExpiryIsFixedWhenThePINIsMade(t *testing.T) {
	w := newWorld(t, expiring)
	ada, bob := w.user("ada", pinA), w.user("bob", "")
	fixed := func(u User, expires, notify time.Time, policy int64) {
		t.Helper()
		p := w.reread(u).PIN
		notice := Notice{}
		if !notify.IsZero() {
			notice = Notice{Hours: 24, State: NoticePlanned, At: notify}
		}
		if !p.ExpiresAt.Equal(expires) || !p.NotifyAt.Equal(notify) || p.Notice != notice || p.PolicyVersion != policy {
			t.Errorf("%s: expires %s, notify %s, %+v, policy %d; want %s, %s, %d", u.Profile.Username, p.ExpiresAt, p.NotifyAt, p.Notice, p.PolicyVersion, expires, notify, policy)
		}
	}
	h := func(n int) time.Time { return start.Add(time.Duration(n) * time.Hour) }
	fixed(ada, h(48), h(24), 1)

	w.core.Policy.ExpirationHours, w.core.Policy.NotifyHoursBefore, w.core.Policy.Version = 0, nil, 2
	w.pass(time.Hour)
	must(w.Update(t.Context(), w.core, admin, ada.ID, 0, func(p *Profile) { p.DisplayName = "Ada" }, nil))(t)
	must(w.Update(t.Context(), w.core, admin, bob.ID, 0, func(*Profile) {}, given(pinB)))(t)
	fixed(ada, h(48), h(24), 1)
	fixed(bob, time.Time{}, time.Time{}, 2)

	w.core.Policy.ExpirationHours, w.core.Policy.Version = 10, 3
	if err := w.set(ada, pinC); err != nil {
		t.Fatal(err)
	}
	fixed(ada, h(11), time.Time{}, 3)
	w.check(nil, nil)

	for passed, want := range map[time.Duration]State{0: IsSet, 10*time.Hour - 1: IsSet, 10 * time.Hour: Expired, 1000 * time.Hour: Expired} {
		if got := w.reread(ada).PIN.State(h(1).Add(passed)); got != want {
			t.Errorf("after %s it is %s, want %s", passed, got, want)
		}
	}
	if got := w.reread(bob).PIN.State(h(1_000_000)); got != IsSet {
		t.Errorf("a PIN without end is %s", got)
	}
}

// With PIN-only login, a PIN is one person's; who is refused it does not learn
// whose. It is free again once that person has it no more.
func TestTakenPINs(t *testing.T) {
	for name, free := range map[string]func(*world, User) error{
		"changed":            func(w *world, ada User) error { return w.set(ada, pinC) },
		"deleted":            func(w *world, ada User) error { _, err := w.DeletePIN(w.Context(), w.core, admin, ada.ID); return err },
		"gone with its user": func(w *world, ada User) error { return w.Users.Delete(w.Context(), w.core, admin, ada.ID) },
		"generated a new one": func(w *world, ada User) error {
			_, _, err := w.GeneratePIN(w.Context(), w.core, admin, ada.ID, pin.GenerateOptions{})
			return err
		},
		"expired": func(w *world, ada User) error {
			w.pass(48 * time.Hour)
			done, err := w.ExpirePIN(w.Context(), w.core, sweep, w.reread(ada))
			if !done {
				err = errors.Join(err, errors.New("not expired"))
			}
			return err
		},
		"made anew without PIN-only login": func(w *world, ada User) error {
			core := w.core
			core.Tenant.Settings.PINOnlyLogin = false
			_, err := w.SetPIN(w.Context(), core, admin, ada.ID, secret.New(pinA))
			return err
		},
	} {
		w := newWorld(t, pinOnly, expiring)
		ada, bob := w.user("ada", pinA), w.user("bob", pinB)
		err := w.set(bob, pinA)
		if d := cmp.Diff([]string{"pin:unavailable"}, objections(err)); d != "" {
			t.Fatalf("taken: %v (-want +got):\n%s", err, d)
		}
		for _, word := range []string{"ada", "user", "taken", "another person", ada.ID, pinA} {
			if strings.Contains(strings.ToLower(err.Error()), strings.ToLower(word)) {
				t.Errorf("the refusal says %q: %v", word, err)
			}
		}
		if err := w.set(ada, pinA); err != nil {
			t.Errorf("her own again: %v", err)
		}
		if err := free(w, ada); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := w.set(bob, pinA); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		w.check([]string{"ada", "bob"}, []string{pinA, pinB, pinC})
	}
}

func TestRacingForAPIN(t *testing.T) {
	w := newWorld(t, pinOnly)
	var users []User
	for i := range 20 {
		users = append(users, w.user(numbered("u", i), ""))
	}
	won := 0
	for _, err := range racing(20, func(i int) error { return w.set(users[i], pinA) }) {
		if err == nil {
			won++
		} else if d := cmp.Diff([]string{"pin:unavailable"}, objections(err)); d != "" {
			t.Errorf("%v (-want +got):\n%s", err, d)
		}
	}
	if won != 1 {
		t.Errorf("%d users have the PIN", won)
	}
	w.check(nil, []string{pinA})
}

// A person who chooses among identifying PINs and is refused has learned one:
// that is allowed as often as guessing is. Administrators are not limited.
func TestOwnChoiceIsLimited(t *testing.T) {
	w := newWorld(t, pinOnly)
	taken := []string{pinA, pinB, pinC, pinD, pinE, "40738291"}
	for i, pin := range taken {
		w.user(numbered("u", i), pin)
	}
	bob := w.user("bob", "")
	self := audit.Actor{Kind: audit.Self, ID: bob.ID}
	choose := map[string]func(string) error{
		"set": func(pin string) error {
			_, err := w.SetPIN(t.Context(), w.core, self, bob.ID, secret.New(pin))
			return err
		},
		"update": func(pin string) error {
			_, err := w.Update(t.Context(), w.core, self, bob.ID, 0, func(*Profile) {}, given(pin))
			return err
		},
	}
	for name, choose := range choose {
		for range 20 { // what the policy refuses tells nothing, and does not count
			if d := cmp.Diff([]string{"pin:tooShort"}, objections(choose("73"))); d != "" {
				t.Errorf("%s: a short PIN (-want +got):\n%s", name, d)
			}
		}
		for i := range 5 {
			if d := cmp.Diff([]string{"pin:unavailable"}, objections(choose(taken[i]))); d != "" {
				t.Errorf("%s: choice %d (-want +got):\n%s", name, i, d)
			}
		}
		for _, pin := range []string{taken[5], "19283746"} { // a free one neither
			var limit *problem.LimitError
			if err := choose(pin); !errors.As(err, &limit) || !limit.Until.Equal(w.Now().Add(15*time.Minute)) {
				t.Errorf("%s: after 5 taken ones: %v", name, err)
			}
		}
		if err := w.set(bob, "19283746"); err != nil {
			t.Errorf("%s: an administrator: %v", name, err)
		}
		w.pass(15 * time.Minute)
		if err := choose("31847260"); err != nil {
			t.Errorf("%s: after the lock: %v", name, err)
		}
	}
	if n := w.reasons("pin.choose")["taken"]; n != 10 {
		t.Errorf("%d records of taken PINs, want 10", n)
	}
	w.core.Tenant.Settings.PINOnlyLogin = false
	for i := range 20 {
		if err := choose["set"](taken[i%len(taken)]); err != nil {
			t.Errorf("without PIN-only login: %v", err)
		}
	}
}
