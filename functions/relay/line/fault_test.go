package line_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/unblock"
)

// struck is a Faulty table that notes how many holders had been told when it failed.
type struck struct {
	*tabletest.Faulty
	mails *desk.Mails
	told  int // -1: it has not failed
}

func (s *struck) note(err error) error {
	if errors.Is(err, tabletest.ErrFault) {
		s.told = len(s.mails.Of("reset"))
	}
	return err
}

func (s *struck) Get(ctx context.Context, key table.Key) (table.Item, error) {
	item, err := s.Faulty.Get(ctx, key)
	return item, s.note(err)
}

func (s *struck) Query(ctx context.Context, r table.Range) (table.Page, error) {
	page, err := s.Faulty.Query(ctx, r)
	return page, s.note(err)
}

func (s *struck) Write(ctx context.Context, ops ...table.Op) error {
	return s.note(s.Faulty.Write(ctx, ops...))
}

// persistent goes on until the PIN is reset, as people and bridges do: after a fault they
// connect anew, look, ask again, put the card in again, and begin anew.
func (p *person) persistent() {
	p.Helper()
	var op relay.Operation
	identified := func() bool {
		b, err := p.Tenants.Bridge(context.Background(), desk.Acme, p.ID)
		if err != nil {
			return false
		}
		for _, r := range b.Sessions[relay.Terminal].Readers {
			if r.Insertion == p.insertion && r.Credential != "" {
				return true
			}
		}
		return false
	}
	fault := true
	for range 40 {
		if fault || p.Closed() || p.Connection == "" {
			if fault = p.Connect() != nil; fault {
				continue
			}
		}
		if err := p.Settle(); err != nil || !identified() {
			fault = true // it is asked anew what card it is
			continue
		}
		var next relay.Operation
		var problem *relay.Problem
		var err error
		switch op.Next {
		case "", relay.NextNothing:
			if op.State == string(unblock.Succeeded) {
				return
			}
			next, problem, err = p.Start(p.insertion)
		case relay.NextCode:
			if codes := p.Mails.Of("code"); len(codes) == 0 {
				op = relay.Operation{} // none came
				continue
			}
			next, problem, err = p.Prove(op.ID, p.Code())
		case relay.NextPIN:
			next, problem, err = p.Ready(op.ID, p.pin)
		default:
			next, problem, err = p.Look(op.ID)
		}
		switch {
		case err != nil:
			fault = true
		case problem != nil && op.ID == "":
		case problem != nil && problem.Code == "unavailable":
		case problem != nil: // another than thought: how does it stand?
			if op, problem, err = p.Look(op.ID); err != nil || problem != nil {
				fault, op = true, relay.Operation{}
			}
		default:
			op = next
		}
	}
}

// calm lets time pass until nothing is due.
func (p *person) calm() {
	p.Helper()
	for range 6 {
		p.Clock.Pass(20 * time.Minute)
		_, _ = p.Unblocks.Sweep(context.Background(), 100)
	}
	p.Wire.Whole()
	p.Clock.Pass(24 * time.Hour)
	if r := p.Sweep(); r != (unblock.Report{}) {
		p.Errorf("after a day there is still something due: %+v", r)
	}
}

// honest holds what is stored against what the card and the holder have seen. again is how
// many mails may have been sent twice.
func (p *person) honest(again int) {
	p.Helper()
	c := p.Desk.Credential(p.credential)
	if p.piece.Profile() != softcard.GIDS && !p.Knows(p.piece, c) {
		p.Errorf("the card's PUK is lost: %+v", c.Custody)
	}
	resets, told := 0, 0
	for _, op := range p.Operations(p.credential) {
		n := p.Resets[op.ID]
		resets += n
		switch {
		case !op.State.Finished():
			p.Errorf("it is not over: %v", op)
		case n > 1, op.Outcome.PIN == card.Yes && n != 1, op.Outcome.PIN == card.No && n != 0:
			p.Errorf("%v says of the PIN %q, and has reset it %d times", op, op.Outcome.PIN, n)
		case n > 0 && op.State == unblock.Failed:
			p.Errorf("%v (%s) has reset the PIN", op, op.Reason)
		}
		if op.Outcome.PIN == card.Yes {
			told++
			if op.Notice.State != unblock.NoticeSent {
				p.Errorf("%v: the holder was not told: %+v", op, op.Notice)
			}
		}
	}
	if mails := len(p.Mails.Of("reset")); mails < told || mails > told+again {
		p.Errorf("the PIN was reset %d times, %d are known, and %d mails sent", resets, told, mails)
	}
	if p.piece.PINIs(p.pin) != (resets > 0) {
		p.Errorf("the card has the new PIN: %t, after %d resets", resets == 0, resets)
	}
}

// TestFaults runs a whole unblock with each of its table calls failing, before the call or
// although it took effect. Whatever fails, people get their PIN in the end; no PUK is lost,
// nothing is said that is not so, and nothing is due for ever.
func TestFaults(t *testing.T) {
	for _, profile := range profiles {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after %t", profile, after), func(t *testing.T) {
				for n := 1; ; n += testserver.Rounds(1, 6) {
					if !struckAt(t, profile, n, after) || t.Failed() {
						t.Logf("all calls before %d", n)
						return
					}
				}
			})
		}
	}
}

// struckAt returns false if there were fewer calls than n.
func struckAt(t *testing.T, profile softcard.Profile, n int, after bool) bool {
	t.Helper()
	d := desk.New(t)
	p := newPerson(d, profile)
	s := &struck{mails: d.Mails, told: -1}
	d.Wire.Through(func(whole table.Table) table.Table { s.Faulty = tabletest.Fail(whole, n, after); return s })
	p.persistent()
	calls := s.Calls()
	p.calm()
	if !p.piece.PINIs(p.pin) {
		t.Errorf("call %d: the person has no new PIN: %v", n, d.Operations(p.credential))
	}
	again := 0
	if s.told > 0 {
		again = 1 // that it was sent could not be noted
	}
	p.honest(again)
	if c := d.Credential(p.credential); c.Custody.InDoubt() && c.Custody != (card.Custody{}) || c.Lease.Operation != "" {
		// The card is seen once more.
		d.Must(p.Connect())
		if err := p.Settle(); err != nil {
			t.Errorf("call %d: %v", n, err)
		}
		p.calm()
		p.honest(again)
		if c := d.Credential(p.credential); c.Custody.InDoubt() {
			t.Errorf("call %d: it stays in doubt which PUK the card has: %+v", n, c.Custody)
		}
	}
	if t.Failed() {
		t.Logf("call %d of %d, after %t\n%v", n, calls, after, d.Operations(p.credential))
	}
	return calls >= n
}

// TestBadLine loses, repeats and holds back messages in both directions, and lets bridges
// crash, by chance. The person may have to come back, but what is known is true.
func TestBadLine(t *testing.T) {
	reset, seeds := 0, testserver.Rounds(120, 15)
	for seed := range uint64(seeds) {
		chance := rand.New(rand.NewPCG(seed, 1))
		d := desk.New(t)
		p := newPerson(d, profiles[seed%3])
		p.Copies = func(mine bool, m relay.Message) int {
			if mine && chance.IntN(12) == 0 {
				p.Shuffle(chance)
			}
			switch chance.IntN(10) {
			case 0:
				return 0
			case 1:
				return 2
			}
			return 1
		}
		p.persistent()
		if chance.IntN(2) == 0 {
			p.Restart()
			p.insertion = p.Inserted()
		}
		p.calm()
		p.honest(0)
		p.Copies = nil
		for range 3 { // once the line is good, all is found out
			d.Must(p.Connect())
			d.Must(p.Settle())
			p.calm()
		}
		p.honest(0)
		c := d.Credential(p.credential)
		if c.Custody != (card.Custody{}) && c.Custody.InDoubt() || c.Doubt != "" || c.Lease.Operation != "" {
			t.Errorf("it stays in doubt: %+v", c)
		}
		if p.piece.PINIs(p.pin) {
			reset++
		}
		if t.Failed() {
			t.Fatalf("seed %d: %v", seed, d.Operations(p.credential))
		}
	}
	t.Logf("of %d, %d have their PIN", seeds, reset)
	if reset < seeds/2 {
		t.Errorf("only %d of %d have got a PIN", reset, seeds)
	}
}

// TestFaultsOfFindingOut loses the result, and then has each table call fail with which it
// is found out and told what has become of the card.
func TestFaultsOfFindingOut(t *testing.T) {
	for _, profile := range []softcard.Profile{softcard.PivApplet, softcard.GIDS} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after %t", profile, after), func(t *testing.T) {
				for n, calls := 1, 1; calls >= n && !t.Failed(); n += testserver.Rounds(1, 6) {
					d := desk.New(t)
					p := newPerson(d, profile)
					p.lost(p.results)
					p.Remove()
					other := d.NewBridge(relay.Service)
					s := &struck{mails: d.Mails, told: -1}
					d.Wire.Through(func(whole table.Table) table.Table { s.Faulty = tabletest.Fail(whole, n, after); return s })
					_ = other.Put(p.piece)
					for range 2 { // the bridge connects anew after a while
						_ = other.Settle()
						_ = other.Connect()
						_ = other.Settle()
						_, _ = d.Unblocks.Sweep(t.Context(), 100)
						d.Clock.Pass(2 * time.Minute)
					}
					calls = s.Calls()
					p.calm()
					again := 0
					if s.told > 0 {
						again = 1
					}
					p.honest(again)
					c := d.Credential(p.credential)
					if c.Doubt != "" || c.Lease.Operation != "" || c.Custody != (card.Custody{}) && c.Custody.InDoubt() {
						t.Errorf("it stays in doubt: %+v", c)
					}
					if op := d.Operations(p.credential)[0]; op.State != unblock.Reconciled || op.Outcome.PIN != card.Yes {
						t.Errorf("%v", op)
					}
					if t.Failed() {
						t.Logf("call %d of %d: %v", n, calls, d.Operations(p.credential))
					}
				}
			})
		}
	}
}
