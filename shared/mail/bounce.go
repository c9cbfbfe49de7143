package mail

import (
	"encoding/json"
	"regexp"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// Tags that mails sent with SES have, so that what SES tells of them afterwards finds whose
// they were. Names and values of tags are letters, digits, "_" and "-", up to 256.
const (
	tagTenant = "pinward-tenant"
	tagUser   = "pinward-user"
)

var sesTagPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,256}$`)

// Bounce is what SES tells of a mail to one address that came back or was complained of.
type Bounce struct {
	Tenant    table.TenantID // of the mail's tags, which nothing vouches for; "" without
	User      string
	Address   string
	Complaint bool
	Permanent bool      // mails to the address will not arrive, or are not wanted
	Code      string    // such as "ses.Permanent.General", "ses.complaint.abuse"
	SentAt    time.Time // the mail
	At        time.Time
}

// notification is a bounce or complaint as SES tells it: published by a configuration set
// ("eventType"), or by an identity ("notificationType"), which knows of no tags.
type notification struct {
	EventType        string `json:"eventType"`
	NotificationType string `json:"notificationType"`
	Mail             struct {
		Timestamp time.Time           `json:"timestamp"`
		Tags      map[string][]string `json:"tags"`
	} `json:"mail"`
	Bounce *struct {
		BounceType        string      `json:"bounceType"`
		BounceSubType     string      `json:"bounceSubType"`
		BouncedRecipients []recipient `json:"bouncedRecipients"`
		Timestamp         time.Time   `json:"timestamp"`
	} `json:"bounce"`
	Complaint *struct {
		ComplainedRecipients  []recipient `json:"complainedRecipients"`
		ComplaintFeedbackType string      `json:"complaintFeedbackType"`
		ComplaintSubType      string      `json:"complaintSubType"`
		Timestamp             time.Time   `json:"timestamp"`
	} `json:"complaint"`
}

type recipient struct {
	EmailAddress string `json:"emailAddress"`
}

// envelope is what notifications come in: an event of EventBridge, a notification of SNS, or
// an event of Lambda with several of those.
type envelope struct {
	Source  string          `json:"source"`
	Detail  json.RawMessage `json:"detail"`
	Type    string          `json:"Type"`
	Message string          `json:"Message"`
	Records []struct {
		SNS struct {
			Message string `json:"Message"`
		} `json:"Sns"`
	} `json:"Records"`
}

var errNoNotification = problem.Invalid("form", "notification", "is no notification of SES, from EventBridge or SNS")

// ParseBounces reads what SES tells of mails: by EventBridge (source aws.ses), by SNS in an
// envelope or as Lambda gets it, or as it is. What is neither bounce nor complaint, such as a
// delivery, yields nothing; what is none of SES's is an InvalidError.
func ParseBounces(raw json.RawMessage) ([]Bounce, error) {
	var e envelope
	if json.Unmarshal(raw, &e) != nil {
		return nil, errNoNotification
	}
	switch {
	case len(e.Records) > 0:
		var all []Bounce
		for _, r := range e.Records {
			some, err := parseNotification([]byte(r.SNS.Message))
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
		return all, nil
	case e.Source == "aws.ses":
		return parseNotification(e.Detail)
	case e.Type == "Notification":
		return parseNotification([]byte(e.Message))
	}
	return parseNotification(raw)
}

func parseNotification(raw []byte) (all []Bounce, _ error) {
	var n notification
	if json.Unmarshal(raw, &n) != nil || n.EventType == "" && n.NotificationType == "" {
		return nil, errNoNotification
	}
	b := Bounce{Tenant: table.TenantID(n.tag(tagTenant)), User: n.tag(tagUser), SentAt: n.Mail.Timestamp}
	var to []recipient
	switch {
	case n.Bounce != nil:
		to, b.At = n.Bounce.BouncedRecipients, n.Bounce.Timestamp
		b.Permanent = n.Bounce.BounceType == "Permanent"
		b.Code = code("ses", n.Bounce.BounceType, n.Bounce.BounceSubType)
	case n.Complaint != nil:
		to, b.At, b.Complaint = n.Complaint.ComplainedRecipients, n.Complaint.Timestamp, true
		b.Permanent = n.Complaint.ComplaintFeedbackType != "not-spam" // which takes one back
		b.Code = code("ses.complaint", n.Complaint.ComplaintFeedbackType, n.Complaint.ComplaintSubType)
	}
	for _, r := range to {
		b.Address = r.EmailAddress
		all = append(all, b)
	}
	return all, nil
}

func (n notification) tag(name string) string {
	if v := n.Mail.Tags[name]; len(v) == 1 && sesTagPattern.MatchString(v[0]) {
		return v[0]
	}
	return ""
}

// code joins the words of a code that have the form of one.
func code(words ...string) string {
	var good []string
	for _, w := range words {
		if w == "ses.complaint" || len(w) <= 60 && sesTagPattern.MatchString(w) {
			good = append(good, w)
		}
	}
	return strings.Join(good, ".")
}
