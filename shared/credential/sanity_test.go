package credential

import (
	"encoding/csv"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSpread(t *testing.T) {
	for name, c := range map[string]struct {
		spread Spread
		want   []string
	}{
		"exact":               {Spread{}, nil},
		"random":              {Spread{Random: true, Before: 3, After: 3}, nil},
		"at random on a day":  {Spread{Random: true}, nil},
		"with a cap":          {Spread{Cap: number(1)}, nil},
		"negative":            {Spread{Random: true, Before: -1, After: -1}, []string{"beforeDays:range", "afterDays:range"}},
		"too wide":            {Spread{Random: true, Before: 366, After: 366}, []string{"beforeDays:range", "afterDays:range"}},
		"days of exact dates": {Spread{Before: 1, After: 1}, []string{"beforeDays:inconsistent", "afterDays:inconsistent"}},
		"cap 0":               {Spread{Cap: number(0)}, []string{"dailyCap:range"}},
		"cap below 0":         {Spread{Cap: number(-7)}, []string{"dailyCap:range"}},
	} {
		if d := cmp.Diff(c.want, objections(c.spread.Validate())); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// Validity 100, 3 before and 3 after: each of 97 to 103, equally likely.
func TestDice(t *testing.T) {
	first, last := Spread{Random: true, Before: 3, After: 3}.window(100)
	if first != 97 || last != 103 {
		t.Fatalf("the window is %d to %d, want 97 to 103", first, last)
	}
	// Critical values of chi-square at p = 0.001; the seeds are fixed, so the test is not
	// flaky. Ids are as like each other as cards' of one delivery.
	for _, c := range []struct {
		days int
		most float64
	}{{7, 22.46}, {31, 59.70}, {365, 454.2}} {
		for s := range 3 {
			seed := []byte(fmt.Sprintf("seed %010d!", s))
			const n = 100_000
			counts := make([]int, c.days)
			d := newDice(seed)
			for i := range n {
				counts[d.roll(fmt.Sprintf("piv-%032x", i), c.days)]++
			}
			chi, want := 0.0, float64(n)/float64(c.days)
			for _, k := range counts {
				chi += (float64(k) - want) * (float64(k) - want) / want
			}
			t.Logf("%d cards over %d days, seed %d: chi-square %.1f, critical %.1f", n, c.days, s, chi, c.most)
			if chi > c.most {
				t.Errorf("%d days, seed %d: chi-square is %.1f, above %.1f", c.days, s, chi, c.most)
			}
		}
	}
	a, b := newDice([]byte("a")), newDice([]byte("b"))
	same := 0
	for i := range 7000 {
		id := fmt.Sprint("piv-", i)
		if a.roll(id, 7) != newDice([]byte("a")).roll(id, 7) {
			t.Fatal("one seed gives a card two days")
		}
		if a.roll(id, 7) == b.roll(id, 7) {
			same++
		}
	}
	if same < 800 || same > 1200 {
		t.Errorf("two seeds give %d of 7000 cards the same day, want about 1000", same)
	}
}

func TestLevel(t *testing.T) {
	for _, c := range []struct {
		name string
		qs   []quota
		most int
		want [][]int
		left int
	}{
		{"nothing to do", []quota{{97, []int{3, 2, 3}}}, 3, [][]int{{3, 2, 3}}, 0},
		{"to the nearest day", []quota{{97, []int{0, 9, 1, 0, 0}}}, 5, [][]int{{4, 5, 1, 0, 0}}, 0},
		{"within the window", []quota{{97, []int{9, 0, 0}}}, 3, [][]int{{3, 3, 3}}, 0},
		{"full", []quota{{97, []int{9, 1, 0}}}, 3, [][]int{{3, 3, 3}}, 1},
		{"over all templates", []quota{{97, []int{2, 0, 0}}, {97, []int{2, 0, 0}}}, 2, [][]int{{2, 0, 0}, {0, 2, 0}}, 0},
		// The first can go to day 2 or 3, the second to 3 or 4: who is on 3 has to move on.
		{"one makes room for another", []quota{{2, []int{5, 0}}, {3, []int{2, 0}}}, 3, [][]int{{3, 2}, {1, 1}}, 0},
		{"a chain", []quota{{1, []int{2, 0}}, {2, []int{1, 0}}, {3, []int{1, 0}}, {4, []int{1, 0}}}, 1, [][]int{{1, 1}, {0, 1}, {0, 1}, {0, 1}}, 0},
	} {
		qs := cloneQuotas(c.qs)
		left := level(qs, c.most)
		var got [][]int
		total := map[int]int{}
		for i, q := range qs {
			got = append(got, q.cards)
			if left == 0 && q.sum() != c.qs[i].sum() {
				t.Errorf("%s: template %d has %d cards after, %d before", c.name, i, q.sum(), c.qs[i].sum())
			}
			for d, n := range q.cards {
				total[q.first+d] += n
			}
		}
		for day, n := range total {
			if n > c.most {
				t.Errorf("%s: day %d gets %d", c.name, day, n)
			}
		}
		if left != c.left {
			t.Errorf("%s: %d left over, want %d", c.name, left, c.left)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

// Whether quotas fit is known by Hall's theorem: for windows it is
// enough to look at each interval of days.
func TestLevelFindsEveryArrangement(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	fits, not := 0, 0
	for range 3000 {
		qs := make([]quota, 1+r.IntN(4))
		for i := range qs {
			qs[i] = quota{r.IntN(5), make([]int, 1+r.IntN(5))}
			for d := range qs[i].cards {
				qs[i].cards[d] = r.IntN(6)
			}
		}
		most := 1 + r.IntN(8)
		possible := true
		for from := range 10 {
			for to := from; to < 10; to++ {
				n := 0
				for _, q := range qs {
					if q.first >= from && q.first+len(q.cards)-1 <= to {
						n += q.sum()
					}
				}
				possible = possible && n <= most*(to-from+1)
			}
		}
		if got := level(cloneQuotas(qs), most) == 0; got != possible {
			t.Fatalf("%v with a cap of %d: fits %v, want %v", qs, most, got, possible)
		}
		if possible {
			fits++
			continue
		}
		not++
		if err := fit(qs, most); len(objections(err)) != 1 {
			t.Fatalf("%v with a cap of %d: %v", qs, most, err)
		}
	}
	if fits < 500 || not < 500 {
		t.Errorf("%d fit and %d do not: too few of one to show anything", fits, not)
	}
}

func TestRefusedCapTellsWhatIsPossible(t *testing.T) {
	err := fit([]quota{{97, []int{10, 0, 0}}}, 2)
	if err == nil || !strings.Contains(err.Error(), "4 of 10 cards") || !strings.Contains(err.Error(), "cap of 4 would") {
		t.Errorf("got %v", err)
	}
}

// A flag is the beginning of its day where the tenant is.
func TestBeginning(t *testing.T) {
	for _, c := range []struct {
		zone, today string
		days        int
		want        string
	}{
		{"UTC", "2026-11-21", 100, "2027-03-01T00:00:00Z"},
		{"Europe/Berlin", "2026-11-21", 100, "2027-02-28T23:00:00Z"},
		{"Europe/Berlin", "2026-11-21", 200, "2027-06-08T22:00:00Z"},   // summer time by then
		{"America/Santiago", "2026-06-01", 97, "2026-09-06T04:00:00Z"}, // no midnight that day
	} {
		loc, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		got := beginning(SanityRun{Zone: c.zone, Today: c.today}.today(), c.days)
		if got.UTC().Format(time.RFC3339) != c.want || got.In(loc).Day() == got.In(loc).Add(-time.Second).Day() {
			t.Errorf("%d days after %s in %s: %s, want %s", c.days, c.today, c.zone, got.UTC().Format(time.RFC3339), c.want)
		}
	}
}

// Labels come from people: they must not be run as formulas where the export is opened.
func TestExport(t *testing.T) {
	formulas := []string{`=HYPERLINK("http://evil")`, "+1", "-1", "@SUM(A1)", "＝1+1"}
	var cards []Credential
	for i, label := range append(formulas, `plain, "quoted"`, "Ärztin") {
		cards = append(cards, Credential{ID: fmt.Sprint("piv-", i), CardID: fmt.Sprintf("%02X", i), Family: "PIV", Template: "T1", Label: label, Serial: label, State: Active, CreatedAt: start})
	}
	names := map[string]string{"T1": "=cmd|'/c calc'!A1"}
	var table, text strings.Builder
	if err := WriteCSV(&table, cards, names, true); err != nil {
		t.Fatal(err)
	}
	if err := WriteText(&text, cards, names, true); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(strings.NewReader(table.String())).ReadAll()
	if err != nil || len(rows) != len(cards)+1 || !slices.Equal(rows[0], sanityColumns) {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	if len(lines) != len(rows) {
		t.Fatalf("%d lines, want %d", len(lines), len(rows))
	}
	for i := range rows {
		for _, cell := range append(rows[i], strings.Split(lines[i], "\t")...) {
			if cell != "" && strings.ContainsAny(cell[:1], "=+-@") || strings.HasPrefix(cell, "＝") {
				t.Errorf("row %d has the formula %q", i, cell)
			}
		}
	}
	if got := rows[6]; got[6] != `plain, "quoted"` || got[4] != "'=cmd|'/c calc'!A1" || got[9] != "2026-11-21T10:00:00Z" {
		t.Errorf("got %q", got)
	}
	var rest strings.Builder
	if err := WriteCSV(&rest, cards[:1], names, false); err != nil || strings.Count(rest.String(), "\n") != 1 {
		t.Errorf("without a header: %q, %v", rest.String(), err)
	}
}

func TestSeed(t *testing.T) {
	seed := hex.EncodeToString(make([]byte, 16))
	if got, err := seedOf(strings.ToUpper(seed), nil); got != seed || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{"x", seed[:30], seed + "00", seed[:31] + "g"} {
		if _, err := seedOf(bad, nil); !slices.Equal(objections(err), []string{"seed:malformed"}) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
