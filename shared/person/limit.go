package person

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// How many mails may be asked for within a window of time, which begins with the first one.
const (
	mailWindow  = 10 * time.Minute
	mailsTo     = 5   // one address
	mailsFrom   = 30  // one client, whichever the tenant
	mailsTenant = 200 // one tenant

	returnsFrom   = 300   // to and from the provider, of one client: a whole office may be one
	returnsTenant = 3_000 // of one tenant
)

// budget bounds how often something is done.
type budget struct {
	key   table.Key
	most  int
	which which
}

// which mails a budget is of, as people are told.
type which string

const (
	toAddress       which = "to this address"
	forOrganisation which = "for this organisation"
	fromClient      which = "from your network address"
)

// CountStep counts a step of a sign-in that is not by mail, from a client's network address, and
// writes ops with it. What fails in ops is the error; too many steps are a
// *problem.LimitError.
func (ps *People) CountStep(ctx context.Context, t table.TenantID, from string, ops ...table.Op) error {
	limits := []budget{
		{table.AttemptsKey(t, "sign-in/provider"), returnsTenant, ""},
		{table.AttemptsKey(table.Platform, "sign-in/provider/from/"+clientOf(from)), returnsFrom, ""},
	}
	counts, err := ps.reserve(ctx, limits)
	if err == nil {
		err = ps.counted(ctx, limits, counts, ops...)
	}
	var limit *problem.LimitError
	if errors.As(err, &limit) {
		return &problem.LimitError{Code: "tooManySignIns", Reason: "too many people sign in at the same time", Until: limit.Until}
	}
	return err
}

// budgets are those of a mail to an address of a tenant, asked for by a client; by somebody
// who is signed in, if that is "". They are the same for addresses and tenants that are not
// known, and name an address by its hash.
func budgets(t table.TenantID, address, client string) []budget {
	sum := sha256.Sum256([]byte(fold(address)))
	bs := []budget{
		{table.AttemptsKey(t, "sign-in/to/"+hex.EncodeToString(sum[:])), mailsTo, toAddress},
		{table.AttemptsKey(t, "sign-in"), mailsTenant, forOrganisation},
	}
	if client != "" {
		bs = append(bs, budget{table.AttemptsKey(table.Platform, "sign-in/from/"+client), mailsFrom, fromClient})
	}
	return bs
}

// clientOf is what a client is counted as: its address, of IPv6 the /64, all of which is
// usually one's own. What is no address is counted as it is.
func clientOf(from string) string {
	addr, err := netip.ParseAddr(from)
	if err != nil {
		return from
	}
	if addr = addr.Unmap().WithZone(""); addr.Is6() {
		if network, err := addr.Prefix(64); err == nil {
			return network.String()
		}
	}
	return addr.String()
}

// count is how often something was done since a time.
type count struct {
	key   table.Key
	n     int
	since time.Time
}

type storedCount struct {
	N     int       `json:"n"`
	Since time.Time `json:"since"`
}

// Validate implements table.Record.
func (c count) Validate() error { return nil }

// Item implements table.Record.
func (c count) Item() (table.Item, error) {
	data, err := json.Marshal(storedCount{c.n, c.since})
	return table.Item{Key: c.key, ExpiresAt: c.since.Add(mailWindow), Data: data}, err
}

// reserve returns the ops that count one more of each budget, or a *problem.LimitError.
func (ps *People) reserve(ctx context.Context, bs []budget) ([]table.Op, error) {
	now := ps.Now().UTC()
	ops := make([]table.Op, len(bs))
	limits := make([]error, len(bs))
	var g errgroup.Group
	for i, b := range bs {
		g.Go(func() error {
			c := count{b.key, 0, now.Truncate(time.Second)}
			item, err := ps.Table.Get(ctx, b.key)
			if err != nil && !errors.Is(err, problem.ErrNotFound) {
				return fmt.Errorf("count sign-ins: %w", err)
			}
			if err == nil {
				var s storedCount
				if err := item.Decode(&s); err != nil {
					return err
				}
				if now.Before(s.Since.Add(mailWindow)) {
					c.n, c.since = s.N, s.Since
				}
			}
			if c.n >= b.most {
				limits[i] = &problem.LimitError{Code: "tooManySignIns", Reason: fmt.Sprintf("too many mails %s were asked for", b.which), Until: c.since.Add(mailWindow)}
			}
			c.n++
			ops[i] = table.Put(c, table.After(item.Version))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, err := range limits {
		if err != nil {
			return nil, err
		}
	}
	return ops, nil
}

// counted writes ops together with counts, which reserve has made for the budgets.
func (ps *People) counted(ctx context.Context, bs []budget, counts []table.Op, ops ...table.Op) error {
	for range countTries {
		err := ps.Table.Write(ctx, append(slices.Clone(counts), ops...)...)
		if err == nil || !table.FailedIn(err, counts) {
			return err
		}
		if counts, err = ps.reserve(ctx, bs); err != nil { // others were counted meanwhile
			return err
		}
	}
	return errBusy
}

// countTries bounds how often a count begins anew: all that are counted at the same time get
// in each other's way.
const countTries = 30
