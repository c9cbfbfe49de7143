package testserver

import (
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/dynamo"
	"github.com/pinward/pinward/shared/table/tabletest"
)

// The driver passes its suite with transactions carried out here.
func TestTransactions(t *testing.T) {
	endpoint, stop, err := Dynalite()
	Need(t, err)
	t.Cleanup(stop)
	handler, err := Transactions(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	client := dynamodb.New(dynamodb.Options{
		Region:       "eu-central-1",
		BaseEndpoint: &server.URL,
		Credentials:  credentials.NewStaticCredentialsProvider("id", "secret", ""),
	})
	tables := 0
	tabletest.Run(t, func(t *testing.T) table.Table {
		tables++
		name := "table-" + strconv.Itoa(tables)
		if err := dynamo.Create(t.Context(), client, name); err != nil {
			t.Fatal(err)
		}
		return dynamo.New(client, name)
	})
}
