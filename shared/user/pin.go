package user

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// accepted is a PIN that the policy has let through, as it is kept.
type accepted struct {
	verifier, lookup string
	policyVersion    int64
}

// accept lets a new PIN of u through, or reports everything that the policy has
// against it, after what else is wrong with the request. Every path on which a
// PIN is made or changed comes through here. What has to be written besides the
// user is added to w. The PIN must not resemble a former profile either, or it
// could be stepped around by changing that in the same call.
func (us *Users) accept(ctx context.Context, core tenant.Core, by audit.Actor, u User, newPIN secret.Text, w *write, vs problem.Violations, former ...Profile) (accepted, error) {
	policy := core.Policy.Policy
	users, err := us.countFor(ctx, core, w)
	if err != nil {
		return accepted{}, err
	}
	for _, p := range append([]Profile{u.Profile}, former...) {
		about := aboutUser(p, users)
		for _, v := range policy.Check(newPIN, about) {
			if !slices.Contains(vs, v) {
				vs = append(vs, v)
			}
		}
	}
	if err := vs.Err(); err != nil {
		return accepted{}, err
	}
	if err := us.notUsed(ctx, core, by, u, newPIN); err != nil {
		return accepted{}, err
	}

	a := accepted{policyVersion: core.Policy.Version}
	if a.verifier, err = core.Keys.Verifier(u.ID, newPIN); err != nil {
		return accepted{}, err
	}
	if core.Tenant.Settings.PINOnlyLogin {
		if a.lookup, err = core.Keys.Lookup(newPIN); err != nil {
			return accepted{}, err
		}
	}
	if u.Version > 0 && policy.History > 0 {
		w.add(table.Delete(table.AttemptsKey(core.Tenant.ID, formerBudget(core, u.ID).who), table.Whatever()))
	}
	return a, nil
}

// end is when a PIN of now expires: by the policy, or after so many hours if that is sooner and
// they are not 0. The zero time is never.
func (us *Users) end(core tenant.Core, hours int) time.Time {
	if most := core.Policy.ExpirationHours; hours == 0 || most > 0 && most < hours {
		hours = most
	}
	if hours == 0 {
		return time.Time{}
	}
	return us.Now().UTC().Truncate(time.Second).Add(time.Duration(hours) * time.Hour)
}

// replace makes an accepted PIN that of a user who is about to be written, from now on until
// it ends. A PIN that was to be mailed is overtaken by it.
func (us *Users) replace(ctx context.Context, core tenant.Core, by audit.Actor, u *User, a accepted, end time.Time, w *write) {
	if u.Version > 0 { // nobody has guessed at somebody who is new
		w.add(table.Delete(table.AttemptsKey(core.Tenant.ID, Subject(u.ID)), table.Whatever()))
	}
	now := us.Now().UTC().Truncate(time.Second)
	if u.Pending.Waits() {
		us.drop(ctx, core, by, u, "replaced", w)
	}
	u.PIN = PIN{SetAt: now, By: by, PolicyVersion: a.policyVersion,
		ExpiresAt: end, verifier: a.verifier, lookup: a.lookup, history: remembered(core, u.PIN)}
	if !end.IsZero() {
		u.PIN.remind(core, now)
	}
}

// tags are the lookup tags that are held for the user: of the PIN, and of one that is to be
// mailed, which nobody else may have meanwhile.
func (u User) tags() (tags []string) {
	for _, tag := range []string{u.PIN.lookup, u.Pending.lookup} {
		if tag != "" && !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
	}
	return tags
}

// retag adds what makes the tags held for a user those of the user as written.
func (w *write) retag(core tenant.Core, was, is User) {
	before, after := was.tags(), is.tags()
	for _, tag := range before {
		if !slices.Contains(after, tag) {
			w.add(table.Delete(table.LookupKey(core.Tenant.ID, tag), table.Whatever()))
		}
	}
	for _, tag := range after {
		if !slices.Contains(before, tag) {
			w.claim(table.Put(holder{table.LookupKey(core.Tenant.ID, tag), is.ID}, table.Absent()), ErrPINTaken)
		}
	}
}

// aboutUser returns what of the user the policy checks a PIN against.
func aboutUser(p Profile, users int) pin.Context {
	return pin.Context{Username: p.Username, Mail: p.Mail, Phone: p.Phone, StaffNumber: p.StaffNumber, Users: users}
}

// countFor returns the number of users if the policy asks for it. It counts them once a
// write.
func (us *Users) countFor(ctx context.Context, core tenant.Core, w *write) (int, error) {
	if !core.Policy.MinLengthByUsers {
		return 0, nil
	}
	if w.users == nil {
		users, err := us.Count(ctx, core.Tenant.ID)
		if err != nil {
			return 0, err
		}
		w.users = &users
	}
	return *w.users, nil
}

// notUsed refuses a PIN that the user had lately. To be refused so is to learn
// a PIN of somebody's, so it is a guess: counted before it is looked at, and
// told in the audit log. It comes last, when nothing else speaks against the
// PIN: one that was not had lately is then set, which is seen.
//
// The present PIN set once more by whoever has just set it is not refused: the
// answer was lost, and this is the same call again.
func (us *Users) notUsed(ctx context.Context, core tenant.Core, by audit.Actor, u User, newPIN secret.Text) error {
	if core.Policy.History == 0 || u.PIN.verifier == "" && len(u.PIN.history) == 0 {
		return nil
	}
	counts, allowed, err := us.reserve(ctx, core, formerBudget(core, u.ID))
	if err != nil {
		return err
	}
	if !allowed {
		return &problem.LimitError{Code: "locked", Reason: "too many former PINs were tried", Until: counts[0].LockedUntil}
	}
	if !used(core, u, newPIN) {
		return nil
	}
	if u.PIN.By == by && us.Now().Sub(u.PIN.SetAt) < sameCall && core.Keys.Matches(u.PIN.verifier, u.ID, newPIN) {
		return errNothing
	}
	record := audit.Record{Actor: by, Action: "pin.choose", Subject: Subject(u.ID), Outcome: audit.Refused, Reason: "reused"}
	if err := us.Table.Write(ctx, us.Audit.Op(ctx, core.Tenant.ID, record)); err != nil {
		return fmt.Errorf("record the refusal: %w", err)
	}
	return reused(core)
}

func reused(core tenant.Core) error {
	return problem.Invalid("reused", "pin", "is one of the last %d PINs; choose one that was not had lately", core.Policy.History)
}

// sameCall is how long a call that sets the same PIN again counts as repeated.
const sameCall = 2 * time.Minute

func formerBudget(core tenant.Core, id string) budget {
	return budget{"former/" + id, core.Policy.MaxAttempts}
}

// used tells whether the PIN is among the user's last ones, the present one
// included.
func used(core tenant.Core, u User, newPIN secret.Text) bool {
	last := u.PIN.history
	if u.PIN.verifier != "" {
		last = append([]string{u.PIN.verifier}, last...)
	}
	last = last[:min(len(last), core.Policy.History)]
	return slices.ContainsFunc(last, func(v string) bool { return core.Keys.Matches(v, u.ID, newPIN) })
}

// remembered is the history after the PIN is replaced or gone.
func remembered(core tenant.Core, p PIN) []string {
	last := p.history
	if p.verifier != "" {
		last = append([]string{p.verifier}, last...)
	}
	return last[:min(len(last), core.Policy.History)]
}

// gone returns the PIN state after the PIN is deleted.
func gone(core tenant.Core, p PIN, now time.Time, why string) PIN {
	return PIN{SetAt: p.SetAt, By: p.By, PolicyVersion: p.PolicyVersion, ExpiresAt: p.ExpiresAt, NotifyAt: p.NotifyAt, Notice: p.Notice, NotifiedAt: p.NotifiedAt,
		DeletedAt: now.UTC().Truncate(time.Second), Deleted: why, history: remembered(core, p)}
}

func pinDetails(core tenant.Core) map[string]string {
	return map[string]string{"policyVersion": fmt.Sprint(core.Policy.Version)}
}

// SetPIN gives the user the PIN. A PIN that the policy refuses is an
// InvalidError with every reason. with are further ops of the same Write; if a condition
// of theirs does not hold that is the error.
func (us *Users) SetPIN(ctx context.Context, core tenant.Core, by audit.Actor, id string, newPIN secret.Text, with ...table.Op) (u User, err error) {
	err = us.choose(ctx, core, by, id, func() error {
		u, err = us.changePIN(ctx, core, by, id, "pin.set", func(u *User, w *write) error {
			a, err := us.accept(ctx, core, by, *u, newPIN, w, nil)
			if err != nil {
				return err
			}
			us.replace(ctx, core, by, u, a, us.end(core, 0), w)
			w.add(us.pinSet(ctx, core, *u, "chosen")...)
			return nil
		}, with...)
		return err
	})
	return u, err
}

// pinSet tells of a PIN that is about to be written with the user, who is as read but for it.
func (us *Users) pinSet(ctx context.Context, core tenant.Core, u User, how string) []table.Op {
	return event.Ops(ctx, core, us.Now(), event.Event{Type: event.PINSet, User: u.ID, Attributes: map[string]string{"how": how}},
		fmt.Sprintf("%s/%d", u.ID, u.Version+1))
}

// choose runs a person's own choice of a PIN. Where PINs identify, to be
// refused a taken one is to learn somebody's PIN, so a person may be told so
// only as often as they may guess.
func (us *Users) choose(ctx context.Context, core tenant.Core, by audit.Actor, id string, do func() error) error {
	if !core.Tenant.Settings.PINOnlyLogin || by.Kind != audit.Self {
		return do()
	}
	mine := []budget{{"choice/" + id, core.Policy.MaxAttempts}}
	counts, allowed, err := us.reserve(ctx, core, mine...)
	if err != nil {
		return err
	}
	if !allowed {
		return &problem.LimitError{Code: "locked", Reason: "too many PINs were tried that cannot be used here", Until: counts[0].LockedUntil}
	}
	err = do()
	record := audit.Record{Actor: by, Action: "pin.choose", Subject: Subject(id), Outcome: audit.Refused, Reason: "taken"}
	if errors.Is(err, ErrPINTaken) {
		return errors.Join(us.Table.Write(ctx, us.Audit.Op(ctx, core.Tenant.ID, record)), err)
	}
	return errors.Join(us.takeBack(ctx, core, mine, counts), err)
}

// generateTries bounds how many generated PINs are tried when those tried are
// taken, or were the user's own lately.
const generateTries = 50

// GeneratePIN gives the user a new random PIN and returns it, for the one
// answer that shows it. Length and alphabet are the policy's own if zero.
func (us *Users) GeneratePIN(ctx context.Context, core tenant.Core, by audit.Actor, id string, opts pin.GenerateOptions) (User, secret.Text, error) {
	for range generateTries {
		var made secret.Text
		u, err := us.changePIN(ctx, core, by, id, "pin.generated", func(u *User, w *write) (err error) {
			var a accepted
			if made, a, err = us.generate(ctx, core, by, *u, opts, w); err != nil {
				return err
			}
			us.replace(ctx, core, by, u, a, us.end(core, 0), w)
			w.add(us.pinSet(ctx, core, *u, "generated")...)
			return nil
		})
		if errors.Is(err, ErrPINTaken) {
			continue
		} else if err != nil {
			return User{}, secret.Text{}, err
		}
		return u, made, nil
	}
	return User{}, secret.Text{}, ErrAllTaken
}

// generate makes a PIN for the user that is not the present one or one had lately, and has it
// accepted. It counts for the limits of the person and of the tenant.
func (us *Users) generate(ctx context.Context, core tenant.Core, by audit.Actor, u User, opts pin.GenerateOptions, w *write) (secret.Text, accepted, error) {
	if err := us.countGenerated(ctx, core, by, u.ID, w); err != nil {
		return secret.Text{}, accepted{}, err
	}
	users, err := us.countFor(ctx, core, w)
	if err != nil {
		return secret.Text{}, accepted{}, err
	}
	opts.Context = aboutUser(u.Profile, users)
	had := func(pin secret.Text) bool {
		return used(core, u, pin) || u.PIN.verifier != "" && core.Keys.Matches(u.PIN.verifier, u.ID, pin)
	}
	var made secret.Text
	for range generateTries {
		made, err = core.Policy.Generate(us.Rand, opts)
		if err != nil || !had(made) {
			break
		}
	}
	if err != nil {
		return secret.Text{}, accepted{}, err
	}
	if had(made) {
		return secret.Text{}, accepted{}, reused(core)
	}
	a, err := us.accept(ctx, core, by, u, made, w, nil)
	return made, a, err
}

// DeletePIN takes the user's PIN away, and one that was to be mailed. Deleting what is not
// there succeeds.
func (us *Users) DeletePIN(ctx context.Context, core tenant.Core, by audit.Actor, id string) (User, error) {
	return us.changePIN(ctx, core, by, id, "pin.deleted", func(u *User, w *write) error {
		if u.PIN.verifier == "" && !u.Pending.Waits() {
			return errNothing
		}
		if u.Pending.Waits() {
			us.drop(ctx, core, by, u, "deleted", w)
		}
		if u.PIN.verifier != "" {
			us.takeAway(core, u, "deleted")
		}
		return nil
	})
}

// EndPIN lets the user's PIN expire now, whatever it was to live. That there is none is
// problem.ErrState. A PIN that is to be mailed is another one, and stays. with are further ops of the same Write; if a condition of theirs does
// not hold that is the error.
func (us *Users) EndPIN(ctx context.Context, core tenant.Core, by audit.Actor, id string, with ...table.Op) (User, error) {
	return us.changePIN(ctx, core, by, id, "pin.expired", func(u *User, w *write) error {
		if u.PIN.verifier == "" {
			return ErrNoPIN
		}
		us.takeAway(core, u, "expired")
		w.add(us.pinExpired(ctx, core, *u)...)
		return nil
	}, with...)
}

// takeAway deletes the PIN of a user who is about to be written.
func (us *Users) takeAway(core tenant.Core, u *User, why string) {
	u.PIN = gone(core, u.PIN, us.Now(), why)
}

// pinExpired tells of the expiry of a PIN that is about to be written with the user.
func (us *Users) pinExpired(ctx context.Context, core tenant.Core, u User) []table.Op {
	return event.Ops(ctx, core, us.Now(), event.Event{Type: event.PINExpired, User: u.ID, Attributes: map[string]string{"of": "user"}},
		fmt.Sprintf("%s/%d", u.ID, u.Version+1))
}

// errNothing is how a change says that there is nothing to write.
var errNothing = fmt.Errorf("nothing to change")

// changePIN reads the user, lets edit change the PIN, and writes it with its
// audit record and the ops of with. If there is nothing to change those are written alone.
func (us *Users) changePIN(ctx context.Context, core tenant.Core, by audit.Actor, id, action string, edit func(*User, *write) error, with ...table.Op) (User, error) {
	for range tries {
		u, err := us.Get(ctx, core.Tenant.ID, id)
		if err != nil {
			return User{}, err
		}
		w := write{with: with}
		old := u
		switch err := edit(&u, &w); {
		case errors.Is(err, errNothing) && len(with) == 0:
			return old, nil
		case errors.Is(err, errNothing):
			if err := us.Table.Write(ctx, with...); err != nil {
				return User{}, fmt.Errorf("%s: %w", action, err)
			}
			return old, nil
		case err != nil:
			return User{}, err
		}
		w.retag(core, old, u)
		u.UpdatedAt = us.Now().UTC().Truncate(time.Second)
		w.add(
			table.Put(userRecord{core.Tenant.ID, u}, table.IfVersion(u.Version)),
			us.Audit.Op(ctx, core.Tenant.ID, audit.Record{Actor: by, Action: action, Subject: Subject(id), Outcome: audit.Done, Details: pinDetails(core)}))
		if again, err := w.do(ctx, us.Table); again {
			continue
		} else if err != nil {
			return User{}, fmt.Errorf("%s: %w", action, err)
		}
		u.Version++
		return u, nil
	}
	return User{}, errBusy
}
