package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/bridge/agent"
	"github.com/pinward/pinward/bridge/enrolment"
	"github.com/pinward/pinward/bridge/journal"
	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/user"
)

// demoCard is a card in software in a reader in software, for who has neither: blocked,
// registered to somebody of the tenant demo, and in reach of any bridge on this machine.
type demoCard struct {
	reader *softcard.Reader
	card   *softcard.Card
	fresh  bool // it was made just now
	id     string
}

// readerPath is where programs reach the reader.
const readerPath = "/_local/card/reader"

func openCard(data string) (*demoCard, error) {
	path := filepath.Join(data, "card.json")
	_, err := os.Stat(path)
	d := &demoCard{reader: softcard.NewReader(), fresh: errors.Is(err, os.ErrNotExist)}
	if d.card, err = softcard.OpenFile(path, softcard.Config{Profile: softcard.PivApplet, Blocked: true, Rand: rand.Reader}); err != nil {
		return nil, err
	}
	d.reader.Insert(d.card)
	return d, nil
}

// register makes the card known to the tenant demo: a template, a holder, and the PUK that
// it came with.
func (d *demoCard) register(ctx context.Context, system *wiring.System) error {
	core, err := system.Tenants.Load(ctx, demo)
	if err != nil {
		return err
	}
	identity, err := d.identify(ctx)
	if err != nil {
		return err
	}
	if d.id, err = credential.IDOf(identity.Family, identity.ID); err != nil || !d.fresh {
		return err
	}
	by := audit.Actor{Kind: audit.System, ID: "local"}
	holder, err := system.Users.Create(ctx, core, by, user.Profile{Username: "grace", DisplayName: "Grace Hopper", Mail: "grace@example.org"}, nil)
	if errors.As(err, new(*problem.InvalidError)) { // there is a grace already
		holder, err = system.Users.ByUsername(ctx, demo, "grace")
	}
	if err != nil {
		return err
	}
	made, err := system.Credentials.CreateTemplate(ctx, core, by, credential.Template{
		Name: "Staff card", Family: card.PIV.Name, Policy: card.PIV.Policy(), Channels: credential.Channels(), Messaging: "outbox", PINValidDays: 365,
	}, nil)
	if err != nil {
		return err
	}
	puk := secret.New(softcard.FactoryPUK)
	_, err = system.Credentials.Register(ctx, core, by, credential.New{
		Family: identity.Family, CardID: identity.ID, Template: made.ID, Holder: holder.ID, Label: "Grace's staff card", PUK: &puk,
	})
	if errors.Is(err, problem.ErrConflict) {
		return nil
	}
	return err
}

// identify asks the card what it is, as a bridge does.
func (d *demoCard) identify(ctx context.Context) (card.Identity, error) {
	connection, err := d.reader.Connect()
	if err != nil {
		return card.Identity{}, err
	}
	state := card.Identify(false)
	for !state.Finished() {
		script, err := state.Script(card.Materials{})
		if err != nil {
			return card.Identity{}, err
		}
		result := apdu.Run(ctx, apdu.Script{Operation: "local", Part: 1, Deadline: time.Now().Add(time.Minute), Steps: script.Steps}, nil,
			func(_ context.Context, command []byte) ([]byte, error) { return connection.Transmit(command) })
		if state, err = state.Next(result); err != nil {
			return card.Identity{}, err
		}
	}
	if state.Leg != card.Done {
		return card.Identity{}, state.Failure
	}
	return state.Identity, nil
}

// bridge runs a bridge over the card's reader until ctx is done, as `bridge run` does in a
// process of its own. It enrols it if that was not done yet.
func (d *demoCard) bridge(ctx context.Context, system *wiring.System, dir, url string) error {
	enrolled, err := enrolment.Load(dir)
	if err == nil {
		if _, err = system.Tenants.Bridge(ctx, demo, enrolled.Bridge); errors.Is(err, problem.ErrNotFound) {
			err = enrolment.ErrNotEnrolled // another table's
		}
	}
	if errors.Is(err, enrolment.ErrNotEnrolled) {
		enrolled, err = enrol(ctx, system, dir, url)
	}
	if err != nil {
		return err
	}
	enrolled.Relay = "ws" + url[len("http"):] + relayPath // the address may be another today
	disk, err := journal.Open(enrolled.Journal(dir), ulid.Make().String(), time.Now())
	if err != nil {
		return err
	}
	defer disk.Close()
	a, err := agent.New(agent.Config{
		Session: relay.Service, Enrolment: enrolled, Journal: journal.New(disk),
		Source:  reader.NewRemote(url+readerPath, &http.Client{}, reader.DefaultLimits),
		Program: "local", System: runtime.GOOS + "/" + runtime.GOARCH,
		Log: system.Log, Now: time.Now, Rand: rand.Reader,
	})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

func enrol(ctx context.Context, system *wiring.System, dir, url string) (*enrolment.Enrolment, error) {
	core, err := system.Tenants.Load(ctx, demo)
	if err != nil {
		return nil, err
	}
	_, code, err := system.Tenants.Invite(ctx, core, audit.Actor{Kind: audit.System, ID: "local"}, "this machine")
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	enrolled, err := enrolment.Enrol(ctx, &http.Client{}, rand.Reader, time.Now(), enrolment.Request{
		Dir: dir, URL: url, Code: relay.Code{Text: code}, Program: "local", System: runtime.GOOS + "/" + runtime.GOARCH, Host: host, Force: true,
	})
	if err != nil {
		return nil, err
	}
	return enrolled, journal.Create(enrolled.Journal(dir))
}

//go:embed card.html
var cardHTML string

var cardPage = template.Must(template.Must(outboxPage.Clone()).New("card").Parse(cardHTML))

// pages serves the reader to programs, and the card to people.
func (d *demoCard) pages(system *wiring.System) http.Handler {
	mux := http.NewServeMux()
	programs := http.StripPrefix(readerPath, notForPages(softcard.Handler(d.reader)))
	mux.Handle(readerPath, programs)
	mux.Handle(readerPath+"/", programs)
	mux.HandleFunc("GET /_local/card", func(w http.ResponseWriter, r *http.Request) {
		in, _ := d.reader.Card()
		view := struct {
			In         bool
			State      softcard.State
			Credential string
			Known      *credential.Credential
			Taken      string
			Now        time.Time
		}{In: in != nil, State: d.card.Inspect(), Credential: d.id, Taken: r.URL.Query().Get("taken"), Now: system.Now().UTC()}
		if c, err := system.Credentials.Get(r.Context(), demo, d.id); err == nil {
			view.Known = &c
		}
		headers(w, "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
		if err := cardPage.Execute(w, view); err != nil {
			fmt.Fprintln(w, "The page cannot be shown.")
		}
	})
	act := func(path string, do func(*http.Request) string) {
		mux.HandleFunc("POST /_local/card/"+path, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/_local/card"+do(r), http.StatusSeeOther)
		})
	}
	act("remove", func(*http.Request) string { d.reader.Remove(); return "" })
	act("insert", func(*http.Request) string {
		if in, _ := d.reader.Card(); in == nil {
			d.reader.Insert(d.card)
		}
		return ""
	})
	act("block", func(*http.Request) string { d.block(); return "" })
	act("try", func(r *http.Request) string {
		if d.card.PINIs(r.PostFormValue("pin")) {
			return "?taken=right"
		}
		return "?taken=wrong"
	})
	return http.NewCrossOriginProtection().Handler(addressed(mux))
}

// notForPages refuses what a browser sends: no page, of whatever site, has to do with a
// reader.
func notForPages(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
			answer(w, http.StatusForbidden, map[string]any{"error": "the reader is for programs, not for pages"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// block gives wrong PINs until the card has no try left. No policy lets this one through.
// It resets nothing, so that a bridge that is at the card is not disturbed, and begins anew
// when the bridge has reset it.
func (d *demoCard) block() {
	verify := append([]byte{0x00, 0x20, 0x00, 0x80, 0x08}, "00000000"...)
	for range 5 {
		connection, err := d.reader.Connect()
		if err != nil {
			return
		}
		_, err = connection.Transmit([]byte{0x00, 0xA4, 0x04, 0x00, 0x05, 0xA0, 0x00, 0x00, 0x03, 0x08})
		for n := 0; n < 16 && err == nil && d.card.Inspect().PINTries > 0; n++ {
			_, err = connection.Transmit(verify)
		}
		if err == nil {
			return
		}
	}
}
