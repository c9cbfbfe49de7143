package unblock

import (
	"context"
	"errors"
	"fmt"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

func notAllowed(c credential.Channel) error {
	return fmt.Errorf("%w: the card's template does not allow an unblock by %s", problem.ErrState, c)
}

// SelfService tells what stands in the way of an unblock by self-service, before anybody is
// asked for a code: nil is nothing. Told is what the card has said of itself. The error is
// one that Create has, or the card's or its custody's failure as a card.Failure, which would
// be known only at the end.
func (us *Unblocks) SelfService(ctx context.Context, core tenant.Core, c credential.Credential, t credential.Template, told card.Identity) error {
	return us.Possible(ctx, core, credential.SelfService, c, t, told)
}

// Possible is SelfService for any channel on which the cloud speaks to the card.
func (us *Unblocks) Possible(ctx context.Context, core tenant.Core, by credential.Channel, c credential.Credential, t credential.Template, told card.Identity) error {
	if err := c.CheckUnblockable(); err != nil {
		return err
	}
	if !t.Allows(by) {
		return notAllowed(by)
	}
	switch {
	case told.PUK.Known && told.PUK.TriesLeft == 0:
		return card.Failure{Reason: card.PUKBlocked}
	case c.Stuck != "":
		return card.Failure{Reason: card.Reason(c.Stuck), TriesLeft: c.Custody.Tries}
	case c.Custody.Stage == card.Refused:
		return card.Failure{Reason: card.PUKWrong, TriesLeft: c.Custody.Tries}
	}
	if err := canReset(c, t); err != nil {
		return err
	}
	if err := t.CheckLimit(c, us.Now()); err != nil {
		return err
	}
	if t.ProofFor(by) != credential.MailedCode {
		return nil
	}
	_, err := us.reachable(ctx, core, c)
	return err
}

// canReset tells whether what is in custody can reset the card's PIN.
func canReset(c credential.Credential, t credential.Template) error {
	family, err := card.FamilyNamed(c.Family)
	if err != nil {
		return err
	}
	if c.Custody.InDoubt() {
		_, err = family.Reconcile(c.CardID, c.Custody)
	} else {
		slot := max(c.Custody.Current, c.Custody.Proposed)
		if !c.Custody.None() {
			slot++ // as if there was a new PUK
		}
		_, err = family.Unblock(c.CardID, c.Custody, slot)
	}
	var invalid *problem.InvalidError
	if errors.As(err, &invalid) || err == nil && c.Custody.None() && c.AdminKey == nil && t.MasterKey == nil {
		return fmt.Errorf("%w: %s", problem.ErrState, Operation{State: Failed, Reason: ReasonNoPUK}.Sentence())
	}
	return err
}
