package credential

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// happened tells rules of something of a card that is about to be written for the n-th time.
// A card that was registered anew begins again with its versions, but not with its fence.
func (c Credential) happened(ctx context.Context, core tenant.Core, now time.Time, version int64, kind event.Type, attributes map[string]string) []table.Op {
	return event.Ops(ctx, core, now, event.Event{Type: kind, User: c.Holder, Card: c.ID, Attributes: attributes},
		fmt.Sprintf("%s/%d/%d", c.ID, c.CreatedAt.Unix(), version))
}

// registered tells of a new card.
func (c Credential) registered(ctx context.Context, core tenant.Core, now time.Time) []table.Op {
	return event.Ops(ctx, core, now, event.Event{Type: event.CredentialRegistered, User: c.Holder, Card: c.ID, Attributes: c.kind()},
		fmt.Sprintf("%s/%d", c.ID, c.Lease.Fence))
}

func (c Credential) kind() map[string]string {
	return map[string]string{"family": c.Family, "template": c.Template}
}

// expiry tells of a PIN's expiry that was not on record before, and, once, of the reminder
// that is taken on: it notes on the credential that it has.
func (cs *Credentials) expiry(ctx context.Context, core tenant.Core, was Credential, is *Credential, reminder bool) (ops []table.Op) {
	if is.ExpiryRecorded && !was.ExpiryRecorded {
		ops = is.happened(ctx, core, cs.Now(), was.Version+1, event.PINExpired, map[string]string{"of": "card"})
	}
	if n := &is.Notice; reminder && n.Kind == NoticeReminder && !n.Told {
		n.Told = true
		ops = append(ops, is.happened(ctx, core, cs.Now(), was.Version+1, event.CredentialExpiring, map[string]string{"daysLeft": strconv.Itoa(n.Days)})...)
	}
	return ops
}
