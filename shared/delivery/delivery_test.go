package delivery

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/user"
)

// verify is a receiver's check of a request, written from the text of Standard Webhooks and
// of RFC 2104. It returns how many of the signatures are the secret's.
func verify(t testing.TB, g got, secret string) (right int) {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil || !strings.HasPrefix(secret, "whsec_") || len(key) < 24 || len(key) > 64 {
		t.Fatalf("a secret of %d bytes, %v", len(key), err)
	}
	inner, outer := make([]byte, 64), make([]byte, 64)
	copy(inner, key)
	copy(outer, key)
	for i := range 64 {
		inner[i] ^= 0x36
		outer[i] ^= 0x5c
	}
	signed := g.Get("webhook-id") + "." + g.Get("webhook-timestamp") + "." + string(g.body)
	h := sha256.Sum256(append(inner, signed...))
	h = sha256.Sum256(append(outer, h[:]...))
	want := "v1," + base64.StdEncoding.EncodeToString(h[:])
	for signature := range strings.SplitSeq(g.Get("webhook-signature"), " ") {
		if signature == want {
			right++
		}
	}
	return right
}

// The example that the libraries of Standard Webhooks are tested with.
func TestSignatureVector(t *testing.T) {
	key, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	got := signatures([][]byte{key}, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestWebhook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		d := w.webhook(w.endpoint)
		after := w.attempt(d)
		if after.State != Delivered || after.Attempts != 1 || after.Code != "" || after.Doubt || after.Repeated || !after.EndedAt.Equal(second(w.Now())) {
			t.Errorf("got %+v", after)
		}
		requests := w.receiver.take()
		if len(requests) != 1 {
			t.Fatalf("%d requests", len(requests))
		}
		g := requests[0]
		if string(g.body) != string(d.Body) || g.path != "/hooks" || g.Get("Content-Type") != "application/json" || g.Get("webhook-id") != d.ID {
			t.Errorf("got %s %+v", g.body, g)
		}
		if verify(t, g, w.secret.Reveal()) != 1 {
			t.Errorf("the signature %q is not right", g.Get("webhook-signature"))
		}
		// It is over: nothing sends it again.
		w.pass(time.Hour)
		w.attempt(d)
		if r := w.sweep(); r != (Report{}) || len(w.receiver.take()) != 0 {
			t.Errorf("sent again: %+v", r)
		}
		// Nor can a second one be made under its id.
		_, ops, err := w.Webhook(t.Context(), w.core, w.endpoint.ID, Webhook{ID: d.ID, Body: body})
		if err == nil {
			err = w.Table.Write(t.Context(), ops...)
		}
		if !errors.Is(err, problem.ErrConflict) {
			t.Errorf("a second delivery of one id: %v", err)
		}
	})
}

// What endpoints do, and what comes of it.
func TestAnswers(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer http.HandlerFunc
		state  State
		code   string
		doubt  bool
		next   time.Duration // after the attempt, of Planned
		took   time.Duration // of the attempt, at most, besides the 5 s that crypto/tls takes to say goodbye to who does not read
	}{
		{"200", status(200), Delivered, "", false, 0, 0},
		{"299", status(299), Delivered, "", false, 0, 0},
		{"410", status(410), Dead, "http.410", false, 0, 0},
		{"400", status(400), Planned, "http.400", false, 10 * time.Second, 0},
		{"404, Retry-After is shorter", status(404, "Retry-After", "2"), Planned, "http.404", false, 10 * time.Second, 0},
		{"429", status(429, "Retry-After", "120"), Planned, "http.429", false, 2 * time.Minute, 0},
		{"503 for a year", status(503, "Retry-After", "31536000"), Planned, "http.503", false, 12 * time.Hour, 0},
		{"503, more seconds than there are", status(503, "Retry-After", "99999999999999999999"), Planned, "http.503", false, 10 * time.Second, 0},
		{"503 until then", status(503, "Retry-After", "Sat, 01 Jan 2000 01:00:00 GMT"), Planned, "http.503", false, time.Hour, 0},
		{"503 until long ago", status(503, "Retry-After", "Fri, 01 Jan 1999 01:00:00 GMT"), Planned, "http.503", false, 10 * time.Second, 0},
		{"503 until nonsense", status(503, "Retry-After", "soon"), Planned, "http.503", false, 10 * time.Second, 0},
		{"redirect to the metadata service", status(307, "Location", "http://169.254.169.254/latest/meta-data/"), Planned, "redirected", false, 10 * time.Second, 0},
		{"redirect to loopback", status(308, "Location", "https://127.0.0.1/"), Planned, "redirected", false, 10 * time.Second, 0},
		{"redirect to itself", status(302, "Location", "/hooks"), Planned, "redirected", false, 10 * time.Second, 0},
		{"no answer", hang, Planned, "timeout", true, 10 * time.Second, 10 * time.Second},
		{"hangs up", hangUp, Planned, "noAnswer", true, 10 * time.Second, 0},
		{"slow body", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte("."))
				_ = http.NewResponseController(w).Flush()
				time.Sleep(100 * time.Millisecond)
			}
		}, Delivered, "", false, 0, 0},
		{"huge body", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}, Delivered, "", false, 0, 0},
		{"endless header", raw("HTTP/1.1 200 OK\r\n", "X-Filler: "+strings.Repeat("x", 1000)+"\r\n"), Planned, "noAnswer", true, 10 * time.Second, 0},
		{"endless line", raw("HTTP/1.1 200 ", strings.Repeat("x", 1000)), Planned, "noAnswer", true, 10 * time.Second, 0},
		{"endless 1xx", raw("", "HTTP/1.1 103 Early Hints\r\n\r\n"), Planned, "noAnswer", true, 10 * time.Second, 0},
		{"no HTTP", raw("220 mail.example.com ESMTP\r\n", ""), Planned, "noAnswer", true, 10 * time.Second, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tabletest.New(t))
				w.receiver.answers(test.answer)
				d := w.webhook(w.endpoint)
				began := w.Now()
				after := w.attempt(d)
				if took := w.Now().Sub(began); took > max(test.took, 5*time.Second) {
					t.Errorf("it took %v, want at most %v", took, test.took)
				}
				if after.State != test.state || after.Code != test.code || after.Doubt != test.doubt || after.Repeated {
					t.Errorf("got %+v", after)
				}
				if next := after.At.Sub(w.Now()); after.State == Planned && next != test.next {
					t.Errorf("the next attempt is in %v, want %v", next, test.next)
				}
				if n := len(w.receiver.take()); n != 1 {
					t.Errorf("%d requests", n)
				}
				if (after.Sentence() == "") != (after.Code == "") {
					t.Errorf("the sentence is %q", after.Sentence())
				}
			})
		})
	}
}

// raw answers with text and then with more of it without end, or if that is "" closes.
func raw(text, more string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		for _, err := conn.Write([]byte(text)); err == nil && more != ""; _, err = conn.Write([]byte(more)) {
		}
	}
}

// An endpoint that fails is tried again on schedule, then the delivery is dead, until
// somebody has it sent again.
func TestScheduleAndDeadLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		w.receiver.answers(status(500))
		d := w.webhook(w.endpoint)
		w.attempt(d)
		began := w.Now()
		var at []time.Duration
		for {
			d = w.reread(d)
			if d.State.Ended() {
				break
			}
			w.pass(d.At.Sub(w.Now()) - time.Second)
			if r := w.sweep(); r != (Report{}) {
				t.Errorf("a second too early: %+v", r)
			}
			w.pass(time.Second)
			at = append(at, w.Now().Sub(began))
			if r := w.sweep(); r.Due != 1 || r.Again+r.Dead != 1 {
				t.Errorf("after %v: %+v", at, r)
			}
		}
		const s, m, h = time.Second, time.Minute, time.Hour
		want := []time.Duration{10 * s, 70 * s, 6*m + 10*s, 36*m + 10*s, 2*h + 36*m + 10*s, 8*h + 36*m + 10*s, 20*h + 36*m + 10*s}
		if diff := cmp.Diff(want, at); diff != "" {
			t.Errorf("attempts after the first (-want +got):\n%s", diff)
		}
		if d.State != Dead || d.Code != "http.500" || d.Attempts != 8 || d.Repeated || d.Doubt || len(w.receiver.take()) != 8 {
			t.Errorf("in the end: %+v", d)
		}
		if diff := cmp.Diff([]string{d.ID}, w.dead()); diff != "" {
			t.Errorf("dead (-want +got):\n%s", diff)
		}
		if item, err := w.Table.Get(t.Context(), table.DeliveryKey(acme, d.ID)); err != nil || item.ExpiresAt.Sub(w.Now()) != 30*24*h {
			t.Errorf("kept until %v, %v", item.ExpiresAt, err)
		}

		w.receiver.answers(nil)
		again, err := w.Resend(t.Context(), w.core, admin, d.ID)
		if err != nil || again.State != Delivered || again.Attempts != 1 || again.Repeated {
			t.Errorf("sent again: %+v, %v", again, err)
		}
		if requests := w.receiver.take(); len(requests) != 1 || requests[0].Get("webhook-id") != d.ID {
			t.Errorf("got %+v", requests)
		}
		if n := w.audited(); len(w.dead()) != 0 || n["delivery.dead"] != 1 || n["delivery.resent"] != 1 {
			t.Errorf("dead: %v; audit: %v", w.dead(), n)
		}
		// A second copy of one that arrived is told as such.
		if again, err = w.Resend(t.Context(), w.core, admin, d.ID); err != nil || again.State != Delivered || !again.Repeated {
			t.Errorf("sent again: %+v, %v", again, err)
		}
	})
}

func TestDrop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		w.receiver.answers(status(500))
		d := w.attempt(w.webhook(w.endpoint))
		if _, err := w.Resend(t.Context(), w.core, admin, d.ID); !isState(err) {
			t.Errorf("resend of one that is planned: %v", err)
		}
		for range 2 {
			if d, err := w.Drop(t.Context(), w.core, admin, d.ID); err != nil || d.State != Dropped {
				t.Errorf("drop: %+v, %v", d, err)
			}
		}
		w.pass(time.Hour)
		if r := w.sweep(); r != (Report{}) || w.audited()["delivery.dropped"] != 1 {
			t.Errorf("after it was dropped: %+v, %v", r, w.audited())
		}
		w.receiver.answers(nil)
		done := w.attempt(w.webhook(w.endpoint))
		if _, err := w.Drop(t.Context(), w.core, admin, done.ID); !isState(err) {
			t.Errorf("drop of one that is delivered: %v", err)
		}
		// While it is sent nobody gets at it.
		w.receiver.answers(func(rw http.ResponseWriter, _ *http.Request) {
			list, _, err := w.List(t.Context(), acme, false, "", 1)
			if err != nil || list[0].State != Claimed {
				t.Errorf("being sent: %+v, %v", list, err)
				return
			}
			if _, err := w.Drop(t.Context(), w.core, admin, list[0].ID); !isState(err) {
				t.Errorf("drop while it is sent: %v", err)
			}
		})
		w.pass(time.Second) // so that it is the newest
		if d := w.attempt(w.webhook(w.endpoint)); d.State != Delivered {
			t.Errorf("got %+v", d)
		}
	})
}

// 410 turns an endpoint off: what is still to be sent there is given up, not sent. An
// endpoint that was given another URL meanwhile stays on.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		first, second := w.webhook(w.endpoint), w.webhook(w.endpoint)
		w.receiver.answers(status(410))
		w.attempt(first)
		e, err := w.Endpoint(t.Context(), acme, w.endpoint.ID)
		if err != nil || e.On || !e.Gone || w.audited()["webhook.turnedOff"] != 1 {
			t.Errorf("got %+v, %v, %v", e, err, w.audited())
		}
		if r := w.sweep(); r.Dead != 1 || w.reread(second).Code != "endpointOff" || len(w.receiver.take()) != 1 {
			t.Errorf("the second: %+v %+v", r, w.reread(second))
		}
		var never *Undeliverable
		if _, _, err := w.Webhook(t.Context(), w.core, e.ID, Webhook{ID: "x", Body: body}); !isState(err) || !errors.As(err, &never) || never.Code != "endpointOff" {
			t.Errorf("a webhook to an endpoint that is off: %v", err)
		}
		if _, err := w.Resend(t.Context(), w.core, admin, first.ID); !isState(err) {
			t.Errorf("resend to an endpoint that is off: %v", err)
		}

		e.On = true
		if e, err = w.ChangeEndpoint(t.Context(), w.core, admin, e); err != nil || !e.On || e.Gone {
			t.Fatalf("turned on: %+v, %v", e, err)
		}
		w.receiver.answers(func(rw http.ResponseWriter, r *http.Request) {
			e.URL = "https://example.com/elsewhere"
			if e, err = w.ChangeEndpoint(t.Context(), w.core, admin, e); err != nil {
				t.Error(err)
			}
			rw.WriteHeader(410)
		})
		if d := w.attempt(w.webhook(e)); d.State != Dead {
			t.Errorf("got %+v", d)
		}
		if e, err = w.Endpoint(t.Context(), acme, e.ID); err != nil || !e.On {
			t.Errorf("got %+v, %v", e, err)
		}
		third := w.webhook(e)
		w.must(w.DeleteEndpoint(t.Context(), w.core, admin, e.ID))
		if d := w.attempt(third); d.State != Dead || d.Code != "endpointGone" {
			t.Errorf("after the endpoint was deleted: %+v", d)
		}
		if _, err := w.Resend(t.Context(), w.core, admin, third.ID); !isState(err) || errors.Is(err, problem.ErrNotFound) {
			t.Errorf("resend to an endpoint that was deleted: %v", err)
		}
	})
}

func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		secrets := []string{w.secret.Reveal()}
		rotate := func(overlap time.Duration) error {
			_, text, err := w.RotateSecret(t.Context(), w.core, admin, w.endpoint.ID, overlap)
			if err == nil {
				secrets = append(secrets, text.Reveal())
			}
			return err
		}
		// signs tells which of the secrets the next webhook is signed with.
		signs := func(want ...int) {
			t.Helper()
			w.attempt(w.webhook(w.endpoint))
			g := w.receiver.take()[0]
			var with []int
			for i, s := range secrets {
				if verify(t, g, s) == 1 {
					with = append(with, i)
				}
			}
			if n := len(strings.Fields(g.Get("webhook-signature"))); cmp.Diff(want, with) != "" || n != len(want) {
				t.Errorf("%d signatures, by the secrets %v; want %v", n, with, want)
			}
		}
		w.must(rotate(24 * time.Hour))
		signs(0, 1)
		w.pass(23 * time.Hour)
		w.must(rotate(24 * time.Hour)) // prolongs nothing
		signs(0, 1, 2)
		w.pass(time.Hour)
		signs(1, 2)
		w.must(rotate(24 * time.Hour))
		w.must(rotate(24 * time.Hour))
		signs(1, 2, 3, 4)
		if err := rotate(time.Hour); !isState(err) {
			t.Errorf("a fifth secret: %v", err)
		}
		w.must(rotate(0))
		signs(5)
		for _, overlap := range []time.Duration{-1, MaxOverlap + 1} {
			if err := rotate(overlap); err == nil {
				t.Errorf("an overlap of %v was taken", overlap)
			}
		}
	})
}

func TestMail(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	d := w.attempt(w.notice("outbox"))
	if d.State != Delivered || w.audited()["delivery.delivered"] != 1 {
		t.Errorf("got %+v, %v", d, w.audited())
	}
	mails, err := w.outbox.List(10)
	if err != nil || len(mails) != 1 || mails[0].Subject != "Acme & Co: first print job" || mails[0].To != "<ada@acme.example>" {
		t.Errorf("got %d mails, %v", len(mails), err)
	}

	// It goes where the user is when it is sent.
	d = w.notice("outbox")
	move := func(address string) {
		if w.ada, err = w.Users.Update(t.Context(), w.core, admin, w.ada.ID, 0, func(p *user.Profile) { p.Mail = address }, nil); err != nil {
			t.Fatal(err)
		}
	}
	move("lovelace@acme.example")
	if d = w.attempt(d); d.State != Delivered {
		t.Errorf("got %+v", d)
	}
	if mails, err = w.outbox.List(10); err != nil || len(mails) != 2 || mails[0].To != "<lovelace@acme.example>" && mails[1].To != "<lovelace@acme.example>" {
		t.Errorf("got %d mails, %v", len(mails), err)
	}

	store := mail.Store{Table: w.Table, Tenant: acme, Keys: w.core.Keys}
	w.must(w.Table.Write(t.Context(), store.PutTemplate(mail.Template{ID: "own", Kind: mail.Notice, Name: "Own", Subject: "{{event}}", Text: "{{message}}"}),
		store.PutTemplate(mail.Template{ID: "expiry", Kind: mail.PINExpiry, Name: "Other", Subject: "s", Text: "t"})))
	whole := map[string]string{"event": "e", "message": "m"}
	for _, test := range []struct {
		name, want string
		m          Mail
	}{
		{"own template", "", Mail{User: w.ada.ID, Messaging: "outbox", Template: "own", Values: whole}},
		{"unknown user", "noUser", Mail{User: "nobody", Messaging: "outbox", Values: whole}},
		{"unknown configuration", "noMessaging", Mail{User: w.ada.ID, Messaging: "none", Values: whole}},
		{"no configuration", "noMessaging", Mail{User: w.ada.ID, Values: whole}},
		{"unknown template", "noTemplate", Mail{User: w.ada.ID, Messaging: "outbox", Template: "none", Values: whole}},
		{"template of another kind", "template", Mail{User: w.ada.ID, Messaging: "outbox", Template: "expiry", Values: whole}},
		{"value missing", "template", Mail{User: w.ada.ID, Messaging: "outbox", Values: map[string]string{"event": "e"}}},
	} {
		test.m.ID = w.unique()
		_, _, err := w.Mail(t.Context(), w.core, test.m)
		var never *Undeliverable
		if errors.As(err, &never) != (test.want != "") || never != nil && (never.Code != test.want || !isState(err)) || never == nil && err != nil {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}

	// What has gone meanwhile ends it.
	for _, test := range []struct {
		code   string
		remove func()
	}{
		{"noAddress", func() { move("") }},
		{"noTemplate", func() {
			move("ada@acme.example")
			w.must(w.Table.Write(t.Context(), store.DeleteTemplate("own", 1)))
		}},
		{"noMessaging", func() { w.must(w.Table.Write(t.Context(), store.DeleteConfiguration("outbox", 1))) }},
		{"noUser", func() { w.must(w.Users.Delete(t.Context(), w.core, admin, w.ada.ID)) }},
	} {
		template := ""
		if test.code == "noTemplate" {
			template = "own"
		}
		move("ada@acme.example")
		d, ops, err := w.Mail(t.Context(), w.core, Mail{ID: w.unique(), User: w.ada.ID, Messaging: "outbox", Template: template, Values: whole})
		w.must(err)
		w.must(w.Table.Write(t.Context(), ops...))
		test.remove()
		if d = w.attempt(d); d.State != Dead || d.Code != test.code || d.Sentence() == "" {
			t.Errorf("%s: got %+v", test.code, d)
		}
		if test.code == "noMessaging" {
			w.messaging(mail.Configuration{ID: "outbox", Name: "Outbox", Kind: mail.KindOutbox, From: "PINs <pins@acme.example>"})
		}
	}
}

func TestBadInput(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	for _, test := range []struct{ name, url, code string }{
		{"plain", "http://example.com/", "scheme"},
		{"no scheme", "example.com/hooks", "form"},
		{"script", "javascript:alert(1)", "form"},
		{"user", "https://user@example.com/", "userInfo"},
		{"password", "https://u:p@example.com/", "userInfo"},
		{"fragment", "https://example.com/#a", "fragment"},
		{"empty fragment", "https://example.com/#", "fragment"},
		{"long", "https://example.com/" + strings.Repeat("x", 2000), "tooLong"},
		{"no host", "https:///hooks", "form"},
		{"space", "https://example.com/a b", "form"},
		{"line break", "https://example.com/\nx", "form"},
		{"port", "https://example.com:0/", "port"},
		{"large port", "https://example.com:70000/", "port"},
		{"loopback", "https://127.0.0.1/", "notPublic"},
		{"loopback by name", "https://localhost:8443/", "notPublic"},
		{"loopback by name with a dot", "https://x.localhost./", "notPublic"},
		{"loopback of IPv6", "https://[::1]/", "notPublic"},
		{"loopback in one number", "https://2130706433/", "host"},
		{"loopback in hex", "https://0x7f.1/", "host"},
		{"loopback cut short", "https://127.1/", "host"},
		{"loopback in octal", "https://0177.0.0.1/", "host"},
		{"metadata", "https://169.254.169.254/latest/", "notPublic"},
		{"metadata of IPv6", "https://[fd00:ec2::254]/", "notPublic"},
		{"private", "https://10.1.2.3/", "notPublic"},
		{"mapped", "https://[::ffff:10.1.2.3]/", "notPublic"},
		{"translated", "https://[64:ff9b::10.1.2.3]/", "notPublic"},
		{"link-local", "https://[fe80::1%25eth0]/", "notPublic"},
		{"unspecified", "https://0.0.0.0/", "notPublic"},
		{"host with a slash", `https://exa\mple.com/`, "form"},
		{"underscore", "https://exa_mple.com/", "host"},
		{"public literal", "https://1.1.1.1:8443/hooks?a=b", ""},
		{"name of another script", "https://bücher.example/", ""},
	} {
		_, _, err := w.CreateEndpoint(t.Context(), w.core, admin, Endpoint{Name: "x", URL: test.url, On: true})
		var invalid *problem.InvalidError
		switch {
		case test.code == "" && err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.code != "" && (!errors.As(err, &invalid) || invalid.Violations[0].Code != test.code || invalid.Violations[0].Field != "url"):
			t.Errorf("%s: %v, want %s", test.name, err, test.code)
		}
	}
	// For trying things on one machine it may be anywhere.
	w.Anywhere = true
	for _, url := range []string{"http://127.0.0.1:9000/", "https://localhost/", "https://10.1.2.3/"} {
		if _, _, err := w.CreateEndpoint(t.Context(), w.core, admin, Endpoint{Name: "x", URL: url, On: true}); err != nil {
			t.Errorf("anywhere, %s: %v", url, err)
		}
	}
	if _, _, err := w.CreateEndpoint(t.Context(), w.core, admin, Endpoint{Name: "x", URL: "ftp://127.0.0.1/"}); err == nil {
		t.Error("ftp was taken")
	}
	for _, name := range []string{"", "a\nb", strings.Repeat("x", 101)} {
		if _, _, err := w.CreateEndpoint(t.Context(), w.core, admin, Endpoint{Name: name, URL: "https://example.com/"}); err == nil {
			t.Errorf("the name %q was taken", name)
		}
	}
	for n := 6; n < maxEndpoints; n++ { // with the world's and those above
		w.hook("https://example.com/")
	}
	if _, _, err := w.CreateEndpoint(t.Context(), w.core, admin, Endpoint{Name: "x", URL: "https://example.com/"}); !isState(err) {
		t.Errorf("one endpoint too many: %v", err)
	}

	for name, hook := range map[string]Webhook{
		"no id":        {"", body},
		"dot":          {"a.b", body},
		"slash":        {"a/b", body},
		"long id":      {strings.Repeat("x", 101), body},
		"no body":      {"a", nil},
		"array":        {"a", []byte("[]")},
		"not JSON":     {"a", []byte("{")},
		"not UTF-8":    {"a", []byte("{\"a\":\"\xff\"}")},
		"large":        {"a", []byte(`{"a":"` + strings.Repeat("x", maxBody) + `"}`)},
		"two in a row": {"a", []byte("{}{}")},
	} {
		var invalid *problem.InvalidError
		if _, _, err := w.Webhook(t.Context(), w.core, w.endpoint.ID, hook); !errors.As(err, &invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, m := range map[string]Mail{
		"unknown value": {ID: "a", User: w.ada.ID, Values: map[string]string{"pin": "1"}},
		"their name":    {ID: "a", User: w.ada.ID, Values: map[string]string{"username": "x"}},
		"long value":    {ID: "a", User: w.ada.ID, Values: map[string]string{"message": strings.Repeat("x", 1001)}},
		"nobody":        {ID: "a"},
	} {
		var invalid *problem.InvalidError
		if _, _, err := w.Mail(t.Context(), w.core, m); !errors.As(err, &invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Another tenant's things are as unknown as those that are not there.
func TestWalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		d := w.webhook(w.endpoint)
		other := w.open("other")
		for name, call := range map[string]func(endpoint, delivery, user string) error{
			"webhook": func(e, _, _ string) error {
				_, _, err := w.Webhook(t.Context(), other, e, Webhook{ID: "x", Body: body})
				return err
			},
			"mail": func(_, _, u string) error {
				_, _, err := w.Mail(t.Context(), other, Mail{ID: "x", User: u})
				return err
			},
			"endpoint": func(e, _, _ string) error { _, err := w.Endpoint(t.Context(), "other", e); return err },
			"change": func(e, _, _ string) error {
				_, err := w.ChangeEndpoint(t.Context(), other, admin, Endpoint{ID: e, Version: 1})
				return err
			},
			"rotate":  func(e, _, _ string) error { _, _, err := w.RotateSecret(t.Context(), other, admin, e, 0); return err },
			"delete":  func(e, _, _ string) error { return w.DeleteEndpoint(t.Context(), other, admin, e) },
			"test":    func(e, _, _ string) error { _, err := w.Test(t.Context(), other, admin, e); return err },
			"get":     func(_, d, _ string) error { _, err := w.Get(t.Context(), "other", d); return err },
			"attempt": func(_, d, _ string) error { _, err := w.Attempt(t.Context(), other, d); return err },
			"resend":  func(_, d, _ string) error { _, err := w.Resend(t.Context(), other, admin, d); return err },
			"drop":    func(_, d, _ string) error { _, err := w.Drop(t.Context(), other, admin, d); return err },
		} {
			theirs, none := call(w.endpoint.ID, d.ID, w.ada.ID), call("none", "none", "none")
			same := func(err error) string {
				return strings.NewReplacer(w.endpoint.ID, "none", d.ID, "none").Replace(fmt.Sprint(err))
			}
			if theirs == nil || none == nil || same(theirs) != same(none) || !errors.Is(theirs, problem.ErrNotFound) && !isState(theirs) {
				t.Errorf("%s: another's is %v, an unknown one %v", name, theirs, none)
			}
		}
		if list, _, err := w.List(t.Context(), "other", false, "", 10); len(list) != 0 || err != nil {
			t.Errorf("listed: %+v, %v", list, err)
		}
		if len(w.receiver.take()) != 0 || w.reread(d).State != Planned {
			t.Error("it was sent")
		}
	})
}
