package tenant_test

import (
	"errors"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

func TestLastSweep(t *testing.T) {
	o := newOffice(t)
	last := func() tenant.LastSweep {
		t.Helper()
		s, err := o.LastSweep(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := last(); !s.At.IsZero() || !s.Late(o.now) {
		t.Errorf("before the first: %+v", s)
	}
	for _, left := range []bool{true, false} {
		o.now = o.now.Add(time.Minute)
		if err := o.Swept(t.Context(), left); err != nil {
			t.Fatal(err)
		}
		if s := last(); !s.At.Equal(o.now.Truncate(time.Second)) || s.Left != left || s.Late(o.now.Add(tenant.SweepLate-time.Second)) || !s.Late(o.now.Add(tenant.SweepLate)) {
			t.Errorf("left %t: %+v", left, s)
		}
	}

	// A write that failed is told, whether it is there or not; the next sweep notes it anew.
	for _, after := range []bool{false, true} {
		o.now = o.now.Add(time.Minute)
		whole := o.Table
		o.Table = tabletest.Fail(whole, 2, after)
		if err := o.Swept(t.Context(), false); err == nil {
			t.Errorf("after %t: it was not told", after)
		}
		o.Table = whole
		if err := o.Swept(t.Context(), false); err != nil || !last().At.Equal(o.now.Truncate(time.Second)) {
			t.Errorf("after %t: %+v, %v", after, last(), err)
		}
	}

	// Two that end at the same time are one.
	done := make(chan error)
	for range 8 {
		go func() { done <- o.Swept(t.Context(), false) }()
	}
	var errs error
	for range 8 {
		errs = errors.Join(errs, <-done)
	}
	if errs != nil {
		t.Error(errs)
	}
}
