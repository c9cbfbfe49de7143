package unblock

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

// What came of an unblock is told once it is known, and a result that comes late corrects it
// once.
func TestTold(t *testing.T) {
	yes, no, unknown := card.Outcome{PIN: card.Yes}, card.Outcome{PIN: card.No}, card.Outcome{PIN: card.Unknown}
	for _, c := range []struct {
		name string
		kind Kind
		path []Operation
		want []string
	}{
		{"success", Unblock, []Operation{{State: Proven}, {State: Running}, {State: Succeeded, Outcome: yes}}, []string{"unblock.succeeded "}},
		{"failure", Unblock, []Operation{{State: Requested}, {State: Failed, Reason: ReasonWrongCode}}, []string{"unblock.failed wrongCode"}},
		{"in doubt, then known", Unblock, []Operation{{State: Running}, {State: Unknown}, {State: Reconciled, Outcome: yes}, {State: Succeeded, Outcome: yes}}, []string{"unblock.succeeded "}},
		{"in doubt, and not done", Unblock, []Operation{{State: Unknown}, {State: Reconciled, Outcome: no}}, []string{"unblock.failed noAnswer"}},
		{"in doubt for ever", Unblock, []Operation{{State: Unknown}, {State: Reconciled, Outcome: unknown}}, []string{"unblock.failed outcomeUnknown"}},
		{"a late result", Unblock, []Operation{{State: Running}, {State: Failed, Reason: ReasonNoAnswer}, {State: Succeeded, Outcome: yes}}, []string{"unblock.failed noAnswer", "unblock.succeeded "}},
		{"a PUK changed", Rotate, []Operation{{State: Running}, {State: Succeeded}}, nil},
		{"a PUK found out", Reconcile, []Operation{{State: Running}, {State: Failed}}, nil},
	} {
		tab := tabletest.New(t)
		core := tenant.Core{Tenant: tenant.Tenant{ID: "acme"}, Watch: tenant.Watch{Types: []string{string(event.UnblockSucceeded), string(event.UnblockFailed)}}}
		was := Operation{}
		for i, op := range c.path {
			op.ID, op.Kind, op.Credential, op.Channel, op.Version = "01JOP", c.kind, "piv-00", "kiosk", int64(i)
			if ops := told(t.Context(), core, time.Unix(int64(i), 0), was, op, "01JUSER"); len(ops) > 0 {
				if err := tab.Write(t.Context(), ops...); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			}
			was = op
		}
		events, _, err := event.List(t.Context(), tab, "acme", "", 10)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for i := range events {
			e := events[len(events)-1-i]
			got = append(got, string(e.Type)+" "+e.Attributes["reason"])
			if e.User != "01JUSER" || e.Card != "piv-00" || e.Attributes["channel"] != "kiosk" {
				t.Errorf("%s: %+v", c.name, e)
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}
