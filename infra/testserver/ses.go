package testserver

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// SES starts a server that speaks the SES v2 API and keeps what it is sent
// (npm aws-ses-v2-local). Its account may send 1000 mails a second. It shows
// no throttling, and its errors have no types.
func SES() (endpoint string, stop func(), err error) {
	host, port, err := freeAddress()
	if err != nil {
		return "", nil, err
	}
	account, err := json.Marshal(map[string]any{
		"DedicatedIpAutoWarmupEnabled": false,
		"Details": map[string]any{
			"AdditionalContactEmailAddresses": []string{}, "ContactLanguage": "EN", "MailType": "TRANSACTIONAL",
			"ReviewDetails":      map[string]string{"CaseId": "", "Status": "GRANTED"},
			"UseCaseDescription": "", "WebsiteURL": "",
		},
		"EnforcementStatus":       "HEALTHY",
		"ProductionAccessEnabled": true,
		"SendingEnabled":          true,
		"SendQuota":               map[string]float64{"Max24HourSend": 100000, "MaxSendRate": 1000, "SentLast24Hours": 0},
		"SuppressionAttributes":   map[string]any{"SuppressedReasons": []string{}},
	})
	if err != nil {
		return "", nil, err
	}
	stop, err = node("aws-ses-v2-local", "dist/cli.js",
		[]string{"--host", host, "--port", port},
		[]string{"AWS_SES_ACCOUNT=" + string(account)},
		answers(host, port))
	return "http://" + host + ":" + port, stop, err
}

// SESMail is a mail that an SES server was sent.
type SESMail struct {
	From        string   `json:"from"`
	ReplyTo     []string `json:"replyTo"`
	Destination struct {
		To []string `json:"to"`
	} `json:"destination"`
	Subject string `json:"subject"`
	Body    struct {
		Text string `json:"text"`
		HTML string `json:"html"`
	} `json:"body"`
	Headers []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"headers"`
}

// SESMails returns what the server at the endpoint was sent, in order.
func SESMails(endpoint string) ([]SESMail, error) {
	resp, err := http.Get(endpoint + "/store")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read mails of SES: %s", resp.Status)
	}
	var store struct {
		Emails []SESMail `json:"emails"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&store); err != nil {
		return nil, fmt.Errorf("read mails of SES: %w", err)
	}
	return store.Emails, nil
}
