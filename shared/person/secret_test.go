package person

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// recorder keeps all that was ever put into a table.
type recorder struct {
	table.Table
	mu  sync.Mutex
	all strings.Builder
}

// Write implements table.Table.
func (r *recorder) Write(ctx context.Context, ops ...table.Op) error {
	r.mu.Lock()
	for _, op := range ops {
		item := op.Item()
		fmt.Fprintf(&r.all, "%s %s %s %v\n", item.Key.Partition(), item.Key.Sort(), item.Data, item.Indexes)
	}
	r.mu.Unlock()
	return r.Table.Write(ctx, ops...)
}

// Whoever has the table, with the audit in it, or the log, has nothing to get in with: no
// code, no link, no cookie, neither those that were used nor those that were not.
func TestNoSecretIsStored(t *testing.T) {
	w := newWorld(t)
	kept := &recorder{Table: w.table}
	ps := w.on(kept)
	ctx := t.Context()
	ada, err := ps.Create(ctx, w.core, office, Person{Name: "Ada", Mail: "ada@acme.example", Roles: []tenant.Role{tenant.RoleOperator}})
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]string{}
	var errs []error
	note := func(what string, text secret.Text) {
		s := text.Reveal()
		secrets[what] = s[strings.LastIndex(s, "_")+1:]
	}
	enter := func(what string, cookie secret.Text, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(what, err)
		}
		note("cookie by "+what, cookie)
		if _, _, err := ps.Authenticate(ctx, cookie); err != nil {
			t.Fatal(what, err)
		}
	}
	for _, what := range []string{"code", "link", "nothing"} {
		begun, err := ps.Begin(ctx, acme, ada.Mail, client)
		if err != nil {
			t.Fatal(err)
		}
		code, link := w.mailed(begun.ID)
		note("code, for "+what, code)
		note("link, for "+what, link)
		note("attempt, for "+what, begun.Token)
		note("wrong code, for "+what, wrong(code))
		errs = append(errs, third(ps.ByCode(ctx, begun.Token, wrong(code), browser)))
		switch what {
		case "code":
			_, cookie, err := ps.ByCode(ctx, begun.Token, code, browser)
			enter(what, cookie, err)
			errs = append(errs, third(ps.ByCode(ctx, begun.Token, code, browser)))
		case "link":
			_, cookie, err := ps.ByLink(ctx, link, browser)
			enter(what, cookie, err)
			errs = append(errs, third(ps.ByLink(ctx, link, browser)))
		}
	}
	link, _, err := ps.Link(ctx, w.core, office, ada.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	note("link handed over", link)
	_, cookie, err := ps.ByLink(ctx, link, browser)
	enter("link handed over", cookie, err)
	w.pass(2 * time.Minute)
	s, _, err := ps.Authenticate(ctx, cookie) // writes the session
	if err != nil {
		t.Fatal(err)
	}
	if err := ps.BeginConfirm(ctx, w.core, s); err != nil {
		t.Fatal(err)
	}
	code, _ := w.mailed("confirm-code")
	note("code to confirm", code)
	errs = append(errs, second(ps.ConfirmByCode(ctx, w.core, s, wrong(code))), second(ps.ConfirmByCode(ctx, w.core, s, code)))
	ps.BaseURL = ""
	w.pass(mailWindow)
	if _, err := ps.Begin(ctx, acme, ada.Mail, client); err != nil { // is logged
		t.Fatal(err)
	}

	places := map[string]string{"table": kept.all.String(), "log": w.log.String(), "errors": fmt.Sprint(errs), "values": fmt.Sprintf("%+v %#v", s, ada)}
	for place, text := range places {
		if text == "" {
			t.Errorf("nothing is in the %s", place)
		}
		for what, plain := range secrets {
			digits := strings.ReplaceAll(plain, " ", "")
			for _, form := range []string{plain, digits, hex.EncodeToString([]byte(digits)), base64.StdEncoding.EncodeToString([]byte(digits))} {
				if strings.Contains(text, form) {
					t.Errorf("the %s is in the %s", what, place)
				}
			}
		}
	}
	if strings.Contains(places["log"], "ada@") {
		t.Errorf("the log names an address: %s", places["log"])
	}
	if !strings.Contains(places["table"], "wrongCode") || len(secrets) < 15 {
		t.Errorf("too little was looked at: %d secrets", len(secrets))
	}
}
