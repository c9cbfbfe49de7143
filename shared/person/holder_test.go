package person

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

const holderID = "01JHTZY0000000000000000000"

// holders lets users of acme sign in, by their addresses.
func (w *world) holders(byMail map[string]Holder) {
	w.Holder = func(_ context.Context, t table.TenantID, address string) (Holder, error) {
		if h, ok := byMail[fold(address)]; ok && t == acme {
			return h, nil
		}
		return Holder{}, problem.ErrNotFound
	}
}

func TestHolderSignsIn(t *testing.T) {
	w := newWorld(t)
	bob := Holder{holderID, "Bob", "bob@acme.example"}
	users := map[string]Holder{"bob@acme.example": bob}
	w.holders(users)
	begun := w.begin("BOB@acme.example")
	code, link := w.mailed(begun.ID)
	if _, _, err := w.ByCode(t.Context(), begun.Token, wrong(code), browser); !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("a wrong code: %v", err)
	}
	s, cookie, err := w.ByCode(t.Context(), begun.Token, code, browser)
	if err != nil {
		t.Fatal(err)
	}
	want := Session{ID: s.ID, Tenant: acme, UserID: holderID, Name: "Bob", Mail: "bob@acme.example", Roles: []tenant.Role{tenant.RoleSelf},
		Method: ByMail, Device: browser, CreatedAt: w.Now(), SeenAt: w.Now(), ConfirmedAt: w.Now(), hash: s.hash, stored: 1}
	if d := cmp.Diff(want, s, unexported); d != "" {
		t.Errorf("session (-want +got):\n%s", d)
	}
	if got, _, err := w.Authenticate(t.Context(), cookie); cmp.Diff(want, got, unexported) != "" || err != nil {
		t.Errorf("authenticated %+v, %v", got, err)
	}
	if s.Actor() != (audit.Actor{Kind: audit.Self, ID: holderID}) || s.Idle() != DeskIdle || s.May(tenant.SetPIN) != tenant.Own || s.May(tenant.ListUsers) != tenant.No {
		t.Errorf("is %v, may be idle %s", s.Actor(), s.Idle())
	}
	if _, _, err := w.ByLink(t.Context(), link, browser); !errors.Is(err, ErrUsed) {
		t.Errorf("the link afterwards: %v", err)
	}
	if d := cmp.Diff([]string{"tenant.created done", "person.signInBegun done", "person.signedIn refused wrongCode", "person.signedIn done", "person.signedIn refused used"}, w.audited(acme)); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
	for _, r := range w.records(acme)[1:] {
		if r.Subject != "user/"+holderID {
			t.Errorf("%s is about %s", r.Action, r.Subject)
		}
	}

	// It is confirmed, listed and ended as a person's, and is in no list of theirs.
	w.pass(FreshFor)
	if err := w.BeginConfirm(t.Context(), w.core, s); err != nil {
		t.Fatal(err)
	}
	again, _ := w.mailed("confirm-code.")
	if s, err = w.ConfirmByCode(t.Context(), w.core, s, again); err != nil || !w.Fresh(s) {
		t.Errorf("confirmed: %v", err)
	}
	if all, err := w.Sessions(t.Context(), acme); len(all) != 0 || err != nil {
		t.Errorf("people's sessions: %v, %v", all, err)
	}
	w.pass(mailWindow)
	begun = w.begin("bob@acme.example")
	code, _ = w.mailed(begun.ID)
	other, otherCookie, err := w.ByCode(t.Context(), begun.Token, code, browser)
	if err != nil {
		t.Fatal(err)
	}
	listed := func(want int) {
		t.Helper()
		if all, err := w.SessionsOf(t.Context(), acme, s.Owner()); len(all) != want || err != nil {
			t.Errorf("%d sessions, want %d; %v", len(all), want, err)
		}
	}
	listed(2)
	if err := w.End(t.Context(), w.core, s.Actor(), s.Owner(), other.ID); err != nil {
		t.Error(err)
	}
	if _, _, err := w.Authenticate(t.Context(), otherCookie); !errors.Is(err, ErrNoSession) {
		t.Errorf("the ended one: %v", err)
	}
	listed(1)
	if err := w.EndAll(t.Context(), w.core, s.Actor(), s.Owner()); err != nil {
		t.Error(err)
	}
	listed(0)
}

// Who is not one user by now, or has become somebody else, is let in by nothing.
func TestHolderIsGone(t *testing.T) {
	for name, change := range map[string]func(w *world, users map[string]Holder){
		"deleted": func(_ *world, users map[string]Holder) { delete(users, "bob@acme.example") },
		"another address": func(_ *world, users map[string]Holder) {
			users["bob@acme.example"] = Holder{"01JHTZY0000000000000000001", "Eve", "bob@acme.example"}
		},
		"suspended": func(w *world, _ map[string]Holder) {
			must(w.Tenants.Suspend(w.Context(), office, acme, true))(w)
		},
		"too late": func(w *world, _ map[string]Holder) { w.pass(MailLife) },
	} {
		w := newWorld(t)
		users := map[string]Holder{"bob@acme.example": {holderID, "Bob", "bob@acme.example"}}
		w.holders(users)
		begun := w.begin("bob@acme.example")
		code, _ := w.mailed(begun.ID)
		change(w, users)
		if s, _, err := w.ByCode(t.Context(), begun.Token, code, browser); !errors.Is(err, problem.ErrUnauthenticated) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}

// One who signs in to work here is not let in as a user, whatever is known of the address.
func TestPersonComesFirst(t *testing.T) {
	w := newWorld(t)
	ada := w.person("Ada", tenant.RoleAdmin)
	w.holders(map[string]Holder{"ada@acme.example": {holderID, "Ada", "ada@acme.example"}})
	enter := func() Session {
		begun := w.begin("ada@acme.example")
		code, _ := w.mailed(begun.ID)
		s, _, err := w.ByCode(t.Context(), begun.Token, code, browser)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := enter(); s.PersonID != ada.ID || s.UserID != "" {
		t.Errorf("signed in as %s, %s", s.PersonID, s.UserID)
	}
	w.person("Bob", tenant.RoleAdmin)
	must(w.Update(t.Context(), w.core, office, ada.ID, 0, func(p *Person) { p.Disabled = true }))(t)
	sent := len(w.mails())
	w.begin("ada@acme.example")
	if len(w.mails()) != sent {
		t.Error("somebody disabled was mailed")
	}
	if err := w.Delete(t.Context(), w.core, office, ada.ID, 0); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Hour)
	if s := enter(); s.UserID != holderID || s.PersonID != "" {
		t.Errorf("signed in as %s, %s", s.PersonID, s.UserID)
	}
}

// Users are mailed or not by the same calls to the table as everybody.
func TestBeginTellsNothingOfHolders(t *testing.T) {
	w := newWorld(t)
	w.person("Ada", tenant.RoleAdmin)
	w.holders(map[string]Holder{"bob@acme.example": {holderID, "Bob", "bob@acme.example"}})
	var want tabletest.Calls
	for i, address := range []string{"ada@acme.example", "bob@acme.example", "eve@acme.example"} {
		w.table.Take()
		begun := w.begin(address)
		got := w.table.Take()
		got.Queried = 0
		if i == 0 {
			want = got
		}
		if d := cmp.Diff(want, got); d != "" || len(begun.Token.Reveal()) != len("pwa_acme_")+26+1+52 {
			t.Errorf("%s: calls (-known +this):\n%s", address, d)
		}
	}
	if len(w.mails()) != 2 {
		t.Errorf("%d mails", len(w.mails()))
	}
}
