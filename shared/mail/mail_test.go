package mail

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

var testTime = time.Date(2026, 11, 20, 9, 30, 0, 0, time.UTC)

func clock() time.Time { return testTime }

func testMessage(id, to string) Message {
	return Message{ID: id, To: to, Subject: "Ihre PIN läuft ab", Text: "Grüße\n.\nEnde " + id, HTML: "<p>Grüße " + id + "</p>"}
}

// codes shows results as "accepted" or "failed smtp.451".
func codes(rs []Result) []string {
	out := make([]string, len(rs))
	for i, r := range rs {
		out[i] = strings.TrimSpace(r.Outcome.String() + " " + r.Code)
	}
	return out
}

// wantCodes compares results, and checks that none names a person or a secret.
func wantCodes(t *testing.T, got []Result, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, codes(got)); d != "" {
		t.Errorf("results (-want +got):\n%s", d)
	}
	for _, r := range got {
		if shown := fmt.Sprintf("%+v", r); strings.Contains(shown, ".example") || strings.Contains(shown, "horse") {
			t.Errorf("a result names an address or a password: %s", shown)
		}
		if (r.Outcome == Accepted) != (r.Reason == "") {
			t.Errorf("outcome %s with reason %q", r.Outcome, r.Reason)
		}
	}
}

func violations(err error) []string {
	var invalid *problem.InvalidError
	if !errors.As(err, &invalid) {
		return nil
	}
	var out []string
	for _, v := range invalid.Violations {
		out = append(out, v.Field)
	}
	return out
}

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{
		"ada@example.org":                        "ada@example.org",
		"Ada Lovelace <ada@ex.org>":              "ada@ex.org",
		"ada+pins@sub.example.org":               "ada+pins@sub.example.org",
		"ada@münchen.example":                    "ada@xn--mnchen-3ya.example",
		"demo@localhost":                         "demo@localhost",
		"":                                       "",
		"ada":                                    "",
		"ada@":                                   "",
		"@example.org":                           "",
		"ada@example.org, b@ex.org":              "",
		"ada@example.org\r\nBcc: b@x":            "",
		"ada@ex\nample.org":                      "",
		`"a b"@example.org`:                      "",
		"ä@example.org":                          "",
		"ada@[127.0.0.1]":                        "",
		"ada@exa mple.org":                       "",
		"ada@example..org":                       "",
		strings.Repeat("a", 65) + "@example.org": "",
		"a@" + strings.Repeat("a.", 200) + "org": "",
	} {
		a, err := ParseAddress(in)
		got := ""
		if err == nil {
			got = a.Address
		} else if in != "" && len(in) > 5 && strings.Contains(err.Error(), in) {
			t.Errorf("ParseAddress(%q): the error repeats the address: %v", in, err)
		}
		if got != want {
			t.Errorf("ParseAddress(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestMasked(t *testing.T) {
	for in, want := range map[string]string{
		"jane.doe@example.com":               "j…@example.com",
		"j@example.com":                      "j…@example.com", // as long as the others
		"Jane Doe <jane.doe@example.com>":    "j…@example.com",
		"JANE@sub.example.com":               "J…@sub.example.com",
		"7of9@example.com":                   "7…@example.com",
		"_jane@example.com":                  "…@example.com",
		"ädä@example.com":                    "ä…@example.com",
		"e\u0301ve@example.com":              "e…@example.com",
		"ada@münchen.example":                "a…@münchen.example",
		"ada@xn--mnchen-3ya.example":         "a…@münchen.example",
		"demo@localhost":                     "d…@localhost",
		`"jane doe"@example.com`:             "j…@example.com",
		`"jane@home"@example.com`:            "j…@example.com",
		`"\"jane"@example.com`:               "…@example.com",
		`"jane <jane@home>" <x@example.com>`: "x…@example.com",
		"ada@\u202emoc.example":              "…",
		"ada@example.com, eve@example.com":   "…",
		"ada":                                "…",
		"@example.com":                       "…",
		"ada@":                               "…",
		"":                                   "…",
	} {
		if got := Masked(in); got != want {
			t.Errorf("Masked(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestConfigurationValidate(t *testing.T) {
	smtp := Configuration{ID: "01J", Name: "Mail", Kind: KindSMTP, From: "Acme <pins@acme.example>",
		SMTP: SMTPSettings{Host: "mail.acme.example", Port: 587, Security: SecuritySTARTTLS}}
	with := func(change func(*Configuration)) Configuration { c := smtp; change(&c); return c }
	for _, test := range []struct {
		name string
		c    Configuration
		want []string
	}{
		{"smtp without login", smtp, nil},
		{"smtp with login", with(func(c *Configuration) { c.SMTP.Username, c.SMTP.Password = "u", secret.New("p") }), nil},
		{"ses", Configuration{ID: "1", Name: "S", Kind: KindSES, From: "a@b.example", SES: SESSettings{"set-1"}}, nil},
		{"outbox", Configuration{ID: "1", Name: "O", Kind: KindOutbox, From: "a@b.example"}, nil},
		{"nothing", Configuration{}, []string{"id", "name", "from", "kind"}},
		{"all wrong", Configuration{ID: "a/b", Name: "a\nb", Kind: KindSMTP, From: "a@b\r\nBcc: c@d", ReplyTo: "x",
			SES:  SESSettings{"set"},
			SMTP: SMTPSettings{Host: "a b", Port: 70000, Security: "none", Username: "u\n"}},
			[]string{"id", "name", "from", "replyTo", "smtp.host", "smtp.port", "smtp.security", "smtp.username", "smtp.password", "ses"}},
		{"no security", with(func(c *Configuration) { c.SMTP.Security = "" }), []string{"smtp.security"}},
		{"password without username", with(func(c *Configuration) { c.SMTP.Password = secret.New("p") }), []string{"smtp.username"}},
		{"password with line break", with(func(c *Configuration) { c.SMTP.Username, c.SMTP.Password = "u", secret.New("p\r\nQUIT") }), []string{"smtp.password"}},
		{"host with port", with(func(c *Configuration) { c.SMTP.Host = "mail:25" }), []string{"smtp.host"}},
		{"any host", with(func(c *Configuration) { c.SMTP.Host = "0.0.0.0" }), []string{"smtp.host"}},
		{"smtp settings for ses", with(func(c *Configuration) { c.Kind = KindSES }), []string{"smtp"}},
		{"configuration set", Configuration{ID: "1", Name: "S", Kind: KindSES, From: "a@b.example", SES: SESSettings{"a b"}}, []string{"ses.configurationSet"}},
	} {
		if d := cmp.Diff(test.want, violations(test.c.Validate())); d != "" {
			t.Errorf("%s: fields (-want +got):\n%s", test.name, d)
		}
	}
}

func TestSendersFor(t *testing.T) {
	ses := Configuration{ID: "1", Name: "S", Kind: KindSES, From: "a@b.example"}
	if _, err := (Senders{}).For(ses); err == nil || !strings.Contains(err.Error(), "ses") {
		t.Errorf("SES where there is none: %v", err)
	}
	if _, err := (Senders{SES: NewSES(nil)}).For(ses); err != nil {
		t.Errorf("SES: %v", err)
	}
	smtp := Configuration{ID: "1", Name: "M", Kind: KindSMTP, From: "a@b.example",
		SMTP: SMTPSettings{Host: "h", Port: 25, Security: SecurityTLS, Username: "u", PasswordSet: true}}
	if _, err := (Senders{}).For(smtp); err == nil || !strings.Contains(err.Error(), "password") {
		t.Errorf("SMTP with the password left in the store: %v", err)
	}
	if _, err := (Senders{}).For(Configuration{}); violations(err) == nil {
		t.Errorf("an invalid configuration: %v", err)
	}
}

// Every sender refuses the same messages without asking anybody.
func TestUnsendable(t *testing.T) {
	outbox, err := OpenOutbox(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer outbox.Close()
	senders := Senders{SES: NewSES(&fakeSES{}), Outbox: outbox, Now: clock}
	for _, c := range []Configuration{
		{ID: "1", Name: "S", Kind: KindSES, From: "a@b.example"},
		{ID: "1", Name: "S", Kind: KindOutbox, From: "a@b.example"},
		{ID: "1", Name: "S", Kind: KindSMTP, From: "a@b.example", SMTP: SMTPSettings{Host: "127.0.0.1", Port: 1, Security: SecurityTLS}},
	} {
		sender, err := senders.For(c)
		if err != nil {
			t.Fatal(err)
		}
		got := sender.Send(context.Background(), []Message{
			testMessage("m1", "nobody"),
			testMessage("m2", "a@b.example\r\nBcc: c@d.example"),
			testMessage("../m3", "a@b.example"),
			{ID: "m4", To: "a@b.example", Text: "x"},
		})
		t.Run(string(c.Kind), func(t *testing.T) {
			wantCodes(t, got, "refused message.to", "refused message.to", "refused message.id", "refused message.subject")
		})
	}
}
