package page

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

// The pages on which an operator has the holder of a card give it a new PIN. Each unblock has
// a page of its own, which says what is to be done next, to whoever may; what is sent leads
// back there.

const unblockPath = Root + "/unblock"

func (c *Console) unblockRoutes() []route {
	const one = unblockPath + "/{unblock}"
	return []route{
		{pattern: "GET " + unblockPath, action: tenant.StartUnblock, do: (*view).unblockDesk},
		{pattern: "GET " + unblockPath + "/live", action: tenant.StartUnblock, asked: true, do: (*view).liveDesk},
		{pattern: "GET " + unblockPath + "/new", action: tenant.StartUnblock, do: (*view).newUnblock},
		{pattern: "POST " + unblockPath + "/new", action: tenant.StartUnblock, do: (*view).startUnblock},
		{pattern: "GET " + one, action: tenant.ReadUnblock, do: (*view).showUnblock},
		{pattern: "GET " + one + "/state", action: tenant.ReadUnblock, asked: true, do: (*view).unblockState},
		{pattern: "POST " + one + "/approve", action: tenant.WriteCredentials, do: (*view).approveUnblock},
		{pattern: "POST " + one + "/code", action: tenant.StartUnblock, do: (*view).proveUnblock},
		{pattern: "POST " + one + "/pin", action: tenant.StartUnblock, do: (*view).givePIN},
		{pattern: "POST " + one + "/cancel", action: tenant.CancelUnblock, do: (*view).cancelUnblock},
	}
}

// deskCard is a card in a reader, which may be chosen.
type deskCard struct {
	seenReader
	Bridge, BridgeName string
}

// deskSeen is what there is to do at desks now.
type deskSeen struct {
	Waiting []unblock.Operation // for an approval
	Cards   []deskCard
	More    bool // there are more bridges than are looked at
	Bridges int  // that are online
}

// bridgesLooked is at how many bridges cards are looked for.
const bridgesLooked = 200

func (v *view) livingDesk() (Live, error) {
	var seen deskSeen
	g, ctx := errgroup.WithContext(v.ctx())
	if v.may(tenant.WriteCredentials) {
		g.Go(func() (err error) { seen.Waiting, err = v.Unblocks.AwaitingApproval(ctx, v.tenant()); return err })
	}
	g.Go(func() error {
		bridges, next, err := v.Tenants.Bridges(ctx, v.tenant(), "", bridgesLooked)
		if err != nil {
			return err
		}
		seen.More = next != ""
		bridges = slices.DeleteFunc(bridges, func(b tenant.Bridge) bool { return !b.Online(v.Now()) })
		seen.Bridges = len(bridges)
		readers, err := v.seenReaders(bridges, true)
		for i, b := range bridges {
			for _, r := range readers[i] {
				if r.State != "empty" {
					seen.Cards = append(seen.Cards, deskCard{r, b.ID, b.Name})
				}
			}
		}
		return err
	})
	if err := g.Wait(); err != nil {
		return Live{}, err
	}
	slices.SortStableFunc(seen.Cards, func(a, b deskCard) int { return strings.Compare(a.BridgeName, b.BridgeName) })
	return v.live("unblocks", "desk", seen, liveEvery, unblockPath+"/live")
}

type unblockDesk struct {
	Live Live
	Past List[unblock.Operation]
}

func (v *view) unblockDesk() error {
	from, err := v.place()
	if err != nil {
		return err
	}
	more := func(beyond string, limit int) ([]unblock.Operation, string, error) {
		return v.Unblocks.List(v.ctx(), v.tenant(), "", beyond, limit)
	}
	if v.value("format") == "csv" {
		var rows iter.Seq2[unblock.Operation, error] = rowsOf(from, func(beyond string) ([]unblock.Operation, string, error) { return more(beyond, 200) })
		return csvFile(v, "unblocks", []string{"id", "kind", "credential", "bridge", "channel", "byKind", "by", "statement", "state", "reason", "pinChanged", "createdAt", "updatedAt"}, rows, func(op unblock.Operation) []string {
			return []string{op.ID, string(op.Kind), op.Credential, op.Bridge, string(op.Channel), string(op.By.Kind), cmp.Or(op.By.Name, op.By.ID), op.Statement, string(op.State), op.Reason, string(op.Outcome.PIN), csvTime(op.CreatedAt), csvTime(op.UpdatedAt)}
		})
	}
	var d unblockDesk
	var g errgroup.Group
	g.Go(func() (err error) { d.Live, err = v.livingDesk(); return err })
	g.Go(func() error {
		ops, next, err := more(from, pageSize)
		d.Past = list(v, ops, next)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return v.show("unblocks", d)
}

// CardName is what a card of a list is called, by its credential's id.
func (unblockDesk) CardName(credential string) string { return nameOf(credential) }

// CardName is what a card of a list is called, by its credential's id.
func (deskSeen) CardName(credential string) string { return nameOf(credential) }

func (v *view) liveDesk() error {
	l, err := v.livingDesk()
	if err != nil {
		return err
	}
	return v.stillLive("unblocks", l)
}

// chosenCard is a card as somebody is to recognise it.
type chosenCard struct {
	Card     credential.Credential
	Name     string
	Template credential.Template
	Holder   user.User
}

// Chosen is itself, for the template "chosen-card".
func (c chosenCard) Chosen() chosenCard { return c }

// Chosen is the card, for the template "chosen-card".
func (p unblockPage) Chosen() chosenCard { return p.Card }

// chosenCard reads a card with what belongs to it.
func (v *view) chosenCard(ctx context.Context, id string) (c chosenCard, err error) {
	if c.Card, err = v.Credentials.Get(ctx, v.tenant(), id); err != nil {
		return c, err
	}
	c.Name = cardName(c.Card.Family, c.Card.CardID)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		c.Template, err = v.Credentials.Template(ctx, v.tenant(), c.Card.Template)
		return err
	})
	g.Go(func() (err error) { c.Holder, err = v.holderOf(ctx, c.Card.Holder); return err })
	return c, g.Wait()
}

// way is a channel by which a card can be unblocked at a desk.
type way struct {
	Channel credential.Channel
	Proof   credential.Proof
	Why     string // it cannot be now
}

// newUnblock is the form that begins an unblock.
type newUnblock struct {
	chosenCard
	Bridge     tenant.Bridge
	Here       bool // the card is in a reader of the bridge
	PIN        pinSeen
	Ways       []way
	Possible   bool // by one of them
	Leased     string
	Channel    credential.Channel
	Statement  string
	Statements bool // one of the ways wants one
}

func (v *view) newUnblockForm() (newUnblock, error) {
	n := newUnblock{Channel: credential.Channel(v.value("channel")), Statement: v.value("statement")}
	g, ctx := errgroup.WithContext(v.ctx())
	g.Go(func() (err error) { n.chosenCard, err = v.chosenCard(ctx, v.value("card")); return err })
	g.Go(func() (err error) { n.Bridge, err = v.Tenants.Bridge(ctx, v.tenant(), v.value("bridge")); return err })
	if err := g.Wait(); err != nil {
		return n, err
	}
	var told card.Identity
	n.PIN = pinSeen{State: "unknown"}
	for _, r := range n.Bridge.Here(v.Now()) {
		if r.Insertion != "" && unblock.CredentialOf(r) == n.Card.ID {
			n.Here, told = true, r.Identify.Identity
			n.PIN = pinOf(told, r.Insertion, n.Card)
		}
	}
	if n.Card.Leased(v.Now()) {
		n.Leased = n.Card.Lease.Operation
	}
	for _, channel := range []credential.Channel{credential.Operator, credential.SelfService} {
		if !n.Template.Allows(channel) {
			continue
		}
		w := way{Channel: channel, Proof: n.Template.ProofFor(channel)}
		if err := v.Unblocks.Possible(v.ctx(), v.core, channel, n.Card, n.Template, told); err != nil {
			why, ok := v.why(err)
			if !ok {
				return n, err
			}
			w.Why = why
		} else {
			n.Possible, n.Channel = true, cmp.Or(n.Channel, channel)
			n.Statements = n.Statements || w.Proof != credential.MailedCode
		}
		n.Ways = append(n.Ways, w)
	}
	return n, nil
}

// why says in words why something cannot be done.
func (v *view) why(err error) (string, bool) {
	var failure card.Failure
	if errors.As(err, &failure) {
		return v.words.Text(failure.Sentence()), true
	}
	_, faults := v.faults(err)
	if len(faults) == 0 {
		return "", false
	}
	return faults[0].Text, true
}

func (v *view) newUnblock() error {
	n, err := v.newUnblockForm()
	if err != nil {
		return err
	}
	return v.show("unblock-new", n)
}

func (v *view) startUnblock() error {
	n, err := v.newUnblockForm()
	if err != nil {
		return err
	}
	op, err := v.Unblocks.Create(v.ctx(), v.core, v.actor(), unblock.Request{Credential: n.Card.ID, Bridge: n.Bridge.ID, Channel: n.Channel, Statement: n.Statement})
	if err != nil {
		return v.refused(err, "unblock-new", n)
	}
	return v.goTo(unblockPath + "/" + op.ID)
}

// unblockPage is an unblock as it stands, and what is to be done next.
type unblockPage struct {
	Op     unblock.Operation
	Path   string
	Card   chosenCard // as far as it is known still
	Bridge tenant.Bridge
	PIN    pinSeen // as the card told before
	Step   string  // what is next
	Steps  []Step
	Until  countdown
	Waits  bool // something may happen by itself
	Watch  string
	seen   string // tells this page from what it may be next

	SentTo    string
	TriesLeft int
	Wrong     bool // the code was
	Seal      *Seal
	Sentence  string // what came of it
	Good      bool
	Statement string // that was typed for an approval
	ByRule    bool
	Mine      bool // who looks has asked for it
	MayGive   bool // and may go on with it
	MayStop   bool
	Approves  bool // and may approve it
}

// Step is one on the way of an unblock.
type Step struct {
	Key   string // "identified", "code", "approved", "pin", "card"
	State string // "done", "now", "open" or "failed"
}

// The steps that an unblock is at. The first are of who looks after it, the last how it ended.
const (
	atCode     = "code"
	atApproval = "approval"
	atAway     = "away"  // the bridge is not connected
	atPutIn    = "putIn" // the card is in no reader of the bridge
	atPIN      = "pin"
	atRunning  = "running"
	atEnd      = "end"
)

func (v *view) unblockPage() (unblockPage, error) {
	id := v.r.PathValue("unblock")
	p := unblockPage{Path: unblockPath + "/" + id}
	op, err := v.Unblocks.Get(v.ctx(), v.tenant(), id)
	if err == nil && v.may(tenant.StartUnblock) && !op.State.Finished() && (!v.Now().Before(op.Until) || op.State == unblock.Running && v.Now().Sub(op.UpdatedAt) >= lookAfter) {
		op, err = v.Unblocks.Look(v.ctx(), v.core, id)
	}
	if err != nil {
		return p, err
	}
	p.Op = op
	var shown relay.Operation
	g, ctx := errgroup.WithContext(v.ctx())
	g.Go(func() (err error) { shown, err = v.Unblocks.Show(ctx, v.core, op); return err })
	g.Go(func() error {
		c, err := v.chosenCard(ctx, op.Credential)
		if p.Card = c; errors.Is(err, problem.ErrNotFound) { // it is no more
			return nil
		}
		return err
	})
	g.Go(func() error {
		b, err := v.Tenants.Bridge(ctx, v.tenant(), op.Bridge)
		if p.Bridge = b; errors.Is(err, problem.ErrNotFound) {
			return nil
		}
		return err
	})
	if err := g.Wait(); err != nil {
		return p, err
	}
	p.Card.Name = nameOf(op.Credential)
	p.PIN = pinOf(card.Identity{PIN: op.PINTries}, "", p.Card.Card)
	p.ByRule, p.Mine = op.By.Kind == audit.Rule, op.By.Kind == v.actor().Kind && op.By.ID == v.actor().ID
	p.MayGive, p.MayStop = v.may(tenant.StartUnblock), v.may(tenant.CancelUnblock)
	p.Approves = op.AwaitsApproval(v.Now()) && !p.Mine && v.may(tenant.WriteCredentials)
	p.Sentence = v.words.Text(op.Sentence())
	p.Good = op.State == unblock.Succeeded || op.State == unblock.Reconciled && op.Outcome.PIN == card.Yes
	p.SentTo, p.TriesLeft, p.Wrong = shown.SentTo, shown.TriesLeft, shown.Next == relay.NextCode && shown.TriesLeft < unblock.CodeTries
	switch {
	case op.State.Finished():
		p.Step = atEnd
	case op.State == unblock.Running:
		p.Step = atRunning
	case op.AwaitsApproval(v.Now()):
		p.Step = atApproval
	case shown.Next == relay.NextCode:
		p.Step = atCode
	case !p.Bridge.Online(v.Now()):
		p.Step = atAway
	case shown.Next == relay.NextCard:
		p.Step = atPutIn
	default:
		p.Step = atPIN
		if p.MayGive {
			seal := v.seal(p.Path+"/pin", op, shown, p.Bridge)
			p.Seal = &seal
		}
	}
	if p.Step != atEnd && p.Step != atRunning {
		p.Until = v.countdown(op.Until)
	}
	p.Steps = stepsOf(op, p)
	p.Waits = p.Step != atEnd || op.State == unblock.Unknown
	if p.Waits {
		p.seen = seenAs(p.Step, op.State, op.Fence, op.Until, p.TriesLeft, len(op.Violations))
		p.Watch = watch(p.Path+"/state", p.seen)
	}
	return p, nil
}

// stepsOf are the steps of an unblock, as far as it is.
func stepsOf(op unblock.Operation, p unblockPage) []Step {
	if op.Kind != unblock.Unblock {
		return nil
	}
	var steps []Step
	proven := op.State != unblock.Requested && !op.Proof.At.IsZero()
	first := func(done bool, key string) {
		state := "now"
		if done {
			state = "done"
		}
		steps = append(steps, Step{key, state})
	}
	switch {
	case op.Proof.SentTo != "":
		first(proven, "code")
	case p.ByRule:
		first(proven, "approved")
	default:
		first(true, "identified")
		if p.Card.Template.ProofFor(op.Channel) == credential.TwoOperators {
			first(proven, "approved")
		}
	}
	pin, at := "open", "open"
	switch {
	case op.State == unblock.Proven:
		pin = "now"
	case op.State == unblock.Running:
		pin, at = "done", "now"
	case p.Good:
		pin, at = "done", "done"
	case op.State == unblock.Unknown, op.Part > 0:
		pin, at = "done", "failed"
	case op.State == unblock.Failed && proven:
		pin = "failed"
	case op.State == unblock.Failed:
		steps[len(steps)-1].State = "failed"
	}
	return append(steps, Step{"pin", pin}, Step{"card", at})
}

func (v *view) showUnblock() error {
	p, err := v.unblockPage()
	if err != nil {
		return err
	}
	return v.show("unblock", p)
}

func (v *view) unblockState() error {
	p, err := v.unblockPage()
	if err != nil {
		return err
	}
	return v.stillSo(p.seen, p.Path)
}

// nextStep shows how an unblock stands once something was done about it, or why it was not.
func (v *view) nextStep(err error) error {
	path := unblockPath + "/" + url.PathEscape(v.r.PathValue("unblock"))
	if err == nil {
		return v.goTo(path)
	}
	if _, faults := v.faults(err); len(faults) == 0 {
		return err
	}
	p, failed := v.unblockPage()
	if failed != nil {
		return failed
	}
	p.Statement = v.value("statement")
	return v.refused(err, "unblock", p)
}

func (v *view) approveUnblock() error {
	_, err := v.Unblocks.Approve(v.ctx(), v.core, v.actor(), v.r.PathValue("unblock"), v.value("statement"))
	return v.nextStep(err)
}

func (v *view) proveUnblock() error {
	code := v.secretValue("code")
	if strings.TrimSpace(code.Reveal()) == "" { // it would cost a try
		return v.nextStep(problem.Invalid("missing", "code", "is missing; it is in the mail"))
	}
	_, err := v.Unblocks.Prove(v.ctx(), v.core, v.actor(), v.r.PathValue("unblock"), code)
	if errors.As(err, new(*problem.InvalidError)) { // the page tells how many tries are left
		err = nil
	}
	return v.nextStep(err)
}

func (v *view) givePIN() error {
	sealed, err := v.sealedPIN()
	if err == nil {
		_, err = v.Unblocks.GivePIN(v.ctx(), v.core, v.actor(), v.r.PathValue("unblock"), sealed)
	}
	return v.nextStep(err)
}

func (v *view) cancelUnblock() error {
	_, err := v.Unblocks.Cancel(v.ctx(), v.core, v.actor(), v.r.PathValue("unblock"))
	return v.nextStep(err)
}
