package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Secrets reach the wrapper in the job document alone, and leave it only where they must: values to the child, addresses to the
// store. Nobody finds them in an argument, an environment, a file, a log, a core.

const envSecret = "pa55word-of-the-job"

// secretJob has a secret value, and presigned addresses everywhere.
func secretJob(t testing.TB, s *store, script string) *bench {
	return shell(t, script).set("env", map[string]string{"PASSWORD": envSecret}).
		set("restore", []any{restore(s, "cache", "c", ".", false)}).
		set("save", []any{with(save(s, "artifact", "a", "f"), "index_upload", map[string]any{"put_url": s.url("i")})}).
		set("overflow", map[string]any{"key": "over", "put_url": s.url("over")})
}

func expectNoSecret(t testing.TB, where, text string) {
	t.Helper()
	for _, secret := range []string{envSecret, "topsecret", "Signature="} {
		if at := strings.Index(text, secret); at >= 0 {
			t.Errorf("%s holds a secret: …%.80q", where, text[max(0, at-40):])
		}
	}
}

func TestSecretsAreNotInTheProcess(t *testing.T) {
	s := newStore(t)
	b := secretJob(t, s, "echo x >f; touch ready; while ! [ -e go ]; do sleep 0.01; done").start()
	waitForFile(t, b.path("ready"))
	for _, name := range []string{"cmdline", "environ", "comm", "status", "maps"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", b.cmd.Process.Pid, name))
		if err != nil {
			t.Fatal(err) // root reads all of them; others are refused some, which is as good
		}
		expectNoSecret(t, "/proc/PID/"+name, string(text))
	}
	dumpable, _ := os.Stat(fmt.Sprintf("/proc/%d/mem", b.cmd.Process.Pid))
	if dumpable.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Error("the wrapper is dumpable")
	}
	files, _ := filepath.Glob(b.path("*"))
	hidden, _ := filepath.Glob(b.path(".*"))
	for _, name := range append(files, hidden...) {
		if text, err := os.ReadFile(name); err == nil {
			expectNoSecret(t, name, string(text))
		}
	}
	os.WriteFile(b.path("go"), nil, 0o644)
	b.wait().expect(outcomeExited, 0)
	expectNoSecret(t, "the result", string(b.raw))
}

// The child has its own secrets and none of the wrapper's.
func TestChildHasItsSecretsOnly(t *testing.T) {
	s := newStore(t)
	b := secretJob(t, s, "echo x >f; tr '\\0' '\\n' </proc/$$/environ; tr '\\0' ' ' </proc/$$/cmdline; ls -l /proc/$$/fd").run().expect(outcomeExited, 0)
	if !strings.Contains(b.stdout.String(), "PASSWORD="+envSecret+"\n") {
		t.Error("the child lacks its variable")
	}
	if strings.Contains(b.stdout.String(), "topsecret") || strings.Contains(b.stdout.String(), "job.json") || strings.Contains(b.stdout.String(), "socket:") {
		t.Errorf("the child has something of the wrapper's:\n%s", b.stdout.String())
	}
}

// Whatever fails, wherever: no message holds a value or an address.
func TestSecretsAreNotInMessages(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *store, b *bench)
		script string
	}{
		"nothing fails":    {func(*store, *bench) {}, "echo x >f"},
		"the child":        {func(*store, *bench) {}, "exit 3"},
		"the start":        {func(_ *store, b *bench) { b.set("command", []string{"/no/such"}) }, ""},
		"the environment":  {func(_ *store, b *bench) { b.set("env", map[string]string{"A=B": envSecret}) }, ""},
		"a NUL in a value": {func(_ *store, b *bench) { b.set("env", map[string]string{"A": envSecret + "\x00"}) }, ""},
		"restore, 403": {func(s *store, b *bench) {
			s.spoil(99, isGet, answer(403, "AccessDenied"))
			b.set("restore", []any{restore(s, "artifact", "a", ".", true)})
		}, ""},
		"restore, 404": {func(s *store, b *bench) { b.set("restore", []any{restore(s, "artifact", "none", ".", true)}) }, ""},
		"restore, damaged": {func(s *store, b *bench) {
			s.put("a", []byte("nonsense"))
			b.set("restore", []any{restore(s, "artifact", "a", ".", true)})
		}, ""},
		"restore, bad address": {func(s *store, b *bench) {
			b.set("restore", []any{map[string]any{"kind": "artifact", "name": "a", "path": ".", "url": "http://[::1" + testSecret, "required": true}})
		}, ""},
		"save, 403 with an echo":      {func(s *store, _ *bench) { s.spoil(99, isPut, echoAddress) }, "echo x >f"},
		"save, missing":               {func(*store, *bench) {}, "true"},
		"overflow, 403":               {func(s *store, _ *bench) { s.spoil(99, isPut, answer(403, "AccessDenied")) }, `echo x >f; echo "[JOB_OUT] K = $(head -c 9000 /dev/zero | tr '\0' v)"`},
		"an output that is too large": {func(_ *store, b *bench) { b.set("output_limits", map[string]any{"value_bytes": 5}) }, "echo x >f; echo \"TOKEN=$PASSWORD\" >$HUBFLOW_OUTPUT"},
		"a bad HUBFLOW_OUTPUT":        {func(*store, *bench) {}, "echo x >f; echo \"$PASSWORD\" >$HUBFLOW_OUTPUT"},
		"a bad JSON HUBFLOW_OUTPUT":   {func(*store, *bench) {}, "echo x >f; echo \"{\\\"$PASSWORD\\\": \" >$HUBFLOW_OUTPUT"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			b := secretJob(t, s, c.script)
			c.change(s, b)
			b.run()
			expectNoSecret(t, "the result", string(b.raw))
			expectNoSecret(t, "stdout", b.stdout.String())
			expectNoSecret(t, "stderr", b.stderr.String())
		})
	}
}

// echoAddress is a store that repeats what it was asked for.
func echoAddress(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusForbidden)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Resource>%s</Resource></Error>", r.URL.RawQuery, r.URL)
}

// A document with faults is not quoted.
func TestSecretsOfARefusedDocument(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON":   `{"version": 1, "env": {"PASSWORD": "` + envSecret + `"`,
		"wrong type": `{"version": 1, "env": "` + envSecret + `", "result_path": "%s"}`,
		"a number":   `{"version": 1, "command": ["true"], "env": {"P": 1}, "restore": [{"url": "x?` + testSecret + `"}], "result_path": "%s"}`,
		"faults":     `{"version": 7, "env": {"P": "` + envSecret + `"}, "save": [{"kind": "` + envSecret + `", "upload": {"put_url": "` + testSecret + `"}}], "result_path": "%s"}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "job.json")
			if strings.Contains(text, "%s") {
				text = fmt.Sprintf(text, filepath.Join(dir, "result.json"))
			}
			os.WriteFile(path, []byte(text), 0o600)
			cmd := command(t, "hubflow-wrapper", "run", path)
			out, _ := cmd.CombinedOutput()
			raw, _ := os.ReadFile(filepath.Join(dir, "result.json"))
			if cmd.ProcessState.ExitCode() != exitWrapper {
				t.Errorf("status %d", cmd.ProcessState.ExitCode())
			}
			expectNoSecret(t, "the log", string(out))
			expectNoSecret(t, "the result", string(raw))
		})
	}
}
