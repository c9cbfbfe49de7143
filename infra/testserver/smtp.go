package testserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// SMTPFault is what an SMTPServer does wrong with a recipient.
type SMTPFault int

// The faults.
const (
	SMTPReject     SMTPFault = iota + 1 // 550 5.1.1 at RCPT
	SMTPRejectUs                        // 550 5.7.1 at RCPT: relaying denied
	SMTPDefer                           // 451 4.3.0 at RCPT
	SMTPRejectData                      // 554 5.6.0 after DATA
	SMTPDeferData                       // 452 4.3.1 after DATA
	SMTPHang                            // no answer at RCPT
	SMTPHangAfter                       // keeps the message, no answer after DATA
	SMTPCloseEarly                      // closes the connection at RCPT
	SMTPCloseAfter                      // keeps the message, closes the connection after DATA
)

// SMTPServer is a mail server on loopback that keeps what it is sent. It asks
// for a login, except on the plain port.
type SMTPServer struct {
	Host         string
	StartTLSPort int
	TLSPort      int
	PlainPort    int            // no TLS, no login
	RootCAs      *x509.CertPool // that its certificate, for Host, is verified by
	Username     string
	Password     string

	mu          sync.Mutex
	faults      map[string]SMTPFault
	mails       []SMTPMail
	connections int
	servers     []*smtp.Server
	closed      chan struct{}
}

// SMTPMail is a mail that an SMTPServer kept.
type SMTPMail struct {
	From string
	To   []string
	Data []byte
}

// SMTP starts a server.
func SMTP() (*SMTPServer, error) {
	s := &SMTPServer{
		Host: "127.0.0.1", RootCAs: x509.NewCertPool(), Username: "pinward", Password: "correct horse",
		faults: map[string]SMTPFault{}, closed: make(chan struct{}),
	}
	cert, err := s.certificate()
	if err != nil {
		return nil, err
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	for _, l := range []struct {
		port          *int
		config        *tls.Config
		implicit, any bool
	}{
		{&s.StartTLSPort, config, false, false},
		{&s.TLSPort, config, true, false},
		{&s.PlainPort, nil, false, true},
	} {
		listener, err := net.Listen("tcp", net.JoinHostPort(s.Host, "0"))
		if err != nil {
			s.Close()
			return nil, err
		}
		*l.port = listener.Addr().(*net.TCPAddr).Port
		if l.implicit {
			listener = tls.NewListener(listener, config)
		}
		server := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if _, secured := c.TLSConnectionState(); secured || l.any { // not the EHLO before STARTTLS
				s.connections++
			}
			return &smtpSession{server: s, conn: c, loggedIn: l.any}, nil
		}))
		server.Domain = s.Host
		server.EnableSMTPUTF8 = true
		server.TLSConfig = l.config
		server.ErrorLog = log.New(io.Discard, "", 0)
		s.servers = append(s.servers, server)
		go func() { _ = server.Serve(listener) }()
	}
	return s, nil
}

// certificate makes a certificate for the host that signs itself.
func (s *SMTPServer) certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses:           []net.IP{net.ParseIP(s.Host)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	s.RootCAs.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Close stops the server.
func (s *SMTPServer) Close() {
	close(s.closed)
	for _, server := range s.servers {
		_ = server.Close()
	}
}

// Fault makes the server do something wrong with a recipient from now on.
func (s *SMTPServer) Fault(recipient string, fault SMTPFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[recipient] = fault
}

// Mails returns what the server kept, in order.
func (s *SMTPServer) Mails() []SMTPMail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mails)
}

// Connections returns how many connections there were: past STARTTLS, where
// there is one.
func (s *SMTPServer) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connections
}

type smtpSession struct {
	server   *SMTPServer
	conn     *smtp.Conn
	loggedIn bool
	mail     SMTPMail
	fault    SMTPFault
}

// AuthMechanisms and Auth make it a smtp.AuthSession.
func (s *smtpSession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *smtpSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, username, password string) error {
		if username != s.server.Username || password != s.server.Password {
			// As bad as a server can be: it repeats what it was told.
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "no " + username + " with " + password}
		}
		s.loggedIn = true
		return nil
	}), nil
}

// Mail implements smtp.Session.
func (s *smtpSession) Mail(from string, opts *smtp.MailOptions) error {
	if !s.loggedIn {
		return smtp.ErrAuthRequired
	}
	if opts.UTF8 {
		return &smtp.SMTPError{Code: 555, EnhancedCode: smtp.EnhancedCode{5, 6, 7}, Message: "the next server does not know SMTPUTF8"}
	}
	s.mail.From = from
	return nil
}

// Rcpt implements smtp.Session.
func (s *smtpSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.server.mu.Lock()
	s.fault = s.server.faults[to]
	s.server.mu.Unlock()
	switch s.fault {
	case SMTPReject:
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "<" + to + "> unknown"}
	case SMTPRejectUs:
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "<" + to + "> relaying denied"}
	case SMTPDefer:
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "<" + to + "> try again"}
	case SMTPHang:
		<-s.server.closed
	case SMTPCloseEarly:
		return s.hangUp()
	}
	s.mail.To = append(s.mail.To, to)
	return nil
}

// Data implements smtp.Session.
func (s *smtpSession) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	switch s.fault {
	case SMTPRejectData:
		return &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 6, 0}, Message: "content refused"}
	case SMTPDeferData:
		return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "disk full"}
	}
	s.mail.Data = data
	s.server.mu.Lock()
	s.server.mails = append(s.server.mails, s.mail)
	s.server.mu.Unlock()
	switch s.fault {
	case SMTPHangAfter:
		<-s.server.closed
	case SMTPCloseAfter:
		return s.hangUp()
	}
	return nil
}

func (s *smtpSession) hangUp() error {
	_ = s.conn.Conn().Close()
	return errors.New("connection closed")
}

// Reset implements smtp.Session.
func (s *smtpSession) Reset() { s.mail, s.fault = SMTPMail{}, 0 }

// Logout implements smtp.Session.
func (s *smtpSession) Logout() error { return nil }
