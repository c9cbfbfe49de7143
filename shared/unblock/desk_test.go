package unblock_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/offline"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/unblock"
)

// TestAwaitingApproval: what waits for an approval is found among much else, until it is
// approved or its time is over.
func TestAwaitingApproval(t *testing.T) {
	two := map[credential.Channel]credential.Proof{credential.Operator: credential.TwoOperators}
	d := newDrawer(t, func(x *credential.Template) { x.Proofs = two })
	waiting := func() (ids []string) {
		t.Helper()
		ops, err := d.Unblocks.AwaitingApproval(t.Context(), desk.Acme)
		d.Must(err)
		for _, op := range ops {
			ids = append(ids, op.ID)
		}
		return ids
	}
	begin := func(channel credential.Channel) unblock.Operation {
		t.Helper()
		op, err := d.Unblocks.Create(t.Context(), d.Core, desk.Admin, unblock.Request{Credential: d.cred.ID, Bridge: d.b.ID, Channel: channel, Statement: "staff badge"})
		d.Must(err)
		return op
	}
	first := begin(credential.Operator)
	d.Clock.Pass(time.Minute)
	for range 60 { // more than are read at once
		op := begin(credential.Operator)
		_, err := d.Unblocks.Cancel(t.Context(), d.Core, desk.Admin, op.ID)
		d.Must(err)
	}
	begin(credential.SelfService) // waits for its code
	second := begin(credential.Operator)
	if got := waiting(); !slices.Equal(got, []string{second.ID, first.ID}) {
		t.Errorf("%v wait, want %v and %v", got, second.ID, first.ID)
	}
	d.Clock.Pass(14*time.Minute + time.Second)
	if got := waiting(); !slices.Equal(got, []string{second.ID}) {
		t.Errorf("%v wait, the time of the first is over", got)
	}
	_, err := d.Unblocks.Approve(t.Context(), d.Core, audit.Actor{Kind: audit.API, ID: "another"}, second.ID, "")
	d.Must(err)
	if got := waiting(); got != nil {
		t.Errorf("%v wait, though it is approved", got)
	}
}

// TestPossible: what stands in the way is known before, by the channel that is meant.
func TestPossible(t *testing.T) {
	d := newDrawer(t, func(x *credential.Template) {
		x.Channels = []credential.Channel{credential.Operator, credential.SelfService}
	})
	c, template := d.Credential(d.cred.ID), value(d.Credentials.Template(t.Context(), desk.Acme, d.cred.Template))
	possible := func(by credential.Channel, told card.Identity) error {
		return d.Unblocks.Possible(t.Context(), d.Core, by, c, template, told)
	}
	c.Holder = ""
	if err := possible(credential.Operator, card.Identity{}); err != nil {
		t.Errorf("an operator needs no address: %v", err)
	}
	if err := possible(credential.SelfService, card.Identity{}); !errors.Is(err, problem.ErrState) {
		t.Errorf("a code cannot be mailed to nobody: %v", err)
	}
	if err := possible(credential.LogonScreen, card.Identity{}); !errors.Is(err, problem.ErrState) {
		t.Errorf("a channel that is not allowed: %v", err)
	}
	var failure card.Failure
	if err := possible(credential.Operator, card.Identity{PUK: card.RetryCounter{Known: true}}); !errors.As(err, &failure) || failure.Reason != card.PUKBlocked {
		t.Errorf("with a blocked PUK: %v", err)
	}
}

func value[T any](v T, _ error) T { return v }

// TestUnderstand: a challenge is read as it will be answered, and nothing is given for it.
func TestUnderstand(t *testing.T) {
	d := desk.New(t)
	_, c := d.Issue(softcard.GIDS)
	request := unblock.OfflineRequest{Credential: c.ID, Channel: credential.WindowsChallengeResponse, Challenge: "bf o9 e22d e553 55f6", Statement: "called back"}
	a, replaced, err := d.Unblocks.Understand(t.Context(), d.Core, desk.Admin, request)
	if err != nil || a.Challenge != "BF09 E22D E553 55F6" || a.State != unblock.AnswerApproved || len(replaced) != 1 || replaced[0] != (offline.Replacement{Group: 1, Place: 3, Typed: 'o', Taken: '0'}) {
		t.Errorf("it is understood as %+v, %v, %v", a, replaced, err)
	}
	answers, _, err := d.Unblocks.Answers(t.Context(), desk.Acme, c.ID, "", table.MaxLimit)
	if err != nil || len(answers) != 0 || !d.Credential(c.ID).LastPINChange.At.IsZero() {
		t.Errorf("something was given: %v, %v", answers, err)
	}
	request.Statement = ""
	if _, _, err := d.Unblocks.Understand(t.Context(), d.Core, desk.Admin, request); !errors.As(err, new(*problem.InvalidError)) {
		t.Errorf("without a statement: %v", err)
	}

	// One of another card is counted, as somebody may be guessing.
	_, piv := d.Issue(softcard.PivApplet)
	d.NewBridge(relay.Service)
	foreign := unblock.OfflineRequest{Credential: piv.ID, Channel: credential.SelfServiceOffline, Challenge: "798072 486898 510006", Statement: "called back"}
	for range unblock.AnswersPerKey {
		if _, _, err := d.Unblocks.Understand(t.Context(), d.Core, desk.Admin, foreign); !errors.Is(err, offline.ErrForeign) && !errors.As(err, new(*problem.InvalidError)) {
			t.Fatalf("of another card: %v", err)
		}
	}
	var limit *problem.LimitError
	if _, _, err := d.Unblocks.Understand(t.Context(), d.Core, desk.Admin, foreign); !errors.As(err, &limit) {
		t.Errorf("after %d guesses: %v", unblock.AnswersPerKey, err)
	}
}
