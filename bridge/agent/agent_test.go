package agent_test

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/bridge/journal"
	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/relay"
)

func TestUnblock(t *testing.T) {
	for _, profile := range softcard.Profiles {
		t.Run(string(profile), func(t *testing.T) {
			t.Parallel()
			w, c := newWorld(t), newCard(t, profile)
			conn := w.accept(welcome)
			w.reader.Insert(c)
			p := conn.identify("ident")
			block(t, c)
			state := w.unblock(conn, p, "op", 1)
			if state.Leg != card.Done || !c.PINIs(newPIN) {
				t.Errorf("%s, %v; the PIN is new: %t", state.Leg, state.Failure, c.PINIs(newPIN))
			}
			if profile != softcard.GIDS && !c.PUKIs(newPUK) {
				t.Error("the PUK was not changed")
			}
			if c.Inspect().AdminVerified {
				t.Error("the admin key's rights stay")
			}
			for _, form := range []string{newPIN, newPUK, softcard.FactoryPUK, string(softcard.FactoryAdminKey)} {
				for _, s := range []string{form, hex.EncodeToString([]byte(form)), strings.ToUpper(hex.EncodeToString([]byte(form))), base64.StdEncoding.EncodeToString([]byte(form))} {
					if strings.Contains(w.logs.String(), s) {
						t.Errorf("%s is logged:\n%s", s, w.logs)
					}
				}
			}
		})
	}
}

// piv is a world with a blocked PIV card that is known.
func piv(t *testing.T, change ...func(*agent.Config)) (*world, *connection, *softcard.Card, place) {
	t.Helper()
	return known(t, softcard.PivApplet, change...)
}

func known(t *testing.T, profile softcard.Profile, change ...func(*agent.Config)) (*world, *connection, *softcard.Card, place) {
	t.Helper()
	w, c := newWorld(t, change...), newCard(t, profile)
	conn := w.accept(welcome)
	w.reader.Insert(c)
	p := conn.identify("ident")
	block(t, c)
	return w, conn, c, p
}

// TestLostResult: a result is told again on the next connection until it is acknowledged,
// and the script, asked for again, has the same result and is not run again.
func TestLostResult(t *testing.T) {
	w, conn, c, p := piv(t)
	run := p.next(t, begun(t, p.identity), "op", 1, 1)
	run.PIN = w.seal(run, newPIN)
	first := conn.run(run)
	commands := c.Inspect().Commands
	conn.ws.Close()

	conn = w.accept(welcome)
	if diff := cmp.Diff(first, conn.result("op", 1)); diff != "" {
		t.Errorf("told again (-first +again):\n%s", diff)
	}
	if again := conn.run(run); !cmp.Equal(first, again) {
		t.Errorf("asked again: %+v", again)
	}
	conn.ack(first)
	conn.ws.Close()
	conn = w.accept(welcome)
	conn.silence(300 * time.Millisecond)
	if again := conn.run(run); !again.Interrupted {
		t.Errorf("asked again after it was acknowledged: %+v", again)
	}
	if got := c.Inspect().Commands; got != commands {
		t.Errorf("the card got %d more commands", got-commands)
	}
}

// TestConnectionLostInScript: the script goes on, and its result is told on the next one.
func TestConnectionLostInScript(t *testing.T) {
	w, conn, c, p := piv(t)
	run := p.next(t, begun(t, p.identity), "op", 1, 1)
	run.PIN = w.seal(run, newPIN)
	c.Inject(softcard.Fault{Step: 2, Delay: 300 * time.Millisecond})
	conn.send(relay.Message{Run: &run})
	time.Sleep(100 * time.Millisecond)
	conn.ws.Close()
	if r := w.accept(welcome).result("op", 1); r.Run.End != apdu.Done || !c.PINIs(newPIN) {
		t.Errorf("%+v", r)
	}
}

// TestKilled: what was begun and not ended is answered as interrupted, and not run.
func TestKilled(t *testing.T) {
	w, conn, c, p := piv(t)
	run := p.next(t, begun(t, p.identity), "op", 1, 1)
	run.PIN = w.seal(run, newPIN)
	if v, err := journal.New(w.memory).Begin(run, time.Now()); v.Action != journal.Run || err != nil {
		t.Fatal(v, err)
	} // of a process that is no more
	commands := c.Inspect().Commands
	if r := conn.run(run); !r.Interrupted || r.Refusal != "" {
		t.Errorf("%+v", r)
	}
	conn.ws.Close()
	if r := w.accept(welcome).result("op", 1); !r.Interrupted {
		t.Errorf("told by itself: %+v", r)
	}
	if got := c.Inspect().Commands; got != commands {
		t.Errorf("the card got %d commands", got-commands)
	}
}

// TestRefusals: the card gets nothing, and what was refused is never run.
func TestRefusals(t *testing.T) {
	other := func(change func(*relay.Binding)) func(*world, *relay.Run) {
		return func(w *world, r *relay.Run) {
			b := relay.Binding{Tenant: "acme", Operation: r.Script.Operation, Credential: r.Credential, Fence: r.Script.Fence}
			change(&b)
			sealed := *r
			sealed.Script.Operation, sealed.Credential, sealed.Script.Fence = b.Operation, b.Credential, b.Fence
			r.PIN = w.seal(sealed, newPIN)
		}
	}
	for _, test := range []struct {
		name   string
		change func(*world, *relay.Run)
		want   relay.Refusal
	}{
		{"fence", func(_ *world, r *relay.Run) { r.Script.Fence = 4 }, relay.RefusedFence},
		{"fence of another operation", func(_ *world, r *relay.Run) { r.Script.Fence = 5 }, relay.RefusedFence},
		{"deadline", func(_ *world, r *relay.Run) { r.Script.Deadline = time.Now().Add(-30 * time.Second) }, relay.RefusedDeadline},
		{"deadline far away", func(_ *world, r *relay.Run) { r.Script.Deadline = time.Now().Add(25 * time.Hour) }, relay.RefusedDeadline},
		{"another insertion", func(_ *world, r *relay.Run) { r.Insertion += "0" }, relay.RefusedCard},
		{"another reader", func(_ *world, r *relay.Run) { r.Reader = "Other" }, relay.RefusedCard},
		{"card out", func(w *world, _ *relay.Run) { w.reader.Remove(); time.Sleep(50 * time.Millisecond) }, relay.RefusedCard},
		{"nothing held", func(_ *world, r *relay.Run) { r.Continue = true }, relay.RefusedHold},
		{"weak PIN", func(w *world, r *relay.Run) { r.PIN = w.seal(*r, "123") }, relay.RefusedPIN},
		{"no PIN", func(_ *world, r *relay.Run) { r.PIN = nil }, relay.RefusedNoPIN},
		{"PIN for another operation", other(func(b *relay.Binding) { b.Operation = "former" }), relay.RefusedNoPIN},
		{"PIN for another credential", other(func(b *relay.Binding) { b.Credential = "C2" }), relay.RefusedNoPIN},
		{"PIN for another fence", other(func(b *relay.Binding) { b.Fence = 5 }), relay.RefusedNoPIN},
		{"PIN that was tampered with", func(_ *world, r *relay.Run) { r.PIN.Ciphertext[0] ^= 1 }, relay.RefusedNoPIN},
		{"no policy", func(_ *world, r *relay.Run) { r.Policy = nil }, relay.RefusedScript},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w, conn, c, p := piv(t)
			// An operation with fence 5 has been here.
			state := begun(t, p.identity)
			earlier := p.next(t, state, "earlier", 1, 5)
			earlier.Insertion = "gone"
			conn.ack(conn.run(earlier))

			run := p.next(t, state, "op", 1, 6)
			run.PIN = w.seal(run, newPIN)
			before := c.Inspect()
			test.change(w, &run)
			r := conn.run(run)
			if r.Refusal != test.want {
				t.Fatalf("%+v (%v), want %s", r, r.Run.Err, test.want)
			}
			if test.want == relay.RefusedPIN {
				codes := []string{}
				for _, v := range r.Violations {
					codes = append(codes, v.Code)
				}
				if diff := cmp.Diff([]string{"tooShort", "sequential"}, codes); diff != "" {
					t.Errorf("violations (-want +got):\n%s", diff)
				}
			}
			if after := c.Inspect(); after.Commands != before.Commands {
				t.Errorf("the card got %d commands", after.Commands-before.Commands)
			}
			// Were it run now, whoever reads the refusal late would be wrong.
			if test.want != relay.RefusedFence {
				run.PIN, run.Continue, run.Policy = w.seal(run, newPIN), false, p.next(t, state, "op", 1, 6).Policy
				run.Script.Deadline, run.Insertion, run.Reader = time.Now().Add(time.Minute), p.insertion, p.reader
				if again := conn.run(run); again.Refusal != test.want {
					t.Errorf("asked again: %+v", again)
				}
			}
			if c.Inspect().SecretBytes != before.SecretBytes {
				t.Error("a secret reached the card")
			}
		})
	}
}

// TestClock: deadlines are by the cloud's clock.
func TestClock(t *testing.T) {
	w, c := newWorld(t), newCard(t, softcard.PivApplet)
	in := welcome
	in.Time = time.Now().Add(-3 * time.Hour)
	conn := w.accept(in)
	w.reader.Insert(c)
	name, insertion := conn.inserted()
	script, err := card.Identify(false).Script(card.Materials{})
	if err != nil {
		t.Fatal(err)
	}
	for part, test := range []struct {
		deadline time.Duration
		want     relay.Refusal
	}{{time.Minute, ""}, {-time.Minute, relay.RefusedDeadline}} {
		r := conn.run(relay.Run{Reader: name, Insertion: insertion, Script: apdu.Script{
			Operation: "ident", Part: part + 1, Deadline: in.Time.Add(test.deadline), Steps: script.Steps}})
		if r.Refusal != test.want {
			t.Errorf("%v after the cloud's now: %q", test.deadline, r.Refusal)
		}
	}
}

// TestHold: the second part of GIDS comes in time, too late, and after the card was out.
func TestHold(t *testing.T) {
	begin := func(t *testing.T) (*world, *connection, *softcard.Card, place, relay.Run) {
		w, conn, c, p := known(t, softcard.GIDS)
		state := begun(t, p.identity)
		run := p.next(t, state, "op", 1, 1)
		run.PIN = w.seal(run, newPIN)
		result := conn.run(run)
		if again := conn.run(run); !cmp.Equal(result, again) { // which must not end the hold
			t.Errorf("asked again: %+v", again)
		}
		state, err := state.Next(result.Run)
		if err != nil || state.Finished() {
			t.Fatalf("%+v, %v", state, err)
		}
		run = p.next(t, state, "op", 2, 1)
		run.PIN = w.seal(run, newPIN)
		return w, conn, c, p, run
	}
	t.Run("in time", func(t *testing.T) {
		t.Parallel()
		_, conn, c, _, run := begin(t)
		if r := conn.run(run); r.Run.End != apdu.Done || !c.PINIs(newPIN) {
			t.Errorf("%+v", r)
		}
	})
	t.Run("too late", func(t *testing.T) {
		t.Parallel()
		w, conn, c, _, run := begin(t)
		before := c.Inspect().Commands
		time.Sleep(4100 * time.Millisecond)
		w.logs.wait(t, "card let go")
		if r := conn.run(run); r.Refusal != relay.RefusedHold || c.Inspect().Commands != before {
			t.Errorf("%+v, %d commands", r, c.Inspect().Commands-before)
		}
	})
	t.Run("another credential", func(t *testing.T) {
		t.Parallel()
		w, conn, _, _, run := begin(t)
		run.Credential = "C2"
		run.PIN = w.seal(run, newPIN)
		if r := conn.run(run); r.Refusal != relay.RefusedHold {
			t.Errorf("%+v", r)
		}
	})
	t.Run("card out and in", func(t *testing.T) {
		t.Parallel()
		w, conn, c, _, run := begin(t)
		w.reader.Remove()
		w.reader.Insert(c)
		conn.inserted()
		if r := conn.run(run); r.Refusal != relay.RefusedCard {
			t.Errorf("%+v", r)
		}
	})
	t.Run("the bridge stops", func(t *testing.T) {
		t.Parallel()
		w, _, _, _, _ := begin(t)
		start := time.Now()
		w.stop()
		if err := w.waitEnd(); err != nil || time.Since(start) > 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
	t.Run("weak PIN with the first part", func(t *testing.T) {
		t.Parallel()
		w, conn, c, p := known(t, softcard.GIDS)
		run := p.next(t, begun(t, p.identity), "op", 1, 1)
		run.PIN = w.seal(run, "1234")
		before := c.Inspect().Commands
		if r := conn.run(run); r.Refusal != relay.RefusedPIN || c.Inspect().Commands != before {
			t.Errorf("%+v, %d commands", r, c.Inspect().Commands-before)
		}
	})
}

// TestFaults pulls and resets the card before every command, and loses every answer: the
// result says so, and the bridge goes on.
func TestFaults(t *testing.T) {
	w := newWorld(t)
	conn := w.accept(welcome)
	fence := int64(0)
	for step := 1; step <= 6; step++ {
		for kind, name := range map[softcard.Kind]string{softcard.Pull: "pulled", softcard.ResetCard: "reset", softcard.Lose: "answer lost", softcard.Empty: "empty"} {
			fence++
			c := newCard(t, softcard.PivApplet)
			w.reader.Insert(c)
			p := conn.identify("ident")
			c.Inject(softcard.Fault{Step: step, Kind: kind})
			operation := strings.ReplaceAll(name, " ", "-") + string(rune('0'+step))
			run := p.next(t, begun(t, p.identity), operation, 1, fence)
			run.PIN = w.seal(run, newPIN)
			r := conn.run(run)
			if r.Refusal != "" || r.Run.End != apdu.Lost || r.Run.Step != step-1 || !r.Run.Uncertain {
				t.Errorf("%s at %d: %+v", name, step, r)
			}
			conn.ack(r)
			w.reader.Remove()
		}
	}
}

// TestBusy: another program holds the card.
func TestBusy(t *testing.T) {
	limits := reader.DefaultLimits
	limits.Turn = 100 * time.Millisecond
	r := softcard.NewReader()
	source := reader.NewSoft("Soft", r, softcard.ErrReset, limits)
	w := newWorld(t, func(c *agent.Config) { c.Source = source })
	conn := w.accept(welcome)
	r.Insert(newCard(t, softcard.PivApplet))
	p := conn.identify("ident")
	session, err := source.Open(t.Context(), "Soft", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	run := p.next(t, begun(t, p.identity), "op", 1, 1)
	run.PIN = w.seal(run, newPIN)
	if r := conn.run(run); r.Refusal != relay.RefusedReader {
		t.Errorf("%+v", r)
	}
}

// TestUnwritable: without its record a bridge runs nothing.
func TestUnwritable(t *testing.T) {
	failing := &failing{}
	w, conn, c, p := piv(t, func(c *agent.Config) { c.Journal = journal.New(failing) })
	failing.err = errors.New("disk full")
	run := p.next(t, begun(t, p.identity), "op", 1, 1)
	run.PIN = w.seal(run, newPIN)
	before := c.Inspect().Commands
	if r := conn.run(run); r.Refusal != relay.RefusedScript || r.Run.Err == nil || !strings.Contains(r.Run.Err.Error(), "record") {
		t.Errorf("%+v", r)
	}
	failing.err = nil
	if r := conn.run(run); r.Refusal != relay.RefusedScript || c.Inspect().Commands != before {
		t.Errorf("once refused, then: %+v", r)
	}
	w.logs.wait(t, "disk full")
}

type failing struct {
	journal.Map
	err error
}

func (f *failing) Update(credential string, change func(journal.Record) (journal.Record, bool)) error {
	if f.err != nil {
		return f.err
	}
	return f.Map.Update(credential, change)
}

func TestGoodbye(t *testing.T) {
	for _, code := range []relay.GoodbyeCode{relay.Update, relay.Revoked, relay.Replaced} {
		w := newWorld(t)
		w.accept(welcome).send(relay.Message{Goodbye: &relay.Goodbye{Code: code, Reason: "because"}})
		err := w.waitEnd()
		var goodbye *agent.GoodbyeError
		if !errors.As(err, &goodbye) || goodbye.Code != code || goodbye.Reason != "because" {
			t.Errorf("%s: %v", code, err)
		}
		if n := w.dialled(); n != 1 {
			t.Errorf("%s: dialled %d times", code, n)
		}
	}
}

func TestRevokedAtDial(t *testing.T) {
	cloud := newCloud(t)
	cloud.refuse(http.StatusForbidden, time.Time{})
	w := newWorld(t, func(c *agent.Config) { c.Enrolment = cloud.enrolment })
	var goodbye *agent.GoodbyeError
	if err := w.waitEnd(); !errors.As(err, &goodbye) || goodbye.Code != relay.Revoked {
		t.Errorf("%v", err)
	}
}

// TestWrongClock: the token is refused, and the log says what to do; once it is taken the
// bridge is there.
func TestWrongClock(t *testing.T) {
	cloud := newCloud(t)
	cloud.refuse(http.StatusUnauthorized, time.Now().Add(time.Hour))
	w := newWorld(t, func(c *agent.Config) { c.Enrolment = cloud.enrolment })
	w.logs.wait(t, "s behind; set it right")
	cloud.refuse(0, time.Time{})
	cloud.accept(welcome)
	w.logs.wait(t, "msg=connected")
}

func TestReconnect(t *testing.T) {
	w := newWorld(t)
	last := ""
	for range 3 {
		conn := w.accept(welcome)
		if conn.token <= last {
			t.Errorf("token %s after %s", conn.token, last)
		}
		last = conn.token
		conn.ws.Close()
	}
	// As planned, and not during a script.
	in := welcome
	in.ReconnectSeconds = 1
	conn := w.accept(in)
	c := newCard(t, softcard.PivApplet)
	w.reader.Insert(c)
	p := conn.identify("ident")
	c.Inject(softcard.Fault{Step: 1, Delay: 1500 * time.Millisecond})
	run := p.next(t, begun(t, p.identity), "op", 1, 1)
	run.PIN = w.seal(run, newPIN)
	if r := conn.run(run); r.Run.End != apdu.Done {
		t.Errorf("%+v", r)
	}
	conn.closed()
	w.accept(welcome)
}

// TestDeadLine: without an answer to its pings the bridge connects anew.
func TestDeadLine(t *testing.T) {
	if testing.Short() {
		t.Skip("12 s")
	}
	t.Parallel()
	w := newWorld(t)
	in := welcome
	in.KeepAliveSeconds = 1
	conn := w.accept(in)
	start := time.Now()
	for range 3 {
		conn.want("ping", func(m relay.Message) bool { return m.Ping != nil })
	}
	if took := time.Since(start); took > patience {
		t.Errorf("3 pings took %v", took)
	}
	late := time.After(2 * patience)
	select {
	case <-w.conns:
	case <-late:
		t.Error("a dead line is not noticed")
	}
}

// TestStop: a script that runs is finished, its result told, and only then the bridge ends.
func TestStop(t *testing.T) {
	w, conn, c, p := piv(t)
	run := p.next(t, begun(t, p.identity), "op", 1, 1)
	run.PIN = w.seal(run, newPIN)
	c.Inject(softcard.Fault{Step: 2, Delay: 300 * time.Millisecond})
	conn.send(relay.Message{Run: &run})
	time.Sleep(100 * time.Millisecond)
	w.stop()
	r := conn.result("op", 1)
	conn.ack(r)
	if err := w.waitEnd(); err != nil || r.Run.End != apdu.Done || !c.PINIs(newPIN) {
		t.Errorf("%v, %+v", err, r)
	}
}

// TestReport: readers and cards as they come and go, each insertion with another name.
func TestReport(t *testing.T) {
	w := newWorld(t)
	conn := w.accept(welcome)
	seen := map[string]bool{}
	var last int64
	for range 3 {
		w.reader.Insert(newCard(t, softcard.CanoKey))
		m := conn.want("card", func(m relay.Message) bool {
			return m.Readers != nil && len(m.Readers.Readers) == 1 && m.Readers.Readers[0].Card != nil
		}).Readers
		insertion := m.Readers[0].Card.Insertion
		if seen[insertion] || m.Sequence <= last || len(m.Readers[0].Card.ATR) == 0 {
			t.Errorf("%+v after %v", m, seen)
		}
		seen[insertion], last = true, m.Sequence
		w.reader.Remove()
		m = conn.want("no card", func(m relay.Message) bool {
			return m.Readers != nil && len(m.Readers.Readers) == 1 && m.Readers.Readers[0].Card == nil
		}).Readers
		if m.Sequence <= last {
			t.Errorf("sequence %d after %d", m.Sequence, last)
		}
		last = m.Sequence
	}
}
