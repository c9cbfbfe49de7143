package rest

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/credential"
	"github.com/pinward/pinward/shared/tenant"
)

const (
	countFor      = 10 * time.Second // cards are counted at most so long for the report
	maxExportRows = 5000             // in one answer, which may have 6 MB
)

type sanityReportBody struct {
	Cards     int                  `json:"cards" doc:"Without a PIN expiry flag, of templates with server-managed PIN expiry."`
	AtLeast   bool                 `json:"atLeast,omitempty" doc:"There are more: there was no time to count all."`
	Templates []sanityTemplateBody `json:"templates" doc:"Those with server-managed PIN expiry, by name."`
}

type sanityTemplateBody struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	PINValidDays int    `json:"pinValidDays"`
	Cards        int    `json:"cards"`
	AtLeast      bool   `json:"atLeast,omitempty"`
}

type sanityCardBody struct {
	ID        string    `json:"id"`
	CardID    string    `json:"cardId"`
	Family    string    `json:"family"`
	Template  string    `json:"template"`
	Holder    string    `json:"holder,omitempty"`
	Label     string    `json:"label,omitempty"`
	Serial    string    `json:"serial,omitempty"`
	State     string    `json:"state"`
	CreatedAt time.Time `json:"createdAt"`
}

type planInput struct {
	Templates  []string `json:"templates" doc:"Ids of the credential templates whose cards are to get a flag: 1 to 50, each with server-managed PIN expiry."`
	Random     bool     `json:"random,omitempty" doc:"Any of the days around the validity, each as likely. Left out, the flag is the template's validity after today."`
	BeforeDays int      `json:"beforeDays,omitempty" doc:"Of random: so many days before, fewer than the validity. With a validity of 100 days, 3 before and 3 after, it is 97 to 103 days." example:"3"`
	AfterDays  int      `json:"afterDays,omitempty" doc:"Of random: so many days after." example:"3"`
	DailyCap   *int     `json:"dailyCap,omitempty" doc:"The most flags of this run on a day. What is over goes to the nearest days; a plan that does not fit is refused with the least cap that would do. Flags that other cards have already do not count."`
	Seed       string   `json:"seed,omitempty" doc:"Of a run that is to be repeated: the same cards get the same days after its day. Left out, a new one."`
}

type runTemplateBody struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	PINValidDays int    `json:"pinValidDays" doc:"When the plan was made; if it is another by then, the plan cannot be run."`
	Cards        int    `json:"cards"`
	From         string `json:"from" doc:"The first day that its cards can get."`
	To           string `json:"to" doc:"The last one."`
}

type histogramBody struct {
	Date  string `json:"date" format:"date"`
	Cards int    `json:"cards"`
}

type refusalBody struct {
	Code   string `json:"code"`
	Field  string `json:"field"`
	Reason string `json:"reason"`
}

type sanityRunBody struct {
	ID         string    `json:"id"`
	State      string    `json:"state" enum:"counting,refused,planned,expired,running,done,cancelled,undoing,undone"`
	By         actorBody `json:"by"`
	Automatic  bool      `json:"automatic,omitempty" doc:"It runs by itself, after an import."`
	Random     bool      `json:"random"`
	BeforeDays int       `json:"beforeDays,omitempty"`
	AfterDays  int       `json:"afterDays,omitempty"`
	DailyCap   *int      `json:"dailyCap,omitempty"`
	Seed       string    `json:"seed" doc:"What the days were drawn with."`
	Today      string    `json:"today" format:"date" doc:"The day from which days are counted, in timeZone."`
	TimeZone   string    `json:"timeZone" doc:"A flag is the beginning of its day there."`
	CreatedAt  time.Time `json:"createdAt"`
	ExpiresAt  time.Time `json:"expiresAt,omitzero" doc:"Until when a plan can be run."`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	EndedAt    time.Time `json:"endedAt,omitzero"`

	Cards            int               `json:"cards" doc:"Planned."`
	EstimatedSeconds int               `json:"estimatedSeconds,omitempty" doc:"About how long a plan takes to run."`
	Templates        []runTemplateBody `json:"templates,omitempty" doc:"Not in lists."`
	Histogram        []histogramBody   `json:"histogram,omitempty" doc:"How many cards get which day, as planned. Not in lists."`
	Refusal          *refusalBody      `json:"refusal,omitempty" doc:"Why a plan was refused."`

	Set       int `json:"set" doc:"Cards that have got a flag by now."`
	LeftAlone int `json:"leftAlone" doc:"At the end: planned cards that had got a flag otherwise, or another template, or were retired or deleted."`
	Later     int `json:"later" doc:"Cards that were there without a flag, but not when the plan was made. They are left alone."`
	Failed    int `json:"failed" doc:"Cards that could not be stored; the audit log names them."`
	Removed   int `json:"removed" doc:"By undo: cards that have no flag any more."`
	Stayed    int `json:"stayed" doc:"At undo: cards whose flag is another by now, or that are gone."`
}

func (a *API) sanityRunOut(r credential.SanityRun) sanityRunBody {
	b := sanityRunBody{
		ID: r.ID, State: string(r.StateAt(a.Now())), By: actorOut(r.By), Automatic: r.Auto, Random: r.Random, BeforeDays: r.Before, AfterDays: r.After, DailyCap: r.Cap,
		Seed: r.Seed, Today: r.Today, TimeZone: r.Zone, CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, EndedAt: r.EndedAt, Cards: r.Cards(),
		Set: r.Set, LeftAlone: r.LeftAlone, Later: r.Later, Failed: r.Failed, Removed: r.Removed, Stayed: r.Stayed,
	}
	switch r.State {
	case credential.RunRefused:
		b.Refusal = &refusalBody{r.Refusal.Code, r.Refusal.Field, r.Refusal.Reason}
	case credential.RunPlanned:
		b.ExpiresAt, b.EstimatedSeconds = r.PlannedAt.Add(credential.PlanLife), int(math.Ceil(r.Estimate().Seconds()))
	}
	return b
}

// sanityRun answers with a run and what it has planned.
func (a *API) sanityRun(ctx context.Context, r credential.SanityRun) (sanityRunBody, error) {
	days, templates, err := a.Credentials.Histogram(ctx, caller(ctx).Core.Tenant.ID, r)
	if err != nil {
		return sanityRunBody{}, err
	}
	b := a.sanityRunOut(r)
	for _, d := range days {
		b.Histogram = append(b.Histogram, histogramBody(d))
	}
	for _, t := range templates {
		b.Templates = append(b.Templates, runTemplateBody{t.ID, t.Name, t.Valid, t.Cards, t.From, t.To})
	}
	return b, nil
}

// RunPath names a run of the sanity check in a path.
type RunPath struct {
	Run string `path:"run" maxLength:"60"`
}

type createdRun struct {
	Location string `header:"Location"`
	Body     sanityRunBody
}

type exported struct {
	ContentType        string `header:"Content-Type"`
	ContentDisposition string `header:"Content-Disposition"`
	Link               string `header:"Link" doc:"The next rows, with rel=next (RFC 8288); absent at the end."`
	Body               []byte
}

func (a *API) sanityOperations(api huma.API) {
	const tag = "PIN expiry sanity check"
	const support = "\n\nOnly while supportFunctions are on in the settings."
	register(a, api, operation{
		id: "get-sanity-check", summary: "Count the cards without a PIN expiry flag", method: http.MethodGet, path: "/v1/sanity-check",
		action: tenant.RunSanityCheck, tag: tag, about: "By credential template with server-managed PIN expiry. Retired cards do not count." + support,
	}, func(ctx context.Context, _ *struct{}) (*Body[sanityReportBody], error) {
		core := caller(ctx).Core
		if err := credential.CheckSupport(core); err != nil {
			return nil, err
		}
		counts, err := a.Credentials.CountWithoutFlag(ctx, core.Tenant.ID, countFor)
		if err != nil {
			return nil, err
		}
		b := sanityReportBody{Templates: []sanityTemplateBody{}}
		for _, c := range counts {
			b.Cards += c.Cards
			b.AtLeast = b.AtLeast || c.AtLeast
			b.Templates = append(b.Templates, sanityTemplateBody{c.Template.ID, c.Template.Name, c.Template.PINValidDays, c.Cards, c.AtLeast})
		}
		return answer(b), nil
	})

	register(a, api, operation{
		id: "list-sanity-check-cards", summary: "List the cards without a PIN expiry flag", method: http.MethodGet, path: "/v1/sanity-check/cards",
		action: tenant.RunSanityCheck, tag: tag, about: "Of a template, or of all with server-managed PIN expiry." + support,
	}, func(ctx context.Context, in *struct {
		Paging
		Template string `query:"template" maxLength:"60" doc:"Id of a credential template."`
	}) (*Body[List[sanityCardBody]], error) {
		cards, next, err := a.withoutFlag(ctx, in.Paging, in.Template)
		if err != nil {
			return nil, err
		}
		return page(cards, next, func(c credential.Credential) sanityCardBody {
			return sanityCardBody{c.ID, c.CardID, c.Family, c.Template, c.Holder, c.Label, c.Serial, string(c.State), c.CreatedAt}
		}), nil
	})

	register(a, api, operation{
		id: "export-sanity-check-cards", summary: "Export the cards without a PIN expiry flag", method: http.MethodGet, path: "/v1/sanity-check/export",
		action: tenant.RunSanityCheck, tag: tag,
		about: "As CSV (RFC 4180, in UTF-8), or as text to paste with tabs between the columns. Cells that a spreadsheet would take for formulas begin with an apostrophe. " +
			"If there are more rows, the header `Link` has the address of the next ones, which come without a header." + support,
	}, func(ctx context.Context, in *struct {
		Format   string `query:"format" default:"csv" enum:"csv,text"`
		Template string `query:"template" maxLength:"60" doc:"Id of a credential template; left out, all with server-managed PIN expiry."`
		Limit    int    `query:"limit" default:"5000" minimum:"1" maximum:"5000" doc:"The most rows to return."`
		Cursor   string `query:"cursor" maxLength:"2000" doc:"Of the address in Link."`
	}) (*exported, error) {
		cards, next, err := a.withoutFlag(ctx, Paging{min(in.Limit, maxExportRows), in.Cursor}, in.Template)
		if err != nil {
			return nil, err
		}
		templates, err := a.Credentials.Templates(ctx, caller(ctx).Core.Tenant.ID)
		if err != nil {
			return nil, err
		}
		names := make(map[string]string, len(templates))
		for _, t := range templates {
			names[t.ID] = t.Name
		}
		out := &exported{"text/csv; charset=utf-8", `attachment; filename="cards-without-pin-expiry.csv"`, "", nil}
		write := credential.WriteCSV
		if in.Format == "text" {
			out.ContentType, out.ContentDisposition, write = "text/plain; charset=utf-8", "inline", credential.WriteText
		}
		var b bytes.Buffer
		if err := write(&b, cards, names, in.Cursor == ""); err != nil {
			return nil, err
		}
		if out.Body = b.Bytes(); next != "" {
			query := url.Values{"format": {in.Format}, "limit": {fmt.Sprint(in.Limit)}, "cursor": {base64.RawURLEncoding.EncodeToString([]byte(next))}}
			if in.Template != "" {
				query.Set("template", in.Template)
			}
			out.Link = "</v1/sanity-check/export?" + query.Encode() + `>; rel="next"`
		}
		return out, nil
	})

	register(a, api, operation{
		id: "plan-sanity-check-run", summary: "Plan to set PIN expiry flags", method: http.MethodPost, path: "/v1/sanity-check/runs",
		action: tenant.RunSanityCheck, status: http.StatusCreated, tag: tag,
		about: "Gives each card without a flag a day, and changes none of them: the answer shows how many cards get which day. " +
			"The plan can be run within an hour, once. If there are so many cards that they are still being counted, read it again until it is planned." + support,
	}, func(ctx context.Context, in *struct{ Body planInput }) (*createdRun, error) {
		c, b := caller(ctx), in.Body
		r, err := a.Credentials.Plan(ctx, c.Core, c.Actor, credential.PlanOptions{Templates: b.Templates, Seed: b.Seed,
			Spread: credential.Spread{Random: b.Random, Before: b.BeforeDays, After: b.AfterDays, Cap: b.DailyCap}})
		if err != nil {
			return nil, err
		}
		out, err := a.sanityRun(ctx, r)
		if err != nil {
			return nil, err
		}
		return &createdRun{"/v1/sanity-check/runs/" + r.ID, out}, nil
	})

	register(a, api, operation{
		id: "list-sanity-check-runs", summary: "List plans and runs", method: http.MethodGet, path: "/v1/sanity-check/runs",
		action: tenant.RunSanityCheck, tag: tag, about: "The newest first." + support,
	}, func(ctx context.Context, in *struct{ Paging }) (*Body[List[sanityRunBody]], error) {
		core := caller(ctx).Core
		if err := credential.CheckSupport(core); err != nil {
			return nil, err
		}
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		runs, next, err := a.Credentials.Runs(ctx, core.Tenant.ID, place, in.Limit)
		if err != nil {
			return nil, err
		}
		return page(runs, next, a.sanityRunOut), nil
	})

	one := func(id, summary, method, path, about string, do func(context.Context, tenant.Caller, string) (credential.SanityRun, error)) {
		register(a, api, operation{
			id: id, summary: summary, method: method, path: "/v1/sanity-check/runs/{run}" + path,
			action: tenant.RunSanityCheck, tag: tag, about: about + support,
		}, func(ctx context.Context, in *RunPath) (*Body[sanityRunBody], error) {
			r, err := do(ctx, caller(ctx), in.Run)
			if err != nil {
				return nil, err
			}
			b, err := a.sanityRun(ctx, r)
			if err != nil {
				return nil, err
			}
			return answer(b), nil
		})
	}
	one("get-sanity-check-run", "Get a plan or a run", http.MethodGet, "", "How far it is, and what it has planned.",
		func(ctx context.Context, c tenant.Caller, id string) (credential.SanityRun, error) {
			if err := credential.CheckSupport(c.Core); err != nil {
				return credential.SanityRun{}, err
			}
			return a.Credentials.Run(ctx, c.Core.Tenant.ID, id)
		})
	one("start-sanity-check-run", "Run a plan", http.MethodPost, "/start",
		"Sets the flags as planned, of cards that have none still. It goes on in the background; one run at a time.",
		func(ctx context.Context, c tenant.Caller, id string) (credential.SanityRun, error) {
			return a.Credentials.Start(ctx, c.Core, c.Actor, id)
		})
	one("cancel-sanity-check-run", "Cancel a plan or a run", http.MethodPost, "/cancel",
		"Flags that are set stay; undo takes them away. A run that is at work ends within moments.",
		func(ctx context.Context, c tenant.Caller, id string) (credential.SanityRun, error) {
			return a.Credentials.Cancel(ctx, c.Core, c.Actor, id)
		})
	one("undo-sanity-check-run", "Undo a run", http.MethodPost, "/undo",
		"Takes the flags away that the run has set, but where a card's flag was set anew since. It goes on in the background. A run can be undone for a year; twice is harmless.",
		func(ctx context.Context, c tenant.Caller, id string) (credential.SanityRun, error) {
			return a.Credentials.Undo(ctx, c.Core, c.Actor, id)
		})
}

// withoutFlag returns a page of the cards without a flag.
func (a *API) withoutFlag(ctx context.Context, p Paging, template string) ([]credential.Credential, string, error) {
	core := caller(ctx).Core
	if err := credential.CheckSupport(core); err != nil {
		return nil, "", err
	}
	place, err := p.place()
	if err != nil {
		return nil, "", err
	}
	return a.Credentials.Find(ctx, core.Tenant.ID, credential.Filter{WithoutFlag: true, Template: template}, place, p.Limit)
}
