package dynamo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"

	"github.com/pinward/pinward/shared/table"
)

// TTLAttribute is the attribute by which DynamoDB deletes expired items.
const TTLAttribute = attrExpires

// Definition describes the table: its keys and indexes, each index projecting
// all attributes, paid per request.
func Definition(name string) *dynamodb.CreateTableInput {
	in := &dynamodb.CreateTableInput{TableName: &name, BillingMode: types.BillingModePayPerRequest}
	schema := func(index table.Index) []types.KeySchemaElement {
		partition, sort := indexAttrs(index)
		for _, a := range []string{partition, sort} {
			in.AttributeDefinitions = append(in.AttributeDefinitions,
				types.AttributeDefinition{AttributeName: &a, AttributeType: types.ScalarAttributeTypeS})
		}
		return []types.KeySchemaElement{
			{AttributeName: &partition, KeyType: types.KeyTypeHash},
			{AttributeName: &sort, KeyType: types.KeyTypeRange},
		}
	}
	in.KeySchema = schema("")
	for _, index := range table.Indexes() {
		in.GlobalSecondaryIndexes = append(in.GlobalSecondaryIndexes, types.GlobalSecondaryIndex{
			IndexName:  aws.String(string(index)),
			KeySchema:  schema(index),
			Projection: &types.Projection{ProjectionType: types.ProjectionTypeAll},
		})
	}
	return in
}

// createWait is how long Create waits for a table to be ready.
const createWait = 2 * time.Minute

// Create creates the table with its TTL, unless there is one of that name, and
// waits until it can be used. Stand-ins for DynamoDB that know no TTL will do.
func Create(ctx context.Context, client *dynamodb.Client, name string) error {
	fail := func(err error) error { return fmt.Errorf("create table %q: %w", name, err) }
	_, err := client.CreateTable(ctx, Definition(name))
	var exists *types.ResourceInUseException
	if err != nil && !errors.As(err, &exists) {
		return fail(err)
	}
	created := err == nil
	waiter := dynamodb.NewTableExistsWaiter(client, func(o *dynamodb.TableExistsWaiterOptions) {
		o.MinDelay, o.MaxDelay = 50*time.Millisecond, 2*time.Second
	})
	if err := waiter.Wait(ctx, &dynamodb.DescribeTableInput{TableName: &name}, createWait); err != nil {
		return fail(err)
	}
	if !created {
		return nil
	}
	_, err = client.UpdateTimeToLive(ctx, &dynamodb.UpdateTimeToLiveInput{
		TableName: &name,
		TimeToLiveSpecification: &types.TimeToLiveSpecification{
			AttributeName: aws.String(TTLAttribute), Enabled: aws.Bool(true)},
	})
	var api smithy.APIError
	if errors.As(err, &api) && api.ErrorCode() == "UnknownOperationException" {
		err = nil
	}
	if err != nil {
		return fail(err)
	}
	return nil
}
