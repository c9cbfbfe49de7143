package rest_test

import (
	"maps"
	"net/http"
	"strings"
	"testing"
)

var signInProvider = object{"issuer": "https://login.example.org", "clientId": "pinward", "public": true, "on": false}

func TestSignInProvider(t *testing.T) {
	f := newFixture(t)
	const path = "/v1/sign-in-provider"
	f.call("GET", path, f.key, nil).want(http.StatusNotFound)
	with := func(more object) object { o := maps.Clone(signInProvider); maps.Copy(o, more); return o }
	secret := "a-client-secret-4711"
	a := f.call("PUT", path, f.key, with(object{"public": false, "clientSecret": secret, "roleClaim": "groups", "roles": object{"admin": []string{"it"}}, "create": true, "on": true})).want(http.StatusOK)
	if strings.Contains(string(a.body), secret) || !strings.Contains(string(a.body), `"clientSecretSet":true`) || !strings.Contains(string(a.body), "/console/sign-in/oidc") {
		t.Errorf("answer %s", a.body)
	}
	// The secret stays where it was given for.
	f.call("PUT", path, f.key, with(object{"public": false})).want(http.StatusOK)
	for _, x := range []struct {
		body  object
		field string
	}{
		{with(object{"public": false, "issuer": "https://evil.example"}), "clientSecret"},
		{with(object{"issuer": "ftp://login.example.org"}), "issuer"},
		{with(object{"clientId": ""}), "clientId"},
		{with(object{"scopes": []string{"a b"}}), "scopes"},
		{with(object{"roleClaim": "groups", "roles": object{"kiosk": []string{"x"}}}), "roles"},
		{with(object{"create": true}), "roleClaim"},
	} {
		if got := f.call("PUT", path, f.key, x.body).want(http.StatusUnprocessableEntity).body; !strings.Contains(string(got), `"body.`+x.field+`"`) {
			t.Errorf("%v: %s", x.body, got)
		}
	}
	f.call("DELETE", path, f.key, nil).want(http.StatusNoContent)
	f.call("GET", path, f.key, nil).want(http.StatusNotFound)
}
