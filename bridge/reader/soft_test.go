package reader_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pinward/pinward/bridge/reader"
	"github.com/pinward/pinward/infra/softcard"
)

func softRig(t *testing.T) rig {
	r := softcard.NewReader()
	return rig{
		name:   "Software card",
		source: func(l reader.Limits) reader.Source { return reader.NewSoft("Software card", r, softcard.ErrReset, l) },
		other:  func(s reader.Source, _ reader.Limits) reader.Source { return s },
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
	}
}

func TestSoft(t *testing.T) {
	for _, test := range suite {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test.test(t, softRig(t)) })
		})
	}
	t.Run("Watch again and again", func(t *testing.T) { testWatchAgain(t, softRig(t)) })
}

// TestDefaultLimits waits for a bridge's own limits.
func TestDefaultLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := softRig(t), newCard(t, softcard.GIDS)
		s, w, in := r.begin(t, c, reader.DefaultLimits)
		session := open(t, s, r.name, in)
		transmit(t, session, selectGIDS)
		time.Sleep(4*time.Second - 1)
		transmit(t, session, selectGIDS)
		time.Sleep(4 * time.Second)
		wantErr(t, session, selectGIDS, reader.ErrHeld)

		c.Inject(softcard.Fault{Step: 1, Delay: time.Hour})
		session = open(t, s, r.name, in)
		start := time.Now()
		wantErr(t, session, selectGIDS, reader.ErrSilent)
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("silent after %v", took)
		}
		w.want(reader.CardSilent)
		// Out and in again, while the answer is still awaited.
		r.remove()
		w.want(reader.CardRemoved)
		r.insert(c)
		w.want(reader.CardSilent)
		time.Sleep(time.Hour)
		transmit(t, open(t, s, r.name, w.want(reader.CardInserted).Insertion), selectGIDS)
	})
}

// TestNoBytes: a reader may answer with nothing, and no error, when its card is pulled.
func TestNoBytes(t *testing.T) {
	r, c := softRig(t), newCard(t, softcard.PivApplet)
	s, _, in := r.begin(t, c, reader.DefaultLimits)
	session := open(t, s, r.name, in)
	c.Inject(softcard.Fault{Step: 1, Kind: softcard.Empty})
	wantErr(t, session, selectPIV, reader.ErrRemoved)
	wantErr(t, session, selectPIV, reader.ErrRemoved)
}
