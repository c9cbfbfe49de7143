package dynamo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
)

var update = flag.Bool("update", false, "write testdata anew")

// A reply is DynamoDB's answer to a request: status and JSON, or an error of
// the connection. The last reply of a script is given again and again.
type reply struct {
	status int
	body   string
	err    error
}

func ok(body string) reply { return reply{status: 200, body: body} }

// failure is an error answer; extra is more JSON members.
func failure(kind string, extra ...string) reply {
	return reply{status: 400, body: `{"__type":"com.amazonaws.dynamodb.v20120810#` + kind + `","message":"for the test"` + strings.Join(append([]string{""}, extra...), ",") + `}`}
}

// cancellation has a reason for each code.
func cancellation(codes ...string) reply {
	reasons := make([]string, len(codes))
	for i, c := range codes {
		reasons[i] = `{"Code":"` + c + `","Message":"for the test"}`
	}
	return failure("TransactionCanceledException", `"CancellationReasons":[`+strings.Join(reasons, ",")+`]`)
}

// script plays DynamoDB: it records requests and answers from the replies.
type script struct {
	replies  []reply
	requests []request
}

type request struct {
	Target string
	Body   json.RawMessage
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	s.requests = append(s.requests, request{r.Header.Get("X-Amz-Target"), body})
	a := s.replies[0]
	if len(s.replies) > 1 {
		s.replies = s.replies[1:]
	}
	if a.err != nil {
		return nil, a.err
	}
	return &http.Response{
		StatusCode: a.status,
		Header:     http.Header{"Content-Type": {"application/x-amz-json-1.0"}},
		Body:       io.NopCloser(strings.NewReader(a.body)),
		Request:    r,
	}, nil
}

// table returns a table on the script, with tokens token-1, token-2 ...
func (s *script) table() *Table {
	client := newClient("http://dynamodb.test", func(o *dynamodb.Options) { o.HTTPClient = &http.Client{Transport: s} })
	db := New(client, "pinward")
	n := 0
	db.token = func() string { n++; return fmt.Sprintf("token-%d", n) }
	return db
}

func (s *script) check(t *testing.T) {
	t.Helper()
	var got bytes.Buffer
	e := json.NewEncoder(&got)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	for i := range s.requests {
		var body any // sorts the members
		if err := json.Unmarshal(s.requests[i].Body, &body); err != nil {
			t.Fatal(err)
		}
		if err := e.Encode(map[string]any{s.requests[i].Target: body}); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join("testdata", filepath.Base(t.Name())+".json")
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("requests, -want +got:\n%s", diff)
	}
}

// stored is an answer with an item.
func stored(version, token string) reply {
	return ok(`{"Item":{"p":{"S":"t/acme/user/a"},"s":{"S":"user"},"v":{"N":"` + version + `"},"d":{"S":"\"x\""},"w":{"S":"` + token + `"}},"ConsumedCapacity":{"CapacityUnits":1}}`)
}

func TestRequests(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	full := tabletest.Text(user("a"), "x", table.UserDue(tenant, "a", at), table.UserListed(tenant, "ann", "a"), table.AuditSubject(tenant, "a", "01"))
	full.ExpiresAt = at
	several := []table.Op{
		table.Put(full, table.Absent()),
		put("b", "x", table.IfVersion(3)),
		table.Delete(user("c"), table.IfVersion(4)),
		table.Delete(user("d"), table.Whatever()),
		table.Check(user("e"), table.Absent()),
		table.Check(user("f"), table.IfVersion(5)),
	}
	write := func(ops ...table.Op) func(context.Context, *Table) error {
		return func(ctx context.Context, db *Table) error { return db.Write(ctx, ops...) }
	}
	query := func(r table.Range) func(context.Context, *Table) error {
		return func(ctx context.Context, db *Table) error { _, err := db.Query(ctx, r); return err }
	}
	get := func(ctx context.Context, db *Table) error { _, err := db.Get(ctx, user("a")); return err }
	broken := reply{err: io.ErrUnexpectedEOF}
	refused := failure("ConditionalCheckFailedException")

	for _, c := range []struct {
		name    string
		run     func(context.Context, *Table) error
		replies []reply
		want    string // in the error; "" is none
	}{
		{"get", get, []reply{stored("1", "w")}, ""},
		{"get_missing", get, []reply{ok(`{}`)}, "not found"},
		{"get_foreign", get, []reply{ok(`{"Item":{"p":{"S":"a"},"s":{"S":"b"},"v":{"S":"x"}}}`)}, "was not written by Pinward"},
		{"get_throttled", get, []reply{failure("ThrottlingException"), failure("ProvisionedThroughputExceededException"), failure("RequestLimitExceeded"), {status: 500, body: `{"__type":"InternalServerError"}`}, {status: 503}, broken, stored("1", "w")}, ""},
		{"get_cut_off", get, []reply{ok(`{"Item":{"p":`), stored("1", "w")}, ""},
		{"get_denied", get, []reply{failure("AccessDeniedException")}, "AccessDeniedException"},

		{"query_partition", query(table.AuditDay(tenant, at)), []reply{ok(`{"Items":[]}`)}, ""},
		{"query_prefix", query(table.APIKeys(tenant).Limit(25)), []reply{ok(`{"Items":[]}`)}, ""},
		{"query_prefix_descending", query(table.APIKeys(tenant).Limit(25).Descending()), []reply{ok(`{"Items":[]}`)}, ""},
		{"query_prefix_beyond", query(table.APIKeys(tenant).Beyond("key/k")), []reply{ok(`{"Items":[]}`)}, ""},
		{"query_index_before", query(table.DueBefore(3, at).Limit(25)), []reply{ok(`{"Items":[]}`)}, ""},
		{"query_index_beyond", query(table.AuditOf(tenant, "a").Beyond("01")), []reply{ok(`{"Items":[]}`)}, ""},
		{"query_index_descending_beyond", query(table.AuditOf(tenant, "a").Descending().Beyond("01")), []reply{ok(`{"Items":[]}`)}, ""},
		{"query_pages", query(table.APIKeys(tenant).Limit(3)), []reply{
			ok(`{"Items":[{"p":{"S":"t/acme"},"s":{"S":"key/a"},"v":{"N":"1"},"d":{"S":"1"}}],"LastEvaluatedKey":{"p":{"S":"t/acme"},"s":{"S":"key/a"}}}`),
			ok(`{"Items":[],"LastEvaluatedKey":{"p":{"S":"t/acme"},"s":{"S":"key/b"}}}`),
			failure("ProvisionedThroughputExceededException"),
			ok(`{"Items":[]}`)}, ""},
		{"query_nothing", query(table.APIKeys(tenant).Beyond("zzz")), []reply{broken}, ""},

		{"put_absent", write(table.Put(full, table.Absent())), []reply{ok(`{}`)}, ""},
		{"put_version", write(put("a", "x", table.IfVersion(7))), []reply{ok(`{}`)}, ""},
		{"put_refused", write(put("a", "x", table.IfVersion(7))), []reply{refused}, "condition of op 0"},
		{"put_throttled", write(put("a", "x", table.Absent())), []reply{failure("ThrottlingException"), failure("TransactionConflictException"), refused}, "condition of op 0"},
		{"put_lost", write(put("a", "x", table.Absent())), []reply{broken, refused, stored("1", "token-1")}, ""},
		{"put_lost_500", write(put("a", "x", table.Absent())), []reply{{status: 500, body: `{"__type":"InternalServerError"}`}, refused, stored("1", "theirs")}, "condition of op 0"},
		{"put_lost_overwritten", write(put("a", "x", table.Absent())), []reply{broken, refused, stored("2", "theirs")}, "the answer to the write was lost"},
		{"put_too_large", write(put("a", "x", table.Absent())), []reply{failure("ValidationException")}, "ValidationException: for the test"},
		{"put_collection", write(put("a", "x", table.Absent())), []reply{failure("ItemCollectionSizeLimitExceededException")}, "ItemCollectionSizeLimitExceeded"},
		{"delete", write(table.Delete(user("a"), table.Whatever())), []reply{ok(`{}`)}, ""},
		{"delete_version", write(table.Delete(user("a"), table.IfVersion(7))), []reply{refused}, "condition of op 0"},
		{"delete_absent", write(table.Delete(user("a"), table.Absent())), []reply{broken, refused, stored("1", "w")}, "condition of op 0"},
		{"check", write(table.Check(user("a"), table.IfVersion(1))), []reply{stored("1", "w")}, ""},

		{"transact", write(several...), []reply{ok(`{"ConsumedCapacity":[{"CapacityUnits":12}]}`)}, ""},
		{"transact_refused_0", write(several...), []reply{cancellation("ConditionalCheckFailed", "None", "None", "None", "None", "ConditionalCheckFailed")}, "condition of op 0"},
		{"transact_refused_5", write(several...), []reply{cancellation("None", "None", "None", "None", "None", "ConditionalCheckFailed")}, "condition of op 5"},
		{"transact_conflict", write(several...), []reply{
			cancellation("None", "TransactionConflict", "ConditionalCheckFailed", "None", "None", "None"),
			cancellation("ThrottlingError", "None", "None", "None", "None", "None"),
			cancellation("None", "None", "ProvisionedThroughputExceeded", "None", "None", "None"),
			failure("TransactionInProgressException"), broken, ok(`{}`)}, ""},
		{"transact_then_refused", write(several...), []reply{cancellation("TransactionConflict", "None", "None", "None", "None", "None"), cancellation("None", "None", "ConditionalCheckFailed", "None", "None", "None")}, "condition of op 2"},
		{"transact_invalid", write(several...), []reply{cancellation("None", "ValidationError", "None", "None", "None", "None")}, "ValidationError"},
		{"transact_mismatch", write(several...), []reply{failure("IdempotentParameterMismatchException")}, "IdempotentParameterMismatch"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{replies: c.replies}
				err := c.run(t.Context(), s.table())
				if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				s.check(t)
			})
		})
	}
}

// What stays throttled is given up when the context's deadline is near, or
// after a while when it has none, with few attempts on the way.
func TestGivingUp(t *testing.T) {
	for name, c := range map[string]struct {
		limit time.Duration
		reply reply
	}{
		"deadline":    {3 * time.Second, failure("ProvisionedThroughputExceededException")},
		"no deadline": {0, failure("ThrottlingException")},
		"conflict":    {3 * time.Second, cancellation("TransactionConflict", "None")},
		"connection":  {3 * time.Second, reply{err: io.ErrUnexpectedEOF}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{replies: []reply{c.reply}}
				db := s.table()
				ctx, most := t.Context(), patience
				if c.limit > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.limit)
					defer cancel()
					most = c.limit
				}
				start := time.Now()
				err := db.Write(ctx, put("a", "x", table.Absent()), put("b", "x", table.Absent()))
				took := time.Since(start)
				if !errors.Is(err, problem.ErrUnavailable) || errors.Is(err, problem.ErrConflict) || !strings.Contains(err.Error(), "gave up after") {
					t.Errorf("got %v", err)
				}
				if took > most || took < most-lastPause || len(s.requests) > 100 {
					t.Errorf("gave up after %v and %d requests, want within %v", took, len(s.requests), most)
				}
				if got := db.Stats(); got.Transactions != len(s.requests) || got.Retries != len(s.requests)-1 {
					t.Errorf("stats: %+v of %d requests", got, len(s.requests))
				}
			})
		})
	}
}

func TestCancelWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{replies: []reply{failure("ThrottlingException")}}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(5*time.Second, cancel)
		start := time.Now()
		err := s.table().Write(ctx, put("a", "x", table.Absent()))
		if !errors.Is(err, context.Canceled) || time.Since(start) != 5*time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

func TestNoCredentials(t *testing.T) {
	s := &script{replies: []reply{ok(`{}`)}}
	client := newClient("http://dynamodb.test", func(o *dynamodb.Options) {
		o.HTTPClient = &http.Client{Transport: s}
		o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{}, errors.New("no credentials here")
		})
	})
	_, err := New(client, "pinward").Get(t.Context(), user("a"))
	if err == nil || !strings.Contains(err.Error(), "no credentials here") || len(s.requests) != 0 {
		t.Errorf("got %v and %d requests", err, len(s.requests))
	}
}

func TestDefinition(t *testing.T) {
	s := &script{replies: []reply{
		ok(`{}`), ok(`{"Table":{"TableStatus":"CREATING"}}`), ok(`{"Table":{"TableStatus":"ACTIVE"}}`), ok(`{}`),
		failure("ResourceInUseException"), ok(`{"Table":{"TableStatus":"ACTIVE"}}`),
	}}
	client := newClient("http://dynamodb.test", func(o *dynamodb.Options) { o.HTTPClient = &http.Client{Transport: s} })
	for range 2 {
		if err := Create(t.Context(), client, "pinward"); err != nil {
			t.Fatal(err)
		}
	}
	s.check(t)
}
