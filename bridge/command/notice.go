package command

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"sync"
	"time"

	"github.com/pinward/pinward/shared/relay"
)

// notices tell the person at the machine that a PIN has expired, one after the other. What
// shows them holds up nothing else.
type notices struct {
	log     *slog.Logger
	show    func(context.Context, string) error
	waiting chan string
	stop    context.CancelFunc
	done    sync.WaitGroup
}

const (
	showFor    = 10 * time.Second // how long a program may take to show a notice
	maxNotices = 8                // that wait
)

// newNotices shows notices by a program, or without one as the system can.
func newNotices(program string, log *slog.Logger) (*notices, error) {
	n := &notices{log: log, show: showAtConsole, waiting: make(chan string, maxNotices)}
	if program != "" {
		path, err := exec.LookPath(program)
		if err != nil {
			return nil, usageError{fmt.Errorf("-notify: %w", err)}
		}
		n.show = func(ctx context.Context, text string) error {
			cmd := exec.CommandContext(ctx, path, text) // no shell reads it
			cmd.WaitDelay = time.Second
			return cmd.Run()
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.done.Go(func() {
		for {
			select {
			case text := <-n.waiting:
				within, cancel := context.WithTimeout(ctx, showFor)
				if err := n.show(within, text); err != nil && ctx.Err() == nil {
					n.log.Warn("the notice was not shown", "reason", err)
				}
				cancel()
			case <-ctx.Done():
				return
			}
		}
	})
	return n, nil
}

// expired tells of a card that was inserted.
func (n *notices) expired(reader string, k relay.Known) {
	text := fmt.Sprintf("The PIN of the smart card …%s has expired on %s: choose a new one with `bridge change`.", numberOf(k.Credential), day(k.PINExpiresAt))
	n.log.Warn(text, "reader", reader)
	select {
	case n.waiting <- text:
	default:
		n.log.Warn("the notice was not shown", "reason", "too many wait")
	}
}

func (n *notices) close() {
	n.stop()
	n.done.Wait()
}
