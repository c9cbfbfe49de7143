package person

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

func TestSignInByMail(t *testing.T) {
	w := newWorld(t)
	ada := w.person("Ada", tenant.RoleAdmin, tenant.RoleOperator)
	for _, by := range []string{"code", "link", "link elsewhere"} {
		begun := w.begin(" ADA@Acme.Example")
		code, link := w.mailed(begun.ID)
		var s Session
		var cookie secret.Text
		var err error
		if by == "code" {
			s, cookie, err = w.ByCode(t.Context(), begun.Token, code, browser)
		} else {
			if core, err := w.Peek(t.Context(), link); err != nil || core.Tenant.ID != acme {
				t.Errorf("%s: peek: %v, %v", by, core.Tenant.ID, err)
			}
			s, cookie, err = w.ByLink(t.Context(), link, browser)
		}
		if err != nil {
			t.Fatalf("%s: %v", by, err)
		}
		want := Session{ID: s.ID, Tenant: acme, PersonID: ada.ID, Name: "Ada", Mail: "ada@acme.example", Roles: []tenant.Role{tenant.RoleAdmin, tenant.RoleOperator},
			Method: ByMail, Device: browser, CreatedAt: w.Now(), SeenAt: w.Now(), ConfirmedAt: w.Now(), hash: s.hash, stored: 1}
		if d := cmp.Diff(want, s, unexported); d != "" {
			t.Errorf("%s (-want +got):\n%s", by, d)
		}
		got, core, err := w.Authenticate(t.Context(), cookie)
		if d := cmp.Diff(want, got, unexported); d != "" || err != nil || core.Tenant.ID != acme {
			t.Errorf("%s: authenticated: %v (-want +got):\n%s", by, err, d)
		}
		if !w.Fresh(s) {
			t.Errorf("%s: not fresh", by)
		}
		if p := w.reread(ada); !p.SignedInAt.Equal(w.Now()) || p.Version != 1 {
			t.Errorf("%s: signed in at %s, version %d", by, p.SignedInAt, p.Version)
		}
		// Once either is used both are.
		if _, _, err := w.ByCode(t.Context(), begun.Token, code, browser); !errors.Is(err, ErrUsed) {
			t.Errorf("%s: the code afterwards: %v", by, err)
		}
		if _, _, err := w.ByLink(t.Context(), link, browser); !errors.Is(err, ErrUsed) {
			t.Errorf("%s: the link afterwards: %v", by, err)
		}
		if _, err := w.Peek(t.Context(), link); !errors.Is(err, ErrUsed) {
			t.Errorf("%s: peek afterwards: %v", by, err)
		}
		w.pass(mailWindow)
	}
	one := []string{"person.signInBegun done", "person.signedIn done", "person.signedIn refused used", "person.signedIn refused used"}
	want := slices.Concat([]string{"tenant.created done", "person.created done"}, one, one, one)
	if d := cmp.Diff(want, w.audited(acme)); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
}

// Whoever asks to sign in gets the same answer, by the same calls, whoever is known; and can
// be mailed or not.
func TestBeginTellsNothing(t *testing.T) {
	w := newWorld(t)
	w.person("Ada", tenant.RoleAdmin)
	out := w.person("Out", tenant.RoleHelpdesk)
	must(w.Update(t.Context(), w.core, office, out.ID, 0, func(p *Person) { p.Disabled = true }))(t)
	mute := w.open("mute")
	must(w.Create(t.Context(), mute, office, Person{Name: "Ada", Mail: "ada@acme.example", Roles: []tenant.Role{tenant.RoleAdmin}}))(t)
	shut := w.open("shut")
	w.messaging(shut)
	must(w.Create(t.Context(), shut, office, Person{Name: "Ada", Mail: "ada@acme.example", Roles: []tenant.Role{tenant.RoleAdmin}}))(t)
	must(w.Tenants.Suspend(t.Context(), office, "shut", true))(t)

	var calls tabletest.Calls
	for i, test := range []struct {
		tenant  table.TenantID
		address string
		reason  string
	}{
		{"acme", "ada@acme.example", ""},
		{"acme", "eve@acme.example", "unknownAddress"},
		{"acme", "out@acme.example", "disabled"},
		{"mute", "ada@acme.example", "noMessaging"},
		{"shut", "ada@acme.example", "suspended"},
		{"none", "ada@acme.example", "unknownTenant"},
	} {
		sent := len(w.mails())
		w.table.Take()
		begun, err := w.Begin(t.Context(), test.tenant, test.address, client)
		got := w.table.Take()
		got.Queried = 0
		if i == 0 {
			calls = got
		}
		if d := cmp.Diff(calls, got); d != "" || err != nil {
			t.Errorf("%s in %s: %v; calls (-known +this):\n%s", test.address, test.tenant, err, d)
		}
		if begun.ID == "" || len(begun.Token.Reveal()) != len("pwa_acme_")+26+1+52 || !begun.Until.Equal(w.Now().Add(MailLife)) {
			t.Errorf("%s in %s: %+v", test.address, test.tenant, begun)
		}
		if sent = len(w.mails()) - sent; sent != 0 && test.reason != "" || sent != 1 && test.reason == "" {
			t.Errorf("%s in %s: %d mails", test.address, test.tenant, sent)
		}
		home := test.tenant
		if test.reason == "unknownTenant" {
			home = table.Platform
		}
		records := w.records(home)
		if last := records[len(records)-1]; last.Action != "person.signInBegun" || last.Reason != test.reason {
			t.Errorf("%s in %s: audited as %s %q", test.address, test.tenant, last.Action, last.Reason)
		}
		// Wrong codes are answered alike too, until they are too many.
		var answers []string
		var spent []tabletest.Calls
		for range codeTries + 1 {
			w.table.Take()
			_, _, err := w.ByCode(t.Context(), begun.Token, secret.New("1234-0000"), browser)
			if !errors.Is(err, problem.ErrUnauthenticated) {
				t.Fatalf("a wrong code: %v", err)
			}
			answers = append(answers, err.Error())
			took := w.table.Take()
			took.Queried = 0
			spent = append(spent, took)
		}
		want := []string{"the code is not the one that was mailed; tries left: 4", "the code is not the one that was mailed; tries left: 3",
			"the code is not the one that was mailed; tries left: 2", "the code is not the one that was mailed; tries left: 1",
			"the code is not the one that was mailed; tries left: 0", ErrTriesUsedUp.Error()}
		if d := cmp.Diff(want, answers); d != "" {
			t.Errorf("%s in %s: wrong codes (-want +got):\n%s", test.address, test.tenant, d)
		}
		guess := tabletest.Calls{Gets: 1, Queries: 1, Writes: 1, Ops: 2}
		if d := cmp.Diff([]tabletest.Calls{guess, guess, guess, guess, guess, {Gets: 1, Queries: 1}}, spent); d != "" {
			t.Errorf("%s in %s: calls of wrong codes (-want +got):\n%s", test.address, test.tenant, d)
		}
		if test.reason == "" { // the right one comes too late
			code, link := w.mailed(begun.ID)
			if _, _, err := w.ByCode(t.Context(), begun.Token, code, browser); !errors.Is(err, ErrTriesUsedUp) {
				t.Errorf("the right code after too many wrong ones: %v", err)
			}
			if _, _, err := w.ByLink(t.Context(), link, browser); !errors.Is(err, ErrTriesUsedUp) {
				t.Errorf("the link after too many wrong codes: %v", err)
			}
		}
	}
	if d := cmp.Diff(tabletest.Calls{Gets: 7, Queries: 2, Writes: 1, Ops: 5}, calls); d != "" {
		t.Errorf("calls (-want +got):\n%s", d)
	}
}

func TestAuthenticate(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name  string
		roles []tenant.Role
		idle  time.Duration
	}{
		{"Admin", []tenant.Role{tenant.RoleAdmin}, 2 * time.Hour},
		{"Both", []tenant.Role{tenant.RoleAdmin, tenant.RoleHelpdesk}, 30 * time.Minute},
		{"Operator", []tenant.Role{tenant.RoleOperator}, 30 * time.Minute},
		{"Auditor", []tenant.Role{tenant.RoleAuditor}, 2 * time.Hour},
	} {
		p := w.person(test.name, test.roles...)
		_, cookie := w.enter(p)
		is := func(when string, want error) {
			t.Helper()
			if _, _, err := w.Authenticate(t.Context(), cookie); !errors.Is(err, want) || want != nil && !errors.Is(err, problem.ErrUnauthenticated) {
				t.Errorf("%s %s: %v, want %v", test.name, when, err, want)
			}
		}
		begun := w.Now()
		w.table.Take()
		is("at once", nil)
		if d := cmp.Diff(tabletest.Calls{Gets: 1, Queries: 1, Queried: 3}, w.table.Take()); d != "" {
			t.Errorf("calls (-want +got):\n%s", d)
		}
		w.pass(59 * time.Second)
		is("within the minute", nil)
		if d := cmp.Diff(tabletest.Calls{Gets: 1, Queries: 1, Queried: 3}, w.table.Take()); d != "" {
			t.Errorf("calls within the minute (-want +got):\n%s", d)
		}
		w.pass(time.Second)
		is("after a minute", nil)
		if d := cmp.Diff(tabletest.Calls{Gets: 1, Queries: 1, Queried: 3, Writes: 1, Ops: 1}, w.table.Take()); d != "" {
			t.Errorf("calls after a minute (-want +got):\n%s", d)
		}
		w.pass(test.idle - time.Second)
		is("nearly idle", nil)
		for w.Now().Sub(begun) < SessionLife-test.idle {
			w.pass(test.idle - time.Minute)
			is("in use", nil)
		}
		w.past.Store(int64(begun.Sub(start) + SessionLife - time.Second))
		is("nearly over", nil)
		w.pass(time.Second)
		is("over", ErrOver)

		_, cookie = w.enter(p)
		w.pass(test.idle)
		is("idle", ErrIdle)
		s, cookie2 := w.enter(p)
		cookie = cookie2
		if err := w.SignOut(t.Context(), s); err != nil {
			t.Error(err)
		}
		is("signed out", ErrNoSession)
	}
}

func TestCodesAndLinks(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	ada := w.person("Ada", tenant.RoleAdmin)
	begun := w.begin(ada.Mail)
	code, link := w.mailed(begun.ID)
	last := w.mails()[0]
	if strings.Contains(last.Subject, code.Reveal()) || !strings.Contains(last.HTML, `href="https://pin.example/console/sign-in/link?t=`+link.Reveal()+`"`) {
		t.Errorf("the mail: %s\n%s", last.Subject, last.HTML)
	}
	// A code counts in the browser that has begun only, and as people type it.
	other := w.begin(ada.Mail)
	var wrongCode *CodeError
	if _, _, err := w.ByCode(ctx, other.Token, code, browser); !errors.As(err, &wrongCode) || wrongCode.TriesLeft != 4 {
		t.Errorf("the code in another browser: %v", err)
	}
	for _, bad := range []string{"", "1234567", "123456789", "abcdefgh"} {
		if _, _, err := w.ByCode(ctx, begun.Token, secret.New(bad), browser); !slices.Equal(objections(err), []string{"code:form"}) {
			t.Errorf("the code %q: %v", bad, err)
		}
	}
	for name, bad := range map[string]secret.Text{"none": {}, "the attempt": begun.Token, "cut": secret.New(link.Reveal()[:60]), "another's": secret.New(link.Reveal()[:len(link.Reveal())-52] + strings.Repeat("A", 52))} {
		if _, _, err := w.ByLink(ctx, bad, browser); !errors.Is(err, ErrUnknownSignIn) {
			t.Errorf("as a link, %s: %v", name, err)
		}
		if _, err := w.Peek(ctx, bad); !errors.Is(err, ErrUnknownSignIn) {
			t.Errorf("peek at %s: %v", name, err)
		}
	}
	// A link is looked at as often as scanners like.
	w.table.Take()
	for range 10 {
		must(w.Peek(ctx, link))(t)
	}
	if d := cmp.Diff(tabletest.Calls{Gets: 10, Queries: 10, Queried: 30}, w.table.Take()); d != "" {
		t.Errorf("calls of looking (-want +got):\n%s", d)
	}
	typed := secret.New(" " + strings.ReplaceAll(code.Reveal(), " ", " - ") + " ")
	if _, _, err := w.ByCode(ctx, begun.Token, typed, browser); err != nil {
		t.Errorf("the code as typed: %v", err)
	}
	if d := cmp.Diff(tabletest.Calls{Gets: 2, Queries: 2, Queried: 3, Writes: 1, Ops: 4}, w.table.Take()); d != "" {
		t.Errorf("calls of a sign-in (-want +got):\n%s", d)
	}

	w.pass(time.Minute)
	begun = w.begin(ada.Mail)
	code, link = w.mailed(begun.ID)
	w.pass(MailLife - time.Second)
	must(w.Peek(ctx, link))(t)
	w.pass(time.Second)
	if _, _, err := w.ByCode(ctx, begun.Token, code, browser); !errors.Is(err, ErrTooLate) {
		t.Errorf("a code after 10 minutes: %v", err)
	}
	if _, _, err := w.ByLink(ctx, link, browser); !errors.Is(err, ErrTooLate) {
		t.Errorf("a link after 10 minutes: %v", err)
	}

	// A link without a mail.
	for _, valid := range []time.Duration{0, MinLinkLife - time.Second, MaxLinkLife + time.Second} {
		if _, _, err := w.Link(ctx, w.core, office, ada.ID, valid); !slices.Equal(objections(err), []string{"validMinutes:range"}) {
			t.Errorf("a link for %s: %v", valid, err)
		}
	}
	given, until, err := w.Link(ctx, w.core, office, ada.ID, MaxLinkLife)
	if err != nil || !until.Equal(w.Now().Add(MaxLinkLife)) {
		t.Errorf("a link until %s: %v", until, err)
	}
	w.pass(MaxLinkLife - time.Second)
	s, _, err := w.ByLink(ctx, given, browser)
	if err != nil || s.Method != ByLinkGiven {
		t.Errorf("by a link without a mail: %s, %v", s.Method, err)
	}
	records := w.records(acme)
	if r := records[len(records)-1]; r.Action != "person.signedIn" || r.Details["method"] != "link" || r.Details["client"] != client || r.Actor != ada.Actor() {
		t.Errorf("audited: %+v", r)
	}
	given, _, err = w.Link(ctx, w.core, office, ada.ID, MinLinkLife)
	if err != nil {
		t.Fatal(err)
	}
	w.pass(MinLinkLife)
	if _, _, err := w.ByLink(ctx, given, browser); !errors.Is(err, ErrTooLate) {
		t.Errorf("a link after its time: %v", err)
	}
}

// Two who have one code, or its link, do not both get in.
func TestOneSignInAtATime(t *testing.T) {
	w := newWorld(t)
	ada := w.person("Ada", tenant.RoleAdmin)
	begun := w.begin(ada.Mail)
	code, link := w.mailed(begun.ID)
	in := 0
	for _, err := range racing(6, func(i int) error {
		if i%2 == 0 {
			return third(w.ByCode(t.Context(), begun.Token, code, browser))
		}
		return third(w.ByLink(t.Context(), link, browser))
	}) {
		switch {
		case err == nil:
			in++
		case !errors.Is(err, ErrUsed) && !errors.Is(err, problem.ErrUnavailable) && !errors.Is(err, ErrTriesUsedUp):
			t.Errorf("beside another: %v", err)
		}
	}
	if sessions := must(w.Sessions(t.Context(), acme))(t); in != 1 || len(sessions) != 1 {
		t.Errorf("%d got in, with %d sessions", in, len(sessions))
	}
}

// Of guesses side by side no more are answered than there are tries.
func TestGuesses(t *testing.T) {
	w := newWorld(t)
	ada := w.person("Ada", tenant.RoleAdmin)
	begun := w.begin(ada.Mail)
	code, _ := w.mailed(begun.ID)
	left := map[int]int{}
	for _, err := range racing(16, func(int) error { return third(w.ByCode(t.Context(), begun.Token, wrong(code), browser)) }) {
		var wrongCode *CodeError
		switch {
		case errors.As(err, &wrongCode):
			left[wrongCode.TriesLeft]++
		case !errors.Is(err, ErrTriesUsedUp) && !errors.Is(err, problem.ErrUnavailable):
			t.Errorf("a guess beside others: %v", err)
		}
	}
	for n, times := range left {
		if times != 1 {
			t.Errorf("%d guesses were told that %d tries are left", times, n)
		}
	}
	if len(left) > codeTries {
		t.Errorf("%d guesses were answered", len(left))
	}
}

func TestLimits(t *testing.T) {
	for _, test := range []struct {
		name   string
		most   int
		tenant table.TenantID
		// the n-th to ask, and somebody who is not hindered by that
		ask, free func(n int) (table.TenantID, string, string)
	}{
		{"address", 5, acme,
			func(n int) (table.TenantID, string, string) {
				return acme, "ada@ACME.example", fmt.Sprintf("192.0.2.%d", n)
			},
			func(n int) (table.TenantID, string, string) { return acme, "eve@acme.example", client }},
		{"address that is not known", 5, acme,
			func(n int) (table.TenantID, string, string) {
				return acme, "eve@acme.example", fmt.Sprintf("192.0.2.%d", n)
			},
			func(n int) (table.TenantID, string, string) { return "none", "eve@acme.example", client }},
		{"client", 30, acme,
			func(n int) (table.TenantID, string, string) {
				return table.TenantID(fmt.Sprintf("tenant-%d", n)), "ada@acme.example", "192.0.2.7"
			},
			func(n int) (table.TenantID, string, string) { return acme, "ada@acme.example", "192.0.2.8" }},
		{"network of IPv6", 30, acme,
			func(n int) (table.TenantID, string, string) {
				return table.TenantID(fmt.Sprintf("tenant-%d", n)), "ada@acme.example", fmt.Sprintf("2001:db8:0:1::%x", n)
			},
			func(n int) (table.TenantID, string, string) { return acme, "ada@acme.example", "2001:db8:0:2::1" }},
		{"tenant", 200, "none",
			func(n int) (table.TenantID, string, string) {
				return "none", fmt.Sprintf("ada%d@acme.example", n), fmt.Sprintf("192.0.2.%d", n)
			},
			func(n int) (table.TenantID, string, string) { return acme, "ada@acme.example", client }},
	} {
		w := newWorld(t)
		w.person("Ada", tenant.RoleAdmin)
		begin := func(tenant table.TenantID, address, from string) error {
			_, err := w.Begin(t.Context(), tenant, address, from)
			return err
		}
		w.pass(500 * time.Millisecond) // windows begin in whole seconds
		for n := range test.most {
			if err := begin(test.ask(n)); err != nil {
				t.Fatalf("%s: number %d: %v", test.name, n+1, err)
			}
		}
		sent := len(w.mails())
		var limit *problem.LimitError
		w.pass(mailWindow - time.Second)
		if err := begin(test.ask(test.most)); !errors.As(err, &limit) || limit.Code != "tooManySignIns" || !limit.Until.Equal(start.Add(mailWindow)) {
			t.Errorf("%s: one too many: %v", test.name, err)
		}
		if len(w.mails()) != sent {
			t.Errorf("%s: one too many was mailed", test.name)
		}
		if err := begin(test.free(0)); err != nil {
			t.Errorf("%s: somebody else: %v", test.name, err)
		}
		w.pass(time.Second)
		if err := begin(test.ask(test.most)); err != nil {
			t.Errorf("%s: after 10 minutes: %v", test.name, err)
		}
	}

	// Who asks side by side gets no more.
	w := newWorld(t)
	w.person("Ada", tenant.RoleAdmin)
	in := 0
	for _, err := range racing(12, func(int) error { _, err := w.Begin(t.Context(), acme, "ada@acme.example", client); return err }) {
		var limit *problem.LimitError
		switch {
		case err == nil:
			in++
		case !errors.As(err, &limit):
			t.Errorf("beside others: %v", err)
		}
	}
	if in != mailsTo || len(w.mails()) != mailsTo {
		t.Errorf("%d of 12 side by side began, %d mails", in, len(w.mails()))
	}
}

func TestBeginRefusesNonsense(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		tenant  table.TenantID
		address string
		want    []string
	}{
		{"acme", "", []string{"mail:address"}},
		{"acme", "ada", []string{"mail:address"}},
		{"acme", "ada@acme.example\r\nBcc: eve@acme.example", []string{"mail:address"}},
		{"", "ada@acme.example", []string{"organisation:form"}},
		{"Acme Ltd", "ada", []string{"organisation:form", "mail:address"}},
		{"platform", "ada@acme.example", []string{"organisation:form"}},
	} {
		w.table.Take()
		_, err := w.Begin(t.Context(), test.tenant, test.address, client)
		if d := cmp.Diff(test.want, objections(err)); d != "" || w.table.Take() != (tabletest.Calls{}) {
			t.Errorf("%q of %q (-want +got):\n%s", test.address, test.tenant, d)
		}
	}
}

// The answer waits for the time that is fixed, with a mail and without, and when it is refused.
func TestPad(t *testing.T) {
	w := newWorld(t)
	w.person("Ada", tenant.RoleAdmin)
	var waited []string
	w.Pad = func() func(context.Context) {
		before := len(w.mails())
		return func(context.Context) { waited = append(waited, fmt.Sprint(len(w.mails())-before)) }
	}
	for range mailsTo + 1 {
		_, _ = w.Begin(t.Context(), acme, "ada@acme.example", client)
	}
	_, _ = w.Begin(t.Context(), acme, "eve@acme.example", client)
	if got := strings.Join(waited, " "); got != "1 1 1 1 1 0 0" {
		t.Errorf("waited with so many mails sent: %s", got)
	}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		wait := PadTo(2 * time.Second)()
		time.Sleep(1500 * time.Millisecond)
		wait(t.Context())
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("took %s", took)
		}
		wait = PadTo(2 * time.Second)()
		time.Sleep(5 * time.Second)
		began = time.Now()
		wait(t.Context())
		if took := time.Since(began); took != 0 {
			t.Errorf("waited %s more", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		PadTo(time.Hour)()(ctx)
	})
}

// Mails are in the person's language, or the tenant's, unless the template was customised, and
// go by the configuration of expiry mails, or the first.
func TestMailOfSignIn(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	ada := w.person("Ada", tenant.RoleAdmin)
	subject := func() string {
		t.Helper()
		w.pass(mailWindow)
		w.begin(ada.Mail)
		all := w.mails()
		return all[len(all)-1].From + " " + all[len(all)-1].Subject
	}
	is := func(when, want string) {
		t.Helper()
		if got := subject(); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	is("in the tenant's language", "Sign in to the PIN pages of Acme")
	ada = must(w.Update(ctx, w.core, office, ada.ID, 0, func(p *Person) { p.Language = "de-AT" }))(t)
	is("in the person's language", "Anmeldung bei den PIN-Seiten von Acme")
	store := mail.Store{Table: w.Table, Tenant: acme, Keys: w.core.Keys}
	custom := mail.Predefined(mail.SignIn, "en")
	custom.Subject = "Come in"
	op := must(store.PutConfiguration(ctx, mail.Configuration{ID: "zzz", Name: "Z", Kind: mail.KindOutbox, From: "z@acme.example"}))(t)
	if err := w.Table.Write(ctx, op, store.PutTemplate(custom)); err != nil {
		t.Fatal(err)
	}
	is("customised", "pin@acme.example")
	is("customised", "Come in")
	settings := w.core.Tenant.Settings
	settings.ExpiryMail = tenant.ExpiryMailRefs{Messaging: "zzz"}
	must(w.Tenants.ChangeSettings(ctx, office, w.core, settings))(t)
	is("by the configuration of expiry mails", "z@acme.example")

	w.BaseURL = ""
	sent := len(w.mails())
	w.pass(mailWindow)
	w.begin(ada.Mail)
	if len(w.mails()) != sent || !strings.Contains(w.log.String(), "noBaseURL") {
		t.Errorf("without an address of the pages: %d mails, log %s", len(w.mails())-sent, w.log)
	}
}
