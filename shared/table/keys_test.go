package table_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/table"
)

// TestKeys pins every key as it is stored: a change would lose what is there.
func TestKeys(t *testing.T) {
	const acme = table.TenantID("acme")
	at := time.Date(2030, 1, 31, 9, 5, 7, 999, time.FixedZone("", 2*3600))
	var got []string
	key := func(name string, k table.Key) {
		got = append(got, fmt.Sprintf("%s: %q %q", name, k.Partition(), k.Sort()))
	}
	index := func(name string, k table.IndexKey) {
		got = append(got, fmt.Sprintf("%s: %s %q %q", name, k.Index(), k.Partition(), k.Sort()))
	}
	ranges := func(name string, rs ...table.Range) {
		for _, r := range rs {
			s := r.Spec()
			got = append(got, strings.TrimSpace(fmt.Sprintf("%s: %s %q from %q to %q", name, s.Index, s.Partition, s.From, s.To)))
		}
	}
	key("tenant", table.TenantKey(acme))
	key("policy", table.PolicyKey(acme))
	key("keysets", table.KeysetsKey(acme))
	ranges("core", table.TenantCore(acme))
	index("tenant listed", table.TenantListed(acme))
	ranges("tenants", table.Tenants()[0], table.Tenants()[table.TenantShards-1])
	key("policy version", table.PolicyVersionKey(acme, 7))
	ranges("policy versions", table.PolicyVersions(acme))
	key("API key", table.APIKeyKey(acme, "K"))
	ranges("API keys", table.APIKeys(acme))
	key("messaging", table.MessagingKey(acme, "M"))
	ranges("messagings", table.Messagings(acme))
	key("template", table.TemplateKey(acme, "T"))
	ranges("templates", table.Templates(acme))
	key("token", table.TokenKey(acme, "K"))
	key("user", table.UserKey(acme, "U"))
	index("user listed", table.UserListed(acme, "ada", "U"))
	ranges("users", table.Users(acme, "ad")[0], table.Users(acme, "")[table.ListShards-1])
	index("user due", table.UserDue(acme, "U", at))
	ranges("due", table.DueBefore(3, at))
	index("user's PIN expiry", table.UserPINExpiry(acme, "U", at))
	ranges("users' PINs expiring", table.UserPINsExpiring(acme, at, at.Add(time.Hour))[1])
	key("undeliverable", table.UndeliverableKey(acme, "U"))
	ranges("undeliverables", table.Undeliverables(acme)[1])
	key("username", table.UsernameKey(acme, "ada"))
	key("external id", table.ExternalKey(acme, "a/b%c\x00d\x01\xff"))
	key("lookup", table.LookupKey(acme, "1.tag"))
	key("attempts", table.AttemptsKey(acme, "user/U"))
	key("count", table.CountKey(acme, "U"))
	ranges("counts", table.Counts(acme))
	key("idempotency", table.IdempotencyKey(acme, "1.hash"))
	key("audit", table.AuditKey(acme, at, "01A"))
	index("audit subject", table.AuditSubject(acme, "user/U", "01A"))
	ranges("audit day", table.AuditDay(acme, at))
	ranges("audit of", table.AuditOf(acme, "user/U"))
	key("bridge", table.BridgeKey(acme, "B"))
	index("bridge listed", table.BridgeListed(acme, "B"))
	ranges("bridges", table.Bridges(acme)[0], table.Bridges(acme)[table.ListShards-1])
	key("connection", table.ConnectionKey("L0SM9cOFvHcCIhw="))
	key("card template", table.CardTemplateKey(acme, "T"))
	ranges("card templates", table.CardTemplates(acme))
	key("card template use", table.CardTemplateUseKey(acme, "T", 3))
	ranges("card template uses", table.CardTemplateUses(acme, "T"))
	key("credential", table.CredentialKey(acme, "piv-00"))
	index("credential listed", table.CredentialListed(acme, "piv-00"))
	ranges("credentials", table.Credentials(acme)[0])
	index("credential held", table.CredentialHeld(acme, "U", "piv-00"))
	ranges("credentials held", table.CredentialsHeld(acme, "U"))
	ranges("credentials by card", table.CredentialsByCard(acme, "piv-00")[1])
	index("credential due", table.CredentialDue(acme, "piv-00", at))
	ranges("credentials due", table.CredentialsDueBefore(3, at))
	index("credential unflagged", table.CredentialUnflagged(acme, "T", "piv-00"))
	ranges("credentials unflagged", table.CredentialsUnflagged(acme, "T")[1])
	key("credential filed", table.CredentialFiledKey(acme, "active", "T", "piv-00"))
	ranges("credentials filed", table.CredentialsFiled(acme, "active", "T")[1], table.CredentialsFiled(acme, "active", "")[1])
	key("credential expiring", table.CredentialExpiryKey(acme, at, "piv-00"))
	ranges("credentials expiring", table.CredentialsExpiring(acme, at, at.Add(time.Hour))[1], table.CredentialsExpiring(acme, time.Time{}, at)[1])
	key("credential word", table.CredentialWordKey(acme, "ada's card", "piv-00"))
	ranges("credentials with word", table.CredentialsWithWord(acme, "ad")[1])
	key("job", table.JobKey(acme, "01A"))
	index("job listed", table.JobListed(acme, "import", "01A"))
	ranges("jobs", table.Jobs(acme, "import")[1])
	key("job part", table.JobPartKey(acme, "01A", 12))
	ranges("job parts", table.JobParts(acme, "01A"))
	index("job due", table.JobDue(acme, "01A", at))
	ranges("jobs due", table.JobsDueBefore(3, at))
	key("unblock", table.UnblockKey(acme, "01A"))
	index("unblock listed", table.UnblockListed(acme, "01A"))
	ranges("unblocks", table.Unblocks(acme)[0])
	index("unblock of", table.UnblockOf(acme, "piv-00", "01A"))
	ranges("unblocks of", table.UnblocksOf(acme, "piv-00"))
	index("unblock due", table.UnblockDue(acme, "01A", at))
	ranges("unblocks due", table.UnblocksDueBefore(3, at))
	key("job chunk", table.JobChunkKey(acme, "01A", 3, 2))
	key("import key", table.ImportKeyKey(acme))
	key("offline key", table.OfflineKeyKey(acme))
	key("offline answer", table.OfflineAnswerKey(acme, "01A"))
	index("offline answer of", table.OfflineAnswerOf(acme, "piv-00", "01A"))
	ranges("offline answers of", table.OfflineAnswersOf(acme, "piv-00"))
	index("offline answer due", table.OfflineAnswerDue(acme, "01A", at))
	ranges("offline answers due", table.OfflineAnswersDueBefore(3, at))
	key("offline answers lately", table.OfflineAnswersKey(acme, "card/piv-00"))
	key("watch", table.WatchKey(acme))
	key("generated PINs", table.GeneratedKey(acme, at, 7))
	ranges("generated PINs", table.Generated(acme, at))
	index("bulk due", table.BulkDue(acme, "01A", at))
	ranges("bulks due", table.BulksDueBefore(3, at))
	key("user by mail", table.MailKey(acme, "ada@example.org", "U"))
	ranges("users by mail", table.UsersByMail(acme, "ada@example.org"))
	key("roster", table.RosterKey(acme))
	key("person", table.PersonKey(acme, "P"))
	ranges("people", table.People(acme))
	key("person by mail", table.PersonMailKey(acme, "ada@example.org"))
	key("sign-in", table.SignInKey(acme, "01A"))
	key("provider", table.ProviderKey(acme))
	key("used return", table.ReturnedKey(acme, "01A"))
	key("account", table.AccountKey(acme, "ab12"))
	key("linked account", table.LinkedKey(acme, "P"))
	key("session", table.SessionKey(acme, "P", "01A"))
	ranges("sessions", table.Sessions(acme), table.SessionsOf(acme, "P"))
	key("user's session", table.UserSessionKey(acme, "U", "01A"))
	ranges("user's sessions", table.UserSessions(acme, "U"))
	key("rule", table.RuleKey(acme, "01A"))
	ranges("rules", table.Rules(acme))
	key("event", table.EventKey(acme, "pinward:pin.set/U"))
	index("event listed", table.EventListed(acme, "01A"))
	ranges("events", table.Events(acme)[1])
	ranges("events since", table.EventsSince(acme, "01A")[1])
	index("event due", table.EventDue(acme, "01A", at))
	ranges("events due", table.EventsDueBefore(3, at))
	key("last sweep", table.LastSweepKey())
	key("digest", table.DigestKey(acme))
	index("digest due", table.DigestDue(acme, at))
	ranges("digests due", table.DigestsDueBefore(3, at))
	key("given up", table.GivenUpKey(acme, at, "user/U/7"))
	ranges("given up since", table.GivenUp(acme, at, at.Add(time.Hour))[1])
	key("first event", table.FirstEventKey(acme, "U", "print-job.submitted"))

	key("endpoint", table.EndpointKey(acme, "E"))
	ranges("endpoints", table.Endpoints(acme))
	key("delivery", table.DeliveryKey(acme, "D_1"))
	index("delivery listed", table.DeliveryListed(acme, "D_1", at))
	ranges("deliveries", table.Deliveries(acme)[1])
	index("delivery dead", table.DeliveryDead(acme, "D_1", at))
	ranges("deliveries dead", table.DeadDeliveries(acme)[1])
	index("delivery due", table.DeliveryDue(acme, "D_1", at))
	ranges("deliveries due", table.DeliveriesDueBefore(3, at))

	want := strings.Split(strings.TrimSpace(`
tenant: "t/acme" "core/tenant"
policy: "t/acme" "core/policy"
keysets: "t/acme" "core/keysets"
core:  "t/acme" from "core/" to "core0"
tenant listed: list "tenants/3" "acme"
tenants: list "tenants/0" from "" to ""
tenants: list "tenants/3" from "" to ""
policy version: "t/acme" "policy/0000000007"
policy versions:  "t/acme" from "policy/" to "policy0"
API key: "t/acme" "key/K"
API keys:  "t/acme" from "key/" to "key0"
messaging: "t/acme" "messaging/M"
messagings:  "t/acme" from "messaging/" to "messaging0"
template: "t/acme" "template/T"
templates:  "t/acme" from "template/" to "template0"
token: "t/acme/token/K" "token"
user: "t/acme/user/U" "user"
user listed: list "t/acme/users/0" "ada\x01U"
users: list "t/acme/users/0" from "ad" to "ae"
users: list "t/acme/users/3" from "" to ""
user due: due "due/00" "2030-01-31T07:05:07Z/acme/U"
due: due "due/03" from "" to "2030-01-31T07:05:08Z"
user's PIN expiry: history "t/acme/pins/0" "2030-01-31T07:05:07Z/U"
users' PINs expiring: history "t/acme/pins/1" from "2030-01-31T07:05:07Z" to "2030-01-31T08:05:07Z"
undeliverable: "t/acme/undeliverable/0" "U"
undeliverables:  "t/acme/undeliverable/1" from "" to ""
username: "t/acme/username/ada" "username"
external id: "t/acme/external/a%2Fb%25c%00d%01%FF" "external"
lookup: "t/acme/lookup/1.tag" "lookup"
attempts: "t/acme/attempts/user%2FU" "attempts"
count: "t/acme/count" "users/00"
counts:  "t/acme/count" from "users/" to "users0"
idempotency: "t/acme/idem/1.hash" "idem"
audit: "t/acme/audit/20300131" "01A"
audit subject: history "t/acme/history/user%2FU" "01A"
audit day:  "t/acme/audit/20300131" from "" to ""
audit of: history "t/acme/history/user%2FU" from "" to ""
bridge: "t/acme/bridge/B" "bridge"
bridge listed: list "t/acme/bridges/1" "B"
bridges: list "t/acme/bridges/0" from "" to ""
bridges: list "t/acme/bridges/3" from "" to ""
connection: "t/platform/connection/L0SM9cOFvHcCIhw=" "connection"
card template: "t/acme" "cards/T"
card templates:  "t/acme" from "cards/" to "cards0"
card template use: "t/acme/uses/T" "03"
card template uses:  "t/acme/uses/T" from "" to ""
credential: "t/acme/credential/piv-00" "credential"
credential listed: list "t/acme/credentials/3" "piv-00"
credentials: list "t/acme/credentials/0" from "" to ""
credential held: history "t/acme/held/U" "piv-00"
credentials held: history "t/acme/held/U" from "" to ""
credentials by card: list "t/acme/credentials/1" from "piv-00" to "piv-01"
credential due: due "due/card/11" "2030-01-31T07:05:07Z/acme/piv-00"
credentials due: due "due/card/03" from "" to "2030-01-31T07:05:08Z"
credential unflagged: due "t/acme/unflagged/T/3" "piv-00"
credentials unflagged: due "t/acme/unflagged/T/1" from "" to ""
credential filed: "t/acme/filed/active/3" "T/piv-00"
credentials filed:  "t/acme/filed/active/1" from "T/" to "T0"
credentials filed:  "t/acme/filed/active/1" from "" to ""
credential expiring: "t/acme/expiring/3" "2030-01-31T07:05:07Z/piv-00"
credentials expiring:  "t/acme/expiring/1" from "2030-01-31T07:05:07Z" to "2030-01-31T08:05:07Z"
credentials expiring:  "t/acme/expiring/1" from "" to "2030-01-31T07:05:07Z"
credential word: "t/acme/cardwords/3" "ada's card\x01piv-00"
credentials with word:  "t/acme/cardwords/1" from "ad" to "ae"
job: "t/acme/job/01A" "job"
job listed: list "t/acme/jobs/import/1" "01A"
jobs: list "t/acme/jobs/import/1" from "" to ""
job part: "t/acme/job/01A" "part/00000012"
job parts:  "t/acme/job/01A" from "part/" to "part0"
job due: due "due/job/1" "2030-01-31T07:05:07Z/acme/01A"
jobs due: due "due/job/3" from "" to "2030-01-31T07:05:08Z"
unblock: "t/acme/unblock/01A" "unblock"
unblock listed: list "t/acme/unblocks/1" "01A"
unblocks: list "t/acme/unblocks/0" from "" to ""
unblock of: history "t/acme/unblocked/piv-00" "01A"
unblocks of: history "t/acme/unblocked/piv-00" from "" to ""
unblock due: due "due/unblock/1" "2030-01-31T07:05:07Z/acme/01A"
unblocks due: due "due/unblock/3" from "" to "2030-01-31T07:05:08Z"
job chunk: "t/acme/job/01A" "chunk/00000003/0002"
import key: "t/acme" "importKey"
offline key: "t/acme" "offlineKey"
offline answer: "t/acme/offline/01A" "answer"
offline answer of: history "t/acme/answered/piv-00" "01A"
offline answers of: history "t/acme/answered/piv-00" from "" to ""
offline answer due: due "due/offline/1" "2030-01-31T07:05:07Z/acme/01A"
offline answers due: due "due/offline/3" from "" to "2030-01-31T07:05:08Z"
offline answers lately: "t/acme/answers/card%2Fpiv-00" "answers"
watch: "t/acme" "core/watch"
generated PINs: "t/acme/generated/20300131" "07"
generated PINs:  "t/acme/generated/20300131" from "" to ""
bulk due: due "due/bulk/1" "2030-01-31T07:05:07Z/acme/01A"
bulks due: due "due/bulk/3" from "" to "2030-01-31T07:05:08Z"
user by mail: "t/acme/mail/ada@example.org" "U"
users by mail:  "t/acme/mail/ada@example.org" from "" to ""
roster: "t/acme/people" "roster"
person: "t/acme/people" "person/P"
people:  "t/acme/people" from "person/" to "person0"
person by mail: "t/acme/personmail/ada@example.org" "person"
sign-in: "t/acme/signin/01A" "signin"
provider: "t/acme" "provider"
used return: "t/acme/signin/01A" "returned"
account: "t/acme/account/ab12" "account"
linked account: "t/acme/people" "account/P"
session: "t/acme/sessions" "P/01A"
sessions:  "t/acme/sessions" from "" to ""
sessions:  "t/acme/sessions" from "P/" to "P0"
user's session: "t/acme/user/U" "session/01A"
user's sessions:  "t/acme/user/U" from "session/" to "session0"
rule: "t/acme" "rule/01A"
rules:  "t/acme" from "rule/" to "rule0"
event: "t/acme/event/pinward:pin.set%2FU" "event"
event listed: list "t/acme/events/1" "01A"
events: list "t/acme/events/1" from "" to ""
events since: list "t/acme/events/1" from "01A" to ""
event due: due "due/event/1" "2030-01-31T07:05:07Z/acme/01A"
events due: due "due/event/3" from "" to "2030-01-31T07:05:08Z"
last sweep: "t/platform/sweep" "last"
digest: "t/acme" "digest"
digest due: due "due/digest/3" "2030-01-31T07:05:07Z/acme"
digests due: due "due/digest/3" from "" to "2030-01-31T07:05:08Z"
given up: "t/acme/givenUp/0" "2030-01-31T07:05:07Z/user/U/7"
given up since:  "t/acme/givenUp/1" from "2030-01-31T07:05:07Z" to "2030-01-31T08:05:07Z"
first event: "t/acme/first/U" "print-job.submitted"
endpoint: "t/acme" "endpoint/E"
endpoints:  "t/acme" from "endpoint/" to "endpoint0"
delivery: "t/acme/delivery/D_1" "delivery"
delivery listed: list "t/acme/deliveries/3" "2030-01-31T07:05:07Z/D_1"
deliveries: list "t/acme/deliveries/1" from "" to ""
delivery dead: history "t/acme/dead/3" "2030-01-31T07:05:07Z/D_1"
deliveries dead: history "t/acme/dead/1" from "" to ""
delivery due: due "due/delivery/3" "2030-01-31T07:05:07Z/acme/D_1"
deliveries due: due "due/delivery/3" from "" to "2030-01-31T07:05:08Z"
`), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestKeyNamesNobody: what goes to logs has no name and nothing derived from a
// secret in it.
func TestKeyNamesNobody(t *testing.T) {
	for _, k := range []table.Key{
		table.UsernameKey("acme", "lovelace"), table.ExternalKey("acme", "lovelace"), table.LookupKey("acme", "lovelace"),
		table.AttemptsKey("acme", "lovelace"), table.IdempotencyKey("acme", "lovelace"),
		table.PersonMailKey("acme", "lovelace"),
		table.CredentialWordKey("acme", "lovelace", "piv-00"),
	} {
		for _, text := range []string{k.String(), fmt.Sprintf("%v %s", k, k), (&table.ConditionError{Key: k}).Error()} {
			if strings.Contains(text, "lovelace") {
				t.Errorf("%s shows what it stands for", text)
			}
		}
	}
}
