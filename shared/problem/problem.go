// Package problem names the ways in which Pinward's operations fail. There are
// few of them, callers tell them apart with errors.Is and errors.As, and one
// function at the edge turns them into answers; everything else is an internal
// error that is logged there and never shown.
package problem

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	// ErrNotFound: there is no such thing, or it is another tenant's; the two
	// are the same answer.
	ErrNotFound = errors.New("not found")
	// ErrConflict: somebody changed it meanwhile, or its name is taken.
	ErrConflict = errors.New("conflict")
	// ErrForbidden: the caller is known but may not do this.
	ErrForbidden = errors.New("forbidden")
	// ErrUnauthenticated: the caller's key is missing, wrong, expired or revoked.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrState: it cannot be done in the present state.
	ErrState = errors.New("not possible in this state")
	// ErrUnavailable: a part that is needed did not answer; the same call may
	// succeed later.
	ErrUnavailable = errors.New("temporarily unavailable")
)

// Violation is one thing wrong with an input.
type Violation struct {
	Code   string // stable, for programs: "sequential", "tooShort"
	Field  string // where, in the caller's names: "pin", "policy.minLength"
	Reason string // what is wrong and what would be right, for people; never a secret
}

// InvalidError reports every violation of an input at once.
type InvalidError struct{ Violations []Violation }

// Error implements error.
func (e *InvalidError) Error() string {
	parts := make([]string, len(e.Violations))
	for i, v := range e.Violations {
		parts[i] = fmt.Sprintf("%s: %s", v.Field, v.Reason)
	}
	return "invalid: " + strings.Join(parts, "; ")
}

// Violations collects what is wrong with an input while it is checked.
type Violations []Violation

// Add appends a violation whose reason is formatted like fmt.Sprintf.
func (vs *Violations) Add(code, field, reason string, args ...any) {
	*vs = append(*vs, Violation{code, field, fmt.Sprintf(reason, args...)})
}

// Merge appends the violations in err, if it is an InvalidError, and returns
// any other error.
func (vs *Violations) Merge(err error) error {
	var inv *InvalidError
	if errors.As(err, &inv) {
		*vs = append(*vs, inv.Violations...)
		return nil
	}
	return err
}

// Under appends the violations in err, if it is an InvalidError, with their
// fields put under the given one, and any other error as a single violation.
func (vs *Violations) Under(field string, err error) {
	if err == nil {
		return
	}
	var inv *InvalidError
	if !errors.As(err, &inv) {
		vs.Add("invalid", field, "%v", err)
		return
	}
	for _, v := range inv.Violations {
		v.Field = field + "." + v.Field
		*vs = append(*vs, v)
	}
}

// Err returns an InvalidError, or nil if nothing was wrong.
func (vs Violations) Err() error {
	if len(vs) == 0 {
		return nil
	}
	return &InvalidError{vs}
}

// Invalid returns an InvalidError with one violation.
func Invalid(code, field, reason string, args ...any) error {
	var vs Violations
	vs.Add(code, field, reason, args...)
	return vs.Err()
}

// LimitError says that the caller did something too often and when it may
// try again.
type LimitError struct {
	Code   string // "locked", "rateLimited"
	Reason string // for people
	Until  time.Time
}

// Error implements error.
func (e *LimitError) Error() string {
	return fmt.Sprintf("%s until %s", e.Reason, e.Until.UTC().Format(time.RFC3339))
}
