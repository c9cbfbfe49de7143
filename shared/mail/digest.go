package mail

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/table"
)

// DigestValues are for templates of kind Digest.
type DigestValues struct {
	CustomerName string // the tenant's display name
	Since        string // when the digest before it was made, from FormatTime
	Language     string // BCP 47 tag

	Expiring, Expired, Undeliverable, GivenUp DigestList
}

// DigestList is one part of a digest: how many there are, and a line on each of the first.
type DigestList struct {
	Total   int
	AtLeast bool // there are more than were counted
	Lines   []string
}

func (DigestValues) kind() TemplateKind { return Digest }

func (v DigestValues) variables() map[string]string {
	m := map[string]string{"customer-name": oneLine(v.CustomerName), "since": oneLine(v.Since)}
	for name, list := range map[string]DigestList{"expiring": v.Expiring, "expired": v.Expired, "undeliverable": v.Undeliverable, "given-up": v.GivenUp} {
		m[name+"-count"], m[name] = list.count(), list.text(v.Language)
	}
	return m
}

func (l DigestList) count() string {
	if l.AtLeast {
		return strconv.Itoa(l.Total) + "+"
	}
	return strconv.Itoa(l.Total)
}

// text has one line for each thing, and one for those that are left out.
func (l DigestList) text(tag string) string {
	lines := make([]string, 0, len(l.Lines)+1)
	for _, line := range l.Lines {
		lines = append(lines, oneLine(line))
	}
	left := DigestList{Total: l.Total - len(l.Lines), AtLeast: l.AtLeast}.count()
	switch {
	case len(lines) == 0:
		lines = append(lines, "–")
	case l.Total <= len(l.Lines) && !l.AtLeast:
	case inGerman(tag):
		lines = append(lines, "und "+left+" weitere")
	default:
		lines = append(lines, "and "+left+" more")
	}
	return strings.Join(lines, "\n")
}

// OfCard says of a name in a digest that it is a card's.
func OfCard(name, tag string) string {
	if inGerman(tag) {
		return name + " (Karte)"
	}
	return name + " (card)"
}

// GivenUp is a mail about an expiry that reached nobody, and is not tried again.
type GivenUp struct {
	At     time.Time
	Name   string // the user's or the card's, as it was
	Card   bool
	Reason string // coded
}

// givenUpKept is how long mails given up are kept, for digests to tell.
const givenUpKept = 40 * 24 * time.Hour

// GiveUp returns the op that records a mail given up. about tells what it was about and from
// others about the same, such as "user/<id>/<version>".
func GiveUp(t table.TenantID, about string, g GivenUp) table.Op {
	return table.Put(givenUpRecord{table.GivenUpKey(t, g.At, about), g}, table.Absent())
}

// ListGivenUp returns the mails given up since from, and before to: up to limit of them, the
// oldest first, how many there are, and whether there are more than were counted.
func ListGivenUp(ctx context.Context, tab table.Table, t table.TenantID, from, to time.Time, limit int) (some []GivenUp, total int, more bool, _ error) {
	page, next, err := table.Merge(ctx, tab, table.GivenUp(t, from, to), table.MaxLimit, "")
	if err != nil {
		return nil, 0, false, fmt.Errorf("list mails given up: %w", err)
	}
	for _, item := range page.Items[:min(len(page.Items), limit)] {
		var s storedGivenUp
		if err := item.Decode(&s); err != nil {
			return nil, 0, false, err
		}
		some = append(some, GivenUp(s))
	}
	return some, len(page.Items), next != "", nil
}

type givenUpRecord struct {
	key table.Key
	GivenUp
}

type storedGivenUp struct {
	At     time.Time `json:"at"`
	Name   string    `json:"name"`
	Card   bool      `json:"card,omitempty"`
	Reason string    `json:"reason"`
}

// Validate implements table.Record.
func (givenUpRecord) Validate() error { return nil }

// Item implements table.Record.
func (r givenUpRecord) Item() (table.Item, error) {
	data, err := json.Marshal(storedGivenUp(r.GivenUp))
	return table.Item{Key: r.key, ExpiresAt: r.At.Add(givenUpKept), Data: data}, err
}
