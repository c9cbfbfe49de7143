package rest_test

import (
	"strings"
	"testing"
	"time"
)

// TestGuesses: the answer to a guess does not tell why it was not right, the
// audit log does.
func TestGuesses(t *testing.T) {
	f := newFixture(t)
	kiosk := f.keyOf("kiosk")
	f.policy(object{"expirationHours": 1, "maxAttempts": 3, "lockMinutes": 10})
	expired := f.user(f.key, f.pin())
	f.clock.advance(time.Hour)
	pin := f.pin()
	right, none := f.user(f.key, pin), f.user(f.key, "")

	guess := func(user, pin string) answer {
		t.Helper()
		return f.call("POST", "/v1/pins/verify", kiosk, object{"userId": user, "pin": pin}).want(200)
	}
	for _, want := range []string{
		`{"verified":false,"triesLeft":2}`,
		`{"verified":false,"triesLeft":1}`,
		`{"verified":false,"triesLeft":0,"lockedUntil":"2030-01-31T10:10:00Z"}`,
		`{"verified":false,"triesLeft":0,"lockedUntil":"2030-01-31T10:10:00Z"}`,
	} {
		for name, user := range map[string]string{"wrong": right, "no PIN": none, "expired": expired, "unknown": "01J8ZC9Q6Y0V4T5W3X2R1N0M9K"} {
			if got := strings.TrimSpace(string(guess(user, "k7Q2wxWrong").body)); got != want {
				t.Errorf("%s: got %s, want %s", name, got, want)
			}
		}
	}
	for user, reasons := range map[string][]string{right: {"wrongPIN", "locked"}, none: {"noPIN", "locked"}, expired: {"expired", "locked"}} {
		audit := string(f.call("GET", "/v1/audit?subject=user/"+user, f.key, nil).want(200).body)
		for _, reason := range reasons {
			if !strings.Contains(audit, `"reason":"`+reason+`"`) {
				t.Errorf("the audit log does not tell %s: %s", reason, audit)
			}
		}
	}
	if got := string(guess(right, pin).body); !strings.Contains(got, `"verified":false`) {
		t.Errorf("the right PIN lets in while it is locked: %s", got)
	}
	f.call("POST", "/v1/users/"+right+"/unlock", f.keyOf("helpdesk"), nil).want(204)
	if got := string(guess(right, pin).body); !strings.Contains(got, `"verified":true`) || !strings.Contains(got, right) {
		t.Errorf("the right PIN does not let in after unlocking: %s", got)
	}
}

// TestPINOnlyLogin: a PIN that finds its user is one user's only, and being
// refused it does not tell whose it is.
func TestPINOnlyLogin(t *testing.T) {
	f := newFixture(t)
	kiosk := f.keyOf("kiosk")
	before := f.pin()
	f.user(f.key, before)
	_, settings := f.request(described{OperationID: "put-settings"}, "")
	f.call("PUT", "/v1/settings", f.key, settings).want(200)

	pin := f.pin()
	owner := f.call("POST", "/v1/users", f.key, object{"username": "owner-of-the-pin", "pin": pin}).want(201).text("id")
	other := f.user(f.key, "")
	identified := func(pin string) string {
		t.Helper()
		return string(f.call("POST", "/v1/pins/identify", kiosk, object{"pin": pin, "terminal": "printer 2"}).want(200).body)
	}
	if got := identified(pin); !strings.Contains(got, owner) {
		t.Errorf("identify says %s, want user %s", got, owner)
	}
	if got := identified(before); !strings.Contains(got, `"verified":false`) {
		t.Errorf("a PIN from before PIN-only login identifies: %s", got)
	}
	for name, a := range map[string]answer{
		"set":    f.call("PUT", "/v1/users/"+other+"/pin", f.key, object{"pin": pin}),
		"self":   f.call("PUT", "/v1/users/"+other+"/pin", f.token(other), object{"pin": pin}),
		"update": f.call("PATCH", "/v1/users/"+other, f.key, object{"pin": pin}),
		"create": f.call("POST", "/v1/users", f.key, object{"username": "too-late", "pin": pin}),
	} {
		p := a.want(422).problem()
		if len(p.Errors) != 1 || p.Errors[0].Code != "unavailable" || strings.Contains(string(a.body), "owner") || strings.Contains(string(a.body), owner) {
			t.Errorf("%s of a taken PIN: got %s, want unavailable and not whose it is", name, a.body)
		}
	}
	f.call("DELETE", "/v1/users/"+owner, f.key, nil).want(204)
	f.call("PUT", "/v1/users/"+other+"/pin", f.key, object{"pin": pin}).want(200)
	if got := identified(pin); !strings.Contains(got, other) {
		t.Errorf("identify says %s, want user %s, whose PIN it is now", got, other)
	}
}
