package line_test

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/unblock"
)

// results loses the results of scripts that change the card.
func (p *person) results(mine bool, m relay.Message) int {
	if mine && m.Result != nil && !isIdentification(m.Result.Operation) && !p.Runs[len(p.Runs)-1].Hold {
		return 0
	}
	return 1
}

// changes loses the scripts that would change the card.
func (p *person) changes(mine bool, m relay.Message) int {
	if !mine && m.Run != nil && m.Run.Script.Fence > 0 && !m.Run.Hold {
		return 0
	}
	return 1
}

func isIdentification(operation string) bool {
	return len(operation) > 9 && operation[:9] == "identify-"
}

// lost has the end of an unblock lost, and the sweep conclude it.
func (p *person) lost(loses func(bool, relay.Message) int) unblock.Operation {
	p.Helper()
	p.Copies = loses
	op := p.done()
	if op.Next != relay.NextWait {
		p.Fatalf("%+v", op)
	}
	runs := len(p.Runs)
	p.Copies = nil
	p.Clock.Pass(59 * time.Second)
	if r := p.Sweep(); r != (unblock.Report{}) {
		p.Errorf("the sweep is too early: %+v", r)
	}
	p.Clock.Pass(2 * time.Second)
	if r := p.Sweep(); r != (unblock.Report{Due: 1, Concluded: 1}) {
		p.Errorf("sweep: %+v", r)
	}
	p.Must(p.Settle())
	if len(p.Runs) != runs {
		p.Error("a script was sent again though it is over")
	}
	stored := p.Operation(op.ID)
	news := p.news()
	if stored.State != unblock.Unknown || stored.Outcome.PIN != card.Unknown || news.State != "unknown" || news.Sentence == "" || p.Desk.Credential(p.credential).Lease.Operation != "" {
		p.Fatalf("after the sweep: %+v", stored)
	}
	if mails := p.Mails.Of("reset"); len(mails) > 0 {
		p.Errorf("the holder was told what is not known: %+v", mails)
	}
	if r := p.Sweep(); r != (unblock.Report{}) {
		p.Errorf("it is swept again: %+v", r)
	}
	return stored
}

// elsewhere inserts the card at another bridge, which knows nothing of what was before.
func (p *person) elsewhere() *desk.Bridge {
	p.Helper()
	p.Remove()
	p.Must(p.Settle())
	other := p.NewBridge(relay.Service)
	other.Insert(p.piece)
	p.Must(other.Settle())
	return other
}

// The answer of a script is lost: the card tells, when it is seen again, what it has done.
func TestLostResult(t *testing.T) {
	for _, profile := range profiles {
		for _, c := range []struct {
			name  string
			loses func(*person, bool, relay.Message) int
			reset bool
		}{{"result", (*person).results, true}, {"script", (*person).changes, false}} {
			t.Run(string(profile)+" "+c.name, func(t *testing.T) {
				d := desk.New(t)
				p := newPerson(d, profile)
				op := p.lost(func(mine bool, m relay.Message) int { return c.loses(p, mine, m) })
				other := p.elsewhere()
				want := card.Yes
				switch {
				case !c.reset && profile == softcard.GIDS:
					want = card.No
				case !c.reset: // it may have been stopped before the PUK's change
					want = card.Unknown
				}
				stored := d.Operation(op.ID)
				if stored.State != unblock.Reconciled || stored.Outcome.PIN != want || stored.Reason != "" || p.piece.PINIs(p.pin) != c.reset {
					t.Fatalf("seen again: %v, %+v, %q, doubt %q", stored, stored.Outcome, stored.Reason, d.Credential(p.credential).Doubt)
				}
				cred := d.Credential(p.credential)
				if cred.Doubt != "" || cred.Lease.Operation != "" || (cred.LastPINChange.Operation == op.ID) != c.reset {
					t.Errorf("the credential: %+v", cred)
				}
				if profile != softcard.GIDS && (cred.Custody.InDoubt() || !d.Knows(p.piece, cred) || len(d.Operations(p.credential)) != 2) {
					t.Errorf("the custody: %+v, %v", cred.Custody, d.Operations(p.credential))
				}
				d.Sweep()
				if mails := d.Mails.Of("reset"); (len(mails) == 1) != c.reset || len(mails) > 1 {
					t.Errorf("the holder was told %+v", mails)
				}
				// Seen once more, there is nothing to do.
				before := len(d.Operations(p.credential))
				d.Must(other.Connect())
				d.Must(other.Settle())
				if len(d.Operations(p.credential)) != before {
					t.Error("it is reconciled again")
				}
				p.calm()
				p.honest(0)
				d.Search()
			})
		}
	}
}

// A result that comes after its operation was given up is true all the same.
func TestLateResult(t *testing.T) {
	for _, profile := range profiles {
		t.Run(string(profile), func(t *testing.T) {
			d := desk.New(t)
			p := newPerson(d, profile)
			op := p.lost(p.results)
			d.Must(p.Again())
			d.Must(p.Settle())
			stored := d.Operation(op.ID)
			cred := d.Credential(p.credential)
			if stored.State != unblock.Succeeded || p.news().State != "succeeded" || cred.Doubt != "" || cred.Custody != (card.Custody{}) && cred.Custody.InDoubt() {
				t.Errorf("%+v, %+v", stored, cred)
			}
			if waiting, _ := p.Journal.Waiting(); len(waiting) > 0 {
				t.Errorf("not acknowledged: %+v", waiting)
			}
			p.calm()
			p.honest(0)
		})
	}
}

// A result is taken in once, from the bridge that the card is at.
func TestResultsTwiceAndOfOthers(t *testing.T) {
	d := desk.New(t)
	p := newPerson(d, softcard.PivApplet)
	other := d.NewBridge(relay.Service)
	var result *relay.Result
	p.Copies = func(mine bool, m relay.Message) int {
		if mine && m.Result != nil {
			result = m.Result
			return 0
		}
		return 1
	}
	op := p.done()
	p.Copies = nil
	acks := func(b *desk.Bridge) (n int) {
		for _, m := range b.News {
			if m.Ack != nil && m.Ack.Operation == op.ID {
				n++
			}
		}
		return n
	}
	forged := *result
	forged.Run.End, forged.Run.Step, forged.Run.Responses = "refused", 0, nil
	d.Must(other.Say(relay.Message{Result: &forged}))
	d.Must(other.Settle())
	if stored := d.Operation(op.ID); stored.State != unblock.Running || acks(other) != 1 {
		t.Errorf("another bridge's result: %+v, %d acknowledged", stored, acks(other))
	}
	d.Must(p.Say(relay.Message{Result: result}))
	version := d.Operation(op.ID).Version
	d.Must(p.Say(relay.Message{Result: result}))
	d.Must(p.Say(relay.Message{Result: &forged}))
	d.Must(p.Settle())
	if stored := d.Operation(op.ID); stored.State != unblock.Succeeded || stored.Version != version || acks(p.Bridge) != 3 {
		t.Errorf("twice: %+v, %d acknowledged", stored, acks(p.Bridge))
	}
	unknown := relay.Result{Operation: "01J8ZC9Q6Y0V4T5W3X2R1N0M9K", Part: 1, Interrupted: true}
	d.Must(p.Say(relay.Message{Result: &unknown}))
	p.calm()
	p.honest(0)
}

// So few tries are left that the PUK is not guessed: it is not tried at each insertion, and
// an operator's word ends it.
func TestStuck(t *testing.T) {
	d := desk.New(t)
	p := newPerson(d, softcard.PivApplet)
	p.lost(p.results)
	// Somebody gives the card a wrong PUK.
	p.piece.PowerOn()
	for _, command := range []string{"00A404000BA000000308000010000100", "00240081103030303030303030" + "3030303030303030"} {
		raw, _ := hex.DecodeString(command)
		if _, err := p.piece.Transmit(raw); err != nil {
			t.Fatal(err)
		}
	}
	if left := p.piece.Inspect().PUKTries; left != 2 {
		t.Fatalf("%d tries are left", left)
	}
	other := p.elsewhere()
	ops := d.Operations(p.credential)
	if len(ops) != 2 || ops[1].Kind != unblock.Reconcile || ops[1].State != unblock.Failed || ops[1].Reason != string(card.PUKUncertain) || ops[1].TriesLeft != 2 || ops[1].Sentence() == "" {
		t.Fatalf("%+v", ops)
	}
	for range 3 {
		other.Remove()
		other.Insert(p.piece)
		d.Must(other.Settle())
	}
	if now := d.Operations(p.credential); len(now) != 2 || p.piece.Inspect().PUKTries != 2 {
		t.Fatalf("it is tried again: %v", now)
	}

	cred := d.Credential(p.credential)
	var puk secret.Text
	for _, text := range d.PUKs(cred) {
		if p.piece.PUKIs(text) {
			puk = secret.New(text)
		}
	}
	two := 2
	_, err := d.Credentials.ClaimPUK(t.Context(), d.Core, desk.Admin, p.credential, credential.Claim{PUK: &puk, TriesLeft: &two})
	d.Must(err)
	p.insertion = p.Insert(p.piece)
	d.Must(p.Settle())
	p.pin = "58203917"
	p.done()
	if op := p.news(); op.State != "succeeded" || !p.piece.PINIs(p.pin) {
		t.Errorf("after the claim: %+v", op)
	}
	cred = d.Credential(p.credential)
	if cred.Stuck != "" || cred.Custody.InDoubt() || !d.Knows(p.piece, cred) {
		t.Errorf("%+v", cred)
	}
	d.Search()
}

// A bridge that was killed within a script says that nothing is known of it.
func TestInterrupted(t *testing.T) {
	for _, profile := range profiles {
		t.Run(string(profile), func(t *testing.T) {
			d := desk.New(t)
			p := newPerson(d, profile)
			p.Copies = p.results
			op := p.done()
			p.Copies = nil
			p.Interrupt()
			d.Must(p.Connect())
			d.Must(p.Settle())
			if stored := d.Operation(op.ID); !stored.State.Finished() {
				t.Errorf("it still waits: %+v", stored)
			}
			p.Remove()
			p.Insert(p.piece)
			d.Must(p.Settle())
			if stored := d.Operation(op.ID); stored.State != unblock.Reconciled || stored.Outcome.PIN != card.Yes {
				t.Errorf("%+v", stored)
			}
			p.calm()
			p.honest(0)
		})
	}
}

// What an operation is about may be deleted: it ends, and is not due for ever.
func TestDeleted(t *testing.T) {
	t.Run("under way", func(t *testing.T) {
		d := desk.New(t)
		p := newPerson(d, softcard.PivApplet)
		op := p.must(p.Start(p.insertion))
		d.Must(d.Credentials.Delete(t.Context(), d.Core, desk.Admin, p.credential, 0, true))
		d.Clock.Pass(11 * time.Minute)
		d.Sweep()
		if stored := d.Operation(op.ID); stored.State != unblock.Failed || stored.Reason != unblock.ReasonExpired || stored.ID != op.ID {
			t.Errorf("%+v", stored)
		}
		if r := d.Sweep(); r != (unblock.Report{}) {
			t.Errorf("still due: %+v", r)
		}
		if _, problem, err := p.Look(op.ID); err != nil || problem != nil {
			t.Errorf("looked at: %v, %v", problem, err)
		}
	})
	t.Run("before the holder is told", func(t *testing.T) {
		d := desk.New(t)
		p := newPerson(d, softcard.PivApplet)
		op := p.proven()
		d.Mails.Fail(100)
		p.must(p.Ready(op.ID, p.pin))
		d.Must(d.Credentials.Delete(t.Context(), d.Core, desk.Admin, p.credential, 0, true))
		d.Clock.Pass(time.Hour)
		d.Sweep()
		stored := d.Operation(op.ID)
		if stored.State != unblock.Succeeded || stored.Notice.State != unblock.NoticeSkipped || stored.Outcome.PIN != card.Yes {
			t.Errorf("%+v", stored)
		}
		if r := d.Sweep(); r != (unblock.Report{}) {
			t.Errorf("still due: %+v", r)
		}
	})
}

// Mails to holders that fail are tried again, for about a day; nobody is told twice.
func TestNotice(t *testing.T) {
	d := desk.New(t)
	p := newPerson(d, softcard.PivApplet)
	op := p.proven()
	d.Mails.Fail(2)
	p.must(p.Ready(op.ID, p.pin))
	if n := d.Operation(op.ID).Notice; n.State != unblock.NoticePlanned || n.Attempts != 1 || n.Reason == "" {
		t.Fatalf("%+v", n)
	}
	told := 0
	for range 10 {
		d.Clock.Pass(time.Minute)
		told += d.Sweep().Told
	}
	if told != 1 {
		t.Errorf("the sweeps say that %d were told", told)
	}
	if n := d.Operation(op.ID).Notice; n.State != unblock.NoticeSent || n.Attempts != 3 || len(d.Mails.Of("reset")) != 1 {
		t.Errorf("%+v, %d mails", n, len(d.Mails.Of("reset")))
	}

	p = newPerson(d, softcard.PivApplet)
	op = p.proven()
	d.Mails.Fail(1000)
	p.must(p.Ready(op.ID, p.pin))
	began, tries := d.Clock.Now(), 0
	for ; d.Operation(op.ID).Notice.State == unblock.NoticePlanned; tries++ {
		d.Clock.Pass(10 * time.Minute)
		d.Sweep()
		if tries > 400 {
			t.Fatal("it is tried for ever")
		}
	}
	if took := d.Clock.Now().Sub(began); d.Operation(op.ID).Notice.State != unblock.NoticeFailed || took < 12*time.Hour || took > 36*time.Hour {
		t.Errorf("given up after %v: %+v", took, d.Operation(op.ID).Notice)
	}
}

// A sweep that runs while the one who has the news is telling it does not tell it too.
func TestNoticeOnce(t *testing.T) {
	d := desk.New(t)
	p := newPerson(d, softcard.PivApplet)
	op := p.proven()
	swept := false
	d.Mails.Before = func() {
		if !swept {
			swept = true
			d.Sweep()
		}
	}
	p.must(p.Ready(op.ID, p.pin))
	if mails := d.Mails.Of("reset"); !swept || len(mails) != 1 {
		t.Errorf("%d mails", len(mails))
	}
}

// The sweep goes by its limit, says that there is more, and one that fails does not keep
// it from the others.
func TestSweep(t *testing.T) {
	d := desk.New(t)
	var ids []string
	for range 24 {
		_, cred := d.Issue(softcard.PivApplet)
		b := d.NewBridge(relay.Service)
		op, err := d.Unblocks.Create(t.Context(), d.Core, desk.Admin, unblock.Request{Credential: cred.ID, Bridge: b.ID, Channel: credential.SelfService})
		d.Must(err)
		ids = append(ids, op.ID)
	}
	d.Clock.Pass(10 * time.Minute)
	r, err := d.Unblocks.Sweep(t.Context(), 1)
	if d.Must(err); r.Due != table.UnblockDueShards || r.Concluded != r.Due || r.More == 0 {
		t.Errorf("limited to one a shard: %+v", r)
	}
	bad := d.Garble(ids)
	r, err = d.Unblocks.Sweep(t.Context(), 100)
	if err == nil || r.Errors != 1 || r.Concluded != len(ids)-table.UnblockDueShards-1 || r.More != 0 {
		t.Errorf("with one that cannot be read: %+v, %v", r, err)
	}
	for _, id := range ids {
		if id != bad && d.Operation(id).State != unblock.Failed {
			t.Errorf("%s is not over", id)
		}
	}
}
