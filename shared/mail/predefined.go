package mail

import (
	_ "embed"

	"golang.org/x/text/language"
)

// PINExpiryID is the id of the predefined template. It exists without being
// stored; stored under this id, it is customised.
const PINExpiryID = "pin-expiry"

//go:embed predefined/en.txt
var englishText string

//go:embed predefined/en.html
var englishHTML string

//go:embed predefined/de.txt
var germanText string

//go:embed predefined/de.html
var germanHTML string

var predefinedLanguages = language.NewMatcher([]language.Tag{language.English, language.German})

// Predefined returns the PIN expiry template as it comes with Pinward, in the
// language of a BCP 47 tag if that is English or German, and else in English.
func Predefined(tag string) Template {
	if _, i := language.MatchStrings(predefinedLanguages, tag); i == 1 {
		return Template{
			ID: PINExpiryID, Name: "PIN-Ablauf",
			Subject: "Ihre PIN für {{customer-name}} läuft am {{pinExpiration}} ab",
			Text:    germanText, HTML: germanHTML,
		}
	}
	return Template{
		ID: PINExpiryID, Name: "PIN expiry",
		Subject: "Your PIN for {{customer-name}} expires on {{pinExpiration}}",
		Text:    englishText, HTML: englishHTML,
	}
}
