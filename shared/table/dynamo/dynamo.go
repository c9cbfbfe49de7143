// Package dynamo is the table on DynamoDB. A Write of one op is a conditional
// PutItem or DeleteItem, one of several a TransactWriteItems. What DynamoDB
// turns away for the moment, and what may have been lost on the way, is tried
// again within the context's deadline, and never takes effect twice: a
// transaction carries a request token, and a put a token of its own in the item
// by which a lost success is known again.
package dynamo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/internal/driver"
)

// Client is what is used of *dynamodb.Client.
type Client interface {
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	Query(context.Context, *dynamodb.QueryInput, ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
	DeleteItem(context.Context, *dynamodb.DeleteItemInput, ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error)
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
}

// Table is a DynamoDB table with the Definition of this package.
type Table struct {
	client Client
	name   string
	token  func() string // a new one for each Write, at most 36 characters

	mu    sync.Mutex
	stats Stats
}

var _ table.Table = (*Table)(nil)

// New returns the table of that name.
func New(client Client, name string) *Table {
	return &Table{client: client, name: name, token: rand.Text}
}

// Stats counts requests, retried ones each time, and the capacity units that
// DynamoDB said they consumed.
type Stats struct {
	Gets, Queries, Writes, Transactions int
	Retries                             int
	ReadUnits, WriteUnits               float64
}

// Stats returns the counts since New.
func (t *Table) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stats
}

func (t *Table) count(f func(*Stats)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.stats)
}

func units(c *types.ConsumedCapacity) float64 {
	if c == nil {
		return 0
	}
	return aws.ToFloat64(c.CapacityUnits)
}

// The attributes of an item. Each index adds its own two, see indexAttrs.
const (
	attrPartition = "p"
	attrSort      = "s"
	attrVersion   = "v" // number
	attrData      = "d" // JSON as a string
	attrExpires   = "x" // Unix seconds, DynamoDB's TTL attribute; missing if never
	attrToken     = "w" // of the Write that put the item
)

// indexAttrs are the attributes that are partition and sort key in an index, or
// in the table itself for index "".
func indexAttrs(index table.Index) (partition, sort string) {
	if index == "" {
		return attrPartition, attrSort
	}
	return string(index) + "_p", string(index) + "_s"
}

type attributes = map[string]types.AttributeValue

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func number(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

func keyAttributes(k table.Key) attributes {
	return attributes{attrPartition: text(k.Partition()), attrSort: text(k.Sort())}
}

func encode(i table.Item, token string) attributes {
	a := keyAttributes(i.Key)
	a[attrVersion] = number(i.Version)
	a[attrData] = text(string(i.Data))
	a[attrToken] = text(token)
	if !i.ExpiresAt.IsZero() {
		a[attrExpires] = number(i.ExpiresAt.Unix())
	}
	for _, k := range i.Indexes {
		p, s := indexAttrs(k.Index())
		a[p], a[s] = text(k.Partition()), text(k.Sort())
	}
	return a
}

func decode(a attributes) (table.Item, error) {
	str := func(name string) string {
		s, _ := a[name].(*types.AttributeValueMemberS)
		if s == nil {
			return ""
		}
		return s.Value
	}
	num := func(name string) (int64, error) {
		n, _ := a[name].(*types.AttributeValueMemberN)
		if n == nil {
			return 0, nil
		}
		return strconv.ParseInt(n.Value, 10, 64)
	}
	i := table.Item{Key: table.StoredKey(driver.Only{}, str(attrPartition), str(attrSort)), Data: []byte(str(attrData))}
	var err error
	i.Version, err = num(attrVersion)
	x, errX := num(attrExpires)
	if errors.Join(err, errX) != nil || i.Version < 1 || len(i.Data) == 0 {
		return table.Item{}, fmt.Errorf("item %s was not written by Pinward", i.Key)
	}
	if x != 0 {
		i.ExpiresAt = time.Unix(x, 0).UTC()
	}
	for _, index := range table.Indexes() {
		if p, s := indexAttrs(index); a[p] != nil {
			i.Indexes = append(i.Indexes, table.StoredIndexKey(driver.Only{}, index, str(p), str(s)))
		}
	}
	return i, nil
}

// Get implements table.Table.
func (t *Table) Get(ctx context.Context, key table.Key) (table.Item, error) {
	item, _, err := t.get(ctx, key)
	return item, err
}

// get also returns the token of the Write that put the item.
func (t *Table) get(ctx context.Context, key table.Key) (item table.Item, token string, err error) {
	if key.Validate() != nil { // nothing can be stored there
		return item, "", fmt.Errorf("get %s: %w", key, problem.ErrNotFound)
	}
	var out *dynamodb.GetItemOutput
	_, err = t.try(ctx, func() (err error) {
		out, err = t.client.GetItem(ctx, &dynamodb.GetItemInput{
			TableName:              &t.name,
			Key:                    keyAttributes(key),
			ConsistentRead:         aws.Bool(true),
			ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
		}, once)
		t.count(func(s *Stats) {
			s.Gets++
			if out != nil {
				s.ReadUnits += units(out.ConsumedCapacity)
			}
		})
		return err
	})
	if err != nil {
		return item, "", fmt.Errorf("get %s: %w", key, err)
	}
	if out.Item == nil {
		return item, "", fmt.Errorf("get %s: %w", key, problem.ErrNotFound)
	}
	if w, ok := out.Item[attrToken].(*types.AttributeValueMemberS); ok {
		token = w.Value
	}
	item, err = decode(out.Item)
	return item, token, err
}

// Query implements table.Table. More is exact: one item beyond the limit is
// read to see whether there is one.
func (t *Table) Query(ctx context.Context, r table.Range) (page table.Page, err error) {
	spec := r.Spec()
	if err := spec.Validate(); err != nil {
		return page, err
	}
	if err := ctx.Err(); err != nil {
		return page, fmt.Errorf("query %s: %w", spec.Partition, err)
	}
	if spec.Empty() {
		return page, nil // DynamoDB refuses BETWEEN with its ends exchanged
	}
	partition, sort := indexAttrs(spec.Index)
	in := &dynamodb.QueryInput{
		TableName:                 &t.name,
		KeyConditionExpression:    aws.String(partition + " = :p"),
		ExpressionAttributeValues: attributes{":p": text(spec.Partition)},
		ScanIndexForward:          aws.Bool(!spec.Descending),
		ReturnConsumedCapacity:    types.ReturnConsumedCapacityTotal,
	}
	if spec.Index == "" {
		in.ConsistentRead = aws.Bool(true)
	} else {
		in.IndexName = aws.String(string(spec.Index))
	}
	want := spec.Limit + 1
	if spec.From != "" {
		in.ExpressionAttributeValues[":from"] = text(spec.From)
	}
	if spec.To != "" {
		in.ExpressionAttributeValues[":to"] = text(spec.To)
	}
	switch {
	case spec.From != "" && spec.To != "":
		// BETWEEN takes To in, and a key condition can say no more: an item
		// right at To is dropped below. Backwards it comes first, and on the
		// second page and after it is there, so it is asked for on top.
		*in.KeyConditionExpression += " AND " + sort + " BETWEEN :from AND :to"
		if spec.Descending {
			want++
		}
	case spec.From != "":
		*in.KeyConditionExpression += " AND " + sort + " >= :from"
	case spec.To != "":
		*in.KeyConditionExpression += " AND " + sort + " < :to"
	}
	for {
		in.Limit = aws.Int32(int32(want - len(page.Items)))
		var out *dynamodb.QueryOutput
		_, err := t.try(ctx, func() (err error) {
			out, err = t.client.Query(ctx, in, once)
			t.count(func(s *Stats) {
				s.Queries++
				if out != nil {
					s.ReadUnits += units(out.ConsumedCapacity)
				}
			})
			return err
		})
		if err != nil {
			return table.Page{}, fmt.Errorf("query %s: %w", spec.Partition, err)
		}
		for _, a := range out.Items {
			if s, ok := a[sort].(*types.AttributeValueMemberS); ok && s.Value == spec.To {
				continue
			}
			if len(page.Items) == spec.Limit {
				page.More = true
				return page, nil
			}
			item, err := decode(a)
			if err != nil {
				return table.Page{}, fmt.Errorf("query %s: %w", spec.Partition, err)
			}
			page.Items = append(page.Items, item)
		}
		if out.LastEvaluatedKey == nil {
			return page, nil
		}
		in.ExclusiveStartKey = out.LastEvaluatedKey // a page ends at 1 MB
	}
}
