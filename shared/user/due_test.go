package user

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/table"
)

// due returns whose turn it is, as the sweep reads it in pages of two.
func (w *world) due() (names []string) {
	w.Helper()
	for shard := range table.DueShards {
		for place := ""; ; {
			page, next, err := w.PINsDueBefore(w.Context(), shard, w.Now(), place, 2)
			if err != nil {
				w.Fatal(err)
			}
			for _, d := range page {
				names = append(names, d.User.Profile.Username)
			}
			if next == "" {
				break
			}
			place = next
		}
	}
	return names
}

// claim claims a notice that is there to be claimed.
func claim(w *world, u User) User {
	w.Helper()
	claimed, ok, err := w.ClaimNotice(w.Context(), w.core, sweep, u, 5*time.Minute)
	if !ok || err != nil {
		w.Fatalf("claim: %v, %v", ok, err)
	}
	return claimed
}

func (w *world) mark(claimed User, d Delivery) bool {
	w.Helper()
	return must(w.MarkNotice(w.Context(), w.core, sweep, claimed, d))(w)
}

func TestDueAtItsTime(t *testing.T) {
	w := newWorld(t, expiring)
	ada := w.user("ada", pinA)
	for _, c := range []struct {
		pass time.Duration
		want []string
	}{
		{24*time.Hour - time.Second, nil},
		{time.Second, []string{"ada"}},
		{23 * time.Hour, []string{"ada"}}, // nobody has seen to it
	} {
		w.pass(c.pass)
		if d := cmp.Diff(c.want, w.due()); d != "" {
			t.Errorf("%s later (-want +got):\n%s", c.pass, d)
		}
	}
	claimed := claim(w, ada)
	if w.due() != nil {
		t.Error("due under a claim")
	}
	w.mark(claimed, Delivery{State: NoticeSent})
	if w.due() != nil {
		t.Error("due when it was announced")
	}
	w.pass(time.Hour)
	if d := cmp.Diff([]string{"ada"}, w.due()); d != "" {
		t.Errorf("when it has expired (-want +got):\n%s", d)
	}
	w.check(nil, nil)
}

// A claim, or the next try, may lie beyond the PIN's end; the end comes first.
func TestPINEndsBeforeItsNotice(t *testing.T) {
	w := newWorld(t, expiring)
	ada := w.user("ada", pinA)
	w.pass(48*time.Hour - time.Minute)
	claimed := claim(w, ada)
	w.pass(time.Minute)
	if d := cmp.Diff([]string{"ada"}, w.due()); d != "" {
		t.Errorf("due at its end, under a claim (-want +got):\n%s", d)
	}
	if done, err := w.ExpirePIN(t.Context(), w.core, sweep, claimed); !done || err != nil {
		t.Errorf("expired: %v, %v", done, err)
	}
}

func TestDueInPages(t *testing.T) {
	w := newWorld(t, expiring)
	for i := range 60 {
		w.user(numbered("u", i), pinA)
	}
	w.pass(24 * time.Hour)
	seen := make(map[string]int)
	for _, name := range w.due() {
		seen[name]++
	}
	for i := range 60 {
		if n := seen[numbered("u", i)]; n != 1 {
			t.Errorf("%s is due %d times", numbered("u", i), n)
		}
	}
}

func TestClaims(t *testing.T) {
	w := newWorld(t, expiring)
	ada := w.user("ada", pinA)
	if _, ok, err := w.ClaimNotice(t.Context(), w.core, sweep, ada, time.Minute); ok || err != nil {
		t.Errorf("before its time: %v, %v", ok, err)
	}
	w.pass(24 * time.Hour)
	won := make([]bool, 20)
	for _, err := range racing(len(won), func(i int) (err error) {
		_, won[i], err = w.ClaimNotice(t.Context(), w.core, sweep, ada, time.Minute)
		return err
	}) {
		if err != nil {
			t.Error(err)
		}
	}
	n := 0
	for _, one := range won {
		if one {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d of 20 racing claims won", n)
	}

	ada = w.reread(ada)
	if _, ok, err := w.ClaimNotice(t.Context(), w.core, sweep, ada, time.Minute); ok || err != nil {
		t.Errorf("under a claim: %v, %v", ok, err)
	}
	w.pass(time.Minute)
	second := claim(w, ada)
	if n := second.PIN.Notice; !n.Repeated || n.Attempts != 2 {
		t.Errorf("claimed after a lease ended without result: %+v", n)
	}
	if w.mark(ada, Delivery{State: NoticeSent}) {
		t.Error("the first claim's result was recorded after its lease")
	}
	if !w.mark(second, Delivery{State: NoticeSent}) {
		t.Error("the second claim's result was not recorded")
	}
	w.pass(23 * time.Hour)
	if _, ok, err := w.ClaimNotice(t.Context(), w.core, sweep, w.reread(ada), time.Minute); ok || err != nil {
		t.Errorf("sent already: %v, %v", ok, err)
	}
	w.check(nil, nil)
}

func TestMarks(t *testing.T) {
	later := start.Add(25 * time.Hour)
	for name, c := range map[string]struct {
		delivery Delivery
		want     Notice
	}{
		"sent":      {Delivery{State: NoticeSent}, Notice{Hours: 24, Told: true, State: NoticeSent, At: start.Add(24 * time.Hour), Attempts: 1}},
		"failed":    {Delivery{State: NoticeFailed, Reason: "smtp.550"}, Notice{Hours: 24, Told: true, State: NoticeFailed, At: start.Add(24 * time.Hour), Attempts: 1, Reason: "smtp.550"}},
		"skipped":   {Delivery{State: NoticeSkipped, Reason: "noAddress"}, Notice{Hours: 24, Told: true, State: NoticeSkipped, At: start.Add(24 * time.Hour), Attempts: 1, Reason: "noAddress"}},
		"postponed": {Delivery{State: NoticePlanned, At: later, Reason: "smtp.421"}, Notice{Hours: 24, Told: true, State: NoticePlanned, At: later, Attempts: 1, Reason: "smtp.421"}},
		"lost":      {Delivery{State: NoticePlanned, At: later, Reason: "smtp.lost", Unknown: true}, Notice{Hours: 24, Told: true, State: NoticePlanned, At: later, Attempts: 1, Reason: "smtp.lost", Repeated: true}},
	} {
		w := newWorld(t, expiring)
		ada := w.user("ada", pinA)
		w.pass(24 * time.Hour)
		claimed := claim(w, ada)
		must(w.Update(t.Context(), w.core, admin, ada.ID, 0, func(p *Profile) { p.DisplayName = "Ada" }, nil))(t) // meanwhile
		if !w.mark(claimed, c.delivery) {
			t.Errorf("%s: not marked", name)
		}
		got := w.reread(ada)
		if d := cmp.Diff(c.want, got.PIN.Notice); d != "" || got.Profile.DisplayName != "Ada" {
			t.Errorf("%s: %q (-want +got):\n%s", name, got.Profile.DisplayName, d)
		}
		records := w.audited()
		last := records[len(records)-1]
		details := map[string]string{"state": string(c.want.State), "hours": "24", "attempt": "1", "messageId": ada.MessageID()}
		if c.want.Repeated {
			details["possiblyRepeated"] = "true"
		}
		if d := cmp.Diff(details, last.Details); d != "" || last.Action != "pin.notice" || last.Reason != c.want.Reason || (last.Outcome == "done") != (name == "sent") {
			t.Errorf("%s: audit has %+v (-want +got):\n%s", name, last, d)
		}
		w.check(nil, nil)
	}
}

// What happened to the PIN between claim and mark is left as it is.
func TestOvertakenNotice(t *testing.T) {
	for name, meanwhile := range map[string]func(*world, User) error{
		"renewed": func(w *world, ada User) error { return w.set(ada, pinB) },
		"deleted": func(w *world, ada User) error { return w.Users.Delete(w.Context(), w.core, admin, ada.ID) },
	} {
		w := newWorld(t, expiring)
		ada := w.user("ada", pinA)
		w.pass(24 * time.Hour)
		claimed := claim(w, ada)
		if err := meanwhile(w, ada); err != nil {
			t.Fatal(err)
		}
		if w.mark(claimed, Delivery{State: NoticeSent}) {
			t.Errorf("%s: marked", name)
		}
		if name == "deleted" {
			continue
		}
		want := Notice{Hours: 24, State: NoticePlanned, At: w.Now().Add(24 * time.Hour)}
		if got := w.reread(ada).PIN.Notice; got != want {
			t.Errorf("%s: the new PIN's notice is %+v", name, got)
		}
		w.pass(24 * time.Hour) // the old one's end
		if done, err := w.ExpirePIN(t.Context(), w.core, sweep, claimed); done || err != nil {
			t.Errorf("%s: expired: %v, %v", name, done, err)
		}
		if !w.verify("ada", pinB).Right {
			t.Errorf("%s: the new PIN is gone", name)
		}
	}
}

// A notice that did not reach its user is planned again when there is a new
// address to send it to, and once only.
func TestNewAddressPlansAgain(t *testing.T) {
	for _, d := range []Delivery{{State: NoticeFailed, Reason: "smtp.550"}, {State: NoticeSkipped, Reason: "noAddress"}, {State: NoticeSent}} {
		w := newWorld(t, expiring)
		ada := w.user("ada", pinA)
		w.pass(24 * time.Hour)
		w.mark(claim(w, ada), d)
		move := func(to string) {
			must(w.Update(t.Context(), w.core, admin, ada.ID, 0, func(p *Profile) { p.Mail = to }, nil))(t)
		}
		move("ada@acme.example") // no other
		if w.due() != nil {
			t.Errorf("%s: due again without a new address", d.State)
		}
		move("ada@new.example")
		if again := len(w.due()) == 1; again != (d.State != NoticeSent) {
			t.Errorf("%s: due again at the new address: %v", d.State, again)
		}
	}
}

// The address changes while the mail to the old one is under way and comes
// back, or while the sweep finds that there is none.
func TestNewAddressMeanwhile(t *testing.T) {
	for _, d := range []Delivery{{State: NoticeFailed, Reason: "smtp.550"}, {State: NoticeSkipped, Reason: "noAddress"}} {
		w := newWorld(t, expiring)
		ada := w.user("ada", pinA)
		w.pass(24 * time.Hour)
		claimed := claim(w, ada)
		must(w.Update(t.Context(), w.core, admin, ada.ID, 0, func(p *Profile) { p.Mail = "ada@new.example" }, nil))(t)
		w.mark(claimed, d)
		w.pass(5 * time.Minute)
		if got := w.due(); len(got) != 1 {
			t.Errorf("%s at the old address: due at the new one: %q, notice %+v", d.State, got, w.reread(ada).PIN.Notice)
		}
	}
}

func TestExpirePIN(t *testing.T) {
	w := newWorld(t, expiring, pinOnly)
	ada := w.user("ada", pinA)
	w.pass(48*time.Hour - 1)
	if done, err := w.ExpirePIN(t.Context(), w.core, sweep, ada); done || err != nil {
		t.Errorf("before its end: %v, %v", done, err)
	}
	if !w.verify("ada", pinA).Right {
		t.Error("before its end it does not verify")
	}
	w.pass(1)
	won := make([]bool, 10)
	errs := racing(len(won), func(i int) (err error) {
		won[i], err = w.ExpirePIN(t.Context(), w.core, sweep, ada)
		return err
	})
	n := 0
	for _, one := range won {
		if one {
			n++
		}
	}
	if n != 1 || errors.Join(errs...) != nil {
		t.Errorf("%d of 10 racing sweeps expired it, %v", n, errors.Join(errs...))
	}
	p := w.reread(ada).PIN
	if p.Deleted != "expired" || !p.DeletedAt.Equal(w.Now()) || p.State(w.Now()) != NoPIN || p.Identifies() {
		t.Errorf("%+v", p)
	}
	if w.due() != nil {
		t.Error("it is still due")
	}
	w.check(nil, []string{pinA})
	if n := w.reasons("pin.expired")[""]; n != 1 {
		t.Errorf("%d records of it", n)
	}
}
