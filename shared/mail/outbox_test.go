package mail

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	netmail "net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
)

var outboxConfiguration = Configuration{ID: "1", Name: "Outbox", Kind: KindOutbox, From: "Acme & Söhne <pins@acme.example>", ReplyTo: "help@acme.example"}

func TestOutbox(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "outbox")
	outbox, err := OpenOutbox(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer outbox.Close()
	now := testTime
	sender, err := Senders{Outbox: outbox, Now: func() time.Time { return now }}.For(outboxConfiguration)
	if err != nil {
		t.Fatal(err)
	}
	first, second := testMessage("pin-expiry.1", "ada@acme.example"), testMessage("pin-expiry.2", "bob@acme.example")
	second.HTML = ""
	wantCodes(t, sender.Send(context.Background(), []Message{first, testMessage("x", "nobody")}), "accepted", "refused message.to")
	now = now.Add(time.Hour)
	wantCodes(t, sender.Send(context.Background(), []Message{second, first}), "accepted", "accepted")

	got, err := outbox.List(10)
	if err != nil {
		t.Fatal(err)
	}
	want := []Mail{
		{Name: "20261120T103000.000Z-pin-expiry.2", ID: "pin-expiry.2", From: "Acme & Söhne <pins@acme.example>", To: "<bob@acme.example>",
			Subject: second.Subject, Date: now, Text: strings.ReplaceAll(second.Text, "\n", "\r\n")},
		{Name: "20261120T093000.000Z-pin-expiry.1", ID: "pin-expiry.1", From: "Acme & Söhne <pins@acme.example>", To: "<ada@acme.example>",
			Subject: first.Subject, Date: testTime, Text: strings.ReplaceAll(first.Text, "\n", "\r\n"), HTML: first.HTML},
	}
	for i := range got {
		got[i].From = strings.ReplaceAll(got[i].From, `"`, "")
		got[i].Date = got[i].Date.UTC()
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("outbox (-want +got):\n%s", d)
	}
	if newest, _ := outbox.List(1); len(newest) != 1 || newest[0].ID != "pin-expiry.2" {
		t.Errorf("List(1) = %v", newest)
	}

	info, _ := os.Stat(folder)
	if info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the folder is %o", info.Mode().Perm())
	}
	files, _ := os.ReadDir(folder)
	if len(files) != 2 {
		t.Errorf("%d files, want 2", len(files))
	}
	for _, f := range files {
		if info, _ := f.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("mode of %s is %o", f.Name(), info.Mode().Perm())
		}
	}

	secretFile := filepath.Join(filepath.Dir(folder), "20261120T093000.000Z-x.eml")
	if err := os.WriteFile(secretFile, []byte("Subject: no\r\n\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "../20261120T093000.000Z-x", secretFile, "20261120T093000.000Z-../x", "20261120T093000.000Z-x", want[0].Name + ".eml"} {
		if _, err := outbox.Open(name); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("Open(%q): %v", name, err)
		}
	}
	if err := os.Symlink(secretFile, filepath.Join(folder, "20261120T093000.000Z-x.eml")); err != nil {
		t.Fatal(err)
	}
	if m, err := outbox.Open("20261120T093000.000Z-x"); err == nil {
		t.Errorf("a link out of the folder was followed: %v", m)
	}

	if err := os.WriteFile(filepath.Join(folder, "20261121T000000.000Z-broken.eml"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := outbox.List(10); err != nil || len(all) != 4 || !strings.Contains(all[0].Subject, "cannot be read") {
		t.Errorf("a broken file hides the others: %v, %v", all, err)
	}

	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	wantCodes(t, sender.Send(canceled, []Message{testMessage("late", "ada@acme.example")}), "failed notTried")
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	wantCodes(t, sender.Send(context.Background(), []Message{testMessage("lost", "ada@acme.example")}), "failed outbox.write")
}

// FuzzHeaders tries to add a header to a mail by what people and tenants enter.
func FuzzHeaders(f *testing.F) {
	f.Add("Hello", "ada", "Acme", "pins@acme.example", "ada@acme.example", "id-1")
	f.Add("a\r\nBcc: x@y.example", "b\nBcc: x@y.example", "c\r\n\r\n<p>", "A\r\nB <a@b.example>", "x@y.example\nBcc: z@y.example", "a\r\nb")
	f.Add("=?utf-8?q?a=0D=0ABcc:_x@y.example?=", "\u2028Bcc:", "ä\x00ö", "=?utf-8?q?a=0D=0ABcc:_b?= <a@b.example>", `"a\r\nb"@c.example`, "..")
	f.Add(strings.Repeat("x", 2000), strings.Repeat("ü ", 500), "\t", "Ünï <a@b.example>", "ada@xn--mnchen-3ya.example", "A_b-c.d")
	f.Fuzz(func(t *testing.T, subject, username, customer, from, to, id string) {
		c := Configuration{ID: "1", Name: "n", Kind: KindOutbox, From: from, ReplyTo: from}
		if c.Validate() != nil {
			c.From, c.ReplyTo = "pins@acme.example", "help@acme.example"
		}
		m, err := Render(Template{Kind: PINExpiry, Subject: "{{username}} {{customer-name}}", Text: "{{username}}", HTML: "<p>{{customer-name}}</p>"}, PINExpiryValues{"soon", username, customer})
		if err != nil {
			m = Message{Subject: subject, Text: username, HTML: customer}
		}
		m.Subject += subject
		m.ID, m.To = id, to
		if _, ok := m.check(); !ok {
			m.ID, m.To = "id", "ada@acme.example"
			if _, ok := m.check(); !ok {
				return
			}
		}
		eml, err := c.encode(m, testTime)
		if err != nil {
			t.Fatal(err)
		}
		msg, err := netmail.ReadMessage(bytes.NewReader(eml))
		if err != nil {
			t.Fatalf("%v in:\n%s", err, eml)
		}
		want := []string{"Auto-Submitted", "Content-Type", "Date", "From", "Message-Id", "Mime-Version", "Reply-To", "Subject", "To"}
		if m.HTML == "" {
			want = append(want, "Content-Transfer-Encoding")
			slices.Sort(want)
		}
		var got []string
		for name, values := range msg.Header {
			if len(values) != 1 {
				t.Errorf("%d headers %s", len(values), name)
			}
			got = append(got, name)
		}
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("headers (-want +got):\n%s\nof:\n%s", d, eml)
		}
		for i, line := range strings.Split(string(eml), "\r\n") {
			if len(line) > 998 || strings.ContainsAny(line, "\r\n") {
				t.Errorf("line %d is not one of RFC 5322: %q", i+1, line)
			}
		}
		var words mime.WordDecoder
		if s, err := words.DecodeHeader(msg.Header.Get("Subject")); err != nil || s != oneLine(m.Subject) {
			t.Errorf("subject %q, %v; want %q", s, err, oneLine(m.Subject))
		}
		for field, want := range map[string]string{"From": c.From, "Reply-To": c.ReplyTo, "To": m.To} {
			address, err := ParseAddress(want)
			if err != nil {
				t.Fatal(err)
			}
			list, err := msg.Header.AddressList(field)
			if err != nil || len(list) != 1 || list[0].Address != address.Address {
				t.Errorf("%s: %v, %v; want only %s", field, list, err, address.Address)
			}
		}
		if parsed, err := parseMail(eml); err != nil || parsed.HTML != strings.ReplaceAll(strings.ReplaceAll(m.HTML, "\r\n", "\n"), "\n", "\r\n") && !strings.Contains(m.HTML, "\r") {
			t.Errorf("read back: %v: %q, want %q", err, parsed.HTML, m.HTML)
		}
		_, _ = io.Copy(io.Discard, msg.Body)
	})
}
