package line_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/unblock"
)

// PINs that the families' usual policies let through.
var goodPIN = map[softcard.Profile]string{softcard.PivApplet: "73915826", softcard.CanoKey: "739158", softcard.GIDS: "Tk7Qx2wZ"}

// person is somebody at a bridge, whom nothing goes wrong for.
type person struct {
	*desk.Bridge
	piece      *softcard.Card
	credential string
	insertion  string
	pin        string
}

// newPerson has inserted a card that is blocked, and it was identified.
func newPerson(d *desk.Desk, profile softcard.Profile) *person {
	d.Helper()
	piece, cred := d.Issue(profile)
	p := &person{Bridge: d.NewBridge(relay.Terminal), piece: piece, credential: cred.ID, pin: goodPIN[profile]}
	p.insertion = p.Insert(piece)
	d.Must(p.Settle())
	return p
}

// must is what has to be answered without a problem.
func (p *person) must(op relay.Operation, problem *relay.Problem, err error) relay.Operation {
	p.Helper()
	if err != nil || problem != nil {
		p.Fatalf("got %+v, %v", problem, err)
	}
	return op
}

// proven starts, and proves who they are.
func (p *person) proven() relay.Operation {
	p.Helper()
	op := p.must(p.Start(p.insertion))
	if op.Next != relay.NextCode {
		p.Fatalf("after start: %+v", op)
	}
	return p.must(p.Prove(op.ID, p.Code()))
}

// done has the new PIN set.
func (p *person) done() relay.Operation {
	p.Helper()
	return p.must(p.Ready(p.proven().ID, p.pin))
}

// news is the last that was told of an operation.
func (p *person) news() relay.Operation {
	p.Helper()
	return *desk.Last(p.Bridge, func(m relay.Message) *relay.Operation { return m.Operation })
}

var profiles = []softcard.Profile{softcard.PivApplet, softcard.CanoKey, softcard.GIDS}

func TestSelfService(t *testing.T) {
	for _, profile := range profiles {
		t.Run(string(profile), func(t *testing.T) {
			d := desk.New(t)
			p := newPerson(d, profile)
			welcome := desk.Last(p.Bridge, func(m relay.Message) *relay.Welcome { return m.Welcome })
			if !welcome.Time.Equal(d.Clock.Now()) || welcome.Organisation != "Acme" || welcome.KeepAliveSeconds <= 0 || welcome.KeepAliveSeconds >= 600 || welcome.ReconnectSeconds >= 7200 {
				t.Errorf("welcome: %+v", welcome)
			}

			op := p.must(p.Start(p.insertion))
			if op.Next != relay.NextCode || op.SentTo != "a…@acme.example" || op.TriesLeft != 5 || op.Credential != p.credential {
				t.Fatalf("after start: %+v", op)
			}
			code := p.Code()
			if mail := d.Mails.All()[0]; mail.To != desk.Address {
				t.Errorf("the code went to %s", mail.To)
			}
			op = p.must(p.Prove(op.ID, code[:3]+" "+code[3:]))
			if op.Next != relay.NextPIN || op.Policy == nil || op.Fence == 0 {
				t.Fatalf("after the code: %+v", op)
			}
			op = p.must(p.Ready(op.ID, p.pin))
			if op.Next != relay.NextWait {
				t.Errorf("after the PIN: %+v", op)
			}
			if op = p.news(); op.Next != relay.NextNothing || op.State != "succeeded" || op.Reason != "" || op.Sentence == "" {
				t.Errorf("in the end: %+v", op)
			}

			c, s := d.Credential(p.credential), p.piece.Inspect()
			stored := d.Only(p.credential)
			if !p.piece.PINIs(p.pin) || s.PINTries != s.PINMost || s.PINVerified || s.AdminVerified {
				t.Errorf("the card: %+v", s)
			}
			if stored.Outcome.PIN != "yes" || stored.PIN != nil || stored.Awaits {
				t.Errorf("the operation: %+v", stored)
			}
			if profile == softcard.GIDS {
				if stored.Outcome.PUK != "" || c.PUKs != nil {
					t.Errorf("it has a PUK: %+v", c)
				}
			} else if p.piece.PUKIs(desk.FirstPUK) || !d.Knows(p.piece, c) || c.Custody.InDoubt() || c.Custody.Proposed != 0 || c.Custody.Claimed || len(c.PUKs) != 1 || stored.Outcome.PUK != "yes" {
				t.Errorf("the PUK: %+v", c.Custody)
			}
			now := d.Clock.Now()
			if c.Lease.Operation != "" || c.Doubt != "" || c.LastPINChange.Operation != op.ID || c.LastPINChange.How != "resetBySelfService" ||
				!c.LastPINChange.At.Equal(now) || !c.PINExpiresAt.Equal(now.AddDate(0, 0, 90)) {
				t.Errorf("the credential: %+v", c)
			}
			resets := d.Mails.Of("reset")
			if len(resets) != 1 || resets[0].To != desk.Address || stored.Notice.State != unblock.NoticeSent {
				t.Errorf("the holder was told: %+v, %+v", resets, stored.Notice)
			}

			want := []string{"credential.registered", "unblock.requested", "unblock.proof", "unblock.begun", "puk.read", "unblock.succeeded", "unblock.notice"}
			if profile == softcard.GIDS {
				want = []string{"credential.registered", "unblock.requested", "unblock.proof", "unblock.begun", "adminKey.read", "unblock.succeeded", "unblock.notice"}
			}
			if diff := cmp.Diff(want, d.Actions(p.credential)); diff != "" {
				t.Errorf("audited (-want +got):\n%s", diff)
			}
			for _, r := range d.Audited(p.credential)[1:] {
				if r.Details["operation"] != op.ID || r.Action == "unblock.proof" && (r.Actor.Kind != "self" || r.Actor.ID != d.Holder.ID) {
					t.Errorf("record %+v", r)
				}
			}
			if waiting, err := p.Journal.Waiting(); err != nil || len(waiting) > 0 {
				t.Errorf("not acknowledged: %+v, %v", waiting, err)
			}
			if r := d.Sweep(); r != (unblock.Report{}) {
				t.Errorf("it leaves to the sweep: %+v", r)
			}
			d.Search()
		})
	}
}

// TestRoundTrips counts what crosses the network once the person has given the PIN, and
// what each step asks of the table.
func TestRoundTrips(t *testing.T) {
	for profile, want := range map[softcard.Profile]int{softcard.PivApplet: 1, softcard.CanoKey: 1, softcard.GIDS: 2} {
		t.Run(string(profile), func(t *testing.T) {
			d := desk.New(t)
			counting := tabletest.Count(d.Wire.Table)
			d.Wire.Through(func(table.Table) table.Table { return counting })
			p := newPerson(d, profile)
			counting.Take()
			step := func(name string) { t.Logf("%-22s %+v", name, counting.Take()) }
			d.Must(p.Connect())
			step("connect, hello, report")
			d.Must(p.Settle())
			step(name(p.Runs) + " to identify")
			op := p.must(p.Start(p.insertion))
			step("start")
			op = p.must(p.Prove(op.ID, p.Code()))
			step("prove")
			runs := len(p.Runs)
			p.must(p.Ready(op.ID, p.pin))
			step("ready to end")
			if got := p.Runs[runs:]; len(got) != want {
				t.Errorf("%d scripts, want %d", len(got), want)
			}
			if !p.piece.PINIs(p.pin) || want == 1 && p.piece.PUKIs(desk.FirstPUK) {
				t.Error("not all is done")
			}
			p.must(p.Look(op.ID))
			step("look")
			d.Sweep()
			step("sweep of nothing")
		})
	}
}

func name(runs []relay.Run) string {
	if len(runs) == 0 {
		return "no script"
	}
	return "scripts"
}
