package page

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/mail"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/tenant"
	"github.com/pinward/pinward/shared/user"
)

// bulkRoutes are the pages of PINs that are generated and mailed to many.
func (c *Console) bulkRoutes() []route {
	const all, one = Root + "/users/pins", Root + "/users/pins/of/{bulk}"
	return []route{
		{pattern: "GET " + all, action: tenant.BulkPINs, do: (*view).listBulks},
		{pattern: "GET " + all + "/new", action: tenant.BulkPINs, do: (*view).newBulk},
		{pattern: "POST " + all + "/new", action: tenant.BulkPINs, do: (*view).planBulk},
		{pattern: "GET " + one, action: tenant.BulkPINs, do: (*view).showBulk},
		{pattern: "GET " + one + "/progress", action: tenant.BulkPINs, asked: true, do: (*view).bulkProgress},
		{pattern: "POST " + one + "/start", action: tenant.BulkPINs, do: (*view).startBulk},
		{pattern: "POST " + one + "/cancel", action: tenant.BulkPINs, do: (*view).cancelBulk},
	}
}

// bulkPage is what is to be seen of a bulk.
type bulkPage struct {
	user.Bulk
	State user.BulkState // now
}

// Live tells whether it changes by itself.
func (b bulkPage) Live() bool { return b.State == user.BulkCounting || b.State == user.BulkRunning }

// Ended tells whether nothing comes of it any more.
func (b bulkPage) Ended() bool {
	return !b.Live() && b.State != user.BulkPlanned
}

// Days is Spec.OlderThanHours, rounded up to whole days.
func (b bulkPage) Days() int { return (b.Spec.OlderThanHours + 23) / 24 }

// Refusals are the users who got no PIN or no mail, by why.
func (b bulkPage) Refusals() (all []refusal) {
	for _, code := range slices.Sorted(maps.Keys(b.Refused)) {
		all = append(all, refusal{code, b.Refused[code]})
	}
	return all
}

type refusal struct {
	Code  string
	Count int
}

// Expires is when the plan cannot be started any more.
func (b bulkPage) Expires() time.Time { return b.PlannedAt.Add(user.BulkPlanLife) }

func (v *view) bulkPage(b user.Bulk) bulkPage { return bulkPage{b, b.StateAt(v.Now())} }

func (v *view) listBulks() error {
	from, err := v.place()
	if err != nil {
		return err
	}
	more := func(beyond string, limit int) (pages []bulkPage, _ string, _ error) {
		bulks, next, err := v.Users.Bulks(v.ctx(), v.tenant(), beyond, limit)
		for _, b := range bulks {
			pages = append(pages, v.bulkPage(b))
		}
		return pages, next, err
	}
	if v.value("format") == "csv" {
		rows := rowsOf(from, func(beyond string) ([]bulkPage, string, error) { return more(beyond, 200) })
		header := []string{"id", "state", "createdAt", "startedAt", "endedAt", "by", "group", "olderThanHours", "users", "matched", "mails", "issued", "mailed"}
		return csvFile(v, "bulk-pins", header, rows, func(b bulkPage) []string {
			return []string{b.ID, string(b.State), csvTime(b.CreatedAt), csvTime(b.StartedAt), csvTime(b.EndedAt), b.By.Name, b.Spec.Group, strconv.Itoa(b.Spec.OlderThanHours),
				strconv.Itoa(b.Users), strconv.Itoa(b.Matched), strconv.Itoa(b.Mails()), strconv.Itoa(b.Issued), strconv.Itoa(b.Mailed)}
		})
	}
	bulks, next, err := more(from, pageSize)
	if err != nil {
		return err
	}
	return v.show("bulks", list(v, bulks, next))
}

// bulkForm says who is to get a PIN, and what PIN.
type bulkForm struct {
	Group, Days, Messaging, Template string
	Issue                            issueFields
	Configurations, Templates        []Option
}

const maxDays = 3650

func (v *view) bulkForm() (bulkForm, error) {
	f := bulkForm{Group: v.value("group"), Days: v.value("olderThanDays"), Messaging: v.value("messaging"), Template: v.value("template"), Issue: v.issueFields()}
	store := mail.Store{Table: v.Table, Tenant: v.tenant(), Keys: v.core.Keys}
	configurations, err := store.Configurations(v.ctx())
	if err != nil {
		return bulkForm{}, err
	}
	templates, err := store.Templates(v.ctx(), v.core.Tenant.Settings.Language)
	if err != nil {
		return bulkForm{}, err
	}
	f.Configurations = []Option{{"", v.words.Say("bulk.messagingDefault")}}
	for _, c := range configurations {
		f.Configurations = append(f.Configurations, Option{c.ID, c.Name})
	}
	f.Templates = []Option{{"", v.words.Say("bulk.templateDefault")}}
	for _, t := range templates {
		if t.Kind == mail.PINIssued && t.ID != mail.PINIssuedID {
			f.Templates = append(f.Templates, Option{t.ID, t.Name})
		}
	}
	return f, nil
}

func (f bulkForm) spec() (user.BulkSpec, error) {
	var vs problem.Violations
	spec := user.BulkSpec{Group: f.Group, Issue: f.Issue.issue(&vs)}
	spec.Issue.Messaging, spec.Issue.Template = f.Messaging, f.Template
	days := number("olderThanDays", f.Days, &vs)
	if days > maxDays {
		vs.Add("range", "olderThanDays", "must be at most %d", maxDays)
	}
	spec.OlderThanHours = days * 24
	return spec, vs.Err()
}

func (v *view) newBulk() error {
	f, err := v.bulkForm()
	if err != nil {
		return err
	}
	return v.show("bulk-new", f)
}

func (v *view) planBulk() error {
	f, err := v.bulkForm()
	if err != nil {
		return err
	}
	spec, err := f.spec()
	if err != nil {
		return v.refused(err, "bulk-new", f)
	}
	store := mail.Store{Table: v.Table, Tenant: v.tenant(), Keys: v.core.Keys}
	rate, err := store.BulkRate(v.ctx(), v.Senders, cmp.Or(f.Messaging, v.core.Tenant.Settings.ExpiryMail.Messaging))
	if err != nil {
		return err
	}
	b, err := v.Users.PlanBulk(v.ctx(), v.core, v.actor(), spec, rate)
	if err != nil {
		return v.refused(err, "bulk-new", f)
	}
	return v.goTo(join("/users/pins/of/", b.ID))
}

func (v *view) showBulk() error {
	b, err := v.Users.Bulk(v.ctx(), v.tenant(), v.r.PathValue("bulk"))
	if err != nil {
		return err
	}
	return v.show("bulk", v.bulkPage(b))
}

// bulkProgress is the part of the page that lives. Once the bulk does not change by itself any
// more, the page is loaded anew, for what can be done with it is another then.
func (v *view) bulkProgress() error {
	b, err := v.Users.Bulk(v.ctx(), v.tenant(), v.r.PathValue("bulk"))
	if err != nil {
		return err
	}
	p := v.bulkPage(b)
	if !p.Live() {
		v.w.Header().Set("HX-Refresh", "true")
	}
	return v.fragment("bulk", "progress", p)
}

func (v *view) startBulk() error {
	id := v.r.PathValue("bulk")
	_, err := v.Users.StartBulk(v.ctx(), v.core, v.actor(), id)
	return v.bulkChanged(id, err, words.Key("done.bulkStarted"))
}

func (v *view) cancelBulk() error {
	id := v.r.PathValue("bulk")
	b, err := v.Users.CancelBulk(v.ctx(), v.core, v.actor(), id)
	if b.Cancelling && b.State != user.BulkCancelled {
		return v.bulkChanged(id, err, words.Key("done.bulkCancelling"))
	}
	return v.bulkChanged(id, err, words.Key("done.bulkCancelled"))
}

func (v *view) bulkChanged(id string, err error, done string) error {
	if err == nil {
		return v.done(join("/users/pins/of/", id), done)
	}
	b, failed := v.Users.Bulk(v.ctx(), v.tenant(), id)
	if failed != nil {
		return failed
	}
	return v.refused(err, "bulk", v.bulkPage(b))
}
