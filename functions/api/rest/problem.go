package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/audit"
	"github.com/pinward/pinward/shared/problem"
)

// Problem is an error as RFC 9457 has it. It never repeats a value that was
// sent: it may have been a PIN.
type Problem struct {
	Type      string   `json:"type" doc:"What kind of problem it is: a stable URN."`
	Title     string   `json:"title"`
	Status    int      `json:"status"`
	Detail    string   `json:"detail,omitempty" doc:"What went wrong, for people."`
	RequestID string   `json:"requestId,omitempty" doc:"Quote it when asking for help."`
	Errors    []Detail `json:"errors,omitempty" doc:"Everything that is wrong with the input."`

	retryIn time.Duration
}

// Detail is one thing that is wrong with the input.
type Detail struct {
	Code     string `json:"code" doc:"Stable, for programs."`
	Location string `json:"location" doc:"Where, such as body.pin."`
	Message  string `json:"message" doc:"What is wrong and what would be right."`
}

// Error implements error.
func (p *Problem) Error() string { return p.Title + ": " + p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders implements huma.HeadersError.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="pinward"`)
	}
	if p.retryIn > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.retryIn+time.Second-1)/time.Second)))
	}
	return h
}

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

var errPrecondition = errors.New("it has been changed since it was read; read it again")

// newProblem makes the problems of the framework: requests of the wrong shape.
func newProblem(ctx huma.Context, status int, message string, errs ...error) huma.StatusError {
	p := &Problem{Type: kinds[status], Title: http.StatusText(status), Status: status, Detail: message}
	if status == http.StatusUnsupportedMediaType {
		p.Detail, errs = "send the body as application/json", nil
	}
	if p.Type == "" {
		p.Type = "about:blank"
	}
	if ctx != nil {
		p.RequestID = audit.RequestID(ctx.Context())
	}
	for _, err := range errs {
		var own *Problem
		var detail huma.ErrorDetailer
		switch {
		case err == nil:
		case errors.As(err, &own):
			return own
		case errors.As(err, &detail):
			d := detail.ErrorDetail()
			p.Errors = append(p.Errors, Detail{"shape", d.Location, d.Message})
		default:
			p.Errors = append(p.Errors, Detail{"shape", "body", "cannot be read as what the description says"})
		}
	}
	return p
}

// kinds are the problem types by status.
var kinds = map[int]string{
	http.StatusBadRequest:            "urn:pinward:problem:bad-request",
	http.StatusUnauthorized:          "urn:pinward:problem:unauthenticated",
	http.StatusForbidden:             "urn:pinward:problem:forbidden",
	http.StatusNotFound:              "urn:pinward:problem:not-found",
	http.StatusMethodNotAllowed:      "urn:pinward:problem:method",
	http.StatusConflict:              "urn:pinward:problem:conflict",
	http.StatusPreconditionFailed:    "urn:pinward:problem:changed-meanwhile",
	http.StatusRequestEntityTooLarge: "urn:pinward:problem:too-large",
	http.StatusUnsupportedMediaType:  "urn:pinward:problem:media-type",
	http.StatusUnprocessableEntity:   "urn:pinward:problem:invalid",
	http.StatusTooManyRequests:       "urn:pinward:problem:too-often",
	http.StatusInternalServerError:   "urn:pinward:problem:internal",
	http.StatusServiceUnavailable:    "urn:pinward:problem:unavailable",
}

// problemOf maps errors to problems; there is no other place that does. What it
// does not know is an internal error: its cause goes to the log, not out.
func problemOf(ctx context.Context, err error) *Problem {
	var own *Problem
	if errors.As(err, &own) {
		own.RequestID = audit.RequestID(ctx)
		return own
	}
	p := &Problem{RequestID: audit.RequestID(ctx)}
	var invalid *problem.InvalidError
	var limit *problem.LimitError
	switch {
	case errors.As(err, &invalid):
		p.Status, p.Detail = http.StatusUnprocessableEntity, "the request was refused and nothing was changed; errors tells why"
		for _, v := range invalid.Violations {
			p.Errors = append(p.Errors, Detail{v.Code, "body." + v.Field, v.Reason})
			seen := observed(ctx)
			seen.refused = append(seen.refused, v.Field+":"+v.Code)
		}
	case errors.As(err, &limit):
		p.Status, p.Detail, p.retryIn = http.StatusTooManyRequests, limit.Error(), limit.Until.Sub(observed(ctx).began)
		p.Errors = []Detail{{limit.Code, "request", limit.Reason}}
	case errors.Is(err, errPrecondition):
		p.Status, p.Detail = http.StatusPreconditionFailed, err.Error()
	case errors.Is(err, problem.ErrUnauthenticated):
		p.Status, p.Detail = http.StatusUnauthorized, outermost(err)
	case errors.Is(err, problem.ErrForbidden):
		p.Status, p.Detail = http.StatusForbidden, outermost(err)
	case errors.Is(err, problem.ErrNotFound):
		p.Status, p.Detail = http.StatusNotFound, "there is no such thing here"
	case errors.Is(err, problem.ErrState):
		p.Status, p.Detail = http.StatusConflict, outermost(err)
	case errors.Is(err, problem.ErrConflict):
		p.Status, p.Detail = http.StatusConflict, "it exists already, or was changed at the same time; read it again and repeat"
	case errors.Is(err, problem.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		p.Status, p.Detail = http.StatusServiceUnavailable, "a part that is needed does not answer; try again soon"
		observed(ctx).cause = err
	default:
		p.Status, p.Detail = http.StatusInternalServerError, "something went wrong on our side; it has been logged under this request id"
		observed(ctx).cause = err
	}
	p.Type, p.Title = kinds[p.Status], http.StatusText(p.Status)
	return p
}

// outermost returns the message of an error that was made for people, without
// the sentinel's words in front.
func outermost(err error) string {
	text := err.Error()
	for _, sentinel := range []error{problem.ErrUnauthenticated, problem.ErrForbidden, problem.ErrState} {
		if _, after, ok := strings.Cut(text, sentinel.Error()+": "); ok {
			return after
		}
	}
	return text
}

// writeProblem answers with a problem where no operation is running.
func writeProblem(w http.ResponseWriter, ctx context.Context, err error) {
	p := problemOf(ctx, err)
	if p.RequestID == "" {
		p.RequestID = audit.RequestID(ctx)
	}
	maps.Copy(w.Header(), p.GetHeaders())
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		observed(ctx).cause = fmt.Errorf("write problem: %w", err)
	}
}
