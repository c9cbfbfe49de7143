package tenant

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/vault"
)

// Bridge is a program on a PC that relays between a card in a reader and the cloud. It is
// invited by an administrator, who gets a one-time code, and enrols by giving the code and
// its public keys.
type Bridge struct {
	ID   string // 8 characters of Crockford's base32, in lower case
	Name string // for people, 1 to 80 characters

	Identity []byte // Ed25519 public key that its tokens are checked with; nil until it is enrolled
	Sealing  []byte // X25519 public key that PINs are sealed to
	Program  string // its version
	System   string // "linux/amd64"
	Host     string // the machine's name

	CreatedAt  time.Time
	EnrolledAt time.Time
	RevokedAt  time.Time
	LastToken  string // the id of the token that connected last: none before it is good any more

	// Sessions are its connections, at most one of a kind.
	Sessions map[relay.Session]Presence
	Version  int64

	invitation invitation
	windows    []Window
}

// Presence is a bridge's connection and what it has reported.
type Presence struct {
	Connection  string // the WebSocket's id
	ConnectedAt time.Time
	SeenAt      time.Time // when it was heard of last, to the minute
	Sequence    int64     // of the report that Readers are from
	Readers     []Reader
}

// Reader is a reader at a bridge and the card in it.
type Reader struct {
	Name      string
	Insertion string // "" without a card
	ATR       []byte
	Silent    bool // the card does not answer

	// Identify is how far it has come to be known what card it is, by scripts of the
	// operation Operation, the last of them Part; with a family and an id once it is Done.
	Identify  card.State
	Operation string
	Part      int
	// Credential is the card's credential, once identified; there need not be one.
	Credential string
}

// invitation is how a bridge may become one: the code's hash, until when, and how often a
// wrong code may still be given.
type invitation struct {
	hash      []byte
	expiresAt time.Time
	triesLeft int
}

func (i invitation) open(now time.Time) bool {
	return i.hash != nil && i.triesLeft > 0 && now.Before(i.expiresAt)
}

const (
	invitationLife  = 10 * time.Minute
	invitationTries = 5

	// A WebSocket API drops a connection after 10 minutes without a message, and any after 2
	// hours ("Amazon API Gateway quotas"). SeenAt may be a minute behind.
	idleFor        = 11 * time.Minute
	keepConnection = 3 * time.Hour

	// bridgeTries bounds how often a change begins anew because the bridge has changed.
	bridgeTries = 8
)

// Enrolled tells whether the bridge has keys that are good.
func (b Bridge) Enrolled() bool { return b.Identity != nil && b.RevokedAt.IsZero() }

// Online tells whether one of its connections was heard of lately. Of one that broke
// nothing may be told.
func (b Bridge) Online(now time.Time) bool {
	for _, p := range b.Sessions {
		if p.Online(now) {
			return true
		}
	}
	return false
}

// Online tells whether the connection was heard of lately.
func (p Presence) Online(now time.Time) bool { return now.Sub(p.SeenAt) < idleFor }

// CodeUntil is how long the code of an invitation can still be used; zero if there is none
// that can.
func (b Bridge) CodeUntil(now time.Time) time.Time {
	if !b.invitation.open(now) {
		return time.Time{}
	}
	return b.invitation.expiresAt
}

// bridgeID is the form of a bridge's id.
var bridgeID = regexp.MustCompile(`^[0-9a-hjkmnp-tv-z]{8}$`)

// Validate reports everything that is wrong with the bridge.
func (b Bridge) Validate() error {
	var vs problem.Violations
	if !bridgeID.MatchString(b.ID) {
		vs.Add("form", "id", "is not 8 characters of Crockford's base32")
	}
	if n := utf8.RuneCountInString(b.Name); n < 1 || n > 80 || strings.TrimSpace(b.Name) != b.Name {
		vs.Add("length", "name", "has %d characters, want 1 to 80 without space around them", n)
	}
	if !plain(b.Name) {
		vs.Add("characters", "name", "has control characters")
	}
	for session, p := range b.Sessions {
		if session != relay.Service && session != relay.Terminal {
			vs.Add("unknown", "sessions", "%q is not %s or %s", session, relay.Service, relay.Terminal)
		}
		if len(p.Readers) > relay.MaxReaders {
			vs.Add("tooMany", "readers", "are %d, at most %d are kept", len(p.Readers), relay.MaxReaders)
		}
	}
	return vs.Err()
}

func plain(s string) bool { return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl) }

// bridgeRecord is a Bridge as stored.
type bridgeRecord struct {
	tenant table.TenantID
	Bridge
}

type storedBridge struct {
	Name       string                           `json:"name"`
	Identity   []byte                           `json:"identity,omitempty"`
	Sealing    []byte                           `json:"sealing,omitempty"`
	Program    string                           `json:"program,omitempty"`
	System     string                           `json:"system,omitempty"`
	Host       string                           `json:"host,omitempty"`
	CreatedAt  time.Time                        `json:"createdAt"`
	EnrolledAt time.Time                        `json:"enrolledAt,omitzero"`
	RevokedAt  time.Time                        `json:"revokedAt,omitzero"`
	LastToken  string                           `json:"lastToken,omitempty"`
	Sessions   map[relay.Session]storedPresence `json:"sessions,omitempty"`
	Code       []byte                           `json:"code,omitempty"` // its keyed hash
	CodeUntil  time.Time                        `json:"codeUntil,omitzero"`
	CodeTries  int                              `json:"codeTries,omitzero"`
	Windows    []storedWindow                   `json:"windows,omitempty"`
}

type storedPresence struct {
	Connection  string         `json:"connection"`
	ConnectedAt time.Time      `json:"connectedAt"`
	SeenAt      time.Time      `json:"seenAt"`
	Sequence    int64          `json:"sequence,omitzero"`
	Readers     []storedReader `json:"readers,omitempty"`
}

type storedReader struct {
	Name       string     `json:"name"`
	Insertion  string     `json:"insertion,omitempty"`
	ATR        []byte     `json:"atr,omitempty"`
	Silent     bool       `json:"silent,omitempty"`
	Identify   card.State `json:"identify,omitzero"`
	Operation  string     `json:"operation,omitempty"`
	Part       int        `json:"part,omitzero"`
	Credential string     `json:"credential,omitempty"`
}

// Item implements table.Record.
func (r bridgeRecord) Item() (table.Item, error) {
	b := r.Bridge
	s := storedBridge{b.Name, b.Identity, b.Sealing, b.Program, b.System, b.Host, b.CreatedAt, b.EnrolledAt, b.RevokedAt, b.LastToken, nil,
		b.invitation.hash, b.invitation.expiresAt, b.invitation.triesLeft, nil}
	for _, w := range b.windows {
		s.Windows = append(s.Windows, storedWindow{w.hash, w.open, w.Kiosk, w.Until, w.Operation})
	}
	if len(b.Sessions) > 0 {
		s.Sessions = make(map[relay.Session]storedPresence, len(b.Sessions))
	}
	for session, p := range b.Sessions {
		stored := storedPresence{p.Connection, p.ConnectedAt, p.SeenAt, p.Sequence, nil}
		for _, reader := range p.Readers {
			stored.Readers = append(stored.Readers, storedReader(reader))
		}
		s.Sessions[session] = stored
	}
	item := table.Item{Key: table.BridgeKey(r.tenant, b.ID), Indexes: []table.IndexKey{table.BridgeListed(r.tenant, b.ID)}}
	if !b.RevokedAt.IsZero() {
		item.ExpiresAt = b.RevokedAt.Add(keepKey)
	}
	var err error
	item.Data, err = json.Marshal(s)
	return item, err
}

func decodeBridge(item table.Item, id string) (Bridge, error) {
	var s storedBridge
	if err := item.Decode(&s); err != nil {
		return Bridge{}, err
	}
	b := Bridge{id, s.Name, s.Identity, s.Sealing, s.Program, s.System, s.Host, s.CreatedAt, s.EnrolledAt, s.RevokedAt, s.LastToken,
		make(map[relay.Session]Presence, len(s.Sessions)), item.Version, invitation{s.Code, s.CodeUntil, s.CodeTries}, nil}
	for _, w := range s.Windows {
		b.windows = append(b.windows, Window{w.Kiosk, w.Until, w.Operation, w.Hash, w.Open})
	}
	for session, stored := range s.Sessions {
		p := Presence{stored.Connection, stored.ConnectedAt, stored.SeenAt, stored.Sequence, nil}
		for _, reader := range stored.Readers {
			p.Readers = append(p.Readers, Reader(reader))
		}
		b.Sessions[session] = p
	}
	return b, nil
}

// Bridge returns a tenant's bridge.
func (ts *Tenants) Bridge(ctx context.Context, t table.TenantID, id string) (Bridge, error) {
	if CheckID(t) != nil || !bridgeID.MatchString(id) {
		return Bridge{}, fmt.Errorf("bridge %w", problem.ErrNotFound)
	}
	item, err := ts.Table.Get(ctx, table.BridgeKey(t, id))
	if err != nil {
		return Bridge{}, fmt.Errorf("load bridge: %w", err)
	}
	return decodeBridge(item, id)
}

// Bridges returns up to limit bridges of a tenant by id beyond the given place ("" is the
// start), with those that were revoked in the last 90 days, and the place to go on from, ""
// if there are no more.
func (ts *Tenants) Bridges(ctx context.Context, t table.TenantID, beyond string, limit int) (bridges []Bridge, next string, err error) {
	ranges := table.Bridges(t)
	page, next, err := table.Merge(ctx, ts.Table, ranges, limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list bridges: %w", err)
	}
	bridges = make([]Bridge, len(page.Items))
	for i, item := range page.Items {
		if bridges[i], err = decodeBridge(item, ranges[0].Place(item)); err != nil {
			return nil, "", err
		}
	}
	return bridges, next, nil
}

// ErrUnchanged, from the function that edits it, leaves a bridge as it is.
var ErrUnchanged = errors.New("unchanged")

// ChangeBridge edits a bridge and stores it together with more ops. edit is called again, on
// a new copy, if the bridge has changed meanwhile; its errors are returned, but for
// ErrUnchanged, before which it must not have changed anything: then nothing is written and
// the bridge returned as it is.
func (ts *Tenants) ChangeBridge(ctx context.Context, t table.TenantID, id string, edit func(*Bridge) error, more ...table.Op) (Bridge, error) {
	return ts.changeBridge(ctx, t, id, func(b *Bridge) ([]table.Op, error) { return more, edit(b) })
}

func (ts *Tenants) changeBridge(ctx context.Context, t table.TenantID, id string, edit func(*Bridge) ([]table.Op, error)) (Bridge, error) {
	for range bridgeTries {
		b, err := ts.Bridge(ctx, t, id)
		if err != nil {
			return Bridge{}, err
		}
		more, err := edit(&b)
		if errors.Is(err, ErrUnchanged) {
			return b, nil
		} else if err != nil {
			return Bridge{}, err
		}
		ops := append([]table.Op{table.Put(bridgeRecord{t, b}, table.IfVersion(b.Version))}, more...)
		if err = ts.Table.Write(ctx, ops...); err == nil {
			b.Version++
			return b, nil
		}
		if at, named := table.FailedOp(err); !errors.Is(err, problem.ErrConflict) || named && at > 0 {
			return Bridge{}, fmt.Errorf("change bridge %s: %w", id, err)
		}
	}
	return Bridge{}, fmt.Errorf("change bridge %s: %w", id, problem.ErrUnavailable)
}

// crockford is Crockford's base32 in lower case, without padding.
var crockford = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// random returns n random characters of Crockford's base32, of 5 bits each.
func (ts *Tenants) random(n int) (string, error) {
	b := make([]byte, (n*5+7)/8)
	if _, err := io.ReadFull(ts.Rand, b); err != nil {
		return "", fmt.Errorf("make a code: %w", err)
	}
	return crockford.EncodeToString(b)[:n], nil
}

const (
	idLength   = 8
	codeLength = 10
)

// invite gives a bridge a new code, "<tenant>.<bridge>.<50 random bits>", and returns it. An
// earlier one is good no more. The hash is keyed: who has stolen the table cannot try codes.
func (ts *Tenants) invite(core Core, b *Bridge) (secret.Text, error) {
	code, err := ts.random(codeLength)
	if err != nil {
		return secret.Text{}, err
	}
	hash, err := hashCode(core.Keys, b.ID, code)
	if err != nil {
		return secret.Text{}, err
	}
	b.invitation = invitation{hash, ts.Now().Add(invitationLife).UTC().Truncate(time.Second), invitationTries}
	return secret.New(strings.Join([]string{string(core.Tenant.ID), b.ID, code}, ".")), nil
}

func hashCode(keys *vault.Keys, bridge, code string) ([]byte, error) {
	hash, err := keys.Fingerprint("enrolment code", []byte(bridge+"."+code))
	return []byte(hash), err
}

// Invite makes a bridge that is yet to be enrolled, and the code for it, which is good once,
// for 10 minutes and 5 tries, and cannot be had again.
func (ts *Tenants) Invite(ctx context.Context, core Core, by audit.Actor, name string) (Bridge, secret.Text, error) {
	id, err := ts.random(idLength)
	if err != nil {
		return Bridge{}, secret.Text{}, err
	}
	b := Bridge{ID: id, Name: name, CreatedAt: ts.Now().UTC().Truncate(time.Second), Version: 1}
	code, err := ts.invite(core, &b)
	if err != nil {
		return Bridge{}, secret.Text{}, err
	}
	err = ts.Table.Write(ctx, table.Put(bridgeRecord{core.Tenant.ID, b}, table.Absent()), ts.bridgeAudit(ctx, core, by, "bridge.invited", id))
	if err != nil {
		return Bridge{}, secret.Text{}, fmt.Errorf("invite bridge: %w", err)
	}
	return b, code, nil
}

// InviteAgain makes a new code for a bridge whose machine was installed anew, or whose code
// was not used in time. Until it is used the bridge's keys stay good. A revoked bridge is
// problem.ErrState.
func (ts *Tenants) InviteAgain(ctx context.Context, core Core, by audit.Actor, id string) (Bridge, secret.Text, error) {
	var code secret.Text
	b, err := ts.changeBridge(ctx, core.Tenant.ID, id, func(b *Bridge) (_ []table.Op, err error) {
		if !b.RevokedAt.IsZero() {
			return nil, fmt.Errorf("%w: the bridge is revoked; make a new one", problem.ErrState)
		}
		code, err = ts.invite(core, b)
		return []table.Op{ts.bridgeAudit(ctx, core, by, "bridge.invited", id)}, err
	})
	if err != nil {
		return Bridge{}, secret.Text{}, err
	}
	return b, code, nil
}

func (ts *Tenants) bridgeAudit(ctx context.Context, core Core, by audit.Actor, action, id string) table.Op {
	return ts.Audit.Op(ctx, core.Tenant.ID, audit.Record{Actor: by, Action: action, Subject: "bridge/" + id, Outcome: audit.Done})
}

// errCode is the one answer to every code that does not enrol, so that it does not tell which
// tenants, bridges and invitations there are.
var errCode = fmt.Errorf("%w: the code is wrong, used or expired; ask for a new one", problem.ErrUnauthenticated)

var (
	errSuspended = fmt.Errorf("%w: the tenant is suspended", problem.ErrForbidden)
	errRevoked   = fmt.Errorf("%w: the bridge is revoked", problem.ErrForbidden)
)

// Enrol makes a program the bridge that its code was made for, and ends the sessions of the
// one that was it before: the caller closes the connections in former. A code that does not
// enrol is problem.ErrUnauthenticated, whatever is wrong with it; keys and names that cannot
// be a bridge's are an InvalidError, and cost no try; with the right code a suspended tenant
// is problem.ErrForbidden.
func (ts *Tenants) Enrol(ctx context.Context, e relay.Enrolment) (b Bridge, core Core, former []string, err error) {
	fail := func(err error) (Bridge, Core, []string, error) { return Bridge{}, Core{}, nil, err }
	if err := validateEnrolment(e); err != nil {
		return fail(err)
	}
	t, id, code, ok := parseCode(e.Code.Text)
	if !ok {
		return fail(errCode)
	}
	core, err = ts.Load(ctx, t)
	if err != nil && !errors.Is(err, problem.ErrNotFound) {
		return fail(err)
	}
	// The try is reserved before anything is compared, so that no number of parallel guesses
	// exceeds the tries there are.
	hash, err := ts.reserveTry(ctx, t, id)
	if err != nil {
		return fail(err)
	}
	given, err := hashCode(core.Keys, id, code)
	if err != nil {
		return fail(err)
	}
	if subtle.ConstantTimeCompare(hash, given) != 1 {
		return fail(errCode)
	}
	if core.Tenant.Suspended {
		return fail(errSuspended)
	}
	b, err = ts.changeBridge(ctx, t, id, func(b *Bridge) ([]table.Op, error) {
		if !bytes.Equal(b.invitation.hash, hash) {
			return nil, errCode // another program was first, or the bridge was revoked
		}
		var ops []table.Op
		former, ops = b.hangUp()
		b.Identity, b.Sealing, b.Program, b.System, b.Host = e.Identity, e.Sealing, e.Program, e.System, e.Host
		b.EnrolledAt = ts.Now().UTC().Truncate(time.Second)
		b.LastToken, b.invitation = "", invitation{}
		key := sha256.Sum256(e.Identity)
		return append(ops, ts.Audit.Op(ctx, t, audit.Record{
			Actor:  audit.Actor{Kind: audit.System, ID: "bridge/" + id, Name: b.Name},
			Action: "bridge.enrolled", Subject: "bridge/" + id, Outcome: audit.Done,
			Details: map[string]string{"host": e.Host, "identity": fmt.Sprintf("SHA-256 %x", key)},
		})), nil
	})
	if errors.Is(err, problem.ErrNotFound) {
		err = errCode
	}
	if err != nil {
		return fail(err)
	}
	return b, core, former, nil
}

// reserveTry takes one of the tries of a bridge's invitation and returns the hash that the
// code must have, or errCode if there is no try. It costs one read and one write either way.
func (ts *Tenants) reserveTry(ctx context.Context, t table.TenantID, id string) ([]byte, error) {
	for range bridgeTries {
		b, err := ts.Bridge(ctx, t, id)
		if err != nil && !errors.Is(err, problem.ErrNotFound) {
			return nil, err
		}
		op := table.Check(table.BridgeKey(t, id), table.After(b.Version))
		open := b.invitation.open(ts.Now())
		if open {
			b.invitation.triesLeft--
			op = table.Put(bridgeRecord{t, b}, table.IfVersion(b.Version))
		}
		switch err := ts.Table.Write(ctx, op); {
		case err == nil && open:
			return b.invitation.hash, nil
		case err == nil:
			return nil, errCode
		case !errors.Is(err, problem.ErrConflict):
			return nil, fmt.Errorf("reserve a try: %w", err)
		}
	}
	return nil, fmt.Errorf("reserve a try: %w", problem.ErrUnavailable)
}

// parseCode reads a code as people type it: in any case, with spaces and hyphens, and with
// the letters that Crockford's base32 leaves out for the digits that they look like.
func parseCode(text secret.Text) (t table.TenantID, bridge, code string, ok bool) {
	typed := text.Reveal()
	if len(typed) > 200 {
		return "", "", "", false
	}
	parts := strings.Split(strings.ToLower(strings.Join(strings.Fields(typed), "")), ".")
	if len(parts) != 3 || CheckID(table.TenantID(parts[0])) != nil {
		return "", "", "", false
	}
	alike := strings.NewReplacer("o", "0", "i", "1", "l", "1", "-", "")
	bridge, code = alike.Replace(parts[1]), alike.Replace(parts[2])
	return table.TenantID(parts[0]), bridge, code, bridgeID.MatchString(bridge) && len(code) == codeLength
}

func validateEnrolment(e relay.Enrolment) error {
	var vs problem.Violations
	if len(e.Identity) != ed25519.PublicKeySize || bytes.Equal(e.Identity, make([]byte, ed25519.PublicKeySize)) {
		vs.Add("malformed", "identity", "is not an Ed25519 public key of %d bytes", ed25519.PublicKeySize)
	}
	if !sealable(e.Sealing) {
		vs.Add("malformed", "sealing", "is not an X25519 public key of 32 bytes")
	}
	for _, f := range []struct {
		name, value string
		most        int
	}{{"program", e.Program, 40}, {"system", e.System, 40}, {"host", e.Host, 100}} {
		if len(f.value) > f.most || !plain(f.value) {
			vs.Add("length", f.name, "must have at most %d bytes, without control characters", f.most)
		}
	}
	return vs.Err()
}

// sealable tells whether a PIN can be sealed to a key. To a point of low order it would be
// sealed under a secret that everybody knows (RFC 7748, 6.1): any private key shows that.
func sealable(key []byte) bool {
	public, err := ecdh.X25519().NewPublicKey(key)
	if err != nil {
		return false
	}
	private, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		return false
	}
	_, err = private.ECDH(public)
	return err == nil
}

// hangUp drops the bridge's sessions and windows. It returns their connections, and the ops after which
// nobody knows them.
func (b *Bridge) hangUp() (connections []string, ops []table.Op) {
	for _, session := range slices.Sorted(maps.Keys(b.Sessions)) {
		connection := b.Sessions[session].Connection
		connections = append(connections, connection)
		ops = append(ops, table.Delete(table.ConnectionKey(connection), table.Whatever()))
	}
	b.Sessions, b.windows = nil, nil
	return connections, ops
}

// Revoke ends a bridge at once and for good. The caller closes the connections returned,
// which are as unknown from now on as any other. What is revoked already stays so.
func (ts *Tenants) Revoke(ctx context.Context, core Core, by audit.Actor, id string) (connections []string, err error) {
	_, err = ts.changeBridge(ctx, core.Tenant.ID, id, func(b *Bridge) (ops []table.Op, _ error) {
		if connections = nil; !b.RevokedAt.IsZero() {
			return nil, ErrUnchanged
		}
		connections, ops = b.hangUp()
		b.RevokedAt, b.invitation = ts.Now().UTC().Truncate(time.Second), invitation{}
		return append(ops, ts.bridgeAudit(ctx, core, by, "bridge.revoked", id)), nil
	})
	if err != nil {
		return nil, err
	}
	return connections, nil
}

// connectionRecord is a connection as stored. It keeps with which key it was let in: a bridge
// may be enrolled anew before the connection has said Hello.
type connectionRecord struct {
	id      string
	version int64

	Tenant      table.TenantID `json:"tenant"`
	Bridge      string         `json:"bridge"`
	Session     relay.Session  `json:"session,omitempty"` // "" until Hello
	ConnectedAt time.Time      `json:"connectedAt"`
	Identity    []byte         `json:"identity"`
}

// Validate implements table.Record.
func (r connectionRecord) Validate() error { return nil }

// Item implements table.Record.
func (r connectionRecord) Item() (table.Item, error) {
	data, err := json.Marshal(r)
	return table.Item{Key: table.ConnectionKey(r.id), ExpiresAt: r.ConnectedAt.Add(keepConnection), Data: data}, err
}

func (ts *Tenants) connection(ctx context.Context, id string) (connectionRecord, error) {
	item, err := ts.Table.Get(ctx, table.ConnectionKey(id))
	if err != nil {
		return connectionRecord{}, fmt.Errorf("load connection: %w", err)
	}
	r := connectionRecord{id: id, version: item.Version}
	return r, item.Decode(&r)
}

// errToken answers a token that was right before.
var errToken = fmt.Errorf("%w: the bridge's token was used, or is older than one that was; each is good for one connection", problem.ErrUnauthenticated)

// Connect lets a bridge's new connection in by its token, made for the relay of that URL. A
// token that is not right is problem.ErrUnauthenticated, also if there is no such tenant or
// bridge; with one that is right, a revoked bridge and a suspended tenant are
// problem.ErrForbidden. Until Greet the connection is no session.
func (ts *Tenants) Connect(ctx context.Context, token secret.Text, relayURL, connection string) (Core, Bridge, error) {
	name, id, err := relay.ClaimedBridge(token)
	if err != nil {
		return Core{}, Bridge{}, err
	}
	t, now := table.TenantID(name), ts.Now()
	var core Core
	b, err := ts.changeBridge(ctx, t, id, func(b *Bridge) ([]table.Op, error) {
		claims, err := relay.CheckToken(token, b.Identity, relayURL, now)
		if err != nil {
			return nil, err
		}
		if !b.RevokedAt.IsZero() {
			return nil, errRevoked
		}
		if claims.ID <= b.LastToken {
			return nil, errToken
		}
		if core, err = ts.Load(ctx, t); err != nil {
			return nil, err
		}
		if core.Tenant.Suspended {
			return nil, errSuspended
		}
		b.LastToken = claims.ID
		return []table.Op{table.Put(connectionRecord{id: connection, Tenant: t, Bridge: id, ConnectedAt: now.UTC().Truncate(time.Second), Identity: b.Identity}, table.Absent())}, nil
	})
	if errors.Is(err, problem.ErrNotFound) {
		_, err = relay.CheckToken(token, nil, relayURL, now) // it says what it says to a wrong signature
	}
	if err != nil {
		return Core{}, Bridge{}, err
	}
	return core, b, nil
}

// Greet makes a connection that was let in the bridge's session of the kind that its Hello
// names. The caller closes the connection former, which was that session before; "" is none.
// A connection that is not known is problem.ErrNotFound; one whose bridge has been revoked or
// enrolled anew since, or whose tenant is suspended, problem.ErrForbidden; and one that is a
// session of another kind already, problem.ErrState.
func (ts *Tenants) Greet(ctx context.Context, connection string, h relay.Hello) (core Core, b Bridge, former string, err error) {
	fail := func(err error) (Core, Bridge, string, error) { return Core{}, Bridge{}, "", err }
	c, err := ts.connection(ctx, connection)
	if err != nil {
		return fail(err)
	}
	if c.Session != "" && c.Session != h.Session {
		return fail(fmt.Errorf("%w: the connection is a session of kind %s", problem.ErrState, c.Session))
	}
	if core, err = ts.Load(ctx, c.Tenant); err != nil {
		return fail(err)
	}
	if core.Tenant.Suspended {
		return fail(errSuspended)
	}
	c.Session = h.Session
	b, err = ts.changeBridge(ctx, c.Tenant, c.Bridge, func(b *Bridge) ([]table.Op, error) {
		if !b.RevokedAt.IsZero() || !bytes.Equal(b.Identity, c.Identity) {
			return nil, errRevoked
		}
		ops := []table.Op{table.Put(c, table.IfVersion(c.version))}
		p := b.Sessions[h.Session]
		if former = ""; p.Connection != connection {
			if former = p.Connection; former != "" {
				ops = append(ops, table.Delete(table.ConnectionKey(former), table.Whatever()))
			}
			p = Presence{Connection: connection, ConnectedAt: c.ConnectedAt}
		}
		p.SeenAt = ts.minute()
		b.Sessions[h.Session] = p
		b.Program, b.System = h.Program, h.System
		return ops, nil
	})
	if errors.Is(err, problem.ErrConflict) {
		err = fmt.Errorf("connection %w: it was closed meanwhile", problem.ErrNotFound)
	}
	if err != nil {
		return fail(err)
	}
	return core, b, former, nil
}

// Connection tells whose a connection is: a tenant's bridge's, and which session of it, ""
// before Greet. One that is not known, or was ended, is problem.ErrNotFound.
func (ts *Tenants) Connection(ctx context.Context, id string) (t table.TenantID, bridge string, session relay.Session, err error) {
	c, err := ts.connection(ctx, id)
	return c.Tenant, c.Bridge, c.Session, err
}

// Seen notes that a session's connection was heard of, at most once a minute. One that is
// not the bridge's session is problem.ErrNotFound.
func (ts *Tenants) Seen(ctx context.Context, connection string) error {
	c, err := ts.connection(ctx, connection)
	if err != nil {
		return err
	}
	_, err = ts.changeBridge(ctx, c.Tenant, c.Bridge, func(b *Bridge) ([]table.Op, error) {
		p := b.Sessions[c.Session]
		if p.Connection != connection {
			return nil, fmt.Errorf("session %w", problem.ErrNotFound)
		}
		minute := ts.minute()
		if !p.SeenAt.Before(minute) {
			return nil, ErrUnchanged
		}
		p.SeenAt = minute
		b.Sessions[c.Session] = p
		return nil, nil
	})
	return err
}

func (ts *Tenants) minute() time.Time { return ts.Now().UTC().Truncate(time.Minute) }

// Disconnect forgets a connection and its session. One that is not known is forgotten
// already.
func (ts *Tenants) Disconnect(ctx context.Context, connection string) error {
	for range bridgeTries {
		c, err := ts.connection(ctx, connection)
		if errors.Is(err, problem.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		// On the version: else a Hello that is being answered would leave its session behind.
		forget := table.Delete(table.ConnectionKey(connection), table.IfVersion(c.version))
		if c.Session == "" {
			err = ts.Table.Write(ctx, forget)
		} else {
			_, err = ts.changeBridge(ctx, c.Tenant, c.Bridge, func(b *Bridge) ([]table.Op, error) {
				delete(b.Sessions, c.Session) // which it is, while it is known: Greet of another forgets it
				return []table.Op{forget}, nil
			})
		}
		if !errors.Is(err, problem.ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("forget connection: %w", problem.ErrUnavailable)
}
