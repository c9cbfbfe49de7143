package rest_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/functions/api/rest"
	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/shared/tenant"
)

// access is who may do what: "yes", "-" for 403, "404" where a person meets
// somebody else's id, "409" where no card is in a reader.
const access = `
operation             platform  admin  operator  helpdesk  kiosk  events  self  self,other

create-tenant         yes       -      -         -         -      -       -     -
list-tenants          yes       -      -         -         -      -       -     -
get-tenant            yes       -      -         -         -      -       -     -
suspend-tenant        yes       -      -         -         -      -       -     -
resume-tenant         yes       -      -         -         -      -       -     -
make-tenant-key       yes       -      -         -         -      -       -     -

get-caller            yes       yes    yes       yes       yes    yes     yes   yes
get-settings          -         yes    yes       -         -      -       -     -
put-settings          -         yes    -         -         -      -       -     -
list-keys             -         yes    -         -         -      -       -     -
make-key              -         yes    -         -         -      -       -     -
revoke-key            -         yes    -         -         -      -       -     -
mint-token            -         yes    -         -         -      -       -     -
get-sign-in-provider  -         yes    -         -         -      -       -     -
put-sign-in-provider  -         yes    -         -         -      -       -     -
delete-sign-in-provider -       yes    -         -         -      -       -     -
list-people           -         yes    -         -         -      -       -     -
create-person         -         yes    -         -         -      -       -     -
get-person            -         yes    -         -         -      -       -     -
update-person         -         yes    -         -         -      -       -     -
delete-person         -         yes    -         -         -      -       -     -
make-sign-in-link     -         yes    -         -         -      -       -     -
list-person-sessions  -         yes    -         -         -      -       -     -
end-person-sessions   -         yes    -         -         -      -       -     -
end-person-session    -         yes    -         -         -      -       -     -
list-audit            -         yes    -         -         -      -       -     -

get-policy            -         yes    yes       yes       -      -       yes   yes
list-policy-profiles  -         yes    yes       yes       -      -       yes   yes
check-pin             -         yes    yes       yes       -      -       yes   yes
put-policy            -         yes    -         -         -      -       -     -
get-policy-report     -         yes    -         -         -      -       -     -

list-users            -         yes    yes       yes       -      -       -     -
create-user           -         yes    yes       -         -      -       -     -
get-user              -         yes    yes       yes       -      -       yes   404
update-user           -         yes    yes       -         -      -       yes   404
delete-user           -         yes    -         -         -      -       -     -
clear-mail-problem    -         yes    yes       -         -      -       -     -

get-pin               -         yes    yes       yes       -      -       yes   404
set-pin               -         yes    yes       -         -      -       yes   404
generate-pin          -         yes    yes       -         -      -       yes   404
issue-pin             -         yes    yes       yes       -      -       yes   404
require-pin-change    -         409    409       -         -      -       -     -
plan-bulk-pins        -         yes    -         -         -      -       -     -
list-bulk-pins        -         yes    -         -         -      -       -     -
get-bulk-pins         -         yes    -         -         -      -       -     -
start-bulk-pins       -         yes    -         -         -      -       -     -
cancel-bulk-pins      -         yes    -         -         -      -       -     -
delete-pin            -         yes    yes       -         -      -       -     -
unlock-pin            -         yes    yes       yes       -      -       -     -
verify-pin            -         yes    -         -         yes    -       -     -
identify-pin          -         yes    -         -         yes    -       -     -

list-bridges          -         yes    yes       yes       -      -       -     -
get-bridge            -         yes    yes       yes       -      -       -     -
invite-bridge         -         yes    -         -         -      -       -     -
make-bridge-code      -         yes    -         -         -      -       -     -
revoke-bridge         -         yes    -         -         -      -       -     -
enroll-bridge         yes       yes    yes       yes       yes    yes     yes   yes

list-messaging        -         yes    -         -         -      -       -     -
create-messaging      -         yes    -         -         -      -       -     -
get-messaging         -         yes    -         -         -      -       -     -
put-messaging         -         yes    -         -         -      -       -     -
delete-messaging      -         yes    -         -         -      -       -     -
test-messaging        -         yes    -         -         -      -       -     -
list-templates        -         yes    -         -         -      -       -     -
create-template       -         yes    -         -         -      -       -     -
get-template          -         yes    -         -         -      -       -     -
put-template          -         yes    -         -         -      -       -     -
delete-template       -         yes    -         -         -      -       -     -
preview-template      -         yes    -         -         -      -       -     -

list-card-templates   -         yes    yes       yes       -      -       -     -
create-card-template  -         yes    -         -         -      -       -     -
get-card-template     -         yes    yes       yes       -      -       -     -
put-card-template     -         yes    -         -         -      -       -     -
preview-card-template -         yes    -         -         -      -       -     -
delete-card-template  -         yes    -         -         -      -       -     -
list-credentials      -         yes    yes       yes       -      -       -     -
create-credential     -         yes    yes       -         -      -       -     -
get-credential        -         yes    yes       yes       -      -       -     -
update-credential     -         yes    yes       -         -      -       -     -
delete-credential     -         yes    yes       -         -      -       -     -
pin-changed           -         yes    yes       -         -      -       -     -
list-credential-history -       yes    yes       yes       -      -       -     -
claim-puk             -         yes    yes       -         -      -       -     -
observe-puk-tries     -         yes    yes       -         -      -       -     -
put-admin-key         -         yes    yes       -         -      -       -     -

list-unblocks         -         yes    yes       yes       -      -       -     -
start-unblock         -         yes    yes       -         yes    -       -     -
get-unblock           -         yes    yes       yes       yes    -       -     -
prove-unblock         -         yes    yes       -         yes    -       -     -
give-unblock-pin      -         409    409       -         409    -       -     -
resume-unblock        -         yes    yes       -         yes    -       -     -
cancel-unblock        -         yes    yes       -         yes    -       -     -
approve-unblock       -         409    409       -         -      -       -     -
list-imports          -         yes    yes       yes       -      -       -     -
create-import         -         yes    yes       -         -      -       -     -
get-import            -         yes    yes       yes       -      -       -     -
send-import-part      -         yes    yes       -         -      -       -     -
finish-import         -         yes    yes       -         -      -       -     -
cancel-import         -         yes    yes       -         -      -       -     -
get-import-result     -         yes    yes       yes       -      -       -     -
get-import-key        -         yes    yes       -         -      -       -     -

list-user-imports     -         yes    yes       yes       -      -       -     -
create-user-import    -         yes    yes       -         -      -       -     -
get-user-import       -         yes    yes       yes       -      -       -     -
send-user-import-part -         yes    yes       -         -      -       -     -
finish-user-import    -         yes    yes       -         -      -       -     -
cancel-user-import    -         yes    yes       -         -      -       -     -
get-user-import-result -        yes    yes       yes       -      -       -     -

ask-offline-answer     -        yes    yes       yes       -      -       -     -
list-offline-answers   -        yes    yes       yes       -      -       -     -
get-offline-answer     -        yes    yes       yes       -      -       -     -
approve-offline-answer -        yes    yes       yes       -      -       -     -
give-offline-answer    -        yes    yes       yes       -      -       -     -

get-sanity-check           -    yes    -         -         -      -       -     -
list-sanity-check-cards    -    yes    -         -         -      -       -     -
export-sanity-check-cards  -    yes    -         -         -      -       -     -
plan-sanity-check-run      -    yes    -         -         -      -       -     -
list-sanity-check-runs     -    yes    -         -         -      -       -     -
get-sanity-check-run       -    yes    -         -         -      -       -     -
start-sanity-check-run     -    yes    -         -         -      -       -     -
cancel-sanity-check-run    -    yes    -         -         -      -       -     -
undo-sanity-check-run      -    yes    -         -         -      -       -     -

send-events           -         yes    -         -         -      yes     -     -
list-events           -         yes    yes       -         -      -       -     -
get-event             -         yes    yes       -         -      -       -     -
get-event-catalogue   yes       yes    yes       yes       yes    yes     yes   yes
list-trigger-rules    -         yes    yes       -         -      -       -     -
create-trigger-rule   -         yes    -         -         -      -       -     -
get-trigger-rule      -         yes    yes       -         -      -       -     -
put-trigger-rule      -         yes    -         -         -      -       -     -
delete-trigger-rule   -         yes    -         -         -      -       -     -
try-trigger-rule      -         yes    -         -         -      -       -     -
list-trigger-rule-history -     yes    yes       -         -      -       -     -

list-webhooks         -         yes    -         -         -      -       -     -
create-webhook        -         yes    -         -         -      -       -     -
get-webhook           -         yes    -         -         -      -       -     -
put-webhook           -         yes    -         -         -      -       -     -
delete-webhook        -         yes    -         -         -      -       -     -
rotate-webhook-secret -         yes    -         -         -      -       -     -
test-webhook          -         yes    -         -         -      -       -     -
list-deliveries       -         yes    -         -         -      -       -     -
get-delivery          -         yes    -         -         -      -       -     -
resend-delivery       -         yes    -         -         -      -       -     -
drop-delivery         -         yes    -         -         -      -       -     -
`

// request returns a path and a body with which an operation succeeds. What the
// path names is new, but for id, a user's.
func (f *fixture) request(op described, id string) (path string, body any) {
	f.Helper()
	switch op.OperationID {
	case "create-tenant":
		body = object{"id": f.unique("tenant"), "displayName": "A tenant", "timeZone": "UTC", "language": "en"}
	case "put-settings":
		body = object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": true, "expiryMail": object{}, "supportFunctions": true}
	case "make-key":
		body = object{"name": "printers", "role": "kiosk"}
	case "create-person":
		body = object{"name": "Ada", "mail": f.unique("ada") + "@acme.example", "roles": []string{"operator"}}
	case "update-person":
		body = object{"name": f.unique("Ada")}
	case "put-policy":
		body = object{"maxLength": 12}
	case "check-pin", "identify-pin", "set-pin":
		body = object{"pin": f.pin()}
	case "issue-pin", "plan-bulk-pins":
		body = object{"messaging": f.outboxConfiguration(f.key)}
	case "verify-pin":
		body = object{"userId": id, "pin": f.pin()}
	case "create-user":
		body = object{"username": f.unique("new-person")}
	case "update-user":
		body = object{"displayName": f.unique("Ada")}
	case "invite-bridge":
		body = object{"name": "service desk"}
	case "enroll-bridge":
		_, code := f.invite(f.key)
		body = f.enrolment(code)
	case "create-messaging", "put-messaging":
		body = outboxConfiguration
	case "test-messaging":
		body = object{"to": "ada@acme.example"}
	case "create-template", "put-template":
		body = mailTemplate
	case "create-card-template", "put-card-template", "preview-card-template":
		body = object{"name": "Staff", "family": "PIV"}
	case "create-credential":
		body = object{"family": "PIV", "cardId": f.cardID(), "template": f.cardTemplate(f.key, "PIV"), "holder": id}
	case "update-credential":
		body = object{"label": f.unique("Card")}
	case "pin-changed":
		body = object{}
	case "claim-puk":
		body = object{"puk": f.puk()}
	case "observe-puk-tries":
		body = object{"pukTriesLeft": 3}
	case "put-admin-key":
		body = object{"adminKey": adminKey}
	case "start-unblock":
		body = f.unblock(f.key, "selfService")
	case "give-unblock-pin":
		body = object{"encapsulated": strings.Repeat("00", 32), "ciphertext": strings.Repeat("00", 81)}
	case "prove-unblock":
		body = object{"code": "123456"}
	case "ask-offline-answer":
		body = f.offlineRequest(f.key, "statement")
	case "create-import", "create-user-import":
		body = object{"format": "csv"}
	case "plan-sanity-check-run":
		body = object{"templates": []string{f.withoutFlag(f.key)}}
	case "send-events":
		body = printJob(f.unique("job"), id)
	case "create-trigger-rule", "put-trigger-rule":
		body = wish()
	case "try-trigger-rule":
		body = object{"rule": wish(), "event": printJob("job", id)}
	case "put-sign-in-provider":
		body = signInProvider
	case "get-sign-in-provider", "delete-sign-in-provider":
		f.call("PUT", "/v1/sign-in-provider", f.key, signInProvider).want(200)
	case "create-webhook", "put-webhook":
		body = f.hook()
	case "rotate-webhook-secret":
		body = object{}
	case "send-import-part":
		body = "cardId\n"
	case "send-user-import-part":
		body = "username\n"
	}
	path = op.path
	if op.OperationID == "get-event" {
		job := f.unique("job")
		f.call("POST", "/v1/events", f.key, printJob(job, id)).want(200)
		path += "?id=" + job
	}
	make := func(name string, create func() string) {
		if strings.Contains(path, name) {
			path = strings.ReplaceAll(path, name, create())
		}
	}
	make("{id}", func() string { return id })
	make("{tenant}", func() string { id := f.unique("tenant"); f.tenant(id); return id })
	make("{key}", func() string {
		return f.call("POST", "/v1/keys", f.key, object{"name": "spare", "role": "kiosk"}).want(201).text("id")
	})
	make("{session}", func() string {
		person := f.person(f.key)
		path = strings.ReplaceAll(path, "{person}", person)
		return f.session("acme", person)
	})
	make("{person}", func() string { return f.person(f.key) })
	make("{bridge}", func() string { id, _ := f.invite(f.key); return id })
	make("{messaging}", func() string { return f.outboxConfiguration(f.key) })
	make("{template}", func() string {
		return f.call("POST", "/v1/mail-templates", f.key, mailTemplate).want(201).text("id")
	})
	make("{cardTemplate}", func() string { return f.cardTemplate(f.key, "PIV") })
	make("{unblock}", func() string {
		id := f.started(f.key, "selfService")
		if op.OperationID == "prove-unblock" {
			body = object{"code": f.mailedCode(id)}
		}
		return id
	})
	make("{import}", func() string {
		if strings.HasPrefix(path, "/v1/user-imports/") {
			path := f.userImport(f.key, nil)
			if op.OperationID == "finish-user-import" {
				f.call("PUT", path+"/parts/1", f.key, "username\n").want(200)
			}
			return strings.TrimPrefix(path, "/v1/user-imports/")
		}
		path := f.importOf(f.key, nil)
		if op.OperationID == "finish-import" {
			f.call("PUT", path+"/parts/1", f.key, "cardId\n").want(200)
		}
		return strings.TrimPrefix(path, "/v1/imports/")
	})
	make("{run}", func() string {
		id := f.call("POST", "/v1/sanity-check/runs", f.key, object{"templates": []string{f.withoutFlag(f.key)}}).want(201).text("id")
		if op.OperationID == "undo-sanity-check-run" {
			f.call("POST", "/v1/sanity-check/runs/"+id+"/start", f.key, nil).want(200)
		}
		return id
	})
	make("{rule}", func() string { return f.rule(f.key, wish()) })
	make("{webhook}", func() string { id, _ := f.webhook(f.key); return id })
	make("{delivery}", func() string {
		id := f.delivery("acme", f.key)
		if op.OperationID == "resend-delivery" {
			f.call("POST", "/v1/deliveries/"+id+"/drop", f.key, nil).want(200)
		}
		return id
	})
	make("{bulk}", func() string {
		return f.call("POST", "/v1/bulk-pins", f.key, object{"messaging": f.outboxConfiguration(f.key)}).want(201).text("id")
	})
	make("{part}", func() string { return "1" })
	make("{answer}", func() string { return f.offlineAnswer(f.key, f.keyOf("operator"), "twoOperators") })
	make("{credential}", func() string {
		family := "PIV"
		switch op.OperationID {
		case "put-admin-key":
			family = "GIDS"
		case "delete-credential":
			defer func() { path += "?confirm=true" }()
		}
		return f.credential(f.key, family)
	})
	return path, body
}

func TestAccess(t *testing.T) {
	f := newFixture(t)
	f.policy(object{"maxAttempts": 100}) // kiosks guess wrong here
	_, settings := f.request(described{OperationID: "put-settings"}, "")
	f.call("PUT", "/v1/settings", f.key, settings).want(200)

	self := f.user(f.key, "")
	keys := map[string]string{"platform": f.platform, "admin": f.key, "self": f.token(self)}
	for _, role := range []string{"operator", "helpdesk", "kiosk", "events"} {
		keys[role] = f.keyOf(role)
	}

	lines := strings.Split(strings.TrimSpace(access), "\n")
	roles := strings.Fields(lines[0])[1:]
	expected := map[string][]string{}
	for _, line := range lines[1:] {
		if words := strings.Fields(line); len(words) > 0 {
			expected[words[0]] = words[1:]
		}
	}
	for _, op := range f.operations() {
		row, ok := expected[op.OperationID]
		if delete(expected, op.OperationID); !ok || len(row) != len(roles) {
			t.Errorf("the table does not say who may %s", op.OperationID)
			continue
		}
		for i, column := range roles {
			role, other, _ := strings.Cut(column, ",")
			id := self
			if role != "self" || other != "" {
				id = f.user(f.key, "")
			}
			path, body := f.request(op, id)
			switch op.OperationID {
			case "list-offline-answers":
				path += "?credential=piv-00"
			case "give-offline-answer": // to who has asked, or nobody
				if tenant.May(tenant.Role(role), tenant.AnswerOffline) == tenant.Yes {
					path = "/v1/offline-answers/" + f.offlineAnswer(f.key, keys[role], "statement") + "/response"
				}
			}
			a := f.call(op.method, path, keys[role], body)
			got := fmt.Sprint(a.status)
			switch {
			case a.status < 300:
				got = "yes"
			case a.status == http.StatusForbidden:
				got = "-"
			}
			if got != row[i] {
				t.Errorf("%s by %s: got %d %s, want %q", op.OperationID, column, a.status, a.body, row[i])
			}
		}
	}
	for id := range expected {
		t.Errorf("the table tells of %s, which there is not", id)
	}
}

// TestWalls asks for another tenant's things: the answers are those to ids that
// nobody has.
func TestWalls(t *testing.T) {
	f := newFixture(t)
	theirs := f.tenant("other")
	user := f.call("POST", "/v1/users", theirs, object{"username": "their-person", "externalId": "their-number", "pin": f.pin()}).want(201).text("id")
	key := f.call("POST", "/v1/keys", theirs, object{"name": "spare", "role": "kiosk"}).want(201).text("id")
	messaging := f.outboxConfiguration(theirs)
	template := f.call("POST", "/v1/mail-templates", theirs, mailTemplate).want(201).text("id")
	bridge, _ := f.invite(theirs)
	cardTemplate, card := f.cardTemplate(theirs, "PIV"), f.credential(theirs, "PIV")
	unblock := f.started(theirs, "operator")
	importID := strings.TrimPrefix(f.importOf(theirs, nil), "/v1/imports/")
	userImportID := strings.TrimPrefix(f.userImport(theirs, nil), "/v1/user-imports/")
	f.support(f.key)
	f.support(theirs)
	run := f.call("POST", "/v1/sanity-check/runs", theirs, object{"templates": []string{f.withoutFlag(theirs)}}).want(201).text("id")
	bulk := f.call("POST", "/v1/bulk-pins", theirs, object{"messaging": messaging}).want(201).text("id")
	f.call("PATCH", "/v1/credentials/"+card, theirs, object{"label": "Their card", "serial": "Their number"}).want(200)
	answerID := f.offlineAnswer(theirs, theirs, "twoOperators")
	webhook, _ := f.webhook(theirs)
	deliveryID := f.delivery("other", theirs)
	rule := f.rule(theirs, wish())
	person := f.person(theirs)
	session := f.session("other", person)
	f.call("POST", "/v1/events", theirs, printJob("their-job", user)).want(200)
	before := func() (all string) {
		for _, path := range []string{"/v1/offline-answers/" + answerID, "/v1/users", "/v1/users/" + user + "/pin", "/v1/keys", "/v1/people", "/v1/people/" + person + "/sessions", "/v1/bridges", "/v1/messaging", "/v1/mail-templates", "/v1/card-templates", "/v1/credentials", "/v1/unblocks", "/v1/imports/" + importID, "/v1/user-imports/" + userImportID, "/v1/sanity-check/runs/" + run, "/v1/webhooks", "/v1/deliveries", "/v1/bulk-pins/" + bulk, "/v1/trigger-rules", "/v1/trigger-rules/" + rule + "/history", "/v1/events"} {
			all += string(f.call("GET", path, theirs, nil).want(200).body)
		}
		return all
	}
	was := before()

	const unknown = "01J8ZC9Q6Y0V4T5W3X2R1N0M9K"
	things := strings.NewReplacer("{bridge}", bridge, "{id}", user, "{key}", key, "{person}", person, "{session}", session, "{messaging}", messaging, "{template}", template, "{cardTemplate}", cardTemplate, "{credential}", card, "{import}", importID, "{run}", run, "{bulk}", bulk, "{part}", "1", "{answer}", answerID, "{unblock}", unblock, "{webhook}", webhook, "{delivery}", deliveryID, "{rule}", rule)
	nothing := strings.NewReplacer("{bridge}", "00000000", "{id}", unknown, "{key}", unknown, "{person}", unknown, "{session}", unknown, "{messaging}", unknown, "{template}", unknown, "{cardTemplate}", unknown, "{credential}", "piv-00", "{import}", unknown, "{run}", unknown, "{bulk}", unknown, "{part}", "1", "{answer}", unknown, "{unblock}", unknown, "{rule}", unknown)
	asked := 0
	for _, op := range f.operations() {
		if !strings.Contains(op.path, "{") || strings.Contains(op.path, "{tenant}") {
			continue
		}
		asked++
		_, body := f.request(described{OperationID: op.OperationID}, user)
		theirPath := strings.Replace(op.path, "/v1/user-imports/{import}", "/v1/user-imports/"+userImportID, 1)
		got := f.call(op.method, things.Replace(theirPath), f.key, body)
		want := f.call(op.method, nothing.Replace(op.path), f.key, body)
		if got.status != 404 || got.comparable() != want.comparable() {
			t.Errorf("%s of another tenant: got %s, want 404 and %s", op.OperationID, got.comparable(), want.comparable())
		}
	}
	if asked < 15 {
		t.Errorf("only %d operations have an id in their path", asked)
	}

	mine := f.outboxConfiguration(f.key)
	settings := func(messaging, template string) object {
		return object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false,
			"expiryMail": object{"messaging": messaging, "template": template}}
	}
	pin, cardID, ours := f.pin(), f.cardID(), f.cardTemplate(f.key, "PIV")
	registration := func(template, holder string) object {
		return object{"family": "PIV", "cardId": cardID, "template": template, "holder": holder}
	}
	unblocked := func(part, id string) object {
		o := f.unblock(f.key, "operator")
		o[part] = id
		return o
	}
	for _, c := range []struct {
		method, path string
		got, want    any
	}{
		{"POST", "/v1/credentials", registration(cardTemplate, ""), registration(unknown, "")},
		{"POST", "/v1/unblocks", unblocked("credential", card), unblocked("credential", "piv-00")},
		{"POST", "/v1/unblocks", unblocked("bridge", bridge), unblocked("bridge", "00000000")},
		{"GET", "/v1/unblocks?credential=" + card, nil, nil},
		{"POST", "/v1/credentials", registration(ours, user), registration(ours, unknown)},
		{"GET", "/v1/credentials?holder=" + user, nil, nil},
		{"GET", "/v1/credentials?template=" + cardTemplate, nil, nil},
		{"GET", "/v1/credentials?cardId=" + strings.TrimPrefix(card, "piv-"), nil, nil},
		{"GET", "/v1/credentials?search=their", nil, nil},
		{"GET", "/v1/credentials?withoutFlag=true&template=" + cardTemplate, nil, nil},
		{"POST", "/v1/card-templates", object{"name": "x", "family": "PIV", "reminders": []object{{"daysBefore": 1, "messaging": messaging}}}, object{"name": "x", "family": "PIV", "reminders": []object{{"daysBefore": 1, "messaging": unknown}}}},
		{"POST", "/v1/card-templates", object{"name": "x", "family": "PIV", "expiredMailTemplate": template}, object{"name": "x", "family": "PIV", "expiredMailTemplate": unknown}},
		{"POST", "/v1/card-templates", object{"name": "x", "family": "PIV", "messaging": messaging}, object{"name": "x", "family": "PIV", "messaging": unknown}},
		{"POST", "/v1/pins/verify", object{"userId": user, "pin": pin}, object{"userId": unknown, "pin": pin}},
		{"POST", "/v1/pins/verify", object{"username": "their-person", "pin": pin}, object{"username": "nobody", "pin": pin}},
		{"POST", "/v1/pins/verify", object{"externalId": "their-number", "pin": pin}, object{"externalId": "no number", "pin": pin}},
		{"POST", "/v1/messaging/" + mine + "/test", object{"to": "ada@acme.example", "template": template}, object{"to": "ada@acme.example", "template": unknown}},
		{"PUT", "/v1/settings", settings(messaging, ""), settings(unknown, "")},
		{"PUT", "/v1/settings", settings(mine, template), settings(mine, unknown)},
		{"POST", "/v1/trigger-rules", wish("messaging", messaging), wish("messaging", unknown)},
		{"POST", "/v1/trigger-rules", wish("template", template), wish("template", unknown)},
		{"POST", "/v1/trigger-rules", wish("kind", "callWebhook", "endpoint", webhook), wish("kind", "callWebhook", "endpoint", unknown)},
		{"POST", "/v1/trigger-rules/try", object{"ruleId": rule}, object{"ruleId": unknown}},
		{"POST", "/v1/trigger-rules/try", object{"rule": wish(), "event": printJob("job", user)}, object{"rule": wish(), "event": printJob("job", unknown)}},
		{"GET", "/v1/event?id=their-job", nil, nil},
		{"GET", "/v1/audit?subject=rule/" + rule, nil, nil},
		{"GET", "/v1/users?username=their-person", nil, nil},
		{"GET", "/v1/users?externalId=their-number", nil, nil},
		{"GET", "/v1/audit?subject=user/" + user, nil, nil},
	} {
		got := f.call(c.method, c.path, f.key, c.got)
		want := f.call(c.method, strings.NewReplacer("their-person", "nobody", "their-number", "none", "their-job", "job", user, unknown, rule, unknown, cardTemplate, unknown, strings.TrimPrefix(card, "piv-"), "ff").Replace(c.path), f.key, c.want)
		if got.comparable() != want.comparable() {
			t.Errorf("%s %s: another tenant's answers %s, an unknown one %s", c.method, c.path, got.comparable(), want.comparable())
		}
	}
	if now := before(); now != was {
		t.Errorf("the other tenant has changed from\n%s\nto\n%s", was, now)
	}
}

func TestKeysThatDoNotLetIn(t *testing.T) {
	f := newFixture(t)
	other := f.tenant("other")
	expiring := f.call("POST", "/v1/keys", f.key, object{"name": "short", "role": "admin", "expiresAt": f.clock.Now().Add(time.Hour)}).want(201).text("apiKey")
	made := f.call("POST", "/v1/keys", f.key, object{"name": "gone", "role": "admin"}).want(201)
	revoked := made.text("apiKey")
	f.call("GET", "/v1/caller", revoked, nil).want(200)
	f.call("DELETE", "/v1/keys/"+made.text("id"), f.key, nil).want(204)
	token := f.token(f.user(f.key, ""))
	f.call("GET", "/v1/caller", expiring, nil).want(200)
	f.clock.advance(time.Hour)

	parts := strings.SplitN(f.key, "_", 4)
	otherParts := strings.SplitN(other, "_", 4)
	join := func(parts ...string) string { return "Bearer " + strings.Join(parts, "_") }
	flipped := []byte(parts[3])
	flipped[5] ^= 1
	// All of these get one answer, so that none tells what there is.
	alike := map[string]string{
		"garbage":                       "Bearer x",
		"a secret with one bit changed": join(parts[0], parts[1], parts[2], string(flipped)),
		"a secret cut short":            join(parts[0], parts[1], parts[2], parts[3][:20]),
		"no secret":                     join(parts[0], parts[1], parts[2], ""),
		"another tenant's key":          join(parts[0], "other", parts[2], parts[3]),
		"another key's secret":          join(parts[0], parts[1], parts[2], otherParts[3]),
		"an unknown tenant":             join(parts[0], "nowhere", parts[2], parts[3]),
		"the installation's own":        join(parts[0], "platform", parts[2], parts[3]),
		"a path for a tenant":           join(parts[0], "acme/user", parts[2], parts[3]),
		"a key as a token":              join("pwt", parts[1], parts[2], parts[3]),
		"a token as a key":              "Bearer " + strings.Replace(token, "pwt_", "pw_", 1),
		"an unknown kind":               join("pwx", parts[1], parts[2], parts[3]),
		"revoked":                       "Bearer " + revoked,
		"a wrong platform key":          "Bearer pwp_" + parts[3],
		"an id longer than any stored":  join(parts[0], parts[1], strings.Repeat("x", 5000), parts[3]),
		"an empty id":                   join(parts[0], parts[1], "", parts[3]),
	}
	want := f.call("GET", "/v1/policy", "", nil, "Authorization", alike["garbage"]).want(401)
	if got := want.header.Get("WWW-Authenticate"); !strings.HasPrefix(got, "Bearer ") {
		t.Errorf("WWW-Authenticate is %q, want Bearer", got)
	}
	for _, name := range slices.Sorted(maps.Keys(alike)) {
		if got := f.call("GET", "/v1/policy", "", nil, "Authorization", alike[name]); got.comparable() != want.comparable() {
			t.Errorf("%s: got %s, want %s", name, got.comparable(), want.comparable())
		}
	}

	for _, c := range []struct{ name, authorization, says string }{
		{"missing", "", "Authorization: Bearer"},
		{"another scheme", "Basic YWRhOmFkYQ==", "Authorization: Bearer"},
		{"the scheme alone", "Bearer", "Authorization: Bearer"},
		{"the key alone", f.key, "Authorization: Bearer"},
		{"expired", "Bearer " + expiring, "expired at 2030-01-31T10:00:00Z"},
		{"an expired token", "Bearer " + token, "expired at 2030-01-31T09:15:00Z"},
	} {
		a := f.call("GET", "/v1/policy", "", nil, "Authorization", c.authorization)
		if p := a.problem(); a.status != 401 || !strings.Contains(p.Detail, c.says) {
			t.Errorf("%s: got %d %q, want 401 that says %q", c.name, a.status, p.Detail, c.says)
		}
	}
	f.call("GET", "/v1/policy", "", nil, "Authorization", "bearer  "+f.key).want(200) // RFC 9110, 11.1: the scheme in any case

	f.call("POST", "/v1/tenants/other/suspend", f.platform, nil).want(200)
	if p := f.call("GET", "/v1/policy", other, nil).want(403).problem(); !strings.Contains(p.Detail, "suspended") {
		t.Errorf("a suspended tenant is told %q", p.Detail)
	}
	f.call("POST", "/v1/tenants/other/resume", f.platform, nil).want(200)
	f.call("GET", "/v1/policy", other, nil).want(200)
}

// TestLastAdminKey: a tenant cannot lock itself out.
func TestLastAdminKey(t *testing.T) {
	f := newFixture(t)
	id := f.call("GET", "/v1/caller", f.key, nil).want(200).text("keyId")
	if p := f.call("DELETE", "/v1/keys/"+id, f.key, nil).want(409).problem(); !strings.Contains(p.Detail, "last key") {
		t.Errorf("got %q, want that it is the last key", p.Detail)
	}
	second := f.keyOf("admin")
	f.call("DELETE", "/v1/keys/"+id, second, nil).want(204)
	f.call("GET", "/v1/caller", f.key, nil).want(401)
}

func TestRateLimit(t *testing.T) {
	f := newFixture(t, func(p *wiring.Parts) { p.Rate = rest.Rate{PerSecond: 1, Burst: 5} })
	f.clock.advance(700 * time.Millisecond) // Retry-After is in whole seconds, time is not
	kiosk := f.keyOf("kiosk")
	var a answer
	for range 6 {
		a = f.call("GET", "/v1/caller", kiosk, nil)
	}
	if p := a.want(429).problem(); p.Type != "urn:pinward:problem:too-often" || p.Errors[0].Code != "rateLimited" {
		t.Errorf("got %+v, want too-often with the code rateLimited", p)
	}
	f.call("GET", "/v1/caller", f.key, nil).want(200) // each key by itself

	seconds, err := strconv.Atoi(a.header.Get("Retry-After"))
	if err != nil {
		t.Fatal(err)
	}
	f.clock.advance(time.Duration(seconds) * time.Second)
	f.call("GET", "/v1/caller", kiosk, nil).want(200)
}
