package credential

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
)

const (
	pukSize   = 8  // SP 800-73-4 part 2, 2.4.3
	maxTries  = 15 // what 63CX can tell (ISO 7816-4, 5.1.3)
	maxFormer = 8  // PUKs kept besides those in custody
)

func checkPUK(family string, puk secret.Text) error {
	text := puk.Reveal()
	switch {
	case !hasPUK(family):
		return problem.Invalid("inconsistent", "puk", "is for cards that have one; %s cards have an admin key", family)
	case len(text) != pukSize:
		return problem.Invalid("length", "puk", "must have exactly %d characters, as every PIV card's PUK has; a card that was given a shorter one must be given a new one first", pukSize)
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }):
		return problem.Invalid("characters", "puk", "must be digits, letters or signs of ASCII, without spaces")
	}
	return nil
}

func checkTries(left *int) error {
	if left != nil && (*left < 0 || *left > maxTries) {
		return problem.Invalid("range", "pukTriesLeft", "must be 0 to %d", maxTries)
	}
	return nil
}

// claim takes custody of a PUK that somebody says the card has.
func (c *Credential) claim(core tenant.Core, puk secret.Text, triesLeft *int) error {
	var vs problem.Violations
	_ = vs.Merge(checkPUK(c.Family, puk))
	_ = vs.Merge(checkTries(triesLeft))
	if err := vs.Err(); err != nil {
		return err
	}
	with, slot, err := c.AddPUK(core.Keys, core.Tenant.ID, puk)
	if err != nil {
		return err
	}
	*c = with
	c.believe(slot, triesLeft)
	return nil
}

// believe lets the custody be of the PUK in a slot. What is known of the tries left stays
// true if nothing is said.
func (c *Credential) believe(slot int, triesLeft *int) {
	var counter card.RetryCounter
	if c.Custody.Current != 0 {
		counter = card.RetryCounter{Known: true, TriesLeft: c.Custody.Tries, Most: c.Custody.Most}
	}
	if triesLeft != nil {
		counter.Known, counter.TriesLeft = true, *triesLeft
	}
	c.Custody = card.Claim(slot, counter)
}

// escrow seals an admin key, given in hex.
func (c *Credential) escrow(core tenant.Core, adminKey secret.Text) error {
	key, isHex := unhexKey(adminKey)
	n := len(key.Reveal())
	switch {
	case hasPUK(c.Family):
		return problem.Invalid("inconsistent", "adminKey", "is for cards that have one; %s cards have a PUK", c.Family)
	case !isHex:
		return problem.Invalid("malformed", "adminKey", "must be in hex")
	case n != 16 && n != 24 && n != 32: // see card.Answer
		return problem.Invalid("length", "adminKey", "must have 24 bytes for 3DES, or 16, 24 or 32 for AES: 48, 32 or 64 digits of hex")
	}
	sealed, err := core.Keys.Seal(adminKeyPurpose(core.Tenant.ID, c.ID), []byte(key.Reveal()))
	if err != nil {
		return fmt.Errorf("seal admin key: %w", err)
	}
	c.AdminKey = sealed
	return nil
}

// takeOver ends what is left of an operation whose lease is over: what somebody says of
// the card now is newer than any result that may still come.
func (c *Credential) takeOver() {
	*c = c.Release()
	c.Lease.Fence++
}

// Claim is what an operator says of a card's PUK.
type Claim struct {
	// PUK is the one that the card has; nil says that it has after all the one that was on
	// record before the last claim.
	PUK *secret.Text
	// TriesLeft are its tries, if they are known; nil leaves what is known of them.
	TriesLeft *int
	// Replace says that the card has another PUK than the one that it is known to have.
	Replace bool
}

// ClaimPUK takes an operator's word for the PUK that a card has. It ends the doubt that an
// operation has left. No PUK that may be right is lost by it: those on record are kept as
// Former until the card has taken one. A PUK that the card is known to have is replaced
// only on demand, and none during an unblock: else it is problem.ErrState.
func (cs *Credentials) ClaimPUK(ctx context.Context, core tenant.Core, by audit.Actor, id string, claim Claim) (Credential, error) {
	return cs.edit(ctx, core, by, id, 0, "credential.pukClaimed", func(c *Credential) (change, error) {
		if err := checkTries(claim.TriesLeft); err != nil {
			return change{}, err
		}
		if err := cs.free(*c); err != nil {
			return change{}, err
		}
		was := c.Custody
		if was.Current != 0 && was.Stage == card.Settled && !was.Claimed && !claim.Replace {
			return change{}, fmt.Errorf("%w: the card has taken the PUK on record; say that it is to be replaced, if somebody has changed it on the card since", problem.ErrState)
		}
		details := map[string]string{"puk": "claimed"}
		if claim.PUK != nil {
			if err := c.claim(core, *claim.PUK, claim.TriesLeft); err != nil {
				return change{}, err
			}
			c.Former = append(slices.Clone(c.Former), possible(was)...)
		} else {
			last := len(c.Former) - 1
			if last < 0 {
				return change{}, fmt.Errorf("%w: no former PUK is kept for this card", problem.ErrState)
			}
			slot := c.Former[last]
			c.Former = append(possible(was), c.Former[:last]...)
			c.believe(slot, claim.TriesLeft)
			details["puk"] = "former"
		}
		if len(c.Former) > maxFormer {
			return change{}, fmt.Errorf("%w: %d PUKs have been claimed for this card, and it has taken none; insert it, so that one is tried", problem.ErrState, maxFormer)
		}
		if c.Doubt != "" {
			details["doubt"] = c.Doubt
		}
		if claim.TriesLeft != nil {
			details["triesLeft"] = fmt.Sprint(*claim.TriesLeft)
		}
		c.Doubt = ""
		c.takeOver()
		*c = c.Kept()
		return change{details: details}, nil
	})
}

// PUKState is what is known of a card's PUK.
type PUKState string

// The states of a PUK.
const (
	PUKNone    PUKState = "none"    // no PUK is on record
	PUKClaimed PUKState = "claimed" // somebody has said that the card has it
	PUKSettled PUKState = "settled" // the card has taken it
	PUKInDoubt PUKState = "inDoubt" // it is found out at the next contact with the card
	PUKRefused PUKState = "refused" // the card has another; somebody has to say which
)

// PUKState returns what is known of the card's PUK.
func (c Credential) PUKState() PUKState {
	switch custody := c.Custody; {
	case custody.Current == 0:
		return PUKNone
	case custody.Stage == card.Refused:
		return PUKRefused
	case custody.Stage == card.Settled && custody.Claimed:
		return PUKClaimed
	case custody.InDoubt():
		return PUKInDoubt
	}
	return PUKSettled
}

// possible are the slots of the PUKs that the card may have, by what is known.
func possible(c card.Custody) []int {
	switch {
	case c.Current == 0 || c.Stage == card.Refused:
		return nil
	case c.Stage == card.Settled:
		return []int{c.Current}
	case c.Stage == card.Eliminated:
		return []int{c.Proposed}
	}
	return []int{c.Proposed, c.Current}
}

// ObserveTries takes note of how many tries an operator says that the card's PUK has left.
// During an unblock, or without a PUK on record, it is problem.ErrState.
func (cs *Credentials) ObserveTries(ctx context.Context, core tenant.Core, by audit.Actor, id string, triesLeft int) (Credential, error) {
	return cs.edit(ctx, core, by, id, 0, "credential.pukTriesObserved", func(c *Credential) (change, error) {
		if err := checkTries(&triesLeft); err != nil {
			return change{}, err
		}
		if err := cs.free(*c); err != nil {
			return change{}, err
		}
		if c.Custody.Current == 0 {
			return change{}, fmt.Errorf("%w: no PUK is on record for this card", problem.ErrState)
		}
		c.Custody = c.Custody.Observe(card.RetryCounter{Known: true, TriesLeft: triesLeft})
		c.takeOver()
		return change{details: map[string]string{"triesLeft": fmt.Sprint(triesLeft)}}, nil
	})
}

// SetAdminKey takes a card's admin key, in hex, into escrow. One that is there is replaced
// only on demand, and none during an unblock: else it is problem.ErrState.
func (cs *Credentials) SetAdminKey(ctx context.Context, core tenant.Core, by audit.Actor, id string, adminKey secret.Text, replace bool) (Credential, error) {
	return cs.edit(ctx, core, by, id, 0, "credential.adminKeySet", func(c *Credential) (change, error) {
		if err := cs.free(*c); err != nil {
			return change{}, err
		}
		if c.AdminKey != nil && !replace {
			return change{}, fmt.Errorf("%w: there is an admin key on record for this card; say that it is to be replaced, for it will be lost", problem.ErrState)
		}
		return change{details: map[string]string{"adminKey": "escrowed"}}, c.escrow(core, adminKey)
	})
}
