// Softcard plugs a card in software into the virtual reader of a running pcscd,
// until it is interrupted. When pcscd is started anew, the card is put in again.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pinward/pinward/infra/softcard"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "softcard:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	config := softcard.Config{Rand: rand.Reader}
	flags := flag.NewFlagSet("softcard", flag.ContinueOnError)
	flags.StringVar((*string)(&config.Profile), "profile", string(softcard.PivApplet), fmt.Sprintf("which card it is like, of %v", softcard.Profiles))
	flags.StringVar(&config.PIN, "pin", softcard.FactoryPIN, "its PIN")
	flags.StringVar(&config.PUK, "puk", "", "its PUK (PIV; without, the factory's)")
	flags.Func("admin-key", "its management or admin key, in hex (without, the factory's)", hexTo(&config.AdminKey))
	flags.Func("id", "its GUID or card id, in hex (without, random)", hexTo(&config.ID))
	flags.BoolVar(&config.Blocked, "blocked", false, "its PIN is blocked at first")
	file := flags.String("file", "", "the file that it is kept in, PIN, PUK and keys in the clear: once there is one, it and not the flags says what card it is")
	address := flags.String("address", "127.0.0.1:35963", "where vpcd listens: the second reader is at the next port")
	if err := flags.Parse(args); err != nil {
		return err
	}
	card, err := softcard.New(config)
	if err == nil && *file != "" {
		card, err = softcard.OpenFile(*file, config)
	}
	if err != nil {
		return err
	}
	for said := ""; ; {
		err := softcard.Serve(ctx, *address, card)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, softcard.ErrRemoved) {
			return err
		}
		if err.Error() != said {
			said = err.Error()
			fmt.Fprintf(os.Stderr, "softcard: %v; trying again\n", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond): // pcscd is to see that the card was out
		}
	}
}

func hexTo(to *[]byte) func(string) error {
	return func(s string) (err error) {
		*to, err = hex.DecodeString(s)
		return err
	}
}
