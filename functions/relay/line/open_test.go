package line_test

import (
	"errors"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
)

// opened asks for a page.
func opened(b *desk.Bridge, kiosk bool) relay.Opened {
	b.Helper()
	b.Must(b.Say(relay.Message{Open: &relay.Open{Ref: "page", Kiosk: kiosk}}))
	b.Must(b.Settle())
	return *desk.Last(b, func(m relay.Message) *relay.Opened { return m.Opened })
}

func TestOpen(t *testing.T) {
	d := desk.New(t)
	b := d.NewBridge(relay.Terminal)
	o := opened(b, true)
	if o.Ref != "page" || o.URL != desk.Console+"/console/kiosk/open" || !o.Until.Equal(d.Clock.Now().Add(2*time.Minute)) || o.Served {
		t.Errorf("%+v", o)
	}
	w, token, err := d.Tenants.OpenWindow(t.Context(), o.Token.Text)
	if err != nil || !w.Kiosk {
		t.Fatalf("%+v, %v", w, err)
	}
	if _, at, _, err := d.Tenants.Window(t.Context(), token); err != nil || at.ID != b.ID {
		t.Errorf("the window is at %s, %v", at.ID, err)
	}
	service := b.Beside(relay.Service)
	d.Must(service.Settle())
	if o := opened(b, false); !o.Served {
		t.Error("with a bridge in the background nobody serves the readers")
	}
}

// A bridge that is none any more gets no page, though it holds its connection.
func TestOpenWhenRevoked(t *testing.T) {
	d := desk.New(t)
	b := d.NewBridge(relay.Terminal)
	token := opened(b, false).Token
	_, err := d.Tenants.Revoke(t.Context(), d.Core, desk.Admin, b.ID)
	d.Must(err)
	heard := len(b.News)
	_ = b.Say(relay.Message{Open: &relay.Open{Ref: "again"}})
	_ = b.Settle()
	for _, m := range b.News[heard:] {
		if m.Opened != nil {
			t.Error("it got a page")
		}
	}
	if !b.Closed() {
		t.Error("its connection is not closed")
	}
	if _, _, err := d.Tenants.OpenWindow(t.Context(), token.Text); !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("the link from before: %v", err)
	}
}

// Whatever fails, the bridge is told, or nothing is; and the next link is good.
func TestOpenFaults(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n, more := 1, true; more; n++ {
			d := desk.New(t)
			b := d.NewBridge(relay.Terminal)
			d.Must(b.Settle())
			var faulty *tabletest.Faulty
			d.Wire.Through(func(whole table.Table) table.Table { faulty = tabletest.Fail(whole, n, after); return faulty })
			err := b.Say(relay.Message{Open: &relay.Open{Ref: "page"}})
			more = faulty.Calls() >= n
			d.Wire.Whole()
			d.Must(b.Settle())
			var told *relay.Problem
			for _, m := range b.News {
				if m.Problem != nil {
					told = m.Problem
				}
			}
			if more && err == nil && (told == nil || told.Ref != "page") {
				t.Errorf("%d,%v: it failed, and nobody says so", n, after)
			}
			if _, _, err := d.Tenants.OpenWindow(t.Context(), opened(b, false).Token.Text); err != nil {
				t.Errorf("%d,%v: the next link: %v", n, after, err)
			}
		}
	}
}
