// Package secret holds values that must not be seen: PINs, PUKs, admin keys,
// API keys, passwords. A Text prints as "[secret]" wherever Go prints values
// (fmt, JSON, slog, errors); the only way to its content is Reveal, so that
// every use of a secret in the clear can be found by that name.
package secret

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
)

const mask = "[secret]"

// Text is a secret string. Its zero value is the empty secret.
type Text struct {
	// s is a pointer because fmt does not call the methods of what is in an unexported
	// field, and prints a string there; of a pointer it prints the address.
	s *string
}

// New wraps s.
func New(s string) Text { return Text{&s} }

// Reveal returns the secret in the clear. What it returns goes to the one
// place that needs it: a keyed hash, a seal, a login, or the single answer
// that shows a new secret to its owner.
func (t Text) Reveal() string {
	if t.s == nil {
		return ""
	}
	return *t.s
}

// Empty tells whether there is no secret.
func (t Text) Empty() bool { return t.Reveal() == "" }

// Equal compares in time that depends only on the lengths.
func (t Text) Equal(u Text) bool {
	return subtle.ConstantTimeCompare([]byte(t.Reveal()), []byte(u.Reveal())) == 1
}

// String implements fmt.Stringer.
func (Text) String() string { return mask }

// GoString implements fmt.GoStringer.
func (Text) GoString() string { return mask }

// Format implements fmt.Formatter, so that no verb shows the content.
func (Text) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(mask)) }

// LogValue implements slog.LogValuer.
func (Text) LogValue() slog.Value { return slog.StringValue(mask) }

// MarshalJSON implements json.Marshaler: the content is never written.
func (Text) MarshalJSON() ([]byte, error) { return []byte(`"` + mask + `"`), nil }

// UnmarshalJSON implements json.Unmarshaler. Its error does not repeat the
// input.
func (t *Text) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a secret must be a JSON string")
	}
	t.s = &s
	return nil
}
