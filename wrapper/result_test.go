package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestLargeResultGoesToTheStore(t *testing.T) {
	s := newStore(t)
	b := shell(t, `for i in 1 2 3 4 5 6 7 8; do echo "[JOB_OUT] K$i = $(head -c 1000 /dev/zero | tr '\0' v)"; done`)
	b.set("overflow", map[string]any{"key": "results/x.json", "put_url": s.url("x")}).run().expect(outcomeExited, 0)
	var small overflowDocument
	if err := json.Unmarshal(b.raw, &small); err != nil || len(b.raw) > 4096 || small.Overflow.Key != "results/x.json" || small.Overflow.Size != len(s.object("x")) {
		t.Fatalf("%v %s", err, b.raw)
	}
	var whole Result
	if err := json.Unmarshal(s.object("x"), &whole); err != nil || len(whole.Outputs) != 8 || whole.Outcome != outcomeExited {
		t.Errorf("%v %s", err, s.object("x"))
	}
	checkSchema(t, "result", s.object("x"))
}

func TestSmallResultDoesNotTroubleTheStore(t *testing.T) {
	s := newStore(t)
	shell(t, "exit 3").set("overflow", map[string]any{"key": "x", "put_url": s.url("x")}).run().expect(outcomeExited, 3)
	if len(s.requests) > 0 {
		t.Errorf("%v", s.requests)
	}
}

func TestLargeResultWithTheStoreAwayForAWhile(t *testing.T) {
	s := newStore(t)
	s.spoil(3, always, answer(503, "ServiceUnavailable"))
	shell(t, `echo "[JOB_OUT] K = $(head -c 9000 /dev/zero | tr '\0' v)"`).set("overflow", map[string]any{"key": "x", "put_url": s.url("x")}).run().expect(outcomeExited, 0)
	if s.object("x") == nil {
		t.Error("it was not stored")
	}
}

func TestLargeResultThatTheStoreRefusesIsAFailure(t *testing.T) {
	s := newStore(t)
	s.spoil(99, always, answer(403, "AccessDenied"))
	b := shell(t, `echo "[JOB_OUT] K = $(head -c 9000 /dev/zero | tr '\0' v)"`).set("overflow", map[string]any{"key": "x", "put_url": s.url("x")}).run()
	b.expect(outcomeWrapperFailed, exitWrapper).expectMessage("could not be stored", "403", "outputs are lost")
	if len(b.raw) > 4096 || *b.result.ExitCode != 0 {
		t.Errorf("%s", b.raw)
	}
}

func TestLargeResultWithoutAStore(t *testing.T) {
	b := shell(t, `echo "[JOB_OUT] K = $(head -c 9000 /dev/zero | tr '\0' v)"`).run().expect(outcomeOutputTooLarge, exitWrapper).expectMessage("4096 bytes")
	if len(b.raw) > 4096 {
		t.Errorf("%d bytes", len(b.raw))
	}
	b = shell(t, `echo "[JOB_OUT] K = $(head -c 9000 /dev/zero | tr '\0' v)"; exit 5`).run().expect(outcomeExited, 5)
	if len(b.raw) > 4096 {
		t.Errorf("%d bytes", len(b.raw))
	}
	shell(t, `echo "[JOB_OUT] K = $(head -c 9000 /dev/zero | tr '\0' v)"`).set("message_limit", 100000).run().expect(outcomeExited, 0)
}

// However much is in it, the document fits, and stays a document.
func TestResultAlwaysFits(t *testing.T) {
	for _, overflow := range []*Overflow{nil, {Key: strings.Repeat("k", 200)}} {
		r := newResult(strings.Repeat("a", 63))
		code := 1
		r.Outcome, r.ExitCode, r.Started, r.Message = outcomeExited, &code, true, strings.Repeat("\u6784\"", 5000)
		for i := range 200 {
			r.warn("warning %d %s", i, strings.Repeat("w", 5000))
			r.Saved = append(r.Saved, Saved{Kind: "artifact", Name: fmt.Sprint("name", i), Error: strings.Repeat("e", 3000)})
			r.Restored = append(r.Restored, Restored{Kind: "cache", Name: strings.Repeat("n", 100)})
			r.Outputs[fmt.Sprint("K", i)] = strings.Repeat("v", 1000)
		}
		file, whole, err := r.encode(4096, overflow)
		if err != nil {
			t.Fatal(err)
		}
		if overflow == nil {
			file = r.shrink(4096)
		} else {
			checkSchema(t, "result", whole)
		}
		if len(file) > 4096 {
			t.Errorf("%d bytes", len(file))
		}
		checkSchema(t, "result", file)
	}
}

func TestResultIsWrittenIntoAMountedFile(t *testing.T) {
	// A file on which something is mounted cannot be replaced: Kubernetes' termination log.
	b := shell(t, "exit 3")
	target := b.path("result.json")
	os.WriteFile(target, []byte(strings.Repeat("old", 3000)), 0o666)
	if err := syscall.Mount(target, target, "", syscall.MS_BIND, ""); err != nil {
		t.Skip(err)
	}
	defer syscall.Unmount(target, 0)
	b.run().expect(outcomeExited, 3)
	if left, _ := filepath.Glob(b.path(".result*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestResultOnADiskThatTheJobFilled(t *testing.T) {
	b := shell(t, "head -c 1000000 /dev/zero >fill; exit 7")
	if err := syscall.Mount("tmpfs", b.dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip(err)
	}
	defer syscall.Unmount(b.dir, 0)
	b.run().expect(outcomeExited, 7)
}

func TestResultThatCannotBeWritten(t *testing.T) {
	b := shell(t, "exit 0")
	b.set("result_path", "/proc/no/such/place").prepare()
	err := b.cmd.Run()
	if b.cmd.ProcessState.ExitCode() != exitWrapper || !strings.Contains(b.stderr.String(), "result document could not be written") {
		t.Errorf("%v %s: silently green", err, b.stderr.String())
	}
	// It is known before the job could do anything that nobody would hear of.
	b = shell(t, "touch ran; exit 4")
	b.set("result_path", "/proc/no/such/place").prepare()
	_ = b.cmd.Run()
	if _, err := os.Stat(b.path("ran")); err == nil || b.cmd.ProcessState.ExitCode() != exitWrapper || !strings.Contains(b.stderr.String(), "was not started") {
		t.Errorf("%v, status %d, %s", err, b.cmd.ProcessState.ExitCode(), b.stderr.String())
	}
}

func TestResultAppearsWhole(t *testing.T) {
	b := shell(t, "[ -e result.json ] && echo there; ls -a")
	b.run().expect(outcomeExited, 0)
	if strings.Contains(b.stdout.String(), "there\n") {
		t.Error("a result document was there before the end")
	}
	if info, _ := os.Stat(b.path("result.json")); info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestCut(t *testing.T) {
	for text, want := range map[string]string{"short": "short", "exactly 10": "exactly 10", "more than ten": "more th…", "\u6784\u6784\u6784\u6784": "\u6784\u6784…"} {
		if got := cut(text, 10); got != want || len(got) > 10 {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func TestMessagesHoldNoAddress(t *testing.T) {
	for _, trouble := range []http.HandlerFunc{answer(403, "X"), answer(404, "NoSuchKey"), answer(301, ""), func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/"+testSecret, http.StatusFound)
	}} {
		s := newStore(t)
		s.spoil(99, always, trouble)
		b := newBench(t, "true").set("restore", []any{restore(s, "artifact", "a", "x", true)}).start()
		waitFor(t, "a request", func() bool { return s.count("GET") > 0 })
		_ = b.cmd.Process.Signal(syscall.SIGTERM) // some of these are worth ten tries
		b.wait()
		noSecrets(t, b)
	}
	bad := newBench(t, "true").set("restore", []any{map[string]any{"kind": "artifact", "name": "a", "path": ".", "url": "http://[::1" + testSecret, "required": true}}).run()
	bad.expect(outcomeWrapperFailed, exitWrapper).expectMessage("restore[0].url")
	noSecrets(t, bad)
}

func TestInstall(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a/b")
	for range 2 { // a second time replaces
		if out, err := command(t, "hubflow-wrapper", "install", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("%v", entries)
	}
	for _, name := range []string{"hubflow-wrapper", "thub"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v %v", name, info, err)
		}
		cmd := exec.Command(filepath.Join(dir, name), "version")
		cmd.Env = append(os.Environ(), actAsWrapper+"="+name)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), name) {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
	out, err := command(t, "hubflow-wrapper", "install", "/proc/nowhere").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "volume is mounted") {
		t.Errorf("%v %s", err, out)
	}
}
