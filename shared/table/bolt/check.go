package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// bbolt's file format, version 2: pages that start with id (8 bytes), flags
// (2), count (2) and overflow (4), in the machine's byte order. Only its two
// meta pages carry checksums; it trusts the rest, and damage there makes it
// panic, loop or overwrite what is in use.
const (
	pageHeader  = 16
	elementSize = 16
	metaSize    = 64 // with its checksum in the last 8 bytes
	bucketSize  = 16
	flagBranch  = 0x01
	flagLeaf    = 0x02
	flagFree    = 0x10
)

var order = binary.NativeEndian

// check reads a table file through, without changing it, and returns an
// ErrDamaged unless it is sound: every page is used once or free, all keys are
// in order and every value agrees with its checksum.
func check(path string) error {
	if info, err := os.Stat(path); err != nil {
		return err
	} else if info.Size() == 0 {
		return fmt.Errorf("%w: it is empty", ErrDamaged)
	}
	// Read-only, bbolt reads the meta pages only. It holds the lock meanwhile.
	b, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, ReadOnly: true})
	var system *os.PathError
	if errors.Is(err, berrors.ErrTimeout) || errors.As(err, &system) {
		return err
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer b.Close()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return b.View(func(tx *bbolt.Tx) error {
		c := checker{file: f, pageSize: uint64(b.Info().PageSize)}
		if err := c.run(uint64(tx.ID())); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return nil
	})
}

type checker struct {
	file     *os.File
	pageSize uint64
	used     []bool // by page id
}

// run checks the file as the transaction txid left it.
func (c *checker) run(txid uint64) error {
	for id := range uint64(2) {
		meta := make([]byte, metaSize)
		if _, err := c.file.ReadAt(meta, int64(id*c.pageSize+pageHeader)); err != nil {
			return err
		}
		h := fnv.New64a()
		_, _ = h.Write(meta[:metaSize-8])
		if h.Sum64() != order.Uint64(meta[56:]) || order.Uint64(meta[48:]) != txid {
			continue // the transaction before
		}
		pages := order.Uint64(meta[40:])
		if info, err := c.file.Stat(); err != nil {
			return err
		} else if uint64(info.Size())/c.pageSize < pages {
			return fmt.Errorf("it ends after %d of %d pages", uint64(info.Size())/c.pageSize, pages)
		}
		c.used = make([]bool, pages)
		names := map[string]bool{}
		if err := c.tree(order.Uint64(meta[16:]), nil, nil, names); err != nil {
			return err
		}
		for _, name := range buckets() {
			if !names[string(name)] {
				return fmt.Errorf("it has no bucket %q", name)
			}
		}
		return c.free(order.Uint64(meta[32:]))
	}
	return errors.New("no meta page")
}

// page reads a page and marks it used.
func (c *checker) page(id uint64) (page []byte, flags uint16, err error) {
	header := make([]byte, pageHeader)
	if id < 2 || id >= uint64(len(c.used)) {
		return nil, 0, fmt.Errorf("there is no page %d", id)
	}
	if _, err := c.file.ReadAt(header, int64(id*c.pageSize)); err != nil {
		return nil, 0, err
	}
	end := id + uint64(order.Uint32(header[12:])) + 1
	if order.Uint64(header) != id || end > uint64(len(c.used)) {
		return nil, 0, fmt.Errorf("page %d is not itself", id)
	}
	for i := id; i < end; i++ {
		if c.used[i] {
			return nil, 0, fmt.Errorf("page %d is used twice", i)
		}
		c.used[i] = true
	}
	page = make([]byte, (end-id)*c.pageSize)
	_, err = c.file.ReadAt(page, int64(id*c.pageSize))
	return page, order.Uint16(header[8:]), err
}

// tree checks the pages under one, whose keys are in [low, high); high nil is
// no end. In the root tree, names takes the names of the buckets, which are
// checked in turn; elsewhere it is nil.
func (c *checker) tree(id uint64, low, high []byte, names map[string]bool) error {
	page, flags, err := c.page(id)
	if err != nil {
		return err
	}
	if err := c.elements(page, flags, low, high, names); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

func (c *checker) elements(page []byte, flags uint16, low, high []byte, names map[string]bool) error {
	if flags != flagBranch && flags != flagLeaf {
		return fmt.Errorf("is of kind %#x", flags)
	}
	count := int(order.Uint16(page[10:]))
	if pageHeader+count*elementSize > len(page) {
		return fmt.Errorf("has %d elements", count)
	}
	// cut returns n bytes from start, counted from the element.
	cut := func(element int, start, n uint64) ([]byte, error) {
		start += uint64(pageHeader + element*elementSize)
		if start+n > uint64(len(page)) {
			return nil, errors.New("an element lies outside")
		}
		return page[start : start+n : start+n], nil
	}
	type child struct {
		key []byte
		id  uint64
	}
	var children []child
	for i := range count {
		e := page[pageHeader+i*elementSize:]
		var key, value []byte
		var err error
		if flags == flagBranch {
			key, err = cut(i, uint64(order.Uint32(e)), uint64(order.Uint32(e[4:])))
			children = append(children, child{key, order.Uint64(e[8:])})
		} else {
			pos, ksize, vsize := uint64(order.Uint32(e[4:])), uint64(order.Uint32(e[8:])), uint64(order.Uint32(e[12:]))
			if value, err = cut(i, pos+ksize, vsize); err == nil {
				key, err = cut(i, pos, ksize)
			}
		}
		if err != nil {
			return err
		}
		if d := bytes.Compare(low, key); d > 0 || d == 0 && i > 0 || high != nil && bytes.Compare(key, high) >= 0 {
			return errors.New("its keys are out of order")
		}
		low = key
		if flags == flagLeaf {
			if err := c.value(order.Uint32(e), key, value, names); err != nil {
				return err
			}
		}
	}
	for i, ch := range children {
		end := high
		if i+1 < len(children) {
			end = children[i+1].key
		}
		if err := c.tree(ch.id, ch.key, end, names); err != nil {
			return err
		}
	}
	return nil
}

// value checks an element of a leaf: in the root tree a bucket, whose only
// page may be within the value, and elsewhere a sealed value.
func (c *checker) value(flags uint32, key, value []byte, names map[string]bool) error {
	if names == nil {
		if flags != 0 {
			return errors.New("has a bucket in a bucket")
		}
		if _, err := unseal(key, value); err != nil {
			return errors.New("has a value that disagrees with its checksum")
		}
		return nil
	}
	if flags != 1 || len(value) < bucketSize {
		return errors.New("has a value outside the buckets")
	}
	names[string(key)] = true
	if root := order.Uint64(value); root != 0 {
		return c.tree(root, nil, nil, nil)
	}
	page := value[bucketSize:]
	if len(page) < pageHeader {
		return errors.New("has half a bucket")
	}
	return c.elements(page, order.Uint16(page[8:]), nil, nil, nil)
}

// free checks that the list of free pages has all that are not used, once.
func (c *checker) free(id uint64) error {
	page, flags, err := c.page(id)
	if err != nil {
		return err
	}
	if flags != flagFree {
		return fmt.Errorf("page %d is not the list of free pages", id)
	}
	count, list := uint64(order.Uint16(page[10:])), page[pageHeader:]
	if count == 0xFFFF { // too many for two bytes
		count, list = order.Uint64(list), list[8:]
	}
	if count > uint64(len(list))/8 {
		return fmt.Errorf("page %d lists %d free pages", id, count)
	}
	for i := range count {
		p := order.Uint64(list[8*i:])
		if p < 2 || p >= uint64(len(c.used)) || c.used[p] {
			return fmt.Errorf("page %d cannot be free", p)
		}
		c.used[p] = true
	}
	for p := 2; p < len(c.used); p++ {
		if !c.used[p] {
			return fmt.Errorf("page %d is lost", p)
		}
	}
	return nil
}
