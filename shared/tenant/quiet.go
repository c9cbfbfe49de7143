package tenant

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/problem"
)

// QuietHours are when people are sent no reminders, by the clock of the tenant's zone: each
// day from a time until another, and whole weekdays. The zero QuietHours are none.
type QuietHours struct {
	From, To time.Duration // since midnight, in quarters of an hour; From after To is over night; equal is no hours
	DaysOff  []time.Weekday
}

const (
	quarter = 15 * time.Minute
	// ahead is how long before the quiet hours a reminder is sent that cannot wait until they
	// end: time enough to try again.
	ahead = 30 * time.Minute
)

func (q QuietHours) none() bool { return q.From == q.To && len(q.DaysOff) == 0 }

func (q QuietHours) validate(vs *problem.Violations) {
	for _, f := range []struct {
		name string
		at   time.Duration
	}{{"from", q.From}, {"to", q.To}} {
		if f.at < 0 || f.at >= 24*time.Hour || f.at%quarter != 0 {
			vs.Add("range", "quietHours."+f.name, "must be a time of day in quarters of an hour, 00:00 to 23:45")
		}
	}
	validateDays(vs, "quietHours.daysOff", q.DaysOff)
	if len(q.DaysOff) > 6 {
		vs.Add("count", "quietHours.daysOff", "must leave a day on which reminders are sent")
	}
}

func validateDays(vs *problem.Violations, field string, days []time.Weekday) {
	for i, d := range days {
		switch {
		case d < time.Sunday || d > time.Saturday:
			vs.Add("range", field, "has a day that is none")
		case slices.Contains(days[:i], d):
			vs.Add("repeated", field, "names %s twice", d)
		}
	}
}

// ReadQuietHours reads quiet hours as people and systems write them: from and to such as
// "20:00", both or neither, and days off by name, such as "sunday".
func ReadQuietHours(from, to string, daysOff []string) (q QuietHours, _ error) {
	var vs problem.Violations
	if (from == "") != (to == "") {
		vs.Add("inconsistent", "quietHours", "need from and to, or neither")
	} else if from != "" && from == to {
		vs.Add("inconsistent", "quietHours.to", "must not be as from; a day without reminders is one of daysOff")
	}
	for _, f := range []struct {
		name, given string
		at          *time.Duration
	}{{"from", from, &q.From}, {"to", to, &q.To}} {
		at, err := time.Parse("15:04", f.given)
		if f.given != "" && err != nil {
			vs.Add("range", "quietHours."+f.name, "must be a time of day in quarters of an hour, 00:00 to 23:45")
		} else if err == nil {
			*f.at = time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute
		}
	}
	var err error
	q.DaysOff, err = ReadWeekdays("quietHours.daysOff", daysOff)
	return q, errors.Join(vs.Merge(err), vs.Err())
}

// ReadWeekdays reads names of days in lower case. field is what violations name.
func ReadWeekdays(field string, names []string) (days []time.Weekday, _ error) {
	for _, name := range names {
		day := time.Sunday
		for day <= time.Saturday && strings.ToLower(day.String()) != name {
			day++
		}
		if day > time.Saturday {
			return nil, problem.Invalid("unknown", field, "must be of monday, tuesday, wednesday, thursday, friday, saturday and sunday")
		}
		days = append(days, day)
	}
	return days, nil
}

// WeekdayNames are the names of days in lower case.
func WeekdayNames(days []time.Weekday) (names []string) {
	for _, d := range days {
		names = append(names, strings.ToLower(d.String()))
	}
	return names
}

// quiet tells whether a time is within the quiet hours.
func (s Settings) quiet(at time.Time, zone *time.Location) bool {
	q, local := s.Quiet, at.In(zone)
	if slices.Contains(q.DaysOff, local.Weekday()) {
		return true
	}
	clock := time.Duration(local.Hour())*time.Hour + time.Duration(local.Minute())*time.Minute
	if q.From > q.To {
		return clock >= q.From || clock < q.To
	}
	return clock >= q.From && clock < q.To
}

// QuietUntil returns when the quiet hours end that a time is within, and false if it is in
// none. It goes by quarters of an hour, which begin together everywhere on earth, so the
// change to summer time and back needs no thought.
func (s Settings) QuietUntil(at time.Time) (time.Time, bool) {
	zone := s.Location()
	if s.Quiet.none() || !s.quiet(at, zone) {
		return time.Time{}, false
	}
	end := at.Truncate(quarter)
	for range 8 * 24 * 4 { // Validate has left a day
		if end = end.Add(quarter); !s.quiet(end, zone) {
			return end.UTC(), true
		}
	}
	return end.UTC(), true
}

// RemindAt returns when a reminder that is due at a time is to be sent: then, or when the
// quiet hours end. If what it reminds of has come by then, it is shortly before the quiet
// hours begin; and if that is past, it is the time itself, and whoever comes to send it
// finds that it must not be.
func (s Settings) RemindAt(due, expiry, now time.Time) time.Time {
	end, quiet := s.QuietUntil(due)
	if !quiet || end.Before(expiry) {
		if quiet {
			return end
		}
		return due
	}
	zone := s.Location()
	begin := due.Truncate(quarter)
	for range 8 * 24 * 4 {
		if !s.quiet(begin.Add(-quarter), zone) {
			break
		}
		begin = begin.Add(-quarter)
	}
	if early := begin.Add(-ahead).UTC(); !early.Before(now) && !s.quiet(early, zone) {
		return early
	}
	return due
}

// NextReminder returns which of several reminders of one expiry, by the times at which they
// are due, is sent next, and when: the first whose time has not passed, and of those that
// the quiet hours put together the last. It returns false if none is left.
func (s Settings) NextReminder(dues []time.Time, expiry, now time.Time) (n int, at time.Time, ok bool) {
	for i, due := range dues {
		at = s.RemindAt(due, expiry, now)
		if at.Before(now) || i+1 < len(dues) && !s.RemindAt(dues[i+1], expiry, now).After(at) {
			continue
		}
		return i, at, true
	}
	return 0, time.Time{}, false
}

// Passed returns how many of several reminders of one expiry have come to be sent by now:
// of those only the last one is.
func (s Settings) Passed(dues []time.Time, expiry, now time.Time) (n int) {
	for n < len(dues) && !now.Before(s.RemindAt(dues[n], expiry, dues[n])) {
		n++
	}
	return n
}

// ClockTime writes a time of day, given since midnight, as in "20:00".
func ClockTime(d time.Duration) string {
	return fmt.Sprintf("%02d:%02d", int(d.Hours()), int(d.Minutes())%60)
}
