package tenant_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/tenant"
)

func in(zone string, q tenant.QuietHours) tenant.Settings {
	s := settings
	s.TimeZone, s.Quiet = zone, q
	return s
}

func clock(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

var (
	night   = tenant.QuietHours{From: 20 * time.Hour, To: 7 * time.Hour}
	weekend = tenant.QuietHours{From: 20 * time.Hour, To: 7 * time.Hour, DaysOff: []time.Weekday{time.Saturday, time.Sunday}}
	noon    = tenant.QuietHours{From: 12 * time.Hour, To: 13*time.Hour + 30*time.Minute}
	early   = tenant.QuietHours{From: 2 * time.Hour, To: 2*time.Hour + 30*time.Minute}
)

func TestRemindAt(t *testing.T) {
	const longBefore, farOff = "2026-01-01T00:00:00Z", "2027-12-31T00:00:00Z"
	for _, c := range []struct {
		name, zone       string
		quiet            tenant.QuietHours
		due, expiry, now string
		want             string
	}{
		{"none", "Europe/Berlin", tenant.QuietHours{}, "2026-11-21T22:00:00Z", farOff, longBefore, "2026-11-21T22:00:00Z"},
		{"by day", "Europe/Berlin", night, "2026-11-20T12:00:00Z", farOff, longBefore, "2026-11-20T12:00:00Z"},
		{"the last moment before", "Europe/Berlin", night, "2026-11-20T18:59:59Z", farOff, longBefore, "2026-11-20T18:59:59Z"},
		{"as they begin", "Europe/Berlin", night, "2026-11-20T19:00:00Z", farOff, longBefore, "2026-11-21T06:00:00Z"},
		{"after midnight", "Europe/Berlin", night, "2026-11-20T02:17:33Z", farOff, longBefore, "2026-11-20T06:00:00Z"},
		{"as they end", "Europe/Berlin", night, "2026-11-20T06:00:00Z", farOff, longBefore, "2026-11-20T06:00:00Z"},
		{"within a day", "Asia/Kolkata", noon, "2026-11-20T06:31:00Z", farOff, longBefore, "2026-11-20T08:00:00Z"},
		{"over a weekend", "Europe/Berlin", weekend, "2026-11-20T19:00:00Z", farOff, longBefore, "2026-11-23T06:00:00Z"},
		{"the night to summer time", "Europe/Berlin", night, "2026-03-28T23:00:00Z", farOff, longBefore, "2026-03-29T05:00:00Z"},
		{"the night back", "Europe/Berlin", night, "2026-10-24T23:00:00Z", farOff, longBefore, "2026-10-25T06:00:00Z"},
		{"hours that are not there that night", "Europe/Berlin", early, "2026-03-29T01:00:00Z", farOff, longBefore, "2026-03-29T01:00:00Z"},
		{"hours that are there twice: once", "Europe/Berlin", early, "2026-10-25T00:10:00Z", farOff, longBefore, "2026-10-25T00:30:00Z"},
		{"and again", "Europe/Berlin", early, "2026-10-25T01:10:00Z", farOff, longBefore, "2026-10-25T01:30:00Z"},
		{"a zone of 45 minutes", "Asia/Kathmandu", night, "2026-11-20T20:00:00Z", farOff, longBefore, "2026-11-21T01:15:00Z"},
		{"a zone that changes by half an hour", "Australia/Lord_Howe", night, "2026-10-03T14:00:00Z", farOff, longBefore, "2026-10-03T20:00:00Z"},

		{"would be at the expiry: before they begin", "Europe/Berlin", night, "2026-11-20T22:00:00Z", "2026-11-21T06:00:00Z", longBefore, "2026-11-20T18:30:00Z"},
		{"just before the expiry", "Europe/Berlin", night, "2026-11-20T22:00:00Z", "2026-11-21T06:00:01Z", longBefore, "2026-11-21T06:00:00Z"},
		{"over a weekend, before it", "Europe/Berlin", weekend, "2026-11-21T12:00:00Z", "2026-11-22T12:00:00Z", longBefore, "2026-11-20T18:30:00Z"},
		{"and that is past: as due", "Europe/Berlin", weekend, "2026-11-21T12:00:00Z", "2026-11-22T12:00:00Z", "2026-11-20T18:30:01Z", "2026-11-21T12:00:00Z"},
	} {
		due, expiry := clock(t, c.due), clock(t, c.expiry)
		got := in(c.zone, c.quiet).RemindAt(due, expiry, clock(t, c.now))
		if want := clock(t, c.want); !got.Equal(want) {
			t.Errorf("%s: due %s, sent %s, want %s", c.name, due, got, want)
		}
	}
}

// The quiet hours end when the clock on the wall first shows no quiet time, through a
// year, whatever the zone does.
func TestQuietUntilOverAYear(t *testing.T) {
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"} {
		for _, q := range []tenant.QuietHours{night, weekend, early} {
			s := in(zone, q)
			loc := s.Location()
			onWall := func(at time.Time) bool {
				local := at.In(loc)
				if slices.Contains(q.DaysOff, local.Weekday()) {
					return true
				}
				m := time.Duration(local.Hour()*60+local.Minute()) * time.Minute
				return q.From > q.To && (m >= q.From || m < q.To) || m >= q.From && m < q.To
			}
			var end time.Time
			for at := clock(t, "2027-12-31T00:00:00Z"); at.Year() >= 2027; at = at.Add(-113 * time.Minute) {
				until, quiet := s.QuietUntil(at)
				if quiet != onWall(at) {
					t.Fatalf("%s %v: quiet at %s: %v", zone, q, at.In(loc), quiet)
				}
				if quiet && (onWall(until) || !onWall(until.Add(-time.Minute)) || !until.After(at)) {
					t.Fatalf("%s %v: from %s quiet until %s", zone, q, at.In(loc), until.In(loc))
				}
				if quiet && !end.IsZero() && until.After(end) {
					t.Fatalf("%s %v: from %s quiet until %s, from later until %s", zone, q, at.In(loc), until, end)
				}
				if end = until; !quiet {
					end = time.Time{}
				}
			}
		}
	}
}

func TestNextReminder(t *testing.T) {
	expiry := clock(t, "2026-11-22T12:00:00Z") // a Sunday
	hours := func(hs ...int) (dues []time.Time) {
		for _, h := range hs {
			dues = append(dues, expiry.Add(-time.Duration(h)*time.Hour))
		}
		return dues
	}
	for _, c := range []struct {
		name  string
		quiet tenant.QuietHours
		dues  []time.Time
		now   string
		n     int
		want  string // "" for none
	}{
		{"the first", tenant.QuietHours{}, hours(72, 24, 1), "2026-11-19T12:00:00Z", 0, "2026-11-19T12:00:00Z"},
		{"the second", tenant.QuietHours{}, hours(72, 24, 1), "2026-11-19T12:00:01Z", 1, "2026-11-21T12:00:00Z"},
		{"none", tenant.QuietHours{}, hours(72, 24, 1), "2026-11-22T11:00:01Z", 0, ""},
		{"no dues", night, nil, "2026-11-22T11:00:01Z", 0, ""},
		{"two that the weekend puts together are one: the last", weekend, hours(72, 24, 1), "2026-11-19T12:00:01Z", 2, "2026-11-20T18:30:00Z"},
		{"within the weekend, as due", weekend, hours(24, 1), "2026-11-21T08:00:00Z", 0, "2026-11-21T12:00:00Z"},
	} {
		n, at, ok := in("Europe/Berlin", c.quiet).NextReminder(c.dues, expiry, clock(t, c.now))
		got := ""
		if ok {
			got = at.Format(time.RFC3339)
		}
		if got != c.want || n != c.n {
			t.Errorf("%s: %d at %q, want %d at %q", c.name, n, got, c.n, c.want)
		}
	}
}

func TestQuietHoursThatAreWrong(t *testing.T) {
	all := []time.Weekday{0, 1, 2, 3, 4, 5, 6}
	for _, c := range []struct {
		quiet tenant.QuietHours
		want  []string
	}{
		{tenant.QuietHours{From: 24 * time.Hour, To: -quarter}, []string{"quietHours.from", "quietHours.to"}},
		{tenant.QuietHours{From: 20*time.Hour + time.Minute, To: 7 * time.Hour}, []string{"quietHours.from"}},
		{tenant.QuietHours{DaysOff: all}, []string{"quietHours.daysOff"}},
		{tenant.QuietHours{DaysOff: []time.Weekday{1, 1}}, []string{"quietHours.daysOff"}},
		{tenant.QuietHours{DaysOff: all[:6]}, nil},
		{weekend, nil},
	} {
		if d := cmp.Diff(c.want, fields(in("UTC", c.quiet).Validate())); d != "" {
			t.Errorf("%v (-want +got):\n%s", c.quiet, d)
		}
	}
}

const quarter = 15 * time.Minute
