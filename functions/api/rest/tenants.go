package rest

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

type tenantBody struct {
	ID          string    `json:"id"`
	DisplayName string    `json:"displayName"`
	TimeZone    string    `json:"timeZone"`
	Language    string    `json:"language"`
	Suspended   bool      `json:"suspended"`
	CreatedAt   time.Time `json:"createdAt"`
}

func tenantOut(t tenant.Tenant) tenantBody {
	return tenantBody{string(t.ID), t.Settings.DisplayName, t.Settings.TimeZone, t.Settings.Language, t.Suspended, t.CreatedAt}
}

type newTenantBody struct {
	Tenant tenantBody `json:"tenant"`
	APIKey string     `json:"apiKey" doc:"The first API key of role admin. It is shown this once."`
}

// TenantPath names a tenant in a path.
type TenantPath struct {
	Tenant string `path:"tenant" maxLength:"60"`
}

func (a *API) tenantOperations(api huma.API) {
	const tag = "Tenants"
	register(a, api, operation{
		id: "create-tenant", summary: "Create a tenant", method: http.MethodPost, path: "/v1/tenants",
		action: tenant.ManageTenants, status: http.StatusCreated, tag: tag,
		about: "The tenant begins with the default PIN policy and one API key of role admin.",
	}, func(ctx context.Context, in *struct {
		Body struct {
			ID          string `json:"id" doc:"2 to 40 of a-z, 0-9 and -, starting with a letter. It cannot be changed." example:"acme"`
			DisplayName string `json:"displayName" doc:"What mails call the organisation." example:"Acme corporation"`
			TimeZone    string `json:"timeZone" required:"false" default:"UTC" doc:"IANA time zone." example:"Europe/Berlin"`
			Language    string `json:"language" required:"false" default:"en" doc:"BCP 47 language tag." example:"en"`
		}
	}) (*Secret[newTenantBody], error) {
		core, key, err := a.Tenants.Create(ctx, caller(ctx).Actor, tenant.Tenant{
			ID:       table.TenantID(in.Body.ID),
			Settings: tenant.Settings{DisplayName: in.Body.DisplayName, TimeZone: in.Body.TimeZone, Language: in.Body.Language},
		})
		if err != nil {
			return nil, err
		}
		return secretAnswer(newTenantBody{tenantOut(core.Tenant), key.Reveal()}), nil
	})

	register(a, api, operation{
		id: "list-tenants", summary: "List tenants", method: http.MethodGet, path: "/v1/tenants",
		action: tenant.ManageTenants, tag: tag,
	}, func(ctx context.Context, in *struct{ Paging }) (*Body[List[tenantBody]], error) {
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		tenants, next, err := a.Tenants.List(ctx, place, in.Limit)
		if err != nil {
			return nil, err
		}
		return page(tenants, next, tenantOut), nil
	})

	register(a, api, operation{
		id: "get-tenant", summary: "Get a tenant", method: http.MethodGet, path: "/v1/tenants/{tenant}",
		action: tenant.ManageTenants, tag: tag,
	}, func(ctx context.Context, in *TenantPath) (*Body[tenantBody], error) {
		core, err := a.Tenants.Load(ctx, table.TenantID(in.Tenant))
		if err != nil {
			return nil, err
		}
		return answer(tenantOut(core.Tenant)), nil
	})

	suspend := func(id, summary, path string, suspended bool, about string) {
		register(a, api, operation{
			id: id, summary: summary, method: http.MethodPost, path: "/v1/tenants/{tenant}/" + path,
			action: tenant.ManageTenants, tag: tag, about: about,
		}, func(ctx context.Context, in *TenantPath) (*Body[tenantBody], error) {
			t, err := a.Tenants.Suspend(ctx, caller(ctx).Actor, table.TenantID(in.Tenant), suspended)
			if err != nil {
				return nil, err
			}
			return answer(tenantOut(t)), nil
		})
	}
	suspend("suspend-tenant", "Suspend a tenant", "suspend", true, "None of its keys lets in any more and no mail is sent for it. PINs expire all the same.")
	suspend("resume-tenant", "Resume a tenant", "resume", false, "")

	register(a, api, operation{
		id: "make-tenant-key", summary: "Make a tenant's API key", method: http.MethodPost, path: "/v1/tenants/{tenant}/keys",
		action: tenant.ManageTenants, status: http.StatusCreated, tag: tag,
		about: "A key of role admin, for a tenant that has lost all of its own.",
	}, func(ctx context.Context, in *TenantPath) (*Secret[newKeyBody], error) {
		core, err := a.Tenants.Load(ctx, table.TenantID(in.Tenant))
		if err != nil {
			return nil, err
		}
		key, text, err := a.Tenants.MakeKey(ctx, core.Tenant.ID, caller(ctx).Actor, tenant.APIKey{Name: "made by the platform", Role: tenant.RoleAdmin})
		if err != nil {
			return nil, err
		}
		return secretAnswer(newKeyBody{keyOut(key), text.Reveal()}), nil
	})
}

type settingsBody struct {
	DisplayName  string         `json:"displayName" doc:"What mails call the organisation."`
	TimeZone     string         `json:"timeZone" doc:"IANA time zone, in which people read times."`
	Language     string         `json:"language" doc:"BCP 47 language tag, in which people read."`
	PINOnlyLogin bool           `json:"pinOnlyLogin" doc:"PINs made from now on are unique within the tenant, and a kiosk may find a person by PIN alone."`
	ExpiryMail   expiryMailBody `json:"expiryMail" doc:"How the expiry of PINs is announced."`

	GeneratedPINsPerDay int `json:"generatedPINsPerDay" required:"false" doc:"How many PINs may be generated on a day in UTC. 0 is 100,000."`

	QuietHours quietHoursBody `json:"quietHours" required:"false" doc:"When people are sent no reminders, by the clock of timeZone. One that is due then is sent when they end, or, where that is too late, half an hour before they begin."`

	Digest digestBody `json:"digest" required:"false" doc:"A mail a day to administrators, by expiryMail.messaging: PINs that expire within a week or have expired, addresses that do not work, mails that reached nobody. Days with nothing to tell have none."`

	SupportFunctions       bool            `json:"supportFunctions" required:"false" doc:"Administrators may use what repairs many things at once: the PIN expiry sanity check."`
	SanityCheckAfterImport afterImportBody `json:"sanityCheckAfterImport" required:"false" doc:"Whether the cards without a PIN expiry flag get one by themselves when an import has ended. Needs supportFunctions."`

	CreateUsersFromEvents bool `json:"createUsersFromEvents" required:"false" doc:"An event about a user who is not known creates them, such as at the first print job of somebody new. Only where a trigger rule waits for it."`
}

type digestBody struct {
	Recipients []string `json:"recipients,omitempty" example:"[\"it@example.org\"]" doc:"Up to 10 addresses. Without any there is no digest."`
	Hour       int      `json:"hour" required:"false" doc:"0 to 23, by the clock of timeZone."`
	Days       []string `json:"days,omitempty" example:"[\"monday\"]" doc:"On which it is sent; without any, daily."`
}

type quietHoursBody struct {
	From    string   `json:"from,omitempty" pattern:"^(([01][0-9]|2[0-3]):(00|15|30|45))?$" patternDescription:"time of day in quarters of an hour, such as 20:00" example:"20:00" doc:"With to: the hours of each day. Empty is none."`
	To      string   `json:"to,omitempty" pattern:"^(([01][0-9]|2[0-3]):(00|15|30|45))?$" patternDescription:"time of day in quarters of an hour, such as 07:00" example:"07:00" doc:"Before from: of the next day."`
	DaysOff []string `json:"daysOff,omitempty" example:"[\"saturday\",\"sunday\"]" doc:"Days without any; at most six."`
}

func quietHoursOut(q tenant.QuietHours) (b quietHoursBody) {
	if q.From != q.To {
		b.From, b.To = tenant.ClockTime(q.From), tenant.ClockTime(q.To)
	}
	b.DaysOff = tenant.WeekdayNames(q.DaysOff)
	return b
}

type afterImportBody struct {
	Mode       string `json:"mode" required:"false" default:"off" enum:"off,exact,random" doc:"exact: the template's validity after that day; random: any of the days around it, each as likely."`
	BeforeDays int    `json:"beforeDays" required:"false" doc:"Of random: days before. Templates with a validity of no more days are left out."`
	AfterDays  int    `json:"afterDays" required:"false" doc:"Of random: days after."`
}

func (b afterImportBody) check() tenant.SanityCheck {
	return tenant.SanityCheck{On: b.Mode == "exact" || b.Mode == "random", Random: b.Mode == "random", Before: b.BeforeDays, After: b.AfterDays}
}

func afterImportOut(c tenant.SanityCheck) afterImportBody {
	b := afterImportBody{"off", c.Before, c.After}
	switch {
	case c.On && c.Random:
		b.Mode = "random"
	case c.On:
		b.Mode = "exact"
	}
	return b
}

type expiryMailBody struct {
	Messaging string `json:"messaging" required:"false" doc:"Id of the messaging configuration that sends the mails; empty sends none."`
	Template  string `json:"template" required:"false" default:"pin-expiry" doc:"Id of the mail template."`
}

func settingsOut(s tenant.Settings) settingsBody {
	return settingsBody{s.DisplayName, s.TimeZone, s.Language, s.PINOnlyLogin, expiryMailBody(s.ExpiryMail), s.GeneratedPINsPerDay, quietHoursOut(s.Quiet),
		digestBody{s.Digest.Recipients, s.Digest.Hour, tenant.WeekdayNames(s.Digest.Days)}, s.SupportFunctions, afterImportOut(s.AfterImport), s.CreateUsers}
}

func (a *API) settingsOperations(api huma.API) {
	const tag = "Settings"
	register(a, api, operation{
		id: "get-caller", summary: "Who am I?", method: http.MethodGet, path: "/v1/caller",
		action: tenant.ReadCaller, tag: tag, about: "What the key in use is, and what it may do.",
	}, func(ctx context.Context, _ *struct{}) (*Body[callerBody], error) {
		c := caller(ctx)
		return answer(callerBody{string(c.Core.Tenant.ID), string(c.Role), c.Key.ID, c.Key.Name, c.Key.UserID, c.Key.ExpiresAt}), nil
	})

	register(a, api, operation{
		id: "get-settings", summary: "Get the tenant's settings", method: http.MethodGet, path: "/v1/settings",
		action: tenant.ReadSettings, tag: tag,
	}, func(ctx context.Context, _ *struct{}) (*Versioned[settingsBody], error) {
		t := caller(ctx).Core.Tenant
		return versioned(settingsOut(t.Settings), t.Version), nil
	})

	register(a, api, operation{
		id: "put-settings", summary: "Change the tenant's settings", method: http.MethodPut, path: "/v1/settings",
		action: tenant.WriteSettings, tag: tag,
	}, func(ctx context.Context, in *struct {
		IfMatch
		Body settingsBody
	}) (*Versioned[settingsBody], error) {
		c := caller(ctx)
		if err := in.check(c.Core.Tenant.Version); err != nil {
			return nil, err
		}
		var vs problem.Violations
		quiet, err := tenant.ReadQuietHours(in.Body.QuietHours.From, in.Body.QuietHours.To, in.Body.QuietHours.DaysOff)
		if err := vs.Merge(err); err != nil {
			return nil, err
		}
		days, err := tenant.ReadWeekdays("digest.days", in.Body.Digest.Days)
		if err := vs.Merge(err); err != nil {
			return nil, err
		}
		s := tenant.Settings{
			DisplayName: in.Body.DisplayName, TimeZone: in.Body.TimeZone, Language: in.Body.Language,
			PINOnlyLogin: in.Body.PINOnlyLogin, ExpiryMail: tenant.ExpiryMailRefs(in.Body.ExpiryMail), GeneratedPINsPerDay: in.Body.GeneratedPINsPerDay,
			Quiet:            quiet,
			Digest:           tenant.DigestSettings{Recipients: in.Body.Digest.Recipients, Hour: in.Body.Digest.Hour, Days: days},
			SupportFunctions: in.Body.SupportFunctions, AfterImport: in.Body.SanityCheckAfterImport.check(), CreateUsers: in.Body.CreateUsersFromEvents,
		}
		if err := vs.Merge(s.Validate()); err != nil {
			return nil, err
		}
		checks, err := a.mails().ExpiryMailChecks(ctx, c.Core, s.ExpiryMail, &vs)
		if err != nil {
			return nil, err
		}
		if err := vs.Err(); err != nil {
			return nil, err
		}
		t, err := a.Tenants.ChangeSettings(ctx, c.Actor, c.Core, s, checks...)
		if err != nil {
			return nil, err
		}
		return versioned(settingsOut(t.Settings), t.Version), nil
	})
}

type callerBody struct {
	Tenant    string    `json:"tenant,omitempty"`
	Role      string    `json:"role"`
	KeyID     string    `json:"keyId,omitempty"`
	KeyName   string    `json:"keyName,omitempty"`
	UserID    string    `json:"userId,omitempty" doc:"For a token: whose it is."`
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
}
