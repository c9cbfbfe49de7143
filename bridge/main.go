// Command bridge connects card readers to Pinward: it dials out to the cloud, and sends a
// card only what its own allow-list permits.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/pinward/pinward/bridge/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second signal ends it at once
	os.Exit(command.Main(ctx, command.Env{
		Args:   os.Args[1:],
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
		Getenv: os.Getenv,
	}))
}
