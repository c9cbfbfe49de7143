package mail_test

import (
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
)

func TestParseBounces(t *testing.T) {
	sent := time.Date(2026, 11, 22, 10, 0, 0, 123e6, time.UTC)
	bounced := mail.Bounce{Tenant: "acme", User: "01M7YRRT80V63QXKKD6T5AR6KF", Address: "ada@acme.example", Permanent: true,
		Code: "ses.Permanent.General", SentAt: sent, At: time.Date(2026, 11, 22, 10, 0, 2, 500e6, time.UTC)}
	passing, untagged, complaint := bounced, bounced, bounced
	passing.Permanent, passing.Code = false, "ses.Transient.MailboxFull"
	untagged.Tenant, untagged.User = "", ""
	complaint.Complaint, complaint.Code, complaint.At = true, "ses.complaint.abuse", time.Date(2026, 11, 22, 12, 30, 0, 0, time.UTC)
	for file, want := range map[string][]mail.Bounce{
		"ses-eventbridge-bounce":    {bounced},
		"ses-eventbridge-transient": {passing},
		"ses-eventbridge-complaint": {complaint},
		"ses-eventbridge-delivery":  nil,
		"ses-sns-bounce":            {bounced},
		"ses-sns-lambda-complaint":  {complaint},
		"ses-sns-identity-bounce":   {untagged},
	} {
		raw, err := os.ReadFile("../../testdata/events/" + file + ".json")
		if err != nil {
			t.Fatal(err)
		}
		got, err := mail.ParseBounces(raw)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", file, err, d)
		}
	}
}

func TestParseBouncesThatAreNone(t *testing.T) {
	for name, raw := range map[string]string{
		"nothing":               ``,
		"no JSON":               `bounce`,
		"a list":                `[]`,
		"another event":         `{"source":"aws.ec2","detail-type":"x","detail":{"state":"running"}}`,
		"SNS of something else": `{"Type":"Notification","Message":"hello"}`,
		"times that are none":   `{"eventType":"Bounce","mail":{"timestamp":"yesterday"},"bounce":{}}`,
		"SES without detail":    `{"source":"aws.ses"}`,
	} {
		got, err := mail.ParseBounces(json.RawMessage(raw))
		var invalid *problem.InvalidError
		if !errors.As(err, &invalid) || got != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for name, raw := range map[string]string{
		"tags of another form": `{"eventType":"Bounce","mail":{"tags":{"pinward-tenant":["acme/x"],"pinward-user":["a","b"]}},"bounce":{"bounceType":"Per manent","bouncedRecipients":[{"emailAddress":"a@b.example"}]}}`,
		"one taken back":       `{"eventType":"Complaint","mail":{},"complaint":{"complaintFeedbackType":"not-spam","complainedRecipients":[{"emailAddress":"a@b.example"}]}}`,
	} {
		got, err := mail.ParseBounces(json.RawMessage(raw))
		if err != nil || len(got) != 1 || got[0].Permanent || got[0].Tenant != "" || got[0].User != "" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
