package due

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"testing"

	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
)

// Handle goes on with deliveries, once a minute however the shards are split; and when
// nothing is due it only looks.
func TestHandleDeliveries(t *testing.T) {
	counting := tabletest.Count(tabletest.New(t))
	w := newWorld(t, counting)
	ada := w.holder("ada", "ada@acme.example")
	w.Deliveries.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody there") }
	endpoint, _, err := w.Deliveries.CreateEndpoint(t.Context(), w.core(acme), admin, delivery.Endpoint{Name: "x", URL: "https://hooks.example.org/", On: true})
	if err != nil {
		t.Fatal(err)
	}
	_, hook, err := w.Deliveries.Webhook(t.Context(), w.core(acme), endpoint.ID, delivery.Webhook{ID: "a", Body: json.RawMessage(`{}`)})
	if err != nil {
		t.Fatal(err)
	}
	_, notice, err := w.Deliveries.Mail(t.Context(), w.core(acme), delivery.Mail{ID: "b", User: ada.ID, Messaging: "outbox", Values: map[string]string{"event": "e", "message": "m"}})
	if err != nil {
		t.Fatal(err)
	}
	must(w, w.Table.Write(t.Context(), append(hook, notice...)...))
	for _, step := range []struct {
		event string
		want  delivery.Report
	}{
		{`{"shards":[1,2]}`, delivery.Report{}},
		{`{"shards":[0,3]}`, delivery.Report{Due: 2, Sent: 1, Again: 1}},
		{`{}`, delivery.Report{}},
	} {
		counting.Take()
		got, err := w.Handle(t.Context(), []byte(step.event))
		if err != nil || got.Deliveries != step.want {
			t.Errorf("%s: %+v, %v", step.event, got.Deliveries, err)
		}
		if calls := counting.Take(); step.event == "{}" {
			want := tabletest.Calls{Gets: 1, Writes: 1, Ops: 1, Queries: 2*table.DueShards + table.UnblockDueShards + table.OfflineDueShards + 2*table.JobDueShards + table.DeliveryDueShards + table.EventDueShards + table.DigestDueShards}
			t.Logf("nothing due: %+v", calls)
			if calls != want {
				t.Errorf("nothing due: %+v, want %+v", calls, want)
			}
		}
	}
}
