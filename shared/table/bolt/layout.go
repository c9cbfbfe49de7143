package bolt

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"time"

	"go.etcd.io/bbolt"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/internal/driver"
)

// The file's buckets. No part of a key has a NUL, so places sort as partition
// and sort key do, and every value starts with a checksum of itself and its
// key:
//
//	items   partition NUL sort NUL            -> version, expiry, index entries, data
//	index/* partition NUL sort NUL item-place -> nothing
//	expiry  seconds (8 bytes) item-place      -> nothing
var (
	bucketItems  = []byte("items")
	bucketExpiry = []byte("expiry")
)

func bucket(index table.Index) []byte {
	if index == "" {
		return bucketItems
	}
	return []byte("index/" + index)
}

func buckets() [][]byte {
	all := [][]byte{bucketItems, bucketExpiry}
	for _, index := range table.Indexes() {
		all = append(all, bucket(index))
	}
	return all
}

// place is where an item is, and what its place in an index starts with.
func place(partition, sort string) []byte { return append(rangePlace(partition, sort), 0) }

// rangePlace is at or below all places with the sort key or a greater one, and
// above all others of the partition.
func rangePlace(partition, sort string) []byte {
	b := make([]byte, 0, len(partition)+len(sort)+2)
	b = append(b, partition...)
	b = append(b, 0)
	return append(b, sort...)
}

// primary is the place of the item that an index entry stands for.
func primary(k []byte) []byte {
	for range 2 {
		k = k[bytes.IndexByte(k, 0)+1:]
	}
	return k
}

type entryKey struct{ bucket, key []byte }

// entries are what is kept in the index and expiry buckets for an item.
func entries(k []byte, item table.Item) []entryKey {
	var es []entryKey
	for _, i := range item.Indexes {
		es = append(es, entryKey{bucket(i.Index()), append(place(i.Partition(), i.Sort()), k...)})
	}
	if !item.ExpiresAt.IsZero() {
		at := binary.BigEndian.AppendUint64(nil, uint64(item.ExpiresAt.Unix()))
		es = append(es, entryKey{bucketExpiry, append(at, k...)})
	}
	return es
}

// expiry is when the item of an entry in the expiry bucket expires.
func expiry(k []byte) int64 { return int64(binary.BigEndian.Uint64(k)) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const sealSize = 4

// seal puts the checksum before the payload.
func seal(k, payload []byte) []byte {
	v := make([]byte, sealSize, sealSize+len(payload))
	v = append(v, payload...)
	binary.BigEndian.PutUint32(v, checksum(k, payload))
	return v
}

// unseal returns the payload, or ErrDamaged.
func unseal(k, v []byte) ([]byte, error) {
	if len(v) < sealSize || binary.BigEndian.Uint32(v) != checksum(k, v[sealSize:]) {
		return nil, ErrDamaged
	}
	return v[sealSize:], nil
}

func checksum(k, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(k, castagnoli), castagnoli, payload)
}

// load returns the item at a place, or problem.ErrNotFound.
func load(tx *bbolt.Tx, k []byte) (table.Item, error) {
	v := tx.Bucket(bucketItems).Get(k)
	if v == nil {
		return table.Item{}, problem.ErrNotFound
	}
	return decode(k, v)
}

func encode(k []byte, item table.Item) []byte {
	b := binary.AppendVarint(nil, item.Version)
	at := int64(0) // never
	if !item.ExpiresAt.IsZero() {
		at = item.ExpiresAt.Unix()
	}
	b = binary.AppendVarint(b, at)
	b = binary.AppendUvarint(b, uint64(len(item.Indexes)))
	for _, i := range item.Indexes {
		for _, s := range []string{string(i.Index()), i.Partition(), i.Sort()} {
			b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
		}
	}
	return seal(k, append(b, item.Data...))
}

// decode is the reverse of encode. The item shares no memory with v, which
// ends with the transaction.
func decode(k, v []byte) (table.Item, error) {
	v, err := unseal(k, v)
	if err != nil {
		return table.Item{}, err
	}
	r := reader{rest: v}
	partition, sort, _ := bytes.Cut(k, []byte{0})
	key := table.StoredKey(driver.Only{}, string(partition), string(bytes.TrimSuffix(sort, []byte{0})))
	item := table.Item{Key: key, Version: r.varint()}
	if at := r.varint(); at != 0 {
		item.ExpiresAt = time.Unix(at, 0).UTC()
	}
	for range r.uvarint() {
		item.Indexes = append(item.Indexes, table.StoredIndexKey(driver.Only{}, table.Index(r.text()), r.text(), r.text()))
	}
	item.Data = bytes.Clone(r.rest)
	return item, nil
}

// reader takes a value apart. Its checksum was right, so it is well formed.
type reader struct{ rest []byte }

func (r *reader) varint() int64 {
	n, size := binary.Varint(r.rest)
	r.rest = r.rest[size:]
	return n
}

func (r *reader) uvarint() uint64 {
	n, size := binary.Uvarint(r.rest)
	r.rest = r.rest[size:]
	return n
}

func (r *reader) text() string {
	n := r.uvarint()
	s := string(r.rest[:n])
	r.rest = r.rest[n:]
	return s
}
