package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Disk is a Memory in a folder: a file for each card, named by the hash of its credential,
// in JSON, replaced as a whole; the file "lock" that is locked for every change; and a file
// for each process that has it open, locked as long as the process lives.
type Disk struct {
	dir     string
	process string
	own     *os.File // of this process

	mu   sync.Mutex // the lock is the process's, not the goroutine's
	lock *os.File
}

// keepFor is how long a card is remembered without any contact. It is far beyond Horizon,
// in case clocks are wrong.
const keepFor = 90 * 24 * time.Hour

const (
	recordSuffix  = ".json"
	offlineSuffix = ".offline"
	processPrefix = "process-"
	temporary     = "new"     // a record that is being written
	marker        = "journal" // is in every folder of a Disk
)

// Create makes the folder of a Disk. One that is there already is left as it is.
func Create(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create the bridge's record: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, marker), []byte("1\n"), 0o600); err != nil {
		return fmt.Errorf("create the bridge's record: %w", err)
	}
	return errors.Join(syncFolder(dir), syncFolder(filepath.Dir(dir)))
}

// Open opens a folder that was made by Create: one that has gone is an error, for a bridge
// must not forget. process names this process: letters and digits, never used before.
func Open(dir, process string, now time.Time) (*Disk, error) {
	d, err := open(dir, process, now)
	if err != nil {
		return nil, fmt.Errorf("open the bridge's record: %w", err)
	}
	return d, nil
}

func open(dir, process string, now time.Time) (*Disk, error) {
	if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
		return nil, err
	}
	d := &Disk{dir: dir, process: process}
	var err error
	if d.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	err = d.locked(func() error {
		if d.own, err = os.OpenFile(d.path(processPrefix+process), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
			return err
		}
		if free, err := tryLock(d.own); err != nil || !free {
			return errors.Join(errors.New("a process's file cannot be locked"), err)
		}
		return d.clean(now)
	})
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Close ends this process's use.
func (d *Disk) Close() {
	if d.own != nil {
		_ = os.Remove(d.own.Name())
		_ = d.own.Close()
		_ = os.Remove(d.own.Name()) // Windows
	}
	_ = d.lock.Close()
}

// clean removes the files of processes that have ended, and the records of cards that have
// not been here for long. A record that cannot be read stays.
func (d *Disk) clean(now time.Time) error {
	names, err := d.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if process, ok := strings.CutPrefix(name, processPrefix); ok && !d.Alive(process) {
			_ = os.Remove(d.path(name))
		}
		if strings.HasSuffix(name, offlineSuffix) {
			if o, err := d.readOffline(name); err == nil && len(o.Done) == 0 && now.Sub(o.Latest) > keepFor {
				_ = os.Remove(d.path(name))
			}
		}
		if !strings.HasSuffix(name, recordSuffix) {
			continue
		}
		if r, err := d.read(name); err == nil && len(r.Entries) == 0 && now.Sub(r.At) > keepFor {
			_ = os.Remove(d.path(name))
		}
	}
	return nil
}

// Process implements Memory.
func (d *Disk) Process() string { return d.process }

// Alive implements Memory.
func (d *Disk) Alive(process string) bool {
	if process == d.process {
		return true
	}
	f, err := os.OpenFile(d.path(processPrefix+process), os.O_RDWR, 0)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	free, err := tryLock(f)
	return !free || err != nil
}

// Update implements Memory.
func (d *Disk) Update(credential string, change func(Record) (Record, bool)) error {
	name := fileOf(credential) + recordSuffix
	return d.locked(func() error {
		r, err := d.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			// That the folder is still there, and this its first contact, must be sure.
			_, err = os.Stat(d.path(marker))
		} else if err == nil && r.Credential != credential {
			err = fmt.Errorf("%s is of another card", name)
		}
		if err != nil {
			return err
		}
		if changed, ok := change(r); ok {
			return d.write(name, changed)
		}
		return nil
	})
}

func fileOf(credential string) string {
	hash := sha256.Sum256([]byte(credential))
	return hex.EncodeToString(hash[:16])
}

// Each implements Memory.
func (d *Disk) Each(f func(Record)) error {
	return d.locked(func() error {
		names, err := d.names()
		for _, name := range names {
			if !strings.HasSuffix(name, recordSuffix) {
				continue
			}
			if r, bad := d.read(name); bad != nil {
				err = errors.Join(err, bad)
			} else {
				f(r)
			}
		}
		return err
	})
}

func (d *Disk) path(name string) string { return filepath.Join(d.dir, name) }

func (d *Disk) names() ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func (d *Disk) locked(f func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := lock(d.lock); err != nil {
		return fmt.Errorf("lock %s: %w", d.lock.Name(), err)
	}
	err := f()
	if bad := unlock(d.lock); bad != nil {
		err = errors.Join(err, fmt.Errorf("unlock %s: %w", d.lock.Name(), bad))
	}
	return err
}

func (d *Disk) read(name string) (Record, error) {
	b, err := os.ReadFile(d.path(name))
	if err != nil {
		return Record{}, err
	}
	var r Record
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil || r.Credential == "" || r.Fence < 1 || r.Part < 1 {
		return Record{}, fmt.Errorf("%s is damaged: repair or remove it, knowing that it keeps old operations from the card", d.path(name))
	}
	return r, nil
}

// write replaces a file, so that it is the old or the new one whatever happens, and the new
// one once write has returned.
func (d *Disk) write(name string, r any) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(d.path(temporary), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if bad := f.Close(); err == nil {
		err = bad
	}
	if err == nil {
		err = os.Rename(d.path(temporary), d.path(name))
	}
	if err == nil {
		err = syncFolder(d.dir)
	}
	return err
}
