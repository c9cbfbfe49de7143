package page

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

func (c *Console) settingsRoutes() []route {
	return []route{
		{pattern: "GET " + Root + "/settings", action: tenant.ReadSettings, do: (*view).settings},
		{pattern: "POST " + Root + "/settings", action: tenant.WriteSettings, do: (*view).saveSettings},
	}
}

// Inputs are what a form has in its inputs, by their names. One that has several values, such
// as the boxes of one name, has them with spaces between.
type Inputs map[string]string

// Has tells whether an input has a value among others.
func (in Inputs) Has(name, value string) bool {
	return slices.Contains(strings.Fields(in[name]), value)
}

// On tells whether a box is checked.
func (in Inputs) On(name string) bool { return in[name] != "" }

// inputs reads a form.
func (v *view) inputs(names ...string) Inputs {
	in := Inputs{}
	for _, name := range names {
		if values := v.values(name); len(values) > 1 {
			in[name] = strings.Join(values, " ")
		} else {
			in[name] = strings.ReplaceAll(v.value(name), "\r\n", "\n")
		}
	}
	return in
}

// Edited is a form that changes something, with what it began with, so that two people who
// change it at the same time lose nothing.
type Edited struct {
	In      Inputs
	Was     Inputs // what the thing was when the form was shown
	Version int64  // which the thing had then
	Theirs  []Theirs
}

// Theirs is what somebody else has changed meanwhile.
type Theirs struct {
	Label, Value string // theirs
	Yours        string // if it was changed here too, and otherwise
	Both         bool
}

// edit begins a form.
func edit(in Inputs, version int64) Edited { return Edited{In: in, Was: in, Version: version} }

// edited reads a form that was sent.
func (v *view) edited(names ...string) Edited {
	e := Edited{In: v.inputs(names...), Was: Inputs{}}
	for _, name := range names {
		e.Was[name] = strings.ReplaceAll(v.value("was."+name), "\r\n", "\n")
	}
	e.Version, _ = strconv.ParseInt(v.value("version"), 10, 64)
	return e
}

// meet brings a form together with what the thing has become: what somebody else has changed
// and this person has not is theirs; what both have stays as it was entered here. Theirs names
// all that somebody else has changed.
func (e Edited) meet(now Inputs, version int64, names []string, label func(string) string) Edited {
	m := Edited{In: Inputs{}, Was: now, Version: version}
	for _, name := range names {
		m.In[name] = e.In[name]
		if now[name] == e.Was[name] {
			continue
		}
		t := Theirs{Label: label(name), Value: now[name]}
		if e.In[name] == e.Was[name] {
			m.In[name] = now[name]
		} else if e.In[name] != now[name] {
			t.Yours, t.Both = e.In[name], true
		}
		m.Theirs = append(m.Theirs, t)
	}
	return m
}

var weekdays = []string{"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"}

// settingsInputs are the names of the inputs, which are those of violations.
var settingsInputs = []string{"displayName", "timeZone", "language", "pinOnlyLogin", "generatedPINsPerDay", "createUsers",
	"quietHours.from", "quietHours.to", "quietHours.daysOff", "digest.recipients", "digest.hour", "digest.days",
	"supportFunctions", "sanityCheckAfterImport", "sanityCheckAfterImport.beforeDays", "sanityCheckAfterImport.afterDays"}

func box(on bool) string {
	if on {
		return "on"
	}
	return ""
}

// settingsOf are settings as a form has them.
func settingsOf(s tenant.Settings) Inputs {
	in := Inputs{
		"displayName": s.DisplayName, "timeZone": s.TimeZone, "language": s.Language, "pinOnlyLogin": box(s.PINOnlyLogin),
		"generatedPINsPerDay": strconv.Itoa(s.GeneratedMost()), "createUsers": box(s.CreateUsers),
		"quietHours.daysOff": strings.Join(inOrder(tenant.WeekdayNames(s.Quiet.DaysOff)), " "),
		"digest.recipients":  strings.Join(s.Digest.Recipients, "\n"), "digest.hour": strconv.Itoa(s.Digest.Hour),
		"digest.days":      strings.Join(inOrder(tenant.WeekdayNames(s.Digest.Days)), " "),
		"supportFunctions": box(s.SupportFunctions), "sanityCheckAfterImport": "off",
		"sanityCheckAfterImport.beforeDays": strconv.Itoa(s.AfterImport.Before), "sanityCheckAfterImport.afterDays": strconv.Itoa(s.AfterImport.After),
	}
	if s.Quiet.From != s.Quiet.To {
		in["quietHours.from"], in["quietHours.to"] = tenant.ClockTime(s.Quiet.From), tenant.ClockTime(s.Quiet.To)
	}
	if c := s.AfterImport; c.On && c.Random {
		in["sanityCheckAfterImport"] = "random"
	} else if c.On {
		in["sanityCheckAfterImport"] = "exact"
	}
	return in
}

// inOrder puts days in the order of a week.
func inOrder(days []string) []string {
	slices.SortFunc(days, func(a, b string) int { return slices.Index(weekdays, a) - slices.Index(weekdays, b) })
	return days
}

// settings reads what was entered. What the form does not have is as in s.
func (in Inputs) settings(s tenant.Settings) (tenant.Settings, error) {
	var vs problem.Violations
	number := func(field string, otherwise int) int {
		if in[field] == "" {
			return otherwise
		}
		n, err := strconv.Atoi(in[field])
		if err != nil {
			vs.Add("form", field, "is not a whole number")
		}
		return n
	}
	s.DisplayName, s.TimeZone, s.Language = in["displayName"], in["timeZone"], in["language"]
	s.PINOnlyLogin, s.CreateUsers, s.SupportFunctions = in.On("pinOnlyLogin"), in.On("createUsers"), in.On("supportFunctions")
	if s.GeneratedPINsPerDay = number("generatedPINsPerDay", 0); s.GeneratedPINsPerDay == tenant.DefaultGeneratedPINs {
		s.GeneratedPINsPerDay = 0
	}
	var err error
	if s.Quiet, err = tenant.ReadQuietHours(in["quietHours.from"], in["quietHours.to"], strings.Fields(in["quietHours.daysOff"])); vs.Merge(err) != nil {
		return s, err
	}
	s.Digest = tenant.DigestSettings{Recipients: strings.FieldsFunc(in["digest.recipients"], func(r rune) bool { return strings.ContainsRune(" \t\n,;", r) }), Hour: number("digest.hour", 0)}
	if s.Digest.Days, err = tenant.ReadWeekdays("digest.days", strings.Fields(in["digest.days"])); vs.Merge(err) != nil {
		return s, err
	}
	s.AfterImport = tenant.SanityCheck{On: slices.Contains([]string{"exact", "random"}, in["sanityCheckAfterImport"]), Random: in["sanityCheckAfterImport"] == "random"}
	if s.AfterImport.Random { // the days are not of anything else
		s.AfterImport.Before, s.AfterImport.After = number("sanityCheckAfterImport.beforeDays", 0), number("sanityCheckAfterImport.afterDays", 0)
	}
	if err := vs.Merge(s.Validate()); err != nil {
		return s, err
	}
	return s, vs.Err()
}

type settingsPage struct {
	Edited
	Languages []Option
	Weekdays  []string
	ReadOnly  bool
	NoMail    bool // no way to send mail is chosen, so there is no digest
}

func (v *view) settingsPage(e Edited) settingsPage {
	d := settingsPage{Edited: e, Languages: []Option{{"en", "English"}, {"de", "Deutsch"}}, Weekdays: weekdays, ReadOnly: !v.may(tenant.WriteSettings),
		NoMail: v.core.Tenant.Settings.ExpiryMail.Messaging == ""}
	if now := e.In["language"]; !slices.ContainsFunc(d.Languages, func(o Option) bool { return o.Value == now }) {
		d.Languages = append(d.Languages, Option{now, now})
	}
	return d
}

func (v *view) settings() error {
	t := v.core.Tenant
	return v.show("settings", v.settingsPage(edit(settingsOf(t.Settings), t.Version)))
}

func (v *view) saveSettings() error {
	e, t := v.edited(settingsInputs...), v.core.Tenant
	if e.Version != t.Version {
		return v.metConflict(e, settingsOf(t.Settings), t.Version, settingsInputs, v.settingLabel, "settings", func(e Edited) any { return v.settingsPage(e) })
	}
	s, err := e.In.settings(t.Settings)
	if err == nil {
		_, err = v.Tenants.ChangeSettings(v.ctx(), v.actor(), v.core, s)
	}
	if err != nil {
		return v.refused(err, "settings", v.settingsPage(e))
	}
	return v.done(Root+"/settings", words.Key("done.settingsSaved"))
}

func (v *view) settingLabel(name string) string { return v.words.Say(words.Family("setting.", name)) }

// metConflict shows a form again that changes what has changed meanwhile.
func (v *view) metConflict(e Edited, now Inputs, version int64, names []string, label func(string) string, page string, data func(Edited) any) error {
	e = e.meet(now, version, names, label)
	return v.render(http.StatusConflict, page, "layout", Frame{v: v, Faults: []Fault{{Field: "theirs", Text: v.words.Say("settings.conflict")}}, D: data(e)})
}

// zones are some that are offered; any other can be typed.
func zones() []string {
	return []string{"UTC", "Europe/Berlin", "Europe/Vienna", "Europe/Zurich", "Europe/London", "Europe/Dublin", "Europe/Lisbon", "Europe/Madrid", "Europe/Paris", "Europe/Rome",
		"Europe/Amsterdam", "Europe/Brussels", "Europe/Copenhagen", "Europe/Stockholm", "Europe/Oslo", "Europe/Helsinki", "Europe/Warsaw", "Europe/Prague", "Europe/Budapest",
		"Europe/Athens", "Europe/Istanbul", "Asia/Jerusalem", "Asia/Dubai", "Asia/Kolkata", "Asia/Singapore", "Asia/Tokyo", "Australia/Sydney", "Pacific/Auckland",
		"America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles", "America/Toronto", "America/Sao_Paulo", "Africa/Johannesburg"}
}
