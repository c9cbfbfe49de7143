package mail

import (
	"time"

	"github.com/pinward/pinward/shared/secret"
)

// Examples are values for mails of a kind, of a tenant with that display name, in the language
// of a BCP 47 tag; at writes the time that is so far away.
func Examples(kind TemplateKind, customer, language string, at func(time.Duration) string) Values {
	const username, card, place = "ada", "PIV 4F2A", "Kiosk 1"
	switch kind {
	case UnblockCode:
		return UnblockCodeValues{Code: secret.New("123456"), Username: username, CustomerName: customer,
			Card: card, Expires: at(10 * time.Minute), Place: place}
	case PINReset:
		return PINResetValues{Username: username, CustomerName: customer,
			Card: card, Time: at(0), By: ByYourself(language), Place: place}
	case CardPINExpiry:
		return CardPINExpiryValues{PINExpiration: at(7 * 24 * time.Hour), Days: 7, Username: username, CustomerName: customer, Card: card}
	case CardPINExpired:
		return CardPINExpiredValues{PINExpiration: at(0), Username: username, CustomerName: customer, Card: card}
	case OfflineAnswer:
		return OfflineAnswerValues{Username: username, CustomerName: customer, Card: card, Time: at(0), By: "Ada Operator"}
	case Notice:
		return NoticeValues{Username: username, CustomerName: customer, Event: "print-job.submitted", Time: at(0), Message: "Your first print job is waiting."}
	case PINIssued:
		return PINIssuedValues{PIN: secret.New("739158"), Username: username, CustomerName: customer,
			Validity: ValidUntil(at(30*24*time.Hour), language), Use: PINUse(false, true, language)}
	case SignIn:
		return SignInValues{Link: secret.New("https://pages.example/console/sign-in/link?t=EXAMPLE"), Code: secret.New("12345678"), Minutes: 10,
			Name: "Ada Lovelace", CustomerName: customer}
	case ConfirmCode:
		return ConfirmCodeValues{Code: secret.New("12345678"), Minutes: 10, Name: "Ada Lovelace", CustomerName: customer}
	case Digest:
		return DigestValues{
			CustomerName: customer, Since: at(-24 * time.Hour), Language: language,
			Expiring:      DigestList{Total: 314, Lines: []string{username + ", " + at(24*time.Hour), OfCard(card, language) + ", " + at(48*time.Hour)}},
			Expired:       DigestList{Total: 1, Lines: []string{username + ", " + at(-time.Hour)}},
			Undeliverable: DigestList{},
			GivenUp:       DigestList{Total: 1, Lines: []string{username + ", " + at(-time.Hour) + ": smtp.550"}},
		}
	default:
		return PINExpiryValues{PINExpiration: at(24 * time.Hour), Username: username, CustomerName: customer}
	}
}

// Variables are what the variables of a template stand for.
func Variables(v Values) map[string]string { return v.variables() }
