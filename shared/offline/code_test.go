package offline

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
)

// TestEveryMistakeInAGroupIsFound goes through all groups at all places: of each, every wrong
// digit, every exchange of neighbours, the check digit included, and every wrong place.
func TestEveryMistakeInAGroupIsFound(t *testing.T) {
	pass := func(place int, g *[groupLength]byte) bool {
		state := uint8(place)
		for _, d := range g {
			state = damm[state][d]
		}
		return state == 0
	}
	groups, substitutions, exchanges := 0, 0, 0
	for n := range 100_000 {
		data := fmt.Sprintf("%05d", n)
		for place := range places {
			var g [groupLength]byte
			for i := range dataLength {
				g[i] = data[i] - '0'
			}
			g[dataLength] = checkDigit(place, data) - '0'
			groups++
			for other := range places {
				if pass(other, &g) != (other == place) {
					t.Fatalf("%v of place %d at place %d: passes is %v", g, place, other, other != place)
				}
			}
			for i := range g {
				right := g[i]
				for wrong := range byte(10) {
					if g[i] = wrong; wrong != right {
						if substitutions++; pass(place, &g) {
							t.Fatalf("place %d: %v passes, which was %d in position %d", place, g, right, i)
						}
					}
				}
				g[i] = right
				if i > 0 && g[i-1] != g[i] {
					g[i-1], g[i] = g[i], g[i-1]
					if exchanges++; pass(place, &g) {
						t.Fatalf("place %d: %v passes, with %d and %d exchanged", place, g, i-1, i)
					}
					g[i-1], g[i] = g[i], g[i-1]
				}
			}
		}
	}
	if groups != 1_000_000 || substitutions != 54_000_000 || exchanges != 4_500_000 {
		t.Errorf("went through %d groups, %d wrong digits, %d exchanges", groups, substitutions, exchanges)
	}
}

// TestThirteenForThirty: the mistake of two digits that speech makes most may pass, as any of
// two digits does once in ten; then the tag finds it.
func TestThirteenForThirty(t *testing.T) {
	found, all := 0, 0
	for n := range 100_000 * places {
		place, data := n%places, fmt.Sprintf("%05d", n/places)
		group := data + string(checkDigit(place, data))
		for i := range dataLength {
			if group[i] < '2' || group[i+1] != '0' {
				continue
			}
			all++
			if heard := group[:i] + "1" + group[i:i+1] + group[i+2:]; checkDigit(place, heard) != '0' {
				found++
			}
		}
	}
	if share := float64(found) / float64(all); share < 0.9 {
		t.Errorf("%d of %d found, %.1f %%", found, all, 100*share)
	}
}

func violations(err error) string {
	var inv *problem.InvalidError
	if !errors.As(err, &inv) {
		return fmt.Sprint(err)
	}
	var all []string
	for _, v := range inv.Violations {
		all = append(all, fmt.Sprintf("%s %s: %s", v.Field, v.Code, v.Reason))
	}
	return strings.Join(all, "\n")
}

func TestRead(t *testing.T) {
	const data = "798074868951000"
	code := write(bridge, data)
	if code != "798072 486898 510006" {
		t.Fatalf("write = %q", code)
	}
	for _, c := range []struct {
		name, typed, want string // want: what is wrong
	}{
		{"as shown", code, ""},
		{"without spaces", "798072486898510006", ""},
		{"as people group it", "798-072 486.898 51 00 06", ""},
		{"with other spaces and dashes", " 798072\u00A0486898\u2013510006\r\n", ""},
		{"look-alikes", "7980Zz 4B6B98 S|OoO6", "challenge checkDigit: group 1 was misheard, or is not in its place"},
		{"look-alikes that are right", "79B07Z 4B6B98 SlOoOG", ""},
		{"a wrong digit", "798072 486398 510006", "challenge checkDigit: group 2 was misheard, or is not in its place"},
		{"two groups wrong", "798073 486898 510007", "challenge checkDigit: group 1 was misheard, or is not in its place\nchallenge checkDigit: group 3 was misheard, or is not in its place"},
		{"groups exchanged", "798072 510006 486898", "challenge checkDigit: group 2 was misheard, or is not in its place\nchallenge checkDigit: group 3 was misheard, or is not in its place"},
		{"a group twice", "798072 798072 510006", "challenge checkDigit: group 2 was misheard, or is not in its place"},
		{"a digit exchanged with one of the next group", "798074 286898 510006", "challenge checkDigit: group 1 was misheard, or is not in its place\nchallenge checkDigit: group 2 was misheard, or is not in its place"},
		{"a digit missing", "798072 46898 510006", "challenge length: has 17 digits, must have 18; look from group 2 on"},
		{"the last digit missing", "798072 486898 51000", "challenge length: has 17 digits, must have 18"},
		{"a digit too many", "798072 4866898 510006", "challenge length: has 19 digits, must have 18; look from group 2 on"},
		{"a group missing", "798072 510006", "challenge length: has 12 digits, must have 18; look from group 2 on"},
		{"nothing", " - ", "challenge length: has 0 digits, must have 18"},
		{"the other side's", write(desk, data), "challenge otherCode: is the code that the other side is to be told"},
		{"letters", "798072 X86898 5100D6", "challenge characters: 'X' at place 1 of group 2 is no digit\nchallenge characters: 'D' at place 5 of group 3 is no digit"},
		{"of another alphabet", "79807З 486898 510006", "challenge characters: 'З' (U+0417) at place 6 of group 1 is no digit"},
		{"too long", strings.Repeat(code, 20), "challenge length: is longer than any code"},
	} {
		got, err := read("challenge", bridge, c.typed, 3)
		if c.want == "" {
			if err != nil || got != data {
				t.Errorf("%s: %q read as %q, %v", c.name, c.typed, got, err)
			}
			continue
		}
		if diff := cmp.Diff(c.want, violations(err)); diff != "" {
			t.Errorf("%s: %q (-want +got):\n%s", c.name, c.typed, diff)
		}
	}
	if _, err := read("response", desk, "1", 3, 6); violations(err) != "response length: has 1 digits, must have 18 or 36" {
		t.Error(violations(err))
	}
}

// TestEveryOrderOfGroupsIsFound reads the longest code in every order that differs by an
// exchange or a rotation.
func TestEveryOrderOfGroupsIsFound(t *testing.T) {
	groups := strings.Fields(write(desk, strings.Repeat("1", 45)))
	if len(groups) != 9 {
		t.Fatalf("%d groups", len(groups))
	}
	refuse := func(order []string) {
		t.Helper()
		if _, err := read("response", desk, strings.Join(order, " "), 9); err == nil {
			t.Errorf("%v is taken for %v", order, groups)
		}
	}
	for i := range groups {
		for j := range i {
			order := append([]string(nil), groups...)
			order[i], order[j] = order[j], order[i]
			refuse(order)
		}
		if i > 0 {
			refuse(append(append([]string(nil), groups[i:]...), groups[:i]...))
		}
	}
}

// TestHeard shows a challenge as it was understood, whatever is wrong with it.
func TestHeard(t *testing.T) {
	code := write(bridge, "123456789012345")
	groups := strings.Fields(code)
	other := []byte(groups[1])
	other[0] = '0' + (other[0]-'0'+1)%10
	for typed, want := range map[string][]Group{
		code: {{groups[0], true}, {groups[1], true}, {groups[2], true}},
		strings.NewReplacer("0", "O", "1", "l", " ", "").Replace(code): {{groups[0], true}, {groups[1], true}, {groups[2], true}},
		groups[0] + string(other) + groups[2][:3]:                      {{groups[0], true}, {string(other), false}, {groups[2][:3], false}},
		groups[1] + groups[0]:                                          {{groups[1], false}, {groups[0], false}},
		"":                                                             nil,
		"12x":                                                          nil,
	} {
		if got := Heard(typed); !slices.Equal(got, want) {
			t.Errorf("%q is %v, want %v", typed, got, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("798072 486898 510006", true)
	f.Add("674029-187226-31O2l9", false)
	f.Add("О \xff|", true)
	f.Fuzz(func(t *testing.T, typed string, b bool) {
		s := desk
		if b {
			s = bridge
		}
		digits, err := read("code", s, typed, 3, 5, 6, 9)
		if err != nil {
			var inv *problem.InvalidError
			if !errors.As(err, &inv) || len(inv.Violations) == 0 {
				t.Errorf("%q: %v", typed, err)
			}
			return
		}
		if again, err := read("code", s, write(s, digits), 3, 5, 6, 9); err != nil || again != digits {
			t.Errorf("%q read as %q, and again as %q, %v", typed, digits, again, err)
		}
	})
}
