package dynamo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/pinward/pinward/infra/testserver"
)

// dynalite is started by the first test that needs it.
var dynalite = sync.OnceValues(func() (string, error) {
	endpoint, stop, err := testserver.Dynalite()
	stopDynalite = stop
	return endpoint, err
})

var stopDynalite func()

func TestMain(m *testing.M) {
	code := m.Run()
	if stopDynalite != nil {
		stopDynalite()
	}
	os.Exit(code)
}

// newClient returns a client of the DynamoDB at an endpoint.
func newClient(endpoint string, options ...func(*dynamodb.Options)) *dynamodb.Client {
	return dynamodb.New(dynamodb.Options{
		Region:       "eu-central-1",
		BaseEndpoint: &endpoint,
		Credentials:  credentials.NewStaticCredentialsProvider("id", "secret", ""),
	}, options...)
}

var (
	tablesMu sync.Mutex
	tables   int
)

// newTable creates a table on dynalite and returns its name and a client of it
// that can do transactions.
func newTable(t *testing.T) (Client, string) {
	t.Helper()
	endpoint, err := dynalite()
	testserver.Need(t, err)
	tablesMu.Lock()
	tables++
	name := fmt.Sprintf("table-%d", tables)
	tablesMu.Unlock()
	client := newClient(endpoint)
	for range 2 { // the second time it is there
		if err := Create(t.Context(), client, name); err != nil {
			t.Fatal(err)
		}
	}
	return &shim{Client: client, done: map[string]bool{}}, name
}

// shim adds TransactWriteItems to a DynamoDB that has none. Others of its
// calls do not see a transaction half done.
type shim struct {
	Client
	mu   sync.RWMutex
	done map[string]bool // request tokens of transactions that succeeded
}

func (s *shim) GetItem(ctx context.Context, in *dynamodb.GetItemInput, o ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.Client.GetItem(ctx, in, o...)
}

func (s *shim) Query(ctx context.Context, in *dynamodb.QueryInput, o ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.Client.Query(ctx, in, o...)
}

func (s *shim) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.Client.PutItem(ctx, in, o...)
}

func (s *shim) DeleteItem(ctx context.Context, in *dynamodb.DeleteItemInput, o ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.Client.DeleteItem(ctx, in, o...)
}

func (s *shim) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(in.TransactItems) > 100 {
		return nil, errors.New("ValidationException: more than 100 items")
	}
	token := aws.ToString(in.ClientRequestToken)
	if token == "" || len(token) > 36 {
		return nil, fmt.Errorf("ValidationException: client request token %q", token)
	}
	if s.done[token] {
		return &dynamodb.TransactWriteItemsOutput{}, nil
	}
	cancelled := &types.TransactionCanceledException{Message: aws.String("Transaction cancelled")}
	failed := false
	for _, w := range in.TransactItems {
		var key, values attributes
		var expression *string
		switch {
		case w.Put != nil:
			key = attributes{"p": w.Put.Item["p"], "s": w.Put.Item["s"]}
			expression, values = w.Put.ConditionExpression, w.Put.ExpressionAttributeValues
		case w.Delete != nil:
			key, expression, values = w.Delete.Key, w.Delete.ConditionExpression, w.Delete.ExpressionAttributeValues
		default:
			key, expression, values = w.ConditionCheck.Key, w.ConditionCheck.ConditionExpression, w.ConditionCheck.ExpressionAttributeValues
		}
		out, err := s.Client.GetItem(ctx, &dynamodb.GetItemInput{TableName: aws.String(tableOf(w)), Key: key, ConsistentRead: aws.Bool(true)})
		if err != nil {
			return nil, err
		}
		holds := true
		switch aws.ToString(expression) {
		case "":
		case "attribute_not_exists(p)":
			holds = out.Item == nil
		case "v = :v":
			v, ok := out.Item["v"].(*types.AttributeValueMemberN)
			holds = ok && v.Value == values[":v"].(*types.AttributeValueMemberN).Value
		default:
			return nil, fmt.Errorf("the shim does not know %q", *expression)
		}
		code := "None"
		if !holds {
			code, failed = "ConditionalCheckFailed", true
		}
		cancelled.CancellationReasons = append(cancelled.CancellationReasons, types.CancellationReason{Code: &code})
	}
	if failed {
		return nil, cancelled
	}
	for _, w := range in.TransactItems {
		var err error
		switch {
		case w.Put != nil:
			_, err = s.Client.PutItem(ctx, &dynamodb.PutItemInput{TableName: w.Put.TableName, Item: w.Put.Item})
		case w.Delete != nil:
			_, err = s.Client.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: w.Delete.TableName, Key: w.Delete.Key})
		}
		if err != nil {
			return nil, fmt.Errorf("the shim did half a transaction: %w", err)
		}
	}
	s.done[token] = true
	return &dynamodb.TransactWriteItemsOutput{}, nil
}

func tableOf(w types.TransactWriteItem) string {
	switch {
	case w.Put != nil:
		return aws.ToString(w.Put.TableName)
	case w.Delete != nil:
		return aws.ToString(w.Delete.TableName)
	}
	return aws.ToString(w.ConditionCheck.TableName)
}

// lossy loses the answers to the next writes: they are made, and meanwhile runs
// before the caller hears that the connection broke.
type lossy struct {
	Client
	lose      int
	meanwhile func()
}

var errLost = &smithyhttp.RequestSendError{Err: io.ErrUnexpectedEOF}

func lost[T any](l *lossy, out T, err error) (T, error) {
	if l.lose > 0 {
		l.lose--
		if l.meanwhile != nil {
			l.meanwhile()
		}
		var none T
		return none, errLost
	}
	return out, err
}

func (l *lossy) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	out, err := l.Client.PutItem(ctx, in, o...)
	return lost(l, out, err)
}

func (l *lossy) DeleteItem(ctx context.Context, in *dynamodb.DeleteItemInput, o ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	out, err := l.Client.DeleteItem(ctx, in, o...)
	return lost(l, out, err)
}

func (l *lossy) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	out, err := l.Client.TransactWriteItems(ctx, in, o...)
	return lost(l, out, err)
}
