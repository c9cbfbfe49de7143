package user

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
)

// operations are all that users go through. In each one's world there are Ada
// with pinA and Bob with pinB, who identify and expire.
var operations = []struct {
	name    string
	prepare func(w *world, ada User) User // what the operation is about; nil leaves Ada
	run     func(ctx context.Context, us *Users, w *world, ada User) error
	done    func(w *world, ada User) bool // after success the world is so
}{
	{"Create with PIN", nil,
		func(ctx context.Context, us *Users, w *world, _ User) error {
			_, err := us.Create(ctx, w.core, admin, profile("carol"), given(pinC))
			return err
		},
		func(w *world, _ User) bool { return w.verify("carol", pinC).Right }},
	{"Update with PIN", nil,
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.Update(ctx, w.core, admin, ada.ID, 0, func(p *Profile) { *p = profile("carol") }, given(pinC))
			return err
		},
		func(w *world, ada User) bool { return w.verify("carol", pinC).User.ID == ada.ID }},
	{"SetPIN", nil,
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.SetPIN(ctx, w.core, admin, ada.ID, secret.New(pinC))
			return err
		},
		func(w *world, _ User) bool { return w.identify("lobby", pinC).Right }},
	{"SetPIN by the person", nil,
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.SetPIN(ctx, w.core, audit.Actor{Kind: audit.Self, ID: ada.ID}, ada.ID, secret.New(pinC))
			return err
		},
		func(w *world, _ User) bool { return w.identify("lobby", pinC).Right }},
	{"SetPIN taken, by the person", nil,
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.SetPIN(ctx, w.core, audit.Actor{Kind: audit.Self, ID: ada.ID}, ada.ID, secret.New(pinB))
			if objections(err) != nil && !errors.Is(err, tabletest.ErrFault) {
				return nil // it is what has to come of it
			}
			return err
		},
		func(w *world, ada User) bool { return w.identify("lobby", pinA).User.ID == ada.ID }},
	{"GeneratePIN", nil,
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, _, err := us.GeneratePIN(ctx, w.core, admin, ada.ID, pin.GenerateOptions{Length: 8})
			return err
		},
		func(w *world, _ User) bool { return !w.identify("lobby", pinA).Right }},
	{"DeletePIN", nil,
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.DeletePIN(ctx, w.core, admin, ada.ID)
			return err
		},
		func(w *world, ada User) bool { return w.reread(ada).PIN.State(w.Now()) == NoPIN }},
	{"IssuePIN", nil,
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.IssuePIN(ctx, w.core, admin, ada.ID, Issue{Options: pin.GenerateOptions{Length: 8}})
			return err
		},
		func(w *world, ada User) bool { return w.reread(ada).Pending.Waits() && w.verify("ada", pinA).Right }},
	{"SendIssued",
		func(w *world, ada User) User { return w.issue(ada, Issue{Options: pin.GenerateOptions{Length: 8}}) },
		func(ctx context.Context, us *Users, w *world, ada User) error {
			w.pass(sendLease) // of a try before
			return us.SendIssued(ctx, w.core, w.post, w.reread(ada))[0].Err
		},
		func(w *world, _ User) bool { return w.identify("lobby", pinIn(w.post.mails[0])).Right }},
	{"RequireChange", nil,
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.RequireChange(ctx, w.core, admin, ada.ID)
			return err
		},
		func(w *world, _ User) bool { return w.identify("lobby", pinA).ChangeRequired }},
	{"Verify a PIN for one use",
		func(w *world, ada User) User {
			w.send(w.post, w.issue(ada, Issue{OneTime: DeletedByUse}))
			return ada
		},
		func(ctx context.Context, us *Users, w *world, _ User) error {
			_, err := us.Verify(ctx, w.core, admin, Ref{Username: "ada"}, secret.New(pinIn(w.post.mails[0])))
			return err
		},
		func(w *world, ada User) bool { return w.reread(ada).PIN.Deleted == "used" }},
	{"Identify by a PIN for one use",
		func(w *world, ada User) User {
			w.send(w.post, w.issue(ada, Issue{OneTime: DeletedByUse}))
			return ada
		},
		func(ctx context.Context, us *Users, w *world, _ User) error {
			_, err := us.Identify(ctx, w.core, admin, "lobby", secret.New(pinIn(w.post.mails[0])))
			return err
		},
		func(w *world, ada User) bool { return w.reread(ada).PIN.Deleted == "used" }},
	{"Verify right", nil, guessing("ada", pinA, true), untouched},
	{"Verify wrong", nil, guessing("ada", pinC, false), untouched},
	{"Verify unknown", nil, guessing("nobody", pinA, false), untouched},
	{"Identify right", nil, identifying(pinA, true), untouched},
	{"Identify wrong", nil, identifying(pinC, false), untouched},
	{"Unlock",
		func(w *world, ada User) User {
			for range 5 {
				w.verify("ada", pinC)
			}
			return ada
		},
		func(ctx context.Context, us *Users, w *world, ada User) error {
			return us.Unlock(ctx, w.core, admin, ada.ID)
		},
		untouched},
	{"Delete", nil,
		func(ctx context.Context, us *Users, w *world, ada User) error {
			return us.Delete(ctx, w.core, admin, ada.ID)
		},
		func(w *world, ada User) bool {
			_, err := w.Get(w.Context(), acme, ada.ID)
			return errors.Is(err, problem.ErrNotFound)
		}},
	{"ExpirePIN",
		func(w *world, ada User) User { w.pass(48 * time.Hour); return ada },
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.ExpirePIN(ctx, w.core, sweep, ada)
			return err
		},
		func(w *world, ada User) bool { return w.reread(ada).PIN.Deleted == "expired" }},
	{"ClaimNotice",
		func(w *world, ada User) User { w.pass(24 * time.Hour); return ada },
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, _, err := us.ClaimNotice(ctx, w.core, sweep, ada, time.Minute)
			return err
		},
		func(w *world, ada User) bool { return w.reread(ada).PIN.Notice.State == NoticeClaimed }},
	{"PostponeNotice",
		func(w *world, ada User) User { w.pass(24 * time.Hour); return ada },
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.PostponeNotice(ctx, w.core, sweep, ada, w.Now().Add(time.Hour), "noMessaging")
			return err
		},
		func(w *world, ada User) bool { return w.reread(ada).PIN.Notice.Reason == "noMessaging" }},
	{"SkipNotice",
		func(w *world, ada User) User { w.pass(24 * time.Hour); return ada },
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.SkipNotice(ctx, w.core, sweep, ada, ReasonNoAddress)
			return err
		},
		func(w *world, ada User) bool { return w.reread(ada).PIN.Notice.State == NoticeSkipped }},
	{"MailFailed", nil,
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.MailFailed(ctx, w.core, sweep, ada.ID, ada.Profile.Mail, w.Now(), MailProblem{Kind: MailBounced, At: w.Now(), Code: "x"})
			return err
		},
		func(w *world, ada User) bool { return w.reread(ada).MailProblem.Kind == MailBounced }},
	{"ClearMailProblem",
		func(w *world, ada User) User {
			must(w.MailFailed(w.Context(), w.core, sweep, ada.ID, ada.Profile.Mail, w.Now(), MailProblem{Kind: MailBounced, At: w.Now(), Code: "x"}))(w)
			return ada
		},
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.ClearMailProblem(ctx, w.core, admin, ada.ID)
			return err
		},
		func(w *world, ada User) bool { return w.reread(ada).Unreachable() == "" }},
	{"MarkNotice",
		func(w *world, ada User) User {
			w.pass(24 * time.Hour)
			return claim(w, ada)
		},
		func(ctx context.Context, us *Users, w *world, ada User) error {
			_, err := us.MarkNotice(ctx, w.core, sweep, ada, Delivery{State: NoticeSent})
			return err
		},
		func(w *world, ada User) bool { return w.reread(ada).PIN.Notice.State == NoticeSent }},
}

func guessing(name, guess string, right bool) func(context.Context, *Users, *world, User) error {
	return func(ctx context.Context, us *Users, w *world, _ User) error {
		r, err := us.Verify(ctx, w.core, admin, Ref{Username: name}, secret.New(guess))
		if r.Right != (right && err == nil) {
			return fmt.Errorf("right: %v, with %w", r.Right, err)
		}
		return err
	}
}

func identifying(guess string, right bool) func(context.Context, *Users, *world, User) error {
	return func(ctx context.Context, us *Users, w *world, _ User) error {
		r, err := us.Identify(ctx, w.core, admin, "lobby", secret.New(guess))
		if r.Right != (right && err == nil) {
			return fmt.Errorf("right: %v, with %w", r.Right, err)
		}
		return err
	}
}

func untouched(w *world, ada User) bool {
	return w.verify("ada", pinA).Right && w.identify("desk", pinA).User.ID == ada.ID
}

// named tells whether the edge has a name for the error.
func named(err error) bool {
	var invalid *problem.InvalidError
	var limit *problem.LimitError
	for _, name := range []error{problem.ErrNotFound, problem.ErrConflict, problem.ErrState, problem.ErrUnavailable} {
		if errors.Is(err, name) {
			return true
		}
	}
	return errors.As(err, &invalid) || errors.As(err, &limit)
}

// Each operation is run with each of its table calls failing, before the call
// or after it took effect: the caller is told, nothing is half done, and the
// same again ends well or in an error that has a name.
func TestFaults(t *testing.T) {
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			calls := 0
			for _, after := range []bool{false, true} {
				for n := 1; ; n++ {
					w, _ := newMailWorld(t, pinOnly, expiring)
					ada := w.user("ada", pinA)
					w.user("bob", pinB)
					if op.prepare != nil {
						ada = op.prepare(w, ada)
					}
					faulty := tabletest.Fail(w.Table, n, after)
					us := *w.Users
					us.Table = faulty

					err := op.run(t.Context(), &us, w, ada)
					hit := faulty.Calls() >= n
					if hit != errors.Is(err, tabletest.ErrFault) || !hit && err != nil {
						t.Errorf("call %d of %d, after %v: %v", n, faulty.Calls(), after, err)
					}
					w.checkAll()
					if hit {
						if err = op.run(t.Context(), w.Users, w, ada); err != nil && !named(err) {
							t.Errorf("once more, after call %d, after %v: %v", n, after, err)
						}
						w.checkAll()
					}
					if !op.done(w, ada) {
						t.Errorf("in the end, after call %d, after %v: it is not done", n, after)
					}
					if !hit {
						calls = n - 1
						break
					}
				}
			}
			if calls < 1 {
				t.Error("it made no call of the table")
			}
		})
	}
}

func (w *world) checkAll() {
	w.Helper()
	w.check([]string{"ada", "bob", "carol"}, []string{pinA, pinB, pinC})
}

// Where others change the same user all the time, an operation gives up with a
// conflict rather than go on for ever, and has changed nothing.
func TestAlwaysOvertaken(t *testing.T) {
	for _, op := range operations {
		switch op.name {
		case "Update with PIN", "SetPIN", "GeneratePIN", "DeletePIN", "Delete", "IssuePIN", "RequireChange":
		default:
			continue
		}
		w, _ := newMailWorld(t, pinOnly, expiring)
		ada := w.user("ada", pinA)
		us := *w.Users
		turns := 0
		us.Table = overtaking{w.Table, func() {
			turns++
			must(w.Update(t.Context(), w.core, admin, ada.ID, 0, func(p *Profile) { p.DisplayName = fmt.Sprint("Ada ", turns) }, nil))(t)
		}}
		if err := op.run(t.Context(), &us, w, ada); !errors.Is(err, problem.ErrConflict) {
			t.Errorf("%s: %v", op.name, err)
		}
		w.checkAll()
		if !untouched(w, ada) {
			t.Errorf("%s: she has another PIN", op.name)
		}
	}
}

// overtaking is a table on which somebody else is always faster.
type overtaking struct {
	table.Table
	first func()
}

func (o overtaking) Write(ctx context.Context, ops ...table.Op) error {
	o.first()
	return o.Table.Write(ctx, ops...)
}
