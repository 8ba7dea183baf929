package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Transfers by HTTPS, with a certificate that only ca_file (or HUBFLOW_CA_FILE) makes trusted.

func TestFilesByHTTPS(t *testing.T) {
	s := newTLSStore(t)
	b := shell(t, "mkdir d; head -c 3000000 /dev/urandom >d/f")
	os.WriteFile(b.path("ca.pem"), s.certificate(), 0o644)
	spec := with(save(s, "artifact", "a", "d"), "upload", s.upload("a", 1<<20, 10))
	b.set("ca_file", b.path("ca.pem")).set("save", []any{with(spec, "index_upload", map[string]any{"put_url": s.url("i")})}).run().expect(outcomeExited, 0).expectNoWarnings()
	to := newBench(t, "true")
	os.WriteFile(to.path("ca.pem"), s.certificate(), 0o644)
	to.set("ca_file", to.path("ca.pem")).set("restore", []any{restore(s, "artifact", "a", ".", true)}).run().expect(outcomeExited, 0)
	compareTrees(t, b.path("d"), to.path("d"))
	if s.object("i") == nil || s.count("PUT a") < 3 {
		t.Errorf("%v", s.requests)
	}
}

func TestLargeResultByHTTPS(t *testing.T) {
	s := newTLSStore(t)
	b := shell(t, `echo "[JOB_OUT] K = $(head -c 9000 /dev/zero | tr '\0' v)"`)
	os.WriteFile(b.path("ca.pem"), s.certificate(), 0o644)
	b.set("ca_file", b.path("ca.pem")).set("overflow", map[string]any{"key": "x", "put_url": s.url("x")}).run().expect(outcomeExited, 0)
	checkSchema(t, "result", s.object("x"))
}

// Whom we do not trust gets nothing, at the first try, and the message says what to do.
func TestStoresThatAreNotTrusted(t *testing.T) {
	s, other := newTLSStore(t), newStore(t)
	for name, c := range map[string]struct {
		caFile func(b *bench) string
		says   []string
	}{
		"no ca_file":             {func(*bench) string { return "" }, []string{"not trusted", "ca_file"}},
		"ca_file not there":      {func(b *bench) string { return b.path("none.pem") }, []string{"none.pem", "no such file"}},
		"ca_file is nonsense":    {func(b *bench) string { os.WriteFile(b.path("x.pem"), []byte("x"), 0o644); return b.path("x.pem") }, []string{"x.pem", "no certificate"}},
		"ca_file is empty":       {func(b *bench) string { os.WriteFile(b.path("x.pem"), nil, 0o644); return b.path("x.pem") }, []string{"no certificate"}},
		"ca_file is a directory": {func(b *bench) string { return b.dir }, []string{"is a directory"}},
	} {
		for _, kind := range []string{"restore", "save"} {
			t.Run(name+", "+kind, func(t *testing.T) {
				b := shell(t, "echo x >f")
				b.set("ca_file", c.caFile(b))
				outcome := outcomeRestoreFailed
				if kind == "save" {
					outcome = outcomeSaveFailed
					b.set("save", []any{save(s, "artifact", "a", "f")})
				} else {
					b.set("restore", []any{restore(s, "artifact", "a", ".", true)})
				}
				b.run().expect(outcome, exitWrapper).expectMessage(c.says...)
				noSecrets(t, b)
			})
		}
	}
	if len(s.requests) > 0 {
		t.Errorf("requests reached it: %v", s.requests)
	}
	b := newBench(t, "true") // a ca_file does no harm to plain HTTP
	os.WriteFile(b.path("ca.pem"), s.certificate(), 0o644)
	other.put("a", packedTar(t, tarOf(t, file("f"))))
	b.set("ca_file", b.path("ca.pem")).set("restore", []any{restore(other, "artifact", "a", "x", true)}).run().expect(outcomeExited, 0)
}

func TestStoreUnderAnotherName(t *testing.T) {
	s := newTLSStore(t)
	b := newBench(t, "true")
	os.WriteFile(b.path("ca.pem"), s.certificate(), 0o644)
	address := bytes.Replace([]byte(s.url("a")), []byte("127.0.0.1"), []byte("localhost"), 1) // the certificate names 127.0.0.1 and example.com
	b.set("ca_file", b.path("ca.pem")).set("restore", []any{map[string]any{"kind": "artifact", "name": "a", "path": ".", "url": string(address), "required": true}})
	b.run().expect(outcomeRestoreFailed, exitWrapper).expectMessage("not trusted", "localhost")
}

func TestThubByHTTPS(t *testing.T) {
	s := newTLSStore(t)
	dir := t.TempDir()
	ca, local := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "f")
	os.WriteFile(ca, s.certificate(), 0o644)
	os.WriteFile(local, []byte("x"), 0o644)
	t.Setenv("HUBFLOW_URL", s.URL)
	args := []string{"push", "--token=t0ken", "--repo=ns/repo", "--localpath=" + local, "--path=f"}
	if status, _, stderr := runThub(args...); status != 1 {
		t.Errorf("%d %q", status, stderr)
	} else {
		expectParts(t, stderr, "not trusted", "HUBFLOW_CA_FILE")
	}
	t.Setenv("HUBFLOW_CA_FILE", ca)
	if status, _, stderr := runThub(args...); status != 0 || string(s.object("/api/v1/files/ns/repo/f")) != "x" {
		t.Errorf("%d %q", status, stderr)
	}
	t.Setenv("HUBFLOW_CA_FILE", filepath.Join(dir, "none"))
	if status, _, stderr := runThub(args...); status != 1 {
		t.Errorf("%d %q", status, stderr)
	}
}
