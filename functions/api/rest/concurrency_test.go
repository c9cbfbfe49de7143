package rest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
)

// TestIfMatch: a change is made to what was read, or not at all.
func TestIfMatch(t *testing.T) {
	f := newFixture(t)
	template := f.call("POST", "/v1/mail-templates", f.key, mailTemplate).want(201).text("id")
	f.call("PUT", "/v1/mail-templates/"+template, f.key, mailTemplate).want(200) // version 2, so that there is an older one
	for _, c := range []struct {
		name, method, path string
		body               func(name string) object
	}{
		{"settings", "PUT", "/v1/settings", func(name string) object {
			return object{"displayName": name, "timeZone": "UTC", "language": "en", "pinOnlyLogin": false, "expiryMail": object{}}
		}},
		{"policy", "PUT", "/v1/policy", func(name string) object { return object{"blocklistEntries": []string{name}} }},
		{"user", "PATCH", "/v1/users/" + f.user(f.key, ""), func(name string) object { return object{"displayName": name} }},
		{"messaging", "PUT", "/v1/messaging/" + f.outboxConfiguration(f.key), func(name string) object {
			return object{"name": name, "kind": "outbox", "from": "it@acme.example"}
		}},
		{"template", "PUT", "/v1/mail-templates/" + template, func(name string) object {
			return object{"name": name, "subject": "x", "text": "y"}
		}},
		{"predefined template", "PUT", "/v1/mail-templates/pin-expiry", func(name string) object {
			return object{"name": name, "subject": "x", "text": "y"}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := *f
			f.TB = t
			get := func() answer { return f.call("GET", c.path, f.key, nil).want(200) }
			put := func(name, ifMatch string) answer {
				return f.call(c.method, c.path, f.key, c.body(name), "If-Match", ifMatch)
			}
			old := get().header.Get("ETag")
			if !regexp.MustCompile(`^"\d+"$`).MatchString(old) {
				t.Fatalf("ETag is %s, want a quoted version", old)
			}
			first := put("first", old).want(200)
			etag := get().header.Get("ETag")
			if got := first.header.Get("ETag"); got != etag || etag == old {
				t.Errorf("the change was answered with ETag %s, GET says %s after %s", got, etag, old)
			}
			for _, bad := range []string{old, `"999"`, `1`, `"x"`, `W/` + etag} {
				a := put("second", bad)
				if p := a.problem(); a.status != 412 || p.Type != "urn:pinward:problem:changed-meanwhile" {
					t.Errorf("If-Match %s while it is %s: got %d %s, want 412", bad, etag, a.status, a.body)
				}
			}
			if got := get(); !strings.Contains(string(got.body), "first") || got.header.Get("ETag") != etag {
				t.Errorf("refused changes left %s %s", got.header.Get("ETag"), got.body)
			}
			put("third", "*").want(200)
			etag = get().header.Get("ETag")

			var wg sync.WaitGroup
			var racers [4]answer
			var errs [4]error
			for i := range racers {
				wg.Go(func() {
					racers[i], errs[i] = f.try(c.method, c.path, f.key, c.body(fmt.Sprintf("racer%d", i)), "If-Match", etag)
				})
			}
			wg.Wait()
			f.must(errors.Join(errs[:]...))
			won := -1
			for i, a := range racers {
				switch {
				case a.status == 200 && won < 0:
					won = i
				case a.status != 412 && a.status != 409:
					t.Errorf("racer %d of one ETag: got %d %s; racer %d had won", i, a.status, a.body, won)
				}
			}
			if won < 0 || !strings.Contains(string(get().body), fmt.Sprintf("racer%d", won)) {
				t.Errorf("racer %d won, but there is %s", won, get().body)
			}
		})
	}
}

func TestIdempotency(t *testing.T) {
	f := newFixture(t)
	body := object{"username": "repeated-person", "pin": f.pin()}
	first := f.call("POST", "/v1/users", f.key, body, "Idempotency-Key", "one").want(201)
	f.clock.advance(23 * time.Hour)
	second := f.call("POST", "/v1/users", f.key, body, "Idempotency-Key", "one").want(201)
	if !bytes.Equal(first.body, second.body) || first.header.Get("Location") != second.header.Get("Location") || first.header.Get("ETag") != second.header.Get("ETag") {
		t.Errorf("the repeated answer is %v %s, the first was %v %s", second.header, second.body, first.header, first.body)
	}
	if first.header.Get("Idempotency-Replayed") != "" || second.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("Idempotency-Replayed is %q and %q, want none and true", first.header.Get("Idempotency-Replayed"), second.header.Get("Idempotency-Replayed"))
	}
	if first.header.Get("X-Request-Id") == second.header.Get("X-Request-Id") {
		t.Error("two requests have one id")
	}

	for name, other := range map[string]func() answer{
		"another body": func() answer {
			return f.call("POST", "/v1/users", f.key, object{"username": "another-person"}, "Idempotency-Key", "one")
		},
		"another path": func() answer { return f.call("POST", "/v1/keys", f.key, body, "Idempotency-Key", "one") },
	} {
		if p := other().want(422).problem(); !strings.Contains(p.Detail, "another request") {
			t.Errorf("%s: got %q, want that the key was used", name, p.Detail)
		}
	}
	// Another caller's key of that name is another one.
	f.call("POST", "/v1/users", f.keyOf("operator"), object{"username": "the-operators-person"}, "Idempotency-Key", "one").want(201)
	f.call("POST", "/v1/users", f.tenant("other"), body, "Idempotency-Key", "one").want(201)

	refused := f.call("POST", "/v1/users", f.key, body, "Idempotency-Key", "two").want(422)
	again := f.call("POST", "/v1/users", f.key, body, "Idempotency-Key", "two").want(422)
	if !bytes.Equal(refused.body, again.body) || again.header.Get("Idempotency-Replayed") != "true" || again.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("a refusal is repeated as %v %s, was %s", again.header, again.body, refused.body)
	}
	if a := f.call("POST", "/v1/users", f.key, body, "Idempotency-Key", strings.Repeat("k", 201)).want(400); !strings.Contains(a.problem().Detail, "200") {
		t.Errorf("a long Idempotency-Key is answered %s", a.body)
	}

	tenant := object{"id": "repeated", "displayName": "Repeated", "timeZone": "UTC", "language": "en"}
	made := f.call("POST", "/v1/tenants", f.platform, tenant, "Idempotency-Key", "one").want(201)
	if a := f.call("POST", "/v1/tenants", f.platform, tenant, "Idempotency-Key", "one").want(201); !bytes.Equal(a.body, made.body) {
		t.Error("a tenant made twice has two keys")
	}

	// Only POST is kept, and no guess.
	user := f.user(f.key, "")
	f.call("PATCH", "/v1/users/"+user, f.key, object{"displayName": "A"}, "Idempotency-Key", "three").want(200)
	f.call("PATCH", "/v1/users/"+user, f.key, object{"displayName": "B"}, "Idempotency-Key", "three").want(200)
	for left := range 3 {
		a := f.call("POST", "/v1/pins/verify", f.key, object{"userId": user, "pin": "k7Q2wxWrong"}, "Idempotency-Key", "four").want(200)
		if want := fmt.Sprintf(`"triesLeft":%d`, 4-left); !strings.Contains(string(a.body), want) || a.header.Get("Idempotency-Replayed") != "" {
			t.Errorf("guess %d: got %s, want a new answer with %s", left+1, a.body, want)
		}
	}

	// A day later the key is as new.
	f.clock.advance(time.Hour)
	f.call("POST", "/v1/users", f.key, object{"username": "person-of-the-next-day"}, "Idempotency-Key", "one").want(201)
}

// TestIdempotencyAfterFailure: what failed on our side can be repeated.
func TestIdempotencyAfterFailure(t *testing.T) {
	f := newFixture(t)
	f.call("GET", "/v1/caller", f.key, nil).want(200) // the key's use is recorded
	body := object{"username": "unlucky-person"}
	for _, c := range []struct {
		err    error
		status int
	}{
		{fmt.Errorf("the disk is gone: %w", problem.ErrUnavailable), 503},
		{errors.New("the disk is on fire"), 500},
	} {
		f.table.breakWith(func(ops []table.Op) error {
			if len(ops) > 1 { // the user's, not the key's
				return c.err
			}
			return nil
		})
		a := f.call("POST", "/v1/users", f.key, body, "Idempotency-Key", "one").want(c.status)
		if strings.Contains(string(a.body), "disk") {
			t.Errorf("%d tells why: %s", c.status, a.body)
		}
		if log := canary.log.String(); !strings.Contains(log, c.err.Error()) || !strings.Contains(log[strings.Index(log, c.err.Error())-500:], a.problem().RequestID) {
			t.Errorf("the log does not tell why with the request's id: %v", c.err)
		}
	}
	f.table.breakWith(nil)
	a := f.call("POST", "/v1/users", f.key, body, "Idempotency-Key", "one").want(201)
	if a.header.Get("Idempotency-Replayed") != "" {
		t.Error("a failure was kept")
	}

	// An answer that could not be kept is an answer all the same; the key is
	// taken until the request counts as lost.
	writes := 0
	f.table.breakWith(func([]table.Op) error {
		if writes++; writes == 3 {
			return problem.ErrUnavailable
		}
		return nil
	})
	body = object{"username": "person-not-kept"}
	f.call("POST", "/v1/users", f.key, body, "Idempotency-Key", "two").want(201)
	f.table.breakWith(nil)
	f.call("POST", "/v1/users", f.key, body, "Idempotency-Key", "two").want(409)
	f.clock.advance(time.Minute)
	f.call("POST", "/v1/users", f.key, body, "Idempotency-Key", "two").want(422) // the username is taken: there is no second user
}

// TestGeneratedPINRepeated: a generated PIN whose answer was lost can be asked
// for again, and is not in the table for that.
func TestGeneratedPINRepeated(t *testing.T) {
	f := newFixture(t)
	path := "/v1/users/" + f.user(f.key, "") + "/pin/generate"
	body := object{"length": 12}
	first := f.call("POST", path, f.key, body, "Idempotency-Key", "print-1").want(201)
	second := f.call("POST", path, f.key, body, "Idempotency-Key", "print-1").want(201)
	pin := first.text("pin")
	if got := second.text("pin"); got != pin {
		t.Error("the repeated answer has another PIN")
	}
	for _, a := range []answer{first, second} {
		if a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("Cache-Control is %q, want no-store", a.header.Get("Cache-Control"))
		}
	}
	key := f.call("POST", "/v1/keys", f.key, object{"name": "spare", "role": "kiosk"}, "Idempotency-Key", "key").want(201).text("apiKey")

	file, err := os.ReadFile(f.file)
	f.must(err)
	secret := key[strings.LastIndex(key, "_")+1:]
	for name, value := range map[string]string{"PIN": pin, "API key's secret": secret} {
		if contains(file, value, 4) {
			t.Errorf("the table file holds the %s", name)
		}
		// What is looked for would be found in an answer kept as it is.
		kept, err := json.Marshal(object{"answer": []byte(`{"body":"` + base64.StdEncoding.EncodeToString([]byte(value)) + `"}`)})
		f.must(err)
		if !contains(append(file, kept...), value, 4) {
			t.Errorf("the %s would not be found", name)
		}
	}
}

var encoded = regexp.MustCompile(`[A-Za-z0-9+/]{16,}={0,2}`)

// contains tells whether the data holds the text, as it is or in base64 so many
// times over.
func contains(data []byte, text string, depth int) bool {
	if bytes.Contains(data, []byte(text)) {
		return true
	}
	if depth == 0 {
		return false
	}
	for _, run := range encoded.FindAll(data, -1) {
		inner := make([]byte, base64.StdEncoding.DecodedLen(len(run)))
		n, _ := base64.StdEncoding.Decode(inner, run)
		if n > 0 && contains(inner[:n], text, depth-1) {
			return true
		}
	}
	return false
}

// TestConcurrentDuplicates: however many send one request at the same time, it
// is carried out once.
func TestConcurrentDuplicates(t *testing.T) {
	f := newFixture(t)
	user := f.user(f.key, "")
	var wg sync.WaitGroup
	var answers [12]answer
	var errs [12]error
	for i := range answers {
		wg.Go(func() {
			answers[i], errs[i] = f.try("POST", "/v1/users/"+user+"/pin/generate", f.key, object{"length": 12}, "Idempotency-Key", "one")
		})
	}
	wg.Wait()
	f.must(errors.Join(errs[:]...))
	pins := map[string]bool{}
	for _, a := range answers {
		switch a.status {
		case 201:
			pins[a.text("pin")] = true
		case 409:
		default:
			t.Errorf("got %d %s, want 201 or 409", a.status, a.body)
		}
	}
	if len(pins) != 1 {
		t.Errorf("%d PINs were generated, want 1", len(pins))
	}
	audit := f.call("GET", "/v1/audit?subject=user/"+user, f.key, nil).want(200)
	if n := strings.Count(string(audit.body), `"pin.generated"`); n != 1 {
		t.Errorf("the audit log tells of %d generated PINs, want 1", n)
	}
}
