package pin_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
)

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*pin.Policy)
		want   string // fields
	}{
		{"the default", func(p *pin.Policy) {}, ""},
		{"the zero policy", func(p *pin.Policy) { *p = pin.Policy{} }, "minLength maxLength alphabet blocklist maxAttempts lockMinutes"},
		{"minLength 3", func(p *pin.Policy) { p.MinLength = 3 }, "minLength"},
		{"minLength huge", func(p *pin.Policy) { p.MinLength = 1 << 40 }, "minLength maxLength"},
		{"min over max", func(p *pin.Policy) { p.MinLength, p.MaxLength = 9, 8 }, "maxLength"},
		{"min equals max", func(p *pin.Policy) { p.MinLength, p.MaxLength = 4, 4 }, ""},
		{"maxLength 64", func(p *pin.Policy) { p.MaxLength = 64 }, ""},
		{"maxLength 65", func(p *pin.Policy) { p.MaxLength = 65 }, "maxLength"},
		{"more users than lengths", func(p *pin.Policy) { p.MaxLength, p.MinLengthByUsers = 6, true }, "maxLength"},
		{"just enough length", func(p *pin.Policy) { p.MaxLength, p.MinLengthByUsers = 7, true }, ""},
		{"unknown alphabet", func(p *pin.Policy) { p.Alphabet = "DIGITS" }, "alphabet"},
		{"unknown class", func(p *pin.Policy) { p.RequireClasses = []pin.Class{"emoji", ""} }, "requireClasses requireClasses"},
		{"class twice", func(p *pin.Policy) { p.RequireClasses = []pin.Class{pin.Digit, pin.Digit} }, "requireClasses"},
		{"class that the alphabet lacks", func(p *pin.Policy) {
			p.RequireClasses = []pin.Class{pin.Digit, pin.Lower, pin.Upper, pin.Special}
		}, "requireClasses"},
		{"letters of digits", func(p *pin.Policy) {
			p.Alphabet, p.RequireClasses = pin.Digits, []pin.Class{pin.Lower, pin.Upper}
		}, "requireClasses requireClasses"},
		{"all classes", func(p *pin.Policy) {
			p.Alphabet, p.RequireClasses = pin.Printable, []pin.Class{pin.Digit, pin.Lower, pin.Upper, pin.Special}
		}, ""},
		{"maxRun negative", func(p *pin.Policy) { p.MaxRun = -1 }, "maxRun"},
		{"maxRun 1", func(p *pin.Policy) { p.MaxRun = 1 }, "maxRun"},
		{"maxRun 2", func(p *pin.Policy) { p.MaxRun = 2 }, ""},
		{"maxRun 65", func(p *pin.Policy) { p.MaxRun = 65 }, "maxRun"},
		{"unknown blocklist", func(p *pin.Policy) { p.Blocklist = "most" }, "blocklist"},
		{"entries of 4 and 64", func(p *pin.Policy) { p.BlocklistEntries = []string{"4711", strings.Repeat("a!", 32), "4711"} }, ""},
		{"entry too short", func(p *pin.Policy) { p.BlocklistEntries = []string{"4711", "815"} }, "blocklistEntries"},
		{"entry too long", func(p *pin.Policy) { p.BlocklistEntries = []string{strings.Repeat("a", 65)} }, "blocklistEntries"},
		{"entry with a space", func(p *pin.Policy) { p.BlocklistEntries = []string{"47 11"} }, "blocklistEntries"},
		{"entry beyond ASCII", func(p *pin.Policy) { p.BlocklistEntries = []string{"４７１１"} }, "blocklistEntries"},
		{"empty entry", func(p *pin.Policy) { p.BlocklistEntries = []string{""} }, "blocklistEntries"},
		{"1,000 entries", func(p *pin.Policy) { p.BlocklistEntries = strings.Fields(strings.Repeat("4711 ", 1000)) }, ""},
		{"1,001 entries", func(p *pin.Policy) { p.BlocklistEntries = strings.Fields(strings.Repeat("4711 ", 1001)) }, "blocklistEntries"},
		{"history -1", func(p *pin.Policy) { p.History = -1 }, "history"},
		{"history 24", func(p *pin.Policy) { p.History = 24 }, ""},
		{"history 25", func(p *pin.Policy) { p.History = 25 }, "history"},
		{"notify as long as expiration", func(p *pin.Policy) { p.ExpirationHours, p.NotifyHoursBefore = 24, pin.Hours{2, 24} }, "notifyHoursBefore"},
		{"notify before expiration", func(p *pin.Policy) { p.ExpirationHours, p.NotifyHoursBefore = 24, pin.Hours{23, 1} }, ""},
		{"notify without expiration", func(p *pin.Policy) { p.NotifyHoursBefore = pin.Hours{24} }, ""},
		{"expiration without notify", func(p *pin.Policy) { p.ExpirationHours = 1 }, ""},
		{"negative hours", func(p *pin.Policy) { p.ExpirationHours, p.NotifyHoursBefore = -1, pin.Hours{-1} }, "expirationHours notifyHoursBefore"},
		{"ten years", func(p *pin.Policy) { p.ExpirationHours = 87_600 }, ""},
		{"huge hours", func(p *pin.Policy) { p.ExpirationHours, p.NotifyHoursBefore = 87_601, pin.Hours{1 << 62} }, "expirationHours notifyHoursBefore notifyHoursBefore"},
		{"no attempts", func(p *pin.Policy) { p.MaxAttempts = 0 }, "maxAttempts"},
		{"101 attempts", func(p *pin.Policy) { p.MaxAttempts = 101 }, "maxAttempts"},
		{"no lock", func(p *pin.Policy) { p.LockMinutes = 0 }, "lockMinutes"},
		{"a lock of more than a day", func(p *pin.Policy) { p.LockMinutes = 1441 }, "lockMinutes"},
		{"the least and most of both", func(p *pin.Policy) { p.MaxAttempts, p.LockMinutes = 1, 1440 }, ""},
		{"several at once", func(p *pin.Policy) {
			p.MinLength, p.Alphabet, p.MaxRun, p.MaxAttempts = 3, "x", 1, 1000
		}, "minLength alphabet maxRun maxAttempts"},
	} {
		p := pin.Default()
		c.change(&p)
		var got []string
		if err := p.Validate(); err != nil {
			var inv *problem.InvalidError
			if !errors.As(err, &inv) {
				t.Errorf("%s: %v is no InvalidError", c.name, err)
				continue
			}
			for _, v := range inv.Violations {
				got = append(got, v.Field)
				if v.Code == "" || v.Reason == "" {
					t.Errorf("%s: incomplete violation %+v", c.name, v)
				}
			}
		}
		if diff := cmp.Diff(c.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s: fields, -want +got:\n%s", c.name, diff)
		}
	}
}

func TestProfiles(t *testing.T) {
	var names []string
	for _, p := range pin.Profiles() {
		names = append(names, p.Name)
		if err := p.Policy.Validate(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		if p.Description == "" || strings.Contains(p.Description, "\n") {
			t.Errorf("%s: description %q", p.Name, p.Description)
		}
		got, err := pin.ProfileNamed(p.Name)
		if diff := cmp.Diff(p, got); err != nil || diff != "" {
			t.Errorf("ProfileNamed(%s): %v\n%s", p.Name, err, diff)
		}
	}
	if got, want := strings.Join(names, " "), "default windowsHello fips201 nist80063b"; got != want {
		t.Errorf("profiles %s, want %s", got, want)
	}
	var inv *problem.InvalidError
	if _, err := pin.ProfileNamed("none"); !errors.As(err, &inv) || !strings.Contains(err.Error(), "windowsHello") {
		t.Errorf("unknown profile: %v", err)
	}
	want := pin.Policy{
		MinLength: 4, MaxLength: 16, Alphabet: pin.Alphanumeric, DisallowSequential: true,
		Blocklist: pin.BlocklistCommon, DisallowContext: true, MaxAttempts: 5, LockMinutes: 15,
	}
	if diff := cmp.Diff(want, pin.Default()); diff != "" {
		t.Errorf("Default(), -want +got:\n%s", diff)
	}
}
