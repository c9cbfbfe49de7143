package mail

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/sesv2"
	"github.com/aws/aws-sdk-go-v2/service/sesv2/types"
	"github.com/aws/smithy-go"
	"golang.org/x/time/rate"
)

// SESAPI is what is used of *sesv2.Client. Its HTTP client reports to
// net/http/httptrace, as net/http's does: that tells whether a request without
// an answer was sent.
type SESAPI interface {
	SendBulkEmail(context.Context, *sesv2.SendBulkEmailInput, ...func(*sesv2.Options)) (*sesv2.SendBulkEmailOutput, error)
	GetAccount(context.Context, *sesv2.GetAccountInput, ...func(*sesv2.Options)) (*sesv2.GetAccountOutput, error)
}

// SES is the SES account that all tenants of an installation share: its
// senders together stay within the account's sending rate and daily quota, as
// far as one process can tell. Other processes show as throttling.
//
// Its invariant: at most one call of bulk messages is ahead of an urgent one at the limiter,
// however many wait. Bulk messages leave a part of the rate to urgent ones of other
// processes.
type SES struct {
	api SESAPI

	mu        sync.Mutex
	limiter   *rate.Limiter // recipients a second
	bulk      *rate.Limiter // those of bulk messages
	remaining float64       // recipients left of the daily quota
	readAt    time.Time     // when the quota was last asked for

	// turn is held by the one call of bulk messages that waits at limiter, where who comes
	// first goes first.
	turn chan struct{}
}

// sandboxRate is the rate of an account in the SES sandbox, which is assumed
// until SES tells the account's; quotaAge is how long what it told is used.
const (
	sandboxRate = 1
	quotaAge    = 5 * time.Minute
)

// bulkPart is how much of the rate bulk messages may use.
const bulkPart = 0.8

// Limits of SES. A call takes 50 destinations, an inline template with all its
// data 1 MB, and the data of one destination 262,144 characters. The data is
// counted as it stands in the request, where it is a JSON string.
const (
	maxDestinations = 50
	maxCall         = 900_000
	maxData         = 262_144
)

// throttleTries is how often a throttled message is tried in one Send, a
// second apart: the rate is per second.
const throttleTries = 4

// NewSES returns the account that the client sends for.
func NewSES(api SESAPI) *SES {
	s := &SES{api: api, remaining: math.Inf(1), turn: make(chan struct{}, 1)}
	s.limit(sandboxRate)
	return s
}

// limit sets how many recipients a second there may be.
func (s *SES) limit(perSecond float64) {
	limiter := func(perSecond float64) *rate.Limiter {
		return rate.NewLimiter(rate.Limit(perSecond), max(1, min(maxDestinations, int(perSecond))))
	}
	s.limiter, s.bulk = limiter(perSecond), limiter(perSecond*bulkPart)
}

// batch returns how many recipients one call may have. It asks SES for the
// quota if that was not done lately.
func (s *SES) batch(ctx context.Context, bulk bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.readAt) > quotaAge {
		// Without an answer it goes on with what it knows: SES enforces the quota
		// itself, and mails should not wait for this.
		out, err := s.api.GetAccount(ctx, &sesv2.GetAccountInput{})
		s.readAt = time.Now() // also after a failure, or every send would wait for the next one
		if err == nil && out.SendQuota != nil {
			perSecond := max(out.SendQuota.MaxSendRate, sandboxRate)
			if rate.Limit(perSecond) != s.limiter.Limit() {
				s.limit(perSecond)
			}
			s.remaining = out.SendQuota.Max24HourSend - out.SendQuota.SentLast24Hours
			if out.SendQuota.Max24HourSend < 0 { // unlimited
				s.remaining = math.Inf(1)
			}
		}
	}
	if bulk {
		return s.bulk.Burst()
	}
	return s.limiter.Burst()
}

// bulkRate is how many bulk messages a second it takes.
func (s *SES) bulkRate(ctx context.Context) float64 {
	s.batch(ctx, true) // asks for the quota if need be
	s.mu.Lock()
	defer s.mu.Unlock()
	return float64(s.bulk.Limit())
}

// admit waits until n recipients may be sent to, or returns why they may not.
func (s *SES) admit(ctx context.Context, n int, bulk bool) (Result, bool) {
	s.mu.Lock()
	if s.remaining < 1 {
		s.mu.Unlock()
		return sesResult(Failed, string(types.BulkEmailStatusAccountDailyQuotaExceeded)), false
	}
	s.remaining -= float64(n)
	limiter, bulkLimiter := s.limiter, s.bulk
	s.mu.Unlock()
	if bulk {
		select {
		case s.turn <- struct{}{}:
			defer func() { <-s.turn }()
		case <-ctx.Done():
			return notTried, false
		}
		if bulkLimiter.WaitN(ctx, n) != nil {
			return notTried, false
		}
	}
	if limiter.WaitN(ctx, n) != nil {
		return notTried, false
	}
	return Result{}, true
}

type sesSender struct {
	configuration Configuration
	account       *SES
}

// Send implements Sender with SendBulkEmail.
//
// SES's own templates do not escape HTML and take no "-" in names, so mails
// are rendered here, and each call carries a template that only passes
// subject, text and HTML through.
func (s *sesSender) Send(ctx context.Context, messages []Message) []Result {
	results := make([]Result, len(messages))
	s.sendThose(ctx, messages, results, false)
	s.sendThose(ctx, messages, results, true)
	return results
}

// sendThose sends the messages that are bulk, or those that are not.
func (s *sesSender) sendThose(ctx context.Context, messages []Message, results []Result, bulk bool) {
	if !slices.ContainsFunc(messages, func(m Message) bool { return m.Bulk == bulk }) {
		return
	}
	limit := s.account.batch(ctx, bulk)
	var batch sesBatch
	flush := func() {
		for i, r := range s.deliver(ctx, batch.entries, batch.html, bulk) {
			results[batch.places[i]] = r
		}
		batch = sesBatch{}
	}
	for i, m := range messages {
		if m.Bulk != bulk {
			continue
		}
		entry, size, r := sesEntry(m)
		if r.Code != "" {
			results[i] = r
			continue
		}
		if len(batch.entries) > 0 && (len(batch.entries) >= limit || batch.size+size > maxCall || batch.html != (m.HTML != "")) {
			flush()
		}
		batch.entries = append(batch.entries, entry)
		batch.places = append(batch.places, i)
		batch.size += size
		batch.html = m.HTML != ""
	}
	flush()
}

// sesBatch is what goes into one call.
type sesBatch struct {
	entries []types.BulkEmailEntry
	places  []int // of the entries among the messages
	size    int   // bytes of their data in the request
	html    bool  // they have an HTML part: all or none
}

func sesEntry(m Message) (entry types.BulkEmailEntry, size int, r Result) {
	if r, ok := m.check(); !ok {
		return entry, 0, r
	}
	data := map[string]string{"subject": oneLine(m.Subject), "text": m.Text}
	if m.HTML != "" {
		data["html"] = m.HTML
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // "<" as six characters would fill the call
	if err := e.Encode(data); err != nil {
		return entry, 0, Result{Outcome: Refused, Code: "message.build", Reason: "the message cannot be put into mail format"}
	}
	if b.Len() > maxData {
		return entry, 0, Result{Outcome: Refused, Code: "message.tooLarge", Reason: "the message is larger than SES takes"}
	}
	to, _ := ParseAddress(m.To) // check did so
	text := b.String()
	var tags []types.MessageTag
	if tenant := string(m.Tenant); sesTagPattern.MatchString(tenant) && sesTagPattern.MatchString(m.User) {
		tags = []types.MessageTag{{Name: aws.String(tagTenant), Value: &tenant}, {Name: aws.String(tagUser), Value: &m.User}}
	}
	return types.BulkEmailEntry{
		ReplacementTags: tags,
		Destination:     &types.Destination{ToAddresses: []string{to.Address}},
		ReplacementEmailContent: &types.ReplacementEmailContent{
			ReplacementTemplate: &types.ReplacementTemplate{ReplacementTemplateData: &text},
		},
	}, len(text) + strings.Count(text, `"`) + strings.Count(text, `\`) + 300, Result{}
}

// deliver sends entries in one call. Those that were throttled are sent again;
// if SES rejects the call as a whole, each is sent alone, so that one does not
// keep the others from being sent.
func (s *sesSender) deliver(ctx context.Context, entries []types.BulkEmailEntry, html, bulk bool) []Result {
	results := make([]Result, len(entries))
	waiting := make([]int, len(entries))
	for i := range waiting {
		waiting[i] = i
	}
	for try := 1; len(waiting) > 0; try++ {
		if r, ok := s.account.admit(ctx, len(waiting), bulk); !ok {
			if try == 1 {
				for _, i := range waiting {
					results[i] = r
				}
			}
			break
		}
		some := make([]types.BulkEmailEntry, len(waiting))
		for i, place := range waiting {
			some[i] = entries[place]
		}
		var throttled []int
		for i, r := range s.call(ctx, some, html) {
			results[waiting[i]] = r
			if r.Outcome == Failed && isThrottle(r.Code) {
				throttled = append(throttled, waiting[i])
			}
		}
		waiting = throttled
		if len(waiting) == 0 || try == throttleTries {
			break
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
	if len(entries) > 1 && isRejection(results[0].Code) && allSame(results) {
		return s.deliverAlone(ctx, entries, html, bulk, results)
	}
	return results
}

// deliverAlone sends each entry in a call of its own. What is rejected while
// another one is taken is Refused; if the first three are rejected, the reason
// is not in the messages, and all stay Failed.
func (s *sesSender) deliverAlone(ctx context.Context, entries []types.BulkEmailEntry, html, bulk bool, results []Result) []Result {
	accepted := false
	for i := range entries {
		results[i] = s.deliver(ctx, entries[i:i+1], html, bulk)[0]
		accepted = accepted || results[i].Outcome == Accepted
		if i == 2 && !accepted {
			return results
		}
	}
	for i, r := range results {
		if accepted && isRejection(r.Code) {
			results[i].Outcome = Refused
		}
	}
	return results
}

// call makes one request, once. The SDK would repeat a request whose answer
// was lost or was a 5xx, and with it mails that may have been taken; here only
// what SES said it did not take is sent again.
func (s *sesSender) call(ctx context.Context, entries []types.BulkEmailEntry, html bool) []Result {
	results := make([]Result, len(entries))
	content := &types.EmailTemplateContent{Subject: aws.String("{{subject}}"), Text: aws.String("{{text}}")}
	defaults := `{"subject":"-","text":"-"}`
	if html {
		content.Html = aws.String("{{html}}")
		defaults = `{"subject":"-","text":"-","html":"-"}`
	}
	from, _ := ParseAddress(s.configuration.From) // Senders.For validated it
	in := &sesv2.SendBulkEmailInput{
		FromEmailAddress: aws.String(from.String()),
		BulkEmailEntries: entries,
		DefaultContent: &types.BulkEmailContent{Template: &types.Template{
			TemplateContent: content,
			TemplateData:    &defaults,
			Headers:         []types.MessageHeader{{Name: aws.String("Auto-Submitted"), Value: aws.String("auto-generated")}},
		}},
	}
	if s.configuration.ReplyTo != "" {
		replyTo, _ := ParseAddress(s.configuration.ReplyTo)
		in.ReplyToAddresses = []string{replyTo.String()}
	}
	if s.configuration.SES.ConfigurationSet != "" {
		in.ConfigurationSetName = &s.configuration.SES.ConfigurationSet
	}
	var sent atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	out, err := s.account.api.SendBulkEmail(traced, in, func(o *sesv2.Options) { o.Retryer = aws.NopRetryer{} })
	for i := range results {
		switch {
		case err != nil:
			results[i] = sesFailure(err, sent.Load())
		case len(out.BulkEmailEntryResults) != len(entries):
			results[i] = sesResult(Unknown, "lost")
		default:
			results[i] = sesStatus(out.BulkEmailEntryResults[i].Status)
		}
	}
	return results
}

// sesStatus maps the status of one entry of a call that succeeded.
func sesStatus(status types.BulkEmailStatus) Result {
	switch status {
	case types.BulkEmailStatusSuccess:
		return Result{Outcome: Accepted}
	case types.BulkEmailStatusMessageRejected, types.BulkEmailStatusInvalidParameter:
		return sesResult(Refused, string(status))
	}
	return sesResult(Failed, string(status))
}

// sesFailure maps the error of a call. sent tells whether the request left.
func sesFailure(err error, sent bool) Result {
	status := 0
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		status = response.HTTPStatusCode()
	}
	var api smithy.APIError
	switch {
	case errors.As(err, &api) && (status >= 400 && status < 500 || status == http.StatusServiceUnavailable):
		return sesResult(Failed, api.ErrorCode())
	case sent || status != 0: // no answer, one that cannot be read, or "internal error"
		return sesResult(Unknown, "lost")
	}
	return sesResult(Failed, "notSent")
}

// sesReasons explains what SES says, by status of an entry or error of a call.
// SES's own texts name addresses, so they are not passed on.
var sesReasons = map[string]string{
	"lost":                               "the connection ended before SES confirmed the message",
	"notSent":                            "SES could not be reached, or Pinward's role may not be used",
	"AccessDeniedException":              "Pinward's role may not send mail with SES",
	"BadRequestException":                "SES finds the message or an address in it invalid",
	"INVALID_PARAMETER":                  "SES finds the message or the address invalid",
	"MessageRejected":                    "SES rejects the message; is the sender's address or domain verified, and the account out of the sandbox?",
	"MESSAGE_REJECTED":                   "SES rejects the message for its content or its address",
	"MailFromDomainNotVerifiedException": "the sender's domain is not verified with SES",
	"MAIL_FROM_DOMAIN_NOT_VERIFIED":      "the sender's domain is not verified with SES",
	"NotFoundException":                  "the configuration set does not exist in SES",
	"CONFIGURATION_SET_NOT_FOUND":        "the configuration set does not exist in SES",
	"CONFIGURATION_SET_SENDING_PAUSED":   "sending with this configuration set is paused in SES",
	"AccountSuspendedException":          "the SES account is suspended",
	"ACCOUNT_SUSPENDED":                  "the SES account is suspended",
	"SendingPausedException":             "sending is paused in SES",
	"ACCOUNT_SENDING_PAUSED":             "sending is paused in SES",
	"LimitExceededException":             "a limit of the SES account is reached",
	"ACCOUNT_DAILY_QUOTA_EXCEEDED":       "the daily quota of the SES account is used up",
	"TooManyRequestsException":           "the sending rate of the SES account is exceeded",
	"ACCOUNT_THROTTLED":                  "the sending rate of the SES account is exceeded",
	"TRANSIENT_FAILURE":                  "SES had a passing failure",
}

func sesResult(o Outcome, code string) Result {
	reason := sesReasons[code]
	if reason == "" {
		reason = "SES answered " + code
	}
	return Result{Outcome: o, Code: "ses." + code, Reason: reason}
}

func isThrottle(code string) bool {
	switch code {
	case "ses.TooManyRequestsException", "ses.ThrottlingException", "ses.Throttling", "ses.ACCOUNT_THROTTLED":
		return true
	}
	return false
}

// isRejection tells whether SES refused a whole call for what is in it.
func isRejection(code string) bool {
	return code == "ses.BadRequestException" || code == "ses.MessageRejected"
}

func allSame(results []Result) bool {
	for _, r := range results {
		if r != results[0] {
			return false
		}
	}
	return true
}
