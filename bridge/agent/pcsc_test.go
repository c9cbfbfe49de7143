//go:build linux && cgo && !nopcsc

package agent_test

import (
	"testing"
	"time"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/softcard/pcscd"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/relay"
)

// TestPCSC unblocks cards through a real service, which is killed within a script and comes
// back.
func TestPCSC(t *testing.T) {
	d := pcscd.Start(t)
	t.Setenv("PCSCLITE_CSOCK_NAME", d.Socket())
	w := newWorld(t, func(c *agent.Config) { c.Source = reader.NewPCSC(reader.DefaultLimits) })
	conn := w.accept(welcome)
	fence := int64(0)
	for _, profile := range softcard.Profiles {
		fence++
		c := newCard(t, profile)
		remove := d.Insert(0, c)
		p := conn.identify("ident")
		block(t, c)
		if state := w.unblock(conn, p, "op-"+string(profile), fence); state.Leg != card.Done || !c.PINIs(newPIN) {
			t.Errorf("%s: %s, %v", profile, state.Leg, state.Failure)
		}
		remove()
		conn.want("report without a card", func(m relay.Message) bool {
			return m.Readers != nil && m.Readers.Readers[0].Card == nil
		})
	}

	c := newCard(t, softcard.PivApplet)
	d.Insert(0, c)
	p := conn.identify("ident")
	run := p.next(t, begun(t, p.identity), "killed", 1, fence+1)
	run.PIN = w.seal(run, newPIN)
	c.Inject(softcard.Fault{Step: 2, Delay: 500 * time.Millisecond})
	conn.send(relay.Message{Run: &run})
	time.Sleep(250 * time.Millisecond)
	d.Kill()
	r := conn.result("killed", 1)
	if r.Refusal != "" || r.Run.End != apdu.Lost || !r.Run.Uncertain {
		t.Errorf("killed within a script: %+v", r)
	}
	conn.ack(r)
	d.Run()
	p = conn.identify("again")
	block(t, c)
	if state := w.unblock(conn, p, "op-again", fence+2); state.Leg != card.Done || !c.PINIs(newPIN) {
		t.Errorf("%s, %v", state.Leg, state.Failure)
	}
}
