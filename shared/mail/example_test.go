package mail_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/mail"
)

// Each kind has examples for each of its variables, from which its predefined mail is made.
func TestExamples(t *testing.T) {
	for _, kind := range mail.TemplateKinds() {
		for _, language := range []string{"en", "de"} {
			values := mail.Examples(kind, "Acme", language, func(time.Duration) string { return "tomorrow" })
			if _, err := mail.Render(mail.Predefined(kind, language), values); err != nil {
				t.Errorf("%s in %s: %v", kind, language, err)
			}
			want := slices.Sorted(slices.Values(kind.Variables()))
			if diff := cmp.Diff(want, slices.Sorted(maps.Keys(mail.Variables(values)))); diff != "" {
				t.Errorf("%s in %s (-want +got):\n%s", kind, language, diff)
			}
		}
	}
}
