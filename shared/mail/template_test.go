package mail

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"

	"github.com/pinward/pinward/shared/problem"
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
		err := Template{ID: "t", Name: "T", Subject: test.subject, Text: test.text, HTML: test.html}.Validate()
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
	err := Template{ID: "a b", Subject: "{{a}}{{b}}", Text: "{{c}}", HTML: valid}.Validate()
	if d := cmp.Diff([]string{"id", "name", "subject", "subject", "text"}, violations(err)); d != "" {
		t.Errorf("not all violations are given (-want +got):\n%s", d)
	}
}

func TestRender(t *testing.T) {
	tmpl := Template{ID: "t", Name: "T", Subject: "{{customer-name}}: {{username}}", Text: "{{username}} & {{pinExpiration}}", HTML: "<b>{{username}}</b>"}
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
		got, err := Render(tmpl, Values{"soon", test.username, "Acme"})
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if d := cmp.Diff(Message{Subject: test.subject, Text: test.text, HTML: test.html}, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, d)
		}
	}

	_, err := Render(tmpl, Values{PINExpiration: "soon", Username: "ada"})
	if err == nil || !strings.Contains(err.Error(), "customer-name has no value") {
		t.Errorf("a missing value: %v", err)
	}
	if _, err := Render(Template{Subject: "s", Text: "t"}, Values{}); err != nil {
		t.Errorf("a value that is missing and not used: %v", err)
	}
	if _, err := Render(Template{Subject: "{{{username}}}", Text: "t"}, Values{"a", "b", "c"}); err == nil {
		t.Error("an invalid template was rendered")
	}
}

func TestPredefined(t *testing.T) {
	for tag, want := range map[string]string{"en": "en", "en-US": "en", "de": "de", "de-CH": "de", "fr": "en", "ja": "en", "": "en", "!": "en"} {
		tmpl := Predefined(tag)
		if err := tmpl.Validate(); err != nil {
			t.Errorf("%s: %v", tag, err)
		}
		m, err := Render(tmpl, Values{"SOON", "ada", "Acme & Söhne"})
		if err != nil {
			t.Fatalf("%s: %v", tag, err)
		}
		for part, text := range map[string]string{"subject": m.Subject, "text": m.Text, "html": m.HTML} {
			if !strings.Contains(text, "SOON") || !strings.Contains(text, "Acme &") {
				t.Errorf("%s %s does not say when or for whom:\n%s", tag, part, text)
			}
		}
		if !strings.Contains(m.HTML, `<html lang="`+want+`">`) || !strings.Contains(m.HTML, "Acme &amp; Söhne") {
			t.Errorf("%s: html is not in %s or not escaped:\n%s", tag, want, m.HTML)
		}
		for _, remote := range []string{"http:", "https:", "src=", "url(", "<script", "<link", "<img"} {
			if strings.Contains(m.HTML, remote) {
				t.Errorf("%s: html has remote content: %s", tag, remote)
			}
		}
		if _, err := html.Parse(strings.NewReader(m.HTML)); err != nil {
			t.Error(err)
		}
		for i, line := range strings.Split(m.Text, "\n") {
			if len([]rune(line)) > 78 {
				t.Errorf("%s: line %d of the text is longer than 78", tag, i+1)
			}
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
