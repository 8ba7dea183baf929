package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The whole life of the wrapper in bare places, which are made with chroot and namespaces (as root), and on another machine
// (qemu-user). Real containers are in containers_test.go.

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
