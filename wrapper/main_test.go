package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests use real processes: the test binary itself plays the wrapper when told to by its environment.

const actAsWrapper = "HUBFLOW_TEST_ACT_AS_WRAPPER"

func TestMain(m *testing.M) {
	if name := os.Getenv(actAsWrapper); name != "" {
		os.Unsetenv(actAsWrapper)
		os.Args[0] = name
		os.Exit(dispatch(os.Args, os.Stdout, os.Stderr))
	}
	if number := os.Getenv(actAsCatcher); number != "" {
		os.Exit(catch(number))
	}
	// Under nohup, or in the background of a script, these are ignored, and so they would be by all that we start.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGQUIT)
	if signal.Ignored(syscall.SIGINT) {
		signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
	}
	os.Exit(m.Run())
}

// actAsCatcher makes the test binary a job that exits with 9 once it and a child of its own have got the signal. (Shells do not
// do for that: dash loses signals that come while it forks.)
const actAsCatcher = "HUBFLOW_TEST_CATCH"

func catch(text string) int {
	number, _ := strconv.Atoi(text)
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.Signal(number))
	if len(os.Args) > 1 { // the child
		os.WriteFile("ready", nil, 0o644)
		<-got
		return 9
	}
	grandchild := exec.Command("/proc/self/exe", "child")
	if err := grandchild.Start(); err != nil {
		return 1
	}
	<-got
	_ = grandchild.Wait()
	return grandchild.ProcessState.ExitCode()
}

// command prepares the wrapper as a separate process.
func command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(own, args...)
	cmd.Env = append(os.Environ(), actAsWrapper+"="+name)
	return cmd
}

// bench is one job: its document, its directory, and after run what came out of it.
type bench struct {
	t   testing.TB
	dir string
	doc map[string]any
	cmd *exec.Cmd

	stdout, stderr bytes.Buffer
	status         int
	result         Result
	raw            []byte
}

func newBench(t testing.TB, argv ...string) *bench {
	dir := t.TempDir()
	return &bench{t: t, dir: dir, doc: map[string]any{
		"version": 1, "attempt": "hf-test-1-0", "command": argv, "workdir": dir, "env": map[string]string{},
		"timeout_s": 0, "grace_s": 5, "result_path": filepath.Join(dir, "result.json"), "running_path": "",
		"output_path": filepath.Join(dir, "outputs"), "message_limit": 4096, "overflow": nil,
	}}
}

func shell(t testing.TB, script string) *bench { return newBench(t, "sh", "-c", script) }

func (b *bench) set(key string, value any) *bench {
	b.doc[key] = value
	return b
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// prepare writes the document and makes the command, for tests that change it before it starts.
func (b *bench) prepare() {
	b.t.Helper()
	document, err := json.Marshal(b.doc)
	if err != nil {
		b.t.Fatal(err)
	}
	job := b.path("job.json")
	if err := os.WriteFile(job, document, 0o400); err != nil {
		b.t.Fatal(err)
	}
	b.cmd = command(b.t, "hubflow-wrapper", "run", job)
	b.cmd.Stdout, b.cmd.Stderr = &b.stdout, &b.stderr
	checkSchemaOfJob(b.t, document)
}

func (b *bench) start() *bench {
	b.t.Helper()
	b.prepare()
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	return b
}

func (b *bench) wait() *bench {
	b.t.Helper()
	_ = b.cmd.Wait()
	state := b.cmd.ProcessState.Sys().(syscall.WaitStatus)
	b.status = state.ExitStatus()
	if state.Signaled() {
		b.t.Fatalf("the wrapper itself was killed by %v", state.Signal())
	}
	raw, err := os.ReadFile(b.path("result.json"))
	if err != nil {
		b.t.Fatalf("no result document: %v (stderr: %s)", err, b.stderr.String())
	}
	b.raw = raw
	if err := json.Unmarshal(raw, &b.result); err != nil {
		b.t.Fatalf("result document: %v: %s", err, raw)
	}
	checkSchema(b.t, "result", raw)
	return b
}

// checkSchemaOfJob: what our tests send must be what the schema allows, unless a test is about the opposite.
func checkSchemaOfJob(t testing.TB, document []byte) {
	if !strings.Contains(t.Name(), "Refused") {
		checkSchema(t, "job", document)
	}
}

func (b *bench) run() *bench {
	b.t.Helper()
	return b.start().wait()
}

// signal sends to the wrapper once a file that the child makes is there.
func (b *bench) signalWhen(file string, number syscall.Signal) *bench {
	b.t.Helper()
	waitForFile(b.t, b.path(file))
	if err := b.cmd.Process.Signal(number); err != nil {
		b.t.Fatal(err)
	}
	return b
}

func waitForFile(t testing.TB, path string) {
	t.Helper()
	waitFor(t, "the file "+path, func() bool { _, err := os.Stat(path); return err == nil })
}

func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// expect compares what nearly every test is about.
func (b *bench) expect(outcome string, status int) *bench {
	b.t.Helper()
	if b.result.Outcome != outcome || b.status != status {
		b.t.Fatalf("outcome %s, status %d; want %s, %d. %s\nstderr: %s", b.result.Outcome, b.status, outcome, status, b.raw, b.stderr.String())
	}
	return b
}

func (b *bench) expectMessage(parts ...string) *bench {
	b.t.Helper()
	for _, part := range parts {
		if !strings.Contains(b.result.Message, part) {
			b.t.Fatalf("message %q does not say %q", b.result.Message, part)
		}
	}
	return b
}

func (b *bench) expectWarning(part string) *bench {
	b.t.Helper()
	for _, warning := range b.result.Warnings {
		if strings.Contains(warning, part) {
			return b
		}
	}
	b.t.Fatalf("no warning says %q: %q", part, b.result.Warnings)
	return b
}

func (b *bench) expectNoWarnings() *bench {
	b.t.Helper()
	if len(b.result.Warnings) > 0 {
		b.t.Fatalf("warnings: %q", b.result.Warnings)
	}
	return b
}

func TestDispatchUnknown(t *testing.T) {
	for _, args := range [][]string{{"hubflow-wrapper", "walk"}, {"hubflow-wrapper", "run"}, {"hubflow-wrapper", "run", "a", "b"}, {"hubflow-wrapper", "install"}} {
		var stdout, stderr bytes.Buffer
		if status := dispatch(args, &stdout, &stderr); status != exitUsage || !strings.Contains(stderr.String(), "hubflow-wrapper run JOBFILE") {
			t.Errorf("%v: status %d, stderr %q", args, status, stderr.String())
		}
	}
}

func TestDispatchHelpAndVersion(t *testing.T) {
	for args, want := range map[string]string{"": "hubflow-wrapper run JOBFILE", "help": "install DIR", "version": "job document 1", "thub version": "thub " + version} {
		var stdout, stderr bytes.Buffer
		status := dispatch(append([]string{"/usr/bin/hubflow-wrapper"}, strings.Fields(args)...), &stdout, &stderr)
		if status != 0 || !strings.Contains(stdout.String(), want) {
			t.Errorf("%q: status %d, stdout %q", args, status, stdout.String())
		}
	}
}
