// Echo is the function that the test of the Runtime API stub runs: its payload
// names what it does.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

func main() {
	switch os.Getenv("INIT") {
	case "exit":
		fmt.Fprintln(os.Stderr, "TABLE is not set")
		os.Exit(3)
	case "report":
		res, err := http.Post("http://"+os.Getenv("AWS_LAMBDA_RUNTIME_API")+"/2018-06-01/runtime/init/error", "application/json",
			strings.NewReader(`{"errorType":"Config","errorMessage":"TABLE is not set"}`))
		if err == nil {
			res.Body.Close()
		}
		os.Exit(1)
	}
	lambda.Start(func(ctx context.Context, do string) (map[string]string, error) {
		fmt.Println("asked to", do)
		switch do {
		case "fail":
			return nil, errors.New("no")
		case "panic":
			panic("on fire")
		case "exit":
			os.Exit(3)
		case "sleep":
			time.Sleep(time.Minute)
		}
		deadline, _ := ctx.Deadline()
		lc, _ := lambdacontext.FromContext(ctx)
		return map[string]string{
			"did": do, "deadline": deadline.UTC().Format(time.RFC3339), "id": lc.AwsRequestID, "arn": lc.InvokedFunctionArn,
			"trace": os.Getenv("_X_AMZN_TRACE_ID"), "given": os.Getenv("GIVEN"), "home": os.Getenv("HOME"),
		}, nil
	})
}
