package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	awskms "github.com/tink-crypto/tink-go-awskms/v3/integration/awskms"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// KMSRoot returns the root key that is a key in AWS KMS, by its ARN. Each use
// is one call of kms:Encrypt or kms:Decrypt.
func KMSRoot(ctx context.Context, keyARN string, opts ...awskms.ClientOption) (tink.AEADWithContext, error) {
	root, err := awskms.NewAEADWithContext(ctx, keyARN, opts...)
	if err != nil {
		return nil, fmt.Errorf("use KMS key: %w", err)
	}
	return root, nil
}

// LocalRoot returns the root key in a file, which it makes on first use with
// mode 0600. It refuses a file that others may read. Whoever loses the file
// loses every PIN in the table.
func LocalRoot(path string) (tink.AEADWithContext, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = makeLocalRoot(path); err != nil {
			return nil, fmt.Errorf("make root key %s: %w", path, err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("read root key: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read root key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("root key %s may be read by others (mode %04o): run chmod 600 on it", path, mode)
	}
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(text)))
	if err != nil {
		return nil, fmt.Errorf("root key %s is damaged: %w", path, err)
	}
	local, err := aead.New(handle)
	if err != nil {
		return nil, fmt.Errorf("root key %s: %w", path, err)
	}
	return localRoot{local}, nil
}

// makeLocalRoot writes a new key to a temporary file and links it into place,
// so that the file is whole or not there and never replaces another.
func makeLocalRoot(path string) ([]byte, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&b)); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".rootkey") // mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b.Bytes())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

type localRoot struct{ aead tink.AEAD }

func (l localRoot) EncryptWithContext(_ context.Context, plaintext, associatedData []byte) ([]byte, error) {
	return l.aead.Encrypt(plaintext, associatedData)
}

func (l localRoot) DecryptWithContext(_ context.Context, ciphertext, associatedData []byte) ([]byte, error) {
	return l.aead.Decrypt(ciphertext, associatedData)
}
