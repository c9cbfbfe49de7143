package mail

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sesv2"
	"github.com/aws/aws-sdk-go-v2/service/sesv2/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/infra/testserver"
)

var sesConfiguration = Configuration{ID: "1", Name: "SES", Kind: KindSES, From: "Acmé <pins@acme.example>", ReplyTo: "help@acme.example", SES: SESSettings{"set-1"}}

func sesClient(endpoint string, transport http.RoundTripper) *sesv2.Client {
	return sesv2.New(sesv2.Options{
		Region: "eu-central-1", BaseEndpoint: &endpoint,
		Credentials: credentials.NewStaticCredentialsProvider("id", "key", ""),
		HTTPClient:  &http.Client{Transport: transport},
	})
}

func sendSES(t *testing.T, ctx context.Context, api SESAPI, messages []Message) []Result {
	t.Helper()
	sender, err := Senders{SES: NewSES(api)}.For(sesConfiguration)
	if err != nil {
		t.Fatal(err)
	}
	return sender.Send(ctx, messages)
}

func sesMessages(n int) []Message {
	messages := make([]Message, n)
	for i := range messages {
		messages[i] = testMessage(fmt.Sprintf("m%d", i), fmt.Sprintf("user%d@acme.example", i))
	}
	return messages
}

// counter counts bulk calls and keeps the last one.
type counter struct {
	calls int
	last  []byte
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/outbound-bulk-emails") {
		c.calls++
		c.last, _ = io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(c.last))
	}
	return http.DefaultTransport.RoundTrip(r)
}

func TestSESServer(t *testing.T) {
	endpoint, stop, err := testserver.SES()
	testserver.Need(t, err)
	defer stop()
	messages := sesMessages(120)
	messages[119].Tenant, messages[119].User = "acme", "01M7YRRT80V63QXKKD6T5AR6KF"
	messages[118].Tenant, messages[118].User = "acme", "a user/of another form"
	messages[3].Text = `{{subject}} {{{html}}} "quoted" \ {{#if x}}`
	messages[3].Subject = "{{text}}\r\nBcc: x@y.example"
	messages[3].HTML = "<p>&lt;b&gt; {{text}}</p>"
	transport := &counter{}
	want := make([]string, len(messages))
	for i := range want {
		want[i] = "accepted"
	}
	wantCodes(t, sendSES(t, t.Context(), sesClient(endpoint, transport), messages), want...)
	if transport.calls != 3 {
		t.Errorf("%d calls for 120 mails, want 3", transport.calls)
	}
	var body struct {
		ConfigurationSetName string
		FromEmailAddress     string
		BulkEmailEntries     []struct {
			ReplacementTags []struct{ Name, Value string }
		}
	}
	if err := json.Unmarshal(transport.last, &body); err != nil || body.ConfigurationSetName != "set-1" || body.FromEmailAddress != "=?utf-8?q?Acm=C3=A9?= <pins@acme.example>" {
		t.Errorf("call: %+v, %v", body, err)
	}
	if n := len(body.BulkEmailEntries); n != 20 || fmt.Sprint(body.BulkEmailEntries[n-1].ReplacementTags) != "[{pinward-tenant acme} {pinward-user 01M7YRRT80V63QXKKD6T5AR6KF}]" || body.BulkEmailEntries[n-2].ReplacementTags != nil {
		t.Errorf("tags of the last two: %+v", body.BulkEmailEntries[n-2:])
	}
	mails, err := testserver.SESMails(endpoint)
	if err != nil || len(mails) != 120 {
		t.Fatalf("%d mails at the server, %v", len(mails), err)
	}
	for i, mail := range mails {
		m := messages[i]
		if d := cmp.Diff([]string{m.To}, mail.Destination.To); d != "" {
			t.Errorf("to (-want +got):\n%s", d)
		}
		if mail.Subject != oneLine(m.Subject) || mail.Body.Text != m.Text || mail.Body.HTML != m.HTML {
			t.Errorf("mail %d: %+v, want %+v", i, mail, m)
		}
		if len(mail.ReplyTo) != 1 || mail.ReplyTo[0] != "<help@acme.example>" || len(mail.Headers) != 1 || mail.Headers[0].Name != "Auto-Submitted" {
			t.Errorf("reply to %v, headers %v", mail.ReplyTo, mail.Headers)
		}
	}

	// Mails of text only get no HTML part, and go in a call of their own.
	mixed := sesMessages(3)
	mixed[1].HTML = ""
	transport.calls = 0
	wantCodes(t, sendSES(t, t.Context(), sesClient(endpoint, transport), mixed), "accepted", "accepted", "accepted")
	if transport.calls != 3 {
		t.Errorf("%d calls, want 3", transport.calls)
	}
	if mails, err = testserver.SESMails(endpoint); err != nil || mails[121].Body.HTML != "" || mails[122].Body.HTML == "" {
		t.Errorf("html of a mail of text only, %v: %+v", err, mails[121:])
	}

	// The calls stay below a megabyte.
	large := sesMessages(20)
	for i := range large {
		large[i].HTML = strings.Repeat(`<p class="x">\</p>`, 5000)
	}
	transport.calls = 0
	for _, r := range sendSES(t, t.Context(), sesClient(endpoint, sizes{t, transport}), large) {
		if r.Outcome != Accepted {
			t.Error(r)
		}
	}
	large[0].HTML = strings.Repeat("h", 300_000)
	wantCodes(t, sendSES(t, t.Context(), sesClient(endpoint, transport), large[:1]), "refused message.tooLarge")
}

type sizes struct {
	t *testing.T
	*counter
}

func (s sizes) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := s.counter.RoundTrip(r)
	if len(s.last) > 1_000_000 {
		s.t.Errorf("a call of %d bytes", len(s.last))
	}
	return resp, err
}

// A call is never repeated by the SDK, and its answer says what became of it.
func TestSESErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer http.HandlerFunc
		calls  int
		want   string
	}{
		{"rate", sesError(429, "TooManyRequestsException"), throttleTries, "failed ses.TooManyRequestsException"},
		{"suspended", sesError(400, "AccountSuspendedException"), 1, "failed ses.AccountSuspendedException"},
		{"paused", sesError(400, "SendingPausedException"), 1, "failed ses.SendingPausedException"},
		{"domain", sesError(400, "MailFromDomainNotVerifiedException"), 1, "failed ses.MailFromDomainNotVerifiedException"},
		{"configuration set", sesError(404, "NotFoundException"), 1, "failed ses.NotFoundException"},
		{"role", sesError(403, "AccessDeniedException"), 1, "failed ses.AccessDeniedException"},
		{"unavailable", sesError(503, "ServiceUnavailable"), 1, "failed ses.ServiceUnavailable"},
		{"all rejected", sesError(400, "MessageRejected"), 3, "failed ses.MessageRejected"},
		{"internal", sesError(500, "InternalFailure"), 1, "unknown ses.lost"},
		{"closed", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 1, "unknown ses.lost"},
		{"nonsense", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, 1, "unknown ses.lost"},
		{"too few results", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"BulkEmailEntryResults":[{"Status":"SUCCESS"}]}`)
		}, 1, "unknown ses.lost"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/account") {
					fmt.Fprint(w, `{"SendQuota":{"Max24HourSend":-1,"MaxSendRate":100}}`)
					return
				}
				calls.Add(1)
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", "application/json")
				test.answer(w, r)
			}))
			defer server.Close()
			got := sendSES(t, t.Context(), sesClient(server.URL, http.DefaultTransport), sesMessages(2))
			wantCodes(t, got, test.want, test.want)
			if got := int(calls.Load()); got != test.calls {
				t.Errorf("%d calls, want %d", got, test.calls)
			}
		})
	}
	// Nobody listens: nothing was sent.
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	wantCodes(t, sendSES(t, t.Context(), sesClient(server.URL, http.DefaultTransport), sesMessages(1)), "failed ses.notSent")
	// The answer comes too late.
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/account") {
			fmt.Fprint(w, `{"SendQuota":{"Max24HourSend":-1,"MaxSendRate":1}}`)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer slow.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	wantCodes(t, sendSES(t, ctx, sesClient(slow.URL, http.DefaultTransport), sesMessages(2)), "unknown ses.lost", "failed notTried")
}

// sesError answers as SES does; its texts name addresses.
func sesError(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Amzn-Errortype", code)
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"message":"Email address is not verified: user0@acme.example"}`)
	}
}

// fakeSES answers by recipient.
type fakeSES struct {
	quota    types.SendQuota
	quotaErr error
	status   func(to string) types.BulkEmailStatus // nil is success
	err      func(to []string) error
	mu       sync.Mutex
	calls    []int    // recipients
	first    []string // of each call
	times    []time.Time
	accounts int
}

func (f *fakeSES) GetAccount(context.Context, *sesv2.GetAccountInput, ...func(*sesv2.Options)) (*sesv2.GetAccountOutput, error) {
	f.accounts++
	return &sesv2.GetAccountOutput{SendQuota: &f.quota}, f.quotaErr
}

func (f *fakeSES) SendBulkEmail(_ context.Context, in *sesv2.SendBulkEmailInput, _ ...func(*sesv2.Options)) (*sesv2.SendBulkEmailOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, len(in.BulkEmailEntries))
	f.first = append(f.first, in.BulkEmailEntries[0].Destination.ToAddresses[0])
	f.times = append(f.times, time.Now())
	var out sesv2.SendBulkEmailOutput
	var all []string
	for _, e := range in.BulkEmailEntries {
		to := e.Destination.ToAddresses[0]
		all = append(all, to)
		status := types.BulkEmailStatusSuccess
		if f.status != nil {
			status = f.status(to)
		}
		out.BulkEmailEntryResults = append(out.BulkEmailEntryResults, types.BulkEmailEntryResult{Status: status, Error: aws.String("about " + to)})
	}
	if f.err != nil {
		if err := f.err(all); err != nil {
			return nil, err
		}
	}
	return &out, nil
}

func TestSESEntries(t *testing.T) {
	statuses := []types.BulkEmailStatus{"SUCCESS", "MESSAGE_REJECTED", "INVALID_PARAMETER", "TRANSIENT_FAILURE", "FAILED",
		"ACCOUNT_SUSPENDED", "ACCOUNT_DAILY_QUOTA_EXCEEDED", "CONFIGURATION_SET_NOT_FOUND", "MAIL_FROM_DOMAIN_NOT_VERIFIED", "NEW_ONE"}
	fake := &fakeSES{quota: types.SendQuota{Max24HourSend: -1, MaxSendRate: 50}, status: func(to string) types.BulkEmailStatus {
		var i int
		_, _ = fmt.Sscanf(to, "user%d@", &i)
		return statuses[i]
	}}
	wantCodes(t, sendSES(t, t.Context(), fake, sesMessages(len(statuses))),
		"accepted", "refused ses.MESSAGE_REJECTED", "refused ses.INVALID_PARAMETER", "failed ses.TRANSIENT_FAILURE", "failed ses.FAILED",
		"failed ses.ACCOUNT_SUSPENDED", "failed ses.ACCOUNT_DAILY_QUOTA_EXCEEDED", "failed ses.CONFIGURATION_SET_NOT_FOUND", "failed ses.MAIL_FROM_DOMAIN_NOT_VERIFIED", "failed ses.NEW_ONE")
}

// Only the throttled entries are sent again, a second later.
func TestSESThrottledEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := map[string]int{}
		fake := &fakeSES{quota: types.SendQuota{Max24HourSend: -1, MaxSendRate: 50}, status: func(to string) types.BulkEmailStatus {
			seen[to]++
			if to == "user1@acme.example" && seen[to] < 3 || to == "user2@acme.example" {
				return types.BulkEmailStatusAccountThrottled
			}
			return types.BulkEmailStatusSuccess
		}}
		began := time.Now()
		wantCodes(t, sendSES(t, t.Context(), fake, sesMessages(4)), "accepted", "accepted", "failed ses.ACCOUNT_THROTTLED", "accepted")
		if d := cmp.Diff([]int{4, 2, 2, 1}, fake.calls); d != "" {
			t.Errorf("recipients of each call (-want +got):\n%s", d)
		}
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("took %v", d)
		}
	})
}

// One message that SES rejects does not hold up the others of its call.
func TestSESPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeSES{quota: types.SendQuota{Max24HourSend: -1, MaxSendRate: 50}, err: func(to []string) error {
			for _, a := range to {
				if a == "user1@acme.example" {
					return sesAPIError(400, "BadRequestException")
				}
			}
			return nil
		}}
		wantCodes(t, sendSES(t, t.Context(), fake, sesMessages(4)), "accepted", "refused ses.BadRequestException", "accepted", "accepted")
		if d := cmp.Diff([]int{4, 1, 1, 1, 1}, fake.calls); d != "" {
			t.Errorf("recipients of each call (-want +got):\n%s", d)
		}
		// When it is not the message, nobody's mail is given up, at the cost of three calls.
		fake.calls, fake.err = nil, func([]string) error { return sesAPIError(400, "BadRequestException") }
		for _, r := range sendSES(t, t.Context(), fake, sesMessages(50)) {
			if r.Outcome != Failed || r.Code != "ses.BadRequestException" {
				t.Fatal(r)
			}
		}
		if d := cmp.Diff([]int{50, 1, 1, 1}, fake.calls); d != "" {
			t.Errorf("recipients of each call (-want +got):\n%s", d)
		}
	})
}

func TestSESRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeSES{quota: types.SendQuota{Max24HourSend: -1, MaxSendRate: 14}}
		account := NewSES(fake)
		sender, err := Senders{SES: account}.For(sesConfiguration)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		sender.Send(t.Context(), sesMessages(140))
		if d := time.Since(began).Round(time.Millisecond); d != 9*time.Second {
			t.Errorf("140 mails at 14 a second, 14 at once, took %v, want 9 s", d)
		}
		for i, n := range fake.calls {
			if n != 14 {
				t.Errorf("call %d has %d recipients", i, n)
			}
		}
		sender.Send(t.Context(), sesMessages(1))
		if fake.accounts != 1 {
			t.Errorf("the quota was asked for %d times", fake.accounts)
		}

		// What the deadline does not allow is not tried.
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		counts := map[string]int{}
		for _, code := range codes(sender.Send(ctx, sesMessages(50))) {
			counts[code]++
		}
		if d := cmp.Diff(map[string]int{"accepted": 14, "failed notTried": 36}, counts); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	})
}

// With 1,000 bulk mails queued, an urgent one goes out after at most one bulk call, whenever it
// comes; and bulk mails leave a fifth of the rate.
func TestSESUrgentFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeSES{quota: types.SendQuota{Max24HourSend: -1, MaxSendRate: 50}}
		sender, err := Senders{SES: NewSES(fake)}.For(sesConfiguration)
		if err != nil {
			t.Fatal(err)
		}
		sender.Send(t.Context(), sesMessages(1)) // asks for the quota
		time.Sleep(time.Minute)
		began := time.Now()
		var all sync.WaitGroup
		for range 20 { // tenants, or pages of a sweep
			all.Go(func() {
				messages := sesMessages(50)
				for i := range messages {
					messages[i].Bulk = true
				}
				for i, code := range codes(sender.Send(t.Context(), messages)) {
					if code != "accepted" {
						t.Errorf("bulk mail %d: %s", i, code)
					}
				}
			})
		}
		var longest time.Duration
		for n := range 30 {
			time.Sleep(333 * time.Millisecond)
			synctest.Wait()
			fake.mu.Lock()
			before := len(fake.calls)
			fake.mu.Unlock()
			asked := time.Now()
			urgent := make([]Message, 10) // more than the part that is left to them
			for i := range urgent {
				urgent[i] = testMessage(fmt.Sprintf("urgent%d.%d", n, i), "urgent@acme.example")
			}
			for i, code := range codes(sender.Send(t.Context(), urgent)) {
				if code != "accepted" {
					t.Errorf("urgent mail %d.%d: %s", n, i, code)
				}
			}
			longest = max(longest, time.Since(asked))
			fake.mu.Lock()
			ahead := 0
			for _, to := range fake.first[before:] {
				if to == "urgent@acme.example" {
					break
				}
				ahead++
			}
			fake.mu.Unlock()
			if ahead > 1 {
				t.Errorf("urgent mail %d: %d bulk calls went before it", n, ahead)
			}
		}
		if longest > time.Second {
			t.Errorf("an urgent mail waited for %v", longest)
		}
		all.Wait()
		if d := time.Since(began); d < 24*time.Second || d > 30*time.Second {
			t.Errorf("1,000 bulk mails took %v; at 40 a second, 40 at once, and 300 urgent ones before them, they take 24 to 30 s", d)
		}
		t.Logf("the longest wait of an urgent mail was %v", longest)

		// In one Send urgent ones go first.
		fake.calls, fake.first = nil, nil
		mixed := sesMessages(3)
		mixed[0].Bulk, mixed[1].Bulk = true, true
		wantCodes(t, sender.Send(t.Context(), mixed), "accepted", "accepted", "accepted")
		if d := cmp.Diff([]int{1, 2}, fake.calls); d != "" {
			t.Errorf("recipients of each call (-want +got):\n%s", d)
		}

		// Whoever waits for a turn goes when its context ends.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		many := sesMessages(200)
		for i := range many {
			many[i].Bulk = true
		}
		all.Go(func() { sender.Send(t.Context(), many) })
		synctest.Wait()
		counts := map[string]int{}
		for _, code := range codes(sender.Send(ctx, many)) {
			counts[code]++
		}
		if counts["failed notTried"] < 120 {
			t.Errorf("%v", counts)
		}
		all.Wait()
	})
}

func TestSESQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeSES{quota: types.SendQuota{Max24HourSend: 200, MaxSendRate: 50, SentLast24Hours: 150}}
		account := NewSES(fake)
		sender, err := Senders{SES: account}.For(sesConfiguration)
		if err != nil {
			t.Fatal(err)
		}
		counts := map[string]int{}
		for _, code := range codes(sender.Send(t.Context(), sesMessages(60))) {
			counts[code]++
		}
		if d := cmp.Diff(map[string]int{"accepted": 50, "failed ses.ACCOUNT_DAILY_QUOTA_EXCEEDED": 10}, counts); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		// Without a quota it sends slowly instead of not at all.
		fake = &fakeSES{quotaErr: errors.New("denied")}
		wantCodes(t, sendSES(t, t.Context(), fake, sesMessages(2)), "accepted", "accepted")
		if d := cmp.Diff([]int{1, 1}, fake.calls); d != "" {
			t.Errorf("recipients of each call (-want +got):\n%s", d)
		}
	})
}

// sesAPIError is an error as the SDK makes it of an answer.
func sesAPIError(status int, code string) error {
	return &awshttp.ResponseError{ResponseError: &smithyhttp.ResponseError{
		Response: &smithyhttp.Response{Response: &http.Response{StatusCode: status}},
		Err:      &smithy.GenericAPIError{Code: code, Message: "Email address is not verified: user0@acme.example"},
	}}
}
