package page

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/pinward/pinward/functions/console/words"
	"github.com/pinward/pinward/shared/delivery"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/rule"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
)

const (
	webhooks   = Root + "/rules/webhooks"
	deliveries = Root + "/rules/deliveries"
)

func (c *Console) webhookRoutes() []route {
	return []route{
		{pattern: "GET " + webhooks, action: tenant.ReadDeliveries, do: (*view).listWebhooks},
		{pattern: "GET " + webhooks + "/new", action: tenant.ManageDeliveries, do: (*view).newWebhook},
		{pattern: "POST " + webhooks + "/new", action: tenant.ManageDeliveries, do: (*view).createWebhook},
		{pattern: "GET " + webhooks + "/{id}", action: tenant.ManageDeliveries, do: (*view).webhookPage},
		{pattern: "POST " + webhooks + "/{id}", action: tenant.ManageDeliveries, do: (*view).saveWebhook},
		{pattern: "POST " + webhooks + "/{id}/test", action: tenant.ManageDeliveries, do: (*view).testWebhook},
		{pattern: "POST " + webhooks + "/{id}/rotate", action: tenant.ManageDeliveries, do: (*view).rotateWebhook},
		{pattern: "GET " + webhooks + "/{id}/delete", action: tenant.ManageDeliveries, do: (*view).deleteWebhookPage},
		{pattern: "POST " + webhooks + "/{id}/delete", action: tenant.ManageDeliveries, do: (*view).deleteWebhook},

		{pattern: "GET " + deliveries, action: tenant.ReadDeliveries, do: (*view).listDeliveries},
		{pattern: "GET " + deliveries + "/{id}", action: tenant.ReadDeliveries, do: (*view).deliveryPage},
		{pattern: "POST " + deliveries + "/{id}/resend", action: tenant.ManageDeliveries, do: (*view).resendDelivery},
		{pattern: "POST " + deliveries + "/{id}/drop", action: tenant.ManageDeliveries, do: (*view).dropDelivery},
	}
}

func (v *view) listWebhooks() error {
	all, err := v.Deliveries.Endpoints(v.ctx(), v.tenant())
	if err != nil {
		return err
	}
	if v.value("format") == "csv" {
		return csvFile(v, "webhooks", []string{"name", "url", "on", "secretSince"}, rowsOf("", func(string) ([]delivery.Endpoint, string, error) { return all, "", nil }),
			func(e delivery.Endpoint) []string { return []string{e.Name, e.URL, text(e.On), csvTime(e.RotatedAt)} })
	}
	return v.show("webhooks", list(v, all, ""))
}

// webhookData is the page of an endpoint.
type webhookData struct {
	delivery.Endpoint // as it stands in the form
	FormerUntil       time.Time
	Overlap           string
	Conflict          bool
	Differs           []Difference
	Tested            *delivery.Delivery
	Answer            string // what came of a test
	Secret            string // shown this once
}

func (v *view) webhookData(e delivery.Endpoint) webhookData {
	return webhookData{Endpoint: e, FormerUntil: e.FormerUntil(v.Now()), Overlap: "24"}
}

// Worked tells whether the endpoint took a test.
func (d webhookData) Worked() bool { return d.Tested != nil && d.Tested.State == delivery.Delivered }

func (v *view) newWebhook() error {
	return v.show("webhook", webhookData{Endpoint: delivery.Endpoint{On: true}})
}

func (v *view) createWebhook() error {
	e := delivery.Endpoint{Name: v.value("name"), URL: v.value("url"), On: true}
	made, text, err := v.Deliveries.CreateEndpoint(v.ctx(), v.core, v.actor(), e)
	if err != nil {
		return v.refused(err, "webhook", webhookData{Endpoint: e})
	}
	return v.showSecret(made, text)
}

// showSecret answers with a secret, once. There is no page to come back to.
func (v *view) showSecret(e delivery.Endpoint, s secret.Text) error {
	d := v.webhookData(e)
	d.Secret = s.Reveal()
	return v.show("webhook-secret", d)
}

func (v *view) endpoint() (delivery.Endpoint, error) {
	return v.Deliveries.Endpoint(v.ctx(), v.tenant(), v.r.PathValue("id"))
}

func (v *view) webhookPage() error {
	e, err := v.endpoint()
	if err != nil {
		return err
	}
	return v.show("webhook", v.webhookData(e))
}

func (v *view) saveWebhook() error {
	saved, err := v.endpoint()
	if err != nil {
		return err
	}
	e := saved
	e.Name, e.URL, e.On = v.value("name"), v.value("url"), v.value("on") != ""
	if v.value("version") != text(saved.Version) {
		err = fmt.Errorf("webhook: %w", problem.ErrConflict)
	} else {
		_, err = v.Deliveries.ChangeEndpoint(v.ctx(), v.core, v.actor(), e)
	}
	if errors.Is(err, problem.ErrConflict) {
		if saved, err = v.endpoint(); err != nil {
			return err
		}
		e.Version = saved.Version
		d := v.webhookData(e)
		facts := func(e delivery.Endpoint) []Difference {
			return []Difference{{v.words.Say("webhook.name"), e.Name, ""}, {v.words.Say("webhook.url"), e.URL, ""}, {v.words.Say("webhook.state"), v.words.Say(words.Family("rule.on.", e.On)), ""}}
		}
		d.Conflict, d.Differs = true, differing(facts(saved), facts(e))
		return v.render(http.StatusConflict, "webhook", "layout", Frame{v: v, D: d})
	} else if err != nil {
		return v.refused(err, "webhook", v.webhookData(e))
	}
	return v.done(webhooks+"/"+e.ID, words.Key("done.webhookSaved"))
}

func (v *view) testWebhook() error {
	e, err := v.endpoint()
	if err != nil {
		return err
	}
	d := v.webhookData(e)
	tested, err := v.Deliveries.Test(v.ctx(), v.core, v.actor(), e.ID)
	if err != nil {
		return v.refused(err, "webhook", d)
	}
	d.Tested, d.Answer = &tested, v.sentenceOf(tested)
	return v.show("webhook", d)
}

// sentenceOf says what came of the last attempt.
func (v *view) sentenceOf(d delivery.Delivery) string {
	return v.words.Text(d.Sentence())
}

func (v *view) rotateWebhook() error {
	e, err := v.endpoint()
	if err != nil {
		return err
	}
	d := v.webhookData(e)
	d.Overlap = v.value("overlapHours")
	hours, err := strconv.Atoi(d.Overlap)
	if err != nil || hours < 0 || hours > int(delivery.MaxOverlap/time.Hour) { // so that it is no other number of nanoseconds
		return v.refused(problem.Invalid("range", "overlapHours", "must be 0 to %d", int(delivery.MaxOverlap/time.Hour)), "webhook", d)
	}
	e, text, err := v.Deliveries.RotateSecret(v.ctx(), v.core, v.actor(), e.ID, time.Duration(hours)*time.Hour)
	if err != nil {
		return v.refused(err, "webhook", d)
	}
	return v.showSecret(e, text)
}

func (v *view) deleteWebhookPage() error {
	e, err := v.endpoint()
	if err != nil {
		return err
	}
	return v.show("webhook-delete", e)
}

func (v *view) deleteWebhook() error {
	e, err := v.endpoint()
	if err != nil {
		return err
	}
	unnamed, err := v.Rules.Unnamed(v.ctx(), v.tenant(), func(x rule.Action) bool { return x.Endpoint == e.ID })
	if err == nil {
		err = v.Deliveries.DeleteEndpoint(v.ctx(), v.core, v.actor(), e.ID, unnamed)
	}
	if err != nil {
		return v.refused(err, "webhook-delete", e)
	}
	return v.done(webhooks, words.Key("done.webhookDeleted"))
}

// deliveryRow is a delivery, and what came of it in words.
type deliveryRow struct {
	delivery.Delivery
	Answer string
	Named  []namedValue // of a mail, what its variables stand for
}

// Ended tells whether nothing more happens by itself.
func (d deliveryRow) Ended() bool { return d.State.Ended() }

// Droppable tells whether it can be given up.
func (d deliveryRow) Droppable() bool { return d.State == delivery.Planned || d.State == delivery.Dead }

func (v *view) deliveryRow(d delivery.Delivery) deliveryRow {
	row := deliveryRow{Delivery: d, Answer: v.sentenceOf(d)}
	for _, name := range []string{"event", "time", "message"} {
		if value := d.Values[name]; value != "" {
			row.Named = append(row.Named, namedValue{name, value})
		}
	}
	return row
}

type deliveryList struct {
	Dead bool
	Rows List[deliveryRow]
}

func (v *view) listDeliveries() error {
	from, err := v.place()
	if err != nil {
		return err
	}
	dead := v.value("state") == string(delivery.Dead)
	more := func(beyond string, limit int) ([]deliveryRow, string, error) {
		all, next, err := v.Deliveries.List(v.ctx(), v.tenant(), dead, beyond, limit)
		rows := make([]deliveryRow, len(all))
		for i, d := range all {
			rows[i] = v.deliveryRow(d)
		}
		return rows, next, err
	}
	if v.value("format") == "csv" {
		return csvFile(v, "deliveries", []string{"createdAt", "id", "kind", "endpoint", "user", "state", "attempts", "code", "nextAt", "endedAt"}, rowsOf(from, func(beyond string) ([]deliveryRow, string, error) { return more(beyond, 200) }),
			func(d deliveryRow) []string {
				return []string{csvTime(d.CreatedAt), d.ID, string(d.Kind), d.Endpoint, d.User, string(d.State), text(d.Attempts), d.Code, csvTime(d.At), csvTime(d.EndedAt)}
			})
	}
	rows, next, err := more(from, pageSize)
	if err != nil {
		return err
	}
	return v.show("deliveries", deliveryList{dead, list(v, rows, next)})
}

func (v *view) deliveryPage() error {
	d, err := v.Deliveries.Get(v.ctx(), v.tenant(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	return v.show("delivery", v.deliveryRow(d))
}

func (v *view) resendDelivery() error {
	return v.ofDelivery(func(id string) (delivery.Delivery, error) { return v.Deliveries.Resend(v.ctx(), v.core, v.actor(), id) }, words.Key("done.deliveryResent"))
}

func (v *view) dropDelivery() error {
	return v.ofDelivery(func(id string) (delivery.Delivery, error) { return v.Deliveries.Drop(v.ctx(), v.core, v.actor(), id) }, words.Key("done.deliveryDropped"))
}

func (v *view) ofDelivery(do func(id string) (delivery.Delivery, error), done string) error {
	was, err := v.Deliveries.Get(v.ctx(), v.tenant(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	d, err := do(was.ID)
	if err != nil {
		return v.refused(err, "delivery", v.deliveryRow(was))
	}
	return v.done(deliveries+"/"+url.PathEscape(cmp.Or(d.ID, was.ID)), done)
}
