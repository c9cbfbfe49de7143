package mail

import (
	"bytes"
	"context"
	"fmt"
	"net"
	netmail "net/mail"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	gomail "github.com/wneessen/go-mail"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/secret"
)

func smtpServer(t *testing.T) *testserver.SMTPServer {
	t.Helper()
	server, err := testserver.SMTP()
	testserver.Need(t, err)
	t.Cleanup(server.Close)
	return server
}

func smtpConfiguration(server *testserver.SMTPServer) Configuration {
	return Configuration{ID: "1", Name: "SMTP", Kind: KindSMTP, From: "Acme <pins@acme.example>", ReplyTo: "help@acme.example",
		SMTP: SMTPSettings{Host: server.Host, Port: server.StartTLSPort, Security: SecuritySTARTTLS,
			Username: server.Username, Password: secret.New(server.Password)}}
}

func sendSMTP(t *testing.T, ctx context.Context, senders Senders, c Configuration, messages ...Message) []Result {
	t.Helper()
	senders.Now = clock
	sender, err := senders.For(c)
	if err != nil {
		t.Fatal(err)
	}
	return sender.Send(ctx, messages)
}

func TestSMTP(t *testing.T) {
	server := smtpServer(t)
	starttls := smtpConfiguration(server)
	implicit := starttls
	implicit.SMTP.Port, implicit.SMTP.Security = server.TLSPort, SecurityTLS
	for _, c := range []Configuration{starttls, implicit} {
		connections, before := server.Connections(), len(server.Mails())
		var messages []Message
		var want []string
		for i := range 20 {
			messages = append(messages, testMessage(fmt.Sprintf("pin-expiry.%d", i), fmt.Sprintf("user%d@acme.example", i)))
			want = append(want, "accepted")
		}
		got := sendSMTP(t, t.Context(), Senders{RootCAs: server.RootCAs}, c, messages...)
		wantCodes(t, got, want...)
		mails := server.Mails()[before:]
		if n := server.Connections() - connections; n != 1 || len(mails) != 20 {
			t.Fatalf("%s: %d mails over %d connections, want 20 over 1", c.SMTP.Security, len(mails), n)
		}
		for i, mail := range mails {
			if d := cmp.Diff([]string{messages[i].To}, mail.To); d != "" || mail.From != "pins@acme.example" {
				t.Errorf("from %s, to (-want +got):\n%s", mail.From, d)
			}
		}
		m, err := netmail.ReadMessage(bytes.NewReader(mails[7].Data))
		if err != nil {
			t.Fatal(err)
		}
		for field, want := range map[string]string{
			"Message-Id":     "<pin-expiry.7@acme.example>",
			"Auto-Submitted": "auto-generated",
			"Date":           "Fri, 20 Nov 2026 09:30:00 +0000",
			"To":             "<user7@acme.example>",
			"From":           `"Acme" <pins@acme.example>`,
			"Reply-To":       "<help@acme.example>",
			"Subject":        "=?UTF-8?q?Ihre_PIN_l=C3=A4uft_ab?=",
		} {
			if got := m.Header.Get(field); got != want {
				t.Errorf("%s: %q, want %q", field, got, want)
			}
		}
		parsed, err := parseMail(mails[7].Data)
		if err != nil || parsed.Text != "Grüße\r\n.\r\nEnde pin-expiry.7" || parsed.HTML != "<p>Grüße pin-expiry.7</p>" {
			t.Errorf("text %q, html %q, %v", parsed.Text, parsed.HTML, err)
		}
	}
}

func TestSMTPReplies(t *testing.T) {
	server := smtpServer(t)
	var messages []Message
	var want []string
	for _, test := range []struct {
		name  string
		fault testserver.SMTPFault
		want  string
	}{
		{"fine1", 0, "accepted"},
		{"unknown", testserver.SMTPReject, "refused smtp.550"},
		{"fine2", 0, "accepted"},
		{"relay", testserver.SMTPRejectUs, "failed smtp.550"},
		{"later", testserver.SMTPDefer, "failed smtp.451"},
		{"fine3", 0, "accepted"},
		{"content", testserver.SMTPRejectData, "refused smtp.554"},
		{"full", testserver.SMTPDeferData, "failed smtp.452"},
		{"fine4", 0, "accepted"},
		{"lost", testserver.SMTPCloseAfter, "unknown smtp.lost"},
		{"fine5", 0, "accepted"},
		{"cut", testserver.SMTPCloseEarly, "failed smtp.connection"},
		{"fine6", 0, "accepted"},
		{"cut1", testserver.SMTPCloseEarly, "failed smtp.connection"},
		{"cut2", testserver.SMTPCloseEarly, "failed smtp.connection"},
		{"late", 0, "failed smtp.connection"},
	} {
		to := test.name + "@acme.example"
		server.Fault(to, test.fault)
		messages = append(messages, testMessage(test.name, to))
		want = append(want, test.want)
	}
	got := sendSMTP(t, t.Context(), Senders{RootCAs: server.RootCAs}, smtpConfiguration(server), messages...)
	wantCodes(t, got, want...)
	for i, r := range got {
		if r.NoMailbox != (messages[i].ID == "unknown") {
			t.Errorf("%s: no mailbox: %v", messages[i].ID, r.NoMailbox)
		}
	}
	var kept []string
	for _, mail := range server.Mails() {
		kept = append(kept, strings.TrimSuffix(mail.To[0], "@acme.example"))
	}
	// "lost" is there, and the result said that it might be.
	if d := cmp.Diff([]string{"fine1", "fine2", "fine3", "fine4", "lost", "fine5", "fine6"}, kept); d != "" {
		t.Errorf("mails at the server (-want +got):\n%s", d)
	}
}

// Only what says that there is no mailbox says so of an address.
func TestNoMailbox(t *testing.T) {
	for reply, want := range map[string]bool{
		"550 5.1.1": true, "550 5.1.2": true, "553 5.1.3": true, "551 5.1.6": true, "556 5.1.10": true, "550 5.2.1": true, "551 ": true, "553 ": true,
		"550 ": false, "554 ": false, "552 5.2.2": false, "550 5.7.1": false, "550 5.7.26": false, "554 5.4.14": false, "550 5.1.7": false, "550 5.1.8": false, "501 5.5.4": false,
	} {
		var code int
		var enhanced string
		_, _ = fmt.Sscan(reply, &code, &enhanced)
		r, _ := sendResult(gomail.ErrSMTPRcptTo, code, enhanced)
		if r.NoMailbox != want {
			t.Errorf("%s at RCPT: %v", reply, r.NoMailbox)
		}
		if r, _ := sendResult(gomail.ErrSMTPDataClose, code, enhanced); r.NoMailbox {
			t.Errorf("%s after DATA says so of the address", reply)
		}
	}
}

func TestSMTPSilence(t *testing.T) {
	server := smtpServer(t)
	server.Fault("hang@acme.example", testserver.SMTPHang)
	server.Fault("after@acme.example", testserver.SMTPHangAfter)
	c := smtpConfiguration(server)
	mute, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	silent, silentTLS := c, c
	silent.SMTP.Port = mute.Addr().(*net.TCPAddr).Port
	silentTLS.SMTP.Port, silentTLS.SMTP.Security = silent.SMTP.Port, SecurityTLS
	fine, hang, after := testMessage("1", "fine@acme.example"), testMessage("2", "hang@acme.example"), testMessage("3", "after@acme.example")

	const limit = 300 * time.Millisecond
	for _, test := range []struct {
		name     string
		c        Configuration
		messages []Message
		want     []string
	}{
		{"greeting", silent, []Message{fine, hang}, []string{"failed smtp.timeout", "failed smtp.timeout"}},
		{"handshake", silentTLS, []Message{fine}, []string{"failed smtp.timeout"}},
		{"command", c, []Message{fine, hang, fine}, []string{"accepted", "failed smtp.connection", "failed smtp.timeout"}},
		{"after DATA", c, []Message{after, fine}, []string{"unknown smtp.lost", "failed smtp.timeout"}},
	} {
		t.Run(test.name+" by timeout", func(t *testing.T) {
			began := time.Now()
			wantCodes(t, sendSMTP(t, t.Context(), Senders{RootCAs: server.RootCAs, Timeout: limit}, test.c, test.messages...), test.want...)
			if d := time.Since(began); d > limit+20*time.Second {
				t.Errorf("took %v", d)
			}
		})
		t.Run(test.name+" by context", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			began := time.Now()
			got := sendSMTP(t, ctx, Senders{RootCAs: server.RootCAs, Timeout: time.Minute}, test.c, test.messages...)
			if d := time.Since(began); d > limit+20*time.Second {
				t.Errorf("took %v", d)
			}
			for i, r := range got {
				if want, _, _ := strings.Cut(test.want[i], " "); r.Outcome.String() != want {
					t.Errorf("message %d: %v, want %s", i, r, want)
				}
			}
		})
	}
}

func TestSMTPConnect(t *testing.T) {
	server := smtpServer(t)
	with := func(change func(*SMTPSettings)) Configuration {
		c := smtpConfiguration(server)
		change(&c.SMTP)
		return c
	}
	trusted := Senders{RootCAs: server.RootCAs, Timeout: 5 * time.Second}
	public := trusted
	public.Dial = PublicDial
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close()
	for _, test := range []struct {
		name    string
		senders Senders
		c       Configuration
		want    string
	}{
		{"wrong password", trusted, with(func(s *SMTPSettings) { s.Password = secret.New("wrong horse") }), "failed smtp.auth"},
		{"wrong password, implicit", trusted, with(func(s *SMTPSettings) {
			s.Password, s.Port, s.Security = secret.New("wrong horse"), server.TLSPort, SecurityTLS
		}), "failed smtp.auth"},
		{"no login", trusted, with(func(s *SMTPSettings) { s.Username, s.Password = "", secret.Text{} }), "failed smtp.502"},
		{"no STARTTLS", trusted, with(func(s *SMTPSettings) { s.Port = server.PlainPort }), "failed smtp.tls"},
		{"no TLS", trusted, with(func(s *SMTPSettings) { s.Port, s.Security = server.PlainPort, SecurityTLS }), "failed smtp.tls"},
		{"unknown certificate", Senders{}, with(func(s *SMTPSettings) {}), "failed smtp.tls"},
		{"unknown certificate, implicit", Senders{}, with(func(s *SMTPSettings) { s.Port, s.Security = server.TLSPort, SecurityTLS }), "failed smtp.tls"},
		{"certificate for another name", trusted, with(func(s *SMTPSettings) { s.Host = "localhost" }), "failed smtp.tls"},
		{"nobody there", trusted, with(func(s *SMTPSettings) { s.Port = port }), "failed smtp.connection"},
		{"not public", public, with(func(s *SMTPSettings) {}), "failed smtp.notPublic"},
	} {
		t.Run(test.name, func(t *testing.T) {
			wantCodes(t, sendSMTP(t, t.Context(), test.senders, test.c, testMessage("1", "a@acme.example"), testMessage("2", "b@acme.example")), test.want, test.want)
		})
	}
	if n := len(server.Mails()); n != 0 {
		t.Errorf("%d mails came through", n)
	}
}

func TestPublicDial(t *testing.T) {
	for _, address := range []string{"127.0.0.1:25", "10.1.2.3:25", "192.168.0.1:25", "169.254.169.254:80", "100.64.0.1:25", "0.0.0.0:25", "[::1]:25", "[fd00::1]:25", "[::ffff:10.0.0.1]:25",
		"[64:ff9b::a9fe:a9fe]:80", "[2002:7f00:1::]:80", "[fe80::1%lo]:80", "[::127.0.0.1]:80", "198.18.0.1:80", "255.255.255.255:80", "240.0.0.1:80"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		conn, err := PublicDial(ctx, "tcp", address)
		cancel()
		if err == nil {
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), ErrNotPublic.Error()) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestPublic(t *testing.T) {
	for _, address := range []string{"1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1"} {
		if !Public(netip.MustParseAddr(address)) {
			t.Errorf("%s is not public", address)
		}
	}
}
