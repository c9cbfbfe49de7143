package credential

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/bits"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// The PIN expiry sanity check finds cards whose template has server-managed PIN expiry and
// that have no PIN expiry flag, such as those that came from another system. All that it
// does costs by the number of such cards, not of all.

// Spread is which days the flags are set to: the template's validity after the day of the
// plan or, if it is random, any of the days around that, each as likely.
type Spread struct {
	Random        bool
	Before, After int  // days around the validity
	Cap           *int // the most flags of a run on a day; nil for any number
}

const (
	maxAround        = 365 // days before and after
	maxSanityChosen  = 50  // templates of a plan that somebody makes
	sanitySeedLength = 16  // bytes
)

// Validate reports everything that is wrong with a spread.
func (s Spread) Validate() error {
	var vs problem.Violations
	for _, f := range []struct {
		name string
		days int
	}{{"beforeDays", s.Before}, {"afterDays", s.After}} {
		if f.days < 0 || f.days > maxAround {
			vs.Add("range", f.name, "must be 0 to %d", maxAround)
		} else if f.days != 0 && !s.Random {
			vs.Add("inconsistent", f.name, "is for dates at random")
		}
	}
	if s.Cap != nil && *s.Cap < 1 {
		vs.Add("range", "dailyCap", "must be 1 or more; leave it out for no cap")
	}
	return vs.Err()
}

// window returns the days of a template with so many days of validity, counted from the
// day of the plan.
func (s Spread) window(valid int) (first, last int) { return valid - s.Before, valid + s.After }

// dice gives each card a day, uniform over a window: by a keyed hash, so that the seed
// gives the same day again, whatever the other cards and their order.
type dice struct{ mac hash.Hash }

func newDice(seed []byte) dice { return dice{hmac.New(sha256.New, seed)} }

// roll returns a number of 0 to n-1. Its bias is below n/2^64.
func (d dice) roll(id string, n int) int {
	d.mac.Reset()
	_, _ = d.mac.Write([]byte(id))
	hi, _ := bits.Mul64(binary.BigEndian.Uint64(d.mac.Sum(nil)), uint64(n))
	return int(hi)
}

// quota is how many cards of a template get each day of its window.
type quota struct {
	first int // day, counted from that of the plan
	cards []int
}

func (q quota) has(day int) bool { return day >= q.first && day < q.first+len(q.cards) }

func (q quota) sum() (n int) {
	for _, c := range q.cards {
		n += c
	}
	return n
}

// level moves cards from days that have more than most, of all quotas together, to the
// nearest days of their windows that have room. It returns how many fit nowhere; if that
// is 0 the quotas are level. It leaves some over only if no arrangement holds all: when a
// window is full, cards that can move elsewhere make room.
func level(qs []quota, most int) (left int) {
	l := leveller{qs: qs, most: most, total: map[int]int{}}
	for _, q := range qs {
		for i, n := range q.cards {
			l.total[q.first+i] += n
		}
	}
	// The widest windows give way first, and the narrowest choose first.
	byWidth := make([]int, len(qs))
	for i := range qs {
		byWidth[i] = i
	}
	slices.SortStableFunc(byWidth, func(a, b int) int { return cmp.Compare(len(qs[a].cards), len(qs[b].cards)) })
	over := make([][]int, len(qs))
	for _, i := range slices.Backward(byWidth) {
		over[i] = make([]int, len(qs[i].cards))
		for d := range qs[i].cards {
			n := min(qs[i].cards[d], max(0, l.total[qs[i].first+d]-most))
			over[i][d] = n
			l.add(i, qs[i].first+d, -n)
		}
	}
	for _, i := range byWidth {
		for d, n := range over[i] {
			for n > 0 {
				day, ok := l.nearest(qs[i], qs[i].first+d)
				if !ok {
					break
				}
				k := min(n, most-l.total[day])
				l.add(i, day, k)
				n -= k
			}
			for n > 0 {
				k := l.push(i, n)
				if k == 0 {
					break
				}
				n -= k
			}
			left += n
		}
	}
	return left
}

type leveller struct {
	qs    []quota
	most  int
	total map[int]int // by day
}

func (l *leveller) add(i, day, n int) {
	l.qs[i].cards[day-l.qs[i].first] += n
	l.total[day] += n
}

// nearest returns the day of a window with room that is nearest to the one given; of two,
// that with more room.
func (l *leveller) nearest(q quota, day int) (int, bool) {
	for k := range len(q.cards) {
		best, room := 0, 0
		for _, d := range []int{day - k, day + k} {
			if r := l.most - l.total[d]; q.has(d) && r > room {
				best, room = d, r
			}
		}
		if room > 0 {
			return best, true
		}
	}
	return 0, false
}

// push makes room for up to n cards of a quota whose window is full, by moving others along
// a chain of days that ends at one with room, and puts them there. It returns how many.
func (l *leveller) push(i, n int) int {
	type step struct{ from, of int } // cards of a quota move on from a day
	came := map[int]step{}
	moved := make([]bool, len(l.qs))
	var queue []int
	reach := func(q quota, s step) {
		for d := range q.cards {
			if _, seen := came[q.first+d]; !seen {
				came[q.first+d] = s
				queue = append(queue, q.first+d)
			}
		}
	}
	start := step{of: -1}
	moved[i] = true
	reach(l.qs[i], start)
	for ; len(queue) > 0; queue = queue[1:] {
		day := queue[0]
		if room := l.most - l.total[day]; room > 0 {
			n = min(n, room)
			for d := day; came[d] != start; d = came[d].from {
				s := came[d]
				n = min(n, l.qs[s.of].cards[s.from-l.qs[s.of].first])
			}
			for day = queue[0]; came[day] != start; day = came[day].from {
				s := came[day]
				l.add(s.of, day, n)
				l.add(s.of, s.from, -n)
			}
			l.add(i, day, n)
			return n
		}
		for u, q := range l.qs {
			if !moved[u] && q.has(day) && q.cards[day-q.first] > 0 {
				moved[u] = true
				reach(q, step{day, u})
			}
		}
	}
	return 0
}

// fit levels quotas, or says what cap would do.
func fit(qs []quota, most int) error {
	if level(cloneQuotas(qs), most) == 0 {
		level(qs, most)
		return nil
	}
	all := 0
	for _, q := range qs {
		all += q.sum()
	}
	possible := most + 1 + sort.Search(all-most-1, func(n int) bool { return level(cloneQuotas(qs), most+1+n) == 0 })
	return problem.Invalid("tooLow", "dailyCap", "leaves %d of %d cards without a date: their days hold no more. A cap of %d would hold all; so may more days before and after, or fewer templates",
		level(cloneQuotas(qs), most), all, possible)
}

func cloneQuotas(qs []quota) []quota {
	out := make([]quota, len(qs))
	for i, q := range qs {
		out[i] = quota{q.first, slices.Clone(q.cards)}
	}
	return out
}

// take returns the day for a card that the dice gave a day, and counts it: that day or,
// where levelling has moved cards, the nearest that the quota has left. False: it has none
// left, for the card was not there when the plan was made.
func (q quota) take(wanted int) (int, bool) {
	for k := range len(q.cards) {
		for _, d := range []int{wanted - k, wanted + k} {
			if q.has(d) && q.cards[d-q.first] > 0 {
				q.cards[d-q.first]--
				return d, true
			}
		}
	}
	return 0, false
}

// beginning returns when a day begins: so many days after the one given, in its place. A
// flag for a day is set to that, as one that is imported with a date.
func beginning(today time.Time, days int) time.Time {
	y, m, d := today.AddDate(0, 0, days).Date()
	noon := time.Date(y, m, d, 12, 0, 0, 0, today.Location())
	at := time.Date(y, m, d, 0, 0, 0, 0, today.Location())
	for at.Day() != noon.Day() { // clocks went forward at midnight
		at = at.Add(15 * time.Minute)
	}
	return at
}

// CheckSupport returns problem.ErrForbidden if the tenant's support functions are off.
func CheckSupport(core tenant.Core) error {
	if !core.Tenant.Settings.SupportFunctions {
		return fmt.Errorf("%w: the tenant's support functions are off; turn on supportFunctions in the settings first", problem.ErrForbidden)
	}
	return nil
}

// WithoutFlag is how many cards of a template have no PIN expiry flag.
type WithoutFlag struct {
	Template Template
	Cards    int
	AtLeast  bool // there was no time to count them all
}

// CountWithoutFlag counts the cards without a flag of each template with server-managed
// expiry, by name of template, for as long as it may.
func (cs *Credentials) CountWithoutFlag(ctx context.Context, t table.TenantID, most time.Duration) ([]WithoutFlag, error) {
	all, err := cs.Templates(ctx, t)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(t Template) bool { return !t.ManagesExpiry() })
	slices.SortStableFunc(all, func(a, b Template) int { return cmp.Compare(a.Name, b.Name) })
	enough, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	counts := make([]WithoutFlag, len(all))
	for i, tmpl := range all {
		ranges := table.CredentialsUnflagged(t, tmpl.ID)
		counted, short := make([]int, len(ranges)), make([]bool, len(ranges))
		g, ctx := errgroup.WithContext(ctx)
		for j, r := range ranges {
			g.Go(func() error {
				for more := true; more; {
					if short[j] = enough.Err() != nil; short[j] {
						return nil
					}
					page, err := cs.Table.Query(ctx, r)
					if err != nil {
						return fmt.Errorf("count cards without a flag: %w", err)
					}
					counted[j] += len(page.Items)
					if more = page.More && len(page.Items) > 0; more {
						r = r.Beyond(r.Place(page.Items[len(page.Items)-1]))
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		counts[i] = WithoutFlag{Template: tmpl, AtLeast: slices.Contains(short, true)}
		for _, n := range counted {
			counts[i].Cards += n
		}
	}
	return counts, nil
}

var sanityColumns = []string{"credential", "cardId", "family", "template", "templateName", "holder", "label", "serial", "state", "createdAt"}

// SanityColumns are those of the list of cards without a flag.
func SanityColumns() []string { return slices.Clone(sanityColumns) }

// SanityRow returns a card's cells of that list. names are those of templates, by id.
func SanityRow(c Credential, names map[string]string) []string {
	return []string{c.ID, c.CardID, c.Family, c.Template, names[c.Template], c.Holder, c.Label, c.Serial, string(c.State), c.CreatedAt.UTC().Format(time.RFC3339)}
}

// inert returns a cell that a spreadsheet does not take for a formula.
func inert(cell string) string {
	if cell != "" && strings.ContainsRune("=+-@\t\r\n＝＋－＠", []rune(cell)[0]) {
		return "'" + cell
	}
	return cell
}

// WriteCSV writes credentials as CSV (RFC 4180), one a record, under a header if that is
// wanted. names are those of templates, by id. Cells that a spreadsheet would take for
// formulas begin with an apostrophe.
func WriteCSV(w io.Writer, all []Credential, names map[string]string, header bool) error {
	out := csv.NewWriter(w)
	out.UseCRLF = true
	if header {
		_ = out.Write(sanityColumns)
	}
	for _, c := range all {
		row := SanityRow(c, names)
		for i := range row {
			row[i] = inert(row[i])
		}
		_ = out.Write(row)
	}
	out.Flush()
	return out.Error()
}

// WriteText writes credentials as lines to paste, with tabs between what is known of each.
// The cells are those of WriteCSV.
func WriteText(w io.Writer, all []Credential, names map[string]string, header bool) error {
	var b strings.Builder
	if header {
		b.WriteString(strings.Join(sanityColumns[1:], "\t") + "\n")
	}
	for _, c := range all {
		row := SanityRow(c, names)[1:]
		for i := range row {
			row[i] = inert(row[i])
		}
		b.WriteString(strings.Join(row, "\t") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// seedOf reads a seed, or makes one if it is "".
func seedOf(text string, rand io.Reader) (string, error) {
	if text == "" {
		seed := make([]byte, sanitySeedLength)
		if _, err := io.ReadFull(rand, seed); err != nil {
			return "", fmt.Errorf("make a seed: %w", err)
		}
		return hex.EncodeToString(seed), nil
	}
	seed, err := hex.DecodeString(text)
	if err != nil || len(seed) != sanitySeedLength {
		return "", problem.Invalid("malformed", "seed", "must be %d hex digits, as a run shows it; leave it out for a new one", 2*sanitySeedLength)
	}
	return hex.EncodeToString(seed), nil
}

// chosen returns the templates that a plan names, and adds to vs what is wrong with them.
func (cs *Credentials) chosen(ctx context.Context, t table.TenantID, ids []string, s Spread, vs *problem.Violations) ([]Template, error) {
	if len(ids) == 0 || len(ids) > maxSanityChosen {
		vs.Add("count", "templates", "must name 1 to %d templates", maxSanityChosen)
		return nil, nil
	}
	var all []Template
	for i, id := range ids {
		field := fmt.Sprintf("templates.%d", i)
		if slices.Contains(ids[:i], id) {
			vs.Add("repeated", field, "is there already")
			continue
		}
		tmpl, err := cs.Template(ctx, t, id)
		var invalid *problem.InvalidError
		switch {
		case errors.Is(err, problem.ErrNotFound), errors.As(err, &invalid):
			vs.Add("unknown", field, "is not a credential template")
		case err != nil:
			return nil, err
		case !tmpl.ManagesExpiry():
			vs.Add("inconsistent", field, "has no server-managed PIN expiry; set its pinValidDays first")
		case s.Random && s.Before >= tmpl.PINValidDays:
			vs.Add("range", "beforeDays", "must be less than the validity of %q, which is %d days", tmpl.Name, tmpl.PINValidDays)
		default:
			all = append(all, tmpl)
		}
	}
	return all, nil
}
