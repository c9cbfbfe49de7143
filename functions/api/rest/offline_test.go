package rest_test

import (
	"strings"
	"testing"
)

// offlineRequest asks for an answer at Windows' own screen for a new GIDS card, whose
// template wants a proof.
func (f *fixture) offlineRequest(key, proof string) object {
	f.Helper()
	template := f.call("POST", "/v1/card-templates", key, object{"name": "Tokens", "family": "GIDS", "channels": []string{"windowsChallengeResponse"},
		"proofs": object{"windowsChallengeResponse": proof}}).want(201).text("id")
	card := f.call("POST", "/v1/credentials", key, object{"family": "GIDS", "cardId": f.cardID(), "template": template, "adminKey": adminKey}).want(201).text("id")
	return object{"credential": card, "channel": "windowsChallengeResponse", "challenge": "BF09E22DE55355F6", "statement": "staff badge"}
}

// offlineAnswer is an answer that was asked for with a key, of a card that another one has
// registered.
func (f *fixture) offlineAnswer(registrar, key, proof string) string {
	f.Helper()
	return f.call("POST", "/v1/offline-answers", key, f.offlineRequest(registrar, proof)).want(201).text("id")
}

// TestOfflineAnswer: the response is shown to who has asked, is kept nowhere on the way, and
// a repeated request is not answered from memory.
func TestOfflineAnswer(t *testing.T) {
	f := newFixture(t)
	helpdesk := f.keyOf("helpdesk")
	request := f.offlineRequest(f.key, "statement")
	request["challenge"] = "bf O9 e2-2d e5 53 55 f6"
	a := f.call("POST", "/v1/offline-answers", helpdesk, request, "Idempotency-Key", "once").want(201)
	if a.header.Get("Cache-Control") != "no-store" || a.text("challenge") != "BF09 E22D E553 55F6" || len(a.text("response")) != 19 ||
		!strings.Contains(a.text("spoken", "de"), ", ") || !strings.HasSuffix(a.header.Get("Location"), a.text("id")) {
		t.Errorf("got %v %s", a.header, a.body)
	}
	canary.secret("response", a.text("response"))
	if p := f.call("POST", "/v1/offline-answers", helpdesk, request, "Idempotency-Key", "once").want(409).problem(); !strings.Contains(p.Detail, "answered already") {
		t.Errorf("asked twice: %+v", p)
	}
	path := "/v1/offline-answers/" + a.text("id")
	shown := f.call("POST", path+"/response", helpdesk, nil).want(200)
	if shown.text("response") != a.text("response") || shown.header.Get("Cache-Control") != "no-store" {
		t.Errorf("shown again: %v %s", shown.header, shown.body)
	}
	f.call("POST", path+"/response", f.key, nil).want(403)
	for _, read := range []string{path, "/v1/offline-answers?credential=" + request["credential"].(string)} {
		if body := string(f.call("GET", read, helpdesk, nil).want(200).body); strings.Contains(body, a.text("response")) || !strings.Contains(body, `"state":"given"`) {
			t.Errorf("%s: %s", read, body)
		}
	}
}

// TestPUKAndHelpdesk: a key of role helpdesk neither learns a PUK nor approves that.
func TestPUKAndHelpdesk(t *testing.T) {
	f := newFixture(t)
	template := f.call("POST", "/v1/card-templates", f.key, object{"name": "Badges", "family": "PIV", "channels": []string{"windowsChallengeResponse"}}).want(201).text("id")
	puk := f.puk()
	card := f.call("POST", "/v1/credentials", f.key, object{"family": "PIV", "cardId": f.cardID(), "template": template, "puk": puk}).want(201).text("id")
	request := object{"credential": card, "channel": "windowsChallengeResponse", "statement": "staff badge", "reason": "no network abroad"}
	helpdesk, operator := f.keyOf("helpdesk"), f.keyOf("operator")
	f.call("POST", "/v1/offline-answers", helpdesk, request).want(403)
	a := f.call("POST", "/v1/offline-answers", operator, request).want(201)
	path := "/v1/offline-answers/" + a.text("id")
	if a.text("state") != "requested" || strings.Contains(string(a.body), "response") {
		t.Errorf("not approved: %s", a.body)
	}
	f.call("POST", path+"/approval", helpdesk, nil).want(403)
	f.call("POST", path+"/approval", operator, nil).want(403)
	f.call("POST", path+"/approval", f.key, nil).want(200)
	given := f.call("POST", path+"/response", operator, nil).want(200)
	canary.secret("PUK in hex", given.text("response"))
	if !strings.Contains(string(given.body), `"isPuk":true`) || len(strings.ReplaceAll(given.text("response"), " ", "")) != 16 {
		t.Errorf("given: %s", given.body)
	}
	if body := string(f.call("GET", "/v1/credentials/"+card, f.key, nil).want(200).body); !strings.Contains(body, "pukDisclosed") {
		t.Errorf("the card is not listed as one whose PUK was told: %s", body)
	}
}
