package person

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Holder is a user of a tenant, who signs in to see to their own PIN and nothing else. The
// sessions of users end by themselves: whoever takes one makes sure that the user is still
// there, and has the session's address.
type Holder struct {
	UserID string // a ULID
	Name   string
	Mail   string
}

// ofUser begins the owner of a user's session. What follows is the user's id, so that it is
// what the audit log calls the user, too.
const ofUser = "user/"

func subjectOf(owner string) string {
	if strings.HasPrefix(owner, ofUser) {
		return owner
	}
	return Subject(owner)
}

func sessionKey(t table.TenantID, owner, id string) table.Key {
	if user, ok := strings.CutPrefix(owner, ofUser); ok {
		return table.UserSessionKey(t, user, id)
	}
	return table.SessionKey(t, owner, id)
}

func sessionsOf(t table.TenantID, owner string) table.Range {
	if user, ok := strings.CutPrefix(owner, ofUser); ok {
		return table.UserSessions(t, user)
	}
	return table.SessionsOf(t, owner)
}

// parseSession takes the cookie of a session apart, and returns whose it is.
func parseSession(cookie secret.Text) (given token, owner string, ok bool) {
	if given, ok = parse(sessionKind, 2, cookie); ok {
		return given, given.ids[0], true
	}
	if given, ok = parse(holderKind, 2, cookie); ok {
		return given, ofUser + given.ids[0], true
	}
	return token{}, "", false
}

// owner is who signs in by the attempt; "" is nobody.
func (a attempt) owner() string {
	if a.user != "" {
		return ofUser + a.user
	}
	return a.person
}

// holder finds a Holder by address; the zero Holder is nobody.
func (ps *People) holder(ctx context.Context, t table.TenantID, address string) (Holder, error) {
	if ps.Holder == nil {
		return Holder{}, nil
	}
	h, err := ps.Holder(ctx, t, address)
	if errors.Is(err, problem.ErrNotFound) {
		return Holder{}, nil
	} else if err != nil {
		return Holder{}, fmt.Errorf("find who signs in: %w", err)
	}
	return h, nil
}

// signInHolder lets a user in who still has the address of the attempt.
func (ps *People) signInHolder(ctx context.Context, core tenant.Core, a attempt, device Device, with []table.Op) (Session, secret.Text, error) {
	t := core.Tenant.ID
	if core.Tenant.Suspended {
		return Session{}, secret.Text{}, fmt.Errorf("%w: the organisation is suspended", problem.ErrForbidden)
	}
	h, err := ps.holder(ctx, t, a.mail)
	if err != nil {
		return Session{}, secret.Text{}, err
	}
	if h.UserID != a.user {
		return Session{}, secret.Text{}, errGone
	}
	others, err := ps.sessions(ctx, t, table.UserSessions(t, h.UserID))
	if err != nil {
		return Session{}, secret.Text{}, err
	}
	now := ps.Now().UTC().Truncate(time.Second)
	s := Session{Tenant: t, UserID: h.UserID, Name: h.Name, Mail: h.Mail, Roles: []tenant.Role{tenant.RoleSelf},
		Method: a.method, Device: device.clean(), CreatedAt: now, SeenAt: now, ConfirmedAt: now, stored: 1}
	if s.ID, err = ps.newID(); err != nil {
		return Session{}, secret.Text{}, err
	}
	var cookie secret.Text
	if cookie, s.hash, err = newToken(ps.Rand, holderKind, t, h.UserID, s.ID); err != nil {
		return Session{}, secret.Text{}, err
	}
	ops := []table.Op{
		table.Put(sessionRecord{s}, table.Absent()),
		ps.Audit.Op(ctx, t, audit.Record{Actor: s.Actor(), Action: "person.signedIn", Subject: subjectOf(s.Owner()), Outcome: audit.Done,
			Details: map[string]string{"method": string(a.method), "session": s.ID, "client": s.Device.Client}}),
	}
	ops = append(ops, end(t, surplus(others, now))...)
	if err := ps.Table.Write(ctx, append(ops, with...)...); err != nil {
		return Session{}, secret.Text{}, fmt.Errorf("sign in: %w", err)
	}
	return s, cookie, nil
}

// endAllOfUser ends the sessions of a user.
func (ps *People) endAllOfUser(ctx context.Context, t table.TenantID, by audit.Actor, owner string) error {
	sessions, err := ps.sessions(ctx, t, sessionsOf(t, owner))
	if err != nil {
		return err
	}
	err = ps.Table.Write(ctx, append(end(t, sessions), ps.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "person.sessionsEnded", Subject: subjectOf(owner), Outcome: audit.Done,
		Details: map[string]string{"sessionsEnded": fmt.Sprint(len(sessions))}}))...)
	if err != nil {
		return fmt.Errorf("end sessions: %w", err)
	}
	return nil
}
