package page

import (
	"net/http"

	"github.com/pinward/pinward/shared/tenant"
)

// Route is what tests see of a page.
type Route struct {
	Pattern         string
	Action          tenant.Action
	Sensitive, Open bool
	Asked, Own      bool
}

// Routes lists all pages.
func (c *Console) Routes() []Route {
	var all []Route
	for _, r := range c.routes() {
		all = append(all, Route{r.pattern, r.action, r.sensitive, r.open, r.asked, r.own})
	}
	return all
}

// Probe is the pages as a handler, but that each does nothing and answers 204 to those who
// may do it.
func (c *Console) Probe() http.Handler {
	mux := http.NewServeMux()
	for _, r := range c.routes() {
		r.do = func(v *view) error { v.w.WriteHeader(http.StatusNoContent); return nil }
		mux.Handle(r.pattern, c.serve(r))
	}
	return c.observe(mux)
}
