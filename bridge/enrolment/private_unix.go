//go:build unix

package enrolment

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// makeFolder makes a folder that is its owner's alone. One that is there must be so.
func makeFolder(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(dir, 0o700)
	}
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is open to others (mode %o): give the bridge a folder of its own", dir, info.Mode().Perm())
	}
	return err
}

func checkPrivate(path string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be read by others (mode %o): enrol anew, with -force, if somebody may have; else chmod 600 it", path, info.Mode().Perm())
	}
	return nil
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
