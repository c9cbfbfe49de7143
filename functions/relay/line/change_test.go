package line_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/relay"
)

// changed has the bridge tell that the holder has changed the PIN.
func (p *telephone) changed(o relay.Offline) {
	p.Helper()
	o.Change = true
	if o.Credential == "" {
		o.Credential = p.id
	}
	p.Must(p.bridge.Say(relay.Message{Offline: &o}))
	p.Must(p.bridge.Settle())
}

// latest is the newest record of the card.
func (p *telephone) latest() audit.Record {
	p.Helper()
	all := p.Audited(p.id)
	return slices.MaxFunc(all, func(a, b audit.Record) int { return strings.Compare(a.ID, b.ID) })
}

// flagged has a PIN on record that the holder has changed now, so that there is a flag.
func (p *telephone) flagged() {
	p.Helper()
	p.bridge.Insert(p.piece)
	p.Must(p.bridge.Settle())
	if _, err := p.Credentials.PINChangedByHolder(p.Context(), p.Core, ann, p.id, p.Clock.Now()); err != nil {
		p.Fatal(err)
	}
	p.bridge.Remove()
}

// TestKnownExpires: at each insertion the bridge learns when the PIN expires, and for which
// insertion that is; and anew once it has told of a change.
func TestKnownExpires(t *testing.T) {
	p := newTelephone(t, softcard.PivApplet)
	first := p.bridge.Insert(p.piece)
	p.Must(p.bridge.Settle())
	got := desk.Last(p.bridge, func(m relay.Message) *relay.Known { return m.Known })
	if got.Insertion != first || !got.PINExpiresAt.IsZero() || got.PINExpired(p.Clock.Now()) {
		t.Errorf("without a flag: %+v", got)
	}
	p.bridge.Remove()
	p.flagged()
	at := p.Clock.Now().AddDate(0, 0, 90)
	insertion := p.bridge.Insert(p.piece)
	p.Must(p.bridge.Settle())
	if got := desk.Last(p.bridge, func(m relay.Message) *relay.Known { return m.Known }); got.Insertion != insertion || !got.PINExpiresAt.Equal(at) || got.PINExpired(p.Clock.Now()) || !got.PINExpired(at) {
		t.Errorf("%+v, want %s", got, at)
	}
	p.Clock.Pass(91 * 24 * time.Hour)
	p.changed(relay.Offline{ID: "offline-1", At: p.Clock.Now(), PIN: relay.Yes})
	if got := desk.Last(p.bridge, func(m relay.Message) *relay.Known { return m.Known }); got.Insertion != "" || !got.PINExpiresAt.Equal(p.Clock.Now().AddDate(0, 0, 90)) {
		t.Errorf("after the change: %+v", got)
	}
}

// TestHolderChange: what a bridge tells of a holder's change is noted once, with the bridge
// as who has done it, and sets the flag by when it was.
func TestHolderChange(t *testing.T) {
	tries := 2
	for name, c := range map[string]struct {
		told    relay.Offline
		after   time.Duration // from the last change on record to the change told, an hour before now
		changed bool
		record  string
	}{
		"changed":          {relay.Offline{PIN: relay.Yes}, 40 * 24 * time.Hour, true, "done"},
		"wrong PIN":        {relay.Offline{PIN: relay.No, TriesLeft: &tries}, 40 * 24 * time.Hour, false, "failed notChanged"},
		"not known":        {relay.Offline{PIN: relay.Unknown}, 40 * 24 * time.Hour, false, "failed outcomeUnknown"},
		"before the last":  {relay.Offline{PIN: relay.Yes}, -time.Second, false, "refused overtaken"},
		"with the last":    {relay.Offline{PIN: relay.Yes}, 0, true, "done"},
		"by a fast clock":  {relay.Offline{PIN: relay.Yes}, 400 * 24 * time.Hour, true, "done"},
		"by no clock":      {relay.Offline{PIN: relay.Yes}, -90 * 365 * 24 * time.Hour, false, "refused overtaken"},
		"of a retired one": {relay.Offline{PIN: relay.Yes}, 40 * 24 * time.Hour, false, "refused retired"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newTelephone(t, softcard.PivApplet)
			p.flagged()
			if strings.Contains(name, "retired") {
				_, err := p.Credentials.Update(t.Context(), p.Core, ann, "admin", p.id, 0, func(a *credential.About) { a.State, a.Reason = credential.Retired, "lost" })
				p.Must(err)
			}
			was := p.Credential(p.id)
			c.told.ID, c.told.At = "offline-1", was.LastPINChange.At.Add(c.after)
			p.Clock.Pass(41 * 24 * time.Hour)
			for range 2 { // its acknowledgement may be lost
				p.changed(c.told)
			}
			is, at := p.Credential(p.id), c.told.At
			if at.After(p.Clock.Now()) {
				at = p.Clock.Now()
			}
			if c.changed && (!is.LastPINChange.At.Equal(at) || is.LastPINChange.How != credential.ChangedByHolder || is.Flagged.How != credential.FlagByChange || !is.PINExpiresAt.Equal(at.AddDate(0, 0, 90))) {
				t.Errorf("%+v, expires %s, want from %s", is.LastPINChange, is.PINExpiresAt, at)
			}
			if !c.changed && (is.LastPINChange != was.LastPINChange || !is.PINExpiresAt.Equal(was.PINExpiresAt) || is.State != was.State || is.Custody != was.Custody) {
				t.Errorf("changed: %+v, expires %s", is.LastPINChange, is.PINExpiresAt)
			}
			r := p.latest()
			if got := strings.TrimSpace(fmt.Sprint(r.Outcome, " ", r.Reason)); got != c.record || r.Action != "credential.pinChanged" || r.Actor != (audit.Actor{Kind: audit.Bridge, ID: p.bridge.ID}) || (r.Details["pinTriesLeft"] == "2") != (c.told.TriesLeft != nil) {
				t.Errorf("audited %s: %+v, want %s", got, r, c.record)
			}
			n := 0
			for _, r := range p.Audited(p.id) {
				if r.Actor.Kind == audit.Bridge {
					n++
				}
			}
			if n != 1 {
				t.Errorf("%d records of what was told twice", n)
			}
		})
	}
}

// TestHolderChangeForeign: a card that the tenant does not have is acknowledged and no more.
func TestHolderChangeForeign(t *testing.T) {
	p := newTelephone(t, softcard.PivApplet)
	other := newTelephone(t, softcard.PivApplet)
	for n, id := range []string{"piv-00112233445566778899aabbccddeeff", other.id} {
		o := relay.Offline{ID: fmt.Sprint("offline-", n), Credential: id, At: p.Clock.Now(), PIN: relay.Yes}
		p.changed(o)
		acked := slices.ContainsFunc(p.bridge.News, func(m relay.Message) bool { return m.Ack != nil && m.Ack.Operation == o.ID })
		told := slices.ContainsFunc(p.bridge.News, func(m relay.Message) bool { return m.Known != nil && m.Known.Credential == id })
		if !acked || told {
			t.Errorf("%s: acknowledged %t, told of %t", id, acked, told)
		}
	}
}
