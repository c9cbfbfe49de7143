package testserver

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/pinward/pinward/shared/gateway"
)

type management struct {
	sockets    gateway.Connections
	id, secret string
}

// Management speaks API Gateway's @connections API for the stage live of a WebSocket API
// in eu-central-1, as far as to post to sockets and to close them. It knows one key.
func Management(sockets gateway.Connections, accessKeyID, secretAccessKey string) http.Handler {
	return &management{sockets, accessKeyID, secretAccessKey}
}

// ServeHTTP implements http.Handler.
func (m *management) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	fail := func(status int, kind, message string) {
		w.Header().Set("X-Amzn-Errortype", kind)
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
	}
	if problem := m.authenticate(r, body); problem != "" {
		fail(http.StatusForbidden, "InvalidSignatureException", problem)
		return
	}
	escaped, ok := strings.CutPrefix(r.URL.EscapedPath(), "/live/@connections/")
	id, err := url.PathUnescape(escaped)
	if !ok || err != nil || strings.Contains(escaped, "/") {
		fail(http.StatusForbidden, "MissingAuthenticationTokenException", "Missing Authentication Token") // for any unknown path
		return
	}
	status := http.StatusOK
	switch r.Method {
	case http.MethodPost:
		if len(body) > 128<<10 {
			fail(http.StatusRequestEntityTooLarge, "PayloadTooLargeException", "Payload too large")
			return
		}
		err = m.sockets.Post(context.WithoutCancel(r.Context()), id, body)
	case http.MethodDelete:
		status = http.StatusNoContent
		err = m.sockets.Close(r.Context(), id)
	default:
		fail(http.StatusMethodNotAllowed, "", "")
		return
	}
	switch {
	case errors.Is(err, gateway.ErrGone):
		fail(http.StatusGone, "GoneException", "")
	case err != nil:
		fail(http.StatusInternalServerError, "InternalServerErrorException", err.Error())
	default:
		w.WriteHeader(status)
	}
}

// authenticate verifies a request's signature, and says what is wrong with it.
func (m *management) authenticate(r *http.Request, body []byte) (problem string) {
	credential, signed, signature := signatureParts(r)
	if !strings.Contains(";"+signed+";", ";host;") {
		return "Missing Authentication Token"
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || time.Since(at).Abs() > 5*time.Minute {
		return "Signature expired"
	}
	if want := m.id + "/" + at.Format("20060102") + "/eu-central-1/execute-api/aws4_request"; credential != want {
		return "Credential should be " + want
	}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !strings.Contains(";"+signed+";", ";"+name+";") {
			return "Header " + name + " is not signed"
		}
	}
	canonical := canonicalRequest(r, signed, body)
	if want := sign(m.secret, credential, r.Header.Get("X-Amz-Date"), canonical); !hmac.Equal([]byte(want), []byte(signature)) {
		return "The request signature we calculated does not match the signature you provided.\n\n" +
			"The Canonical String for this request should have been\n'" + canonical + "'"
	}
	return ""
}

// What follows is Signature Version 4 as the IAM User Guide describes it ("Create a
// signed AWS API request"), and not what the SDK makes of it.

// signatureParts reads "AWS4-HMAC-SHA256 Credential=<id>/<scope>, SignedHeaders=<names>,
// Signature=<hex>". Without that there are none.
func signatureParts(r *http.Request) (credential, signedHeaders, signature string) {
	rest, _ := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	parts := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		parts[name] = value
	}
	return parts["Credential"], parts["SignedHeaders"], parts["Signature"]
}

// canonicalRequest is what is signed of a request: the path as it was sent, escaped once
// more; the query as it was sent, which must be in order; the named headers; the hash of
// the body.
func canonicalRequest(r *http.Request, signedHeaders string, body []byte) string {
	path, query, _ := strings.Cut(r.RequestURI, "?")
	lines := []string{r.Method, canonicalPath(path), query}
	for name := range strings.SplitSeq(signedHeaders, ";") {
		value := strings.Join(r.Header.Values(name), ",")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = fmt.Sprint(r.ContentLength)
		}
		lines = append(lines, name+":"+strings.TrimSpace(value))
	}
	hash := sha256.Sum256(body)
	return strings.Join(append(lines, "", signedHeaders, hex.EncodeToString(hash[:])), "\n")
}

func canonicalPath(sent string) string {
	var b strings.Builder
	for i := range len(sent) {
		c := sent[i]
		if strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// sign signs a canonical request with a key for a credential: <id>/<day>/<region>/
// <service>/aws4_request.
func sign(secret, credential, at, canonicalRequest string) string {
	mac := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	_, scope, _ := strings.Cut(credential, "/")
	key := []byte("AWS4" + secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	hash := sha256.Sum256([]byte(canonicalRequest))
	return hex.EncodeToString(mac(key, "AWS4-HMAC-SHA256\n"+at+"\n"+scope+"\n"+hex.EncodeToString(hash[:])))
}
