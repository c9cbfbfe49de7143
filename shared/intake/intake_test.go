package intake_test

import (
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
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/intake"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/tabletest"
)

// TestImport imports a file of all that a row can say, and then the same once more.
func TestImport(t *testing.T) {
	w := newWorld(t)
	file := "\uFEFFcardId,template,holderUsername,holderExternalId,holderId,label,serial,puk,adminKey,pinExpiresAt\r\n" +
		cardID(1) + ",,Ada,,,\"Ada's, \"\"first\"\"\",SN-1," + puk(1) + ",,2027-03-01\r\n" +
		strings.ToLower(cardID(2)) + "," + w.piv + ",,x-bob,,,,,,2027-03-01T08:00:00+01:00\r\n" +
		"\r\n" +
		cardID(3) + ",Tokens,,," + w.people["ada"] + ",token,,," + adminKey + ",2027-04-01\r\n"
	im := w.create()
	want := intake.Counts{Taken: 3, Unmanaged: 1}
	if d := cmp.Diff(want, w.bring(im, file)); d != "" {
		t.Fatalf("%v (-want +got):\n%s", w.result(im), d)
	}
	cards := map[string]string{
		pivID(1):                             `Staff,ada,Ada's, "first",SN-1,` + puk(1) + ",2027-03-01T00:00:00Z",
		pivID(2):                             "Staff,bob,,,,2027-03-01T07:00:00Z",
		"gids-" + strings.ToLower(cardID(3)): "Tokens,ada,token,," + adminKey + ",2027-04-01T00:00:00Z",
	}
	if d := cmp.Diff(cards, w.cards()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	c, err := w.Credentials.Get(t.Context(), acme, pivID(1))
	w.must(err)
	if c.Flagged.How != credential.FlagByImport || c.State != credential.Registered || !strings.HasPrefix(c.Import, im.ID+"/1/2/") {
		t.Errorf("flagged %q, state %q, import %q", c.Flagged.How, c.State, c.Import)
	}
	var actions []string
	for _, r := range w.recorded(intake.Subject(im.ID)) {
		actions = append(actions, r.Action)
		if r.Action == "credential.registered" && !strings.Contains(r.Details["credentials"], "gids-") && !strings.Contains(r.Details["credentials"], "piv-") {
			t.Errorf("the record names no card: %v", r.Details)
		}
		if r.Action == "import.finished" && r.Details["taken"] != "3" {
			t.Errorf("finished with %v", r.Details)
		}
	}
	if !slices.Contains(actions, "import.created") || !slices.Contains(actions, "credential.registered") || !slices.Contains(actions, "import.finished") {
		t.Errorf("recorded %q", actions)
	}
	if list := intake.Warnings(want); len(list) != 1 || !strings.Contains(list[0], "without server-managed PIN expiry") {
		t.Errorf("warned %q", list)
	}

	again := w.create()
	if got := w.bring(again, file); got != (intake.Counts{Unchanged: 3}) {
		t.Errorf("again: %+v, %v", got, w.result(again))
	}
	if now, err := w.Credentials.Get(t.Context(), acme, pivID(1)); err != nil || now.Version != 1 {
		t.Errorf("again: version %d, %v", now.Version, err)
	}
}

// TestRefusedRows sends a good row and a bad one; the result tells where and why, and of
// the bad one nothing is there.
func TestRefusedRows(t *testing.T) {
	w := newWorld(t)
	theirTemplate, theirUser := w.template(w.other, "PIV", "Theirs", 0), w.user(w.other, "eve")
	w.template(w.core, "PIV", "Twice", 0)
	w.template(w.core, "PIV", "Twice", 0)
	_, err := w.Credentials.Register(t.Context(), w.core, admin, credential.New{Family: "PIV", CardID: cardID(500), Template: w.piv, Holder: w.people["ada"], Label: "Ada's", Serial: "1", PUK: given(puk(500))})
	w.must(err)
	const header = "cardId,family,template,holderId,holderUsername,holderExternalId,label,serial,puk,adminKey,pinExpiresAt"
	columns := strings.Split(header, ",")
	cell := func(values map[string]string) string {
		var cells []string
		for _, c := range columns {
			cells = append(cells, values[c])
		}
		return strings.Join(cells, ",")
	}
	n := 0
	for _, c := range []struct {
		name   string
		row    map[string]string
		column string
		says   string
	}{
		{"no card", map[string]string{"label": "x"}, "cardId", "hex"},
		{"no hex", map[string]string{"cardId": "A0" + strings.Repeat("G", 30)}, "cardId", "hex"},
		{"half a byte", map[string]string{"cardId": cardID(1)[1:]}, "cardId", "hex"},
		{"another length", map[string]string{"cardId": cardID(1)[2:]}, "cardId", "PIV"},
		{"PUK of 7", map[string]string{"cardId": cardID(1), "puk": "7153629"}, "puk", "exactly 8"},
		{"PUK of 9", map[string]string{"cardId": cardID(1), "puk": "715362941"}, "puk", "exactly 8"},
		{"PUK for GIDS", map[string]string{"cardId": cardID(1), "template": "Tokens", "puk": puk(1)}, "puk", "admin key"},
		{"admin key for PIV", map[string]string{"cardId": cardID(1), "adminKey": adminKey}, "adminKey", "PUK"},
		{"short admin key", map[string]string{"cardId": cardID(1), "template": "Tokens", "adminKey": adminKey[2:]}, "adminKey", "24 bytes"},
		{"admin key not in hex", map[string]string{"cardId": cardID(1), "template": "Tokens", "adminKey": "x" + adminKey[1:]}, "adminKey", "hex"},
		{"template of the other family", map[string]string{"cardId": cardID(1), "family": "PIV", "template": "Tokens"}, "family", "GIDS"},
		{"unknown template", map[string]string{"cardId": cardID(1), "template": "nope"}, "template", "not the id"},
		{"another tenant's template", map[string]string{"cardId": cardID(1), "template": theirTemplate}, "template", "not the id"},
		{"another tenant's template by name", map[string]string{"cardId": cardID(1), "template": "Theirs"}, "template", "not the id"},
		{"a name of two templates", map[string]string{"cardId": cardID(1), "template": "Twice"}, "template", "several"},
		{"unknown holder", map[string]string{"cardId": cardID(1), "holderUsername": "nobody"}, "holderUsername", "no user"},
		{"another tenant's holder", map[string]string{"cardId": cardID(1), "holderId": theirUser}, "holderId", "no user"},
		{"another tenant's holder by name", map[string]string{"cardId": cardID(1), "holderUsername": "eve"}, "holderUsername", "no user"},
		{"another tenant's holder by number", map[string]string{"cardId": cardID(1), "holderExternalId": "x-eve"}, "holderExternalId", "no user"},
		{"two holders", map[string]string{"cardId": cardID(1), "holderUsername": "ada", "holderExternalId": "x-ada"}, "holderExternalId", "second time"},
		{"yesterday", map[string]string{"cardId": cardID(1), "pinExpiresAt": "2026-11-20"}, "pinExpiresAt", "future"},
		{"the 30th of February", map[string]string{"cardId": cardID(1), "pinExpiresAt": "2027-02-30"}, "pinExpiresAt", "date such as"},
		{"American", map[string]string{"cardId": cardID(1), "pinExpiresAt": "2/28/2027"}, "pinExpiresAt", "date such as"},
		{"a century", map[string]string{"cardId": cardID(1), "pinExpiresAt": "2127-01-01"}, "pinExpiresAt", "3650 days"},
		{"long label", map[string]string{"cardId": cardID(1), "label": strings.Repeat("x", 101)}, "label", "100"},
		{"line break in a label", map[string]string{"cardId": cardID(1), "label": "\"a\nb\""}, "label", "control"},
		{"huge label", map[string]string{"cardId": cardID(1), "label": strings.Repeat("x", 5_000_000)}, "label", "4096 bytes (column 7, from line 3, byte "},
		{"no JWE", map[string]string{"cardId": cardID(1), "puk": strings.Repeat("a", 40) + "." + strings.Repeat("a", 40) + "." + strings.Repeat("a", 20) + "." + "a.a"}, "puk", "JWE"},
		{"another PUK", map[string]string{"cardId": cardID(500), "puk": puk(1)}, "puk", "does not overwrite"},
		{"another label", map[string]string{"cardId": cardID(500), "label": "Bob's"}, "label", "does not overwrite"},
		{"another holder", map[string]string{"cardId": cardID(500), "holderUsername": "bob"}, "holderUsername", "does not overwrite"},
		{"another serial", map[string]string{"cardId": cardID(500), "serial": "2"}, "serial", "does not overwrite"},
		{"a flag where there is none", map[string]string{"cardId": cardID(500), "pinExpiresAt": "2027-01-01"}, "pinExpiresAt", "does not overwrite"},
	} {
		n++
		good := map[string]string{"cardId": cardID(100 + n)}
		before := len(w.cards())
		im := w.create()
		counts := w.bring(im, header+"\n"+cell(good)+"\n"+cell(c.row)+"\n")
		result := w.result(im)
		if counts != (intake.Counts{Taken: 1, Refused: 1}) || len(result) != 1 {
			t.Errorf("%s: %+v %v, want the good row taken and the bad one refused", c.name, counts, result)
			continue
		}
		cells := strings.Split(result[0], "|")
		if cells[1] != "3" || cells[3] != "refused" || cells[4] != c.column || !strings.Contains(cells[5], c.says) {
			t.Errorf("%s: told %q, want line 3, column %s, and %q", c.name, result[0], c.column, c.says)
		}
		if v := c.row["puk"]; v != "" && strings.Contains(result[0], v) {
			t.Errorf("%s: the result shows the PUK", c.name)
		}
		if now := len(w.cards()); now != before+1 {
			t.Errorf("%s: %d cards came", c.name, now-before)
		}
	}
	im := w.create()
	if got := w.bring(im, "cardId,puk\n"+cardID(1)+"\n"+cardID(2)+","+puk(2)+",x\n"); got.Refused != 2 {
		t.Errorf("rows of other widths: %+v", got)
	}
	if d := cmp.Diff([]string{"1|2|||" + "|has 1 columns, the header 2", "1|3|||" + "|has 3 columns, the header 2"}, withOutcome(w.result(im))); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	all := w.create(byLine)
	w.bring(all, `{"cardId":"xx","puk":"1","pinExpiresAt":"x"}`+"\n")
	if got := w.result(all); len(got) < 2 {
		t.Errorf("of a row with three faults are told %q", got)
	}
}

func withOutcome(rows []string) []string {
	for i := range rows {
		rows[i] = strings.Replace(rows[i], "refused", "", 1)
	}
	return rows
}

// TestJSONLines: what is not an object of strings is refused by its line.
func TestJSONLines(t *testing.T) {
	w := newWorld(t)
	im := w.create(byLine, func(o *intake.Options) {
		o.Columns = map[intake.Field]string{intake.CardID: "GUID", intake.PUK: "Unblocking code", intake.Label: "name"}
	})
	got := w.bring(im, "\uFEFF"+`{"GUID":"`+cardID(1)+`","Unblocking code":"`+puk(1)+`","name":null}`+"\r\n"+
		`{"GUID":"`+cardID(2)+`","Unblocking code":71536294}`+"\n"+
		`{"GUID":"`+cardID(3)+`","GUID":"`+cardID(4)+`"}`+"\n"+
		`{"GUID":"`+cardID(5)+`","colour":"red"}`+"\n\n"+
		`["`+cardID(6)+`"]`+"\n"+
		`{"GUID":"`+cardID(7)+`"`+"\n"+
		`{"GUID":"`+cardID(8)+`"}`)
	want := []string{
		"1|2||refused|Unblocking code|must be a string", "1|3||refused|GUID|is there twice",
		"1|4||refused||has a member that the import does not know, the 2.", "1|6||refused||is not one JSON object", "1|7||refused||is not one JSON object",
	}
	if d := cmp.Diff(want, w.result(im)); d != "" || got.Taken != 2 || got.Refused != 5 {
		t.Errorf("%+v (-want +got):\n%s", got, d)
	}
	if d := cmp.Diff(map[string]string{pivID(1): "Staff,,,," + puk(1), pivID(8): "Staff,,,,"}, w.cards()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestRefusedParts sends what cannot be read as a whole: nothing of it is taken, and what
// is right can be sent in its place.
func TestRefusedParts(t *testing.T) {
	w := newWorld(t)
	good := "cardId,label\n" + cardID(1) + ",x\n"
	for _, c := range []struct {
		name   string
		change func(*intake.Options)
		text   string
		says   string
	}{
		{"empty", nil, "", "empty"},
		{"a mark only", nil, "\uFEFF", "empty"},
		{"blank lines", nil, "\r\n\r\n", "empty"},
		{"no header", nil, cardID(1) + "," + puk(1) + "\n", "no header"},
		{"a header of others", nil, "a,b\n1,2\n", "no header"},
		{"an unknown column", nil, "cardId,label,colour\n", "by number: 3"},
		{"no card column", nil, "label\nx\n", `no column "cardId"`},
		{"a column twice", nil, "cardId,cardId\n", "twice"},
		{"a column that is not there", func(o *intake.Options) {
			o.Columns = map[intake.Field]string{intake.CardID: "cardId", intake.PUK: "pin2"}
			o.IgnoreOthers = true
		}, good, `no column "pin2"`},
		{"no template", func(o *intake.Options) { o.Template = "" }, good, "template"},
		{"an open quote", nil, good + cardID(2) + ",\"x\n" + cardID(3) + ",y\n", "line 3 begins a row whose quotes do not end"},
		{"a quote within", nil, good + cardID(2) + ",x\"y\"\n", "line 3 has a quotation mark at byte 35"},
		{"text after a quote", nil, good + cardID(2) + ",\"x\"y\n", "line 3"},
		{"UTF-16", nil, "\xff\xfec\x00a\x00", "line 1 is not UTF-8"},
		{"Latin 1", nil, good + cardID(2) + ",M\xfcller\n", "line 3 is not UTF-8"},
		{"10 MB", nil, good + cardID(2) + "," + strings.Repeat("x", 10_000_000), "at most 6291456"},
		{"no lines", byLine, "", "empty"},
	} {
		im := w.create()
		if c.change != nil {
			im = w.create(c.change)
		}
		_, err := w.Part(t.Context(), w.core, admin, im.ID, 1, []byte(c.text))
		var invalid *problem.InvalidError
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), puk(1)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
		if n := len(w.cards()); n != 0 {
			t.Fatalf("%s: %d cards came", c.name, n)
		}
		if parts, err := w.PartsOf(t.Context(), acme, im.ID); err != nil || len(parts) != 0 {
			t.Errorf("%s: the part counts as sent: %v %v", c.name, parts, err)
		}
	}
	im := w.create()
	if _, err := w.Part(t.Context(), w.core, admin, im.ID, 1, []byte("colour\n")); err == nil {
		t.Fatal("taken")
	}
	if got := w.bring(im, good); got.Taken != 1 {
		t.Errorf("what is right, after what was wrong: %+v", got)
	}
}

func TestOptions(t *testing.T) {
	w := newWorld(t)
	theirs := w.template(w.other, "PIV", "Theirs", 0)
	for field, change := range map[string]func(*intake.Options){
		"format":         func(o *intake.Options) { o.Format = "xlsx" },
		"delimiter":      func(o *intake.Options) { o.Delimiter = "|" },
		"columns":        func(o *intake.Options) { o.Columns = map[intake.Field]string{intake.CardID: "a", "pin": "b"} },
		"columns.label":  func(o *intake.Options) { o.Columns = map[intake.Field]string{intake.CardID: "a", intake.Label: "a"} },
		"columns.puk":    func(o *intake.Options) { o.Columns = map[intake.Field]string{intake.CardID: "a", intake.PUK: ""} },
		"columns.cardId": func(o *intake.Options) { o.Columns = map[intake.Field]string{intake.Label: "a"} },
		"template":       func(o *intake.Options) { o.Template = theirs },
	} {
		o := intake.Options{Format: intake.CSV, Template: w.piv}
		change(&o)
		_, err := w.Create(t.Context(), w.core, admin, o)
		var invalid *problem.InvalidError
		if !errors.As(err, &invalid) || invalid.Violations[0].Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestParts: parts are of one file. What was sent before changes nothing.
func TestParts(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	state := func(what string, _ intake.Part, err error) {
		t.Helper()
		if !errors.Is(err, problem.ErrState) {
			t.Errorf("%s: %v, want ErrState", what, err)
		}
	}
	try := func(im intake.Import, n int, text string) (intake.Part, error) {
		return w.Part(ctx, w.core, admin, im.ID, n, []byte(text))
	}
	im := w.create()
	one, two, three := "cardId,label\n"+cardID(1)+",a\nxx,b\n", cardID(2)+",c\n", "cardId,label\n"+cardID(3)+",d\nyy,e"
	p, err := try(im, 2, two)
	state("part 2 before the header", p, err)
	first := w.part(im, 1, one)
	w.part(im, 3, three) // out of order; it repeats the header, as some tools do
	if d := cmp.Diff([]string{"1|3||refused|cardId|must be the card's id in hex", "3|3||refused|cardId|must be the card's id in hex"}, w.result(im)); d != "" {
		t.Errorf("with a gap, lines are the parts' (-want +got):\n%s", d)
	}
	if _, err := w.Finish(ctx, w.core, admin, im.ID); !errors.Is(err, problem.ErrState) || !strings.Contains(err.Error(), "again: 2") {
		t.Errorf("finished with a gap: %v", err)
	}
	w.part(im, 2, two)
	if d := cmp.Diff([]string{"1|3||refused|cardId|must be the card's id in hex", "3|7||refused|cardId|must be the card's id in hex"}, w.result(im)); d != "" {
		t.Errorf("then they are the file's (-want +got):\n%s", d)
	}
	had := w.cards()
	if again := w.part(im, 1, one); again.Counts != first.Counts || again.Rows != 2 {
		t.Errorf("again: %+v, first %+v", again, first)
	}
	p, err = try(im, 1, one+"\n")
	state("part 1 with other content", p, err)
	if _, err := w.Finish(ctx, w.core, admin, im.ID); err != nil {
		t.Fatal(err)
	}
	if again := w.part(im, 1, one); again.Counts != first.Counts {
		t.Errorf("after the end: %+v, first %+v", again, first)
	}
	p, err = try(im, 4, cardID(4)+",x\n")
	state("another part after the end", p, err)
	if _, err := w.Cancel(ctx, w.core, admin, im.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("cancelled after the end: %v", err)
	}
	if d := cmp.Diff(had, w.cards()); d != "" {
		t.Errorf("cards changed (-before +now):\n%s", d)
	}

	im = w.create()
	db, once := w.Table, sync.Once{}
	w.on(before{db, func(ops []table.Op) {
		if ops[0].Item().Key == table.JobPartKey(acme, im.ID, 1) {
			once.Do(func() { w.on(db); w.part(im, 1, one) })
		}
	}})
	if p := w.part(im, 1, one); !p.Done || p.Rows != 2 {
		t.Errorf("a part that another request was faster with: %+v", p)
	}
	if _, err := w.Cancel(ctx, w.core, admin, im.ID); err != nil {
		t.Fatal(err)
	}
	p, err = try(im, 2, two)
	state("a part after it was cancelled", p, err)
	for _, n := range []int{0, -1, intake.MaxParts + 1} {
		if _, err := try(w.create(), n, one); err == nil {
			t.Errorf("part %d was taken", n)
		}
	}
	if _, err := try(intake.Import{ID: "01J8ZC9Q6Y0V4T5W3X2R1N0M9K"}, 1, one); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("an unknown import: %v", err)
	}
	if _, err := w.Part(ctx, w.other, admin, im.ID, 1, []byte(one)); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("another tenant's import: %v", err)
	}
}

// messy is a file of parts with n rows each, of which some are wrong, and cards come
// again: the same, and with other content; unless each is to be there once.
func messy(seed uint64, parts, n int, once bool) (texts []string) {
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
			b.WriteString("cardId,template,holderUsername,label,puk,pinExpiresAt\n")
		}
		for i := range n {
			k := r.IntN(parts * n)
			if once {
				k = 2 * (p*n + i)
			}
			fmt.Fprintf(&b, "%s,%s,%s,%s,%s,%s\n", mostly(cardID(k), "xx"), mostly("", "Staff", "Tokens"), mostly("", "ada", "nobody", "BOB"),
				mostly("a", "b", ""), mostly(puk(k), puk(k+1), "short", ""), mostly("", "2027-03-01", "2020-01-01"))
		}
		texts = append(texts, b.String())
	}
	return texts
}

// TestDryRun tells exactly what the import then does, and does nothing.
func TestDryRun(t *testing.T) {
	for seed := range uint64(testserver.Rounds(10, 2)) {
		w := newWorld(t)
		updates := seed%2 == 1
		change := func(o *intake.Options) { o.Update = updates }
		w.bring(w.create(), messy(100+seed, 1, 300, updates)...)
		before, records := w.cards(), len(w.recorded("credential/"+pivID(1)))
		texts := messy(seed, 3, 200, updates)
		tried := w.create(dry, change)
		told := w.bring(tried, texts...)
		if d := cmp.Diff(before, w.cards()); d != "" || len(w.recorded("credential/"+pivID(1))) != records {
			t.Fatalf("a dry run changed cards (-before +now):\n%s", d)
		}
		im := w.create(change)
		done := w.bring(im, texts...)
		if told != done || done.Taken == 0 || done.Unchanged == 0 || done.Refused == 0 || updates != (done.Updated > 0) {
			t.Errorf("told %+v, did %+v", told, done)
		}
		if d := cmp.Diff(w.result(tried), w.result(im)); d != "" {
			t.Errorf("seed %d (-told +done):\n%s", seed, d)
		}
	}
	w := newWorld(t)
	im := w.create(dry)
	w.part(im, 1, "cardId\n")
	if _, err := w.Part(t.Context(), w.core, admin, im.ID, 3, []byte(cardID(1))); !errors.Is(err, problem.ErrState) {
		t.Errorf("part 3 of a dry run before part 2: %v", err)
	}
}

// TestDiedHalfWay lets one call to the table after the other fail, with and without
// effect, and sends the part again: cards and result are as if nothing had happened.
func TestDiedHalfWay(t *testing.T) {
	text := messy(7, 1, 1500, false)[0]
	plain := newWorld(t)
	smooth := plain.create()
	plain.bring(smooth, text)
	for _, after := range []bool{false, true} {
		failed := 0
		for n := 1; ; n += 1 + n*testserver.Rounds(1, 12)/4 {
			w := newWorld(t)
			w.step.Store(int64(5 * time.Millisecond)) // a row takes that long: progress is saved on the way
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
			if d := cmp.Diff(plain.cards(), w.cards()); d != "" {
				t.Errorf("call %d, after %v (-want +got):\n%s", n, after, d)
			}
			if d := cmp.Diff(plain.result(smooth), w.result(im)); d != "" || plain.counts(smooth) != w.counts(im) {
				t.Errorf("call %d, after %v: %+v, want %+v (-want +got):\n%s", n, after, w.counts(im), plain.counts(smooth), d)
			}
			if t.Failed() {
				return
			}
		}
		if failed < testserver.Rounds(20, 3) {
			t.Errorf("only %d calls failed", failed)
		}
	}
}

// on lets all work on a table.
func (w *world) on(db table.Table) { w.Table, w.Credentials.Table, w.Users.Table = db, db, db }

// TestAtOnce: two imports of one file, and one part sent twice, at the same time. Each
// card comes once.
func TestAtOnce(t *testing.T) {
	w := newWorld(t)
	rows := testserver.Rounds(2000, 400)
	var b strings.Builder
	b.WriteString("cardId,holderUsername,puk\n")
	for i := range rows {
		fmt.Fprintf(&b, "%s,ada,%s\n", cardID(i), puk(i))
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
		t.Errorf("%+v and %+v, want each card taken once", x, y)
	}
	if n := len(w.cards()); n != rows {
		t.Errorf("%d cards", n)
	}
}

// TestCancelWhileItRuns: the part stops, and what it has taken is counted.
func TestCancelWhileItRuns(t *testing.T) {
	w := newWorld(t)
	im := w.create()
	var b strings.Builder
	b.WriteString("cardId\n")
	for i := range 20_000 {
		fmt.Fprintf(&b, "%s\nxx\n", cardID(i))
	}
	db := w.Table
	w.on(hooked{db, func(ops []table.Op) {
		if key := ops[len(ops)-1].Item().Key; key == table.JobPartKey(acme, im.ID, 1) && ops[len(ops)-1].Item().Version == 2 {
			_, err := w.Cancel(t.Context(), w.core, admin, im.ID)
			w.must(err)
		}
	}})
	if _, err := w.Part(t.Context(), w.core, admin, im.ID, 1, []byte(b.String())); !errors.Is(err, problem.ErrState) {
		t.Errorf("the part: %v", err)
	}
	if n, cards := w.counts(im).Taken, len(w.cards()); n != cards || n == 0 || n == 20_000 {
		t.Errorf("%d are counted as taken, %d are there", n, cards)
	}
}

// hooked is a table that tells of each Write that is done.
type hooked struct {
	table.Table
	done func([]table.Op)
}

func (h hooked) Write(ctx context.Context, ops ...table.Op) error {
	err := h.Table.Write(ctx, ops...)
	if err == nil {
		h.done(ops)
	}
	return err
}

// TestPatience: a part that takes too long for a request says how far it is, and goes on
// when it is sent again.
func TestPatience(t *testing.T) {
	w := newWorld(t)
	im := w.create()
	w.step.Store(int64(time.Second))
	var b strings.Builder
	b.WriteString("cardId,label\n")
	rows := testserver.Rounds(5000, 1500)
	for i := range rows {
		fmt.Fprintf(&b, "%s,%s\n", cardID(i%(rows-100)), "x")
	}
	calls := 0
	for p := (intake.Part{}); !p.Done; calls++ {
		p = w.part(im, 1, b.String())
	}
	if c := w.counts(im); calls < 2 || c.Taken != rows-100 || c.Unchanged != 100 {
		t.Errorf("%d calls, %+v", calls, c)
	}
	if len(w.cards()) != rows-100 {
		t.Errorf("%d cards", len(w.cards()))
	}
}

// TestPatienceOfDryRun: what a dry run recalls of the parts before counts too, and still each
// call comes further.
func TestPatienceOfDryRun(t *testing.T) {
	w := newWorld(t)
	im := w.create(dry)
	w.part(im, 1, "cardId\n"+cardID(0))
	w.on(slowToRead{w.Table, table.JobChunkKey(acme, im.ID, 1, 1), func() { w.looks.Add(20_000) }})
	w.step.Store(int64(time.Millisecond))
	text := strings.Repeat(cardID(0)+"\n", 2000)
	first := w.part(im, 2, text)
	if first.Done || first.Rows == 0 {
		t.Errorf("after 20 s: %+v", first)
	}
	if p := w.part(im, 2, text); p.Rows != 2000 || p.Counts.Unchanged != 2000 {
		t.Errorf("after %d rows: %+v", first.Rows, p)
	}
}

// slowToRead is a table in which something passes before one item is read.
type slowToRead struct {
	table.Table
	key    table.Key
	before func()
}

func (s slowToRead) Get(ctx context.Context, k table.Key) (table.Item, error) {
	if k == s.key {
		s.before()
	}
	return s.Table.Get(ctx, k)
}

// TestUpdate: with it, label and holder change; a PUK never does.
func TestUpdate(t *testing.T) {
	w := newWorld(t)
	const header = "cardId,holderUsername,label,puk\n"
	w.bring(w.create(), header+cardID(1)+",ada,a,"+puk(1)+"\n"+cardID(2)+",ada,a,"+puk(2)+"\n"+cardID(3)+",ada,a,"+puk(3)+"\n")
	im := w.create(update)
	got := w.bring(im, header+cardID(1)+",bob,b,"+puk(1)+"\n"+cardID(2)+",bob,b,"+puk(9)+"\n"+cardID(3)+",,c,\n")
	if got != (intake.Counts{Updated: 2, Refused: 1}) {
		t.Errorf("%+v: %v", got, w.result(im))
	}
	want := map[string]string{pivID(1): "Staff,bob,b,," + puk(1), pivID(2): "Staff,ada,a,," + puk(2), pivID(3): "Staff,ada,c,," + puk(3)}
	if d := cmp.Diff(want, w.cards()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if r := w.recorded(credential.Subject(pivID(1))); len(r) != 1 || r[0].Action != "credential.updated" {
		t.Errorf("recorded %+v", r)
	}
}

// TestNoGuessing: however many PUKs a part tells of one card, one of them is compared.
func TestNoGuessing(t *testing.T) {
	w := newWorld(t)
	w.bring(w.create(), "cardId,puk\n"+cardID(1)+","+puk(1)+"\n")
	rows := testserver.Rounds(3000, 1100)
	guesses := "cardId,puk\n"
	for i := range rows {
		guesses += cardID(1) + "," + puk(rows-i) + "\n"
	}
	for _, change := range []func(*intake.Options){func(*intake.Options) {}, dry} {
		im := w.create(change)
		if got := w.bring(im, guesses); got != (intake.Counts{Refused: rows}) {
			t.Errorf("%+v", got)
		}
		told := slices.DeleteFunc(w.recorded(intake.Subject(im.ID)), func(r audit.Record) bool { return r.Action != "import.secretsDiffer" })
		if len(told) != 1 || told[0].Details["credentials"] != pivID(1) {
			t.Errorf("recorded %+v", told)
		}
	}
}

// TestSealed imports secrets as JWE; in the file of the table, no secret is in the clear.
func TestSealed(t *testing.T) {
	path := t.TempDir() + "/table"
	db, err := bolt.Open(path, bolt.NoSync())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldOn(t, db)
	encrypt := func(key intake.Key, text string) string {
		var public jose.JSONWebKey
		w.must(public.UnmarshalJSON(key.JWK))
		if !public.IsPublic() || public.KeyID != key.ID {
			t.Errorf("the key is %s", key.JWK)
		}
		e, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: public.Key, KeyID: public.KeyID}, nil)
		w.must(err)
		jwe, err := e.Encrypt([]byte(text))
		w.must(err)
		s, err := jwe.CompactSerialize()
		w.must(err)
		return s
	}
	key, err := w.Key(t.Context(), w.core, admin)
	w.must(err)
	if again, err := w.Key(t.Context(), w.core, admin); err != nil || string(again.JWK) != string(key.JWK) {
		t.Errorf("asked again: %s, %v", again.JWK, err)
	}
	theirs, err := w.Key(t.Context(), w.other, admin)
	w.must(err)
	im := w.create()
	got := w.bring(im, "cardId,template,puk,adminKey\n"+
		cardID(1)+",,"+encrypt(key, puk(1))+",\n"+
		cardID(2)+",,"+encrypt(theirs, puk(2))+",\n"+
		cardID(3)+",Tokens,,"+encrypt(key, adminKey)+"\n"+
		cardID(4)+",,"+encrypt(key, "short")+",\n"+
		cardID(5)+",,"+puk(5)+",\n")
	if d := cmp.Diff([]string{
		"1|3|" + pivID(2) + "|refused|puk|is not a JWE to the tenant's import key by ECDH-ES+A256KW with A256GCM",
		"1|5|" + pivID(4) + "|refused|puk|must have exactly 8 characters, as every PIV card's PUK has; a card that was given a shorter one must be given a new one first",
	}, w.result(im)); d != "" || got.Taken != 3 {
		t.Errorf("%+v (-want +got):\n%s", got, d)
	}
	if cards := w.cards(); cards[pivID(1)] != "Staff,,,,"+puk(1) || !strings.HasSuffix(cards["gids-"+strings.ToLower(cardID(3))], adminKey) {
		t.Errorf("cards %v", cards)
	}
	w.must(db.Close())
	file, err := os.ReadFile(path)
	w.must(err)
	for _, s := range []string{puk(1), puk(2), puk(5), adminKey, strings.ToUpper(adminKey)} {
		if strings.Contains(string(file), s) {
			t.Errorf("the table shows %s", s)
		}
	}
	if !strings.Contains(string(file), pivID(1)) {
		t.Error("the table does not show what it should: the test looks at nothing")
	}
}

// TestFormulas: what a spreadsheet would run is text in the result.
func TestFormulas(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"=1+1", "+1", "-1", "@SUM(A1)"} {
		im := w.create(func(o *intake.Options) { o.Columns = map[intake.Field]string{intake.CardID: name} })
		w.bring(im, name+"\nxx\n")
		if got := w.result(im); len(got) != 1 || !strings.Contains(got[0], "|'"+name+"|") {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestResultHasAnEnd: rows beyond what is kept are counted, and a long result comes in
// several pieces.
func TestResultHasAnEnd(t *testing.T) {
	w := newWorld(t)
	name := strings.Repeat("n", 95) // the result repeats it
	im := w.create(func(o *intake.Options) {
		o.Columns = map[intake.Field]string{intake.CardID: name + "1", intake.PUK: name + "2"}
	})
	const rows = 15_000
	bad := strings.Repeat("xx,yyyy\n", rows)
	w.part(im, 1, name+"1,"+name+"2\n"+bad)
	for n := 2; n <= 4; n++ {
		w.part(im, n, bad)
	}
	parts, err := w.PartsOf(t.Context(), acme, im.ID)
	w.must(err)
	told := 0
	for i, p := range parts {
		if p.Counts.Refused != rows || p.Unkept == 0 || p.Unkept == rows {
			t.Errorf("part %d: %+v", i+1, p)
		}
		told += rows - p.Unkept
	}
	notes, lines := 0, map[string]bool{}
	for _, r := range w.result(im) {
		cells := strings.Split(r, "|")
		if strings.Contains(r, "more rows of this part") {
			notes++
		} else {
			lines[cells[1]] = true
		}
	}
	if notes != 4 || len(lines) != told || !lines[fmt.Sprint(2*rows+2)] {
		t.Errorf("%d notes, %d lines told of %d", notes, len(lines), told)
	}
}

func TestList(t *testing.T) {
	w := newWorld(t)
	w.step.Store(int64(time.Second))
	var want, got []string
	for range 7 {
		want = append(want, w.create().ID)
	}
	slices.Reverse(want)
	for place, more := "", true; more; more = place != "" {
		all, next, err := w.List(t.Context(), acme, place, 3)
		w.must(err)
		for _, im := range all {
			got = append(got, im.ID)
		}
		place = next
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if all, _, err := w.List(t.Context(), globex, "", 10); err != nil || len(all) != 0 {
		t.Errorf("another tenant sees %v %v", all, err)
	}
}

// TestGoneMeanwhile deletes what a row names after the row was read, and before its card is
// written: the row is refused, and no card is left without.
func TestGoneMeanwhile(t *testing.T) {
	for name, c := range map[string]struct {
		remove func(w *world) error
		told   string
	}{
		"template": {func(w *world) error { return w.Credentials.DeleteTemplate(t.Context(), w.core, admin, w.piv, 0) },
			"1|2|" + pivID(1) + "|refused|template|is not the id or the name of a credential template"},
		"holder": {func(w *world) error { return w.Users.Delete(t.Context(), w.core, admin, w.people["ada"]) },
			"1|2|" + pivID(1) + "|refused|holderUsername|names no user"},
	} {
		for _, counted := range []bool{false, true} {
			w := newWorld(t)
			if counted { // the template has had a card, in the shard that the row is counted in
				n := 0
				for table.Shard(pivID(n), table.CountShards) != 0 {
					n++
				}
				had, err := w.Credentials.Register(t.Context(), w.core, admin, credential.New{Family: "PIV", CardID: cardID(n), Template: w.piv})
				w.must(err)
				w.must(w.Credentials.Delete(t.Context(), w.core, admin, had.ID, 0, false))
			}
			db, once := w.Table, sync.Once{}
			w.on(before{db, func(ops []table.Op) {
				if ops[0].Item().Key == table.CredentialKey(acme, pivID(1)) {
					once.Do(func() { w.on(db); w.must(c.remove(w)) })
				}
			}})
			im := w.create()
			got := w.bring(im, "cardId,holderUsername\n"+cardID(1)+",ada\n")
			if d := cmp.Diff([]string{c.told}, w.result(im)); d != "" || got != (intake.Counts{Refused: 1}) {
				t.Errorf("%s, counted %v: %+v (-want +got):\n%s", name, counted, got, d)
			}
			if n := len(w.cards()); n != 0 {
				t.Errorf("%s, counted %v: %d cards", name, counted, n)
			}
		}
	}
}

// before is a table that tells of each Write before it is done.
type before struct {
	table.Table
	tell func([]table.Op)
}

func (b before) Write(ctx context.Context, ops ...table.Op) error {
	b.tell(ops)
	return b.Table.Write(ctx, ops...)
}
