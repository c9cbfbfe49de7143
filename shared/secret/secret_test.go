package secret_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/pinward/pinward/shared/secret"
)

func TestNothingPrintsASecret(t *testing.T) {
	const plain = "739158"
	s := secret.New(plain)
	type holder struct {
		PIN secret.Text
		Ptr *secret.Text
	}
	h := holder{s, &s}
	type closed struct{ pin secret.Text } // whose methods fmt does not call
	c := closed{s}

	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T %v"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", &s)
		fmt.Fprintf(&out, verb+"\n", h)
		fmt.Fprintf(&out, verb+"\n", c)
		fmt.Fprintf(&out, verb+"\n", &c)
	}
	fmt.Fprintln(&out, fmt.Errorf("wrapped %w %v", errors.New("x"), s))
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("m", "pin", s, "ptr", &s, "holder", h)
	}
	if err := json.NewEncoder(&out).Encode(h); err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{plain, fmt.Sprintf("%x", plain), fmt.Sprintf("%X", plain)} {
		if strings.Contains(out.String(), form) {
			t.Errorf("output contains the secret as %s:\n%s", form, out.String())
		}
	}
	if got := s.Reveal(); got != plain {
		t.Errorf("Reveal() = %q, want %q", got, plain)
	}
}

func TestUnmarshalJSON(t *testing.T) {
	var s secret.Text
	if err := json.Unmarshal([]byte(`"2580"`), &s); err != nil || s.Reveal() != "2580" {
		t.Errorf("Unmarshal = %v, content %q", err, s.Reveal())
	}
	err := json.Unmarshal([]byte(`{"pin":987654}`), &struct {
		PIN *secret.Text `json:"pin"`
	}{&s})
	if err == nil || strings.Contains(err.Error(), "987654") {
		t.Errorf("number accepted or repeated: %v", err)
	}
}

func TestEqual(t *testing.T) {
	if !secret.New("1").Equal(secret.New("1")) || secret.New("1").Equal(secret.New("2")) {
		t.Error("Equal is wrong")
	}
	if !(secret.Text{}).Empty() || secret.New("1").Empty() {
		t.Error("Empty is wrong")
	}
}
