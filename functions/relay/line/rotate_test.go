package line_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/apdu"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/unblock"
)

// TestRotate: a PUK that was told is changed when the card is seen again, whatever is lost
// on the way.
func TestRotate(t *testing.T) {
	for name, lost := range map[string]bool{"": false, "answer lost": true} {
		t.Run(name, func(t *testing.T) {
			p := newTelephone(t, softcard.PivApplet)
			p.given(p.request(p.challenge(offline.Report{}).String()))
			p.report("offline-1", relay.Yes, nil)
			if lost {
				p.bridge.Copies = func(mine bool, m relay.Message) int {
					if mine && m.Result != nil && m.Result.Run.End == apdu.Done && m.Result.Run.Step == 3 && !strings.HasPrefix(m.Result.Operation, "identify") {
						return 0
					}
					return 1
				}
			}
			p.bridge.Insert(p.piece)
			p.Must(p.bridge.Settle())
			if lost {
				p.bridge.Copies = nil
				p.Clock.Pass(2 * time.Minute)
				p.Sweep()
				p.bridge.Remove()
				p.bridge.Insert(p.piece)
				p.Must(p.bridge.Settle())
				p.Must(p.bridge.Again())
				p.Must(p.bridge.Settle())
				p.bridge.Remove()
				p.bridge.Insert(p.piece)
				p.Must(p.bridge.Settle())
			}
			cred := p.Credential(p.id)
			if p.piece.PUKIs(desk.FirstPUK) || !p.Knows(p.piece, cred) || !cred.PUKDisclosedAt.IsZero() || cred.Custody.InDoubt() || cred.Lease.Operation != "" {
				t.Errorf("after: %+v, disclosed %v, lease %+v; %v", cred.Custody, cred.PUKDisclosedAt, cred.Lease, p.Operations(p.id))
			}
			if cred.LastPINChange.Presumed || !cred.LastPINChange.At.Equal(cred.LastPINChange.At) {
				t.Errorf("%+v", cred.LastPINChange)
			}
			last := p.Operations(p.id)[len(p.Operations(p.id))-1]
			if last.Kind != unblock.Rotate || last.State != unblock.Succeeded {
				t.Errorf("last: %v %s", last, last.Reason)
			}
			puks := p.PUKs(cred)
			p.Secret("new PUK", puks[0])
			p.Search()
		})
	}
}
