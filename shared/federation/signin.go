package federation

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/oklog/ulid/v2"
	"golang.org/x/oauth2"
	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Life is how long somebody may take at the provider.
const Life = 10 * time.Minute

// authenticatedWithin is how lately the provider must have made sure who somebody is, when
// they confirm.
const authenticatedWithin = 5 * time.Minute

// skew is how far a provider's clock may be ahead.
const skew = time.Minute

// door is the actor of what is done for somebody who has not signed in yet.
var door = audit.Actor{Kind: audit.System, ID: "sign-in"}

// NotLetIn says why somebody is not let in, in a word that pages have a sentence for. It is a
// problem.ErrUnauthenticated.
type NotLetIn struct {
	Code  string
	cause error // for the log; no secret
}

// Error implements error.
func (e *NotLetIn) Error() string {
	if e.cause != nil {
		return "not let in: " + e.Code + ": " + e.cause.Error()
	}
	return "not let in: " + e.Code
}

// Unwrap returns problem.ErrUnauthenticated, and the cause.
func (e *NotLetIn) Unwrap() []error { return []error{problem.ErrUnauthenticated, e.cause} }

// The codes of NotLetIn.
const (
	NotSetUp       = "notSetUp"       // the organisation is not known, or lets nobody in this way
	OtherReturn    = "otherReturn"    // not the browser that went there, or a return that was used, or too late
	Denied         = "denied"         // the person, or the provider, did not want
	NotSignedIn    = "notSignedIn"    // the provider wants something of the person first
	Failing        = "failing"        // something is wrong with the provider or what is set up: for the administrator
	MailNotVouched = "mailNotVouched" // the provider vouches for no mail address
	NotKnown       = "notKnown"       // nobody here has the address
	NoRole         = "noRole"         // the account has none of the values that give a role
	Disabled       = "disabled"       // the person cannot sign in
	OtherOwner     = "otherOwner"     // the person with the address has another account
	NotLately      = "notLately"      // to confirm, the provider has not asked who it is
	NotTheSame     = "notTheSame"     // to confirm, somebody else has signed in
)

func not(code string, cause error) error { return &NotLetIn{code, cause} }

// trip is somebody's way to the provider and back. Its secret is in a cookie and nowhere else;
// state, nonce and PKCE's verifier are made of it, so that nothing need be kept of it here.
type trip struct {
	kind   string
	tenant table.TenantID
	id     string // a ULID: when it began
	secret string
	to     string // where they want to go afterwards
}

// The kinds of trips.
const (
	signsIn  = "pwo"
	confirms = "pwc"
)

func (f *Federation) newTrip(kind string, t table.TenantID, to string) (trip, error) {
	id, err := ulid.New(ulid.Timestamp(f.Now()), f.Rand)
	if err != nil {
		return trip{}, fmt.Errorf("make an id: %w", err)
	}
	b := make([]byte, 32)
	if _, err := io.ReadFull(f.Rand, b); err != nil {
		return trip{}, fmt.Errorf("make a secret: %w", err)
	}
	if len(to) > 1000 { // a cookie has an end
		to = ""
	}
	return trip{kind, t, id.String(), base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b), to}, nil
}

// cookie is the trip as text: "<kind>_<tenant>_<id>_<secret>_<to in base64>".
func (t trip) cookie() secret.Text {
	return secret.New(strings.Join([]string{t.kind, string(t.tenant), t.id, t.secret, base64.URLEncoding.EncodeToString([]byte(t.to))}, "_"))
}

func parse(cookie secret.Text) (trip, bool) {
	parts := strings.SplitN(cookie.Reveal(), "_", 5)
	if len(parts) != 5 || parts[0] != signsIn && parts[0] != confirms || tenant.CheckID(table.TenantID(parts[1])) != nil || len(parts[3]) != 52 {
		return trip{}, false
	}
	if _, err := ulid.ParseStrict(parts[2]); err != nil {
		return trip{}, false
	}
	to, err := base64.URLEncoding.DecodeString(parts[4])
	return trip{parts[0], table.TenantID(parts[1]), parts[2], parts[3], string(to)}, err == nil
}

// derive makes a value of the trip for one use.
func (t trip) derive(use string) string {
	mac := hmac.New(sha256.New, []byte(t.secret))
	fmt.Fprintf(mac, "%s %s %s %s", use, t.kind, t.tenant, t.id)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// over tells whether the trip takes too long, or has not begun.
func (t trip) over(now time.Time) bool {
	began := ulid.Time(ulid.MustParse(t.id).Time())
	return now.Before(began.Add(-skew)) || !now.Before(began.Add(Life))
}

// Departure is somebody about to go to a provider.
type Departure struct {
	Cookie secret.Text // for the browser, and with it back
	URL    string
}

// Begin begins a sign-in at a tenant's provider, for a client at the network address from; to
// is kept for the return. A tenant that is not known is told from one that has no provider by
// nothing: both are NotSetUp. A provider that does not answer as it should is Failing; other
// errors are *problem.InvalidError and *problem.LimitError.
func (f *Federation) Begin(ctx context.Context, t table.TenantID, from, to string) (Departure, error) {
	if tenant.CheckID(t) != nil {
		return Departure{}, problem.Invalid("form", "organisation", "is not an organisation's id, such as acme; ask your administrator")
	}
	if err := f.People.CountStep(ctx, t, from); err != nil {
		return Departure{}, err
	}
	_, r, err := f.setUp(ctx, t)
	if err != nil {
		return Departure{}, err
	}
	return f.depart(ctx, r, signsIn, to)
}

// BeginConfirm sends somebody who has signed in at the provider there once more, to show that
// it is still them.
func (f *Federation) BeginConfirm(ctx context.Context, s person.Session, from string) (Departure, error) {
	if err := f.People.CountStep(ctx, s.Tenant, from); err != nil {
		return Departure{}, err
	}
	_, r, err := f.setUp(ctx, s.Tenant)
	if err != nil {
		return Departure{}, err
	}
	return f.depart(ctx, r, confirms, "", oauth2.SetAuthURLParam("prompt", "login"), oauth2.SetAuthURLParam("max_age", "0"))
}

func (f *Federation) depart(ctx context.Context, r record, kind, to string, options ...oauth2.AuthCodeOption) (Departure, error) {
	_, m, err := f.discover(ctx, r.Issuer)
	if err != nil {
		return Departure{}, not(Failing, err)
	}
	trip, err := f.newTrip(kind, r.tenant, to)
	if err != nil {
		return Departure{}, err
	}
	config := f.oauth(r.Provider, m, secret.Text{})
	options = append(options, oidc.Nonce(trip.derive("nonce")), oauth2.S256ChallengeOption(trip.derive("verifier")))
	return Departure{trip.cookie(), config.AuthCodeURL(trip.derive("state"), options...)}, nil
}

// setUp loads a tenant and its provider, if that lets people in.
func (f *Federation) setUp(ctx context.Context, t table.TenantID) (tenant.Core, record, error) {
	var (
		core tenant.Core
		r    record
		g    errgroup.Group
	)
	g.Go(func() (err error) { core, err = f.Tenants.Load(ctx, t); return err })
	g.Go(func() (err error) { r, err = f.load(ctx, t); return err })
	err := g.Wait()
	switch {
	case errors.Is(err, problem.ErrNotFound):
		return core, r, not(NotSetUp, nil)
	case err != nil:
		return core, r, err
	case !r.On || core.Tenant.Suspended || f.BaseURL == "":
		return core, r, not(NotSetUp, nil)
	}
	return core, r, nil
}

// Return is what somebody brings back from a provider, in the address of the page.
type Return struct {
	State  string
	Code   secret.Text
	Error  string // instead of a code (RFC 6749, section 4.1.2.1)
	Issuer string // RFC 9207; "" if the provider does not say
}

// Arrival is somebody who is let in.
type Arrival struct {
	Session person.Session
	Cookie  secret.Text // of the session
	To      string      // what Begin was given
	Kept    bool        // their roles stay, against the mapping: they are the last administrator
}

// Confirms tells whether a cookie is of somebody who went to confirm.
func Confirms(cookie secret.Text) bool { t, ok := parse(cookie); return ok && t.kind == confirms }

// Finish lets somebody in who is back from the provider, with the cookie of the departure.
// Who is not let in is *NotLetIn.
func (f *Federation) Finish(ctx context.Context, cookie secret.Text, back Return, device person.Device) (Arrival, error) {
	trip, core, r, err := f.arrive(ctx, signsIn, cookie, back, device.Client)
	if err != nil {
		return Arrival{}, err
	}
	a, err := f.finish(ctx, trip, core, r, back, device)
	return a, f.refused(ctx, core, door, "person.signedIn", "", trip, err)
}

func (f *Federation) finish(ctx context.Context, trip trip, core tenant.Core, r record, back Return, device person.Device) (Arrival, error) {
	id, err := f.who(ctx, trip, core, r, back)
	if err != nil {
		return Arrival{}, err
	}
	for range tries {
		p, with, err := f.owner(ctx, core, r, id)
		if err != nil {
			return Arrival{}, err
		}
		p, kept, err := f.roles(ctx, core, r, id, p)
		if err != nil {
			return Arrival{}, err
		}
		s, session, err := f.People.SignIn(ctx, core, p.ID, person.ByOIDC, device, with...)
		switch {
		case err == nil:
			return Arrival{s, session, trip.to, kept}, nil
		case errors.Is(err, problem.ErrForbidden):
			return Arrival{}, not(Disabled, nil)
		case !errors.Is(err, problem.ErrConflict) && !errors.Is(err, problem.ErrNotFound):
			return Arrival{}, err
		}
		// Somebody was linked, or deleted, meanwhile.
	}
	return Arrival{}, errBusy
}

// tries bounds how often something begins anew because something changed meanwhile.
const tries = 5

var errBusy = fmt.Errorf("%w: too many changes at the same time; try again", problem.ErrUnavailable)

// FinishConfirm makes the session Fresh if its person is back from the provider, which has
// made sure of them lately.
func (f *Federation) FinishConfirm(ctx context.Context, s person.Session, cookie secret.Text, back Return, from string) error {
	trip, core, r, err := f.arrive(ctx, confirms, cookie, back, from)
	if err != nil {
		return err
	}
	return f.refused(ctx, core, s.Actor(), "session.confirmed", person.Subject(s.PersonID), trip, f.confirm(ctx, trip, core, r, s, back))
}

func (f *Federation) confirm(ctx context.Context, trip trip, core tenant.Core, r record, s person.Session, back Return) error {
	if core.Tenant.ID != s.Tenant {
		return not(NotTheSame, nil)
	}
	id, err := f.who(ctx, trip, core, r, back)
	if err != nil {
		return err
	}
	mine, err := f.linked(ctx, s.Tenant, s.PersonID)
	if err != nil {
		return err
	}
	now := f.Now()
	switch {
	case mine.version == 0 || mine.hash != id.hash():
		return not(NotTheSame, nil)
	case id.authenticatedAt.Before(now.Add(-authenticatedWithin)) || id.authenticatedAt.After(now.Add(skew)):
		return not(NotLately, nil)
	}
	_, err = f.People.Confirm(ctx, s, person.ByOIDC)
	return err
}

// arrive checks that a return is that of the trip, and uses it up, before anything is asked of
// the provider.
func (f *Federation) arrive(ctx context.Context, kind string, cookie secret.Text, back Return, from string) (trip, tenant.Core, record, error) {
	trip, ok := parse(cookie)
	if !ok || trip.kind != kind || subtle.ConstantTimeCompare([]byte(trip.derive("state")), []byte(back.State)) != 1 || trip.over(f.Now()) {
		return trip, tenant.Core{}, record{}, not(OtherReturn, nil)
	}
	core, r, err := f.setUp(ctx, trip.tenant)
	if err != nil {
		return trip, core, r, err
	}
	used := []table.Op{table.Put(returned{trip.tenant, trip.id, f.Now().Add(2 * Life)}, table.Absent())}
	if err := f.People.CountStep(ctx, trip.tenant, from, used...); table.FailedIn(err, used) {
		return trip, core, r, not(OtherReturn, nil)
	} else if err != nil {
		return trip, core, r, err
	}
	return trip, core, r, nil
}

// who finds out who is back.
func (f *Federation) who(ctx context.Context, trip trip, core tenant.Core, r record, back Return) (identity, error) {
	if back.Issuer != "" && back.Issuer != r.Issuer {
		return identity{}, not(Failing, &Trouble{Code: "wrongIssuer", Detail: cut(back.Issuer)})
	}
	switch back.Error {
	case "":
	case "access_denied":
		return identity{}, not(Denied, nil)
	case "login_required", "interaction_required", "consent_required", "account_selection_required":
		return identity{}, not(NotSignedIn, nil)
	default:
		return identity{}, not(Failing, &Trouble{Code: "client", Detail: code(back.Error)})
	}
	if back.Code.Empty() || len(back.Code.Reveal()) > 4000 {
		return identity{}, not(Failing, &Trouble{Code: "code"})
	}
	given, err := r.open(core)
	if err != nil {
		return identity{}, err
	}
	id, err := f.identify(ctx, r, given, back.Code.Reveal(), trip.derive("verifier"), trip.derive("nonce"))
	if err != nil {
		return identity{}, not(Failing, err)
	}
	return id, nil
}

var codeForm = regexp.MustCompile(`^[a-z_]{1,60}$`)

// code is an error code of a provider's, if it is one.
func code(s string) string {
	if codeForm.MatchString(s) {
		return s
	}
	return ""
}

// owner returns whose account it is, and the ops that make it theirs, if it was nobody's.
func (f *Federation) owner(ctx context.Context, core tenant.Core, r record, id identity) (person.Person, []table.Op, error) {
	t := core.Tenant.ID
	a, err := f.account(ctx, t, id.hash())
	if err != nil {
		return person.Person{}, nil, err
	}
	if a.version != 0 {
		p, err := f.People.Get(ctx, t, a.person)
		mine, err2 := f.linked(ctx, t, a.person)
		switch {
		case err == nil && err2 == nil && mine.version != 0 && mine.hash == id.hash():
			return p, nil, nil
		case err2 != nil, err != nil && !errors.Is(err, problem.ErrNotFound):
			return p, nil, errors.Join(err, err2)
		}
		// The person is gone, or has got another account: it is nobody's.
	}
	if id.mail == "" {
		return person.Person{}, nil, not(MailNotVouched, nil)
	}
	p, err := f.People.ByMail(ctx, t, id.mail)
	if errors.Is(err, problem.ErrNotFound) {
		p, err = f.create(ctx, core, r, id)
	}
	if err != nil {
		return p, nil, err
	}
	mine, err := f.linked(ctx, t, p.ID)
	if err != nil {
		return p, nil, err
	}
	if mine.version != 0 && mine.issuer == id.issuer && mine.hash != id.hash() {
		return p, nil, not(OtherOwner, nil)
	}
	return p, []table.Op{
		table.Put(account{t, id.hash(), p.ID, a.version}, table.After(a.version)),
		table.Put(link{t, p.ID, id.issuer, id.hash(), mine.version}, table.After(mine.version)),
		f.Audit.Op(ctx, t, audit.Record{Actor: p.Actor(), Action: "person.accountLinked", Subject: person.Subject(p.ID), Outcome: audit.Done,
			Details: map[string]string{"issuer": id.issuer}}),
	}, nil
}

func (f *Federation) create(ctx context.Context, core tenant.Core, r record, id identity) (person.Person, error) {
	if !r.Create {
		return person.Person{}, not(NotKnown, nil)
	}
	roles := r.rolesOf(id.values)
	if len(roles) == 0 {
		return person.Person{}, not(NoRole, nil)
	}
	p := person.Person{Name: strings.TrimSpace(id.name), Mail: id.mail, Roles: roles}
	if p.Validate() != nil {
		p.Name = id.mail
	}
	if err := p.Validate(); err != nil {
		return p, not(MailNotVouched, err)
	}
	return f.People.Create(ctx, core, door, p)
}

// rolesOf are the roles that values of the claim give.
func (p Provider) rolesOf(values []string) (roles []tenant.Role) {
	for _, role := range tenant.PersonRoles() {
		if slices.ContainsFunc(p.Roles[role], func(v string) bool { return slices.Contains(values, v) }) {
			roles = append(roles, role)
		}
	}
	return roles
}

// roles gives a person the roles that the provider says. kept tells that they have others
// still, because they are the last administrator.
func (f *Federation) roles(ctx context.Context, core tenant.Core, r record, id identity, p person.Person) (_ person.Person, kept bool, err error) {
	if r.RoleClaim == "" {
		return p, false, nil
	}
	roles := r.rolesOf(id.values)
	switch {
	case p.Disabled:
		return p, false, not(Disabled, nil)
	case len(roles) == 0:
		return p, false, not(NoRole, nil)
	case slices.Equal(roles, p.Roles):
		return p, false, nil
	}
	changed, err := f.People.Update(ctx, core, door, p.ID, 0, func(p *person.Person) { p.Roles = roles })
	if !errors.Is(err, problem.ErrState) {
		return changed, false, err
	}
	err = f.Table.Write(ctx, f.Audit.Op(ctx, core.Tenant.ID, audit.Record{Actor: door, Action: "person.updated", Subject: person.Subject(p.ID),
		Outcome: audit.Refused, Reason: "lastAdministrator", Details: map[string]string{"changed": "roles"}}))
	return p, true, err
}

// refused records that somebody was not let in, and returns err.
func (f *Federation) refused(ctx context.Context, core tenant.Core, by audit.Actor, action, subject string, trip trip, err error) error {
	var why *NotLetIn
	if !errors.As(err, &why) {
		return err
	}
	details := map[string]string{"method": string(person.ByOIDC), "signIn": trip.id}
	var trouble *Trouble
	if errors.As(why.cause, &trouble) {
		details["trouble"] = strings.TrimSpace(trouble.Code + " " + trouble.Detail)
	}
	recorded := f.Table.Write(ctx, f.Audit.Op(ctx, core.Tenant.ID, audit.Record{Actor: by, Action: action, Subject: subject, Outcome: audit.Refused, Reason: why.Code, Details: details}))
	return errors.Join(err, recorded)
}

// hash names an account.
func (id identity) hash() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %s", len(id.issuer), id.issuer, id.subject))
	return hex.EncodeToString(sum[:])
}

// account is whose an account is.
type account struct {
	tenant  table.TenantID
	hash    string
	person  string
	version int64
}

type storedAccount struct {
	Person string `json:"person"`
}

// Validate implements table.Record.
func (a account) Validate() error { return nil }

// Item implements table.Record.
func (a account) Item() (table.Item, error) {
	data, err := json.Marshal(storedAccount{a.person})
	return table.Item{Key: table.AccountKey(a.tenant, a.hash), Data: data}, err
}

func (f *Federation) account(ctx context.Context, t table.TenantID, hash string) (account, error) {
	var s storedAccount
	version, err := f.get(ctx, table.AccountKey(t, hash), &s)
	return account{t, hash, s.Person, version}, err
}

// link is which account a person has. It decides where the account says otherwise.
type link struct {
	tenant               table.TenantID
	person, issuer, hash string
	version              int64
}

type storedLink struct {
	Issuer string `json:"issuer"`
	Hash   string `json:"hash"`
}

// Validate implements table.Record.
func (l link) Validate() error { return nil }

// Item implements table.Record.
func (l link) Item() (table.Item, error) {
	data, err := json.Marshal(storedLink{l.issuer, l.hash})
	return table.Item{Key: table.LinkedKey(l.tenant, l.person), Data: data}, err
}

func (f *Federation) linked(ctx context.Context, t table.TenantID, id string) (link, error) {
	var s storedLink
	version, err := f.get(ctx, table.LinkedKey(t, id), &s)
	return link{t, id, s.Issuer, s.Hash, version}, err
}

// get decodes an item and returns its version, 0 if there is none.
func (f *Federation) get(ctx context.Context, key table.Key, into any) (int64, error) {
	item, err := f.Table.Get(ctx, key)
	if errors.Is(err, problem.ErrNotFound) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("load account: %w", err)
	}
	return item.Version, item.Decode(into)
}

// returned is that a trip has come back.
type returned struct {
	tenant table.TenantID
	id     string
	until  time.Time
}

// Validate implements table.Record.
func (r returned) Validate() error { return nil }

// Item implements table.Record.
func (r returned) Item() (table.Item, error) {
	return table.Item{Key: table.ReturnedKey(r.tenant, r.id), ExpiresAt: r.until, Data: []byte("{}")}, nil
}
