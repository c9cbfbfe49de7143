// Command local runs the whole product on one machine, in one process: the real
// Lambda handlers behind an HTTP front that makes API Gateway events, a clock
// that fires the sweep, an embedded table, and an outbox for the mails.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata"

	"github.com/aws/aws-lambda-go/events"
	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/functions/api/rest"
	"github.com/pinward/pinward/functions/console/page"
	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/vault"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, errUsage) {
		os.Exit(2)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "pinward:", err)
		os.Exit(1)
	}
}

// relayPath is where bridges connect.
const relayPath = "/relay"

// errUsage: the flags were wrong, and the flag package has said how.
var errUsage = errors.New("wrong usage")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("pinward", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", "127.0.0.1:8080", "`address` to listen on")
	data := flags.String("data", "data", "`folder` that everything is kept in")
	now := flags.String("now", "", "`time` to begin at, such as 2030-01-31T09:00:00Z, for demonstrations; then time goes on from there")
	anywhere := flags.Bool("webhooks-anywhere", false, "let webhooks go to this machine and its network too, and without TLS, to try them, and sign-in providers be there; else only public addresses are asked")
	newKey := flags.Bool("new-key", false, "make another API key of role admin for the tenant demo and print it")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return errUsage
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is not understood; -help lists the flags", flags.Arg(0))
	}
	clock, err := newClock(*now)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*data, 0o700); err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	logFile, err := os.OpenFile(filepath.Join(*data, "log.jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer logFile.Close()

	// The table first: a second process is stopped by it.
	store, err := openTable(ctx, *data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	rootKey := filepath.Join(*data, "root.key")
	if err := rootKeyNotLost(ctx, store.table, rootKey); err != nil {
		return err
	}
	root, err := vault.LocalRoot(rootKey)
	if err != nil {
		return err
	}
	outbox, err := mail.OpenOutbox(filepath.Join(*data, "outbox"))
	if err != nil {
		return err
	}
	defer outbox.Close()
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return fmt.Errorf("listen: %w; choose another address with -addr", err)
	}
	defer listener.Close()

	// From here on keys are made, which are printed once: nothing that may well
	// fail comes after.
	platformHash, platformKey, err := platformKey(filepath.Join(*data, "platform.hash"))
	if err != nil {
		return err
	}
	senders := mail.Senders{Outbox: outbox, Now: clock.Now}
	if senders.SES, err = localSES(ctx); err != nil {
		return err
	}
	log := slog.New(slog.NewMultiHandler( // on the screen only what needs attention
		slog.NewJSONHandler(logFile, nil),
		slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	slog.SetDefault(log)
	url := "http://" + strings.Replace(listener.Addr().String(), "[::]", "localhost", 1)
	var relayed gateway.SocketFunction
	relays := gateway.NewSocketFront(func(ctx context.Context, event events.APIGatewayWebsocketProxyRequest) (events.APIGatewayProxyResponse, error) {
		return relayed(ctx, event)
	}, clock.Now, rand.Reader)
	parts := wiring.Parts{
		Table: store.table, Root: root, Senders: senders, Now: clock.Now,
		Log:               log,
		PlatformKeyHash:   platformHash,
		Rate:              rest.Rate{PerSecond: 200, Burst: 1000},
		Connections:       relays,
		RelayURL:          "ws" + url[len("http"):] + relayPath,
		ConsoleURL:        url,
		APIURL:            url,
		SignInTime:        time.Second,
		WebhooksTo:        wiring.WebhooksTo{Anywhere: *anywhere},
		ProvidersAnywhere: *anywhere,
	}
	system := wiring.New(parts)
	parts.Now = time.Now
	bridges := &bridges{Socket: system.Relay(), door: wiring.New(parts).Relay(), hellos: map[string][]byte{}}
	relayed = gateway.SocketHandler(bridges)
	adminKey, err := seed(ctx, system, *newKey)
	if err != nil {
		return err
	}
	signIn, err := signInLink(ctx, system)
	if err != nil {
		return err
	}
	card, err := openCard(*data)
	if err == nil {
		err = card.register(ctx, system)
	}
	if err != nil {
		return fmt.Errorf("software card: %w", err)
	}

	sweeper := &sweeper{sweep: system.Sweep(), clock: clock, store: store, bridges: bridges}
	mux := http.NewServeMux()
	mux.Handle("/_local/", localPages(outbox, sweeper))
	cardPages := card.pages(system)
	mux.Handle("/_local/card", cardPages)
	mux.Handle("/_local/card/", cardPages)
	mux.Handle(relayPath, relays)
	requestID := func() string { return ulid.Make().String() }
	pages := gateway.Front(gateway.Handler(system.Console()), clock.Now, requestID)
	mux.Handle(page.Root, pages)
	mux.Handle(page.Root+"/", pages)
	mux.Handle("/", gateway.Front(gateway.Handler(system.API()), clock.Now, requestID))
	serving, stopWaiting := context.WithCancel(context.WithoutCancel(ctx)) // ends what waits for news
	defer stopWaiting()
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return serving }, ErrorLog: slog.NewLogLogger(system.Log.Handler(), slog.LevelWarn)}

	fmt.Fprintf(stdout, "Pinward is running at %s\n\n", url)
	fmt.Fprintf(stdout, "  what it can do   %s/docs\n  mails sent       %s/_local/outbox\n  a smart card     %s/_local/card\n  clock            %s/_local/clock\n", url, url, url, url)
	fmt.Fprintf(stdout, "  data             %s (%s; log.jsonl is the log)\n", *data, store.name)
	if signIn != "" {
		fmt.Fprintf(stdout, "  sign in          %s\n", signIn)
	}
	fmt.Fprintln(stdout)
	if platformKey != "" {
		fmt.Fprintf(stdout, "The platform key, which creates tenants, is shown this once:\n\n  export PLATFORM_KEY=%s\n\n", platformKey)
	}
	if adminKey != "" {
		fmt.Fprintf(stdout, "The API key of the tenant demo is shown this once (-new-key makes another):\n\n  export KEY=%s\n\n", adminKey)
	}

	swept := make(chan struct{})
	sweepCtx, stopSweep := context.WithCancel(ctx)
	go func() { defer close(swept); sweeper.run(sweepCtx) }()
	bridged := make(chan struct{})
	bridgeCtx, stopBridge := context.WithCancel(ctx)
	go func() {
		defer close(bridged)
		if err := card.bridge(bridgeCtx, system, filepath.Join(*data, "bridge"), url); err != nil && bridgeCtx.Err() == nil {
			log.Error("the bridge of this machine has stopped", "cause", err)
		}
	}()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		fmt.Fprintln(stdout, "Finishing what has begun ...")
		shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		stopBridge()
		<-bridged
		stopWaiting()
		err = errors.Join(relays.Shutdown(shutdown), server.Shutdown(shutdown))
	}
	stopBridge()
	<-bridged
	stopSweep()
	<-swept
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}
