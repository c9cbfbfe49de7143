package gateway

import "net/http"

// StatusWriter is a ResponseWriter that remembers the status of its answer, for the log.
// Status is http.StatusOK from the first.
type StatusWriter struct {
	http.ResponseWriter
	Status int
}

// WriteHeader implements http.ResponseWriter.
func (w *StatusWriter) WriteHeader(status int) {
	w.Status = status
	w.ResponseWriter.WriteHeader(status)
}
