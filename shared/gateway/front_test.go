package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
	"github.com/google/go-cmp/cmp"

	"github.com/pinward/pinward/shared/gateway"
)

var noon = time.Date(2026, 7, 10, 12, 0, 0, 0, time.UTC)

func front(f gateway.Function) http.Handler {
	return gateway.Front(f, func() time.Time { return noon }, func() string { return "ATfSmjLgPHcESJw=" })
}

// servers serves h by net/http alone, and behind both sides of the gateway.
func servers(t *testing.T, h http.Handler) (direct, through *httptest.Server) {
	t.Helper()
	direct, through = httptest.NewServer(h), httptest.NewServer(front(gateway.Handler(h)))
	t.Cleanup(direct.Close)
	t.Cleanup(through.Close)
	return direct, through
}

// send writes a request that no client library would.
func send(t *testing.T, s *httptest.Server, request string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// Each request is seen behind the gateway as net/http's own server shows it.
func TestRequests(t *testing.T) {
	var got seen
	direct, through := servers(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = look(r, "X-Twice", "Accept", "Content-Type", "User-Agent")
		got.Remote = r.RemoteAddr[:strings.LastIndex(r.RemoteAddr, ":")]
		got.Length = max(got.Length, int64(len(got.Body))) // -1 with chunks; API Gateway counts
	}))
	post := func(contentType, body string) string {
		return fmt.Sprintf("POST / HTTP/1.1\r\nHost: h\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", contentType, len(body), body)
	}
	tests := map[string]string{
		"plain":             "GET /v1/users HTTP/1.1\r\nHost: pins.example.com:8443\r\nUser-Agent: kiosk/1\r\n\r\n",
		"double slash":      "GET //a//b/ HTTP/1.1\r\nHost: h\r\n\r\n",
		"dots":              "GET /a/../b/./c HTTP/1.1\r\nHost: h\r\n\r\n",
		"space":             "GET /a%20b HTTP/1.1\r\nHost: h\r\n\r\n",
		"unicode":           "GET /jos%C3%A9/%E4%B8%96 HTTP/1.1\r\nHost: h\r\n\r\n",
		"reserved":          "GET /a+b;c=d,e:f@g!$&'()*~ HTTP/1.1\r\nHost: h\r\n\r\n",
		"query":             "GET /?a=b+c&a=%2B%2f%25&d&=e&f=%zz&g=1;2&%C3%BC=%26?/# HTTP/1.1\r\nHost: h\r\n\r\n",
		"method":            "PURGE / HTTP/1.1\r\nHost: h\r\n\r\n",
		"HTTP/1.0":          "GET / HTTP/1.0\r\nHost: h\r\n\r\n",
		"repeated headers":  "GET / HTTP/1.1\r\nHost: h\r\nX-Twice: a, b\r\nx-twice: c\r\nAccept: text/html;q=0.9\r\n\r\n",
		"repeated cookies":  "GET / HTTP/1.1\r\nHost: h\r\nCookie: a=1; b=\"x\"\r\nCookie: c=3;d=\r\n\r\n",
		"empty body":        post("application/json", ""),
		"json":              post("application/json; charset=utf-8", `{"pin":"é\u0000<&>"}`),
		"form":              post("application/x-www-form-urlencoded", "a=b+c&d=%20"),
		"binary":            post("application/octet-stream", "\x00\xff\xfe\r\n"),
		"binary named text": post("text/plain", "caf\xe9"),
		"no type":           "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
		"chunks":            "PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
		"1 MB":              post("application/octet-stream", strings.Repeat("\x00\x01\xfe\xff", 1<<18)),
	}
	for name, request := range tests {
		t.Run(name, func(t *testing.T) {
			send(t, direct, request)
			want := got
			got = seen{}
			if res := send(t, through, request); res.StatusCode != 200 {
				t.Fatalf("status %d", res.StatusCode)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("request seen (-direct +through the gateway):\n%.2000s", diff)
			}
		})
	}
}

// The paths that an HTTP API does not leave alone (see receivedPath).
func TestChangedPaths(t *testing.T) {
	var got string
	_, through := servers(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.URL.EscapedPath() }))
	tests := []struct {
		sent   string
		status int
		want   string
	}{
		{"/a%2Fb", 200, "/a/b"},
		{"/a%252Fb", 200, "/a/b"},
		{"/a%25252Fb", 200, "/a%2Fb"},
		{"/a%3Fb", 200, "/a"},
		{"/a%253Fb", 200, "/a%3Fb"},
		{"/a%23b", 200, "/a%23b"},
		{"/50%25off", 400, ""},
		{"/50%2525off", 200, "/50%25off"},
	}
	for _, tt := range tests {
		got = ""
		res := send(t, through, "GET "+tt.sent+" HTTP/1.1\r\nHost: h\r\n\r\n")
		if res.StatusCode != tt.status || got != tt.want {
			t.Errorf("%s: got %d %q, want %d %q", tt.sent, res.StatusCode, got, tt.status, tt.want)
		}
	}
}

// Each answer arrives through the gateway as net/http's own server sends it.
func TestResponses(t *testing.T) {
	write := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
	}
	tests := map[string]http.HandlerFunc{
		"nothing":  func(http.ResponseWriter, *http.Request) {},
		"text":     write("hello"),
		"html":     write("<!doctype html><p>hello"),
		"png":      write("\x89PNG\r\n\x1a\n\x00\xff"),
		"1 MB":     write(strings.Repeat("\xff\x00ab", 1<<18)),
		"utf-8":    write("PIN läuft ab \x00\u2028<&>"),
		"in parts": func(w http.ResponseWriter, r *http.Request) { write("<html>")(w, r); write("rest")(w, r) },
		"json": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			write(`{}`)(w, r)
		},
		"gzip": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			write("\x1f\x8b\x08\x00")(w, r)
		},
		"cookies": func(w http.ResponseWriter, _ *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "a", Value: "1", Expires: noon, HttpOnly: true})
			http.SetCookie(w, &http.Cookie{Name: "b", Value: "2", Expires: noon.Add(time.Hour)})
		},
		"repeated header": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Add("Vary", "Accept")
			w.Header().Add("Vary", "Accept-Language")
		},
		"late header": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusAccepted)
			w.Header().Set("X-Late", "1")
			w.WriteHeader(http.StatusTeapot)
		},
		"early hints": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			write("hello")(w, r)
		},
		"204": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("a body with 204: error %v", err)
			}
		},
		"304": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", `"7"`)
			w.WriteHeader(http.StatusNotModified)
		},
		"error": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusNotFound) },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/login?to=%2F", http.StatusSeeOther)
		},
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	type answer struct {
		Status int
		Header http.Header
		Body   string
	}
	ask := func(t *testing.T, method, url string) answer {
		t.Helper()
		req, err := http.NewRequest(method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		header := maps.Clone(res.Header)
		for name, values := range header {
			if name != "Set-Cookie" {
				header[name] = []string{strings.Join(values, ", ")}
			}
		}
		header.Del("Date")
		header.Del("Apigw-Requestid")
		return answer{res.StatusCode, header, string(body)}
	}
	for name, h := range tests {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			t.Run(method+" "+name, func(t *testing.T) {
				direct, through := servers(t, h)
				want, got := ask(t, method, direct.URL), ask(t, method, through.URL)
				if want.Header.Get("Content-Length") == "" { // it came in chunks, or net/http did not count
					got.Header.Del("Content-Length")
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("answer (-direct +through the gateway):\n%.2000s", diff)
				}
			})
		}
	}
}

func TestEvent(t *testing.T) {
	var got events.APIGatewayV2HTTPRequest
	h := front(func(_ context.Context, e events.APIGatewayV2HTTPRequest) (events.APIGatewayV2HTTPResponse, error) {
		got = e
		return events.APIGatewayV2HTTPResponse{StatusCode: 200}, nil
	})
	r := httptest.NewRequest("POST", "/v1/pins/verify?a=1&a=2&b=x+y", strings.NewReader(`{"pin":"8306"}`))
	r.Host, r.RemoteAddr = "pins.example.com:8080", "[2001:db8::17]:4711"
	r.Header = http.Header{
		"Authorization": {"Bearer pw_demo_EXAMPLE"}, "Content-Type": {"application/json"}, "User-Agent": {"curl/8.7.1"},
		"Cookie": {"a=1; b=2", "c=3"}, "X-Example": {"first", "second"}, "X-Forwarded-For": {"198.51.100.4"}, "Connection": {"close"},
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if got := w.Header().Get("Apigw-Requestid"); got != "ATfSmjLgPHcESJw=" {
		t.Errorf("Apigw-Requestid %q", got)
	}
	want := events.APIGatewayV2HTTPRequest{
		Version: "2.0", RouteKey: "$default", RawPath: "/v1/pins/verify", RawQueryString: "a=1&a=2&b=x+y",
		Cookies: []string{"a=1", "b=2", "c=3"},
		Headers: map[string]string{
			"authorization": "Bearer pw_demo_EXAMPLE", "content-type": "application/json", "content-length": "14", "user-agent": "curl/8.7.1",
			"host": "pins.example.com:8080", "x-example": "first,second",
			"x-forwarded-for": "198.51.100.4, 2001:db8::17", "x-forwarded-port": "8080", "x-forwarded-proto": "http",
		},
		QueryStringParameters: map[string]string{"a": "1,2", "b": "x y"},
		RequestContext: events.APIGatewayV2HTTPRequestContext{
			RouteKey: "$default", AccountID: "123456789012", Stage: "$default", RequestID: "ATfSmjLgPHcESJw=", APIID: "local",
			DomainName: "pins.example.com", DomainPrefix: "pins", Time: "10/Jul/2026:12:00:00 +0000", TimeEpoch: noon.UnixMilli(),
			HTTP: events.APIGatewayV2HTTPRequestContextHTTPDescription{
				Method: "POST", Path: "/v1/pins/verify", Protocol: "HTTP/1.1", SourceIP: "2001:db8::17", UserAgent: "curl/8.7.1"},
		},
		Body: `{"pin":"8306"}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

func TestLimits(t *testing.T) {
	type response = events.APIGatewayV2HTTPResponse
	reply := func(res response, err error) gateway.Function {
		return func(context.Context, events.APIGatewayV2HTTPRequest) (response, error) { return res, err }
	}
	ok := reply(response{StatusCode: 200, Body: "fine"}, nil)
	tests := map[string]struct {
		f      gateway.Function
		body   int
		status int
		want   string
	}{
		"fine":                     {ok, 1 << 20, 200, "fine"},
		"body over 10 MB":          {ok, 10<<20 + 1, 413, `{"message":"Request Entity Too Large"}`},
		"event over 6 MB":          {ok, 5 << 20, 413, `{"message":"Request Entity Too Large"}`}, // in base64
		"error":                    {reply(response{}, errors.New("PIN table lost")), 0, 500, `{"message":"Internal Server Error"}`},
		"response over 6 MB":       {reply(response{StatusCode: 200, Body: strings.Repeat("x", 6<<20)}, nil), 0, 500, `{"message":"Internal Server Error"}`},
		"response without status":  {reply(response{Body: "x"}, nil), 0, 500, `{"message":"Internal Server Error"}`},
		"response with bad base64": {reply(response{StatusCode: 200, Body: "x", IsBase64Encoded: true}, nil), 0, 500, `{"message":"Internal Server Error"}`},
		"multiValueHeaders ignored": {reply(response{StatusCode: 200, MultiValueHeaders: map[string][]string{"X-Lost": {"a"}}}, nil),
			0, 200, ""},
		"panic": {func(context.Context, events.APIGatewayV2HTTPRequest) (response, error) { panic("no") }, 0, 500, `{"message":"Internal Server Error"}`},
		"late": {func(context.Context, events.APIGatewayV2HTTPRequest) (response, error) {
			time.Sleep(31 * time.Second)
			return response{StatusCode: 200}, nil
		}, 0, 503, `{"message":"Service Unavailable"}`},
		"just in time": {func(ctx context.Context, e events.APIGatewayV2HTTPRequest) (response, error) {
			time.Sleep(29 * time.Second)
			return response{StatusCode: 200, Body: "fine"}, ctx.Err()
		}, 0, 200, "fine"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := httptest.NewRecorder()
				gone, cancel := context.WithCancel(t.Context())
				cancel() // the client has left
				front(tt.f).ServeHTTP(w, httptest.NewRequestWithContext(gone, "POST", "/", bytes.NewReader(make([]byte, tt.body))))
				time.Sleep(time.Minute) // the function runs to its end
				if w.Code != tt.status || w.Body.String() != tt.want || w.Header().Get("X-Lost") != "" {
					t.Errorf("got %d %s, want %d %s", w.Code, w.Body, tt.status, tt.want)
				}
			})
		})
	}
}

// Whatever net/http accepts as a request comes through unchanged, but for what
// the gateway does to paths; the answer comes back unchanged.
func FuzzRoundTrip(f *testing.F) {
	f.Add("GET", "/v1/users?a=b+c&a=%2F", "first", "second", "a=1; b=2", []byte(nil))
	f.Add("POST", "//a/../%20%C3%A9?", "x, y", "", "a=\"b\"", []byte("{\"pin\":\"8306\"}"))
	f.Add("PUT", "/a%252Fb%3Fc", "é", "\t", ";;=;", []byte{0, 255, 254})
	f.Fuzz(func(t *testing.T, method, target, header1, header2, cookie string, body []byte) {
		raw := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: h\r\nX-Twice: %s\r\nX-Twice: %s\r\nCookie: %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s",
			method, target, header1, header2, cookie, len(body), body)
		if !utf8.ValidString(raw[:len(raw)-len(body)]) {
			t.Skip("JSON holds UTF-8 only")
		}
		parse := func() *http.Request {
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
			if err != nil || !strings.HasPrefix(r.URL.Path, "/") || len(r.Header) != 4 {
				t.Skip("not the request that was meant")
			}
			r.RemoteAddr = "203.0.113.17:0"
			return r
		}
		want := look(parse(), "X-Twice")
		var got *seen
		w := httptest.NewRecorder()
		front(gateway.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s := look(r, "X-Twice")
			got = &s
			w.Header().Set("X-Twice", s.Header["X-Twice"])
			_, _ = w.Write(body)
		}))).ServeHTTP(w, parse())
		if got == nil {
			if w.Code != 400 || !strings.Contains(target, "%25") {
				t.Fatalf("%q did not arrive: %d", raw, w.Code)
			}
			return
		}
		if strings.Contains(want.Escaped, "%") {
			want.Path, want.Escaped = got.Path, got.Escaped
			if p, err := url.PathUnescape(got.Escaped); err != nil || p != got.Path {
				t.Errorf("escaped path %q of %q", got.Escaped, got.Path)
			}
		}
		want.URI, _, _ = strings.Cut(got.URI, "?")
		if want.URI != got.Escaped {
			t.Errorf("request URI %q, escaped path %q", got.URI, got.Escaped)
		}
		want.URI = got.URI
		if diff := cmp.Diff(want, *got); diff != "" {
			t.Errorf("request seen (-sent +got):\n%s", diff)
		}
		if method != http.MethodHead && !bytes.Equal(w.Body.Bytes(), body) || w.Header().Get("X-Twice") != got.Header["X-Twice"] {
			t.Errorf("answer %q, want %q", w.Body, body)
		}
	})
}

// An encoded path, as a function URL hands it over, is seen as net/http's own
// server shows it; any other is still a path.
func FuzzPath(f *testing.F) {
	for _, p := range []string{"/", "/a%2Fb", "/a%252Fb", "//a/..", "/50%", "/%zz", "/josé 50%/?#", "/\x00\xff", "", "a", "/%C3%A9+;,[]"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		var got *url.URL
		event := events.APIGatewayV2HTTPRequest{RawPath: raw}
		event.RequestContext.HTTP.Method = "GET"
		data, _ := json.Marshal(event)
		if err := json.Unmarshal(data, &event); err != nil {
			t.Fatal(err)
		}
		_, _ = gateway.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.URL }))(t.Context(), event)
		if strings.HasPrefix(raw, "/") != (got != nil) {
			t.Fatalf("path %q: got %v", raw, got)
		}
		if got == nil {
			return
		}
		if p, err := url.PathUnescape(got.EscapedPath()); err != nil || p != got.Path || got.RawQuery != "" {
			t.Errorf("%q became %#v", raw, got)
		}
		want, err := url.ParseRequestURI(raw)
		if err == nil && want.EscapedPath() == raw && (got.Path != want.Path || got.EscapedPath() != raw) {
			t.Errorf("%q: got %q %q, net/http has %q", raw, got.Path, got.EscapedPath(), want.Path)
		}
	})
}
