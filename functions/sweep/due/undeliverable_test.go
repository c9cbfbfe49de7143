package due

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/user"
)

// Nothing more is mailed to an address that a mail server says is none, of PINs or of cards,
// and of that the administrators of a card are told all the same.
func TestNoMailbox(t *testing.T) {
	w, server := newWorld(t, tabletest.New(t)), smtpServer(t)
	w.smtp(server)
	server.Fault("ada@mailbox.example", testserver.SMTPReject)
	server.Fault("bob@mailbox.example", testserver.SMTPReject)
	ada := w.userOf(w.core(acme), "ada", "ada@mailbox.example") // it is found out with her PIN
	bob := w.holder("bob", "bob@mailbox.example")               // and with his card
	c := w.card(w.cards(func(x *credential.Template) {
		x.Messaging, x.OperatorMail = w.core(acme).Tenant.Settings.ExpiryMail.Messaging, "desk@mailbox.example"
	}), 1, bob.ID)
	w.pass(24 * time.Hour)
	w.does(Report{Due: 1, Refused: 1})
	w.pass(15 * day)
	w.sweeps(CardReport{Due: 1, Refused: 1})
	for _, u := range []user.User{ada, bob} {
		if p := w.reread(u).MailProblem; p.Kind != user.MailboxRefused || p.Code != "smtp.550" {
			t.Errorf("%s: %+v", u.Profile.Username, p)
		}
	}
	w.renew(ada)
	w.pass(24 * time.Hour)
	if r := w.Run(t.Context()); r.Skipped != 1 || r.Due != 1 {
		t.Errorf("Ada's next PIN: %+v", r)
	}
	for range 16 {
		w.pass(day)
		if r := w.Cards(t.Context()); r.Refused != 0 || r.Errors != 0 {
			t.Errorf("Bob's card: %+v", r)
		}
	}
	if h := w.history(ada); !slices.Contains(h, "pin.notice skipped undeliverable") || !slices.Contains(h, "mail.undeliverable  refused") && !slices.Contains(h, "mail.undeliverable refused") {
		t.Errorf("Ada's history: %q", h)
	}
	if h := w.cardHistory(c); !slices.Contains(h, "credential.notice reminder 7 skipped undeliverable") || !slices.Contains(h, "credential.notice expiredOperators sent") {
		t.Errorf("the card's history: %q", h)
	}
	if got := received(t, server, "desk@mailbox.example"); len(got) != 1 {
		t.Errorf("operators got %q", got)
	}
}

// Mails name their tenant and user to the mail system, and those to operators nobody.
func TestMailsNameTheirUser(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	seen := &witness{}
	ada := w.user("ada")
	w.pass(24 * time.Hour)
	r := &run{Sweep: w.Sweep}
	o := &office{core: w.core(acme), sender: seen, template: mail.Predefined(mail.PINExpiry, "en")}
	r.send(t.Context(), o, []user.User{w.reread(ada)})
	c := w.card(w.cards(), 1, ada.ID)
	cr := &cardRun{run: run{Sweep: w.Sweep}}
	k := claim{credential: c, counter: &counter{office: o, text: mail.Predefined(mail.CardPINExpiry, "en")}, holder: ada, to: ada.Profile.Mail}
	k.credential.Notice.Kind = credential.NoticeReminder
	ops := k
	ops.to, ops.holder = "desk@acme.example", ada
	cr.send(t.Context(), &system{sender: seen}, []claim{k, ops})
	want := []string{"acme/" + ada.ID, "acme/" + ada.ID, "/"}
	if d := cmp.Diff(want, seen.whose); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
