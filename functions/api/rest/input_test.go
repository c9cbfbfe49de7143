package rest_test

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	invalid = "urn:pinward:problem:invalid"
	badForm = "urn:pinward:problem:bad-request"
)

// TestBadInput sends what is not right. Each answer tells where it is wrong and
// what would be right; that none repeats a PIN or a password is looked at after
// all tests.
func TestBadInput(t *testing.T) {
	f := newFixture(t)
	f.user(f.key, "")
	messaging := f.outboxConfiguration(f.key)
	smtp := func(security string) string {
		return `{"name":"x","kind":"smtp","from":"it@acme.example","smtp":{"host":"mail.acme.example","port":587,"username":"it","password":"opensesame-opensesame"` + security + `}}`
	}
	policy := func(field string) string { return "{" + field + "}" }
	const users, pin = "/v1/users", `"pin":"k7Q2wx-secret"`

	for _, c := range []struct {
		name         string
		method, path string
		body         any
		status       int
		kind         string
		location     string // of one of the errors; "" if there are none
		says         string // in that error, or in the detail
	}{
		// JSON
		{"malformed", "POST", users, `{"username":"ada",` + pin, 400, badForm, "body", "JSON"},
		{"malformed at the PIN", "POST", users, `{"pin":k7Q2wx-secret}`, 400, badForm, "body", "not JSON"},
		{"two values", "POST", users, `{"username":"ada-lovelace"}{"username":"bob-lovelace"}`, 400, badForm, "body", "not JSON"},
		{"empty body", "POST", users, "", 400, badForm, "", "body is required"},
		{"null", "POST", users, `null`, 422, invalid, "body", "expected object"},
		{"array for object", "POST", users, `[{"username":"ada"}]`, 422, invalid, "body", "expected object"},
		{"string for object", "POST", users, `"ada"`, 422, invalid, "body", "expected object"},
		{"number for string", "POST", users, `{"username":12345678}`, 422, invalid, "body.username", "expected string"},
		{"number for PIN", "POST", users, `{"username":"ada","pin":73915873}`, 422, invalid, "body.pin", "expected string"},
		{"object for PIN", "POST", users, `{"username":"ada","pin":{` + pin + `}}`, 422, invalid, "body.pin", "expected string"},
		{"string for list", "POST", users, `{"username":"ada","groups":"staff"}`, 422, invalid, "body.groups", "expected array"},
		{"null in list", "POST", users, `{"username":"ada","groups":[null]}`, 422, invalid, "body.groups[0]", "expected string"},
		{"unknown field", "POST", users, `{"username":"ada","pim":"k7Q2wx-secret"}`, 422, invalid, "body.pim", "unexpected property"},
		{"field in another case", "POST", users, `{"username":"ada","PIN":"k7Q2wx-secret"}`, 422, invalid, "body.PIN", "unexpected property"},
		{"duplicate key", "POST", users, `{"username":"ada-duplicate","username":"bob-duplicate"}`, 400, badForm, "body", "twice"},
		{"duplicate key inside", "POST", "/v1/policy/check", `{` + pin + `,"policy":{"minLength":4},"policy":{"maxLength":9}}`, 400, badForm, "body", "twice"},
		{"deep nesting", "POST", users, strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000), 400, badForm, "body", "not JSON"},
		{"nested where a text belongs", "POST", users, `{"username":` + strings.Repeat(`{"a":`, 1000) + `1` + strings.Repeat("}", 1000) + `}`, 422, invalid, "body.username", "expected string"},
		{"invalid UTF-8", "POST", users, "{\"username\":\"utf-eight-\xff\"}", 400, badForm, "body", "UTF-8"},
		{"body over 64 KiB", "POST", users, `{"username":"ada","displayName":"` + strings.Repeat("x", 65536) + `"}`, 413, "urn:pinward:problem:too-large", "", "65536 bytes"},

		// Users
		{"no username", "POST", users, `{}`, 422, invalid, "body.username", "needed"},
		{"empty username", "POST", users, `{"username":""}`, 422, invalid, "body.username", "needed"},
		{"username of spaces", "POST", users, `{"username":" "}`, 422, invalid, "body.username", "space around"},
		{"long username", "POST", users, object{"username": strings.Repeat("x", 129)}, 422, invalid, "body.username", "at most 128"},
		{"username that grows when folded", "POST", users, object{"username": strings.Repeat("ﷺ", 128)}, 422, invalid, "body.username", "too long"},
		{"line break in username", "POST", users, object{"username": "ada\r\nBcc: all@acme.example"}, 422, invalid, "body.username", "control characters"},
		{"line separator in display name", "POST", users, object{"username": "ada", "displayName": "Ada\u2028Lovelace"}, 422, invalid, "body.displayName", "line breaks"},
		{"header in mail address", "POST", users, object{"username": "ada", "mail": "ada@acme.example\r\nBcc: all@acme.example"}, 422, invalid, "body.mail", "control characters"},
		{"two mail addresses", "POST", users, object{"username": "ada", "mail": "ada@acme.example, bob@acme.example"}, 422, invalid, "body.mail", "ada@example.org"},
		{"name in mail address", "POST", users, object{"username": "ada", "mail": "Ada <ada@acme.example>"}, 422, invalid, "body.mail", "ada@example.org"},
		{"letters in phone", "POST", users, object{"username": "ada", "phone": "0800-CALL-ME"}, 422, invalid, "body.phone", "digits"},
		{"empty group", "POST", users, object{"username": "ada", "groups": []string{""}}, 422, invalid, "body.groups", "empty name"},
		{"groups without end", "POST", users, object{"username": "ada", "groups": slices.Repeat([]string{"g"}, 101)}, 422, invalid, "body.groups", "at most 50"},
		{"taken username", "POST", users, object{"username": "SOMEBODY-1"}, 422, invalid, "body.username", "another user's"},

		// Paths, queries and headers
		{"unknown query parameter", "GET", "/v1/users?limt=5", nil, 422, invalid, "query.limt", "unknown"},
		{"limit 0", "GET", "/v1/users?limit=0", nil, 422, invalid, "query.limit", ">= 1"},
		{"limit 1000", "GET", "/v1/users?limit=1000", nil, 422, invalid, "query.limit", "<= 200"},
		{"limit in words", "GET", "/v1/users?limit=ten", nil, 422, invalid, "query.limit", "integer"},
		{"cursor not ours", "GET", "/v1/users?cursor=%2F%2F", nil, 422, invalid, "query.cursor", "nextCursor"},
		{"cursor of zeros", "GET", "/v1/users?cursor=AAAA", nil, 422, invalid, "query.cursor", "nextCursor"},
		{"cursor without end", "GET", "/v1/users?cursor=" + strings.Repeat("YWFh", 400), nil, 422, invalid, "query.cursor", "nextCursor"},
		{"cursor not UTF-8", "GET", "/v1/users?cursor=_w", nil, 422, invalid, "query.cursor", "nextCursor"},
		{"tenants' cursor not ours", "GET", "/v1/tenants?cursor=%2F%2F", nil, 422, invalid, "query.cursor", "nextCursor"},
		{"audit of no day", "GET", "/v1/audit?day=2030-02-30", nil, 422, invalid, "query.day", "RFC 3339 date"},
		{"audit cursor not ours", "GET", "/v1/audit?cursor=AAAA", nil, 422, invalid, "query.cursor", "nextCursor"},
		{"id without end", "GET", "/v1/users/" + strings.Repeat("x", 61), nil, 422, invalid, "path.id", "<= 60"},
		{"name without end", "GET", "/v1/users?username=" + strings.Repeat("x", 129), nil, 422, invalid, "query.username", "<= 128"},
		{"prefix that grows when folded", "GET", "/v1/users?prefix=" + strings.Repeat("%EF%B7%BA", 128), nil, 422, invalid, "query.prefix", "too long"},
		{"no such operation", "GET", "/v1/nothing", nil, 404, "urn:pinward:problem:not-found", "", "/docs"},
		{"escaped slash", "GET", "/v1%2Fusers", nil, 200, "", "", ""}, // API Gateway decodes it
		{"no such method", "DELETE", "/v1/users", nil, 405, "urn:pinward:problem:method", "", "only GET, POST"},

		// Policies
		{"minLength 3", "PUT", "/v1/policy", policy(`"minLength":3`), 422, invalid, "body.minLength", "from 4 to 64"},
		{"maxLength 65", "PUT", "/v1/policy", policy(`"maxLength":65`), 422, invalid, "body.maxLength", "from 4 to 64"},
		{"min over max", "PUT", "/v1/policy", policy(`"minLength":9,"maxLength":8`), 422, invalid, "body.maxLength", "not be less than minLength"},
		{"half a digit", "PUT", "/v1/policy", policy(`"minLength":4.5`), 422, invalid, "body.minLength", "integer"},
		{"digits without end", "PUT", "/v1/policy", policy(`"minLength":1e400`), 400, badForm, "body", "number"},
		{"hours over an int", "PUT", "/v1/policy", policy(`"expirationHours":99999999999999999999`), 422, invalid, "body", "number"},
		{"notice not before expiry", "PUT", "/v1/policy", policy(`"expirationHours":24,"notifyHoursBefore":24`), 422, invalid, "body.notifyHoursBefore", "less than expirationHours"},
		{"negative hours", "PUT", "/v1/policy", policy(`"expirationHours":-1`), 422, invalid, "body.expirationHours", "from 0 to 87600"},
		{"a century", "PUT", "/v1/policy", policy(`"expirationHours":876000`), 422, invalid, "body.expirationHours", "from 0 to 87600"},
		{"negative notice", "PUT", "/v1/policy", policy(`"expirationHours":24,"notifyHoursBefore":-1`), 422, invalid, "body.notifyHoursBefore", "from 1 to 87600"},
		{"twice the same notice", "PUT", "/v1/policy", policy(`"expirationHours":240,"notifyHoursBefore":[24,72,24]`), 422, invalid, "body.notifyHoursBefore", "24 once"},
		{"notice in words", "PUT", "/v1/policy", policy(`"expirationHours":240,"notifyHoursBefore":"a day"`), 422, invalid, "body.notifyHoursBefore", "list of such numbers"},
		{"notices without end", "PUT", "/v1/policy", policy(`"notifyHoursBefore":[1,2,3,4,5,6,7,8,9,10,11]`), 422, invalid, "body.notifyHoursBefore", "at most 10"},
		{"none among notices", "PUT", "/v1/policy", policy(`"notifyHoursBefore":[24,0]`), 422, invalid, "body.notifyHoursBefore", "0 alone"},
		{"unknown profile", "PUT", "/v1/policy", policy(`"profile":"strict"`), 422, invalid, "body.profile", "windowsHello"},
		{"unknown alphabet", "PUT", "/v1/policy", policy(`"alphabet":"greek"`), 422, invalid, "body.alphabet", "alphanumeric"},
		{"unknown class", "PUT", "/v1/policy", policy(`"requireClasses":["vowel"]`), 422, invalid, "body.requireClasses", "digit, lower, upper"},
		{"class that the alphabet lacks", "PUT", "/v1/policy", policy(`"alphabet":"digits","requireClasses":["lower"]`), 422, invalid, "body.requireClasses", "digits lacks"},
		{"unknown blocklist", "PUT", "/v1/policy", policy(`"blocklist":"rude"`), 422, invalid, "body.blocklist", "common"},
		{"spaces in an entry", "PUT", "/v1/policy", policy(`"blocklistEntries":["fine1","not fine"]`), 422, invalid, "body.blocklistEntries", "number 2"},
		{"no attempts", "PUT", "/v1/policy", policy(`"maxAttempts":0`), 422, invalid, "body.maxAttempts", "from 1 to 100"},
		{"a lock for ever", "PUT", "/v1/policy", policy(`"lockMinutes":100000`), 422, invalid, "body.lockMinutes", "from 1 to 1440"},
		{"run of 1", "PUT", "/v1/policy", policy(`"maxRun":1`), 422, invalid, "body.maxRun", "0 (off)"},
		{"a policy to try", "POST", "/v1/policy/check", `{` + pin + `,"policy":{"minLength":3}}`, 422, invalid, "body.policy.minLength", "from 4 to 64"},

		// Settings, keys, tenants, audit
		{"no display name", "PUT", "/v1/settings", `{"timeZone":"UTC","language":"en","pinOnlyLogin":false,"expiryMail":{}}`, 422, invalid, "body", "displayName"},
		{"control characters in display name", "PUT", "/v1/settings", object{"displayName": "Acme\nBcc: all", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}}, 422, invalid, "body.displayName", "control characters"},
		{"unknown time zone", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "Europe/Atlantis", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}}, 422, invalid, "body.timeZone", "Europe/Berlin"},
		{"a path for a time zone", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "../../etc/passwd", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}}, 422, invalid, "body.timeZone", "Europe/Berlin"},
		{"unknown language", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "klingon!", "pinOnlyLogin": false, "expiryMail": object{}}, 422, invalid, "body.language", "de-AT"},
		{"quiet from five past", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "quietHours": object{"from": "20:05", "to": "07:00"}}, 422, invalid, "body.quietHours.from", "quarters of an hour"},
		{"quiet at 25 o'clock", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "quietHours": object{"from": "20:00", "to": "25:00"}}, 422, invalid, "body.quietHours.to", "quarters of an hour"},
		{"quiet without end", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "quietHours": object{"from": "20:00"}}, 422, invalid, "body.quietHours", "from and to"},
		{"quiet all day", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "quietHours": object{"from": "20:00", "to": "20:00"}}, 422, invalid, "body.quietHours.to", "daysOff"},
		{"quiet on a day that is none", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "quietHours": object{"daysOff": []string{"caturday"}}}, 422, invalid, "body.quietHours.daysOff", "saturday"},
		{"quiet every day", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "quietHours": object{"daysOff": []string{"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"}}}, 422, invalid, "body.quietHours.daysOff", "leave a day"},
		{"a digest to nobody's address", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "digest": object{"recipients": []string{"it@acme.example", "the IT"}}}, 422, invalid, "body.digest.recipients", "number 2"},
		{"a digest to one twice", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "digest": object{"recipients": []string{"it@acme.example", "IT@acme.example"}}}, 422, invalid, "body.digest.recipients", "once"},
		{"a digest to eleven", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "digest": object{"recipients": strings.Fields(strings.Repeat("it@acme.example ", 11))}}, 422, invalid, "body.digest.recipients", "at most 10"},
		{"a digest at 24", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "digest": object{"recipients": []string{"it@acme.example"}, "hour": 24}}, 422, invalid, "body.digest.hour", "0 to 23"},
		{"a digest on no day", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}, "digest": object{"recipients": []string{"it@acme.example"}, "days": []string{"Monday"}}}, 422, invalid, "body.digest.days", "monday"},
		{"messaging not there", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{"messaging": "nope"}}, 422, invalid, "body.expiryMail.messaging", "messaging configuration"},
		{"messaging without end", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{"messaging": strings.Repeat("x", 3000)}}, 422, invalid, "body.expiryMail.messaging", "messaging configuration"},
		{"template not there", "PUT", "/v1/settings", object{"displayName": "Acme", "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{"messaging": messaging, "template": "nope"}}, 422, invalid, "body.expiryMail.template", "mail template"},
		{"person without anything", "POST", "/v1/people", `{}`, 422, invalid, "body.name", "1 to 200"},
		{"person without roles", "POST", "/v1/people", `{"name":"Ada","mail":"ada@acme.example","roles":[]}`, 422, invalid, "body.roles", "auditor"},
		{"person of an unknown role", "POST", "/v1/people", `{"name":"Ada","mail":"ada@acme.example","roles":["kiosk"]}`, 422, invalid, "body.roles", "auditor"},
		{"person of a role twice", "POST", "/v1/people", `{"name":"Ada","mail":"ada@acme.example","roles":["admin","admin"]}`, 422, invalid, "body.roles", "twice"},
		{"person without a mailbox", "POST", "/v1/people", `{"name":"Ada","mail":"ada","roles":["admin"]}`, 422, invalid, "body.mail", "name@example.com"},
		{"person with a name in the address", "POST", "/v1/people", `{"name":"Ada","mail":"Ada <ada@acme.example>","roles":["admin"]}`, 422, invalid, "body.mail", "alone"},
		{"person with a long name", "POST", "/v1/people", `{"name":"` + strings.Repeat("a", 201) + `","mail":"ada@acme.example","roles":["admin"]}`, 422, invalid, "body.name", "201 characters"},
		{"person of no language", "POST", "/v1/people", `{"name":"Ada","mail":"ada@acme.example","roles":["admin"],"language":"English!"}`, 422, invalid, "body.language", "de-AT"},
		{"person with an id", "POST", "/v1/people", `{"id":"x","name":"Ada","mail":"ada@acme.example","roles":["admin"]}`, 422, invalid, "body.id", "unexpected"},
		{"sign-in link for ever", "POST", "/v1/people/01J8ZC9Q6Y0V4T5W3X2R1N0M9K/sign-in-link", `{"validMinutes":1441}`, 422, invalid, "body.validMinutes", "1440"},
		{"sign-in link for a moment", "POST", "/v1/people/01J8ZC9Q6Y0V4T5W3X2R1N0M9K/sign-in-link", `{"validMinutes":9}`, 422, invalid, "body.validMinutes", "10"},
		{"unknown role", "POST", "/v1/keys", `{"name":"x","role":"root"}`, 422, invalid, "body.role", "operator"},
		{"role of a token", "POST", "/v1/keys", `{"name":"x","role":"self"}`, 422, invalid, "body.role", "operator"},
		{"key without a name", "POST", "/v1/keys", `{"name":"","role":"kiosk"}`, 422, invalid, "body.name", "1 to 80"},
		{"key that has expired", "POST", "/v1/keys", `{"name":"x","role":"kiosk","expiresAt":"2020-01-01T00:00:00Z"}`, 422, invalid, "body.expiresAt", "a time to come"},
		{"no time", "POST", "/v1/keys", `{"name":"x","role":"kiosk","expiresAt":"tomorrow"}`, 422, invalid, "body.expiresAt", "date-time"},
		{"a token for ever", "POST", "/v1/users/x/tokens", `{"minutes":100000}`, 422, invalid, "body.minutes", "<= 1440"},
		{"tenant of capitals", "POST", "/v1/tenants", object{"id": "ACME", "displayName": "x", "timeZone": "UTC", "language": "en"}, 422, invalid, "body.id", "a-z"},
		{"the reserved tenant", "POST", "/v1/tenants", object{"id": "platform", "displayName": "x", "timeZone": "UTC", "language": "en"}, 422, invalid, "body.id", "reserved"},
		{"tenant that there is", "POST", "/v1/tenants", object{"id": "acme", "displayName": "x", "timeZone": "UTC", "language": "en"}, 409, "urn:pinward:problem:conflict", "", "exists already"},

		// PINs
		{"verify nobody", "POST", "/v1/pins/verify", `{` + pin + `}`, 422, invalid, "body.username", "one of userId, username and externalId"},
		{"verify two", "POST", "/v1/pins/verify", `{` + pin + `,"username":"a","userId":"b"}`, 422, invalid, "body.username", "not by 2"},
		{"verify without PIN", "POST", "/v1/pins/verify", `{"username":"ada"}`, 422, invalid, "body", "pin"},
		{"identify where it is off", "POST", "/v1/pins/identify", `{` + pin + `}`, 409, "urn:pinward:problem:conflict", "", "PIN-only login"},
		{"terminal with control characters", "POST", "/v1/pins/identify", `{` + pin + `,"terminal":"a\nb"}`, 422, invalid, "body.terminal", "match"},

		// Mail
		{"SMTP in the clear", "POST", "/v1/messaging", smtp(`,"security":"none"`), 422, invalid, "body.smtp.security", "starttls"},
		{"SMTP without security", "POST", "/v1/messaging", smtp(``), 422, invalid, "body.smtp", "security"},
		{"SMTP without its part", "POST", "/v1/messaging", `{"name":"x","kind":"smtp","from":"it@acme.example"}`, 422, invalid, "body.smtp.host", "host name"},
		{"number for a password", "POST", "/v1/messaging", strings.Replace(smtp(`,"security":"tls"`), `"opensesame-opensesame"`, "1234567890123", 1), 422, invalid, "body.smtp.password", "expected string"},
		{"line break in a password", "POST", "/v1/messaging", strings.Replace(smtp(`,"security":"tls"`), `opensesame-opensesame`, `open\nsesame-again`, 1), 422, invalid, "body.smtp.password", "control characters"},
		{"password without a name", "POST", "/v1/messaging", strings.Replace(smtp(`,"security":"tls"`), `"username":"it",`, "", 1), 422, invalid, "body.smtp.username", "required with a password"},
		{"port 0", "POST", "/v1/messaging", strings.Replace(smtp(`,"security":"tls"`), `587`, "0", 1), 422, invalid, "body.smtp.port", "1 to 65535"},
		{"SES where there is none", "POST", "/v1/messaging", `{"name":"x","kind":"ses","from":"it@acme.example"}`, 422, invalid, "body.kind", "not available"},
		{"unknown kind", "POST", "/v1/messaging", `{"name":"x","kind":"pigeon","from":"it@acme.example"}`, 422, invalid, "body.kind", "smtp"},
		{"header in from", "POST", "/v1/messaging", `{"name":"x","kind":"outbox","from":"it@acme.example\r\nBcc: all@acme.example"}`, 422, invalid, "body.from", "line breaks"},
		{"header in name", "POST", "/v1/messaging", `{"name":"x\r\ny","kind":"outbox","from":"it@acme.example"}`, 422, invalid, "body.name", "control characters"},
		{"no address to test", "POST", "/v1/messaging/" + messaging + "/test", `{"to":"nobody"}`, 422, invalid, "body.to", "mail address"},
		{"no template to test", "POST", "/v1/messaging/" + messaging + "/test", `{"to":"ada@acme.example","template":"nope"}`, 404, "urn:pinward:problem:not-found", "", "no such thing"},
		{"unknown variable", "POST", "/v1/mail-templates", `{"name":"x","subject":"y","text":"{{pin}}"}`, 422, invalid, "body.text", "{{pin}} is not a variable of this mail; the variables are {{pinExpiration}}"},
		{"unknown variable in HTML", "POST", "/v1/mail-templates", `{"name":"x","subject":"y","text":"z","html":"<p>{{Username}}</p>"}`, 422, invalid, "body.html", "{{Username}} is not a variable"},
		{"unescaped variable", "POST", "/v1/mail-templates", `{"name":"x","subject":"y","text":"z","html":"<p>{{{username}}}</p>"}`, 422, invalid, "body.html", "unescaped"},
		{"variable in a tag", "POST", "/v1/mail-templates", `{"name":"x","subject":"y","text":"z","html":"<a href={{username}}>x</a>"}`, 422, invalid, "body.html", "running text"},
		{"section", "POST", "/v1/mail-templates", `{"name":"x","subject":"y","text":"{{#username}}z{{/username}}"}`, 422, invalid, "body.text", "not supported"},
		{"line break in subject", "POST", "/v1/mail-templates", `{"name":"x","subject":"y\r\nBcc: all@acme.example","text":"z"}`, 422, invalid, "body.subject", "line breaks"},
		{"template without text", "POST", "/v1/mail-templates", `{"name":"x","subject":"y"}`, 422, invalid, "body", "text"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := *f
			f.TB = t
			key := f.key
			if strings.HasPrefix(c.path, "/v1/tenants") {
				key = f.platform
			}
			a := f.call(c.method, c.path, key, c.body).want(c.status)
			if c.status < 400 {
				return
			}
			p := a.problem()
			if p.Type != c.kind {
				t.Errorf("type is %s, want %s", p.Type, c.kind)
			}
			if c.location == "" {
				if !strings.Contains(p.Detail, c.says) {
					t.Errorf("%s does not say %q", a.body, c.says)
				}
				return
			}
			for _, e := range p.Errors {
				if e.Location == c.location && strings.Contains(e.Message, c.says) {
					return
				}
			}
			t.Errorf("%s does not say %q of %s", a.body, c.says, c.location)
		})
	}
	if got := f.call("GET", "/v1/users", f.key, nil).want(200).body; strings.Count(string(got), `"id"`) != 1 {
		t.Errorf("bad input has made users: %s", got)
	}
}

// TestNull: null is as good as left out.
func TestNull(t *testing.T) {
	f := newFixture(t)
	id := f.user(f.key, f.pin())
	var before, after object
	f.call("GET", "/v1/users/"+id, f.key, nil).want(200).decode(&before)
	f.call("PATCH", "/v1/users/"+id, f.key, `{"username":null,"mail":null,"groups":null,"pin":null}`).want(200).decode(&after)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("nulls changed the user (-before +after):\n%s", diff)
	}
}

// TestTenantDefaults: what the description calls a default need not be sent.
func TestTenantDefaults(t *testing.T) {
	f := newFixture(t)
	a := f.call("POST", "/v1/tenants", f.platform, object{"id": "plain", "displayName": "Plain"}).want(201)
	if zone, language := a.text("tenant", "timeZone"), a.text("tenant", "language"); zone != "UTC" || language != "en" {
		t.Errorf("got %s and %s, want UTC and en", zone, language)
	}
}

// TestEveryViolation: an answer names all that is wrong, in the profile and in
// the PIN.
func TestEveryViolation(t *testing.T) {
	f := newFixture(t)
	p := f.call("POST", "/v1/users", f.key, object{"mail": "nobody", "phone": "x", "pin": "1111"}).want(422).problem()
	var got []string
	for _, e := range p.Errors {
		got = append(got, e.Code+" "+e.Location)
	}
	slices.Sort(got)
	want := []string{"characters body.phone", "common body.pin", "form body.mail", "missing body.username", "repeated body.pin"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

func TestContentTypes(t *testing.T) {
	f := newFixture(t)
	body := func() object { return object{"username": f.unique("content-type")} }
	f.call("POST", "/v1/users", f.key, body(), "Content-Type", "application/json; charset=utf-8").want(201)
	for _, contentType := range []string{"text/plain", "application/x-www-form-urlencoded", "application/cbor", "image/png"} {
		a := f.call("POST", "/v1/users", f.key, body(), "Content-Type", contentType).want(415)
		if !strings.Contains(string(a.body), "application/json") {
			t.Errorf("%s: %s does not say that JSON is wanted", contentType, a.body)
		}
	}
	// What the caller accepts changes nothing: there is one form of answer.
	for _, accept := range []string{"text/html", "application/cbor", "*/*", "nonsense"} {
		if a := f.call("GET", "/v1/users", f.key, nil, "Accept", accept).want(200); a.header.Get("Content-Type") != "application/json" {
			t.Errorf("Accept %s: got %s, want JSON", accept, a.header.Get("Content-Type"))
		}
		f.call("GET", "/v1/users/x", f.key, nil, "Accept", accept).want(404)
	}
}

// TestHugePIN sends more than an API Gateway event can hold: API Gateway itself
// answers.
func TestHugePIN(t *testing.T) {
	f := newFixture(t)
	r, err := http.NewRequest("POST", f.url+"/v1/users", strings.NewReader(`{"username":"ada","pin":"`+strings.Repeat("73915862", 10<<20/8)+`"}`))
	f.must(err)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+f.key)
	resp, err := http.DefaultClient.Do(r)
	f.must(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	f.must(err)
	if resp.StatusCode != 413 || len(body) > 100 {
		t.Errorf("got %d %.200s, want 413", resp.StatusCode, body)
	}
}

// TestBadPINOnEveryPath: wherever a PIN can be given the policy judges it, and
// a refused one changes nothing.
func TestBadPINOnEveryPath(t *testing.T) {
	f := newFixture(t)
	f.policy(object{"history": 3, "blocklistEntries": []string{"Pinward7"}, "maxAttempts": 100})
	created := f.call("POST", "/v1/users", f.key, object{"username": "charlotte", "mail": "charlotte.b@acme.example",
		"phone": "+49 170 4433221", "staffNumber": "A-5820463", "pin": "k7Q2wxKept"}).want(201)
	id := created.text("id")
	token, operator := f.token(id), f.keyOf("operator")
	f.clock.advance(3 * time.Minute) // setting the same again at once would be the same call repeated

	// Create is judged by what it says of the new user: the same.
	profile := object{"username": "charlotte", "mail": "charlotte.b@acme.example", "phone": "+49 170 4433221", "staffNumber": "A-5820463"}
	paths := []struct {
		name, method, path, key string
		with                    object
		reused                  bool // there are former PINs
	}{
		{"create", "POST", "/v1/users", f.key, profile, false},
		{"update by admin", "PATCH", "/v1/users/" + id, f.key, object{"displayName": "Not this"}, true},
		{"update by operator", "PATCH", "/v1/users/" + id, operator, object{"displayName": "Nor this"}, true},
		{"update by self", "PATCH", "/v1/users/" + id, token, object{"displayName": "Nor that"}, true},
		{"set by admin", "PUT", "/v1/users/" + id + "/pin", f.key, nil, true},
		{"set by operator", "PUT", "/v1/users/" + id + "/pin", operator, nil, true},
		{"set by self", "PUT", "/v1/users/" + id + "/pin", token, nil, true},
	}
	before := f.call("GET", "/v1/users/"+id, f.key, nil).want(200).comparable()
	state := f.call("GET", "/v1/users/"+id+"/pin", f.key, nil).want(200).comparable()
	for _, c := range []struct{ pin, code string }{
		{"", "tooShort"},
		{"739", "tooShort"},
		{"k7Q2wxZpk7Q2wxZp0", "tooLong"},
		{strings.Repeat("73915862", 5000), "tooLong"},
		{"12345678", "sequential"},
		{"hgfedcba", "sequential"},
		{"90123456", "sequential"},
		{"11111111", "repeated"},
		{"a1Bca1Bc", "repeated"},
		{"2580", "common"},
		{"1987", "common"},
		{"pinward7", "blocklisted"},
		{"charlotte", "context"},
		{"ettolrahc", "context"},
		{"1704433221", "context"},
		{"5820463", "context"},
		{"7391 5862", "notInAlphabet"},
		{" 73915862", "notInAlphabet"},
		{"７３９１５８６２", "notInAlphabet"},
		{"7391\x005862", "notInAlphabet"},
		{"7391\n5862", "notInAlphabet"},
		{"7391-5862", "notInAlphabet"},
		{"ключ7391", "notInAlphabet"},
		{"k7Q2wxKept", "reused"},
	} {
		for _, p := range paths {
			if c.code == "reused" && !p.reused {
				continue
			}
			body := object{"pin": c.pin}
			for name, v := range p.with {
				body[name] = v
			}
			a := f.call(p.method, p.path, p.key, body)
			problem := a.problem()
			if a.status != 422 || !slices.ContainsFunc(problem.Errors, func(e struct{ Code, Location, Message string }) bool {
				return e.Code == c.code && e.Location == "body.pin"
			}) {
				t.Errorf("%s, %s: got %d %s, want 422 with %s", p.name, c.code, a.status, a.body, c.code)
			}
		}
	}
	if now := f.call("GET", "/v1/users/"+id, f.key, nil).want(200).comparable(); now != before {
		t.Errorf("refused PINs changed the user from\n%s\nto\n%s", before, now)
	}
	if now := f.call("GET", "/v1/users/"+id+"/pin", f.key, nil).want(200).comparable(); now != state {
		t.Errorf("refused PINs changed the PIN from\n%s\nto\n%s", state, now)
	}
	var list struct{ Items []json.RawMessage }
	f.call("GET", "/v1/users", f.key, nil).want(200).decode(&list)
	if len(list.Items) != 1 {
		t.Errorf("there are %d users, want 1", len(list.Items))
	}
	verified := f.call("POST", "/v1/pins/verify", f.key, object{"userId": id, "pin": "k7Q2wxKept"}).want(200)
	if !strings.Contains(string(verified.body), `"verified":true`) {
		t.Errorf("the old PIN does not let in any more: %s", verified.body)
	}
}

// TestOwnFields: a person changes of themselves only what nobody knows them by.
func TestOwnFields(t *testing.T) {
	f := newFixture(t)
	id := f.user(f.key, "")
	token := f.token(id)
	path := "/v1/users/" + id
	f.call("PATCH", path, token, object{"displayName": "Ada", "phone": "170 1234", "mail": "ada.l@acme.example", "pin": f.pin()}).want(200)
	before := f.call("GET", path, f.key, nil).want(200).comparable()
	for field, value := range map[string]any{"username": "root-of-all", "staffNumber": "1", "externalId": "other-number", "groups": []string{"admins"}} {
		p := f.call("PATCH", path, token, object{field: value, "displayName": "Eve"}).want(422).problem()
		if p.Errors[0].Location != "body."+field || p.Errors[0].Code != "notYours" {
			t.Errorf("%s: got %+v, want notYours", field, p.Errors)
		}
	}
	if now := f.call("GET", path, f.key, nil).want(200).comparable(); now != before {
		t.Errorf("changed from\n%s\nto\n%s", before, now)
	}
}
