package bolt

import (
	"bytes"
	"fmt"

	"go.etcd.io/bbolt"
)

// Hold lets no Write be committed until release.
func (d *DB) Hold() (release func()) {
	d.turn <- struct{}{}
	return func() { <-d.turn }
}

// Dump returns all there is in the file, and an error unless the indexes have
// exactly the entries that the items call for.
func (d *DB) Dump() (map[string]string, error) {
	dump := map[string]string{}
	err := d.view(func(tx *bbolt.Tx) error {
		want := map[string]bool{}
		found := 0
		for _, name := range buckets() {
			err := tx.Bucket(name).ForEach(func(k, v []byte) error {
				dump[string(name)+" "+string(k)] = string(v)
				if !bytes.Equal(name, bucketItems) {
					found++
					return nil
				}
				item, err := decode(k, v)
				for _, e := range entries(k, item) {
					want[string(e.bucket)+" "+string(e.key)] = true
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		for e := range want {
			if _, ok := dump[e]; !ok {
				return fmt.Errorf("there is no entry %q", e)
			}
		}
		if found != len(want) {
			return fmt.Errorf("%d entries for %d", found, len(want))
		}
		return nil
	})
	return dump, err
}

// Bolt is the file without the table.
func (d *DB) Bolt() *bbolt.DB { return d.bolt }
