package page

import (
	"cmp"
	"errors"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/person"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/user"
)

// The cookies. "__Host-" binds them to this host, over TLS, whole.
const (
	sessionCookie  = "__Host-pinward"
	attemptCookie  = "__Host-pinward-attempt" // a sign-in that waits for its code
	languageCookie = "__Host-pinward-language"
)

func (v *view) setCookie(name, value string, valid time.Duration) {
	http.SetCookie(v.w, &http.Cookie{Name: name, Value: value, Path: "/", MaxAge: int(valid / time.Second), Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

func (v *view) dropCookie(name string) {
	http.SetCookie(v.w, &http.Cookie{Name: name, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

func (v *view) cookie(name string) secret.Text {
	c, err := v.r.Cookie(name)
	if err != nil {
		return secret.Text{}
	}
	return secret.New(c.Value)
}

// device is what a session is listed by.
func (v *view) device() person.Device {
	return person.Device{Client: v.address(), Agent: v.r.UserAgent()}
}

// address is where the request comes from.
func (v *view) address() string {
	host, _, err := net.SplitHostPort(v.r.RemoteAddr)
	if err != nil {
		return v.r.RemoteAddr
	}
	return host
}

func (v *view) authenticate(asked bool) error {
	find := v.People.Authenticate
	if asked {
		find = v.People.Watch
	}
	session, core, err := find(v.ctx(), v.cookie(sessionCookie))
	if err != nil {
		return err
	}
	v.use(session)
	v.core, v.loc = core, core.Tenant.Settings.Location()
	v.words = words.In(cmp.Or(session.Language, core.Tenant.Settings.Language)).In(v.loc)
	if session.UserID != "" {
		return v.authenticateUser()
	}
	return nil
}

// authenticateUser loads who has signed in as a user. One who is gone, or has another address
// than that by which they signed in, is not signed in any more.
func (v *view) authenticateUser() error {
	u, err := v.Users.Get(v.ctx(), v.tenant(), v.session.UserID)
	if errors.Is(err, problem.ErrNotFound) || err == nil && user.Fold(u.Profile.Mail) != user.Fold(v.session.Mail) {
		return person.ErrNoSession
	} else if err != nil {
		return err
	}
	v.self = &u
	if chosen, err := v.r.Cookie(languageCookie); err == nil {
		v.words = words.In(chosen.Value).In(v.loc)
	}
	return nil
}

func (v *view) use(s person.Session) {
	v.session = s
	seen := observed(v.ctx())
	seen.tenant, seen.person = s.Tenant, s.Owner()
}

// signedOut answers who has no session, or none any more: a page asks them to sign in and
// comes back; what was sent with a form is kept by the page until they have.
func (v *view) signedOut(err error) error {
	if !errors.Is(err, problem.ErrUnauthenticated) {
		return err
	}
	switch {
	case v.r.Header.Get("HX-Request") != "": // a part of a page: the whole of it asks
		v.w.Header().Set("HX-Refresh", "true")
		v.w.WriteHeader(http.StatusUnauthorized)
		return nil
	case v.r.Method == http.MethodPost:
		return v.render(http.StatusUnauthorized, "interrupted", "layout", Frame{v: v, D: v.kept()})
	}
	return v.goTo(Root + "/sign-in?" + url.Values{"to": {v.r.URL.RequestURI()}}.Encode())
}

// kept is a form that waits for its sender to sign in.
type kept struct {
	Path    string
	Fields  []keptField
	Secrets bool // there were some, which are not kept
	Files   bool
	Mail    string // where the code was mailed
	Mailed  bool
	// Provider: they may show who they are where they signed in, too.
	Provider bool
}

type keptField struct{ Name, Value string }

func (v *view) kept() kept {
	k := kept{Path: v.r.URL.RequestURI(), Files: v.r.MultipartForm != nil && len(v.r.MultipartForm.File) > 0}
	names := make([]string, 0, len(v.r.PostForm))
	for name := range v.r.PostForm {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		switch {
		case name == confirmField:
		case strings.HasPrefix(name, secretField):
			k.Secrets = true
		default:
			for _, value := range v.r.PostForm[name] {
				k.Fields = append(k.Fields, keptField{name, value})
			}
		}
	}
	return k
}

// confirmField is the code by which somebody shows who they are before a sensitive act.
const confirmField = secretField + "confirm"

// confirmed tells whether the person has shown lately who they are. If not it has answered
// with a page that asks for it and keeps the form.
func (v *view) confirmed() (bool, error) {
	if v.People.Fresh(v.session) {
		return true, nil
	}
	k := v.kept()
	k.Mail, k.Mailed, k.Provider = v.session.Mail, true, v.session.Method == person.ByOIDC
	if code := v.secretValue("confirm"); !code.Empty() {
		session, err := v.People.ConfirmByCode(v.ctx(), v.core, v.session, code)
		if err == nil {
			v.session = session
			return true, nil
		}
		return false, v.refused(wrongCode(err, "confirm"), "confirm", k)
	}
	if err := v.People.BeginConfirm(v.ctx(), v.core, v.session); err != nil && !k.Provider {
		return false, v.refused(err, "confirm", k)
	} else if err != nil { // no mail, but there is another way
		k.Mailed = false
	}
	return false, v.render(http.StatusUnauthorized, "confirm", "layout", Frame{v: v, D: k})
}

func (c *Console) signInRoutes() []route {
	return []route{
		{pattern: "GET " + Root + "/sign-in", open: true, do: (*view).signInPage},
		{pattern: "POST " + Root + "/sign-in", open: true, do: (*view).beginSignIn},
		{pattern: "GET " + Root + "/sign-in/code", open: true, do: (*view).codePage},
		{pattern: "POST " + Root + "/sign-in/code", open: true, do: (*view).signInByCode},
		{pattern: "GET " + Root + "/sign-in/link", open: true, do: (*view).linkPage},
		{pattern: "POST " + Root + "/sign-in/link", open: true, do: (*view).signInByLink},
		{pattern: "POST " + Root + "/sign-out", own: true, do: (*view).signOut},
		{pattern: "POST " + Root + "/language", open: true, do: (*view).chooseLanguage},
	}
}

type signInForm struct{ Organisation, Mail, To string }

// onward is the page of ours that somebody wanted before they signed in.
func onward(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() || u.Host != "" || u.User != nil || strings.ContainsAny(to, "\\\r\n\t") ||
		(path.Clean(u.Path) != Root && !strings.HasPrefix(path.Clean(u.Path), Root+"/")) || strings.HasPrefix(u.Path, Root+"/sign-in") {
		return Root
	}
	return to
}

func (v *view) signInPage() error {
	return v.show("sign-in", signInForm{Organisation: v.value("organisation"), To: v.value("to")})
}

func (v *view) beginSignIn() error {
	form := signInForm{v.value("organisation"), v.value("mail"), v.value("to")}
	var vs problem.Violations
	if form.Organisation == "" {
		vs.Add("missing", "organisation", "is missing; it is the short name that your organisation has told you")
	}
	if form.Mail == "" {
		vs.Add("missing", "mail", "is missing; give the address that your administrator has put in")
	}
	if err := vs.Err(); err != nil {
		return v.refused(err, "sign-in", form)
	}
	attempt, err := v.People.Begin(v.ctx(), table.TenantID(form.Organisation), form.Mail, v.address())
	if err != nil {
		return v.refused(err, "sign-in", form)
	}
	v.setCookie(attemptCookie, attempt.Token.Reveal(), person.MailLife)
	return v.goTo(Root + "/sign-in/code?" + url.Values{"to": {onward(form.To)}}.Encode())
}

func (v *view) codePage() error {
	return v.show("code", signInForm{To: v.value("to")})
}

func (v *view) signInByCode() error {
	_, cookie, err := v.People.ByCode(v.ctx(), v.cookie(attemptCookie), v.secretValue("code"), v.device())
	if err != nil {
		return v.refused(wrongCode(err, "code"), "code", signInForm{To: v.value("to")})
	}
	return v.signedIn(cookie, v.value("to"))
}

// wrongCode says what is wrong with a code that was typed. An unknown sign-in is one whose
// address is not known here: that is not told from a code that is wrong.
func wrongCode(err error, field string) error {
	var wrong *person.CodeError
	switch {
	case errors.As(err, &wrong), errors.Is(err, person.ErrUnknownSignIn), errors.Is(err, person.ErrUsed), errors.Is(err, person.ErrTooLate):
		return problem.Invalid("wrongCode", field, "is not the one that was mailed, or its 10 minutes are over; look at the newest mail, or ask for another")
	case errors.Is(err, person.ErrTriesUsedUp):
		return problem.Invalid("triesUsedUp", field, "was wrong too often; ask for another")
	}
	return err
}

// signedIn gives the browser its session.
func (v *view) signedIn(cookie secret.Text, to string) error {
	v.dropCookie(attemptCookie)
	v.setCookie(sessionCookie, cookie.Reveal(), person.SessionLife)
	return v.goTo(onward(to))
}

// linkPage shows a button: whatever looks at links in mails, before the person does, must
// not use them up.
func (v *view) linkPage() error {
	link := v.value("t")
	if _, err := v.People.Peek(v.ctx(), secret.New(link)); errors.Is(err, problem.ErrUnauthenticated) {
		return v.problem(http.StatusGone, words.Key("problem.link"))
	} else if err != nil {
		return err
	}
	return v.show("link", link)
}

func (v *view) signInByLink() error {
	_, cookie, err := v.People.ByLink(v.ctx(), v.secretValue("link"), v.device())
	if errors.Is(err, problem.ErrUnauthenticated) {
		return v.problem(http.StatusGone, words.Key("problem.link"))
	} else if err != nil {
		return err
	}
	return v.signedIn(cookie, "")
}

func (v *view) signOut() error {
	if err := v.People.SignOut(v.ctx(), v.session); err != nil {
		return err
	}
	v.dropCookie(sessionCookie)
	return v.done(Root+"/sign-in", words.Key("done.signedOut"))
}

// chooseLanguage is for pages on which nobody has signed in; who has has it in their
// profile.
func (v *view) chooseLanguage() error {
	v.setCookie(languageCookie, words.In(v.value("language")).Language(), 365*24*time.Hour)
	return v.goTo(onwardOpen(v.value("to")))
}

// onwardOpen is the open page that somebody was at.
func onwardOpen(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() || u.Host != "" || strings.Contains(to, "\\") || !strings.HasPrefix(path.Clean(u.Path), Root+"/") {
		return Root + "/sign-in"
	}
	return to
}
