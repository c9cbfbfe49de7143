package bolt_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
)

// tryDamaged opens a file with the content. It returns what is in it, or the
// error, which must be ErrDamaged and leave the file as it was.
func tryDamaged(t *testing.T, content []byte) (map[string]string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "table")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(path)
	after, readErr := os.ReadFile(path)
	if readErr != nil || !bytes.Equal(after, content) {
		t.Errorf("opening changed the file (%v)", readErr)
	}
	if err != nil {
		if !errors.Is(err, bolt.ErrDamaged) {
			t.Errorf("got %v, want ErrDamaged", err)
		}
		return nil, err
	}
	defer db.Close()
	dump, err := db.Dump()
	if err != nil {
		t.Error(err)
	}
	return dump, nil
}

func TestDamaged(t *testing.T) {
	good, err := os.ReadFile(filled(t))
	if err != nil {
		t.Fatal(err)
	}
	garbage := bytes.Repeat([]byte("garbage "), len(good)/8)
	foreign := filepath.Join(t.TempDir(), "foreign")
	other, err := bbolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(other.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("items"))
		return errors.Join(err, b.Put([]byte("k"), []byte("v")))
	}), other.Close()); err != nil {
		t.Fatal(err)
	}
	foreignContent, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	for name, content := range map[string][]byte{
		"empty":               {},
		"a byte":              good[:1],
		"a page":              good[:page],
		"two pages":           good[:2*page],
		"three pages":         good[:3*page],
		"a half":              good[:len(good)/2],
		"a half and a bit":    good[:len(good)/2+100],
		"garbage":             garbage,
		"text":                []byte("#!/bin/sh\necho not a table\n"),
		"garbage header":      append(garbage[:2*page:2*page], good[2*page:]...),
		"garbage after":       append(good[:2*page:2*page], garbage[2*page:]...),
		"nothing after":       append(good[:2*page:2*page], make([]byte, len(good)-2*page)...),
		"something else's":    foreignContent,
		"a page in the wrong": append(append(good[:4*page:4*page], good[5*page:6*page]...), good[5*page:]...),
	} {
		if _, err := tryDamaged(t, content); err == nil {
			t.Errorf("%s: opened", name)
		} else if testing.Verbose() {
			t.Logf("%s: %v", name, err)
		}
	}
}

// Whatever byte is changed, either that is noticed or it was one that nothing
// depends on.
func TestFlippedBytes(t *testing.T) {
	good, err := os.ReadFile(filled(t))
	if err != nil {
		t.Fatal(err)
	}
	want, err := tryDamaged(t, good)
	if err != nil {
		t.Fatal(err)
	}
	const metas = 2 * 4096
	noticed := 0
	const flips = 200
	for range flips {
		content := bytes.Clone(good)
		at := rand.N(len(content))
		content[at] ^= byte(1 + rand.N(255))
		got, err := tryDamaged(t, content)
		if err != nil {
			noticed++
		} else if at >= metas { // a bad meta page is how a crash looks: the one before counts
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("byte %d of %d: not noticed:\n%s", at, len(content), diff)
			}
		}
	}
	t.Logf("%d of %d changed bytes were noticed", noticed, flips)
	if noticed < flips/10 {
		t.Error("too few to be true")
	}
}

func TestDamagedWhileOpen(t *testing.T) {
	path := filled(t)
	db := open(t, path)
	if err := os.Truncate(path, 3*4096); err != nil {
		t.Fatal(err)
	}
	_, err := db.Get(t.Context(), user("1-1"))
	if !errors.Is(err, bolt.ErrDamaged) {
		t.Errorf("get: got %v, want ErrDamaged", err)
	}
	if err := db.Write(t.Context(), put("new", "x", table.Absent())); !errors.Is(err, bolt.ErrDamaged) {
		t.Errorf("write: got %v, want ErrDamaged", err)
	}
	if _, err := db.Get(t.Context(), user("1-1")); !errors.Is(err, bolt.ErrDamaged) {
		t.Errorf("then: got %v, want ErrDamaged", err)
	}
}
