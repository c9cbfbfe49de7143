package user

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

func TestCreateAndFind(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	full := Profile{Username: "Ada.Lovelace", DisplayName: "Ada Lovelace", Mail: "ada@acme.example", Phone: "+44 20 7946-0000",
		StaffNumber: "K-204518", ExternalID: "E/1", Groups: []string{"engines", "poetry"}}
	made, err := w.Create(ctx, w.core, admin, full, nil)
	want := User{ID: made.ID, Profile: full, CreatedAt: start, UpdatedAt: start, Version: 1}
	same := whole
	if d := cmp.Diff(want, made, same); d != "" || err != nil {
		t.Fatalf("%v (-want +got):\n%s", err, d)
	}
	for name, find := range map[string]func() (User, error){
		"by id":                    func() (User, error) { return w.Get(ctx, acme, made.ID) },
		"by name":                  func() (User, error) { return w.ByUsername(ctx, acme, "Ada.Lovelace") },
		"by name in another case":  func() (User, error) { return w.ByUsername(ctx, acme, "aDA.lOVELACE") },
		"by name typed full-width": func() (User, error) { return w.ByUsername(ctx, acme, "ａｄａ.lovelace") },
		"by external id":           func() (User, error) { return w.ByExternalID(ctx, acme, "E/1") },
	} {
		got, err := find()
		if d := cmp.Diff(want, got, same); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, d)
		}
	}
	for name, find := range map[string]func() (User, error){
		"another tenant's id":          func() (User, error) { return w.Get(ctx, "globex", made.ID) },
		"another tenant's name":        func() (User, error) { return w.ByUsername(ctx, "globex", "Ada.Lovelace") },
		"another tenant's external id": func() (User, error) { return w.ByExternalID(ctx, "globex", "E/1") },
		"external id in another case":  func() (User, error) { return w.ByExternalID(ctx, acme, "e/1") },
		"no id":                        func() (User, error) { return w.Get(ctx, acme, "") },
		"an id that is none":           func() (User, error) { return w.Get(ctx, acme, "../core") },
		"no name":                      func() (User, error) { return w.ByUsername(ctx, acme, "") },
		"a name too long to be stored": func() (User, error) { return w.ByUsername(ctx, acme, strings.Repeat("ﷺ", 500)) },
	} {
		if _, err := find(); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if d := cmp.Diff([]string{"user.created"}, w.actions(made)); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
	w.check([]string{"ada.lovelace"}, nil)
}

func TestProfiles(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*Profile)
		want []string
	}{
		"good":                 {func(*Profile) {}, nil},
		"name only":            {func(p *Profile) { *p = Profile{Username: "a"} }, nil},
		"name of two scripts":  {func(p *Profile) { p.Username = "Żółć 山田" }, nil},
		"no name":              {func(p *Profile) { p.Username = "" }, []string{"username:missing"}},
		"long name":            {func(p *Profile) { p.Username = strings.Repeat("n", 129) }, []string{"username:length"}},
		"space around it":      {func(p *Profile) { p.Username = "ada " }, []string{"username:space"}},
		"a line break in it":   {func(p *Profile) { p.Username = "a\nda" }, []string{"username:characters"}},
		"not UTF-8":            {func(p *Profile) { p.DisplayName = "\xff" }, []string{"displayName:characters"}},
		"mail with name":       {func(p *Profile) { p.Mail = "Ada <ada@acme.example>" }, []string{"mail:form"}},
		"mail without domain":  {func(p *Profile) { p.Mail = "ada" }, []string{"mail:form"}},
		"mail with a header":   {func(p *Profile) { p.Mail = "ada@acme.example\r\nBcc: x@y.example" }, []string{"mail:characters", "mail:form"}},
		"phone with letters":   {func(p *Profile) { p.Phone = "0800 PINWARD" }, []string{"phone:characters"}},
		"long staff number":    {func(p *Profile) { p.StaffNumber = strings.Repeat("1", 41) }, []string{"staffNumber:length"}},
		"long external id":     {func(p *Profile) { p.ExternalID = strings.Repeat("1", 201) }, []string{"externalId:length"}},
		"too many groups":      {func(p *Profile) { p.Groups = slices.Repeat([]string{"g"}, 101) }, []string{"groups:count"}},
		"an empty group":       {func(p *Profile) { p.Groups = []string{""} }, []string{"groups:missing"}},
		"much at once":         {func(p *Profile) { *p = Profile{Mail: "x", Phone: "x"} }, []string{"username:missing", "mail:form", "phone:characters"}},
		"separates paragraphs": {func(p *Profile) { p.DisplayName = "a\u2029b" }, []string{"displayName:characters"}},
	} {
		p := profile("ada")
		c.edit(&p)
		if d := cmp.Diff(c.want, objections(p.Validate())); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// If anything is wrong nothing is made or changed, and all of it is said.
func TestRefusedAltogether(t *testing.T) {
	w := newWorld(t, pinOnly, history(1))
	ctx := t.Context()
	ada := w.user("ada", pinA)
	w.user("bob", pinB)
	for _, c := range []struct {
		name string
		edit func(*Profile)
		pin  string
		want []string
	}{
		{"a bad profile and a bad PIN", func(p *Profile) { p.Mail = "x" }, "123", []string{"mail:form", "pin:tooShort", "pin:sequential"}},
		{"a name too long once folded", func(p *Profile) { p.Username = strings.Repeat("ﷺ", 128) }, pinC, []string{"username:length"}},
		{"a taken name", func(p *Profile) { p.Username = "BOB" }, pinC, []string{"username:taken"}},
		{"a taken external id", func(p *Profile) { p.ExternalID = "ext-bob" }, pinC, []string{"externalId:taken"}},
		{"a taken PIN", func(p *Profile) {}, pinB, []string{"pin:unavailable"}},
		{"a PIN in the new phone number", func(p *Profile) { p.Phone = "+" + pinC }, pinC, []string{"pin:context"}},
		{"10 MB of PIN", func(p *Profile) {}, strings.Repeat("73", 5<<20), []string{"pin:tooLong"}},
		{"a PIN with space", func(p *Profile) {}, "7391 5846", []string{"pin:notInAlphabet"}},
		{"a full-width PIN", func(p *Profile) {}, "７３９１", []string{"pin:notInAlphabet"}},
		{"a PIN with NUL", func(p *Profile) {}, "7391\x005846", []string{"pin:notInAlphabet"}},
		{"no PIN, though given", func(p *Profile) {}, "", []string{"pin:tooShort"}},
	} {
		_, err := w.Update(ctx, w.core, admin, ada.ID, 0, c.edit, given(c.pin))
		if d := cmp.Diff(c.want, objections(err)); d != "" {
			t.Errorf("%s, updated: %v (-want +got):\n%s", c.name, err, d)
		}
		if d := cmp.Diff(ada, w.reread(ada), whole); d != "" {
			t.Errorf("%s: the user changed:\n%s", c.name, d)
		}
		p := profile("carol")
		c.edit(&p)
		_, err = w.Create(ctx, w.core, admin, p, given(c.pin))
		if d := cmp.Diff(c.want, objections(err)); d != "" {
			t.Errorf("%s, created: %v (-want +got):\n%s", c.name, err, d)
		}
		w.check([]string{"ada", "bob", "carol"}, []string{pinA, pinB, pinC})
	}
	_, err := w.Update(ctx, w.core, admin, ada.ID, 0, func(p *Profile) { p.Username = "" }, given(pinA))
	if d := cmp.Diff([]string{"username:missing"}, objections(err)); d != "" {
		t.Errorf("no name and the PIN again: whether she had it is not told (-want +got):\n%s", d)
	}
	if users := w.everybody(); len(users) != 2 {
		t.Errorf("%d users, want ada and bob", len(users))
	}
}

func TestRenameFreesTheOldName(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	ada := w.user("ada", pinA)
	rename := func(name string) {
		t.Helper()
		must(w.Update(ctx, w.core, admin, ada.ID, 0, func(p *Profile) { p.Username, p.ExternalID = name, "ext-"+name }, nil))(t)
	}
	rename("ADA") // to itself
	rename("augusta")
	for _, name := range []string{"ada", "ADA"} {
		if _, err := w.ByUsername(ctx, acme, name); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("%s is still found: %v", name, err)
		}
	}
	second := w.user("ada", "")
	if got, err := w.ByExternalID(ctx, acme, "ext-ada"); got.ID != second.ID || err != nil {
		t.Errorf("the external id is %q's, %v", got.Profile.Username, err)
	}
	if !w.verify("augusta", pinA).Right {
		t.Error("with the name the PIN went")
	}
	must(w.Update(ctx, w.core, admin, ada.ID, 0, func(p *Profile) { p.ExternalID = "" }, nil))(t)
	w.check([]string{"ada", "augusta", "ADA"}, nil)
}

func TestUpdateByVersion(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	ada := w.user("ada", "")
	calls := func(name string) func(*Profile) { return func(p *Profile) { p.DisplayName = name } }
	got, err := w.Update(ctx, w.core, admin, ada.ID, ada.Version, calls("one"), nil)
	if err != nil || got.Version != 2 {
		t.Fatalf("version %d, %v", got.Version, err)
	}
	if _, err := w.Update(ctx, w.core, admin, ada.ID, ada.Version, calls("two"), nil); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("from an old version: %v", err)
	}
	if _, err := w.Update(ctx, w.core, admin, ada.ID, 0, calls("three"), nil); err != nil {
		t.Errorf("whatever the version: %v", err)
	}
	if got := w.reread(ada); got.Profile.DisplayName != "three" || got.Version != 3 {
		t.Errorf("got %q of version %d", got.Profile.DisplayName, got.Version)
	}

	won := 0
	for _, err := range racing(10, func(i int) error {
		_, err := w.Update(ctx, w.core, admin, ada.ID, 3, calls(numbered("n", i)), nil)
		return err
	}) {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, problem.ErrConflict):
			t.Error(err)
		}
	}
	if got := w.reread(ada); won != 1 || got.Version != 4 {
		t.Errorf("%d of 10 racing updates won; the version is %d", won, got.Version)
	}
	if _, err := w.Update(ctx, w.core, admin, "01ARZ3NDEKTSV4RRFFQ69G5FAV", 0, calls("x"), nil); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
}

func TestDelete(t *testing.T) {
	w := newWorld(t, pinOnly, expiring)
	ctx := t.Context()
	ada := w.user("ada", pinA)
	w.verify("ada", pinB)
	if err := w.Users.Delete(ctx, w.core, admin, ada.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.Users.Delete(ctx, w.core, admin, ada.ID); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("again: %v", err)
	}
	w.check([]string{"ada"}, []string{pinA})
	if w.identify("lobby", pinA).Right || w.verify("ada", pinA).Right {
		t.Error("the PIN outlived its user")
	}
	again := w.user("ada", pinA)
	if got := w.verify("ada", pinA); got.User.ID != again.ID {
		t.Errorf("the name and the PIN are not free again: %+v", got)
	}
	if d := cmp.Diff([]string{"user.created", "pin.verify", "user.deleted"}, w.actions(ada)); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
}

func TestListByPrefixInOrder(t *testing.T) {
	w := newWorld(t)
	names := []string{"a", "A/b", "a b", "ab", "Abel", "abe", "b", "Bea", "bo%", "bo/", "bob", "Ä", "z"}
	for _, name := range names {
		must(w.Create(t.Context(), w.core, admin, Profile{Username: name}, nil))(t)
	}
	for _, prefix := range []string{"", "a", "AB", "bo", "bo%", "bo/", "ä", "x"} {
		var want []string
		for _, name := range names {
			if strings.HasPrefix(Fold(name), Fold(prefix)) {
				want = append(want, name)
			}
		}
		for _, limit := range []int{1, 3, 100} {
			var got []string
			for place := ""; ; {
				page, next, err := w.List(t.Context(), acme, prefix, place, limit)
				if err != nil || len(page) > limit {
					t.Fatalf("%q: a page of %d, %v", prefix, len(page), err)
				}
				for _, u := range page {
					got = append(got, u.Profile.Username)
				}
				if next == "" {
					break
				}
				place = next
			}
			if !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
				t.Errorf("%q by %d: got %q, want %q in some order", prefix, limit, got, want)
			}
			if prefix == "b" && !slices.Equal(got, []string{"b", "Bea", "bo%", "bo/", "bob"}) {
				t.Errorf("%q by %d: in the order %q", prefix, limit, got)
			}
		}
	}
}

// However many users come and go at the same time, the count is right.
func TestCountIsExact(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	busy := func(err error) bool {
		return errors.Is(err, problem.ErrUnavailable) || errors.Is(err, problem.ErrConflict)
	}
	there := 0
	for _, err := range racing(100, func(i int) error {
		_, err := w.Create(ctx, w.core, admin, profile(numbered("u", i)), nil)
		return err
	}) {
		if err == nil {
			there++
		} else if !busy(err) {
			t.Error(err)
		}
	}
	w.check(nil, nil)
	users := w.everybody()
	if len(users) != there {
		t.Errorf("%d creations succeeded, %d users are there", there, len(users))
	}
	for _, err := range racing(len(users), func(i int) error {
		if i%2 == 0 {
			_, err := w.Create(ctx, w.core, admin, profile(numbered("v", i)), nil)
			return err
		}
		return w.Users.Delete(ctx, w.core, admin, users[i].ID)
	}) {
		if err != nil && !busy(err) {
			t.Error(err)
		}
	}
	w.check(nil, nil)
}

func TestRacingForAName(t *testing.T) {
	w := newWorld(t)
	won := 0
	for i, err := range racing(20, func(i int) error {
		p := profile("ada")
		p.Username = []string{"ada", "Ada", "ADA"}[i%3]
		_, err := w.Create(t.Context(), w.core, admin, p, nil)
		return err
	}) {
		switch {
		case err == nil:
			won++
		case len(objections(err)) != 1 && !errors.Is(err, problem.ErrUnavailable):
			t.Errorf("%d: %v", i, err)
		}
	}
	if won != 1 {
		t.Errorf("%d users have the name", won)
	}
	w.check([]string{"ada"}, nil)
}

// The report on a policy change: which version accepted the PINs there are.
func TestCensus(t *testing.T) {
	w := newWorld(t, expiring)
	w.user("ada", pinA)
	w.user("none", "")
	w.pass(24 * time.Hour)
	w.core.Policy.Version = 2
	pinOnly(&w.core)
	w.user("bob", pinB)
	w.user("carol", pinC)
	want := Census{Users: 4, WithoutPIN: 1, Identifying: 2, ByPolicy: map[int64]int{1: 1, 2: 2}}
	if d := cmp.Diff(want, must(w.Census(t.Context(), acme))(t)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	w.pass(24 * time.Hour) // Ada's is over, and nobody has swept
	want = Census{Users: 4, WithoutPIN: 2, Identifying: 2, ByPolicy: map[int64]int{2: 2}}
	if d := cmp.Diff(want, must(w.Census(t.Context(), acme))(t)); d != "" {
		t.Errorf("when one has expired (-want +got):\n%s", d)
	}
}

// The least length grows with the number of users.
func TestMinLengthByUsers(t *testing.T) {
	w := newWorld(t, func(c *tenant.Core) { c.Policy.MinLengthByUsers = true })
	ada := w.user("ada", "7392")
	many := count{table.CountKey(acme, "many others"), 998}
	if err := w.Table.Write(t.Context(), table.Put(many, table.Absent())); err != nil {
		t.Fatal(err)
	}
	if err := w.set(ada, "2864"); err != nil {
		t.Errorf("4 digits among 999: %v", err)
	}
	w.user("bob", "")
	if d := cmp.Diff([]string{"pin:" + pin.CodeTooShort}, objections(w.set(ada, "7392"))); d != "" {
		t.Errorf("4 digits among 1,000 (-want +got):\n%s", d)
	}
	_, made, err := w.GeneratePIN(t.Context(), w.core, admin, ada.ID, pin.GenerateOptions{})
	if err != nil || len(made.Reveal()) != 5 {
		t.Errorf("generated %d digits, %v, want 5", len(made.Reveal()), err)
	}
	if !w.verify("ada", made.Reveal()).Right {
		t.Error("the PIN generated is not hers")
	}
}
