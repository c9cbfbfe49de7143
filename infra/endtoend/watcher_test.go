//go:build linux && cgo && !nopcsc

package endtoend

import (
	"bytes"
	"sync"

	"github.com/pinward/pinward/infra/softcard"
)

// watcher follows what a card is sent, and so knows without asking it which PUK it has,
// which PINs it was given, and how often a wrong PUK was presented.
type watcher struct {
	mu      sync.Mutex
	puk     string // that the card has
	current string // the PIN set in the script under way
	set     map[string]bool
	rotated map[string]bool // the PUK was changed in the script that set this PIN
	wrong   int             // presentations of a wrong PUK
	streak  int             // of them without a right one in between
	worst   int             // streak
	secrets []string        // all PUKs that were sent
}

func watch(card *softcard.Card, puk string) *watcher {
	w := &watcher{puk: puk, set: map[string]bool{}, rotated: map[string]bool{}, secrets: []string{puk}}
	card.Tap(w.see)
	return w
}

const (
	insSelect = 0xA4
	insReset  = 0x2C
	insChange = 0x24
)

func (w *watcher) see(command []byte) {
	if len(command) < 5 {
		return
	}
	data := command[5:]
	data = data[:min(len(data), int(command[4]))]
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case command[1] == insSelect:
		w.current = ""
	case command[1] == insReset && command[2] == 0x02: // GIDS: its script stops unless the admin key was right
		w.reset(data)
	case command[1] == insReset && len(data) == 16:
		if w.presents(data[:8]) {
			w.reset(data[8:])
		}
	case command[1] == insChange && command[3] == 0x81 && len(data) == 16:
		w.secrets = append(w.secrets, string(data[8:]))
		if w.presents(data[:8]) {
			w.puk = string(data[8:])
			w.rotated[w.current] = true
		}
	}
}

func (w *watcher) reset(pin []byte) {
	w.current = string(bytes.TrimRight(pin, "\xFF"))
	w.set[w.current] = true
}

func (w *watcher) presents(puk []byte) (right bool) {
	if string(puk) == w.puk {
		w.streak = 0
		return true
	}
	w.wrong++
	w.streak++
	w.worst = max(w.worst, w.streak)
	return false
}

// counts returns how many wrong PUKs were presented, and the longest streak.
func (w *watcher) counts() (wrong, worst int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wrong, w.worst
}

func (w *watcher) was(pin string) (set, rotated bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set[pin], w.rotated[pin]
}

// known returns all secrets of the card that were sent, and the PUK that it has.
func (w *watcher) known() (secrets []string, puk string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.secrets...), w.puk
}
