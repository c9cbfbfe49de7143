package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/relay"
)

// Offline is what is remembered of one card for when there is no connection, in a file of
// its own in the folder of a Disk.
type Offline struct {
	Credential string `json:"credential"`
	// Known is what the cloud has told last; nil if the card was never seen with a
	// connection.
	Known *relay.Known `json:"known,omitempty"`
	// Challenges were made since a time.
	Challenges int       `json:"challenges,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	Latest     time.Time `json:"latest"` // the latest time of a change
	// Done is what the cloud has not acknowledged. What is begun is there as unknown.
	Done []Deed `json:"done,omitempty"`
}

// Deed is something that a bridge does by itself.
type Deed struct {
	relay.Offline
	// Process is doing it, or was; "" once it has ended.
	Process string `json:"process,omitempty"`
}

// Challenged counts a challenge, and returns false if there were too many in a day. A clock
// that is set back begins no new day.
func (o Offline) Challenged(now time.Time) (Offline, bool) {
	if now.Sub(o.Since) >= 24*time.Hour {
		o.Challenges, o.Since = 0, now
	}
	if o.Challenges >= offline.Challenges {
		return o, false
	}
	o.Challenges++
	return o, true
}

// Begun has what a process is about to do, which is stored before that is done.
func (o Offline) Begun(doing relay.Offline, process string) Offline {
	o.Done = append(slices.Clone(o.Done), Deed{doing, process})
	return o
}

// Ended has what came of it. When a new PIN expires is not known before the cloud tells.
func (o Offline) Ended(done relay.Offline) Offline {
	o = o.Without(done.ID).Begun(done, "")
	if done.PIN == relay.Yes && o.Known != nil {
		known := *o.Known
		known.PINExpiresAt, o.Known = time.Time{}, &known
	}
	return o
}

// overtake is by how much messages may overtake each other. What is older by more was told
// by a clock that has been set right since.
const overtake = time.Minute

// Knows has what the cloud tells of the card, unless something later is there: then it
// returns false. That the PIN has expired is not so if the cloud was not told yet of a new
// one.
func (o Offline) Knows(known relay.Known, now time.Time) (Offline, bool) {
	if o.Known != nil && known.At.Before(o.Known.At) && o.Known.At.Sub(known.At) < overtake {
		return o, false
	}
	renewed := slices.ContainsFunc(o.Done, func(d Deed) bool { return d.PIN == relay.Yes })
	if renewed && known.PINExpired(now) {
		known.PINExpiresAt = time.Time{}
	}
	o.Known = &known
	return o, true
}

// Without has it removed.
func (o Offline) Without(id string) Offline {
	o.Done = slices.DeleteFunc(slices.Clone(o.Done), func(d Deed) bool { return d.ID == id })
	return o
}

// Card returns the Record of a card, the zero one if there is none.
func (d *Disk) Card(credential string) (r Record, err error) {
	err = d.Update(credential, func(found Record) (Record, bool) {
		r = found
		return found, false
	})
	return r, err
}

// UpdateOffline gives change what is remembered of a card, and stores what it returns;
// with false nothing is stored. It returns what is remembered then.
func (d *Disk) UpdateOffline(credential string, now time.Time, change func(Offline) (Offline, bool)) (o Offline, err error) {
	name := fileOf(credential) + offlineSuffix
	err = d.locked(func() error {
		if o, err = d.readOffline(name); errors.Is(err, fs.ErrNotExist) {
			o = Offline{Credential: credential}
		} else if err != nil {
			return err
		}
		changed, ok := change(o)
		if !ok {
			return nil
		}
		if changed.Latest = o.Latest; now.After(o.Latest) {
			changed.Latest = now.UTC().Truncate(time.Second)
		}
		o = changed
		return d.write(name, o)
	})
	if err != nil {
		return o, fmt.Errorf("keep the bridge's record: %w", err)
	}
	return o, nil
}

// Remembered returns what is remembered of a card.
func (d *Disk) Remembered(credential string) (Offline, error) {
	return d.UpdateOffline(credential, time.Time{}, func(o Offline) (Offline, bool) { return o, false })
}

// Done returns what the cloud has not acknowledged of all cards, but what a process is
// doing still: that would be told as unknown. An error does not mean that there is nothing.
func (d *Disk) Done() (done []relay.Offline, err error) {
	err = d.locked(func() error {
		return d.eachOffline(func(o Offline) error {
			for _, deed := range o.Done {
				if deed.Process == "" || !d.Alive(deed.Process) {
					done = append(done, deed.Offline)
				}
			}
			return nil
		})
	})
	return done, err
}

// AcknowledgeOffline forgets what the cloud has noted. What is not known is ignored.
func (d *Disk) AcknowledgeOffline(id string) error {
	return d.locked(func() error {
		return d.eachOffline(func(o Offline) error {
			if less := o.Without(id); len(less.Done) < len(o.Done) {
				return d.write(fileOf(o.Credential)+offlineSuffix, less)
			}
			return nil
		})
	})
}

func (d *Disk) eachOffline(f func(Offline) error) error {
	names, err := d.names()
	for _, name := range names {
		if !strings.HasSuffix(name, offlineSuffix) {
			continue
		}
		o, bad := d.readOffline(name)
		if bad == nil {
			bad = f(o)
		}
		err = errors.Join(err, bad)
	}
	return err
}

func (d *Disk) readOffline(name string) (Offline, error) {
	b, err := os.ReadFile(d.path(name))
	if err != nil {
		return Offline{}, err
	}
	var o Offline
	if err := json.Unmarshal(b, &o); err != nil || o.Credential == "" {
		return Offline{}, fmt.Errorf("%s is damaged: remove it", d.path(name))
	}
	return o, nil
}
