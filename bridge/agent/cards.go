package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/shared/relay"
)

// cards are the readers and cards as the source tells of them.
type cards struct {
	prefix string // of insertions: another in each process

	mu       sync.Mutex
	sequence int64 // of the last change; 0: nothing was told yet
	readers  map[string]place
	changed  chan struct{} // closed at the next change
}

// place is a reader.
type place struct {
	card      *relay.Card
	insertion int64
	told      bool // that its PIN has expired
}

func newCards(prefix string) *cards {
	return &cards{prefix: prefix, readers: map[string]place{}, changed: make(chan struct{})}
}

// watch follows the source.
func (a *Agent) watch(ctx context.Context) {
	for e := range a.Source.Watch(ctx) {
		switch e.Kind {
		case reader.ServiceDown:
			a.Log.WarnContext(ctx, "no smart card service", "reason", e.Err)
		case reader.CardInserted:
			a.Log.InfoContext(ctx, "card inserted", "reader", e.Reader, "insertion", a.cards.name(e.Insertion))
		default:
			a.Log.InfoContext(ctx, string(e.Kind), "reader", e.Reader)
		}
		a.cards.see(e)
	}
}

func (c *cards) name(insertion int64) string { return fmt.Sprintf("%s-%d", c.prefix, insertion) }

func (c *cards) see(e reader.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch e.Kind {
	case reader.ReaderAdded, reader.CardRemoved:
		c.readers[e.Reader] = place{}
	case reader.ReaderRemoved:
		delete(c.readers, e.Reader)
	case reader.CardInserted:
		atr := e.ATR[:min(len(e.ATR), 33)] // ISO 7816-3, 8.2.1
		c.readers[e.Reader] = place{card: &relay.Card{Insertion: c.name(e.Insertion), ATR: slices.Clone(atr)}, insertion: e.Insertion}
	case reader.CardSilent:
		c.readers[e.Reader] = place{card: &relay.Card{Insertion: c.prefix + "-silent", Silent: true}}
	}
	c.sequence++
	close(c.changed)
	c.changed = make(chan struct{})
}

// report is what there is, and a channel that is closed when that changes.
func (c *cards) report() (relay.Readers, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	report := relay.Readers{Sequence: c.sequence, Readers: []relay.Reader{}}
	seen := map[string]bool{}
	for name, p := range c.readers {
		if name = wireName(name); !seen[name] {
			seen[name] = true
			report.Readers = append(report.Readers, relay.Reader{Name: name, Card: p.card})
		}
	}
	// Should there be too many, those with a card matter.
	slices.SortFunc(report.Readers, func(a, b relay.Reader) int {
		if (a.Card != nil) != (b.Card != nil) {
			if a.Card != nil {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Name, b.Name)
	})
	report.Readers = report.Readers[:min(len(report.Readers), relay.MaxReaders)]
	slices.SortFunc(report.Readers, func(a, b relay.Reader) int { return cmp.Compare(a.Name, b.Name) })
	return report, c.changed
}

// find returns the source's names for a card that is still there.
func (c *cards) find(name, insertion string) (reader string, number int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for reader, p := range c.readers {
		if p.card != nil && p.card.Insertion == insertion && wireName(reader) == name {
			return reader, p.insertion, !p.card.Silent
		}
	}
	return "", 0, false
}

// tell returns the reader of a card that is still there, and true if nothing was told of
// that insertion before.
func (c *cards) tell(insertion string) (reader string, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for reader, p := range c.readers {
		if p.card != nil && p.card.Insertion == insertion && !p.told {
			p.told = true
			c.readers[reader] = p
			return reader, true
		}
	}
	return "", false
}

// wireName is a reader's name as messages can carry it.
func wireName(name string) string {
	name = strings.ToValidUTF8(name, "?")
	if len(name) > 200 {
		name = strings.ToValidUTF8(name[:200], "")
	}
	if name == "" {
		return "?"
	}
	return name
}

// Readers waits for a report after the one numbered after, 0 for none, and returns it.
func (a *Agent) Readers(ctx context.Context, after int64) (relay.Readers, error) {
	for {
		report, changed := a.cards.report()
		if report.Sequence > after {
			return report, nil
		}
		select {
		case <-changed:
		case <-a.over:
			return relay.Readers{}, a.ended()
		case <-ctx.Done():
			return relay.Readers{}, ctx.Err()
		}
	}
}
