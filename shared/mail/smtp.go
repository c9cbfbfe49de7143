package mail

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"
)

// notTried is the result of messages that were left when the context ended.
var notTried = Result{Outcome: Failed, Code: "notTried", Reason: "there was no time left to send it"}

type smtpSender struct {
	configuration Configuration
	Senders
}

// smtpSession is one connection, logged in.
type smtpSession struct {
	client *gomail.Client
	smtp   *smtp.Client
	end    func() // closes the connection
}

// Send implements Sender over one connection, and over a new one after a
// connection broke.
func (s *smtpSender) Send(ctx context.Context, messages []Message) []Result {
	results := make([]Result, len(messages))
	var session *smtpSession
	defer func() { session.close() }()
	stopped := Result{}
	broken := 0 // connections in a row that ended without an accepted message
	for i, m := range messages {
		if r, ok := m.check(); !ok {
			results[i] = r
			continue
		}
		if stopped.Code == "" && ctx.Err() != nil {
			stopped = notTried
		}
		if stopped.Code == "" && session == nil {
			var err error
			if session, err = s.connect(ctx); err != nil {
				stopped = connectResult(ctx, err)
			}
		}
		if stopped.Code != "" {
			results[i] = stopped
			continue
		}
		began := time.Now()
		var usable bool
		results[i], usable = session.send(s.configuration, m, s.Now())
		if results[i].Outcome == Accepted {
			broken = 0
		}
		if usable {
			continue
		}
		session.end()
		session = nil
		if results[i].Outcome != Accepted {
			broken++
		}
		if time.Since(began) >= s.Timeout {
			stopped = Result{Outcome: Failed, Code: "smtp.timeout", Reason: "the mail server did not answer in time"}
		} else if broken == 2 {
			stopped = Result{Outcome: Failed, Code: "smtp.connection", Reason: "the mail server keeps closing the connection"}
		}
	}
	return results
}

// connect dials, secures and logs in, within s.Timeout.
func (s *smtpSender) connect(ctx context.Context) (_ *smtpSession, err error) {
	settings := s.configuration.SMTP
	secure := &tls.Config{ServerName: settings.Host, RootCAs: s.RootCAs, MinVersion: tls.VersionTLS12}
	dialer := s.Dial
	if dialer == nil {
		dialer = (&net.Dialer{}).DialContext
	}
	session := &smtpSession{}
	dial := func(dialing context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer(dialing, network, address)
		if err != nil {
			return nil, err
		}
		// go-mail looks at the context only while it dials.
		unbind := context.AfterFunc(ctx, func() { _ = conn.Close() })
		session.end = func() { unbind(); _ = conn.Close() }
		if settings.Security == SecuritySTARTTLS {
			return conn, nil
		}
		t := tls.Client(conn, secure)
		return t, t.HandshakeContext(dialing)
	}
	options := []gomail.Option{
		gomail.WithPort(settings.Port),
		gomail.WithTimeout(s.Timeout), // for connecting, and again for each message
		gomail.WithTLSConfig(secure),
		gomail.WithTLSPolicy(gomail.TLSMandatory),
		gomail.WithDialContextFunc(dial),
		gomail.WithoutNoop(),
		gomail.WithoutRset(),
		// Addresses are ASCII, and a mail sent with SMTPUTF8 is bounced by the
		// first server on its way that does not know it (RFC 6531 section 3.4).
		gomail.WithoutSMTPUTF8(),
	}
	if settings.Security == SecurityTLS {
		options = append(options, gomail.WithSSL())
	}
	if settings.Username != "" {
		options = append(options,
			gomail.WithOpportunisticSMTPAuth(gomail.SMTPAuthSCRAMSHA256, gomail.SMTPAuthPlain, gomail.SMTPAuthLogin),
			gomail.WithUsername(settings.Username), gomail.WithPassword(settings.Password.Reveal()))
	}
	if session.client, err = gomail.NewClient(settings.Host, options...); err != nil {
		return nil, err
	}
	if session.smtp, err = session.client.DialToSMTPClientWithContext(ctx); err != nil {
		if session.end != nil {
			session.end()
		}
		return nil, err
	}
	return session, nil
}

// connectResult is the result of every message when there is no connection.
// The server's words and Go's are left out: they may repeat what we sent.
func connectResult(ctx context.Context, err error) Result {
	var reply *textproto.Error
	var timeout net.Error
	code := 0
	if errors.As(err, &reply) {
		code = reply.Code
	}
	switch text := err.Error(); {
	case ctx.Err() != nil, errors.As(err, &timeout) && timeout.Timeout():
		return Result{Outcome: Failed, Code: "smtp.timeout", Reason: "the mail server did not answer in time"}
	case strings.Contains(text, "SMTP AUTH failed") && code != 0:
		return Result{Outcome: Failed, Code: "smtp.auth", Reason: fmt.Sprintf("the mail server does not accept the username and password (%d)", code)}
	case strings.Contains(text, "does not support SMTP AUTH"), errors.Is(err, gomail.ErrNoSupportedAuthDiscovered):
		return Result{Outcome: Failed, Code: "smtp.auth", Reason: "the mail server offers no way to log in that is supported"}
	case strings.Contains(text, "does not support STARTTLS"):
		return Result{Outcome: Failed, Code: "smtp.tls", Reason: "the mail server does not offer STARTTLS"}
	case code != 0:
		return Result{Outcome: Failed, Code: fmt.Sprintf("smtp.%d", code), Reason: fmt.Sprintf("the mail server does not accept connections now (%d)", code)}
	case errors.Is(err, ErrNotPublic):
		return Result{Outcome: Failed, Code: "smtp.notPublic", Reason: "the mail server's address is not a public one"}
	case isTLS(err):
		return Result{Outcome: Failed, Code: "smtp.tls", Reason: "no secure connection to the mail server: its certificate is not valid for its name, or it does not speak TLS on this port"}
	}
	return Result{Outcome: Failed, Code: "smtp.connection", Reason: "there is no mail server at this host and port, or it closed the connection"}
}

func isTLS(err error) bool {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	return errors.As(err, &certificate) || errors.As(err, &record) || errors.As(err, &alert)
}

// send sends one message and tells whether the connection can take another.
func (s *smtpSession) send(c Configuration, m Message, at time.Time) (r Result, usable bool) {
	msg, err := c.build(m, at)
	if err != nil {
		return Result{Outcome: Refused, Code: "message.build", Reason: "the message cannot be put into mail format"}, true
	}
	if err := s.client.SendWithSMTPClient(s.smtp, msg); err == nil {
		return Result{Outcome: Accepted}, true
	}
	var e *gomail.SendError
	if !errors.As(msg.SendError(), &e) { // the connection was gone before the first command
		return Result{Outcome: Failed, Code: "smtp.connection", Reason: "the mail server closed the connection"}, false
	}
	return sendResult(e.Reason, e.ErrorCode(), e.EnhancedStatusCode())
}

// sendResult reads the reply to one command of a message (RFC 5321 section
// 4.2). code is 0 if there was none.
func sendResult(at gomail.SendErrReason, code int, enhanced string) (r Result, usable bool) {
	if code == 0 {
		if at == gomail.ErrSMTPDataClose { // the whole message was sent
			return Result{Outcome: Unknown, Code: "smtp.lost", Reason: "the connection ended before the mail server confirmed the message"}, false
		}
		return Result{Outcome: Failed, Code: "smtp.connection", Reason: "the mail server closed the connection or did not answer in time"}, false
	}
	r = Result{Outcome: Failed, Code: fmt.Sprintf("smtp.%d", code), Reason: "the mail server answered " + strings.TrimSpace(fmt.Sprintf("%d %s", code, enhanced))}
	switch at {
	case gomail.ErrSMTPRcptTo:
		// 5.7.x (RFC 3463) and 530 are about us, such as "relaying denied": the
		// next attempt may find that put right.
		if code >= 500 && code != 530 && !strings.HasPrefix(enhanced, "5.7.") {
			r.Outcome = Refused
			r.Reason += ": it does not accept this recipient"
			r.NoMailbox = noMailbox(code, enhanced)
		}
	case gomail.ErrSMTPMailFrom:
		r.Reason += ": it does not accept this sender"
	case gomail.ErrSMTPDataClose:
		if code >= 500 {
			r.Outcome = Refused
			r.Reason += ": it does not accept this message"
		}
	default: // the dialogue is in a state that the next message cannot start from
		return r, false
	}
	return r, code != 421 // 421: the server closes the connection
}

// noMailbox tells whether a recipient was refused because there is no such mailbox (RFC 3463,
// 3.2 and 3.3: 5.1.1 to 5.1.3, 5.1.6, 5.2.1; RFC 7505: 5.1.10). A server that gives no such code
// means it by 551 and 553 (RFC 5321, 4.2.3); its 550 may also be a matter of policy.
func noMailbox(code int, enhanced string) bool {
	switch enhanced {
	case "5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1":
		return true
	case "":
		return code == 551 || code == 553
	}
	return false
}

func (s *smtpSession) close() {
	if s == nil {
		return
	}
	// What was accepted is the server's, whether it says goodbye or not.
	_ = s.smtp.UpdateDeadline(time.Second)
	_ = s.client.CloseWithSMTPClient(s.smtp)
	s.end()
}
