//go:build linux && cgo && !nopcsc

package endtoend

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/pinward/pinward/infra/softcard"
)

// What the bridge logs when something happens: one line for each.
const (
	cardIn      = `msg="card inserted"`
	cardOut     = "msg=cardRemoved"
	readerIn    = "msg=readerAdded"
	readerOut   = "msg=readerRemoved"
	serviceUp   = "msg=serviceUp"
	serviceDown = `msg="no smart card service"`
	endedEarly  = `msg="script ended early"`
)

// hotPlug is an installation with a card that comes and goes.
type hotPlug struct {
	*installation
	card   *softcard.Card
	cred   string
	remove func()
	want   map[string]int // lines in the bridge's log
	pins   int
}

// happens waits until the bridge has said one line more of each.
func (h *hotPlug) happens(lines ...string) {
	h.Helper()
	for _, line := range lines {
		h.want[line]++
	}
	for _, line := range lines {
		h.await(fmt.Sprintf("%d times %s", h.want[line], line), func() bool { return strings.Count(h.bridge.printed(), line) >= h.want[line] })
	}
}

func (h *hotPlug) insert() {
	h.Helper()
	h.remove = h.pcscd.Insert(0, h.card)
	h.happens(cardIn)
	h.seen(h.cred)
}

func (h *hotPlug) newPIN() string {
	h.pins++
	return fmt.Sprintf("8031%04d", (642+37*h.pins)%1e4)
}

// works is an unblock that must succeed.
func (h *hotPlug) works() {
	h.Helper()
	pin := h.newPIN()
	h.succeeds(h.cred, pin, h.card.Profile() != softcard.GIDS)
	if !h.card.PINIs(pin) {
		h.Error("the card does not have its new PIN")
	}
}

// TestHotPlug disturbs a bridge in every way that a desk has: it is never started again.
func TestHotPlug(t *testing.T) {
	for _, test := range []struct {
		profile softcard.Profile
		family  string
		known   object
		steps   int // of the scripts of an unblock
		reset   int // which of them sets the PIN
	}{
		{softcard.CanoKey, "PIV", object{"puk": softcard.FactoryPUK}, 6, 3},
		{softcard.GIDS, "GIDS", object{"adminKey": hex.EncodeToString(softcard.FactoryAdminKey)}, 8, 6},
	} {
		t.Run(test.family, func(t *testing.T) {
			t.Parallel()
			h := &hotPlug{installation: install(t), want: map[string]int{}}
			var id []byte
			h.card, id = newCard(t, softcard.Config{Profile: test.profile})
			h.cred = h.register(test.family, id, h.template(test.family, ""), test.known)
			w := watch(h.card, softcard.FactoryPUK)
			h.happens(serviceUp, readerIn, readerIn)
			h.insert()

			faults := []softcard.Fault{{Step: test.reset, Kind: softcard.Pull}, {Step: test.reset, Kind: softcard.Lose}}
			for _, step := range rand.Perm(test.steps)[:3] {
				faults = append(faults, softcard.Fault{Step: 1 + step, Kind: []softcard.Kind{softcard.Pull, softcard.Lose}[rand.IntN(2)]})
			}
			for _, fault := range faults {
				h.pulled(w, fault)
			}
			h.shared()
			h.withoutService()

			for line, want := range h.want {
				if got := strings.Count(h.bridge.printed(), line); got != want {
					t.Errorf("the bridge has said %s %d times, want %d", line, got, want)
				}
			}
			if !h.bridge.alive() {
				t.Error("the bridge has ended")
			}
			if state := h.card.Inspect(); state.PUKTries != state.PUKMost {
				t.Errorf("the PUK has %d tries of %d", state.PUKTries, state.PUKMost)
			}
			if t.Failed() {
				t.Logf("the bridge:\n%s", h.bridge.printed())
			}
		})
	}
}

// pulled puts the card in blocked, has it unblocked, and pulls it from the next unblock.
func (h *hotPlug) pulled(w *watcher, fault softcard.Fault) {
	h.Helper()
	h.Logf("the card is pulled at command %d, which it gets: %t", fault.Step, fault.Kind == softcard.Lose)
	h.remove()
	h.happens(cardOut)
	h.card.PowerOn()
	block(h, h.card)
	h.card.PowerOff()
	h.insert()
	h.works()

	wrong, _ := w.counts()
	h.card.Inject(fault)
	pin := h.newPIN()
	op := h.unblock(h.cred, pin)
	h.happens(endedEarly, cardOut)
	h.insert()
	if op.State == "unknown" {
		h.await("knowledge of what "+op.ID+" has done", func() bool {
			op, _, _ = h.look(op.ID)
			return op.State == "reconciled"
		})
	}
	set, _ := w.was(pin)
	says := op.Outcome.PIN
	if op.State == "failed" && says == "" {
		says = "no"
	}
	if says == "yes" && !set || says == "no" && set {
		h.Errorf("%v (%s), but that its PIN was set is %t", op, op.Sentence, set)
	}
	h.works()
	if now, _ := w.counts(); now > wrong+1 {
		h.Errorf("%d wrong PUKs for one pull", now-wrong)
	}
}

// shared has other programs use and reset the card while it is unblocked again and again.
func (h *hotPlug) shared() {
	h.Helper()
	h.Log("other programs use and reset the card")
	others := make(chan error, 1)
	go func() {
		var err error
		for range 6 {
			for _, args := range [][]string{{"opensc-tool", "--reset"}, {"opensc-tool", "--serial"}} {
				if out, failed := h.pcscd.Command(args[0], args[1:]...).CombinedOutput(); failed != nil {
					err = fmt.Errorf("%v: %w: %s", args, failed, out)
				}
			}
		}
		others <- err
	}()
	for {
		h.works()
		select {
		case err := <-others:
			if err != nil {
				h.Error(err)
			}
			return
		default:
		}
	}
}

// withoutService has the smart card service killed and started again.
func (h *hotPlug) withoutService() {
	h.Helper()
	h.Log("the smart card service is killed and started")
	for range 2 {
		h.pcscd.Kill()
		h.happens(cardOut, readerOut, readerOut, serviceDown)
		h.pcscd.Run()
		h.happens(serviceUp, readerIn, readerIn, cardIn)
		h.seen(h.cred)
		h.works()
	}
}
