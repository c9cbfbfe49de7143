package delivery

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// Deliveries are the operations on deliveries and endpoints. All fields must be set but for
// the last three; Rand must be safe for concurrent use.
type Deliveries struct {
	Table   table.Table
	Tenants *tenant.Tenants
	Users   *user.Users
	Senders mail.Senders
	Audit   audit.Log
	Now     func() time.Time
	Rand    io.Reader
	Log     *slog.Logger

	Anywhere bool                                                                 // endpoints may be in the installation's own network, and without TLS
	Dial     func(ctx context.Context, network, address string) (net.Conn, error) // to endpoints; nil is mail.PublicDial, or with Anywhere net.Dialer's
	RootCAs  *x509.CertPool                                                       // that endpoints are verified by; nil is the system's
}

// tries bounds how often a mark is written anew.
const tries = 4

// suspendedFor is how long a suspended tenant's deliveries are put off.
const suspendedFor = time.Hour

var system = audit.Actor{Kind: audit.System, ID: "delivery"}

// Webhook is what is sent to an endpoint.
type Webhook struct {
	ID   string          // of the delivery: 1 to 100 letters, digits, - and _; the same ID is the same delivery
	Body json.RawMessage // an object of at most 64 KiB; never with a secret in it
}

// Mail is what is sent to a user, at the address that they have when it is sent.
type Mail struct {
	ID        string // as of a Webhook
	User      string
	Template  string            // a mail template of kind notice; "" is the predefined one
	Messaging string            // a messaging configuration
	Values    map[string]string // "event", "message" and "time" (from mail.FormatTime; left out, it is now); at most 1000 characters each, never a secret
}

// Webhook plans a webhook, and returns the ops that store it. They belong in the Write of
// what causes it, and fail there if there is a delivery of that ID. An endpoint that is not
// there or not on is an *Undeliverable: problem.ErrNotFound, and problem.ErrState.
func (ds *Deliveries) Webhook(ctx context.Context, core tenant.Core, endpoint string, w Webhook) (Delivery, []table.Op, error) {
	d := ds.planned(w.ID)
	d.Kind, d.Endpoint, d.Body = KindWebhook, endpoint, w.Body
	if err := d.Validate(); err != nil {
		return Delivery{}, nil, err
	}
	var err error
	if d.Body, err = json.Marshal(w.Body); err != nil { // as it will be stored and sent
		return Delivery{}, nil, fmt.Errorf("webhook %s: %w", w.ID, err)
	}
	if _, err := ds.open(ctx, core, endpoint); err != nil {
		return Delivery{}, nil, err
	}
	return d, []table.Op{put(core.Tenant.ID, d)}, nil
}

// Mail plans a mail, and returns the ops that store it, as Webhook does. What keeps it from
// being sent (no such user, address, configuration or template) is an *Undeliverable.
func (ds *Deliveries) Mail(ctx context.Context, core tenant.Core, m Mail) (Delivery, []table.Op, error) {
	d := ds.planned(m.ID)
	d.Kind, d.User, d.Template, d.Messaging, d.Values = KindMail, m.User, m.Template, m.Messaging, m.Values
	if d.Template == "" {
		d.Template = mail.NoticeID
	}
	if err := d.Validate(); err != nil {
		return Delivery{}, nil, err
	}
	if _, _, err := ds.compose(ctx, core, d); err != nil {
		return Delivery{}, nil, err
	}
	return d, []table.Op{put(core.Tenant.ID, d)}, nil
}

func (ds *Deliveries) planned(id string) Delivery {
	now := ds.Now()
	return Delivery{ID: id, State: Planned, At: second(now), CreatedAt: second(now)}
}

// Get returns a delivery by id.
func (ds *Deliveries) Get(ctx context.Context, t table.TenantID, id string) (Delivery, error) {
	item, err := ds.Table.Get(ctx, table.DeliveryKey(t, id))
	if err != nil {
		return Delivery{}, fmt.Errorf("load delivery: %w", err)
	}
	_, d, err := decode(item)
	return d, err
}

// List returns up to limit deliveries, newest first, beyond the given place ("" is the
// start), or only the dead ones, and the place to go on from, "" if there are no more.
func (ds *Deliveries) List(ctx context.Context, t table.TenantID, dead bool, beyond string, limit int) (list []Delivery, next string, err error) {
	shards := table.Deliveries(t)
	if dead {
		shards = table.DeadDeliveries(t)
	}
	for i := range shards {
		shards[i] = shards[i].Descending()
	}
	page, next, err := table.Merge(ctx, ds.Table, shards, limit, beyond)
	if err != nil {
		return nil, "", fmt.Errorf("list deliveries: %w", err)
	}
	list = make([]Delivery, len(page.Items))
	for i, item := range page.Items {
		if _, list[i], err = decode(item); err != nil {
			return nil, "", err
		}
	}
	return list, next, nil
}

// Attempt tries to send a delivery now, if it is due and nobody else is at it, and returns
// it as it is then. That it could not be sent is no error: the sweep tries again.
func (ds *Deliveries) Attempt(ctx context.Context, core tenant.Core, id string) (Delivery, error) {
	d, err := ds.Get(ctx, core.Tenant.ID, id)
	if err != nil {
		return Delivery{}, err
	}
	d, _, err = ds.attempt(ctx, core, d)
	if errors.Is(err, problem.ErrConflict) { // somebody else was faster
		return ds.Get(ctx, core.Tenant.ID, id)
	}
	return d, err
}

// attempt tries to send a delivery, if it is due, and returns it as it is then with what
// came of it. It is a problem.ErrConflict if it was changed since it was read.
func (ds *Deliveries) attempt(ctx context.Context, core tenant.Core, d Delivery) (Delivery, outcome, error) {
	now := ds.Now()
	if !d.due(now) {
		return d, outcome{}, nil
	}
	if core.Tenant.Suspended {
		d.Doubt = d.Doubt || d.State == Claimed
		d.State, d.At = Planned, second(now.Add(suspendedFor))
		d, err := ds.store(ctx, core.Tenant.ID, d)
		return d, outcome{}, err
	}
	// What keeps it from being sent is found out before the claim.
	send, err := ds.sending(ctx, core, d)
	var never *Undeliverable
	if errors.As(err, &never) {
		o := outcome{state: Dead, code: never.Code}
		d, err := ds.mark(ctx, core.Tenant.ID, d.begun(), o)
		return d, o, err
	} else if err != nil {
		return d, outcome{}, fmt.Errorf("prepare delivery %s: %w", d.ID, err)
	}
	claimed, err := ds.store(ctx, core.Tenant.ID, d.claimed(now))
	if err != nil {
		return d, outcome{}, err
	}
	o := send(ctx)
	marked, err := ds.mark(ctx, core.Tenant.ID, claimed, o)
	return marked, o, err
}

// sending returns what sends a delivery, or an *Undeliverable.
func (ds *Deliveries) sending(ctx context.Context, core tenant.Core, d Delivery) (func(context.Context) outcome, error) {
	if d.Kind == KindMail {
		sender, m, err := ds.compose(ctx, core, d)
		return func(ctx context.Context) outcome { return hand(ctx, sender, m) }, err
	}
	e, err := ds.open(ctx, core, d.Endpoint)
	if err != nil {
		return nil, err
	}
	keys, err := signingKeys(core, e, ds.Now())
	return func(ctx context.Context) outcome { return ds.post(ctx, e, keys, d.ID, d.Body) }, err
}

// store writes a delivery, on the condition that it was not changed, together with ops.
func (ds *Deliveries) store(ctx context.Context, t table.TenantID, d Delivery, ops ...table.Op) (Delivery, error) {
	if err := ds.Table.Write(ctx, append([]table.Op{put(t, d)}, ops...)...); err != nil {
		return Delivery{}, fmt.Errorf("store delivery %s: %w", d.ID, err)
	}
	d.Version++
	return d, nil
}

// mark notes what came of an attempt, also if the caller has no more time for it. It is
// tried a few times: what is not noted will be sent again.
func (ds *Deliveries) mark(ctx context.Context, t table.TenantID, d Delivery, o outcome) (Delivery, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	after := d.marked(o, ds.Now())
	var failure error
	for range tries {
		var ops []table.Op
		if after.State == Dead || after.State == Delivered && after.Kind == KindMail {
			ops = append(ops, ds.Audit.Op(ctx, t, after.record(system, "delivery."+string(after.State))))
		}
		off, err := ds.turnOff(ctx, t, d.Endpoint, o.gone)
		var stored Delivery
		if err == nil {
			stored, err = ds.store(ctx, t, after, append(ops, off...)...)
		}
		if err == nil {
			return stored, nil
		}
		failure = err
		if !errors.Is(err, problem.ErrConflict) && !errors.Is(err, problem.ErrUnavailable) {
			break
		}
		// If it is another version, this one was written and the answer lost; or the
		// lease is over, and it is another's to go on with.
		if now, err := ds.Get(ctx, t, d.ID); err == nil && now.Version != d.Version {
			return now, nil
		}
	}
	return d, fmt.Errorf("mark delivery %s: %w", d.ID, failure)
}

// turnOff returns the ops that turn an endpoint off that has answered, at the URL gone, that
// it is gone; none if it was changed since.
func (ds *Deliveries) turnOff(ctx context.Context, t table.TenantID, id, gone string) ([]table.Op, error) {
	if gone == "" {
		return nil, nil
	}
	e, err := ds.Endpoint(ctx, t, id)
	if errors.Is(err, problem.ErrNotFound) || err == nil && (!e.On || e.URL != gone) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	e.On, e.Gone = false, true
	return []table.Op{
		table.Put(endpointRecord{t, e}, table.IfVersion(e.Version)),
		ds.Audit.Op(ctx, t, audit.Record{Actor: system, Action: "webhook.turnedOff", Subject: Subject(id), Outcome: audit.Done, Reason: "http.410"}),
	}, nil
}

// Resend plans a delivery that has ended anew, and tries it at once.
func (ds *Deliveries) Resend(ctx context.Context, core tenant.Core, by audit.Actor, id string) (Delivery, error) {
	t := core.Tenant.ID
	d, err := ds.Get(ctx, t, id)
	if err != nil {
		return Delivery{}, err
	}
	if !d.State.Ended() {
		return Delivery{}, fmt.Errorf("%w: it is still to be sent, and is tried again by itself", problem.ErrState)
	}
	if _, err := ds.sending(ctx, core, d); err != nil {
		if never := (*Undeliverable)(nil); errors.As(err, &never) { // the delivery itself is there
			return Delivery{}, fmt.Errorf("%w: %s", problem.ErrState, never.Reason)
		}
		return Delivery{}, err
	}
	d.Doubt = d.Doubt || d.State == Delivered
	d.State, d.At, d.Attempts, d.Code, d.EndedAt = Planned, second(ds.Now()), 0, "", time.Time{}
	if _, err := ds.store(ctx, t, d, ds.Audit.Op(ctx, t, d.record(by, "delivery.resent"))); err != nil {
		return Delivery{}, err
	}
	return ds.Attempt(ctx, core, id)
}

// Drop gives up a delivery that is not sent, or is dead.
func (ds *Deliveries) Drop(ctx context.Context, core tenant.Core, by audit.Actor, id string) (Delivery, error) {
	t := core.Tenant.ID
	d, err := ds.Get(ctx, t, id)
	if err != nil {
		return Delivery{}, err
	}
	switch d.State {
	case Dropped:
		return d, nil
	case Delivered:
		return Delivery{}, fmt.Errorf("%w: it is delivered", problem.ErrState)
	case Claimed:
		return Delivery{}, fmt.Errorf("%w: it is being sent; look again in two minutes", problem.ErrState)
	}
	d.State, d.At, d.EndedAt = Dropped, time.Time{}, second(ds.Now())
	return ds.store(ctx, t, d, ds.Audit.Op(ctx, t, d.record(by, "delivery.dropped")))
}

// compose makes the mail of a delivery and what sends it. What keeps it from being sent for
// good is an *Undeliverable.
func (ds *Deliveries) compose(ctx context.Context, core tenant.Core, d Delivery) (mail.Sender, mail.Message, error) {
	var none mail.Message
	to, err := ds.Users.Get(ctx, core.Tenant.ID, d.User)
	if errors.Is(err, problem.ErrNotFound) {
		return nil, none, undeliverable("noUser", "there is no such user")
	} else if err != nil {
		return nil, none, err
	}
	if to.Profile.Mail == "" {
		return nil, none, undeliverable("noAddress", "the user has no mail address")
	}
	store := mail.Store{Table: ds.Table, Tenant: core.Tenant.ID, Keys: core.Keys}
	conf, err := store.WithPassword(ctx, d.Messaging)
	if errors.Is(err, problem.ErrNotFound) {
		return nil, none, undeliverable("noMessaging", "there is no such messaging configuration")
	} else if err != nil {
		return nil, none, err
	}
	sender, err := ds.Senders.For(conf)
	if err != nil {
		ds.Log.WarnContext(ctx, "delivery by a messaging configuration that cannot be used", "tenant", core.Tenant.ID, "messaging", d.Messaging, "cause", err)
		return nil, none, undeliverable("messaging", "the messaging configuration cannot be used in this installation")
	}
	settings := core.Tenant.Settings
	text, err := store.Template(ctx, d.Template, settings.Language)
	if errors.Is(err, problem.ErrNotFound) {
		return nil, none, undeliverable("noTemplate", "there is no such mail template")
	} else if err != nil {
		return nil, none, err
	}
	values := mail.NoticeValues{Username: to.Profile.Username, CustomerName: settings.DisplayName,
		Event: d.Values["event"], Time: d.Values["time"], Message: d.Values["message"]}
	if values.Time == "" {
		values.Time = mail.FormatTime(d.CreatedAt, settings.Location(), settings.Language)
	}
	m, err := mail.Render(text, values)
	if err != nil {
		ds.Log.WarnContext(ctx, "delivery by a mail template that cannot be used", "tenant", core.Tenant.ID, "template", d.Template, "cause", err)
		return nil, none, undeliverable("template", "the mail cannot be made from this template: it is not of kind notice, or names what has no value")
	}
	m.ID, m.To = d.ID, to.Profile.Mail
	return sender, m, nil
}

// mailFor is how long the mail system may take for a mail.
const mailFor = 10 * time.Second

// hand gives a mail to the mail system.
func hand(ctx context.Context, sender mail.Sender, m mail.Message) outcome {
	ctx, cancel := context.WithTimeout(ctx, mailFor)
	defer cancel()
	switch r := sender.Send(ctx, []mail.Message{m})[0]; r.Outcome {
	case mail.Accepted:
		return outcome{state: Delivered}
	case mail.Refused:
		return outcome{state: Dead, code: r.Code}
	default:
		return outcome{state: Planned, code: r.Code, doubt: r.Outcome == mail.Unknown}
	}
}
