package rule_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/secret"
)

// TestCanary looks for every PIN that rules have made or set, in all forms in which it could
// be written, wherever it must not be: in the table's file, the log, the answers, the audit
// log and what webhooks were told. It is in its owner's mail only.
func TestCanary(t *testing.T) {
	w := newWorld(t)
	var told testserver.Buffer
	hooks := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_ = r.Header.Write(&told)
		_, _ = io.Copy(&told, r.Body)
	}))
	defer hooks.Close()
	w.Deliveries.Anywhere = true
	endpoint, _, err := w.Deliveries.CreateEndpoint(t.Context(), w.core(acme), admin, delivery.Endpoint{Name: "hooks", URL: hooks.URL, On: true})
	if err != nil {
		t.Fatal(err)
	}
	core := w.core(acme)
	p := core.Policy.Policy
	p.MinLength = 10 // so long that none is found by chance
	if _, err := w.Tenants.ChangePolicy(t.Context(), admin, core, p); err != nil {
		t.Fatal(err)
	}
	hook := rule.Action{Kind: rule.CallWebhook, Endpoint: endpoint.ID}
	w.rule("custom.make", rule.Conditions{}, rule.Action{Kind: rule.GeneratePIN, Length: 10}, hook, rule.Action{Kind: rule.SendMail, Message: "done"})
	w.rule("custom.set", rule.Conditions{}, rule.Action{Kind: rule.SetPIN, Attribute: "pin"}, hook)
	w.rule(event.PINSet, rule.Conditions{}, hook)

	const users = 20
	var answers bytes.Buffer
	answered := func(e event.Event) {
		t.Helper()
		a, err := w.receive(e)
		fmt.Fprintf(&answers, "%+v %#v %v\n", a, a, err)
		if err := json.NewEncoder(&answers).Encode(a); err != nil {
			t.Fatal(err)
		}
	}
	var secrets []string
	for i := range users {
		name := fmt.Sprint("user", i)
		w.user(name, "")
		e := printJob("make-"+name, name)
		e.Type = "custom.make"
		answered(e)
		given := fmt.Sprintf("%d829406175", i%9+1)
		if i%4 == 0 {
			given = "1234567890" // refused
		}
		secrets = append(secrets, given)
		e = printJob("set-"+name, name)
		e.Type, e.Secrets = "custom.set", map[string]secret.Text{"pin": secret.New(given)}
		answered(e)
		answered(e)
		for _, m := range w.mails(name + "@") {
			if strings.HasPrefix(m.ID, "pin-issued.") {
				i := slices.IndexFunc(strings.Fields(m.Text), func(word string) bool { return len(word) == 10 && strings.Trim(word, "0123456789") == "" })
				if i < 0 {
					t.Fatalf("no PIN in %q", m.Text)
				}
				secrets = append(secrets, strings.Fields(m.Text)[i])
			}
		}
	}
	if len(secrets) != 2*users {
		t.Fatalf("%d PINs, want %d", len(secrets), 2*users)
	}
	// One more is on its way when the table is looked at.
	w.user("last", "")
	e := printJob("make-last", "last")
	e.Type = "custom.make"
	w.mustReceive(e)
	w.sweep()

	var records bytes.Buffer
	for day, last := start, w.Now(); !day.After(last); day = day.AddDate(0, 0, 1) {
		page, _, err := audit.Day(t.Context(), w.table, acme, day, "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.NewEncoder(&records).Encode(page); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.db.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(w.path)
	if err != nil {
		t.Fatal(err)
	}
	for name, where := range map[string]struct {
		bytes []byte
		holds string // to show that it is what is looked for
	}{
		"the table": {file, "user7@acme.example"}, "the log": {[]byte(w.log.String()), ""}, "the answers": {answers.Bytes(), "generatePIN"},
		"the audit log": {records.Bytes(), "rule.acted"}, "what webhooks were told": {[]byte(told.String()), "custom.make"},
	} {
		if !bytes.Contains(where.bytes, []byte(where.holds)) {
			t.Errorf("%s is not what is looked for", name)
		}
		for _, s := range secrets {
			for form, written := range testserver.Forms(s) {
				if bytes.Contains(where.bytes, written) {
					t.Errorf("%s has a PIN %s", name, form)
				}
			}
		}
	}
}
