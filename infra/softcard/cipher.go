package softcard

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
)

// Algorithm references of keys that both sides have (SP 800-78-4, table 6-2).
const (
	tdes   = 0x03
	aes128 = 0x08
	aes192 = 0x0A
	aes256 = 0x0C
)

// keyLength returns the length of such a key, 0 if there is no such algorithm.
func keyLength(algorithm byte) int {
	switch algorithm {
	case tdes, aes192:
		return 24
	case aes128:
		return 16
	case aes256:
		return 32
	}
	return 0
}

// newCipher panics if the key is not as long as keyLength says.
func newCipher(algorithm byte, key []byte) cipher.Block {
	var block cipher.Block
	var err error
	if algorithm == tdes {
		block, err = des.NewTripleDESCipher(key)
	} else {
		block, err = aes.NewCipher(key)
	}
	if err != nil {
		panic(err)
	}
	return block
}

// encipher is CBC with an initial value of zero.
func encipher(block cipher.Block, plain []byte) []byte {
	out := make([]byte, len(plain))
	cipher.NewCBCEncrypter(block, make([]byte, block.BlockSize())).CryptBlocks(out, plain)
	return out
}

// decipher undoes encipher.
func decipher(block cipher.Block, enciphered []byte) []byte {
	out := make([]byte, len(enciphered))
	cipher.NewCBCDecrypter(block, make([]byte, block.BlockSize())).CryptBlocks(out, enciphered)
	return out
}
