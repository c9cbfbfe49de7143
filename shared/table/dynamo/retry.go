package dynamo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/pinward/pinward/shared/problem"
)

const (
	// patience bounds the attempts of a call whose context has no deadline. A
	// request token is good for 10 minutes, so it must stay well below.
	patience = 20 * time.Second
	// The pause before attempt n+1 is random between 0 and firstPause*2^n, at
	// most lastPause.
	firstPause = 25 * time.Millisecond
	lastPause  = 2 * time.Second
)

// once keeps the SDK from retrying on its own, as try must see each attempt.
func once(o *dynamodb.Options) { o.Retryer = aws.NopRetryer{} }

// try calls until it succeeds, fails for good or the deadline is near. unsure
// tells that an attempt before the last may have taken effect though it failed.
func (t *Table) try(ctx context.Context, call func() error) (unsure bool, err error) {
	deadline := time.Now().Add(patience)
	if d, ok := ctx.Deadline(); ok {
		deadline = d
	}
	for attempt := 1; ; attempt++ {
		err := call()
		if err == nil {
			return unsure, nil
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return unsure, fmt.Errorf("dynamodb: %w", ctx.Err())
		}
		if ctx.Err() == nil && !retryable(err) {
			return unsure, t.explain(err)
		}
		pause := rand.N(min(firstPause<<min(attempt, 10), lastPause))
		if time.Now().Add(pause).After(deadline) {
			return unsure, fmt.Errorf("dynamodb: gave up after %d attempts: %w (%w)", attempt, err, problem.ErrUnavailable)
		}
		unsure = unsure || !answered(err)
		t.count(func(s *Stats) { s.Retries++ })
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// explain says more about an error that is not worth a retry.
func (t *Table) explain(err error) error {
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		return fmt.Errorf("dynamodb: there is no table %q, or it lacks an index: %w", t.name, err)
	}
	if op, code, message := cancelled(err); code != "" {
		return fmt.Errorf("dynamodb table %q: op %d: %s: %s: %w", t.name, op, code, message, err)
	}
	return fmt.Errorf("dynamodb table %q: %w", t.name, err)
}

// answered tells that DynamoDB itself refused the request, so that it did not
// take effect.
func answered(err error) bool {
	var response *smithyhttp.ResponseError
	var api smithy.APIError
	return errors.As(err, &api) && errors.As(err, &response) && response.HTTPStatusCode() < 500
}

// retryable tells that the same request may succeed later.
func retryable(err error) bool {
	if _, code, _ := cancelled(err); code != "" {
		return code == "TransactionConflict" || code == "ThrottlingError" || code == "ProvisionedThroughputExceeded"
	}
	var conflict *types.TransactionConflictException
	var broken *smithy.DeserializationError // the answer was cut off
	if errors.As(err, &conflict) || errors.As(err, &broken) {
		return true
	}
	return retry.IsErrorRetryables(retry.DefaultRetryables).IsErrorRetryable(err) == aws.TrueTernary
}
