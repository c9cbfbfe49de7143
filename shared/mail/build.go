package mail

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
)

// build makes the RFC 5322 mail that SMTP and outbox share. Its headers are
// exactly From, To, Reply-To if given, Subject, Date, Message-ID,
// Auto-Submitted (RFC 3834), MIME-Version, Content-Type and, for text only,
// Content-Transfer-Encoding.
func (c Configuration) build(m Message, at time.Time) (*gomail.Msg, error) {
	from, err := ParseAddress(c.From)
	if err != nil {
		return nil, fmt.Errorf("mail: from %w", err)
	}
	to, err := ParseAddress(m.To)
	if err != nil {
		return nil, fmt.Errorf("mail: to %w", err)
	}
	to.Name = ""
	from.Name = oneLine(from.Name)
	msg := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	msg.FromMailAddress(from)
	msg.ToMailAddress(to)
	if c.ReplyTo != "" {
		replyTo, err := ParseAddress(c.ReplyTo)
		if err != nil {
			return nil, fmt.Errorf("mail: reply-to %w", err)
		}
		replyTo.Name = oneLine(replyTo.Name)
		msg.ReplyToMailAddress(replyTo)
	}
	_, domain, _ := strings.Cut(from.Address, "@")
	msg.SetMessageIDWithValue(m.ID + "@" + domain)
	msg.SetDateWithValue(at)
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	msg.Subject(oneLine(m.Subject))
	msg.SetBodyString(gomail.TypeTextPlain, m.Text)
	if m.HTML != "" {
		msg.AddAlternativeString(gomail.TypeTextHTML, m.HTML)
	}
	return msg, nil
}

func (c Configuration) encode(m Message, at time.Time) ([]byte, error) {
	msg, err := c.build(m, at)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := msg.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("mail: encode message %s: %w", m.ID, err)
	}
	return b.Bytes(), nil
}
