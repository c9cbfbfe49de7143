// Command trigger is the Lambda function that takes in events: from a bus, from a queue, and
// from SES about mails that came back.
package main

import (
	"context"
	"log"
	_ "time/tzdata" // tenants' time zones; the runtime has none

	"github.com/aws/aws-lambda-go/lambda"

	"github.com/pinward/pinward/functions/wiring"
)

func main() {
	system, err := wiring.Cloud(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	lambda.Start(system.Trigger().Handle)
}
