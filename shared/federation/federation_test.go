package federation

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

const acme table.TenantID = "acme"

const (
	theSecret = "the secret of the client"
	theCode   = "the-code-of-the-provider"
)

var (
	start  = time.Date(2026, 11, 21, 10, 30, 0, 0, time.UTC)
	office = audit.Actor{Kind: audit.API, ID: "k1"}
	device = person.Device{Client: "192.0.2.7", Agent: "Mozilla/5.0"}
)

type object = map[string]any

// recorder keeps all that was ever put into a table.
type recorder struct {
	table.Table
	mu  sync.Mutex
	all strings.Builder
}

// Write implements table.Table.
func (r *recorder) Write(ctx context.Context, ops ...table.Op) error {
	r.mu.Lock()
	for _, op := range ops {
		item := op.Item()
		fmt.Fprintf(&r.all, "%s %s %s\n", item.Key.Partition(), item.Key.Sort(), item.Data)
	}
	r.mu.Unlock()
	return r.Table.Write(ctx, ops...)
}

// liar is a provider that says what a test wants.
type liar struct {
	*httptest.Server
	key       *rsa.PrivateKey
	says      object // instead of, in its configuration
	claims    object // in the ID token, over what would be right
	info      object // from userinfo; nil is none
	status    int    // of its configuration
	tokens    string // instead of tokens, with 400
	challenge string // of the request
	nonce     string
	last      string // ID token
	form      url.Values
}

var signingKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newLiar(t *testing.T) *liar {
	t.Helper()
	key, err := signingKey()
	must(t, err)
	l := &liar{key: key, claims: object{}, says: object{}, status: http.StatusOK}
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		if l.status/100 == 3 {
			http.Redirect(w, r, "/elsewhere", l.status)
			return
		}
		m := object{"issuer": l.URL, "authorization_endpoint": l.URL + "/auth", "token_endpoint": l.URL + "/token", "jwks_uri": l.URL + "/keys",
			"response_types_supported": []string{"code"}, "code_challenge_methods_supported": []string{"S256"}, "id_token_signing_alg_values_supported": []string{"RS256"},
			"scopes_supported": []string{"openid", "email"}, "claims_supported": []string{"sub", "email"}}
		if l.info != nil {
			m["userinfo_endpoint"] = l.URL + "/me"
		}
		maps.Copy(m, l.says)
		answer(w, l.status, m)
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		answer(w, 200, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: l.key.Public(), KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
	})
	mux.HandleFunc("/me", func(w http.ResponseWriter, r *http.Request) { answer(w, 200, l.info) })
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		l.form = r.PostForm
		id, given, _ := r.BasicAuth()
		sum := sha256.Sum256([]byte(r.PostForm.Get("code_verifier")))
		switch {
		case l.tokens != "":
			answer(w, 400, object{"error": l.tokens, "error_description": "you sent " + r.PostForm.Encode()})
			return
		case id != "pinward" || given != url.QueryEscape(theSecret) || base64.RawURLEncoding.EncodeToString(sum[:]) != l.challenge:
			answer(w, 400, object{"error": "invalid_grant"})
			return
		}
		claims := object{"iss": l.URL, "aud": "pinward", "sub": "sub-1", "nonce": l.nonce, "iat": start.Unix(), "exp": start.Add(time.Hour).Unix(),
			"email": "ada@acme.example", "email_verified": true, "name": "Ada", "groups": []string{"it"}, "auth_time": start.Unix()}
		maps.Copy(claims, l.claims)
		maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: l.key, KeyID: "1"}}, nil)
		if err != nil {
			panic(err)
		}
		payload, _ := json.Marshal(claims)
		signed, err := signer.Sign(payload)
		if err != nil {
			panic(err)
		}
		l.last, _ = signed.CompactSerialize()
		answer(w, 200, object{"access_token": "the-access-token", "token_type": "Bearer", "id_token": l.last})
	})
	l.Server = httptest.NewServer(mux)
	t.Cleanup(l.Close)
	return l
}

type world struct {
	testing.TB
	*Federation
	core   tenant.Core
	table  *recorder
	liar   *liar
	now    time.Time
	people *person.People
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	root, err := vault.LocalRoot(filepath.Join(t.TempDir(), "root.key"))
	must(t, err)
	w := &world{TB: t, now: start, table: &recorder{Table: tabletest.New(t)}, liar: newLiar(t)}
	now := func() time.Time { return w.now }
	log := audit.Log{Now: now, Rand: &ulid.LockedMonotonicReader{MonotonicReader: ulid.Monotonic(rand.Reader, 0)}}
	ts := &tenant.Tenants{Table: w.table, Vault: vault.New(root), Audit: log, Now: now, Rand: rand.Reader}
	w.people = &person.People{Table: w.table, Tenants: ts, Senders: mail.Senders{}, Audit: log, Now: now, Rand: rand.Reader, Log: slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil))}
	w.Federation = &Federation{Table: w.table, Tenants: ts, People: w.people, Audit: log, Now: now, Rand: rand.Reader, BaseURL: "https://pin.example", Anywhere: true}
	w.core, _, err = ts.Create(t.Context(), office, tenant.Tenant{ID: acme, Settings: tenant.Settings{DisplayName: "Acme", TimeZone: "Europe/Berlin", Language: "en"}})
	must(t, err)
	return w
}

func (w *world) provider() Provider {
	return Provider{Issuer: w.liar.URL, ClientID: "pinward", Secret: secret.New(theSecret), Scopes: []string{"email"}, RoleClaim: "groups",
		Roles: map[tenant.Role][]string{tenant.RoleAdmin: {"it"}, tenant.RoleOperator: {"desk", "it"}}, Create: true, On: true}
}

func (w *world) put(p Provider) Provider {
	w.Helper()
	p, err := w.Put(w.Context(), w.core, office, p)
	must(w, err)
	return p
}

// leave begins a sign-in and returns what the browser brings back, if all goes well.
func (w *world) leave() (secret.Text, Return) {
	w.Helper()
	d, err := w.Begin(w.Context(), acme, device.Client, "/console/users")
	must(w, err)
	return d.Cookie, w.back(d)
}

func (w *world) back(d Departure) Return {
	w.Helper()
	u, err := url.Parse(d.URL)
	must(w, err)
	w.liar.challenge, w.liar.nonce = u.Query().Get("code_challenge"), u.Query().Get("nonce")
	return Return{State: u.Query().Get("state"), Code: secret.New(theCode), Issuer: w.liar.URL}
}

func (w *world) signIn() (Arrival, error) {
	w.Helper()
	cookie, back := w.leave()
	return w.Finish(w.Context(), cookie, back, device)
}

func (w *world) refusedAs(err error, code, trouble string) {
	w.Helper()
	var why *NotLetIn
	if !errors.As(err, &why) || why.Code != code || !errors.Is(err, problem.ErrUnauthenticated) {
		w.Fatalf("got %v, want %s", err, code)
	}
	var t *Trouble
	if errors.As(err, &t); trouble != "" && (t == nil || t.Code+" "+t.Detail != trouble && t.Code != trouble) {
		w.Errorf("got %v, want trouble %s", err, trouble)
	}
}

func TestValidate(t *testing.T) {
	good := Provider{Issuer: "https://login.example.org/x", ClientID: "pinward", Public: true, Scopes: []string{"email"}}
	must(t, good.Validate())
	for name, x := range map[string]struct {
		change func(*Provider)
		field  string
	}{
		"no issuer":               {func(p *Provider) { p.Issuer = "" }, "issuer"},
		"issuer with query":       {func(p *Provider) { p.Issuer += "?a" }, "issuer"},
		"issuer with user":        {func(p *Provider) { p.Issuer = "https://u:p@example.org" }, "issuer"},
		"configuration's address": {func(p *Provider) { p.Issuer += "/.well-known/openid-configuration" }, "issuer"},
		"long issuer":             {func(p *Provider) { p.Issuer += strings.Repeat("x", 500) }, "issuer"},
		"no client":               {func(p *Provider) { p.ClientID = "" }, "clientId"},
		"no secret":               {func(p *Provider) { p.Public = false }, "clientSecret"},
		"public with secret":      {func(p *Provider) { p.Secret = secret.New("x") }, "clientSecret"},
		"scope with space":        {func(p *Provider) { p.Scopes = []string{"a b"} }, "scopes"},
		"scope twice":             {func(p *Provider) { p.Scopes = []string{"a", "a"} }, "scopes"},
		"claim without values":    {func(p *Provider) { p.RoleClaim = "groups" }, "roles"},
		"values without claim":    {func(p *Provider) { p.Roles = map[tenant.Role][]string{tenant.RoleAdmin: {"x"}} }, "roleClaim"},
		"no such role":            {func(p *Provider) { p.RoleClaim, p.Roles = "g", map[tenant.Role][]string{tenant.RoleKiosk: {"x"}} }, "roles"},
		"empty value":             {func(p *Provider) { p.RoleClaim, p.Roles = "g", map[tenant.Role][]string{tenant.RoleAdmin: {""}} }, "roles.admin"},
		"created without roles":   {func(p *Provider) { p.Create = true }, "roleClaim"},
	} {
		p := good
		x.change(&p)
		var invalid *problem.InvalidError
		if err := p.Validate(); !errors.As(err, &invalid) || len(invalid.Violations) != 1 || invalid.Violations[0].Field != x.field {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPut(t *testing.T) {
	w := newWorld(t)
	p := w.put(w.provider())
	if p.Version != 1 || !p.SecretSet || !p.Secret.Empty() {
		t.Errorf("%+v", p)
	}
	if strings.Contains(w.table.all.String(), theSecret) {
		t.Error("the secret is stored in the clear")
	}
	p.Create = false
	p = w.put(p) // the secret stays
	if got, err := w.load(t.Context(), acme); err != nil || !got.SecretSet {
		t.Errorf("%+v %v", got, err)
	} else if s, err := got.open(w.core); err != nil || s.Reveal() != theSecret {
		t.Errorf("the secret is another: %v", err)
	}
	for name, issuer := range map[string]string{"notPublic": "https://10.0.0.1", "notPublic ": "https://localhost", "notPublic  ": "https://0x7f.1", "scheme": "http://login.example.org"} {
		w.Anywhere = false
		q := w.provider()
		q.Issuer, q.Version = issuer, p.Version
		var invalid *problem.InvalidError
		if _, err := w.Put(t.Context(), w.core, office, q); !errors.As(err, &invalid) || invalid.Violations[0].Code != strings.TrimSpace(name) {
			t.Errorf("%s: %v", issuer, err)
		}
	}
	w.Anywhere = true
	q := p
	q.ClientID = "other"
	if _, err := w.Put(t.Context(), w.core, office, q); err == nil {
		t.Error("the secret goes with another client id")
	}
	q = p
	q.Version--
	if _, err := w.Put(t.Context(), w.core, office, q); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("an old version: %v", err)
	}
	if err := w.Delete(t.Context(), w.core, office, q.Version); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("an old version: %v", err)
	}
	must(t, w.Delete(t.Context(), w.core, office, p.Version))
	if _, err := w.Get(t.Context(), acme); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
}

func TestCheck(t *testing.T) {
	for code, lie := range map[string]func(*world){
		"wrongIssuer": func(w *world) { w.liar.says["issuer"] = "https://other.example" },
		"noPKCE":      func(w *world) { w.liar.says["code_challenge_methods_supported"] = []string{"plain"} },
		"noCode":      func(w *world) { w.liar.says["response_types_supported"] = []string{"id_token"} },
		"notProvider": func(w *world) { w.liar.says["token_endpoint"] = "" },
		"insecure":    func(w *world) { w.liar.says["token_endpoint"] = "ftp://x.example" },
		"status":      func(w *world) { w.liar.status = 404 },
		"redirected":  func(w *world) { w.liar.status = 302 },
		"unreachable": func(w *world) { w.liar.Close() },
		"notPublic":   func(w *world) { w.Dial = mail.PublicDial },
		"noKeys":      func(w *world) { w.liar.says["jwks_uri"] = w.liar.URL + "/.well-known/openid-configuration" },
	} {
		w := newWorld(t)
		lie(w)
		var got *Trouble
		if _, err := w.Check(t.Context(), w.provider()); !errors.As(err, &got) || got.Code != code {
			t.Errorf("got %v, want %s", err, code)
		}
	}
	w := newWorld(t)
	p := w.provider()
	p.Scopes = []string{"email", "groups"}
	if got, err := w.Check(t.Context(), p); err != nil || !got.PKCE || !slices.Equal(got.Missing, []string{"groups"}) || !got.NoClaim {
		t.Errorf("%+v %v", got, err)
	}
}

// A person is created, found again by the account, and has the roles of the mapping each time.
func TestSignIn(t *testing.T) {
	w := newWorld(t)
	w.put(w.provider())
	a, err := w.signIn()
	must(t, err)
	if a.To != "/console/users" || a.Session.Mail != "ada@acme.example" || !slices.Equal(a.Session.Roles, []tenant.Role{tenant.RoleAdmin, tenant.RoleOperator}) || a.Session.Method != person.ByOIDC {
		t.Errorf("%+v", a)
	}
	first := a.Session.PersonID
	w.liar.claims = object{"email": "ada.new@acme.example", "email_verified": false, "groups": "desk"}
	a, err = w.signIn()
	must(t, err)
	if a.Session.PersonID != first || !a.Kept || !slices.Contains(a.Session.Roles, tenant.RoleAdmin) {
		t.Errorf("the last administrator: %+v", a)
	}
	_, err = w.people.Create(t.Context(), w.core, office, person.Person{Name: "Bo", Mail: "bo@acme.example", Roles: []tenant.Role{tenant.RoleAdmin}})
	must(t, err)
	a, err = w.signIn()
	must(t, err)
	if a.Kept || !slices.Equal(a.Session.Roles, []tenant.Role{tenant.RoleOperator}) {
		t.Errorf("no longer the last: %+v", a)
	}
	if _, _, err := w.people.Authenticate(t.Context(), a.Cookie); err != nil {
		t.Error(err)
	}
	w.liar.claims["groups"] = []string{"others"}
	_, err = w.signIn()
	w.refusedAs(err, NoRole, "")
	w.liar.claims["groups"] = []string{"desk"}
	_, err = w.people.Update(t.Context(), w.core, office, first, 0, func(p *person.Person) { p.Disabled = true })
	must(t, err)
	_, err = w.signIn()
	w.refusedAs(err, Disabled, "")
	// Who was deleted is not known any more, whatever the account.
	must(t, w.people.Delete(t.Context(), w.core, office, first, 0))
	_, err = w.signIn()
	w.refusedAs(err, MailNotVouched, "")
	w.liar.claims["email_verified"] = true
	a, err = w.signIn()
	must(t, err)
	if a.Session.PersonID == first || a.Session.Mail != "ada.new@acme.example" {
		t.Errorf("%+v", a)
	}
	w.liar.claims["sub"] = "sub-2"
	_, err = w.signIn()
	w.refusedAs(err, OtherOwner, "")
}

// What the ID token lacks is taken from userinfo, if it is about the same account.
func TestUserInfo(t *testing.T) {
	w := newWorld(t)
	w.put(w.provider())
	w.liar.claims = object{"email": nil, "email_verified": nil, "groups": nil}
	_, err := w.signIn()
	w.refusedAs(err, MailNotVouched, "")
	w.liar.info = object{"sub": "sub-1", "email": "ada@acme.example", "email_verified": "true", "groups": []string{"desk"}, "nonce": "x"}
	a, err := w.signIn()
	must(t, err)
	if a.Session.Name != "Ada" || !slices.Equal(a.Session.Roles, []tenant.Role{tenant.RoleOperator}) {
		t.Errorf("%+v", a)
	}
	w.liar.info["sub"] = "sub-2"
	_, err = w.signIn()
	w.refusedAs(err, Failing, "token userinfo")
}

func TestNotLetIn(t *testing.T) {
	for name, x := range map[string]struct {
		lie           func(*world)
		code, trouble string
	}{
		"nonce":         {func(w *world) { w.liar.claims["nonce"] = "another" }, Failing, "token nonce"},
		"no nonce":      {func(w *world) { w.liar.claims["nonce"] = nil }, Failing, "token nonce"},
		"issuer":        {func(w *world) { w.liar.claims["iss"] = "https://other.example" }, Failing, "token"},
		"audience":      {func(w *world) { w.liar.claims["aud"] = "other" }, Failing, "token"},
		"party":         {func(w *world) { w.liar.claims["azp"] = "other" }, Failing, "token azp"},
		"two audiences": {func(w *world) { w.liar.claims["aud"] = []string{"pinward", "other"} }, Failing, "token azp"},
		"expired":       {func(w *world) { w.liar.claims["exp"] = start.Add(-time.Second).Unix() }, Failing, "token"},
		"no subject":    {func(w *world) { w.liar.claims["sub"] = "" }, Failing, "token sub"},
		"another's key": {func(w *world) {
			w.liar.key, _ = rsa.GenerateKey(rand.Reader, 2048)
			w.liar.says["jwks_uri"] = newLiar(t).URL + "/keys"
		}, Failing, "token"},
		"client":          {func(w *world) { w.liar.tokens = "invalid_client" }, Failing, "client invalid_client"},
		"verifier":        {func(w *world) { w.liar.challenge = "another" }, Failing, "code invalid_grant"},
		"provider gone":   {func(w *world) { w.liar.Close() }, Failing, "unreachable"},
		"unverified mail": {func(w *world) { w.liar.claims["email_verified"] = false }, MailNotVouched, ""},
		"no role":         {func(w *world) { w.liar.claims["groups"] = []any{"other", 7} }, NoRole, ""},
		"not created": {func(w *world) {
			p := w.provider()
			p.Create, p.Version = false, 1
			w.put(p)
		}, NotKnown, ""},
		"switched off": {func(w *world) {
			p := w.provider()
			p.On, p.Version = false, 1
			w.put(p)
		}, NotSetUp, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.put(w.provider())
			cookie, back := w.leave()
			x.lie(w)
			_, err := w.Finish(t.Context(), cookie, back, device)
			w.refusedAs(err, x.code, x.trouble)
			for _, told := range []string{theCode, theSecret, cookie.Reveal()} {
				if strings.Contains(err.Error(), told) {
					t.Errorf("the error tells %q", told)
				}
			}
			if x.code == NotSetUp {
				return
			}
			records, _, err := audit.Day(t.Context(), w.table, acme, w.now, "", 10)
			must(t, err)
			if r := records[0]; r.Action != "person.signedIn" || r.Outcome != audit.Refused || r.Reason != x.code || !strings.HasPrefix(r.Details["trouble"], strings.Split(x.trouble, " ")[0]) {
				t.Errorf("recorded %+v", r)
			}
		})
	}
}

// A return counts once, in time, with its own cookie and state, and from the provider it is of.
func TestReturn(t *testing.T) {
	w := newWorld(t)
	w.put(w.provider())
	ctx := t.Context()
	cookie, back := w.leave()
	otherCookie, otherBack := w.leave()
	for name, x := range map[string]struct {
		cookie secret.Text
		back   Return
		code   string
	}{
		"no cookie":    {secret.Text{}, back, OtherReturn},
		"other cookie": {otherCookie, back, OtherReturn},
		"other state":  {cookie, otherBack, OtherReturn},
		"no state":     {cookie, Return{Code: back.Code}, OtherReturn},
		"other kind":   {secret.New(strings.Replace(cookie.Reveal(), signsIn, confirms, 1)), back, OtherReturn},
		"other tenant": {secret.New(strings.Replace(cookie.Reveal(), "_acme_", "_other_", 1)), back, OtherReturn},
		"nonsense":     {secret.New("pwo_acme_x_y_z"), back, OtherReturn},
	} {
		_, err := w.Finish(ctx, x.cookie, x.back, device)
		if w.refusedAs(err, x.code, ""); t.Failed() {
			t.Fatal(name)
		}
	}
	for _, x := range []struct{ says, code string }{{"access_denied", Denied}, {"login_required", NotSignedIn}, {"invalid_scope", Failing}, {"<script>", Failing}} {
		cookie, back := w.leave()
		back.Code, back.Error = secret.Text{}, x.says
		_, err := w.Finish(ctx, cookie, back, device)
		w.refusedAs(err, x.code, "")
	}
	mixed, mixedBack := w.leave()
	mixedBack.Issuer = "https://other.example"
	_, err := w.Finish(ctx, mixed, mixedBack, device)
	w.refusedAs(err, Failing, "wrongIssuer https://other.example")

	late, lateBack := w.leave()
	cookie, back = w.leave()
	_, err = w.Finish(ctx, cookie, back, device)
	must(t, err)
	_, err = w.Finish(ctx, cookie, back, device)
	w.refusedAs(err, OtherReturn, "")
	w.now = w.now.Add(Life)
	_, err = w.Finish(ctx, late, lateBack, device)
	w.refusedAs(err, OtherReturn, "")
}

// Of two returns of the same trip at the same time one is let in.
func TestReturnsAtOnce(t *testing.T) {
	w := newWorld(t)
	w.put(w.provider())
	cookie, back := w.leave()
	results := make(chan error)
	for range 4 {
		go func() { _, err := w.Finish(t.Context(), cookie, back, device); results <- err }()
	}
	in := 0
	for range 4 {
		if err := <-results; err == nil {
			in++
		} else {
			w.refusedAs(err, OtherReturn, "")
		}
	}
	if in != 1 {
		t.Errorf("%d were let in", in)
	}
}

func TestConfirm(t *testing.T) {
	w := newWorld(t)
	w.put(w.provider())
	a, err := w.signIn()
	must(t, err)
	w.now = w.now.Add(person.FreshFor)
	confirm := func() error {
		d, err := w.BeginConfirm(t.Context(), a.Session, device.Client)
		must(t, err)
		if !Confirms(d.Cookie) || !strings.Contains(d.URL, "prompt=login") || !strings.Contains(d.URL, "max_age=0") {
			t.Errorf("goes to %s", d.URL)
		}
		return w.FinishConfirm(t.Context(), a.Session, d.Cookie, w.back(d), device.Client)
	}
	w.refusedAs(confirm(), NotLately, "")
	w.liar.claims["auth_time"] = nil
	w.refusedAs(confirm(), NotLately, "")
	w.liar.claims["auth_time"] = w.now.Unix()
	w.liar.claims["sub"] = "sub-2"
	w.refusedAs(confirm(), NotTheSame, "")
	delete(w.liar.claims, "sub")
	must(t, confirm())
	s, _, err := w.people.Authenticate(t.Context(), a.Cookie)
	if err != nil || !w.people.Fresh(s) {
		t.Errorf("%+v %v", s, err)
	}
}

// Whoever has the table, with the audit in it, has nothing to get in with.
func TestNoSecretIsStored(t *testing.T) {
	w := newWorld(t)
	w.put(w.provider())
	cookie, back := w.leave()
	_, err := w.Finish(t.Context(), cookie, back, device)
	must(t, err)
	trip, _ := parse(cookie)
	for what, s := range map[string]string{"client secret": theSecret, "code": theCode, "ID token": w.liar.last, "access token": "the-access-token", "cookie": trip.secret,
		"state": back.State, "nonce": w.liar.nonce, "verifier": w.liar.form.Get("code_verifier"), "subject": "sub-1"} {
		if s == "" || strings.Contains(w.table.all.String(), s) {
			t.Errorf("the %s is stored, or was none: %q", what, s)
		}
	}
}

// Whichever call to the table fails, whether or not it was carried out, the next sign-in lets
// in, as the one person.
func TestFaults(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			w := newWorld(t)
			w.put(w.provider())
			cookie, back := w.leave()
			faulty := tabletest.Fail(w.table, n, after)
			f, ps, ts := *w.Federation, *w.people, *w.Tenants
			ts.Table, ps.Table, ps.Tenants = faulty, faulty, &ts
			f.Table, f.People, f.Tenants = faulty, &ps, &ts
			_, err := f.Finish(t.Context(), cookie, back, device)
			if faulty.Calls() < n {
				if err != nil || n < 8 {
					t.Errorf("%d calls: %v", n, err)
				}
				break
			}
			if _, err := w.signIn(); err != nil {
				t.Errorf("after the fault of call %d (carried out: %v): %v", n, after, err)
			}
			if all, err := w.people.List(t.Context(), acme); err != nil || len(all) != 1 {
				t.Errorf("after the fault of call %d: %v %v", n, all, err)
			}
		}
	}
}
