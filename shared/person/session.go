package person

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// How long a session lives, at most and without anything being asked of it. Operators, help
// desks and users sit where others pass by; who only administers or audits reads long.
const (
	SessionLife = 12 * time.Hour
	DeskIdle    = 30 * time.Minute
	OfficeIdle  = 2 * time.Hour
	FreshFor    = 15 * time.Minute // since a sign-in or a confirmation

	seenEvery   = time.Minute // how often it is written that a session is in use
	maxSessions = 20          // of a person; another sign-in ends the oldest
)

// Method is how somebody signed in.
type Method string

// The methods.
const (
	ByMail       Method = "mail" // a mailed code or link
	ByLinkGiven  Method = "link" // a link that an administrator handed over
	ByOIDC       Method = "oidc" // the tenant's provider
	deviceLength        = 300    // bytes kept of what a device says of itself
)

// Device is what somebody signs in from.
type Device struct {
	Client string // its network address
	Agent  string // what the browser says it is
}

func (d Device) clean() Device {
	clean := func(s string) string {
		s = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return -1
			}
			return r
		}, strings.ToValidUTF8(s, ""))
		return strings.ToValidUTF8(s[:min(len(s), deviceLength)], "")
	}
	return Device{clean(d.Client), clean(d.Agent)}
}

// Session is somebody who has signed in. It has a copy of what pages need of the person.
type Session struct {
	ID          string
	Tenant      table.TenantID
	PersonID    string // "" if it is a user's
	UserID      string // of a Holder; "" if it is a person's
	Name        string
	Mail        string
	Roles       []tenant.Role
	Language    string // BCP 47; "" is the tenant's
	Method      Method
	Device      Device
	CreatedAt   time.Time
	SeenAt      time.Time // to the minute
	ConfirmedAt time.Time // when it was last made sure that it is the person

	hash    []byte
	confirm confirmation
	stored  int64 // the item's version
}

// confirmation is a code that was mailed to confirm; its zero value is none.
type confirmation struct {
	Code      string    `json:"code"` // keyed fingerprint
	TriesLeft int       `json:"triesLeft"`
	Until     time.Time `json:"until"`
}

// Owner is whose session it is: a person's id, or "user/" and a user's.
func (s Session) Owner() string {
	if s.UserID != "" {
		return ofUser + s.UserID
	}
	return s.PersonID
}

// Actor is who has signed in, in audit records.
func (s Session) Actor() audit.Actor {
	if s.UserID != "" {
		return audit.Actor{Kind: audit.Self, ID: s.UserID}
	}
	return audit.Actor{Kind: audit.Person, ID: s.PersonID, Name: s.Name}
}

// May decides what the person may do.
func (s Session) May(a tenant.Action) tenant.Grant { return tenant.MayAny(s.Roles, a) }

// Idle is how long the session lives without being used.
func (s Session) Idle() time.Duration {
	desk := func(r tenant.Role) bool {
		return r == tenant.RoleOperator || r == tenant.RoleHelpdesk || r == tenant.RoleSelf
	}
	if slices.ContainsFunc(s.Roles, desk) {
		return DeskIdle
	}
	return OfficeIdle
}

// The ways in which a session is refused. Each is a problem.ErrUnauthenticated.
var (
	ErrNoSession = fmt.Errorf("%w: nobody is signed in here", problem.ErrUnauthenticated)
	ErrOver      = fmt.Errorf("%w: you signed in more than 12 hours ago; sign in again", problem.ErrUnauthenticated)
	ErrIdle      = fmt.Errorf("%w: you were signed out because nothing was done for a while; sign in again", problem.ErrUnauthenticated)
	ErrSuspended = fmt.Errorf("%w: the organisation is suspended", problem.ErrUnauthenticated)
)

// check returns why the session lets nobody in any more.
func (s Session) check(now time.Time) error {
	switch {
	case !now.Before(s.CreatedAt.Add(SessionLife)):
		return ErrOver
	case !now.Before(s.SeenAt.Add(s.Idle())):
		return ErrIdle
	}
	return nil
}

// copy takes from the person what a session has of them.
func (s *Session) copy(p Person) {
	s.PersonID, s.Name, s.Mail, s.Roles, s.Language = p.ID, p.Name, p.Mail, p.Roles, p.Language
}

// sessionRecord is a Session as stored.
type sessionRecord struct{ Session }

type storedSession struct {
	User        string        `json:"user,omitempty"`
	Name        string        `json:"name"`
	Mail        string        `json:"mail"`
	Roles       []tenant.Role `json:"roles"`
	Language    string        `json:"language,omitempty"`
	Method      Method        `json:"method"`
	Client      string        `json:"client,omitempty"`
	Agent       string        `json:"agent,omitempty"`
	CreatedAt   time.Time     `json:"createdAt"`
	SeenAt      time.Time     `json:"seenAt"`
	ConfirmedAt time.Time     `json:"confirmedAt"`
	Hash        []byte        `json:"hash"`
	Confirm     confirmation  `json:"confirm,omitzero"`
}

// Validate implements table.Record.
func (r sessionRecord) Validate() error {
	if r.ID == "" || r.Owner() == "" || len(r.hash) == 0 || r.CreatedAt.IsZero() {
		return errors.New("person: a session without id, owner, hash or time")
	}
	return nil
}

// Item implements table.Record.
func (r sessionRecord) Item() (table.Item, error) {
	data, err := json.Marshal(storedSession{r.UserID, r.Name, r.Mail, r.Roles, r.Language, r.Method, r.Device.Client, r.Device.Agent,
		r.CreatedAt, r.SeenAt, r.ConfirmedAt, r.hash, r.confirm})
	return table.Item{Key: sessionKey(r.Tenant, r.Owner(), r.ID), ExpiresAt: r.CreatedAt.Add(SessionLife), Data: data}, err
}

func decodeSession(t table.TenantID, item table.Item) (Session, error) {
	var s storedSession
	if err := item.Decode(&s); err != nil {
		return Session{}, err
	}
	person, id, _ := strings.Cut(item.Key.Sort(), "/")
	if s.User != "" {
		person = ""
	}
	return Session{id, t, person, s.User, s.Name, s.Mail, s.Roles, s.Language, s.Method, Device{s.Client, s.Agent},
		s.CreatedAt, s.SeenAt, s.ConfirmedAt, s.Hash, s.Confirm, item.Version}, nil
}

// Authenticate finds out whose session a cookie is of, and loads their tenant, in one round
// trip. What lets nobody in is one of the errors above; that of a cookie that is wrong does
// not tell which tenants and sessions there are. That a session is in use is written once a
// minute.
func (ps *People) Authenticate(ctx context.Context, cookie secret.Text) (Session, tenant.Core, error) {
	return ps.authenticate(ctx, cookie, true)
}

// Watch is Authenticate for what a page asks by itself, again and again, without anybody who
// does something: it keeps no session alive.
func (ps *People) Watch(ctx context.Context, cookie secret.Text) (Session, tenant.Core, error) {
	return ps.authenticate(ctx, cookie, false)
}

func (ps *People) authenticate(ctx context.Context, cookie secret.Text, inUse bool) (Session, tenant.Core, error) {
	given, owner, ok := parseSession(cookie)
	if !ok {
		return Session{}, tenant.Core{}, ErrNoSession
	}
	var (
		item table.Item
		core tenant.Core
		g    errgroup.Group
	)
	g.Go(func() (err error) {
		item, err = ps.Table.Get(ctx, sessionKey(given.tenant, owner, given.ids[1]))
		return err
	})
	g.Go(func() (err error) { core, err = ps.Tenants.Load(ctx, given.tenant); return err })
	if err := g.Wait(); errors.Is(err, problem.ErrNotFound) {
		return Session{}, tenant.Core{}, ErrNoSession
	} else if err != nil {
		return Session{}, tenant.Core{}, fmt.Errorf("authenticate: %w", err)
	}
	s, err := decodeSession(given.tenant, item)
	if err != nil {
		return Session{}, tenant.Core{}, err
	}
	if !given.matches(s.hash) {
		return Session{}, tenant.Core{}, ErrNoSession
	}
	now := ps.Now()
	if err := s.check(now); err != nil {
		return Session{}, tenant.Core{}, err
	}
	if core.Tenant.Suspended {
		return Session{}, tenant.Core{}, ErrSuspended
	}
	if inUse && now.Sub(s.SeenAt) >= seenEvery {
		seen := s
		seen.SeenAt = now.UTC().Truncate(time.Second)
		err := ps.Table.Write(ctx, table.Put(sessionRecord{seen}, table.IfVersion(s.stored)))
		switch {
		case err == nil:
			seen.stored++
			s = seen
		case !errors.Is(err, problem.ErrConflict): // another request was first, or it has ended
			ps.Log.WarnContext(ctx, "use of a session not recorded", "tenant", s.Tenant, "session", s.ID, "cause", err)
		}
	}
	return s, core, nil
}

// SignIn lets a person in and returns the session with its cookie, which cannot be had again.
// The caller has made sure who it is. with are further ops of the same Write; if a condition
// of theirs does not hold that is the error. Somebody who is not known is
// problem.ErrNotFound; a person who is disabled, or whose tenant is suspended,
// problem.ErrForbidden.
func (ps *People) SignIn(ctx context.Context, core tenant.Core, id string, method Method, device Device, with ...table.Op) (Session, secret.Text, error) {
	return ps.signIn(ctx, core, id, method, device, func(Person) error { return nil }, with)
}

func (ps *People) signIn(ctx context.Context, core tenant.Core, id string, method Method, device Device, check func(Person) error, with []table.Op) (Session, secret.Text, error) {
	t := core.Tenant.ID
	if core.Tenant.Suspended {
		return Session{}, secret.Text{}, fmt.Errorf("%w: the organisation is suspended", problem.ErrForbidden)
	}
	for range tries {
		p, err := ps.Get(ctx, t, id)
		if err != nil {
			return Session{}, secret.Text{}, err
		}
		if p.Disabled {
			return Session{}, secret.Text{}, fmt.Errorf("%w: the person is disabled", problem.ErrForbidden)
		}
		if err := check(p); err != nil {
			return Session{}, secret.Text{}, err
		}
		others, err := ps.sessions(ctx, t, table.SessionsOf(t, id))
		if err != nil {
			return Session{}, secret.Text{}, err
		}
		now := ps.Now().UTC().Truncate(time.Second)
		s := Session{Tenant: t, Method: method, Device: device.clean(), CreatedAt: now, SeenAt: now, ConfirmedAt: now, stored: 1}
		s.copy(p)
		if s.ID, err = ps.newID(); err != nil {
			return Session{}, secret.Text{}, err
		}
		var cookie secret.Text
		if cookie, s.hash, err = newToken(ps.Rand, sessionKind, t, p.ID, s.ID); err != nil {
			return Session{}, secret.Text{}, err
		}
		p.SignedInAt = now
		ops := []table.Op{
			table.Put(sessionRecord{s}, table.Absent()),
			table.Put(personRecord{t, p}, table.IfVersion(p.stored)),
			ps.Audit.Op(ctx, t, audit.Record{Actor: p.Actor(), Action: "person.signedIn", Subject: Subject(id), Outcome: audit.Done,
				Details: map[string]string{"method": string(method), "session": s.ID, "client": s.Device.Client}}),
		}
		ops = append(ops, end(t, surplus(others, now))...)
		err = ps.Table.Write(ctx, append(ops, with...)...)
		switch {
		case err == nil:
			return s, cookie, nil
		case table.FailedIn(err, with) || !errors.Is(err, problem.ErrConflict):
			return Session{}, secret.Text{}, fmt.Errorf("sign in: %w", err)
		}
	}
	return Session{}, secret.Text{}, errBusy
}

// surplus returns the sessions that go when there is another one: those that let nobody in
// any more, and the oldest if there are too many.
func surplus(sessions []Session, now time.Time) (gone []Session) {
	var live []Session
	for _, s := range sessions {
		if s.check(now) != nil {
			gone = append(gone, s)
		} else {
			live = append(live, s)
		}
	}
	if over := len(live) - (maxSessions - 1); over > 0 {
		slices.SortFunc(live, func(a, b Session) int { return a.CreatedAt.Compare(b.CreatedAt) })
		gone = append(gone, live[:over]...)
	}
	return gone
}

// end returns the ops that end sessions.
func end(t table.TenantID, sessions []Session) (ops []table.Op) {
	for _, s := range sessions {
		ops = append(ops, table.Delete(sessionKey(t, s.Owner(), s.ID), table.Whatever()))
	}
	return ops
}

// sessions reads all sessions of a range, those that are over but not collected too.
func (ps *People) sessions(ctx context.Context, t table.TenantID, r table.Range) (all []Session, err error) {
	for more := true; more; {
		page, err := ps.Table.Query(ctx, r)
		if err != nil {
			return nil, fmt.Errorf("list sessions: %w", err)
		}
		for _, item := range page.Items {
			s, err := decodeSession(t, item)
			if err != nil {
				return nil, err
			}
			all = append(all, s)
			r = r.Beyond(r.Place(item))
		}
		more = page.More
	}
	return all, nil
}

// Sessions returns the sessions of all people of a tenant, the last begun first.
func (ps *People) Sessions(ctx context.Context, t table.TenantID) ([]Session, error) {
	return ps.live(ctx, t, table.Sessions(t))
}

// SessionsOf returns the sessions of an owner, the last begun first.
func (ps *People) SessionsOf(ctx context.Context, t table.TenantID, owner string) ([]Session, error) {
	return ps.live(ctx, t, sessionsOf(t, owner))
}

func (ps *People) live(ctx context.Context, t table.TenantID, r table.Range) ([]Session, error) {
	all, err := ps.sessions(ctx, t, r)
	if err != nil {
		return nil, err
	}
	now := ps.Now()
	all = slices.DeleteFunc(all, func(s Session) bool { return s.check(now) != nil })
	slices.SortStableFunc(all, func(a, b Session) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return all, nil
}

// End ends a session of an owner, or is problem.ErrNotFound.
func (ps *People) End(ctx context.Context, core tenant.Core, by audit.Actor, owner, id string) error {
	return ps.endOne(ctx, core.Tenant.ID, by, owner, id, "session.ended")
}

// SignOut ends a session because the person wants it; one that has ended already is no error.
func (ps *People) SignOut(ctx context.Context, s Session) error {
	err := ps.endOne(ctx, s.Tenant, s.Actor(), s.Owner(), s.ID, "person.signedOut")
	if errors.Is(err, problem.ErrNotFound) {
		return nil
	}
	return err
}

func (ps *People) endOne(ctx context.Context, t table.TenantID, by audit.Actor, owner, id, action string) error {
	for range tries {
		s, err := ps.session(ctx, t, owner, id)
		if err != nil {
			return err
		}
		err = ps.Table.Write(ctx,
			table.Delete(sessionKey(t, owner, id), table.IfVersion(s.stored)),
			ps.Audit.Op(ctx, t, audit.Record{Actor: by, Action: action, Subject: subjectOf(owner), Outcome: audit.Done,
				Details: map[string]string{"session": id}}))
		if err == nil {
			return nil
		} else if !errors.Is(err, problem.ErrConflict) {
			return fmt.Errorf("end session: %w", err)
		}
	}
	return errBusy
}

func (ps *People) session(ctx context.Context, t table.TenantID, owner, id string) (Session, error) {
	item, err := ps.Table.Get(ctx, sessionKey(t, owner, id))
	if errors.Is(err, problem.ErrNotFound) {
		return Session{}, fmt.Errorf("session %w", problem.ErrNotFound)
	} else if err != nil {
		return Session{}, fmt.Errorf("load session: %w", err)
	}
	return decodeSession(t, item)
}
