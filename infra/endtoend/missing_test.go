//go:build !linux || !cgo || nopcsc

package endtoend

import (
	"errors"
	"testing"

	"github.com/pinward/pinward/infra/testserver"
)

// TestMissing stands for all others where they cannot be built.
func TestMissing(t *testing.T) {
	testserver.Need(t, errors.New("Linux, cgo and libpcsclite are needed: run infra/softcard/install.sh as root"))
}
