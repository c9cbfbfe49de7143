package mail

import (
	"strconv"
	"strings"

	"golang.org/x/text/language"

	"github.com/pinward/pinward/shared/secret"
)

// TemplateKind is what the mails of a template are about.
type TemplateKind string

// The kinds. Each has a predefined template, whose id is the kind's name.
const (
	PINExpiry   TemplateKind = PINExpiryID   // a PIN is about to expire
	UnblockCode TemplateKind = UnblockCodeID // the one-time code for unblocking a card
	PINReset    TemplateKind = PINResetID    // a card has got a new PIN

	CardPINExpiry  TemplateKind = CardPINExpiryID  // a card's PIN is about to expire
	CardPINExpired TemplateKind = CardPINExpiredID // it has; to its holder, or to operators
	OfflineAnswer  TemplateKind = OfflineAnswerID  // a code that unblocks a card without a connection was given out

	Notice    TemplateKind = NoticeID    // something has happened that the person is to know of, in an administrator's words
	PINIssued TemplateKind = PINIssuedID // a new PIN, which was generated
	Digest    TemplateKind = DigestID    // what administrators are told of a day

	SignIn      TemplateKind = SignInID      // the one-time link and code by which a person signs in to the pages
	ConfirmCode TemplateKind = ConfirmCodeID // the one-time code by which a person who is signed in confirms that it is them
)

// The variables that are secrets. Mails that have some are for telling them: text and HTML
// must hold each. No subject may, for subjects are shown on lock screens and written to mail
// servers' logs.
const (
	codeVariable = "code"
	pinVariable  = "pin"
	linkVariable = "link"
)

func isSecret(variable string) bool {
	return variable == codeVariable || variable == pinVariable || variable == linkVariable
}

var kinds = []struct {
	kind      TemplateKind
	variables []string
}{
	{PINExpiry, []string{"pinExpiration", "username", "customer-name"}},
	{UnblockCode, []string{codeVariable, "username", "customer-name", "card", "expires", "place"}},
	{PINReset, []string{"username", "customer-name", "card", "time", "by", "place"}},
	{CardPINExpiry, []string{"pinExpiration", "days", "username", "customer-name", "card"}},
	{CardPINExpired, []string{"pinExpiration", "username", "customer-name", "card"}},
	{OfflineAnswer, []string{"username", "customer-name", "card", "time", "by"}},
	{Notice, []string{"username", "customer-name", "event", "time", "message"}},
	{PINIssued, []string{pinVariable, "username", "customer-name", "validity", "use"}},
	{SignIn, []string{linkVariable, codeVariable, "minutes", "name", "customer-name"}},
	{ConfirmCode, []string{codeVariable, "minutes", "name", "customer-name"}},
	{Digest, []string{"customer-name", "since", "expiring-count", "expiring", "expired-count", "expired", "undeliverable-count", "undeliverable", "given-up-count", "given-up"}},
}

// TemplateKinds lists them all.
func TemplateKinds() []TemplateKind {
	all := make([]TemplateKind, len(kinds))
	for i, k := range kinds {
		all[i] = k.kind
	}
	return all
}

// Variables lists the names that a template of the kind may use; nil if there is no such
// kind.
func (k TemplateKind) Variables() []string {
	for _, known := range kinds {
		if known.kind == k {
			return known.variables
		}
	}
	return nil
}

// Values are what one mail says: the type named as the kind, such as PINExpiryValues.
type Values interface {
	kind() TemplateKind
	variables() map[string]string
}

// PINExpiryValues are for templates of kind PINExpiry.
type PINExpiryValues struct {
	PINExpiration string // when the PIN expires, from FormatTime
	Username      string
	CustomerName  string // the tenant's display name
}

func (PINExpiryValues) kind() TemplateKind { return PINExpiry }

func (v PINExpiryValues) variables() map[string]string {
	return map[string]string{
		"pinExpiration": v.PINExpiration,
		"username":      v.Username,
		"customer-name": v.CustomerName,
	}
}

// UnblockCodeValues are for templates of kind UnblockCode.
type UnblockCodeValues struct {
	Code         secret.Text // its digits only; 6 are shown as "123 456"
	Username     string      // the holder's
	CustomerName string      // the tenant's display name
	Card         string      // its label, or its kind and the last 4 characters of its id
	Expires      string      // until when the code is good, from FormatTime
	Place        string      // name of the bridge where it was asked for
}

func (UnblockCodeValues) kind() TemplateKind { return UnblockCode }

func (v UnblockCodeValues) variables() map[string]string {
	code := v.Code.Reveal()
	if len(code) == 6 {
		code = code[:3] + " " + code[3:]
	}
	return map[string]string{
		codeVariable:    code,
		"username":      v.Username,
		"customer-name": v.CustomerName,
		"card":          v.Card,
		"expires":       v.Expires,
		"place":         v.Place,
	}
}

// PINResetValues are for templates of kind PINReset.
type PINResetValues struct {
	Username     string // the holder's
	CustomerName string // the tenant's display name
	Card         string // its label, or its kind and the last 4 characters of its id
	Time         string // when the card got its PIN, from FormatTime
	By           string // an operator's name, or ByYourself
	Place        string // name of the bridge where it was done
}

func (PINResetValues) kind() TemplateKind { return PINReset }

func (v PINResetValues) variables() map[string]string {
	return map[string]string{
		"username":      v.Username,
		"customer-name": v.CustomerName,
		"card":          v.Card,
		"time":          v.Time,
		"by":            v.By,
		"place":         v.Place,
	}
}

// CardPINExpiryValues are for templates of kind CardPINExpiry.
type CardPINExpiryValues struct {
	PINExpiration string // when the PIN expires, from FormatTime
	Days          int    // until then, begun ones
	Username      string // the holder's
	CustomerName  string // the tenant's display name
	Card          string // its label, or its kind and the last 4 characters of its id
}

func (CardPINExpiryValues) kind() TemplateKind { return CardPINExpiry }

func (v CardPINExpiryValues) variables() map[string]string {
	return map[string]string{
		"pinExpiration": v.PINExpiration,
		"days":          strconv.Itoa(v.Days),
		"username":      v.Username,
		"customer-name": v.CustomerName,
		"card":          v.Card,
	}
}

// CardPINExpiredValues are for templates of kind CardPINExpired.
type CardPINExpiredValues struct {
	PINExpiration string // when the PIN expired, from FormatTime
	Username      string // the holder's, or "–" if nobody is known to hold it
	CustomerName  string // the tenant's display name
	Card          string // its label, or its kind and the last 4 characters of its id
}

func (CardPINExpiredValues) kind() TemplateKind { return CardPINExpired }

func (v CardPINExpiredValues) variables() map[string]string {
	return map[string]string{
		"pinExpiration": v.PINExpiration,
		"username":      v.Username,
		"customer-name": v.CustomerName,
		"card":          v.Card,
	}
}

// OfflineAnswerValues are for templates of kind OfflineAnswer.
type OfflineAnswerValues struct {
	Username     string // the holder's
	CustomerName string // the tenant's display name
	Card         string // its label, or its kind and the last 4 characters of its id
	Time         string // when the code was given out, from FormatTime
	By           string // an operator's name
}

func (OfflineAnswerValues) kind() TemplateKind { return OfflineAnswer }

func (v OfflineAnswerValues) variables() map[string]string {
	return map[string]string{
		"username":      v.Username,
		"customer-name": v.CustomerName,
		"card":          v.Card,
		"time":          v.Time,
		"by":            v.By,
	}
}

// NoticeValues are for templates of kind Notice.
type NoticeValues struct {
	Username     string
	CustomerName string // the tenant's display name
	Event        string // what has happened, in few words
	Time         string // when, from FormatTime
	Message      string // what an administrator has to say about it, one paragraph
}

func (NoticeValues) kind() TemplateKind { return Notice }

func (v NoticeValues) variables() map[string]string {
	return map[string]string{
		"username":      v.Username,
		"customer-name": v.CustomerName,
		"event":         v.Event,
		"time":          v.Time,
		"message":       v.Message,
	}
}

// PINIssuedValues are for templates of kind PINIssued.
type PINIssuedValues struct {
	PIN          secret.Text
	Username     string
	CustomerName string // the tenant's display name
	Validity     string // from ValidUntil
	Use          string // from PINUse
}

func (PINIssuedValues) kind() TemplateKind { return PINIssued }

func (v PINIssuedValues) variables() map[string]string {
	return map[string]string{
		pinVariable:     v.PIN.Reveal(),
		"username":      v.Username,
		"customer-name": v.CustomerName,
		"validity":      v.Validity,
		"use":           v.Use,
	}
}

// SignInValues are for templates of kind SignIn.
type SignInValues struct {
	Link         secret.Text // a URL
	Code         secret.Text // its digits only; 8 are shown as "1234 5678"
	Minutes      int         // that both are good for
	Name         string      // the person's
	CustomerName string      // the tenant's display name
}

func (SignInValues) kind() TemplateKind { return SignIn }

func (v SignInValues) variables() map[string]string {
	return map[string]string{
		linkVariable:    v.Link.Reveal(),
		codeVariable:    inFours(v.Code),
		"minutes":       strconv.Itoa(v.Minutes),
		"name":          v.Name,
		"customer-name": v.CustomerName,
	}
}

// ConfirmCodeValues are for templates of kind ConfirmCode.
type ConfirmCodeValues struct {
	Code         secret.Text // its digits only; 8 are shown as "1234 5678"
	Minutes      int         // that it is good for
	Name         string      // the person's
	CustomerName string      // the tenant's display name
}

func (ConfirmCodeValues) kind() TemplateKind { return ConfirmCode }

func (v ConfirmCodeValues) variables() map[string]string {
	return map[string]string{
		codeVariable:    inFours(v.Code),
		"minutes":       strconv.Itoa(v.Minutes),
		"name":          v.Name,
		"customer-name": v.CustomerName,
	}
}

func inFours(code secret.Text) string {
	s := code.Reveal()
	if len(s) == 8 {
		s = s[:4] + " " + s[4:]
	}
	return s
}

// ValidUntil says until when a PIN is good, such as "until Saturday, 21 November 2026 at
// 14:00 CET". when is from FormatTime, "" if the PIN does not expire. It is in German or, for
// other languages, in English.
func ValidUntil(when, tag string) string {
	switch german := inGerman(tag); {
	case when == "" && german:
		return "bis sie geändert wird"
	case when == "":
		return "until it is changed"
	case german:
		return "bis " + when
	default:
		return "until " + when
	}
}

// PINUse says how a PIN may be used: once only, or until it is changed, which may be asked
// for at the first use; in English or German.
func PINUse(once, change bool, tag string) string {
	english, german := "You can use it as often as you like, and change it when you like.",
		"Sie können sie beliebig oft verwenden und jederzeit ändern."
	switch {
	case once:
		english, german = "It works once only: after that you need a new one.",
			"Sie gilt nur ein einziges Mal: Danach brauchen Sie eine neue."
	case change:
		english, german = "Please change it when you first use it.",
			"Bitte ändern Sie sie bei der ersten Verwendung."
	}
	if inGerman(tag) {
		return german
	}
	return english
}

// ByYourself is who reset a PIN, told to the person who did it with a mailed code, in the
// language of a BCP 47 tag if that is English or German, and else in English.
func ByYourself(tag string) string {
	if inGerman(tag) {
		return "Sie selbst, mit einem an Sie gemailten Code"
	}
	return "you yourself, by a code mailed to you"
}

var predefinedLanguages = language.NewMatcher([]language.Tag{language.English, language.German})

func inGerman(tag string) bool {
	_, i := language.MatchStrings(predefinedLanguages, tag)
	return i == 1
}

// inBraces writes the names as a template has them.
func inBraces(names []string) string { return "{{" + strings.Join(names, "}}, {{") + "}}" }
