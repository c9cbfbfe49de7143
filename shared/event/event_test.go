package event

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

var now = time.Date(2026, 11, 21, 10, 0, 0, 123, time.UTC)

func newCore(t *testing.T, id table.TenantID, waits ...string) tenant.Core {
	t.Helper()
	root, err := vault.LocalRoot(filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	_, keys, err := vault.New(root).Create(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return tenant.Core{Tenant: tenant.Tenant{ID: id}, Keys: keys, Watch: tenant.Watch{Types: waits}}
}

func outside(id string) Event {
	return Event{ID: id, Type: PrintJobSubmitted, At: now, Ref: Ref{Username: "ada"}, Source: FromAPI}
}

func TestValidate(t *testing.T) {
	with := func(edit func(*Event)) Event {
		e := outside("job-1")
		edit(&e)
		return e
	}
	many := map[string]string{}
	for i := range 1_000_000 {
		many[fmt.Sprint("a", i)] = ""
	}
	for _, test := range []struct {
		name  string
		event Event
		want  []string // code field
	}{
		{"good", outside("job-1"), nil},
		{"custom type", with(func(e *Event) { e.Type = "custom.door-opened.front" }), nil},
		{"nobody", with(func(e *Event) { e.Ref = Ref{} }), nil},
		{"no id", outside(""), []string{"form id"}},
		{"id with space", outside("job 1"), []string{"form id"}},
		{"long id", outside(strings.Repeat("a", 201)), []string{"form id"}},
		{"Pinward's own id", outside("pinward:pin.set/1"), []string{"reserved id"}},
		{"misspelt type", with(func(e *Event) { e.Type = "print-job.submited" }), []string{"unknown type"}},
		{"custom type without a name", with(func(e *Event) { e.Type = "custom." }), []string{"unknown type"}},
		{"type from inside", with(func(e *Event) { e.Type = PINExpired }), []string{"reserved type"}},
		{"two references", with(func(e *Event) { e.Ref.Mail = "ada@example.org" }), []string{"reference user"}},
		{"no time", with(func(e *Event) { e.At = time.Time{} }), []string{"missing time"}},
		{"a million attributes", with(func(e *Event) { e.Attributes = many }), []string{"count attributes"}},
		{"attribute's name", with(func(e *Event) { e.Attributes = map[string]string{"0\n": ""} }), []string{"form attributes"}},
		{"attribute's length", with(func(e *Event) { e.Attributes = map[string]string{"a": strings.Repeat("x", 1001)} }), []string{"length attributes.a"}},
		{"control character", with(func(e *Event) { e.Secrets = map[string]secret.Text{"pin": secret.New("12\n34")} }), []string{"characters secretAttributes.pin"}},
		{"twice", with(func(e *Event) {
			e.Attributes, e.Secrets = map[string]string{"pin": "x"}, map[string]secret.Text{"pin": secret.New("y")}
		}), []string{"repeated secretAttributes.pin"}},
	} {
		var got []string
		var invalid *problem.InvalidError
		if err := test.event.Validate(); errors.As(err, &invalid) {
			for _, v := range invalid.Violations {
				got = append(got, v.Code+" "+v.Field)
			}
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", test.name, diff)
		}
	}
}

// TestOps shows that an event of Pinward's own is stored where a rule waits for it, and only
// there, and that it cannot be taken by one from outside.
func TestOps(t *testing.T) {
	tab := tabletest.New(t)
	core := newCore(t, "acme", string(PINSet))
	ctx := Within(t.Context(), []string{"rule1"})
	if ops := Ops(ctx, core, now, Event{Type: PINExpired, User: "U"}, "U/1"); len(ops) != 0 {
		t.Errorf("an event that nothing waits for is %d ops", len(ops))
	}
	ops := Ops(ctx, core, now, Event{Type: PINSet, User: "U", Attributes: map[string]string{"how": "chosen"}}, "U/1")
	if err := tab.Write(ctx, ops...); err != nil {
		t.Fatal(err)
	}
	due, next, err := DueBefore(ctx, tab, table.Shard(mustGet(t, tab, "pinward:pin.set/U/1").Place, table.EventDueShards), now, "", 10)
	if diff := cmp.Diff([]Due{{Tenant: "acme", ID: "pinward:pin.set/U/1", ReceivedAt: now.Truncate(time.Second)}}, due); diff != "" || next != "" || err != nil {
		t.Errorf("due: %s, next %q, %v", diff, next, err)
	}
	e := mustGet(t, tab, "pinward:pin.set/U/1")
	want := Event{ID: "pinward:pin.set/U/1", Type: PINSet, At: now.Truncate(time.Second), Ref: Ref{ID: "U"}, User: "U",
		Attributes: map[string]string{"how": "chosen"}, Chain: []string{"rule1"}, Source: Inside,
		ReceivedAt: now.Truncate(time.Second), Place: e.Place, State: Waiting, DueAt: now.Truncate(time.Second), Version: 1}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Errorf("stored: -want +got:\n%s", diff)
	}
	if err := tab.Write(ctx, Ops(ctx, core, now, Event{Type: PINSet, User: "U"}, "U/1")...); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("the same change told twice: %v", err)
	}
}

func mustGet(t *testing.T, tab table.Table, id string) Event {
	t.Helper()
	e, err := Get(t.Context(), tab, "acme", id)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestSecrets shows that secrets are sealed while an event waits and gone once it is done.
func TestSecrets(t *testing.T) {
	tab := tabletest.New(t)
	core := newCore(t, "acme")
	const pin = "73915846"
	e := outside("job-1").Received("acme", now)
	e.DueAt, e.Secrets = now, map[string]secret.Text{"pin": secret.New(pin)}
	write := func(e Event) {
		t.Helper()
		if err := tab.Write(t.Context(), Put("acme", core.Keys, e)); err != nil {
			t.Fatal(err)
		}
		item, err := tab.Get(t.Context(), table.EventKey("acme", "job-1"))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(item.Data, []byte(pin)) {
			t.Errorf("the secret is in the table: %s", item.Data)
		}
	}
	write(e)
	if got := mustGet(t, tab, "job-1"); got.Secrets != nil {
		t.Error("Get returns secrets")
	}
	got, err := WithSecrets(t.Context(), tab, "acme", core.Keys, "job-1")
	if err != nil || got.Secrets["pin"].Reveal() != pin {
		t.Errorf("WithSecrets: %v, %v", got.Secrets, err)
	}
	if _, err := WithSecrets(t.Context(), tab, "acme", newCore(t, "acme").Keys, "job-1"); err == nil || strings.Contains(err.Error(), pin) {
		t.Errorf("with other keys: %v", err)
	}
	got.State = Done
	write(got)
	if got, err := WithSecrets(t.Context(), tab, "acme", core.Keys, "job-1"); err != nil || got.Secrets != nil {
		t.Errorf("secrets of an event that is done: %v, %v", got.Secrets, err)
	}
}

func TestList(t *testing.T) {
	tab := tabletest.New(t)
	core := newCore(t, "acme")
	other := newCore(t, "other")
	var want []string
	for i := range 25 {
		e := outside(fmt.Sprint("job-", i)).Received("acme", now.Add(time.Duration(i)*time.Second))
		if err := tab.Write(t.Context(), Put("acme", core.Keys, e)); err != nil {
			t.Fatal(err)
		}
		want = append([]string{e.ID}, want...)
	}
	if err := tab.Write(t.Context(), Put("other", other.Keys, outside("job-1").Received("other", now))); err != nil {
		t.Errorf("another tenant's event of the same id: %v", err)
	}
	var got []string
	for place := ""; ; {
		events, next, err := List(t.Context(), tab, "acme", place, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			got = append(got, e.ID)
		}
		if place = next; place == "" {
			break
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("newest first: -want +got:\n%s", diff)
	}
	since, next, err := Since(t.Context(), tab, "acme", now.Add(22*time.Second), "", 10)
	if err != nil || next != "" || len(since) != 3 || since[0].ID != "job-22" {
		t.Errorf("since a time: %d events, next %q, %v", len(since), next, err)
	}
}
