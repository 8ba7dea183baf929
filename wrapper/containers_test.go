package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The whole life of the wrapper inside real containers. `make test` runs this with a dockerd of its own
// (tests/integration/test_wrapper_containers.py); by hand: HUBFLOW_TEST_CONTAINERS=1 with a Docker engine that answers.

const (
	muslLoader  = "/lib/ld-musl-x86_64.so.1" // Debian: musl
	glibcLoader = "/lib64/ld-linux-x86-64.so.2"
)

// buildChild builds the program of testdata/child: static, or started by the given dynamic loader.
func buildChild(t *testing.T, loader string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "child")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./testdata/child")
	if loader != "" {
		cmd = exec.Command("go", "build", "-trimpath", "-buildmode=pie", "-ldflags", "-s -w -I "+loader, "-o", path, "./testdata/child")
	}
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// importImage makes an image of just these files (path in it: path here) and returns its name.
func importImage(t *testing.T, name string, files map[string]string) string {
	t.Helper()
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	for _, to := range sortedKeys(files) {
		content, err := os.ReadFile(files[to])
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(to, "/"), Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	image := fmt.Sprintf("hubflow-wrapper-test:%s-%d", name, os.Getpid())
	docker(t, &packed, "import", "-", image)
	t.Cleanup(func() { docker(t, nil, "rmi", "-f", image) })
	return image
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

func needContainers(t *testing.T) {
	t.Helper()
	if os.Getenv("HUBFLOW_TEST_CONTAINERS") == "" {
		t.Skip("set HUBFLOW_TEST_CONTAINERS=1, with a Docker engine that answers (DOCKER_HOST)")
	}
}

// containerDocument is a job whose program is /child, and whose directory /r is the only place that can be written for sure.
func containerDocument(what string) map[string]any {
	return map[string]any{
		"version": 1, "attempt": "a", "command": []string{"/child", what}, "workdir": "/r", "result_path": "/r/result.json",
		"output_path": "/r/outputs", "running_path": "/r/running", "grace_s": 4,
	}
}

// place is the directory that a container sees as /r.
type place struct {
	t   *testing.T
	dir string
	uid uint32
}

func newPlace(t *testing.T, uid uint32, document map[string]any) *place {
	dir := t.TempDir()
	os.Chmod(filepath.Dir(dir), 0o755)
	writeJob(t, dir, document, uid)
	return &place{t, dir, uid}
}

// args is the docker command line for the wrapper in an image.
func (p *place) args(image string, options ...string) []string {
	args := append([]string{"run", "-v", p.dir + "/r:/r"}, options...)
	if p.uid != 0 {
		args = append(args, "--user", fmt.Sprintf("%d:%d", p.uid, p.uid))
	}
	if !slices.Contains(args, "--network") {
		args = append(args, "--network", "none")
	}
	return append(args, image, "/hw", "run", "/r/job.json")
}

// run runs it to its end and returns its output and status.
func (p *place) run(image string, options ...string) (string, int) {
	p.t.Helper()
	cmd := exec.Command("docker", p.args(image, append([]string{"--rm"}, options...)...)...)
	out, _ := cmd.CombinedOutput()
	return strings.ReplaceAll(string(out), "\r\n", "\n"), cmd.ProcessState.ExitCode()
}

// start runs it in the background until its child runs, and returns the container's id.
func (p *place) start(image string, options ...string) string {
	p.t.Helper()
	id := strings.TrimSpace(docker(p.t, nil, p.args(image, append([]string{"-d"}, options...)...)...))
	p.t.Cleanup(func() { docker(p.t, nil, "rm", "-f", id) })
	waitForFile(p.t, filepath.Join(p.dir, "r/running"))
	waitForFile(p.t, filepath.Join(p.dir, "r/ready"))
	return id
}

func (p *place) result() (result Result) {
	p.t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.dir, "r/result.json"))
	if err != nil {
		p.t.Fatal(err)
	}
	checkSchema(p.t, "result", raw)
	if err := json.Unmarshal(raw, &result); err != nil {
		p.t.Fatal(err)
	}
	return result
}

func TestContainers(t *testing.T) {
	needContainers(t)
	wrapper := buildWrapper(t, "amd64")
	files := func(loader string, more ...string) map[string]string {
		all := map[string]string{"/hw": wrapper, "/child": buildChild(t, loader)}
		for _, path := range more {
			all[path] = path
		}
		return all
	}
	images := map[string]string{"scratch": importImage(t, "scratch", files(""))}
	if busybox, err := exec.LookPath("busybox"); err == nil {
		with := files("")
		with["/bin/busybox"], with["/bin/sh"] = busybox, busybox
		images["busybox"] = importImage(t, "busybox", with)
	}
	for name, loader := range map[string]string{"musl": muslLoader, "glibc": glibcLoader} {
		if _, err := os.Stat(loader); err != nil {
			t.Logf("no %s here: without its image", loader)
			continue
		}
		images[name] = importImage(t, name, files(loader, loader))
		t.Run("a program for "+name+" without its loader", func(t *testing.T) {
			missingLoader(t, importImage(t, name+"-lacking", files(loader)), loader)
		})
	}
	for name, image := range images {
		t.Run(name, func(t *testing.T) { underConstraints(t, name, image) })
	}
	t.Run("stopped", func(t *testing.T) { stoppedContainers(t, images["scratch"]) })
	t.Run("killed", func(t *testing.T) { killedContainers(t, images["scratch"]) })
	t.Run("out of memory", func(t *testing.T) { outOfMemory(t, images["scratch"]) })
	t.Run("termination log", func(t *testing.T) { terminationLog(t, images["scratch"]) })
	t.Run("files", func(t *testing.T) { filesInContainers(t, images["scratch"]) })
	t.Run("install", func(t *testing.T) { installInContainer(t, images["scratch"]) })
}

func underConstraints(t *testing.T, kind, image string) {
	for name, c := range map[string]struct {
		uid     uint32
		options []string
	}{
		"root":                 {0, nil},
		"read-only root":       {0, []string{"--read-only"}},
		"random uid":           {54321, nil},
		"all of it, no rights": {54321, []string{"--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "30", "--memory", "64m"}},
		"an init before":       {0, []string{"--init"}},
		"no logs":              {0, []string{"--log-driver", "none"}},
		"a terminal":           {0, []string{"-t"}},
	} {
		if kind != "scratch" && name != "root" && name != "all of it, no rights" {
			continue // what the image brings makes no difference to these
		}
		t.Run(name, func(t *testing.T) {
			place := newPlace(t, c.uid, containerDocument("hello"))
			begin := time.Now()
			out, status := place.run(image, c.options...)
			if name == "an init before" && status == 125 {
				t.Skipf("no init here: %s", out)
			}
			result := place.result()
			if status != 5 || result.Outcome != outcomeExited || result.Outputs["A"] != "1" || result.Outputs["B"] != "2" || len(result.Warnings) > 0 {
				t.Errorf("status %d, output %q, result %+v", status, out, result)
			}
			if !strings.Contains(out, fmt.Sprintf("hello from uid %d\n", c.uid)) && name != "no logs" {
				t.Errorf("%q", out)
			}
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("took %v: whom the child left behind was waited for", took)
			}
		})
	}
}

// The reason that only the image's maker can mend is told, and is not the user's failure.
func missingLoader(t *testing.T, image, loader string) {
	place := newPlace(t, 0, containerDocument("hello"))
	out, status := place.run(image)
	result := place.result()
	if status != exitNotExecutable || result.Outcome != outcomeStartFailed || result.Started || !strings.Contains(result.Message, loader) || !strings.Contains(result.Message, "glibc or musl") {
		t.Errorf("%d %s %+v", status, out, result)
	}
}

func stoppedContainers(t *testing.T, image string) {
	for name, c := range map[string]struct {
		what   string
		grace  string
		status int
		atMost time.Duration
	}{
		"by docker stop":       {"wait", "10", 4, 5 * time.Second},
		"deaf, by docker stop": {"deaf", "4", 137, 3500 * time.Millisecond}, // before dockerd itself kills
		"that does not care":   {"sleep", "10", 143, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			place := newPlace(t, 0, containerDocument(c.what))
			id := place.start(image)
			begin := time.Now()
			docker(t, nil, "stop", "-t", c.grace, id)
			if took := time.Since(begin); took > c.atMost+3*time.Second { // of the engine itself, on a busy machine
				t.Errorf("took %v", took)
			}
			result := place.result()
			inspected := strings.TrimSpace(docker(t, nil, "inspect", "-f", "{{.State.ExitCode}}", id))
			if result.Outcome != outcomeStopped || *result.ExitCode != c.status || inspected != fmt.Sprint(c.status) {
				t.Errorf("container ended with %s, result %+v", inspected, result)
			}
			if c.what == "wait" && docker(t, nil, "logs", id) != "bye\n" {
				t.Errorf("%q", docker(t, nil, "logs", id))
			}
		})
	}
}

// The wrapper's own death leaves the marker and no result.
func killedContainers(t *testing.T, image string) {
	place := newPlace(t, 0, containerDocument("sleep"))
	id := place.start(image)
	docker(t, nil, "kill", "-s", "KILL", id)
	docker(t, nil, "wait", id)
	if exists(filepath.Join(place.dir, "r/result.json")) || !exists(filepath.Join(place.dir, "r/running")) {
		t.Error("a wrapper that was killed left a result, or no marker")
	}
}

// The child's out-of-memory is the child's: the wrapper lives to tell it.
func outOfMemory(t *testing.T, image string) {
	place := newPlace(t, 0, containerDocument("eat"))
	out, status := place.run(image, "--memory", "96m", "--memory-swap", "96m")
	if strings.Contains(out, "not support") || strings.Contains(out, "ate 800 MiB") {
		t.Skipf("memory is not limited here: %.300s", out)
	}
	result := place.result()
	if status != 137 || result.Outcome != outcomeSignaled || result.Signal != "KILL" || !strings.Contains(result.Message, "out of memory") {
		t.Errorf("%d %+v", status, result)
	}
}

// As Kubernetes has it: a mounted file, all else read-only, nothing else to be written.
func terminationLog(t *testing.T, image string) {
	document := containerDocument("hello")
	document["result_path"] = "/dev/termination-log"
	place := newPlace(t, 54321, document)
	log := filepath.Join(place.dir, "termination-log")
	if err := os.WriteFile(log, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	os.Chmod(log, 0o666)
	out, status := place.run(image, "--read-only", "-v", log+":/dev/termination-log")
	raw, _ := os.ReadFile(log)
	checkSchema(t, "result", raw)
	if status != 5 || !bytes.Contains(raw, []byte(`"outcome":"exited","exit_code":5`)) {
		t.Errorf("%d %s %s", status, out, raw)
	}
}

// A cache and an artifact there and back by HTTPS, where there is no /tmp and no certificate but the one we bring.
func filesInContainers(t *testing.T, image string) {
	s := newTLSStore(t)
	for _, uid := range []uint32{0, 54321} {
		name := fmt.Sprintf("cache-%d", uid)
		for turn, want := range []string{"x", "xx", "xxx"} {
			document := containerDocument("files")
			document["restore"] = []any{restore(s, "cache", name, ".", false)}
			document["save"] = []any{save(s, "cache", name, "files")}
			document["ca_file"] = "/r/ca.pem"
			place := newPlace(t, uid, document)
			if err := os.WriteFile(filepath.Join(place.dir, "r/ca.pem"), s.certificate(), 0o644); err != nil {
				t.Fatal(err)
			}
			out, status := place.run(image, "--network", "host", "--read-only", "--cap-drop", "ALL")
			result := place.result()
			if status != 0 || result.Outputs["COUNT"] != want || result.Restored[0].Hit != (turn > 0) || len(result.Warnings) > 0 {
				t.Fatalf("turn %d: status %d, %s, %+v", turn, status, out, result)
			}
		}
	}
}

// An init container without a shell puts both programs into a volume.
func installInContainer(t *testing.T, image string) {
	volume := t.TempDir()
	os.Chmod(filepath.Dir(volume), 0o755)
	docker(t, nil, "run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", "-v", volume+":/.hubflow", image, "/hw", "install", "/.hubflow")
	for _, name := range []string{"hubflow-wrapper", "thub"} {
		out := docker(t, nil, "run", "--rm", "--network", "none", "--read-only", "--user", "54321", "-v", volume+":/.hubflow:ro", image, "/.hubflow/"+name, "version")
		if !strings.HasPrefix(out, name+" ") {
			t.Errorf("%s: %q", name, out)
		}
	}
}
