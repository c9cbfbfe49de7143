package mail

import "embed"

// The ids of the predefined templates. They exist without being stored; stored under
// these ids, they are customised.
const (
	PINExpiryID   = "pin-expiry"
	UnblockCodeID = "unblock-code"
	PINResetID    = "pin-reset"

	CardPINExpiryID  = "card-pin-expiry"
	CardPINExpiredID = "card-pin-expired"
	OfflineAnswerID  = "offline-answer"

	NoticeID    = "notice"
	PINIssuedID = "pin-issued"
	DigestID    = "digest"

	SignInID      = "sign-in"
	ConfirmCodeID = "confirm-code"
)

// predefinedTexts are named <kind>.<language>.txt and .html.
//
//go:embed predefined
var predefinedTexts embed.FS

type title struct{ name, subject string }

var predefinedTitles = map[TemplateKind]map[string]title{
	PINExpiry: {
		"en": {"PIN expiry", "Your PIN for {{customer-name}} expires on {{pinExpiration}}"},
		"de": {"PIN-Ablauf", "Ihre PIN für {{customer-name}} läuft am {{pinExpiration}} ab"},
	},
	UnblockCode: {
		"en": {"Unblock code", "Your code to unblock your card for {{customer-name}}"},
		"de": {"Entsperrcode", "Ihr Code zum Entsperren Ihrer Karte für {{customer-name}}"},
	},
	PINReset: {
		"en": {"PIN reset", "The PIN of your card for {{customer-name}} was reset"},
		"de": {"PIN zurückgesetzt", "Die PIN Ihrer Karte für {{customer-name}} wurde zurückgesetzt"},
	},
	CardPINExpiry: {
		"en": {"Card PIN expiry", "The PIN of your card for {{customer-name}} expires on {{pinExpiration}}"},
		"de": {"Ablauf einer Karten-PIN", "Die PIN Ihrer Karte für {{customer-name}} läuft am {{pinExpiration}} ab"},
	},
	CardPINExpired: {
		"en": {"Card PIN expired", "The PIN of the card {{card}} for {{customer-name}} has expired"},
		"de": {"Karten-PIN abgelaufen", "Die PIN der Karte {{card}} für {{customer-name}} ist abgelaufen"},
	},
	OfflineAnswer: {
		"en": {"Offline unblock code", "An unblock code was given out for your card for {{customer-name}}"},
		"de": {"Entsperrcode am Telefon", "Für Ihre Karte für {{customer-name}} wurde ein Entsperrcode ausgegeben"},
	},
	Notice: {
		"en": {"Notice", "{{customer-name}}: {{event}}"},
		"de": {"Mitteilung", "{{customer-name}}: {{event}}"},
	},
	PINIssued: {
		"en": {"New PIN", "Your new PIN for {{customer-name}}"},
		"de": {"Neue PIN", "Ihre neue PIN für {{customer-name}}"},
	},
	SignIn: {
		"en": {"Sign-in", "Sign in to the PIN pages of {{customer-name}}"},
		"de": {"Anmeldung", "Anmeldung bei den PIN-Seiten von {{customer-name}}"},
	},
	ConfirmCode: {
		"en": {"Confirmation code", "Your code to confirm that it is you, for {{customer-name}}"},
		"de": {"Bestätigungscode", "Ihr Code zur Bestätigung, dass Sie es sind, für {{customer-name}}"},
	},
	Digest: {
		"en": {"Digest for administrators", "PINs for {{customer-name}} – expiring within a week: {{expiring-count}}, expired: {{expired-count}}"},
		"de": {"Überblick für die Administration", "PINs für {{customer-name}} – Ablauf innerhalb einer Woche: {{expiring-count}}, abgelaufen: {{expired-count}}"},
	},
}

// Predefined returns the template of a kind as it comes with Pinward, in the language of a
// BCP 47 tag if that is English or German, and else in English.
func Predefined(kind TemplateKind, tag string) Template {
	language := "en"
	if inGerman(tag) {
		language = "de"
	}
	text := func(extension string) string {
		b, err := predefinedTexts.ReadFile("predefined/" + string(kind) + "." + language + extension)
		if err != nil {
			panic(err) // there is no such kind
		}
		return string(b)
	}
	t := predefinedTitles[kind][language]
	return Template{ID: string(kind), Kind: kind, Name: t.name, Subject: t.subject, Text: text(".txt"), HTML: text(".html")}
}
