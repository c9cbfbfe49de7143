// Command sweep is the Lambda function that a schedule invokes each minute: it
// announces and expires PINs.
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
	lambda.Start(system.Sweep().Handle)
}
