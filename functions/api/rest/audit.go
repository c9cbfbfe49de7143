package rest

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/oklog/ulid/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/tenant"
)

type auditBody struct {
	ID        string            `json:"id"`
	At        time.Time         `json:"at"`
	By        actorBody         `json:"by"`
	Action    string            `json:"action"`
	Subject   string            `json:"subject,omitempty"`
	Outcome   string            `json:"outcome" enum:"done,refused,failed"`
	Reason    string            `json:"reason,omitempty"`
	RequestID string            `json:"requestId,omitempty"`
	Details   map[string]string `json:"details,omitempty"`
}

func auditOut(r audit.Record) auditBody {
	return auditBody{r.ID, r.At, actorOut(r.Actor), r.Action, r.Subject, string(r.Outcome), r.Reason, r.RequestID, r.Details}
}

func (a *API) auditOperations(api huma.API) {
	register(a, api, operation{
		id: "list-audit", summary: "Read the audit log", method: http.MethodGet, path: "/v1/audit",
		action: tenant.ReadAudit, tag: "Audit",
		about: "Newest first: the records of one day, or those about one subject.",
	}, func(ctx context.Context, in *struct {
		Paging
		Day     string `query:"day" format:"date" doc:"A day in UTC; left out, today." example:"2030-01-31"`
		Subject string `query:"subject" maxLength:"100" doc:"Such as user/<id>. Goes back as far as there are records." example:"user/01J8ZC9Q6Y0V4T5W3X2R1N0M9K"`
	}) (*Body[List[auditBody]], error) {
		t := caller(ctx).Core.Tenant.ID
		place, err := in.place()
		if err != nil {
			return nil, err
		}
		var records []audit.Record
		var more bool
		if in.Subject != "" {
			records, more, err = audit.Of(ctx, a.Table, t, in.Subject, place, in.Limit)
		} else {
			day := a.Now()
			if id, err := ulid.ParseStrict(place); err == nil {
				day = ulid.Time(id.Time()) // the day that the page before was of
			}
			if in.Day != "" {
				if day, err = time.Parse(time.DateOnly, in.Day); err != nil {
					return nil, wrongQuery("day", "is not a date such as 2030-01-31")
				}
			}
			records, more, err = audit.Day(ctx, a.Table, t, day, place, in.Limit)
		}
		if err != nil {
			return nil, err
		}
		next := ""
		if more {
			next = records[len(records)-1].ID
		}
		return page(records, next, auditOut), nil
	})
}
