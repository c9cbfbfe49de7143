package page

import (
	"cmp"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/federation"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

// tripCookie is a way to the provider and back.
const tripCookie = "__Host-pinward-provider"

func (c *Console) providerRoutes() []route {
	const settings = Root + "/settings/sign-in"
	return []route{
		{pattern: "POST " + Root + "/sign-in/oidc", open: true, do: (*view).toProvider},
		{pattern: "GET " + Root + "/sign-in/oidc", open: true, do: (*view).fromProvider},
		{pattern: "POST " + Root + "/confirm/oidc", do: (*view).confirmAtProvider},
		{pattern: "GET " + settings, action: tenant.ManagePeople, do: (*view).providerPage},
		{pattern: "POST " + settings, action: tenant.ManagePeople, sensitive: true, do: (*view).changeProvider},
		{pattern: "POST " + settings + "/test", action: tenant.ManagePeople, do: (*view).testProvider},
		{pattern: "GET " + settings + "/delete", action: tenant.ManagePeople, do: (*view).deleteProviderPage},
		{pattern: "POST " + settings + "/delete", action: tenant.ManagePeople, sensitive: true, do: (*view).deleteProvider},
	}
}

// departure is the page from which somebody goes on to a provider. It is a page of its own
// because a browser lets the answer to a form lead to our own host only (form-action).
type departure struct{ URL, Host string }

func (v *view) depart(d federation.Departure) error {
	u, err := url.Parse(d.URL)
	if err != nil {
		return err
	}
	v.setCookie(tripCookie, d.Cookie.Reveal(), federation.Life)
	return v.show("departure", departure{d.URL, u.Host})
}

func (v *view) toProvider() error {
	form := signInForm{v.value("organisation"), v.value("mail"), v.value("to")}
	if form.Organisation == "" {
		return v.refused(problem.Invalid("missing", "organisation", "is missing; it is the short name that your organisation has told you"), "sign-in", form)
	}
	d, err := v.Federation.Begin(v.ctx(), table.TenantID(form.Organisation), v.address(), onward(form.To))
	if err != nil {
		if err := v.notLetIn(err); err != nil {
			return v.refused(err, "sign-in", form)
		}
		return nil
	}
	return v.depart(d)
}

// fromProvider is where a provider sends people back to. Its address holds a code, which is
// good once and only with what this browser's cookie holds; it is left at once.
func (v *view) fromProvider() error {
	cookie := v.cookie(tripCookie)
	v.dropCookie(tripCookie)
	back := federation.Return{State: v.value("state"), Code: secret.New(v.value("code")), Error: v.value("error"), Issuer: v.value("iss")}
	if federation.Confirms(cookie) {
		if err := v.authenticate(false); err != nil {
			return v.signedOut(err)
		}
		if err := v.Federation.FinishConfirm(v.ctx(), v.session, cookie, back, v.address()); err != nil {
			return v.notLetIn(err)
		}
		return v.show("confirmed", nil)
	}
	a, err := v.Federation.Finish(v.ctx(), cookie, back, v.device())
	if err != nil {
		return v.notLetIn(err)
	}
	v.setCookie(sessionCookie, a.Cookie.Reveal(), person.SessionLife)
	if a.Kept {
		return v.done(onward(a.To), words.Key("done.rolesKept"))
	}
	return v.goTo(onward(a.To))
}

func (v *view) confirmAtProvider() error {
	d, err := v.Federation.BeginConfirm(v.ctx(), v.session, v.address())
	if err != nil {
		return v.notLetIn(err)
	}
	return v.depart(d)
}

// notLetInData is why somebody is not let in by way of their organisation's provider.
type notLetInData struct {
	Code      string
	RequestID string // for the administrator
	Confirms  bool   // somebody who has signed in already
}

// notLetIn answers who is not let in; other errors it returns. What is wrong with a provider
// is for the log: to the person it is an administrator's matter.
func (v *view) notLetIn(err error) error {
	var why *federation.NotLetIn
	if !errors.As(err, &why) {
		return err
	}
	status := http.StatusForbidden
	data := notLetInData{Code: why.Code, Confirms: v.session.PersonID != ""}
	if why.Code == federation.Failing {
		status, data.RequestID = http.StatusBadGateway, v.w.Header().Get("X-Request-Id")
		v.Log.LogAttrs(v.ctx(), slog.LevelWarn, "sign-in provider", slog.String("requestId", data.RequestID), slog.String("cause", err.Error()))
	}
	return v.render(status, "not-let-in", "layout", Frame{v: v, D: data})
}

// providerForm is the settings as they stand in the form.
type providerForm struct {
	federation.Provider
	ScopeText   string // with spaces between
	Values      []roleValues
	RedirectURI string
	Saved       *federation.Provider // what somebody else has saved meanwhile
	Found       *federation.Found    // of a test
	Trouble     *federation.Trouble
}

type roleValues struct {
	Role tenant.Role
	Text string // a value a line
}

func (v *view) providerForm(p federation.Provider) providerForm {
	form := providerForm{Provider: p, ScopeText: strings.Join(p.Scopes, " "), RedirectURI: v.Federation.RedirectURI()}
	for _, role := range tenant.PersonRoles() {
		form.Values = append(form.Values, roleValues{role, strings.Join(p.Roles[role], "\n")})
	}
	return form
}

// provider is what is stored, or what a new one begins with.
func (v *view) provider() (federation.Provider, error) {
	p, err := v.Federation.Get(v.ctx(), v.tenant())
	if errors.Is(err, problem.ErrNotFound) {
		return federation.Provider{Scopes: []string{"profile", "email"}}, nil
	}
	return p, err
}

func (v *view) providerPage() error {
	p, err := v.provider()
	if err != nil {
		return err
	}
	return v.show("provider", v.providerForm(p))
}

// sentProvider reads the form.
func (v *view) sentProvider() (federation.Provider, error) {
	version, err := strconv.ParseInt(cmp.Or(v.value("version"), "0"), 10, 64)
	if err != nil {
		return federation.Provider{}, &unreadable{err}
	}
	p := federation.Provider{Issuer: v.value("issuer"), ClientID: v.value("clientId"), Public: v.value("public") != "",
		Scopes: strings.Fields(v.value("scopes")), RoleClaim: v.value("roleClaim"), Roles: map[tenant.Role][]string{},
		Create: v.value("create") != "", On: v.value("on") != "", Version: version}
	for _, role := range tenant.PersonRoles() {
		for line := range strings.Lines(v.value("roles." + string(role))) {
			if line = strings.TrimSpace(line); line != "" && !slices.Contains(p.Roles[role], line) {
				p.Roles[role] = append(p.Roles[role], line)
			}
		}
	}
	return p, nil
}

func (v *view) changeProvider() error {
	p, err := v.sentProvider()
	if err != nil {
		return err
	}
	given := p
	given.Secret = v.secretValue("clientSecret")
	_, err = v.Federation.Put(v.ctx(), v.core, v.actor(), given)
	if err == nil {
		return v.done(Root+"/settings/sign-in", words.Key("done.providerSaved"))
	}
	now, err2 := v.provider()
	if err2 != nil {
		return err2
	}
	form := v.providerForm(p)
	form.SecretSet = now.SecretSet
	if errors.Is(err, problem.ErrConflict) {
		form.Version, form.Saved = now.Version, &now
	}
	return v.refused(err, "provider", form)
}

// testProvider asks the provider that is entered what it says of itself; it saves nothing.
func (v *view) testProvider() error {
	p, err := v.sentProvider()
	if err != nil {
		return err
	}
	now, err := v.provider()
	if err != nil {
		return err
	}
	form := v.providerForm(p)
	form.SecretSet = now.SecretSet
	found, err := v.Federation.Check(v.ctx(), p)
	if err == nil {
		form.Found = &found
	} else if !errors.As(err, &form.Trouble) {
		return err
	}
	return v.show("provider", form)
}

func (v *view) deleteProviderPage() error {
	p, err := v.Federation.Get(v.ctx(), v.tenant())
	if err != nil {
		return err
	}
	return v.show("provider-delete", p)
}

func (v *view) deleteProvider() error {
	version, err := strconv.ParseInt(v.value("version"), 10, 64)
	if err != nil {
		return &unreadable{err}
	}
	if err := v.Federation.Delete(v.ctx(), v.core, v.actor(), version); err != nil {
		return err
	}
	return v.done(Root+"/settings/sign-in", words.Key("done.providerDeleted"))
}
