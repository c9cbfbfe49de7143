package gateway

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
)

// recorder is the http.ResponseWriter behind Handler. It keeps to the rules of
// net/http's: status 200 unless said, header fixed when the status is written,
// no body with 204 and 304, Content-Type sniffed. Informational answers are
// not sent: a function answers once.
type recorder struct {
	header http.Header
	sent   http.Header // header when the status was written; nil before
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (w *recorder) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("invalid WriteHeader code %d", status))
	}
	if w.sent == nil && status >= 200 {
		w.status, w.sent = status, w.header.Clone()
	}
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.status == http.StatusNoContent || w.status == http.StatusNotModified {
		return 0, http.ErrBodyNotAllowed
	}
	return w.body.Write(p)
}

// response is what was recorded, in payload format 2.0: cookies apart, since
// Set-Cookie alone cannot be joined by commas, and no multiValueHeaders, which
// API Gateway ignores in this format. A body that is UTF-8 goes as it is and
// any other in base64, whatever its type: both arrive byte by byte.
func (w *recorder) response(method string) events.APIGatewayV2HTTPResponse {
	w.WriteHeader(http.StatusOK)
	body := w.body.Bytes()
	if _, typed := w.sent["Content-Type"]; !typed && len(body) > 0 && w.sent.Get("Content-Encoding") == "" {
		w.sent.Set("Content-Type", http.DetectContentType(body))
	}
	if method == http.MethodHead {
		if w.sent.Get("Content-Length") == "" && len(body) > 0 {
			w.sent.Set("Content-Length", strconv.Itoa(len(body)))
		}
		body = nil
	}
	res := events.APIGatewayV2HTTPResponse{
		StatusCode: w.status,
		Headers:    map[string]string{},
		Cookies:    w.sent.Values("Set-Cookie"),
	}
	w.sent.Del("Set-Cookie")
	for name, values := range w.sent {
		if len(values) > 0 {
			res.Headers[name] = strings.Join(values, ", ")
		}
	}
	if utf8.Valid(body) {
		res.Body = string(body)
	} else {
		res.Body, res.IsBase64Encoded = base64.StdEncoding.EncodeToString(body), true
	}
	return res
}
