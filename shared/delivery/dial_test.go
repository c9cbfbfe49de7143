package delivery

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/pinward/pinward/shared/table/tabletest"
)

// A name that leads to an address of the own network is refused when it is dialled, whatever
// it led to when the endpoint was made; and so is one that a redirect never gets to.
func TestNameOfAnotherNetwork(t *testing.T) {
	w := newWorld(t, tabletest.New(t))
	reached := false
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer server.Close()
	w.RootCAs = server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	port := strconv.Itoa(server.Listener.Addr().(*net.TCPAddr).Port)
	for _, address := range []string{"127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "::1", "fd00:ec2::254", "fe80::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"} {
		resolver(t, netip.MustParseAddr(address))
		e, _ := w.hook("https://hooks.example.com:" + port + "/")
		w.Dial = nil // as in the cloud
		if d := w.attempt(w.webhook(e)); d.State != Planned || d.Code != "notPublic" || d.Doubt {
			t.Errorf("%s: %+v", address, d)
		}
		w.must(w.DeleteEndpoint(t.Context(), w.core, admin, e.ID))
	}
	if reached {
		t.Error("the server on loopback was reached")
	}
	// With Anywhere the same name leads there.
	resolver(t, netip.MustParseAddr("127.0.0.1"))
	w.Anywhere = true
	e, _ := w.hook("https://hooks.example.com:" + port + "/")
	if d := w.attempt(w.webhook(e)); d.State != Delivered || !reached {
		t.Errorf("anywhere: %+v", d)
	}
	// What was made so is not used once the installation forbids it.
	literal, _ := w.hook("https://127.0.0.1:" + port + "/")
	d := w.webhook(literal)
	w.Anywhere = false
	if d = w.attempt(d); d.State != Dead || d.Code != "url" {
		t.Errorf("forbidden since: %+v", d)
	}
}

// resolver has every name lead to one address, until the test ends.
func resolver(t *testing.T, to netip.Addr) {
	was := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = was })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe() // no packets, so it is asked as over TCP (RFC 1035, 4.2.2)
		go func() {
			defer theirs.Close()
			var size [2]byte
			if _, err := io.ReadFull(theirs, size[:]); err != nil {
				return
			}
			message := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(theirs, message); err != nil {
				return
			}
			var asked dnsmessage.Message
			if asked.Unpack(message) != nil {
				return
			}
			q := asked.Questions[0]
			answer := dnsmessage.Message{Header: dnsmessage.Header{ID: asked.ID, Response: true, RecursionAvailable: true}, Questions: asked.Questions}
			header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
			switch {
			case q.Type == dnsmessage.TypeA && to.Is4():
				answer.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: to.As4()}}}
			case q.Type == dnsmessage.TypeAAAA && to.Is6():
				answer.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: to.As16()}}}
			}
			packed, err := answer.Pack()
			if err != nil {
				return
			}
			_, _ = theirs.Write(binary.BigEndian.AppendUint16(nil, uint16(len(packed))))
			_, _ = theirs.Write(packed)
		}()
		return ours, nil
	}}
}

// Connections that do not come about were certainly not used.
func TestNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tabletest.New(t))
		well := w.Dial
		for _, test := range []struct {
			name, code string
			spoil      func()
		}{
			{"unknown name", "connection", func() {
				w.Dial = func(context.Context, string, string) (net.Conn, error) {
					return nil, &net.DNSError{Err: "no such host"}
				}
			}},
			{"refused", "connection", func() {
				w.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, io.EOF }
			}},
			{"no one there", "timeout", func() {
				w.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
			}},
			{"silent at the handshake", "timeout", func() {
				w.Dial = func(context.Context, string, string) (net.Conn, error) {
					ours, theirs := net.Pipe()
					go func() { _, _ = io.Copy(io.Discard, theirs) }()
					return ours, nil
				}
			}},
			{"no TLS", "tls", func() {
				w.Dial = func(context.Context, string, string) (net.Conn, error) {
					ours, theirs := net.Pipe()
					go func() { _, _ = io.Copy(io.Discard, theirs) }()
					go func() { _, _ = theirs.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }()
					return ours, nil
				}
			}},
			{"certificate of nobody known", "tls", func() { w.RootCAs = nil }},
			{"certificate of another", "tls", func() {
				w.endpoint, _ = w.hook("https://example.net/")
			}},
		} {
			w.Dial, w.RootCAs = well, w.receiver.roots
			test.spoil()
			d := w.attempt(w.webhook(w.endpoint))
			if d.State != Planned || d.Code != test.code || d.Doubt || !strings.HasSuffix(d.Sentence(), ".") {
				t.Errorf("%s: %+v", test.name, d)
			}
		}
		if len(w.receiver.take()) != 0 {
			t.Error("something arrived")
		}
	})
}
