package credential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// How credentials are found. A credential's item has an entry in each index: list by id,
// history under its holder, and in due either when the sweep has to look at it or, without
// a PIN expiry flag, under its template. What else people ask for has pointers, small items
// of the table itself: one by state and template; with a flag, one by when it expires; and
// one each for label and serial. They are changed in the Write that changes the credential
// and have all that they say in their keys, so they need no versions: an unblock, which
// changes none of that, does not touch them. A page by pointers costs a Get for each
// credential besides.

// word is the longest that a label or serial is searched by, in bytes.
const word = 200

// fold returns the form in which words are compared.
func fold(s string) string {
	s = cases.Fold().String(norm.NFKC.String(strings.TrimSpace(s)))
	if len(s) > word {
		for s = s[:word]; !utf8.ValidString(s); {
			s = s[:len(s)-1]
		}
	}
	return s
}

// words are what a credential is searched by.
func (c Credential) words() []string {
	var words []string
	label, serial := fold(c.Label), fold(c.Serial)
	if label != "" {
		words = append(words, label)
	}
	if serial != "" && serial != label {
		words = append(words, serial)
	}
	return words
}

// disclosed is filed as a state of its own.
const disclosed = "pukDisclosed"

// pointers are the keys of a credential's pointers.
func (c Credential) pointers(t table.TenantID) map[table.Key]bool {
	keys := map[table.Key]bool{}
	if c.ID == "" {
		return keys
	}
	keys[table.CredentialFiledKey(t, string(c.State), c.Template, c.ID)] = true
	if c.HasFlag() && c.State != Retired {
		keys[table.CredentialExpiryKey(t, c.PINExpiresAt, c.ID)] = true
	}
	if !c.PUKDisclosedAt.IsZero() {
		keys[table.CredentialFiledKey(t, disclosed, c.Template, c.ID)] = true
	}
	for _, w := range c.words() {
		keys[table.CredentialWordKey(t, w, c.ID)] = true
	}
	return keys
}

// point returns the ops that leave a credential with the pointers that it is to have.
func point(t table.TenantID, was, is Credential) (ops []table.Op) {
	old, now := was.pointers(t), is.pointers(t)
	for key := range old {
		if !now[key] {
			ops = append(ops, table.Delete(key, table.Whatever()))
		}
	}
	for key := range now {
		if !old[key] {
			ops = append(ops, table.Put(pointer{key, is.ID}, table.Absent()))
		}
	}
	return ops
}

// pointer points to a credential.
type pointer struct {
	key table.Key
	id  string
}

type storedPointer struct {
	ID string `json:"id"`
}

// Validate implements table.Record.
func (pointer) Validate() error { return nil }

// Item implements table.Record.
func (p pointer) Item() (table.Item, error) {
	data, err := json.Marshal(storedPointer{p.id})
	return table.Item{Key: p.key, Data: data}, err
}

// Filter says which credentials are looked for: those that are all that is given. Expired
// and ExpiringBefore are of credentials that are not retired.
type Filter struct {
	Template       string
	Holder         string
	State          State
	Expired        bool      // the PIN has expired
	ExpiringBefore time.Time // the PIN expires before, and has not yet
	WithoutFlag    bool      // of a template that manages expiry or, with Template, of that
	PUKDisclosed   bool      // somebody knows the card's PUK
	Search         string    // label or serial starts with it, whatever the case
	CardID         string    // the card id starts with it, in hex
}

func (f Filter) validate() error {
	var vs problem.Violations
	if f.State != "" && !slices.Contains(States(), f.State) {
		vs.Add("unknown", "state", "must be %s", list(States()))
	}
	if f.WithoutFlag && (f.Expired || !f.ExpiringBefore.IsZero()) {
		vs.Add("inconsistent", "withoutFlag", "goes with no expiry")
	}
	if f.Expired && !f.ExpiringBefore.IsZero() {
		vs.Add("inconsistent", "expired", "goes without expiringWithinDays: a PIN has expired, or is going to")
	}
	if strings.Trim(f.CardID, "0123456789abcdefABCDEF") != "" {
		vs.Add("malformed", "cardId", "must be the beginning of a card's id in hex")
	}
	if f.Search != "" && fold(f.Search) == "" {
		vs.Add("missing", "search", "must have a letter or digit")
	}
	return vs.Err()
}

// matches tells whether a credential that was found is one that is looked for.
func (f Filter) matches(c Credential, now time.Time) bool {
	switch {
	case f.Template != "" && c.Template != f.Template,
		f.Holder != "" && c.Holder != f.Holder,
		f.State != "" && c.State != f.State,
		f.WithoutFlag && (c.HasFlag() || c.State == Retired),
		f.Expired && (!c.Expired(now) || c.State == Retired),
		!f.ExpiringBefore.IsZero() && (!c.HasFlag() || c.State == Retired || c.Expired(now) || !c.PINExpiresAt.Before(f.ExpiringBefore)),
		f.PUKDisclosed && c.PUKDisclosedAt.IsZero(),
		!strings.HasPrefix(c.CardID, strings.ToUpper(f.CardID)):
		return false
	}
	if f.Search == "" {
		return true
	}
	for _, w := range c.words() {
		if strings.HasPrefix(w, fold(f.Search)) {
			return true
		}
	}
	return false
}

// ranges are where the credentials that are looked for are: of all that the filter gives,
// what is likely to be the least.
func (cs *Credentials) ranges(ctx context.Context, t table.TenantID, f Filter) ([]table.Range, error) {
	switch {
	case f.Holder != "":
		return []table.Range{table.CredentialsHeld(t, f.Holder)}, nil
	case f.Search != "":
		return table.CredentialsWithWord(t, fold(f.Search)), nil
	case f.CardID != "":
		var rs []table.Range
		for _, family := range card.Families() {
			rs = append(rs, table.CredentialsByCard(t, strings.ToLower(family.Name+"-"+f.CardID))...)
		}
		return rs, nil
	case f.PUKDisclosed:
		return table.CredentialsFiled(t, disclosed, f.Template), nil
	case f.WithoutFlag && f.Template != "":
		return table.CredentialsUnflagged(t, f.Template), nil
	case f.WithoutFlag:
		all, err := cs.Templates(ctx, t)
		var rs []table.Range
		for _, tmpl := range all {
			if tmpl.ManagesExpiry() {
				rs = append(rs, table.CredentialsUnflagged(t, tmpl.ID)...)
			}
		}
		return rs, err
	case f.Expired:
		return table.CredentialsExpiring(t, time.Time{}, cs.Now().Add(time.Second)), nil
	case !f.ExpiringBefore.IsZero():
		return table.CredentialsExpiring(t, cs.Now(), f.ExpiringBefore.Add(time.Second)), nil
	case f.State != "":
		return table.CredentialsFiled(t, string(f.State), f.Template), nil
	case f.Template != "":
		var rs []table.Range
		for _, s := range States() {
			rs = append(rs, table.CredentialsFiled(t, string(s), f.Template)...)
		}
		return rs, nil
	}
	return table.Credentials(t), nil
}

// read bounds the credentials that one Find reads, as a multiple of its limit: where the
// filter gives more than the place where they are read tells, most may not match.
const read = 10

// Find returns up to limit credentials that match, beyond the place given ("" is the
// start), and the place to go on from, "" if there are no more. Those of a template, a
// state, a holder, without flag, expired, expiring or searched are read from where only
// they are; a filter that gives several of these reads one and leaves out what does not
// match the others, at most ten times the limit: fewer than limit, or none, does not mean
// that there are no more. Without flag, and by expiry, the order is theirs, else by id or
// word.
func (cs *Credentials) Find(ctx context.Context, t table.TenantID, f Filter, beyond string, limit int) ([]Credential, string, error) {
	if err := f.validate(); err != nil {
		return nil, "", err
	}
	ranges, err := cs.ranges(ctx, t, f)
	if err != nil {
		return nil, "", fmt.Errorf("find credentials: %w", err)
	}
	for _, r := range ranges {
		if r.Spec().Validate() != nil { // longer than any id
			return nil, "", nil
		}
	}
	if len(ranges) == 0 {
		return nil, "", nil
	}
	var found []Credential
	for range read {
		page, next, err := table.Merge(ctx, cs.Table, ranges, limit, beyond)
		if err != nil {
			return nil, "", fmt.Errorf("find credentials: %w", err)
		}
		all, err := cs.pointedAt(ctx, t, page.Items)
		if err != nil {
			return nil, "", err
		}
		for i, c := range all {
			place := ranges[0].Place(page.Items[i])
			if c.ID == "" || !f.matches(c, cs.Now()) || f.Search != "" && !c.first(place, fold(f.Search)) {
				continue
			}
			if found = append(found, c); len(found) == limit {
				if i == len(all)-1 {
					return found, next, nil
				}
				return found, place, nil
			}
		}
		if beyond = next; next == "" {
			break
		}
	}
	return found, beyond, nil
}

// Count returns how many credentials there are of a state, or without flag, which f gives and
// nothing besides; up to limit, beyond which it says that there are more.
func (cs *Credentials) Count(ctx context.Context, t table.TenantID, f Filter, limit int) (n int, more bool, _ error) {
	if f != (Filter{State: f.State}) && f != (Filter{WithoutFlag: true}) || f == (Filter{}) {
		return 0, false, errors.New("count credentials: only of a state, or without flag")
	}
	ranges, err := cs.ranges(ctx, t, f)
	if err != nil || len(ranges) == 0 {
		return 0, false, err
	}
	page, next, err := table.Merge(ctx, cs.Table, ranges, limit, "")
	if err != nil {
		return 0, false, fmt.Errorf("count credentials: %w", err)
	}
	return len(page.Items), next != "", nil
}

// first tells whether a pointer is that of the first word that starts with a prefix, so
// that a credential of which two do is found once.
func (c Credential) first(place, prefix string) bool {
	least := ""
	for _, w := range c.words() {
		key := table.CredentialWordKey("t", w, c.ID).Sort()
		if strings.HasPrefix(w, prefix) && (least == "" || key < least) {
			least = key
		}
	}
	return place == least
}

// pointedAt returns the credentials of items that are credentials or pointers to them, the
// zero Credential for one that is gone.
func (cs *Credentials) pointedAt(ctx context.Context, t table.TenantID, items []table.Item) ([]Credential, error) {
	all := make([]Credential, len(items))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, item := range items {
		var p storedPointer
		if err := item.Decode(&p); err != nil {
			return nil, err
		}
		if p.ID == "" {
			var err error
			if all[i], err = decode(item); err != nil {
				return nil, err
			}
			continue
		}
		g.Go(func() (err error) {
			if all[i], err = cs.Get(ctx, t, p.ID); errors.Is(err, problem.ErrNotFound) {
				return nil
			}
			return err
		})
	}
	return all, g.Wait()
}
