package unblock

import (
	"context"
	"fmt"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

// AtLogonScreen is AtBridge for a person at a locked screen or a login. Where the template
// wants an operator's word there, the operator starts the unblock, and it is gone on with.
func (us *Unblocks) AtLogonScreen(ctx context.Context, core tenant.Core, bridge, insertion string) (Operation, error) {
	id, err := us.inserted(ctx, core, bridge, insertion)
	if err != nil {
		return Operation{}, err
	}
	cred, err := us.Credentials.Get(ctx, core.Tenant.ID, id)
	if err != nil {
		return Operation{}, err
	}
	if cred.Leased(us.Now()) {
		op, err := us.Get(ctx, core.Tenant.ID, cred.Lease.Operation)
		if err == nil && op.Bridge == bridge && op.Kind == Unblock && !op.State.Finished() {
			return op, nil
		}
		if err == nil && op.Kind != Unblock && !op.State.Finished() {
			return Operation{}, errBusy // it is over in a moment, and the bridge asks again
		}
	}
	tmpl, err := us.Credentials.Template(ctx, core.Tenant.ID, cred.Template)
	if err != nil {
		return Operation{}, err
	}
	if tmpl.Allows(credential.LogonScreen) && tmpl.ProofFor(credential.LogonScreen) != credential.MailedCode {
		return Operation{}, fmt.Errorf("%w: ask your help desk to start the unblock at this bridge, and try again", problem.ErrState)
	}
	by := audit.Actor{Kind: audit.Bridge, ID: bridge}
	return us.Create(ctx, core, by, Request{Credential: id, Bridge: bridge, Channel: credential.LogonScreen})
}
