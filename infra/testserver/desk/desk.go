// Package desk is a service desk for tests: an installation, a tenant with a cardholder,
// cards in software, and bridges that do what the real one does, but only when they are
// told to, over a line that may lose, repeat and hold back what is said.
package desk

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sesv2"
	"github.com/aws/aws-sdk-go-v2/service/sesv2/types"

	"github.com/pinward/pinward/functions/api/rest"
	"github.com/pinward/pinward/functions/wiring"
	"github.com/pinward/pinward/infra/softcard"
	"github.com/pinward/pinward/infra/testserver"
	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/card"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/gateway"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/bolt"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/unblock"
	"github.com/pinward/pinward/shared/user"
	"github.com/pinward/pinward/shared/vault"
)

// What there is on a desk.
const (
	Acme     = table.TenantID("acme")
	RelayURL = "wss://relay.example.org"
	Console  = "https://pinward.example.org"
	API      = "https://api.pinward.example.org"
	Address  = "ada@acme.example"
	FirstPUK = "47110815"
	AdminKey = "8f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978"
)

// Admin is who sets the desk up.
var Admin = audit.Actor{Kind: audit.API, ID: "k1", Name: "intranet"}

// Desk is the installation and the tenant acme in it.
type Desk struct {
	testing.TB
	*wiring.System
	Line        gateway.Socket
	Core        tenant.Core
	Clock       *Clock
	Mails       *Mails
	Wire        *Wire // the table that the product uses
	Log         *testserver.Buffer
	Heard       *testserver.Buffer // what was said to bridges but scripts, and to callers of the API
	PlatformKey string
	AdminKey    string // of acme, for the API
	Holder      user.User
	Messaging   string

	file    string
	mu      sync.Mutex
	secrets map[string]string // value → what it is
	lines   map[string]*Bridge
	numbers int
}

// New sets a desk up.
func New(tb testing.TB) *Desk {
	tb.Helper()
	dir := tb.TempDir()
	d := &Desk{TB: tb, Clock: &Clock{t: time.Date(2030, 1, 31, 9, 0, 0, 0, time.UTC)}, Mails: &Mails{}, Log: new(testserver.Buffer), Heard: new(testserver.Buffer),
		file: filepath.Join(dir, "table"), secrets: map[string]string{}, lines: map[string]*Bridge{}}
	db, err := bolt.Open(d.file, bolt.NoSync())
	d.Must(err)
	tb.Cleanup(func() { _ = db.Close() })
	d.Wire = &Wire{Table: db, whole: db}
	root, err := vault.LocalRoot(filepath.Join(dir, "root.key"))
	d.Must(err)
	platform, hash, err := tenant.NewPlatformKey(rand.Reader)
	d.Must(err)
	d.PlatformKey = platform.Reveal()
	d.Secret("platform key", d.PlatformKey)
	d.System = wiring.New(wiring.Parts{
		Table: d.Wire, Root: root, Senders: mail.Senders{SES: mail.NewSES(d.Mails), Now: d.Clock.Now}, Now: d.Clock.Now,
		Log: slog.New(slog.NewJSONHandler(d.Log, &slog.HandlerOptions{Level: slog.LevelDebug})), PlatformKeyHash: hash,
		Rate: rest.Rate{PerSecond: 1e6, Burst: 1e6}, Connections: (*connections)(d), RelayURL: RelayURL, ConsoleURL: Console, APIURL: API,
	})
	d.Line = d.Relay()
	d.tenant()
	return d
}

func (d *Desk) tenant() {
	d.Helper()
	core, key, err := d.Tenants.Create(d.Context(), Admin, tenant.Tenant{ID: Acme, Settings: tenant.Settings{DisplayName: "Acme", TimeZone: "Europe/Berlin", Language: "en"}})
	d.Must(err)
	d.Core, d.AdminKey = core, key.Reveal()
	d.Secret("API key", d.AdminKey)
	d.Messaging = d.NewMessaging()
	d.Holder, err = d.Users.Create(d.Context(), core, Admin, user.Profile{Username: "ada", Mail: Address}, nil)
	d.Must(err)
	d.Secret("address", Address)
}

// NewMessaging makes a messaging configuration.
func (d *Desk) NewMessaging() string {
	d.Helper()
	id := fmt.Sprintf("mail-%d", d.number())
	store := mail.Store{Table: d.Wire, Tenant: Acme, Keys: d.Core.Keys}
	op, err := store.PutConfiguration(d.Context(), mail.Configuration{ID: id, Name: "SES", Kind: mail.KindSES, From: "it@acme.example"})
	d.Must(err)
	d.Must(d.Wire.Write(d.Context(), op))
	return id
}

func (d *Desk) number() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.numbers++
	return d.numbers
}

// Must ends the test if there is an error.
func (d *Desk) Must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

// Template makes a credential template, changed as given: both channels are open, the
// holder is mailed, and a PIN is good for 90 days.
func (d *Desk) Template(family string, change ...func(*credential.Template)) credential.Template {
	d.Helper()
	f, err := card.FamilyNamed(family)
	d.Must(err)
	t := credential.Template{Name: family + " cards", Family: family, Policy: f.Policy(), Channels: credential.Channels(), Messaging: d.Messaging, PINValidDays: 90}
	for _, c := range change {
		c(&t)
	}
	t, err = d.Credentials.CreateTemplate(d.Context(), d.Core, Admin, t, nil)
	d.Must(err)
	return t
}

// Issue makes a card with a blocked PIN, and registers it for the holder by a template of
// its family, which is made if it is none.
func (d *Desk) Issue(profile softcard.Profile, template ...credential.Template) (*softcard.Card, credential.Credential) {
	d.Helper()
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	c := softcard.Config{Profile: profile, ID: id, Blocked: true, Rand: rand.Reader}
	n := credential.New{Family: "PIV", CardID: fmt.Sprintf("%X", id), Holder: d.Holder.ID, Label: "Ada's card"}
	if profile == softcard.GIDS {
		n.Family = "GIDS"
		c.AdminKey, _ = hex.DecodeString(AdminKey)
		key := secret.New(AdminKey)
		n.AdminKey = &key
		d.Secret("admin key", AdminKey)
		d.Secret("admin key in base64", base64.StdEncoding.EncodeToString(c.AdminKey))
	} else {
		c.PUK = FirstPUK
		puk := secret.New(FirstPUK)
		n.PUK = &puk
		d.Secret("PUK", FirstPUK)
	}
	if len(template) == 0 {
		template = append(template, d.Template(n.Family))
	}
	n.Template = template[0].ID
	piece, err := softcard.New(c)
	d.Must(err)
	cred, err := d.Credentials.Register(d.Context(), d.Core, Admin, n)
	d.Must(err)
	return piece, cred
}

// SetAdminKey replaces a card's admin key on record.
func (d *Desk) SetAdminKey(credential, key string) {
	d.Helper()
	_, err := d.Credentials.SetAdminKey(d.Context(), d.Core, Admin, credential, secret.New(key), true)
	d.Must(err)
}

// Credential is a credential as it is now.
func (d *Desk) Credential(id string) credential.Credential {
	d.Helper()
	c, err := d.Credentials.Get(d.Context(), Acme, id)
	d.Must(err)
	return c
}

// Operation is an operation as it is now.
func (d *Desk) Operation(id string) unblock.Operation {
	d.Helper()
	op, err := d.Unblocks.Get(d.Context(), Acme, id)
	d.Must(err)
	return op
}

// Operations are all operations on a credential, oldest first.
func (d *Desk) Operations(credential string) []unblock.Operation {
	d.Helper()
	ops, next, err := d.Unblocks.List(d.Context(), Acme, credential, "", table.MaxLimit)
	d.Must(err)
	if next != "" {
		d.Fatal("there are more operations")
	}
	slices.Reverse(ops)
	return ops
}

// Only is the one operation on a credential.
func (d *Desk) Only(credential string) unblock.Operation {
	d.Helper()
	ops := d.Operations(credential)
	if len(ops) != 1 {
		d.Fatalf("there are %d operations: %v", len(ops), ops)
	}
	return ops[0]
}

// PUKs are those that a credential's custody names.
func (d *Desk) PUKs(c credential.Credential) (puks []string) {
	d.Helper()
	for _, slot := range []int{c.Custody.Current, c.Custody.Proposed} {
		if slot != 0 {
			puk, err := c.PUK(d.Core.Keys, Acme, slot)
			d.Must(err)
			puks = append(puks, puk.Reveal())
		}
	}
	return puks
}

// Knows tells whether the PUK that a card has is one that its credential's custody names.
func (d *Desk) Knows(piece *softcard.Card, c credential.Credential) bool {
	d.Helper()
	return slices.ContainsFunc(d.PUKs(c), piece.PUKIs)
}

// Sweep runs the sweep of the unblocks.
func (d *Desk) Sweep() unblock.Report {
	d.Helper()
	r, err := d.Unblocks.Sweep(d.Context(), 100)
	if err != nil {
		d.Errorf("sweep: %v", err)
	}
	return r
}

// Garble makes one of the operations, which must be under way, unreadable, and names it.
func (d *Desk) Garble(ids []string) string {
	d.Helper()
	for _, id := range ids {
		if op := d.Operation(id); !op.State.Finished() {
			text := tabletest.Text(table.UnblockKey(Acme, id), "not an operation", table.UnblockDue(Acme, id, op.Until))
			d.Must(d.Wire.Write(d.Context(), table.Put(text, table.IfVersion(op.Version))))
			return id
		}
	}
	d.Fatal("none is under way")
	return ""
}

// Audited are the actions on a credential, oldest first.
func (d *Desk) Audited(c string) []audit.Record {
	d.Helper()
	records, more, err := audit.Of(d.Context(), d.Wire, Acme, credential.Subject(c), "", table.MaxLimit)
	if err != nil || more {
		d.Fatal(more, err)
	}
	slices.Reverse(records)
	return records
}

// Actions are those of Audited in short: "puk.read", "unblock.proof refused wrongCode".
func (d *Desk) Actions(c string) (actions []string) {
	d.Helper()
	for _, r := range d.Audited(c) {
		action := r.Action
		if r.Outcome != audit.Done {
			action += fmt.Sprintf(" %s %s", r.Outcome, r.Reason)
		}
		actions = append(actions, action)
	}
	return actions
}

// Code is the code in the last mail.
func (d *Desk) Code() string {
	d.Helper()
	mails := d.Mails.All()
	if len(mails) == 0 {
		d.Fatal("there is no mail")
	}
	code := strings.ReplaceAll(aCode.FindString(mails[len(mails)-1].Text), " ", "")
	if code == "" {
		d.Fatalf("there is no code in %q", mails[len(mails)-1].Text)
	}
	d.Secret("code", code)
	d.Secret("code", code[:3]+" "+code[3:])
	return code
}

var aCode = regexp.MustCompile(`\b\d{3} \d{3}\b`)

// Wrong is a code that is not this one.
func Wrong(code string) string {
	if code == "000000" {
		return "000001"
	}
	return "000000"
}

// Secret notes what must show nowhere.
func (d *Desk) Secret(what, value string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.secrets[value] = what
}

// Search looks for the secrets in the log, in what was said to bridges and callers, and in
// the table, with the audit log in it: as they are, in hex and in base64.
func (d *Desk) Search() {
	d.Helper()
	file, err := os.ReadFile(d.file)
	d.Must(err)
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.secrets) < 5 || d.Log.String() == "" || d.Heard.String() == "" {
		d.Fatalf("there is nothing to search: %d secrets", len(d.secrets))
	}
	for name, text := range map[string]string{"the log": d.Log.String(), "what was said": d.Heard.String(), "the table": string(file)} {
		lower := strings.ToLower(text)
		for value, what := range d.secrets {
			if what == "address" && name == "the table" {
				continue // it is in the user's profile
			}
			found := hasWord(text, value)
			if len(value) >= 6 {
				found = found || strings.Contains(lower, hex.EncodeToString([]byte(value)))
				for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawURLEncoding} {
					found = found || strings.Contains(text, strings.TrimRight(encoding.EncodeToString([]byte(value)), "="))
				}
			}
			if found {
				d.Errorf("%s shows a %s", name, what)
			}
		}
	}
}

// hasWord tells that a text has a word, not as part of another: digits may be part of a
// number.
func hasWord(text, word string) bool {
	part := func(at int) bool {
		return at >= 0 && at < len(text) && strings.IndexByte("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", text[at]) >= 0
	}
	for at := 0; ; at++ {
		i := strings.Index(text[at:], word)
		if i < 0 {
			return false
		}
		if at += i; !part(at-1) && !part(at+len(word)) {
			return true
		}
	}
}

// Clock is a clock that stands still.
type Clock struct {
	mu sync.Mutex
	t  time.Time
}

// Now is its time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

// Pass puts it forward.
func (c *Clock) Pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// Wire is a table that can be exchanged for another one on the same.
type Wire struct {
	table.Table
	whole table.Table
	mu    sync.Mutex
}

// Through has all calls go through a wrapper of the table.
func (w *Wire) Through(wrap func(table.Table) table.Table) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Table = wrap(w.whole)
}

// Whole takes a wrapper away.
func (w *Wire) Whole() { w.Through(func(t table.Table) table.Table { return t }) }

func (w *Wire) now() table.Table {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Table
}

// Get implements table.Table.
func (w *Wire) Get(ctx context.Context, key table.Key) (table.Item, error) {
	return w.now().Get(ctx, key)
}

// Query implements table.Table.
func (w *Wire) Query(ctx context.Context, r table.Range) (table.Page, error) {
	return w.now().Query(ctx, r)
}

// Write implements table.Table.
func (w *Wire) Write(ctx context.Context, ops ...table.Op) error { return w.now().Write(ctx, ops...) }

// Mail is a mail that was taken.
type Mail struct{ To, Subject, Text string }

// Mails is a mail system. Unlike the outbox it takes a mail as often as it is sent.
type Mails struct {
	Before func() // is called before each mail is taken, if there is one

	mu    sync.Mutex
	all   []Mail
	fails int
}

// Fail has the next n mails refused for now.
func (m *Mails) Fail(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fails = n
}

// All are the mails that were taken.
func (m *Mails) All() []Mail {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.all)
}

// Of are the mails taken whose subject has a word.
func (m *Mails) Of(word string) (mails []Mail) {
	for _, mail := range m.All() {
		if strings.Contains(mail.Subject, word) {
			mails = append(mails, mail)
		}
	}
	return mails
}

// SendBulkEmail implements mail.SESAPI.
func (m *Mails) SendBulkEmail(_ context.Context, in *sesv2.SendBulkEmailInput, _ ...func(*sesv2.Options)) (*sesv2.SendBulkEmailOutput, error) {
	if m.Before != nil {
		m.Before()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := &sesv2.SendBulkEmailOutput{}
	for _, entry := range in.BulkEmailEntries {
		result := types.BulkEmailEntryResult{Status: types.BulkEmailStatusSuccess}
		if m.fails > 0 {
			m.fails--
			result.Status = types.BulkEmailStatusFailed
		} else {
			mail := Mail{To: entry.Destination.ToAddresses[0]}
			if err := json.Unmarshal([]byte(*entry.ReplacementEmailContent.ReplacementTemplate.ReplacementTemplateData), &mail); err != nil {
				return nil, err
			}
			m.all = append(m.all, mail)
		}
		out.BulkEmailEntryResults = append(out.BulkEmailEntryResults, result)
	}
	return out, nil
}

// GetAccount implements mail.SESAPI.
func (*Mails) GetAccount(context.Context, *sesv2.GetAccountInput, ...func(*sesv2.Options)) (*sesv2.GetAccountOutput, error) {
	return &sesv2.GetAccountOutput{SendQuota: &types.SendQuota{Max24HourSend: 1e9, MaxSendRate: 1e6}}, nil
}
