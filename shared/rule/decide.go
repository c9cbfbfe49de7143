package rule

import (
	"slices"
	"time"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/user"
)

// Facts are what conditions are about, besides the event.
type Facts struct {
	User       *user.User // nil if nobody is known whom the event is about
	First      bool       // it is the user's first event of the type
	ActiveCard bool       // the user has one
	Zone       *time.Location
	Now        time.Time
}

// Reasons of a rule that did not act, and of an action that was refused. They are stable.
const (
	ReasonUnknownUser   = "unknownUser" // the event names nobody who is known
	ReasonNotFirst      = "notFirst"
	ReasonHasPIN        = "hasPin"
	ReasonNoPIN         = "noPin"
	ReasonHasMail       = "hasMail"
	ReasonNoMail        = "noMail"
	ReasonHasActiveCard = "hasActiveCard"
	ReasonNoActiveCard  = "noActiveCard"
	ReasonNotInGroup    = "notInGroup"
	ReasonPINNotOld     = "pinNotOld"
	ReasonPINNotEnding  = "pinNotExpiring"
	ReasonAttribute     = "attribute"
	ReasonWindow        = "window"

	ReasonNoCard = "noCard" // the event is about no card

	ReasonInChain   = "inChain"   // the rule has led to this event
	ReasonChainLong = "chainLong" // MaxChain rules have led to it
)

// Unmet returns the first condition that does not hold, as its reason; "" if all do.
func (r Rule) Unmet(e event.Event, f Facts) string {
	c := r.Conditions
	if f.User == nil {
		if c.First || c.HasPIN != nil || c.HasMail != nil || c.HasActiveCard != nil || len(c.Groups) > 0 ||
			c.PINOlderThanHours > 0 || c.PINExpiresWithinHours > 0 || slices.ContainsFunc(r.Actions, Action.OfUser) {
			return ReasonUnknownUser
		}
	} else if reason := c.unmetByUser(*f.User, f); reason != "" {
		return reason
	}
	for _, t := range c.Attributes {
		if !t.holds(e.Attributes) {
			return ReasonAttribute
		}
	}
	if !c.Window.IsZero() && !c.Window.holds(e.At, f.Zone) {
		return ReasonWindow
	}
	return ""
}

func (c Conditions) unmetByUser(u user.User, f Facts) string {
	hasPIN := u.PIN.State(f.Now) == user.IsSet
	is := func(want *bool, has bool, if1, if0 string) string {
		switch {
		case want == nil || *want == has:
			return ""
		case has:
			return if1
		}
		return if0
	}
	if c.First && !f.First {
		return ReasonNotFirst
	}
	for _, reason := range []string{
		is(c.HasPIN, hasPIN, ReasonHasPIN, ReasonNoPIN),
		is(c.HasMail, u.Profile.Mail != "", ReasonHasMail, ReasonNoMail),
		is(c.HasActiveCard, f.ActiveCard, ReasonHasActiveCard, ReasonNoActiveCard),
	} {
		if reason != "" {
			return reason
		}
	}
	if len(c.Groups) > 0 && !slices.ContainsFunc(c.Groups, func(g string) bool { return slices.Contains(u.Profile.Groups, g) }) {
		return ReasonNotInGroup
	}
	if h := c.PINOlderThanHours; h > 0 && (!hasPIN || f.Now.Sub(u.PIN.SetAt) <= time.Duration(h)*time.Hour) {
		return ReasonPINNotOld
	}
	if h := c.PINExpiresWithinHours; h > 0 && (!hasPIN || u.PIN.ExpiresAt.IsZero() || u.PIN.ExpiresAt.Sub(f.Now) > time.Duration(h)*time.Hour) {
		return ReasonPINNotEnding
	}
	return ""
}

// cut returns why a rule must not act on an event that rules have led to; "" if it may.
func (r Rule) cut(e event.Event) string {
	switch {
	case slices.Contains(e.Chain, r.ID):
		return ReasonInChain
	case len(e.Chain) >= MaxChain:
		return ReasonChainLong
	}
	return ""
}
