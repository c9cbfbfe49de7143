package reader

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Remote is a reader in software that another program serves over HTTP:
//
//	GET    url                        {"insertion":"...","atr":"hex"}; no card: insertion ""
//	GET    url?after=insertion        the same, once it is another, or after 25 s
//	POST   url/sessions               {"insertion":"..."}: 201 {"session":"id"} when it is its
//	                                  turn; 409 not within 10 s; 410 another card, or none
//	POST   url/sessions/id            {"apdu":"hex"}: 200 {"answer":"hex"}; 410 {"error":"..."}:
//	                                  removed, reset, held or silent
//	DELETE url/sessions/id?reset=true 204: the card is let go, and reset on demand
type Remote struct {
	url    string
	client *http.Client
	limits Limits
	slots  *slots
}

// NewRemote returns the reader that is served at a URL. Nothing is asked of it before Watch.
func NewRemote(url string, client *http.Client, limits Limits) *Remote {
	return &Remote{url: url, client: client, limits: limits, slots: newSlots()}
}

// remoteName is the reader's name.
const remoteName = "Software card"

// remoteAnswer is how long an answer may take: what the server waits by itself, and a margin.
const remoteAnswer = 35 * time.Second

type remoteCard struct {
	Insertion string `json:"insertion"`
	ATR       string `json:"atr"`
}

// Watch implements Source.
func (r *Remote) Watch(ctx context.Context) <-chan Event {
	return r.slots.watch(ctx, func(tell func(...Event) bool) {
		pause := firstRemotePause
		var last Kind
		for {
			began := time.Now()
			err := r.follow(ctx, &last, tell)
			if ctx.Err() != nil {
				return
			}
			if time.Since(began) > lastRemotePause {
				pause = firstRemotePause
			}
			if last == ServiceUp {
				if !tell(append(r.slots.see(remoteName, nil, nil, false), Event{Kind: ReaderRemoved, Reader: remoteName})...) {
					return
				}
			}
			if last != ServiceDown {
				last = ServiceDown
				if !tell(Event{Kind: ServiceDown, Err: err}) {
					return
				}
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			pause = min(2*pause, lastRemotePause)
		}
	})
}

const firstRemotePause, lastRemotePause = 100 * time.Millisecond, 5 * time.Second

// follow tells what happens until the server does not answer.
func (r *Remote) follow(ctx context.Context, last *Kind, tell func(...Event) bool) error {
	address := r.url
	for {
		c, err := r.poll(ctx, address)
		switch {
		case errors.Is(err, errLook):
			address = r.url // at once, for a slot has changed
			continue
		case err != nil:
			return err
		}
		if *last != ServiceUp {
			*last = ServiceUp
			if !tell(Event{Kind: ServiceUp}, Event{Kind: ReaderAdded, Reader: remoteName}) {
				return nil
			}
		}
		var card any
		var atr []byte
		if c.Insertion != "" {
			card = c.Insertion
			if atr, err = hex.DecodeString(c.ATR); err != nil {
				return fmt.Errorf("%w (the ATR is not hex)", ErrNoService)
			}
		}
		if !tell(r.slots.see(remoteName, card, atr, false)...) {
			return nil
		}
		address = r.url + "?" + url.Values{"after": {c.Insertion}}.Encode()
	}
}

var errLook = errors.New("look again")

// poll asks what card there is. errLook: a slot has changed meanwhile.
func (r *Remote) poll(ctx context.Context, address string) (remoteCard, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	over, woken := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(woken)
		select {
		case <-r.slots.wake:
			cancel(errLook)
		case <-over:
		}
	}()
	var c remoteCard
	_, err := r.call(ctx, http.MethodGet, address, nil, &c)
	close(over)
	<-woken
	if context.Cause(ctx) == errLook {
		return c, errLook
	}
	return c, err
}

// Open implements Source.
func (r *Remote) Open(ctx context.Context, reader string, insertion int64) (*Session, error) {
	return r.slots.open(ctx, r.limits, reader, insertion, func(card any) (link, error) {
		body, err := json.Marshal(map[string]any{"insertion": card})
		if err != nil {
			return nil, err
		}
		var opened struct {
			Session string `json:"session"`
		}
		switch status, err := r.call(context.Background(), http.MethodPost, r.url+"/sessions", body, &opened); {
		case status == http.StatusConflict:
			return nil, ErrBusy
		case status == http.StatusGone:
			return nil, ErrRemoved
		case err != nil:
			return nil, err
		}
		return &remoteLink{r, r.url + "/sessions/" + url.PathEscape(opened.Session)}, nil
	})
}

type remoteLink struct {
	*Remote
	address string
}

func (l *remoteLink) transmit(command []byte) ([]byte, error) {
	const head, tail = `{"apdu":"`, `"}`
	body := append(hex.AppendEncode(append(make([]byte, 0, len(head)+2*len(command)+len(tail)), head...), command), tail...)
	defer clear(body)
	var said struct {
		Answer string `json:"answer"`
		Error  string `json:"error"`
	}
	status, err := l.call(context.Background(), http.MethodPost, l.address, body, &said)
	if status == http.StatusGone {
		switch said.Error {
		case "reset":
			return nil, ErrReset
		case "held":
			return nil, ErrHeld
		case "silent":
			return nil, ErrSilent
		}
		return nil, ErrRemoved
	}
	if err != nil {
		return nil, err
	}
	answer, err := hex.DecodeString(said.Answer)
	if err != nil {
		return nil, errors.New("transmit: the answer is not hex")
	}
	return answer, nil
}

func (l *remoteLink) close(reset bool) {
	_, _ = l.call(context.Background(), http.MethodDelete, fmt.Sprintf("%s?reset=%t", l.address, reset), nil, nil)
}

// call makes a request and returns the status of the answer, 0 if there is none. A status
// that does not tell success is ErrNoService, as is no answer; the answer is read if it is
// JSON.
func (r *Remote) call(ctx context.Context, method, address string, body []byte, answer any) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, remoteAnswer)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return 0, fmt.Errorf("%w (%w)", ErrNoService, err)
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("%w (%w)", ErrNoService, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 256<<10))
	if err == nil && answer != nil && len(b) > 0 {
		err = json.Unmarshal(b, answer)
	}
	switch {
	case resp.StatusCode/100 != 2:
		return resp.StatusCode, fmt.Errorf("%w (%s answers %s)", ErrNoService, address, resp.Status)
	case err != nil:
		return resp.StatusCode, fmt.Errorf("%w (%w)", ErrNoService, err)
	}
	return resp.StatusCode, nil
}
