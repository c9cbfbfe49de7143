// Package page uses keys in every way, for the test of the catalogue.
package page

import (
	"fmt"

	"github.com/pinward/pinward/functions/console/words"
)

var label = words.Key("users.label")

func right(w words.Words, state string) {
	w.Say("users.title")
	w.Say(label)
	w.Say(words.Family("state.", state))
	w.Say(labels["x"].key)
}

func wrong(w words.Words, state string) {
	w.Say("users." + state)
	w.Say(fmt.Sprintf("users.%s", state))
	words.Family(state, state)
	w.Say(words.Family("role", state))
	w.Say("users.lacking")
}
