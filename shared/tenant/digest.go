package tenant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// DigestSettings say whom of a tenant's administrators a mail a day tells of its PINs, and
// when, by the clock of the tenant's zone. Without recipients there is none.
type DigestSettings struct {
	Recipients []string // addresses, at most 10
	Hour       int      // of the day
	Days       []time.Weekday
}

const maxDigestRecipients = 10

func (d DigestSettings) on() bool { return len(d.Recipients) > 0 }

func (d DigestSettings) validate(vs *problem.Violations) {
	if n := len(d.Recipients); n > maxDigestRecipients {
		vs.Add("count", "digest.recipients", "are %d, at most %d are taken", n, maxDigestRecipients)
	}
	for i, to := range d.Recipients {
		if a, err := mail.ParseAddress(to); err != nil || a.Name != "" || len(to) > 254 {
			vs.Add("form", "digest.recipients", "must be addresses alone, such as it@example.org; number %d is not", i+1)
		} else if slices.ContainsFunc(d.Recipients[:i], func(other string) bool { return strings.EqualFold(to, other) }) {
			vs.Add("repeated", "digest.recipients", "must have each address once; number %d is there twice", i+1)
		}
	}
	if d.Hour < 0 || d.Hour > 23 {
		vs.Add("range", "digest.hour", "must be from 0 to 23")
	}
	validateDays(vs, "digest.days", d.Days)
}

// NextDigest returns when the first digest after a time is to be sent.
func (s Settings) NextDigest(after time.Time) time.Time {
	zone, d := s.Location(), s.Digest
	local := after.In(zone)
	for i := 0; ; i++ { // within eight days
		at := time.Date(local.Year(), local.Month(), local.Day()+i, d.Hour, 0, 0, 0, zone)
		if at.After(after) && (len(d.Days) == 0 || slices.Contains(d.Days, at.Weekday())) {
			return at.UTC()
		}
	}
}

// Digest is where a tenant's digests have come to. Its invariant is that of expiry mails: it
// is claimed before it is sent and marked after.
type Digest struct {
	Tenant   table.TenantID
	Since    time.Time // what it tells of begins here
	Until    time.Time // and ends here; set by its first claim, for a try again tells the same
	For      time.Time // when it is to be sent: which one it is
	At       time.Time // when the sweep has to see to it: For, the next try, or the end of a claim
	Claimed  bool
	Attempts int
	Repeated bool     // it may have been sent more than once
	Reached  []string // who has it, or never will
	Sent     bool     // somebody has it

	Version int64
	Err     error // of DigestsDueBefore: the item cannot be read; nothing else is set
}

// digestPast bounds how far back a digest looks, however long none could be sent.
const digestPast = 31 * 24 * time.Hour

type storedDigest struct {
	Tenant   table.TenantID `json:"tenant"`
	Since    time.Time      `json:"since"`
	Until    time.Time      `json:"until,omitzero"`
	For      time.Time      `json:"for"`
	At       time.Time      `json:"at"`
	Claimed  bool           `json:"claimed,omitempty"`
	Attempts int            `json:"attempts,omitempty"`
	Repeated bool           `json:"repeated,omitempty"`
	Reached  []string       `json:"reached,omitempty"`
	Sent     bool           `json:"sent,omitempty"`
}

// Validate implements table.Record.
func (d Digest) Validate() error { return nil }

// Item implements table.Record.
func (d Digest) Item() (table.Item, error) {
	data, err := json.Marshal(storedDigest{d.Tenant, d.Since, d.Until, d.For, d.At, d.Claimed, d.Attempts, d.Repeated, d.Reached, d.Sent})
	return table.Item{Key: table.DigestKey(d.Tenant), Indexes: []table.IndexKey{table.DigestDue(d.Tenant, d.At)}, Data: data}, err
}

func decodeDigest(item table.Item) (Digest, error) {
	var s storedDigest
	if err := item.Decode(&s); err != nil {
		return Digest{}, err
	}
	return Digest{Tenant: s.Tenant, Since: s.Since, Until: s.Until, For: s.For, At: s.At, Claimed: s.Claimed, Attempts: s.Attempts, Repeated: s.Repeated, Reached: s.Reached, Sent: s.Sent, Version: item.Version}, nil
}

// digestOps returns what is to be written with settings in place of others: when the next
// digest is due.
func (ts *Tenants) digestOps(ctx context.Context, id table.TenantID, was, is Settings) ([]table.Op, error) {
	same := slices.Equal(was.Digest.Recipients, is.Digest.Recipients) && was.Digest.Hour == is.Digest.Hour && slices.Equal(was.Digest.Days, is.Digest.Days)
	if same && (was.TimeZone == is.TimeZone || !is.Digest.on()) {
		return nil, nil
	}
	if !is.Digest.on() {
		return []table.Op{table.Delete(table.DigestKey(id), table.Whatever())}, nil
	}
	now := ts.Now().UTC().Truncate(time.Second)
	d := Digest{Tenant: id, Since: now}
	item, err := ts.Table.Get(ctx, table.DigestKey(id))
	if err == nil {
		if d, err = decodeDigest(item); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, problem.ErrNotFound) {
		return nil, fmt.Errorf("load digest: %w", err)
	}
	next := is.NextDigest(now)
	return []table.Op{table.Put(Digest{Tenant: id, Since: d.Since, For: next, At: next}, table.After(d.Version))}, nil
}

// DigestsDueBefore returns up to limit digests of a shard of the due index whose time has
// come. They are read from an index, which may lag; what is done about them is conditional.
func (ts *Tenants) DigestsDueBefore(ctx context.Context, shard int, now time.Time, limit int) (due []Digest, more bool, _ error) {
	page, err := ts.Table.Query(ctx, table.DigestsDueBefore(shard, now).Limit(limit))
	if err != nil {
		return nil, false, fmt.Errorf("read digests that are due: %w", err)
	}
	for _, item := range page.Items {
		d, err := decodeDigest(item)
		due = append(due, d)
		due[len(due)-1].Err = err
	}
	return due, page.More, nil
}

// ClaimDigest takes it on to send a digest: until the lease ends nobody else does. It returns
// false if somebody else was first.
func (ts *Tenants) ClaimDigest(ctx context.Context, d Digest, lease time.Duration) (Digest, bool, error) {
	now := ts.Now()
	if now.Before(d.At) {
		return Digest{}, false, nil
	}
	d.Repeated = d.Repeated || d.Claimed // that claim may have sent it
	d.Claimed, d.At = true, now.Add(lease).UTC().Truncate(time.Second)
	d.Attempts++
	if d.Until.IsZero() {
		d.Until = now.UTC().Truncate(time.Second)
	}
	if oldest := d.Until.Add(-digestPast); d.Since.Before(oldest) {
		d.Since = oldest
	}
	return ts.putDigest(ctx, d)
}

// MarkDigest records what became of a claimed digest, which is done with: the next one tells
// of what came since.
func (ts *Tenants) MarkDigest(ctx context.Context, by audit.Actor, s Settings, d Digest, outcome string) (bool, error) {
	next := s.NextDigest(ts.Now())
	details := map[string]string{"outcome": outcome, "for": d.For.Format(time.RFC3339)}
	if d.Repeated && outcome == DigestSent {
		details["possiblyRepeated"] = "true"
	}
	_, done, err := ts.putDigest(ctx, Digest{Tenant: d.Tenant, Since: d.Until, For: next, At: next, Version: d.Version},
		ts.Audit.Op(ctx, d.Tenant, audit.Record{Actor: by, Action: "digest", Subject: "digest", Outcome: audit.Done, Details: details}))
	return done, err
}

// Outcomes of a digest.
const (
	DigestSent    = "sent"
	DigestNothing = "nothingToTell"
	DigestRefused = "refused" // by the mail system, for all who were to have it
)

// PostponeDigest puts a digest off that cannot be sent now, or not to all. If the next one is
// due by then, that tells of what this one would have.
func (ts *Tenants) PostponeDigest(ctx context.Context, s Settings, d Digest, at time.Time) (bool, error) {
	d.Claimed, d.At = false, at.UTC().Truncate(time.Second)
	if next := s.NextDigest(d.For); s.Digest.on() && !d.At.Before(next) {
		if now := ts.Now(); !next.After(now) {
			next = s.NextDigest(now)
		}
		d = Digest{Tenant: d.Tenant, Since: d.Since, For: next, At: next, Version: d.Version}
	}
	_, done, err := ts.putDigest(ctx, d)
	return done, err
}

func (ts *Tenants) putDigest(ctx context.Context, d Digest, with ...table.Op) (Digest, bool, error) {
	err := ts.Table.Write(ctx, append([]table.Op{table.Put(d, table.IfVersion(d.Version))}, with...)...)
	if errors.Is(err, problem.ErrConflict) {
		return Digest{}, false, nil
	} else if err != nil {
		return Digest{}, false, fmt.Errorf("write digest: %w", err)
	}
	d.Version++
	return d, true, nil
}
