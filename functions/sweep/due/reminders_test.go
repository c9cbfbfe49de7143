package due

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

// reminding lets PINs live so many hours with reminders before their end.
func reminding(life int, hours ...int) func(*tenant.Core) {
	return func(c *tenant.Core) { c.Policy.ExpirationHours, c.Policy.NotifyHoursBefore = life, pin.Hours(hours) }
}

var night = tenant.QuietHours{From: 20 * time.Hour, To: 7 * time.Hour}

// tick is the time between sweeps.
var tick = time.Duration(testserver.Rounds(15, 30)) * time.Minute

// sentAt sweeps at every tick, and returns when, by the tenant's clock, mails to
// an address were sent.
func (w *world) sentAt(until time.Duration, address string, meanwhile func(time.Duration)) (at []string) {
	w.Helper()
	berlin := w.core(acme).Tenant.Settings.Location()
	for past := time.Duration(w.past.Load()); past <= until; past += tick {
		w.past.Store(int64(past))
		if meanwhile != nil {
			meanwhile(past)
		}
		if r := w.Run(w.Context()); r.Errors > 0 {
			w.Fatalf("%s: %+v", w.Now(), r)
		}
		if r := w.Cards(w.Context()); r.Errors > 0 {
			w.Fatalf("%s: %+v", w.Now(), r)
		}
	}
	all, err := w.outbox.List(1000)
	if err != nil {
		w.Fatal(err)
	}
	for _, m := range slices.Backward(all) {
		if m.To == "<"+address+">" {
			at = append(at, m.Date.In(berlin).Format("Mon 2 Jan 15:04"))
		}
	}
	return at
}

// The mails of weeks, around nights, weekends and the change to summer time. The start is
// brought to a time by the clock of Berlin.
func TestRemindersOverWeeks(t *testing.T) {
	weekend := night
	weekend.DaysOff = []time.Weekday{time.Saturday, time.Sunday}
	for _, c := range []struct {
		name   string
		quiet  tenant.QuietHours
		setAt  string
		life   int
		before []int
		want   []string
	}{
		{"no quiet hours", tenant.QuietHours{}, "2027-03-01T22:00:00+01:00", 240, []int{24, 168, 72},
			[]string{"Thu 4 Mar 22:00", "Mon 8 Mar 22:00", "Wed 10 Mar 22:00"}},
		{"nights", night, "2027-03-01T22:00:00+01:00", 240, []int{168, 72, 24},
			[]string{"Fri 5 Mar 07:00", "Tue 9 Mar 07:00", "Thu 11 Mar 07:00"}},
		{"a night before the end: the evening before", night, "2027-03-01T06:00:00+01:00", 240, []int{168, 6},
			[]string{"Thu 4 Mar 07:00", "Wed 10 Mar 19:30"}},
		{"weekends", weekend, "2027-03-06T12:00:00+01:00", 336, []int{168, 72, 24},
			[]string{"Mon 15 Mar 07:00", "Wed 17 Mar 12:00", "Fri 19 Mar 12:00"}},
		{"two within one weekend: the nearer", weekend, "2027-03-05T12:00:00+01:00", 240, []int{42, 24},
			[]string{"Mon 15 Mar 07:00"}},
		{"to summer time: the same hour by the clock", night, "2027-03-26T03:00:00+01:00", 96, []int{72, 48, 24},
			[]string{"Sat 27 Mar 07:00", "Sun 28 Mar 07:00", "Mon 29 Mar 07:00"}},
		{"and back", night, "2027-10-29T03:00:00+02:00", 96, []int{72, 48, 24},
			[]string{"Sat 30 Oct 07:00", "Sun 31 Oct 07:00", "Mon 1 Nov 07:00"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, tabletest.New(t))
			w.settings(acme, func(s *tenant.Settings) { s.Quiet = c.quiet })
			at, err := time.Parse(time.RFC3339, c.setAt)
			must(w, err)
			w.past.Store(int64(at.Sub(start)))
			w.user("ada", reminding(c.life, c.before...))
			got := w.sentAt(at.Sub(start)+time.Duration(c.life+1)*time.Hour, "ada@acme.example", nil)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// Quiet hours that are set after a PIN was made are heeded when its reminder is due; one that
// would be sent after the end is left out, which is counted, on record, and told to rules.
func TestQuietHoursSetLater(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	must(w, w.Table.Write(t.Context(), tenant.PutWatch(acme, tenant.Watch{Types: []string{string(event.PINExpiring)}})))
	w.pass(11 * time.Hour) // 22:00 in Berlin
	ada, bob := w.user("ada", reminding(48, 24)), w.user("bob", reminding(48, 40, 4))
	w.settings(acme, func(s *tenant.Settings) {
		s.Quiet = tenant.QuietHours{From: 16 * time.Hour, To: 22*time.Hour + 15*time.Minute}
	})
	w.pass(8 * time.Hour)
	w.does(Report{Due: 1, Sent: 1})
	w.pass(16 * time.Hour)
	w.does(Report{Due: 1, Held: 1})
	w.pass(15 * time.Minute)
	w.does(Report{Due: 1, Sent: 1})
	w.pass(20 * time.Hour) // 18:15, and the end of Bob's PIN is at 22:00
	w.does(Report{Due: 1, Skipped: 1})
	w.does(Report{})
	if d := cmp.Diff([]string{"pin.notice sent", "pin.notice skipped quietHours"}, w.history(bob)); d != "" {
		t.Errorf("Bob's history (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"pin.notice sent"}, w.history(ada)); d != "" {
		t.Errorf("Ada's history (-want +got):\n%s", d)
	}
	events, _, err := event.List(t.Context(), w.Table, acme, "", 100)
	must(w, err)
	var told []string
	for _, e := range events {
		told = append(told, e.Attributes["hoursLeft"])
	}
	slices.Sort(told)
	if d := cmp.Diff([]string{"24", "4", "40"}, told); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

// Cards' reminders keep the quiet hours too; the mail that a PIN has expired waits, and that
// it has is on record and told to rules at once.
func TestCardsInQuietHours(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	must(w, w.Table.Write(t.Context(), tenant.PutWatch(acme, tenant.Watch{Types: []string{
		string(event.CredentialExpiring), string(event.PINExpired), string(event.CredentialRegistered), string(event.CredentialBlocked)}})))
	w.settings(acme, func(s *tenant.Settings) { s.Quiet = night })
	w.pass(12 * time.Hour) // 23:00 in Berlin
	c := w.card(w.cards(), 1, w.holder("ada", "ada@acme.example").ID)
	began := time.Duration(w.past.Load())
	recorded := time.Duration(0)
	got := w.sentAt(began+32*day, "ada@acme.example", func(past time.Duration) {
		if recorded == 0 && w.rereadCard(c).ExpiryRecorded {
			recorded = past - began
		}
	})
	if d := cmp.Diff([]string{"Tue 8 Dec 07:00", "Tue 15 Dec 07:00", "Mon 21 Dec 07:00", "Tue 22 Dec 07:00"}, got); d != "" {
		t.Errorf("mails (-want +got):\n%s", d)
	}
	if recorded != 30*day+tick { // the look before the next sweep
		t.Errorf("the expiry was on record after %s", recorded)
	}
	events, _, err := event.List(t.Context(), w.Table, acme, "", 100)
	must(w, err)
	var told []string
	for _, e := range slices.Backward(events) {
		told = append(told, fmt.Sprint(e.Type, " ", e.Attributes["daysLeft"], e.Attributes["of"], e.Attributes["family"]))
		if e.User != c.Holder || e.Card != c.ID {
			t.Errorf("%s is of %s and %s", e.Type, e.User, e.Card)
		}
	}
	if d := cmp.Diff([]string{"credential.registered PIV", "credential.expiring 14", "credential.expiring 7", "credential.expiring 1", "pin.expired card"}, told); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

// A reminder whose quiet hours end after the card's PIN has expired is left out.
func TestCardReminderInQuietHoursToTheEnd(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	w.settings(acme, func(s *tenant.Settings) { s.Quiet.DaysOff = []time.Weekday{time.Sunday, time.Monday} })
	c := w.card(w.cards(), 1, w.holder("ada", "ada@acme.example").ID) // its PIN ends on a Monday
	got := w.sentAt(32*day, "ada@acme.example", nil)
	if d := cmp.Diff([]string{"Tue 8 Dec 00:00", "Tue 15 Dec 00:00", "Tue 22 Dec 00:00"}, got); d != "" {
		t.Errorf("mails (-want +got):\n%s", d)
	}
	if h := w.cardHistory(c); !slices.Contains(h, "credential.notice reminder 1 skipped quietHours") {
		t.Errorf("history: %q", h)
	}
}

// Crashes lose no step: whatever call a sweep dies at, the user has all three mails in the
// end, and rules were told of each once.
func TestRemindersSurviveCrashes(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; n <= 8; n++ {
			w := newWorld(t, tabletest.New(t))
			must(w, w.Table.Write(t.Context(), tenant.PutWatch(acme, tenant.Watch{Types: []string{string(event.PINExpiring)}})))
			ada := w.user("ada", reminding(240, 168, 72, 24))
			for _, h := range []int{72, 168, 216} {
				w.past.Store(int64(time.Duration(h) * time.Hour))
				w.over(&mortal{Table: w.Table, n: n, after: after}).Run(t.Context(), shard(ada))
				w.pass(lease)
				w.Run(t.Context())
			}
			if got := len(w.mails()); got != 3 {
				t.Errorf("call %d, after %v: %d mails", n, after, got)
			}
			events, _, err := event.List(t.Context(), w.Table, acme, "", 100)
			if err != nil || len(events) != 3 {
				t.Errorf("call %d, after %v: %d events, %v", n, after, len(events), err)
			}
		}
	}
}

// Three reminders cost what one does, each.
func TestCostOfReminders(t *testing.T) {
	counting := tabletest.Count(tabletest.New(t))
	w := newWorld(t, counting)
	core, long := w.core(acme), w.core(acme)
	reminding(240, 168, 72, 24)(&core)
	reminding(80_000, 2, 1)(&long)
	for i := range testserver.Rounds(5_000, 300) {
		w.userOf(long, fmt.Sprint("not due ", i), "")
	}
	due := testserver.Rounds(200, 50)
	for i := range due {
		w.userOf(core, fmt.Sprint("due ", i), "due@acme.example")
	}
	for _, h := range []int{72, 168, 216} {
		w.past.Store(int64(time.Duration(h) * time.Hour))
		counting.Take()
		w.does(Report{Due: due, Sent: due})
		got := counting.Take()
		t.Logf("%d hours after: %+v", h, got)
		if got.Writes != 2*due || got.Gets+got.Queries > table.DueShards+due/25+3 || got.Queried > due+3 {
			t.Errorf("%d hours after: %+v", h, got)
		}
	}
	// In the quiet hours each costs one write, once, and the sweeps until they end nothing.
	w.settings(acme, func(s *tenant.Settings) { s.Quiet = tenant.QuietHours{From: 0, To: 23 * time.Hour} })
	for i := range due {
		w.userOf(core, fmt.Sprint("held ", i), "held@acme.example")
	}
	w.pass(72 * time.Hour)
	counting.Take()
	w.does(Report{Due: 2 * due, Expired: due, Held: due})
	first := counting.Take()
	w.does(Report{})
	if then := counting.Take(); first.Writes != 2*due || then.Writes != 0 {
		t.Errorf("in the quiet hours: %+v, then %+v", first, then)
	}
}

// What a reminder costs that is not sent, as the README has it.
func TestCallsOfRemindersNotSent(t *testing.T) {
	counting := tabletest.Count(tabletest.New(t))
	w := newWorld(t, counting)
	w.userOf(w.core(acme), "nobody", "")
	w.pass(24 * time.Hour)
	counting.Take()
	w.does(Report{Due: 1, NoAddress: 1})
	if got := counting.Take(); got.Gets != 2 || got.Queries != 17 || got.Writes != 1 || got.Ops != 3 {
		t.Errorf("nobody to mail: %+v", got)
	}
	w.userOf(w.core(acme), "ada", "ada@acme.example")
	w.settings(acme, func(s *tenant.Settings) { s.Quiet = tenant.QuietHours{From: 10 * time.Hour, To: 12 * time.Hour} })
	w.pass(24 * time.Hour)
	counting.Take()
	w.does(Report{Due: 2, Held: 1, Expired: 1})
	if got := counting.Take(); got.Writes != 2 || got.Ops != 1+2 {
		t.Errorf("held, and one deleted: %+v", got)
	}
}
