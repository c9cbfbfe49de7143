package page_test

import (
	"testing"

	"github.com/pinward/pinward/infra/testserver/browser"
	"github.com/pinward/pinward/shared/tenant"
)

// office is a browser in which an administrator of an organisation in which there is nothing
// yet has signed in.
func office(t *testing.T) (*fixture, *browser.Page) {
	t.Helper()
	f := newFixture(t)
	b := browser.New(t)
	f.signInBrowser(b, f.signedIn(tenant.RoleAdmin))
	return f, b
}

// From the overview the first steps lead to a bridge: a name of nothing, the command
// to paste, and it is revoked, at the second thought.
func TestBridgeInABrowser(t *testing.T) {
	f, b := office(t)
	b.See("First steps")
	b.Click("For smart cards: connect a bridge")
	b.ClickOn(".empty a")
	b.Fill("Name", "   ")
	b.Click("Make the code")
	b.See("Please mend this")
	b.Fill("Name", "Kiosk at the door")
	b.Click("Make the code")
	b.See("bridge enroll", "Linux", "Windows")
	b.Axe()
	b.Open(f.url + "/console/bridges")
	b.Click("Kiosk at the door")
	b.Click("Revoke the bridge")
	b.See("This is for good")
	b.Click("Keep it")
	b.Click("Revoke the bridge")
	b.See("This is for good")
	b.Click("Revoke this bridge for good")
	b.See("The bridge is revoked and disconnected")
}

// The settings: no such time zone, a name of nothing, and then both right.
func TestSettingsInABrowser(t *testing.T) {
	f, b := office(t)
	b.Open(f.url + "/console/settings")
	b.Fill("Time zone", "Mars/Base")
	b.Fill("Name of the organisation", "  ")
	b.Click("Save the settings")
	b.See("Please mend this", "is not an IANA time zone")
	b.Fill("Time zone", "Asia/Tokyo")
	b.Fill("Name of the organisation", "אקמי בע״מ")
	b.Click("Save the settings")
	b.See("The settings are saved", "אקמי בע״מ")
	if got := f.core(acme).Tenant.Settings; got.TimeZone != "Asia/Tokyo" || got.DisplayName != "אקמי בע״מ" {
		t.Errorf("got %+v", got)
	}
}

// An API key: without a role, with an end that is past, and shown once.
func TestKeyInABrowser(t *testing.T) {
	f, b := office(t)
	b.Open(f.url + "/console/settings/keys/new")
	b.Fill("Name", "Intranet")
	b.Fill("Ends", "2020-01-31")
	b.Click("Make the key")
	b.See("Please mend this")
	b.Click("Events: report events")
	b.Click("Make the key")
	b.See("Please mend this", "to come")
	b.Fill("Ends", "2031-01-31")
	b.Click("Make the key")
	b.See("The key is made", "pw_acme_")
	b.Click("To the API keys")
	b.See("Intranet")
	b.Gone("pw_acme_")
}

// A messaging configuration: a sender that is none, no server, and a test mail that comes.
func TestMessagingInABrowser(t *testing.T) {
	f, b := office(t)
	b.Open(f.url + "/console/messaging/configurations/new")
	b.Fill("Name", "Mail relay")
	b.Fill("Sender", "it at acme")
	b.Click("Save the configuration")
	b.See("Please mend this", "is not a mail address")
	b.Fill("Sender", "it@acme.example")
	b.Click("Save the configuration")
	b.See("Please mend this", "Server")
	b.Fill("Server", "mail.acme.example")
	b.Click("Save the configuration")
	b.See("The configuration is saved. Send a test mail now")
	b.Open(f.url + "/console/messaging/configurations/outbox")
	b.Fill("To this address", "ada@acme.example")
	b.Click("Send the test mail")
	b.See("ada@acme.example")
	if f.lastMail("ada@acme.example") == "" {
		t.Error("no test mail")
	}
}

// A webhook: without TLS, with a name of nothing, and its secret shown once.
func TestWebhookInABrowser(t *testing.T) {
	f, b := office(t)
	b.Open(f.url + "/console/rules/webhooks/new")
	b.Fill("Name", "  ")
	b.Fill("Address", "http://door.acme.example/hook")
	b.Click("Make the webhook and show its secret")
	b.See("Please mend this", "https")
	b.Fill("Name", "Door")
	b.Fill("Address", "https://door.acme.example/hook")
	b.Click("Make the webhook and show its secret")
	b.See("whsec_")
	b.Click("I have copied it")
	b.See("Send a test")
	b.Gone("whsec_")
}
