package credential

import (
	"fmt"
	"slices"
	"time"

	"github.com/pinward/pinward/shared/problem"
)

// PINChange is when and how a card got its PIN.
type PINChange struct {
	At        time.Time
	How       How
	Operation string // the unblock's id
	// Presumed: an answer was given that sets it, and the card has not shown yet that it did.
	Presumed bool
}

// How is a way to a new PIN.
type How string

// The ways.
const (
	Issued             How = "issued"
	ChangedByHolder    How = "changedByHolder"
	ResetBySelfService How = "resetBySelfService"
	ResetByOperator    How = "resetByOperator"
	ResetOffline       How = "resetOffline"
)

// Flagged is how a credential came to its PIN expiry flag.
type Flagged struct {
	How FlagHow
	At  time.Time
	Run string // the sanity check's run
}

// FlagHow is a way to a PIN expiry flag.
type FlagHow string

// The ways.
const (
	FlagByIssue       FlagHow = "issue"
	FlagByChange      FlagHow = "change"
	FlagByReset       FlagHow = "reset"
	FlagByImport      FlagHow = "import"
	FlagBySanityCheck FlagHow = "sanityCheck"
)

// Notice is the mail about a PIN's expiry that comes next, or came last.
type Notice struct {
	Kind     NoticeKind
	Days     int // before the expiry, of a NoticeReminder
	State    NoticeState
	At       time.Time // planned: when to send; claimed: when the claim ends; else when it came to this
	Attempts int       // sends begun
	Repeated bool      // it may have been sent more than once
	Reason   string    // coded: why it failed or was skipped
	// Left are the days before the expiry of the reminders to come, the most first.
	Left []int
	Told bool // event.CredentialExpiring has told of it
}

// NoticeKind is what a notice says, and to whom.
type NoticeKind string

// The kinds, in the order in which they come.
const (
	NoticeReminder  NoticeKind = "reminder"         // to the holder: the PIN is about to expire
	NoticeExpired   NoticeKind = "expired"          // to the holder: it has
	NoticeOperators NoticeKind = "expiredOperators" // to the template's operators
)

// NoticeState is a stage of a notice.
type NoticeState string

// The stages: planned → claimed → sent | failed | skipped; a claim that ends without
// result, or a send that may be tried again, is planned once more.
const (
	NoNotice      NoticeState = ""
	NoticePlanned NoticeState = "planned"
	NoticeClaimed NoticeState = "claimed"
	NoticeSent    NoticeState = "sent"
	NoticeFailed  NoticeState = "failed"
	NoticeSkipped NoticeState = "skipped"
)

func (n Notice) open() bool { return n.State == NoticePlanned || n.State == NoticeClaimed }

// HasFlag tells whether it is on record when the card's PIN expires.
func (c Credential) HasFlag() bool { return !c.PINExpiresAt.IsZero() }

// Expired tells whether the card's PIN has expired. The card goes on working.
func (c Credential) Expired(now time.Time) bool { return c.HasFlag() && !now.Before(c.PINExpiresAt) }

// Flag sets the PIN expiry flag and plans the reminders of the template, or with a zero
// time takes it away. Nothing else sets it. Reminders whose day has passed are not sent
// any more; those planned stay when the template changes.
func (c Credential) Flag(at time.Time, by Flagged, t Template, now time.Time) Credential {
	c.PINExpiresAt, c.Flagged, c.Notice, c.ExpiryRecorded = time.Time{}, Flagged{}, Notice{}, false
	if at.IsZero() {
		return c
	}
	c.PINExpiresAt = at.UTC().Truncate(time.Second)
	by.At = by.At.UTC().Truncate(time.Second)
	c.Flagged = by
	for _, r := range t.Reminders {
		c.Notice.Left = append(c.Notice.Left, r.DaysBefore)
	}
	slices.SortFunc(c.Notice.Left, func(a, b int) int { return b - a })
	c.Notice = c.remind(now)
	return c
}

// remindAt is when a reminder so many days before the expiry is to be sent.
func (c Credential) remindAt(days int) time.Time { return c.PINExpiresAt.AddDate(0, 0, -days) }

// remind plans the next of the reminders left whose day has not passed, and after the last
// one the mail that tells of the expiry.
func (c Credential) remind(now time.Time) Notice {
	for i, days := range c.Notice.Left {
		if at := c.remindAt(days); !at.Before(now.UTC().Truncate(time.Second)) {
			return Notice{Kind: NoticeReminder, Days: days, State: NoticePlanned, At: at, Left: append([]int(nil), c.Notice.Left[i+1:]...)}
		}
	}
	return Notice{Kind: NoticeExpired, State: NoticePlanned, At: c.PINExpiresAt}
}

// PINChanged notes that the card has a new PIN: a card that waited for one is active, and
// the PIN expiry flag is set by the template, or gone if that has none.
func (c Credential) PINChanged(ch PINChange, t Template) Credential {
	ch.At = ch.At.UTC().Truncate(time.Second)
	c.LastPINChange = ch
	if m, ok := moveOf(c.State, Active); ok && m.pin {
		c.State = Active
	}
	how := FlagByReset
	switch ch.How {
	case Issued:
		how = FlagByIssue
	case ChangedByHolder:
		how = FlagByChange
	default:
		c.Resets = t.count(c.Resets, ch.At)
	}
	var at time.Time
	if t.ManagesExpiry() {
		at = ch.At.AddDate(0, 0, t.PINValidDays)
	}
	return c.Flag(at, Flagged{How: how, At: ch.At}, t, ch.At)
}

// PINChangedAction is the audit log's word for a PIN that its holder has changed.
const PINChangedAction = "credential.pinChanged"

// ChangedByHolder notes that the holder has changed the card's PIN at a time, which must not
// be before the last change on record. A retired card's is problem.ErrState.
func (c Credential) ChangedByHolder(at time.Time, t Template, now time.Time) (Credential, error) {
	at = at.UTC().Truncate(time.Second)
	switch last := c.LastPINChange.At; {
	case at.After(now.Add(skew)):
		return c, problem.Invalid("future", "at", "must not be in the future")
	case at.Before(last):
		return c, problem.Invalid("past", "at", "must not be before the last PIN change on record, %s", last.Format(time.RFC3339))
	case c.State == Retired:
		return c, fmt.Errorf("%w: the card is %s", problem.ErrState, c.State)
	}
	c = c.PINChanged(PINChange{At: at, How: ChangedByHolder}, t)
	return c.Flag(c.PINExpiresAt, c.Flagged, t, now), nil
}

// dueAt is when the sweep has to look at the credential next, and false if never.
func (c Credential) dueAt() (time.Time, bool) {
	if !c.HasFlag() || c.State == Suspended || c.State == Retired {
		return time.Time{}, false
	}
	switch n := c.Notice; {
	case n.open() && n.Kind == NoticeReminder && n.At.After(c.PINExpiresAt), !n.open() && !c.ExpiryRecorded:
		return c.PINExpiresAt, true
	case n.open():
		return n.At, true
	}
	return time.Time{}, false
}

// MessageID names the mail of a notice: however often it is sent, it is the same mail to
// those who receive it.
func (c Credential) MessageID() string {
	what := fmt.Sprint(c.Notice.Days)
	if c.Notice.Kind == NoticeOperators {
		what = "op"
	}
	return fmt.Sprintf("card-pin.%s.%d.%s", c.ID, c.PINExpiresAt.Unix(), what)
}
