package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/bridge/enrolment"
	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/shared/relay"
)

func status(ctx context.Context, p *program) error {
	w, err := p.prepare(relay.Service, slog.LevelError)
	if err != nil {
		return err
	}
	defer w.close()
	e := w.Enrolment
	line := func(what, format string, args ...any) {
		fmt.Fprintf(p.Stdout, "%-13s %s\n", what, fmt.Sprintf(format, args...))
	}
	line("Bridge", "%s (%s) of %s, version %s", e.Name, e.Bridge, e.Organisation, Version)
	line("Enrolled", "%s at %s", e.At.Format(time.RFC3339), e.API)
	line("State", "%s", p.dir)

	conn, failed := agent.Dial(ctx, w.Config)
	if failed == nil {
		// Without Hello it takes no session's place.
		_ = conn.Close()
		line("Relay", "%s: can be reached", e.Relay)
	} else {
		line("Relay", "%v", failed)
	}
	line("Clock", "%s", clockOf(ctx, e, w.Config))
	showReaders(ctx, w.Source, line)
	results, err := w.Journal.Waiting()
	if err != nil {
		line("Results", "%v", err)
		return exitError(exitFailed)
	}
	line("Results", "%d wait for the cloud to note them", len(results))
	var goodbye *agent.GoodbyeError
	switch {
	case errors.As(failed, &goodbye):
		return said(failed)
	case failed != nil:
		return exitError(exitFailed)
	}
	return nil
}

// clockOf compares this machine's clock with the server's, which says its own in whole
// seconds.
func clockOf(ctx context.Context, e *enrolment.Enrolment, c agent.Config) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, e.API, nil)
	if err != nil {
		return "not compared"
	}
	resp, err := httpClient(c.TLS).Do(req)
	if err != nil {
		return fmt.Sprintf("not compared: %v", err)
	}
	_ = resp.Body.Close()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return "not compared: the server does not tell the time"
	}
	switch ahead := c.Now().Sub(date).Round(time.Second); {
	case ahead.Abs() <= 2*time.Second:
		return "right"
	case ahead > 0:
		return fmt.Sprintf("%v ahead of the server's", ahead)
	default:
		return fmt.Sprintf("%v behind the server's", -ahead)
	}
}

// look is how long status looks at readers.
const look = 2 * time.Second

// showReaders says what readers and cards there are.
func showReaders(ctx context.Context, source reader.Source, line func(what, format string, args ...any)) {
	ctx, cancel := context.WithTimeout(ctx, look)
	defer cancel()
	cards := map[string]string{}
	var names []string
	quiet := time.NewTimer(look)
	defer quiet.Stop()
	events := source.Watch(ctx)
	for open := true; open; {
		select {
		case e, ok := <-events:
			open = ok
			switch e.Kind {
			case reader.ServiceDown:
				line("Readers", "%v", e.Err)
				return
			case reader.ReaderAdded:
				names = append(names, e.Reader)
				cards[e.Reader] = "no card"
			case reader.CardInserted:
				cards[e.Reader] = fmt.Sprintf("a card, ATR %X", e.ATR)
			case reader.CardSilent:
				cards[e.Reader] = "a card that does not answer"
			}
			quiet.Reset(settle)
		case <-quiet.C:
			cancel()
		}
	}
	if len(names) == 0 {
		line("Readers", "none")
	}
	for _, name := range names {
		line("Reader", "%s: %s", name, cards[name])
	}
}
