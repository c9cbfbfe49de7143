package mail

import (
	"net"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
)

// Kind is the kind of mail system of a Configuration.
type Kind string

// The kinds.
const (
	KindSES    Kind = "ses"    // Amazon SES, of the account that Pinward runs in
	KindSMTP   Kind = "smtp"   // a mail server
	KindOutbox Kind = "outbox" // files in a folder of the installation
)

// Security is how an SMTP connection is protected. There is no plain one.
type Security string

// The securities.
const (
	SecuritySTARTTLS Security = "starttls" // RFC 3207, required; usually port 587
	SecurityTLS      Security = "tls"      // RFC 8314 section 3.3; usually port 465
)

// Configuration is a tenant's way of sending mail.
type Configuration struct {
	ID      string // a ULID
	Name    string // for people, 1 to 100 characters
	Kind    Kind
	From    string // address, may have a display name
	ReplyTo string // address, or ""
	SES     SESSettings
	SMTP    SMTPSettings
	Version int64 // 0 if it is not stored yet
}

// SESSettings are for KindSES.
type SESSettings struct {
	ConfigurationSet string // its name, or ""
}

// SMTPSettings are for KindSMTP.
type SMTPSettings struct {
	Host        string
	Port        int
	Security    Security
	Username    string      // "" for a server that asks for none
	Password    secret.Text // empty in what a Store returns, except from WithPassword
	PasswordSet bool        // there is one in the Store; the Store decides it
}

var (
	hostPattern             = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	configurationSetPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{0,64}$`)
)

// Validate returns everything that is wrong as a *problem.InvalidError.
func (c Configuration) Validate() error {
	var vs problem.Violations
	if !idPattern.MatchString(c.ID) {
		vs.Add("id", "id", "must be 1 to 100 letters, digits, dots, dashes or underscores")
	}
	validateName(&vs, c.Name)
	if _, err := ParseAddress(c.From); err != nil {
		vs.Add("address", "from", "%v", err)
	}
	if c.ReplyTo != "" {
		if _, err := ParseAddress(c.ReplyTo); err != nil {
			vs.Add("address", "replyTo", "%v", err)
		}
	}
	switch c.Kind {
	case KindSES, KindSMTP, KindOutbox:
	default:
		vs.Add("kind", "kind", "must be ses, smtp or outbox")
	}
	if c.Kind == KindSMTP {
		c.SMTP.validate(&vs)
	} else if c.SMTP != (SMTPSettings{}) {
		vs.Add("notApplicable", "smtp", "is for kind smtp only")
	}
	if c.Kind == KindSES {
		if !configurationSetPattern.MatchString(c.SES.ConfigurationSet) {
			vs.Add("configurationSet", "ses.configurationSet", "must be at most 64 letters, digits, dashes or underscores")
		}
	} else if c.SES != (SESSettings{}) {
		vs.Add("notApplicable", "ses", "is for kind ses only")
	}
	return vs.Err()
}

func (s SMTPSettings) validate(vs *problem.Violations) {
	if !hostPattern.MatchString(s.Host) || strings.Contains(s.Host, "..") {
		vs.Add("host", "smtp.host", "must be a host name or an IPv4 address, without port")
	} else if ip := net.ParseIP(s.Host); ip != nil && ip.IsUnspecified() {
		vs.Add("host", "smtp.host", "must be the address of one server")
	}
	if s.Port < 1 || s.Port > 65535 {
		vs.Add("range", "smtp.port", "must be 1 to 65535; 587 for starttls and 465 for tls are usual")
	}
	if s.Security != SecuritySTARTTLS && s.Security != SecurityTLS {
		vs.Add("security", "smtp.security", "must be starttls or tls; mail is not sent in the clear")
	}
	if len(s.Username) > 256 || strings.ContainsFunc(s.Username, unicode.IsControl) {
		vs.Add("username", "smtp.username", "must be at most 256 bytes without control characters")
	}
	password := s.Password.Reveal()
	if len(password) > 1024 || strings.ContainsFunc(password, unicode.IsControl) {
		vs.Add("password", "smtp.password", "must be at most 1024 bytes without control characters")
	}
	switch has := password != "" || s.PasswordSet; {
	case s.Username != "" && !has:
		vs.Add("required", "smtp.password", "is required with a username")
	case s.Username == "" && has:
		vs.Add("required", "smtp.username", "is required with a password")
	}
}

func validateName(vs *problem.Violations, name string) {
	if n := utf8.RuneCountInString(name); n < 1 || n > 100 || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		vs.Add("name", "name", "must be 1 to 100 characters without control characters")
	}
}
