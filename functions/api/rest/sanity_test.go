package rest_test

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// support turns a tenant's support functions on.
func (f *fixture) support(key string) {
	f.Helper()
	f.call("PUT", "/v1/settings", key, object{"displayName": "Acme", "timeZone": "Europe/Berlin", "language": "en", "pinOnlyLogin": true, "expiryMail": object{}, "supportFunctions": true}).want(200)
}

// withoutFlag registers a card without a PIN expiry flag, and returns its template, which
// manages that for 100 days.
func (f *fixture) withoutFlag(key string) string {
	f.Helper()
	name := key + "managed"
	if f.cardTemplates == nil {
		f.cardTemplates = map[string]string{}
	}
	if f.cardTemplates[name] == "" {
		f.cardTemplates[name] = f.call("POST", "/v1/card-templates", key, object{"name": "Managed", "family": "PIV", "pinValidDays": 100}).want(201).text("id")
	}
	f.call("POST", "/v1/credentials", key, object{"family": "PIV", "cardId": f.cardID(), "template": f.cardTemplates[name]}).want(201)
	return f.cardTemplates[name]
}

// The whole of it, as an administrator does it.
func TestSanityCheck(t *testing.T) {
	f := newFixture(t)
	for _, op := range f.operations() {
		if strings.HasPrefix(op.path, "/v1/sanity-check") {
			a := f.call(op.method, strings.ReplaceAll(op.path, "{run}", "01J8ZC9Q6Y0V4T5W3X2R1N0M9K"), f.key, map[bool]any{true: object{"templates": []string{"x"}}}[op.OperationID == "plan-sanity-check-run"])
			if a.status != 403 || !strings.Contains(string(a.body), "supportFunctions") {
				t.Errorf("%s while support functions are off: %d %s", op.OperationID, a.status, a.body)
			}
		}
	}
	f.support(f.key)
	var template string
	for range 9 {
		template = f.withoutFlag(f.key)
	}
	f.cardTemplates[f.key+"unmanaged"] = f.cardTemplate(f.key, "PIV")
	unmanaged := f.cardTemplates[f.key+"unmanaged"]
	f.call("POST", "/v1/credentials", f.key, object{"family": "PIV", "cardId": f.cardID(), "template": unmanaged}).want(201)
	f.call("POST", "/v1/credentials", f.key, object{"family": "PIV", "cardId": f.cardID(), "template": template, "label": "=1+1"}).want(201)

	type report struct {
		Cards     int
		Templates []struct {
			ID, Name            string
			PINValidDays, Cards int
		}
	}
	var r report
	f.call("GET", "/v1/sanity-check", f.key, nil).want(200).decode(&r)
	if r.Cards != 10 || len(r.Templates) != 1 || r.Templates[0].ID != template || r.Templates[0].Cards != 10 || r.Templates[0].PINValidDays != 100 {
		t.Errorf("the report is %+v", r)
	}
	var list struct {
		Items      []struct{ ID, CardID, Label string }
		NextCursor string
	}
	f.call("GET", "/v1/sanity-check/cards?limit=200", f.key, nil).want(200).decode(&list)
	if len(list.Items) != 10 || list.NextCursor != "" {
		t.Errorf("the list is %+v", list)
	}

	// In pages of 4: the header comes once, and Link leads to the end.
	var text string
	pages := 0
	for path := "/v1/sanity-check/export?limit=4"; path != ""; pages++ {
		a := f.call("GET", path, f.key, nil).want(200)
		if got := a.header.Get("Content-Type"); got != "text/csv; charset=utf-8" {
			t.Fatalf("CSV is %q", got)
		}
		text += string(a.body)
		path = ""
		if m := regexp.MustCompile(`^<([^>]*)>; rel="next"$`).FindStringSubmatch(a.header.Get("Link")); m != nil {
			path = m[1]
		}
	}
	rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil || len(rows) != 11 || pages != 3 || !strings.Contains(text, "'=1+1") {
		t.Errorf("%d pages, %d rows, %v: %s", pages, len(rows), err, text)
	}
	a := f.call("GET", "/v1/sanity-check/export?format=text&template="+template, f.key, nil).want(200)
	if lines := strings.Split(strings.TrimSpace(string(a.body)), "\n"); len(lines) != 11 || !strings.HasPrefix(lines[0], "cardId\tfamily") || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
		t.Errorf("%s: %s", a.header, a.body)
	}

	type run struct {
		ID, State, Seed, Today string
		Cards, Set, Removed    int
		EstimatedSeconds       int
		ExpiresAt, StartedAt   time.Time
		Histogram              []struct {
			Date  string
			Cards int
		}
		Templates []struct {
			ID, Name, From, To string
			Cards              int
		}
	}
	var plan run
	p := f.call("POST", "/v1/sanity-check/runs", f.key, object{"templates": []string{template}, "random": true, "beforeDays": 3, "afterDays": 3, "dailyCap": 2}).want(201)
	p.decode(&plan)
	if p.header.Get("Location") != "/v1/sanity-check/runs/"+plan.ID || plan.State != "planned" || plan.Cards != 10 || plan.EstimatedSeconds < 1 || !plan.ExpiresAt.Equal(f.clock.Now().Add(time.Hour).UTC().Truncate(time.Second)) {
		t.Errorf("the plan is %+v", plan)
	}
	today, err := time.Parse(time.DateOnly, plan.Today)
	if err != nil {
		t.Fatal(err)
	}
	if tm := plan.Templates; len(tm) != 1 || tm[0].Name != "Managed" || tm[0].From != today.AddDate(0, 0, 97).Format(time.DateOnly) || tm[0].To != today.AddDate(0, 0, 103).Format(time.DateOnly) {
		t.Errorf("templates %+v on %s", tm, plan.Today)
	}
	sum := 0
	for _, d := range plan.Histogram {
		if sum += d.Cards; d.Cards > 2 {
			t.Errorf("%+v, want 2 a day at most", d)
		}
	}
	if sum != 10 {
		t.Errorf("the histogram has %d cards", sum)
	}
	path := "/v1/sanity-check/runs/" + plan.ID
	var done, read, undone run
	f.call("POST", path+"/start", f.key, nil).want(200).decode(&done)
	if done.State != "done" || done.Set != 10 {
		t.Errorf("the run is %+v", done)
	}
	f.call("GET", "/v1/sanity-check", f.key, nil).want(200).decode(&r)
	if r.Cards != 0 {
		t.Errorf("after it %d cards have no flag", r.Cards)
	}
	if c := f.call("GET", "/v1/credentials/"+list.Items[0].ID, f.key, nil).want(200); !strings.Contains(string(c.body), plan.ID) || !strings.Contains(string(c.body), "sanityCheck") {
		t.Errorf("the card does not tell the run: %s", c.body)
	}
	for what, want := range map[string]int{"/start": 409, "/cancel": 409} {
		f.call("POST", path+what, f.key, nil).want(want)
	}
	f.call("POST", path+"/undo", f.key, nil).want(200).decode(&undone)
	f.call("POST", path+"/undo", f.key, nil).want(200).decode(&undone)
	if undone.State != "undone" || undone.Removed != 10 {
		t.Errorf("undone: %+v", undone)
	}
	f.call("GET", path, f.key, nil).want(200).decode(&read)
	if fmt.Sprint(read) != fmt.Sprint(undone) {
		t.Errorf("read %+v, undone %+v", read, undone)
	}
	var runs struct{ Items []run }
	f.call("GET", "/v1/sanity-check/runs", f.key, nil).want(200).decode(&runs)
	if len(runs.Items) != 1 || runs.Items[0].ID != plan.ID {
		t.Errorf("runs %+v", runs)
	}
	if a := f.call("GET", "/v1/audit?subject=sanityCheck/"+plan.ID, f.key, nil).want(200); !strings.Contains(string(a.body), "sanityCheck.started") || !strings.Contains(string(a.body), "sanityCheck.undone") {
		t.Errorf("the audit log has %s", a.body)
	}
}

func TestSanityCheckBadInput(t *testing.T) {
	f := newFixture(t)
	f.support(f.key)
	template, unmanaged := f.withoutFlag(f.key), f.cardTemplate(f.key, "PIV")
	empty := f.call("POST", "/v1/card-templates", f.key, object{"name": "Empty", "family": "PIV", "pinValidDays": 9}).want(201).text("id")
	theirs := f.tenant("other")
	f.support(theirs)
	other := f.withoutFlag(theirs)
	random := func(o object) object {
		o["templates"], o["random"] = []string{template}, true
		return o
	}
	for name, c := range map[string]struct {
		body any
		want string // location and code
	}{
		"before is the validity": {random(object{"beforeDays": 100}), `"range","location":"body.beforeDays"`},
		"negative":               {random(object{"beforeDays": -1}), `"range","location":"body.beforeDays"`},
		"huge":                   {random(object{"afterDays": 1 << 40}), `"range","location":"body.afterDays"`},
		"cap 0":                  {random(object{"dailyCap": 0}), `"range","location":"body.dailyCap"`},
		"cap below 0":            {random(object{"dailyCap": -1}), `"range","location":"body.dailyCap"`},
		"bad seed":               {random(object{"seed": "=1"}), `"malformed","location":"body.seed"`},
		"no templates":           {object{"templates": []string{}}, `"count","location":"body.templates"`},
		"unknown":                {object{"templates": []string{"x"}}, `"unknown","location":"body.templates.0"`},
		"another tenant's":       {object{"templates": []string{other}}, `"unknown","location":"body.templates.0"`},
		"unmanaged":              {object{"templates": []string{unmanaged}}, `"inconsistent","location":"body.templates.0"`},
		"no cards":               {object{"templates": []string{empty}}, `"noCards","location":"body.templates"`},
	} {
		a := f.call("POST", "/v1/sanity-check/runs", f.key, c.body).want(http.StatusUnprocessableEntity)
		if !strings.Contains(string(a.body), c.want) {
			t.Errorf("%s: %s, want %s", name, a.body, c.want)
		}
	}
	for _, path := range []string{"cards?limit=0", "export?limit=5001", "export?format=xls", "export?cursor=AA", "cards?cursor=AA"} {
		if a := f.call("GET", "/v1/sanity-check/"+path, f.key, nil); a.status != 422 && a.status != 400 {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}

	settings := func(o object) object {
		all := object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": true, "expiryMail": object{}}
		for k, v := range o {
			all[k] = v
		}
		return all
	}
	f.call("PUT", "/v1/settings", f.key, settings(object{"sanityCheckAfterImport": object{"mode": "exact"}})).want(422)
	f.call("PUT", "/v1/settings", f.key, settings(object{"supportFunctions": true, "sanityCheckAfterImport": object{"mode": "daily"}})).want(422)
	f.call("PUT", "/v1/settings", f.key, settings(object{"supportFunctions": true, "sanityCheckAfterImport": object{"mode": "exact", "beforeDays": 1}})).want(422)
	f.call("PUT", "/v1/settings", f.key, settings(object{"supportFunctions": true, "sanityCheckAfterImport": object{"mode": "random", "beforeDays": 3, "afterDays": 5}})).want(200)
	got := string(f.call("GET", "/v1/settings", f.key, nil).want(200).body)
	if !strings.Contains(got, `"supportFunctions":true`) || !strings.Contains(got, `"sanityCheckAfterImport":{"mode":"random","beforeDays":3,"afterDays":5}`) {
		t.Errorf("settings are %s", got)
	}
	f.call("PUT", "/v1/settings", f.key, settings(nil)).want(200)
	if got := string(f.call("GET", "/v1/settings", f.key, nil).want(200).body); !strings.Contains(got, `"supportFunctions":false`) || !strings.Contains(got, `"mode":"off"`) {
		t.Errorf("settings are %s", got)
	}
}
