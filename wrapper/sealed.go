package main

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
)

// sealedVariable holds a job document for `run-sealed`: base64 of a nonce of 12 bytes and what AES-256-GCM made of the document.
// So a container engine takes the document with the container itself, and shows none of it to those who may describe containers.
const sealedVariable = "HUBFLOW_SEALED_JOB"

// openSealed returns the document in the environment, read with the key in the file keyPath (32 bytes), and takes it out of the
// environment, so that the child has none of it.
func openSealed(keyPath string) ([]byte, error) {
	text, ok := os.LookupEnv(sealedVariable)
	if !ok {
		return nil, fmt.Errorf("%s is not set", sealedVariable)
	}
	_ = os.Unsetenv(sealedVariable)
	sealed, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s is not base64: %w", sealedVariable, err)
	}
	key, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyPath, err)
	}
	opened, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	if len(sealed) < opened.NonceSize() {
		return nil, fmt.Errorf("%s is cut off after %d bytes", sealedVariable, len(sealed))
	}
	document, err := opened.Open(nil, sealed[:opened.NonceSize()], sealed[opened.NonceSize():], nil)
	if err != nil {
		return nil, errors.New(sealedVariable + " was not made with the key in " + keyPath)
	}
	return document, nil
}
