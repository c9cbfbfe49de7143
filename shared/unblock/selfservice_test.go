package unblock_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver/desk"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/relay"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
)

// TestSelfService holds what is told beforehand to what comes of it, where somebody asks all
// the same.
func TestSelfService(t *testing.T) {
	resets := func(d *desk.Desk) []time.Time { return []time.Time{d.Clock.Now()} }
	for name, c := range map[string]struct {
		profile softcard.Profile
		change  func(d *desk.Desk, c *credential.Credential, tm *credential.Template, told *card.Identity)
		want    string // of the error; "" is none
	}{
		"PIV":  {softcard.PivApplet, nil, ""},
		"GIDS": {softcard.GIDS, nil, ""},
		"not allowed": {softcard.PivApplet, func(_ *desk.Desk, _ *credential.Credential, tm *credential.Template, _ *card.Identity) {
			tm.Channels = nil
		}, "does not allow"},
		"suspended": {softcard.PivApplet, func(_ *desk.Desk, c *credential.Credential, _ *credential.Template, _ *card.Identity) {
			c.State = credential.Suspended
		}, "is suspended"},
		"no PUK": {softcard.PivApplet, func(_ *desk.Desk, c *credential.Credential, _ *credential.Template, _ *card.Identity) {
			c.Custody = card.Custody{}
		}, "an operator has to enter its PUK"},
		"no admin key": {softcard.GIDS, func(_ *desk.Desk, c *credential.Credential, _ *credential.Template, _ *card.Identity) {
			c.AdminKey = nil
		}, "an operator has to enter its PUK or admin key"},
		"a master key": {softcard.GIDS, func(_ *desk.Desk, c *credential.Credential, tm *credential.Template, _ *card.Identity) {
			c.AdminKey, tm.MasterKey = nil, []byte{1}
		}, ""},
		"PUK blocked": {softcard.PivApplet, func(_ *desk.Desk, _ *credential.Credential, _ *credential.Template, told *card.Identity) {
			told.PUK = card.RetryCounter{Known: true}
		}, "PUK is blocked"},
		"PUK used up": {softcard.PivApplet, func(_ *desk.Desk, c *credential.Credential, _ *credential.Template, _ *card.Identity) {
			c.Custody.Tries, c.Custody.Most = 0, 0
		}, "PUK is blocked"},
		"PUK not right": {softcard.PivApplet, func(_ *desk.Desk, c *credential.Credential, _ *credential.Template, _ *card.Identity) {
			c.Custody.Stage = card.Refused
		}, "another PUK than the one on record"},
		"stuck": {softcard.PivApplet, func(_ *desk.Desk, c *credential.Credential, _ *credential.Template, _ *card.Identity) {
			c.Custody.Stage, c.Stuck = card.Open, string(card.PUKUncertain)
		}, "so few tries may be left"},
		"in doubt": {softcard.PivApplet, func(_ *desk.Desk, c *credential.Credential, _ *credential.Template, _ *card.Identity) {
			c.Custody.Stage, c.Custody.Proposed = card.Open, 7
		}, ""},
		"too often": {softcard.PivApplet, func(d *desk.Desk, c *credential.Credential, tm *credential.Template, _ *card.Identity) {
			tm.Limit, c.Resets = credential.Limit{Count: 1, Days: 7}, resets(d)
		}, "as often as its template allows"},
		"nobody's": {softcard.PivApplet, func(_ *desk.Desk, c *credential.Credential, _ *credential.Template, _ *card.Identity) { c.Holder = "" }, "nobody is known to hold this card"},
		"no address": {softcard.PivApplet, func(d *desk.Desk, _ *credential.Credential, _ *credential.Template, _ *card.Identity) {
			_, err := d.Users.Update(d.Context(), d.Core, desk.Admin, d.Holder.ID, 0, func(p *user.Profile) { p.Mail = "" }, nil)
			d.Must(err)
		}, "no mail address is known"},
	} {
		t.Run(name, func(t *testing.T) {
			d := desk.New(t)
			_, cred := d.Issue(c.profile)
			tm, err := d.Credentials.Template(t.Context(), desk.Acme, cred.Template)
			d.Must(err)
			var told card.Identity
			if c.change != nil {
				c.change(d, &cred, &tm, &told)
			}
			err = d.Unblocks.SelfService(t.Context(), d.Core, cred, tm, told)
			var limit *problem.LimitError
			switch {
			case (err == nil) != (c.want == ""), err != nil && !strings.Contains(err.Error(), c.want):
				t.Errorf("got %v, want %q", err, c.want)
			case err != nil && !errors.Is(err, problem.ErrState) && !errors.As(err, &limit):
				t.Errorf("%v is not for people", err)
			}
		})
	}
}

// What stands in the way is what an unblock fails by that nobody has warned of.
func TestSelfServiceAndTheUnblock(t *testing.T) {
	d := desk.New(t)
	id := bytes.Repeat([]byte{0xA7}, 16)
	c, err := softcard.New(softcard.Config{Profile: softcard.PivApplet, ID: id, Blocked: true, Rand: rand.Reader})
	d.Must(err)
	cred, err := d.Credentials.Register(t.Context(), d.Core, desk.Admin, credential.New{Family: "PIV", CardID: fmt.Sprintf("%X", id), Holder: d.Holder.ID, Template: d.Template("PIV").ID})
	d.Must(err)
	b := d.NewBridge(relay.Terminal)
	insertion := b.Insert(c)
	d.Must(b.Settle())
	tm, err := d.Credentials.Template(t.Context(), desk.Acme, cred.Template)
	d.Must(err)
	warned := d.Unblocks.SelfService(t.Context(), d.Core, d.Credential(cred.ID), tm, card.Identity{})
	op, _, err := b.Start(insertion)
	d.Must(err)
	op, _, err = b.Prove(op.ID, d.Code())
	d.Must(err)
	_, _, err = b.Ready(op.ID, "735912")
	d.Must(err)
	d.Must(b.Settle())
	got := d.Operation(op.ID)
	if got.State != unblock.Failed || warned == nil || !strings.HasSuffix(warned.Error(), ": "+got.Sentence()) {
		t.Errorf("it has %s by %s, and was said before: %v", got.State, got.Reason, warned)
	}
}
