package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// seal makes the bench's document one for run-sealed, with this key.
func (b *bench) seal(key []byte) {
	b.t.Helper()
	b.prepare()
	os.Remove(b.path("job.json"))
	document, _ := json.Marshal(b.doc)
	block, err := aes.NewCipher(key)
	if err != nil {
		b.t.Fatal(err)
	}
	gcm, _ := cipher.NewGCM(block)
	nonce := make([]byte, gcm.NonceSize())
	rand.Read(nonce)
	b.cmd.Args = []string{b.cmd.Args[0], "run-sealed", b.path("key")}
	b.cmd.Env = append(b.cmd.Env, sealedVariable+"="+base64.StdEncoding.EncodeToString(gcm.Seal(nonce, nonce, document, nil)))
}

func TestSealedDocument(t *testing.T) {
	key := []byte(strings.Repeat("k", 32))
	b := shell(t, `env`).set("env", map[string]any{"PASSWORD": "topsecret"})
	os.WriteFile(b.path("key"), key, 0o444)
	b.seal(key)
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait().expect(outcomeExited, 0)
	if out := b.stdout.String(); strings.Contains(out, sealedVariable) || !strings.Contains(out, "PASSWORD=topsecret\n") {
		t.Errorf("the child's environment:\n%s", out)
	}
}

func TestSealedDocumentThatCannotBeRead(t *testing.T) {
	right := strings.Repeat("k", 32)
	for name, change := range map[string]func(b *bench){
		"was not made with the key": func(b *bench) { os.WriteFile(b.path("key"), []byte(strings.Repeat("x", 32)), 0o444) },
		"invalid key size":          func(b *bench) { os.WriteFile(b.path("key"), []byte("short"), 0o444) },
		"no such file":              func(b *bench) { os.Remove(b.path("key")) },
		"is not set":                func(b *bench) { b.cmd.Env = b.cmd.Env[:len(b.cmd.Env)-1] },
		"is not base64":             func(b *bench) { b.cmd.Env = append(b.cmd.Env, sealedVariable+"=%%") },
		"is cut off after 3 bytes":  func(b *bench) { b.cmd.Env = append(b.cmd.Env, sealedVariable+"=AAAA") },
	} {
		b := shell(t, "echo ran")
		os.WriteFile(b.path("key"), []byte(right), 0o444)
		b.seal([]byte(right))
		change(b)
		_ = b.cmd.Run()
		if status := b.cmd.ProcessState.ExitCode(); status != exitWrapper || !strings.Contains(b.stderr.String(), name) || b.stdout.Len() > 0 {
			t.Errorf("%s: status %d: %s%s", name, status, b.stderr.String(), b.stdout.String())
		}
	}
}
