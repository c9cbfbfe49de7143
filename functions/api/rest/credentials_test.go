package rest_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestCardLife registers a card, says what its PUK is, gives it to somebody else, and
// deletes it; what an operator sees of it is told at each step.
func TestCardLife(t *testing.T) {
	f := newFixture(t)
	holder, other := f.user(f.key, ""), f.user(f.key, "")
	template := f.cardTemplate(f.key, "PIV")
	cardID := f.cardID()
	made := f.call("POST", "/v1/credentials", f.key, object{
		"family": "PIV", "cardId": strings.ToLower(cardID), "template": template, "holder": holder, "label": "Ada's card", "puk": f.puk(), "pukTriesLeft": 3,
	}).want(201)
	path := "/v1/credentials/piv-" + strings.ToLower(cardID)
	if made.header.Get("Location") != path || made.header.Get("ETag") != `"1"` {
		t.Errorf("Location %q, ETag %q", made.header.Get("Location"), made.header.Get("ETag"))
	}
	type shown struct {
		ID, Family, CardID, Template, Holder, Label, State string
		PUK                                                struct {
			State             string
			TriesLeft, Former int
		}
		AdminKeyEscrowed bool
	}
	get := func() (s shown) {
		t.Helper()
		f.call("GET", path, f.key, nil).want(200).decode(&s)
		return s
	}
	want := shown{ID: strings.TrimPrefix(path, "/v1/credentials/"), Family: "PIV", CardID: cardID, Template: template, Holder: holder, Label: "Ada's card", State: "registered"}
	want.PUK.State, want.PUK.TriesLeft = "claimed", 3
	if d := cmp.Diff(want, get()); d != "" {
		t.Errorf("registered (-want +got):\n%s", d)
	}
	again := f.call("POST", "/v1/credentials", f.key, object{"family": "PIV", "cardId": cardID, "template": template}).want(409)
	if p := again.problem(); !strings.Contains(p.Detail, "registered already") {
		t.Errorf("once more: %q", p.Detail)
	}

	f.call("PUT", path+"/puk", f.key, object{"puk": f.puk()}).want(200)
	f.call("PUT", path+"/puk", f.key, object{"former": true, "pukTriesLeft": 2}).want(200)
	want.PUK.TriesLeft, want.PUK.Former = 2, 1
	if d := cmp.Diff(want, get()); d != "" {
		t.Errorf("after two claims (-want +got):\n%s", d)
	}
	f.call("PUT", path+"/puk/tries", f.key, object{"pukTriesLeft": 1}).want(200)
	want.PUK.TriesLeft = 1
	second := f.cardTemplate(f.key, "PIV")
	f.call("PATCH", path, f.key, object{"template": second, "holder": other, "label": ""}, "If-Match", `"4"`).want(200)
	want.Template, want.Holder, want.Label = second, other, ""
	if d := cmp.Diff(want, get()); d != "" {
		t.Errorf("after a change (-want +got):\n%s", d)
	}
	f.call("PATCH", path, f.key, object{"label": "x"}, "If-Match", `"4"`).want(412)

	listed := func(query string) (ids []string) {
		t.Helper()
		var list struct{ Items []shown }
		f.call("GET", "/v1/credentials"+query, f.key, nil).want(200).decode(&list)
		for _, c := range list.Items {
			ids = append(ids, c.ID)
		}
		return ids
	}
	if d := cmp.Diff([]string{want.ID}, listed("?holder="+other)); d != "" || listed("?holder="+holder) != nil {
		t.Errorf("held (-want +got):\n%s", d)
	}
	f.call("DELETE", "/v1/users/"+other, f.key, nil).want(204)
	if get().Holder != other {
		t.Error("a card whose holder is gone does not tell whose it was")
	}

	if p := f.call("DELETE", "/v1/card-templates/"+second, f.key, nil).want(409).problem(); !strings.Contains(p.Detail, "1 credentials have this template") {
		t.Errorf("its template: %q", p.Detail)
	}
	if p := f.call("DELETE", path, f.key, nil).want(409).problem(); !strings.Contains(p.Detail, "confirm") {
		t.Errorf("unconfirmed: %q", p.Detail)
	}
	f.call("DELETE", path+"?confirm=true", f.key, nil).want(204)
	f.call("GET", path, f.key, nil).want(404)
	f.call("DELETE", "/v1/card-templates/"+second, f.key, nil).want(204)

	var audit struct {
		Items []struct {
			Action  string
			Details map[string]string
		}
	}
	f.call("GET", "/v1/audit?subject=credential/"+want.ID, f.key, nil).want(200).decode(&audit)
	var actions []string
	for _, r := range audit.Items {
		actions = append(actions, strings.TrimPrefix(r.Action, "credential."))
	}
	if d := cmp.Diff([]string{"deleted", "updated", "pukTriesObserved", "pukClaimed", "pukClaimed", "registered"}, actions); d != "" {
		t.Errorf("the audit log (-want +got):\n%s", d)
	}
}

// TestCardTemplates: the policy left out is the family's; the master key is never shown,
// and stays when it is left out.
func TestCardTemplates(t *testing.T) {
	f := newFixture(t)
	messaging := f.outboxConfiguration(f.key)
	type shown struct {
		Name, Family, Messaging string
		Policy                  struct {
			MinLength, MaxLength int
			Alphabet             string
			BlocklistEntries     []string
		}
		Channels     []string
		PINValidDays int
		MasterKeySet bool
		Credentials  *int
	}
	path := f.call("POST", "/v1/card-templates", f.key, object{
		"name": "Staff", "family": "GIDS", "masterKey": strings.Repeat("c5", 32), "messaging": messaging, "channels": []string{"selfService", "operator"}, "pinValidDays": 365,
		"policy": object{"maxLength": 12, "blocklistEntries": []string{"Pinward7"}},
	}).want(201).header.Get("Location")
	get := func() (s shown) {
		t.Helper()
		f.call("GET", path, f.key, nil).want(200).decode(&s)
		return s
	}
	none := 0
	want := shown{Name: "Staff", Family: "GIDS", Messaging: messaging, Channels: []string{"selfService", "operator"}, PINValidDays: 365, MasterKeySet: true, Credentials: &none}
	want.Policy.MinLength, want.Policy.MaxLength, want.Policy.Alphabet, want.Policy.BlocklistEntries = 4, 12, "alphanumeric", []string{"Pinward7"}
	if d := cmp.Diff(want, get()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if a := f.call("GET", "/v1/card-templates", f.key, nil).want(200); strings.Contains(string(a.body), "Pinward7") || !strings.Contains(string(a.body), `"Staff"`) {
		t.Errorf("the list is %s", a.body)
	}
	card := f.call("POST", "/v1/credentials", f.key, object{"family": "GIDS", "cardId": f.cardID(), "template": strings.TrimPrefix(path, "/v1/card-templates/")}).want(201).text("id")
	f.call("PUT", path, f.key, object{"name": "Staff", "family": "GIDS"}, "If-Match", `"1"`).want(200)
	one := 1
	want = shown{Name: "Staff", Family: "GIDS", Channels: []string{}, MasterKeySet: true, Credentials: &one}
	want.Policy.MinLength, want.Policy.MaxLength, want.Policy.Alphabet, want.Policy.BlocklistEntries = 4, 16, "alphanumeric", []string{}
	if d := cmp.Diff(want, get()); d != "" {
		t.Errorf("after a change (-want +got):\n%s", d)
	}
	f.call("PUT", path, f.key, object{"name": "Staff", "family": "GIDS"}, "If-Match", `"1"`).want(412)
	if p := f.call("PUT", path, f.key, object{"name": "Staff", "family": "GIDS", "masterKey": strings.Repeat("d6", 32)}).want(409).problem(); !strings.Contains(p.Detail, "master key") {
		t.Errorf("another master key: %q", p.Detail)
	}
	f.call("PUT", "/v1/credentials/"+card+"/admin-key", f.key, object{"adminKey": adminKey}).want(200)
	if p := f.call("PUT", "/v1/credentials/"+card+"/admin-key", f.key, object{"adminKey": adminKey}).want(409).problem(); !strings.Contains(p.Detail, "replaced") {
		t.Errorf("another admin key: %q", p.Detail)
	}

	// PIV's digits, whatever the tenant's own policy is.
	f.policy(object{"minLength": 12})
	var piv shown
	f.call("GET", "/v1/card-templates/"+f.cardTemplate(f.key, "PIV"), f.key, nil).want(200).decode(&piv)
	if p := piv.Policy; p.MinLength != 6 || p.MaxLength != 8 || p.Alphabet != "digits" {
		t.Errorf("the policy of PIV cards is %+v", p)
	}
}

// TestBadCards sends what is not right: each answer tells where it is wrong, and nothing
// is made.
func TestBadCards(t *testing.T) {
	f := newFixture(t)
	piv, gids := f.cardTemplate(f.key, "PIV"), f.cardTemplate(f.key, "GIDS")
	card, token := f.credential(f.key, "PIV"), f.credential(f.key, "GIDS")
	theirs := f.tenant("other")
	theirTemplate, theirUser := f.cardTemplate(theirs, "PIV"), f.user(theirs, "")
	before := f.call("GET", "/v1/credentials", f.key, nil).want(200).comparable() + f.call("GET", "/v1/card-templates", f.key, nil).want(200).comparable()
	cardID := f.cardID()
	register := func(family string, with object) object {
		body := object{"family": family, "cardId": cardID, "template": piv}
		if family == "GIDS" {
			body["template"] = gids
		}
		for name, v := range with {
			body[name] = v
		}
		return body
	}
	const cards, templates = "/v1/credentials", "/v1/card-templates"
	for _, c := range []struct {
		name         string
		method, path string
		body         object
		location     string
		says         string
	}{
		{"card id not in hex", "POST", cards, register("PIV", object{"cardId": "no hex"}), "body.cardId", "hex"},
		{"card id of another length", "POST", cards, register("PIV", object{"cardId": "0011"}), "body.cardId", "PIV"},
		{"unknown family", "POST", cards, register("CAC", nil), "body.family", "PIV or GIDS"},
		{"PUK of 7", "POST", cards, register("PIV", object{"puk": "4815162"}), "body.puk", "exactly 8"},
		{"PUK of 9", "POST", cards, register("PIV", object{"puk": "481516234"}), "body.puk", "exactly 8"},
		{"number for PUK", "POST", cards, register("PIV", object{"puk": 48151623}), "body.puk", "expected string"},
		{"PUK for GIDS", "POST", cards, register("GIDS", object{"puk": f.puk()}), "body.puk", "admin key"},
		{"tries of no PUK", "POST", cards, register("PIV", object{"pukTriesLeft": 3}), "body.pukTriesLeft", "none is given"},
		{"admin key for PIV", "POST", cards, register("PIV", object{"adminKey": adminKey}), "body.adminKey", "PUK"},
		{"admin key not in hex", "POST", cards, register("GIDS", object{"adminKey": "x" + adminKey[1:]}), "body.adminKey", "hex"},
		{"short admin key", "POST", cards, register("GIDS", object{"adminKey": adminKey[2:]}), "body.adminKey", "24 bytes"},
		{"template of the other family", "POST", cards, register("PIV", object{"template": gids}), "body.template", "GIDS"},
		{"another tenant's template", "POST", cards, register("PIV", object{"template": theirTemplate}), "body.template", "not the id"},
		{"another tenant's holder", "POST", cards, register("PIV", object{"holder": theirUser}), "body.holder", "not the id"},
		{"unknown state", "POST", cards, register("PIV", object{"state": "lost"}), "body.state", "suspended or retired"},
		{"issued in the future", "POST", cards, register("PIV", object{"issuedAt": "2099-01-01T00:00:00Z"}), "body.issuedAt", "future"},
		{"a flag in the past", "POST", cards, register("PIV", object{"pinExpiresAt": "2020-01-01T00:00:00Z"}), "body.pinExpiresAt", "future"},
		{"a serial with a line break", "POST", cards, register("PIV", object{"serial": "1\n2"}), "body.serial", "control characters"},
		{"move to no state", "PATCH", cards + "/" + card, object{"state": "lost"}, "body.state", "suspended or retired"},
		{"suspended without a reason", "PATCH", cards + "/" + card, object{"state": "suspended"}, "body.reason", "must say why"},
		{"suspended for no reason that there is", "PATCH", cards + "/" + card, object{"state": "suspended", "reason": "because"}, "body.reason", "lost, stolen"},
		{"PIN changed in the future", "POST", cards + "/" + card + "/pin-changed", object{"at": "2099-01-01T00:00:00Z"}, "body.at", "future"},
		{"filter by no state", "GET", cards + "?state=lost", nil, "query.state", "suspended"},
		{"expiring within a negative time", "GET", cards + "?expiringWithinDays=-1", nil, "query.expiringWithinDays", ">= 0"},
		{"expired without flag", "GET", cards + "?expired=true&withoutFlag=true", nil, "query.withoutFlag", "no expiry"},
		{"expired and going to", "GET", cards + "?expired=true&expiringWithinDays=3", nil, "query.expired", "expiringWithinDays"},
		{"card id prefix not in hex", "GET", cards + "?cardId=xyz", nil, "query.cardId", "hex"},
		{"unknown field", "POST", cards, register("PIV", object{"pin": "739158"}), "body.pin", "unexpected property"},
		{"change of family", "PATCH", cards + "/" + card, object{"family": "GIDS"}, "body.family", "unexpected property"},
		{"change to the other family's template", "PATCH", cards + "/" + card, object{"template": gids}, "body.template", "GIDS"},
		{"claim of 7", "PUT", cards + "/" + card + "/puk", object{"puk": "4815162"}, "body.puk", "exactly 8"},
		{"claim of nothing", "PUT", cards + "/" + card + "/puk", object{}, "body.puk", "former"},
		{"claim of two", "PUT", cards + "/" + card + "/puk", object{"puk": f.puk(), "former": true}, "body.puk", "not both"},
		{"claim for GIDS", "PUT", cards + "/" + token + "/puk", object{"puk": f.puk()}, "body.puk", "admin key"},
		{"tries below 0", "PUT", cards + "/" + card + "/puk/tries", object{"pukTriesLeft": -1}, "body.pukTriesLeft", "0 to 15"},
		{"no tries", "PUT", cards + "/" + card + "/puk/tries", object{}, "body", "pukTriesLeft"},
		{"admin key of a PIV card", "PUT", cards + "/" + card + "/admin-key", object{"adminKey": adminKey}, "body.adminKey", "PUK"},
		{"id without end", "GET", cards + "/" + strings.Repeat("x", 101), nil, "path.credential", "<= 100"},
		{"cursor not ours", "GET", cards + "?cursor=AAAA", nil, "query.cursor", "nextCursor"},
		{"no name", "POST", templates, object{"name": "", "family": "PIV"}, "body.name", "1 to 100"},
		{"no family", "POST", templates, object{"name": "x"}, "body", "family"},
		{"PINs of 4 for PIV", "POST", templates, object{"name": "x", "family": "PIV", "policy": object{"minLength": 4}}, "body.policy.minLength", "at least 6"},
		{"a profile of longer PINs", "POST", templates, object{"name": "x", "family": "PIV", "policy": object{"profile": "windowsHello"}}, "body.policy.minLength", "at most 8"},
		{"unknown profile", "POST", templates, object{"name": "x", "family": "PIV", "policy": object{"profile": "strict"}}, "body.policy.profile", "windowsHello"},
		{"unknown channel", "POST", templates, object{"name": "x", "family": "PIV", "channels": []string{"pigeon"}}, "body.channels.0", "operator"},
		{"self-service without mail", "POST", templates, object{"name": "x", "family": "PIV", "channels": []string{"selfService"}}, "body.messaging", "selfService"},
		{"offline by a mailed code", "POST", templates, object{"name": "x", "family": "PIV", "proofs": object{"windowsChallengeResponse": "mailedCode"}}, "body.proofs.windowsChallengeResponse", "statement or twoOperators"},
		{"proof of no channel", "POST", templates, object{"name": "x", "family": "PIV", "proofs": object{"pigeon": "statement"}}, "body.proofs.pigeon", "no channel"},
		{"a limit of none", "POST", templates, object{"name": "x", "family": "PIV", "limit": object{"count": 0, "days": 7}}, "body.limit", "1 to 50"},
		{"a reminder on the day", "POST", templates, object{"name": "x", "family": "PIV", "reminders": []object{{"daysBefore": 0}}}, "body.reminders.0.daysBefore", "1 to 365"},
		{"a reminder before the PIN is there", "POST", templates, object{"name": "x", "family": "PIV", "pinValidDays": 30, "reminders": []object{{"daysBefore": 30}}}, "body.reminders.0.daysBefore", "less than pinValidDays"},
		{"a reminder twice", "POST", templates, object{"name": "x", "family": "PIV", "reminders": []object{{"daysBefore": 1}, {"daysBefore": 1}}}, "body.reminders.1.daysBefore", "there already"},
		{"a reminder by nobody", "POST", templates, object{"name": "x", "family": "PIV", "reminders": []object{{"daysBefore": 1}}}, "body.reminders.0.messaging", "has none"},
		{"a reminder of another kind", "POST", templates, object{"name": "x", "family": "PIV", "reminders": []object{{"daysBefore": 1, "mailTemplate": "pin-reset"}}}, "body.reminders.0.mailTemplate", "card-pin-expiry"},
		{"operators without an address", "POST", templates, object{"name": "x", "family": "PIV", "operatorMail": "help desk"}, "body.operatorMail", "address"},
		{"dry run of another family", "POST", templates + "/" + piv + "/preview", object{"name": "x", "family": "GIDS"}, "body.family", "cannot change"},
		{"unknown messaging", "POST", templates, object{"name": "x", "family": "PIV", "messaging": "nope"}, "body.messaging", "messaging configuration"},
		{"master key for PIV", "POST", templates, object{"name": "x", "family": "PIV", "masterKey": strings.Repeat("e7", 16)}, "body.masterKey", "PUK"},
		{"short master key", "POST", templates, object{"name": "x", "family": "GIDS", "masterKey": strings.Repeat("e7", 15)}, "body.masterKey", "16 to 64 bytes"},
		{"change of a template's family", "PUT", templates + "/" + piv, object{"name": "x", "family": "GIDS"}, "body.family", "cannot change"},
	} {
		var body any
		if c.body != nil {
			body = c.body
		}
		a := f.call(c.method, c.path, f.key, body)
		found := false
		for _, e := range a.problem().Errors {
			found = found || e.Location == c.location && strings.Contains(e.Message, c.says)
		}
		if a.status != 422 || !found {
			t.Errorf("%s: got %d %s, want 422 at %s with %q", c.name, a.status, a.body, c.location, c.says)
		}
	}
	if now := f.call("GET", "/v1/credentials", f.key, nil).want(200).comparable() + f.call("GET", "/v1/card-templates", f.key, nil).want(200).comparable(); now != before {
		t.Errorf("changed from\n%s\nto\n%s", before, now)
	}
}

// TestCredentialPages reads all credentials, page by page, each once.
func TestCredentialPages(t *testing.T) {
	f := newFixture(t)
	template, holder := f.cardTemplate(f.key, "PIV"), f.user(f.key, "")
	for range 23 {
		f.call("POST", "/v1/credentials", f.key, object{"family": "PIV", "cardId": f.cardID(), "template": template, "holder": holder}).want(201)
	}
	for _, query := range []string{"", "&holder=" + holder} {
		var ids []string
		for cursor, more := "", true; more; more = cursor != "" {
			var list struct {
				Items      []struct{ ID string }
				NextCursor string
			}
			f.call("GET", fmt.Sprintf("/v1/credentials?limit=5%s&cursor=%s", query, cursor), f.key, nil).want(200).decode(&list)
			for _, c := range list.Items {
				if len(ids) > 0 && ids[len(ids)-1] >= c.ID {
					t.Errorf("%s comes after %s", c.ID, ids[len(ids)-1])
				}
				ids = append(ids, c.ID)
			}
			cursor = list.NextCursor
		}
		if len(ids) != 23 {
			t.Errorf("%q lists %d credentials, want 23", query, len(ids))
		}
	}
}

// TestCredentialStates moves a card through its life; what cannot be and who may not is told,
// and why it was done is in its history.
func TestCredentialStates(t *testing.T) {
	f := newFixture(t)
	operator := f.keyOf("operator")
	path := "/v1/credentials/" + f.credential(f.key, "PIV")
	move := func(key, state, reason string) answer {
		t.Helper()
		return f.call("PATCH", path, key, object{"state": state, "reason": reason})
	}
	if got := move(operator, "suspended", "lost").want(200).text("state"); got != "suspended" {
		t.Errorf("suspended, it is %s", got)
	}
	if p := move(operator, "pinToBeSet", "").problem(); p.Status != 422 {
		t.Errorf("taken back without a reason: %+v", p)
	}
	move(operator, "registered", "found").want(200)
	if p := move(operator, "blocked", "").want(409).problem(); !strings.Contains(p.Detail, "cannot become blocked, only pinToBeSet, active, suspended or retired") {
		t.Errorf("blocked before it was active: %q", p.Detail)
	}
	move(operator, "active", "").want(200)
	move(operator, "retired", "holderLeft").want(200)
	move(operator, "suspended", "mistake").want(403)
	move(f.keyOf("helpdesk"), "suspended", "mistake").want(403)
	move(f.key, "active", "mistake").want(409)
	move(f.key, "suspended", "mistake").want(200)

	var history struct {
		Items []struct {
			Action, Reason string
			Details        map[string]string
		}
	}
	f.call("GET", path+"/history", f.keyOf("helpdesk"), nil).want(200).decode(&history)
	var got []string
	for _, r := range history.Items {
		got = append(got, r.Action+" "+r.Details["from"]+">"+r.Details["state"]+" "+r.Reason)
	}
	if d := cmp.Diff([]string{
		"credential.updated retired>suspended mistake", "credential.updated active>retired holderLeft", "credential.updated registered>active ",
		"credential.updated suspended>registered found", "credential.updated registered>suspended lost", "credential.registered > ",
	}, got); d != "" {
		t.Errorf("history (-want +got):\n%s", d)
	}
	f.call("GET", "/v1/credentials/piv-00/history", f.key, nil).want(404)
}

// TestPINExpiryFlags follows the flag of a card: set at its issue, set anew when its holder
// has changed the PIN, left alone by a change of the template, and found by the filters.
func TestPINExpiryFlags(t *testing.T) {
	f := newFixture(t)
	messaging := f.outboxConfiguration(f.key)
	template := object{"name": "Staff", "family": "PIV", "messaging": messaging, "pinValidDays": 30, "channels": []string{"operator"},
		"reminders": []object{{"daysBefore": 7}, {"daysBefore": 1}}, "operatorMail": "desk@acme.example", "limit": object{"count": 3, "days": 30}}
	made := f.call("POST", "/v1/card-templates", f.key, template).want(201)
	id := made.text("id")
	issued := f.clock.Now().UTC().Truncate(time.Second)
	register := func(with object) string {
		t.Helper()
		body := object{"family": "PIV", "cardId": f.cardID(), "template": id}
		for name, v := range with {
			body[name] = v
		}
		return f.call("POST", "/v1/credentials", f.key, body).want(201).text("id")
	}
	flagged := register(object{"issuedAt": issued, "label": "Ada's card", "serial": "SN-0042"})
	imported := register(object{"pinExpiresAt": issued.AddDate(0, 0, 90), "state": "active", "label": "Bob's card"})
	without := register(object{"label": "Carol's card"})
	type shown struct {
		State         string
		PINExpiresAt  time.Time
		LastPINChange struct{ How string }
		PINExpiry     struct {
			Expired bool
			SetBy   string
			Notice  struct {
				Kind, State string
				DaysBefore  int
				At          time.Time
			}
		}
	}
	get := func(id string) (s shown) {
		t.Helper()
		f.call("GET", "/v1/credentials/"+id, f.key, nil).want(200).decode(&s)
		return s
	}
	want := shown{State: "active", PINExpiresAt: issued.AddDate(0, 0, 30)}
	want.LastPINChange.How, want.PINExpiry.SetBy = "issued", "issue"
	want.PINExpiry.Notice.Kind, want.PINExpiry.Notice.State, want.PINExpiry.Notice.DaysBefore, want.PINExpiry.Notice.At = "reminder", "planned", 7, issued.AddDate(0, 0, 23)
	if d := cmp.Diff(want, get(flagged)); d != "" {
		t.Errorf("issued (-want +got):\n%s", d)
	}
	if got := get(imported); got.PINExpiry.SetBy != "import" || !got.PINExpiresAt.Equal(issued.AddDate(0, 0, 90)) {
		t.Errorf("imported with a flag: %+v", got)
	}

	found := func(query string, want ...string) {
		t.Helper()
		var list struct {
			Items      []struct{ ID string }
			NextCursor string
		}
		f.call("GET", "/v1/credentials?"+query, f.key, nil).want(200).decode(&list)
		var ids []string
		for _, c := range list.Items {
			ids = append(ids, c.ID)
		}
		if d := cmp.Diff(want, ids); d != "" || list.NextCursor != "" {
			t.Errorf("%s, next %q (-want +got):\n%s", query, list.NextCursor, d)
		}
	}
	other := f.credential(f.key, "PIV") // of a template that manages no expiry
	found("withoutFlag=true", without)
	found("withoutFlag=true&template="+id, without)
	found("template="+id, flagged, imported, without)
	found("template="+id+"&state=active", flagged, imported)
	found("state=registered&template="+id, without)
	found("expiringWithinDays=31", flagged)
	found("expiringWithinDays=91", flagged, imported)
	found("expired=true")
	found("search=ADA", flagged)
	found("search=sn-0", flagged)
	found("search=%20card")
	found("cardId="+strings.TrimPrefix(other, "piv-")[:32], other)
	found("cardId=ff")

	change := func(edit object) object {
		body := object{}
		for name, v := range template {
			body[name] = v
		}
		for name, v := range edit {
			body[name] = v
		}
		return body
	}
	var preview struct {
		Cards, WithoutFlag int
		Changes            []struct{ Field, From, To, Effect string }
	}
	shorter := change(object{"pinValidDays": 20, "channels": []string{}})
	f.call("POST", "/v1/card-templates/"+id+"/preview", f.key, shorter).want(200).decode(&preview)
	if preview.Cards != 3 || preview.WithoutFlag != 1 || len(preview.Changes) != 2 {
		t.Fatalf("the dry run says %+v", preview)
	}
	if c := preview.Changes[0]; c.Field != "channels.operator" || c.From != "true" || c.To != "false" || !strings.Contains(c.Effect, "under way are finished") {
		t.Errorf("a channel closed: %+v", c)
	}
	if c := preview.Changes[1]; c.Field != "pinValidDays" || c.From != "30" || c.To != "20" || !strings.Contains(c.Effect, "flags that are set stay") {
		t.Errorf("a shorter life: %+v", c)
	}
	if now := f.call("GET", "/v1/card-templates/"+id, f.key, nil).want(200); now.header.Get("ETag") != `"1"` {
		t.Errorf("the dry run has changed the template: %s", now.header.Get("ETag"))
	}
	f.call("PUT", "/v1/card-templates/"+id, f.key, shorter).want(200)
	if d := cmp.Diff(want, get(flagged)); d != "" {
		t.Errorf("after a change of the template (-want +got):\n%s", d)
	}

	f.clock.advance(31 * 24 * time.Hour)
	if !get(flagged).PINExpiry.Expired {
		t.Error("the PIN has not expired")
	}
	found("expired=true", flagged)
	found("expiringWithinDays=3650", imported)
	f.call("POST", "/v1/credentials/"+flagged+"/pin-changed", f.key, object{}).want(200)
	f.call("POST", "/v1/credentials/"+without+"/pin-changed", f.key, object{"at": f.clock.Now().Add(-time.Hour)}).want(200)
	if p := f.call("POST", "/v1/credentials/"+without+"/pin-changed", f.key, object{"at": issued}).want(422).problem(); !strings.Contains(p.Errors[0].Message, "before the last PIN change") {
		t.Errorf("a change before the last: %+v", p)
	}
	found("withoutFlag=true")
	found("expired=true")
	if got := get(without); got.State != "active" || got.PINExpiry.SetBy != "change" || got.LastPINChange.How != "changedByHolder" || !got.PINExpiresAt.Equal(f.clock.Now().Add(-time.Hour).UTC().Truncate(time.Second).AddDate(0, 0, 20)) {
		t.Errorf("changed by its holder: %+v", got)
	}
}

// TestCardTemplateShown: what a template says is shown as it was said, and what was left out
// as it is.
func TestCardTemplateShown(t *testing.T) {
	f := newFixture(t)
	messaging := f.outboxConfiguration(f.key)
	type shown struct {
		Channels  []string
		Proofs    map[string]string
		Limit     *struct{ Count, Days int }
		Reminders []struct {
			DaysBefore              int
			MailTemplate, Messaging string
		}
		Custody, OperatorMail string
	}
	read := func(body object) (s shown) {
		t.Helper()
		path := f.call("POST", "/v1/card-templates", f.key, body).want(201).header.Get("Location")
		f.call("GET", path, f.key, nil).want(200).decode(&s)
		return s
	}
	want := shown{Channels: []string{}, Custody: "pukEscrowedAndRotated", Proofs: map[string]string{
		"selfService": "mailedCode", "logonScreen": "mailedCode", "operator": "statement", "selfServiceOffline": "statement", "logonScreenOffline": "statement", "windowsChallengeResponse": "statement",
	}}
	got := read(object{"name": "x", "family": "PIV"})
	if got.Reminders == nil || len(got.Reminders) != 0 {
		t.Errorf("no reminders are %v", got.Reminders)
	}
	got.Reminders = nil
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("left out (-want +got):\n%s", d)
	}
	all := []string{"selfService", "operator", "logonScreen", "selfServiceOffline", "logonScreenOffline", "windowsChallengeResponse"}
	got = read(object{"name": "x", "family": "GIDS", "messaging": messaging, "channels": all, "proofs": object{"operator": "twoOperators", "logonScreen": "statement"},
		"limit": object{"count": 2, "days": 7}, "reminders": []object{{"daysBefore": 5, "mailTemplate": "card-pin-expiry", "messaging": messaging}}, "operatorMail": "desk@acme.example",
		"masterKey": strings.Repeat("c5", 32)})
	if d := cmp.Diff(all, got.Channels); d != "" || got.Proofs["operator"] != "twoOperators" || got.Proofs["logonScreen"] != "statement" || got.Proofs["selfService"] != "mailedCode" ||
		got.Limit == nil || got.Limit.Count != 2 || got.Limit.Days != 7 || len(got.Reminders) != 1 || got.Reminders[0].Messaging != messaging || got.Custody != "adminKeyDerived" || got.OperatorMail != "desk@acme.example" {
		t.Errorf("said, it is %+v\n%s", got, d)
	}
	if got := read(object{"name": "x", "family": "GIDS"}); got.Custody != "adminKeyEscrowed" {
		t.Errorf("without a master key, the custody is %s", got.Custody)
	}
}
