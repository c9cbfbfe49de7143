package due

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// digests has acme's administrators told each day at 7 by the clock in Berlin; the start is
// at 11.
func (w *world) digests(edits ...func(*tenant.Settings)) {
	w.Helper()
	w.settings(acme, func(s *tenant.Settings) {
		s.Digest = tenant.DigestSettings{Recipients: []string{"it@acme.example"}, Hour: 7}
		for _, edit := range edits {
			edit(s)
		}
	})
}

// tells sweeps digests, and compares the report.
func (w *world) tells(want DigestReport) {
	w.Helper()
	if d := cmp.Diff(want, w.Digests(w.Context())); d != "" {
		w.Errorf("%s after the start (-want +got):\n%s", time.Duration(w.past.Load()), d)
	}
}

// last is the newest mail to an address.
func (w *world) last(address string) mail.Mail {
	w.Helper()
	all, err := w.outbox.List(1000)
	if err != nil {
		w.Fatal(err)
	}
	i := slices.IndexFunc(all, func(m mail.Mail) bool { return m.To == "<"+address+">" })
	if i < 0 {
		w.Fatalf("no mail to %s", address)
	}
	all[i].Text = strings.ReplaceAll(all[i].Text, "\r\n", "\n")
	return all[i]
}

// eventful is a world with something for each part of a digest, which is due.
func eventful(t *testing.T, over table.Table, edits ...func(*tenant.Settings)) *world {
	w := newWorld(t, over)
	w.digests(edits...)
	soon, long := w.core(acme), w.core(acme)
	reminding(19, 1)(&soon)
	reminding(24*8, 2)(&long)
	w.userOf(soon, "expired", "")             // and nobody told them
	w.userOf(w.core(acme), "ada <b>", "")     // in two days
	w.userOf(long, "later", "x@acme.example") // in eight
	w.card(w.cards(func(x *credential.Template) { x.PINValidDays, x.Reminders = 3, nil }), 1, w.holder("bob", "bob@mail.example").ID)
	w.pass(time.Minute)
	eve := w.holder("eve", "eve@acme.example")
	if done, err := w.Users.MailFailed(t.Context(), w.core(acme), admin, eve.ID, "eve@acme.example", w.Now(), user.MailProblem{Kind: user.MailBounced, At: w.Now(), Code: "x"}); !done || err != nil {
		t.Fatal(done, err)
	}
	w.pass(18 * time.Hour)
	w.Run(t.Context())
	w.past.Store(int64(20 * time.Hour))
	w.Run(t.Context())
	return w
}

func TestDigest(t *testing.T) {
	w := eventful(t, tabletest.New(t))
	w.tells(DigestReport{Due: 1, Sent: 1})
	m := w.last("it@acme.example")
	if want := "PINs für Ärztehaus & Co – Ablauf innerhalb einer Woche: 2, abgelaufen: 1"; m.Subject != want {
		t.Errorf("subject %q, want %q", m.Subject, want)
	}
	for _, want := range []string{
		"ab: 2\n\nada <b>, Montag, 23. November 2026 um 11:00 Uhr MEZ\nCard 1 (Karte), Dienstag, 24. November 2026 um 11:00 Uhr MEZ\n",
		"abgelaufen: 1\n\nexpired, Sonntag, 22. November 2026 um 06:00 Uhr MEZ\n",
		"funktionieren: 1\n\neve, Samstag, 21. November 2026 um 11:01 Uhr MEZ: bounce\n",
		"haben: 1\n\nexpired, Sonntag, 22. November 2026 um 05:01 Uhr MEZ: noAddress\n",
	} {
		if !strings.Contains(m.Text, want) {
			t.Errorf("the text lacks %q:\n%s", want, m.Text)
		}
	}
	if !strings.Contains(m.HTML, "ada &lt;b&gt;, Montag") || strings.Contains(m.HTML, "ada <b>") || !strings.Contains(m.HTML, "white-space:pre-wrap") {
		t.Errorf("the HTML: %s", m.HTML)
	}
	for _, address := range []string{"eve@", "x@", "bob@", right} {
		if strings.Contains(m.Text+m.HTML+m.Subject, address) {
			t.Errorf("%q is in the digest", address)
		}
	}
	w.tells(DigestReport{})

	// A day later what has expired since is told, what was told is not, and an address that
	// still does not work is no news by itself.
	w.pass(24 * time.Hour)
	w.Run(t.Context())
	w.tells(DigestReport{Due: 1, Sent: 1})
	if m := w.last("it@acme.example"); !strings.Contains(m.Text, "abgelaufen: 0\n\n–\n") || !strings.Contains(m.Text, "funktionieren: 1\n") {
		t.Errorf("the second:\n%s", m.Text)
	}
	for range 9 {
		w.pass(24 * time.Hour)
		w.Run(t.Context())
		w.Digests(t.Context())
	}
	w.pass(24 * time.Hour)
	w.tells(DigestReport{Due: 1, Nothing: 1})
}

// One a day, at its hour by the clock, through the changes of the clock, on its days.
func TestDigestsOverWeeks(t *testing.T) {
	for _, c := range []struct {
		name  string
		begin string
		days  []time.Weekday
		hour  int
		sweep int
		want  []string
	}{
		{"daily, to summer time", "2027-03-26T12:00:00Z", nil, 2, 4, []string{"Sat 27 Mar 02:00", "Sun 28 Mar 03:00", "Mon 29 Mar 02:00", "Tue 30 Mar 02:00"}},
		{"daily, and back", "2027-10-29T12:00:00Z", nil, 2, 4, []string{"Sat 30 Oct 02:00", "Sun 31 Oct 02:00", "Mon 1 Nov 02:00", "Tue 2 Nov 02:00"}},
		{"on days", "2027-06-01T12:00:00Z", []time.Weekday{time.Monday, time.Thursday}, 7, 10, []string{"Thu 3 Jun 07:00", "Mon 7 Jun 07:00", "Thu 10 Jun 07:00"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, tabletest.New(t))
			at, err := time.Parse(time.RFC3339, c.begin)
			must(w, err)
			began := at.Sub(start)
			w.past.Store(int64(began))
			w.digests(func(s *tenant.Settings) { s.Digest.Hour, s.Digest.Days = c.hour, c.days })
			berlin := w.core(acme).Tenant.Settings.Location()
			for h := 0; h < 24*4*c.sweep; h++ { // every quarter of an hour
				if h%96 == 0 { // each day there is something to tell
					w.userOf(w.core(acme), fmt.Sprint("u", h), "")
				}
				w.Digests(t.Context())
				w.pass(15 * time.Minute)
			}
			all, err := w.outbox.List(100)
			must(w, err)
			var got []string
			for _, m := range slices.Backward(all) {
				got = append(got, m.Date.In(berlin).Format("Mon 2 Jan 15:04"))
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// Without recipients, of a tenant that is suspended, or without messaging there is none; what
// happened meanwhile is told once there is.
func TestNoDigest(t *testing.T) {
	w := eventful(t, tabletest.New(t))
	must(w, w.suspend(true))
	w.tells(DigestReport{Due: 1, Postponed: 1})
	must(w, w.suspend(false))
	w.pass(time.Hour)
	w.settings(acme, func(s *tenant.Settings) { s.ExpiryMail.Messaging = "" })
	w.tells(DigestReport{Due: 1, Postponed: 1})
	for range 60 { // into the third day
		w.pass(time.Hour)
		w.Digests(t.Context())
	}
	w.settings(acme, func(s *tenant.Settings) { s.ExpiryMail.Messaging = "outbox" })
	for range 2 { // it is tried hourly
		w.pass(time.Hour)
		w.Digests(t.Context())
	}
	if m := w.last("it@acme.example"); !strings.Contains(m.Text, "\nexpired, Sonntag") || len(w.mails()) != 1 {
		t.Errorf("%d mails, the last:\n%s", len(w.mails()), m.Text)
	}
	w.digests(func(s *tenant.Settings) { s.Digest = tenant.DigestSettings{} })
	w.pass(48 * time.Hour)
	w.tells(DigestReport{})
}

// Whoever has a digest does not get it again because another has not, and both are told the
// same.
func TestDigestToSome(t *testing.T) {
	server := smtpServer(t)
	w := eventful(t, tabletest.New(t), func(s *tenant.Settings) {
		s.Digest.Recipients = []string{"a@some.example", "b@some.example", "c@some.example"}
	})
	w.smtp(server)
	server.Fault("b@some.example", testserver.SMTPDefer)
	server.Fault("c@some.example", testserver.SMTPReject)
	w.tells(DigestReport{Due: 1, Postponed: 1})
	w.tells(DigestReport{})
	w.userOf(w.core(acme), "meanwhile", "")
	w.pass(time.Minute)
	w.tells(DigestReport{Due: 1, Postponed: 1})
	server.Fault("b@some.example", 0)
	w.pass(2 * time.Minute)
	w.tells(DigestReport{Due: 1, Sent: 1})
	for _, to := range []string{"a@some.example", "b@some.example"} {
		if got := received(t, server, to); len(got) != 1 {
			t.Errorf("%s got %q", to, got)
		}
	}
	if got := received(t, server, "c@some.example"); got != nil {
		t.Errorf("c got %q", got)
	}
	server.Fault("a@some.example", testserver.SMTPReject)
	server.Fault("b@some.example", testserver.SMTPReject)
	w.pass(24 * time.Hour)
	w.tells(DigestReport{Due: 1, Refused: 1})
}

// A process that dies at any call loses no digest; only if it dies between sending and
// marking does the digest come twice, and that is known.
func TestDigestCrashes(t *testing.T) {
	server := smtpServer(t)
	for _, after := range []bool{false, true} {
		twice, n := 0, 1
		for ; n < 60; n++ {
			to := fmt.Sprintf("it%d-%v@crash.example", n, after)
			w := eventful(t, tabletest.New(t), func(s *tenant.Settings) { s.Digest.Recipients = []string{to} })
			w.smtp(server)
			dying := &mortal{Table: w.Table, n: n, after: after}
			others := idle{Table: dying, whole: w.Table}
			for shard := range table.DigestDueShards {
				if shard != table.Shard(string(acme), table.DigestDueShards) {
					others.shards = append(others.shards, table.DigestsDueBefore(shard, w.Now()).Limit(digestsAt))
				}
			}
			w.over(others).Digests(t.Context())
			if !dying.died() {
				break
			}
			for range 3 {
				w.pass(lease)
				w.Digests(t.Context())
			}
			got := received(t, server, to)
			if len(got) < 1 || len(got) > 2 || len(got) == 2 && got[0] != got[1] {
				t.Errorf("call %d, after %v: %q", n, after, got)
			}
			if len(got) == 2 {
				twice++
				if h := w.digestHistory(); !slices.Contains(h, "sent possiblyRepeated") {
					t.Errorf("call %d, after %v: twice, and on record is %q", n, after, h)
				}
			}
		}
		if want := map[bool]int{false: 1, true: 0}[after]; twice != want || n < 10 {
			t.Errorf("after %v: %d of %d crashes led to two mails, want %d", after, twice, n, want)
		}
	}
}

// idle keeps the queries for shards in which nothing is due from a mortal table: they come
// at any time between the others, and each n would be another call whenever it is run.
type idle struct {
	table.Table
	whole  table.Table
	shards []table.Range
}

func (i idle) Query(ctx context.Context, r table.Range) (table.Page, error) {
	if slices.Contains(i.shards, r) {
		return i.whole.Query(ctx, r)
	}
	return i.Table.Query(ctx, r)
}

func TestDigestsAtOnce(t *testing.T) {
	server := smtpServer(t)
	w := eventful(t, tabletest.New(t), func(s *tenant.Settings) { s.Digest.Recipients = []string{"it@once.example"} })
	w.smtp(server)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { w.Digests(t.Context()) })
	}
	wg.Wait()
	if got := received(t, server, "it@once.example"); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

// What a digest costs does not follow how many users there are, nor how many PINs expire.
func TestCostOfDigests(t *testing.T) {
	counting := tabletest.Count(tabletest.New(t))
	w := newWorld(t, counting)
	w.digests()
	long := w.core(acme)
	reminding(24*30, 2)(&long)
	for i := range testserver.Rounds(5_000, 300) {
		w.userOf(long, fmt.Sprint("not due ", i), "")
	}
	for i := range 200 {
		w.userOf(w.core(acme), fmt.Sprint("due ", i), "")
	}
	tmpl := w.cards(func(x *credential.Template) { x.PINValidDays, x.Reminders = 3, nil })
	for i := range 120 {
		w.card(tmpl, i, "")
	}
	w.past.Store(int64(20 * time.Hour))
	counting.Take()
	w.tells(DigestReport{Due: 1, Sent: 1})
	got := counting.Take()
	t.Logf("a digest of 200 PINs and 120 cards' among 5,000: %+v", got)
	if got.Writes != 2 || got.Gets > 53 || got.Queries > 4+1+6*table.ListShards || got.Queried > 200+120+20 {
		t.Errorf("%+v", got)
	}
	m := w.last("it@acme.example")
	if !strings.Contains(m.Text, "ab: 320\n") || !strings.Contains(m.Text, "\nund 270 weitere\n") {
		t.Errorf("%s", m.Text)
	}
	w.tells(DigestReport{})
	counting.Take()
	w.tells(DigestReport{})
	if got := counting.Take(); got.Queries != 4 || got.Gets+got.Writes != 0 {
		t.Errorf("nothing due: %+v", got)
	}
}

// What a sweep asks for when nothing is due, as the README has it.
func TestQueriesOfASweep(t *testing.T) {
	counting := tabletest.Count(tabletest.New(t))
	w := newWorld(t, counting)
	counting.Take()
	if _, err := w.Handle(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := counting.Take(); got.Queries != 60 || got.Gets != 1 || got.Writes != 1 { // it notes that it was
		t.Errorf("%+v", got)
	}
}

func TestDigestInEnglish(t *testing.T) {
	w := eventful(t, tabletest.New(t), func(s *tenant.Settings) { s.Language = "en-US" })
	w.tells(DigestReport{Due: 1, Sent: 1})
	m := w.last("it@acme.example")
	for _, want := range []string{"Expire within 7 days: 2\n\nada <b>, Monday, November 23, 2026 at 11:00 AM CET\nCard 1 (card), ", "\n\neve, Saturday, November 21, 2026 at 11:01 AM CET: bounce\n"} {
		if !strings.Contains(m.Text, want) {
			t.Errorf("the text lacks %q:\n%s", want, m.Text)
		}
	}
}

// digestHistory is what the audit has on digests, as "outcome", and "possiblyRepeated".
func (w *world) digestHistory() (all []string) {
	w.Helper()
	records, _, err := audit.Of(w.Context(), w.Table, acme, "digest", "", 100)
	must(w, err)
	for _, r := range records {
		line := r.Details["outcome"]
		if r.Details["possiblyRepeated"] != "" {
			line += " possiblyRepeated"
		}
		all = append(all, line)
	}
	return all
}
