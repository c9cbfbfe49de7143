package wiring

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/user"
)

// nobody is a user's id that no user has.
const nobody = "00000000000000000000000000"

// holders lets users sign in by the mail address that they alone have. It makes as many calls
// for an address that nobody has, or several, as for one of somebody.
func holders(users *user.Users) func(context.Context, table.TenantID, string) (person.Holder, error) {
	return func(ctx context.Context, t table.TenantID, address string) (person.Holder, error) {
		u, err := users.ByMail(ctx, t, address)
		if errors.Is(err, problem.ErrNotFound) || errors.Is(err, problem.ErrState) {
			u, err = users.Get(ctx, t, nobody)
		}
		if err != nil {
			return person.Holder{}, err
		}
		if u.Unreachable() != "" {
			return person.Holder{}, fmt.Errorf("user %w", problem.ErrNotFound)
		}
		return person.Holder{UserID: u.ID, Name: cmp.Or(u.Profile.DisplayName, u.Profile.Username), Mail: u.Profile.Mail}, nil
	}
}
