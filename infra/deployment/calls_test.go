package deployment

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

// call is something that a function did: on which resource, and with which value
// for the condition's key.
type call struct{ action, resource, value string }

// allows tells whether a statement allows a call.
func (s statement) allows(c call) bool {
	like := func(pattern string) bool { // "*" is anything, as the end of these patterns
		prefix, open := strings.CutSuffix(pattern, "*")
		return pattern == c.value || open && strings.HasPrefix(c.value, prefix)
	}
	return slices.Contains(s.Actions, c.action) && slices.Contains(s.Resources, c.resource) &&
		(s.Key == "" || slices.ContainsFunc(s.Values, like))
}

// recorder keeps what a function calls, in the words of its role's policy.
type recorder struct {
	mu    sync.Mutex
	calls map[call]bool
}

func (r *recorder) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		calls, err := callsOf(req, body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		if r.calls == nil {
			r.calls = map[call]bool{}
		}
		for _, c := range calls {
			r.calls[c] = true
		}
		r.mu.Unlock()
		next.ServeHTTP(w, req)
	})
}

// callsOf names a request as IAM does. A transaction is the calls it consists
// of ("Using IAM with DynamoDB transactions").
func callsOf(r *http.Request, body []byte) ([]call, error) {
	service, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	switch service {
	case "DynamoDB_20120810":
		type op struct {
			IndexName                            string
			Key, Item, ExpressionAttributeValues map[string]struct{ S string }
		}
		of := func(operation string, o op) call {
			c := call{"dynamodb:" + operation, "${Table.Arn}", o.Key["p"].S + o.Item["p"].S}
			if operation == "Query" {
				c.value = o.ExpressionAttributeValues[":p"].S
			}
			if o.IndexName != "" {
				c.resource += "/index/" + o.IndexName
			}
			return c
		}
		var in struct {
			op
			TransactItems []map[string]op
		}
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, err
		}
		if in.TransactItems == nil {
			return []call{of(operation, in.op)}, nil
		}
		var calls []call
		for _, item := range in.TransactItems {
			for kind, o := range item {
				calls = append(calls, of(kind+"Item", o))
			}
		}
		return calls, nil
	case "TrentService":
		var in struct{ EncryptionContext map[string]string }
		err := json.Unmarshal(body, &in)
		return []call{{"kms:" + operation, "${Key.Arn}", in.EncryptionContext["associatedData"]}}, err
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /v2/email/outbound-bulk-emails":
		return []call{{"ses:SendBulkEmail", sesFrom[0], ""}}, nil
	case "GET /v2/email/account":
		return []call{{"ses:GetAccount", "*", ""}}, nil
	}
	if strings.HasPrefix(r.URL.Path, "/live/@connections/") {
		for _, resource := range relayConnections {
			if strings.Contains(resource, "/"+r.Method+"/") {
				return []call{{"execute-api:ManageConnections", resource, ""}}, nil
			}
		}
	}
	return nil, fmt.Errorf("unknown request: %s %s %s", r.Method, r.URL, r.Header.Get("X-Amz-Target"))
}

// compare checks that all that was called is allowed, and all that is allowed
// was called, but for logs, which nobody writes here, queues, which Lambda itself reads and
// writes, and SES's configuration sets, which no call names.
func (r *recorder) compare(t *testing.T, role string, policy []statement) {
	t.Helper()
	calls := slices.SortedFunc(maps.Keys(r.calls), func(a, b call) int {
		return cmp.Or(strings.Compare(a.action, b.action), strings.Compare(a.resource, b.resource), strings.Compare(a.value, b.value))
	})
	for _, c := range calls {
		if !slices.ContainsFunc(policy, func(s statement) bool { return s.allows(c) }) {
			t.Errorf("%s does not allow %+v", role, c)
		}
	}
	for _, s := range policy {
		for _, action := range s.Actions {
			used := slices.ContainsFunc(calls, func(c call) bool { return c.action == action && s.allows(c) })
			if !used && !byLambda(action) {
				t.Errorf("%s allows %s on %v, which was not needed", role, action, s.Resources)
			}
		}
		for _, resource := range s.Resources {
			narrow := s
			narrow.Resources = []string{resource}
			if !slices.ContainsFunc(calls, narrow.allows) && !byLambda(s.Actions[0]) && resource != sesFrom[1] {
				t.Errorf("%s allows %v on %s, which was not needed", role, s.Actions, resource)
			}
		}
		for _, pattern := range s.Values {
			narrow := s
			narrow.Values = []string{pattern}
			if !slices.ContainsFunc(calls, narrow.allows) {
				t.Errorf("%s allows %v on %v, which was not needed", role, pattern, s.Resources)
			}
		}
	}
}

// byLambda tells what Lambda does in a function's name.
func byLambda(action string) bool {
	return strings.HasPrefix(action, "logs:") || strings.HasPrefix(action, "sqs:")
}
