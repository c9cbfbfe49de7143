package page

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

// The pages for who helps a person on the telephone. The answer is shown once, as the answer
// to a form: it is in no address, and the page that has it forgets it when it is left.

const helpDeskPath = Root + "/help-desk"

func (c *Console) helpDeskRoutes() []route {
	const card, answer = helpDeskPath + "/cards/{card}", helpDeskPath + "/answers/{answer}"
	return []route{
		{pattern: "GET " + helpDeskPath, action: tenant.AnswerOffline, do: (*view).helpDesk},
		{pattern: "GET " + card, action: tenant.AnswerOffline, do: (*view).helpCard},
		{pattern: "POST " + card, action: tenant.AnswerOffline, do: (*view).correctChallenge},
		{pattern: "POST " + card + "/challenge", action: tenant.AnswerOffline, do: (*view).readBack},
		{pattern: "POST " + card + "/answer", action: tenant.AnswerOffline, sensitive: true, do: (*view).askAnswer},
		{pattern: "GET " + answer, action: tenant.AnswerOffline, do: (*view).showAnswer},
		{pattern: "GET " + answer + "/state", action: tenant.AnswerOffline, asked: true, do: (*view).answerState},
		{pattern: "POST " + answer + "/approve", action: tenant.AnswerOffline, do: (*view).approveAnswer},
		{pattern: "POST " + answer + "/response", action: tenant.AnswerOffline, sensitive: true, do: (*view).giveAnswer},
	}
}

const (
	found = 20 // cards that are shown of a search
	// usersNamed is among how many users somebody is looked for by another name than the
	// username, which alone they are listed by.
	usersNamed = 2000
	searchable = 200 // characters
)

// foundCard is a card of a search.
type foundCard struct {
	credential.Credential
	CardName string
	Holder   user.User
}

type helpDesk struct {
	Search string
	Cards  []foundCard
	More   bool // there are, or may be, more
	Some   bool // only the first users were looked at for their names
	Card   int  // limits
	Key    int
}

func (v *view) helpDesk() error {
	d := helpDesk{Search: v.value("search"), Card: unblock.AnswersPerCard, Key: unblock.AnswersPerKey}
	if d.Search == "" {
		return v.show("help-desk", d)
	}
	if len(d.Search) > searchable {
		return v.refused(problem.Invalid("tooLong", "search", "is too long: nothing is called so"), "help-desk", d)
	}
	if err := v.findCards(&d); err != nil {
		return v.refused(err, "help-desk", d)
	}
	return v.show("help-desk", d)
}

// findCards looks for cards by what people say: the beginning of a label, a serial number,
// a card's number or a username; and if that finds none, a part of a name.
func (v *view) findCards(d *helpDesk) error {
	var byWord, byNumber, byHolder []credential.Credential
	g, ctx := errgroup.WithContext(v.ctx())
	g.Go(func() error {
		all, next, err := v.Credentials.Find(ctx, v.tenant(), credential.Filter{Search: d.Search}, "", found)
		byWord, d.More = all, d.More || next != ""
		return err
	})
	if number := cardNumber(d.Search); number != "" {
		g.Go(func() (err error) {
			byNumber, _, err = v.Credentials.Find(ctx, v.tenant(), credential.Filter{CardID: number}, "", found)
			return err
		})
	}
	if len(user.Fold(d.Search)) <= user.MaxFolded {
		g.Go(func() error {
			users, _, err := v.Users.List(ctx, v.tenant(), d.Search, "", found)
			if err == nil {
				byHolder, err = v.held(ctx, users)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	all := slices.Concat(byHolder, byWord, byNumber)
	if len(all) == 0 {
		users, err := v.usersNamed(d)
		if err == nil {
			all, err = v.held(v.ctx(), users)
		}
		if err != nil {
			return err
		}
	}
	for _, c := range all {
		if !slices.ContainsFunc(d.Cards, func(f foundCard) bool { return f.ID == c.ID }) {
			d.Cards = append(d.Cards, foundCard{Credential: c, CardName: cardName(c.Family, c.CardID)})
		}
	}
	if d.More = d.More || len(d.Cards) > found; len(d.Cards) > found {
		d.Cards = d.Cards[:found]
	}
	holders, ctx := errgroup.WithContext(v.ctx())
	for i := range d.Cards {
		holders.Go(func() (err error) {
			d.Cards[i].Holder, err = v.holderOf(ctx, d.Cards[i].Credential.Holder)
			return err
		})
	}
	return holders.Wait()
}

// cardNumber is the beginning of a card's number in what was typed, or of a credential's id;
// "" if it is none, or says too little.
func cardNumber(typed string) string {
	number := strings.ToLower(strings.Join(strings.Fields(typed), ""))
	if family, rest, ok := strings.Cut(number, "-"); ok && (family == "piv" || family == "gids") {
		number = rest
	}
	if len(number) < 4 || strings.Trim(number, "0123456789abcdef") != "" {
		return ""
	}
	return number
}

// held are the cards of users.
func (v *view) held(ctx context.Context, users []user.User) ([]credential.Credential, error) {
	of := make([][]credential.Credential, len(users))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, u := range users {
		g.Go(func() (err error) {
			of[i], _, err = v.Credentials.Held(ctx, v.tenant(), u.ID, "", found)
			return err
		})
	}
	err := g.Wait()
	return slices.Concat(of...), err
}

// usersNamed are users whose display name has all the words that were typed.
func (v *view) usersNamed(d *helpDesk) (users []user.User, _ error) {
	typed := strings.Fields(user.Fold(d.Search))
	for place, read := "", 0; ; {
		all, next, err := v.Users.List(v.ctx(), v.tenant(), "", place, 500)
		if err != nil {
			return nil, err
		}
		for _, u := range all {
			name := user.Fold(u.Profile.DisplayName)
			if name != "" && !slices.ContainsFunc(typed, func(w string) bool { return !strings.Contains(name, w) }) {
				users = append(users, u)
			}
		}
		if read, place = read+len(all), next; place == "" || len(users) >= found {
			return users[:min(len(users), found)], nil
		} else if read >= usersNamed {
			d.Some = true
			return users, nil
		}
	}
}

// helpCard is a card whose holder is on the telephone, and what was typed for it.
type helpCard struct {
	chosenCard
	Ways    []way // by which a challenge may come
	Two     bool  // one of them wants two operators
	HasPUK  bool  // Windows' own screen takes the card's PUK
	TellPUK bool  // and who looks may tell it
	Answers List[unblock.Answer]
	Limit   int

	Channel           credential.Channel
	Bridge, Challenge string
	AnyDay, AskDay    bool // the latter: it matters
	Statement, Reason string
	Bridges           []Option        // to choose from, if it matters
	Heard             []offline.Group // how a challenge that does not fit was understood
	Path              string
}

func (v *view) helpCardPage(withAnswers bool) (helpCard, error) {
	id := v.r.PathValue("card")
	h := helpCard{Path: helpDeskPath + "/cards/" + id, Limit: unblock.AnswersPerCard,
		Channel: credential.Channel(v.value("channel")), Bridge: v.value("bridge"), Challenge: v.value("challenge"), AnyDay: v.value("anyDay") != "",
		Statement: v.value("statement"), Reason: v.value("reason")}
	g, ctx := errgroup.WithContext(v.ctx())
	g.Go(func() (err error) { h.chosenCard, err = v.chosenCard(ctx, id); return err })
	if withAnswers {
		from, err := v.place()
		if err != nil {
			return h, err
		}
		g.Go(func() error {
			all, next, err := v.Unblocks.Answers(ctx, v.tenant(), id, from, 10)
			h.Answers = list(v, all, next)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return h, err
	}
	h.AskDay = h.AnyDay
	for _, c := range credential.Channels() {
		if c.Online() || !h.Template.Allows(c) {
			continue
		}
		proof := h.Template.ProofFor(c)
		if c == credential.WindowsChallengeResponse && h.Template.Custody() == credential.PUKRotated {
			h.HasPUK, h.TellPUK = true, v.may(tenant.TellPUK)
			continue
		}
		h.Two = h.Two || proof == credential.TwoOperators
		h.Ways = append(h.Ways, way{Channel: c, Proof: proof})
	}
	if h.Channel == "" && len(h.Ways) > 0 {
		h.Channel = h.Ways[0].Channel
	}
	return h, nil
}

// request is what is asked for.
func (h helpCard) request(v *view) unblock.OfflineRequest {
	return unblock.OfflineRequest{Credential: h.Card.ID, Channel: h.Channel, Bridge: h.Bridge, Challenge: h.Challenge, AnyDay: h.AnyDay,
		Statement: h.Statement, Reason: h.Reason, TellPUK: v.may(tenant.TellPUK)}
}

// ForPUK tells whether what was typed is for the PUK to be told.
func (h helpCard) ForPUK() bool { return h.Channel == credential.WindowsChallengeResponse && h.HasPUK }

func (v *view) helpCard() error {
	if v.value("format") == "csv" {
		return v.answersCSV()
	}
	h, err := v.helpCardPage(true)
	if err != nil {
		return err
	}
	return v.show("help-card", h)
}

func (v *view) answersCSV() error {
	from, err := v.place()
	if err != nil {
		return err
	}
	card, err := v.Credentials.Get(v.ctx(), v.tenant(), v.r.PathValue("card"))
	if err != nil {
		return err
	}
	var rows iter.Seq2[unblock.Answer, error] = rowsOf(from, func(beyond string) ([]unblock.Answer, string, error) {
		return v.Unblocks.Answers(v.ctx(), v.tenant(), card.ID, beyond, 200)
	})
	return csvFile(v, "answers", []string{"id", "credential", "channel", "bridge", "state", "by", "approvedBy", "statement", "reason", "createdAt", "givenAt"}, rows, func(a unblock.Answer) []string {
		return []string{a.ID, a.Credential, string(a.Channel), a.Bridge, string(a.State), cmp.Or(a.By.Name, a.By.ID), cmp.Or(a.Approved.Name, a.Approved.ID), a.Statement, a.Reason, csvTime(a.CreatedAt), csvTime(a.GivenAt)}
	})
}

// correctChallenge shows the form again with what was typed.
func (v *view) correctChallenge() error {
	h, err := v.helpCardPage(true)
	if err != nil {
		return err
	}
	return v.show("help-card", h)
}

// heardBack is a challenge as it was understood, to be read back to the person.
type heardBack struct {
	helpCard
	As       unblock.Answer
	Replaced []offline.Replacement
	Where    string // the bridge's name
	Spelt    []spoken
}

// spoken is a group, and how it is said.
type spoken struct{ Group, Words string }

// spell says a code group by group.
func spell(language offline.Language, code string) (all []spoken) {
	for _, group := range strings.Fields(code) {
		all = append(all, spoken{group, offline.Spoken(language, group)})
	}
	return all
}

func (v *view) readBack() error {
	h, err := v.helpCardPage(false)
	if err != nil {
		return err
	}
	as, replaced, err := v.Unblocks.Understand(v.ctx(), v.core, v.actor(), h.request(v))
	if err != nil {
		return v.misheard(err)
	}
	if as.TellsPUK() && !h.TellPUK {
		return v.notFound()
	}
	back := heardBack{helpCard: h, As: as, Replaced: replaced, Spelt: spell(offline.Language(v.words.Language()), as.Challenge)}
	if as.Bridge != "" {
		b, err := v.Tenants.Bridge(v.ctx(), v.tenant(), as.Bridge)
		if err != nil {
			return err
		}
		back.Where = b.Name
	}
	return v.show("help-back", back)
}

// misheard shows the form again with what is wrong, and what may help.
func (v *view) misheard(why error) error {
	if _, faults := v.faults(why); len(faults) == 0 {
		return why
	}
	h, err := v.helpCardPage(true)
	if err != nil {
		return err
	}
	var invalid *problem.InvalidError
	if errors.As(why, &invalid) {
		for _, x := range invalid.Violations {
			switch {
			case x.Code == "clock":
				h.AskDay = true
			case x.Field == "bridge":
				if h.Bridges, err = v.bridgeOptions(); err != nil {
					return err
				}
			case x.Field == "challenge" && h.Channel != credential.WindowsChallengeResponse:
				h.Heard = offline.Heard(h.Challenge)
			}
		}
	}
	return v.refused(why, "help-card", h)
}

// bridgeOptions are all bridges that are enrolled.
func (v *view) bridgeOptions() (options []Option, _ error) {
	for place, first := "", true; place != "" || first; first = false {
		bridges, next, err := v.Tenants.Bridges(v.ctx(), v.tenant(), place, 500)
		if err != nil {
			return nil, err
		}
		for _, b := range bridges {
			if b.Enrolled() {
				options = append(options, Option{b.ID, b.Name})
			}
		}
		place = next
	}
	slices.SortFunc(options, func(a, b Option) int { return strings.Compare(a.Label, b.Label) })
	return options, nil
}

func (v *view) askAnswer() error {
	h, err := v.helpCardPage(false)
	if err != nil {
		return err
	}
	a, given, err := v.Unblocks.Ask(v.ctx(), v.core, v.actor(), h.request(v))
	if err != nil {
		return v.misheard(err)
	}
	if given.Response.Empty() {
		return v.done(helpDeskPath+"/answers/"+a.ID, words.Key("done.answerAsked"))
	}
	return v.showResponse(a, given)
}

// answerPage is an answer without what it says.
type answerPage struct {
	Answer     unblock.Answer
	Card       chosenCard
	Path       string
	Where      string // the bridge's name
	Mine       bool   // who looks has asked for it
	Approves   bool   // and may approve it
	Gives      bool   // and may have it shown
	Over       bool   // its time is
	Until      countdown
	Waits      bool
	Watch      string
	seen       string
	Replaced   []offline.Replacement
	Spelt      []spoken // the response, in the reader's language
	SpeltOther []spoken
	Other      offline.Language
}

// Chosen is the card, for the template "chosen-card".
func (p answerPage) Chosen() chosenCard { return p.Card }

func (v *view) answerPage(a unblock.Answer) (answerPage, error) {
	p := answerPage{Answer: a, Path: helpDeskPath + "/answers/" + a.ID}
	g, ctx := errgroup.WithContext(v.ctx())
	g.Go(func() error {
		c, err := v.chosenCard(ctx, a.Credential)
		if p.Card = c; errors.Is(err, problem.ErrNotFound) { // it is no more
			return nil
		}
		return err
	})
	if a.Bridge != "" {
		g.Go(func() error {
			b, err := v.Tenants.Bridge(ctx, v.tenant(), a.Bridge)
			if p.Where = b.Name; errors.Is(err, problem.ErrNotFound) {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return p, err
	}
	p.Card.Name = nameOf(a.Credential)
	p.Over = !v.Now().Before(a.Until)
	p.Mine = a.By.Kind == v.actor().Kind && a.By.ID == v.actor().ID
	p.Approves = a.State == unblock.AnswerRequested && !p.Mine && !p.Over && (!a.TellsPUK() || v.may(tenant.TellPUK))
	p.Gives = p.Mine && !p.Over && (a.State == unblock.AnswerApproved || a.State == unblock.AnswerGiven)
	if !p.Over && (a.State == unblock.AnswerRequested || p.Gives) {
		p.Until = v.countdown(a.Until)
	}
	p.Waits = !p.Over && (a.State == unblock.AnswerRequested || a.State == unblock.AnswerApproved) || a.State == unblock.AnswerGiven
	p.seen = seenAs(a.State, p.Over, p.Gives)
	if p.Waits {
		p.Watch = watch(p.Path+"/state", p.seen)
	}
	return p, nil
}

// answer reads the answer of the request's path.
func (v *view) answer() (answerPage, error) {
	a, err := v.Unblocks.Answer(v.ctx(), v.tenant(), v.r.PathValue("answer"))
	if err != nil {
		return answerPage{}, err
	}
	return v.answerPage(a)
}

func (v *view) showAnswer() error {
	p, err := v.answer()
	if err != nil {
		return err
	}
	return v.show("help-answer", p)
}

func (v *view) answerState() error {
	p, err := v.answer()
	if err != nil {
		return err
	}
	return v.stillSo(p.seen, p.Path)
}

func (v *view) approveAnswer() error {
	p, err := v.answer()
	if err != nil {
		return err
	}
	if p.Answer.TellsPUK() && !v.may(tenant.TellPUK) {
		return v.notFound()
	}
	if _, err := v.Unblocks.ApproveAnswer(v.ctx(), v.core, v.actor(), p.Answer.ID); err != nil {
		return v.refused(err, "help-answer", p)
	}
	return v.done(p.Path, words.Key("done.answerApproved"))
}

func (v *view) giveAnswer() error {
	a, given, err := v.Unblocks.Give(v.ctx(), v.core, v.actor(), v.r.PathValue("answer"))
	if err != nil {
		p, failed := v.answer()
		if failed != nil {
			return failed
		}
		return v.refused(err, "help-answer", p)
	}
	return v.showResponse(a, given)
}

// showResponse shows an answer, large, to be read out.
func (v *view) showResponse(a unblock.Answer, given unblock.Given) error {
	p, err := v.answerPage(a)
	if err != nil {
		return err
	}
	language := offline.Language(v.words.Language())
	if p.Other = offline.German; language == offline.German {
		p.Other = offline.English
	}
	p.Replaced = given.Replaced
	p.Spelt, p.SpeltOther = spell(language, given.Response.Reveal()), spell(p.Other, given.Response.Reveal())
	p.Until, p.Watch = v.countdown(a.Until), watch(p.Path+"/state", "")
	return v.show("help-response", p)
}
