package tenant_test

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
)

// offered is a link to a window at a bridge.
func (o *office) offered(core tenant.Core, bridge string, kiosk bool) secret.Text {
	o.Helper()
	_, w, link, err := o.OfferWindow(o.Context(), core, bridge, kiosk)
	if err != nil || w.Kiosk != kiosk || !w.Until.Equal(o.now.Add(2*time.Minute)) {
		o.Fatalf("%+v, %v", w, err)
	}
	return link
}

// opened is an open window at a bridge.
func (o *office) opened(core tenant.Core, bridge string, kiosk bool) secret.Text {
	o.Helper()
	w, token, err := o.OpenWindow(o.Context(), o.offered(core, bridge, kiosk))
	if err != nil || w.Kiosk != kiosk || !w.Until.Equal(o.now.Add(12*time.Hour)) {
		o.Fatalf("%+v, %v", w, err)
	}
	return token
}

// shut tells whether a token is no open window's.
func (o *office) shut(token secret.Text) bool {
	o.Helper()
	_, _, _, err := o.Window(o.Context(), token)
	if err != nil && !errors.Is(err, problem.ErrUnauthenticated) {
		o.Fatal(err)
	}
	return err != nil
}

func TestWindow(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, _ := o.enrolled(core)
	link := o.offered(core, b.ID, true)
	if !o.shut(link) {
		t.Error("a link is taken for an open window")
	}
	_, token, err := o.OpenWindow(t.Context(), link)
	if err != nil {
		t.Fatal(err)
	}
	gotCore, gotBridge, w, err := o.Window(t.Context(), token)
	if err != nil || gotCore.Tenant.ID != "acme" || gotBridge.ID != b.ID || !w.Kiosk || w.Operation != "" {
		t.Errorf("%s %s %+v, %v", gotCore.Tenant.ID, gotBridge.ID, w, err)
	}
	if w, err = o.ChangeWindow(t.Context(), "acme", b.ID, w, func(w *tenant.Window) { w.Operation = "op" }); err != nil || w.Operation != "op" {
		t.Errorf("changed: %+v, %v", w, err)
	}
	if _, _, w, err = o.Window(t.Context(), token); err != nil || w.Operation != "op" {
		t.Errorf("read again: %+v, %v", w, err)
	}
	if _, _, err := o.OpenWindow(t.Context(), link); !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("the link once more: %v", err)
	}
	if _, _, err := o.OpenWindow(t.Context(), token); !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("the window's token as a link: %v", err)
	}
	if got := o.actions("acme", "bridge/"+b.ID); !slices.Contains(got, "bridge.pageOpened") || len(got) != 3 {
		t.Errorf("recorded are %q", got)
	}
}

func TestLinksThatOpenNothing(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	globex, _ := o.open("globex")
	b, _ := o.enrolled(core)
	other, _ := o.enrolled(core)
	theirs, _ := o.enrolled(globex)
	random := func(link secret.Text) string { return strings.Split(link.Reveal(), ".")[2] }
	mine := random(o.offered(core, b.ID, false))
	for name, link := range map[string]string{
		"nothing":                      "",
		"no link":                      "acme." + b.ID,
		"short":                        "acme." + b.ID + ".7q3xwz8m5k",
		"guessed":                      "acme." + b.ID + "." + strings.Repeat("0", 52),
		"for another bridge":           "acme." + other.ID + "." + mine,
		"for another tenant":           "globex." + b.ID + "." + mine,
		"for another tenant's bridge":  "globex." + theirs.ID + "." + mine,
		"of no tenant":                 "initech." + b.ID + "." + mine,
		"of no bridge":                 "acme.00000000." + mine,
		"of a tenant that cannot be":   "A/../B." + b.ID + "." + mine,
		"in capitals":                  "acme." + b.ID + "." + strings.ToUpper(mine),
		"with something more after it": "acme." + b.ID + "." + mine + ".",
	} {
		_, token, err := o.OpenWindow(t.Context(), secret.New(link))
		if !errors.Is(err, problem.ErrUnauthenticated) || !token.Empty() || err.Error() != "not authenticated: the link was used already, or its 2 minutes are over; open the page anew, with `bridge open`" {
			t.Errorf("%s: %v", name, err)
		}
		if !o.shut(secret.New(link)) {
			t.Errorf("%s: it is an open window", name)
		}
	}
	link := o.offered(core, b.ID, false)
	o.now = o.now.Add(2 * time.Minute)
	if _, _, err := o.OpenWindow(t.Context(), link); !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("two minutes later: %v", err)
	}
}

func TestOneLinkOneWindow(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, _ := o.enrolled(core)
	link := o.offered(core, b.ID, false)
	var wg sync.WaitGroup
	var mu sync.Mutex
	opened := 0
	for range 6 {
		wg.Go(func() {
			_, _, err := o.OpenWindow(t.Context(), link)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				opened++
			} else if !errors.Is(err, problem.ErrUnauthenticated) {
				t.Error(err)
			}
		})
	}
	if wg.Wait(); opened != 1 {
		t.Errorf("it has opened %d windows", opened)
	}
}

func TestWindowsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		kiosk bool
		end   func(o *office, core tenant.Core, b tenant.Bridge)
	}{
		"after 12 hours":             {false, func(o *office, _ tenant.Core, _ tenant.Bridge) { o.now = o.now.Add(12 * time.Hour) }},
		"of a kiosk, after 12 hours": {true, func(o *office, _ tenant.Core, _ tenant.Bridge) { o.now = o.now.Add(12 * time.Hour) }},
		"with their bridge": {true, func(o *office, core tenant.Core, b tenant.Bridge) {
			if _, err := o.Revoke(o.Context(), core, admin, b.ID); err != nil {
				o.Fatal(err)
			}
		}},
		"with a new enrolment": {true, func(o *office, core tenant.Core, b tenant.Bridge) {
			_, code, err := o.InviteAgain(o.Context(), core, admin, b.ID)
			if err != nil {
				o.Fatal(err)
			}
			if _, _, _, err := o.Enrol(o.Context(), o.machine().enrolment(code.Reveal())); err != nil {
				o.Fatal(err)
			}
		}},
		"with a suspended tenant": {false, func(o *office, _ tenant.Core, _ tenant.Bridge) {
			if _, err := o.Suspend(o.Context(), admin, "acme", true); err != nil {
				o.Fatal(err)
			}
		}},
		"for newer ones": {false, func(o *office, core tenant.Core, b tenant.Bridge) {
			for range 4 {
				o.now = o.now.Add(time.Second)
				o.opened(core, b.ID, false)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			core, _ := o.open("acme")
			b, _ := o.enrolled(core)
			token, link := o.opened(core, b.ID, c.kiosk), o.offered(core, b.ID, c.kiosk)
			_, _, w, err := o.Window(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			c.end(o, core, b)
			if !o.shut(token) {
				t.Error("it is open")
			}
			if _, _, err := o.OpenWindow(t.Context(), link); !errors.Is(err, problem.ErrUnauthenticated) {
				t.Errorf("the link: %v", err)
			}
			if w, err := o.ChangeWindow(t.Context(), "acme", b.ID, w, func(w *tenant.Window) { w.Operation = "op" }); err == nil && !o.shut(token) {
				t.Errorf("it is changed: %+v", w)
			}
		})
	}
}

// However many links are made, a kiosk keeps its window for as long as others are older.
func TestManyLinks(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, _ := o.enrolled(core)
	kiosk := o.opened(core, b.ID, true)
	var last secret.Text
	for range 20 {
		last = o.offered(core, b.ID, false)
	}
	if o.shut(kiosk) {
		t.Error("links have closed it")
	}
	if _, _, err := o.OpenWindow(t.Context(), last); err != nil {
		t.Errorf("the last link: %v", err)
	}
}

func TestWindowFaults(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n, more := 1, true; more; n++ {
			t.Run(fmt.Sprintf("%d,%v", n, after), func(t *testing.T) {
				o := newOffice(t)
				core, _ := o.open("acme")
				b, _ := o.enrolled(core)
				inner := o.Table
				faulty := tabletest.Fail(inner, n, after)
				o.Table = faulty
				var token secret.Text
				_, _, link, err := o.OfferWindow(t.Context(), core, b.ID, true)
				if err == nil {
					_, token, err = o.OpenWindow(t.Context(), link)
				}
				if err == nil {
					_, _, _, err = o.Window(t.Context(), token)
				}
				more = faulty.Calls() >= n
				if more != errors.Is(err, tabletest.ErrFault) || !more && err != nil {
					t.Fatalf("failed %v, and it says %v", more, err)
				}
				o.Table = inner
				if token.Empty() != (o.shut(token)) {
					t.Error("whoever has no token has a window, or the other way round")
				}
				if again := o.opened(core, b.ID, true); o.shut(again) { // what people do
					t.Error("the next one is not open")
				}
			})
		}
	}
}

// No token is ever written, in whatever form.
func TestNoWindowTokenIsStored(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	b, _ := o.enrolled(core)
	r := &recorder{Table: o.Table}
	o.Table = r
	link := o.offered(core, b.ID, false)
	_, token, err := o.OpenWindow(t.Context(), link)
	if err != nil {
		t.Fatal(err)
	}
	if all := string(r.all); !strings.Contains(all, `"windows"`) {
		t.Fatal("no window was seen written: the test sees nothing")
	}
	for what, text := range map[string]secret.Text{"the link": link, "the token": token} {
		s := strings.Split(text.Reveal(), ".")[2]
		for _, form := range []string{s, base64.StdEncoding.EncodeToString([]byte(s)), hex.EncodeToString([]byte(s))} {
			if strings.Contains(string(r.all), form) {
				t.Errorf("%s is stored", what)
			}
		}
	}
}

func TestReadersHere(t *testing.T) {
	now := start
	seen := func(names ...string) tenant.Presence {
		p := tenant.Presence{SeenAt: now}
		for _, n := range names {
			name, insertion, _ := strings.Cut(n, "=")
			p.Readers = append(p.Readers, tenant.Reader{Name: name, Insertion: insertion})
		}
		return p
	}
	b := tenant.Bridge{Sessions: map[relay.Session]tenant.Presence{relay.Service: seen("a=1", "b"), relay.Terminal: seen("a=2", "c=3")}}
	if got := fmt.Sprint(b.Here(now)); strings.Count(got, "{") < 3 || !strings.Contains(got, "{a 1 ") || strings.Contains(got, "{a 2 ") || !strings.Contains(got, "{c 3 ") {
		t.Errorf("got %s", got)
	}
	if got := b.Here(now.Add(time.Hour)); len(got) > 0 {
		t.Errorf("an hour after it was heard of: %v", got)
	}
}
