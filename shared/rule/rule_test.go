package rule

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/user"
)

func ptr[T any](v T) *T { return &v }

// valid is a rule with nothing wrong.
func valid() Rule {
	return Rule{Name: "First print job", Event: event.PrintJobSubmitted, Actions: []Action{{Kind: GeneratePIN}}}
}

func violations(err error) (all []string) {
	var invalid *problem.InvalidError
	if errors.As(err, &invalid) {
		for _, v := range invalid.Violations {
			all = append(all, v.Code+" "+v.Field)
		}
	}
	return all
}

func TestValidateRule(t *testing.T) {
	for _, test := range []struct {
		name string
		edit func(*Rule)
		want []string
	}{
		{"valid", func(*Rule) {}, nil},
		{"no name", func(r *Rule) { r.Name = "" }, []string{"length name"}},
		{"name with a line break", func(r *Rule) { r.Name = "a\nb" }, []string{"length name"}},
		{"unknown type", func(r *Rule) { r.Event = "print-job.printed" }, []string{"unknown event"}},
		{"custom type", func(r *Rule) { r.Event = "custom.door-opened" }, nil},
		{"no action", func(r *Rule) { r.Actions = nil }, []string{"missing actions"}},
		{"too many actions", func(r *Rule) { r.Actions = make([]Action, 6) }, []string{"count actions"}},
		{"unknown action", func(r *Rule) { r.Actions[0].Kind = "makeCoffee" }, []string{"unknown actions[0].kind"}},
		{"what another action takes", func(r *Rule) { r.Actions[0].Endpoint = "x" }, []string{"inconsistent actions[0].endpoint"}},
		{"alphabet", func(r *Rule) { r.Actions[0].Alphabet = "runes" }, []string{"unknown actions[0].alphabet"}},
		{"one time", func(r *Rule) { r.Actions[0].OneTime = "twice" }, []string{"unknown actions[0].oneTime"}},
		{"no attribute", func(r *Rule) { r.Actions[0] = Action{Kind: SetPIN} }, []string{"form actions[0].attribute"}},
		{"no endpoint", func(r *Rule) { r.Actions[0] = Action{Kind: CallWebhook} }, []string{"missing actions[0].endpoint"}},
		{"long message", func(r *Rule) { r.Actions[0] = Action{Kind: SendMail, Message: strings.Repeat("ü", 501)} }, []string{"length actions[0].message"}},
		{"negative hours", func(r *Rule) { r.Conditions.PINOlderThanHours = -1 }, []string{"range conditions.pinOlderThanHours"}},
		{"test of nothing", func(r *Rule) { r.Conditions.Attributes = []Test{{Name: "a"}} }, []string{"inconsistent conditions.attributes[0].equals"}},
		{"test of two things", func(r *Rule) { r.Conditions.Attributes = []Test{{Name: "a", Equals: ptr("x"), Matches: "y"}} }, []string{"inconsistent conditions.attributes[0].equals"}},
		{"look-ahead", func(r *Rule) { r.Conditions.Attributes = []Test{{Name: "a", Matches: "(?=x)"}} }, []string{"form conditions.attributes[0].matches"}},
		{"back-reference", func(r *Rule) { r.Conditions.Attributes = []Test{{Name: "a", Matches: `(x)\1`}} }, []string{"form conditions.attributes[0].matches"}},
		{"expression that grows", func(r *Rule) { r.Conditions.Attributes = []Test{{Name: "a", Matches: "((x{1000}){1000}){1000}"}} }, []string{"form conditions.attributes[0].matches"}},
		{"expression that closes more than it opens", func(r *Rule) { r.Conditions.Attributes = []Test{{Name: "a", Matches: "x)|(?:y"}} }, []string{"form conditions.attributes[0].matches"}},
		{"window without an end", func(r *Rule) { r.Conditions.Window.From = "08:00" }, []string{"inconsistent conditions.window.from"}},
		{"window of nothing", func(r *Rule) { r.Conditions.Window = Window{From: "08:00", To: "08:00"} }, []string{"inconsistent conditions.window.to"}},
		{"no time of day", func(r *Rule) { r.Conditions.Window = Window{From: "8:00", To: "25:00"} }, []string{"form conditions.window.from", "form conditions.window.to"}},
		{"no day", func(r *Rule) { r.Conditions.Window.Days = []time.Weekday{-1} }, []string{"unknown conditions.window.days"}},
	} {
		r := valid()
		test.edit(&r)
		if diff := cmp.Diff(test.want, violations(r.Validate())); diff != "" {
			t.Errorf("%s: -want +got:\n%s", test.name, diff)
		}
	}
}

func TestWarnings(t *testing.T) {
	for _, test := range []struct {
		name string
		edit func(*Rule)
		want []string
	}{
		{"nothing", func(*Rule) {}, nil},
		{"old PIN of none", func(r *Rule) { r.Conditions = Conditions{HasPIN: ptr(false), PINOlderThanHours: 1} }, []string{"conditions.hasPin"}},
		{"mail to no address", func(r *Rule) { r.Conditions.HasMail = ptr(false) }, []string{"conditions.hasMail"}},
		{"expire no PIN", func(r *Rule) { r.Conditions.HasPIN, r.Actions = ptr(false), []Action{{Kind: ExpirePIN}} }, []string{"actions[0]"}},
		{"two values", func(r *Rule) {
			r.Conditions.Attributes = []Test{{Name: "a", Equals: ptr("x")}, {Name: "a", Equals: ptr("y")}}
		}, []string{"conditions.attributes[1]"}},
		{"value that does not match", func(r *Rule) {
			r.Conditions.Attributes = []Test{{Name: "a", Matches: "[0-9]+"}, {Name: "a", In: []string{"x", "y"}}}
		}, []string{"conditions.attributes[1]"}},
		{"value that matches", func(r *Rule) {
			r.Conditions.Attributes = []Test{{Name: "a", Matches: "[0-9]+"}, {Name: "a", In: []string{"x", "7"}}}
		}, nil},
		{"other names", func(r *Rule) {
			r.Conditions.Attributes = []Test{{Name: "a", Equals: ptr("x")}, {Name: "b", Equals: ptr("y")}}
		}, nil},
		{"two PINs", func(r *Rule) { r.Actions = append(r.Actions, Action{Kind: SetPIN, Attribute: "pin"}) }, []string{"actions[1]"}},
	} {
		r := valid()
		test.edit(&r)
		if err := r.Validate(); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		var got []string
		for _, v := range r.Warnings() {
			got = append(got, v.Field)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", test.name, diff)
		}
	}
	for _, r := range Predefined() {
		if err := r.Validate(); err != nil || r.On || len(r.Warnings()) > 0 {
			t.Errorf("predefined %s: %v, on %t, warnings %v", r.ID, err, r.On, r.Warnings())
		}
	}
}

func TestUnmet(t *testing.T) {
	now := time.Date(2026, 11, 25, 9, 30, 0, 0, time.UTC) // a Wednesday, 10:30 in Berlin
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	with := user.User{Profile: user.Profile{Username: "ada", Mail: "ada@acme.example", Groups: []string{"staff"}}}
	facts := func(edit func(*Facts)) Facts {
		u := with
		f := Facts{User: &u, First: true, Zone: berlin, Now: now}
		if edit != nil {
			edit(&f)
		}
		return f
	}
	e := event.Event{At: now, Attributes: map[string]string{"printer": "LJ-4"}}
	for _, test := range []struct {
		name       string
		conditions Conditions
		facts      Facts
		want       string
	}{
		{"none", Conditions{}, facts(nil), ""},
		{"nobody known", Conditions{}, Facts{Zone: berlin, Now: now}, ReasonUnknownUser},
		{"first", Conditions{First: true}, facts(nil), ""},
		{"second", Conditions{First: true}, facts(func(f *Facts) { f.First = false }), ReasonNotFirst},
		{"no PIN", Conditions{HasPIN: ptr(false)}, facts(nil), ""},
		{"PIN wanted", Conditions{HasPIN: ptr(true)}, facts(nil), ReasonNoPIN},
		{"mail", Conditions{HasMail: ptr(true)}, facts(nil), ""},
		{"no mail wanted", Conditions{HasMail: ptr(false)}, facts(nil), ReasonHasMail},
		{"no mail", Conditions{HasMail: ptr(true)}, facts(func(f *Facts) { f.User.Profile.Mail = "" }), ReasonNoMail},
		{"card", Conditions{HasActiveCard: ptr(true)}, facts(nil), ReasonNoActiveCard},
		{"no card", Conditions{HasActiveCard: ptr(false)}, facts(func(f *Facts) { f.ActiveCard = true }), ReasonHasActiveCard},
		{"group", Conditions{Groups: []string{"guests", "staff"}}, facts(nil), ""},
		{"other group", Conditions{Groups: []string{"guests"}}, facts(nil), ReasonNotInGroup},
		{"old PIN of none", Conditions{PINOlderThanHours: 1}, facts(nil), ReasonPINNotOld},
		{"expiring PIN of none", Conditions{PINExpiresWithinHours: 1}, facts(nil), ReasonPINNotEnding},
		{"attribute", Conditions{Attributes: []Test{{Name: "printer", Matches: "LJ-[0-9]"}}}, facts(nil), ""},
		{"attribute in part", Conditions{Attributes: []Test{{Name: "printer", Matches: "LJ"}}}, facts(nil), ReasonAttribute},
		{"alternatives are of the whole value", Conditions{Attributes: []Test{{Name: "printer", Matches: "LJ|OKI"}}}, facts(nil), ReasonAttribute},
		{"other attribute", Conditions{Attributes: []Test{{Name: "tray", Equals: ptr("")}}}, facts(nil), ReasonAttribute},
		{"in window", Conditions{Window: Window{From: "10:00", To: "11:00"}}, facts(nil), ""},
		{"by the tenant's zone", Conditions{Window: Window{From: "09:00", To: "10:00"}}, facts(nil), ReasonWindow},
		{"end is outside", Conditions{Window: Window{From: "08:00", To: "10:30"}}, facts(nil), ReasonWindow},
		{"over midnight", Conditions{Window: Window{From: "22:00", To: "10:31"}}, facts(nil), ""},
		{"over midnight, of the day before", Conditions{Window: Window{Days: []time.Weekday{time.Tuesday}, From: "22:00", To: "10:31"}}, facts(nil), ""},
		{"over midnight, of this day", Conditions{Window: Window{Days: []time.Weekday{time.Wednesday}, From: "22:00", To: "10:31"}}, facts(nil), ReasonWindow},
		{"day", Conditions{Window: Window{Days: []time.Weekday{time.Wednesday}}}, facts(nil), ""},
		{"other day", Conditions{Window: Window{Days: []time.Weekday{time.Monday}}}, facts(nil), ReasonWindow},
	} {
		r := valid()
		r.Conditions = test.conditions
		if err := r.Validate(); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if got := r.Unmet(e, test.facts); got != test.want {
			t.Errorf("%s: unmet is %q, want %q", test.name, got, test.want)
		}
	}
	webhook := Rule{Name: "x", Event: event.CardPresented, Actions: []Action{{Kind: CallWebhook, Endpoint: "e"}}}
	if got := webhook.Unmet(e, Facts{Zone: berlin, Now: now}); got != "" {
		t.Errorf("a webhook about nobody: %q", got)
	}
}

// TestWindowOnClockChange shows that a window goes by the clocks on the wall, on the days too
// on which they are changed.
func TestWindowOnClockChange(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	w := Window{From: "08:00", To: "18:00"}
	for _, day := range []time.Time{ // forward, back
		time.Date(2026, 3, 29, 0, 0, 0, 0, berlin), time.Date(2026, 10, 25, 0, 0, 0, 0, berlin)} {
		y, m, d := day.Date()
		for _, test := range []struct {
			hour, minute int
			want         bool
		}{{7, 59, false}, {8, 0, true}, {17, 59, true}, {18, 0, false}} {
			if got := w.holds(time.Date(y, m, d, test.hour, test.minute, 0, 0, berlin), berlin); got != test.want {
				t.Errorf("%v %02d:%02d: %t", day.Format(time.DateOnly), test.hour, test.minute, got)
			}
		}
	}
}
