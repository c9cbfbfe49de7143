package person

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

func TestSessions(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	ada, bob := w.person("Ada", tenant.RoleAdmin), w.person("Bob", tenant.RoleHelpdesk)
	first, firstCookie := w.enter(ada)
	w.pass(time.Minute)
	desk, _ := w.enter(bob)
	w.pass(time.Minute)
	last, _ := w.enter(ada)
	ids := func(sessions []Session, err error) (ids []string) {
		t.Helper()
		for _, s := range must(sessions, err)(t) {
			ids = append(ids, s.ID)
		}
		return ids
	}
	if d := cmp.Diff([]string{last.ID, desk.ID, first.ID}, ids(w.Sessions(ctx, acme))); d != "" {
		t.Errorf("all (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{last.ID, first.ID}, ids(w.SessionsOf(ctx, acme, ada.ID))); d != "" {
		t.Errorf("Ada's (-want +got):\n%s", d)
	}
	w.pass(DeskIdle - time.Minute)
	if d := cmp.Diff([]string{last.ID, first.ID}, ids(w.Sessions(ctx, acme))); d != "" {
		t.Errorf("once the desk is idle (-want +got):\n%s", d)
	}
	if err := w.End(ctx, w.core, office, ada.ID, last.ID); err != nil {
		t.Error(err)
	}
	if err := w.End(ctx, w.core, office, ada.ID, last.ID); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("ended again: %v", err)
	}
	if err := w.SignOut(ctx, last); err != nil {
		t.Errorf("signed out of a session that has ended: %v", err)
	}
	if err := w.SignOut(ctx, first); err != nil {
		t.Error(err)
	}
	if _, _, err := w.Authenticate(ctx, firstCookie); !errors.Is(err, ErrNoSession) {
		t.Errorf("signed out: %v", err)
	}
	records := w.records(acme)
	for i, want := range []string{"intranet session.ended " + last.ID, "Ada person.signedOut " + first.ID} {
		r := records[len(records)-2+i]
		if got := r.Actor.Name + " " + r.Action + " " + r.Details["session"]; got != want || r.Subject != Subject(ada.ID) {
			t.Errorf("audited %s of %s, want %s", got, r.Subject, want)
		}
	}

	// The item goes by itself when the session is over.
	item, err := w.Table.Get(ctx, table.SessionKey(acme, bob.ID, desk.ID))
	if err != nil || !item.ExpiresAt.Equal(desk.CreatedAt.Add(SessionLife)) {
		t.Errorf("the item goes at %s, %v", item.ExpiresAt, err)
	}
}

// A person has 20 sessions: another one ends the oldest, and all that are over.
func TestMostSessions(t *testing.T) {
	w := newWorld(t)
	ada := w.person("Ada", tenant.RoleAdmin)
	_, oldest := w.enter(ada)
	for range maxSessions - 1 {
		w.pass(time.Second)
		w.enter(ada)
	}
	if _, _, err := w.Authenticate(t.Context(), oldest); err != nil {
		t.Errorf("the oldest of %d: %v", maxSessions, err)
	}
	w.pass(time.Second)
	w.enter(ada)
	if _, _, err := w.Authenticate(t.Context(), oldest); !errors.Is(err, ErrNoSession) {
		t.Errorf("the oldest of one more: %v", err)
	}
	if n := len(must(w.sessions(t.Context(), acme, table.SessionsOf(acme, ada.ID)))(t)); n != maxSessions {
		t.Errorf("%d sessions", n)
	}
	w.pass(OfficeIdle)
	w.enter(ada)
	if n := len(must(w.sessions(t.Context(), acme, table.SessionsOf(acme, ada.ID)))(t)); n != 1 {
		t.Errorf("%d sessions once the others are over", n)
	}
}

func TestAuthenticateRefuses(t *testing.T) {
	w := newWorld(t)
	ada := w.person("Ada", tenant.RoleAdmin)
	_, cookie := w.enter(ada)
	text := cookie.Reveal()
	begun := w.begin(ada.Mail)
	_, link := w.mailed(begun.ID)
	for _, bad := range []string{"", "pws", text + "A", text[:len(text)-1], text[:len(text)-52] + strings.Repeat("A", 52), strings.Replace(text, "pws_", "pwl_", 1),
		strings.Replace(text, "_acme_", "_none_", 1), strings.Replace(text, "_acme_", "_A/c_", 1), strings.Replace(text, ada.ID, "01J8ZC9Q6Y0V4T5W3X2R1N0M9K", 1),
		begun.Token.Reveal(), link.Reveal(), "pws_acme_a_b_c", strings.Repeat("_", 100)} {
		if _, _, err := w.Authenticate(t.Context(), secret.New(bad)); !errors.Is(err, ErrNoSession) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	must(w.Tenants.Suspend(t.Context(), office, acme, true))(t)
	if _, _, err := w.Authenticate(t.Context(), cookie); !errors.Is(err, ErrSuspended) || !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("in a suspended tenant: %v", err)
	}
	if _, _, err := w.ByLink(t.Context(), link, browser); !errors.Is(err, ErrUnknownSignIn) {
		t.Errorf("a link of a suspended tenant: %v", err)
	}
	core := w.core
	core.Tenant.Suspended = true
	if _, _, err := w.SignIn(t.Context(), core, ada.ID, ByOIDC, browser); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("signed in to a suspended tenant: %v", err)
	}
	must(w.Tenants.Suspend(t.Context(), office, acme, false))(t)
	if _, _, err := w.Authenticate(t.Context(), cookie); err != nil {
		t.Errorf("in the tenant that goes on: %v", err)
	}
	w.person("Bob", tenant.RoleAdmin)
	must(w.Update(t.Context(), w.core, office, ada.ID, 0, func(p *Person) { p.Disabled = true }))(t)
	if _, _, err := w.SignIn(t.Context(), w.core, ada.ID, ByOIDC, browser); !errors.Is(err, problem.ErrForbidden) {
		t.Errorf("somebody disabled: %v", err)
	}
}

// meeting is a table whose Get and Query wait for each other.
type meeting struct {
	table.Table
	get, query chan struct{}
}

func (m meeting) Get(ctx context.Context, key table.Key) (table.Item, error) {
	close(m.get)
	select {
	case <-m.query:
	case <-time.After(10 * time.Second):
		return table.Item{}, errors.New("there is no query at the same time")
	}
	return m.Table.Get(ctx, key)
}

func (m meeting) Query(ctx context.Context, r table.Range) (table.Page, error) {
	close(m.query)
	select {
	case <-m.get:
	case <-time.After(10 * time.Second):
		return table.Page{}, errors.New("there is no get at the same time")
	}
	return m.Table.Query(ctx, r)
}

// A page waits for one round trip to know who asks for it.
func TestAuthenticateInOneRoundTrip(t *testing.T) {
	w := newWorld(t)
	_, cookie := w.enter(w.person("Ada", tenant.RoleAdmin))
	if _, _, err := w.on(meeting{w.table, make(chan struct{}), make(chan struct{})}).Authenticate(t.Context(), cookie); err != nil {
		t.Error(err)
	}
}

// That a session is in use is noted on the side: a note that fails does no harm, and none
// brings a session back.
func TestSeen(t *testing.T) {
	w := newWorld(t)
	ada := w.person("Ada", tenant.RoleOperator)
	s, cookie := w.enter(ada)
	w.pass(2 * time.Minute)
	for _, after := range []bool{false, true} {
		got, _, err := w.on(tabletest.Fail(w.table, 3, after)).Authenticate(t.Context(), cookie)
		if err != nil || got.ID != s.ID {
			t.Errorf("with a note that fails (after %v): %v", after, err)
		}
	}
	if !strings.Contains(w.log.String(), "use of a session not recorded") {
		t.Errorf("the log does not tell: %s", w.log)
	}
	w.pass(2 * time.Minute)
	errs := racing(8, func(int) error { _, _, err := w.Authenticate(t.Context(), cookie); return err })
	if err := errors.Join(errs...); err != nil {
		t.Errorf("side by side: %v", err)
	}
	w.pass(2 * time.Minute)
	ending := &onWrite{Table: w.table, before: func() { _ = w.End(t.Context(), w.core, office, ada.ID, s.ID) }}
	if _, _, err := w.on(ending).Authenticate(t.Context(), cookie); err != nil {
		t.Errorf("ended meanwhile: %v", err)
	}
	if _, _, err := w.Authenticate(t.Context(), cookie); !errors.Is(err, ErrNoSession) {
		t.Errorf("ended: %v", err)
	}
}

// A caller's own ops are part of the sign-in's write.
func TestSignInWith(t *testing.T) {
	w := newWorld(t)
	ada := w.person("Ada", tenant.RoleAdmin)
	key := table.AttemptsKey(acme, "once")
	once := table.Put(count{key: key, since: start}, table.Absent())
	errs := racing(4, func(int) error { return third(w.SignIn(t.Context(), w.core, ada.ID, ByOIDC, browser, once)) })
	done := 0
	for _, err := range errs {
		if err == nil {
			done++
		} else if !table.FailedIn(err, []table.Op{once}) {
			t.Error(err)
		}
	}
	if sessions := must(w.Sessions(t.Context(), acme))(t); done != 1 || len(sessions) != 1 || sessions[0].Method != ByOIDC {
		t.Errorf("%d sign-ins, sessions %+v", done, sessions)
	}
}

func TestDevice(t *testing.T) {
	long := strings.Repeat("ü", 200)
	got := Device{"192.0.2.7\n", "a\x00\xff\x1b[31m" + long}.clean()
	if got.Client != "192.0.2.7" || !strings.HasPrefix(got.Agent, "a[31mü") || len(got.Agent) > deviceLength || strings.Contains(got.Agent, "\ufffd") {
		t.Errorf("%q", got)
	}
}

func TestConfirm(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	ada := w.person("Ada", tenant.RoleOperator)
	s, cookie := w.enter(ada)
	w.pass(FreshFor - time.Second)
	if !w.Fresh(s) {
		t.Error("not fresh after nearly 15 minutes")
	}
	w.pass(time.Second)
	s, _, err := w.Authenticate(ctx, cookie)
	if err != nil || w.Fresh(s) {
		t.Errorf("fresh after 15 minutes: %v", err)
	}
	if _, err := w.ConfirmByCode(ctx, w.core, s, secret.New("12345678")); !errors.Is(err, problem.ErrState) {
		t.Errorf("a code that nobody asked for: %v", err)
	}
	begin := func() secret.Text {
		t.Helper()
		w.pass(3 * time.Minute) // as often as mails may go
		if err := w.BeginConfirm(ctx, w.core, s); err != nil {
			t.Fatal(err)
		}
		code, _ := w.mailed("confirm-code")
		return code
	}
	first := begin()
	code := begin()
	if m := w.mails(); m[len(m)-1].To != "<ada@acme.example>" && m[len(m)-1].To != "ada@acme.example" || strings.Contains(m[len(m)-1].Text, "http") {
		t.Errorf("the mail goes to %s:\n%s", m[len(m)-1].To, m[len(m)-1].Text)
	}
	if _, err := w.ConfirmByCode(ctx, w.core, s, first); !slices.Equal(objections(err), []string{"code:wrong"}) {
		t.Errorf("a code that another has replaced: %v", err)
	}
	if _, err := w.ConfirmByCode(ctx, w.core, s, secret.New("123")); !slices.Equal(objections(err), []string{"code:form"}) {
		t.Errorf("a short code: %v", err)
	}
	confirmed, err := w.ConfirmByCode(ctx, w.core, s, code)
	if err != nil || !w.Fresh(confirmed) {
		t.Errorf("confirmed: %v", err)
	}
	if s, _, err = w.Authenticate(ctx, cookie); err != nil || !w.Fresh(s) {
		t.Errorf("the session afterwards: %v", err)
	}
	if _, err := w.ConfirmByCode(ctx, w.core, s, code); !errors.Is(err, problem.ErrState) {
		t.Errorf("the code again: %v", err)
	}
	// Five wrong ones end a code.
	code = begin()
	for left := codeTries - 1; left >= 0; left-- {
		if _, err := w.ConfirmByCode(ctx, w.core, s, wrong(code)); !strings.Contains(fmt.Sprint(err), fmt.Sprintf("tries left: %d", left)) {
			t.Errorf("wrong with %d left: %v", left, err)
		}
	}
	if _, err := w.ConfirmByCode(ctx, w.core, s, code); !errors.Is(err, problem.ErrState) {
		t.Errorf("the right code after five wrong ones: %v", err)
	}
	code = begin()
	w.pass(MailLife)
	if _, err := w.ConfirmByCode(ctx, w.core, s, code); !errors.Is(err, problem.ErrState) {
		t.Errorf("the code after 10 minutes: %v", err)
	}
	// Of guesses side by side no more are answered than there are tries.
	code = begin()
	answered := 0
	for _, err := range racing(12, func(int) error { _, err := w.ConfirmByCode(ctx, w.core, s, wrong(code)); return err }) {
		switch {
		case objections(err) != nil:
			answered++
		case !errors.Is(err, problem.ErrState) && !errors.Is(err, problem.ErrUnavailable):
			t.Errorf("a guess beside others: %v", err)
		}
	}
	if answered > codeTries {
		t.Errorf("%d guesses were answered", answered)
	}
	code = begin()
	if err := w.SignOut(ctx, s); err != nil {
		t.Error(err)
	}
	if _, err := w.ConfirmByCode(ctx, w.core, s, code); !errors.Is(err, ErrNoSession) {
		t.Errorf("the code of a session that has ended: %v", err)
	}
	if err := w.BeginConfirm(ctx, w.core, s); !errors.Is(err, ErrNoSession) {
		t.Errorf("a code for a session that has ended: %v", err)
	}
	// Nothing can be mailed.
	mute := w.open("mute")
	bob := must(w.Create(ctx, mute, office, Person{Name: "Bob", Mail: "bob@acme.example", Roles: []tenant.Role{tenant.RoleAdmin}}))(t)
	s, _, err = w.SignIn(ctx, mute, bob.ID, ByLinkGiven, browser)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.BeginConfirm(ctx, mute, s); !errors.Is(err, problem.ErrState) {
		t.Errorf("without messaging: %v", err)
	}
}

// TestWatch shows that what a page asks by itself keeps nobody signed in.
func TestWatch(t *testing.T) {
	w := newWorld(t)
	_, cookie := w.enter(w.person("Ada", tenant.RoleOperator))
	for range 5 {
		w.pass(5 * time.Minute)
		if _, _, err := w.Watch(t.Context(), cookie); err != nil {
			t.Fatal(err)
		}
	}
	w.pass(5 * time.Minute)
	if _, _, err := w.Watch(t.Context(), cookie); !errors.Is(err, ErrIdle) {
		t.Errorf("nothing was done for half an hour: %v", err)
	}
}
