// Package line is the cloud's end of the bridges' WebSockets: it lets bridges in, keeps
// note of their readers and cards, finds out what cards they are, and hands on what
// belongs to unblocks. It believes a message only as far as its connection goes: whose
// that is was settled when it was made.
package line

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
)

// Line implements gateway.Socket. All fields must be set; Rand must be safe for concurrent
// use.
type Line struct {
	Tenants     *tenant.Tenants
	Credentials *credential.Credentials
	Unblocks    *unblock.Unblocks
	Connections gateway.Connections
	RelayURL    string // that bridges' tokens must be for
	ConsoleURL  string // where the web pages are, "https://host"
	Now         func() time.Time
	Rand        io.Reader
	Log         *slog.Logger
}

// What a bridge is told at Welcome. API Gateway drops a connection after 10 minutes
// without a message, and after 2 hours in any case ("Amazon API Gateway quotas").
const (
	keepAlive = 4 * time.Minute
	reconnect = 110 * time.Minute
)

// identifyWithin is how long a script that asks what card it is may be on its way.
const identifyWithin = 20 * time.Second

// Connect implements gateway.Socket.
func (l *Line) Connect(ctx context.Context, connection string, header http.Header) int {
	scheme, text, _ := strings.Cut(header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || text == "" {
		return http.StatusUnauthorized
	}
	core, bridge, err := l.Tenants.Connect(ctx, secret.New(strings.TrimSpace(text)), l.RelayURL, connection)
	switch {
	case err == nil:
		l.Log.InfoContext(ctx, "bridge connected", "tenant", core.Tenant.ID, "bridge", bridge.ID)
		return http.StatusOK
	case errors.Is(err, problem.ErrForbidden):
		l.Log.InfoContext(ctx, "bridge refused", "cause", err)
		return http.StatusForbidden
	case errors.Is(err, problem.ErrUnauthenticated):
		l.Log.InfoContext(ctx, "bridge refused", "cause", err)
		return http.StatusUnauthorized
	}
	l.Log.ErrorContext(ctx, "bridge cannot connect", "cause", err)
	return http.StatusServiceUnavailable
}

// Disconnect implements gateway.Socket.
func (l *Line) Disconnect(ctx context.Context, connection string) error {
	return l.Tenants.Disconnect(ctx, connection)
}

// call is one message of one bridge.
type call struct {
	*Line
	connection string
	session    relay.Session
	core       tenant.Core
	bridge     string
}

// Message implements gateway.Socket.
func (l *Line) Message(ctx context.Context, connection string, data []byte) error {
	m, err := relay.Decode(data)
	var version *relay.VersionError
	if errors.As(err, &version) {
		return l.goodbye(ctx, connection, relay.Update, fmt.Sprintf("this bridge speaks version %d; install one that speaks version %d to %d", version.Version, relay.MinVersion, relay.Version))
	} else if err != nil {
		return err
	}
	if m.Hello != nil {
		return l.hello(ctx, connection, *m.Hello)
	}
	if m.Ping != nil {
		if err := l.Tenants.Seen(ctx, connection); err != nil {
			return l.stranger(ctx, connection, err)
		}
		return l.post(ctx, connection, relay.Message{Pong: &relay.Pong{}})
	}
	t, bridge, session, err := l.Tenants.Connection(ctx, connection)
	if err != nil {
		return l.stranger(ctx, connection, err)
	}
	if session == "" {
		return fmt.Errorf("bridge %s: a message before hello", bridge)
	}
	core, err := l.Tenants.Load(ctx, t)
	if err != nil {
		return err
	}
	if core.Tenant.Suspended {
		return l.Connections.Close(ctx, connection)
	}
	c := call{l, connection, session, core, bridge}
	switch {
	case m.Readers != nil:
		return c.readers(ctx, *m.Readers)
	case m.Result != nil:
		return c.result(ctx, *m.Result)
	case m.Offline != nil:
		return c.offline(ctx, *m.Offline)
	case m.Open != nil:
		return c.open(ctx, *m.Open)
	}
	return c.person(ctx, m)
}

// stranger closes a connection that is nobody's any more.
func (l *Line) stranger(ctx context.Context, connection string, err error) error {
	if errors.Is(err, problem.ErrNotFound) {
		return l.Connections.Close(ctx, connection)
	}
	return err
}

func (l *Line) post(ctx context.Context, connection string, m relay.Message) error {
	b, err := relay.Encode(m)
	if err != nil {
		return err
	}
	if err := l.Connections.Post(ctx, connection, b); errors.Is(err, gateway.ErrGone) {
		return l.Tenants.Disconnect(ctx, connection)
	} else if err != nil {
		return fmt.Errorf("post to bridge: %w", err)
	}
	return nil
}

func (l *Line) goodbye(ctx context.Context, connection string, code relay.GoodbyeCode, reason string) error {
	err := l.post(ctx, connection, relay.Message{Goodbye: &relay.Goodbye{Code: code, Reason: reason}})
	return errors.Join(err, l.Connections.Close(ctx, connection))
}

func (l *Line) hello(ctx context.Context, connection string, h relay.Hello) error {
	core, bridge, former, err := l.Tenants.Greet(ctx, connection, h)
	switch {
	case errors.Is(err, problem.ErrForbidden):
		return l.goodbye(ctx, connection, relay.Revoked, "this bridge may not connect any more")
	case err != nil:
		return l.stranger(ctx, connection, err)
	}
	if former != "" {
		if err := l.goodbye(ctx, former, relay.Replaced, "the bridge has connected once more"); err != nil {
			l.Log.InfoContext(ctx, "former connection not closed", "bridge", bridge.ID, "cause", err)
		}
	}
	offline, err := l.Tenants.OfflineKey(ctx, core)
	if err != nil {
		return err
	}
	return l.post(ctx, connection, relay.Message{Welcome: &relay.Welcome{
		Time: l.Now().UTC(), Organisation: core.Tenant.Settings.DisplayName,
		KeepAliveSeconds: int(keepAlive / time.Second), ReconnectSeconds: int(reconnect / time.Second),
		Offline: offline.PublicKey().Bytes(),
	}})
}

// readers notes what is in a bridge's readers, and asks new cards what they are.
func (c call) readers(ctx context.Context, report relay.Readers) error {
	var fresh []tenant.Reader
	_, err := c.Tenants.ChangeBridge(ctx, c.core.Tenant.ID, c.bridge, func(b *tenant.Bridge) error {
		fresh = nil
		p := b.Sessions[c.session]
		if p.Connection != c.connection || report.Sequence <= p.Sequence {
			return tenant.ErrUnchanged
		}
		known := p.Readers
		p.Sequence, p.Readers = report.Sequence, nil
		for _, r := range report.Readers {
			reader := tenant.Reader{Name: r.Name}
			if r.Card != nil {
				at := slices.IndexFunc(known, func(k tenant.Reader) bool {
					return k.Name == r.Name && k.Insertion == r.Card.Insertion && k.Silent == r.Card.Silent
				})
				if at >= 0 {
					p.Readers = append(p.Readers, known[at])
					continue
				}
				reader.Insertion, reader.ATR, reader.Silent = r.Card.Insertion, r.Card.ATR, r.Card.Silent
				if !reader.Silent {
					id, err := ulid.New(ulid.Timestamp(c.Now()), c.Rand)
					if err != nil {
						return fmt.Errorf("make an identification's id: %w", err)
					}
					reader.Identify, reader.Operation, reader.Part = card.Identify(false), identification+id.String(), 1
					fresh = append(fresh, reader)
				}
			}
			p.Readers = append(p.Readers, reader)
		}
		b.Sessions[c.session] = p
		return nil
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range fresh {
		errs = append(errs, c.ask(ctx, r))
	}
	return errors.Join(errs...)
}

// identification begins the names of operations that find out what card it is.
const identification = "identify-"

// ask sends the next script that finds out what card it is.
func (c call) ask(ctx context.Context, r tenant.Reader) error {
	script, err := r.Identify.Script(card.Materials{})
	if err != nil {
		return err
	}
	return c.post(ctx, c.connection, relay.Message{Run: &relay.Run{
		Reader: r.Name, Insertion: r.Insertion,
		Script: apdu.Script{Operation: r.Operation, Part: r.Part, Deadline: c.Now().Add(identifyWithin), Steps: script.Steps},
	}})
}

// result takes in what came of a script, and lets the bridge forget it.
func (c call) result(ctx context.Context, r relay.Result) error {
	var err error
	if strings.HasPrefix(r.Operation, identification) {
		err = c.identified(ctx, r)
	} else {
		var op unblock.Operation
		op, err = c.Unblocks.Result(ctx, c.core, c.bridge, r)
		if err == nil && op.Kind == unblock.Unblock && op.State.Finished() { // the PIN may expire at another time now
			err = c.known(ctx, op.Credential, "")
		}
	}
	if err != nil {
		return fmt.Errorf("result of %s/%d: %w", r.Operation, r.Part, err)
	}
	return c.post(ctx, c.connection, relay.Message{Ack: &relay.Ack{Operation: r.Operation, Part: r.Part}})
}

// identified goes on with finding out what card it is.
func (c call) identified(ctx context.Context, r relay.Result) error {
	var now tenant.Reader
	b, err := c.Tenants.ChangeBridge(ctx, c.core.Tenant.ID, c.bridge, func(b *tenant.Bridge) error {
		now = tenant.Reader{}
		p := b.Sessions[c.session]
		at := slices.IndexFunc(p.Readers, func(k tenant.Reader) bool { return k.Operation == r.Operation && k.Part == r.Part })
		if p.Connection != c.connection || at < 0 || p.Readers[at].Identify.Finished() {
			return tenant.ErrUnchanged
		}
		now = p.Readers[at]
		next := now.Identify.NoResult()
		if answered, ok := r.Card(); ok {
			var err error
			if next, err = now.Identify.Next(answered); err != nil {
				return err
			}
		}
		now.Identify = next
		if !next.Finished() {
			now.Part++
		}
		if next.Leg == card.Done {
			id, err := credential.IDOf(next.Family, next.ID)
			if err != nil {
				return err
			}
			switch _, err := c.Credentials.Get(ctx, c.core.Tenant.ID, id); {
			case err == nil:
				now.Credential = id
			case !errors.Is(err, problem.ErrNotFound):
				return err
			}
		}
		p.Readers = slices.Clone(p.Readers)
		p.Readers[at] = now
		b.Sessions[c.session] = p
		return nil
	})
	switch {
	case err != nil:
		return err
	case now.Name == "":
		return nil
	case !now.Identify.Finished():
		return c.ask(ctx, now)
	case now.Credential != "":
		err := errors.Join(c.known(ctx, now.Credential, now.Insertion), c.Unblocks.SeenOffline(ctx, c.core, now))
		return errors.Join(err, c.Unblocks.Seen(ctx, c.core, b, c.session, now))
	}
	return nil
}

// known tells the bridge what it is to keep of a card, if there is such a one.
func (c call) known(ctx context.Context, id, insertion string) error {
	at := c.Now() // before it is read
	cred, err := c.Credentials.Get(ctx, c.core.Tenant.ID, id)
	if errors.Is(err, problem.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	t, err := c.Credentials.Template(ctx, c.core.Tenant.ID, cred.Template)
	if err != nil {
		return err
	}
	return c.post(ctx, c.connection, relay.Message{Known: &relay.Known{Credential: id, Insertion: insertion, At: at.UTC(), Policy: &t.Policy, PINExpiresAt: cred.PINExpiresAt,
		Offline: t.Allows(credential.SelfServiceOffline), LogonScreen: t.Allows(credential.LogonScreenOffline)}})
}

// offline takes in what the bridge has done without a connection, and lets it forget that.
func (c call) offline(ctx context.Context, o relay.Offline) error {
	if err := c.Unblocks.Reported(ctx, c.core, c.bridge, o); err != nil {
		return fmt.Errorf("offline unblock or change %s: %w", o.ID, err)
	}
	if err := c.known(ctx, o.Credential, ""); err != nil {
		return err
	}
	return c.post(ctx, c.connection, relay.Message{Ack: &relay.Ack{Operation: o.ID, Part: 1}})
}

// person answers what a person at the bridge asks for.
func (c call) person(ctx context.Context, m relay.Message) error {
	by := audit.Actor{Kind: audit.Bridge, ID: c.bridge}
	var ref string
	var op unblock.Operation
	var err error
	switch {
	case m.Start != nil:
		ref = m.Start.Ref
		at := c.Unblocks.AtBridge
		if m.Start.LogonScreen {
			at = c.Unblocks.AtLogonScreen
		}
		op, err = at(ctx, c.core, c.bridge, m.Start.Insertion)
	case m.Prove != nil:
		ref = m.Prove.Ref
		op, err = c.own(ctx, m.Prove.Operation, func(id string) (unblock.Operation, error) {
			return c.Unblocks.Prove(ctx, c.core, by, id, m.Prove.Code.Text)
		})
	case m.Ready != nil:
		ref = m.Ready.Ref
		op, err = c.own(ctx, m.Ready.Operation, func(id string) (unblock.Operation, error) {
			return c.Unblocks.Ready(ctx, c.core, by, id)
		})
	case m.Cancel != nil:
		ref = m.Cancel.Ref
		op, err = c.own(ctx, m.Cancel.Operation, func(id string) (unblock.Operation, error) {
			return c.Unblocks.Cancel(ctx, c.core, by, id)
		})
	case m.Look != nil:
		ref = m.Look.Ref
		op, err = c.own(ctx, m.Look.Operation, func(id string) (unblock.Operation, error) {
			return c.Unblocks.Look(ctx, c.core, id)
		})
	default:
		return fmt.Errorf("%w: it is not for the cloud", relay.ErrMessage)
	}
	if err == nil {
		var shown relay.Operation
		if shown, err = c.Unblocks.Show(ctx, c.core, op); err == nil {
			shown.Ref = ref
			return c.post(ctx, c.connection, relay.Message{Operation: &shown})
		}
	}
	return c.refuse(ctx, ref, err)
}

// windowPath is the page that a bridge's window begins at.
const windowPath = "/console/kiosk/open"

// open answers with the link to a page for who is at the bridge.
func (c call) open(ctx context.Context, o relay.Open) error {
	b, window, token, err := c.Tenants.OfferWindow(ctx, c.core, c.bridge, o.Kiosk)
	if err != nil {
		return c.refuse(ctx, o.Ref, err)
	}
	return c.post(ctx, c.connection, relay.Message{Opened: &relay.Opened{
		Ref: o.Ref, URL: c.ConsoleURL + windowPath, Token: relay.Code{Text: token}, Until: window.Until, OpenSeconds: int(tenant.WindowLife / time.Second),
		Served: b.Sessions[relay.Service].Online(c.Now()),
	}})
}

// own lets a bridge act on its own operations only.
func (c call) own(ctx context.Context, id string, act func(string) (unblock.Operation, error)) (unblock.Operation, error) {
	op, err := c.Unblocks.Get(ctx, c.core.Tenant.ID, id)
	if err == nil && op.Bridge != c.bridge {
		err = fmt.Errorf("unblock %w", problem.ErrNotFound)
	}
	if err != nil {
		return op, err
	}
	return act(id)
}

// refuse answers with a problem. What is not the person's to know is logged, and told as
// something that went wrong.
func (c call) refuse(ctx context.Context, ref string, err error) error {
	p := relay.Problem{Ref: ref, Code: "internal", Reason: "Something went wrong; try again."}
	var invalid *problem.InvalidError
	var limit *problem.LimitError
	var failure card.Failure
	switch {
	case errors.As(err, &invalid):
		p.Code, p.Reason = invalid.Violations[0].Code, "The "+invalid.Violations[0].Field+" "+invalid.Violations[0].Reason+"."
	case errors.As(err, &limit):
		p.Code, p.Reason = limit.Code, limit.Error()
	case errors.As(err, &failure):
		p.Code, p.Reason = string(failure.Reason), failure.Sentence()
	case errors.Is(err, problem.ErrNotFound):
		p.Code, p.Reason = "notFound", "There is no such unblock here."
	case errors.Is(err, unblock.ErrNotIdentified):
		p.Code, p.Reason = "notIdentified", "It is not known yet which card this is; try again."
	case errors.Is(err, problem.ErrUnavailable):
		p.Code, p.Reason = "unavailable", "That did not work just now; try again."
		c.Log.WarnContext(ctx, "request at a bridge not met", "bridge", c.bridge, "cause", err)
	case errors.Is(err, problem.ErrState):
		_, reason, _ := strings.Cut(err.Error(), problem.ErrState.Error()+": ")
		p.Code, p.Reason = "state", reason
	default:
		c.Log.ErrorContext(ctx, "request at a bridge failed", "bridge", c.bridge, "cause", err)
	}
	return c.post(ctx, c.connection, relay.Message{Problem: &p})
}
