package reader_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/infra/softcard"
)

func TestRemote(t *testing.T) {
	for _, test := range suite {
		t.Run(test.name, func(t *testing.T) {
			r := softcard.NewReader()
			web := httptest.NewServer(softcard.Handler(r))
			t.Cleanup(web.Close)
			t.Cleanup(web.CloseClientConnections)
			source := func(l reader.Limits) reader.Source { return reader.NewRemote(web.URL, web.Client(), l) }
			test.test(t, rig{
				name:   "Software card",
				source: source,
				other:  func(_ reader.Source, l reader.Limits) reader.Source { return source(l) },
				insert: r.Insert,
				remove: func() { r.Remove() },
				rival: func() func() {
					c, err := r.Connect()
					if err != nil {
						t.Fatal(err)
					}
					return func() { _ = c.Reset() }
				},
				unguarded: func(s reader.Source) func(context.Context, string, int64) (*reader.Session, error) { return s.Open },
			})
		})
	}
}

// TestRemoteGone: the server goes and comes; its card is another insertion then.
func TestRemoteGone(t *testing.T) {
	r := softcard.NewReader()
	web := httptest.NewUnstartedServer(softcard.Handler(r))
	address := web.Listener.Addr().String()
	web.Start()
	r.Insert(newCard(t, softcard.PivApplet))
	w := watch(t, reader.NewRemote("http://"+address, &http.Client{}, reader.DefaultLimits), "Software card")
	in := w.want(reader.ServiceUp, reader.ReaderAdded, reader.CardInserted)
	web.CloseClientConnections()
	web.Close()
	w.want(reader.CardRemoved, reader.ReaderRemoved)
	if e := w.want(reader.ServiceDown); !errors.Is(e.Err, reader.ErrNoService) {
		t.Errorf("down: %v", e.Err)
	}
	again := httptest.NewUnstartedServer(softcard.Handler(r))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	again.Listener.Close()
	again.Listener = listener
	again.Start()
	t.Cleanup(again.Close)
	t.Cleanup(again.CloseClientConnections)
	if back := w.want(reader.ServiceUp, reader.ReaderAdded, reader.CardInserted); back.Insertion == in.Insertion {
		t.Errorf("insertion %d again", back.Insertion)
	}
	w.stop()
}
