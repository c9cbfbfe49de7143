package mail

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

func TestTemplateValidate(t *testing.T) {
	const valid = "{{username}}"
	for _, test := range []struct {
		name                string
		subject, text, html string
		field, reason       string // "" for valid
	}{
		{"all variables", "{{pinExpiration}}", "{{ username }} {{customer-name}}", "<p title='x'>{{customer-name}}</p>", "", ""},
		{"single braces", "{x}", "} {x} }}", "", "", ""},
		{"variable in title", "s", "t", "<title>{{username}}</title>", "", ""},
		{"unknown in subject", "{{pin}}", "t", "", "subject", "{{pin}} is not a variable of this mail; the variables are {{pinExpiration}}, {{username}}, {{customer-name}}"},
		{"unknown in text", "s", "{{userName}}", "", "text", "{{userName}} is not"},
		{"unknown in html", "s", "t", "{{customer_name}}", "html", "{{customer_name}} is not"},
		{"empty tag", "s", "{{}}", "", "text", "is not a variable"},
		{"dotted", "s", "{{username.x}}", "", "text", "is not a variable"},
		{"this", "s", "{{.}}", "", "text", "is not a variable"},
		{"triple", "s", "t", "{{{username}}}", "html", "unescaped"},
		{"ampersand", "s", "t", "{{& username}}", "html", "unescaped"},
		{"triple in text", "s", "{{{username}}}", "", "text", "unescaped"},
		{"section", "s", "{{#username}}x", "", "text", "not supported"},
		{"inverted", "s", "{{^username}}x{{/username}}", "", "text", "not supported"},
		{"partial", "s", "{{> etc/passwd}}", "", "text", "not supported"},
		{"delimiters", "s", "{{=<% %>=}}<% pin %>", "", "text", "not supported"},
		{"comment", "s", "{{! hidden }}", "", "text", "not supported"},
		{"not closed", "s", "{{username", "", "text", "not closed"},
		{"no subject", " ", "t", "", "subject", "empty"},
		{"no text", "s", "\n", "", "text", "empty"},
		{"two lines of subject", "a\r\nBcc: b@c", "t", "", "subject", "line breaks"},
		{"control character", "s", "\x00", "", "text", "control"},
		{"not UTF-8", "s", "\xff", "", "text", "UTF-8"},
		{"long subject", strings.Repeat("s", 201), "t", "", "subject", "201 bytes"},
		{"long text", "s", strings.Repeat("t", 20_001), "", "text", "20001 bytes"},
		{"long html", "s", "t", strings.Repeat("h", 100_001), "html", "100001 bytes"},
		{"in attribute", "s", "t", "<a href='https://x/?u={{username}}'>x</a>", "html", "running text"},
		{"in tag name", "s", "t", "<{{username}}>", "html", "running text"},
		{"in comment", "s", "t", "<!-- {{username}} -->", "html", "running text"},
		{"in script", "s", "t", "<script>{{username}}</script>", "html", "running text"},
		{"in style", "s", "t", "<style>p{color:{{username}}}</style>", "html", "running text"},
		{"in open tag", "s", "t", "<a {{username}}", "html", "running text"},
	} {
		err := Template{ID: "t", Kind: PINExpiry, Name: "T", Subject: test.subject, Text: test.text, HTML: test.html}.Validate()
		if test.field == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		var invalid *problem.InvalidError
		if !errors.As(err, &invalid) || invalid.Violations[0].Field != test.field || !strings.Contains(invalid.Violations[0].Reason, test.reason) {
			t.Errorf("%s: %v; want %s: ...%s...", test.name, err, test.field, test.reason)
		}
	}
	err := Template{ID: "a b", Kind: PINExpiry, Subject: "{{a}}{{b}}", Text: "{{c}}", HTML: valid}.Validate()
	if d := cmp.Diff([]string{"id", "name", "subject", "subject", "text"}, violations(err)); d != "" {
		t.Errorf("not all violations are given (-want +got):\n%s", d)
	}
}

// Each kind of mail has variables of its own, and a code has its place.
func TestTemplateKinds(t *testing.T) {
	const all = "{{code}}, {{username}}, {{customer-name}}, {{card}}, {{expires}}, {{place}}"
	for _, test := range []struct {
		name                string
		kind                TemplateKind
		subject, text, html string
		field, reason       string // "" for valid
	}{
		{"code mail", UnblockCode, "{{username}} {{customer-name}} {{card}} {{place}}", "{{code}} {{expires}}", "<b>{{ code }}</b>", "", ""},
		{"code mail of text only", UnblockCode, "s", "{{code}}", "", "", ""},
		{"code mail without code", UnblockCode, "s", "{{username}}", "", "text", "must contain {{code}}"},
		{"code in text, not in HTML", UnblockCode, "s", "{{code}}", "<p>{{username}}</p>", "html", "must contain {{code}}"},
		{"code in HTML, not in text", UnblockCode, "s", "see HTML", "<p>{{code}}</p>", "text", "must contain {{code}}"},
		{"code in an HTML comment", UnblockCode, "s", "{{code}}", "<!-- {{code}} -->", "html", "running text"},
		{"code without braces", UnblockCode, "s", "code", "", "text", "must contain {{code}}"},
		{"code in subject", UnblockCode, "Code: {{code}}", "{{code}}", "", "subject", "lock screens"},
		{"code in subject, with spaces", UnblockCode, "{{  code }}", "{{code}}", "", "subject", "lock screens"},
		{"expiry in code mail", UnblockCode, "s", "{{code}} {{pinExpiration}}", "", "text", "{{pinExpiration}} is not a variable of this mail; the variables are " + all},
		{"reset mail", PINReset, "{{username}} {{customer-name}}", "{{card}} {{time}}", "{{by}} {{place}}", "", ""},
		{"code in reset mail", PINReset, "s", "{{code}}", "", "text", "not a variable"},
		{"code in expiry mail", PINExpiry, "s", "{{code}}", "", "text", "not a variable"},
		{"code in subject of expiry mail", PINExpiry, "{{code}}", "t", "", "subject", "not a variable"},
		{"PIN mail", PINIssued, "{{username}} {{customer-name}}", "{{pin}} {{validity}} {{use}}", "<b>{{ pin }}</b>", "", ""},
		{"PIN mail without PIN", PINIssued, "s", "{{username}}", "", "text", "must contain {{pin}}"},
		{"PIN in text, not in HTML", PINIssued, "s", "{{pin}}", "<p>{{username}}</p>", "html", "must contain {{pin}}"},
		{"PIN in subject", PINIssued, "{{pin}}", "{{pin}}", "", "subject", "lock screens"},
		{"code in PIN mail", PINIssued, "s", "{{pin}} {{code}}", "", "text", "not a variable"},
		{"sign-in mail", SignIn, "{{name}} {{customer-name}}", "{{link}} {{code}} {{minutes}}", `<a class="b" href="{{ link }}">in</a> <b>{{code}}</b> {{link}}`, "", ""},
		{"sign-in mail whose link is only a link", SignIn, "s", "{{link}} {{code}}", `<a href="{{link}}">in</a> {{code}}`, "", ""},
		{"sign-in mail without code", SignIn, "s", "{{link}}", "", "text", "must contain {{code}}"},
		{"sign-in mail without link", SignIn, "s", "{{code}}", "", "text", "must contain {{link}}"},
		{"link in text, not in HTML", SignIn, "s", "{{link}} {{code}}", "{{code}}", "html", "must contain {{link}}"},
		{"link in subject", SignIn, "{{link}}", "{{link}} {{code}}", "", "subject", "lock screens"},
		{"code in a link", SignIn, "s", "{{link}} {{code}}", `<a href="{{code}}">in</a> {{link}}`, "html", "running text"},
		{"link in a part of a link", SignIn, "s", "{{link}} {{code}}", `<a href="x{{link}}">in</a> {{code}}`, "html", "running text"},
		{"link without quotes", SignIn, "s", "{{link}} {{code}}", `<a href={{link}}>in</a> {{code}}`, "html", "running text"},
		{"link in an image", SignIn, "s", "{{link}} {{code}}", `<img src="{{link}}"> {{code}}`, "html", "running text"},
		{"link as a script", SignIn, "s", "{{link}} {{code}}", `<script>{{link}}</script> {{code}}`, "html", "running text"},
		{"link in expiry mail", PINExpiry, "s", "t", `<a href="{{link}}">in</a>`, "html", "not a variable"},
		{"confirmation mail", ConfirmCode, "{{name}} {{customer-name}}", "{{code}} {{minutes}}", "", "", ""},
		{"link in confirmation mail", ConfirmCode, "s", "{{code}} {{link}}", "", "text", "not a variable"},
		{"no kind", "", "s", "t", "", "kind", "unblock-code"},
		{"unknown kind", "newsletter", "s", "t", "", "kind", "unblock-code"},
	} {
		err := Template{ID: "t", Kind: test.kind, Name: "T", Subject: test.subject, Text: test.text, HTML: test.html}.Validate()
		if test.field == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		var invalid *problem.InvalidError
		if !errors.As(err, &invalid) || invalid.Violations[0].Field != test.field || !strings.Contains(invalid.Violations[0].Reason, test.reason) {
			t.Errorf("%s: %v; want %s: ...%s...", test.name, err, test.field, test.reason)
		}
	}
	customised := Predefined(PINReset, "en")
	customised.ID = UnblockCodeID
	if d := cmp.Diff([]string{"kind"}, violations(customised.Validate())); d != "" {
		t.Errorf("a reset mail as the predefined code mail (-want +got):\n%s", d)
	}
}

func TestRender(t *testing.T) {
	tmpl := Template{ID: "t", Kind: PINExpiry, Name: "T", Subject: "{{customer-name}}: {{username}}", Text: "{{username}} & {{pinExpiration}}", HTML: "<b>{{username}}</b>"}
	for _, test := range []struct{ name, username, subject, text, html string }{
		{"plain", "ada", "Acme: ada", "ada & soon", "<b>ada</b>"},
		{"html", `<script>"a"&'b'`, `Acme: <script>"a"&'b'`, `<script>"a"&'b' & soon`, "<b>&lt;script&gt;&#34;a&#34;&amp;&#39;b&#39;</b>"},
		{"mustache", "{{customer-name}}{{{pinExpiration}}}{{=<% %>=}}", "Acme: {{customer-name}}{{{pinExpiration}}}{{=<% %>=}}",
			"{{customer-name}}{{{pinExpiration}}}{{=<% %>=}} & soon", "<b>{{customer-name}}{{{pinExpiration}}}{{=&lt;% %&gt;=}}</b>"},
		{"line breaks", "a\r\nBcc: b@c\u2028d\x00", "Acme: a Bcc: b@c d", "a Bcc: b@c d & soon", "<b>a Bcc: b@c d</b>"},
		{"reordering", "a\u202eb", "Acme: ab", "ab & soon", "<b>ab</b>"},
		{"encoded word", "=?utf-8?q?a=0Ab?=", "Acme: = ?utf-8?q?a=0Ab?=", "= ?utf-8?q?a=0Ab?= & soon", "<b>= ?utf-8?q?a=0Ab?=</b>"},
		{"long", strings.Repeat("ü", 300), "Acme: " + strings.Repeat("ü", 193) + "…", strings.Repeat("ü", 300) + " & soon", "<b>" + strings.Repeat("ü", 300) + "</b>"},
		{"not UTF-8", "a\xffb", "Acme: a\uFFFDb", "a\uFFFDb & soon", "<b>a\uFFFDb</b>"},
	} {
		got, err := Render(tmpl, PINExpiryValues{"soon", test.username, "Acme"})
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if d := cmp.Diff(Message{Subject: test.subject, Text: test.text, HTML: test.html}, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, d)
		}
	}

	_, err := Render(tmpl, PINExpiryValues{PINExpiration: "soon", Username: "ada"})
	if err == nil || !strings.Contains(err.Error(), "customer-name has no value") {
		t.Errorf("a missing value: %v", err)
	}
	if _, err := Render(Template{Kind: PINExpiry, Subject: "s", Text: "t"}, PINExpiryValues{}); err != nil {
		t.Errorf("a value that is missing and not used: %v", err)
	}
	if _, err := Render(Template{Kind: PINExpiry, Subject: "{{{username}}}", Text: "t"}, PINExpiryValues{"a", "b", "c"}); err == nil {
		t.Error("an invalid template was rendered")
	}
}

// examples are values of each kind that can be told apart.
var examples = map[TemplateKind]Values{
	PINExpiry:   PINExpiryValues{"SOON", "ada", "Acme & Söhne"},
	UnblockCode: UnblockCodeValues{secret.New("739158"), "ada", "Acme & Söhne", "PIV 4F2A", "SOON", "Kiosk <1>"},
	PINReset:    PINResetValues{"ada", "Acme & Söhne", "PIV 4F2A", "TODAY", "Grace", "Kiosk <1>"},

	CardPINExpiry:  CardPINExpiryValues{"SOON", 7, "ada", "Acme & Söhne", "PIV 4F2A"},
	CardPINExpired: CardPINExpiredValues{"TODAY", "ada", "Acme & Söhne", "PIV 4F2A"},
	OfflineAnswer:  OfflineAnswerValues{"ada", "Acme & Söhne", "PIV 4F2A", "TODAY", "Grace"},
	Notice:         NoticeValues{"ada", "Acme & Söhne", "first print job", "TODAY", "Fetch it at <1>."},

	PINIssued:   PINIssuedValues{secret.New("a=?{{use}}&<"), "ada", "Acme & Söhne", "until SOON", "It works once."},
	SignIn:      SignInValues{secret.New("pages/?t=pwl_X"), secret.New("73915846"), 10, "ada", "Acme & Söhne"},
	ConfirmCode: ConfirmCodeValues{secret.New("73915846"), 10, "ada", "Acme & Söhne"},

	Digest: DigestValues{"Acme & Söhne", "YESTERDAY", "de", DigestList{5, false, []string{"ada\n1", "bob"}}, DigestList{1000, true, []string{"eve"}}, DigestList{}, DigestList{1, false, []string{"card"}}},
}

// Each variable of a kind has a value, and a template takes those of its kind only.
func TestRenderKinds(t *testing.T) {
	for _, kind := range TemplateKinds() {
		tmpl := Template{ID: "t", Kind: kind, Subject: "s", Text: strings.Join(kind.Variables(), "|") + "|" + inBraces(kind.Variables())}
		want := map[TemplateKind]string{
			PINExpiry:   "pinExpiration|username|customer-name|SOON, ada, Acme & Söhne",
			UnblockCode: "code|username|customer-name|card|expires|place|739 158, ada, Acme & Söhne, PIV 4F2A, SOON, Kiosk <1>",
			PINReset:    "username|customer-name|card|time|by|place|ada, Acme & Söhne, PIV 4F2A, TODAY, Grace, Kiosk <1>",

			CardPINExpiry:  "pinExpiration|days|username|customer-name|card|SOON, 7, ada, Acme & Söhne, PIV 4F2A",
			CardPINExpired: "pinExpiration|username|customer-name|card|TODAY, ada, Acme & Söhne, PIV 4F2A",
			OfflineAnswer:  "username|customer-name|card|time|by|ada, Acme & Söhne, PIV 4F2A, TODAY, Grace",
			Notice:         "username|customer-name|event|time|message|ada, Acme & Söhne, first print job, TODAY, Fetch it at <1>.",

			PINIssued:   "pin|username|customer-name|validity|use|a=?{{use}}&<, ada, Acme & Söhne, until SOON, It works once.",
			SignIn:      "link|code|minutes|name|customer-name|pages/?t=pwl_X, 7391 5846, 10, ada, Acme & Söhne",
			ConfirmCode: "code|minutes|name|customer-name|7391 5846, 10, ada, Acme & Söhne",

			Digest: "customer-name|since|expiring-count|expiring|expired-count|expired|undeliverable-count|undeliverable|given-up-count|given-up|" +
				"Acme & Söhne, YESTERDAY, 5, ada 1\nbob\nund 3 weitere, 1000+, eve\nund 999+ weitere, 0, –, 1, card",
		}[kind]
		if m, err := Render(tmpl, examples[kind]); err != nil || m.Text != want {
			t.Errorf("%s: %q, %v; want %q", kind, m.Text, err, want)
		}
		tmpl = Predefined(kind, "en")
		for _, other := range TemplateKinds() {
			_, err := Render(tmpl, examples[other])
			if kind == other && err != nil || kind != other && !strings.Contains(fmt.Sprint(err), "it is of kind") {
				t.Errorf("template of kind %s with values of kind %s: %v", kind, other, err)
			}
		}
	}
	// What was stored is checked again.
	for _, tmpl := range []Template{
		{ID: "t", Kind: UnblockCode, Subject: "{{code}}", Text: "{{code}}"},
		{ID: "t", Kind: UnblockCode, Subject: "s", Text: "t"},
	} {
		if m, err := Render(tmpl, examples[UnblockCode]); err == nil || strings.Contains(err.Error(), "739") {
			t.Errorf("an invalid code mail was rendered, or the error shows the code: %q, %v", m.Subject, err)
		}
	}
	values := examples[UnblockCode].(UnblockCodeValues)
	values.Code = secret.Text{}
	if _, err := Render(Predefined(UnblockCode, "en"), values); err == nil || !strings.Contains(err.Error(), "code has no value") {
		t.Errorf("a code mail without a code: %v", err)
	}
	values.Code = secret.New("12345678")
	if m, err := Render(Predefined(UnblockCode, "en"), values); err != nil || !strings.Contains(m.Text, "    12345678\n") {
		t.Errorf("a longer code: %v\n%s", err, m.Text)
	}
}

// A code is shown by the mail alone: printed values and messages do not have it, nor
// whom it is for.
func TestCodeIsNotPrinted(t *testing.T) {
	m, err := Render(Predefined(UnblockCode, "en"), examples[UnblockCode])
	if err != nil {
		t.Fatal(err)
	}
	m.ID, m.To = "id-1", "ada@acme.example"
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		fmt.Fprintf(&out, verb+verb+verb+"\n", examples[UnblockCode], m, &m)
		fmt.Fprintf(&out, verb+"\n", []Message{m})
	}
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("m", "values", examples[UnblockCode], "message", m)
	}
	for _, plain := range []string{"739", "158", "37333931", "acme.example"} {
		if strings.Contains(out.String(), plain) {
			t.Errorf("%s was printed:\n%s", plain, out.String())
		}
	}
	if !strings.Contains(out.String(), "mail id-1") {
		t.Errorf("a printed message does not show its id:\n%s", out.String())
	}
	if strings.Contains(m.Subject, "739") || !strings.Contains(m.Text, "739 158") || !strings.Contains(m.HTML, "739 158") {
		t.Error("the code is in the subject, or not in text and HTML")
	}
}

// What a PIN's mail says of its validity and use, in English and in German.
func TestPINPhrases(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{ValidUntil("Monday", "en"), "until Monday"},
		{ValidUntil("Montag", "de-AT"), "bis Montag"},
		{ValidUntil("", "fr"), "until it is changed"},
		{ValidUntil("", "de"), "bis sie geändert wird"},
		{PINUse(false, false, "en"), "You can use it as often as you like, and change it when you like."},
		{PINUse(false, true, "en"), "Please change it when you first use it."},
		{PINUse(true, false, "en"), "It works once only: after that you need a new one."},
		{PINUse(true, false, "de"), "Sie gilt nur ein einziges Mal: Danach brauchen Sie eine neue."},
	} {
		if test.got != test.want {
			t.Errorf("%q, want %q", test.got, test.want)
		}
	}
}

func TestByYourself(t *testing.T) {
	for tag, want := range map[string]string{
		"en": "you yourself, by a code mailed to you", "fr": "you yourself, by a code mailed to you", "": "you yourself, by a code mailed to you",
		"de": "Sie selbst, mit einem an Sie gemailten Code", "de-AT": "Sie selbst, mit einem an Sie gemailten Code",
	} {
		if got := ByYourself(tag); got != want {
			t.Errorf("ByYourself(%q) = %q, want %q", tag, got, want)
		}
	}
}

func TestPredefined(t *testing.T) {
	// What each mail must say, in text and HTML, in English and in German.
	says := map[TemplateKind]map[string][]string{
		PINExpiry: {"en": {"SOON", "set a new PIN before", "not in this mail"}, "de": {"SOON", "legen Sie vorher eine neue PIN fest", "enthält Ihre PIN nicht"}},
		UnblockCode: {
			"en": {"739 158", "PIV 4F2A", "SOON", "Kiosk", "Nobody will ask you for this code on the phone", "If you did not ask for a code", "tell your help desk"},
			"de": {"739 158", "PIV 4F2A", "SOON", "Kiosk", "Niemand wird Sie am Telefon", "Wenn Sie keinen Code angefordert haben", "Helpdesk"},
		},
		PINReset: {
			"en": {"PIV 4F2A", "TODAY", "Grace", "Kiosk", "was reset", "call your help desk at once", "not in this mail"},
			"de": {"PIV 4F2A", "TODAY", "Grace", "Kiosk", "wurde zurückgesetzt", "rufen Sie sofort Ihren Helpdesk an", "enthält Ihre PIN nicht"},
		},
		CardPINExpiry: {
			"en": {"PIV 4F2A", "SOON", "7", "Change it before then", "ask your help desk", "not in this mail"},
			"de": {"PIV 4F2A", "SOON", "7", "Ändern Sie sie vorher", "fragen Sie Ihren Helpdesk", "enthält Ihre PIN nicht"},
		},
		CardPINExpired: {
			"en": {"PIV 4F2A", "TODAY", "ada", "has expired", "The card goes on working", "not in this mail"},
			"de": {"PIV 4F2A", "TODAY", "ada", "ist abgelaufen", "Die Karte funktioniert weiter", "enthält die PIN nicht"},
		},
		PINIssued: {
			"en": {"a=?{{use}}&<", "until SOON", "It works once.", "Enter it where you are asked for your PIN", "Nobody will ask you for this PIN", "it no longer works", "your help desk"},
			"de": {"a=?{{use}}&<", "until SOON", "It works once.", "wo Sie nach Ihrer PIN gefragt werden", "Niemand wird Sie am Telefon", "gilt diese nicht mehr", "Helpdesk"},
		},
	}
	says[Notice] = map[string][]string{
		"en": {"first print job", "TODAY", "Fetch it at <1>.", "ask your administrator", "Nobody will ask you for your PIN"},
		"de": {"first print job", "TODAY", "Fetch it at <1>.", "fragen Sie bitte Ihre Administration", "Niemand wird Sie per Mail nach Ihrer PIN fragen"},
	}
	says[SignIn] = map[string][]string{
		"en": {"pages/?t=pwl_X", "7391 5846", "10 minutes", "One of them works, once", "Nobody will ask you for this code or link", "If you did not ask to sign in", "tell your administrator"},
		"de": {"pages/?t=pwl_X", "7391 5846", "10 Minuten", "ein einziges Mal", "Niemand wird Sie am Telefon", "Wenn Sie sich nicht anmelden wollten", "Administration"},
	}
	says[ConfirmCode] = map[string][]string{
		"en": {"7391 5846", "10 minutes", "works once", "Nobody will ask you for this code", "somebody else is signed in with your name"},
		"de": {"7391 5846", "10 Minuten", "ein einziges Mal", "Niemand wird Sie am Telefon", "jemand anderes mit Ihrem Namen angemeldet"},
	}
	for _, kind := range TemplateKinds() {
		for tag, want := range map[string]string{"en": "en", "en-US": "en", "de": "de", "de-CH": "de", "fr": "en", "ja": "en", "": "en", "!": "en"} {
			tmpl := Predefined(kind, tag)
			if err := tmpl.Validate(); err != nil || tmpl.ID != string(kind) || tmpl.Kind != kind {
				t.Errorf("%s %s: id %s, kind %s, %v", kind, tag, tmpl.ID, tmpl.Kind, err)
			}
			m, err := Render(tmpl, examples[kind])
			if err != nil {
				t.Fatalf("%s %s: %v", kind, tag, err)
			}
			for part, text := range map[string]string{"subject": m.Subject, "text": m.Text, "html": html.UnescapeString(m.HTML)} {
				if !strings.Contains(text, "Acme & Söhne") {
					t.Errorf("%s %s: %s does not say for whom:\n%s", kind, tag, part, text)
				}
				if part == "subject" {
					continue
				}
				text = strings.Join(strings.Fields(text), " ")
				for _, said := range append(says[kind][want], "ada") {
					if !strings.Contains(text, said) {
						t.Errorf("%s %s: %s does not say %q:\n%s", kind, tag, part, said, text)
					}
				}
			}
			if kind == PINExpiry && !strings.Contains(m.Subject, "SOON") {
				t.Errorf("%s %s: the subject does not say when: %s", kind, tag, m.Subject)
			}
			if !strings.Contains(m.HTML, `<html lang="`+want+`">`) || !strings.Contains(m.HTML, "Acme &amp; Söhne") || strings.Contains(m.HTML, "<1>") {
				t.Errorf("%s %s: html is not in %s or not escaped:\n%s", kind, tag, want, m.HTML)
			}
			for _, remote := range []string{"http:", "https:", "src=", "url(", "<script", "<link", "<img"} {
				if strings.Contains(m.HTML, remote) {
					t.Errorf("%s %s: html has remote content: %s", kind, tag, remote)
				}
			}
			if _, err := html.Parse(strings.NewReader(m.HTML)); err != nil {
				t.Error(err)
			}
			for i, line := range strings.Split(m.Text, "\n") {
				if len([]rune(line)) > 78 {
					t.Errorf("%s %s: line %d of the text is longer than 78", kind, tag, i+1)
				}
			}
		}
	}
}

// A lock screen shows how a mail begins. The code comes later.
func TestCodeIsNotInTheFirstWords(t *testing.T) {
	for _, tag := range []string{"en", "de"} {
		m, err := Render(Predefined(UnblockCode, tag), examples[UnblockCode])
		if err != nil {
			t.Fatal(err)
		}
		if at := strings.Index(m.Text, "739"); at < 120 {
			t.Errorf("%s: the code is at %d of the text", tag, at)
		}
		if m, err = Render(Predefined(PINIssued, tag), examples[PINIssued]); err != nil {
			t.Fatal(err)
		}
		if at := strings.Index(m.Text, "a=?{{use}}"); at < 120 {
			t.Errorf("%s: the PIN is at %d of the text", tag, at)
		}
	}
}

func TestFormatTime(t *testing.T) {
	berlin, tokyo, newYork, saoPaulo := zone(t, "Europe/Berlin"), zone(t, "Asia/Tokyo"), zone(t, "America/New_York"), zone(t, "America/Sao_Paulo")
	at := time.Date(2026, 11, 21, 13, 0, 0, 0, time.UTC)
	summer := time.Date(2026, 7, 3, 13, 5, 0, 0, time.UTC)
	for _, test := range []struct {
		at   time.Time
		zone *time.Location
		tag  string
		want string
	}{
		{at, berlin, "en", "Saturday, 21 November 2026 at 14:00 CET"},
		{at, berlin, "en-GB", "Saturday, 21 November 2026 at 14:00 CET"},
		{at, newYork, "en-US", "Saturday, November 21, 2026 at 8:00 AM EST"},
		{summer, newYork, "en-US", "Friday, July 3, 2026 at 9:05 AM EDT"},
		{at, berlin, "de", "Samstag, 21. November 2026 um 14:00 Uhr MEZ"},
		{summer, berlin, "de-AT", "Freitag, 3. Juli 2026 um 15:05 Uhr MESZ"},
		{at, berlin, "fr", "samedi 21 novembre 2026 à 14:00 CET"},
		{at, berlin, "fr-LU", "samedi 21 novembre 2026 à 14:00 CET"},
		{at, berlin, "es", "sábado, 21 de noviembre de 2026, 14:00 CET"},
		{at, berlin, "it", "sabato 21 novembre 2026 alle ore 14:00 CET"},
		{at, berlin, "nl-BE", "zaterdag 21 november 2026 om 14:00 CET"},
		{at, saoPaulo, "pt-BR", "sábado, 21 de novembro de 2026, 10:00 UTC-03:00"},
		{at, berlin, "sv", "lördag 21 november 2026 kl. 14:00 CET"},
		{at, berlin, "da", "lørdag den 21. november 2026 kl. 14.00 CET"},
		{at, berlin, "nb", "lørdag 21. november 2026 kl. 14:00 CET"},
		{at, berlin, "no", "lørdag 21. november 2026 kl. 14:00 CET"},
		{at, berlin, "fi", "lauantai 21. marraskuuta 2026 klo 14.00 CET"},
		{at, tokyo, "ja", "2026年11月21日 土曜日 22:00 JST"},
		{at, tokyo, "zh-CN", "2026年11月21日 星期六 22:00 JST"},
		{at, tokyo, "ko", "2026년 11월 21일 토요일 22:00 JST"},
		{at, berlin, "cs", "Saturday, 21 November 2026 at 14:00 CET"},
		{at, berlin, "tlh", "Saturday, 21 November 2026 at 14:00 CET"},
		{at, berlin, "", "Saturday, 21 November 2026 at 14:00 CET"},
		{at, berlin, "not a tag", "Saturday, 21 November 2026 at 14:00 CET"},
		{at, nil, "en", "Saturday, 21 November 2026 at 13:00 UTC"},
		{at, time.FixedZone("", 19800), "en", "Saturday, 21 November 2026 at 18:30 UTC+05:30"},
	} {
		if got := FormatTime(test.at, test.zone, test.tag); got != test.want {
			t.Errorf("FormatTime(%v, %v, %q) = %q, want %q", test.at, test.zone, test.tag, got, test.want)
		}
	}

	// Languages that share no such word with English have none left.
	for _, tag := range []string{"fr", "es", "it", "pt", "fi", "ja", "zh", "ko"} {
		for day := range 365 {
			at := time.Date(2026, 1, 1+day, 12, 0, 0, 0, time.UTC)
			got := FormatTime(at, nil, tag)
			if strings.Contains(got, at.Weekday().String()) || strings.Contains(got, at.Month().String()) {
				t.Errorf("%s: %q", tag, got)
			}
		}
	}
}

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(fmt.Errorf("no time zones here: %w", err))
	}
	return l
}
