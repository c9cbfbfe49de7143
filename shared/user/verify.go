package user

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// Ref names a user in one of three ways; exactly one field is set.
type Ref struct{ ID, Username, ExternalID string }

// Result is the answer to a guess. Unless the guess was right it is the same
// for a wrong PIN, no PIN, an expired PIN and an unknown user; the audit log
// tells them apart.
type Result struct {
	Right bool
	User  User // if right
	// ChangeRequired tells that the PIN is to be changed now.
	ChangeRequired bool
	TriesLeft      int       // until guessing is locked
	LockedUntil    time.Time // set if it is locked
}

// attempts counts the guesses made lately at one user, or by one terminal.
type attempts struct {
	key         table.Key
	Count       int
	Since       time.Time // when the last of them was made
	LockedUntil time.Time
	Lock        time.Duration // how long guesses count
	version     int64
	before      time.Time // Since, before this one was counted
}

type storedAttempts struct {
	Count       int       `json:"count"`
	Since       time.Time `json:"since"`
	LockedUntil time.Time `json:"lockedUntil,omitzero"`
}

// Validate implements table.Record.
func (a attempts) Validate() error { return nil }

// Item implements table.Record.
func (a attempts) Item() (table.Item, error) {
	data, err := json.Marshal(storedAttempts{a.Count, a.Since, a.LockedUntil})
	return table.Item{Key: a.key, ExpiresAt: a.Since.Add(a.Lock + time.Hour), Data: data}, err
}

// attempts reads how many guesses were made lately.
func (us *Users) attempts(ctx context.Context, core tenant.Core, who string) (attempts, error) {
	a := attempts{key: table.AttemptsKey(core.Tenant.ID, who), Lock: time.Duration(core.Policy.LockMinutes) * time.Minute}
	item, err := us.Table.Get(ctx, a.key)
	if errors.Is(err, problem.ErrNotFound) {
		return a, nil
	} else if err != nil {
		return a, fmt.Errorf("read attempts: %w", err)
	}
	var s storedAttempts
	if err := item.Decode(&s); err != nil {
		return a, err
	}
	a.version = item.Version
	forgotten := s.Since.Add(a.Lock)
	if !s.LockedUntil.IsZero() {
		forgotten = s.LockedUntil
	}
	if us.Now().Before(forgotten) {
		a.Count, a.Since, a.LockedUntil = s.Count, s.Since, s.LockedUntil
	}
	return a, nil
}

// budget is how many wrong guesses somebody may make within the lock time.
type budget struct {
	who string
	max int
}

// reserve counts a guess before it is looked at, in each of the budgets at
// once, so that however many are made at the same time, no more are looked at
// than allowed. It returns the counts in the budgets' order, and false with the
// count that is locked alone if one is.
func (us *Users) reserve(ctx context.Context, core tenant.Core, budgets ...budget) ([]attempts, bool, error) {
	// Whoever loses the race for a count reads it again; every round somebody
	// wins, so there are at most as many rounds as guesses allowed, and some
	// more if right ones reset the count meanwhile.
	for range budgets[0].max + 100 {
		counts := make([]attempts, len(budgets))
		ops := make([]table.Op, len(budgets))
		for i, b := range budgets {
			a, err := us.attempts(ctx, core, b.who)
			if err != nil {
				return nil, false, err
			}
			if us.Now().Before(a.LockedUntil) {
				return []attempts{a}, false, nil
			}
			a.before, a.Since = a.Since, us.Now().UTC()
			if a.Count++; a.Count >= b.max {
				a.LockedUntil = a.Since.Add(a.Lock).Truncate(time.Second)
			}
			ops[i] = table.Put(a, table.After(a.version))
			a.version++
			counts[i] = a
		}
		err := us.Table.Write(ctx, ops...)
		if err == nil {
			return counts, true, nil
		} else if !errors.Is(err, problem.ErrConflict) {
			return nil, false, fmt.Errorf("count the attempt: %w", err)
		}
	}
	return nil, false, fmt.Errorf("count the attempt: %w", problem.ErrUnavailable)
}

// answer is the result of a guess that was not right.
func (a attempts) answer(core tenant.Core) Result {
	return Result{TriesLeft: max(core.Policy.MaxAttempts-a.Count, 0), LockedUntil: a.LockedUntil}
}

// nobody is an id that no user has: ids carry the time they were made at.
const nobody = "00000000000000000000000000"

// Why a guess was not right, as the audit log has it.
const (
	reasonUnknown = "unknownUser"
	reasonWrong   = "wrongPIN"
	reasonNone    = "noPIN"
	reasonLocked  = "locked"
	reasonExpired = "expired"
	reasonUsed    = "used" // by another guess at the same time
)

// Verify tells whether the PIN is that of the user named. An unknown user has
// attempts to use up like a known one, so nothing in the answer tells whether
// there is such a user.
func (us *Users) Verify(ctx context.Context, core tenant.Core, by audit.Actor, ref Ref, guess secret.Text) (Result, error) {
	u, err := us.find(ctx, core.Tenant.ID, ref)
	known := err == nil
	if !known && !errors.Is(err, problem.ErrNotFound) {
		return Result{}, err
	}
	who := Subject(u.ID)
	if !known {
		if ref.ID == "" { // a known name costs this read too
			if _, err := us.Get(ctx, core.Tenant.ID, nobody); !errors.Is(err, problem.ErrNotFound) {
				return Result{}, err
			}
		}
		// Keyed, for people type PINs where the name belongs.
		name, err := core.Keys.Fingerprint("unknown user", fmt.Appendf(nil, "%q %q %q", ref.ID, Fold(ref.Username), ref.ExternalID))
		if err != nil {
			return Result{}, err
		}
		who = "unknown/" + name
	}
	counts, allowed, err := us.reserve(ctx, core, budget{who, core.Policy.MaxAttempts})
	if err != nil {
		return Result{}, err
	}

	reason := ""
	switch state := u.PIN.State(us.Now()); {
	case !allowed:
		reason = reasonLocked
	case !core.Keys.Matches(u.PIN.verifier, u.ID, guess) && state == IsSet:
		reason = reasonWrong
	case !known:
		reason = reasonUnknown
	case state == NoPIN:
		reason = reasonNone
	case state == Expired:
		reason = reasonExpired
	}
	record := audit.Record{Actor: by, Action: "pin.verify", Outcome: audit.Refused, Reason: reason}
	if known {
		record.Subject = Subject(u.ID)
	}
	return us.finish(ctx, core, counts[0], allowed, record, u)
}

// finish writes what came of a guess: the audit record, and after a right one
// that its guesses are forgotten.
func (us *Users) finish(ctx context.Context, core tenant.Core, a attempts, allowed bool, record audit.Record, u User) (Result, error) {
	t := core.Tenant.ID
	if record.Reason == "" {
		used, err := us.use(ctx, core, &u, record, func(ops ...table.Op) error {
			return us.Table.Write(ctx, append(ops, table.Delete(a.key, table.Whatever()))...)
		})
		if err != nil {
			return Result{}, fmt.Errorf("record the login: %w", err)
		} else if used {
			return right(core, u), nil
		}
		record.Reason = reasonUsed
	}
	var told []table.Op
	if allowed && !a.LockedUntil.IsZero() {
		record.Details = map[string]string{"lockedUntil": a.LockedUntil.Format(time.RFC3339)}
		if record.Action == "pin.verify" && record.Subject != "" { // else it is a terminal that is locked, or nobody's PIN
			told = event.Ops(ctx, core, us.Now(), event.Event{Type: event.PINLocked, User: u.ID}, fmt.Sprintf("%s/%d", u.ID, a.Since.UnixNano()))
		}
	}
	if err := us.Table.Write(ctx, append(told, us.Audit.Op(ctx, t, record))...); err != nil {
		return Result{}, fmt.Errorf("record the attempt: %w", err)
	}
	return a.answer(core), nil
}

// right is the answer to a guess that was right.
func right(core tenant.Core, u User) Result {
	return Result{Right: true, User: u, ChangeRequired: u.PIN.OneTime == ChangeAtUse, TriesLeft: core.Policy.MaxAttempts}
}

// use commits a right answer, with its record and what that does to the PIN: one that is for one
// use is gone. It returns false if another one who gave it at the same time has used it up. u is
// as it was when the PIN was right.
func (us *Users) use(ctx context.Context, core tenant.Core, u *User, record audit.Record, commit func(ops ...table.Op) error) (bool, error) {
	record.Outcome = audit.Done
	if u.PIN.OneTime != DeletedByUse {
		err := commit(us.Audit.Op(ctx, core.Tenant.ID, record))
		return err == nil, err
	}
	details := map[string]string{"oneTime": string(DeletedByUse)}
	maps.Copy(details, record.Details)
	record.Details = details
	for range tries {
		gone := *u
		us.takeAway(core, &gone, "used")
		gone.UpdatedAt = us.Now().UTC().Truncate(time.Second)
		var w write
		w.add(table.Put(userRecord{core.Tenant.ID, gone}, table.IfVersion(u.Version)))
		w.retag(core, *u, gone)
		w.add(us.Audit.Op(ctx, core.Tenant.ID, record))
		err := commit(w.ops...)
		if i, failed := table.FailedOp(err); !failed || i != 0 {
			return err == nil, err
		}
		now, err := us.Get(ctx, core.Tenant.ID, u.ID)
		switch {
		case errors.Is(err, problem.ErrNotFound) || err == nil && now.PIN.verifier != u.PIN.verifier:
			return false, nil
		case err != nil:
			return false, err
		}
		*u = now
	}
	return false, errBusy
}

// find returns the user that is meant.
func (us *Users) find(ctx context.Context, t table.TenantID, ref Ref) (User, error) {
	switch {
	case ref.ID != "":
		return us.Get(ctx, t, ref.ID)
	case ref.Username != "":
		return us.ByUsername(ctx, t, ref.Username)
	default:
		return us.ByExternalID(ctx, t, ref.ExternalID)
	}
}

// Identify finds the user by the PIN alone. The tenant must have turned on
// PIN-only login. Guesses are counted for each terminal of a key, and for the
// key as a whole, since it is the caller who names the terminal. A right one
// takes back its own count only, so that nobody who knows one PIN can go on
// guessing others for ever.
func (us *Users) Identify(ctx context.Context, core tenant.Core, by audit.Actor, terminal string, guess secret.Text) (Result, error) {
	t := core.Tenant.ID
	if !core.Tenant.Settings.PINOnlyLogin {
		return Result{}, fmt.Errorf("%w: the tenant has not turned on PIN-only login", problem.ErrState)
	}
	budgets := []budget{
		{"terminal/" + by.ID + "/" + terminal, core.Policy.MaxAttempts},
		{"key/" + by.ID, core.Policy.MaxAttempts * terminalsAtOnce},
	}
	counts, allowed, err := us.reserve(ctx, core, budgets...)
	if err != nil {
		return Result{}, err
	}
	a := counts[0]
	record := audit.Record{Actor: by, Action: "pin.identify", Outcome: audit.Refused}
	if terminal != "" {
		record.Details = map[string]string{"terminal": terminal}
	}
	if !allowed {
		record.Reason = reasonLocked
		return us.finish(ctx, core, a, allowed, record, User{})
	}

	lookup, err := core.Keys.Lookup(guess)
	if err != nil {
		return Result{}, err
	}
	u, err := us.held(ctx, t, table.LookupKey(t, lookup))
	switch {
	case errors.Is(err, problem.ErrNotFound):
		record.Reason = reasonWrong
		return us.finish(ctx, core, a, allowed, record, User{})
	case err != nil:
		return Result{}, err
	}
	record.Subject = Subject(u.ID)
	own, err := us.attempts(ctx, core, Subject(u.ID))
	if err != nil {
		return Result{}, err
	}
	switch state := u.PIN.State(us.Now()); {
	case us.Now().Before(own.LockedUntil):
		record.Reason = reasonLocked
	case state == Expired:
		record.Reason = reasonExpired
	case state != IsSet || !core.Keys.Matches(u.PIN.verifier, u.ID, guess):
		record.Reason = reasonWrong
	}
	if record.Reason != "" {
		return us.finish(ctx, core, a, allowed, record, u)
	}
	used, err := us.use(ctx, core, &u, record, func(ops ...table.Op) error {
		return us.takeBack(ctx, core, budgets, counts, ops...)
	})
	if err != nil {
		return Result{}, err
	} else if !used {
		record.Reason = reasonUsed
		return us.finish(ctx, core, a, allowed, record, u)
	}
	return right(core, u), nil
}

// terminalsAtOnce is how many terminals' worth of wrong guesses a key may have
// at the same time.
const terminalsAtOnce = 10

// takeBack uncounts one reserved guess, in one write with ops. If a condition of theirs does not
// hold that is the error.
func (us *Users) takeBack(ctx context.Context, core tenant.Core, budgets []budget, counts []attempts, ops ...table.Op) error {
	for range tries {
		all := ops
		for _, a := range counts {
			if a.version == 0 { // it was forgotten meanwhile
				continue
			}
			a.Count = max(a.Count-1, 0)
			a.LockedUntil = time.Time{} // it was not locked before this one
			if !a.before.IsZero() {
				a.Since = a.before // a right guess does not keep wrong ones from being forgotten
			}
			op := table.Put(a, table.IfVersion(a.version))
			if a.Count == 0 {
				op = table.Delete(a.key, table.IfVersion(a.version))
			}
			all = append(all[:len(all):len(all)], op)
		}
		if len(all) == 0 {
			return nil
		}
		err := us.Table.Write(ctx, all...)
		if err == nil {
			return nil
		} else if i, failed := table.FailedOp(err); failed && i < len(ops) {
			return err
		} else if !errors.Is(err, problem.ErrConflict) {
			return fmt.Errorf("record the login: %w", err)
		}
		for i, b := range budgets { // others were counted meanwhile
			if counts[i], err = us.attempts(ctx, core, b.who); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("record the login: %w", problem.ErrUnavailable)
}

// Attempts returns how many guesses at the user's PIN are left and, if
// guessing is locked, until when.
func (us *Users) Attempts(ctx context.Context, core tenant.Core, id string) (left int, lockedUntil time.Time, err error) {
	a, err := us.attempts(ctx, core, Subject(id))
	if err != nil {
		return 0, time.Time{}, err
	}
	r := a.answer(core)
	return r.TriesLeft, r.LockedUntil, nil
}

// Unlock forgets the guesses at the user's PIN.
func (us *Users) Unlock(ctx context.Context, core tenant.Core, by audit.Actor, id string) error {
	if _, err := us.Get(ctx, core.Tenant.ID, id); err != nil {
		return err
	}
	err := us.Table.Write(ctx,
		table.Delete(table.AttemptsKey(core.Tenant.ID, Subject(id)), table.Whatever()),
		us.Audit.Op(ctx, core.Tenant.ID, audit.Record{Actor: by, Action: "pin.unlocked", Subject: Subject(id), Outcome: audit.Done}))
	if err != nil {
		return fmt.Errorf("unlock: %w", err)
	}
	return nil
}

// Validate reports a Ref that does not name one user in one way.
func (r Ref) Validate() error {
	n := 0
	for _, name := range []string{r.ID, r.Username, r.ExternalID} {
		if name != "" {
			n++
		}
	}
	if n != 1 {
		return problem.Invalid("reference", "username", "name the user by one of userId, username and externalId, not by %d of them", n)
	}
	return nil
}
