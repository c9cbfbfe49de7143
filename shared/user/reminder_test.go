package user

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

// reminding lets PINs live ten days and reminds of their end.
func reminding(hours ...int) func(*tenant.Core) {
	return func(c *tenant.Core) { c.Policy.ExpirationHours, c.Policy.NotifyHoursBefore = 240, pin.Hours(hours) }
}

// at brings the clock to so many hours before the end of a PIN of reminding, set at the start.
func (w *world) at(before float64) {
	w.past.Store(int64(240*time.Hour) - int64(before*float64(time.Hour)))
}

// told are the attributes of the events of a type, the oldest first.
func (w *world) toldOf(kind event.Type, attribute string) (all []string) {
	w.Helper()
	events, _, err := event.List(w.Context(), w.Table, acme, "", 100)
	if err != nil {
		w.Fatal(err)
	}
	for i := range events {
		if e := events[len(events)-1-i]; e.Type == kind {
			all = append(all, e.Attributes[attribute])
		}
	}
	return all
}

// remindOnce does what a sweep does for a user who can be mailed, and returns which reminder
// that was; 0 if none is due.
func (w *world) remindOnce(u User) int {
	w.Helper()
	claimed, ok, err := w.ClaimNotice(w.Context(), w.core, sweep, w.reread(u), time.Minute)
	if err != nil {
		w.Fatal(err)
	}
	if !ok {
		return 0
	}
	w.mark(claimed, Delivery{State: NoticeSent})
	return claimed.PIN.Notice.Hours
}

// Each reminder is sent once, in order, whatever order the policy has them in, and told to
// rules once.
func TestSeveralReminders(t *testing.T) {
	w := newWorld(t, reminding(24, 168, 72), waiting(event.PINExpiring))
	ada := w.user("ada", pinA)
	var got []string
	ids := map[string]bool{}
	for h := 240.0; h > 0; h -= 0.5 {
		w.at(h)
		id := w.reread(ada).MessageID()
		if n := w.remindOnce(ada); n != 0 {
			got = append(got, fmt.Sprintf("%d at %g", n, h))
			ids[id] = true
		}
	}
	if d := cmp.Diff([]string{"168 at 168", "72 at 72", "24 at 24"}, got); d != "" || len(ids) != 3 {
		t.Errorf("%d ids (-want +got):\n%s", len(ids), d)
	}
	if d := cmp.Diff([]string{"168", "72", "24"}, w.toldOf(event.PINExpiring, "hoursLeft")); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
	if p := w.reread(ada).PIN; !p.NotifyAt.Equal(start.Add(72*time.Hour)) || !p.NotifiedAt.Equal(start.Add(216*time.Hour)) || p.Reminders != nil {
		t.Errorf("%+v", p)
	}
}

// After an outage only the nearest is sent, and what is left out is on record.
func TestOutage(t *testing.T) {
	for _, c := range []struct {
		at   float64
		want []string // hours sent, then, in brackets, hours left out
	}{
		{100, []string{"168"}},
		{40, []string{"72", "(168)"}},
		{23, []string{"24", "(168, 72)"}},
	} {
		w := newWorld(t, reminding(168, 72, 24), waiting(event.PINExpiring))
		ada := w.user("ada", pinA)
		w.at(c.at)
		got := []string{fmt.Sprint(w.remindOnce(ada))}
		if n := w.remindOnce(ada); n != 0 {
			t.Errorf("%g before: another one, %d", c.at, n)
		}
		for _, r := range w.audited() {
			if r.Reason == ReasonLate {
				got = append(got, "("+r.Details["hours"]+")")
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%g before (-want +got):\n%s", c.at, d)
		}
		if d := cmp.Diff(c.want[:1], w.toldOf(event.PINExpiring, "hoursLeft")); d != "" {
			t.Errorf("%g before, events (-want +got):\n%s", c.at, d)
		}
	}
}

// A new PIN has reminders of its own, and a PIN that is gone none.
func TestRemindersOfAPINThatIsNoMore(t *testing.T) {
	w := newWorld(t, reminding(168, 72, 24))
	ada := w.user("ada", pinA)
	w.at(168)
	claimed := claim(w, ada)
	if err := w.set(ada, pinB); err != nil {
		t.Fatal(err)
	}
	if w.mark(claimed, Delivery{State: NoticeSent}) {
		t.Error("marked, though the PIN is another")
	}
	if p := w.reread(ada).PIN; p.Notice.Hours != 168 || p.Notice.State != NoticePlanned || !p.Notice.At.Equal(w.Now().Add(72*time.Hour)) || !p.NotifiedAt.IsZero() {
		t.Errorf("the new PIN's: %+v", p.Notice)
	}
	must(w.DeletePIN(t.Context(), w.core, admin, ada.ID))(t)
	w.past.Add(int64(1000 * time.Hour))
	if w.due() != nil || w.remindOnce(ada) != 0 {
		t.Error("reminded of a PIN that is gone")
	}
}

// A reminder whose time is past when the PIN is made is none: a PIN may live shorter than the
// policy has it.
func TestRemindersThatArePast(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		life time.Duration
		want []int
	}{{200 * time.Hour, []int{168, 72, 24}}, {72 * time.Hour, []int{72, 24}}, {30 * time.Hour, []int{24}}, {time.Hour, nil}} {
		w.core.Policy.NotifyHoursBefore = pin.Hours{72, 24, 168}
		p := PIN{verifier: "v", ExpiresAt: start.Add(c.life)}
		p.remind(w.core, start)
		var got []int
		if p.Notice.State != NoNotice {
			got = append([]int{p.Notice.Hours}, p.Reminders...)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("a life of %s (-want +got):\n%s", c.life, d)
		}
	}
}

// What nobody can be mailed is told to rules all the same, once.
func TestRulesAreToldWithoutMail(t *testing.T) {
	for name, do := range map[string]func(w *world, u User) (bool, error){
		"postponed": func(w *world, u User) (bool, error) {
			return w.PostponeNotice(w.Context(), w.core, sweep, u, w.Now().Add(time.Hour), "noMessaging")
		},
		"skipped": func(w *world, u User) (bool, error) {
			return w.SkipNotice(w.Context(), w.core, sweep, u, ReasonNoAddress)
		},
	} {
		w := newWorld(t, reminding(168, 24), waiting(event.PINExpiring))
		ada := w.user("ada", pinA)
		for h := 240.0; h > 0; h -= 0.5 {
			w.at(h)
			if _, err := do(w, w.reread(ada)); err != nil {
				t.Fatal(err)
			}
		}
		if d := cmp.Diff([]string{"168", "24"}, w.toldOf(event.PINExpiring, "hoursLeft")); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// In the quiet hours a reminder waits, and rules are not told until it is sent; if the PIN
// ends before they do it is left out, and rules are told.
func TestHoldNotice(t *testing.T) {
	w := newWorld(t, reminding(168, 4), waiting(event.PINExpiring))
	ada := w.user("ada", pinA)
	w.at(168)
	until := w.Now().Add(11 * time.Hour)
	if held, done, err := w.HoldNotice(t.Context(), w.core, sweep, w.reread(ada), until); !held || !done || err != nil {
		t.Errorf("%v, %v, %v", held, done, err)
	}
	if got := w.toldOf(event.PINExpiring, "hoursLeft"); got != nil || w.due() != nil {
		t.Errorf("told %q, due %q", got, w.due())
	}
	w.at(157)
	if w.remindOnce(ada) != 168 {
		t.Error("not sent when they end")
	}
	w.at(4)
	if held, done, err := w.HoldNotice(t.Context(), w.core, sweep, w.reread(ada), w.Now().Add(4*time.Hour)); held || !done || err != nil {
		t.Errorf("to the end: %v, %v, %v", held, done, err)
	}
	if n := w.reread(ada).PIN.Notice; n.State != NoticeSkipped || n.Reason != ReasonQuietHours || n.Hours != 4 {
		t.Errorf("%+v", n)
	}
	if d := cmp.Diff([]string{"168", "4"}, w.toldOf(event.PINExpiring, "hoursLeft")); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

// A PIN's first reminder is planned outside the quiet hours that there are when it is made.
func TestPlannedAroundQuietHours(t *testing.T) {
	w := newWorld(t, func(c *tenant.Core) {
		c.Tenant.Settings.TimeZone = "Europe/Berlin"
		c.Tenant.Settings.Quiet = tenant.QuietHours{From: 9 * time.Hour, To: 17 * time.Hour} // start is at 11:00
	}, expiring)
	ada := w.user("ada", pinA)
	if n := w.reread(ada).PIN; !n.Notice.At.Equal(start.Add(30*time.Hour)) || !n.NotifyAt.Equal(n.Notice.At) {
		t.Errorf("planned for %s", n.Notice.At)
	}
}

// What was stored when there was one reminder is still read, sent and marked.
func TestStoredBeforeThereWereSeveral(t *testing.T) {
	for state, want := range map[NoticeState]Notice{
		NoticePlanned: {Hours: 24, State: NoticePlanned, At: start.Add(24 * time.Hour)},
		NoticeSent:    {Hours: 24, State: NoticeSent, At: start.Add(24 * time.Hour)},
	} {
		w := newWorld(t, expiring)
		ada := w.user("ada", pinA)
		item := must(w.Table.Get(t.Context(), table.UserKey(acme, ada.ID)))(t)
		var old map[string]any
		if err := json.Unmarshal(item.Data, &old); err != nil {
			t.Fatal(err)
		}
		p := old["pin"].(map[string]any)
		p["notice"] = map[string]any{"state": state, "at": start.Add(24 * time.Hour)}
		data := must(json.Marshal(old))(t)
		if strings.Contains(string(data), "hours") {
			t.Fatalf("not an old form: %s", data)
		}
		if err := w.Table.Write(t.Context(), table.Put(tabletest.Record{Key: item.Key, Data: data, Indexes: item.Indexes}, table.IfVersion(1))); err != nil {
			t.Fatal(err)
		}
		u := w.reread(ada)
		if d := cmp.Diff(want, u.PIN.Notice); d != "" || u.PIN.NotifiedAt.IsZero() != (state == NoticePlanned) {
			t.Errorf("%s, notified at %s (-want +got):\n%s", state, u.PIN.NotifiedAt, d)
		}
		w.pass(24 * time.Hour)
		if n := w.remindOnce(ada); (n == 24) != (state == NoticePlanned) {
			t.Errorf("%s: reminded %d before", state, n)
		}
	}
}
