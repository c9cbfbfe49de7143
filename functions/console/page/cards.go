package page

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

func (c *Console) cardRoutes() []route {
	const one = Root + "/cards/{card}"
	return []route{
		{pattern: "GET " + Root + "/cards", action: tenant.ReadCredentials, do: (*view).listCards},
		{pattern: "GET " + Root + "/cards/new", action: tenant.WriteCredentials, do: (*view).newCard},
		{pattern: "POST " + Root + "/cards/new", action: tenant.WriteCredentials, do: (*view).registerCard},
		{pattern: "GET " + one, action: tenant.ReadCredentials, do: (*view).showCard},
		{pattern: "GET " + one + "/history", action: tenant.ReadCredentials, do: (*view).cardHistory},
		{pattern: "GET " + one + "/unblocks", action: tenant.ListUnblocks, do: (*view).cardUnblocks},
		{pattern: "GET " + one + "/answers", action: tenant.AnswerOffline, do: (*view).cardAnswers},
		{pattern: "GET " + one + "/edit", action: tenant.WriteCredentials, do: (*view).editCard},
		{pattern: "POST " + one + "/edit", action: tenant.WriteCredentials, do: (*view).saveCard},
		{pattern: "GET " + one + "/state", action: tenant.WriteCredentials, do: (*view).moveCardPage},
		{pattern: "POST " + one + "/state", action: tenant.WriteCredentials, do: (*view).moveCard},
		{pattern: "GET " + one + "/pin-changed", action: tenant.WriteCredentials, do: (*view).pinChangedPage},
		{pattern: "POST " + one + "/pin-changed", action: tenant.WriteCredentials, do: (*view).tellPINChanged},
		{pattern: "GET " + one + "/secret", action: tenant.WriteCredentials, do: (*view).cardSecretPage},
		{pattern: "POST " + one + "/secret", action: tenant.WriteCredentials, do: (*view).saveCardSecret},
		{pattern: "GET " + one + "/delete", action: tenant.WriteCredentials, do: (*view).deleteCardPage},
		{pattern: "POST " + one + "/delete", action: tenant.WriteCredentials, do: (*view).deleteCard},
	}
}

// cardFilter is what the list of cards is asked for, as it stands in the form.
type cardFilter struct {
	Search, Template, State, Holder string
	Expiry                          string // "expired", "within" or "withoutFlag"; "" for any
	Days                            string // of within
	Disclosed                       bool
}

// Any tells whether anything is asked for.
func (f cardFilter) Any() bool { return f != cardFilter{} && f != cardFilter{Days: f.Days} }

// maxWithin is the most days that PINs to expire are asked for by.
const maxWithin = 3650

// cardFilter reads what is asked for. Holder is a username.
func (v *view) cardFilter() (f cardFilter, find credential.Filter, _ error) {
	f = cardFilter{v.value("search"), v.value("template"), v.value("state"), v.value("holder"), v.value("expiry"), v.value("days"), v.value("pukDisclosed") != ""}
	find = credential.Filter{Template: f.Template, State: credential.State(f.State), Search: f.Search, PUKDisclosed: f.Disclosed}
	var vs problem.Violations
	if len(f.Search) > 400 {
		vs.Add("tooLong", "search", "is too long: no label or serial starts so")
	}
	switch f.Expiry {
	case "expired":
		find.Expired = true
	case "withoutFlag":
		find.WithoutFlag = true
	case "within":
		days, err := strconv.Atoi(f.Days)
		if err != nil || days < 1 || days > maxWithin {
			vs.Add("range", "days", "must be 1 to %d", maxWithin)
		}
		find.ExpiringBefore = v.Now().AddDate(0, 0, days)
	}
	if f.Holder != "" {
		if err := vs.Merge(v.holder(f.Holder, &find.Holder)); err != nil {
			return f, find, err
		}
	}
	return f, find, vs.Err()
}

// holder finds the user of a username.
func (v *view) holder(username string, id *string) error {
	u, err := v.Users.ByUsername(v.ctx(), v.tenant(), username)
	if errors.Is(err, problem.ErrNotFound) {
		return problem.Invalid("unknown", "holder", "is not the username of a user")
	}
	*id = u.ID
	return err
}

// cardRow is a card of a list.
type cardRow struct {
	credential.Credential
	TemplateName string
	Holds        user.User // the zero User for nobody, or somebody who is gone
	PINExpired   bool
}

type cardList struct {
	Filter    cardFilter
	Templates []Option
	Cards     List[cardRow]
}

// cardsOnPage is short, for each row has a holder to be read.
const cardsOnPage = 25

func (v *view) listCards() error {
	filter, find, wrong := v.cardFilter()
	templates, err := v.Credentials.Templates(v.ctx(), v.tenant())
	if err != nil {
		return err
	}
	d := cardList{Filter: filter, Templates: []Option{{"", v.words.Say("cards.anyTemplate")}}}
	names := make(map[string]string, len(templates))
	for _, t := range templates {
		names[t.ID] = t.Name
		d.Templates = append(d.Templates, Option{t.ID, t.Name})
	}
	if wrong != nil {
		return v.refused(wrong, "cards", d)
	}
	from, err := v.place()
	if err != nil {
		return err
	}
	more := func(beyond string, limit int) ([]cardRow, string, error) {
		all, next, err := v.Credentials.Find(v.ctx(), v.tenant(), find, beyond, limit)
		if err != nil {
			return nil, "", err
		}
		rows, err := v.cardRows(all, names)
		return rows, next, err
	}
	if v.value("format") == "csv" {
		rows := rowsOf(from, func(beyond string) ([]cardRow, string, error) { return more(beyond, 200) })
		return csvFile(v, "cards", []string{"credential", "cardId", "family", "label", "serial", "template", "state", "holder", "lastPinChangeAt", "lastPinChangeHow", "pinExpiresAt", "pinExpirySetBy"}, rows, func(r cardRow) []string {
			return []string{r.ID, r.CardID, r.Family, r.Label, r.Serial, r.TemplateName, string(r.State), r.Holds.Profile.Username,
				csvTime(r.LastPINChange.At), string(r.LastPINChange.How), csvTime(r.PINExpiresAt), string(r.Flagged.How)}
		})
	}
	rows, next, err := more(from, cardsOnPage)
	if err != nil {
		return v.refused(err, "cards", d)
	}
	d.Cards = list(v, rows, next)
	return v.show("cards", d)
}

// cardRows reads who holds the cards, each person once.
func (v *view) cardRows(all []credential.Credential, templates map[string]string) ([]cardRow, error) {
	rows := make([]cardRow, len(all))
	holders := make(map[string]*user.User)
	for i, c := range all {
		rows[i] = cardRow{c, templates[c.Template], user.User{}, c.Expired(v.Now())}
		if c.Holder != "" && v.may(tenant.ReadUser) {
			holders[c.Holder] = &user.User{}
		}
	}
	g, ctx := errgroup.WithContext(v.ctx())
	for id, to := range holders {
		g.Go(func() (err error) {
			*to, err = v.holderOf(ctx, id)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, c := range all {
		if u := holders[c.Holder]; u != nil {
			rows[i].Holds = *u
		}
	}
	return rows, nil
}

// holderOf returns who holds a card: the zero User if it is nobody's, or theirs who is gone.
func (v *view) holderOf(ctx context.Context, id string) (user.User, error) {
	if id == "" {
		return user.User{}, nil
	}
	u, err := v.Users.Get(ctx, v.tenant(), id)
	if errors.Is(err, problem.ErrNotFound) {
		return user.User{}, nil
	}
	return u, err
}

// cardPage is what is to be seen of a card.
type cardPage struct {
	Card     credential.Credential
	Template credential.Template
	Holder   user.User   // the zero User for nobody, or somebody who is gone
	By       audit.Actor // who has brought about the last PIN change; the zero Actor if that is not known
	Told     bool        // By has told of it
	Moves    []credential.Move
	History  []audit.Record
	Unblocks []unblock.Operation
	Answers  []unblock.Answer
	MoreOf   map[string]bool // which of these there are more of
	Expired  bool            // its PIN has
	Support  bool            // the support functions are on
}

// Life is the picture of the card's state: what it may go through.
func (cardPage) Life() []credential.State { return credential.States() }

// HasPUK tells whether the card's PIN is reset by a PUK.
func (p cardPage) HasPUK() bool { return p.Template.Custody() == credential.PUKRotated }

// Import is the id of the import that has brought the card; "" for none.
func (p cardPage) Import() string {
	id, _, _ := strings.Cut(p.Card.Import, "/")
	return id
}

// ofCard is how many rows of each of its tables a card's page has.
const ofCard = 10

func (v *view) card() (credential.Credential, error) {
	return v.Credentials.Get(v.ctx(), v.tenant(), v.r.PathValue("card"))
}

func (v *view) showCard() error {
	c, err := v.card()
	if err != nil {
		return err
	}
	d := cardPage{Card: c, MoreOf: map[string]bool{}, Expired: c.Expired(v.Now()), Support: v.core.Tenant.Settings.SupportFunctions}
	var moreHistory, moreUnblocks, moreAnswers bool
	g, ctx := errgroup.WithContext(v.ctx())
	g.Go(func() (err error) {
		d.Template, err = v.Credentials.Template(ctx, v.tenant(), c.Template)
		return err
	})
	g.Go(func() (err error) {
		d.History, moreHistory, err = audit.Of(ctx, v.Table, v.tenant(), credential.Subject(c.ID), "", ofCard)
		return err
	})
	if c.Holder != "" && v.may(tenant.ReadUser) {
		g.Go(func() (err error) {
			d.Holder, err = v.holderOf(ctx, c.Holder)
			return err
		})
	}
	if v.may(tenant.ListUnblocks) {
		g.Go(func() (err error) {
			var next string
			d.Unblocks, next, err = v.Unblocks.List(ctx, v.tenant(), c.ID, "", ofCard)
			moreUnblocks = next != ""
			return err
		})
	}
	if v.may(tenant.AnswerOffline) {
		g.Go(func() (err error) {
			var next string
			d.Answers, next, err = v.Unblocks.Answers(ctx, v.tenant(), c.ID, "", ofCard)
			moreAnswers = next != ""
			return err
		})
	}
	if c.LastPINChange.Operation != "" {
		g.Go(func() (err error) {
			d.By, err = v.broughtBy(ctx, c.LastPINChange)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	d.MoreOf["history"], d.MoreOf["unblocks"], d.MoreOf["answers"] = moreHistory, moreUnblocks, moreAnswers
	if c.LastPINChange.How == credential.ChangedByHolder {
		i := slices.IndexFunc(d.History, func(r audit.Record) bool { return r.Action == credential.PINChangedAction })
		if d.Told = i >= 0; d.Told {
			d.By = d.History[i].Actor
		}
	}
	if v.may(tenant.WriteCredentials) {
		d.Moves = credential.Moves(c.State, v.session.Roles)
	}
	return v.show("card", d)
}

// broughtBy returns who asked for the unblock, or the answer, that has set a PIN.
func (v *view) broughtBy(ctx context.Context, p credential.PINChange) (audit.Actor, error) {
	var by audit.Actor
	var err error
	if p.How == credential.ResetOffline {
		var a unblock.Answer
		a, err = v.Unblocks.Answer(ctx, v.tenant(), p.Operation)
		by = a.By
	} else {
		var op unblock.Operation
		op, err = v.Unblocks.Get(ctx, v.tenant(), p.Operation)
		by = op.By
	}
	if errors.Is(err, problem.ErrNotFound) { // it is older than such are kept
		return audit.Actor{}, nil
	}
	return by, err
}

// cardRecords is a list of what was done with a card.
type cardRecords struct {
	Card     credential.Credential
	History  List[audit.Record]
	Unblocks List[unblock.Operation]
	Answers  List[unblock.Answer]
}

// recordsOf shows a page of such a list, or its file.
func recordsOf[T any](v *view, name string, to *List[T], d *cardRecords, header []string, cells func(T) []string, more func(beyond string, limit int) ([]T, string, error)) error {
	c, err := v.card()
	if err != nil {
		return err
	}
	from, err := v.place()
	if err != nil {
		return err
	}
	if v.value("format") == "csv" {
		var rows iter.Seq2[T, error] = rowsOf(from, func(beyond string) ([]T, string, error) { return more(beyond, 200) })
		return csvFile(v, "card-"+name, header, rows, cells)
	}
	all, next, err := more(from, pageSize)
	if err != nil {
		return err
	}
	d.Card, *to = c, list(v, all, next)
	return v.show("card-"+name, *d)
}

func (v *view) cardHistory() error {
	var d cardRecords
	return recordsOf(v, "history", &d.History, &d, []string{"at", "action", "outcome", "reason", "actorKind", "actor", "actorName", "details"}, func(r audit.Record) []string {
		return []string{csvTime(r.At), r.Action, string(r.Outcome), r.Reason, string(r.Actor.Kind), r.Actor.ID, r.Actor.Name, details(r.Details)}
	}, func(beyond string, limit int) ([]audit.Record, string, error) {
		records, more, err := audit.Of(v.ctx(), v.Table, v.tenant(), credential.Subject(v.r.PathValue("card")), beyond, limit)
		next := ""
		if more {
			next = records[len(records)-1].ID
		}
		return records, next, err
	})
}

func (v *view) cardUnblocks() error {
	var d cardRecords
	return recordsOf(v, "unblocks", &d.Unblocks, &d, []string{"id", "createdAt", "kind", "channel", "state", "reason", "bridge", "actor", "actorName"}, func(op unblock.Operation) []string {
		return []string{op.ID, csvTime(op.CreatedAt), string(op.Kind), string(op.Channel), string(op.State), op.Reason, op.Bridge, op.By.ID, op.By.Name}
	}, func(beyond string, limit int) ([]unblock.Operation, string, error) {
		return v.Unblocks.List(v.ctx(), v.tenant(), v.r.PathValue("card"), beyond, limit)
	})
}

func (v *view) cardAnswers() error {
	var d cardRecords
	return recordsOf(v, "answers", &d.Answers, &d, []string{"id", "createdAt", "givenAt", "channel", "state", "bridge", "actor", "actorName", "approvedBy"}, func(a unblock.Answer) []string {
		return []string{a.ID, csvTime(a.CreatedAt), csvTime(a.GivenAt), string(a.Channel), string(a.State), a.Bridge, a.By.ID, a.By.Name, a.Approved.Name}
	}, func(beyond string, limit int) ([]unblock.Answer, string, error) {
		return v.Unblocks.Answers(v.ctx(), v.tenant(), v.r.PathValue("card"), beyond, limit)
	})
}

// details writes what a record says besides, for people: "from active, to blocked".
func details(all map[string]string) string {
	parts := make([]string, 0, len(all))
	for key, value := range all {
		parts = append(parts, key+": "+value)
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// cardAbout is what people decide of a card, as it stands in the form. Holder is a username.
type cardAbout struct{ Template, Holder, Label, Serial string }

func (v *view) cardAbout(prefix string) cardAbout {
	return cardAbout{v.value(prefix + "template"), v.value(prefix + "holder"), v.value(prefix + "label"), v.value(prefix + "serial")}
}

// cardEdit is the form of a card that there is.
type cardEdit struct {
	Card      credential.Credential
	About     cardAbout
	Was       cardAbout // what the form began with
	Templates []Option
	Conflict  []difference
}

// difference is a field that somebody else has changed while a form was open, or that was
// entered otherwise than it is now.
type difference struct{ Label, Now, Entered string }

// cardEdit is the form of a card as it is now.
func (v *view) cardEdit() (cardEdit, error) {
	c, err := v.card()
	if err != nil {
		return cardEdit{}, err
	}
	d := cardEdit{Card: c, Was: cardAbout{Template: c.Template, Label: c.Label, Serial: c.Serial}}
	if c.Holder != "" {
		u, err := v.holderOf(v.ctx(), c.Holder)
		if err != nil {
			return cardEdit{}, err
		}
		d.Was.Holder = u.Profile.Username
	}
	d.About = d.Was
	templates, err := v.Credentials.Templates(v.ctx(), v.tenant())
	for _, t := range templates {
		if t.Family == c.Family {
			d.Templates = append(d.Templates, Option{t.ID, t.Name})
		}
	}
	return d, err
}

func (v *view) editCard() error {
	d, err := v.cardEdit()
	if err != nil {
		return err
	}
	return v.show("card-edit", d)
}

// saveCard stores what was entered if what people decide of the card is as the form began:
// all else of a card changes by itself, and is no conflict.
func (v *view) saveCard() error {
	entered, was := v.cardAbout(""), v.cardAbout("was.")
	for range 3 {
		d, err := v.cardEdit()
		if err != nil {
			return err
		}
		now := d.Was
		d.About = entered
		if now != was && now != entered {
			d.Conflict = v.cardDifferences(d.Templates, now, entered)
			return v.render(http.StatusConflict, "card-edit", "layout", Frame{v: v, D: d})
		}
		holder := d.Card.Holder
		switch entered.Holder {
		case now.Holder:
		case "":
			holder = ""
		default:
			if err := v.holder(entered.Holder, &holder); err != nil {
				return v.refused(err, "card-edit", d)
			}
		}
		_, err = v.Credentials.Update(v.ctx(), v.core, v.actor(), "", d.Card.ID, d.Card.Version, func(a *credential.About) {
			a.Template, a.Holder, a.Label, a.Serial = entered.Template, holder, entered.Label, entered.Serial
		})
		if errors.Is(err, problem.ErrConflict) {
			continue // it has changed in between, perhaps in what is no conflict
		} else if err != nil {
			return v.refused(err, "card-edit", d)
		}
		return v.done(join("/cards/", d.Card.ID), words.Key("done.cardSaved"))
	}
	return fmt.Errorf("%w: the card is changed all the time", problem.ErrUnavailable)
}

func (v *view) cardDifferences(templates []Option, now, entered cardAbout) (all []difference) {
	name := func(id string) string {
		if i := slices.IndexFunc(templates, func(o Option) bool { return o.Value == id }); i >= 0 {
			return templates[i].Label
		}
		return id
	}
	for _, d := range []difference{
		{v.words.Say("cards.template"), name(now.Template), name(entered.Template)},
		{v.words.Say("cards.holder"), now.Holder, entered.Holder},
		{v.words.Say("cards.label"), now.Label, entered.Label},
		{v.words.Say("cards.serial"), now.Serial, entered.Serial},
	} {
		if d.Now != d.Entered {
			all = append(all, d)
		}
	}
	return all
}

// cardNew is the form of a card that is to be registered. Its family is the template's.
type cardNew struct {
	cardAbout
	CardID, State          string
	IssuedAt, PINExpiresAt string // days
	PUKTriesLeft           string
	Templates              []Option
}

func (v *view) cardNew() (cardNew, []credential.Template, error) {
	d := cardNew{v.cardAbout(""), v.value("cardId"), v.value("state"), v.value("issuedAt"), v.value("pinExpiresAt"), v.value("pukTriesLeft"), nil}
	templates, err := v.Credentials.Templates(v.ctx(), v.tenant())
	for _, t := range templates {
		d.Templates = append(d.Templates, Option{t.ID, t.Name + " (" + t.Family + ")"})
	}
	return d, templates, err
}

func (v *view) newCard() error {
	d, _, err := v.cardNew()
	if err != nil {
		return err
	}
	return v.show("card-new", d)
}

func (v *view) registerCard() error {
	puk, adminKey := v.secretValue("puk"), v.secretValue("adminKey")
	d, templates, err := v.cardNew()
	if err != nil {
		return err
	}
	var vs problem.Violations
	n := credential.New{CardID: cardID(d.CardID), Template: d.Template, Label: d.Label, Serial: d.Serial, State: credential.State(d.State),
		IssuedAt: v.day(&vs, "issuedAt", d.IssuedAt), PINExpiresAt: v.day(&vs, "pinExpiresAt", d.PINExpiresAt)}
	if i := slices.IndexFunc(templates, func(t credential.Template) bool { return t.ID == d.Template }); i >= 0 {
		n.Family = templates[i].Family
	} else {
		vs.Add("unknown", "template", "is not the id of a credential template")
	}
	if d.Holder != "" {
		if err := vs.Merge(v.holder(d.Holder, &n.Holder)); err != nil {
			return err
		}
	}
	n.PUK, n.AdminKey = given(puk), given(adminKey)
	if d.PUKTriesLeft != "" {
		tries := wholeNumber(&vs, "pukTriesLeft", d.PUKTriesLeft)
		n.PUKTriesLeft = &tries
	}
	if err := vs.Err(); err != nil {
		return v.refused(err, "card-new", d)
	}
	c, err := v.Credentials.Register(v.ctx(), v.core, v.actor(), n)
	if errors.Is(err, problem.ErrConflict) {
		err = problem.Invalid("repeated", "cardId", "is that of a card that is registered already")
	}
	if err != nil {
		return v.refused(err, "card-new", d)
	}
	return v.done(join("/cards/", c.ID), words.Key("done.cardRegistered"))
}

// cardID takes an id as tools write them: with spaces, colons or dashes between.
func cardID(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || r == ':' || r == '-' {
			return -1
		}
		return r
	}, s)
}

// given returns a secret that was given, nil for none.
func given(s secret.Text) *secret.Text {
	if s.Empty() {
		return nil
	}
	return &s
}

// day reads the day of a form, and returns its beginning in the tenant's zone; the zero time
// for none.
func (v *view) day(vs *problem.Violations, field, s string) time.Time {
	if s == "" {
		return time.Time{}
	}
	t, err := time.ParseInLocation(time.DateOnly, s, v.loc)
	if err != nil {
		vs.Add("malformed", field, "must be a day, such as 2030-01-31")
	}
	return t
}

// cardMove is the page on which a card is moved to another state.
type cardMove struct {
	Card    credential.Credential
	Move    credential.Move
	From    credential.State // that the page was opened in
	Reason  string
	Reasons []Option
}

func (v *view) cardMove() (cardMove, error) {
	c, err := v.card()
	if err != nil {
		return cardMove{}, err
	}
	d := cardMove{Card: c, From: c.State, Reason: v.value("reason"), Reasons: []Option{{"", v.words.Say("cards.chooseReason")}}}
	if from := v.value("from"); from != "" {
		d.From = credential.State(from)
	}
	for _, r := range credential.Reasons() {
		d.Reasons = append(d.Reasons, Option{string(r), v.words.AuditReason(string(r))})
	}
	moves := credential.Moves(d.From, v.session.Roles)
	i := slices.IndexFunc(moves, func(m credential.Move) bool { return string(m.To) == v.value("to") })
	if i < 0 {
		return d, fmt.Errorf("move of a card: %w", problem.ErrNotFound)
	}
	d.Move = moves[i]
	return d, nil
}

func (v *view) moveCardPage() error {
	d, err := v.cardMove()
	if err != nil {
		return err
	}
	return v.show("card-state", d)
}

func (v *view) moveCard() error {
	d, err := v.cardMove()
	if err != nil {
		return err
	}
	if d.Card.State == d.Move.To { // sent twice, or somebody else was faster
		return v.done(join("/cards/", d.Card.ID), words.Key("done.cardMoved"))
	}
	moved := func() error {
		return v.refused(problem.Invalid("changed", "", "%s", v.words.Say("cards.movedMeanwhile", v.words.Say(words.Family("cards.state.", d.Card.State)))), "card-state", d)
	}
	if d.Card.State != d.From {
		return moved()
	}
	_, err = v.Credentials.Update(v.ctx(), v.core, v.actor(), d.Move.As, d.Card.ID, 0, func(a *credential.About) {
		a.State, a.Reason = d.Move.To, credential.Reason(d.Reason)
	})
	if err != nil {
		return v.refused(err, "card-state", d)
	}
	return v.done(join("/cards/", d.Card.ID), words.Key("done.cardMoved"))
}

type cardChanged struct {
	Card credential.Credential
	At   string // in the tenant's zone; "" is now
}

func (v *view) pinChangedPage() error {
	c, err := v.card()
	if err != nil {
		return err
	}
	return v.show("card-pin-changed", cardChanged{Card: c})
}

func (v *view) tellPINChanged() error {
	c, err := v.card()
	if err != nil {
		return err
	}
	d := cardChanged{c, v.value("at")}
	at := v.Now()
	if d.At != "" {
		if at, err = time.ParseInLocation("2006-01-02T15:04", d.At, v.loc); err != nil {
			return v.refused(problem.Invalid("malformed", "at", "must be a day and a time, such as 2030-01-31T14:30"), "card-pin-changed", d)
		}
	}
	if _, err := v.Credentials.PINChangedByHolder(v.ctx(), v.core, v.actor(), c.ID, at); err != nil {
		return v.refused(err, "card-pin-changed", d)
	}
	return v.done(join("/cards/", c.ID), words.Key("done.cardPINChanged"))
}

// cardSecret is the page on which somebody says which PUK or admin key a card has.
type cardSecret struct {
	Card    credential.Credential
	HasPUK  bool
	Known   bool   // the card has taken what is on record, or that is all there is: another replaces it
	What    string // "puk", "former" or "tries"
	Tries   string
	Replace bool
}

func (v *view) cardSecret() (cardSecret, error) {
	c, err := v.card()
	if err != nil {
		return cardSecret{}, err
	}
	family, err := card.FamilyNamed(c.Family)
	if err != nil {
		return cardSecret{}, err
	}
	d := cardSecret{c, family.HasPUK(), c.PUKState() == credential.PUKSettled || c.AdminKey != nil, cmp.Or(v.value("what"), "puk"), v.value("pukTriesLeft"), v.value("replace") != ""}
	return d, nil
}

func (v *view) cardSecretPage() error {
	d, err := v.cardSecret()
	if err != nil {
		return err
	}
	return v.show("card-secret", d)
}

func (v *view) saveCardSecret() error {
	puk, adminKey := v.secretValue("puk"), v.secretValue("adminKey")
	d, err := v.cardSecret()
	if err != nil {
		return err
	}
	var vs problem.Violations
	var tries *int
	if d.Tries != "" {
		n := wholeNumber(&vs, "pukTriesLeft", d.Tries)
		tries = &n
	}
	switch {
	case !d.HasPUK && adminKey.Empty():
		vs.Add("missing", "adminKey", "is missing")
	case d.HasPUK && d.What == "puk" && puk.Empty():
		vs.Add("missing", "puk", "is missing")
	case d.HasPUK && d.What == "tries" && tries == nil:
		vs.Add("missing", "pukTriesLeft", "is missing")
	}
	if err := vs.Err(); err != nil {
		return v.refused(err, "card-secret", d)
	}
	switch id := d.Card.ID; {
	case !d.HasPUK:
		_, err = v.Credentials.SetAdminKey(v.ctx(), v.core, v.actor(), id, adminKey, d.Replace)
	case d.What == "tries":
		_, err = v.Credentials.ObserveTries(v.ctx(), v.core, v.actor(), id, *tries)
	case d.What == "former":
		_, err = v.Credentials.ClaimPUK(v.ctx(), v.core, v.actor(), id, credential.Claim{TriesLeft: tries, Replace: d.Replace})
	default:
		_, err = v.Credentials.ClaimPUK(v.ctx(), v.core, v.actor(), id, credential.Claim{PUK: &puk, TriesLeft: tries, Replace: d.Replace})
	}
	if err != nil {
		return v.refused(err, "card-secret", d)
	}
	return v.done(join("/cards/", d.Card.ID), words.Key("done.cardSecret"))
}

type cardDelete struct {
	Card credential.Credential
	Lost bool // a PUK or admin key is lost with it
}

func (v *view) cardDelete() (cardDelete, error) {
	c, err := v.card()
	return cardDelete{c, len(c.PUKs) > 0 || c.AdminKey != nil}, err
}

func (v *view) deleteCardPage() error {
	d, err := v.cardDelete()
	if err != nil {
		return err
	}
	return v.show("card-delete", d)
}

func (v *view) deleteCard() error {
	d, err := v.cardDelete()
	if err != nil {
		return err
	}
	confirmed := v.value("confirm") != ""
	if d.Lost && !confirmed {
		return v.refused(problem.Invalid("missing", "confirm", "must be checked, for what is lost cannot be brought back"), "card-delete", d)
	}
	if err := v.Credentials.Delete(v.ctx(), v.core, v.actor(), d.Card.ID, 0, confirmed); err != nil {
		return v.refused(err, "card-delete", d)
	}
	return v.done(Root+"/cards", words.Key("done.cardDeleted"))
}
