package user

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

// Whoever has the table file has no PIN and no key: neither those that are
// set, nor former and refused ones, nor guesses, wherever they were typed.
func TestNoSecretIsStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table")
	db, err := bolt.Open(path, bolt.NoSync())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.Table = db
	root, err := vault.LocalRoot(filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	tenants := &tenant.Tenants{Table: db, Vault: vault.New(root), Audit: w.Audit, Now: w.Now, Rand: rand.Reader}
	core, first, err := tenants.Create(ctx, admin, tenant.Tenant{ID: acme, Settings: tenant.Settings{DisplayName: "Acme", TimeZone: "UTC", Language: "en"}})
	if err != nil {
		t.Fatal(err)
	}
	pinOnly(&core)
	expiring(&core)
	core.Policy.History = 3
	put, err := mail.Store{Table: db, Tenant: acme, Keys: core.Keys}.PutConfiguration(ctx, mail.Configuration{ID: "post", Name: "Post", Kind: mail.KindOutbox, From: "pins@acme.example"})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Write(ctx, put); err != nil {
		t.Fatal(err)
	}
	w.core = core
	var secrets []string
	typed := func(s string) string { secrets = append(secrets, s); return s }

	ada := w.user("ada", typed("739158462051"))
	bob := w.user("bob", typed("k7Xr2bQ9vt4M"))
	for _, pin := range []string{"286405971384", "502817369420", "940627518306"} {
		if err := w.set(ada, typed(pin)); err != nil {
			t.Fatal(err)
		}
	}
	_, made, err := w.GeneratePIN(ctx, core, admin, ada.ID, pin.GenerateOptions{Length: 12, Alphabet: pin.Alphanumeric})
	if err != nil {
		t.Fatal(err)
	}
	typed(made.Reveal())
	post := &post{answers: []mail.Outcome{mail.Failed}} // to carol, then to dave
	for _, name := range []string{"carol", "dave"} {
		u := must(w.IssuePIN(ctx, core, admin, w.user(name, "").ID, Issue{Messaging: "post", Options: pin.GenerateOptions{Length: 12}}))(t)
		plain, err := core.Keys.Open(sealPurpose(u.ID, u.Pending.ID), u.Pending.sealed)
		if err != nil {
			t.Fatal(err)
		}
		typed(string(plain))
		w.send(post, u)
	}
	if len(post.mails) != 1 || pinIn(post.mails[0]) != secrets[len(secrets)-1] || !w.verify("dave", pinIn(post.mails[0])).Right {
		t.Fatal("the mails are not as they should be")
	}
	for _, pin := range []string{"940627518306", "123123123123"} { // a former one of hers, and a bad one
		if err := w.set(ada, typed(pin)); err == nil {
			t.Errorf("%s was not refused", pin)
		}
	}
	self := audit.Actor{Kind: audit.Self, ID: bob.ID}
	if _, err := w.SetPIN(ctx, core, self, bob.ID, made); err == nil {
		t.Error("a taken PIN was not refused")
	}
	must(w.Update(ctx, core, admin, bob.ID, 0, func(*Profile) {}, given(typed("618340295177"))))(t)
	for _, ref := range []Ref{ // PINs where names belong
		{Username: "ada"}, {Username: typed("314159265358")}, {ID: typed("161803398874")}, {ExternalID: typed("141421356237")},
	} {
		must(w.Verify(ctx, core, admin, ref, secret.New(typed("271828182845"))))(t)
	}
	w.identify("lobby", typed("173205080756"))
	if !w.identify("lobby", made.Reveal()).Right || !w.verify("bob", "618340295177").Right {
		t.Fatal("the PINs are not as they should be")
	}
	must(w.DeletePIN(ctx, core, admin, ada.ID))(t)
	w.pass(48 * time.Hour)
	if done, err := w.ExpirePIN(ctx, core, sweep, w.reread(bob)); !done || err != nil {
		t.Fatal(err)
	}

	_, key, err := tenants.MakeKey(ctx, acme, admin, tenant.APIKey{Name: "lobby", Role: tenant.RoleKiosk})
	if err != nil {
		t.Fatal(err)
	}
	_, token, err := tenants.MintToken(ctx, acme, admin, ada.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []secret.Text{first, key, token} {
		if _, err := tenants.Authenticate(ctx, text); err != nil {
			t.Fatal(err)
		}
		typed(text.Reveal())
		typed(strings.SplitN(text.Reveal(), "_", 4)[3])
	}

	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(file, []byte("ada@acme.example")) {
		t.Fatal("the file is not what is looked for")
	}
	for _, s := range secrets {
		for name, form := range testserver.Forms(s) {
			if bytes.Contains(file, form) {
				t.Errorf("the file has %q, %s", s, name)
			}
		}
	}
}
