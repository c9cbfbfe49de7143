package rule

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// Trial is what a rule would do to an event.
type Trial struct {
	Event event.Event // with User, if somebody is known
	// Run is what would come of it. Effects are as far as can be foreseen: an action that
	// would be refused for something that only the doing tells is shown as done.
	Run event.Run
}

// Acts tells whether the rule would act.
func (t Trial) Acts() bool { return t.Run.Outcome == event.Acted }

// Try says what a rule, saved or not and on or not, would do to an event. It changes nothing.
// Users, their PINs and cards are looked at as they are now.
func (en *Engine) Try(ctx context.Context, core tenant.Core, r Rule, e event.Event) (Trial, error) {
	var vs problem.Violations
	vs.Under("event", e.Validate())
	vs.Under("rule", r.Validate())
	if len(vs) == 0 && e.Type != r.Event {
		vs.Add("inconsistent", "event.type", "is not the type that the rule acts on, %s", r.Event)
	}
	if err := vs.Err(); err != nil {
		return Trial{}, err
	}
	return en.try(ctx, core, r, e, nil)
}

// seen are the users who had an event of the type before, in a trial of many.
type seen map[string]bool

func (en *Engine) try(ctx context.Context, core tenant.Core, r Rule, e event.Event, before seen) (Trial, error) {
	core.Tenant.Settings.CreateUsers = false
	h := &handling{Engine: en, core: core, e: e, askFirst: r.Conditions.First}
	if err := h.know(ctx); err != nil {
		return Trial{}, err
	}
	if before != nil {
		h.first = h.first && !before[h.e.User]
		before[h.e.User] = true
	}
	run, err := h.consider(ctx, r)
	if err != nil {
		return Trial{}, err
	}
	if run.Outcome == event.Acted {
		for _, a := range r.Actions {
			effect := event.Effect{Action: string(a.Kind), Outcome: event.EffectDone}
			reason, err := h.foresee(ctx, a)
			if err != nil {
				return Trial{}, err
			}
			if reason != "" {
				effect.Outcome, effect.Reason = event.EffectRefused, reason
			}
			run.Effects = append(run.Effects, effect)
		}
	}
	run.Rest = nil
	return Trial{h.e, run}, nil
}

// foresee returns why an action would be refused, as far as that can be told without doing it.
func (h *handling) foresee(ctx context.Context, a Action) (string, error) {
	u := h.user
	switch a.Kind {
	case GeneratePIN:
		return coded(h.Users.CheckIssue(ctx, h.core, *u, a.issue()))
	case SetPIN:
		given, there := h.e.Secrets[a.Attribute]
		if !there {
			if h.e.Version != 0 {
				return "", nil // it was there, perhaps; secrets of what is done are not kept
			}
			return ReasonAttribute, nil
		}
		var codes []string
		for _, v := range h.verdict(*u, given) {
			codes = append(codes, v.Code)
		}
		return strings.Join(slices.Compact(codes), " "), nil
	case ExpirePIN, RequireChange:
		if u.PIN.State(h.Now()) != user.IsSet {
			return ReasonNoPIN, nil
		}
	case SendMail, CallWebhook:
		d := deed{h, a, event.Run{}, "trial", nil}
		_, _, err := d.send(ctx)
		return coded(err)
	case RequestUnblock:
		if h.e.Card == "" {
			return ReasonNoCard, nil
		}
		_, err := h.Credentials.Get(ctx, h.core.Tenant.ID, h.e.Card)
		return coded(err)
	}
	return "", nil
}

func (h *handling) verdict(u user.User, given secret.Text) []problem.Violation {
	p := u.Profile
	return h.core.Policy.Check(given, pin.Context{Username: p.Username, Mail: p.Mail, Phone: p.Phone, StaffNumber: p.StaffNumber})
}

// coded returns the reason of a refusal, or the error that is none.
func coded(err error) (string, error) {
	if err == nil {
		return "", nil
	}
	if reason, final := refusal(err); final {
		return reason, nil
	}
	return "", err
}

// Trials are what a rule would have done to the events of some time.
type Trials struct {
	Read    int            // events looked at, of any type
	Of      int            // of the rule's type
	Acting  int            // of those: the rule would have acted
	Unmet   map[string]int // the others, by the condition that was not met
	Refused map[string]int // actions that would have been refused, by their reason
	Shown   []Trial        // those in which it would have acted, the oldest first, at most MaxShown
	From    time.Time      // when the first event that was looked at came in
	More    bool           // there are more events than were looked at
}

// Limits of a trial over what is stored.
const (
	MaxShown   = 200
	maxTrials  = 10_000
	trialsTime = 10 * time.Second
)

// TryAll says what a rule would have done to the events that are kept, the oldest first. Users,
// their PINs and cards are looked at as they are now.
func (en *Engine) TryAll(ctx context.Context, core tenant.Core, r Rule) (Trials, error) {
	var vs problem.Violations
	vs.Under("rule", r.Validate())
	if err := vs.Err(); err != nil {
		return Trials{}, err
	}
	trials := Trials{Unmet: map[string]int{}, Refused: map[string]int{}}
	began := time.Now()
	before := seen{}
	for place := ""; ; {
		events, next, err := event.Since(ctx, en.Table, core.Tenant.ID, en.Now().Add(-event.Kept), place, 200)
		if err != nil {
			return Trials{}, err
		}
		for _, e := range events {
			if trials.Read++; trials.Read == 1 {
				trials.From = e.ReceivedAt
			}
			if e.Type != r.Event {
				continue
			}
			trials.Of++
			t, err := en.try(ctx, core, r, e, before)
			if err != nil {
				return Trials{}, err
			}
			trials.add(t)
		}
		if place = next; place == "" {
			return trials, nil
		}
		if trials.Read >= maxTrials || time.Since(began) > trialsTime {
			trials.More = true
			return trials, nil
		}
	}
}

func (ts *Trials) add(t Trial) {
	if !t.Acts() {
		ts.Unmet[t.Run.Reason]++
		return
	}
	ts.Acting++
	for _, f := range t.Run.Effects {
		if f.Reason != "" {
			ts.Refused[f.Reason]++
		}
	}
	if len(ts.Shown) < MaxShown {
		ts.Shown = append(ts.Shown, t)
	}
}
