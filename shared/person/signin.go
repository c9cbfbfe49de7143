package person

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

const (
	// MailLife is how long a mailed code or link is good for.
	MailLife = 10 * time.Minute
	// MinLinkLife and MaxLinkLife bound how long a link without a mail is.
	MinLinkLife = 10 * time.Minute
	MaxLinkLife = 24 * time.Hour

	codeDigits  = 8
	codeTries   = 5
	keepAttempt = 24 * time.Hour // after its end, so that a link can say that it was used
	sendFor     = 10 * time.Second
)

// door is the actor of what is done for somebody who has not signed in yet.
var door = audit.Actor{Kind: audit.System, ID: "sign-in"}

// The ways in which a sign-in is refused, besides *CodeError. Each is a
// problem.ErrUnauthenticated.
var (
	ErrUnknownSignIn = fmt.Errorf("%w: this sign-in is not known here, or no longer possible; begin a new one", problem.ErrUnauthenticated)
	ErrUsed          = fmt.Errorf("%w: this link or code was used already; begin a new sign-in", problem.ErrUnauthenticated)
	ErrTooLate       = fmt.Errorf("%w: this link or code is too old; begin a new sign-in", problem.ErrUnauthenticated)
	ErrTriesUsedUp   = fmt.Errorf("%w: too many wrong codes were entered; begin a new sign-in", problem.ErrUnauthenticated)
)

// CodeError says that a code is not the one that was mailed. It is a
// problem.ErrUnauthenticated.
type CodeError struct{ TriesLeft int }

// Error implements error.
func (e *CodeError) Error() string {
	return fmt.Sprintf("the code is not the one that was mailed; tries left: %d", e.TriesLeft)
}

// Unwrap makes it a problem.ErrUnauthenticated.
func (*CodeError) Unwrap() error { return problem.ErrUnauthenticated }

// Attempt is a sign-in that has begun.
type Attempt struct {
	ID    string
	Token secret.Text // for a cookie of the browser: a code counts only together with it
	Until time.Time
}

// attempt is a sign-in that has begun, as kept. One that was begun with an address that is
// not known is of nobody, and is like others in all else.
type attempt struct {
	tenant    table.TenantID
	id        string
	person    string // "" is nobody, or a user
	user      string // a Holder's; "" is nobody, or a person
	mail      string // the user's when it began
	era       int    // the person's when it began
	method    Method
	code      string // keyed fingerprint; "" if there is none
	token     []byte // hash; nil if there is none
	link      []byte // hash
	triesLeft int    // of codes, and of refusals that are recorded
	until     time.Time
	usedAt    time.Time
	stored    int64
}

type storedAttempt struct {
	Person    string    `json:"person,omitempty"`
	User      string    `json:"user,omitempty"`
	Mail      string    `json:"mail,omitempty"`
	Era       int       `json:"era,omitempty"`
	Method    Method    `json:"method"`
	Code      string    `json:"code,omitempty"`
	Token     []byte    `json:"token,omitempty"`
	Link      []byte    `json:"link"`
	TriesLeft int       `json:"triesLeft"`
	Until     time.Time `json:"until"`
	UsedAt    time.Time `json:"usedAt,omitzero"`
}

// Validate implements table.Record.
func (a attempt) Validate() error {
	if a.id == "" || len(a.link) == 0 || a.until.IsZero() {
		return errors.New("person: a sign-in without id, link or end")
	}
	return nil
}

// Item implements table.Record.
func (a attempt) Item() (table.Item, error) {
	data, err := json.Marshal(storedAttempt{a.person, a.user, a.mail, a.era, a.method, a.code, a.token, a.link, a.triesLeft, a.until, a.usedAt})
	return table.Item{Key: table.SignInKey(a.tenant, a.id), ExpiresAt: a.until.Add(keepAttempt), Data: data}, err
}

// check returns why the attempt lets nobody in any more.
func (a attempt) check(now time.Time) (reason string, err error) {
	switch {
	case !a.usedAt.IsZero():
		return "used", ErrUsed
	case a.triesLeft <= 0:
		return "triesUsedUp", ErrTriesUsedUp
	case !now.Before(a.until):
		return "expired", ErrTooLate
	}
	return "", nil
}

// LinkURL is the address of the page that a link leads to.
func (ps *People) LinkURL(link secret.Text) secret.Text {
	return secret.New(strings.TrimSuffix(ps.BaseURL, "/") + "/console/sign-in/link?t=" + link.Reveal())
}

func (ps *People) newCode() (secret.Text, error) {
	n, err := rand.Int(ps.Rand, big.NewInt(100_000_000))
	if err != nil {
		return secret.Text{}, fmt.Errorf("make a code: %w", err)
	}
	return secret.New(fmt.Sprintf("%0*d", codeDigits, n)), nil
}

// fingerprint is what is kept of a code. A tenant that is not known has no keys, and nothing
// matches what is kept there.
func fingerprint(core tenant.Core, id string, code secret.Text) (string, error) {
	if core.Keys == nil {
		return "", nil
	}
	return core.Keys.Fingerprint("sign-in code", fmt.Appendf(nil, "%s %s", id, code.Reveal()))
}

// readCode takes a code as people type it: digits, with whatever between them.
func readCode(code secret.Text) (secret.Text, error) {
	digits := strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, code.Reveal())
	if len(digits) != codeDigits {
		return secret.Text{}, problem.Invalid("form", "code", "has %d digits; the code in the mail has %d", len(digits), codeDigits)
	}
	return secret.New(digits), nil
}

// post is how a tenant mails its people.
type post struct {
	configuration mail.Configuration
	template      mail.Template
}

// in returns the template in a language, "" for the tenant's, unless it was customised.
func (p post) in(language string) mail.Template {
	if language == "" || p.template.Version != 0 {
		return p.template
	}
	return mail.Predefined(p.template.Kind, language)
}

// post finds what to mail with: the configuration that expiry mails have, or else the first
// one. It makes the same calls whether there is one or not, or a tenant; what is missing is
// problem.ErrNotFound.
func (ps *People) post(ctx context.Context, core tenant.Core, configurations []mail.Configuration, template string) (post, error) {
	id := core.Tenant.Settings.ExpiryMail.Messaging
	if id == "" && len(configurations) > 0 {
		id = configurations[0].ID
	}
	if id == "" {
		id = nobody
	}
	store := mail.Store{Table: ps.Table, Tenant: core.Tenant.ID, Keys: core.Keys}
	var (
		p       post
		g       errgroup.Group
		missing error
	)
	g.Go(func() (err error) {
		p.configuration, err = store.WithPassword(ctx, id)
		if errors.Is(err, problem.ErrNotFound) {
			missing, err = err, nil
		}
		return err
	})
	g.Go(func() (err error) {
		p.template, err = store.Template(ctx, template, core.Tenant.Settings.Language)
		return err
	})
	if err := g.Wait(); err != nil {
		return post{}, err
	}
	return p, missing
}

// nobody is an id that nothing has, for calls that are made for their own sake.
const nobody = "nobody"

// Begin begins a sign-in by mail: a link and a code go to the address, if it is a person's who
// can sign in, or else a Holder's. The answer is the same, and is made by the same calls to the table, whether the
// tenant and the address are known or not. from is the client's network address. Errors are
// *problem.InvalidError for what cannot be an address or a tenant's id, and
// *problem.LimitError.
func (ps *People) Begin(ctx context.Context, t table.TenantID, address, from string) (Attempt, error) {
	var vs problem.Violations
	if err := tenant.CheckID(t); err != nil {
		vs.Add("form", "organisation", "is not an organisation's id, such as acme; ask your administrator")
	}
	parsed, err := mail.ParseAddress(address)
	if err != nil {
		vs.Add("address", "mail", "%v", err)
	}
	if err := vs.Err(); err != nil {
		return Attempt{}, err
	}
	if ps.Pad != nil {
		defer ps.Pad()(ctx)
	}
	return ps.begin(ctx, t, parsed.Address, clientOf(from))
}

func (ps *People) begin(ctx context.Context, t table.TenantID, address, client string) (Attempt, error) {
	limits := budgets(t, address, client)
	var (
		core           tenant.Core
		id             string
		holder         Holder
		configurations []mail.Configuration
		counts         []table.Op
		reason         string // why nobody is mailed
		first, second  errgroup.Group
	)
	missing := func(err error, why string) error {
		if errors.Is(err, problem.ErrNotFound) {
			if reason == "" {
				reason = why
			}
			return nil
		}
		return err
	}
	var coreErr, idErr error
	first.Go(func() (err error) { counts, err = ps.reserve(ctx, limits); return err })
	first.Go(func() (err error) {
		configurations, err = mail.Store{Table: ps.Table, Tenant: t}.Configurations(ctx)
		return err
	})
	first.Go(func() error { core, coreErr = ps.Tenants.Load(ctx, t); return nil })
	first.Go(func() error { id, idErr = ps.idByMail(ctx, t, address); return nil })
	first.Go(func() (err error) { holder, err = ps.holder(ctx, t, address); return err })
	if err := errors.Join(first.Wait(), missing(coreErr, "unknownTenant"), missing(idErr, "unknownAddress")); err != nil {
		return Attempt{}, err
	}
	if core.Tenant.Suspended {
		reason = "suspended"
	}
	if id == "" {
		id = nobody
	}
	core.Tenant.ID = t

	var (
		p                  Person
		personErr, postErr error
		letter             post
	)
	second.Go(func() error { p, personErr = ps.Get(ctx, t, id); return nil })
	second.Go(func() error {
		letter, postErr = ps.post(ctx, core, configurations, mail.SignInID)
		return nil
	})
	_ = second.Wait()
	if err := errors.Join(missing(personErr, "unknownAddress"), missing(postErr, "noMessaging")); err != nil {
		return Attempt{}, err
	}
	name, language, to := p.Name, p.Language, p.Mail
	if reason == "unknownAddress" && holder.UserID != "" {
		name, language, to, reason = holder.Name, "", holder.Mail, ""
		if postErr != nil {
			reason = "noMessaging"
		}
	} else {
		holder = Holder{}
	}
	switch {
	case reason == "" && p.Disabled:
		reason = "disabled"
	case reason == "" && ps.BaseURL == "":
		reason = "noBaseURL"
	}

	// What is made and written is made and written for nobody too.
	now := ps.Now().UTC().Truncate(time.Second)
	a := attempt{tenant: t, method: ByMail, triesLeft: codeTries, until: now.Add(MailLife)}
	if reason == "" {
		a.person, a.era, a.user, a.mail = p.ID, p.era, holder.UserID, holder.Mail
	}
	var err error
	if a.id, err = ps.newID(); err != nil {
		return Attempt{}, err
	}
	begun := Attempt{ID: a.id, Until: a.until}
	if begun.Token, a.token, err = newToken(ps.Rand, attemptKind, t, a.id); err != nil {
		return Attempt{}, err
	}
	link, hash, err := newToken(ps.Rand, linkKind, t, a.id)
	if err != nil {
		return Attempt{}, err
	}
	a.link = hash
	code, err := ps.newCode()
	if err != nil {
		return Attempt{}, err
	}
	if a.code, err = fingerprint(core, a.id, code); err != nil {
		return Attempt{}, err
	}
	record := audit.Record{Actor: door, Action: "person.signInBegun", Outcome: audit.Done, Details: map[string]string{"signIn": a.id, "client": client}}
	if owner := a.owner(); owner != "" {
		record.Subject = subjectOf(owner)
	} else if p.ID != "" {
		record.Subject = Subject(p.ID)
	}
	if reason != "" {
		record.Outcome, record.Reason = audit.Refused, reason
	}
	err = ps.counted(ctx, limits, counts, table.Put(a, table.Absent()), ps.Audit.Op(ctx, home(core), record))
	if err != nil {
		return Attempt{}, fmt.Errorf("begin sign-in: %w", err)
	}
	switch reason {
	case "":
		err := ps.send(ctx, letter, language, "sign-in."+a.id, to, mail.SignInValues{
			Link: ps.LinkURL(link), Code: code, Minutes: int(MailLife / time.Minute), Name: name, CustomerName: core.Tenant.Settings.DisplayName})
		if err != nil {
			ps.Log.WarnContext(ctx, "sign-in not mailed", "tenant", t, "person", a.owner(), "cause", err)
		}
	case "noMessaging", "noBaseURL":
		ps.Log.WarnContext(ctx, "sign-in not mailed", "tenant", t, "person", a.owner(), "reason", reason)
	}
	return begun, nil
}

// home is the tenant whose audit tells of a sign-in: the installation, if it is of a tenant
// that there is none of.
func home(core tenant.Core) table.TenantID {
	if core.Tenant.Version == 0 {
		return table.Platform
	}
	return core.Tenant.ID
}

// send sends a mail to a person. Nobody learns of an error but the log and who is signed in.
func (ps *People) send(ctx context.Context, letter post, language, id, to string, values mail.Values) error {
	sender, err := ps.Senders.For(letter.configuration)
	if err != nil {
		return err
	}
	m, err := mail.Render(letter.in(language), values)
	if err != nil {
		return err
	}
	m.ID, m.To = id, to
	sending, cancel := context.WithTimeout(ctx, sendFor)
	defer cancel()
	if r := sender.Send(sending, []mail.Message{m})[0]; r.Outcome != mail.Accepted && r.Outcome != mail.Unknown {
		return fmt.Errorf("mail: %s: %s", r.Code, r.Reason)
	}
	return nil
}

// Link makes a link by which a person signs in, for whoever hands it to them; the first
// administrator has no other way. It is good for valid, MinLinkLife to MaxLinkLife, until the
// time returned.
func (ps *People) Link(ctx context.Context, core tenant.Core, by audit.Actor, id string, valid time.Duration) (secret.Text, time.Time, error) {
	if valid < MinLinkLife || valid > MaxLinkLife {
		return secret.Text{}, time.Time{}, problem.Invalid("range", "validMinutes", "must be %d to %d", int(MinLinkLife/time.Minute), int(MaxLinkLife/time.Minute))
	}
	t := core.Tenant.ID
	p, err := ps.Get(ctx, t, id)
	if err != nil {
		return secret.Text{}, time.Time{}, err
	}
	if p.Disabled {
		return secret.Text{}, time.Time{}, fmt.Errorf("%w: the person is disabled", problem.ErrState)
	}
	a := attempt{tenant: t, person: p.ID, era: p.era, method: ByLinkGiven, triesLeft: codeTries, until: ps.Now().Add(valid).UTC().Truncate(time.Second)}
	if a.id, err = ps.newID(); err != nil {
		return secret.Text{}, time.Time{}, err
	}
	link, hash, err := newToken(ps.Rand, linkKind, t, a.id)
	if err != nil {
		return secret.Text{}, time.Time{}, err
	}
	a.link = hash
	err = ps.Table.Write(ctx, table.Put(a, table.Absent()),
		ps.Audit.Op(ctx, t, audit.Record{Actor: by, Action: "person.linkMade", Subject: Subject(id), Outcome: audit.Done,
			Details: map[string]string{"signIn": a.id, "until": a.until.Format(time.RFC3339)}}))
	if err != nil {
		return secret.Text{}, time.Time{}, fmt.Errorf("make a sign-in link: %w", err)
	}
	return link, a.until, nil
}

// Peek tells whether a link is still good, without using it, and whose tenant's it is. Errors
// are those of ByLink.
func (ps *People) Peek(ctx context.Context, link secret.Text) (tenant.Core, error) {
	given, ok := parse(linkKind, 1, link)
	if !ok {
		return tenant.Core{}, ErrUnknownSignIn
	}
	a, core, err := ps.attempt(ctx, given)
	if err != nil {
		return tenant.Core{}, err
	}
	if !given.matches(a.link) || core.Tenant.Version == 0 || core.Tenant.Suspended {
		return tenant.Core{}, ErrUnknownSignIn
	}
	if _, err := a.check(ps.Now()); err != nil {
		return tenant.Core{}, err
	}
	return core, nil
}

// ByCode signs in by the code that was mailed, in the browser that has the attempt's token. A
// wrong code costs a try (*CodeError), and the last one the sign-in. Whether a code is right is
// told only once that is stored: guesses made at the same time get no more answers than there
// are tries. Other refusals are the errors above.
func (ps *People) ByCode(ctx context.Context, attempt, code secret.Text, device Device) (Session, secret.Text, error) {
	given, ok := parse(attemptKind, 1, attempt)
	if !ok {
		return Session{}, secret.Text{}, ErrUnknownSignIn
	}
	code, err := readCode(code)
	if err != nil {
		return Session{}, secret.Text{}, err
	}
	return ps.use(ctx, given, &code, device)
}

// ByLink signs in by a link, in any browser. It works once; where there is a code too, that
// ends with it.
func (ps *People) ByLink(ctx context.Context, link secret.Text, device Device) (Session, secret.Text, error) {
	given, ok := parse(linkKind, 1, link)
	if !ok {
		return Session{}, secret.Text{}, ErrUnknownSignIn
	}
	return ps.use(ctx, given, nil, device)
}

// attempt loads what a token names, and the tenant at the same time; one that is not known is
// without Version.
func (ps *People) attempt(ctx context.Context, given token) (attempt, tenant.Core, error) {
	var (
		a    attempt
		core tenant.Core
		g    errgroup.Group
	)
	g.Go(func() (err error) { a, err = ps.readAttempt(ctx, given); return err })
	g.Go(func() (err error) {
		if core, err = ps.Tenants.Load(ctx, given.tenant); errors.Is(err, problem.ErrNotFound) {
			return nil
		}
		return err
	})
	err := g.Wait()
	return a, core, err
}

func (ps *People) readAttempt(ctx context.Context, given token) (attempt, error) {
	item, err := ps.Table.Get(ctx, table.SignInKey(given.tenant, given.ids[0]))
	if errors.Is(err, problem.ErrNotFound) {
		return attempt{}, ErrUnknownSignIn
	} else if err != nil {
		return attempt{}, fmt.Errorf("load sign-in: %w", err)
	}
	var s storedAttempt
	err = item.Decode(&s)
	return attempt{given.tenant, given.ids[0], s.Person, s.User, s.Mail, s.Era, s.Method, s.Code, s.Token, s.Link, s.TriesLeft, s.Until, s.UsedAt, item.Version}, err
}

// errGone: the person may no longer sign in by this attempt.
var errGone = errors.New("person: roles, address or access have changed since the sign-in began")

// use signs in by an attempt: by its link or, with a code, by its token and that.
func (ps *People) use(ctx context.Context, given token, code *secret.Text, device Device) (Session, secret.Text, error) {
	a, core, err := ps.attempt(ctx, given)
	for range tries {
		if err != nil {
			return Session{}, secret.Text{}, err
		}
		kept := a.link
		if code != nil {
			kept = a.token
		}
		if !given.matches(kept) {
			return Session{}, secret.Text{}, ErrUnknownSignIn
		}
		reason, verdict := a.check(ps.Now())
		if verdict == nil && code != nil {
			print, err := fingerprint(core, a.id, *code)
			if err != nil {
				return Session{}, secret.Text{}, err
			}
			if a.owner() == "" || a.code == "" || subtle.ConstantTimeCompare([]byte(print), []byte(a.code)) != 1 {
				reason, verdict = "wrongCode", &CodeError{a.triesLeft - 1}
			}
		}
		if verdict == nil {
			used := a
			used.usedAt, used.code = ps.Now().UTC().Truncate(time.Second), ""
			with := []table.Op{table.Put(used, table.IfVersion(a.stored))}
			var s Session
			var cookie secret.Text
			if a.user != "" {
				s, cookie, err = ps.signInHolder(ctx, core, a, device, with)
			} else {
				s, cookie, err = ps.signIn(ctx, core, a.person, a.method, device, func(p Person) error {
					if p.era != a.era {
						return errGone
					}
					return nil
				}, with)
			}
			switch {
			case err == nil:
				return s, cookie, nil
			case table.FailedIn(err, with):
				a, err = ps.readAttempt(ctx, given)
				continue
			case errors.Is(err, errGone), errors.Is(err, problem.ErrNotFound), errors.Is(err, problem.ErrForbidden):
				reason, verdict = "gone", ErrUnknownSignIn
			default:
				return Session{}, secret.Text{}, err
			}
		}
		if err = ps.refuse(ctx, core, a, reason, device); err == nil {
			return Session{}, secret.Text{}, verdict
		} else if errors.Is(err, problem.ErrConflict) { // it was tried elsewhere meanwhile
			a, err = ps.readAttempt(ctx, given)
		}
	}
	return Session{}, secret.Text{}, errBusy
}

// refuse records that a sign-in was refused, which costs a try; without tries no more is
// recorded.
func (ps *People) refuse(ctx context.Context, core tenant.Core, a attempt, reason string, device Device) error {
	if a.triesLeft <= 0 {
		return nil
	}
	a.triesLeft--
	record := audit.Record{Actor: door, Action: "person.signedIn", Outcome: audit.Refused, Reason: reason,
		Details: map[string]string{"signIn": a.id, "triesLeft": strconv.Itoa(a.triesLeft), "client": device.clean().Client}}
	if owner := a.owner(); owner != "" {
		record.Subject = subjectOf(owner)
	}
	err := ps.Table.Write(ctx, table.Put(a, table.IfVersion(a.stored)), ps.Audit.Op(ctx, home(core), record))
	if err != nil {
		return fmt.Errorf("refuse sign-in: %w", err)
	}
	return nil
}
