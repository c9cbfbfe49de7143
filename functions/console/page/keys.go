package page

import (
	"slices"
	"time"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

const keysPath = Root + "/settings/keys"

func (c *Console) keyRoutes() []route {
	return []route{
		{pattern: "GET " + keysPath, action: tenant.ManageKeys, do: (*view).listKeys},
		{pattern: "GET " + keysPath + "/new", action: tenant.ManageKeys, do: (*view).newKey},
		{pattern: "POST " + keysPath, action: tenant.ManageKeys, sensitive: true, do: (*view).makeKey},
		{pattern: "GET " + keysPath + "/{key}/revoke", action: tenant.ManageKeys, do: (*view).revokeKeyPage},
		{pattern: "POST " + keysPath + "/{key}/revoke", action: tenant.ManageKeys, sensitive: true, do: (*view).revokeKey},
	}
}

// keyRow is an API key, and how it is: "usable", "expired" or "revoked".
type keyRow struct {
	tenant.APIKey
	State string
}

func (v *view) keyRow(k tenant.APIKey) keyRow {
	switch {
	case !k.RevokedAt.IsZero():
		return keyRow{k, "revoked"}
	case !k.Usable(v.Now()):
		return keyRow{k, "expired"}
	}
	return keyRow{k, "usable"}
}

func (v *view) listKeys() error {
	from, err := v.place()
	if err != nil {
		return err
	}
	keys, err := v.Tenants.APIKeys(v.ctx(), v.tenant())
	if err != nil {
		return err
	}
	slices.Reverse(keys) // the newest first
	rows := make([]keyRow, len(keys))
	for i, k := range keys {
		rows[i] = v.keyRow(k)
	}
	if v.value("format") == "csv" {
		return csvFile(v, "keys", []string{"name", "role", "state", "createdAt", "lastUsedAt", "expiresAt", "revokedAt", "id"}, all(rows), func(k keyRow) []string {
			return []string{k.Name, string(k.Role), k.State, csvTime(k.CreatedAt), csvTime(k.LastUsedAt), csvTime(k.ExpiresAt), csvTime(k.RevokedAt), k.ID}
		})
	}
	some, next := pageOf(rows, from, func(k keyRow) string { return k.ID })
	return v.show("keys", list(v, some, next))
}

type keyForm struct {
	Name, Role, ExpiresAt string
	Roles                 []Option
}

func (v *view) keyForm() keyForm {
	f := keyForm{Name: v.value("name"), Role: v.value("role"), ExpiresAt: v.value("expiresAt")}
	for _, r := range tenant.KeyRoles() {
		f.Roles = append(f.Roles, Option{string(r), v.words.Say(words.Family("key.role.", r))})
	}
	return f
}

func (v *view) newKey() error { return v.show("key-new", v.keyForm()) }

// madeKey is a key with its text, which is shown this once.
type madeKey struct {
	Key  tenant.APIKey
	Text string
}

func (v *view) makeKey() error {
	f := v.keyForm()
	k := tenant.APIKey{Name: f.Name, Role: tenant.Role(f.Role)}
	var vs problem.Violations
	if f.Role == "" {
		vs.Add("missing", "role", "is missing: choose what the key may do")
	}
	if f.ExpiresAt != "" {
		day, err := time.ParseInLocation(time.DateOnly, f.ExpiresAt, v.loc)
		if err != nil {
			vs.Add("form", "expiresAt", "is not a date such as 2030-01-31")
		}
		k.ExpiresAt = day.AddDate(0, 0, 1).UTC() // good on that day still
	}
	if err := vs.Err(); err != nil {
		return v.refused(err, "key-new", f)
	}
	made, text, err := v.Tenants.MakeKey(v.ctx(), v.tenant(), v.actor(), k)
	if err != nil {
		return v.refused(err, "key-new", f)
	}
	return v.show("key-made", madeKey{made, text.Reveal()})
}

// key is the key of the path.
func (v *view) key() (keyRow, error) {
	keys, err := v.Tenants.APIKeys(v.ctx(), v.tenant())
	if err != nil {
		return keyRow{}, err
	}
	at := slices.IndexFunc(keys, func(k tenant.APIKey) bool { return k.ID == v.r.PathValue("key") })
	if at < 0 {
		return keyRow{}, problem.ErrNotFound
	}
	return v.keyRow(keys[at]), nil
}

func (v *view) revokeKeyPage() error {
	k, err := v.key()
	if err != nil {
		return err
	}
	return v.show("key-revoke", k)
}

func (v *view) revokeKey() error {
	k, err := v.key()
	if err != nil {
		return err
	}
	if err := v.Tenants.RevokeKey(v.ctx(), v.tenant(), v.actor(), k.ID); err != nil {
		return v.refused(err, "key-revoke", k)
	}
	return v.done(keysPath, words.Key("done.keyRevoked"))
}
