package intake_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/event"
	"github.com/pinward/pinward/shared/intake"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// newUsersWorld is a world whose imports are of users. Ada and Bob are there, without a PIN.
func newUsersWorld(tb testing.TB, edits ...func(*tenant.Core)) *world {
	tb.Helper()
	w := newWorld(tb)
	w.Kind = intake.Users
	for _, edit := range edits {
		edit(&w.core)
	}
	return w
}

func pinOnly(c *tenant.Core) { c.Tenant.Settings.PINOnlyLogin = true }

func byUsers(c *tenant.Core) { c.Policy.MinLengthByUsers = true }

func watched(c *tenant.Core) {
	c.Watch.Types = []string{string(event.UserImported), string(event.PINSet), string(event.UserCreated)}
}

// goodPIN is one that the policy takes.
func goodPIN(n int) string { return fmt.Sprintf("7%07d4", (n+1)*7919%10_000_000) }

// everybody are the tenant's users as people see them, by name. What is held for them is
// what they have.
func (w *world) everybody() map[string]string {
	w.Helper()
	ctx := w.Context()
	all := map[string]string{}
	for place, more := "", true; more; more = place != "" {
		users, next, err := w.Users.List(ctx, acme, "", place, 1000)
		w.must(err)
		for _, u := range users {
			p := u.Profile
			all[p.Username] = strings.Join([]string{p.DisplayName, p.Mail, p.Phone, p.StaffNumber, p.ExternalID, strings.Join(p.Groups, ";"),
				string(u.PIN.State(w.Now())), fmt.Sprint(u.PIN.Identifies())}, ",")
			held, err := w.Users.ByUsername(ctx, acme, p.Username)
			if err != nil || held.ID != u.ID {
				w.Errorf("the name %s is held for %q, %v", p.Username, held.Profile.Username, err)
			}
			if p.ExternalID != "" {
				if held, err = w.Users.ByExternalID(ctx, acme, p.ExternalID); err != nil || held.ID != u.ID {
					w.Errorf("the external id of %s is held for %q, %v", p.Username, held.Profile.Username, err)
				}
			}
		}
		place = next
	}
	if n, err := w.Users.Count(ctx, acme); err != nil || n != len(all) {
		w.Errorf("%d users are counted, %v, and %d are there", n, err, len(all))
	}
	return all
}

func (w *world) right(name, pin string) bool {
	w.Helper()
	r, err := w.Users.Verify(w.Context(), w.core, admin, user.Ref{Username: name}, secret.New(pin))
	w.must(err)
	return r.Right
}

// told are the tenant's events, by type.
func (w *world) told() map[string]int {
	w.Helper()
	events, more, err := event.List(w.Context(), w.Table, acme, "", 1000)
	if err != nil || more != "" {
		w.Fatal(more, err)
	}
	n := map[string]int{}
	for _, e := range events {
		n[string(e.Type)]++
	}
	return n
}

// TestUsers imports a file of all that a row can say, and then the same once more, also when
// somebody has another PIN by then.
func TestUsers(t *testing.T) {
	for name, c := range map[string]struct {
		format func(*intake.Options)
		file   string
	}{
		"CSV": {func(*intake.Options) {}, "\uFEFFusername,displayName,mail,phone,staffNumber,externalId,groups,pin\r\n" +
			"Grace,\"Hopper, \"\"Amazing\"\" Grace\",grace@acme.example,+1 555 0100,S-7,HR-7, staff; navy ;;staff," + goodPIN(1) + "\r\n" +
			"\r\n" +
			"Edsger,,,,,,,\r\n"},
		"JSON Lines": {byLine,
			`{"username":"Grace","displayName":"Hopper, \"Amazing\" Grace","mail":"grace@acme.example","phone":"+1 555 0100","staffNumber":"S-7","externalId":"HR-7","groups":["staff","navy"],"pin":"` + goodPIN(1) + `"}` + "\n" +
				`{"username":"Edsger","groups":null,"pin":""}` + "\n"},
	} {
		w := newUsersWorld(t, watched)
		im := w.create(c.format)
		if got := w.bring(im, c.file); got != (intake.Counts{Taken: 2}) {
			t.Fatalf("%s: %+v %v", name, got, w.result(im))
		}
		want := map[string]string{
			"ada": ",,,,x-ada,,none,false", "bob": ",,,,x-bob,,none,false",
			"Grace":  `Hopper, "Amazing" Grace,grace@acme.example,+1 555 0100,S-7,HR-7,staff;navy,set,false`,
			"Edsger": ",,,,,,none,false",
		}
		if d := cmp.Diff(want, w.everybody()); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if !w.right("grace", goodPIN(1)) {
			t.Errorf("%s: the PIN is not right", name)
		}
		grace, err := w.Users.ByMail(t.Context(), acme, "GRACE@acme.example")
		w.must(err)
		if id, part, _, ok := intake.Origin(grace.Import); !ok || id != im.ID || part != 1 || grace.PIN.By != admin {
			t.Errorf("%s: she comes from %q, her PIN from %+v", name, grace.Import, grace.PIN.By)
		}
		records := w.recorded(intake.Subject(im.ID))
		i := slices.IndexFunc(records, func(r audit.Record) bool { return r.Action == "user.imported" })
		if len(records) != 3 || i < 0 || !strings.Contains(records[i].Details["users"], grace.ID) || records[i].Details["policyVersion"] != "1" {
			t.Errorf("%s: recorded %+v", name, records)
		}
		if d := cmp.Diff(map[string]int{"user.imported": 2, "pin.set": 1}, w.told()); d != "" {
			t.Errorf("%s: events (-want +got):\n%s", name, d)
		}

		_, err = w.Users.SetPIN(t.Context(), w.core, admin, grace.ID, secret.New(goodPIN(2)))
		w.must(err)
		for _, change := range []func(*intake.Options){func(*intake.Options) {}, update} {
			again := w.create(c.format, change)
			if got := w.bring(again, c.file); got != (intake.Counts{Unchanged: 2}) {
				t.Errorf("%s, again: %+v, %v", name, got, w.result(again))
			}
			if rows := w.result(again); !strings.Contains(rows[0], "|Grace|unchanged|pin|was not looked at") {
				t.Errorf("%s, again: told %q", name, rows)
			}
		}
		if !w.right("grace", goodPIN(2)) {
			t.Errorf("%s: the file changed her PIN back", name)
		}
	}
}

// TestRefusedUsers sends a good row and a bad one; the result tells where and why, and of the
// bad one nothing is there.
func TestRefusedUsers(t *testing.T) {
	const header = "username,displayName,mail,phone,staffNumber,externalId,groups,pin"
	columns := strings.Split(header, ",")
	cells := func(values map[string]string) string {
		var all []string
		for _, c := range columns {
			all = append(all, values[c])
		}
		return strings.Join(all, ",")
	}
	for _, c := range []struct {
		name   string
		row    map[string]string
		column string
		says   []string // one for each reason
	}{
		{"no name", map[string]string{"displayName": "x"}, "username", []string{"missing: is needed"}},
		{"long name", map[string]string{"username": strings.Repeat("x", 129)}, "username", []string{"length: has 129"}},
		{"line break in a name", map[string]string{"username": "\"a\nb\""}, "username", []string{"characters: "}},
		{"no address", map[string]string{"username": "eve", "mail": "Eve <eve@acme.example>"}, "mail", []string{"form: "}},
		{"letters in a phone number", map[string]string{"username": "eve", "phone": "extension 7"}, "phone", []string{"characters: "}},
		{"51 groups", map[string]string{"username": "eve", "groups": numbers(51)}, "groups", []string{"count: are 51"}},
		{"long group", map[string]string{"username": "eve", "groups": "a;" + strings.Repeat("x", 65)}, "groups", []string{"length: "}},
		{"huge name", map[string]string{"username": "eve", "displayName": strings.Repeat("x", 5_000_000)}, "displayName", []string{"4096 bytes (column 2, from line 3, byte "}},
		{"bad PIN", map[string]string{"username": "eve", "pin": "1234"}, "pin", []string{"tooShort: ", "sequential: ", "common: "}},
		{"name as PIN", map[string]string{"username": "eve8462051", "pin": "8462051"}, "pin", []string{"context: "}},
		{"PIN twice over", map[string]string{"username": "eve", "pin": goodPIN(3)}, "pin", []string{"unavailable: "}},
		{"no JWE", map[string]string{"username": "eve", "pin": strings.Repeat("a", 40) + "." + strings.Repeat("a", 40) + "." + strings.Repeat("a", 20) + ".a.a"}, "pin", []string{"JWE"}},
		{"another's external id", map[string]string{"username": "eve", "externalId": "x-ada"}, "username", []string{"an import with update"}},
		{"the external id of somebody else", map[string]string{"username": "bob", "externalId": "x-ada"}, "externalId", []string{"another user's"}},
		{"a name that went to somebody else", map[string]string{"username": "ADA", "externalId": "x-eve"}, "externalId", []string{"rename or delete"}},
		{"another name to show", map[string]string{"username": "ada", "displayName": "Ada"}, "displayName", []string{"an import with update"}},
		{"a PIN for who is there", map[string]string{"username": "ada", "pin": goodPIN(4)}, "pin", []string{"never had a PIN"}},
	} {
		for _, change := range []func(*intake.Options){func(*intake.Options) {}, dry} {
			w := newUsersWorld(t, pinOnly)
			w.core.Policy.MinLength = 6
			good := map[string]string{"username": "carol", "externalId": "x-carol", "pin": goodPIN(3)}
			im := w.create(change)
			counts := w.bring(im, header+"\n"+cells(good)+"\n"+cells(c.row)+"\n")
			result := w.result(im)
			if counts != (intake.Counts{Taken: 1, Refused: 1}) || len(result) != len(c.says) {
				t.Errorf("%s: %+v %q, want the good row taken and the bad one refused", c.name, counts, result)
				continue
			}
			for i, says := range c.says {
				told := strings.Split(result[i], "|")
				if told[1] != "3" || told[3] != "refused" || told[4] != c.column || !strings.Contains(told[5], says) {
					t.Errorf("%s: told %q, want line 3, column %s, and %q", c.name, result[i], c.column, says)
				}
				if v := c.row["pin"]; v != "" && strings.Contains(strings.Join(told[4:], "|"), v) {
					t.Errorf("%s: the result shows the PIN", c.name)
				}
			}
			if n := len(w.everybody()); im.DryRun && n != 2 || !im.DryRun && n != 3 {
				t.Errorf("%s: %d users", c.name, n)
			}
		}
	}
	w := newUsersWorld(t)
	w.core.Policy.MinLength = 6
	im := w.create(byLine)
	w.bring(im, `{"username":"a","groups":"x;y"}`+"\n"+`{"username":"b","groups":["x;y"]}`+"\n"+`{"username":"c","groups":[1]}`+"\n"+
		`{"username":"d","pin":71536294}`+"\n"+`{"username":["e"]}`+"\n"+`{"username":"f","mail":"x","pin":"12"}`+"\n")
	want := []string{
		"1|3||refused|groups|must be a string, or a list of strings", "1|4||refused|pin|must be a string", "1|5||refused|username|must be a string",
		"1|6||refused|mail|form: is not an address alone", "1|6||refused|pin|tooShort: ", "1|6||refused|pin|sequential: ",
	}
	got := w.result(im)
	for i := range got {
		if i >= len(want) || !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("told %q", got[i])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d reasons, want %d", len(got), len(want))
	}
	if all := w.everybody(); all["a"] != ",,,,,x;y,none,false" || all["b"] != ",,,,,x;y,none,false" {
		t.Errorf("groups: %v", all)
	}
	if _, err := w.Create(t.Context(), w.core, admin, intake.Options{Format: intake.CSV, Template: w.piv}); err == nil {
		t.Error("an import of users has a template")
	}
	if _, err := w.Create(t.Context(), w.core, admin, intake.Options{Format: intake.CSV, Columns: map[intake.Field]string{intake.CardID: "a", intake.Username: "b"}}); err == nil {
		t.Error("an import of users has a column of cards")
	}
	none := w.create()
	_, err := w.Part(t.Context(), w.core, admin, none.ID, 1, []byte("displayName,pin\nx,"+goodPIN(1)+"\n"))
	var invalid *problem.InvalidError
	if !errors.As(err, &invalid) || !strings.Contains(err.Error(), `no column "username"`) || strings.Contains(err.Error(), goodPIN(1)) {
		t.Errorf("without names: %v", err)
	}
}

func numbers(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprint(i))
	}
	return strings.Join(all, ";")
}

// messyUsers is a file of parts with n rows each, of which some are wrong, and people, their
// external ids and their PINs come again; unless each is to be there once.
func messyUsers(seed uint64, parts, n int, once bool) (texts []string) {
	r := rand.New(rand.NewPCG(seed, 1))
	mostly := func(usual string, others ...string) string {
		if r.IntN(8) > 0 {
			return usual
		}
		return others[r.IntN(len(others))]
	}
	for p := range parts {
		var b strings.Builder
		if p == 0 {
			b.WriteString("username,displayName,mail,externalId,groups,pin\n")
		}
		for i := range n {
			k := r.IntN(parts * n)
			other := r.IntN(parts * n)
			ada, bob := "ada", "x-bob"
			if once {
				k = 2 * (p*n + i)
				other, ada, bob = k, fmt.Sprintf("n%d", k), "" // who is renamed, if the external id is there
			}
			fmt.Fprintf(&b, "%s,%s,%s,%s,%s,%s\n", mostly(fmt.Sprintf("p%d", k), fmt.Sprintf("P%d", k), ada, ""), mostly("a", "b", ""),
				mostly("", "x@acme.example", "nowhere"), mostly(fmt.Sprintf("x%d", k), fmt.Sprintf("x%d", other), "", bob),
				mostly("g;h", "g", ""), mostly(goodPIN(k), goodPIN(other), "1234", "", fmt.Sprintf("%04d", 1000+k*7%9000)))
		}
		texts = append(texts, b.String())
	}
	return texts
}

// TestUsersDryRun tells exactly what the import then does, and does nothing: also where PINs
// identify, and where the policy asks for longer PINs as there are more users.
func TestUsersDryRun(t *testing.T) {
	for seed := range uint64(testserver.Rounds(4, 2)) {
		updates := seed%2 == 1
		edits := []func(*tenant.Core){byUsers}
		if seed%4 < 2 {
			edits = append(edits, pinOnly)
		}
		w := newUsersWorld(t, edits...)
		w.core.Policy.History = 2
		change := func(o *intake.Options) { o.Update = updates }
		w.bring(w.create(), messyUsers(100+seed, 1, 300, updates)...)
		before := w.everybody()
		texts := messyUsers(seed, 3, 500, updates) // with them, there are over 1,000
		tried := w.create(dry, change)
		said := w.bring(tried, texts...)
		if d := cmp.Diff(before, w.everybody()); d != "" {
			t.Fatalf("a dry run changed users (-before +now):\n%s", d)
		}
		im := w.create(change)
		done := w.bring(im, texts...)
		if said != done || done.Taken == 0 || done.Unchanged == 0 || done.Refused == 0 || updates != (done.Updated > 0) {
			t.Errorf("told %+v, did %+v", said, done)
		}
		if d := cmp.Diff(w.result(tried), w.result(im)); d != "" {
			t.Errorf("seed %d (-told +done):\n%s", seed, d)
		}
		w.everybody()
	}
	w := newUsersWorld(t, byUsers)
	file := "username,pin\n"
	for i := range 1500 {
		file += fmt.Sprintf("p%d,%04d\n", i, 1357+i)
	}
	more := "last,7294\n"
	tried, im := w.create(dry), w.create()
	said, done := w.bring(tried, file, more), w.bring(im, file, more)
	if last := w.result(im); said != done || !strings.Contains(last[len(last)-1], "last|refused|pin|tooShort: must have at least 5") {
		t.Errorf("told %+v, did %+v, %q", said, done, last[len(last)-1])
	}
}

// TestUsersDiedHalfWay lets one call to the table after the other fail, with and without
// effect, and sends the part again: users, events and result are as if nothing had happened.
// Only why a row is refused may be told otherwise: by then rows after it may have come.
func TestUsersDiedHalfWay(t *testing.T) {
	t.Run("every call", func(t *testing.T) { usersDieHalfWay(t, 40, func(n int) int { return n + testserver.Rounds(1, 6) }) })
	t.Run("several rounds", func(t *testing.T) {
		usersDieHalfWay(t, 1100, func(n int) int { return testserver.Rounds(3, 30)*n + 1 })
	})
}

func usersDieHalfWay(t *testing.T, rows int, next func(int) int) {
	text := messyUsers(7, 1, rows, false)[0]
	plain := newUsersWorld(t, pinOnly, watched)
	smooth := plain.create()
	plain.bring(smooth, text)
	want, wantTold, wantResult := plain.everybody(), plain.toldIn(smooth), plain.outcomes(smooth)
	for _, after := range []bool{false, true} {
		failed := 0
		for n := 1; ; n = next(n) {
			w := newUsersWorld(t, pinOnly, watched)
			w.step.Store(int64(2 * time.Millisecond)) // a row takes some of them: progress is saved on the way
			im := w.create()
			db := w.Table
			faulty := tabletest.Fail(db, n, after)
			w.on(faulty)
			_, err := w.Part(t.Context(), w.core, admin, im.ID, 1, []byte(text))
			w.on(db)
			if err == nil && faulty.Calls() < n {
				break
			}
			if err == nil {
				t.Errorf("call %d failed, and nobody said so", n)
			}
			failed++
			w.bring(im, text)
			if d := cmp.Diff(want, w.everybody()); d != "" {
				t.Errorf("call %d, after %v (-want +got):\n%s", n, after, d)
			}
			if d := cmp.Diff(wantTold, w.toldIn(im)); d != "" {
				t.Errorf("call %d, after %v: events (-want +got):\n%s", n, after, d)
			}
			if d := cmp.Diff(wantResult, w.outcomes(im)); d != "" || plain.counts(smooth) != w.counts(im) {
				t.Errorf("call %d, after %v: %+v, want %+v (-want +got):\n%s", n, after, w.counts(im), plain.counts(smooth), d)
			}
			if t.Failed() {
				return
			}
		}
		if failed < testserver.Rounds(6, 2) {
			t.Errorf("only %d calls failed", failed)
		}
	}
}

// outcomes is the result without its reasons.
func (w *world) outcomes(im intake.Import) (rows []string) {
	w.Helper()
	for _, r := range w.result(im) {
		rows = append(rows, strings.Join(strings.Split(r, "|")[:4], "|"))
	}
	return slices.Compact(rows)
}

// toldIn are the numbers of events by type, and of users that the records of an import name.
func (w *world) toldIn(im intake.Import) map[string]int {
	w.Helper()
	n := map[string]int{}
	for place, more := "", true; more; more = place != "" {
		events, next, err := event.List(w.Context(), w.Table, acme, place, 1000)
		w.must(err)
		for _, e := range events {
			n[string(e.Type)]++
		}
		place = next
	}
	for _, r := range w.recorded(intake.Subject(im.ID)) {
		n["recorded"] += len(strings.Fields(r.Details["users"]))
	}
	return n
}

// TestUsersAtOnce: two imports of one file, and one part sent twice, at the same time. Each
// user comes once.
func TestUsersAtOnce(t *testing.T) {
	w := newUsersWorld(t, pinOnly)
	var b strings.Builder
	b.WriteString("username,externalId,pin\n")
	rows := testserver.Rounds(1500, 400)
	for i := range rows {
		fmt.Fprintf(&b, "p%d,x%d,%s\n", i, i, goodPIN(i))
	}
	ims := []intake.Import{w.create(), w.create()}
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() { _, errs[i] = w.Part(t.Context(), w.core, admin, ims[i%2].ID, 1, []byte(b.String())) })
	}
	wg.Wait()
	for i, im := range ims {
		if errs[i] != nil && errs[i+2] != nil {
			t.Errorf("both requests of import %d failed: %v, %v", i, errs[i], errs[i+2])
		}
		for _, err := range []error{errs[i], errs[i+2]} {
			if err != nil && !errors.Is(err, problem.ErrConflict) {
				t.Error(err)
			}
		}
		w.part(im, 1, b.String())
	}
	x, y := w.counts(ims[0]), w.counts(ims[1])
	if x.Taken+y.Taken != rows || x.Unchanged+y.Unchanged != rows || x.Refused+y.Refused != 0 {
		t.Errorf("%+v and %+v, want each user taken once", x, y)
	}
	if n := len(w.everybody()); n != rows+2 {
		t.Errorf("%d users", n)
	}
}

// TestUsersUpdate: with it, what the row says changes; a PIN is given to who never had one,
// and else stays, and stays gone.
func TestUsersUpdate(t *testing.T) {
	w := newUsersWorld(t)
	w.core.Policy.MinLength = 6
	const header = "username,displayName,externalId,groups,pin\n"
	w.bring(w.create(), header+"carol,Carol,x-carol,a;b,"+goodPIN(1)+"\ndan,Dan,,,"+goodPIN(2)+"\n")
	dan, err := w.Users.ByUsername(t.Context(), acme, "dan")
	w.must(err)
	_, err = w.Users.DeletePIN(t.Context(), w.core, admin, dan.ID)
	w.must(err)
	file := header +
		"CAROL,Caroline,x-carol,b," + goodPIN(8) + "\n" + // has a PIN
		"dan,,x-dan,," + goodPIN(2) + "\n" + // had one
		"ada.lovelace,Ada,x-ada,," + goodPIN(3) + "\n" + // found by her external id; never had one
		"bob,Robert,,,1234\n" + // refused as a whole
		"ada,Somebody else,x-new,,\n" // in a dry run the name is not free yet
	tried := w.create(update, dry)
	if got := w.bring(tried, file); got != (intake.Counts{Updated: 3, Refused: 2}) {
		t.Errorf("told %+v: %v", got, w.result(tried))
	}
	im := w.create(update)
	if got := w.bring(im, file[:strings.LastIndex(file, "ada,")]); got != (intake.Counts{Updated: 3, Refused: 1}) {
		t.Errorf("%+v: %v", got, w.result(im))
	}
	if got := w.bring(w.create(update), header+"ada,Somebody else,x-new,,\n"); got != (intake.Counts{Taken: 1}) {
		t.Errorf("a name that is free again: %+v", got)
	}
	want := map[string]string{
		"carol": "Caroline,,,,x-carol,b,set,false", "dan": "Dan,,,,x-dan,,none,false", "bob": ",,,,x-bob,,none,false",
		"ada.lovelace": "Ada,,,,x-ada,,set,false", "ada": "Somebody else,,,,x-new,,none,false",
	}
	if d := cmp.Diff(want, w.everybody()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if !w.right("carol", goodPIN(1)) || !w.right("ada.lovelace", goodPIN(3)) {
		t.Error("the PINs are not as they should be")
	}
	if r := w.recorded(user.Subject(w.people["ada"])); !slices.ContainsFunc(r, func(r audit.Record) bool { return r.Action == "user.updated" }) {
		t.Errorf("recorded %+v", r)
	}
}

// TestOnePINForAll: where PINs identify, a file in which everybody has the same PIN lets one
// have it. What the others cost does not grow with their number in work, and the audit log
// tells how many were refused so.
func TestOnePINForAll(t *testing.T) {
	for name, row := range map[string]string{"pin": "p%d,," + goodPIN(1) + "\n", "externalId": "p%d,same,\n"} {
		w := newUsersWorld(t, pinOnly)
		counting := tabletest.Count(w.Table)
		w.on(counting)
		file := "username,externalId,pin\n"
		rows := testserver.Rounds(3000, 1100)
		for i := range rows {
			file += fmt.Sprintf(row, i)
		}
		im := w.create()
		began := time.Now()
		if got := w.bring(im, file); got != (intake.Counts{Taken: 1, Refused: rows - 1}) {
			t.Errorf("%s: %+v", name, got)
		}
		calls := counting.Take()
		t.Logf("%s: %v, %+v", name, time.Since(began), calls)
		if calls.Gets > 5*rows || calls.Writes > 100 {
			t.Errorf("%s: %+v", name, calls)
		}
		refused := 0
		for _, r := range w.recorded(intake.Subject(im.ID)) {
			if r.Action == "import.pinsTaken" {
				n := 0
				_, _ = fmt.Sscan(r.Details["rows"], &n)
				refused += n
			}
		}
		if want := map[string]int{"pin": rows - 1}[name]; refused != want {
			t.Errorf("%s: %d PINs are recorded as taken, want %d", name, refused, want)
		}
	}
}

// TestUsersSealed imports PINs in the clear and as JWE, good ones and bad ones; then none of
// them is in the file of the table, the result or an error, in any form.
func TestUsersSealed(t *testing.T) {
	path := t.TempDir() + "/table"
	db, err := bolt.Open(path, bolt.NoSync())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldOn(t, db)
	w.Kind = intake.Users
	pinOnly(&w.core)
	w.core.Policy.MinLength = 10
	encrypt := func(core tenant.Core, text string) string {
		key, err := w.Key(t.Context(), core, admin)
		w.must(err)
		var public jose.JSONWebKey
		w.must(public.UnmarshalJSON(key.JWK))
		e, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: public.Key, KeyID: public.KeyID}, nil)
		w.must(err)
		jwe, err := e.Encrypt([]byte(text))
		w.must(err)
		s, err := jwe.CompactSerialize()
		w.must(err)
		return s
	}
	pins := []string{"738159264071", "826403957118", "591724836605", "k7Xr2bQ9vt4M", "314159265", "940627518306", "605172839415"}
	file := "username,pin\n" +
		"clear," + pins[0] + "\n" +
		"sealed," + encrypt(w.core, pins[1]) + "\n" +
		"theirs," + encrypt(w.other, pins[2]) + "\n" + // to another tenant's key
		"again," + pins[0] + "\n" + // taken
		"short," + encrypt(w.core, pins[4]) + "\n" +
		"clear," + pins[5] + "\n" + // another PIN for the same user
		"ada," + pins[6] + "\n" // who is there
	var shown strings.Builder
	for _, change := range []func(*intake.Options){dry, func(*intake.Options) {}, update} {
		im := w.create(change)
		got := w.bring(im, file)
		if !im.Update && got != (intake.Counts{Taken: 2, Refused: 5}) || im.Update && got != (intake.Counts{Unchanged: 3, Updated: 1, Refused: 3}) {
			t.Errorf("%+v: %q", got, w.result(im))
		}
		fmt.Fprintln(&shown, w.result(im))
	}
	for _, text := range []string{"username,pin\nx,\"" + pins[3] + "\n", "username,pin\nx," + pins[3] + "\"\n", "x," + pins[3] + "\n", "username,pin\n\xff," + pins[3] + "\n"} {
		_, err := w.Part(t.Context(), w.core, admin, w.create().ID, 1, []byte(text))
		if err == nil {
			t.Errorf("%q was taken", text)
		}
		fmt.Fprintln(&shown, err)
	}
	if !w.right("clear", pins[0]) || !w.right("sealed", pins[1]) || !w.right("ada", pins[6]) {
		t.Error("the PINs are not as they should be")
	}
	w.must(db.Close())
	stored, err := os.ReadFile(path)
	w.must(err)
	for _, pin := range pins {
		for form, b := range testserver.Forms(pin) {
			if bytes.Contains(stored, b) {
				t.Errorf("the table has %s, %s", pin, form)
			}
			if strings.Contains(shown.String(), string(b)) {
				t.Errorf("an answer has %s, %s", pin, form)
			}
		}
	}
	if !bytes.Contains(stored, []byte("sealed")) || !strings.Contains(shown.String(), "|short|refused|pin|tooShort") {
		t.Error("the test looks at nothing")
	}
}

// TestKindsAndTenants: an import is found by those who import its kind, in its tenant; and a
// file of another tenant's users meets nobody here.
func TestKindsAndTenants(t *testing.T) {
	w := newUsersWorld(t, pinOnly)
	pinOnly(&w.other)
	cards := *w.Imports
	cards.Kind = intake.Cards
	file := "username,externalId,pin\neve,x-1," + goodPIN(1) + "\n"
	im := w.create()
	w.bring(im, file)
	theirs, err := w.Create(t.Context(), w.other, admin, intake.Options{Format: intake.CSV})
	w.must(err)
	p, err := w.Part(t.Context(), w.other, admin, theirs.ID, 1, []byte(file))
	if err != nil || p.Counts.Taken != 1 {
		t.Errorf("another tenant with the same people: %+v, %v", p.Counts, err)
	}
	for name, try := range map[string]func() error{
		"get as cards":          func() error { _, err := cards.Get(t.Context(), acme, im.ID); return err },
		"part as cards":         func() error { _, err := cards.Part(t.Context(), w.core, admin, im.ID, 2, []byte(file)); return err },
		"cancel as cards":       func() error { _, err := cards.Cancel(t.Context(), w.core, admin, im.ID); return err },
		"result as cards":       func() error { _, err := cards.Result(t.Context(), acme, im.ID, 1, &bytes.Buffer{}); return err },
		"get of another tenant": func() error { _, err := w.Get(t.Context(), globex, im.ID); return err },
		"part of another tenant": func() error {
			_, err := w.Part(t.Context(), w.other, admin, im.ID, 2, []byte(file))
			return err
		},
		"result of another tenant": func() error { _, err := w.Result(t.Context(), globex, im.ID, 1, &bytes.Buffer{}); return err },
	} {
		if err := try(); !errors.Is(err, problem.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	list := func(is *intake.Imports) (ids []string) {
		all, _, err := is.List(context.Background(), acme, "", 10)
		w.must(err)
		for _, im := range all {
			ids = append(ids, im.ID)
		}
		return ids
	}
	c, err := cards.Create(t.Context(), w.core, admin, intake.Options{Format: intake.CSV, Template: w.piv})
	w.must(err)
	if d := cmp.Diff([][]string{{im.ID}, {c.ID}}, [][]string{list(w.Imports), list(&cards)}); d != "" {
		t.Errorf("listed (-want +got):\n%s", d)
	}
}
