// Package mail sends the mails with which Pinward announces PIN expiry, proves
// who asks for an unblock or to sign in, and tells of PINs that were reset: it keeps a
// tenant's messaging configurations and mail templates, renders a template for
// a person, and hands the mail to Amazon SES, to an SMTP server or to a folder. Its invariant: a Sender says of every message whether the mail system
// took it, and says Unknown, never Failed, where the mail system may have taken
// it and the answer was lost. Addresses, mail texts, codes and passwords appear in
// no error and no result.
package mail

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	netmail "net/mail"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// Message is one mail to one person.
type Message struct {
	ID      string // 1 to 100 of A-Z a-z 0-9 . _ -; sending it again under the same ID is the same mail
	To      string // an address
	Subject string // one line
	Text    string
	HTML    string // "" for a mail of text only
	Bulk    bool   // one of many that nobody waits for: urgent ones go first

	// Tenant and User are whose mail it is: what comes back finds them by it. "" is nobody's.
	Tenant table.TenantID
	User   string
}

// Format implements fmt.Formatter: a message prints without its address and
// text, which may hold a code.
func (m Message) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "mail %s", m.ID) }

// LogValue implements slog.LogValuer.
func (m Message) LogValue() slog.Value { return slog.StringValue("mail " + m.ID) }

// Outcome is what became of a message.
type Outcome byte

// The outcomes. Only Unknown can lead to a second copy if the message is sent
// again, and where the ID is the mail's Message-ID (SMTP, outbox, not SES)
// receivers can drop it.
const (
	Failed   Outcome = iota // not taken; the same message may be taken later
	Accepted                // taken: it is the mail system's from now on
	Refused                 // not taken, and will not be: a bad address, a refused content
	Unknown                 // sent, but the answer was lost
)

// String implements fmt.Stringer.
func (o Outcome) String() string {
	return [...]string{"failed", "accepted", "refused", "unknown"}[o]
}

// Result is the answer to one message.
type Result struct {
	Outcome Outcome
	Code    string // stable, for programs and records: "smtp.550", "ses.TooManyRequestsException"; "" if accepted
	Reason  string // for administrators; names no person and no secret; "" if accepted
	// NoMailbox: it was refused because there is no mailbox of this address, not for what
	// it says or who sends it.
	NoMailbox bool
}

// Sender sends messages. Send returns one Result for each message, in order,
// and does not stop at one that fails. It ends when ctx does; what was not
// tried by then is Failed.
type Sender interface {
	Send(ctx context.Context, messages []Message) []Result
}

// Senders makes senders. What an installation does not have is left zero.
type Senders struct {
	SES     *SES
	Outbox  *Outbox
	Dial    func(ctx context.Context, network, address string) (net.Conn, error) // to SMTP servers; nil is net.Dialer's, PublicDial keeps tenants out of the own network
	RootCAs *x509.CertPool                                                       // that SMTP servers are verified by; nil is the system's
	Timeout time.Duration                                                        // for connecting and logging in, and for each message, over SMTP; 0 is 20 s
	Now     func() time.Time                                                     // for the Date of mails; nil is time.Now
}

// For returns a sender for the configuration, which holds its password if it
// needs one (see Store.WithPassword). A kind that this installation does not
// have is problem.ErrState.
func (s Senders) For(c Configuration) (Sender, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	if s.Timeout == 0 {
		s.Timeout = 20 * time.Second
	}
	switch {
	case c.SMTP.Username != "" && c.SMTP.Password.Empty():
		return nil, fmt.Errorf("mail: messaging configuration %s was loaded without its password", c.ID)
	case c.Kind == KindSMTP:
		return &smtpSender{c, s}, nil
	case c.Kind == KindSES && s.SES != nil:
		return &sesSender{c, s.SES}, nil
	case c.Kind == KindOutbox && s.Outbox != nil:
		return &outboxSender{c, s.Outbox, s.Now}, nil
	}
	return nil, fmt.Errorf("mail: kind %q is not available in this installation: %w", c.Kind, problem.ErrState)
}

// BulkRate is how many bulk messages a second go out with a configuration, 0 if that is not
// known.
func (s Senders) BulkRate(ctx context.Context, c Configuration) float64 {
	if c.Kind == KindSES && s.SES != nil {
		return s.SES.bulkRate(ctx)
	}
	return 0
}

var (
	idPattern    = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)
	localPattern = regexp.MustCompile("^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}$")
)

// ParseAddress parses an RFC 5322 address, with or without a display name, and
// returns it with an ASCII domain (IDNA). Quoted and non-ASCII local parts are
// refused: SES takes neither, and SMTP servers pass on the latter only to those
// that speak SMTPUTF8. The error does not repeat the address.
func ParseAddress(s string) (*netmail.Address, error) {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return nil, errors.New("must not contain line breaks or other control characters")
	}
	if len(s) > 320 {
		return nil, errors.New("is longer than 320 bytes")
	}
	a, err := netmail.ParseAddress(s)
	if err != nil {
		return nil, errors.New(`is not a mail address such as name@example.com or "Name <name@example.com>"`)
	}
	local, domain, _ := strings.Cut(a.Address, "@")
	if !localPattern.MatchString(local) {
		return nil, errors.New("has letters before the @ that mail systems do not agree on; use ASCII without quotes")
	}
	if domain, err = idna.Lookup.ToASCII(domain); err != nil || domain == "" {
		return nil, errors.New("has no valid domain after the @")
	}
	a.Address = local + "@" + domain
	return a, nil
}

// Masked writes an address for screens: its first letter and its domain, as in
// "j…@example.com", whatever the length of what is left out. What is no address
// is "…".
func Masked(address string) string {
	a, err := netmail.ParseAddress(address)
	if err != nil {
		return "…"
	}
	at := strings.LastIndex(a.Address, "@") // a quoted local part may hold others
	domain, err := idna.Lookup.ToASCII(a.Address[at+1:])
	if err != nil {
		return "…"
	}
	if shown, err := idna.Display.ToUnicode(domain); err == nil {
		domain = shown
	}
	first, _ := utf8.DecodeRuneInString(a.Address)
	if !unicode.IsLetter(first) && !unicode.IsDigit(first) {
		return "…@" + domain
	}
	return string(first) + "…@" + domain
}

// maxSubject is the longest subject in bytes. It fits in a line of RFC 5322,
// which has 998 at most, whether it can be folded or not.
const maxSubject = 900

// check returns the result for a message that cannot be sent at all.
func (m Message) check() (Result, bool) {
	if !idPattern.MatchString(m.ID) {
		return Result{Outcome: Refused, Code: "message.id", Reason: "the message has no valid id"}, false
	}
	if _, err := ParseAddress(m.To); err != nil {
		return Result{Outcome: Refused, Code: "message.to", Reason: "the recipient's address " + err.Error()}, false
	}
	if subject := oneLine(m.Subject); subject == "" || len(subject) > maxSubject || m.Text == "" {
		return Result{Outcome: Refused, Code: "message.subject", Reason: "the message has no subject, too long a one, or no text"}, false
	}
	return Result{}, true
}

// oneLine makes s safe for a header and for running text: control characters
// and line separators become one space, characters that reorder text are
// dropped, and what would be read as an encoded word (RFC 2047) is broken up.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r), unicode.IsSpace(r):
			return ' '
		case unicode.Is(unicode.Bidi_Control, r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "=?", "= ?")
}
