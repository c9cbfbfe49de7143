package wiring_test

import (
	"strings"
	"testing"

	"github.com/pinward/pinward/functions/wiring"
)

// TestCloudNeedsItsEnvironment: a function that is deployed without a setting
// says which.
func TestCloudNeedsItsEnvironment(t *testing.T) {
	good := map[string]string{
		"AWS_REGION":     "eu-central-1",
		"TABLE_NAME":     "pinward",
		"KMS_KEY_ARN":    "arn:aws:kms:eu-central-1:123456789012:key/x",
		"RELAY_URL":      "wss://x.execute-api.eu-central-1.amazonaws.com/live",
		"RELAY_ENDPOINT": "https://x.execute-api.eu-central-1.amazonaws.com/live",
		"CONSOLE_URL":    "https://y.execute-api.eu-central-1.amazonaws.com",
	}
	for name, value := range good {
		t.Setenv(name, value)
	}
	if _, err := wiring.Cloud(t.Context()); err != nil {
		t.Errorf("with all of it: %v", err)
	}
	for _, bad := range []struct{ name, value string }{
		{"TABLE_NAME", ""}, {"KMS_KEY_ARN", ""}, {"RELAY_URL", ""}, {"RELAY_ENDPOINT", ""}, {"CONSOLE_URL", ""}, {"RELAY_ENDPOINT", "x.execute-api.eu-central-1.amazonaws.com"},
	} {
		t.Setenv(bad.name, bad.value)
		if _, err := wiring.Cloud(t.Context()); err == nil || !strings.Contains(err.Error(), bad.name) {
			t.Errorf("%s=%q: got %v, want an error that names it", bad.name, bad.value, err)
		}
		t.Setenv(bad.name, good[bad.name])
	}
}
