package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// hub is Hubflow's file API.
type hub struct {
	*httptest.Server
	files   map[string][]byte // by path and query
	headers http.Header
	status  []int // answers before the real ones
}

func newHub(t *testing.T) *hub {
	h := &hub{files: map[string][]byte{}}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h.headers = r.Header.Clone()
		if len(h.status) > 0 {
			w.WriteHeader(h.status[0])
			h.status = h.status[1:]
			return
		}
		key := r.URL.EscapedPath() + "?" + r.URL.RawQuery
		switch content, known := h.files[key]; {
		case r.Method == http.MethodPut && int64(len(body)) == r.ContentLength:
			h.files[key] = body
			w.WriteHeader(http.StatusCreated)
		case r.Method == http.MethodGet && known:
			_, _ = w.Write(content)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(h.Close)
	t.Setenv("HUBFLOW_URL", h.URL+"/")
	return h
}

func runThub(args ...string) (status int, stdout, stderr string) {
	var out, problems bytes.Buffer
	status = dispatch(append([]string{"/.workflow/bin/thub"}, args...), &out, &problems)
	return status, out.String(), problems.String()
}

// The very command line of TencentHub's components.
func TestThubPushAndPull(t *testing.T) {
	h := newHub(t)
	dir := t.TempDir()
	local := filepath.Join(dir, "vendor.tar.bz")
	os.WriteFile(local, []byte("content"), 0o644)
	status, stdout, stderr := runThub("push", "--username=100", "--password=s3cret", "--repo=ns/repo", "--localpath="+local, "--path=some dir/vendor.tar.bz", "--tag=1.0")
	if status != 0 || stderr != "" || !strings.HasSuffix(stdout, "\n") || strings.Contains(stdout, "s3cret") {
		t.Fatalf("%d %q %q", status, stdout, stderr)
	}
	if string(h.files["/api/v1/files/ns/repo/some%20dir/vendor.tar.bz?tag=1.0"]) != "content" {
		t.Errorf("%v", h.files)
	}
	user, password, _ := (&http.Request{Header: h.headers}).BasicAuth()
	sum := sha256.Sum256([]byte("content"))
	if user != "100" || password != "s3cret" || h.headers.Get("Content-Digest") != "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":" {
		t.Errorf("%v", h.headers)
	}
	back := filepath.Join(dir, "back")
	status, _, stderr = runThub("pull", "--token", "t0ken", "--repo", "hub.tencentyun.com/ns/repo", "--localpath", back, "--path", "some dir/vendor.tar.bz", "--tag", "1.0")
	if got, _ := os.ReadFile(back); status != 0 || string(got) != "content" || h.headers.Get("Authorization") != "Bearer t0ken" {
		t.Errorf("%d %q %v %q", status, got, h.headers, stderr)
	}
}

func TestThubDefaults(t *testing.T) {
	h := newHub(t)
	local := filepath.Join(t.TempDir(), "a.jar")
	os.WriteFile(local, nil, 0o644)
	if status, stdout, stderr := runThub("push", "--token=t", "--repo=ns/repo", "--localpath="+local, "--path=a.jar", "--tag=", "--loglevel=1"); status != 0 || stdout != "" {
		t.Errorf("%d %q %q", status, stdout, stderr)
	}
	if _, known := h.files["/api/v1/files/ns/repo/a.jar?tag=latest"]; !known {
		t.Errorf("%v", h.files)
	}
}

func TestThubRetries(t *testing.T) {
	h := newHub(t)
	h.status = []int{503, 500}
	local := filepath.Join(t.TempDir(), "f")
	os.WriteFile(local, []byte("x"), 0o644)
	if status, _, stderr := runThub("push", "--token=t", "--repo=ns/repo", "--localpath="+local, "--path=f"); status != 0 || len(h.files) != 1 {
		t.Errorf("%d %q", status, stderr)
	}
}

func TestThubFailures(t *testing.T) {
	h := newHub(t)
	dir := t.TempDir()
	local := filepath.Join(dir, "f")
	os.WriteFile(local, []byte("x"), 0o644)
	good := []string{"--username=u", "--password=s3cret", "--repo=ns/repo", "--localpath=" + local, "--path=f", "--tag=t"}
	for name, c := range map[string]struct {
		args   []string
		answer []int
		status int
		says   []string
	}{
		"everything missing": {[]string{"push"}, nil, exitUsage, []string{"--repo", "--localpath", "--path", "--username", "--token"}},
		"unknown option":     {[]string{"push", "--colour=red"}, nil, exitUsage, []string{"colour", "thub help"}},
		"stray argument":     {append(append([]string{"push"}, good...), "x"), nil, exitUsage, []string{`"x"`}},
		"unknown command":    {[]string{"fetch"}, nil, exitUsage, []string{"fetch", "push, pull"}},
		"wrong password":     {append([]string{"push"}, good...), []int{401}, 1, []string{"password or token are wrong"}},
		"no such repository": {append([]string{"push"}, good...), []int{404}, 1, []string{"no such repository"}},
		"no such file":       {append([]string{"pull"}, good[:3]...), nil, exitUsage, []string{"--localpath"}},
		"nothing to pull":    {append([]string{"pull", "--localpath=" + dir}, append(good[:3:3], "--path=none")...), nil, 1, []string{"404"}},
		"local missing":      {append([]string{"push", "--localpath=/no/such"}, append(good[:3:3], "--path=f")...), nil, 1, []string{"/no/such"}},
		"a directory":        {append([]string{"push", "--localpath=" + dir}, append(good[:3:3], "--path=f")...), nil, 1, []string{"not a file"}},
	} {
		t.Run(name, func(t *testing.T) {
			h.status = c.answer
			status, stdout, stderr := runThub(c.args...)
			if status != c.status || !strings.HasSuffix(stderr, "\n") || strings.Contains(stdout+stderr, "s3cret") {
				t.Errorf("%d %q %q", status, stdout, stderr)
			}
			expectParts(t, stderr, c.says...)
		})
	}
	t.Setenv("HUBFLOW_URL", "")
	_, _, stderr := runThub(append([]string{"push"}, good...)...)
	expectParts(t, stderr, "HUBFLOW_URL", "https://hubflow.example")
	if left, _ := filepath.Glob(filepath.Join(dir, ".thub*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The calls of TencentHub's components, as their sources have them.
func TestThubAsComponentsCallIt(t *testing.T) {
	h := newHub(t)
	dir := t.TempDir()
	for _, name := range []string{"app.tar.bz", "node_modules.tar", "vendor.tar.bz", "dist.tar"} {
		os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644)
	}
	for name, c := range map[string]struct{ args, want string }{
		"maven":                     {"push --username=100 --password=p --repo=ns/repo --localpath=" + dir + "/app.tar.bz --path=build/app.tar.bz --tag=1.0.0", "ns/repo/build/app.tar.bz?tag=1.0.0"},
		"gradle, no folder":         {"push --username=100 --password=p --repo=ns/repo --localpath=" + dir + "/app.tar.bz --path=app.tar.bz --tag=latest", "ns/repo/app.tar.bz?tag=latest"},
		"npm":                       {"push --username=100 --password=p --repo=ns/repo --localpath=" + dir + "/node_modules.tar --path=a/b/node_modules.tar --tag=latest", "ns/repo/a/b/node_modules.tar?tag=latest"},
		"composer, host in front":   {"push --username=100 --password=p --repo=hub.tencentyun.com/ns/repo --localpath=" + dir + "/vendor.tar.bz --path=vendor.tar.bz --tag=v2", "ns/repo/vendor.tar.bz?tag=v2"},
		"a host with a port":        {"push --username=100 --password=p --repo=localhost:5000/ns/repo --localpath=" + dir + "/dist.tar --path=dist.tar --tag=1", "ns/repo/dist.tar?tag=1"},
		"a path with a slash first": {"push --username=100 --password=p --repo=ns/repo --localpath=" + dir + "/dist.tar --path=/dist.tar --tag=2", "ns/repo/dist.tar?tag=2"},
		"a path that climbs":        {"push --username=100 --password=p --repo=ns/repo --localpath=" + dir + "/dist.tar --path=../../x/../dist.tar --tag=3", "ns/repo/dist.tar?tag=3"},
		"a tag to be escaped":       {"push --token=t --repo=ns/repo --localpath=" + dir + "/dist.tar --path=d%.tar --tag=a&b=c+d", "ns/repo/d%25.tar?tag=a%26b%3Dc%2Bd"},
		"one dash":                  {"push -token=t -repo=ns/repo -localpath=" + dir + "/dist.tar -path=one.tar -tag=4", "ns/repo/one.tar?tag=4"},
		"without a path":            {"push --token=t --repo=ns/repo --localpath=" + dir + "/dist.tar --tag=5", "ns/repo/dist.tar?tag=5"},
	} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := runThub(strings.Fields(c.args)...)
			if status != 0 || !strings.HasSuffix(stdout, " ok\n") || stderr != "" {
				t.Fatalf("%d %q %q", status, stdout, stderr)
			}
			if _, known := h.files["/api/v1/files/"+c.want]; !known {
				t.Errorf("not at %s: %v", c.want, h.files)
			}
		})
	}
}

func TestThubLogLevels(t *testing.T) {
	newHub(t)
	local := filepath.Join(t.TempDir(), "f")
	os.WriteFile(local, []byte("x"), 0o644)
	for level, speaks := range map[string]bool{"1": false, "2": false, "3": true, "4": true, "5": true, "": true} {
		args := []string{"push", "--token=t", "--repo=ns/repo", "--localpath=" + local, "--path=f"}
		if level != "" {
			args = append(args, "--loglevel="+level)
		}
		if status, stdout, _ := runThub(args...); status != 0 || (stdout != "") != speaks {
			t.Errorf("%q: %d %q", level, status, stdout)
		}
	}
	if status, _, stderr := runThub("push", "--token=t", "--repo=ns/repo", "--localpath="+local, "--loglevel=loud"); status != exitUsage || !strings.Contains(stderr, "loglevel") {
		t.Errorf("%d %q", status, stderr)
	}
}

func TestThubPullPlaces(t *testing.T) {
	h := newHub(t)
	h.files["/api/v1/files/ns/repo/d/f?tag=latest"] = []byte("fresh")
	pull := func(local string) int {
		status, _, _ := runThub("pull", "--token=t", "--repo=ns/repo", "--path=d/f", "--localpath="+local)
		return status
	}
	dir := t.TempDir()
	if status := pull(dir); status != 0 { // into a directory, by its own name
		t.Error(status)
	}
	os.WriteFile(filepath.Join(dir, "old"), []byte("old content, longer"), 0o600)
	if status := pull(filepath.Join(dir, "old")); status != 0 { // over an old file
		t.Error(status)
	}
	for _, name := range []string{"f", "old"} {
		if text, _ := os.ReadFile(filepath.Join(dir, name)); string(text) != "fresh" {
			t.Errorf("%s: %q", name, text)
		}
	}
	if status := pull(filepath.Join(dir, "no/such/dir/f")); status != 1 {
		t.Error(status)
	}
	h.status = []int{500, 503, 200}
	h.files["/api/v1/files/ns/repo/d/f?tag=latest"] = nil
	os.WriteFile(filepath.Join(dir, "kept"), []byte("kept"), 0o644)
	runThub("pull", "--token=t", "--repo=ns/other", "--path=none", "--localpath="+filepath.Join(dir, "kept"))
	if text, _ := os.ReadFile(filepath.Join(dir, "kept")); string(text) != "kept" && len(text) != 0 {
		t.Errorf("a pull that failed left %q", text)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".thub*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
