package dynamo

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// Write implements table.Table. A check alone is a Get.
func (t *Table) Write(ctx context.Context, ops ...table.Op) error {
	if err := table.CheckOps(ops); err != nil {
		return err
	}
	var err error
	if len(ops) > 1 {
		err = t.transact(ctx, ops)
	} else {
		err = t.single(ctx, ops[0])
	}
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// condition is a Cond as DynamoDB puts it.
func condition(c table.Cond) (expression *string, values attributes) {
	if c.IsAbsent() {
		return aws.String("attribute_not_exists(" + attrPartition + ")"), nil
	}
	if n, ok := c.Version(); ok {
		return aws.String(attrVersion + " = :v"), attributes{":v": number(n)}
	}
	return nil, nil
}

func (t *Table) single(ctx context.Context, op table.Op) error {
	item := op.Item()
	token := t.token()
	expression, values := condition(op.Cond())
	refused := &table.ConditionError{Key: item.Key}
	if op.Kind() == table.OpCheck {
		got, err := t.Get(ctx, item.Key)
		if err != nil && !errors.Is(err, problem.ErrNotFound) {
			return err
		}
		if want, ok := op.Cond().Version(); op.Cond().IsAbsent() && err == nil || ok && got.Version != want {
			return refused
		}
		return nil
	}
	unsure, err := t.try(ctx, func() error {
		var consumed *types.ConsumedCapacity
		var err error
		if op.Kind() == table.OpPut {
			var out *dynamodb.PutItemOutput
			out, err = t.client.PutItem(ctx, &dynamodb.PutItemInput{
				TableName:                 &t.name,
				Item:                      encode(item, token),
				ConditionExpression:       expression,
				ExpressionAttributeValues: values,
				ReturnConsumedCapacity:    types.ReturnConsumedCapacityTotal,
			}, once)
			if out != nil {
				consumed = out.ConsumedCapacity
			}
		} else {
			var out *dynamodb.DeleteItemOutput
			out, err = t.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{
				TableName:                 &t.name,
				Key:                       keyAttributes(item.Key),
				ConditionExpression:       expression,
				ExpressionAttributeValues: values,
				ReturnConsumedCapacity:    types.ReturnConsumedCapacityTotal,
			}, once)
			if out != nil {
				consumed = out.ConsumedCapacity
			}
		}
		t.count(func(s *Stats) { s.Writes++; s.WriteUnits += units(consumed) })
		return err
	})
	var failed *types.ConditionalCheckFailedException
	if !errors.As(err, &failed) {
		return err
	}
	if !unsure {
		return refused
	}
	return t.settle(ctx, op, token, refused)
}

// settle finds out whether a condition failed because an earlier attempt, whose
// answer was lost, took effect. Where the item cannot tell, because somebody
// has changed or removed it since, it says so rather than guess.
func (t *Table) settle(ctx context.Context, op table.Op, token string, refused error) error {
	item, winner, err := t.get(ctx, op.Item().Key)
	missing := errors.Is(err, problem.ErrNotFound)
	want, versioned := op.Cond().Version()
	switch {
	case err != nil && !missing:
		return err
	case op.Kind() == table.OpPut && winner == token:
		return nil // it is ours
	case op.Kind() == table.OpPut && item.Version == op.Item().Version:
		return refused // it is what another put instead of ours
	case op.Kind() == table.OpDelete && op.Cond().IsAbsent():
		return refused // it deletes nothing
	case op.Kind() == table.OpDelete && versioned && item.Version > want:
		return refused // it was changed, not deleted
	}
	return fmt.Errorf("%s: the answer to the write was lost, and others wrote since: %w", op.Item().Key, problem.ErrUnavailable)
}

func (t *Table) transact(ctx context.Context, ops []table.Op) error {
	token := t.token()
	in := &dynamodb.TransactWriteItemsInput{
		ClientRequestToken:     &token,
		ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
	}
	for _, op := range ops {
		expression, values := condition(op.Cond())
		var w types.TransactWriteItem
		switch op.Kind() {
		case table.OpPut:
			w.Put = &types.Put{TableName: &t.name, Item: encode(op.Item(), token),
				ConditionExpression: expression, ExpressionAttributeValues: values}
		case table.OpDelete:
			w.Delete = &types.Delete{TableName: &t.name, Key: keyAttributes(op.Item().Key),
				ConditionExpression: expression, ExpressionAttributeValues: values}
		case table.OpCheck:
			w.ConditionCheck = &types.ConditionCheck{TableName: &t.name, Key: keyAttributes(op.Item().Key),
				ConditionExpression: expression, ExpressionAttributeValues: values}
		}
		in.TransactItems = append(in.TransactItems, w)
	}
	_, err := t.try(ctx, func() error {
		out, err := t.client.TransactWriteItems(ctx, in, once)
		t.count(func(s *Stats) {
			s.Transactions++
			if out != nil {
				for _, c := range out.ConsumedCapacity {
					s.WriteUnits += units(&c)
				}
			}
		})
		return err
	})
	if at, code, _ := cancelled(err); code == "ConditionalCheckFailed" {
		return &table.ConditionError{Op: at, Key: ops[at].Item().Key}
	}
	return err
}

// cancelled returns the first op that made DynamoDB cancel a transaction, and
// why, or "" if it was not that. What comes after a conflict or a throttled op
// is not yet known to fail.
func cancelled(err error) (op int, code, message string) {
	var c *types.TransactionCanceledException
	if errors.As(err, &c) {
		for i, r := range c.CancellationReasons {
			if code := aws.ToString(r.Code); code != "" && code != "None" {
				return i, code, aws.ToString(r.Message)
			}
		}
	}
	return 0, "", ""
}
