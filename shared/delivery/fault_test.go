package delivery

import (
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/user"
)

// over is the world's Deliveries on another table.
func (w *world) over(t table.Table) *Deliveries {
	ds := *w.Deliveries
	users := *w.Users
	ds.Table, users.Table = t, t
	ds.Users = &users
	return &ds
}

// Whatever call of the table fails, before or after it took effect, once or because the
// process is dead, with what answer of the receiver lost: a delivery that was stored ends
// delivered, nothing that came twice is without its flag, and nothing that came is unknown.
func TestFaults(t *testing.T) {
	for _, kind := range []Kind{KindWebhook, KindMail} {
		for _, lost := range []bool{false, true} {
			if lost && kind == KindMail { // see TestMailSystem
				continue
			}
			for _, dies := range []bool{false, true} {
				if lost && dies { // the first fault hides the second
					continue
				}
				for _, after := range []bool{false, true} {
					for _, swept := range []bool{false, true} {
						for n := 1; ; n++ {
							hit := false
							synctest.Test(t, func(t *testing.T) { hit = oneFault(t, kind, lost, dies, after, swept, n) })
							if !hit {
								if n < 4 {
									t.Errorf("%s: only %d calls", kind, n-1)
								}
								break
							}
						}
					}
				}
			}
		}
	}
}

// oneFault has the n-th call of an attempt or a sweep fail, and tells whether there was one.
func oneFault(t *testing.T, kind Kind, lost, dies, after, swept bool, n int) bool {
	w := newWorld(t, tabletest.New(t))
	came := func() int {
		if kind == KindWebhook {
			return len(w.receiver.take())
		}
		mails, err := w.outbox.List(10)
		w.must(err)
		return len(mails)
	}
	var d Delivery
	if kind == KindWebhook {
		d = w.webhook(w.endpoint)
	} else {
		d = w.notice("outbox")
	}
	if lost {
		var once sync.Once
		w.receiver.answers(func(rw http.ResponseWriter, r *http.Request) {
			hanging := false
			once.Do(func() { hanging = true })
			if hanging {
				hangUp(rw, r)
			}
		})
	}
	faulty := tabletest.Fail(w.Table, n, after)
	var over table.Table = faulty
	mortal := dying(w.Table, n, after)
	if dies {
		over = mortal
	}
	var err error
	if swept {
		_, err = w.over(over).Sweep(t.Context(), 100)
	} else {
		_, err = w.over(over).Attempt(t.Context(), w.core, d.ID)
	}
	hit := dies && mortal.left.Load() <= 0 || !dies && faulty.Calls() >= n
	if !hit && err != nil {
		t.Errorf("%s, no fault: %v", kind, err)
	}
	d = w.finish(d)
	times := came()
	// The outbox keeps a mail of the same id twice, as a mailbox may.
	if d.State != Delivered || times < 1 || times > 2 || times == 2 && !d.Repeated {
		t.Errorf("%s, answer lost %t, call %d, dies %t, after it was made %t, swept %t: %d came, and in the end %+v", kind, lost, n, dies, after, swept, times, d)
	}
	if !dies && !lost && times != 1 {
		t.Errorf("%s, call %d that failed once, after it was made %t: %d came", kind, n, after, times)
	}
	if r := w.sweep(); r != (Report{}) {
		t.Errorf("it goes on: %+v", r)
	}
	return hit
}

// Whatever many do at the same time, one delivery is sent once.
func TestConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		w.receiver.answers(func(rw http.ResponseWriter, _ *http.Request) { time.Sleep(time.Second) })
		for range 20 {
			d := w.webhook(w.endpoint)
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					if i%4 == 0 {
						if _, err := w.Sweep(t.Context(), 10); err != nil {
							t.Error(err)
						}
					} else if _, err := w.Attempt(t.Context(), w.core, d.ID); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if n := len(w.receiver.take()); n != 1 {
				t.Errorf("it was sent %d times", n)
			}
			if d = w.reread(d); d.State != Delivered || d.Attempts != 1 || d.Repeated {
				t.Errorf("got %+v", d)
			}
		}
	})
}

// A caller who gives up in the middle leaves a delivery that goes on, and is flagged.
func TestCallerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		w.receiver.answers(hang)
		d := w.webhook(w.endpoint)
		ctx, cancel := contextFor(t, 2*time.Second)
		defer cancel()
		got, err := w.Attempt(ctx, w.core, d.ID)
		if err != nil || got.State != Planned || got.Code != "timeout" || !got.Doubt {
			t.Errorf("got %+v, %v", got, err)
		}
		w.receiver.answers(nil)
		if d = w.finish(d); d.State != Delivered || !d.Repeated || d.Doubt {
			t.Errorf("got %+v", d)
		}
	})
}

// An endpoint that never answers, or asks to be left alone, costs a sweep one attempt, and
// what else waits for it goes on by the schedule. Others do not wait for it.
func TestEndpointThatIsDown(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{"hangs": hang, "asks to be left alone": status(429, "Retry-After", "60")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tabletest.New(t))
				well, _ := w.hook("https://example.com/well")
				w.receiver.answers(func(rw http.ResponseWriter, r *http.Request) {
					if r.URL.Path != "/well" {
						answer(rw, r)
					}
				})
				var all []Delivery
				for range 120 {
					all = append(all, w.webhook(w.endpoint))
				}
				for range 5 {
					w.webhook(well)
				}
				for sweeps := 1; ; sweeps++ {
					began := w.Now()
					r := w.sweep()
					if took := w.Now().Sub(began); took > 20*time.Second {
						t.Errorf("sweep %d took %v", sweeps, took)
					}
					if want := map[bool]int{true: 5}[sweeps == 1]; r.Sent != want || r.Again+r.Dead != 120 {
						t.Errorf("sweep %d: %+v", sweeps, r)
					}
					if w.reread(all[0]).State == Dead {
						if sweeps != 8 || len(w.dead()) != 100 { // a page
							t.Errorf("dead after %d sweeps", sweeps)
						}
						break
					}
					w.pass(12 * time.Hour)
				}
				if n := len(w.receiver.take()); n != 8+5 {
					t.Errorf("%d requests", n)
				}
			})
		})
	}
}

// An endpoint that is well but slow has its share of a sweep, and the next one goes on.
func TestSlowEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		w.receiver.answers(func(http.ResponseWriter, *http.Request) { time.Sleep(2 * time.Second) })
		for range 20 {
			w.webhook(w.endpoint)
		}
		for _, want := range []Report{{Due: 20, Sent: 8, Waiting: 12}, {Due: 12, Sent: 8, Waiting: 4}, {Due: 4, Sent: 4}} {
			if r := w.sweep(); r != want {
				t.Errorf("got %+v, want %+v", r, want)
			}
		}
		// Nothing is begun that there is no time for.
		for range 20 {
			w.webhook(w.endpoint)
		}
		ctx, cancel := contextFor(t, reserve+3*time.Second)
		defer cancel()
		if r, err := w.Sweep(ctx, 100); r.Sent != 2 || !r.Unfinished || err != nil {
			t.Errorf("got %+v, %v", r, err)
		}
	})
}

func TestSuspendedTenant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		d := w.webhook(w.endpoint)
		suspend := func(s bool) {
			_, err := w.Tenants.Suspend(t.Context(), admin, acme, s)
			w.must(err)
		}
		suspend(true)
		if r := w.sweep(); r.Again != 1 || len(w.receiver.take()) != 0 {
			t.Errorf("got %+v", r)
		}
		suspend(false)
		if d = w.finish(d); d.State != Delivered || d.Attempts != 1 {
			t.Errorf("got %+v", d)
		}
	})
}

// One delivery's error does not stop the rest.
func TestBadItem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		w.webhook(w.endpoint)
		bad := tabletest.Text(table.DeliveryKey(acme, "bad"), "bad", table.DeliveryDue(acme, "bad", w.Now()))
		w.must(w.Table.Write(t.Context(), table.Put(bad, table.Absent())))
		if r, err := w.Sweep(t.Context(), 1); err == nil || r.Sent != 1 || r.Errors != 1 || r.Due != 2 {
			t.Errorf("got %+v, %v", r, err)
		}
	})
}

// What mail systems do, and what comes of it.
func TestMailSystem(t *testing.T) {
	server, err := testserver.SMTP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	w := newWorld(t, tabletest.New(t))
	w.Senders.RootCAs = server.RootCAs
	w.messaging(mail.Configuration{ID: "smtp", Name: "SMTP", Kind: mail.KindSMTP, From: "PINs <pins@acme.example>",
		SMTP: mail.SMTPSettings{Host: server.Host, Port: server.TLSPort, Security: mail.SecurityTLS, Username: server.Username, Password: secret.New(server.Password)}})
	for _, test := range []struct {
		name    string
		fault   testserver.SMTPFault
		state   State
		code    string
		doubt   bool
		arrived int // in the end
	}{
		{"takes it", 0, Delivered, "", false, 1},
		{"does not know the address", testserver.SMTPReject, Dead, "smtp.550", false, 0},
		{"does not take the text", testserver.SMTPRejectData, Dead, "smtp.554", false, 0},
		{"not now", testserver.SMTPDefer, Planned, "smtp.451", false, 1},
		{"hangs up", testserver.SMTPCloseEarly, Planned, "smtp.connection", false, 1},
		{"takes it and hangs up", testserver.SMTPCloseAfter, Planned, "smtp.lost", true, 2},
	} {
		before := len(server.Mails())
		d := w.notice("smtp")
		server.Fault(w.ada.Profile.Mail, test.fault)
		after := w.attempt(d)
		if after.State != test.state || after.Code != test.code || after.Doubt != test.doubt || after.Repeated {
			t.Errorf("%s: %+v", test.name, after)
		}
		server.Fault(w.ada.Profile.Mail, 0)
		after = w.finish(d)
		if want := map[bool]State{true: Dead, false: Delivered}[test.state == Dead]; after.State != want || after.Repeated != (test.arrived == 2) || len(server.Mails())-before != test.arrived {
			t.Errorf("%s, in the end: %d arrived, %+v", test.name, len(server.Mails())-before, after)
		}
	}
}

// What a delivery costs, in calls to the table.
func TestCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counting := tabletest.Count(tabletest.New(t))
		w := newWorld(t, counting)
		hook, notice := w.webhook(w.endpoint), w.notice("outbox")
		for _, test := range []struct {
			name string
			do   func()
			want tabletest.Calls
		}{
			{"attempt of a webhook", func() { w.attempt(hook) }, tabletest.Calls{Gets: 2, Writes: 2, Ops: 2}},
			{"attempt of a mail", func() { w.attempt(notice) }, tabletest.Calls{Gets: 4, Writes: 2, Ops: 3}},
			{"sweep, nothing due", func() { w.sweep() }, tabletest.Calls{Queries: table.DeliveryDueShards}},
			{"planning a webhook", func() { hook = w.webhook(w.endpoint) }, tabletest.Calls{Gets: 1, Writes: 1, Ops: 1}}, // the write is the caller's
			{"planning a mail", func() { notice = w.notice("outbox") }, tabletest.Calls{Gets: 3, Writes: 1, Ops: 1}},
			{"sweep, one webhook and one mail due", func() { w.sweep() }, tabletest.Calls{Gets: 4, Queries: table.DeliveryDueShards + 1, Queried: 2 + 3, Writes: 4, Ops: 5}},
		} {
			counting.Take()
			test.do()
			got := counting.Take()
			t.Logf("%s: %+v", test.name, got)
			if got != test.want {
				t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
			}
		}
	})
}

// Neither a signing secret, nor what an endpoint answers, nor an address is in the table in
// the clear or in a log; nor is an endpoint's URL in a log or an audit record.
func TestCanary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "table")
		db, err := bolt.Open(file, bolt.NoSync())
		if err != nil {
			t.Fatal(err)
		}
		w := newWorld(t, db)
		_, second, err := w.RotateSecret(t.Context(), w.core, admin, w.endpoint.ID, time.Hour)
		w.must(err)
		var told strings.Builder
		for _, answer := range []http.HandlerFunc{status(500), status(410), status(200), hangUp, raw("ANSWER-TEXT\r\n\r\n", "")} {
			w.receiver.answers(answer)
			d := w.webhook(w.endpoint)
			d, err := w.over(dying(w.Table, 4, false)).Attempt(t.Context(), w.core, d.ID)
			told.WriteString(d.Sentence())
			if err != nil {
				told.WriteString(err.Error())
			}
			if _, err := w.Test(t.Context(), w.core, admin, w.endpoint.ID); err != nil {
				t.Error(err)
			}
			w.pass(time.Hour)
			_, err = w.Sweep(t.Context(), 10)
			w.must(err)
			if e, err := w.Endpoint(t.Context(), acme, w.endpoint.ID); err == nil && !e.On {
				e.On = true
				if _, err := w.ChangeEndpoint(t.Context(), w.core, admin, e); err != nil {
					t.Error(err)
				}
			}
		}
		w.attempt(w.notice("outbox"))
		if _, err := w.Users.Update(t.Context(), w.core, admin, w.ada.ID, 0, func(p *user.Profile) { p.Mail = "" }, nil); err != nil {
			t.Error(err)
		}
		w.must(db.Close())
		stored, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []secret.Text{w.secret, second} {
			key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s.Reveal(), "whsec_"))
			if err != nil {
				t.Fatal(err)
			}
			for _, form := range []string{string(key), hex.EncodeToString(key), base64.RawStdEncoding.EncodeToString(key), base64.RawURLEncoding.EncodeToString(key)} {
				for where, text := range map[string]string{"the table": string(stored), "the log": w.log.String(), "an error": told.String()} {
					if strings.Contains(text, form) {
						t.Errorf("a secret is in %s", where)
					}
				}
			}
		}
		if strings.Contains(string(stored), "ANSWER-TEXT") {
			t.Error("the table has what an endpoint answered")
		}
		if !strings.Contains(string(stored), "URL-TOKEN") {
			t.Error("the table was not searched")
		}
		for _, text := range []string{"ANSWER-TEXT", "URL-TOKEN", "acme.example"} {
			if strings.Contains(w.log.String()+told.String(), text) {
				t.Errorf("a log or an error has %s", text)
			}
		}
	})
}
