package card_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/secret"
)

// TestRoundTrips counts the scripts of an unblock, each of which crosses the network to
// the bridge and back once: one with a PUK, which is changed in the same, and two with an
// admin key. How a card gives out its answers makes more commands of it, but no more
// scripts.
func TestRoundTrips(t *testing.T) {
	for _, test := range []struct {
		config     softcard.Config
		noMetadata bool
		want       int
	}{
		{softcard.Config{Profile: softcard.PivApplet}, false, 1},
		{softcard.Config{Profile: softcard.PivApplet, Chunk: 7}, false, 1},
		{softcard.Config{Profile: softcard.PivApplet, ExactLe: true}, true, 1},
		{softcard.Config{Profile: softcard.CanoKey}, false, 1},
		{softcard.Config{Profile: softcard.CanoKey, Chunk: 7}, true, 1},
		{softcard.Config{Profile: softcard.CanoKey, ExactLe: true}, false, 1},
		{softcard.Config{Profile: softcard.GIDS}, false, 2},
		{softcard.Config{Profile: softcard.GIDS, Chunk: 7}, false, 2},
		{softcard.Config{Profile: softcard.GIDS, ExactLe: true}, false, 2},
	} {
		name := fmt.Sprintf("%s, chunks of %d, exact Le %t, no metadata %t", test.config.Profile, test.config.Chunk, test.config.ExactLe, test.noMetadata)
		t.Run(name, func(t *testing.T) {
			test.config.Rand, test.config.Blocked = rand.Reader, true
			c, err := softcard.New(test.config)
			if err != nil {
				t.Fatal(err)
			}
			d := newDesk(t, c)
			defer d.stop()
			d.noMetadata = test.noMetadata
			s := d.operate(card.Identify(true))
			if want := (card.RetryCounter{Known: true, Most: s.Identity.PIN.Most}); s.Leg != card.Done || s.Identity.PIN != want {
				t.Fatalf("identified as %+v", s)
			}
			t.Logf("to identify: %d scripts, %d commands", d.scripts, d.commands)
			d.scripts, d.commands = 0, 0
			f, err := card.FamilyNamed(s.Identity.Family)
			if err != nil {
				t.Fatal(err)
			}
			custody, next := settled(1), 2
			if f == card.GIDS {
				custody, next = card.Custody{}, 0
			}
			began, err := f.Unblock(s.ID, custody, next)
			if err != nil {
				t.Fatal(err)
			}
			s = d.operate(began)
			t.Logf("to unblock: %d scripts, %d commands", d.scripts, d.commands)
			if s.Leg != card.Done || s.Failure != (card.Failure{}) || !c.PINIs(newPIN) {
				t.Fatalf("%+v", s)
			}
			if f == card.PIV && (s.Outcome.PUK != card.Yes || !c.PUKIs(puks[2])) {
				t.Errorf("the PUK is not changed: %+v", s)
			}
			if d.scripts != test.want {
				t.Errorf("%d scripts, want %d", d.scripts, test.want)
			}
			if got := c.Inspect(); s.Outcome.PINTries.TriesLeft != got.PINMost || got.PINTries != got.PINMost || got.PINVerified || got.AdminVerified {
				t.Errorf("%+v, the card %+v", s.Outcome, got)
			}
		})
	}
}

// TestDifferences goes through what PIV cards differ in: the card differs, and the
// outcome does not.
func TestDifferences(t *testing.T) {
	for _, test := range []struct {
		profile            softcard.Profile
		lastWrong, blocked apdu.SW // the wrong PIN that blocks; an empty VERIFY then
		shortPIN           apdu.SW // the right PUK with a new PIN of 3 digits
		setsShortPIN       bool
		pinTries, pukTries int
	}{
		{softcard.PivApplet, 0x63C0, 0x6983, 0x6A80, false, 5, 3},
		{softcard.CanoKey, 0x6983, 0x63C0, 0x9000, true, 3, 3},
	} {
		t.Run(string(test.profile), func(t *testing.T) {
			c, err := softcard.New(softcard.Config{Profile: test.profile, Rand: rand.Reader})
			if err != nil {
				t.Fatal(err)
			}
			identify := func(noMetadata bool) card.Identity {
				t.Helper()
				d := newDesk(t, c.Clone())
				defer d.stop()
				d.noMetadata = noMetadata
				s := d.operate(card.Identify(true))
				if s.Leg != card.Done {
					t.Fatal(s.Failure)
				}
				return s.Identity
			}
			// Before: the tries are told, whichever way.
			if id := identify(false); id.PIN != (card.RetryCounter{Known: true, TriesLeft: test.pinTries, Most: test.pinTries}) ||
				id.PUK != (card.RetryCounter{Known: true, TriesLeft: test.pukTries, Most: test.pukTries}) {
				t.Errorf("new: %+v", id)
			}
			if id := identify(true); id.PIN != (card.RetryCounter{Known: true, TriesLeft: test.pinTries}) || id.PUK.Known {
				t.Errorf("new, without metadata: %+v", id)
			}
			// Blocked: so is that.
			choose(t, c)
			send := func(command string) apdu.SW {
				t.Helper()
				answer, err := c.Transmit(unhex(command))
				if err != nil {
					t.Fatal(err)
				}
				r, err := apdu.ParseResponse(answer)
				if err != nil {
					t.Fatal(err)
				}
				return r.SW
			}
			var last apdu.SW
			for range test.pinTries {
				last = send("0020008008303030303030FFFF")
			}
			if blocked := send("00200080"); last != test.lastWrong || blocked != test.blocked {
				t.Errorf("the last wrong PIN is answered %s, then an empty VERIFY %s", last, blocked)
			}
			if id := identify(false); id.PIN != (card.RetryCounter{Known: true, Most: test.pinTries}) {
				t.Errorf("blocked: %+v", id)
			}
			if id := identify(true); id.PIN != (card.RetryCounter{Known: true}) {
				t.Errorf("blocked, without metadata: %+v", id)
			}

			// What a card must not get, it may take: neither the verdict nor the allow-list
			// lets it come so far.
			careless := c.Clone()
			answer, err := careless.Transmit(unhex("002C008010" + "3132333435363738" + "313233FFFFFFFFFF"))
			if want := fmt.Sprintf("%04X", uint16(test.shortPIN)); err != nil || fmt.Sprintf("%X", answer) != want || careless.PINIs("123") != test.setsShortPIN {
				t.Errorf("a PIN of 3 digits is answered %X, not %s, and set %t", answer, want, careless.PINIs("123"))
			}
			s, err := card.PIV.Unblock(identify(false).ID, settled(1), 2)
			if err != nil {
				t.Fatal(err)
			}
			script, err := s.Script(deskMaterials(s))
			if err != nil {
				t.Fatal(err)
			}
			before := c.Inspect().Commands
			for _, bad := range []string{"123", "12345", "abcdef", "123456789"} {
				if script.Policy.Check(secret.New(bad), pin.Context{}) == nil {
					t.Errorf("the verdict lets %q through", bad)
				}
				r := apdu.Run(t.Context(), apdu.Script{Operation: "bad", Part: 1, Fence: 1, Deadline: time.Now(), Steps: script.Steps},
					func(apdu.Slot) ([]byte, error) { return []byte(bad), nil },
					func(_ context.Context, command []byte) ([]byte, error) { return c.Transmit(command) })
				if r.End != apdu.Refused {
					t.Errorf("a script with the PIN %q is run: %+v", bad, r)
				}
			}
			if vs := script.Policy.Check(secret.New(newPIN), pin.Context{}); vs != nil || c.Inspect().Commands != before {
				t.Errorf("the verdict on %s: %v; %d commands", newPIN, vs, c.Inspect().Commands-before)
			}

			d := newDesk(t, c)
			defer d.stop()
			if s := d.operate(s); s.Leg != card.Done || s.Outcome.PINTries.TriesLeft != test.pinTries || !c.PINIs(newPIN) || !c.PUKIs(puks[2]) {
				t.Errorf("%+v", s)
			}
		})
	}
}
