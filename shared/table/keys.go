package table

// Every key string is spelt here and nowhere else. "/" separates components;
// components that come from outside are escaped, so they cannot reach into
// another's place. Keys are valid UTF-8 without NUL and sort by their bytes.
//
//	entity          | partition                    | sort               | index entry: partition, sort                  | access pattern
//	tenant          | t/<tenant>                   | core/tenant        | list: tenants/<shard>, <tenant>               | load a tenant; list tenants
//	policy          | t/<tenant>                   | core/policy        |                                               | loaded with the tenant
//	keysets, sealed | t/<tenant>                   | core/keysets       |                                               | loaded with the tenant
//	watch           | t/<tenant>                   | core/watch         |                                               | loaded with the tenant: what trigger rules wait for
//	people's roster | t/<tenant>/people            | roster             |                                               | how many there are; who administers
//	person          | t/<tenant>/people            | person/<id>        |                                               | get, list: those who sign in
//	person by mail  | t/<tenant>/personmail/<mail> | person             |                                               | who signs in with an address; unique
//	sign-in         | t/<tenant>/signin/<id>       | signin             |                                               | one that has begun
//	session         | t/<tenant>/sessions          | <person>/<id>      |                                               | get; list; a person's
//	user's session  | t/<tenant>/user/<id>         | session/<id>       |                                               | get; a user's
//	provider        | t/<tenant>                   | provider           |                                               | where its people sign in
//	used return     | t/<tenant>/signin/<id>       | returned           |                                               | that somebody is back from the provider
//	account         | t/<tenant>/account/<hash>    | account            |                                               | whose account at the provider it is
//	linked account  | t/<tenant>/people            | account/<person>   |                                               | a person's account
//	policy version  | t/<tenant>                   | policy/<version>   |                                               | which policies there were
//	API key         | t/<tenant>                   | key/<id>           |                                               | authenticate; list keys
//	messaging       | t/<tenant>                   | messaging/<id>     |                                               | get, list
//	mail template   | t/<tenant>                   | template/<id>      |                                               | get, list
//	user's token    | t/<tenant>/token/<id>        | token              |                                               | authenticate
//	user            | t/<tenant>/user/<id>         | user               | list: t/<tenant>/users/<shard>, <name>^A<id>   | get; list by name
//	                |                              |                    | due: due/<shard>, <time>/<tenant>/<id>        | what the sweep has to do by now
//	                |                              |                    | history: t/<tenant>/pins/<shard>, <time>/<id> | users whose PIN has expired, or will by a time
//	undeliverable   | t/<tenant>/undeliverable/<s> | <id>               |                                               | users whose mail address does not work
//	username        | t/<tenant>/username/<name>   | username           |                                               | user by name; names are unique
//	external id     | t/<tenant>/external/<id>     | external           |                                               | user by external id; unique
//	PIN lookup      | t/<tenant>/lookup/<tag>      | lookup             |                                               | user by PIN alone
//	attempts        | t/<tenant>/attempts/<who>    | attempts           |                                               | guesses made, mails asked for lately
//	user count      | t/<tenant>/count             | users/<shard>      |                                               | how many users
//	idempotency     | t/<tenant>/idem/<hash>       | idem               |                                               | an answer given before
//	audit record    | t/<tenant>/audit/<day>       | <ulid>             | history: t/<tenant>/history/<subject>, <ulid> | what happened that day; to that subject
//	bridge          | t/<tenant>/bridge/<id>       | bridge             | list: t/<tenant>/bridges/<shard>, <id>        | authenticate a bridge; list bridges
//	connection      | t/platform/connection/<id>   | connection         |                                               | whose WebSocket it is
//	card template   | t/<tenant>                   | cards/<id>         |                                               | get, list credential templates
//	template uses   | t/<tenant>/uses/<template>   | <shard>            |                                               | how many credentials have a card template
//	credential      | t/<tenant>/credential/<id>   | credential         | list: t/<tenant>/credentials/<shard>, <id>    | by card (the id is the card's); list
//	                |                              |                    | history: t/<tenant>/held/<user>, <id>         | somebody's cards
//	                |                              |                    | due, with a flag: due/card/<shard>,           | what the sweep has to announce
//	                |                              |                    |      <time>/<tenant>/<id>                     |
//	                |                              |                    | due, without: t/<tenant>/unflagged/           | cards of a template without a PIN expiry flag
//	                |                              |                    |      <template>/<shard>, <id>                 |
//	its pointers    | t/<tenant>/filed/<state>/<s> | <template>/<id>    |                                               | cards of a state, a template, or both
//	                | t/<tenant>/expiring/<shard>  | <time>/<id>        |                                               | cards whose PIN has expired, or will by a time
//	                | t/<tenant>/cardwords/<shard> | <word>^A<id>       |                                               | cards by the beginning of label or serial
//	unblock         | t/<tenant>/unblock/<ulid>    | unblock            | list: t/<tenant>/unblocks/<shard>, <ulid>     | get; list, newest first
//	                |                              |                    | history: t/<tenant>/unblocked/<credential>, . | a card's unblocks
//	                |                              |                    | due: due/unblock/<shard>, <time>/<tenant>/<id>| what the sweep has to conclude or announce
//
//	job             | t/<tenant>/job/<ulid>        | job                | list: t/<tenant>/jobs/<kind>/<shard>, <ulid>  | an import, a sanity check's run, a bulk of PINs; list
//	                |                              |                    | due: due/job/<shard>, <time>/<tenant>/<ulid>  | jobs that the sweep has to go on with
//	                |                              |                    | due, of bulk PINs: due/bulk/<shard>, .        | bulk runs that the sweep has to go on with
//	its parts       | t/<tenant>/job/<ulid>        | part/<n>           |                                               | what it has done, in order
//	their chunks    | t/<tenant>/job/<ulid>        | chunk/<part>/<n>   |                                               | what came of an import's part, row by row
//	import key      | t/<tenant>                   | importKey          |                                               | the key that secrets in imports are encrypted to
//	offline key     | t/<tenant>                   | offlineKey         |                                               | the key that bridges share a secret with
//	offline answer  | t/<tenant>/offline/<ulid>    | answer             | history: t/<tenant>/answered/<credential>, .  | get; a card's
//	                |                              |                    | due: due/offline/<shard>, <time>/<tenant>/<id>| what the sweep has to announce
//	answers lately  | t/<tenant>/answers/<who>     | answers            |                                               | how many for a card, or by a key
//	generated PINs  | t/<tenant>/generated/<day>   | <shard>            |                                               | how many PINs were generated that day
//	user by mail    | t/<tenant>/mail/<address>    | <id>               |                                               | users who have an address
//	trigger rule    | t/<tenant>                   | rule/<id>          |                                               | get, list
//	event           | t/<tenant>/event/<id>        | event              | list: t/<tenant>/events/<shard>, <ulid>       | acted on once; list, newest first
//	                |                              |                    | due: due/event/<shard>, <time>/<tenant>/<ulid>| events that rules have to act on still
//	digest          | t/<tenant>                   | digest             | due: due/digest/<shard>, <time>/<tenant>      | when administrators are told next
//	mail given up   | t/<tenant>/givenUp/<shard>   | <time>/<about>     |                                               | mails that reached nobody, by time
//	first event     | t/<tenant>/first/<user>      | <type>             |                                               | which was a user's first event of a type
//	webhook endpoint| t/<tenant>                   | endpoint/<id>      |                                               | get, list
//	delivery        | t/<tenant>/delivery/<id>     | delivery           | list: t/<tenant>/deliveries/<s>, <time>/<id>  | get; list, newest first
//	                |                              |                    | history, dead: t/<tenant>/dead/<s>, <time>/<id> | list of those given up, newest first
//	                |                              |                    | due: due/delivery/<shard>,                    | what the sweep has to send
//	                |                              |                    |      <time>/<tenant>/<id>                     |
//	last sweep      | t/platform/sweep             | last               |                                               | is the sweep alive
//
// Things of the installation itself live under the tenant Platform.

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table/internal/driver"
)

// TenantID names a tenant: 2 to 40 of a-z, 0-9 and -, starting with a letter.
type TenantID string

// Platform is the pseudo-tenant for what belongs to the installation. No
// tenant can have this id.
const Platform TenantID = "platform"

// Index names a secondary index. An item appears in an index only if it has an
// entry for it.
type Index string

// The indexes. Partition and sort key of each are strings and it projects all
// attributes.
const (
	IndexDue     Index = "due"     // what the sweep has to do, by time; of a tenant, what lacks a time
	IndexList    Index = "list"    // things of a tenant in the order people read them
	IndexHistory Index = "history" // audit records by subject; what belongs to something; users by their PIN's expiry
)

// Indexes lists them all.
func Indexes() []Index { return []Index{IndexDue, IndexList, IndexHistory} }

// Shards of partitions that grow with the number of tenants or users. They can
// not be changed once there is data.
const (
	DueShards    = 16
	ListShards   = 4
	TenantShards = 4
	CountShards  = 16

	GeneratedShards = 64 // of a day's count

	UnblockDueShards = 4
	JobDueShards     = 4
	OfflineDueShards = 4
	EventDueShards   = 4
	DigestDueShards  = 4

	DeliveryDueShards = 4
)

// Key names an item.
type Key struct{ partition, sort string }

// Partition returns the partition key.
func (k Key) Partition() string { return k.partition }

// Sort returns the sort key.
func (k Key) Sort() string { return k.sort }

// The longest parts of a key in bytes. DynamoDB's own limits are 2048 and 1024.
const (
	MaxPartition = 2000
	MaxSort      = 1000
)

// Validate refuses a key that not every driver can store, as an InvalidError.
func (k Key) Validate() error {
	var vs problem.Violations
	checkPart(&vs, "partition", k.partition, MaxPartition)
	checkPart(&vs, "sort", k.sort, MaxSort)
	return vs.Err()
}

func checkPart(vs *problem.Violations, field, s string, most int) {
	switch {
	case s == "":
		vs.Add("empty", field, "is empty")
	case len(s) > most:
		vs.Add("tooLong", field, "is %d bytes, at most %d are stored", len(s), most)
	case !utf8.ValidString(s) || strings.Contains(s, "\x00"):
		vs.Add("notText", field, "is not valid UTF-8 without NUL")
	}
}

// String names the item for errors and logs, without the parts that hold
// people's names or are derived from secrets.
func (k Key) String() string {
	parts := strings.Split(k.partition, "/")
	if len(parts) > 3 {
		switch parts[2] {
		case "username", "external", "lookup", "attempts", "idem", "cardwords", "mail", "personmail", "event":
			return strings.Join(parts[:3], "/")
		}
	}
	return k.partition + " " + k.sort
}

// IndexKey is an item's entry in an index. Within an index partition each sort
// key belongs to one item only: constructors end it with an id.
type IndexKey struct {
	index Index
	key   Key
}

// Index returns which index it is for.
func (k IndexKey) Index() Index { return k.index }

// Partition returns the index partition.
func (k IndexKey) Partition() string { return k.key.partition }

// Sort returns the place within the partition.
func (k IndexKey) Sort() string { return k.key.sort }

// StoredKey restores a key that a driver stored.
func StoredKey(_ driver.Only, partition, sort string) Key { return Key{partition, sort} }

// StoredIndexKey restores an index entry that a driver stored.
func StoredIndexKey(_ driver.Only, index Index, partition, sort string) IndexKey {
	return IndexKey{index, Key{partition, sort}}
}

// Range is what a Query reads: items of one partition, of the table itself or
// of an index, whose sort keys are in [from, to).
type Range struct {
	index      Index // "" is the table itself
	partition  string
	from, to   string // to "" is no end
	limit      int
	descending bool
}

// MaxLimit is the most items a Query returns.
const MaxLimit = 1000

// Limit returns the range with at most n items, 1 to MaxLimit; without it a
// Query returns MaxLimit.
func (r Range) Limit(n int) Range { r.limit = min(max(n, 1), MaxLimit); return r }

// Descending returns the range read backwards.
func (r Range) Descending() Range { r.descending = true; return r }

// Beyond returns the part of the range that comes after the given sort key in
// reading order: the next page, if sort is that of the last item of this one.
// An empty sort is the start.
func (r Range) Beyond(sort string) Range {
	switch {
	case sort == "":
	case r.descending:
		if r.to == "" || sort < r.to {
			r.to = sort
		}
	case sort >= r.from:
		r.from = sort + "\x01" // the next sort key there can be, as none has a NUL
	}
	return r
}

// Place returns the item's sort key in this range, to go on from with Beyond.
func (r Range) Place(i Item) string {
	if r.index == "" {
		return i.Key.sort
	}
	for _, k := range i.Indexes {
		if k.index == r.index {
			return k.key.sort
		}
	}
	return ""
}

// Spec shows drivers what to read: sort keys from From up to To, which is left
// out; To "" is no end.
func (r Range) Spec() RangeSpec {
	limit := r.limit
	if limit == 0 {
		limit = MaxLimit
	}
	return RangeSpec{r.index, r.partition, r.from, r.to, limit, r.descending}
}

// RangeSpec is a Range in the open.
type RangeSpec struct {
	Index      Index
	Partition  string
	From, To   string
	Limit      int
	Descending bool
}

// Empty tells that no sort key can be in the range.
func (s RangeSpec) Empty() bool { return s.To != "" && s.From >= s.To }

// Validate refuses a range that no driver can read, as an InvalidError.
func (s RangeSpec) Validate() error {
	var vs problem.Violations
	checkPart(&vs, "partition", s.Partition, MaxPartition)
	if s.From != "" {
		checkPart(&vs, "from", s.From, MaxSort+1)
	}
	if s.To != "" {
		checkPart(&vs, "to", s.To, MaxSort+1)
	}
	return vs.Err()
}

func prefix(partition, sort string) Range {
	return Range{partition: partition, from: sort, to: after(sort)}
}

// after returns the least string above all that start with s, or "" if there
// is none. It counts in runes, for a string cut within one is not valid UTF-8.
func after(s string) string {
	for s != "" {
		r, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
		switch r {
		case unicode.MaxRune:
		case 0xD7FF: // surrogates follow
			return s + "\uE000"
		default:
			return s + string(r+1)
		}
	}
	return ""
}

// separator stands between a name and an id where items are listed by name: it
// sorts before all that a name can hold, so that "ann" comes before "ann-lee".
const separator = "\x01"

var escaper = strings.NewReplacer("%", "%25", "/", "%2F", "\x00", "%00", separator, "%01")

// escape keeps a component from outside within its place. Different strings
// stay different, those that are not valid UTF-8 included.
func escape(s string) string {
	if utf8.ValidString(s) {
		return escaper.Replace(s)
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && size == 1 {
			fmt.Fprintf(&b, "%%%02X", s[0])
		} else {
			b.WriteString(escaper.Replace(s[:size]))
		}
		s = s[size:]
	}
	return b.String()
}

func (t TenantID) partition(parts ...string) string {
	var b strings.Builder
	b.WriteString("t/")
	b.WriteString(escape(string(t)))
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(escape(p))
	}
	return b.String()
}

// Shard spreads ids over n shards.
func Shard(id string, n int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return int(h.Sum32() % uint32(n))
}

// timeSort is a time that sorts as text, in UTC to the second.
func timeSort(t time.Time) string { return t.UTC().Format(timeForm) }

const timeForm = "2006-01-02T15:04:05Z"

// TenantKey is the tenant itself.
func TenantKey(t TenantID) Key { return Key{t.partition(), "core/tenant"} }

// PolicyKey is the tenant's PIN policy.
func PolicyKey(t TenantID) Key { return Key{t.partition(), "core/policy"} }

// KeysetsKey is the tenant's sealed keysets.
func KeysetsKey(t TenantID) Key { return Key{t.partition(), "core/keysets"} }

// WatchKey is what the tenant's trigger rules wait for.
func WatchKey(t TenantID) Key { return Key{t.partition(), "core/watch"} }

// TenantCore is what most calls need at once: tenant, policy, keysets, watch.
func TenantCore(t TenantID) Range { return prefix(t.partition(), "core/") }

// TenantListed is a tenant's place in the list of tenants.
func TenantListed(t TenantID) IndexKey {
	return IndexKey{IndexList, Key{fmt.Sprintf("tenants/%d", Shard(string(t), TenantShards)), string(t)}}
}

// Tenants are the shards of the list of tenants.
func Tenants() []Range {
	rs := make([]Range, TenantShards)
	for i := range rs {
		rs[i] = Range{index: IndexList, partition: fmt.Sprintf("tenants/%d", i)}
	}
	return rs
}

// PolicyVersionKey is the PIN policy as it was at a version.
func PolicyVersionKey(t TenantID, version int64) Key {
	return Key{t.partition(), fmt.Sprintf("policy/%010d", version)}
}

// PolicyVersions are all versions of the PIN policy, oldest first.
func PolicyVersions(t TenantID) Range { return prefix(t.partition(), "policy/") }

// APIKeyKey is an API key by its id.
func APIKeyKey(t TenantID, id string) Key { return Key{t.partition(), "key/" + escape(id)} }

// APIKeys are the tenant's API keys.
func APIKeys(t TenantID) Range { return prefix(t.partition(), "key/") }

// TokenKey is a user's token by its id.
func TokenKey(t TenantID, id string) Key { return Key{t.partition("token", id), "token"} }

// MessagingKey is a messaging configuration.
func MessagingKey(t TenantID, id string) Key { return Key{t.partition(), "messaging/" + escape(id)} }

// Messagings are the tenant's messaging configurations.
func Messagings(t TenantID) Range { return prefix(t.partition(), "messaging/") }

// TemplateKey is a mail template.
func TemplateKey(t TenantID, id string) Key { return Key{t.partition(), "template/" + escape(id)} }

// Templates are the tenant's mail templates.
func Templates(t TenantID) Range { return prefix(t.partition(), "template/") }

// UserKey is a user, PIN state included.
func UserKey(t TenantID, id string) Key { return Key{t.partition("user", id), "user"} }

// UserListed is a user's place in the list by name. name is folded.
func UserListed(t TenantID, name, id string) IndexKey {
	return IndexKey{IndexList, Key{t.users(Shard(id, ListShards)), escape(name) + separator + id}}
}

// Users are the shards of the list of users whose folded names start with
// namePrefix.
func Users(t TenantID, namePrefix string) []Range {
	rs := make([]Range, ListShards)
	for i := range rs {
		rs[i] = prefix(t.users(i), escape(namePrefix))
		rs[i].index = IndexList
	}
	return rs
}

func (t TenantID) users(shard int) string { return t.partition("users", fmt.Sprint(shard)) }

// UserPINExpiry files a user by when the PIN expires, or has.
func UserPINExpiry(t TenantID, id string, at time.Time) IndexKey {
	return IndexKey{IndexHistory, Key{t.sharded("pins", id), timeSort(at) + "/" + id}}
}

// UserPINsExpiring are the shards of the users whose PIN expires, or has expired, at from or
// later, and before to, by that time.
func UserPINsExpiring(t TenantID, from, to time.Time) []Range {
	rs := t.shards("pins")
	for i := range rs {
		rs[i].index, rs[i].from, rs[i].to = IndexHistory, timeSort(from), timeSort(to)
	}
	return rs
}

// UndeliverableKey points to a user whose mail address does not work.
func UndeliverableKey(t TenantID, id string) Key { return Key{t.sharded("undeliverable", id), id} }

// Undeliverables are the shards of those pointers, by id.
func Undeliverables(t TenantID) []Range {
	rs := t.shards("undeliverable")
	for i := range rs {
		rs[i].index = ""
	}
	return rs
}

// UserDue is when the sweep has to look at a user next.
func UserDue(t TenantID, id string, at time.Time) IndexKey {
	return IndexKey{IndexDue, Key{duePartition(Shard(id, DueShards)), timeSort(at) + "/" + string(t) + "/" + id}}
}

// DueBefore is what is due at the given time or before in a shard, oldest
// first.
func DueBefore(shard int, at time.Time) Range {
	return Range{index: IndexDue, partition: duePartition(shard), to: timeSort(at.Add(time.Second))}
}

func duePartition(shard int) string { return fmt.Sprintf("due/%02d", shard) }

// UsernameKey holds a username for its user. name is folded.
func UsernameKey(t TenantID, name string) Key { return Key{t.partition("username", name), "username"} }

// ExternalKey holds an external id for its user.
func ExternalKey(t TenantID, id string) Key { return Key{t.partition("external", id), "external"} }

// LookupKey holds a PIN for its user; tag is the PIN's lookup tag.
func LookupKey(t TenantID, tag string) Key { return Key{t.partition("lookup", tag), "lookup"} }

// AttemptsKey counts the guesses at or by somebody.
func AttemptsKey(t TenantID, who string) Key { return Key{t.partition("attempts", who), "attempts"} }

// CountKey is the part of the user count that a user's creation changes.
func CountKey(t TenantID, userID string) Key {
	return Key{t.partition("count"), fmt.Sprintf("users/%02d", Shard(userID, CountShards))}
}

// Counts are all parts of the user count.
func Counts(t TenantID) Range { return prefix(t.partition("count"), "users/") }

// IdempotencyKey is the answer that was given to a request.
func IdempotencyKey(t TenantID, hash string) Key { return Key{t.partition("idem", hash), "idem"} }

// AuditKey is an audit record. ulid carries the time.
func AuditKey(t TenantID, at time.Time, ulid string) Key {
	return Key{t.partition("audit", at.UTC().Format("20060102")), ulid}
}

// AuditSubject files an audit record under what it is about.
func AuditSubject(t TenantID, subject, ulid string) IndexKey {
	return IndexKey{IndexHistory, Key{t.partition("history", subject), ulid}}
}

// AuditDay are the audit records of one day in UTC, oldest first.
func AuditDay(t TenantID, day time.Time) Range {
	return Range{partition: t.partition("audit", day.UTC().Format("20060102"))}
}

// AuditOf are the audit records about a subject, oldest first.
func AuditOf(t TenantID, subject string) Range {
	return Range{index: IndexHistory, partition: t.partition("history", subject)}
}

// BridgeKey is a bridge, with its connections and what is in its readers.
func BridgeKey(t TenantID, id string) Key { return Key{t.partition("bridge", id), "bridge"} }

// BridgeListed is a bridge's place in the list.
func BridgeListed(t TenantID, id string) IndexKey {
	return IndexKey{IndexList, Key{t.sharded("bridges", id), id}}
}

// Bridges are the shards of the list of bridges.
func Bridges(t TenantID) []Range { return t.shards("bridges") }

// ConnectionKey tells whose a WebSocket connection is.
func ConnectionKey(id string) Key { return Key{Platform.partition("connection", id), "connection"} }

// CardTemplateKey is a credential template.
func CardTemplateKey(t TenantID, id string) Key { return Key{t.partition(), "cards/" + escape(id)} }

// CardTemplates are the tenant's credential templates.
func CardTemplates(t TenantID) Range { return prefix(t.partition(), "cards/") }

// CardTemplateUseKey is a part of the count of the credentials with a template.
func CardTemplateUseKey(t TenantID, id string, shard int) Key {
	return Key{t.partition("uses", id), fmt.Sprintf("%02d", shard)}
}

// CardTemplateUses are all parts of that count.
func CardTemplateUses(t TenantID, id string) Range { return Range{partition: t.partition("uses", id)} }

// CredentialKey is a credential; its id is its card's.
func CredentialKey(t TenantID, id string) Key {
	return Key{t.partition("credential", id), "credential"}
}

// CredentialListed is a credential's place in the list.
func CredentialListed(t TenantID, id string) IndexKey {
	return IndexKey{IndexList, Key{t.sharded("credentials", id), id}}
}

// Credentials are the shards of the list of credentials.
func Credentials(t TenantID) []Range { return t.shards("credentials") }

// CredentialHeld files a credential under who holds it.
func CredentialHeld(t TenantID, user, id string) IndexKey {
	return IndexKey{IndexHistory, Key{t.partition("held", user), id}}
}

// CredentialsHeld are the credentials of a user.
func CredentialsHeld(t TenantID, user string) Range {
	return Range{index: IndexHistory, partition: t.partition("held", user)}
}

// CredentialsByCard are the shards of the list of credentials whose ids start with
// idPrefix.
func CredentialsByCard(t TenantID, idPrefix string) []Range {
	rs := t.shards("credentials")
	for i := range rs {
		rs[i].from, rs[i].to = idPrefix, after(idPrefix)
	}
	return rs
}

// CredentialDue is when the sweep has to look at a credential next.
func CredentialDue(t TenantID, id string, at time.Time) IndexKey {
	return IndexKey{IndexDue, Key{credentialDue(Shard(id, DueShards)), timeSort(at) + "/" + string(t) + "/" + id}}
}

// CredentialsDueBefore are the credentials due at the given time or before in a shard,
// oldest first.
func CredentialsDueBefore(shard int, at time.Time) Range {
	return Range{index: IndexDue, partition: credentialDue(shard), to: timeSort(at.Add(time.Second))}
}

func credentialDue(shard int) string { return fmt.Sprintf("due/card/%02d", shard) }

// CredentialUnflagged files a credential without a PIN expiry flag under its template.
func CredentialUnflagged(t TenantID, template, id string) IndexKey {
	return IndexKey{IndexDue, Key{t.partition("unflagged", template, fmt.Sprint(Shard(id, ListShards))), id}}
}

// CredentialsUnflagged are the shards of the credentials of a template without a PIN
// expiry flag, by id.
func CredentialsUnflagged(t TenantID, template string) []Range {
	rs := t.shards("unflagged", template)
	for i := range rs {
		rs[i].index = IndexDue
	}
	return rs
}

// CredentialFiledKey points to a credential by its state and template.
func CredentialFiledKey(t TenantID, state, template, id string) Key {
	return Key{t.partition("filed", state, fmt.Sprint(Shard(id, ListShards))), escape(template) + "/" + id}
}

// CredentialsFiled are the shards of the pointers to credentials in a state, of a template
// or, if it is "", of all, by template and id.
func CredentialsFiled(t TenantID, state, template string) []Range {
	rs := t.shards("filed", state)
	for i := range rs {
		if rs[i].index = ""; template != "" {
			rs[i] = prefix(rs[i].partition, escape(template)+"/")
		}
	}
	return rs
}

// CredentialExpiryKey points to a credential by when its PIN expires.
func CredentialExpiryKey(t TenantID, at time.Time, id string) Key {
	return Key{t.partition("expiring", fmt.Sprint(Shard(id, ListShards))), timeSort(at) + "/" + id}
}

// CredentialsExpiring are the shards of the pointers to credentials whose PIN expires at
// from or later, and before to, by that time. A zero from is the beginning.
func CredentialsExpiring(t TenantID, from, to time.Time) []Range {
	rs := t.shards("expiring")
	for i := range rs {
		rs[i].index, rs[i].to = "", timeSort(to)
		if !from.IsZero() {
			rs[i].from = timeSort(from)
		}
	}
	return rs
}

// CredentialWordKey points to a credential by a word that people search it by. word is
// folded.
func CredentialWordKey(t TenantID, word, id string) Key {
	return Key{t.partition("cardwords", fmt.Sprint(Shard(id, ListShards))), escape(word) + separator + id}
}

// CredentialsWithWord are the shards of the pointers to credentials with a word that starts
// with wordPrefix, by word.
func CredentialsWithWord(t TenantID, wordPrefix string) []Range {
	rs := t.shards("cardwords")
	for i := range rs {
		rs[i] = prefix(rs[i].partition, escape(wordPrefix))
	}
	return rs
}

// JobKey is a job that goes on in the background. Its id is a ULID, or "sanity", which is
// the lock that lets a tenant have one sanity check run at a time.
func JobKey(t TenantID, id string) Key { return Key{t.partition("job", id), "job"} }

// JobListed is a job's place in the list of those of its kind, by time.
func JobListed(t TenantID, kind, id string) IndexKey {
	return IndexKey{IndexList, Key{t.partition("jobs", kind, fmt.Sprint(Shard(id, ListShards))), id}}
}

// Jobs are the shards of the list of jobs of a kind, oldest first.
func Jobs(t TenantID, kind string) []Range { return t.shards("jobs", kind) }

// JobPartKey is the n-th part of what a job has done.
func JobPartKey(t TenantID, id string, n int) Key {
	return Key{t.partition("job", id), fmt.Sprintf("part/%08d", n)}
}

// JobParts are the parts of what a job has done, in order.
func JobParts(t TenantID, id string) Range { return prefix(t.partition("job", id), "part/") }

// JobDue is when the sweep has to go on with a job.
func JobDue(t TenantID, id string, at time.Time) IndexKey {
	return IndexKey{IndexDue, Key{jobDue(Shard(id, JobDueShards)), timeSort(at) + "/" + string(t) + "/" + id}}
}

// JobsDueBefore are the jobs due at the given time or before in a shard, oldest first.
func JobsDueBefore(shard int, at time.Time) Range {
	return Range{index: IndexDue, partition: jobDue(shard), to: timeSort(at.Add(time.Second))}
}

func jobDue(shard int) string { return fmt.Sprintf("due/job/%d", shard) }

// BulkDue is when the sweep has to go on with a job that generates PINs.
func BulkDue(t TenantID, id string, at time.Time) IndexKey {
	return IndexKey{IndexDue, Key{bulkDue(Shard(id, JobDueShards)), timeSort(at) + "/" + string(t) + "/" + id}}
}

// BulksDueBefore are the jobs that generate PINs due at the given time or before in a shard,
// oldest first.
func BulksDueBefore(shard int, at time.Time) Range {
	return Range{index: IndexDue, partition: bulkDue(shard), to: timeSort(at.Add(time.Second))}
}

func bulkDue(shard int) string { return fmt.Sprintf("due/bulk/%d", shard) }

// JobChunkKey is the n-th chunk of what is kept of a part.
func JobChunkKey(t TenantID, id string, part, n int) Key {
	return Key{t.partition("job", id), fmt.Sprintf("chunk/%08d/%04d", part, n)}
}

// ImportKeyKey is the tenant's import key.
func ImportKeyKey(t TenantID) Key { return Key{t.partition(), "importKey"} }

// UnblockKey is an unblock operation. Its id is a ULID.
func UnblockKey(t TenantID, id string) Key { return Key{t.partition("unblock", id), "unblock"} }

// UnblockListed is an unblock operation's place in the list, by time.
func UnblockListed(t TenantID, id string) IndexKey {
	return IndexKey{IndexList, Key{t.sharded("unblocks", id), id}}
}

// Unblocks are the shards of the list of unblock operations, oldest first.
func Unblocks(t TenantID) []Range { return t.shards("unblocks") }

// UnblockOf files an unblock operation under its credential.
func UnblockOf(t TenantID, credential, id string) IndexKey {
	return IndexKey{IndexHistory, Key{t.partition("unblocked", credential), id}}
}

// UnblocksOf are the unblock operations on a credential, oldest first.
func UnblocksOf(t TenantID, credential string) Range {
	return Range{index: IndexHistory, partition: t.partition("unblocked", credential)}
}

// UnblockDue is when the sweep has to look at an unblock operation next.
func UnblockDue(t TenantID, id string, at time.Time) IndexKey {
	return IndexKey{IndexDue, Key{unblockDue(Shard(id, UnblockDueShards)), timeSort(at) + "/" + string(t) + "/" + id}}
}

// UnblocksDueBefore are the unblock operations due at the given time or before in a
// shard, oldest first.
func UnblocksDueBefore(shard int, at time.Time) Range {
	return Range{index: IndexDue, partition: unblockDue(shard), to: timeSort(at.Add(time.Second))}
}

func unblockDue(shard int) string { return fmt.Sprintf("due/unblock/%d", shard) }

// OfflineKeyKey is the tenant's offline key.
func OfflineKeyKey(t TenantID) Key { return Key{t.partition(), "offlineKey"} }

// OfflineAnswerKey is an answer given to a challenge. Its id is a ULID.
func OfflineAnswerKey(t TenantID, id string) Key { return Key{t.partition("offline", id), "answer"} }

// OfflineAnswerOf files an answer under its credential.
func OfflineAnswerOf(t TenantID, credential, id string) IndexKey {
	return IndexKey{IndexHistory, Key{t.partition("answered", credential), id}}
}

// OfflineAnswersOf are the answers for a credential, oldest first.
func OfflineAnswersOf(t TenantID, credential string) Range {
	return Range{index: IndexHistory, partition: t.partition("answered", credential)}
}

// OfflineAnswerDue is when the sweep has to look at an answer next.
func OfflineAnswerDue(t TenantID, id string, at time.Time) IndexKey {
	return IndexKey{IndexDue, Key{offlineDue(Shard(id, OfflineDueShards)), timeSort(at) + "/" + string(t) + "/" + id}}
}

// OfflineAnswersDueBefore are the answers due at the given time or before in a shard,
// oldest first.
func OfflineAnswersDueBefore(shard int, at time.Time) Range {
	return Range{index: IndexDue, partition: offlineDue(shard), to: timeSort(at.Add(time.Second))}
}

func offlineDue(shard int) string { return fmt.Sprintf("due/offline/%d", shard) }

// OfflineAnswersKey counts the answers given lately for a card, or by a key.
func OfflineAnswersKey(t TenantID, who string) Key {
	return Key{t.partition("answers", who), "answers"}
}

// GeneratedKey is a part of the count of the PINs generated on a day in UTC.
func GeneratedKey(t TenantID, day time.Time, shard int) Key {
	return Key{t.partition("generated", day.UTC().Format("20060102")), fmt.Sprintf("%02d", shard)}
}

// Generated are all parts of that count.
func Generated(t TenantID, day time.Time) Range {
	return Range{partition: t.partition("generated", day.UTC().Format("20060102"))}
}

// MailKey tells that a user has a mail address. address is folded.
func MailKey(t TenantID, address, user string) Key { return Key{t.partition("mail", address), user} }

// UsersByMail are the users who have a mail address.
func UsersByMail(t TenantID, address string) Range {
	return Range{partition: t.partition("mail", address)}
}

// UserSessionKey is the session of a user who has signed in to see to their own PIN.
func UserSessionKey(t TenantID, user, id string) Key {
	return Key{t.partition("user", user), "session/" + escape(id)}
}

// UserSessions are those of a user.
func UserSessions(t TenantID, user string) Range {
	return prefix(t.partition("user", user), "session/")
}

// RosterKey is what is kept of all who sign in together.
func RosterKey(t TenantID) Key { return Key{t.partition("people"), "roster"} }

// PersonKey is somebody who signs in.
func PersonKey(t TenantID, id string) Key { return Key{t.partition("people"), "person/" + escape(id)} }

// People are all who sign in.
func People(t TenantID) Range { return prefix(t.partition("people"), "person/") }

// PersonMailKey points to the person who signs in with a folded mail address.
func PersonMailKey(t TenantID, address string) Key {
	return Key{t.partition("personmail", address), "person"}
}

// SignInKey is a sign-in that has begun.
func SignInKey(t TenantID, id string) Key { return Key{t.partition("signin", id), "signin"} }

// ProviderKey is the provider at which the tenant's people sign in.
func ProviderKey(t TenantID) Key { return Key{t.partition(), "provider"} }

// ReturnedKey is that a sign-in at the provider has come back, which it does once.
func ReturnedKey(t TenantID, id string) Key { return Key{t.partition("signin", id), "returned"} }

// AccountKey points from an account at a provider, by its hash, to the person whose it is.
func AccountKey(t TenantID, hash string) Key { return Key{t.partition("account", hash), "account"} }

// LinkedKey is which account a person has.
func LinkedKey(t TenantID, person string) Key {
	return Key{t.partition("people"), "account/" + escape(person)}
}

// SessionKey is the session of somebody who has signed in.
func SessionKey(t TenantID, person, id string) Key {
	return Key{t.partition("sessions"), escape(person) + "/" + escape(id)}
}

// Sessions are those of all people.
func Sessions(t TenantID) Range { return prefix(t.partition("sessions"), "") }

// SessionsOf are those of a person.
func SessionsOf(t TenantID, person string) Range {
	return prefix(t.partition("sessions"), escape(person)+"/")
}

// RuleKey is a trigger rule. Its id is a ULID.
func RuleKey(t TenantID, id string) Key { return Key{t.partition(), "rule/" + escape(id)} }

// Rules are the tenant's trigger rules.
func Rules(t TenantID) Range { return prefix(t.partition(), "rule/") }

// EventKey is an event by the id that its sender gave it.
func EventKey(t TenantID, id string) Key { return Key{t.partition("event", id), "event"} }

// EventListed is an event's place in the list, by time. place is a ULID.
func EventListed(t TenantID, place string) IndexKey {
	return IndexKey{IndexList, Key{t.sharded("events", place), place}}
}

// Events are the shards of the list of events, oldest first.
func Events(t TenantID) []Range { return t.shards("events") }

// EventsSince are the shards of the events in the list at a place or after, oldest first.
func EventsSince(t TenantID, place string) []Range {
	rs := Events(t)
	for i := range rs {
		rs[i].from = place
	}
	return rs
}

// EventDue is when the sweep has to go on with an event.
func EventDue(t TenantID, place string, at time.Time) IndexKey {
	return IndexKey{IndexDue, Key{eventDue(Shard(place, EventDueShards)), timeSort(at) + "/" + string(t) + "/" + place}}
}

// EventsDueBefore are the events due at the given time or before in a shard, oldest first.
func EventsDueBefore(shard int, at time.Time) Range {
	return Range{index: IndexDue, partition: eventDue(shard), to: timeSort(at.Add(time.Second))}
}

func eventDue(shard int) string { return fmt.Sprintf("due/event/%d", shard) }

// FirstEventKey tells which was a user's first event of a type.
func FirstEventKey(t TenantID, user, kind string) Key {
	return Key{t.partition("first", user), escape(kind)}
}

// EndpointKey is a webhook endpoint.
func EndpointKey(t TenantID, id string) Key { return Key{t.partition(), "endpoint/" + escape(id)} }

// Endpoints are the tenant's webhook endpoints.
func Endpoints(t TenantID) Range { return prefix(t.partition(), "endpoint/") }

// DeliveryKey is a delivery.
func DeliveryKey(t TenantID, id string) Key { return Key{t.partition("delivery", id), "delivery"} }

// DeliveryListed is a delivery's place in the list, by the time it was made.
func DeliveryListed(t TenantID, id string, at time.Time) IndexKey {
	return IndexKey{IndexList, Key{t.sharded("deliveries", id), timeSort(at) + "/" + id}}
}

// Deliveries are the shards of the list of deliveries, oldest first.
func Deliveries(t TenantID) []Range { return t.shards("deliveries") }

// DeliveryDead is a dead delivery's place in the list of those, by the time it was made.
func DeliveryDead(t TenantID, id string, at time.Time) IndexKey {
	return IndexKey{IndexHistory, Key{t.sharded("dead", id), timeSort(at) + "/" + id}}
}

// DeadDeliveries are the shards of the list of dead deliveries, oldest first.
func DeadDeliveries(t TenantID) []Range {
	rs := t.shards("dead")
	for i := range rs {
		rs[i].index = IndexHistory
	}
	return rs
}

// DeliveryDue is when the sweep has to go on with a delivery.
func DeliveryDue(t TenantID, id string, at time.Time) IndexKey {
	return IndexKey{IndexDue, Key{deliveryDue(Shard(id, DeliveryDueShards)), timeSort(at) + "/" + string(t) + "/" + id}}
}

// DeliveriesDueBefore are the deliveries due at the given time or before in a shard,
// oldest first.
func DeliveriesDueBefore(shard int, at time.Time) Range {
	return Range{index: IndexDue, partition: deliveryDue(shard), to: timeSort(at.Add(time.Second))}
}

func deliveryDue(shard int) string { return fmt.Sprintf("due/delivery/%d", shard) }

// LastSweepKey is when the sweep has last been through all that is due.
func LastSweepKey() Key { return Key{Platform.partition("sweep"), "last"} }

// CredentialExpiry returns when the PIN expires of the credential that a key of
// CredentialExpiryKey points to.
func CredentialExpiry(k Key) (time.Time, bool) {
	at, _, _ := strings.Cut(k.sort, "/")
	t, err := time.Parse(timeForm, at)
	return t, err == nil
}

// DigestKey is when a tenant's administrators are told next of what has become of PINs.
func DigestKey(t TenantID) Key { return Key{t.partition(), "digest"} }

// DigestDue is when the sweep has to tell them.
func DigestDue(t TenantID, at time.Time) IndexKey {
	return IndexKey{IndexDue, Key{digestDue(Shard(string(t), DigestDueShards)), timeSort(at) + "/" + string(t)}}
}

// DigestsDueBefore are the digests due at the given time or before in a shard, oldest first.
func DigestsDueBefore(shard int, at time.Time) Range {
	return Range{index: IndexDue, partition: digestDue(shard), to: timeSort(at.Add(time.Second))}
}

func digestDue(shard int) string { return fmt.Sprintf("due/digest/%d", shard) }

// GivenUpKey is a mail that reached nobody. about tells what it was about, and from others
// about the same.
func GivenUpKey(t TenantID, at time.Time, about string) Key {
	return Key{t.sharded("givenUp", about), timeSort(at) + "/" + about}
}

// GivenUp are the shards of the mails that reached nobody since from, and before to, by time.
func GivenUp(t TenantID, from, to time.Time) []Range {
	rs := t.shards("givenUp")
	for i := range rs {
		rs[i].index, rs[i].from, rs[i].to = "", timeSort(from), timeSort(to)
	}
	return rs
}

func (t TenantID) sharded(what, id string) string {
	return t.partition(what, fmt.Sprint(Shard(id, ListShards)))
}

// shards are those of a list of things in the order of their ids.
func (t TenantID) shards(what ...string) []Range {
	rs := make([]Range, ListShards)
	for i := range rs {
		rs[i] = Range{index: IndexList, partition: t.partition(append(slices.Clone(what), fmt.Sprint(i))...)}
	}
	return rs
}
