//go:build nopcsc || !(windows || (cgo && (linux || darwin)))

package reader_test

import (
	"errors"
	"testing"

	"github.com/pinward/pinward/bridge/reader"
)

func TestNoPCSC(t *testing.T) {
	s := reader.NewPCSC(reader.DefaultLimits)
	if e := watch(t, s, "").want(reader.ServiceDown); !errors.Is(e.Err, reader.ErrNoPCSC) {
		t.Errorf("down: %v", e.Err)
	}
	if _, err := s.Open(t.Context(), "", 1); !errors.Is(err, reader.ErrNoPCSC) {
		t.Errorf("opened: %v", err)
	}
}
