package tenant_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
)

func TestAuthenticate(t *testing.T) {
	o := newOffice(t)
	_, admin := o.open("acme")
	_, other := o.open("globex")
	kiosk, kioskText := o.key("acme", "lobby", tenant.RoleKiosk)
	token, tokenText, err := o.MintToken(t.Context(), "acme", platform, "01JUSER", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	platformText, hash, err := tenant.NewPlatformKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o.PlatformKeyHash = hash

	type who struct {
		Role  tenant.Role
		Actor audit.Actor
		Of    string
	}
	for _, c := range []struct {
		name string
		text secret.Text
		want who
	}{
		{"kiosk", kioskText, who{tenant.RoleKiosk, audit.Actor{Kind: audit.API, ID: kiosk.ID, Name: "lobby"}, "acme"}},
		{"token of a user", tokenText, who{tenant.RoleSelf, audit.Actor{Kind: audit.Self, ID: "01JUSER"}, "acme"}},
		{"platform", platformText, who{tenant.RolePlatform, audit.Actor{Kind: audit.Platform, ID: "platform"}, ""}},
	} {
		got, err := o.Authenticate(t.Context(), c.text)
		if d := cmp.Diff(c.want, who{got.Role, got.Actor, string(got.Core.Tenant.ID)}); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", c.name, err, d)
		}
	}

	revoked, revokedText := o.key("acme", "old", tenant.RoleOperator)
	if err := o.RevokeKey(t.Context(), "acme", platform, revoked.ID); err != nil {
		t.Fatal(err)
	}
	part := func(s secret.Text, n int) string { return strings.SplitN(s.Reveal(), "_", 4)[n] }
	join := func(parts ...string) string { return strings.Join(parts, "_") }
	want := "not authenticated: the key is not known here"
	for name, text := range map[string]string{
		"empty":                            "",
		"no key at all":                    "correct horse",
		"kind only":                        "pw",
		"without its secret":               join("pw", "acme", kiosk.ID),
		"empty secret":                     join("pw", "acme", kiosk.ID, ""),
		"wrong secret":                     join("pw", "acme", kiosk.ID, part(admin, 3)),
		"a letter more":                    kioskText.Reveal() + "A",
		"unknown kind":                     join("px", "acme", kiosk.ID, part(kioskText, 3)),
		"unknown key":                      join("pw", "acme", "01ARZ3NDEKTSV4RRFFQ69G5FAV", part(kioskText, 3)),
		"unknown tenant":                   join("pw", "initech", kiosk.ID, part(kioskText, 3)),
		"another tenant":                   join("pw", "globex", kiosk.ID, part(kioskText, 3)),
		"another tenant's secret":          join("pw", "acme", kiosk.ID, part(other, 3)),
		"the platform as tenant":           join("pw", "platform", kiosk.ID, part(kioskText, 3)),
		"a path as tenant":                 join("pw", "acme/token", kiosk.ID, part(kioskText, 3)),
		"an id too long to be stored":      join("pw", "acme", strings.Repeat("A", 5000), part(kioskText, 3)),
		"a key as token":                   join("pwt", "acme", kiosk.ID, part(kioskText, 3)),
		"a token as key":                   join("pw", "acme", token.ID, part(tokenText, 3)),
		"revoked":                          revokedText.Reveal(),
		"platform key of another platform": "pwp_" + part(kioskText, 3),
		"platform kind, nothing else":      "pwp_",
	} {
		if got, err := o.Authenticate(t.Context(), secret.New(text)); !errors.Is(err, problem.ErrUnauthenticated) || err.Error() != want || got.Role != "" {
			t.Errorf("%s: role %q, %v", name, got.Role, err)
		}
	}
	o.PlatformKeyHash = ""
	if _, err := o.Authenticate(t.Context(), platformText); err == nil || err.Error() != want {
		t.Errorf("an installation without platform key: %v", err)
	}
}

// Who holds the right key is told that it has expired, and nobody else is.
func TestExpiredKeys(t *testing.T) {
	o := newOffice(t)
	o.open("acme")
	ends := start.Add(time.Hour)
	key, text, err := o.MakeKey(t.Context(), "acme", platform, tenant.APIKey{Name: "temporary", Role: tenant.RoleAdmin, ExpiresAt: ends})
	if err != nil {
		t.Fatal(err)
	}
	_, token, err := o.MintToken(t.Context(), "acme", platform, "01JUSER", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	o.now = ends.Add(-time.Second)
	for _, text := range []secret.Text{text, token} {
		if _, err := o.Authenticate(t.Context(), text); err != nil {
			t.Errorf("a second before: %v", err)
		}
	}
	o.now = ends
	for _, text := range []secret.Text{text, token} {
		_, err := o.Authenticate(t.Context(), text)
		if !errors.Is(err, problem.ErrUnauthenticated) || !strings.Contains(err.Error(), "the key expired at 2026-11-21T11:30:00Z") {
			t.Errorf("expired: %v", err)
		}
	}
	wrong := secret.New(text.Reveal()[:len(text.Reveal())-3] + "AAA")
	if _, err := o.Authenticate(t.Context(), wrong); err == nil || strings.Contains(err.Error(), "expired") {
		t.Errorf("expired, and a wrong secret: %v", err)
	}
	if err := o.RevokeKey(t.Context(), "acme", platform, key.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Authenticate(t.Context(), text); err == nil || strings.Contains(err.Error(), "expired") {
		t.Errorf("expired and revoked: %v", err)
	}
}

// A key in use costs a write an hour, not one a request.
func TestLastUse(t *testing.T) {
	o := newOffice(t)
	o.open("acme")
	key, text := o.key("acme", "intranet", tenant.RoleOperator)
	o.calls.Take()
	for _, c := range []struct {
		after  time.Duration
		writes int
		last   string
	}{
		{0, 1, "10:00"}, {0, 0, "10:00"}, {29 * time.Minute, 0, "10:00"},
		{30 * time.Minute, 1, "11:00"}, {89 * time.Minute, 0, "11:00"},
		{5 * time.Hour, 1, "15:00"},
	} {
		o.now = start.Add(c.after)
		if _, err := o.Authenticate(t.Context(), text); err != nil {
			t.Fatal(err)
		}
		if got := o.calls.Take(); got.Writes != c.writes || got.Gets != 1 || got.Queries != 1 {
			t.Errorf("after %s: %+v, want one get, one query and %d writes", c.after, got, c.writes)
		}
		keys, err := o.APIKeys(t.Context(), "acme")
		i := slices.IndexFunc(keys, func(k tenant.APIKey) bool { return k.ID == key.ID })
		if err != nil || i < 0 || keys[i].LastUsedAt.Format("15:04") != c.last {
			t.Errorf("after %s: %+v, %v, want last use at %s", c.after, keys, err, c.last)
		}
		o.calls.Take()
	}
}

func TestMakeKey(t *testing.T) {
	o := newOffice(t)
	o.open("acme")
	for name, c := range map[string]struct {
		key  tenant.APIKey
		want []string
	}{
		"no name":       {tenant.APIKey{Role: tenant.RoleKiosk}, []string{"name"}},
		"long name":     {tenant.APIKey{Name: strings.Repeat("n", 81), Role: tenant.RoleKiosk}, []string{"name"}},
		"no role":       {tenant.APIKey{Name: "n"}, []string{"role"}},
		"role platform": {tenant.APIKey{Name: "n", Role: tenant.RolePlatform}, []string{"role"}},
		"role self":     {tenant.APIKey{Name: "n", Role: tenant.RoleSelf, UserID: "u", ExpiresAt: start.Add(1)}, []string{"role"}},
		"past":          {tenant.APIKey{Name: "n", Role: tenant.RoleKiosk, ExpiresAt: start}, []string{"expiresAt"}},
		"all of it":     {tenant.APIKey{ExpiresAt: start}, []string{"name", "role", "expiresAt"}},
	} {
		if _, text, err := o.MakeKey(t.Context(), "acme", platform, c.key); !cmp.Equal(c.want, fields(err)) || !text.Empty() {
			t.Errorf("%s: %v, want it to object to %q", name, err, c.want)
		}
	}
	var want []string
	for _, role := range tenant.KeyRoles() {
		o.now = o.now.Add(time.Second)
		key, text := o.key("acme", "key of "+string(role), role)
		if caller, err := o.Authenticate(t.Context(), text); err != nil || caller.Role != role {
			t.Errorf("%s: %q, %v", role, caller.Role, err)
		}
		if d := cmp.Diff([]string{"key.made"}, o.actions("acme", "key/"+key.ID)); d != "" {
			t.Errorf("%s: audit (-want +got):\n%s", role, d)
		}
		want = append(want, key.Name)
	}
	keys, err := o.APIKeys(t.Context(), "acme")
	var got []string
	for _, k := range keys[1:] { // the first administrator's comes first
		got = append(got, k.Name)
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("listed: %v (-want +got):\n%s", err, d)
	}
}

func TestTooManyKeys(t *testing.T) {
	o := newOffice(t)
	o.open("acme")
	for i := range 499 {
		o.key("acme", fmt.Sprint(i), tenant.RoleEvents)
	}
	boss := audit.Actor{Kind: audit.API, ID: "k"}
	one := tenant.APIKey{Name: "one more", Role: tenant.RoleEvents}
	if _, _, err := o.MakeKey(t.Context(), "acme", boss, one); !errors.Is(err, problem.ErrState) {
		t.Errorf("key 501: %v", err)
	}
	if _, _, err := o.MakeKey(t.Context(), "acme", platform, one); err != nil {
		t.Errorf("the platform's rescue: %v", err)
	}
	// Those that are over do not count.
	keys, err := o.APIKeys(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys[1:3] {
		if err := o.RevokeKey(t.Context(), "acme", boss, k.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := o.MakeKey(t.Context(), "acme", boss, one); err != nil {
		t.Errorf("after two were revoked: %v", err)
	}
}

func TestMintToken(t *testing.T) {
	o := newOffice(t)
	o.open("acme")
	for life, good := range map[time.Duration]bool{
		0: false, -time.Hour: false, time.Minute - 1: false, time.Minute: true, 24 * time.Hour: true, 24*time.Hour + 1: false,
	} {
		key, text, err := o.MintToken(t.Context(), "acme", platform, "01JUSER", life)
		if good != (err == nil) || !good && (!cmp.Equal([]string{"minutes"}, fields(err)) || !text.Empty()) {
			t.Errorf("%s: %v", life, err)
		}
		if good && !key.ExpiresAt.Equal(start.Add(life)) {
			t.Errorf("%s: ends at %s", life, key.ExpiresAt)
		}
	}
	if d := cmp.Diff([]string{"token.minted", "token.minted"}, o.actions("acme", "user/01JUSER")); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
	if keys, err := o.APIKeys(t.Context(), "acme"); len(keys) != 1 || err != nil {
		t.Errorf("%d API keys, %v: tokens are none", len(keys), err)
	}
}

func TestRevokeKeepsTheLastAdministrator(t *testing.T) {
	o := newOffice(t)
	o.open("acme")
	keys, err := o.APIKeys(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	first := keys[0].ID
	revoke := func(id string) error { return o.RevokeKey(t.Context(), "acme", platform, id) }

	operator, _ := o.key("acme", "operator", tenant.RoleOperator)
	expired, _, err := o.MakeKey(t.Context(), "acme", platform, tenant.APIKey{Name: "expired", Role: tenant.RoleAdmin, ExpiresAt: start.Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	o.now = start.Add(time.Minute)
	if err := revoke(first); !errors.Is(err, problem.ErrState) {
		t.Errorf("the last usable key of role admin: %v", err)
	}
	second, _ := o.key("acme", "second", tenant.RoleAdmin)
	for _, id := range []string{first, first, operator.ID, expired.ID} { // one of them twice
		if err := revoke(id); err != nil {
			t.Errorf("revoke %s: %v", id, err)
		}
	}
	if err := revoke(second.ID); !errors.Is(err, problem.ErrState) {
		t.Errorf("the last one again: %v", err)
	}
	if err := revoke("01ARZ3NDEKTSV4RRFFQ69G5FAV"); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("an unknown key: %v", err)
	}
	if d := cmp.Diff([]string{"key.revoked"}, o.actions("acme", "key/"+first)); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
}

// Two administrators revoke each other's key at the same time: one of the keys
// stays.
func TestRacingRevokesKeepAnAdministrator(t *testing.T) {
	o := newOffice(t)
	o.open("acme")
	one, _ := o.APIKeys(t.Context(), "acme")
	two, _ := o.key("acme", "second", tenant.RoleAdmin)
	o.Table = &meanwhile{o.calls, func() {
		if err := o.RevokeKey(t.Context(), "acme", platform, two.ID); err != nil {
			t.Error(err)
		}
	}}
	err := o.RevokeKey(t.Context(), "acme", platform, one[0].ID)
	keys, _ := o.APIKeys(t.Context(), "acme")
	if !slices.ContainsFunc(keys, func(k tenant.APIKey) bool { return k.Usable(o.now) }) {
		t.Errorf("no key of role admin is left; the second revoke answered %v", err)
	}
}

// A key is revoked although it is used for the first time in the hour just then.
func TestRevokeWhileInUse(t *testing.T) {
	o := newOffice(t)
	o.open("acme")
	key, text := o.key("acme", "stolen", tenant.RoleOperator)
	o.Table = &meanwhile{o.calls, func() {
		if _, err := o.Authenticate(t.Context(), text); err != nil {
			t.Error(err)
		}
	}}
	if err := o.RevokeKey(t.Context(), "acme", platform, key.ID); err != nil {
		t.Errorf("revoke: %v", err)
	}
	if _, err := o.Authenticate(t.Context(), text); !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("the revoked key: %v", err)
	}
}
