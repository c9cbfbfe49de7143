package vault_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/vault"
)

func newVault(t *testing.T) *vault.Vault {
	t.Helper()
	root, err := vault.LocalRoot(filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	return vault.New(root)
}

func create(t *testing.T, v *vault.Vault, tenant table.TenantID) (*vault.Keys, table.Item) {
	t.Helper()
	op, keys, err := v.Create(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	return keys, op.Item()
}

func TestKeyedValues(t *testing.T) {
	v := newVault(t)
	a, _ := create(t, v, "acme")
	b, _ := create(t, v, "other")
	pin := secret.New("739158")

	verifier, err := a.Verifier("u1", pin)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name     string
		keys     *vault.Keys
		verifier string
		user     string
		pin      string
		want     bool
	}{
		{"right", a, verifier, "u1", "739158", true},
		{"wrong PIN", a, verifier, "u1", "739159", false},
		{"another user", a, verifier, "u2", "739158", false},
		{"another tenant", b, verifier, "u1", "739158", false},
		{"parts moved", a, verifier, "u17", "39158", false},
		{"no verifier", a, "", "u1", "739158", false},
		{"not a verifier", a, "1.AAAA", "u1", "739158", false},
		{"cut verifier", a, verifier[:len(verifier)-4], "u1", "739158", false},
	} {
		if got := test.keys.Matches(test.verifier, test.user, secret.New(test.pin)); got != test.want {
			t.Errorf("%s: Matches = %v, want %v", test.name, got, test.want)
		}
	}

	la, _ := a.Lookup(pin)
	again, _ := a.Lookup(pin)
	lb, _ := b.Lookup(pin)
	if la != again || la == lb || la == verifier {
		t.Errorf("lookup tags: same tenant %q %q, other tenant %q, verifier %q", la, again, lb, verifier)
	}
	fp, _ := a.Fingerprint("body", []byte("x"))
	if other, _ := a.Fingerprint("bod", []byte("yx")); fp == other {
		t.Error("fingerprints of different purposes are equal")
	}
}

func TestSealIsBoundToPurposeAndTenant(t *testing.T) {
	v := newVault(t)
	a, _ := create(t, v, "acme")
	b, _ := create(t, v, "other")
	sealed, err := a.Seal("smtp", []byte("hunter2"))
	if err != nil || bytes.Contains(sealed, []byte("hunter2")) {
		t.Fatalf("Seal = %q, %v", sealed, err)
	}
	if got, err := a.Open("smtp", sealed); err != nil || string(got) != "hunter2" {
		t.Errorf("Open = %q, %v", got, err)
	}
	if _, err := a.Open("other", sealed); err == nil {
		t.Error("opened for another purpose")
	}
	if _, err := b.Open("smtp", sealed); err == nil {
		t.Error("opened by another tenant")
	}
}

func TestOpenNeedsTheRootKeyAndTheTenant(t *testing.T) {
	v := newVault(t)
	keys, item := create(t, v, "acme")
	verifier, _ := keys.Verifier("u", secret.New("1"))

	item.Version = 1
	opened, err := v.Open(t.Context(), "acme", item)
	if err != nil || !opened.Matches(verifier, "u", secret.New("1")) {
		t.Fatalf("Open = %v; keys differ from those made", err)
	}
	if again, _ := v.Open(t.Context(), "acme", item); again != opened {
		t.Error("opened twice: the root key was asked again")
	}
	if _, err := newVault(t).Open(t.Context(), "acme", item); err == nil || !strings.Contains(err.Error(), "root key") {
		t.Errorf("another root key: %v", err)
	}
	moved := item
	moved.Key = table.KeysetsKey("other")
	if _, err := v.Open(t.Context(), "other", moved); err == nil {
		t.Error("keysets of one tenant opened for another")
	}
}

func TestLocalRoot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	first, err := vault.LocalRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	sealed, _ := first.EncryptWithContext(context.Background(), []byte("x"), nil)
	second, err := vault.LocalRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := second.DecryptWithContext(context.Background(), sealed, nil); err != nil || string(got) != "x" {
		t.Errorf("read again: %q, %v", got, err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %04o, want 0600", info.Mode().Perm())
	}

	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.LocalRoot(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by others: %v", err)
	}
	damaged := filepath.Join(t.TempDir(), "root.key")
	if err := os.WriteFile(damaged, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.LocalRoot(damaged); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("damaged: %v", err)
	}
}
