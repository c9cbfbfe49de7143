package words

import (
	"time"

	"github.com/goodsign/monday"
)

// Date writes the day that t is on in a zone, nil for UTC: "21 November 2026",
// "21. November 2026".
func (w Words) Date(t time.Time, zone *time.Location) string {
	if w.german {
		return monday.Format(in(t, zone), "2. January 2006", monday.LocaleDeDE)
	}
	return monday.Format(in(t, zone), "2 January 2006", monday.LocaleEnGB)
}

// Time writes a date and a time of day to the minute, as mail does but for the
// day of the week: "21 November 2026 at 14:00", "21. November 2026 um 14:00
// Uhr". Pages show times in the tenant's zone, and it is not named, except in
// the hour that is there twice when summer time ends, and if it is nil: that is
// UTC, and nobody's own.
func (w Words) Time(t time.Time, zone *time.Location) string {
	named := zone == nil
	t = in(t, zone)
	for _, other := range []time.Time{t.Add(-time.Hour), t.Add(time.Hour)} {
		named = named || other.Format(time.DateTime) == t.Format(time.DateTime)
	}
	join, clock := " at ", "15:04"
	if w.german {
		join, clock = " um ", "15:04 Uhr"
	}
	s := w.Date(t, t.Location()) + join + t.Format(clock)
	if named {
		s += " " + w.zoneName(t)
	}
	return s
}

func in(t time.Time, zone *time.Location) time.Time {
	if zone == nil {
		zone = time.UTC
	}
	return t.In(zone)
}

// zoneName returns a zone's short name. One without letters of its own is called
// "+03" by the time package, which will do.
func (w Words) zoneName(t time.Time) string {
	name, _ := t.Zone()
	if german := map[string]string{"CET": "MEZ", "CEST": "MESZ"}[name]; german != "" && w.german {
		return german
	}
	return name
}

// Span writes a length of time in its largest unit that tells enough, rounded:
// "45 seconds", "3 hours", "47 hours", "2 days". A negative one is as long as a
// positive.
func (w Words) Span(d time.Duration) string {
	switch n, u := units(d); u {
	case time.Second:
		return w.Say("time.seconds", n)
	case time.Minute:
		return w.Say("time.minutes", n)
	case time.Hour:
		return w.Say("time.hours", n)
	default:
		return w.Say("time.days", n)
	}
}

// Ago writes how long ago something was, now.Sub(t): "3 hours ago", "just now";
// and, if d is negative, in how long it will be: "in 3 hours".
func (w Words) Ago(d time.Duration) string {
	n, u := units(d)
	if d < 0 {
		switch u {
		case time.Second:
			return w.Say("time.soon")
		case time.Minute:
			return w.Say("time.inMinutes", n)
		case time.Hour:
			return w.Say("time.inHours", n)
		default:
			return w.Say("time.inDays", n)
		}
	}
	switch u {
	case time.Second:
		return w.Say("time.now")
	case time.Minute:
		return w.Say("time.minutesAgo", n)
	case time.Hour:
		return w.Say("time.hoursAgo", n)
	default:
		return w.Say("time.daysAgo", n)
	}
}

// units returns how many of which unit a length of time is.
func units(d time.Duration) (n int64, unit time.Duration) {
	const day = 24 * time.Hour
	d = max(d, -d, 0) // the least of all durations has no opposite
	for _, u := range []struct{ unit, below time.Duration }{{time.Second, time.Minute}, {time.Minute, time.Hour}, {time.Hour, 2 * day}} {
		if r := d.Round(u.unit); r < u.below {
			return int64(r / u.unit), u.unit
		}
	}
	return int64(d.Round(day) / day), day
}

// Number writes a whole number with its digits grouped: "12,345", "12.345".
func (w Words) Number(n int) string { return w.print("%d", []any{n}) }
