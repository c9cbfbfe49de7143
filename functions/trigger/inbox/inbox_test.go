package inbox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/functions/trigger/inbox"
	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
	"github.com/pinward/pinward/shared/vault"
)

const acme = table.TenantID("acme")

var (
	start = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	admin = audit.Actor{Kind: audit.API, ID: "k1"}
)

// world is an installation with the tenants acme, whose first print job gives a PIN, and
// idle, which is suspended; and whatever it logs.
type world struct {
	testing.TB
	*wiring.System
	*inbox.Inbox
	outbox *mail.Outbox
	log    *testserver.Buffer
}

func newWorld(tb testing.TB, over table.Table) *world {
	tb.Helper()
	root, err := vault.LocalRoot(filepath.Join(tb.TempDir(), "root.key"))
	if err != nil {
		tb.Fatal(err)
	}
	outbox, err := mail.OpenOutbox(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = outbox.Close() })
	now := func() time.Time { return start }
	w := &world{TB: tb, outbox: outbox, log: new(testserver.Buffer)}
	w.System = wiring.New(wiring.Parts{Table: over, Root: root, Senders: mail.Senders{Outbox: outbox, Now: now}, Now: now,
		Log: slog.New(slog.NewJSONHandler(w.log, nil))})
	w.Inbox = w.Trigger()
	return w
}

// furnish makes the tenants, their rules, and ada.
func (w *world) furnish() {
	w.Helper()
	must := func(err error) {
		w.Helper()
		if err != nil {
			w.Fatal(err)
		}
	}
	for _, id := range []table.TenantID{acme, "idle"} {
		core, _, err := w.System.Tenants.Create(w.Context(), admin, tenant.Tenant{ID: id, Settings: tenant.Settings{DisplayName: "Acme", TimeZone: "UTC", Language: "en"}})
		must(err)
		op, err := mail.Store{Table: w.Table, Tenant: id, Keys: core.Keys}.PutConfiguration(w.Context(), mail.Configuration{ID: "outbox", Name: "Outbox", Kind: mail.KindOutbox, From: "pins@acme.example"})
		must(err)
		must(w.Table.Write(w.Context(), op))
		s := core.Tenant.Settings
		s.ExpiryMail.Messaging = "outbox"
		_, err = w.System.Tenants.ChangeSettings(w.Context(), admin, core, s)
		must(err)
	}
	_, err := w.System.Tenants.Suspend(w.Context(), admin, "idle", true)
	must(err)
	core := w.core()
	first, err := w.Rules.Get(w.Context(), acme, rule.FirstPrintJob)
	must(err)
	first.On = true
	_, err = w.Rules.Update(w.Context(), core, admin, first)
	must(err)
	_, err = w.Rules.Create(w.Context(), core, admin, rule.Rule{Name: "set", On: true, Event: "custom.set", Actions: []rule.Action{{Kind: rule.SetPIN, Attribute: "pin"}}})
	must(err)
	_, err = w.Users.Create(w.Context(), core, admin, user.Profile{Username: "ada", Mail: "ada@acme.example"}, nil)
	must(err)
}

func (w *world) core() tenant.Core {
	w.Helper()
	core, err := w.System.Tenants.Load(w.Context(), acme)
	if err != nil {
		w.Fatal(err)
	}
	return core
}

// queue is a delivery of messages, by their ids.
func queue(bodies ...string) json.RawMessage {
	type message struct {
		MessageID   string `json:"messageId"`
		EventSource string `json:"eventSource"`
		Body        string `json:"body"`
	}
	var batch struct {
		Records []message `json:"Records"`
	}
	for i, b := range bodies {
		batch.Records = append(batch.Records, message{fmt.Sprint("m", i), "aws:sqs", b})
	}
	raw, _ := json.Marshal(batch)
	return raw
}

func printJob(id string) string {
	return `{"tenant": "acme", "id": "` + id + `", "type": "print-job.submitted", "time": "2026-11-21T09:59:00Z", "user": {"username": "ada"}}`
}

// canaries are what must not be found in a log or an error.
const (
	canaryPIN  = "739158462"
	canaryName = "unmistakable-name"
)

// TestQueue shows that of a batch just those messages are to be delivered again that could
// not be taken in.
func TestQueue(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	w.furnish()
	bodies := []string{
		printJob("job-1"),
		printJob("job-1"), // a duplicate is taken in
		`{"tenant": "acme", "type": "print-job.submitted", "time": "2026-11-21T09:59:00Z"}`, // 2: without an id
		`{"tenant": "acme", "id": "x", "type": "print-job.submited", "time": "2026-11-21T09:59:00Z", "user": {"username": "` + canaryName + `"}}`,
		strings.Replace(printJob("job-2"), "acme", "nobody", 1),
		strings.Replace(printJob("job-3"), "acme", "idle", 1),
		`not JSON at all ` + canaryPIN,
		`{"tenant": "acme", "id": "y", "pin": "` + canaryPIN + `"}`,
		printJob("job-4") + `{}`,
		strings.Replace(printJob("job-5"), "2026-11-21T", "2024-11-21T", 1),
		`{"tenant": "acme", "id": "set-1", "type": "custom.set", "time": "2026-11-21T09:59:00Z", "user": {"username": "ada"}, "secretAttributes": {"pin": "` + canaryPIN + `"}}`,
		`{"tenant": "acme", "id": "set-2", "type": "custom.set", "time": "2026-11-21T09:59:00Z", "user": {"id": "a", "username": "b"}, "secretAttributes": {"pin": "` + canaryPIN + `"}}`,
	}
	got, err := w.Handle(t.Context(), queue(bodies...))
	if err != nil {
		t.Fatal(err)
	}
	var failed []string
	for _, f := range got.BatchItemFailures {
		failed = append(failed, f.ItemIdentifier)
	}
	if diff := cmp.Diff([]string{"m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9", "m11"}, failed); diff != "" {
		t.Errorf("to be delivered again: -want +got:\n%s", diff)
	}
	mails, err := w.outbox.List(10)
	if err != nil || len(mails) != 1 {
		t.Errorf("%d mails, %v", len(mails), err)
	}
	for _, secret := range []string{canaryPIN, canaryName} {
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
	if !strings.Contains(w.log.String(), "type:unknown") {
		t.Errorf("the log does not tell what was refused: %s", w.log)
	}
}

// TestBus shows events of a bus, whose id, type and time are the envelope's.
func TestBus(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	w.furnish()
	envelope := func(kind, detail string) json.RawMessage {
		return json.RawMessage(`{"version": "0", "id": "6a7e8feb-b491-4cf7-a9f1-bf3703467718", "detail-type": "` + kind + `", "source": "acme.print",
			"account": "111122223333", "time": "2026-11-21T09:59:00Z", "region": "eu-central-1", "resources": [], "detail": ` + detail + `}`)
	}
	for _, test := range []struct {
		name    string
		raw     json.RawMessage
		wantErr bool
	}{
		{"good", envelope("print-job.submitted", `{"tenant": "acme", "user": {"username": "ada"}}`), false},
		{"once more", envelope("print-job.submitted", `{"tenant": "acme", "user": {"username": "ada"}}`), false},
		{"two types", envelope("print-job.submitted", `{"tenant": "acme", "type": "user.signed-in"}`), true},
		{"unknown type", envelope("Scheduled Event", `{"tenant": "acme"}`), true},
		{"type from inside", envelope("pin.expired", `{"tenant": "acme"}`), true},
		{"unknown tenant", envelope("user.signed-in", `{"tenant": "nobody"}`), true},
		{"unknown field", envelope("user.signed-in", `{"tenant": "acme", "pin": "`+canaryPIN+`"}`), true},
		{"no tenant", envelope("user.signed-in", `{}`), true},
		{"nothing", json.RawMessage(`{}`), true},
		{"nonsense", json.RawMessage(`"` + canaryPIN + `"`), true},
		{"another source", json.RawMessage(`{"Records": [{"eventSource": "aws:s3"}]}`), true},
	} {
		got, err := w.Handle(t.Context(), test.raw)
		if (err != nil) != test.wantErr || len(got.BatchItemFailures) > 0 {
			t.Errorf("%s: %+v, %v", test.name, got, err)
		}
		if err != nil && strings.Contains(err.Error(), canaryPIN) {
			t.Errorf("%s: the error has what was sent: %v", test.name, err)
		}
	}
	e, err := event.Get(t.Context(), w.Table, acme, "6a7e8feb-b491-4cf7-a9f1-bf3703467718")
	if err != nil || e.Source != event.FromBus || !e.At.Equal(start.Add(-time.Minute)) || len(e.Runs) != 1 || e.Runs[0].Outcome != event.Acted {
		t.Errorf("the event is %+v, %v", e, err)
	}
	if strings.Contains(w.log.String(), canaryPIN) {
		t.Error("the log has what was sent")
	}
}

// TestBounces shows that what SES tells reaches its user, on both ways.
func TestBounces(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	w.furnish()
	ada, err := w.Users.ByUsername(t.Context(), acme, "ada")
	if err != nil {
		t.Fatal(err)
	}
	captured := func(name string) json.RawMessage {
		t.Helper()
		raw, err := os.ReadFile("../../../testdata/events/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for _, name := range []string{"ses-eventbridge-bounce.json", "ses-eventbridge-complaint.json", "ses-sns-lambda-complaint.json"} { // of users whom nobody has
		if _, err := w.Handle(t.Context(), captured(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	raw, err := w.bounce(captured("ses-eventbridge-bounce.json"), ada)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Handle(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	if ada, err = w.Users.Get(t.Context(), acme, ada.ID); err != nil || ada.Unreachable() != user.ReasonUndeliverable {
		t.Errorf("after a bounce she is %q, %v", ada.Unreachable(), err)
	}
	got, err := w.Handle(t.Context(), queue(printJob("job-1")))
	if err != nil || len(got.BatchItemFailures) > 0 {
		t.Fatal(got, err)
	}
	e, err := event.Get(t.Context(), w.Table, acme, "job-1")
	if err != nil || len(e.Runs) != 1 || len(e.Runs[0].Effects) != 1 || e.Runs[0].Effects[0].Reason != "undeliverable" {
		t.Errorf("a PIN for her: %+v, %v", e.Runs, err)
	}
}

// bounce makes a captured bounce one of a mail to a user of acme, just now.
func (w *world) bounce(raw json.RawMessage, u user.User) (json.RawMessage, error) {
	var e map[string]any
	if err := json.Unmarshal(raw, &e); err != nil {
		return nil, err
	}
	detail, _ := e["detail"].(map[string]any)
	sent, _ := detail["mail"].(map[string]any)
	bounced, _ := detail["bounce"].(map[string]any)
	if sent == nil || bounced == nil {
		return nil, errors.New("the captured event is no bounce")
	}
	sent["timestamp"], sent["destination"] = start.Format(time.RFC3339), []string{u.Profile.Mail}
	sent["tags"] = map[string][]string{"pinward-tenant": {string(acme)}, "pinward-user": {u.ID}}
	bounced["bouncedRecipients"] = []any{map[string]any{"emailAddress": u.Profile.Mail, "action": "failed", "status": "5.1.1"}}
	return json.Marshal(e)
}

// TestFaults interrupts a delivery at every call to the table: what is reported as failed and
// delivered again has its effect once.
func TestFaults(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			good := tabletest.New(t)
			w := newWorld(t, good)
			w.furnish()
			faulty := tabletest.Fail(good, n, after)
			broken := *w.System
			broken.Parts.Table = faulty
			got, err := wiring.New(broken.Parts).Trigger().Handle(t.Context(), queue(printJob("job-1")))
			if err != nil {
				t.Fatal(err)
			}
			for range len(got.BatchItemFailures) { // SQS does so
				if got, err := w.Handle(t.Context(), queue(printJob("job-1"))); err != nil || len(got.BatchItemFailures) > 0 {
					t.Errorf("call %d, after %t: delivered again: %+v, %v", n, after, got, err)
				}
			}
			e, err := event.Get(t.Context(), good, acme, "job-1")
			if err != nil || e.State != event.Done || len(e.Runs) != 1 || e.Runs[0].Outcome != event.Acted {
				t.Errorf("call %d, after %t: %+v, %v", n, after, e, err)
			}
			ada, err := w.Users.ByUsername(t.Context(), acme, "ada")
			if err != nil || ada.PIN.State(start) != user.IsSet && !ada.Pending.Waits() {
				t.Errorf("call %d, after %t: she has %s, and none on its way, %v", n, after, ada.PIN.State(start), err)
			}
			if faulty.Calls() < n {
				break
			}
		}
	}
}
