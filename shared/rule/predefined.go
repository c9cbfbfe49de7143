package rule

import (
	"slices"

	"github.com/pinward/pinward/shared/event"
)

// The ids of the rules that each tenant has from the first, off.
const (
	FirstPrintJob = "first-print-job"
	RenewExpired  = "renew-expired"
	NewUser       = "new-user"
)

// Predefined returns the rules that each tenant has from the first, as they come: off.
func Predefined() []Rule {
	no, yes := false, true
	user := "user"
	give := []Action{{Kind: GeneratePIN}}
	return []Rule{
		{ID: FirstPrintJob, Name: "First print job: give a PIN and mail it", Order: 100, Event: event.PrintJobSubmitted,
			Conditions: Conditions{First: true, HasPIN: &no, HasMail: &yes}, Actions: give},
		{ID: RenewExpired, Name: "Expired PIN: mail a new one", Order: 100, Event: event.PINExpired,
			Conditions: Conditions{HasPIN: &no, HasMail: &yes, Attributes: []Test{{Name: "of", Equals: &user}}}, Actions: give},
		{ID: NewUser, Name: "New user: give a PIN", Order: 100, Event: event.UserCreated,
			Conditions: Conditions{HasPIN: &no, HasMail: &yes}, Actions: give},
	}
}

func predefined(id string) (Rule, bool) {
	all := Predefined()
	i := slices.IndexFunc(all, func(r Rule) bool { return r.ID == id })
	if i < 0 {
		return Rule{}, false
	}
	return all[i], true
}

// IsPredefined tells whether a rule is one of those.
func IsPredefined(id string) bool {
	_, is := predefined(id)
	return is
}
