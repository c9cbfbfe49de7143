package tenant

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
)

// Window is a browser at a bridge's machine, in which the bridge has opened a page for
// who is there. It reaches that bridge's readers and nothing else. It is part of its bridge,
// and ends with it.
type Window struct {
	Kiosk bool // on a screen that many people touch
	Until time.Time
	// Operation is the unblock that the person there has begun; "" for none.
	Operation string

	// hash is that of the token by which it is known: of the link that opens it, and once it
	// is open of its session.
	hash []byte
	open bool
}

const (
	linkLife = 2 * time.Minute
	// WindowLife is how long a window is open.
	WindowLife = 12 * time.Hour
	// maxWindows are kept of a bridge, with links that were not used; the one that would end
	// first goes for a new one.
	maxWindows = 4
	// tokenLength is that of a token in characters of 5 bits: 260 bits.
	tokenLength = 52
)

type storedWindow struct {
	Hash      []byte    `json:"hash"`
	Open      bool      `json:"open,omitempty"`
	Kiosk     bool      `json:"kiosk,omitempty"`
	Until     time.Time `json:"until"`
	Operation string    `json:"operation,omitempty"`
}

// errLink answers every link that opens nothing, whatever is wrong with it.
var errLink = fmt.Errorf("%w: the link was used already, or its 2 minutes are over; open the page anew, with `bridge open`", problem.ErrUnauthenticated)

// errWindow answers every token that is no open window's.
var errWindow = fmt.Errorf("%w: the page is not open any more; open it anew, with `bridge open`", problem.ErrUnauthenticated)

// OfferWindow makes a link's token for a window at a bridge, which is good once, for two
// minutes. Only its hash is stored.
func (ts *Tenants) OfferWindow(ctx context.Context, core Core, bridge string, kiosk bool) (Bridge, Window, secret.Text, error) {
	token, err := ts.windowToken(core.Tenant.ID, bridge)
	if err != nil {
		return Bridge{}, Window{}, secret.Text{}, err
	}
	w := Window{Kiosk: kiosk, Until: ts.Now().Add(linkLife).UTC().Truncate(time.Second), hash: hashToken(token)}
	b, err := ts.ChangeBridge(ctx, core.Tenant.ID, bridge, func(b *Bridge) error {
		if !b.Enrolled() {
			return errRevoked
		}
		b.windows = append(slices.DeleteFunc(b.windows, func(w Window) bool { return w.over(ts.Now()) }), w)
		slices.SortStableFunc(b.windows, func(x, y Window) int { return y.Until.Compare(x.Until) })
		for len(b.windows) > maxWindows { // but not the new one, which may well be the next to end
			i := len(b.windows) - 1
			if bytes.Equal(b.windows[i].hash, w.hash) {
				i--
			}
			b.windows = slices.Delete(b.windows, i, i+1)
		}
		return nil
	})
	if err != nil {
		return Bridge{}, Window{}, secret.Text{}, err
	}
	return b, w, token, nil
}

func (w Window) over(now time.Time) bool { return !now.Before(w.Until) }

// OpenWindow takes a link's token, once, and returns the token of the window that it opens.
// What opens nothing is problem.ErrUnauthenticated, whatever is wrong with it.
func (ts *Tenants) OpenWindow(ctx context.Context, link secret.Text) (Window, secret.Text, error) {
	t, bridge, ok := parseToken(link)
	if !ok {
		return Window{}, secret.Text{}, errLink
	}
	core, err := ts.Load(ctx, t)
	if errors.Is(err, problem.ErrNotFound) || err == nil && core.Tenant.Suspended {
		return Window{}, secret.Text{}, errLink
	} else if err != nil {
		return Window{}, secret.Text{}, err
	}
	token, err := ts.windowToken(t, bridge)
	if err != nil {
		return Window{}, secret.Text{}, err
	}
	var opened Window
	_, err = ts.changeBridge(ctx, t, bridge, func(b *Bridge) ([]table.Op, error) {
		i := b.window(link, false, ts.Now())
		if i < 0 {
			return nil, errLink
		}
		w := &b.windows[i]
		w.hash, w.open, w.Until = hashToken(token), true, ts.Now().Add(WindowLife).UTC().Truncate(time.Second)
		opened = *w
		return []table.Op{ts.bridgeAudit(ctx, core, audit.Actor{Kind: audit.Bridge, ID: bridge, Name: b.Name}, "bridge.pageOpened", bridge)}, nil
	})
	if errors.Is(err, problem.ErrNotFound) {
		err = errLink
	}
	if err != nil {
		return Window{}, secret.Text{}, err
	}
	return opened, token, nil
}

// Window returns the open window that a token is of, and its bridge. One that is not open is
// problem.ErrUnauthenticated, as is one of a revoked bridge or a suspended tenant.
func (ts *Tenants) Window(ctx context.Context, token secret.Text) (Core, Bridge, Window, error) {
	t, bridge, ok := parseToken(token)
	if !ok {
		return Core{}, Bridge{}, Window{}, errWindow
	}
	b, err := ts.Bridge(ctx, t, bridge)
	if errors.Is(err, problem.ErrNotFound) {
		return Core{}, Bridge{}, Window{}, errWindow
	} else if err != nil {
		return Core{}, Bridge{}, Window{}, err
	}
	i := b.window(token, true, ts.Now())
	if i < 0 {
		return Core{}, Bridge{}, Window{}, errWindow
	}
	core, err := ts.Load(ctx, t)
	if errors.Is(err, problem.ErrNotFound) || err == nil && core.Tenant.Suspended {
		return Core{}, Bridge{}, Window{}, errWindow
	} else if err != nil {
		return Core{}, Bridge{}, Window{}, err
	}
	return core, b, b.windows[i], nil
}

// ChangeWindow edits an open window. One that is not open any more is
// problem.ErrUnauthenticated.
func (ts *Tenants) ChangeWindow(ctx context.Context, t table.TenantID, bridge string, of Window, edit func(*Window)) (Window, error) {
	var changed Window
	_, err := ts.ChangeBridge(ctx, t, bridge, func(b *Bridge) error {
		i := slices.IndexFunc(b.windows, func(w Window) bool { return w.open && bytes.Equal(w.hash, of.hash) })
		if i < 0 {
			return errWindow
		}
		before := b.windows[i]
		edit(&b.windows[i])
		if changed = b.windows[i]; changed.Operation == before.Operation {
			return ErrUnchanged
		}
		return nil
	})
	return changed, err
}

// window finds a link, or an open window, by its token; -1 is none.
func (b *Bridge) window(token secret.Text, open bool, now time.Time) int {
	if !b.Enrolled() {
		return -1
	}
	hash := hashToken(token)
	return slices.IndexFunc(b.windows, func(w Window) bool { return w.open == open && !w.over(now) && bytes.Equal(w.hash, hash) })
}

// windowToken makes a token, "<tenant>.<bridge>.<260 random bits>".
func (ts *Tenants) windowToken(t table.TenantID, bridge string) (secret.Text, error) {
	random, err := ts.random(tokenLength)
	if err != nil {
		return secret.Text{}, err
	}
	return secret.New(strings.Join([]string{string(t), bridge, random}, ".")), nil
}

// hashToken is what is stored of a token: of so many random bits a hash without a key gives
// nothing away.
func hashToken(token secret.Text) []byte {
	hash := sha256.Sum256([]byte("window " + token.Reveal()))
	return hash[:]
}

func parseToken(token secret.Text) (t table.TenantID, bridge string, ok bool) {
	parts := strings.Split(token.Reveal(), ".")
	if len(parts) != 3 || len(parts[2]) != tokenLength || !bridgeID.MatchString(parts[1]) || CheckID(table.TenantID(parts[0])) != nil {
		return "", "", false
	}
	return table.TenantID(parts[0]), parts[1], true
}

// Here are the readers of a bridge as a person at its machine sees them: each once, by its
// session in the background where that has it, and only while the bridge is heard of.
func (b Bridge) Here(now time.Time) (readers []Reader) {
	for _, session := range []relay.Session{relay.Service, relay.Terminal} {
		p := b.Sessions[session]
		if !p.Online(now) {
			continue
		}
		for _, r := range p.Readers {
			if !slices.ContainsFunc(readers, func(k Reader) bool { return k.Name == r.Name }) {
				readers = append(readers, r)
			}
		}
	}
	return readers
}
