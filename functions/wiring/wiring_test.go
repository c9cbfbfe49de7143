package wiring_test

import (
	"strings"
	"testing"

	"github.com/pinward/pinward/functions/wiring"
)

// TestCloudNeedsItsEnvironment: a function that is deployed without a setting
// says which.
func TestCloudNeedsItsEnvironment(t *testing.T) {
	t.Setenv("AWS_REGION", "eu-central-1")
	for _, missing := range []string{"TABLE_NAME", "KMS_KEY_ARN"} {
		t.Setenv("TABLE_NAME", "pinward")
		t.Setenv("KMS_KEY_ARN", "arn:aws:kms:eu-central-1:123456789012:key/x")
		t.Setenv(missing, "")
		if _, err := wiring.Cloud(t.Context()); err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("without %s: got %v, want an error that names it", missing, err)
		}
	}
}
