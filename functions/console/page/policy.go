package page

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
)

func (c *Console) policyRoutes() []route {
	const path = Root + "/policy"
	return []route{
		{pattern: "GET " + path, action: tenant.ReadPolicy, do: (*view).policyPage},
		{pattern: "POST " + path, action: tenant.WritePolicy, sensitive: true, do: (*view).savePolicy},
		{pattern: "POST " + path + "/try", action: tenant.ReadPolicy, do: (*view).tryPIN},
		{pattern: "POST " + path + "/expiry-mail", action: tenant.WriteSettings, do: (*view).saveExpiryMail},
		{pattern: "GET " + path + "/versions", action: tenant.WritePolicy, do: (*view).policyVersions},
	}
}

// policyForm is a policy as it stands in the form, where a number may be none. The names of
// its inputs are the fields of pin.Policy.Validate.
type policyForm struct {
	MinLength, MaxLength, MaxRun, History       string
	ExpirationHours, MaxAttempts, LockMinutes   string
	Alphabet, Blocklist                         string
	RequireClasses                              []string
	NotifyHoursBefore                           string // hours with commas between
	BlocklistEntries                            string // one on a line
	DisallowSequential, DisallowConstantDelta   bool
	DisallowContext, MinLengthByUsers           bool
	Username, Mail, Phone, StaffNumber, Version string // of the person that a PIN is tried for; of what the form began with
}

func policyFormFrom(p pin.Policy, version int64) policyForm {
	f := policyForm{
		MinLength: text(p.MinLength), MaxLength: text(p.MaxLength), MaxRun: text(p.MaxRun), History: text(p.History),
		ExpirationHours: text(p.ExpirationHours), MaxAttempts: text(p.MaxAttempts), LockMinutes: text(p.LockMinutes),
		Alphabet: string(p.Alphabet), Blocklist: string(p.Blocklist),
		BlocklistEntries:   strings.Join(p.BlocklistEntries, "\n"),
		DisallowSequential: p.DisallowSequential, DisallowConstantDelta: p.DisallowConstantDelta,
		DisallowContext: p.DisallowContext, MinLengthByUsers: p.MinLengthByUsers, Version: text(version),
	}
	for _, c := range p.RequireClasses {
		f.RequireClasses = append(f.RequireClasses, string(c))
	}
	var hours []string
	for _, h := range p.NotifyHoursBefore {
		hours = append(hours, text(h))
	}
	f.NotifyHoursBefore = strings.Join(hours, ", ")
	return f
}

// policyForm reads the form that was sent.
func (v *view) policyForm() policyForm {
	on := func(name string) bool { return v.value(name) != "" }
	return policyForm{
		MinLength: v.value("minLength"), MaxLength: v.value("maxLength"), MaxRun: v.value("maxRun"), History: v.value("history"),
		ExpirationHours: v.value("expirationHours"), MaxAttempts: v.value("maxAttempts"), LockMinutes: v.value("lockMinutes"),
		Alphabet: v.value("alphabet"), Blocklist: v.value("blocklist"), RequireClasses: v.values("requireClasses"),
		NotifyHoursBefore: v.value("notifyHoursBefore"), BlocklistEntries: v.value("blocklistEntries"),
		DisallowSequential: on("disallowSequential"), DisallowConstantDelta: on("disallowConstantDelta"),
		DisallowContext: on("disallowContext"), MinLengthByUsers: on("minLengthByUsers"),
		Username: v.value("tryUsername"), Mail: v.value("tryMail"), Phone: v.value("tryPhone"), StaffNumber: v.value("tryStaffNumber"),
		Version: v.value("version"),
	}
}

// policy returns the policy that the form says, or everything that is wrong with it.
func (f policyForm) policy() (pin.Policy, error) {
	var vs problem.Violations
	p := pin.Policy{
		MinLength: wholeNumber(&vs, "minLength", f.MinLength), MaxLength: wholeNumber(&vs, "maxLength", f.MaxLength),
		Alphabet: pin.Alphabet(f.Alphabet), Blocklist: pin.Blocklist(f.Blocklist),
		DisallowSequential: f.DisallowSequential, DisallowConstantDelta: f.DisallowConstantDelta,
		MaxRun: wholeNumber(&vs, "maxRun", cmp.Or(f.MaxRun, "0")), DisallowContext: f.DisallowContext,
		History: wholeNumber(&vs, "history", cmp.Or(f.History, "0")), MinLengthByUsers: f.MinLengthByUsers,
		ExpirationHours: wholeNumber(&vs, "expirationHours", cmp.Or(f.ExpirationHours, "0")),
		MaxAttempts:     wholeNumber(&vs, "maxAttempts", f.MaxAttempts), LockMinutes: wholeNumber(&vs, "lockMinutes", f.LockMinutes),
	}
	for _, c := range f.RequireClasses {
		p.RequireClasses = append(p.RequireClasses, pin.Class(c))
	}
	for _, line := range strings.Split(f.BlocklistEntries, "\n") {
		if entry := strings.TrimSpace(line); entry != "" {
			p.BlocklistEntries = append(p.BlocklistEntries, entry)
		}
	}
	for _, h := range strings.FieldsFunc(f.NotifyHoursBefore, func(r rune) bool { return r == ',' || r == ';' || r == ' ' }) {
		hours, err := strconv.Atoi(h)
		if err != nil {
			vs.Add("type", "notifyHoursBefore", "must be whole numbers with commas between, such as 168, 72, 24")
			break
		}
		p.NotifyHoursBefore = append(p.NotifyHoursBefore, hours)
	}
	if slices.Equal(p.NotifyHoursBefore, pin.Hours{0}) {
		p.NotifyHoursBefore = nil // none, in the way that people write it
	}
	slices.SortFunc(p.NotifyHoursBefore, func(a, b int) int { return cmp.Compare(b, a) })
	seen := slices.Clone(vs) // of a field that is no number it is enough to say that
	if err := vs.Merge(p.Validate()); err != nil {
		return p, err
	}
	vs = slices.DeleteFunc(vs, func(x problem.Violation) bool {
		return !slices.Contains(seen, x) && slices.ContainsFunc(seen, func(s problem.Violation) bool { return s.Field == x.Field })
	})
	return p, vs.Err()
}

// policyData is the page of the PIN policy.
type policyData struct {
	Form     policyForm
	Saved    tenant.Policy
	From     string // what the form was filled with besides the policy: "profile" or "version"
	FromName string
	Profiles []pin.Profile
	Trial    pinTrial
	Conflict []policyDifference // what is saved now and what was entered
	Facts    []policyFact       // of what is saved, for who may not change it
	Mail     expiryMail
}

// pinTrial is what a policy has for and against PINs.
type pinTrial struct {
	Faults  []Fault // of the policy itself
	Tried   bool
	Reasons []string // why the PIN that was tried is refused; none if it may be used
	Counts  []pinCount
	Letters bool // it requires what is no digit
	More    bool // it allows what is no digit
}

type pinCount struct{ Length, PINs int }

// countTo is the longest PIN of which it is said how many there are.
const countTo = 12

// trial is what a policy, saved or not, allows; without a PIN to try, how many it allows.
func (v *view) trial(form policyForm, tried string) (pinTrial, error) {
	p, err := form.policy()
	if err != nil {
		_, faults := v.faults(err)
		return pinTrial{Faults: faults}, nil
	}
	t := pinTrial{More: p.Alphabet != pin.Digits, Letters: slices.ContainsFunc(p.RequireClasses, func(c pin.Class) bool { return c != pin.Digit })}
	for n := p.MinLength; n <= min(p.MaxLength, max(p.MinLength, countTo)); n++ {
		if count := p.Admissible(n); count.IsInt64() {
			t.Counts = append(t.Counts, pinCount{n, int(count.Int64())})
		}
	}
	secret := v.secretValue("pin")
	if tried == "" || secret.Empty() {
		return t, nil
	}
	t.Tried = true
	about := pin.Context{Username: form.Username, Mail: form.Mail, Phone: form.Phone, StaffNumber: form.StaffNumber}
	if p.MinLengthByUsers {
		if about.Users, err = v.Users.Count(v.ctx(), v.tenant()); err != nil {
			return pinTrial{}, err
		}
	}
	for _, x := range p.Check(secret, about) {
		t.Reasons = append(t.Reasons, v.words.Reason(x))
	}
	return t, nil
}

// policyData fills in what does not depend on what was sent.
func (v *view) policyData(form policyForm, tried string) (policyData, error) {
	d := policyData{Form: form, Saved: v.core.Policy, Profiles: pin.Profiles(), Facts: v.policyFacts(v.core.Policy.Policy)}
	var err error
	if d.Trial, err = v.trial(form, tried); err != nil {
		return d, err
	}
	d.Mail, err = v.expiryMail(v.core.Tenant.Settings.ExpiryMail)
	return d, err
}

func (v *view) policyPage() error {
	form, from, name := policyFormFrom(v.core.Policy.Policy, v.core.Policy.Version), "", ""
	if name = v.value("profile"); name != "" && v.may(tenant.WritePolicy) {
		profile, err := pin.ProfileNamed(name)
		if err != nil {
			return v.notFound()
		}
		form, from = policyFormFrom(profile.Policy, v.core.Policy.Version), "profile"
	} else if name = v.value("version"); name != "" && v.may(tenant.WritePolicy) {
		was, err := v.policyVersion(name)
		if err != nil {
			return err
		}
		form, from = policyFormFrom(was.Policy.Policy, v.core.Policy.Version), "version"
	}
	d, err := v.policyData(form, "")
	if err != nil {
		return err
	}
	d.From, d.FromName = from, name
	return v.show("policy", d)
}

// policyVersion returns the policy as it was at a version, as a form or a link names it.
func (v *view) policyVersion(name string) (tenant.PolicyVersion, error) {
	versions, err := v.Tenants.PolicyVersions(v.ctx(), v.tenant())
	if err != nil {
		return tenant.PolicyVersion{}, err
	}
	i := slices.IndexFunc(versions, func(x tenant.PolicyVersion) bool { return text(x.Version) == name })
	if i < 0 {
		return tenant.PolicyVersion{}, fmt.Errorf("version of the policy: %w", problem.ErrNotFound)
	}
	return versions[i], nil
}

func (v *view) savePolicy() error {
	form := v.policyForm()
	p, err := form.policy()
	if err != nil {
		return v.policyRefused(err, form)
	}
	switch {
	case form.Version != text(v.core.Policy.Version):
		return v.policyConflict(form, p)
	case samePolicy(p, v.core.Policy.Policy):
		return v.done(Root+"/policy", words.Key("done.policySame"))
	}
	_, err = v.Tenants.ChangePolicy(v.ctx(), v.actor(), v.core, p)
	if errors.Is(err, problem.ErrConflict) {
		if v.core, err = v.Tenants.Load(v.ctx(), v.tenant()); err != nil {
			return err
		}
		return v.policyConflict(form, p)
	} else if err != nil {
		return v.policyRefused(err, form)
	}
	return v.done(Root+"/policy", words.Key("done.policySaved"))
}

func (v *view) policyRefused(refusal error, form policyForm) error {
	d, err := v.policyData(form, "")
	if err != nil {
		return err
	}
	d.Trial.Faults = nil // they are at the top
	return v.refused(refusal, "policy", d)
}

// policyConflict shows what somebody else has changed since the form began, next to what was
// entered. Sent again, the form replaces what is saved now.
func (v *view) policyConflict(form policyForm, entered pin.Policy) error {
	began, err := v.policyVersion(form.Version)
	if err != nil {
		return err
	}
	form.Version = text(v.core.Policy.Version)
	d, err := v.policyData(form, "")
	if err != nil {
		return err
	}
	d.Conflict = v.policyDifferences(began.Policy.Policy, v.core.Policy.Policy, entered)
	return v.render(http.StatusConflict, "policy", "layout", Frame{v: v, D: d})
}

func (v *view) tryPIN() error {
	form := v.policyForm()
	if v.r.Header.Get("HX-Request") != "" {
		t, err := v.trial(form, "yes")
		if err != nil {
			return err
		}
		return v.fragment("policy", "trial", t)
	}
	d, err := v.policyData(form, "yes")
	if err != nil {
		return err
	}
	d.From = "tried"
	return v.show("policy", d)
}

func samePolicy(a, b pin.Policy) bool {
	x, errX := a.MarshalJSON()
	y, errY := b.MarshalJSON()
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// policyFact is one thing that a policy says, in words.
type policyFact struct{ Key, Value string }

// policyFacts says a policy in words. All policies have the same facts in the same order.
func (v *view) policyFacts(p pin.Policy) []policyFact {
	w := v.words
	number := func(n int, off string) string {
		if n == 0 && off != "" {
			return w.Say(words.Family("policy.off.", off))
		}
		return w.Number(n)
	}
	yes := func(on bool) string { return w.Say(words.Family("policy.is.", on)) }
	var classes, hours []string
	for _, c := range p.RequireClasses {
		classes = append(classes, w.Say(words.Family("policy.class.", c)))
	}
	for _, h := range p.NotifyHoursBefore {
		hours = append(hours, w.Number(h))
	}
	return []policyFact{
		{"minLength", number(p.MinLength, "")}, {"maxLength", number(p.MaxLength, "")}, {"minLengthByUsers", yes(p.MinLengthByUsers)},
		{"alphabet", w.Say(words.Family("policy.alphabet.", p.Alphabet))},
		{"requireClasses", cmp.Or(strings.Join(classes, ", "), w.Say("policy.off.classes"))},
		{"disallowSequential", yes(p.DisallowSequential)}, {"maxRun", number(p.MaxRun, "run")}, {"disallowConstantDelta", yes(p.DisallowConstantDelta)},
		{"blocklist", w.Say(words.Family("policy.blocklist.", p.Blocklist))}, {"blocklistEntries", w.Number(len(p.BlocklistEntries))},
		{"disallowContext", yes(p.DisallowContext)}, {"history", number(p.History, "history")},
		{"expirationHours", number(p.ExpirationHours, "expiration")},
		{"notifyHoursBefore", cmp.Or(strings.Join(hours, ", "), w.Say("policy.off.notify"))},
		{"maxAttempts", number(p.MaxAttempts, "")}, {"lockMinutes", number(p.LockMinutes, "")},
	}
}

// policyDifference is a fact that is not the same in policies: at the beginning, as saved now,
// as entered.
type policyDifference struct{ Key, Began, Saved, Entered string }

func (v *view) policyDifferences(began, saved, entered pin.Policy) []policyDifference {
	a, b, c := v.policyFacts(began), v.policyFacts(saved), v.policyFacts(entered)
	var out []policyDifference
	for i := range a {
		if a[i].Key == "blocklistEntries" { // as many, but others
			b[i].Value += v.otherEntries(began, saved)
			c[i].Value += v.otherEntries(saved, entered)
		}
		if a[i] != b[i] || b[i] != c[i] {
			out = append(out, policyDifference{a[i].Key, a[i].Value, b[i].Value, c[i].Value})
		}
	}
	return out
}

// otherEntries says that b has as many entries as a, but not the same.
func (v *view) otherEntries(a, b pin.Policy) string {
	if len(a.BlocklistEntries) != len(b.BlocklistEntries) || slices.Equal(a.BlocklistEntries, b.BlocklistEntries) {
		return ""
	}
	return " (" + v.words.Say("policy.otherEntries") + ")"
}

// policyVersionRow is a policy that there was.
type policyVersionRow struct {
	tenant.PolicyVersion
	PINs    int
	Changed []string // keys of what was changed to it
}

type policyVersionList struct {
	Rows        List[policyVersionRow]
	Users       int
	WithoutPIN  int
	Identifying int
	Compared    *policyVersionRow
	Differences []policyDifference // Saved is the present policy, Began the compared one
}

func (v *view) policyVersions() error {
	versions, err := v.Tenants.PolicyVersions(v.ctx(), v.tenant())
	if err != nil {
		return err
	}
	census, err := v.Users.Census(v.ctx(), v.tenant())
	if err != nil {
		return err
	}
	rows := make([]policyVersionRow, len(versions))
	for i, x := range versions {
		row := &rows[len(rows)-1-i] // the newest first
		*row = policyVersionRow{PolicyVersion: x, PINs: census.ByPolicy[x.Version]}
		if i > 0 {
			before := versions[i-1].Policy.Policy
			for _, d := range v.policyDifferences(before, x.Policy.Policy, x.Policy.Policy) {
				row.Changed = append(row.Changed, d.Key)
			}
		}
	}
	if v.value("format") == "csv" {
		header := []string{"version", "since", "pins"}
		for _, f := range v.policyFacts(pin.Default()) {
			header = append(header, f.Key)
		}
		return csvFile(v, "pin-policies", header, rowsOf("", func(string) ([]policyVersionRow, string, error) { return rows, "", nil }), func(r policyVersionRow) []string {
			cells := []string{text(r.Version), csvTime(r.Since), text(r.PINs)}
			for _, f := range v.policyFacts(r.Policy.Policy) {
				cells = append(cells, f.Value)
			}
			return cells
		})
	}
	d := policyVersionList{Rows: list(v, rows, ""), Users: census.Users, WithoutPIN: census.WithoutPIN, Identifying: census.Identifying}
	if name := v.value("compare"); name != "" {
		i := slices.IndexFunc(rows, func(r policyVersionRow) bool { return text(r.Version) == name })
		if i < 0 {
			return v.notFound()
		}
		was, is := rows[i].Policy.Policy, v.core.Policy.Policy
		d.Compared, d.Differences = &rows[i], v.policyDifferences(was, is, is)
	}
	return v.show("policy-versions", d)
}

// expiryMail is by which configuration and template the expiry of PINs is announced.
type expiryMail struct {
	Messaging, Template       string
	Configurations, Templates []Option
	Choices                   []Option // the configurations, and none
	Was                       string   // what was saved when the form began
	Changed                   bool     // somebody else has changed that since
}

// expiryMailWas is the two in one hidden input.
func expiryMailWas(refs tenant.ExpiryMailRefs) string { return refs.Messaging + "/" + refs.Template }

// Name returns the name of what is chosen.
func (expiryMail) Name(id string, of []Option) string {
	if i := slices.IndexFunc(of, func(o Option) bool { return o.Value == id }); i >= 0 {
		return of[i].Label
	}
	return id
}

// expiryMail reads what may be chosen, both lists at once.
func (v *view) expiryMail(refs tenant.ExpiryMailRefs) (expiryMail, error) {
	m := expiryMail{Messaging: refs.Messaging, Template: cmp.Or(refs.Template, mail.PINExpiryID), Was: expiryMailWas(v.core.Tenant.Settings.ExpiryMail)}
	if !v.may(tenant.ReadMessaging) {
		return m, nil
	}
	store := v.messaging().Store(v.core)
	var configurations []mail.Configuration
	var templates []mail.Template
	g, ctx := errgroup.WithContext(v.ctx())
	g.Go(func() (err error) { configurations, err = store.Configurations(ctx); return err })
	g.Go(func() (err error) {
		templates, err = store.Templates(ctx, v.words.Language())
		return err
	})
	if err := g.Wait(); err != nil {
		return m, err
	}
	m.Choices = []Option{{"", v.words.Say("policy.noMail")}}
	for _, c := range configurations {
		m.Choices = append(m.Choices, Option{c.ID, c.Name})
		m.Configurations = append(m.Configurations, Option{c.ID, c.Name})
	}
	for _, t := range templates {
		if t.Kind == mail.PINExpiry {
			m.Templates = append(m.Templates, Option{t.ID, t.Name})
		}
	}
	return m, nil
}

func (v *view) saveExpiryMail() error {
	settings := v.core.Tenant.Settings
	settings.ExpiryMail = tenant.ExpiryMailRefs{Messaging: v.value("expiryMail.messaging"), Template: v.value("expiryMail.template")}
	shown := func(refusal error, changed bool) error {
		d, err := v.policyData(policyFormFrom(v.core.Policy.Policy, v.core.Policy.Version), "")
		if err != nil {
			return err
		}
		d.Mail.Messaging, d.Mail.Template, d.Mail.Changed = settings.ExpiryMail.Messaging, settings.ExpiryMail.Template, changed
		return v.refused(refusal, "policy", d)
	}
	if v.value("was") != expiryMailWas(v.core.Tenant.Settings.ExpiryMail) {
		return shown(fmt.Errorf("settings: %w", problem.ErrConflict), true)
	}
	var vs problem.Violations
	checks, err := v.messaging().ExpiryMailChecks(v.ctx(), v.core, settings.ExpiryMail, &vs)
	if err == nil {
		err = vs.Err()
	}
	if err == nil {
		_, err = v.Tenants.ChangeSettings(v.ctx(), v.actor(), v.core, settings, checks...)
	}
	if err != nil {
		return shown(err, false)
	}
	return v.done(Root+"/policy", words.Key("done.expiryMailSaved"))
}
