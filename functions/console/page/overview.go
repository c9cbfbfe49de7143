package page

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
)

func (c *Console) overviewRoutes() []route {
	return []route{{pattern: "GET " + Root + "/{$}", do: (*view).overview}, {pattern: "GET " + Root, do: (*view).overview}}
}

const (
	countedAt   = 200 // what is counted for a number, but for expiries
	soonDays    = 7   // PINs that expire within are told of
	picturedFor = 14  // days
	unblocksAt  = 100 // unblocks read
	lastOnes    = 5   // unblocks shown
)

// overview is what somebody may see of how things stand; nil and empty is what they may not,
// or what there is none of.
type overview struct {
	Figures  []figure
	Picture  *expiryPicture
	Unblocks []unblocked
	Bridges  *bridgesSeen
	Sweep    *tenant.LastSweep
	Steps    []step
	HelpDesk bool
}

// figure is how many there are of something that needs attention, and where they are listed.
type figure struct {
	Key  string // "overview.figure."+Key says what of
	N    int
	More bool // there are more than N
	Path string
}

// unblocked is one of the last unblocks.
type unblocked struct {
	unblock.Operation
	Card string // "" if it is gone
}

type bridgesSeen struct {
	Online, Of int
	More       bool
}

// step is one of the things to do first.
type step struct {
	Key  string // "overview.step."+Key says what
	Path string // "" if they may not
	Done bool
}

func (v *view) overview() error {
	d, err := v.standing()
	if err != nil {
		return err
	}
	return v.show("overview", d)
}

// standing reads all parts of the overview at once. Each is bounded, whatever there is.
func (v *view) standing() (d overview, _ error) {
	var (
		g, ctx             = errgroup.WithContext(v.ctx())
		t, now             = v.tenant(), v.Now()
		figures            = make([]*figure, 8)
		users, cards       expiries
		expiredU, expiredC expiries
		sweep              tenant.LastSweep
	)
	// part reads a part if they may see it.
	part := func(a tenant.Action, read func() error) {
		if v.may(a) {
			g.Go(read)
		}
	}
	end := v.midnight(picturedFor)
	part(tenant.ListUsers, func() (err error) {
		users.at, users.more, err = v.Users.PINExpiries(ctx, t, now, end, table.MaxLimit)
		return err
	})
	part(tenant.ListUsers, func() (err error) {
		expiredU.at, expiredU.more, err = v.Users.PINExpiries(ctx, t, now.AddDate(0, 0, -expiredDays), now, countedAt)
		return err
	})
	part(tenant.ListUsers, func() error {
		n, _, more, err := v.Users.SpoiltSince(ctx, t, now)
		figures[6] = &figure{"undeliverable", n, more, "/users?filter=undeliverable"}
		return err
	})
	part(tenant.ReadCredentials, func() (err error) {
		cards.at, cards.more, err = v.Credentials.PINExpiries(ctx, t, now, end, table.MaxLimit)
		return err
	})
	part(tenant.ReadCredentials, func() (err error) {
		expiredC.at, expiredC.more, err = v.Credentials.PINExpiries(ctx, t, time.Time{}, now, countedAt)
		return err
	})
	count := func(at int, key, path string, f credential.Filter) func() error {
		return func() error {
			n, more, err := v.Credentials.Count(ctx, t, f, countedAt)
			figures[at] = &figure{key, n, more, path}
			return err
		}
	}
	part(tenant.ReadCredentials, count(1, "blocked", "/cards?state=blocked", credential.Filter{State: credential.Blocked}))
	if v.core.Tenant.Settings.SupportFunctions {
		part(tenant.ReadCredentials, count(7, "withoutFlag", "/cards?expiry=withoutFlag", credential.Filter{WithoutFlag: true}))
	}
	part(tenant.ListUnblocks, func() error {
		waiting, last, err := v.unblocks(ctx)
		figures[0], d.Unblocks = waiting, last
		return err
	})
	part(tenant.ReadBridges, func() error {
		bridges, next, err := v.Tenants.Bridges(ctx, t, "", countedAt)
		seen := bridgesSeen{More: next != ""}
		for _, b := range bridges {
			if b.Enrolled() {
				if seen.Of++; b.Online(now) {
					seen.Online++
				}
			}
		}
		d.Bridges = &seen
		return err
	})
	part(tenant.ReadSettings, func() (err error) {
		sweep, err = v.Tenants.LastSweep(ctx)
		d.Sweep = &sweep
		return err
	})
	part(tenant.WriteSettings, func() (err error) {
		d.Steps, err = v.steps(ctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return overview{}, err
	}
	soon := v.midnight(soonDays)
	if v.may(tenant.ListUsers) {
		figures[2], figures[4] = users.before("usersExpiring", soon, "/users?filter=expiring"), expiredU.before("usersExpired", now, "/users?filter=expired")
	}
	if v.may(tenant.ReadCredentials) {
		figures[3], figures[5] = cards.before("cardsExpiring", soon, "/cards?expiry=within&days=7"), expiredC.before("cardsExpired", now, "/cards?expiry=expired")
	}
	if v.may(tenant.ListUsers) || v.may(tenant.ReadCredentials) {
		d.Picture = v.picture(users, cards)
	}
	for _, some := range []bool{true, false} { // what there is some of comes first
		for _, f := range figures {
			if f != nil && (f.N > 0) == some {
				d.Figures = append(d.Figures, *f)
			}
		}
	}
	d.HelpDesk = v.may(tenant.AnswerOffline)
	return d, nil
}

// midnight is the beginning of a day in the tenant's zone, so many days from today.
func (v *view) midnight(days int) time.Time {
	y, m, d := v.Now().In(v.loc).Date()
	return time.Date(y, m, d+days, 0, 0, 0, 0, v.loc)
}

// expiries are times at which PINs expire, in order; more says that there are more, all later.
type expiries struct {
	at   []time.Time
	more bool
}

// before counts those before a time.
func (e expiries) before(key string, end time.Time, path string) *figure {
	f := figure{Key: key, Path: path}
	for _, at := range e.at {
		if at.Before(end) {
			f.N++
		}
	}
	f.More = e.more && f.N == len(e.at)
	return &f
}

// unblocks reads the newest unblocks: how many wait for a second person, and the last ones.
func (v *view) unblocks(ctx context.Context) (*figure, []unblocked, error) {
	ops, next, err := v.Unblocks.List(ctx, v.tenant(), "", "", unblocksAt)
	if err != nil {
		return nil, nil, err
	}
	f := figure{Key: "waiting", Path: "/unblock"}
	var last []unblocked
	for _, op := range ops {
		if op.AwaitsApproval(v.Now()) {
			f.N++
		}
		if op.Kind == unblock.Unblock && op.State.Finished() && len(last) < lastOnes {
			last = append(last, unblocked{Operation: op})
		}
	}
	f.More = next != "" && f.N == len(ops)
	subjects := make([]string, len(last))
	for i, op := range last {
		subjects[i] = credential.Subject(op.Credential)
	}
	names, err := v.namesOf(ctx, subjects)
	for i := range last {
		last[i].Card = names[subjects[i]]
	}
	return &f, last, err
}

// steps are what to do first in a tenant that is new; none once that is done. Cards are for
// those who have some: their steps keep the list only if they have begun.
func (v *view) steps(ctx context.Context) ([]step, error) {
	var (
		g, gctx                          = errgroup.WithContext(ctx)
		t                                = v.tenant()
		messaging, users, bridges, cards bool
		templates                        bool
		admins                           int
	)
	g.Go(func() error {
		all, err := mail.Store{Table: v.Table, Tenant: t}.Configurations(gctx)
		messaging = len(all) > 0
		return err
	})
	g.Go(func() error {
		n, err := v.Users.Count(gctx, t)
		users = n > 0
		return err
	})
	g.Go(func() error {
		all, _, err := v.Tenants.Bridges(gctx, t, "", 1)
		bridges = len(all) > 0
		return err
	})
	g.Go(func() error {
		all, err := v.Credentials.Templates(gctx, t)
		templates = len(all) > 0
		return err
	})
	g.Go(func() error {
		all, _, err := v.Credentials.List(gctx, t, "", 1)
		cards = len(all) > 0
		return err
	})
	g.Go(func() (err error) {
		admins, err = v.People.Administrators(gctx, t)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	policy := v.core.Policy.Version > 1
	begun := templates || cards || bridges
	if messaging && policy && users && admins > 1 && (!begun || templates && cards && bridges) {
		return nil, nil
	}
	return []step{
		{"messaging", "/messaging", messaging},
		{"policy", "/policy", policy},
		{"people", "/settings/people", admins > 1},
		{"users", "/users", users},
		{"templates", "/cards/templates", templates},
		{"cards", "/cards", cards},
		{"bridge", "/bridges", bridges},
	}, nil
}

// expiryPicture shows how many PINs expire on each of the next days.
type expiryPicture struct {
	Days []pictured
	Cut  time.Time // from this day on there are more than were counted; zero if on none
	Any  bool
}

// pictured is a day, with its bars in the units of the picture.
type pictured struct {
	Day          time.Time
	Users, Cards int
	X            int
	UsersBar     bar
	CardsBar     bar
	Top          int // where the number stands
}

type bar struct{ Y, Height int }

// The picture's size. The bars stand on its base.
const (
	dayWide = 44
	barHigh = 120
	base    = 145
)

// Total is how many PINs expire on the day.
func (p pictured) Total() int { return p.Users + p.Cards }

func (v *view) picture(users, cards expiries) *expiryPicture {
	p := expiryPicture{Days: make([]pictured, picturedFor)}
	most := 1
	for i := range p.Days {
		from, to := v.midnight(i), v.midnight(i+1)
		d := pictured{Day: from, X: i * dayWide}
		for _, e := range []struct {
			expiries
			n *int
		}{{users, &d.Users}, {cards, &d.Cards}} {
			for _, at := range e.at {
				if !at.Before(from) && at.Before(to) {
					*e.n++
				}
			}
			if last := len(e.at) - 1; e.more && p.Cut.IsZero() && e.at[last].Before(to) {
				p.Cut = from
			}
		}
		most = max(most, d.Total())
		p.Any = p.Any || d.Total() > 0
		p.Days[i] = d
	}
	for i := range p.Days {
		d := &p.Days[i]
		d.CardsBar.Height = (d.Cards*barHigh + most - 1) / most
		d.UsersBar.Height = (d.Users*barHigh + most - 1) / most
		d.CardsBar.Y = base - d.CardsBar.Height
		d.UsersBar.Y = d.CardsBar.Y - d.UsersBar.Height
		d.Top = d.UsersBar.Y - 4
	}
	return &p
}
