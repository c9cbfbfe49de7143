package testserver

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
)

// KMSServer is AWS KMS with one symmetric key: Encrypt and Decrypt, as the
// "AWS Key Management Service API Reference" has them. Each server has key
// material of its own.
type KMSServer struct {
	Endpoint string
	KeyARN   string

	aead   cipher.AEAD
	server *httptest.Server
	mu     sync.Mutex
	calls  []KMSCall
}

// KMSCall is a request that a KMSServer was sent, whatever its answer.
type KMSCall struct {
	Operation string            // Encrypt or Decrypt
	Context   map[string]string // the encryption context
}

// KMS starts a server.
func KMS() (*KMSServer, error) {
	material := make([]byte, 32)
	_, _ = rand.Read(material) // it never fails
	block, err := aes.NewCipher(material)
	if err != nil {
		return nil, err
	}
	k := &KMSServer{KeyARN: "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"}
	if k.aead, err = cipher.NewGCMWithRandomNonce(block); err != nil {
		return nil, err
	}
	k.server = httptest.NewServer(http.HandlerFunc(k.serve))
	k.Endpoint = k.server.URL
	return k, nil
}

// Close ends the server.
func (k *KMSServer) Close() { k.server.Close() }

// Calls returns the requests so far.
func (k *KMSServer) Calls() []KMSCall {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]KMSCall(nil), k.calls...)
}

// kmsMaxPlaintext is the most that Encrypt takes, in bytes.
const kmsMaxPlaintext = 4096

func (k *KMSServer) serve(w http.ResponseWriter, r *http.Request) {
	fail := func(code, message string) {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": message})
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	operation := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	var in struct {
		KeyID             string `json:"KeyId"`
		Plaintext         []byte
		CiphertextBlob    []byte
		EncryptionContext map[string]string
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail("SerializationException", err.Error())
		return
	}
	k.mu.Lock()
	k.calls = append(k.calls, KMSCall{operation, in.EncryptionContext})
	k.mu.Unlock()
	if in.KeyID != k.KeyARN {
		fail("AccessDeniedException", "not authorized on resource "+in.KeyID)
		return
	}
	context, _ := json.Marshal(in.EncryptionContext) // sorted by key
	out := map[string]any{"KeyId": k.KeyARN, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}
	switch operation {
	case "Encrypt":
		if len(in.Plaintext) == 0 || len(in.Plaintext) > kmsMaxPlaintext {
			fail("ValidationException", "plaintext must be 1 to 4096 bytes")
			return
		}
		out["CiphertextBlob"] = k.aead.Seal(nil, nil, in.Plaintext, context)
	case "Decrypt":
		plain, err := k.aead.Open(nil, nil, in.CiphertextBlob, context)
		if err != nil {
			fail("InvalidCiphertextException", "")
			return
		}
		out["Plaintext"] = plain
	default:
		fail("UnknownOperationException", operation)
		return
	}
	_ = json.NewEncoder(w).Encode(out)
}
