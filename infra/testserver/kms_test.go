package testserver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/smithy-go"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/table"
	"github.com/pinward/pinward/shared/vault"
)

// kmsRoot returns the root key as the functions get it: from the environment.
func kmsRoot(t *testing.T, endpoint, keyARN string) tink.AEADWithContext {
	t.Helper()
	t.Setenv("AWS_ENDPOINT_URL_KMS", endpoint)
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	root, err := vault.KMSRoot(t.Context(), keyARN)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func startKMS(t *testing.T) *KMSServer {
	t.Helper()
	k, err := KMS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// created is a tenant's keys made under a root key, and their item.
func created(t *testing.T, root tink.AEADWithContext, tenant table.TenantID) (*vault.Keys, table.Item) {
	t.Helper()
	op, keys, err := vault.New(root).Create(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	item := op.Item()
	item.Version = 1
	return keys, item
}

func TestKMSRoot(t *testing.T) {
	kms := startKMS(t)
	root := kmsRoot(t, kms.Endpoint, kms.KeyARN)
	made, item := created(t, root, "acme")
	tag, err := made.Lookup(secret.New("739158"))
	if err != nil {
		t.Fatal(err)
	}
	v := vault.New(root)
	for range 2 {
		keys, err := v.Open(t.Context(), "acme", item)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := keys.Lookup(secret.New("739158")); err != nil || got != tag {
			t.Errorf("lookup tag %q, %v, want %q", got, err, tag)
		}
	}
	var operations []string
	for _, c := range kms.Calls() {
		operations = append(operations, c.Operation)
	}
	if want := []string{"Encrypt", "Decrypt"}; !slices.Equal(operations, want) {
		t.Errorf("one Create and two Opens called %v, want %v", operations, want)
	}

	// Another tenant's sealed keysets, put in the place of its own.
	_, foreign := created(t, root, "beta")
	item.Data = foreign.Data
	_, err = vault.New(root).Open(t.Context(), "acme", item)
	wantCode(t, err, "InvalidCiphertextException")
}

func TestKMSRefusals(t *testing.T) {
	kms := startKMS(t)
	_, item := created(t, kmsRoot(t, kms.Endpoint, kms.KeyARN), "acme")

	_, err := vault.New(kmsRoot(t, startKMS(t).Endpoint, kms.KeyARN)).Open(t.Context(), "acme", item)
	wantCode(t, err, "InvalidCiphertextException")

	root := kmsRoot(t, kms.Endpoint, strings.Replace(kms.KeyARN, "1234abcd", "ffffffff", 1))
	_, err = vault.New(root).Open(t.Context(), "acme", item)
	wantCode(t, err, "AccessDeniedException")

	_, err = kmsRoot(t, kms.Endpoint, kms.KeyARN).EncryptWithContext(t.Context(), make([]byte, kmsMaxPlaintext+1), nil)
	wantCode(t, err, "ValidationException")
}

// When KMS cannot be reached, callers are told to try again.
func TestKMSUnreachable(t *testing.T) {
	kms := startKMS(t)
	_, item := created(t, kmsRoot(t, kms.Endpoint, kms.KeyARN), "acme")
	kms.Close()
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	v := vault.New(kmsRoot(t, kms.Endpoint, kms.KeyARN))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := v.Open(ctx, "acme", item)
	_, _, errCreate := v.Create(ctx, "acme")
	for _, err := range []error{err, errCreate} {
		if !errors.Is(err, problem.ErrUnavailable) {
			t.Errorf("got %v, want %v", err, problem.ErrUnavailable)
		}
	}
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() != code {
		t.Errorf("got %v, want %s", err, code)
	}
}
