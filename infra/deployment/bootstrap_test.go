package deployment

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/functions/sweep/due"
	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/dynamo"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

const (
	consoleDomain = "k1l2m3n4o5.execute-api.eu-central-1.amazonaws.com"

	tableName = "pinward"
	relayURL  = "wss://f6g7h8i9j0.execute-api.eu-central-1.amazonaws.com/live"
)

// environment is that of a function, with the AWS of the test.
func environment(dynamodb, kms, ses, connections, keyARN, platformKeyHash string) []string {
	return []string{
		"TABLE_NAME=" + tableName,
		"KMS_KEY_ARN=" + keyARN,
		"PLATFORM_KEY_HASH=" + platformKeyHash,
		"RELAY_URL=" + relayURL,
		"RELAY_ENDPOINT=" + connections + "/live",
		"CONSOLE_URL=https://" + consoleDomain,
		"AWS_ENDPOINT_URL_DYNAMODB=" + dynamodb,
		"AWS_ENDPOINT_URL_KMS=" + kms,
		"AWS_ENDPOINT_URL_SESV2=" + ses,
		"AWS_REGION=eu-central-1",
		"AWS_ACCESS_KEY_ID=id",
		"AWS_SECRET_ACCESS_KEY=secret",
	}
}

// cloud is AWS as far as the functions use it.
type cloud struct {
	dynamodb        http.Handler
	kms             *testserver.KMSServer
	ses             string // endpoint
	bridges         *bridges
	platformKeyHash string
}

func newCloud(t *testing.T, platformKeyHash string) *cloud {
	t.Helper()
	dynalite, stop, err := testserver.Dynalite()
	testserver.Need(t, err)
	t.Cleanup(stop)
	client := dynamodb.New(dynamodb.Options{Region: "eu-central-1", BaseEndpoint: &dynalite,
		Credentials: credentials.NewStaticCredentialsProvider("id", "secret", "")})
	if err := dynamo.Create(t.Context(), client, tableName); err != nil {
		t.Fatal(err)
	}
	transactions, err := testserver.Transactions(dynalite)
	if err != nil {
		t.Fatal(err)
	}
	ses, stop, err := testserver.SES()
	testserver.Need(t, err)
	t.Cleanup(stop)
	kms, err := testserver.KMS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kms.Close)
	return &cloud{transactions, kms, ses, &bridges{open: map[string]bool{}, posts: map[string][]relay.Message{}}, platformKeyHash}
}

// environment is that of a function all whose calls are recorded.
func (c *cloud) environment(t *testing.T, r *recorder) []string {
	t.Helper()
	serve := func(h http.Handler) string {
		server := httptest.NewServer(r.record(h))
		t.Cleanup(server.Close)
		return server.URL
	}
	forward := func(endpoint string) http.Handler {
		u, err := url.Parse(endpoint)
		if err != nil {
			t.Fatal(err)
		}
		return httputil.NewSingleHostReverseProxy(u)
	}
	return environment(serve(c.dynamodb), serve(forward(c.kms.Endpoint)), serve(forward(c.ses)),
		serve(testserver.Management(c.bridges, "id", "secret")), c.kms.KeyARN, c.platformKeyHash)
}

// start builds and runs a function.
func (c *cloud) start(t *testing.T, pkg string, r *recorder) *testserver.Lambda {
	t.Helper()
	bootstrap, size := build(t, runtime.GOARCH, pkg)
	l, err := testserver.StartLambda(bootstrap, c.environment(t, r))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s wrote:\n%s", pkg, l.Log())
		}
	})
	t.Logf("%s: %.1f MB, ready after %v", pkg, float64(size)/1e6, l.Ready)
	return l
}

// The real binaries, run by a Lambda's Runtime API over stand-ins for AWS: what was
// captured, a life of a tenant, of a bridge and of a card's unblocks, and what the sweep
// does. What they call is what their roles allow, no more and no less.
func TestBootstraps(t *testing.T) {
	needLinux(t)
	platformKey, hash, err := tenant.NewPlatformKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := newCloud(t, hash)
	var apiCalls, relayCalls, sweepCalls, triggerCalls, consoleCalls recorder
	function := c.start(t, api, &apiCalls)
	s := newSession(t, function)

	s.key = platformKey.Reveal()
	made := s.do("POST", "/v1/tenants", `{"id": "demo", "displayName": "Demo", "timeZone": "UTC", "language": "en"}`, http.StatusCreated)
	if got := s.do("GET", "/v1/tenants", "", http.StatusOK); len(got["items"].([]any)) != 1 {
		t.Errorf("tenants %v", got)
	}

	s.key = made["apiKey"].(string)
	messaging := s.do("POST", "/v1/messaging", `{"name": "SES", "kind": "ses", "from": "it@example.org"}`, http.StatusCreated)["id"].(string)
	if got := s.do("POST", "/v1/messaging/"+messaging+"/test", `{"to": "ada@example.org"}`, http.StatusOK); got["accepted"] != true {
		t.Errorf("test mail: %v", got)
	}
	s.do("PUT", "/v1/settings", `{"displayName": "Demo", "timeZone": "UTC", "language": "en", "pinOnlyLogin": true,
		"expiryMail": {"messaging": "`+messaging+`"}}`, http.StatusOK)
	s.do("PUT", "/v1/policy", `{"expirationHours": 2, "notifyHoursBefore": 1}`, http.StatusOK)
	id := s.do("POST", "/v1/users", `{"username": "jdoe"}`, http.StatusCreated)["id"].(string)
	s.do("PUT", "/v1/users/"+id+"/pin", `{"pin": "8306"}`, http.StatusOK)
	for pin, want := range map[string]bool{"8306": true, "8307": false} {
		if got := s.do("POST", "/v1/pins/verify", `{"username": "jdoe", "pin": "`+pin+`"}`, http.StatusOK); got["verified"] != want {
			t.Errorf("PIN %s: %v, want verified %v", pin, got, want)
		}
	}
	if got := s.do("GET", "/v1/users", "", http.StatusOK); len(got["items"].([]any)) != 1 {
		t.Errorf("users %v", got)
	}
	if got := s.do("GET", "/v1/audit?subject=user/"+id, "", http.StatusOK); len(got["items"].([]any)) < 3 {
		t.Errorf("audit %v", got)
	}
	s.captured(s.key)
	s.do("DELETE", "/v1/users/"+id, "", http.StatusNoContent)

	function = c.start(t, relayFunction, &relayCalls)
	s.captives(function)
	s.bridge(c, function)
	d := s.unblocks(c, function, messaging)
	if got := s.do("GET", "/v1/credentials?withoutFlag=true", "", http.StatusOK); len(got["items"].([]any)) != 0 {
		t.Errorf("cards without flag: %v", got)
	}

	function = c.start(t, sweep, &sweepCalls)
	c.age(t, d)
	schedule, err := os.ReadFile(filepath.Join(root, "testdata/events/eventbridge-schedule.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []due.Report{
		{Due: 2, Sent: 1, Expired: 1, Unannounced: 1, Unblocks: unblock.Report{Due: 2, Concluded: 1, Told: 1}, SanityRuns: credential.RunReport{Due: 1, Ended: 1},
			Digests: due.DigestReport{Due: 1, Sent: 1}, Bulks: user.BulkReport{Due: 1, Ended: 1}},
		{},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		out, err := function.Invoke(ctx, schedule)
		cancel()
		var got due.Report
		if err = errors.Join(err, json.Unmarshal(out, &got)); err != nil || got != want {
			t.Errorf("sweep: %+v, %v, want %+v", got, err, want)
		}
	}
	if told := c.bridges.take(d.connection); len(told) != 1 || told[0].Operation == nil || told[0].Operation.Reason != unblock.ReasonExpired {
		t.Errorf("the person at the bridge is told %+v of an unblock whose time is over", told)
	}
	d.rules()
	d.zoe(c.start(t, trigger, &triggerCalls))
	mails := map[string]int{}
	all, err := testserver.SESMails(c.ses)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		subject, _, _ := strings.Cut(m.Subject, " on ") // the day
		mails[strings.Join(m.Destination.To, ", ")+": "+subject]++
	}
	if diff := cmp.Diff(map[string]int{
		"ada@example.org: Your PIN for Demo expires":                            1, // the test mail
		"grace@example.org: Your code to unblock your card for Demo":            1,
		"grace@example.org: The PIN of your card for Demo was reset":            3, // by herself, by an operator, and what was left to the sweep
		"late@example.org: Your PIN for Demo expires":                           1,
		"it@example.org: PINs for Demo – expiring within a week: 1, expired: 1": 1,
		"new@example.org: Your new PIN for Demo":                                1,
		"zoe@example.org: Your new PIN for Demo":                                1,
	}, mails); diff != "" {
		t.Errorf("mails (-want +got):\n%s", diff)
	}
	d.pages(c, c.start(t, console, &consoleCalls))

	doc, err := parse(templateText(t))
	if err != nil {
		t.Fatal(err)
	}
	for role, r := range map[string]*recorder{"ApiRole": &apiCalls, "RelayRole": &relayCalls, "SweepRole": &sweepCalls, "TriggerRole": &triggerCalls, "ConsoleRole": &consoleCalls} {
		policies := at(doc, "Resources", role, "Properties", "Policies").([]any)
		r.compare(t, role, statements(policies[0]))
	}
}

// age gives the tenant demo two users whose PINs were set a while ago, of whom one is about
// to expire and the other has expired; and at the bridge an unblock that has succeeded
// when no mail could be sent, and one that nobody has gone on with. A digest for the
// administrators is due, and a bulk of PINs.
func (c *cloud) age(t *testing.T, d *desk) {
	t.Helper()
	for _, variable := range c.environment(t, &recorder{}) {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	now, err := wiring.Cloud(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ago := func(d time.Duration) (*wiring.System, tenant.Core) {
		parts := now.Parts
		parts.Now = func() time.Time { return time.Now().Add(-d) }
		parts.Senders, parts.Log = mail.Senders{Now: parts.Now}, slog.New(slog.DiscardHandler)
		then := wiring.New(parts)
		core, err := then.Tenants.Load(t.Context(), "demo")
		if err != nil {
			t.Fatal(err)
		}
		return then, core
	}
	by := audit.Actor{Kind: audit.System, ID: "test"}
	for name, d := range map[string]time.Duration{"late": 90 * time.Minute, "gone": 3 * time.Hour} {
		then, core := ago(d)
		pin := secret.New(map[string]string{"late": "2749", "gone": "5038"}[name])
		if _, err = then.Users.Create(t.Context(), core, by, user.Profile{Username: name, Mail: name + "@example.org"}, &pin); err != nil {
			t.Fatal(err)
		}
	}
	then, core := ago(25 * time.Hour)
	settings := core.Tenant.Settings
	settings.Digest.Recipients = []string{"it@example.org"}
	if _, err := then.Tenants.ChangeSettings(t.Context(), by, core, settings); err != nil {
		t.Fatal(err)
	}
	// A bulk of PINs was started a minute ago.
	then, core = ago(time.Minute)
	if _, err = then.Users.Create(t.Context(), core, by, user.Profile{Username: "new", Mail: "new@example.org", Groups: []string{"new"}}, nil); err != nil {
		t.Fatal(err)
	}
	bulk, err := then.Users.PlanBulk(t.Context(), core, by, user.BulkSpec{Group: "new"}, 0)
	if err == nil {
		_, err = then.Users.StartBulk(t.Context(), core, by, bulk.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	then, core = ago(time.Hour)
	asked := unblock.Request{Credential: d.credential, Bridge: d.id, Channel: credential.Operator, Statement: "staff badge"}
	op, err := then.Unblocks.Create(t.Context(), core, by, asked)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := relay.SealPIN(d.sealing.PublicKey().Bytes(), relay.Binding{Tenant: "demo", Operation: op.ID, Credential: d.credential, Fence: op.Fence}, secret.New("60284917"))
	if err == nil {
		_, err = then.Unblocks.GivePIN(t.Context(), core, by, op.ID, sealed)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.bridges.take(d.connection) {
		if _, err := then.Unblocks.Result(t.Context(), core, d.id, d.runs(*m.Run, "")); err != nil {
			t.Fatal(err)
		}
	}
	if op, err = then.Unblocks.Get(t.Context(), "demo", op.ID); err != nil || op.State != unblock.Succeeded || op.Notice.State != unblock.NoticePlanned || !d.card.PINIs("60284917") {
		t.Errorf("an unblock while no mail can be sent: %v, notice %s, %v", op, op.Notice.State, err)
	}
	if _, err := then.Unblocks.Create(t.Context(), core, by, asked); err != nil {
		t.Fatal(err)
	}
	c.bridges.take(d.connection)

	// A card came by an import, after which the tenant wants the sanity check.
	cred, err := then.Credentials.Get(t.Context(), "demo", d.credential)
	if err == nil {
		_, err = then.Credentials.Register(t.Context(), core, by, credential.New{Family: "PIV", CardID: "00112233445566778899AABBCCDDEEFF", Template: cred.Template})
	}
	core.Tenant.Settings.SupportFunctions, core.Tenant.Settings.AfterImport.On = true, true
	var run []table.Op
	if err == nil {
		run, err = then.Credentials.AfterImport(t.Context(), core)
	}
	if err == nil {
		err = then.Table.Write(t.Context(), run...)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// session is a client of a function behind an HTTP API.
type session struct {
	t        *testing.T
	function gateway.Function
	url      string
	key      string
}

func newSession(t *testing.T, l *testserver.Lambda) *session {
	t.Helper()
	s := &session{t: t, function: func(ctx context.Context, e events.APIGatewayV2HTTPRequest) (res events.APIGatewayV2HTTPResponse, err error) {
		payload, err := json.Marshal(e)
		if err != nil {
			return res, err
		}
		out, err := l.Invoke(ctx, payload)
		if err != nil {
			return res, err
		}
		err = json.Unmarshal(out, &res)
		return res, err
	}}
	server := httptest.NewServer(gateway.Front(s.function, time.Now, rand.Text))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// do makes a request and returns the answer's JSON.
func (s *session) do(method, path, body string, want int) map[string]any {
	s.t.Helper()
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.key)
	r.Header.Set("Content-Type", "application/json")
	if method == http.MethodPost {
		r.Header.Set("Idempotency-Key", rand.Text())
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		s.t.Fatalf("%s %s: %s, want %d: %s", method, path, resp.Status, want, text)
	}
	var answer map[string]any
	if len(text) > 0 {
		if err := json.Unmarshal(text, &answer); err != nil {
			s.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	return answer
}

// captured feeds the function the captured events, as they are and with a key
// that is good.
func (s *session) captured(key string) {
	s.t.Helper()
	want := map[string]int{
		"http-cookies-and-repeated-headers.json": http.StatusUnprocessableEntity, // unknown query parameters
		"http-custom-domain.json":                http.StatusOK,
		"http-decoded-path.json":                 http.StatusNotFound,
		"http-encoded-slash.json":                http.StatusNotFound,
		"http-get.json":                          http.StatusOK,
		"http-post-base64.json":                  http.StatusUnsupportedMediaType,
		"http-post-json.json":                    http.StatusOK,
	}
	files, _ := filepath.Glob(filepath.Join(root, "testdata/events/http-*.json"))
	if len(files) != len(want) {
		s.t.Errorf("%d captured events, want %d", len(files), len(want))
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			s.t.Fatal(err)
		}
		var event events.APIGatewayV2HTTPRequest
		if err := json.Unmarshal(text, &event); err != nil {
			s.t.Fatal(err)
		}
		name := filepath.Base(file)
		for key, want := range map[string]int{strings.TrimPrefix(event.Headers["authorization"], "Bearer "): http.StatusUnauthorized, key: want[name]} {
			event.Headers["authorization"] = "Bearer " + key
			res, err := s.function(s.t.Context(), event)
			if err != nil || res.StatusCode != want {
				s.t.Errorf("%s: %d, %v, want %d: %s", name, res.StatusCode, err, want, res.Body)
			}
		}
	}
}
