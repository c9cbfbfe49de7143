package mail

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
)

// reverser seals by turning round, which shows what is sealed and for what.
type reverser struct{}

func (reverser) Seal(purpose string, plaintext []byte) ([]byte, error) {
	return reversed(append([]byte(purpose+"\x00"), plaintext...)), nil
}

func (reverser) Open(purpose string, sealed []byte) ([]byte, error) {
	plaintext, ok := bytes.CutPrefix(reversed(sealed), []byte(purpose+"\x00"))
	if !ok {
		return nil, errors.New("sealed for another purpose")
	}
	return plaintext, nil
}

func reversed(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[len(b)-1-i] = b[i]
	}
	return out
}

func testStore(t *testing.T) Store {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "db"), bolt.NoSync())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return Store{Table: db, Tenant: "acme", Keys: reverser{}}
}

func put(t *testing.T, s Store, c Configuration) error {
	t.Helper()
	op, err := s.PutConfiguration(t.Context(), c)
	if err != nil {
		return err
	}
	return s.Table.Write(t.Context(), op)
}

func TestStoreConfigurations(t *testing.T) {
	s, ctx := testStore(t), context.Background()
	const password = "correct horse"
	c := Configuration{ID: "01A", Name: "Mail", Kind: KindSMTP, From: "a@b.example", ReplyTo: "c@d.example",
		SMTP: SMTPSettings{Host: "mail.example", Port: 587, Security: SecuritySTARTTLS, Username: "u", Password: secret.New(password)}}
	ses := Configuration{ID: "01B", Name: "SES", Kind: KindSES, From: "a@b.example", SES: SESSettings{"set"}}
	for _, c := range []Configuration{c, ses} {
		if err := put(t, s, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(t, s, c); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("created twice: %v", err)
	}

	item, err := s.Table.Get(ctx, table.MessagingKey("acme", "01A"))
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{password, base64.StdEncoding.EncodeToString([]byte(password)), "horse", "[secret]"} {
		if bytes.Contains(item.Data, []byte(form)) {
			t.Errorf("the password is stored in the clear: %s", item.Data)
		}
	}

	want := c
	want.Version, want.SMTP.Password, want.SMTP.PasswordSet = 1, secret.Text{}, true
	got, err := s.Configuration(ctx, "01A")
	if d := cmp.Diff(want, got, cmp.AllowUnexported(secret.Text{})); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	ses.Version = 1
	all, err := s.Configurations(ctx)
	if d := cmp.Diff([]Configuration{want, ses}, all, cmp.AllowUnexported(secret.Text{})); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if got, err := s.WithPassword(ctx, "01A"); err != nil || got.SMTP.Password.Reveal() != password {
		t.Errorf("password is not what was stored: %v", err)
	}
	if _, err := s.WithPassword(ctx, "01B"); err != nil {
		t.Errorf("SES has no password: %v", err)
	}

	// Without a password the old one stays.
	got.Name = "Mail 2"
	if err := put(t, s, got); err != nil {
		t.Fatal(err)
	}
	if now, err := s.WithPassword(ctx, "01A"); err != nil || now.Name != "Mail 2" || now.Version != 2 || now.SMTP.Password.Reveal() != password {
		t.Errorf("after an update without password: %+v, %v", now, err)
	}
	if err := put(t, s, got); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("an old version was written: %v", err)
	}

	// But it is not sent elsewhere.
	got.Version = 2
	for name, change := range map[string]func(*Configuration){
		"host":     func(c *Configuration) { c.SMTP.Host = "evil.example" },
		"port":     func(c *Configuration) { c.SMTP.Port = 2525 },
		"username": func(c *Configuration) { c.SMTP.Username = "v" },
	} {
		changed := got
		change(&changed)
		if d := cmp.Diff([]string{"smtp.password"}, violations(put(t, s, changed))); d != "" {
			t.Errorf("%s changed without password (-want +got):\n%s", name, d)
		}
		changed.SMTP.Password = secret.New("new")
		if _, err := s.PutConfiguration(ctx, changed); err != nil {
			t.Errorf("%s changed with password: %v", name, err)
		}
	}

	// Without a username there is no password.
	got.SMTP.Username = ""
	if err := put(t, s, got); err != nil {
		t.Fatal(err)
	}
	if now, err := s.WithPassword(ctx, "01A"); err != nil || now.SMTP.PasswordSet || !now.SMTP.Password.Empty() {
		t.Errorf("the password outlived its username: %v", err)
	}

	// Claiming that there is a password does not make one.
	fresh := c
	fresh.ID, fresh.SMTP.Password, fresh.SMTP.PasswordSet = "01C", secret.Text{}, true
	if d := cmp.Diff([]string{"smtp.password"}, violations(put(t, s, fresh))); d != "" {
		t.Errorf("a username without password (-want +got):\n%s", d)
	}
	// A sealed password does not open in another configuration.
	item.Key = table.MessagingKey("acme", "01D")
	if err := s.Table.Write(ctx, table.Put(rawRecord{item}, table.Absent())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WithPassword(ctx, "01D"); err == nil {
		t.Error("a password opened in another configuration")
	}

	other := s
	other.Tenant = "evil"
	if _, err := other.Configuration(ctx, "01A"); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("another tenant's configuration: %v", err)
	}
	if err := s.Table.Write(ctx, s.DeleteConfiguration("01A", 2)); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("an old version was deleted: %v", err)
	}
	if err := s.Table.Write(ctx, s.DeleteConfiguration("01A", 3)); err != nil {
		t.Error(err)
	}
	if _, err := s.PutConfiguration(ctx, got); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("a deleted configuration was updated: %v", err)
	}
}

type rawRecord struct{ item table.Item }

func (rawRecord) Validate() error             { return nil }
func (r rawRecord) Item() (table.Item, error) { return r.item, nil }

func TestStoreTemplates(t *testing.T) {
	s, ctx := testStore(t), context.Background()
	predefined, err := s.Template(ctx, PINExpiryID, "de")
	if err != nil || predefined.Name != "PIN-Ablauf" || predefined.Version != 0 {
		t.Fatalf("predefined template: %+v, %v", predefined, err)
	}
	if _, err := s.Template(ctx, "01A", "de"); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("a template that is not there: %v", err)
	}

	for _, kind := range TemplateKinds() {
		if got, err := s.Template(ctx, string(kind), "de"); err != nil || got != Predefined(kind, "de") {
			t.Errorf("predefined template %s: %+v, %v", kind, got, err)
		}
	}

	custom := predefined
	custom.Text = "{{username}}: {{pinExpiration}}"
	own := Template{ID: "01A", Kind: UnblockCode, Name: "Own", Subject: "s", Text: "{{code}}"}
	if err := s.Table.Write(ctx, s.PutTemplate(custom), s.PutTemplate(own)); err != nil {
		t.Fatal(err)
	}
	custom.Version, own.Version = 1, 1
	got, err := s.Templates(ctx, "en")
	want := []Template{custom}
	for _, kind := range TemplateKinds()[1:] {
		want = append(want, Predefined(kind, "en"))
	}
	if d := cmp.Diff(append(want, own), got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if got, err := s.Template(ctx, PINExpiryID, "en"); err != nil || got != custom {
		t.Errorf("customised: %+v, %v", got, err)
	}
	if got, err := s.Template(ctx, "01A", "en"); err != nil || got != own {
		t.Errorf("own: %+v, %v", got, err)
	}
	if err := s.Table.Write(ctx, s.DeleteTemplate(PINExpiryID, 1)); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Template(ctx, PINExpiryID, "de"); err != nil || got != predefined {
		t.Errorf("returned to predefined: %+v, %v", got, err)
	}

	own.Text = "{{code}} {{pin}}"
	if d := cmp.Diff([]string{"text"}, violations(s.Table.Write(ctx, s.PutTemplate(own)))); d != "" {
		t.Errorf("an unknown variable was stored (-want +got):\n%s", d)
	}
	own.Text, own.Version = "{{code}}", 7
	if err := s.Table.Write(ctx, s.PutTemplate(own)); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("another version: %v", err)
	}

	// Templates from before there were kinds are for expiry mails.
	old := table.Item{Key: table.TemplateKey("acme", "00A"), Data: []byte(`{"id":"00A","name":"Old","subject":"s","text":"{{pinExpiration}}"}`)}
	if err := s.Table.Write(ctx, table.Put(rawRecord{old}, table.Absent())); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Template(ctx, "00A", "en"); err != nil || got.Kind != PINExpiry || got.Validate() != nil {
		t.Errorf("a template without a kind: %+v, %v", got, err)
	}

	if shown := fmt.Sprintf("%+v %#v", SMTPSettings{Password: secret.New("horse")}, SMTPSettings{Password: secret.New("horse")}); bytes.Contains([]byte(shown), []byte("horse")) {
		t.Errorf("a printed configuration shows its password: %s", shown)
	}
}
