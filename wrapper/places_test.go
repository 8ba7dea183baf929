package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The whole life of the wrapper in bare places. The first test makes them with chroot and namespaces (as root); the second
// with a Docker engine, where HUBFLOW_TEST_CONTAINERS is set.

// buildWrapper builds the real program, as it is shipped.
func buildWrapper(t *testing.T, arch string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hubflow-wrapper")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	if writesFormat != "zstd" {
		cmd.Args = append(cmd.Args[:2:2], append([]string{"-tags", "nozstd"}, cmd.Args[2:]...)...)
	}
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(filepath.Dir(to), 0o755)
	if err := os.WriteFile(to, content, mode); err != nil {
		t.Fatal(err)
	}
}

func TestSizeIsUnderEightMiB(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		info, err := os.Stat(buildWrapper(t, arch))
		if err != nil || info.Size() >= 8<<20 {
			t.Errorf("%s: %d bytes, %v", arch, info.Size(), err)
		}
	}
}

// bareDocument is a job in a place with nothing but /hw, /bin/busybox and /r.
func bareDocument(script string) map[string]any {
	return map[string]any{
		"version": 1, "attempt": "a", "command": []string{"/bin/busybox", "sh", "-c", script}, "workdir": "/r", "result_path": "/r/result.json",
		"output_path": "/r/outputs", "running_path": "/r/running", "grace_s": 2,
	}
}

// The script shows that the child works and that all its orphans are gone at the end.
const bareScript = `b=/bin/busybox; echo hello from uid $($b id -u); echo "[JOB_OUT] A = 1"; echo B=2 >>$HUBFLOW_OUTPUT; $b setsid $b sleep 100 & exit 5`

func TestBarePlaces(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root and a static busybox")
	}
	wrapper := buildWrapper(t, "amd64")
	for name, c := range map[string]struct {
		uid   uint32
		flags uintptr
	}{
		"no /proc, no /tmp, no /dev":              {0, 0},
		"the same, as PID 1":                      {0, syscall.CLONE_NEWPID},
		"the same, as a uid without passwd entry": {54321, 0},
		"the same, as that uid and PID 1":         {54321, syscall.CLONE_NEWPID},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			os.Chmod(filepath.Dir(root), 0o755)
			copyFile(t, wrapper, filepath.Join(root, "hw"), 0o755)
			copyFile(t, busybox, filepath.Join(root, "bin/busybox"), 0o755)
			writeJob(t, root, bareDocument(bareScript), c.uid)
			cmd := exec.Command("/hw", "run", "/r/job.json")
			cmd.Dir, cmd.Env = "/", []string{}
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: c.flags, Credential: &syscall.Credential{Uid: c.uid, Gid: c.uid}}
			begin := time.Now()
			out, _ := cmd.CombinedOutput()
			checkBare(t, root, string(out), cmd.ProcessState.ExitCode(), c.uid)
			// Without /proc and not as PID 1, one who left group and session cannot be found, and holds the output.
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			killStrays(root)
		})
	}
}

// killStrays ends processes that live in a chroot of ours.
func killStrays(root string) {
	links, _ := filepath.Glob("/proc/[0-9]*/root")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == root {
			var pid int
			fmt.Sscanf(link, "/proc/%d/root", &pid)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func writeJob(t *testing.T, root string, document map[string]any, uid uint32) {
	t.Helper()
	text, _ := json.Marshal(document)
	checkSchema(t, "job", text)
	os.MkdirAll(filepath.Join(root, "r"), 0o755)
	os.WriteFile(filepath.Join(root, "r/job.json"), text, 0o444)
	os.Chown(filepath.Join(root, "r"), int(uid), int(uid))
}

func checkBare(t *testing.T, root, out string, status int, uid uint32) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "r/result.json"))
	if err != nil {
		t.Fatalf("no result: %v; output %q", err, out)
	}
	checkSchema(t, "result", raw)
	var result Result
	_ = json.Unmarshal(raw, &result)
	if status != 5 || result.Outcome != outcomeExited || result.Outputs["A"] != "1" || result.Outputs["B"] != "2" || !strings.Contains(out, fmt.Sprintf("hello from uid %d\n", uid)) {
		t.Errorf("status %d, output %q, result %s", status, out, raw)
	}
}

// arm64, run under qemu-user: the wrapper is foreign, its child is native.
func TestArm64UnderQemu(t *testing.T) {
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Skip("needs qemu-aarch64-static (Debian: qemu-user-static)")
	}
	wrapper := buildWrapper(t, "arm64")
	s := newStore(t)
	for _, c := range []struct {
		script  string
		outcome string
		status  int
	}{
		{"echo hello; echo '[JOB_OUT] A = 1'; mkdir d; echo x >d/f; exit 0", outcomeExited, 0},
		{"exit 9", outcomeExited, 9},
		{"kill -9 $$", outcomeSignaled, 137},
		{"trap 'exit 3' TERM; while :; do sleep 0.01; done", outcomeTimedOut, 124},
	} {
		b := shell(t, c.script).set("timeout_s", 1.5).set("save", []any{save(s, "artifact", "a", "d")})
		b.prepare()
		b.cmd = exec.Command(qemu, wrapper, "run", b.path("job.json"))
		b.cmd.Stdout, b.cmd.Stderr = &b.stdout, &b.stderr
		if err := b.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		b.wait().expect(c.outcome, c.status)
	}
	if s.object("a") == nil {
		t.Error("nothing was saved")
	}
}

func TestContainersUnderConstraints(t *testing.T) {
	if os.Getenv("HUBFLOW_TEST_CONTAINERS") == "" {
		t.Skip("set HUBFLOW_TEST_CONTAINERS=1, with a Docker engine that answers (DOCKER_HOST)")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a static busybox")
	}
	root := t.TempDir()
	copyFile(t, buildWrapper(t, "amd64"), filepath.Join(root, "hw"), 0o755)
	copyFile(t, busybox, filepath.Join(root, "bin/busybox"), 0o755)
	tarball, err := exec.Command("tar", "-C", root, "-cf", "-", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	image := fmt.Sprintf("hubflow-wrapper-test:%d", os.Getpid())
	docker(t, bytes.NewReader(tarball), "import", "-", image)
	defer docker(t, nil, "rmi", "-f", image)
	for name, c := range map[string]struct {
		uid     uint32
		options []string
	}{
		"scratch as root":      {0, nil},
		"read-only root":       {0, []string{"--read-only"}},
		"random uid":           {54321, []string{"--user", "54321:54321"}},
		"all of it, no rights": {54321, []string{"--user", "54321:54321", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "20", "--memory", "64m"}},
		"with an init before":  {0, []string{"--init"}},
		"no network, no logs":  {0, []string{"--log-driver", "none"}},
		"a terminal":           {0, []string{"-t"}},
	} {
		t.Run(name, func(t *testing.T) {
			place := t.TempDir()
			os.Chmod(filepath.Dir(place), 0o755)
			writeJob(t, place, bareDocument(bareScript), c.uid)
			args := append([]string{"run", "--rm", "--network", "none", "-v", place + "/r:/r"}, c.options...)
			cmd := exec.Command("docker", append(args, image, "/hw", "run", "/r/job.json")...)
			out, err := cmd.CombinedOutput()
			if name == "with an init before" && cmd.ProcessState.ExitCode() == 125 {
				t.Skipf("no init here: %s", out)
			}
			if name == "a terminal" {
				out = bytes.ReplaceAll(out, []byte("\r\n"), []byte("\n"))
			}
			t.Log(err)
			checkBare(t, place, string(out), cmd.ProcessState.ExitCode(), c.uid)
		})
	}
	t.Run("docker stop", func(t *testing.T) { dockerStop(t, image) })
}

func dockerStop(t *testing.T, image string) {
	place := t.TempDir()
	os.Chmod(filepath.Dir(place), 0o755)
	writeJob(t, place, bareDocument("trap 'echo bye; exit 4' TERM; while :; do /bin/busybox sleep 0.05; done"), 0)
	id := strings.TrimSpace(docker(t, nil, "run", "-d", "--network", "none", "-v", place+"/r:/r", image, "/hw", "run", "/r/job.json"))
	defer docker(t, nil, "rm", "-f", id)
	waitForFile(t, filepath.Join(place, "r/running"))
	begin := time.Now()
	docker(t, nil, "stop", "-t", "10", id)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	raw, _ := os.ReadFile(filepath.Join(place, "r/result.json"))
	if !bytes.Contains(raw, []byte(`"outcome":"stopped","exit_code":4`)) || docker(t, nil, "inspect", "-f", "{{.State.ExitCode}}", id) != "4\n" || !strings.Contains(docker(t, nil, "logs", id), "bye\n") {
		t.Errorf("%s", raw)
	}
}

func docker(t *testing.T, stdin io.Reader, args ...string) string {
	t.Helper()
	cmd := exec.Command("docker", args...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("docker %v: %v: %s", args, err, out)
	}
	return string(out)
}
