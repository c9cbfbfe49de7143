package tenant_test

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// TestOfflineKey: whoever needs it first makes it, once, and it is another in each tenant
// and not in the table in the clear.
func TestOfflineKey(t *testing.T) {
	o := newOffice(t)
	acme, _ := o.open("acme")
	other, _ := o.open("other")
	keys := make([][]byte, 4)
	var all sync.WaitGroup
	for i := range keys {
		all.Go(func() {
			key, err := o.OfflineKey(t.Context(), acme)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = key.Bytes()
		})
	}
	all.Wait()
	for _, key := range keys {
		if len(key) != 32 || !bytes.Equal(key, keys[0]) {
			t.Errorf("keys differ")
		}
	}
	theirs, err := o.OfflineKey(t.Context(), other)
	if err != nil || bytes.Equal(theirs.Bytes(), keys[0]) {
		t.Errorf("another tenant has the same key, %v", err)
	}
	item, err := o.Table.Get(t.Context(), table.OfflineKeyKey("acme"))
	if err != nil || bytes.Contains(item.Data, keys[0]) {
		t.Errorf("stored as %q, %v", item.Data, err)
	}
	acme.Keys = other.Keys
	if _, err := o.OfflineKey(t.Context(), acme); err == nil || errors.Is(err, problem.ErrNotFound) {
		t.Errorf("opened with another tenant's keys: %v", err)
	}
}
