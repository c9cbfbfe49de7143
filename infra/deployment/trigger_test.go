package deployment

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
)

// rules lets the first print job give a PIN; and when somebody walks, whether they have a card
// is asked, and that the card of the desk be unblocked.
func (d *desk) rules() {
	d.t.Helper()
	rule := d.do("GET", "/v1/trigger-rules/first-print-job", "", http.StatusOK)
	rule["on"] = true
	for _, shown := range []string{"id", "ready", "createdAt", "updatedAt", "warnings"} {
		delete(rule, shown)
	}
	body, err := json.Marshal(rule)
	if err != nil {
		d.t.Fatal(err)
	}
	d.do("PUT", "/v1/trigger-rules/first-print-job", string(body), http.StatusOK)
	d.do("POST", "/v1/trigger-rules", `{"name": "card", "on": true, "event": "custom.walk", "conditions": {"hasActiveCard": true}, "actions": [{"kind": "requireChange"}]}`, http.StatusCreated)
	d.do("POST", "/v1/trigger-rules", `{"name": "unblock", "on": true, "event": "custom.walk", "actions": [{"kind": "requestUnblock"}]}`, http.StatusCreated)
	d.do("POST", "/v1/users", `{"username": "zoe", "mail": "zoe@example.org"}`, http.StatusCreated)
}

// zoe prints for the first time, as a bus tells, and walks, as a queue does; then the mail with
// her PIN comes back.
func (d *desk) zoe(function *testserver.Lambda) {
	d.t.Helper()
	now := time.Now().UTC().Format(time.RFC3339)
	printed := d.captured("eventbridge-print-job.json")
	printed["time"] = now
	for range 2 { // EventBridge delivers at least once
		d.invoke(function, printed)
	}
	zoe := d.user("zoe")
	if pin := zoe["pin"].(map[string]any); pin["state"] != "set" || pin["mailed"] != true {
		d.t.Errorf("after her first print job zoe has %v", pin)
	}

	batch := d.captured("sqs-batch.json")
	records := batch["Records"].([]any)
	good, err := json.Marshal(map[string]any{"tenant": d.tenant, "id": "walk-1", "type": "custom.walk", "time": now, "user": map[string]string{"username": "zoe"}, "credential": d.credential})
	if err != nil {
		d.t.Fatal(err)
	}
	records[0].(map[string]any)["body"] = string(good)
	batch["Records"] = append(slices.Clone(records), records[0])
	want := map[string]any{"batchItemFailures": []any{
		map[string]any{"itemIdentifier": records[1].(map[string]any)["messageId"]}, map[string]any{"itemIdentifier": records[2].(map[string]any)["messageId"]},
	}}
	if diff := cmp.Diff(want, d.invoke(function, batch)); diff != "" {
		d.t.Errorf("to be delivered again (-want +got):\n%s", diff)
	}
	walked := d.do("GET", "/v1/event?id=walk-1", "", http.StatusOK)
	var outcomes []any
	for _, r := range walked["runs"].([]any) {
		run := r.(map[string]any)
		outcomes = append(outcomes, run["outcome"])
	}
	if diff := cmp.Diff([]any{"notMet", "acted"}, outcomes); diff != "" {
		d.t.Errorf("what became of her walk (-want +got):\n%s\n%v", diff, walked)
	}

	bounce := d.captured("ses-eventbridge-bounce.json")
	detail := bounce["detail"].(map[string]any)
	sent := detail["mail"].(map[string]any)
	sent["timestamp"], sent["destination"] = now, []string{"zoe@example.org"}
	sent["tags"] = map[string][]string{"pinward-tenant": {d.tenant}, "pinward-user": {zoe["id"].(string)}}
	detail["bounce"].(map[string]any)["bouncedRecipients"] = []any{map[string]string{"emailAddress": "zoe@example.org", "status": "5.1.1"}}
	d.invoke(function, bounce)
	if zoe = d.user("zoe"); zoe["mailProblem"] == nil {
		d.t.Errorf("after the mail came back zoe is %v", zoe)
	}
}

func (d *desk) user(name string) map[string]any {
	d.t.Helper()
	found := d.do("GET", "/v1/users?username="+name, "", http.StatusOK)["items"].([]any)
	if len(found) != 1 {
		d.t.Fatalf("%d users are called %s", len(found), name)
	}
	return found[0].(map[string]any)
}

func (d *desk) captured(name string) map[string]any {
	d.t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "testdata/events", name))
	var event map[string]any
	if err == nil {
		err = json.Unmarshal(raw, &event)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return event
}

func (d *desk) invoke(function *testserver.Lambda, event map[string]any) map[string]any {
	d.t.Helper()
	raw, err := json.Marshal(event)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := function.Invoke(ctx, raw)
	var answer map[string]any
	if err == nil {
		err = json.Unmarshal(out, &answer)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return answer
}
