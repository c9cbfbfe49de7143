package page

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// thingPages are where the things that audit records are about are shown, below Root, by what
// their subjects begin with; "*" stands for their id.
var thingPages = map[string]string{
	"user": "/users/*", "credential": "/cards/*", "person": "/settings/people/*", "bridge": "/bridges/*", "unblock": "/unblock/*",
	"cardTemplate": "/cards/templates/of/*", "rule": "/rules/rule/*", "webhook": "/rules/webhooks/*", "messaging": "/messaging/configurations/*",
	"template": "/messaging/templates/*", "sanityCheck": "/sanity-check/runs/*", "bulkPINs": "/users/pins/of/*",
	"key": "/settings/keys", "settings": "/settings", "policy": "/policy",
}

// pages finds the route of a path.
var pages = sync.OnceValue(func() *http.ServeMux {
	mux := http.NewServeMux()
	for _, r := range (&Console{}).routes() {
		mux.Handle(r.pattern, pageRoute(r))
	}
	return mux
})

type pageRoute route

// ServeHTTP implements http.Handler, by which a mux finds a route; it is never called.
func (pageRoute) ServeHTTP(http.ResponseWriter, *http.Request) {}

// leads tells whether there is a page at a path, which may have a query, and the person may
// see it.
func (v *view) leads(to string) bool {
	u, err := url.Parse(to)
	if err != nil {
		return false
	}
	h, _ := pages().Handler(&http.Request{Method: http.MethodGet, URL: u, Host: v.r.Host})
	r, ok := h.(pageRoute)
	return ok && v.allowed(route(r))
}

// Leads returns a path below Root if there is a page for the person, and "" if not.
func (f *Frame) Leads(below string) string {
	if to := Root + below; f.v.leads(to) {
		return to
	}
	return ""
}

// Thing returns where what an audit record is about is shown to the person, or "".
func (f *Frame) Thing(subject string) string {
	kind, id, _ := strings.Cut(subject, "/")
	page, ok := thingPages[kind]
	if !ok || id == "" && strings.Contains(page, "*") {
		return ""
	}
	return f.Leads(strings.ReplaceAll(page, "*", url.PathEscape(id)))
}

// namesOf returns what the things are called that audit records have as their subjects: of
// those that have a name, are still there, and that the person may see. All are read at once.
func (v *view) namesOf(ctx context.Context, subjects []string) (map[string]string, error) {
	names := make(map[string]string, len(subjects))
	found := make([]string, len(subjects))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pageSize)
	for i, subject := range subjects {
		if _, twice := names[subject]; twice {
			continue
		}
		names[subject] = ""
		g.Go(func() (err error) {
			if found[i], err = v.nameOf(ctx, subject); errors.Is(err, problem.ErrNotFound) {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, name := range found {
		if name != "" {
			names[subjects[i]] = name
		}
	}
	return names, nil
}

func (v *view) nameOf(ctx context.Context, subject string) (string, error) {
	kind, id, _ := strings.Cut(subject, "/")
	t := v.tenant()
	switch {
	case id == "":
	case kind == "user" && v.may(tenant.ReadUser):
		u, err := v.Users.Get(ctx, t, id)
		return u.Profile.Username, err
	case kind == "credential" && v.may(tenant.ReadCredentials):
		c, err := v.Credentials.Get(ctx, t, id)
		return c.Name(), err
	case kind == "person" && v.may(tenant.ReadAudit): // whose names audit records have as actors
		p, err := v.People.Get(ctx, t, id)
		return p.Name, err
	case kind == "bridge" && v.may(tenant.ReadBridges):
		b, err := v.Tenants.Bridge(ctx, t, id)
		return b.Name, err
	}
	return "", nil
}

// subjectOf finds what people call a thing by: a user's name, the mail address of a person who
// signs in, a card's id, label or serial number; an id stands for itself. What there is none of
// is a violation of the field about.
func (v *view) subjectOf(kind, about string) (string, error) {
	unknown := problem.Invalid("unknown", "about", "is not known here; give it as its page shows it, or its id")
	switch kind {
	case "user":
		u, err := v.Users.ByUsername(v.ctx(), v.tenant(), about)
		if err == nil {
			return user.Subject(u.ID), nil
		} else if !errors.Is(err, problem.ErrNotFound) {
			return "", err
		}
	case "person":
		p, err := v.People.ByMail(v.ctx(), v.tenant(), about)
		if err == nil {
			return person.Subject(p.ID), nil
		} else if !errors.Is(err, problem.ErrNotFound) {
			return "", err
		}
	case "credential":
		if _, err := v.Credentials.Get(v.ctx(), v.tenant(), about); err == nil {
			return credential.Subject(about), nil
		} else if !errors.Is(err, problem.ErrNotFound) {
			return "", err
		}
		some, _, err := v.Credentials.Find(v.ctx(), v.tenant(), credential.Filter{Search: about}, "", 2)
		switch {
		case err != nil:
			return "", problem.Invalid("unknown", "about", "is not known here; give it as its page shows it, or its id")
		case len(some) == 1:
			return credential.Subject(some[0].ID), nil
		case len(some) > 1:
			return "", problem.Invalid("ambiguous", "about", "is the beginning of several cards' labels or serial numbers; give more of it, or the card's id")
		}
	}
	if strings.ContainsAny(about, " /@") || len(about) > 100 {
		return "", unknown
	}
	return kind + "/" + about, nil // perhaps of something that was deleted
}

// Ago is how long ago something was.
func (f *Frame) Ago(t time.Time) string { return f.v.words.Ago(f.v.Now().Sub(t)) }

// Day is a day without its year, in the tenant's zone.
func (f *Frame) Day(t time.Time) string { return t.In(f.v.loc).Format("2.1.") }

// Device is what somebody signs in from, by what their browser says it is; "" if that says
// nothing.
func (f *Frame) Device(agent string) string { return deviceName(agent) }

// ThingName is what a thing is called that an audit record is about: by its name, if it has
// one, or else by what it is and the end of its id, which tells it from others.
func (f *Frame) ThingName(subject, name string) string {
	if name != "" {
		return name
	}
	kind, id, has := strings.Cut(subject, "/")
	key := words.Family("log.kind.", kind)
	if !f.v.words.Has(key) {
		return subject
	}
	if name = f.v.words.Say(key); has {
		name += " …" + id[max(0, len(id)-6):]
	}
	return name
}
