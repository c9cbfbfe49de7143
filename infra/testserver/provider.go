package testserver

import (
	"encoding/json"
	"path/filepath"
)

// Account is somebody's at a provider: their claims.
type Account map[string]any

// Provider starts an OpenID Connect provider (npm oidc-provider) with one client, which has
// that redirect URI, and accounts by their subject. Its page signs in whoever names an
// account. issuer is its URL; it wants PKCE.
func Provider(client, secret, redirect string, accounts map[string]Account) (issuer string, stop func(), err error) {
	if _, err := Module("oidc-provider"); err != nil {
		return "", nil, err
	}
	host, port, err := freeAddress()
	if err != nil {
		return "", nil, err
	}
	clients, err := json.Marshal([]map[string]any{{"client_id": client, "client_secret": secret, "redirect_uris": []string{redirect}}})
	if err != nil {
		return "", nil, err
	}
	all, err := json.Marshal(accounts)
	if err != nil {
		return "", nil, err
	}
	stop, err = node("oidc-provider", filepath.Join("..", "..", "provider.mjs"), nil,
		[]string{"HOST=" + host, "PORT=" + port, "CLIENTS=" + string(clients), "ACCOUNTS=" + string(all)}, answers(host, port))
	return "http://" + host + ":" + port, stop, err
}
