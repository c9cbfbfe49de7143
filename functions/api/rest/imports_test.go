package rest_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/table"
)

type importShown struct {
	ID, State, Template string
	DryRun              bool
	Rows                struct{ Taken, Updated, Unchanged, Refused int }
	Parts               []struct {
		Part int
		Done bool
	}
	Warnings []string
}

// importOf begins an import of PIV cards and returns its path.
func (f *fixture) importOf(key string, more object) string {
	f.Helper()
	var templates struct{ Items []struct{ ID, Family string } }
	f.call("GET", "/v1/card-templates", key, nil).want(200).decode(&templates)
	i := slices.IndexFunc(templates.Items, func(t struct{ ID, Family string }) bool { return t.Family == "PIV" })
	template := ""
	if i >= 0 { // a tenant has no more than 100
		template = templates.Items[i].ID
	} else {
		template = f.cardTemplate(key, "PIV")
	}
	body := object{"format": "csv", "template": template}
	for name, v := range more {
		body[name] = v
	}
	return f.call("POST", "/v1/imports", key, body).want(201).header.Get("Location")
}

// TestImport sends a file in two parts: what an operator sees of it on the way and at its
// end, and of the cards.
func TestImport(t *testing.T) {
	f := newFixture(t)
	one, two, three, code := f.cardID(), f.cardID(), f.cardID(), f.puk()
	canary.secret("puk", code)
	sealed := f.puk()
	canary.secret("puk", sealed)
	holder := f.call("POST", "/v1/users", f.key, object{"username": "import-holder"}).want(201).text("id")

	var public jose.JSONWebKey
	key := f.call("GET", "/v1/import-key", f.key, nil).want(200)
	f.must(public.UnmarshalJSON(key.body))
	encrypter, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.KeyAlgorithm(public.Algorithm), Key: public.Key, KeyID: public.KeyID}, nil)
	f.must(err)
	jwe, err := encrypter.Encrypt([]byte(sealed))
	f.must(err)
	compact, err := jwe.CompactSerialize()
	f.must(err)

	path := f.importOf(f.key, object{"columns": object{"cardId": "GUID", "puk": "Code", "holderUsername": "User", "pinExpiresAt": "Until"}})
	first := "GUID;Code;User;Until\r\n"
	if p := f.call("PUT", path+"/parts/1", f.key, first, "Content-Type", "text/csv").want(422).problem(); !strings.Contains(p.Errors[0].Message, "no header") || p.Errors[0].Location != "body.part" {
		t.Errorf("with semicolons: %+v", p.Errors)
	}
	first = strings.ReplaceAll(first, ";", ",") + one + "," + code + ",IMPORT-holder,2031-01-31\r\n" + two + ",1234567,,\r\n"
	second := two + "," + compact + ",,\r\n" + three + ",,=cmd,\r\n"
	f.call("PUT", path+"/parts/2", f.key, second, "Content-Type", "text/csv").want(409)
	for range 2 { // the second time it changes nothing
		f.call("PUT", path+"/parts/1", f.key, first, "Content-Type", "text/csv").want(200)
	}
	get := func() (s importShown) {
		t.Helper()
		f.call("GET", path, f.key, nil).want(200).decode(&s)
		return s
	}
	if s := get(); s.State != "open" || s.Rows.Taken != 1 || s.Rows.Refused != 1 || len(s.Parts) != 1 || !s.Parts[0].Done || len(s.Warnings) != 1 {
		t.Errorf("on the way: %+v", s)
	}
	f.call("PUT", path+"/parts/2", f.key, second, "Content-Type", "application/x-ndjson").want(200) // in base64 through API Gateway
	f.call("POST", path+"/finish", f.key, nil).want(200)
	if s := get(); s.State != "finished" || s.Rows.Taken != 2 || s.Rows.Refused != 2 {
		t.Errorf("at the end: %+v", s)
	}
	result := f.call("GET", path+"/result", f.key, nil).want(200)
	want := "part,line,card,outcome,column,reason\n" +
		"1,3,piv-" + strings.ToLower(two) + ",refused,Code,\"must have exactly 8 characters, as every PIV card's PUK has; a card that was given a shorter one must be given a new one first\"\n" +
		"2,5,piv-" + strings.ToLower(three) + ",refused,User,names no user\n"
	if d := cmp.Diff(want, string(result.body)); d != "" || !strings.HasPrefix(result.header.Get("Content-Type"), "text/csv") {
		t.Errorf("%q (-want +got):\n%s", result.header.Get("Content-Type"), d)
	}
	var card struct {
		Holder, PINExpiresAt string
		PUK                  struct{ State string }
		Import               struct {
			ID         string
			Part, Line int
		}
	}
	f.call("GET", "/v1/credentials/piv-"+strings.ToLower(one), f.key, nil).want(200).decode(&card)
	if card.Holder != holder || card.PINExpiresAt != "2031-01-30T23:00:00Z" || card.PUK.State != "claimed" { // midnight in Berlin
		t.Errorf("the card is %+v", card)
	}
	f.call("GET", "/v1/credentials/piv-"+strings.ToLower(two), f.key, nil).want(200).decode(&card)
	if card.PUK.State != "claimed" || card.Import.Part != 2 || card.Import.Line != 1 || !strings.HasSuffix(path, card.Import.ID) {
		t.Errorf("the card with the encrypted PUK is %+v", card)
	}
	if a := f.call("GET", "/v1/audit?subject=import/"+strings.TrimPrefix(path, "/v1/imports/"), f.key, nil).want(200); !strings.Contains(string(a.body), strings.ToLower(one)) {
		t.Errorf("the import's audit log does not name the card: %s", a.body)
	}
	var list struct{ Items []importShown }
	f.call("GET", "/v1/imports", f.key, nil).want(200).decode(&list)
	if len(list.Items) != 1 || list.Items[0].State != "finished" {
		t.Errorf("listed %+v", list)
	}
	f.call("PUT", path+"/parts/3", f.key, second, "Content-Type", "text/csv").want(409)
	f.call("POST", path+"/cancel", f.key, nil).want(409)
	f.call("PUT", path+"/parts/2001", f.key, second, "Content-Type", "text/csv").want(422)
	f.call("POST", "/v1/imports", f.key, object{"format": "csv", "columns": object{"cardId": "a", "pin": "b"}, "template": "x"}).want(422)
}

// TestImportParts: a part of 4 MiB passes API Gateway, however it is sent; one over its
// limit is told so.
func TestImportParts(t *testing.T) {
	f := newFixture(t)
	path := f.importOf(f.key, object{"dryRun": true})
	const row = 4096 // bytes: they are what passes, and few rows are quickly done
	text := "cardId,label\n" + strings.Repeat("xx,"+strings.Repeat("x", row-4)+"\n", (4<<20)/row)
	for n, kind := range []string{"application/octet-stream", "text/csv"} { // in base64 through API Gateway, and as it is
		f.call("PUT", fmt.Sprintf("%s/parts/%d", path, n+1), f.key, text[:4<<20], "Content-Type", kind).want(200)
	}
	a, err := http.NewRequest("PUT", f.url+path+"/parts/3", strings.NewReader(strings.Repeat("xx\n", 10_000_000/3)))
	f.must(err)
	a.Header.Set("Authorization", "Bearer "+f.key)
	resp, err := http.DefaultClient.Do(a)
	f.must(err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("10 MB: %s", resp.Status)
	}
}

// TestImportPartNotDone: a part for which a call has too little time is answered how far it
// is, and is done when it is sent again.
func TestImportPartNotDone(t *testing.T) {
	f := newFixture(t)
	path := f.importOf(f.key, nil)
	var b strings.Builder
	b.WriteString("cardId\n")
	for range 1500 {
		b.WriteString(f.cardID() + "\n")
	}
	f.table.breakWith(func([]table.Op) error { f.clock.advance(time.Second); return nil }) // so slow is it
	a := f.call("PUT", path+"/parts/1", f.key, b.String(), "Content-Type", "text/csv").want(503)
	if !strings.Contains(a.problem().Detail, "send it again") || a.header.Get("Retry-After") == "" {
		t.Errorf("%v %s", a.header, a.body)
	}
	f.table.breakWith(nil)
	f.call("PUT", path+"/parts/1", f.key, b.String(), "Content-Type", "text/csv").want(200)
	var s importShown
	f.call("POST", path+"/finish", f.key, nil).want(200).decode(&s)
	if s.Rows.Taken != 1500 || s.Rows.Unchanged != 0 {
		t.Errorf("%+v", s)
	}
}

// TestImportLoop runs the commands that the description gives, on a file of several parts.
func TestImportLoop(t *testing.T) {
	for _, tool := range []string{"sh", "split", "curl"} {
		_, err := exec.LookPath(tool)
		testserver.Need(t, err)
	}
	f := newFixture(t)
	var loop string
	for _, op := range f.operations() {
		if op.OperationID == "create-import" {
			_, rest, _ := strings.Cut(op.Description, "`")
			loop, _, _ = strings.Cut(rest, "`")
		}
	}
	path := f.importOf(f.key, nil)
	dir := t.TempDir()
	var b strings.Builder
	b.WriteString("cardId,label\n")
	for range 600 {
		fmt.Fprintf(&b, "%s,Card\n", f.cardID())
	}
	f.must(os.WriteFile(filepath.Join(dir, "cards.csv"), []byte(b.String()), 0o600))
	loop = strings.Replace(loop, "4m", "10k", 1)
	cmd := exec.Command("sh", "-c", loop)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "KEY="+f.key, "API="+f.url, "ID="+strings.TrimPrefix(path, "/v1/imports/"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", loop, err, out)
	}
	var s importShown
	f.call("POST", path+"/finish", f.key, nil).want(200).decode(&s)
	if s.Rows.Taken != 600 || len(s.Parts) != 3 {
		t.Errorf("%+v", s)
	}
}

// userImport begins an import of users and returns its path.
func (f *fixture) userImport(key string, more object) string {
	f.Helper()
	body := object{"format": "csv"}
	for name, v := range more {
		body[name] = v
	}
	return f.call("POST", "/v1/user-imports", key, body).want(201).header.Get("Location")
}

// TestUserImport sends people with PINs: in the clear, encrypted, and one that the policy
// refuses. They can use them, and an import of cards is none of users.
func TestUserImport(t *testing.T) {
	f := newFixture(t)
	clear, sealed := f.pin(), f.pin()
	one, two, three := f.unique("imported"), f.unique("imported"), f.unique("imported")
	var public jose.JSONWebKey
	f.must(public.UnmarshalJSON(f.call("GET", "/v1/import-key", f.key, nil).want(200).body))
	encrypter, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.KeyAlgorithm(public.Algorithm), Key: public.Key, KeyID: public.KeyID}, nil)
	f.must(err)
	jwe, err := encrypter.Encrypt([]byte(sealed))
	f.must(err)
	compact, err := jwe.CompactSerialize()
	f.must(err)

	path := f.userImport(f.key, object{"columns": object{"username": "Login", "externalId": "HR", "groups": "Units", "pin": "Code"}})
	file := "Login,HR,Units,Code\r\n" + one + ",HR-" + one + ",staff;lab," + clear + "\r\n" + two + ",,," + compact + "\r\n" + three + ",,,1234\r\n"
	for range 2 { // the second time it changes nothing
		f.call("PUT", path+"/parts/1", f.key, file, "Content-Type", "text/csv").want(200)
	}
	var s importShown
	f.call("POST", path+"/finish", f.key, nil).want(200).decode(&s)
	if s.State != "finished" || s.Rows.Taken != 2 || s.Rows.Refused != 1 {
		t.Errorf("at the end: %+v", s)
	}
	result := f.call("GET", path+"/result", f.key, nil).want(200)
	if rows := strings.Split(string(result.body), "\n"); rows[0] != "part,line,user,outcome,column,reason" || !strings.HasPrefix(rows[1], "1,4,"+three+",refused,Code,") || strings.Contains(string(result.body), "1234") {
		t.Errorf("the result is %s", result.body)
	}
	for name, pin := range map[string]string{one: clear, two: sealed} {
		if !strings.Contains(string(f.call("POST", "/v1/pins/verify", f.key, object{"username": name, "pin": pin}).want(200).body), "true") {
			t.Errorf("the PIN of %s is not right", name)
		}
	}
	var list struct {
		Items []struct {
			Groups []string
			Import struct {
				ID         string
				Part, Line int
			}
		}
	}
	f.call("GET", "/v1/users?externalId=HR-"+one, f.key, nil).want(200).decode(&list)
	if len(list.Items) != 1 || !slices.Equal(list.Items[0].Groups, []string{"staff", "lab"}) || list.Items[0].Import.Line != 2 || !strings.HasSuffix(path, list.Items[0].Import.ID) {
		t.Errorf("the user is %+v", list)
	}
	for _, at := range []string{"", "/result"} {
		f.call("GET", strings.Replace(path, "user-imports", "imports", 1)+at, f.key, nil).want(404)
	}
	f.call("POST", "/v1/user-imports", f.key, object{"format": "csv", "template": "x"}).want(422)
	f.call("POST", "/v1/user-imports", f.key, object{"format": "csv", "columns": object{"username": "a", "puk": "b"}}).want(422)
}
