package softcard_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pinward/pinward/infra/softcard"
)

// program is one that uses a reader over HTTP.
type program struct {
	t *testing.T
	h http.Handler
}

func (p program) ask(method, path, body string) (int, map[string]string) {
	p.t.Helper()
	return p.within(p.t.Context(), method, path, body)
}

func (p program) within(ctx context.Context, method, path, body string) (int, map[string]string) {
	p.t.Helper()
	w := httptest.NewRecorder()
	p.h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, method, "/reader"+path, strings.NewReader(body)))
	var answer map[string]string
	if b := w.Body.Bytes(); len(b) > 0 {
		if err := json.Unmarshal(b, &answer); err != nil || w.Header().Get("Content-Type") != "application/json" {
			p.t.Errorf("%s %s: %v, %s", method, path, err, b)
		}
	}
	return w.Code, answer
}

func (p program) insertion() string {
	p.t.Helper()
	_, answer := p.ask("GET", "", "")
	return answer["insertion"]
}

func (p program) open() (int, string) {
	p.t.Helper()
	return p.openCard(p.insertion())
}

func (p program) openCard(insertion string) (int, string) {
	p.t.Helper()
	code, answer := p.ask("POST", "/sessions", fmt.Sprintf(`{"insertion":%q}`, insertion))
	if code != http.StatusCreated {
		return code, answer["error"]
	}
	return code, "/sessions/" + answer["session"]
}

func (p program) mustOpen() string {
	p.t.Helper()
	code, session := p.open()
	if code != http.StatusCreated {
		p.t.Fatalf("%d, %s", code, session)
	}
	return session
}

// send wants an answer that ends so, or that error.
func (p program) send(session, command string, code int, want string) {
	p.t.Helper()
	got, answer := p.ask("POST", session, fmt.Sprintf(`{"apdu":%q}`, command))
	if text := answer["answer"] + answer["error"]; got != code || !strings.HasSuffix(text, want) || want == "" && text != "" {
		p.t.Errorf("%s: %d, %v; want %d, %s", command, got, answer, code, want)
	}
}

func (p program) end(session, query string, want int) {
	p.t.Helper()
	if code, _ := p.ask("DELETE", session+query, ""); code != want {
		p.t.Errorf("DELETE answered %d, want %d", code, want)
	}
}

func serve(t *testing.T, test func(*testing.T, program, *softcard.Reader)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		reader := softcard.NewReader()
		test(t, program{t, http.StripPrefix("/reader", softcard.Handler(reader))}, reader)
	})
}

func TestHTTPInsertions(t *testing.T) {
	serve(t, func(t *testing.T, p program, reader *softcard.Reader) {
		if code, answer := p.ask("GET", "", ""); code != 200 || answer["insertion"] != "" || answer["atr"] != "" || len(answer) != 2 {
			t.Errorf("without a card: %d, %v", code, answer)
		}
		first := piv(t)
		seen := map[string]bool{"": true}
		for _, card := range []*softcard.Card{first, newCard(t, softcard.Config{Profile: softcard.CanoKey, Rand: zeros{}}), first} {
			reader.Insert(card)
			_, answer := p.ask("GET", "/", "")
			if answer["atr"] != fmt.Sprintf("%x", card.ATR()) || seen[answer["insertion"]] {
				t.Errorf("%v", answer)
			}
			seen[answer["insertion"]] = true
		}
		other := program{t, http.StripPrefix("/reader", softcard.Handler(reader))}
		if seen[other.insertion()] {
			t.Error("another process tells the same insertion")
		}

		// A poll ends when there is something to tell, or in time.
		last := p.insertion()
		for _, test := range []struct {
			after string
			takes time.Duration
			do    func()
		}{
			{"", 0, func() {}},
			{"elsewhere-1", 0, func() {}},
			{last, 25 * time.Second, func() {}},
			{last, 3 * time.Second, func() { time.Sleep(3 * time.Second); reader.Remove() }},
			{"", 3 * time.Second, func() { time.Sleep(3 * time.Second); reader.Insert(first) }},
		} {
			start := time.Now()
			go test.do()
			_, answer := p.ask("GET", "?after="+test.after, "")
			if took := time.Since(start); took != test.takes || test.takes != 25*time.Second && answer["insertion"] == test.after {
				t.Errorf("after %q: %v in %v, want %v", test.after, answer, took, test.takes)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		p.within(ctx, "GET", "?after="+p.insertion(), "")
		if took := time.Since(start); took != time.Second {
			t.Errorf("a program that is gone is served for %v", took)
		}
	})
}

func TestHTTPSession(t *testing.T) {
	serve(t, func(t *testing.T, p program, reader *softcard.Reader) {
		card := piv(t)
		reader.Insert(card)
		session := p.mustOpen()
		p.send(session, selectPIV, 200, "9000")
		p.send(session, strings.ToLower(verify), 200, "9000")
		p.end(session, "?reset=false", 204)
		p.send(session, verify, 404, "no such session")
		p.end(session, "", 404)
		if !card.Inspect().PINVerified {
			t.Error("the card was reset")
		}
		session = p.mustOpen()
		p.send(session, tries, 200, "9000")
		p.end(session, "?reset=true", 204)
		if card.Inspect().PINVerified {
			t.Error("the card was not reset")
		}

		session = p.mustOpen()
		before := card.Inspect().Commands
		for _, test := range []struct{ path, body string }{
			{session, `{"apdu":"xx"}`},
			{session, `{"apdu":""}`},
			{session, ``},
			{session, `{"apdu":"` + strings.Repeat("00", 1<<17) + `"}`},
			{session + "/more", `{"apdu":"00A40400"}`},
			{"/sessions/none", `{"apdu":"00A40400"}`},
			{"/sessions", `{"insertion":1}`},
			{"/sessions", `{"insertion":""}`},
			{"/sessions", `{"insertion":"elsewhere-1"}`},
		} {
			if code, answer := p.ask("POST", test.path, test.body); code < 400 || code > 499 || answer["error"] == "" {
				t.Errorf("%.80s %.80s: %d, %v", test.path, test.body, code, answer)
			}
		}
		if code, answer := p.ask("PUT", "", ""); code != 404 || answer["error"] == "" {
			t.Errorf("PUT: %d, %v", code, answer)
		}
		p.end(session, "?reset=perhaps", 400)
		if got := card.Inspect().Commands; got != before {
			t.Errorf("the card got %d commands", got-before)
		}
		p.send(session, selectPIV, 200, "9000")
	})
}

// TestHTTPTurn: a session holds the card alone, and a program that was killed does not
// for long.
func TestHTTPTurn(t *testing.T) {
	serve(t, func(t *testing.T, p program, reader *softcard.Reader) {
		card := piv(t)
		reader.Insert(card)
		killed := p.mustOpen()
		p.send(killed, selectPIV, 200, "9000")
		time.Sleep(3 * time.Second)
		p.send(killed, verify, 200, "9000")
		start := time.Now()
		session := p.mustOpen()
		if took := time.Since(start); took != 4*time.Second || card.Inspect().Selected {
			t.Errorf("the turn came after %v, want 4s; selected: %t", took, card.Inspect().Selected)
		}
		p.send(killed, verify, 410, "held")
		p.send(killed, verify, 410, "held")
		p.end(killed, "", 204)

		// One that goes on has it for longer than others wait.
		stop := make(chan struct{})
		go func() {
			for range 12 {
				p.send(session, selectPIV, 200, "9000")
				time.Sleep(time.Second)
			}
			close(stop)
		}()
		start = time.Now()
		if code, why := p.open(); code != 409 || why != "busy" || time.Since(start) != 10*time.Second {
			t.Errorf("%d, %s after %v", code, why, time.Since(start))
		}
		<-stop
		go func() { time.Sleep(time.Second); reader.Remove() }()
		start = time.Now()
		if code, why := p.open(); code != 410 || why != "removed" || time.Since(start) != time.Second {
			t.Errorf("taken out while another waits: %d, %s after %v", code, why, time.Since(start))
		}
		p.send(session, verify, 410, "removed")
		if code, why := p.open(); code != 410 || why != "removed" {
			t.Errorf("without a card: %d, %s", code, why)
		}
	})
}

func TestHTTPDisturbed(t *testing.T) {
	serve(t, func(t *testing.T, p program, reader *softcard.Reader) {
		first, second := piv(t), piv(t)
		reader.Insert(first)
		old := p.insertion()
		session := p.mustOpen()
		p.send(session, selectPIV, 200, "9000")
		reader.Insert(second)
		p.send(session, verify, 410, "removed")
		p.send(session, verify, 410, "removed")
		if code, _ := p.openCard(old); code != 410 {
			t.Errorf("the card that is out is opened: %d", code)
		}
		if n := second.Inspect().Commands; n != 0 {
			t.Errorf("the other card got %d commands", n)
		}

		session = p.mustOpen()
		rival, err := reader.Connect()
		if err != nil {
			t.Fatal(err)
		}
		p.send(session, selectPIV, 200, "9000")
		_ = rival.Reset()
		p.send(session, verify, 410, "reset")

		session = p.mustOpen()
		second.Inject(softcard.Fault{Step: 2, Kind: softcard.Empty}, softcard.Fault{Step: 3, Kind: softcard.Lose})
		p.send(session, selectPIV, 200, "9000")
		p.send(session, tries, 200, "")
		p.send(session, verify, 410, "silent")
		p.send(session, tries, 410, "silent")

		second.Inject(softcard.Fault{Step: 2, Delay: time.Minute})
		session = p.mustOpen()
		p.send(session, selectPIV, 200, "9000")
		start := time.Now()
		p.send(session, verify, 410, "silent")
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("silent after %v", took)
		}
		if code, _ := p.open(); code != 409 {
			t.Errorf("opened while the card is silent: %d", code)
		}
		time.Sleep(time.Minute)
		session = p.mustOpen()
		if second.Inspect().PINVerified {
			t.Error("what the silent card did in the end stays verified")
		}

		// Two commands at once, and an end in the middle of one.
		second.Inject(softcard.Fault{Step: 1, Delay: 5 * time.Second})
		go p.send(session, selectPIV, 200, "9000")
		synctest.Wait()
		p.send(session, selectPIV, 409, "a command is running")
		p.end(session, "", 204)
		start = time.Now()
		session = p.mustOpen()
		if took := time.Since(start); took != 5*time.Second || second.Inspect().Selected {
			t.Errorf("let go after %v, selected: %t", took, second.Inspect().Selected)
		}
		second.Inject(softcard.Fault{Step: 1, Kind: softcard.Pull})
		p.send(session, selectPIV, 410, "removed")
		if p.insertion() != "" {
			t.Error("the card that was pulled is told")
		}
	})
}

// TestHTTPManySessions: those that are over are forgotten, the last ones later.
func TestHTTPManySessions(t *testing.T) {
	serve(t, func(t *testing.T, p program, reader *softcard.Reader) {
		reader.Insert(piv(t))
		var sessions []string
		for range 100 {
			sessions = append(sessions, p.mustOpen())
			time.Sleep(5 * time.Second)
		}
		p.send(sessions[0], selectPIV, 404, "no such session")
		p.send(sessions[99], selectPIV, 410, "held")
	})
}
