// Command console is the Lambda function behind the web pages.
package main

import (
	"context"
	"log"
	_ "time/tzdata" // tenants' time zones; the runtime has none

	"github.com/aws/aws-lambda-go/lambda"

	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/shared/gateway"
)

func main() {
	system, err := wiring.Cloud(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	lambda.Start(gateway.Handler(system.Console()))
}
