package softcard

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	pollFor   = 25 * time.Second
	turnFor   = 10 * time.Second // how long others are waited for
	idleFor   = 4 * time.Second  // how long a session may last without a command
	answerFor = 10 * time.Second // how long a card may take

	maxBody = 1 << 18 // an extended APDU in hex is half of that
	// maxEnded is how many sessions that ended by themselves are remembered, to say why.
	maxEnded = 32
)

// Handler serves a reader to programs, on the same machine, that have no other way to
// it. It is at the root of its paths: http.StripPrefix puts it elsewhere. Whoever reaches
// it can use the card, as with any reader. All bodies are JSON.
//
//	GET /                     200 {"insertion": "...", "atr": "3B80..."}
//	GET /?after=INSERTION     the same once the insertion is another, or after 25 s
//	POST /sessions            {"insertion": "..."}   201 {"session": "..."}
//	POST /sessions/SESSION    {"apdu": "00A4..."}    200 {"answer": "...9000"}
//	DELETE /sessions/SESSION  204; with ?reset=true the card is reset
//
// An insertion is another at each insertion, also of another process, and empty without
// a card. One session at a time holds the card; the next waits for its turn for up to
// 10 s, and is then answered 409 busy. 410 says that the card meant is out (removed) or,
// in a session, that it was reset by others, held for 4 s without a command, or gave no
// answer in 10 s (silent): the session is over for good, and 404 once it is forgotten.
// A session that was not ended by DELETE leaves a card that was reset. Errors are
// {"error": "..."}.
func Handler(r *Reader) http.Handler {
	s := &server{reader: r, process: rand.Text(), turn: make(chan struct{}, 1), sessions: map[string]*session{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.look)
	mux.HandleFunc("POST /sessions", s.open)
	mux.HandleFunc("POST /sessions/{session}", s.transmit)
	mux.HandleFunc("DELETE /sessions/{session}", s.close)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fail(w, http.StatusNotFound, "not found") })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if r.URL.Path == "" { // what StripPrefix may leave
			root := *r.URL
			root.Path = "/"
			r.URL = &root
		}
		mux.ServeHTTP(w, r)
	})
}

// Why a session is over.
const (
	removed = "removed"
	reset   = "reset"
	held    = "held"
	silent  = "silent"
	closed  = "closed" // by DELETE
)

type server struct {
	reader  *Reader
	process string
	turn    chan struct{} // holds one element while a session holds the card

	mu       sync.Mutex // guards what follows, and the sessions
	sessions map[string]*session
	ended    []string // the ids of those that are over
}

// session holds the card until it is over, and, if a command is running then, until
// that is answered.
type session struct {
	conn  *Connection
	idle  *time.Timer
	busy  bool // a command is running
	over  string
	reset bool // the card, when it is let go
}

// insertion returns what is in the reader, as it is told.
func (s *server) insertion() (id string, card *Card, changed <-chan struct{}) {
	card, changed, n := s.reader.inside()
	if card != nil {
		id = s.process + "-" + strconv.Itoa(n)
	}
	return id, card, changed
}

func (s *server) look(w http.ResponseWriter, r *http.Request) {
	id, card, changed := s.insertion()
	if query := r.URL.Query(); query.Has("after") {
		late := time.NewTimer(pollFor)
		defer late.Stop()
		for waiting := true; waiting && id == query.Get("after"); id, card, changed = s.insertion() {
			select {
			case <-changed:
			case <-late.C:
				waiting = false
			case <-r.Context().Done():
				return
			}
		}
	}
	var atr []byte
	if card != nil {
		atr = card.ATR()
	}
	answer(w, http.StatusOK, map[string]string{"insertion": id, "atr": hex.EncodeToString(atr)})
}

func (s *server) open(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Insertion string `json:"insertion"`
	}
	if !read(w, r, &asked) {
		return
	}
	id, card, changed := s.insertion()
	if card == nil || id != asked.Insertion {
		fail(w, http.StatusGone, removed)
		return
	}
	late := time.NewTimer(turnFor)
	defer late.Stop()
	select {
	case s.turn <- struct{}{}:
	case <-changed:
		fail(w, http.StatusGone, removed)
		return
	case <-late.C:
		fail(w, http.StatusConflict, "busy")
		return
	case <-r.Context().Done():
		return
	}
	conn, err := s.reader.Connect()
	if err != nil || conn.changed != changed { // another card, meanwhile
		<-s.turn
		fail(w, http.StatusGone, removed)
		return
	}
	name, began := rand.Text(), &session{conn: conn}
	s.mu.Lock()
	s.sessions[name] = began
	began.idle = time.AfterFunc(idleFor, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !began.busy {
			s.end(name, began, held)
		}
	})
	s.mu.Unlock()
	answer(w, http.StatusCreated, map[string]string{"session": name})
}

// end is called with mu held.
func (s *server) end(name string, over *session, why string) {
	if over.over != "" {
		return
	}
	over.idle.Stop()
	over.over = why
	over.reset = over.reset || why == held || why == silent
	if s.ended = append(s.ended, name); len(s.ended) > maxEnded {
		delete(s.sessions, s.ended[0])
		s.ended = slices.Delete(s.ended, 0, 1)
	}
	if !over.busy {
		s.letGo(over)
	}
}

// letGo is called with mu held, once, when the session is over and no command is running.
func (s *server) letGo(over *session) {
	if over.reset {
		_ = over.conn.Reset()
	}
	<-s.turn
}

func (s *server) transmit(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		APDU string `json:"apdu"`
	}
	if !read(w, r, &asked) {
		return
	}
	command, err := hex.DecodeString(asked.APDU)
	if err != nil || len(command) == 0 {
		fail(w, http.StatusBadRequest, "apdu: must be hex")
		return
	}
	name := r.PathValue("session")
	s.mu.Lock()
	session := s.sessions[name]
	switch {
	case session == nil || session.over == closed:
		s.mu.Unlock()
		fail(w, http.StatusNotFound, "no such session")
		return
	case session.over != "":
		s.mu.Unlock()
		fail(w, http.StatusGone, session.over)
		return
	case session.busy:
		s.mu.Unlock()
		fail(w, http.StatusConflict, "a command is running")
		return
	}
	session.busy = true
	session.idle.Stop()
	s.mu.Unlock()

	done := make(chan outcome, 1)
	go func() {
		b, err := session.conn.Transmit(command)
		clear(command)
		s.mu.Lock()
		defer s.mu.Unlock()
		session.busy = false
		done <- outcome{b, err}
		switch why := whyOver(err); {
		case session.over != "":
			s.letGo(session)
		case why != "":
			s.end(name, session, why)
		default:
			session.idle.Reset(idleFor)
		}
	}()
	late := time.NewTimer(answerFor)
	defer late.Stop()
	select {
	case o := <-done:
		if o.err != nil {
			fail(w, http.StatusGone, whyOver(o.err))
			return
		}
		answer(w, http.StatusOK, map[string]string{"answer": hex.EncodeToString(o.answer)})
	case <-late.C:
		s.mu.Lock()
		s.end(name, session, silent)
		s.mu.Unlock()
		fail(w, http.StatusGone, silent)
	case <-r.Context().Done(): // the session goes on, or ends by itself
	}
}

type outcome struct {
	answer []byte
	err    error
}

// whyOver: an answer that is lost never comes.
func whyOver(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, ErrRemoved):
		return removed
	case errors.Is(err, ErrReset):
		return reset
	}
	return silent
}

func (s *server) close(w http.ResponseWriter, r *http.Request) {
	toReset, err := strconv.ParseBool(cmp.Or(r.URL.Query().Get("reset"), "false"))
	if err != nil {
		fail(w, http.StatusBadRequest, "reset: must be true or false")
		return
	}
	name := r.PathValue("session")
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.sessions[name]
	if session == nil || session.over == closed {
		fail(w, http.StatusNotFound, "no such session")
		return
	}
	session.reset = session.reset || toReset || session.busy
	s.end(name, session, closed)
	w.WriteHeader(http.StatusNoContent)
}

// read reads a body, or answers what is wrong with it.
func read(w http.ResponseWriter, r *http.Request, into any) bool {
	err := json.NewDecoder(r.Body).Decode(into)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		fail(w, http.StatusRequestEntityTooLarge, "the body is too large")
	case err != nil:
		fail(w, http.StatusBadRequest, "the body must be a JSON object")
	}
	return err == nil
}

func fail(w http.ResponseWriter, status int, why string) {
	answer(w, status, map[string]string{"error": why})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
