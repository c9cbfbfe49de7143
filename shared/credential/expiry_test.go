package credential

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/tenant"
)

func reminding(days int, before ...int) Template {
	tmpl := aTemplate("PIV")
	tmpl.PINValidDays, tmpl.Messaging = days, messaging
	for _, d := range before {
		tmpl.Reminders = append(tmpl.Reminders, Reminder{DaysBefore: d})
	}
	return tmpl
}

// Setting a flag plans the first reminder whose day has not passed.
func TestFlagPlans(t *testing.T) {
	day := func(n int) time.Time { return start.AddDate(0, 0, n) }
	for _, c := range []struct {
		name    string
		expires time.Time
		before  []int
		want    Notice
	}{
		{"no reminders", day(30), nil, Notice{Kind: NoticeExpired, State: NoticePlanned, At: day(30)}},
		{"in any order", day(30), []int{1, 14, 7}, Notice{Kind: NoticeReminder, Days: 14, State: NoticePlanned, At: day(16), Left: []int{7, 1}}},
		{"some too late", day(10), []int{14, 7, 1}, Notice{Kind: NoticeReminder, Days: 7, State: NoticePlanned, At: day(3), Left: []int{1}}},
		{"on the day", day(14), []int{14}, Notice{Kind: NoticeReminder, Days: 14, State: NoticePlanned, At: day(0)}},
		{"all too late", day(1).Add(-time.Second), []int{14, 7, 1}, Notice{Kind: NoticeExpired, State: NoticePlanned, At: day(1).Add(-time.Second)}},
		{"taken away", time.Time{}, []int{14}, Notice{}},
	} {
		got := Credential{}.Flag(c.expires, Flagged{How: FlagBySanityCheck, At: start, Run: "01R"}, reminding(30, c.before...), start)
		want := Flagged{How: FlagBySanityCheck, At: start, Run: "01R"}
		if c.expires.IsZero() {
			want = Flagged{}
		}
		if d := cmp.Diff(c.want, got.Notice); d != "" || got.Flagged != want || !got.PINExpiresAt.Equal(c.expires) {
			t.Errorf("%s: %+v (-want +got):\n%s", c.name, got.Flagged, d)
		}
	}
}

// A new PIN makes a card active and sets the flag by the template, whatever way it came.
func TestPINChanged(t *testing.T) {
	for how, flag := range map[How]FlagHow{Issued: FlagByIssue, ChangedByHolder: FlagByChange, ResetBySelfService: FlagByReset, ResetByOperator: FlagByReset, ResetOffline: FlagByReset} {
		for from, want := range map[State]State{Registered: Active, PINToBeSet: Active, Active: Active, Blocked: Active, Suspended: Suspended, Retired: Retired} {
			c := Credential{State: from, ExpiryRecorded: true}.PINChanged(PINChange{At: start.Add(time.Millisecond), How: how, Operation: "op"}, reminding(30, 7))
			if c.State != want || c.Flagged != (Flagged{How: flag, At: start}) || !c.PINExpiresAt.Equal(start.AddDate(0, 0, 30)) || c.ExpiryRecorded || c.LastPINChange != (PINChange{At: start, How: how, Operation: "op"}) {
				t.Errorf("%s of a card that is %s: %+v", how, from, c)
			}
		}
	}
	if c := (Credential{PINExpiresAt: start, State: Active}).PINChanged(PINChange{At: start, How: ChangedByHolder}, reminding(0)); c.HasFlag() || c.Notice.State != NoNotice {
		t.Errorf("without server-managed expiry: %+v", c)
	}
}

func TestPINChangedByHolder(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	tmpl := must(w.CreateTemplate(ctx, w.core, admin, reminding(30, 7, 1), nil))(t)
	c := must(w.Register(ctx, w.core, admin, New{Family: "PIV", CardID: pivCard, Template: tmpl.ID, Holder: ada, IssuedAt: start}))(t)
	if c.State != Active || c.Flagged.How != FlagByIssue {
		t.Errorf("issued: %+v", c)
	}
	w.pass(10 * 24 * time.Hour)
	changed := func(at time.Time) (Credential, error) { return w.PINChangedByHolder(ctx, w.core, admin, c.ID, at) }
	got := must(changed(w.Now().Add(-24 * time.Hour)))(t)
	if !got.PINExpiresAt.Equal(start.AddDate(0, 0, 39)) || got.Flagged.How != FlagByChange {
		t.Errorf("changed yesterday, it expires %s by %s", got.PINExpiresAt, got.Flagged.How)
	}
	if d := cmp.Diff(got, w.reread(c)); d != "" {
		t.Errorf("-changed +stored:\n%s", d)
	}
	if again := must(changed(w.Now().Add(-24 * time.Hour)))(t); again.Version != got.Version {
		t.Error("told twice, it was written twice")
	}
	// A change long ago, told now: its reminders have passed.
	w.pass(35 * 24 * time.Hour)
	late := must(changed(start.AddDate(0, 0, 10)))(t)
	if n := late.Notice; n.Kind != NoticeExpired || !late.Expired(w.Now()) {
		t.Errorf("told late: %+v", n)
	}
	for name, at := range map[string]time.Time{"at:future": w.Now().Add(skew + time.Second), "at:past": start} {
		if _, err := changed(at); len(objections(err)) != 1 || objections(err)[0] != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := changed(w.Now().Add(skew)); err != nil {
		t.Errorf("by a clock that is a little ahead: %v", err)
	}
	if _, err := w.PINChangedByHolder(ctx, w.other, admin, c.ID, w.Now()); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("by another tenant: %v", err)
	}
	must(w.Update(ctx, w.core, admin, tenant.RoleAdmin, c.ID, 0, func(a *About) { a.State, a.Reason = Retired, "replaced" }))(t)
	w.pass(time.Hour)
	if _, err := changed(w.Now()); !errors.Is(err, problem.ErrState) {
		t.Errorf("of a retired card: %v", err)
	}
	w.indexed()
}

// Cards that come are flagged as is known of them.
func TestRegisterFlagged(t *testing.T) {
	w := newWorld(t)
	tmpl := must(w.CreateTemplate(t.Context(), w.core, admin, reminding(30, 7), nil))(t)
	silent := must(w.CreateTemplate(t.Context(), w.core, admin, reminding(0), nil))(t)
	in := func(days int) time.Time { return start.AddDate(0, 0, days) }
	for i, c := range []struct {
		name    string
		new     New
		state   State
		expires time.Time
		how     FlagHow
		notice  int // days
	}{
		{"nothing is known", New{Template: tmpl.ID}, Registered, time.Time{}, "", 0},
		{"issued", New{Template: tmpl.ID, IssuedAt: in(-10)}, Active, in(20), FlagByIssue, 7},
		{"issued long ago", New{Template: tmpl.ID, IssuedAt: in(-25)}, Active, in(5), FlagByIssue, 0},
		{"issued, and blocked since", New{Template: tmpl.ID, IssuedAt: in(-10), State: Blocked}, Blocked, in(20), FlagByIssue, 7},
		{"a flag", New{Template: tmpl.ID, PINExpiresAt: in(100)}, Registered, in(100), FlagByImport, 7},
		{"both", New{Template: tmpl.ID, PINExpiresAt: in(100), IssuedAt: in(-1)}, Active, in(100), FlagByImport, 7},
		{"issued, not managed", New{Template: silent.ID, IssuedAt: in(-1)}, Active, time.Time{}, "", 0},
	} {
		c.new.Family, c.new.CardID = "PIV", fmt.Sprintf("%032X", i+1)
		got := must(w.Register(t.Context(), w.core, admin, c.new))(t)
		if got.State != c.state || !got.PINExpiresAt.Equal(c.expires) || got.Flagged.How != c.how || got.Notice.Days != c.notice {
			t.Errorf("%s: %s, expires %s by %q, %+v", c.name, got.State, got.PINExpiresAt, got.Flagged.How, got.Notice)
		}
		if d := cmp.Diff(got, w.reread(got)); d != "" {
			t.Errorf("%s (-registered +stored):\n%s", c.name, d)
		}
	}
	_, err := w.Register(t.Context(), w.core, admin, New{Family: "PIV", CardID: pivCard, Template: tmpl.ID, State: "lost", Serial: "a\nb", IssuedAt: in(1), PINExpiresAt: in(0)})
	if d := cmp.Diff([]string{"issuedAt:future", "pinExpiresAt:past", "serial:length", "state:unknown"}, objections(err)); d != "" {
		t.Errorf("all wrong (-want +got): %v\n%s", err, d)
	}
	w.indexed()
}

// The limit counts resets within its days, and says when there may be the next.
func TestLimit(t *testing.T) {
	tmpl := reminding(30)
	tmpl.Limit = Limit{Count: 2, Days: 7}
	c := Credential{State: Active}
	reset := func(days int, how How) {
		c = c.PINChanged(PINChange{At: start.AddDate(0, 0, days), How: how}, tmpl)
	}
	check := func(days int, until int) {
		t.Helper()
		err := tmpl.CheckLimit(c, start.AddDate(0, 0, days))
		var limit *problem.LimitError
		if until < 0 {
			if err != nil {
				t.Errorf("on day %d: %v", days, err)
			}
			return
		}
		if !errors.As(err, &limit) || !limit.Until.Equal(start.AddDate(0, 0, until)) || limit.Code != "tooManyUnblocks" || !strings.Contains(limit.Reason, "within 7 days") {
			t.Errorf("on day %d: %v, want a limit until day %d", days, err, until)
		}
	}
	check(0, -1)
	reset(0, ResetBySelfService)
	reset(0, ChangedByHolder) // is no reset
	check(0, -1)
	reset(3, ResetOffline)
	check(3, 7)
	check(6, 7)
	check(7, -1)
	reset(8, ResetByOperator)
	check(8, 10)
	if len(c.Resets) != 2 {
		t.Errorf("%d resets are kept, want those that count", len(c.Resets))
	}
	if err := reminding(30).CheckLimit(c, start.AddDate(0, 0, 8)); err != nil {
		t.Errorf("without a limit: %v", err)
	}
}

// A change of a template says what it does, does nothing, and refuses what the change
// itself would.
func TestPreview(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	tmpl := must(w.CreateTemplate(ctx, w.core, admin, reminding(0), nil))(t)
	for i := range 5 {
		must(w.Register(ctx, w.core, admin, New{Family: "PIV", CardID: fmt.Sprintf("%032X", i+1), Template: tmpl.ID}))(t)
	}
	edit := func(x *Template) {
		x.PINValidDays, x.Reminders, x.OperatorMail, x.Limit = 30, []Reminder{{DaysBefore: 7}}, "desk@acme.example", Limit{1, 7}
		x.Channels = []Channel{SelfService}
	}
	before := must(w.Template(ctx, acme, tmpl.ID))(t)
	p := must(w.Preview(ctx, w.core, tmpl.ID, edit, nil))(t)
	fields := []string{}
	for _, c := range p.Changes {
		fields = append(fields, c.Field)
		if !strings.HasSuffix(c.Effect, ".") {
			t.Errorf("%s: no sentence: %q", c.Field, c.Effect)
		}
	}
	if d := cmp.Diff([]string{"channels.selfService", "channels.operator", "pinValidDays", "reminders", "operatorMail", "limit"}, fields); d != "" || p.Cards != 5 || p.WithoutFlag != 5 || p.MoreWithoutFlag {
		t.Errorf("%+v (-want +got):\n%s", p, d)
	}
	if d := cmp.Diff(before, must(w.Template(ctx, acme, tmpl.ID))(t)); d != "" {
		t.Errorf("the template was changed:\n%s", d)
	}
	if _, err := w.Preview(ctx, w.core, tmpl.ID, func(x *Template) { x.Family, x.Name = "GIDS", "" }, nil); len(objections(err)) != 2 {
		t.Errorf("what a change refuses: %v", err)
	}
	if _, err := w.Preview(ctx, w.other, tmpl.ID, edit, nil); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("another tenant's: %v", err)
	}
	if p := must(w.Preview(ctx, w.core, tmpl.ID, func(*Template) {}, nil))(t); len(p.Changes) != 0 {
		t.Errorf("a change of nothing: %+v", p.Changes)
	}
	w.check()
}

// A template may name only what is there, and of the right kind; that is so still when it is
// stored.
func TestTemplateNames(t *testing.T) {
	w := newWorld(t)
	w.put(table.MessagingKey(globex, "01JTHEIRS"))
	for name, edit := range map[string]func(*Template){
		"reminders.0.messaging:unknown":    func(x *Template) { x.Reminders[0].Messaging = "01JTHEIRS" },
		"reminders.0.mailTemplate:unknown": func(x *Template) { x.Reminders[0].MailTemplate = "pin-expiry" },
		"expiredTemplate:unknown":          func(x *Template) { x.ExpiredTemplate = "01JNOBODY" },
	} {
		tmpl := reminding(30, 7)
		edit(&tmpl)
		_, err := w.CreateTemplate(t.Context(), w.core, admin, tmpl, nil)
		if d := cmp.Diff([]string{name}, objections(err)); d != "" {
			t.Errorf("%v\n%s", err, d)
		}
	}
	tmpl := reminding(30, 7)
	tmpl.Reminders[0].MailTemplate, tmpl.ExpiredTemplate = "card-pin-expiry", "card-pin-expired" // the predefined ones are always there
	must(w.CreateTemplate(t.Context(), w.core, admin, tmpl, nil))(t)
}
