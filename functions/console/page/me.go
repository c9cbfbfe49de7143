package page

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// meRoutes are what people see of themselves: those who sign in to work here, and users, who
// see nothing else.
func (c *Console) meRoutes() []route {
	const me = Root + "/me"
	return []route{
		{pattern: "GET " + me, own: true, do: (*view).me},
		{pattern: "POST " + me + "/person", do: (*view).saveMyself},
		{pattern: "POST " + me + "/user", action: tenant.UpdateUser, own: true, sensitive: true, do: (*view).saveMyUser},
		{pattern: "POST " + me + "/pin", action: tenant.SetPIN, own: true, sensitive: true, do: (*view).setMyPIN},
		{pattern: "POST " + me + "/issue", action: tenant.IssuePIN, own: true, do: (*view).issueMyPIN},
		{pattern: "POST " + me + "/sessions/{session}/end", own: true, do: (*view).endMySession},
		{pattern: "POST " + me + "/sign-out-everywhere", own: true, do: (*view).signOutEverywhere},
	}
}

// mePage is somebody's own page. Either Person or User is set.
type mePage struct {
	Person      *personForm
	User        *userForm
	Self        user.User
	TriesLeft   int
	LockedUntil time.Time
	MinLength   int // of a PIN
	Sessions    []mySession
}

type personForm struct {
	Version        int64
	Name, Language string
	Mail           string
}

// mySession is one of somebody's sessions, as they know it.
type mySession struct {
	person.Session
	Device string
	Here   bool // it is the one that asks
}

// deviceName is a browser as people know it, from what it says of itself.
func deviceName(agent string) string {
	first := func(names ...[2]string) string {
		for _, n := range names {
			if strings.Contains(agent, n[0]) {
				return n[1]
			}
		}
		return ""
	}
	// The order matters: most claim to be others too.
	browser := first([2]string{"Edg", "Edge"}, [2]string{"OPR/", "Opera"}, [2]string{"Firefox/", "Firefox"}, [2]string{"FxiOS", "Firefox"},
		[2]string{"Chrome/", "Chrome"}, [2]string{"CriOS", "Chrome"}, [2]string{"Safari/", "Safari"})
	system := first([2]string{"Windows", "Windows"}, [2]string{"Android", "Android"}, [2]string{"iPhone", "iPhone"}, [2]string{"iPad", "iPad"},
		[2]string{"Mac OS", "macOS"}, [2]string{"CrOS", "ChromeOS"}, [2]string{"Linux", "Linux"})
	return strings.Join(slices.DeleteFunc([]string{browser, system}, func(s string) bool { return s == "" }), ", ")
}

func (v *view) mePage() (mePage, error) {
	var p mePage
	g, ctx := errgroup.WithContext(v.ctx())
	g.Go(func() error {
		sessions, err := v.People.SessionsOf(ctx, v.tenant(), v.session.Owner())
		for _, s := range sessions {
			p.Sessions = append(p.Sessions, mySession{s, deviceName(s.Device.Agent), s.ID == v.session.ID})
		}
		return err
	})
	if v.self != nil {
		f := formOf(*v.self)
		p.User, p.Self, p.MinLength = &f, *v.self, v.core.Policy.MinLength
		g.Go(func() (err error) {
			p.TriesLeft, p.LockedUntil, err = v.Users.Attempts(ctx, v.core, v.self.ID)
			return err
		})
	} else {
		g.Go(func() error {
			me, err := v.People.Get(ctx, v.tenant(), v.session.PersonID)
			p.Person = &personForm{me.Version, me.Name, me.Language, me.Mail}
			return err
		})
	}
	return p, g.Wait()
}

func (v *view) me() error {
	p, err := v.mePage()
	if err != nil {
		return err
	}
	return v.show("me", p)
}

// meRefused shows somebody's page with what was wrong with what they sent; keep puts what they
// sent into it.
func (v *view) meRefused(err error, keep func(*mePage)) error {
	p, failed := v.mePage()
	if failed != nil {
		return failed
	}
	keep(&p)
	return v.refused(err, "me", p)
}

func (v *view) saveMyself() error {
	f := personForm{Name: v.value("name"), Language: v.value("language")}
	f.Version, _ = strconv.ParseInt(v.value("version"), 10, 64)
	_, err := v.People.Update(v.ctx(), v.core, v.actor(), v.session.PersonID, f.Version, func(p *person.Person) {
		p.Name, p.Language = f.Name, f.Language
	})
	if err != nil {
		return v.meRefused(err, func(p *mePage) { p.Person.Name, p.Person.Language = f.Name, f.Language })
	}
	return v.done(Root+"/me", words.Key("done.meSaved"))
}

func (v *view) saveMyUser() error {
	f := v.userForm(v.self.ID, true)
	if err := v.save(&f, true, nil); err != nil {
		return v.meRefused(err, func(p *mePage) { p.User = &f })
	}
	if user.Fold(f.Profile.Mail) != user.Fold(v.session.Mail) { // by which they have signed in
		if err := v.People.EndAll(v.ctx(), v.core, v.actor(), v.session.Owner()); err != nil {
			return err
		}
		v.dropCookie(sessionCookie)
		return v.done(Root+"/sign-in", words.Key("done.myMailChanged"))
	}
	return v.done(Root+"/me", words.Key("done.meSaved"))
}

func (v *view) setMyPIN() error {
	chosen, again := v.secretValue("pin"), v.secretValue("again")
	var err error
	switch {
	case chosen.Reveal() == "":
		err = problem.Invalid("missing", "pin", "is missing; type the new PIN, and once more below")
	case chosen.Reveal() != again.Reveal():
		err = problem.Invalid("differs", "again", "is not the same as the new PIN; type both again")
	default:
		_, err = v.Users.SetPIN(v.ctx(), v.core, v.actor(), v.self.ID, chosen)
	}
	if err != nil {
		return v.meRefused(err, func(*mePage) {})
	}
	return v.done(Root+"/me", words.Key("done.myPINSet"))
}

func (v *view) issueMyPIN() error {
	u, err := v.issue(v.self.ID, issueFields{})
	if err != nil {
		return v.meRefused(err, func(*mePage) {})
	}
	return v.done(Root+"/me", issued(u))
}

func (v *view) endMySession() error {
	id := v.r.PathValue("session")
	err := v.People.End(v.ctx(), v.core, v.actor(), v.session.Owner(), id)
	if err != nil && !errors.Is(err, problem.ErrNotFound) { // it has ended by itself: as good
		return err
	}
	if id == v.session.ID {
		v.dropCookie(sessionCookie)
		return v.done(Root+"/sign-in", words.Key("done.signedOut"))
	}
	return v.done(Root+"/me", words.Key("done.sessionEnded"))
}

func (v *view) signOutEverywhere() error {
	if err := v.People.EndAll(v.ctx(), v.core, v.actor(), v.session.Owner()); err != nil {
		return err
	}
	v.dropCookie(sessionCookie)
	return v.done(Root+"/sign-in", words.Key("done.signedOutEverywhere"))
}
