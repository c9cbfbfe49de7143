package pin_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/pin"
)

// full is a policy of which no field is zero.
var full = pin.Policy{
	MinLength: 6, MaxLength: 12, Alphabet: pin.Printable, RequireClasses: []pin.Class{pin.Digit, pin.Special}, DisallowSequential: true,
	MaxRun: 3, DisallowConstantDelta: true, Blocklist: pin.BlocklistCommon, BlocklistEntries: []string{"acme2026"}, DisallowContext: true,
	History: 5, MinLengthByUsers: true, ExpirationHours: 720, NotifyHoursBefore: pin.Hours{168, 48}, MaxAttempts: 5, LockMinutes: 15,
}

// TestPolicyJSON: the names are stored and sent, so they stay.
// One reminder was stored as a number when there was only one.
func TestHoursAsANumber(t *testing.T) {
	for given, want := range map[string]pin.Hours{`48`: {48}, `0`: nil, `[168,48]`: {168, 48}, `[]`: {}, `null`: nil} {
		var p pin.Policy
		if err := json.Unmarshal([]byte(`{"notifyHoursBefore":`+given+`}`), &p); err != nil {
			t.Errorf("%s: %v", given, err)
		}
		if diff := cmp.Diff(want, p.NotifyHoursBefore); diff != "" {
			t.Errorf("%s (-want +got):\n%s", given, diff)
		}
	}
	for _, wrong := range []string{`"48"`, `[48,"24"]`, `1.5`, `{}`, `true`} {
		if json.Unmarshal([]byte(`{"notifyHoursBefore":`+wrong+`}`), &pin.Policy{}) == nil {
			t.Errorf("%s was taken", wrong)
		}
	}
}

func TestPolicyJSON(t *testing.T) {
	got, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"minLength":6,"maxLength":12,"alphabet":"printable","requireClasses":["digit","special"],"disallowSequential":true,` +
		`"maxRun":3,"disallowConstantDelta":true,"blocklist":"common","blocklistEntries":["acme2026"],"disallowContext":true,` +
		`"history":5,"minLengthByUsers":true,"expirationHours":720,"notifyHoursBefore":[168,48],"maxAttempts":5,"lockMinutes":15}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	v := reflect.ValueOf(full)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%s is not tried", v.Type().Field(i).Name)
		}
	}
}

func TestPolicyJSONRoundTrip(t *testing.T) {
	policies := []pin.Policy{full, {}}
	for _, p := range pin.Profiles() {
		policies = append(policies, p.Policy)
	}
	for _, p := range policies {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		// What is there already is overwritten, not mixed.
		back := full
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if diff := cmp.Diff(p, back); diff != "" {
			t.Errorf("%s read again (-written +read):\n%s", b, diff)
		}
	}
}

func TestPolicyJSONErrors(t *testing.T) {
	for _, in := range []string{`7`, `{"minLength":"6"}`, `{"requireClasses":"digit"}`} {
		var p pin.Policy
		if err := json.Unmarshal([]byte(in), &p); err == nil || !strings.Contains(err.Error(), "PIN policy") {
			t.Errorf("%s: %v", in, err)
		}
	}
}
