package tenant_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/table/tabletest"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/vault"
)

var (
	start    = time.Date(2026, 11, 21, 10, 30, 0, 0, time.UTC)
	platform = audit.Actor{Kind: audit.Platform, ID: "platform"}
	settings = tenant.Settings{DisplayName: "Acme", TimeZone: "Europe/Berlin", Language: "de"}
)

// office is an installation whose clock stands at now.
type office struct {
	*testing.T
	*tenant.Tenants
	calls *tabletest.Counting
	now   time.Time
}

func newOffice(t *testing.T) *office {
	t.Helper()
	root, err := vault.LocalRoot(filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	o := &office{T: t, calls: tabletest.Count(tabletest.New(t)), now: start}
	now := func() time.Time { return o.now }
	o.Tenants = &tenant.Tenants{
		Table: o.calls, Vault: vault.New(root), Audit: audit.Log{Now: now, Rand: rand.Reader}, Now: now, Rand: rand.Reader,
	}
	return o
}

// open creates a tenant and returns it with its first key.
func (o *office) open(id table.TenantID) (tenant.Core, secret.Text) {
	o.Helper()
	core, text, err := o.Create(o.Context(), platform, tenant.Tenant{ID: id, Settings: settings})
	if err != nil {
		o.Fatal(err)
	}
	return core, text
}

func (o *office) key(id table.TenantID, name string, role tenant.Role) (tenant.APIKey, secret.Text) {
	o.Helper()
	key, text, err := o.MakeKey(o.Context(), id, platform, tenant.APIKey{Name: name, Role: role})
	if err != nil {
		o.Fatal(err)
	}
	return key, text
}

// actions are the audited actions about a subject, newest first.
func (o *office) actions(id table.TenantID, subject string) (actions []string) {
	o.Helper()
	records, _, err := audit.Of(o.Context(), o.Table, id, subject, "", 100)
	if err != nil {
		o.Fatal(err)
	}
	for _, r := range records {
		actions = append(actions, r.Action)
	}
	return actions
}

// fields are what an InvalidError objects to.
func fields(err error) (fields []string) {
	var invalid *problem.InvalidError
	if errors.As(err, &invalid) {
		for _, v := range invalid.Violations {
			fields = append(fields, v.Field)
		}
	}
	return fields
}

// meanwhile is a table on which something else happens just before the first
// Write.
type meanwhile struct {
	table.Table
	do func()
}

func (m *meanwhile) Write(ctx context.Context, ops ...table.Op) error {
	if do := m.do; do != nil {
		m.do = nil
		do()
	}
	return m.Table.Write(ctx, ops...)
}

func TestCreate(t *testing.T) {
	o := newOffice(t)
	made, text := o.open("acme")
	want := tenant.Tenant{ID: "acme", CreatedAt: start, Settings: settings, Version: 1}
	if d := cmp.Diff(want, made.Tenant); d != "" {
		t.Errorf("created (-want +got):\n%s", d)
	}
	core, err := o.Load(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, core.Tenant); d != "" {
		t.Errorf("loaded (-want +got):\n%s", d)
	}
	if d := cmp.Diff(tenant.Policy{Policy: pin.Default(), Version: 1}, core.Policy); d != "" {
		t.Errorf("policy (-want +got):\n%s", d)
	}
	verifier, err := made.Keys.Verifier("u", secret.New("7392"))
	if err != nil || !core.Keys.Matches(verifier, "u", secret.New("7392")) {
		t.Errorf("the keys loaded are not those made: %v", err)
	}
	caller, err := o.Authenticate(t.Context(), text)
	if err != nil || caller.Role != tenant.RoleAdmin || caller.Core.Tenant.ID != "acme" {
		t.Errorf("the first key is %v of %s, %v", caller.Role, caller.Core.Tenant.ID, err)
	}
	for _, where := range []table.TenantID{"acme", table.Platform} {
		if d := cmp.Diff([]string{"tenant.created"}, o.actions(where, "tenant/acme")); d != "" {
			t.Errorf("audit of %s (-want +got):\n%s", where, d)
		}
	}

	_, _, err = o.Create(t.Context(), platform, tenant.Tenant{ID: "acme", Settings: settings})
	if !errors.Is(err, problem.ErrConflict) || !strings.Contains(err.Error(), "there is a tenant acme already") {
		t.Errorf("a taken id: %v", err)
	}
	if _, err := o.Authenticate(t.Context(), text); err != nil {
		t.Errorf("after that the first tenant's key: %v", err)
	}
	if _, err := o.Load(t.Context(), "nobody"); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("a tenant that is not there: %v", err)
	}
}

func TestTenantIDs(t *testing.T) {
	for id, good := range map[table.TenantID]bool{
		"ab": true, "a-1": true, "acme-2": true, table.TenantID("a" + strings.Repeat("b", 39)): true,
		"": false, "a": false, "1a": false, "-ab": false, "Acme": false, "a_b": false, "a/b": false, "a b": false, "ab\n": false,
		"äb": false, table.TenantID("a" + strings.Repeat("b", 40)): false, table.Platform: false,
	} {
		err := tenant.Tenant{ID: id, Settings: settings}.Validate()
		if want := []string{"id"}; good != (err == nil) || !good && !cmp.Equal(want, fields(err)) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestSettings(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*tenant.Settings)
		want []string
	}{
		"good":                     {func(*tenant.Settings) {}, nil},
		"regional language":        {func(s *tenant.Settings) { s.Language = "de-AT" }, nil},
		"UTC":                      {func(s *tenant.Settings) { s.TimeZone = "UTC" }, nil},
		"longest name":             {func(s *tenant.Settings) { s.DisplayName = strings.Repeat("ü", 100) }, nil},
		"no name":                  {func(s *tenant.Settings) { s.DisplayName = "" }, []string{"displayName"}},
		"too long a name":          {func(s *tenant.Settings) { s.DisplayName = strings.Repeat("u", 101) }, []string{"displayName"}},
		"space around the name":    {func(s *tenant.Settings) { s.DisplayName = " Acme" }, []string{"displayName"}},
		"line break in the name":   {func(s *tenant.Settings) { s.DisplayName = "Ac\r\nme" }, []string{"displayName"}},
		"name not UTF-8":           {func(s *tenant.Settings) { s.DisplayName = "Ac\xffme" }, []string{"displayName"}},
		"no zone":                  {func(s *tenant.Settings) { s.TimeZone = "" }, []string{"timeZone"}},
		"the machine's zone":       {func(s *tenant.Settings) { s.TimeZone = "Local" }, []string{"timeZone"}},
		"unknown zone":             {func(s *tenant.Settings) { s.TimeZone = "Europe/Atlantis" }, []string{"timeZone"}},
		"a file instead of a zone": {func(s *tenant.Settings) { s.TimeZone = "../../etc/passwd" }, []string{"timeZone"}},
		"no language":              {func(s *tenant.Settings) { s.Language = "" }, []string{"language"}},
		"unknown language":         {func(s *tenant.Settings) { s.Language = "deutsch-deutsch-deutsch" }, []string{"language"}},
		"check after imports": {func(s *tenant.Settings) {
			s.SupportFunctions, s.AfterImport = true, tenant.SanityCheck{On: true, Random: true, Before: 3, After: 365}
		}, nil},
		"check without support functions": {func(s *tenant.Settings) { s.AfterImport.On = true }, []string{"sanityCheckAfterImport"}},
		"days of a check too many":        {func(s *tenant.Settings) { s.AfterImport = tenant.SanityCheck{Random: true, Before: -1, After: 366} }, []string{"sanityCheckAfterImport.beforeDays", "sanityCheckAfterImport.afterDays"}},
		"days of an exact check":          {func(s *tenant.Settings) { s.AfterImport.After = 3 }, []string{"sanityCheckAfterImport.afterDays"}},
		"all of it":                       {func(s *tenant.Settings) { *s = tenant.Settings{} }, []string{"displayName", "timeZone", "language"}},
	} {
		s := settings
		c.edit(&s)
		if d := cmp.Diff(c.want, fields(s.Validate())); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	if d := cmp.Diff([]string{"id", "displayName", "timeZone", "language"}, fields(tenant.Tenant{}.Validate())); d != "" {
		t.Errorf("a tenant with nothing (-want +got):\n%s", d)
	}
}

func TestChangeSettings(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	s := settings
	s.PINOnlyLogin, s.ExpiryMail = true, tenant.ExpiryMailRefs{Messaging: "m", Template: "t"}
	s.SupportFunctions, s.AfterImport = true, tenant.SanityCheck{On: true, Random: true, Before: 3, After: 5}
	s.Quiet = tenant.QuietHours{From: 20 * time.Hour, To: 7*time.Hour + 15*time.Minute, DaysOff: []time.Weekday{time.Saturday, time.Sunday}}
	s.Digest = tenant.DigestSettings{Recipients: []string{"it@acme.example"}, Hour: 7, Days: []time.Weekday{time.Monday}}

	missing := table.Check(table.MessagingKey("acme", "m"), table.IfVersion(1))
	if _, err := o.ChangeSettings(t.Context(), platform, core, s, missing); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("under a condition that does not hold: %v", err)
	}
	changed, err := o.ChangeSettings(t.Context(), platform, core, s)
	if err != nil {
		t.Fatal(err)
	}
	got, err := o.Load(t.Context(), "acme")
	if d := cmp.Diff(changed, got.Tenant); d != "" || err != nil || !cmp.Equal(got.Tenant.Settings, s) || got.Tenant.Version != 2 {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if _, err := o.ChangeSettings(t.Context(), platform, core, settings); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("from an old version: %v", err)
	}
	if _, err := o.ChangeSettings(t.Context(), platform, got, tenant.Settings{}); len(fields(err)) != 3 {
		t.Errorf("to nothing: %v", err)
	}
	if d := cmp.Diff([]string{"settings.changed"}, o.actions("acme", "settings")); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
}

func TestSuspend(t *testing.T) {
	o := newOffice(t)
	_, text := o.open("acme")
	for _, suspended := range []bool{true, true, false, false} { // each twice
		o.now = o.now.Add(time.Second)
		got, err := o.Suspend(t.Context(), platform, "acme", suspended)
		if err != nil || got.Suspended != suspended {
			t.Fatalf("suspended %v: %+v, %v", suspended, got, err)
		}
		_, err = o.Authenticate(t.Context(), text)
		if errors.Is(err, problem.ErrForbidden) != suspended {
			t.Errorf("suspended %v: its key: %v", suspended, err)
		}
	}
	for _, where := range []table.TenantID{"acme", table.Platform} {
		if d := cmp.Diff([]string{"tenant.resumed", "tenant.suspended", "tenant.created"}, o.actions(where, "tenant/acme")); d != "" {
			t.Errorf("audit of %s (-want +got):\n%s", where, d)
		}
	}
	if _, err := o.Suspend(t.Context(), platform, "nobody", true); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("a tenant that is not there: %v", err)
	}
}

// Whatever the page, every tenant is in the list once and in order.
func TestListHasNoGapsAndNoDuplicates(t *testing.T) {
	o := newOffice(t)
	var want []string
	for i := range 57 {
		id := fmt.Sprintf("t%c-%02d", 'a'+i*7%26, i)
		o.open(table.TenantID(id))
		want = append(want, id)
	}
	slices.Sort(want)
	for _, limit := range []int{1, 2, 7, 56, 57, 58, 1000} {
		var got []string
		for beyond := ""; ; {
			page, next, err := o.List(t.Context(), beyond, limit)
			if err != nil || len(page) > limit {
				t.Fatalf("limit %d: a page of %d, %v", limit, len(page), err)
			}
			for _, one := range page {
				got = append(got, string(one.ID))
			}
			if next == "" {
				break
			}
			beyond = next
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("limit %d (-want +got):\n%s", limit, d)
		}
	}
}

// The installation's own keys are made once, however many processes start.
func TestEnsurePlatform(t *testing.T) {
	o := newOffice(t)
	var wg sync.WaitGroup
	prints := make([]string, 8)
	for i := range prints {
		wg.Go(func() {
			keys, err := o.EnsurePlatform(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			prints[i], _ = keys.Fingerprint("test", []byte("x"))
		})
	}
	wg.Wait()
	if got := slices.Compact(prints); len(got) != 1 || got[0] == "" {
		t.Errorf("%d different keys", len(got))
	}
}

func TestPolicyVersions(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	fips, err := pin.ProfileNamed("fips201")
	if err != nil {
		t.Fatal(err)
	}
	full := fips.Policy
	full.RequireClasses, full.MaxRun, full.DisallowConstantDelta, full.BlocklistEntries = []pin.Class{pin.Digit}, 3, true, []string{"471100"}
	full.History, full.MinLengthByUsers, full.ExpirationHours, full.NotifyHoursBefore = 3, true, 48, pin.Hours{24}

	o.now = start.Add(time.Hour)
	changed, err := o.ChangePolicy(t.Context(), platform, core, full)
	want := tenant.Policy{Policy: full, Version: 2}
	if d := cmp.Diff(want, changed); d != "" || err != nil {
		t.Fatalf("%v (-want +got):\n%s", err, d)
	}
	core, err = o.Load(t.Context(), "acme")
	if d := cmp.Diff(want, core.Policy); d != "" || err != nil {
		t.Errorf("loaded: %v (-want +got):\n%s", err, d)
	}

	bad := full
	bad.MinLength, bad.NotifyHoursBefore, bad.LockMinutes = 3, pin.Hours{48}, 0
	if _, err := o.ChangePolicy(t.Context(), platform, core, bad); !cmp.Equal(fields(err), []string{"minLength", "notifyHoursBefore", "lockMinutes"}) {
		t.Errorf("a policy that cannot be: %v", err)
	}

	versions, err := o.PolicyVersions(t.Context(), "acme")
	if d := cmp.Diff([]tenant.PolicyVersion{
		{Policy: tenant.Policy{Policy: pin.Default(), Version: 1}, Since: start},
		{Policy: want, Since: start.Add(time.Hour)},
	}, versions); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if d := cmp.Diff([]string{"policy.changed"}, o.actions("acme", "policy")); d != "" {
		t.Errorf("audit (-want +got):\n%s", d)
	}
}

// Of administrators who change the same version, one wins and the others are
// told.
func TestRacingPolicyChanges(t *testing.T) {
	o := newOffice(t)
	core, _ := o.open("acme")
	errs := make([]error, 10)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			p := pin.Default()
			p.MaxAttempts = i + 1
			_, errs[i] = o.ChangePolicy(t.Context(), platform, core, p)
		})
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case !errors.Is(err, problem.ErrConflict):
			t.Errorf("change %d: %v, after %d had won", i, err, winner)
		}
	}
	got, err := o.Load(t.Context(), "acme")
	if err != nil || got.Policy.Version != 2 || got.Policy.MaxAttempts != winner+1 {
		t.Errorf("version %d with maxAttempts %d, %v, want 2 with the winner's %d", got.Policy.Version, got.Policy.MaxAttempts, err, winner+1)
	}
	if versions, err := o.PolicyVersions(t.Context(), "acme"); len(versions) != 2 || err != nil {
		t.Errorf("%d versions, %v", len(versions), err)
	}
}
